"""Trains a model of Pythia-70m's shape with transformers and with neoxtune, side by side, and compares every step.

    NEOXTUNE_TEST_DATA=/path/to/data python tests/parity_train.py --work /tmp/parity --cache /tmp/parity/reference.json \\
                                            [--neoxtune ./neoxtune] [--reference-only] [--threads 1]

The data folder holds tokenizers/gpt-neox-20b/tokenizer.json and text/tinyshakespeare.txt. The weights are random but seeded
(6 layers, 512 wide, 8 heads, vocabulary 50304: 70 million parameters, initialised as transformers does). The
transformers half is a loop written by hand, as one finds it in tutorials, with one thread about five minutes; it runs
once and leaves its numbers in the cache file, which names the settings and the checksum of the weights.
Bars, relative, over all steps: loss 1e-4, grad_norm 1e-3, learning_rate 1e-6. Exit status 1 when over a bar.
"""
import argparse, hashlib, json, os, platform, shutil, subprocess, sys, time

STEPS, BATCH, BLOCK, LR, CLIP, SEED = 50, 8, 128, 5e-5, 1.0, 70
BARS = {"loss": 1e-4, "grad_norm": 1e-3, "learning_rate": 1e-6}


def checksum(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 24):
            h.update(block)
    return h.hexdigest()


def make_model(folder, tokenizer):
    """A model directory of Pythia-70m's shape; made once."""
    if os.path.exists(os.path.join(folder, "model.safetensors")):
        return
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    torch.manual_seed(SEED)
    config = GPTNeoXConfig(vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048,
                           rotary_pct=0.25, max_position_embeddings=2048, use_parallel_residual=True, tie_word_embeddings=False,
                           bos_token_id=0, eos_token_id=0)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    shutil.copyfile(tokenizer, os.path.join(folder, "tokenizer.json"))


def blocks_of(text_file, tokenizer):
    """The file as one text, cut into blocks; the remainder is dropped (group_texts)."""
    from tokenizers import Tokenizer
    text = open(text_file, encoding="utf-8", newline="").read()
    ids = Tokenizer.from_file(tokenizer).encode(text, add_special_tokens=False).ids
    return [ids[i:i + BLOCK] for i in range(0, len(ids) - BLOCK + 1, BLOCK)]


def reference(folder, blocks, threads):
    """The loop: one row {step, loss, grad_norm, learning_rate} per step."""
    import torch
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").train()     # dropout is 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, STEPS)
    rows = []
    for step in range(STEPS):
        start = time.time()
        ids = torch.tensor(blocks[step * BATCH:(step + 1) * BATCH])
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())       # mean over B*(T-1) tokens
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        rows.append({"step": step + 1, "loss": loss.item(), "grad_norm": norm.item(), "learning_rate": schedule.get_last_lr()[0]})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"transformers {rows[-1]}  {BATCH * BLOCK / (time.time() - start):.0f} tokens/s", file=sys.stderr, flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True, help="folder for the model and the run")
    p.add_argument("--cache", required=True, help="JSON file that keeps the transformers half")
    p.add_argument("--neoxtune", default="./neoxtune")
    p.add_argument("--reference-only", action="store_true")
    p.add_argument("--threads", type=int, default=1, help="of torch")
    a = p.parse_args()
    data = os.environ.get("NEOXTUNE_TEST_DATA")
    if not data:
        print("skipped: NEOXTUNE_TEST_DATA is not set")
        return 0
    tokenizer, text = os.path.join(data, "tokenizers/gpt-neox-20b/tokenizer.json"), os.path.join(data, "text/tinyshakespeare.txt")
    model, out = os.path.join(a.work, "pythia-70m-shape"), os.path.join(a.work, "out")
    make_model(model, tokenizer)

    settings = {"steps": STEPS, "batch": BATCH, "block": BLOCK, "lr": LR, "clip": CLIP, "weights": checksum(os.path.join(model, "model.safetensors"))}
    cache = json.load(open(a.cache)) if os.path.exists(a.cache) else {}
    if cache.get("settings") != settings:
        import torch, transformers
        cache = {"settings": settings, "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
                 "rows": reference(model, blocks_of(text, tokenizer), a.threads)}
        json.dump(cache, open(a.cache, "w"), indent=1)
    if a.reference_only:
        return 0

    command = [a.neoxtune, "train", "--model", model, "--data", text, "--output-dir", out, "--overwrite-output-dir", "--block-size", str(BLOCK),
               "--per-device-train-batch-size", str(BATCH), "--max-steps", str(STEPS), "--learning-rate", str(LR), "--no-shuffle",
               "--logging-steps", "1", "--save-strategy", "no"]
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
    print(f"transformers {cache['transformers']}, torch {cache['torch']}; neoxtune took {seconds:.0f} s")
    for k, bar in BARS.items():
        print(f"largest relative difference of {k}: {worst[k]:.2e} (bar {bar:.0e}) {'ok' if worst[k] <= bar else 'OVER'}")
    return int(any(worst[k] > bar for k, bar in BARS.items()))


sys.exit(main())
