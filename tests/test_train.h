/* Properties of training: what must not change the bits, what must survive a kill, a full
 * disk, a refused allocation. The models are those of micro.h. */
#include <signal.h>
#include <sys/wait.h>

static char *text_of(const char *format, ...) PRINTF_LIKE(1, 2);
static char *text_of(const char *format, ...) { /* lives until many calls later */
    static char texts[256][320];
    static int turn;
    char *text = texts[turn++ % 256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof texts[0], format, args);
    va_end(args);
    return text;
}

/* A fresh directory with a micro model in it; more: see micro_config. */
static const char *micro_model(nxt_context *cx, const char *name, const char *more,
                               const char *type) {
    const char *dir = text_of("%s", scratch(name)), *model = text_of("%s/model", dir);
    micro_config(dir, more);
    micro_tokenizer(dir);
    const char *config = text_of("%s/config.json", dir);
    OK(cx, nxt_model_init(cx, config, dir, model, type, 7));
    return model;
}

/* Sequences of 2 to `longest` random tokens; the beginning of some, and all of every
 * seventh, is not trained. */
static nxt_dataset *random_data(nxt_context *cx, i64 count, i64 longest, u64 key) {
    i64 *offset = calloc((size_t)count + 1, sizeof *offset), n = 0;
    i32 *ids = calloc((size_t)(count * longest), sizeof *ids);
    u8 *trained = calloc((size_t)(count * longest), 1);
    nxt_dataset *d;
    for (i64 i = 0; i < count; i++) {
        const i64 length = 2 + (i64)(mix64(key + (u64)i) % (u64)(longest - 1));
        const i64 prompt = i % 3 == 1 ? length / 2 : i % 7 == 6 ? length : 0;
        for (i64 k = 0; k < length; k++, n++) {
            ids[n] = (i32)(mix64(key ^ (u64)(i << 20 | k)) % (MICRO_VOCABULARY / 4));
            trained[n] = k >= prompt;
        }
        offset[i + 1] = n;
    }
    CHECK(nxt_dataset_from_tokens(&d, cx, ids, trained, offset, count) == NXT_OK);
    free(offset), free(ids), free(trained);
    return d;
}

typedef struct rig { /* a model in training */
    nxt_context *cx;
    nxt_model *m;
    nxt_dataset *d;
    nxt_trainer *t;
} rig;

static nxt_train_config micro_training(void) {
    nxt_train_config c = nxt_train_config_default();
    c.learning_rate = 3e-3, c.weight_decay = 0.01, c.warmup_steps = 2, c.batch_size = 4;
    c.max_steps = 12, c.seed = 11;
    return c;
}

static bool rig_up(rig *r, const char *dir, const char *cpu, int threads,
                   const nxt_train_config *c) {
    *r = (rig){.cx = context_with(cpu, threads)};
    if (!r->cx || !OK(r->cx, nxt_model_load(&r->m, r->cx, dir))) return false;
    r->d = random_data(r->cx, 21, 30, 5);
    return r->d && OK(r->cx, nxt_trainer_create(&r->t, r->m, r->d, c));
}

static void rig_down(rig *r) {
    nxt_trainer_destroy(r->t);
    nxt_dataset_destroy(r->d);
    nxt_model_destroy(r->m);
    nxt_context_destroy(r->cx);
}

static bool rig_step(rig *r, int steps, nxt_step_info *info) {
    for (int k = 0; k < steps; k++)
        if (!OK(r->cx, nxt_trainer_step(r->t, info))) return false;
    return true;
}

static float *param_values(const nxt_model *m, i64 i, i64 *n) {
    nxt_param_info p;
    nxt_param_describe(m, i, &p);
    *n = p.rows * p.cols;
    float *x = malloc((size_t)*n * sizeof *x);
    CHECK(nxt_param_read(m, i, 0, *n, x) == NXT_OK);
    return x;
}

static u64 params_digest(const nxt_model *m) {
    u64 h = 0;
    for (i64 i = 0; i < nxt_param_count(m); i++) {
        i64 n;
        float *x = param_values(m, i, &n);
        for (i64 k = 0; k < n; k++) h = mix64(h ^ float_bits(x[k]));
        free(x);
    }
    return h;
}

static bool same_files(const char *a, const char *b) {
    file_map x, y;
    nxt_context *cx = test_context();
    bool same = OK(cx, file_map_open(cx, a, &x));
    if (same) {
        same = OK(cx, file_map_open(cx, b, &y));
        same = same && x.n == y.n && !memcmp(x.p, y.p, (size_t)x.n);
        file_map_close(&x);
        file_map_close(&y);
    }
    nxt_context_destroy(cx);
    return same;
}

/* -- Bits ---------------------------------------------------------------------------------- */
static void test_train_threads(void) {
    static const int threads[] = {1, 2, 5};
    /* large enough that every kernel cuts its work */
    static const char more[] = ", \"hidden_size\": 96, \"intermediate_size\": 384, "
                               "\"vocab_size\": 1000";
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "threads", more, "f32");
    nxt_context_destroy(cx);
    /* on a busy machine threads wait for each other: other levels are left to the
     * operations' tests */
    for (int level = cpu_level(); level >= (long_run && cpu_level() ? 1 : cpu_level());
         level--) {
        u64 digest[3] = {0};
        double loss[3] = {0};
        for (int k = 0; k < 3; k++) {
            rig r;
            nxt_step_info info = {0};
            nxt_train_config c = micro_training();
            c.batch_size = 8;
            if (rig_up(&r, dir, cpu_names[level], threads[k], &c)
                && rig_step(&r, quick_run ? 2 : 5, &info))
                digest[k] = params_digest(r.m), loss[k] = info.loss;
            rig_down(&r);
        }
        CHECK(digest[0] && digest[0] == digest[1] && digest[0] == digest[2]);
        CHECK(loss[0] == loss[1] && loss[0] == loss[2]);
    }
}

/* One step of eight sequences, however it is cut into micro-batches. Epsilon is large
 * because Adam makes a whole step of a gradient that is nothing but rounding. */
static void test_train_accumulation(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "accumulation", "", "f32");
    rig first;
    nxt_step_info info[4] = {{0}};
    nxt_context_destroy(cx);
    for (int k = 0; k < 4; k++) {
        rig r;
        nxt_train_config c = micro_training();
        c.batch_size = 8 >> k, c.gradient_accumulation_steps = 1 << k, c.adam_epsilon = 1e-2;
        c.max_grad_norm = 0.5;
        if (!rig_up(&r, dir, NULL, 1, &c) || !rig_step(&r, 4, &info[k])) return;
        CHECK(nxt_trainer_steps_per_epoch(r.t) == 3); /* 21 sequences: 8 + 8 + 5 */
        if (k == 0) {
            first = r;
            continue;
        }
        CHECK(fabs(info[k].loss - info[0].loss) < 1e-6 * info[0].loss);
        CHECK(fabs(info[k].grad_norm - info[0].grad_norm) < 3e-6 * info[0].grad_norm);
        CHECK(info[k].tokens == info[0].tokens && info[k].num_tokens == info[0].num_tokens);
        CHECK(info[k].trained_tokens == info[0].trained_tokens);
        for (i64 i = 0; i < nxt_param_count(r.m); i++) {
            i64 n;
            float *a = param_values(first.m, i, &n), *b = param_values(r.m, i, &n);
            for (i64 j = 0; j < n; j++)
                if (!(fabsf(a[j] - b[j]) < 1e-6f)) {
                    CHECK(!"parameters depend on how a step is cut");
                    break;
                }
            free(a), free(b);
        }
        rig_down(&r);
    }
    rig_down(&first);
}

static bool same_step(const nxt_step_info *a, const nxt_step_info *b) {
    return a->step == b->step && a->loss == b->loss && a->grad_norm == b->grad_norm
           && a->learning_rate == b->learning_rate && a->num_tokens == b->num_tokens
           && a->epoch == b->epoch && a->tokens == b->tokens;
}

/* model: where the second half's model is read from; NULL: from the checkpoint itself. */
static void check_resume(const char *type, bool from_checkpoint) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "resume", "", type);
    const char *saved = text_of("%s-checkpoint", dir);
    const nxt_train_config c = micro_training();
    nxt_step_info straight = {0}, resumed = {0};
    u64 digest = 0;
    rig r;
    nxt_context_destroy(cx);
    if (rig_up(&r, dir, NULL, 1, &c) && rig_step(&r, 12, &straight)) {
        digest = params_digest(r.m);
        CHECK(nxt_trainer_done(r.t) && nxt_trainer_step(r.t, &resumed) == NXT_ARGUMENT);
    }
    rig_down(&r);
    if (rig_up(&r, dir, NULL, 1, &c) && rig_step(&r, 5, &resumed))
        CHECK(OK(r.cx, nxt_trainer_save(r.t, saved)));
    rig_down(&r);
    if (rig_up(&r, from_checkpoint ? saved : dir, NULL, 1, &c)
        && OK(r.cx, nxt_trainer_resume(r.t, saved)) && rig_step(&r, 7, &resumed)) {
        CHECK(same_step(&straight, &resumed));
        CHECK(params_digest(r.m) == digest);
    }
    rig_down(&r);
}

static void test_train_resume_f32(void) {
    check_resume("f32", false);
    check_resume("f32", true);
}

static void test_train_resume_f16(void) {
    check_resume("f16", false);
    check_resume("f16", true);
}

/* A checkpoint of other data, of other options, of no run at all, is refused. */
static void test_train_resume_refused(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "refused", "", "f32"), *saved = text_of("%s-saved", dir);
    nxt_train_config c = micro_training();
    nxt_step_info info;
    rig r;
    if (rig_up(&r, dir, NULL, 1, &c) && rig_step(&r, 2, &info))
        CHECK(OK(r.cx, nxt_trainer_save(r.t, saved)));
    rig_down(&r);
    for (int k = 0; k < 13; k++) {
        nxt_train_config other = c;
        if (k == 0) other.learning_rate = 1e-3;
        if (k == 1) other.weight_decay = 0.5;
        if (k == 2) other.adam_beta1 = 0.8;
        if (k == 3) other.adam_beta2 = 0.99;
        if (k == 4) other.adam_epsilon = 1e-6;
        if (k == 5) other.max_grad_norm = 2;
        if (k == 6) other.batch_size = 3;
        if (k == 7) other.gradient_accumulation_steps = 2;
        if (k == 8) other.shuffle = 0;
        if (k == 9) other.schedule = NXT_SCHEDULE_COSINE;
        if (k == 10) other.warmup_steps = 3;
        if (k == 11) other.max_steps = 13;
        if (k == 12) other.seed = 12;
        if (rig_up(&r, dir, NULL, 1, &other)) {
            CHECK(nxt_trainer_resume(r.t, saved) == NXT_ARGUMENT);
            CHECK(strstr(nxt_error_message(r.cx), "trainer_state.json: the checkpoint was made "
                                                  "with other data or other training options"));
            CHECK(r.t->step == 0); /* still where it was */
        }
        rig_down(&r);
    }
    for (int k = 0; k < 4; k++) { /* a trainer each: after a failure it can only be destroyed */
        if (!rig_up(&r, dir, NULL, 1, &c)) break;
        if (k == 0) CHECK(nxt_trainer_resume(r.t, dir) == NXT_IO); /* no checkpoint */
        if (k == 1) ((i32 *)r.d->ids)[2] ^= 1; /* other data */
        if (k == 1) CHECK(nxt_trainer_resume(r.t, saved) == NXT_ARGUMENT);
        if (k == 2) unlink(text_of("%s/optimizer.safetensors", saved));
        if (k == 2) CHECK(nxt_trainer_resume(r.t, saved) == NXT_IO);
        if (k == 2)
            CHECK(strstr(nxt_error_message(r.cx), "optimizer.safetensors: cannot open"));
        if (k == 3) micro_file(saved, "trainer_state.json", "{\"global_step\": 2}");
        if (k == 3) CHECK(nxt_trainer_resume(r.t, saved) == NXT_FORMAT);
        rig_down(&r);
    }
    nxt_context_destroy(cx);
}

/* -- Runs ---------------------------------------------------------------------------------- */
typedef struct run_plan {
    const char *model, *out, *resume;
    int steps;       /* 0: to the end, and finish */
    nxt_run_config c;
    nxt_train_config t;
} run_plan;

static run_plan plan_run(const char *model, const char *out) {
    run_plan p = {
        .model = model, .out = out, .c = nxt_run_config_default(), .t = micro_training()};
    p.c.output_dir = out, p.c.eval_when = p.c.save_when = NXT_STEPS;
    p.c.logging_steps = 3, p.c.eval_steps = 4, p.c.save_steps = 5;
    return p;
}

static bool do_run(run_plan *p) {
    rig r;
    nxt_run *run = NULL;
    nxt_run_info info;
    nxt_dataset *eval = NULL;
    bool good = rig_up(&r, p->model, NULL, 1, &p->t);
    if (good) p->c.eval_data = eval = random_data(r.cx, 9, 20, 77);
    good = good && OK(r.cx, nxt_run_create(&run, r.t, &p->c, p->resume));
    for (int k = 0; good && !nxt_trainer_done(r.t) && (!p->steps || k < p->steps); k++)
        good = OK(r.cx, nxt_run_step(run, &info));
    if (good && !p->steps) good = OK(r.cx, nxt_run_finish(run));
    nxt_run_destroy(run);
    nxt_dataset_destroy(eval);
    rig_down(&r);
    return good;
}

/* The rows of metrics.jsonl, without the members that depend on time. */
static char *timeless_metrics(const char *dir, i64 *rows) {
    nxt_context *cx = test_context();
    arena a = {.cx = cx};
    buffer in = {.cx = cx}, out = {.cx = cx};
    const char *path = text_of("%s/metrics.jsonl", dir);
    *rows = 0;
    CHECK(OK(cx, file_read(cx, path, 1 << 20, &in)));
    for (const char *p = in.p, *end = in.p + in.n, *stop; p && p < end; p = stop + 1, ++*rows) {
        json *row = NULL;
        stop = memchr(p, '\n', (size_t)(end - p));
        CHECK(stop != NULL);
        if (!stop || !OK(cx, json_parse_at(&a, path, *rows + 1, p, stop - p, &row))) break;
        for (const json *v = row->first; v; v = v->next)
            if (!strstr(v->key, "second") && !strstr(v->key, "runtime"))
                buffer_print(&out, "%s=%s ", v->key, v->text);
        buffer_text(&out, "\n");
    }
    char *copy = calloc((size_t)out.n + 1, 1);
    if (out.n) memcpy(copy, out.p, (size_t)out.n);
    buffer_free(&in), buffer_free(&out), arena_free(&a);
    nxt_context_destroy(cx);
    return copy;
}

/* A run that is killed two steps after its last checkpoint, and resumed. The mean loss of a row
 * spans the checkpoint; the rows after it are written again, not twice. */
static void test_run_resume(void) {
    nxt_context *cx = test_context();
    const char *model = micro_model(cx, "runs", "", "f16");
    const char *a = text_of("%s-straight", model), *b = text_of("%s-resumed", model);
    char last[512];
    i64 rows_a, rows_b;
    run_plan straight = plan_run(model, a), resumed = plan_run(model, b);
    CHECK(do_run(&straight));
    resumed.steps = 7;
    CHECK(do_run(&resumed));
    CHECK(OK(cx, nxt_run_last_checkpoint(cx, b, last, sizeof last)));
    CHECK(ends_with(last, "/checkpoint-5"));
    resumed.steps = 0, resumed.resume = last;
    CHECK(do_run(&resumed));
    char *ours = timeless_metrics(a, &rows_a), *theirs = timeless_metrics(b, &rows_b);
    CHECK(rows_a == 4 + 3 + 1 && rows_a == rows_b); /* logs, evaluations, the last row */
    CHECK(strstr(ours, "loss=") && strstr(ours, "eval_perplexity=")
          && strstr(ours, "total_flos="));
    if (strcmp(ours, theirs)) printf("-- straight\n%s-- resumed\n%s", ours, theirs);
    CHECK(!strcmp(ours, theirs));
    CHECK(same_files(text_of("%s/model.safetensors", a), text_of("%s/model.safetensors", b)));
    CHECK(same_files(text_of("%s/checkpoint-10/optimizer.safetensors", a),
                     text_of("%s/checkpoint-10/optimizer.safetensors", b)));
    free(ours), free(theirs);
    nxt_context_destroy(cx);
}

static bool is_there(const char *dir, const char *name) {
    return path_exists(text_of("%s/%s", dir, name));
}

/* The mean losses of the rows are the means of the steps they cover. */
static void test_run_metrics(void) {
    nxt_context *cx = test_context();
    const char *model = micro_model(cx, "metrics", "", "f32"), *out = text_of("%s-out", model);
    nxt_run_config c = nxt_run_config_default();
    nxt_train_config t = micro_training();
    nxt_run *run = NULL;
    nxt_run_info info;
    rig r;
    double loss = 0, tokens = 0;
    int rows = 0;
    c.output_dir = out, c.logging_steps = 5, c.save_when = NXT_NEVER,
    c.run_json = "{\"a\": 1}\n";
    if (rig_up(&r, model, NULL, 1, &t) && OK(r.cx, nxt_run_create(&run, r.t, &c, NULL)))
        for (int k = 1; k <= 12 && OK(r.cx, nxt_run_step(run, &info)); k++) {
            loss += info.step.loss * (double)info.step.trained_tokens;
            tokens += (double)info.step.trained_tokens;
            CHECK(info.logged == (k % 5 == 0 || k == 12));
            CHECK(!info.evaluated && !info.saved && info.step.step == k);
            if (!info.logged) continue;
            CHECK(fabs(info.mean_loss - loss / tokens) < 1e-12);
            loss = tokens = 0, rows++;
        }
    CHECK(rows == 3 && is_there(out, "run.json") && is_there(out, "metrics.jsonl"));
    CHECK(!is_there(out, "model.safetensors")); /* not before the end */
    if (run) CHECK(OK(r.cx, nxt_run_finish(run)));
    CHECK(is_there(out, "model.safetensors") && is_there(out, "tokenizer.json"));
    nxt_run_destroy(run);
    rig_down(&r);
    nxt_context_destroy(cx);
}

/* A skipped step has no loss, and a model that is infinite no evaluation: the rows say null, the
 * checkpoint can be read again, and no such state is the best one. */
static void test_run_skipped(void) {
    nxt_context *cx = test_context();
    const char *model = micro_model(cx, "skipped", "", "f32"), *out = text_of("%s-out", model);
    nxt_run_config c = nxt_run_config_default();
    nxt_train_config t = micro_training();
    nxt_run *run = NULL;
    nxt_run_info info = {0};
    buffer text = {.cx = cx};
    rig r;
    t.max_skipped_steps = 3;
    c.output_dir = out, c.save_when = NXT_NEVER, c.eval_when = NXT_STEPS, c.eval_steps = 1;
    if (rig_up(&r, model, NULL, 1, &t)) {
        float *w = (float *)r.m->layers[1].up.w->w.p, whole = *w;
        c.eval_data = r.d;
        if (OK(r.cx, nxt_run_create(&run, r.t, &c, NULL))) {
            *w = INFINITY;
            CHECK(OK(r.cx, nxt_run_step(run, &info)) && info.step.skipped);
            *w = whole;
            CHECK(run->state.best_step == 0);
            CHECK(OK(r.cx, nxt_run_step(run, &info)) && !info.step.skipped);
            CHECK(run->state.best_step == 2 && isfinite(run->state.best));
            CHECK(OK(r.cx, nxt_run_checkpoint(run, &info)));
        }
        nxt_run_destroy(run);
    }
    rig_down(&r);
    CHECK(OK(cx, file_read(cx, text_of("%s/metrics.jsonl", out), 1 << 20, &text)));
    CHECK(text.p && strstr(text.p, "{\"step\": 1, \"epoch\": ") == text.p);
    CHECK(text.p && strstr(text.p, "\"loss\": null, \"grad_norm\": null"));
    CHECK(text.p && strstr(text.p, "\"eval_loss\": null") && !strstr(text.p, "nan"));
    buffer_free(&text);
    if (rig_up(&r, model, NULL, 1, &t)) {
        c.eval_data = r.d;
        CHECK(OK(r.cx, nxt_run_create(&run, r.t, &c, text_of("%s/checkpoint-2", out))));
        if (run) CHECK(OK(r.cx, nxt_run_step(run, &info)) && info.step.step == 3);
        nxt_run_destroy(run);
    }
    rig_down(&r);
    nxt_context_destroy(cx);
}

static int checkpoints_in(nxt_context *cx, const char *out) {
    i64 *steps, count = 0;
    if (OK(cx, list_checkpoints(cx, out, &steps, &count))) mem_drop(cx, steps);
    return (int)count;
}

/* A rate that rises and rises ruins the model: an early state stays the best. */
static void test_run_best(void) {
    nxt_context *cx = test_context();
    const char *model = micro_model(cx, "best", "", "f32"), *out = text_of("%s-out", model);
    run_plan p = plan_run(model, out);
    i64 rows;
    p.t.learning_rate = 2, p.t.warmup_steps = 11;
    p.c.eval_steps = p.c.save_steps = 2, p.c.save_total_limit = 2,
    p.c.load_best_model_at_end = 1;
    CHECK(do_run(&p));
    char *metrics = timeless_metrics(out, &rows);
    double best = INFINITY;
    i64 best_step = 0;
    for (char *at = metrics; (at = strstr(at, "eval_loss=")); at++) {
        const double loss = strtod(at + 10, NULL);
        char *line = at;
        while (line > metrics && line[-1] != '\n') line--;
        if (loss < best) best = loss, best_step = strtol(strstr(line, "step=") + 5, NULL, 10);
    }
    CHECK(best_step > 0 && best_step < 10); /* else this test shows nothing */
    CHECK(checkpoints_in(cx, out) == 2);    /* the best and the last */
    CHECK(is_there(out, text_of("checkpoint-%d", (int)best_step))
          && is_there(out, "checkpoint-12"));
    CHECK(same_files(text_of("%s/checkpoint-%d/model.safetensors", out, (int)best_step),
                     text_of("%s/model.safetensors", out)));
    CHECK(!same_files(text_of("%s/checkpoint-12/model.safetensors", out),
                      text_of("%s/model.safetensors", out)));
    p.c.save_steps = 4; /* what is evaluated between two checkpoints cannot be kept */
    p.out = p.c.output_dir = text_of("%s-sparse", model);
    CHECK(do_run(&p) && is_there(p.out, "model.safetensors"));
    p.c.save_steps = 5; /* the best state would not have been saved */
    CHECK(failed_checks == 0);
    rig r;
    nxt_run *run;
    if (rig_up(&r, model, NULL, 1, &p.t)) {
        p.c.eval_data = r.d;
        CHECK(nxt_run_create(&run, r.t, &p.c, NULL) == NXT_ARGUMENT && !run);
    }
    rig_down(&r);
    free(metrics);
    nxt_context_destroy(cx);
}

/* What can be known to be wrong is said before the first step. */
static void test_run_refused(void) {
    nxt_context *cx = test_context();
    const char *model = micro_model(cx, "refused-runs", "", "f32");
    const char *out = text_of("%s-out", model);
    nxt_train_config t = micro_training();
    nxt_dataset *eval = NULL;
    nxt_run *run;
    i32 ids[80] = {0};
    rig r;
    if (rig_up(&r, model, NULL, 1, &t))
        for (int k = 0; k < 5; k++) {
            nxt_run_config c = nxt_run_config_default();
            c.output_dir = out, c.eval_when = NXT_STEPS, c.eval_data = r.d;
            CHECK(OK(r.cx, nxt_dataset_from_tokens(&eval, r.cx, ids, NULL, (i64[]){0, 70}, 1)));
            if (k == 0) c.dtype = "f8";
            if (k == 1) c.eval_batch_size = 0;
            if (k == 2) c.eval_data = eval; /* longer than the model's positions */
            if (k == 3) c.eval_data = NULL, c.load_best_model_at_end = 1;
            if (k == 4) c.output_dir = NULL;
            CHECK(nxt_run_create(&run, r.t, &c, NULL) == NXT_ARGUMENT && !run);
            nxt_dataset_destroy(eval);
        }
    rig_down(&r);
    nxt_context_destroy(cx);
}

/* -- Saving -------------------------------------------------------------------------------- */
static void test_save_load_save(void) {
    static const char *const types[] = {"f32", "f16", "bf16"};
    static const char *const files[] = {"config.json", "tokenizer.json",
                                        "tokenizer_config.json", "generation_config.json",
                                        "model.safetensors"};
    nxt_context *cx = test_context();
    for (int k = 0; k < 3; k++) {
        const char *model = micro_model(cx, "again", "", types[k]);
        const char *a = text_of("%s-a", model), *b = text_of("%s-b", model);
        nxt_model *m;
        nxt_model_info info;
        if (!OK(cx, nxt_model_load(&m, cx, model))) continue;
        nxt_model_describe(m, &info);
        CHECK(!strcmp(info.dtype, types[k]));
        CHECK(OK(cx, nxt_model_save(m, a, NULL)));
        nxt_model_destroy(m);
        if (!OK(cx, nxt_model_load(&m, cx, a))) continue;
        CHECK(OK(cx, nxt_model_save(m, b, NULL)));
        for (int f = 0; f < COUNT(files); f++) {
            CHECK(same_files(text_of("%s/%s", a, files[f]), text_of("%s/%s", b, files[f])));
            if (f)
                CHECK(same_files(text_of("%s/%s", model, files[f]),
                                 text_of("%s/%s", a, files[f])));
        }
        nxt_save_config c = nxt_save_config_default();
        c.dtype = "f32", c.shard_bytes = 20000; /* several files, and back into one */
        CHECK(OK(cx, nxt_model_save(m, b, &c)));
        CHECK(!is_there(b, "model.safetensors") && is_there(b, "model.safetensors.index.json"));
        const u64 digest = params_digest(m);
        nxt_model_destroy(m);
        if (!OK(cx, nxt_model_load(&m, cx, b))) continue;
        CHECK(params_digest(m) == digest);
        c.dtype = types[k], c.shard_bytes = 0;
        CHECK(OK(cx, nxt_model_save(m, b, &c)));
        CHECK(!is_there(b, "model.safetensors.index.json"));
        const char *first = text_of("%s/model.safetensors", a);
        CHECK(same_files(first, text_of("%s/model.safetensors", b)));
        nxt_model_destroy(m);
    }
    nxt_context_destroy(cx);
}

/* I10: every file is flushed before it gets its name, and so are the directories. */
static void test_save_flushes(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "flushes", "", "f32");
    const nxt_train_config c = micro_training();
    rig r;
    if (rig_up(&r, dir, NULL, 1, &c)) {
        flushes = 0;
        CHECK(OK(r.cx, nxt_model_save(r.m, text_of("%s-a", dir), NULL)));
        /* config, weights, three of the tokenizer's; the directories, old and new */
        CHECK(flushes >= 5 + 2);
        flushes = 0;
        CHECK(OK(r.cx, nxt_trainer_save(r.t, text_of("%s-b", dir))));
        CHECK(flushes >= 7 + 2); /* the optimizer's state and the trainer's as well */
    }
    rig_down(&r);
    nxt_context_destroy(cx);
}

/* What f16 cannot hold is an error that names the tensor, and leaves no file behind. */
static void test_save_overflow(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "overflow", "", "f32"), *out = text_of("%s-f16", dir);
    const nxt_train_config t = micro_training();
    nxt_save_config c = nxt_save_config_default();
    rig r;
    c.dtype = "f16";
    if (rig_up(&r, dir, NULL, 1, &t)) {
        ((float *)r.m->layers[1].up.w->w.p)[3] = 70000;
        CHECK(nxt_model_save(r.m, out, &c) == NXT_FORMAT);
        CHECK(strstr(nxt_error_message(r.cx), "layers.1.mlp.dense_h_to_4h.weight"));
        CHECK(!is_there(out, "model.safetensors") && !is_there(out, "config.json"));
        c.dtype = "bf16";
        CHECK(OK(r.cx, nxt_model_save(r.m, out, &c)) && is_there(out, "model.safetensors"));
        ((float *)r.m->layers[1].up.w->w.p)[3] = NAN; /* a model that is lost is not saved */
        out = text_of("%s-nan", dir);
        CHECK(nxt_model_save(r.m, out, NULL) == NXT_DIVERGED);
        CHECK(strstr(nxt_error_message(r.cx), "layers.1.mlp.dense_h_to_4h.weight"));
        CHECK(nxt_trainer_save(r.t, out) != NXT_OK && !is_there(out, "config.json"));
        c.dtype = "f8";
        CHECK(nxt_model_save(r.m, out, &c) == NXT_ARGUMENT);
    }
    rig_down(&r);
    nxt_context_destroy(cx);
}

/* Trains and saves until it is killed. Runs in a child, which must not start threads. */
static void train_until_killed(const char *model, const char *out, const char *resume,
                               int limit) {
    rig r;
    nxt_run *run;
    nxt_run_info info;
    nxt_train_config t = micro_training();
    nxt_run_config c = nxt_run_config_default();
    t.max_steps = 100000;
    c.output_dir = out, c.save_steps = 1, c.save_total_limit = limit;
    if (!rig_up(&r, model, NULL, 1, &t) || nxt_run_create(&run, r.t, &c, resume) != NXT_OK)
        _exit(3);
    while (nxt_run_step(run, &info) == NXT_OK) {}
    _exit(4);
}

/* Killed at any instant, twenty times over, and resumed each time from what was left. */
static void test_save_killed_run(void) {
    nxt_context *cx = context_with(NULL, 1);
    const char *model = micro_model(cx, "killed", "", "f16"), *out = text_of("%s-out", model);
    nxt_train_config t = micro_training();
    char last[512] = "", dead[512];
    long before = 0;
    t.max_steps = 100000;
    for (int round = 0; round < 20 && !failed_checks; round++) {
        const pid_t child = fork();
        if (child == 0)
            train_until_killed(model, out, last[0] ? last : NULL, round % 2 ? 1 : 3);
        for (int wait = 0; wait < 20000; wait++) { /* until it has saved something new */
            CHECK(OK(cx, nxt_run_last_checkpoint(cx, out, dead, sizeof dead)));
            if (strcmp(dead, last) || waitpid(child, NULL, WNOHANG) == child) break;
            usleep(500);
        }
        usleep((useconds_t)(mix64((u64)round) % 30000));
        int how = 0;
        kill(child, SIGKILL);
        CHECK(waitpid(child, &how, 0) == child && WIFSIGNALED(how));
        CHECK(OK(cx, nxt_run_last_checkpoint(cx, out, last, sizeof last)));
        const char *digits = strrchr(last, '-');
        CHECK(digits && strspn(digits + 1, "0123456789") == strlen(digits + 1));
        const long step = digits ? strtol(digits + 1, NULL, 10) : 0;
        CHECK(step > before);
        before = step;
        rig r;
        nxt_step_info info;
        if (rig_up(&r, last, NULL, 1, &t) && OK(r.cx, nxt_trainer_resume(r.t, last)))
            CHECK(rig_step(&r, 1, &info) && info.step == step + 1);
        rig_down(&r);
    }
    nxt_context_destroy(cx);
}

/* -- Schedules ----------------------------------------------------------------------------- */
/* E7: update k (from 0) of T with warm-up w; the numbers are worked out by hand. */
static void test_schedules(void) {
    nxt_train_config c = nxt_train_config_default();
    CHECK(c.learning_rate == 5e-5 && c.num_train_epochs == 3 && c.batch_size == 8
          && c.seed == 42);
    CHECK(c.gradient_accumulation_steps == 1 && c.weight_decay == 0 && c.adam_beta1 == 0.9);
    CHECK(c.adam_beta2 == 0.999 && c.adam_epsilon == 1e-8 && c.max_grad_norm == 1);
    CHECK(c.schedule == NXT_SCHEDULE_LINEAR && c.warmup_steps == 0 && c.max_skipped_steps == 0);
    static const struct {
        nxt_schedule s;
        i64 k, w, T;
        double want;
    } rows[] = {
        {NXT_SCHEDULE_LINEAR, 0, 0, 10, 1},
        {NXT_SCHEDULE_LINEAR, 9, 0, 10, 0.1},
        {NXT_SCHEDULE_LINEAR, 10, 0, 10, 0},
        {NXT_SCHEDULE_LINEAR, 0, 4, 10, 0},
        {NXT_SCHEDULE_LINEAR, 3, 4, 10, 0.75},
        {NXT_SCHEDULE_LINEAR, 4, 4, 10, 1},
        {NXT_SCHEDULE_LINEAR, 7, 4, 10, 0.5},
        {NXT_SCHEDULE_LINEAR, 12, 4, 10, 0},
        {NXT_SCHEDULE_LINEAR, 2, 4, 3, 0.5},
        {NXT_SCHEDULE_COSINE, 0, 0, 8, 1},
        {NXT_SCHEDULE_COSINE, 2, 0, 8, 0.8535533905932737},
        {NXT_SCHEDULE_COSINE, 4, 0, 8, 0.5},
        {NXT_SCHEDULE_COSINE, 8, 0, 8, 0},
        {NXT_SCHEDULE_COSINE, 1, 2, 6, 0.5},
        {NXT_SCHEDULE_COSINE, 4, 2, 6, 0.5},
        {NXT_SCHEDULE_CONSTANT, 0, 5, 10, 1},
        {NXT_SCHEDULE_CONSTANT, 9, 5, 10, 1},
        {NXT_SCHEDULE_CONSTANT_WITH_WARMUP, 0, 5, 10, 0},
        {NXT_SCHEDULE_CONSTANT_WITH_WARMUP, 4, 5, 10, 0.8},
        {NXT_SCHEDULE_CONSTANT_WITH_WARMUP, 5, 5, 10, 1},
        {NXT_SCHEDULE_CONSTANT_WITH_WARMUP, 9, 5, 10, 1},
    };
    for (i64 i = 0; i < COUNT(rows); i++) {
        c.schedule = rows[i].s;
        const double got = schedule_factor(&c, rows[i].k, rows[i].w, rows[i].T);
        if (!(fabs(got - rows[i].want) < 1e-12)) printf("  row %d: %.17g\n", (int)i, got);
        CHECK(fabs(got - rows[i].want) < 1e-12);
    }
    nxt_trainer t = {.total_steps = 30, .c = {.warmup_ratio = 0.1, .learning_rate = 1}};
    CHECK(warmup_steps(&t) == 3);
    t.c.warmup_ratio = 0.11;
    CHECK(warmup_steps(&t) == 4); /* ceil, as Hugging Face has it */
    t.c.warmup_steps = 2;
    CHECK(warmup_steps(&t) == 2 && learning_rate(&t, 1) == 0.5);
}

static void test_train_epochs(void) {
    static const struct { double epochs; i64 batch, accumulate, per_epoch, total; } rows[] = {
        {1, 4, 1, 6, 6}, {3, 8, 1, 3, 9}, {0.5, 4, 1, 6, 3}, {2, 2, 3, 4, 8}, {1, 50, 1, 1, 1}};
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "epochs", "", "f32");
    for (i64 i = 0; i < COUNT(rows); i++) {
        nxt_train_config c = micro_training();
        nxt_step_info info = {0};
        rig r;
        i64 tokens = 0;
        c.max_steps = 0, c.num_train_epochs = rows[i].epochs, c.batch_size = rows[i].batch;
        c.gradient_accumulation_steps = rows[i].accumulate;
        if (!rig_up(&r, dir, NULL, 1, &c)) continue;
        CHECK(nxt_trainer_steps_per_epoch(r.t) == rows[i].per_epoch);
        CHECK(nxt_trainer_total_steps(r.t) == rows[i].total);
        for (i64 k = 0; k < rows[i].per_epoch && !nxt_trainer_done(r.t); k++)
            if (rig_step(&r, 1, &info)) tokens += info.tokens;
        if (rows[i].epochs >= 1) /* every example once */
            CHECK(tokens == r.d->info.tokens && info.num_tokens == tokens && info.epoch == 1);
        rig_down(&r);
    }
    nxt_context_destroy(cx);
}

static void test_train_config_refused(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "config", "", "f32");
    nxt_train_config good = micro_training();
    rig r;
    if (rig_up(&r, dir, NULL, 1, &good))
        for (int k = 0; k < 18; k++) {
            nxt_train_config c = good;
            nxt_trainer *t = r.t;
            if (k == 0) c.learning_rate = NAN;
            if (k == 1) c.adam_beta1 = 1;
            if (k == 2) c.adam_beta2 = -0.1;
            if (k == 3) c.adam_epsilon = 0;
            if (k == 4) c.batch_size = 0;
            if (k == 5) c.gradient_accumulation_steps = 0;
            if (k == 6) c.max_steps = 0, c.num_train_epochs = 0;
            if (k == 7) c.warmup_steps = -1;
            if (k == 8) c.warmup_ratio = NAN;
            if (k == 9) c.learning_rate = INFINITY;
            if (k == 10) c.learning_rate = -1;
            if (k == 11) c.adam_epsilon = 1e-60; /* nothing, as a float */
            if (k == 12) c.weight_decay = NAN;
            if (k == 13) c.weight_decay = -0.1;
            if (k == 14) c.max_grad_norm = INFINITY;
            if (k == 15) c.warmup_ratio = 2;
            if (k == 16) c.batch_size = c.gradient_accumulation_steps = (i64)1 << 40;
            if (k == 17) c.max_steps = 0, c.num_train_epochs = INFINITY;
            CHECK(nxt_trainer_create(&t, r.m, r.d, &c) == NXT_ARGUMENT && !t);
        }
    rig_down(&r);
    nxt_context_destroy(cx);
}

/* -- What is not finite, and what is cancelled --------------------------------------------- */
static void test_train_diverged(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "diverged", "", "f32");
    nxt_train_config c = micro_training();
    nxt_step_info info, plain;
    rig r;
    c.warmup_steps = 0;
    if (rig_up(&r, dir, NULL, 1, &c) && rig_step(&r, 2, &info)) {
        ((float *)r.m->layers[1].up.w->w.p)[0] = INFINITY;
        const u64 digest = params_digest(r.m);
        CHECK(nxt_trainer_step(r.t, &info) == NXT_DIVERGED);
        CHECK(strstr(nxt_error_message(r.cx), "step 3:") != NULL);
        CHECK(params_digest(r.m) == digest);
    }
    rig_down(&r);
    c.max_skipped_steps = 2;
    if (rig_up(&r, dir, NULL, 1, &c) && rig_step(&r, 2, &plain)) {
        float *w = (float *)r.m->layers[1].up.w->w.p, whole = *w;
        *w = INFINITY;
        const u64 digest = params_digest(r.m);
        CHECK(rig_step(&r, 1, &info) && info.skipped && info.step == 3);
        CHECK(rig_step(&r, 1, &info) && info.skipped && info.step == 4);
        CHECK(params_digest(r.m) == digest && r.t->skipped == 2);
        CHECK(nxt_trainer_step(r.t, &info) == NXT_DIVERGED);
        CHECK(strstr(nxt_error_message(r.cx), "step 5:") != NULL);
        *w = whole; /* what was skipped has left no trace in the moments */
        CHECK(rig_step(&r, 1, &info) && !info.skipped && info.step == 5 && isfinite(info.loss));
        for (i64 i = 0; i < r.m->param_count; i++) {
            const param *p = &r.m->params[i];
            const float *m = moment(r.t, p, 0), *v = moment(r.t, p, 1);
            bool finite = true;
            for (i64 k = 0; k < p->w.rows * p->w.cols; k++)
                finite &=
                    isfinite(m[k]) && isfinite(v[k]) && isfinite(((float *)p->w.p)[k]);
            CHECK(finite);
        }
    }
    rig_down(&r);
    nxt_context_destroy(cx);
}

static void test_cancel(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "cancel", "", "f32");
    const nxt_train_config c = micro_training();
    nxt_eval_info e;
    double perplexity[32];
    rig r;
    if (rig_up(&r, dir, NULL, 1, &c)) {
        nxt_session *s = NULL;
        const i32 id = 5;
        float logits[MICRO_VOCABULARY];
        OK(r.cx, nxt_session_create(&s, r.m, 1, 8));
        nxt_cancel(r.cx);
        CHECK(nxt_evaluate(r.m, r.d, 4, &e) == NXT_CANCELLED);
        CHECK(nxt_perplexities(r.m, r.d, 4, 0, perplexity) == NXT_CANCELLED);
        CHECK(nxt_session_feed(s, &(nxt_feed){0, &id, 1}, 1, logits) == NXT_CANCELLED);
        nxt_cancel_clear(r.cx);
        CHECK(OK(r.cx, nxt_evaluate(r.m, r.d, 4, &e)) && e.examples == 21);
        nxt_session_destroy(s);
    }
    rig_down(&r);
    nxt_context_destroy(cx);
}

/* -- Evaluation ---------------------------------------------------------------------------- */
/* The mean over all tokens, however they are batched; the trainer's loss is the same number. */
static void test_evaluate(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "evaluate", "", "f16");
    nxt_train_config c = micro_training();
    nxt_eval_info e, first = {0};
    nxt_step_info info;
    double loss;
    rig r;
    c.batch_size = 21;
    if (rig_up(&r, dir, NULL, 1, &c)) {
        for (i64 batch = 1; batch <= 32; batch *= 2) {
            CHECK(OK(r.cx, nxt_evaluate(r.m, r.d, batch, batch == 1 ? &first : &e)));
            if (batch == 1) continue;
            CHECK(fabs(e.loss - first.loss) < 1e-6 * first.loss && e.tokens == first.tokens);
        }
        CHECK(first.tokens == r.d->info.trained_tokens);
        CHECK(fabs(first.perplexity - exp(first.loss)) < 1e-9 * first.perplexity);
        CHECK(OK(r.cx, nxt_forward(r.m, r.d, 0, 21, &loss))
              && fabs(loss - first.loss) < 1e-6 * loss);
        CHECK(rig_step(&r, 1, &info) && fabs(info.loss - first.loss) < 1e-6 * first.loss);
        CHECK(nxt_forward(r.m, r.d, 20, 2, &loss) == NXT_ARGUMENT);
        CHECK(nxt_evaluate(r.m, r.d, 0, &e) == NXT_ARGUMENT);
    }
    rig_down(&r);
    nxt_context_destroy(cx);
}

/* evaluate's "perplexity", as its own formula gave it for a golden model. */
static void test_perplexity_golden(void) {
    nxt_context *cx = test_context();
    arena a = {.cx = cx};
    buffer text = {.cx = cx};
    json *g = NULL;
    nxt_model *m = NULL;
    i32 ids[512];
    i64 offset[64] = {0}, count = 0;
    double got[64], sum = 0;
    nxt_eval_info e;
    nxt_dataset *d = NULL;
    if (!OK(cx, file_read(cx, "tests/golden/perplexity.json", 1 << 20, &text))
        || !OK(cx, json_parse(&a, "perplexity.json", text.p, text.n, &g))
        || !OK(cx, nxt_model_load(&m, cx, "tests/golden/neox-parallel-025")))
        return;
    for (const json *t = json_get(g, "ids")->first; t; t = t->next, count++) {
        offset[count + 1] = offset[count];
        for (const json *id = t->first; id; id = id->next)
            ids[offset[count + 1]++] = (i32)id->number;
    }
    CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, ids, NULL, offset, count)) && count == 10);
    CHECK(OK(cx, nxt_perplexities(m, d, 4, (i32)json_number(g, "bos_token_id", -1), got)));
    const json *want = json_get(g, "perplexities")->first;
    for (i64 i = 0; i < count; i++, want = want->next) {
        CHECK(fabs(got[i] - want->number) < 2e-5 * want->number);
        sum += got[i];
    }
    CHECK(fabs(sum / (double)count - json_number(g, "mean_perplexity", 0)) < 2e-5 * sum);
    CHECK(OK(cx, nxt_evaluate(m, d, 3, &e)));
    CHECK(fabs(e.loss - json_number(g, "loss_without_bos", 0)) < 1e-5 * e.loss);
    CHECK(e.tokens == (i64)json_number(g, "tokens_without_bos", 0));
    CHECK(OK(cx, nxt_perplexities(m, d, 4, -1, got)) && isnan(got[0])); /* one token, no bos */
    const json *nll = json_get(g, "nll_without_bos")->first->next;
    const json *predicted = json_get(g, "predicted_without_bos")->first->next;
    for (i64 i = 1; i < count; i++, nll = nll->next, predicted = predicted->next)
        CHECK(fabs(log(got[i]) - nll->number / predicted->number) < 1e-5);
    nxt_dataset_destroy(d);
    nxt_model_destroy(m);
    buffer_free(&text), arena_free(&a);
    nxt_context_destroy(cx);
}

/* -- Memory -------------------------------------------------------------------------------- */
typedef struct ledger { /* an allocator that counts, and refuses one call */
    i64 calls, refuse; /* the call to refuse, from 1; 0: none */
    i64 blocks, bytes;
    bool dirty; /* memory begins as NaN, whatever it is used for */
} ledger;

static void *ledger_get(void *user, size_t bytes) {
    ledger *l = user;
    if (++l->calls == l->refuse) return NULL;
    void *p = malloc(bytes);
    if (p) l->blocks++, l->bytes += (i64)bytes;
    if (p && l->dirty) memset(p, 0xff, bytes);
    return p;
}

static void ledger_put(void *user, void *p, size_t bytes) {
    ledger *l = user;
    l->blocks--, l->bytes -= (i64)bytes;
    free(p);
}

static nxt_status ledger_context(ledger *l, nxt_context **cx) {
    nxt_context_config c = nxt_context_config_default();
    c.allocate = ledger_get, c.release = ledger_put, c.user = l, c.threads = 2;
    return nxt_context_create(cx, &c);
}

/* I4: a step asks the allocator for nothing. */
static void test_step_allocates_nothing(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "nothing", "", "f16");
    nxt_train_config c = micro_training();
    nxt_step_info info;
    ledger l = {0};
    rig r = {0};
    size_t now = 0, peak = 0;
    nxt_context_destroy(cx);
    c.gradient_accumulation_steps = 2, c.batch_size = 3;
    CHECK(ledger_context(&l, &r.cx) == NXT_OK);
    if (OK(r.cx, nxt_model_load(&r.m, r.cx, dir)) && (r.d = random_data(r.cx, 21, 30, 5))
        && OK(r.cx, nxt_trainer_create(&r.t, r.m, r.d, &c))) {
        const i64 calls = l.calls;
        CHECK(rig_step(&r, 6, &info));
        CHECK(calls > 0 && l.calls == calls);
        nxt_context_memory(r.cx, &now, &peak);
        CHECK((i64)(now + sizeof *r.cx) == l.bytes && peak >= now);
    }
    rig_down(&r);
    CHECK(l.blocks == 0 && l.bytes == 0);
}

/* Nothing depends on what memory held before: training, evaluation, and sessions whose
 * sequences leave most of their caches unused. */
static void test_dirty_memory(void) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, "dirty", "", "f16");
    static float logits[2][3 * MICRO_VOCABULARY];
    static const i32 ids[] = {7, 8, 9, 10, 11, 12, 13, 14, 15};
    u64 digest[2] = {0};
    nxt_eval_info e[2] = {{0}};
    nxt_context_destroy(cx);
    for (int dirty = 0; dirty < 2; dirty++) {
        ledger l = {.dirty = dirty};
        rig r = {0};
        nxt_session *s = NULL;
        nxt_step_info info;
        nxt_train_config c = micro_training();
        const nxt_feed feeds[] = {{0, ids, 9}, {2, ids + 1, 5}, {1, ids, 2}};
        c.warmup_steps = 0;
        CHECK(ledger_context(&l, &r.cx) == NXT_OK);
        if (OK(r.cx, nxt_model_load(&r.m, r.cx, dir)) && (r.d = random_data(r.cx, 21, 30, 5))
            && OK(r.cx, nxt_session_create(&s, r.m, 3, MICRO_POSITIONS))
            && OK(r.cx, nxt_session_feed(s, feeds, 3, logits[dirty]))
            && OK(r.cx, nxt_trainer_create(&r.t, r.m, r.d, &c)) && rig_step(&r, 3, &info)
            && OK(r.cx, nxt_evaluate(r.m, r.d, 4, &e[dirty])))
            digest[dirty] = params_digest(r.m);
        nxt_session_destroy(s);
        rig_down(&r);
    }
    CHECK(digest[0] && digest[0] == digest[1] && e[0].loss == e[1].loss);
    CHECK(!memcmp(logits[0], logits[1], sizeof logits[0]) && isfinite(logits[0][0]));
}

/* What a stage of a program works on. A stage takes what is there and leaves it so. */
typedef struct failing {
    ledger l;
    nxt_context *cx;
    char dir[320], out[320], data_file[320];
    const char *data;
    nxt_model *m;
    nxt_tokenizer *tok;
    nxt_dataset *d;
    nxt_trainer *t;
    double result, expected; /* of a stage: the same each time it succeeds */
} failing;

#define STEP(call) do { if ((status = (call)) != NXT_OK) goto done; } while (0)

static nxt_status stage_model(failing *f) {
    nxt_model *m = NULL;
    nxt_status status = nxt_model_load(&m, f->cx, f->dir);
    CHECK((status == NXT_OK) == (m != NULL));
    f->result = m ? (double)(params_digest(m) >> 12) : 0;
    nxt_model_destroy(m);
    return status;
}

static nxt_status stage_tokenizer(failing *f) {
    nxt_tokenizer *tok = NULL;
    i32 ids[64];
    size_t count = 0;
    nxt_status status;
    STEP(nxt_tokenizer_load(&tok, f->cx, f->dir));
    STEP(nxt_encode(tok, "the cat in the hat", 18, ids, NULL, 64, &count));
done:
    f->result = (double)count;
    nxt_tokenizer_destroy(tok);
    return status;
}

static nxt_status stage_data(failing *f) {
    nxt_data_config c = nxt_data_config_default();
    nxt_dataset *d = NULL, *held = NULL;
    nxt_dataset_info info = {0};
    const i64 offset[] = {0, 3};
    nxt_status status;
    c.max_length = 32;
    STEP(nxt_dataset_from_files(&d, f->tok, &f->data, 1, &c));
    STEP(nxt_dataset_split(d, 0.3, 1, &held));
    nxt_dataset_describe(held, &info);
    STEP(nxt_dataset_write_rows(held, text_of("%s/rows.jsonl", f->out)));
    nxt_dataset_destroy(held);
    held = d; /* any handle: it must become NULL after a failure */
    status = nxt_dataset_from_tokens(&held, f->cx, (const i32[]){1, 2, 3}, NULL, offset, 1);
    CHECK((status == NXT_OK) == (held != NULL) && held != d);
    if (held == d) held = NULL;
done:
    f->result = (double)info.tokens;
    nxt_dataset_destroy(held);
    nxt_dataset_destroy(d);
    return status;
}

/* A model of its own, so that each failure meets one that was never trained, then meets it
 * again: after a failure the same call must be able to succeed. */
static nxt_status stage_train(failing *f) {
    nxt_train_config c = micro_training();
    nxt_model *m = NULL;
    nxt_trainer *t = NULL;
    nxt_step_info info = {0};
    nxt_status status, again;
    double loss;
    const i64 refuse = f->l.refuse;
    STEP(nxt_model_load(&m, f->cx, f->dir));
    for (int turn = 0; turn < 2; turn++) {
        status = nxt_trainer_create(&t, m, f->d, &c);
        CHECK((status == NXT_OK) == (t != NULL));
        if (status == NXT_OK) break;
        f->l.refuse = 0;
        again = nxt_trainer_create(&t, m, f->d, &c);
        CHECK(again == NXT_OK);
        for (int k = 0; k < 3 && again == NXT_OK; k++) again = nxt_trainer_step(t, &info);
        CHECK(again == NXT_OK && info.loss == f->expected); /* after two updates */
        f->l.refuse = refuse;
        goto done;
    }
    for (int k = 0; k < 3; k++) STEP(nxt_trainer_step(t, &info));
    STEP(nxt_backward(m, f->d, 0, 3, &loss));
done:
    f->result = info.loss;
    nxt_trainer_destroy(t);
    nxt_model_destroy(m);
    return status;
}

static nxt_status stage_use(failing *f) {
    nxt_session *s = NULL;
    nxt_eval_info e = {0};
    nxt_sample_config c = nxt_sample_config_default();
    double perplexity[64], score = 0;
    static float logits[8 * MICRO_VOCABULARY];
    const i32 ids[] = {4, 5, 6};
    i32 token = 0;
    nxt_status status;
    c.temperature = 1, c.top_k = 5, c.repetition_penalty = 1.2;
    STEP(nxt_evaluate(f->m, f->d, 4, &e));
    STEP(nxt_perplexities(f->m, f->d, 4, 0, perplexity));
    STEP(nxt_logits(f->m, ids, 3, logits));
    STEP(nxt_session_create(&s, f->m, 2, 16));
    STEP(nxt_session_feed(s, &(nxt_feed){1, ids, 3}, 1, logits));
    STEP(nxt_sample(f->cx, logits, MICRO_VOCABULARY, &c, 0, ids, 3, &token));
    STEP(nxt_score_exact_match(f->cx, "The cat", "cat.", &score));
done:
    f->result = e.loss + token + score;
    nxt_session_destroy(s);
    return status;
}

static nxt_status stage_save(failing *f) {
    const char *dir = text_of("%s/checkpoint-1", f->out);
    nxt_save_config c = nxt_save_config_default();
    c.dtype = "bf16", c.shard_bytes = 30000;
    nxt_status status;
    STEP(nxt_trainer_save(f->t, dir));
    STEP(nxt_trainer_resume(f->t, dir));
    STEP(nxt_model_save(f->m, text_of("%s/saved", f->out), &c));
done:
    f->result = 1;
    return status;
}

static nxt_status stage_init(failing *f) {
    const char *out = text_of("%s/fresh", f->out);
    nxt_status status =
        nxt_model_init(f->cx, text_of("%s/config.json", f->dir), f->dir, out, "f16", 3);
    f->result = 1;
    return status;
}

static nxt_status stage_export(failing *f) {
    nxt_export_config c = nxt_export_config_default();
    const char *out = text_of("%s/model.gguf", f->out);
    c.dtype = "q8_0";
    f->result = 1;
    return nxt_model_export(f->m, out, &c);
}

static nxt_status stage_run(failing *f) {
    nxt_run_config c = nxt_run_config_default();
    nxt_run *run = NULL;
    nxt_run_info info;
    char last[300];
    nxt_status status;
    c.output_dir = text_of("%s/run", f->out), c.run_json = "{}";
    c.eval_data = f->d, c.eval_when = NXT_STEPS, c.eval_steps = 1;
    c.save_steps = 1, c.save_total_limit = 1;
    f->t->step = f->t->skipped = 0; /* so that it never ends */
    status = nxt_run_create(&run, f->t, &c, NULL);
    CHECK((status == NXT_OK) == (run != NULL));
    if (status != NXT_OK) goto done;
    STEP(nxt_run_step(run, &info));
    STEP(nxt_run_finish(run));
    STEP(nxt_run_last_checkpoint(f->cx, c.output_dir, last, sizeof last));
    CHECK(ends_with(last, "/checkpoint-1"));
done:
    f->result = 1;
    nxt_run_destroy(run);
    return status;
}

/* Refuses the first, second, ... allocation of a stage: each must end in NXT_MEMORY, or do
 * without it; nothing may stay behind. step: how many are passed over each time. */
static void refuse_each(failing *f, const char *name, nxt_status (*stage)(failing *),
                        i64 step) {
    f->l.refuse = 0;
    CHECK(OK(f->cx, stage(f)));
    f->expected = f->result;
    const i64 blocks = f->l.blocks, before = f->l.calls;
    CHECK(OK(f->cx, stage(f)) && f->result == f->expected);
    const i64 calls = f->l.calls - before;
    CHECK(f->l.blocks == blocks && calls > 0);
    for (i64 n = 1; n <= calls && failed_checks < 3; n += step) {
        f->cx->message[0] = 0;
        f->l.calls = 0, f->l.refuse = n;
        const nxt_status status = stage(f);
        const bool good = (status == NXT_MEMORY && f->cx->message[0])
                          || (status == NXT_OK && f->result == f->expected);
        if (!good || f->l.blocks != blocks)
            printf("  %s, allocation %d of %d: %s \"%s\", %d blocks stay\n", name, (int)n,
                   (int)calls, nxt_status_name(status), f->cx->message,
                   (int)(f->l.blocks - blocks));
        CHECK(good && f->l.blocks == blocks);
    }
    f->l.refuse = 0;
    CHECK(OK(f->cx, stage(f)) && f->result == f->expected); /* all is still in order */
}

static bool failing_up(failing *f, const char *name) {
    static const char rows[] =
        "{\"question\": \"where is the hat\", \"answer\": \" on the cat\"}\n"
        "{\"question\": \"and the cat\", \"answer\": \" in the other hat\"}\n"
        "{\"question\": \"who\", \"answer\": \" nobody\"}\n{\"question\": \"a\", \"answer\": "
        "\" b\"}\n";
    nxt_data_config c = nxt_data_config_default();
    const nxt_train_config t = micro_training();
    nxt_context *cx = test_context();
    *f = (failing){.data = f->data_file};
    snprintf(f->dir, sizeof f->dir, "%s", micro_model(cx, name, "", "f16"));
    snprintf(f->out, sizeof f->out, "%.300s-out", f->dir);
    snprintf(f->data_file, sizeof f->data_file, "%.300s/rows.jsonl", f->dir);
    mkdir(f->out, 0777);
    micro_file(f->dir, "rows.jsonl", rows);
    nxt_context_destroy(cx);
    c.max_length = 32;
    return ledger_context(&f->l, &f->cx) == NXT_OK
           && OK(f->cx, nxt_model_load(&f->m, f->cx, f->dir))
           && OK(f->cx, nxt_tokenizer_load(&f->tok, f->cx, f->dir))
           && OK(f->cx, nxt_dataset_from_files(&f->d, f->tok, &f->data, 1, &c))
           && OK(f->cx, nxt_trainer_create(&f->t, f->m, f->d, &t));
}

static void failing_down(failing *f) {
    nxt_trainer_destroy(f->t);
    nxt_dataset_destroy(f->d);
    nxt_tokenizer_destroy(f->tok);
    nxt_model_destroy(f->m);
    nxt_context_destroy(f->cx);
    CHECK(f->l.blocks == 0 && f->l.bytes == 0);
}

static void test_refused_context(void) {
    ledger l = {0};
    nxt_context *cx = NULL;
    CHECK(ledger_context(&l, &cx) == NXT_OK);
    const i64 calls = l.calls;
    nxt_context_destroy(cx);
    for (i64 n = 1; n <= calls; n++) {
        l.calls = 0, l.refuse = n;
        CHECK(ledger_context(&l, &cx) == NXT_MEMORY && !cx);
        CHECK(l.blocks == 0 && l.bytes == 0);
    }
}

static void test_refused_loading(void) {
    failing f;
    if (failing_up(&f, "refused-loading")) {
        refuse_each(&f, "model", stage_model, 1);
        refuse_each(&f, "tokenizer", stage_tokenizer, 1);
        refuse_each(&f, "data", stage_data, 1);
    }
    failing_down(&f);
}

static void test_refused_training(void) {
    failing f;
    if (failing_up(&f, "refused-training")) {
        refuse_each(&f, "training", stage_train, 1);
        refuse_each(&f, "use", stage_use, 1);
    }
    failing_down(&f);
}

static void test_refused_saving(void) {
    failing f;
    skip_flushes = 1;
    if (failing_up(&f, "refused-saving")) {
        refuse_each(&f, "saving", stage_save, long_run ? 1 : 2);
        refuse_each(&f, "init", stage_init, long_run ? 1 : 2);
        refuse_each(&f, "export", stage_export, 1);
        refuse_each(&f, "run", stage_run, long_run ? 1 : 3);
    }
    failing_down(&f);
    skip_flushes = 0;
}
#undef STEP
