/* Black-box tests: only neoxtune.h, linked to neoxtune.o; compiled as C and as C++17. Every
 * public function is called, as a host would call it.
 *
 *     build/test_api [NAME...] [--list]
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* barriers under -std=c11 */
#endif
#include "../neoxtune.h"

#include <math.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "micro.h"

static int failed_checks;
static const char *skip_reason;

static void check_(int ok, const char *text, int line) {
    if (!ok && failed_checks++ < 20) printf("  tests/test_api.c:%d: %s\n", line, text);
}
#define CHECK(condition) check_((condition) ? 1 : 0, #condition, __LINE__)
#define OK(cx, call) ok_((cx), (call), #call, __LINE__)

static int ok_(const nxt_context *cx, nxt_status status, const char *text, int line) {
    if (status == NXT_OK) return 1;
    check_(0, text, line);
    printf("  %s: %s\n", nxt_status_name(status), nxt_error_message(cx));
    return 0;
}

/* A file or directory below this program's own scratch directory. */
static char scratch_root[64];
static const char *scratch(const char *name) {
    static char paths[16][300];
    static int turn;
    char *path = paths[turn++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_root, name);
    return path;
}

static int exists(const char *dir, const char *name) {
    char path[600];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return stat(path, &st) == 0;
}

static const char training_text[] =
    "the cat sat on the mat\nthe hen sat in the den\nthe rat sat at the inn\n"
    "a cat and a hen and a rat\n";

/* The directory of a small model and its texts, made once. */
static const char *micro_dir(void) {
    static int made;
    const char *dir = scratch("micro");
    if (!made) {
        nxt_context *cx;
        made = 1;
        mkdir(dir, 0777);
        micro_config(dir, "");
        micro_tokenizer(dir);
        micro_file(dir, "cats.txt", training_text);
        micro_file(dir, "pairs.jsonl",
                   "{\"question\": \"cat\", \"answer\": \" mat\"}\n"
                   "{\"question\": \"hen\", \"answer\": \" den\"}\n"
                   "{\"question\": \"rat\", \"answer\": \" inn\"}\n"
                   "{\"question\": \"bat\", \"answer\": \" hat\"}\n");
        if (nxt_context_create(&cx, NULL) != NXT_OK) exit(1);
        OK(cx, nxt_model_init(cx, scratch("micro/config.json"), dir, scratch("micro/model"),
                              "f32", 3));
        nxt_context_destroy(cx);
    }
    return scratch("micro/model");
}

static nxt_context *plain_context(void) {
    nxt_context *cx;
    if (nxt_context_create(&cx, NULL) != NXT_OK) exit(1);
    return cx;
}

static nxt_train_config fast_training(int64_t steps) {
    nxt_train_config c = nxt_train_config_default();
    c.learning_rate = 5e-3, c.max_steps = steps, c.batch_size = 4, c.warmup_steps = 4;
    return c;
}

/* -- Small things -------------------------------------------------------------------------- */
static void test_status(void) {
    CHECK(nxt_version()[0] >= '0' && nxt_version()[0] <= '9');
    CHECK(!strcmp(nxt_status_name(NXT_OK), "ok"));
    CHECK(!strcmp(nxt_status_name(NXT_CANCELLED), "cancelled"));
    CHECK(!strcmp(nxt_status_name(NXT_DIVERGED), "diverged"));
    for (int i = 0; i < 10; i++)
        for (int k = 0; k < i; k++)
            CHECK(strcmp(nxt_status_name((nxt_status)i), nxt_status_name((nxt_status)k)) != 0);
    CHECK(nxt_status_name((nxt_status)99) != NULL && nxt_error_message(NULL) != NULL);
}

static void test_destroy_nothing(void) {
    nxt_context_destroy(NULL);
    nxt_tokenizer_destroy(NULL);
    nxt_model_destroy(NULL);
    nxt_dataset_destroy(NULL);
    nxt_trainer_destroy(NULL);
    nxt_run_destroy(NULL);
    nxt_session_destroy(NULL);
}

/* A failure returns NULL through the first parameter and a sentence that names the file. */
static void test_errors(void) {
    nxt_context *cx = plain_context();
    nxt_model *m = (nxt_model *)cx;
    nxt_tokenizer *tok = (nxt_tokenizer *)cx, *good;
    nxt_dataset *d = (nxt_dataset *)cx;
    nxt_data_config dc = nxt_data_config_default();
    const char *file = scratch("nowhere.txt"), *text = "x";
    char last[300] = "x";
    CHECK(nxt_model_load(&m, cx, scratch("nowhere")) == NXT_IO && m == NULL);
    CHECK(strstr(nxt_error_message(cx), "nowhere/config.json") != NULL);
    CHECK(strstr(nxt_error_message(cx), "No such file") != NULL);
    CHECK(nxt_tokenizer_load(&tok, cx, scratch("elsewhere")) == NXT_IO && tok == NULL);
    CHECK(strstr(nxt_error_message(cx), "elsewhere") != NULL);
    if (OK(cx, nxt_tokenizer_load(&good, cx, micro_dir()))) {
        CHECK(nxt_dataset_from_files(&d, good, &file, 1, &dc) == NXT_IO && d == NULL);
        CHECK(strstr(nxt_error_message(cx), "nowhere.txt") != NULL);
    }
    nxt_tokenizer_destroy(good);
    micro_file(scratch_root, "config.json", "{\"model_type\": \"bert\"}");
    CHECK(nxt_model_load(&m, cx, scratch_root) == NXT_UNSUPPORTED && m == NULL);
    CHECK(strstr(nxt_error_message(cx), "config.json")
          && strstr(nxt_error_message(cx), "bert"));
    micro_file(scratch_root, "config.json", "{\"model_type\": \n  oops}");
    CHECK(nxt_model_load(&m, cx, scratch_root) == NXT_FORMAT);
    CHECK(strstr(nxt_error_message(cx), "config.json:2:3:") != NULL);
    CHECK(nxt_text_read(cx, file, &text) == NXT_IO && text == NULL);
    CHECK(OK(cx, nxt_run_last_checkpoint(cx, scratch("nowhere"), last, sizeof last))
          && !last[0]);
    nxt_context_destroy(cx);
}

static void test_texts(void) {
    nxt_context *cx = plain_context();
    const char *a = NULL, *b = NULL;
    double score = -1;
    micro_file(scratch_root, "note.txt", "two\nlines");
    CHECK(OK(cx, nxt_text_read(cx, scratch("note.txt"), &a)) && !strcmp(a, "two\nlines"));
    CHECK(OK(cx, nxt_text_keep(cx, "kept", &b)) && !strcmp(b, "kept"));
    CHECK(!strcmp(a, "two\nlines")); /* it lives on */
    CHECK(nxt_utf8_whole("a\xc3\xa9", 3) == 3 && nxt_utf8_whole("a\xc3\xa9", 2) == 1);
    CHECK(OK(cx, nxt_score_exact_match(cx, "The Cat.", "cat", &score)) && score == 1);
    CHECK(OK(cx, nxt_score_exact_match(cx, "dog", "cat", &score)) && score == 0);
    nxt_context_destroy(cx);
}

typedef struct seen_options {
    char text[400];
} seen_options;

static void see_option(void *user, const char *name, const char *value) {
    seen_options *s = (seen_options *)user;
    const size_t n = strlen(s->text);
    snprintf(s->text + n, sizeof s->text - n, "%s=%s;", name, value);
}

static void test_options(void) {
    nxt_context *cx = plain_context();
    seen_options s = {""};
    micro_file(scratch_root, "run.json",
               "{\"learning_rate\": 5e-05, \"data\": [\"a b\", \"c\"], "
               "\"json\": true, \"none\": null, \"name\": \"x\\ny\"}");
    CHECK(OK(cx, nxt_options_read(cx, scratch("run.json"), see_option, &s)));
    CHECK(!strcmp(s.text, "learning_rate=5e-05;data=a b;data=c;json=true;name=x\ny;"));
    micro_file(scratch_root, "run.json", "[1]");
    CHECK(nxt_options_read(cx, scratch("run.json"), see_option, &s) == NXT_FORMAT);
    CHECK(strstr(nxt_error_message(cx), "run.json") != NULL);
    nxt_context_destroy(cx);
}

/* -- Contexts ------------------------------------------------------------------------------ */
typedef struct host { /* what a host's callbacks count */
    long blocks, bytes, loops, tasks, lines;
    char line[500];
} host;

static void *host_allocate(void *user, size_t bytes) {
    host *h = (host *)user;
    h->blocks++, h->bytes += (long)bytes;
    return malloc(bytes);
}

static void host_release(void *user, void *memory, size_t bytes) {
    host *h = (host *)user;
    h->blocks--, h->bytes -= (long)bytes;
    free(memory);
}

static void host_log(void *user, nxt_log_level level, const char *line) {
    host *h = (host *)user;
    h->lines += level == NXT_LOG_WARNING;
    snprintf(h->line, sizeof h->line, "%s", line);
}

static void host_parallel_for(void *user, int64_t tasks, void (*task)(void *arg, int64_t i),
                              void *arg) {
    host *h = (host *)user;
    h->loops++, h->tasks += (long)tasks;
    for (int64_t i = tasks; i-- > 0;) task(arg, i); /* any order will do */
}

static double train_loss(nxt_context *cx, int64_t steps, float *sample) {
    nxt_model *m = NULL;
    nxt_tokenizer *tok = NULL;
    nxt_dataset *d = NULL;
    nxt_trainer *t = NULL;
    nxt_data_config dc = nxt_data_config_default();
    nxt_train_config tc = fast_training(steps);
    nxt_step_info info;
    char path[300];
    const char *file = path;
    snprintf(path, sizeof path, "%s/micro/cats.txt", scratch_root);
    memset(&info, 0, sizeof info);
    dc.max_length = 60;
    char dir[300];
    snprintf(dir, sizeof dir, "%s/micro/model", scratch_root);
    if (OK(cx, nxt_model_load(&m, cx, dir)) && OK(cx, nxt_tokenizer_load(&tok, cx, dir))
        && OK(cx, nxt_dataset_from_files(&d, tok, &file, 1, &dc))
        && OK(cx, nxt_trainer_create(&t, m, d, &tc))) {
        while (!nxt_trainer_done(t) && OK(cx, nxt_trainer_step(t, &info))) {}
        if (sample) CHECK(OK(cx, nxt_param_read(m, 3, 5, 1, sample)));
    }
    nxt_trainer_destroy(t);
    nxt_dataset_destroy(d);
    nxt_tokenizer_destroy(tok);
    nxt_model_destroy(m);
    return info.loss;
}

static void test_callbacks(void) {
    host h;
    nxt_context_config c = nxt_context_config_default();
    nxt_context *cx = NULL, *own = plain_context();
    nxt_model *m;
    size_t now = 0, peak = 0;
    float a = 0, b = 1;
    memset(&h, 0, sizeof h);
    micro_dir();
    c.allocate = host_allocate, c.release = host_release, c.log = host_log;
    c.parallel_for = host_parallel_for, c.user = &h, c.threads = 3;
    if (!OK(cx, nxt_context_create(&cx, &c))) return;
    CHECK(nxt_context_threads(cx) == 3);
    const double theirs = train_loss(cx, 5, &a), ours = train_loss(own, 5, &b);
    CHECK(theirs == ours && a == b && isfinite(ours)); /* whoever runs the tasks */
    CHECK(!strcmp(nxt_context_cpu(cx), "reference") || (h.loops > 0 && h.tasks > h.loops));
    nxt_context_memory(cx, &now, &peak);
    CHECK(peak > now && h.bytes >= (long)now && h.blocks > 0);
    nxt_context_memory(cx, NULL, NULL);
    /* a config of one layer: the tensors of the other are reported */
    micro_config(scratch("micro/model"), ", \"num_hidden_layers\": 1");
    CHECK(OK(cx, nxt_model_load(&m, cx, scratch("micro/model"))));
    CHECK(h.lines == 1 && strstr(h.line, "12 tensors are not used")
          && strstr(h.line, "layers.1."));
    nxt_model_destroy(m);
    micro_config(scratch("micro/model"), "");
    nxt_context_destroy(cx);
    CHECK(h.blocks == 0 && h.bytes == 0);
    nxt_context_destroy(own);
}

static void *no_memory(void *user, size_t bytes) {
    (void)user, (void)bytes;
    return NULL;
}

static void test_context_refused(void) {
    nxt_context_config c = nxt_context_config_default();
    nxt_context *cx = (nxt_context *)&c;
    c.allocate = host_allocate;
    CHECK(nxt_context_create(&cx, &c) == NXT_ARGUMENT && cx == NULL); /* both or neither */
    c = nxt_context_config_default();
    c.threads = -1;
    CHECK(nxt_context_create(&cx, &c) == NXT_ARGUMENT && cx == NULL);
    c = nxt_context_config_default();
    c.cpu = "pentium";
    CHECK(nxt_context_create(&cx, &c) == NXT_ARGUMENT && cx == NULL);
    c = nxt_context_config_default();
    c.allocate = no_memory, c.release = host_release;
    CHECK(nxt_context_create(&cx, &c) == NXT_MEMORY && cx == NULL);
    c = nxt_context_config_default();
    nxt_backend partial;
    memset(&partial, 0, sizeof partial);
    c.backend = &partial; /* a table must be whole */
    CHECK(nxt_context_create(&cx, &c) == NXT_ARGUMENT && cx == NULL);
    c = nxt_context_config_default();
    c.cpu = "reference", c.threads = 1;
    if (OK(cx, nxt_context_create(&cx, &c))) {
        CHECK(!strcmp(nxt_context_cpu(cx), "reference") && nxt_context_threads(cx) == 1);
        CHECK(nxt_error_message(cx) != NULL);
    }
    nxt_context_destroy(cx);
}

typedef struct worker {
    double loss;
    float sample;
} worker;

static void *train_apart(void *pointer) {
    worker *w = (worker *)pointer;
    nxt_context_config c = nxt_context_config_default();
    nxt_context *cx;
    c.threads = 2;
    if (nxt_context_create(&cx, &c) != NXT_OK) return NULL;
    w->loss = train_loss(cx, 12, &w->sample);
    nxt_context_destroy(cx);
    return NULL;
}

/* Two contexts at once, on two threads: the same numbers as one alone. */
static void test_two_contexts(void) {
    worker w[3];
    pthread_t thread[2];
    memset(w, 0, sizeof w);
    micro_dir();
    train_apart(&w[2]);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&thread[i], NULL, train_apart, &w[i]) == 0);
    for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < 2; i++)
        CHECK(w[i].loss == w[2].loss && w[i].sample == w[2].sample && w[i].loss > 0);
}

/* -- Tokenizer ----------------------------------------------------------------------------- */
static void test_tokenizer(void) {
    static const char text[] = "the \xf0\x9f\x90\x88 in the\xff hat<|endoftext|>";
    nxt_context *cx = plain_context();
    nxt_tokenizer *tok;
    int32_t ids[64];
    size_t ends[64], count = 0, again = 0, bytes = 0;
    char back[64];
    if (!OK(cx, nxt_tokenizer_load(&tok, cx, micro_dir()))) return;
    const size_t n = sizeof text - 1;
    CHECK(OK(cx, nxt_encode(tok, text, n, NULL, NULL, 0, &count)) && count > 0 && count < 40);
    CHECK(OK(cx, nxt_encode(tok, text, n, ids, ends, 64, &again)) && again == count);
    CHECK(ends[count - 1] == n && ids[count - 1] == 0 && ids[0] == 1 + 't' && ids[1] == 258);
    for (size_t i = 1; i < count; i++) CHECK(ends[i] >= ends[i - 1]);
    CHECK(OK(cx, nxt_decode(tok, ids, count, NULL, 0, &bytes)) && bytes == n);
    CHECK(OK(cx, nxt_decode(tok, ids, count, back, sizeof back, &bytes)));
    CHECK(bytes == n && !memcmp(back, text, n)); /* the byte that is no UTF-8, too */
    int32_t few[2] = {-7, -7};
    CHECK(OK(cx, nxt_encode(tok, text, n, few, NULL, 1, &again)) && again == count);
    CHECK(few[0] == ids[0] && few[1] == -7);
    back[2] = 'x';
    CHECK(OK(cx, nxt_decode(tok, ids, count, back, 2, &bytes)) && bytes == n && back[2] == 'x');
    CHECK(nxt_token_id(tok, "<|endoftext|>") == 0 && nxt_token_id(tok, " the") == 259);
    CHECK(nxt_token_id(tok, "no such token") == -1);
    CHECK(nxt_tokenizer_size(tok) == 265);
    CHECK(nxt_tokenizer_eos(tok) == 0 && nxt_tokenizer_bos(tok) == 0);
    CHECK(nxt_token_is_special(tok, 0) && !nxt_token_is_special(tok, 259));
    CHECK(!nxt_token_is_special(tok, -1) && !nxt_token_is_special(tok, 1 << 30));
    CHECK(OK(cx, nxt_encode(tok, "", 0, ids, NULL, 64, &count)) && count == 0);
    CHECK(!nxt_tokenizer_adds_bos(tok) && !nxt_tokenizer_adds_space(tok));
    nxt_tokenizer_destroy(tok);
    if (OK(cx, nxt_tokenizer_load(&tok, cx, "tests/golden/tokenizers/spm"))) {
        CHECK(nxt_tokenizer_adds_bos(tok) && nxt_tokenizer_bos(tok) == 1);
        CHECK(nxt_tokenizer_adds_space(tok));
        CHECK(OK(cx, nxt_encode(tok, text, n - 13, ids, ends, 64, &count)) && ids[0] != 1);
        CHECK(OK(cx, nxt_decode(tok, ids, count, back, sizeof back, &bytes)));
        CHECK(bytes == n - 12 && back[0] == ' ' && !memcmp(back + 1, text, n - 13));
        CHECK(ends[count - 1] == n - 13);
    }
    nxt_tokenizer_destroy(tok);
    if (OK(cx, nxt_tokenizer_load(&tok, cx, "tests/golden/tokenizers/qwen2")))
        CHECK(!nxt_tokenizer_adds_bos(tok) && !nxt_tokenizer_adds_space(tok));
    nxt_tokenizer_destroy(tok);
    nxt_context_destroy(cx);
}

/* -- Models -------------------------------------------------------------------------------- */
static void test_model(void) {
    nxt_context *cx = plain_context();
    nxt_model *m, *again;
    nxt_model_info info;
    nxt_param_info p;
    nxt_memory_plan train, use;
    nxt_save_config c = nxt_save_config_default();
    int64_t total = 0;
    float a[4], b[4], grad[4] = {1, 1, 1, 1};
    if (!OK(cx, nxt_model_load(&m, cx, "tests/golden/neox-parallel-025"))) return;
    nxt_model_describe(m, &info);
    CHECK(!strcmp(info.family, "gpt_neox") && !strcmp(info.architecture, "GPTNeoXForCausalLM"));
    CHECK(!strcmp(info.dtype, "f32") && info.layers == 2 && info.parallel_residual
          && !info.tied);
    CHECK(info.width % info.heads == 0 && info.mapped_bytes == 80344 && info.bos == 0);
    CHECK(info.embedding_parameters == info.vocabulary * info.width && info.rotary > 0);
    for (int64_t i = 0; i < nxt_param_count(m); i++) {
        nxt_param_describe(m, i, &p);
        CHECK(p.rows > 0 && p.cols > 0 && !strcmp(p.dtype, "f32") && !p.trainable);
        total += p.rows * p.cols;
    }
    CHECK(total == info.parameters);
    CHECK(nxt_model_ends(m, 0) && !nxt_model_ends(m, 1) && !nxt_model_ends(m, -1));
    if (OK(cx, nxt_model_load(&again, cx, "tests/golden/qwen2-tiny"))) /* "eos": [2, 1] */
        CHECK(nxt_model_ends(again, 2) && nxt_model_ends(again, 1) && !nxt_model_ends(again, 0));
    nxt_model_destroy(again);
    nxt_param_describe(m, 0, &p);
    CHECK(!strcmp(p.name, "gpt_neox.embed_in.weight") && p.rows == info.vocabulary);
    CHECK(OK(cx, nxt_param_read(m, 0, p.cols - 2, 4, a))); /* across a row's end */
    CHECK(OK(cx, nxt_grad_read(m, 0, 0, 4, grad)) && grad[0] == 0 && grad[3] == 0);
    CHECK(nxt_param_read(m, 0, p.rows * p.cols - 1, 2, b) == NXT_ARGUMENT);
    CHECK(nxt_param_read(m, 10000, 0, 1, b) == NXT_ARGUMENT);
    nxt_model_memory(m, 64, 1, &train);
    nxt_model_memory(m, 64, 0, &use);
    CHECK(train.gradients == 4 * total && train.optimizer == 8 * total && use.gradients == 0);
    CHECK(train.total > use.total && use.total > 0 && use.mapped == info.mapped_bytes);
    CHECK(c.dtype == NULL && c.shard_bytes == 5000000000);
    c.dtype = "bf16";
    CHECK(OK(cx, nxt_model_save(m, scratch("saved"), &c)));
    if (OK(cx, nxt_model_load(&again, cx, scratch("saved")))) {
        nxt_model_describe(again, &info);
        CHECK(!strcmp(info.dtype, "bf16") && info.parameters == total);
        CHECK(OK(cx, nxt_param_read(again, 0, p.cols - 2, 4, b)));
        for (int i = 0; i < 4; i++) CHECK(fabsf(a[i] - b[i]) <= fabsf(a[i]) / 256);
    }
    nxt_model_destroy(again);
    CHECK(OK(cx, nxt_model_save(m, scratch("saved"), NULL))
          && exists(scratch("saved"), "config.json"));
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

/* The numbers of tests/golden/perplexity.json; logits, loss and sessions say the same. */
static void test_forward(void) {
    static const int32_t ids[] = {3, 64, 52, 9, 35, 28};
    static const int64_t offsets[] = {0, 1, 3, 6};
    static const double golden[] = {346.1143798828125, 50.67580795288086, 183.44476318359375};
    nxt_context *cx = plain_context();
    nxt_model *m;
    nxt_dataset *d = NULL;
    nxt_session *s = NULL;
    double perplexity[3], loss = 0, by_hand;
    if (!OK(cx, nxt_model_load(&m, cx, "tests/golden/neox-parallel-025"))) return;
    nxt_model_info info;
    nxt_model_describe(m, &info);
    const int64_t V = info.vocabulary;
    float *logits = (float *)malloc((size_t)(3 * V) * sizeof *logits);
    float *row = (float *)malloc((size_t)V * sizeof *row);
    CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, ids, NULL, offsets, 3)));
    CHECK(OK(cx, nxt_perplexities(m, d, 2, 0, perplexity)));
    for (int i = 0; i < 3; i++) CHECK(fabs(perplexity[i] - golden[i]) < 2e-5 * golden[i]);
    CHECK(OK(cx, nxt_forward(m, d, 1, 1, &loss)) && fabs(loss - 3.43380069732666) < 1e-5);
    CHECK(OK(cx, nxt_logits(m, ids + 1, 2, logits)));
    double sum = 0;
    for (int64_t i = 0; i < V; i++) sum += exp((double)logits[i]);
    by_hand = log(sum) - logits[52];
    CHECK(fabs(by_hand - loss) < 1e-5);
    CHECK(OK(cx, nxt_session_create(&s, m, 2, 8)));
    nxt_feed feed;
    feed.sequence = 1, feed.ids = ids + 1, feed.n = 2;
    CHECK(OK(cx, nxt_session_feed(s, &feed, 1, row)));
    for (int64_t i = 0; i < V; i++) CHECK(fabsf(row[i] - logits[V + i]) < 1e-4f);
    CHECK(nxt_session_length(s, 1) == 2 && nxt_session_length(s, 0) == 0);
    nxt_session_rewind(s, 1, 1);
    CHECK(nxt_session_length(s, 1) == 1);
    nxt_session_destroy(s);
    free(logits), free(row);
    nxt_dataset_destroy(d);
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

/* Gradients of parts add up to the gradient of the whole, and clear. */
static void test_backward(void) {
    nxt_context *cx = plain_context();
    nxt_model *m;
    nxt_dataset *d = NULL;
    static const int32_t ids[] = {5, 6, 7, 8, 9, 10, 11, 12, 13};
    static const uint8_t trained[] = {1, 1, 1, 1, 0, 0, 1, 1, 1};
    static const int64_t offsets[] = {0, 4, 9};
    double loss, first, second;
    float whole[8], parts[8], once[8];
    if (!OK(cx, nxt_model_load(&m, cx, micro_dir()))) return;
    CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, ids, trained, offsets, 2)));
    CHECK(OK(cx, nxt_backward(m, d, 0, 2, &loss))
          && OK(cx, nxt_grad_read(m, 0, 5 * 32, 8, whole)));
    CHECK(OK(cx, nxt_grad_zero(m)) && OK(cx, nxt_grad_read(m, 0, 5 * 32, 8, parts)));
    for (int i = 0; i < 8; i++) CHECK(parts[i] == 0 && whole[i] != 0);
    CHECK(OK(cx, nxt_backward(m, d, 0, 1, &first))
          && OK(cx, nxt_grad_read(m, 0, 5 * 32, 8, once)));
    CHECK(OK(cx, nxt_backward(m, d, 1, 1, &second))
          && OK(cx, nxt_grad_read(m, 0, 5 * 32, 8, parts)));
    for (int i = 0; i < 8; i++) {
        CHECK(fabsf(parts[i] - whole[i]) < 1e-5f);
        CHECK(parts[i] == once[i]); /* token 5 is in the first alone */
    }
    CHECK(fabs(loss - (3 * first + 3 * second) / 6) < 1e-6); /* means of three tokens each */
    nxt_param_info p;
    nxt_param_describe(m, 0, &p);
    CHECK(p.trainable);
    nxt_dataset_destroy(d);
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

/* A profile changes no result and sees every product; bf16 is a request. */
static void test_profile(void) {
    nxt_context *cx = plain_context();
    nxt_model *m;
    nxt_dataset *d = NULL;
    nxt_model_info i;
    nxt_limits limits;
    static nxt_profile_row rows[128];
    static const int32_t ids[] = {5, 6, 7, 8, 9, 10, 11, 12, 13};
    static const uint8_t trained[] = {1, 1, 1, 1, 0, 0, 1, 1, 1};
    static const int64_t offsets[] = {0, 4, 9};
    double loss = 0, same = NAN, flop = 0, seconds = 0;
    if (!OK(cx, nxt_model_load(&m, cx, micro_dir()))) return;
    CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, ids, trained, offsets, 2)));
    CHECK(OK(cx, nxt_backward(m, d, 0, 2, &loss)));
    CHECK(nxt_profile_read(cx, rows, 128) == 0);
    CHECK(OK(cx, nxt_profile_start(cx)) && OK(cx, nxt_backward(m, d, 0, 2, &same)));
    CHECK(loss == same);
    const int64_t n = nxt_profile_read(cx, rows, 128);
    CHECK(n > 10 && n <= 128 && nxt_profile_read(cx, NULL, 0) == n);
    for (int64_t k = 0; k < n; k++) {
        CHECK(rows[k].op && rows[k].calls > 0 && rows[k].seconds >= 0 && rows[k].bytes > 0);
        seconds += rows[k].seconds;
        if (rows[k].out) flop += rows[k].flop;
    }
    nxt_model_describe(m, &i); /* nine rows pass the layers, six reach the head; each weight */
    const int64_t weights = i.layers * (4 * i.width * i.width + 2 * i.width * i.inner);
    CHECK(flop == 6.0 * (double)(9 * weights + 6 * i.width * i.vocabulary)); /* counts thrice */
    CHECK(seconds > 0 && OK(cx, nxt_measure_limits(cx, &limits)));
    CHECK(limits.read > 1e8 && limits.f32 >= 0 && limits.bf16 >= 0);
    nxt_profile_stop(cx);
    CHECK(nxt_profile_read(cx, rows, 128) == 0 && OK(cx, nxt_backward(m, d, 0, 2, &same)));
    CHECK(loss == same);
    const int in_use = nxt_use_bf16(cx, 1); /* whether or not, the loss is nearly the same */
    CHECK(OK(cx, nxt_backward(m, d, 0, 2, &same)) && fabs(same - loss) < 1e-2);
    CHECK(in_use ? same != loss : same == loss);
    CHECK(nxt_use_bf16(cx, 0) == 0 && OK(cx, nxt_backward(m, d, 0, 2, &same)) && same == loss);
    nxt_dataset_destroy(d);
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

/* -- Data ---------------------------------------------------------------------------------- */
static void test_dataset(void) {
    nxt_context *cx = plain_context();
    nxt_tokenizer *tok;
    nxt_dataset *d, *held = NULL;
    nxt_dataset_info info;
    nxt_data_config c = nxt_data_config_default();
    const int32_t *ids;
    const uint8_t *trained;
    int64_t n, seen = 0;
    const char *text = NULL;
    if (!OK(cx, nxt_tokenizer_load(&tok, cx, micro_dir()))) return;
    const char *file = scratch("micro/pairs.jsonl");
    CHECK(c.max_length == 2048 && c.block_size == 0 && c.append_eos == -1 && c.eos == -1);
    if (OK(cx, nxt_dataset_from_files(&d, tok, &file, 1, &c))) {
        nxt_dataset_describe(d, &info);
        CHECK(info.rows == 4 && info.examples == 4 && info.has_completions);
        CHECK(!strcmp(info.columns, "question + answer") && info.ends_in_eos == 4);
        nxt_dataset_example(d, 0, &ids, &trained, &n);
        CHECK(n >= 5 && ids[0] == 1 + 'c' && !trained[0] && trained[n - 1] && ids[n - 1] == 0);
        CHECK(OK(cx, nxt_dataset_split(d, 0.25, 42, &held)));
        nxt_dataset_describe(d, &info);
        seen = info.examples;
        nxt_dataset_describe(held, &info);
        CHECK(seen == 3 && info.examples == 1);
        CHECK(OK(cx, nxt_dataset_write_rows(held, scratch("held.jsonl"))));
        CHECK(OK(cx, nxt_text_read(cx, scratch("held.jsonl"), &text)));
        CHECK(text && !strncmp(text, "{\"question\": \"", 14)
              && text[strlen(text) - 1] == '\n');
    }
    nxt_dataset_destroy(held);
    nxt_dataset_destroy(d);
    nxt_tokenizer_destroy(tok);
    nxt_context_destroy(cx);
}

/* -- Training ------------------------------------------------------------------------------ */

/* The example of the header, with names of our own. */
static int header_example(const char *dir, const char *file, const char *out, double *last) {
    nxt_context *cx; nxt_model *model; nxt_tokenizer *tok; nxt_dataset *data; nxt_trainer *tr;
    nxt_data_config dc = nxt_data_config_default();
    nxt_train_config tc = nxt_train_config_default();
    nxt_step_info info;
    tc.learning_rate = 5e-3, tc.num_train_epochs = 100, tc.batch_size = 4;
    if (nxt_context_create(&cx, NULL) || nxt_model_load(&model, cx, dir)
        || nxt_tokenizer_load(&tok, cx, dir)
        || nxt_dataset_from_files(&data, tok, &file, 1, &dc)
        || nxt_trainer_create(&tr, model, data, &tc)) return 1;
    while (!nxt_trainer_done(tr) && nxt_trainer_step(tr, &info) == NXT_OK) *last = info.loss;
    if (nxt_model_save(model, out, NULL)) return 1;
    nxt_trainer_destroy(tr);
    nxt_dataset_destroy(data);
    nxt_tokenizer_destroy(tok);
    nxt_model_destroy(model);
    nxt_context_destroy(cx);
    return 0;
}

/* Completes a prompt greedily; the text without its end. */
static void continue_text(nxt_context *cx, const char *dir, const char *prompt, char *out,
                          size_t capacity) {
    nxt_model *m = NULL;
    nxt_tokenizer *tok = NULL;
    nxt_session *s = NULL;
    nxt_sample_config c = nxt_sample_config_default();
    float logits[MICRO_VOCABULARY];
    int32_t ids[MICRO_POSITIONS];
    size_t n = 0, bytes = 0, from;
    out[0] = 0;
    if (OK(cx, nxt_model_load(&m, cx, dir)) && OK(cx, nxt_tokenizer_load(&tok, cx, dir))
        && OK(cx, nxt_session_create(&s, m, 1, MICRO_POSITIONS))
        && OK(cx, nxt_encode(tok, prompt, strlen(prompt), ids, NULL, MICRO_POSITIONS, &n))) {
        for (from = 0; n < MICRO_POSITIONS - 1; from = n++) {
            nxt_feed feed;
            feed.sequence = 0, feed.ids = ids + from, feed.n = (int64_t)(n - from);
            if (!OK(cx, nxt_session_feed(s, &feed, 1, logits))) break;
            CHECK(OK(cx, nxt_sample(cx, logits, MICRO_VOCABULARY, &c, 0, ids, (int64_t)n,
                                    &ids[n])));
            if (ids[n] == nxt_tokenizer_eos(tok)) break;
        }
        CHECK(OK(cx, nxt_decode(tok, ids, n, out, capacity - 1, &bytes)));
        out[bytes < capacity ? bytes : capacity - 1] = 0;
    }
    nxt_session_destroy(s);
    nxt_tokenizer_destroy(tok);
    nxt_model_destroy(m);
}

static void test_header_example(void) {
    nxt_context *cx = plain_context();
    double loss = 9;
    char text[200];
    const char *dir = micro_dir();
    micro_file(scratch_root, "one.txt", "the cat sat on the mat\nthe hen sat in the den\n");
    CHECK(header_example(dir, scratch("one.txt"), scratch("tuned"), &loss) == 0);
    CHECK(loss < 0.2); /* learnt by heart: what remains is which of the two begins */
    continue_text(cx, scratch("tuned"), "the cat", text, sizeof text);
    CHECK(!strcmp(text, "the cat sat on the mat"));
    continue_text(cx, scratch("tuned"), "the hen", text, sizeof text);
    CHECK(!strcmp(text, "the hen sat in the den"));
    continue_text(cx, dir, "the cat", text, sizeof text);
    CHECK(strcmp(text, "the cat sat on the mat") != 0); /* it did not know before */
    nxt_context_destroy(cx);
}

typedef struct rig {
    nxt_context *cx;
    nxt_model *m;
    nxt_tokenizer *tok;
    nxt_dataset *d;
    nxt_trainer *t;
} rig;

static int rig_up(rig *r, const char *data, const nxt_train_config *c) {
    const char *dir = micro_dir(), *file = scratch(data);
    nxt_data_config dc = nxt_data_config_default();
    memset(r, 0, sizeof *r);
    r->cx = plain_context();
    return OK(r->cx, nxt_model_load(&r->m, r->cx, dir))
           && OK(r->cx, nxt_tokenizer_load(&r->tok, r->cx, dir))
           && OK(r->cx, nxt_dataset_from_files(&r->d, r->tok, &file, 1, &dc))
           && OK(r->cx, nxt_trainer_create(&r->t, r->m, r->d, c));
}

static void rig_down(rig *r) {
    nxt_trainer_destroy(r->t);
    nxt_dataset_destroy(r->d);
    nxt_tokenizer_destroy(r->tok);
    nxt_model_destroy(r->m);
    nxt_context_destroy(r->cx);
}

static void test_trainer(void) {
    nxt_train_config c = fast_training(6);
    nxt_step_info info, again;
    nxt_eval_info before, after;
    rig r, s;
    float a = 0, b = 1;
    if (!rig_up(&r, "micro/pairs.jsonl", &c)) return;
    CHECK(OK(r.cx, nxt_evaluate(r.m, r.d, 2, &before)) && before.examples == 4);
    CHECK(OK(r.cx, nxt_trainer_check(r.m, r.d, &c)));
    c.batch_size = 0;
    CHECK(nxt_trainer_check(r.m, r.d, &c) == NXT_ARGUMENT);
    c = fast_training(6);
    CHECK(nxt_trainer_total_steps(r.t) == 6 && nxt_trainer_steps_per_epoch(r.t) == 1);
    for (int k = 1; k <= 6; k++) {
        CHECK(!nxt_trainer_done(r.t));
        CHECK(OK(r.cx, nxt_trainer_step(r.t, &info)) && info.step == k
              && info.total_steps == 6);
        CHECK(isfinite(info.loss) && info.grad_norm > 0
              && info.trained_tokens == before.tokens);
        if (k == 1) CHECK(fabs(info.loss - before.loss) < 1e-6 * before.loss);
        if (k == 3) CHECK(OK(r.cx, nxt_trainer_save(r.t, scratch("trainer-3"))));
    }
    CHECK(nxt_trainer_done(r.t) && nxt_trainer_step(r.t, &again) == NXT_ARGUMENT);
    CHECK(OK(r.cx, nxt_evaluate(r.m, r.d, 4, &after)) && after.loss < before.loss - 0.1);
    CHECK(OK(r.cx, nxt_param_read(r.m, 2, 3, 1, &a)));
    rig_down(&r);
    CHECK(exists(scratch("trainer-3"), "trainer_state.json"));
    if (rig_up(&s, "micro/pairs.jsonl", &c)
        && OK(s.cx, nxt_trainer_resume(s.t, scratch("trainer-3")))) {
        for (int k = 0; k < 3; k++) CHECK(OK(s.cx, nxt_trainer_step(s.t, &again)));
        CHECK(again.step == 6 && again.loss == info.loss
              && again.num_tokens == info.num_tokens);
        CHECK(OK(s.cx, nxt_param_read(s.m, 2, 3, 1, &b)) && a == b);
    }
    rig_down(&s);
}

static void test_run(void) {
    nxt_train_config c = fast_training(8);
    nxt_run_config rc = nxt_run_config_default();
    nxt_run *run = NULL;
    nxt_run_info info;
    char last[400];
    int evaluations = 0, rows = 0;
    rig r;
    if (!rig_up(&r, "micro/pairs.jsonl", &c)) return;
    CHECK(nxt_run_create(&run, r.t, &rc, NULL) == NXT_ARGUMENT && !run); /* no directory */
    rc.output_dir = scratch("run"), rc.eval_data = r.d, rc.eval_when = NXT_STEPS,
    rc.eval_steps = 4;
    rc.save_when = NXT_NEVER, rc.logging_steps = 2, rc.run_json = "{}\n";
    if (OK(r.cx, nxt_run_create(&run, r.t, &rc, NULL))) {
        while (!nxt_trainer_done(r.t) && OK(r.cx, nxt_run_step(run, &info))) {
            evaluations += info.evaluated, rows += info.logged;
            if (info.step.step == 5)
                CHECK(OK(r.cx, nxt_run_checkpoint(run, &info)) && info.saved);
        }
        CHECK(evaluations == 2 && rows == 4 && !strcmp(info.checkpoint, ""));
        CHECK(OK(r.cx, nxt_run_last_checkpoint(r.cx, scratch("run"), last, sizeof last)));
        CHECK(strstr(last, "run/checkpoint-5") != NULL);
        CHECK(OK(r.cx, nxt_run_finish(run)));
        CHECK(exists(scratch("run"), "model.safetensors")
              && exists(scratch("run"), "metrics.jsonl"));
    }
    nxt_run_destroy(run);
    rig_down(&r);
    const int again = rig_up(&r, "micro/pairs.jsonl", &c);
    rc.eval_data = r.d;
    if (again && OK(r.cx, nxt_run_create(&run, r.t, &rc, last))) {
        CHECK(OK(r.cx, nxt_run_step(run, &info)) && info.step.step == 6);
        nxt_run_destroy(run);
    }
    rig_down(&r);
}

/* Adapters learn while the base keeps its bits; saved, loaded and merged they say the same. */
static void test_adapters(void) {
    const char *dir = micro_dir(), *file = scratch("micro/pairs.jsonl"), *base = NULL;
    nxt_context *cx = plain_context();
    nxt_lora_config lc = nxt_lora_config_default();
    nxt_train_config c = fast_training(20);
    nxt_data_config dc = nxt_data_config_default();
    nxt_save_config sc = nxt_save_config_default();
    nxt_model *m = NULL, *loaded = NULL, *merged = NULL;
    nxt_tokenizer *tok = NULL;
    nxt_dataset *d = NULL;
    nxt_trainer *t = NULL;
    nxt_step_info info;
    nxt_param_info p;
    double before = 0, after = 0, again = 0, plain = 0;
    int trained = 0;
    lc.targets = "all-linear", lc.alpha = 16, lc.dropout = 0.1;
    if (!OK(cx, nxt_model_load(&m, cx, dir)) || !OK(cx, nxt_tokenizer_load(&tok, cx, dir))
        || !OK(cx, nxt_dataset_from_files(&d, tok, &file, 1, &dc)))
        return;
    CHECK(OK(cx, nxt_forward(m, d, 0, 1, &before)));
    lc.rank = 0;
    CHECK(nxt_lora_attach(m, &lc) == NXT_ARGUMENT);
    lc.rank = 4;
    nxt_model_gradient_checkpointing(m, 1);
    CHECK(OK(cx, nxt_lora_attach(m, &lc)));
    CHECK(nxt_lora_attach(m, &lc) == NXT_ARGUMENT); /* once */
    CHECK(OK(cx, nxt_forward(m, d, 0, 1, &after)) && before == after); /* B is zero */
    if (OK(cx, nxt_trainer_create(&t, m, d, &c)))
        while (!nxt_trainer_done(t) && OK(cx, nxt_trainer_step(t, &info))) {}
    for (int64_t i = 0; i < nxt_param_count(m); i++) {
        nxt_param_describe(m, i, &p);
        CHECK(!p.trainable == !strstr(p.name, ".lora_"));
        trained += p.trainable;
    }
    CHECK(trained > 0 && trained % 2 == 0);
    CHECK(OK(cx, nxt_forward(m, d, 0, 1, &after)) && after < before);
    nxt_trainer_destroy(t);
    CHECK(OK(cx, nxt_model_save(m, scratch("lora"), NULL)));
    CHECK(exists(scratch("lora"), "adapter_model.safetensors"));
    CHECK(!exists(scratch("lora"), "model.safetensors"));
    CHECK(OK(cx, nxt_lora_base(cx, scratch("lora"), &base)) && !strcmp(base, dir));
    if (OK(cx, nxt_model_load(&loaded, cx, dir)) && OK(cx, nxt_lora_load(loaded, scratch("lora"))))
        CHECK(OK(cx, nxt_forward(loaded, d, 0, 1, &again)) && again == after);
    sc.merge = 1, sc.dtype = "f32";
    CHECK(OK(cx, nxt_model_save(loaded, scratch("merged"), &sc)));
    if (OK(cx, nxt_model_load(&merged, cx, scratch("merged"))))
        CHECK(OK(cx, nxt_forward(merged, d, 0, 1, &plain)) && fabs(plain - after) < 1e-4);
    CHECK(nxt_lora_load(merged, scratch("nowhere")) == NXT_IO);
    CHECK(nxt_lora_base(cx, scratch("nowhere"), &base) == NXT_IO);
    nxt_dataset_destroy(d);
    nxt_tokenizer_destroy(tok);
    nxt_model_destroy(m), nxt_model_destroy(loaded), nxt_model_destroy(merged);
    nxt_context_destroy(cx);
}

/* What is frozen has no gradient and keeps its bits; the rest learns. */
static void test_freeze(void) {
    static float was[1 << 16], is[1 << 16];
    const char *dir = micro_dir(), *file = scratch("micro/pairs.jsonl");
    nxt_train_config c = fast_training(3);
    nxt_data_config dc = nxt_data_config_default();
    for (int others = 0; others < 2; others++) {
        rig r;
        memset(&r, 0, sizeof r);
        r.cx = plain_context();
        nxt_step_info info;
        nxt_param_info p;
        if (!OK(r.cx, nxt_model_load(&r.m, r.cx, dir))
            || !OK(r.cx, nxt_tokenizer_load(&r.tok, r.cx, dir))
            || !OK(r.cx, nxt_dataset_from_files(&r.d, r.tok, &file, 1, &dc)))
            return;
        CHECK(nxt_model_freeze(r.m, "layers.0,nothing", others) == NXT_ARGUMENT);
        CHECK(OK(r.cx, nxt_model_freeze(r.m, "layers.0,bias", others)));
        if (OK(r.cx, nxt_trainer_create(&r.t, r.m, r.d, &c)))
            while (!nxt_trainer_done(r.t) && OK(r.cx, nxt_trainer_step(r.t, &info))) {}
        CHECK(nxt_model_freeze(r.m, "layers.0", 0) == NXT_ARGUMENT); /* too late */
        nxt_model *first;
        if (!OK(r.cx, nxt_model_load(&first, r.cx, dir))) return;
        for (int64_t i = 0; i < nxt_param_count(r.m); i++) {
            nxt_param_describe(r.m, i, &p);
            const int64_t n = p.rows * p.cols;
            const int named = strstr(p.name, ".layers.0.") || strstr(p.name, ".bias");
            if (n > 1 << 16 || !OK(r.cx, nxt_param_read(r.m, i, 0, n, is))
                || !OK(r.cx, nxt_param_read(first, i, 0, n, was)))
                continue;
            CHECK(p.trainable == (named == others));
            CHECK(!memcmp(was, is, (size_t)n * sizeof *is) == !p.trainable);
        }
        nxt_model_destroy(first);
        rig_down(&r);
    }
}

static void test_cancel(void) {
    nxt_train_config c = fast_training(8);
    nxt_eval_info e;
    rig r;
    if (rig_up(&r, "micro/cats.txt", &c)) {
        nxt_cancel(r.cx);
        CHECK(nxt_evaluate(r.m, r.d, 1, &e) == NXT_CANCELLED);
        nxt_cancel_clear(r.cx);
        CHECK(OK(r.cx, nxt_evaluate(r.m, r.d, 1, &e)));
    }
    rig_down(&r);
}

/* Two workers that add up their gradients train as one with both their data. */
typedef struct team {
    pthread_barrier_t barrier;
    double *counts[2];
    float *grad[2];
} team;

typedef struct member {
    team *all;
    int rank;
    nxt_dataset *d;
    nxt_context *cx;
    double loss[3];
    float sample[4];
    int calls;
} member;

static void add_up(void *user, double *counts, int64_t n_counts, float *grad, int64_t n) {
    member *me = (member *)user;
    team *t = me->all;
    me->calls++;
    t->counts[me->rank] = counts, t->grad[me->rank] = grad;
    pthread_barrier_wait(&t->barrier);
    if (me->rank == 0) {
        for (int64_t i = 0; i < n_counts; i++) t->counts[0][i] += t->counts[1][i];
        for (int64_t i = 0; i < n; i++) t->grad[0][i] += t->grad[1][i];
        if (n_counts) memcpy(t->counts[1], t->counts[0], (size_t)n_counts * sizeof(double));
        if (n) memcpy(t->grad[1], t->grad[0], (size_t)n * sizeof(float));
    }
    pthread_barrier_wait(&t->barrier);
}

static void *train_member(void *pointer) {
    member *me = (member *)pointer;
    nxt_train_config c = fast_training(3);
    nxt_context_config cc = nxt_context_config_default();
    nxt_model *m = NULL;
    nxt_dataset *d = NULL;
    nxt_trainer *t = NULL;
    nxt_step_info info;
    int32_t ids[12 * 8];
    int64_t offsets[13] = {0}, count = 0;
    char dir[300];
    snprintf(dir, sizeof dir, "%s/micro/model", scratch_root);
    cc.threads = 1;
    c.shuffle = 0, c.batch_size = me->all ? 2 : 4, c.warmup_steps = 0;
    c.adam_epsilon = 1e-3; /* rounding must not become a step of its own */
    if (me->all) c.all_reduce = add_up, c.user = me;
    for (int i = 0; i < 12; i++) { /* of each four, rank 0 has the first two */
        if (me->all && i / 2 % 2 != me->rank) continue;
        const int n = 3 + i % 5;
        for (int k = 0; k < n; k++) ids[offsets[count] + k] = (i * 7 + k * k) % 90;
        offsets[count + 1] = offsets[count] + n;
        count++;
    }
    if (nxt_context_create(&me->cx, &cc) != NXT_OK) return NULL;
    if (OK(me->cx, nxt_model_load(&m, me->cx, dir))
        && OK(me->cx, nxt_dataset_from_tokens(&d, me->cx, ids, NULL, offsets, count))
        && OK(me->cx, nxt_trainer_create(&t, m, d, &c))) {
        for (int k = 0; k < 3 && OK(me->cx, nxt_trainer_step(t, &info)); k++)
            me->loss[k] = info.loss;
        CHECK(OK(me->cx, nxt_param_read(m, 3, 0, 4, me->sample)));
    }
    nxt_trainer_destroy(t);
    nxt_dataset_destroy(d);
    nxt_model_destroy(m);
    nxt_context_destroy(me->cx);
    return NULL;
}

static void test_all_reduce(void) {
    team t;
    member one, two[2];
    pthread_t thread;
    memset(&one, 0, sizeof one);
    memset(two, 0, sizeof two);
    micro_dir();
    CHECK(pthread_barrier_init(&t.barrier, NULL, 2) == 0);
    for (int i = 0; i < 2; i++) two[i].all = &t, two[i].rank = i;
    train_member(&one);
    CHECK(pthread_create(&thread, NULL, train_member, &two[1]) == 0);
    train_member(&two[0]);
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&t.barrier);
    CHECK(two[0].calls == 6 && one.calls == 0); /* counts, then one piece, three times */
    for (int k = 0; k < 3; k++) {
        CHECK(two[0].loss[k] == two[1].loss[k]);
        CHECK(fabs(two[0].loss[k] - one.loss[k]) < 1e-5 * one.loss[k]);
    }
    for (int k = 0; k < 4; k++) {
        CHECK(two[0].sample[k] == two[1].sample[k]);
        CHECK(fabsf(two[0].sample[k] - one.sample[k]) < 2e-6f);
    }
}

/* -- The model of data/, when it is there -------------------------------------------------- */
static void test_pico(void) {
    static const char story[] =
        "One windy afternoon, Milo and Maya put on their shoes. Milo took the road to the "
        "farm. Maya took the road to the castle. It was easy to see who went to the farm: "
        "Milo.";
    nxt_context *cx = plain_context();
    nxt_model *m;
    nxt_tokenizer *tok = NULL;
    nxt_dataset *d = NULL;
    nxt_model_info info;
    int32_t ids[256];
    int64_t offsets[2] = {0, 0};
    size_t n = 0;
    double loss = 99;
    if (!exists("data/pico-neox", "model.safetensors")) {
        skip_reason = "data/pico-neox holds no weights";
        nxt_context_destroy(cx);
        return;
    }
    if (OK(cx, nxt_model_load(&m, cx, "data/pico-neox"))
        && OK(cx, nxt_tokenizer_load(&tok, cx, "data/pico-neox"))
        && OK(cx, nxt_encode(tok, story, strlen(story), ids, NULL, 256, &n))) {
        offsets[1] = (int64_t)n;
        nxt_model_describe(m, &info);
        CHECK(nxt_tokenizer_size(tok) <= info.vocabulary && n > 30 && n < 60);
        CHECK(OK(cx, nxt_dataset_from_tokens(&d, cx, ids, NULL, offsets, 1)));
        CHECK(OK(cx, nxt_forward(m, d, 0, 1, &loss)));
        CHECK(loss < 0.4 * log((double)info.vocabulary)); /* it knows such stories */
        nxt_dataset_destroy(d);
    }
    nxt_tokenizer_destroy(tok);
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

/* One file for other programs. */
static void test_export(void) {
    nxt_context *cx = plain_context();
    nxt_model *m;
    nxt_export_config c = nxt_export_config_default();
    char head[4] = "";
    CHECK(c.format == NULL && c.dtype == NULL && c.tokenizer == NULL);
    if (OK(cx, nxt_model_load(&m, cx, micro_dir()))) {
        CHECK(OK(cx, nxt_model_export(m, scratch("export/micro.gguf"), NULL)));
        FILE *f = fopen(scratch("export/micro.gguf"), "rb");
        CHECK(f && fread(head, 1, 4, f) == 4 && !memcmp(head, "GGUF", 4));
        if (f) fclose(f);
        c.format = "safetensors", c.dtype = "f16";
        CHECK(OK(cx, nxt_model_export(m, scratch("export/micro.bin"), &c)));
        c.format = "zip";
        CHECK(nxt_model_export(m, scratch("export/micro.zip"), &c) == NXT_ARGUMENT);
        CHECK(strstr(nxt_error_message(cx), "zip") != NULL);
        CHECK(exists(scratch("export"), "micro.bin") && !exists(scratch("export"), "micro.zip"));
    }
    nxt_model_destroy(m);
    nxt_context_destroy(cx);
}

/* -- The table ----------------------------------------------------------------------------- */
typedef struct test_row {
    const char *name;
    void (*run)(void);
} test_row;

static const test_row tests[] = {
    {"status", test_status}, {"destroy_nothing", test_destroy_nothing}, {"errors", test_errors},
    {"texts", test_texts}, {"options", test_options}, {"callbacks", test_callbacks},
    {"context_refused", test_context_refused}, {"two_contexts", test_two_contexts},
    {"tokenizer", test_tokenizer}, {"model", test_model}, {"forward", test_forward},
    {"backward", test_backward}, {"profile", test_profile}, {"dataset", test_dataset},
    {"header_example", test_header_example}, {"trainer", test_trainer}, {"run", test_run},
    {"adapters", test_adapters}, {"freeze", test_freeze},
    {"cancel", test_cancel}, {"all_reduce", test_all_reduce}, {"pico", test_pico},
    {"export", test_export},
};
enum { TESTS = sizeof tests / sizeof tests[0] };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    int passed = 0, failed = 0, skipped = 0;
    char command[128];
    setvbuf(stdout, NULL, _IOLBF, 0);
    mkdir("build", 0777);
    snprintf(scratch_root, sizeof scratch_root, "build/scratch-api-%d", (int)getpid());
    mkdir(scratch_root, 0777);
    for (int i = 0; i < TESTS; i++) {
        int wanted = 1;
        for (int k = 1, named = 0; k < argc; k++) {
            if (!strcmp(argv[k], "--list")) wanted = 0;
            if (argv[k][0] == '-') continue;
            if (!named++) wanted = 0;
            wanted |= strstr(tests[i].name, argv[k]) != NULL;
        }
        if (argc > 1 && !strcmp(argv[1], "--list")) puts(tests[i].name);
        if (!wanted) continue;
        const double start = seconds();
        failed_checks = 0, skip_reason = NULL;
        tests[i].run();
        if (failed_checks) failed++;
        else if (skip_reason) skipped++;
        else passed++;
        printf("%-44s %s%s %5.2f s\n", tests[i].name,
               failed_checks ? "FAILED" : skip_reason ? "skipped: " : "ok",
               !failed_checks && skip_reason ? skip_reason : "", seconds() - start);
    }
    snprintf(command, sizeof command, "rm -rf %s", scratch_root);
    if (system(command) != 0) printf("scratch directories remain\n");
    if (skipped) printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    else printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
