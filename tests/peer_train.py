"""Training steps of the same model in PyTorch (the transformers class) and in neoxtune, alternating, on the same cores.

    python tests/peer_train.py [--neoxtune ./neoxtune] [--model pythia-70m] [--shapes 8x128,4x512,1x2048] [--bf16] [--threads 2] [--rounds 3] [--steps 4]

Each round runs both programs as processes of their own, one after the other; the line for a shape gives the medians over
rounds of each one's best step, their ratio, and the largest anonymous memory of either process. PyTorch runs at its best:
sdpa attention, fused AdamW, one thread pool, memory that malloc never gives back, huge pages, bf16 by autocast. A step is
forward, loss, backward, clipping of the norm, AdamW, as in the Trainer. Needs torch and transformers; versions are printed.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, threading, time

MODELS = {
    "pythia-70m": dict(vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048),
    "pythia-160m": dict(vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
}
MALLOC = dict(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000", MALLOC_TOP_PAD_="268435456",
              GLIBC_TUNABLES="glibc.malloc.hugetlb=1")


def torch_steps(a):
    """The other program: prints {"ms": best step, ...}."""
    import torch, transformers
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**MODELS[a.model], rotary_pct=0.25, max_position_embeddings=2048, attn_implementation="sdpa")
    model = transformers.GPTNeoXForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    batch, length = map(int, a.torch.split("x"))
    times = []
    for step in range(a.steps + 2):
        ids = torch.randint(0, config.vocab_size, (batch, length))
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    print(json.dumps({"ms": 1e3 * min(times[2:]), "torch": torch.__version__, "transformers": transformers.__version__}))


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
    return json.loads(out.strip().splitlines()[-1]), most


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--neoxtune", default="./neoxtune")
    p.add_argument("--model", default="pythia-70m", choices=MODELS)
    p.add_argument("--shapes", default="8x128,4x512,1x2048")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--torch", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.torch:
        return torch_steps(a)
    flags = ["--bf16"] if a.bf16 else []
    print(f"{a.model}, {a.threads} threads, {'bf16' if a.bf16 else 'f32'}")
    with tempfile.TemporaryDirectory() as work:
        config = os.path.join(work, "config.json")
        json.dump(dict(model_type="gpt_neox", rotary_pct=0.25, max_position_embeddings=2048, **MODELS[a.model]), open(config, "w"))
        for shape in a.shapes.split(","):
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
