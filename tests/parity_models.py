"""Model directories between transformers or peft and neoxtune, both ways, judged by 64 greedy tokens.

    NEOXTUNE_TEST_DATA=/path/to/data python tests/parity_models.py --work /tmp/parity [--neoxtune ./neoxtune]
              [--only read,dtype,lora,trained] [--trained DIR] [--shapes small,70m,...] [--reference-only] [--keep]

read     Models of each family with random weights (SHAPES), saved by transformers or torch as model.safetensors and
         pytorch_model.bin, in f32, f16 and bf16, whole and sharded, and files that are valid but odd (GPT-2 without
         `transformer.` among them); `neoxtune generate` must give the tokens that transformers gives.
dtype    `neoxtune train --dtype f32|f16|bf16`: transformers must load the result (every tensor, that type) and agree.
lora     `neoxtune generate --adapter` and `neoxtune merge` on an adapter that peft wrote, and peft and transformers on
         what `neoxtune train --lora-r` and `neoxtune merge` wrote.
trained  as dtype for a directory given with --trained.

The reference is transformers in float32 from the stored (rounded) weights. Random weights are large, so that the best
two logits are seldom close; where they are closer than 1e-3 the comparison of that prompt ends, and the line says so.
--reference-only makes and checks the files without neoxtune. Exit status 1 when anything differs.
"""
import argparse, collections, copy, json, os, shutil, subprocess, sys
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

PROMPTS = ["First Citizen:\nBefore we proceed any further, hear me", "Once upon a time there was a little",
           "### Question:\nWhat is the difference between 3.14 and 22/7?\n### Answer:"]
NEW, NEAR = 64, 1e-3
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
NEOX = dict(model_type="gpt_neox", vocab_size=50304, rotary_pct=0.25, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0)
GPT2 = dict(model_type="gpt2", vocab_size=50257, n_embd=64, n_layer=3, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
LLAMA = dict(model_type="llama", vocab_size=50304, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=176, bos_token_id=0, eos_token_id=0)
SHAPES = {
    "small": dict(NEOX, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192),
    "70m": dict(NEOX, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048),
    "gpt2": GPT2,
    "gpt2-scaled": dict(GPT2, n_inner=144, scale_attn_by_inverse_layer_idx=True),
    "gpt2-untied": dict(GPT2, scale_attn_weights=False, activation_function="gelu", tie_word_embeddings=False),
    "neo": dict(model_type="gpt_neo", vocab_size=50257, hidden_size=64, num_layers=4, num_heads=4, window_size=7,
                attention_types=[[["global", "local"], 2]], max_position_embeddings=512),
    "llama": LLAMA,
    "llama3": dict(LLAMA, num_key_value_heads=1, head_dim=24, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                   rope_parameters=dict(rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                        original_max_position_embeddings=64)),
    "qwen2": dict(LLAMA, model_type="qwen2", num_key_value_heads=4, tie_word_embeddings=True),
}
SMALL = [name for name in SHAPES if name != "70m"]
LORA = dict(r=4, lora_alpha=6)
failures = 0


def say(ok, case, text):
    global failures
    failures += not ok
    print(f"{'ok    ' if ok else 'FAILED'} {case}: {text}", flush=True)


def stored(model, name):
    """transformers 5 calls GPT-NeoX's head lm_head in memory and embed_out in files."""
    return name.replace("lm_head.", "embed_out.") if model.config.model_type == "gpt_neox" else name


# ---- models ----------------------------------------------------------------------------------------------------

def random_model(shape, **more):
    """Every layer moves the residual stream as much as the embedding does; logits have a deviation of about 10.
    With a tied head it does so more, or a model would mostly repeat its last token."""
    torch.manual_seed(11)
    config = dict(SHAPES[shape], **more)
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(config).eval()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    gain = 3 if head is embedding else 1.5
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p is head or p is embedding:
                p.normal_(0, 10 / config.hidden_size ** 0.5 if p is head else 1)
            elif p.ndim == 2:
                p.normal_(0, gain / p.shape[config.model_type != "gpt2"] ** 0.5 if "wpe" not in name else 1)    # GPT-2: (in, out)
            elif name.endswith("bias"):
                p.normal_(0, 0.2)
            else:
                p.normal_(1, 0.2)
    return model


def random_adapter(base):
    """A small one on every matrix but the embeddings; of Conv1D peft must be told."""
    import peft
    torch.manual_seed(12)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.0,
                                                      fan_in_fan_out=base.config.model_type == "gpt2", **LORA)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.normal_(0, 0.7 / p.shape[1] ** 0.5)
    return model


def in_f32(model):
    """The stored weights as f32. Made anew: .to(float16) would round the rotary frequencies too, which are computed, not stored."""
    fresh = AutoModelForCausalLM.from_config(model.config).eval().float()
    fresh.load_state_dict({n: t.float() for n, t in model.state_dict().items()})
    return fresh


def tokenizer_name(shape):
    return "gpt2" if SHAPES[shape]["model_type"] in ("gpt2", "gpt_neo") else "gpt-neox-20b"


def tokenizer_file(data, shape):
    return os.path.join(data, "tokenizers", tokenizer_name(shape), "tokenizer.json")


def encoder(data, shape):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(tokenizer_file(data, shape))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def add_tokenizer(folder, data, shape):
    shutil.copyfile(tokenizer_file(data, shape), os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "GPT2Tokenizer" if tokenizer_name(shape) == "gpt2" else "GPTNeoXTokenizer", "add_prefix_space": False,
                   "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, f, indent=1)


def save_safetensors(model, folder, shards):
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=total // shards if shards > 1 else "50GB")
    files = [f for f in os.listdir(folder) if f.endswith(".safetensors")]
    assert (len(files) > 1) == (shards > 1), files


def save_bin(state, config, folder, shards=1, **options):
    """pytorch_model.bin as transformers 4 wrote it."""
    config.save_pretrained(folder)
    if shards == 1:
        torch.save(state, os.path.join(folder, "pytorch_model.bin"), **options)
        return
    names = list(state)
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in state.values())}, "weight_map": {}}
    for s in range(shards):
        file = f"pytorch_model-{s + 1:05d}-of-{shards:05d}.bin"
        part = collections.OrderedDict((n, state[n]) for n in names[s::shards])
        torch.save(part, os.path.join(folder, file))
        index["weight_map"].update(dict.fromkeys(part, file))
    with open(os.path.join(folder, "pytorch_model.bin.index.json"), "w") as f:
        json.dump(index, f, indent=2, sort_keys=True)


def state_of(model):
    """The state dict with the names of the files, and the _metadata attribute that torch.save keeps."""
    source = model.state_dict()
    state = collections.OrderedDict((stored(model, n), t) for n, t in source.items())
    state._metadata = source._metadata
    return state


def matrices(model, state):
    ends = (model.get_input_embeddings().weight.data_ptr(), model.get_output_embeddings().weight.data_ptr())
    return [n for n, t in state.items() if t.ndim == 2 and t.data_ptr() not in ends]


def old_buffers(model):
    """What files of old versions hold besides weights: (name, tensor)."""
    c, family = model.config, model.config.model_type
    prefix = {"gpt_neox": "gpt_neox.layers.{}.attention.", "gpt2": "transformer.h.{}.attn.", "gpt_neo": "transformer.h.{}.attn.attention.",
              "llama": "model.layers.{}.self_attn.", "qwen2": "model.layers.{}.self_attn."}[family]
    size = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads // (4 if family == "gpt_neox" else 1)
    for i in range(c.num_hidden_layers):
        at, n = prefix.format(i), min(c.max_position_embeddings, 512)
        if family not in ("llama", "qwen2"):
            yield at + "bias", torch.ones(n, n, dtype=torch.bool).tril().view(1, 1, n, n)
            yield at + "masked_bias", torch.tensor(-1e9)
        if family not in ("gpt2", "gpt_neo"):
            yield at + "rotary_emb.inv_freq", 1.0 / (10000 ** (torch.arange(0, size, 2).float() / size))


def odd_state(model):
    """The same weights as torch may hold them: transposed, views into shared storages, Parameters; and the buffers of old files."""
    state = state_of(model)
    embedding = stored(model, next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight))
    square = matrices(model, state)
    small = [n for n, t in state.items() if t.ndim == 1]
    flat = torch.cat([torch.full((7,), 99.0, dtype=state[small[0]].dtype)] + [state[n] for n in small])
    at = 7
    for n in small:                                         # all vectors are views of one storage, at different offsets
        state[n] = flat[at:at + state[n].numel()]
        at += state[n].numel()
    embed = state[embedding]
    state[embedding] = torch.cat([embed[:5] + 1, embed, embed[:3]])[5:-3]       # rows of a larger matrix
    for i, n in enumerate(square):
        if i % 4 < 2:
            state[n] = state[n].t().contiguous().t()        # strides (1, rows)
            assert not state[n].is_contiguous()
        else:
            state[n] = torch.nn.Parameter(state[n].clone(), requires_grad=i % 4 == 2)
    state.update(old_buffers(model))
    return state


def strided_state(model):
    """One matrix is a column slice of a wider one: neither contiguous nor transposed."""
    state = state_of(model)
    name = matrices(model, state)[-2]
    state[name] = torch.cat([state[name], state[name] * 2], dim=1)[:, :state[name].shape[1]]
    assert state[name].stride()[0] == 2 * state[name].shape[1]
    return state


def save_bare(model, folder):
    """As OpenAI's GPT-2 is on the hub: no prefix, buffers; here with the head too, which is tied all the same."""
    save_safetensors(model, folder, 1)
    path = os.path.join(folder, "model.safetensors")
    tensors = dict(load_file(path), **dict(old_buffers(model)))
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, path, metadata={"format": "pt"})


# ---- greedy tokens ---------------------------------------------------------------------------------------------

def greedy(model, prompt_ids):
    """(64 tokens, gap between the best two logits at each)."""
    out = model.generate(torch.tensor([prompt_ids]), attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long), max_new_tokens=NEW,
                         do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_logits=True)
    gaps = [float(top[0] - top[1]) for top in (l[0].float().topk(2).values for l in out.logits)]
    return out.sequences[0, len(prompt_ids):].tolist(), gaps


def references(model, encode):
    return [greedy(model, encode(p)) for p in PROMPTS]


def neoxtune_greedy(a, folder, prompt, adapter):
    r = subprocess.run([a.neoxtune, "generate", "--model", folder, "--prompt", prompt, "--max-new-tokens", str(NEW), "--json"]
                       + (["--adapter", adapter] if adapter else []), capture_output=True, text=True)
    return (json.loads(r.stdout.splitlines()[0])["ids"] if r.returncode == 0 else None), r


def compare(a, case, folder, expected, may_refuse=False, adapter=None):
    """neoxtune's tokens against the expected ones, prompt by prompt, up to the first near-tie and to the end of text."""
    compared, end = 0, json.load(open(os.path.join(folder, "config.json")))["eos_token_id"]
    for prompt, (ids, gaps) in zip(PROMPTS, expected):
        near = next((i for i, g in enumerate(gaps) if g < NEAR), len(ids))
        ours, run = neoxtune_greedy(a, folder, prompt, adapter)
        if ours is None:
            refused = may_refuse and run.returncode == 1 and run.stderr.strip() != "" and "model_type" not in run.stderr
            return say(refused, case, f"exit {run.returncode}: {run.stderr.strip()[-300:]}")
        stop = lambda x: x[:x.index(end)] if end in x else x
        want, got = stop(ids)[:near], stop(ours)
        if near == len(ids) and len(got) != len(want):
            say(False, case, f"{len(got)} tokens, expected {len(want)}")
        elif got[:len(want)] != want:
            i = next((i for i in range(len(want)) if i >= len(got) or got[i] != want[i]))
            say(False, case, f"{prompt[:12]!r}: token {i} is {got[i:i + 1]}, expected {want[i]} (gap {gaps[i]:.4f})")
        else:
            compared += len(want)
            if near < len(ids):
                print(f"       {case}: {prompt[:12]!r} compared up to a near-tie (gap {gaps[near]:.1e}) at token {near}")
    if compared < NEW:
        say(False, case, f"only {compared} tokens could be compared")
    else:
        say(True, case, f"{compared} tokens equal")


def same_weights(folder, model):
    """transformers reads the directory back as the weights meant: a check on this script."""
    back, info = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    for (n, p), (m, q) in zip(model.named_parameters(), back.named_parameters()):
        assert n == m and torch.equal(p, q), n


# ---- the three parts -------------------------------------------------------------------------------------------

def part_read(a, data):
    for shape in a.shapes:
        encode = encoder(data, shape)
        for style, more in [("parallel", {})] + [("sequential", {"use_parallel_residual": False})] if shape == "small" else [("", {})]:
            model = random_model(shape, **more)
            tied = model.config.tie_word_embeddings
            for dtype, torch_dtype in DTYPES.items():
                cast = copy.deepcopy(model).to(torch_dtype)
                cast.config.dtype = torch_dtype
                expected = references(in_f32(cast), encode)
                prefix = " ".join(filter(None, (shape, style, dtype)))
                print(f"       {prefix}: smallest gaps {[f'{min(g):.3f}' for _, g in expected]}, different tokens {[len(set(i)) for i, _ in expected]}")
                cases = {}
                for shards in (1, 3):
                    way = "sharded" if shards > 1 else "whole"
                    cases[f"safetensors {way}"] = lambda f, n=shards: save_safetensors(cast, f, n)
                    cases[f"bin {way}"] = lambda f, n=shards: save_bin(state_of(cast), cast.config, f, n)
                if shape != "70m":
                    cases["bin odd"] = lambda f: save_bin(odd_state(cast), cast.config, f)
                    cases["bin strided (may be refused)"] = lambda f: save_bin(strided_state(cast), cast.config, f)
                if cast.config.model_type == "gpt2" and tied:
                    cases["safetensors bare"] = lambda f: save_bare(cast, f)
                run_cases(a, data, shape, prefix, cast, cases, expected)
            if shape == "small" and style == "parallel":
                run_cases(a, data, shape, f"{shape} {style} f32", model, {"bin legacy (may be refused)":
                    lambda f: save_bin(state_of(model), model.config, f, _use_new_zipfile_serialization=False)}, references(model, encode))
    if "small" in a.shapes:
        tied = random_model("small", tie_word_embeddings=True)
        state = state_of(tied)
        assert state["embed_out.weight"].data_ptr() == state["gpt_neox.embed_in.weight"].data_ptr()
        run_cases(a, data, "small", "small tied f32", tied, {"safetensors": lambda f: save_safetensors(tied, f, 1),
                  "bin shared storage": lambda f: save_bin(state, tied.config, f)}, references(tied, encoder(data, "small")))


def new_folder(a, name):
    folder = os.path.join(a.work, name.replace(" ", "-"))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def run_cases(a, data, shape, prefix, model, cases, expected):
    for case, save in cases.items():
        folder = new_folder(a, f"{prefix} {case.split(' (')[0]}")
        save(folder)
        add_tokenizer(folder, data, shape)
        same_weights(folder, model)
        if not a.reference_only:
            compare(a, f"{prefix} {case}", folder, expected, may_refuse="may be refused" in case)
        if not a.keep:
            shutil.rmtree(folder)


def file_types(folder):
    """The types of the tensors in the .safetensors files."""
    return {t.dtype for f in os.listdir(folder) if f.endswith(".safetensors") for t in load_file(os.path.join(folder, f)).values()}


def auto_tokenizer(folder):
    """AutoTokenizer's ids. None for Qwen2: it gives every such model Qwen's own splitting, whatever tokenizer.json says."""
    if json.load(open(os.path.join(folder, "config.json")))["model_type"] == "qwen2":
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def check_trained(a, case, folder, encode, dtype=None):
    """transformers loads what neoxtune wrote, and both continue the prompts alike."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    problems = {k: sorted(v) for k, v in info.items() if v}
    say(not problems, case, f"transformers loads it as {model.dtype}" + (f"; {problems}" if problems else ""))
    if dtype is not None:
        say(model.dtype == dtype and file_types(folder) == {dtype}, case, f"the files hold {file_types(folder)}, config.json says {model.dtype}")
    mine = auto_tokenizer(folder) or encode
    if encode is not None:
        say(all(mine(p) == encode(p) for p in PROMPTS), case, "AutoTokenizer gives the same ids")
    compare(a, case, folder, references(model.float().eval(), mine))


def run(a, case, *command):
    """Whether neoxtune does it."""
    r = subprocess.run([a.neoxtune, *command], capture_output=True, text=True)
    if r.returncode:
        say(False, case, r.stderr.strip()[-300:])
    return r.returncode == 0


def train_options(base, data, out):
    return ["train", "--model", base, "--data", os.path.join(data, "text/tinyshakespeare.txt"), "--output-dir", out, "--overwrite-output-dir",
            "--block-size", "64", "--max-steps", "3", "--learning-rate", "1e-3"]


def base_folder(a, data, part, shape):
    base = new_folder(a, f"{part}-base-{shape}")
    random_model(shape).save_pretrained(base)
    add_tokenizer(base, data, shape)
    return base


def part_dtype(a, data):
    for shape in (s for s in a.shapes if s in SMALL):
        encode, base = encoder(data, shape), base_folder(a, data, "dtype", shape)
        if a.reference_only:
            mine = auto_tokenizer(base) or encode
            assert all(mine(p) == encode(p) for p in PROMPTS)
            continue
        for dtype, torch_dtype in DTYPES.items():
            case, out = f"{shape} train --dtype {dtype}", os.path.join(a.work, f"dtype-{shape}-{dtype}")
            if run(a, case, *train_options(base, data, out), "--dtype", dtype):
                check_trained(a, case, out, encode, torch_dtype)
            if not a.keep:
                shutil.rmtree(out, ignore_errors=True)


def part_lora(a, data):
    import peft
    for shape in (s for s in a.shapes if s in SMALL):
        encode, base = encoder(data, shape), base_folder(a, data, "lora", shape)
        load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        plain = references(load(base), encode)

        theirs = new_folder(a, f"lora-peft-{shape}")
        adapted = random_adapter(load(base))
        adapted.save_pretrained(theirs)
        expected = references(adapted, encode)
        assert [i for i, _ in expected] != [i for i, _ in plain], "the adapter should matter"
        again = references(peft.PeftModel.from_pretrained(load(base), theirs).eval().merge_and_unload(), encode)
        assert [i for i, _ in expected] == [i for i, _ in again], "peft's own merge differs"
        if a.reference_only:
            continue
        merged = os.path.join(a.work, f"lora-merged-{shape}")
        compare(a, f"{shape} generate --adapter, of peft", base, expected, adapter=theirs)
        if run(a, f"{shape} merge, of peft", "merge", "--model", base, "--adapter", theirs, "--output-dir", merged):
            check_merged(a, f"{shape} merge, of peft", merged, expected, encode)

        ours = os.path.join(a.work, f"lora-ours-{shape}")
        case = f"{shape} train --lora-r"
        if run(a, case, *train_options(base, data, ours), "--lora-r", str(LORA["r"]), "--lora-alpha", str(LORA["lora_alpha"]), "--lora-dropout", "0",
               "--lora-target-modules", "all-linear"):
            back = peft.PeftModel.from_pretrained(load(base), ours).eval()
            keys = set(load_file(os.path.join(ours, "adapter_model.safetensors")))
            say(keys == set(load_file(os.path.join(theirs, "adapter_model.safetensors"))), case, f"{len(keys)} tensors, named as peft's")
            expected = references(back, encode)
            compare(a, case + ", generate --adapter", base, expected, adapter=ours)
            shutil.rmtree(merged, ignore_errors=True)
            if run(a, case + ", merge", "merge", "--model", base, "--adapter", ours, "--output-dir", merged):
                check_merged(a, case + ", merge", merged, expected, encode)
        if not a.keep:
            for folder in (base, theirs, ours, merged):
                shutil.rmtree(folder, ignore_errors=True)


def check_merged(a, case, folder, expected, encode):
    """transformers and neoxtune give the adapter's tokens from the merged directory, transformers up to the first near-tie."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {k: sorted(v) for k, v in info.items() if v}
    same = all(i[:n] == j[:n] for (i, gaps), (j, _) in zip(expected, references(model.eval(), encode))
               for n in [next((k for k, g in enumerate(gaps) if g < NEAR), len(i))])
    say(same and not problems, case, "transformers gives the adapter's tokens" + (f"; {problems}" if problems else ""))
    compare(a, case, folder, expected)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True, help="folder for models (at most 0.5 GB at a time without --keep)")
    p.add_argument("--neoxtune", default="./neoxtune")
    p.add_argument("--only", default="", help="parts: read,dtype,lora,trained")
    p.add_argument("--trained", help="a model directory that neoxtune wrote")
    p.add_argument("--shapes", default=",".join(SHAPES), type=lambda x: x.split(","), help="(%(default)s)")
    p.add_argument("--reference-only", action="store_true")
    p.add_argument("--keep", action="store_true", help="keep the model directories")
    a = p.parse_args()
    data = os.environ.get("NEOXTUNE_TEST_DATA")
    parts = a.only.split(",") if a.only else ["trained"] if a.trained else ["read", "dtype", "lora"]
    if a.trained and "trained" in parts:
        check_trained(a, "trained", a.trained, None)
    todo = {"read": part_read, "dtype": part_dtype, "lora": part_lora}
    if todo.keys() & set(parts):
        if not data:
            print("skipped: NEOXTUNE_TEST_DATA is not set")
            return failures > 0
        os.makedirs(a.work, exist_ok=True)
        for part in parts:
            if part in todo:
                todo[part](a, data)
    print(f"{failures} failed")
    return failures > 0


sys.exit(main())
