/* Golden files: Hugging Face's own numbers (tests/make_golden.py, versions in golden/MADE.md).
 * Tolerances are those of float32 rounding: the goldens themselves agree with float64 to 5e-7
 * (logits) and 1.2e-6 (gradients) of a tensor's largest value; ours are held to 2e-5. */

typedef struct golden {
    nxt_context *cx;
    nxt_model *m;
    weights file; /* golden.safetensors */
} golden;

static float *golden_floats(const golden *g, const char *name, i64 *count) {
    const tensor *t = weights_find(&g->file, name);
    CHECK(t != NULL);
    if (!t) return NULL;
    *count = t->count;
    float *x = malloc((size_t)t->count * sizeof *x + 1);
    memcpy(x, t->p, (size_t)t->count * sizeof *x);
    return x;
}

static i32 *golden_ints(const golden *g, const char *name, i64 *count) {
    return (i32 *)(void *)golden_floats(g, name, count); /* four bytes each */
}

/* A model, or an adapter on the model that it names. */
static bool golden_open(golden *g, nxt_context *cx, const char *name) {
    char path[256];
    json *config;
    arena a = {.cx = cx};
    *g = (golden){.cx = cx};
    snprintf(path, sizeof path, "tests/golden/%s/adapter_config.json", name);
    const bool adapter = path_exists(path);
    const char *base = arena_print(&a, "tests/golden/%s", name);
    if (adapter && OK(cx, json_read(&a, path, 1 << 20, &config)))
        base = json_text(config, "base_model_name_or_path", "?");
    const bool loaded = OK(cx, nxt_model_load(&g->m, cx, base));
    arena_free(&a);
    if (!loaded) return false;
    snprintf(path, sizeof path, "tests/golden/%s", name);
    if (adapter && !OK(cx, nxt_lora_load(g->m, path))) return false;
    snprintf(path, sizeof path, "tests/golden/%s/golden.safetensors", name);
    return OK(cx, weights_open_file(cx, path, &g->file));
}

static void golden_close(golden *g) {
    weights_close(&g->file);
    nxt_model_destroy(g->m);
}

/* The largest difference relative to the largest value. */
static double worst_difference(const float *a, const float *b, i64 n) {
    double largest = 1e-30, worst = 0;
    for (i64 i = 0; i < n; i++) {
        largest = fmax(largest, fabs((double)b[i]));
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        if (!isfinite(a[i])) return INFINITY;
    }
    return worst / largest;
}

/* (B,T) ids and labels of Hugging Face's form as examples: a label trains its own token. */
static nxt_dataset *golden_data(const golden *g, const i32 *ids, const i32 *labels, i64 B, i64 T) {
    u8 *trained = malloc((size_t)(B * T));
    i64 *offsets = malloc((size_t)(B + 1) * sizeof *offsets);
    nxt_dataset *d;
    for (i64 i = 0; i < B * T; i++) trained[i] = labels[i] >= 0;
    for (i64 b = 0; b <= B; b++) offsets[b] = b * T;
    CHECK(nxt_dataset_from_tokens(&d, g->cx, ids, trained, offsets, B) == NXT_OK);
    free(trained);
    free(offsets);
    return d;
}

static void check_logits(golden *g, const i32 *ids, i64 B, i64 T) {
    i64 n;
    float *expected = golden_floats(g, "logits", &n), *got = malloc((size_t)n * sizeof *got);
    for (i64 b = 0; b < B; b++)
        OK(g->cx, nxt_logits(g->m, ids + b * T, T, got + b * T * g->m->s.V));
    CHECK(worst_difference(got, expected, n) < 2e-5);
    free(expected);
    free(got);
}

static void check_gradients(golden *g, const nxt_dataset *d, i64 B) {
    i64 n;
    double loss = 0;
    float *expected = golden_floats(g, "loss", &n);
    OK(g->cx, nxt_grad_zero(g->m));
    OK(g->cx, nxt_backward(g->m, d, 0, B, &loss));
    CHECK(fabs(loss - expected[0]) < 2e-6 * expected[0]);
    free(expected);
    for (i64 i = 0; i < g->m->param_count; i++) {
        char name[256];
        if (g->m->params[i].frozen) continue;
        snprintf(name, sizeof name, "grad.%s", g->m->params[i].name);
        expected = golden_floats(g, name, &n);
        if (!expected) continue;
        float *got = malloc((size_t)n * sizeof *got);
        OK(g->cx, nxt_grad_read(g->m, i, 0, n, got));
        const double worst = worst_difference(got, expected, n);
        if (worst >= 2e-5) printf("  %s: %.2e\n", name, worst);
        CHECK(worst < 2e-5);
        free(got);
        free(expected);
    }
    OK(g->cx, nxt_grad_zero(g->m));
}

/* Ten steps of AdamW with decay groups, warm-up, linear decay and clipping: the batches of
 * all steps are one dataset, read in order. */
static void check_ten_steps(golden *g, i64 B, i64 T) {
    i64 n;
    i32 *ids = golden_ints(g, "step_ids", &n), *labels = golden_ints(g, "step_labels", &n);
    float *losses = golden_floats(g, "step_losses", &n), *norms = golden_floats(g, "step_grad_norms", &n);
    float *lrs = golden_floats(g, "step_lrs", &n);
    nxt_dataset *d = golden_data(g, ids, labels, 10 * B, T);
    nxt_train_config c = nxt_train_config_default();
    nxt_trainer *t;
    c.learning_rate = 1e-3, c.weight_decay = 0.1, c.warmup_steps = 2, c.max_steps = 10;
    c.batch_size = B, c.shuffle = 0;
    if (OK(g->cx, nxt_trainer_create(&t, g->m, d, &c))) {
        for (int k = 0; k < 10; k++) {
            nxt_step_info s;
            if (!OK(g->cx, nxt_trainer_step(t, &s))) break;
            CHECK(fabs(s.loss - losses[k]) < 1e-5 * losses[k]);
            CHECK(fabs(s.grad_norm - norms[k]) < 2e-5 * norms[k]);
            CHECK(fabs(s.learning_rate - lrs[k]) < 1e-9);
        }
        for (i64 i = 0; i < g->m->param_count; i++) {
            char name[256];
            snprintf(name, sizeof name, "after.%s", g->m->params[i].name);
            if (!weights_find(&g->file, name)) continue;
            float *expected = golden_floats(g, name, &n), *got = malloc((size_t)n * sizeof *got);
            OK(g->cx, nxt_param_read(g->m, i, 0, n, got));
            CHECK(worst_difference(got, expected, n) < 2e-5);
            free(expected);
            free(got);
        }
    }
    nxt_trainer_destroy(t);
    nxt_dataset_destroy(d);
    free(ids), free(labels), free(losses), free(norms), free(lrs);
}

static void check_golden(const char *name, const char *cpu) {
    golden g;
    nxt_context *cx = context_with(cpu, 2);
    if (!cx) return;
    if (golden_open(&g, cx, name)) {
        i64 n;
        const tensor *t = weights_find(&g.file, "input_ids");
        const i64 B = t->dim[0], T = t->dim[1];
        i32 *ids = golden_ints(&g, "input_ids", &n), *labels = golden_ints(&g, "labels", &n);
        nxt_dataset *d = golden_data(&g, ids, labels, B, T);
        check_logits(&g, ids, B, T);
        check_gradients(&g, d, B);
        check_ten_steps(&g, B, T);
        nxt_dataset_destroy(d);
        free(ids), free(labels);
    }
    golden_close(&g);
    nxt_context_destroy(cx);
}

static void golden_at_every_level(const char *name) {
    nxt_context *cx = test_context();
    const int best = cpu_level();
    nxt_context_destroy(cx);
    for (int level = 0; level <= best; level++) check_golden(name, cpu_names[level]);
}

static void test_golden_parallel_025(void) { golden_at_every_level("neox-parallel-025"); }
static void test_golden_parallel_100(void) { golden_at_every_level("neox-parallel-100"); }
static void test_golden_sequential_025(void) { golden_at_every_level("neox-sequential-025"); }
static void test_golden_sequential_100(void) { golden_at_every_level("neox-sequential-100"); }
static void test_golden_variants(void) { golden_at_every_level("neox-variants"); }
static void test_golden_linear(void) { golden_at_every_level("neox-linear"); }
static void test_golden_gpt2_plain(void) { golden_at_every_level("gpt2-plain"); }
static void test_golden_gpt2_bare(void) { golden_at_every_level("gpt2-bare"); }
static void test_golden_gpt2_untied(void) { golden_at_every_level("gpt2-untied"); }
static void test_golden_neo_window(void) { golden_at_every_level("neo-window"); }
static void test_golden_llama_grouped(void) { golden_at_every_level("llama-grouped"); }
static void test_golden_llama_tied(void) { golden_at_every_level("llama-tied"); }
static void test_golden_qwen2(void) { golden_at_every_level("qwen2-tiny"); }

/* Layers that run again in backward: the same gradients, bit for bit, from less memory. */
static void check_recompute(nxt_context *cx, const char *name) {
    golden g;
    if (!golden_open(&g, cx, name)) return;
    i64 n = 0, elements = 0;
    const tensor *t = weights_find(&g.file, "input_ids");
    i32 *ids = golden_ints(&g, "input_ids", &n), *labels = golden_ints(&g, "labels", &n);
    nxt_dataset *d = golden_data(&g, ids, labels, t->dim[0], t->dim[1]);
    float *first = NULL;
    double loss[2] = {0};
    nxt_memory_plan plan[2];
    for (int on = 0; on < 2; on++) {
        nxt_model_gradient_checkpointing(g.m, on);
        nxt_model_memory(g.m, n, 1, &plan[on]);
        OK(cx, nxt_grad_zero(g.m));
        OK(cx, nxt_backward(g.m, d, 0, t->dim[0], &loss[on]));
        elements = g.m->trained;
        if (!on) {
            first = malloc((size_t)elements * sizeof *first);
            memcpy(first, g.m->grads, (size_t)elements * sizeof *first);
        }
    }
    CHECK(loss[0] == loss[1] && !memcmp(first, g.m->grads, (size_t)elements * sizeof *first));
    CHECK(plan[1].activations < plan[0].activations);
    free(first), free(ids), free(labels);
    nxt_dataset_destroy(d);
    golden_close(&g);
}

static void test_golden_recompute(void) {
    static const char *const name[] = {"neox-parallel-025", "neox-variants", "gpt2-plain",
                                       "neo-window", "llama-grouped", "lora-neox", "lora-llama"};
    nxt_context *cx = test_context();
    for (i64 i = 0; i < COUNT(name); i++) check_recompute(cx, name[i]);
    nxt_context_destroy(cx);
}

/* PEFT's adapters: loaded, trained, merged. The base has no gradient. */
static void check_merged(golden *g, nxt_context *cx) {
    nxt_save_config c = nxt_save_config_default();
    nxt_model *merged;
    const char *dir = scratch("merged");
    i64 n = 0, compared = 0;
    c.merge = 1;
    if (!OK(cx, nxt_model_save(g->m, dir, &c)) || !OK(cx, nxt_model_load(&merged, cx, dir))) return;
    for (i64 i = 0; i < merged->param_count; i++) {
        char name[256];
        snprintf(name, sizeof name, "merged.%s", merged->params[i].name);
        if (!weights_find(&g->file, name)) continue;
        float *want = golden_floats(g, name, &n), *got = malloc((size_t)n * sizeof *got);
        OK(cx, nxt_param_read(merged, i, 0, n, got));
        CHECK(worst_difference(got, want, n) < 1e-6);
        compared++;
        free(want), free(got);
    }
    CHECK(compared == (g->m->param_count - g->m->base_count) / 2);
    nxt_model_destroy(merged);
}

static void test_golden_lora(void) {
    static const char *const name[] = {"lora-neox", "lora-gpt2", "lora-llama"};
    for (i64 i = 0; i < COUNT(name); i++) {
        nxt_context *cx = test_context();
        golden g;
        if (golden_open(&g, cx, name[i])) check_merged(&g, cx);
        golden_close(&g);
        nxt_context_destroy(cx);
        golden_at_every_level(name[i]);
    }
}

/* The cache of every layout (windows, grouped heads, positions): tokens in pieces and one by one
 * give the logits of the whole text. */
static void check_golden_session(nxt_context *cx, const char *name) {
    golden g;
    nxt_session *s = NULL;
    if (golden_open(&g, cx, name)) {
        i64 n;
        const tensor *t = weights_find(&g.file, "input_ids");
        const i64 T = t->dim[1], V = g.m->s.V;
        i32 *ids = golden_ints(&g, "input_ids", &n);
        float *want = malloc((size_t)(T * V) * sizeof *want), *got = malloc((size_t)V * sizeof *got);
        OK(cx, nxt_logits(g.m, ids, T, want));
        if (OK(cx, nxt_session_create(&s, g.m, 2, T)))
            for (i64 at = 0, take = 4; at < T; at += take, take = 1) {
                OK(cx, nxt_session_feed(s, &(nxt_feed){.sequence = 1, .ids = ids + at, .n = take},
                                        1, got));
                CHECK(worst_difference(got, want + (at + take - 1) * V, V) < 2e-5);
            }
        nxt_session_destroy(s);
        free(ids), free(want), free(got);
    }
    golden_close(&g);
}

static void test_golden_sessions(void) {
    static const char *const name[] = {"neox-parallel-025", "gpt2-plain", "gpt2-bare",
                                       "neo-window", "llama-grouped", "llama-tied", "qwen2-tiny"};
    nxt_context *cx = test_context();
    for (i64 i = 0; i < COUNT(name); i++) check_golden_session(cx, name[i]);
    nxt_context_destroy(cx);
}

/* A trained Llama with grouped heads, found where the test data are: 200 greedy tokens after
 * BOS, their log-probabilities, and the loss of a text, against sums in double precision. */
static void check_stories(nxt_context *cx, nxt_model *m, const json *r) {
    const i64 V = m->s.V;
    nxt_session *s;
    i32 ids[64] = {1}, next = 1;
    double nll = 0, log_sum;
    i64 n = 0;
    float *z = malloc((size_t)(60 * V) * sizeof *z);
    const json *p = json_get(r, "greedy_logprob")->first;
    if (OK(cx, nxt_session_create(&s, m, 1, 300)))
        for (const json *id = json_get(r, "greedy_ids")->first; id; id = id->next, p = p->next) {
            OK(cx, nxt_session_feed(s, &(nxt_feed){.ids = &next, .n = 1}, 1, z));
            log_sum = 0, next = 0;
            for (i64 i = 0; i < V; i++) {
                log_sum += exp((double)z[i]);
                if (z[i] > z[next]) next = (i32)i;
            }
            CHECK(next == (i32)id->number);
            CHECK(fabs((double)z[next] - log(log_sum) - p->number) < 1e-4);
        }
    nxt_session_destroy(s);
    for (const json *id = json_get(r, "text_ids")->first; id; id = id->next)
        ids[n++] = (i32)id->number;
    OK(cx, nxt_logits(m, ids, n, z));
    for (i64 t = 0; t + 1 < n; t++) {
        log_sum = 0;
        for (i64 i = 0; i < V; i++) log_sum += exp((double)z[t * V + i]);
        nll += log(log_sum) - (double)z[t * V + ids[t + 1]];
    }
    CHECK(fabs(nll / (double)(n - 1) - json_number(r, "text_mean_nll", 0)) < 1e-5);
    free(z);
}

static void test_golden_stories260k(void) {
    if (!test_data()) SKIP("NEOXTUNE_TEST_DATA is not set");
    nxt_context *cx = test_context();
    arena a = {.cx = cx};
    const char *dir = arena_print(&a, "%s/checkpoints/stories260K", test_data());
    nxt_model *m;
    json *reference;
    if (OK(cx, nxt_model_load(&m, cx, dir))
        && OK(cx, json_read(&a, arena_print(&a, "%s/reference.json", dir), 1 << 20, &reference)))
        check_stories(cx, m, reference);
    nxt_model_destroy(m);
    arena_free(&a);
    nxt_context_destroy(cx);
}

/* What transformers makes of configs in which something goes without saying: golden/configs.json,
 * written by make_configs.py. Rows about files outside the repository are read where those are. */
static void check_config_row(nxt_context *cx, const json *row, const json *config) {
    const json *e = json_get(row, "expect");
    const char *name = json_text(row, "name", "?");
    const family *f;
    shape s = {0};
    nxt_act_kind act = NXT_RELU;
    if (!OK(cx, config_shape(cx, name, config, &f, &s))) return;
    const struct { const char *key; i64 value; } sizes[] = {
        {"vocab_size", s.V}, {"hidden_size", s.C}, {"num_hidden_layers", s.L},
        {"num_attention_heads", s.H}, {"intermediate_size", s.F},
        {"max_position_embeddings", s.T}, {"bos_token_id", s.bos}, {"eos_token_id", s.eos},
        {"pairs", s.pairs}};
    const struct { const char *key; double value; } numbers[] = {
        {"rope_theta", (double)s.rope_base}, {"rope_factor", (double)s.rope_factor},
        {"layer_norm_eps", (double)s.eps}, {"initializer_range", (double)s.init_std},
        {"last_frequency", pow((double)s.rope_base, -2.0 * (double)(s.pairs - 1) / (double)s.rotary)
                               / (double)s.rope_factor}};
    bool good = true;
    for (i64 i = 0; i < COUNT(sizes); i++)
        good &= (double)sizes[i].value == json_number(e, sizes[i].key, -99);
    for (i64 i = 0; i < COUNT(numbers); i++) {
        const double want = json_number(e, numbers[i].key, -99);
        good &= fabs(numbers[i].value - want) <= 2e-6 * fabs(want);
    }
    OK(cx, config_activation(cx, name, json_text(e, "hidden_act", ""), &act));
    good &= act == s.act && s.parallel == json_bool(e, "use_parallel_residual", false);
    good &= s.tied == json_bool(e, "tie_word_embeddings", false);
    good &= s.qkv_bias == json_bool(e, "attention_bias", false);
    CHECK(good);
    if (!good) printf("  config \"%s\" is read otherwise than by transformers\n", name);
}

/* The same for the other families: sizes, then per layer or per pair what follows from them. */
static void check_family_row(nxt_context *cx, const json *row, const json *config) {
    const json *e = json_get(row, "expect");
    const char *name = json_text(row, "name", "?");
    const family *f;
    shape s = {0};
    static bool local[1000];
    if (!e || e->kind == JSON_NULL) { /* transformers refuses it */
        const bool taken = config_shape(cx, name, config, &f, &s) == NXT_OK
                           && (!s.window || config_local(config, s.L, local) == s.L);
        CHECK(!taken);
        return;
    }
    /* transformers takes these configs and fails later, or has what we refuse */
    static const char *const odd[] = {"qwen2 old without num_attention_heads",
                                      "qwen2 old without num_key_value_heads", "qwen2 sliding"};
    for (i64 i = 0; i < COUNT(odd); i++)
        if (!strcmp(name, odd[i])) {
            CHECK(config_shape(cx, name, config, &f, &s) != NXT_OK);
            return;
        }
    if (!OK(cx, config_shape(cx, name, config, &f, &s))) return;
    nxt_act_kind act = NXT_RELU;
    const json *scales = json_get(e, "scales"), *windows = json_get(e, "windows");
    const json *frequencies = json_get(e, "frequencies");
    const struct { const char *key; double value; } numbers[] = {
        {"vocab_size", (double)s.V}, {"hidden_size", (double)s.C},
        {"num_hidden_layers", (double)s.L}, {"num_attention_heads", (double)s.H},
        {"max_position_embeddings", (double)s.T}, {"intermediate_size", (double)s.F},
        {"bos_token_id", (double)s.bos}, {"eos_token_id", (double)s.eos},
        {"num_key_value_heads", (double)s.G}, {"head_dim", (double)s.D},
        {"pairs", (double)s.pairs}, {"rope_theta", (double)s.rope_base},
        {"layer_norm_eps", (double)s.eps}, {"initializer_range", (double)s.init_std},
        {"embed_dropout", (double)s.dropout[0]}, {"attention_dropout", (double)s.dropout[1]},
        {"resid_dropout", (double)s.dropout[2]}};
    const struct { const char *key; bool value; } flags[] = {
        {"tie_word_embeddings", s.tied}, {"qkv_bias", s.qkv_bias}, {"output_bias", s.out_bias},
        {"mlp_bias", s.mlp_bias}};
    bool good = true;
    for (i64 i = 0; i < COUNT(numbers); i++) {
        const double want = json_number(e, numbers[i].key, numbers[i].value);
        if (fabs(numbers[i].value - want) > 2e-6 * fabs(want))
            good = false, printf("  %s: %g, not %g\n", numbers[i].key, numbers[i].value, want);
    }
    for (i64 i = 0; i < COUNT(flags); i++)
        good &= flags[i].value == json_bool(e, flags[i].key, flags[i].value);
    OK(cx, config_activation(cx, name, json_text(e, "hidden_act", ""), &act));
    good &= act == s.act;
    if (s.window) good &= config_local(config, s.L, local) == s.L;
    for (i64 l = 0; l < s.L; l++) {
        const double scale = (double)attention_scale(&s, l), window = (double)s.window;
        if (scales) good &= fabs(json_item(scales, l) - scale) <= 1e-6 * scale;
        if (windows) good &= json_item(windows, l) == (s.window && local[l] ? window : 0);
    }
    const i64 stride = ceil_div(s.pairs, 32);
    for (i64 i = 0; frequencies && i < frequencies->count; i++) {
        const double want = json_item(frequencies, i);
        good &= fabs((double)rope_frequency(&s, i * stride) - want) <= 1e-6 * want;
    }
    CHECK(good);
    if (!good) printf("  config \"%s\" is read otherwise than by transformers\n", name);
}

static void test_golden_configs(void) {
    nxt_context *cx = test_context();
    arena a = {.cx = cx};
    json *all;
    const char *data = getenv("NEOXTUNE_TEST_DATA");
    int rows = 0;
    if (OK(cx, json_read(&a, "tests/golden/configs.json", 1 << 20, &all)))
        for (const json *r = json_get(all, "rows")->first; r; r = r->next) {
            const char *file = json_text(r, "file", NULL);
            json *read = NULL;
            if (file && data)
                OK(cx, json_read(&a, arena_print(&a, "%s/configs/%s/config.json", data, file),
                                 1 << 20, &read));
            const json *config = file ? read : json_get(r, "config");
            if (config) check_config_row(cx, r, config), rows++;
        }
    static const char *const family_rows[] = {"gpt2", "gpt_neo", "llama", "qwen2"};
    for (i64 i = 0; rows && i < COUNT(family_rows); i++)
        for (const json *r = json_get(all, family_rows[i])->first; r; r = r->next) {
            const char *file = json_text(r, "file", NULL);
            json *read = NULL;
            if (file && data)
                OK(cx, json_read(&a, arena_print(&a, "%s/configs/%s/config.json", data, file),
                                 1 << 20, &read));
            const json *config = file ? read : json_get(r, "config");
            if (config) check_family_row(cx, r, config), rows++;
        }
    CHECK(rows > 150);
    arena_free(&a);
    nxt_context_destroy(cx);
}
