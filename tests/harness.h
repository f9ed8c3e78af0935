/* What every white-box test shares. Include after ../neoxtune.c. A test is a function without
 * arguments that calls CHECK; SKIP ends it as skipped, with a reason that is printed. */
#ifndef NXT_TEST_HARNESS_H
#define NXT_TEST_HARNESS_H

typedef struct test_row {
    const char *name;
    void (*run)(void);
} test_row;

static int failed_checks;
static const char *skip_reason;
static bool quick_run, long_run;

static void check_(bool ok, const char *text, const char *file, int line) {
    if (ok) return;
    if (failed_checks++ < 20) printf("  %s:%d: %s\n", file, line, text);
}

#define CHECK(condition) check_((condition), #condition, __FILE__, __LINE__)
#define SKIP(reason)                                                                       \
    do {                                                                                   \
        skip_reason = (reason);                                                            \
        return;                                                                            \
    } while (0)

/* A status that must be OK; prints the sentence when it is not. */
static UNUSED bool ok_(const nxt_context *cx, nxt_status status, const char *file, int line) {
    if (status == NXT_OK) return true;
    check_(false, nxt_error_message(cx), file, line);
    return false;
}
#define OK(cx, call) ok_((cx), (call), __FILE__, __LINE__)

static nxt_context *context_with(const char *cpu, int threads) {
    nxt_context_config c = nxt_context_config_default();
    nxt_context *cx;
    c.cpu = cpu, c.threads = threads;
    if (nxt_context_create(&cx, &c) != NXT_OK) printf("  no context: %s\n", cpu ? cpu : "");
    return cx;
}

static UNUSED nxt_context *test_context(void) { return context_with(NULL, 0); }

/* A directory of test data that is not in the repository, or NULL. */
static UNUSED const char *test_data(void) { return getenv("NEOXTUNE_TEST_DATA"); }

/* A fresh directory below build/; the same name twice gives it empty again. */
static UNUSED const char *scratch(const char *name) {
    static char path[256];
    mkdir("build", 0777);
    snprintf(path, sizeof path, "build/scratch-%d-%s", (int)getpid(), name);
    remove_tree(AT_FDCWD, path);
    mkdir(path, 0777);
    return path;
}

/* A small random number in [-1, 1) that depends on its place alone. */
static UNUSED float noise(u64 key, i64 i) {
    return (float)(2 * uniform(mix64(mix64(key) + (u64)i)) - 1);
}

static bool wanted(const char *name, int argc, char **argv) {
    bool named = false;
    for (int i = 1; i < argc; i++)
        if (argv[i][0] != '-') {
            named = true;
            if (strstr(name, argv[i])) return true;
        }
    return !named;
}

static int run_tests(const test_row *rows, i64 count, int argc, char **argv) {
    int passed = 0, failed = 0, skipped = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        quick_run |= !strcmp(argv[i], "--quick");
        long_run |= !strcmp(argv[i], "--long");
        if (!strcmp(argv[i], "--list")) {
            for (i64 k = 0; k < count; k++) puts(rows[k].name);
            return 0;
        }
    }
    for (i64 k = 0; k < count; k++) {
        if (!wanted(rows[k].name, argc, argv)) continue;
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        failed_checks = 0, skip_reason = NULL;
        rows[k].run();
        clock_gettime(CLOCK_MONOTONIC, &b);
        const double s = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
        if (failed_checks) failed++;
        else if (skip_reason) skipped++;
        else passed++;
        printf("%-44s %s%s %5.2f s\n", rows[k].name,
               failed_checks ? "FAILED" : skip_reason ? "skipped: " : "ok",
               !failed_checks && skip_reason ? skip_reason : "", s);
    }
    char clean[128];
    snprintf(clean, sizeof clean, "rm -rf build/scratch-%d-*", (int)getpid());
    if (system(clean) != 0) printf("scratch directories remain\n");
    if (skipped) printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    else printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
#endif
