"""Writes tests/golden/configs.json: what transformers makes of GPT-NeoX configs in which something goes without saying.

    python tests/make_configs.py [CONFIGS_DIR]

A row is {"name", "config", "expect"}: expect holds the attributes of GPTNeoXConfig.from_dict(config) and what
GPTNeoXRotaryEmbedding derives from them. Every key of a small config, in the spelling of transformers 4 and in that of 5,
is left out in turn. CONFIGS_DIR: a folder of folders with a config.json each; of those that are GPT-NeoX the row has "file"
instead of "config": facts about files that are not in the repository. Without the argument such rows are kept as they are.
"""
import glob, json, os, sys
import torch, transformers
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

transformers.utils.logging.set_verbosity_error()
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "configs.json")

SMALL = dict(vocab_size=67, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, hidden_act="relu",
             max_position_embeddings=64, bos_token_id=5, eos_token_id=6, layer_norm_eps=1e-3, initializer_range=0.1,
             use_parallel_residual=False, tie_word_embeddings=True, attention_bias=False)
OLD = dict(SMALL, rotary_pct=0.5, rotary_emb_base=500)
NEW = dict(SMALL, rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5))


def expect(config):
    c = GPTNeoXConfig.from_dict(config)
    rope = c.rope_parameters
    frequencies = GPTNeoXRotaryEmbedding(c).inv_freq.double()
    one = lambda x: -1 if x is None else x[0] if isinstance(x, list) else x
    scaled = 1 / float(frequencies[0])                          # of the first pair, which turns by 1 a position unscaled
    return dict(vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
                num_attention_heads=c.num_attention_heads, intermediate_size=c.intermediate_size,
                max_position_embeddings=c.max_position_embeddings, bos_token_id=one(c.bos_token_id), eos_token_id=one(c.eos_token_id),
                pairs=len(frequencies), last_frequency=float(frequencies[-1]), rope_theta=rope["rope_theta"], rope_factor=scaled,
                layer_norm_eps=c.layer_norm_eps, initializer_range=c.initializer_range, hidden_act=c.hidden_act,
                use_parallel_residual=c.use_parallel_residual, tie_word_embeddings=c.tie_word_embeddings, attention_bias=c.attention_bias)


def cases():
    yield "bare", {}
    for spelling, full in (("old", OLD), ("new", NEW)):
        yield spelling, full
        for key in full:
            yield f"{spelling} without {key}", {k: v for k, v in full.items() if k != key}
    for key in NEW["rope_parameters"]:
        yield f"new without {key}", dict(NEW, rope_parameters={k: v for k, v in NEW["rope_parameters"].items() if k != key})
    for act in ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"):
        yield f"hidden_act {act}", dict(OLD, hidden_act=act)
    yield "no start, no end", dict(OLD, bos_token_id=None, eos_token_id=None)
    yield "several ends", dict(OLD, eos_token_id=[9, 6])
    yield "rope_scaling null", dict(OLD, rope_scaling=None)
    yield "rope_scaling type linear", dict(OLD, rope_scaling=dict(type="linear", factor=4.0))
    yield "rope_scaling rope_type linear", dict(OLD, rope_scaling=dict(rope_type="linear", factor=2.5))
    yield "rope_scaling dynamic", dict(OLD, rope_scaling=dict(type="dynamic", factor=2.0))
    yield "rope_parameters linear", dict(NEW, rope_parameters=dict(NEW["rope_parameters"], rope_type="linear", factor=4.0))
    yield "rope_parameters linear, old share and base", dict(OLD, rope_parameters=dict(rope_type="linear", factor=3.0))


def main():
    rows = []
    for name, config in cases():
        config = dict({"model_type": "gpt_neox"}, **config)
        rows.append(dict(name=name, config=config, expect=expect(json.loads(json.dumps(config)))))
    if len(sys.argv) > 1:
        for path in sorted(glob.glob(os.path.join(sys.argv[1], "*", "config.json"))):
            config = json.load(open(path))
            if config["model_type"] == "gpt_neox":
                rows.append(dict(name=path.split(os.sep)[-2], file=path.split(os.sep)[-2], expect=expect(config)))
    elif os.path.exists(OUT):
        rows += [r for r in json.load(open(OUT))["rows"] if "file" in r]
    with open(OUT, "w") as f:
        f.write(f'{{"made_with": "transformers {transformers.__version__}, torch {torch.__version__}", "rows": [\n')
        f.write(",\n".join(json.dumps(r) for r in rows) + "\n]}\n")
    print(len(rows), "rows")


main()
