"""Model directories between transformers and neoxtune, both ways, judged by 64 greedy tokens.

    NEOXTUNE_TEST_DATA=/path/to/data python tests/parity_models.py --work /tmp/parity [--neoxtune ./neoxtune]
              [--only read,dtype,trained] [--trained DIR] [--shapes small,70m] [--reference-only] [--keep]

read     GPT-NeoX models with random weights, a small one and one of Pythia-70m's shape, saved by transformers or torch as
         model.safetensors and pytorch_model.bin, in f32, f16 and bf16, whole and sharded, and .bin files that are
         valid but odd; `neoxtune generate` must give the tokens that transformers gives.
dtype    `neoxtune train --dtype f32|f16|bf16`: transformers must load the result (every tensor, that type) and agree.
trained  the same for a directory given with --trained.

The reference is transformers in float32 from the stored (rounded) weights. Random weights are large, so that the best
two logits are seldom close; where they are closer than 1e-3 the comparison of that prompt ends, and the line says so.
--reference-only makes and checks the files without neoxtune. Exit status 1 when anything differs.
"""
import argparse, collections, copy, json, os, shutil, subprocess, sys
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

PROMPTS = ["First Citizen:\nBefore we proceed any further, hear me", "Once upon a time there was a little",
           "### Question:\nWhat is the difference between 3.14 and 22/7?\n### Answer:"]
NEW, NEAR = 64, 1e-3
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SHAPES = {
    "small": dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192),
    "70m": dict(hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048),
}
failures = 0


def say(ok, case, text):
    global failures
    failures += not ok
    print(f"{'ok    ' if ok else 'FAILED'} {case}: {text}", flush=True)


def stored(name):
    """transformers 5 calls the head lm_head in memory and embed_out in files."""
    return name.replace("lm_head.", "embed_out.")


# ---- models ----------------------------------------------------------------------------------------------------

def random_model(shape, **more):
    """Every layer moves the residual stream as much as the embedding does; logits have a deviation of about 10."""
    torch.manual_seed(11)
    config = GPTNeoXConfig(vocab_size=50304, rotary_pct=0.25, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0, **SHAPES[shape], **more)
    model = GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "embed_in" in name or "lm_head" in name:
                p.normal_(0, 10 / config.hidden_size ** 0.5 if model.config.tie_word_embeddings or "lm_head" in name else 1)
            elif p.ndim == 2:
                p.normal_(0, 1.5 / p.shape[1] ** 0.5)
            elif name.endswith("bias"):
                p.normal_(0, 0.2)
            else:
                p.normal_(1, 0.2)
    return model


def in_f32(model):
    """The stored weights as f32. Made anew: .to(float16) would round the rotary frequencies too, which are computed, not stored."""
    fresh = GPTNeoXForCausalLM(model.config).eval()
    fresh.load_state_dict({n: t.float() for n, t in model.state_dict().items()})
    return fresh.float()


def add_tokenizer(folder, data):
    shutil.copyfile(os.path.join(data, "tokenizers/gpt-neox-20b/tokenizer.json"), os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False, "bos_token": "<|endoftext|>",
                   "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, f, indent=1)


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
    state = collections.OrderedDict((stored(n), t) for n, t in source.items())
    state._metadata = source._metadata
    return state


def odd_state(model):
    """The same weights as torch may hold them: transposed, views into shared storages, Parameters; and the buffers of old files."""
    state = state_of(model)
    small = [n for n, t in state.items() if t.ndim == 1]
    flat = torch.cat([torch.full((7,), 99.0, dtype=state[small[0]].dtype)] + [state[n] for n in small])
    at = 7
    for n in small:                                         # all vectors are views of one storage, at different offsets
        state[n] = flat[at:at + state[n].numel()]
        at += state[n].numel()
    embed = state["gpt_neox.embed_in.weight"]
    state["gpt_neox.embed_in.weight"] = torch.cat([embed[:5] + 1, embed, embed[:3]])[5:-3]      # rows of a larger matrix
    for n in list(state):
        if n.endswith("dense_h_to_4h.weight") or n.endswith("query_key_value.weight"):
            state[n] = state[n].t().contiguous().t()        # strides (1, rows)
            assert not state[n].is_contiguous()
        elif n.endswith("attention.dense.weight"):
            state[n] = torch.nn.Parameter(state[n])
        elif n.endswith("dense_4h_to_h.weight"):
            state[n] = torch.nn.Parameter(state[n].clone(), requires_grad=False)
    size = model.config.hidden_size // model.config.num_attention_heads // 4
    for i in range(model.config.num_hidden_layers):
        state[f"gpt_neox.layers.{i}.attention.bias"] = torch.ones(2048, 2048, dtype=torch.bool).tril().view(1, 1, 2048, 2048)
        state[f"gpt_neox.layers.{i}.attention.masked_bias"] = torch.tensor(-1e9)
        state[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = 1.0 / (10000 ** (torch.arange(0, size, 2).float() / size))
    return state


def strided_state(model):
    """One matrix is a column slice of a wider one: neither contiguous nor transposed."""
    state = state_of(model)
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    state[name] = torch.cat([state[name], state[name] * 2], dim=1)[:, :state[name].shape[1]]
    assert state[name].stride()[0] == 2 * state[name].shape[1]
    return state


# ---- greedy tokens ---------------------------------------------------------------------------------------------

def greedy(model, prompt_ids):
    """(64 tokens, gap between the best two logits at each)."""
    out = model.generate(torch.tensor([prompt_ids]), attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long), max_new_tokens=NEW,
                         do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_logits=True)
    gaps = [float(top[0] - top[1]) for top in (l[0].float().topk(2).values for l in out.logits)]
    return out.sequences[0, len(prompt_ids):].tolist(), gaps


def references(model, encode):
    return [greedy(model, encode(p)) for p in PROMPTS]


def neoxtune_greedy(a, folder, prompt):
    r = subprocess.run([a.neoxtune, "generate", "--model", folder, "--prompt", prompt, "--max-new-tokens", str(NEW), "--json"],
                       capture_output=True, text=True)
    return (json.loads(r.stdout.splitlines()[0])["ids"] if r.returncode == 0 else None), r


def compare(a, case, folder, expected, may_refuse=False):
    """neoxtune's tokens against the expected ones, prompt by prompt, up to the first near-tie and to the end of text (0)."""
    compared = 0
    for prompt, (ids, gaps) in zip(PROMPTS, expected):
        near = next((i for i, g in enumerate(gaps) if g < NEAR), len(ids))
        ours, run = neoxtune_greedy(a, folder, prompt)
        if ours is None:
            refused = may_refuse and run.returncode == 1 and run.stderr.strip() != ""
            return say(refused, case, f"exit {run.returncode}: {run.stderr.strip()[-300:]}")
        stop = lambda x: x[:x.index(0)] if 0 in x else x
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

def part_read(a, data, encode):
    for shape in a.shapes.split(","):
        for style, more in [("parallel", {})] + [("sequential", {"use_parallel_residual": False})] * (shape == "small"):
            model = random_model(shape, **more)
            for dtype, torch_dtype in DTYPES.items():
                cast = copy.deepcopy(model).to(torch_dtype)
                cast.config.dtype = torch_dtype
                expected = references(in_f32(cast), encode)
                print(f"       {shape} {style} {dtype}: smallest gaps {[f'{min(g):.3f}' for _, g in expected]}, different tokens {[len(set(i)) for i, _ in expected]}")
                cases = {}
                for shards in (1, 3):
                    way = "sharded" if shards > 1 else "whole"
                    cases[f"safetensors {way}"] = lambda f, n=shards: save_safetensors(cast, f, n)
                    cases[f"bin {way}"] = lambda f, n=shards: save_bin(state_of(cast), cast.config, f, n)
                if shape == "small":
                    cases["bin odd"] = lambda f: save_bin(odd_state(cast), cast.config, f)
                    cases["bin strided (may be refused)"] = lambda f: save_bin(strided_state(cast), cast.config, f)
                run_cases(a, data, f"{shape} {style} {dtype}", cast, cases, expected)
            if shape == "small" and style == "parallel":
                run_cases(a, data, f"{shape} {style} f32", model, {"bin legacy (may be refused)":
                    lambda f: save_bin(state_of(model), model.config, f, _use_new_zipfile_serialization=False)}, references(model, encode))
    if "small" in a.shapes.split(","):
        tied = random_model("small", tie_word_embeddings=True)
        state = state_of(tied)
        assert state["embed_out.weight"].data_ptr() == state["gpt_neox.embed_in.weight"].data_ptr()
        run_cases(a, data, "small tied f32", tied, {"safetensors": lambda f: save_safetensors(tied, f, 1),
                  "bin shared storage": lambda f: save_bin(state, tied.config, f)}, references(tied, encode))


def run_cases(a, data, prefix, model, cases, expected):
    for case, save in cases.items():
        folder = os.path.join(a.work, f"{prefix} {case.split(' (')[0]}".replace(" ", "-"))
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        save(folder)
        add_tokenizer(folder, data)
        same_weights(folder, model)
        if not a.reference_only:
            compare(a, f"{prefix} {case}", folder, expected, may_refuse="may be refused" in case)
        if not a.keep:
            shutil.rmtree(folder)


def file_types(folder):
    """The types of the tensors in the .safetensors files."""
    from safetensors.torch import load_file
    return {t.dtype for f in os.listdir(folder) if f.endswith(".safetensors") for t in load_file(os.path.join(folder, f)).values()}


def check_trained(a, case, folder, encode, dtype=None):
    """transformers loads what neoxtune wrote, and both continue the prompts alike."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    problems = {k: sorted(v) for k, v in info.items() if v}
    say(not problems, case, f"transformers loads it as {model.dtype}" + (f"; {problems}" if problems else ""))
    if dtype is not None:
        say(model.dtype == dtype and file_types(folder) == {dtype}, case, f"the files hold {file_types(folder)}, config.json says {model.dtype}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mine = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    if encode is not None:
        say(all(mine(p) == encode(p) for p in PROMPTS), case, "AutoTokenizer gives the same ids")
    compare(a, case, folder, references(model.float().eval(), mine))


def part_dtype(a, data, encode):
    base, text = os.path.join(a.work, "dtype-base"), os.path.join(data, "text/tinyshakespeare.txt")
    shutil.rmtree(base, ignore_errors=True)
    random_model("small").save_pretrained(base)
    add_tokenizer(base, data)
    if a.reference_only:
        tokenizer = AutoTokenizer.from_pretrained(base)
        for p in PROMPTS:
            assert tokenizer(p, add_special_tokens=False)["input_ids"] == encode(p)
        return
    for dtype, torch_dtype in DTYPES.items():
        out = os.path.join(a.work, "dtype-" + dtype)
        command = [a.neoxtune, "train", "--model", base, "--data", text, "--output-dir", out, "--overwrite-output-dir", "--block-size", "64",
                   "--max-steps", "3", "--learning-rate", "1e-3", "--dtype", dtype]
        r = subprocess.run(command, capture_output=True, text=True)
        if r.returncode:
            say(False, f"train --dtype {dtype}", r.stderr.strip()[-300:])
            continue
        check_trained(a, f"train --dtype {dtype}", out, encode, torch_dtype)
        if not a.keep:
            shutil.rmtree(out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True, help="folder for models (at most 0.5 GB at a time without --keep)")
    p.add_argument("--neoxtune", default="./neoxtune")
    p.add_argument("--only", default="", help="parts: read,dtype,trained")
    p.add_argument("--trained", help="a model directory that neoxtune wrote")
    p.add_argument("--shapes", default="small,70m")
    p.add_argument("--reference-only", action="store_true")
    p.add_argument("--keep", action="store_true", help="keep the model directories")
    a = p.parse_args()
    data = os.environ.get("NEOXTUNE_TEST_DATA")
    parts = a.only.split(",") if a.only else ["trained"] if a.trained else ["read", "dtype"]
    if a.trained and "trained" in parts:
        check_trained(a, "trained", a.trained, None)
    if "read" in parts or "dtype" in parts:
        if not data:
            print("skipped: NEOXTUNE_TEST_DATA is not set")
            return failures > 0
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(os.path.join(data, "tokenizers/gpt-neox-20b/tokenizer.json"))
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        os.makedirs(a.work, exist_ok=True)
        if "read" in parts:
            part_read(a, data, encode)
        if "dtype" in parts:
            part_dtype(a, data, encode)
    print(f"{failures} failed")
    return failures > 0


sys.exit(main())
