/* Every number that is reported, against one computed here by another way: metrics.jsonl, the
 * memory plan, and what the program prints with --json. Losses come from nxt_logits, which the
 * golden files hold to transformers. */

/* The negative log-likelihood of the trained tokens of a sequence (NULL: all but the first). */
static double sequence_nll(nxt_model *m, const i32 *ids, const u8 *trained, i64 n, i64 *count) {
    const i64 V = m->s.V;
    float *logits = malloc((size_t)(n * V) * sizeof *logits);
    double nll = 0;
    CHECK(nxt_logits(m, ids, n, logits) == NXT_OK);
    for (i64 k = 1; k < n; k++) {
        const float *z = logits + (k - 1) * V;
        float most = -INFINITY; /* in double, gcc 12 for AArch64 cannot compile the loop */
        double sum = 0;
        if (trained && !trained[k]) continue;
        for (i64 i = 0; i < V; i++) most = fmaxf(most, z[i]);
        for (i64 i = 0; i < V; i++) sum += exp((double)z[i] - most);
        nll += log(sum) + most - z[ids[k]];
        ++*count;
    }
    free(logits);
    return nll;
}

static double examples_nll(nxt_model *m, const nxt_dataset *d, i64 at, i64 end, i64 *count) {
    double nll = 0;
    for (*count = 0; at < end; at++) {
        const i32 *ids;
        const u8 *trained;
        i64 n;
        nxt_dataset_example(d, at, &ids, &trained, &n);
        nll += sequence_nll(m, ids, trained, n, count);
    }
    return nll;
}

static i64 examples_tokens(const nxt_dataset *d, i64 at, i64 end) {
    const i32 *ids;
    const u8 *trained;
    i64 sum = 0, n;
    for (; at < end; at++, sum += n) nxt_dataset_example(d, at, &ids, &trained, &n);
    return sum;
}

/* The length of the gradient of the mean loss of some examples. */
static double examples_norm(nxt_model *m, const nxt_dataset *d, i64 at, i64 end, i64 trained) {
    double loss, squares = 0;
    CHECK(nxt_grad_zero(m) == NXT_OK && nxt_backward(m, d, at, end - at, &loss) == NXT_OK);
    for (i64 i = 0; i < nxt_param_count(m); i++) {
        nxt_param_info p;
        nxt_param_describe(m, i, &p);
        float *g = malloc((size_t)(p.rows * p.cols) * sizeof *g);
        CHECK(nxt_grad_read(m, i, 0, p.rows * p.cols, g) == NXT_OK);
        for (i64 k = 0; k < p.rows * p.cols; k++) squares += (double)g[k] * g[k];
        free(g);
    }
    return trained ? sqrt(squares) / (double)trained : 0;
}

/* -- Linear scaling, in all its spellings, read and saved ---------------------------------- */
static void linear_model(const char *dir, const char *rope) {
    char *from = realpath("tests/golden/neox-linear/model.safetensors", NULL), config[1024];
    snprintf(config, sizeof config,
             "{\"model_type\": \"gpt_neox\", \"vocab_size\": 41, \"hidden_size\": 16, "
             "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"intermediate_size\": 24, "
             "\"max_position_embeddings\": 64, \"bos_token_id\": 0, \"eos_token_id\": 0, %s}\n",
             rope);
    micro_file(dir, "config.json", config);
    CHECK(from && symlink(from, text_of("%s/model.safetensors", dir)) == 0);
    free(from);
}

/* The largest difference to the golden logits of the linear case. */
static double linear_difference(nxt_context *cx, const weights *golden_file, const char *dir) {
    const tensor *ids = weights_find(golden_file, "input_ids");
    const tensor *logits = weights_find(golden_file, "logits");
    const i64 T = ids->dim[1], n = logits->dim[1] * logits->dim[2];
    i32 row[64];
    double worst = INFINITY;
    nxt_model *m;
    float *want = malloc((size_t)n * sizeof *want), *got = calloc((size_t)n, sizeof *got);
    memcpy(row, ids->p, (size_t)T * sizeof *row);
    memcpy(want, logits->p, (size_t)n * sizeof *want);
    if (OK(cx, nxt_model_load(&m, cx, dir)) && OK(cx, nxt_logits(m, row, T, got)))
        worst = worst_difference(got, want, n);
    nxt_model_destroy(m);
    free(want), free(got);
    return worst;
}

static void test_rope_linear(void) {
    static const struct { const char *rope; bool same; } rows[] = {
        {"\"rotary_pct\": 0.5, \"rotary_emb_base\": 1000, \"rope_scaling\": "
         "{\"type\": \"linear\", \"factor\": 4}", true},
        {"\"rotary_pct\": 0.5, \"rotary_emb_base\": 1000, \"rope_scaling\": "
         "{\"rope_type\": \"linear\", \"factor\": 4.0}", true},
        {"\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 4, \"rope_theta\": 1000, "
         "\"partial_rotary_factor\": 0.5}", true},
        {"\"rotary_pct\": 0.5, \"rotary_emb_base\": 1000, \"rope_scaling\": "
         "{\"type\": \"linear\", \"factor\": 3}", false},
        {"\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 1, \"rope_theta\": 1000, "
         "\"partial_rotary_factor\": 0.5}", false},
        {"\"rotary_pct\": 0.5, \"rotary_emb_base\": 1000", false},
    };
    nxt_context *cx = test_context();
    weights file = {.cx = cx};
    CHECK(OK(cx, weights_open_file(cx, "tests/golden/neox-linear/golden.safetensors", &file)));
    for (i64 i = 0; i < COUNT(rows) && file.count; i++) {
        const char *dir = text_of("%s", scratch(text_of("linear-%d", (int)i)));
        linear_model(dir, rows[i].rope);
        const double difference = linear_difference(cx, &file, dir);
        CHECK(rows[i].same ? difference < 2e-5 : difference > 1e-2);
        nxt_model *m; /* what is saved means the same */
        const char *saved = text_of("%s-saved", dir);
        if (OK(cx, nxt_model_load(&m, cx, dir))) CHECK(OK(cx, nxt_model_save(m, saved, NULL)));
        nxt_model_destroy(m);
        CHECK(linear_difference(cx, &file, saved) == difference);
    }
    weights_close(&file);
    nxt_context_destroy(cx);
}

/* -- Rows of numbers ----------------------------------------------------------------------- */
typedef struct wanted_number {
    const char *name;
    double value, within; /* relative */
} wanted_number;

static void check_number(const char *what, const json *row, const wanted_number *w) {
    const double got = json_number(row, w->name, NAN);
    const bool good = fabs(got - w->value) <= w->within * fabs(w->value);
    if (!good) printf("  %s: %s is %.15g, expected %.15g\n", what, w->name, got, w->value);
    CHECK(good);
}

/* A JSON object that has these members, no other, in any order. */
static void check_numbers(const char *what, const json *row, const wanted_number *w, i64 n) {
    CHECK(row && row->count == n);
    for (i64 i = 0; row && i < n; i++) check_number(what, row, &w[i]);
}

enum { RUN_STEPS = 12, RUN_ROWS = 16 };

typedef struct wanted_row {
    wanted_number n[8];
    i64 count;
} wanted_row;

static double wall(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Two epochs of six steps, two micro-batches each. A second model takes the same steps; before
 * each one its weights give the loss and the gradient that the run must report. */
static void run_and_expect(rig *r, rig *same, const char *out, wanted_row *rows, int *count) {
    nxt_run_config c = nxt_run_config_default();
    nxt_run *run = NULL;
    nxt_run_info info;
    nxt_step_info step;
    nxt_dataset *eval = random_data(r->cx, 9, 20, 77);
    double loss = 0, seconds = 0, all_loss = 0, all_seconds = 0, all_tokens = 0, waited = 0;
    i64 tokens = 0, trained = 0, all_trained = 0, n;
    c.output_dir = out, c.logging_steps = 5, c.save_when = NXT_NEVER, c.eval_data = eval;
    c.eval_when = NXT_STEPS, c.eval_steps = 6, c.eval_batch_size = 4;
    if (!OK(r->cx, nxt_run_create(&run, r->t, &c, NULL))) return;
    for (int k = 1; k <= RUN_STEPS; k++) {
        const i64 at = (k - 1) % 6 * 4, end = min64(21, at + 4);
        const double nll = examples_nll(same->m, same->d, at, end, &n);
        const double norm = examples_norm(same->m, same->d, at, end, n), before = wall();
        if (!OK(r->cx, nxt_run_step(run, &info))) break;
        waited += wall() - before;
        CHECK(OK(same->cx, nxt_trainer_step(same->t, &step)) && info.step.seconds > 0);
        const i64 here = examples_tokens(same->d, at, end);
        loss += nll, tokens += here, trained += n, seconds += info.step.seconds;
        all_loss += nll, all_tokens += (double)here, all_trained += n;
        all_seconds += info.step.seconds;
        const double rate = 3e-3 * (k <= 2 ? (k - 1) / 2.0 : 1 - (k - 3) / 10.0);
        if (k % 5 == 0 || k == RUN_STEPS) {
            rows[(*count)++] = (wanted_row){
                {{"step", k, 0}, {"epoch", k / 6.0, 1e-12},
                 {"loss", loss / (double)trained, 1e-5}, {"grad_norm", norm, 1e-5},
                 {"learning_rate", rate, 1e-12},
                 {"tokens_per_second", (double)tokens / seconds, 1e-9},
                 {"num_tokens", all_tokens, 0}}, 7};
            loss = seconds = 0, tokens = trained = 0;
        }
        if (k % 6) continue;
        const double mean = examples_nll(same->m, eval, 0, 9, &n) / (double)n;
        CHECK(info.evaluated && info.eval.seconds > 0 && info.eval.seconds < waited);
        rows[(*count)++] = (wanted_row){
            {{"step", k, 0}, {"epoch", k / 6.0, 1e-12}, {"eval_loss", mean, 1e-5},
             {"eval_perplexity", exp(mean), 1e-4}, {"eval_runtime", info.eval.seconds, 1e-9},
             {"eval_samples_per_second", 9 / info.eval.seconds, 1e-9}}, 6};
    }
    CHECK(OK(r->cx, nxt_run_finish(run)));
    CHECK(all_seconds < waited && all_seconds > waited / 10);
    const double V = MICRO_VOCABULARY, C = 32, F = 64; /* two layers; embedding left out */
    const double inner = 2 * (4 * C * C + 4 * C + 2 * C * F + F + C + 4 * C) + 2 * C + V * C;
    rows[(*count)++] = (wanted_row){
        {{"train_runtime", all_seconds, 1e-9},
         {"train_samples_per_second", 42 / all_seconds, 1e-9},
         {"train_steps_per_second", RUN_STEPS / all_seconds, 1e-9},
         {"train_loss", all_loss / (double)all_trained, 1e-5},
         {"total_flos", 6 * all_tokens * inner, 0}}, 5};
    nxt_run_destroy(run);
    nxt_dataset_destroy(eval);
}

static void test_metrics_numbers(void) {
    nxt_context *cx = test_context();
    const char *model = micro_model(cx, "numbers", "", "f32"), *out = text_of("%s-out", model);
    nxt_train_config t = micro_training();
    wanted_row rows[RUN_ROWS];
    int count = 0, line = 0;
    arena a = {.cx = cx};
    buffer text = {.cx = cx};
    rig r = {0}, same = {0};
    t.shuffle = 0, t.batch_size = 2, t.gradient_accumulation_steps = 2;
    if (rig_up(&r, model, NULL, 1, &t) && rig_up(&same, model, NULL, 1, &t))
        run_and_expect(&r, &same, out, rows, &count);
    rig_down(&same);
    rig_down(&r);
    CHECK(count == 3 + 2 + 1);
    CHECK(OK(cx, file_read(cx, text_of("%s/metrics.jsonl", out), 1 << 20, &text)));
    for (const char *p = text.p, *stop; p && p < text.p + text.n; p = stop + 1, line++) {
        json *row = NULL;
        stop = memchr(p, '\n', (size_t)(text.p + text.n - p));
        if (!stop || !OK(cx, json_parse_at(&a, "metrics", line + 1, p, stop - p, &row))) break;
        if (line < count)
            check_numbers(text_of("row %d", line + 1), row, rows[line].n, rows[line].count);
    }
    CHECK(line == count);
    buffer_free(&text), arena_free(&a);
    nxt_context_destroy(cx);
}

/* -- Memory -------------------------------------------------------------------------------- */
/* Names and tables of a model are no part of the plan, nor are the integers of a batch. */
enum { PLAN_SLACK = 64 << 10, MODEL_TABLES = 200 << 10 };

static bool near_plan(const char *what, size_t held, i64 planned) {
    const double off = (double)held - (double)planned;
    if (fabs(off) <= PLAN_SLACK) return true;
    printf("  %s: %zu bytes held, %" PRId64 " planned\n", what, held, planned);
    return false;
}

/* parameters and, of these, those of vectors: by hand. */
static void check_plan(const char *dir, i64 parameters, i64 vectors) {
    nxt_train_config t = micro_training();
    nxt_memory_plan train, use;
    nxt_step_info step;
    nxt_eval_info e;
    t.batch_size = 8;
    for (int training = 0; training < 2; training++) {
        rig r = {.cx = context_with(NULL, 1)};
        size_t empty, loaded, with_data, now, peak;
        i64 longest = 0;
        nxt_context_memory(r.cx, &empty, NULL);
        if (!OK(r.cx, nxt_model_load(&r.m, r.cx, dir))) break;
        nxt_context_memory(r.cx, &loaded, NULL);
        r.d = random_data(r.cx, 21, 60, 5);
        nxt_context_memory(r.cx, &with_data, NULL);
        for (i64 i = 0; i < 21; i++) longest = max64(longest, examples_tokens(r.d, i, i + 1));
        nxt_model_memory(r.m, 8 * longest, 1, &train);
        nxt_model_memory(r.m, 8 * longest, 0, &use);
        CHECK(train.weights == 4 * parameters + 4 * vectors && use.weights == 4 * vectors);
        CHECK(train.gradients == 4 * parameters && train.optimizer == 8 * parameters);
        CHECK(!use.gradients && !use.optimizer && train.workspace == use.workspace);
        CHECK(train.total == train.weights + train.gradients + train.optimizer
                                 + train.activations + train.workspace);
        CHECK(use.total == use.weights + use.activations + use.workspace);
        CHECK(near_plan("a context", empty, use.workspace));
        const i64 tables = (i64)(loaded - empty) - use.weights;
        CHECK(tables >= 0 && tables < MODEL_TABLES);
        const size_t other = (size_t)tables + with_data - loaded;
        if (training) {
            if (OK(r.cx, nxt_trainer_create(&r.t, r.m, r.d, &t))) rig_step(&r, 1, &step);
            nxt_context_memory(r.cx, &now, &peak);
            CHECK(near_plan("training", peak - other, train.total));
            CHECK(near_plan("a trainer", now - other, train.total));
            CHECK(OK(r.cx, nxt_evaluate(r.m, r.d, 8, &e))); /* beside it: what train checks */
            nxt_context_memory(r.cx, &now, &peak);
            const i64 both = train.total + use.activations;
            CHECK(near_plan("training and evaluation", peak - other, both));
        } else {
            CHECK(OK(r.cx, nxt_evaluate(r.m, r.d, 8, &e)));
            nxt_context_memory(r.cx, &now, &peak);
            CHECK(near_plan("evaluation", peak - other, use.total));
        }
        rig_down(&r);
    }
}

static void test_memory_plan(void) {
    static const char *const more[] = {
        ", \"hidden_size\": 64, \"intermediate_size\": 160, "
        "\"vocab_size\": 800",
        ", \"hidden_size\": 64, \"intermediate_size\": 160, "
        "\"vocab_size\": 800, \"use_parallel_residual\": false, "
        "\"tie_word_embeddings\": true"};
    nxt_context *cx = test_context();
    for (int tied = 0; tied < 2; tied++) {
        const i64 C = 64, F = 160, L = 2, V = 800;
        const i64 vectors = L * (4 * C + 4 * C + F + C) + 2 * C;
        const i64 matrices = L * (4 * C * C + 2 * C * F) + (tied ? V * C : 2 * V * C);
        check_plan(micro_model(cx, text_of("plan-%d", tied), more[tied], "f16"),
                   matrices + vectors, vectors);
    }
    nxt_context_destroy(cx);
}

/* -- What the program prints --------------------------------------------------------------- */
static const char *program(void) {
    const char *path = getenv("NEOXTUNE");
    struct stat st;
    return path && stat(path, &st) == 0 && S_ISREG(st.st_mode) ? path : NULL;
}

/* Strict UTF-8 (RFC 3629), written apart from neoxtune.c's: the place of what is not, or n. */
static i64 utf8_valid(const u8 *s, i64 n) {
    static const u32 least[] = {0, 0x80, 0x800, 0x10000};
    for (i64 i = 0, more; i < n; i += more + 1) {
        const u32 lead = s[i];
        more = lead < 0x80 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        u32 code = more ? lead & (0x3fu >> more) : lead;
        if ((lead >= 0x80 && lead < 0xc0) || lead > 0xf7 || i + more >= n) return i;
        for (i64 k = 1; k <= more; k++) {
            if ((s[i + k] & 0xc0) != 0x80) return i;
            code = code << 6 | (s[i + k] & 63);
        }
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return i;
    }
    return n;
}

/* Standard output of the program, which must end well; with whole_writes, what is written at a
 * time must be whole characters. */
static void program_says(buffer *out, bool whole_writes, const char *arguments) {
    static char command[2000], block[1 << 16];
    snprintf(command, sizeof command, "'%s' %s 2>/dev/null </dev/null", program(), arguments);
    FILE *f = popen(command, "r");
    CHECK(f != NULL);
    for (ssize_t n; f && (n = read(fileno(f), block, sizeof block)) > 0;) {
        if (whole_writes) CHECK(utf8_valid((u8 *)block, n) == n);
        buffer_add(out, block, n);
    }
    const int status = f ? pclose(f) : -1;
    if (status) printf("  exit status %d: %s\n", WEXITSTATUS(status), arguments);
    CHECK(status == 0);
}

static const json *program_json(nxt_context *cx, arena *a, const char *arguments) {
    buffer out = {.cx = cx};
    json *v = NULL;
    program_says(&out, false, arguments);
    CHECK(out.n && memchr(out.p, '\n', (size_t)out.n) == out.p + out.n - 1); /* one line */
    if (out.n) CHECK(OK(cx, json_parse(a, arguments, out.p, out.n, &v)));
    buffer_free(&out);
    return v;
}

/* A model that has learned four answers by heart. */
static const char *learned_model(nxt_context *cx) {
    static const char lessons[] =
        "{\"question\": \"cat\", \"answer\": \" mat\"}\n"
        "{\"question\": \"hen\", \"answer\": \" den\"}\n"
        "{\"question\": \"rat\", \"answer\": \" inn\"}\n"
        "{\"question\": \"dog\", \"answer\": \" hut\"}\n";
    const char *model = micro_model(cx, "learned", "", "f32"), *out = text_of("%s-tuned", model);
    const char *file = text_of("%s/lessons.jsonl", model);
    nxt_train_config t = nxt_train_config_default();
    nxt_data_config c = nxt_data_config_default();
    nxt_tokenizer *tok = NULL;
    nxt_step_info step;
    rig r = {.cx = cx};
    micro_file(model, "lessons.jsonl", lessons);
    t.learning_rate = 1e-2, t.max_steps = 60, t.batch_size = 4;
    if (OK(cx, nxt_model_load(&r.m, cx, model)) && OK(cx, nxt_tokenizer_load(&tok, cx, model))
        && OK(cx, nxt_dataset_from_files(&r.d, tok, &file, 1, &c))
        && OK(cx, nxt_trainer_create(&r.t, r.m, r.d, &t)) && rig_step(&r, 60, &step))
        CHECK(OK(cx, nxt_model_save(r.m, out, NULL)) && step.loss < 0.2);
    nxt_trainer_destroy(r.t);
    nxt_dataset_destroy(r.d);
    nxt_tokenizer_destroy(tok);
    nxt_model_destroy(r.m);
    return out;
}

/* The likeliest continuation, a whole pass for every token; ends at eos, which is 0. */
static void greedy_text(nxt_model *m, nxt_tokenizer *tok, i32 *ids, i64 n, i64 most, char *text) {
    const i64 V = m->s.V, start = n;
    float *logits = malloc((size_t)(MICRO_POSITIONS * V) * sizeof *logits);
    size_t bytes = 0;
    for (; n < start + most; n++) {
        CHECK(nxt_logits(m, ids, n, logits) == NXT_OK);
        const float *z = logits + (n - 1) * V;
        ids[n] = 0;
        for (i32 i = 1; i < V; i++)
            if (z[i] > z[ids[n]]) ids[n] = i;
        if (!ids[n]) break;
    }
    CHECK(nxt_decode(tok, ids + start, (size_t)(n - start), text, 200, &bytes) == NXT_OK);
    text[bytes] = 0;
    free(logits);
}

static const char *const exam[][3] = { /* question, answer, whether it is what was learned */
    {"cat", " mat", "y"}, {"hen", " The DEN.", "y"}, {"rat", " out", ""}, {"dog", " hut", "y"},
    {"cat", " mats", ""}, {"hen", " a den!", "y"}, {"rat", " in n", ""}, {"dog", "", ""},
    {"cat", " hat and mat", ""}, {"dog", " an hut", "y"}, {"hen", "den", "y"},
    {"rat", " inn", "y"}, {"cat", " \xc3\xa9", ""}, {"dog", " hutt", ""}, {"hen", " mat", ""},
    {"rat", " inn ", "y"}, {"cat", " mat", "y"}, {"dog", " den", ""}, {"rat", " inn", "y"}};

typedef struct exam_result {
    double nll, all_nll, each[COUNT(exam)], mean, right, should, bytes;
    i64 trained;
} exam_result;

/* One row, and what the model makes of it. */
static void take_exam(nxt_model *m, nxt_tokenizer *tok, i64 i, exam_result *r) {
    const char *q = exam[i][0], *answer = exam[i][1], *text = text_of("%s%s", q, answer);
    i32 ids[MICRO_POSITIONS] = {0}; /* a start token in front, which is also eos */
    size_t ends[MICRO_POSITIONS], n = 0, prompt = 0;
    u8 trains[MICRO_POSITIONS];
    i64 count = 0;
    double one = 0;
    char said[256];
    CHECK(OK(m->cx, nxt_encode(tok, text, strlen(text), ids + 1, ends, 40, &n)));
    for (size_t k = 0; k < n; k++) trains[k] = ends[k] > strlen(q), prompt += !trains[k];
    const double nll = sequence_nll(m, ids, NULL, (i64)n + 1, &count);
    r->all_nll += nll, r->each[i] = exp(nll / (double)count);
    r->mean += r->each[i] / (double)COUNT(exam), r->bytes += (double)strlen(text);
    trains[n] = 1, ids[n + 1] = 0; /* eos is trained; nothing stands in front */
    r->nll += sequence_nll(m, ids + 1, trains, (i64)n + 1, &r->trained);
    greedy_text(m, tok, ids + 1, (i64)prompt, 6, said);
    CHECK(OK(m->cx, nxt_score_exact_match(m->cx, said, answer, &one)));
    r->right += one, r->should += exam[i][2][0] == 'y';
}

static void test_eval_numbers(void) {
    if (!program()) SKIP("NEOXTUNE names no program");
    nxt_context *cx = context_with(NULL, 1);
    const char *model = learned_model(cx), *file = text_of("%s/exam.jsonl", model);
    arena a = {.cx = cx};
    nxt_model *m = NULL;
    nxt_tokenizer *tok = NULL;
    exam_result r = {0};
    FILE *f = fopen(file, "w");
    if (!f || !OK(cx, nxt_model_load(&m, cx, model))
        || !OK(cx, nxt_tokenizer_load(&tok, cx, model))) return;
    for (i64 i = 0; i < COUNT(exam); i++) {
        fprintf(f, "{\"question\": \"%s\", \"answer\": \"%s\"}\n", exam[i][0], exam[i][1]);
        take_exam(m, tok, i, &r);
    }
    fclose(f);
    CHECK(r.right == r.should && r.right > 0 && r.right < COUNT(exam));
    const double texts = COUNT(exam), loss = r.nll / (double)r.trained;
    const json *e = program_json(cx, &a, text_of("eval --model %s --data %s --json "
                                                 "--max-new-tokens 6 --threads 1", model, file));
    const wanted_number numbers[] = {
        {"loss", loss, 1e-5}, {"perplexity", exp(loss), 1e-4},
        {"tokens", (double)r.trained, 0}, {"mean_perplexity", r.mean, 1e-5},
        {"texts", texts, 0}, {"bits_per_byte", r.all_nll / log(2) / r.bytes, 1e-5},
        {"exact_match", r.right / texts, 1e-8}};
    for (i64 i = 0; i < COUNT(numbers); i++) check_number("eval", e, &numbers[i]);
    const json *list = json_get(e, "perplexities"), *p = list ? list->first : NULL;
    CHECK(list && list->count == COUNT(exam) && e->count == COUNT(numbers) + 1);
    for (i64 i = 0; p && i < COUNT(exam); i++, p = p->next)
        CHECK(fabs(p->number - r.each[i]) < 1e-5 * r.each[i]);
    nxt_tokenizer_destroy(tok);
    nxt_model_destroy(m);
    arena_free(&a);
    nxt_context_destroy(cx);
}

/* By default every position of the model and a batch of 8; of data, its longest example. */
static void test_info_numbers(void) {
    if (!program()) SKIP("NEOXTUNE names no program");
    static const struct { const char *options; i64 batch, accumulation, length; } rows[] = {
        {"", 8, 1, MICRO_POSITIONS}, {"--block-size 40 --per-device-train-batch-size 3 "
                                      "--gradient-accumulation-steps 2", 3, 2, 40},
        {"--data %s/d.txt --per-device-train-batch-size 5", 5, 1, 8}};
    nxt_context *cx = context_with(NULL, 1);
    const char *model = micro_model(cx, "told", "", "f16");
    arena a = {.cx = cx};
    nxt_model *m = NULL;
    struct stat st = {0};
    CHECK(OK(cx, nxt_model_load(&m, cx, model)));
    CHECK(stat(text_of("%s/model.safetensors", model), &st) == 0);
    micro_file(model, "d.txt", "xyz\nxyzxyzx\nx\n"); /* seven letters and eos */
    for (i64 i = 0; i < COUNT(rows) && m; i++) {
        const double V = MICRO_VOCABULARY, C = 32, F = 64, L = 2, T = (double)rows[i].length;
        const double tokens = (double)(rows[i].batch * rows[i].accumulation) * T;
        const double layer = 4 * C * C + 2 * C * F, vectors = L * (9 * C + F) + 2 * C;
        const double inner = L * layer + vectors + V * C; /* without the input embedding */
        const double attention = 12 * L * C * T / 2; /* q k' and p v, thrice, half the keys */
        nxt_memory_plan plan;
        char options[400];
        snprintf(options, sizeof options, rows[i].options, model);
        nxt_model_memory(m, rows[i].batch * rows[i].length, 1, &plan);
        const json *e = program_json(cx, &a, text_of("info --json --model %s %s", model, options));
        CHECK(!strcmp(json_text(e, "architecture", ""), "GPTNeoXForCausalLM"));
        const wanted_number numbers[] = {
            {"layers", L, 0}, {"hidden_size", C, 0}, {"parameters", inner + V * C, 0},
            {"non_embedding_parameters", inner, 0}, {"total_flos", 6 * tokens * inner, 0},
            {"flops", tokens * (6 * (L * layer + V * C) + attention), 0},
            {"peak_memory", (double)plan.total, 0}, {"mapped_bytes", (double)st.st_size, 0}};
        for (i64 k = 0; k < COUNT(numbers); k++) check_number(options, e, &numbers[k]);
        CHECK(e && e->count == COUNT(numbers) + 1);
    }
    nxt_model_destroy(m);
    arena_free(&a);
    nxt_context_destroy(cx);
}

/* Printed text, a run of U+FFFD as one byte 1: how many stand for how many bytes is open. */
static void add_printed(buffer *out, const char *p, i64 n, int *marks) {
    for (i64 i = 0; i < n; i++) {
        const bool mark = i + 3 <= n && !memcmp(p + i, "\xef\xbf\xbd", 3);
        if (!mark) buffer_add(out, p + i, 1);
        else if (!out->n || out->p[out->n - 1] != '\1') buffer_add(out, "\1", 1), ++*marks;
        i += mark ? 2 : 0;
    }
}

/* Bytes, a run of those that are no UTF-8 as one byte 1; wide: characters of several bytes. */
static void add_drawn(buffer *out, const u8 *p, i64 n, int *wide) {
    for (i64 i = 0, size; i < n; i += size) {
        size = p[i] < 0x80 ? 1 : p[i] < 0xe0 ? 2 : p[i] < 0xf0 ? 3 : 4;
        if (i + size <= n && utf8_valid(p + i, size) == size) {
            buffer_add(out, (const char *)p + i, size), *wide += size > 1;
        } else {
            if (!out->n || out->p[out->n - 1] != '\1') buffer_add(out, "\1", 1);
            size = 1;
        }
    }
}

/* What streams through a pipe is whole characters at any moment, and the text of the ids. */
static void check_stream(nxt_context *cx, nxt_tokenizer *tok, const char *options, int *marks,
                         int *wide) {
    static u8 bytes[4096];
    arena a = {.cx = cx};
    buffer out = {.cx = cx}, streamed = {.cx = cx}, told = {.cx = cx}, want = {.cx = cx};
    i32 ids[64];
    size_t n = 0, count = 0;
    int none = 0;
    program_says(&out, true, options);
    CHECK(out.n > 0 && out.p[out.n - 1] == '\n');
    add_printed(&streamed, out.p, out.n - 1, marks);
    const json *v = program_json(cx, &a, text_of("%s --json", options));
    const json *list = json_get(v, "ids"), *said = json_get(v, "completion");
    for (const json *id = list ? list->first : NULL; id && n < 64; id = id->next)
        if (!nxt_token_is_special(tok, (i32)id->number)) ids[n++] = (i32)id->number;
    CHECK(OK(cx, nxt_decode(tok, ids, n, (char *)bytes, sizeof bytes, &count)));
    add_drawn(&want, bytes, (i64)count, wide);
    if (said) add_printed(&told, said->text, said->length, &none);
    CHECK(streamed.n == want.n && !memcmp(streamed.p, want.p, (size_t)want.n));
    CHECK(told.n == want.n && !memcmp(told.p, want.p, (size_t)want.n));
    buffer_free(&out), buffer_free(&streamed), buffer_free(&told), buffer_free(&want);
    arena_free(&a);
}

static void test_stream_utf8(void) {
    if (!program()) SKIP("NEOXTUNE names no program");
    nxt_context *cx = context_with(NULL, 1);
    const char *models[] = {micro_model(cx, "stream", "", "f32"), "data/pico-neox"};
    for (int k = 0; k < 2; k++) {
        nxt_tokenizer *tok;
        int marks = 0, wide = 0;
        if (!OK(cx, nxt_tokenizer_load(&tok, cx, models[k]))) continue;
        for (int seed = 1; seed <= 24; seed++)
            check_stream(cx, tok, text_of("generate --model %s --prompt 'the cat' --temperature "
                                          "%d --seed %d --max-new-tokens 40 --threads 1",
                                          models[k], k ? 500 : 4, seed), &marks, &wide);
        if (k) CHECK(marks > 0);
        else CHECK(marks > 100 && wide > 10); /* most of its tokens are single bytes */
        nxt_tokenizer_destroy(tok);
    }
    nxt_context_destroy(cx);
}
