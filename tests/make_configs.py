"""Writes tests/golden/configs.json: what transformers makes of configs in which something goes without saying.

    python tests/make_configs.py [CONFIGS_DIR]

The file has one list for each family, "rows" for GPT-NeoX and "gpt2", "gpt_neo", "llama", "qwen2". A row is {"name", "config",
"expect"}: expect holds the attributes of AutoConfig's class after from_dict(config), under one name in all families, and what
the modules derive from them: see expect(). Every key of a small config, in the spelling of transformers 4 and in that of 5,
is left out in turn. Where transformers refuses the config, expect is null and "error" says why. CONFIGS_DIR: a folder of folders
with a config.json each; their rows have "file" instead of "config": facts about files that are not in the repository.
Without the argument such rows are kept as they are.
"""
import glob, json, os, sys
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

transformers.utils.logging.set_verbosity_error()
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "configs.json")

FAMILIES = {"gpt_neox": "rows", "gpt2": "gpt2", "gpt_neo": "gpt_neo", "llama": "llama", "qwen2": "qwen2"}    # model_type: list

SMALL = dict(model_type="gpt_neox", vocab_size=67, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, hidden_act="relu",
             max_position_embeddings=64, bos_token_id=5, eos_token_id=6, layer_norm_eps=1e-3, initializer_range=0.1,
             use_parallel_residual=False, tie_word_embeddings=True, attention_bias=False)
OLD = dict(SMALL, rotary_pct=0.5, rotary_emb_base=500)
NEW = dict(SMALL, rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5))


GPT2 = dict(model_type="gpt2", vocab_size=67, n_positions=64, n_embd=96, n_layer=2, n_head=4, n_inner=48, activation_function="relu",
            resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.4, layer_norm_epsilon=1e-3, initializer_range=0.1, scale_attn_weights=False,
            bos_token_id=5, eos_token_id=6, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False)
NEO = dict(model_type="gpt_neo", vocab_size=67, max_position_embeddings=64, hidden_size=128, num_layers=4, num_heads=4,
           attention_types=[[["global", "local"], 2]], intermediate_size=48, window_size=9, activation_function="relu",
           resid_dropout=0.2, embed_dropout=0.3, attention_dropout=0.4, layer_norm_epsilon=1e-3, initializer_range=0.1,
           bos_token_id=5, eos_token_id=6, tie_word_embeddings=False)
GATED = dict(vocab_size=67, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=80,
             hidden_act="relu", max_position_embeddings=64, initializer_range=0.1, rms_norm_eps=1e-3, bos_token_id=5, eos_token_id=6,
             tie_word_embeddings=True)
LLAMA = dict(GATED, model_type="llama", attention_bias=True, mlp_bias=True, head_dim=16)
QWEN2 = dict(GATED, model_type="qwen2", use_sliding_window=False, sliding_window=9, max_window_layers=1)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)


def one(x):
    return -1 if x is None else x[0] if isinstance(x, list) else x


def expect(config):
    c = AutoConfig.for_model(config["model_type"]).from_dict(config)
    if c.model_type == "gpt_neox":
        return expect_neox(c)
    with torch.device("meta"):                                  # the modules, without memory
        model = AutoModelForCausalLM.from_config(c, attn_implementation="eager")
    e = dict(vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
             num_attention_heads=c.num_attention_heads, max_position_embeddings=c.max_position_embeddings,
             bos_token_id=one(c.bos_token_id), eos_token_id=one(c.eos_token_id), initializer_range=c.initializer_range,
             tie_word_embeddings=model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    return dict(e, **(expect_gated if hasattr(model, "model") else expect_gpt)(c, model))


def expect_gpt(c, model):
    """Scales: what the scores of each layer are multiplied with. Windows: how many tokens a layer looks back, itself among them; 0: all."""
    h = list(model.transformer.h)
    gpt2 = c.model_type == "gpt2"
    return dict(intermediate_size=h[0].mlp.c_proj.weight.numel() // c.hidden_size, hidden_act=c.activation_function, layer_norm_eps=h[0].ln_1.eps,
                scales=[b.attn.scaling if gpt2 else 1.0 for b in h],
                windows=[0 if gpt2 or b.attn.attention_type == "global" else c.window_size for b in h],
                resid_dropout=h[0].mlp.dropout.p, embed_dropout=model.transformer.drop.p,
                attention_dropout=(h[0].attn if gpt2 else h[0].attn.attention).attn_dropout.p)


def expect_gated(c, model):
    """Frequencies: the angle by which a position turns each pair, or each ceil(pairs / 32)-th."""
    layers = model.model.layers
    a, mlp = layers[0].self_attn, layers[0].mlp
    rope = type(model.model.rotary_emb)(c).inv_freq.tolist()
    types = getattr(c, "layer_types", None) or ["full_attention"] * c.num_hidden_layers
    return dict(intermediate_size=mlp.gate_proj.out_features, hidden_act=c.hidden_act, layer_norm_eps=layers[0].input_layernorm.variance_epsilon,
                num_key_value_heads=a.k_proj.out_features // a.head_dim, head_dim=a.head_dim,
                rope_type=c.rope_parameters["rope_type"], rope_theta=c.rope_parameters["rope_theta"],
                pairs=len(rope), frequencies=rope[::-(-len(rope) // 32)],
                windows=[c.sliding_window if t == "sliding_attention" else 0 for t in types],
                qkv_bias=a.q_proj.bias is not None, output_bias=a.o_proj.bias is not None, mlp_bias=mlp.down_proj.bias is not None,
                attention_dropout=c.attention_dropout)


def expect_neox(c):
    rope = c.rope_parameters
    frequencies = GPTNeoXRotaryEmbedding(c).inv_freq.double()
    scaled = 1 / float(frequencies[0])                          # of the first pair, which turns by 1 a position unscaled
    return dict(vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_hidden_layers,
                num_attention_heads=c.num_attention_heads, intermediate_size=c.intermediate_size,
                max_position_embeddings=c.max_position_embeddings, bos_token_id=one(c.bos_token_id), eos_token_id=one(c.eos_token_id),
                pairs=len(frequencies), last_frequency=float(frequencies[-1]), rope_theta=rope["rope_theta"], rope_factor=scaled,
                layer_norm_eps=c.layer_norm_eps, initializer_range=c.initializer_range, hidden_act=c.hidden_act,
                use_parallel_residual=c.use_parallel_residual, tie_word_embeddings=c.tie_word_embeddings, attention_bias=c.attention_bias)


def without(name, full):
    """The config, and the config without each of its keys."""
    yield name, full
    for key in full:
        if key != "model_type":
            yield f"{name} without {key}", {k: v for k, v in full.items() if k != key}


def cases():
    for family in FAMILIES:
        yield "bare", dict(model_type=family)
    yield from neox_cases()
    yield from gpt_cases()
    yield from gated_cases()


def neox_cases():
    for spelling, full in (("old", OLD), ("new", NEW)):
        yield from without(spelling, full)
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


def gpt_cases():
    yield from without("gpt2", GPT2)
    yield "gpt2 general names", dict(model_type="gpt2", vocab_size=67, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
                                     max_position_embeddings=64)
    yield "gpt2 n_ctx alone", dict(model_type="gpt2", n_embd=96, n_layer=2, n_head=4, n_ctx=64)
    yield "gpt2 n_inner null", dict(GPT2, n_inner=None)
    yield "gpt2 both scales", dict(GPT2, scale_attn_weights=True)
    yield "gpt2 no start, no end", dict(GPT2, bos_token_id=None, eos_token_id=None)
    yield from without("gpt_neo", NEO)
    yield "gpt_neo intermediate_size null", dict(NEO, intermediate_size=None)
    yield "gpt_neo general names", {dict(num_layers="num_hidden_layers", num_heads="num_attention_heads").get(k, k): v for k, v in NEO.items()}
    yield "gpt_neo several types", dict(NEO, num_layers=5, attention_types=[[["global"], 2], [["local", "local", "global"], 1]])
    yield "gpt_neo types too short", dict(NEO, num_layers=5)
    layers = ["local", "global", "global", "local"]
    yield "gpt_neo attention_layers beside attention_types", dict(NEO, attention_layers=layers)
    yield "gpt_neo attention_layers alone", dict({k: v for k, v in NEO.items() if k != "attention_types"}, attention_layers=layers)


def gated_cases():
    for name, small in (("llama", LLAMA), ("qwen2", QWEN2)):
        yield from without(f"{name} old", dict(small, rope_theta=500.0))
        yield f"{name} new", dict(small, rope_parameters=dict(rope_type="default", rope_theta=500.0))
        yield f"{name} new without rope_theta", dict(small, rope_parameters=dict(rope_type="default"))
        yield f"{name} new without rope_type", dict(small, rope_parameters=dict(rope_theta=500.0))
        yield f"{name} heads null", dict(small, num_key_value_heads=None)
        yield f"{name} head_dim", dict(small, head_dim=20)
        yield f"{name} several ends", dict(small, eos_token_id=[9, 6])
        yield f"{name} no start, no end", dict(small, bos_token_id=None, eos_token_id=None)
        yield f"{name} rope_scaling null", dict(small, rope_theta=500.0, rope_scaling=None)
        yield f"{name} rope_scaling type linear", dict(small, rope_theta=500.0, rope_scaling=dict(type="linear", factor=4.0))
        yield f"{name} rope_scaling llama3", dict(small, rope_theta=500.0, max_position_embeddings=1024, rope_scaling=LLAMA3)
        yield f"{name} rope_parameters linear", dict(small, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=500.0))
        yield f"{name} rope_parameters llama3", dict(small, max_position_embeddings=1024, rope_parameters=dict(LLAMA3, rope_theta=500.0))
        yield f"{name} rope_parameters llama3, more pairs", dict(small, max_position_embeddings=1024, hidden_size=256, head_dim=64,
                                                             rope_parameters=dict(LLAMA3, rope_theta=500000.0))
        for act in ("silu", "gelu", "gelu_pytorch_tanh"):
            yield f"{name} hidden_act {act}", dict(small, hidden_act=act)
    yield "llama head_dim null", dict(LLAMA, head_dim=None)
    yield "qwen2 sliding", dict(QWEN2, use_sliding_window=True)
    yield "qwen2 biases asked for", dict(QWEN2, attention_bias=False, mlp_bias=True)


def row(config, head):
    try:
        return dict(head, expect=expect(json.loads(json.dumps(config))))
    except Exception as e:
        return dict(head, expect=None, error=f"{type(e).__name__}: {' '.join(str(e).split())}"[:200])


def main():
    rows = {key: [] for key in FAMILIES.values()}
    for name, config in cases():
        rows[FAMILIES[config["model_type"]]].append(row(config, dict(name=name, config=config)))
    if len(sys.argv) > 1:
        for path in sorted(glob.glob(os.path.join(sys.argv[1], "*", "config.json"))):
            config, name = json.load(open(path)), path.split(os.sep)[-2]
            if config["model_type"] in FAMILIES:
                rows[FAMILIES[config["model_type"]]].append(row(config, dict(name=name, file=name)))
    elif os.path.exists(OUT):
        for key, old in json.load(open(OUT)).items():
            rows.get(key, []).extend(r for r in old if "file" in r)
    with open(OUT, "w") as f:
        f.write(f'{{"made_with": "transformers {transformers.__version__}, torch {torch.__version__}"')
        for key, some in rows.items():
            f.write(f', "{key}": [\n' + ",\n".join(json.dumps(r) for r in some) + "\n]")
        f.write("}\n")
    print(", ".join(f"{key}: {len(some)}" for key, some in rows.items()))


main()
