"""Trains models with transformers and with neoxtune, side by side, and compares every step.

    NEOXTUNE_TEST_DATA=/path/to/data python tests/parity_train.py --work /tmp/parity --cache /tmp/parity/reference.json \\
                         [--cases 70m | small | gpt2,llama-lora,... ] [--neoxtune ./neoxtune] [--reference-only] [--threads 1]

The data folder holds tokenizers/*/tokenizer.json and text/tinyshakespeare.txt. The weights are random but seeded and
initialised as transformers does. Cases: 70m has Pythia-70m's shape (6 layers, 512 wide, 8 heads, vocabulary 50304: 70 million
parameters); gpt2-124m, tinystories-33m and tinyllama-1.1b-lora have those shapes; the others, together "small", are small models of
each family and its variants. The transformers half is a loop written by hand, as one finds it in tutorials, for 70m with
one thread about five minutes; it runs once and leaves its numbers in the cache file, which names the settings and the checksum
of the weights. A LoRA case begins with the adapter that neoxtune makes: one run of it at a rate too small to move anything,
whose A is loaded into peft; so its transformers half needs neoxtune and runs again when A is another.
Bars, relative, over all steps: loss 1e-4, grad_norm 1e-3, learning_rate 1e-6. Exit status 1 when over a bar.
"""
import argparse, hashlib, json, os, platform, shutil, subprocess, sys, time

CLIP, SEED = 1.0, 70
BARS = {"loss": 1e-4, "grad_norm": 1e-3, "learning_rate": 1e-6}


NEOX = dict(model_type="gpt_neox", vocab_size=50304, rotary_pct=0.25, max_position_embeddings=2048, use_parallel_residual=True,
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
GPT2 = dict(model_type="gpt2", vocab_size=50257, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
NEO = dict(model_type="gpt_neo", vocab_size=50257)
LLAMA = dict(model_type="llama", vocab_size=50304, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=176, bos_token_id=0, eos_token_id=0)
TINY_NEOX = dict(NEOX, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192)
TINY_GPT2 = dict(GPT2, n_embd=64, n_layer=3, n_head=4)
TINY_NEO = dict(NEO, hidden_size=64, num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], window_size=7,
                max_position_embeddings=128)
LLAMA3 = dict(rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
SMALL = dict(steps=20, batch=4, block=64, lr=1e-3)
CASES = {   # lora: target modules, rank, alpha, rslora; dtype: of the file (the computation is float32)
    "70m": dict(model=dict(NEOX, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048),
                steps=50, batch=8, block=128, lr=5e-5),
    "neox": dict(SMALL, model=TINY_NEOX),
    "gpt2": dict(SMALL, model=TINY_GPT2),
    "gpt2-f16": dict(SMALL, model=TINY_GPT2, dtype="float16"),
    "gpt2-scaled": dict(SMALL, model=dict(TINY_GPT2, n_inner=144, scale_attn_by_inverse_layer_idx=True)),
    "gpt2-untied": dict(SMALL, model=dict(TINY_GPT2, scale_attn_weights=False, activation_function="gelu", tie_word_embeddings=False)),
    "neo": dict(SMALL, model=TINY_NEO),
    "llama": dict(SMALL, model=LLAMA),
    "llama-f16": dict(SMALL, model=LLAMA, dtype="float16"),
    "llama3": dict(SMALL, model=dict(LLAMA, num_key_value_heads=1, head_dim=24, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                                     rope_parameters=LLAMA3)),
    "qwen2": dict(SMALL, model=dict(LLAMA, model_type="qwen2", num_key_value_heads=4, tie_word_embeddings=True)),
    "neox-lora": dict(SMALL, model=TINY_NEOX, lora=("all-linear", 4, 6, False)),
    "gpt2-lora": dict(SMALL, model=TINY_GPT2, lora=("c_attn,c_proj,c_fc", 4, 6, False)),
    "neo-lora": dict(SMALL, model=TINY_NEO, lora=("all-linear", 4, 6, False)),
    "llama-lora": dict(SMALL, model=LLAMA, lora=("q_proj,v_proj", 4, 6, True)),
    "gpt2-124m": dict(model=GPT2, steps=20, batch=4, block=128, lr=5e-5),
    "tinystories-33m": dict(model=dict(NEO, hidden_size=768, num_layers=4, attention_types=[[["global", "local"], 2]]),
                            steps=20, batch=2, block=320, lr=5e-5),                                     # the window is 256
    "tinyllama-1.1b-lora": dict(model=dict(model_type="llama", hidden_size=2048, num_hidden_layers=22, num_attention_heads=32,
                                           num_key_value_heads=4, intermediate_size=5632, rms_norm_eps=1e-5),
                                steps=20, batch=1, block=64, lr=2e-4, dtype="float16", lora=("all-linear", 8, 16, False)),
}


def tokenizer_of(data, model):
    """Llama's own vocabulary where the model has that size."""
    name = "llama-spm" if model.get("vocab_size", 32000) == 32000 else "gpt2" if model["vocab_size"] == 50257 else "gpt-neox-20b"
    return os.path.join(data, "tokenizers", name, "tokenizer.json")


def checksum(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 24):
            h.update(block)
    return h.hexdigest()


def make_model(folder, case, tokenizer):
    """A model directory; made once."""
    if os.path.exists(os.path.join(folder, "model.safetensors")):
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    torch.manual_seed(SEED)
    config = dict(case["model"])
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, case.get("dtype", "float32")))
    model.save_pretrained(folder, max_shard_size="50GB")
    shutil.copyfile(tokenizer, os.path.join(folder, "tokenizer.json"))


def blocks_of(text_file, tokenizer, block):
    """The file as one text, cut into blocks; the remainder is dropped (group_texts)."""
    from tokenizers import Tokenizer
    text = open(text_file, encoding="utf-8", newline="").read()
    ids = Tokenizer.from_file(tokenizer).encode(text, add_special_tokens=False).ids
    return [ids[i:i + block] for i in range(0, len(ids) - block + 1, block)]


def adapted(model, adapter):
    """peft's model with the A that neoxtune made, and B zero."""
    import peft
    model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            p.data.zero_()
    return model


def reference(case, folder, adapter, blocks, threads):
    """The loop: one row {step, loss, grad_norm, learning_rate} per step."""
    import torch
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()     # dropout is 0
    if adapter:
        model = adapted(model, adapter).train()
    steps, batch, trained = case["steps"], case["batch"], [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    rows = []
    for step in range(steps):
        start = time.time()
        ids = torch.tensor(blocks[step * batch:(step + 1) * batch])
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())       # mean over B*(T-1) tokens
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        rows.append({"step": step + 1, "loss": loss.item(), "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0]})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"transformers {rows[-1]}  {ids.numel() / (time.time() - start):.0f} tokens/s", file=sys.stderr, flush=True)
    return rows


def command_of(a, case, model, text, out, rate):
    lora = case.get("lora")
    return [a.neoxtune, "train", "--model", model, "--data", text, "--output-dir", out, "--overwrite-output-dir", "--block-size", str(case["block"]),
            "--per-device-train-batch-size", str(case["batch"]), "--max-steps", str(case["steps"]), "--learning-rate", str(rate), "--no-shuffle",
            "--logging-steps", "1", "--save-strategy", "no"] + (
            ["--lora-target-modules", lora[0], "--lora-r", str(lora[1]), "--lora-alpha", str(lora[2]), "--lora-dropout", "0",
             "--dtype", "f32"] + ["--use-rslora"] * lora[3] if lora else [])


def parity(a, name, data):
    """0 when the two agree."""
    case, text = CASES[name], os.path.join(data, "text/tinyshakespeare.txt")
    tokenizer = tokenizer_of(data, case["model"])
    model, out = os.path.join(a.work, name), os.path.join(a.work, name + "-out")
    make_model(model, case, tokenizer)

    settings = {**case, "clip": CLIP, "weights": checksum(os.path.join(model, "model.safetensors"))}
    adapter = None
    if "lora" in case:
        adapter = os.path.join(a.work, name + "-start")
        subprocess.run(command_of(a, dict(case, steps=1), model, text, adapter, 1e-30), check=True)
        settings["adapter"] = checksum(os.path.join(adapter, "adapter_model.safetensors"))
    caches = json.load(open(a.cache)) if os.path.exists(a.cache) else {}
    settings = json.loads(json.dumps(settings))
    if caches.get(name, {}).get("settings") != settings:
        import torch, transformers
        caches[name] = {"settings": settings, "python": platform.python_version(), "torch": torch.__version__,
                        "transformers": transformers.__version__,
                        "rows": reference(case, model, adapter, blocks_of(text, tokenizer, case["block"]), a.threads)}
        json.dump(caches, open(a.cache, "w"), indent=1)
    if a.reference_only:
        return 0

    cache, command = caches[name], command_of(a, case, model, text, out, case["lr"])
    print(" ".join(command))
    start = time.time()
    subprocess.run(command, check=True)
    seconds = time.time() - start
    ours = {r["step"]: r for r in map(json.loads, open(os.path.join(out, "metrics.jsonl"))) if "loss" in r}

    worst = dict.fromkeys(BARS, 0.0)
    print(f"{'step':>4} {'loss':>12} {'neoxtune':>12} {'diff':>8} {'grad_norm':>12} {'neoxtune':>12} {'diff':>8} {'rate':>10} {'neoxtune':>10}")
    for r in cache["rows"]:
        o = ours.get(r["step"])
        if o is None:
            print(f"step {r['step']} is missing from metrics.jsonl")
            return 1
        diff = {k: abs(o[k] - r[k]) / max(abs(r[k]), 1e-30) for k in BARS}
        worst = {k: max(worst[k], diff[k]) if diff[k] == diff[k] else float("inf") for k in BARS}
        print(f"{r['step']:4d} {r['loss']:12.7f} {o['loss']:12.7f} {diff['loss']:8.1e} {r['grad_norm']:12.7f} {o['grad_norm']:12.7f} {diff['grad_norm']:8.1e}"
              f" {r['learning_rate']:10.3e} {o['learning_rate']:10.3e}")
    print(f"{name}: transformers {cache['transformers']}, torch {cache['torch']}; neoxtune took {seconds:.0f} s")
    for k, bar in BARS.items():
        print(f"{name}: largest relative difference of {k}: {worst[k]:.2e} (bar {bar:.0e}) {'ok' if worst[k] <= bar else 'OVER'}")
    return int(any(worst[k] > bar for k, bar in BARS.items()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True, help="folder for the models and the runs")
    p.add_argument("--cache", required=True, help="JSON file that keeps the transformers halves")
    p.add_argument("--cases", default="70m", help=", ".join(CASES) + "; small: all the small ones; default: 70m")
    p.add_argument("--neoxtune", default="./neoxtune")
    p.add_argument("--reference-only", action="store_true")
    p.add_argument("--threads", type=int, default=1, help="of torch")
    a = p.parse_args()
    data = os.environ.get("NEOXTUNE_TEST_DATA")
    if not data:
        print("skipped: NEOXTUNE_TEST_DATA is not set")
        return 0
    small = [name for name, case in CASES.items() if SMALL.items() <= case.items()]
    names = [n for name in a.cases.split(",") for n in (small if name == "small" else [name])]
    failed = []
    for name in names:
        try:
            failed += [name] * parity(a, name, data)
        except subprocess.CalledProcessError as e:
            print(f"{name}: neoxtune ended with status {e.returncode}")
            failed.append(name)
    if len(names) > 1:
        print(f"{len(failed)} of {len(names)} cases failed" + (": " + ", ".join(failed) if failed else ""))
    return int(bool(failed))


sys.exit(main())
