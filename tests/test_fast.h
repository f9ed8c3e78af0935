/* What §7 and §8 promise beyond the operations' own tests (test_kernels.h): the error of the
 * functions that replace libm, products at the edges of tiles and blocks between pages without
 * access (I5), the same bits for any number of threads and any order of tasks (I6), bf16
 * products, and attention over a cache whose unused rows hold NaN. Include after harness.h. */
static const char *const fast_levels[] = {"baseline", "avx2", "avx512"};

/* -- Functions ------------------------------------------------------------------------------ */
typedef void sweep_fn(float *y, const float *x, i64 n);
#if NXT_HAS_SIMD
#define SWEEP(NAME, AT, EXPRESSION)                                                            \
    AT FUSED static void NAME(float *y, const float *x, i64 n) {                               \
        float turned[2];                                                                       \
        (void)turned;                                                                          \
        for (i64 i = 0; i < n; i++) y[i] = (EXPRESSION);                                       \
    }
#define SWEEPS(LEVEL, AT)                                                                      \
    SWEEP(sweep_exp_##LEVEL, AT, exp_lane(x[i]))                                               \
    SWEEP(sweep_tanh_##LEVEL, AT, tanh_lane(x[i]))                                             \
    SWEEP(sweep_sqrt_##LEVEL, AT, sqrt_lane(x[i]))                                             \
    SWEEP(sweep_sine_##LEVEL, AT, (turn_lane(x[i], &turned[0], &turned[1]), turned[0]))        \
    SWEEP(sweep_cosine_##LEVEL, AT, (turn_lane(x[i], &turned[0], &turned[1]), turned[1]))      \
    AT FUSED static void sweep_normal_##LEVEL(float *y, const float *x, i64 n) {               \
        float bell;                                                                            \
        for (i64 i = 0; i < n; i++) y[i] = normal_lane(x[i], &bell);                           \
    }
SWEEPS(baseline, AT_BASELINE)
#if NXT_HAS_X86
SWEEPS(avx2, AT_AVX2)
SWEEPS(avx512, AT_AVX512)
#define OF_LEVELS(NAME) {NAME##_baseline, NAME##_avx2, NAME##_avx512}
#else
#define OF_LEVELS(NAME) {NAME##_baseline}
#endif

static double normal_exact(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }

/* The largest error over the floats of [low, high], in units of the result's last place, or as
 * it is when `absolute`. */
static double sweep(sweep_fn *fast_one, double (*exact)(double), float low, float high,
                    bool absolute) {
    enum { N = 512 };
    float x[N], y[N];
    double worst = 0;
    u64 draw_at = 0;
    for (int round = 0; round < 400; round++) {
        for (int i = 0; i < N; i++) { /* any exponent, then evenly spread */
            do x[i] = bits_float((u32)mix64(draw_at++));
            while (!(fabsf(x[i]) <= fmaxf(fabsf(low), fabsf(high))));
            if (round % 2 || x[i] < low || x[i] > high)
                x[i] = low + (high - low) * (float)uniform(mix64(draw_at++));
        }
        fast_one(y, x, N);
        for (int i = 0; i < N; i++) {
            const double want = exact((double)x[i]);
            const double unit = fmax(ldexp(1, -149), ldexp(1, ilogb(fabs(want) + 1e-300) - 23));
            const double error = fabs((double)y[i] - want) / (absolute ? 1 : unit);
            if (!(error <= worst)) worst = error;
        }
    }
    return worst;
}

static void test_fast_functions(void) {
    sweep_fn *const e[] = OF_LEVELS(sweep_exp), *const t[] = OF_LEVELS(sweep_tanh);
    sweep_fn *const n[] = OF_LEVELS(sweep_normal), *const r[] = OF_LEVELS(sweep_sqrt);
    sweep_fn *const sine[] = OF_LEVELS(sweep_sine), *const cosine[] = OF_LEVELS(sweep_cosine);
    for (int level = 0; level < cpu_level(); level++) {
        CHECK(sweep(sine[level], sin, -1e6f, 1e6f, true) < 1.2e-7);
        CHECK(sweep(cosine[level], cos, -1e6f, 1e6f, true) < 1.2e-7);
        CHECK(sweep(e[level], exp, -87, 88, false) < 1);
        CHECK(sweep(e[level], exp, -104, -87, false) < 1);
        CHECK(sweep(t[level], tanh, -12, 12, false) < 2.5);
        CHECK(sweep(r[level], sqrt, 1e-30f, 1e30f, false) < 2.5);
        CHECK(sweep(n[level], normal_exact, -14, 14, true) < 2e-7);
        float x[] = {INFINITY, -INFINITY, NAN, 1000, -1000, 0, -0.0f, 89}, y[8];
        e[level](y, x, 8);
        CHECK(y[0] == INFINITY && y[1] == 0 && isnan(y[2]) && y[3] == INFINITY);
        CHECK(y[4] == 0 && y[5] == 1 && y[6] == 1 && y[7] == INFINITY);
        t[level](y, x, 8);
        CHECK(y[0] == 1 && y[1] == -1 && isnan(y[2]) && y[3] == 1 && y[4] == -1 && y[5] == 0);
        n[level](y, x, 8);
        CHECK(y[0] == 1 && y[1] == 0 && isnan(y[2]) && y[3] == 1 && y[4] == 0);
    }
}
#else
static void test_fast_functions(void) { SKIP("built without SIMD"); }
#endif

/* -- Memory whose end is the end of what may be touched ------------------------------------- */
typedef struct fence {
    char *base, *p; /* p: `bytes` bytes up to a page without access */
    size_t size;
} fence;

static fence fence_get(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    fence f = {.size = room + 2 * page};
    f.base = mmap(NULL, f.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (f.base == MAP_FAILED || mprotect(f.base + page, room, PROT_READ | PROT_WRITE)) abort();
    f.p = f.base + page + room - bytes;
    return f;
}
static void fence_drop(fence f) { munmap(f.base, f.size); }

/* A matrix that ends at a fence, filled with small numbers. */
static mat fenced(fence *f, dtype type, i64 rows, i64 cols, i64 gap, u64 key) {
    const i64 stride = cols + gap, count = rows ? (rows - 1) * stride + cols : 0;
    *f = fence_get((size_t)(count * dtype_size(type)));
    for (i64 i = 0; i < count; i++) {
        const float x = noise(key, i);
        const u16 h = type == F16 ? f32_to_f16(x) : f32_to_bf16(x);
        if (type == F32) memcpy(f->p + 4 * i, &x, 4);
        else memcpy(f->p + 2 * i, &h, 2);
    }
    return (mat){.p = f->p, .type = type, .rows = rows, .cols = cols, .stride = stride};
}

/* -- Products -------------------------------------------------------------------------------- */
typedef struct product_case {
    i64 M, N, K;
    int trans;
    dtype a, b;
    float alpha, beta;
    bool bias;
} product_case;

/* Values that bf16 holds: then only the sums round. */
static void round_matrix(mat m) {
    float *x = m.p;
    for (i64 i = 0; m.type == F32 && i < (m.rows - 1) * m.stride + m.cols; i++)
        x[i] = bf16_to_f32(f32_to_bf16(x[i]));
}

/* One product at one level; returns the largest error relative to the size of the sums. */
static double product_error(nxt_context *cx, product_case t, bool bf16) {
    fence fa, fb, fc, fw, fx;
    if (bf16 && t.a == F16) t.a = BF16;
    if (bf16 && t.b == F16) t.b = BF16;
    const bool ta = t.trans & NXT_TRANS_A, tb = t.trans & NXT_TRANS_B;
    mat a = fenced(&fa, t.a, ta ? t.K : t.M, ta ? t.M : t.K, t.K % 3, 1);
    mat b = fenced(&fb, t.b, tb ? t.N : t.K, tb ? t.K : t.N, t.M % 2, 2);
    mat c = fenced(&fc, F32, t.M, t.N, 1, 3), want = fenced(&fw, F32, t.M, t.N, 1, 3);
    mat bias = fenced(&fx, t.b, 1, t.N, 0, 4);
    if (!t.bias) bias.p = NULL;
    if (bf16) round_matrix(a), round_matrix(b);
    ref_matmul(cx, want, a, b, t.trans, t.alpha, t.beta, bias);
    if (t.beta == 0) row_of(c, t.M - 1)[t.N - 1] = NAN; /* beta 0 does not read C */
    cx->ops->matmul(cx->device, c, a, b, t.trans, t.alpha, t.beta, bias);
    double worst = 0;
    for (i64 i = 0; i < (t.M - 1) * c.stride + t.N; i++) {
        const double error = fabs((double)((float *)c.p)[i] - (double)((float *)want.p)[i]);
        const bool outside = i % c.stride >= t.N; /* between the rows: untouched */
        if (!(error <= worst)) worst = outside ? 1 : error;
    }
    fence_drop(fa), fence_drop(fb), fence_drop(fc), fence_drop(fw), fence_drop(fx);
    return worst / sqrt((double)t.K + 4);
}

static void test_fast_matmul(void) {
    /* around every size at which the loops change their way: tiles, panels, tasks, blocks */
    static const i64 edge[] = {1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 23, 24, 25, 31, 32, 33,
                               47, 64, 95, 97, 129, 255, 257};
    static const i64 long_k[] = {511, 513, 1023, 1025, 2049};
    for (int level = 0; level < cpu_level(); level++) {
        nxt_context *cx = context_with(fast_levels[level], 2);
        for (u64 i = 0; cx && i < (quick_run ? 150 : 500); i++) {
            const u64 r = mix64(i + 1000 * (u64)level);
            product_case t = {.M = edge[r % COUNT(edge)], .N = edge[r / 32 % COUNT(edge)],
                              .K = edge[r / 1024 % COUNT(edge)], .trans = (int)(r >> 16 & 3),
                              .a = r >> 18 & 7 ? F32 : (dtype)(r >> 40 & 1 ? F16 : BF16),
                              .b = (dtype)((r >> 22) % 3), .bias = r >> 26 & 1,
                              .alpha = r >> 27 & 1 ? 1 : -0.5f,
                              .beta = r >> 28 & 1 ? 0 : r >> 29 & 1 ? 1 : 0.25f};
            if (i % 8 == 0) t.K = long_k[r / 1024 % COUNT(long_k)];
            if (i % 32 == 1) t.N = 1 << 10 | (i64)(r >> 50 & 127); /* several blocks of N */
            CHECK(product_error(cx, t, false) < 2e-6);
            if (use_bf16(cx, true)) CHECK(product_error(cx, t, true) < 2e-6);
            use_bf16(cx, false);
        }
        nxt_context_destroy(cx);
    }
}

/* -- Threads ---------------------------------------------------------------------------------- */
/* A host's pool that runs the tasks from the last to the first. */
static void backwards(void *user, i64 tasks, void (*task)(void *, i64), void *arg) {
    (void)user;
    while (tasks-- > 0) task(arg, tasks);
}

static u64 bits_of(u64 sum, const float *x, i64 n) {
    for (i64 i = 0; i < n; i++) sum = mix64(sum + float_bits(x[i]));
    return sum;
}

/* A little of everything that sums over rows or tasks; returns a digest of all results. */
static u64 work_digest(nxt_context *cx) {
    enum { N = 300, C = 96, H = 3, D = 32, COUNT_ALL = N * C };
    static float at[12][COUNT_ALL];
    static i32 first[N], last[N], ids[N];
    const nxt_backend *ops = cx->ops;
    mat m[12];
    for (int k = 0; k < 12; k++) {
        m[k] = (mat){at[k], F32, N, C, C};
        for (i64 i = 0; i < COUNT_ALL; i++) at[k][i] = noise((u64)k, i);
    }
    for (int n = 0; n < N; n++) first[n] = n / 130 * 130, last[n] = n, ids[n] = n * 7 % 50;
    heads h[12];
    for (int k = 0; k < 12; k++) h[k] = (heads){at[k], F32, N, C, D, H, D};
    mat w = {at[11], F32, 1, C, C}, lse = {at[10], F32, N, H, H}, work = {at[9], F32, N, H, H};
    mat stats = {at[8], F32, N, 2, 2}, none = {0}, square = {at[7], F32, C, C, C};
    double sum = 0;
    u64 digest = 0;
    ops->attention_fwd(cx->device, h[0], lse, h[1], h[2], h[3], first, last, 0.2f);
    ops->attention_bwd(cx->device, h[4], h[5], h[6], h[3], h[0], lse, work, h[1], h[2], h[3],
                       first, last, 0.2f);
    for (int k = 4; k < 7; k++) digest = bits_of(digest, at[k], COUNT_ALL);
    ops->norm_fwd(cx->device, m[4], stats, m[0], w, none, 1e-5f, NXT_LAYER_NORM);
    ops->norm_bwd(cx->device, m[5], w, none, m[1], m[0], w, stats, NXT_LAYER_NORM);
    ops->bias_bwd(cx->device, w, m[5]);
    ops->matmul(cx->device, square, m[4], m[5], NXT_TRANS_A, 1, 1, none);
    ops->embed_bwd(cx->device, m[6], none, m[5], ids, ids);
    ops->xent(cx->device, at[9], m[5], ids, 1);
    ops->sumsq(cx->device, &sum, m[5]);
    for (int k = 4; k < 12; k++) digest = bits_of(digest, at[k], COUNT_ALL);
    return digest + (u64)float_bits((float)(sum - (double)(float)sum)) + float_bits((float)sum);
}

static void test_fast_threads(void) {
    for (int level = 0; level < cpu_level(); level++) {
        u64 want = 0;
        for (int threads = 0; threads < 6; threads++) {
            static const int count[] = {1, 2, 4, 5, 8, 1};
            nxt_context_config config = nxt_context_config_default();
            nxt_context *cx;
            config.cpu = fast_levels[level];
            config.threads = count[threads];
            if (threads == 5) config.parallel_for = backwards;
            CHECK(nxt_context_create(&cx, &config) == NXT_OK);
            if (!cx) return;
            const u64 digest = work_digest(cx);
            if (!threads) want = digest;
            CHECK(digest == want);
            nxt_context_destroy(cx);
        }
    }
}

/* Contexts that end while some workers fall asleep and others still wake: each must end. */
static void nothing_much(void *arg, i64 i) { atomic_fetch_add((_Atomic i64 *)arg, i); }

static void test_fast_pool_ends(void) {
    for (int round = 0; round < 60; round++) {
        nxt_context *cx = context_with(NULL, 64);
        _Atomic i64 sum = 0;
        if (!cx) return;
        for (int job = 0; job < 1 + round % 5; job++) parallel_for(cx, 100, nothing_much, &sum);
        nxt_context_destroy(cx);
        CHECK(atomic_load(&sum) == (1 + round % 5) * 4950);
    }
}

/* Products of several blocks of either side, strips and parts: equal bits for up to 64 threads,
 * and samples of C against sums in double. */
static void test_fast_blocks(void) {
    static const struct { i64 M, N, K; int trans; } shape[] = {
        {1090, 1300, 530, NXT_TRANS_B}, {1090, 700, 1030, NXT_TRANS_A}, {70, 900, 1500, 0}};
    enum { FLOATS = 1600 * 1600 };
    static float at[3][FLOATS], first[FLOATS];
    for (int k = 0; k < 2; k++)
        for (i64 i = 0; i < FLOATS; i++) at[k][i] = noise((u64)k, i);
    for (int level = cpu_level(); level >= (long_run ? 1 : cpu_level()); level--)
        for (i64 q = 0; q < COUNT(shape); q++) {
            const i64 M = shape[q].M, N = shape[q].N, K = shape[q].K;
            const bool ta = shape[q].trans & NXT_TRANS_A, tb = shape[q].trans & NXT_TRANS_B;
            const mat a = {at[0], F32, ta ? K : M, ta ? M : K, ta ? M : K};
            const mat b = {at[1], F32, tb ? N : K, tb ? K : N, tb ? K : N};
            const mat c = {at[2], F32, M, N, N}, none = {0};
            for (int threads = 1; threads <= 64; threads *= threads < 8 ? 2 : 8) {
                nxt_context *cx = context_with(cpu_names[level], threads);
                if (!cx) return;
                for (i64 i = 0; i < M * N; i++) at[2][i] = 1;
                cx->ops->matmul(cx->device, c, a, b, shape[q].trans, 1, 1, none);
                if (threads == 1) memcpy(first, at[2], sizeof first);
                CHECK(!memcmp(first, at[2], (size_t)(M * N) * sizeof(float)));
                nxt_context_destroy(cx);
            }
            for (i64 i = 0; i < M * N; i += 997) {
                double sum = 1;
                for (i64 k = 0; k < K; k++)
                    sum += (double)at[0][ta ? k * M + i / N : i / N * K + k]
                           * at[1][tb ? i % N * K + k : k * N + i % N];
                CHECK(fabs(sum - first[i]) < 1e-3);
            }
        }
}

/* -- Attention over a cache: rows that no query sees may hold anything ------------------------- */
static void test_fast_cache(void) {
    enum { N = 70, ROWS = 600, D = 20, H = 2 };
    static float q[N * H * D], k[ROWS * H * D], v[ROWS * H * D], y[N * H * D], want[N * H * D];
    static float lse[N * H], lse_want[N * H];
    static i32 first[N], last[N];
    for (int level = 0; level < cpu_level(); level++) {
        nxt_context *cx = context_with(fast_levels[level], 2);
        for (int slabs = 1; cx && slabs <= 60; slabs += slabs < 4 ? 1 : 28) {
            for (i64 i = 0; i < ROWS * H * D; i++) k[i] = v[i] = NAN;
            for (i64 i = 0; i < N * H * D; i++) q[i] = noise(5, i);
            for (int n = 0; n < N; n++) { /* slabs of sequences, neighbours in the batch */
                const int slab = n * slabs / N, start = slab * (ROWS / slabs);
                first[n] = start, last[n] = start + (ROWS / slabs - 1) * (n + 1) / (N + 20);
                for (i64 i = start * H * D; i < (last[n] + 1) * H * D; i++)
                    k[i] = noise(6, i), v[i] = noise(7, i);
            }
            heads hq = {q, F32, N, H * D, D, H, D}, hk = {k, F32, ROWS, H * D, D, H, D};
            heads hv = hk, hy = hq, hw = hq;
            hv.p = v, hy.p = y, hw.p = want;
            cx->ops->attention_fwd(cx->device, hy, (mat){lse, F32, N, H, H}, hq, hk, hv, first,
                                   last, 0.3f);
            ref_attention_fwd(cx, hw, (mat){lse_want, F32, N, H, H}, hq, hk, hv, first, last,
                              0.3f);
            for (i64 i = 0; i < N * H * D; i++) CHECK(fabsf(y[i] - want[i]) < 1e-5f);
            for (i64 i = 0; i < N * H; i++) CHECK(fabsf(lse[i] - lse_want[i]) < 1e-5f);
        }
        nxt_context_destroy(cx);
    }
}

/* A head so wide that no task's panels of it fit the workspace: slowly, but it ends. */
static void test_fast_wide_head(void) {
    enum { N = 8, D = 40000 };
    static float x[3][N * D], y[N * D], want[N * D], g[2][3][N * D], lse[N], work[N];
    const i32 first[N] = {0}, last[N] = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int k = 0; k < 3; k++)
        for (i64 i = 0; i < N * D; i++) x[k][i] = noise(20 + (u64)k, i);
    for (int level = 0; level < cpu_level(); level++) {
        nxt_context *cx = context_with(fast_levels[level], 2);
        if (!cx) continue;
        const mat l = {lse, F32, N, 1, 1}, w = {work, F32, N, 1, 1};
        heads h[3], dh[2][3], hy = {y, F32, N, D, D, 1, D}, hw = hy;
        hw.p = want;
        for (int k = 0; k < 3; k++) {
            h[k] = hy, h[k].p = x[k];
            for (int i = 0; i < 2; i++) dh[i][k] = hy, dh[i][k].p = g[i][k];
        }
        ref_attention_fwd(cx, hw, l, h[0], h[1], h[2], first, last, 0.005f);
        ref_attention_bwd(cx, dh[1][0], dh[1][1], dh[1][2], h[2], hw, l, w, h[0], h[1], h[2],
                          first, last, 0.005f);
        cx->ops->attention_fwd(cx->device, hy, l, h[0], h[1], h[2], first, last, 0.005f);
        cx->ops->attention_bwd(cx->device, dh[0][0], dh[0][1], dh[0][2], h[2], hy, l, w, h[0],
                               h[1], h[2], first, last, 0.005f);
        float worst = 0;
        for (i64 i = 0; i < N * D; i++) {
            worst = fmaxf(worst, fabsf(y[i] - want[i]));
            for (int k = 0; k < 3; k++) worst = fmaxf(worst, fabsf(g[0][k][i] - g[1][k][i]));
        }
        CHECK(worst < 1e-4f);
        nxt_context_destroy(cx);
    }
}
