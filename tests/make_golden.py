"""Writes tests/golden/: small models and adapters with the values that transformers and peft compute from them.

    python tests/make_golden.py [OUTPUT_DIR [CASE...]]     (default: the folder golden/ beside this file; half a minute)

With cases, only those are made; in MADE.md their rows are new and the others stay. A folder that an adapter is based on
must be in OUTPUT_DIR or made before it.

Needs torch, transformers, peft, accelerate, safetensors; golden/MADE.md, written by this script, names the versions that were
used, says what each tensor means and how far the values are from a run in double precision. No test needs Python:
the C tests read the files.
"""
import contextlib, json, math, os, re, shutil, sys, tempfile, warnings
import peft
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments, get_linear_schedule_with_warmup

torch.set_num_threads(1)
warnings.simplefilter("ignore")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

STEPS, WARMUP, LR, DECAY, CLIP = 10, 2, 1e-3, 0.1, 1.0

FAMILIES = {    # model_type: (last norm, parameters of which the value after ten steps is kept)
    "gpt_neox": ("gpt_neox.final_layer_norm", ("gpt_neox.embed_in.weight", "gpt_neox.layers.0.attention.query_key_value.weight",
                                               "gpt_neox.layers.1.mlp.dense_4h_to_h.bias", "gpt_neox.final_layer_norm.weight")),
    "gpt2": ("transformer.ln_f", ("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.attn.c_attn.weight",
                                  "transformer.h.1.mlp.c_proj.bias", "transformer.ln_f.weight")),
    "gpt_neo": ("transformer.ln_f", ("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.1.attn.attention.q_proj.weight",
                                     "transformer.h.1.mlp.c_proj.bias", "transformer.ln_f.weight")),
    "llama": ("model.norm", ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.gate_proj.weight",
                             "model.norm.weight")),
    "qwen2": ("model.norm", ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.bias",
                             "model.norm.weight")),
}
PLAIN = dict(model_type="gpt_neox", vocab_size=67, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
             hidden_act="gelu", max_position_embeddings=64, bos_token_id=0, eos_token_id=0)
GPT2 = dict(model_type="gpt2", vocab_size=43, n_embd=16, n_head=4, n_layer=2, n_positions=32, n_inner=None, activation_function="gelu_new",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
LLAMA = dict(model_type="llama", vocab_size=43, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=28, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
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
    "gpt2-plain":          (11, 2, 13, dict(GPT2)),
    "gpt2-bare":           (12, 2, 13, dict(GPT2, vocab_size=41, n_embd=21, n_head=3, n_positions=24, n_inner=30, layer_norm_epsilon=1e-3,
                                            scale_attn_by_inverse_layer_idx=True)),
    "gpt2-untied":         (13, 2, 11, dict(GPT2, n_head=2, n_inner=24, activation_function="relu", scale_attn_weights=False,
                                            tie_word_embeddings=False)),
    "neo-window":          (14, 2, 21, dict(model_type="gpt_neo", vocab_size=41, hidden_size=16, num_heads=4, num_layers=4,
                                            attention_types=[[["global", "local"], 2]], window_size=5, intermediate_size=None,
                                            max_position_embeddings=32, bos_token_id=0, eos_token_id=0)),
    "llama-grouped":       (15, 2, 21, dict(LLAMA, rope_parameters=dict(rope_type="default", rope_theta=500.0))),
    "llama-tied":          (16, 2, 21, dict(LLAMA, num_key_value_heads=4, head_dim=12, intermediate_size=21, rms_norm_eps=1e-3,
                                            max_position_embeddings=1024, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                                            rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                                                                 high_freq_factor=4.0, original_max_position_embeddings=128))),
    "qwen2-tiny":          (17, 2, 13, dict(LLAMA, model_type="qwen2", num_attention_heads=6, num_key_value_heads=3, hidden_size=24,
                                            tie_word_embeddings=True, use_sliding_window=False, eos_token_id=[2, 1])),
}
ADAPTERS = {    # name: (seed, B, T, folder of the base, LoraConfig)
    "lora-neox":           (21, 2, 13, "neox-linear", dict(target_modules="all-linear")),
    "lora-gpt2":           (22, 2, 13, "gpt2-plain", dict(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "lora-llama":          (26, 2, 13, "llama-grouped", dict(target_modules=["q_proj", "v_proj"], use_rslora=True)),
}
RANK, ALPHA = 3, 7
# Folders whose config.json is rewritten with the keys of transformers 4 (rotary_pct, rotary_emb_base), as in Pythia's own files.
OLD_KEYS = ("neox-sequential-025", "neox-sequential-100")
# Folders whose final norm is scaled down, so that gradients are small enough for some steps to go unclipped.
SMALL_GRADIENT = {"neox-sequential-100": 0.3, "gpt2-untied": 0.35, "llama-grouped": 0.35}
# Folders whose file has the names of GPT-2's own (no "transformer."), the head although it is tied, and the buffers of old versions.
BARE_NAMES = ("gpt2-bare",)


def stored(model, name):
    """The name in the file. For GPT-NeoX, transformers 5 calls the head lm_head in memory and embed_out in files;
    peft leaves the adapter's name out."""
    return (name.replace("lm_head.", "embed_out.") if model.config.model_type == "gpt_neox" else name).replace(".default.", ".")


def parameters(model):
    """What is trained: everything, or the adapter."""
    return {stored(model, n): p for n, p in model.named_parameters() if p.requires_grad}


def random_model(config, scale):
    """A model in which every parameter matters: weights N(0, 0.2), biases N(0, 0.1), norm weights N(1, 0.2)."""
    config = dict(config)
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 2:
                p.normal_(0, 0.2)
            elif name.endswith("bias"):
                p.normal_(0, 0.1)
            else:
                p.normal_(1, 0.2)
        for p in model.get_submodule(FAMILIES[config.model_type][0]).parameters():
            p *= scale
    return model


def random_adapter(base, options):
    """An adapter on the model: A and B are N(0, 0.2)."""
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, **options))
    with torch.no_grad():
        for p in parameters(model).values():
            p.normal_(0, 0.2)
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
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert all((n in decayed) == (p.ndim == 2) for n, p in trained)        # MADE.md says so
    groups = [{"params": [p for n, p in trained if n in decayed], "weight_decay": DECAY},
              {"params": [p for n, p in trained if n not in decayed], "weight_decay": 0.0}]
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
    return losses, norms, rates


def trainer_steps(model, ids, labels):
    """The same steps by the real Trainer: a check on the loop above, not stored."""
    # Trainer takes the loss from the name of the class; GPT2LMHeadModel's says nothing, and the labels of position 0 would count.
    (model.get_base_model() if hasattr(model, "get_base_model") else model).loss_type = "ForCausalLM"
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
    before = AutoConfig.from_pretrained(folder)
    rope = new.pop("rope_parameters")
    old = dict(new, rotary_emb_base=int(rope["rope_theta"]), rotary_pct=rope["partial_rotary_factor"], rope_scaling=None,
               torch_dtype=new.pop("dtype"), transformers_version="4.34.1")
    old.pop("dtype", None)
    with open(path, "w") as f:
        f.write(json.dumps(old, indent=2, sort_keys=True) + "\n")
    after = AutoConfig.from_pretrained(folder)
    assert after.rope_parameters == before.rope_parameters and after.dtype == before.dtype, (before, after)


def bare_names(folder):
    """Rewrites model.safetensors as OpenAI's GPT-2 is on the hub: no prefix, buffers; and with the head."""
    path = os.path.join(folder, "model.safetensors")
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(path).items()}
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    config = AutoConfig.from_pretrained(folder)
    for i in range(config.n_layer):
        tensors[f"h.{i}.attn.bias"] = torch.ones(config.n_positions, config.n_positions).tril()[None, None]
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, path, metadata={"format": "pt"})


def write_folder(root, name):
    """The model or adapter of a case, as it is saved; returns what makes its batches: (B, T, vocabulary)."""
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    if name in CASES:
        seed, B, T, config = CASES[name]
        torch.manual_seed(seed)
        model = random_model(config, SMALL_GRADIENT.get(name, 1.0))
        model.save_pretrained(folder)
        if name in OLD_KEYS:
            old_config(folder)
        if name in BARE_NAMES:
            bare_names(folder)
            same = {n: torch.equal(p, parameters(model)[n]) for n, p in parameters(load(root, name, torch.float32)).items()}
            assert all(same.values()), same
        return B, T, config["vocab_size"]
    seed, B, T, base, options = ADAPTERS[name]
    torch.manual_seed(seed)
    model = random_adapter(load(root, base, torch.float32), options)
    model.peft_config["default"].base_model_name_or_path = "tests/golden/" + base
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config["target_modules"].sort()             # a set: peft writes it in any order
    with open(path, "w") as f:
        f.write(json.dumps(config, indent=2, sort_keys=True))
    return B, T, model.config.vocab_size


def load(root, name, dtype):
    if name in ADAPTERS:
        return peft.PeftModel.from_pretrained(load(root, ADAPTERS[name][3], dtype), os.path.join(root, name), is_trainable=True).eval()
    return AutoModelForCausalLM.from_pretrained(os.path.join(root, name), dtype=dtype, attn_implementation="eager").eval()


@contextlib.contextmanager
def in_double():
    """float32, which the models name for norms and attention scores, means float64; only the rotary angles stay what they are."""
    single, torch.float32 = torch.float32, torch.float64
    try:
        yield
    finally:
        torch.float32 = single


def merged(model):
    """The matrices of the base to which the adapter was added, under their names in the base's files."""
    names = {n.split(".lora_A.")[0].removeprefix("base_model.model.") + ".weight" for n in parameters(model) if ".lora_A." in n}
    model = model.merge_and_unload()
    return {"merged." + stored(model, n): p.detach() for n, p in model.named_parameters() if n in names}


def worst(a, b):
    """Largest difference, in units of the largest value of the reference."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-300))


def make_case(root, name):
    B, T, vocab = write_folder(root, name)
    folder = os.path.join(root, name)
    ids, labels = random_batches(1, B, T, vocab)
    step_ids, step_labels = random_batches(STEPS, B, T, vocab)
    ids, labels = ids[0], labels[0]

    out = one_pass(load(root, name, torch.float32), ids, labels)
    tuned, once64, tuned64 = load(root, name, torch.float32), load(root, name, torch.float64), load(root, name, torch.float64)
    losses, norms, rates = ten_steps(tuned, step_ids, step_labels)
    with in_double():
        ref = one_pass(once64, ids, labels)
        losses64, norms64, _ = ten_steps(tuned64, step_ids, step_labels)
    if worst(out["logits"], ref["logits"]) > 1e-5:
        out["logits64"] = ref["logits"]
    by_trainer = load(root, name, torch.float32)
    t_losses, t_norms, t_rates = trainer_steps(by_trainer, step_ids, step_labels)

    out.update(input_ids=ids, labels=labels, step_ids=step_ids, step_labels=step_labels,
               step_losses=torch.tensor(losses), step_grad_norms=torch.tensor(norms), step_lrs=torch.tensor(rates))
    start = {n: p.detach() for n, p in parameters(load(root, name, torch.float32)).items()}
    after = {n: p.detach() for n, p in parameters(tuned).items()}
    kept = FAMILIES[tuned.config.model_type][1] if name in CASES else tuple(after)
    out.update({"after." + n: after[n] for n in kept})
    if name in ADAPTERS:
        out.update(merged(load(root, name, torch.float32)))
    out = {n: t.to(torch.float32 if t.is_floating_point() else torch.int32).contiguous() for n, t in out.items()}
    save_file(out, os.path.join(folder, "golden.safetensors"))

    assert worst(torch.tensor(t_losses), torch.tensor(losses)) < 1e-5, "this Trainer counts tokens differently"
    after64, t_after = parameters(tuned64), parameters(by_trainer)
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
        "size": sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)),
    }


def perplexity(root):
    """The perplexity metric of the evaluate library (its formula, batch padded as there), and our loss without bos."""
    model = load(root, "neox-parallel-025", torch.float32)
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


def init_rules(config):
    """How transformers initialises a family, measured: {rule: kinds of parameters}."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    layers, kinds, rules = config.num_hidden_layers, {}, {}
    for name, p in model.named_parameters():
        kind, p = re.sub(r"\.\d+\.", ".N.", stored(model, name)), p.detach()
        if p.ndim == 2:
            rule, std = "N(0, initializer_range)", INIT_STD
            if float(p.std()) < 0.7 * std:
                rule, std = "N(0, initializer_range / sqrt(2 n_layer))", std / math.sqrt(2 * layers)
            sigma = std / math.sqrt(2 * p.numel())          # of the measured deviation
            assert abs(float(p.std()) - std) < 5 * sigma and abs(float(p.mean())) < 5 * std / math.sqrt(p.numel()), (name, p.std())
            assert float(p.abs().max()) > 3.5 * std         # not truncated
        else:
            rule = "zeros" if bool((p == 0).all()) else "ones" if bool((p == 1).all()) else "?"
        assert kinds.setdefault(kind, rule) == rule != "?", (name, rule)
    for kind, rule in kinds.items():
        rules.setdefault(rule, []).append(kind)
    return rules


INIT_STD = 0.03
INIT = {    # small models of which the deviations can be measured
    "gpt_neox": dict(vocab_size=2048, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024),
    "gpt2": dict(vocab_size=2048, n_embd=256, n_layer=3, n_head=4),
    "gpt_neo": dict(vocab_size=2048, hidden_size=256, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]),
    "llama": dict(vocab_size=2048, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  intermediate_size=1024, attention_bias=True, mlp_bias=True),
    "qwen2": dict(vocab_size=2048, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=1024),
}


def init_text():
    for family, sizes in INIT.items():
        yield f"\n{family}:\n"
        for rule, kinds in init_rules(AutoConfig.for_model(family, initializer_range=INIT_STD, **sizes)).items():
            yield f"- {rule}: " + ", ".join(f"`{k}`" for k in kinds)


MADE = """# How these files were made

    python tests/make_golden.py

on a CPU, with one thread, in float32, `attn_implementation="eager"`; the table names the versions of each case. Weights are random
(seeded): N(0, 0.2), biases N(0, 0.1), norm weights N(1, 0.2), so that every parameter has a gradient that matters; the final norm of
{small} is {scales} of that, so that some of the steps are not clipped.

Each folder but `lora-*` is a model directory as transformers saves it (`neox-sequential-*`: config.json rewritten with the keys of
transformers 4, `rotary_pct` and `rotary_emb_base`; the other neox have `rope_parameters`) and `golden.safetensors`:

| tensor | shape | meaning |
| --- | --- | --- |
| `input_ids`, `labels` | I32 [B,T] | labels unshifted as in transformers, -100: not trained (the label of position 0 is never predicted, whatever it is) |
| `logits` | F32 [B,T,V] | |
| `loss` | F32 [1] | mean cross entropy over predicted and trained tokens (labels[:, 1:] != -100), summed in double precision |
| `grad.<name>` | F32 | gradient of the **summed** loss, every parameter of model.safetensors (tied: one gradient, under the embedding's name) |
| `step_ids`, `step_labels` | I32 [10,B,T] | ten optimizer steps from the stored weights, one batch each; row 0 of step 3 is not trained at all |
| `step_losses` | F32 [10] | mean loss before each update |
| `step_grad_norms` | F32 [10] | norm of the gradient of the mean loss, before clipping |
| `step_lrs` | F32 [10] | rate used by each update |
| `after.<name>` | F32 | four or five parameters after the ten steps |

The steps: AdamW, betas 0.9 and 0.999, eps 1e-8, weight decay {decay} on the matrices only (embeddings of tokens and positions and the head among them;
not on biases and norms), clipping at {clip}, linear schedule from {lr} with {warmup} warmup steps of {steps} (so the first update has rate 0).
The real `Trainer` was run on the same batches; it counts predicted tokens (`labels[..., 1:] != -100`; older versions do not), as we do, and agrees with
the stored values as the last column but one says. For GPT-2 it does so only when told (`model.loss_type = "ForCausalLM"`, done here): it goes by the
name of the class, and for GPT2LMHeadModel divides by the count of all labels that are not -100, position 0 included.

transformers 5 calls GPT-NeoX's head `lm_head` in memory and still reads and writes `embed_out.weight` in files; the names here are those of the files.

GPT-2's `c_attn`, `c_proj` and `c_fc` weights are (in, out) in its files; so are their gradients and values here. `gpt2-bare` has the file of OpenAI's
models on the hub: names without `transformer.`, the masks `h.N.attn.bias` and `h.N.attn.masked_bias`, and besides a `lm_head.weight` (equal to
`wte.weight`; it is tied all the same). Its golden tensors have the names that transformers gives (and saves): **with** `transformer.`.

`lora-*` are adapter directories as peft saves them (r {rank}, lora_alpha {alpha}, no dropout; A and B both N(0, 0.2); `target_modules` sorted; no model
card), on the folder that `base_model_name_or_path` names. Their `golden.safetensors` has the same tensors: logits and losses of the base with the
adapter, `grad.` and `after.` of every A and B, under their names in adapter_model.safetensors, and nothing else: the base is frozen, the norm that is
clipped is that of the adapter's gradient. `merged.<name>` is a matrix of the base after merge_and_unload(), name and layout (GPT-2: in, out) as in the base's file.

`smallest gradient` is the largest element of the parameter whose gradient is smallest. Key biases (outside the rotated slice, where there is one) have
gradient zero in exact arithmetic (they move all scores of a query alike), so what is stored there is rounding noise: compare gradients relative to
the largest element of their tensor, and do not compare `query_key_value.bias` or `c_attn.bias` after Adam steps.

Difference to the same computation in double precision (relative to the largest value; `after`: absolute, beside the smallest of the largest moves of a kept
parameter) and to Trainer (losses, norms, rates, relative; all parameters, absolute). Rotary angles are float32 in either; the first five rows' norms
and softmax too, being older than the rule.

{table}

`perplexity.json`: the formula of the `evaluate` library's metric "perplexity" (bos in front, exp of the mean per text, then the mean) on ten
sequences of ids under neox-parallel-025, and our loss per predicted token without bos (the one-token text predicts nothing).

Initialisation in transformers, measured by the script (`initializer_range` defaults to 0.02; nothing is truncated, only GPT-2 scales with depth):
{rules}

`configs.json` (what transformers makes of configs with keys left out) is written by `make_configs.py` and names its versions.
"""
HEAD = "| case | bytes | values | logits | loss | gradients | smallest gradient | step losses | norms | after (moved) | Trainer | made with |\n" + "| --- " * 12 + "|"


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
    os.makedirs(root, exist_ok=True)
    made, rows = os.path.join(root, "MADE.md"), {}
    if os.path.exists(made):
        rows = {line.split("|")[1].strip(): line for line in open(made).read().splitlines() if line.startswith("| ")}
    for name in sys.argv[2:] or [*CASES, *ADAPTERS]:
        r = make_case(root, name)
        with_ = f"transformers {transformers.__version__}, torch {torch.__version__}" + f", peft {peft.__version__}" * (name in ADAPTERS)
        rows[name] = (
            f"| {name} | {r['size']} | {r['values']} | {r['logits']:.1e} | {r['loss']:.1e} | {r['gradients']:.1e} | {r['smallest gradient'][0]:.2g} `{r['smallest gradient'][1]}`"
            f" | {r['losses']:.1e} | {r['norms']:.1e} | {r['after']:.1e} ({r['moved']:.1e}) | {', '.join(f'{x:.0e}' for x in r['trainer'])} | {with_} |")
        print(rows[name])
    if not sys.argv[2:]:
        perplexity(root)
    text = MADE.format(decay=DECAY, clip=CLIP, lr=LR, warmup=WARMUP, steps=STEPS, rank=RANK, alpha=ALPHA, small=", ".join(SMALL_GRADIENT),
                       scales=", ".join(map(str, SMALL_GRADIENT.values())), rules="\n".join(init_text()),
                       table="\n".join([HEAD] + [rows[n] for n in [*CASES, *ADAPTERS] if n in rows]))
    with open(made, "w") as f:
        f.write(text)


main()
