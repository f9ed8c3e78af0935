"""Writes tests/golden/: small GPT-NeoX models with the values that transformers computes from them.

    python tests/make_golden.py [OUTPUT_DIR [CASE...]]     (default: the folder golden/ beside this file; ten seconds)

With cases, only those are made, and their rows of MADE.md printed.

Needs torch, transformers, accelerate, safetensors; golden/MADE.md, written by this script, names the versions that were
used, says what each tensor means and how far the values are from a run in double precision. No test needs Python:
the C tests read the files.
"""
import json, math, os, platform, shutil, sys, tempfile
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainingArguments, get_linear_schedule_with_warmup

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

STEPS, WARMUP, LR, DECAY, CLIP = 10, 2, 1e-3, 0.1, 1.0

PLAIN = dict(vocab_size=67, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
             hidden_act="gelu", max_position_embeddings=64, bos_token_id=0, eos_token_id=0)
CASES = {   # name: (seed, B, T, config)
    "neox-parallel-025":   (1, 3, 13, dict(PLAIN, use_parallel_residual=True, rotary_pct=0.25)),
    "neox-parallel-100":   (2, 3, 13, dict(PLAIN, use_parallel_residual=True, rotary_pct=1.0)),
    "neox-sequential-025": (3, 3, 13, dict(PLAIN, use_parallel_residual=False, rotary_pct=0.25)),
    "neox-sequential-100": (4, 3, 13, dict(PLAIN, use_parallel_residual=False, rotary_pct=1.0)),
    "neox-variants":       (5, 2, 11, dict(PLAIN, vocab_size=61, hidden_size=27, num_hidden_layers=3, num_attention_heads=3,
                                           intermediate_size=53, hidden_act="gelu_new", attention_bias=False,
                                           tie_word_embeddings=True, rotary_pct=0.5, rotary_emb_base=500,
                                           layer_norm_eps=1e-3, use_parallel_residual=True)),
    "neox-linear":         (8, 2, 21, dict(PLAIN, vocab_size=41, hidden_size=16, num_attention_heads=2, intermediate_size=24,
                                           use_parallel_residual=True,
                                           rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1000.0,
                                                                partial_rotary_factor=0.5))),
}
# Folders whose config.json is rewritten with the keys of transformers 4 (rotary_pct, rotary_emb_base), as in Pythia's own files.
OLD_KEYS = ("neox-sequential-025", "neox-sequential-100")
# Folders whose final norm is scaled down, so that gradients are small enough for some steps to go unclipped.
SMALL_GRADIENT = {"neox-sequential-100": 0.3}


def stored(name):
    """The name in the file: transformers 5 calls the head lm_head in memory and embed_out in files."""
    return name.replace("lm_head.", "embed_out.")


def parameters(model):
    return {stored(n): p for n, p in model.named_parameters()}


def random_model(config, scale):
    """A model in which every parameter matters: weights N(0, 0.2), biases N(0, 0.1), norm weights N(1, 0.2)."""
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**config, attn_implementation="eager")).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                p.normal_(0, 0.2)
            elif name.endswith("bias"):
                p.normal_(0, 0.1)
            else:
                p.normal_(1, 0.2)
        model.gpt_neox.final_layer_norm.weight *= scale
        model.gpt_neox.final_layer_norm.bias *= scale
    return model


def random_batches(steps, B, T, vocab):
    """Ids and labels. Some rows start with an untrained run, some do not; one row of one step is not trained at all."""
    ids = torch.randint(0, vocab - 6, (steps, B, T))        # the last six ids never occur: their rows only decay
    labels = ids.clone()
    for s in range(steps):
        for b in range(B):
            if (s + b) % 3 == 0:
                labels[s, b, :3 + b] = -100
            if (s + b) % 3 == 1:
                labels[s, b, 5:7 + s % 3] = -100
            if (s + b) % 4 == 2:
                labels[s, b, T - 2:] = -100
    if steps > 3:
        labels[3, 0] = -100
    return ids, labels


def summed_loss(model, ids, labels):
    """(sum of cross entropy, number of predicted and trained tokens, logits); position t predicts label t+1."""
    logits = model(input_ids=ids, use_cache=False).logits
    x, y = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    return F.cross_entropy(x, y, ignore_index=-100, reduction="sum"), int((y != -100).sum()), logits


def one_pass(model, ids, labels):
    """Logits, mean loss and the gradient of the summed loss of one batch."""
    model.zero_grad(set_to_none=True)
    total, count, logits = summed_loss(model, ids, labels)
    total.backward()
    exact = F.cross_entropy(logits[:, :-1].double().reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), reduction="sum")
    out = {"logits": logits.detach().clone(), "loss": (exact / count).detach().reshape(1)}
    out.update({"grad." + n: p.grad.clone() for n, p in parameters(model).items()})
    return out


def ten_steps(model, ids, labels):
    """The optimizer steps as Trainer makes them, written out."""
    decayed = Trainer.get_decay_parameter_names(None, model)
    groups = [{"params": [p for n, p in model.named_parameters() if n in decayed], "weight_decay": DECAY},
              {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms, rates = [], [], []
    for s in range(STEPS):
        model.zero_grad(set_to_none=True)
        total, count, _ = summed_loss(model, ids[s], labels[s])
        (total / count).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        losses.append(float(total.detach()) / count)
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return losses, norms, rates, [stored(n) for n in decayed]


def trainer_steps(model, ids, labels):
    """The same steps by the real Trainer: a check on the loop above, not stored."""
    rows = [{"input_ids": i, "labels": l} for i, l in zip(ids.flatten(0, 1), labels.flatten(0, 1))]
    class Ordered(Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)
    with tempfile.TemporaryDirectory() as tmp:
        args = TrainingArguments(tmp, per_device_train_batch_size=ids.shape[1], max_steps=STEPS, learning_rate=LR, weight_decay=DECAY,
                                 warmup_steps=WARMUP, max_grad_norm=CLIP, logging_steps=1, save_strategy="no", report_to=[],
                                 use_cpu=True, disable_tqdm=True, seed=0, optim="adamw_torch")
        trainer = Ordered(model=model, args=args, train_dataset=rows)
        trainer.log = lambda logs, *a, **k: trainer.state.log_history.append(dict(logs))
        trainer.train()
    rows = [r for r in trainer.state.log_history if "grad_norm" in r]
    return [r["loss"] for r in rows], [float(r["grad_norm"]) for r in rows], [r["learning_rate"] for r in rows]


def old_config(folder):
    """Rewrites config.json with the keys of transformers 4 and checks that it still means the same."""
    path = os.path.join(folder, "config.json")
    new = json.load(open(path))
    before = GPTNeoXConfig.from_pretrained(folder)
    rope = new.pop("rope_parameters")
    old = dict(new, rotary_emb_base=int(rope["rope_theta"]), rotary_pct=rope["partial_rotary_factor"], rope_scaling=None,
               torch_dtype=new.pop("dtype"), transformers_version="4.34.1")
    old.pop("dtype", None)
    with open(path, "w") as f:
        f.write(json.dumps(old, indent=2, sort_keys=True) + "\n")
    after = GPTNeoXConfig.from_pretrained(folder)
    assert after.rope_parameters == before.rope_parameters and after.dtype == before.dtype, (before, after)


def worst(a, b):
    """Largest difference, in units of the largest value of the reference."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300))


def make_case(root, name):
    seed, B, T, config = CASES[name]
    torch.manual_seed(seed)
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = random_model(config, SMALL_GRADIENT.get(name, 1.0))
    model.save_pretrained(folder)
    if name in OLD_KEYS:
        old_config(folder)
    ids, labels = random_batches(1, B, T, config["vocab_size"])
    step_ids, step_labels = random_batches(STEPS, B, T, config["vocab_size"])
    ids, labels = ids[0], labels[0]
    load = lambda dtype: GPTNeoXForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()

    out = one_pass(load(torch.float32), ids, labels)
    ref = one_pass(load(torch.float64), ids, labels)
    if worst(out["logits"], ref["logits"]) > 1e-5:
        out["logits64"] = ref["logits"]
    tuned = load(torch.float32)
    losses, norms, rates, decayed = ten_steps(tuned, step_ids, step_labels)
    tuned64 = load(torch.float64)
    losses64, norms64, _, _ = ten_steps(tuned64, step_ids, step_labels)
    by_trainer = load(torch.float32)
    t_losses, t_norms, t_rates = trainer_steps(by_trainer, step_ids, step_labels)

    out.update(input_ids=ids, labels=labels, step_ids=step_ids, step_labels=step_labels,
               step_losses=torch.tensor(losses), step_grad_norms=torch.tensor(norms), step_lrs=torch.tensor(rates))
    after = {n: p.detach() for n, p in parameters(tuned).items()}
    kept = ["gpt_neox.embed_in.weight", "gpt_neox.layers.0.attention.query_key_value.weight",
            "gpt_neox.layers.1.mlp.dense_4h_to_h.bias", "gpt_neox.final_layer_norm.weight"]
    out.update({"after." + n: after[n] for n in kept})
    out = {n: t.to(torch.float32 if t.is_floating_point() else torch.int32).contiguous() for n, t in out.items()}
    save_file(out, os.path.join(folder, "golden.safetensors"))

    assert worst(torch.tensor(t_losses), torch.tensor(losses)) < 1e-5, "this Trainer counts tokens differently"
    start, after64, t_after = load_file(os.path.join(folder, "model.safetensors")), parameters(tuned64), parameters(by_trainer)
    moved = {n: float((after[n] - start[n]).abs().max()) for n in kept}
    return {
        "logits": worst(out["logits"], ref["logits"]),
        "loss": worst(out["loss"], ref["loss"]),
        "gradients": max(worst(out[n], ref[n]) for n in ref if n.startswith("grad.")),
        "smallest gradient": min((float(ref[n].abs().max()), n) for n in ref if n.startswith("grad.")),
        "losses": worst(torch.tensor(losses), torch.tensor(losses64)),
        "norms": worst(torch.tensor(norms), torch.tensor(norms64)),
        "after": max(float((after[n] - after64[n].detach()).abs().max()) for n in kept),
        "moved": min(moved.values()),
        "trainer": (worst(torch.tensor(t_losses), torch.tensor(losses)), worst(torch.tensor(t_norms), torch.tensor(norms)),
                    worst(torch.tensor(t_rates), torch.tensor(rates)), max(float((after[n] - t_after[n].detach()).abs().max()) for n in after)),
        "values": f"loss {float(out['loss']):.4f}; ten steps: losses {losses[0]:.3f} to {losses[-1]:.3f}, norms {min(norms):.2f} to {max(norms):.2f}"
                  f" ({sum(n > CLIP for n in norms)} of {STEPS} clipped)",
        "decayed": sorted({".".join(n.split(".")[-2:]) for n in decayed}),
        "size": sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)),
    }


def perplexity(root):
    """The perplexity metric of the evaluate library (its formula, batch padded as there), and our loss without bos."""
    model = GPTNeoXForCausalLM.from_pretrained(os.path.join(root, "neox-parallel-025"), attn_implementation="eager").float().eval()
    torch.manual_seed(6)
    texts = [torch.randint(1, 67, (n,)).tolist() for n in (1, 2, 3, 5, 8, 13, 21, 30, 17, 40)]
    longest, bos, pad = max(map(len, texts)), model.config.bos_token_id, 1
    encoded = torch.tensor([[bos] + t + [pad] * (longest - len(t)) for t in texts])
    mask = torch.tensor([[1] * (len(t) + 1) + [0] * (longest - len(t)) for t in texts])
    with torch.no_grad():
        logits = model(encoded, attention_mask=mask).logits
        nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), encoded[:, 1:], reduction="none") * mask[:, 1:]
        perplexities = torch.exp(nll.sum(1) / mask[:, 1:].sum(1)).tolist()
        for text, p in zip(texts, perplexities):        # the padding must not matter
            total, count, _ = summed_loss(model, torch.tensor([[bos] + text]), torch.tensor([[bos] + text]))
            assert abs(math.exp(float(total) / count) / p - 1) < 1e-5
        plain = [summed_loss(model, torch.tensor([t]), torch.tensor([t]))[:2] for t in texts]
    total, tokens = sum(float(s) for s, _ in plain), sum(c for _, c in plain)
    result = {"model": "neox-parallel-025", "ids": texts, "bos_token_id": bos, "perplexities": perplexities,
              "mean_perplexity": sum(perplexities) / len(perplexities),
              "nll_without_bos": [float(s) for s, _ in plain], "predicted_without_bos": [c for _, c in plain],
              "loss_without_bos": total / tokens, "perplexity_without_bos": math.exp(total / tokens), "tokens_without_bos": tokens}
    with open(os.path.join(root, "perplexity.json"), "w") as f:
        f.write("{\n" + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in result.items()) + "\n}\n")


def init_rules():
    """How transformers initialises GPT-NeoX, measured: one line per kind of parameter."""
    torch.manual_seed(7)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=2048, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
                                             intermediate_size=1024, initializer_range=0.03))
    rules = {}
    for name, p in model.named_parameters():
        kind = stored(name).replace("gpt_neox.", "").replace("layers.0", "layers.N").replace("layers.1", "layers.N")
        p = p.detach()
        if p.ndim == 2:
            sigma = 0.03 / math.sqrt(2 * p.numel())         # of the measured deviation
            assert abs(float(p.std()) - 0.03) < 5 * sigma and abs(float(p.mean())) < 5 * 0.03 / math.sqrt(p.numel())
            assert float(p.abs().max()) > 3.8 * 0.03        # not truncated
            rule = "N(0, initializer_range)"
        else:
            rule = "zeros" if bool((p == 0).all()) else "ones" if bool((p == 1).all()) else "?"
        assert rules.setdefault(kind, rule) == rule != "?"
    return rules


MADE = """# How these files were made

    python tests/make_golden.py

with Python {python}, torch {torch} (CPU, one thread), transformers {transformers}, float32, `attn_implementation="eager"`. Weights are random
(seeded): N(0, 0.2), biases N(0, 0.1), norm weights N(1, 0.2), so that every parameter has a gradient that matters; the final norm of
neox-sequential-100 is 0.3 of that, so that some of its steps are not clipped.

Each folder is a model directory as transformers saves it (`neox-sequential-*`: config.json rewritten with the keys of
transformers 4, `rotary_pct` and `rotary_emb_base`; the others have `rope_parameters`) and `golden.safetensors`:

| tensor | shape | meaning |
| --- | --- | --- |
| `input_ids`, `labels` | I32 [B,T] | labels unshifted as in transformers, -100: not trained (the label of position 0 is never predicted, whatever it is) |
| `logits` | F32 [B,T,V] | |
| `loss` | F32 [1] | mean cross entropy over predicted and trained tokens (labels[:, 1:] != -100), summed in double precision |
| `grad.<name>` | F32 | gradient of the **summed** loss, every parameter of model.safetensors (tied: one gradient, under `gpt_neox.embed_in.weight`) |
| `step_ids`, `step_labels` | I32 [10,B,T] | ten optimizer steps from the stored weights, one batch each; row 0 of step 3 is not trained at all |
| `step_losses` | F32 [10] | mean loss before each update |
| `step_grad_norms` | F32 [10] | norm of the gradient of the mean loss, before clipping |
| `step_lrs` | F32 [10] | rate used by each update |
| `after.<name>` | F32 | four parameters after the ten steps |

The steps: AdamW, betas 0.9 and 0.999, eps 1e-8, weight decay {decay} on the matrices only, clipping at {clip}, linear schedule from {lr} with {warmup} warmup steps of
{steps} (so the first update has rate 0). Decayed: {decayed}.
The real `Trainer` was run on the same batches; it counts predicted tokens (`labels[..., 1:] != -100`; older versions do not), as we do, and agrees with
the stored values as the last column says.

This version of transformers calls the head `lm_head` in memory and still reads and writes `embed_out.weight` in files; the names here are those of the files.

`smallest gradient` is the largest element of the parameter whose gradient is smallest. Key biases outside the rotated slice have gradient zero in exact
arithmetic (they move all scores of a query alike), so what is stored there is rounding noise: compare gradients relative to the largest element of
their tensor, and do not compare `query_key_value.bias` after Adam steps.

Difference to the same computation in double precision (relative to the largest value; `after`: absolute, beside the smallest of the largest moves of a kept
parameter) and to Trainer (losses, norms, rates, relative; all parameters, absolute):

{table}

`perplexity.json`: the formula of the `evaluate` library's metric "perplexity" (bos in front, exp of the mean per text, then the mean) on ten
sequences of ids under neox-parallel-025, and our loss per predicted token without bos (the one-token text predicts nothing).

Initialisation of GPT-NeoX in transformers, measured by the script (`initializer_range` defaults to 0.02, is not scaled with depth, is not truncated):

{rules}
"""


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
    os.makedirs(root, exist_ok=True)
    table, decayed = ["| case | bytes | values | logits | loss | gradients | smallest gradient | step losses | norms | after (moved) | Trainer |", "| --- " * 11 + "|"], []
    for name in sys.argv[2:] or CASES:
        r = make_case(root, name)
        table.append(f"| {name} | {r['size']} | {r['values']} | {r['logits']:.1e} | {r['loss']:.1e} | {r['gradients']:.1e} | {r['smallest gradient'][0]:.2g} `{r['smallest gradient'][1]}`"
                     f" | {r['losses']:.1e} | {r['norms']:.1e} | {r['after']:.1e} ({r['moved']:.1e}) | {', '.join(f'{x:.0e}' for x in r['trainer'])} |")
        decayed = decayed or r["decayed"]
    if sys.argv[2:]:
        return print("\n".join(table))
    perplexity(root)
    rules = "\n".join(f"- `{k}`: {v}" for k, v in init_rules().items())
    text = MADE.format(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__, decay=DECAY, clip=CLIP,
                       lr=LR, warmup=WARMUP, steps=STEPS, decayed=", ".join(f"`{n}`" for n in decayed), table="\n".join(table), rules=rules)
    open(os.path.join(root, "MADE.md"), "w").write(text)
    print("\n".join(table))


main()
