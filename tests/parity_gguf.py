"""GGUF files that neoxtune exports, read by gguf-py and run by llama.cpp.

    [NEOXTUNE_TEST_DATA=/path/to/data] python tests/parity_gguf.py --work /tmp/gguf [--neoxtune ./neoxtune]

Needs a C compiler, numpy, gguf, llama-cpp-python (built from source: no wheels are needed), tokenizers.

reader      every file is read by gguf-py's GGUFReader; q8_0 equals gguf-py's own quantisation, byte for byte
logits      tests/golden of every architecture that GGUF has: llama.cpp's logits against neoxtune's on the same ids
perplexity  pico-neox (and stories260K) in every type: within 1 % of neoxtune on the same ids; for pico also that number
            against `neoxtune eval`, and what the tanh form of GELU, which llama.cpp runs, changes
greedy      32 tokens after prompts
tokens      the exported tokenizer in llama.cpp against Hugging Face tokenizers, on texts

neoxtune's numbers come from nxt_logits, called through a shared library that the script builds from neoxtune.c.
"""
import argparse, ctypes, json, os, shutil, subprocess, sys
from importlib.metadata import version
import numpy as np
import gguf, llama_cpp, tokenizers
from gguf import GGUFReader

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8}
failures = 0


def say(ok, case, text):
    global failures
    failures += not ok
    print(f"{'ok    ' if ok else 'FAILED'} {case}: {text}", flush=True)


# ---- neoxtune as a library ---------------------------------------------------------------------------------------

class Neoxtune:
    def __init__(self, work):
        path = os.path.join(work, "libneoxtune.so")
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-pthread", "-DNXT_NO_MAIN", "-o", path,
                        os.path.join(TOP, "neoxtune.c"), "-lm"], check=True)
        self.lib = ctypes.CDLL(path)
        self.lib.nxt_error_message.restype = ctypes.c_char_p
        self.cx = ctypes.c_void_p()
        self.check(self.lib.nxt_context_create(ctypes.byref(self.cx), None))

    def check(self, status):
        if status:
            sys.exit(f"neoxtune: {self.lib.nxt_error_message(self.cx).decode()}")

    def load(self, directory, vocabulary):
        m = ctypes.c_void_p()
        self.check(self.lib.nxt_model_load(ctypes.byref(m), self.cx, directory.encode()))
        return lambda ids: self.logits(m, ids, vocabulary)

    def logits(self, m, ids, vocabulary):
        out = np.empty((len(ids), vocabulary), np.float32)
        array = (ctypes.c_int32 * len(ids))(*ids)
        self.check(self.lib.nxt_logits(m, array, ctypes.c_int64(len(ids)), out.ctypes.data_as(ctypes.POINTER(ctypes.c_float))))
        return out


def config_of(directory):
    with open(os.path.join(directory, "config.json")) as f:
        return json.load(f)


# ---- llama.cpp ----------------------------------------------------------------------------------------------------

def llama(path, context=256):
    """Keys and values in f32: with its default, f16, they would be the larger part of every difference."""
    return llama_cpp.Llama(path, n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=2,
                           type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


def llama_logits(l, ids):
    l.reset()
    l.eval(list(ids))
    return np.array(l.scores[: len(ids)], np.float32)


def loss(logits, ids):
    """Sum over the predicted tokens, in double."""
    x = logits[:-1].astype(np.float64)
    top = x.max(1, keepdims=True)
    return float((np.log(np.exp(x - top).sum(1)) + top[:, 0] - x[np.arange(len(ids) - 1), ids[1:]]).sum())


def perplexity(forward, texts):
    return float(np.exp(sum(loss(forward(t), t) for t in texts) / sum(len(t) - 1 for t in texts)))


def greedy(forward, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(forward(ids)[-1].argmax()))
    return ids[-n:]


def llama_greedy(l, ids, n):
    """Token by token, from its cache."""
    l.reset()
    l.eval(list(ids))
    out = []
    for _ in range(n):
        out.append(int(l.scores[l.n_tokens - 1].argmax()))
        l.eval(out[-1:])
    return out


# ---- the cases ----------------------------------------------------------------------------------------------------

def export(a, model, name, dtype=None, *more):
    path = os.path.join(a.work, name)
    if os.path.exists(path):
        os.remove(path)
    command = [a.neoxtune, "export", "--model", model, "--output", path, *(["--dtype", dtype] if dtype else []), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return path


def check_reader(a):
    pico = os.path.join(TOP, "data", "pico-neox")
    read = {t: GGUFReader(export(a, pico, f"pico-{t}.gguf", t)) for t in TYPES}
    full = {t.name: np.array(t.data) for t in read["f32"].tensors}
    for name, r in read.items():
        wrong = []
        for t in r.tensors:
            kind = gguf.GGMLQuantizationType(TYPES[name] if len(t.shape) == 2 else 0)
            if t.tensor_type != kind:
                wrong.append(t.name)
            expected = gguf.quants.quantize(full[t.name], kind)
            got = np.array(t.data)
            if expected.tobytes() != got.tobytes():
                wrong.append(t.name)
        say(not wrong, f"reader pico {name}", f"{len(r.tensors)} tensors, {len(r.fields)} fields equal gguf-py's own; wrong: {wrong[:3]}")


def check_logits(a, nx):
    rng = np.random.default_rng(5)
    bare = os.path.join(a.work, "neox-bare")  # what the golden models of GPT-NeoX do not have
    shutil.rmtree(bare, ignore_errors=True)
    with open(os.path.join(a.work, "c.json"), "w") as f:
        json.dump(dict(model_type="gpt_neox", vocab_size=67, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=53,
                       max_position_embeddings=64, rotary_pct=0.5, rotary_emb_base=500, hidden_act="gelu_new", layer_norm_eps=1e-3,
                       attention_bias=False, tie_word_embeddings=True, initializer_range=0.3), f)
    subprocess.run([a.neoxtune, "init", "--config", f.name, "--output-dir", bare], check=True, capture_output=True)
    golden = ["neox-parallel-025", "neox-parallel-100", "neox-sequential-025", "neox-sequential-100", "neox-linear", "gpt2-plain",
              "gpt2-bare", "llama-grouped", "llama-tied", "qwen2-tiny"]
    for directory in [bare, *(os.path.join(HERE, "golden", name) for name in golden)]:
        name = os.path.basename(directory)
        c = config_of(directory)
        l = llama(export(a, directory, f"{name}.gguf", "f32"))
        length = min(24, c.get("n_positions", c.get("max_position_embeddings")))
        if name == "llama-tied":
            length = 200  # where its stretched waves differ
        ids = rng.integers(0, c["vocab_size"], length)
        ours, theirs = nx.load(directory, c["vocab_size"])(ids), llama_logits(l, ids)
        worst = np.abs(ours - theirs).max() / np.abs(ours).max()
        exact = c.get("hidden_act") == "gelu"
        say(worst < (5e-3 if exact else 1e-3), f"logits {name}",
            f"largest difference {worst:.1e} of the largest logit{' (erf against tanh)' if exact else ''}")


def check_model(a, nx, name, directory, texts, prompts, encode):
    c = config_of(directory)
    ours = nx.load(directory, c["vocab_size"])
    ids = [encode(t) for t in texts]
    mine = perplexity(ours, ids)
    print(f"       {name}: neoxtune's perplexity {mine:.5f} on {sum(len(t) - 1 for t in ids)} tokens")
    for dtype in TYPES:
        l = llama(export(a, directory, f"{name}-{dtype}.gguf", dtype), 512)
        theirs = perplexity(lambda t: llama_logits(l, t), ids)
        say(abs(theirs / mine - 1) < 0.01, f"perplexity {name} {dtype}", f"llama.cpp {theirs:.5f}, {100 * (theirs / mine - 1):+.4f} %")
        if dtype == "q8_0":
            continue  # a rounded model may say something else
        for p in prompts:
            start = encode(p)
            want, got = greedy(ours, start, 32), llama_greedy(l, start, 32)
            say(want == got, f"greedy {name} {dtype}", f"{p[:30]!r}: " + ("32 equal tokens" if want == got else f"{want} {got}"))
    return ids, mine


def check_pico(a, nx):
    directory = os.path.join(TOP, "data", "pico-neox")
    tok = tokenizers.Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    encode = lambda t: tok.encode(t, add_special_tokens=False).ids
    with open(os.path.join(TOP, "data", "qa-heldout.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    texts = [r["question"] + r["answer"] for r in rows[:200]]
    ids, erf = check_model(a, nx, "pico", directory, texts, ["One day", texts[0][:40], "Olga had a brown cow."], encode)
    path = os.path.join(a.work, "texts.jsonl")
    with open(path, "w") as f:
        f.writelines(json.dumps({"text": t}) + "\n" for t in texts)
    done = subprocess.run([a.neoxtune, "eval", "--model", directory, "--data", path, "--no-append-eos", "--json"],
                          capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)["perplexity"]
    say(abs(said / erf - 1) < 1e-4, "eval pico", f"neoxtune eval says {said:.5f}")
    tanh_dir = os.path.join(a.work, "pico-tanh")
    shutil.rmtree(tanh_dir, ignore_errors=True)
    shutil.copytree(directory, tanh_dir)
    c = config_of(directory)
    with open(os.path.join(tanh_dir, "config.json"), "w") as f:
        json.dump(dict(c, hidden_act="gelu_new"), f)
    tanh = nx.load(tanh_dir, c["vocab_size"])
    erf_logits, tanh_logits = nx.load(directory, c["vocab_size"])(ids[0]), tanh(ids[0])
    l = llama(os.path.join(a.work, "pico-f32.gguf"))
    theirs = llama_logits(l, ids[0])
    print(f"       pico: perplexity with erf {erf:.6f}, with tanh {perplexity(tanh, ids):.6f}, "
          f"llama.cpp {perplexity(lambda t: llama_logits(l, t), ids):.6f}")
    print(f"       pico: largest difference of logits: erf - tanh {np.abs(erf_logits - tanh_logits).max():.2e}, "
          f"tanh - llama.cpp {np.abs(tanh_logits - theirs).max():.2e}, erf - llama.cpp {np.abs(erf_logits - theirs).max():.2e}")


def check_stories(a, nx, data):
    directory = os.path.join(data, "checkpoints", "stories260K")
    tok = tokenizers.Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    with open(os.path.join(data, "text", "tinystories.txt")) as f:
        text = f.read(40000)
    texts = [text[i : i + 600] for i in range(0, 24000, 600)]
    check_model(a, nx, "stories260K", directory, texts, ["Once upon a time", "Lily and Tom went", "The little dog"],
                lambda t: tok.encode(t).ids[:500])


def check_tokens(a, data):
    """A small model around each tokenizer; llama.cpp reads the vocabulary alone."""
    texts = []
    for name in ["tinyshakespeare.txt", "tinystories.txt", "sanguoyanyi.txt"]:
        with open(os.path.join(data, "text", name), encoding="utf-8") as f:
            t = f.read(60000)
        texts += [t[i : i + 500] for i in range(0, len(t) - 500, 500)]
    texts += ["Hello, y'all! How are you 😁 ?我想在apple工作1314151天～", "  3 spaces   and\ttabs\n\n\n  ", "3 33 333 3333 3.14 ½ ١٢", "naïve café Ünï"]
    neox = dict(model_type="gpt_neox", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, bos_token_id=0,
                eos_token_id=0, max_position_embeddings=64)
    lm = dict(model_type="llama", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64)
    for name, config, size in [("gpt2", neox, 50304), ("gpt-neox-20b", neox, 50432), ("bytelevel-split-2k", neox, 2048), ("llama-spm", lm, 32064)]:
        source = os.path.join(data, "tokenizers", name)
        model = os.path.join(a.work, "tok-" + name)
        shutil.rmtree(model, ignore_errors=True)
        with open(os.path.join(a.work, "c.json"), "w") as f:
            json.dump(dict(config, vocab_size=size), f)
        subprocess.run([a.neoxtune, "init", "--config", f.name, "--tokenizer", source, "--output-dir", model], check=True, capture_output=True)
        l = llama_cpp.Llama(export(a, model, f"tok-{name}.gguf", "f16"), vocab_only=True, verbose=False)
        tok = tokenizers.Tokenizer.from_file(os.path.join(source, "tokenizer.json"))
        wrong = [t for t in texts if l.tokenize(t.encode(), add_bos=False) != tok.encode(t, add_special_tokens=False).ids]
        say(not wrong, f"tokens {name}", f"{len(texts)} texts, {len(wrong)} differ {[w[:40] for w in wrong[:2]]}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True)
    p.add_argument("--neoxtune", default=os.path.join(TOP, "neoxtune"))
    a = p.parse_args()
    a.neoxtune = os.path.abspath(a.neoxtune)
    os.makedirs(a.work, exist_ok=True)
    print("versions:", *(f"{n} {version(n)}" for n in ["llama-cpp-python", "gguf", "tokenizers", "numpy"]), f"Python {sys.version.split()[0]}")
    nx = Neoxtune(a.work)
    data = os.environ.get("NEOXTUNE_TEST_DATA")
    check_reader(a)
    check_logits(a, nx)
    check_pico(a, nx)
    if data:
        check_stories(a, nx, data)
        check_tokens(a, data)
    else:
        print("skipped: stories260K and tokenizers (NEOXTUNE_TEST_DATA is unset)")
    print(f"{failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
