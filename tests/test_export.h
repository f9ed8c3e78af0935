/* §23: exported files, read again by a reader of GGUF that shares nothing with the writer, and
 * compared with the model under the permutations that the format asks for, written here as the
 * loops of its description. tests/parity_gguf.py is the same with llama.cpp as the reader. */

/* -- A reader ------------------------------------------------------------------------------- */
enum { GF_PAIRS = 64, GF_TENSORS = 256 };

typedef struct gf_pair {
    char key[128];
    i64 type, item, count, at; /* item, count: of a list; at: of the value in the file */
} gf_pair;

typedef struct gf_tensor {
    char name[64];
    i64 rank, dim[4], type, at, bytes;
} gf_tensor;

typedef struct gf_file {
    buffer text;
    i64 at, pairs, tensors, data;
    bool bad;
    gf_pair pair[GF_PAIRS];
    gf_tensor tensor[GF_TENSORS];
} gf_file;

static u64 gf_take(gf_file *f, int bytes) {
    u64 x = 0;
    if (f->at + bytes > f->text.n) return f->bad = true, 0;
    for (int i = 0; i < bytes; i++) x |= (u64)(u8)f->text.p[f->at + i] << 8 * i;
    f->at += bytes;
    return x;
}

/* A text, cut to the room there is; returns its length. */
static i64 gf_text(gf_file *f, char *out, i64 room) {
    const i64 n = (i64)gf_take(f, 8);
    if (f->bad || n < 0 || f->at + n > f->text.n) return f->bad = true, 0;
    if (out) snprintf(out, (size_t)room, "%.*s", (int)n, f->text.p + f->at);
    f->at += n;
    return n;
}

static void gf_skip(gf_file *f, i64 type) {
    static const int size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) gf_text(f, NULL, 0);
    else if (type < 0 || type > 12 || type == 9) f->bad = true;
    else gf_take(f, size[type]);
}

static void gf_read_pairs(gf_file *f) {
    for (i64 i = 0; i < f->pairs && !f->bad; i++) {
        gf_pair *p = &f->pair[i];
        CHECK(gf_text(f, p->key, sizeof p->key) < (i64)sizeof p->key);
        for (i64 k = 0; k < i; k++) CHECK(strcmp(p->key, f->pair[k].key) != 0);
        p->type = (i64)gf_take(f, 4);
        if (p->type == 9) p->item = (i64)gf_take(f, 4), p->count = (i64)gf_take(f, 8);
        p->at = f->at;
        if (p->type != 9) gf_skip(f, p->type);
        for (i64 k = 0; k < p->count && !f->bad; k++) gf_skip(f, p->item);
    }
}

/* Tensors follow each other without holes larger than the alignment asks for, up to the end. */
static void gf_read_tensors(gf_file *f) {
    i64 next = 0;
    for (i64 i = 0; i < f->tensors && !f->bad; i++) {
        gf_tensor *t = &f->tensor[i];
        i64 count = 1;
        CHECK(gf_text(f, t->name, sizeof t->name) < (i64)sizeof t->name);
        for (i64 k = 0; k < i; k++) CHECK(strcmp(t->name, f->tensor[k].name) != 0);
        t->rank = (i64)gf_take(f, 4);
        CHECK(t->rank == 1 || t->rank == 2);
        for (i64 d = 0; d < t->rank && d < 4; d++) count *= t->dim[d] = (i64)gf_take(f, 8);
        t->type = (i64)gf_take(f, 4), t->at = (i64)gf_take(f, 8);
        CHECK(t->at % 32 == 0 && t->at == next);
        if (t->type == 8) CHECK(t->dim[0] % 32 == 0);
        t->bytes = t->type == 0 ? 4 * count : t->type == 8 ? count / 32 * 34 : 2 * count;
        next = (t->at + t->bytes + 31) / 32 * 32;
    }
    f->data = (f->at + 31) / 32 * 32;
    CHECK(!f->bad && f->data + next == f->text.n);
}

static bool gf_open(gf_file *f, nxt_context *cx, const char *path) {
    memset(f, 0, sizeof *f);
    f->text.cx = cx;
    if (!OK(cx, file_read(cx, path, 1 << 30, &f->text))) return false;
    CHECK(f->text.n > 24 && !memcmp(f->text.p, "GGUF\3\0\0\0", 8));
    f->at = 8;
    f->tensors = (i64)gf_take(f, 8), f->pairs = (i64)gf_take(f, 8);
    CHECK(f->tensors > 0 && f->tensors <= GF_TENSORS && f->pairs > 0 && f->pairs <= GF_PAIRS);
    if (f->tensors > GF_TENSORS || f->pairs > GF_PAIRS) f->bad = true;
    gf_read_pairs(f);
    gf_read_tensors(f);
    return !f->bad;
}

static const gf_pair *gf_find(const gf_file *f, const char *key, i64 type) {
    for (i64 i = 0; i < f->pairs; i++)
        if (!strcmp(f->pair[i].key, key)) return CHECK(f->pair[i].type == type), &f->pair[i];
    return NULL;
}

static i64 gf_u32(gf_file *f, const char *key) { /* -1: not there */
    const gf_pair *p = gf_find(f, key, 4);
    return p ? (f->at = p->at, (i64)gf_take(f, 4)) : -1;
}

static int gf_bool(gf_file *f, const char *key) {
    const gf_pair *p = gf_find(f, key, 7);
    return p ? (f->at = p->at, (int)gf_take(f, 1)) : -1;
}

static float gf_float(gf_file *f, const char *key) {
    const gf_pair *p = gf_find(f, key, 6);
    return p ? (f->at = p->at, bits_float((u32)gf_take(f, 4))) : -1;
}

static bool gf_says(gf_file *f, const char *key, const char *text) {
    const gf_pair *p = gf_find(f, key, 8);
    char found[300];
    if (!p) return false;
    f->at = p->at;
    gf_text(f, found, sizeof found);
    return !strcmp(found, text);
}

/* Item i of a list of texts equals `text`. */
static bool gf_item_is(gf_file *f, const char *key, i64 i, const char *text) {
    const gf_pair *p = gf_find(f, key, 9);
    char found[300] = "";
    if (!p || p->item != 8 || i >= p->count) return false;
    f->at = p->at;
    for (i64 k = 0; k <= i; k++) gf_text(f, found, sizeof found);
    return !strcmp(found, text);
}

/* Item i of a list of numbers of four bytes. */
static u32 gf_item(gf_file *f, const char *key, i64 i) {
    const gf_pair *p = gf_find(f, key, 9);
    if (!p || i >= p->count) return 0xdead;
    f->at = p->at + 4 * i;
    return (u32)gf_take(f, 4);
}

/* -- Values ---------------------------------------------------------------------------------- */
/* A parameter of the model under its Hugging Face name, whole. */
static float *model_values(const nxt_model *m, const char *name, i64 *rows, i64 *cols) {
    nxt_param_info info;
    for (i64 i = 0; i < nxt_param_count(m); i++) {
        nxt_param_describe(m, i, &info);
        if (strcmp(info.name, name)) continue;
        float *x = malloc((size_t)(info.rows * info.cols) * sizeof *x);
        *rows = info.rows, *cols = info.cols;
        CHECK(nxt_param_read(m, i, 0, info.rows * info.cols, x) == NXT_OK);
        return x;
    }
    return NULL;
}

/* Rows of width w in another order: out[a][b][c] = in[b][a][c] for (A, B, C) rows of out. */
static void swap_rows(const float *in, float *out, i64 A, i64 B, i64 C, i64 w) {
    for (i64 a = 0; a < A; a++)
        for (i64 b = 0; b < B; b++)
            memcpy(out + (a * B + b) * C * w, in + (b * A + a) * C * w,
                   (size_t)(C * w) * sizeof *out);
}

/* What the file must hold: how = 's' the same, 't' transposed, 'n' q, k, v of each head to all q,
 * all k, all v; 'r' halves of `heads` heads to neighbours. */
static float *arranged(float *in, i64 rows, i64 cols, char how, i64 heads) {
    const i64 n = rows == 1 ? cols : rows, w = rows == 1 ? 1 : cols; /* vectors: rows of one */
    float *out = malloc((size_t)(rows * cols) * sizeof *out);
    if (how == 's') memcpy(out, in, (size_t)(rows * cols) * sizeof *out);
    else if (how == 'n') swap_rows(in, out, 3, heads, n / heads / 3, w);
    else if (how == 'r')
        for (i64 h = 0; h < heads; h++)
            swap_rows(in + h * (n / heads) * w, out + h * (n / heads) * w, n / heads / 2, 2, 1, w);
    else
        for (i64 r = 0; r < rows; r++)
            for (i64 c = 0; c < cols; c++) out[c * rows + r] = in[r * cols + c];
    free(in);
    return out;
}

/* x as the file's type would hold it; of q8_0 its own unit decides what is near enough. */
static bool value_is(const gf_file *f, const gf_tensor *t, i64 i, float x) {
    const u8 *p = (const u8 *)f->text.p + f->data + t->at;
    if (t->type == 0) return bits_float((u32)read_le(p + 4 * i, 4)) == x;
    const u16 half = (u16)read_le(p + (t->type == 8 ? i / 32 * 34 : 2 * i), 2);
    if (t->type == 1) return half == f32_to_f16(x);
    if (t->type == 30) return half == f32_to_bf16(x);
    const float unit = f16_to_f32(half), y = unit * (int8_t)p[i / 32 * 34 + 2 + i % 32];
    return t->type == 8 && fabsf(y - x) <= 0.57f * unit; /* and 127 of its roundings */
}

/* One tensor against the parameter `from`. type: of matrices in the file. */
static bool tensor_matches(const gf_file *f, const nxt_model *m, const char *name,
                           const char *from, char how, i64 heads, i64 type, float factor) {
    const gf_tensor *t = NULL;
    i64 rows, cols, wrong = 0;
    for (i64 i = 0; i < f->tensors; i++)
        if (!strcmp(f->tensor[i].name, name)) t = &f->tensor[i];
    float *x = model_values(m, from, &rows, &cols);
    if (!t || !x) return printf("  no %s\n", t ? from : name), free(x), false;
    const bool turned = how == 't' && rows > 1, vector = rows == 1;
    x = arranged(x, rows, cols, vector && how == 't' ? 's' : how, heads);
    const i64 inner = turned ? rows : cols, outer = turned ? cols : rows;
    bool shape = t->rank == (vector ? 1 : 2) && t->dim[0] == inner && t->type == (vector ? 0 : type);
    if (!vector) shape &= t->dim[1] == outer;
    for (i64 i = 0; shape && i < rows * cols; i++)
        wrong += !value_is(f, t, i, i < rows * cols / 3 ? x[i] * factor : x[i]);
    free(x);
    if (!shape || wrong) printf("  %s: %s, %d values wrong\n", name, shape ? "" : "shape", (int)wrong);
    return shape && !wrong;
}

typedef struct gf_name { const char *name, *from; char how; } gf_name;
#define GF_WB(NAME, FROM, HOW) {NAME ".weight", FROM ".weight", HOW}, {NAME ".bias", FROM ".bias", HOW}
static const gf_name neox_tensors[] = {
    {"token_embd.weight", "gpt_neox.embed_in.weight", 's'},
    GF_WB("output_norm", "gpt_neox.final_layer_norm", 's'),
    GF_WB("blk.%d.attn_norm", "gpt_neox.layers.%d.input_layernorm", 's'),
    GF_WB("blk.%d.attn_qkv", "gpt_neox.layers.%d.attention.query_key_value", 'n'),
    GF_WB("blk.%d.attn_output", "gpt_neox.layers.%d.attention.dense", 's'),
    GF_WB("blk.%d.ffn_norm", "gpt_neox.layers.%d.post_attention_layernorm", 's'),
    GF_WB("blk.%d.ffn_up", "gpt_neox.layers.%d.mlp.dense_h_to_4h", 's'),
    GF_WB("blk.%d.ffn_down", "gpt_neox.layers.%d.mlp.dense_4h_to_h", 's'),
    {"output.weight", "embed_out.weight", 's'},
};
static const gf_name gpt2_tensors[] = {
    {"token_embd.weight", "transformer.wte.weight", 's'},
    {"output.weight", "transformer.wte.weight", 's'},
    GF_WB("output_norm", "transformer.ln_f", 's'),
    GF_WB("blk.%d.attn_norm", "transformer.h.%d.ln_1", 's'),
    GF_WB("blk.%d.attn_qkv", "transformer.h.%d.attn.c_attn", 't'),
    GF_WB("blk.%d.attn_output", "transformer.h.%d.attn.c_proj", 't'),
    GF_WB("blk.%d.ffn_norm", "transformer.h.%d.ln_2", 's'),
    GF_WB("blk.%d.ffn_up", "transformer.h.%d.mlp.c_fc", 't'),
    GF_WB("blk.%d.ffn_down", "transformer.h.%d.mlp.c_proj", 't'),
};
static const gf_name llama_tensors[] = {
    {"token_embd.weight", "model.embed_tokens.weight", 's'},
    {"output_norm.weight", "model.norm.weight", 's'},
    {"blk.%d.attn_norm.weight", "model.layers.%d.input_layernorm.weight", 's'},
    {"blk.%d.ffn_norm.weight", "model.layers.%d.post_attention_layernorm.weight", 's'},
    GF_WB("blk.%d.attn_q", "model.layers.%d.self_attn.q_proj", 'r'),
    GF_WB("blk.%d.attn_k", "model.layers.%d.self_attn.k_proj", 'r'),
    GF_WB("blk.%d.attn_v", "model.layers.%d.self_attn.v_proj", 's'),
    GF_WB("blk.%d.attn_output", "model.layers.%d.self_attn.o_proj", 's'),
    GF_WB("blk.%d.ffn_gate", "model.layers.%d.mlp.gate_proj", 's'),
    GF_WB("blk.%d.ffn_up", "model.layers.%d.mlp.up_proj", 's'),
    GF_WB("blk.%d.ffn_down", "model.layers.%d.mlp.down_proj", 's'),
    {"output.weight", "lm_head.weight", 's'},
};
#undef GF_WB

/* All tensors of a table that the model has parameters for; returns how many there are. */
static i64 tensors_match(const gf_file *f, const nxt_model *m, const gf_name *names, i64 count,
                         i64 type, bool by_layer) {
    char name[64], from[128];
    nxt_param_info info;
    i64 matched = 0;
    for (i64 i = 0; i < count; i++)
        for (int l = 0; l < (strchr(names[i].name, '%') ? m->s.L : 1); l++) {
            bool there = false;
            snprintf(name, sizeof name, names[i].name, l);
            snprintf(from, sizeof from, names[i].from, l);
            for (i64 k = 0; k < nxt_param_count(m); k++) {
                nxt_param_describe(m, k, &info);
                there |= !strcmp(info.name, from);
            }
            const i64 heads = strstr(name, "attn_k.") ? m->s.G : m->s.H;
            const bool scaled = by_layer && strstr(name, "attn_qkv");
            if (there && ++matched)
                CHECK(tensor_matches(f, m, name, from, names[i].how, heads, type,
                                     scaled ? 1 / (float)(l + 1) : 1));
        }
    return matched;
}

/* Loads a model and exports it; false when that fails. */
static bool export_and_open(gf_file *f, nxt_context *cx, nxt_model **m, const char *dir,
                            const char *type) {
    nxt_export_config c = nxt_export_config_default();
    char path[300];
    snprintf(path, sizeof path, "%s/model.gguf", scratch("export"));
    memset(f, 0, sizeof *f);
    f->text.cx = cx;
    c.dtype = type;
    return OK(cx, nxt_model_load(m, cx, dir)) && OK(cx, nxt_model_export(*m, path, &c))
           && gf_open(f, cx, path);
}

static void export_close(gf_file *f, nxt_model *m) {
    buffer_free(&f->text);
    nxt_model_destroy(m);
}

/* -- The tests -------------------------------------------------------------------------------- */
/* The committed model in every type, with its tokenizer. */
static void test_export_pico(void) {
    static const struct { const char *name; i64 tensor, file; } types[] = {
        {NULL, 1, 1}, {"f32", 0, 0}, {"f16", 1, 1}, {"bf16", 30, 32}, {"q8_0", 8, 7}};
    static gf_file f;
    nxt_context *cx = test_context();
    if (!path_exists("data/pico-neox/model.safetensors")) SKIP("data/pico-neox holds no weights");
    for (i64 i = 0; i < COUNT(types); i++) {
        nxt_model *m = NULL;
        if (export_and_open(&f, cx, &m, "data/pico-neox", types[i].name)) {
            CHECK(tensors_match(&f, m, neox_tensors, COUNT(neox_tensors), types[i].tensor, false)
                  == f.tensors);
            CHECK(gf_says(&f, "general.architecture", "gptneox"));
            CHECK(gf_u32(&f, "general.file_type") == types[i].file);
            CHECK(gf_u32(&f, "general.quantization_version") == 2);
        }
        if (i == 0 && !f.bad) {
            CHECK(gf_u32(&f, "gptneox.context_length") == 256);
            CHECK(gf_u32(&f, "gptneox.embedding_length") == 128);
            CHECK(gf_u32(&f, "gptneox.block_count") == 5);
            CHECK(gf_u32(&f, "gptneox.feed_forward_length") == 512);
            CHECK(gf_u32(&f, "gptneox.attention.head_count") == 4);
            CHECK(gf_u32(&f, "gptneox.rope.dimension_count") == 16);
            CHECK(gf_u32(&f, "gptneox.vocab_size") == 1024);
            CHECK(gf_float(&f, "gptneox.attention.layer_norm_epsilon") == 1e-5f);
            CHECK(gf_bool(&f, "gptneox.use_parallel_residual") == 1);
            CHECK(!gf_find(&f, "gptneox.rope.freq_base", 6));
            CHECK(gf_says(&f, "tokenizer.ggml.model", "gpt2"));
            CHECK(gf_says(&f, "tokenizer.ggml.pre", "olmo"));
            CHECK(gf_find(&f, "tokenizer.ggml.tokens", 9)->count == 1024);
            CHECK(gf_find(&f, "tokenizer.ggml.merges", 9)->count == 763);
            CHECK(gf_item_is(&f, "tokenizer.ggml.merges", 0, "\xc4\xa0 a"));
            CHECK(gf_item_is(&f, "tokenizer.ggml.tokens", 0, "<|endoftext|>"));
            CHECK(gf_item_is(&f, "tokenizer.ggml.tokens", 1021, "    "));
            CHECK(gf_item(&f, "tokenizer.ggml.token_type", 0) == 3);
            CHECK(gf_item(&f, "tokenizer.ggml.token_type", 2) == 1);
            CHECK(gf_item(&f, "tokenizer.ggml.token_type", 1021) == 4);
            CHECK(gf_u32(&f, "tokenizer.ggml.bos_token_id") == 0);
            CHECK(gf_u32(&f, "tokenizer.ggml.eos_token_id") == 0);
            CHECK(gf_bool(&f, "tokenizer.ggml.add_bos_token") == 0);
        }
        export_close(&f, m);
    }
    nxt_context_destroy(cx);
}

/* GPT-NeoX without biases, with a tied head, with stretched positions. */
static void test_export_neox(void) {
    static gf_file f;
    nxt_context *cx = test_context();
    nxt_model *m = NULL;
    const char *dir = micro_model(cx, "export-neox", ", \"attention_bias\": false, "
                                  "\"tie_word_embeddings\": true, \"rotary_emb_base\": 500, "
                                  "\"use_parallel_residual\": false", "f32");
    if (export_and_open(&f, cx, &m, dir, "f32")) {
        const i64 n = tensors_match(&f, m, neox_tensors, COUNT(neox_tensors), 0, false);
        CHECK(n + 2 * m->s.L + 1 == f.tensors);
        CHECK(tensor_matches(&f, m, "output.weight", "gpt_neox.embed_in.weight", 's', 1, 0, 1));
        i64 zeros = 0;
        for (i64 i = 0; i < f.tensors; i++) {
            const gf_tensor *t = &f.tensor[i];
            if (!strstr(t->name, "attn_qkv.bias") && !strstr(t->name, "attn_output.bias")) continue;
            CHECK(t->rank == 1 && t->dim[0] == (strstr(t->name, "qkv") ? 96 : 32) && ++zeros);
            for (i64 k = 0; k < t->dim[0]; k++) CHECK(value_is(&f, t, k, 0));
        }
        CHECK(zeros == 4);
        CHECK(gf_float(&f, "gptneox.rope.freq_base") == 500);
        CHECK(gf_u32(&f, "gptneox.rope.dimension_count") == 4);
        CHECK(gf_bool(&f, "gptneox.use_parallel_residual") == 0);
    }
    export_close(&f, m);
    m = NULL;
    if (export_and_open(&f, cx, &m, "tests/golden/neox-linear", "f32")) {
        CHECK(gf_says(&f, "gptneox.rope.scaling.type", "linear"));
        CHECK(gf_float(&f, "gptneox.rope.scaling.factor") == 4);
        CHECK(gf_says(&f, "tokenizer.ggml.model", "none"));
        CHECK(!gf_find(&f, "tokenizer.ggml.tokens", 9));
    }
    export_close(&f, m);
    nxt_context_destroy(cx);
}

/* Turned matrices, the head a copy; attention scaled by layer: in q. */
static void test_export_gpt2(void) {
    static gf_file f;
    static const char *const names[] = {"gpt2-plain", "gpt2-bare"};
    nxt_context *cx = test_context();
    for (int i = 0; i < 2; i++) {
        nxt_model *m = NULL;
        char dir[64];
        snprintf(dir, sizeof dir, "tests/golden/%s", names[i]);
        if (export_and_open(&f, cx, &m, dir, "f32")) {
            CHECK(tensors_match(&f, m, gpt2_tensors, COUNT(gpt2_tensors), 0, i == 1) + 1
                  == f.tensors);
            CHECK(tensor_matches(&f, m, "position_embd.weight", "transformer.wpe.weight", 's', 1,
                                 0, 1));
            CHECK(gf_u32(&f, "gpt2.context_length") == (i ? 24 : 32));
            CHECK(gf_u32(&f, "gpt2.feed_forward_length") == (i ? 30 : 64));
            CHECK(gf_float(&f, "gpt2.attention.layer_norm_epsilon") == (i ? 1e-3f : 1e-5f));
            CHECK(gf_u32(&f, "gpt2.rope.dimension_count") == -1);
        }
        export_close(&f, m);
        m = NULL;
        if (i == 0 && export_and_open(&f, cx, &m, dir, "f16")) /* positions are added to f32 */
            CHECK(tensor_matches(&f, m, "position_embd.weight", "transformer.wpe.weight", 's', 1,
                                 0, 1));
        if (i == 0) export_close(&f, m);
    }
    nxt_context_destroy(cx);
}

/* Rows of q and k side by side; fewer heads of k; a tied head is absent; stretched waves. */
static void test_export_llama(void) {
    static gf_file f;
    static const struct { const char *dir, *name; i64 more; } models[] = {
        {"tests/golden/llama-grouped", "llama", 0}, {"tests/golden/llama-tied", "llama", 1}};
    nxt_context *cx = test_context();
    for (int i = 0; i < 2; i++) {
        nxt_model *m = NULL;
        if (export_and_open(&f, cx, &m, models[i].dir, "f32")) {
            CHECK(tensors_match(&f, m, llama_tensors, COUNT(llama_tensors), 0, false)
                  + models[i].more == f.tensors);
            CHECK(gf_u32(&f, "llama.attention.head_count_kv") == (i ? 4 : 2));
            CHECK(gf_u32(&f, "llama.attention.key_length") == (i ? 12 : 4));
            CHECK(gf_u32(&f, "llama.attention.value_length") == (i ? 12 : 4));
            CHECK(gf_float(&f, "llama.rope.freq_base") == 500);
            CHECK(gf_float(&f, "llama.attention.layer_norm_rms_epsilon") == (i ? 1e-3f : 1e-6f));
        }
        for (i64 k = 0; i == 1 && k < f.tensors; k++) {
            const gf_tensor *t = &f.tensor[k];
            if (strcmp(t->name, "rope_freqs.weight")) continue;
            CHECK(t->dim[0] == 6 && t->type == 0);
            for (int j = 0; j < 6; j++) { /* the formula of Llama 3, in double */
                const double wave = 2 * 3.14159265358979 * pow(500, j / 6.0);
                const double smooth = (128 / wave - 1) / (4 - 1);
                const double slow = wave < 32 ? 1 : wave > 128 ? 8
                                    : 1 / ((1 - smooth) / 8 + smooth);
                const u8 *p = (const u8 *)f.text.p + f.data + t->at + 4 * j;
                CHECK(fabs(bits_float((u32)read_le(p, 4)) / slow - 1) < 1e-5);
            }
        }
        export_close(&f, m);
    }
    nxt_model *m = NULL;
    if (export_and_open(&f, cx, &m, "tests/golden/qwen2-tiny", "f32")) {
        CHECK(gf_says(&f, "general.architecture", "qwen2"));
        CHECK(tensor_matches(&f, m, "blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight",
                             's', 1, 0, 1)); /* its pass turns halves, as ours */
        CHECK(tensor_matches(&f, m, "blk.1.attn_k.bias", "model.layers.1.self_attn.k_proj.bias",
                             's', 1, 0, 1));
    }
    export_close(&f, m);
    nxt_context_destroy(cx);
}

/* A tokenizer of SentencePiece's kind in every spelling that files have. */
static const char spm_head[] =
    "{\"added_tokens\": [{\"id\": 0, \"content\": \"<unk>\", \"special\": true}, {\"id\": 1, "
    "\"content\": \"<s>\", \"special\": true}, {\"id\": 11, \"content\": \"<chat>\", \"special\": "
    "false}], \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", "
    "\"prepend\": \"\xe2\x96\x81\"}]}, \"post_processor\": {\"type\": \"TemplateProcessing\", "
    "\"single\": [{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": {}}]}, \"model\": {\"type\": "
    "\"BPE\", \"unk_token\": \"<unk>\", \"byte_fallback\": true, \"vocab\": {\"<unk>\": 0, \"<s>\": 1, "
    "\"<0x0A>\": 2, \"a\": 3, \"b\": 4, \"c\": 5, \"ab\": 6, \"bc\": 7, \"abc\": 8}, \"merges\": ";
static void test_export_spm(void) {
    static const char *const merges[] = {
        "[\"b c\", \"a b\", \"ab c\", \"a bc\"]}}",
        "[[\"b\", \"c\"], [\"a\", \"b\"], [\"ab\", \"c\"], [\"a\", \"bc\"]]}}"};
    static gf_file f;
    char text[2048];
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "export-spm", "", "f32");
    for (int i = 0; i < 2; i++) {
        nxt_model *m = NULL;
        snprintf(text, sizeof text, "%s%s", spm_head, merges[i]);
        micro_file(dir, "tokenizer.json", text);
        micro_file(dir, "tokenizer_config.json", "{\"eos_token\": {\"content\": \"<chat>\"}, "
                   "\"chat_template\": \"{{ x }}\", \"pad_token\": null}");
        if (!export_and_open(&f, cx, &m, dir, "q8_0")) break;
        static const u32 type[] = {2, 3, 6, 1, 1, 1, 1, 1, 1, 5, 5, 4, 5};
        static const float score[] = {0, 0, 0, 0, 0, 0, -2, -1, -3, 0, 0, 0, 0};
        CHECK(gf_says(&f, "tokenizer.ggml.model", "llama"));
        CHECK(gf_find(&f, "tokenizer.ggml.tokens", 9)->count == MICRO_VOCABULARY);
        for (int k = 0; k < COUNT(type); k++) {
            CHECK(gf_item(&f, "tokenizer.ggml.token_type", k) == type[k]);
            CHECK(bits_float(gf_item(&f, "tokenizer.ggml.scores", k)) == score[k]);
        }
        CHECK(gf_item_is(&f, "tokenizer.ggml.tokens", 10, "[PAD10]"));
        CHECK(!gf_find(&f, "tokenizer.ggml.merges", 9));
        CHECK(gf_bool(&f, "tokenizer.ggml.add_space_prefix") == 1);
        CHECK(gf_bool(&f, "tokenizer.ggml.add_bos_token") == 1);
        CHECK(gf_u32(&f, "tokenizer.ggml.bos_token_id") == 0); /* config.json's */
        CHECK(gf_u32(&f, "tokenizer.ggml.eos_token_id") == 11);
        CHECK(gf_u32(&f, "tokenizer.ggml.unknown_token_id") == 0);
        CHECK(gf_u32(&f, "tokenizer.ggml.padding_token_id") == -1);
        CHECK(gf_says(&f, "tokenizer.chat_template", "{{ x }}"));
        export_close(&f, m);
    }
    nxt_context_destroy(cx);
}

/* GPT-2's own two files, and the cutters of Llama 3 and Qwen2 by name. */
static void test_export_bpe(void) {
#define CUT_HEAD "{\"added_tokens\": [], \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": " \
    "[{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}"
#define CUT_TAIL "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}}, " \
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]}, \"model\": " \
    "{\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]}}"
    static const char *const files[][2] = {{CUT_HEAD "{1,3}" CUT_TAIL, "llama-bpe"},
                                           {CUT_HEAD CUT_TAIL, "qwen2"}, {NULL, "gpt-2"}};
    static gf_file f;
    char path[400];
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "export-bpe", "", "f32");
    for (int i = 0; i < 3; i++) {
        nxt_model *m = NULL;
        if (files[i][0]) micro_file(dir, "tokenizer.json", files[i][0]);
        else {
            snprintf(path, sizeof path, "%s/tokenizer.json", dir);
            unlink(path);
            micro_file(dir, "vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 2}");
            micro_file(dir, "merges.txt", "#version: 0.2\na b\r\n\n");
        }
        if (!export_and_open(&f, cx, &m, dir, "f32")) break;
        CHECK(gf_says(&f, "tokenizer.ggml.pre", files[i][1]));
        CHECK(gf_find(&f, "tokenizer.ggml.merges", 9)->count == 1);
        CHECK(gf_item_is(&f, "tokenizer.ggml.merges", 0, "a b"));
        CHECK(!gf_find(&f, "tokenizer.ggml.scores", 9));
        export_close(&f, m);
    }
    nxt_context_destroy(cx);
#undef CUT_HEAD
#undef CUT_TAIL
}

/* Exports and expects a sentence; no file, and nothing beside it, may be left. */
static void export_refused(nxt_context *cx, const char *dir, const char *type, nxt_status expected,
                           const char *words) {
    nxt_export_config c = nxt_export_config_default();
    nxt_model *m;
    char out[300], path[400];
    snprintf(out, sizeof out, "%s", scratch("export"));
    snprintf(path, sizeof path, "%s/model.gguf", out);
    c.dtype = type;
    if (!OK(cx, nxt_model_load(&m, cx, dir))) return;
    const nxt_status status = nxt_model_export(m, path, &c);
    if (status != expected || !strstr(cx->message, words))
        printf("  %s \"%s\"\n", nxt_status_name(status), status ? cx->message : "");
    CHECK(status == expected && strstr(cx->message, words));
    nxt_model_destroy(m);
    CHECK(rmdir(out) == 0); /* hence empty */
}

static void test_export_refused(void) {
    static const struct { const char *json, *words; nxt_status status; } bad[] = {
        {"{\"model\": {\"type\": \"Unigram\", \"vocab\": []}}", "Unigram", NXT_UNSUPPORTED},
        {"{\"model\": {\"vocab\": 3}}", "vocabulary", NXT_UNSUPPORTED},
        {"[]", "vocabulary", NXT_UNSUPPORTED},
        {"{\"model\": {\"vocab\": {\"a\": 272}}}", "no id below 272", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": -1}}}", "no id below 272", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": \"b\"}}}", "no id below 272", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0, \"b\": 0}}}", "have one id", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0, \"a\": 1}}}", "have one text", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"[PAD1]\": 0}}}", "have one text", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}}, \"added_tokens\": [{\"id\": 0, \"content\": \"b\"}]}",
         "have one id", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}}, \"added_tokens\": [{\"content\": \"b\"}]}",
         "no id below", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}}, \"added_tokens\": [7]}", "without text", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]}}", "merge 0", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a\"]]}}", "merge 0", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a\", 1]]}}", "merge 0", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": [[\"a c\", \"b\"]]}}", "merge 0",
         NXT_FORMAT},
        {"{\"model\": {\"byte_fallback\": true, \"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]}}",
         "\"aa\", which is no token", NXT_FORMAT},
        {"{\"model\": {\"vocab\": {\"a\": 0}}}", "pre-tokenizer", NXT_UNSUPPORTED},
        {"{\"pre_tokenizer\": {\"type\": \"Digits\"}, \"model\": {\"vocab\": {\"a\": 0}}}",
         "pre-tokenizer", NXT_UNSUPPORTED},
        {"{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true}, \"model\": "
         "{\"vocab\": {\"a\": 0}}}", "pre-tokenizer", NXT_UNSUPPORTED},
        {"{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\"}, "
         "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}]}, \"model\": {\"vocab\": {\"a\": "
         "0}}}", "pre-tokenizer", NXT_UNSUPPORTED},
        {"{\"model\": ", "tokenizer.json:1", NXT_FORMAT},
        {"{\"normalizer\": {\"type\": \"Lowercase\"}, \"model\": {\"vocab\": {\"a\": 0}}}",
         "this normalizer", NXT_UNSUPPORTED},
        {"{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, 7]}, "
         "\"model\": {\"vocab\": {\"a\": 0}}}", "this normalizer", NXT_UNSUPPORTED},
        {"{\"normalizer\": {\"type\": \"NFC\"}, \"model\": {\"byte_fallback\": true, \"vocab\": "
         "{\"a\": 0}}}", "this normalizer", NXT_UNSUPPORTED},
    };
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "export-bad", "", "f32");
    for (i64 i = 0; i < COUNT(bad); i++) {
        micro_file(dir, "tokenizer.json", bad[i].json);
        export_refused(cx, dir, "f16", bad[i].status, bad[i].words);
    }
    export_refused(cx, "tests/golden/neo-window", "f32", NXT_UNSUPPORTED, "gpt_neo");
    export_refused(cx, "tests/golden/gpt2-untied", "f32", NXT_UNSUPPORTED, "its activation");
    export_refused(cx, "tests/golden/neox-variants", "f32", NXT_UNSUPPORTED, "odd size");
    export_refused(cx, "tests/golden/gpt2-plain", "q4", NXT_ARGUMENT, "q4");
    /* what a type cannot hold */
    char big[300];
    snprintf(big, sizeof big, "%s",
             micro_model(cx, "export-big", ", \"initializer_range\": 1e9", "f32"));
    export_refused(cx, big, "f16", NXT_FORMAT, "too large for f16");
    export_refused(cx, big, "q8_0", NXT_FORMAT, "too large for q8_0");
    nxt_context_destroy(cx);
}

/* One safetensors file; the other files of its directory are not this command's business. */
static void test_export_safetensors(void) {
    nxt_context *cx = test_context();
    nxt_model *m, *again = NULL;
    nxt_export_config c = nxt_export_config_default();
    char dir[300], path[400], shard[400];
    snprintf(dir, sizeof dir, "%s", micro_model(cx, "export-one", "", "f32"));
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    snprintf(shard, sizeof shard, "%s/model-00001-of-00002.safetensors", dir);
    micro_file(dir, "model-00001-of-00002.safetensors", "not ours");
    c.dtype = "bf16";
    if (OK(cx, nxt_model_load(&m, cx, dir)) && OK(cx, nxt_model_export(m, path, &c))
        && OK(cx, nxt_model_load(&again, cx, dir))) {
        CHECK(again->stored == BF16 && again->param_count == m->param_count);
        CHECK(path_exists(shard));
        float x[8], y[8];
        CHECK(OK(cx, nxt_param_read(m, 3, 0, 8, x)) && OK(cx, nxt_param_read(again, 3, 0, 8, y)));
        for (int i = 0; i < 8; i++) CHECK(f32_to_bf16(x[i]) == f32_to_bf16(y[i]));
    }
    nxt_model_destroy(again);
    c.format = "onnx";
    CHECK(nxt_model_export(m, path, &c) == NXT_ARGUMENT && strstr(cx->message, "onnx"));
    c.format = NULL;
    CHECK(nxt_model_export(m, dir, &c) == NXT_ARGUMENT);
    c.format = "gguf", c.dtype = "f32", c.tokenizer = "build/nowhere";
    CHECK(nxt_model_export(m, path, &c) == NXT_IO && strstr(cx->message, "no tokenizer.json"));
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

/* Adapters go into the weights: the file is that of the merged directory. */
static void test_export_adapter(void) {
    static const char *const cases[][2] = {{"neox-linear", "lora-neox"},
                                           {"gpt2-plain", "lora-gpt2"},
                                           {"llama-grouped", "lora-llama"}};
    nxt_context *cx = test_context();
    nxt_save_config save_whole = nxt_save_config_default();
    char base[300], adapter[300], merged[300], one[400], two[400], plain[400];
    snprintf(merged, sizeof merged, "%s", scratch("export-merged"));
    snprintf(one, sizeof one, "%s/one.gguf", merged);
    snprintf(two, sizeof two, "%s/two.gguf", merged);
    snprintf(plain, sizeof plain, "%s/plain.gguf", merged);
    save_whole.merge = 1;
    for (i64 i = 0; i < COUNT(cases); i++) {
        nxt_model *m = NULL, *again = NULL;
        file_map a = {0}, b = {0}, c = {0};
        snprintf(base, sizeof base, "tests/golden/%s", cases[i][0]);
        snprintf(adapter, sizeof adapter, "tests/golden/%s", cases[i][1]);
        if (OK(cx, nxt_model_load(&m, cx, base)) && OK(cx, nxt_model_export(m, plain, NULL))
            && OK(cx, nxt_lora_load(m, adapter)) && OK(cx, nxt_model_export(m, one, NULL))
            && OK(cx, nxt_model_save(m, merged, &save_whole))
            && OK(cx, nxt_model_load(&again, cx, merged))
            && OK(cx, nxt_model_export(again, two, NULL)) && OK(cx, file_map_open(cx, one, &a))
            && OK(cx, file_map_open(cx, two, &b)) && OK(cx, file_map_open(cx, plain, &c))) {
            CHECK(a.n == b.n && !memcmp(a.p, b.p, (size_t)a.n));
            CHECK(a.n == c.n && memcmp(a.p, c.p, (size_t)a.n) != 0);
        }
        file_map_close(&a), file_map_close(&b), file_map_close(&c);
        nxt_model_destroy(again);
        nxt_model_destroy(m);
    }
    nxt_context_destroy(cx);
}
