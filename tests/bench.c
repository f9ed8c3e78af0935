/* How much of the machine the kernels use.
 *
 *     build/bench [NAME] [--threads=N] [--cpu=LEVEL] [--bf16] [--seconds=S]
 *
 * Two limits are measured first, by loops that do nothing else: multiply-adds on registers, and
 * reading memory. Then each matrix product of a training step at the shapes of Pythia and of the
 * small model in data/, as a share of the first limit, and each other kernel as memory traffic.
 * Whole training steps are the business of `neoxtune bench`.
 * The limit is measured again next to every product, since clocks and neighbours change; times
 * are the best of many. NAME runs the lines that contain it. */
#define NXT_NO_MAIN
#include "../neoxtune.c"

static const char *wanted_name = "";
static double seconds_each = 0.3;

static double now(void) { return seconds_now(); }
static bool in_bf16; /* products, and the peak they are held against */

/* -- Products --------------------------------------------------------------------------------- */
typedef struct product_shape {
    const char *name;
    i64 M, N, K;
    int trans;
} product_shape;

#define NT NXT_TRANS_B /* Y = X W' */
#define TN NXT_TRANS_A /* dW += dY' X */
#define LAYER(name, C, rows)                                                                   \
    {name " Y qkv", rows, 3 * C, C, NT}, {name " Y out", rows, C, C, NT},                      \
    {name " Y up", rows, 4 * C, C, NT}, {name " Y down", rows, C, 4 * C, NT},                  \
    {name " dX qkv", rows, C, 3 * C, 0}, {name " dX up", rows, C, 4 * C, 0},                   \
    {name " dX down", rows, 4 * C, C, 0}, {name " dW qkv", 3 * C, C, rows, TN},                \
    {name " dW up", 4 * C, C, rows, TN}, {name " dW down", C, 4 * C, rows, TN}
static const product_shape shapes[] = {
    LAYER("70m x256", 512, 256), LAYER("70m x1024", 512, 1024), LAYER("70m x8192", 512, 8192),
    {"70m head Y", 512, 50304, 512, NT}, {"70m head dX", 512, 512, 50304, 0},
    {"70m head dW", 50304, 512, 512, TN},
    LAYER("160m x1024", 768, 1024), LAYER("410m x1024", 1024, 1024), LAYER("1b x1024", 2048, 1024),
    LAYER("pico x512", 128, 512), LAYER("pico x2048", 128, 2048),
    {"pico head Y", 512, 768, 128, NT}, {"pico head dX", 512, 128, 768, 0},
    {"pico head dW", 768, 128, 512, TN},
};
static const product_shape decoding[] = {
    {"decode 70m x1 up", 1, 2048, 512, NT}, {"decode 70m x1 head", 1, 50304, 512, NT},
    {"decode 70m x8 head", 8, 50304, 512, NT}, {"decode 410m x1 down", 1, 1024, 4096, NT},
    {"decode 1b x1 up", 1, 8192, 2048, NT}, {"decode 1b x4 up", 4, 8192, 2048, NT},
};

/* Best time of a product, and the best peak measured between its runs. */
static double time_product(nxt_context *cx, const product_shape *s, float *const memory[3], double *peak) {
    const mat none = {0};
    const bool ta = s->trans & NXT_TRANS_A, tb = s->trans & NXT_TRANS_B;
    const mat a = {memory[0], F32, ta ? s->K : s->M, ta ? s->M : s->K, ta ? s->M : s->K};
    const mat b = {memory[1], F32, tb ? s->N : s->K, tb ? s->K : s->N, tb ? s->K : s->N};
    const mat c = {memory[2], F32, s->M, s->N, s->N};
    double best = 1e9;
    *peak = 0;
    const double start = now();
    for (int run = 0; run < 5 || (run < 3000 && now() - start < seconds_each); run++) {
        *peak = fmax(*peak, peak_now(cx, in_bf16));
        const double t = now();
        cx->ops->matmul(cx->device, c, a, b, s->trans, 1, ta ? 1 : 0, none);
        best = fmin(best, now() - t);
    }
    return best;
}

static void bench_products(nxt_context *cx, float *const memory[3]) {
    double time_at_peak = 0, time_taken = 0, peak;
    for (i64 i = 0; i < COUNT(shapes); i++) {
        const product_shape *s = &shapes[i];
        if (!strstr(s->name, wanted_name)) continue;
        const double flop = 2.0 * (double)s->M * (double)s->N * (double)s->K;
        const double t = time_product(cx, s, memory, &peak);
        printf("%-18s %6" PRId64 " %6" PRId64 " %6" PRId64 " %10.1f us %8.1f GFLOP/s", s->name,
               s->M, s->N, s->K, t * 1e6, flop / t / 1e9);
        if (peak > 0) printf(" %6.1f %% of %.1f", 100 * flop / t / peak, peak / 1e9);
        puts("");
        time_taken += t;
        time_at_peak += peak > 0 ? flop / peak : 0;
    }
    if (time_taken > 0)
        printf("products, weighted by FLOP: %.1f %% of the peak, %d threads, %s\n",
               100 * time_at_peak / time_taken, cx->threads, cx->cpu);
    for (i64 i = 0; i < COUNT(decoding); i++) {
        const product_shape *s = &decoding[i];
        if (!strstr(s->name, wanted_name)) continue;
        const double t = time_product(cx, s, memory, &peak);
        printf("%-22s %10.1f us %8.1f GB/s of weights\n", s->name, t * 1e6,
               4.0 * (double)s->N * (double)s->K / t / 1e9);
    }
}

/* -- The other kernels ------------------------------------------------------------------------ */
#define TIME(name, bytes_per_element, elements, call)                                          \
    if (strstr(name, wanted_name)) {                                                           \
        double best = 1e9;                                                                     \
        const double start = now();                                                            \
        for (int run = 0; run < 5 || (run < 1000 && now() - start < seconds_each); run++) {    \
            const double t = now();                                                            \
            call;                                                                              \
            best = fmin(best, now() - t);                                                      \
        }                                                                                      \
        printf("%-22s %10.1f us %8.3f ns/element %7.1f GB/s\n", name, best * 1e6,              \
               best * 1e9 / (double)(elements),                                                \
               (bytes_per_element) * (double)(elements) / best / 1e9);                         \
    }

static void bench_rows(nxt_context *cx, float *const memory[3]) {
    enum { N = 1024, C = 512, F = 2048, V = 50304, ROWS = 64 };
    static i32 label[N];
    const nxt_backend *ops = cx->ops;
    void *d = cx->device;
    float *x = memory[0], *y = memory[1], *z = memory[2];
    const mat none = {0}, xc = {x, F32, N, C, C}, yc = {y, F32, N, C, C}, zc = {z, F32, N, C, C};
    const mat xf = {x, F32, N, F, F}, yf = {y, F32, N, F, F}, zf = {z, F32, N, F, F};
    const mat w = {z + N * C, F32, 1, C, C}, stats = {z + 2 * N * C, F32, N, 2, 2};
    for (int n = 0; n < N; n++) label[n] = n;
    nxt_adamw u = {x, y, z, z + N * F, N * F, 1, 1e-4f, 0.9f, 0.999f, 1e-8f, 0.1f, 0.5f, 0.5f};
    TIME("norm fwd", 8, N * C, ops->norm_fwd(d, yc, stats, xc, w, w, 1e-5f, NXT_LAYER_NORM))
    TIME("norm bwd", 16, N * C,
         ops->norm_bwd(d, zc, w, w, yc, xc, w, stats, NXT_LAYER_NORM))
    TIME("gelu fwd", 8, N * F, ops->act_fwd(d, yf, xf, NXT_GELU))
    TIME("gelu bwd", 12, N * F, ops->act_bwd(d, zf, yf, xf, NXT_GELU))
    TIME("gelu_new fwd", 8, N * F, ops->act_fwd(d, yf, xf, NXT_GELU_TANH))
    TIME("silu fwd", 8, N * F, ops->act_fwd(d, yf, xf, NXT_SILU))
    TIME("mul", 12, N * F, ops->mul(d, zf, yf, xf))
    TIME("bias bwd", 4, N * F, ops->bias_bwd(d, (mat){z, F32, 1, F, F}, xf))
    TIME("cross-entropy", 12, ROWS * V, ops->xent(d, z, (mat){x, F32, ROWS, V, V}, label, 1))
    TIME("adamw", 28, N * F, ops->adamw(d, &u))
}

static void bench_attention(nxt_context *cx, float *const memory[3]) {
    enum { N = 2048, C = 512 };
    static i32 first[N], last[N];
    static float lse[N * 16], work[N * 16];
    for (int size = 32; size <= 128; size *= 2)
        for (int length = 128; length <= N; length *= 4) {
            const int H = C / size;
            char name[40];
            snprintf(name, sizeof name, "attention %d x %d", length, size);
            if (!strstr(name, wanted_name)) continue;
            heads q = {memory[0], F32, N, 3 * C, 3 * size, H, size}, k = q, v = q;
            heads y = {memory[1], F32, N, C, size, H, size}, dq = q, dk = q, dv = q;
            k.p = memory[0] + size, v.p = memory[0] + 2 * size;
            dq.p = memory[2], dk.p = memory[2] + size, dv.p = memory[2] + 2 * size;
            const mat l = {lse, F32, N, H, H}, w = {work, F32, N, H, H};
            double fwd = 1e9, bwd = 1e9, flop = 2.0 * N * (length + 1) * C, peak = 0;
            for (int n = 0; n < N; n++) first[n] = n / length * length, last[n] = n;
            for (int run = 0; run < 8; run++) {
                peak = fmax(peak, peak_now(cx, false));
                double t = now();
                cx->ops->attention_fwd(cx->device, y, l, q, k, v, first, last, 0.125f);
                fwd = fmin(fwd, now() - t);
                t = now();
                cx->ops->attention_bwd(cx->device, dq, dk, dv, y, y, l, w, q, k, v, first, last,
                                       0.125f);
                bwd = fmin(bwd, now() - t);
            }
            printf("%-22s fwd %9.1f us %5.1f %%   bwd %9.1f us %5.1f %% of the peak (causal "
                   "FLOP, 2.5 times as many backward)\n", name, fwd * 1e6,
                   peak > 0 ? 100 * flop / fwd / peak : 0, bwd * 1e6,
                   peak > 0 ? 250 * flop / bwd / peak : 0);
        }
}

int main(int argc, char **argv) {
    nxt_context_config config = nxt_context_config_default();
    nxt_context *cx;
    float *memory[3];
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "--threads=", 10)) config.threads = atoi(argv[i] + 10);
        else if (!strncmp(argv[i], "--cpu=", 6)) config.cpu = argv[i] + 6;
        else if (!strncmp(argv[i], "--seconds=", 10)) seconds_each = atof(argv[i] + 10);
        else if (!strcmp(argv[i], "--bf16")) in_bf16 = true;
        else wanted_name = argv[i];
    const int most = config.threads ? config.threads : usable_processors();
    for (int threads = config.threads ? most : 1; threads <= most; threads *= 2) {
        config.threads = threads;
        if (nxt_context_create(&cx, &config) != NXT_OK) return 1;
        if (in_bf16 && !use_bf16(cx, true)) return puts("no bf16 products here"), 1;
        for (int k = 0; k < 3; k++) {
            if (mem_get(cx, &memory[k], 32 << 20, sizeof(float)) != NXT_OK) return 1;
            for (i64 i = 0; i < 32 << 20; i++)
                memory[k][i] = (float)(mix64((u64)i >> 2) >> (i % 4 * 12) & 0xfff) / 4096 - 0.5f;
        }
        nxt_limits limits;
        if (nxt_measure_limits(cx, &limits) != NXT_OK) return 1;
        printf("%s, %d threads: peak %.1f GFLOP/s %s, reads %.1f GB/s\n", cx->cpu, threads,
               (in_bf16 ? limits.bf16 : limits.f32) / 1e9, in_bf16 ? "bf16" : "f32",
               limits.read / 1e9);
        bench_products(cx, memory);
        bench_rows(cx, memory);
        bench_attention(cx, memory);
        for (int k = 0; k < 3; k++) mem_drop(cx, memory[k]);
        nxt_context_destroy(cx);
    }
    return 0;
}
