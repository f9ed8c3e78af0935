/* ============================================================================
 * Tests of §10 to §12: JSON, files, safetensors, pytorch_model.bin
 *
 * Uses CHECK and SKIP of the file that includes it. Hostile inputs are given to
 * the readers as bytes in memory, in blocks of their exact size, so that the sanitizer
 * builds see every read beyond them.
 */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#ifndef GOLDEN
#define GOLDEN "tests/golden"
#endif

/* One context for all of these tests: none of them needs threads. */
static nxt_context *files_context(void) {
    static nxt_context cx = {
        .config = {.allocate = default_allocate, .release = default_release}};
    return &cx;
}

static nxt_status parse_text(arena *a, const char *text, i64 n, json **out) {
    char *exact = malloc((size_t)max64(1, n));
    if (n) memcpy(exact, text, (size_t)n);
    nxt_status status = json_parse(a, "t.json", exact, n, out);
    free(exact); /* the tree must not need it */
    return status;
}

static nxt_status parse_string(arena *a, const char *text, json **out) {
    return parse_text(a, text, (i64)strlen(text), out);
}

static bool fails_with(nxt_context *cx, nxt_status status, nxt_status expected,
                       const char *phrase) {
    bool good = status == expected && strstr(cx->message, phrase);
    if (!good) printf("  got %s \"%s\", not %s \"%s\"\n", nxt_status_name(status),
                      status == NXT_OK ? "" : cx->message, nxt_status_name(expected), phrase);
    return good;
}

static void test_json_values(void) {
    static const char text[] =
        " { \"a\" : [1, -2.5, 1e3, true, false, null, \"x\"],\n\"e\":{},\"f\":[ ],"
        "\"\\u0041\\\"\\\\\\/\\b\\f\\n\\r\\t\": \"\\u00e9\\u20ac\\ud83d\\ude00\xc3\xa9\","
        "\"z\":\"a\\u0000b\", \"d\": 1, \"d\": 2 }\r\n\t";
    arena a = {.cx = files_context()};
    json *v = NULL;
    CHECK(parse_string(&a, text, &v) == NXT_OK);
    if (!v) return;
    CHECK(v->kind == JSON_OBJECT && v->count == 7 && !v->key);
    const json *list = json_get(v, "a");
    CHECK(list && list->kind == JSON_ARRAY && list->count == 7);
    CHECK(list->first->number == 1 && list->first->next->number == -2.5);
    CHECK(list->first->next->next->number == 1000);
    CHECK(!strcmp(list->first->next->text, "-2.5") && list->first->next->length == 4);
    CHECK(json_get(v, "e")->count == 0 && json_get(v, "f")->kind == JSON_ARRAY);
    CHECK(!strcmp(json_text(v, "A\"\\/\b\f\n\r\t", ""),
                  "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xc3\xa9"));
    CHECK(json_get(v, "z")->length == 3 && !memcmp(json_get(v, "z")->text, "a\0b", 4));
    CHECK(json_number(v, "d", 0) == 2 && json_number(v, "a", 7) == 7 &&
          json_number(v, "q", 8) == 8);
    CHECK(json_get(list, "a") == NULL && json_get(NULL, "a") == NULL);
    CHECK(json_bool(v, "d", true) && json_text(v, "d", NULL) == NULL);
    arena_free(&a);
    CHECK(parse_string(&a, "{\"a\":true,\"b\":false}", &v) == NXT_OK);
    CHECK(json_bool(v, "a", false) && !json_bool(v, "b", true));
    arena_free(&a);
}

static void test_json_refused(void) {
    static const struct {
        const char *text, *phrase;
    } cases[] = {
        {"", "t.json:1:1: the text ends too early"},
        {" \n ", "t.json:2:2: the text ends too early"},
        {"1 2", "1:3: something follows"},
        {"{} x", "something follows"},
        {"[1,]", "1:4: a value is missing"},
        {"[,1]", "a value is missing"},
        {"[1 2]", "',' or ']' is missing"},
        {"{\"a\":1 \"b\":2}", "',' or '}' is missing"},
        {"{\"a\":1,}", "a key is missing"},
        {"{a:1}", "a key is missing"},
        {"{1:1}", "a key is missing"},
        {"{\"a\" 1}", "':' is missing"},
        {"{\"a\":}", "a value is missing"},
        {"[1}", "',' or ']' is missing"},
        {"{\"a\":1]", "',' or '}' is missing"},
        {"]", "a value is missing"},
        {"nul", "ends too early"},
        {"nulL", "a value is missing"},
        {"True", "a value is missing"},
        {"NaN", "a value is missing"},
        {"Infinity", "a value is missing"},
        {"01", "starts with 0"},
        {"-01", "starts with 0"},
        {"+1", "a value is missing"},
        {"-", "ends too early"},
        {"1.", "ends too early"},
        {"[1.]", "a digit is missing"},
        {"[.5]", "a value is missing"},
        {"[1e]", "a digit is missing"},
        {"[-x]", "a digit"},
        {"[1e+]", "a digit is missing"},
        {"0x10", "something follows"},
        {"1e400", "1:1: a number is out of range"},
        {"-1e99999999999999999999", "out of range"},
        {"\"abc", "ends too early"},
        {"'a'", "a value is missing"},
        {"\"a\nb\"", "1:3: a raw control character"},
        {"\"\\x\"", "unknown escape"},
        {"\"\\u12g4\"", "four hexadecimal"},
        {"\"\\u123\"", "four hexadecimal"},
        {"\"\\ud800\"", "surrogate"},
        {"\"\\ud800\\u0041\"", "surrogate"},
        {"\"\\udc00\"", "surrogate"},
        {"\"\\ud800x\"", "surrogate"},
        {"\"\\udc00\\udc00\"", "surrogate"},
        {"\"\xed\xbf\xbf\"", "invalid UTF-8"},
        {"\"\xff\"", "invalid UTF-8"},
        {"\"\xc0\xaf\"", "invalid UTF-8"},
        {"\"\xed\xa0\x80\"", "invalid UTF-8"},
        {"\"\xf4\x90\x80\x80\"", "invalid UTF-8"},
        {"\"\xe2\x82\"", "invalid UTF-8"},
        {"\"\x80\"", "invalid UTF-8"},
        {"\xef\xbb\xbf{}", "a value is missing"},
        {"/**/1", "a value is missing"},
        {"[\"\xc3\xa9\xc3\xa9\", x]", "1:8: a value"},
        {"[1,\n 2,\n  x]", "t.json:3:3:"},
    };
    arena a = {.cx = files_context()};
    json *v;
    for (int i = 0; i < COUNT(cases); i++) {
        CHECK(
            fails_with(a.cx, parse_string(&a, cases[i].text, &v), NXT_FORMAT, cases[i].phrase));
        arena_free(&a);
    }
    CHECK(fails_with(a.cx, json_parse_at(&a, "d.jsonl", 41, "\n[x]", 4, &v), NXT_FORMAT,
                     "d.jsonl:42:2: a value"));
    CHECK(parse_text(&a, "\"a\0b\"", 5, &v) == NXT_FORMAT);
    CHECK(parse_text(&a, "1\0", 2, &v) == NXT_FORMAT);
    arena_free(&a);
}

static void test_json_depth(void) {
    char text[2 * JSON_DEPTH + 3];
    arena a = {.cx = files_context()};
    json *v;
    for (int depth = JSON_DEPTH; depth <= JSON_DEPTH + 1; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        nxt_status status = parse_text(&a, text, 2 * depth, &v);
        CHECK(depth == JSON_DEPTH ? status == NXT_OK
                                  : fails_with(a.cx, status, NXT_FORMAT, "nested too deeply"));
    }
    i64 n = 1 << 20; /* neither time nor stack may depend on it */
    char *deep = malloc((size_t)n);
    memset(deep, '[', (size_t)n);
    CHECK(parse_text(&a, deep, n, &v) == NXT_FORMAT);
    free(deep);
    arena_free(&a);
}

static void test_json_prefixes(void) {
    static const char text[] =
        "{\"model\":{\"vocab\":{\"\\u0120a\":0,\"\\ud83d\\ude00\":-1.5e-3},"
        "\"merges\":[\"a b\",[\"c\",\"\xe4\xb8\xad\"]]},\"t\":true,"
        "\"n\":null,\"f\":false,\"x\":[],\"y\":{}}";
    arena a = {.cx = files_context()};
    json *v;
    i64 n = sizeof text - 1;
    CHECK(parse_text(&a, text, n, &v) == NXT_OK);
    for (i64 i = 0; i < n; i++) {
        CHECK(parse_text(&a, text, i, &v) == NXT_FORMAT && v == NULL);
        arena_free(&a);
    }
}

static void test_json_numbers(void) {
    static const char *const texts[] = {
        "0", "-0", "0.0", "-0.0e5", "1e22", "1e23", "123456789012345678", "9007199254740993",
        "0.1", "1e-05", "5e-324", "2.2250738585072011e-308", "1.7976931348623157e308",
        "0.000000000000000000000000000000000001e36", "100000000000000000000000e-23",
        "123456789012345678901234567890123456789012345678901234567890e-50",
        "8.988465674311580e307", "3.14159265358979323846264338327950288", "1e-400", "1E+2",
        "0.3e1", "10.50", "4503599627370496.5", "0e999999999999999999999"};
    arena a = {.cx = files_context()};
    json *v;
    char text[64];
    for (int i = 0; i < COUNT(texts); i++) {
        double expected = strtod(texts[i], NULL);
        CHECK(parse_string(&a, texts[i], &v) == NXT_OK);
        CHECK(!memcmp(&v->number, &expected, 8));
    }
    for (u64 i = 0; i < 20000; i++) { /* random doubles in all digits, and shortest form */
        u64 bits = mix64(i);
        double x, back = 0;
        memcpy(&x, &bits, 8);
        if (!isfinite(x)) continue;
        snprintf(text, sizeof text, "%.*e", (int)(i % 20), x);
        double expected = strtod(text, NULL);
        if (!isfinite(expected)) continue; /* rounded up */
        CHECK(parse_string(&a, text, &v) == NXT_OK && v->number == expected);
        buffer b = {.cx = a.cx};
        json_write_number(&b, x);
        if (parse_text(&a, b.p, b.n, &v) == NXT_OK) back = v->number;
        CHECK(back == x);
        buffer_free(&b);
        if (i % 100 == 0) arena_free(&a);
    }
    i64 n = 0;
    static const struct {
        const char *text;
        bool good;
        i64 value;
    } integers[] = {{"7", true, 7}, {"-7", true, -7}, {"9223372036854775807", true, INT64_MAX},
                    {"9223372036854775808", false, 0}, {"7.0", false, 0}, {"1e3", false, 0},
                    {"\"7\"", false, 0}};
    for (int i = 0; i < COUNT(integers); i++) {
        CHECK(parse_string(&a, integers[i].text, &v) == NXT_OK);
        CHECK(json_integer(v, &n) == integers[i].good);
        CHECK(!integers[i].good || n == integers[i].value);
    }
    arena_free(&a);
}

static void test_json_write(void) {
    static const char compact[] =
        "{\"a\": [1, 2.50, []], \"b\": {\"c\": null, \"d\": {}}, \"e\": "
        "\"\\\"\\\\\\n\\t\\r\\b\\f\\u0001\x7f\xc3\xa9/\", \"f\": true}";
    static const char indented[] =
        "{\n  \"a\": [\n    1,\n    2.50,\n    []\n  ],\n  \"b\": {\n    \"c\": null,\n"
        "    \"d\": {}\n  },\n  \"e\": \"\\\"\\\\\\n\\t\\r\\b\\f\\u0001\x7f\xc3\xa9/\",\n"
        "  \"f\": true\n}";
    arena a = {.cx = files_context()};
    json *v;
    for (int indent = -1; indent <= 0; indent++) {
        buffer b = {.cx = a.cx};
        CHECK(parse_string(&a, indent ? indented : compact, &v) == NXT_OK);
        json_write(&b, v, indent);
        CHECK(b.status == NXT_OK && !strcmp(b.p, indent ? compact : indented));
        buffer_free(&b);
    }
    buffer b = {.cx = a.cx};
    json_write_text(&b, "a\xff\xe2\x82z\0", 6);
    CHECK(!strcmp(b.p, "\"a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\\u0000\""));
    buffer_free(&b);
    json_write_number(&b, 5e-05);
    buffer_text(&b, " ");
    json_write_number(&b, 0.1);
    buffer_text(&b, " ");
    json_write_number(&b, INFINITY);
    CHECK(!strcmp(b.p, "5e-05 0.1 null"));
    buffer_free(&b);
    arena_free(&a);
}

/* -- temporary directories ---------------------------------------------------------- */
static void make_temporary(char path[64]) {
    const char *base = getenv("TMPDIR");
    snprintf(path, 64, "%.30s/neoxtune-test-XXXXXX", base && *base ? base : "/tmp");
    CHECK(mkdtemp(path) != NULL);
}

static int entries_in(const char *path) {
    int n = 0;
    DIR *d = opendir(path);
    if (!d) return -1;
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

static char *under(arena *a, const char *directory, const char *name) {
    return path_join(a, directory, name);
}

static bool file_holds(const char *path, const char *text) {
    buffer b = {.cx = files_context()};
    bool good = file_read(b.cx, path, 1 << 20, &b) == NXT_OK && b.n == (i64)strlen(text)
                && (b.n == 0 || !memcmp(b.p, text, (size_t)b.n));
    buffer_free(&b);
    return good;
}

static void put_file(const char *path, const void *bytes, i64 n) {
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    if (!f) return;
    CHECK(fwrite(bytes, 1, (size_t)n, f) == (size_t)n);
    fclose(f);
}

static void test_files_map(void) {
    char dir[64];
    arena a = {.cx = files_context()};
    file_map m;
    make_temporary(dir);
    const char *empty = under(&a, dir, "empty"), *full = under(&a, dir, "full");
    put_file(empty, "", 0);
    put_file(full, "hello", 5);
    CHECK(file_map_open(a.cx, empty, &m) == NXT_OK && m.p == NULL && m.n == 0);
    file_map_close(&m);
    CHECK(file_map_open(a.cx, full, &m) == NXT_OK && m.n == 5 && !memcmp(m.p, "hello", 5));
    file_map_close(&m);
    file_map_close(&m);
    CHECK(fails_with(a.cx, file_map_open(a.cx, under(&a, dir, "no"), &m), NXT_IO,
                     "No such file"));
    CHECK(fails_with(a.cx, file_map_open(a.cx, dir, &m), NXT_IO, "not a regular file"));
    CHECK(mkfifo(under(&a, dir, "pipe"), 0600) == 0); /* must not hang */
    CHECK(fails_with(a.cx, file_map_open(a.cx, under(&a, dir, "pipe"), &m), NXT_IO,
                     "not a regular"));
    buffer b = {.cx = a.cx};
    CHECK(file_read(a.cx, full, 5, &b) == NXT_OK && b.n == 5 && !strcmp(b.p, "hello"));
    CHECK(fails_with(a.cx, file_read(a.cx, full, 4, &b), NXT_FORMAT, "larger than 4 bytes"));
    buffer_free(&b);
    CHECK(!strcmp(path_join(&a, "a/", "b"), "a/b") && !strcmp(path_join(&a, "a", "b"), "a/b"));
    CHECK(!strcmp(path_parent(&a, "/a"), "/") && !strcmp(path_parent(&a, "a"), "."));
    remove_tree(AT_FDCWD, dir);
    CHECK(entries_in(dir) == -1);
    arena_free(&a);
}

static void test_save_commit(void) {
    char dir[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    save s;
    make_temporary(dir);
    const char *final = under(&a, dir, "new/deep/out"), *parent = under(&a, dir, "new/deep");
    for (int round = 0; round < 3; round++) { /* created, then replaced */
        char text[8];
        int n = snprintf(text, sizeof text, "v%d", round);
        CHECK(save_begin(cx, round == 2 ? under(&a, dir, "new/deep/out///") : final, &s) ==
              NXT_OK);
        CHECK(save_text(&s, "a.txt", text, n) == NXT_OK);
        CHECK(save_text(&s, round ? "b.txt" : "only-at-first.txt", "", 0) == NXT_OK);
        CHECK(save_copy(&s, "c.txt", s.names ? under(&a, s.temporary, "a.txt") : "") == NXT_OK);
        if (round == 0) CHECK(!path_exists(final));
        else CHECK(file_holds(under(&a, final, "a.txt"), round == 1 ? "v0" : "v1"));
        CHECK(save_commit(&s) == NXT_OK);
        save_abort(&s); /* does nothing now */
        CHECK(file_holds(under(&a, final, "a.txt"), text) &&
              file_holds(under(&a, final, "c.txt"), text));
        CHECK(entries_in(final) == 3 && entries_in(parent) == 1);
    }
    CHECK(!path_exists(under(&a, final, "only-at-first.txt")));
    put_file(under(&a, dir, "plain"), "x", 1);
    CHECK(fails_with(cx, save_begin(cx, under(&a, dir, "plain"), &s), NXT_IO,
                     "not a directory"));
    CHECK(fails_with(cx, save_begin(cx, under(&a, dir, "plain/out"), &s), NXT_IO,
                     "not a directory"));
    CHECK(save_begin(cx, "", &s) == NXT_ARGUMENT);
    CHECK(entries_in(dir) == 2);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* A link to the destination stays a link; so does what it points to. */
static void test_save_link(void) {
    char dir[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    save s;
    make_temporary(dir);
    const char *real = under(&a, dir, "real"), *link = under(&a, dir, "link");
    CHECK(mkdir(real, 0777) == 0 && symlink("real", link) == 0);
    for (int into = 0; into < 2; into++) {
        CHECK((into ? save_begin_into : save_begin)(cx, link, &s) == NXT_OK);
        CHECK(save_text(&s, into ? "b" : "a", "x", 1) == NXT_OK && save_commit(&s) == NXT_OK);
    }
    struct stat st;
    CHECK(lstat(link, &st) == 0 && S_ISLNK(st.st_mode));
    CHECK(entries_in(real) == 2 && entries_in(dir) == 2);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

static void test_save_into(void) {
    char dir[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    save s;
    make_temporary(dir);
    static const char *const stale[] = {"model.safetensors", "model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors", "config.json"};
    static const char *const kept[] = {"notes.txt", "model-1-of-2.safetensors",
                                       "model-00001-of-00002.safetensors.bak"};
    for (int i = 0; i < COUNT(stale); i++) put_file(under(&a, dir, stale[i]), "old", 3);
    for (int i = 0; i < COUNT(kept); i++) put_file(under(&a, dir, kept[i]), "mine", 4);
    CHECK(save_begin_into(cx, dir, &s) == NXT_OK);
    CHECK(save_text(&s, "model.safetensors.index.json", "{}", 2) == NXT_OK);
    CHECK(save_text(&s, "model-00001-of-00001.safetensors", "new", 3) == NXT_OK);
    CHECK(save_text(&s, "config.json", "new", 3) == NXT_OK);
    CHECK(save_holds(&s, "config.json") && !save_holds(&s, "config"));
    CHECK(file_holds(under(&a, dir, "config.json"), "old"));
    CHECK(save_commit(&s) == NXT_OK);
    CHECK(file_holds(under(&a, dir, "config.json"), "new"));
    CHECK(file_holds(under(&a, dir, "model-00001-of-00001.safetensors"), "new"));
    for (int i = 0; i < COUNT(kept); i++) CHECK(file_holds(under(&a, dir, kept[i]), "mine"));
    for (int i = 0; i < 3; i++) CHECK(!path_exists(under(&a, dir, stale[i])));
    CHECK(entries_in(dir) == 6);
    CHECK(save_begin_into(cx, dir, &s) == NXT_OK); /* no weights: none becomes stale */
    CHECK(save_text(&s, "config.json", "3", 1) == NXT_OK && save_commit(&s) == NXT_OK);
    CHECK(entries_in(dir) == 6 && file_holds(under(&a, dir, "config.json"), "3"));
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* The disk refuses in the middle of a file: nothing is left of the save, all of the old. */
static void test_save_failure(void) {
    char dir[64];
    static char big[1 << 16];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    save s;
    save_file f;
    make_temporary(dir);
    const char *final = under(&a, dir, "out");
    CHECK(save_begin(cx, final, &s) == NXT_OK && save_text(&s, "a", "old", 3) == NXT_OK);
    CHECK(save_commit(&s) == NXT_OK);
    struct rlimit old, tight;
    getrlimit(RLIMIT_FSIZE, &old);
    tight = old;
    tight.rlim_cur = 1000;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    CHECK(save_begin(cx, final, &s) == NXT_OK);
    setrlimit(RLIMIT_FSIZE, &tight);
    nxt_status status = save_text(&s, "a", big, sizeof big);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
    CHECK(fails_with(cx, status, NXT_IO, "cannot write"));
    save_abort(&s);
    CHECK(entries_in(dir) == 1 && entries_in(final) == 1 &&
          file_holds(under(&a, final, "a"), "old"));
    CHECK(save_begin(cx, final, &s) == NXT_OK);
    f = (save_file){.s = &s, .path = "/dev/full", .fd = open("/dev/full", O_WRONLY)};
    if (f.fd >= 0)
        CHECK(fails_with(cx, save_close(&f, save_bytes(&f, big, 100)), NXT_IO, "disk full"));
    CHECK(save_open(&s, "a/b", &f) == NXT_ARGUMENT && save_open(&s, "..", &f) == NXT_ARGUMENT);
    CHECK(save_text(&s, "a", "", 0) == NXT_OK && save_text(&s, "a", "", 0) == NXT_IO);
    save_abort(&s);
    CHECK(entries_in(dir) == 1);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* Killed at any moment, a program that saves leaves the old state or the new one. */
static void test_save_killed(void) {
    char dir[64];
    static char text[40000];
    arena a = {.cx = files_context()};
    make_temporary(dir);
    const char *final = under(&a, dir, "out");
    for (int round = 0; round < 15; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (unsigned n = (unsigned)round * 7;; n++) {
                save s;
                memset(text, 'a' + (int)(n % 26), sizeof text);
                if (save_begin(a.cx, final, &s) != NXT_OK) _exit(1);
                nxt_status status = save_text(&s, "one", text, sizeof text);
                if (status == NXT_OK) status = save_text(&s, "two", text, sizeof text);
                if (status != NXT_OK || save_commit(&s) != NXT_OK) _exit(1);
            }
        }
        for (int i = 0; i < 5000 && !path_exists(final); i++) usleep(1000);
        usleep((useconds_t)(mix64((u64)round) % 8000));
        kill(child, SIGKILL);
        int how = 0;
        CHECK(waitpid(child, &how, 0) == child && WIFSIGNALED(how));
        if (!NXT_HAS_EXCHANGE && !path_exists(final)) continue; /* between two renames */
        buffer b = {.cx = a.cx};
        CHECK(file_read(a.cx, under(&a, final, "one"), 1 << 20, &b) == NXT_OK);
        CHECK(file_read(a.cx, under(&a, final, "two"), 1 << 20, &b) == NXT_OK);
        CHECK(b.n == 2 * (i64)sizeof text);
        bool same = true;
        for (i64 i = 0; i < b.n; i++) same = same && b.p[i] == b.p[0];
        CHECK(same);
        buffer_free(&b);
    }
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* -- safetensors -------------------------------------------------------------------- */

/* A file in a block of its exact size. text: a header with ' for ", or entries like
 * "a F32 [2,3] 0 24; b F16 [1] 24 26". */
static u8 *make_safetensors(const char *text, i64 data, i64 *n) {
    buffer b = {.cx = files_context()};
    buffer_add(&b, "\0\0\0\0\0\0\0\0", 8);
    char name[64], type[64], shape[64], begin[64], end[64];
    int used = 0;
    for (const char *p = text; sscanf(p, " %60s %60s %60s %60s %60[^;]%n", name, type, shape,
                                      begin, end, &used) == 5; p += used + (p[used] == ';'))
        buffer_print(&b, "%s'%s':{'dtype':'%s','shape':%s,'data_offsets':[%s,%s]}",
                     p == text ? "{" : ",", name, type, shape, begin, end);
    buffer_text(&b, b.n == 8 ? text : "}");
    u64 length = (u64)b.n - 8;
    *n = b.n + data;
    u8 *p = malloc((size_t)*n);
    memset(p, 7, (size_t)*n);
    for (i64 i = 8; i < b.n; i++) p[i] = (u8)(b.p[i] == '\'' ? '"' : b.p[i]);
    for (int i = 0; i < 8; i++) p[i] = (u8)(length >> 8 * i);
    buffer_free(&b);
    return p;
}

static nxt_status parse_safetensors(weights *w, const char *text, i64 data) {
    i64 n;
    u8 *p = make_safetensors(text, data, &n);
    *w = (weights){.cx = files_context(), .arena.cx = files_context()};
    nxt_status status = safetensors_parse(w, "t.safetensors", p, n);
    free(p);
    return status;
}

static void test_safetensors_accepted(void) {
    static const struct {
        const char *text;
        i64 data, count;
    } cases[] = {
        {"{}", 0, 0},
        {"{}      ", 0, 0},
        {"\t\r\n {'__metadata__':{}}\n\t ", 0, 0},
        {"a F32 [] 0 4", 4, 1},
        {"a F32 [0] 0 0", 0, 1},
        {"a F32 [0,4611686018427387904] 0 0", 0, 1},
        {"a F32 [0,4611686018427387904,4611686018427387904] 0 0", 0, 1},
        {"a F16 [2,3] 6 18; b BF16 [3] 0 6", 18, 2},
        {"e I64 [0] 8 8; a I64 [1] 0 8", 8, 2},
        {"a F4 [2] 0 1", 1, 1},
        {"a F6_E2M3 [4] 0 3; b F6_E3M2 [4] 3 6", 6, 2},
        {"a U8 [1,1,1,1,1,1,1,1] 0 1", 1, 1},
        {"{'':{'shape':[1],'more':1,'data_offsets':[0,1],'dtype':'BOOL'}}", 1, 1},
        {"a F8_E4M3 [1] 0 1; b F8_E5M2 [1] 1 2; c F8_E8M0 [1] 2 3; d F8_E4M3FNUZ [1] 3 4;"
         "e F8_E5M2FNUZ [1] 4 5; f I8 [1] 5 6; g U16 [1] 6 8; h I16 [1] 8 10;"
         "i U32 [1] 10 14; j I32 [1] 14 18; k U64 [1] 18 26; l F64 [1] 26 34;"
         "m C64 [1] 34 42", 42, 13},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        weights w;
        CHECK(parse_safetensors(&w, cases[i].text, cases[i].data) == NXT_OK);
        CHECK(w.count == cases[i].count);
        weights_close(&w);
    }
}

/* What a header can lie about; each must be told from the others by its sentence. */
static void test_safetensors_lies(void) {
    static const struct {
        const char *text;
        i64 data;
        const char *phrase;
    } cases[] = {
        {"", 0, "ends too early"},
        {"[]", 0, "the header is not an object"},
        {"{'a':1}", 0, "tensor a: is not an object"},
        {"{} x", 0, "(header):1:4: something follows"},
        {"{'\xff':{}}", 0, "invalid UTF-8"},
        {"a F32 [2] 0 8", 4, "tensor a: ends at byte 8 of 4: the file is cut"},
        {"a F32 [1] 0 4", 5, "1 bytes follow the last tensor"},
        {"{}", 3, "3 bytes follow"},
        {"a F32 [2] 0 4", 4, "tensor a: has 4 bytes where dtype and shape need 8"},
        {"a F16 [2] 0 8", 8, "has 8 bytes where dtype and shape need 4"},
        {"a F32 [1] 0 4; b F32 [1] 0 4", 4, "overlaps another"},
        {"a F32 [2] 0 8; b F32 [1] 4 8", 8, "tensor b: overlaps another: it begins at byte 4, "
                                            "not 8"},
        {"a F32 [1] 0 4; b F32 [1] 8 12", 12, "tensor b: leaves a hole: it begins at byte 8, "
                                              "not 4"},
        {"a F32 [1] 4 8", 8, "leaves a hole"},
        {"a U8 [0] 1 1", 1, "leaves a hole"},
        {"a F32 [1] 0 4; a F32 [1] 4 8", 8, "tensor a: the name occurs twice"},
        {"a F32 [1] 0 4; a F32 [1] 0 4", 4, "tensor a: the name occurs twice"},
        {"a F32 [0] 4 0", 4, "ends before it begins"},
        {"a F32 [0] -4 0", 4, "data_offsets are not two sizes"},
        {"a F32 [1] 0 4.0", 4, "data_offsets are not two sizes"},
        {"a F32 [1] 0 4e0", 4, "data_offsets are not two sizes"},
        {"a F32 [1] 0 18446744073709551620", 4, "data_offsets are not two sizes"},
        {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[4]}}", 4, "not two sizes"},
        {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4,4]}}", 4, "not two sizes"},
        {"{'a':{'dtype':'F32','shape':[1],'data_offsets':4}}", 4, "data_offsets is not a list"},
        {"a F32 [-1] 0 4", 4, "something that is no size"},
        {"a F32 [1.0] 0 4", 4, "something that is no size"},
        {"a F32 ['1'] 0 4", 4, "something that is no size"},
        {"a F32 {} 0 4", 4, "shape is not a list"},
        {"a F32 [4294967296,4294967296] 0 0", 0, "the product of its shape overflows"},
        {"a F32 [4294967296,4294967296,0] 0 0", 0, "the product of its shape overflows"},
        {"a F32 [576460752303423488] 0 0", 0, "size in bits overflows"},
        {"a F4 [3] 0 1", 1, "does not fill its last byte"},
        {"a U8 [1,1,1,1,1,1,1,1,1] 0 1", 1, "9 dimensions, more than 8"},
        {"a F33 [1] 0 4", 4, "unknown dtype F33"},
        {"a f32 [1] 0 4", 4, "unknown dtype f32"},
        {"a F32\\u0000 [1] 0 4", 4, "unknown dtype F32"},
        {"a\\u0000b F32 [1] 0 4", 4, "goes on after a zero byte"},
        {"{'a':{'dtype':7,'shape':[1],'data_offsets':[0,4]}}", 4, "dtype is not text"},
        {"{'a':{'shape':[1],'data_offsets':[0,4]}}", 4, "has no dtype"},
        {"{'a':{'dtype\\u0000':'F32','shape':[1],'data_offsets':[0,4]}}", 4, "has no dtype"},
        {"{'a':{'dtype':'F32','data_offsets':[0,4]}}", 4, "has no shape"},
        {"{'a':{'dtype':'F32','shape':[1]}}", 4, "has no data_offsets"},
        {"{'a':{'dtype':'F32','dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 4,
         "has two of dtype"},
        {"{'__metadata__':[]}", 0, "__metadata__ is not an object"},
        {"{'__metadata__':{'a':1}}", 0, "__metadata__: a is not text"},
        {"{'__metadata__':{'a':'1','a':'2'}}", 0, "__metadata__: a occurs twice"},
        {"{'__metadata__':{},'__metadata__':{}}", 0, "has __metadata__ twice"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        weights w;
        CHECK(fails_with(files_context(), parse_safetensors(&w, cases[i].text, cases[i].data),
                         NXT_FORMAT, cases[i].phrase));
        weights_close(&w);
    }
}

/* What its first bytes can. */
static void test_safetensors_starts(void) {
    static const struct {
        u8 bytes[10];
        i64 n;
        const char *phrase;
    } starts[] = {{{0}, 0, "0 bytes are too few"},
                  {{1, 2, 3}, 7, "7 bytes are too few"},
                  {{2}, 8, "the header takes 2 bytes and only 0 are there"},
                  {{1, 0xe1, 0xf5, 5}, 10, "a header of 100000001 bytes, more than 100000000"},
                  {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, 9, "not safetensors"}};
    for (int i = 0; i < COUNT(starts); i++) {
        weights w = {.cx = files_context(), .arena.cx = files_context()};
        CHECK(fails_with(w.cx, safetensors_parse(&w, "s", starts[i].bytes, starts[i].n),
                         NXT_FORMAT, starts[i].phrase));
        weights_close(&w);
    }
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n";
    weights w = {.cx = files_context(), .arena.cx = files_context()};
    CHECK(fails_with(w.cx, safetensors_parse(&w, "s", (const u8 *)lfs, sizeof lfs - 1),
                     NXT_FORMAT, "git lfs pull"));
    weights_close(&w);
}

static u8 *read_exact(const char *path, i64 *n) {
    file_map m;
    CHECK(file_map_open(files_context(), path, &m) == NXT_OK);
    u8 *p = malloc((size_t)max64(1, m.n));
    if (m.n) memcpy(p, m.p, (size_t)m.n);
    *n = m.n;
    file_map_close(&m);
    return p;
}

/* Every tensor lies in the n bytes at p, whatever the file said. */
static bool tensors_inside(const weights *w, const u8 *p, i64 n) {
    for (i64 i = 0; i < w->count; i++) {
        const tensor *t = &w->tensors[i];
        i64 last = 0;
        for (int d = 0; d < t->rank; d++) last += (t->dim[d] - 1) * t->stride[d];
        i64 bits = tensor_kind_named(t->type_name)->bits;
        if (t->p < p || t->p > p + n) return false;
        if (t->count && (last + 1) * bits / 8 > p + n - t->p) return false;
    }
    return true;
}

/* Every prefix is refused; every file with one byte changed is refused or harmless. */
static void check_damage(const char *path, weight_parser parse) {
    i64 n;
    u8 *whole = read_exact(path, &n);
    for (i64 i = 0; i < n; i++) {
        weights w = {.cx = files_context(), .arena.cx = files_context()};
        u8 *p = malloc((size_t)max64(1, i));
        memcpy(p, whole, (size_t)i);
        CHECK(parse(&w, "cut", p, i) != NXT_OK);
        weights_close(&w);
        free(p);
    }
    static const u8 flips[] = {0x01, 0x20, 0x80, 0xff};
    for (i64 i = 0; i < 4 * n; i++) {
        weights w = {.cx = files_context(), .arena.cx = files_context()};
        whole[i / 4] ^= flips[i % 4];
        if (parse(&w, "changed", whole, n) == NXT_OK) CHECK(tensors_inside(&w, whole, n));
        weights_close(&w);
        whole[i / 4] ^= flips[i % 4];
    }
    free(whole);
}

static void test_safetensors_damage(void) {
    check_damage(GOLDEN "/bin/writer.safetensors", safetensors_parse);
}

/* -- the writer --------------------------------------------------------------------- */

/* The ramp of tests/make_bin_fixtures.py, unless `source` holds values. */
static nxt_status fetch_ramp(void *user, const tensor_plan *t, i64 at, i64 n, float *out) {
    i64 *calls = user;
    ++*calls;
    for (i64 i = 0; i < n; i++)
        out[i] = t->source ? ((const float *)t->source)[at + i] : (float)(at + i) * 0.375f - 1;
    return NXT_OK;
}

static nxt_status fetch_failure(void *user, const tensor_plan *t, i64 at, i64 n, float *out) {
    (void)t, (void)at, (void)n, (void)out;
    return fail(user, NXT_DEVICE, "the device is gone");
}

static void test_safetensors_reference_bytes(void) {
    static float tenth = 0.1f;
    const tensor_plan plans[] = {
        {.name = "z", .type = BF16, .rank = 1, .dim = {3}, .count = 3},
        {.name = "b", .type = F32, .rank = 2, .dim = {2, 3}, .count = 6},
        {.name = "a.half", .type = F16, .rank = 1, .dim = {5}, .count = 5},
        {.name = "\xc3\xa9\"\\\n", .type = F32, .rank = 1, .dim = {1}, .count = 1},
        {.name = "empty", .type = F32, .rank = 2, .dim = {0, 4}, .count = 0},
        {.name = "scalar", .type = F32, .rank = 0, .count = 1, .source = &tenth},
        {.name = "aa", .type = BF16, .rank = 2, .dim = {2, 2}, .count = 4}};
    char dir[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    save s;
    i64 calls = 0, n, m;
    make_temporary(dir);
    CHECK(save_begin_into(cx, dir, &s) == NXT_OK);
    CHECK(safetensors_write(&s, "model.safetensors", &(tensor_set){.plans = plans,
          .count = COUNT(plans), .fetch = fetch_ramp, .user = &calls}) == NXT_OK);
    CHECK(save_commit(&s) == NXT_OK);
    u8 *ours = read_exact(under(&a, dir, "model.safetensors"), &n);
    u8 *theirs = read_exact(GOLDEN "/bin/writer.safetensors", &m);
    CHECK(n == m && !memcmp(ours, theirs, (size_t)min64(n, m)));
    free(ours);
    free(theirs);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* However long the names are, the data begins at a multiple of 8. */
static void test_safetensors_padding(void) {
    char dir[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    make_temporary(dir);
    for (int length = 1; length <= 9; length++) {
        char name[16] = "";
        i64 calls = 0, n;
        save s;
        memset(name, 'x', (size_t)length);
        const tensor_plan plan = {.name = name, .type = F32, .rank = 1, .dim = {1}, .count = 1};
        CHECK(save_begin_into(cx, dir, &s) == NXT_OK);
        CHECK(safetensors_write(&s, "m.safetensors", &(tensor_set){.plans = &plan, .count = 1,
              .fetch = fetch_ramp, .user = &calls}) == NXT_OK && save_commit(&s) == NXT_OK);
        u8 *p = read_exact(under(&a, dir, "m.safetensors"), &n);
        CHECK(read_le(p, 8) % 8 == 0 && (i64)read_le(p, 8) + 8 + 4 == n);
        free(p);
    }
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* Sizes around the staging buffer's, all types, bit for bit; extra texts come back. */
static void test_safetensors_round_trip(void) {
    char dir[64], names[4][3][16];
    static const i64 sizes[] = {1, 7, STAGE, 2 * STAGE + 3};
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    float *values = malloc((size_t)(2 * STAGE + 3) * sizeof *values);
    for (i64 i = 0; i < 2 * STAGE + 3; i++) values[i] = (float)normal(7, FOR_INIT, 0, (u64)i);
    values[0] = -0.0f, values[1] = 1e-40f, values[2] = INFINITY, values[3] = NAN;
    tensor_plan plans[12];
    for (int i = 0; i < 12; i++) {
        snprintf(names[i / 3][i % 3], 16, "t%d.%d", i / 3, i % 3);
        plans[i] = (tensor_plan){.name = names[i / 3][i % 3],
                                 .type = (dtype)(i % 3),
                                 .rank = 1,
                                 .dim = {sizes[i / 3]},
                                 .count = sizes[i / 3],
                                 .source = values};
    }
    const text_pair extra[] = {{"step", "12"}, {"text \"quoted\"", "\xc3\xa9\n"}};
    save s;
    i64 calls = 0;
    make_temporary(dir);
    CHECK(save_begin_into(cx, dir, &s) == NXT_OK);
    CHECK(safetensors_write(&s, "o.safetensors",
                            &(tensor_set){.plans = plans,
                                          .count = 12,
                                          .metadata = extra,
                                          .metadata_count = 2,
                                          .fetch = fetch_ramp,
                                          .user = &calls}) == NXT_OK);
    CHECK(save_commit(&s) == NXT_OK);
    CHECK(calls == 3 * (1 + 1 + 1 + 3));
    weights w;
    CHECK(weights_open_file(cx, under(&a, dir, "o.safetensors"), &w) == NXT_OK);
    CHECK(w.count == 12 && !strcmp(weights_metadata(&w, "format"), "pt"));
    CHECK(!strcmp(weights_metadata(&w, "step"), "12") && !weights_metadata(&w, "none"));
    CHECK(!strcmp(weights_metadata(&w, "text \"quoted\""), "\xc3\xa9\n"));
    CHECK(weights_find(&w, "t9.9") == NULL);
    for (int i = 0; i < 12; i++) {
        const tensor *t = weights_find(&w, plans[i].name);
        CHECK(t && t->type == i % 3 && t->count == sizes[i / 3] && t->stride[0] == 1);
        bool same = true;
        for (i64 e = 0; t && same && e < t->count; e++) {
            float x, v = values[e];
            load_floats(&x, t->p, plans[i].type, e, 1);
            if (t->type == F16) v = f16_to_f32(f32_to_f16(v));
            if (t->type == BF16) v = bf16_to_f32(f32_to_bf16(v));
            same = t->type == F32 ? float_bits(x) == float_bits(v)
                                  : float_bits(x) == float_bits(v) || (isnan(x) && isnan(v));
        }
        CHECK(same);
    }
    weights_close(&w);
    free(values);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

static void test_safetensors_overflow(void) {
    static float values[] = {65504, -65519.9f, INFINITY, NAN, 65520, 3.4028235e38f, 3.38e38f};
    static const struct {
        dtype type;
        i64 count; /* of values */
        const char *phrase;
    } cases[] = {
        {F16, 4, NULL},
        {F32, 7, NULL},
        {BF16, 5, NULL},
        {F16, 5,
         "tensor w holds 65520, too large for f16 (at most 65504): save as f32 or bf16"},
        {BF16, 6, "holds 3.40282e+38, too large for bf16 (at most 3.39e38): save as f32"}};
    char dir[64];
    nxt_context *cx = files_context();
    make_temporary(dir);
    for (int i = 0; i < COUNT(cases); i++) {
        tensor_plan plan = {.name = "w",
                            .type = cases[i].type,
                            .rank = 1,
                            .dim = {cases[i].count},
                            .count = cases[i].count,
                            .source = values};
        save s;
        i64 calls = 0;
        CHECK(save_begin_into(cx, dir, &s) == NXT_OK);
        nxt_status status = safetensors_write(&s, "m.safetensors", &(tensor_set){
            .plans = &plan, .count = 1, .fetch = fetch_ramp, .user = &calls});
        if (cases[i].phrase) CHECK(fails_with(cx, status, NXT_FORMAT, cases[i].phrase));
        else CHECK(status == NXT_OK);
        CHECK(fails_with(
            cx,
            safetensors_write(
                &s, "n.safetensors",
                &(tensor_set){.plans = &plan, .count = 1, .fetch = fetch_failure, .user = cx}),
            NXT_DEVICE, "gone"));
        save_abort(&s);
        CHECK(entries_in(dir) == 0);
    }
    remove_tree(AT_FDCWD, dir);
}

/* The table is what huggingface_hub answers: see tests/make_bin_fixtures.py. */
static void test_safetensors_shards(void) {
    static const i64 sizes[] = {5, 30, 10, 10, 6, 25, 1, 40, 24, 2, 0, 26, 0};
    static const int expected[] = {2, 1, 2, 2, 3, 4, 6, 5, 6, 8, 8, 7, 8};
    enum { N = 13 };
    char dir[64], names[N][16], path[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    tensor_plan plans[N];
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], "t%d", i);
        plans[i] = (tensor_plan){.name = names[i], .type = F32, .rank = 1, .dim = {sizes[i]},
                                 .count = sizes[i]};
    }
    save s;
    i64 calls = 0;
    make_temporary(dir);
    tensor_set set = {.plans = plans, .count = N, .shard_bytes = 100, .fetch = fetch_ramp,
                      .user = &calls};
    CHECK(save_begin_into(cx, dir, &s) == NXT_OK);
    CHECK(safetensors_write(&s, "model.safetensors", &set) == NXT_OK &&
          save_commit(&s) == NXT_OK);
    CHECK(entries_in(dir) == 9);
    buffer b = {.cx = cx};
    json *index = NULL;
    CHECK(file_read(cx, under(&a, dir, "model.safetensors.index.json"), 1 << 20, &b) == NXT_OK);
    CHECK(json_parse(&a, "index", b.p, b.n, &index) == NXT_OK);
    CHECK(json_number(json_get(index, "metadata"), "total_size", 0) == 179 * 4);
    weights w;
    CHECK(weights_open(cx, dir, &w) == NXT_OK && w.count == N && w.indexed);
    for (int i = 0; i < N; i++) {
        const tensor *t = weights_find(&w, names[i]);
        snprintf(path, sizeof path, "model-%05d-of-00008.safetensors", expected[i]);
        CHECK(t && t->count == sizes[i] && ends_with(t->file, path));
        CHECK(!strcmp(json_text(json_get(index, "weight_map"), names[i], ""), path));
        float x = 0;
        if (t && t->count) load_floats(&x, t->p, F32, t->count - 1, 1);
        CHECK(!t || !t->count || x == (float)(t->count - 1) * 0.375f - 1);
    }
    weights_close(&w);
    set.shard_bytes = 1000; /* all in one; the shards above become stale */
    CHECK(save_begin_into(cx, dir, &s) == NXT_OK);
    CHECK(safetensors_write(&s, "model.safetensors", &set) == NXT_OK &&
          save_commit(&s) == NXT_OK);
    CHECK(entries_in(dir) == 1 && weights_open(cx, dir, &w) == NXT_OK && w.count == N);
    weights_close(&w);
    buffer_free(&b);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* An index file is as hostile as any other. */
static void test_weights_index(void) {
    static const struct {
        const char *index;
        nxt_status status;
        const char *phrase;
    } cases[] = {
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}", NXT_OK, ""},
        {"{\"weight_map\":{\"b\":\"two\"}}", NXT_OK, ""}, /* a is there and does not count */
        {"{\"weight_map\":{}}", NXT_OK, ""},
        {"{}", NXT_FORMAT, "no weight_map"},
        {"[]", NXT_FORMAT, "no weight_map"},
        {"{\"weight_map\":{\"a\":\"one\",\"b\":\"one\"}}", NXT_FORMAT,
         "tensor b: not in this file, where"},
        {"{\"weight_map\":{\"c\":\"one\"}}", NXT_FORMAT, "tensor c: not in this file"},
        {"{\"weight_map\":{\"a\":\"one\",\"a\":\"two\"}}", NXT_FORMAT,
         "tensor a: the index names it twice"},
        {"{\"weight_map\":{\"a\":\"../one\"}}", NXT_FORMAT, "not the name of a file beside it"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", NXT_FORMAT, "not the name of a file"},
        {"{\"weight_map\":{\"a\":\"..\"}}", NXT_FORMAT, "not the name of a file"},
        {"{\"weight_map\":{\"a\":\"x\\\\one\"}}", NXT_FORMAT, "not the name of a file"},
        {"{\"weight_map\":{\"a\":\"\"}}", NXT_FORMAT, "not the name of a file"},
        {"{\"weight_map\":{\"a\":\"one\\u0000\"}}", NXT_FORMAT, "not the name of a file"},
        {"{\"weight_map\":{\"a\":1}}", NXT_FORMAT, "not the name of a file"},
        {"{\"weight_map\":{\"a\":\".\"}}", NXT_IO, "not a regular file"},
        {"{\"weight_map\":{\"a\":\"three\"}}", NXT_IO, "No such file"},
        {"", NXT_FORMAT, "model.safetensors.index.json:1:1: the text ends"},
        {"{\"weight_map\":", NXT_FORMAT, "model.safetensors.index.json:1:15: the text ends"},
    };
    char dir[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    weights w;
    i64 n;
    make_temporary(dir);
    CHECK(fails_with(cx, weights_open(cx, dir, &w), NXT_IO,
                     "no weights: neither model.safetensors"));
    static const char *const files[] = {"one", "two"};
    static const char *const headers[] = {"a F32 [1] 0 4", "a F32 [1] 0 4; b F32 [1] 4 8"};
    for (int i = 0; i < 2; i++) {
        u8 *p = make_safetensors(headers[i], 4 + 4 * i, &n);
        put_file(under(&a, dir, files[i]), p, n);
        free(p);
    }
    for (int i = 0; i < COUNT(cases); i++) {
        put_file(under(&a, dir, "model.safetensors.index.json"), cases[i].index,
                 (i64)strlen(cases[i].index));
        nxt_status status = weights_open(cx, dir, &w);
        if (cases[i].status == NXT_OK) CHECK(status == NXT_OK);
        else CHECK(fails_with(cx, status, cases[i].status, cases[i].phrase));
        if (i == 0) CHECK(w.count == 2 && ends_with(weights_find(&w, "a")->file, "/one"));
        if (i == 1) CHECK(w.count == 1 && !weights_find(&w, "a") && weights_find(&w, "b"));
        weights_close(&w);
    }
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* -- pytorch_model.bin -------------------------------------------------------------- */
static const char *const good_bins[] = {
    "f32",        "f16",    "bf16",      "tied",      "views",  "parameter", "model",
    "state_dict", "module", "protocol4", "protocol5", "shapes", "rezipped",
    "rezip64"};

static nxt_status parse_file(const char *path, weight_parser parse, weights *w, u8 **bytes) {
    i64 n;
    *bytes = read_exact(path, &n);
    *w = (weights){.cx = files_context(), .arena.cx = files_context()};
    return parse(w, path, *bytes, n);
}

/* Element i of a tensor, in row-major order, however it lies. */
static const u8 *tensor_element(const tensor *t, i64 i) {
    i64 at = 0;
    for (int d = t->rank - 1; d >= 0; i /= t->dim[d--]) at += i % t->dim[d] * t->stride[d];
    return t->p + at * (tensor_kind_named(t->type_name)->bits / 8);
}

static bool same_tensor(const tensor *x, const tensor *y) {
    if (x->rank != y->rank || x->type != y->type || strcmp(x->type_name, y->type_name))
        return false;
    if (memcmp(x->dim, y->dim, sizeof x->dim) || x->count != y->count) return false;
    size_t size = (size_t)tensor_kind_named(x->type_name)->bits / 8;
    for (i64 i = 0; i < x->count; i++)
        if (memcmp(tensor_element(x, i), tensor_element(y, i), size)) return false;
    return true;
}

static void test_torchbin_good(void) {
    weights expected;
    i64 found = 0;
    char path[128], name[128];
    CHECK(weights_open_file(files_context(), GOLDEN "/bin/expected.safetensors", &expected) ==
          NXT_OK);
    for (int i = 0; i < COUNT(good_bins); i++) {
        weights w;
        u8 *bytes;
        snprintf(path, sizeof path, GOLDEN "/bin/%s.bin", good_bins[i]);
        CHECK(parse_file(path, torchbin_parse, &w, &bytes) == NXT_OK);
        for (i64 j = 0; j < w.count; j++) {
            snprintf(name, sizeof name, "%s/%s", good_bins[i], w.tensors[j].name);
            const tensor *t = weights_find(&expected, name);
            CHECK(t && same_tensor(t, &w.tensors[j]));
            found++;
        }
        weights_close(&w);
        free(bytes);
    }
    CHECK(found == expected.count);
    weights_close(&expected);
}

static void test_torchbin_views(void) {
    weights w;
    u8 *bytes;
    CHECK(parse_file(GOLDEN "/bin/views.bin", torchbin_parse, &w, &bytes) == NXT_OK);
    const tensor *t = weights_find(&w, "transposed"), *rows = weights_find(&w, "rows");
    CHECK(t && t->dim[0] == 6 && t->stride[0] == 1 && t->stride[1] == 6);
    CHECK(rows && rows->stride[0] == 6 && rows->p == t->p + 6 * 4);
    weights_close(&w);
    free(bytes);
    CHECK(parse_file(GOLDEN "/bin/tied.bin", torchbin_parse, &w, &bytes) == NXT_OK);
    CHECK(weights_find(&w, "embed.weight")->p == weights_find(&w, "head.weight")->p);
    weights_close(&w);
    free(bytes);
}

static void test_torchbin_refused(void) {
    static const struct {
        const char *name;
        nxt_status status;
        const char *phrase;
    } cases[] = {
        {"strided", NXT_UNSUPPORTED, "tensor cube: a view that is neither contiguous nor"},
        {"legacy", NXT_UNSUPPORTED, "PyTorch before 1.6"},
        {"evil", NXT_UNSUPPORTED, "asks for __builtin__.print, which"},
        {"no_tensors", NXT_FORMAT, "no dictionary of tensors"},
        {"deflated", NXT_UNSUPPORTED, "archive/data.pkl is compressed"},
    };
    weights w;
    u8 *bytes;
    char path[128];
    for (int i = 0; i < COUNT(cases); i++) {
        snprintf(path, sizeof path, GOLDEN "/bin/%s.bin", cases[i].name);
        nxt_status status = parse_file(path, torchbin_parse, &w, &bytes);
        CHECK(fails_with(w.cx, status, cases[i].status, cases[i].phrase));
        weights_close(&w);
        free(bytes);
    }
    i64 n; /* the same bytes, said to be in the other order */
    u8 *p = read_exact(GOLDEN "/bin/f32.bin", &n);
    for (i64 i = 0; i + 6 <= n; i++)
        if (!memcmp(p + i, "little", 6)) memcpy(p + i, "biggie", 6);
    w = (weights){.cx = files_context(), .arena.cx = files_context()};
    CHECK(
        fails_with(w.cx, torchbin_parse(&w, "b", p, n), NXT_UNSUPPORTED, "biggie byte order"));
    weights_close(&w);
    free(p);
    w = (weights){.cx = files_context(), .arena.cx = files_context()};
    CHECK(fails_with(w.cx, torchbin_parse(&w, "b", (const u8 *)"hello", 5), NXT_FORMAT,
                     "no zip"));
    weights_close(&w);
}

static void test_torchbin_damage(void) {
    check_damage(GOLDEN "/bin/views.bin", torchbin_parse);
    check_damage(GOLDEN "/bin/model.bin", torchbin_parse);
    check_damage(GOLDEN "/bin/protocol4.bin", torchbin_parse);
    check_damage(GOLDEN "/bin/rezipped.bin", torchbin_parse);
}

/* Pickles that no torch.save writes: what follows the opcode of protocol 2. */
static void test_torchbin_pickles(void) {
#define PICKLE(text, code, phrase) {"\x80\x02" text, sizeof("\x80\x02" text) - 1, code, phrase}
    static const struct {
        const char *bytes;
        i64 n;
        nxt_status status;
        const char *phrase;
    } cases[] = {
        PICKLE("}.", NXT_OK, ""),
        PICKLE("]q\0h\0a.", NXT_OK, ""), /* a list that holds itself */
        PICKLE("\x80\x04\x95\x01\0\0\0\0\0\0\0}\x94.", NXT_OK, ""),
        PICKLE("\x8a\x09NNNNNNNNN.", NXT_OK, ""), /* an integer of 9 bytes */
        PICKLE("\x8a\0.", NXT_OK, ""),
        PICKLE("", NXT_FORMAT, "cut short"),
        PICKLE("\x80\x01}.", NXT_FORMAT, "unknown pickle protocol"),
        PICKLE("}", NXT_FORMAT, "cut short"),
        PICKLE(".", NXT_FORMAT, "more or less than one value"),
        PICKLE("}}.", NXT_FORMAT, "more or less than one value"),
        PICKLE("(.", NXT_OK, ""), /* a mark: not a dictionary of tensors */
        PICKLE("t.", NXT_FORMAT, "no mark"),
        PICKLE("}\x86.", NXT_FORMAT, "too few values"),
        PICKLE("(\x85.", NXT_FORMAT, "too few values"),
        PICKLE("}NNs.", NXT_OK, ""),
        PICKLE("}(Nu.", NXT_FORMAT, "nothing to add"),
        PICKLE("N(NNu.", NXT_FORMAT, "nothing to add"),
        PICKLE("(NNu.", NXT_FORMAT, "nothing to add"),
        PICKLE("}Na.", NXT_FORMAT, "nothing to add"),
        PICKLE("q\0.", NXT_FORMAT, "nothing to remember"),
        PICKLE("(q\0.", NXT_FORMAT, "nothing to remember"),
        PICKLE("h\0.", NXT_FORMAT, "never remembered"),
        PICKLE("}r\xff\xff\xff\xff.", NXT_FORMAT, "absurd memo"),
        PICKLE("j\xff\xff\xff\xff.", NXT_FORMAT, "never remembered"),
        PICKLE("X\xff\xff\xff\xff.", NXT_FORMAT, "a text is cut short"),
        PICKLE("X\x01\0\0\0\xff.", NXT_FORMAT, "not UTF-8"),
        PICKLE("X\x01\0\0\0\0.", NXT_FORMAT, "zero byte"),
        PICKLE("X\x01", NXT_FORMAT, "cut short"),
        PICKLE("K", NXT_FORMAT, "cut short"),
        PICKLE("\x8a\xffN", NXT_FORMAT, "cut short"),
        PICKLE("cos\nsystem\n.", NXT_UNSUPPORTED, "asks for os.system"),
        PICKLE("cos\nsystem", NXT_FORMAT, "a name is cut short"),
        PICKLE("ctorch\nload\n.", NXT_UNSUPPORTED, "asks for torch.load"),
        PICKLE("\x8c\x02os\x8c\x06system\x93.", NXT_UNSUPPORTED, "asks for os.system"),
        PICKLE("NN\x93.", NXT_FORMAT, "another kind"),
        PICKLE("ccollections\nOrderedDict\n).", NXT_FORMAT, "more or less"),
        PICKLE("ccollections\nOrderedDict\nN\x85R.", NXT_UNSUPPORTED, "unexpected arguments"),
        PICKLE("ctorch\nFloatStorage\n)R.", NXT_UNSUPPORTED, "unexpected arguments"),
        PICKLE("ctorch._utils\n_rebuild_tensor_v2\n)R.", NXT_UNSUPPORTED, "unexpected arg"),
        PICKLE("ctorch._utils\n_rebuild_parameter\nNNN\x87R.", NXT_UNSUPPORTED, "unexpected"),
        PICKLE("N)R.", NXT_FORMAT, "another kind"),
        PICKLE("R.", NXT_FORMAT, "the stack is empty"),
        PICKLE(")Q.", NXT_FORMAT, "no storage"),
        PICKLE("NQ.", NXT_FORMAT, "another kind"),
        PICKLE("NNb.", NXT_FORMAT, "no dictionary"),
        PICKLE("}Nb.", NXT_OK, ""),
        PICKLE("I1\n.", NXT_UNSUPPORTED, "opcode 0x49"),
        PICKLE("i", NXT_UNSUPPORTED, "opcode 0x69"),                 /* INST */
        PICKLE("o", NXT_UNSUPPORTED, "opcode 0x6f"),                 /* OBJ */
        PICKLE("}\x81.", NXT_UNSUPPORTED, "byte 3: opcode 0x81"),    /* NEWOBJ */
        PICKLE("}\x82\x01.", NXT_UNSUPPORTED, "opcode 0x82"),        /* EXT1 */
    };
#undef PICKLE
    for (int i = 0; i < COUNT(cases); i++) {
        pickle_value *top;
        u8 *p = malloc((size_t)max64(1, cases[i].n));
        memcpy(p, cases[i].bytes, (size_t)cases[i].n);
        pickle_machine k = {.cx = files_context(), .file = "f", .arena.cx = files_context(),
                            .start = p, .p = p, .end = p + cases[i].n};
        nxt_status status = pickle_run(&k, &top);
        if (cases[i].status == NXT_OK)
            CHECK(status == NXT_OK && !holds_tensors(find_state_dict(top)));
        else CHECK(fails_with(k.cx, status, cases[i].status, cases[i].phrase));
        arena_free(&k.arena);
        free(p);
    }
}

static void pickle_numbers(buffer *b, const i64 *numbers, i64 n) {
    for (i64 i = 0; i < n; i++) {
        buffer_add(b, "\x8a\x08", 2);
        buffer_add(b, &numbers[i], 8);
    }
}

/* A tensor of two dimensions over a storage that holds 6 floats, saying what it likes. */
static void test_torchbin_extents(void) {
    static const struct {
        i64 elements, offset, dim[2], stride[2];
        nxt_status status;
        const char *phrase;
    } cases[] = {
        {6, 0, {2, 3}, {3, 1}, NXT_OK, ""},
        {6, 0, {3, 2}, {1, 3}, NXT_OK, ""},
        {6, 1, {2, 2}, {3, 1}, NXT_OK, ""},
        {6, 5, {9, 9}, {0, 0}, NXT_OK, ""},
        {6, 6, {0, 3}, {3, 1}, NXT_OK, ""},
        {6, 5, {1, 1}, {1000, 1000}, NXT_OK, ""},
        {7, 0, {2, 3}, {3, 1}, NXT_FORMAT, "tensor t: its storage needs 7 elements of 4 bytes"},
        {5, 0, {2, 3}, {3, 1}, NXT_FORMAT, "tensor t: reaches beyond its storage"},
        {6, 1, {2, 3}, {3, 1}, NXT_FORMAT, "reaches beyond"},
        {6, 0, {2, 3}, {4, 1}, NXT_FORMAT, "reaches beyond"},
        {6, 7, {0, 3}, {3, 1}, NXT_FORMAT, "reaches beyond"},
        {6, -1, {2, 3}, {3, 1}, NXT_FORMAT, "reaches beyond"},
        {6, INT64_MAX, {2, 3}, {3, 1}, NXT_FORMAT, "reaches beyond"},
        {6, 0, {-2, 3}, {3, 1}, NXT_FORMAT, "negative size or stride"},
        {6, 0, {2, 3}, {-3, 1}, NXT_FORMAT, "negative size or stride"},
        {6, 0, {INT64_MAX, 2}, {0, 0}, NXT_FORMAT, "the product of its shape overflows"},
        {6, 0, {3, 2}, {INT64_MAX, 1}, NXT_FORMAT, "its strides overflow"},
        {6, 0, {2, 2}, {INT64_MAX, INT64_MAX}, NXT_FORMAT, "its strides overflow"},
        {INT64_MAX, 0, {2, 3}, {3, 1}, NXT_FORMAT, "its storage needs"},
        {-1, 0, {2, 3}, {3, 1}, NXT_FORMAT, "no storage"},
    };
    nxt_context *cx = files_context();
    const float storage[6] = {0};
    zip_entry e = {.name = "r/data/0", .length = 8, .p = (const u8 *)storage, .bytes = 24};
    for (int i = 0; i < COUNT(cases); i++) {
        weights w = {.cx = cx, .arena.cx = cx};
        zip_archive z = {.w = &w, .file = "f", .entry = &e, .count = 1, .root = "r/",
                         .root_length = 2};
        buffer b = {.cx = cx};
        buffer_text(&b, "}\x8c\x01tctorch._utils\n_rebuild_tensor_v2\n((\x8c\x07storage"
                        "ctorch\nFloatStorage\n\x8c\x01" "0\x8c\x03" "cpu");
        pickle_numbers(&b, &cases[i].elements, 1);
        buffer_text(&b, "tQ");
        pickle_numbers(&b, &cases[i].offset, 1);
        pickle_numbers(&b, cases[i].dim, 2);
        buffer_text(&b, "\x86");
        pickle_numbers(&b, cases[i].stride, 2);
        buffer_text(&b, "\x86\x89}tRs.");
        pickle_machine k = {.cx = cx, .file = "f", .arena.cx = cx, .start = (u8 *)b.p,
                            .p = (u8 *)b.p, .end = (u8 *)b.p + b.n};
        pickle_value *top;
        nxt_status status = pickle_run(&k, &top);
        if (status == NXT_OK) status = torch_tensors(&z, top);
        if (cases[i].status == NXT_OK)
            CHECK(status == NXT_OK && tensors_inside(&w, e.p, e.bytes) && w.count == 1);
        else CHECK(fails_with(cx, status, cases[i].status, cases[i].phrase));
        arena_free(&k.arena);
        buffer_free(&b);
        weights_close(&w);
    }
}

/* Parts of an archive that contradict each other: one byte of a good file is replaced. */
static void test_torchbin_archive(void) {
    static const struct {
        const char *file, *find;
        i64 at; /* from the last place where `find` is */
        char put;
        nxt_status status;
        const char *phrase;
    } cases[] = {
        {"f32", "PK\5\6", 0, 'Q', NXT_FORMAT, "no end record"},
        {"f32", "PK\5\6", 10, 9, NXT_FORMAT, "its two end records disagree"},
        {"f32", "PK\6\7", 8, 1, NXT_FORMAT, "no zip64 end record where its locator points"},
        {"f32", "PK\6\6", 48, 1, NXT_FORMAT, "its two end records disagree"},
        {"f32", "PK\1\2", 0, 'Q', NXT_FORMAT, "its directory is cut short"},
        {"f32", "PK\1\2", 43, 7, NXT_FORMAT, "is not where the directory says"},
        {"f32", "PK\1\2", 43, 0, NXT_FORMAT, "entries overlap or are out of order"},
        {"f32", "PK\1\2", 46, 'x', NXT_FORMAT, "an entry and the directory disagree"},
        {"f32", "PK\1\2", 10, 8, NXT_UNSUPPORTED, "is compressed"},
        {"f32", "PK\1\2", 8, 9, NXT_UNSUPPORTED, "is encrypted"},
        {"f32", "PK\1\2", 24, 1, NXT_FORMAT, "impossible size"},
        {"f32", "PK\3\4", 6, 9, NXT_FORMAT, "an entry and the directory disagree"},
        {"f32", "PK\3\4", 8, 8, NXT_FORMAT, "an entry and the directory disagree"},
        {"f32", "PK\3\4", 22, 1, NXT_FORMAT, "disagree about a size"},
        {"f32", "PK\3\4", 26, 1, NXT_FORMAT, "an entry and the directory disagree"},
        {"rezipped", "PK\5\6", 10, 1, NXT_FORMAT, "more lies in its directory than entries"},
        {"rezipped", "PK\5\6", 11, 1, NXT_FORMAT, "more entries than fit"},
        {"rezipped", "PK\5\6", 12, 1, NXT_FORMAT, "not where the end record says"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        i64 n, at;
        char path[128];
        snprintf(path, sizeof path, GOLDEN "/bin/%s.bin", cases[i].file);
        u8 *p = read_exact(path, &n);
        weights w = {.cx = files_context(), .arena.cx = files_context()};
        for (at = n - 4; memcmp(p + at, cases[i].find, 4); at--) {}
        p[at + cases[i].at] = (u8)cases[i].put;
        nxt_status status = torchbin_parse(&w, "f", p, n);
        CHECK(fails_with(w.cx, status, cases[i].status, cases[i].phrase));
        weights_close(&w);
        free(p);
    }
}

static void test_torchbin_integers(void) {
    static const struct {
        const char *bytes;
        i64 n, value;
    } cases[] = {{"K\xfb.", 3, 251},          {"M\xfb\xff.", 4, 65531},
                 {"J\xfb\xff\xff\xff.", 6, -5}, {"J\5\0\0\0.", 6, 5},
                 {"\x8a\0.", 3, 0},           {"\x8a\1\xfb.", 4, -5},
                 {"\x8a\2\xfb\0.", 5, 251},   {"\x8a\5\0\0\0\0\1.", 8, (i64)1 << 32},
                 {"\x8a\x8\xfb\xff\xff\xff\xff\xff\xff\xff.", 11, -5}};
    for (int i = 0; i < COUNT(cases); i++) {
        const u8 *p = (const u8 *)cases[i].bytes;
        pickle_value *top = NULL;
        pickle_machine k = {.cx = files_context(), .file = "f", .arena.cx = files_context(),
                            .start = p, .p = p, .end = p + cases[i].n};
        CHECK(pickle_run(&k, &top) == NXT_OK && top->kind == PICKLE_INTEGER);
        CHECK(top && top->number == cases[i].value);
        arena_free(&k.arena);
    }
}

/* The numbers that did not fit 32 bits; such archives are too large to keep as fixtures. */
static void test_torchbin_zip64(void) {
#define EXTRA(text, good, bytes, stored, offset)                                           \
    {text, sizeof(text) - 1, good, {UINT32_MAX, UINT32_MAX, UINT32_MAX},                   \
     {bytes, stored, offset}}
    static const struct {
        const char *extra;
        i64 n;
        bool good;
        u64 before[3], after[3];
    } cases[] = {
        EXTRA("\1\0\x18\0" "\0\0\0\0\1\0\0\0" "\0\0\0\0\2\0\0\0" "\5\0\0\0\3\0\0\0", true,
              0x100000000, 0x200000000, 0x300000005),
        EXTRA("FB\2\0ZZ" "\1\0\x18\0" "\1\0\0\0\0\0\0\0" "\2\0\0\0\0\0\0\0" "\3\0\0\0\0\0\0\0",
              true, 1, 2, 3),
        EXTRA("\1\0\x10\0" "\1\0\0\0\0\0\0\0" "\2\0\0\0\0\0\0\0", false, 0, 0, 0),
        EXTRA("FB\x10\0" "\1\0\0\0\0\0\0\0", false, 0, 0, 0),
        EXTRA("FB\2\0ZZ", false, 0, 0, 0),
        EXTRA("", false, 0, 0, 0),
        {"\1\0\x8\0" "\7\0\0\0\1\0\0\0", 12, true, {5, 5, 0xffffffff}, {5, 5, 0x100000007}},
        {"\1\0\x8\0" "\7\0\0\0\1\0\0\0", 12, true, {5, 5, 6}, {5, 5, 6}},
        {"", 0, true, {5, 5, 6}, {5, 5, 6}},
    };
#undef EXTRA
    for (int i = 0; i < COUNT(cases); i++) {
        u64 x[3] = {cases[i].before[0], cases[i].before[1], cases[i].before[2]};
        u8 *p = malloc((size_t)max64(1, cases[i].n));
        memcpy(p, cases[i].extra, (size_t)cases[i].n);
        CHECK(zip_extra(p, cases[i].n, &x[0], &x[1], &x[2]) == cases[i].good);
        CHECK(!cases[i].good || !memcmp(x, cases[i].after, sizeof x));
        free(p);
    }
}

/* Files that others made, and a sharded directory of ours. */
static void test_torchbin_directory(void) {
    char dir[64];
    nxt_context *cx = files_context();
    arena a = {.cx = cx};
    weights w;
    i64 n;
    make_temporary(dir);
    static const char *const names[] = {"f32", "tied"};
    for (int i = 0; i < 2; i++) {
        u8 *p = read_exact(i ? GOLDEN "/bin/tied.bin" : GOLDEN "/bin/f32.bin", &n);
        put_file(under(&a, dir, names[i]), p, n);
        if (i == 0) put_file(under(&a, dir, "pytorch_model.bin"), p, n);
        free(p);
    }
    static const char index[] =
        "{\"weight_map\":{\"weight\":\"f32\",\"embed.weight\":\"tied\"}}";
    put_file(under(&a, dir, "pytorch_model.bin.index.json"), index, sizeof index - 1);
    CHECK(weights_open(cx, dir, &w) == NXT_OK && w.count == 2 && !w.indexed);
    weights_close(&w);
    unlink(under(&a, dir, "pytorch_model.bin"));
    CHECK(weights_open(cx, dir, &w) == NXT_OK && w.count == 2 && w.indexed);
    CHECK(weights_find(&w, "embed.weight") && !weights_find(&w, "head.weight"));
    weights_close(&w);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

static void test_torchbin_foreign(void) {
    static const struct {
        const char *name, *tensor;
        i64 count, rows, cols;
    } files[] = {{"tiny_fair_checkpoint.pt", "layers.1.feed_forward.w3.weight", 21, 256, 32},
                 {"tiny_state_dict_with_one_key.pt", "test_key", 1, 10, 10},
                 {"tinypellm_pytorch_model.bin", "lm_head.weight", 24, 3000, 128}};
    const char *data = getenv("NEOXTUNE_TEST_DATA");
    if (!data) SKIP("NEOXTUNE_TEST_DATA is not set");
    for (int i = 0; i < COUNT(files); i++) {
        char path[1024];
        weights w;
        u8 *bytes;
        snprintf(path, sizeof path, "%s/checkpoints/torch-pickle/%s", data, files[i].name);
        CHECK(parse_file(path, torchbin_parse, &w, &bytes) == NXT_OK &&
              w.count == files[i].count);
        const tensor *t = weights_find(&w, files[i].tensor);
        CHECK(t && t->type == F32 && t->dim[0] == files[i].rows && t->dim[1] == files[i].cols);
        double sum = 0;
        bool finite = true;
        for (i64 e = 0; t && e < t->count; e++) {
            float x;
            load_floats(&x, t->p, F32, e, 1);
            finite = finite && isfinite(x);
            sum += fabs((double)x);
        }
        CHECK(finite && sum > 0 && sum / (double)t->count < 10);
        weights_close(&w);
        free(bytes);
    }
}

/* -- memory that runs out ----------------------------------------------------------- */
static void *scarce_allocate(void *user, size_t bytes) {
    i64 *left = user;
    return --*left < 0 ? NULL : malloc(bytes);
}

static void scarce_release(void *user, void *memory, size_t bytes) {
    (void)user, (void)bytes;
    free(memory);
}

static nxt_status all_readers(nxt_context *cx, const char *dir) {
    weights w;
    i64 calls = 0;
    save s;
    const text_pair pair = {"k", "v"};
    const tensor_plan plan = {.name = "t", .type = F16, .rank = 1, .dim = {3}, .count = 3};
    TRY(weights_open_file(cx, GOLDEN "/bin/writer.safetensors", &w));
    weights_close(&w);
    TRY(weights_open(cx, dir, &w));
    weights_close(&w);
    TRY(save_begin_into(cx, dir, &s));
    nxt_status status = safetensors_write(&s, "x.safetensors",
                                          &(tensor_set){.plans = &plan,
                                                        .count = 1,
                                                        .metadata = &pair,
                                                        .metadata_count = 1,
                                                        .fetch = fetch_ramp,
                                                        .user = &calls});
    if (status == NXT_OK) return save_commit(&s);
    save_abort(&s);
    return status;
}

/* Whichever allocation fails, the status says so, and nothing leaks or stays behind. */
static void test_files_memory(void) {
    char dir[64];
    arena a = {.cx = files_context()};
    nxt_status status = NXT_MEMORY;
    i64 n, rounds = 0;
    make_temporary(dir);
    static const char index[] = "{\"weight_map\":{\"weight\":\"f32\",\"bias\":\"f32\"}}";
    u8 *p = read_exact(GOLDEN "/bin/f32.bin", &n);
    put_file(under(&a, dir, "f32"), p, n);
    put_file(under(&a, dir, "pytorch_model.bin.index.json"), index, sizeof index - 1);
    free(p);
    while (status == NXT_MEMORY && rounds < 1000) {
        i64 left = rounds++;
        nxt_context cx = {.config = {.allocate = scarce_allocate, .release = scarce_release,
                                     .user = &left}};
        status = all_readers(&cx, dir);
        CHECK(cx.bytes_now == 0);
        CHECK(entries_in(dir) == (status == NXT_OK ? 3 : 2));
    }
    CHECK(status == NXT_OK && rounds > 10);
    remove_tree(AT_FDCWD, dir);
    arena_free(&a);
}

/* Runs last: every test above gave back what it took. */
static void test_files_leaks(void) { CHECK(files_context()->bytes_now == 0); }

#define TESTS_OF_FILES                                                                     \
    X(json_values) X(json_refused) X(json_depth) X(json_prefixes) X(json_numbers)          \
    X(json_write) X(files_map) X(save_commit) X(save_link) X(save_into) X(save_failure)    \
    X(save_killed) X(safetensors_accepted) X(safetensors_lies) X(safetensors_starts)       \
    X(safetensors_damage) X(safetensors_reference_bytes) X(safetensors_padding)            \
    X(safetensors_round_trip) X(safetensors_overflow) X(safetensors_shards)                \
    X(weights_index) X(torchbin_good) X(torchbin_views) X(torchbin_refused)                \
    X(torchbin_damage) X(torchbin_pickles) X(torchbin_integers) X(torchbin_extents)        \
    X(torchbin_archive) X(torchbin_zip64) X(torchbin_directory) X(torchbin_foreign)        \
    X(files_memory) X(files_leaks)
