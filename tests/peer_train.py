"""Training steps of the same model in PyTorch (the transformers class) and in neoxtune, alternating, on the same cores.

    python tests/peer_train.py [--neoxtune ./neoxtune] [--model pythia-70m] [--shapes 8x128,4x512,1x2048] [--bf16] [--threads 2] [--rounds 3] [--steps 4]

Each round runs both programs as processes of their own, one after the other; the line for a shape gives the medians over
rounds of each one's best step, their ratio, and the largest anonymous memory of either process. PyTorch runs at its best:
sdpa attention, fused AdamW, one thread pool, memory that malloc never gives back, huge pages, bf16 by autocast. A step is
forward, loss, backward, clipping of the norm, AdamW, as in the Trainer. Needs torch and transformers; versions are printed.

    python tests/peer_train.py --job FILE.jsonl --template T --tokenizer DIR [--steps 12] ...

trains on completions instead: the column that T names last, after the others. PyTorch gets the same examples in the same
order, eight to a batch, padded to the longest, with labels -100 where nothing is learnt. Tokens are those of the examples.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, threading, time

MODELS = {
    "pythia-70m": dict(vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048),
    "pythia-160m": dict(vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
}
MALLOC = dict(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000", MALLOC_TOP_PAD_="268435456",
              GLIBC_TUNABLES="glibc.malloc.hugetlb=1")


def job_batches(a, transformers, torch):
    """Batches of eight examples: ids and labels, padded on the right; and their tokens without the padding."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(a.tokenizer, "tokenizer.json"))
    prompt, last = a.template.replace("\\n", "\n").rsplit("{", 1)
    rows = [json.loads(line) for line in open(a.job)][:8 * a.steps]
    for k in range(0, len(rows), 8):
        ids = [tokenizer.encode(prompt.format(**r) + r[last[:-1]])[:511] + [0] for r in rows[k:k + 8]]
        first = [len(tokenizer.encode(prompt.format(**r))) for r in rows[k:k + 8]]
        longest = max(map(len, ids))
        x, y = torch.zeros(8, longest, dtype=torch.long), torch.full((8, longest), -100)
        mask = torch.zeros(8, longest, dtype=torch.long)
        for i, (row, start) in enumerate(zip(ids, first)):
            x[i, :len(row)] = torch.tensor(row)
            y[i, start:len(row)] = x[i, start:len(row)]
            mask[i, :len(row)] = 1
        yield dict(input_ids=x, labels=y, attention_mask=mask), sum(map(len, ids))


def torch_steps(a):
    """The other program: prints {"ms": best step, or the mean of a job's, ...}."""
    import torch, transformers
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**MODELS[a.model], rotary_pct=0.25, max_position_embeddings=2048, attn_implementation="sdpa")
    model = transformers.GPTNeoXForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    if a.job:
        batches = [x for x, _ in job_batches(a, transformers, torch)]
    else:
        batch, length = map(int, a.torch.split("x"))
        random = [torch.randint(0, config.vocab_size, (batch, length)) for _ in range(a.steps + 2)]
        batches = [dict(input_ids=ids, labels=ids) for ids in random]
    times = []
    for inputs in batches:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    ms = 1e3 * (statistics.mean(times[2:]) if a.job else min(times[2:]))
    print(json.dumps({"ms": ms, "torch": torch.__version__, "transformers": transformers.__version__}))


def run(command, env):
    """Its last line as JSON, and the most anonymous memory it held, in MB."""
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **env}, text=True)
    most = 0

    def watch():
        nonlocal most
        while p.poll() is None:
            try:
                for line in open(f"/proc/{p.pid}/status"):
                    if line.startswith("RssAnon"):
                        most = max(most, int(line.split()[1]) // 1024)
            except OSError:
                pass
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    out = p.communicate()[0]
    thread.join()
    if p.returncode:
        sys.exit(f"{command[0]} failed")
    return json.loads(out.strip().splitlines()[-1]) if "{" in out else {}, most


def peer_job(a, work, config, flags):
    """The completion job in both programs; steps 3 and later count."""
    import torch, transformers
    batches = list(job_batches(a, transformers, torch))
    tokens = sum(n for _, n in batches[2:])
    trained = sum((x["labels"] >= 0).sum().item() for x, _ in batches[2:])
    padded = sum(x["labels"].numel() for x, _ in batches[2:])
    print(f"{len(batches) - 2} batches of 8: {tokens} tokens, {100 * trained / tokens:.0f} % learnt, {padded} with padding")
    model, out = os.path.join(work, "model"), os.path.join(work, "out")
    subprocess.run([a.neoxtune, "init", "--config", config, "--tokenizer", a.tokenizer, "--output-dir", model],
                   check=True, stderr=subprocess.DEVNULL)
    ours, theirs, memory = [], [], [0, 0]
    for _ in range(a.rounds):
        _, m = run([a.neoxtune, "train", "--model", model, "--data", a.job, "--template", a.template, "--no-shuffle",
                    "--max-steps", str(a.steps), "--max-length", "512", "--save-strategy", "no", "--overwrite-output-dir",
                    "--output-dir", out, "--threads", str(a.threads), *flags], {})
        rows = [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]
        rows = [r for r in rows if "tokens_per_second" in r]
        seen = rows[-1]["num_tokens"] - rows[1]["num_tokens"]
        assert seen == tokens, f"neoxtune saw {seen} tokens, PyTorch {tokens}"
        ours.append(sum((y["num_tokens"] - x["num_tokens"]) / y["tokens_per_second"] for x, y in zip(rows[1:], rows[2:])))
        t, n = run([sys.executable, __file__, "--torch", "job", "--model", a.model, "--threads", str(a.threads), "--steps", str(a.steps),
                    "--job", a.job, "--template", a.template, "--tokenizer", a.tokenizer, *flags],
                   {**MALLOC, "OMP_NUM_THREADS": str(a.threads)})
        theirs.append(t["ms"] * (len(batches) - 2) / 1e3)
        memory = [max(memory[0], m), max(memory[1], n)]
    x, y = statistics.median(ours), statistics.median(theirs)
    print(f"neoxtune {tokens / x:.0f} tokens/s, {memory[0]} MB;  torch {tokens / y:.0f} tokens/s, {memory[1]} MB;  speed x {y / x:.2f}, "
          f"memory x {memory[0] / memory[1]:.2f}")
    print(f"torch {t['torch']}, transformers {t['transformers']}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--neoxtune", default="./neoxtune")
    p.add_argument("--model", default="pythia-70m", choices=MODELS)
    p.add_argument("--shapes", default="8x128,4x512,1x2048")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--job")
    p.add_argument("--template")
    p.add_argument("--tokenizer")
    p.add_argument("--torch", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.torch:
        return torch_steps(a)
    flags = ["--bf16"] if a.bf16 else []
    print(f"{a.model}, {a.threads} threads, {'bf16' if a.bf16 else 'f32'}")
    with tempfile.TemporaryDirectory() as work:
        config = os.path.join(work, "config.json")
        json.dump(dict(model_type="gpt_neox", rotary_pct=0.25, max_position_embeddings=2048, **MODELS[a.model]), open(config, "w"))
        if a.job:
            peer_job(a, work, config, flags)
        for shape in [] if a.job else a.shapes.split(","):
            batch, length = map(int, shape.split("x"))
            ours, theirs, shares, memory = [], [], [], [0, 0]
            for _ in range(a.rounds):
                r, m = run([a.neoxtune, "bench", "--json", "--config", config, "--per-device-train-batch-size", str(batch),
                            "--block-size", str(length), "--max-steps", str(a.steps), "--threads", str(a.threads), *flags], {})
                ours.append(1e3 * r["step_seconds"]), shares.append(r["share_of_peak"])
                memory[0] = max(memory[0], m)
                t, m = run([sys.executable, __file__, "--torch", shape, "--model", a.model, "--threads", str(a.threads),
                            "--steps", str(a.steps), *flags], {**MALLOC, "OMP_NUM_THREADS": str(a.threads)})
                theirs.append(t["ms"])
                memory[1] = max(memory[1], m)
            x, y = statistics.median(ours), statistics.median(theirs)
            n = batch * length
            print(f"{shape:>7}: neoxtune {1e3 * n / x:6.0f} tokens/s ({100 * statistics.median(shares):.0f} % of the peak), {memory[0]} MB;  torch "
                  f"{1e3 * n / y:6.0f} tokens/s, {memory[1]} MB;  speed x {y / x:.2f}, memory x {memory[0] / memory[1]:.2f}", flush=True)
            print(f"torch {t['torch']}, transformers {t['transformers']}")


sys.exit(main())
