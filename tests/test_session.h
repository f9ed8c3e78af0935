/* Generation: one feed or many, alone or side by side, the logits are the same; drawing follows
 * the distribution it is asked for; texts and their scores. */

static double largest_difference(const float *a, const float *b, i64 n) {
    double worst = 0, largest = 1e-9;
    for (i64 i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        largest = fmax(largest, fabs((double)b[i]));
        if (!isfinite(a[i])) return INFINITY;
    }
    return worst / largest;
}

enum { LONG_PROMPT = 600, SHORT_PROMPT = 37 };

typedef struct talk { /* a model with positions for a long prompt, and two prompts */
    nxt_context *cx;
    nxt_model *m;
    nxt_session *s;
    i32 a[LONG_PROMPT], b[SHORT_PROMPT];
    float *all_a, *all_b; /* what nxt_logits says of each row */
} talk;

enum { V_ = MICRO_VOCABULARY };

static bool talk_up(talk *t, const char *name, const char *more) {
    nxt_context *cx = test_context();
    const char *dir = micro_model(cx, name, more, "f16");
    nxt_context_destroy(cx);
    *t = (talk){.cx = context_with(NULL, 1)};
    t->all_a = malloc(sizeof(float) * LONG_PROMPT * V_),
    t->all_b = malloc(sizeof(float) * SHORT_PROMPT * V_);
    for (int i = 0; i < LONG_PROMPT; i++) t->a[i] = (i32)(mix64((u64)i) % V_);
    for (int i = 0; i < SHORT_PROMPT; i++) t->b[i] = (i32)(mix64((u64)i + 999) % V_);
    return OK(t->cx, nxt_model_load(&t->m, t->cx, dir))
           && OK(t->cx, nxt_logits(t->m, t->a, LONG_PROMPT, t->all_a))
           && OK(t->cx, nxt_logits(t->m, t->b, SHORT_PROMPT, t->all_b))
           && OK(t->cx, nxt_session_create(&t->s, t->m, 3, 700));
}

static void talk_down(talk *t) {
    nxt_session_destroy(t->s);
    nxt_model_destroy(t->m);
    nxt_context_destroy(t->cx);
    free(t->all_a), free(t->all_b);
}

static const char long_positions[] = ", \"max_position_embeddings\": 800";
static const char sequential[] = ", \"max_position_embeddings\": 800, "
                                 "\"use_parallel_residual\": false, \"rotary_pct\": 1.0, "
                                 "\"tie_word_embeddings\": true, \"hidden_act\": \"gelu_new\"";

static bool near_row(const float *logits, const float *all, i64 row) {
    return largest_difference(logits, all + row * V_, V_) < 1e-5;
}

static void check_session(const char *name, const char *more) {
    talk t;
    static float logits[3 * V_];
    if (talk_up(&t, name, more)) {
        nxt_session *s = t.s;
        /* the whole prompt at once; it is longer than a pass */
        CHECK(OK(t.cx, nxt_session_feed(s, &(nxt_feed){0, t.a, LONG_PROMPT}, 1, logits)));
        CHECK(near_row(logits, t.all_a, LONG_PROMPT - 1));
        CHECK(nxt_session_length(s, 0) == LONG_PROMPT && nxt_session_length(s, 1) == 0);
        /* token by token */
        for (i64 i = 0; i < SHORT_PROMPT; i++) {
            CHECK(OK(t.cx, nxt_session_feed(s, &(nxt_feed){1, t.b + i, 1}, 1, logits)));
            CHECK(near_row(logits, t.all_b, i));
        }
        /* side by side, in pieces that do not match, the first to end in the middle of a
         * pass */
        for (int k = 0; k < 3; k++) nxt_session_rewind(s, k, 0);
        CHECK(nxt_session_length(s, 0) == 0 && nxt_session_length(s, 1) == 0);
        const nxt_feed first[] = {{2, t.a, 300}, {0, t.b, 20}, {1, t.a, 5}};
        CHECK(OK(t.cx, nxt_session_feed(s, first, 3, logits)));
        CHECK(near_row(logits, t.all_a, 299) && near_row(logits + V_, t.all_b, 19));
        CHECK(near_row(logits + 2 * V_, t.all_a, 4));
        const nxt_feed second[] = {{0, t.b + 20, 17}, {2, t.a + 300, 1}};
        CHECK(OK(t.cx, nxt_session_feed(s, second, 2, logits)));
        CHECK(near_row(logits, t.all_b, 36) && near_row(logits + V_, t.all_a, 300));
        const nxt_feed third[] = {{1, t.a + 5, 290}, {2, t.a + 301, 299}};
        CHECK(OK(t.cx, nxt_session_feed(s, third, 2, NULL))); /* not asked for: still read */
        const nxt_feed fourth[] = {{1, t.a + 295, 1}, {0, t.b, 1}};
        CHECK(OK(t.cx, nxt_session_feed(s, fourth, 2, logits)));
        CHECK(near_row(logits, t.all_a, 295));
        /* back to the middle, and on with the same tokens */
        nxt_session_rewind(s, 2, 123);
        CHECK(nxt_session_length(s, 2) == 123);
        nxt_session_rewind(s, 2, 500); /* forward is not possible */
        CHECK(nxt_session_length(s, 2) == 123);
        CHECK(OK(t.cx, nxt_session_feed(s, &(nxt_feed){2, t.a + 123, 3}, 1, logits)));
        CHECK(near_row(logits, t.all_a, 125));
    }
    talk_down(&t);
}

static void test_session(void) {
    check_session("session", long_positions);
    check_session("session2", sequential);
}

static void test_session_refused(void) {
    talk t;
    nxt_session *none;
    static float logits[3 * V_];
    if (talk_up(&t, "session3", long_positions)) {
        const i32 bad = V_;
        const nxt_feed feeds[] = {{3, t.a, 1}, {-1, t.a, 1}, {0, t.a, 0}, {0, &bad, 1}};
        for (int k = 0; k < 4; k++)
            CHECK(nxt_session_feed(t.s, &feeds[k], 1, logits) == NXT_ARGUMENT);
        CHECK(nxt_session_length(t.s, 0) == 0);
        CHECK(nxt_session_create(&none, t.m, 1, 801) == NXT_ARGUMENT && !none);
        CHECK(nxt_session_create(&none, t.m, 0, 8) == NXT_ARGUMENT && !none);
        CHECK(OK(t.cx, nxt_session_feed(t.s, &(nxt_feed){0, t.a, 600}, 1, NULL)));
        CHECK(nxt_session_feed(t.s, &(nxt_feed){0, t.a, 101}, 1, logits) == NXT_ARGUMENT);
        CHECK(OK(t.cx, nxt_session_feed(t.s, &(nxt_feed){0, t.a, 100}, 1, logits)));
        CHECK(nxt_session_feed(t.s, &(nxt_feed){0, t.a, 1}, 1, logits) == NXT_ARGUMENT);
        const nxt_feed twice[] = {{1, t.a, 400}, {1, t.a, 400}}; /* more than the slab holds */
        CHECK(nxt_session_feed(t.s, twice, 2, logits) == NXT_ARGUMENT);
        CHECK(nxt_logits(t.m, t.a, 0, logits) == NXT_ARGUMENT);
        CHECK(nxt_logits(t.m, &bad, 1, logits) == NXT_ARGUMENT);
        nxt_session *small;
        if (OK(t.cx, nxt_session_create(&small, t.m, 2, 5))) { /* rows of a pass: 5 */
            const nxt_feed both[] = {{0, t.a, 4}, {1, t.b, 5}};
            CHECK(OK(t.cx, nxt_session_feed(small, both, 2, logits)));
            CHECK(near_row(logits, t.all_a, 3) && near_row(logits + V_, t.all_b, 4));
        }
        nxt_session_destroy(small);
    }
    talk_down(&t);
}

/* -- Sampling ------------------------------------------------------------------------------ */
enum { CHOICES = 7, DRAWS = 20000 };
static const float sample_logits[CHOICES] = {0.5f, 2, -1, 1.25f, -INFINITY, 0.75f, 2};

static i32 sample_once(nxt_context *cx, const nxt_sample_config *c, u64 stream, const i32 *seen,
                       i64 n) {
    float z[CHOICES];
    i32 token = -1;
    memcpy(z, sample_logits, sizeof z);
    CHECK(OK(cx, nxt_sample(cx, z, CHOICES, c, stream, seen, n, &token)));
    return token;
}

/* How far 20,000 draws are from their probabilities: Pearson's statistic, which exceeds 30
 * once in ten thousand times at six degrees of freedom. The seed is fixed, so the answer is,
 * too. */
static double pearson(nxt_context *cx, const nxt_sample_config *c, const double *weight) {
    i32 seen[1] = {0};
    int count[CHOICES] = {0};
    double total = 0, chi = 0;
    for (int i = 0; i < CHOICES; i++) total += weight[i];
    for (u64 k = 0; k < DRAWS; k++) {
        const i32 token = sample_once(cx, c, k, seen, 0);
        CHECK(token >= 0 && token < CHOICES && weight[token] > 0);
        if (token >= 0 && token < CHOICES) count[token]++;
    }
    for (int i = 0; i < CHOICES; i++) {
        const double expected = DRAWS * weight[i] / total;
        if (expected > 0) chi += (count[i] - expected) * (count[i] - expected) / expected;
    }
    return chi;
}

static void test_sample_distribution(void) {
    nxt_context *cx = test_context();
    nxt_sample_config c = nxt_sample_config_default();
    double w[CHOICES], p[CHOICES], total = 0;
    c.seed = 3;
    for (int k = 0; k < 3; k++) { /* colder, as it is, hotter */
        c.temperature = k == 0 ? 0.5 : k == 1 ? 1 : 3;
        for (int i = 0; i < CHOICES; i++) w[i] = exp(sample_logits[i] / c.temperature);
        CHECK(pearson(cx, &c, w) < 30);
    }
    c.temperature = 1;
    for (int i = 0; i < CHOICES; i++) total += w[i] = exp(sample_logits[i]);
    for (int top = 1; top <= CHOICES; top++) { /* order: 1 6 3 5 0 2 (4 never) */
        static const int order[CHOICES] = {1, 6, 3, 5, 0, 2, 4};
        for (int i = 0; i < CHOICES; i++) p[i] = 0;
        for (int i = 0; i < top; i++) p[order[i]] = w[order[i]];
        c.top_k = top, c.top_p = 1;
        CHECK(pearson(cx, &c, p) < 30);
    }
    c.top_k = 0;
    const double two = (w[1] + w[6]) / total, three = two + w[3] / total;
    for (int i = 0; i < CHOICES; i++) p[i] = i == 1 || i == 6 ? w[i] : 0;
    c.top_p = two - 0.01; /* the two largest are needed to reach it */
    CHECK(pearson(cx, &c, p) < 30);
    p[3] = w[3], c.top_p = three - 0.01;
    CHECK(pearson(cx, &c, p) < 30);
    c.top_p = 1e-9, p[6] = p[3] = 0; /* at least one; of equals the first */
    CHECK(pearson(cx, &c, p) < 30);
    c.top_k = 3, c.top_p = 0.9; /* top-p counts what top-k left: 0.4, 0.4, 0.19 */
    p[1] = w[1], p[6] = w[6], p[3] = w[3];
    CHECK(pearson(cx, &c, p) < 30);
    c.top_p = 0.7, p[3] = 0;
    CHECK(pearson(cx, &c, p) < 30);
    nxt_context_destroy(cx);
}

static void test_sample_choice(void) {
    nxt_context *cx = test_context();
    nxt_sample_config c = nxt_sample_config_default();
    const i32 one[] = {1}, both[] = {1, 6, 1, 1}, odd[] = {-5, 99, 1};
    CHECK(c.temperature == 0 && c.top_k == 0 && c.top_p == 1 && c.repetition_penalty == 1);
    CHECK(sample_once(cx, &c, 0, NULL, 0) == 1); /* the first of equals */
    c.repetition_penalty = 1.5;
    CHECK(sample_once(cx, &c, 0, one, 1) == 6);
    CHECK(sample_once(cx, &c, 0, odd, 3) == 6); /* ids of no token are passed over */
    CHECK(sample_once(cx, &c, 0, both, 4) == 1); /* 2 / 1.5 is above 1.25; once, not thrice */
    c.repetition_penalty = 1.7;
    CHECK(sample_once(cx, &c, 0, both, 4) == 3);
    float z[] = {-3, -2, -2.5f}; /* negative ones grow away from zero */
    i32 token, seen = 1;
    CHECK(OK(cx, nxt_sample(cx, z, 3, &c, 0, &seen, 1, &token)) && token == 2);
    c = nxt_sample_config_default();
    c.temperature = 1, c.seed = 8;
    int differ = 0, later = 0;
    for (u64 k = 0; k < 50; k++) { /* a draw is a function of seed, stream and length */
        const i32 first = sample_once(cx, &c, k, both, 2);
        CHECK(sample_once(cx, &c, k, both, 2) == first);
        differ += sample_once(cx, &c, k + 1, both, 2) != first;
        later += sample_once(cx, &c, k, both, 3) != first;
        c.seed++;
    }
    CHECK(differ > 10 && later > 10);
    float bad[][3] = {{NAN, NAN, NAN}, {1, INFINITY, 2}, {-INFINITY, -INFINITY, -INFINITY},
                      {3, 1, NAN}, {NAN, 1, 2}};
    for (int k = 0; k < 5; k++)
        CHECK(nxt_sample(cx, bad[k], 3, &c, 0, NULL, 0, &token) == NXT_DIVERGED);
    for (int k = 0; k < 5; k++) {
        nxt_sample_config wrong = c;
        if (k == 0) wrong.temperature = -1;
        if (k == 1) wrong.top_k = -1;
        if (k == 2) wrong.top_p = 0;
        if (k == 3) wrong.top_p = 1.5;
        if (k == 4) wrong.repetition_penalty = 0;
        CHECK(nxt_sample(cx, z, 3, &wrong, 0, NULL, 0, &token) == NXT_ARGUMENT);
    }
    nxt_context_destroy(cx);
}

/* top-k over a large vocabulary: the heap against a sorted copy. */
static const float *sorted_by;
static int by_logit(const void *a, const void *b) {
    const i32 x = *(const i32 *)a, y = *(const i32 *)b;
    if (sorted_by[x] != sorted_by[y]) return sorted_by[x] > sorted_by[y] ? -1 : 1;
    return x - y;
}

static void test_sample_large(void) {
    enum { V = 5003 };
    nxt_context *cx = test_context();
    nxt_sample_config c = nxt_sample_config_default();
    static float z[V], work[V];
    static i32 order[V], place[V];
    for (int i = 0; i < V; i++) z[i] = 4 * (float)(int)(8 * noise(5, i)) / 8, order[i] = i;
    sorted_by = z;
    qsort(order, V, sizeof *order, by_logit);
    for (int i = 0; i < V; i++) place[order[i]] = i;
    for (int k = 1; k < 300; k++) {
        i32 token;
        c.temperature = 1, c.top_k = k, c.seed = (u64)k;
        memcpy(work, z, sizeof z);
        CHECK(OK(cx, nxt_sample(cx, work, V, &c, 0, NULL, 0, &token)) && place[token] < k);
    }
    nxt_context_destroy(cx);
}

/* -- Text ---------------------------------------------------------------------------------- */
static void test_utf8_whole(void) {
    static const struct { const char *text; size_t n, whole; } rows[] = {
        {"", 0, 0}, {"a", 1, 1}, {"ab\xc3\xa9", 4, 4}, {"ab\xc3\xa9", 3, 2},
        {"\xe2\x82\xac", 1, 0}, {"\xe2\x82\xac", 2, 0}, {"\xe2\x82\xac", 3, 3},
        {"x\xf0\x9f\x98\x80", 1, 1}, {"x\xf0\x9f\x98\x80", 2, 1}, {"x\xf0\x9f\x98\x80", 3, 1},
        {"x\xf0\x9f\x98\x80", 4, 1}, {"x\xf0\x9f\x98\x80", 5, 5},
        {"\x80\x80", 2, 2},                /* no character at all: out with it */
        {"a\x80\x80\x80\x80", 5, 5}, {"\xff", 1, 0}, {"\xc3" "a", 2, 2}, {"\xe2\x82" "a", 3, 3},
    };
    for (i64 i = 0; i < COUNT(rows); i++) {
        const size_t got = nxt_utf8_whole(rows[i].text, rows[i].n);
        if (got != rows[i].whole) printf("  row %d: %zu\n", (int)i, got);
        CHECK(got == rows[i].whole || (rows[i].text[0] == '\xff' && got == 1));
    }
}

/* The answers are those of SQuAD's evaluate-v1.1.py. */
static void test_exact_match(void) {
    static const struct { const char *a, *b; int same; } rows[] = {
        {"The cat", "cat", 1}, {"the cat.", "Cat", 1}, {"a  cat\n", " an cat", 1},
        {"cats", "cat", 0}, {"", "", 1}, {"the", "", 1}, {"The", "a an THE", 1},
        {"another", "nother", 0}, {"theatre", "atre", 0}, {"U.S.A.", "usa", 1},
        {"don't", "dont", 1}, {"a-b", "ab", 1}, {"a b", "ab", 0}, {"1,000", "1000", 1},
        {"caf\xc3\xa9", "caf\xc3\xa9", 1}, {"caf\xc3\xa9", "cafe", 0}, {"x\ty", "x y", 1},
        {"(the) end", "end", 1}, {"the-end", "end", 0}, {" a ", "", 1}, {"yes", "no", 0},
    };
    nxt_context *cx = test_context();
    for (i64 i = 0; i < COUNT(rows); i++) {
        double got = -1, back = -1;
        CHECK(OK(cx, nxt_score_exact_match(cx, rows[i].a, rows[i].b, &got)));
        CHECK(OK(cx, nxt_score_exact_match(cx, rows[i].b, rows[i].a, &back)));
        if (got != rows[i].same) printf("  \"%s\" and \"%s\": %g\n", rows[i].a, rows[i].b, got);
        CHECK(got == rows[i].same && back == got);
    }
    nxt_context_destroy(cx);
}
