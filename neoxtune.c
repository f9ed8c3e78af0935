/* neoxtune: fine-tune language models (GPT-NeoX, GPT-2, GPT-Neo, Llama) in one C file.
 *
 *     cc -O3 -pthread -o neoxtune neoxtune.c -lm
 *     ./neoxtune train --model pythia-70m --data notes.txt --block-size 128 --output-dir tuned
 *
 * It reads a Hugging Face model directory as downloaded, tokenizes, trains, evaluates,
 * generates, and writes a directory that Hugging Face loads. No package but libc and libm.
 *
 * To embed it: add neoxtune.c and neoxtune.h, compile with -DNXT_NO_MAIN, read neoxtune.h.
 * To learn from it: read §6 (every operation and its gradient), §14 (what a model is), §15 to
 * §17 (memory, forward, backward) and §20 (a training step), in that order. Sections marked
 * (skip) only make an earlier one faster, or read an awkward format.
 * Not here: several processes (a hook lets a host do it), quantised training, downloads.
 *
 * NOTATION   N rows (tokens of a micro-batch)   C channels   L layers   H heads   D head size
 *            F feed-forward size   V vocabulary   T positions.   x (N,C): N rows of C values.
 *            dx is the gradient of the summed loss with respect to x.
 *
 * CONTENTS
 *   I    Ground
 *   §1   Configuration
 *   §2   Status, errors, log, cancellation
 *   §3   Memory
 *   §4   Threads
 *   §5   Numbers
 *   II   Operations
 *   §6   Reference kernels
 *   §7   Fast matmul (skip)
 *   §8   Fast kernels (skip)
 *   §9   The operation table
 *   III  Files and text
 *   §10  JSON
 *   §11  Files
 *   §12  pytorch_model.bin (skip)
 *   §13  Tokenizer
 *   IV   The model
 *   §14  Architectures as data
 *   §15  The memory of a pass
 *   §16  Forward
 *   §17  Backward
 *   V    Training and use
 *   §18  Data
 *   §19  Saving models
 *   §20  The optimizer and the trainer
 *   §21  Generation
 *   §22  Checkpoints and runs
 *   §23  Export (skip)
 *   §24  The program
 *
 * INVARIANTS, cited by number
 *   I1  Nothing is used before it is defined: no static function is declared ahead.
 *   I2  No mutable globals: two contexts share nothing.
 *   I3  Library code never exits, prints or reads the environment.
 *   I4  After nxt_trainer_create a training step asks the allocator for nothing.
 *   I5  A kernel reads and writes only inside the views it was given.
 *   I6  Results do not depend on the number of threads.
 *   I7  Long sums run in LANES partial sums, or in double.
 *   I8  Gradients accumulate; only grad_zero clears them.
 *   I9  Device pointers are opened only by the backend that made them.
 *   I10 What is saved is complete or absent: write, flush, rename.
 *
 * License: MIT. References are at the end of §24.
 */

/* ============================================================================
 * § 1  Configuration
 *
 * Every `#if` that matters is here. A host says NXT_NO_X; this section turns that and
 * what the compiler offers into NXT_HAS_X; the rest of the file tests NXT_HAS_X alone.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1 /* madvise, sched_getaffinity: also under -std=c11 */
#endif
#include "neoxtune.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

#if defined(SYS_renameat2) && defined(RENAME_EXCHANGE) /* two names swap at once: §11 */
#define NXT_HAS_EXCHANGE 1
#else
#define NXT_HAS_EXCHANGE 0
#endif

#if defined(__FAST_MATH__)
#error "neoxtune needs IEEE arithmetic (infinities, NaN, ordered sums): drop -ffast-math"
#endif

#if defined(NXT_NO_THREADS)
#define NXT_HAS_THREADS 0
#else
#define NXT_HAS_THREADS 1
#include <pthread.h>
#include <sched.h>
#endif

/* x86-64 has four levels of kernels, from SSE2, which every such processor has, to AVX-512;
 * §7 chooses when a context is made. NEON needs no choice: it is the AArch64 baseline. */
#if defined(__GNUC__) && defined(__x86_64__) && !defined(NXT_NO_SIMD)
#define NXT_HAS_X86 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define NXT_HAS_X86 0
#endif

#if defined(__GNUC__) && !defined(NXT_NO_SIMD) /* vector types: §7 and §8 */
#define NXT_HAS_SIMD 1
#else
#define NXT_HAS_SIMD 0
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline, unused))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#define UNUSED __attribute__((unused))
#else
#define ALWAYS_INLINE static inline
#define PRINTF_LIKE(f, a)
#define UNUSED
#endif

/* GCC with a strict -std=c11 never fuses a*b+c, which halves the speed of every kernel
 * here; clang contracts within a statement either way. Hot kernels ask for it by name. */
#if defined(__GNUC__) && !defined(__clang__)
#define FUSED __attribute__((optimize("fp-contract=fast")))
#else
#define FUSED
#endif

/* Short names for what appears on every line. Sizes and indices are i64 throughout: signed,
 * so that differences and downward loops behave, and wide, because L x rows x C of a large
 * model does not fit into 32 bits. */
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE single and double");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as the files: used in place");
_Static_assert(sizeof(size_t) == 8, "64-bit hosts: files are mapped whole");

#ifndef NXT_ASSERT /* what only a mistake in this file could break; hosts may redefine it */
#define NXT_ASSERT(condition) ((void)0)
#endif

/* Elements of an array whose size the compiler knows. */
#define COUNT(a) ((i64)(sizeof(a) / sizeof((a)[0])))

static inline i64 min64(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 max64(i64 a, i64 b) { return a > b ? a : b; }
/* How many pieces of at most b make a. */
static inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
UNUSED static inline i64 round_up(i64 a, i64 unit) { return ceil_div(a, unit) * unit; }

/* ============================================================================
 * § 2  Status, errors, log, cancellation
 *
 * Anything that touches the outside world returns nxt_status, and the function that
 * finds the fault writes the sentence: file, place, reason. Callers pass the status up
 * with TRY and add nothing. The numeric half of the file (§6 to §8, forward, backward)
 * returns nothing at all: shapes are checked before it starts, and what can go wrong
 * there (a loss that is not finite) is looked at once per step.
 */
typedef struct pool pool; /* §4 */

/* What is shared by everything a host makes from one context. There is nothing else: no
 * variable of this file outlives a call. */
struct nxt_context {
    nxt_context_config config;
    char message[1024];      /* the sentence of the latest failure */
    atomic_int cancelled;
    size_t bytes_now, bytes_peak;
    pool *pool;              /* §4; NULL when the host lends its own, or for one thread */
    int threads;
    const char *cpu;         /* the kernels in use: §9 */
    const nxt_backend *ops;  /* the operation table in use: §9 */
    nxt_backend table;       /* the CPU's */
    void *device;            /* the table's own state; the context itself on the CPU */
    const struct kernels *fast; /* what the CPU level brings to §7 */
    struct profile *profile; /* §9; NULL unless one was started */
    float *workspace;        /* packed panels of the matrix product: §7 */
    struct arena_chunk *kept; /* texts that live as long as the context */
    double flops;            /* of the matrix products so far, for reports */
};

#define TRY(call)                                                                          \
    do {                                                                                   \
        nxt_status try_status = (call);                                                    \
        if (try_status != NXT_OK) return try_status;                                       \
    } while (0)

/* For functions that clean up at a label: sets `status` and goes there. */
#define TRY_GOTO(label, call)                                                              \
    do {                                                                                   \
        status = (call);                                                                   \
        if (status != NXT_OK) goto label;                                                  \
    } while (0)

const char *nxt_version(void) { return "0.1.0"; }

const char *nxt_status_name(nxt_status status) {
    static const char *const names[] = {"ok",          "argument", "memory", "io",
                                        "format",      "unsupported", "shape", "device",
                                        "diverged",    "cancelled"};
    return (unsigned)status < COUNT(names) ? names[status] : "unknown";
}

/* Names in files come from strangers and may hold terminal escapes. */
static void clean_text(char *text) {
    for (char *p = text; *p; p++)
        if ((u8)*p < 32 || *p == 127) *p = '?';
}

PRINTF_LIKE(2, 3)
static void set_message(nxt_context *cx, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(cx->message, sizeof cx->message, format, args);
    va_end(args);
    clean_text(cx->message);
}

/* Writes the sentence and is the status, so that a check reads
 *     if (bad) return fail(cx, NXT_FORMAT, "%s: ...", path);
 * A macro, because then the compiler sees that the status is not NXT_OK. */
#define fail(cx, status, ...) (set_message((cx), __VA_ARGS__), (status))

/* The operating system's own reason, for a path. */
static nxt_status fail_errno(nxt_context *cx, const char *path, const char *doing) {
    return fail(cx, errno == ENOMEM ? NXT_MEMORY : NXT_IO, "%s: cannot %s: %s", path, doing,
                strerror(errno));
}

/* A line for the host's log, if it wants one. Messages are facts about the user's data or
 * files (tensors that were not used, for one), never about the progress of a call. */
PRINTF_LIKE(3, 4)
static void say(nxt_context *cx, nxt_log_level level, const char *format, ...) {
    char line[1024];
    va_list args;
    if (!cx->config.log) return;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    clean_text(line);
    cx->config.log(cx->config.user, level, line);
}

/* Without a context there is no place for a message: creating one failed. */
const char *nxt_error_message(const nxt_context *cx) {
    return cx ? cx->message : "no context (out of memory, or a bad context config)";
}

void nxt_cancel(nxt_context *cx) { atomic_store(&cx->cancelled, 1); }
void nxt_cancel_clear(nxt_context *cx) { atomic_store(&cx->cancelled, 0); }

/* Long calls ask at points where stopping leaves nothing half done. */
static nxt_status check_cancel(nxt_context *cx) {
    if (!atomic_load_explicit(&cx->cancelled, memory_order_relaxed)) return NXT_OK;
    return fail(cx, NXT_CANCELLED, "cancelled");
}

/* ============================================================================
 * § 3  Memory
 *
 * All memory comes from the context's allocator, through mem_get. A block carries its
 * size in the 64 bytes before it, so that the context can count what it holds (the plan
 * that `info` prints is checked against that count) and so that rows start on a cache
 * line. Large blocks ask the kernel for huge pages: a training step walks a gigabyte,
 * and with 4 KB pages the translation misses alone cost some percent.
 *
 * Three ways to hold memory:  one block (mem_get / mem_drop);  an arena, for the many
 * small pieces that live and die together (a JSON tree, a tokenizer);  a buffer that
 * grows (text, lists).
 */
enum { BLOCK_HEADER = 64, HUGE_PAGE = 2 << 20 };

typedef struct block_header {
    void *base;   /* what the allocator returned */
    size_t bytes; /* what was asked of it */
} block_header;

/* The default allocator: malloc for small blocks, huge pages asked for by large ones. */
static void *default_allocate(void *user, size_t bytes) {
    (void)user;
    if (bytes < 2 * HUGE_PAGE) return malloc(bytes);
    void *p = NULL; /* aligned to a huge page, so that none is cut at either end */
    if (posix_memalign(&p, HUGE_PAGE, bytes)) return NULL;
#if defined(MADV_HUGEPAGE)
    (void)madvise(p, bytes, MADV_HUGEPAGE); /* advice only: failing costs speed */
#endif
    return p;
}

static void default_release(void *user, void *memory, size_t bytes) {
    (void)user, (void)bytes;
    free(memory);
}

/* count * size bytes, not cleared, aligned to 64; their address is stored in *out, which is
 * a pointer of the caller's type (hence the copy: a `float *` may not be written through a
 * `void **`). NULL for nothing. The error says how much was wanted. */
static nxt_status mem_get(nxt_context *cx, void *out, i64 count, size_t size) {
    void *p = NULL;
    size_t bytes;
    memcpy(out, &p, sizeof p);
    if (count <= 0) return NXT_OK;
    if (__builtin_mul_overflow((size_t)count, size, &bytes)
        || __builtin_add_overflow(bytes, 2 * BLOCK_HEADER, &bytes))
        return fail(cx, NXT_MEMORY, "a size overflows: %" PRId64 " x %zu bytes", count, size);
    void *base = cx->config.allocate(cx->config.user, bytes);
    if (!base)
        return fail(cx, NXT_MEMORY, "out of memory: %.1f MB more are needed, %.1f MB are held",
                    (double)bytes / 1e6, (double)cx->bytes_now / 1e6);
    uintptr_t start = ((uintptr_t)base + 2 * BLOCK_HEADER - 1) & ~(uintptr_t)(BLOCK_HEADER - 1);
    block_header *h = (block_header *)(start - sizeof *h);
    h->base = base;
    h->bytes = bytes;
    cx->bytes_now += bytes;
    if (cx->bytes_now > cx->bytes_peak) cx->bytes_peak = cx->bytes_now;
    p = (void *)start;
    memcpy(out, &p, sizeof p);
    return NXT_OK;
}

/* The same, cleared. */
static nxt_status mem_zero(nxt_context *cx, void *out, i64 count, size_t size) {
    void *p;
    TRY(mem_get(cx, &p, count, size));
    if (p) memset(p, 0, (size_t)count * size);
    memcpy(out, &p, sizeof p);
    return NXT_OK;
}

/* NULL is fine, as with free. The size comes from the header, so callers need not know it. */
static void mem_drop(nxt_context *cx, void *p) {
    if (!p) return;
    block_header h = *(block_header *)((uintptr_t)p - sizeof h);
    cx->bytes_now -= h.bytes;
    cx->config.release(cx->config.user, h.base, h.bytes);
}

/* Makes the array whose address is in *inout (count elements used of *capacity) hold at
 * least `need`: half as much again each time, so that n additions cost O(n). */
static nxt_status mem_grow(nxt_context *cx, void *inout, i64 count, i64 need, i64 *capacity,
                           size_t size) {
    void *old, *p;
    if (need <= *capacity) return NXT_OK;
    const i64 bigger = max64(need, max64(16, *capacity + *capacity / 2));
    TRY(mem_get(cx, &p, bigger, size));
    memcpy(&old, inout, sizeof old);
    if (count > 0) memcpy(p, old, (size_t)count * size);
    mem_drop(cx, old);
    memcpy(inout, &p, sizeof p);
    *capacity = bigger;
    return NXT_OK;
}

/* -- arena ----------------------------------------------------------------------------- */
typedef struct arena_chunk {
    struct arena_chunk *next;
    size_t used, size;
} arena_chunk;

typedef struct arena {
    nxt_context *cx;
    arena_chunk *chunks;
} arena;

enum { ARENA_CHUNK = 64 << 10 };

/* An arena hands out pieces of large chunks and frees them all at once, which is why a tree
 * of a hundred thousand nodes loads in milliseconds and cannot leak one of them. Each chunk is
 * twice the one before, until they fill huge pages: a page costs more than its pieces. */
/* bytes aligned to 16, cleared; NULL after a failure, with the error written. */
static void *arena_get(arena *a, size_t bytes) {
    bytes = (bytes + 15) & ~(size_t)15;
    arena_chunk *c = a->chunks;
    if (!c || c->size - c->used < bytes) {
        size_t size = c ? (size_t)min64(2 * (i64)c->size, 4 * HUGE_PAGE) : ARENA_CHUNK;
        if (size < bytes) size = bytes;
        if (mem_get(a->cx, &c, 1, sizeof *c + size) != NXT_OK) return NULL;
        *c = (arena_chunk){.next = a->chunks, .used = 0, .size = size};
        a->chunks = c;
    }
    void *p = (char *)(c + 1) + c->used;
    c->used += bytes;
    return memset(p, 0, bytes);
}

/* A copy of n bytes, ended by NUL. */
static char *arena_text(arena *a, const char *text, size_t n) {
    char *s = arena_get(a, n + 1);
    if (s && n) memcpy(s, text, n);
    return s;
}

static void arena_free(arena *a) {
    while (a->chunks) {
        arena_chunk *c = a->chunks;
        a->chunks = c->next;
        mem_drop(a->cx, c);
    }
}

/* Empties the arena and keeps one chunk, for a loop that fills it again and again. */
static void arena_clear(arena *a) {
    while (a->chunks && a->chunks->next) {
        arena_chunk *c = a->chunks;
        a->chunks = c->next;
        mem_drop(a->cx, c);
    }
    if (a->chunks) a->chunks->used = 0;
}

/* -- buffer: bytes that grow. The first failure sticks in `status`, so that a writer may
 *    add many pieces and check once. Always NUL-terminated after a write. ---------------- */
typedef struct buffer {
    nxt_context *cx;
    char *p;
    i64 n, capacity;
    nxt_status status;
} buffer;

static void buffer_add(buffer *b, const void *bytes, i64 n) {
    if (b->status == NXT_OK)
        b->status = mem_grow(b->cx, &b->p, b->n, b->n + n + 1, &b->capacity, 1);
    if (b->status != NXT_OK) return;
    if (n) memcpy(b->p + b->n, bytes, (size_t)n);
    b->n += n;
    b->p[b->n] = 0;
}

/* A string. */
static void buffer_text(buffer *b, const char *text) { buffer_add(b, text, (i64)strlen(text)); }

/* As printf. Short results, nearly all, are formatted once; long ones a second time into
 * the room that the first attempt asked for. */
PRINTF_LIKE(2, 3)
static void buffer_print(buffer *b, const char *format, ...) {
    char small[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(small, sizeof small, format, args);
    va_end(args);
    if (n < (int)sizeof small) {
        buffer_add(b, small, n);
        return;
    }
    if (b->status == NXT_OK)
        b->status = mem_grow(b->cx, &b->p, b->n, b->n + n + 1, &b->capacity, 1);
    if (b->status != NXT_OK) return;
    va_start(args, format);
    vsnprintf(b->p + b->n, (size_t)n + 1, format, args);
    va_end(args);
    b->n += n;
}

static void buffer_free(buffer *b) {
    mem_drop(b->cx, b->p);
    *b = (buffer){.cx = b->cx};
}

/* ============================================================================
 * § 4  Threads
 *
 * One pool, one way to use it:  parallel_for(cx, n, fn, arg)  runs fn(arg, 0..n-1) and
 * returns when all are done. Who runs which task is a race; what a task computes is not.
 * The rule that makes results independent of the number of threads (I6): work is cut by
 * its size, never by the number of threads; a task writes only what is its own; sums of
 * several tasks are combined afterwards in the order of their indices.
 *
 * A job is handed out through one 64-bit ticket, {number of the job, next task}. A
 * worker takes a task by raising the ticket with compare-and-swap, which fails when the
 * job has changed meanwhile; so a worker that wakes late can neither run a task twice
 * nor touch the next job by mistake. Idle workers spin for some microseconds (the gap
 * between two operations of a step), then sleep until the next job.
 */
#if NXT_HAS_THREADS
enum { MAX_THREADS = 256, SPIN = 4000, CLOSED = 0x7fffffff };

struct pool {
    _Atomic u64 ticket;          /* job << 32 | next task */
    _Atomic i64 tasks, finished;
    _Atomic(void *) arg;
    _Atomic(void (*)(void *, i64)) fn;
    atomic_int sleeping, quit;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    int workers;
    pthread_t thread[MAX_THREADS];
};

/* Tells the processor that this is a waiting loop: it saves power and leaves its resources
 * to the other hardware thread of the core. */
static inline void cpu_relax(void) {
#if NXT_HAS_X86
    _mm_pause();
#endif
}

/* Runs tasks of the job in `ticket` until none is left or the job is over. */
static void pool_work(pool *p, u64 ticket) {
    const u64 job = ticket >> 32;
    for (;;) {
        i64 next = (i64)(ticket & 0xffffffff);
        void (*fn)(void *, i64) = atomic_load(&p->fn);
        void *arg = atomic_load(&p->arg);
        if (ticket >> 32 != job || next >= atomic_load(&p->tasks)) return;
        if (!atomic_compare_exchange_weak(&p->ticket, &ticket, ticket + 1)) continue;
        fn(arg, next);
        atomic_fetch_add(&p->finished, 1);
        ticket = atomic_load(&p->ticket);
    }
}

/* A worker's life: wait for a job that it has not seen, first awake, then asleep. It takes
 * the mutex only to fall asleep; `sleeping` is raised before the ticket is read once more,
 * and pool_run writes the ticket before it reads `sleeping`, so one of them sees the other. */
static void *pool_worker(void *pointer) {
    pool *p = pointer;
    u64 seen = 0; /* the last job this worker looked at */
    for (;;) {
        u64 ticket = atomic_load(&p->ticket);
        for (int spin = 0; ticket >> 32 == seen && spin < SPIN; spin++) {
            cpu_relax();
            ticket = atomic_load(&p->ticket);
        }
        if (ticket >> 32 == seen) {
            pthread_mutex_lock(&p->mutex);
            atomic_fetch_add(&p->sleeping, 1);
            while ((ticket = atomic_load(&p->ticket)) >> 32 == seen && !atomic_load(&p->quit))
                pthread_cond_wait(&p->wake, &p->mutex);
            atomic_fetch_sub(&p->sleeping, 1);
            pthread_mutex_unlock(&p->mutex);
        }
        if (atomic_load(&p->quit)) return NULL;
        seen = ticket >> 32;
        pool_work(p, ticket);
    }
}

static void pool_wake(pool *p) {
    if (!atomic_load(&p->sleeping)) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
}

/* Runs one job and returns when its last task is done. The caller works too; at the end it
 * waits for tasks that others have begun, which takes at most the time of one. */
static void pool_run(pool *p, i64 tasks, void (*fn)(void *, i64), void *arg) {
    u64 job = ((atomic_load(&p->ticket) >> 32) + 1) & 0xffffffff;
    atomic_store(&p->ticket, (job - 1) << 32 | CLOSED); /* nobody may take a task while ... */
    atomic_store(&p->fn, fn);                           /* ... the job is written */
    atomic_store(&p->arg, arg);
    atomic_store(&p->tasks, tasks);
    atomic_store(&p->finished, 0);
    atomic_store(&p->ticket, job << 32);
    pool_wake(p);
    pool_work(p, job << 32);
    for (i64 spin = 0; atomic_load(&p->finished) < tasks; spin++)
        if (spin < SPIN) cpu_relax();
        else sched_yield();
}

/* Wakes and joins everybody. No job can be running. */
static void pool_destroy(nxt_context *cx) {
    pool *p = cx->pool;
    if (!p) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->quit, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    for (int i = 0; i < p->workers; i++) pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->mutex);
    mem_drop(cx, p);
    cx->pool = NULL;
}

/* Starts threads - 1 workers; a thread that cannot be had means fewer, not a failure. */
static nxt_status pool_create(nxt_context *cx, int threads) {
    pool *p;
    TRY(mem_zero(cx, &p, 1, sizeof *p));
    cx->pool = p;
    atomic_store(&p->ticket, CLOSED);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    while (p->workers < threads - 1 && p->workers < MAX_THREADS
           && pthread_create(&p->thread[p->workers], NULL, pool_worker, p) == 0)
        p->workers++;
    cx->threads = p->workers + 1;
    return NXT_OK;
}

/* Processors this process may use: its affinity mask, then the quota of its control
 * group (containers: "max 100000" or "200000 100000", quota and period). */
static int usable_processors(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
    char line[64] = "";
    int fd = open("/sys/fs/cgroup/cpu.max", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t got = read(fd, line, sizeof line - 1);
        close(fd);
        line[got > 0 ? got : 0] = 0;
        char *end;
        double quota = strtod(line, &end), period = end != line ? strtod(end, NULL) : 0;
        if (quota > 0 && period > 0 && quota / period < (double)n)
            n = (long)ceil(quota / period);
    }
#endif
    return (int)(n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n);
}
#else
static nxt_status pool_create(nxt_context *cx, int threads) {
    (void)cx, (void)threads;
    return NXT_OK;
}
static void pool_destroy(nxt_context *cx) { (void)cx; }
static int usable_processors(void) { return 1; }
static void pool_run(pool *p, i64 tasks, void (*fn)(void *, i64), void *arg) {
    (void)p;
    for (i64 i = 0; i < tasks; i++) fn(arg, i);
}
#endif

/* The one door to threads. A single task, or a context with one thread, is a plain loop. */
UNUSED static void parallel_for(nxt_context *cx, i64 tasks, void (*fn)(void *arg, i64 i),
                                void *arg) {
    if (cx->config.parallel_for && tasks > 1)
        cx->config.parallel_for(cx->config.user, tasks, fn, arg);
    else if (cx->pool && tasks > 1)
        pool_run(cx->pool, tasks, fn, arg);
    else
        for (i64 i = 0; i < tasks; i++) fn(arg, i);
}

/* ============================================================================
 * § 5  Numbers
 *
 * What a float costs. f32 has 24 bits of precision, bf16 keeps f32's exponent and 8 of
 * its bits, f16 has 11 bits and ends at 65504. Files hold any of the three; arithmetic
 * is f32 with sums long enough to matter split into LANES partial sums (I7): that is
 * both what a vector unit wants and a better sum, since its error grows with n / LANES.
 */
enum { LANES = 16 };

ALWAYS_INLINE float lane_sum(const float *s) { /* a fixed tree: the same bits everywhere */
    float t[LANES];
    for (int i = 0; i < LANES; i++) t[i] = s[i];
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    return t[0];
}

/* A float's bits and back, by copying: the only way that the language defines. */
static inline u32 float_bits(float x) {
    u32 u;
    memcpy(&u, &x, 4);
    return u;
}

static inline float bits_float(u32 u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float bf16_to_f32(u16 h) { return bits_float((u32)h << 16); }

static inline u16 f32_to_bf16(float x) { /* to nearest, ties to even; NaN stays NaN */
    u32 u = float_bits(x);
    if ((u & 0x7fffffff) > 0x7f800000) return (u16)(u >> 16 | 0x40);
    return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(u16 h) {
    u32 sign = (u32)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return bits_float(sign | 0x7f800000 | fraction << 13);
    if (exponent) return bits_float(sign | (exponent + 112) << 23 | fraction << 13);
    float x = (float)fraction * 0x1p-24f; /* subnormal or zero: exact */
    return sign ? -x : x;
}

static inline u16 f32_to_f16(float x) { /* to nearest, ties to even; too large: infinity */
    u32 u = float_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return (u16)(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return (u16)(sign | 0x7c00); /* 65520 and above */
    if (magnitude < 0x38800000) { /* below 2^-14: let the FPU round at 2^-24 */
        float y = bits_float(magnitude) + 0.5f;
        return (u16)(sign | (float_bits(y) - 0x3f000000));
    }
    u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (u16)(sign | (rounded - 0x38000000) >> 13);
}

typedef nxt_dtype dtype; /* the header's enum, by its short names */
#define F32 NXT_F32
#define F16 NXT_F16
#define BF16 NXT_BF16

static const char *const dtype_name[] = {"f32", "f16", "bf16"};
static inline i64 dtype_size(dtype t) { return t == F32 ? 4 : 2; }

/* The way from a file to arithmetic. */
/* Elements [at, at + n) of an array of any type, as f32. */
static void load_floats(float *out, const void *array, dtype type, i64 at, i64 n) {
    if (type == F32) memcpy(out, (const char *)array + 4 * at, (size_t)n * 4);
    for (i64 i = 0; type != F32 && i < n; i++) {
        u16 h; /* files promise no alignment */
        memcpy(&h, (const char *)array + 2 * (at + i), 2);
        out[i] = type == F16 ? f16_to_f32(h) : bf16_to_f32(h);
    }
}

/* Random numbers are a function of what they are for, never of the order in which they
 * are drawn: draw(seed, purpose, a, b). So threads, batch splits and resumed runs cannot
 * change them, and there is no generator state to save. The mixer is the finaliser of
 * SplitMix64 [Steele14], applied after each word is added. */
typedef enum purpose { FOR_INIT = 1, FOR_SHUFFLE, FOR_SAMPLING, FOR_SPLIT, FOR_DROPOUT } purpose;

/* A bijection of 64 bits in which every input bit changes every output bit half the time. */
static inline u64 mix64(u64 z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline u64 draw(u64 seed, purpose what, u64 a, u64 b) {
    return mix64(mix64(mix64(mix64(seed) + (u64)what) + a) + b);
}

/* 53 bits in [0, 1) */
static inline double uniform(u64 bits) { return (double)(bits >> 11) * 0x1p-53; }

/* Standard normal by Box and Muller: the pair's sine half is not needed. */
static inline double normal(u64 seed, purpose what, u64 a, u64 b) {
    double u = 1 - uniform(draw(seed, what, a, 2 * b));
    double v = uniform(draw(seed, what, a, 2 * b + 1));
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* Where index i of n goes in the shuffle named by key: a permutation in O(1) memory, so
 * that an epoch's order needs no array and resuming needs no replay. Feistel rounds
 * permute the smallest 4^k >= n; an image outside [0, n) is permuted again ("cycle
 * walking", fewer than four turns on average), which leaves a permutation of [0, n). Eight
 * rounds, because halves of a few bits mix slowly. */
static u64 permute(u64 i, u64 n, u64 key) {
    int half = 1;
    while (half < 31 && (u64)1 << 2 * half < n) half++;
    u64 mask = ((u64)1 << half) - 1;
    do {
        u64 left = i >> half, right = i & mask;
        for (u64 round = 0; round < 8; round++) {
            u64 next = left ^ (mix64(key + round + (right << 8)) & mask);
            left = right;
            right = next;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

/* A clock that never jumps. */
static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ============================================================================
 * § 6  Reference kernels
 *
 * The mathematics of training, one operation at a time, forward and backward, in plain
 * loops. This is the section to read; §7 and §8 compute the same faster, cuda/ on another
 * machine, and the tests hold all of them against this one.
 *
 * Flat rows. A micro-batch is N tokens in a row: the sequences lie behind each other and
 * nothing is padded. Every activation is a matrix with one row per token. Only attention
 * looks at other rows, and it is told which: row n sees the key rows first[n]..last[n].
 * Causality, several sequences in one batch, packing without cross-talk and GPT-Neo's
 * window are all that one pair of numbers.
 *
 * Reading the derivations. L is the sum of the losses; dx stands for dL/dx. If y = f(x)
 * then dx_i = sum_j dy_j df_j/dx_i: every backward kernel below is that line, worked out.
 * A parameter is used by every row, so its gradient sums over rows and is accumulated
 * (I8); so is dx of a norm, because a residual stream is read by more than one branch.
 */
typedef nxt_mat mat;
typedef nxt_heads heads;

static inline float *row_of(mat m, i64 r) { return (float *)m.p + r * m.stride; }
static inline float *head_of(heads m, i64 r, i64 h) {
    return (float *)m.p + r * m.stride + h * m.step;
}

/* Element i of row r, whatever the type: weights may be used from a file as f16 or bf16. */
static inline float element(mat m, i64 r, i64 i) {
    float x;
    load_floats(&x, m.p, m.type, r * m.stride + i, 1);
    return x;
}

/* -- Embedding:  y[n] = wte[ids[n]] + wpe[pos[n]] ------------------------------------
 * The derivative of picking a row is adding to that row. */
static void ref_embed_fwd(void *s, mat y, mat wte, mat wpe, const i32 *ids, const i32 *pos) {
    (void)s;
    for (i64 n = 0; n < y.rows; n++)
        for (i64 c = 0; c < y.cols; c++)
            row_of(y, n)[c] = element(wte, ids[n], c) + (wpe.p ? element(wpe, pos[n], c) : 0);
}

static void ref_embed_bwd(void *s, mat dwte, mat dwpe, mat dy, const i32 *ids,
                          const i32 *pos) {
    (void)s;
    for (i64 n = 0; n < dy.rows; n++)
        for (i64 c = 0; c < dy.cols; c++) {
            if (dwte.p) row_of(dwte, ids[n])[c] += row_of(dy, n)[c];
            if (dwpe.p) row_of(dwpe, pos[n])[c] += row_of(dy, n)[c];
        }
}

/* -- Normalisation -------------------------------------------------------------------
 * LayerNorm [Ba16]:  m = mean(x), r = 1/sqrt(mean((x-m)^2) + eps),  xh = (x-m) r,
 *                    y = w xh + b.         RMSNorm [Zhang19]: the same with m = 0, b = 0.
 * Mean and variance are summed in double: rows are long and the two passes cheap.       */
static void ref_norm_fwd(void *s, mat y, mat stats, mat x, mat w, mat b, float eps,
                         nxt_norm_kind kind) {
    (void)s;
    const i64 C = x.cols;
    for (i64 n = 0; n < x.rows; n++) {
        const float *xr = row_of(x, n);
        double mean = 0, square = 0;
        if (kind == NXT_LAYER_NORM) {
            for (i64 c = 0; c < C; c++) mean += xr[c];
            mean /= (double)C;
        }
        for (i64 c = 0; c < C; c++) square += (xr[c] - mean) * (xr[c] - mean);
        float m = (float)mean, r = (float)(1 / sqrt(square / (double)C + eps));
        for (i64 c = 0; c < C; c++)
            row_of(y, n)[c] = (xr[c] - m) * r * element(w, 0, c) + (b.p ? element(b, 0, c) : 0);
        row_of(stats, n)[0] = m;
        row_of(stats, n)[1] = r;
    }
}

/* With g = w dy (the gradient at xh):
 *     db += dy        dw += dy xh
 *     dx += r (g - mean(g) - xh mean(g xh))
 * The last line: xh depends on x directly (r g), through m (every xh falls by r/C when
 * one x rises by 1: the mean(g) term, absent in RMSNorm), and through r, where
 * dr/dx_i = -r^2 xh_i / C gives the xh mean(g xh) term.                                  */
static void ref_norm_bwd(void *s, mat dx, mat dw, mat db, mat dy, mat x, mat w, mat stats,
                         nxt_norm_kind kind) {
    (void)s;
    const i64 C = x.cols;
    for (i64 n = 0; n < x.rows; n++) {
        const float *xr = row_of(x, n), *dyr = row_of(dy, n);
        const float m = row_of(stats, n)[0], r = row_of(stats, n)[1];
        double mean_g = 0, mean_gx = 0;
        for (i64 c = 0; c < C; c++) {
            float xh = (xr[c] - m) * r, g = dyr[c] * element(w, 0, c);
            mean_g += g;
            mean_gx += (double)g * xh;
            if (dw.p) row_of(dw, 0)[c] += dyr[c] * xh;
            if (db.p) row_of(db, 0)[c] += dyr[c];
        }
        mean_g = kind == NXT_LAYER_NORM ? mean_g / (double)C : 0;
        mean_gx /= (double)C;
        for (i64 c = 0; c < C; c++) {
            float xh = (xr[c] - m) * r, g = dyr[c] * element(w, 0, c);
            row_of(dx, n)[c] += r * (float)(g - mean_g - xh * mean_gx);
        }
    }
}

/* -- Matrix product:  C = alpha op(A) op(B) + beta C + bias ----------------------------
 * Nine tenths of a training step. A linear layer stores W as (out, in) and has
 *     Y = X W' + b,     and its gradients are products again:
 *     dX = dY W         (Y_ij = sum_k X_ik W_jk, so dX_ik = sum_j dY_ij W_jk)
 *     dW += dY' X       (dW_jk = sum_i dY_ij X_ik)         db += sum of the rows of dY
 * which is why one operation with two transposition flags serves all three.             */
static void ref_matmul(void *s, mat c, mat a, mat b, int trans, float alpha, float beta,
                       mat bias) {
    (void)s;
    const bool ta = trans & NXT_TRANS_A, tb = trans & NXT_TRANS_B;
    const i64 K = ta ? a.rows : a.cols;
    for (i64 i = 0; i < c.rows; i++)
        for (i64 j = 0; j < c.cols; j++) {
            double sum = 0;
            for (i64 k = 0; k < K; k++)
                sum += (double)(ta ? element(a, k, i) : element(a, i, k))
                       * (tb ? element(b, j, k) : element(b, k, j));
            float *out = &row_of(c, i)[j]; /* beta 0 must not read: C may hold NaN */
            *out = (beta == 0 ? 0 : beta * *out) + alpha * (float)sum
                   + (bias.p ? element(bias, 0, j) : 0);
        }
}

static void ref_bias_bwd(void *s, mat db, mat dy) {
    (void)s;
    for (i64 n = 0; n < dy.rows; n++)
        for (i64 c = 0; c < dy.cols; c++) row_of(db, 0)[c] += row_of(dy, n)[c];
}

/* -- Rotary position embedding [Su21] ----------------------------------------------------
 * The values i and i + pairs of a head are the two coordinates of a point, turned by the
 * angle pos * freq[i]. A turn by a in q and b in k leaves their product a function of
 * a - b: attention sees relative positions. Values beyond 2 * pairs pass (GPT-NeoX turns
 * a quarter of each head). A rotation's transpose is its inverse, so backward is the same
 * call with sign -1.                                                                     */
static void ref_rope(void *s, heads x, const float *freq, int pairs, const i32 *pos,
                     float sign) {
    (void)s;
    for (i64 n = 0; n < x.rows; n++)
        for (int h = 0; h < x.heads; h++)
            for (int i = 0; i < pairs; i++) {
                float *v = head_of(x, n, h), angle = (float)pos[n] * freq[i];
                float cosine = cosf(angle), sine = sign * sinf(angle);
                float a = v[i], b = v[i + pairs];
                v[i] = a * cosine - b * sine;
                v[i + pairs] = b * cosine + a * sine;
            }
}

/* -- Attention [Vaswani17] ------------------------------------------------------------
 * For row n and head h, over the key rows j = first[n]..last[n]:
 *     s_j = scale q.k_j      p_j = exp(s_j - lse)      lse = log sum_j exp(s_j)
 *     y   = sum_j p_j v_j
 * Only lse is kept for backward: p is cheaper to compute again than to store, which is
 * what lets attention run without a T x T matrix [Dao22]. With fewer key heads than
 * query heads ("grouped" [Ainslie23]) several query heads share one.                     */
static float dot(const float *a, const float *b, i64 n) {
    double sum = 0;
    for (i64 i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return (float)sum;
}

static void ref_attention_fwd(void *s, heads y, mat lse, heads q, heads k, heads v,
                              const i32 *first, const i32 *last, float scale) {
    (void)s;
    const int D = q.size, group = q.heads / k.heads;
    for (i64 n = 0; n < q.rows; n++)
        for (int h = 0; h < q.heads; h++) {
            float *out = head_of(y, n, h), largest = -INFINITY;
            for (i64 j = first[n]; j <= last[n]; j++)
                largest = fmaxf(largest, scale * dot(head_of(q, n, h),
                                                     head_of(k, j, h / group), D));
            double total = 0;
            for (int d = 0; d < D; d++) out[d] = 0;
            for (i64 j = first[n]; j <= last[n]; j++) { /* minus the largest: no overflow */
                float e = expf(scale * dot(head_of(q, n, h), head_of(k, j, h / group), D)
                               - largest);
                total += e;
                for (int d = 0; d < D; d++) out[d] += e * head_of(v, j, h / group)[d];
            }
            for (int d = 0; d < D; d++) out[d] /= (float)total;
            row_of(lse, n)[h] = largest + (float)log(total);
        }
}

/* From y = sum_j p_j v_j:        dv_j += p_j dy          dp_j = dy.v_j
 * Softmax:  dp_j/ds_i = p_j ([i=j] - p_i), so
 *                                ds_j = p_j (dp_j - sum_i p_i dp_i) = p_j (dp_j - dy.y)
 * (the sum over i is dy . sum_i p_i v_i = dy.y: one number per row and head, in `work`.)
 * From s_j = scale q.k_j:        dq += scale ds_j k_j    dk_j += scale ds_j q            */
static void ref_attention_bwd(void *s, heads dq, heads dk, heads dv, heads dy, heads y,
                              mat lse, mat work, heads q, heads k, heads v, const i32 *first,
                              const i32 *last, float scale) {
    (void)s;
    const int D = q.size, group = q.heads / k.heads;
    for (i64 j = 0; j < k.rows; j++)
        for (int g = 0; g < k.heads; g++)
            for (int d = 0; d < D; d++) head_of(dk, j, g)[d] = head_of(dv, j, g)[d] = 0;
    for (i64 n = 0; n < q.rows; n++)
        for (int h = 0; h < q.heads; h++) {
            const float *dyr = head_of(dy, n, h), *qr = head_of(q, n, h);
            const float delta = row_of(work, n)[h] = dot(dyr, head_of(y, n, h), D);
            float *dqr = head_of(dq, n, h);
            for (int d = 0; d < D; d++) dqr[d] = 0;
            for (i64 j = first[n]; j <= last[n]; j++) {
                const float *kr = head_of(k, j, h / group), *vr = head_of(v, j, h / group);
                float p = expf(scale * dot(qr, kr, D) - row_of(lse, n)[h]);
                float ds = scale * p * (dot(dyr, vr, D) - delta);
                for (int d = 0; d < D; d++) {
                    dqr[d] += ds * kr[d];
                    head_of(dk, j, h / group)[d] += ds * qr[d];
                    head_of(dv, j, h / group)[d] += p * dyr[d];
                }
            }
        }
}

/* -- Activations -------------------------------------------------------------------------
 * gelu       x P(X <= x), X normal: x (1 + erf(x/sqrt 2)) / 2 [Hendrycks16]. Its slope is
 *            P(X <= x) + x exp(-x^2/2) / sqrt(2 pi).
 * gelu_new   the tanh approximation: x (1 + tanh(u)) / 2, u = sqrt(2/pi) (x + 0.044715 x^3).
 * gelu_fast  the same, its constants written with fewer digits: equal as floats.
 * silu       x / (1 + exp(-x)).                                                           */
static float act(float x, nxt_act_kind kind) {
    const float k = 0.7978845608028654f;
    switch (kind) {
    case NXT_GELU: return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    case NXT_GELU_TANH:
    case NXT_GELU_FAST: return 0.5f * x * (1 + tanhf(k * (x + 0.044715f * x * x * x)));
    case NXT_RELU: return x > 0 ? x : 0;
    default: return x / (1 + expf(-x));
    }
}

static float act_slope(float x, nxt_act_kind kind) {
    const float k = 0.7978845608028654f;
    float t, u;
    switch (kind) {
    case NXT_GELU:
        return 0.5f * (1 + erff(x * 0.70710678118654752f))
               + x * 0.3989422804014327f * expf(-0.5f * x * x);
    case NXT_GELU_TANH:
    case NXT_GELU_FAST:
        t = tanhf(k * (x + 0.044715f * x * x * x));
        u = k * (1 + 3 * 0.044715f * x * x); /* du/dx */
        return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * u;
    case NXT_RELU: return x > 0;
    default: t = 1 / (1 + expf(-x)); return t * (1 + x * (1 - t));
    }
}

static void ref_act_fwd(void *s, mat y, mat x, nxt_act_kind kind) {
    (void)s;
    for (i64 n = 0; n < x.rows; n++)
        for (i64 c = 0; c < x.cols; c++) row_of(y, n)[c] = act(row_of(x, n)[c], kind);
}

static void ref_act_bwd(void *s, mat dx, mat dy, mat x, nxt_act_kind kind) {
    (void)s;
    for (i64 n = 0; n < x.rows; n++)
        for (i64 c = 0; c < x.cols; c++)
            row_of(dx, n)[c] = row_of(dy, n)[c] * act_slope(row_of(x, n)[c], kind);
}

/* -- Dropout [Srivastava14] -----------------------------------------------------------------
 * y = x with every element kept with probability 1 - rate, and divided by it, so that the mean
 * stays what it is without dropout; or y + that, with beta 1. Nothing is remembered: whether
 * an element is kept is a hash of its row's key, the place in the model (`site`) and its
 * column, so backward, which is the same call on the gradient, asks again. The key is that of
 * the token (seed, step, example, position), never of the row it happens to have.            */
static inline u32 dropout_bits(u64 key, u32 column) {
    u32 x = (u32)key + column * 0x9e3779b9u;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ (u32)(key >> 32) ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}
static inline u32 dropout_threshold(float rate) { return (u32)((double)rate * 4294967296.0); }

static void ref_dropout(void *s, mat y, mat x, const u64 *key, u64 site, float rate,
                        float beta) {
    (void)s;
    const u32 threshold = dropout_threshold(rate);
    for (i64 n = 0; n < x.rows; n++)
        for (i64 c = 0; c < x.cols; c++) {
            const bool keep = dropout_bits(mix64(key[n] + site), (u32)c) >= threshold;
            const float kept = keep ? row_of(x, n)[c] / (1 - rate) : 0;
            row_of(y, n)[c] = kept + (beta == 0 ? 0 : beta * row_of(y, n)[c]);
        }
}

/* -- Rows: sums, copies, types --------------------------------------------------------- */
static void ref_mul(void *s, mat y, mat a, mat b) { /* element by element: gates */
    (void)s;
    for (i64 n = 0; n < y.rows; n++)
        for (i64 i = 0; i < y.cols; i++) row_of(y, n)[i] = row_of(a, n)[i] * row_of(b, n)[i];
}

static void ref_gather(void *s, mat y, mat x, const i32 *rows) {
    (void)s;
    for (i64 n = 0; n < y.rows; n++)
        memcpy(row_of(y, n), row_of(x, rows[n]), (size_t)y.cols * sizeof(float));
}

static void ref_scatter(void *s, mat y, mat x, const i32 *rows) {
    (void)s;
    for (i64 n = 0; n < x.rows; n++)
        memcpy(row_of(y, rows[n]), row_of(x, n), (size_t)x.cols * sizeof(float));
}

static void ref_store(void *s, heads y, heads x, const i32 *slot) {
    (void)s;
    for (i64 n = 0; n < x.rows; n++)
        for (int h = 0; h < x.heads; h++)
            memcpy(head_of(y, slot[n], h), head_of(x, n, h), (size_t)x.size * sizeof(float));
}

static void ref_fill(void *s, mat x, float value) {
    (void)s;
    for (i64 n = 0; n < x.rows; n++)
        for (i64 i = 0; i < x.cols; i++) row_of(x, n)[i] = value;
}

static void ref_convert(void *s, mat y, mat x) {
    (void)s;
    for (i64 n = 0; n < y.rows; n++)
        for (i64 i = 0; i < y.cols; i++) {
            float value = element(x, n, i);
            u16 *half = (u16 *)y.p + n * y.stride + i;
            if (y.type == F32) row_of(y, n)[i] = value;
            else *half = y.type == F16 ? f32_to_f16(value) : f32_to_bf16(value);
        }
}

/* -- Cross-entropy -----------------------------------------------------------------------
 * loss = -log p[label] = lse - z[label], with p = softmax(z), lse = log sum exp(z).
 * dz_i = d lse/dz_i - [i = label] = p_i - [i = label]. The gradient takes the place of the
 * logits, the largest array of a step. A row whose label is negative is not trained.      */
static void ref_xent(void *s, float *loss, mat logits, const i32 *label, int backward) {
    (void)s;
    const i64 V = logits.cols;
    for (i64 n = 0; n < logits.rows; n++) {
        float *z = row_of(logits, n), largest = -INFINITY;
        double total = 0;
        for (i64 i = 0; i < V; i++) largest = fmaxf(largest, z[i]);
        for (i64 i = 0; i < V; i++) total += exp((double)z[i] - largest);
        const float lse = largest + (float)log(total);
        loss[n] = label[n] < 0 ? 0 : lse - z[label[n]];
        for (i64 i = 0; backward && i < V; i++)
            z[i] = label[n] < 0 ? 0 : expf(z[i] - lse) - (i == label[n]);
    }
}

/* -- The optimizer -----------------------------------------------------------------------
 * AdamW [Loshchilov19], as PyTorch writes it. With g the scaled gradient at step t:
 *     w -= lr decay w                         (decoupled: the moments never see it)
 *     m  = b1 m + (1 - b1) g                  v  = b2 v + (1 - b2) g^2
 *     w -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
 * The corrections undo the bias of averages that started at zero. `scale` is where the
 * mean over trained tokens and the clipping of the norm happen, in the pass that reads
 * the gradient anyway.                                                                    */
static void ref_adamw(void *s, const nxt_adamw *u) {
    (void)s;
    for (i64 i = 0; i < u->n; i++) {
        float g = u->scale * u->g[i], w = u->w[i] * (1 - u->lr * u->decay);
        u->m[i] = u->beta1 * u->m[i] + (1 - u->beta1) * g;
        u->v[i] = u->beta2 * u->v[i] + (1 - u->beta2) * g * g;
        float root = sqrtf(u->v[i]) / sqrtf(u->correction2) + u->eps;
        u->w[i] = w - u->lr / u->correction1 * u->m[i] / root;
    }
}

static void ref_sumsq(void *s, double *out, mat x) {
    (void)s;
    for (i64 n = 0; n < x.rows; n++)
        for (i64 i = 0; i < x.cols; i++) *out += (double)row_of(x, n)[i] * row_of(x, n)[i];
}

/* -- Memory: on the CPU the device's memory is the host's. ----------------------------- */
static void *host_alloc(void *s, size_t bytes) {
    void *p;
    return mem_get(s, &p, (i64)bytes, 1) == NXT_OK ? p : NULL;
}
static void host_release(void *s, void *p) { mem_drop(s, p); }
static void host_copy(void *s, void *to, const void *from, size_t bytes) {
    (void)s;
    memcpy(to, from, bytes);
}
static nxt_status host_sync(void *s) {
    (void)s;
    return NXT_OK;
}

static const nxt_backend reference_ops = {
    .name = "reference", .alloc = host_alloc, .release = host_release,
    .upload = host_copy, .download = host_copy, .sync = host_sync,
    .embed_fwd = ref_embed_fwd, .embed_bwd = ref_embed_bwd,
    .norm_fwd = ref_norm_fwd, .norm_bwd = ref_norm_bwd,
    .matmul = ref_matmul, .bias_bwd = ref_bias_bwd, .rope = ref_rope,
    .attention_fwd = ref_attention_fwd, .attention_bwd = ref_attention_bwd,
    .act_fwd = ref_act_fwd, .act_bwd = ref_act_bwd, .mul = ref_mul, .dropout = ref_dropout,
    .gather = ref_gather, .scatter = ref_scatter, .store = ref_store, .fill = ref_fill,
    .convert = ref_convert, .xent = ref_xent, .sumsq = ref_sumsq, .adamw = ref_adamw,
};

/* ============================================================================
 * § 7  Fast matmul (skip)
 *
 * The same c = alpha op(a) op(b) + beta c + bias as in §6, near the speed of the machine.
 * Three ideas, from [Goto08] and [VanZee15]:
 *
 *   1. A tile of C, up to MR rows by NR columns, stays in registers while k runs. Every
 *      step loads MR + NR numbers and does MR * NR multiply-adds with them.
 *   2. Both operands are copied ("packed") beforehand into panels in exactly the order in
 *      which the tile reads them, so that the inner loop walks forward through memory.
 *      Transposition and the conversion of f16 and bf16 happen in that copy:
 *
 *          A, M x K  ->  panels of MR rows:      k=0: a[0..MR) | k=1: a[0..MR) | ...
 *          B, K x N  ->  panels of NR columns:   k=0: b[0..NR) | k=1: b[0..NR) | ...
 *
 *      Rows of A a power of two apart would fall into a few sets of the first cache and push
 *      each other out: read in place they cost a factor of up to three.
 *   3. Loops around the tile keep what it reads close: KC steps of one panel of B lie in the
 *      first cache, the panels of A that meet it come from the second.
 *
 * A product with few rows (decoding) reads every weight once and has nothing to gain from a
 * copy: there the rows of B are streamed where they lie.
 *
 * Every element of C is summed in one order of k, which the shapes decide and no thread
 * count or task can change (I6).
 *
 * One body serves all instruction sets: GNU vector types and `target` attributes. A
 * function with a vector type in it is a macro with the type as a parameter; everything
 * else is plain C, inlined into one entry per CPU level and there compiled for that level.
 */
#if NXT_HAS_SIMD

/* An operand seen from the tile: lanes run along the tile's side (rows of op(A), columns
 * of op(B)), k along the sum. One of the two steps, in elements, is 1. */
typedef struct operand {
    const char *p;
    dtype type;
    i64 lane_step, k_step;
} operand;

/* Vectors as wide as the registers of each level. Files promise no alignment. */
#define VECTOR(element, bytes, name)                                                        \
    typedef element name __attribute__((vector_size(bytes), aligned(1), may_alias))
VECTOR(float, 16, v4);
VECTOR(float, 32, v8);
VECTOR(float, 64, v16);
VECTOR(u32, 16, w4);
VECTOR(u32, 32, w8);
VECTOR(u32, 64, w16);
VECTOR(u16, 8, h4);
VECTOR(u16, 16, h8);
VECTOR(u16, 32, h16);
VECTOR(i32, 16, i4);

/* NAME(x, p, type): *x = elements at p, as floats. bf16 is the upper half of a float. f16
 * moves its exponent to f32's place, which leaves the value 2^112 too small; the product
 * is exact, for subnormals too. Infinity and NaN are put back. */
#define DEFINE_LOAD(NAME, V, U, H)                                                          \
    ALWAYS_INLINE void NAME(V *x, const char *p, dtype type) {                              \
        if (type == F32) {                                                                  \
            *x = *(const V *)p;                                                             \
            return;                                                                         \
        }                                                                                   \
        const U half = __builtin_convertvector(*(const H *)p, U);                           \
        if (type == BF16) *x = (V)(half << 16);                                             \
        else {                                                                              \
            const U wild = (U)((half & 0x7c00) == 0x7c00) & 0x7f800000;                     \
            const V value = (V)((half & 0x7fff) << 13) * 0x1p112f;                          \
            *x = (V)((U)value | wild | (half & 0x8000) << 16);                              \
        }                                                                                   \
    }
DEFINE_LOAD(load_v4, v4, w4, h4)
DEFINE_LOAD(load_v8, v8, w8, h8)
DEFINE_LOAD(load_v16, v16, w16, h16)

/* -- Packing ------------------------------------------------------------------------- */
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (i4){i, j, k, l})
#endif

/* Four floats in the upper halves of the words, rounded to bf16: nearest, ties to even. */
ALWAYS_INLINE w4 round_to_bf16(v4 x) {
    const w4 u = (w4)x, nan = (w4)((u & 0x7fffffff) > 0x7f800000);
    return ((u + 0x7fff + (u >> 16 & 1)) & ~nan) | ((u | 0x400000) & nan);
}

/* Word `word` along k: a float, or two bf16 of neighbouring k, the first in the lower half.
 * Beyond nk there are zeros. */
ALWAYS_INLINE float load_word(const char *p, dtype type, i64 word, i64 nk, bool pairs) {
    float x[2] = {0};
    if (!pairs) load_floats(x, p, type, word, 1);
    else load_floats(x, p, type, 2 * word, min64(2, nk - 2 * word));
    if (!pairs) return x[0];
    return bits_float(f32_to_bf16(x[0]) | (u32)f32_to_bf16(x[1]) << 16);
}

/* Four words side by side along k */
ALWAYS_INLINE void load_words(v4 *x, const char *p, dtype type, bool pairs) {
    v4 a, b;
    if (pairs && type == BF16) *x = *(const v4 *)p;
    else if (pairs) {
        load_v4(&a, p, type);
        load_v4(&b, p + 4 * dtype_size(type), type);
        a = (v4)round_to_bf16(a), b = (v4)round_to_bf16(b);
        const w4 even = (w4)SHUFFLE(a, b, 0, 2, 4, 6), odd = (w4)SHUFFLE(a, b, 1, 3, 5, 7);
        *x = (v4)(even >> 16 | (odd & 0xffff0000));
    } else load_v4(x, p, type);
}

/* out[word][lane] = x[lane][word], four by four: rows in, columns out. */
ALWAYS_INLINE void transpose4(float *out, i64 out_step, const char *p, i64 lane_bytes,
                              dtype type, bool pairs) {
    v4 x[4];
    for (int i = 0; i < 4; i++) load_words(&x[i], p + i * lane_bytes, type, pairs);
    v4 low01 = SHUFFLE(x[0], x[1], 0, 4, 1, 5), high01 = SHUFFLE(x[0], x[1], 2, 6, 3, 7);
    v4 low23 = SHUFFLE(x[2], x[3], 0, 4, 1, 5), high23 = SHUFFLE(x[2], x[3], 2, 6, 3, 7);
    *(v4 *)(out + 0 * out_step) = SHUFFLE(low01, low23, 0, 1, 4, 5);
    *(v4 *)(out + 1 * out_step) = SHUFFLE(low01, low23, 2, 3, 6, 7);
    *(v4 *)(out + 2 * out_step) = SHUFFLE(high01, high23, 0, 1, 4, 5);
    *(v4 *)(out + 3 * out_step) = SHUFFLE(high01, high23, 2, 3, 6, 7);
}

/* A panel whose lanes are rows in memory: a transposition. Sixteen words of one group of
 * four lanes at a time: a cache line or two of each of four rows, however the rows lie. So
 * many rows side by side are more than the processor foresees: it is told what comes next. */
ALWAYS_INLINE void pack_rows(float *out, const operand *x, i64 lane, i64 lanes, i64 k, i64 nk,
                             i64 nr, dtype type, bool pairs) {
    const i64 size = dtype_size(type), bytes = x->lane_step * size, unit = pairs ? 2 : 1;
    const i64 words = ceil_div(nk, unit);
    const char *const base = x->p + lane * bytes + k * size;
    for (i64 from = 0; from < words; from += 16)
        for (i64 l = 0; l < nr; l += 4) {
            const i64 end = min64(words, from + 16), whole = min64(end, nk / unit);
            i64 j = from;
            for (i64 i = l; i < min64(lanes, l + 4) && from + 32 < words; i++)
                __builtin_prefetch(base + i * bytes + (from + 32) * unit * size);
            for (; lanes - l >= 4 && j + 4 <= whole; j += 4)
                transpose4(out + j * nr + l, nr, base + l * bytes + j * unit * size, bytes,
                           type, pairs);
            for (; j < end; j++)
                for (i64 i = l; i < l + 4; i++)
                    out[j * nr + i] = i < lanes ? load_word(base + i * bytes, type, j, nk, pairs)
                                                : 0;
        }
}

/* The words of nr lanes that lie side by side at row0 and, for pairs, row1 (NULL: zeros). */
ALWAYS_INLINE void copy_lanes(float *to, const char *row0, const char *row1, i64 lanes, i64 nr,
                              dtype type, bool pairs) {
    const i64 size = dtype_size(type), whole = lanes / 4 * 4;
    if (type == F32 && !pairs && lanes >= nr) {
        memcpy(to, row0, (size_t)nr * sizeof *to); /* a few moves: nr is a constant */
        return;
    }
    for (i64 i = 0; i < (lanes >= nr ? nr : whole); i += 4) {
        v4 a, b = {0};
        load_v4(&a, row0 + i * size, type);
        if (pairs && row1) load_v4(&b, row1 + i * size, type);
        if (pairs) a = (v4)(round_to_bf16(a) >> 16 | (round_to_bf16(b) & 0xffff0000));
        *(v4 *)(to + i) = a;
    }
    for (i64 i = whole; i < nr && lanes < nr; i++) {
        float x[2] = {0};
        if (i < lanes) load_floats(&x[0], row0, type, i, 1);
        if (i < lanes && row1) load_floats(&x[1], row1, type, i, 1);
        to[i] = pairs ? bits_float(f32_to_bf16(x[0]) | (u32)f32_to_bf16(x[1]) << 16) : x[0];
    }
}

/* Panels whose lanes lie side by side in memory: copies of nr floats. All panels at once,
 * so that each row of x is read in one go, and four words of k at a time, so that whole cache
 * lines are written: with one, panels a power of two apart push each other out. */
ALWAYS_INLINE void pack_columns(float *out, const operand *x, i64 lane, i64 lanes, i64 k,
                                i64 nk, i64 nr, dtype type, bool pairs) {
    const i64 size = dtype_size(type), bytes = x->k_step * size, unit = pairs ? 2 : 1;
    const i64 words = ceil_div(nk, unit);
    const char *const base = x->p + lane * size + k * bytes;
    for (i64 from = 0; from < words; from += 4) {
        for (i64 j = (from + 4) * unit; j < min64(nk, (from + 8) * unit); j++)
            for (i64 at = 0; at < lanes * size; at += 64)
                __builtin_prefetch(base + j * bytes + at);
        for (i64 l = 0; l < lanes; l += nr)
            for (i64 j = from; j < min64(words, from + 4); j++) {
                const char *const row = base + l * size + j * unit * bytes;
                copy_lanes(out + l * words + j * nr, row,
                           pairs && j * unit + 1 < nk ? row + bytes : NULL, lanes - l, nr, type,
                           pairs);
            }
    }
}

ALWAYS_INLINE void pack_typed(float *out, const operand *x, i64 lane, i64 lanes, i64 k, i64 nk,
                              i64 nr, dtype type, bool pairs) {
    const i64 words = ceil_div(nk, pairs ? 2 : 1);
    if (x->lane_step == 1) {
        pack_columns(out, x, lane, lanes, k, nk, nr, type, pairs);
        return;
    }
    for (i64 l = 0; l < lanes; l += nr, out += nr * words)
        pack_rows(out, x, lane + l, min64(nr, lanes - l), k, nk, nr, type, pairs);
}

/* Packs lanes [lane, lane + lanes) of x, k in [k, k + nk), into panels of nr lanes, one
 * behind the other. Lanes missing in the last panel are zero. The type is a constant in
 * each branch, so that the copies become vector moves. */
ALWAYS_INLINE void pack_body(float *out, const operand *x, i64 lane, i64 lanes, i64 k, i64 nk,
                             i64 nr, bool pairs) {
    if (x->type == F32) pack_typed(out, x, lane, lanes, k, nk, nr, F32, pairs);
    else if (x->type == F16) pack_typed(out, x, lane, lanes, k, nk, nr, F16, pairs);
    else pack_typed(out, x, lane, lanes, k, nk, nr, BF16, pairs);
}

/* -- The tile ------------------------------------------------------------------------
 * out (ROWS x NV vectors, rows `step` apart) = or += sum over k of a[k] b[k]', k ascending.
 * A panel of a has MR numbers per k, one of b NV vectors. The loops over the tile must
 * unroll completely, the first one included: with memset or a loop left in, gcc 12 keeps acc
 * in memory, which costs a factor of six. */
#define UNROLL _Pragma("GCC unroll 16")
#define MULTIPLY_ADD(acc, a, b) (acc) += (a) * (b)
#define DEFINE_TILE(NAME, AT, V, MR, ROWS, NV, STEP)                                        \
    AT FUSED static void NAME(float *out, i64 step, bool add, const float *a,               \
                              const float *b, i64 K) {                                      \
        V acc[ROWS][NV];                                                                    \
        UNROLL for (int i = 0; i < ROWS; i++)                                               \
            UNROLL for (int j = 0; j < NV; j++) acc[i][j] = (V){0};                         \
        for (i64 k = 0; k < K; k++, a += MR, b += NV * sizeof(V) / sizeof *b) {             \
            UNROLL for (int i = 0; i < ROWS; i++)                                           \
                UNROLL for (int j = 0; j < NV; j++)                                         \
                    STEP(acc[i][j], a[i], ((const V *)b)[j]);                               \
        }                                                                                   \
        UNROLL for (int i = 0; i < ROWS; i++)                                               \
            UNROLL for (int j = 0; j < NV; j++) {                                           \
                V *to = (V *)(out + i * step) + j;                                          \
                if (add) *to += acc[i][j];                                                  \
                else *to = acc[i][j];                                                       \
            }                                                                               \
    }

/* What the tile is measured against: its step on registers alone. Twelve chains cover the
 * latency of a multiply-add (four to six cycles, two a cycle). The empty asm keeps each chain
 * in its register, step by step. */
#if NXT_HAS_X86
#define KEEP(x) __asm__ volatile("" : "+v"(x))
#elif defined(__aarch64__)
#define KEEP(x) __asm__ volatile("" : "+w"(x))
#else
#define KEEP(x) __asm__ volatile("" : "+m"(x))
#endif
enum { PEAK_STEPS = 20000, PEAK_CHAINS = 12 };
#define DEFINE_PEAK(NAME, AT, V, STEP)                                                      \
    AT FUSED static void NAME(void *arg, i64 task) {                                        \
        V chain[PEAK_CHAINS], b = (V){0} + 1e-3f;                                           \
        UNROLL for (int i = 0; i < PEAK_CHAINS; i++) chain[i] = b;                          \
        for (int k = 0; k < PEAK_STEPS; k++)                                                \
            UNROLL for (int i = 0; i < PEAK_CHAINS; i++) {                                  \
                STEP(chain[i], 0.999f, b);                                                  \
                KEEP(chain[i]);                                                             \
            }                                                                               \
        UNROLL for (int i = 1; i < PEAK_CHAINS; i++) chain[0] += chain[i];                  \
        ((float *)arg)[task & 255] = chain[0][0];                                           \
    }

/* rows x cols of C = alpha tile + beta C + bias. beta 0 does not read C. */
ALWAYS_INLINE void merge_typed(float *restrict c, i64 c_step, const float *restrict tile,
                               i64 nr, i64 rows, i64 cols, float alpha, float beta,
                               const float *restrict bias) {
    for (i64 i = 0; i < rows; i++, c += c_step, tile += nr)
        if (beta == 0)
            for (i64 j = 0; j < cols; j++) c[j] = alpha * tile[j] + bias[j];
        else
            for (i64 j = 0; j < cols; j++) c[j] = alpha * tile[j] + bias[j] + beta * c[j];
}

ALWAYS_INLINE void merge_body(float *c, i64 c_step, const float *tile, i64 nr, i64 rows,
                              i64 cols, float alpha, float beta, const float *bias) {
    if (cols == nr) /* a whole tile: the length is a constant */
        merge_typed(c, c_step, tile, nr, rows, nr, alpha, beta, bias);
    else merge_typed(c, c_step, tile, nr, rows, cols, alpha, beta, bias);
}

/* -- Few rows ----------------------------------------------------------------------------
 * out[i][n], n < 4: the products of ROWS rows of a with four rows of b, all in memory with
 * k side by side. Lanes run along k and are added up at the end. Memory is the limit, and the
 * processor foresees nothing beyond a page: the next four rows are asked for in advance. */
#define DEFINE_DOTS(NAME, AT, V, LOAD, ROWS)                                                \
    AT ALWAYS_INLINE void NAME##_typed(float *out, i64 out_step, const float *a,            \
                                       i64 a_step, const char *b, i64 b_bytes, i64 K,       \
                                       dtype type) {                                        \
        enum { W = sizeof(V) / sizeof(float) };                                             \
        const i64 used = 4 * W * dtype_size(type);                                          \
        const char *next = b + 4 * b_bytes;                                                 \
        V acc[ROWS][4];                                                                     \
        i64 k = 0;                                                                          \
        UNROLL for (int i = 0; i < ROWS; i++)                                               \
            UNROLL for (int n = 0; n < 4; n++) acc[i][n] = (V){0};                          \
        for (; k + W <= K; k += W, next += used) {                                          \
            V right[4];                                                                     \
            for (i64 i = 0; i < used; i += 64) __builtin_prefetch(next + i);                \
            UNROLL for (int n = 0; n < 4; n++)                                              \
                LOAD(&right[n], b + n * b_bytes + k * dtype_size(type), type);              \
            UNROLL for (int i = 0; i < ROWS; i++)                                           \
                UNROLL for (int n = 0; n < 4; n++)                                          \
                    acc[i][n] += *(const V *)(a + i * a_step + k) * right[n];               \
        }                                                                                   \
        float lane[ROWS * 4][W];                                                            \
        UNROLL for (int i = 0; i < ROWS; i++)                                               \
            UNROLL for (int n = 0; n < 4; n++) *(V *)lane[i * 4 + n] = acc[i][n];           \
        for (int i = 0; i < ROWS * 4; i++) {                                                \
            UNROLL for (int half = W / 2; half; half /= 2)                                  \
                for (int l = 0; l < half; l++) lane[i][l] += lane[i][l + half];             \
            out[i / 4 * out_step + i % 4] = lane[i][0];                                     \
        }                                                                                   \
        for (; k < K; k++)                                                                  \
            for (int i = 0; i < ROWS * 4; i++) {                                            \
                float x;                                                                    \
                load_floats(&x, b + i % 4 * b_bytes, type, k, 1);                           \
                out[i / 4 * out_step + i % 4] += a[i / 4 * a_step + k] * x;                 \
            }                                                                               \
    }                                                                                       \
    AT FUSED static void NAME(float *out, i64 out_step, const float *a, i64 a_step,         \
                              const char *b, i64 b_bytes, i64 K, dtype type) {              \
        if (type == F32) NAME##_typed(out, out_step, a, a_step, b, b_bytes, K, F32);        \
        else if (type == F16) NAME##_typed(out, out_step, a, a_step, b, b_bytes, K, F16);   \
        else NAME##_typed(out, out_step, a, a_step, b, b_bytes, K, BF16);                   \
    }

/* The same where a row of b is a number k of all columns (GPT-2's weights): out[c] += a[j] times
 * element c of row j, over four rows. Lanes run along the columns, and nothing needs adding up;
 * the rows after the next ones are asked for in advance. */
#define DEFINE_SUMS(NAME, AT, V, LOAD)                                                      \
    AT ALWAYS_INLINE void NAME##_typed(float *out, const float *a, const char *b,           \
                                       i64 b_bytes, i64 n, dtype type) {                    \
        enum { W = sizeof(V) / sizeof(float) };                                             \
        i64 c = 0;                                                                          \
        for (; c + W <= n; c += W) {                                                        \
            V sum = *(V *)(out + c);                                                        \
            UNROLL for (int j = 0; j < 4; j++) {                                            \
                const char *row = b + j * b_bytes + c * dtype_size(type);                   \
                V x;                                                                        \
                __builtin_prefetch(row + 8 * b_bytes);                                      \
                LOAD(&x, row, type);                                                        \
                sum += a[j] * x;                                                            \
            }                                                                               \
            *(V *)(out + c) = sum;                                                          \
        }                                                                                   \
        for (; c < n; c++)                                                                  \
            for (int j = 0; j < 4; j++) {                                                   \
                float x;                                                                    \
                load_floats(&x, b + j * b_bytes, type, c, 1);                               \
                out[c] += a[j] * x;                                                         \
            }                                                                               \
    }                                                                                       \
    AT FUSED static void NAME(float *out, const float *a, const char *b, i64 b_bytes, i64 n, \
                              dtype type) {                                                 \
        if (type == F32) NAME##_typed(out, a, b, b_bytes, n, F32);                          \
        else if (type == F16) NAME##_typed(out, a, b, b_bytes, n, F16);                     \
        else NAME##_typed(out, a, b, b_bytes, n, BF16);                                     \
    }

/* -- What one CPU level brings -----------------------------------------------------------
 * Leaves compiled for it, each a row, a panel or a tile of work. The loops around them and
 * the threads are the same code for all levels. */
typedef void tile_fn(float *out, i64 step, bool add, const float *a, const float *b, i64 K);
typedef void pack_fn(float *out, const operand *x, i64 lane, i64 lanes, i64 k, i64 nk);
typedef void sums_fn(float *out, const float *a, const char *b, i64 b_bytes, i64 n, dtype type);
typedef void dots_fn(float *out, i64 out_step, const float *a, i64 a_step, const char *b,
                     i64 b_bytes, i64 K, dtype type);

/* How a product is computed. A word is a float, or a pair of bf16 of neighbouring k. */
typedef struct tiling {
    tile_fn *tile[3];         /* [i] computes 4 (i + 1) rows, up to mr */
    pack_fn *pack_a, *pack_b; /* panels of mr, of nr lanes */
    void (*peak)(void *arg, i64 task);
    int k_per_word, words;    /* words: of a vector */
} tiling;

/* The kernels of §8 come in three shapes: a piece of a row, a task, a chunk of scores. */
struct row_job;
typedef struct piece { i64 r, c, n; } piece; /* columns [c, c + n) of row r */
typedef void row_fn(const struct row_job *j, piece p);
typedef void task_fn(void *arg, i64 i);
struct lane_state;
typedef void score_fn(float *s, float *dp, i64 rows, i64 at, const struct lane_state *q);

typedef struct kernels {
    int mr, nr, dots_rows;
    tiling f32;
    dots_fn *dots, *dots1; /* dots_rows rows, one row */
    sums_fn *sums;
    void (*merge)(float *c, i64 c_step, const float *tile, i64 rows, i64 cols, float alpha,
                  float beta, const float *bias);
    row_fn *act_fwd, *act_bwd, *mul, *dropout, *norm_fwd, *xent, *sumsq, *adamw, *rope;
    row_fn *attention_delta;
    task_fn *norm_bwd, *attention_row;
    score_fn *softmax, *shrink, *slope_by_query, *slope_by_key;
} kernels;

enum { MAX_MR = 12, MAX_NR = 32 };

/* -- The loops ---------------------------------------------------------------------------
 *
 *     for each block of the shorter side, SHARED words:   pack it, for everybody
 *       a task for each strip of the longer side:         pack the strip, for itself
 *         for CHUNK_LANES lanes of it, for KC words of k:
 *           for each panel of B, for each panel of A:     the tile
 *
 * The longer side is most of the packing. A task packs its strip into a place that stays in
 * its second cache, so those words never travel to memory and back. Packing waits for memory,
 * tiles for the multipliers: the next block is packed, into the other of two places, by tasks
 * strewn among the strips that meet the present one.
 */
enum {
    KC = 256,           /* words of k per visit of a tile: a panel of B is 16 to 32 KB */
    KMAX = 512,         /* most words of k in a block: C comes from memory once for each */
    SHARED = 1 << 19,   /* most words of a block: 2 MB, twice */
    STRIP = 128,        /* most lanes of a strip: with KMAX words, 256 KB */
    CHUNK_LANES = 192,  /* of a chunk, and of the part of a block that one task packs */
    SMALL_M = 16,       /* up to here B' is streamed, not packed */
    WORKSPACE = 8 << 20 /* floats; every operation starts with an unused workspace */
};

static size_t matmul_workspace(void) { return WORKSPACE * sizeof(float); }

/* Memory for the tasks that run at the moment, one slot each. */
typedef struct task_space {
    float *floats;
    i64 slot;         /* floats of a slot */
    _Atomic u64 free; /* bit i: slot i is free */
} task_space;

static void cut_slots(task_space *s, float *floats, i64 count, i64 slot) {
    s->floats = floats, s->slot = round_up(slot, 16);
    const i64 slots = min64(64, count / s->slot);
    atomic_init(&s->free, slots < 64 ? ((u64)1 << slots) - 1 : ~(u64)0);
}
static float *take_slot(task_space *s) {
    u64 free = atomic_load(&s->free);
    while (!free || !atomic_compare_exchange_weak(&s->free, &free, free & (free - 1)))
        if (!free) free = atomic_load(&s->free); /* more threads than slots: rare */
    return s->floats + __builtin_ctzll(free) * s->slot;
}
static void give_slot(task_space *s, const float *floats) {
    atomic_fetch_or(&s->free, (u64)1 << (floats - s->floats) / s->slot);
}

/* One operand on its way to the tiles. */
typedef struct side {
    operand x;
    i64 lanes, panel; /* rows of op(A) or columns of op(B), and how many make a panel */
    pack_fn *pack;
} side;

/* A block of the shorter side: lanes [lane, lane + lanes), k in [k, k + nk) */
typedef struct packed_block {
    i64 lane, lanes, k, nk;
    float *words;
} packed_block;

typedef struct product {
    const kernels *f;
    const tiling *t;
    side a, b;
    const side *longer, *shorter; /* one is a, the other b */
    mat c, bias;
    i64 M, N, K;
    float alpha, beta;
    bool merge_first;       /* a tile's first visit scales C or adds the bias */
    i64 lanes, k;           /* of the largest block */
    i64 chunk;              /* CHUNK_LANES, in whole panels */
    i64 strips, part;       /* a task: one of the strips, and lanes of the block */
    float *place[2];        /* of blocks */
    packed_block now, next; /* the block being computed, and the one being packed */
    i64 tiles, packs;       /* tasks of either kind */
    task_space space;       /* of strips */
    i64 columns;            /* of a task with few rows */
} product;

/* `lanes` lanes of a side from `lane` on, nk of k from k on, packed slice by slice, KC words
 * each, so that a tile walks through memory from one panel into the next. A slice is `all`
 * lanes wide; these begin at its lane `at`. */
static void pack_slices(const product *p, const side *s, float *out, i64 all, i64 at, i64 lane,
                        i64 lanes, i64 k, i64 nk) {
    const i64 unit = p->t->k_per_word, width = round_up(all, s->panel);
    for (i64 word = 0; word * unit < nk; word += KC) {
        const i64 words = min64(KC, ceil_div(nk, unit) - word);
        s->pack(out + word * width + at * words, &s->x, lane, lanes, k + word * unit,
                min64(words * unit, nk - word * unit));
    }
}

/* The tile of C at (m, n). A whole tile is added to C in registers; where it is cut, scaled or
 * meets the bias it goes through memory. Panels end in zeros, so a tile may compute rows that
 * nobody asked for. */
static void compute_tile(const product *p, i64 m, i64 n, bool first, i64 words, const float *a,
                         const float *b) {
    const i64 nr = p->f->nr, rows = min64(p->f->mr, p->M - m), cols = min64(nr, p->N - n);
    float *const c = row_of(p->c, m) + n;
    tile_fn *const tile = p->t->tile[(rows - 1) / 4];
    for (i64 i = 0; i < rows; i++) { /* C is needed when the tile is done */
        __builtin_prefetch(c + i * p->c.stride, 1);
        __builtin_prefetch(c + i * p->c.stride + nr - 1, 1);
    }
    if (rows % 4 == 0 && cols == nr && p->alpha == 1 && !(first && p->merge_first)) {
        tile(c, p->c.stride, !first || p->beta == 1, a, b, words);
        return;
    }
    float out[MAX_MR * MAX_NR] __attribute__((aligned(64))), bias[MAX_NR] = {0};
    if (first && p->bias.p) load_floats(bias, p->bias.p, p->bias.type, n, cols);
    tile(out, nr, false, a, b, words);
    p->f->merge(c, p->c.stride, out, rows, cols, p->alpha, first ? p->beta : 1, bias);
}

/* A strip meets a chunk, which begins at lane `at` of the block: their rows and columns of C.
 * C waits in the cache from one slice of k to the next. */
static void strip_by_chunk(const product *p, const float *strip, i64 lane, i64 lanes, i64 at,
                           i64 chunk) {
    const packed_block *x = &p->now;
    const bool rows = p->longer == &p->a; /* of C, or columns: what the strip is */
    const i64 m0 = rows ? lane : x->lane + at, m1 = m0 + (rows ? lanes : chunk);
    const i64 n0 = rows ? x->lane + at : lane, n1 = n0 + (rows ? chunk : lanes);
    const i64 all = ceil_div(x->nk, p->t->k_per_word);
    i64 word = 0;
    do { /* once for K = 0 too: C = beta C + bias */
        const i64 words = min64(KC, all - word);
        const float *const mine = strip + word * round_up(lanes, p->longer->panel);
        const float *const block = x->words + word * round_up(x->lanes, p->shorter->panel)
                                   + at * words;
        const float *const a = rows ? mine : block, *const b = rows ? block : mine;
        for (i64 n = n0; n < n1; n += p->f->nr)
            for (i64 m = m0; m < m1; m += p->f->mr)
                compute_tile(p, m, n, x->k + word == 0, words, a + (m - m0) * words,
                             b + (n - n0) * words);
        word += KC;
    } while (word < all);
}

/* The first lane of strip i: panels are dealt out evenly, so that all tasks take equally long. */
static i64 strip_lane(const product *p, i64 i) {
    const side *s = p->longer;
    return min64(s->lanes, i * ceil_div(s->lanes, s->panel) / p->strips * s->panel);
}

static void strip_task(product *p, i64 i) {
    const packed_block *x = &p->now;
    const i64 lane = strip_lane(p, i % p->strips);
    const i64 lanes = strip_lane(p, i % p->strips + 1) - lane;
    const i64 from = i / p->strips * p->part, end = min64(x->lanes, from + p->part);
    float *const strip = take_slot(&p->space);
    pack_slices(p, p->longer, strip, lanes, 0, lane, lanes, x->k, x->nk);
    for (i64 at = from; at < end; at += p->chunk)
        strip_by_chunk(p, strip, lane, lanes, at, min64(p->chunk, end - at));
    give_slot(&p->space, strip);
}

/* Packing tasks are spread evenly among the strips. */
static void block_task(void *arg, i64 i) {
    product *p = arg;
    const packed_block *x = &p->next;
    const i64 all = p->tiles + p->packs, packs = i * p->packs / all, at = packs * p->chunk;
    if ((i + 1) * p->packs / all > packs)
        pack_slices(p, p->shorter, x->words, x->lanes, at, x->lane + at,
                    min64(p->chunk, x->lanes - at), x->k, x->nk);
    else strip_task(p, i - packs);
}

/* n cut into the fewest equal blocks of at most `most`, each a multiple of `unit`. */
static i64 block_size(i64 n, i64 most, i64 unit) {
    const i64 blocks = max64(1, ceil_div(n, max64(unit, most / unit * unit)));
    return round_up(ceil_div(n, blocks), unit);
}

/* The block after p->now (without words: the first) becomes p->next; k runs fastest. */
static bool next_block(product *p) {
    packed_block x = p->now;
    if (x.words && (x.k += max64(1, p->k)) >= p->K) x.k = 0, x.lane += p->lanes;
    if (x.lane >= p->shorter->lanes) return false;
    x.lanes = min64(p->lanes, p->shorter->lanes - x.lane), x.nk = min64(p->k, p->K - x.k);
    x.words = p->place[x.words == p->place[0]];
    p->next = x;
    return true;
}

static void matmul_packed(nxt_context *cx, product *p) {
    enum { PLACE = SHARED + KMAX * MAX_NR, SLOT = (STRIP + MAX_NR) * KMAX }; /* padded */
    const i64 unit = p->t->k_per_word;
    p->longer = p->M > p->N ? &p->a : &p->b, p->shorter = p->M > p->N ? &p->b : &p->a;
    p->k = block_size(p->K, KMAX * unit, unit);
    p->lanes = block_size(p->shorter->lanes, SHARED / max64(1, p->k / unit), p->shorter->panel);
    p->chunk = CHUNK_LANES / p->shorter->panel * p->shorter->panel;
    /* Many threads want many tasks: narrower strips, as many for each, then parts of the block. */
    const i64 panels = ceil_div(p->longer->lanes, p->longer->panel);
    const i64 narrow = p->longer->lanes / (3 * cx->threads);
    const i64 most = max64(48, min64(STRIP, narrow)) / p->longer->panel; /* panels of a strip */
    p->strips = max64(1, min64(panels, round_up(ceil_div(panels, most), cx->threads)));
    p->part = block_size(p->lanes, p->lanes * p->strips / (4 * cx->threads), p->chunk);
    p->place[0] = cx->workspace, p->place[1] = cx->workspace + PLACE;
    cut_slots(&p->space, cx->workspace + 2 * PLACE, WORKSPACE - 2 * PLACE, SLOT);
    for (bool more = next_block(p);;) {
        p->packs = more ? ceil_div(p->next.lanes, p->chunk) : 0;
        parallel_for(cx, p->tiles + p->packs, block_task, p);
        if (!more) return;
        p->now = p->next;
        p->tiles = p->strips * ceil_div(p->now.lanes, p->part);
        more = next_block(p);
    }
}

/* Few rows: some columns of C, that is rows of B in memory, read once. */
static void dots_task(void *arg, i64 i) {
    const product *p = arg;
    const i64 nr = p->f->nr, bytes = p->b.x.lane_step * dtype_size(p->b.x.type);
    const i64 end = min64(p->N, (i + 1) * p->columns), a_step = p->a.x.lane_step;
    float space[4 + SMALL_M * MAX_NR], *const tile = space + 4;
    for (i64 n0 = i * p->columns; n0 < end; n0 += nr) {
        const i64 cols = min64(nr, end - n0);
        for (i64 n = 0; n < cols; n += 4) {
            /* The last four end at the last row of B and may repeat some; below column 0 is
             * the end of the row before, which is not in use when cols < 4. */
            const i64 at = min64(n, cols - 4);
            for (i64 m = 0; m < p->M;) {
                const bool many = p->M - m >= p->f->dots_rows;
                (many ? p->f->dots : p->f->dots1)(
                    tile + m * nr + at, nr, (const float *)(const void *)p->a.x.p + m * a_step,
                    a_step, p->b.x.p + (n0 + at) * bytes, bytes, p->K, p->b.x.type);
                m += many ? p->f->dots_rows : 1;
            }
        }
        float bias[MAX_NR] = {0};
        if (p->bias.p) load_floats(bias, p->bias.p, p->bias.type, n0, cols);
        p->f->merge(row_of(p->c, 0) + n0, p->c.stride, tile, p->M, cols, p->alpha, p->beta, bias);
    }
}

/* Some columns of C from a strip of all rows of B. The last rows, fewer than four, go by
 * themselves: what lies behind them is not ours to read. */
enum { SUMS = 128 };

static void sums_task(void *arg, i64 i) {
    const product *p = arg;
    const i64 n0 = i * SUMS, cols = min64(SUMS, p->N - n0), size = dtype_size(p->b.x.type);
    const i64 bytes = p->b.x.k_step * size;
    const char *b = p->b.x.p + n0 * size;
    float acc[SMALL_M * SUMS] __attribute__((aligned(64))) = {0}, bias[SUMS] = {0};
    if (p->bias.p) load_floats(bias, p->bias.p, p->bias.type, n0, cols);
    for (i64 k = 0; k < p->K; k += 4)
        for (i64 m = 0; m < p->M; m++) {
            const float *a = (const float *)(const void *)p->a.x.p + m * p->a.x.lane_step + k;
            float *out = acc + m * SUMS;
            if (k + 4 <= p->K) p->f->sums(out, a, b + k * bytes, bytes, cols, p->b.x.type);
            for (i64 j = 0; k + 4 > p->K && k + j < p->K; j++)
                for (i64 c = 0; c < cols; c++) {
                    float x;
                    load_floats(&x, b + (k + j) * bytes, p->b.x.type, c, 1);
                    out[c] += a[j] * x;
                }
        }
    for (i64 m = 0; m < p->M; m++) {
        float *c = row_of(p->c, m) + n0;
        for (i64 j = 0; j < cols; j++)
            c[j] = p->alpha * acc[m * SUMS + j] + (p->beta == 0 ? 0 : p->beta * c[j]) + bias[j];
    }
}

static void matmul_dots(nxt_context *cx, product *p) {
    p->columns = max64(1, (1 << 15) / max64(1, p->K) / p->f->nr) * p->f->nr; /* about 128 KB */
    parallel_for(cx, ceil_div(p->N, p->columns), dots_task, p);
}

static void matmul_with(nxt_context *cx, const tiling *t, mat c, mat a, mat b, int trans,
                        float alpha, float beta, mat bias) {
    const bool ta = trans & NXT_TRANS_A, tb = trans & NXT_TRANS_B;
    const bool a_f32 = a.type == F32 && (uintptr_t)a.p % sizeof(float) == 0;
    product p = {.f = cx->fast, .t = t, .M = c.rows, .N = c.cols, .K = ta ? a.rows : a.cols,
                 .c = c, .bias = bias, .alpha = alpha, .beta = beta,
                 .merge_first = bias.p || (beta != 0 && beta != 1)};
    p.a = (side){{a.p, a.type, ta ? 1 : a.stride, ta ? a.stride : 1}, p.M, p.f->mr, t->pack_a};
    p.b = (side){{b.p, b.type, tb ? b.stride : 1, tb ? 1 : b.stride}, p.N, p.f->nr, t->pack_b};
    if (p.M <= SMALL_M && p.N >= 4 && tb && !ta && a_f32) matmul_dots(cx, &p);
    else if (p.M <= SMALL_M && !tb && !ta && a_f32)
        parallel_for(cx, ceil_div(p.N, SUMS), sums_task, &p);
    else matmul_packed(cx, &p);
}

static void fast_matmul(void *s, mat c, mat a, mat b, int trans, float alpha, float beta,
                        mat bias) {
    nxt_context *cx = s;
    matmul_with(cx, &cx->fast->f32, c, a, b, trans, alpha, beta, bias);
}

/* -- The levels ------------------------------------------------------------------------
 * A tile fills the vector registers: 16 of 4 (SSE2) or 8 (AVX2) floats, 32 of 16 (AVX-512)
 * or 4 (NEON), less one row of b and one number of a. */
#define DEFINE_MATMUL(LEVEL, AT, V, MR, NV)                                                 \
    AT FUSED static void pack_a_##LEVEL(float *out, const operand *x, i64 lane, i64 lanes,  \
                                        i64 k, i64 nk) {                                    \
        pack_body(out, x, lane, lanes, k, nk, MR, false);                                   \
    }                                                                                       \
    AT FUSED static void pack_b_##LEVEL(float *out, const operand *x, i64 lane, i64 lanes,  \
                                        i64 k, i64 nk) {                                    \
        pack_body(out, x, lane, lanes, k, nk, NV * (i64)sizeof(V) / 4, false);              \
    }                                                                                       \
    AT FUSED static void merge_##LEVEL(float *c, i64 c_step, const float *tile, i64 rows,   \
                                       i64 cols, float alpha, float beta,                   \
                                       const float *bias) {                                 \
        merge_body(c, c_step, tile, NV * (i64)sizeof(V) / 4, rows, cols, alpha, beta, bias); \
    }                                                                                       \
    DEFINE_PEAK(peak_##LEVEL, AT, V, MULTIPLY_ADD)                                          \
    DEFINE_TILE(tile4_##LEVEL, AT, V, MR, 4, NV, MULTIPLY_ADD)

#define AT_BASELINE
#if defined(__aarch64__)
#define BASELINE_MR 12
#define BASELINE_TILES .mr = 12, .f32.tile = {tile4_baseline, tile8_baseline, tile12_baseline}
DEFINE_TILE(tile8_baseline, AT_BASELINE, v4, 12, 8, 2, MULTIPLY_ADD)
DEFINE_TILE(tile12_baseline, AT_BASELINE, v4, 12, 12, 2, MULTIPLY_ADD)
#else
#define BASELINE_MR 4
#define BASELINE_TILES .mr = 4, .f32.tile = {tile4_baseline}
#endif
DEFINE_MATMUL(baseline, AT_BASELINE, v4, BASELINE_MR, 2)
DEFINE_DOTS(dots_baseline, AT_BASELINE, v4, load_v4, 2)
DEFINE_DOTS(dots1_baseline, AT_BASELINE, v4, load_v4, 1)
DEFINE_SUMS(sums_baseline, AT_BASELINE, v4, load_v4)
#if NXT_HAS_X86
#define AT_AVX2 __attribute__((target("avx2,fma,f16c")))
DEFINE_MATMUL(avx2, AT_AVX2, v8, 4, 3)
#define LOAD_AVX2(x, p, type)                                                               \
    if ((type) == F16) *(x) = (v8)_mm256_cvtph_ps((__m128i)*(const h8 *)(p));               \
    else load_v8(x, p, type)
DEFINE_DOTS(dots_avx2, AT_AVX2, v8, LOAD_AVX2, 2)
DEFINE_DOTS(dots1_avx2, AT_AVX2, v8, LOAD_AVX2, 1)
DEFINE_SUMS(sums_avx2, AT_AVX2, v8, LOAD_AVX2)

#define AT_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
DEFINE_MATMUL(avx512, AT_AVX512, v16, 12, 2)
#define LOAD_AVX512(x, p, type)                                                             \
    if ((type) == F16) *(x) = (v16)_mm512_cvtph_ps((__m256i)*(const h16 *)(p));             \
    else load_v16(x, p, type)
DEFINE_DOTS(dots_avx512, AT_AVX512, v16, LOAD_AVX512, 4)
DEFINE_DOTS(dots1_avx512, AT_AVX512, v16, LOAD_AVX512, 1)
DEFINE_SUMS(sums_avx512, AT_AVX512, v16, LOAD_AVX512)
DEFINE_TILE(tile8_avx512, AT_AVX512, v16, 12, 8, 2, MULTIPLY_ADD)
DEFINE_TILE(tile12_avx512, AT_AVX512, v16, 12, 12, 2, MULTIPLY_ADD)

/* bf16: one instruction multiplies 32 pairs and adds both products of a pair to a float. */
#define AT_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define MULTIPLY_ADD_PAIRS(acc, a, b)                                                       \
    (acc) = (v16)_mm512_dpbf16_ps((__m512)(acc), (__m512bh)_mm512_set1_ps(a), (__m512bh)(b))
DEFINE_PEAK(peak_bf16, AT_BF16, v16, MULTIPLY_ADD_PAIRS)
DEFINE_TILE(tile4_bf16, AT_BF16, v16, 12, 4, 2, MULTIPLY_ADD_PAIRS)
DEFINE_TILE(tile8_bf16, AT_BF16, v16, 12, 8, 2, MULTIPLY_ADD_PAIRS)
DEFINE_TILE(tile12_bf16, AT_BF16, v16, 12, 12, 2, MULTIPLY_ADD_PAIRS)
AT_BF16 static void pack_a_bf16(float *out, const operand *x, i64 lane, i64 lanes, i64 k,
                                i64 nk) {
    pack_body(out, x, lane, lanes, k, nk, 12, true);
}
AT_BF16 static void pack_b_bf16(float *out, const operand *x, i64 lane, i64 lanes, i64 k,
                                i64 nk) {
    pack_body(out, x, lane, lanes, k, nk, 32, true);
}
static const tiling bf16_tiling = {
    .tile = {tile4_bf16, tile8_bf16, tile12_bf16}, .pack_a = pack_a_bf16,
    .pack_b = pack_b_bf16, .peak = peak_bf16, .k_per_word = 2, .words = 16};
#endif

/* The bf16 tiling, or NULL where the processor has no such instruction. */
static const tiling *bf16_matmul(const nxt_context *cx) {
    (void)cx;
#if NXT_HAS_X86
    __builtin_cpu_init();
    if (cx->fast && cx->fast->nr == 32 && __builtin_cpu_supports("avx512bf16"))
        return &bf16_tiling;
#endif
    return NULL;
}

/* Whether it beats f32. AMD's cores start one such instruction a cycle: twice the products of
 * f32. Intel's start one in two cycles beside two of f32: half (Zen 4 and Emerald Rapids,
 * measured; Intel's fast way is AMX, another instruction set). */
static bool bf16_pays(const nxt_context *cx) {
#if NXT_HAS_X86
    return bf16_matmul(cx) && __builtin_cpu_is("amd");
#else
    return bf16_matmul(cx) != NULL;
#endif
}

static void fast_matmul_bf16(void *s, mat c, mat a, mat b, int trans, float alpha, float beta,
                             mat bias) {
    nxt_context *cx = s;
    const tiling *t = bf16_matmul(cx);
    matmul_with(cx, t ? t : &cx->fast->f32, c, a, b, trans, alpha, beta, bias);
}

/* 1 baseline, 2 AVX2, 3 AVX-512: what the processor has and the system saves on a switch
 * (both are part of __builtin_cpu_supports, where clang 14 lacks F16C). 0: only the reference. */
static int cpu_level(void) {
#if NXT_HAS_X86
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 3;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 2;
#endif
    return 1;
}
#else
static int cpu_level(void) { return 0; }
static size_t matmul_workspace(void) { return 0; }
#endif

/* ============================================================================
 * § 8  Fast kernels (skip)
 *
 * The other operations of §6, with what costs time there taken out: one thread, libm calls
 * for every element, sums in double, a second walk through memory. For each operation there
 * are two functions: its work on a piece of a row (name_row), in plain C, which is compiled
 * once per CPU level; and the table entry (fast_name), which cuts the operation into pieces.
 * Loops with a constant inner length and no branches are what gcc and clang turn into
 * vectors at -O3, at any width, without a line of intrinsics.
 *
 * Tasks write only what is theirs, and sums of several tasks are added in the order of
 * their numbers (I6). Sums run in LANES partial sums (I7), in a fixed order, so that their
 * bits depend neither on the vector width nor on the number of threads.
 */
#if NXT_HAS_SIMD

/* -- exp, tanh and the normal distribution ------------------------------------------------
 * Branch-free, so that a loop over them becomes vectors. Selections are made with integer
 * masks: gcc turns a float ?: into a branch when comparing might trap.
 *
 * exp: x = n ln2 + r with |r| <= ln2/2, exp(x) = 2^n exp(r), and exp(r) = 1 + r + r^2 q(r)
 * with q fitted to a relative error of 3e-9. Adding 1.5 * 2^23 rounds to an integer, which
 * then lies in the low bits. ln2 is split so that n * LN2_HIGH is exact. 2^n is applied in
 * two halves: n may leave the range of one exponent. Error at most 1.5 ulp (2 where the
 * result is subnormal); exp(-inf) = 0, exp(inf) = inf, NaN stays NaN. */
#define LOG2_E 1.44269504f
#define LN2_HIGH 0x1.62e4p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define ROUND_TO_INT 0x1.8p23f

ALWAYS_INLINE float pick_bits(u32 mask, float yes, float no) {
    return bits_float((float_bits(yes) & mask) | (float_bits(no) & ~mask));
}

/* exp(r) - 1 for x = n ln2 + r, and n */
ALWAYS_INLINE float exp_reduced(float x, i32 *n) {
    float shifted = x * LOG2_E + ROUND_TO_INT, turns = shifted - ROUND_TO_INT;
    float r = x - turns * LN2_HIGH - turns * LN2_LOW;
    float q = 0.00138145604f;
    q = q * r + 0.0083687352f;
    q = q * r + 0.041668389f;
    q = q * r + 0.166665211f;
    q = q * r + 0.49999994f;
    *n = (i32)(float_bits(shifted) - float_bits(ROUND_TO_INT));
    return q * (r * r) + r;
}

ALWAYS_INLINE float power_of_two(i32 n) { return bits_float((u32)(n + 127) << 23); }

ALWAYS_INLINE float exp_lane(float x) {
    const u32 bits = float_bits(x), size = bits & 0x7fffffff;
    const u32 wild = 0 - (u32)(size > 0x42d00000); /* |x| > 104, or NaN */
    const u32 overflow = 0x7f800000 & ~(0 - (bits >> 31));
    const u32 nan = 0 - (u32)(size > 0x7f800000);
    i32 n;
    float y = exp_reduced(bits_float(bits & ~wild), &n) + 1;
    y = y * power_of_two(n >> 1) * power_of_two(n - (n >> 1));
    return pick_bits(wild, pick_bits(nan, x, bits_float(overflow)), y);
}

/* tanh |x| = e / (e + 2) with e = exp(2|x|) - 1 = 2^n (exp(r) - 1) + 2^n - 1, which keeps
 * its precision near 0. From 9.02 on tanh rounds to 1. Error at most 3 ulp. */
ALWAYS_INLINE float tanh_lane(float x) {
    const u32 size = float_bits(x) & 0x7fffffff, sign = float_bits(x) & 0x80000000;
    const u32 large = 0 - (u32)(size > 0x41200000), nan = 0 - (u32)(size > 0x7f800000);
    i32 n;
    float p = exp_reduced(2 * bits_float(size & ~large), &n), scale = power_of_two(n);
    float e = scale * p + (scale - 1);
    float y = pick_bits(large, 1, e / (e + 2));
    return pick_bits(nan, x, bits_float(float_bits(y) | sign));
}

/* P(X <= x) for normal X, and through *bell exp(-x^2/2), which the slope of GELU needs too.
 * P(X <= -t) = exp(-t^2/2) u p(u), u = 1 / (1 + 0.35 t), t >= 0, with p fitted: no erf, and
 * unlike (1 + erf) / 2 the left tail keeps its relative precision. Absolute error at most
 * 1.2e-7, relative error of the tail 1e-6 down to -10. */
ALWAYS_INLINE float normal_lane(float x, float *bell) {
    const u32 negative = 0 - (float_bits(x) >> 31);
    float t = bits_float(float_bits(x) & 0x7fffffff), u = 1 / (1 + 0.35f * t);
    float p = -0.0291578639f;
    p = p * u + 0.144030824f;
    p = p * u + -0.255838841f;
    p = p * u + 0.15931955f;
    p = p * u + -0.0232122652f;
    p = p * u + 0.105552472f;
    p = p * u + 0.119821295f;
    p = p * u + 0.139863506f;
    p = p * u + 0.139621302f;
    *bell = exp_lane(-0.5f * x * x);
    p = p * u * *bell;
    return pick_bits(negative, p, 1 - p);
}

/* sqrt without libm: compilers do not make vectors of a call that may set errno. The bit
 * trick gives 1/sqrt to 3 %, each Newton step squares the error. x >= 0; at most 2 ulp. */
ALWAYS_INLINE float sqrt_lane(float x) {
    float y = bits_float(0x5f3759df - (float_bits(x) >> 1)), half = 0.5f * x;
    for (int i = 0; i < 3; i++) y = y * (1.5f - half * y * y);
    return x * y;
}

/* Sine and cosine together. x = n pi/2 + r with |r| <= pi/4, reduced in double, so that angles
 * of a million positions keep all their bits; then two fitted polynomials (error below 1e-8),
 * which n mod 4 swaps and signs. Error at most 1 ulp of 1. */
ALWAYS_INLINE void turn_lane(float x, float *sine, float *cosine) {
    const double turns = (double)x * 0.63661977236758134 + 0x1.8p52 - 0x1.8p52;
    const u32 n = (u32)(i32)turns, odd = 0 - (n & 1);
    const float r = (float)((double)x - turns * 1.5707963267948966), q = r * r;
    const float s = ((-0.000195172935f * q + 0.008332178f) * q - 0.166666552f) * q * r + r;
    const float c = ((2.44384191e-05f * q - 0.00138873677f) * q + 0.0416666456f) * q * q
                    - 0.5f * q + 1;
    *sine = bits_float(float_bits(pick_bits(odd, c, s)) ^ (n & 2) << 30);
    *cosine = bits_float(float_bits(pick_bits(odd, s, c)) ^ ((n + 1) & 2) << 30);
}

/* -- Pieces of rows --------------------------------------------------------------------------
 * Most operations are the same work on every row, or on pieces of rows. A task is about
 * GRAIN elements: long enough to be worth handing out, short enough to share evenly. */
enum { GRAIN = 1 << 14, BLOCK = 64 };

typedef struct row_job {
    row_fn *run;
    i64 rows, cols, piece, rows_per_task;
    mat y, a, b, c;
    heads to, from;
    const i32 *index, *index2;
    const u64 *keys;
    u64 site;
    const float *w, *bias;
    const nxt_adamw *update;
    double *sums;
    float *loss;
    float value;
    int kind;
} row_job;

static void row_task(void *arg, i64 task) {
    const row_job *j = arg;
    const i64 across = ceil_div(j->cols, j->piece), c = task % across * j->piece;
    const i64 from = task / across * j->rows_per_task;
    for (i64 r = from; r < min64(j->rows, from + j->rows_per_task); r++)
        j->run(j, (piece){r, c, min64(j->piece, j->cols - c)});
}

/* Runs `run` on rows x cols, in pieces of at most `most` columns. */
static void for_rows(nxt_context *cx, row_fn *run, row_job *j, i64 rows, i64 cols, i64 most) {
    if (!rows || !cols) return;
    j->run = run;
    j->rows = rows;
    j->cols = cols;
    j->piece = min64(cols, most);
    j->rows_per_task = max64(1, GRAIN / j->piece);
    parallel_for(cx, ceil_div(cols, j->piece) * ceil_div(rows, j->rows_per_task), row_task, j);
}

static const kernels *fast(void *s) { return ((nxt_context *)s)->fast; }

static inline float *part(mat m, piece p) { return row_of(m, p.r) + p.c; }

/* One row as aligned f32: the row itself, or a copy in *space, which moves on. */
static const float *as_floats(mat row, float **space) {
    if (!row.p || (row.type == F32 && (uintptr_t)row.p % sizeof(float) == 0)) return row.p;
    float *copy = *space;
    load_floats(copy, row.p, row.type, 0, row.cols);
    *space += row.cols;
    return copy;
}

/* OVER_LANES(n, statement): the statement for i = 0 .. n-1, with l = i mod LANES. */
#define OVER_LANES(n, statement)                                                            \
    do {                                                                                    \
        i64 at = 0;                                                                         \
        for (; at + LANES <= (n); at += LANES)                                              \
            for (i64 l = 0; l < LANES; l++) {                                               \
                const i64 i = at + l;                                                       \
                statement;                                                                  \
            }                                                                               \
        for (i64 l = 0, i = at; i < (n); l++, i++) { statement; }                           \
    } while (0)

/* out[i] = expression, i = 0 .. n-1, where out may be one of the inputs. The results go
 * through a block, since compilers make vectors only of loops whose arrays are apart. */
#define IN_BLOCKS(out, n, expression)                                                       \
    for (i64 at = 0; at < (n); at += BLOCK) {                                               \
        float block[BLOCK];                                                                 \
        if ((n) - at >= BLOCK) {                                                            \
            for (i64 i = at; i < at + BLOCK; i++) block[i - at] = (expression);             \
            memcpy((out) + at, block, sizeof block);                                        \
        } else {                                                                            \
            for (i64 i = at; i < (n); i++) block[i - at] = (expression);                    \
            memcpy((out) + at, block, (size_t)((n) - at) * sizeof(float));                  \
        }                                                                                   \
    }

/* -- Activations, sums, the optimizer ------------------------------------------------------- */
#define SQRT_2_PI 0.7978845608028654f /* sqrt(2 / pi) */

ALWAYS_INLINE float gelu_lane(float x) {
    float bell;
    return x * normal_lane(x, &bell);
}
ALWAYS_INLINE float gelu_slope_lane(float x) {
    float bell, p = normal_lane(x, &bell);
    return p + x * 0.3989422804014327f * bell;
}
ALWAYS_INLINE float gelu_tanh_lane(float x) {
    return 0.5f * x * (1 + tanh_lane(SQRT_2_PI * (x + 0.044715f * x * x * x)));
}
ALWAYS_INLINE float gelu_tanh_slope_lane(float x) {
    float t = tanh_lane(SQRT_2_PI * (x + 0.044715f * x * x * x));
    float u = SQRT_2_PI * (1 + 3 * 0.044715f * x * x);
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * u;
}
ALWAYS_INLINE float silu_lane(float x) { return x / (1 + exp_lane(-x)); }
ALWAYS_INLINE float silu_slope_lane(float x) {
    float t = 1 / (1 + exp_lane(-x));
    return t * (1 + x * (1 - t));
}
ALWAYS_INLINE float relu_mask(float x, float y) { /* y where x > 0 */
    return bits_float(float_bits(y) & (0 - (u32)((i32)float_bits(x) > 0)));
}

ALWAYS_INLINE void act_fwd_row(const row_job *j, piece p) {
    float *y = part(j->y, p);
    const float *x = part(j->a, p);
    switch (j->kind) {
    case NXT_GELU: IN_BLOCKS(y, p.n, gelu_lane(x[i])) break;
    case NXT_GELU_TANH:
    case NXT_GELU_FAST: IN_BLOCKS(y, p.n, gelu_tanh_lane(x[i])) break;
    case NXT_RELU: IN_BLOCKS(y, p.n, relu_mask(x[i], x[i])) break;
    default: IN_BLOCKS(y, p.n, silu_lane(x[i]))
    }
}
static void fast_act_fwd(void *s, mat y, mat x, nxt_act_kind kind) {
    row_job j = {.y = y, .a = x, .kind = (int)kind};
    for_rows(s, fast(s)->act_fwd, &j, y.rows, y.cols, GRAIN);
}

ALWAYS_INLINE void act_bwd_row(const row_job *j, piece p) {
    float *dx = part(j->y, p);
    const float *dy = part(j->a, p), *x = part(j->b, p);
    switch (j->kind) {
    case NXT_GELU: IN_BLOCKS(dx, p.n, dy[i] * gelu_slope_lane(x[i])) break;
    case NXT_GELU_TANH:
    case NXT_GELU_FAST: IN_BLOCKS(dx, p.n, dy[i] * gelu_tanh_slope_lane(x[i])) break;
    case NXT_RELU: IN_BLOCKS(dx, p.n, relu_mask(x[i], dy[i])) break;
    default: IN_BLOCKS(dx, p.n, dy[i] * silu_slope_lane(x[i]))
    }
}
static void fast_act_bwd(void *s, mat dx, mat dy, mat x, nxt_act_kind kind) {
    row_job j = {.y = dx, .a = dy, .b = x, .kind = (int)kind};
    for_rows(s, fast(s)->act_bwd, &j, dx.rows, dx.cols, GRAIN);
}

ALWAYS_INLINE void mul_row(const row_job *j, piece p) {
    float *y = part(j->y, p);
    const float *a = part(j->a, p), *b = part(j->b, p);
    IN_BLOCKS(y, p.n, a[i] * b[i])
}
static void fast_mul(void *s, mat y, mat a, mat b) {
    row_job j = {.y = y, .a = a, .b = b};
    for_rows(s, fast(s)->mul, &j, y.rows, y.cols, GRAIN);
}

ALWAYS_INLINE void dropout_row(const row_job *j, piece p) {
    float *y = part(j->y, p);
    const float *x = part(j->a, p), scale = 1 / (1 - j->value);
    const u64 key = mix64(j->keys[p.r] + j->site);
    const u32 threshold = dropout_threshold(j->value), c = (u32)p.c;
#define KEPT(i) (dropout_bits(key, c + (u32)(i)) >= threshold ? scale * x[i] : 0)
    if (j->kind) IN_BLOCKS(y, p.n, y[i] + KEPT(i))
    else IN_BLOCKS(y, p.n, KEPT(i))
#undef KEPT
}
static void fast_dropout(void *s, mat y, mat x, const u64 *key, u64 site, float rate,
                         float beta) {
    row_job j = {.y = y, .a = x, .keys = key, .site = site, .value = rate, .kind = beta != 0};
    for_rows(s, fast(s)->dropout, &j, y.rows, y.cols, GRAIN);
}

/* The update of §6 in one pass: 28 bytes of traffic per element are its whole cost. */
ALWAYS_INLINE void adamw_row(const row_job *j, piece p) {
    const nxt_adamw *u = j->update;
    float *restrict w = u->w + p.c, *restrict m = u->m + p.c, *restrict v = u->v + p.c;
    const float *restrict g = u->g + p.c;
    const float keep = 1 - u->lr * u->decay, rate = u->lr / u->correction1;
    const float unbias = 1 / sqrtf(u->correction2), scale = u->scale, eps = u->eps;
    const float b1 = u->beta1, b2 = u->beta2;
    for (i64 i = 0; i < p.n; i++) {
        const float gi = scale * g[i];
        const float mi = b1 * m[i] + (1 - b1) * gi, vi = b2 * v[i] + (1 - b2) * gi * gi;
        m[i] = mi;
        v[i] = vi;
        w[i] = w[i] * keep - rate * mi / (sqrt_lane(vi) * unbias + eps);
    }
}
static void fast_adamw(void *s, const nxt_adamw *u) {
    row_job j = {.update = u};
    for_rows(s, fast(s)->adamw, &j, 1, u->n, GRAIN);
}

/* Short sums of floats add into a double, and those of all pieces in their order. */
ALWAYS_INLINE void sumsq_row(const row_job *j, piece p) {
    enum { SHORT = 1024 };
    double total = 0;
    for (i64 from = 0; from < p.n; from += SHORT) {
        float sum[LANES] = {0};
        const float *x = part(j->y, p) + from;
        OVER_LANES(min64(SHORT, p.n - from), sum[l] += x[i] * x[i]);
        total += (double)lane_sum(sum);
    }
    j->sums[p.r * ceil_div(j->cols, j->piece) + p.c / j->piece] = total;
}
static void fast_sumsq(void *s, double *out, mat x) {
    row_job j = {.sums = (double *)(void *)((nxt_context *)s)->workspace};
    const i64 across = ceil_div(x.cols, GRAIN);
    const i64 most = max64(1, WORKSPACE / 2 / max64(1, across)); /* rows per workspace */
    for (i64 r = 0; r < x.rows; r += most) {
        j.y = x;
        j.y.p = row_of(x, r);
        const i64 rows = min64(most, x.rows - r);
        for_rows(s, fast(s)->sumsq, &j, rows, x.cols, GRAIN);
        for (i64 i = 0; i < rows * across; i++) *out += j.sums[i];
    }
}

/* -- Norms ----------------------------------------------------------------------------------- */
ALWAYS_INLINE void norm_line(float *restrict y, float *restrict stats,
                             const float *restrict x, const float *restrict w,
                             const float *restrict b, i64 n, float eps, int kind) {
    float sum[LANES] = {0}, square[LANES] = {0}, mean = 0;
    if (kind == NXT_LAYER_NORM) {
        OVER_LANES(n, sum[l] += x[i]);
        mean = lane_sum(sum) / (float)n;
    }
    OVER_LANES(n, square[l] += (x[i] - mean) * (x[i] - mean));
    const double variance = (double)lane_sum(square) / (double)n;
    const float r = (float)(1 / sqrt(variance + (double)eps));
    if (b)
        for (i64 i = 0; i < n; i++) y[i] = (x[i] - mean) * r * w[i] + b[i];
    else
        for (i64 i = 0; i < n; i++) y[i] = (x[i] - mean) * r * w[i];
    stats[0] = mean;
    stats[1] = r;
}
ALWAYS_INLINE void norm_fwd_row(const row_job *j, piece p) {
    norm_line(part(j->y, p), row_of(j->c, p.r), part(j->a, p), j->w, j->bias, p.n, j->value,
              j->kind);
}
static void fast_norm_fwd(void *s, mat y, mat stats, mat x, mat w, mat b, float eps,
                          nxt_norm_kind kind) {
    float *space = ((nxt_context *)s)->workspace;
    row_job j = {.y = y, .a = x, .c = stats, .value = eps, .kind = (int)kind,
                 .w = as_floats(w, &space), .bias = as_floats(b, &space)};
    for_rows(s, fast(s)->norm_fwd, &j, x.rows, x.cols, x.cols);
}

/* dw and db sum over the rows: every block of rows adds into its own pair of lines, then
 * the lines are added from the first block to the last. With dx absent only db is made,
 * which is the backward pass of a bias. */
typedef struct sum_job {
    mat dx, dy, x, stats;
    const float *w;
    nxt_norm_kind kind;
    i64 rows_per_block, blocks, cols;
    float *lines, *dw, *db; /* lines: (blocks, 2, cols), dw and db */
} sum_job;

/* One row of §6's derivation */
ALWAYS_INLINE void norm_bwd_row(const sum_job *j, i64 r, float *restrict dw,
                                float *restrict db) {
    float sum_g[LANES] = {0}, sum_gx[LANES] = {0}, *restrict dx = row_of(j->dx, r);
    const float *restrict x = row_of(j->x, r), *restrict dy = row_of(j->dy, r);
    const float *restrict w = j->w;
    const float m = row_of(j->stats, r)[0], rs = row_of(j->stats, r)[1];
    const i64 n = j->cols;
    OVER_LANES(n, sum_g[l] += dy[i] * w[i]); /* apart: gcc 12 makes no vectors of both */
    OVER_LANES(n, sum_gx[l] += dy[i] * w[i] * ((x[i] - m) * rs));
    const float mean_g = j->kind == NXT_LAYER_NORM ? lane_sum(sum_g) / (float)n : 0;
    const float mean_gx = lane_sum(sum_gx) / (float)n;
    for (i64 i = 0; i < n; i++)
        dx[i] += rs * (dy[i] * w[i] - mean_g - (x[i] - m) * rs * mean_gx);
    if (j->dw)
        for (i64 i = 0; i < n; i++) dw[i] += dy[i] * ((x[i] - m) * rs);
    if (j->db)
        for (i64 i = 0; i < n; i++) db[i] += dy[i];
}

ALWAYS_INLINE void norm_bwd_rows(void *arg, i64 block) {
    const sum_job *j = arg;
    const i64 from = block * j->rows_per_block, C = j->cols;
    float *const dw = j->lines + block * 2 * C, *const restrict db = dw + C;
    memset(dw, 0, 2 * (size_t)C * sizeof *dw);
    for (i64 r = from; r < min64(j->dy.rows, from + j->rows_per_block); r++) {
        const float *restrict dy = row_of(j->dy, r);
        if (j->dx.p) norm_bwd_row(j, r, dw, db);
        else
            for (i64 i = 0; i < C; i++) db[i] += dy[i];
    }
}

static void add_lines_task(void *arg, i64 task) {
    const sum_job *j = arg;
    const i64 from = task * BLOCK, n = min64(BLOCK, j->cols - from);
    for (int which = 0; which < 2; which++) {
        float *const out = which ? j->db : j->dw, total[BLOCK] = {0};
        const float *line = j->lines + which * j->cols + from;
        for (i64 b = 0; b < j->blocks; b++, line += 2 * j->cols)
            for (i64 i = 0; i < n; i++) total[i] += line[i];
        for (i64 i = 0; out && i < n; i++) out[from + i] += total[i];
    }
}

static void sum_over_rows(nxt_context *cx, sum_job *j) {
    enum { MOST_BLOCKS = 128 };
    if (!j->dy.rows || !j->dy.cols) return;
    j->cols = j->dy.cols;
    const i64 room = (cx->workspace + WORKSPACE - j->lines) / (2 * j->cols);
    const i64 blocks = max64(1, min64(MOST_BLOCKS, room)), few = min64(16, GRAIN / j->cols + 1);
    j->rows_per_block = max64(ceil_div(j->dy.rows, blocks), few);
    j->blocks = ceil_div(j->dy.rows, j->rows_per_block);
    parallel_for(cx, j->blocks, cx->fast->norm_bwd, j);
    if (j->dw || j->db) parallel_for(cx, ceil_div(j->cols, BLOCK), add_lines_task, j);
}

static void fast_norm_bwd(void *s, mat dx, mat dw, mat db, mat dy, mat x, mat w, mat stats,
                          nxt_norm_kind kind) {
    float *space = ((nxt_context *)s)->workspace;
    sum_job j = {.dx = dx, .dy = dy, .x = x, .stats = stats, .w = as_floats(w, &space),
                 .kind = kind, .lines = space, .dw = dw.p, .db = db.p};
    sum_over_rows(s, &j);
}
static void fast_bias_bwd(void *s, mat db, mat dy) {
    sum_job j = {.dy = dy, .lines = ((nxt_context *)s)->workspace, .db = db.p};
    sum_over_rows(s, &j);
}

/* -- Cross-entropy, rotation ------------------------------------------------------------------ */
ALWAYS_INLINE float row_max(const float *x, i64 n) {
    float top[LANES];
    for (int l = 0; l < LANES; l++) top[l] = -INFINITY;
    OVER_LANES(n, top[l] = x[i] > top[l] ? x[i] : top[l]);
    for (int l = 1; l < LANES; l++) top[0] = fmaxf(top[0], top[l]);
    return top[0];
}

/* exp(z - top) is stored on the way to the sum, so that the gradient costs a product and
 * not a second exponential. */
ALWAYS_INLINE float xent_loss(float *z, i64 n, i32 label, bool backward) {
    enum { SHORT = 4096 }; /* sums this long add into a double */
    const float top = row_max(z, n), target = z[label];
    double total = 0;
    for (i64 from = 0; from < n; from += SHORT) {
        float sum[LANES] = {0}, *x = z + from;
        const i64 m = min64(SHORT, n - from);
        if (backward) OVER_LANES(m, float e = exp_lane(x[i] - top); x[i] = e; sum[l] += e);
        else OVER_LANES(m, sum[l] += exp_lane(x[i] - top));
        total += (double)lane_sum(sum);
    }
    const float inverse = (float)(1 / total);
    for (i64 i = 0; backward && i < n; i++) z[i] *= inverse;
    if (backward) z[label] -= 1;
    return (float)(log(total) + (double)top - (double)target);
}
ALWAYS_INLINE void xent_row(const row_job *j, piece p) {
    float *z = part(j->y, p);
    const i32 label = j->index[p.r];
    j->loss[p.r] = label < 0 ? 0 : xent_loss(z, p.n, label, j->kind);
    if (label < 0 && j->kind) memset(z, 0, (size_t)p.n * sizeof *z);
}
static void fast_xent(void *s, float *loss, mat logits, const i32 *label, int backward) {
    row_job j = {.y = logits, .loss = loss, .index = label, .kind = backward};
    for_rows(s, fast(s)->xent, &j, logits.rows, logits.cols, logits.cols);
}

/* Sine and cosine are computed once per row, for all heads. */
ALWAYS_INLINE void rope_row(const row_job *j, piece p) {
    enum { MOST = 128 };
    float angle[MOST], cosine[MOST], sine[MOST];
    for (i64 from = 0; from < p.n; from += MOST) {
        const i64 n = min64(MOST, p.n - from), whole = (n + LANES - 1) / LANES * LANES;
        for (i64 i = 0; i < whole; i++)
            angle[i] = i < n ? (float)j->index[p.r] * j->w[from + i] : 0;
        for (i64 i = 0; i < whole; i++) turn_lane(angle[i], &sine[i], &cosine[i]);
        for (i64 i = 0; i < n; i++) sine[i] *= j->value;
        for (int h = 0; h < j->to.heads; h++) {
            float *restrict low = head_of(j->to, p.r, h) + from, *restrict high = low + p.n;
            __builtin_prefetch(head_of(j->to, p.r + 3, h) + from, 1); /* heads lie far apart */
            for (i64 i = 0; i < n; i++) {
                const float a = low[i], b = high[i];
                low[i] = a * cosine[i] - b * sine[i];
                high[i] = b * cosine[i] + a * sine[i];
            }
        }
    }
}
static void fast_rope(void *s, heads x, const float *freq, int pairs, const i32 *pos,
                      float sign) {
    row_job j = {.to = x, .w = freq, .index = pos, .value = sign};
    for_rows(s, fast(s)->rope, &j, x.rows, pairs, pairs);
}

/* -- Copies: the same for every level --------------------------------------------------------- */
static void embed_fwd_row(const row_job *j, piece p) {
    float *y = part(j->y, p), wpe[BLOCK];
    load_floats(y, j->a.p, j->a.type, j->index[p.r] * j->a.stride + p.c, p.n);
    for (i64 i = 0; j->b.p && i < p.n; i += BLOCK) {
        const i64 n = min64(BLOCK, p.n - i);
        load_floats(wpe, j->b.p, j->b.type, j->index2[p.r] * j->b.stride + p.c + i, n);
        for (i64 k = 0; k < n; k++) y[i + k] += wpe[k];
    }
}
static void fast_embed_fwd(void *s, mat y, mat wte, mat wpe, const i32 *ids, const i32 *pos) {
    row_job j = {.y = y, .a = wte, .b = wpe, .index = ids, .index2 = pos};
    for_rows(s, embed_fwd_row, &j, y.rows, y.cols, GRAIN);
}

/* Rows repeat an id, so a task takes all rows of a few columns: it adds in their order. */
static void embed_bwd_task(void *arg, i64 task) {
    const row_job *j = arg;
    const i64 c0 = task * BLOCK, c1 = min64(j->y.cols, c0 + BLOCK);
    for (i64 r = 0; r < j->y.rows; r++) {
        const float *restrict dy = row_of(j->y, r);
        float *restrict wte = j->a.p ? row_of(j->a, j->index[r]) : NULL;
        float *restrict wpe = j->b.p ? row_of(j->b, j->index2[r]) : NULL;
        for (i64 c = c0; wte && c < c1; c++) wte[c] += dy[c];
        for (i64 c = c0; wpe && c < c1; c++) wpe[c] += dy[c];
    }
}
static void fast_embed_bwd(void *s, mat dwte, mat dwpe, mat dy, const i32 *ids,
                           const i32 *pos) {
    row_job j = {.y = dy, .a = dwte, .b = dwpe, .index = ids, .index2 = pos};
    parallel_for(s, ceil_div(dy.cols, BLOCK), embed_bwd_task, &j);
}

static void gather_row(const row_job *j, piece p) {
    memcpy(part(j->y, p), row_of(j->a, j->index[p.r]) + p.c, (size_t)p.n * sizeof(float));
}
static void fast_gather(void *s, mat y, mat x, const i32 *rows) {
    row_job j = {.y = y, .a = x, .index = rows};
    for_rows(s, gather_row, &j, y.rows, y.cols, GRAIN);
}

static void scatter_row(const row_job *j, piece p) {
    memcpy(row_of(j->y, j->index[p.r]) + p.c, part(j->a, p), (size_t)p.n * sizeof(float));
}
static void fast_scatter(void *s, mat y, mat x, const i32 *rows) { /* rows are distinct */
    row_job j = {.y = y, .a = x, .index = rows};
    for_rows(s, scatter_row, &j, x.rows, x.cols, GRAIN);
}

static void store_row(const row_job *j, piece p) {
    for (int h = 0; h < j->from.heads; h++)
        memcpy(head_of(j->to, j->index[p.r], h), head_of(j->from, p.r, h),
               (size_t)p.n * sizeof(float));
}
static void fast_store(void *s, heads y, heads x, const i32 *slot) {
    row_job j = {.to = y, .from = x, .index = slot};
    for_rows(s, store_row, &j, x.rows, x.size, x.size);
}

static void fill_row(const row_job *j, piece p) {
    for (i64 i = 0; i < p.n; i++) part(j->y, p)[i] = j->value;
}
static void fast_fill(void *s, mat x, float value) {
    row_job j = {.y = x, .value = value};
    for_rows(s, fill_row, &j, x.rows, x.cols, GRAIN);
}

static void convert_row(const row_job *j, piece p) {
    float block[BLOCK];
    const i64 from = p.r * j->a.stride + p.c;
    u16 *y = (u16 *)j->y.p + p.r * j->y.stride + p.c;
    if (j->y.type == F32) load_floats(part(j->y, p), j->a.p, j->a.type, from, p.n);
    for (i64 i = 0; j->y.type != F32 && i < p.n; i += BLOCK) {
        const i64 n = min64(BLOCK, p.n - i);
        load_floats(block, j->a.p, j->a.type, from + i, n);
        for (i64 k = 0; k < n; k++)
            y[i + k] = j->y.type == F16 ? f32_to_f16(block[k]) : f32_to_bf16(block[k]);
    }
}
static void fast_convert(void *s, mat y, mat x) {
    row_job j = {.y = y, .a = x};
    for_rows(s, convert_row, &j, y.rows, y.cols, GRAIN);
}

/* -- Attention --------------------------------------------------------------------------------
 * No T x T matrix. A task owns up to PANELS panels of nr lanes of one head (queries, or keys
 * for dk and dv) and walks through the other side in chunks of CHUNK rows, cut to what its
 * lanes see. A chunk is packed once and meets every panel; all products are tiles of §7:
 *
 *                      scores s[row][lane]             accumulated out[d][lane]
 *   forward  keys x queries    s = K Q'                        y'  = V' p
 *   dq       keys x queries    s = K Q',  dp = V dY'           dq' = K' ds
 *   dk, dv   queries x keys    s = Q K',  dp = dY V'           dk' = Q' ds,  dv' = dY' p
 *
 * dk and dv get their own pass, which computes s and dp again (7 products where 5 would do):
 * so every number is summed by one task in one order. */
enum { CHUNK = 96, PANELS = 4 };

typedef struct attention_job {
    const kernels *f;
    heads y, q, k, v, dy, dq, dk, dv;
    mat lse, delta;
    const i32 *first, *last;
    float scale;
    i64 panels;       /* of a task: fewer for large heads, so that its slot stays in the cache */
    i64 width;        /* size of a head rounded up to whole panels of mr */
    i64 slot;         /* floats that a task needs */
    task_space space;
} attention_job;

/* What a task works with: for each panel two packed operands and two sums, (width, nr) each;
 * two chunks of scores, (CHUNK, nr); the chunk's rows packed with rows or with the head's
 * values as lanes, (CHUNK, width); and numbers per lane or per row of a chunk. */
typedef struct workbench {
    float *lane[2][PANELS], *out[2][PANELS], *s, *dp, *rows[2], *values[2];
    float top[PANELS * MAX_NR], sum[PANELS * MAX_NR], shrink[PANELS * MAX_NR];
    float lse[PANELS * MAX_NR], delta[PANELS * MAX_NR];
    i32 first[PANELS * MAX_NR], last[PANELS * MAX_NR];
    float *slot;
} workbench;

/* What score kernels know: one element per lane, or (slope_by_key) per row. */
typedef struct lane_state {
    const i32 *first, *last;
    float *top, *sum, *shrink;
    const float *lse, *delta;
    float scale;
} lane_state;

/* Scores lie as s[row][lane], lane < nr: what a tile computes, and already the panel the
 * next product wants. Forward and dq have queries in the lanes and keys in the rows, so
 * that softmax is arithmetic between whole rows. A score outside first..last is -inf. */
ALWAYS_INLINE void softmax_body(float *s, float *dp, i64 keys, i64 at, const lane_state *q,
                                i64 nr) {
    const i32 *const first = q->first, *const last = q->last;
    const float scale = q->scale;
    float top[MAX_NR], sum[MAX_NR] = {0};
    (void)dp;
    for (i64 l = 0; l < nr; l++) top[l] = q->top[l];
    for (i64 j = 0; j < keys; j++)
        for (i64 l = 0; l < nr; l++) {
            const i32 key = (i32)(at + j);
            const u32 seen = 0 - (u32)((first[l] <= key) & (key <= last[l]));
            float x = pick_bits(seen, s[j * nr + l] * scale, -INFINITY);
            s[j * nr + l] = x;
            top[l] = x > top[l] ? x : top[l];
        }
    for (i64 l = 0; l < nr; l++) { /* a query that saw nothing yet keeps sums of zero */
        const u32 none = 0 - (u32)(float_bits(top[l]) == 0xff800000);
        const float base = pick_bits(none, 0, top[l]);
        q->shrink[l] = exp_lane(q->top[l] - base);
        q->top[l] = top[l];
        top[l] = base;
    }
    for (i64 j = 0; j < keys; j++)
        for (i64 l = 0; l < nr; l++) {
            float e = exp_lane(s[j * nr + l] - top[l]);
            s[j * nr + l] = e;
            sum[l] += e;
        }
    for (i64 l = 0; l < nr; l++) q->sum[l] = q->sum[l] * q->shrink[l] + sum[l];
}

/* out (rows, nr) shrinks with its lanes' sums. */
ALWAYS_INLINE void shrink_body(float *restrict out, float *dp, i64 rows, i64 at,
                               const lane_state *q, i64 nr) {
    (void)dp, (void)at;
    const float *restrict shrink = q->shrink;
    for (i64 d = 0; d < rows; d++)
        for (i64 l = 0; l < nr; l++) out[d * nr + l] *= shrink[l];
}

/* s becomes ds = scale p (dp - delta), queries in the lanes. */
ALWAYS_INLINE void slope_by_query_body(float *restrict s, float *restrict dp, i64 keys,
                                       i64 at, const lane_state *q, i64 nr) {
    const i32 *const first = q->first, *const last = q->last;
    const float *const lse = q->lse, *const delta = q->delta, scale = q->scale;
    for (i64 j = 0; j < keys; j++)
        for (i64 l = 0; l < nr; l++) {
            const i64 e = j * nr + l;
            const i32 key = (i32)(at + j);
            const u32 seen = 0 - (u32)((first[l] <= key) & (key <= last[l]));
            float p = exp_lane(pick_bits(seen, s[e] * scale - lse[l], -INFINITY));
            s[e] = scale * p * (dp[e] - delta[l]);
        }
}

/* s becomes p and dp becomes ds, keys in the lanes. */
ALWAYS_INLINE void slope_by_key_body(float *restrict s, float *restrict dp, i64 queries,
                                     i64 at, const lane_state *q, i64 nr) {
    const float scale = q->scale;
    for (i64 j = 0; j < queries; j++) {
        const i32 first = q->first[j], last = q->last[j];
        const float lse = q->lse[j], delta = q->delta[j];
        for (i64 l = 0; l < nr; l++) {
            const i64 e = j * nr + l;
            const i32 key = (i32)(at + l);
            const u32 seen = 0 - (u32)((first <= key) & (key <= last));
            float p = exp_lane(pick_bits(seen, s[e] * scale - lse, -INFINITY));
            s[e] = p;
            dp[e] = pick_bits(seen, scale * p * (dp[e] - delta), 0);
        }
    }
}

/* One query of one head, by itself, for decoding. The softmax runs along: when a piece of
 * keys brings a new largest score, what was summed so far shrinks by exp(old - new). */
ALWAYS_INLINE float dot_lanes(const float *a, const float *b, i64 n) {
    float sum[LANES] = {0};
    OVER_LANES(n, sum[l] += a[i] * b[i]);
    return lane_sum(sum);
}

ALWAYS_INLINE void attention_row_body(void *arg, i64 task) {
    enum { PIECE = 128 };
    const attention_job *a = arg;
    const i64 H = a->q.heads, r = task / H, h = task % H, g = h / (H / a->k.heads);
    const i64 D = a->q.size, end = a->last[r] + 1;
    const float *q = head_of(a->q, r, h);
    float score[PIECE], top = -INFINITY, total = 0, *restrict y = head_of(a->y, r, h);
    for (i64 d = 0; d < D; d++) y[d] = 0;
    for (i64 from = a->first[r]; from < end; from += PIECE) {
        const i64 n = min64(PIECE, end - from);
        float sum[LANES] = {0};
        for (i64 j = 0; j < n; j++)
            score[j] = a->scale * dot_lanes(q, head_of(a->k, from + j, g), D);
        const float larger = fmaxf(top, row_max(score, n)), shrink = expf(top - larger);
        OVER_LANES(n, float e = exp_lane(score[i] - larger); score[i] = e; sum[l] += e);
        total = total * shrink + lane_sum(sum);
        for (i64 d = 0; d < D; d++) y[d] *= shrink;
        for (i64 j = 0; j < n; j++) {
            const float *restrict v = head_of(a->v, from + j, g);
            for (i64 d = 0; d < D; d++) y[d] += score[j] * v[d];
        }
        top = larger;
    }
    for (i64 d = 0; d < D; d++) y[d] /= total;
    row_of(a->lse, r)[h] = top + logf(total);
}

ALWAYS_INLINE void attention_delta_row(const row_job *j, piece p) { /* dy.y of every head: §6 */
    for (int h = 0; h < j->to.heads; h++)
        row_of(j->y, p.r)[h] = dot_lanes(head_of(j->from, p.r, h), head_of(j->to, p.r, h),
                                         j->to.size);
}

/* -- Entries per level ------------------------------------------------------------------------- */
#define ROW_ENTRY(AT, LEVEL, NAME)                                                          \
    AT FUSED static void NAME##_##LEVEL(const row_job *j, piece p) { NAME##_row(j, p); }
#define TASK_ENTRY(AT, NAME, BODY)                                                          \
    AT FUSED static void NAME(void *arg, i64 i) { BODY(arg, i); }
#define SCORE_ENTRY(AT, LEVEL, NAME, NR)                                                    \
    AT FUSED static void NAME##_##LEVEL(float *s, float *dp, i64 rows, i64 at,              \
                                        const lane_state *q) {                              \
        NAME##_body(s, dp, rows, at, q, NR);                                                \
    }
#define DEFINE_ENTRIES(AT, LEVEL, NR)                                                       \
    ROW_ENTRY(AT, LEVEL, act_fwd) ROW_ENTRY(AT, LEVEL, act_bwd) ROW_ENTRY(AT, LEVEL, mul)   \
    ROW_ENTRY(AT, LEVEL, dropout)                                                           \
    ROW_ENTRY(AT, LEVEL, norm_fwd) ROW_ENTRY(AT, LEVEL, xent) ROW_ENTRY(AT, LEVEL, sumsq)   \
    ROW_ENTRY(AT, LEVEL, adamw) ROW_ENTRY(AT, LEVEL, rope)                                  \
    TASK_ENTRY(AT, norm_bwd_##LEVEL, norm_bwd_rows)                                         \
    TASK_ENTRY(AT, attention_row_##LEVEL, attention_row_body)                               \
    ROW_ENTRY(AT, LEVEL, attention_delta)                                                   \
    SCORE_ENTRY(AT, LEVEL, softmax, NR) SCORE_ENTRY(AT, LEVEL, shrink, NR)                  \
    SCORE_ENTRY(AT, LEVEL, slope_by_query, NR) SCORE_ENTRY(AT, LEVEL, slope_by_key, NR)
#define ENTRIES(LEVEL)                                                                      \
    .f32.pack_a = pack_a_##LEVEL, .f32.pack_b = pack_b_##LEVEL, .f32.peak = peak_##LEVEL,   \
    .f32.k_per_word = 1, .merge = merge_##LEVEL, .dots = dots_##LEVEL,                      \
    .dots1 = dots1_##LEVEL, .sums = sums_##LEVEL, .act_fwd = act_fwd_##LEVEL,               \
    .act_bwd = act_bwd_##LEVEL,                                                             \
    .mul = mul_##LEVEL, .dropout = dropout_##LEVEL, .norm_fwd = norm_fwd_##LEVEL,           \
    .norm_bwd = norm_bwd_##LEVEL,                                                           \
    .xent = xent_##LEVEL, .sumsq = sumsq_##LEVEL, .adamw = adamw_##LEVEL,                   \
    .rope = rope_##LEVEL, .attention_row = attention_row_##LEVEL,                           \
    .attention_delta = attention_delta_##LEVEL, .softmax = softmax_##LEVEL,                 \
    .shrink = shrink_##LEVEL, .slope_by_query = slope_by_query_##LEVEL,                     \
    .slope_by_key = slope_by_key_##LEVEL

DEFINE_ENTRIES(AT_BASELINE, baseline, 8)
static const kernels kernels_baseline = {
    .nr = 8, .dots_rows = 2, .f32.words = 4, BASELINE_TILES, ENTRIES(baseline)};

#if NXT_HAS_X86
DEFINE_ENTRIES(AT_AVX2, avx2, 24)
static const kernels kernels_avx2 = {
    .mr = 4, .nr = 24, .dots_rows = 2, .f32.words = 8, .f32.tile = {tile4_avx2}, ENTRIES(avx2)};

DEFINE_ENTRIES(AT_AVX512, avx512, 32)
static const kernels kernels_avx512 = {
    .mr = 12, .nr = 32, .dots_rows = 4, .f32.words = 16,
    .f32.tile = {tile4_avx512, tile8_avx512, tile12_avx512}, ENTRIES(avx512)};
#endif

static void attention_space(nxt_context *cx, attention_job *a) {
    const i64 D = a->q.size, mr = cx->fast->mr, nr = cx->fast->nr;
    a->f = cx->fast;
    a->panels = max64(1, min64(PANELS, 256 / D));
    a->width = round_up(D, mr);
    a->slot = round_up((4 * a->panels * a->width + 2 * CHUNK) * nr + 4 * CHUNK * a->width, 16);
    cut_slots(&a->space, cx->workspace, WORKSPACE, a->slot); /* none: heads of many thousands */
}

static void set_bench(attention_job *a, workbench *b) {
    const i64 nr = a->f->nr, panel = a->width * nr;
    float *at = b->slot = take_slot(&a->space);
    b->s = at, b->dp = at + CHUNK * nr, at += 2 * CHUNK * nr;
    for (int i = 0; i < 2; i++) {
        b->rows[i] = at, b->values[i] = at + CHUNK * a->width, at += 2 * CHUNK * a->width;
        for (i64 p = 0; p < a->panels; p++, at += 2 * panel) {
            b->lane[i][p] = at, b->out[i][p] = at + panel;
            memset(at + panel, 0, (size_t)panel * sizeof(float));
        }
    }
    for (i64 l = 0; l < a->panels * nr; l++)
        b->top[l] = -INFINITY, b->sum[l] = 0, b->shrink[l] = 1;
}

/* `rows` rows of a head from `row` on, packed for tiles: as lanes (A of scores), or with the
 * head's values as lanes and the rows as k (A of add_product). */
static void pack_rows_of(const attention_job *a, float *out, heads x, i64 h, i64 row, i64 rows) {
    const operand o = {(const char *)head_of(x, 0, h), F32, x.stride, 1};
    a->f->f32.pack_a(out, &o, row, rows, 0, x.size);
}
static void pack_values_of(const attention_job *a, float *out, heads x, i64 h, i64 row,
                           i64 rows) {
    const operand o = {(const char *)head_of(x, 0, h), F32, 1, x.stride};
    a->f->f32.pack_a(out, &o, 0, x.size, row, rows);
}

/* The lanes' side: `count` rows of a head from `row` on, one panel behind the other. */
static void pack_lanes_of(const attention_job *a, float *const *out, heads x, i64 h, i64 row,
                          i64 count) {
    const operand o = {(const char *)head_of(x, 0, h), F32, x.stride, 1};
    for (i64 l = 0, nr = a->f->nr; l < count; l += nr)
        a->f->f32.pack_b(*out++, &o, row + l, min64(nr, count - l), 0, x.size);
}

/* Rows of a chunk, from..end; from is where a packed panel begins. */
typedef struct span { i64 from, end; } span;

/* s = X lanes: the lanes' products with the rows of a chunk. */
static void scores(const attention_job *a, float *s, const float *rows, span r,
                   const float *lanes) {
    const i64 mr = a->f->mr, nr = a->f->nr, D = a->q.size;
    for (i64 m = r.from; m < r.end; m += mr)
        a->f->f32.tile[(min64(mr, r.end - m) - 1) / 4](s + (m - r.from) * nr, nr, false,
                                                      rows + m * D, lanes, D);
}

/* out += X' s, from a chunk of `length` rows */
static void add_product(const attention_job *a, float *out, const float *values, i64 length,
                        span r, const float *s) {
    const i64 mr = a->f->mr, nr = a->f->nr, D = a->q.size;
    for (i64 d = 0; d < D; d += mr)
        a->f->f32.tile[(min64(mr, D - d) - 1) / 4](out + d * nr, nr, true,
                                                  values + d * length + r.from * mr, s,
                                                  r.end - r.from);
}

/* Writes out[d][lane] * factor[lane] to rows of a head, `count` from row n on. */
static void write_lanes(const attention_job *a, heads y, i64 h, i64 n, i64 count,
                        float *const *panels, const float *factor) {
    const i64 nr = a->f->nr;
    for (i64 l0 = 0; l0 < count; l0 += nr, panels++) {
        float *const out = *panels;
        for (i64 d = 0; d < y.size; d++)
            for (i64 l = 0; l < nr; l++) out[d * nr + l] *= factor[l0 + l];
        for (i64 l = 0; l < min64(nr, count - l0); l += 4) {
            i64 d = 0, lanes = min64(4, count - l0 - l);
            for (i64 i = 0; i < 4; i++)
                for (i64 e = 0; e < y.size; e += 16)
                    __builtin_prefetch(head_of(y, n + l0 + l + 8 + i, h) + e, 1);
            for (; lanes == 4 && d + 4 <= y.size; d += 4)
                transpose4(head_of(y, n + l0 + l, h) + d, y.stride,
                           (const char *)(out + d * nr + l), nr * 4, F32, false);
            for (; d < y.size; d++)
                for (i64 i = 0; i < lanes; i++)
                    head_of(y, n + l0 + l + i, h)[d] = out[d * nr + l + i];
        }
    }
}

/* The task's queries: `count` of them from row n0 of head h, which read key head g. One head
 * after the other, so that its keys and values stay in the cache; in it the last rows, which
 * see most, come first: the longest tasks should not be the last to start. */
typedef struct queries { i64 h, g, n0, count; } queries;

static queries take_queries(attention_job *a, workbench *b, i64 task) {
    const i64 lanes = a->panels * a->f->nr, blocks = ceil_div(a->q.rows, lanes);
    queries q = {.h = task / blocks, .n0 = (blocks - 1 - task % blocks) * lanes};
    q.g = q.h / (a->q.heads / a->k.heads);
    q.count = min64(lanes, a->q.rows - q.n0);
    set_bench(a, b);
    for (i64 i = 0; i < lanes; i++) { /* a lane without a query sees nothing */
        b->first[i] = i < q.count ? a->first[q.n0 + i] : INT32_MAX;
        b->last[i] = i < q.count ? a->last[q.n0 + i] : -1;
    }
    pack_lanes_of(a, b->lane[0], a->q, q.h, q.n0, q.count);
    return q;
}

/* The rows of a chunk of keys from `at` on that panel p sees. */
static span seen_keys(const attention_job *a, const workbench *b, i64 p, i64 at, i64 keys) {
    const i32 *first = b->first + p * a->f->nr, *last = b->last + p * a->f->nr;
    i64 low = INT64_MAX, high = -1;
    for (i64 l = 0; l < a->f->nr; l++)
        low = min64(low, first[l]), high = max64(high, last[l]);
    return (span){max64(low - at, 0) / a->f->mr * a->f->mr, min64(keys, high + 1 - at)};
}

/* The next chunk of key rows from *at on, every row of which some lane sees: rows between
 * the ranges of two sequences may hold anything, and 0 times NaN is NaN. Returns its
 * length, 0 at the end. */
static i64 next_chunk(const workbench *b, i64 count, i64 *at) {
    i64 start = INT64_MAX, end;
    for (i64 i = 0; i < count; i++)
        if (b->last[i] >= max64(*at, b->first[i])) start = min64(start, max64(*at, b->first[i]));
    if (start == INT64_MAX) return 0;
    for (i64 grown = start, again = 1; again; grown = end) {
        end = grown;
        for (i64 i = 0; i < count; i++)
            if (b->first[i] <= end) end = max64(end, b->last[i] + 1);
        again = end > grown && end < start + CHUNK;
    }
    *at = start;
    return min64(CHUNK, end - start);
}

static lane_state state_of(const attention_job *a, workbench *b, i64 panel) {
    const i64 l = panel * a->f->nr;
    return (lane_state){b->first + l,  b->last + l, b->top + l,   b->sum + l,
                        b->shrink + l, b->lse + l,  b->delta + l, a->scale};
}

static void attention_fwd_task(void *arg, i64 task) {
    attention_job *a = arg;
    workbench b;
    const queries q = take_queries(a, &b, task);
    for (i64 j = 0, keys; (keys = next_chunk(&b, q.count, &j)) > 0; j += keys) {
        pack_rows_of(a, b.rows[0], a->k, q.g, j, keys);
        pack_values_of(a, b.values[0], a->v, q.g, j, keys);
        for (i64 p = 0; p < a->panels; p++) {
            const span r = seen_keys(a, &b, p, j, keys);
            const lane_state state = state_of(a, &b, p);
            if (r.from >= r.end) continue;
            scores(a, b.s, b.rows[0], r, b.lane[0][p]);
            a->f->softmax(b.s, NULL, r.end - r.from, j + r.from, &state);
            a->f->shrink(b.out[0][p], NULL, a->q.size, 0, &state);
            add_product(a, b.out[0][p], b.values[0], keys, r, b.s);
        }
    }
    for (i64 i = 0; i < q.count; i++) {
        row_of(a->lse, q.n0 + i)[q.h] = b.top[i] + logf(b.sum[i]);
        b.sum[i] = 1 / b.sum[i];
    }
    write_lanes(a, a->y, q.h, q.n0, q.count, b.out[0], b.sum);
    give_slot(&a->space, b.slot);
}

/* Panels pay when neighbouring rows see the same keys. One row per sequence (decoding) has
 * none: then each row goes by itself. */
static bool rows_share_keys(const attention_job *a) {
    i64 strangers = 0, N = a->q.rows;
    for (i64 n = 1; n < N; n++)
        strangers += a->first[n] > a->last[n - 1] || a->last[n] < a->first[n - 1];
    return N >= 4 && strangers * 4 < N;
}

static void fast_attention_fwd(void *s, heads y, mat lse, heads q, heads k, heads v,
                               const i32 *first, const i32 *last, float scale) {
    attention_job a = {.y = y, .q = q, .k = k, .v = v, .lse = lse, .first = first,
                       .last = last, .scale = scale};
    attention_space(s, &a);
    if (rows_share_keys(&a) && a.slot <= WORKSPACE)
        parallel_for(s, ceil_div(q.rows, a.panels * a.f->nr) * q.heads, attention_fwd_task, &a);
    else parallel_for(s, q.rows * q.heads, a.f->attention_row, &a);
}

/* lse and delta of `rows` queries from row n on */
static void take_statistics(const attention_job *a, workbench *b, i64 h, i64 n, i64 rows) {
    for (i64 i = 0; i < rows; i++) {
        b->lse[i] = row_of(a->lse, n + i)[h];
        b->delta[i] = row_of(a->delta, n + i)[h];
    }
}

static void attention_dq_task(void *arg, i64 task) {
    attention_job *a = arg;
    workbench b;
    const queries q = take_queries(a, &b, task);
    pack_lanes_of(a, b.lane[1], a->dy, q.h, q.n0, q.count);
    take_statistics(a, &b, q.h, q.n0, q.count);
    for (i64 i = q.count; i < a->panels * a->f->nr; i++) b.lse[i] = b.delta[i] = 0;
    for (i64 j = 0, keys; (keys = next_chunk(&b, q.count, &j)) > 0; j += keys) {
        pack_rows_of(a, b.rows[0], a->k, q.g, j, keys);
        pack_rows_of(a, b.rows[1], a->v, q.g, j, keys);
        pack_values_of(a, b.values[0], a->k, q.g, j, keys);
        for (i64 p = 0; p < a->panels; p++) {
            const span r = seen_keys(a, &b, p, j, keys);
            const lane_state state = state_of(a, &b, p);
            if (r.from >= r.end) continue;
            scores(a, b.s, b.rows[0], r, b.lane[0][p]);
            scores(a, b.dp, b.rows[1], r, b.lane[1][p]);
            a->f->slope_by_query(b.s, b.dp, r.end - r.from, j + r.from, &state);
            add_product(a, b.out[0][p], b.values[0], keys, r, b.s);
        }
    }
    write_lanes(a, a->dq, q.h, q.n0, q.count, b.out[0], b.shrink);
    give_slot(&a->space, b.slot);
}

/* The queries of a chunk (n, rows) that see one of `count` keys from `key` on. */
static span seen_by(const attention_job *a, i64 n, i64 rows, i64 key, i64 count) {
    const i32 *const first = a->first + n, *const last = a->last + n;
    span r = {0, rows};
    while (r.from < r.end && (first[r.from] >= key + count || last[r.from] < key)) r.from++;
    while (r.from < r.end && (first[r.end - 1] >= key + count || last[r.end - 1] < key)) r.end--;
    r.from = r.from / a->f->mr * a->f->mr;
    return r;
}

/* One chunk of queries of head h with all panels of a task's keys. */
static void attention_dkv_chunk(const attention_job *a, workbench *b, i64 h, i64 n, i64 rows,
                                i64 key, i64 count) {
    const i64 nr = a->f->nr;
    take_statistics(a, b, h, n, rows);
    pack_rows_of(a, b->rows[0], a->q, h, n, rows);
    pack_rows_of(a, b->rows[1], a->dy, h, n, rows);
    pack_values_of(a, b->values[0], a->q, h, n, rows);
    pack_values_of(a, b->values[1], a->dy, h, n, rows);
    for (i64 p = 0; p * nr < count; p++) {
        const span r = seen_by(a, n, rows, key + p * nr, min64(nr, count - p * nr));
        const lane_state q = {.first = a->first + n + r.from, .last = a->last + n + r.from,
                              .lse = b->lse + r.from, .delta = b->delta + r.from,
                              .scale = a->scale};
        if (r.from >= r.end) continue;
        scores(a, b->s, b->rows[0], r, b->lane[0][p]);
        scores(a, b->dp, b->rows[1], r, b->lane[1][p]);
        a->f->slope_by_key(b->s, b->dp, r.end - r.from, key + p * nr, &q);
        add_product(a, b->out[0][p], b->values[0], rows, r, b->dp);
        add_product(a, b->out[1][p], b->values[1], rows, r, b->s);
    }
}

static void attention_dkv_task(void *arg, i64 task) {
    attention_job *a = arg;
    const i64 lanes = a->panels * a->f->nr, blocks = ceil_div(a->k.rows, lanes);
    const i64 g = task / blocks, key = task % blocks * lanes, N = a->q.rows;
    const i64 group = a->q.heads / a->k.heads;
    const i64 count = min64(lanes, a->k.rows - key);
    workbench b;
    set_bench(a, &b);
    pack_lanes_of(a, b.lane[0], a->k, g, key, count);
    pack_lanes_of(a, b.lane[1], a->v, g, key, count);
    for (i64 n = 0; n < N; n += CHUNK) {
        const span r = seen_by(a, n, min64(CHUNK, N - n), key, count);
        for (i64 h = g * group; r.from < r.end && h < (g + 1) * group; h++)
            attention_dkv_chunk(a, &b, h, n + r.from, r.end - r.from, key, count);
    }
    write_lanes(a, a->dk, g, key, count, b.out[0], b.shrink);
    write_lanes(a, a->dv, g, key, count, b.out[1], b.shrink);
    give_slot(&a->space, b.slot);
}

static void fast_attention_bwd(void *s, heads dq, heads dk, heads dv, heads dy, heads y,
                               mat lse, mat work, heads q, heads k, heads v, const i32 *first,
                               const i32 *last, float scale) {
    attention_job a = {.y = y, .q = q, .k = k, .v = v, .dy = dy, .dq = dq, .dk = dk, .dv = dv,
                       .lse = lse, .delta = work, .first = first, .last = last,
                       .scale = scale};
    attention_space(s, &a);
    if (a.slot > WORKSPACE) {
        ref_attention_bwd(s, dq, dk, dv, dy, y, lse, work, q, k, v, first, last, scale);
        return;
    }
    const i64 lanes = a.panels * a.f->nr;
    row_job delta = {.y = work, .to = y, .from = dy};
    for_rows(s, a.f->attention_delta, &delta, q.rows, (i64)q.heads * q.size, INT64_MAX);
    parallel_for(s, ceil_div(q.rows, lanes) * q.heads, attention_dq_task, &a);
    parallel_for(s, ceil_div(k.rows, lanes) * k.heads, attention_dkv_task, &a);
}

/* -- The table ------------------------------------------------------------------------------ */
static void fill_level(nxt_context *cx, nxt_backend *t, int level) {
    if (level == 0) return;
    cx->fast = &kernels_baseline;
#if NXT_HAS_X86
    if (level == 2) cx->fast = &kernels_avx2;
    if (level == 3) cx->fast = &kernels_avx512;
#endif
    t->matmul = fast_matmul, t->bias_bwd = fast_bias_bwd;
    t->embed_fwd = fast_embed_fwd, t->embed_bwd = fast_embed_bwd;
    t->norm_fwd = fast_norm_fwd, t->norm_bwd = fast_norm_bwd;
    t->attention_fwd = fast_attention_fwd, t->attention_bwd = fast_attention_bwd;
    t->act_fwd = fast_act_fwd, t->act_bwd = fast_act_bwd, t->rope = fast_rope;
    t->mul = fast_mul, t->dropout = fast_dropout;
    t->gather = fast_gather, t->scatter = fast_scatter;
    t->store = fast_store, t->fill = fast_fill, t->convert = fast_convert;
    t->xent = fast_xent, t->sumsq = fast_sumsq, t->adamw = fast_adamw;
}

/* FLOP per second on registers, of all threads, at this moment. 0: no such instruction. */
static double peak_now(nxt_context *cx, bool bf16) {
    const tiling *t = !cx->fast ? NULL : bf16 ? bf16_matmul(cx) : &cx->fast->f32;
    float sink[256]; /* one for each thread there can be: §4 */
    if (!t) return 0;
    const double start = seconds_now(), flop = 2.0 * PEAK_CHAINS * PEAK_STEPS * t->k_per_word;
    parallel_for(cx, cx->threads, t->peak, sink);
    return flop * t->words * cx->threads / (seconds_now() - start);
}

/* Products of operands rounded to bf16, where the processor has such an instruction. Returns
 * whether they are now in use. */
static bool use_bf16(nxt_context *cx, bool on) {
    if (cx->config.backend || !cx->fast) return false;
    on = on && bf16_matmul(cx) != NULL;
    cx->table.matmul = on ? fast_matmul_bf16 : fast_matmul;
    return on;
}
#else
static bool use_bf16(nxt_context *cx, bool on) {
    (void)cx, (void)on;
    return false;
}
static bool bf16_pays(const nxt_context *cx) {
    (void)cx;
    return false;
}
static double peak_now(nxt_context *cx, bool bf16) {
    (void)cx, (void)bf16;
    return 0;
}
static void fill_level(nxt_context *cx, nxt_backend *t, int level) {
    (void)cx, (void)t, (void)level;
}
#endif

/* ============================================================================
 * § 9  The operation table
 *
 * One table of operations is all that a device is to the rest of the file (the idea of
 * BLIS and of miniaudio's backends): start from the reference, override what this machine
 * does faster, and hand over the table. A device with its own memory must bring every
 * entry. The model code below calls the short wrappers that follow; they are the only
 * callers of the table, so counting, fusing and adapters have one place to live.
 */
static const char *const cpu_names[] = {"reference", "baseline", "avx2", "avx512"};

/* The best kernels this processor runs, or the ones asked for by name. */
static nxt_status choose_cpu(nxt_context *cx) {
    const int best = cpu_level();
    int level = best;
    if (cx->config.cpu) {
        for (level = 0; level < COUNT(cpu_names); level++)
            if (!strcmp(cpu_names[level], cx->config.cpu)) break;
        if (level > best)
            return fail(cx, level < COUNT(cpu_names) ? NXT_UNSUPPORTED : NXT_ARGUMENT,
                        "kernels \"%s\": this machine and build have reference to %s",
                        cx->config.cpu, cpu_names[best]);
    }
    cx->table = reference_ops;
    fill_level(cx, &cx->table, level);
    cx->cpu = cx->table.name = cpu_names[level];
    return NXT_OK;
}

nxt_context_config nxt_context_config_default(void) { return (nxt_context_config){0}; }

/* The context's own memory came from the allocator directly: it is what counts the rest. */
void nxt_context_destroy(nxt_context *cx) {
    if (!cx) return;
    nxt_profile_stop(cx);
    pool_destroy(cx);
    mem_drop(cx, cx->workspace);
    arena_free(&(arena){.cx = cx, .chunks = cx->kept});
    cx->config.release(cx->config.user, cx, sizeof *cx);
}

/* A missing operation would be noticed in the middle of a step. */
static bool backend_is_complete(const nxt_backend *b) {
    return b->alloc && b->release && b->upload && b->download && b->sync && b->embed_fwd
           && b->embed_bwd && b->norm_fwd && b->norm_bwd && b->matmul && b->bias_bwd && b->rope
           && b->attention_fwd && b->attention_bwd && b->act_fwd && b->act_bwd && b->mul
           && b->dropout
           && b->gather && b->scatter && b->store && b->fill && b->convert && b->xent
           && b->sumsq && b->adamw;
}

/* A host's backend takes the place of the table above; everything else is the same. */
nxt_status nxt_context_create(nxt_context **out, const nxt_context_config *config) {
    nxt_context_config c = config ? *config : nxt_context_config_default();
    nxt_status status;
    *out = NULL;
    if (!c.allocate != !c.release || c.threads < 0) return NXT_ARGUMENT;
    if (c.backend && !backend_is_complete(c.backend)) return NXT_ARGUMENT;
    if (!c.allocate) c.allocate = default_allocate, c.release = default_release;
    nxt_context *cx = c.allocate(c.user, sizeof *cx);
    if (!cx) return NXT_MEMORY;
    memset(cx, 0, sizeof *cx);
    cx->config = c;
    cx->threads = c.threads ? c.threads : usable_processors();
    cx->device = c.backend ? c.backend_state : cx;
    cx->ops = c.backend ? c.backend : &cx->table;
    TRY_GOTO(failed, choose_cpu(cx));
    TRY_GOTO(failed, mem_get(cx, &cx->workspace, (i64)matmul_workspace(), 1));
    if (cx->threads > 1 && !c.parallel_for) TRY_GOTO(failed, pool_create(cx, cx->threads));
    *out = cx;
    return NXT_OK;
failed:
    nxt_context_destroy(cx);
    return status;
}

int nxt_use_bf16(nxt_context *cx, int on) { return use_bf16(cx, on && bf16_pays(cx)); }
int nxt_context_threads(const nxt_context *cx) { return cx->threads; }
const char *nxt_context_cpu(const nxt_context *cx) { return cx->cpu; }

void nxt_context_memory(const nxt_context *cx, size_t *now, size_t *peak) {
    if (now) *now = cx->bytes_now;
    if (peak) *peak = cx->bytes_peak;
}

/* -- Views ----------------------------------------------------------------------------- */
static inline mat no_mat(void) { return (mat){0}; }
static inline mat matrix(void *p, i64 rows, i64 cols) {
    return (mat){.p = p, .type = F32, .rows = rows, .cols = cols, .stride = cols};
}
static inline mat rows_from(mat m, i64 at, i64 rows) {
    m.p = (char *)m.p + at * m.stride * dtype_size(m.type);
    m.rows = rows;
    return m;
}
static inline mat cols_from(mat m, i64 at, i64 cols) {
    m.p = (char *)m.p + at * dtype_size(m.type);
    m.cols = cols;
    return m;
}
/* `count` heads of `size` values inside m, the first at column `at`, `step` apart. */
static inline heads heads_in(mat m, i64 at, i64 step, int count, int size) {
    return (heads){.p = (float *)m.p + at, .type = F32, .rows = m.rows, .stride = m.stride,
                   .step = step, .heads = count, .size = size};
}

/* -- Parameters as the operations see them --------------------------------------------- */
/* A parameter: a name, the weight that passes read, and what training adds to it. */
typedef struct param {
    const char *name, *also; /* in the files; a second name or NULL */
    mat w;            /* the weight in use: f32 master, or the file's own bytes */
    mat stored;       /* the file's bytes; p NULL for a model that has no file */
    mat grad;         /* p NULL: frozen. Gradients accumulate (I8) */
    bool in_first;    /* stored (in, out), as GPT-2 does; else (out, in) */
    bool product;     /* a matrix product makes its gradient, and can set it or add to it */
    bool fresh;       /* the gradient counts as zero, whatever it holds */
    bool decay;       /* weight decay applies */
    bool frozen;      /* training leaves it as it is */
    int init;         /* how a new model starts: §14 */
    int role;         /* what it is in the model, ... */
    i64 layer;        /* ... and where: §14 */
} param;

/* What the adapters of a pass share: room for the narrow products, and dropout. */
typedef struct lora_work {
    mat u, du;       /* (N, r) each */
    mat x, out;      /* (N, widest input): the input after dropout, and its gradient */
    const u64 *keys; /* (N) of the rows; NULL: no dropout in this pass */
    float rate;
} lora_work;

/* An adapter of one linear layer: W' + scale A' B' in the place of W'. */
typedef struct lora {
    param *a, *b; /* (r, in), (out, r) */
    float scale;
    u64 site;     /* which layer, for dropout */
    const lora_work *work;
} lora;

typedef struct linear_params { param *w, *b; lora *lora; } linear_params; /* b, lora: or NULL */
typedef struct norm_params { param *w, *b; } norm_params;

static inline mat weight(const param *p) { return p ? p->w : no_mat(); }
static inline mat grad(const param *p) { return p ? p->grad : no_mat(); }

/* -- Wrappers -------------------------------------------------------------------------- */
/* Every matrix product of the model. The shapes were fixed when the model was bound to its
 * files, so a mismatch could only be a mistake in this file. */
static void matmul(nxt_context *cx, mat c, mat a, mat b, int trans, float alpha, float beta,
                   mat bias) {
    i64 K = trans & NXT_TRANS_A ? a.rows : a.cols;
    NXT_ASSERT(c.rows == (trans & NXT_TRANS_A ? a.cols : a.rows));
    NXT_ASSERT(c.cols == (trans & NXT_TRANS_B ? b.rows : b.cols));
    NXT_ASSERT(K == (trans & NXT_TRANS_B ? b.cols : b.rows));
    if (!c.rows || !c.cols) return;
    cx->flops += 2.0 * (double)c.rows * (double)c.cols * (double)K;
    cx->ops->matmul(cx->device, c, a, b, trans, alpha, beta, bias);
}

/* A product that makes a weight's gradient. The first one into a fresh gradient sets it: a step
 * that had to clear its gradients and then add to them would walk through another two copies
 * of the weights. */
static void weight_grad(nxt_context *cx, param *w, mat left, mat right, float alpha) {
    if (!w->grad.p) return;
    matmul(cx, w->grad, left, right, NXT_TRANS_A, alpha, w->fresh ? 0 : 1, no_mat());
    w->fresh = false;
}

/* -- Adapters: LoRA [Hu21] ---------------------------------------------------------------
 * A fine-tuned matrix differs from its base by something of low rank. So W stays as it is, and
 * what is learnt is A (r, in) and B (out, r), with r of 4 to 64:
 *
 *     y = x W' + b + scale u B'      u = x A'      scale = alpha / r (or alpha / sqrt(r))
 *     du = scale dy B      dB += scale dy' u      dA += du' x      dx += du A
 *
 * B starts at zero, so the adapted model starts as its base. u is computed again in backward:
 * it costs r / out of the layer. With dropout A sees x after it, W does not. */
static mat lora_input(nxt_context *cx, mat x, const lora *l) {
    const lora_work *k = l->work;
    if (!k->keys) return x;
    mat dropped = {k->x.p, F32, x.rows, x.cols, x.cols};
    cx->ops->dropout(cx->device, dropped, x, k->keys, l->site, k->rate, 0);
    return dropped;
}

static mat lora_narrow(const lora *l, mat room, i64 rows) { /* (rows, r), this layer's r */
    return (mat){room.p, F32, rows, l->a->w.rows, l->a->w.rows};
}

static void lora_fwd(nxt_context *cx, mat y, mat x, const lora *l) {
    const mat u = lora_narrow(l, l->work->u, x.rows);
    matmul(cx, u, lora_input(cx, x, l), weight(l->a), NXT_TRANS_B, 1, 0, no_mat());
    matmul(cx, y, u, weight(l->b), NXT_TRANS_B, l->scale, 1, no_mat());
}

static void lora_bwd(nxt_context *cx, mat dx, mat dy, mat x, const lora *l) {
    const lora_work *k = l->work;
    const mat u = lora_narrow(l, k->u, x.rows), du = lora_narrow(l, k->du, x.rows);
    const mat in = lora_input(cx, x, l);
    matmul(cx, u, in, weight(l->a), NXT_TRANS_B, 1, 0, no_mat());
    matmul(cx, du, dy, weight(l->b), 0, l->scale, 0, no_mat());
    weight_grad(cx, l->b, dy, u, l->scale);
    weight_grad(cx, l->a, du, in, 1);
    if (!k->keys) {
        matmul(cx, dx, du, weight(l->a), 0, 1, 1, no_mat());
        return;
    }
    mat out = {k->out.p, F32, x.rows, x.cols, x.cols};
    matmul(cx, out, du, weight(l->a), 0, 1, 0, no_mat());
    cx->ops->dropout(cx->device, dx, out, k->keys, l->site, k->rate, 1);
}

/* y = x W' + b, or y += with beta 1. A weight stored (in, out) is the transposed one already. */
static void linear(nxt_context *cx, mat y, mat x, linear_params l, float beta) {
    matmul(cx, y, x, weight(l.w), l.w->in_first ? 0 : NXT_TRANS_B, 1, beta, weight(l.b));
    if (l.lora) lora_fwd(cx, y, x, l.lora);
}

/* dx = dy W + beta dx (unless dx is absent), dW += dy' x, db += column sums: frozen ones are
 * skipped. */
static void linear_bwd(nxt_context *cx, mat dx, mat dy, mat x, linear_params l, float beta) {
    const bool swap = l.w->in_first;
    if (dx.p) matmul(cx, dx, dy, weight(l.w), swap ? NXT_TRANS_B : 0, 1, beta, no_mat());
    weight_grad(cx, l.w, swap ? x : dy, swap ? dy : x, 1);
    if (grad(l.b).p) cx->ops->bias_bwd(cx->device, grad(l.b), dy);
    if (l.lora) lora_bwd(cx, dx, dy, x, l.lora);
}

/* Norms of both kinds: §14 says which. */
static void norm(nxt_context *cx, mat y, mat stats, mat x, norm_params w, float eps,
                 nxt_norm_kind kind) {
    NXT_ASSERT(y.rows == x.rows && weight(w.w).cols == x.cols && stats.cols == 2);
    cx->ops->norm_fwd(cx->device, y, stats, x, weight(w.w), weight(w.b), eps, kind);
}

/* dx grows: the stream's gradient is the sum of what its readers send back. */
static void norm_bwd(nxt_context *cx, mat dx, mat dy, mat x, mat stats, norm_params w,
                     nxt_norm_kind kind) {
    cx->ops->norm_bwd(cx->device, dx, grad(w.w), grad(w.b), dy, x, weight(w.w), stats, kind);
}

static void copy_rows(nxt_context *cx, mat y, mat x) { cx->ops->convert(cx->device, y, x); }

/* -- The profile ------------------------------------------------------------------------------
 * Everything a model computes passes through the table. So a table that looks at the clock,
 * calls the other table and looks again is a profiler, and the model does not know. A row is
 * an operation, or the products of one kind with weights of one shape; FLOP and bytes are what
 * the operation needs at least, each operand read and each result written once. */
enum { PROFILE_ROWS = 128 };

typedef struct profile {
    const nxt_backend *ops; /* the table that does the work, and its state */
    void *device;
    nxt_backend table;      /* the one that takes its place */
    nxt_status status;      /* the first failure of the device: profile_sync hands it on */
    i64 count;
    nxt_profile_row row[PROFILE_ROWS];
} profile;

static double mat_bytes(mat m) {
    return m.p ? (double)m.rows * (double)m.cols * (double)dtype_size(m.type) : 0;
}
static double heads_bytes(heads x) { return 4.0 * (double)x.rows * x.heads * x.size; }

/* Closes a call that began at `start`. The device may still be busy: its time is the op's. */
static void profile_record(profile *p, const char *op, i64 rows, i64 out, i64 in, double start,
                           double flop, double bytes) {
    nxt_profile_row *r = p->row, *const end = p->row + p->count;
    const nxt_status status = p->ops->sync(p->device);
    if (p->status == NXT_OK) p->status = status;
    while (r < end && (strcmp(r->op, op) || r->out != out || r->in != in)) r++;
    if (r == end && p->count == PROFILE_ROWS) return;
    if (r == end) p->row[p->count++] = (nxt_profile_row){.op = op, .out = out, .in = in};
    r->calls++;
    r->rows += rows;
    r->seconds += seconds_now() - start;
    r->flop += flop;
    r->bytes += bytes;
}

/* PROFILED(name, (parameters), (arguments), FLOP, bytes): the entry of one operation. */
#define PROFILED(OP, PARAMETERS, ARGUMENTS, FLOP, BYTES)                                    \
    static void profile_##OP PARAMETERS {                                                   \
        profile *p = s;                                                                     \
        const double start = seconds_now();                                                 \
        s = p->device;                                                                      \
        p->ops->OP ARGUMENTS;                                                               \
        profile_record(p, #OP, 0, 0, 0, start, FLOP, BYTES);                                \
    }
PROFILED(embed_fwd, (void *s, mat y, mat wte, mat wpe, const i32 *ids, const i32 *pos),
         (s, y, wte, wpe, ids, pos), 0, 2 * mat_bytes(y))
PROFILED(embed_bwd, (void *s, mat wte, mat wpe, mat dy, const i32 *ids, const i32 *pos),
         (s, wte, wpe, dy, ids, pos), 0, 3 * mat_bytes(dy))
PROFILED(norm_fwd, (void *s, mat y, mat stats, mat x, mat w, mat b, float eps,
         nxt_norm_kind kind), (s, y, stats, x, w, b, eps, kind), 0, 2 * mat_bytes(x))
PROFILED(norm_bwd, (void *s, mat dx, mat dw, mat db, mat dy, mat x, mat w, mat stats,
         nxt_norm_kind kind), (s, dx, dw, db, dy, x, w, stats, kind), 0, 4 * mat_bytes(x))
PROFILED(bias_bwd, (void *s, mat db, mat dy), (s, db, dy), 0, mat_bytes(dy))
PROFILED(rope, (void *s, heads x, const float *freq, int pairs, const i32 *pos, float sign),
         (s, x, freq, pairs, pos, sign), 0, 16.0 * (double)x.rows * x.heads * pairs)
PROFILED(act_fwd, (void *s, mat y, mat x, nxt_act_kind kind), (s, y, x, kind), 0,
         2 * mat_bytes(x))
PROFILED(act_bwd, (void *s, mat dx, mat dy, mat x, nxt_act_kind kind), (s, dx, dy, x, kind),
         0, 3 * mat_bytes(x))
PROFILED(dropout, (void *s, mat y, mat x, const u64 *key, u64 site, float rate, float beta),
         (s, y, x, key, site, rate, beta), 0, (beta == 0 ? 2 : 3) * mat_bytes(y))
PROFILED(mul, (void *s, mat y, mat a, mat b), (s, y, a, b), 0, 3 * mat_bytes(y))
PROFILED(gather, (void *s, mat y, mat x, const i32 *rows), (s, y, x, rows), 0,
         2 * mat_bytes(y))
PROFILED(scatter, (void *s, mat y, mat x, const i32 *rows), (s, y, x, rows), 0,
         2 * mat_bytes(x))
PROFILED(store, (void *s, heads y, heads x, const i32 *slot), (s, y, x, slot), 0,
         2 * heads_bytes(x))
PROFILED(fill, (void *s, mat x, float value), (s, x, value), 0, mat_bytes(x))
PROFILED(convert, (void *s, mat y, mat x), (s, y, x), 0, mat_bytes(y) + mat_bytes(x))
PROFILED(xent, (void *s, float *loss, mat logits, const i32 *label, int backward),
         (s, loss, logits, label, backward), 0, (backward ? 2 : 1) * mat_bytes(logits))
PROFILED(sumsq, (void *s, double *out, mat x), (s, out, x), 0, mat_bytes(x))
PROFILED(adamw, (void *s, const nxt_adamw *u), (s, u), 0, 28.0 * (double)u->n)

/* The three products of a linear layer, told apart by what is transposed: §6. */
static void profile_matmul(void *s, mat c, mat a, mat b, int trans, float alpha, float beta,
                           mat bias) {
    profile *p = s;
    const i64 M = c.rows, N = c.cols, K = trans & NXT_TRANS_A ? a.rows : a.cols;
    const double start = seconds_now(), flop = 2 * (double)M * (double)N * (double)K;
    const double bytes = mat_bytes(a) + mat_bytes(b) + (beta != 0 ? 2 : 1) * mat_bytes(c);
    p->ops->matmul(p->device, c, a, b, trans, alpha, beta, bias);
    if (trans & NXT_TRANS_B) profile_record(p, "Y = X W'", M, N, K, start, flop, bytes);
    else if (trans) profile_record(p, "dW += dY' X", K, M, N, start, flop, bytes);
    else profile_record(p, "dX = dY W", M, K, N, start, flop, bytes);
}

/* Pairs of a row and a key it sees. */
static double pairs_seen(heads q, const i32 *first, const i32 *last) {
    double pairs = 0;
    for (i64 n = 0; n < q.rows; n++) pairs += last[n] - first[n] + 1;
    return pairs * q.heads;
}

static void profile_attention_fwd(void *s, heads y, mat lse, heads q, heads k, heads v,
                                  const i32 *first, const i32 *last, float scale) {
    profile *p = s;
    const double start = seconds_now(), pairs = pairs_seen(q, first, last);
    p->ops->attention_fwd(p->device, y, lse, q, k, v, first, last, scale);
    profile_record(p, "attention_fwd", 0, 0, 0, start, 4 * pairs * q.size, 4 * heads_bytes(q));
}

static void profile_attention_bwd(void *s, heads dq, heads dk, heads dv, heads dy, heads y,
                                  mat lse, mat work, heads q, heads k, heads v,
                                  const i32 *first, const i32 *last, float scale) {
    profile *p = s;
    const double start = seconds_now(), pairs = pairs_seen(q, first, last);
    p->ops->attention_bwd(p->device, dq, dk, dv, dy, y, lse, work, q, k, v, first, last, scale);
    profile_record(p, "attention_bwd", 0, 0, 0, start, 10 * pairs * q.size, 8 * heads_bytes(q));
}

static void *profile_alloc(void *s, size_t bytes) {
    const profile *p = s;
    return p->ops->alloc(p->device, bytes);
}
static void profile_release(void *s, void *memory) {
    const profile *p = s;
    p->ops->release(p->device, memory);
}
static void profile_upload(void *s, void *to, const void *from, size_t bytes) {
    const profile *p = s;
    p->ops->upload(p->device, to, from, bytes);
}
static void profile_download(void *s, void *to, const void *from, size_t bytes) {
    const profile *p = s;
    p->ops->download(p->device, to, from, bytes);
}
static nxt_status profile_sync(void *s) {
    profile *p = s;
    const nxt_status last = p->ops->sync(p->device), first = p->status;
    p->status = NXT_OK;
    return first != NXT_OK ? first : last;
}

#define PROFILE(OP) .OP = profile_##OP
nxt_status nxt_profile_start(nxt_context *cx) {
    nxt_profile_stop(cx);
    TRY(mem_zero(cx, &cx->profile, 1, sizeof *cx->profile));
    profile *p = cx->profile;
    p->ops = cx->ops, p->device = cx->device;
    p->table = (nxt_backend){
        .name = p->ops->name, PROFILE(alloc), PROFILE(release), PROFILE(upload),
        PROFILE(download), PROFILE(sync), PROFILE(embed_fwd), PROFILE(embed_bwd),
        PROFILE(norm_fwd), PROFILE(norm_bwd), PROFILE(matmul), PROFILE(bias_bwd),
        PROFILE(rope), PROFILE(attention_fwd), PROFILE(attention_bwd), PROFILE(act_fwd),
        PROFILE(act_bwd), PROFILE(mul), PROFILE(dropout), PROFILE(gather), PROFILE(scatter),
        PROFILE(store),
        PROFILE(fill), PROFILE(convert), PROFILE(xent), PROFILE(sumsq), PROFILE(adamw)};
    cx->ops = &p->table, cx->device = p;
    return NXT_OK;
}
#undef PROFILE
#undef PROFILED

void nxt_profile_stop(nxt_context *cx) {
    if (!cx->profile) return;
    cx->ops = cx->profile->ops, cx->device = cx->profile->device;
    mem_drop(cx, cx->profile);
    cx->profile = NULL;
}

i64 nxt_profile_read(const nxt_context *cx, nxt_profile_row *rows, i64 capacity) {
    const i64 n = cx->profile ? cx->profile->count : 0;
    if (n && capacity > 0)
        memcpy(rows, cx->profile->row, (size_t)min64(n, capacity) * sizeof *rows);
    return n;
}

/* Reading is measured on more memory than any cache holds, by summing squares. */
nxt_status nxt_measure_limits(nxt_context *cx, nxt_limits *limits) {
    enum { FLOATS = 64 << 20 };
    float *memory;
    double sum = 0;
    *limits = (nxt_limits){0};
    TRY(mem_zero(cx, &memory, FLOATS, sizeof *memory));
    for (int run = 0; run < 20; run++) {
        limits->f32 = fmax(limits->f32, peak_now(cx, false));
        limits->bf16 = fmax(limits->bf16, peak_now(cx, true));
    }
    for (int run = 0; run < 5; run++) {
        const double start = seconds_now();
        cx->table.sumsq(cx, &sum, matrix(memory, 1, FLOATS));
        limits->read = fmax(limits->read, sizeof(float) * (double)FLOATS / (seconds_now() - start));
    }
    mem_drop(cx, memory);
    return NXT_OK;
}

/* ============================================================================
 * § 10  JSON
 *
 * Three files of a model are JSON (config, tokenizer, the head of safetensors), and all
 * of them come from strangers. The reader is strict [RFC8259]: one value, valid UTF-8,
 * real numbers, at most JSON_DEPTH containers inside each other; whatever it refuses it
 * names by line and column. It calls itself for what is inside a container, which
 * JSON_DEPTH bounds, and it makes two allocations that matter: nodes, and one pool for all
 * texts. Values are read-only afterwards. Duplicate keys are kept; json_get finds the last,
 * as Python does.
 */
typedef enum json_kind {
    JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT
} json_kind;

/* A node: one value, and the name it has when it is a member of an object. Children hang in
 * a list, in the order of the file; whoever needs to look up many of them makes an index
 * (tokenizer and weights do). Texts point into the pool, not into the source, which may go
 * once it was parsed.
 *
 *     {"shape": [2, 3], "dtype": "F32"}
 *
 *     object, count 2
 *       first: array, key "shape", count 2    next: string "F32", key "dtype"
 *                first: number 2    next: number 3 */
typedef struct json {
    json_kind kind;
    const char *key;          /* of a member of an object: unescaped, NUL-terminated */
    i64 key_length;
    const char *text;         /* a string, unescaped, may hold NUL; or a number's literal */
    i64 length;
    double number;
    i64 count;                /* items or members */
    struct json *first, *next; /* children in order; the next sibling */
} json;

/* Far more than any real file has, and little enough for the stack. */
enum { JSON_DEPTH = 64 };

typedef struct json_reader {
    arena *a;
    const char *where;            /* the file's name, for errors */
    i64 line;                     /* the number of the text's first line */
    const char *text, *p, *end;
    char *pool;                   /* where the next text goes */
} json_reader;

/* The length of the UTF-8 sequence at p (n > 0 bytes are there) and its code point; 0 when
 * it is not valid: cut short, overlong, a surrogate, or above U+10FFFF.
 *
 *     1 byte    0xxxxxxx                               from 0
 *     2 bytes   110xxxxx 10xxxxxx                      from U+0080
 *     3 bytes   1110xxxx 10xxxxxx 10xxxxxx             from U+0800
 *     4 bytes   11110xxx 10xxxxxx 10xxxxxx 10xxxxxx    from U+10000
 *
 * The least code point of each length is checked, or '/' could be hidden in two bytes. */
static int utf8_decode(const char *p, i64 n, u32 *code) {
    const u8 *s = (const u8 *)p;
    static const u32 least[] = {0, 0, 0x80, 0x800, 0x10000};
    int size = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (size == 0 || size > n || s[0] > 0xf4) return 0;
    u32 c = size == 1 ? s[0] : s[0] & (0x7fu >> size);
    for (int i = 1; i < size; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    if (c < least[size] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *code = c;
    return size;
}

/* Writes a code point as UTF-8; returns the bytes used, at most 4. */
static int utf8_encode(char *out, u32 c) {
    if (c < 0x80) return out[0] = (char)c, 1;
    int size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = size - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00 >> size & 0xff) | c);
    return size;
}

/* Where `at` is, counted only now that somebody asks: the parser itself keeps no line
 * numbers. Columns count characters, as editors do. Whatever is missing at the end of the
 * text, the cause is the same one. */
static nxt_status json_fail(const json_reader *r, const char *at, const char *reason) {
    i64 line = r->line, column = 1;
    for (const char *p = r->text; p < at; p++)
        if (*p == '\n') line++, column = 1;
        else if ((*p & 0xc0) != 0x80) column++;
    if (at >= r->end) reason = "the text ends too early";
    return fail(r->a->cx, NXT_FORMAT, "%s:%" PRId64 ":%" PRId64 ": %s", r->where, line, column,
                reason);
}

/* The next character; 0, which no rule of JSON allows, at the end of the text. */
static char json_peek(const json_reader *r) { return r->p < r->end ? *r->p : 0; }

/* Whether the next character is c; if so it is taken. */
static bool json_take(json_reader *r, char c) {
    bool is = r->p < r->end && *r->p == c;
    r->p += is;
    return is;
}

/* The four characters of white space that JSON knows. */
static void json_space(json_reader *r) {
    for (char c; (c = json_peek(r)) == ' ' || c == '\n' || c == '\r' || c == '\t';) r->p++;
}

/* The UTF-16 unit that the escape \uXXXX at r->p stands for; above 0xffff, and nothing taken,
 * when there is no such escape. */
static u32 json_unit(json_reader *r) {
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    u32 unit = 0;
    if (r->end - r->p < 6 || r->p[0] != '\\' || r->p[1] != 'u') return 0x10000;
    for (int i = 2; i < 6; i++) {
        const char *d = memchr(digits, r->p[i], sizeof digits - 1);
        if (!d) return 0x10000;
        unit = unit << 4 | ((u32)(d - digits) & 15);
    }
    r->p += 6;
    return unit;
}

/* The escape at r->p, which stands on the backslash. JSON spells characters beyond U+FFFF
 * as UTF-16 does, in two halves of 10 bits each:
 *     \ud83d\ude00  =  0x10000 + (0xd83d - 0xd800) * 1024 + (0xde00 - 0xdc00)  =  U+1F600
 * A half alone is no character and has no UTF-8; Python reads it, we refuse it. */
static nxt_status json_escape(json_reader *r) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *const at = r->p, *const letter = at + 1;
    if (letter == r->end) return json_fail(r, r->end, "");
    const char *hit = memchr(from, *letter, sizeof from - 1);
    if (hit) {
        *r->pool++ = to[hit - from];
        r->p += 2;
        return NXT_OK;
    }
    if (*letter != 'u') return json_fail(r, at, "unknown escape in a string");
    u32 c = json_unit(r);
    if (c > 0xffff) return json_fail(r, at, "\\u needs four hexadecimal digits");
    if (c >= 0xd800 && c < 0xe000) {
        const u32 low = json_unit(r);
        if (c >= 0xdc00 || low < 0xdc00 || low > 0xdfff)
            return json_fail(r, at, "half of a surrogate pair");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    r->pool += utf8_encode(r->pool, c);
    return NXT_OK;
}

/* The string whose opening quote is at r->p. The pool cannot overflow: it has the size of
 * the source, no escape is shorter than what it stands for, and the closing quote pays for
 * the NUL. */
static nxt_status json_string(json_reader *r, const char **text, i64 *length) {
    char *start = r->pool;
    r->p++;
    while (!json_take(r, '"')) {
        u32 code;
        if (r->p == r->end) return json_fail(r, r->end, "");
        if ((u8)*r->p < 0x20) return json_fail(r, r->p, "a raw control character in a string");
        if (*r->p == '\\') {
            TRY(json_escape(r));
            continue;
        }
        int size = utf8_decode(r->p, r->end - r->p, &code);
        if (!size) return json_fail(r, r->p, "invalid UTF-8");
        while (size--) *r->pool++ = *r->p++;
    }
    *text = start;
    *length = r->pool - start;
    *r->pool++ = 0;
    return NXT_OK;
}

/* The value of a literal. strtod rounds correctly, but wants the decimal point of the host's
 * locale, which a library must take as it is. Printing 0.5 shows it, between 0 and 5. */
static nxt_status json_double(json_reader *r, json *v) {
    char half[16];
    const char *point = strchr(v->text, '.');
    v->number = strtod(v->text, NULL);
    if (!point) return NXT_OK;
    snprintf(half, sizeof half, "%.1f", 0.5);
    if (half[1] == '.') return NXT_OK;
    char *s = arena_get(r->a, (size_t)v->length + sizeof half);
    if (!s) return NXT_MEMORY;
    half[strlen(half) - 1] = 0;
    memcpy(s, v->text, (size_t)(point - v->text)); /* the arena's bytes are 0 beyond it */
    v->number = strtod(strcat(strcat(s, half + 1), point + 1), NULL);
    return NXT_OK;
}

/* One digit at least. */
static nxt_status json_digits(json_reader *r) {
    const char *start = r->p;
    while (json_peek(r) >= '0' && json_peek(r) <= '9') r->p++;
    return r->p > start ? NXT_OK : json_fail(r, r->p, "a digit is missing in a number");
}

/* -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?  and finite as a double. The pool
 * has room for the NUL: a separator follows each number but the last, and it has one more. */
static nxt_status json_number_at(json_reader *r, json *v) {
    const char *start = r->p;
    json_take(r, '-');
    const char *first = r->p;
    TRY(json_digits(r));
    if (*first == '0' && r->p > first + 1)
        return json_fail(r, first, "a number starts with 0");
    if (json_take(r, '.')) TRY(json_digits(r));
    if (json_take(r, 'e') || json_take(r, 'E')) {
        if (!json_take(r, '+')) json_take(r, '-');
        TRY(json_digits(r));
    }
    v->kind = JSON_NUMBER;
    v->text = r->pool;
    v->length = r->p - start;
    memcpy(r->pool, start, (size_t)v->length);
    r->pool += v->length;
    *r->pool++ = 0;
    TRY(json_double(r, v));
    return isfinite(v->number) ? NXT_OK : json_fail(r, start, "a number is out of range");
}

/* "key" : */
static nxt_status json_key(json_reader *r, json *member) {
    json_space(r);
    if (json_peek(r) != '"') return json_fail(r, r->p, "a key is missing");
    TRY(json_string(r, &member->key, &member->key_length));
    json_space(r);
    return json_take(r, ':') ? NXT_OK : json_fail(r, r->p, "':' is missing");
}

static const char *const json_words[] = {"null", "false", "true"}; /* by json_kind */

/* The next value, inside `depth` containers. Calls itself for the values in this one. */
static nxt_status json_value(json_reader *r, int depth, json *v) {
    json_space(r);
    const char c = json_peek(r);
    if (c == '"') {
        v->kind = JSON_STRING;
        return json_string(r, &v->text, &v->length);
    }
    if (c == '-' || (c >= '0' && c <= '9')) return json_number_at(r, v);
    for (int i = 0; i < COUNT(json_words); i++) {
        size_t n = strlen(json_words[i]), left = (size_t)(r->end - r->p);
        if (memcmp(r->p, json_words[i], n < left ? n : left)) continue;
        if (left < n) return json_fail(r, r->end, "");
        v->kind = (json_kind)i;
        r->p += n;
        return NXT_OK;
    }
    if (c != '{' && c != '[') return json_fail(r, r->p, "a value is missing");
    if (depth == JSON_DEPTH) return json_fail(r, r->p, "nested too deeply");
    v->kind = c == '{' ? JSON_OBJECT : JSON_ARRAY;
    r->p++;
    json_space(r);
    if (json_take(r, c == '{' ? '}' : ']')) return NXT_OK;
    json **tail = &v->first;
    do {
        json *child = *tail = arena_get(r->a, sizeof *child);
        if (!child) return NXT_MEMORY;
        tail = &child->next;
        v->count++;
        if (c == '{') TRY(json_key(r, child));
        TRY(json_value(r, depth + 1, child));
        json_space(r);
    } while (json_take(r, ','));
    if (json_take(r, c == '{' ? '}' : ']')) return NXT_OK;
    return json_fail(r, r->p, c == '{' ? "',' or '}' is missing" : "',' or ']' is missing");
}

/* Parses text[0, n), which must be one value, into the arena. The text starts at this line
 * of the file `where` (rows of a JSONL file are parsed one by one). *out is NULL after a
 * failure. */
static nxt_status json_parse_at(arena *a, const char *where, i64 line, const char *text, i64 n,
                                json **out) {
    json_reader r = {.a = a, .where = where, .line = line, .text = text, .p = text};
    *out = NULL;
    r.end = text + n;
    r.pool = arena_get(a, (size_t)n + 1);
    json *top = arena_get(a, sizeof *top);
    if (!r.pool || !top) return NXT_MEMORY;
    TRY(json_value(&r, 0, top));
    json_space(&r);
    if (r.p < r.end) return json_fail(&r, r.p, "something follows the value");
    *out = top;
    return NXT_OK;
}

static nxt_status json_parse(arena *a, const char *where, const char *text, i64 n, json **out) {
    return json_parse_at(a, where, 1, text, n, out);
}

/* -- looking things up ----------------------------------------------------------------------
 *
 * Configuration files leave out what has its default, write null for it, or (older ones)
 * lack the key: a member that is absent, or not of the kind that is asked for, gives
 * `otherwise`. A search walks the list: fine for the tens of keys of a configuration. */

/* Compared with its length, since a key may hold NUL bytes. */
static bool json_is(const json *member, const char *key) {
    return member->key_length == (i64)strlen(key) && !strcmp(member->key, key);
}

/* The last member of that name; NULL when there is none, or no object. */
static const json *json_get(const json *object, const char *key) {
    const json *found = NULL;
    if (!object || object->kind != JSON_OBJECT) return NULL;
    for (const json *m = object->first; m; m = m->next)
        if (json_is(m, key)) found = m;
    return found;
}

static const char *json_text(const json *object, const char *key, const char *otherwise) {
    const json *v = json_get(object, key);
    return v && v->kind == JSON_STRING ? v->text : otherwise;
}

static double json_number(const json *object, const char *key, double otherwise) {
    const json *v = json_get(object, key);
    return v && v->kind == JSON_NUMBER ? v->number : otherwise;
}

static bool json_bool(const json *object, const char *key, bool otherwise) {
    const json *v = json_get(object, key);
    return v && (v->kind == JSON_TRUE || v->kind == JSON_FALSE) ? v->kind == JSON_TRUE
                                                                 : otherwise;
}

/* A number written as digits alone, with a sign at most, that fits 64 bits: what sizes and
 * offsets must be. A double would round those above 2^53 without a word. */
static bool json_integer(const json *v, i64 *out) {
    if (!v || v->kind != JSON_NUMBER || strpbrk(v->text, ".eE")) return false;
    errno = 0;
    *out = strtoll(v->text, NULL, 10);
    return errno == 0;
}

/* -- writing ----------------------------------------------------------------------------- */

/* Quoted and escaped. What must be escaped is, the rest stays as it is: files for people
 * show their own script. Bytes that are not UTF-8 (a model may generate them) become U+FFFD,
 * so that what is written can always be read. */
static void json_write_text(buffer *b, const char *text, i64 n) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    buffer_add(b, "\"", 1);
    for (i64 i = 0, size; i < n; i += max64(1, size)) {
        const char *hit = text[i] ? strchr(from, text[i]) : NULL;
        u32 code;
        size = utf8_decode(text + i, n - i, &code);
        if (hit) buffer_print(b, "\\%c", to[hit - from]);
        else if (size == 0) buffer_text(b, "\xef\xbf\xbd");
        else if (code < 0x20) buffer_print(b, "\\u%04x", code);
        else buffer_add(b, text + i, size);
    }
    buffer_add(b, "\"", 1);
}

/* The shortest of 15, 16 or 17 digits that reads back as x, with '.' in every locale: any 15
 * digits survive a double, and 17 always tell it from its neighbours. JSON has no word for
 * infinities and NaN: null. */
static void json_write_number(buffer *b, double x) {
    char s[40];
    if (!isfinite(x)) {
        buffer_text(b, "null");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, x);
        if (strtod(s, NULL) == x) break;
    }
    for (const char *p = s; *p; p++) {
        if (strchr("0123456789+-e", *p)) buffer_add(b, p, 1);
        else if (p == s || strchr("0123456789", p[-1])) buffer_add(b, ".", 1);
    }
}

/* A tree. indent: the level it starts at, two spaces each; negative: all on one line. Both
 * forms are those of Python's json.dumps, the indented one with indent=2, so that files
 * that pass through here differ in nothing but what was changed. Numbers are written as
 * they were read. Calls itself, at most JSON_DEPTH deep. */
static void json_write(buffer *b, const json *value, int indent) {
    const bool object = value->kind == JSON_OBJECT;
    if (value->kind <= JSON_TRUE) buffer_text(b, json_words[value->kind]);
    if (value->kind == JSON_NUMBER) buffer_add(b, value->text, value->length);
    if (value->kind == JSON_STRING) json_write_text(b, value->text, value->length);
    if (value->kind < JSON_ARRAY) return;
    buffer_add(b, object ? "{" : "[", 1);
    for (const json *m = value->first; m; m = m->next) {
        if (indent >= 0) buffer_print(b, "\n%*s", 2 * indent + 2, "");
        if (object) {
            json_write_text(b, m->key, m->key_length);
            buffer_add(b, ": ", 2);
        }
        json_write(b, m, indent < 0 ? indent : indent + 1);
        if (m->next) buffer_text(b, indent < 0 ? ", " : ",");
    }
    if (value->first && indent >= 0) buffer_print(b, "\n%*s", 2 * indent, "");
    buffer_add(b, object ? "}" : "]", 1);
}

/* ============================================================================
 * § 11  Files
 *
 * Reading: weights are used where they lie, in a read-only map of the file, so that a
 * model larger than memory can be read and two processes share one copy. What a file
 * says about itself is copied first and believed only after every rule was checked.
 *
 * Writing: nothing half-written ever has a final name (I10). Files are made in a
 * temporary directory beside their destination, each is flushed to the disk, then one
 * rename makes them visible; a kill or a power cut leaves the old state or the new one.
 */
typedef struct file_map {
    const u8 *p; /* NULL when the file is empty */
    i64 n;
} file_map;

/* printf into the arena; NULL when there is no memory. */
PRINTF_LIKE(2, 3)
static char *arena_print(arena *a, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *s = arena_get(a, (size_t)n + 1);
    va_start(args, format);
    if (s) vsnprintf(s, (size_t)n + 1, format, args);
    va_end(args);
    return s;
}

static char *path_join(arena *a, const char *directory, const char *name) {
    size_t n = strlen(directory);
    const char *slash = n && directory[n - 1] == '/' ? "" : "/";
    return arena_print(a, "%s%s%s", directory, slash, name);
}

/* Follows links: a link to nothing does not exist. */
static bool path_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* An unsigned number of up to 8 bytes, least significant first: right on any machine and
 * at any alignment. */
static u64 read_le(const u8 *p, int bytes) {
    u64 x = 0;
    for (int i = bytes - 1; i >= 0; i--) x = x << 8 | p[i];
    return x;
}

/* Opens a regular file, which is what can be mapped and has a length. Not blocking: else a
 * named pipe would hang until it has a writer. */
static nxt_status file_open(nxt_context *cx, const char *path, int *fd, i64 *bytes) {
    struct stat st;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return fail_errno(cx, path, "open");
    nxt_status status = NXT_OK;
    if (fstat(*fd, &st) != 0) status = fail_errno(cx, path, "look at");
    else if (!S_ISREG(st.st_mode))
        status = fail(cx, NXT_IO, "%s: not a regular file", path);
    if (status != NXT_OK) close(*fd);
    else *bytes = (i64)st.st_size;
    return status;
}

/* The pages come from the disk when they are first touched, and the kernel may drop them
 * again at any time: a map costs addresses, not memory. If another process shortens the
 * file meanwhile, touching what is gone raises SIGBUS. */
static nxt_status file_map_open(nxt_context *cx, const char *path, file_map *m) {
    int fd;
    i64 n;
    *m = (file_map){0};
    TRY(file_open(cx, path, &fd, &n));
    void *p = n ? mmap(NULL, (size_t)n, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    nxt_status status = p == MAP_FAILED ? fail_errno(cx, path, "map") : NXT_OK;
    close(fd); /* the map keeps the file open */
    if (status == NXT_OK) *m = (file_map){p, n};
    return status;
}

/* May be called again, and on a map that was never opened. */
static void file_map_close(file_map *m) {
    if (m->p) munmap((void *)(uintptr_t)m->p, (size_t)m->n);
    *m = (file_map){0};
}

/* Adds a whole file of at most `most` bytes to the buffer. For small files that are parsed
 * at once: unlike a map, a copy cannot change under the parser. */
static nxt_status file_read(nxt_context *cx, const char *path, i64 most, buffer *out) {
    int fd;
    i64 bytes;
    char block[16384];
    TRY(file_open(cx, path, &fd, &bytes));
    nxt_status status = NXT_OK;
    buffer_add(out, "", 0); /* so that an empty file is an empty text, not NULL */
    for (i64 total = 0; status == NXT_OK;) {
        ssize_t got = read(fd, block, sizeof block);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) status = fail_errno(cx, path, "read");
        if (got <= 0) break;
        total += got;
        if (total > most)
            status = fail(cx, NXT_FORMAT, "%s: larger than %" PRId64 " bytes", path, most);
        else buffer_add(out, block, got);
    }
    close(fd);
    return status != NXT_OK ? status : out->status;
}

/* Parses a JSON file of at most `most` bytes into the arena; *out is NULL after a failure. */
static nxt_status json_read(arena *a, const char *path, i64 most, json **out) {
    buffer b = {.cx = a->cx};
    *out = NULL;
    nxt_status status = file_read(a->cx, path, most, &b);
    if (status == NXT_OK) status = json_parse(a, path, b.p, b.n, out);
    buffer_free(&b);
    return status;
}

/* -- durable saves -------------------------------------------------------------------------
 *
 *     save s;
 *     TRY(save_begin(cx, "run/checkpoint-10", &s));
 *     status = ... save_text(&s, "config.json", ...) and so on ...
 *     if (status != NXT_OK) save_abort(&s);       the temporary directory is gone
 *     else status = save_commit(&s);              all files are there, or none is
 *
 * save_begin is for a directory that belongs to the save: an older one of that name is
 * replaced as a whole, with all it holds. save_begin_into is for a directory that holds
 * other things too: its files are replaced one by one, in the order in which they were
 * saved, which for weights is: shards, then the index that names them.
 *
 * What makes a save durable is this order. The kernel may write a rename to the disk before the
 * data it makes visible: without the first two fsync, a power cut could leave the final name
 * on files full of zeros; without the last, the old state could come back after we said done.
 *
 *     mkdir        run/checkpoint-10.tmp-4711-0    on the same file system, nobody else's
 *     write, fsync, close                          each file
 *     fsync        the temporary directory         its names
 *     rename       temporary to final              or both names swapped
 *     fsync        run                             the new name
 *     unlink       the old state                   only now that the new one cannot be lost
 *
 *     killed while                     final name       temporary name
 *     files are written                old              part of the new
 *     they are flushed                 old              new
 *     names are being swapped          old, or new      new, or old
 *     the old state is removed         new              part of the old
 *
 * A temporary directory that a kill left behind is never read by anybody. */
typedef struct save {
    nxt_context *cx;
    arena arena;
    const char *final, *temporary;
    bool into, lone;    /* lone: nothing else in the directory is removed */
    const char **names; /* the finished files */
    i64 count, capacity;
} save;

typedef struct save_file {
    save *s;
    const char *path;
    int fd;
} save_file;

/* The directory a path lies in. The path has no slash at its end. */
static char *path_parent(arena *a, const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return arena_text(a, ".", 1);
    return arena_text(a, path, slash == path ? 1 : (size_t)(slash - path));
}

/* Makes the names in a directory durable. File systems that cannot do that for a
 * directory say EINVAL; they have promised nothing that could be kept. */
static nxt_status sync_directory(nxt_context *cx, const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail_errno(cx, path, "open");
    nxt_status status = NXT_OK;
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP)
        status = fail_errno(cx, path, "flush");
    close(fd);
    return status;
}

/* mkdir -p, durably: each new name is flushed in the directory that holds it. Calls itself
 * once for each missing part of the path. */
static nxt_status make_directories(nxt_context *cx, const char *path) {
    struct stat st;
    if (stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode)) return NXT_OK;
        return fail(cx, NXT_IO, "%s: exists and is not a directory", path);
    }
    arena a = {.cx = cx};
    const char *parent = path_parent(&a, path);
    nxt_status status = parent ? NXT_OK : NXT_MEMORY;
    if (status == NXT_OK && strcmp(parent, path)) status = make_directories(cx, parent);
    if (status == NXT_OK && mkdir(path, 0777) != 0 && errno != EEXIST)
        status = fail_errno(cx, path, "create");
    if (status == NXT_OK) status = sync_directory(cx, parent);
    arena_free(&a);
    return status;
}

/* Removes a file, or a directory with all below it; follows no link, stops at nothing. */
static void remove_tree(int at, const char *name) {
    if (unlinkat(at, name, 0) == 0) return;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        if (fd >= 0) close(fd);
        return;
    }
    for (const struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) remove_tree(fd, e->d_name);
    closedir(d);
    unlinkat(at, name, AT_REMOVEDIR);
}

/* Removes what was written, and leaves a save that owns nothing: it may be called in any case,
 * also after save_commit. Writes no error: the one that led here is the one to report. */
static void save_abort(save *s) {
    nxt_context *cx = s->cx;
    if (s->temporary) remove_tree(AT_FDCWD, s->temporary);
    if (s->names) mem_drop(cx, (void *)s->names);
    arena_free(&s->arena);
    *s = (save){.cx = cx, .arena.cx = cx};
}

/* Sets s->final. The name of a directory that exists is made true, because a link to one
 * must stay a link: renaming over it would put the files on another disk, and leave the old
 * ones where the link pointed. Of one that does not exist, the parent is made. */
static nxt_status save_resolve(save *s, const char *path) {
    size_t n = strlen(path);
    if (!n) return fail(s->cx, NXT_ARGUMENT, "the directory to save into has no name");
    while (n > 1 && path[n - 1] == '/') n--;
    s->final = arena_text(&s->arena, path, n);
    const char *parent = s->final ? path_parent(&s->arena, s->final) : NULL;
    if (!parent) return NXT_MEMORY;
    TRY(make_directories(s->cx, s->into || path_exists(s->final) ? s->final : parent));
    char *real = realpath(s->final, NULL);
    if (!real && errno != ENOENT) return fail_errno(s->cx, s->final, "resolve");
    if (real) s->final = arena_text(&s->arena, real, strlen(real));
    free(real);
    return s->final ? NXT_OK : NXT_MEMORY;
}

/* Makes `<stem>.tmp-<process>-<n>` with the first n that is free. mkdir decides who has it,
 * so two saves to one place, by two processes or two threads, never share a directory. It
 * lies on the file system of its destination, since a rename cannot leave one: beside
 * `final`, or in it, for save_begin_into. After a failure there is nothing to abort. */
static nxt_status save_start(nxt_context *cx, const char *path, bool into, save *s) {
    *s = (save){.cx = cx, .arena.cx = cx, .into = into};
    nxt_status status = save_resolve(s, path);
    for (int n = 0; status == NXT_OK && !s->temporary; n++) {
        const char *name = arena_print(&s->arena, "%s%s.tmp-%ld-%d", s->final,
                                       into ? "/save" : "", (long)getpid(), n);
        if (!name) status = NXT_MEMORY;
        else if (mkdir(name, 0777) == 0) s->temporary = name;
        else if (errno != EEXIST || n == 10000) status = fail_errno(cx, name, "create");
    }
    if (status != NXT_OK) save_abort(s);
    return status;
}

/* Starts a save that will be the directory `final`. */
static nxt_status save_begin(nxt_context *cx, const char *final, save *s) {
    return save_start(cx, final, false, s);
}

/* Starts a save of files that will be put into `directory`. */
static nxt_status save_begin_into(nxt_context *cx, const char *directory, save *s) {
    return save_start(cx, directory, true, s);
}

/* The most frequent cause gets plain words. */
static nxt_status fail_write(nxt_context *cx, const char *path) {
    if (errno == ENOSPC || errno == EDQUOT)
        return fail(cx, NXT_IO, "%s: cannot write: disk full", path);
    return fail_errno(cx, path, "write");
}

/* A new file of the save. Names are plain: all files of a save lie in one directory. Must be
 * closed with save_close, whatever happens. */
static nxt_status save_open(save *s, const char *name, save_file *f) {
    *f = (save_file){.s = s, .fd = -1};
    if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return fail(s->cx, NXT_ARGUMENT, "\"%s\" is no file name", name);
    TRY(mem_grow(s->cx, &s->names, s->count, s->count + 1, &s->capacity, sizeof *s->names));
    f->path = path_join(&s->arena, s->temporary, name);
    if (!f->path) return NXT_MEMORY;
    f->fd = open(f->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->fd < 0) return fail_write(s->cx, f->path);
    s->names[s->count++] = strrchr(f->path, '/') + 1;
    return NXT_OK;
}

/* A write may be interrupted by a signal, and may do less than it was asked. */
static nxt_status save_bytes(save_file *f, const void *bytes, i64 n) {
    for (const u8 *p = bytes; n > 0;) {
        ssize_t done = write(f->fd, p, (size_t)min64(n, 1 << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail_write(f->s->cx, f->path);
        p += done;
        n -= done;
    }
    return NXT_OK;
}

/* Closes in any case. Flushes to the disk when all went well so far; errors of earlier
 * writes may show only here. */
static nxt_status save_close(save_file *f, nxt_status status) {
    if (f->fd < 0) return status;
    if (status == NXT_OK && fsync(f->fd) != 0) status = fail_write(f->s->cx, f->path);
    if (close(f->fd) != 0 && status == NXT_OK) status = fail_write(f->s->cx, f->path);
    f->fd = -1;
    return status;
}

/* A whole file at once. */
static nxt_status save_text(save *s, const char *name, const char *text, i64 n) {
    save_file f;
    nxt_status status = save_open(s, name, &f);
    if (status == NXT_OK) status = save_bytes(&f, text, n);
    return save_close(&f, status);
}

/* A copy of a file, byte for byte. */
static nxt_status save_copy(save *s, const char *name, const char *from) {
    file_map m;
    TRY(file_map_open(s->cx, from, &m));
    nxt_status status = save_text(s, name, (const char *)m.p, m.n);
    file_map_close(&m);
    return status;
}

/* Linux can swap two names in one step, on most file systems: then there is no moment at
 * which neither directory has the final name. False when it cannot be done here. */
static bool swap_names(const char *a, const char *b) {
#if NXT_HAS_EXCHANGE
    return syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0;
#else
    (void)a, (void)b;
    return false;
#endif
}

/* Puts the temporary directory in the place of the final one, and removes the old one once
 * the new one is safe on the disk. Where names cannot be swapped (also when there is no old
 * state), the old one is set aside first, which leaves a moment without the final name: a
 * kill just then leaves it as `<temporary>.old`, and the new one as `<temporary>`. */
static nxt_status save_replace(save *s) {
    const char *parent = path_parent(&s->arena, s->final);
    const char *old = arena_print(&s->arena, "%s.old", s->temporary);
    if (!parent || !old) return NXT_MEMORY;
    const bool swapped = swap_names(s->temporary, s->final);
    if (swapped) old = s->temporary;
    else if (rename(s->final, old) != 0 && errno != ENOENT)
        return fail_errno(s->cx, s->final, "replace");
    if (!swapped && rename(s->temporary, s->final) != 0) {
        nxt_status status = fail_errno(s->cx, s->final, "replace");
        rename(old, s->final); /* back; nothing more can be done if that fails too */
        return status;
    }
    s->temporary = NULL;
    TRY(sync_directory(s->cx, parent));
    remove_tree(AT_FDCWD, old);
    if (path_exists(old))
        say(s->cx, NXT_LOG_WARNING, "%s: the old state could not be removed", old);
    return NXT_OK;
}

/* Whether the save has a finished file of that name. */
static bool save_holds(const save *s, const char *name) {
    for (i64 i = 0; i < s->count; i++)
        if (!strcmp(s->names[i], name)) return true;
    return false;
}

/* Removes weights of an earlier save that the new ones did not replace by name: a reader
 * would prefer an old model.safetensors to new shards, and old shards fill the disk. Only
 * after the new ones are in place, and only names that a save gives. */
static void save_drop_stale(save *s) {
    static const char single[] = "model.safetensors", index[] = "model.safetensors.index.json";
    if (!save_holds(s, single) && !save_holds(s, index)) return;
    DIR *d = opendir(s->final);
    if (!d) return;
    for (const struct dirent *e; (e = readdir(d));) {
        int at = 0;
        (void)sscanf(e->d_name, "model-%*5[0-9]-of-%*5[0-9].safetensors%n", &at);
        bool shard = at == sizeof "model-00001-of-00002.safetensors" - 1 && !e->d_name[at];
        bool ours = shard || !strcmp(e->d_name, single) || !strcmp(e->d_name, index);
        if (ours && !save_holds(s, e->d_name)) unlinkat(dirfd(d), e->d_name, 0);
    }
    closedir(d);
}

/* Each rename replaces one file as a whole. A kill between two of them leaves whole files,
 * some of them new. */
static nxt_status save_move_into(save *s) {
    for (i64 i = 0; i < s->count; i++) {
        const char *from = path_join(&s->arena, s->temporary, s->names[i]);
        const char *to = path_join(&s->arena, s->final, s->names[i]);
        if (!from || !to) return NXT_MEMORY;
        if (rename(from, to) != 0) return fail_errno(s->cx, to, "replace");
    }
    if (!s->lone) save_drop_stale(s);
    return sync_directory(s->cx, s->final);
}

/* Makes the files visible under their final names. After a failure nothing is left of the
 * save, but for files that save_begin_into had already replaced, whole ones each. */
static nxt_status save_commit(save *s) {
    nxt_status status = sync_directory(s->cx, s->temporary);
    if (status == NXT_OK) status = s->into ? save_move_into(s) : save_replace(s);
    save_abort(s); /* of the temporary directory, whatever is left */
    return status;
}

/* -- tensors in files ----------------------------------------------------------------------
 *
 * What a model's files hold, whatever their form: §12 fills the same table. Values are not
 * read here. A tensor points into a map and says how its elements lie; only what computes
 * with it, or copies it, touches the pages. Element (i, j) of a matrix is the one at
 * i stride[0] + j stride[1], so that a transposed or cut out matrix needs no copy:
 *
 *     3 x 4, row-major                 dim 3, 4    stride 4, 1
 *     the same, transposed             dim 4, 3    stride 1, 4
 *     its two middle columns           dim 3, 2    stride 4, 1, and p one element later */
enum { MAX_RANK = 8, MAX_FILES = 4096 };

typedef struct tensor {
    const char *name;
    int type;              /* dtype; -1: a type that weights do not have */
    const char *type_name; /* as safetensors calls it */
    int rank;
    i64 dim[MAX_RANK];
    i64 stride[MAX_RANK];  /* in elements; row-major unless a pickle says otherwise */
    i64 count;             /* product of dim */
    const u8 *p;           /* into the map; no alignment is promised */
    i64 bytes;             /* of a row-major tensor */
    const char *file;
} tensor;

typedef struct text_pair {
    const char *key, *value;
} text_pair;

typedef struct weight_file {
    const char *path;
    file_map map;
} weight_file;

/* The tensors of a model, whatever files they came from. They live until weights_close. */
typedef struct weights {
    nxt_context *cx;
    arena arena;          /* of names and metadata */
    weight_file *files;
    i64 file_count, file_capacity;
    bool indexed;         /* an index file says which tensors count, and from which file */
    tensor *tensors;      /* sorted by name */
    i64 count, capacity;
    const json *metadata; /* what a safetensors file says beside tensors */
} weights;

enum { AWAITED = -1 }; /* the rank of a tensor that only the index has named so far */

/* What is wrong with one tensor. Names come from the file and may be very long. */
PRINTF_LIKE(3, 4)
static nxt_status fail_tensor(const weights *w, const tensor *t, const char *format, ...) {
    char reason[300];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return fail(w->cx, NXT_FORMAT, "%s: tensor %.200s: %s", t->file, t->name, reason);
}

/* For qsort and bsearch. */
static int tensor_order(const void *a, const void *b) {
    const tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* NULL when there is none of that name. */
static tensor *weights_find(const weights *w, const char *name) {
    const tensor key = {.name = name};
    if (!w->count) return NULL;
    return bsearch(&key, w->tensors, (size_t)w->count, sizeof key, tensor_order);
}

/* Adds a tensor; weights_sort must follow the last. When an index is in force, it has put all
 * names that count into the table before any file was read (rank AWAITED), each with its file;
 * a tensor then takes its place, and what the index does not name, or gives to another file,
 * is left out. */
static nxt_status weights_add(weights *w, const tensor *t) {
    if (w->indexed) {
        tensor *known = weights_find(w, t->name);
        if (!known || known->file != t->file) return NXT_OK;
        if (known->rank != AWAITED) return fail_tensor(w, t, "the name occurs twice");
        *known = *t;
        return NXT_OK;
    }
    TRY(mem_grow(w->cx, &w->tensors, w->count, w->count + 1, &w->capacity, sizeof *w->tensors));
    w->tensors[w->count++] = *t;
    return NXT_OK;
}

/* The fault is what to say when two tensors have one name. */
static nxt_status weights_sort(weights *w, const char *fault) {
    if (w->indexed) return NXT_OK; /* long since */
    if (w->count) qsort(w->tensors, (size_t)w->count, sizeof *w->tensors, tensor_order);
    for (i64 i = 1; i < w->count; i++)
        if (!tensor_order(&w->tensors[i - 1], &w->tensors[i]))
            return fail_tensor(w, &w->tensors[i], "%s", fault);
    return NXT_OK;
}

/* A text that a safetensors file carries under `key`, or NULL. */
static const char *weights_metadata(const weights *w, const char *key) {
    return json_text(w->metadata, key, NULL);
}

/* Everything goes, the maps as well: no pointer of a tensor may be used afterwards. */
static void weights_close(weights *w) {
    nxt_context *cx = w->cx;
    for (i64 i = 0; i < w->file_count; i++) file_map_close(&w->files[i].map);
    mem_drop(cx, w->files);
    mem_drop(cx, w->tensors);
    arena_free(&w->arena);
    *w = (weights){.cx = cx, .arena.cx = cx};
}

/* -- safetensors: the reader ---------------------------------------------------------------
 *
 *     8 bytes    n, the length of the header, little-endian
 *     n bytes    the header: {"name": {"dtype": "F32", "shape": [2, 3],
 *                "data_offsets": [begin, end]}, ..., "__metadata__": {"key": "text"}}
 *     the rest   the tensors, row-major, without holes; offsets count from here
 *
 * A file with one matrix of 2 x 3 floats, 96 bytes long:
 *
 *     0     40 00 00 00 00 00 00 00
 *     8     {"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}} and 7 spaces
 *     72    w[0][0] w[0][1] w[0][2] w[1][0] w[1][1] w[1][2]
 *
 * The rules are those of the reference implementation [safetensors], and every one of them
 * is checked, because each was broken by some reader: the length of the header before it is
 * read; duplicate names; products of sizes that overflow; offsets before, behind or into
 * other tensors; and the sum, which must be the file, to the byte. White space around the
 * header is allowed: writers use it to align the data. */
/* The first is the reference's own bound; a model of 1000 tensors needs a thousandth of it. */
enum { SAFETENSORS_HEADER_MAX = 100000000, METADATA_MAX = 1000 };

typedef struct tensor_kind {
    const char *name;
    int bits, type;
} tensor_kind;

/* All element types of the format, since a file may hold tensors that are no weights (masks,
 * counters). Types of 4 and 6 bits exist, so sizes are counted in bits. The first three are in
 * the order of dtype. */
static const tensor_kind tensor_kinds[] = {
    {"F32", 32, F32}, {"F16", 16, F16}, {"BF16", 16, BF16}, {"F64", 64, -1}, {"C64", 64, -1},
    {"BOOL", 8, -1}, {"U8", 8, -1}, {"I8", 8, -1}, {"I16", 16, -1}, {"U16", 16, -1},
    {"I32", 32, -1}, {"U32", 32, -1}, {"I64", 64, -1}, {"U64", 64, -1},
    {"F8_E5M2", 8, -1}, {"F8_E4M3", 8, -1}, {"F8_E8M0", 8, -1}, {"F8_E5M2FNUZ", 8, -1},
    {"F8_E4M3FNUZ", 8, -1}, {"F6_E2M3", 6, -1}, {"F6_E3M2", 6, -1}, {"F4", 4, -1}};

static const tensor_kind *tensor_kind_named(const char *name) {
    for (i64 i = 0; i < COUNT(tensor_kinds); i++)
        if (!strcmp(tensor_kinds[i].name, name)) return &tensor_kinds[i];
    return NULL;
}

/* One safetensors file while it is read. */
typedef struct tensor_header {
    weights *w;
    const char *file;
    const u8 *data; /* behind the header */
    i64 bytes;      /* of data */
} tensor_header;

/* The member of an entry that must be there, once, and be of this kind. */
static nxt_status header_member(const tensor_header *h, const json *entry, const tensor *t,
                                const char *key, json_kind kind, const json **out) {
    int found = 0;
    for (const json *m = entry->first; m; m = m->next)
        if (json_is(m, key)) found++, *out = m;
    if (found != 1) return fail_tensor(h->w, t, "has %s %s", found ? "two of" : "no", key);
    if ((*out)->kind == kind) return NXT_OK;
    return fail_tensor(h->w, t, "%s is not %s", key, kind == JSON_STRING ? "text" : "a list");
}

/* "shape": any number of sizes; none for a scalar, and 0 is a size. */
static nxt_status header_shape(const tensor_header *h, const json *shape, tensor *t) {
    if (shape->count > MAX_RANK)
        return fail_tensor(h->w, t, "has %" PRId64 " dimensions, more than %d", shape->count,
                           MAX_RANK);
    t->count = 1;
    for (const json *v = shape->first; v; v = v->next) {
        i64 *n = &t->dim[t->rank++];
        if (!json_integer(v, n) || *n < 0)
            return fail_tensor(h->w, t, "its shape holds something that is no size");
        if (__builtin_mul_overflow(t->count, *n, &t->count))
            return fail_tensor(h->w, t, "the product of its shape overflows");
    }
    for (i64 i = t->rank - 1, step = 1; i >= 0 && t->count; step *= t->dim[i--])
        t->stride[i] = step; /* of an empty tensor: 0, for a part of its shape may overflow */
    return NXT_OK;
}

/* One entry of the header. Members it does not know are ignored, as the reference does. */
static nxt_status header_tensor(const tensor_header *h, const json *entry, tensor *t) {
    const json *type = NULL, *shape = NULL, *offsets = NULL;
    i64 begin, end, bits;
    *t = (tensor){.file = h->file, .name = entry->key};
    if (strlen(entry->key) != (size_t)entry->key_length)
        return fail_tensor(h->w, t, "the name goes on after a zero byte");
    if (entry->kind != JSON_OBJECT) return fail_tensor(h->w, t, "is not an object");
    TRY(header_member(h, entry, t, "dtype", JSON_STRING, &type));
    TRY(header_member(h, entry, t, "shape", JSON_ARRAY, &shape));
    TRY(header_member(h, entry, t, "data_offsets", JSON_ARRAY, &offsets));
    TRY(header_shape(h, shape, t));
    if (offsets->count != 2 || !json_integer(offsets->first, &begin)
        || !json_integer(offsets->first->next, &end) || begin < 0)
        return fail_tensor(h->w, t, "data_offsets are not two sizes");
    if (end < begin) return fail_tensor(h->w, t, "ends before it begins");
    if (end > h->bytes)
        return fail_tensor(h->w, t, "ends at byte %" PRId64 " of %" PRId64 ": the file is cut "
                           "short, or lies", end, h->bytes);
    const tensor_kind *kind = tensor_kind_named(type->text);
    if (!kind || strlen(kind->name) != (size_t)type->length)
        return fail_tensor(h->w, t, "unknown dtype %.40s", type->text);
    if (__builtin_mul_overflow(t->count, (i64)kind->bits, &bits))
        return fail_tensor(h->w, t, "its size in bits overflows");
    if (bits % 8) return fail_tensor(h->w, t, "does not fill its last byte");
    t->type = kind->type;
    t->type_name = kind->name;
    t->p = h->data + begin;
    t->bytes = end - begin;
    if (t->bytes == bits / 8) return NXT_OK;
    return fail_tensor(h->w, t, "has %" PRId64 " bytes where dtype and shape need %" PRId64,
                       t->bytes, bits / 8);
}

/* "__metadata__": texts only, and few, so that looking for duplicates stays cheap. */
static nxt_status header_metadata(const tensor_header *h, const json *entry) {
    nxt_context *cx = h->w->cx;
    if (entry->kind != JSON_OBJECT)
        return fail(cx, NXT_FORMAT, "%s: __metadata__ is not an object", h->file);
    if (entry->count > METADATA_MAX)
        return fail(cx, NXT_UNSUPPORTED, "%s: more than %d texts in __metadata__", h->file,
                    METADATA_MAX);
    for (const json *m = entry->first; m; m = m->next)
        if (m->kind != JSON_STRING || json_get(entry, m->key) != m)
            return fail(cx, NXT_FORMAT, "%s: __metadata__: %.200s %s", h->file, m->key,
                        m->kind != JSON_STRING ? "is not text" : "occurs twice");
    h->w->metadata = entry;
    return NXT_OK;
}

/* By place. Empty tensors may share theirs with another's beginning; they sort before it. */
static int place_order(const void *a, const void *b) {
    const tensor *x = a, *y = b;
    if (x->p != y->p) return x->p < y->p ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Adds n tensors, which together must fill the data exactly: no hole, no overlap, nothing
 * behind. */
static nxt_status header_cover(const tensor_header *h, tensor *t, i64 n) {
    const u8 *end = h->data;
    qsort(t, (size_t)n, sizeof *t, place_order);
    for (i64 i = 0; i < n; end = t[i].p + t[i].bytes, i++) {
        for (i64 k = 0; t[i].p != end && k < n; k++) /* the plainer reason first */
            if (k != i && !tensor_order(&t[k], &t[i]))
                return fail_tensor(h->w, &t[i], "the name occurs twice");
        if (t[i].p != end)
            return fail_tensor(h->w, &t[i], "%s: it begins at byte %" PRId64 ", not %" PRId64,
                               t[i].p < end ? "overlaps another" : "leaves a hole",
                               (i64)(t[i].p - h->data), (i64)(end - h->data));
        TRY(weights_add(h->w, &t[i]));
    }
    if (end == h->data + h->bytes) return NXT_OK;
    return fail(h->w->cx, NXT_FORMAT, "%s: %" PRId64 " bytes follow the last tensor", h->file,
                (i64)(h->data + h->bytes - end));
}

/* Entry by entry, then all together. */
static nxt_status header_read(const tensor_header *h, const json *root) {
    i64 n = 0;
    if (root->kind != JSON_OBJECT)
        return fail(h->w->cx, NXT_FORMAT, "%s: the header is not an object", h->file);
    tensor *list = arena_get(&h->w->arena, (size_t)root->count * sizeof *list);
    if (!list) return NXT_MEMORY;
    for (const json *m = root->first; m; m = m->next)
        if (!json_is(m, "__metadata__")) TRY(header_tensor(h, m, &list[n++]));
        else if (json_get(root, m->key) == m) TRY(header_metadata(h, m));
        else return fail(h->w->cx, NXT_FORMAT, "%s: has __metadata__ twice", h->file);
    return header_cover(h, list, n);
}

/* Adds the tensors of the n bytes at p, which stay where they are, to w. The header is
 * copied before it is looked at: what was checked must be what is used, even when another
 * process writes to the file meanwhile. After a failure w holds some of the tensors, and
 * weights_close is all that may be done with it. */
static nxt_status safetensors_parse(weights *w, const char *file, const u8 *p, i64 n) {
    static const char pointer[] = "version https://git-lfs";
    nxt_context *cx = w->cx;
    json *root;
    if (n >= COUNT(pointer) && !memcmp(p, pointer, sizeof pointer - 1))
        return fail(cx, NXT_FORMAT, "%s: a Git LFS pointer, not the file itself: "
                    "fetch it with `git lfs pull`", file);
    if (n < 8) return fail(cx, NXT_FORMAT, "%s: %" PRId64 " bytes are too few", file, n);
    const u64 length = read_le(p, 8);
    if (length > SAFETENSORS_HEADER_MAX)
        return fail(cx, NXT_FORMAT, "%s: not safetensors: a header of %" PRIu64
                    " bytes, more than %d", file, length, SAFETENSORS_HEADER_MAX);
    if ((i64)length > n - 8)
        return fail(cx, NXT_FORMAT, "%s: the header takes %" PRIu64 " bytes and only %" PRId64
                    " are there: the file is cut short", file, length, n - 8);
    const tensor_header h = {w, file, p + 8 + length, n - 8 - (i64)length};
    const char *where = arena_print(&w->arena, "%s (header)", file);
    const char *copy = arena_text(&w->arena, (const char *)p + 8, length);
    if (!where || !copy) return NXT_MEMORY;
    TRY(json_parse(&w->arena, where, copy, (i64)length, &root));
    TRY(header_read(&h, root));
    return weights_sort(w, "the name occurs twice");
}

/* safetensors_parse, or torchbin_parse of §12. */
typedef nxt_status (*weight_parser)(weights *w, const char *file, const u8 *p, i64 n);

/* Puts a path into the list of the model's files, once; *kept is the list's own copy. */
static nxt_status weights_file(weights *w, const char *path, const char **kept) {
    for (i64 i = w->file_count - 1; i >= 0; i--) /* the last is the likely one */
        if (!strcmp(w->files[i].path, path)) return *kept = w->files[i].path, NXT_OK;
    if (w->file_count == MAX_FILES)
        return fail(w->cx, NXT_FORMAT, "%s: weights in more than %d files", path, MAX_FILES);
    TRY(mem_grow(w->cx, &w->files, w->file_count, w->file_count + 1, &w->file_capacity,
                 sizeof *w->files));
    *kept = arena_text(&w->arena, path, strlen(path));
    w->files[w->file_count++] = (weight_file){.path = *kept};
    return *kept ? NXT_OK : NXT_MEMORY;
}

/* Maps all files of the list and adds their tensors, then sees that none that the index names
 * is still awaited. The maps stay open until weights_close. */
static nxt_status weights_read(weights *w, const char *index, weight_parser parse) {
    for (i64 i = 0; i < w->file_count; i++) {
        weight_file *f = &w->files[i];
        TRY(file_map_open(w->cx, f->path, &f->map));
        TRY(parse(w, f->path, f->map.p, f->map.n));
    }
    for (i64 i = 0; i < w->count; i++)
        if (w->tensors[i].rank == AWAITED)
            return fail_tensor(w, &w->tensors[i], "not in this file, where %s says it is",
                               index);
    return NXT_OK;
}

/* One safetensors file: an adapter, the state of an optimizer. After a failure w is closed. */
static nxt_status weights_open_file(nxt_context *cx, const char *path, weights *w) {
    *w = (weights){.cx = cx, .arena.cx = cx};
    nxt_status status = weights_file(w, path, &path);
    if (status == NXT_OK) status = weights_read(w, path, safetensors_parse);
    if (status != NXT_OK) weights_close(w);
    return status;
}

/* -- safetensors: the writer --------------------------------------------------------------
 *
 * Tensors pass through one staging buffer, so saving needs no second model in memory. The
 * caller says what there is (plans) and hands out the numbers piece by piece (fetch). */
typedef struct tensor_plan {
    const char *name;
    dtype type;
    int rank;
    i64 dim[MAX_RANK];
    i64 count;    /* product of dim */
    void *source; /* the caller's */
} tensor_plan;

/* Gives elements [at, at + n) of t as f32. Pieces come in order, n is at most STAGE. */
typedef nxt_status (*tensor_fetch)(void *user, const tensor_plan *t, i64 at, i64 n, float *out);

typedef struct tensor_set {
    const tensor_plan *plans; /* in the model's order, which decides the shards */
    i64 count;
    const text_pair *metadata; /* beside {"format": "pt"} */
    i64 metadata_count;
    i64 shard_bytes; /* a file's tensors take at most this much; 0: one file. HF: 5e9 */
    tensor_fetch fetch;
    void *user;
} tensor_set;

enum { STAGE = 1 << 18 }; /* elements: 1 MB as f32 */

typedef struct tensor_writer {
    save *s;
    const tensor_set *set;
    const tensor_plan **order; /* a shard's tensors as they lie in its file */
    i64 *shard;                /* of each plan, from 0 */
    float *stage;              /* (STAGE) */
    u16 *half;                 /* (STAGE) */
} tensor_writer;

static i64 plan_bytes(const tensor_plan *t) { return t->count * dtype_size(t->type); }

/* The reference writer's order, so that equal models are equal files: its dtypes from the
 * widest down, then names by their bytes. It also keeps each tensor aligned to its element. */
static int plan_order(const void *a, const void *b) {
    static const int rank[] = {[F32] = 0, [BF16] = 1, [F16] = 2};
    const tensor_plan *x = *(const tensor_plan *const *)a, *y = *(const tensor_plan *const *)b;
    return x->type != y->type ? rank[x->type] - rank[y->type] : strcmp(x->name, y->name);
}

/* "key":"value", or "key": alone, after a comma. */
static void write_pair(buffer *b, const char *key, const char *value) {
    buffer_text(b, ",");
    json_write_text(b, key, (i64)strlen(key));
    buffer_text(b, ":");
    if (value) json_write_text(b, value, (i64)strlen(value));
}

/* The header of w->order[0, n), padded with spaces so that the data starts at a multiple of
 * 8. Compact and in the reference writer's order of keys, for the sake of equal bytes. */
static void write_header(buffer *b, const tensor_writer *w, i64 n) {
    i64 at = 0;
    buffer_text(b, "{\"__metadata__\":{\"format\":\"pt\"");
    for (i64 i = 0; i < w->set->metadata_count; i++)
        write_pair(b, w->set->metadata[i].key, w->set->metadata[i].value);
    buffer_text(b, "}");
    for (i64 i = 0; i < n; i++) {
        const tensor_plan *t = w->order[i];
        write_pair(b, t->name, NULL);
        buffer_print(b, "{\"dtype\":\"%s\",\"shape\":[", tensor_kinds[t->type].name);
        for (int d = 0; d < t->rank; d++)
            buffer_print(b, "%s%" PRId64, d ? "," : "", t->dim[d]);
        buffer_print(b, "],\"data_offsets\":[%" PRId64 ",", at);
        at += plan_bytes(t);
        buffer_print(b, "%" PRId64 "]}", at);
    }
    buffer_text(b, "}");
    while (b->n % 8 && b->status == NXT_OK) buffer_text(b, " ");
}

/* To f16 or bf16. What is infinite or NaN already stays so; what becomes infinite would be
 * a ruined model. */
static nxt_status narrow(const save_file *f, const tensor_plan *t, const float *x, i64 n,
                         u16 *out) {
    const u16 infinity = t->type == F16 ? 0x7c00 : 0x7f80;
    for (i64 i = 0; i < n; i++) {
        out[i] = t->type == F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        if ((out[i] & infinity) == infinity && isfinite(x[i]))
            return fail(f->s->cx, NXT_FORMAT, "%s: tensor %s holds %g, too large for %s (at "
                        "most %s): save as %s", f->path, t->name, (double)x[i],
                        dtype_name[t->type], t->type == F16 ? "65504" : "3.39e38",
                        t->type == F16 ? "f32 or bf16" : "f32");
    }
    return NXT_OK;
}

/* f32 passes bit for bit; the state of an optimizer relies on it. */
static nxt_status write_tensor(const tensor_writer *w, save_file *f, const tensor_plan *t) {
    for (i64 at = 0; at < t->count; at += STAGE) {
        i64 n = min64(STAGE, t->count - at);
        TRY(w->set->fetch(w->set->user, t, at, n, w->stage));
        if (t->type != F32) TRY(narrow(f, t, w->stage, n, w->half));
        const void *bytes = t->type == F32 ? (const void *)w->stage : w->half;
        TRY(save_bytes(f, bytes, n * dtype_size(t->type)));
    }
    return NXT_OK;
}

enum { ALL_SHARDS = -1 };

/* Puts the plans of a shard into w->order; returns how many. */
static i64 order_plans(const tensor_writer *w, i64 shard) {
    i64 n = 0;
    for (i64 i = 0; i < w->set->count; i++)
        if (shard == ALL_SHARDS || w->shard[i] == shard) w->order[n++] = &w->set->plans[i];
    qsort(w->order, (size_t)n, sizeof *w->order, plan_order);
    return n;
}

/* The file of one shard. */
static nxt_status write_shard(const tensor_writer *w, i64 shard, const char *name) {
    const i64 n = order_plans(w, shard);
    save_file f = {.fd = -1};
    buffer b = {.cx = w->s->cx};
    write_header(&b, w, n);
    nxt_status status = b.status;
    if (status == NXT_OK && b.n > SAFETENSORS_HEADER_MAX)
        status = fail(b.cx, NXT_FORMAT, "%s: the header is too large to be read again", name);
    const u64 length = (u64)b.n; /* little-endian, as this machine is: §1 */
    if (status == NXT_OK) status = save_open(w->s, name, &f);
    if (status == NXT_OK) status = save_bytes(&f, &length, sizeof length);
    if (status == NXT_OK) status = save_bytes(&f, b.p, b.n);
    for (i64 i = 0; i < n && status == NXT_OK; i++) status = write_tensor(w, &f, w->order[i]);
    buffer_free(&b);
    return save_close(&f, status);
}

enum { BEING_FILLED = -1 };

/* Gives the shard that was being filled its number: to those of the first n plans that wait for
 * it. Returns how many shards that makes: none, if none waits. */
static i64 close_shard(i64 *shard, i64 n, i64 number) {
    i64 closed = 0;
    for (i64 i = 0; i < n; i++)
        if (shard[i] == BEING_FILLED) shard[i] = number, closed = 1;
    return closed;
}

/* Hugging Face's rule: fill a shard in the model's order until the next tensor would not
 * fit. A tensor larger than a shard gets one alone, which takes its number at once, while
 * the shard being filled takes its own when it is closed. Returns the number of shards. */
static i64 choose_shards(const tensor_set *set, i64 *shard) {
    i64 shards = 0, filled = 0;
    const i64 limit = set->shard_bytes ? set->shard_bytes : INT64_MAX;
    for (i64 i = 0; i < set->count; i++) {
        const i64 bytes = plan_bytes(&set->plans[i]);
        const bool alone = bytes > limit;
        if (!alone && bytes > limit - filled) {
            shards += close_shard(shard, i, shards);
            filled = 0;
        }
        shard[i] = alone ? shards++ : BEING_FILLED;
        if (!alone) filled += bytes;
    }
    shards += close_shard(shard, set->count, shards);
    return max64(1, shards);
}

/* model.safetensors becomes model-00001-of-00003.safetensors. */
static void shard_name(char out[300], const char *name, i64 shard, i64 shards) {
    int stem = (int)(strlen(name) - strlen(".safetensors"));
    snprintf(out, 300, "%.*s-%05" PRId64 "-of-%05" PRId64 ".safetensors", stem, name, shard + 1,
             shards);
}

/* {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}. */
static nxt_status write_index(const tensor_writer *w, const char *name, i64 shards) {
    const i64 n = order_plans(w, ALL_SHARDS);
    buffer b = {.cx = w->s->cx};
    i64 total = 0;
    char file[300];
    for (i64 i = 0; i < n; i++) total += plan_bytes(w->order[i]);
    buffer_print(&b, "{\n  \"metadata\": {\n    \"total_size\": %" PRId64
                 "\n  },\n  \"weight_map\": {", total);
    for (i64 i = 0; i < n; i++) {
        const tensor_plan *t = w->order[i];
        shard_name(file, name, w->shard[t - w->set->plans], shards);
        buffer_text(&b, i ? ",\n    " : "\n    ");
        json_write_text(&b, t->name, (i64)strlen(t->name));
        buffer_print(&b, ": \"%s\"", file);
    }
    buffer_text(&b, "\n  }\n}\n");
    snprintf(file, sizeof file, "%s.index.json", name);
    nxt_status status = b.status;
    if (status == NXT_OK) status = save_text(w->s, file, b.p, b.n);
    buffer_free(&b);
    return status;
}

/* Writes the set as `name`, which ends in .safetensors, or as shards and their index when
 * the set has a limit and does not fit. Memory: STAGE elements twice, and the header. */
static nxt_status safetensors_write(save *s, const char *name, const tensor_set *set) {
    arena a = {.cx = s->cx};
    tensor_writer w = {.s = s, .set = set};
    char file[300];
    w.order = arena_get(&a, (size_t)set->count * sizeof *w.order);
    w.shard = arena_get(&a, (size_t)set->count * sizeof *w.shard);
    w.stage = arena_get(&a, STAGE * sizeof *w.stage);
    w.half = arena_get(&a, STAGE * sizeof *w.half);
    nxt_status status = w.order && w.shard && w.stage && w.half ? NXT_OK : NXT_MEMORY;
    i64 shards = status == NXT_OK ? choose_shards(set, w.shard) : 0;
    for (i64 i = 0; i < shards && status == NXT_OK; i++) {
        shard_name(file, name, i, shards);
        status = write_shard(&w, i, shards == 1 ? name : file);
    }
    if (shards > 1 && status == NXT_OK) status = write_index(&w, name, shards);
    arena_free(&a);
    return status;
}

/* ============================================================================
 * § 12  pytorch_model.bin (skip)
 *
 * The older form of a checkpoint: a zip archive of raw storages and of one pickle, which
 * says what tensors lie in them. A pickle is a program for a stack machine, and Python's
 * own reader calls whatever function it names; that is how such files attack. This reader
 * is not that machine. It knows the opcodes that a dictionary of tensors needs and the few
 * names that one may mention, builds plain values from them, and refuses everything else
 * by name. Nothing is ever called.
 *
 *     what such files try                             where it ends
 *     a name that runs code                           pickle_name: not in the table
 *     opcodes for old classes, extensions, buffers    pickle_step: unknown
 *     a memo, a text, a container beyond all bounds   each at its opcode
 *     two directories, two entries of one name        zip_open, zip_read
 *     entries that differ from the directory          zip_local
 *     a small file that expands without end           zip_central: nothing is expanded
 *     tensors larger than what they lie in            torch_shape, torch_tensor
 *
 * -- the archive ---------------------------------------------------------------------------
 *
 *     (local header, name, extra, data, [descriptor]) ...     PK 3 4
 *     (central header, name, extra, comment) ...              PK 1 2, the directory
 *     [zip64 end record, zip64 locator]                       PK 6 6, PK 6 7
 *     end record                                              PK 5 6
 *
 * The fields that are read, each at its offset in its record [APPNOTE]:
 *
 *                       local   central   end      zip64 end
 *     flags             6       8
 *     method            8       10
 *     bytes stored      18      20
 *     bytes             22      24        12       40           end: of the directory
 *     length of name    26      28
 *     length of extra   28      30
 *     length of comment         32        20
 *     offset                    42        16       48           end: of the directory
 *     entries                             10       32
 *
 * Readers that believe different parts of an archive can be shown different contents, so
 * all parts must agree here. Checksums are not read: PyTorch does not either, and weights
 * are not to be touched before they are used.
 */
/* One file of the archive. */
typedef struct zip_entry {
    const char *name; /* in the map, not NUL-terminated */
    i64 length;
    const u8 *p;
    i64 bytes;
} zip_entry;

typedef struct zip_archive {
    weights *w;
    const char *file;
    const u8 *p;
    i64 n;
    i64 directory, directory_end; /* where the central directory lies */
    zip_entry *entry;             /* sorted by name */
    i64 count;
    const char *root;             /* the archive's folder, with its slash */
    i64 root_length;
} zip_archive;

/* The sizes of the records, without the texts that follow some of them. */
enum { ZIP_LOCAL = 30, ZIP_CENTRAL = 46, ZIP_END = 22, ZIP_END64 = 56, ZIP_LOCATOR = 20 };

static nxt_status fail_zip(const zip_archive *z, const char *reason) {
    return fail(z->w->cx, NXT_FORMAT, "%s: damaged zip archive: %s", z->file, reason);
}

/* Whether a record of that kind and size lies at `at`: the check before any field is read. */
static bool zip_mark(const zip_archive *z, i64 at, i64 bytes, char a, char b) {
    return at >= 0 && bytes <= z->n - at && !memcmp(z->p + at, (char[]){'P', 'K', a, b}, 4);
}

/* Finds the directory, from the end of the file, where the end record must lie: PyTorch puts
 * no comment behind it. PyTorch writes the zip64 records always, other tools when needed: then
 * the plain record's numbers are the same or saturated (all ones). The directory must fill what
 * lies between its beginning and the end records. */
static nxt_status zip_open(zip_archive *z) {
    enum { ENTRIES, BYTES, OFFSET, FIELDS };
    static const int at[] = {10, 12, 16}, size[] = {2, 4, 4}, at64[] = {32, 40, 48};
    const i64 end = z->n - ZIP_END, locator = end - ZIP_LOCATOR, end64 = locator - ZIP_END64;
    u64 x[FIELDS];
    if (!zip_mark(z, end, ZIP_END, 5, 6)) return fail_zip(z, "no end record: it is cut short");
    for (int i = 0; i < FIELDS; i++) x[i] = read_le(z->p + end + at[i], size[i]);
    z->directory_end = end;
    if (zip_mark(z, locator, ZIP_LOCATOR, 6, 7)) {
        const u64 where = read_le(z->p + locator + 8, 8);
        if (where != (u64)end64 || !zip_mark(z, end64, ZIP_END64, 6, 6))
            return fail_zip(z, "no zip64 end record where its locator points");
        for (int i = 0; i < FIELDS; i++) {
            const u64 plain = x[i], saturated = ((u64)1 << 8 * size[i]) - 1;
            x[i] = read_le(z->p + end64 + at64[i], 8);
            if (plain != saturated && plain != x[i])
                return fail_zip(z, "its two end records disagree");
        }
        z->directory_end = end64;
    }
    if (x[BYTES] > (u64)z->directory_end || x[OFFSET] != (u64)z->directory_end - x[BYTES])
        return fail_zip(z, "the directory is not where the end record says");
    if (x[ENTRIES] > x[BYTES] / ZIP_CENTRAL) return fail_zip(z, "more entries than fit");
    z->directory = (i64)x[OFFSET];
    z->count = (i64)x[ENTRIES];
    return NXT_OK;
}

/* Extra fields are a list of (kind: 2 bytes, size: 2 bytes, that many bytes). The one of kind
 * 1 holds, in this order, those of the three numbers that did not fit their 32 bits and
 * read 0xffffffff. False when the list is cut short, or lacks what is needed. */
static bool zip_extra(const u8 *p, i64 n, u64 *bytes, u64 *stored, u64 *offset) {
    u64 *const field[] = {bytes, stored, offset};
    for (i64 size; n >= 4; p += size, n -= size) {
        size = 4 + (i64)read_le(p + 2, 2);
        if (size > n) return false;
        if (read_le(p, 2) != 1) continue;
        i64 at = 4;
        for (int i = 0; i < 3; i++) {
            if (*field[i] != 0xffffffff) continue;
            if (at + 8 > size) return false;
            *field[i] = read_le(p + at, 8);
            at += 8;
        }
        return true;
    }
    return *bytes != 0xffffffff && *stored != 0xffffffff && *offset != 0xffffffff;
}

/* The local header at `offset` must repeat what the central one says: name, flags, method and
 * sizes. A size may read 0, when a flag says that a descriptor behind the data has it (so
 * PyTorch writes), or 0xffffffff, when the extra field has it. Then comes the data, which
 * must end before the directory. */
static nxt_status zip_local(const zip_archive *z, const u8 *central, i64 offset, zip_entry *e) {
    const u8 *l = z->p + offset;
    if (!zip_mark(z, offset, ZIP_LOCAL, 3, 4) || offset > z->directory - ZIP_LOCAL)
        return fail_zip(z, "an entry is not where the directory says");
    i64 name = (i64)read_le(l + 26, 2), extra = (i64)read_le(l + 28, 2);
    if (name + extra > z->directory - offset - ZIP_LOCAL || name != e->length
        || memcmp(l + ZIP_LOCAL, e->name, (size_t)name) || memcmp(l + 6, central + 8, 4))
        return fail_zip(z, "an entry and the directory disagree");
    const bool later = read_le(l + 6, 2) & 8;
    for (int at = 18; at <= 22; at += 4) {
        const u64 size = read_le(l + at, 4);
        if (size != (u64)e->bytes && size != 0xffffffff && !(later && size == 0))
            return fail_zip(z, "an entry and the directory disagree about a size");
    }
    e->p = l + ZIP_LOCAL + name + extra;
    if (e->bytes > z->p + z->directory - e->p)
        return fail_zip(z, "an entry runs into the directory");
    return NXT_OK;
}

/* One central header at *at, which moves on to the next. Data must lie in the order of the
 * directory, none before *free_from: so no two entries overlap. Stored, not compressed, is
 * what lets weights be used where they lie in the map. */
static nxt_status zip_central(const zip_archive *z, i64 *at, i64 *free_from, zip_entry *e) {
    const u8 *c = z->p + *at;
    i64 room = z->directory_end - *at;
    if (room < ZIP_CENTRAL || !zip_mark(z, *at, ZIP_CENTRAL, 1, 2))
        return fail_zip(z, "its directory is cut short");
    i64 extra = (i64)read_le(c + 30, 2), comment = (i64)read_le(c + 32, 2);
    u64 stored = read_le(c + 20, 4), bytes = read_le(c + 24, 4), offset = read_le(c + 42, 4);
    e->name = (const char *)c + ZIP_CENTRAL;
    e->length = (i64)read_le(c + 28, 2);
    if (ZIP_CENTRAL + e->length + extra + comment > room)
        return fail_zip(z, "its directory is cut short");
    if (!zip_extra(c + ZIP_CENTRAL + e->length, extra, &bytes, &stored, &offset))
        return fail_zip(z, "a bad extra field");
    const bool encrypted = read_le(c + 8, 2) & 1;
    if (encrypted || read_le(c + 10, 2))
        return fail(z->w->cx, NXT_UNSUPPORTED, "%s: %.*s is %s: torch.save does not do that; "
                    "save the model again", z->file, (int)min64(e->length, 200), e->name,
                    encrypted ? "encrypted" : "compressed");
    if (bytes != stored || bytes > (u64)z->n || offset > (u64)z->n)
        return fail_zip(z, "an entry has an impossible size");
    if ((i64)offset < *free_from) return fail_zip(z, "entries overlap or are out of order");
    e->bytes = (i64)bytes;
    TRY(zip_local(z, c, (i64)offset, e));
    *free_from = e->p + e->bytes - z->p;
    *at += ZIP_CENTRAL + e->length + extra + comment;
    return NXT_OK;
}

/* By name, for zip_find. */
static int zip_order(const void *a, const void *b) {
    const zip_entry *x = a, *y = b;
    int order = memcmp(x->name, y->name, (size_t)min64(x->length, y->length));
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

/* Reads the whole directory; a name that occurs twice would mean different things to
 * different readers. All that counts lies in one folder, whatever it is called: PyTorch takes
 * that of the first entry. */
static nxt_status zip_read(zip_archive *z) {
    i64 free_from = 0;
    TRY(zip_open(z));
    z->entry = arena_get(&z->w->arena, (size_t)z->count * sizeof *z->entry);
    if (!z->entry) return NXT_MEMORY;
    i64 at = z->directory;
    for (i64 i = 0; i < z->count; i++) TRY(zip_central(z, &at, &free_from, &z->entry[i]));
    if (at != z->directory_end) return fail_zip(z, "more lies in its directory than entries");
    if (z->count > 0) {
        z->root = z->entry[0].name;
        const char *slash = memchr(z->root, '/', (size_t)z->entry[0].length);
        z->root_length = slash ? slash + 1 - z->root : 0;
    }
    qsort(z->entry, (size_t)z->count, sizeof *z->entry, zip_order);
    for (i64 i = 1; i < z->count; i++)
        if (!zip_order(&z->entry[i - 1], &z->entry[i]))
            return fail_zip(z, "a name occurs twice");
    return NXT_OK;
}

/* The entry `<root><folder><name>`, or NULL: a name too long to be real is not there. */
static const zip_entry *zip_find(const zip_archive *z, const char *folder, const char *name) {
    char full[256];
    if (z->root_length > 200) return NULL;
    int n = snprintf(full, sizeof full, "%.*s%s%s", (int)z->root_length, z->root, folder, name);
    const zip_entry key = {.name = full, .length = n};
    if (n >= (int)sizeof full) return NULL;
    return bsearch(&key, z->entry, (size_t)z->count, sizeof *z->entry, zip_order);
}

/* -- the pickle ----------------------------------------------------------------------------
 *
 * The machine has a stack of values, and a memo to use a value again. {"w": tensor of 2 x 3}
 * is, with what each opcode leaves on the stack:
 *
 *     }                               {}
 *     X "w"                           {} "w"
 *     c torch._utils _rebuild_...     {} "w" name
 *     (                               {} "w" name MARK
 *     ( X "storage" c torch FloatStorage X "0" X "cpu" K 6 t
 *                                     {} "w" name MARK ("storage", name, "0", "cpu", 6)
 *     Q                               {} "w" name MARK storage
 *     K 0                             {} "w" name MARK storage 0
 *     K 2 K 3 0x86 K 3 K 1 0x86       {} "w" name MARK storage 0 (2, 3) (3, 1)
 *     0x89 } t                        {} "w" name (storage, 0, (2, 3), (3, 1), False, {})
 *     R                               {} "w" tensor
 *     s .                             {"w": tensor}
 *
 * Python looks up a name, and R calls what it found. Here a name is a row of a table, and R
 * turns the few pairs of name and arguments that make sense into a value. Memory is bounded
 * by the length of the pickle: an opcode makes at most one value, and moves pointers. */
enum { PICKLE_MAX = 16 << 20 }; /* bytes; a model of 1000 tensors takes 150 thousand */

/* Kinds are letters, so that a list of arguments is a text (pickle_begins). */
typedef enum pickle_kind {
    PICKLE_MARK = '(',  /* on the stack only: where a list of values begins */
    PICKLE_OTHER = '?', /* None, True, False, floats, integers above 64 bits: never looked at */
    PICKLE_INTEGER = 'i', PICKLE_TEXT = 's', PICKLE_TUPLE = 't',
    PICKLE_LIST = '[',  /* what it holds is dropped: no tensor of a model lies in one */
    PICKLE_DICT = '{',  /* only what has a text for its key is kept */
    PICKLE_NAME = 'n',  /* one of torch_known */
    PICKLE_STORAGE = 'S', PICKLE_TENSOR = 'T' /* items: the arguments it was built from */
} pickle_kind;

/* All that a pickle may mention: three callables and the types of storages. */
typedef struct torch_name {
    const char *name;
    enum { ORDERED_DICT, BUILD_TENSOR, BUILD_PARAMETER, STORAGE } role;
    const char *kind; /* of a storage's elements */
} torch_name;

static const torch_name torch_known[] = {
    {"collections.OrderedDict", ORDERED_DICT, NULL},
    {"torch._utils._rebuild_tensor_v2", BUILD_TENSOR, NULL},
    {"torch._utils._rebuild_parameter", BUILD_PARAMETER, NULL},
    {"torch.FloatStorage", STORAGE, "F32"},   {"torch.HalfStorage", STORAGE, "F16"},
    {"torch.BFloat16Storage", STORAGE, "BF16"}, {"torch.DoubleStorage", STORAGE, "F64"},
    {"torch.LongStorage", STORAGE, "I64"},    {"torch.IntStorage", STORAGE, "I32"},
    {"torch.ShortStorage", STORAGE, "I16"},   {"torch.CharStorage", STORAGE, "I8"},
    {"torch.ByteStorage", STORAGE, "U8"},     {"torch.BoolStorage", STORAGE, "BOOL"},
    {"torch.ComplexFloatStorage", STORAGE, "C64"}};

/* Values are shared (the memo) and may even hold themselves, so nothing here walks them
 * without a bound. */
typedef struct pickle_value {
    pickle_kind kind;
    const char *text;          /* a text; the key of a storage */
    i64 number;                /* an integer; the elements of a storage */
    const torch_name *name;    /* a name; the type of a storage */
    struct pickle_value **item; /* of a tuple or a tensor */
    i64 count;
    struct pickle_pair *last;  /* of a dictionary */
} pickle_value;

typedef struct pickle_pair {
    const char *key;
    const pickle_value *value;
    struct pickle_pair *before; /* the pair that was added before this one */
} pickle_pair;

typedef struct pickle_machine {
    nxt_context *cx;
    const char *file;
    arena arena; /* of all values: they point at each other freely, and die together */
    const u8 *start, *p, *end;
    pickle_value **stack, **memo; /* each has a place for every byte of the pickle */
    i64 depth, memo_count;
} pickle_machine;

/* Every fault says where in the pickle it was found. */
static nxt_status fail_pickle(const pickle_machine *k, const char *reason) {
    return fail(k->cx, NXT_FORMAT, "%s: data.pkl, byte %" PRId64 ": %s", k->file,
                (i64)(k->p - k->start), reason);
}

static void pickle_push(pickle_machine *k, pickle_value *v) { k->stack[k->depth++] = v; }

/* A new value on the stack, like this one. */
static nxt_status pickle_new(pickle_machine *k, pickle_value like) {
    pickle_value *v = arena_get(&k->arena, sizeof *v);
    if (!v) return NXT_MEMORY;
    *v = like;
    pickle_push(k, v);
    return NXT_OK;
}

/* The top of the stack, which must be of that kind; so a mark is never taken for a value. */
static nxt_status pickle_pop(pickle_machine *k, pickle_kind kind, pickle_value **out) {
    if (k->depth == 0) return fail_pickle(k, "the stack is empty");
    *out = k->stack[--k->depth];
    return (*out)->kind == kind ? NXT_OK : fail_pickle(k, "a value of another kind is needed");
}

enum { MARKED = -1 };

/* A tuple of the last n values; MARKED: of those above the last mark, which goes. */
static nxt_status pickle_tuple(pickle_machine *k, i64 n) {
    i64 have = 0;
    while (have < k->depth && have != n && k->stack[k->depth - 1 - have]->kind != PICKLE_MARK)
        have++;
    if (n == MARKED && have == k->depth) return fail_pickle(k, "no mark on the stack");
    if (have < n) return fail_pickle(k, "too few values on the stack");
    pickle_value **item = arena_get(&k->arena, (size_t)have * sizeof *item);
    if (!item) return NXT_MEMORY;
    k->depth -= have;
    for (i64 i = 0; i < have; i++) item[i] = k->stack[k->depth + i];
    k->depth -= n == MARKED;
    return pickle_new(k, (pickle_value){.kind = PICKLE_TUPLE, .item = item, .count = have});
}

/* Adds the last n values, or those above the mark, to the list or dictionary below. */
static nxt_status pickle_extend(pickle_machine *k, pickle_kind kind, i64 n) {
    TRY(pickle_tuple(k, n));
    const pickle_value *added = k->stack[--k->depth];
    pickle_value *v = k->depth ? k->stack[k->depth - 1] : NULL;
    if (!v || v->kind != kind || (kind == PICKLE_DICT && added->count % 2))
        return fail_pickle(k, "nothing to add these values to");
    for (i64 i = 0; kind == PICKLE_DICT && i < added->count; i += 2) {
        if (added->item[i]->kind != PICKLE_TEXT) continue;
        pickle_pair *pair = arena_get(&k->arena, sizeof *pair);
        if (!pair) return NXT_MEMORY;
        *pair = (pickle_pair){added->item[i]->text, added->item[i + 1], v->last};
        v->last = pair;
    }
    return NXT_OK;
}

/* A text of n bytes. No name of a tensor or a storage has a zero byte, and without them texts
 * can be C strings. */
static nxt_status pickle_text(pickle_machine *k, u64 n) {
    u32 code;
    if (n > (u64)(k->end - k->p)) return fail_pickle(k, "a text is cut short");
    if (memchr(k->p, 0, n)) return fail_pickle(k, "a text holds a zero byte");
    const char *s = arena_text(&k->arena, (const char *)k->p, n);
    if (!s) return NXT_MEMORY;
    for (i64 i = 0, size; i < (i64)n; i += size)
        if (!(size = utf8_decode(s + i, (i64)n - i, &code)))
            return fail_pickle(k, "a text is not UTF-8");
    k->p += n;
    return pickle_new(k, (pickle_value){.kind = PICKLE_TEXT, .text = s});
}

/* Two's complement of n bytes; above 8 it is a number nobody asks for. */
static nxt_status pickle_long(pickle_machine *k, u64 n) {
    if (n > (u64)(k->end - k->p)) return fail_pickle(k, "cut short");
    pickle_value v = {.kind = n > 8 ? PICKLE_OTHER : PICKLE_INTEGER};
    const u64 unused = 64 - 8 * n;
    if (n > 0 && n <= 8) v.number = (i64)(read_le(k->p, (int)n) << unused) >> unused;
    k->p += n;
    return pickle_new(k, v);
}

/* Puts the top of the stack into the memo. Python numbers values from 0, so that a number
 * above the length of the pickle can only be meant to exhaust memory. */
static nxt_status pickle_remember(pickle_machine *k, u64 index) {
    if (k->depth == 0 || k->stack[k->depth - 1]->kind == PICKLE_MARK)
        return fail_pickle(k, "nothing to remember");
    if (index > (u64)(k->end - k->start)) return fail_pickle(k, "an absurd memo number");
    k->memo[index] = k->stack[k->depth - 1];
    k->memo_count = max64(k->memo_count, (i64)index + 1);
    return NXT_OK;
}

/* Pushes a value of the memo: the same value, not a copy. */
static nxt_status pickle_recall(pickle_machine *k, u64 index) {
    if (index >= (u64)k->memo_count || !k->memo[index])
        return fail_pickle(k, "recalls what was never remembered");
    pickle_push(k, k->memo[index]);
    return NXT_OK;
}

/* A text up to the end of the line. */
static nxt_status pickle_line(pickle_machine *k) {
    const u8 *stop = memchr(k->p, '\n', (size_t)(k->end - k->p));
    if (!stop) return fail_pickle(k, "a name is cut short");
    TRY(pickle_text(k, (u64)(stop - k->p)));
    k->p++;
    return NXT_OK;
}

/* The one place where a pickle could reach for code: two texts on the stack, module and name.
 * What is not in the table ends the reading, whether or not it would have been called. */
static nxt_status pickle_name(pickle_machine *k) {
    pickle_value *module = NULL, *name = NULL;
    char full[200];
    TRY(pickle_pop(k, PICKLE_TEXT, &name));
    TRY(pickle_pop(k, PICKLE_TEXT, &module));
    snprintf(full, sizeof full, "%.90s.%.90s", module->text, name->text);
    for (i64 i = 0; i < COUNT(torch_known); i++)
        if (!strcmp(torch_known[i].name, full))
            return pickle_new(k, (pickle_value){.kind = PICKLE_NAME, .name = &torch_known[i]});
    return fail(k->cx, NXT_UNSUPPORTED, "%s: asks for %s, which a dictionary of tensors "
                "does not need: refused", k->file, full);
}

/* Whether a tuple begins with values of these kinds, each named by its letter. */
static bool pickle_begins(const pickle_value *tuple, const char *kinds) {
    for (i64 i = 0; kinds[i]; i++)
        if (i >= tuple->count || tuple->item[i]->kind != (pickle_kind)kinds[i]) return false;
    return true;
}

/* BINPERSID: a reference to data outside the pickle. PyTorch uses it for storages:
 * ("storage", type, key, device, elements), the data being entry `data/<key>`. Whatever device
 * it was on, it is bytes now. */
static nxt_status pickle_storage(pickle_machine *k) {
    pickle_value *id = NULL;
    TRY(pickle_pop(k, PICKLE_TUPLE, &id));
    pickle_value *const *v = id->item;
    if (id->count != 5 || !pickle_begins(id, "snssi") || strcmp(v[0]->text, "storage")
        || v[1]->name->role != STORAGE || v[4]->number < 0)
        return fail_pickle(k, "a reference to something that is no storage");
    return pickle_new(k, (pickle_value){.kind = PICKLE_STORAGE, .name = v[1]->name,
                                        .text = v[2]->text, .number = v[4]->number});
}

/* What Python would call with a tuple of arguments becomes a value of ours. A tensor is
 * (storage, offset, sizes, strides, requires_grad, hooks [, metadata]), of which the last three
 * say nothing about its values; a parameter is (tensor, requires_grad, hooks). */
static nxt_status pickle_reduce(pickle_machine *k) {
    pickle_value *args = NULL, *callee = NULL;
    TRY(pickle_pop(k, PICKLE_TUPLE, &args));
    TRY(pickle_pop(k, PICKLE_NAME, &callee));
    const int role = callee->name->role;
    const i64 n = args->count;
    if (role == ORDERED_DICT && n == 0)
        return pickle_new(k, (pickle_value){.kind = PICKLE_DICT});
    if (role == BUILD_TENSOR && (n == 6 || n == 7) && pickle_begins(args, "Sitt"))
        return pickle_new(k, (pickle_value){.kind = PICKLE_TENSOR, .item = args->item});
    if (role == BUILD_PARAMETER && n == 3 && pickle_begins(args, "T"))
        return pickle_push(k, args->item[0]), NXT_OK;
    return fail(k->cx, NXT_UNSUPPORTED, "%s: data.pkl, byte %" PRId64 ": %s with unexpected "
                "arguments", k->file, (i64)(k->p - k->start), callee->name->name);
}

/* State that a dictionary carries beside its items (state_dict()._metadata): dropped. */
static nxt_status pickle_build(pickle_machine *k) {
    if (k->depth < 2 || k->stack[k->depth - 1]->kind == PICKLE_MARK
        || k->stack[k->depth - 2]->kind != PICKLE_DICT)
        return fail_pickle(k, "sets the state of something that is no dictionary");
    k->depth--;
    return NXT_OK;
}

/* One opcode, after the number that follows some. Protocols 2 to 5, as far as torch.save uses
 * them for dictionaries of tensors and for the plain values that training scripts keep beside
 * them. */
static nxt_status pickle_step(pickle_machine *k, u8 opcode) {
    static const u8 bytes[256] = {[0x80] = 1, [0x95] = 8, ['G'] = 8, ['K'] = 1, ['M'] = 2,
                                  ['J'] = 4, [0x8a] = 1, ['X'] = 4, [0x8c] = 1, ['q'] = 1,
                                  ['r'] = 4, ['h'] = 1, ['j'] = 4};
    if (bytes[opcode] > k->end - k->p) return fail_pickle(k, "cut short");
    const u64 n = read_le(k->p, bytes[opcode]);
    k->p += bytes[opcode];
    switch (opcode) {
    case 0x80: /* PROTO */
        return n >= 2 && n <= 5 ? NXT_OK : fail_pickle(k, "unknown pickle protocol");
    case 0x95: return NXT_OK;                             /* FRAME */
    case '(': return pickle_new(k, (pickle_value){.kind = PICKLE_MARK});
    case 'N': case 0x88: case 0x89: case 'G': /* NONE, NEWTRUE, NEWFALSE, BINFLOAT */
        return pickle_new(k, (pickle_value){.kind = PICKLE_OTHER});
    case 'K': case 'M':                                   /* BININT1, BININT2 */
        return pickle_new(k, (pickle_value){.kind = PICKLE_INTEGER, .number = (i64)n});
    case 'J':                                             /* BININT */
        return pickle_new(k, (pickle_value){.kind = PICKLE_INTEGER, .number = (i32)n});
    case 0x8a: return pickle_long(k, n);                  /* LONG1 */
    case 'X': case 0x8c: return pickle_text(k, n);        /* BINUNICODE, SHORT_BINUNICODE */
    case ')': return pickle_tuple(k, 0);                  /* EMPTY_TUPLE */
    case 0x85: case 0x86: case 0x87:                      /* TUPLE1, TUPLE2, TUPLE3 */
        return pickle_tuple(k, opcode - 0x84);
    case 't': return pickle_tuple(k, MARKED);             /* TUPLE */
    case ']': return pickle_new(k, (pickle_value){.kind = PICKLE_LIST});
    case 'a': return pickle_extend(k, PICKLE_LIST, 1);    /* APPEND */
    case 'e': return pickle_extend(k, PICKLE_LIST, MARKED); /* APPENDS */
    case '}': return pickle_new(k, (pickle_value){.kind = PICKLE_DICT});
    case 's': return pickle_extend(k, PICKLE_DICT, 2);    /* SETITEM */
    case 'u': return pickle_extend(k, PICKLE_DICT, MARKED); /* SETITEMS */
    case 'q': case 'r': return pickle_remember(k, n);     /* BINPUT, LONG_BINPUT */
    case 0x94: return pickle_remember(k, (u64)k->memo_count); /* MEMOIZE */
    case 'h': case 'j': return pickle_recall(k, n);       /* BINGET, LONG_BINGET */
    case 'c':                                             /* GLOBAL */
        TRY(pickle_line(k));
        TRY(pickle_line(k));
        return pickle_name(k);
    case 0x93: return pickle_name(k);                     /* STACK_GLOBAL */
    case 'Q': return pickle_storage(k);                   /* BINPERSID */
    case 'R': return pickle_reduce(k);
    case 'b': return pickle_build(k);
    }
    return fail(k->cx, NXT_UNSUPPORTED, "%s: data.pkl, byte %" PRId64 ": opcode 0x%02x, which "
                "a dictionary of tensors does not need: refused", k->file,
                (i64)(k->p - k->start) - 1, opcode);
}

/* Runs until STOP, which must find one value on the stack. What follows it is not read. Each
 * push costs a byte of the pickle at least, so that stack and memo never need to grow. */
static nxt_status pickle_run(pickle_machine *k, pickle_value **result) {
    const size_t places = (size_t)(k->end - k->start) + 1;
    k->stack = arena_get(&k->arena, places * sizeof *k->stack);
    k->memo = arena_get(&k->arena, places * sizeof *k->memo);
    if (!k->stack || !k->memo) return NXT_MEMORY;
    while (k->p < k->end && *k->p != '.') TRY(pickle_step(k, *k->p++));
    if (k->p == k->end) return fail_pickle(k, "cut short");
    if (k->depth != 1) return fail_pickle(k, "ends with more or less than one value");
    *result = k->stack[0];
    return NXT_OK;
}

/* -- from values to tensors ---------------------------------------------------------------- */

/* A dictionary with at least one tensor among its values. */
static bool holds_tensors(const pickle_value *v) {
    for (const pickle_pair *p = v->last; p; p = p->before)
        if (p->value->kind == PICKLE_TENSOR) return true;
    return false;
}

/* The dictionary of tensors: the file's value, or what training scripts wrap it in. Of two
 * values under one key the last counts, as in Python. */
static const pickle_value *find_state_dict(const pickle_value *top) {
    static const char *const keys[] = {"state_dict", "model"};
    for (int i = 0; i < COUNT(keys) && !holds_tensors(top); i++) {
        const pickle_pair *p = top->last;
        while (p && strcmp(p->key, keys[i])) p = p->before;
        if (p && holds_tensors(p->value)) return p->value;
    }
    return top;
}

/* Sizes and strides; *extent: how many elements of the storage lie between the tensor's first
 * and its last, both included:  1 + sum over i of (dim[i] - 1) stride[i].
 * Row-major tensors of any rank are taken, and of rank 2 any strides (a transposed weight, a
 * part of a wider one): a matrix multiplication can walk those as they are. */
static nxt_status torch_shape(const zip_archive *z, const pickle_value *v, tensor *t,
                              i64 *extent) {
    const pickle_value *size = v->item[2], *stride = v->item[3];
    if (size->count > MAX_RANK)
        return fail_tensor(z->w, t, "has %" PRId64 " dimensions, more than %d", size->count,
                          MAX_RANK);
    if (size->count != stride->count)
        return fail_tensor(z->w, t, "has not one stride for each size");
    t->rank = (int)size->count;
    t->count = 1;
    for (int i = 0; i < t->rank; i++) {
        if (size->item[i]->kind != PICKLE_INTEGER || stride->item[i]->kind != PICKLE_INTEGER)
            return fail_tensor(z->w, t, "has a size or stride that is no integer");
        t->dim[i] = size->item[i]->number;
        t->stride[i] = stride->item[i]->number;
        if (t->dim[i] < 0 || t->stride[i] < 0)
            return fail_tensor(z->w, t, "has a negative size or stride");
        if (__builtin_mul_overflow(t->count, t->dim[i], &t->count))
            return fail_tensor(z->w, t, "the product of its shape overflows");
    }
    *extent = t->count > 0;
    bool dense = true; /* row-major without holes */
    for (i64 i = t->rank - 1, step = 1; i >= 0 && t->count; step *= t->dim[i--]) {
        i64 reach;
        if (t->dim[i] == 1) t->stride[i] = step; /* never used: any value was legal */
        dense = dense && t->stride[i] == step;
        if (__builtin_mul_overflow(t->dim[i] - 1, t->stride[i], &reach)
            || __builtin_add_overflow(*extent, reach, extent))
            return fail_tensor(z->w, t, "its strides overflow");
    }
    if (!dense && t->rank != 2)
        return fail(z->w->cx, NXT_UNSUPPORTED, "%s: tensor %.200s: a view that is neither "
                    "contiguous nor of two dimensions: save it .contiguous()", z->file,
                    t->name);
    return NXT_OK;
}

/* The storage must hold the elements it claims, and the tensor must lie in the storage, before
 * its address is formed. */
static nxt_status torch_tensor(const zip_archive *z, const char *name, const pickle_value *v) {
    const pickle_value *storage = v->item[0];
    const tensor_kind *kind = tensor_kind_named(storage->name->kind);
    const i64 offset = v->item[1]->number, width = kind->bits / 8;
    tensor t = {.file = z->file, .type = kind->type, .type_name = kind->name};
    i64 extent = 0, bytes;
    t.name = arena_text(&z->w->arena, name, strlen(name));
    if (!t.name) return NXT_MEMORY;
    TRY(torch_shape(z, v, &t, &extent));
    const zip_entry *e = zip_find(z, "data/", storage->text);
    if (!e) return fail_tensor(z->w, &t, "its storage %.40s is not in the file", storage->text);
    if (__builtin_mul_overflow(storage->number, width, &bytes) || bytes > e->bytes)
        return fail_tensor(z->w, &t, "its storage needs %" PRId64 " elements of %" PRId64
                          " bytes and has %" PRId64 " bytes", storage->number, width, e->bytes);
    if (offset < 0 || extent > storage->number || offset > storage->number - extent)
        return fail_tensor(z->w, &t, "reaches beyond its storage");
    t.p = e->p + offset * width;
    return weights_add(z->w, &t);
}

/* All tensors of the dictionary; what else it holds (an epoch, a learning rate) is skipped. */
static nxt_status torch_tensors(const zip_archive *z, const pickle_value *top) {
    const pickle_value *d = find_state_dict(top);
    if (!holds_tensors(d))
        return fail(z->w->cx, NXT_FORMAT, "%s: no dictionary of tensors: not a state_dict",
                    z->file);
    for (const pickle_pair *p = d->last; p; p = p->before)
        if (p->value->kind == PICKLE_TENSOR) TRY(torch_tensor(z, p->key, p->value));
    return weights_sort(z->w, "the name occurs twice");
}

/* Runs a copy of the pickle: the file could change between two looks at it. */
static nxt_status torch_pickle(const zip_archive *z) {
    const zip_entry *e = zip_find(z, "", "data.pkl"), *order = zip_find(z, "", "byteorder");
    if (!e)
        return fail(z->w->cx, NXT_FORMAT, "%s: a zip archive without %.*sdata.pkl: not what "
                    "torch.save writes", z->file, (int)min64(z->root_length, 200), z->root);
    if (order && (order->bytes != 6 || memcmp(order->p, "little", 6)))
        return fail(z->w->cx, NXT_UNSUPPORTED, "%s: written by a machine of %.*s byte order",
                    z->file, (int)min64(order->bytes, 10), (const char *)order->p);
    if (e->bytes > PICKLE_MAX)
        return fail(z->w->cx, NXT_UNSUPPORTED, "%s: data.pkl has %" PRId64 " bytes, more than "
                    "%d", z->file, e->bytes, PICKLE_MAX);
    pickle_machine k = {.cx = z->w->cx, .file = z->file, .arena.cx = z->w->cx};
    pickle_value *top = NULL;
    nxt_status status = NXT_MEMORY;
    k.start = k.p = (u8 *)arena_text(&k.arena, (const char *)e->p, (size_t)e->bytes);
    k.end = k.start ? k.start + e->bytes : NULL;
    if (k.start) status = pickle_run(&k, &top);
    if (status == NXT_OK) status = torch_tensors(z, top);
    arena_free(&k.arena);
    return status;
}

/* Adds the tensors of the n bytes at p, which stay where they are, to w. A file that is no
 * archive but begins like a pickle was written before PyTorch 1.6, data and pickle in one
 * stream; there are few left. */
static nxt_status torchbin_parse(weights *w, const char *file, const u8 *p, i64 n) {
    zip_archive z = {.w = w, .file = file, .p = p, .n = n, .root = ""};
    if (n >= 2 && p[0] == 0x80 && p[1] <= 5)
        return fail(w->cx, NXT_UNSUPPORTED, "%s: written in the form of PyTorch before 1.6: "
                    "load it there and save it again", file);
    if (!zip_mark(&z, 0, 4, 3, 4))
        return fail(w->cx, NXT_FORMAT, "%s: not a file of torch.save (no zip archive)", file);
    TRY(zip_read(&z));
    return torch_pickle(&z);
}

/* -- opening a model's weights --------------------------------------------------------------
 *
 * A large model is spread over several files, and an index says which tensor is in which. The
 * index decides: what it does not name does not count, and what it names must be there. */

/* {"weight_map": {tensor: file}}. The files must lie beside the index: a name that leads
 * elsewhere would let a downloaded model make us read any file of the machine. */
static nxt_status weights_read_index(weights *w, const char *directory, const char *path) {
    json *root;
    TRY(json_read(&w->arena, path, SAFETENSORS_HEADER_MAX, &root));
    const json *map = json_get(root, "weight_map");
    if (!map || map->kind != JSON_OBJECT)
        return fail(w->cx, NXT_FORMAT, "%s: no weight_map", path);
    for (const json *m = map->first; m; m = m->next) {
        tensor awaited = {.rank = AWAITED, .name = m->key, .file = path};
        if (strlen(m->key) != (size_t)m->key_length)
            return fail_tensor(w, &awaited, "the name goes on after a zero byte");
        if (m->kind != JSON_STRING || !m->length || strlen(m->text) != (size_t)m->length
            || strpbrk(m->text, "/\\") || strstr(m->text, ".."))
            return fail_tensor(w, &awaited, "not the name of a file beside it");
        const char *file = path_join(&w->arena, directory, m->text);
        if (!file) return NXT_MEMORY;
        TRY(weights_file(w, file, &awaited.file));
        TRY(weights_add(w, &awaited));
    }
    TRY(weights_sort(w, "the index names it twice"));
    w->indexed = true;
    return NXT_OK;
}

/* The weights of a model directory, in the first of these forms that is there: the order in
 * which Hugging Face looks. After a failure w is closed. */
static nxt_status weights_open(nxt_context *cx, const char *directory, weights *w) {
    static const char *const forms[] = {"model.safetensors", "model.safetensors.index.json",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json"};
    *w = (weights){.cx = cx, .arena.cx = cx};
    for (int i = 0; i < COUNT(forms); i++) {
        const char *path = path_join(&w->arena, directory, forms[i]);
        nxt_status status = path ? NXT_OK : NXT_MEMORY;
        if (path && !path_exists(path)) continue;
        if (status == NXT_OK)
            status = i % 2 ? weights_read_index(w, directory, path) : weights_file(w, path, &path);
        if (status == NXT_OK)
            status = weights_read(w, path, i < 2 ? safetensors_parse : torchbin_parse);
        if (status != NXT_OK) weights_close(w);
        return status;
    }
    weights_close(w);
    return fail(cx, NXT_IO, "%s: no weights: neither %s nor %s, neither %s nor %s", directory,
                forms[0], forms[1], forms[2], forms[3]);
}

/* One file, whole or not at all. */
static nxt_status file_replace(nxt_context *cx, const char *path, const char *text, i64 n) {
    arena a = {.cx = cx};
    save s = {.cx = cx};
    const char *slash = strrchr(path, '/'), *parent = path_parent(&a, path);
    nxt_status status = parent ? save_begin_into(cx, parent, &s) : NXT_MEMORY;
    arena_free(&a);
    TRY(status);
    status = save_text(&s, slash ? slash + 1 : path, text, n);
    if (status == NXT_OK) return save_commit(&s);
    save_abort(&s);
    return status;
}

/* -- texts that programs read --------------------------------------------------------------- */
enum { TEXT_BYTES = 64 << 20 };

nxt_status nxt_text_keep(nxt_context *cx, const char *text, const char **kept) {
    arena a = {.cx = cx, .chunks = cx->kept};
    *kept = arena_text(&a, text, strlen(text));
    cx->kept = a.chunks;
    return *kept ? NXT_OK : NXT_MEMORY;
}

nxt_status nxt_text_read(nxt_context *cx, const char *path, const char **text) {
    buffer b = {.cx = cx};
    *text = NULL;
    nxt_status status = file_read(cx, path, TEXT_BYTES, &b);
    if (status == NXT_OK) status = nxt_text_keep(cx, b.p, text);
    buffer_free(&b);
    return status;
}

/* The list itself is no option, its items are: {"lora_target_modules": ["q", "v"]} sets one
 * name twice. null says nothing, and an object is no option's value: both are passed over. */
nxt_status nxt_options_read(nxt_context *cx, const char *path,
                            void (*set)(void *user, const char *name, const char *value),
                            void *user) {
    json *top;
    arena a = {.cx = cx, .chunks = cx->kept}; /* the host may keep the texts that it is given */
    nxt_status status = json_read(&a, path, TEXT_BYTES, &top);
    cx->kept = a.chunks;
    TRY(status);
    if (top->kind != JSON_OBJECT) return fail(cx, NXT_FORMAT, "%s: not a JSON object", path);
    for (const json *v = top->first; v; v = v->next) {
        const bool list = v->kind == JSON_ARRAY;
        for (const json *i = list ? v->first : v; i; i = list ? i->next : NULL) {
            const bool word = i->kind == JSON_TRUE || i->kind == JSON_FALSE;
            const char *text = word ? json_words[i->kind] : i->text;
            if (text) set(user, v->key, text);
        }
    }
    return NXT_OK;
}

/* ============================================================================
 * § 13  Tokenizer
 *
 * A model knows text only as the ids its own tokenizer made, so ours must make the same
 * ids, on every input. Text passes four stations, as in the library that the models were
 * trained with [HFTokenizers]:
 *
 *     added tokens    pieces that are one token by decree: "<|endoftext|>", runs of spaces
 *     normaliser      equivalent spellings become one: Unicode normal form C, or nothing
 *     pre-tokenizer   cuts that no token crosses: words with the space before, numbers, ...
 *     BPE             the bytes of a word are merged pair by pair; of all pairs the one that
 *                     training merged first goes first [Sennrich16, Radford19]
 *
 *     It's 3 pm.<|endoftext|>
 *     [It's 3 pm.] <|endoftext|>                   added tokens
 *     [It] ['s] [ 3] [ pm] [.] <|endoftext|>       pre-tokenizer: the space goes with the word
 *     [I t] -> [It], [' s] -> ['s], ...            BPE: each word from its bytes
 *
 * Everything is linear in the text, but for BPE, where a word of n bytes costs O(n log n).
 * Bytes that are not UTF-8 count as symbols, neither letters nor spaces, and survive as the
 * tokens of these bytes, if the vocabulary has them: GPT-NeoX's has no token for the 13 bytes
 * that UTF-8 never uses, and what has no token is dropped.
 *
 * Other families have other pieces at the stations. Llama 3 and Qwen cut by other patterns.
 * Llama 2's, which SentencePiece made [Kudo18], cuts nothing: a space is a letter like any
 * other, written U+2581 in its files, every text begins with one, symbols are characters,
 * and only a character without a token is spelt in bytes. What is not here is refused by
 * name when it is loaded.
 *
 *     Once upon      ->  [ Once] [ upon]           SentencePiece: the first word has its space
 */
enum { UNICODE_RUNS = 2283, UNICODE_PAIRS = 2060, UNICODE_COMPOSED = 940 };

/* Filled in at the end of this file. A run of code points with one property: the first of
 * them << 11 | the property. A row c, first, second: c decomposes into first second, or into
 * first alone (second 0); the first UNICODE_COMPOSED rows are compositions as well. */
static const u32 unicode_runs[UNICODE_RUNS];
static const u32 unicode_pairs[3 * UNICODE_PAIRS];

enum { /* the property of a code point: class, flags, and its combining class << 3 */
    SYMBOL = 0, LETTER = 1, NUMBER = 2, SPACE = 3, CLASS = 3,
    WORD = 4,       /* \w: what a single_word token must not touch */
    LOOK = 1 << 11, /* normalising may change it, or it may change what stands before it */
    INVALID = 0x110000 /* the last "code point" stands for a byte that is not UTF-8 */
};

/* A map from two numbers to one: a hash table, half empty at least, searched from the hash
 * onwards. Free slots have the value NONE. Most questions are about pairs that are not there:
 * a filter, small enough to stay near the processor, answers most of them. */
typedef struct pair_slot { u32 a, b, value; } pair_slot;
typedef struct pair_map {
    pair_slot *slot;
    u64 *filter; /* four bits a slot; a bit is set if some pair's hash begins with its number */
    u32 mask;
    int shift;
} pair_map;

static const u32 NONE = 0xffffffff;

/* A row of the vocabulary. Its text is plain bytes, not letters of the file's alphabet. */
typedef struct token_row {
    const u8 *text; /* NULL: no token has this id */
    u32 length, flags;
} token_row;

enum { /* token_row.flags */
    VERBATIM = 1, /* an added token, or one in letters that stand for no byte: unknown to BPE */
    SPECIAL = 2, LSTRIP = 4, RSTRIP = 8, SINGLE_WORD = 16
};

/* Added tokens by their bytes: a tree with one node for each prefix. */
typedef struct trie {
    struct trie *child, *sibling;
    i32 ends; /* 1 + the id of the token that ends here; 0: none does */
    u8 byte;
} trie;

typedef struct matcher {
    trie *root[256];
    bool any;
} matcher;

/* What BPE made of a word: one cache line, 24 + 36 + 4 bytes. The last byte of the key is the
 * word's length, so that "a" and "a" with a zero byte differ, and an empty slot is no word. */
enum { WORD_BYTES = 23, WORD_IDS = 9, CACHE_BITS = 15 };
typedef struct known_word {
    u8 key[WORD_BYTES + 1];
    i32 id[WORD_IDS], count;
} known_word;

/* Bytes [begin, end) of the normalised text replace others, which end at `original`. */
typedef struct text_change { i64 begin, end, original; } text_change;

/* Ids and, on request, where in the text each token ends. */
typedef struct token_list {
    nxt_context *cx;
    i32 *id;
    i64 *end; /* NULL unless wanted */
    i64 n, capacity, end_capacity;
} token_list;

/* Of the letters below U+0100 188 are visible and stand for themselves; the 68 other bytes are
 * the letters from U+0100 on. The bounds are many times what any tokenizer has. */
enum { ALPHABET = 0x100 + 68, MOST_TOKENS = 1 << 22, MOST_BYTES = 1 << 28 };

/* Where a space is put in front: nowhere; of every text between added tokens that has none
 * yet; of it if it is the first; of every such text, whatever it begins with. */
typedef enum prefix_kind {
    PREFIX_NONE, PREFIX_MISSING, PREFIX_FIRST, PREFIX_ALWAYS
} prefix_kind;

struct nxt_tokenizer {
    nxt_context *cx;
    arena memory;          /* of everything that does not grow */
    arena scratch;         /* of what the files say, until all is loaded */
    const char *path;      /* of the file at work, for errors */
    u16 *property;         /* of each code point, and of INVALID */
    pair_map unicode;      /* (c, 0) and (first, second) -> row of unicode_pairs */

    token_row *token;
    i32 size, rows;        /* highest id + 1; the rows of token: as many and the added ones */
    pair_map dictionary;   /* the two halves of a text's hash -> id */
    i32 byte_of[ALPHABET]; /* letter of the file -> byte, or -1 */
    i32 byte_id[256];      /* byte -> its token, or -1 */
    u32 *byte_rank;        /* (256, 256): ranks of pairs of bytes: every new word asks them */
    pair_map merges;       /* (left id, right id) -> rank */
    i32 *merged;           /* rank -> id of the two together */
    i32 unknown;           /* stands for bytes without a token; -1: these are dropped */
    bool fuse_unknown, ignore_merges, form_c;
    bool characters;       /* SentencePiece: symbols are characters, not bytes */
    bool adds_bos;         /* the model wants bos in front of a text */
    prefix_kind prefix;    /* when a space is put in front */
    i64 segment;           /* where the text at work begins in the whole */
    i64 (*split)(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n);
    matcher raw, normal;   /* added tokens: looked for before and after normalising */
    i32 eos, bos;

    /* what encode() works with */
    token_list *out;
    bool want_ends;
    known_word *cache;     /* (1 << CACHE_BITS) */
    buffer text, prefixed; /* the normalised text, ... */
    text_change *change;   /* ... the places where it differs, ... */
    i64 changes, change_capacity;
    u32 *point;            /* ... and the code points of one such place */
    i64 point_capacity;
};

/* -- maps ------------------------------------------------------------------------------------
 *
 * One kind of map serves three questions: what two tokens merge into, what two code points
 * compose to, and, with the halves of a hash for the two numbers, which id a text has.
 *
 * Nothing is ever removed, so a search may stop at the first free slot. At most half of the
 * slots are taken: a search that finds nothing looks at 2.5 of them on average (linear
 * probing at half load), and the filter has eight bits or more for each pair, which ends at
 * least seven of eight such searches before they begin.
 */

/* For at most `most` pairs. */
static nxt_status pair_map_create(arena *a, i64 most, pair_map *m) {
    int bits = 4;
    while ((i64)1 << bits < 2 * most) bits++;
    const size_t slots = (size_t)1 << bits, bytes = slots * sizeof *m->slot;
    *m = (pair_map){arena_get(a, bytes), arena_get(a, slots / 2), (u32)slots - 1, 64 - bits};
    if (!m->slot || !m->filter) return NXT_MEMORY;
    memset(m->slot, 0xff, bytes); /* NONE */
    return NXT_OK;
}

/* Multiplying carries every bit upwards, so the highest bits of the product are the best mixed:
 * the slot is taken from there. */
static inline u64 pair_hash(u32 a, u32 b) {
    return ((u64)a << 32 | b) * 0x9e3779b97f4a7c15u; /* 2^64 / the golden ratio */
}

/* The slot of (a, b), or the free one where it belongs. */
static inline pair_slot *pair_find(const pair_map *m, u32 a, u32 b) {
    for (u32 i = (u32)(pair_hash(a, b) >> m->shift);; i = (i + 1) & m->mask) {
        pair_slot *s = m->slot + i;
        if ((s->a == a && s->b == b) || s->value == NONE) return s;
    }
}

static inline u32 pair_get(const pair_map *m, u32 a, u32 b) {
    const u64 bit = pair_hash(a, b) >> (m->shift - 2);
    return m->filter[bit / 64] >> bit % 64 & 1 ? pair_find(m, a, b)->value : NONE;
}

static void pair_put(pair_map *m, u32 a, u32 b, u32 value) {
    const u64 bit = pair_hash(a, b) >> (m->shift - 2);
    m->filter[bit / 64] |= (u64)1 << bit % 64;
    *pair_find(m, a, b) = (pair_slot){a, b, value};
}

/* The key of a text in the dictionary: FNV-1a, spread over all bits. */
static pair_slot text_key(const u8 *p, i64 n, u32 verbatim) {
    u64 hash = 0xcbf29ce484222325u + verbatim;
    for (i64 i = 0; i < n; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    hash = mix64(hash);
    return (pair_slot){(u32)(hash >> 32), (u32)hash, NONE};
}

/* The id of a text, or -1. Should two texts ever have one hash, the first is lost, and a merge
 * that needs it is refused. */
static i32 find_token(const nxt_tokenizer *t, const u8 *p, i64 n, u32 verbatim) {
    const pair_slot key = text_key(p, n, verbatim);
    const i32 id = (i32)pair_get(&t->dictionary, key.a, key.b); /* NONE is -1 */
    if (id < 0 || t->token[id].length != n) return -1;
    return memcmp(t->token[id].text, p, (size_t)n) ? -1 : id;
}

static void set_token(nxt_tokenizer *t, i32 id, const token_row *k) {
    const pair_slot key = text_key(k->text, k->length, k->flags & VERBATIM);
    t->token[id] = *k;
    pair_put(&t->dictionary, key.a, key.b, (u32)id);
}

/* -- Unicode ---------------------------------------------------------------------------------
 *
 * Some characters can be spelt in several ways: e with acute accent is one code point or two.
 * Normal form C [UAX15] takes everything apart (decompose), puts the marks on each letter in
 * a fixed order (order_marks), and puts together what can be (compose_all). Nearly all text is
 * in that form already. Which code points a table calls letters or marks depends on its
 * version of Unicode: ours says what the library says, measured code point by code point.
 */

/* The code point at p (n > 0 bytes are left), or INVALID for one byte. */
static inline u32 point_at(const u8 *p, i64 n, int *size) {
    u32 c = *p;
    *size = 1;
    if (c < 0x80) return c;
    int bytes = utf8_decode((const char *)p, n, &c);
    if (!bytes) return INVALID;
    *size = bytes;
    return c;
}

/* The code point that ends at `end` > 0. */
static u32 point_before(const u8 *p, i64 end, int *size) {
    for (int bytes = 1; bytes <= 4 && bytes <= end; bytes++) {
        u32 c = point_at(p + end - bytes, bytes, size);
        if (c != INVALID && *size == bytes) return c;
    }
    *size = 1;
    return INVALID;
}

static inline u32 property_at(const nxt_tokenizer *t, const u8 *p, i64 n, int *size) {
    return t->property[point_at(p, n, size)];
}

/* The first code point from p[at] on that has not these values of these properties; else n. */
static inline i64 skip(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n, u32 mask, u32 value) {
    int size;
    while (at < n && (property_at(t, p + at, n - at, &size) & mask) == value) at += size;
    return at;
}

/* Korean syllables are not in the tables: number S is made of the letters L, V and, unless it
 * is 0, T, with S = (L * HANGUL_VS + V) * HANGUL_TS + T  [Unicode, section 3.12]. */
enum {
    HANGUL_S = 0xac00, HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11a7,
    HANGUL_LS = 19, HANGUL_VS = 21, HANGUL_TS = 28
};

/* The tables are small in the file and fast in memory: a property for each code point, 2 MB,
 * of which a text touches little. */
static nxt_status unicode_create(nxt_tokenizer *t) {
    t->property = arena_get(&t->memory, (INVALID + 1) * sizeof *t->property);
    if (!t->property) return NXT_MEMORY;
    TRY(pair_map_create(&t->memory, 2 * UNICODE_PAIRS, &t->unicode));
    for (int r = 0; r < UNICODE_RUNS; r++) {
        u32 c = unicode_runs[r] >> 11, property = unicode_runs[r] & 0x7ff;
        u32 end = r + 1 < UNICODE_RUNS ? unicode_runs[r + 1] >> 11 : INVALID;
        if (property >> 3) property |= LOOK;
        for (; c < end; c++) t->property[c] = (u16)property;
    }
    for (u32 row = 0; row < UNICODE_PAIRS; row++) {
        const u32 *pair = unicode_pairs + 3 * row;
        const bool composes = row < UNICODE_COMPOSED;
        pair_put(&t->unicode, pair[0], 0, row);
        if (composes) pair_put(&t->unicode, pair[1], pair[2], row);
        t->property[pair[composes ? 2 : 0]] |= LOOK;
    }
    for (u32 c = HANGUL_V; c < HANGUL_V + HANGUL_VS; c++) t->property[c] |= LOOK;
    for (u32 c = HANGUL_T + 1; c < HANGUL_T + HANGUL_TS; c++) t->property[c] |= LOOK;
    return NXT_OK;
}

/* Writes the full decomposition of c, at most four code points, each with its combining
 * class: c << 8 | class. Returns their number. (Korean stays whole: what would be taken apart
 * here compose_all would put together again.) */
static i64 decompose(const nxt_tokenizer *t, u32 c, u32 *out) {
    u32 tail[4], row;
    i64 n = 0;
    int tails = 0;
    while ((row = pair_get(&t->unicode, c, 0)) != NONE) { /* only the first part goes on */
        c = unicode_pairs[3 * row + 1];
        if (unicode_pairs[3 * row + 2]) tail[tails++] = unicode_pairs[3 * row + 2];
    }
    for (;; c = tail[tails]) {
        out[n++] = c << 8 | (t->property[c] >> 3 & 0xff);
        if (tails-- == 0) return n;
    }
}

/* Sorts each run of marks by combining class, keeping the order within a class, in linear
 * time: nothing limits how many marks a hostile text puts on one letter. (Marks of different
 * classes do not touch, as a dot below and an accent above, so their order means nothing;
 * those of one class stack, and there it is part of the text.) */
static void order_marks(u32 *point, i64 n, u32 *spare) {
    for (i64 i = 0, end; i < n; i = end) {
        bool sorted = true;
        for (end = i + 1; end < n && (point[i] & 0xff) && (point[end] & 0xff); end++)
            if ((point[end] & 0xff) < (point[end - 1] & 0xff)) sorted = false;
        if (sorted) continue;
        i64 start[257] = {0}; /* where each class begins */
        for (i64 j = i; j < end; j++) start[(point[j] & 0xff) + 1]++;
        for (int k = 0; k < 256; k++) start[k + 1] += start[k];
        for (i64 j = i; j < end; j++) spare[start[point[j] & 0xff]++] = point[j];
        memcpy(point + i, spare, (size_t)(end - i) * sizeof *point);
    }
}

/* The composition of two code points, or NONE. Unsigned differences check both bounds. */
static u32 compose(const nxt_tokenizer *t, u32 a, u32 b) {
    if (a - HANGUL_L < HANGUL_LS && b - HANGUL_V < HANGUL_VS)
        return HANGUL_S + ((a - HANGUL_L) * HANGUL_VS + b - HANGUL_V) * HANGUL_TS;
    if (a - HANGUL_S < HANGUL_LS * HANGUL_VS * HANGUL_TS && (a - HANGUL_S) % HANGUL_TS == 0
        && b - HANGUL_T - 1 < HANGUL_TS - 1)
        return a + b - HANGUL_T;
    u32 row = pair_get(&t->unicode, a, b);
    return row == NONE ? NONE : unicode_pairs[3 * row];
}

/* Composes in place; returns how many code points are left. A mark reaches the starter (of
 * class 0) before it unless one of its own or of a higher class is left between them. */
static i64 compose_all(const nxt_tokenizer *t, u32 *point, i64 n) {
    i64 kept = 0, starter = -1;
    u32 between = 0; /* the class of the last one left since the starter; 0: none is */
    for (i64 i = 0; i < n; i++) {
        u32 class = point[i] & 0xff, c = NONE;
        if (starter >= 0 && (between == 0 || between < class))
            c = compose(t, point[starter] >> 8, point[i] >> 8);
        if (c != NONE) {
            point[starter] = c << 8; /* a composition is a starter */
            continue;
        }
        if (class == 0) starter = kept;
        between = class;
        point[kept++] = point[i];
    }
    return kept;
}

/* What is written begin..end in t->text now ended at `original` before. */
static nxt_status note_change(nxt_tokenizer *t, i64 begin, i64 end, i64 original) {
    TRY(mem_grow(t->cx, &t->change, t->changes, t->changes + 1, &t->change_capacity,
                 sizeof *t->change));
    t->change[t->changes++] = (text_change){begin, end, original};
    return NXT_OK;
}

/* Adds the normal form of p[0, n) to t->text and notes whether it is a change. p is valid
 * UTF-8 and does not react with what is around it; it ends at `original` in its text. */
static nxt_status normalise_cluster(nxt_tokenizer *t, const u8 *p, i64 n, i64 original) {
    i64 begin = t->text.n, points = 0;
    int size;
    /* 2 n for the code points, as what decomposes into k > 1 has k / 2 bytes at least; 2 n to
     * sort them */
    TRY(mem_grow(t->cx, &t->point, 0, 4 * n, &t->point_capacity, sizeof *t->point));
    for (i64 i = 0; i < n; i += size)
        points += decompose(t, point_at(p + i, n - i, &size), t->point + points);
    order_marks(t->point, points, t->point + 2 * n);
    points = compose_all(t, t->point, points);
    for (i64 i = 0; i < points; i++) {
        char bytes[4];
        buffer_add(&t->text, bytes, utf8_encode(bytes, t->point[i] >> 8));
    }
    TRY(t->text.status);
    if (t->text.n - begin == n && !memcmp(t->text.p + begin, p, (size_t)n)) return NXT_OK;
    return note_change(t, begin, t->text.n, original);
}

/* SentencePiece's letter for a space. Files and texts may hold it; here both have the space,
 * so that a token's text is what it says. */
static const char space_letter[] = "\xe2\x96\x81";

/* A space in front of everything, and spaces for the letters that stand for one. */
static nxt_status normalise_spaces(nxt_tokenizer *t, const u8 **text, i64 *length) {
    const char *p = (const char *)*text, *end = p + *length;
    const char *letter = memmem(p, (size_t)*length, space_letter, 3);
    const bool prefix = t->prefix == PREFIX_ALWAYS && *length > 0;
    if (!letter && !prefix) return NXT_OK;
    if (prefix) {
        buffer_add(&t->text, " ", 1);
        TRY(note_change(t, 0, 1, 0));
    }
    for (; letter; letter = memmem(p, (size_t)(end - p), space_letter, 3)) {
        buffer_add(&t->text, p, letter - p);
        buffer_add(&t->text, " ", 1);
        p = letter + 3;
        TRY(note_change(t, t->text.n - 1, t->text.n, p - (const char *)*text));
    }
    buffer_add(&t->text, p, end - p);
    *text = (const u8 *)t->text.p;
    *length = t->text.n;
    return t->text.status;
}

/* Replaces *text by its normal form, in t->text, if that differs; else there is no copy.
 * Looked at are clusters: the code points that ask for it, and the one before them, which may
 * be the letter under the marks. */
static nxt_status normalise(nxt_tokenizer *t, const u8 **text, i64 *length) {
    const u8 *p = *text;
    const i64 n = *length;
    i64 copied = 0, at = t->form_c ? skip(t, p, 0, n, LOOK, 0) : n;
    t->changes = 0;
    t->text.n = 0;
    if (t->characters) return normalise_spaces(t, text, length);
    if (at == n) return NXT_OK;
    for (i64 end; at < n; at = skip(t, p, end, n, LOOK, 0)) {
        int size;
        const bool inside = at > copied && point_before(p, at, &size) != INVALID;
        const i64 begin = inside ? at - size : at;
        end = skip(t, p, at, n, LOOK, LOOK);
        buffer_add(&t->text, p + copied, begin - copied);
        TRY(normalise_cluster(t, p + begin, end - begin, end));
        copied = end;
    }
    buffer_add(&t->text, p + copied, n - copied);
    TRY(t->text.status);
    *text = (const u8 *)t->text.p;
    *length = t->text.n;
    return NXT_OK;
}

/* Where byte position `at` of the normalised text lies in the text it was made from. Inside a
 * changed cluster that is the cluster's end. */
static i64 original_end(const nxt_tokenizer *t, i64 at) {
    i64 low = 0, high = t->changes; /* the changes before `low` begin before `at` */
    while (low < high) {
        i64 middle = (low + high) / 2;
        if (t->change[middle].begin < at) low = middle + 1;
        else high = middle;
    }
    if (low == 0) return at;
    const text_change *c = t->change + low - 1;
    return c->original + max64(at - c->end, 0);
}

/* -- pre-tokenizer ---------------------------------------------------------------------------
 *
 * A word is never merged with its neighbours, so it has the same tokens wherever it stands,
 * and a long text costs no more than its words. The cutters are plain scanners: a pattern
 * engine would spend more time here than all the rest takes.
 */

/* White space from p[at] on that no word takes: all of it at the end of the text, else all but the
 * last character ("\s+(?!\S)|\s+"). */
static i64 split_spaces(const nxt_tokenizer *t, const u8 *p, i64 at, i64 end, i64 n) {
    int size;
    if (end == n) return end;
    (void)t, (void)point_before(p, end, &size);
    return end - size > at ? end - size : end;
}

/* The end of the word that starts at p[at]. The first of these that matches [Radford19]:
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * The last but one says: of white space before a word the last character is left out. If it
 * is a plain space the word takes it, else, by the last one, it is a word of its own. */
static i64 split_gpt2(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n) {
    if (p[at] == '\'' && at + 1 < n) {
        const u8 a = p[at + 1], b = at + 2 < n ? p[at + 2] : 0;
        if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
        if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return at + 3;
    }
    int size;
    const i64 first = at + (p[at] == ' ' && at + 1 < n);
    const u32 class = property_at(t, p + first, n - first, &size) & CLASS;
    const i64 end = skip(t, p, first + size, n, CLASS, class);
    return class == SPACE ? split_spaces(t, p, at, end, n) : end;
}

/* 's, 't, 're, ... in any case, from the apostrophe at p[at]; 0: none. The long s (U+017F) is
 * an s to who ignores case. */
static i64 contraction(const u8 *p, i64 n) {
    const u8 a = n > 1 ? p[1] | 0x20 : 0, b = n > 2 ? p[2] | 0x20 : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (n > 2 && p[1] == 0xc5 && p[2] == 0xbf) return 3;
    return ((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* Llama 3's pattern, and with one digit at a time Qwen's:
 *     (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
 *     | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * A word takes one character of whatever is before it, symbols take the line ends behind
 * them, and white space is cut behind its last line end. */
static i64 split_digits(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n, int digits) {
    int size, next_size;
    const u32 class = property_at(t, p + at, n - at, &size) & CLASS;
    const i64 next = at + size, short_word = p[at] == '\'' ? contraction(p + at, n - at) : 0;
    const u32 after = next < n ? property_at(t, p + next, n - next, &next_size) & CLASS : SPACE;
    const bool line_end = p[at] == '\r' || p[at] == '\n';
    if (short_word) return at + short_word;
    if (class == LETTER) return skip(t, p, next, n, CLASS, LETTER);
    if (after == LETTER && class != NUMBER && !line_end)
        return skip(t, p, next, n, CLASS, LETTER);
    if (class == NUMBER) {
        i64 end = next;
        while (--digits > 0 && end < n
               && (property_at(t, p + end, n - end, &size) & CLASS) == NUMBER)
            end += size;
        return end;
    }
    if (class == SYMBOL || (p[at] == ' ' && after == SYMBOL)) {
        i64 end = skip(t, p, class == SYMBOL ? at : next, n, CLASS, SYMBOL);
        while (end < n && (p[end] == '\r' || p[end] == '\n')) end++;
        return end;
    }
    const i64 end = skip(t, p, at, n, CLASS, SPACE);
    for (i64 i = end; i > at; i--)
        if (p[i - 1] == '\r' || p[i - 1] == '\n') return i;
    return split_spaces(t, p, at, end, n);
}
static i64 split_llama3(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n) {
    return split_digits(t, p, at, n, 3);
}
static i64 split_qwen2(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n) {
    return split_digits(t, p, at, n, 1);
}

/* Before every space: Metaspace, with "split". */
static i64 split_each_space(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n) {
    (void)t;
    const u8 *space = at + 1 < n ? memchr(p + at + 1, ' ', (size_t)(n - at - 1)) : NULL;
    return space ? space - p : n;
}

/* Before the spaces that follow something else. Where no token has a space behind another
 * character no merge crosses such a place, and a text may be cut there without a trace. */
static i64 split_between(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n) {
    while (at < n && p[at] == ' ') at++;
    return at < n ? split_each_space(t, p, at, n) : n;
}

/* For files that say "use_regex": false. */
static i64 split_nothing(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n) {
    (void)t, (void)p, (void)at;
    return n;
}

/* -- byte-pair encoding ----------------------------------------------------------------------
 *
 * Training counted pairs of neighbours in a large text, merged the most frequent pair into a
 * new token everywhere, and began again; the merges in that order are the model, and the
 * number of a merge is its rank. To encode a word, do the same merges: always the pair with
 * the lowest rank, of several the leftmost, until no neighbours are a known pair. If "l o" has
 * rank 0 and "lo w" rank 1:   l o w l o  ->  lo w l o  ->  lo w lo  ->  low lo.
 */

/* Makes room for `more` tokens in t->out. */
static nxt_status reserve(nxt_tokenizer *t, i64 more) {
    token_list *out = t->out;
    const i64 need = out->n + more;
    TRY(mem_grow(out->cx, &out->id, out->n, need, &out->capacity, sizeof *out->id));
    if (!t->want_ends) return NXT_OK;
    return mem_grow(out->cx, &out->end, out->n, need, &out->end_capacity, sizeof *out->end);
}

/* A token, for which there is room, that ends before byte `end` of the text. */
static inline void emit(nxt_tokenizer *t, i32 id, i64 end) {
    if (t->want_ends) t->out->end[t->out->n] = end;
    t->out->id[t->out->n++] = id;
}

/* The ids of p[0, n), n <= SHORT, into id; returns how many, or -1 if a byte has no token.
 * rank[i] is that of the pair id[i], id[i+1]. A search for the lowest in each round is
 * quadratic, and up to this length (measured) faster than a heap. */
enum { SHORT = 64 };

static i64 merge_short(const nxt_tokenizer *t, const u8 *p, i64 n, i32 *id) {
    u32 rank[SHORT];
    for (i64 i = 0; i < n; i++)
        if ((id[i] = t->byte_id[p[i]]) < 0) return -1;
    for (i64 i = 0; i + 1 < n; i++) rank[i] = t->byte_rank[p[i] << 8 | p[i + 1]];
    while (n > 1) {
        i64 best = 0;
        u32 lowest = rank[0];
        for (i64 i = 1; i + 1 < n; i++) {
            best = rank[i] < lowest ? i : best;
            lowest = rank[i] < lowest ? rank[i] : lowest;
        }
        if (lowest == NONE) break;
        id[best] = t->merged[lowest];
        n--;
        for (i64 i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i - 1] = rank[i];
        }
        if (best > 0) rank[best - 1] = pair_get(&t->merges, (u32)id[best - 1], (u32)id[best]);
        if (best + 1 < n) rank[best] = pair_get(&t->merges, (u32)id[best], (u32)id[best + 1]);
    }
    return n;
}

/* A long word is a linked list of symbols, and a heap of the pairs that might merge, lowest
 * rank first, then leftmost. To take a pair out of the middle of a heap one would have to know
 * where it is; so a pair that has changed since stays in, and shows, when its turn comes, by a
 * rank that is no longer its own. With the merges  b c (rank 0), a b (1), a bc (2):
 *
 *     symbols        heap (rank, symbol)
 *     a  b  c  a     (0, b) (1, a)
 *     a  bc    a     (1, a) (2, a)      a merge adds the pairs on both sides
 *     a  bc    a     (2, a)             (1, a) was of a and b: dropped
 *     abc      a                        c a has no rank, nor has abc a: done */
typedef struct symbol { i32 id, previous, next, end; } symbol; /* end: in bytes of the word */

typedef struct long_word {
    symbol *symbol;
    u64 *heap; /* rank << 32 | symbol; a node has four children, which share a cache line */
    i64 count;
} long_word;

/* Takes the lowest entry; the last one sinks from the root to its place. */
static u64 heap_pop(long_word *w) {
    u64 *heap = w->heap;
    const u64 top = heap[0], moving = heap[--w->count];
    for (i64 at = 0, best;; at = best) {
        const i64 first = 4 * at + 1, last = min64(first + 4, w->count);
        best = first;
        for (i64 i = first + 1; i < last; i++)
            if (heap[i] < heap[best]) best = i;
        if (first < w->count && heap[best] < moving) heap[at] = heap[best];
        else return heap[at] = moving, top;
    }
}

/* The rank of symbol i and its successor. */
static u32 rank_of(const nxt_tokenizer *t, const symbol *s, i32 i) {
    if (i < 0 || s[i].id < 0 || s[i].next < 0) return NONE;
    return pair_get(&t->merges, (u32)s[i].id, (u32)s[s[i].next].id);
}

/* Puts symbol i and its successor into the heap, if they merge: up from the last place. */
static void heap_push(const nxt_tokenizer *t, long_word *w, i32 i) {
    const u32 rank = rank_of(t, w->symbol, i);
    const u64 entry = (u64)rank << 32 | (u32)i;
    if (rank == NONE) return;
    i64 at = w->count++;
    for (; at > 0 && w->heap[(at - 1) / 4] > entry; at = (at - 1) / 4)
        w->heap[at] = w->heap[(at - 1) / 4];
    w->heap[at] = entry;
}

/* Appends a symbol that ends at `end` to s, which has *count. */
static void add_symbol(symbol *s, i32 *count, i32 id, i32 end) {
    s[*count] = (symbol){id, *count - 1, *count + 1, end};
    ++*count;
}

/* The symbols of p[0, n): bytes, or characters, which are spelt in bytes when they have no token
 * and all their bytes have one. What has neither becomes the unknown token (one for a run of
 * them under fuse_unknown) or nothing. Returns how many. */
static i32 first_symbols(const nxt_tokenizer *t, const u8 *p, i64 n, symbol *s) {
    i32 count = 0;
    bool fuse = false;
    for (i32 i = 0, size = 1; i < n; i += size) {
        size = 1;
        if (t->characters) (void)point_at(p + i, n - i, &size);
        const i32 end = i + size;
        const i32 id = t->characters ? find_token(t, p + i, size, 0) : t->byte_id[p[i]];
        bool spelt = id < 0 && t->characters;
        for (i32 k = i; k < end; k++) spelt &= t->byte_id[p[k]] >= 0;
        if (id >= 0) add_symbol(s, &count, id, end);
        else if (spelt)
            for (i32 k = i; k < end; k++) add_symbol(s, &count, t->byte_id[p[k]], k + 1);
        else if (t->unknown >= 0 && !fuse) add_symbol(s, &count, t->unknown, end);
        else if (count) s[count - 1].end = end;
        fuse = id < 0 && !spelt && t->fuse_unknown && t->unknown >= 0;
    }
    if (count) s[count - 1].next = -1;
    return count;
}

/* Symbol i takes in its successor, whose place stays empty (id -1), so that entries of the
 * heap that name it are known to be stale. */
static void merge_all(const nxt_tokenizer *t, long_word *w) {
    symbol *s = w->symbol;
    while (w->count > 0) {
        const u64 top = heap_pop(w);
        const i32 i = (i32)(top & 0xffffffff), gone = s[i].next;
        if (rank_of(t, s, i) != top >> 32) continue;
        s[i].id = t->merged[top >> 32];
        s[i].end = s[gone].end;
        s[i].next = s[gone].next;
        s[gone].id = -1;
        if (s[i].next >= 0) s[s[i].next].previous = i;
        heap_push(t, w, s[i].previous);
        heap_push(t, w, i);
    }
}

/* Adds the ids of a word of any length, which starts at byte `start` of its text, and for
 * which encode_word made room. Ten million letters without a space take some seconds and
 * thirty bytes of memory each. */
static nxt_status merge_long(nxt_tokenizer *t, const u8 *p, i64 n, i64 start) {
    long_word w = {0};
    if (n > INT32_MAX)
        return fail(t->cx, NXT_UNSUPPORTED, "one word of %" PRId64 " bytes", n);
    nxt_status status = mem_get(t->cx, &w.symbol, n, sizeof *w.symbol);
    /* a merge takes one pair out of the heap and adds two at most */
    if (status == NXT_OK) status = mem_get(t->cx, &w.heap, 2 * n, sizeof *w.heap);
    const i32 count = status == NXT_OK ? first_symbols(t, p, n, w.symbol) : 0;
    for (i32 i = 0; i < count; i++) heap_push(t, &w, i);
    merge_all(t, &w);
    for (i32 i = count ? 0 : -1; i >= 0; i = w.symbol[i].next)
        emit(t, w.symbol[i].id, start + w.symbol[i].end);
    mem_drop(t->cx, w.symbol);
    mem_drop(t->cx, w.heap);
    return status;
}

static void keep_word(known_word *w, const u64 *key, const i32 *id, i64 count) {
    memcpy(w->key, key, sizeof w->key);
    memcpy(w->id, id, (size_t)count * sizeof *id);
    w->count = (i32)count;
}

static bool holds(const i32 *id, i64 n, i32 wanted) {
    for (i64 i = 0; i < n; i++)
        if (id[i] == wanted) return true;
    return false;
}

/* Adds the ids of p[0, n), a word that starts at byte `start` of its text. Most words of a
 * text were there before, so a cache answers: direct-mapped, each word has one place. */
static nxt_status encode_word(nxt_tokenizer *t, const u8 *p, i64 n, i64 start) {
    TRY(reserve(t, max64(n, WORD_IDS)));
    i32 *id = t->out->id + t->out->n;
    i64 count;
    u64 key[3] = {0};
    known_word *w = NULL;
    if (n <= WORD_BYTES) {
        memcpy(key, p, (size_t)n);
        ((u8 *)key)[WORD_BYTES] = (u8)n;
        w = t->cache + (mix64(mix64(key[0] ^ key[2]) + key[1]) >> (64 - CACHE_BITS));
    }
    if (w && !memcmp(w->key, key, sizeof key)) {
        memcpy(id, w->id, sizeof w->id);
        count = w->count;
    } else {
        count = t->ignore_merges && (*id = find_token(t, p, n, 0)) >= 0 ? 1
                : n <= SHORT && !t->characters ? merge_short(t, p, n, id) : -1;
        if (count < 0) {
            const i64 before = t->out->n;
            TRY(merge_long(t, p, n, start));
            count = t->out->n - before;
            if (w && t->characters && count <= WORD_IDS && !holds(id, count, t->unknown))
                keep_word(w, key, id, count);
            return NXT_OK;
        }
        if (w && count <= WORD_IDS) keep_word(w, key, id, count);
    }
    for (i64 i = 0; t->want_ends && i < count; i++) {
        start += t->token[id[i]].length;
        t->out->end[t->out->n + i] = start;
    }
    t->out->n += count;
    return NXT_OK;
}

/* -- added tokens ----------------------------------------------------------------------------
 *
 * They are found before anything is cut, so "<|endoftext|>" is one token wherever it stands.
 * Some are looked for in the text as it is, then, between those, the others in the normalised
 * text. A token may want to stand alone (single_word: no letter, digit or mark beside it) and
 * may take the white space before or after it (lstrip, rstrip) for its own.
 */

/* p[0, n) is not empty. */
static nxt_status matcher_add(arena *a, matcher *m, const u8 *p, i64 n, i32 id) {
    trie *node = NULL;
    for (i64 i = 0; i < n; i++) {
        trie **link = node ? &node->child : m->root + p[0];
        while (*link && (*link)->byte != p[i]) link = &(*link)->sibling;
        if (!*link) *link = arena_get(a, sizeof **link);
        if (!*link) return NXT_MEMORY;
        node = *link;
        node->byte = p[i];
    }
    if (!node->ends) node->ends = id + 1; /* of equals the first counts */
    m->any = true;
    return NXT_OK;
}

/* The length of the longest token at p, and its id; 0: none. */
static inline i64 match_longest(const matcher *m, const u8 *p, i64 n, i32 *id) {
    i64 length = 0, i = 0;
    for (const trie *node = m->root[p[0]]; node && i < n; node = node->child) {
        while (node && node->byte != p[i]) node = node->sibling;
        if (!node) break;
        i++;
        if (!node->ends) continue;
        *id = node->ends - 1;
        length = i;
    }
    return length;
}

/* A walk over the added tokens of p[0, n). Found: [begin, end) and id. Text before `done` is
 * dealt with; the search goes on at `at`. */
typedef struct added_walk {
    const u8 *p;
    i64 n, at, done, begin, end, spaces_end;
    i32 id;
} added_walk;

/* Whether a letter, digit or mark touches the token that was found. */
static bool word_around(const nxt_tokenizer *t, const added_walk *w) {
    int size;
    return (w->begin > 0 && t->property[point_before(w->p, w->begin, &size)] & WORD)
           || (w->end < w->n && property_at(t, w->p + w->end, w->n - w->end, &size) & WORD);
}

/* Finds the next added token: the leftmost, of several the longest. White space that a token
 * strips is not closed to the search, so that tokens may overlap: this is the library's way.
 * (Where it fails, as a token would end before it begins, we pass over the token.) */
static bool next_added(const nxt_tokenizer *t, const matcher *m, added_walk *w) {
    while (m->any && w->at < w->n) {
        i64 length = match_longest(m, w->p + w->at, w->n - w->at, &w->id);
        w->begin = w->at;
        w->end = w->at += max64(length, 1);
        if (!length) continue;
        const u32 flags = t->token[w->id].flags;
        if (flags & SINGLE_WORD && word_around(t, w)) continue;
        if (flags & LSTRIP) {
            int size;
            while (w->begin > w->done
                   && (t->property[point_before(w->p, w->begin, &size)] & CLASS) == SPACE)
                w->begin -= size;
            w->begin = max64(w->begin, w->done);
        }
        if (flags & RSTRIP) { /* each run of spaces is measured once, not from every token */
            if (w->end >= w->spaces_end)
                w->spaces_end = skip(t, w->p, w->end, w->n, CLASS, SPACE);
            w->end = w->spaces_end;
        }
        if (w->begin < w->end) return true;
    }
    return false;
}

/* -- encoding --------------------------------------------------------------------------------
 *
 * The four stations in order: encode looks for added tokens in the raw text, encode_raw
 * normalises what is between them and looks for the others, encode_words cuts, encode_word
 * merges. The functions write to t->out; `start` says where p begins, so that every token's
 * end can be told as a byte of the text that came in.
 */

/* What encode_around does with the text between added tokens: encode_raw or encode_words. */
typedef nxt_status (*encode_fn)(nxt_tokenizer *t, const u8 *p, i64 n, i64 start);

/* Adds the ids of p[0, n), which starts at byte `start` of its text: of the added tokens that
 * the matcher knows, and of what is between them by `between`. */
static nxt_status encode_around(nxt_tokenizer *t, const matcher *m, encode_fn between,
                                const u8 *p, i64 n, i64 start) {
    added_walk w = {.p = p, .n = n};
    for (;; w.done = w.end) {
        const bool found = next_added(t, m, &w);
        const i64 end = found ? w.begin : n;
        if (w.done < end) TRY(between(t, p + w.done, end - w.done, start + w.done));
        if (!found) return NXT_OK;
        TRY(reserve(t, 1));
        emit(t, w.id, start + w.end);
    }
}

/* Text without added tokens. "add_prefix_space" makes the first word look like all others, which
 * have their space in front. */
static nxt_status encode_words(nxt_tokenizer *t, const u8 *p, i64 n, i64 start) {
    const bool first = t->segment + start == 0;
    if ((t->prefix == PREFIX_MISSING || (t->prefix == PREFIX_FIRST && first)) && p[0] != ' ') {
        t->prefixed.n = 0;
        buffer_add(&t->prefixed, " ", 1);
        buffer_add(&t->prefixed, p, n);
        TRY(t->prefixed.status);
        p = (const u8 *)t->prefixed.p;
        n++;
        start--; /* the space stands where the byte before does */
    }
    for (i64 at = 0, end; at < n; at = end) {
        end = t->split(t, p, at, n);
        TRY(encode_word(t, p + at, end - at, start + at));
    }
    return NXT_OK;
}

/* Text that may hold added tokens of the normalised kind. */
static nxt_status encode_raw(nxt_tokenizer *t, const u8 *p, i64 n, i64 start) {
    const i64 first = t->out->n;
    t->segment = start;
    TRY(normalise(t, &p, &n));
    TRY(encode_around(t, &t->normal, encode_words, p, n, 0));
    for (i64 i = first; t->want_ends && i < t->out->n; i++)
        t->out->end[i] = start + original_end(t, t->out->end[i]);
    return NXT_OK;
}

/* Appends the ids of a text. */
static nxt_status encode(nxt_tokenizer *t, const char *text, i64 n, bool want_ends,
                         token_list *out) {
    t->out = out;
    t->want_ends = want_ends;
    return encode_around(t, &t->raw, encode_raw, (const u8 *)text, n, 0);
}

/* The bytes an id stands for; none for ids without a token, such as padding rows. */
static void decode_bytes(const nxt_tokenizer *t, i32 id, const u8 **p, i64 *n) {
    const bool known = id >= 0 && id < t->size;
    *p = known ? t->token[id].text : NULL;
    *n = known ? t->token[id].length : 0;
}

/* -- loading ---------------------------------------------------------------------------------
 *
 * tokenizer.json holds the four stations as they were trained:
 *
 *     "added_tokens":  [{"id": 0, "content": "<|endoftext|>", "special": true, ...}, ...]
 *     "normalizer":    {"type": "NFC"}, or null
 *     "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}
 *     "model":         {"type": "BPE", "vocab": {"the": 783, ...}, "merges": ["t h", ...]}
 *
 * The order of "merges" is their rank. GPT-2 came as two files with vocab and merges alone.
 * What a file asks for and we cannot do is an error: a tokenizer that almost agrees with the
 * model's own would train it on noise.
 */

static nxt_status fail_unsupported(const nxt_tokenizer *t, const char *what, const char *name,
                                   const char *known) {
    return fail(t->cx, NXT_UNSUPPORTED, "%s: %s %.60s is not supported (%s is)", t->path,
                what, name, known);
}

/* Files write bytes as letters, to make every token a visible word [Radford19]: the visible
 * characters of Latin-1 stand for themselves; U+0100, U+0101, ... for the other bytes, in
 * order. A space, for one, is U+0120. */
static void alphabet_create(nxt_tokenizer *t) {
    for (int i = 0; i < ALPHABET; i++) t->byte_of[i] = -1;
    for (int byte = 0, next = 0x100; byte < 256; byte++) {
        bool visible = (byte > ' ' && byte <= '~') || (byte > 0xa0 && byte != 0xad);
        t->byte_of[visible ? byte : next++] = byte;
    }
}

/* A text of the file in bytes; out has room for n. -1: other letters are in it. */
static i64 to_bytes(const nxt_tokenizer *t, const char *text, i64 n, u8 *out) {
    i64 bytes = 0;
    int size;
    for (i64 i = 0; i < n; i += size) {
        u32 c = point_at((const u8 *)text + i, n - i, &size);
        if (c >= ALPHABET || t->byte_of[c] < 0) return -1;
        out[bytes++] = (u8)t->byte_of[c];
    }
    return bytes;
}

/* A text of SentencePiece's with spaces for the letters that stand for them; returns its length. */
static i64 to_spaces(const char *text, i64 n, u8 *out) {
    i64 bytes = 0;
    for (i64 i = 0; i < n; i++) {
        const bool space = n - i >= 3 && !memcmp(text + i, space_letter, 3);
        out[bytes++] = space ? ' ' : (u8)text[i];
        i += space ? 2 : 0;
    }
    return bytes;
}

/* The byte that "<0x0A>" is spelt for; -1: another text. */
static int spelt_byte(const char *name, i64 n) {
    static const char digits[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(name, "<0x", 3) || name[5] != '>') return -1;
    const char *high = strchr(digits, name[3]), *low = strchr(digits, name[4]);
    return high && low && *high && *low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* The row that a name of the file has or would have: in bytes, or VERBATIM, as it stands, when
 * that is asked for or other letters are in it. Its text is new, in this arena. */
static nxt_status name_row(const nxt_tokenizer *t, arena *a, const char *name, i64 n,
                           bool verbatim, token_row *k) {
    u8 *text = (u8 *)arena_text(a, name, (size_t)n);
    if (!text) return NXT_MEMORY;
    if (t->characters) {
        const i64 length = verbatim ? n : to_spaces(name, n, text);
        *k = (token_row){text, (u32)length, verbatim ? VERBATIM : 0};
        return NXT_OK;
    }
    const i64 bytes = verbatim ? -1 : to_bytes(t, name, n, text);
    if (bytes < 0) memcpy(text, name, (size_t)n); /* again: some may have been replaced */
    *k = (token_row){text, (u32)(bytes < 0 ? n : bytes), bytes < 0 ? VERBATIM : 0};
    return NXT_OK;
}

/* {"the": 783, ...}. Ids may leave holes: a model may have more rows than tokens. Behind them is
 * room for all added tokens, so that the table never moves. Two passes, because the size of the
 * table must be known, and bounded, before it is made. */
static nxt_status load_vocabulary(nxt_tokenizer *t, const json *words, i64 added) {
    token_row k;
    if (!words || words->kind != JSON_OBJECT)
        return fail(t->cx, NXT_FORMAT, "%s: there is no vocabulary", t->path);
    for (const json *w = words->first; w; w = w->next) {
        const double id = w->kind == JSON_NUMBER ? w->number : -1;
        if (!(id >= 0 && id < MOST_TOKENS) || id != (i32)id)
            return fail(t->cx, NXT_FORMAT, "%s: token \"%.60s\" has no usable id", t->path,
                        w->key);
        t->size = (i32)max64(t->size, (i64)id + 1);
    }
    t->rows = (i32)(max64(t->size, words->count) + added);
    t->token = arena_get(&t->memory, (size_t)t->rows * sizeof *t->token);
    if (!t->token) return NXT_MEMORY;
    TRY(pair_map_create(&t->memory, words->count + added, &t->dictionary));
    for (int b = 0; b < 256; b++) t->byte_id[b] = -1;
    for (const json *w = words->first; w; w = w->next) {
        const i32 id = (i32)w->number;
        TRY(name_row(t, &t->memory, w->key, w->key_length, false, &k));
        if (t->token[id].text)
            return fail(t->cx, NXT_FORMAT, "%s: two tokens have the id %d", t->path, id);
        const int byte = t->characters ? spelt_byte(w->key, w->key_length) : -1;
        if (byte < 0) set_token(t, id, &k);
        else { /* a byte is not its character: the dictionary does not know it */
            *(u8 *)(uintptr_t)k.text = (u8)byte;
            t->token[id] = (token_row){k.text, 1, VERBATIM};
            t->byte_id[byte] = id;
        }
    }
    for (int b = 0; b < 256 && !t->characters; b++)
        t->byte_id[b] = find_token(t, &(u8){(u8)b}, 1, 0);
    return NXT_OK;
}

/* The next merge: of the two texts, in the file's letters, into one token. */
static nxt_status load_merge(nxt_tokenizer *t, u32 rank, const char *left, i64 left_length,
                             const char *right, i64 right_length) {
    u8 *text = arena_get(&t->scratch, (size_t)(left_length + right_length));
    if (!text) return NXT_MEMORY;
    const bool spaces = t->characters;
    i64 a = spaces ? to_spaces(left, left_length, text) : to_bytes(t, left, left_length, text);
    i64 b = a < 0    ? -1
            : spaces ? to_spaces(right, right_length, text + a)
                     : to_bytes(t, right, right_length, text + a);
    if (b < 0) return NXT_OK; /* no text can come to this merge */
    const i32 x = find_token(t, text, a, 0), y = find_token(t, text + a, b, 0);
    const i32 both = find_token(t, text, a + b, 0);
    if (x < 0 || y < 0 || both < 0)
        return fail(t->cx, NXT_FORMAT, "%s: merge %u is of tokens that are not in the "
                    "vocabulary: %.60s", t->path, rank + 1, left);
    pair_put(&t->merges, (u32)x, (u32)y, rank);
    if (a == 1 && b == 1) t->byte_rank[text[0] << 8 | text[1]] = rank;
    for (i64 i = 1; i < a + b && t->split == split_between; i++) /* a space behind something */
        if (text[i] == ' ' && text[i - 1] != ' ') t->split = split_nothing;
    t->merged[rank] = both;
    return NXT_OK;
}

/* ["a b", ...] or [["a", "b"], ...]; lines like "#version: 0.2" come from merges.txt. */
static nxt_status load_merges(nxt_tokenizer *t, const json *merges) {
    const size_t byte_pairs = 256 * 256 * sizeof(u32);
    u32 rank = 0;
    if (!merges || merges->kind != JSON_ARRAY)
        return fail(t->cx, NXT_FORMAT, "%s: there are no merges", t->path);
    t->merged = arena_get(&t->memory, (size_t)merges->count * sizeof *t->merged);
    t->byte_rank = arena_get(&t->memory, byte_pairs);
    if (!t->merged || !t->byte_rank) return NXT_MEMORY;
    memset(t->byte_rank, 0xff, byte_pairs); /* NONE */
    TRY(pair_map_create(&t->memory, merges->count, &t->merges));
    for (const json *m = merges->first; m; m = m->next) {
        const bool text = m->kind == JSON_STRING;
        if (text && !strncmp(m->text, "#version", 8)) continue;
        const char *space = text ? memchr(m->text, ' ', (size_t)m->length) : NULL;
        const i64 left = space ? space - m->text : 0;
        const json *a = m->first, *b = a ? a->next : NULL;
        if (space) TRY(load_merge(t, rank++, m->text, left, space + 1, m->length - left - 1));
        else if (b && !b->next && a->kind == JSON_STRING && b->kind == JSON_STRING)
            TRY(load_merge(t, rank++, a->text, a->length, b->text, b->length));
        else return fail(t->cx, NXT_FORMAT, "%s: merge %u is not a pair", t->path, rank + 1);
    }
    return NXT_OK;
}

/* The settings of the BPE model. Old files do not say "type". */
static nxt_status load_model(nxt_tokenizer *t, const json *model, i64 added) {
    const json *unknown = json_get(model, "unk_token");
    const char *type = json_text(model, "type", "BPE");
    if (strcmp(type, "BPE")) return fail_unsupported(t, "the model", type, "BPE");
    const char *refused =
        *json_text(model, "continuing_subword_prefix", "") ? "continuing_subword_prefix"
        : *json_text(model, "end_of_word_suffix", "")      ? "end_of_word_suffix"
        : json_number(model, "dropout", 0) != 0            ? "dropout"
        : json_bool(model, "byte_fallback", false) && !t->characters ? "byte_fallback"
                                                                     : NULL;
    if (refused) return fail_unsupported(t, "the BPE setting", refused, "BPE without it");
    t->fuse_unknown = json_bool(model, "fuse_unk", false);
    t->ignore_merges = json_bool(model, "ignore_merges", false);
    TRY(load_vocabulary(t, json_get(model, "vocab"), added));
    if (unknown && unknown->kind == JSON_STRING) {
        token_row k;
        TRY(name_row(t, &t->scratch, unknown->text, unknown->length, false, &k));
        t->unknown = find_token(t, k.text, k.length, k.flags);
    }
    return load_merges(t, json_get(model, "merges"));
}

/* The steps of a station, of which there are at most `most`: alone, or in a Sequence. */
static nxt_status load_steps(nxt_tokenizer *t, const char *station, const json *v,
                             const char *members, const json **step, i64 most) {
    const bool sequence = !strcmp(json_text(v, "type", ""), "Sequence");
    const json *list = sequence ? json_get(v, members) : NULL;
    i64 n = 0;
    memset(step, 0, (size_t)most * sizeof *step);
    if (!v || v->kind == JSON_NULL) return NXT_OK;
    for (v = sequence ? (list ? list->first : NULL) : v; v; v = sequence ? v->next : NULL) {
        if (n == most)
            return fail_unsupported(t, station, "of more steps", most == 1 ? "one" : "two");
        step[n++] = v;
    }
    return NXT_OK;
}

static bool is_type(const json *step, const char *type) {
    return step && !strcmp(json_text(step, "type", ""), type);
}

static const char *type_of(const json *step) {
    return step ? json_text(step, "type", "without type") : "null";
}

/* Nothing, NFC, or SentencePiece's two steps: a space in front, the letter for spaces. */
static nxt_status load_normalizer(nxt_tokenizer *t, const json *v) {
    const json *step[2];
    TRY(load_steps(t, "the normalizer", v, "normalizers", step, 2));
    t->form_c = is_type(step[0], "NFC");
    if (!step[0] || (t->form_c && !step[1])) return NXT_OK;
    const json *from = step[1] ? json_get(step[1], "pattern") : NULL;
    if (is_type(step[0], "Prepend") && !strcmp(json_text(step[0], "prepend", ""), space_letter)
        && is_type(step[1], "Replace") && !strcmp(json_text(from, "String", ""), " ")
        && !strcmp(json_text(step[1], "content", ""), space_letter)) {
        t->prefix = PREFIX_ALWAYS;
        return NXT_OK;
    }
    return fail_unsupported(t, "the normalizer", type_of(step[t->form_c]),
                            "NFC, or Prepend and Replace of SentencePiece");
}

/* The patterns we have a scanner for, and their names in GGUF (§23). A pattern engine is not
 * here: a pattern that is almost one of these is refused. */
static const struct split_pattern {
    const char *pattern;
    i64 (*split)(const nxt_tokenizer *t, const u8 *p, i64 at, i64 n);
    const char *gguf;
} split_patterns[] = {
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}"
     "\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", split_llama3, "llama-bpe"},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+"
     "[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+", split_qwen2, "qwen2"},
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     split_gpt2, "gpt-2"},
};

static nxt_status load_split(nxt_tokenizer *t, const json *split, const json *bytes) {
    const char *pattern = json_text(json_get(split, "pattern"), "Regex", "");
    t->split = NULL;
    for (i64 i = 0; i < COUNT(split_patterns); i++)
        if (!strcmp(pattern, split_patterns[i].pattern)) t->split = split_patterns[i].split;
    if (!t->split || strcmp(json_text(split, "behavior", ""), "Isolated")
        || json_bool(split, "invert", false))
        return fail_unsupported(t, "the pattern", pattern, "GPT-2's, Llama 3's or Qwen 2's");
    if (!is_type(bytes, "ByteLevel") || json_bool(bytes, "use_regex", true)
        || json_bool(bytes, "add_prefix_space", true))
        return fail_unsupported(t, "the pre-tokenizer", type_of(bytes),
                                "Split with ByteLevel, without a pattern of its own,");
    return NXT_OK;
}

static nxt_status load_metaspace(nxt_tokenizer *t, const json *step) {
    const bool old = json_bool(step, "add_prefix_space", true);
    const char *scheme = json_text(step, "prepend_scheme", old ? "always" : "never");
    if (strcmp(json_text(step, "replacement", space_letter), space_letter))
        return fail_unsupported(t, "the replacement", json_text(step, "replacement", ""), "U+2581");
    t->prefix = !strcmp(scheme, "always")  ? PREFIX_MISSING
                : !strcmp(scheme, "first") ? PREFIX_FIRST
                                           : PREFIX_NONE;
    t->split = json_bool(step, "split", true) ? split_each_space : split_between;
    t->characters = true;
    return NXT_OK;
}

/* Bytes or characters, and what cuts them. */
static nxt_status load_pre_tokenizer(nxt_tokenizer *t, const json *v) {
    const json *step[2];
    TRY(load_steps(t, "the pre-tokenizer", v, "pretokenizers", step, 2));
    if (!step[0] && t->prefix == PREFIX_ALWAYS) { /* SentencePiece: whole texts */
        t->split = split_between, t->characters = true;
        return NXT_OK;
    }
    if (is_type(step[0], "Split")) return load_split(t, step[0], step[1]);
    if (is_type(step[0], "Metaspace") && !step[1] && t->prefix == PREFIX_NONE)
        return load_metaspace(t, step[0]);
    if (!is_type(step[0], "ByteLevel") || step[1])
        return fail_unsupported(t, "the pre-tokenizer", type_of(step[step[1] != NULL]),
                                "ByteLevel, Split with ByteLevel, or Metaspace");
    t->prefix = json_bool(step[0], "add_prefix_space", true) ? PREFIX_MISSING : PREFIX_NONE;
    t->split = json_bool(step[0], "use_regex", true) ? split_gpt2 : split_nothing;
    return NXT_OK;
}

/* Whether a text gets bos in front: a template whose first item is a special token. */
static void load_template(nxt_tokenizer *t, const json *v) {
    const bool sequence = is_type(v, "Sequence");
    const json *list = sequence ? json_get(v, "processors") : NULL;
    for (v = sequence ? (list ? list->first : NULL) : v; v; v = sequence ? v->next : NULL) {
        const json *single = is_type(v, "TemplateProcessing") ? json_get(v, "single") : NULL;
        const json *item = single ? json_get(single->first, "SpecialToken") : NULL;
        const char *name = json_text(item, "id", NULL);
        if (!name) continue;
        t->bos = nxt_token_id(t, name);
        t->adds_bos = t->bos >= 0;
    }
}

/* The id of an added token: its row of the vocabulary, or of an added token before it, or the
 * next free one, for the library numbers new tokens itself whatever the file says. */
static nxt_status added_id(nxt_tokenizer *t, const json *content, i64 vocabulary, i32 *next,
                           i32 *out) {
    token_row k;
    *out = -1;
    const bool plain = t->characters && memchr(content->text, ' ', (size_t)content->length);
    for (int verbatim = plain; verbatim < 2 && *out < 0; verbatim++) { /* no piece has a space */
        TRY(name_row(t, &t->memory, content->text, content->length, verbatim, &k));
        *out = find_token(t, k.text, k.length, k.flags);
    }
    if (*out < 0) {
        *out = (i32)max64(*next, vocabulary);
        if (t->token[*out].text)
            return fail(t->cx, NXT_FORMAT, "%s: the id of the added token %.60s is taken",
                        t->path, content->text);
        set_token(t, *out, &k);
        t->size = (i32)max64(t->size, *out + 1);
    }
    *next = (i32)max64(*next, *out + 1);
    return NXT_OK;
}

/* Of a text that is listed twice the last entry counts. */
static nxt_status load_added(nxt_tokenizer *t, const json *list, i64 vocabulary) {
    static const struct { const char *name; u32 flag; } flags[] = {
        {"special", SPECIAL}, {"lstrip", LSTRIP}, {"rstrip", RSTRIP},
        {"single_word", SINGLE_WORD}};
    i32 next = 0, id;
    const json **entry = arena_get(&t->scratch, (size_t)t->rows * sizeof *entry);
    if (!entry) return NXT_MEMORY;
    for (const json *m = list ? list->first : NULL; m; m = m->next) {
        const json *content = json_get(m, "content");
        if (!content || content->kind != JSON_STRING)
            return fail(t->cx, NXT_FORMAT, "%s: an added token without content", t->path);
        if (!content->length) continue;
        TRY(added_id(t, content, vocabulary, &next, &id));
        if ((i32)json_number(m, "id", id) != id)
            say(t->cx, NXT_LOG_WARNING, "%s: the added token %.60s gets id %d, as it does in "
                "Hugging Face's library", t->path, content->text, id);
        t->token[id].flags &= VERBATIM;
        for (int i = 0; i < COUNT(flags); i++)
            if (json_bool(m, flags[i].name, false)) t->token[id].flags |= flags[i].flag;
        entry[id] = m;
    }
    for (id = 0; id < t->size; id++) {
        const json *content = json_get(entry[id], "content");
        if (!content) continue;
        const u8 *p = (const u8 *)content->text;
        i64 n = content->length;
        const bool normal = json_bool(entry[id], "normalized", true);
        if (normal) TRY(normalise(t, &p, &n)); /* as the text it is looked for in */
        TRY(matcher_add(&t->memory, normal ? &t->normal : &t->raw, p, n, id));
    }
    return NXT_OK;
}

/* Station by station, in an order that lets each use what it needs: added tokens are looked for
 * in normalised text, so they come last. */
static nxt_status load_tokenizer(nxt_tokenizer *t, const json *root) {
    const json *model = json_get(root, "model"), *words = json_get(model, "vocab");
    const json *added = json_get(root, "added_tokens");
    TRY(load_normalizer(t, json_get(root, "normalizer")));
    TRY(load_pre_tokenizer(t, json_get(root, "pre_tokenizer")));
    TRY(load_model(t, model, added ? added->count : 0));
    TRY(load_added(t, added, words->count));
    load_template(t, json_get(root, "post_processor"));
    return NXT_OK;
}

/* GPT-2's own two files are rewritten as a tokenizer.json that also says what they leave to
 * the program: the pre-tokenizer, and the token that ends a text. */
static nxt_status load_gpt2_files(nxt_tokenizer *t, const char *vocab, const char *merges) {
    buffer all = {.cx = t->cx}, lines = all;
    json *root;
    buffer_text(&all, "{\"model\": {\"vocab\": ");
    t->path = vocab;
    nxt_status status = file_read(all.cx, vocab, MOST_BYTES, &all);
    if (status == NXT_OK) status = file_read(all.cx, merges, MOST_BYTES, &lines);
    buffer_text(&all, ", \"merges\": [\"#version\"");
    for (i64 at = 0, end; status == NXT_OK && at < lines.n; at = end + 1) {
        const char *feed = memchr(lines.p + at, '\n', (size_t)(lines.n - at));
        end = feed ? feed - lines.p : lines.n;
        buffer_text(&all, ", ");
        json_write_text(&all, lines.p + at, end - at - (end > at && lines.p[end - 1] == '\r'));
    }
    buffer_text(&all, "]}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                "\"add_prefix_space\": false}, \"added_tokens\": "
                "[{\"content\": \"<|endoftext|>\", \"special\": true}]}");
    if (status == NXT_OK) status = all.status;
    if (status == NXT_OK) status = json_parse(&t->scratch, vocab, all.p, all.n, &root);
    if (status == NXT_OK) status = load_tokenizer(t, root);
    if (status == NXT_OK) t->eos = t->bos = nxt_token_id(t, "<|endoftext|>");
    buffer_free(&all);
    buffer_free(&lines);
    return status;
}

/* "eos_token": "x" or {"content": "x"}, in a file that need not be there. */
static nxt_status load_specials(nxt_tokenizer *t, const char *path) {
    json *root;
    if (!path) return NXT_MEMORY;
    if (!path_exists(path)) return NXT_OK;
    TRY(json_read(&t->scratch, path, MOST_BYTES, &root));
    for (int bos = 0; bos < 2; bos++) {
        const char *key = bos ? "bos_token" : "eos_token";
        const char *name = json_text(root, key, json_text(json_get(root, key), "content", NULL));
        if (name) *(bos ? &t->bos : &t->eos) = nxt_token_id(t, name);
    }
    const bool adds = json_bool(root, "add_bos_token", t->adds_bos); /* SentencePiece's say so */
    if (t->characters) t->adds_bos = adds && t->bos >= 0;
    return NXT_OK;
}

/* A directory, or a file with what lies beside it. The two small files come after the large
 * one, whose ids they name; tokenizer_config.json has the last word on eos and bos. */
static nxt_status load_files(nxt_tokenizer *t, const char *path) {
    arena *a = &t->scratch;
    const bool file = ends_with(path, ".json");
    const char *directory = file ? path_parent(a, path) : path;
    if (!directory) return NXT_MEMORY;
    const char *vocab = path_join(a, directory, "vocab.json");
    const char *merges = path_join(a, directory, "merges.txt");
    t->path = file ? path : path_join(a, directory, "tokenizer.json");
    if (!t->path || !vocab || !merges) return NXT_MEMORY;
    if (file || path_exists(t->path)) {
        json *root;
        TRY(json_read(a, t->path, MOST_BYTES, &root));
        TRY(load_tokenizer(t, root));
    } else if (path_exists(vocab) && path_exists(merges))
        TRY(load_gpt2_files(t, vocab, merges));
    else
        return fail(t->cx, NXT_IO, "%s: no tokenizer.json here, nor vocab.json with "
                    "merges.txt", path);
    TRY(load_specials(t, path_join(a, directory, "special_tokens_map.json")));
    return load_specials(t, path_join(a, directory, "tokenizer_config.json"));
}

/* A tokenizer that knows Unicode and no tokens yet. */
static nxt_status tokenizer_create(nxt_context *cx, nxt_tokenizer **out) {
    nxt_tokenizer *t;
    TRY(mem_zero(cx, out, 1, sizeof *t));
    t = *out;
    t->cx = t->memory.cx = t->scratch.cx = t->text.cx = t->prefixed.cx = cx;
    t->unknown = t->eos = t->bos = -1;
    alphabet_create(t);
    TRY(mem_zero(cx, &t->cache, (i64)1 << CACHE_BITS, sizeof *t->cache));
    return unicode_create(t);
}

void nxt_tokenizer_destroy(nxt_tokenizer *tok) {
    if (!tok) return;
    nxt_context *cx = tok->cx;
    arena_free(&tok->memory);
    arena_free(&tok->scratch);
    buffer_free(&tok->text);
    buffer_free(&tok->prefixed);
    mem_drop(cx, tok->change);
    mem_drop(cx, tok->point);
    mem_drop(cx, tok->cache);
    mem_drop(cx, tok);
}

nxt_status nxt_tokenizer_load(nxt_tokenizer **tok, nxt_context *ctx, const char *path) {
    *tok = NULL;
    if (!path) return fail(ctx, NXT_ARGUMENT, "nxt_tokenizer_load: no path");
    nxt_status status = tokenizer_create(ctx, tok);
    if (status == NXT_OK) status = load_files(*tok, path);
    if (status == NXT_OK) return arena_free(&(*tok)->scratch), NXT_OK;
    nxt_tokenizer_destroy(*tok);
    *tok = NULL;
    return status;
}

/* -- public functions ---------------------------------------------------------------------- */

nxt_status nxt_encode(nxt_tokenizer *tok, const char *text, size_t bytes, int32_t *ids,
                      size_t *ends, size_t capacity, size_t *count) {
    token_list list = {.cx = tok->cx};
    nxt_status status = encode(tok, text, (i64)bytes, ends != NULL, &list);
    *count = status == NXT_OK ? (size_t)list.n : 0;
    for (size_t i = 0; i < *count && i < capacity; i++) {
        ids[i] = list.id[i];
        if (ends) ends[i] = (size_t)list.end[i];
    }
    mem_drop(tok->cx, list.id);
    mem_drop(tok->cx, list.end);
    return status;
}

nxt_status nxt_decode(nxt_tokenizer *tok, const int32_t *ids, size_t n, char *out,
                      size_t capacity, size_t *bytes) {
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        const u8 *p;
        i64 length;
        decode_bytes(tok, ids[i], &p, &length);
        for (i64 k = 0; k < length; k++, ++*bytes)
            if (*bytes < capacity) out[*bytes] = (char)p[k];
    }
    return NXT_OK;
}

/* Added tokens come before words of the vocabulary that have the same bytes. */
int32_t nxt_token_id(const nxt_tokenizer *tok, const char *text) {
    const i64 n = (i64)strlen(text);
    const i32 id = find_token(tok, (const u8 *)text, n, VERBATIM);
    return id >= 0 ? id : find_token(tok, (const u8 *)text, n, 0);
}

int32_t nxt_tokenizer_size(const nxt_tokenizer *tok) { return tok->size; }
int32_t nxt_tokenizer_eos(const nxt_tokenizer *tok) { return tok->eos; }
int32_t nxt_tokenizer_bos(const nxt_tokenizer *tok) { return tok->bos; }
int nxt_tokenizer_adds_bos(const nxt_tokenizer *tok) { return tok->adds_bos; }

int nxt_tokenizer_adds_space(const nxt_tokenizer *tok) {
    return tok->characters && tok->prefix != PREFIX_NONE;
}

int nxt_token_is_special(const nxt_tokenizer *tok, int32_t id) {
    return id >= 0 && id < tok->size && (tok->token[id].flags & SPECIAL);
}

/* ============================================================================
 * § 14  Architectures as data
 *
 * What differs between models is written in tables, so that forward and backward exist
 * once. A family says which keys of config.json hold its numbers and lists its parameters:
 * the role each plays here, its name in the files, its shape. All of them are
 *
 *     x = embed(ids) (+ positions)
 *     per layer, sequential:  x = x + attention(norm1(x));  x = x + mlp(norm2(x))
 *            or, parallel:    x = x + attention(norm1(x)) + mlp(norm2(x))
 *     logits = norm(x) head'
 *
 * and differ in little:
 *
 *                positions        norm       q, k, v               feed-forward
 *     GPT-NeoX   rotary, a part   LayerNorm  one matrix, per head  down(act(up x))
 *     GPT-2      learned          LayerNorm  one matrix, blocks    the same, stored (in, out)
 *     GPT-Neo    learned          LayerNorm  three; windows        down(act(up x))
 *     Llama      rotary           RMSNorm    three; grouped heads  down(act(gate x) * up x)
 *
 * [Black22, Radford19, Black21, Touvron23]. GPT-NeoX's fused projection is interleaved per
 * head: rows 3hD .. 3hD+3D of `query_key_value` are q, k and v of head h; GPT-2 has all of q,
 * then all of k, then all of v. The views of §9 address either where it lies.
 */
typedef enum role {
    EMBED_W, POSITION_W, FINAL_NORM_W, FINAL_NORM_B, HEAD_W, /* once; the others per layer: */
    NORM1_W, NORM1_B, QKV_W, QKV_B, Q_W, Q_B, K_W, K_B, V_W, V_B, OUT_W, OUT_B, NORM2_W,
    NORM2_B, GATE_W, GATE_B, UP_W, UP_B, DOWN_W, DOWN_B, ROLES
} role;

/* The numbers of one model, as config.json gives them; a few follow from the others. */
typedef struct shape {
    i64 V, C, L, H, F, T; /* vocabulary, channels, layers, heads, feed-forward, positions */
    i64 G, D;             /* heads of keys and values; the size of a head */
    i64 bos, eos;         /* ids; -1 for none */
    i64 rotary, pairs;    /* values of each head that turn with the position; pairs of them */
    i64 window;           /* rows that a local layer sees; 0: no layer is local */
    float rotary_share, rope_base, rope_factor;
    float rope_low, rope_high, rope_original; /* Llama 3's bounds; 0: the factor is for all */
    float eps, init_std;
    float dropout[3];     /* of embeddings, attention, branches: what the model was made with */
    nxt_act_kind act;
    nxt_norm_kind norm;
    bool parallel, tied, gated, qkv_bias, out_bias, mlp_bias;
    bool scaled, scaled_by_layer; /* attention's scores: by 1/sqrt(D); also by 1/(layer + 1) */
    bool sliding;                 /* windows that are not supported here */
    i64 lora_rank, lora_in;       /* of adapters: the largest rank, the widest input; or 0 */
    float lora_dropout;
    bool recompute;               /* layers keep their output only, and run again in backward */
} shape;

/* A shape is a name, not a number, until the config gives the numbers. DIM_QKV is the width of
 * q, k and v side by side: (H + 2 G) D. */
typedef enum dim { ONE, DIM_C, DIM_Q, DIM_KV, DIM_QKV, DIM_F, DIM_V, DIM_T } dim;
typedef enum init_kind { INIT_NORMAL, INIT_ZERO, INIT_ONE, INIT_DEEP } init_kind;

typedef struct param_row {
    role role;
    const char *name; /* %d: the layer */
    dim rows, cols;   /* ONE row: a vector */
} param_row;

/* A number of the config: where it goes, and what it is when the config does not say. */
typedef enum key_kind { COUNTED, REAL, FLAGGED } key_kind;
typedef struct config_key {
    const char *key;
    key_kind kind;
    size_t field; /* of shape: i64, float or bool */
    double otherwise;
} config_key;

typedef struct family {
    const char *model_type, *architecture;
    const char *prefix;    /* of names; the files of base models do without it */
    const char *act_key, *act;
    nxt_norm_kind norm;
    bool in_first;         /* matrices of layers are stored (in, out) */
    bool qkv_per_head;     /* q, k and v of a head lie together */
    bool deep_init;        /* what ends a branch starts smaller: 1/sqrt(2 L) */
    bool grouped;          /* keys and values may have fewer heads */
    const config_key *keys;
    i64 key_count;
    const param_row *rows;
    i64 row_count;
    const char *head_also; /* another name of the head's weight */
} family;

/* A key that a config does not mention has the value that Hugging Face's class gives it: old
 * configs were written when a default went without saying. (The default sizes are those of
 * the family's first member.) A count of -1 stands for null: "as follows from the others". */
#define KEY(NAME, KIND, FIELD, OTHERWISE) {NAME, KIND, offsetof(shape, FIELD), OTHERWISE}
static const config_key neox_keys[] = { /* GPTNeoXConfig */
    KEY("vocab_size", COUNTED, V, 50432), KEY("hidden_size", COUNTED, C, 6144),
    KEY("num_hidden_layers", COUNTED, L, 44), KEY("num_attention_heads", COUNTED, H, 64),
    KEY("intermediate_size", COUNTED, F, 24576),
    KEY("max_position_embeddings", COUNTED, T, 2048),
    KEY("bos_token_id", COUNTED, bos, 0), KEY("eos_token_id", COUNTED, eos, 2),
    KEY("layer_norm_eps", REAL, eps, 1e-5), KEY("initializer_range", REAL, init_std, 0.02),
    KEY("rotary_pct", REAL, rotary_share, 0.25), KEY("rotary_emb_base", REAL, rope_base, 10000),
    KEY("hidden_dropout", REAL, dropout[2], 0), KEY("attention_dropout", REAL, dropout[1], 0),
    KEY("use_parallel_residual", FLAGGED, parallel, true),
    KEY("tie_word_embeddings", FLAGGED, tied, false),
    KEY("attention_bias", FLAGGED, qkv_bias, true),
};
static const config_key gpt2_keys[] = { /* GPT2Config */
    KEY("vocab_size", COUNTED, V, 50257), KEY("n_embd", COUNTED, C, 768),
    KEY("n_layer", COUNTED, L, 12), KEY("n_head", COUNTED, H, 12),
    KEY("n_inner", COUNTED, F, -1), KEY("n_positions", COUNTED, T, 1024),
    KEY("bos_token_id", COUNTED, bos, 50256), KEY("eos_token_id", COUNTED, eos, 50256),
    KEY("layer_norm_epsilon", REAL, eps, 1e-5), KEY("initializer_range", REAL, init_std, 0.02),
    KEY("embd_pdrop", REAL, dropout[0], 0.1), KEY("attn_pdrop", REAL, dropout[1], 0.1),
    KEY("resid_pdrop", REAL, dropout[2], 0.1),
    KEY("scale_attn_weights", FLAGGED, scaled, true),
    KEY("scale_attn_by_inverse_layer_idx", FLAGGED, scaled_by_layer, false),
    KEY("tie_word_embeddings", FLAGGED, tied, true),
};
static const config_key neo_keys[] = { /* GPTNeoConfig */
    KEY("vocab_size", COUNTED, V, 50257), KEY("hidden_size", COUNTED, C, 2048),
    KEY("num_layers", COUNTED, L, 24), KEY("num_heads", COUNTED, H, 16),
    KEY("intermediate_size", COUNTED, F, -1),
    KEY("max_position_embeddings", COUNTED, T, 2048), KEY("window_size", COUNTED, window, 256),
    KEY("bos_token_id", COUNTED, bos, 50256), KEY("eos_token_id", COUNTED, eos, 50256),
    KEY("layer_norm_epsilon", REAL, eps, 1e-5), KEY("initializer_range", REAL, init_std, 0.02),
    KEY("embed_dropout", REAL, dropout[0], 0), KEY("attention_dropout", REAL, dropout[1], 0),
    KEY("resid_dropout", REAL, dropout[2], 0),
    KEY("tie_word_embeddings", FLAGGED, tied, true),
};
static const config_key llama_keys[] = { /* LlamaConfig */
    KEY("vocab_size", COUNTED, V, 32000), KEY("hidden_size", COUNTED, C, 4096),
    KEY("num_hidden_layers", COUNTED, L, 32), KEY("num_attention_heads", COUNTED, H, 32),
    KEY("num_key_value_heads", COUNTED, G, -1), KEY("head_dim", COUNTED, D, -1),
    KEY("intermediate_size", COUNTED, F, 11008),
    KEY("max_position_embeddings", COUNTED, T, 2048),
    KEY("bos_token_id", COUNTED, bos, 1), KEY("eos_token_id", COUNTED, eos, 2),
    KEY("rms_norm_eps", REAL, eps, 1e-6), KEY("initializer_range", REAL, init_std, 0.02),
    KEY("rope_theta", REAL, rope_base, 10000),
    KEY("attention_dropout", REAL, dropout[1], 0),
    KEY("tie_word_embeddings", FLAGGED, tied, false),
    KEY("attention_bias", FLAGGED, qkv_bias, false), KEY("mlp_bias", FLAGGED, mlp_bias, false),
};
static const config_key qwen2_keys[] = { /* Qwen2Config: a Llama with biases at q, k and v */
    KEY("vocab_size", COUNTED, V, 151936), KEY("hidden_size", COUNTED, C, 4096),
    KEY("num_hidden_layers", COUNTED, L, 32), KEY("num_attention_heads", COUNTED, H, 32),
    KEY("num_key_value_heads", COUNTED, G, 32), KEY("head_dim", COUNTED, D, -1),
    KEY("intermediate_size", COUNTED, F, 22016),
    KEY("max_position_embeddings", COUNTED, T, 32768),
    KEY("bos_token_id", COUNTED, bos, -1), KEY("eos_token_id", COUNTED, eos, -1),
    KEY("rms_norm_eps", REAL, eps, 1e-6), KEY("initializer_range", REAL, init_std, 0.02),
    KEY("rope_theta", REAL, rope_base, 10000),
    KEY("attention_dropout", REAL, dropout[1], 0),
    KEY("use_sliding_window", FLAGGED, sliding, false),
    KEY("tie_word_embeddings", FLAGGED, tied, false),
};
#undef KEY

/* The order is that of the files' own listings: embedding, layers, last norm, head. Every
 * weight is stored (out, in), as PyTorch's Linear has it; the product reads it transposed.
 * GPT-2's are (in, out): its authors' Conv1D.
 *
 *     query_key_value.weight, (3C, C):     head 0: q (D rows), k (D), v (D)
 *                                          head 1: q (D rows), k (D), v (D)     ...        */
#define NEOX "gpt_neox."
#define IN_LAYER NEOX "layers.%d."
static const param_row neox_rows[] = {
    {EMBED_W, NEOX "embed_in.weight", DIM_V, DIM_C},
    {NORM1_W, IN_LAYER "input_layernorm.weight", ONE, DIM_C},
    {NORM1_B, IN_LAYER "input_layernorm.bias", ONE, DIM_C},
    {QKV_W, IN_LAYER "attention.query_key_value.weight", DIM_QKV, DIM_C},
    {QKV_B, IN_LAYER "attention.query_key_value.bias", ONE, DIM_QKV},
    {OUT_W, IN_LAYER "attention.dense.weight", DIM_C, DIM_Q},
    {OUT_B, IN_LAYER "attention.dense.bias", ONE, DIM_C},
    {NORM2_W, IN_LAYER "post_attention_layernorm.weight", ONE, DIM_C},
    {NORM2_B, IN_LAYER "post_attention_layernorm.bias", ONE, DIM_C},
    {UP_W, IN_LAYER "mlp.dense_h_to_4h.weight", DIM_F, DIM_C},
    {UP_B, IN_LAYER "mlp.dense_h_to_4h.bias", ONE, DIM_F},
    {DOWN_W, IN_LAYER "mlp.dense_4h_to_h.weight", DIM_C, DIM_F},
    {DOWN_B, IN_LAYER "mlp.dense_4h_to_h.bias", ONE, DIM_C},
    {FINAL_NORM_W, NEOX "final_layer_norm.weight", ONE, DIM_C},
    {FINAL_NORM_B, NEOX "final_layer_norm.bias", ONE, DIM_C},
    {HEAD_W, "embed_out.weight", DIM_V, DIM_C},
};
#undef NEOX
#undef IN_LAYER

#define GPT "transformer."
#define IN_LAYER GPT "h.%d."
static const param_row gpt2_rows[] = {
    {EMBED_W, GPT "wte.weight", DIM_V, DIM_C},
    {POSITION_W, GPT "wpe.weight", DIM_T, DIM_C},
    {NORM1_W, IN_LAYER "ln_1.weight", ONE, DIM_C},
    {NORM1_B, IN_LAYER "ln_1.bias", ONE, DIM_C},
    {QKV_W, IN_LAYER "attn.c_attn.weight", DIM_C, DIM_QKV},
    {QKV_B, IN_LAYER "attn.c_attn.bias", ONE, DIM_QKV},
    {OUT_W, IN_LAYER "attn.c_proj.weight", DIM_Q, DIM_C},
    {OUT_B, IN_LAYER "attn.c_proj.bias", ONE, DIM_C},
    {NORM2_W, IN_LAYER "ln_2.weight", ONE, DIM_C},
    {NORM2_B, IN_LAYER "ln_2.bias", ONE, DIM_C},
    {UP_W, IN_LAYER "mlp.c_fc.weight", DIM_C, DIM_F},
    {UP_B, IN_LAYER "mlp.c_fc.bias", ONE, DIM_F},
    {DOWN_W, IN_LAYER "mlp.c_proj.weight", DIM_F, DIM_C},
    {DOWN_B, IN_LAYER "mlp.c_proj.bias", ONE, DIM_C},
    {FINAL_NORM_W, GPT "ln_f.weight", ONE, DIM_C},
    {FINAL_NORM_B, GPT "ln_f.bias", ONE, DIM_C},
    {HEAD_W, "lm_head.weight", DIM_V, DIM_C},
};
static const param_row neo_rows[] = {
    {EMBED_W, GPT "wte.weight", DIM_V, DIM_C},
    {POSITION_W, GPT "wpe.weight", DIM_T, DIM_C},
    {NORM1_W, IN_LAYER "ln_1.weight", ONE, DIM_C},
    {NORM1_B, IN_LAYER "ln_1.bias", ONE, DIM_C},
    {K_W, IN_LAYER "attn.attention.k_proj.weight", DIM_KV, DIM_C},
    {V_W, IN_LAYER "attn.attention.v_proj.weight", DIM_KV, DIM_C},
    {Q_W, IN_LAYER "attn.attention.q_proj.weight", DIM_Q, DIM_C},
    {OUT_W, IN_LAYER "attn.attention.out_proj.weight", DIM_C, DIM_Q},
    {OUT_B, IN_LAYER "attn.attention.out_proj.bias", ONE, DIM_C},
    {NORM2_W, IN_LAYER "ln_2.weight", ONE, DIM_C},
    {NORM2_B, IN_LAYER "ln_2.bias", ONE, DIM_C},
    {UP_W, IN_LAYER "mlp.c_fc.weight", DIM_F, DIM_C},
    {UP_B, IN_LAYER "mlp.c_fc.bias", ONE, DIM_F},
    {DOWN_W, IN_LAYER "mlp.c_proj.weight", DIM_C, DIM_F},
    {DOWN_B, IN_LAYER "mlp.c_proj.bias", ONE, DIM_C},
    {FINAL_NORM_W, GPT "ln_f.weight", ONE, DIM_C},
    {FINAL_NORM_B, GPT "ln_f.bias", ONE, DIM_C},
    {HEAD_W, "lm_head.weight", DIM_V, DIM_C},
};
#undef GPT
#undef IN_LAYER

#define LLAMA "model."
#define IN_LAYER LLAMA "layers.%d."
static const param_row llama_rows[] = {
    {EMBED_W, LLAMA "embed_tokens.weight", DIM_V, DIM_C},
    {Q_W, IN_LAYER "self_attn.q_proj.weight", DIM_Q, DIM_C},
    {Q_B, IN_LAYER "self_attn.q_proj.bias", ONE, DIM_Q},
    {K_W, IN_LAYER "self_attn.k_proj.weight", DIM_KV, DIM_C},
    {K_B, IN_LAYER "self_attn.k_proj.bias", ONE, DIM_KV},
    {V_W, IN_LAYER "self_attn.v_proj.weight", DIM_KV, DIM_C},
    {V_B, IN_LAYER "self_attn.v_proj.bias", ONE, DIM_KV},
    {OUT_W, IN_LAYER "self_attn.o_proj.weight", DIM_C, DIM_Q},
    {OUT_B, IN_LAYER "self_attn.o_proj.bias", ONE, DIM_C},
    {GATE_W, IN_LAYER "mlp.gate_proj.weight", DIM_F, DIM_C},
    {GATE_B, IN_LAYER "mlp.gate_proj.bias", ONE, DIM_F},
    {UP_W, IN_LAYER "mlp.up_proj.weight", DIM_F, DIM_C},
    {UP_B, IN_LAYER "mlp.up_proj.bias", ONE, DIM_F},
    {DOWN_W, IN_LAYER "mlp.down_proj.weight", DIM_C, DIM_F},
    {DOWN_B, IN_LAYER "mlp.down_proj.bias", ONE, DIM_C},
    {NORM1_W, IN_LAYER "input_layernorm.weight", ONE, DIM_C},
    {NORM2_W, IN_LAYER "post_attention_layernorm.weight", ONE, DIM_C},
    {FINAL_NORM_W, LLAMA "norm.weight", ONE, DIM_C},
    {HEAD_W, "lm_head.weight", DIM_V, DIM_C},
};
#undef LLAMA
#undef IN_LAYER

/* Older versions of transformers saved the causal mask and the rotary frequencies, which are
 * computed, not learned. The hub's own files of Pythia and GPT-2 carry them. */
static const char *const buffer_names[] = {".attention.bias", ".attention.masked_bias",
                                           ".attn.bias", ".attn.masked_bias",
                                           ".rotary_emb.inv_freq"};

#define TABLE(NAME) NAME##_keys, COUNT(NAME##_keys), NAME##_rows, COUNT(NAME##_rows)
static const family families[] = {
    {"gpt_neox", "GPTNeoXForCausalLM", "", "hidden_act", "gelu", NXT_LAYER_NORM, false, true,
     false, false, TABLE(neox), "lm_head.weight"},
    {"gpt2", "GPT2LMHeadModel", "transformer.", "activation_function", "gelu_new",
     NXT_LAYER_NORM, true, false, true, false, TABLE(gpt2), NULL},
    {"gpt_neo", "GPTNeoForCausalLM", "transformer.", "activation_function", "gelu_new",
     NXT_LAYER_NORM, false, false, false, false, TABLE(neo), NULL},
    {"llama", "LlamaForCausalLM", "model.", "hidden_act", "silu", NXT_RMS_NORM, false, false,
     false, true, TABLE(llama), NULL},
    {"qwen2", "Qwen2ForCausalLM", "model.", "hidden_act", "silu", NXT_RMS_NORM, false, false,
     false, true, qwen2_keys, COUNT(qwen2_keys), llama_rows, COUNT(llama_rows), NULL},
};
#undef TABLE

static bool has_role(const family *f, role r) {
    for (i64 i = 0; i < f->row_count; i++)
        if (f->rows[i].role == r) return true;
    return false;
}

enum { CONFIG_BYTES = 64 << 20 }; /* no honest config is larger */

/* -- config.json ----------------------------------------------------------------------- */
/* One number of the config, checked for sense: sizes are multiplied later, and a hostile
 * one must not overflow there. A member of the wrong kind is a mistake, not a reason to take
 * the default. */
static nxt_status config_number(nxt_context *cx, const char *where, const json *config,
                                const config_key *k, shape *s) {
    static const struct { const char *key, *also; } general[] = { /* GPT's names, everybody's */
        {"n_embd", "hidden_size"}, {"n_layer", "num_hidden_layers"},
        {"n_head", "num_attention_heads"}, {"n_positions", "max_position_embeddings"},
        {"num_layers", "num_hidden_layers"}, {"num_heads", "num_attention_heads"}};
    const json *v = json_get(config, k->key);
    for (i64 i = 0; !v && i < COUNT(general); i++)
        if (!strcmp(k->key, general[i].key)) v = json_get(config, general[i].also);
    const bool null = v && v->kind == JSON_NULL, flag = k->kind == FLAGGED;
    void *field = (char *)s + k->field;
    double x = k->otherwise;
    if (v && k->kind == COUNTED && v->kind == JSON_ARRAY && v->first) v = v->first; /* eos */
    if (v && flag && (v->kind == JSON_TRUE || v->kind == JSON_FALSE)) x = v->kind == JSON_TRUE;
    else if (v && !flag && v->kind == JSON_NUMBER) x = v->number;
    else if (null && k->kind == COUNTED) x = -1;
    else if (v && !null)
        return fail(cx, NXT_FORMAT, "%s: \"%s\" is not %s", where, k->key,
                    flag ? "true or false" : "a number");
    if (k->kind == COUNTED && (x != floor(x) || x < -1 || x > 1e9))
        return fail(cx, NXT_FORMAT, "%s: \"%s\" is %g, not a sensible size", where, k->key, x);
    if (flag) *(bool *)field = x != 0;
    else if (k->kind == REAL) *(float *)field = (float)x;
    else *(i64 *)field = (i64)x;
    return NXT_OK;
}

/* The names are Hugging Face's. "gelu" means the exact one, with erf, though the models were
 * trained with the tanh form: what transformers computes is what fine-tuning must continue. */
static nxt_status config_activation(nxt_context *cx, const char *where, const char *name,
                                    nxt_act_kind *act) {
    static const struct { const char *name; nxt_act_kind kind; } known[] = {
        {"gelu", NXT_GELU},          {"gelu_new", NXT_GELU_TANH},
        {"gelu_fast", NXT_GELU_FAST}, {"gelu_pytorch_tanh", NXT_GELU_TANH},
        {"relu", NXT_RELU},          {"silu", NXT_SILU},
    };
    for (i64 i = 0; i < COUNT(known); i++)
        if (!strcmp(name, known[i].name)) return *act = known[i].kind, NXT_OK;
    return fail(cx, NXT_UNSUPPORTED,
                "%s: activation \"%s\" is not supported (gelu, gelu_new, gelu_fast, "
                "gelu_pytorch_tanh, relu, silu are)", where, name);
}

/* Rotary settings have two spellings: rotary_pct, rope_theta and rope_scaling up to
 * transformers 4, rope_parameters {rope_theta, partial_rotary_factor, ...} from 5 on.
 * "dynamic" scaling changes nothing within max_position_embeddings, our limit anyway. */
static nxt_status config_rope(nxt_context *cx, const char *where, const json *config,
                              shape *s) {
    const json *newer = json_get(config, "rope_parameters"),
               *older = json_get(config, "rope_scaling");
    const json *scaling = newer && newer->kind == JSON_OBJECT ? newer : older;
    const double share = json_number(newer, "partial_rotary_factor", (double)s->rotary_share);
    const double base = json_number(newer, "rope_theta", (double)s->rope_base);
    const char *type = json_text(scaling, "rope_type", json_text(scaling, "type", "default"));
    const bool llama3 = !strcmp(type, "llama3");
    s->rope_factor = 1;
    if (!strcmp(type, "linear") || llama3)
        s->rope_factor = (float)json_number(scaling, "factor", 1);
    else if (strcmp(type, "default") && strcmp(type, "dynamic"))
        return fail(cx, NXT_UNSUPPORTED, "%s: rope type \"%s\" is not supported", where, type);
    if (llama3) {
        s->rope_low = (float)json_number(scaling, "low_freq_factor", 1);
        s->rope_high = (float)json_number(scaling, "high_freq_factor", 4);
        s->rope_original = (float)json_number(scaling, "original_max_position_embeddings", 0);
    }
    if (!(share >= 0 && share <= 1 && base > 0 && s->rope_factor > 0)
        || (llama3 && !(s->rope_low > 0 && s->rope_high > s->rope_low && s->rope_original > 0)))
        return fail(cx, NXT_FORMAT, "%s: rotary share %g, base %g, factor %g make no sense",
                    where, share, base, (double)s->rope_factor);
    s->rotary = (i64)((double)s->D * share);
    s->pairs = (s->rotary + 1) / 2; /* of an odd width the last value turns with a neighbour */
    s->rope_base = (float)base;
    if (2 * s->pairs > s->D)
        return fail(cx, NXT_FORMAT, "%s: %" PRId64 " values of a head cannot turn in pairs",
                    where, s->rotary);
    return NXT_OK;
}

/* What follows from the other numbers, and whether a model can have such sizes. */
static nxt_status config_sizes(nxt_context *cx, const char *where, const family *f, shape *s) {
    const bool divides = s->H > 0 && s->C % s->H == 0;
    if (s->F < 0) s->F = 4 * s->C;
    if (s->G < 1 || !f->grouped) s->G = s->H;
    if (s->D < 1 && s->H > 0) s->D = s->C / s->H;
    const double wide = (double)(2 * s->H + 2 * s->G) * (double)s->D;
    const double elements = (double)s->L * (double)s->C * (wide + 3.0 * (double)s->F)
                            + (2.0 * (double)s->V + (double)s->T) * (double)s->C;
    if (s->V < 2 || s->C < 2 || s->L < 1 || s->H < 1 || s->F < 2 || s->T < 1 || s->L > 100000
        || !divides || s->H % s->G || s->D > 100000 || s->V > INT32_MAX / 2 || elements > 1e13)
        return fail(cx, NXT_FORMAT,
                    "%s: impossible sizes: %" PRId64 " layers, %" PRId64 " wide, %" PRId64
                    " heads, %" PRId64 " inner, %" PRId64 " vocabulary, %" PRId64 " positions",
                    where, s->L, s->C, s->H, s->F, s->V, s->T);
    if (!(s->eps > 0 && isfinite(s->eps)))
        return fail(cx, NXT_FORMAT, "%s: the norm's epsilon is %g", where, (double)s->eps);
    return NXT_OK;
}

/* From the tree of config.json to the numbers of a shape. What no key says: NeoX has one flag
 * for both biases of attention, and so has Llama; GPT-2 and GPT-Neo have those in the table. */
static nxt_status config_shape(nxt_context *cx, const char *where, const json *config,
                               const family **out_family, shape *s) {
    const char *type = json_text(config, "model_type", "");
    const family *f = NULL;
    for (i64 i = 0; i < COUNT(families); i++)
        if (!strcmp(type, families[i].model_type)) f = &families[i];
    if (!f)
        return fail(cx, NXT_UNSUPPORTED, "%s: model_type \"%s\" is not supported (gpt_neox, "
                    "gpt2, gpt_neo, llama and qwen2 are)", where, type);
    *out_family = f;
    s->qkv_bias = s->mlp_bias = s->scaled = true;
    s->rotary_share = 1;
    for (i64 i = 0; i < f->key_count; i++)
        TRY(config_number(cx, where, config, &f->keys[i], s));
    TRY(config_sizes(cx, where, f, s));
    const bool rotary = !has_role(f, POSITION_W), qwen = !strcmp(type, "qwen2");
    const bool neo = !strcmp(type, "gpt_neo");
    s->norm = f->norm, s->gated = has_role(f, GATE_W);
    s->out_bias = !qwen && s->qkv_bias;
    s->mlp_bias &= !qwen;
    s->scaled &= !neo;
    if (s->sliding)
        return fail(cx, NXT_UNSUPPORTED, "%s: use_sliding_window is not supported", where);
    TRY(config_activation(cx, where, json_text(config, f->act_key, f->act), &s->act));
    return rotary ? config_rope(cx, where, config, s) : NXT_OK;
}

/* Which of GPT-Neo's layers are local: "attention_layers", item by item, or [[["global",
 * "local"], times], ...]; without either the 24 layers of the first model. Returns how many
 * layers are named, or -1 for something else. */
static i64 config_local(const json *config, i64 L, bool *local) {
    const json *list = json_get(config, "attention_layers");
    const json *types = list ? NULL : json_get(config, "attention_types");
    i64 l = 0;
    for (const json *c = list ? list->first : NULL; c; c = c->next, l++)
        if (l < L) local[l] = c->kind == JSON_STRING && !strcmp(c->text, "local");
    for (const json *t = types ? types->first : NULL; t; t = t->next) {
        const json *cycle = t->first, *times = cycle ? cycle->next : NULL;
        i64 n = 0;
        if (!json_integer(times, &n) || n < 0 || n > L || cycle->kind != JSON_ARRAY) return -1;
        for (i64 k = 0; k < n; k++)
            for (const json *c = cycle->first; c; c = c->next, l++)
                if (l < L) local[l] = c->kind == JSON_STRING && !strcmp(c->text, "local");
    }
    for (; !list && !types && l < 24; l++)
        if (l < L) local[l] = l % 2;
    return l;
}

/* -- The model ------------------------------------------------------------------------- */
/* The parameters of one layer under the names that §16 and §17 use. */
typedef struct layer_params {
    norm_params norm1, norm2;
    linear_params qkv, q, k, v; /* one matrix, or three */
    linear_params out, gate, up, down;
    bool local;                 /* attention sees a window only */
} layer_params;

struct nxt_model {
    nxt_context *cx;
    arena arena;           /* names, tables, the config's tree */
    char *dir;             /* where it was read from */
    const json *config;
    const family *family;
    shape s;
    dtype stored;          /* the type of the files: what saving uses unless told */
    weights files;
    param *params;
    i64 param_count;
    i64 elements;          /* in all parameters */
    param *embed, *head;   /* the same one when tied */
    param *positions;      /* NULL where they are rotary */
    norm_params final_norm;
    layer_params *layers;
    float *freq;           /* rope's angles per position, (pairs) */
    float *vectors;        /* norms and biases as f32, used by every pass */
    float *masters, *grads; /* of trainable parameters, once a trainer exists */
    i64 trained;            /* elements in those */
    i64 base_count;         /* parameters of the model; those of adapters come behind them */
    weights adapter_files;
    nxt_lora_config lora;   /* rank 0: no adapters */
    lora_work lora_work;
    i32 ends[16];           /* ids that end a text when the model says one of them */
    i64 end_count;
};

/* Widths of q, of k and v, of all three side by side. */
static i64 q_width(const shape *s) { return s->H * s->D; }
static i64 kv_width(const shape *s) { return s->G * s->D; }
static i64 qkv_width(const shape *s) { return q_width(s) + 2 * kv_width(s); }

static i64 dim_size(const shape *s, dim d) {
    const i64 size[] = {[ONE] = 1, [DIM_C] = s->C, [DIM_Q] = q_width(s), [DIM_KV] = kv_width(s),
                        [DIM_QKV] = qkv_width(s), [DIM_F] = s->F, [DIM_V] = s->V, [DIM_T] = s->T};
    return size[d];
}

/* Rows of the table that a model may do without. */
static bool row_applies(const shape *s, const param_row *r) {
    switch (r->role) {
    case HEAD_W: return !s->tied;
    case QKV_B: case Q_B: case K_B: case V_B: return s->qkv_bias;
    case OUT_B: return s->out_bias;
    case GATE_B: case UP_B: case DOWN_B: return s->mlp_bias;
    default: return true;
    }
}

/* How a new model starts: norms pass everything, biases nothing, matrices are small noise. In
 * a stream that 2 L branches add to, GPT-2 lets each add less the more there are. */
static init_kind start_of(const family *f, const param_row *r) {
    if (r->role == FINAL_NORM_W || r->role == NORM1_W || r->role == NORM2_W) return INIT_ONE;
    if (r->rows == ONE) return INIT_ZERO;
    return f->deep_init && (r->role == OUT_W || r->role == DOWN_W) ? INIT_DEEP : INIT_NORMAL;
}

/* Appends the parameter of row r, layer l; its weights come later. */
static param *add_param(nxt_model *m, const param_row *r, i64 l) {
    param *p = &m->params[m->param_count++];
    char name[160];
    int n = snprintf(name, sizeof name, r->name, (int)l);
    p->name = arena_text(&m->arena, name, (size_t)n);
    p->w = matrix(NULL, dim_size(&m->s, r->rows), dim_size(&m->s, r->cols));
    p->also = r->role == HEAD_W ? m->family->head_also : NULL;
    p->in_first = m->family->in_first && r->role > HEAD_W;
    p->product = p->w.rows > 1 && r->role != POSITION_W
                 && (r->role != EMBED_W || m->s.tied); /* tied: the head's, too */
    p->decay = r->rows != ONE; /* as Hugging Face's Trainer: not biases, not norms */
    p->init = start_of(m->family, r);
    p->role = (int)r->role, p->layer = l;
    m->elements += p->w.rows * p->w.cols;
    return p;
}

/* Gives a parameter its place in the structures that forward and backward use. */
static void place_param(nxt_model *m, role r, i64 l, param *p) {
    layer_params *y = &m->layers[l];
    param **place[ROLES] = {
        [EMBED_W] = &m->embed, [POSITION_W] = &m->positions, [HEAD_W] = &m->head,
        [FINAL_NORM_W] = &m->final_norm.w, [FINAL_NORM_B] = &m->final_norm.b,
        [NORM1_W] = &y->norm1.w, [NORM1_B] = &y->norm1.b, [NORM2_W] = &y->norm2.w,
        [NORM2_B] = &y->norm2.b, [QKV_W] = &y->qkv.w, [QKV_B] = &y->qkv.b, [Q_W] = &y->q.w,
        [Q_B] = &y->q.b, [K_W] = &y->k.w, [K_B] = &y->k.b, [V_W] = &y->v.w, [V_B] = &y->v.b,
        [OUT_W] = &y->out.w, [OUT_B] = &y->out.b, [GATE_W] = &y->gate.w, [GATE_B] = &y->gate.b,
        [UP_W] = &y->up.w, [UP_B] = &y->up.b, [DOWN_W] = &y->down.w, [DOWN_B] = &y->down.b,
    };
    *place[r] = p;
}

/* Llama 3 was trained on short texts and stretched to long ones [Grattafiori24]: waves longer
 * than original / low positions are slowed by the factor, those shorter than original / high
 * stay (neighbours must be told apart), and between the bounds it fades from one to the other. */
static float rope_frequency(const shape *s, i64 i) {
    const float f = 1 / powf(s->rope_base, 2 * (float)i / (float)s->rotary);
    if (s->rope_low <= 0) return f / s->rope_factor;
    const float wave = 2 * 3.14159265358979f / f;
    const float stay = (s->rope_original / wave - s->rope_low) / (s->rope_high - s->rope_low);
    const float kept = stay < 0 ? 0 : stay > 1 ? 1 : stay;
    return (1 - kept) * f / s->rope_factor + kept * f;
}

/* The parameter list in the order of the table, layers in place of their rows. */
static nxt_status list_params(nxt_model *m) {
    const family *f = m->family;
    const i64 most = m->s.L * f->row_count; /* and A and B for each */
    m->params = arena_get(&m->arena, (size_t)(3 * most) * sizeof *m->params);
    m->layers = arena_get(&m->arena, (size_t)m->s.L * sizeof *m->layers);
    m->freq = arena_get(&m->arena, (size_t)(m->s.pairs + 1) * sizeof *m->freq);
    if (!m->params || !m->layers || !m->freq) return NXT_MEMORY;
    for (i64 i = 0; i < f->row_count;) {
        i64 end = i + 1; /* the run of rows that repeats per layer */
        bool repeats = f->rows[i].role > HEAD_W;
        while (repeats && end < f->row_count && f->rows[end].role > HEAD_W) end++;
        for (i64 l = 0; l < (repeats ? m->s.L : 1); l++)
            for (i64 r = i; r < end; r++)
                if (row_applies(&m->s, &f->rows[r]))
                    place_param(m, f->rows[r].role, l, add_param(m, &f->rows[r], l));
        i = end;
    }
    if (m->s.tied) m->head = m->embed;
    m->base_count = m->param_count;
    for (i64 i = 0; i < m->s.pairs; i++) m->freq[i] = rope_frequency(&m->s, i); /* in f32: as HF */
    for (i64 i = 0; i < m->param_count; i++)
        if (!m->params[i].name) return NXT_MEMORY;
    return NXT_OK;
}

/* GPT-Neo's layers look at everything and at a window in turn. */
static nxt_status set_windows(nxt_model *m, const char *path) {
    bool *local;
    if (!m->s.window) return NXT_OK;
    TRY(mem_zero(m->cx, &local, m->s.L, sizeof *local));
    const i64 named = config_local(m->config, m->s.L, local);
    for (i64 l = 0; l < m->s.L; l++) m->layers[l].local = local[l];
    mem_drop(m->cx, local);
    if (named == m->s.L && m->s.window > 0) return NXT_OK;
    return fail(m->cx, NXT_FORMAT, "%s: \"attention_types\" names %" PRId64 " layers of %" PRId64
                ", window %" PRId64, path, named, m->s.L, m->s.window);
}

/* The tensor of a name; base models are saved without the prefix of the whole. */
static const tensor *find_weight(const nxt_model *m, const weights *files, const char *name) {
    const char *prefix = m->family->prefix;
    const tensor *t = weights_find(files, name);
    if (!t && !strncmp(name, prefix, strlen(prefix)))
        t = weights_find(files, name + strlen(prefix));
    return t;
}

/* Whether a tensor of the files belongs to a parameter, or is known to hold none. */
static bool tensor_is_known(const nxt_model *m, const char *name) {
    const size_t skip = strlen(m->family->prefix);
    if (m->s.tied && (!strcmp(name, "embed_out.weight") || !strcmp(name, "lm_head.weight")))
        return true;
    for (i64 i = 0; i < COUNT(buffer_names); i++)
        if (ends_with(name, buffer_names[i])) return true;
    for (i64 i = 0; i < m->param_count; i++) {
        const param *p = &m->params[i];
        if (!strcmp(name, p->name) || (p->also && !strcmp(name, p->also))) return true;
        if (!strncmp(p->name, m->family->prefix, skip) && !strcmp(name, p->name + skip))
            return true;
    }
    return false;
}

/* Tensors that belong to no parameter: buffers are known, anything else is reported. */
static void report_unused(nxt_model *m) {
    char list[400] = "";
    i64 unused = 0;
    for (i64 t = 0; t < m->files.count; t++) {
        const char *name = m->files.tensors[t].name;
        if (tensor_is_known(m, name)) continue;
        size_t used = strlen(list);
        if (unused++ < 4) snprintf(list + used, sizeof list - used, " %s", name);
    }
    if (unused)
        say(m->cx, NXT_LOG_WARNING, "%s: %" PRId64 " tensors are not used:%s%s", m->dir, unused,
            list, unused > 4 ? " ..." : "");
}

/* A tensor saved as the transpose of another array (torch keeps strides): the one case
 * where a frozen weight is copied, in its own type. */
static nxt_status bind_transposed(nxt_model *m, param *p, const tensor *t) {
    const i64 rows = p->w.rows, cols = p->w.cols, size = dtype_size((dtype)t->type);
    u8 *copy = arena_get(&m->arena, (size_t)(rows * cols * size));
    if (!copy) return NXT_MEMORY;
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < cols; c++)
            memcpy(copy + (r * cols + c) * size,
                   t->p + (r * t->stride[0] + c * t->stride[t->rank - 1]) * size, (size_t)size);
    p->w = p->stored = (mat){copy, (dtype)t->type, rows, cols, cols};
    return NXT_OK;
}

/* Points a parameter at its tensor, after checking that it is what the config promises. */
static nxt_status bind_param(nxt_model *m, param *p, const weights *files, const char *dir) {
    const tensor *t = find_weight(m, files, p->name);
    if (!t && p->also) t = weights_find(files, p->also);
    const bool vector = p->w.rows == 1 && p < m->params + m->base_count;
    if (!t) return fail(m->cx, NXT_SHAPE, "%s: tensor \"%s\" is missing", dir, p->name);
    if (t->type < 0)
        return fail(m->cx, NXT_UNSUPPORTED,
                    "%s: tensor \"%s\" has type %s (f32, f16 and bf16 are read)", t->file,
                    p->name, t->type_name);
    i64 rows = t->rank == 2 ? t->dim[0] : 1, cols = t->rank ? t->dim[t->rank - 1] : 0;
    if (t->rank != (vector ? 1 : 2) || rows != p->w.rows || cols != p->w.cols)
        return fail(m->cx, NXT_SHAPE,
                    "%s: tensor \"%s\" is %d-dimensional, %" PRId64 " x %" PRId64
                    "; the config makes it %" PRId64 " x %" PRId64,
                    t->file, p->name, t->rank, rows, cols, p->w.rows, p->w.cols);
    const i64 across = cols > 1 ? t->stride[t->rank - 1] : 1;
    if (across != 1) return bind_transposed(m, p, t);
    p->stored = (mat){.p = (void *)(uintptr_t)t->p, .type = (dtype)t->type, .rows = rows,
                      .cols = cols, .stride = vector ? cols : t->stride[0]};
    p->w = p->stored;
    return NXT_OK;
}

/* Vectors are a thousandth of a model: as f32, so that no kernel needs to convert them. */
static nxt_status load_vectors(nxt_model *m) {
    i64 n = 0;
    for (i64 i = 0; i < m->param_count; i++)
        if (m->params[i].w.rows == 1) n += m->params[i].w.cols;
    m->vectors = m->cx->ops->alloc(m->cx->device, (size_t)n * sizeof(float));
    if (!m->vectors) return NXT_MEMORY;
    float *next = m->vectors, *staging;
    const i64 longest = max64(max64(m->s.C, qkv_width(&m->s)), m->s.F);
    TRY(mem_get(m->cx, &staging, longest, sizeof *staging));
    for (i64 i = 0; i < m->param_count; i++) {
        param *p = &m->params[i];
        if (p->w.rows != 1) continue;
        load_floats(staging, p->stored.p, p->stored.type, 0, p->w.cols);
        m->cx->ops->upload(m->cx->device, next, staging, (size_t)p->w.cols * sizeof(float));
        p->w = matrix(next, 1, p->w.cols);
        next += p->w.cols;
    }
    mem_drop(m->cx, staging);
    return NXT_OK;
}

/* The config's tree is kept: saving writes it back with the members we do not know. */
static nxt_status read_config(nxt_model *m, const char *path) {
    buffer text = {.cx = m->cx};
    json *config;
    nxt_status status = file_read(m->cx, path, CONFIG_BYTES, &text);
    if (status == NXT_OK) status = json_parse(&m->arena, path, text.p, text.n, &config);
    buffer_free(&text);
    TRY(status);
    m->config = config;
    TRY(config_shape(m->cx, path, config, &m->family, &m->s));
    TRY(list_params(m));
    return set_windows(m, path);
}

void nxt_model_destroy(nxt_model *m) {
    if (!m) return;
    nxt_context *cx = m->cx;
    if (m->vectors) cx->ops->release(cx->device, m->vectors);
    if (m->masters) cx->ops->release(cx->device, m->masters);
    if (m->grads) cx->ops->release(cx->device, m->grads);
    weights_close(&m->files);
    weights_close(&m->adapter_files);
    arena_free(&m->arena);
    mem_drop(cx, m);
}

/* Chat models end a turn with a token of its own: config.json or generation_config.json then
 * has a list, of which any member ends a text. */
static void add_ends(nxt_model *m, const json *config) {
    const json *eos = json_get(config, "eos_token_id");
    if (eos && eos->kind == JSON_ARRAY) eos = eos->first;
    for (; eos && m->end_count < COUNT(m->ends); eos = eos->next) {
        if (eos->kind == JSON_NUMBER && eos->number >= 0 && eos->number < (double)m->s.V)
            m->ends[m->end_count++] = (i32)eos->number;
        if (eos->key) break; /* a single number: what follows are other members */
    }
}

static nxt_status read_ends(nxt_model *m) {
    json *config;
    const char *path = path_join(&m->arena, m->dir, "generation_config.json");
    if (!path) return NXT_MEMORY;
    add_ends(m, m->config);
    if (!path_exists(path)) return NXT_OK;
    TRY(json_read(&m->arena, path, CONFIG_BYTES, &config));
    add_ends(m, config);
    return NXT_OK;
}

int nxt_model_ends(const nxt_model *m, i32 id) {
    for (i64 i = 0; i < m->end_count; i++)
        if (m->ends[i] == id) return 1;
    return 0;
}

/* Config first, because it says which tensors must be there; then the files; then every
 * parameter is bound to its tensor. Nothing is copied but the vectors. */
static nxt_status model_read(nxt_model *m, const char *dir) {
    m->dir = arena_text(&m->arena, dir, strlen(dir));
    const char *path = path_join(&m->arena, dir, "config.json");
    if (!m->dir || !path) return NXT_MEMORY;
    TRY(read_config(m, path));
    TRY(read_ends(m));
    TRY(weights_open(m->cx, dir, &m->files));
    for (i64 i = 0; i < m->param_count; i++) TRY(bind_param(m, &m->params[i], &m->files, dir));
    m->stored = m->embed->stored.type;
    report_unused(m);
    return load_vectors(m);
}

nxt_status nxt_model_load(nxt_model **out, nxt_context *cx, const char *dir) {
    nxt_model *m;
    *out = NULL;
    TRY(mem_zero(cx, &m, 1, sizeof *m));
    m->cx = m->arena.cx = m->files.cx = m->adapter_files.cx = cx;
    nxt_status status = model_read(m, dir);
    if (status == NXT_OK) *out = m;
    else nxt_model_destroy(m);
    return status;
}

/* -- Trainable weights -----------------------------------------------------------------
 *
 * Evaluation and generation use the weights in the mapped file, in its own type: a model in
 * f16 costs no memory beyond the kernel's cache of the file. Training changes them, and a
 * step of AdamW changes a weight by about lr = 1e-5 of its size while f16 resolves 1e-3: in
 * f16 most updates would round to nothing. So the trained copy, the master, is f32. */
/* One parameter's values to the device, a piece at a time: rows may be apart in the file. */
static void upload_param(const nxt_model *m, const param *p, float *to, float *staging) {
    const i64 width = min64(p->w.cols, STAGE), rows = max64(1, STAGE / p->w.cols);
    for (i64 r = 0; r < p->w.rows; r += rows)
        for (i64 c = 0; c < p->w.cols; c += width) { /* wider than the staging: one row */
            const i64 n = min64(rows, p->w.rows - r), w = min64(width, p->w.cols - c);
            for (i64 k = 0; k < n; k++)
                load_floats(staging + k * w, p->stored.p, p->stored.type,
                            (r + k) * p->stored.stride + c, w);
            m->cx->ops->upload(m->cx->device, to + r * p->w.cols + c, staging,
                               (size_t)(n * w) * sizeof(float));
        }
}

/* Elements of the parameters that training changes. */
static i64 trainable_elements(const nxt_model *m) {
    i64 n = 0;
    for (i64 i = 0; i < m->param_count; i++)
        if (!m->params[i].frozen) n += m->params[i].w.rows * m->params[i].w.cols;
    return n;
}

/* Copies every weight that is not frozen into an f32 master of its own and gives it a gradient:
 * what a trainer needs. Does nothing the second time. */
static nxt_status model_make_trainable(nxt_model *m) {
    const nxt_backend *ops = m->cx->ops;
    void *d = m->cx->device;
    float *staging;
    i64 at = 0;
    if (m->masters) return NXT_OK;
    m->trained = trainable_elements(m);
    if (!m->trained) return fail(m->cx, NXT_ARGUMENT, "everything is frozen: nothing to train");
    TRY(mem_get(m->cx, &staging, STAGE, sizeof *staging));
    float *masters = ops->alloc(d, (size_t)m->trained * sizeof(float));
    m->grads = masters ? ops->alloc(d, (size_t)m->trained * sizeof(float)) : NULL;
    if (!m->grads) {
        if (masters) ops->release(d, masters);
        mem_drop(m->cx, staging);
        return NXT_MEMORY;
    }
    m->masters = masters;
    for (i64 i = 0; i < m->param_count; i++) {
        param *p = &m->params[i];
        if (p->frozen) continue;
        upload_param(m, p, masters + at, staging);
        p->w = matrix(masters + at, p->w.rows, p->w.cols);
        p->grad = matrix(m->grads + at, p->w.rows, p->w.cols);
        at += p->w.rows * p->w.cols;
    }
    mem_drop(m->cx, staging);
    ops->fill(d, matrix(m->grads, 1, m->trained), 0);
    return NXT_OK;
}

/* Whether `part` is a run of whole components of a dotted name: "layers.0" and "bias" of
 * "gpt_neox.layers.0.mlp.dense_h_to_4h.bias", but not "layer" or "s.0". */
static bool name_has_part(const char *name, const char *part, size_t n) {
    for (const char *at = name; n && (at = strchr(at, part[0])); at++)
        if (!strncmp(at, part, n) && (at == name || at[-1] == '.') && (!at[n] || at[n] == '.'))
            return true;
    return false;
}

/* The next item of a list with commas, its length in *n; NULL behind the last one. */
static const char *list_next(const char **list, size_t *n) {
    const char *item = *list;
    if (!item || !*item) return NULL;
    *n = strcspn(item, ",");
    *list = item + *n + (item[*n] == ',');
    return item;
}

nxt_status nxt_model_freeze(nxt_model *m, const char *names, int others) {
    const char *list = names, *item;
    size_t n;
    if (m->masters)
        return fail(m->cx, NXT_ARGUMENT, "weights are frozen before a trainer is made");
    for (i64 i = 0; others && i < m->param_count; i++) m->params[i].frozen = true;
    while ((item = list_next(&list, &n))) {
        i64 found = 0;
        for (i64 i = 0; i < m->param_count; i++)
            if (name_has_part(m->params[i].name, item, n)) m->params[i].frozen = !others, found++;
        if (!found)
            return fail(m->cx, NXT_ARGUMENT, "no parameter has \"%.*s\" in its name", (int)n,
                        item);
    }
    return NXT_OK;
}

void nxt_model_gradient_checkpointing(nxt_model *m, int on) { m->s.recompute = on; }

/* -- Adapters ---------------------------------------------------------------------------
 *
 * Which layers have one is said by the ends of their names, as PEFT does it; "all-linear" are
 * all but the head. Files are PEFT's: adapter_config.json with rank, alpha and targets, and
 * adapter_model.safetensors, in which A and B of a layer are
 *
 *     base_model.model.<layer>.lora_A.weight (r, in)      ....lora_B.weight (out, r)
 *
 * even where the layer's own weight is stored (in, out). */
#define LORA_PREFIX "base_model.model."

nxt_lora_config nxt_lora_config_default(void) {
    return (nxt_lora_config){.rank = 8, .alpha = 8, .seed = 42};
}

/* What PEFT adapts when it is not told: where the literature found most to gain [Hu21]. */
static const char *default_targets(const nxt_model *m) {
    if (has_role(m->family, QKV_W)) return m->family->in_first ? "c_attn" : "query_key_value";
    return "q_proj,v_proj";
}

/* Whether the layer whose weight has this name is among the targets. */
static bool is_target(const char *weight_name, const char *targets) {
    const char *list = targets, *item;
    const size_t length = strlen(weight_name) - strlen(".weight");
    size_t n;
    if (!strcmp(targets, "all-linear")) return true;
    while ((item = list_next(&list, &n)))
        if (n <= length && !strncmp(weight_name + length - n, item, n)
            && (n == length || weight_name[length - n - 1] == '.'))
            return true;
    return false;
}

static param *add_lora_param(nxt_model *m, const char *layer, const char *which, i64 rows,
                             i64 cols) {
    param *p = &m->params[m->param_count++];
    *p = (param){.product = true, .decay = true};
    p->name = arena_print(&m->arena, LORA_PREFIX "%.*s.lora_%s.weight",
                          (int)(strlen(layer) - strlen(".weight")), layer, which);
    p->w = matrix(NULL, rows, cols);
    return p;
}

/* Gives one layer its A and B; their values come later. */
static nxt_status add_lora(nxt_model *m, linear_params *y, i64 rank) {
    const mat w = y->w->w;
    const i64 in = y->w->in_first ? w.rows : w.cols, out = y->w->in_first ? w.cols : w.rows;
    lora *l = arena_get(&m->arena, sizeof *l);
    if (!l) return NXT_MEMORY;
    const double r = m->lora.rslora ? sqrt((double)rank) : (double)rank;
    *l = (lora){.scale = (float)(m->lora.alpha / r), .work = &m->lora_work,
                .site = (u64)m->param_count};
    l->a = add_lora_param(m, y->w->name, "A", rank, in);
    l->b = add_lora_param(m, y->w->name, "B", out, rank);
    if (!l->a->name || !l->b->name) return NXT_MEMORY;
    m->s.lora_rank = max64(m->s.lora_rank, rank);
    m->s.lora_in = max64(m->s.lora_in, in);
    y->lora = l;
    return NXT_OK;
}

/* A starts uniform in +-1/sqrt(in), PEFT's kaiming_uniform(sqrt 5); B at zero. */
static nxt_status start_lora(nxt_model *m) {
    for (i64 i = m->base_count; i < m->param_count; i++) {
        param *p = &m->params[i];
        const i64 n = p->w.rows * p->w.cols;
        float *x = arena_get(&m->arena, (size_t)n * sizeof *x);
        if (!x) return NXT_MEMORY;
        const float bound = 1 / sqrtf((float)p->w.cols);
        for (i64 k = 0; (i - m->base_count) % 2 == 0 && k < n; k++)
            x[k] = bound
                   * (float)(2 * uniform(draw(m->lora.seed, FOR_INIT, (u64)i, (u64)k)) - 1);
        p->w = p->stored = matrix(x, p->w.rows, p->w.cols);
    }
    return NXT_OK;
}

/* The linear layers of a model, one after the other; NULL behind the last. */
static linear_params *linear_at(nxt_model *m, i64 i) {
    layer_params *y = &m->layers[i / 8];
    linear_params *const all[8] = {&y->qkv, &y->q, &y->k, &y->v, &y->out, &y->gate, &y->up,
                                   &y->down};
    return i < 8 * m->s.L ? all[i % 8] : NULL;
}

/* Marks everything but the adapters as frozen: that is the point of them. */
static nxt_status lora_begin(nxt_model *m, const nxt_lora_config *c) {
    if (m->masters || m->lora.rank)
        return fail(m->cx, NXT_ARGUMENT, "adapters are attached once, before a trainer is made");
    if (c->rank < 1 || c->rank > 1 << 16 || !(c->alpha > 0 && c->alpha < 1e30)
        || !(c->dropout >= 0 && c->dropout < 1))
        return fail(m->cx, NXT_ARGUMENT, "an adapter of rank %d, alpha %g, dropout %g makes no "
                    "sense", c->rank, c->alpha, c->dropout);
    m->lora = *c;
    m->s.lora_dropout = (float)c->dropout;
    const char *targets = c->targets ? c->targets : default_targets(m);
    const char *base = c->base ? c->base : m->dir;
    m->lora.targets = arena_text(&m->arena, targets, strlen(targets));
    m->lora.base = arena_text(&m->arena, base, strlen(base));
    for (i64 i = 0; i < m->base_count; i++) m->params[i].frozen = true;
    return m->lora.targets && m->lora.base ? NXT_OK : NXT_MEMORY;
}

nxt_status nxt_lora_attach(nxt_model *m, const nxt_lora_config *config) {
    linear_params *y;
    TRY(lora_begin(m, config));
    for (i64 i = 0; (y = linear_at(m, i)); i++)
        if (y->w && is_target(y->w->name, m->lora.targets)) TRY(add_lora(m, y, config->rank));
    if (m->param_count == m->base_count)
        return fail(m->cx, NXT_ARGUMENT, "no linear layer of the model ends in any of \"%s\"",
                    m->lora.targets);
    return start_lora(m);
}

/* Settings that would change what an adapter computes and that we do not have. */
static nxt_status check_adapter_config(nxt_context *cx, const char *path, const json *c) {
    static const char *const refused[] = {"use_dora", "lora_bias", "use_qalora", "modules_to_save",
                                          "layer_replication", "alpha_pattern",
                                          "trainable_token_indices", "target_parameters"};
    if (strcmp(json_text(c, "peft_type", "LORA"), "LORA"))
        return fail(cx, NXT_UNSUPPORTED, "%s: peft_type \"%s\" is not supported (LORA is)", path,
                    json_text(c, "peft_type", ""));
    if (strcmp(json_text(c, "bias", "none"), "none"))
        return fail(cx, NXT_UNSUPPORTED, "%s: bias \"%s\" is not supported (none is)", path,
                    json_text(c, "bias", ""));
    for (i64 i = 0; i < COUNT(refused); i++) {
        const json *v = json_get(c, refused[i]);
        if (v && (v->kind == JSON_TRUE || v->first)) /* false, null and empty say "not used" */
            return fail(cx, NXT_UNSUPPORTED, "%s: \"%s\" is not supported", path, refused[i]);
    }
    return NXT_OK;
}

/* target_modules as a list with commas: for the adapter_config.json we write. */
static const char *join_targets(arena *a, const json *list) {
    const char *all = list && list->kind == JSON_STRING ? list->text : NULL;
    for (const json *t = list && list->kind == JSON_ARRAY ? list->first : NULL; t; t = t->next)
        all = arena_print(a, "%s%s%s", all ? all : "", all ? "," : "",
                          t->kind == JSON_STRING ? t->text : "");
    return all;
}

/* Which layers have an adapter is seen in the weights: patterns and lists of layers, in the
 * config, say the same in other words. The rank is A's number of rows. */
static nxt_status bind_adapters(nxt_model *m, const char *dir) {
    linear_params *y;
    for (i64 i = 0; (y = linear_at(m, i)); i++) {
        char name[256];
        if (!y->w) continue;
        snprintf(name, sizeof name, LORA_PREFIX "%.*s.lora_A.weight",
                 (int)(strlen(y->w->name) - strlen(".weight")), y->w->name);
        const tensor *t = weights_find(&m->adapter_files, name);
        if (!t) continue;
        if (t->rank != 2 || t->dim[0] < 1 || t->dim[0] > 1 << 16)
            return fail(m->cx, NXT_SHAPE, "%s: \"%s\" is no matrix of low rank", dir, name);
        TRY(add_lora(m, y, t->dim[0]));
    }
    for (i64 i = m->base_count; i < m->param_count; i++)
        TRY(bind_param(m, &m->params[i], &m->adapter_files, dir));
    const i64 used = m->param_count - m->base_count;
    if (!used || used != m->adapter_files.count)
        return fail(m->cx, NXT_SHAPE, "%s: %" PRId64 " of its %" PRId64 " tensors belong to "
                    "linear layers of this model: the adapter of another one?", dir, used,
                    m->adapter_files.count);
    return NXT_OK;
}

nxt_status nxt_lora_base(nxt_context *cx, const char *dir, const char **base) {
    arena a = {.cx = cx};
    json *config;
    const char *path = path_join(&a, dir, "adapter_config.json");
    nxt_status status = path ? json_read(&a, path, CONFIG_BYTES, &config) : NXT_MEMORY;
    const char *name = status == NXT_OK ? json_text(config, "base_model_name_or_path", NULL) : "";
    if (!name) status = fail(cx, NXT_FORMAT, "%s: names no base model: give --model", path);
    if (status == NXT_OK) status = nxt_text_keep(cx, name, base);
    arena_free(&a);
    return status;
}

nxt_status nxt_lora_load(nxt_model *m, const char *dir) {
    arena *a = &m->arena;
    const char *path = path_join(a, dir, "adapter_config.json");
    const char *file = path_join(a, dir, "adapter_model.safetensors");
    nxt_lora_config c = nxt_lora_config_default();
    json *config;
    if (!path || !file) return NXT_MEMORY;
    TRY(json_read(a, path, CONFIG_BYTES, &config));
    TRY(check_adapter_config(m->cx, path, config));
    c.rank = (int)json_number(config, "r", 8), c.alpha = json_number(config, "lora_alpha", 8);
    c.dropout = json_number(config, "lora_dropout", 0);
    c.rslora = json_bool(config, "use_rslora", false);
    c.targets = join_targets(a, json_get(config, "target_modules"));
    c.base = json_text(config, "base_model_name_or_path", NULL);
    TRY(lora_begin(m, &c));
    TRY(weights_open_file(m->cx, file, &m->adapter_files));
    return bind_adapters(m, dir);
}

/* ============================================================================
 * § 15  The memory of a pass
 *
 * Where the gigabytes go. A pass over N rows needs, per layer, what backward will read
 * again: the normalised inputs, q k v, the attention's output, the feed-forward's input to
 * the activation. That is 7 C + F floats a row and layer in GPT-NeoX (11 C; the output of
 * the activation is computed again instead of kept, which saves another F). Without
 * backward one set serves all layers. Where even that is too much, a layer keeps its output
 * alone, C floats a row, and all of it is computed once more when backward arrives: one
 * forward pass more, a third of the step, for a seventh of the memory [Chen16].
 *
 * The plan is the allocation, run dry: plan_pass hands out addresses from a base; called
 * with base 0 it returns how much would be needed. So what `info` predicts, what the
 * trainer reserves and what a pass uses are one function and cannot disagree. It is run
 * again for every micro-batch, on the same base, because N varies.
 */
/* What a layer keeps for its backward pass, in the order in which forward fills it. */
typedef struct layer_acts {
    mat n1, s1;  /* norm 1 and its statistics (N,C) (N,2) */
    mat qkv;     /* (N, (H + 2 G) D), rotated in place */
    mat y, lse;  /* attention's output and log-sum-exp (N, H D) (N,H) */
    mat h;       /* the stream after attention (N,C); sequential layers only */
    mat n2, s2;  /* norm 2 (N,C) (N,2) */
    mat pre;     /* the activation's input (N,F) */
    mat up;      /* what its output is multiplied by (N,F); gated networks only */
    mat out;     /* the stream after the layer (N,C) */
} layer_acts;

/* One micro-batch, on the host: n rows of several sequences behind each other. */
typedef struct batch {
    i64 n;
    i32 *ids, *pos;
    i32 *first, *last; /* the key rows that a row sees */
    i32 *label;        /* what a row shall predict; negative: not trained (NULL: none) */
    i32 *slot;         /* NULL, or the cache rows that receive the new keys and values */
    u64 *key;          /* of each token, for dropout; */
    bool dropout;      /* applies: only steps of a trainer say so */
} batch;

/* Keys and values of tokens already read, so that they are computed once: §21. */
typedef struct kv_cache {
    i64 rows;       /* capacity, in tokens, over all sequences */
    float *k, *v;   /* (L, rows, G D) on the device */
} kv_cache;

/* Everything that forward and backward of one batch touch. Matrices are views into one
 * block of memory; they are laid out anew for every batch. */
typedef struct pass {
    nxt_model *m;
    nxt_context *cx;
    i64 n, trained;      /* rows; rows that have a label */
    bool keep;           /* for backward */
    batch in;            /* the batch, in device memory */
    i32 *near;           /* (N) the first key row that a row of a local layer sees; or NULL */
    i32 *rows;           /* (trained) their row numbers, device */
    i32 *row_label;      /* (trained) device */
    const kv_cache *cache;
    mat x0;              /* (N,C) embeddings */
    layer_acts *layer;   /* (L) */
    mat f, g;            /* (N,F) the activation's output; times the gate's other half */
    mat xr, sr, nr, dnr; /* (trained,C) last stream, statistics, norm, its gradient */
    mat logits;          /* (chunk,V): the head never holds more rows than this */
    float *loss;         /* (trained) */
    mat dx, dn1, dn2, dy, dqkv, df; /* gradients: one set, used by layer after layer */
    mat work;            /* (N,H) */
    u64 *keys;           /* (N) of the rows, for dropout; or NULL */
    lora_work lora;
} pass;

/* A stack of memory that only grows. base NULL: nothing is there, only `used` is counted. */
typedef struct bump {
    char *base;
    size_t used;
} bump;

static void *bump_take(bump *b, i64 count, size_t size) {
    void *p = b->base ? b->base + b->used : NULL;
    b->used += ((size_t)count * size + 63) & ~(size_t)63;
    return p;
}

static mat bump_mat(bump *b, i64 rows, i64 cols) {
    return matrix(bump_take(b, rows * cols, sizeof(float)), rows, cols);
}

static i32 *bump_ints(bump *b, i64 n) { return bump_take(b, n, sizeof(i32)); }

/* Rows of the head at a time: the whole batch for a small vocabulary, at most 128 MB of logits
 * for a large one. Every chunk reads the head's weights and gradient again, so chunks are few
 * and of one size. */
static i64 head_chunk(const shape *s, i64 rows) {
    const i64 most = max64(16, (128 << 20) / (4 * s->V));
    return max64(1, ceil_div(rows, max64(1, ceil_div(rows, most))));
}

/* The matrices of one layer. Statistics and lse are small, but exact ones make backward
 * agree with forward to the last bit of rounding. */
static void plan_layer(bump *b, const shape *s, i64 N, layer_acts *a) {
    a->s1 = bump_mat(b, N, 2);
    a->n1 = bump_mat(b, N, s->C);
    a->qkv = bump_mat(b, N, qkv_width(s));
    a->y = bump_mat(b, N, q_width(s));
    a->lse = bump_mat(b, N, s->H);
    a->h = s->parallel ? no_mat() : bump_mat(b, N, s->C);
    a->s2 = bump_mat(b, N, 2);
    a->n2 = bump_mat(b, N, s->C);
    a->pre = bump_mat(b, N, s->F);
    a->up = s->gated ? bump_mat(b, N, s->F) : no_mat();
    a->out = bump_mat(b, N, s->C);
}

/* What all adapters of a pass use in turn. */
static void plan_lora(bump *b, const shape *s, i64 N, bool keep, lora_work *w) {
    *w = (lora_work){.rate = s->lora_dropout};
    if (!s->lora_rank) return;
    w->u = bump_mat(b, N, s->lora_rank);
    if (!keep) return;
    w->du = bump_mat(b, N, s->lora_rank);
    if (s->lora_dropout > 0) w->x = bump_mat(b, N, s->lora_in), w->out = bump_mat(b, N, s->lora_in);
}

/* layer: (L) views to fill, NULL in a dry run. Returns the bytes used. */
static size_t plan_pass(pass *p, const shape *s, char *base, i64 N, i64 trained, bool keep,
                        layer_acts *layer) {
    bump b = {.base = base};
    layer_acts dry[2];
    p->n = N, p->trained = trained, p->keep = keep, p->layer = layer;
    i32 **ints[] = {&p->in.ids, &p->in.pos, &p->in.first, &p->in.last, &p->in.slot, &p->rows,
                    &p->row_label, &p->near};
    for (i64 i = 0; i < COUNT(ints) - !s->window; i++) *ints[i] = bump_ints(&b, N);
    p->keys = s->lora_dropout > 0 && keep ? bump_take(&b, N, sizeof(u64)) : NULL;
    plan_lora(&b, s, N, keep, &p->lora);
    p->x0 = bump_mat(&b, N, s->C);
    for (i64 l = 0; l < s->L; l++) {
        layer_acts *a = layer ? &layer[l] : &dry[l & 1];
        if (l < (keep && s->recompute ? 1 : keep ? s->L : 2)) plan_layer(&b, s, N, a);
        else if (layer) *a = layer[keep ? 0 : l - 2]; /* two in turn: a layer reads the last one */
        if (keep && s->recompute && l) a->out = bump_mat(&b, N, s->C);
    }
    p->f = bump_mat(&b, N, s->F);
    p->g = s->gated ? bump_mat(&b, N, s->F) : p->f;
    const i64 chunk = head_chunk(s, trained);
    p->xr = bump_mat(&b, trained, s->C), p->sr = bump_mat(&b, trained, 2);
    p->nr = bump_mat(&b, trained, s->C);
    p->logits = bump_mat(&b, chunk, s->V);
    p->loss = bump_take(&b, trained, sizeof(float));
    if (!keep) return b.used;
    p->dnr = bump_mat(&b, trained, s->C);
    p->dx = bump_mat(&b, N, s->C), p->dy = bump_mat(&b, N, q_width(s));
    p->dn1 = bump_mat(&b, N, s->C), p->dn2 = bump_mat(&b, N, s->C);
    p->dqkv = bump_mat(&b, N, qkv_width(s)), p->df = bump_mat(&b, N, s->F);
    p->work = bump_mat(&b, N, s->H);
    return b.used;
}

/* Memory for passes of up to `rows` rows. */
typedef struct pass_memory {
    nxt_model *m;
    char *base;
    size_t bytes;
    layer_acts *layer;
    i32 *host;           /* (3, rows) trained rows, their labels, windows; on the way over */
    float *loss;         /* (rows) host */
    i64 rows;
    bool keep;
} pass_memory;

static void pass_memory_free(pass_memory *pm) {
    if (!pm->m) return;
    nxt_context *cx = pm->m->cx;
    if (pm->base) cx->ops->release(cx->device, pm->base);
    mem_drop(cx, pm->layer);
    mem_drop(cx, pm->host);
    mem_drop(cx, pm->loss);
    *pm = (pass_memory){0};
}

static size_t pass_bytes(const shape *s, i64 rows, bool keep) {
    pass dry;
    return plan_pass(&dry, s, NULL, rows, rows, keep, NULL);
}

static nxt_status pass_memory_get(nxt_model *m, i64 rows, bool keep, pass_memory *pm) {
    nxt_status status = NXT_OK;
    *pm = (pass_memory){.m = m, .rows = rows, .keep = keep};
    pm->bytes = pass_bytes(&m->s, rows, keep);
    TRY_GOTO(failed, mem_get(m->cx, &pm->layer, m->s.L, sizeof *pm->layer));
    TRY_GOTO(failed, mem_get(m->cx, &pm->host, 3 * rows, sizeof *pm->host));
    TRY_GOTO(failed, mem_get(m->cx, &pm->loss, rows, sizeof *pm->loss));
    pm->base = m->cx->ops->alloc(m->cx->device, pm->bytes);
    if (pm->base) return NXT_OK;
    status = NXT_MEMORY;
failed:
    pass_memory_free(pm);
    return status;
}

/* Lays a pass out for one batch and sends the batch's integers to the device. */
static void pass_begin(pass *p, pass_memory *pm, const batch *b, const kv_cache *cache) {
    nxt_context *cx = pm->m->cx;
    i32 *rows = pm->host, *label = rows + pm->rows, *near = label + pm->rows;
    const i64 window = pm->m->s.window;
    i64 trained = 0;
    for (i64 n = 0; b->label && n < b->n; n++)
        if (b->label[n] >= 0) rows[trained] = (i32)n, label[trained++] = b->label[n];
    for (i64 n = 0; window && n < b->n; n++) /* itself and window - 1 before it */
        near[n] = (i32)max64(b->first[n], b->last[n] - window + 1);
    NXT_ASSERT(b->n <= pm->rows);
    *p = (pass){.m = pm->m, .cx = cx, .cache = cache};
    plan_pass(p, &pm->m->s, pm->base, b->n, trained, pm->keep, pm->layer);
    const size_t bytes = (size_t)b->n * sizeof(i32), few = (size_t)trained * sizeof(i32);
    const struct { i32 *to; const i32 *from; size_t bytes; } sent[] = {
        {p->in.ids, b->ids, bytes}, {p->in.pos, b->pos, bytes}, {p->in.first, b->first, bytes},
        {p->in.last, b->last, bytes}, {p->in.slot, b->slot, b->slot ? bytes : 0},
        {p->rows, rows, few}, {p->row_label, label, few}, {p->near, near, window ? bytes : 0},
        {(i32 *)(void *)p->keys, (i32 *)(void *)b->key, b->dropout && p->keys ? 2 * bytes : 0},
    };
    if (!b->dropout) p->keys = NULL;
    p->lora.keys = p->keys;
    pm->m->lora_work = p->lora;
    for (i64 i = 0; i < COUNT(sent); i++)
        if (sent[i].bytes) cx->ops->upload(cx->device, sent[i].to, sent[i].from, sent[i].bytes);
}

/* ============================================================================
 * § 16  Forward
 *
 * The transformer on one page. A stream of N rows, C wide, runs through the layers; each
 * layer reads it through a norm and adds what attention (rows look at rows) and the
 * feed-forward network (each row by itself) have to say. Adding is done by the product
 * that computes the branch (beta 1), so the stream is copied once and never summed apart.
 */
/* Where q, k and v are: three sets of heads inside one matrix, or in the cache. */
typedef struct qkv_views {
    heads q, k, v;
} qkv_views;

static qkv_views split_qkv(const nxt_model *m, mat qkv) { /* the two layouts: §14 */
    const int H = (int)m->s.H, G = (int)m->s.G, D = (int)m->s.D;
    if (m->family->qkv_per_head)
        return (qkv_views){heads_in(qkv, 0, 3 * D, H, D), heads_in(qkv, D, 3 * D, H, D),
                           heads_in(qkv, 2 * D, 3 * D, H, D)};
    return (qkv_views){heads_in(qkv, 0, D, H, D), heads_in(qkv, H * D, D, G, D),
                       heads_in(qkv, (H + G) * D, D, G, D)};
}

static mat layer_input(const pass *p, i64 l) { return l ? p->layer[l - 1].out : p->x0; }

/* Keys and values are the batch's own rows in training; in a session the new ones are
 * filed in the cache first and attention reads the cache. */
static qkv_views keys_in_cache(pass *p, i64 l, qkv_views a) {
    if (!p->cache) return a;
    const shape *s = &p->m->s;
    const i64 width = kv_width(s), at = l * p->cache->rows * width;
    const int G = (int)s->G, D = (int)s->D;
    heads k = heads_in(matrix(p->cache->k + at, p->cache->rows, width), 0, D, G, D);
    heads v = heads_in(matrix(p->cache->v + at, p->cache->rows, width), 0, D, G, D);
    p->cx->ops->store(p->cx->device, k, a.k, p->in.slot);
    p->cx->ops->store(p->cx->device, v, a.v, p->in.slot);
    return (qkv_views){a.q, k, v};
}

/* q.k is a sum of D products of values of size one, so its deviation is sqrt(D); divided by
 * that, the softmax starts out soft whatever the head size. (GPT-Neo learnt to do without.) */
static float attention_scale(const shape *s, i64 l) {
    const float scale = s->scaled ? 1 / sqrtf((float)s->D) : 1;
    return s->scaled_by_layer ? scale / (float)(l + 1) : scale;
}

/* The first key row of each row: a local layer's are nearer. */
static const i32 *first_keys(const pass *p, i64 l) {
    return p->m->layers[l].local ? p->near : p->in.first;
}

static void turn(pass *p, qkv_views w, float sign) {
    const int pairs = (int)p->m->s.pairs;
    if (!pairs) return;
    p->cx->ops->rope(p->cx->device, w.q, p->m->freq, pairs, p->in.pos, sign);
    p->cx->ops->rope(p->cx->device, w.k, p->m->freq, pairs, p->in.pos, sign);
}

/* Rows exchange information here and nowhere else. */
static void attend(pass *p, i64 l, layer_acts *a) {
    const shape *s = &p->m->s;
    qkv_views w = split_qkv(p->m, a->qkv);
    turn(p, w, 1);
    w = keys_in_cache(p, l, w);
    p->cx->ops->attention_fwd(p->cx->device, heads_in(a->y, 0, s->D, (int)s->H, (int)s->D),
                              a->lse, w.q, w.k, w.v, first_keys(p, l), p->in.last,
                              attention_scale(s, l));
}

/* q, k and v side by side, by one product or by three. */
static void project(pass *p, const layer_params *w, mat qkv, mat x) {
    const shape *s = &p->m->s;
    const i64 Q = q_width(s), KV = kv_width(s);
    if (w->qkv.w) {
        linear(p->cx, qkv, x, w->qkv, 0);
        return;
    }
    linear(p->cx, cols_from(qkv, 0, Q), x, w->q, 0);
    linear(p->cx, cols_from(qkv, Q, KV), x, w->k, 0);
    linear(p->cx, cols_from(qkv, Q + KV, KV), x, w->v, 0);
}

/* p->g = act(pre), or act(pre) * up where the network is gated: one half says what, the other
 * how much of it [Shazeer20]. */
static void activate(pass *p, layer_acts *a) {
    p->cx->ops->act_fwd(p->cx->device, p->f, a->pre, p->m->s.act);
    if (a->up.p) p->cx->ops->mul(p->cx->device, p->g, p->f, a->up);
}

/* Parallel layers let both branches read x, so that they could run at once; sequential ones
 * let the feed-forward network read what attention has added. All that differs is which
 * matrix the second norm reads and whether the stream needs a copy of its own in between.
 * `again`: for backward, which reads all but the layer's output. */
static void forward_layer(pass *p, i64 l, bool again) {
    const shape *s = &p->m->s;
    const layer_params *w = &p->m->layers[l];
    layer_acts *a = &p->layer[l];
    nxt_context *cx = p->cx;
    mat x = layer_input(p, l), h = s->parallel ? a->out : a->h;

    norm(cx, a->n1, a->s1, x, w->norm1, s->eps, s->norm);
    project(p, w, a->qkv, a->n1);
    attend(p, l, a);
    if (!again || !s->parallel) {
        copy_rows(cx, h, x);
        linear(cx, h, a->y, w->out, 1);         /* h = x + attention */
    }
    norm(cx, a->n2, a->s2, s->parallel ? x : h, w->norm2, s->eps, s->norm);
    linear(cx, a->pre, a->n2, s->gated ? w->gate : w->up, 0);
    if (s->gated) linear(cx, a->up, a->n2, w->up, 0);
    if (again) return;
    activate(p, a);
    if (!s->parallel) copy_rows(cx, a->out, h);
    linear(cx, a->out, p->g, w->down, 1);       /* out = h + mlp */
}

/* Ids in, the stream behind the last layer out. */
static void forward(pass *p) {
    const nxt_model *m = p->m;
    p->cx->ops->embed_fwd(p->cx->device, p->x0, weight(m->embed),
                          weight(m->positions), p->in.ids, p->in.pos);
    for (i64 l = 0; l < m->s.L; l++) forward_layer(p, l, false);
}

/* The last norm, over the rows that have a label: p->nr. */
static void head_norm(pass *p) {
    p->cx->ops->gather(p->cx->device, p->xr, layer_input(p, p->m->s.L), p->rows);
    norm(p->cx, p->nr, p->sr, p->xr, p->m->final_norm, p->m->s.eps, p->m->s.norm);
}

/* Logits and cross-entropy, a chunk of rows at a time. With `train` the chunk's gradient is
 * used up at once: the loss is a sum, so the gradient of a row's logits needs to know
 * nothing about the other rows, and neither logits nor their gradient are ever held whole.
 * Sets p->loss, and p->dnr when training. */
static void head_loss(pass *p, bool train) {
    nxt_context *cx = p->cx;
    const linear_params head = {.w = p->m->head};
    for (i64 at = 0, n; at < p->trained; at += n) {
        n = min64(p->logits.rows, p->trained - at);
        mat z = rows_from(p->logits, 0, n), x = rows_from(p->nr, at, n);
        linear(cx, z, x, head, 0);
        cx->ops->xent(cx->device, p->loss + at, z, p->row_label + at, train);
        if (train) linear_bwd(cx, rows_from(p->dnr, at, n), z, x, head, 0);
    }
}

/* The logits themselves, (trained,V), to the host: for generation and inspection. */
static void head_logits(pass *p, float *out) {
    nxt_context *cx = p->cx;
    for (i64 at = 0, n; at < p->trained; at += n) {
        n = min64(p->logits.rows, p->trained - at);
        mat z = rows_from(p->logits, 0, n);
        linear(cx, z, rows_from(p->nr, at, n), (linear_params){.w = p->m->head}, 0);
        cx->ops->download(cx->device, out + at * z.cols, z.p, (size_t)(n * z.cols) * sizeof(float));
    }
}

/* Sum of the losses of a batch, in nats, rows in order. */
static double batch_loss(pass *p, pass_memory *pm) {
    double sum = 0;
    p->cx->ops->download(p->cx->device, pm->loss, p->loss, (size_t)p->trained * sizeof(float));
    for (i64 i = 0; i < p->trained; i++) sum += pm->loss[i];
    return sum;
}

/* ============================================================================
 * § 17  Backward
 *
 * The same page, reversed. dx is the gradient at the stream: it enters at a layer's output
 * and leaves at its input. Because the stream is a sum, its gradient flows past every
 * branch unchanged; each branch reads it and adds its share through the norm it started
 * from. A parallel layer's two branches read the same stream, so both must have read dx
 * before either adds to it.
 */
static void backward_mlp(pass *p, const layer_params *w, layer_acts *a) { /* dx -> dn2 */
    nxt_context *cx = p->cx;
    const nxt_backend *ops = cx->ops;
    const bool gated = a->up.p != NULL;
    activate(p, a);                                       /* not kept: computed again */
    linear_bwd(cx, p->df, p->dx, p->g, w->down, 0);
    if (gated) {                                          /* g = f up: each gets the other's */
        ops->mul(cx->device, p->f, p->f, p->df);
        linear_bwd(cx, p->dn2, p->f, a->n2, w->up, 0);
        ops->mul(cx->device, p->df, p->df, a->up);
    }
    ops->act_bwd(cx->device, p->df, p->df, a->pre, p->m->s.act);
    linear_bwd(cx, p->dn2, p->df, a->n2, gated ? w->gate : w->up, gated ? 1 : 0);
}

/* The three products of one matrix, or of three whose input's gradients add up. */
static void backward_project(pass *p, const layer_params *w, layer_acts *a) {
    const i64 Q = q_width(&p->m->s), KV = kv_width(&p->m->s);
    if (w->qkv.w) {
        linear_bwd(p->cx, p->dn1, p->dqkv, a->n1, w->qkv, 0);
        return;
    }
    linear_bwd(p->cx, p->dn1, cols_from(p->dqkv, 0, Q), a->n1, w->q, 0);
    linear_bwd(p->cx, p->dn1, cols_from(p->dqkv, Q, KV), a->n1, w->k, 1);
    linear_bwd(p->cx, p->dn1, cols_from(p->dqkv, Q + KV, KV), a->n1, w->v, 1);
}

static void backward_attention(pass *p, i64 l, layer_acts *a) { /* dx -> dn1 */
    const shape *s = &p->m->s;
    const layer_params *w = &p->m->layers[l];
    const int H = (int)s->H, D = (int)s->D;
    qkv_views v = split_qkv(p->m, a->qkv), g = split_qkv(p->m, p->dqkv);
    linear_bwd(p->cx, p->dy, p->dx, a->y, w->out, 0);
    p->cx->ops->attention_bwd(p->cx->device, g.q, g.k, g.v, heads_in(p->dy, 0, D, H, D),
                              heads_in(a->y, 0, D, H, D), a->lse, p->work, v.q, v.k, v.v,
                              first_keys(p, l), p->in.last, attention_scale(s, l));
    turn(p, g, -1);
    backward_project(p, w, a);
}

/* dx holds dL/d(out) before and dL/d(x) afterwards. */
static void backward_layer(pass *p, i64 l) {
    const layer_params *w = &p->m->layers[l];
    layer_acts *a = &p->layer[l];
    const bool parallel = p->m->s.parallel;
    const nxt_norm_kind kind = p->m->s.norm;
    mat x = layer_input(p, l);
    if (p->m->s.recompute && l + 1 < p->m->s.L) forward_layer(p, l, true); /* the last is there */
    backward_mlp(p, w, a);
    if (!parallel) norm_bwd(p->cx, p->dx, p->dn2, a->h, a->s2, w->norm2, kind);
    backward_attention(p, l, a);
    if (parallel) norm_bwd(p->cx, p->dx, p->dn2, x, a->s2, w->norm2, kind);
    norm_bwd(p->cx, p->dx, p->dn1, x, a->s1, w->norm1, kind);
}

/* Accumulates every gradient of the summed loss. After forward and head_norm. */
static void backward(pass *p) {
    const nxt_model *m = p->m;
    nxt_context *cx = p->cx;
    head_loss(p, true);
    cx->ops->fill(cx->device, p->dx, 0); /* rows without a label start with no gradient */
    mat dxr = rows_from(p->dn1, 0, p->trained); /* free until the first layer */
    cx->ops->fill(cx->device, dxr, 0);
    norm_bwd(cx, dxr, p->dnr, p->xr, p->sr, m->final_norm, m->s.norm);
    cx->ops->scatter(cx->device, p->dx, dxr, p->rows);
    for (i64 l = m->s.L; l-- > 0;) backward_layer(p, l);
    cx->ops->embed_bwd(cx->device, grad(m->embed), grad(m->positions), p->dx, p->in.ids,
                       p->in.pos);
}

/* ============================================================================
 * § 18  Data
 *
 * From files to flat rows of tokens. A row of a file becomes one text, with a prompt and a
 * completion in it; the text is tokenized once, as a whole, and a token is trained if it
 * overlaps the completion's bytes. Masks that come from positions in the text cannot be
 * lost at a token boundary, which is where tools that search for a "response key" among
 * token ids go wrong. Padding does not exist; the end of an example is an eos token that
 * is trained like any other, which is how a model learns to stop.
 *
 * An example's place in its file is kept, so that held-out rows can be written out as read.
 *
 * There are two ways to make sequences of texts:
 *
 *     --block-size B   texts are joined, end to end, and cut every B tokens (run_clm's
 *                      group_texts). Only what is left after the last full block is lost,
 *                      and all examples are of one length; but a block may begin inside a
 *                      sentence, and what it continues is not in it. For running text.
 *     --max-length T   a row stays an example of its own, shortened to T if it is longer.
 *                      For questions and answers, where a beginning and an end have meaning.
 */
typedef struct source_row { /* where an example came from, and what became of it */
    i64 file;
    i64 at, bytes;  /* its place in the file; in a .json file: -1 and the row's number */
    i64 text_bytes; /* of the text that was tokenized */
    bool truncated, completion_cut, ends_in_eos;
} source_row;

/* Examples lie behind each other in one array of ids; offset says where each begins. That is
 * also how a batch will look, so that building one is copying runs of tokens. Five bytes a
 * token, not a structure each: a hundred million tokens are half a gigabyte. */
struct nxt_dataset {
    nxt_context *cx;
    arena arena;
    i32 *ids;
    u8 *trained;
    i64 *offset;          /* (examples + 1) */
    source_row *source;   /* (examples); NULL for blocks and tokens */
    i64 ids_capacity, trained_capacity, offset_capacity, source_capacity;
    const char **paths;
    i64 path_count;
    const char *columns;  /* how rows became text */
    nxt_dataset_info info;
};

/* eos after an example is how a model learns where to stop. Inside a text that is joined for
 * blocks it would be a token that nobody wrote, so -1 leaves it out there. */
nxt_data_config nxt_data_config_default(void) {
    return (nxt_data_config){.max_length = 2048, .append_eos = -1, .add_bos = -1,
                             .eos = -1};
}

void nxt_dataset_destroy(nxt_dataset *d) {
    if (!d) return;
    nxt_context *cx = d->cx;
    mem_drop(cx, d->ids);
    mem_drop(cx, d->trained);
    mem_drop(cx, d->offset);
    mem_drop(cx, d->source);
    arena_free(&d->arena);
    mem_drop(cx, d);
}

static nxt_status dataset_create(nxt_dataset **out, nxt_context *cx) {
    nxt_dataset *d;
    *out = NULL;
    TRY(mem_zero(cx, &d, 1, sizeof *d));
    d->cx = d->arena.cx = cx;
    nxt_status status = mem_grow(cx, &d->offset, 0, 1, &d->offset_capacity, sizeof *d->offset);
    if (status == NXT_OK) d->offset[0] = 0, *out = d;
    else nxt_dataset_destroy(d);
    return status;
}

/* Appends one example and counts it. trained NULL: every token. All counts of the report are
 * made here, so that a dataset read from files, one made of tokens and the two parts of a
 * split are counted alike. */
static nxt_status dataset_add(nxt_dataset *d, const i32 *ids, const u8 *trained, i64 n,
                              const source_row *from) {
    nxt_dataset_info *f = &d->info;
    const i64 e = f->examples, at = d->offset[e];
    i64 labels = 0;
    TRY(mem_grow(d->cx, &d->ids, at, at + n, &d->ids_capacity, sizeof *d->ids));
    TRY(mem_grow(d->cx, &d->trained, at, at + n, &d->trained_capacity, 1));
    TRY(mem_grow(d->cx, &d->offset, e + 1, e + 2, &d->offset_capacity, sizeof *d->offset));
    if (from) {
        TRY(mem_grow(d->cx, &d->source, e, e + 1, &d->source_capacity, sizeof *d->source));
        d->source[e] = *from;
        f->text_bytes += from->text_bytes;
        f->truncated += from->truncated;
        f->completions_cut += from->completion_cut;
        f->ends_in_eos += from->ends_in_eos;
    }
    if (n) memcpy(d->ids + at, ids, (size_t)n * sizeof *ids);
    for (i64 i = 0; i < n; i++) d->trained[at + i] = trained ? trained[i] : 1;
    for (i64 i = 1; i < n; i++) labels += d->trained[at + i]; /* nothing predicts the first */
    d->offset[e + 1] = at + n;
    f->examples++;
    f->tokens += n;
    f->trained_tokens += labels;
    f->untrained += labels == 0;
    f->longest = max64(f->longest, n);
    return NXT_OK;
}

/* -- Rows to text ---------------------------------------------------------------------- */

/* What is to be found in a row: text = prompt + completion + rest. The two lengths travel
 * with the text because after tokenizing nothing else tells them apart. */
typedef struct row_text {
    buffer text;
    i64 prompt_bytes, completion_bytes;
} row_text;

/* The state of reading: one row at a time, in buffers that are used again, so that the memory
 * of reading is that of the longest row. */
typedef struct reader {
    nxt_dataset *d;
    nxt_tokenizer *tok;
    const nxt_data_config *config;
    const char *path;
    source_row from;
    i64 line;
    const char *prompt, *input, *completion; /* columns, once chosen; text: completion */
    bool chosen, completions; /* columns are chosen; rows of objects have completions */
    bool pairs;               /* the rows of this file do: .txt beside .jsonl has none */
    i32 eos;
    arena arena;         /* the row's tree, emptied for every row */
    row_text row;
    token_list tokens;
    u8 *mask;
    i64 mask_capacity;
} reader;

/* The commonest mistake with data is a wrong column name: the error lists the right ones. */
static nxt_status bad_row(const reader *r, const char *what, const char *column,
                          const json *row) {
    char names[512] = "";
    for (const json *m = row && row->kind == JSON_OBJECT ? row->first : NULL; m; m = m->next) {
        size_t n = strlen(names);
        snprintf(names + n, sizeof names - n, "%s%.60s", n ? ", " : "", m->key);
    }
    return fail(r->d->cx, NXT_FORMAT, "%s:%" PRId64 ": %s \"%s\"; the columns are: %s", r->path,
                r->line, what, column, names[0] ? names : "(none)");
}

/* A column's value as text: strings as they are, numbers and literals as written, so that 1.50
 * is not turned into 1.5. null is the empty text: a data set's way to say "no input". */
static nxt_status add_column(reader *r, const json *row, const char *column, i64 name_bytes) {
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)min64(name_bytes, 127), column);
    const json *v = json_get(row, name);
    if (!v) return bad_row(r, "no column", name, row);
    if (v->kind == JSON_STRING || v->kind == JSON_NUMBER)
        buffer_add(&r->row.text, v->text, v->length);
    else if (v->kind == JSON_TRUE || v->kind == JSON_FALSE)
        buffer_text(&r->row.text, v->kind == JSON_TRUE ? "true" : "false");
    else if (v->kind != JSON_NULL)
        return bad_row(r, "not a text or a number: column", name, row);
    return r->row.text.status;
}

/* The pairs of columns that data sets use, in the order they are looked for: questions
 * and answers, Alpaca with and without an input, Dolly, OpenAI's prompt and completion. Pairs
 * come before "text" alone: where both are, the pair says more. */
static const struct { const char *prompt, *input, *completion; } known_columns[] = {
    {"question", NULL, "answer"},     {"instruction", "input", "output"},
    {"instruction", NULL, "output"},  {"instruction", NULL, "response"},
    {"input", NULL, "output"},        {"prompt", NULL, "completion"},
    {"text", NULL, "target"},         {NULL, NULL, "text"},
};

/* Decided at the first row, for all files: what the user named, or the first known pair. Not
 * row by row: a data set in which one row lacks a column would be trained half in one form,
 * half in another, and nothing would say so. */
static nxt_status choose_columns(reader *r, const json *row) {
    const nxt_data_config *c = r->config;
    const bool template = c->template_text;
    if (c->text_column) r->completion = c->text_column;
    else if (c->completion_column)
        r->prompt = c->prompt_column, r->completion = c->completion_column;
    for (i64 i = 0; !r->completion && !template && i < COUNT(known_columns); i++) {
        const char *p = known_columns[i].prompt, *in = known_columns[i].input;
        const bool alone = p && c->prompts_only; /* its completion may be missing */
        if ((p && !json_get(row, p)) || (in && !json_get(row, in))
            || (!alone && !json_get(row, known_columns[i].completion)))
            continue;
        r->prompt = p, r->input = in, r->completion = known_columns[i].completion;
    }
    if (!r->completion && !template)
        return bad_row(r, "no column that is known, such as", "text", row);
    r->completions = (r->prompt || template) && !c->prompts_only;
    r->d->columns = template ? arena_text(&r->d->arena, "template", 8)
        : arena_print(&r->d->arena, "%s%s%s%s%s", r->prompt ? r->prompt : "",
                      r->input ? " + " : "", r->input ? r->input : "", r->prompt ? " + " : "",
                      r->completion);
    r->chosen = r->d->columns != NULL; /* not before: a bad first row may be skipped */
    return r->chosen ? NXT_OK : NXT_MEMORY;
}

/* The brace that closes the placeholder at t; NULL where none begins ("{{" is a brace). */
static const char *placeholder_end(const char *t) {
    return *t == '{' && t[1] != '{' ? strchr(t, '}') : NULL;
}

/* The place of the completion: the placeholder that --completion-column names, else the last
 * one, because people write question before answer. NULL when there is none. */
static const char *completion_place(const nxt_data_config *c) {
    const char *place = NULL, *name = c->completion_column;
    for (const char *t = c->template_text, *close; *t; t++) {
        if ((close = placeholder_end(t)) != NULL) {
            const size_t n = (size_t)(close - t - 1);
            if (!name || (strlen(name) == n && !memcmp(t + 1, name, n))) place = t;
            t = close;
        } else if (*t == '{' && t[1] == '{') t++;
    }
    return place;
}

/* Fills a template. What stands before the completion is the prompt, and all there is when
 * only prompts are wanted. In
 *
 *     "Q: {question}\nA: {answer}\n\n"
 *
 * the completion is {answer}: it is trained, what is before it is read, and the two line ends
 * behind it are neither trained nor asked for; the eos that follows them is trained. */
static nxt_status render_template(reader *r, const json *row) {
    const nxt_data_config *c = r->config;
    const char *place = completion_place(c);
    buffer *out = &r->row.text;
    for (const char *t = c->template_text; *t && !(c->prompts_only && t == place); t++) {
        const char *close = placeholder_end(t);
        const i64 before = out->n;
        if (close) {
            TRY(add_column(r, row, t + 1, close - t - 1));
            if (t == place)
                r->row.prompt_bytes = before, r->row.completion_bytes = out->n - before;
            t = close;
        } else if (*t == '{' && t[1] != '{') {
            return fail(r->d->cx, NXT_ARGUMENT, "template: '{' without '}' at \"%.40s\"", t);
        } else {
            buffer_add(out, t, 1);
            t += *t == '{';
        }
    }
    if (!place)
        return fail(r->d->cx, NXT_ARGUMENT, "template: no placeholder for the completion%s%s",
                    c->completion_column ? ": " : "",
                    c->completion_column ? c->completion_column : "");
    return out->status;
}

/* Without a template prompt and completion are joined by nothing: what separates them is the
 * data's business. An instruction's input, when there is one, follows on its own line. */
static nxt_status render_row(reader *r, const json *row) {
    buffer *out = &r->row.text;
    if (row->kind != JSON_OBJECT)
        return fail(r->d->cx, NXT_FORMAT, "%s:%" PRId64 ": the row is not an object", r->path,
                    r->line);
    if (!r->chosen) TRY(choose_columns(r, row));
    r->pairs = r->completions;
    if (r->config->template_text) return render_template(r, row);
    if (r->prompt) TRY(add_column(r, row, r->prompt, (i64)strlen(r->prompt)));
    if (r->input && json_text(row, r->input, "")[0]) {
        buffer_text(out, "\n");
        TRY(add_column(r, row, r->input, (i64)strlen(r->input)));
    }
    r->row.prompt_bytes = out->n;
    if (!r->prompt || !r->config->prompts_only)
        TRY(add_column(r, row, r->completion, (i64)strlen(r->completion)));
    r->row.completion_bytes = out->n - r->row.prompt_bytes;
    return out->status;
}

/* -- Text to tokens -------------------------------------------------------------------- */

/* Tokens of r->row appended to r->tokens, and which of them are trained to r->mask. Prompt
 * and completion are tokenized as one text, because tokens do not respect the border: in
 * "Answer:" + " red" the space belongs to the second word. A token that lies on the border is
 * trained, else the completion's first byte would never be learned.
 *
 *     text       Q  :     w  h  y     A  :     r  e  d  .     prompt | completion = " red."
 *     tokens    [Q][:][ w  h  y][ A][:][ r  e  d][.][eos]
 *     trained    0  0   0         0  0   1        1   1
 *
 * eos is appended as an id, never as text: a tokenizer may or may not read "<|endoftext|>". */
static nxt_status tokenize_row(reader *r, bool eos) {
    token_list *t = &r->tokens;
    const i64 from = t->n, begin = r->row.prompt_bytes, end = begin + r->row.completion_bytes;
    const bool all = r->config->train_on_all || !r->pairs;
    if (r->config->add_bos < 0 ? r->tok->adds_bos : r->config->add_bos && r->tok->bos >= 0) {
        TRY(mem_grow(r->d->cx, &t->id, t->n, t->n + 1, &t->capacity, sizeof *t->id));
        if (!all) {
            TRY(mem_grow(r->d->cx, &t->end, t->n, t->n + 1, &t->end_capacity, sizeof *t->end));
            t->end[t->n] = 0;
        }
        t->id[t->n++] = r->tok->bos;
    }
    TRY(encode(r->tok, r->row.text.p ? r->row.text.p : "", r->row.text.n, !all, t));
    TRY(mem_grow(r->d->cx, &r->mask, from, t->n + 1, &r->mask_capacity, 1));
    for (i64 i = from, at = 0; i < t->n; i++) {
        r->mask[i] = all || (t->end[i] > begin && at < end);
        if (!all) at = t->end[i];
    }
    if (!eos || r->eos < 0) return NXT_OK;
    TRY(mem_grow(r->d->cx, &t->id, t->n, t->n + 1, &t->capacity, sizeof *t->id));
    t->id[t->n] = r->eos;
    r->mask[t->n++] = true;
    return NXT_OK;
}

/* Shortens the row's tokens to the limit: `cut` of them go at the beginning, the rest at the
 * end. A prompt is shortened before its completion is, and by its beginning, because the
 * words next to the completion bear on it most. Where the completion alone is too long, one
 * token of the prompt stays, to predict its first token from, and its end is lost. */
static nxt_status shorten(reader *r) {
    const nxt_data_config *c = r->config;
    const bool completion = r->pairs && !c->train_on_all;
    token_list *t = &r->tokens;
    const i64 limit = c->max_length, over = t->n - limit;
    nxt_truncation how = c->truncation;
    i64 prompt = 0;
    r->from.truncated = over > 0, r->from.completion_cut = false;
    if (over <= 0) return NXT_OK;
    if (how == NXT_TRUNCATE_AUTO) how = completion ? NXT_TRUNCATE_PROMPT : NXT_TRUNCATE_RIGHT;
    if (how == NXT_TRUNCATE_ERROR)
        return fail(r->d->cx, NXT_FORMAT, "%s:%" PRId64 ": %" PRId64 " tokens, the limit is %"
                    PRId64, r->path, r->line, t->n, limit);
    while (prompt < t->n && !r->mask[prompt]) prompt++;
    r->from.completion_cut = how == NXT_TRUNCATE_PROMPT && over >= prompt;
    const i64 most = r->from.completion_cut ? max64(0, prompt - 1) : over;
    const i64 cut = how == NXT_TRUNCATE_RIGHT ? 0 : most;
    memmove(t->id, t->id + cut, (size_t)limit * sizeof *t->id);
    memmove(r->mask, r->mask + cut, (size_t)limit);
    t->n = limit;
    return NXT_OK;
}

/* The row's tokens, shortened, become an example. */
static nxt_status finish_example(reader *r) {
    nxt_status status = shorten(r);
    const i32 *ids = r->tokens.id;
    const i64 n = r->tokens.n;
    r->tokens.n = 0; /* the next row starts afresh, also after this one is refused */
    TRY(status);
    r->from.text_bytes = r->row.text.n;
    r->from.ends_in_eos = n > 0 && ids[n - 1] == r->eos;
    return dataset_add(r->d, ids, r->mask, n, &r->from);
}

/* Takes the row in r->row: an example, or more tokens for blocks. Blocks are cut when all
 * files are read, because they run across the ends of texts and files. */
static nxt_status take_row(reader *r) {
    const int eos = r->config->append_eos;
    const bool blocks = r->config->block_size > 0;
    TRY(tokenize_row(r, blocks ? eos > 0 : eos != 0));
    if (blocks) r->d->info.text_bytes += r->row.text.n;
    else TRY(finish_example(r));
    r->d->info.rows++; /* a row that was refused does not count */
    return NXT_OK;
}

/* max_samples limits rows read, before any of them is held out. */
static bool want_more(const reader *r) {
    return !r->config->max_samples || r->d->info.rows < r->config->max_samples;
}

/* -- Files ----------------------------------------------------------------------------- */

/* A new row, and where it lies in its file. */
static void begin_row(reader *r, i64 at, i64 bytes) {
    r->line++;
    r->from.at = at, r->from.bytes = bytes;
    r->row.text.n = 0;
}

/* Bytes of the line at p, without its LF; n are left. */
static i64 line_bytes(const char *p, i64 n) {
    const char *stop = memchr(p, '\n', (size_t)n);
    return stop ? stop - p : n;
}

/* Plain text. For blocks a file is one text, line ends and all, because they belong to it; else
 * each line is a text, whether lines end in LF or CRLF, and blank ones are none. Both parts of
 * a row are set so that all of it is the completion: plain text is trained on as a whole. */
static nxt_status read_text_file(reader *r, const char *p, i64 n) {
    const bool whole = r->config->block_size > 0;
    r->pairs = false;
    if (!r->d->columns) r->d->columns = arena_text(&r->d->arena, "plain text", 10);
    if (!r->d->columns) return NXT_MEMORY;
    for (i64 at = 0, size; at < n && want_more(r); at += size + 1) {
        size = whole ? n : line_bytes(p + at, n - at);
        const i64 bytes = size - (!whole && size && p[at + size - 1] == '\r');
        begin_row(r, at, bytes);
        buffer_add(&r->row.text, p + at, bytes);
        TRY(r->row.text.status);
        r->row.prompt_bytes = 0, r->row.completion_bytes = bytes;
        if (bytes) TRY(take_row(r));
        TRY(check_cancel(r->d->cx));
    }
    return NXT_OK;
}

/* A row that breaks the rules is counted or stops the reading, as the user wants it. Other
 * failures, of memory or of a file, always stop it. */
static nxt_status skip_or_pass(reader *r, nxt_status status) {
    if (status != NXT_FORMAT || !r->config->skip_bad_lines) return status;
    r->d->info.bad_lines++;
    return NXT_OK;
}

/* An error inside names the line of the file, not of the row. Blank lines are passed over. */
static nxt_status read_jsonl_line(reader *r, const char *line, i64 n) {
    json *row;
    i64 space = 0;
    while (space < n && strchr(" \t\r", line[space])) space++;
    if (space == n) return NXT_OK;
    TRY(json_parse_at(&r->arena, r->path, r->line, line, n, &row));
    TRY(render_row(r, row));
    return take_row(r);
}

/* One object a line. */
static nxt_status read_jsonl_file(reader *r, const char *p, i64 n) {
    for (i64 at = 0, size; at < n && want_more(r); at += size + 1) {
        size = line_bytes(p + at, n - at);
        begin_row(r, at, size);
        TRY(skip_or_pass(r, read_jsonl_line(r, p + at, size)));
        arena_clear(&r->arena);
        TRY(check_cancel(r->d->cx));
    }
    return NXT_OK;
}

/* The hub's dataset server wraps each row. */
static const json *unwrap_row(const json *row) {
    const json *inner = json_get(row, "row");
    return inner && inner->kind == JSON_OBJECT ? inner : row;
}

/* One array of objects, or the hub's dataset server's {"rows": [{"row": {..}}, ..]}: the
 * array, or NULL. */
static const json *rows_of(const json *top) {
    const json *rows = top->kind == JSON_OBJECT ? json_get(top, "rows") : top;
    return rows && rows->kind == JSON_ARRAY ? rows : NULL;
}

static nxt_status read_json_file(reader *r, const char *p, i64 n) {
    json *top;
    TRY(json_parse(&r->arena, r->path, p, n, &top));
    const json *rows = rows_of(top);
    if (!rows)
        return fail(r->d->cx, NXT_FORMAT, "%s: neither an array of rows nor {\"rows\": [..]}",
                    r->path);
    for (const json *row = rows->first; row && want_more(r); row = row->next) {
        begin_row(r, -1, r->line); /* in errors the row's number stands for the line */
        nxt_status status = render_row(r, unwrap_row(row));
        if (status == NXT_OK) status = take_row(r);
        TRY(skip_or_pass(r, status));
    }
    return NXT_OK;
}

/* Opens a map; *text is what stands behind a byte-order mark, which is not data. */
static nxt_status data_file_open(nxt_context *cx, const char *path, file_map *map,
                                 file_map *text) {
    TRY(file_map_open(cx, path, map));
    *text = *map;
    if (map->n >= 3 && !memcmp(map->p, "\xef\xbb\xbf", 3)) text->p += 3, text->n -= 3;
    return NXT_OK;
}

/* The ending decides. */
static nxt_status read_data_file(reader *r, const char *path) {
    static const struct {
        const char *end;
        nxt_status (*read)(reader *, const char *, i64);
    } kinds[] = {{".jsonl", read_jsonl_file}, {".json", read_json_file},
                 {".txt", read_text_file}};
    file_map map, text;
    i64 k = 0;
    r->path = path;
    r->line = 0;
    TRY(data_file_open(r->d->cx, path, &map, &text));
    while (k < COUNT(kinds) && !ends_with(path, kinds[k].end)) k++;
    nxt_status status = k < COUNT(kinds) ? kinds[k].read(r, (const char *)text.p, text.n)
        : fail(r->d->cx, NXT_UNSUPPORTED, "%s: data files end in .txt, .jsonl or .json", path);
    file_map_close(&map);
    arena_clear(&r->arena);
    return status;
}

/* Cuts the joined tokens into blocks (run_clm's group_texts). The remainder is dropped, at
 * most one block in all: filling it up would train on tokens that nobody wrote. */
static nxt_status cut_blocks(reader *r) {
    const i64 size = r->config->block_size, n = r->tokens.n;
    for (i64 at = 0; at + size <= n; at += size)
        TRY(dataset_add(r->d, r->tokens.id + at, r->mask + at, size, NULL));
    r->d->info.dropped_tokens = n % size;
    if (n < size)
        return fail(r->d->cx, NXT_ARGUMENT,
                    "%s: %" PRId64 " tokens do not fill one block of %" PRId64, r->path, n,
                    size);
    return NXT_OK;
}

/* The files are opened again when rows are written out as they were read. */
static nxt_status keep_paths(nxt_dataset *d, const char *const *paths, i64 count) {
    d->paths = arena_get(&d->arena, (size_t)(count + 1) * sizeof *d->paths);
    if (!d->paths) return NXT_MEMORY;
    for (; d->path_count < count; d->path_count++) {
        const char *path = paths[d->path_count];
        d->paths[d->path_count] = arena_text(&d->arena, path, strlen(path));
        if (!d->paths[d->path_count]) return NXT_MEMORY;
    }
    return NXT_OK;
}

/* Several files are one dataset; with blocks they are one text, too. */
static nxt_status read_files(reader *r, const char *const *paths, int count) {
    nxt_dataset *d = r->d;
    TRY(keep_paths(d, paths, count));
    for (int i = 0; i < count; i++) {
        r->from.file = i;
        TRY(read_data_file(r, paths[i]));
    }
    if (r->config->block_size > 0) TRY(cut_blocks(r));
    if (!d->info.examples)
        return fail(d->cx, NXT_ARGUMENT, "%s: no data: there is no non-empty row in it",
                    paths[0]);
    d->info.has_completions = r->completions;
    return NXT_OK;
}

nxt_status nxt_dataset_from_files(nxt_dataset **out, nxt_tokenizer *tok,
                                  const char *const *paths, int count,
                                  const nxt_data_config *config) {
    nxt_context *cx = tok->cx;
    *out = NULL;
    if (count < 1) return fail(cx, NXT_ARGUMENT, "no data files");
    if (config->block_size < 0 || config->block_size == 1 || config->max_length < 2)
        return fail(cx, NXT_ARGUMENT, "block size and max length must be at least 2");
    reader r = {.tok = tok, .config = config, .arena.cx = cx, .row.text.cx = cx,
                .tokens.cx = cx, .eos = config->eos};
    if (r.eos < 0) r.eos = nxt_tokenizer_eos(tok);
    TRY(dataset_create(&r.d, cx));
    nxt_status status = read_files(&r, paths, count);
    arena_free(&r.arena);
    buffer_free(&r.row.text);
    mem_drop(cx, r.tokens.id);
    mem_drop(cx, r.tokens.end);
    mem_drop(cx, r.mask);
    if (status == NXT_OK) *out = r.d;
    else nxt_dataset_destroy(r.d);
    return status;
}

/* For hosts that tokenize themselves, and for tests: no file, no source rows. */
nxt_status nxt_dataset_from_tokens(nxt_dataset **out, nxt_context *cx, const i32 *ids,
                                   const u8 *trained, const i64 *offsets, i64 count) {
    nxt_status status = dataset_create(out, cx);
    for (i64 i = 0; i < count && status == NXT_OK; i++) {
        const i64 at = offsets[i], n = offsets[i + 1] - at;
        status = n < 0 ? fail(cx, NXT_ARGUMENT, "offsets fall at example %" PRId64, i)
                       : dataset_add(*out, ids + at, trained ? trained + at : NULL, n, NULL);
    }
    if (status != NXT_OK) nxt_dataset_destroy(*out), *out = NULL;
    return status;
}

/* -- Splits, views, reports ------------------------------------------------------------ */

/* A copy of example i. */
static nxt_status add_from(nxt_dataset *to, const nxt_dataset *d, i64 i) {
    const i64 at = d->offset[i];
    return dataset_add(to, d->ids + at, d->trained + at, d->offset[i + 1] - at,
                       d->source ? &d->source[i] : NULL);
}

/* Divides d between two new datasets, then lets d take the contents of the first. */
static nxt_status split_into(nxt_dataset *d, i64 held, u64 seed, nxt_dataset *rest,
                             nxt_dataset *out) {
    const u64 n = (u64)d->info.examples, key = draw(seed, FOR_SPLIT, 0, 0);
    nxt_dataset *parts[] = {rest, out};
    for (u64 i = 0; i < n; i++)
        TRY(add_from(parts[(i64)permute(i, n, key) < held], d, (i64)i));
    for (int k = 0; k < 2; k++) {
        nxt_dataset *p = parts[k];
        p->info.rows = p->info.examples, p->info.has_completions = d->info.has_completions;
        const char *columns = d->columns ? d->columns : "";
        p->columns = arena_text(&p->arena, columns, strlen(columns));
        if (!p->columns) return NXT_MEMORY;
        TRY(keep_paths(p, d->paths, d->path_count));
    }
    nxt_dataset old = *d;
    *d = *rest;
    *rest = old; /* destroyed by the caller */
    return NXT_OK;
}

/* Which rows are held out is decided by the same keyed permutation that shuffles: a function
 * of the seed and the number of rows alone, so that another run finds the same ones. Rows
 * that it sends to a place below `held` leave: exactly so many, in the order of the file. */
nxt_status nxt_dataset_split(nxt_dataset *d, double share, u64 seed, nxt_dataset **held_out) {
    const i64 n = d->info.examples, held = max64(1, (i64)floor((double)n * share));
    nxt_dataset *rest = NULL, *out = NULL;
    nxt_status status;
    *held_out = NULL;
    if (!(share > 0 && share < 1) || held >= n)
        return fail(d->cx, NXT_ARGUMENT, "a share of %g of %" PRId64 " examples leaves nothing",
                    share, n);
    TRY_GOTO(done, dataset_create(&rest, d->cx));
    TRY_GOTO(done, dataset_create(&out, d->cx));
    TRY_GOTO(done, split_into(d, held, seed, rest, out));
    *held_out = out;
    out = NULL;
done:
    nxt_dataset_destroy(rest);
    nxt_dataset_destroy(out);
    return status;
}

void nxt_dataset_describe(const nxt_dataset *d, nxt_dataset_info *info) {
    *info = d->info;
    info->columns = d->columns ? d->columns : "tokens";
}

void nxt_dataset_example(const nxt_dataset *d, i64 i, const i32 **ids, const u8 **trained,
                         i64 *n) {
    const i64 at = d->offset[i];
    *ids = d->ids + at;
    *trained = d->trained + at;
    *n = d->offset[i + 1] - at;
}

/* A row of the files as one line of JSON: as it was read, not as it was rendered, so that the
 * same rows can be given to another model with a template of its own. row: the row itself,
 * in a .json file. */
static nxt_status write_row(const nxt_dataset *d, const source_row *s, const file_map *map,
                            const json *row, buffer *out) {
    const char *p = (const char *)map->p + s->at;
    if (s->at < 0) {
        if (row) json_write(out, unwrap_row(row), -1);
    } else if (s->at + s->bytes > map->n) {
        return fail(d->cx, NXT_IO, "%s: the file has shrunk since it was read",
                    d->paths[s->file]);
    } else if (ends_with(d->paths[s->file], ".jsonl")) {
        buffer_add(out, p, s->bytes - (s->bytes && p[s->bytes - 1] == '\r'));
    } else {
        buffer_text(out, "{\"text\": ");
        json_write_text(out, p, s->bytes);
        buffer_text(out, "}");
    }
    buffer_text(out, "\n");
    return out->status;
}

/* All rows of one file that the dataset holds, in the file's own order. Lines are copied from
 * their place in the file; a row of a .json file has no place of its own, so the file is
 * parsed again and its rows are counted. */
static nxt_status write_rows_of(const nxt_dataset *d, i64 file, buffer *out) {
    const char *path = d->paths[file];
    file_map map, text;
    arena a = {.cx = d->cx};
    json *top = NULL;
    nxt_status status = NXT_OK;
    TRY(data_file_open(d->cx, path, &map, &text));
    if (ends_with(path, ".json"))
        status = json_parse(&a, path, (const char *)text.p, text.n, &top);
    const json *rows = top ? rows_of(top) : NULL, *row = rows ? rows->first : NULL;
    for (i64 i = 0, at = 0; i < d->info.examples && status == NXT_OK; i++) {
        const source_row *s = &d->source[i];
        if (s->file != file) continue;
        for (; s->at < 0 && row && at < s->bytes; at++) row = row->next; /* rows only rise */
        status = write_row(d, s, &text, row, out);
    }
    arena_free(&a);
    file_map_close(&map);
    return status;
}

nxt_status nxt_dataset_write_rows(const nxt_dataset *d, const char *path) {
    buffer out = {.cx = d->cx};
    if (!d->source)
        return fail(d->cx, NXT_ARGUMENT, "blocks and tokens have no rows to write");
    nxt_status status = NXT_OK;
    for (i64 f = 0; f < d->path_count && status == NXT_OK; f++)
        status = write_rows_of(d, f, &out);
    if (status == NXT_OK) status = file_replace(d->cx, path, out.p, out.n);
    buffer_free(&out);
    return status;
}

/* -- Batches --------------------------------------------------------------------------- */

/* Memory for passes of up to `rows` rows, and for the batch that goes into one: the batch is
 * made here, on the host, and pass_begin sends it to the device. */
typedef struct pass_room {
    pass_memory memory;
    batch host;
} pass_room;

/* Safe on one that was never filled. */
static void room_free(pass_room *r) {
    if (r->memory.m) mem_drop(r->memory.m->cx, r->host.ids);
    pass_memory_free(&r->memory);
}

/* The batch's numbers are one array; its last quarter are the keys, and before it `slot`, for
 * sessions (§21). */
static nxt_status room_get(nxt_model *m, i64 rows, bool keep, pass_room *r) {
    i32 *p = NULL;
    *r = (pass_room){0};
    TRY(pass_memory_get(m, rows, keep, &r->memory));
    nxt_status status = mem_get(m->cx, &p, 8 * rows, sizeof *p);
    if (status != NXT_OK) room_free(r);
    else r->host = (batch){.ids = p, .pos = p + rows, .first = p + 2 * rows,
                           .last = p + 3 * rows, .label = p + 4 * rows,
                           .key = (u64 *)(void *)(p + 6 * rows)};
    return status;
}

/* Appends a sequence behind what is there. Row n predicts the token after it, when that
 * token is trained; it sees the rows from its sequence's start up to itself. So two texts
 * "a b c" and "d e", the last two tokens of the first one trained, are
 *
 *     ids     a  b  c  d  e
 *     pos     0  1  2  0  1
 *     first   0  0  0  3  3      rows first .. last are the keys a row attends to
 *     last    0  1  2  3  4
 *     label   b  c  .  e  .      . is -100: nothing to predict
 */
static void batch_add(batch *b, const i32 *ids, const u8 *trained, i64 n) {
    const i64 start = b->n;
    for (i64 i = 0; i < n; i++) {
        const i64 row = b->n++;
        b->ids[row] = ids[i];
        b->pos[row] = (i32)i;
        b->first[row] = (i32)start;
        b->last[row] = (i32)row;
        b->label[row] = i + 1 < n && (!trained || trained[i + 1]) ? ids[i + 1] : -100;
    }
}

/* The same for an example of a dataset. */
static void batch_add_example(batch *b, const nxt_dataset *d, i64 i) {
    const i64 at = d->offset[i];
    batch_add(b, d->ids + at, d->trained + at, d->offset[i + 1] - at);
}

/* Ids and lengths that the model cannot take are refused before training starts: kernels read
 * the embedding's row and the position's angles without asking. A tokenizer of another model
 * shows here, or, when it is smaller than the vocabulary, only in the loss. */
static nxt_status check_dataset(const nxt_model *m, const nxt_dataset *d) {
    const shape *s = &m->s;
    if (d->info.longest > s->T)
        return fail(d->cx, NXT_ARGUMENT,
                    "an example of %" PRId64 " tokens is longer than the model's %" PRId64
                    " positions: a smaller --max-length or --block-size cuts it",
                    d->info.longest, s->T);
    for (i64 i = 0; i < d->offset[d->info.examples]; i++)
        if (d->ids[i] < 0 || d->ids[i] >= s->V)
            return fail(d->cx, NXT_ARGUMENT,
                        "token %d at position %" PRId64 " of the data is beyond the model's "
                        "vocabulary of %" PRId64 ": is this the model's tokenizer?",
                        d->ids[i], i, s->V);
    return NXT_OK;
}

/* ============================================================================
 * § 19  Saving models
 *
 * The directory that Hugging Face loads: config.json as it came, with the type that was
 * written; model.safetensors; and the tokenizer's files, byte for byte. One piece of one
 * tensor is in memory at a time. What is saved is complete or absent (I10, §11).
 *
 *     config.json              as read, but for type, architecture and rotary settings
 *     tokenizer.json, ...      copies of what the base has
 *     generation_config.json   a copy, or bos and eos when the base has none
 *     model.safetensors        or shards and the index that names them
 *
 * Members of config.json that mean nothing here are kept: what another program wrote for a
 * third one to read is not ours to drop.
 */
static const char *const torch_names[] = {[F32] = "float32", [F16] = "float16",
                                          [BF16] = "bfloat16"};

/* "f16", "fp16" or "float16"; NULL leaves what *type holds. People name types as PyTorch,
 * Hugging Face's flags or this file do. */
static nxt_status parse_dtype(nxt_context *cx, const char *name, dtype *type) {
    static const struct { const char *name; dtype type; } known[] = {
        {"f32", F32}, {"fp32", F32}, {"float32", F32}, {"f16", F16}, {"fp16", F16},
        {"float16", F16}, {"half", F16}, {"bf16", BF16}, {"bfloat16", BF16},
    };
    if (!name) return NXT_OK;
    for (i64 i = 0; i < COUNT(known); i++)
        if (!strcmp(known[i].name, name)) return *type = known[i].type, NXT_OK;
    return fail(cx, NXT_ARGUMENT, "type \"%s\": f32, f16 and bf16 are known", name);
}

/* Rotary settings under both of their names (§14), so that readers old and new agree. */
static void write_rope(buffer *b, const nxt_model *m) {
    const json *newer = json_get(m->config, "rope_parameters"),
               *older = json_get(m->config, "rope_scaling");
    const json *scaling = newer && newer->kind == JSON_OBJECT ? newer : older;
    const char *type = json_text(scaling, "rope_type", json_text(scaling, "type", "default"));
    const double base = (double)m->s.rope_base;
    const double share = json_number(newer, "partial_rotary_factor", (double)m->s.rotary_share);
    const bool partial = m->family->qkv_per_head; /* GPT-NeoX alone turns a part of a head */
    if (m->positions) return;
    if (partial)
        buffer_print(b, ",\n  \"rotary_pct\": %.9g,\n  \"rotary_emb_base\": %.9g", share, base);
    else buffer_print(b, ",\n  \"rope_theta\": %.9g", base);
    buffer_text(b, ",\n  \"rope_parameters\": {");
    if (partial) buffer_print(b, "\"partial_rotary_factor\": %.9g, ", share);
    buffer_print(b, "\"rope_theta\": %.9g, \"rope_type\": ", base);
    json_write_text(b, type, (i64)strlen(type));
    for (const json *v = scaling ? scaling->first : NULL; v; v = v->next) {
        if (!v->key || v->kind != JSON_NUMBER || json_is(v, "rope_theta")
            || json_is(v, "partial_rotary_factor"))
            continue;
        buffer_print(b, ", \"%.*s\": ", (int)v->key_length, v->key);
        json_write(b, v, -1);
    }
    buffer_text(b, "}");
    if (newer && !older && strcmp(type, "default")) {
        buffer_text(b, ",\n  \"rope_scaling\": ");
        json_write(b, newer, -1);
    }
}

/* The config as it was read, but for the members that saving decides. torch_dtype must name
 * what the file holds, because Hugging Face may convert to it while loading: f32 weights
 * under "float16" would be rounded. "dtype", its newer name, could contradict it. */
static void write_config(buffer *b, const nxt_model *m, dtype type) {
    static const char *const ours[] = {"torch_dtype", "dtype", "rotary_pct", "rotary_emb_base",
                                       "rope_parameters", "rope_theta", "architectures"};
    buffer_print(b, "{\n  \"architectures\": [\"%s\"]", m->family->architecture);
    for (const json *v = m->config->first; v; v = v->next) {
        bool skip = false;
        for (i64 i = 0; i < COUNT(ours); i++) skip |= !strcmp(v->key, ours[i]);
        if (skip) continue;
        buffer_text(b, ",\n  ");
        json_write_text(b, v->key, v->key_length);
        buffer_text(b, ": ");
        json_write(b, v, -1);
    }
    write_rope(b, m);
    buffer_print(b, ",\n  \"torch_dtype\": \"%s\"\n}\n", torch_names[type]);
}

/* A buffer's text as a file; the buffer is emptied. */
static nxt_status save_buffer(save *s, const char *name, buffer *b) {
    nxt_status status = b->status;
    if (status == NXT_OK) status = save_text(s, name, b->p, b->n);
    buffer_free(b);
    return status;
}

/* The end of a save: its files appear, or, when something failed, nothing does. */
static nxt_status save_end(save *s, nxt_status status) {
    if (status == NXT_OK) return save_commit(s);
    save_abort(s);
    return status;
}

/* The files beside the weights, from a directory that may lack any of them. A tokenizer comes
 * in several forms, and which of them a reader wants is not known here: all are copied. */
static nxt_status save_companions(save *s, const char *dir) {
    static const char *const names[] = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
        "merges.txt", "added_tokens.json", "tokenizer.model", "chat_template.jinja",
        "generation_config.json"};
    arena a = {.cx = s->cx};
    nxt_status status = NXT_OK;
    for (i64 i = 0; i < COUNT(names) && status == NXT_OK; i++) {
        const char *path = path_join(&a, dir, names[i]);
        if (!path) status = NXT_MEMORY;
        else if (path_exists(path)) status = save_copy(s, names[i], path);
    }
    arena_free(&a);
    return status;
}

/* A directory's tokenizer files, or a single tokenizer.json. */
static nxt_status save_tokenizer(save *s, const char *path) {
    struct stat st;
    if (!path) return NXT_OK;
    if (stat(path, &st) != 0) return fail_errno(s->cx, path, "open");
    if (S_ISDIR(st.st_mode)) return save_companions(s, path);
    return save_copy(s, "tokenizer.json", path);
}

/* What Hugging Face's generate() needs to stop; not if the base brought its own. Without it, a
 * model that was taught to end in eos would run on to the limit of new tokens. */
static nxt_status save_generation_config(save *s, const nxt_model *m) {
    static const char name[] = "generation_config.json";
    buffer b = {.cx = m->cx};
    if (m->s.bos < 0 || m->s.eos < 0 || save_holds(s, name)) return NXT_OK;
    buffer_print(&b, "{\n  \"bos_token_id\": %" PRId64 ",\n  \"eos_token_id\": %" PRId64
                 "\n}\n", m->s.bos, m->s.eos);
    return save_buffer(s, name, &b);
}

/* Elements of a parameter, wherever it is: in its file, or a master on the device. What was
 * never trained goes from file to file through f32, which loses no bit of f16 or bf16. */
static void read_param(const nxt_model *m, const param *p, i64 at, i64 n, float *out) {
    if (p->w.p != p->stored.p) { /* f32 and contiguous: ours */
        m->cx->ops->download(m->cx->device, out, (float *)p->w.p + at, (size_t)n * sizeof *out);
        return;
    }
    for (i64 i = 0, take; i < n; i += take) { /* a row at a time: rows may be apart */
        i64 r = (at + i) / p->w.cols, c = (at + i) % p->w.cols;
        take = min64(n - i, p->w.cols - c);
        load_floats(out + i, p->stored.p, p->stored.type, r * p->stored.stride + c, take);
    }
}

/* The writer asks for pieces; this hands them out (§11). */
static nxt_status fetch_param(void *user, const tensor_plan *t, i64 at, i64 n, float *out) {
    const nxt_model *m = user;
    const param *p = t->source;
    read_param(m, p, at, n, out);
    for (i64 i = 0; p->grad.p && i < n; i++) /* what training broke is not saved as a model */
        if (!isfinite(out[i]))
            return fail(m->cx, NXT_DIVERGED, "\"%s\" holds values that are not finite: the "
                        "training has diverged, nothing is saved", p->name);
    return NXT_OK;
}

/* A parameter as the writer sees it: vectors have one dimension, as PyTorch stores them, and a
 * loader that finds (1, C) in the place of (C) refuses it. */
static tensor_plan plan_tensor(const char *name, dtype type, const mat *w, void *source) {
    tensor_plan t = {.name = name, .type = type, .rank = w->rows == 1 ? 1 : 2,
                     .count = w->rows * w->cols, .source = source};
    t.dim[0] = w->rows == 1 ? w->cols : w->rows;
    t.dim[1] = w->cols;
    return t;
}

/* All parameters as `name`, or as shards of it; fetch says what is in a tensor. Tensors go in
 * the order of the parameter list, which decides what goes into which shard. */
static nxt_status save_weights(save *s, const char *name, const nxt_model *m, dtype type,
                               i64 shard_bytes, tensor_fetch fetch_values, void *user) {
    tensor_plan *plans;
    TRY(mem_get(m->cx, &plans, m->base_count, sizeof *plans));
    for (i64 i = 0; i < m->base_count; i++)
        plans[i] = plan_tensor(m->params[i].name, type, &m->params[i].w, &m->params[i]);
    nxt_status status = safetensors_write(s, name, &(tensor_set){
        .plans = plans, .count = m->base_count, .shard_bytes = shard_bytes,
        .fetch = fetch_values, .user = user});
    mem_drop(m->cx, plans);
    return status;
}

/* Everything that makes a model directory. Weights come last: of the files that
 * save_begin_into puts in place one by one, they are what the others describe. */
static nxt_status save_files(save *s, const nxt_model *m, const nxt_save_config *c, dtype type,
                             tensor_fetch fetch_values, void *user) {
    buffer config = {.cx = m->cx};
    write_config(&config, m, type);
    TRY(save_buffer(s, "config.json", &config));
    TRY(save_tokenizer(s, c->tokenizer));
    TRY(save_generation_config(s, m));
    return save_weights(s, "model.safetensors", m, type, c->shard_bytes, fetch_values, user);
}

/* Merging: W + scale B A, element by element, on the way to the file. A and B of the layer at
 * hand are kept as floats. */
typedef struct merger {
    const nxt_model *m;
    const param *layer; /* whose A and B these are */
    float *a, *b;
} merger;

static const lora *lora_of(const nxt_model *m, const param *w) {
    linear_params *y;
    for (i64 i = 0; (y = linear_at((nxt_model *)(uintptr_t)m, i)); i++)
        if (y->w == w) return y->lora;
    return NULL;
}

static nxt_status merger_load(merger *g, const param *layer, const lora *l) {
    if (g->layer == layer) return NXT_OK;
    const i64 a = l->a->w.rows * l->a->w.cols, b = l->b->w.rows * l->b->w.cols;
    mem_drop(g->m->cx, g->a);
    mem_drop(g->m->cx, g->b);
    g->a = g->b = NULL;
    TRY(mem_get(g->m->cx, &g->a, a, sizeof *g->a));
    TRY(mem_get(g->m->cx, &g->b, b, sizeof *g->b));
    read_param(g->m, l->a, 0, a, g->a);
    read_param(g->m, l->b, 0, b, g->b);
    g->layer = layer;
    return NXT_OK;
}

static nxt_status fetch_merged(void *user, const tensor_plan *t, i64 at, i64 n, float *out) {
    merger *g = user;
    const param *p = t->source;
    const lora *l = lora_of(g->m, p);
    TRY(fetch_param((void *)(uintptr_t)g->m, t, at, n, out));
    if (!l) return NXT_OK;
    TRY(merger_load(g, p, l));
    const i64 r = l->a->w.rows, in = l->a->w.cols;
    for (i64 i = 0; i < n; i++) {
        const i64 row = (at + i) / p->w.cols, col = (at + i) % p->w.cols;
        const float *b = g->b + (p->in_first ? col : row) * r;
        const float *a = g->a + (p->in_first ? row : col);
        float sum = 0;
        for (i64 k = 0; k < r; k++) sum += b[k] * a[k * in];
        out[i] += l->scale * sum;
    }
    return NXT_OK;
}

/* PEFT's adapter_config.json, by name; members that only its newest versions know are left
 * out, because older ones refuse what they do not know. */
static void write_adapter_config(buffer *b, const nxt_model *m) {
    const nxt_lora_config *c = &m->lora;
    const char *base = c->base, *list = c->targets, *item;
    size_t n;
    buffer_text(b, "{\n  \"alpha_pattern\": {},\n  \"auto_mapping\": null,\n"
                "  \"base_model_name_or_path\": ");
    json_write_text(b, base, (i64)strlen(base));
    buffer_print(b, ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": %s,\n"
                 "  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n"
                 "  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n"
                 "  \"lora_alpha\": %.9g,\n  \"lora_dropout\": %.9g,\n"
                 "  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n  \"r\": %d,\n"
                 "  \"rank_pattern\": {},\n  \"revision\": null,\n  \"target_modules\": ",
                 m->family->in_first ? "true" : "false", c->alpha, c->dropout, c->rank);
    const bool all = !strcmp(list, "all-linear"); /* PEFT has it as a text, not a list */
    for (buffer_text(b, all ? "" : "["); (item = list_next(&list, &n));) {
        json_write_text(b, item, (i64)n);
        if (*list) buffer_text(b, ", ");
    }
    buffer_print(b, "%s,\n  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": false,\n"
                 "  \"use_rslora\": %s\n}\n", all ? "" : "]", c->rslora ? "true" : "false");
}

/* An adapter's directory: PEFT's two files, always f32, and the tokenizer's. */
static nxt_status save_adapter_files(save *s, const nxt_model *m, const char *tokenizer) {
    tensor_plan *plans;
    const i64 n = m->param_count - m->base_count;
    buffer config = {.cx = m->cx};
    write_adapter_config(&config, m);
    TRY(save_buffer(s, "adapter_config.json", &config));
    TRY(save_tokenizer(s, tokenizer));
    TRY(mem_get(m->cx, &plans, n, sizeof *plans));
    for (i64 i = 0; i < n; i++) {
        param *p = &m->params[m->base_count + i];
        plans[i] = plan_tensor(p->name, F32, &p->w, p);
        plans[i].rank = 2, plans[i].dim[0] = p->w.rows; /* a rank of 1 is a matrix, too */
    }
    nxt_status status = safetensors_write(s, "adapter_model.safetensors", &(tensor_set){
        .plans = plans, .count = n, .fetch = fetch_param, .user = (void *)(uintptr_t)m});
    mem_drop(m->cx, plans);
    return status;
}

/* A model as it is now, or its adapters. Also the first half of a checkpoint. */
static nxt_status save_model_files(save *s, const nxt_model *m, const nxt_save_config *config) {
    nxt_save_config c = *config;
    dtype type = m->stored;
    merger g = {.m = m};
    TRY(parse_dtype(m->cx, c.dtype, &type));
    if (!c.tokenizer) c.tokenizer = m->dir;
    if (m->lora.rank && !c.merge) return save_adapter_files(s, m, c.tokenizer);
    nxt_status status = save_files(s, m, &c, type, fetch_merged, &g);
    mem_drop(m->cx, g.a);
    mem_drop(m->cx, g.b);
    return status;
}

nxt_save_config nxt_save_config_default(void) {
    return (nxt_save_config){.shard_bytes = 5000000000};
}

nxt_status nxt_model_save(const nxt_model *m, const char *dir, const nxt_save_config *config) {
    const nxt_save_config c = config ? *config : nxt_save_config_default();
    save s;
    TRY(save_begin_into(m->cx, dir, &s));
    return save_end(&s, save_model_files(&s, m, &c));
}

/* -- New models ------------------------------------------------------------------------ */

/* Hugging Face's initialisation, element by element: N(0, initializer_range) for matrices,
 * ones for norms, zeros for biases. Small random matrices keep every layer's output near its
 * input at first, and no two rows of a matrix alike: equal rows would get equal gradients
 * and stay equal. A function of seed, parameter and place, so the values do not depend on
 * how they are cut into pieces. */
typedef struct init_source {
    nxt_model *m;
    u64 seed;
} init_source;

static nxt_status fetch_init(void *user, const tensor_plan *t, i64 at, i64 n, float *out) {
    const init_source *s = user;
    const param *p = t->source;
    const u64 which = (u64)(p - s->m->params);
    const float deviation = s->m->s.init_std
                            / (p->init == INIT_DEEP ? sqrtf(2 * (float)s->m->s.L) : 1);
    for (i64 i = 0; i < n; i++)
        out[i] = p->init == INIT_NORMAL || p->init == INIT_DEEP
                     ? deviation * (float)normal(s->seed, FOR_INIT, which, (u64)(at + i))
                     : p->init == INIT_ONE ? 1.0f : 0.0f;
    return NXT_OK;
}

/* The model exists as shapes only; its values go from fetch_init to the file. */
nxt_status nxt_model_init(nxt_context *cx, const char *config_file, const char *tokenizer,
                          const char *dir, const char *dtype_wanted, u64 seed) {
    nxt_save_config c = nxt_save_config_default();
    nxt_model *m;
    save s = {.cx = cx};
    dtype type = F32;
    nxt_status status;
    TRY(mem_zero(cx, &m, 1, sizeof *m));
    m->cx = m->arena.cx = m->files.cx = m->adapter_files.cx = cx;
    c.tokenizer = tokenizer;
    TRY_GOTO(done, read_config(m, config_file));
    TRY_GOTO(done, parse_dtype(cx, json_text(m->config, "torch_dtype",
                                             json_text(m->config, "dtype", NULL)), &type));
    TRY_GOTO(done, parse_dtype(cx, dtype_wanted, &type));
    TRY_GOTO(done, save_begin_into(cx, dir, &s));
    status = save_end(&s, save_files(&s, m, &c, type, fetch_init, &(init_source){m, seed}));
done:
    nxt_model_destroy(m);
    return status;
}

/* -- What a model is ------------------------------------------------------------------- */

void nxt_model_describe(const nxt_model *m, nxt_model_info *info) {
    static const char *const acts[] = {[NXT_GELU] = "gelu", [NXT_GELU_TANH] = "gelu_new",
                                       [NXT_GELU_FAST] = "gelu_fast", [NXT_RELU] = "relu",
                                       [NXT_SILU] = "silu"};
    const shape *s = &m->s;
    *info = (nxt_model_info){
        .family = m->family->model_type, .architecture = m->family->architecture,
        .dtype = dtype_name[m->stored], .activation = acts[s->act], .layers = s->L,
        .width = s->C, .heads = s->H, .inner = s->F, .vocabulary = s->V, .positions = s->T,
        .rotary = 2 * s->pairs, .parallel_residual = s->parallel, .tied = s->tied,
        .key_heads = s->G, .head_size = s->D, .window = s->window, .gated = s->gated,
        .norm = s->norm == NXT_RMS_NORM ? "RMSNorm" : "LayerNorm", .lora_rank = s->lora_rank,
        .trainable = trainable_elements(m), .parameters = m->elements,
        .embedding_parameters = s->V * s->C,
        .bos = (i32)s->bos, .eos = (i32)s->eos};
    for (i64 i = 0; i < m->files.file_count; i++) info->mapped_bytes += m->files.files[i].map.n;
}

i64 nxt_param_count(const nxt_model *m) { return m->param_count; }

void nxt_param_describe(const nxt_model *m, i64 i, nxt_param_info *info) {
    const param *p = &m->params[i];
    *info = (nxt_param_info){.name = p->name, .rows = p->w.rows, .cols = p->w.cols,
                             .dtype = dtype_name[p->stored.type],
                             .trainable = p->grad.p != NULL};
}

/* Whether parameter i has elements [at, at + n). */
static nxt_status check_range(const nxt_model *m, i64 i, i64 at, i64 n) {
    if (i >= 0 && i < m->param_count && at >= 0 && n >= 0
        && at + n <= m->params[i].w.rows * m->params[i].w.cols)
        return NXT_OK;
    return fail(m->cx, NXT_ARGUMENT,
                "parameter %" PRId64 ": no elements %" PRId64 " .. %" PRId64, i, at, at + n);
}

nxt_status nxt_param_read(const nxt_model *m, i64 i, i64 at, i64 n, float *out) {
    TRY(check_range(m, i, at, n));
    read_param(m, &m->params[i], at, n, out);
    return NXT_OK;
}

nxt_status nxt_grad_read(const nxt_model *m, i64 i, i64 at, i64 n, float *out) {
    TRY(check_range(m, i, at, n));
    const float *g = m->params[i].fresh ? NULL : m->params[i].grad.p;
    if (g) m->cx->ops->download(m->cx->device, out, g + at, (size_t)n * sizeof *out);
    else memset(out, 0, (size_t)n * sizeof *out);
    return NXT_OK;
}

/* The sum of what §14 and §15 will ask for, from the same functions. Training holds four
 * numbers of 4 bytes a parameter: master, gradient, and Adam's two moments. Vectors are f32
 * copies in any case, because norms and biases are read as such. */
void nxt_model_memory(const nxt_model *m, i64 rows, int train, nxt_memory_plan *plan) {
    nxt_model_info info;
    i64 vectors = 0;
    nxt_model_describe(m, &info);
    for (i64 i = 0; i < m->param_count; i++)
        if (m->params[i].w.rows == 1) vectors += m->params[i].w.cols;
    const i64 copy = 4 * trainable_elements(m);
    *plan = (nxt_memory_plan){
        .weights = (train ? copy : 0) + 4 * vectors, .gradients = train ? copy : 0,
        .optimizer = train ? 2 * copy : 0, .workspace = (i64)matmul_workspace(),
        .activations = (i64)pass_bytes(&m->s, rows, train), .mapped = info.mapped_bytes};
    plan->total = plan->weights + plan->gradients + plan->optimizer + plan->workspace
                  + plan->activations;
}

/* ============================================================================
 * § 20  The optimizer and the trainer
 *
 * One step: zero the gradients; for every micro-batch, forward and backward; then one pass
 * over the parameters. With S the sum of the losses of all n trained tokens of the step, and
 * S = S1 + S2 + ... over its micro-batches,
 *
 *     loss = S / n        gradient = dS/dw / n = (dS1/dw + dS2/dw + ...) / n
 *
 * so backward accumulates the gradient of the SUMMED loss, and dividing by n happens once,
 * in the optimizer's scale. That makes the step exact for every split into micro-batches
 * (the mean of means, which most trainers once computed, weighs a token by how few its
 * micro-batch had) and for a host that adds up gradients of many workers.
 *
 * Nothing here depends on what was drawn before: the order of an epoch is a keyed
 * permutation, a function of (seed, epoch), so {step, masters, moments} is the whole state,
 * and a resumed run gives the bits of an uninterrupted one.
 */
struct nxt_trainer {
    nxt_context *cx;
    nxt_model *m;
    const nxt_dataset *data;
    nxt_train_config c;
    float *moments;          /* (2, elements): m, then v */
    pass_room room;          /* for the largest micro-batch */
    i64 step, total_steps, steps_per_epoch;
    i64 skipped;             /* in all */
    i64 num_tokens;          /* seen in all steps so far */
};

nxt_train_config nxt_train_config_default(void) {
    return (nxt_train_config){
        .learning_rate = 5e-5, .adam_beta1 = 0.9, .adam_beta2 = 0.999, .adam_epsilon = 1e-8,
        .max_grad_norm = 1, .num_train_epochs = 3, .batch_size = 8,
        .gradient_accumulation_steps = 1, .shuffle = 1, .seed = 42};
}

/* The factor of update k (from 0) of T, after W of warm-up, as Hugging Face's get_scheduler
 * has it. With s = (k - W) / (T - W), the share of the rest that is done:
 *
 *     k < W                   k / W           so the first update of a warm-up has rate 0
 *     linear                  1 - s
 *     cosine                  (1 + cos(pi s)) / 2                  [Loshchilov17]
 *     constant_with_warmup    1
 *     constant                1, also before W
 *
 * Warm-up, because Adam's moments are first estimates from few gradients and its step does
 * not shrink with them; decay, because near a minimum a constant step only circles it. */
static double schedule_factor(const nxt_train_config *c, i64 k, i64 warmup, i64 total) {
    if (c->schedule == NXT_SCHEDULE_CONSTANT) return 1;
    if (k < warmup) return (double)k / (double)max64(1, warmup);
    double share = (double)(k - warmup) / (double)max64(1, total - warmup);
    switch (c->schedule) {
    case NXT_SCHEDULE_LINEAR: return fmax(0, 1 - share);
    case NXT_SCHEDULE_COSINE: return fmax(0, 0.5 * (1 + cos(3.141592653589793 * share)));
    default: return 1;
    }
}

static i64 warmup_steps(const nxt_trainer *t) {
    if (t->c.warmup_steps > 0) return t->c.warmup_steps;
    return (i64)ceil(t->c.warmup_ratio * (double)t->total_steps);
}

static double learning_rate(const nxt_trainer *t, i64 k) {
    return t->c.learning_rate * schedule_factor(&t->c, k, warmup_steps(t), t->total_steps);
}

/* -- Which examples -------------------------------------------------------------------- */

/* An epoch has ceil(examples / batch) micro-batches and ceil(of those / accumulation)
 * steps; the last one may be short (the rule of Hugging Face's Trainer from 4.46 on). With 10
 * examples, a batch of 2 and 2 micro-batches a step:
 *
 *     step      0         1         2
 *     examples  0 1 2 3   4 5 6 7   8 9       places in the epoch's order, not in the file
 */
static i64 examples_per_step(const nxt_train_config *c) {
    return c->batch_size * c->gradient_accumulation_steps;
}

/* The example that stands at place `at` of an epoch's order. The key of the permutation is a
 * number drawn for (seed, FOR_SHUFFLE, epoch): every epoch has another order, and which one
 * can be told without having lived through the epochs before it. */
static i64 example_at(const nxt_trainer *t, i64 epoch, i64 at) {
    if (!t->c.shuffle) return at;
    u64 n = (u64)t->data->info.examples;
    return (i64)permute((u64)at, n, draw(t->c.seed, FOR_SHUFFLE, (u64)epoch, 0));
}

/* -- Creating -------------------------------------------------------------------------- */

void nxt_trainer_destroy(nxt_trainer *t) {
    if (!t) return;
    nxt_context *cx = t->cx;
    room_free(&t->room);
    if (t->moments) cx->ops->release(cx->device, t->moments);
    mem_drop(cx, t);
}

/* Refuses what can only be a mistake, before anything is allocated. */
static nxt_status check_train_config(nxt_context *cx, const nxt_train_config *c) {
    enum { MOST = 1 << 30 };
    const struct { const char *name; bool bad; } rules[] = {
        {"learning rate must be a number from 0 on, below 1e30",
         !(c->learning_rate >= 0 && c->learning_rate < 1e30)},
        {"weight decay must be a number from 0 on, below 1e30",
         !(c->weight_decay >= 0 && c->weight_decay < 1e30)},
        {"the gradient's norm is clipped to a number", !isfinite(c->max_grad_norm)},
        {"Adam's betas must be in [0, 1)", !(c->adam_beta1 >= 0 && c->adam_beta1 < 1
                                             && c->adam_beta2 >= 0 && c->adam_beta2 < 1)},
        {"Adam's epsilon must be above 0", !((float)c->adam_epsilon > 0)},
        {"batch size must be from 1 to 2^30", c->batch_size < 1 || c->batch_size > MOST},
        {"gradient accumulation must be from 1 to 2^30",
         c->gradient_accumulation_steps < 1 || c->gradient_accumulation_steps > MOST},
        {"epochs or steps must be above 0", !(c->num_train_epochs > 0) && c->max_steps <= 0},
        {"warm-up must not be negative, nor longer than the run",
         c->warmup_steps < 0 || !(c->warmup_ratio >= 0 && c->warmup_ratio <= 1)},
    };
    for (i64 i = 0; i < COUNT(rules); i++)
        if (rules[i].bad) return fail(cx, NXT_ARGUMENT, "%s", rules[i].name);
    return NXT_OK;
}

/* Rows that the largest micro-batch can have. */
static i64 batch_rows(const nxt_dataset *d, i64 batch_size) {
    return min64(batch_size, d->info.examples) * d->info.longest;
}

/* Moment 0 or 1, m or v, of a trained parameter: both arrays are laid out as the gradients. */
static float *moment(const nxt_trainer *t, const param *p, i64 which) {
    return t->moments + which * t->m->trained + ((const float *)p->grad.p - t->m->grads);
}

/* All memory of a run is taken here, sized for the largest micro-batch that can occur, so
 * that a run which starts does not run out later (I4). */
static nxt_status trainer_prepare(nxt_trainer *t) {
    nxt_context *cx = t->cx;
    const float *drop = t->m->s.dropout;
    if (drop[0] > 0 || drop[1] > 0 || drop[2] > 0)
        say(cx, NXT_LOG_WARNING, "%s: the config has dropout (%g of embeddings, %g of attention, "
            "%g of branches); training here does without", t->m->dir, (double)drop[0],
            (double)drop[1], (double)drop[2]);
    const i64 rows = batch_rows(t->data, t->c.batch_size);
    TRY(model_make_trainable(t->m));
    t->moments = cx->ops->alloc(cx->device, (size_t)t->m->trained * 2 * sizeof(float));
    if (!t->moments) return NXT_MEMORY;
    cx->ops->fill(cx->device, matrix(t->moments, 2, t->m->trained), 0);
    TRY(room_get(t->m, rows, true, &t->room));
    t->steps_per_epoch = ceil_div(ceil_div(t->data->info.examples, t->c.batch_size),
                                  t->c.gradient_accumulation_steps);
    const double wanted = ceil(t->c.num_train_epochs * (double)t->steps_per_epoch);
    const double steps = t->c.max_steps > 0 ? (double)t->c.max_steps : wanted;
    if (!(steps <= 1e12)) return fail(cx, NXT_ARGUMENT, "%g steps will never end", steps);
    t->total_steps = (i64)steps;
    return NXT_OK;
}

nxt_status nxt_trainer_check(const nxt_model *m, const nxt_dataset *data,
                             const nxt_train_config *c) {
    TRY(check_train_config(m->cx, c));
    if (!data->info.trained_tokens)
        return fail(m->cx, NXT_ARGUMENT,
                    "no token of the data is trained: is the completion empty?");
    const i64 rows = batch_rows(data, c->batch_size);
    if (rows > INT32_MAX)
        return fail(m->cx, NXT_ARGUMENT, "a batch of %" PRId64 " tokens is too large", rows);
    return check_dataset(m, data);
}

nxt_status nxt_trainer_create(nxt_trainer **out, nxt_model *m, const nxt_dataset *data,
                              const nxt_train_config *config) {
    nxt_trainer *t;
    *out = NULL;
    TRY(nxt_trainer_check(m, data, config));
    TRY(mem_zero(m->cx, &t, 1, sizeof *t));
    t->cx = m->cx, t->m = m, t->data = data, t->c = *config;
    nxt_status status = trainer_prepare(t);
    if (status == NXT_OK) *out = t;
    else nxt_trainer_destroy(t);
    return status;
}

int nxt_trainer_done(const nxt_trainer *t) { return t->step >= t->total_steps; }
i64 nxt_trainer_total_steps(const nxt_trainer *t) { return t->total_steps; }
i64 nxt_trainer_steps_per_epoch(const nxt_trainer *t) { return t->steps_per_epoch; }

/* -- One step -------------------------------------------------------------------------- */

typedef struct step_sums {
    double loss, trained, tokens, squares; /* all_reduce sees the first three */
} step_sums;

typedef struct pass_result {
    double loss; /* the sum over trained tokens */
    i64 trained;
} pass_result;

/* The loss of the sequences in the room's batch; their gradients are added when its memory
 * keeps what backward reads. */
static pass_result run_batch(pass_room *r) {
    pass p;
    pass_begin(&p, &r->memory, &r->host, NULL);
    if (!p.trained) return (pass_result){0}; /* nothing to learn from: no gradient either */
    forward(&p);
    head_norm(&p);
    if (r->memory.keep) backward(&p);
    else head_loss(&p, false);
    return (pass_result){batch_loss(&p, &r->memory), p.trained};
}

/* Forward and backward of one micro-batch: examples [at, end) of an epoch's order. */
static void micro_batch(nxt_trainer *t, i64 epoch, i64 at, i64 end, step_sums *sums) {
    batch *b = &t->room.host;
    b->n = 0;
    b->dropout = t->m->s.lora_dropout > 0;
    for (i64 i = at; i < end; i++) {
        const i64 example = example_at(t, epoch, i), from = b->n;
        batch_add_example(b, t->data, example);
        for (i64 n = from; n < b->n; n++) /* a token's own number: it drops the same anywhere */
            b->key[n] = draw(t->c.seed, FOR_DROPOUT, (u64)t->step,
                             (u64)example << 32 | (u64)b->pos[n]);
    }
    const pass_result r = run_batch(&t->room);
    sums->tokens += (double)b->n;
    sums->loss += r.loss;
    sums->trained += (double)r.trained;
}

/* Clears the gradients; those that a product will set are only marked. */
static nxt_status grad_zero(nxt_model *m) {
    const nxt_backend *ops = m->cx->ops;
    for (i64 i = 0; i < m->param_count; i++) {
        param *p = &m->params[i];
        p->fresh = p->grad.p && p->product;
        if (p->grad.p && !p->fresh) ops->fill(m->cx->device, p->grad, 0);
    }
    return ops->sync(m->cx->device);
}

/* Before anyone reads the gradients: what no product has set is zero. */
static void grad_settle(nxt_model *m) {
    for (i64 i = 0; i < m->param_count; i++) {
        param *p = &m->params[i];
        if (p->fresh) m->cx->ops->fill(m->cx->device, p->grad, 0);
        p->fresh = false;
    }
}

/* The global norm: one length of the gradient of all parameters together, as if they were one
 * long vector. Squares of each parameter in turn, added up in the order of the list, in
 * double (I7). */
static double gradient_squares(const nxt_model *m) {
    double sum = 0;
    for (i64 i = 0; i < m->param_count; i++)
        if (m->params[i].grad.p) m->cx->ops->sumsq(m->cx->device, &sum, m->params[i].grad);
    return sum;
}

/* The hook for hosts that train in several processes: each has seen its own examples, and
 * the sums over all of them make the step they take together. */
static void reduce_over_workers(nxt_trainer *t, step_sums *sums) {
    enum { PIECE = 1 << 22 };
    double counts[3] = {sums->loss, sums->trained, sums->tokens};
    if (!t->c.all_reduce) return;
    t->c.all_reduce(t->c.user, counts, 3, NULL, 0);
    for (i64 at = 0; at < t->m->trained; at += PIECE)
        t->c.all_reduce(t->c.user, NULL, 0, t->m->grads + at,
                        min64(PIECE, t->m->trained - at));
    sums->loss = counts[0], sums->trained = counts[1], sums->tokens = counts[2];
}

/* AdamW [Loshchilov19] on every trainable parameter; §6 has the formula. `scale` makes the
 * mean over tokens and clips. The moments start at zero and would be too small at first by
 * 1 - beta^t after t updates: the corrections undo that, so t counts updates, and steps that
 * were skipped are none. Matrices decay, vectors do not: shrinking a bias or the gain of a
 * norm limits nothing that could grow out of hand. */
static void update(nxt_trainer *t, double lr, double scale) {
    const nxt_train_config *c = &t->c;
    const double updates = (double)(t->step - t->skipped + 1);
    for (i64 i = 0; i < t->m->param_count; i++) {
        const param *p = &t->m->params[i];
        if (!p->grad.p) continue;
        t->cx->ops->adamw(t->cx->device, &(nxt_adamw){
            .w = p->w.p, .g = p->grad.p, .m = moment(t, p, 0), .v = moment(t, p, 1),
            .n = p->w.rows * p->w.cols, .scale = (float)scale, .lr = (float)lr,
            .beta1 = (float)c->adam_beta1, .beta2 = (float)c->adam_beta2,
            .eps = (float)c->adam_epsilon, .decay = p->decay ? (float)c->weight_decay : 0,
            .correction1 = (float)(1 - pow(c->adam_beta1, updates)),
            .correction2 = (float)(1 - pow(c->adam_beta2, updates))});
    }
}
/* Accumulates the step's gradients. The step's place in its epoch says which examples, so a
 * resumed trainer begins at the right one without any counting. An epoch's last micro-batch
 * and last step may be smaller than the others; no example is left out or seen twice. */
static nxt_status accumulate(nxt_trainer *t, step_sums *sums) {
    const i64 n = t->data->info.examples, per_step = examples_per_step(&t->c);
    const i64 epoch = t->step / t->steps_per_epoch;
    const i64 begin = t->step % t->steps_per_epoch * per_step, end = min64(n, begin + per_step);
    TRY(grad_zero(t->m));
    for (i64 at = begin; at < end; at += t->c.batch_size)
        micro_batch(t, epoch, at, min64(end, at + t->c.batch_size), sums);
    grad_settle(t->m);
    reduce_over_workers(t, sums);
    sums->squares = gradient_squares(t->m);
    return t->cx->ops->sync(t->cx->device);
}

/* A training step, start to end. The norm is that of the mean gradient, before clipping:
 * clipping scales a gradient that is too long and leaves its direction, so that one strange
 * batch cannot throw the weights far. A gradient that is not finite would poison weights and
 * moments for good, so such a step is refused, or left out and counted. */
nxt_status nxt_trainer_step(nxt_trainer *t, nxt_step_info *info) {
    const double start = seconds_now();
    step_sums sums = {0};
    *info = (nxt_step_info){.step = t->step, .total_steps = t->total_steps};
    if (t->step >= t->total_steps)
        return fail(t->cx, NXT_ARGUMENT, "the training is over: %" PRId64 " steps", t->step);
    TRY(accumulate(t, &sums));
    const double mean = sums.trained > 0 ? 1 / sums.trained : 0;
    const double grad_norm = sqrt(sums.squares) * mean, lr = learning_rate(t, t->step);
    const bool finite = isfinite(sums.loss) && isfinite(grad_norm);
    if (!finite && t->skipped >= t->c.max_skipped_steps)
        return fail(t->cx, NXT_DIVERGED,
                    "step %" PRId64 ": the %s is not finite (%" PRId64 " steps were skipped "
                    "before); a lower learning rate may help", t->step + 1,
                    isfinite(sums.loss) ? "gradient" : "loss", t->skipped);
    const double longest = t->c.max_grad_norm; /* 1e-6 is PyTorch's: clip_grad_norm_ */
    const double clip = longest > 0 ? longest / (grad_norm + 1e-6) : 1;
    if (finite) update(t, lr, mean * fmin(1, clip));
    else t->skipped++;
    TRY(t->cx->ops->sync(t->cx->device));
    t->step++;
    t->num_tokens += (i64)sums.tokens;
    *info = (nxt_step_info){
        .step = t->step, .total_steps = t->total_steps, .learning_rate = lr,
        .epoch = (double)t->step / (double)t->steps_per_epoch, .loss = sums.loss * mean,
        .grad_norm = grad_norm, .tokens = (i64)sums.tokens, .num_tokens = t->num_tokens,
        .trained_tokens = (i64)sums.trained, .seconds = seconds_now() - start,
        .skipped = !finite};
    return NXT_OK;
}

/* -- One pass for hosts; evaluation ---------------------------------------------------- */

/* Examples [at, end) of a dataset as one batch. */
static pass_result run_examples(pass_room *room, const nxt_dataset *d, i64 at, i64 end) {
    room->host.n = 0;
    for (i64 i = at; i < end; i++) batch_add_example(&room->host, d, i);
    return run_batch(room);
}

static nxt_status pass_over(nxt_model *m, const nxt_dataset *d, i64 at, i64 n, bool train,
                            double *loss) {
    pass_room room;
    if (at < 0 || n < 1 || at + n > d->info.examples)
        return fail(m->cx, NXT_ARGUMENT, "examples %" PRId64 " to %" PRId64 " of %" PRId64, at,
                    at + n, d->info.examples);
    TRY(check_dataset(m, d));
    if (train) TRY(model_make_trainable(m));
    TRY(room_get(m, d->offset[at + n] - d->offset[at], train, &room));
    const pass_result r = run_examples(&room, d, at, at + n);
    *loss = r.trained ? r.loss / (double)r.trained : 0;
    nxt_status status = m->cx->ops->sync(m->cx->device);
    room_free(&room);
    return status;
}

nxt_status nxt_forward(nxt_model *m, const nxt_dataset *d, i64 at, i64 n, double *loss) {
    return pass_over(m, d, at, n, false, loss);
}

nxt_status nxt_backward(nxt_model *m, const nxt_dataset *d, i64 at, i64 n, double *loss) {
    return pass_over(m, d, at, n, true, loss);
}

nxt_status nxt_grad_zero(nxt_model *m) { return grad_zero(m); }

/* The forward half of a step. The loss is the mean over all trained tokens of the data, so it
 * does not depend on how they are cut into batches, which only bound the memory (a mean of
 * the batches' means, which is what transformers reports, does depend on it). Perplexity is
 * its exponential: a model of perplexity 8 is as unsure, on average, as one that must guess
 * among 8 tokens that are equally likely. */
nxt_status nxt_evaluate(nxt_model *m, const nxt_dataset *d, i64 batch_size,
                        nxt_eval_info *info) {
    const double start = seconds_now();
    const i64 examples = d->info.examples;
    pass_room room;
    double loss = 0;
    nxt_status status = NXT_OK;
    *info = (nxt_eval_info){.examples = examples};
    if (batch_size < 1 || !examples)
        return fail(m->cx, NXT_ARGUMENT, "evaluation needs examples and a batch size");
    TRY(check_dataset(m, d));
    TRY(room_get(m, batch_rows(d, batch_size), false, &room));
    for (i64 at = 0; status == NXT_OK && at < examples; at += batch_size) {
        const pass_result r = run_examples(&room, d, at, min64(examples, at + batch_size));
        loss += r.loss, info->tokens += r.trained;
        status = check_cancel(m->cx);
    }
    room_free(&room);
    if (status == NXT_OK && !info->tokens)
        status = fail(m->cx, NXT_ARGUMENT, "no token of the data is predicted: texts of one "
                      "token, or completions that were cut away");
    info->loss = info->tokens ? loss / (double)info->tokens : 0;
    info->perplexity = exp(info->loss);
    info->seconds = seconds_now() - start;
    return status;
}

/* exp(mean loss) per text: all its tokens are predicted, the first behind a start token
 * unless bos < 0. Their plain mean, which `evaluate` reports, weighs a short text as much as
 * a long one; it is not the exponential of the mean loss. One text at a time: long ones need
 * the memory anyway. */
nxt_status nxt_perplexities(nxt_model *m, const nxt_dataset *d, i64 batch_size, i32 bos,
                            double *perplexity) {
    const i64 start = bos >= 0;
    pass_room room = {0};
    i32 *ids = NULL; /* the start token, then a text */
    nxt_status status;
    (void)batch_size;
    if (d->info.longest + start > m->s.T)
        return fail(m->cx, NXT_ARGUMENT, "a text of %" PRId64 " tokens%s does not fit the "
                    "model's %" PRId64 " positions", d->info.longest,
                    start ? " and a start token" : "", m->s.T);
    TRY(check_dataset(m, d));
    TRY(mem_get(m->cx, &ids, d->info.longest + 1, sizeof *ids));
    TRY_GOTO(done, room_get(m, d->info.longest + 1, false, &room));
    ids[0] = bos;
    for (i64 i = 0; status == NXT_OK && i < d->info.examples; i++) {
        const i64 at = d->offset[i], n = d->offset[i + 1] - at;
        if (n) memcpy(ids + start, d->ids + at, (size_t)n * sizeof *ids);
        room.host.n = 0;
        batch_add(&room.host, ids, NULL, start + n);
        const pass_result r = run_batch(&room);
        perplexity[i] = r.trained ? exp(r.loss / (double)r.trained) : NAN;
        status = check_cancel(m->cx);
    }
done:
    room_free(&room);
    mem_drop(m->cx, ids);
    return status;
}

nxt_status nxt_logits(nxt_model *m, const i32 *ids, i64 n, float *logits) {
    pass_room room;
    pass p;
    if (n < 1 || n > m->s.T)
        return fail(m->cx, NXT_ARGUMENT, "%" PRId64 " tokens; the model has %" PRId64
                    " positions", n, m->s.T);
    for (i64 i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->s.V)
            return fail(m->cx, NXT_ARGUMENT, "token %d is beyond the vocabulary", ids[i]);
    TRY(room_get(m, n, false, &room));
    batch_add(&room.host, ids, NULL, n);
    for (i64 i = 0; i < n; i++) room.host.label[i] = 0; /* every row's logits are wanted */
    pass_begin(&p, &room.memory, &room.host, NULL);
    forward(&p);
    head_norm(&p);
    head_logits(&p, logits);
    room_free(&room);
    return NXT_OK;
}

/* ============================================================================
 * § 21  Generation
 *
 * A session keeps the keys and values of what was read, so that a new token costs one row
 * instead of the whole text again. The cache is one array of rows per layer in which each
 * sequence owns a slab; a row says which cache rows it sees (first, last) and where its own
 * key goes (slot). A prompt of 500 tokens, one next token, and one next token of each of
 * 64 sequences are therefore the same forward pass as in training, with other numbers.
 */
struct nxt_session {
    nxt_context *cx;
    nxt_model *m;
    kv_cache cache;
    pass_room room;
    i64 capacity;    /* tokens of a sequence */
    int sequences;
    i64 *length;     /* (sequences) tokens read so far */
};

enum { FEED_ROWS = 256 }; /* of a prompt in one pass: bounds the memory of a session */

void nxt_session_destroy(nxt_session *s) {
    if (!s) return;
    nxt_context *cx = s->cx;
    if (s->cache.k) cx->ops->release(cx->device, s->cache.k);
    room_free(&s->room);
    mem_drop(cx, s->length);
    mem_drop(cx, s);
}

/* The cache is laid out as L slabs of keys, then L slabs of values; within a slab sequence i
 * owns rows [i capacity, (i + 1) capacity). Pages that no token has reached cost nothing.
 *
 *     layer 0 keys   | sequence 0: k0 k1 k2 . . . . | sequence 1: k0 k1 . . . . . |
 *     layer 1 keys   | ...
 *     layer 0 values | ...
 */
static nxt_status session_prepare(nxt_session *s) {
    const i64 rows = max64(s->sequences, min64(FEED_ROWS, s->capacity));
    const i64 cached = s->m->s.L * s->cache.rows * kv_width(&s->m->s);
    TRY(mem_zero(s->cx, &s->length, s->sequences, sizeof *s->length));
    TRY(room_get(s->m, rows, false, &s->room));
    s->room.host.slot = s->room.host.label + rows;
    s->cache.k = s->cx->ops->alloc(s->cx->device, (size_t)cached * 2 * sizeof(float));
    if (!s->cache.k) return NXT_MEMORY;
    s->cache.v = s->cache.k + cached;
    return NXT_OK;
}

nxt_status nxt_session_create(nxt_session **out, nxt_model *m, int sequences, i64 capacity) {
    nxt_session *s;
    *out = NULL;
    if (sequences < 1 || capacity < 1 || capacity > m->s.T)
        return fail(m->cx, NXT_ARGUMENT, "a session of %d sequences of %" PRId64 " tokens; the "
                    "model has %" PRId64 " positions", sequences, capacity, m->s.T);
    if (capacity * sequences > INT32_MAX) /* rows are numbered by 32 bits */
        return fail(m->cx, NXT_ARGUMENT, "a cache of %d x %" PRId64 " tokens is too large",
                    sequences, capacity);
    TRY(mem_zero(m->cx, &s, 1, sizeof *s));
    s->cx = m->cx, s->m = m, s->capacity = capacity, s->sequences = sequences;
    s->cache.rows = capacity * sequences;
    nxt_status status = session_prepare(s);
    if (status == NXT_OK) *out = s;
    else nxt_session_destroy(s);
    return status;
}

/* All feeds are checked before the first one changes anything. */
static nxt_status check_feeds(const nxt_session *s, const nxt_feed *feeds, int count) {
    for (int f = 0; f < count; f++) {
        const nxt_feed *x = &feeds[f];
        if (x->sequence < 0 || x->sequence >= s->sequences || x->n < 1)
            return fail(s->cx, NXT_ARGUMENT, "feed %d: sequence %d of %d, %" PRId64 " tokens",
                        f, x->sequence, s->sequences, x->n);
        for (int e = 0; e < f; e++)
            if (feeds[e].sequence == x->sequence)
                return fail(s->cx, NXT_ARGUMENT, "feeds %d and %d name the same sequence %d", e,
                            f, x->sequence);
        if (s->length[x->sequence] + x->n > s->capacity)
            return fail(s->cx, NXT_ARGUMENT, "sequence %d would have %" PRId64 " tokens; the "
                        "session holds %" PRId64, x->sequence, s->length[x->sequence] + x->n,
                        s->capacity);
        for (i64 i = 0; i < x->n; i++)
            if (x->ids[i] < 0 || x->ids[i] >= s->m->s.V)
                return fail(s->cx, NXT_ARGUMENT,
                            "token %d is beyond the vocabulary of %" PRId64, x->ids[i],
                            s->m->s.V);
    }
    return NXT_OK;
}

/* Takes up to the batch's room from a feed, from token `done` on. Its last token's row is
 * labelled when logits are wanted: a label is what makes the head look at a row. */
static i64 take_feed(nxt_session *s, const nxt_feed *x, i64 done, bool logits) {
    batch *b = &s->room.host;
    const i64 take = min64(x->n - done, s->room.memory.rows - b->n);
    const i64 slab = (i64)x->sequence * s->capacity;
    for (i64 i = done; i < done + take; i++) {
        const i64 row = b->n++, pos = s->length[x->sequence]++;
        b->ids[row] = x->ids[i];
        b->pos[row] = (i32)pos;
        b->first[row] = (i32)slab;
        b->last[row] = b->slot[row] = (i32)(slab + pos);
        b->label[row] = logits && i + 1 == x->n ? 0 : -100;
    }
    return take;
}

/* Long prompts go in pieces of the batch's size; short ones, and next tokens, share one. As
 * feeds are taken in order, those that end in a pass are neighbours, and their logits are
 * neighbouring rows of the result. */
nxt_status nxt_session_feed(nxt_session *s, const nxt_feed *feeds, int count, float *logits) {
    i64 done = 0; /* tokens of feed f that were taken already */
    TRY(check_feeds(s, feeds, count));
    for (int f = 0; f < count;) {
        const int from = f; /* the first feed that can end in this pass */
        pass p;
        s->room.host.n = 0;
        while (f < count && s->room.host.n < s->room.memory.rows) {
            done += take_feed(s, &feeds[f], done, logits != NULL);
            if (done == feeds[f].n) f++, done = 0;
        }
        pass_begin(&p, &s->room.memory, &s->room.host, &s->cache);
        forward(&p);
        if (p.trained) {
            head_norm(&p);
            head_logits(&p, logits + (i64)from * s->m->s.V);
        }
        TRY(check_cancel(s->cx));
    }
    return s->cx->ops->sync(s->cx->device);
}

i64 nxt_session_length(const nxt_session *s, int sequence) { return s->length[sequence]; }

void nxt_session_rewind(nxt_session *s, int sequence, i64 n) {
    s->length[sequence] = min64(s->length[sequence], max64(0, n));
}

/* -- Sampling --------------------------------------------------------------------------
 *
 * The logits z are changed in the order Hugging Face applies its processors: repetition
 * penalty [Keskar19], temperature, top-k, top-p [Holtzman20]. Then one number u, uniform in
 * [0, 1), picks the token: the first one, in a fixed order, at which the running sum of
 * exp(z - max z) exceeds u times the whole sum. u is a function of (seed, stream, tokens so
 * far): what one sequence draws depends neither on its neighbours in a batch nor on whether
 * the same text was read in one pass or in many. */
nxt_sample_config nxt_sample_config_default(void) {
    return (nxt_sample_config){.top_p = 1, .repetition_penalty = 1};
}

/* Every token seen, once, however often it was: positive logits are divided by the penalty,
 * negative ones multiplied, so that both become less likely. */
static void penalise(float *z, i64 V, double penalty, const i32 *seen, i64 n, u8 *marked) {
    for (i64 i = 0; i < n; i++) {
        i32 id = seen[i];
        if (id < 0 || id >= V || marked[id / 8] >> id % 8 & 1) continue;
        marked[id / 8] |= (u8)(1 << id % 8);
        z[id] = (float)(z[id] < 0 ? z[id] * penalty : z[id] / penalty);
    }
}

/* A max-heap of ids by logit: the best of V tokens is heap[0], and the children of place i, at
 * 2 i + 1 and 2 i + 2, rank after it. Making one costs O(V), taking the best O(log V): the few
 * best of a large vocabulary without sorting it. Equal logits go by id, so that the choice is
 * the same everywhere. */
static bool ranks_before(const float *z, i32 a, i32 b) {
    return z[a] > z[b] || (z[a] == z[b] && a < b);
}

/* Moves the id at place i down to where both of its children rank after it. */
static void sift_down(const float *z, i32 *heap, i64 n, i64 i) {
    for (i64 child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && ranks_before(z, heap[child + 1], heap[child])) child++;
        if (!ranks_before(z, heap[child], heap[i])) return;
        i32 t = heap[i];
        heap[i] = heap[child], heap[child] = t;
    }
}

/* Draws from softmax(z) cut to the top_k best and to the smallest set of mass top_p. Weights
 * e = exp(z - largest) sum to `total` over the whole vocabulary. In three steps:
 *
 *     rank    tokens leave the heap in falling order until there are top_k of them, or,
 *             without top_k, until their mass reaches top_p of the total
 *     cut     of these the first stay whose mass, before the last was added, was below
 *             top_p of what top-k left: the token that crosses the border is kept, so there
 *             is always one
 *     draw    u times the mass that stayed falls into one token's share of it
 */
static i32 draw_best(const float *z, i64 V, const nxt_sample_config *c, double largest,
                     double total, double u, i32 *heap) {
    i64 n = V, kept = 0;
    const i64 most = c->top_k > 0 ? min64(c->top_k, V) : V;
    double mass = 0, base = 0, at = 0;
    for (i64 i = 0; i < V; i++) heap[i] = (i32)i;
    for (i64 i = V / 2; i-- > 0;) sift_down(z, heap, V, i);
    /* the best move to the end of the array, in order, as many as can matter */
    while (kept < most && (c->top_k > 0 || !kept || base < c->top_p * total)) {
        i32 best = heap[0];
        heap[0] = heap[--n];
        heap[n] = best;
        sift_down(z, heap, n, 0);
        kept++;
        base += exp(z[best] - largest);
    }
    const double of = c->top_k > 0 ? base : total; /* top-p looks at what top-k left */
    i64 taken = 0;
    while (taken < kept && (taken == 0 || mass < c->top_p * of))
        mass += exp(z[heap[V - 1 - taken++]] - largest);
    for (i64 i = 0; i < taken; i++) {
        at += exp(z[heap[V - 1 - i]] - largest);
        if (u * mass < at) return heap[V - 1 - i];
    }
    return heap[V - taken];
}

/* Draws from the whole of softmax(z): the first token at which the running sum passes u. */
static i32 draw_any(const float *z, i64 V, double largest, double total, double u) {
    double at = 0;
    i64 last = 0;
    for (i64 i = 0; i < V; i++) {
        double e = exp(z[i] - largest);
        if (e > 0) last = i;
        at += e;
        if (u * total < at) return (i32)i;
    }
    return (i32)last; /* u * total was the sum itself, but for rounding */
}

static nxt_status check_sample_config(nxt_context *cx, const nxt_sample_config *c) {
    if (c->temperature >= 0 && c->top_k >= 0 && c->top_p > 0 && c->top_p <= 1
        && c->repetition_penalty > 0)
        return NXT_OK;
    return fail(cx, NXT_ARGUMENT, "sampling: temperature >= 0, top-k >= 0, 0 < top-p <= 1 and "
                "repetition penalty > 0 are wanted");
}

/* Probabilities are softmax(z / temperature): below 1 likely tokens gain, above 1 unlikely
 * ones. Greedy is the limit of temperature 0, and the only choice without a random number. */
nxt_status nxt_sample(nxt_context *cx, float *z, i64 V, const nxt_sample_config *c, u64 stream,
                      const i32 *seen, i64 n, i32 *chosen) {
    i32 *heap; /* also the marks of the penalty: V / 8 bytes of it */
    i64 best = 0;
    TRY(check_sample_config(cx, c));
    TRY(mem_zero(cx, &heap, V, sizeof *heap));
    if (c->repetition_penalty != 1) penalise(z, V, c->repetition_penalty, seen, n, (u8 *)heap);
    bool nan = isnan(z[0]);
    for (i64 i = 1; i < V; i++) {
        if (z[i] > z[best]) best = i;
        nan |= isnan(z[i]);
    }
    *chosen = (i32)best;
    nxt_status status = NXT_OK;
    if (nan || !isfinite(z[best])) status = fail(cx, NXT_DIVERGED, "the logits are not finite");
    if (c->temperature > 0 && status == NXT_OK) {
        double total = 0;
        for (i64 i = 0; i < V; i++) z[i] = (float)(z[i] / c->temperature);
        for (i64 i = 0; i < V; i++) total += exp((double)z[i] - z[best]);
        const double u = uniform(draw(c->seed, FOR_SAMPLING, stream, (u64)n));
        const bool cut = c->top_k > 0 || c->top_p < 1;
        *chosen = cut ? draw_best(z, V, c, z[best], total, u, heap)
                     : draw_any(z, V, z[best], total, u);
    }
    mem_drop(cx, heap);
    return status;
}

/* -- Text out, and its score ----------------------------------------------------------- */

/* A token may end inside a character; a terminal must not be given half of one. */
size_t nxt_utf8_whole(const char *text, size_t n) {
    size_t back = 0; /* the last character may lack continuation bytes: at most three */
    while (back < 3 && back < n && ((u8)text[n - 1 - back] & 0xc0) == 0x80) back++;
    if (back == n || back == 3) return n;
    const u8 lead = (u8)text[n - 1 - back];
    const size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    return size > back + 1 ? n - 1 - back : n;
}

/* SQuAD v1.1's normalisation [Rajpurkar16]: ASCII lower case, no ASCII punctuation, no
 * articles as whole words, single spaces. In place; n falls. */
static void squad_normalise(buffer *b, const char *text) {
    static const char *const articles[] = {"a", "an", "the"};
    const i64 start = b->n;
    i64 word = start; /* where the present word begins */
    for (const char *p = text;; p++) {
        const char c = (char)(*p >= 'A' && *p <= 'Z' ? *p + 32 : *p);
        const bool space = !c || c == ' ' || (c >= 9 && c <= 13);
        if (!space) {
            if ((u8)c >= 128 || !strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", c))
                buffer_add(b, &c, 1);
            continue;
        }
        bool article = false;
        for (i64 i = 0; i < COUNT(articles) && b->n > word; i++)
            article |= !strcmp(b->p + word, articles[i]);
        if (article) b->n = word;
        else if (b->n > word) buffer_add(b, " ", 1);
        word = b->n;
        if (!c) break;
    }
    if (b->n > start) b->n--; /* the last word's space */
    buffer_add(b, "", 1);
}

/* Both texts, normalised, in one buffer behind each other. */
nxt_status nxt_score_exact_match(nxt_context *cx, const char *prediction, const char *reference,
                                 double *score) {
    buffer b = {.cx = cx};
    squad_normalise(&b, prediction);
    const i64 second = b.n;
    squad_normalise(&b, reference);
    nxt_status status = b.status;
    if (status == NXT_OK) *score = !strcmp(b.p, b.p + second);
    buffer_free(&b);
    return status;
}

/* ============================================================================
 * § 22  Checkpoints and runs
 *
 * A checkpoint is a directory that Hugging Face loads, plus optimizer.safetensors (the f32
 * masters and both moments: an f16 model file alone could not resume bit for bit) and
 * trainer_state.json. A run drives a trainer: it logs, evaluates and saves when that is due.
 *
 * What makes a resumed run the run that was never stopped, bit for bit:
 *   - weights are f32 masters, stored as they are, and so are the moments;
 *   - the order of examples and every random number are functions of the seed and the step;
 *   - doubles in trainer_state.json have 17 digits, which come back as the same double;
 *   - a fingerprint of data and options refuses a checkpoint of another run;
 *   - metrics.jsonl is written again from the checkpoint: rows that a killed process wrote
 *     after its last checkpoint belong to steps that will be done once more.
 *
 * A checkpoint is made in a temporary directory and renamed last, when all its files are on
 * the disk (§11), so one that has its final name is complete, whenever the process was
 * killed, and "last" needs no other test than the highest number.
 */

/* -- The optimizer's state ------------------------------------------------------------- */

/* Names are the parameter's with one of these in front; the last two are those of PyTorch's
 * Adam. Gradients are not stored: a step begins by clearing them. */
static const char *const state_prefix[] = {"master.", "exp_avg.", "exp_avg_sq."};

/* The array that a prefix stands for. */
static float *state_part(const nxt_trainer *t, const param *p, i64 part) {
    return part == 0 ? p->w.p : moment(t, p, part - 1);
}

/* A sum over the elements of a tensor that a change of any bit or place changes; of many
 * tensors, the sum of theirs. trainer_state.json keeps it, since a safetensors file says
 * nothing about its values, and a wrong bit in a moment would go unnoticed for ever. */
static u64 state_sum(const char *name, i64 at, const float *x, i64 n) {
    u64 sum = 0, key = 0;
    for (; *name; name++) key = mix64(key ^ (u8)*name);
    for (i64 i = 0; i < n; i++) sum += mix64(key + ((u64)(at + i) << 32 | float_bits(x[i])));
    return sum;
}

/* Masters and moments are on the device; they leave it a piece at a time. */
typedef struct state_reader {
    const nxt_context *cx;
    u64 sum;
} state_reader;

static nxt_status fetch_state(void *user, const tensor_plan *t, i64 at, i64 n, float *out) {
    state_reader *r = user;
    r->cx->ops->download(r->cx->device, out, (const float *)t->source + at,
                         (size_t)n * sizeof *out);
    r->sum += state_sum(t->name, at, out, n);
    return NXT_OK;
}

/* Three tensors for each trained parameter, and the step they belong to. */
static nxt_status save_optimizer(save *s, nxt_trainer *t, u64 *sum) {
    arena a = {.cx = t->cx};
    state_reader source = {.cx = t->cx};
    i64 n = 0;
    tensor_plan *plans = arena_get(&a, (size_t)t->m->param_count * 3 * sizeof *plans);
    const char *step = arena_print(&a, "%" PRId64, t->step);
    nxt_status status = plans && step ? NXT_OK : NXT_MEMORY;
    for (i64 i = 0; i < 3 * t->m->param_count && status == NXT_OK; i++) {
        const param *p = &t->m->params[i / 3];
        if (!p->grad.p) continue;
        const char *name = arena_print(&a, "%s%s", state_prefix[i % 3], p->name);
        plans[n++] = plan_tensor(name, F32, &p->w, state_part(t, p, i % 3));
        if (!name) status = NXT_MEMORY;
    }
    if (status == NXT_OK)
        status = safetensors_write(s, "optimizer.safetensors", &(tensor_set){
            .plans = plans, .count = n, .fetch = fetch_state, .user = &source,
            .metadata = &(text_pair){"step", step}, .metadata_count = 1});
    arena_free(&a);
    *sum = source.sum;
    return status;
}

/* One of them back from its file. */
static nxt_status load_part(nxt_trainer *t, const weights *w, const char *path, const param *p,
                            i64 part, u64 *sum) {
    arena a = {.cx = t->cx};
    const char *name = arena_print(&a, "%s%s", state_prefix[part], p->name);
    const tensor *x = name ? weights_find(w, name) : NULL;
    nxt_status status = NXT_OK;
    if (!name) status = NXT_MEMORY;
    else if (!x || x->type != F32 || x->count != p->w.rows * p->w.cols)
        status = fail(t->cx, NXT_SHAPE, "%s: \"%s\" is missing or has another size", path,
                      name);
    else {
        t->cx->ops->upload(t->cx->device, state_part(t, p, part), x->p,
                           (size_t)x->count * sizeof(float));
        float values[1024]; /* files promise no alignment */
        for (i64 at = 0, m; at < x->count; at += m) {
            m = min64(1024, x->count - at);
            load_floats(values, x->p, F32, at, m);
            *sum += state_sum(name, at, values, m);
        }
    }
    arena_free(&a);
    return status;
}

/* parts: how many of master, m, v to read; 1 takes back the weights alone. expected: the sum
 * of all three, in hexadecimal; NULL: not looked at. */
static nxt_status load_optimizer(nxt_trainer *t, const char *path, i64 parts,
                                 const char *expected) {
    char found[32];
    u64 sum = 0;
    weights w;
    TRY(weights_open_file(t->cx, path, &w));
    nxt_status status = NXT_OK;
    const char *step = weights_metadata(&w, "step");
    if (parts == 3 && (!step || strtoll(step, NULL, 10) != t->step))
        status = fail(t->cx, NXT_FORMAT, "%s: belongs to step %s, not %" PRId64, path,
                      step ? step : "(none)", t->step);
    for (i64 i = 0; i < parts * t->m->param_count && status == NXT_OK; i++)
        if (t->m->params[i / parts].grad.p)
            status = load_part(t, &w, path, &t->m->params[i / parts], i % parts, &sum);
    snprintf(found, sizeof found, "%016" PRIx64, sum);
    if (status == NXT_OK && expected && strcmp(found, expected))
        status = fail(t->cx, NXT_FORMAT, "%s: damaged: its values add up to %s, and to %s in "
                      "trainer_state.json", path, found, expected);
    weights_close(&w);
    return status;
}

/* What must be the same for a run to be the same: data, order, batches, schedule. The number
 * of steps only where the rate depends on it, so that a run with a constant rate may be
 * continued for longer. */
static u64 trainer_fingerprint(const nxt_trainer *t) {
    const nxt_dataset *d = t->data;
    const nxt_train_config *c = &t->c;
    const double numbers[] = {c->learning_rate, c->weight_decay, c->adam_beta1, c->adam_beta2,
                              c->adam_epsilon, c->max_grad_norm, (double)c->batch_size,
                              (double)c->gradient_accumulation_steps, (double)c->shuffle,
                              (double)c->schedule, (double)warmup_steps(t),
                              c->schedule < NXT_SCHEDULE_CONSTANT ? (double)t->total_steps : 0,
                              t->m->lora.alpha, t->m->lora.dropout, (double)t->m->lora.rslora};
    u64 h = mix64(c->seed);
    for (i64 i = 0; i < d->offset[d->info.examples]; i++)
        h = mix64(h ^ ((u64)(u32)d->ids[i] << 8 | d->trained[i]));
    for (i64 i = 0; i <= d->info.examples; i++) h = mix64(h ^ (u64)d->offset[i]);
    for (i64 i = 0; i < t->m->param_count; i++)
        if (t->m->params[i].frozen) h = mix64(h ^ (u64)i);
    for (i64 i = 0; i < COUNT(numbers); i++) {
        u64 bits;
        memcpy(&bits, &numbers[i], 8);
        h = mix64(h ^ bits);
    }
    return h;
}

/* -- trainer_state.json: Hugging Face's keys, and ours in an object of their own ------- */

/* What a run remembers between two steps: sums that are not yet in a row of metrics, and sums
 * of the whole run. Zeros for a bare trainer. The sums are part of a checkpoint because a row
 * may be half full when it is made; its mean would else be one of fewer steps. */
typedef struct run_state {
    double loss_sum, tokens, seconds, trained; /* since the last row of metrics */
    double total_loss, total_trained, total_seconds;
    double best;
    i64 best_step;  /* 0: none yet */
    bool keeps_best; /* its checkpoint is never deleted */
    i64 pending;    /* an evaluation was due at this step and was interrupted */
    i64 logging_steps, eval_steps, save_steps;
    double floats;  /* operations so far, as total_flos counts them */
    buffer history; /* rows of metrics.jsonl, joined by commas */
} run_state;

/* The keys of transformers' TrainerState, in its order (by name), with what a tool that plots
 * log_history expects; those that mean nothing here have its defaults. Numbers are written
 * with 17 digits, which is what a double needs to come back the same. Ours are
 *
 *     "neoxtune": {"skipped": 0, "pending": 0, "fingerprint": "090b54c9c42aebe7",
 *                  "optimizer": the sum of optimizer.safetensors, "5be3...",
 *                  "window": [loss, tokens, seconds, trained],
 *                  "total": [loss, trained, seconds]}
 */
static void write_trainer_state(buffer *b, const nxt_trainer *t, const run_state *r, u64 sum) {
    char best[64] = "null", checkpoint[64] = "null";
    if (r->best_step) { /* the best evaluation; a directory only where one is kept for it */
        snprintf(best, sizeof best, "%.17g", r->best);
        if (r->keeps_best)
            snprintf(checkpoint, sizeof checkpoint, "\"checkpoint-%" PRId64 "\"", r->best_step);
    }
    buffer_print(b, "{\n  \"best_global_step\": %" PRId64 ",\n  \"best_metric\": %s,\n"
                 "  \"best_model_checkpoint\": %s,\n", r->best_step, best, checkpoint);
    buffer_print(b, "  \"epoch\": %.17g,\n  \"eval_steps\": %" PRId64 ",\n  \"global_step\": %"
                 PRId64 ",\n  \"is_hyper_param_search\": false,\n  \"is_local_process_zero\": "
                 "true,\n  \"is_world_process_zero\": true,\n  \"log_history\": [",
                 (double)t->step / (double)t->steps_per_epoch, r->eval_steps, t->step);
    if (r->history.n) buffer_add(b, r->history.p, r->history.n);
    buffer_print(b, "],\n  \"logging_steps\": %" PRId64 ",\n  \"max_steps\": %" PRId64 ",\n"
                 "  \"num_input_tokens_seen\": %" PRId64 ",\n  \"num_train_epochs\": %" PRId64
                 ",\n  \"save_steps\": %" PRId64 ",\n  \"stateful_callbacks\": {},\n"
                 "  \"total_flos\": %.17g,\n  \"train_batch_size\": %" PRId64 ",\n"
                 "  \"trial_name\": null,\n  \"trial_params\": null,\n", r->logging_steps,
                 t->total_steps, t->num_tokens, ceil_div(t->total_steps, t->steps_per_epoch),
                 r->save_steps, r->floats, t->c.batch_size);
    buffer_print(b, "  \"neoxtune\": {\"skipped\": %" PRId64 ", \"pending\": %" PRId64 ", "
                 "\"fingerprint\": \"%016" PRIx64 "\", \"optimizer\": \"%016" PRIx64
                 "\", \"window\": [%.17g, %.17g, %.17g, "
                 "%.17g], \"total\": [%.17g, %.17g, %.17g]}\n}\n", t->skipped, r->pending,
                 trainer_fingerprint(t), sum, r->loss_sum, r->tokens, r->seconds, r->trained,
                 r->total_loss, r->total_trained, r->total_seconds);
}

/* Item i of an array of numbers; 0 beyond its end, as in a checkpoint of a bare trainer. */
static double json_item(const json *array, i64 i) {
    const json *v = array ? array->first : NULL;
    while (v && i-- > 0) v = v->next;
    return v ? v->number : 0;
}

/* The numbers back, in the same order. Refuses to go on from a checkpoint of another run: with
 * other data or another schedule the result would be neither the old run nor a new one, and
 * nobody would notice. */
static nxt_status read_trainer_state(nxt_trainer *t, const char *path, const json *state,
                                     run_state *r) {
    const json *ours = json_get(state, "neoxtune"), *window = json_get(ours, "window");
    const json *total = json_get(ours, "total"), *history = json_get(state, "log_history");
    char expected[32];
    snprintf(expected, sizeof expected, "%016" PRIx64, trainer_fingerprint(t));
    if (!ours) return fail(t->cx, NXT_FORMAT, "%s: not a checkpoint of neoxtune", path);
    if (strcmp(json_text(ours, "fingerprint", ""), expected))
        return fail(t->cx, NXT_ARGUMENT, "%s: the checkpoint was made with other data or other "
                    "training options; resuming would not continue that run", path);
    t->step = (i64)json_number(state, "global_step", 0);
    t->num_tokens = (i64)json_number(state, "num_input_tokens_seen", 0);
    t->skipped = (i64)json_number(ours, "skipped", 0);
    r->pending = (i64)json_number(ours, "pending", 0);
    r->best_step = (i64)json_number(state, "best_global_step", 0);
    r->best = json_number(state, "best_metric", 0);
    r->floats = json_number(state, "total_flos", 0);
    r->loss_sum = json_item(window, 0), r->tokens = json_item(window, 1);
    r->seconds = json_item(window, 2), r->trained = json_item(window, 3);
    r->total_loss = json_item(total, 0), r->total_trained = json_item(total, 1);
    r->total_seconds = json_item(total, 2);
    for (const json *row = history ? history->first : NULL; row; row = row->next) {
        if (r->history.n) buffer_text(&r->history, ",");
        json_write(&r->history, row, -1);
    }
    return r->history.status;
}

/* Model, optimizer, state. */
static nxt_status checkpoint_files(save *s, nxt_trainer *t, const run_state *r,
                                   const nxt_save_config *c) {
    buffer b = {.cx = t->cx};
    u64 sum;
    TRY(save_model_files(s, t->m, c));
    TRY(save_optimizer(s, t, &sum));
    write_trainer_state(&b, t, r, sum);
    return save_buffer(s, "trainer_state.json", &b);
}

/* As one directory that appears at once. */
static nxt_status checkpoint_save(nxt_trainer *t, const run_state *r, const char *dir,
                                  const nxt_save_config *c) {
    save s;
    TRY(save_begin(t->cx, dir, &s));
    return save_end(&s, checkpoint_files(&s, t, r, c));
}

/* State first: it says whether the rest is worth reading. */
static nxt_status checkpoint_load(nxt_trainer *t, run_state *r, const char *dir) {
    arena a = {.cx = t->cx};
    buffer text = {.cx = t->cx};
    json *state;
    const char *path = path_join(&a, dir, "trainer_state.json");
    const char *optimizer = path_join(&a, dir, "optimizer.safetensors");
    nxt_status status;
    TRY_GOTO(done, path && optimizer ? NXT_OK : NXT_MEMORY);
    TRY_GOTO(done, file_read(t->cx, path, (i64)4 << 30, &text));
    TRY_GOTO(done, json_parse(&a, path, text.p, text.n, &state));
    TRY_GOTO(done, read_trainer_state(t, path, state, r));
    status = load_optimizer(t, optimizer, 3,
                            json_text(json_get(state, "neoxtune"), "optimizer", NULL));
done:
    buffer_free(&text);
    arena_free(&a);
    return status;
}

nxt_status nxt_trainer_save(nxt_trainer *t, const char *dir) {
    const nxt_save_config c = nxt_save_config_default();
    return checkpoint_save(t, &(run_state){0}, dir, &c);
}

nxt_status nxt_trainer_resume(nxt_trainer *t, const char *dir) {
    run_state r = {.history.cx = t->cx};
    nxt_status status = checkpoint_load(t, &r, dir);
    buffer_free(&r.history);
    return status;
}

/* -- Runs ------------------------------------------------------------------------------ */

/* What a run adds to its trainer: the log, the checkpoints, the best evaluation so far. Its
 * output directory, in the end:
 *
 *     config.json, model.safetensors, tokenizer.json, ...    the final or the best model
 *     run.json                                               the options that made it
 *     metrics.jsonl                                          a row per line:
 *         {"step": 10, "epoch": 0.5, "loss": 2.31, "grad_norm": 1.2, "learning_rate": ...
 *         {"step": 10, "epoch": 0.5, "eval_loss": 2.4, "eval_perplexity": 11.02, ...
 *     checkpoint-10/                                         the same model files, and
 *         optimizer.safetensors, trainer_state.json          what resuming needs
 */
struct nxt_run {
    nxt_context *cx;
    nxt_trainer *t;
    nxt_run_config c;
    arena arena;
    run_state state;
    char *metrics_path;
    int metrics; /* file descriptor; -1: none */
    i64 saved_step;
};

nxt_run_config nxt_run_config_default(void) {
    return (nxt_run_config){.logging_steps = 1, .eval_steps = 500, .save_steps = 500,
                            .eval_batch_size = 8, .save_when = NXT_STEPS};
}

typedef struct metric {
    const char *name;
    double value;
} metric;

/* Appends a row to metrics.jsonl, in one write, so that who reads along sees whole rows, and
 * to the history that checkpoints keep. */
static nxt_status metrics_row(nxt_run *r, const metric *m, i64 count) {
    buffer b = {.cx = r->cx};
    for (i64 i = 0; i < count; i++) {
        buffer_print(&b, "%s\"%s\": ", i ? ", " : "{", m[i].name);
        json_write_number(&b, m[i].value);
    }
    buffer_text(&b, "}\n");
    /* a file of no save: rows are appended to what is there already, and may be lost */
    save_file log = {.s = &(save){.cx = r->cx}, .path = r->metrics_path, .fd = r->metrics};
    nxt_status status = b.status;
    if (status == NXT_OK) status = save_bytes(&log, b.p, b.n);
    if (status == NXT_OK) {
        if (r->state.history.n) buffer_text(&r->state.history, ",");
        buffer_add(&r->state.history, b.p, b.n - 1);
        status = r->state.history.status;
    }
    buffer_free(&b);
    return status;
}

/* The mean since the last row, over tokens: sum of losses by number of trained tokens, not the
 * mean of the steps' means, so that a short last batch weighs what it is worth. The
 * gradient's norm and the rate are those of the row's own step. */
static nxt_status log_step(nxt_run *r, nxt_run_info *info) {
    run_state *s = &r->state;
    const nxt_step_info *i = &info->step;
    info->logged = 1;
    info->mean_loss = s->trained > 0 ? s->loss_sum / s->trained : NAN; /* null: all skipped */
    info->tokens_per_second = s->seconds > 0 ? s->tokens / s->seconds : 0;
    s->loss_sum = s->tokens = s->seconds = s->trained = 0;
    const metric row[] = {
        {"step", (double)i->step}, {"epoch", i->epoch}, {"loss", info->mean_loss},
        {"grad_norm", i->grad_norm}, {"learning_rate", i->learning_rate},
        {"tokens_per_second", info->tokens_per_second}, {"num_tokens", (double)i->num_tokens}};
    return metrics_row(r, row, COUNT(row));
}

/* After a step: is it time? An epoch's last step ends it, and so does the run's last. A pure
 * function of the step, so a resumed run does the same things at the same steps. */
static bool is_due(const nxt_run *r, nxt_when when, i64 every) {
    const i64 step = r->t->step;
    if (when == NXT_STEPS) return every > 0 && step % every == 0;
    return when == NXT_EPOCH
           && (step % r->t->steps_per_epoch == 0 || step == r->t->total_steps);
}

/* Until it is over the evaluation is pending: a checkpoint of an interrupted run says so,
 * and the resumed run catches up on it. So the rows of metrics.jsonl are the same, whether a
 * run was stopped in an evaluation or not. A loss that is not a number is never the best. */
static nxt_status evaluate_run(nxt_run *r, nxt_run_info *info) {
    nxt_eval_info *e = &info->eval;
    run_state *s = &r->state;
    s->pending = 1;
    TRY(nxt_evaluate(r->t->m, r->c.eval_data, r->c.eval_batch_size, e));
    s->pending = 0;
    info->evaluated = 1;
    const bool kept = !r->c.load_best_model_at_end /* else only what is saved can be loaded */
                      || is_due(r, r->c.save_when, r->c.save_steps);
    if (kept && isfinite(e->loss) && (!s->best_step || e->loss < s->best))
        s->best = e->loss, s->best_step = r->t->step;
    const metric row[] = {
        {"step", (double)r->t->step},
        {"epoch", (double)r->t->step / (double)r->t->steps_per_epoch}, {"eval_loss", e->loss},
        {"eval_perplexity", e->perplexity}, {"eval_runtime", e->seconds},
        {"eval_samples_per_second", (double)e->examples / fmax(e->seconds, 1e-9)}};
    return metrics_row(r, row, COUNT(row));
}

/* The numbers of the checkpoints in a directory, rising. Names that only begin like one
 * (temporary ones) do not count, and neither does a directory that is not there. */
static nxt_status list_checkpoints(nxt_context *cx, const char *dir, i64 **steps, i64 *count) {
    i64 capacity = 0;
    *steps = NULL, *count = 0;
    DIR *d = opendir(dir);
    if (!d) return errno == ENOENT ? NXT_OK : fail_errno(cx, dir, "open");
    nxt_status status = NXT_OK;
    for (const struct dirent *e; status == NXT_OK && (e = readdir(d));) {
        char *end;
        if (strncmp(e->d_name, "checkpoint-", 11) || e->d_name[11] < '0' || e->d_name[11] > '9')
            continue;
        i64 step = strtoll(e->d_name + 11, &end, 10);
        if (*end) continue;
        status = mem_grow(cx, steps, *count, *count + 1, &capacity, sizeof **steps);
        if (status != NXT_OK) break;
        i64 i = (*count)++; /* insertion keeps them sorted: there are a handful */
        for (; i > 0 && (*steps)[i - 1] > step; i--) (*steps)[i] = (*steps)[i - 1];
        (*steps)[i] = step;
    }
    closedir(d);
    return status;
}

static const char *checkpoint_path(arena *a, const nxt_run *r, i64 step) {
    return arena_print(a, "%s/checkpoint-%" PRId64, r->c.output_dir, step);
}

/* Deletes the oldest checkpoints until `keep` are left, never the best one and never the one
 * just made. */
static nxt_status rotate(nxt_run *r, i64 keep) {
    i64 *steps, count;
    arena a = {.cx = r->cx};
    nxt_status status = list_checkpoints(r->cx, r->c.output_dir, &steps, &count);
    i64 extra = status == NXT_OK ? count - keep : 0;
    for (i64 i = 0; i < count && extra > 0; i++) {
        const bool best = r->c.load_best_model_at_end && steps[i] == r->state.best_step;
        const char *path = checkpoint_path(&a, r, steps[i]);
        if (!path || steps[i] == r->saved_step || best) continue;
        remove_tree(AT_FDCWD, path);
        extra--;
    }
    arena_free(&a);
    mem_drop(r->cx, steps);
    return status;
}

static nxt_save_config save_config_of(const nxt_run *r) {
    nxt_save_config c = nxt_save_config_default();
    c.dtype = r->c.dtype, c.tokenizer = r->c.tokenizer;
    return c;
}

nxt_status nxt_run_checkpoint(nxt_run *r, nxt_run_info *info) {
    arena a = {.cx = r->cx};
    snprintf(info->checkpoint, sizeof info->checkpoint, "checkpoint-%" PRId64, r->t->step);
    const char *dir = checkpoint_path(&a, r, r->t->step);
    const nxt_save_config c = save_config_of(r);
    nxt_status status = dir ? checkpoint_save(r->t, &r->state, dir, &c) : NXT_MEMORY;
    arena_free(&a);
    TRY(status);
    info->saved = 1;
    r->saved_step = r->t->step;
    return r->c.save_total_limit > 0 ? rotate(r, r->c.save_total_limit) : NXT_OK;
}

/* In this order: a checkpoint then contains the rows and the evaluation of its own step. A
 * skipped step has no loss that could be averaged; its tokens and its time count.
 *
 * Floating-point operations are those of Hugging Face's total_flos: 6 for every token and
 * parameter (§24 has the reason), input embedding left out, since it is a lookup. */
nxt_status nxt_run_step(nxt_run *r, nxt_run_info *info) {
    run_state *s = &r->state;
    *info = (nxt_run_info){0};
    if (s->pending && r->c.eval_data) TRY(evaluate_run(r, info));
    TRY(nxt_trainer_step(r->t, &info->step));
    const nxt_step_info *i = &info->step;
    const double loss = i->skipped ? 0 : i->loss * (double)i->trained_tokens;
    const double trained = i->skipped ? 0 : (double)i->trained_tokens;
    s->loss_sum += loss, s->trained += trained;
    s->total_loss += loss, s->total_trained += trained;
    s->tokens += (double)i->tokens, s->seconds += i->seconds, s->total_seconds += i->seconds;
    s->floats += 6 * (double)i->tokens
                 * (double)(r->t->m->elements - r->t->m->s.V * r->t->m->s.C);
    if (is_due(r, NXT_STEPS, r->c.logging_steps) || nxt_trainer_done(r->t))
        TRY(log_step(r, info));
    if (r->c.eval_data && is_due(r, r->c.eval_when, r->c.eval_steps))
        TRY(evaluate_run(r, info));
    if (is_due(r, r->c.save_when, r->c.save_steps)) TRY(nxt_run_checkpoint(r, info));
    return NXT_OK;
}

/* The weights of the best checkpoint so far; *path is NULL when none was made or none is
 * wanted. */
static nxt_status best_weights(nxt_run *r, const char **path) {
    *path = NULL;
    if (!r->c.load_best_model_at_end || !r->state.best_step) return NXT_OK;
    *path = arena_print(&r->arena, "%s/checkpoint-%" PRId64 "/optimizer.safetensors",
                        r->c.output_dir, r->state.best_step);
    return *path ? NXT_OK : NXT_MEMORY;
}

/* The last row's names and meanings are those of Hugging Face's train_metrics. Samples count
 * whole epochs exactly and a broken-off one by its share of steps. */
nxt_status nxt_run_finish(nxt_run *r) {
    const run_state *s = &r->state;
    const nxt_trainer *t = r->t;
    const nxt_save_config c = save_config_of(r);
    const char *best;
    if (s->pending && r->c.eval_data) TRY(evaluate_run(r, &(nxt_run_info){0}));
    TRY(best_weights(r, &best));
    if (best && r->state.best_step != t->step) TRY(load_optimizer(r->t, best, 1, NULL));
    TRY(nxt_model_save(t->m, r->c.output_dir, &c));
    const double seconds = fmax(s->total_seconds, 1e-9), steps = (double)t->step;
    const double samples = steps * (double)t->data->info.examples / (double)t->steps_per_epoch;
    const metric row[] = {
        {"train_runtime", s->total_seconds}, {"train_samples_per_second", samples / seconds},
        {"train_steps_per_second", steps / seconds},
        {"train_loss", s->total_trained > 0 ? s->total_loss / s->total_trained : 0},
        {"total_flos", s->floats}};
    return metrics_row(r, row, COUNT(row));
}

void nxt_run_destroy(nxt_run *r) {
    if (!r) return;
    nxt_context *cx = r->cx;
    if (r->metrics >= 0) close(r->metrics);
    buffer_free(&r->state.history);
    arena_free(&r->arena);
    mem_drop(cx, r);
}

/* A run that is resumed at a step had perhaps logged later ones before it was killed. The
 * history has its rows joined by commas, the file one on a line; numbers and fixed names are
 * all a row holds, so its braces can be counted. */
static nxt_status rewrite_metrics(nxt_run *r) {
    buffer b = {.cx = r->cx};
    const char *row = r->state.history.p;
    for (int depth = 0; row && *row; row++) {
        depth += (*row == '{') - (*row == '}');
        buffer_add(&b, *row == ',' && depth == 0 ? "\n" : row, 1);
    }
    if (b.n) buffer_text(&b, "\n");
    nxt_status status = b.status;
    if (status == NXT_OK) status = file_replace(r->cx, r->metrics_path, b.p, b.n);
    buffer_free(&b);
    return status;
}

/* What a killed process left of a save: `<name>.tmp-<process>-<n>` (§11). */
static void remove_rests(const char *dir) {
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d));) {
        const char *mark = strstr(e->d_name, ".tmp-");
        char *end = NULL;
        const long process = mark ? strtol(mark + 5, &end, 10) : 0;
        const bool ours = process > 0 && *end == '-' && !end[1 + strspn(end + 1, "0123456789")];
        if (ours && kill((pid_t)process, 0) != 0 && errno == ESRCH)
            remove_tree(dirfd(d), e->d_name);
    }
    if (d) closedir(d);
}

/* Directory, resumed state, log file. What can be refused is refused before metrics.jsonl and
 * run.json of an earlier run are replaced. */
static nxt_status run_open(nxt_run *r, const char *resume) {
    const char *best;
    if (resume) TRY(checkpoint_load(r->t, &r->state, resume));
    TRY(make_directories(r->cx, r->c.output_dir));
    remove_rests(r->c.output_dir);
    r->metrics_path = path_join(&r->arena, r->c.output_dir, "metrics.jsonl");
    const char *run_json = path_join(&r->arena, r->c.output_dir, "run.json");
    if (!r->metrics_path || !run_json) return NXT_MEMORY;
    if (!resume) TRY(rotate(r, 0)); /* an earlier run's checkpoints are not this run's */
    TRY(best_weights(r, &best));
    if (best && !path_exists(best)) /* needed at the end: better to miss it now */
        return fail(r->cx, NXT_ARGUMENT, "%s: the best checkpoint so far is not there; resume "
                    "in the output directory of the run that made it", best);
    TRY(rewrite_metrics(r));
    if (r->c.run_json)
        TRY(file_replace(r->cx, run_json, r->c.run_json, (i64)strlen(r->c.run_json)));
    r->metrics = open(r->metrics_path, O_WRONLY | O_APPEND | O_CLOEXEC);
    return r->metrics < 0 ? fail_errno(r->cx, r->metrics_path, "open") : NXT_OK;
}

/* The best of some evaluations can only be loaded if it was saved, hence the rule that saving
 * happens where evaluation does. */
static nxt_status check_run_config(const nxt_trainer *t, const nxt_run_config *c) {
    const bool best = c->load_best_model_at_end, by_steps = c->eval_when == NXT_STEPS;
    const bool evaluates = c->eval_data && c->eval_when != NXT_NEVER;
    dtype type = F32;
    if (!c->output_dir) return fail(t->cx, NXT_ARGUMENT, "a run needs an output directory");
    if (best && (c->eval_when == NXT_NEVER || c->eval_when != c->save_when
                 || (by_steps && c->save_steps % max64(1, c->eval_steps))))
        return fail(t->cx, NXT_ARGUMENT, "to load the best model at the end, saving must "
                    "happen where evaluation does: give both the same strategy and steps");
    if (evaluates && (c->eval_batch_size < 1 || !c->eval_data->info.trained_tokens))
        return fail(t->cx, NXT_ARGUMENT, "evaluation needs a batch size of at least 1 and a "
                    "token to predict");
    if (evaluates) TRY(check_dataset(t->m, c->eval_data));
    else if (best)
        return fail(t->cx, NXT_ARGUMENT,
                    "to load the best model at the end, held-out data is needed");
    return parse_dtype(t->cx, c->dtype, &type);
}

nxt_status nxt_run_create(nxt_run **out, nxt_trainer *t, const nxt_run_config *config,
                          const char *resume) {
    nxt_run *r;
    *out = NULL;
    TRY(check_run_config(t, config));
    TRY(mem_zero(t->cx, &r, 1, sizeof *r));
    r->cx = r->arena.cx = r->state.history.cx = t->cx;
    r->t = t, r->c = *config, r->metrics = -1;
    r->c.output_dir = arena_text(&r->arena, config->output_dir, strlen(config->output_dir));
    r->state.logging_steps = config->logging_steps;
    r->state.keeps_best = config->load_best_model_at_end;
    r->state.eval_steps = config->eval_steps, r->state.save_steps = config->save_steps;
    nxt_status status = r->c.output_dir ? run_open(r, resume) : NXT_MEMORY;
    if (status == NXT_OK) *out = r;
    else nxt_run_destroy(r);
    return status;
}

/* The highest number. */
nxt_status nxt_run_last_checkpoint(nxt_context *cx, const char *output_dir, char *path,
                                   size_t capacity) {
    i64 *steps, count;
    path[0] = 0;
    TRY(list_checkpoints(cx, output_dir, &steps, &count));
    if (count)
        snprintf(path, capacity, "%s/checkpoint-%" PRId64, output_dir, steps[count - 1]);
    mem_drop(cx, steps);
    return NXT_OK;
}

/* ============================================================================
 * § 23  Export (skip)
 *
 * A model as one file for other programs: safetensors in another type, or GGUF [GGUF], the
 * format of llama.cpp and of what is built on it. A GGUF holds all that is needed to run:
 *
 *     "GGUF", version 3, number of tensors, number of pairs
 *     pairs     key, type, value: sizes of the model, then the whole tokenizer
 *     tensors   name, dimensions (the fastest first), type, place in the data
 *     data      starting at, and each tensor starting at, a multiple of 32
 *
 * Its readers have one forward pass per architecture, with less freedom than ours. Values are
 * put where that pass expects them (below); what it could not compute is refused by name, for
 * a file that loads and answers nonsense is worse than none.
 */
#if !defined(NXT_NO_REPORT)

/* GGUF's numbers for the types of tensors and of whole files. Q8_0 stands for 32 values of a
 * row by their largest magnitude / 127, in f16, and 32 whole multiples of it: 8.5 bits each. */
enum { Q8_0 = 3, Q8_BLOCK = 32, GGUF_ALIGN = 32 };
static const struct gguf_kind {
    const char *name;
    u32 tensor, file;
    i64 block, bytes; /* values of a block; what they take */
} gguf_kinds[] = {[F32] = {"f32", 0, 0, 1, 4}, [F16] = {"f16", 1, 1, 1, 2},
                  [BF16] = {"bf16", 30, 32, 1, 2}, [Q8_0] = {"q8_0", 8, 7, Q8_BLOCK, 34}};

enum { GGUF_U32 = 4, GGUF_I32 = 5, GGUF_FLOAT = 6, GGUF_BOOL = 7, GGUF_TEXT = 8, GGUF_ARRAY = 9 };

static const char *const gguf_names[ROLES] = {
    [EMBED_W] = "token_embd.weight", [POSITION_W] = "position_embd.weight",
    [FINAL_NORM_W] = "output_norm.weight", [FINAL_NORM_B] = "output_norm.bias",
    [HEAD_W] = "output.weight", [NORM1_W] = "blk.%d.attn_norm.weight",
    [NORM1_B] = "blk.%d.attn_norm.bias", [QKV_W] = "blk.%d.attn_qkv.weight",
    [QKV_B] = "blk.%d.attn_qkv.bias", [Q_W] = "blk.%d.attn_q.weight",
    [Q_B] = "blk.%d.attn_q.bias", [K_W] = "blk.%d.attn_k.weight",
    [K_B] = "blk.%d.attn_k.bias", [V_W] = "blk.%d.attn_v.weight",
    [V_B] = "blk.%d.attn_v.bias", [OUT_W] = "blk.%d.attn_output.weight",
    [OUT_B] = "blk.%d.attn_output.bias", [NORM2_W] = "blk.%d.ffn_norm.weight",
    [NORM2_B] = "blk.%d.ffn_norm.bias", [GATE_W] = "blk.%d.ffn_gate.weight",
    [GATE_B] = "blk.%d.ffn_gate.bias", [UP_W] = "blk.%d.ffn_up.weight",
    [UP_B] = "blk.%d.ffn_up.bias", [DOWN_W] = "blk.%d.ffn_down.weight",
    [DOWN_B] = "blk.%d.ffn_down.bias",
};

/* A tensor of the file: (rows, cols), or a vector of `rows` values with cols 1. */
typedef struct gguf_tensor {
    char name[64];
    int kind;
    i64 rows, cols;
    bool vector;
    role role;
    float factor;        /* of the rows of q */
    const param *p;      /* NULL: `values`; and without those zeros */
    const float *values;
    i64 at;              /* its place in the data */
} gguf_tensor;

typedef struct gguf {
    nxt_context *cx;
    const nxt_model *m;
    merger *merger;      /* adds what adapters add */
    const char *architecture, *file;
    arena arena;
    int kind;            /* of matrices */
    i64 pairs;
    buffer head;         /* the pairs, later the list of tensors too */
    gguf_tensor *tensors;
    i64 count, capacity;
    bool neox, llama;    /* what is rearranged: see gguf_row */
} gguf;

/* -- pairs -------------------------------------------------------------------------------
 *
 *     07 00 00 00 00 00 00 00  "gpt2.xy"  04 00 00 00  0c 00 00 00
 *     length of the key        the key    a u32        12
 *
 * Texts have their length before them and no NUL behind; a list has the type of its items and
 * their number before it. */
/* The machine is little-endian (§1), and so is the file. */
static void put_number(buffer *b, u64 x, int bytes) { buffer_add(b, &x, bytes); }

static void put_string(buffer *b, const char *text, i64 n) {
    put_number(b, (u64)n, 8);
    buffer_add(b, text, n);
}

/* A key that begins with a dot is one of the architecture: ".block_count" becomes
 * "llama.block_count". */
static void put_key(gguf *g, const char *key, int type) {
    const char *prefix = *key == '.' ? g->architecture : "";
    put_number(&g->head, strlen(prefix) + strlen(key), 8);
    buffer_text(&g->head, prefix);
    buffer_text(&g->head, key);
    put_number(&g->head, (u64)type, 4);
    g->pairs++;
}

/* A number, truth or text under a key. Readers look for one type only: a size that came as a
 * 64-bit number would be refused. */
static void pair_u32(gguf *g, const char *key, i64 x) {
    put_key(g, key, GGUF_U32);
    put_number(&g->head, (u64)x, 4);
}

static void pair_float(gguf *g, const char *key, float x) {
    put_key(g, key, GGUF_FLOAT);
    put_number(&g->head, float_bits(x), 4);
}

static void pair_bool(gguf *g, const char *key, bool x) {
    put_key(g, key, GGUF_BOOL);
    put_number(&g->head, x, 1);
}

static void pair_text(gguf *g, const char *key, const char *text) {
    put_key(g, key, GGUF_TEXT);
    put_string(&g->head, text, (i64)strlen(text));
}

/* The beginning of a list; its `count` items follow. */
static void pair_array(gguf *g, const char *key, int type, i64 count) {
    put_key(g, key, GGUF_ARRAY);
    put_number(&g->head, (u64)type, 4);
    put_number(&g->head, (u64)count, 8);
}

/* -- the sizes --------------------------------------------------------------------------- */
/* The architecture's name there, and whether its pass computes this model. GELU is taken in both
 * forms, though that pass has the one with tanh alone: the error is that of a few f16 roundings,
 * the user is told, and nearly all GPT-NeoX models are of the other form. */
static nxt_status gguf_architecture(gguf *g) {
    static const char *const names[][2] = {{"gpt_neox", "gptneox"}, {"gpt2", "gpt2"},
                                           {"llama", "llama"}, {"qwen2", "qwen2"}};
    const shape *s = &g->m->s;
    const char *type = g->m->family->model_type;
    for (i64 i = 0; i < COUNT(names); i++)
        if (!strcmp(type, names[i][0])) g->architecture = names[i][1];
    if (!g->architecture)
        return fail(g->cx, NXT_UNSUPPORTED, "%s: GGUF has no architecture for %s (gpt_neox, "
                    "gpt2, llama and qwen2 have one): export safetensors", g->m->dir, type);
    g->neox = !strcmp(type, "gpt_neox");
    g->llama = !strcmp(type, "llama");
    const bool qwen = !strcmp(type, "qwen2"), rotary = s->pairs > 0;
    const struct { bool bad; const char *why; } rules[] = { /* ggml turns values in pairs */
        {s->gated ? s->act != NXT_SILU : s->act == NXT_SILU || s->act == NXT_RELU,
         "its activation"},
        {!g->neox && rotary && 2 * s->pairs != s->D, "rotary positions for a part of a head"},
        {g->neox && (s->rotary % 2 || s->D % 2), "rotary positions in heads of an odd size"},
        {!g->llama && s->rope_low > 0, "Llama 3's rotary scaling"},
        {qwen && q_width(s) != s->C, "a head_dim of its own"},
    };
    for (i64 i = 0; i < COUNT(rules); i++)
        if (rules[i].bad)
            return fail(g->cx, NXT_UNSUPPORTED, "%s: GGUF's %s does not have %s",
                        g->m->dir, g->architecture, rules[i].why);
    return NXT_OK;
}

/* What llama.cpp's own converter writes, and rope.freq_base also for GPT-NeoX, which it
 * forgets there. */
static void put_sizes(gguf *g) {
    const shape *s = &g->m->s;
    pair_text(g, "general.architecture", g->architecture);
    pair_text(g, "general.type", "model");
    pair_u32(g, "general.file_type", gguf_kinds[g->kind].file);
    pair_u32(g, "general.quantization_version", 2);
    pair_u32(g, ".context_length", s->T);
    pair_u32(g, ".embedding_length", s->C);
    pair_u32(g, ".block_count", s->L);
    pair_u32(g, ".feed_forward_length", s->F);
    pair_u32(g, ".attention.head_count", s->H);
    pair_u32(g, ".vocab_size", s->V);
    pair_float(g, s->norm == NXT_RMS_NORM ? ".attention.layer_norm_rms_epsilon"
                                          : ".attention.layer_norm_epsilon", s->eps);
    if (g->neox) pair_bool(g, ".use_parallel_residual", s->parallel);
    if (s->gated) pair_u32(g, ".attention.head_count_kv", s->G);
    if (json_number(g->m->config, "head_dim", 0) > 0) {
        pair_u32(g, ".attention.key_length", s->D);
        pair_u32(g, ".attention.value_length", s->D);
    }
    if (!s->pairs) return;
    pair_u32(g, ".rope.dimension_count", s->rotary);
    if (s->gated || s->rope_base < 10000 || s->rope_base > 10000)
        pair_float(g, ".rope.freq_base", s->rope_base);
    if (s->rope_low > 0 || (s->rope_factor >= 1 && s->rope_factor <= 1)) return;
    pair_text(g, ".rope.scaling.type", "linear");
    pair_float(g, ".rope.scaling.factor", s->rope_factor);
}

/* -- the tokenizer ------------------------------------------------------------------------
 *
 * Two kinds of BPE, as their files say: byte-level, whose merges GGUF takes as they are; and
 * SentencePiece's, which llama.cpp redoes from scores: of all neighbours that make a piece it
 * merges those whose piece scores highest. The files rank pairs, and all pairs that make one
 * piece stand together; so minus the rank of a piece's first pair, as its score, gives the
 * same order:
 *
 *     rank 0   b c       "bc"   scores -1
 *     rank 1   a b       "ab"   scores -2          a b c:  bc is merged first, by rank as by
 *     rank 2   ab c      "abc"  scores -3                  score; then a bc
 *     rank 3   a bc
 *
 * Form C is not for us to apply: a reader of GGUF does without, and so may cut an accent that
 * was typed as a character of its own otherwise. */
typedef enum piece_type {
    PIECE_NONE, PIECE_NORMAL, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER, PIECE_UNUSED, PIECE_BYTE
} piece_type;

typedef struct gguf_token {
    const char *text;
    i64 n;
    piece_type type; /* GGUF's number */
    float score;
} gguf_token;

typedef struct gguf_vocab {
    gguf *g;
    const char *path;                /* of the main file, for errors */
    const json *root, *config, *map; /* tokenizer.json and its two companions, or NULL */
    gguf_token *id;                  /* (V) */
    const gguf_token **order;        /* the same by text */
    buffer merges;
    i64 merge_count;
    const gguf_token *last;          /* what the merge before made */
    bool scored, mixed; /* SentencePiece's; its merges are not in the order of scores */
} gguf_vocab;

/* By bytes, a beginning before what it begins: texts may hold NUL. */
static int piece_order(const void *a, const void *b) {
    const gguf_token *x = *(const gguf_token *const *)a;
    const gguf_token *y = *(const gguf_token *const *)b;
    const int c = memcmp(x->text, y->text, (size_t)min64(x->n, y->n));
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

/* The id of a text; -1: there is none. */
static i64 piece_find(const gguf_vocab *t, const char *text, i64 n) {
    const gguf_token key = {.text = text, .n = n}, *k = &key;
    const gguf_token *const *found =
        bsearch(&k, t->order, (size_t)t->g->m->s.V, sizeof k, piece_order);
    return found ? *found - t->id : -1;
}

/* An added token takes the place of a piece with its id, but not that of another text. */
static nxt_status piece_set(gguf_vocab *t, const char *text, i64 n, const json *number,
                            piece_type type) {
    i64 id = -1;
    if (!json_integer(number, &id) || id < 0 || id >= t->g->m->s.V)
        return fail(t->g->cx, NXT_FORMAT, "%s: token \"%.60s\" has no id below %" PRId64
                    ", the vocabulary of the model", t->path, text, t->g->m->s.V);
    gguf_token *p = &t->id[id];
    if (p->text && (type == PIECE_NORMAL || p->n != n || memcmp(p->text, text, (size_t)n)))
        return fail(t->g->cx, NXT_FORMAT, "%s: tokens \"%.60s\" and \"%.60s\" have one id",
                    t->path, p->text, text);
    if (p->type != PIECE_UNKNOWN) *p = (gguf_token){text, n, type, 0};
    return NXT_OK;
}

/* "<0x0A>": SentencePiece's piece for a byte that no other piece covers. */
static bool is_byte_piece(const json *v) {
    return v->key_length == 6 && !strncmp(v->key, "<0x", 3) && v->key[5] == '>';
}

/* The vocabulary, then the tokens by decree, then texts of their own for the rows of the model's
 * vocabulary that the tokenizer does not use: sizes are padded to round numbers. */
static nxt_status pieces_read(gguf_vocab *t) {
    const json *model = json_get(t->root, "model"), *vocab = json_get(model, "vocab");
    const json *added = json_get(t->root, "added_tokens");
    const char *kind = json_text(model, "type", "BPE"), *unk = json_text(model, "unk_token", NULL);
    arena *a = &t->g->arena;
    if (strcmp(kind, "BPE") || !vocab || vocab->kind != JSON_OBJECT)
        return fail(t->g->cx, NXT_UNSUPPORTED, "%s: a model of type \"%s\", not BPE with a "
                    "vocabulary", t->path, kind);
    t->scored = json_bool(model, "byte_fallback", false);
    t->id = arena_get(a, (size_t)t->g->m->s.V * sizeof *t->id);
    t->order = arena_get(a, (size_t)t->g->m->s.V * sizeof *t->order);
    if (!t->id || !t->order) return NXT_MEMORY;
    for (const json *v = vocab->first; v; v = v->next)
        TRY(piece_set(t, v->key, v->key_length, v,
                      t->scored && is_byte_piece(v) ? PIECE_BYTE
                      : t->scored && unk && !strcmp(v->key, unk) ? PIECE_UNKNOWN : PIECE_NORMAL));
    for (const json *v = added ? added->first : NULL; v; v = v->next) {
        const json *text = json_get(v, "content");
        if (!text || text->kind != JSON_STRING)
            return fail(t->g->cx, NXT_FORMAT, "%s: an added token without text", t->path);
        TRY(piece_set(t, text->text, text->length, json_get(v, "id"),
                      json_bool(v, "special", false) ? PIECE_CONTROL : PIECE_USER));
    }
    for (i64 i = 0; i < t->g->m->s.V; i++) {
        gguf_token *p = &t->id[i];
        t->order[i] = p;
        if (p->text) continue;
        p->text = arena_print(a, "[PAD%" PRId64 "]", i);
        if (!p->text) return NXT_MEMORY;
        p->n = (i64)strlen(p->text), p->type = PIECE_UNUSED;
    }
    return NXT_OK;
}

/* Texts are the keys of llama.cpp's own table, which stops the program when two are equal. */
static nxt_status pieces_sort(gguf_vocab *t) {
    const i64 V = t->g->m->s.V;
    qsort(t->order, (size_t)V, sizeof *t->order, piece_order);
    for (i64 i = 1; i < V; i++)
        if (!piece_order(&t->order[i - 1], &t->order[i]))
            return fail(t->g->cx, NXT_FORMAT, "%s: tokens %" PRId64 " and %" PRId64
                        " have one text, \"%.60s\"", t->path, (i64)(t->order[i - 1] - t->id),
                        (i64)(t->order[i] - t->id), t->order[i]->text);
    return NXT_OK;
}

/* One merge: left and right, of a rank that is its number. Byte-level merges are copied as one
 * text, the form of older files; the others leave a score at what they make. */
static nxt_status add_merge(gguf_vocab *t, const char *left, i64 n, const char *right, i64 m) {
    buffer both = {.cx = t->g->cx};
    const float rank = (float)t->merge_count++;
    if (!t->scored) {
        put_number(&t->merges, (u64)(n + 1 + m), 8);
        buffer_add(&t->merges, left, n);
        buffer_text(&t->merges, " ");
        buffer_add(&t->merges, right, m);
        return t->merges.status;
    }
    buffer_add(&both, left, n);
    buffer_add(&both, right, m);
    nxt_status status = both.status;
    const i64 id = status == NXT_OK ? piece_find(t, both.p, both.n) : -1;
    if (status == NXT_OK && id < 0)
        status = fail(t->g->cx, NXT_FORMAT, "%s: merge %" PRId64 " makes \"%.60s\", which is "
                      "no token", t->path, t->merge_count - 1, both.p);
    buffer_free(&both);
    TRY(status);
    gguf_token *p = &t->id[id];
    t->mixed |= p->score < 0 && p != t->last;
    if (p->score >= 0) p->score = -1 - rank;
    t->last = p;
    return NXT_OK;
}

/* A merge is "a b", or ["a", "b"] in newer files. The space between is looked for behind the
 * first character, as llama.cpp does. */
static nxt_status merges_read(gguf_vocab *t) {
    const json *merges = json_get(json_get(t->root, "model"), "merges");
    for (const json *v = merges ? merges->first : NULL; v; v = v->next) {
        const json *right = v->first ? v->first->next : NULL;
        const char *space = v->kind == JSON_STRING && v->length > 1
                                ? memchr(v->text + 1, ' ', (size_t)v->length - 1) : NULL;
        if (space)
            TRY(add_merge(t, v->text, space - v->text, space + 1,
                          v->length - 1 - (space - v->text)));
        else if (right && v->first->kind == JSON_STRING && right->kind == JSON_STRING
                 && !memchr(v->first->text, ' ', (size_t)v->first->length))
            TRY(add_merge(t, v->first->text, v->first->length, right->text, right->length));
        else
            return fail(t->g->cx, NXT_FORMAT, "%s: merge %" PRId64 " is no pair of tokens",
                        t->path, t->merge_count);
    }
    if (t->mixed)
        say(t->g->cx, NXT_LOG_WARNING, "%s: merges of one token do not stand together: GGUF "
            "readers may cut some words otherwise", t->path);
    return NXT_OK;
}

/* How tokenizer.json writes its stations (§13): normaliser, pre-tokenizer and the rest are one
 * step, or a list of steps. This is the first of that type. */
static const json *find_step(const json *step, const char *list, const char *type) {
    if (!strcmp(json_text(step, "type", ""), type)) return step;
    const json *steps = json_get(step, list);
    for (const json *v = steps ? steps->first : NULL; v; v = v->next)
        if (!strcmp(json_text(v, "type", ""), type)) return v;
    return NULL;
}

/* Whether a normaliser has no steps but of these two types. */
static bool only_steps(const json *step, const char *one, const char *two) {
    const json *steps = json_get(step, "normalizers");
    if (!step || step->kind == JSON_NULL) return true;
    const json *v = steps ? steps->first : step;
    for (; v; v = steps ? v->next : NULL) {
        const char *type = json_text(v, "type", "");
        if (strcmp(type, one) && strcmp(type, two)) return false;
    }
    return true;
}

/* llama.cpp knows ways to cut text into words by name, where tokenizer.json has the pattern.
 * "olmo" is GPT-2's for a tokenizer that also brings text into form C, as GPT-NeoX's does. */
static nxt_status find_cutter(const gguf_vocab *t, const char **pre) {
    const json *step = json_get(t->root, "pre_tokenizer");
    const json *bytes = find_step(step, "pretokenizers", "ByteLevel");
    const json *split = find_step(step, "pretokenizers", "Split");
    const json *list = json_get(step, "pretokenizers");
    const char *regex = json_text(json_get(split, "pattern"), "Regex", "");
    const bool form_c = find_step(json_get(t->root, "normalizer"), "normalizers", "NFC") != NULL;
    const i64 steps = (bytes != NULL) + (split != NULL), all = list ? list->count : steps;
    *pre = NULL;
    if (!only_steps(json_get(t->root, "normalizer"), t->scored ? "Prepend" : "NFC",
                    t->scored ? "Replace" : "NFC"))
        return fail(t->g->cx, NXT_UNSUPPORTED, "%s: GGUF readers do not have this normalizer",
                    t->path);
    if (t->scored) return *pre = "default", NXT_OK;
    if (bytes && !split && json_bool(bytes, "use_regex", true)) *pre = form_c ? "olmo" : "gpt-2";
    for (i64 i = 0; split && bytes && i < COUNT(split_patterns); i++)
        if (!strcmp(regex, split_patterns[i].pattern)) *pre = split_patterns[i].gguf;
    if (*pre && steps == all && !json_bool(bytes, "add_prefix_space", true)) return NXT_OK;
    return fail(t->g->cx, NXT_UNSUPPORTED, "%s: GGUF readers have no name for this pre-tokenizer"
                " (those of GPT-2, GPT-NeoX, Llama 3 and Qwen2 are known)", t->path);
}

/* SentencePiece's tokenizers put a space before the text, in one of two spellings. */
static bool adds_space(const json *root) {
    const json *meta = find_step(json_get(root, "pre_tokenizer"), "pretokenizers", "Metaspace");
    const char *old = json_bool(meta, "add_prefix_space", true) ? "always" : "never";
    if (find_step(json_get(root, "normalizer"), "normalizers", "Prepend")) return true;
    return meta && strcmp(json_text(meta, "prepend_scheme", old), "never");
}

/* Whether texts begin with the bos token: by the program's own setting, else by the template
 * that tokenizer.json applies. */
static bool adds_bos(const gguf_vocab *t) {
    const json *own = json_get(t->config, "add_bos_token");
    const json *post = find_step(json_get(t->root, "post_processor"), "processors",
                                 "TemplateProcessing");
    const json *single = json_get(post, "single");
    if (own && (own->kind == JSON_TRUE || own->kind == JSON_FALSE)) return own->kind == JSON_TRUE;
    return single && json_get(single->first, "SpecialToken");
}

/* A special token by its name in the companions, else by its number in config.json. Of those that
 * nobody names, none is written; llama.cpp then takes 11 for bos and eos, or Llama's 1 and 2. */
static void put_special(const gguf_vocab *t, const char *name, const char *key) {
    const json *const from[] = {t->config, t->map};
    char member[32];
    i64 id = -1;
    snprintf(member, sizeof member, "%s_token", name);
    for (i64 i = 0; i < COUNT(from) && id < 0; i++) {
        const json *v = json_get(from[i], member), *text = json_get(v, "content");
        if (!text) text = v;
        if (text && text->kind == JSON_STRING) id = piece_find(t, text->text, text->length);
    }
    const char *unk = json_text(json_get(t->root, "model"), "unk_token", NULL);
    if (id < 0 && unk && !strcmp(name, "unk")) id = piece_find(t, unk, (i64)strlen(unk));
    snprintf(member, sizeof member, "%s_token_id", name);
    const json *number = json_get(t->g->m->config, member);
    if (number && number->kind == JSON_ARRAY) number = number->first;
    if (id < 0 && number) (void)json_integer(number, &id);
    if (id >= 0 && id < t->g->m->s.V) pair_u32(t->g, key, id);
}

/* The tokenizer as pairs. What a token is (its type) tells a reader whether to look for its text
 * before cutting into words (3, 4), to print it (not 3), or to undo the alphabet of bytes (1). */
static nxt_status put_pieces(const gguf_vocab *t, const char *pre) {
    gguf *g = t->g;
    const i64 V = g->m->s.V;
    pair_text(g, "tokenizer.ggml.model", t->scored ? "llama" : "gpt2");
    pair_text(g, "tokenizer.ggml.pre", pre);
    pair_array(g, "tokenizer.ggml.tokens", GGUF_TEXT, V);
    for (i64 i = 0; i < V; i++) put_string(&g->head, t->id[i].text, t->id[i].n);
    pair_array(g, "tokenizer.ggml.token_type", GGUF_I32, V);
    for (i64 i = 0; i < V; i++) put_number(&g->head, (u64)t->id[i].type, 4);
    if (t->scored) {
        pair_array(g, "tokenizer.ggml.scores", GGUF_FLOAT, V);
        for (i64 i = 0; i < V; i++) put_number(&g->head, float_bits(t->id[i].score), 4);
        pair_bool(g, "tokenizer.ggml.add_space_prefix", adds_space(t->root));
    } else {
        pair_array(g, "tokenizer.ggml.merges", GGUF_TEXT, t->merge_count);
        buffer_add(&g->head, t->merges.p, t->merges.n);
    }
    put_special(t, "bos", "tokenizer.ggml.bos_token_id");
    put_special(t, "eos", "tokenizer.ggml.eos_token_id");
    put_special(t, "unk", "tokenizer.ggml.unknown_token_id");
    put_special(t, "pad", "tokenizer.ggml.padding_token_id");
    pair_bool(g, "tokenizer.ggml.add_bos_token", adds_bos(t));
    const char *chat = json_text(t->config, "chat_template", NULL);
    if (chat) pair_text(g, "tokenizer.chat_template", chat);
    return g->head.status;
}

/* GPT-2's two files as the tree of a tokenizer.json: written together, then parsed. */
static nxt_status read_two_files(gguf_vocab *t, const char *vocab, const char *merges,
                                 json **root) {
    buffer all = {.cx = t->g->cx}, lines = all;
    buffer_text(&all, "{\"model\": {\"vocab\": ");
    nxt_status status = file_read(all.cx, vocab, MOST_BYTES, &all);
    if (status == NXT_OK) status = file_read(all.cx, merges, MOST_BYTES, &lines);
    buffer_text(&all, ", \"merges\": [");
    for (i64 at = 0, end, n = 0; status == NXT_OK && at < lines.n; at = end + 1) {
        const char *feed = memchr(lines.p + at, '\n', (size_t)(lines.n - at));
        end = feed ? feed - lines.p : lines.n;
        const i64 length = end - at - (end > at && lines.p[end - 1] == '\r');
        if (!length || (at == 0 && !strncmp(lines.p, "#version", 8))) continue;
        if (n++) buffer_text(&all, ", ");
        json_write_text(&all, lines.p + at, length);
    }
    buffer_text(&all, "]}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                "\"add_prefix_space\": false}}");
    if (status == NXT_OK) status = all.status;
    if (status == NXT_OK) status = json_parse(&t->g->arena, vocab, all.p, all.n, root);
    buffer_free(&all);
    buffer_free(&lines);
    return status;
}

/* The files of a directory, or of one tokenizer.json and what lies beside it. root stays NULL
 * when there are none. */
static nxt_status open_pieces(gguf_vocab *t, const char *path) {
    static const char *const companions[] = {"tokenizer_config.json", "special_tokens_map.json"};
    arena *a = &t->g->arena;
    json *root = NULL, *beside[2] = {NULL, NULL};
    const bool file = ends_with(path, ".json");
    const char *dir = file ? path_parent(a, path) : path;
    t->path = file ? path : path_join(a, path, "tokenizer.json");
    const char *vocab = dir ? path_join(a, dir, "vocab.json") : NULL;
    const char *merges = dir ? path_join(a, dir, "merges.txt") : NULL;
    if (!t->path || !vocab || !merges) return NXT_MEMORY;
    if (file || path_exists(t->path)) TRY(json_read(a, t->path, MOST_BYTES, &root));
    else if (path_exists(vocab) && path_exists(merges)) {
        t->path = vocab;
        TRY(read_two_files(t, vocab, merges, &root));
    }
    for (i64 i = 0; i < COUNT(companions); i++) {
        const char *name = path_join(a, dir, companions[i]);
        if (!name) return NXT_MEMORY;
        if (path_exists(name)) TRY(json_read(a, name, MOST_BYTES, &beside[i]));
    }
    t->root = root, t->config = beside[0], t->map = beside[1];
    return NXT_OK;
}

/* From `wanted`, or from the model's directory, which need not have one: such a model is run
 * by ids. */
static nxt_status put_tokenizer(gguf *g, const char *wanted) {
    const char *path = wanted ? wanted : g->m->dir;
    gguf_vocab t = {.g = g, .merges.cx = g->cx};
    const char *pre = NULL;
    nxt_status status = open_pieces(&t, path);
    if (status == NXT_OK && !t.root && wanted)
        status = fail(g->cx, NXT_IO, "%s: no tokenizer.json here, nor vocab.json with merges.txt",
                      path);
    else if (status == NXT_OK && !t.root) {
        say(g->cx, NXT_LOG_WARNING, "%s: no tokenizer: %s will know ids only", path, g->file);
        pair_text(g, "tokenizer.ggml.model", "none");
    } else if (status == NXT_OK) {
        status = pieces_read(&t);
        if (status == NXT_OK) status = pieces_sort(&t);
        if (status == NXT_OK) status = merges_read(&t);
        if (status == NXT_OK) status = find_cutter(&t, &pre);
        if (status == NXT_OK) status = put_pieces(&t, pre);
    }
    buffer_free(&t.merges);
    arena_free(&g->arena);
    return status;
}

/* -- the tensors -------------------------------------------------------------------------- */
/* Appends a tensor, behind the one before it in the data. A vector stays f32, as do positions,
 * which are added to f32; rows that do not fill blocks are f16. */
static nxt_status add_tensor(gguf *g, gguf_tensor t) {
    const bool exact = t.vector || t.role == POSITION_W;
    t.kind = exact ? (int)F32 : g->kind == Q8_0 && t.cols % Q8_BLOCK ? (int)F16 : g->kind;
    const struct gguf_kind *k = &gguf_kinds[t.kind];
    const gguf_tensor *last = g->count ? &g->tensors[g->count - 1] : NULL;
    const struct gguf_kind *before = last ? &gguf_kinds[last->kind] : k;
    if (last)
        t.at = round_up(last->at + last->rows * last->cols / before->block * before->bytes,
                        GGUF_ALIGN);
    TRY(mem_grow(g->cx, &g->tensors, g->count, g->count + 1, &g->capacity, sizeof *g->tensors));
    g->tensors[g->count++] = t;
    return NXT_OK;
}

/* The parameter p as a tensor. GPT-2's matrices are turned to (out, in). GGUF's passes know
 * one scale of attention, 1/sqrt(D): another is multiplied into q, of which scores are a linear
 * function. */
static nxt_status add_param_tensor(gguf *g, const param *p, role r) {
    const shape *s = &g->m->s;
    const bool vector = p->w.rows == 1;
    gguf_tensor t = {.role = r, .p = p, .vector = vector, .factor = 1};
    t.rows = vector || p->in_first ? p->w.cols : p->w.rows;
    t.cols = vector ? 1 : p->in_first ? p->w.rows : p->w.cols;
    if (!s->scaled) t.factor *= sqrtf((float)s->D);
    if (s->scaled_by_layer) t.factor /= (float)(p->layer + 1);
    snprintf(t.name, sizeof t.name, gguf_names[r], (int)p->layer);
    return add_tensor(g, t);
}

/* What GPT-NeoX's pass reads although a model with attention_bias false has none: biases of
 * attention, as zeros, which change nothing. */
static nxt_status add_zeros(gguf *g, const param *p, role r) {
    gguf_tensor t = {.role = r, .vector = true, .rows = p->w.rows, .cols = 1};
    snprintf(t.name, sizeof t.name, gguf_names[r], (int)p->layer);
    return add_tensor(g, t);
}

/* Llama 3's stretched waves (§14) as divisors of the plain ones. */
static nxt_status add_waves(gguf *g) {
    const shape *s = &g->m->s;
    float *values = arena_get(&g->arena, (size_t)s->pairs * sizeof *values);
    if (!values) return NXT_MEMORY;
    for (i64 i = 0; i < s->pairs; i++)
        values[i] = 1 / powf(s->rope_base, 2 * (float)i / (float)s->rotary) / g->m->freq[i];
    return add_tensor(g, (gguf_tensor){.name = "rope_freqs.weight", .vector = true,
                                       .rows = s->pairs, .cols = 1, .values = values});
}

/* In the order of the parameter list. A tied head is a copy of the embedding where the reader
 * asks for one; Llama's and Qwen2's take the embedding. */
static nxt_status list_tensors(gguf *g) {
    const nxt_model *m = g->m;
    for (i64 i = 0; i < m->base_count; i++) {
        const param *p = &m->params[i];
        TRY(add_param_tensor(g, p, (role)p->role));
        if (!g->neox || m->s.qkv_bias) continue;
        if (p->role == QKV_W) TRY(add_zeros(g, p, QKV_B));
        if (p->role == OUT_W) TRY(add_zeros(g, p, OUT_B));
    }
    if (m->s.tied && !m->s.gated) TRY(add_param_tensor(g, m->embed, HEAD_W));
    return m->s.rope_low > 0 ? add_waves(g) : NXT_OK;
}

/* The row of the parameter that becomes row r of the tensor.
 *
 *     GPT-NeoX, q, k and v    head h has rows 3hD .. 3hD+3D, its q, k and v; wanted are all q,
 *                             then all k, then all v
 *     Llama, q and k          value i of a head turns with value i + D/2; wanted are the two
 *                             side by side, at 2i and 2i + 1
 *
 * The rest stays. Scores are sums over a head's values, so their order there does not matter,
 * as long as q and k agree. */
static i64 gguf_row(const gguf *g, const gguf_tensor *t, i64 r) {
    const i64 D = g->m->s.D, all = q_width(&g->m->s), d = r % D, head = r % all / D;
    const role w = t->role;
    if (g->neox && (w == QKV_W || w == QKV_B)) return (3 * head + r / all) * D + d;
    if (g->llama && (w == Q_W || w == Q_B || w == K_W || w == K_B))
        return r - d + d % 2 * (D / 2) + d / 2;
    return r;
}

/* Elements [at, at + n) of a parameter, its adapter merged. Reading is as in saving (§19): a
 * trained model that is not finite is refused here, too. */
static nxt_status fetch(const gguf *g, const gguf_tensor *t, i64 at, i64 n, float *out) {
    const tensor_plan plan = {.name = t->name, .source = (void *)(uintptr_t)t->p};
    return fetch_merged(g->merger, &plan, at, n, out);
}

/* Rows [r, r + n) of a tensor as f32. column: room for n values. */
static nxt_status tensor_rows(const gguf *g, const gguf_tensor *t, i64 r, i64 n, float *out,
                            float *column) {
    if (!t->p) {
        for (i64 i = 0; i < n; i++) out[i] = t->values ? t->values[r + i] : 0;
        return NXT_OK;
    }
    if (t->p->in_first && !t->vector) { /* stored as (cols, rows) */
        for (i64 c = 0; c < t->cols; c++) {
            TRY(fetch(g, t, c * t->rows + r, n, column));
            for (i64 i = 0; i < n; i++) out[i * t->cols + c] = column[i];
        }
    } else
        for (i64 i = 0, run; i < n; i += run) { /* rows that lie together are read at once */
            const i64 from = gguf_row(g, t, r + i);
            for (run = 1; i + run < n && gguf_row(g, t, r + i + run) == from + run;) run++;
            TRY(fetch(g, t, from * t->cols, run * t->cols, out + i * t->cols));
        }
    const i64 q_rows = t->role == QKV_W || t->role == QKV_B ? q_width(&g->m->s) : 0;
    for (i64 i = 0; i < min64(n, q_rows - r) * t->cols; i++) out[i] *= t->factor;
    return NXT_OK;
}

/* n values, a multiple of 32, as blocks, each the unit and then its multiples. Rounding is to
 * nearest, halves away from zero, as the format's reference has it: the same bytes. */
static nxt_status quantize(const gguf *g, const gguf_tensor *t, const float *x, i64 n, u8 *out) {
    for (i64 i = 0; i < n; i += Q8_BLOCK, out += gguf_kinds[Q8_0].bytes) {
        float most = 0;
        bool finite = true;
        for (int k = 0; k < Q8_BLOCK; k++) {
            most = fmaxf(most, fabsf(x[i + k]));
            finite &= isfinite(x[i + k]) != 0;
        }
        const float unit = most / 127;
        const u16 half = f32_to_f16(unit);
        if (!finite || !isfinite(f16_to_f32(half)))
            return fail(g->cx, NXT_FORMAT, "%s: tensor %s holds values up to %g, too large for "
                        "q8_0: export f32 or bf16", g->file, t->name, (double)most);
        memcpy(out, &half, sizeof half);
        for (int k = 0; k < Q8_BLOCK; k++)
            out[2 + k] = (u8)(int8_t)(unit > 0 ? roundf(x[i + k] * (1 / unit)) : 0);
    }
    return NXT_OK;
}

/* A tensor, a piece of whole rows at a time, and zeros up to the next multiple of 32. */
static nxt_status write_gguf_tensor(const gguf *g, save_file *f, const gguf_tensor *t,
                                    float *stage, i64 room) {
    static const u8 zeros[GGUF_ALIGN];
    const struct gguf_kind *k = &gguf_kinds[t->kind];
    const tensor_plan plan = {.name = t->name, .type = t->kind == Q8_0 ? F32 : (dtype)t->kind};
    float *column = stage + room; /* three parts: rows, a column, rows packed */
    void *packed = column + room;
    const i64 most = room / t->cols;
    for (i64 r = 0, n; r < t->rows; r += n) {
        n = min64(most, t->rows - r);
        const i64 values = n * t->cols, bytes = values / k->block * k->bytes;
        TRY(check_cancel(g->cx));
        TRY(tensor_rows(g, t, r, n, stage, column));
        if (t->kind == Q8_0) TRY(quantize(g, t, stage, values, packed));
        else if (t->kind != F32) TRY(narrow(f, &plan, stage, values, packed));
        TRY(save_bytes(f, t->kind == F32 ? (const void *)stage : packed, bytes));
    }
    const i64 end = t->rows * t->cols / k->block * k->bytes;
    return save_bytes(f, zeros, round_up(end, GGUF_ALIGN) - end);
}

/* The head of the file: what comes first, the pairs, the list of tensors. Places are relative to
 * the data, which is why the list can be written without knowing its own length. */
static nxt_status write_gguf_head(gguf *g, save_file *f) {
    buffer b = {.cx = g->cx};
    buffer_text(&b, "GGUF");
    put_number(&b, 3, 4);
    put_number(&b, (u64)g->count, 8);
    put_number(&b, (u64)g->pairs, 8);
    for (i64 i = 0; i < g->count; i++) {
        const gguf_tensor *t = &g->tensors[i];
        put_string(&g->head, t->name, (i64)strlen(t->name));
        put_number(&g->head, t->vector ? 1 : 2, 4);
        if (!t->vector) put_number(&g->head, (u64)t->cols, 8);
        put_number(&g->head, (u64)t->rows, 8);
        put_number(&g->head, gguf_kinds[t->kind].tensor, 4);
        put_number(&g->head, (u64)t->at, 8);
    }
    while ((b.n + g->head.n) % GGUF_ALIGN && g->head.status == NXT_OK)
        put_number(&g->head, 0, 1);
    nxt_status status = b.status != NXT_OK ? b.status : g->head.status;
    if (status == NXT_OK) status = save_bytes(f, b.p, b.n);
    if (status == NXT_OK) status = save_bytes(f, g->head.p, g->head.n);
    buffer_free(&b);
    return status;
}

/* The stage holds one row at least: the widest is a layer's feed-forward. That, a head of names
 * and texts, and the two matrices of one adapter are all the memory an export takes, however
 * large the model: its weights come from the map and go to the file. */
static nxt_status write_gguf(gguf *g, save *s, const char *name) {
    const i64 room = max64(STAGE, max64(g->m->s.C, max64(g->m->s.F, q_width(&g->m->s))));
    save_file f = {.fd = -1};
    float *stage;
    TRY(mem_get(g->cx, &stage, 3 * room, sizeof *stage));
    nxt_status status = save_open(s, name, &f);
    if (status == NXT_OK) status = write_gguf_head(g, &f);
    for (i64 i = 0; i < g->count && status == NXT_OK; i++)
        status = write_gguf_tensor(g, &f, &g->tensors[i], stage, room);
    mem_drop(g->cx, stage);
    return save_close(&f, status);
}

/* What can be refused is refused before the first byte is written. */
static nxt_status export_gguf(save *s, const char *name, merger *adapters, int kind,
                              const char *file, const char *tokenizer) {
    const nxt_model *m = adapters->m;
    gguf g = {.cx = m->cx, .m = m, .merger = adapters, .file = file, .kind = kind,
              .arena.cx = m->cx, .head.cx = m->cx};
    nxt_status status = gguf_architecture(&g);
    if (status == NXT_OK) put_sizes(&g);
    if (status == NXT_OK) status = put_tokenizer(&g, tokenizer);
    if (status == NXT_OK) status = list_tensors(&g);
    if (status == NXT_OK) status = write_gguf(&g, s, name);
    if (status == NXT_OK && m->s.act == NXT_GELU)
        say(m->cx, NXT_LOG_INFO, "%s: its readers compute GELU by tanh, this model by erf: "
            "logits will differ in the third digit", file);
    buffer_free(&g.head);
    mem_drop(g.cx, g.tensors);
    arena_free(&g.arena);
    return status;
}

nxt_export_config nxt_export_config_default(void) { return (nxt_export_config){NULL, NULL, NULL}; }

/* GGUF or not, by the format's name, else by the end of the file's. */
static nxt_status export_format(nxt_context *cx, const char *file, const char *format,
                                bool *gguf_wanted) {
    static const char *const known[] = {"safetensors", "gguf"};
    const char *slash = strrchr(file, '/'), *dot = strrchr(slash ? slash : file, '.');
    if (!format) format = dot ? dot + 1 : "";
    for (int i = 0; i < COUNT(known); i++)
        if (!strcmp(format, known[i])) return *gguf_wanted = i, NXT_OK;
    return fail(cx, NXT_ARGUMENT, "%s: format \"%s\": gguf and safetensors are known", file,
                format);
}

/* Saved into the directory of `file`, of which nothing else is touched: not even the shards
 * that a model.safetensors of this name would make stale, for they may be the original. */
nxt_status nxt_model_export(const nxt_model *m, const char *file,
                            const nxt_export_config *config) {
    const nxt_export_config c = config ? *config : nxt_export_config_default();
    const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
    arena a = {.cx = m->cx};
    save s = {.cx = m->cx};
    merger adapters = {.m = m};
    bool as_gguf = false;
    dtype type = m->stored;
    TRY(export_format(m->cx, file, c.format, &as_gguf));
    const bool q8 = as_gguf && c.dtype && !strcmp(c.dtype, "q8_0");
    if (!q8) TRY(parse_dtype(m->cx, c.dtype, &type));
    const char *parent = path_parent(&a, file);
    nxt_status status = parent ? save_begin_into(m->cx, parent, &s) : NXT_MEMORY;
    arena_free(&a);
    TRY(status);
    s.lone = true;
    if (as_gguf)
        status = export_gguf(&s, name, &adapters, q8 ? (int)Q8_0 : (int)type, file,
                             c.tokenizer);
    else status = save_weights(&s, name, m, type, 0, fetch_merged, &adapters);
    mem_drop(m->cx, adapters.a);
    mem_drop(m->cx, adapters.b);
    return save_end(&s, status);
}
#else
nxt_export_config nxt_export_config_default(void) { return (nxt_export_config){NULL, NULL, NULL}; }

nxt_status nxt_model_export(const nxt_model *m, const char *file,
                            const nxt_export_config *config) {
    (void)config;
    return fail(m->cx, NXT_UNSUPPORTED, "%s: built without export (NXT_NO_REPORT)", file);
}
#endif /* NXT_NO_REPORT */

/* ============================================================================
 * § 24  The program
 *
 * An example of using the header, and nothing but the header: options from one table,
 * lines on a terminal, signals. Machine-readable results go to standard output, everything
 * meant for people to standard error, so that a pipe sees results alone.
 *
 * A function that can fail returns an exit status. Whoever finds the fault writes the
 * sentence; callers pass the status up and add nothing, as TRY does in the library.
 *
 * How to read it: main, at the end, finds the command in a table and calls its run_ function,
 * a page at most, which says in calls of the header what the command does. run_train is the
 * one to begin with.
 */
#if !defined(NXT_NO_MAIN)
#include <fnmatch.h>

/* Exit statuses; 0 is done. A script can tell a typing mistake (2) from a run that failed (1)
 * and from one that was stopped and saved (130, which is a shell's 128 + SIGINT). */
enum { FAILED = 1, USAGE = 2, INTERRUPTED = 130 };

/* DO passes a failure up; ASK is for calls of the library, whose sentence is printed first. */
#define DO(call)                                                                           \
    do {                                                                                   \
        const int do_status = (call);                                                      \
        if (do_status) return do_status;                                                   \
    } while (0)
#define ASK(call) DO(report(a->cx, (call)))

/* Sets of commands: an option says by such a set where it is known. Elsewhere it is an error,
 * not ignored: `eval --learning-rate` can only be a misunderstanding. */
enum {
    TRAIN = 1, EVAL = 2, GENERATE = 4, TOKENIZE = 8, INFO = 16, INIT = 32, BENCH = 64,
    MERGE = 128, EXPORT = 256, ANY = 511, DATA = TRAIN | EVAL | GENERATE | INFO
};

/* Texts are not copied: they are argv's, or the context keeps them. */
typedef struct text_list {
    int count;
    const char *text[64];
} text_list;

/* Everything a command line can say. The library's configs are filled in place, with its
 * own defaults; a field here is for what they do not have, or have in another form. */
typedef struct options {
    nxt_data_config d;
    nxt_train_config t;
    nxt_run_config r;
    nxt_sample_config s;
    nxt_lora_config lora;
    text_list data, stop;
    const char *model, *adapter, *freeze, *train_only, *config, *eval_data, *resume, *prompt,
        *prompts, *file, *cpu, *tensors, *output, *format;
    const char *truncation, *train_on, *schedule, *eval_strategy, *save_strategy, *optim,
        *device; /* words, until settle_options turns them into numbers */
    double eval_split, test_split;
    int64_t max_length, max_train_samples, max_eval_samples, max_new_tokens,
        max_input_tokens, top_k, threads, lora_r;
    int overwrite, dry_run, append_eos, no_append_eos, no_shuffle, json, add_start_token,
        decode, lines, count, bf16, profile, recompute;
} options;

/* One row per option: the table parses, prints the help, reads config files, and writes
 * run.json. Names are Hugging Face's where one exists, so that a command line or a JSON of
 * its trainer is understood here, and this program's run.json there. */
typedef struct option {
    const char *name, *value; /* what --help calls the value; NULL: a flag */
    char kind;                /* s text, i integer, d number, b flag, l list of texts */
    size_t field;
    int commands;
    const char *help;
} option;

/* A row's value, kind and field. */
#define TEXT(value, field) value, 's', offsetof(options, field)
#define LIST(value, field) value, 'l', offsetof(options, field)
#define REAL(value, field) value, 'd', offsetof(options, field)
#define INT(field) "N", 'i', offsetof(options, field)
#define FLAG(field) NULL, 'b', offsetof(options, field)

static const option option_table[] = {
    /* files; the library wants a directory, find_model makes one of what is written here */
    {"model", TEXT("DIR", model), ANY & ~INIT, "model directory, hub-cache folder or hub name"},
    {"adapter", TEXT("DIR", adapter), TRAIN | EVAL | GENERATE | INFO | MERGE | EXPORT,
     "LoRA adapters on the model, as PEFT or train writes them"},
    {"tokenizer", TEXT("PATH", r.tokenizer), ANY & ~BENCH,
     "tokenizer.json or a folder; default: the model's"},
    {"data", LIST("FILE", data), TRAIN | EVAL | INFO, ".txt, .jsonl or .json; may be repeated"},
    {"output-dir", TEXT("DIR", r.output_dir), TRAIN | INIT | MERGE, "where results go"},
    {"overwrite-output-dir", FLAG(overwrite), TRAIN, "replace an earlier run there"},
    {"dry-run", FLAG(dry_run), TRAIN, "report data and memory, train nothing"},
    {"config", TEXT("FILE", config), INIT | BENCH, "config.json of the architecture"},
    /* from rows to sequences: §18. eval and generate take them from the model's run.json */
    {"block-size", INT(d.block_size), DATA | BENCH,
     "join texts and cut them into blocks of N tokens"},
    {"max-length", INT(max_length), DATA,
     "longest example (generate: prompt and answer) in tokens"},
    {"truncation", TEXT("HOW", truncation), DATA, "right, left, prompt or error"},
    {"text-column", TEXT("C", d.text_column), DATA, "the column to train on"},
    {"prompt-column", TEXT("C", d.prompt_column), DATA, "the column to condition on"},
    {"completion-column", TEXT("C", d.completion_column), DATA, "the column to learn"},
    {"template", TEXT("T", d.template_text), DATA, "text with {column} places; \\n, or @file"},
    {"train-on", TEXT("WHAT", train_on), DATA,
     "completion (default where there is one) or all"},
    {"append-eos", FLAG(append_eos), TRAIN | EVAL | INFO,
     "end texts with eos inside blocks too"},
    {"no-append-eos", FLAG(no_append_eos), TRAIN | EVAL | INFO, "do not end examples with eos"},
    {"skip-bad-lines", FLAG(d.skip_bad_lines), DATA, "count broken rows instead of stopping"},
    {"max-train-samples", INT(max_train_samples), TRAIN | INFO, "first N rows only"},
    {"max-eval-samples", INT(max_eval_samples), TRAIN | EVAL | GENERATE, "first N rows only"},
    {"eval-data", TEXT("FILE", eval_data), TRAIN, "held-out data"},
    {"eval-split", REAL("F", eval_split), TRAIN, "hold out this share for evaluation"},
    {"test-split", REAL("F", test_split), TRAIN, "hold out this share for later"},
    {"no-shuffle", FLAG(no_shuffle), TRAIN, "keep the order of the data"},
    {"seed", INT(t.seed), TRAIN | GENERATE | INIT | BENCH, "of everything random (42)"},
    /* the optimizer: §20. In brackets the default, which is Hugging Face's */
    {"learning-rate", REAL("X", t.learning_rate), TRAIN, "peak rate (5e-5)"},
    {"num-train-epochs", REAL("X", t.num_train_epochs), TRAIN, "passes over the data (3)"},
    {"max-steps", INT(t.max_steps), TRAIN | BENCH, "optimizer steps; wins over epochs"},
    {"per-device-train-batch-size", INT(t.batch_size), TRAIN | INFO | BENCH,
     "examples per micro-batch (8)"},
    {"per-device-eval-batch-size", INT(r.eval_batch_size), TRAIN | EVAL,
     "examples per evaluation batch (8)"},
    {"gradient-accumulation-steps", INT(t.gradient_accumulation_steps), TRAIN | INFO,
     "micro-batches per step (1)"},
    {"lr-scheduler-type", TEXT("S", schedule), TRAIN,
     "linear, cosine, constant or constant_with_warmup"},
    {"warmup-steps", INT(t.warmup_steps), TRAIN, "steps of rising rate"},
    {"warmup-ratio", REAL("X", t.warmup_ratio), TRAIN, "the same as a share of all steps"},
    {"weight-decay", REAL("X", t.weight_decay), TRAIN,
     "of matrices, not of biases and norms (0)"},
    {"max-grad-norm", REAL("X", t.max_grad_norm), TRAIN,
     "clip the gradient's norm (1); 0: never"},
    {"optim", TEXT("O", optim), TRAIN, "adamw"},
    {"adam-beta1", REAL("X", t.adam_beta1), TRAIN, "(0.9)"},
    {"adam-beta2", REAL("X", t.adam_beta2), TRAIN, "(0.999)"},
    {"adam-epsilon", REAL("X", t.adam_epsilon), TRAIN, "(1e-8)"},
    /* which weights: §14 */
    {"lora-r", INT(lora_r), TRAIN | INFO, "train LoRA adapters of this rank, not the model"},
    {"lora-alpha", REAL("X", lora.alpha), TRAIN | INFO, "they count alpha / r times (8)"},
    {"lora-dropout", REAL("X", lora.dropout), TRAIN | INFO, "of their input (0)"},
    {"lora-target-modules", TEXT("NAMES", lora.targets), TRAIN | INFO,
     "ends of layers' names, or all-linear; default: as PEFT"},
    {"use-rslora", FLAG(lora.rslora), TRAIN | INFO, "alpha / sqrt(r) instead"},
    {"gradient-checkpointing", FLAG(recompute), TRAIN | INFO | BENCH,
     "keep a seventh of the activations, compute the rest twice"},
    {"freeze", TEXT("NAMES", freeze), TRAIN | INFO, "leave parameters of such names as they are"},
    {"train-only", TEXT("NAMES", train_only), TRAIN | INFO, "leave all others as they are"},
    {"max-skipped-steps", INT(t.max_skipped_steps), TRAIN,
     "skip so many steps that are not finite (0)"},
    /* what is due when: §22. Steps are optimizer steps, not micro-batches */
    {"logging-steps", INT(r.logging_steps), TRAIN, "a row of metrics.jsonl every N steps (1)"},
    {"eval-strategy", TEXT("W", eval_strategy), TRAIN,
     "no, steps or epoch (epoch when there is held-out data)"},
    {"eval-steps", INT(r.eval_steps), TRAIN, "evaluate every N steps (500)"},
    {"save-strategy", TEXT("W", save_strategy), TRAIN, "no, steps or epoch (steps)"},
    {"save-steps", INT(r.save_steps), TRAIN, "save every N steps (500)"},
    {"save-total-limit", INT(r.save_total_limit), TRAIN, "keep at most N checkpoints"},
    {"load-best-model-at-end", FLAG(r.load_best_model_at_end), TRAIN,
     "finish with the checkpoint of lowest eval_loss"},
    {"resume-from-checkpoint", TEXT("DIR", resume), TRAIN, "a checkpoint, or last"},
    /* generation: §21. Greedy unless temperature, top-k or top-p is given */
    {"prompt", TEXT("TEXT", prompt), GENERATE, "what to continue"},
    {"prompts", TEXT("FILE", prompts), GENERATE, "a prompt per line, or rows"},
    {"max-new-tokens", INT(max_new_tokens), GENERATE | EVAL, "tokens to generate at most (64)"},
    {"max-input-tokens", INT(max_input_tokens), GENERATE,
     "keep so many of the prompt's last tokens"},
    {"temperature", REAL("X", s.temperature), GENERATE, "randomness; 0: greedy"},
    {"top-k", INT(top_k), GENERATE, "draw from the N likeliest tokens"},
    {"top-p", REAL("X", s.top_p), GENERATE, "draw from the likeliest tokens of mass X"},
    {"repetition-penalty", REAL("X", s.repetition_penalty), GENERATE, "above 1: repeat less"},
    {"stop", LIST("TEXT", stop), GENERATE, "stop before this text; may be repeated"},
    /* the other commands */
    {"add-start-token", FLAG(add_start_token), EVAL, "(always on for perplexities; accepted)"},
    {"decode", FLAG(decode), TOKENIZE, "ids in, text out"},
    {"lines", FLAG(lines), TOKENIZE, "every line a text of its own"},
    {"count", FLAG(count), TOKENIZE, "print the number of tokens only"},
    {"tensors", TEXT("PATTERN", tensors), INFO, "list the tensors of such names; '*': all"},
    {"output", TEXT("FILE", output), EXPORT, "where the model goes; must not exist"},
    {"format", TEXT("F", format), EXPORT, "gguf or safetensors; default: as FILE ends"},
    {"dtype", TEXT("T", r.dtype), TRAIN | INIT | MERGE | EXPORT,
     "f32, f16 or bf16 (export to gguf: q8_0 too) for what is saved; default: as the base"},
    {"bf16", FLAG(bf16), TRAIN | EVAL | GENERATE | BENCH,
     "multiply in bf16 where the processor does that faster; sums stay f32"},
    {"profile", FLAG(profile), TRAIN, "say at the end which operations took the time"},
    {"device", TEXT("D", device), ANY, "cpu"},
    {"cpu", TEXT("K", cpu), ANY, "kernels: reference, baseline, avx2 or avx512 (the best)"},
    {"threads", INT(threads), ANY, "processors to use (all)"},
    {"json", FLAG(json), EVAL | GENERATE | INFO | BENCH, "one JSON object on standard output"},
};
#undef TEXT
#undef LIST
#undef REAL
#undef INT
#undef FLAG

/* Older names of Hugging Face's, names of its example scripts, and short forms. */
static const struct { const char *alias, *name; } option_aliases[] = {
    {"evaluation-strategy", "eval-strategy"}, {"batch-size", "per-device-train-batch-size"},
    {"eval-batch-size", "per-device-eval-batch-size"}, {"lr", "learning-rate"},
    {"epochs", "num-train-epochs"}, {"model-name-or-path", "model"}, {"train-file", "data"},
    {"validation-file", "eval-data"}, {"max-seq-length", "max-length"},
};

/* -- Small things ---------------------------------------------------------------------- */

/* The program's only globals: a signal handler has no argument, and may do next to nothing;
 * it sets a flag, and calls nxt_cancel, which is made for it. */
static volatile sig_atomic_t interrupted;
static nxt_context *volatile signal_context;

/* A sentence for people; the status is handed back, to be returned by whoever complains. */
PRINTF_LIKE(2, 3)
static int complain(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("neoxtune: ", stderr);
    vfprintf(stderr, format, args);
    fputs("\n", stderr);
    va_end(args);
    return status;
}

static int no_memory(void) { return complain(FAILED, "out of memory"); }

/* The library's sentence, and the exit status for it. */
static int report(const nxt_context *cx, nxt_status status) {
    if (status == NXT_OK) return 0;
    complain(FAILED, "%s", nxt_error_message(cx));
    return status == NXT_CANCELLED ? INTERRUPTED : FAILED;
}

/* Notes and warnings of the library: it never prints, so the program says how. */
static void print_log(void *user, nxt_log_level level, const char *line) {
    (void)user;
    fprintf(stderr, "%s%s\n", level == NXT_LOG_WARNING ? "warning: " : "", line);
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The monotonic clock: unlike the time of day it is never set back. */
static double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A number as people read it, to three digits, in powers of 1000, as disks are sold.
 *
 * By value: in C11 such a result, and so its array, lives until the call it is an argument
 * of has returned, which is as long as printf needs it. */
typedef struct short_text { char text[32]; } short_text;

static short_text human(int64_t number) {
    static const char *const unit[] = {"bytes", "KB", "MB", "GB", "TB"};
    short_text s;
    double x = (double)number;
    int u = 0;
    while (x >= 1000 && u < 4) x /= 1000, u++;
    snprintf(s.text, sizeof s.text, u ? "%.3g %s" : "%.0f %s", x, unit[u]);
    return s;
}

/* Bytes of the UTF-8 character at p, of n that are left; 0: not valid. */
static size_t character_size(const unsigned char *p, size_t n) {
    const size_t size = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;
    if (!size || size > n || *p > 0xf4) return 0;
    for (size_t i = 1; i < size; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    const unsigned second = size > 2 ? p[1] : 0; /* overlong, surrogates, too large */
    if ((*p == 0xe0 && second < 0xa0) || (*p == 0xed && second > 0x9f)
        || (*p == 0xf0 && second < 0x90) || (*p == 0xf4 && second > 0x8f))
        return 0;
    return size;
}

/* A JSON string. A model can be made to write any bytes at all, JSON must be UTF-8: a byte
 * that is not becomes U+FFFD, as in Python. */
static void print_json_text(FILE *f, const char *text, size_t n) {
    fputc('"', f);
    for (size_t i = 0, size; i < n; i += size) {
        const unsigned char *p = (const unsigned char *)text + i;
        size = character_size(p, n - i);
        if (!size) size = 1, fputs("\\ufffd", f);
        else if (*p == '"' || *p == '\\') fprintf(f, "\\%c", *p);
        else if (*p == '\n') fputs("\\n", f);
        else if (*p == '\t') fputs("\\t", f);
        else if (*p < 32 || *p == 127) fprintf(f, "\\u%04x", *p);
        else fwrite(p, 1, size, f);
    }
    fputc('"', f);
}

/* JSON knows no NaN and no infinity. */
static void print_number(const char *before, double x) {
    if (isfinite(x)) printf("%s%.9g", before, x);
    else printf("%snull", before);
}

/* A file, or standard input, whole, with a NUL behind it. The caller frees it. */
static int read_all(const char *path, char **out, size_t *n) {
    FILE *f = path && strcmp(path, "-") ? fopen(path, "rb") : stdin, *memory;
    char block[16384];
    if (!f) return complain(FAILED, "%s: cannot open: %s", path, strerror(errno));
    *out = NULL;
    memory = open_memstream(out, n);
    for (size_t got; memory && (got = fread(block, 1, sizeof block, f)) > 0;)
        fwrite(block, 1, got, memory);
    int status = 0;
    if (ferror(f)) status = complain(FAILED, "%s: cannot read: %s", path, strerror(errno));
    else if (!memory || ferror(memory)) status = no_memory();
    if (memory && fclose(memory) != 0 && !status) status = no_memory();
    if (f != stdin) fclose(f);
    if (status) free(*out);
    return status;
}

/* -- Options --------------------------------------------------------------------------- */

/* Python's names have _ where a command line has -; both are meant. b may end at a comma. */
static bool same_name(const char *a, const char *b) {
    while (*a && *b != ',' && (*a == '_' ? '-' : *a) == (*b == '_' ? '-' : *b)) a++, b++;
    return !*a && (!*b || *b == ',');
}

/* By name or alias, among those of the command. A name stands once in the table, with all
 * commands that know it, so that it means the same everywhere. */
static const option *find_option(const char *name, int commands) {
    for (int64_t i = 0; i < COUNT(option_aliases); i++)
        if (same_name(name, option_aliases[i].alias)) name = option_aliases[i].name;
    for (int64_t i = 0; i < COUNT(option_table); i++)
        if (same_name(name, option_table[i].name) && (option_table[i].commands & commands))
            return &option_table[i];
    return NULL;
}

/* Edit distance [Levenshtein66], for "did you mean": the fewest insertions, deletions and
 * changes of a character that make one name the other. With d(i, j) for the first i and j
 * characters it is the least of  d(i-1, j) + 1,  d(i, j-1) + 1  and  d(i-1, j-1) + (a_i is
 * not b_j);  row i of that table replaces row i - 1 in place. */
static int distance(const char *a, const char *b) {
    int row[64];
    const int n = (int)strlen(b);
    if (n > 62) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int up = row[j], same = (a[i - 1] == '_' ? '-' : a[i - 1]) == b[j - 1];
            const int either = (int)least(up + 1, row[j - 1] + 1);
            row[j] = (int)least(diagonal + !same, either);
            diagonal = up;
        }
    }
    return row[n];
}

/* Whether the candidate is nearer than the best so far, which it then is itself. */
static bool is_nearer(const char *name, const char *candidate, int *best) {
    const int d = distance(name, candidate);
    if (d >= *best) return false;
    *best = d;
    return true;
}

/* Most unknown options are typing mistakes. Farther than five changes, a guess would be about
 * as long as the name itself, and mislead. */
static int unknown_option(const char *name, int commands) {
    const char *nearest = NULL;
    int best = 6;
    for (int64_t i = 0; i < COUNT(option_table); i++)
        if ((option_table[i].commands & commands)
            && is_nearer(name, option_table[i].name, &best))
            nearest = option_table[i].name;
    if (!nearest) return complain(USAGE, "unknown option --%s; --help lists the options", name);
    return complain(USAGE, "unknown option --%s; did you mean --%s?", name, nearest);
}

/* The place of a word in a list, "no, steps, epoch"; -1 after saying what there is. The list
 * is one text because that is how the sentence needs it. */
static int choose_word(const char *option_name, const char *value, const char *list) {
    const char *word = list;
    for (int i = 0; word; i++) {
        if (same_name(value, word)) return i;
        word = strchr(word, ',');
        if (word) word += 2;
    }
    complain(USAGE, "--%s: \"%s\" is none of %s", option_name, value, list);
    return -1;
}

/* Sets one option from its text. Numbers below 0 are refused here for all: none of the options
 * has a use for one. */
static int set_option(options *o, const option *p, const char *value) {
    void *field = (char *)o + p->field;
    text_list *list = field;
    char *end;
    if (p->kind == 's') *(const char **)field = value;
    if (p->kind == 'l') {
        if (list->count == COUNT(list->text))
            return complain(USAGE, "--%s is given too often", p->name);
        list->text[list->count++] = value;
    }
    if (p->kind == 'b') {
        const int word = choose_word(p->name, value, "false, no, 0, true, yes, 1");
        if (word < 0) return USAGE;
        *(int *)field = word > 2;
    }
    if (p->kind != 'i' && p->kind != 'd') return 0;
    errno = 0;
    const double x = strtod(value, &end); /* integers too: 1e4 is welcome, 2^53 is enough */
    const bool whole = p->kind == 'i', number = !*end && end != value;
    if (whole && (!number || !(fabs(x) <= 9e15) || x != floor(x)))
        return complain(USAGE, "--%s: \"%s\" is not a whole number", p->name, value);
    if (!whole && (!number || errno || !isfinite(x)))
        return complain(USAGE, "--%s: \"%s\" is not a number", p->name, value);
    if (x < 0) return complain(USAGE, "--%s: \"%s\" is below 0", p->name, value);
    if (whole) *(int64_t *)field = (int64_t)x;
    else *(double *)field = x;
    return 0;
}

/* Reading options from a file goes through the same table. */
typedef struct config_reader {
    options *o;
    int commands;
    bool strict; /* a name that is no option is an error: the file was written by the user */
    int status;
} config_reader;

/* One name and value; nxt_options_read calls this for every item of a list, so that lists of
 * a file and options that are repeated are the same thing. */
static void take_config(void *user, const char *name, const char *value) {
    config_reader *r = user;
    const option *p = find_option(name, r->commands);
    if (r->status || same_name(name, "neoxtune")) return; /* run.json's version */
    if (p) r->status = set_option(r->o, p, value); /* values live as long as the context */
    else if (r->strict) r->status = unknown_option(name, r->commands);
}

static int read_options(nxt_context *cx, const char *path, config_reader r) {
    DO(report(cx, nxt_options_read(cx, path, take_config, &r)));
    return r.status;
}

/* --name value, --name=value, --flag, --list a b c, and one bare file name for tokenize. Read
 * from left to right, the last one wins: what follows --config-file changes what it said, and
 * a script can add options to those it was given. */
static int parse_options(options *o, nxt_context *cx, int commands, int argc, char **argv) {
    for (int i = 2; i < argc; i++) {
        const char *a = argv[i], *value = strchr(a, '=');
        char name[64];
        if (a[0] != '-' || !a[1]) {
            if (commands != TOKENIZE || o->file)
                return complain(USAGE, "unexpected \"%s\"; options begin with --", a);
            o->file = a;
            continue;
        }
        if (a[1] != '-') return complain(USAGE, "unknown option %s; options begin with --", a);
        snprintf(name, sizeof name, "%.*s", value ? (int)(value - a - 2) : 60, a + 2);
        const bool file = same_name(name, "config-file");
        const option *p = file ? NULL : find_option(name, commands);
        if (!p && !file) return unknown_option(name, commands);
        if (value) value++;
        else if (p && p->kind == 'b') value = "true";
        else if (++i < argc) value = argv[i];
        else return complain(USAGE, "--%s needs a value", name);
        if (p) DO(set_option(o, p, value));
        else DO(read_options(cx, value, (config_reader){o, commands, true, 0}));
        while (p && p->kind == 'l' && i + 1 < argc && argv[i + 1][0] != '-')
            DO(set_option(o, p, argv[++i]));
    }
    return 0;
}

/* The library's defaults; what they leave open is decided when the model is known. A config
 * that is all zeros would be a wrong one, which is why it comes from a function. */
enum { ALL_THREADS = INT32_MAX };

static options default_options(void) {
    options o = {.d = nxt_data_config_default(), .t = nxt_train_config_default(),
                 .r = nxt_run_config_default(), .s = nxt_sample_config_default(),
                 .lora = nxt_lora_config_default(),
                 .max_new_tokens = 64, .threads = ALL_THREADS};
    return o;
}

/* Options that would silently do nothing are refused: a run that ignores one looks like a
 * run that obeyed, until its results are compared. */
static int check_conflicts(const options *o) {
    const bool held_out = o->eval_data || o->eval_split > 0;
    bool empty_stop = false;
    for (int i = 0; i < o->stop.count; i++) empty_stop |= !o->stop.text[i][0];
    const struct { bool bad; const char *why; } rules[] = {
        {o->d.prompt_column && !o->d.completion_column && !o->d.template_text && !o->prompts,
         "--prompt-column needs --completion-column"},
        {o->d.text_column && o->d.completion_column,
         "--text-column or --completion-column, not both"},
        {o->lora_r && (o->adapter || o->freeze || o->train_only),
         "--lora-r begins new adapters and freezes all else: without --adapter, --freeze and "
         "--train-only"},
        {!o->lora_r && (o->lora.targets || o->lora.rslora || o->lora.dropout != 0),
         "LoRA options need --lora-r"},
        {o->freeze && o->train_only, "--freeze or --train-only, not both"},
        {o->test_split > 0 && o->d.block_size,
         "--test-split holds out rows, and blocks are no rows"},
        {o->r.eval_when != NXT_NEVER && !held_out,
         "--eval-strategy needs --eval-data or --eval-split"},
        {o->max_eval_samples && o->eval_split > 0 && !o->eval_data,
         "--max-eval-samples is for --eval-data; with --eval-split choose a smaller share"},
        {o->eval_split >= 1 || o->test_split >= 1, "a split is a share below 1"},
        {o->max_new_tokens < 1, "--max-new-tokens: at least 1"},
        {empty_stop, "--stop: an empty text ends every text"},
    };
    for (int64_t i = 0; i < COUNT(rules); i++)
        if (rules[i].bad) return complain(USAGE, "%s", rules[i].why);
    return 0;
}

/* Words to enumerators, and what one option implies for another. Each list has the order of
 * its enumerators; a word without a choice to make is only checked. Held-out data is there to
 * be used, so it implies an evaluation every epoch; top-k and top-p are ways to draw, so they
 * imply the temperature that leaves the model's probabilities as they are. */
static int settle_options(options *o) {
    int truncation = NXT_TRUNCATE_AUTO, schedule = NXT_SCHEDULE_LINEAR, checked;
    int eval_when = o->eval_data || o->eval_split > 0 ? NXT_EPOCH : NXT_NEVER;
    int save_when = (int)o->r.save_when;
    const struct { const char *name, *value, *words; int *choice; } words[] = {
        {"truncation", o->truncation, "auto, right, left, prompt, error", &truncation},
        {"train-on", o->train_on, "completion, all", &o->d.train_on_all},
        {"lr-scheduler-type", o->schedule, "linear, cosine, constant, constant-with-warmup",
         &schedule},
        {"eval-strategy", o->eval_strategy, "no, steps, epoch", &eval_when},
        {"save-strategy", o->save_strategy, "no, steps, epoch", &save_when},
        {"optim", o->optim, "adamw, adamw-torch, adamw-torch-fused, adamw-hf", &checked},
        {"device", o->device, "cpu", &checked},
        {"dtype", o->r.dtype, "f32, f16, bf16, float32, float16, bfloat16, fp16", &checked},
    };
    for (int64_t i = 0; i < COUNT(words); i++) {
        if (!words[i].value) continue;
        *words[i].choice = choose_word(words[i].name, words[i].value, words[i].words);
        if (*words[i].choice < 0) return USAGE;
    }
    o->d.truncation = (nxt_truncation)truncation;
    o->t.schedule = (nxt_schedule)schedule;
    o->r.eval_when = (nxt_when)eval_when, o->r.save_when = (nxt_when)save_when;
    DO(check_conflicts(o));
    o->d.append_eos = o->no_append_eos ? 0 : o->append_eos ? 1 : -1;
    o->t.shuffle = !o->no_shuffle;
    o->s.seed = o->t.seed;
    o->s.top_k = (int)o->top_k;
    if ((o->top_k > 0 || o->s.top_p < 1) && o->s.temperature == 0) o->s.temperature = 1;
    return 0;
}

/* What a command has made so far. Each thing is made from those before it, which is also what
 * a host that embeds the library goes through:
 *
 *     context -> model, tokenizer -> datasets -> trainer -> run         to train
 *                model, tokenizer -> session -> feed, sample, ...       to generate
 */
typedef struct app {
    options o;
    nxt_context *cx, *reader; /* the second keeps the options' texts */
    nxt_model *model;
    nxt_tokenizer *tok;
    nxt_dataset *data, *eval, *test;
    nxt_trainer *trainer;
    nxt_run *run;
    nxt_session *session;
    int64_t capacity; /* tokens of a sequence of the session */
    int64_t prompts_cut;
    char dir[4096];
    int bf16;         /* products in bf16 are in use */
    nxt_model_info info;
} app;

/* In the reverse order of making; whatever was not made is NULL, so that every command may
 * return from anywhere and leaves nothing behind. */
static void close_app(app *a) {
    signal_context = NULL;
    nxt_session_destroy(a->session);
    nxt_run_destroy(a->run);
    nxt_trainer_destroy(a->trainer);
    nxt_dataset_destroy(a->data);
    nxt_dataset_destroy(a->eval);
    nxt_dataset_destroy(a->test);
    nxt_tokenizer_destroy(a->tok);
    nxt_model_destroy(a->model);
    nxt_context_destroy(a->cx);
    nxt_context_destroy(a->reader);
}

/* -- Where a model is ------------------------------------------------------------------ */

/* name "": the directory itself. */
static bool file_exists(const char *dir, const char *name) {
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%.3000s%s%.1000s", dir, *name ? "/" : "", name);
    return stat(path, &st) == 0;
}

/* A hub-cache folder keeps versions below snapshots/; refs/main names the one in use:
 *
 *     models--EleutherAI--pythia-70m/refs/main                       holds "a39f36b1..."
 *     models--EleutherAI--pythia-70m/snapshots/a39f36b1.../config.json
 *
 * Without that file any version that has a config will do. */
static bool find_snapshot(app *a, const char *folder) {
    char path[4096];
    const char *version;
    snprintf(path, sizeof path, "%.4000s/refs/main", folder);
    if (!file_exists(path, "") || nxt_text_read(a->cx, path, &version) != NXT_OK) version = "";
    const int n = (int)least((int64_t)strcspn(version, "\r\n"), 200);
    snprintf(path, sizeof path, "%.4000s/snapshots", folder);
    snprintf(a->dir, sizeof a->dir, "%.2000s/%.*s", path, n, version);
    if (n && file_exists(a->dir, "")) return true;
    DIR *d = opendir(path);
    bool found = false;
    for (const struct dirent *e; d && !found && (e = readdir(d));) {
        snprintf(a->dir, sizeof a->dir, "%.2000s/%.255s", path, e->d_name);
        found = e->d_name[0] != '.' && file_exists(a->dir, "config.json");
    }
    if (d) closedir(d);
    return found;
}

/* "org/name" in the local cache: $HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub, the
 * first of these that is set, as huggingface_hub looks. slash: the one in name. */
static bool find_in_cache(app *a, const char *name, const char *slash) {
    char folder[4096];
    const char *cache = getenv("HF_HUB_CACHE"), *hf = getenv("HF_HOME"), *home = getenv("HOME");
    const char *below = cache ? "" : hf ? "/hub" : "/.cache/huggingface/hub";
    snprintf(folder, sizeof folder, "%.2000s%s/models--%.*s--%.250s",
             cache ? cache : hf ? hf : home ? home : "", below, (int)least(slash - name, 250),
             name, slash + 1);
    return find_snapshot(a, folder);
}

/* A directory, a cache folder or a hub name becomes a directory, in this order: what lies here
 * is never replaced by what was downloaded once. There is no download in this program, but
 * the error says how to make one. */
static int find_model(app *a) {
    if (!a->o.model && a->o.adapter) ASK(nxt_lora_base(a->cx, a->o.adapter, &a->o.model));
    const char *name = a->o.model, *slash = name ? strchr(name, '/') : NULL;
    if (!name) return complain(USAGE, "--model is missing");
    const bool hub =
        slash && slash != name && slash[1] && !strchr(slash + 1, '/') && name[0] != '.';
    const bool here = file_exists(name, "config.json");
    if (!here && (find_snapshot(a, name) || (hub && find_in_cache(a, name, slash)))) return 0;
    snprintf(a->dir, sizeof a->dir, "%s", name);
    if (here) return 0;
    if (file_exists(name, ""))
        return complain(FAILED, "%s: no config.json in it: not a model directory", name);
    complain(FAILED, "%s: no such model directory", name);
    if (hub)
        fprintf(stderr, "To download it:\n  mkdir -p %s && cd %s && for f in config.json "
                "tokenizer.json tokenizer_config.json model.safetensors; do\n"
                "    curl -fLO https://huggingface.co/%s/resolve/main/$f; done\n",
                slash + 1, slash + 1, name);
    return FAILED;
}

/* -- What every command begins with ---------------------------------------------------- */

/* A model that was trained here is evaluated and asked as it was trained: its run.json holds
 * the template and the columns, and what the command line says wins over them. Block size
 * and length belong to training and to its loss, not to prompts. */
static int read_record(app *a, int commands) {
    char path[4200];
    options was = default_options(), *o = &a->o;
    const int known = commands & (EVAL | GENERATE);
    const char *dir = o->adapter ? o->adapter : a->dir, *name = strrchr(dir, '/');
    const bool inside = !strncmp(name ? name + 1 : dir, "checkpoint-", 11);
    const char *record = inside && !file_exists(dir, "run.json") ? "../run.json" : "run.json";
    if (!known || !file_exists(dir, record)) return 0; /* a checkpoint's record is its run's */
    snprintf(path, sizeof path, "%.4000s/%s", dir, record);
    if (read_options(a->cx, path, (config_reader){&was, known, false, 0})) return FAILED;
    if (commands == EVAL && !o->d.block_size && !o->max_length)
        o->d.block_size = was.d.block_size, o->max_length = was.max_length;
    if (!o->d.template_text && !o->d.text_column && !o->d.completion_column) {
        o->d.template_text = was.d.template_text, o->d.text_column = was.d.text_column;
        o->d.prompt_column = was.d.prompt_column;
        o->d.completion_column = was.d.completion_column;
    }
    if (!o->append_eos && !o->no_append_eos)
        o->append_eos = was.append_eos, o->no_append_eos = was.no_append_eos;
    if (!o->truncation) o->truncation = was.truncation;
    if (!o->train_on) o->train_on = was.train_on;
    return 0;
}

/* A template may be given inline, reading \n \t \\ \@, or as @file. Inline, because a shell
 * passes "\n" on as two characters; a file holds real line ends and is taken as it is. */
static int read_template(app *a) {
    const char *t = a->o.d.template_text;
    static const char escapes[] = "n\nt\t\\\\@@"; /* letter, what it stands for */
    if (!t) return 0;
    if (t[0] == '@') return report(a->cx, nxt_text_read(a->cx, t + 1, &a->o.d.template_text));
    char *out = malloc(strlen(t) + 1), *p = out;
    if (!out) return no_memory();
    for (; *t; t++) {
        const char *e = *t == '\\' && t[1] ? strchr(escapes, t[1]) : NULL;
        if (e && (e - escapes) % 2 == 0) *p++ = e[1], t++;
        else *p++ = *t;
    }
    *p = 0;
    nxt_status status = nxt_text_keep(a->cx, out, &a->o.d.template_text);
    free(out);
    return report(a->cx, status);
}

/* The model, its adapters, and what is frozen of it. */
static int open_weights(app *a, const char *adapter, nxt_model **model) {
    nxt_lora_config *c = &a->o.lora;
    ASK(nxt_model_load(model, a->cx, a->dir));
    if (adapter) ASK(nxt_lora_load(*model, adapter));
    if (*model != a->model) return 0; /* saved ones are loaded to be looked at */
    nxt_model_gradient_checkpointing(*model, a->o.recompute);
    c->rank = (int)least(a->o.lora_r, 1 << 20), c->base = a->o.model;
    c->seed = (uint64_t)a->o.t.seed;
    if (a->o.lora_r) ASK(nxt_lora_attach(*model, c));
    if (a->o.freeze) ASK(nxt_model_freeze(*model, a->o.freeze, 0));
    if (a->o.train_only) ASK(nxt_model_freeze(*model, a->o.train_only, 1));
    return 0;
}

/* Model, tokenizer and the options that depend on them. The end-of-text token is the
 * tokenizer's, which wrote the training data; config.json is asked only where it names none.
 * Options are checked before weights are touched: a mistake costs no waiting. */
static int open_model(app *a, int commands) {
    const bool reads_text = commands != INFO || a->o.data.count;
    DO(find_model(a));
    DO(read_record(a, commands));
    DO(read_template(a));
    DO(settle_options(&a->o));
    DO(open_weights(a, a->o.adapter, &a->model));
    nxt_model_describe(a->model, &a->info);
    a->o.d.eos = a->info.eos;
    if (reads_text)
        ASK(nxt_tokenizer_load(&a->tok, a->cx, a->o.r.tokenizer ? a->o.r.tokenizer : a->dir));
    if (reads_text && nxt_tokenizer_eos(a->tok) >= 0) a->o.d.eos = nxt_tokenizer_eos(a->tok);
    a->o.d.max_length = a->o.max_length > 0 ? a->o.max_length : a->info.positions;
    return 0;
}

/* -- What a run will see and need ------------------------------------------------------ */

/* One number out of a file of the system's, the first line that the format fits; 0 when there
 * is none, or no such file, as on systems that are not Linux. */
static double system_number(const char *path, const char *format) {
    char line[256];
    double x = 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, format, &x) == 1) break;
    if (f) fclose(f);
    return x;
}

/* Bytes that the machine, or the container, can still give; 0 when neither says. A container's
 * count includes pages of files, which the kernel takes back before it refuses anything. */
static double available_memory(void) {
    const double free_bytes = 1024 * system_number("/proc/meminfo", "MemAvailable: %lf");
    const double limit = system_number("/sys/fs/cgroup/memory.max", "%lf");
    const double room = limit - system_number("/sys/fs/cgroup/memory.current", "%lf")
                        + system_number("/sys/fs/cgroup/memory.stat", "inactive_file %lf")
                        + system_number("/sys/fs/cgroup/memory.stat", "active_file %lf");
    return limit > 0 && (free_bytes <= 0 || room < free_bytes) ? fmax(room, 1) : free_bytes;
}

/* What the model will see, before an hour is spent on it: most failed runs are failed data.
 * The share that is trained shows a wrong completion, the share that ends in eos a model
 * that will not learn to stop:
 *
 *     train: 30 examples, 728 tokens (longest 29), 8.6% trained, 100.0% end in eos, ...
 */
static void print_data_report(const char *label, const nxt_dataset *data) {
    nxt_dataset_info i;
    nxt_dataset_describe(data, &i);
    const double examples = i.examples ? (double)i.examples : 1;
    const double possible = i.tokens > i.examples ? (double)(i.tokens - i.examples) : 1;
    const struct { int64_t n; const char *kind, *before, *after; } notes[] = {
        {i.untrained, "warning: ", "", " examples have no token to train on"},
        {i.completions_cut, "warning: ", "", " completions were longer than the limit and cut"},
        {i.bad_lines, "warning: ", "", " bad lines were skipped"},
        {i.dropped_tokens, "", "the last ", " tokens do not fill a block and are dropped"},
    };
    fprintf(stderr, "%s: %" PRId64 " examples, %" PRId64 " tokens (longest %" PRId64 "), "
            "%.1f%% trained, %.1f%% end in eos, %" PRId64 " truncated; from %s\n", label,
            i.examples, i.tokens, i.longest, 100 * (double)i.trained_tokens / possible,
            100 * (double)i.ends_in_eos / examples, i.truncated, i.columns);
    for (int64_t k = 0; k < COUNT(notes); k++)
        if (notes[k].n)
            fprintf(stderr, "%s%s: %s%" PRId64 "%s\n", notes[k].kind, label, notes[k].before,
                    notes[k].n, notes[k].after);
}

/* Before an hour of tokenizing. --max-length is only a bound: what counts there is the longest
 * example. */
static int check_length(const app *a) {
    if (a->o.d.block_size <= a->info.positions) return 0;
    return complain(FAILED, "--block-size %" PRId64 ": the model in %s has %" PRId64 " positions",
                    a->o.d.block_size, a->dir, a->info.positions);
}

/* Training data, and what is held out of it or given beside it. The test share leaves first
 * and by another seed, so that it does not change when the evaluation's share does. */
static int load_datasets(app *a) {
    const options *o = &a->o;
    nxt_data_config c = o->d;
    if (!o->data.count) return complain(USAGE, "--data is missing");
    DO(check_length(a));
    c.max_samples = o->max_train_samples;
    ASK(nxt_dataset_from_files(&a->data, a->tok, o->data.text, o->data.count, &c));
    c.max_samples = o->max_eval_samples;
    if (o->eval_data) ASK(nxt_dataset_from_files(&a->eval, a->tok, &o->eval_data, 1, &c));
    if (o->test_split > 0)
        ASK(nxt_dataset_split(a->data, o->test_split, o->t.seed + 1, &a->test));
    if (o->eval_split > 0 && !a->eval)
        ASK(nxt_dataset_split(a->data, o->eval_split, o->t.seed, &a->eval));
    print_data_report("train", a->data);
    if (a->eval) print_data_report("eval", a->eval);
    if (a->test) print_data_report("test", a->test);
    return 0;
}

/* Tokens of the largest batch that can occur. */
static int64_t batch_tokens(const nxt_dataset *data, int64_t batch_size) {
    nxt_dataset_info i;
    nxt_dataset_describe(data, &i);
    return least(batch_size, i.examples) * i.longest;
}

/* The memory the run will take, against what the machine has: a refusal now is better than
 * the kernel's kill in the middle of an evaluation. Pages of mapped weights come on top, but
 * the kernel can drop them at any time. */
static int check_memory(app *a) {
    nxt_memory_plan plan, e;
    nxt_model_memory(a->model, batch_tokens(a->data, a->o.t.batch_size), 1, &plan);
    if (a->eval) { /* evaluation has memory of its own while training's is held */
        nxt_model_memory(a->model, batch_tokens(a->eval, a->o.r.eval_batch_size), 0, &e);
        plan.activations += e.activations, plan.total += e.activations;
    }
    if (a->info.trainable != a->info.parameters)
        fprintf(stderr, "trainable: %" PRId64 " of %" PRId64 " parameters (%.2f %%)\n",
                a->info.trainable, a->info.parameters,
                100 * (double)a->info.trainable / (double)a->info.parameters);
    fprintf(stderr, "memory: %s (weights %s, gradients %s, optimizer %s, activations %s)\n",
            human(plan.total).text, human(plan.weights).text, human(plan.gradients).text,
            human(plan.optimizer).text, human(plan.activations).text);
    const double available = available_memory();
    if (available <= 0 || (double)plan.total <= available) return 0;
    return complain(FAILED, "this run needs %s of memory and the machine has %s free: use a "
                    "smaller --per-device-train-batch-size, --max-length or --block-size",
                    human(plan.total).text, human((int64_t)available).text);
}

/* -- run.json: how a model was made ---------------------------------------------------- */
/* What could not be known later from the model alone: which rows, in which form, for how long.
 * It lies in the output directory, beside the weights it explains. */
static void write_member(FILE *f, const char *name, const char *text, size_t n) {
    fprintf(f, ",\n  \"%s\": ", name);
    print_json_text(f, text, n);
}

/* The template in the spelling that read_template reads: also one that came from a file. */
static void write_template(FILE *f, const char *t) {
    char *text = malloc(2 * strlen(t) + 2), *p = text;
    if (!text) return;
    if (*t == '@') *p++ = '\\';
    for (; *t; t++) {
        if (*t == '\\') *p++ = '\\';
        *p++ = *t;
    }
    write_member(f, "template", text, (size_t)(p - text));
    free(text);
}

/* Every option that differs from its default, under its own name: the file can be given back
 * as --config-file, and makes the same model. The caller frees the text.
 *
 *     {"neoxtune": "0.1.0", "model": "pythia-70m", "output-dir": "tuned", "max-steps": 100,
 *      "template": "Q: {question}\nA: {answer}", "data": ["pairs.jsonl"]}
 */
static int write_record(const options *o, char **text) {
    const options standard = default_options();
    size_t n;
    FILE *f = open_memstream(text, &n);
    if (!f) return no_memory();
    fprintf(f, "{\n  \"neoxtune\": \"%s\"", nxt_version());
    for (int64_t i = 0; i < COUNT(option_table); i++) {
        const option *p = &option_table[i];
        const void *field = (const char *)o + p->field;
        const void *was = (const char *)&standard + p->field;
        if (!(p->commands & TRAIN) || field == &o->d.template_text) continue;
        const char *word = p->kind == 's' ? *(const char *const *)field : NULL;
        if (word) write_member(f, p->name, word, strlen(word));
        if (p->kind == 'i' && *(const int64_t *)field != *(const int64_t *)was)
            fprintf(f, ",\n  \"%s\": %" PRId64, p->name, *(const int64_t *)field);
        if (p->kind == 'd' && *(const double *)field != *(const double *)was)
            fprintf(f, ",\n  \"%s\": %.17g", p->name, *(const double *)field);
        if (p->kind == 'b' && *(const int *)field) fprintf(f, ",\n  \"%s\": true", p->name);
    }
    if (o->d.template_text) write_template(f, o->d.template_text);
    fputs(",\n  \"data\": [", f);
    for (int i = 0; i < o->data.count; i++) {
        fputs(i ? ", " : "", f);
        print_json_text(f, o->data.text[i], strlen(o->data.text[i]));
    }
    fputs("]\n}\n", f);
    fclose(f);
    return *text ? 0 : no_memory();
}

/* -- train ----------------------------------------------------------------------------- */

/* The step in progress ends first. A second signal finds the default action, and kills. */
static void on_interrupt(int number) {
    interrupted = 1;
    if (signal_context) nxt_cancel(signal_context);
    signal(number, SIG_DFL);
}

/* Reading a mapped page that its file no longer has; only write and _exit are allowed here. */
static void on_bus_error(int number) {
    static const char text[] = "neoxtune: a weight or data file shrank while it was in use\n";
    ssize_t ignored = write(2, text, sizeof text - 1);
    (void)ignored, (void)number;
    _exit(1);
}

/* Anything in it counts: an earlier run is never mixed with a new one, and a directory that
 * holds something else, named by mistake, keeps it. */
static bool directory_in_use(const char *dir) {
    DIR *d = opendir(dir);
    bool used = false;
    for (const struct dirent *e; d && (e = readdir(d));)
        used |= strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    if (d) closedir(d);
    return used;
}

/* What the lines of a training need to know of it. */
typedef struct progress {
    const char *clear;     /* erases the line a terminal is on; "": it is no terminal */
    int64_t first;         /* the step this process began with; a resumed run not at 0 */
    double started, shown; /* when the process began, and when its last line was written */
} progress;

/* One line that is rewritten on a terminal; elsewhere, in a log file, at most one a second.
 * Time left: at the mean speed of this process so far.
 *
 *     step 40/200  epoch 0.62  loss 2.1043  lr 4.00e-05  grad 1.31  5120 tokens/s  0:41 left
 */
static void show_step(const nxt_run_info *i, progress *p) {
    const double now = now_seconds();
    const nxt_step_info *s = &i->step;
    const bool terminal = *p->clear, last = s->step == s->total_steps;
    if (s->skipped)
        fprintf(stderr, "%swarning: step %" PRId64 " was skipped: its gradient is not finite\n",
                p->clear, s->step);
    if (!i->logged || (!terminal && !last && s->step > 1 && now - p->shown < 1)) return;
    p->shown = now;
    const double left = (now - p->started) / (double)(s->step - p->first)
                        * (double)(s->total_steps - s->step);
    fprintf(stderr, "%sstep %" PRId64 "/%" PRId64 "  epoch %.2f  loss %.4f  lr %.2e  "
            "grad %.2f  %.0f tokens/s  %d:%02d left%s", p->clear, s->step, s->total_steps,
            s->epoch, i->mean_loss, s->learning_rate, s->grad_norm, i->tokens_per_second,
            (int)left / 60, (int)left % 60, terminal && !last ? "" : "\n");
}

/* Evaluations and checkpoints get lines of their own, which stay: they are what one scrolls
 * back for. */
static void show_events(const nxt_run_info *i, const progress *p) {
    if (i->evaluated)
        fprintf(stderr, "%seval at step %" PRId64 ": loss %.4f, perplexity %.3f (%.1f s)\n",
                p->clear, i->step.step, i->eval.loss, i->eval.perplexity, i->eval.seconds);
    if (i->saved) fprintf(stderr, "%ssaved %s\n", p->clear, i->checkpoint);
}

/* -- The profile, for train --profile and bench --------------------------------------- */
static int by_seconds(const void *a, const void *b) {
    const nxt_profile_row *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

/* The least time an operation could take: its FLOP at the arithmetic peak or its bytes at the
 * rate of reading memory, whichever is longer (the "roofline" [Williams09]). What comes out of
 * a cache can beat the second. */
static double least_seconds(const nxt_profile_row *r, const nxt_limits *l, double peak) {
    return fmax(peak > 0 ? r->flop / peak : 0, r->bytes / l->read);
}

/* Where the time of `steps` steps went, an operation a line, or as JSON's "ops". */
static void print_profile(app *a, FILE *f, const nxt_limits *l, double peak, double steps) {
    nxt_profile_row rows[128];
    const int64_t n = nxt_profile_read(a->cx, rows, COUNT(rows));
    double all = 0;
    qsort(rows, (size_t)n, sizeof *rows, by_seconds);
    for (int64_t i = 0; i < n; i++) all += rows[i].seconds;
    if (!a->o.json)
        fprintf(f, "%-14s %6s %6s %6s %6s %10s %6s %16s %9s\n", "operation", "rows", "out", "in",
                "calls", "ms", "share", "rate", "of limit");
    for (int64_t i = 0; i < n; i++) {
        const nxt_profile_row *r = &rows[i];
        const double ms = 1e3 * r->seconds / steps, calls = (double)r->calls / steps;
        const double rate = (r->flop > 0 ? r->flop : r->bytes) / r->seconds / 1e9;
        const double used = least_seconds(r, l, peak) / r->seconds;
        const double mean_rows = (double)r->rows / (double)r->calls;
        char sizes[64] = "";
        if (r->out)
            snprintf(sizes, sizeof sizes, "%6.0f %6" PRId64 " %6" PRId64, mean_rows, r->out, r->in);
        if (a->o.json)
            fprintf(f, "%s{\"op\": \"%s\", \"rows\": %g, \"out\": %" PRId64 ", \"in\": %"
                    PRId64 ", \"calls\": %g, \"ms\": %.4f, \"share\": %.5f, \"gflop_per_s\": %.1f, "
                    "\"gb_per_s\": %.2f, \"of_limit\": %.4f}", i ? ", " : "", r->op, mean_rows,
                    r->out, r->in, calls, ms, r->seconds / all, r->flop / r->seconds / 1e9,
                    r->bytes / r->seconds / 1e9, used);
        else
            fprintf(f, "%-14s %20s %6.0f %10.2f %5.1f%% %8.1f %-7s %8.0f%%\n", r->op, sizes, calls,
                    ms, 100 * r->seconds / all, rate, r->flop > 0 ? "GFLOP/s" : "GB/s", 100 * used);
    }
}

/* After a training run: its steps but the first, evaluations included. */
static int show_profile(app *a, double steps) {
    nxt_limits l;
    if (!a->o.profile || steps < 1) return 0;
    ASK(nxt_measure_limits(a->cx, &l));
    fputs("\nper step, without the first:\n", stderr);
    print_profile(a, stderr, &l, a->bf16 ? l.bf16 : l.f32, steps);
    nxt_profile_stop(a->cx);
    return 0;
}

/* Steps until the end or an interrupt; then a checkpoint, so that nothing is lost. A step is
 * never cut short: only an evaluation returns "cancelled", and its step is done. */
static int training_loop(app *a) {
    nxt_run_info info = {0};
    progress p = {.clear = isatty(2) ? "\r\033[K" : "", .first = -1, .started = now_seconds()};
    while (!nxt_trainer_done(a->trainer) && !interrupted) {
        nxt_status status = nxt_run_step(a->run, &info);
        if (status == NXT_CANCELLED && interrupted) break;
        if (status != NXT_OK) fputs(*p.clear ? "\n" : "", stderr);
        ASK(status);
        if (p.first < 0) {
            p.first = info.step.step - 1;
            if (a->o.profile) ASK(nxt_profile_start(a->cx)); /* not the first step: it warms up */
        }
        show_step(&info, &p);
        show_events(&info, &p);
    }
    DO(show_profile(a, (double)(info.step.step - p.first - 1)));
    if (!interrupted) return 0;
    nxt_cancel_clear(a->cx);
    if (!info.saved && nxt_run_checkpoint(a->run, &info) != NXT_OK)
        return report(a->cx, NXT_IO);
    fprintf(stderr,
            "\ninterrupted: %s is saved; --resume-from-checkpoint last goes on from there\n",
            info.checkpoint);
    return INTERRUPTED;
}

/* What was written is loaded and evaluated: a model saved as f16 is not the one in memory, and
 * a file that cannot be read again should be noticed now, not when the machine is gone. */
static int check_saved(app *a) {
    nxt_model *saved;
    nxt_eval_info e;
    signal_context = NULL; /* everything is saved: a first interrupt changes nothing any more */
    const bool adapters = a->o.lora_r || a->o.adapter;
    if (adapters) DO(open_weights(a, a->o.r.output_dir, &saved));
    else ASK(nxt_model_load(&saved, a->cx, a->o.r.output_dir));
    nxt_status status = NXT_OK;
    if (a->eval) status = nxt_evaluate(saved, a->eval, a->o.r.eval_batch_size, &e);
    if (a->eval && status == NXT_OK)
        fprintf(stderr, "saved model: eval loss %.4f, perplexity %.3f\n", e.loss, e.perplexity);
    nxt_model_destroy(saved);
    if (status == NXT_OK)
        fprintf(stderr, "the %s in %s\n", adapters ? "adapters are" : "model is",
                a->o.r.output_dir);
    return report(a->cx, status);
}

/* "last" stands for the newest checkpoint of the output directory; "true" is how Hugging
 * Face's Trainer is told the same. */
static int find_resume(app *a, char *path, size_t n) {
    const char *resume = a->o.resume;
    snprintf(path, n, "%s", resume ? resume : "");
    if (!resume || (strcmp(resume, "last") && strcmp(resume, "true"))) return 0;
    ASK(nxt_run_last_checkpoint(a->cx, a->o.r.output_dir, path, n));
    if (path[0]) return 0;
    return complain(FAILED, "%s: no checkpoint to resume from", a->o.r.output_dir);
}

/* Held-out rows as they were read, so that other models can be compared on them. Blocks have
 * no rows: they run across them. */
static int write_split(app *a, const nxt_dataset *d, const char *name) {
    char path[4200];
    nxt_dataset_info i = {0};
    if (d) nxt_dataset_describe(d, &i);
    if (!i.rows || a->o.d.block_size) return 0;
    snprintf(path, sizeof path, "%s/%s", a->o.r.output_dir, name);
    return report(a->cx, nxt_dataset_write_rows(d, path));
}

/* Trainer and run, at the beginning or where a checkpoint left off. Held-out rows are written
 * before the first step, so that they are there even if the run is stopped. */
static int start_run(app *a) {
    char resume[4200], *record = NULL;
    DO(find_resume(a, resume, sizeof resume));
    DO(write_record(&a->o, &record));
    a->o.r.eval_data = a->eval;
    a->o.r.run_json = record;
    nxt_status status = nxt_trainer_create(&a->trainer, a->model, a->data, &a->o.t);
    if (status == NXT_OK)
        status = nxt_run_create(&a->run, a->trainer, &a->o.r, resume[0] ? resume : NULL);
    free(record);
    ASK(status);
    if (a->o.eval_split > 0) DO(write_split(a, a->eval, "eval.jsonl"));
    return write_split(a, a->test, "test.jsonl");
}

/* A checkpoint of an earlier run cannot be the start of a run that replaces that run: every
 * save copies the tokenizer's files from it, and it would be gone before the first one. */
static bool model_is_inside(const char *model, const char *output_dir) {
    char *m = realpath(model, NULL), *out = realpath(output_dir, NULL);
    const size_t n = out ? strlen(out) : 0;
    const bool inside = m && out && !strncmp(m, out, n)
                        && (!m[n] || !strncmp(m + n, "/checkpoint-", 12));
    free(m);
    free(out);
    return inside;
}

static int check_output(const app *a, const char *out) {
    if (!out) return complain(USAGE, "--output-dir is missing");
    if (!a->o.overwrite && !a->o.resume && directory_in_use(out))
        return complain(FAILED, "%s: not empty; --overwrite-output-dir replaces an earlier "
                        "run, --resume-from-checkpoint last continues it", out);
    const char *inside = model_is_inside(a->dir, out) ? a->dir : NULL;
    if (a->o.adapter && model_is_inside(a->o.adapter, out)) inside = a->o.adapter;
    if (inside)
        return complain(FAILED, "%s: lies in the output directory %s, whose model and "
                        "checkpoints a run replaces: choose another directory", inside, out);
    return 0;
}

/* All that can be refused is refused before anything is written or replaced; what takes long,
 * reading and tokenizing the data, comes after what is checked at once. Signals are caught
 * from the moment on at which there is something to save. */
static int run_train(app *a) {
    DO(open_model(a, TRAIN));
    if (!a->o.dry_run) DO(check_output(a, a->o.r.output_dir));
    DO(load_datasets(a));
    ASK(nxt_trainer_check(a->model, a->data, &a->o.t));
    DO(check_memory(a));
    if (a->o.dry_run) return 0;
    signal_context = a->cx;
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    DO(start_run(a));
    DO(training_loop(a));
    if (nxt_run_finish(a->run) != NXT_OK) return report(a->cx, NXT_IO);
    return check_saved(a);
}

/* -- generate -------------------------------------------------------------------------- */
typedef struct completion { /* one sequence on its way */
    int32_t *ids;           /* prompt and new tokens */
    int64_t n, prompt;      /* tokens in all; of the prompt */
    char *text;             /* bytes of the new tokens, special ones left out */
    size_t bytes, printed;
    uint64_t stream;        /* of random numbers */
    double rate;            /* tokens per second, of all that were made side by side */
    bool done;
    bool first;             /* it begins the text: the tokenizer's own space is not part of it */
} completion;

/* An example, and the tokens before its first trained one: its prompt. */
typedef struct example {
    const int32_t *ids;
    const uint8_t *trained;
    int64_t n, prompt;
} example;

static example get_example(const nxt_dataset *data, int64_t i) {
    example e = {0};
    nxt_dataset_example(data, i, &e.ids, &e.trained, &e.n);
    while (e.prompt < e.n && !e.trained[e.prompt]) e.prompt++;
    return e;
}

/* The ids of a text, which the caller frees. NFC can lengthen a text threefold, and a token
 * has at least one byte. */
static int encode_text(app *a, const char *text, size_t n, int32_t **ids, size_t *count) {
    *ids = malloc((3 * n + 2) * sizeof **ids);
    if (!*ids) return no_memory();
    nxt_status status = nxt_encode(a->tok, text, n, *ids, NULL, 3 * n + 1, count);
    if (status != NXT_OK) free(*ids);
    return report(a->cx, status);
}

/* Adds the bytes of n ids to a text of *bytes bytes, and a NUL. Asked twice, because the first
 * answer says how much room the second needs. The caller frees it, after a failure too. */
static int decode_text(app *a, const int32_t *ids, int64_t n, char **text, size_t *bytes) {
    size_t more = 0;
    ASK(nxt_decode(a->tok, ids, (size_t)n, NULL, 0, &more));
    char *bigger = realloc(*text, *bytes + more + 1);
    if (!bigger) return no_memory();
    *text = bigger;
    ASK(nxt_decode(a->tok, ids, (size_t)n, *text + *bytes, more, &more));
    *bytes += more;
    (*text)[*bytes] = 0;
    return 0;
}

/* The space that a tokenizer puts in front of a text of its own accord. */
static void drop_space(char *text, size_t *bytes) {
    if (*bytes && text[0] == ' ') memmove(text, text + 1, (*bytes)--);
}

/* Adds a token's bytes; finishes at eos, at a stop text (which is cut off) or at the limits.
 * Stop texts are looked for in bytes, not in ids: the same text can be cut into tokens in many
 * ways. Special tokens are marks for the model, and no part of what it says. */
static int take_token(app *a, completion *c, int32_t id) {
    c->ids[c->n++] = id;
    if (!nxt_token_is_special(a->tok, id)) {
        DO(decode_text(a, &id, 1, &c->text, &c->bytes));
        if (c->first) drop_space(c->text, &c->bytes);
        c->first = false;
    }
    for (int s = 0; s < a->o.stop.count; s++) {
        char *at = c->text ? strstr(c->text, a->o.stop.text[s]) : NULL;
        if (at) *at = 0, c->bytes = (size_t)(at - c->text), c->done = true;
    }
    const bool eos = id == a->o.d.eos || nxt_model_ends(a->model, id);
    c->done |= eos || c->n - c->prompt >= a->o.max_new_tokens || c->n >= a->capacity;
    return 0;
}

/* Bytes that are no UTF-8 are printed as U+FFFD, as they are in JSON. */
static void print_text(const char *text, size_t n) {
    for (size_t i = 0, size; i < n; i += size) {
        size = character_size((const unsigned char *)text + i, n - i);
        if (size) fwrite(text + i, 1, size, stdout);
        else size = 1, fputs("\xef\xbf\xbd", stdout);
    }
}

/* Prints what is certain: whole characters, and nothing that could begin a stop text. A token
 * is bytes, and a character outside ASCII may be spread over several; an end of the text that
 * is the beginning of a stop text waits until the next tokens decide. */
static void stream_text(app *a, completion *c) {
    size_t whole = c->done ? c->bytes : nxt_utf8_whole(c->text ? c->text : "", c->bytes);
    for (int s = 0; s < a->o.stop.count && !c->done; s++)
        for (size_t k = strlen(a->o.stop.text[s]); k-- > 1;)
            if (whole >= k && !memcmp(c->text + whole - k, a->o.stop.text[s], k)) {
                whole -= k;
                break;
            }
    if (whole <= c->printed) return;
    print_text(c->text + c->printed, whole - c->printed);
    fflush(stdout);
    c->printed = whole;
}

/* Completes `count` prompts side by side, sequence i being c[i]: one pass reads all prompts,
 * each further one the last token of those that go on. A matrix product over 16 rows costs
 * little more than one over a single row, because the weights are read once for all.
 * stream: print text as it comes. */
static int complete(app *a, completion *c, int count, bool stream) {
    const int64_t V = a->info.vocabulary;
    float *logits = malloc((size_t)count * (size_t)V * sizeof *logits);
    nxt_feed *feeds = malloc((size_t)count * sizeof *feeds);
    int status = logits && feeds ? 0 : no_memory();
    const double start = now_seconds();
    int64_t made = 0;
    for (bool prompts = true; !status; prompts = false) {
        int n = 0;
        for (int i = 0; i < count; i++) {
            const int64_t from = prompts ? 0 : c[i].n - 1;
            if (!c[i].done) feeds[n++] = (nxt_feed){i, c[i].ids + from, c[i].n - from};
        }
        if (!n) break;
        status = report(a->cx, nxt_session_feed(a->session, feeds, n, logits));
        for (int k = 0; k < n && !status; k++, made++) {
            completion *x = &c[feeds[k].sequence];
            int32_t id = 0;
            status = report(a->cx, nxt_sample(a->cx, logits + k * V, V, &a->o.s, x->stream,
                                              x->ids, x->n, &id));
            if (!status) status = take_token(a, x, id);
            if (stream && !status) stream_text(a, x);
        }
    }
    const double rate = (double)made / fmax(now_seconds() - start, 1e-9);
    for (int i = 0; i < count; i++) c[i].rate = rate;
    free(logits);
    free(feeds);
    return status;
}

/* A completion that begins with the prompt's ids; it ends when the context is full. A prompt
 * that leaves no room at all is shortened at its beginning, since what stands last in it, the
 * question, matters most, until an answer fits. Sequence `which` starts anew. An empty prompt
 * becomes an end-of-text token, behind which, in training, a text began. */
static int begin_completion(app *a, completion *c, int which, const int32_t *ids, int64_t n) {
    const int64_t capacity = a->capacity;
    if (a->o.max_input_tokens > 0 && n > a->o.max_input_tokens)
        ids += n - a->o.max_input_tokens, n = a->o.max_input_tokens;
    const int64_t room = least(a->o.max_new_tokens, capacity / 2);
    const int64_t kept = n < capacity ? n : capacity - room;
    a->prompts_cut += kept < n;
    nxt_session_rewind(a->session, which, 0);
    *c = (completion){.ids = malloc((size_t)(capacity + 1) * sizeof *c->ids)};
    if (!c->ids) return no_memory();
    c->n = c->prompt = kept;
    if (c->n) memcpy(c->ids, ids + n - c->n, (size_t)c->n * sizeof *ids);
    if (!n && a->o.d.eos >= 0) c->ids[0] = a->o.d.eos, c->n = c->prompt = 1; /* as a start */
    return c->n ? 0 : complain(USAGE, "the prompt is empty");
}

/* Prompts are not shortened in silence. */
static void report_cut_prompts(app *a) {
    if (a->prompts_cut)
        fprintf(stderr, "warning: %" PRId64 " %s longer than the context of %" PRId64
                " tokens and lost the beginning\n", a->prompts_cut,
                a->prompts_cut == 1 ? "prompt was" : "prompts were", a->capacity);
    a->prompts_cut = 0;
}

static void end_completion(completion *c) {
    free(c->ids);
    free(c->text);
    *c = (completion){0};
}

/* The ids are those of the new tokens alone, eos included.
 *
 *     {"prompt": "Q: ..", "completion": " red", "ids": [880, 0], "tokens_per_second": 41.30}
 */
static void print_completion_json(const char *prompt, size_t n, const completion *c) {
    fputs("{\"prompt\": ", stdout);
    print_json_text(stdout, prompt, n);
    fputs(", \"completion\": ", stdout);
    print_json_text(stdout, c->text ? c->text : "", c->bytes);
    fputs(", \"ids\": [", stdout);
    for (int64_t i = c->prompt; i < c->n; i++)
        printf("%s%d", i > c->prompt ? ", " : "", c->ids[i]);
    printf("], \"tokens_per_second\": %.2f}\n", c->rate);
    fflush(stdout);
}

/* Room for `most` tokens, unless the model or --max-length says less. Rotary angles are known
 * for any position, but the model has learned nothing about those beyond its own. */
static int open_session(app *a, int sequences, int64_t most) {
    if (a->o.max_length > 0) most = least(most, a->o.max_length);
    a->capacity = least(most, a->info.positions);
    if (a->capacity < 2) return complain(USAGE, "--max-length: a prompt and an answer are two");
    return report(a->cx, nxt_session_create(&a->session, a->model, sequences, a->capacity));
}

/* What is done with the completion of an example: it is printed, or scored into *sum. */
typedef int answer_fn(app *a, const example *e, completion *c, double *sum);

/* Completes the prompts of all examples, a few at a time. An example draws from the stream of
 * its own number, so what it gets does not depend on who its neighbours are. */
static int complete_examples(app *a, answer_fn *use, double *sum) {
    enum { SIDE_BY_SIDE = 16 };
    nxt_dataset_info info;
    completion c[SIDE_BY_SIDE] = {{0}};
    nxt_dataset_describe(a->data, &info);
    int status = open_session(a, (int)least(info.examples, SIDE_BY_SIDE),
                              info.longest + a->o.max_new_tokens);
    for (int64_t at = 0; at < info.examples && !status; at += SIDE_BY_SIDE) {
        const int count = (int)least(info.examples - at, SIDE_BY_SIDE);
        for (int k = 0; k < count && !status; k++) {
            const example e = get_example(a->data, at + k);
            status = begin_completion(a, &c[k], k, e.ids, a->o.prompts ? e.n : e.prompt);
            c[k].stream = (uint64_t)(at + k);
        }
        if (!status) status = complete(a, c, count, false);
        for (int k = 0; k < count; k++) {
            const example e = get_example(a->data, at + k);
            if (!status) status = use(a, &e, &c[k], sum);
            end_completion(&c[k]);
        }
    }
    report_cut_prompts(a);
    return status;
}

/* One prompt, given as text, which is tokenized as it is: a space at its end is a token of its
 * own, and a question for the template that made the training rows. The text goes to standard
 * output as it comes, or one JSON object at the end. */
static int generate_text(app *a, const char *prompt, size_t n) {
    completion c = {0};
    int32_t *ids;
    size_t count = 0;
    DO(encode_text(a, prompt, n, &ids, &count));
    if (nxt_tokenizer_adds_bos(a->tok)) {
        memmove(ids + 1, ids, count++ * sizeof *ids);
        ids[0] = nxt_tokenizer_bos(a->tok);
    }
    int status = begin_completion(a, &c, 0, ids, (int64_t)count);
    c.first = !n && nxt_tokenizer_adds_space(a->tok);
    report_cut_prompts(a);
    if (!status) status = complete(a, &c, 1, !a->o.json);
    if (!status && a->o.json) print_completion_json(prompt, n, &c);
    else if (!status) stream_text(a, &c), putchar('\n');
    end_completion(&c);
    free(ids);
    return status;
}

static int print_answer(app *a, const example *e, completion *c, double *sum) {
    (void)sum;
    char *prompt = NULL;
    size_t bytes = 0;
    const int64_t bos = nxt_tokenizer_adds_bos(a->tok) && e->n;
    const int status = decode_text(a, e->ids + bos, e->n - bos, &prompt, &bytes);
    if (!status && nxt_tokenizer_adds_space(a->tok)) drop_space(prompt, &bytes);
    if (!status && a->o.json) print_completion_json(prompt, bytes, c);
    else if (!status) stream_text(a, c), putchar('\n');
    free(prompt);
    return status;
}

/* The prompts of a file: lines, or the prompt parts of rows. Rows go through the same code as
 * for training, so a prompt has the form that was trained. */
static int generate_file(app *a) {
    nxt_data_config c = a->o.d;
    c.append_eos = 0, c.block_size = 0, c.prompts_only = 1;
    c.max_length = INT32_MAX; /* begin_completion keeps what fits */
    c.max_samples = a->o.max_eval_samples;
    ASK(nxt_dataset_from_files(&a->data, a->tok, &a->o.prompts, 1, &c));
    return complete_examples(a, print_answer, NULL);
}

/* A file of prompts, one prompt, standard input as one, or, on a terminal, one a line: each
 * prompt rewinds the session, whose cache is not made again. */
static int run_generate(app *a) {
    char line[65536], *text;
    size_t n;
    DO(open_model(a, GENERATE));
    if (a->o.prompts) return generate_file(a);
    DO(open_session(a, 1, a->info.positions));
    if (a->o.prompt) return generate_text(a, a->o.prompt, strlen(a->o.prompt));
    int status = 0;
    if (!isatty(0)) {
        DO(read_all(NULL, &text, &n));
        status = generate_text(a, text, n);
        free(text);
        return status;
    }
    while (!status && !interrupted) {
        fputs("> ", stderr);
        if (!fgets(line, sizeof line, stdin)) break;
        line[strcspn(line, "\r\n")] = 0;
        if (line[0]) status = generate_text(a, line, strlen(line));
    }
    return status;
}

/* -- eval ------------------------------------------------------------------------------ */

/* The completion against the row's own: its trained tokens up to eos, because what follows
 * the completion in a template is not asked for. Decoded from ids, like the answer, so that
 * both went through the same normalisation. */
static int score_answer(app *a, const example *e, completion *c, double *sum) {
    char *reference = NULL;
    size_t bytes = 0;
    double score = 0;
    int64_t end = e->prompt;
    while (end < e->n && e->trained[end] && e->ids[end] != a->o.d.eos) end++;
    int status = decode_text(a, e->ids + e->prompt, end - e->prompt, &reference, &bytes);
    if (!status)
        status = report(a->cx, nxt_score_exact_match(a->cx, c->text ? c->text : "", reference,
                                                     &score));
    *sum += score;
    free(reference);
    return status;
}

/* What eval prints, in its two forms. */
typedef struct eval_numbers {
    nxt_eval_info e;
    nxt_dataset_info texts;
    double *perplexity, mean, bits_per_byte, exact_match;
    bool completions;
} eval_numbers;

/* evaluate's definition: the texts alone, no eos, a start token in front. Perplexities of two
 * tokenizers cannot be compared, bits per byte can: they are the nats of all tokens over
 * log 2 and over the bytes of the text, however it was cut into tokens. */
static int text_perplexities(app *a, eval_numbers *r) {
    nxt_data_config c = a->o.d;
    double nats = 0, all_bytes = 0;
    int64_t scored = 0;
    size_t bytes;
    c.append_eos = c.add_bos = 0, c.train_on_all = 1, c.max_samples = a->o.max_eval_samples;
    if (!c.block_size) c.max_length = least(c.max_length, a->info.positions - 1);
    c.block_size = least(c.block_size, a->info.positions - 1);
    ASK(nxt_dataset_from_files(&a->eval, a->tok, a->o.data.text, a->o.data.count, &c));
    nxt_dataset_describe(a->eval, &r->texts);
    const int32_t own = nxt_tokenizer_bos(a->tok), bos = own >= 0 ? own : a->info.bos;
    r->perplexity = calloc((size_t)r->texts.examples + 1, sizeof *r->perplexity);
    if (!r->perplexity) return no_memory();
    ASK(nxt_perplexities(a->model, a->eval, a->o.r.eval_batch_size, bos, r->perplexity));
    for (int64_t i = 0; i < r->texts.examples; i++) {
        const example e = get_example(a->eval, i);
        if (isnan(r->perplexity[i])
            || nxt_decode(a->tok, e.ids, (size_t)e.n, NULL, 0, &bytes) != NXT_OK)
            continue; /* nothing of it is predicted */
        scored++;
        r->mean += r->perplexity[i];
        nats += log(r->perplexity[i]) * (double)(e.n - (bos < 0));
        all_bytes += (double)bytes;
    }
    r->mean = scored ? r->mean / (double)scored : NAN;
    r->bits_per_byte = all_bytes > 0 ? nats / log(2) / all_bytes : NAN;
    return 0;
}

/* As lines for people, or as the one JSON object that --json promises:
 *
 *     {"loss": 2.31, "perplexity": 10.07, "tokens": 9120, "mean_perplexity": 12.8,
 *      "perplexities": [11.2, ...], "texts": 200, "bits_per_byte": 0.91, "exact_match": 0.85}
 */
static void print_eval(const eval_numbers *r, bool as_json) {
    if (!as_json) {
        printf("loss %.5f   perplexity %.4f   over %" PRId64 " tokens of %" PRId64
               " examples\nper text, with a start token: mean perplexity %.4f over %" PRId64
               " texts; %.4f bits per byte\n", r->e.loss, r->e.perplexity, r->e.tokens,
               r->e.examples, r->mean, r->texts.examples, r->bits_per_byte);
        if (r->completions) printf("exact match %.1f%%\n", 100 * r->exact_match);
        return;
    }
    print_number("{\"loss\": ", r->e.loss);
    print_number(", \"perplexity\": ", r->e.perplexity);
    printf(", \"tokens\": %" PRId64, r->e.tokens);
    print_number(", \"mean_perplexity\": ", r->mean);
    fputs(", \"perplexities\": [", stdout);
    for (int64_t i = 0; i < r->texts.examples; i++)
        print_number(i ? ", " : "", r->perplexity[i]);
    printf("], \"texts\": %" PRId64, r->texts.examples);
    print_number(", \"bits_per_byte\": ", r->bits_per_byte);
    if (r->completions) print_number(", \"exact_match\": ", r->exact_match);
    puts("}");
}

/* Three views of one model: loss as in training, perplexities as `evaluate` has them, and,
 * where rows have completions, how many answers are right. */
static int run_eval(app *a) {
    eval_numbers r = {0};
    nxt_dataset_info info;
    DO(open_model(a, EVAL));
    if (!a->o.data.count) return complain(USAGE, "--data is missing");
    nxt_data_config c = a->o.d;
    c.max_samples = a->o.max_eval_samples;
    ASK(nxt_dataset_from_files(&a->data, a->tok, a->o.data.text, a->o.data.count, &c));
    ASK(nxt_evaluate(a->model, a->data, a->o.r.eval_batch_size, &r.e));
    print_data_report("eval", a->data);
    nxt_dataset_describe(a->data, &info);
    int status = text_perplexities(a, &r);
    r.completions = info.has_completions && !a->o.d.train_on_all && !a->o.d.block_size;
    /* Greedy even when sampling is what the model is for: a score should not depend on luck. */
    if (!status && r.completions) status = complete_examples(a, score_answer, &r.exact_match);
    if (info.examples) r.exact_match /= (double)info.examples;
    if (!status) print_eval(&r, a->o.json);
    free(r.perplexity);
    return status;
}

/* -- tokenize, info, init -------------------------------------------------------------- */

/* Ids separated by spaces, or just their number. No special tokens are added: what is printed
 * is what nxt_encode gives, and training sees. */
static int print_ids(app *a, const char *text, size_t n) {
    int32_t *ids;
    size_t count = 0;
    DO(encode_text(a, text, n, &ids, &count));
    if (a->o.count) printf("%zu", count);
    for (size_t i = 0; i < count && !a->o.count; i++) printf("%s%d", i ? " " : "", ids[i]);
    putchar('\n');
    free(ids);
    return 0;
}

/* Ids back to bytes, exactly: no newline is added. An id takes two characters at least. */
static int print_decoded(app *a, const char *text) {
    int32_t *ids = malloc((strlen(text) / 2 + 1) * sizeof *ids);
    size_t n = 0, bytes = 0;
    char *out = NULL, *end;
    int status = ids ? 0 : no_memory();
    for (const char *p = text; !status; p = end) {
        p += strspn(p, " \t\r\n,");
        if (!*p) break;
        const long id = strtol(p, &end, 10);
        if (end == p || id < 0 || id >= nxt_tokenizer_size(a->tok))
            status = complain(FAILED, "not a token id: \"%.*s\"",
                              (int)least((int64_t)strcspn(p, " \t\r\n"), 20), p);
        else ids[n++] = (int32_t)id;
    }
    if (!status) status = decode_text(a, ids, (int64_t)n, &out, &bytes);
    if (!status && nxt_tokenizer_adds_space(a->tok)) drop_space(out, &bytes);
    if (!status) fwrite(out, 1, bytes, stdout);
    free(ids);
    free(out);
    return status;
}

/* Needs no weights: a folder that has a tokenizer will do. The whole input is one text, line
 * ends included, because that is what a model would be given. */
static int run_tokenize(app *a) {
    const char *from = a->o.r.tokenizer, *model = a->o.model;
    char *text;
    size_t n;
    if (!from && !model) return complain(USAGE, "--model or --tokenizer is missing");
    if (!from && (file_exists(model, "tokenizer.json") || file_exists(model, "vocab.json")))
        from = model;
    if (!from) DO(find_model(a));
    ASK(nxt_tokenizer_load(&a->tok, a->cx, from ? from : a->dir));
    DO(read_all(a->o.file, &text, &n));
    int status = 0;
    if (a->o.decode) status = print_decoded(a, text);
    else if (!a->o.lines) status = print_ids(a, text, n);
    else
        for (char *line = text, *end = text + n; line < end && !status;) {
            char *stop = memchr(line, '\n', (size_t)(end - line));
            status = print_ids(a, line, (size_t)((stop ? stop : end) - line));
            line = stop ? stop + 1 : end;
        }
    free(text);
    return status;
}

/* Floating-point operations of one optimizer step. A weight matrix costs a multiplication and
 * an addition per weight and row in forward, and twice that in backward (dX and dW): hence
 * the 6 of "6 x tokens x parameters" [Kaplan20], which Hugging Face counts with all
 * parameters but the input embedding. What is really done is that of the matrices, and
 * attention's two products of a row with the keys before it, half a text on average. */
static void count_flops(const app *a, double rows, double length, double *hf, double *real) {
    const nxt_model_info *i = &a->info;
    const double C = (double)i->width, L = (double)i->layers, D = (double)i->head_size;
    const double query = D * (double)i->heads, keys = D * (double)i->key_heads;
    const double matrices = L * C * (2 * query + 2 * keys + (i->gated ? 3 : 2) * (double)i->inner)
                            + C * (double)i->vocabulary;
    *hf = 6 * rows * (double)(i->parameters - i->embedding_parameters);
    *real = rows * (6 * matrices + 6 * L * query * length);
}

/* The architecture as PyTorch users expect to see it: modules and their shapes.
 *
 *     GPTNeoXForCausalLM (f16, 166 MB on disk)
 *       embedding         50304 x 512
 *       layers            6 x, parallel residual, LayerNorm
 *         attention       8 heads of 64, rotary over 16 of them, 2048 positions
 *         mlp             512 -> 2048 -> 512, gelu
 *       head              512 x 50304
 */
static void print_tree(const nxt_model_info *i) {
    printf("%s (%s, %s on disk)\n"
           "  embedding         %" PRId64 " x %" PRId64 "\n"
           "  layers            %" PRId64 " x, %s residual, %s\n"
           "    attention       %" PRId64 " heads of %" PRId64,
           i->architecture, i->dtype, human(i->mapped_bytes).text, i->vocabulary, i->width,
           i->layers, i->parallel_residual ? "parallel" : "sequential", i->norm, i->heads,
           i->head_size);
    if (i->key_heads != i->heads) printf(", %" PRId64 " of keys and values", i->key_heads);
    if (i->rotary) printf(", rotary over %" PRId64 " of them", i->rotary);
    printf(", %" PRId64 "%s positions", i->positions, i->rotary ? "" : " learned");
    if (i->window) printf("; some layers see %" PRId64, i->window);
    printf("\n    mlp             %" PRId64 " -> %" PRId64 " -> %" PRId64 ", %s%s\n"
           "  head              %" PRId64 " x %" PRId64 "%s\n"
           "%" PRId64 " parameters, %" PRId64 " without the input embedding\n",
           i->width, i->inner, i->width, i->activation, i->gated ? ", gated" : "", i->width,
           i->vocabulary, i->tied ? " (the embedding, tied)" : "", i->parameters,
           i->parameters - i->embedding_parameters);
    if (i->lora_rank || i->trainable != i->parameters)
        printf("%" PRId64 " trainable (%.2f %%)\n", i->trainable,
               100 * (double)i->trainable / (double)i->parameters);
}

/* A vector has one row here, and one dimension in the file. */
static void print_tensors(const app *a) {
    for (int64_t k = 0; k < nxt_param_count(a->model); k++) {
        nxt_param_info p;
        nxt_param_describe(a->model, k, &p);
        if (fnmatch(a->o.tensors, p.name, 0) != 0) continue;
        if (p.rows == 1) printf("  %-58s %s [%" PRId64 "]\n", p.name, p.dtype, p.cols);
        else printf("  %-58s %s [%" PRId64 ", %" PRId64 "]\n", p.name, p.dtype, p.rows, p.cols);
    }
}

/* What a run would be, without one: with --data for the lengths that the data really has, else
 * for the longest that the model takes. One example at a time is what generating or scoring
 * needs at least. */
static int run_info(app *a) {
    const nxt_model_info *i = &a->info;
    nxt_memory_plan plan, inference;
    nxt_dataset_info d = {0};
    double hf, real;
    DO(open_model(a, INFO));
    int64_t length = a->o.d.block_size ? a->o.d.block_size : a->o.d.max_length;
    if (a->o.data.count) {
        DO(load_datasets(a));
        nxt_dataset_describe(a->data, &d);
        length = d.longest;
    }
    const int64_t rows = length * a->o.t.batch_size;
    nxt_model_memory(a->model, rows, 1, &plan);
    nxt_model_memory(a->model, length, 0, &inference);
    count_flops(a, (double)(rows * a->o.t.gradient_accumulation_steps), (double)length, &hf,
                &real);
    if (a->o.json) {
        printf("{\"architecture\": \"%s\", \"layers\": %" PRId64 ", \"hidden_size\": %" PRId64
               ", \"parameters\": %" PRId64 ", \"non_embedding_parameters\": %" PRId64
               ", \"total_flos\": %.0f, \"flops\": %.0f, \"peak_memory\": %" PRId64
               ", \"mapped_bytes\": %" PRId64 "}\n", i->architecture, i->layers, i->width,
               i->parameters, i->parameters - i->embedding_parameters, hf, real, plan.total,
               plan.mapped);
        return 0;
    }
    print_tree(i);
    if (a->o.tensors) print_tensors(a);
    printf("training with %" PRId64 " x %" PRId64 " tokens: %s of memory, %.4g GFLOP a step "
           "(%.4g as Hugging Face counts)\nevaluating %" PRId64
           " tokens: %s beside the mapped file\n", a->o.t.batch_size, length,
           human(plan.total).text, real / 1e9, hf / 1e9, length, human(inference.total).text);
    return 0;
}

/* Nothing is loaded and no options are settled: the library draws and writes in one go. */
static int run_init(app *a) {
    const options *o = &a->o;
    const char *out = o->r.output_dir;
    if (!o->config || !out) return complain(USAGE, "--config and --output-dir are needed");
    if (directory_in_use(out)) return complain(FAILED, "%s: not empty", out);
    ASK(nxt_model_init(a->cx, o->config, o->r.tokenizer, out, o->r.dtype, o->t.seed));
    fprintf(stderr, "a new model is in %s\n", out);
    return 0;
}

/* W + scale B A, for programs that know no adapters; a tensor at a time, on the way to the file. */
static int run_merge(app *a) {
    nxt_save_config c = nxt_save_config_default();
    const char *out = a->o.r.output_dir;
    if (!a->o.adapter || !out) return complain(USAGE, "--adapter and --output-dir are needed");
    if (directory_in_use(out)) return complain(FAILED, "%s: not empty", out);
    DO(find_model(a));
    DO(settle_options(&a->o));
    DO(open_weights(a, a->o.adapter, &a->model));
    c.dtype = a->o.r.dtype, c.tokenizer = a->o.r.tokenizer, c.merge = 1;
    ASK(nxt_model_save(a->model, out, &c));
    fprintf(stderr, "the merged model is in %s\n", out);
    return 0;
}

/* -- export ---------------------------------------------------------------------------- */
static int run_export(app *a) {
    options *o = &a->o;
    const nxt_export_config c = {o->format, o->r.dtype, o->r.tokenizer};
    if (!o->output) return complain(USAGE, "--output is missing");
    if (c.format && choose_word("format", c.format, "gguf, safetensors") < 0) return USAGE;
    if (c.dtype && choose_word("dtype", c.dtype, "f32, f16, bf16, q8_0, float32, float16, "
                               "bfloat16, fp16") < 0)
        return USAGE;
    o->r.dtype = NULL; /* other commands do not know q8_0 */
    DO(settle_options(o));
    DO(find_model(a));
    if (file_exists(o->output, ""))
        return complain(FAILED, "%s: is there already and is not replaced", o->output);
    DO(open_weights(a, o->adapter, &a->model));
    ASK(nxt_model_export(a->model, o->output, &c));
    fprintf(stderr, "the model is in %s\n", o->output);
    return 0;
}

/* -- main ------------------------------------------------------------------------------ */
typedef struct command {
    const char *name;
    int bit; /* by which options name it */
    int (*run)(app *a);
    const char *help;
} command;

/* -- bench --------------------------------------------------------------------------------- */
/* Removes a directory and the files in it. */
static void remove_directory(const char *dir) {
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d));) unlinkat(dirfd(d), e->d_name, 0);
    if (d) closedir(d);
    rmdir(dir);
}

/* A config for when none is given. */
static int write_pythia_70m(const char *path) {
    FILE *f = fopen(path, "w");
    const bool bad = !f || fputs("{\"model_type\": \"gpt_neox\", \"vocab_size\": 50304, "
                                 "\"hidden_size\": 512, \"num_hidden_layers\": 6, "
                                 "\"num_attention_heads\": 8, \"intermediate_size\": 2048}\n",
                                 f) < 0;
    if ((f && fclose(f) != 0) || bad)
        return complain(FAILED, "%s: cannot write: %s", path, strerror(errno));
    return 0;
}

/* A model with random weights, whose files are gone as soon as it is loaded: the map holds them
 * until the end. */
static int bench_model(app *a) {
    const char *config = a->o.config, *tmp = getenv("TMPDIR");
    char made[4200];
    if (a->o.model) {
        DO(find_model(a));
        ASK(nxt_model_load(&a->model, a->cx, a->dir));
        return 0;
    }
    snprintf(a->dir, sizeof a->dir, "%s/neoxtune-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(a->dir)) return complain(FAILED, "%s: cannot create: %s", a->dir, strerror(errno));
    snprintf(made, sizeof made, "%s/config.json", a->dir);
    int status = config ? 0 : write_pythia_70m(made);
    if (!status)
        status = report(a->cx, nxt_model_init(a->cx, config ? config : made, NULL, a->dir, "f32",
                                              a->o.t.seed));
    if (!status) status = report(a->cx, nxt_model_load(&a->model, a->cx, a->dir));
    remove_directory(a->dir);
    return status;
}

/* Two steps of training on random tokens to warm up, some timed, as many under the profile. */
static int bench_steps(app *a, nxt_limits *l) {
    const int64_t examples = a->o.t.batch_size, steps = a->o.t.max_steps > 0 ? a->o.t.max_steps : 4;
    const int64_t length = a->o.d.block_size, n = examples * length;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    int64_t *offsets = malloc((size_t)(examples + 1) * sizeof *offsets);
    uint32_t random = (uint32_t)a->o.t.seed;
    nxt_step_info step;
    double best = INFINITY, flop = 0;
    nxt_profile_row rows[128];
    if (!ids || !offsets) return free(ids), free(offsets), no_memory();
    for (int64_t i = 0; i < n; i++) {
        random = random * 1664525 + 1013904223;
        ids[i] = (int32_t)((random >> 8) % (uint32_t)a->info.vocabulary);
    }
    for (int64_t i = 0; i <= examples; i++) offsets[i] = i * length;
    nxt_status status = nxt_dataset_from_tokens(&a->data, a->cx, ids, NULL, offsets, examples);
    free(ids);
    free(offsets);
    ASK(status);
    a->o.t.max_steps = 2 * steps + 2;
    ASK(nxt_trainer_create(&a->trainer, a->model, a->data, &a->o.t));
    for (int64_t i = 0; i < 2 * steps + 2; i++) {
        if (i == steps + 2) ASK(nxt_profile_start(a->cx));
        ASK(nxt_trainer_step(a->trainer, &step));
        if (i >= 2 && i < steps + 2) best = fmin(best, step.seconds);
    }
    const int64_t count = nxt_profile_read(a->cx, rows, COUNT(rows));
    for (int64_t i = 0; i < count; i++) flop += rows[i].flop / (double)steps;
    nxt_trainer_destroy(a->trainer); /* its memory makes room for the measurement */
    a->trainer = NULL;
    ASK(nxt_measure_limits(a->cx, l)); /* again: clocks and neighbours change */
    const double peak = a->bf16 ? l->bf16 : l->f32, share = peak > 0 ? flop / best / peak : 0;
    if (a->o.json)
        printf("\"step_seconds\": %.6f, \"tokens_per_second\": %.1f, \"step_flop\": %.0f, "
               "\"share_of_peak\": %.4f, \"ops\": [", best, (double)n / best, flop, share);
    else
        printf("a step of %" PRId64 " x %" PRId64 " tokens: %.1f ms, %.0f tokens/s, %.1f GFLOP "
               "in products and attention: %.0f%% of the peak\n\n", examples, length, 1e3 * best,
               (double)n / best, flop / 1e9, 100 * share);
    print_profile(a, stdout, l, peak, (double)steps);
    printf(a->o.json ? "]" : "");
    return 0;
}

static int run_bench(app *a) {
    nxt_limits l;
    DO(settle_options(&a->o));
    DO(bench_model(a));
    nxt_model_describe(a->model, &a->info);
    if (!a->o.d.block_size) a->o.d.block_size = least(128, a->info.positions);
    const int64_t examples = a->o.t.batch_size, length = a->o.d.block_size;
    if (examples < 1 || examples > 1 << 20 || length < 2 || length > a->info.positions)
        return complain(USAGE, "a batch of %" PRId64 " x %" PRId64 " tokens: at least one example "
                        "of 2 to %" PRId64 " tokens", examples, length, a->info.positions);
    ASK(nxt_measure_limits(a->cx, &l));
    const char *form = a->o.json
        ? "{\"cpu\": \"%s\", \"threads\": %d, \"peak_f32\": %.0f, \"peak_bf16\": %.0f, "
          "\"read_bandwidth\": %.0f, "
        : "%s, %d threads: peak %.4g FLOP/s in f32, %.4g in bf16; memory is read at %.3g bytes/s\n";
    printf(form, nxt_context_cpu(a->cx), nxt_context_threads(a->cx), l.f32, l.bf16, l.read);
    DO(bench_steps(a, &l));
    if (a->o.json) puts("}");
    return 0;
}

/* The last table of the program, because it needs all that is above it. */
static const command command_table[] = {
    {"train", TRAIN, run_train, "fine-tune a model on text or on prompts and completions"},
    {"eval", EVAL, run_eval, "loss, perplexity and, with completions, exact match"},
    {"generate", GENERATE, run_generate, "continue a prompt"},
    {"tokenize", TOKENIZE, run_tokenize, "text to token ids, and back"},
    {"info", INFO, run_info, "architecture, parameters, memory"},
    {"init", INIT, run_init, "a model directory with random weights"},
    {"merge", MERGE, run_merge, "a model with its adapters added to its weights"},
    {"export", EXPORT, run_export, "a model as one file: GGUF for llama.cpp, or safetensors"},
    {"bench", BENCH, run_bench, "what this machine can do, and how much of it a step uses"},
};

static void print_commands(void) {
    puts("neoxtune: fine-tune language models, without Python\n\nusage: neoxtune "
         "COMMAND [OPTIONS]       neoxtune COMMAND --help\n");
    for (int64_t i = 0; i < COUNT(command_table); i++)
        printf("  %-10s %s\n", command_table[i].name, command_table[i].help);
    puts("\n  neoxtune train --model pythia-70m --data notes.txt --block-size 128 "
         "--output-dir tuned");
}

/* From the table that reads the options: the help cannot lag behind. */
static void print_help(const command *c) {
    char left[64];
    printf("neoxtune %s: %s\n\n", c->name, c->help);
    for (int64_t i = 0; i < COUNT(option_table); i++) {
        const option *p = &option_table[i];
        snprintf(left, sizeof left, "--%s %s", p->name, p->value ? p->value : "");
        if (p->commands & c->bit) printf("  %-36s %s\n", left, p->help);
    }
    printf("  %-36s %s\n", "--config-file F.json", "the same options from a file");
}

static int unknown_command(const char *name) {
    const char *nearest = NULL;
    int best = 4;
    for (int64_t i = 0; i < COUNT(command_table); i++)
        if (is_nearer(name, command_table[i].name, &best)) nearest = command_table[i].name;
    if (!nearest)
        return complain(USAGE, "unknown command \"%s\"; neoxtune --help lists them", name);
    return complain(USAGE, "unknown command \"%s\"; did you mean %s?", name, nearest);
}

/* Options are read in a small context of their own, which keeps their texts: threads and
 * kernels, which may stand in a file, are chosen when the real one is made. */
static int run_command(app *a, const command *c, int argc, char **argv) {
    nxt_context_config config = nxt_context_config_default();
    config.threads = 1, config.log = print_log;
    nxt_status status = nxt_context_create(&a->reader, &config);
    if (status != NXT_OK) return complain(FAILED, "cannot start: %s", nxt_status_name(status));
    a->o = default_options();
    DO(parse_options(&a->o, a->reader, c->bit, argc, argv));
    if (a->o.threads < 1) return complain(USAGE, "--threads: a number of at least 1");
    config.threads = a->o.threads == ALL_THREADS ? 0 : (int)least(a->o.threads, 1 << 16);
    config.cpu = a->o.cpu;
    status = nxt_context_create(&a->cx, &config);
    if (status != NXT_OK && status != NXT_MEMORY && config.cpu)
        return complain(USAGE, "--cpu: \"%s\" is none of reference, baseline, avx2, avx512, or "
                        "not for this machine", config.cpu);
    if (status != NXT_OK)
        return complain(FAILED, "cannot start: %s", nxt_status_name(status));
    a->bf16 = nxt_use_bf16(a->cx, a->o.bf16);
    if (a->o.bf16 && !a->bf16)
        fputs("--bf16: this processor is faster in f32, which is used\n", stderr);
    return c->run(a);
}

int main(int argc, char **argv) {
    const command *c = NULL;
    setvbuf(stderr, NULL, _IOLBF, 0);
    signal(SIGBUS, on_bus_error);
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is an error of write like any other */
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")
        || !strcmp(argv[1], "help"))
        return print_commands(), argc < 2 ? USAGE : 0;
    if (!strcmp(argv[1], "--version")) return puts(nxt_version()), 0;
    for (int64_t i = 0; i < COUNT(command_table); i++)
        if (!strcmp(argv[1], command_table[i].name)) c = &command_table[i];
    if (!c) return unknown_command(argv[1]);
    for (int i = 2; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return print_help(c), 0;
    app *a = calloc(1, sizeof *a);
    if (!a) return no_memory();
    int status = run_command(a, c, argc, argv);
    close_app(a);
    free(a);
    if ((fflush(stdout) != 0 || ferror(stdout)) && !status)
        status = complain(FAILED, "standard output: cannot write: %s", strerror(errno));
    return status;
}
#undef DO
#undef ASK
#endif /* NXT_NO_MAIN */

/* References
 *
 * [Vaswani17] Attention is all you need.            [Ba16] Layer normalization.
 * [Zhang19] Root mean square layer normalization.   [Hendrycks16] Gaussian error linear units.
 * [Su21] RoFormer: rotary position embedding.       [Ainslie23] GQA: grouped-query attention.
 * [Dao22] FlashAttention.                           [Loshchilov19] Decoupled weight decay.
 * [Black22] GPT-NeoX-20B.                           [Steele14] Fast splittable random numbers.
 * [Goto08] Anatomy of high-performance matrix multiplication.   [VanZee15] BLIS.
 * [Sennrich16] Translation of rare words with subword units.    [Radford19] GPT-2.
 * [HFTokenizers] github.com/huggingface/tokenizers  [safetensors] its README, "Format".
 * [RFC8259] JSON.   [APPNOTE] PKWARE's description of zip.   [Keskar19] CTRL.
 * [Holtzman20] The curious case of neural text degeneration.    [Rajpurkar16] SQuAD.
 * [Levenshtein66] Binary codes that correct deletions, insertions and reversals.
 * [GGUF] github.com/ggml-org/ggml, docs/gguf.md    [Hu21] LoRA: low-rank adaptation.
 * [Black21] GPT-Neo.   [Touvron23] Llama 2.   [Grattafiori24] The Llama 3 herd of models.
 * [Shazeer20] GLU variants improve transformer.     [Chen16] Sublinear memory cost.
 * [Srivastava14] Dropout.   [Kudo18] SentencePiece.   [Kalajdzievski23] Rank-stabilized LoRA.
 * [Kaplan20] Scaling laws for neural language models.           [Loshchilov17] SGDR.
 */

/* ============================================================================
 * GENERATED TABLES: Unicode for § 13, printed by tests/make_unicode.py from what
 * tokenizers 0.23.3 does: classes of Unicode 16.0, normal form C of 9.0. Not to be edited.
 */
_Static_assert(UNICODE_RUNS == 2283 && UNICODE_PAIRS == 2060 && UNICODE_COMPOSED == 940,
               "§ 13 must name the sizes of these tables");

/* first code point of a run << 11 | combining class << 3 | word << 2 | class */
static const u32 unicode_runs[UNICODE_RUNS] = {
    0x0, 0x4803, 0x7000, 0x10003, 0x10800, 0x18006, 0x1D000, 0x20805, 0x2D800, 0x2F804, 0x30000,
    0x30805, 0x3D800, 0x42803, 0x43000, 0x50003, 0x50800, 0x55005, 0x55800, 0x59002, 0x5A000,
    0x5A805, 0x5B000, 0x5C802, 0x5D005, 0x5D800, 0x5E002, 0x5F800, 0x60005, 0x6B800, 0x6C005,
    0x7B800, 0x7C005, 0x161000, 0x163005, 0x169000, 0x170005, 0x172800, 0x176005, 0x176800,
    0x177005, 0x177800, 0x180734, 0x18AF44, 0x18B6E4, 0x18D744, 0x18DEC4, 0x18E6E4, 0x190E54,
    0x191EE4, 0x193E54, 0x194EE4, 0x19A00C, 0x19CEE4, 0x19EF34, 0x1A0004, 0x1A1734, 0x1A1804,
    0x1A2F84, 0x1A3734, 0x1A3EE4, 0x1A5734, 0x1A6EE4, 0x1A7804, 0x1A8734, 0x1A9EE4, 0x1ABF34,
    0x1AC744, 0x1ACEE4, 0x1ADF34, 0x1AE74C, 0x1AEF54, 0x1AFF4C, 0x1B0754, 0x1B174C, 0x1B1F34,
    0x1B8005, 0x1BA800, 0x1BB005, 0x1BC000, 0x1BD005, 0x1BF000, 0x1BF805, 0x1C0000, 0x1C3005,
    0x1C3800, 0x1C4005, 0x1C5800, 0x1C6005, 0x1C6800, 0x1C7005, 0x1D1000, 0x1D1805, 0x1FB000,
    0x1FB805, 0x241000, 0x241F34, 0x244004, 0x245005, 0x298000, 0x298805, 0x2AB800, 0x2AC805,
    0x2AD000, 0x2B0005, 0x2C4800, 0x2C8EE4, 0x2C9734, 0x2CB6E4, 0x2CBF34, 0x2CD6F4, 0x2CDEE4,
    0x2CE734, 0x2D16E4, 0x2D4734, 0x2D56E4, 0x2D5F34, 0x2D6EF4, 0x2D7724, 0x2D7F34, 0x2D8054,
    0x2D885C, 0x2D9064, 0x2D986C, 0x2DA074, 0x2DA87C, 0x2DB084, 0x2DB88C, 0x2DC094, 0x2DC89C,
    0x2DD8A4, 0x2DE0AC, 0x2DE8B4, 0x2DF000, 0x2DF8BC, 0x2E0000, 0x2E08C4, 0x2E10CC, 0x2E1800,
    0x2E2734, 0x2E2EE4, 0x2E3000, 0x2E3894, 0x2E4000, 0x2E8005, 0x2F5800, 0x2F7805, 0x2F9800,
    0x308734, 0x30C0F4, 0x30C8FC, 0x30D104, 0x30D800, 0x310005, 0x3258DC, 0x3260E4, 0x3268EC,
    0x3270F4, 0x3278FC, 0x328104, 0x32890C, 0x329114, 0x329F34, 0x32AEE4, 0x32BF34, 0x32E6E4,
    0x32EF34, 0x32FEE4, 0x330006, 0x335000, 0x337005, 0x33811C, 0x338805, 0x36A000, 0x36A805,
    0x36B734, 0x36E800, 0x36FF34, 0x371EE4, 0x372734, 0x372805, 0x373F34, 0x374800, 0x3756E4,
    0x375F34, 0x376EE4, 0x377005, 0x378006, 0x37D005, 0x37E800, 0x37F805, 0x380000, 0x388005,
    0x388924, 0x389005, 0x398734, 0x398EE4, 0x399734, 0x39A6E4, 0x39AF34, 0x39BEE4, 0x39D734,
    0x39DEE4, 0x39EF34, 0x39F6E4, 0x39FF34, 0x3A16E4, 0x3A1F34, 0x3A26E4, 0x3A2F34, 0x3A36E4,
    0x3A3F34, 0x3A46E4, 0x3A4F34, 0x3A5800, 0x3A6805, 0x3D3004, 0x3D8805, 0x3D9000, 0x3E0006,
    0x3E5005, 0x3F5F34, 0x3F96E4, 0x3F9F34, 0x3FA005, 0x3FB000, 0x3FD005, 0x3FD800, 0x3FE804,
    0x3FF000, 0x400005, 0x40B734, 0x40D005, 0x40DF34, 0x412005, 0x412F34, 0x414005, 0x414F34,
    0x417000, 0x420005, 0x42CEE4, 0x42E000, 0x430005, 0x435800, 0x438005, 0x444000, 0x444805,
    0x447800, 0x44B804, 0x450005, 0x465004, 0x46A734, 0x471000, 0x471EE4, 0x472734, 0x4736E4,
    0x473F34, 0x474EE4, 0x475734, 0x476EE4, 0x4780DC, 0x4788E4, 0x4790EC, 0x479F34, 0x47B6E4,
    0x47BF34, 0x47CEE4, 0x47DF34, 0x480004, 0x482005, 0x49D004, 0x49E03C, 0x49E805, 0x49F004,
    0x4A684C, 0x4A7004, 0x4A8005, 0x4A8F34, 0x4A96E4, 0x4A9F34, 0x4AA804, 0x4AC005, 0x4B1004,
    0x4B2000, 0x4B3006, 0x4B8000, 0x4B8805, 0x4C0804, 0x4C2000, 0x4C2805, 0x4C6800, 0x4C7805,
    0x4C8800, 0x4C9805, 0x4D4800, 0x4D5005, 0x4D8800, 0x4D9005, 0x4D9800, 0x4DB005, 0x4DD000,
    0x4DE03C, 0x4DE805, 0x4DF004, 0x4E2800, 0x4E3804, 0x4E4800, 0x4E5804, 0x4E684C, 0x4E7005,
    0x4E7800, 0x4EB804, 0x4EC000, 0x4EE005, 0x4EF000, 0x4EF805, 0x4F1004, 0x4F2000, 0x4F3006,
    0x4F8005, 0x4F9000, 0x4FA002, 0x4FD000, 0x4FE005, 0x4FE800, 0x4FF004, 0x4FF800, 0x500804,
    0x502000, 0x502805, 0x505800, 0x507805, 0x508800, 0x509805, 0x514800, 0x515005, 0x518800,
    0x519005, 0x51A000, 0x51A805, 0x51B800, 0x51C005, 0x51D000, 0x51E03C, 0x51E800, 0x51F004,
    0x521800, 0x523804, 0x524800, 0x525804, 0x52684C, 0x527000, 0x528804, 0x529000, 0x52C805,
    0x52E800, 0x52F005, 0x52F800, 0x533006, 0x538004, 0x539005, 0x53A804, 0x53B000, 0x540804,
    0x542000, 0x542805, 0x547000, 0x547805, 0x549000, 0x549805, 0x554800, 0x555005, 0x558800,
    0x559005, 0x55A000, 0x55A805, 0x55D000, 0x55E03C, 0x55E805, 0x55F004, 0x563000, 0x563804,
    0x565000, 0x565804, 0x56684C, 0x567000, 0x568005, 0x568800, 0x570005, 0x571004, 0x572000,
    0x573006, 0x578000, 0x57C805, 0x57D004, 0x580000, 0x580804, 0x582000, 0x582805, 0x586800,
    0x587805, 0x588800, 0x589805, 0x594800, 0x595005, 0x598800, 0x599005, 0x59A000, 0x59A805,
    0x59D000, 0x59E03C, 0x59E805, 0x59F004, 0x5A2800, 0x5A3804, 0x5A4800, 0x5A5804, 0x5A684C,
    0x5A7000, 0x5AA804, 0x5AC000, 0x5AE005, 0x5AF000, 0x5AF805, 0x5B1004, 0x5B2000, 0x5B3006,
    0x5B8000, 0x5B8805, 0x5B9002, 0x5BC000, 0x5C1004, 0x5C1805, 0x5C2000, 0x5C2805, 0x5C5800,
    0x5C7005, 0x5C8800, 0x5C9005, 0x5CB000, 0x5CC805, 0x5CD800, 0x5CE005, 0x5CE800, 0x5CF005,
    0x5D0000, 0x5D1805, 0x5D2800, 0x5D4005, 0x5D5800, 0x5D7005, 0x5DD000, 0x5DF004, 0x5E1800,
    0x5E3004, 0x5E4800, 0x5E5004, 0x5E684C, 0x5E7000, 0x5E8005, 0x5E8800, 0x5EB804, 0x5EC000,
    0x5F3006, 0x5F8002, 0x5F9800, 0x600004, 0x602805, 0x606800, 0x607005, 0x608800, 0x609005,
    0x614800, 0x615005, 0x61D000, 0x61E004, 0x61E805, 0x61F004, 0x622800, 0x623004, 0x624800,
    0x625004, 0x62684C, 0x627000, 0x62AAA4, 0x62B2DC, 0x62B800, 0x62C005, 0x62D800, 0x62E805,
    0x62F000, 0x630005, 0x631004, 0x632000, 0x633006, 0x638000, 0x63C002, 0x63F800, 0x640005,
    0x640804, 0x642000, 0x642805, 0x646800, 0x647005, 0x648800, 0x649005, 0x654800, 0x655005,
    0x65A000, 0x65A805, 0x65D000, 0x65E03C, 0x65E805, 0x65F004, 0x662800, 0x663004, 0x664800,
    0x665004, 0x66684C, 0x667000, 0x66A804, 0x66B800, 0x66E805, 0x66F800, 0x670005, 0x671004,
    0x672000, 0x673006, 0x678000, 0x678805, 0x679804, 0x67A000, 0x680004, 0x682005, 0x686800,
    0x687005, 0x688800, 0x689005, 0x69D804, 0x69E805, 0x69F004, 0x6A2800, 0x6A3004, 0x6A4800,
    0x6A5004, 0x6A684C, 0x6A7005, 0x6A7800, 0x6AA005, 0x6AB804, 0x6AC002, 0x6AF805, 0x6B1004,
    0x6B2000, 0x6B3006, 0x6B8002, 0x6BC800, 0x6BD005, 0x6C0000, 0x6C0804, 0x6C2000, 0x6C2805,
    0x6CB800, 0x6CD005, 0x6D9000, 0x6D9805, 0x6DE000, 0x6DE805, 0x6DF000, 0x6E0005, 0x6E3800,
    0x6E504C, 0x6E5800, 0x6E7804, 0x6EA800, 0x6EB004, 0x6EB800, 0x6EC004, 0x6F0000, 0x6F3006,
    0x6F8000, 0x6F9004, 0x6FA000, 0x700805, 0x718804, 0x719005, 0x71A004, 0x71C33C, 0x71D04C,
    0x71D800, 0x720005, 0x723804, 0x72435C, 0x726004, 0x727800, 0x728006, 0x72D000, 0x740805,
    0x741800, 0x742005, 0x742800, 0x743005, 0x745800, 0x746005, 0x752000, 0x752805, 0x753000,
    0x753805, 0x758804, 0x759005, 0x75A004, 0x75C3B4, 0x75D004, 0x75E805, 0x75F000, 0x760005,
    0x762800, 0x763005, 0x763800, 0x7643D4, 0x766004, 0x767800, 0x768006, 0x76D000, 0x76E005,
    0x770000, 0x780005, 0x780800, 0x78C6E4, 0x78D000, 0x790006, 0x795002, 0x79A000, 0x79AEE4,
    0x79B000, 0x79BEE4, 0x79C000, 0x79CEC4, 0x79D000, 0x79F004, 0x7A0005, 0x7A4000, 0x7A4805,
    0x7B6800, 0x7B8C0C, 0x7B9414, 0x7B9804, 0x7BA424, 0x7BA804, 0x7BD414, 0x7BF004, 0x7C0414,
    0x7C0804, 0x7C1734, 0x7C204C, 0x7C2800, 0x7C3734, 0x7C4005, 0x7C6804, 0x7CC000, 0x7CC804,
    0x7DE800, 0x7E36E4, 0x7E3800, 0x800005, 0x815804, 0x81B83C, 0x81C004, 0x81C84C, 0x81D804,
    0x81F805, 0x820006, 0x825000, 0x828005, 0x82B004, 0x82D005, 0x82F004, 0x830805, 0x831004,
    0x832805, 0x833804, 0x837005, 0x838804, 0x83A805, 0x841004, 0x846EE4, 0x847005, 0x847804,
    0x848006, 0x84D004, 0x84F000, 0x850005, 0x863000, 0x863805, 0x864000, 0x866805, 0x867000,
    0x868005, 0x87D800, 0x87E005, 0x924800, 0x925005, 0x927000, 0x928005, 0x92B800, 0x92C005,
    0x92C800, 0x92D005, 0x92F000, 0x930005, 0x944800, 0x945005, 0x947000, 0x948005, 0x958800,
    0x959005, 0x95B000, 0x95C005, 0x95F800, 0x960005, 0x960800, 0x961005, 0x963000, 0x964005,
    0x96B800, 0x96C005, 0x988800, 0x989005, 0x98B000, 0x98C005, 0x9AD800, 0x9AEF34, 0x9B0000,
    0x9B4802, 0x9BE800, 0x9C0005, 0x9C8000, 0x9D0005, 0x9FB000, 0x9FC005, 0x9FF000, 0xA00805,
    0xB36800, 0xB37805, 0xB40003, 0xB40805, 0xB4D800, 0xB50005, 0xB75800, 0xB77006, 0xB78805,
    0xB7C800, 0xB80005, 0xB89004, 0xB8A04C, 0xB8A804, 0xB8B000, 0xB8F805, 0xB99004, 0xB9A04C,
    0xB9A800, 0xBA0005, 0xBA9004, 0xBAA000, 0xBB0005, 0xBB6800, 0xBB7005, 0xBB8800, 0xBB9004,
    0xBBA000, 0xBC0005, 0xBDA004, 0xBE904C, 0xBE9804, 0xBEA000, 0xBEB805, 0xBEC000, 0xBEE005,
    0xBEEF34, 0xBEF000, 0xBF0006, 0xBF5000, 0xBF8002, 0xBFD000, 0xC05804, 0xC07000, 0xC07804,
    0xC08006, 0xC0D000, 0xC10005, 0xC3C800, 0xC40005, 0xC42804, 0xC43805, 0xC54F24, 0xC55005,
    0xC55800, 0xC58005, 0xC7B000, 0xC80005, 0xC8F800, 0xC90004, 0xC96000, 0xC98004, 0xC9CEF4,
    0xC9D734, 0xC9DEE4, 0xC9E000, 0xCA3006, 0xCA8005, 0xCB7000, 0xCB8005, 0xCBA800, 0xCC0005,
    0xCD6000, 0xCD8005, 0xCE5000, 0xCE8006, 0xCED002, 0xCED800, 0xD00005, 0xD0BF34, 0xD0C6E4,
    0xD0C804, 0xD0E000, 0xD10005, 0xD2A804, 0xD2F800, 0xD3004C, 0xD30804, 0xD3AF34, 0xD3E800,
    0xD3FEE4, 0xD40006, 0xD45000, 0xD48006, 0xD4D000, 0xD53805, 0xD54000, 0xD58734, 0xD5AEE4,
    0xD5DF34, 0xD5EEE4, 0xD5F004, 0xD67800, 0xD80004, 0xD82805, 0xD9A03C, 0xD9A804, 0xDA204C,
    0xDA2805, 0xDA6800, 0xDA8006, 0xDAD000, 0xDB5F34, 0xDB66E4, 0xDB6F34, 0xDBA000, 0xDC0004,
    0xDC1805, 0xDD0804, 0xDD504C, 0xDD6004, 0xDD7005, 0xDD8006, 0xDDD005, 0xDF303C, 0xDF3804,
    0xDF904C, 0xDFA000, 0xE00005, 0xE12004, 0xE1B83C, 0xE1C000, 0xE20006, 0xE25000, 0xE26805,
    0xE28006, 0xE2D005, 0xE3F000, 0xE40005, 0xE45800, 0xE48005, 0xE5D800, 0xE5E805, 0xE60000,
    0xE68734, 0xE69800, 0xE6A00C, 0xE6AEE4, 0xE6D734, 0xE6E6E4, 0xE70734, 0xE70804, 0xE7100C,
    0xE74805, 0xE76EE4, 0xE77005, 0xE7A734, 0xE7A805, 0xE7B804, 0xE7C734, 0xE7D005, 0xE7D800,
    0xE80005, 0xEE0734, 0xEE16E4, 0xEE1F34, 0xEE56E4, 0xEE5F34, 0xEE6F54, 0xEE76B4, 0xEE7EE4,
    0xEE8654, 0xEE8F34, 0xEFB004, 0xEFDF34, 0xEFE74C, 0xEFEEE4, 0xEFF734, 0xEFFEE4, 0xF00005,
    0xF8B000, 0xF8C005, 0xF8F000, 0xF90005, 0xFA3000, 0xFA4005, 0xFA7000, 0xFA8005, 0xFAC000,
    0xFAC805, 0xFAD000, 0xFAD805, 0xFAE000, 0xFAE805, 0xFAF000, 0xFAF805, 0xFBF000, 0xFC0005,
    0xFDA800, 0xFDB005, 0xFDE800, 0xFDF005, 0xFDF800, 0xFE1005, 0xFE2800, 0xFE3005, 0xFE6800,
    0xFE8005, 0xFEA000, 0xFEB005, 0xFEE000, 0xFF0005, 0xFF6800, 0xFF9005, 0xFFA800, 0xFFB005,
    0xFFE800, 0x1000003, 0x1005800, 0x1006004, 0x1007000, 0x1014003, 0x1015000, 0x1017803,
    0x1018000, 0x101F804, 0x1020800, 0x102A004, 0x102A800, 0x102F803, 0x1030000, 0x1038002,
    0x1038805, 0x1039000, 0x103A002, 0x103D000, 0x103F805, 0x1040002, 0x1045000, 0x1048005,
    0x104E800, 0x1068734, 0x106900C, 0x106A734, 0x106C00C, 0x106DF34, 0x106E804, 0x1070F34,
    0x1071004, 0x107280C, 0x1073F34, 0x10746E4, 0x1074F34, 0x107500C, 0x10766E4, 0x1078734,
    0x1078800, 0x1081005, 0x1081800, 0x1083805, 0x1084000, 0x1085005, 0x108A000, 0x108A805,
    0x108B000, 0x108C805, 0x108F000, 0x1092005, 0x1092800, 0x1093005, 0x1093800, 0x1094005,
    0x1094800, 0x1095005, 0x1097000, 0x1097805, 0x109D000, 0x109E005, 0x10A0000, 0x10A2805,
    0x10A5000, 0x10A7005, 0x10A7800, 0x10A8002, 0x10B0006, 0x10C1805, 0x10C2806, 0x10C4802,
    0x10C5000, 0x1230002, 0x124E000, 0x125B004, 0x1275002, 0x1280000, 0x13BB002, 0x13CA000,
    0x1600005, 0x1672800, 0x1675805, 0x1677F34, 0x1679005, 0x167A000, 0x167E802, 0x167F000,
    0x1680005, 0x1693000, 0x1693805, 0x1694000, 0x1696805, 0x1697000, 0x1698005, 0x16B4000,
    0x16B7805, 0x16B8000, 0x16BF84C, 0x16C0005, 0x16CB800, 0x16D0005, 0x16D3800, 0x16D4005,
    0x16D7800, 0x16D8005, 0x16DB800, 0x16DC005, 0x16DF800, 0x16E0005, 0x16E3800, 0x16E4005,
    0x16E7800, 0x16E8005, 0x16EB800, 0x16EC005, 0x16EF800, 0x16F0734, 0x1700000, 0x1717805,
    0x1718000, 0x1800003, 0x1800800, 0x1802805, 0x1803806, 0x1804000, 0x1810806, 0x18156D4,
    0x1815F24, 0x1816744, 0x1816EF4, 0x1817704, 0x1818000, 0x1818805, 0x181B000, 0x181C006,
    0x181D805, 0x181E800, 0x1820805, 0x184B800, 0x184C844, 0x184D800, 0x184E805, 0x1850000,
    0x1850805, 0x187D800, 0x187E005, 0x1880000, 0x1882805, 0x1898000, 0x1898805, 0x18C7800,
    0x18C9002, 0x18CB000, 0x18D0005, 0x18E0000, 0x18F8005, 0x1900000, 0x1910002, 0x1915000,
    0x1924002, 0x1928000, 0x1928802, 0x1930000, 0x1940002, 0x1945000, 0x1958802, 0x1960000,
    0x1A00005, 0x26E0000, 0x2700005, 0x5246800, 0x5268005, 0x527F000, 0x5280005, 0x5306800,
    0x5308005, 0x5310006, 0x5315005, 0x5316000, 0x5320005, 0x5337F34, 0x5338004, 0x5339800,
    0x533A734, 0x533F000, 0x533F805, 0x534F734, 0x5350005, 0x5373006, 0x5378734, 0x5379000,
    0x538B805, 0x5390000, 0x5391005, 0x53C4800, 0x53C5805, 0x53E7000, 0x53E8005, 0x53E9000,
    0x53E9805, 0x53EA000, 0x53EA805, 0x53EE800, 0x53F9005, 0x5401004, 0x5401805, 0x540304C,
    0x5403805, 0x5405804, 0x5406005, 0x5411804, 0x5414000, 0x5416004, 0x5416800, 0x5418002,
    0x541B000, 0x5420005, 0x543A000, 0x5440004, 0x5441005, 0x545A004, 0x546204C, 0x5462804,
    0x5463000, 0x5468006, 0x546D000, 0x5470734, 0x5479005, 0x547C000, 0x547D805, 0x547E000,
    0x547E805, 0x547F804, 0x5480006, 0x5485005, 0x5493004, 0x5495EE4, 0x5497000, 0x5498005,
    0x54A3804, 0x54A984C, 0x54AA000, 0x54B0005, 0x54BE800, 0x54C0004, 0x54C2005, 0x54D983C,
    0x54DA004, 0x54E004C, 0x54E0800, 0x54E7805, 0x54E8006, 0x54ED000, 0x54F0005, 0x54F2804,
    0x54F3005, 0x54F8006, 0x54FD005, 0x54FF800, 0x5500005, 0x5514804, 0x551B800, 0x5520005,
    0x5521804, 0x5522005, 0x5526004, 0x5527000, 0x5528006, 0x552D000, 0x5530005, 0x553B800,
    0x553D005, 0x553D804, 0x553F005, 0x5558734, 0x5558805, 0x5559734, 0x555A6E4, 0x555A805,
    0x555BF34, 0x555C805, 0x555F734, 0x5560005, 0x5560F34, 0x5561005, 0x5561800, 0x556D805,
    0x556F000, 0x5570005, 0x5575804, 0x5578000, 0x5579005, 0x557A804, 0x557B04C, 0x557B800,
    0x5580805, 0x5583800, 0x5584805, 0x5587800, 0x5588805, 0x558B800, 0x5590005, 0x5593800,
    0x5594005, 0x5597800, 0x5598005, 0x55AD800, 0x55AE005, 0x55B5000, 0x55B8005, 0x55F1804,
    0x55F5800, 0x55F6004, 0x55F684C, 0x55F7000, 0x55F8006, 0x55FD000, 0x5600005, 0x6BD2000,
    0x6BD8005, 0x6BE3800, 0x6BE5805, 0x6BFE000, 0x7C80005, 0x7D37000, 0x7D38005, 0x7D6D000,
    0x7D80005, 0x7D83800, 0x7D89805, 0x7D8C000, 0x7D8E805, 0x7D8F0D4, 0x7D8F805, 0x7D94800,
    0x7D95005, 0x7D9B800, 0x7D9C005, 0x7D9E800, 0x7D9F005, 0x7D9F800, 0x7DA0005, 0x7DA1000,
    0x7DA1805, 0x7DA2800, 0x7DA3005, 0x7DD9000, 0x7DE9805, 0x7E9F000, 0x7EA8005, 0x7EC8000,
    0x7EC9005, 0x7EE4000, 0x7EF8005, 0x7EFE000, 0x7F00004, 0x7F08000, 0x7F10734, 0x7F13EE4,
    0x7F17734, 0x7F18000, 0x7F19804, 0x7F1A800, 0x7F26804, 0x7F28000, 0x7F38005, 0x7F3A800,
    0x7F3B005, 0x7F7E800, 0x7F88006, 0x7F8D000, 0x7F90805, 0x7F9D800, 0x7F9F804, 0x7FA0000,
    0x7FA0805, 0x7FAD800, 0x7FB3005, 0x7FDF800, 0x7FE1005, 0x7FE4000, 0x7FE5005, 0x7FE8000,
    0x7FE9005, 0x7FEC000, 0x7FED005, 0x7FEE800, 0x8000005, 0x8006000, 0x8006805, 0x8013800,
    0x8014005, 0x801D800, 0x801E005, 0x801F000, 0x801F805, 0x8027000, 0x8028005, 0x802F000,
    0x8040005, 0x807D800, 0x8083802, 0x809A000, 0x80A0006, 0x80BA802, 0x80BC800, 0x80C5002,
    0x80C6000, 0x80FEEE4, 0x80FF000, 0x8140005, 0x814E800, 0x8150005, 0x8168800, 0x81706E4,
    0x8170802, 0x817E000, 0x8180005, 0x8190002, 0x8192000, 0x8196805, 0x81A0806, 0x81A1005,
    0x81A5006, 0x81A5800, 0x81A8005, 0x81BB734, 0x81BD800, 0x81C0005, 0x81CF000, 0x81D0005,
    0x81E2000, 0x81E4005, 0x81E8000, 0x81E8806, 0x81EB000, 0x8200005, 0x824F000, 0x8250006,
    0x8255000, 0x8258005, 0x826A000, 0x826C005, 0x827E000, 0x8280005, 0x8294000, 0x8298005,
    0x82B2000, 0x82B8005, 0x82BD800, 0x82BE005, 0x82C5800, 0x82C6005, 0x82C9800, 0x82CA005,
    0x82CB000, 0x82CB805, 0x82D1000, 0x82D1805, 0x82D9000, 0x82D9805, 0x82DD000, 0x82DD805,
    0x82DE800, 0x82E0005, 0x82FA000, 0x8300005, 0x839B800, 0x83A0005, 0x83AB000, 0x83B0005,
    0x83B4000, 0x83C0005, 0x83C3000, 0x83C3805, 0x83D8800, 0x83D9005, 0x83DD800, 0x8400005,
    0x8403000, 0x8404005, 0x8404800, 0x8405005, 0x841B000, 0x841B805, 0x841C800, 0x841E005,
    0x841E800, 0x841F805, 0x842B000, 0x842C002, 0x8430005, 0x843B800, 0x843C802, 0x8440005,
    0x844F800, 0x8453802, 0x8458000, 0x8470005, 0x8479800, 0x847A005, 0x847B000, 0x847D802,
    0x8480005, 0x848B002, 0x848E000, 0x8490005, 0x849D000, 0x84C0005, 0x84DC000, 0x84DE002,
    0x84DF005, 0x84E0002, 0x84E8000, 0x84E9002, 0x8500005, 0x8500804, 0x8502000, 0x8502804,
    0x8503800, 0x8506004, 0x8506EE4, 0x8507004, 0x8507F34, 0x8508005, 0x850A000, 0x850A805,
    0x850C000, 0x850C805, 0x851B000, 0x851C734, 0x851C80C, 0x851D6E4, 0x851D800, 0x851F84C,
    0x8520002, 0x8524800, 0x8530005, 0x853E802, 0x853F800, 0x8540005, 0x854E802, 0x8550000,
    0x8560005, 0x8564000, 0x8564805, 0x8572F34, 0x85736E4, 0x8573800, 0x8575802, 0x8578000,
    0x8580005, 0x859B000, 0x85A0005, 0x85AB000, 0x85AC002, 0x85B0005, 0x85B9800, 0x85BC002,
    0x85C0005, 0x85C9000, 0x85D4802, 0x85D8000, 0x8600005, 0x8624800, 0x8640005, 0x8659800,
    0x8660005, 0x8679800, 0x867D002, 0x8680005, 0x8692004, 0x8694000, 0x8698006, 0x869D000,
    0x86A0006, 0x86A5005, 0x86B3000, 0x86B4804, 0x86B7000, 0x86B7805, 0x86C3000, 0x8730002,
    0x873F800, 0x8740005, 0x8755000, 0x8755804, 0x8756800, 0x8758005, 0x8759000, 0x8761005,
    0x8762800, 0x877E004, 0x8780005, 0x878E802, 0x8793805, 0x8794000, 0x8798005, 0x87A3004,
    0x87A8802, 0x87AA800, 0x87B8005, 0x87C1004, 0x87C3000, 0x87D8005, 0x87E2802, 0x87E6000,
    0x87F0005, 0x87FB800, 0x8800004, 0x8801805, 0x881C004, 0x882304C, 0x8823800, 0x8829002,
    0x8833006, 0x8838004, 0x8838805, 0x8839804, 0x883A805, 0x883B000, 0x883F84C, 0x8840004,
    0x8841805, 0x8858004, 0x885C84C, 0x885D03C, 0x885D800, 0x8861004, 0x8861800, 0x8868005,
    0x8874800, 0x8878006, 0x887D000, 0x8880734, 0x8881805, 0x8893804, 0x889984C, 0x889A800,
    0x889B006, 0x88A0000, 0x88A2005, 0x88A2804, 0x88A3805, 0x88A4000, 0x88A8005, 0x88B983C,
    0x88BA000, 0x88BB005, 0x88BB800, 0x88C0004, 0x88C1805, 0x88D9804, 0x88E004C, 0x88E0805,
    0x88E2800, 0x88E4804, 0x88E503C, 0x88E5804, 0x88E6800, 0x88E7004, 0x88E8006, 0x88ED005,
    0x88ED800, 0x88EE005, 0x88EE800, 0x88F0802, 0x88FA800, 0x8900005, 0x8909000, 0x8909805,
    0x8916004, 0x891A84C, 0x891B03C, 0x891B804, 0x891C000, 0x891F004, 0x891F805, 0x8920804,
    0x8921000, 0x8940005, 0x8943800, 0x8944005, 0x8944800, 0x8945005, 0x8947000, 0x8947805,
    0x894F000, 0x894F805, 0x8954800, 0x8958005, 0x896F804, 0x897483C, 0x897504C, 0x8975800,
    0x8978006, 0x897D000, 0x8980004, 0x8982000, 0x8982805, 0x8986800, 0x8987805, 0x8988800,
    0x8989805, 0x8994800, 0x8995005, 0x8998800, 0x8999005, 0x899A000, 0x899A805, 0x899D000,
    0x899D804, 0x899E03C, 0x899E805, 0x899F004, 0x89A2800, 0x89A3804, 0x89A4800, 0x89A5804,
    0x89A684C, 0x89A7000, 0x89A8005, 0x89A8800, 0x89AB804, 0x89AC000, 0x89AE805, 0x89B1004,
    0x89B2000, 0x89B3734, 0x89B6800, 0x89B8734, 0x89BA800, 0x89C0005, 0x89C5000, 0x89C5805,
    0x89C6000, 0x89C7005, 0x89C7800, 0x89C8005, 0x89DB000, 0x89DB805, 0x89DC004, 0x89E0800,
    0x89E1004, 0x89E1800, 0x89E2804, 0x89E3000, 0x89E3804, 0x89E5800, 0x89E6004, 0x89E8805,
    0x89E9004, 0x89E9805, 0x89EA000, 0x89F0804, 0x89F1800, 0x8A00005, 0x8A1A804, 0x8A2104C,
    0x8A21804, 0x8A2303C, 0x8A23805, 0x8A25800, 0x8A28006, 0x8A2D000, 0x8A2F004, 0x8A2F805,
    0x8A31000, 0x8A40005, 0x8A58004, 0x8A6104C, 0x8A6183C, 0x8A62005, 0x8A63000, 0x8A63805,
    0x8A64000, 0x8A68006, 0x8A6D000, 0x8AC0005, 0x8AD7804, 0x8ADB000, 0x8ADC004, 0x8ADF84C,
    0x8AE003C, 0x8AE0800, 0x8AEC005, 0x8AEE004, 0x8AEF000, 0x8B00005, 0x8B18004, 0x8B1F84C,
    0x8B20004, 0x8B20800, 0x8B22005, 0x8B22800, 0x8B28006, 0x8B2D000, 0x8B40005, 0x8B55804,
    0x8B5B04C, 0x8B5B83C, 0x8B5C005, 0x8B5C800, 0x8B60006, 0x8B65000, 0x8B68006, 0x8B72000,
    0x8B80005, 0x8B8D800, 0x8B8E804, 0x8B9584C, 0x8B96000, 0x8B98006, 0x8B9D002, 0x8B9E000,
    0x8BA0005, 0x8BA3800, 0x8C00005, 0x8C16004, 0x8C1D800, 0x8C50005, 0x8C70006, 0x8C75002,
    0x8C79800, 0x8C7F805, 0x8C83800, 0x8C84805, 0x8C85000, 0x8C86005, 0x8C8A000, 0x8C8A805,
    0x8C8B800, 0x8C8C005, 0x8C98004, 0x8C9B000, 0x8C9B804, 0x8C9C800, 0x8C9D804, 0x8C9F805,
    0x8CA0004, 0x8CA0805, 0x8CA1004, 0x8CA2000, 0x8CA8006, 0x8CAD000, 0x8CD0005, 0x8CD4000,
    0x8CD5005, 0x8CE8804, 0x8CEC000, 0x8CED004, 0x8CF0805, 0x8CF1000, 0x8CF1805, 0x8CF2004,
    0x8CF2800, 0x8D00005, 0x8D00804, 0x8D05805, 0x8D19804, 0x8D1D005, 0x8D1D804, 0x8D1F800,
    0x8D23804, 0x8D24000, 0x8D28005, 0x8D28804, 0x8D2E005, 0x8D45004, 0x8D4D000, 0x8D4E805,
    0x8D4F000, 0x8D58005, 0x8D7C800, 0x8DE0005, 0x8DF0800, 0x8DF8006, 0x8DFD000, 0x8E00005,
    0x8E04800, 0x8E05005, 0x8E17804, 0x8E1B800, 0x8E1C004, 0x8E1F84C, 0x8E20005, 0x8E20800,
    0x8E28006, 0x8E2D002, 0x8E36800, 0x8E39005, 0x8E48000, 0x8E49004, 0x8E54000, 0x8E54804,
    0x8E5B800, 0x8E80005, 0x8E83800, 0x8E84005, 0x8E85000, 0x8E85805, 0x8E98804, 0x8E9B800,
    0x8E9D004, 0x8E9D800, 0x8E9E004, 0x8E9F000, 0x8E9F804, 0x8EA3005, 0x8EA3804, 0x8EA4000,
    0x8EA8006, 0x8EAD000, 0x8EB0005, 0x8EB3000, 0x8EB3805, 0x8EB4800, 0x8EB5005, 0x8EC5004,
    0x8EC7800, 0x8EC8004, 0x8EC9000, 0x8EC9804, 0x8ECC005, 0x8ECC800, 0x8ED0006, 0x8ED5000,
    0x8F70005, 0x8F79804, 0x8F7B800, 0x8F80004, 0x8F81005, 0x8F81804, 0x8F82005, 0x8F88800,
    0x8F89005, 0x8F9A004, 0x8F9D800, 0x8F9F004, 0x8FA1800, 0x8FA8006, 0x8FAD004, 0x8FAD800,
    0x8FD8005, 0x8FD8800, 0x8FE0002, 0x8FEA800, 0x9000005, 0x91CD000, 0x9200006, 0x9237800,
    0x9240005, 0x92A2000, 0x97C8005, 0x97F8800, 0x9800005, 0x9A18000, 0x9A20004, 0x9A20805,
    0x9A23804, 0x9A2B000, 0x9A30005, 0xA1FD800, 0xA200005, 0xA323800, 0xB080005, 0xB08F004,
    0xB098006, 0xB09D000, 0xB400005, 0xB51C800, 0xB520005, 0xB52F800, 0xB530006, 0xB535000,
    0xB538005, 0xB55F800, 0xB560006, 0xB565000, 0xB568005, 0xB577000, 0xB57800C, 0xB57A800,
    0xB580005, 0xB598734, 0xB59B800, 0xB5A0005, 0xB5A2000, 0xB5A8006, 0xB5AD000, 0xB5AD802,
    0xB5B1000, 0xB5B1805, 0xB5BC000, 0xB5BE805, 0xB5C8000, 0xB6A0005, 0xB6B6800, 0xB6B8006,
    0xB6BD000, 0xB720005, 0xB740002, 0xB74B800, 0xB780005, 0xB7A5800, 0xB7A7804, 0xB7A8005,
    0xB7A8804, 0xB7C4000, 0xB7C7804, 0xB7C9805, 0xB7D0000, 0xB7F0005, 0xB7F1000, 0xB7F1805,
    0xB7F2004, 0xB7F2800, 0xB7F8004, 0xB7F9000, 0xB800005, 0xC3FC000, 0xC400005, 0xC66B000,
    0xC67F805, 0xC684800, 0xD7F8005, 0xD7FA000, 0xD7FA805, 0xD7FE000, 0xD7FE805, 0xD7FF800,
    0xD800005, 0xD891800, 0xD899005, 0xD899800, 0xD8A8005, 0xD8A9800, 0xD8AA805, 0xD8AB000,
    0xD8B2005, 0xD8B4000, 0xD8B8005, 0xD97E000, 0xDE00005, 0xDE35800, 0xDE38005, 0xDE3E800,
    0xDE40005, 0xDE44800, 0xDE48005, 0xDE4D000, 0xDE4E804, 0xDE4F00C, 0xDE4F800, 0xE678006,
    0xE67D000, 0xE780004, 0xE797000, 0xE798004, 0xE7A3800, 0xE8B2EC4, 0xE8B380C, 0xE8B5000,
    0xE8B6F14, 0xE8B76C4, 0xE8B9800, 0xE8BDEE4, 0xE8C1800, 0xE8C2F34, 0xE8C56E4, 0xE8C6000,
    0xE8D5734, 0xE8D7000, 0xE921734, 0xE922800, 0xE960002, 0xE96A000, 0xE970002, 0xE97A000,
    0xE9B0002, 0xE9BC800, 0xEA00005, 0xEA2A800, 0xEA2B005, 0xEA4E800, 0xEA4F005, 0xEA50000,
    0xEA51005, 0xEA51800, 0xEA52805, 0xEA53800, 0xEA54805, 0xEA56800, 0xEA57005, 0xEA5D000,
    0xEA5D805, 0xEA5E000, 0xEA5E805, 0xEA62000, 0xEA62805, 0xEA83000, 0xEA83805, 0xEA85800,
    0xEA86805, 0xEA8A800, 0xEA8B005, 0xEA8E800, 0xEA8F005, 0xEA9D000, 0xEA9D805, 0xEA9F800,
    0xEAA0005, 0xEAA2800, 0xEAA3005, 0xEAA3800, 0xEAA5005, 0xEAA8800, 0xEAA9005, 0xEB53000,
    0xEB54005, 0xEB60800, 0xEB61005, 0xEB6D800, 0xEB6E005, 0xEB7D800, 0xEB7E005, 0xEB8A800,
    0xEB8B005, 0xEB9A800, 0xEB9B005, 0xEBA7800, 0xEBA8005, 0xEBB7800, 0xEBB8005, 0xEBC4800,
    0xEBC5005, 0xEBD4800, 0xEBD5005, 0xEBE1800, 0xEBE2005, 0xEBE6000, 0xEBE7006, 0xEC00000,
    0xED00004, 0xED1B800, 0xED1D804, 0xED36800, 0xED3A804, 0xED3B000, 0xED42004, 0xED42800,
    0xED4D804, 0xED50000, 0xED50804, 0xED58000, 0xEF80005, 0xEF8F800, 0xEF92805, 0xEF95800,
    0xF000734, 0xF003800, 0xF004734, 0xF00C800, 0xF00DF34, 0xF011000, 0xF011F34, 0xF012800,
    0xF013734, 0xF015800, 0xF018005, 0xF037000, 0xF047804, 0xF048000, 0xF080005, 0xF096800,
    0xF098004, 0xF09B805, 0xF09F000, 0xF0A0006, 0xF0A5000, 0xF0A7005, 0xF0A7800, 0xF148005,
    0xF157004, 0xF157800, 0xF160005, 0xF176004, 0xF178006, 0xF17D000, 0xF268005, 0xF276004,
    0xF278006, 0xF27D000, 0xF2E8005, 0xF2F7004, 0xF2F8005, 0xF2F8806, 0xF2FD800, 0xF3F0005,
    0xF3F3800, 0xF3F4005, 0xF3F6000, 0xF3F6805, 0xF3F7800, 0xF3F8005, 0xF3FF800, 0xF400005,
    0xF462800, 0xF463802, 0xF4686E4, 0xF46B800, 0xF480005, 0xF4A2734, 0xF4A503C, 0xF4A5805,
    0xF4A6000, 0xF4A8006, 0xF4AD000, 0xF638802, 0xF656000, 0xF656802, 0xF658000, 0xF658802,
    0xF65A800, 0xF680802, 0xF697000, 0xF697802, 0xF69F000, 0xF700005, 0xF702000, 0xF702805,
    0xF710000, 0xF710805, 0xF711800, 0xF712005, 0xF712800, 0xF713805, 0xF714000, 0xF714805,
    0xF719800, 0xF71A005, 0xF71C000, 0xF71C805, 0xF71D000, 0xF71D805, 0xF71E000, 0xF721005,
    0xF721800, 0xF723805, 0xF724000, 0xF724805, 0xF725000, 0xF725805, 0xF726000, 0xF726805,
    0xF728000, 0xF728805, 0xF729800, 0xF72A005, 0xF72A800, 0xF72B805, 0xF72C000, 0xF72C805,
    0xF72D000, 0xF72D805, 0xF72E000, 0xF72E805, 0xF72F000, 0xF72F805, 0xF730000, 0xF730805,
    0xF731800, 0xF732005, 0xF732800, 0xF733805, 0xF735800, 0xF736005, 0xF739800, 0xF73A005,
    0xF73C000, 0xF73C805, 0xF73E800, 0xF73F005, 0xF73F800, 0xF740005, 0xF745000, 0xF745805,
    0xF74E000, 0xF750805, 0xF752000, 0xF752805, 0xF755000, 0xF755805, 0xF75E000, 0xF880002,
    0xF886800, 0xF898004, 0xF8A5000, 0xF8A8004, 0xF8B5000, 0xF8B8004, 0xF8C5000, 0xFDF8006,
    0xFDFD000, 0x10000005, 0x15370000, 0x15380005, 0x15B9D000, 0x15BA0005, 0x15C0F000,
    0x15C10005, 0x16751000, 0x16758005, 0x175F0800, 0x175F8005, 0x1772F000, 0x17C00005,
    0x17D0F000, 0x18000005, 0x189A5800, 0x189A8005, 0x191D8000, 0x70080004, 0x700F8000,
};

/* c, first, second: c decomposes into the two; the first UNICODE_COMPOSED also compose */
static const u32 unicode_pairs[3 * UNICODE_PAIRS] = {
    0xC0, 0x41, 0x300, 0xC1, 0x41, 0x301, 0xC2, 0x41, 0x302, 0xC3, 0x41, 0x303, 0xC4, 0x41,
    0x308, 0xC5, 0x41, 0x30A, 0xC7, 0x43, 0x327, 0xC8, 0x45, 0x300, 0xC9, 0x45, 0x301, 0xCA,
    0x45, 0x302, 0xCB, 0x45, 0x308, 0xCC, 0x49, 0x300, 0xCD, 0x49, 0x301, 0xCE, 0x49, 0x302,
    0xCF, 0x49, 0x308, 0xD1, 0x4E, 0x303, 0xD2, 0x4F, 0x300, 0xD3, 0x4F, 0x301, 0xD4, 0x4F,
    0x302, 0xD5, 0x4F, 0x303, 0xD6, 0x4F, 0x308, 0xD9, 0x55, 0x300, 0xDA, 0x55, 0x301, 0xDB,
    0x55, 0x302, 0xDC, 0x55, 0x308, 0xDD, 0x59, 0x301, 0xE0, 0x61, 0x300, 0xE1, 0x61, 0x301,
    0xE2, 0x61, 0x302, 0xE3, 0x61, 0x303, 0xE4, 0x61, 0x308, 0xE5, 0x61, 0x30A, 0xE7, 0x63,
    0x327, 0xE8, 0x65, 0x300, 0xE9, 0x65, 0x301, 0xEA, 0x65, 0x302, 0xEB, 0x65, 0x308, 0xEC,
    0x69, 0x300, 0xED, 0x69, 0x301, 0xEE, 0x69, 0x302, 0xEF, 0x69, 0x308, 0xF1, 0x6E, 0x303,
    0xF2, 0x6F, 0x300, 0xF3, 0x6F, 0x301, 0xF4, 0x6F, 0x302, 0xF5, 0x6F, 0x303, 0xF6, 0x6F,
    0x308, 0xF9, 0x75, 0x300, 0xFA, 0x75, 0x301, 0xFB, 0x75, 0x302, 0xFC, 0x75, 0x308, 0xFD,
    0x79, 0x301, 0xFF, 0x79, 0x308, 0x100, 0x41, 0x304, 0x101, 0x61, 0x304, 0x102, 0x41, 0x306,
    0x103, 0x61, 0x306, 0x104, 0x41, 0x328, 0x105, 0x61, 0x328, 0x106, 0x43, 0x301, 0x107, 0x63,
    0x301, 0x108, 0x43, 0x302, 0x109, 0x63, 0x302, 0x10A, 0x43, 0x307, 0x10B, 0x63, 0x307,
    0x10C, 0x43, 0x30C, 0x10D, 0x63, 0x30C, 0x10E, 0x44, 0x30C, 0x10F, 0x64, 0x30C, 0x112, 0x45,
    0x304, 0x113, 0x65, 0x304, 0x114, 0x45, 0x306, 0x115, 0x65, 0x306, 0x116, 0x45, 0x307,
    0x117, 0x65, 0x307, 0x118, 0x45, 0x328, 0x119, 0x65, 0x328, 0x11A, 0x45, 0x30C, 0x11B, 0x65,
    0x30C, 0x11C, 0x47, 0x302, 0x11D, 0x67, 0x302, 0x11E, 0x47, 0x306, 0x11F, 0x67, 0x306,
    0x120, 0x47, 0x307, 0x121, 0x67, 0x307, 0x122, 0x47, 0x327, 0x123, 0x67, 0x327, 0x124, 0x48,
    0x302, 0x125, 0x68, 0x302, 0x128, 0x49, 0x303, 0x129, 0x69, 0x303, 0x12A, 0x49, 0x304,
    0x12B, 0x69, 0x304, 0x12C, 0x49, 0x306, 0x12D, 0x69, 0x306, 0x12E, 0x49, 0x328, 0x12F, 0x69,
    0x328, 0x130, 0x49, 0x307, 0x134, 0x4A, 0x302, 0x135, 0x6A, 0x302, 0x136, 0x4B, 0x327,
    0x137, 0x6B, 0x327, 0x139, 0x4C, 0x301, 0x13A, 0x6C, 0x301, 0x13B, 0x4C, 0x327, 0x13C, 0x6C,
    0x327, 0x13D, 0x4C, 0x30C, 0x13E, 0x6C, 0x30C, 0x143, 0x4E, 0x301, 0x144, 0x6E, 0x301,
    0x145, 0x4E, 0x327, 0x146, 0x6E, 0x327, 0x147, 0x4E, 0x30C, 0x148, 0x6E, 0x30C, 0x14C, 0x4F,
    0x304, 0x14D, 0x6F, 0x304, 0x14E, 0x4F, 0x306, 0x14F, 0x6F, 0x306, 0x150, 0x4F, 0x30B,
    0x151, 0x6F, 0x30B, 0x154, 0x52, 0x301, 0x155, 0x72, 0x301, 0x156, 0x52, 0x327, 0x157, 0x72,
    0x327, 0x158, 0x52, 0x30C, 0x159, 0x72, 0x30C, 0x15A, 0x53, 0x301, 0x15B, 0x73, 0x301,
    0x15C, 0x53, 0x302, 0x15D, 0x73, 0x302, 0x15E, 0x53, 0x327, 0x15F, 0x73, 0x327, 0x160, 0x53,
    0x30C, 0x161, 0x73, 0x30C, 0x162, 0x54, 0x327, 0x163, 0x74, 0x327, 0x164, 0x54, 0x30C,
    0x165, 0x74, 0x30C, 0x168, 0x55, 0x303, 0x169, 0x75, 0x303, 0x16A, 0x55, 0x304, 0x16B, 0x75,
    0x304, 0x16C, 0x55, 0x306, 0x16D, 0x75, 0x306, 0x16E, 0x55, 0x30A, 0x16F, 0x75, 0x30A,
    0x170, 0x55, 0x30B, 0x171, 0x75, 0x30B, 0x172, 0x55, 0x328, 0x173, 0x75, 0x328, 0x174, 0x57,
    0x302, 0x175, 0x77, 0x302, 0x176, 0x59, 0x302, 0x177, 0x79, 0x302, 0x178, 0x59, 0x308,
    0x179, 0x5A, 0x301, 0x17A, 0x7A, 0x301, 0x17B, 0x5A, 0x307, 0x17C, 0x7A, 0x307, 0x17D, 0x5A,
    0x30C, 0x17E, 0x7A, 0x30C, 0x1A0, 0x4F, 0x31B, 0x1A1, 0x6F, 0x31B, 0x1AF, 0x55, 0x31B,
    0x1B0, 0x75, 0x31B, 0x1CD, 0x41, 0x30C, 0x1CE, 0x61, 0x30C, 0x1CF, 0x49, 0x30C, 0x1D0, 0x69,
    0x30C, 0x1D1, 0x4F, 0x30C, 0x1D2, 0x6F, 0x30C, 0x1D3, 0x55, 0x30C, 0x1D4, 0x75, 0x30C,
    0x1D5, 0xDC, 0x304, 0x1D6, 0xFC, 0x304, 0x1D7, 0xDC, 0x301, 0x1D8, 0xFC, 0x301, 0x1D9, 0xDC,
    0x30C, 0x1DA, 0xFC, 0x30C, 0x1DB, 0xDC, 0x300, 0x1DC, 0xFC, 0x300, 0x1DE, 0xC4, 0x304,
    0x1DF, 0xE4, 0x304, 0x1E0, 0x226, 0x304, 0x1E1, 0x227, 0x304, 0x1E2, 0xC6, 0x304, 0x1E3,
    0xE6, 0x304, 0x1E6, 0x47, 0x30C, 0x1E7, 0x67, 0x30C, 0x1E8, 0x4B, 0x30C, 0x1E9, 0x6B, 0x30C,
    0x1EA, 0x4F, 0x328, 0x1EB, 0x6F, 0x328, 0x1EC, 0x1EA, 0x304, 0x1ED, 0x1EB, 0x304, 0x1EE,
    0x1B7, 0x30C, 0x1EF, 0x292, 0x30C, 0x1F0, 0x6A, 0x30C, 0x1F4, 0x47, 0x301, 0x1F5, 0x67,
    0x301, 0x1F8, 0x4E, 0x300, 0x1F9, 0x6E, 0x300, 0x1FA, 0xC5, 0x301, 0x1FB, 0xE5, 0x301,
    0x1FC, 0xC6, 0x301, 0x1FD, 0xE6, 0x301, 0x1FE, 0xD8, 0x301, 0x1FF, 0xF8, 0x301, 0x200, 0x41,
    0x30F, 0x201, 0x61, 0x30F, 0x202, 0x41, 0x311, 0x203, 0x61, 0x311, 0x204, 0x45, 0x30F,
    0x205, 0x65, 0x30F, 0x206, 0x45, 0x311, 0x207, 0x65, 0x311, 0x208, 0x49, 0x30F, 0x209, 0x69,
    0x30F, 0x20A, 0x49, 0x311, 0x20B, 0x69, 0x311, 0x20C, 0x4F, 0x30F, 0x20D, 0x6F, 0x30F,
    0x20E, 0x4F, 0x311, 0x20F, 0x6F, 0x311, 0x210, 0x52, 0x30F, 0x211, 0x72, 0x30F, 0x212, 0x52,
    0x311, 0x213, 0x72, 0x311, 0x214, 0x55, 0x30F, 0x215, 0x75, 0x30F, 0x216, 0x55, 0x311,
    0x217, 0x75, 0x311, 0x218, 0x53, 0x326, 0x219, 0x73, 0x326, 0x21A, 0x54, 0x326, 0x21B, 0x74,
    0x326, 0x21E, 0x48, 0x30C, 0x21F, 0x68, 0x30C, 0x226, 0x41, 0x307, 0x227, 0x61, 0x307,
    0x228, 0x45, 0x327, 0x229, 0x65, 0x327, 0x22A, 0xD6, 0x304, 0x22B, 0xF6, 0x304, 0x22C, 0xD5,
    0x304, 0x22D, 0xF5, 0x304, 0x22E, 0x4F, 0x307, 0x22F, 0x6F, 0x307, 0x230, 0x22E, 0x304,
    0x231, 0x22F, 0x304, 0x232, 0x59, 0x304, 0x233, 0x79, 0x304, 0x385, 0xA8, 0x301, 0x386,
    0x391, 0x301, 0x388, 0x395, 0x301, 0x389, 0x397, 0x301, 0x38A, 0x399, 0x301, 0x38C, 0x39F,
    0x301, 0x38E, 0x3A5, 0x301, 0x38F, 0x3A9, 0x301, 0x390, 0x3CA, 0x301, 0x3AA, 0x399, 0x308,
    0x3AB, 0x3A5, 0x308, 0x3AC, 0x3B1, 0x301, 0x3AD, 0x3B5, 0x301, 0x3AE, 0x3B7, 0x301, 0x3AF,
    0x3B9, 0x301, 0x3B0, 0x3CB, 0x301, 0x3CA, 0x3B9, 0x308, 0x3CB, 0x3C5, 0x308, 0x3CC, 0x3BF,
    0x301, 0x3CD, 0x3C5, 0x301, 0x3CE, 0x3C9, 0x301, 0x3D3, 0x3D2, 0x301, 0x3D4, 0x3D2, 0x308,
    0x400, 0x415, 0x300, 0x401, 0x415, 0x308, 0x403, 0x413, 0x301, 0x407, 0x406, 0x308, 0x40C,
    0x41A, 0x301, 0x40D, 0x418, 0x300, 0x40E, 0x423, 0x306, 0x419, 0x418, 0x306, 0x439, 0x438,
    0x306, 0x450, 0x435, 0x300, 0x451, 0x435, 0x308, 0x453, 0x433, 0x301, 0x457, 0x456, 0x308,
    0x45C, 0x43A, 0x301, 0x45D, 0x438, 0x300, 0x45E, 0x443, 0x306, 0x476, 0x474, 0x30F, 0x477,
    0x475, 0x30F, 0x4C1, 0x416, 0x306, 0x4C2, 0x436, 0x306, 0x4D0, 0x410, 0x306, 0x4D1, 0x430,
    0x306, 0x4D2, 0x410, 0x308, 0x4D3, 0x430, 0x308, 0x4D6, 0x415, 0x306, 0x4D7, 0x435, 0x306,
    0x4DA, 0x4D8, 0x308, 0x4DB, 0x4D9, 0x308, 0x4DC, 0x416, 0x308, 0x4DD, 0x436, 0x308, 0x4DE,
    0x417, 0x308, 0x4DF, 0x437, 0x308, 0x4E2, 0x418, 0x304, 0x4E3, 0x438, 0x304, 0x4E4, 0x418,
    0x308, 0x4E5, 0x438, 0x308, 0x4E6, 0x41E, 0x308, 0x4E7, 0x43E, 0x308, 0x4EA, 0x4E8, 0x308,
    0x4EB, 0x4E9, 0x308, 0x4EC, 0x42D, 0x308, 0x4ED, 0x44D, 0x308, 0x4EE, 0x423, 0x304, 0x4EF,
    0x443, 0x304, 0x4F0, 0x423, 0x308, 0x4F1, 0x443, 0x308, 0x4F2, 0x423, 0x30B, 0x4F3, 0x443,
    0x30B, 0x4F4, 0x427, 0x308, 0x4F5, 0x447, 0x308, 0x4F8, 0x42B, 0x308, 0x4F9, 0x44B, 0x308,
    0x622, 0x627, 0x653, 0x623, 0x627, 0x654, 0x624, 0x648, 0x654, 0x625, 0x627, 0x655, 0x626,
    0x64A, 0x654, 0x6C0, 0x6D5, 0x654, 0x6C2, 0x6C1, 0x654, 0x6D3, 0x6D2, 0x654, 0x929, 0x928,
    0x93C, 0x931, 0x930, 0x93C, 0x934, 0x933, 0x93C, 0x9CB, 0x9C7, 0x9BE, 0x9CC, 0x9C7, 0x9D7,
    0xB48, 0xB47, 0xB56, 0xB4B, 0xB47, 0xB3E, 0xB4C, 0xB47, 0xB57, 0xB94, 0xB92, 0xBD7, 0xBCA,
    0xBC6, 0xBBE, 0xBCB, 0xBC7, 0xBBE, 0xBCC, 0xBC6, 0xBD7, 0xC48, 0xC46, 0xC56, 0xCC0, 0xCBF,
    0xCD5, 0xCC7, 0xCC6, 0xCD5, 0xCC8, 0xCC6, 0xCD6, 0xCCA, 0xCC6, 0xCC2, 0xCCB, 0xCCA, 0xCD5,
    0xD4A, 0xD46, 0xD3E, 0xD4B, 0xD47, 0xD3E, 0xD4C, 0xD46, 0xD57, 0xDDA, 0xDD9, 0xDCA, 0xDDC,
    0xDD9, 0xDCF, 0xDDD, 0xDDC, 0xDCA, 0xDDE, 0xDD9, 0xDDF, 0x1026, 0x1025, 0x102E, 0x1B06,
    0x1B05, 0x1B35, 0x1B08, 0x1B07, 0x1B35, 0x1B0A, 0x1B09, 0x1B35, 0x1B0C, 0x1B0B, 0x1B35,
    0x1B0E, 0x1B0D, 0x1B35, 0x1B12, 0x1B11, 0x1B35, 0x1B3B, 0x1B3A, 0x1B35, 0x1B3D, 0x1B3C,
    0x1B35, 0x1B40, 0x1B3E, 0x1B35, 0x1B41, 0x1B3F, 0x1B35, 0x1B43, 0x1B42, 0x1B35, 0x1E00,
    0x41, 0x325, 0x1E01, 0x61, 0x325, 0x1E02, 0x42, 0x307, 0x1E03, 0x62, 0x307, 0x1E04, 0x42,
    0x323, 0x1E05, 0x62, 0x323, 0x1E06, 0x42, 0x331, 0x1E07, 0x62, 0x331, 0x1E08, 0xC7, 0x301,
    0x1E09, 0xE7, 0x301, 0x1E0A, 0x44, 0x307, 0x1E0B, 0x64, 0x307, 0x1E0C, 0x44, 0x323, 0x1E0D,
    0x64, 0x323, 0x1E0E, 0x44, 0x331, 0x1E0F, 0x64, 0x331, 0x1E10, 0x44, 0x327, 0x1E11, 0x64,
    0x327, 0x1E12, 0x44, 0x32D, 0x1E13, 0x64, 0x32D, 0x1E14, 0x112, 0x300, 0x1E15, 0x113, 0x300,
    0x1E16, 0x112, 0x301, 0x1E17, 0x113, 0x301, 0x1E18, 0x45, 0x32D, 0x1E19, 0x65, 0x32D,
    0x1E1A, 0x45, 0x330, 0x1E1B, 0x65, 0x330, 0x1E1C, 0x228, 0x306, 0x1E1D, 0x229, 0x306,
    0x1E1E, 0x46, 0x307, 0x1E1F, 0x66, 0x307, 0x1E20, 0x47, 0x304, 0x1E21, 0x67, 0x304, 0x1E22,
    0x48, 0x307, 0x1E23, 0x68, 0x307, 0x1E24, 0x48, 0x323, 0x1E25, 0x68, 0x323, 0x1E26, 0x48,
    0x308, 0x1E27, 0x68, 0x308, 0x1E28, 0x48, 0x327, 0x1E29, 0x68, 0x327, 0x1E2A, 0x48, 0x32E,
    0x1E2B, 0x68, 0x32E, 0x1E2C, 0x49, 0x330, 0x1E2D, 0x69, 0x330, 0x1E2E, 0xCF, 0x301, 0x1E2F,
    0xEF, 0x301, 0x1E30, 0x4B, 0x301, 0x1E31, 0x6B, 0x301, 0x1E32, 0x4B, 0x323, 0x1E33, 0x6B,
    0x323, 0x1E34, 0x4B, 0x331, 0x1E35, 0x6B, 0x331, 0x1E36, 0x4C, 0x323, 0x1E37, 0x6C, 0x323,
    0x1E38, 0x1E36, 0x304, 0x1E39, 0x1E37, 0x304, 0x1E3A, 0x4C, 0x331, 0x1E3B, 0x6C, 0x331,
    0x1E3C, 0x4C, 0x32D, 0x1E3D, 0x6C, 0x32D, 0x1E3E, 0x4D, 0x301, 0x1E3F, 0x6D, 0x301, 0x1E40,
    0x4D, 0x307, 0x1E41, 0x6D, 0x307, 0x1E42, 0x4D, 0x323, 0x1E43, 0x6D, 0x323, 0x1E44, 0x4E,
    0x307, 0x1E45, 0x6E, 0x307, 0x1E46, 0x4E, 0x323, 0x1E47, 0x6E, 0x323, 0x1E48, 0x4E, 0x331,
    0x1E49, 0x6E, 0x331, 0x1E4A, 0x4E, 0x32D, 0x1E4B, 0x6E, 0x32D, 0x1E4C, 0xD5, 0x301, 0x1E4D,
    0xF5, 0x301, 0x1E4E, 0xD5, 0x308, 0x1E4F, 0xF5, 0x308, 0x1E50, 0x14C, 0x300, 0x1E51, 0x14D,
    0x300, 0x1E52, 0x14C, 0x301, 0x1E53, 0x14D, 0x301, 0x1E54, 0x50, 0x301, 0x1E55, 0x70, 0x301,
    0x1E56, 0x50, 0x307, 0x1E57, 0x70, 0x307, 0x1E58, 0x52, 0x307, 0x1E59, 0x72, 0x307, 0x1E5A,
    0x52, 0x323, 0x1E5B, 0x72, 0x323, 0x1E5C, 0x1E5A, 0x304, 0x1E5D, 0x1E5B, 0x304, 0x1E5E,
    0x52, 0x331, 0x1E5F, 0x72, 0x331, 0x1E60, 0x53, 0x307, 0x1E61, 0x73, 0x307, 0x1E62, 0x53,
    0x323, 0x1E63, 0x73, 0x323, 0x1E64, 0x15A, 0x307, 0x1E65, 0x15B, 0x307, 0x1E66, 0x160,
    0x307, 0x1E67, 0x161, 0x307, 0x1E68, 0x1E62, 0x307, 0x1E69, 0x1E63, 0x307, 0x1E6A, 0x54,
    0x307, 0x1E6B, 0x74, 0x307, 0x1E6C, 0x54, 0x323, 0x1E6D, 0x74, 0x323, 0x1E6E, 0x54, 0x331,
    0x1E6F, 0x74, 0x331, 0x1E70, 0x54, 0x32D, 0x1E71, 0x74, 0x32D, 0x1E72, 0x55, 0x324, 0x1E73,
    0x75, 0x324, 0x1E74, 0x55, 0x330, 0x1E75, 0x75, 0x330, 0x1E76, 0x55, 0x32D, 0x1E77, 0x75,
    0x32D, 0x1E78, 0x168, 0x301, 0x1E79, 0x169, 0x301, 0x1E7A, 0x16A, 0x308, 0x1E7B, 0x16B,
    0x308, 0x1E7C, 0x56, 0x303, 0x1E7D, 0x76, 0x303, 0x1E7E, 0x56, 0x323, 0x1E7F, 0x76, 0x323,
    0x1E80, 0x57, 0x300, 0x1E81, 0x77, 0x300, 0x1E82, 0x57, 0x301, 0x1E83, 0x77, 0x301, 0x1E84,
    0x57, 0x308, 0x1E85, 0x77, 0x308, 0x1E86, 0x57, 0x307, 0x1E87, 0x77, 0x307, 0x1E88, 0x57,
    0x323, 0x1E89, 0x77, 0x323, 0x1E8A, 0x58, 0x307, 0x1E8B, 0x78, 0x307, 0x1E8C, 0x58, 0x308,
    0x1E8D, 0x78, 0x308, 0x1E8E, 0x59, 0x307, 0x1E8F, 0x79, 0x307, 0x1E90, 0x5A, 0x302, 0x1E91,
    0x7A, 0x302, 0x1E92, 0x5A, 0x323, 0x1E93, 0x7A, 0x323, 0x1E94, 0x5A, 0x331, 0x1E95, 0x7A,
    0x331, 0x1E96, 0x68, 0x331, 0x1E97, 0x74, 0x308, 0x1E98, 0x77, 0x30A, 0x1E99, 0x79, 0x30A,
    0x1E9B, 0x17F, 0x307, 0x1EA0, 0x41, 0x323, 0x1EA1, 0x61, 0x323, 0x1EA2, 0x41, 0x309, 0x1EA3,
    0x61, 0x309, 0x1EA4, 0xC2, 0x301, 0x1EA5, 0xE2, 0x301, 0x1EA6, 0xC2, 0x300, 0x1EA7, 0xE2,
    0x300, 0x1EA8, 0xC2, 0x309, 0x1EA9, 0xE2, 0x309, 0x1EAA, 0xC2, 0x303, 0x1EAB, 0xE2, 0x303,
    0x1EAC, 0x1EA0, 0x302, 0x1EAD, 0x1EA1, 0x302, 0x1EAE, 0x102, 0x301, 0x1EAF, 0x103, 0x301,
    0x1EB0, 0x102, 0x300, 0x1EB1, 0x103, 0x300, 0x1EB2, 0x102, 0x309, 0x1EB3, 0x103, 0x309,
    0x1EB4, 0x102, 0x303, 0x1EB5, 0x103, 0x303, 0x1EB6, 0x1EA0, 0x306, 0x1EB7, 0x1EA1, 0x306,
    0x1EB8, 0x45, 0x323, 0x1EB9, 0x65, 0x323, 0x1EBA, 0x45, 0x309, 0x1EBB, 0x65, 0x309, 0x1EBC,
    0x45, 0x303, 0x1EBD, 0x65, 0x303, 0x1EBE, 0xCA, 0x301, 0x1EBF, 0xEA, 0x301, 0x1EC0, 0xCA,
    0x300, 0x1EC1, 0xEA, 0x300, 0x1EC2, 0xCA, 0x309, 0x1EC3, 0xEA, 0x309, 0x1EC4, 0xCA, 0x303,
    0x1EC5, 0xEA, 0x303, 0x1EC6, 0x1EB8, 0x302, 0x1EC7, 0x1EB9, 0x302, 0x1EC8, 0x49, 0x309,
    0x1EC9, 0x69, 0x309, 0x1ECA, 0x49, 0x323, 0x1ECB, 0x69, 0x323, 0x1ECC, 0x4F, 0x323, 0x1ECD,
    0x6F, 0x323, 0x1ECE, 0x4F, 0x309, 0x1ECF, 0x6F, 0x309, 0x1ED0, 0xD4, 0x301, 0x1ED1, 0xF4,
    0x301, 0x1ED2, 0xD4, 0x300, 0x1ED3, 0xF4, 0x300, 0x1ED4, 0xD4, 0x309, 0x1ED5, 0xF4, 0x309,
    0x1ED6, 0xD4, 0x303, 0x1ED7, 0xF4, 0x303, 0x1ED8, 0x1ECC, 0x302, 0x1ED9, 0x1ECD, 0x302,
    0x1EDA, 0x1A0, 0x301, 0x1EDB, 0x1A1, 0x301, 0x1EDC, 0x1A0, 0x300, 0x1EDD, 0x1A1, 0x300,
    0x1EDE, 0x1A0, 0x309, 0x1EDF, 0x1A1, 0x309, 0x1EE0, 0x1A0, 0x303, 0x1EE1, 0x1A1, 0x303,
    0x1EE2, 0x1A0, 0x323, 0x1EE3, 0x1A1, 0x323, 0x1EE4, 0x55, 0x323, 0x1EE5, 0x75, 0x323,
    0x1EE6, 0x55, 0x309, 0x1EE7, 0x75, 0x309, 0x1EE8, 0x1AF, 0x301, 0x1EE9, 0x1B0, 0x301,
    0x1EEA, 0x1AF, 0x300, 0x1EEB, 0x1B0, 0x300, 0x1EEC, 0x1AF, 0x309, 0x1EED, 0x1B0, 0x309,
    0x1EEE, 0x1AF, 0x303, 0x1EEF, 0x1B0, 0x303, 0x1EF0, 0x1AF, 0x323, 0x1EF1, 0x1B0, 0x323,
    0x1EF2, 0x59, 0x300, 0x1EF3, 0x79, 0x300, 0x1EF4, 0x59, 0x323, 0x1EF5, 0x79, 0x323, 0x1EF6,
    0x59, 0x309, 0x1EF7, 0x79, 0x309, 0x1EF8, 0x59, 0x303, 0x1EF9, 0x79, 0x303, 0x1F00, 0x3B1,
    0x313, 0x1F01, 0x3B1, 0x314, 0x1F02, 0x1F00, 0x300, 0x1F03, 0x1F01, 0x300, 0x1F04, 0x1F00,
    0x301, 0x1F05, 0x1F01, 0x301, 0x1F06, 0x1F00, 0x342, 0x1F07, 0x1F01, 0x342, 0x1F08, 0x391,
    0x313, 0x1F09, 0x391, 0x314, 0x1F0A, 0x1F08, 0x300, 0x1F0B, 0x1F09, 0x300, 0x1F0C, 0x1F08,
    0x301, 0x1F0D, 0x1F09, 0x301, 0x1F0E, 0x1F08, 0x342, 0x1F0F, 0x1F09, 0x342, 0x1F10, 0x3B5,
    0x313, 0x1F11, 0x3B5, 0x314, 0x1F12, 0x1F10, 0x300, 0x1F13, 0x1F11, 0x300, 0x1F14, 0x1F10,
    0x301, 0x1F15, 0x1F11, 0x301, 0x1F18, 0x395, 0x313, 0x1F19, 0x395, 0x314, 0x1F1A, 0x1F18,
    0x300, 0x1F1B, 0x1F19, 0x300, 0x1F1C, 0x1F18, 0x301, 0x1F1D, 0x1F19, 0x301, 0x1F20, 0x3B7,
    0x313, 0x1F21, 0x3B7, 0x314, 0x1F22, 0x1F20, 0x300, 0x1F23, 0x1F21, 0x300, 0x1F24, 0x1F20,
    0x301, 0x1F25, 0x1F21, 0x301, 0x1F26, 0x1F20, 0x342, 0x1F27, 0x1F21, 0x342, 0x1F28, 0x397,
    0x313, 0x1F29, 0x397, 0x314, 0x1F2A, 0x1F28, 0x300, 0x1F2B, 0x1F29, 0x300, 0x1F2C, 0x1F28,
    0x301, 0x1F2D, 0x1F29, 0x301, 0x1F2E, 0x1F28, 0x342, 0x1F2F, 0x1F29, 0x342, 0x1F30, 0x3B9,
    0x313, 0x1F31, 0x3B9, 0x314, 0x1F32, 0x1F30, 0x300, 0x1F33, 0x1F31, 0x300, 0x1F34, 0x1F30,
    0x301, 0x1F35, 0x1F31, 0x301, 0x1F36, 0x1F30, 0x342, 0x1F37, 0x1F31, 0x342, 0x1F38, 0x399,
    0x313, 0x1F39, 0x399, 0x314, 0x1F3A, 0x1F38, 0x300, 0x1F3B, 0x1F39, 0x300, 0x1F3C, 0x1F38,
    0x301, 0x1F3D, 0x1F39, 0x301, 0x1F3E, 0x1F38, 0x342, 0x1F3F, 0x1F39, 0x342, 0x1F40, 0x3BF,
    0x313, 0x1F41, 0x3BF, 0x314, 0x1F42, 0x1F40, 0x300, 0x1F43, 0x1F41, 0x300, 0x1F44, 0x1F40,
    0x301, 0x1F45, 0x1F41, 0x301, 0x1F48, 0x39F, 0x313, 0x1F49, 0x39F, 0x314, 0x1F4A, 0x1F48,
    0x300, 0x1F4B, 0x1F49, 0x300, 0x1F4C, 0x1F48, 0x301, 0x1F4D, 0x1F49, 0x301, 0x1F50, 0x3C5,
    0x313, 0x1F51, 0x3C5, 0x314, 0x1F52, 0x1F50, 0x300, 0x1F53, 0x1F51, 0x300, 0x1F54, 0x1F50,
    0x301, 0x1F55, 0x1F51, 0x301, 0x1F56, 0x1F50, 0x342, 0x1F57, 0x1F51, 0x342, 0x1F59, 0x3A5,
    0x314, 0x1F5B, 0x1F59, 0x300, 0x1F5D, 0x1F59, 0x301, 0x1F5F, 0x1F59, 0x342, 0x1F60, 0x3C9,
    0x313, 0x1F61, 0x3C9, 0x314, 0x1F62, 0x1F60, 0x300, 0x1F63, 0x1F61, 0x300, 0x1F64, 0x1F60,
    0x301, 0x1F65, 0x1F61, 0x301, 0x1F66, 0x1F60, 0x342, 0x1F67, 0x1F61, 0x342, 0x1F68, 0x3A9,
    0x313, 0x1F69, 0x3A9, 0x314, 0x1F6A, 0x1F68, 0x300, 0x1F6B, 0x1F69, 0x300, 0x1F6C, 0x1F68,
    0x301, 0x1F6D, 0x1F69, 0x301, 0x1F6E, 0x1F68, 0x342, 0x1F6F, 0x1F69, 0x342, 0x1F70, 0x3B1,
    0x300, 0x1F72, 0x3B5, 0x300, 0x1F74, 0x3B7, 0x300, 0x1F76, 0x3B9, 0x300, 0x1F78, 0x3BF,
    0x300, 0x1F7A, 0x3C5, 0x300, 0x1F7C, 0x3C9, 0x300, 0x1F80, 0x1F00, 0x345, 0x1F81, 0x1F01,
    0x345, 0x1F82, 0x1F02, 0x345, 0x1F83, 0x1F03, 0x345, 0x1F84, 0x1F04, 0x345, 0x1F85, 0x1F05,
    0x345, 0x1F86, 0x1F06, 0x345, 0x1F87, 0x1F07, 0x345, 0x1F88, 0x1F08, 0x345, 0x1F89, 0x1F09,
    0x345, 0x1F8A, 0x1F0A, 0x345, 0x1F8B, 0x1F0B, 0x345, 0x1F8C, 0x1F0C, 0x345, 0x1F8D, 0x1F0D,
    0x345, 0x1F8E, 0x1F0E, 0x345, 0x1F8F, 0x1F0F, 0x345, 0x1F90, 0x1F20, 0x345, 0x1F91, 0x1F21,
    0x345, 0x1F92, 0x1F22, 0x345, 0x1F93, 0x1F23, 0x345, 0x1F94, 0x1F24, 0x345, 0x1F95, 0x1F25,
    0x345, 0x1F96, 0x1F26, 0x345, 0x1F97, 0x1F27, 0x345, 0x1F98, 0x1F28, 0x345, 0x1F99, 0x1F29,
    0x345, 0x1F9A, 0x1F2A, 0x345, 0x1F9B, 0x1F2B, 0x345, 0x1F9C, 0x1F2C, 0x345, 0x1F9D, 0x1F2D,
    0x345, 0x1F9E, 0x1F2E, 0x345, 0x1F9F, 0x1F2F, 0x345, 0x1FA0, 0x1F60, 0x345, 0x1FA1, 0x1F61,
    0x345, 0x1FA2, 0x1F62, 0x345, 0x1FA3, 0x1F63, 0x345, 0x1FA4, 0x1F64, 0x345, 0x1FA5, 0x1F65,
    0x345, 0x1FA6, 0x1F66, 0x345, 0x1FA7, 0x1F67, 0x345, 0x1FA8, 0x1F68, 0x345, 0x1FA9, 0x1F69,
    0x345, 0x1FAA, 0x1F6A, 0x345, 0x1FAB, 0x1F6B, 0x345, 0x1FAC, 0x1F6C, 0x345, 0x1FAD, 0x1F6D,
    0x345, 0x1FAE, 0x1F6E, 0x345, 0x1FAF, 0x1F6F, 0x345, 0x1FB0, 0x3B1, 0x306, 0x1FB1, 0x3B1,
    0x304, 0x1FB2, 0x1F70, 0x345, 0x1FB3, 0x3B1, 0x345, 0x1FB4, 0x3AC, 0x345, 0x1FB6, 0x3B1,
    0x342, 0x1FB7, 0x1FB6, 0x345, 0x1FB8, 0x391, 0x306, 0x1FB9, 0x391, 0x304, 0x1FBA, 0x391,
    0x300, 0x1FBC, 0x391, 0x345, 0x1FC1, 0xA8, 0x342, 0x1FC2, 0x1F74, 0x345, 0x1FC3, 0x3B7,
    0x345, 0x1FC4, 0x3AE, 0x345, 0x1FC6, 0x3B7, 0x342, 0x1FC7, 0x1FC6, 0x345, 0x1FC8, 0x395,
    0x300, 0x1FCA, 0x397, 0x300, 0x1FCC, 0x397, 0x345, 0x1FCD, 0x1FBF, 0x300, 0x1FCE, 0x1FBF,
    0x301, 0x1FCF, 0x1FBF, 0x342, 0x1FD0, 0x3B9, 0x306, 0x1FD1, 0x3B9, 0x304, 0x1FD2, 0x3CA,
    0x300, 0x1FD6, 0x3B9, 0x342, 0x1FD7, 0x3CA, 0x342, 0x1FD8, 0x399, 0x306, 0x1FD9, 0x399,
    0x304, 0x1FDA, 0x399, 0x300, 0x1FDD, 0x1FFE, 0x300, 0x1FDE, 0x1FFE, 0x301, 0x1FDF, 0x1FFE,
    0x342, 0x1FE0, 0x3C5, 0x306, 0x1FE1, 0x3C5, 0x304, 0x1FE2, 0x3CB, 0x300, 0x1FE4, 0x3C1,
    0x313, 0x1FE5, 0x3C1, 0x314, 0x1FE6, 0x3C5, 0x342, 0x1FE7, 0x3CB, 0x342, 0x1FE8, 0x3A5,
    0x306, 0x1FE9, 0x3A5, 0x304, 0x1FEA, 0x3A5, 0x300, 0x1FEC, 0x3A1, 0x314, 0x1FED, 0xA8,
    0x300, 0x1FF2, 0x1F7C, 0x345, 0x1FF3, 0x3C9, 0x345, 0x1FF4, 0x3CE, 0x345, 0x1FF6, 0x3C9,
    0x342, 0x1FF7, 0x1FF6, 0x345, 0x1FF8, 0x39F, 0x300, 0x1FFA, 0x3A9, 0x300, 0x1FFC, 0x3A9,
    0x345, 0x219A, 0x2190, 0x338, 0x219B, 0x2192, 0x338, 0x21AE, 0x2194, 0x338, 0x21CD, 0x21D0,
    0x338, 0x21CE, 0x21D4, 0x338, 0x21CF, 0x21D2, 0x338, 0x2204, 0x2203, 0x338, 0x2209, 0x2208,
    0x338, 0x220C, 0x220B, 0x338, 0x2224, 0x2223, 0x338, 0x2226, 0x2225, 0x338, 0x2241, 0x223C,
    0x338, 0x2244, 0x2243, 0x338, 0x2247, 0x2245, 0x338, 0x2249, 0x2248, 0x338, 0x2260, 0x3D,
    0x338, 0x2262, 0x2261, 0x338, 0x226D, 0x224D, 0x338, 0x226E, 0x3C, 0x338, 0x226F, 0x3E,
    0x338, 0x2270, 0x2264, 0x338, 0x2271, 0x2265, 0x338, 0x2274, 0x2272, 0x338, 0x2275, 0x2273,
    0x338, 0x2278, 0x2276, 0x338, 0x2279, 0x2277, 0x338, 0x2280, 0x227A, 0x338, 0x2281, 0x227B,
    0x338, 0x2284, 0x2282, 0x338, 0x2285, 0x2283, 0x338, 0x2288, 0x2286, 0x338, 0x2289, 0x2287,
    0x338, 0x22AC, 0x22A2, 0x338, 0x22AD, 0x22A8, 0x338, 0x22AE, 0x22A9, 0x338, 0x22AF, 0x22AB,
    0x338, 0x22E0, 0x227C, 0x338, 0x22E1, 0x227D, 0x338, 0x22E2, 0x2291, 0x338, 0x22E3, 0x2292,
    0x338, 0x22EA, 0x22B2, 0x338, 0x22EB, 0x22B3, 0x338, 0x22EC, 0x22B4, 0x338, 0x22ED, 0x22B5,
    0x338, 0x304C, 0x304B, 0x3099, 0x304E, 0x304D, 0x3099, 0x3050, 0x304F, 0x3099, 0x3052,
    0x3051, 0x3099, 0x3054, 0x3053, 0x3099, 0x3056, 0x3055, 0x3099, 0x3058, 0x3057, 0x3099,
    0x305A, 0x3059, 0x3099, 0x305C, 0x305B, 0x3099, 0x305E, 0x305D, 0x3099, 0x3060, 0x305F,
    0x3099, 0x3062, 0x3061, 0x3099, 0x3065, 0x3064, 0x3099, 0x3067, 0x3066, 0x3099, 0x3069,
    0x3068, 0x3099, 0x3070, 0x306F, 0x3099, 0x3071, 0x306F, 0x309A, 0x3073, 0x3072, 0x3099,
    0x3074, 0x3072, 0x309A, 0x3076, 0x3075, 0x3099, 0x3077, 0x3075, 0x309A, 0x3079, 0x3078,
    0x3099, 0x307A, 0x3078, 0x309A, 0x307C, 0x307B, 0x3099, 0x307D, 0x307B, 0x309A, 0x3094,
    0x3046, 0x3099, 0x309E, 0x309D, 0x3099, 0x30AC, 0x30AB, 0x3099, 0x30AE, 0x30AD, 0x3099,
    0x30B0, 0x30AF, 0x3099, 0x30B2, 0x30B1, 0x3099, 0x30B4, 0x30B3, 0x3099, 0x30B6, 0x30B5,
    0x3099, 0x30B8, 0x30B7, 0x3099, 0x30BA, 0x30B9, 0x3099, 0x30BC, 0x30BB, 0x3099, 0x30BE,
    0x30BD, 0x3099, 0x30C0, 0x30BF, 0x3099, 0x30C2, 0x30C1, 0x3099, 0x30C5, 0x30C4, 0x3099,
    0x30C7, 0x30C6, 0x3099, 0x30C9, 0x30C8, 0x3099, 0x30D0, 0x30CF, 0x3099, 0x30D1, 0x30CF,
    0x309A, 0x30D3, 0x30D2, 0x3099, 0x30D4, 0x30D2, 0x309A, 0x30D6, 0x30D5, 0x3099, 0x30D7,
    0x30D5, 0x309A, 0x30D9, 0x30D8, 0x3099, 0x30DA, 0x30D8, 0x309A, 0x30DC, 0x30DB, 0x3099,
    0x30DD, 0x30DB, 0x309A, 0x30F4, 0x30A6, 0x3099, 0x30F7, 0x30EF, 0x3099, 0x30F8, 0x30F0,
    0x3099, 0x30F9, 0x30F1, 0x3099, 0x30FA, 0x30F2, 0x3099, 0x30FE, 0x30FD, 0x3099, 0x1109A,
    0x11099, 0x110BA, 0x1109C, 0x1109B, 0x110BA, 0x110AB, 0x110A5, 0x110BA, 0x1112E, 0x11131,
    0x11127, 0x1112F, 0x11132, 0x11127, 0x1134B, 0x11347, 0x1133E, 0x1134C, 0x11347, 0x11357,
    0x114BB, 0x114B9, 0x114BA, 0x114BC, 0x114B9, 0x114B0, 0x114BE, 0x114B9, 0x114BD, 0x115BA,
    0x115B8, 0x115AF, 0x115BB, 0x115B9, 0x115AF, 0x340, 0x300, 0, 0x341, 0x301, 0, 0x343, 0x313,
    0, 0x344, 0x308, 0x301, 0x374, 0x2B9, 0, 0x37E, 0x3B, 0, 0x387, 0xB7, 0, 0x958, 0x915,
    0x93C, 0x959, 0x916, 0x93C, 0x95A, 0x917, 0x93C, 0x95B, 0x91C, 0x93C, 0x95C, 0x921, 0x93C,
    0x95D, 0x922, 0x93C, 0x95E, 0x92B, 0x93C, 0x95F, 0x92F, 0x93C, 0x9DC, 0x9A1, 0x9BC, 0x9DD,
    0x9A2, 0x9BC, 0x9DF, 0x9AF, 0x9BC, 0xA33, 0xA32, 0xA3C, 0xA36, 0xA38, 0xA3C, 0xA59, 0xA16,
    0xA3C, 0xA5A, 0xA17, 0xA3C, 0xA5B, 0xA1C, 0xA3C, 0xA5E, 0xA2B, 0xA3C, 0xB5C, 0xB21, 0xB3C,
    0xB5D, 0xB22, 0xB3C, 0xF43, 0xF42, 0xFB7, 0xF4D, 0xF4C, 0xFB7, 0xF52, 0xF51, 0xFB7, 0xF57,
    0xF56, 0xFB7, 0xF5C, 0xF5B, 0xFB7, 0xF69, 0xF40, 0xFB5, 0xF73, 0xF71, 0xF72, 0xF75, 0xF71,
    0xF74, 0xF76, 0xFB2, 0xF80, 0xF78, 0xFB3, 0xF80, 0xF81, 0xF71, 0xF80, 0xF93, 0xF92, 0xFB7,
    0xF9D, 0xF9C, 0xFB7, 0xFA2, 0xFA1, 0xFB7, 0xFA7, 0xFA6, 0xFB7, 0xFAC, 0xFAB, 0xFB7, 0xFB9,
    0xF90, 0xFB5, 0x1F71, 0x3B1, 0x301, 0x1F73, 0x3B5, 0x301, 0x1F75, 0x3B7, 0x301, 0x1F77,
    0x3B9, 0x301, 0x1F79, 0x3BF, 0x301, 0x1F7B, 0x3C5, 0x301, 0x1F7D, 0x3C9, 0x301, 0x1FBB,
    0x391, 0x301, 0x1FBE, 0x3B9, 0, 0x1FC9, 0x395, 0x301, 0x1FCB, 0x397, 0x301, 0x1FD3, 0x3CA,
    0x301, 0x1FDB, 0x399, 0x301, 0x1FE3, 0x3CB, 0x301, 0x1FEB, 0x3A5, 0x301, 0x1FEE, 0xA8,
    0x301, 0x1FEF, 0x60, 0, 0x1FF9, 0x39F, 0x301, 0x1FFB, 0x3A9, 0x301, 0x1FFD, 0xB4, 0, 0x2000,
    0x2002, 0, 0x2001, 0x2003, 0, 0x2126, 0x3A9, 0, 0x212A, 0x4B, 0, 0x212B, 0x41, 0x30A,
    0x2329, 0x3008, 0, 0x232A, 0x3009, 0, 0x2ADC, 0x2ADD, 0x338, 0xF900, 0x8C48, 0, 0xF901,
    0x66F4, 0, 0xF902, 0x8ECA, 0, 0xF903, 0x8CC8, 0, 0xF904, 0x6ED1, 0, 0xF905, 0x4E32, 0,
    0xF906, 0x53E5, 0, 0xF907, 0x9F9C, 0, 0xF908, 0x9F9C, 0, 0xF909, 0x5951, 0, 0xF90A, 0x91D1,
    0, 0xF90B, 0x5587, 0, 0xF90C, 0x5948, 0, 0xF90D, 0x61F6, 0, 0xF90E, 0x7669, 0, 0xF90F,
    0x7F85, 0, 0xF910, 0x863F, 0, 0xF911, 0x87BA, 0, 0xF912, 0x88F8, 0, 0xF913, 0x908F, 0,
    0xF914, 0x6A02, 0, 0xF915, 0x6D1B, 0, 0xF916, 0x70D9, 0, 0xF917, 0x73DE, 0, 0xF918, 0x843D,
    0, 0xF919, 0x916A, 0, 0xF91A, 0x99F1, 0, 0xF91B, 0x4E82, 0, 0xF91C, 0x5375, 0, 0xF91D,
    0x6B04, 0, 0xF91E, 0x721B, 0, 0xF91F, 0x862D, 0, 0xF920, 0x9E1E, 0, 0xF921, 0x5D50, 0,
    0xF922, 0x6FEB, 0, 0xF923, 0x85CD, 0, 0xF924, 0x8964, 0, 0xF925, 0x62C9, 0, 0xF926, 0x81D8,
    0, 0xF927, 0x881F, 0, 0xF928, 0x5ECA, 0, 0xF929, 0x6717, 0, 0xF92A, 0x6D6A, 0, 0xF92B,
    0x72FC, 0, 0xF92C, 0x90CE, 0, 0xF92D, 0x4F86, 0, 0xF92E, 0x51B7, 0, 0xF92F, 0x52DE, 0,
    0xF930, 0x64C4, 0, 0xF931, 0x6AD3, 0, 0xF932, 0x7210, 0, 0xF933, 0x76E7, 0, 0xF934, 0x8001,
    0, 0xF935, 0x8606, 0, 0xF936, 0x865C, 0, 0xF937, 0x8DEF, 0, 0xF938, 0x9732, 0, 0xF939,
    0x9B6F, 0, 0xF93A, 0x9DFA, 0, 0xF93B, 0x788C, 0, 0xF93C, 0x797F, 0, 0xF93D, 0x7DA0, 0,
    0xF93E, 0x83C9, 0, 0xF93F, 0x9304, 0, 0xF940, 0x9E7F, 0, 0xF941, 0x8AD6, 0, 0xF942, 0x58DF,
    0, 0xF943, 0x5F04, 0, 0xF944, 0x7C60, 0, 0xF945, 0x807E, 0, 0xF946, 0x7262, 0, 0xF947,
    0x78CA, 0, 0xF948, 0x8CC2, 0, 0xF949, 0x96F7, 0, 0xF94A, 0x58D8, 0, 0xF94B, 0x5C62, 0,
    0xF94C, 0x6A13, 0, 0xF94D, 0x6DDA, 0, 0xF94E, 0x6F0F, 0, 0xF94F, 0x7D2F, 0, 0xF950, 0x7E37,
    0, 0xF951, 0x964B, 0, 0xF952, 0x52D2, 0, 0xF953, 0x808B, 0, 0xF954, 0x51DC, 0, 0xF955,
    0x51CC, 0, 0xF956, 0x7A1C, 0, 0xF957, 0x7DBE, 0, 0xF958, 0x83F1, 0, 0xF959, 0x9675, 0,
    0xF95A, 0x8B80, 0, 0xF95B, 0x62CF, 0, 0xF95C, 0x6A02, 0, 0xF95D, 0x8AFE, 0, 0xF95E, 0x4E39,
    0, 0xF95F, 0x5BE7, 0, 0xF960, 0x6012, 0, 0xF961, 0x7387, 0, 0xF962, 0x7570, 0, 0xF963,
    0x5317, 0, 0xF964, 0x78FB, 0, 0xF965, 0x4FBF, 0, 0xF966, 0x5FA9, 0, 0xF967, 0x4E0D, 0,
    0xF968, 0x6CCC, 0, 0xF969, 0x6578, 0, 0xF96A, 0x7D22, 0, 0xF96B, 0x53C3, 0, 0xF96C, 0x585E,
    0, 0xF96D, 0x7701, 0, 0xF96E, 0x8449, 0, 0xF96F, 0x8AAA, 0, 0xF970, 0x6BBA, 0, 0xF971,
    0x8FB0, 0, 0xF972, 0x6C88, 0, 0xF973, 0x62FE, 0, 0xF974, 0x82E5, 0, 0xF975, 0x63A0, 0,
    0xF976, 0x7565, 0, 0xF977, 0x4EAE, 0, 0xF978, 0x5169, 0, 0xF979, 0x51C9, 0, 0xF97A, 0x6881,
    0, 0xF97B, 0x7CE7, 0, 0xF97C, 0x826F, 0, 0xF97D, 0x8AD2, 0, 0xF97E, 0x91CF, 0, 0xF97F,
    0x52F5, 0, 0xF980, 0x5442, 0, 0xF981, 0x5973, 0, 0xF982, 0x5EEC, 0, 0xF983, 0x65C5, 0,
    0xF984, 0x6FFE, 0, 0xF985, 0x792A, 0, 0xF986, 0x95AD, 0, 0xF987, 0x9A6A, 0, 0xF988, 0x9E97,
    0, 0xF989, 0x9ECE, 0, 0xF98A, 0x529B, 0, 0xF98B, 0x66C6, 0, 0xF98C, 0x6B77, 0, 0xF98D,
    0x8F62, 0, 0xF98E, 0x5E74, 0, 0xF98F, 0x6190, 0, 0xF990, 0x6200, 0, 0xF991, 0x649A, 0,
    0xF992, 0x6F23, 0, 0xF993, 0x7149, 0, 0xF994, 0x7489, 0, 0xF995, 0x79CA, 0, 0xF996, 0x7DF4,
    0, 0xF997, 0x806F, 0, 0xF998, 0x8F26, 0, 0xF999, 0x84EE, 0, 0xF99A, 0x9023, 0, 0xF99B,
    0x934A, 0, 0xF99C, 0x5217, 0, 0xF99D, 0x52A3, 0, 0xF99E, 0x54BD, 0, 0xF99F, 0x70C8, 0,
    0xF9A0, 0x88C2, 0, 0xF9A1, 0x8AAA, 0, 0xF9A2, 0x5EC9, 0, 0xF9A3, 0x5FF5, 0, 0xF9A4, 0x637B,
    0, 0xF9A5, 0x6BAE, 0, 0xF9A6, 0x7C3E, 0, 0xF9A7, 0x7375, 0, 0xF9A8, 0x4EE4, 0, 0xF9A9,
    0x56F9, 0, 0xF9AA, 0x5BE7, 0, 0xF9AB, 0x5DBA, 0, 0xF9AC, 0x601C, 0, 0xF9AD, 0x73B2, 0,
    0xF9AE, 0x7469, 0, 0xF9AF, 0x7F9A, 0, 0xF9B0, 0x8046, 0, 0xF9B1, 0x9234, 0, 0xF9B2, 0x96F6,
    0, 0xF9B3, 0x9748, 0, 0xF9B4, 0x9818, 0, 0xF9B5, 0x4F8B, 0, 0xF9B6, 0x79AE, 0, 0xF9B7,
    0x91B4, 0, 0xF9B8, 0x96B8, 0, 0xF9B9, 0x60E1, 0, 0xF9BA, 0x4E86, 0, 0xF9BB, 0x50DA, 0,
    0xF9BC, 0x5BEE, 0, 0xF9BD, 0x5C3F, 0, 0xF9BE, 0x6599, 0, 0xF9BF, 0x6A02, 0, 0xF9C0, 0x71CE,
    0, 0xF9C1, 0x7642, 0, 0xF9C2, 0x84FC, 0, 0xF9C3, 0x907C, 0, 0xF9C4, 0x9F8D, 0, 0xF9C5,
    0x6688, 0, 0xF9C6, 0x962E, 0, 0xF9C7, 0x5289, 0, 0xF9C8, 0x677B, 0, 0xF9C9, 0x67F3, 0,
    0xF9CA, 0x6D41, 0, 0xF9CB, 0x6E9C, 0, 0xF9CC, 0x7409, 0, 0xF9CD, 0x7559, 0, 0xF9CE, 0x786B,
    0, 0xF9CF, 0x7D10, 0, 0xF9D0, 0x985E, 0, 0xF9D1, 0x516D, 0, 0xF9D2, 0x622E, 0, 0xF9D3,
    0x9678, 0, 0xF9D4, 0x502B, 0, 0xF9D5, 0x5D19, 0, 0xF9D6, 0x6DEA, 0, 0xF9D7, 0x8F2A, 0,
    0xF9D8, 0x5F8B, 0, 0xF9D9, 0x6144, 0, 0xF9DA, 0x6817, 0, 0xF9DB, 0x7387, 0, 0xF9DC, 0x9686,
    0, 0xF9DD, 0x5229, 0, 0xF9DE, 0x540F, 0, 0xF9DF, 0x5C65, 0, 0xF9E0, 0x6613, 0, 0xF9E1,
    0x674E, 0, 0xF9E2, 0x68A8, 0, 0xF9E3, 0x6CE5, 0, 0xF9E4, 0x7406, 0, 0xF9E5, 0x75E2, 0,
    0xF9E6, 0x7F79, 0, 0xF9E7, 0x88CF, 0, 0xF9E8, 0x88E1, 0, 0xF9E9, 0x91CC, 0, 0xF9EA, 0x96E2,
    0, 0xF9EB, 0x533F, 0, 0xF9EC, 0x6EBA, 0, 0xF9ED, 0x541D, 0, 0xF9EE, 0x71D0, 0, 0xF9EF,
    0x7498, 0, 0xF9F0, 0x85FA, 0, 0xF9F1, 0x96A3, 0, 0xF9F2, 0x9C57, 0, 0xF9F3, 0x9E9F, 0,
    0xF9F4, 0x6797, 0, 0xF9F5, 0x6DCB, 0, 0xF9F6, 0x81E8, 0, 0xF9F7, 0x7ACB, 0, 0xF9F8, 0x7B20,
    0, 0xF9F9, 0x7C92, 0, 0xF9FA, 0x72C0, 0, 0xF9FB, 0x7099, 0, 0xF9FC, 0x8B58, 0, 0xF9FD,
    0x4EC0, 0, 0xF9FE, 0x8336, 0, 0xF9FF, 0x523A, 0, 0xFA00, 0x5207, 0, 0xFA01, 0x5EA6, 0,
    0xFA02, 0x62D3, 0, 0xFA03, 0x7CD6, 0, 0xFA04, 0x5B85, 0, 0xFA05, 0x6D1E, 0, 0xFA06, 0x66B4,
    0, 0xFA07, 0x8F3B, 0, 0xFA08, 0x884C, 0, 0xFA09, 0x964D, 0, 0xFA0A, 0x898B, 0, 0xFA0B,
    0x5ED3, 0, 0xFA0C, 0x5140, 0, 0xFA0D, 0x55C0, 0, 0xFA10, 0x585A, 0, 0xFA12, 0x6674, 0,
    0xFA15, 0x51DE, 0, 0xFA16, 0x732A, 0, 0xFA17, 0x76CA, 0, 0xFA18, 0x793C, 0, 0xFA19, 0x795E,
    0, 0xFA1A, 0x7965, 0, 0xFA1B, 0x798F, 0, 0xFA1C, 0x9756, 0, 0xFA1D, 0x7CBE, 0, 0xFA1E,
    0x7FBD, 0, 0xFA20, 0x8612, 0, 0xFA22, 0x8AF8, 0, 0xFA25, 0x9038, 0, 0xFA26, 0x90FD, 0,
    0xFA2A, 0x98EF, 0, 0xFA2B, 0x98FC, 0, 0xFA2C, 0x9928, 0, 0xFA2D, 0x9DB4, 0, 0xFA2E, 0x90DE,
    0, 0xFA2F, 0x96B7, 0, 0xFA30, 0x4FAE, 0, 0xFA31, 0x50E7, 0, 0xFA32, 0x514D, 0, 0xFA33,
    0x52C9, 0, 0xFA34, 0x52E4, 0, 0xFA35, 0x5351, 0, 0xFA36, 0x559D, 0, 0xFA37, 0x5606, 0,
    0xFA38, 0x5668, 0, 0xFA39, 0x5840, 0, 0xFA3A, 0x58A8, 0, 0xFA3B, 0x5C64, 0, 0xFA3C, 0x5C6E,
    0, 0xFA3D, 0x6094, 0, 0xFA3E, 0x6168, 0, 0xFA3F, 0x618E, 0, 0xFA40, 0x61F2, 0, 0xFA41,
    0x654F, 0, 0xFA42, 0x65E2, 0, 0xFA43, 0x6691, 0, 0xFA44, 0x6885, 0, 0xFA45, 0x6D77, 0,
    0xFA46, 0x6E1A, 0, 0xFA47, 0x6F22, 0, 0xFA48, 0x716E, 0, 0xFA49, 0x722B, 0, 0xFA4A, 0x7422,
    0, 0xFA4B, 0x7891, 0, 0xFA4C, 0x793E, 0, 0xFA4D, 0x7949, 0, 0xFA4E, 0x7948, 0, 0xFA4F,
    0x7950, 0, 0xFA50, 0x7956, 0, 0xFA51, 0x795D, 0, 0xFA52, 0x798D, 0, 0xFA53, 0x798E, 0,
    0xFA54, 0x7A40, 0, 0xFA55, 0x7A81, 0, 0xFA56, 0x7BC0, 0, 0xFA57, 0x7DF4, 0, 0xFA58, 0x7E09,
    0, 0xFA59, 0x7E41, 0, 0xFA5A, 0x7F72, 0, 0xFA5B, 0x8005, 0, 0xFA5C, 0x81ED, 0, 0xFA5D,
    0x8279, 0, 0xFA5E, 0x8279, 0, 0xFA5F, 0x8457, 0, 0xFA60, 0x8910, 0, 0xFA61, 0x8996, 0,
    0xFA62, 0x8B01, 0, 0xFA63, 0x8B39, 0, 0xFA64, 0x8CD3, 0, 0xFA65, 0x8D08, 0, 0xFA66, 0x8FB6,
    0, 0xFA67, 0x9038, 0, 0xFA68, 0x96E3, 0, 0xFA69, 0x97FF, 0, 0xFA6A, 0x983B, 0, 0xFA6B,
    0x6075, 0, 0xFA6C, 0x242EE, 0, 0xFA6D, 0x8218, 0, 0xFA70, 0x4E26, 0, 0xFA71, 0x51B5, 0,
    0xFA72, 0x5168, 0, 0xFA73, 0x4F80, 0, 0xFA74, 0x5145, 0, 0xFA75, 0x5180, 0, 0xFA76, 0x52C7,
    0, 0xFA77, 0x52FA, 0, 0xFA78, 0x559D, 0, 0xFA79, 0x5555, 0, 0xFA7A, 0x5599, 0, 0xFA7B,
    0x55E2, 0, 0xFA7C, 0x585A, 0, 0xFA7D, 0x58B3, 0, 0xFA7E, 0x5944, 0, 0xFA7F, 0x5954, 0,
    0xFA80, 0x5A62, 0, 0xFA81, 0x5B28, 0, 0xFA82, 0x5ED2, 0, 0xFA83, 0x5ED9, 0, 0xFA84, 0x5F69,
    0, 0xFA85, 0x5FAD, 0, 0xFA86, 0x60D8, 0, 0xFA87, 0x614E, 0, 0xFA88, 0x6108, 0, 0xFA89,
    0x618E, 0, 0xFA8A, 0x6160, 0, 0xFA8B, 0x61F2, 0, 0xFA8C, 0x6234, 0, 0xFA8D, 0x63C4, 0,
    0xFA8E, 0x641C, 0, 0xFA8F, 0x6452, 0, 0xFA90, 0x6556, 0, 0xFA91, 0x6674, 0, 0xFA92, 0x6717,
    0, 0xFA93, 0x671B, 0, 0xFA94, 0x6756, 0, 0xFA95, 0x6B79, 0, 0xFA96, 0x6BBA, 0, 0xFA97,
    0x6D41, 0, 0xFA98, 0x6EDB, 0, 0xFA99, 0x6ECB, 0, 0xFA9A, 0x6F22, 0, 0xFA9B, 0x701E, 0,
    0xFA9C, 0x716E, 0, 0xFA9D, 0x77A7, 0, 0xFA9E, 0x7235, 0, 0xFA9F, 0x72AF, 0, 0xFAA0, 0x732A,
    0, 0xFAA1, 0x7471, 0, 0xFAA2, 0x7506, 0, 0xFAA3, 0x753B, 0, 0xFAA4, 0x761D, 0, 0xFAA5,
    0x761F, 0, 0xFAA6, 0x76CA, 0, 0xFAA7, 0x76DB, 0, 0xFAA8, 0x76F4, 0, 0xFAA9, 0x774A, 0,
    0xFAAA, 0x7740, 0, 0xFAAB, 0x78CC, 0, 0xFAAC, 0x7AB1, 0, 0xFAAD, 0x7BC0, 0, 0xFAAE, 0x7C7B,
    0, 0xFAAF, 0x7D5B, 0, 0xFAB0, 0x7DF4, 0, 0xFAB1, 0x7F3E, 0, 0xFAB2, 0x8005, 0, 0xFAB3,
    0x8352, 0, 0xFAB4, 0x83EF, 0, 0xFAB5, 0x8779, 0, 0xFAB6, 0x8941, 0, 0xFAB7, 0x8986, 0,
    0xFAB8, 0x8996, 0, 0xFAB9, 0x8ABF, 0, 0xFABA, 0x8AF8, 0, 0xFABB, 0x8ACB, 0, 0xFABC, 0x8B01,
    0, 0xFABD, 0x8AFE, 0, 0xFABE, 0x8AED, 0, 0xFABF, 0x8B39, 0, 0xFAC0, 0x8B8A, 0, 0xFAC1,
    0x8D08, 0, 0xFAC2, 0x8F38, 0, 0xFAC3, 0x9072, 0, 0xFAC4, 0x9199, 0, 0xFAC5, 0x9276, 0,
    0xFAC6, 0x967C, 0, 0xFAC7, 0x96E3, 0, 0xFAC8, 0x9756, 0, 0xFAC9, 0x97DB, 0, 0xFACA, 0x97FF,
    0, 0xFACB, 0x980B, 0, 0xFACC, 0x983B, 0, 0xFACD, 0x9B12, 0, 0xFACE, 0x9F9C, 0, 0xFACF,
    0x2284A, 0, 0xFAD0, 0x22844, 0, 0xFAD1, 0x233D5, 0, 0xFAD2, 0x3B9D, 0, 0xFAD3, 0x4018, 0,
    0xFAD4, 0x4039, 0, 0xFAD5, 0x25249, 0, 0xFAD6, 0x25CD0, 0, 0xFAD7, 0x27ED3, 0, 0xFAD8,
    0x9F43, 0, 0xFAD9, 0x9F8E, 0, 0xFB1D, 0x5D9, 0x5B4, 0xFB1F, 0x5F2, 0x5B7, 0xFB2A, 0x5E9,
    0x5C1, 0xFB2B, 0x5E9, 0x5C2, 0xFB2C, 0xFB49, 0x5C1, 0xFB2D, 0xFB49, 0x5C2, 0xFB2E, 0x5D0,
    0x5B7, 0xFB2F, 0x5D0, 0x5B8, 0xFB30, 0x5D0, 0x5BC, 0xFB31, 0x5D1, 0x5BC, 0xFB32, 0x5D2,
    0x5BC, 0xFB33, 0x5D3, 0x5BC, 0xFB34, 0x5D4, 0x5BC, 0xFB35, 0x5D5, 0x5BC, 0xFB36, 0x5D6,
    0x5BC, 0xFB38, 0x5D8, 0x5BC, 0xFB39, 0x5D9, 0x5BC, 0xFB3A, 0x5DA, 0x5BC, 0xFB3B, 0x5DB,
    0x5BC, 0xFB3C, 0x5DC, 0x5BC, 0xFB3E, 0x5DE, 0x5BC, 0xFB40, 0x5E0, 0x5BC, 0xFB41, 0x5E1,
    0x5BC, 0xFB43, 0x5E3, 0x5BC, 0xFB44, 0x5E4, 0x5BC, 0xFB46, 0x5E6, 0x5BC, 0xFB47, 0x5E7,
    0x5BC, 0xFB48, 0x5E8, 0x5BC, 0xFB49, 0x5E9, 0x5BC, 0xFB4A, 0x5EA, 0x5BC, 0xFB4B, 0x5D5,
    0x5B9, 0xFB4C, 0x5D1, 0x5BF, 0xFB4D, 0x5DB, 0x5BF, 0xFB4E, 0x5E4, 0x5BF, 0x1D15E, 0x1D157,
    0x1D165, 0x1D15F, 0x1D158, 0x1D165, 0x1D160, 0x1D15F, 0x1D16E, 0x1D161, 0x1D15F, 0x1D16F,
    0x1D162, 0x1D15F, 0x1D170, 0x1D163, 0x1D15F, 0x1D171, 0x1D164, 0x1D15F, 0x1D172, 0x1D1BB,
    0x1D1B9, 0x1D165, 0x1D1BC, 0x1D1BA, 0x1D165, 0x1D1BD, 0x1D1BB, 0x1D16E, 0x1D1BE, 0x1D1BC,
    0x1D16E, 0x1D1BF, 0x1D1BB, 0x1D16F, 0x1D1C0, 0x1D1BC, 0x1D16F, 0x2F800, 0x4E3D, 0, 0x2F801,
    0x4E38, 0, 0x2F802, 0x4E41, 0, 0x2F803, 0x20122, 0, 0x2F804, 0x4F60, 0, 0x2F805, 0x4FAE, 0,
    0x2F806, 0x4FBB, 0, 0x2F807, 0x5002, 0, 0x2F808, 0x507A, 0, 0x2F809, 0x5099, 0, 0x2F80A,
    0x50E7, 0, 0x2F80B, 0x50CF, 0, 0x2F80C, 0x349E, 0, 0x2F80D, 0x2063A, 0, 0x2F80E, 0x514D, 0,
    0x2F80F, 0x5154, 0, 0x2F810, 0x5164, 0, 0x2F811, 0x5177, 0, 0x2F812, 0x2051C, 0, 0x2F813,
    0x34B9, 0, 0x2F814, 0x5167, 0, 0x2F815, 0x518D, 0, 0x2F816, 0x2054B, 0, 0x2F817, 0x5197, 0,
    0x2F818, 0x51A4, 0, 0x2F819, 0x4ECC, 0, 0x2F81A, 0x51AC, 0, 0x2F81B, 0x51B5, 0, 0x2F81C,
    0x291DF, 0, 0x2F81D, 0x51F5, 0, 0x2F81E, 0x5203, 0, 0x2F81F, 0x34DF, 0, 0x2F820, 0x523B, 0,
    0x2F821, 0x5246, 0, 0x2F822, 0x5272, 0, 0x2F823, 0x5277, 0, 0x2F824, 0x3515, 0, 0x2F825,
    0x52C7, 0, 0x2F826, 0x52C9, 0, 0x2F827, 0x52E4, 0, 0x2F828, 0x52FA, 0, 0x2F829, 0x5305, 0,
    0x2F82A, 0x5306, 0, 0x2F82B, 0x5317, 0, 0x2F82C, 0x5349, 0, 0x2F82D, 0x5351, 0, 0x2F82E,
    0x535A, 0, 0x2F82F, 0x5373, 0, 0x2F830, 0x537D, 0, 0x2F831, 0x537F, 0, 0x2F832, 0x537F, 0,
    0x2F833, 0x537F, 0, 0x2F834, 0x20A2C, 0, 0x2F835, 0x7070, 0, 0x2F836, 0x53CA, 0, 0x2F837,
    0x53DF, 0, 0x2F838, 0x20B63, 0, 0x2F839, 0x53EB, 0, 0x2F83A, 0x53F1, 0, 0x2F83B, 0x5406, 0,
    0x2F83C, 0x549E, 0, 0x2F83D, 0x5438, 0, 0x2F83E, 0x5448, 0, 0x2F83F, 0x5468, 0, 0x2F840,
    0x54A2, 0, 0x2F841, 0x54F6, 0, 0x2F842, 0x5510, 0, 0x2F843, 0x5553, 0, 0x2F844, 0x5563, 0,
    0x2F845, 0x5584, 0, 0x2F846, 0x5584, 0, 0x2F847, 0x5599, 0, 0x2F848, 0x55AB, 0, 0x2F849,
    0x55B3, 0, 0x2F84A, 0x55C2, 0, 0x2F84B, 0x5716, 0, 0x2F84C, 0x5606, 0, 0x2F84D, 0x5717, 0,
    0x2F84E, 0x5651, 0, 0x2F84F, 0x5674, 0, 0x2F850, 0x5207, 0, 0x2F851, 0x58EE, 0, 0x2F852,
    0x57CE, 0, 0x2F853, 0x57F4, 0, 0x2F854, 0x580D, 0, 0x2F855, 0x578B, 0, 0x2F856, 0x5832, 0,
    0x2F857, 0x5831, 0, 0x2F858, 0x58AC, 0, 0x2F859, 0x214E4, 0, 0x2F85A, 0x58F2, 0, 0x2F85B,
    0x58F7, 0, 0x2F85C, 0x5906, 0, 0x2F85D, 0x591A, 0, 0x2F85E, 0x5922, 0, 0x2F85F, 0x5962, 0,
    0x2F860, 0x216A8, 0, 0x2F861, 0x216EA, 0, 0x2F862, 0x59EC, 0, 0x2F863, 0x5A1B, 0, 0x2F864,
    0x5A27, 0, 0x2F865, 0x59D8, 0, 0x2F866, 0x5A66, 0, 0x2F867, 0x36EE, 0, 0x2F868, 0x36FC, 0,
    0x2F869, 0x5B08, 0, 0x2F86A, 0x5B3E, 0, 0x2F86B, 0x5B3E, 0, 0x2F86C, 0x219C8, 0, 0x2F86D,
    0x5BC3, 0, 0x2F86E, 0x5BD8, 0, 0x2F86F, 0x5BE7, 0, 0x2F870, 0x5BF3, 0, 0x2F871, 0x21B18, 0,
    0x2F872, 0x5BFF, 0, 0x2F873, 0x5C06, 0, 0x2F874, 0x5F53, 0, 0x2F875, 0x5C22, 0, 0x2F876,
    0x3781, 0, 0x2F877, 0x5C60, 0, 0x2F878, 0x5C6E, 0, 0x2F879, 0x5CC0, 0, 0x2F87A, 0x5C8D, 0,
    0x2F87B, 0x21DE4, 0, 0x2F87C, 0x5D43, 0, 0x2F87D, 0x21DE6, 0, 0x2F87E, 0x5D6E, 0, 0x2F87F,
    0x5D6B, 0, 0x2F880, 0x5D7C, 0, 0x2F881, 0x5DE1, 0, 0x2F882, 0x5DE2, 0, 0x2F883, 0x382F, 0,
    0x2F884, 0x5DFD, 0, 0x2F885, 0x5E28, 0, 0x2F886, 0x5E3D, 0, 0x2F887, 0x5E69, 0, 0x2F888,
    0x3862, 0, 0x2F889, 0x22183, 0, 0x2F88A, 0x387C, 0, 0x2F88B, 0x5EB0, 0, 0x2F88C, 0x5EB3, 0,
    0x2F88D, 0x5EB6, 0, 0x2F88E, 0x5ECA, 0, 0x2F88F, 0x2A392, 0, 0x2F890, 0x5EFE, 0, 0x2F891,
    0x22331, 0, 0x2F892, 0x22331, 0, 0x2F893, 0x8201, 0, 0x2F894, 0x5F22, 0, 0x2F895, 0x5F22, 0,
    0x2F896, 0x38C7, 0, 0x2F897, 0x232B8, 0, 0x2F898, 0x261DA, 0, 0x2F899, 0x5F62, 0, 0x2F89A,
    0x5F6B, 0, 0x2F89B, 0x38E3, 0, 0x2F89C, 0x5F9A, 0, 0x2F89D, 0x5FCD, 0, 0x2F89E, 0x5FD7, 0,
    0x2F89F, 0x5FF9, 0, 0x2F8A0, 0x6081, 0, 0x2F8A1, 0x393A, 0, 0x2F8A2, 0x391C, 0, 0x2F8A3,
    0x6094, 0, 0x2F8A4, 0x226D4, 0, 0x2F8A5, 0x60C7, 0, 0x2F8A6, 0x6148, 0, 0x2F8A7, 0x614C, 0,
    0x2F8A8, 0x614E, 0, 0x2F8A9, 0x614C, 0, 0x2F8AA, 0x617A, 0, 0x2F8AB, 0x618E, 0, 0x2F8AC,
    0x61B2, 0, 0x2F8AD, 0x61A4, 0, 0x2F8AE, 0x61AF, 0, 0x2F8AF, 0x61DE, 0, 0x2F8B0, 0x61F2, 0,
    0x2F8B1, 0x61F6, 0, 0x2F8B2, 0x6210, 0, 0x2F8B3, 0x621B, 0, 0x2F8B4, 0x625D, 0, 0x2F8B5,
    0x62B1, 0, 0x2F8B6, 0x62D4, 0, 0x2F8B7, 0x6350, 0, 0x2F8B8, 0x22B0C, 0, 0x2F8B9, 0x633D, 0,
    0x2F8BA, 0x62FC, 0, 0x2F8BB, 0x6368, 0, 0x2F8BC, 0x6383, 0, 0x2F8BD, 0x63E4, 0, 0x2F8BE,
    0x22BF1, 0, 0x2F8BF, 0x6422, 0, 0x2F8C0, 0x63C5, 0, 0x2F8C1, 0x63A9, 0, 0x2F8C2, 0x3A2E, 0,
    0x2F8C3, 0x6469, 0, 0x2F8C4, 0x647E, 0, 0x2F8C5, 0x649D, 0, 0x2F8C6, 0x6477, 0, 0x2F8C7,
    0x3A6C, 0, 0x2F8C8, 0x654F, 0, 0x2F8C9, 0x656C, 0, 0x2F8CA, 0x2300A, 0, 0x2F8CB, 0x65E3, 0,
    0x2F8CC, 0x66F8, 0, 0x2F8CD, 0x6649, 0, 0x2F8CE, 0x3B19, 0, 0x2F8CF, 0x6691, 0, 0x2F8D0,
    0x3B08, 0, 0x2F8D1, 0x3AE4, 0, 0x2F8D2, 0x5192, 0, 0x2F8D3, 0x5195, 0, 0x2F8D4, 0x6700, 0,
    0x2F8D5, 0x669C, 0, 0x2F8D6, 0x80AD, 0, 0x2F8D7, 0x43D9, 0, 0x2F8D8, 0x6717, 0, 0x2F8D9,
    0x671B, 0, 0x2F8DA, 0x6721, 0, 0x2F8DB, 0x675E, 0, 0x2F8DC, 0x6753, 0, 0x2F8DD, 0x233C3, 0,
    0x2F8DE, 0x3B49, 0, 0x2F8DF, 0x67FA, 0, 0x2F8E0, 0x6785, 0, 0x2F8E1, 0x6852, 0, 0x2F8E2,
    0x6885, 0, 0x2F8E3, 0x2346D, 0, 0x2F8E4, 0x688E, 0, 0x2F8E5, 0x681F, 0, 0x2F8E6, 0x6914, 0,
    0x2F8E7, 0x3B9D, 0, 0x2F8E8, 0x6942, 0, 0x2F8E9, 0x69A3, 0, 0x2F8EA, 0x69EA, 0, 0x2F8EB,
    0x6AA8, 0, 0x2F8EC, 0x236A3, 0, 0x2F8ED, 0x6ADB, 0, 0x2F8EE, 0x3C18, 0, 0x2F8EF, 0x6B21, 0,
    0x2F8F0, 0x238A7, 0, 0x2F8F1, 0x6B54, 0, 0x2F8F2, 0x3C4E, 0, 0x2F8F3, 0x6B72, 0, 0x2F8F4,
    0x6B9F, 0, 0x2F8F5, 0x6BBA, 0, 0x2F8F6, 0x6BBB, 0, 0x2F8F7, 0x23A8D, 0, 0x2F8F8, 0x21D0B, 0,
    0x2F8F9, 0x23AFA, 0, 0x2F8FA, 0x6C4E, 0, 0x2F8FB, 0x23CBC, 0, 0x2F8FC, 0x6CBF, 0, 0x2F8FD,
    0x6CCD, 0, 0x2F8FE, 0x6C67, 0, 0x2F8FF, 0x6D16, 0, 0x2F900, 0x6D3E, 0, 0x2F901, 0x6D77, 0,
    0x2F902, 0x6D41, 0, 0x2F903, 0x6D69, 0, 0x2F904, 0x6D78, 0, 0x2F905, 0x6D85, 0, 0x2F906,
    0x23D1E, 0, 0x2F907, 0x6D34, 0, 0x2F908, 0x6E2F, 0, 0x2F909, 0x6E6E, 0, 0x2F90A, 0x3D33, 0,
    0x2F90B, 0x6ECB, 0, 0x2F90C, 0x6EC7, 0, 0x2F90D, 0x23ED1, 0, 0x2F90E, 0x6DF9, 0, 0x2F90F,
    0x6F6E, 0, 0x2F910, 0x23F5E, 0, 0x2F911, 0x23F8E, 0, 0x2F912, 0x6FC6, 0, 0x2F913, 0x7039, 0,
    0x2F914, 0x701E, 0, 0x2F915, 0x701B, 0, 0x2F916, 0x3D96, 0, 0x2F917, 0x704A, 0, 0x2F918,
    0x707D, 0, 0x2F919, 0x7077, 0, 0x2F91A, 0x70AD, 0, 0x2F91B, 0x20525, 0, 0x2F91C, 0x7145, 0,
    0x2F91D, 0x24263, 0, 0x2F91E, 0x719C, 0, 0x2F91F, 0x243AB, 0, 0x2F920, 0x7228, 0, 0x2F921,
    0x7235, 0, 0x2F922, 0x7250, 0, 0x2F923, 0x24608, 0, 0x2F924, 0x7280, 0, 0x2F925, 0x7295, 0,
    0x2F926, 0x24735, 0, 0x2F927, 0x24814, 0, 0x2F928, 0x737A, 0, 0x2F929, 0x738B, 0, 0x2F92A,
    0x3EAC, 0, 0x2F92B, 0x73A5, 0, 0x2F92C, 0x3EB8, 0, 0x2F92D, 0x3EB8, 0, 0x2F92E, 0x7447, 0,
    0x2F92F, 0x745C, 0, 0x2F930, 0x7471, 0, 0x2F931, 0x7485, 0, 0x2F932, 0x74CA, 0, 0x2F933,
    0x3F1B, 0, 0x2F934, 0x7524, 0, 0x2F935, 0x24C36, 0, 0x2F936, 0x753E, 0, 0x2F937, 0x24C92, 0,
    0x2F938, 0x7570, 0, 0x2F939, 0x2219F, 0, 0x2F93A, 0x7610, 0, 0x2F93B, 0x24FA1, 0, 0x2F93C,
    0x24FB8, 0, 0x2F93D, 0x25044, 0, 0x2F93E, 0x3FFC, 0, 0x2F93F, 0x4008, 0, 0x2F940, 0x76F4, 0,
    0x2F941, 0x250F3, 0, 0x2F942, 0x250F2, 0, 0x2F943, 0x25119, 0, 0x2F944, 0x25133, 0, 0x2F945,
    0x771E, 0, 0x2F946, 0x771F, 0, 0x2F947, 0x771F, 0, 0x2F948, 0x774A, 0, 0x2F949, 0x4039, 0,
    0x2F94A, 0x778B, 0, 0x2F94B, 0x4046, 0, 0x2F94C, 0x4096, 0, 0x2F94D, 0x2541D, 0, 0x2F94E,
    0x784E, 0, 0x2F94F, 0x788C, 0, 0x2F950, 0x78CC, 0, 0x2F951, 0x40E3, 0, 0x2F952, 0x25626, 0,
    0x2F953, 0x7956, 0, 0x2F954, 0x2569A, 0, 0x2F955, 0x256C5, 0, 0x2F956, 0x798F, 0, 0x2F957,
    0x79EB, 0, 0x2F958, 0x412F, 0, 0x2F959, 0x7A40, 0, 0x2F95A, 0x7A4A, 0, 0x2F95B, 0x7A4F, 0,
    0x2F95C, 0x2597C, 0, 0x2F95D, 0x25AA7, 0, 0x2F95E, 0x25AA7, 0, 0x2F95F, 0x7AEE, 0, 0x2F960,
    0x4202, 0, 0x2F961, 0x25BAB, 0, 0x2F962, 0x7BC6, 0, 0x2F963, 0x7BC9, 0, 0x2F964, 0x4227, 0,
    0x2F965, 0x25C80, 0, 0x2F966, 0x7CD2, 0, 0x2F967, 0x42A0, 0, 0x2F968, 0x7CE8, 0, 0x2F969,
    0x7CE3, 0, 0x2F96A, 0x7D00, 0, 0x2F96B, 0x25F86, 0, 0x2F96C, 0x7D63, 0, 0x2F96D, 0x4301, 0,
    0x2F96E, 0x7DC7, 0, 0x2F96F, 0x7E02, 0, 0x2F970, 0x7E45, 0, 0x2F971, 0x4334, 0, 0x2F972,
    0x26228, 0, 0x2F973, 0x26247, 0, 0x2F974, 0x4359, 0, 0x2F975, 0x262D9, 0, 0x2F976, 0x7F7A,
    0, 0x2F977, 0x2633E, 0, 0x2F978, 0x7F95, 0, 0x2F979, 0x7FFA, 0, 0x2F97A, 0x8005, 0, 0x2F97B,
    0x264DA, 0, 0x2F97C, 0x26523, 0, 0x2F97D, 0x8060, 0, 0x2F97E, 0x265A8, 0, 0x2F97F, 0x8070,
    0, 0x2F980, 0x2335F, 0, 0x2F981, 0x43D5, 0, 0x2F982, 0x80B2, 0, 0x2F983, 0x8103, 0, 0x2F984,
    0x440B, 0, 0x2F985, 0x813E, 0, 0x2F986, 0x5AB5, 0, 0x2F987, 0x267A7, 0, 0x2F988, 0x267B5, 0,
    0x2F989, 0x23393, 0, 0x2F98A, 0x2339C, 0, 0x2F98B, 0x8201, 0, 0x2F98C, 0x8204, 0, 0x2F98D,
    0x8F9E, 0, 0x2F98E, 0x446B, 0, 0x2F98F, 0x8291, 0, 0x2F990, 0x828B, 0, 0x2F991, 0x829D, 0,
    0x2F992, 0x52B3, 0, 0x2F993, 0x82B1, 0, 0x2F994, 0x82B3, 0, 0x2F995, 0x82BD, 0, 0x2F996,
    0x82E6, 0, 0x2F997, 0x26B3C, 0, 0x2F998, 0x82E5, 0, 0x2F999, 0x831D, 0, 0x2F99A, 0x8363, 0,
    0x2F99B, 0x83AD, 0, 0x2F99C, 0x8323, 0, 0x2F99D, 0x83BD, 0, 0x2F99E, 0x83E7, 0, 0x2F99F,
    0x8457, 0, 0x2F9A0, 0x8353, 0, 0x2F9A1, 0x83CA, 0, 0x2F9A2, 0x83CC, 0, 0x2F9A3, 0x83DC, 0,
    0x2F9A4, 0x26C36, 0, 0x2F9A5, 0x26D6B, 0, 0x2F9A6, 0x26CD5, 0, 0x2F9A7, 0x452B, 0, 0x2F9A8,
    0x84F1, 0, 0x2F9A9, 0x84F3, 0, 0x2F9AA, 0x8516, 0, 0x2F9AB, 0x273CA, 0, 0x2F9AC, 0x8564, 0,
    0x2F9AD, 0x26F2C, 0, 0x2F9AE, 0x455D, 0, 0x2F9AF, 0x4561, 0, 0x2F9B0, 0x26FB1, 0, 0x2F9B1,
    0x270D2, 0, 0x2F9B2, 0x456B, 0, 0x2F9B3, 0x8650, 0, 0x2F9B4, 0x865C, 0, 0x2F9B5, 0x8667, 0,
    0x2F9B6, 0x8669, 0, 0x2F9B7, 0x86A9, 0, 0x2F9B8, 0x8688, 0, 0x2F9B9, 0x870E, 0, 0x2F9BA,
    0x86E2, 0, 0x2F9BB, 0x8779, 0, 0x2F9BC, 0x8728, 0, 0x2F9BD, 0x876B, 0, 0x2F9BE, 0x8786, 0,
    0x2F9BF, 0x45D7, 0, 0x2F9C0, 0x87E1, 0, 0x2F9C1, 0x8801, 0, 0x2F9C2, 0x45F9, 0, 0x2F9C3,
    0x8860, 0, 0x2F9C4, 0x8863, 0, 0x2F9C5, 0x27667, 0, 0x2F9C6, 0x88D7, 0, 0x2F9C7, 0x88DE, 0,
    0x2F9C8, 0x4635, 0, 0x2F9C9, 0x88FA, 0, 0x2F9CA, 0x34BB, 0, 0x2F9CB, 0x278AE, 0, 0x2F9CC,
    0x27966, 0, 0x2F9CD, 0x46BE, 0, 0x2F9CE, 0x46C7, 0, 0x2F9CF, 0x8AA0, 0, 0x2F9D0, 0x8AED, 0,
    0x2F9D1, 0x8B8A, 0, 0x2F9D2, 0x8C55, 0, 0x2F9D3, 0x27CA8, 0, 0x2F9D4, 0x8CAB, 0, 0x2F9D5,
    0x8CC1, 0, 0x2F9D6, 0x8D1B, 0, 0x2F9D7, 0x8D77, 0, 0x2F9D8, 0x27F2F, 0, 0x2F9D9, 0x20804, 0,
    0x2F9DA, 0x8DCB, 0, 0x2F9DB, 0x8DBC, 0, 0x2F9DC, 0x8DF0, 0, 0x2F9DD, 0x208DE, 0, 0x2F9DE,
    0x8ED4, 0, 0x2F9DF, 0x8F38, 0, 0x2F9E0, 0x285D2, 0, 0x2F9E1, 0x285ED, 0, 0x2F9E2, 0x9094, 0,
    0x2F9E3, 0x90F1, 0, 0x2F9E4, 0x9111, 0, 0x2F9E5, 0x2872E, 0, 0x2F9E6, 0x911B, 0, 0x2F9E7,
    0x9238, 0, 0x2F9E8, 0x92D7, 0, 0x2F9E9, 0x92D8, 0, 0x2F9EA, 0x927C, 0, 0x2F9EB, 0x93F9, 0,
    0x2F9EC, 0x9415, 0, 0x2F9ED, 0x28BFA, 0, 0x2F9EE, 0x958B, 0, 0x2F9EF, 0x4995, 0, 0x2F9F0,
    0x95B7, 0, 0x2F9F1, 0x28D77, 0, 0x2F9F2, 0x49E6, 0, 0x2F9F3, 0x96C3, 0, 0x2F9F4, 0x5DB2, 0,
    0x2F9F5, 0x9723, 0, 0x2F9F6, 0x29145, 0, 0x2F9F7, 0x2921A, 0, 0x2F9F8, 0x4A6E, 0, 0x2F9F9,
    0x4A76, 0, 0x2F9FA, 0x97E0, 0, 0x2F9FB, 0x2940A, 0, 0x2F9FC, 0x4AB2, 0, 0x2F9FD, 0x29496, 0,
    0x2F9FE, 0x980B, 0, 0x2F9FF, 0x980B, 0, 0x2FA00, 0x9829, 0, 0x2FA01, 0x295B6, 0, 0x2FA02,
    0x98E2, 0, 0x2FA03, 0x4B33, 0, 0x2FA04, 0x9929, 0, 0x2FA05, 0x99A7, 0, 0x2FA06, 0x99C2, 0,
    0x2FA07, 0x99FE, 0, 0x2FA08, 0x4BCE, 0, 0x2FA09, 0x29B30, 0, 0x2FA0A, 0x9B12, 0, 0x2FA0B,
    0x9C40, 0, 0x2FA0C, 0x9CFD, 0, 0x2FA0D, 0x4CCE, 0, 0x2FA0E, 0x4CED, 0, 0x2FA0F, 0x9D67, 0,
    0x2FA10, 0x2A0CE, 0, 0x2FA11, 0x4CF8, 0, 0x2FA12, 0x2A105, 0, 0x2FA13, 0x2A20E, 0, 0x2FA14,
    0x2A291, 0, 0x2FA15, 0x9EBB, 0, 0x2FA16, 0x4D56, 0, 0x2FA17, 0x9EF9, 0, 0x2FA18, 0x9EFE, 0,
    0x2FA19, 0x9F05, 0, 0x2FA1A, 0x9F0F, 0, 0x2FA1B, 0x9F16, 0, 0x2FA1C, 0x9F3B, 0, 0x2FA1D,
    0x2A600, 0,
};
