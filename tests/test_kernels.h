/* The operations of §6, each against a formula in double precision that is written here a
 * second time: forward element by element, backward by central differences of that formula.
 * Every CPU level is held to the same formulas at odd shapes, to the reference's results
 * where differences would take too long, and to its own bits with another number of threads.
 * --seed=N draws other shapes and numbers.
 *
 * Every matrix lies on a sheet: a piece of memory at an odd place whose cells outside the
 * view hold NaN. A kernel that reads beyond its view spoils its result; one that writes
 * there, or into an input, is found when the sheets are looked at again (I5). */
enum { SHEETS = 48, SHEET_MARGIN = 70, KEPT = 96 };

typedef struct sheet {
    mat m;
    u16 *memory, *copy; /* copy: as it was before the operation */
    i64 halves;         /* 16-bit cells of memory */
    bool output;
} sheet;

static sheet sheets[SHEETS];
static int sheet_count;
static void *kept[KEPT]; /* what lives until the sheets are cleared */
static int kept_count;
static u64 kernel_seed = 1, kernel_draws, kernel_digest;
static char kernel_case[200];

static u64 kernel_random(void) { return mix64(mix64(kernel_seed) + kernel_draws++); }
static i64 between(i64 low, i64 high) {
    return low + (i64)(kernel_random() % (u64)(high - low + 1));
}
static i64 one_of(const int *values, int count) { return values[between(0, count - 1)]; }

static void *keep(i64 bytes) {
    if (kept_count == KEPT || !(kept[kept_count] = calloc(1, (size_t)bytes + 1))) abort();
    return kept[kept_count++];
}

static void put(mat m, i64 r, i64 c, double value) {
    u16 *half = (u16 *)m.p + r * m.stride + c;
    if (m.type == F32) row_of(m, r)[c] = (float)value;
    else *half = m.type == F16 ? f32_to_f16((float)value) : f32_to_bf16((float)value);
}

static sheet *sheet_of(mat m) {
    for (int i = 0; i < sheet_count; i++)
        if (sheets[i].m.p == m.p) return &sheets[i];
    abort();
}

/* Remembers what a sheet holds now: an operation may change only the views of outputs. */
static void seal(mat m) {
    sheet *s = sheet_of(m);
    memcpy(s->copy, s->memory, (size_t)s->halves * 2);
}

static mat new_sheet(i64 rows, i64 cols, dtype type, bool output, bool filled) {
    const i64 stride = cols + between(0, 9), at = SHEET_MARGIN + between(0, 15);
    const i64 size = dtype_size(type) / 2, cells = rows * stride + 2 * (SHEET_MARGIN + 16);
    sheet *s = &sheets[sheet_count++];
    if (sheet_count > SHEETS) abort();
    *s = (sheet){.halves = cells * size, .output = output};
    s->memory = keep(s->halves * 2), s->copy = keep(s->halves * 2);
    for (i64 i = 0; i < s->halves; i++) s->memory[i] = 0x7fff; /* NaN in all three types */
    s->m = (mat){.p = s->memory + at * size, .type = type, .rows = rows, .cols = cols,
                 .stride = stride};
    for (i64 r = 0; r < rows && filled; r++)
        for (i64 c = 0; c < cols; c++) put(s->m, r, c, 2 * uniform(kernel_random()) - 1);
    seal(s->m);
    return s->m;
}

static mat input_of(i64 rows, i64 cols, dtype type) {
    return new_sheet(rows, cols, type, 0, 1);
}
static mat input(i64 rows, i64 cols) { return input_of(rows, cols, F32); }
static mat output(i64 rows, i64 cols) { return new_sheet(rows, cols, F32, true, false); }
static mat sum_into(i64 rows, i64 cols) { return new_sheet(rows, cols, F32, true, true); }

/* What a matrix held when it was sealed. */
static mat was(mat m) {
    const sheet *s = sheet_of(m);
    m.p = s->copy + ((u16 *)m.p - s->memory);
    return m;
}

static double *dense(mat m) {
    double *x = keep(m.rows * m.cols * (i64)sizeof *x);
    for (i64 r = 0; r < m.rows; r++)
        for (i64 c = 0; c < m.cols; c++) x[r * m.cols + c] = element(m, r, c);
    return x;
}

static double *dense_heads(heads m) {
    double *x = keep(m.rows * m.heads * m.size * (i64)sizeof *x);
    for (i64 r = 0; r < m.rows; r++)
        for (int h = 0; h < m.heads; h++)
            for (int d = 0; d < m.size; d++)
                x[(r * m.heads + h) * m.size + d] = head_of(m, r, h)[d];
    return x;
}

static double *zeros(i64 n) { return keep(n * (i64)sizeof(double)); }

static void complain(const char *what, i64 at, double got, double want) {
    if (failed_checks < 20)
        printf("  %s: %s: element %" PRId64 " is %.9g, expected %.9g\n", kernel_case, what, at,
               got, want);
    CHECK(!"an operation is wrong");
}

/* got against want, to `tolerance` of the largest value there is. */
static void agree(const char *what, const double *got, const double *want, i64 n,
                  double tolerance) {
    double largest = 0.01;
    for (i64 i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
    for (i64 i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= tolerance * largest)) {
            complain(what, i, got[i], want[i]);
            return;
        }
}

static void agree_mat(const char *what, mat got, const double *want, double tolerance) {
    agree(what, dense(got), want, got.rows * got.cols, tolerance);
}

static void agree_mats(const char *what, mat got, mat want, double tolerance) {
    agree(what, dense(got), dense(want), got.rows * got.cols, tolerance);
}

/* An output's gain: what was added to it. */
static double *gain(mat m) {
    double *now = dense(m), *before = dense(was(m));
    for (i64 i = 0; i < m.rows * m.cols; i++) now[i] -= before[i];
    return now;
}

/* The slope of a formula at some of its inputs x, against a gradient. */
typedef double (*formula)(const void *problem);

static void agree_slope(const char *what, const double *got, double *x, i64 n, formula f,
                        const void *problem, double tolerance) {
    enum { SAMPLES = 40 };
    const double h = 1e-4;
    double slope[SAMPLES], here[SAMPLES];
    i64 place[SAMPLES], samples = min64(n, SAMPLES);
    for (i64 k = 0; k < samples; k++) {
        const i64 i = n <= SAMPLES ? k : k == 0 ? 0 : k == 1 ? n - 1 : between(0, n - 1);
        const double center = x[i];
        place[k] = i, here[k] = got[i];
        x[i] = center + h, slope[k] = f(problem);
        x[i] = center - h, slope[k] = (slope[k] - f(problem)) / (2 * h);
        x[i] = center;
    }
    double largest = 0.1;
    for (i64 k = 0; k < samples; k++) largest = fmax(largest, fabs(slope[k]));
    for (i64 k = 0; k < samples; k++)
        if (!(fabs(here[k] - slope[k]) <= tolerance * largest)) {
            complain(what, place[k], here[k], slope[k]);
            return;
        }
}

/* Cells outside the views, and inputs, are what they were; outputs enter the digest. */
static void check_sheets(void) {
    for (int i = 0; i < sheet_count; i++) {
        const sheet *s = &sheets[i];
        const i64 size = dtype_size(s->m.type) / 2, at = (u16 *)s->m.p - s->memory;
        for (i64 k = 0; k < s->halves; k++) {
            const i64 cell = (k - at) / size;
            const bool inside = k >= at && cell / s->m.stride < s->m.rows
                                && cell % s->m.stride < s->m.cols;
            if (s->output && inside) kernel_digest = mix64(kernel_digest + s->memory[k]);
            else if (s->memory[k] != s->copy[k]) {
                complain(s->output ? "a cell outside the view" : "an input", cell,
                         s->memory[k], s->copy[k]);
                break;
            }
        }
    }
}

static void clear_sheets(void) {
    for (int i = 0; i < kept_count; i++) free(kept[i]);
    sheet_count = kept_count = 0;
}

/* Runs a check at every level; its shapes are drawn anew for each round, the same ones at each
 * level and for each number of threads. */
static void at_every_level(void (*check)(nxt_context *cx, int round), int rounds) {
    static const int threads[] = {1, 3};
    for (int level = 0; level <= cpu_level(); level++) {
        u64 digest[2];
        for (int t = 0; t < (level ? 2 : 1); t++) {
            nxt_context *cx = context_with(cpu_names[level], threads[t]);
            CHECK(cx != NULL);
            if (!cx) return;
            kernel_digest = 0;
            for (int round = 0; round < rounds; round++) {
                kernel_draws = (u64)round << 32;
                snprintf(kernel_case, sizeof kernel_case, "round %d, %s", round,
                         cpu_names[level]);
                check(cx, round);
                check_sheets();
                clear_sheets();
            }
            digest[t] = kernel_digest;
            nxt_context_destroy(cx);
        }
        CHECK(!level || digest[0] == digest[1]); /* I6 */
    }
}

PRINTF_LIKE(1, 2)
static void say_case(const char *format, ...) {
    const size_t used = strlen(kernel_case);
    va_list args;
    va_start(args, format);
    vsnprintf(kernel_case + used, sizeof kernel_case - used, format, args);
    va_end(args);
}

/* Rounds in which the shapes are large enough to be cut into tasks. */
static bool large_round(int round) { return round % 4 == 3; }

static bool is_reference(const nxt_context *cx) { return !strcmp(cx->cpu, "reference"); }

static i32 *random_ids(i64 n, i64 below) {
    i32 *ids = keep(n * (i64)sizeof *ids);
    for (i64 i = 0; i < n; i++) ids[i] = (i32)between(0, below - 1);
    return ids;
}

/* -- Numbers: every half, and what lies between two of them -------------------------------- */
static void check_halves(float (*widen)(u16), u16 (*narrow)(float), u16 infinity) {
    for (u32 h = 0; h < 0x10000; h++) {
        const float x = widen((u16)h);
        const bool nan = (h & 0x7fff) > infinity;
        CHECK(nan ? isnan(x) && isnan(widen(narrow(x))) : narrow(x) == h);
        if ((h & 0x7fff) >= infinity) continue;
        /* to the next one away from zero: below the middle, the middle, above it */
        const u16 next = (u16)(h + 1);
        const bool last = (next & 0x7fff) == infinity;
        const double a = x, b = last ? a + (a - widen((u16)(h - 1))) : widen(next);
        const float middle = (float)((a + b) / 2);
        if (!isfinite(middle)) continue;
        CHECK(narrow(middle) == (h & 1 ? next : h)); /* ties to even */
        CHECK(narrow(nextafterf(middle, x)) == h);
        CHECK(narrow(nextafterf(middle, last ? (float)(x > 0 ? INFINITY : -INFINITY)
                                             : (float)b)) == next);
    }
    CHECK(narrow(INFINITY) == infinity && narrow(-INFINITY) == (infinity | 0x8000));
}

static float widen_f16(u16 h) { return f16_to_f32(h); }
static float widen_bf16(u16 h) { return bf16_to_f32(h); }
static u16 narrow_f16(float x) { return f32_to_f16(x); }
static u16 narrow_bf16(float x) { return f32_to_bf16(x); }

static void test_numbers(void) {
    check_halves(widen_f16, narrow_f16, 0x7c00);
    check_halves(widen_bf16, narrow_bf16, 0x7f80);
    CHECK(f16_to_f32(0x3c00) == 1 && f16_to_f32(0x7bff) == 65504 && f16_to_f32(1) == 0x1p-24f);
    CHECK(f16_to_f32(0xc100) == -2.5f && bf16_to_f32(0x4049) == 3.140625f);
    CHECK(f32_to_f16(65519.996f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00);
    CHECK(f32_to_f16(1e-8f) == 0 && f32_to_f16(-1e-8f) == 0x8000);
}

/* -- Embedding ----------------------------------------------------------------------------- */
static void check_embed(nxt_context *cx, int round) {
    const i64 more = large_round(round) ? 8 : 1;
    const i64 N = between(1, 40 * more), C = between(1, 70 * more);
    const i64 V = between(1, 30), T = between(1, 20);
    const bool positions = between(0, 1);
    const mat wte = input_of(V, C, (dtype)(round % 3)), y = output(N, C), dy = input(N, C);
    const mat wpe = positions ? input(T, C) : no_mat();
    const mat dwte = sum_into(V, C), dwpe = positions ? sum_into(T, C) : no_mat();
    const i32 *ids = random_ids(N, V), *pos = random_ids(N, T);
    double *want = zeros(N * C), *dw = zeros(V * C), *dp = zeros(T * C);
    say_case(" N %d C %d V %d", (int)N, (int)C, (int)V);
    cx->ops->embed_fwd(cx->device, y, wte, wpe, ids, pos);
    for (i64 n = 0; n < N; n++)
        for (i64 c = 0; c < C; c++) {
            want[n * C + c] =
                element(wte, ids[n], c) + (positions ? element(wpe, pos[n], c) : 0);
            dw[ids[n] * C + c] += element(dy, n, c);
            dp[pos[n] * C + c] += element(dy, n, c);
        }
    agree_mat("y", y, want, 1e-7);
    cx->ops->embed_bwd(cx->device, dwte, dwpe, dy, ids, pos);
    agree("dwte", gain(dwte), dw, V * C, 2e-6);
    if (positions) agree("dwpe", gain(dwpe), dp, T * C, 2e-6);
    cx->ops->embed_bwd(cx->device, no_mat(), no_mat(), dy, ids, pos); /* frozen: nothing */
}

static void test_op_embed(void) { at_every_level(check_embed, 12); }

/* -- Norms --------------------------------------------------------------------------------- */
typedef struct norm_problem {
    i64 N, C;
    double *x, *w, *b, *dy, *y, *stats;
    double eps;
    nxt_norm_kind kind;
} norm_problem;

static double norm_formula(const void *problem) {
    const norm_problem *p = problem;
    double loss = 0;
    for (i64 n = 0; n < p->N; n++) {
        const double *x = p->x + n * p->C;
        double mean = 0, square = 0;
        for (i64 c = 0; c < p->C; c++) mean += x[c] / (double)p->C;
        if (p->kind == NXT_RMS_NORM) mean = 0;
        for (i64 c = 0; c < p->C; c++) square += (x[c] - mean) * (x[c] - mean) / (double)p->C;
        const double scale = 1 / sqrt(square + p->eps);
        for (i64 c = 0; c < p->C; c++) {
            const i64 i = n * p->C + c;
            p->y[i] = (x[c] - mean) * scale * p->w[c] + (p->b ? p->b[c] : 0);
            loss += p->y[i] * p->dy[i];
        }
        p->stats[2 * n] = mean, p->stats[2 * n + 1] = scale;
    }
    return loss;
}

static void check_norm(nxt_context *cx, int round) {
    const bool large = round % 5 == 4;
    const i64 N = large ? between(30, 90) : between(1, 9), C = large ? 517 : between(2, 70);
    const nxt_norm_kind kind = round % 2 ? NXT_RMS_NORM : NXT_LAYER_NORM;
    const bool bias = kind == NXT_LAYER_NORM, frozen = round % 7 == 6;
    mat x = input(N, C), w = input(1, C), b = bias ? input(1, C) : no_mat(), dy = input(N, C);
    mat y = output(N, C), stats = output(N, 2), dx = sum_into(N, C);
    mat dw = frozen ? no_mat() : sum_into(1, C);
    mat db = frozen || !bias ? no_mat() : sum_into(1, C);
    const double offset = round == 2 ? 100 : 0; /* a mean far from zero */
    for (i64 n = 0; n < N; n++)
        for (i64 c = 0; c < C; c++) put(x, n, c, element(x, n, c) + offset);
    seal(x);
    norm_problem p = {.N = N, .C = C, .x = dense(x), .w = dense(w), .b = bias ? dense(b) : NULL,
                      .dy = dense(dy), .y = zeros(N * C), .stats = zeros(2 * N), .eps = 1e-5f,
                      .kind = kind};
    say_case(" N %d C %d kind %d", (int)N, (int)C, (int)kind);
    cx->ops->norm_fwd(cx->device, y, stats, x, w, b, 1e-5f, kind);
    norm_formula(&p);
    agree_mat("y", y, p.y, offset != 0 ? 1e-4 : 2e-6);
    agree_mat("statistics", stats, p.stats, 1e-6);
    cx->ops->norm_bwd(cx->device, dx, dw, db, dy, x, w, stats, kind);
    if (offset == 0) { /* f32 keeps 17 bits of a row beside a mean of 100 */
        agree_slope("dx", gain(dx), p.x, N * C, norm_formula, &p, 1e-5);
        if (dw.p) agree_slope("dw", gain(dw), p.w, C, norm_formula, &p, 1e-5);
        if (db.p) agree_slope("db", gain(db), p.b, C, norm_formula, &p, 1e-5);
    }
    if (is_reference(cx)) return;
    mat rx = sum_into(N, C), rw = sum_into(1, C), rb = sum_into(1, C);
    reference_ops.norm_bwd(cx->device, rx, rw, rb, dy, x, w, stats, kind);
    agree("dx", gain(dx), gain(rx), N * C, 5e-6);
    if (dw.p) agree("dw", gain(dw), gain(rw), C, 5e-6);
    if (db.p) agree("db", gain(db), gain(rb), C, 5e-6);
}

static void test_op_norm(void) { at_every_level(check_norm, 15); }

/* -- Matrix product ------------------------------------------------------------------------ */
static void check_matmul(nxt_context *cx, int round) {
    static const int sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 33, 47, 63, 65, 97};
    static const float betas[] = {0, 1, 0.5f};
    const int count = (int)COUNT(sizes);
    const bool large = round % 16 == 15 && !quick_run;
    const i64 M = large ? between(130, 210) : one_of(sizes, count);
    const i64 N = large ? between(130, 330) : one_of(sizes, count);
    const i64 K = large ? between(300, 700) : one_of(sizes, count);
    const int trans = round % 4;
    const bool ta = trans & NXT_TRANS_A, tb = trans & NXT_TRANS_B, whole = between(0, 3) == 0;
    const dtype ka = (dtype)(between(0, 3) % 3), kb = (dtype)(between(0, 3) % 3);
    mat a = input_of(ta ? K : M, ta ? M : K, ka), b = input_of(tb ? N : K, tb ? K : N, kb);
    mat bias = between(0, 1) ? input_of(1, N, F32) : no_mat();
    const float beta = betas[between(0, 2)], alpha = between(0, 1) ? 1 : -0.75f;
    mat c = beta == 0 ? output(M, N) : sum_into(M, N); /* an output begins as NaN */
    say_case(" M %d N %d K %d trans %d types %d %d alpha %g beta %g", (int)M, (int)N, (int)K,
             trans, (int)ka, (int)kb, (double)alpha, (double)beta);
    if (whole) { /* small whole numbers: their sums are exact in any order */
        for (i64 r = 0; r < a.rows; r++)
            for (i64 k = 0; k < a.cols; k++) put(a, r, k, (double)between(-4, 4));
        for (i64 r = 0; r < b.rows; r++)
            for (i64 k = 0; k < b.cols; k++) put(b, r, k, (double)between(-4, 4));
        seal(a), seal(b);
    }
    cx->ops->matmul(cx->device, c, a, b, trans, alpha, beta, bias);
    const double *x = dense(a), *y = dense(b), *before = dense(was(c)), *got = dense(c);
    for (i64 i = 0; i < M; i++)
        for (i64 j = 0; j < N; j++) {
            double sum = 0, size = 0;
            for (i64 k = 0; k < K; k++) {
                const double term =
                    x[ta ? k * M + i : i * K + k] * y[tb ? j * K + k : k * N + j];
                sum += term, size += fabs(term);
            }
            const double old = beta == 0 ? 0 : (double)beta * before[i * N + j];
            const double added = bias.p ? (double)element(bias, 0, j) : 0;
            const double want = (double)alpha * sum + old + added;
            const double slack = whole && alpha == 1 && beta == 0 && !bias.p
                                     ? 0 : 3e-6 * size + 4e-7 * (fabs(old) + fabs(added));
            if (fabs(got[i * N + j] - want) <= slack) continue;
            complain("c", i * N + j, got[i * N + j], want);
            return;
        }
}

static void test_op_matmul(void) { at_every_level(check_matmul, quick_run ? 48 : 96); }

static void check_bias(nxt_context *cx, int round) {
    const i64 N = round % 4 == 3 ? between(100, 300) : between(1, 20), C = between(1, 90);
    mat dy = input(N, C), db = sum_into(1, C);
    double *want = zeros(C), *x = dense(dy);
    for (i64 i = 0; i < N * C; i++) want[i % C] += x[i];
    say_case(" N %d C %d", (int)N, (int)C);
    cx->ops->bias_bwd(cx->device, db, dy);
    agree("db", gain(db), want, C, 5e-6);
}

static void test_op_bias(void) { at_every_level(check_bias, 12); }

/* -- Heads: views of projections as models have them --------------------------------------- */
typedef struct head_views {
    heads q, k, v;
} head_views;

/* layout 0: interleaved per head (needs as many key heads); 1: q, k and v side by side. The
 * width of the matrix: */
static i64 views_width(int layout, i64 H, i64 G, i64 D) {
    return layout == 0 ? 3 * H * D : (H + 2 * G) * D;
}

static head_views views_in(mat m, int layout, i64 H, i64 G, i64 D) {
    const int h = (int)H, g = (int)G, d = (int)D;
    if (layout == 0)
        return (head_views){heads_in(m, 0, 3 * D, h, d), heads_in(m, D, 3 * D, h, d),
                            heads_in(m, 2 * D, 3 * D, h, d)};
    return (head_views){heads_in(m, 0, D, h, d), heads_in(m, H * D, D, g, d),
                        heads_in(m, (H + G) * D, D, g, d)};
}

static void check_rope(nxt_context *cx, int round) {
    static const int sizes[] = {2, 4, 8, 27, 33, 64, 80};
    const i64 N = between(1, large_round(round) ? 200 : 30), H = between(1, 5);
    const i64 D = one_of(sizes, (int)COUNT(sizes));
    const int pairs = (int)(round % 3 == 0 ? D / 2 : between(0, D / 2));
    mat m = sum_into(N, 3 * H * D);
    head_views x = views_in(m, 0, H, H, D);
    float *freq = keep((pairs + 1) * (i64)sizeof *freq);
    i32 *pos = random_ids(N, 2048);
    for (int i = 0; i < pairs; i++) freq[i] = 1 / powf(10000, (float)i / (float)pairs);
    double *want = dense(m);
    for (i64 n = 0; n < N; n++)
        for (i64 h = 0; h < H; h++)
            for (int i = 0; i < pairs; i++) { /* the second view: it begins at column D */
                double *v = want + n * m.cols + h * 3 * D + D + i, a = v[0], b = v[pairs];
                const double angle = (double)((float)pos[n] * freq[i]); /* f32 in the models */
                v[0] = a * cos(angle) - b * sin(angle);
                v[pairs] = b * cos(angle) + a * sin(angle);
            }
    say_case(" N %d H %d D %d pairs %d", (int)N, (int)H, (int)D, pairs);
    cx->ops->rope(cx->device, x.k, freq, pairs, pos, 1);
    agree_mat("turned", m, want, 1e-6); /* and q, v and the rest of k as they were */
    cx->ops->rope(cx->device, x.k, freq, pairs, pos, -1);
    agree_mats("turned back", m, was(m), 1e-6);
}

static void test_op_rope(void) { at_every_level(check_rope, 15); }

/* -- Attention ----------------------------------------------------------------------------- */
typedef struct attention_problem {
    i64 N, M, H, G, D; /* query rows, key rows, heads, key heads, head size */
    double *q, *k, *v, *dy, *y, *lse;
    const i32 *first, *last;
    double scale;
} attention_problem;

static double attention_formula(const void *problem) {
    const attention_problem *p = problem;
    const i64 D = p->D;
    double loss = 0;
    for (i64 n = 0; n < p->N; n++)
        for (i64 h = 0; h < p->H; h++) {
            const i64 g = h * p->G / p->H, at = (n * p->H + h) * D;
            double *y = p->y + at, total = 0, largest = -INFINITY;
            for (int pass = 0; pass < 2; pass++)
                for (i64 j = p->first[n]; j <= p->last[n]; j++) {
                    const double *k = p->k + (j * p->G + g) * D, *v = p->v + (j * p->G + g) * D;
                    double s = 0;
                    for (i64 d = 0; d < D; d++) s += p->scale * p->q[at + d] * k[d];
                    if (pass == 0) {
                        largest = fmax(largest, s);
                        continue;
                    }
                    const double e = exp(s - largest);
                    for (i64 d = 0; d < D; d++) y[d] = (total == 0 ? 0 : y[d]) + e * v[d];
                    total += e;
                }
            for (i64 d = 0; d < D; d++) {
                y[d] /= total;
                loss += y[d] * p->dy[at + d];
            }
            p->lse[n * p->H + h] = largest + log(total);
        }
    return loss;
}

/* Several sequences behind each other; a row sees its own up to itself, or a window of it. */
static void draw_sequences(i64 N, bool window, i32 *first, i32 *last) {
    for (i64 n = 0, start = 0, end = 0, width = N; n < N; n++) {
        if (n == end) {
            start = n, end = min64(N, n + between(1, max64(1, N / 2)));
            width = window ? between(1, 6) : N;
        }
        first[n] = (i32)max64(start, n - width + 1), last[n] = (i32)n;
    }
}

typedef struct attention_outputs {
    mat y, lse, work, g;
    head_views dx;
    heads yv;
} attention_outputs;

static attention_outputs run_attention(nxt_context *cx, const nxt_backend *ops, head_views x,
                                       mat dy, const i32 *first, const i32 *last, int layout,
                                       float scale) {
    const i64 N = x.q.rows, H = x.q.heads, G = x.k.heads, D = x.q.size;
    attention_outputs o = {.y = output(N, H * D), .lse = output(N, H), .work = output(N, H),
                           .g = output(N, views_width(layout, H, G, D))};
    o.dx = views_in(o.g, layout, H, G, D);
    o.yv = heads_in(o.y, 0, D, (int)H, (int)D);
    ops->attention_fwd(cx->device, o.yv, o.lse, x.q, x.k, x.v, first, last, scale);
    ops->attention_bwd(cx->device, o.dx.q, o.dx.k, o.dx.v,
                       heads_in(dy, 0, D, (int)H, (int)D), o.yv, o.lse, o.work, x.q, x.k, x.v,
                       first, last, scale);
    return o;
}

static void check_attention(nxt_context *cx, int round) {
    static const int sizes[] = {8, 27, 1, 4, 13, 16, 33, 64, 80};
    const bool large = round % 6 == 5;
    if (large && quick_run && is_reference(cx)) return;
    const int layout = (int)between(0, 1);
    const i64 N = large ? between(90, 200) : between(1, 14), group = layout ? between(1, 3) : 1;
    const i64 G = between(1, 3), H = G * group, D = sizes[round % (int)COUNT(sizes)];
    const mat m = input(N, views_width(layout, H, G, D)), dy = input(N, H * D);
    const head_views x = views_in(m, layout, H, G, D);
    const float scale = round % 8 == 6 ? 40 : 1 / sqrtf((float)D); /* 40: exp would overflow */
    i32 *first = random_ids(N, 1), *last = random_ids(N, 1);
    draw_sequences(N, round % 2 == 1, first, last);
    say_case(" N %d H %d G %d D %d layout %d", (int)N, (int)H, (int)G, (int)D, layout);
    attention_outputs o = run_attention(cx, cx->ops, x, dy, first, last, layout, scale);
    attention_problem p = {.N = N, .M = N, .H = H, .G = G, .D = D, .q = dense_heads(x.q),
                           .k = dense_heads(x.k), .v = dense_heads(x.v), .dy = dense(dy),
                           .y = zeros(N * H * D), .lse = zeros(N * H), .first = first,
                           .last = last, .scale = scale};
    attention_formula(&p);
    const double tolerance = scale > 1 ? 2e-5 : 3e-6; /* of large scores rounding grows, too */
    agree_mat("y", o.y, p.y, tolerance);
    agree_mat("lse", o.lse, p.lse, 1e-6);
    if (!large && scale <= 1) {
        agree_slope("dq", dense_heads(o.dx.q), p.q, N * H * D, attention_formula, &p, 1e-5);
        agree_slope("dk", dense_heads(o.dx.k), p.k, N * G * D, attention_formula, &p, 1e-5);
        agree_slope("dv", dense_heads(o.dx.v), p.v, N * G * D, attention_formula, &p, 1e-5);
    }
    if (is_reference(cx)) return;
    attention_outputs r = run_attention(cx, &reference_ops, x, dy, first, last, layout, scale);
    agree_mats("dq dk dv", o.g, r.g, scale > 1 ? 1e-4 : 1e-5);
}

static void test_op_attention(void) { at_every_level(check_attention, 24); }

/* As a session asks: few query rows, keys in slabs of a cache, in any order. */
static void check_attention_cache(nxt_context *cx, int round) {
    const i64 N = between(1, 9), slabs = between(1, 4);
    const i64 slab = between(5, large_round(round) ? 400 : 90);
    const i64 H = between(1, 4), D = round % 2 ? 27 : 8, M = slabs * slab;
    mat q = input(N, 3 * H * D), k = input(M, H * D), v = input(M, H * D), y = output(N, H * D);
    mat lse = output(N, H);
    head_views x = views_in(q, 0, H, H, D);
    i32 *first = random_ids(N, slabs), *last = random_ids(N, slab);
    for (i64 n = 0; n < N; n++) first[n] *= (i32)slab, last[n] += first[n];
    for (i64 j = 0; j < M; j++) { /* rows nobody sees were never written: they hold anything */
        bool seen = false;
        for (i64 n = 0; n < N; n++) seen |= first[n] <= j && j <= last[n];
        for (i64 c = 0; c < H * D && !seen; c++) put(k, j, c, NAN), put(v, j, c, NAN);
    }
    seal(k), seal(v);
    x.k = heads_in(k, 0, D, (int)H, (int)D), x.v = heads_in(v, 0, D, (int)H, (int)D);
    attention_problem p = {.N = N, .M = M, .H = H, .G = H, .D = D, .q = dense_heads(x.q),
                           .k = dense(k), .v = dense(v), .dy = zeros(N * H * D),
                           .y = zeros(N * H * D), .lse = zeros(N * H), .first = first,
                           .last = last, .scale = 0.5};
    say_case(" N %d H %d D %d, %d slabs of %d", (int)N, (int)H, (int)D, (int)slabs, (int)slab);
    cx->ops->attention_fwd(cx->device, heads_in(y, 0, D, (int)H, (int)D), lse, x.q, x.k, x.v,
                           first, last, 0.5f);
    attention_formula(&p);
    agree_mat("y", y, p.y, 3e-6);
    agree_mat("lse", lse, p.lse, 1e-6);
}

static void test_op_attention_cache(void) { at_every_level(check_attention_cache, 16); }

/* -- Activations --------------------------------------------------------------------------- */
static double act_formula(double x, nxt_act_kind kind) {
    switch (kind) {
    case NXT_GELU: return x * 0.5 * erfc(-x / sqrt(2));
    case NXT_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
    case NXT_GELU_FAST: return 0.5 * x * (1 + tanh(0.7978845608 * x * (1 + 0.044715 * x * x)));
    case NXT_RELU: return fmax(x, 0);
    default: return x / (1 + exp(-x));
    }
}

static void check_act(nxt_context *cx, int round) {
    const nxt_act_kind kind = (nxt_act_kind)(round % 5);
    const i64 N = between(1, 12), C = between(1, large_round(round) ? 5000 : 200);
    const bool in_place = between(0, 1);
    mat x = input(N, C), dy = input(N, C), y = output(N, C), dx = output(N, C);
    double *want = zeros(N * C), *slope = zeros(N * C);
    for (i64 i = 0; i < N * C; i++) { /* around zero, and far out on both sides */
        double value = element(x, i / C, i % C) * (i % 7 == 6 ? 60 : 5);
        if (fabs(value) < 1e-3) value = 0.25;
        put(x, i / C, i % C, value);
    }
    seal(x);
    for (i64 i = 0; i < N * C; i++) {
        const double v = element(x, i / C, i % C), h = 1e-5;
        want[i] = act_formula(v, kind);
        slope[i] = (act_formula(v + h, kind) - act_formula(v - h, kind)) / (2 * h)
                   * (double)element(dy, i / C, i % C);
    }
    say_case(" N %d C %d kind %d", (int)N, (int)C, (int)kind);
    cx->ops->act_fwd(cx->device, y, x, kind);
    cx->ops->act_bwd(cx->device, dx, dy, x, kind);
    for (i64 i = 0; i < N * C; i++) {
        const double v = element(y, i / C, i % C), d = element(dx, i / C, i % C);
        if (fabs(v - want[i]) > 5e-7 * fmax(1, fabs(want[i]))) complain("y", i, v, want[i]);
        if (fabs(d - slope[i]) > 2e-6) complain("dx", i, d, slope[i]);
    }
    if (!in_place) return;
    mat own = sum_into(N, C), grad_own = sum_into(N, C);
    for (i64 i = 0; i < N * C; i++) {
        put(own, i / C, i % C, element(x, i / C, i % C));
        put(grad_own, i / C, i % C, element(dy, i / C, i % C));
    }
    cx->ops->act_bwd(cx->device, grad_own, grad_own, own, kind);
    cx->ops->act_fwd(cx->device, own, own, kind);
    agree_mats("y in place", own, y, 0);
    agree_mats("dx in place", grad_own, dx, 0);
}

static void test_op_act(void) { at_every_level(check_act, 25); }

/* -- Rows: sums, copies, types ------------------------------------------------------------- */
/* Every level keeps what the reference keeps, about as often as it should, and scales it. */
static void check_dropout(nxt_context *cx, mat x, mat y0, mat inout) {
    const i64 N = x.rows, C = x.cols;
    const float rate = 0.25f;
    mat y = sum_into(N, C), want = sum_into(N, C);
    u64 *key = calloc((size_t)N, sizeof *key), site = (u64)between(0, 1000);
    i64 kept = 0;
    for (i64 n = 0; n < N; n++) key[n] = mix64((u64)n * 77 + site);
    for (i64 i = 0; i < N * C; i++) {
        put(y, i / C, i % C, element(y0, i / C, i % C));
        put(want, i / C, i % C, element(y0, i / C, i % C));
    }
    cx->ops->dropout(cx->device, y, x, key, site, rate, 1);
    ref_dropout(cx, want, x, key, site, rate, 1);
    agree_mats("dropout, added", y, want, 1e-6);
    cx->ops->dropout(cx->device, y, x, key, site, rate, 0);
    for (i64 i = 0; i < N * C; i++) {
        const float v = element(y, i / C, i % C), full = element(x, i / C, i % C) / (1 - rate);
        kept += v != 0;
        if (v != 0 && fabsf(v - full) > 1e-6f * fabsf(full)) complain("dropout", i, v, full);
    }
    const double spread = 5 * sqrt((double)(N * C) * 0.25 * 0.75);
    if (fabs((double)kept - 0.75 * (double)(N * C)) > spread)
        complain("kept", N * C, (double)kept, 0.75 * (double)(N * C));
    for (i64 i = 0; i < N * C; i++) put(inout, i / C, i % C, element(x, i / C, i % C));
    cx->ops->dropout(cx->device, inout, inout, key, site, rate, 0);
    agree_mats("dropout in place", inout, y, 0);
    free(key);
}

static void check_rows(nxt_context *cx, int round) {
    const i64 more = large_round(round) ? 5 : 1;
    const i64 N = between(1, 30 * more), M = between(1, 30 * more), C = between(1, 150 * more);
    mat a = input(N, C), b = input(N, C), y = output(N, C);
    mat inout = sum_into(N, C), gathered = output(M, C), filled = output(N, C);
    mat wide = sum_into(N + M, C);
    double *product = zeros(N * C);
    say_case(" N %d M %d C %d", (int)N, (int)M, (int)C);
    for (i64 i = 0; i < N * C; i++)
        product[i] = (double)element(a, i / C, i % C) * element(b, i / C, i % C);
    cx->ops->mul(cx->device, y, a, b);
    agree_mat("mul", y, product, 2e-7);
    for (i64 i = 0; i < N * C; i++)
        product[i] = (double)element(a, i / C, i % C) * element(inout, i / C, i % C);
    if (round % 2) cx->ops->mul(cx->device, inout, inout, a);
    else cx->ops->mul(cx->device, inout, a, inout);
    agree_mat("mul in place", inout, product, 2e-7);

    check_dropout(cx, a, b, inout);

    i32 *rows = random_ids(M, N);
    cx->ops->gather(cx->device, gathered, a, rows);
    for (i64 i = 0; i < M * C; i++)
        if (element(gathered, i / C, i % C) != element(a, rows[i / C], i % C)) {
            complain("gather", i, element(gathered, i / C, i % C),
                     element(a, rows[i / C], i % C));
            break;
        }
    const i64 turn = between(0, N + M - 1); /* N of the N + M rows, each once */
    i32 *places = random_ids(N, 1);
    for (i64 n = 0; n < N; n++) places[n] = (i32)((turn + n) % (N + M));
    cx->ops->scatter(cx->device, wide, a, places);
    for (i64 r = 0; r < N + M; r++) {
        const i64 n = (r - turn + N + M) % (N + M); /* the row that went to r, if below N */
        for (i64 k = 0; k < C; k++) {
            const float want = n < N ? element(a, n, k) : element(was(wide), r, k);
            if (element(wide, r, k) != want)
                complain("scatter", r * C + k, element(wide, r, k), want);
        }
    }
    cx->ops->fill(cx->device, filled, round % 3 ? 0 : -1.5f);
    for (i64 i = 0; i < N * C; i++)
        if (element(filled, i / C, i % C) != (round % 3 ? 0 : -1.5f)) {
            complain("fill", i, element(filled, i / C, i % C), 0);
            break;
        }
}

static void test_op_rows(void) { at_every_level(check_rows, 12); }

static void check_store(nxt_context *cx, int round) {
    const i64 N = between(1, large_round(round) ? 300 : 9), M = N + between(0, 30);
    const i64 H = between(1, 4), D = round % 2 ? 27 : 8;
    mat qkv = input(N, 3 * H * D), cache = sum_into(M, H * D);
    head_views x = views_in(qkv, 0, H, H, D);
    heads y = heads_in(cache, 0, D, (int)H, (int)D);
    const i64 turn = between(0, M - 1);
    i32 *slot = random_ids(N, 1);
    double *want = dense(cache);
    for (i64 n = 0; n < N; n++) {
        slot[n] = (i32)((turn + n) % M);
        for (i64 i = 0; i < H * D; i++)
            want[slot[n] * H * D + i] = head_of(x.v, n, i / D)[i % D];
    }
    say_case(" N %d M %d H %d D %d", (int)N, (int)M, (int)H, (int)D);
    cx->ops->store(cx->device, y, x.v, slot);
    agree_mat("store", cache, want, 0);
}

static void test_op_store(void) { at_every_level(check_store, 8); }

static void check_convert(nxt_context *cx, int round) {
    const i64 N = between(1, 12), C = between(1, large_round(round) ? 6000 : 120);
    const dtype from = (dtype)(round % 3), to = (dtype)(round / 3 % 3);
    mat x = input_of(N, C, from), y = new_sheet(N, C, to, true, false);
    static const float odd[] = {0, -0.0f, 65504, 65519, 65520, 1e-7f, -3e38f, INFINITY, 6e-8f};
    for (i64 i = 0; i < min64(N * C, COUNT(odd)); i++) put(x, i / C, i % C, odd[i]);
    seal(x);
    say_case(" N %d C %d from %d to %d", (int)N, (int)C, (int)from, (int)to);
    cx->ops->convert(cx->device, y, x);
    for (i64 i = 0; i < N * C; i++) {
        const float v = element(x, i / C, i % C);
        const float want = to == F32 ? v : to == F16 ? f16_to_f32(f32_to_f16(v))
                                                     : bf16_to_f32(f32_to_bf16(v));
        if (float_bits(element(y, i / C, i % C)) != float_bits(want)) {
            complain("convert", i, element(y, i / C, i % C), want);
            break;
        }
    }
}

static void test_op_convert(void) { at_every_level(check_convert, 18); }

/* -- Cross-entropy ------------------------------------------------------------------------- */
typedef struct xent_problem {
    i64 N, V;
    double *z, *loss;
    const i32 *label;
} xent_problem;

static double xent_formula(const void *problem) {
    const xent_problem *p = problem;
    double sum = 0;
    for (i64 n = 0; n < p->N; n++) {
        const double *z = p->z + n * p->V;
        double largest = -INFINITY, total = 0;
        for (i64 i = 0; i < p->V; i++) largest = fmax(largest, z[i]);
        for (i64 i = 0; i < p->V; i++) total += exp(z[i] - largest);
        p->loss[n] = p->label[n] < 0 ? 0 : largest + log(total) - z[p->label[n]];
        sum += p->loss[n];
    }
    return sum;
}

static void check_xent(nxt_context *cx, int round) {
    const i64 N = between(1, 12), V = large_round(round) ? 4099 : between(2, 90);
    mat z = sum_into(N, V), loss = output(1, N), again = output(1, N);
    i32 *label = random_ids(N, V);
    for (i64 i = 0; i < N * V; i++)
        put(z, i / V, i % V, element(z, i / V, i % V) * (round % 5 == 4 ? 90 : 4));
    seal(z);
    if (round % 3 == 2) label[between(0, N - 1)] = -100;
    if (N > 2) label[0] = 0, label[1] = (i32)(V - 1);
    xent_problem p = {.N = N, .V = V, .z = dense(z), .loss = zeros(N), .label = label};
    say_case(" N %d V %d", (int)N, (int)V);
    cx->ops->xent(cx->device, loss.p, z, label, 0);
    xent_formula(&p);
    agree_mat("loss", loss, p.loss, 1e-6);
    agree_mats("the logits", z, was(z), 0); /* without backward they stay */
    cx->ops->xent(cx->device, again.p, z, label, 1);
    agree_mats("the loss, with its gradient", again, loss, 1e-6);
    const double *got = dense(z);
    agree_slope("dz", got, p.z, N * V, xent_formula, &p, 1e-5);
    for (i64 n = 0; n < N; n++) { /* probabilities less one: they sum to nothing */
        double sum = 0;
        for (i64 i = 0; i < V; i++) sum += got[n * V + i];
        if (!(fabs(sum) < 1e-5)) complain("the sum of a row's gradient", n, sum, 0);
        for (i64 i = 0; i < V && label[n] < 0; i++)
            if (got[n * V + i] != 0)
                complain("a row that is not trained", n, got[n * V + i], 0);
    }
}

static void test_op_xent(void) { at_every_level(check_xent, 16); }

/* -- The optimizer ------------------------------------------------------------------------- */
static void check_adamw(nxt_context *cx, int round) {
    const i64 n = round % 9 == 8 ? 20000 + between(0, 99) : between(1, 70);
    mat w = sum_into(1, n), g = input(1, n), m = sum_into(1, n), v = sum_into(1, n);
    double *W = dense(w), *M = zeros(n), *S = zeros(n);
    const double b1 = 0.9f, b2 = 0.999f, lr = 0.01f, eps = 1e-8f, scale = 0.3f;
    const double decay = round % 2 ? 0.1f : 0;
    for (i64 i = 0; i < n; i++) put(m, 0, i, 0), put(v, 0, i, 0);
    say_case(" n %d", (int)n);
    for (int t = 1; t <= 5; t++) {
        const double c1 = 1 - pow(b1, t), c2 = 1 - pow(b2, t);
        for (i64 i = 0; i < n; i++) put(g, 0, i, (2 * uniform(kernel_random()) - 1) / t);
        seal(g);
        cx->ops->adamw(cx->device, &(nxt_adamw){
            .w = w.p, .g = g.p, .m = m.p, .v = v.p, .n = n, .scale = (float)scale,
            .lr = (float)lr, .beta1 = (float)b1, .beta2 = (float)b2, .eps = (float)eps,
            .decay = (float)decay, .correction1 = (float)c1, .correction2 = (float)c2});
        for (i64 i = 0; i < n; i++) {
            const double grad_i = scale * (double)element(g, 0, i);
            W[i] -= lr * decay * W[i];
            M[i] = b1 * M[i] + (1 - b1) * grad_i;
            S[i] = b2 * S[i] + (1 - b2) * grad_i * grad_i;
            W[i] -= lr * (M[i] / c1) / (sqrt(S[i] / c2) + eps);
        }
    }
    agree_mat("w", w, W, 1e-6);
    agree_mat("m", m, M, 1e-6);
    agree_mat("v", v, S, 2e-6);
}

static void test_op_adamw(void) { at_every_level(check_adamw, 9); }

static void check_sumsq(nxt_context *cx, int round) {
    const i64 N = between(1, 40), C = round % 3 == 2 ? between(1000, 3000) : between(1, 90);
    mat x = input(N, C);
    double want = 7.5, got = 7.5, *values = dense(x);
    for (i64 i = 0; i < N * C; i++) want += values[i] * values[i];
    say_case(" N %d C %d", (int)N, (int)C);
    cx->ops->sumsq(cx->device, &got, x);
    if (!(fabs(got - want) <= 1e-6 * want)) complain("the sum", 0, got, want);
    u64 bits;
    memcpy(&bits, &got, 8);
    kernel_digest = mix64(kernel_digest ^ bits);
}

static void test_op_sumsq(void) { at_every_level(check_sumsq, 9); }
