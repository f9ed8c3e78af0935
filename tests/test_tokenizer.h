/* White-box tests of §13. The oracle of tests/golden/tokens-*.tsv is Hugging Face's library
 * (make_tokens.py); the others check what can be known without it. */

static void put_text(const char *directory, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(text, 1, strlen(text), f) == strlen(text));
    if (f) fclose(f);
}

/* Adds "letter": id, ... for the bytes [0, 256) but those in `without`, ids as they come. */
static i32 letters_json(buffer *b, const char *without) {
    nxt_tokenizer t;
    i32 id = 0;
    alphabet_create(&t);
    for (int byte = 0; byte < 256; byte++)
        for (u32 c = 0; c < ALPHABET; c++) {
            char letter[4];
            if (t.byte_of[c] != byte || (byte && strchr(without, byte))) continue;
            buffer_text(b, id ? ", " : "");
            json_write_text(b, letter, utf8_encode(letter, c));
            buffer_print(b, ": %d", id++);
        }
    return id;
}

/* A tokenizer of the bytes and of `merges`, "a b;ab c;...", which get the ids that follow.
 * members: more of the file, of the model: more of "model". NULL after a failure. */
typedef struct tiny {
    const char *merges, *members, *model, *without;
    bool pairs;
} tiny;

#define BYTE_LEVEL "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}"
#define WITH_NFC "\"normalizer\": {\"type\": \"NFC\"}, " BYTE_LEVEL

static void tiny_json(buffer *b, const tiny *o) {
    buffer merges = {.cx = b->cx};
    buffer_print(b, "{%s, \"model\": {%s\"vocab\": {", o->members ? o->members : BYTE_LEVEL,
                 o->model ? o->model : "");
    i32 id = letters_json(b, o->without ? o->without : "");
    for (const char *m = o->merges ? o->merges : ""; *m;) {
        int n = (int)strcspn(m, ";"), left = (int)strcspn(m, " ;"), right = n - left - (left < n);
        buffer_print(b, ", \"%.*s%.*s\": %d", left, m, right, m + n - right, id++);
        buffer_text(&merges, merges.n ? ", " : "");
        if (o->pairs)
            buffer_print(&merges, "[\"%.*s\", \"%.*s\"]", left, m, right, m + n - right);
        else buffer_print(&merges, "\"%.*s\"", n, m);
        m += n + (m[n] == ';');
    }
    buffer_print(b, "}, \"merges\": [%s]}}", merges.n ? merges.p : "");
    buffer_free(&merges);
}

static nxt_tokenizer *tiny_load(nxt_context *cx, const tiny *o) {
    nxt_tokenizer *t;
    buffer b = {.cx = cx};
    const char *directory = scratch("tiny");
    tiny_json(&b, o);
    put_text(directory, "tokenizer.json", b.p);
    buffer_free(&b);
    nxt_status status = nxt_tokenizer_load(&t, cx, directory);
    CHECK((status == NXT_OK) == (t != NULL));
    return t;
}

/* Whether a text has these ids, and ends when they are given; both as "1 2 3". */
static bool gives_n(nxt_tokenizer *t, const char *text, size_t n, const char *ids,
                    const char *ends) {
    int32_t got[512];
    size_t end[512], count = 0;
    if (nxt_encode(t, text, n, got, end, COUNT(got), &count) != NXT_OK) return false;
    bool same = count <= COUNT(got);
    for (size_t i = 0; same && i < count; i++) {
        char *next;
        same = strtol(ids, &next, 10) == got[i] && next != ids;
        ids = next;
        if (!ends) continue;
        same = same && strtoul(ends, &next, 10) == end[i] && next != ends;
        ends = next;
    }
    same = same && !ids[strspn(ids, " ")];
    if (same) return true;
    printf("  \"%s\" gives", text);
    for (size_t i = 0; i < count && i < COUNT(got); i++) printf(" %d@%zu", got[i], end[i]);
    printf("\n");
    return false;
}

static bool gives(nxt_tokenizer *t, const char *text, const char *ids) {
    return gives_n(t, text, strlen(text), ids, NULL);
}

static void test_tokenizer_merges(void) {
    nxt_context *cx = test_context();
    const char *merges = "l o;lo w;b c;a b;a a;aa aa;\xc4\xa0 lo"; /* U+0120 is a space */
    for (int pairs = 0; pairs < 2; pairs++) {
        nxt_tokenizer *t = tiny_load(cx, &(tiny){.merges = merges, .pairs = pairs});
        CHECK(t != NULL);
        CHECK(gives(t, "lowlo", "257 256"));
        CHECK(gives_n(t, "lowlow lo", 9, "257 257 262", "3 6 9"));
        CHECK(gives(t, "abc", "97 258"));      /* the pair learnt first, not the leftmost */
        CHECK(gives(t, "ab", "259"));
        CHECK(gives(t, "aaa", "260 97"));      /* the leftmost of equals */
        CHECK(gives(t, "aaaaaaa", "261 260 97"));
        CHECK(gives(t, "", ""));
        CHECK(nxt_token_id(t, " lo") == 262 && nxt_token_id(t, "low") == 257);
        CHECK(nxt_token_id(t, "lowl") == -1 && nxt_token_id(t, "") == -1);
        CHECK(nxt_tokenizer_size(t) == 263 && nxt_tokenizer_eos(t) == -1);
        nxt_tokenizer_destroy(t);
    }
    /* "abc" is a token that its merges do not reach, unless they are ignored */
    nxt_tokenizer *t = tiny_load(cx, &(tiny){.merges = "b c;a b;ab c"});
    CHECK(gives(t, "abc", "97 256") && gives(t, "ab", "257"));
    nxt_tokenizer_destroy(t);
    t = tiny_load(cx, &(tiny){.merges = "b c;a b;ab c", .model = "\"ignore_merges\": true, "});
    CHECK(gives(t, "abc", "258") && gives(t, "ab", "257") && gives(t, "bca", "256 97"));
    nxt_tokenizer_destroy(t);
    t = tiny_load(cx, &(tiny){.merges = "a b;#version: 1;b c", .model = "\"type\": \"BPE\", "});
    CHECK(gives(t, "abc", "256 99") && gives(t, "bc", "258")); /* not a merge: a comment */
    nxt_tokenizer_destroy(t);
    nxt_context_destroy(cx);
}

/* Merges in the plainest way: look at all pairs, merge the best, begin again. */
static i64 merge_plainly(const nxt_tokenizer *t, const u8 *p, i64 n, i32 *id) {
    for (i64 i = 0; i < n; i++) id[i] = t->byte_id[p[i]];
    for (;;) {
        i64 best = -1;
        u32 lowest = NONE;
        for (i64 i = 0; i + 1 < n; i++) {
            u32 rank = pair_find(&t->merges, (u32)id[i], (u32)id[i + 1])->value;
            if (rank < lowest) lowest = rank, best = i;
        }
        if (best < 0) return n;
        id[best] = t->merged[lowest];
        memmove(id + best + 1, id + best + 2, (size_t)(n - best - 2) * sizeof *id);
        n--;
    }
}

/* The three ways to merge agree on random words under random merges. */
static void test_tokenizer_words(void) {
    nxt_context *cx = test_context();
    for (u64 seed = 0; seed < 40; seed++) {
        char part[400][16], merges[8000] = "";
        i64 parts = 0, used = 0;
        for (; parts < 3; parts++) snprintf(part[parts], 16, "%c", 'a' + (int)parts);
        for (u64 k = 0; parts < 60; k++) {
            const char *x = part[mix64(mix64(seed) + 2 * k) % (u64)parts];
            const char *y = part[mix64(mix64(seed) + 2 * k + 1) % (u64)parts];
            bool known = strlen(x) + strlen(y) > 12;
            char both[32];
            snprintf(both, sizeof both, "%.15s%.15s", x, y);
            for (i64 i = 0; i < parts; i++) known |= !strcmp(both, part[i]);
            if (known) continue;
            used += snprintf(merges + used, sizeof merges - (size_t)used, "%s%s %s",
                             used ? ";" : "", x, y);
            memcpy(part[parts++], both, 16);
        }
        nxt_tokenizer *t = tiny_load(cx, &(tiny){.merges = merges});
        token_list list = {.cx = cx};
        t->out = &list, t->want_ends = true;
        for (u64 k = 0; k < 300; k++) {
            u8 p[200];
            i32 plain[200], quick[200];
            i64 n = 1 + (i64)(mix64(seed << 20 | k) % (k < 200 ? SHORT : 200)), end = 0;
            for (i64 i = 0; i < n; i++) p[i] = (u8)('a' + mix64(k << 10 | (u64)i) % 3);
            i64 count = merge_plainly(t, p, n, plain);
            list.n = 0;
            CHECK(reserve(t, n) == NXT_OK && merge_long(t, p, n, 5) == NXT_OK);
            CHECK(list.n == count && !memcmp(list.id, plain, (size_t)count * sizeof *plain));
            for (i64 i = 0; i < count; i++) {
                end += t->token[plain[i]].length;
                CHECK(list.end[i] == 5 + end);
            }
            CHECK(end == n);
            if (n > SHORT) continue;
            CHECK(merge_short(t, p, n, quick) == count);
            CHECK(!memcmp(quick, plain, (size_t)count * sizeof *plain));
        }
        mem_drop(cx, list.id);
        mem_drop(cx, list.end);
        nxt_tokenizer_destroy(t);
    }
    nxt_context_destroy(cx);
}

static void test_tokenizer_split(void) {
    static const char *const rows[] = { /* | is where words end */
        "", "a|", "a| b|", " a| b|", " | a|", "a| |", "a|  |", "  | a|   | b|\n|", "a| |\n|b|",
        "a|\n|\n|b|", "\t|\t|a|", " |\t|a|", "I|'m| you|'re| he|'ll| she|'d| we|'ve|",
        "it|'s| don|'t|", "I|'|M| YOU|'|RE|", "'s|'s|", " '|s|", "''|s|", "'re|'re|", "'|", "'|r|",
        "'|l|", "'ll| '|ll|",
        "a|12|b| 3|!?| !?|", "x| (|a|+|b|)|", "x|\xc2\xb2|", /* superscript two is a number */
        "\xe4\xb8\xad\xe6\x96\x87|\xef\xbc\x8c|\xe5\xad\x97|", "\xe3\x80\x80|a|", "a|\xc2\xa0|b|",
        " |\xc2\xa0|b|", "a|\xcc\x81|b|", "a|\xc2\x85|b|", "a|\x01\x02|", "\xf0\x9f\x98\x80|a|",
        /* not UTF-8: symbols */
        "a|\xff\xfe!|b|", " \xff|", "\xe4\xb8|a|", "\xed\xa0\x80|a|", "\xf4\x90\x80\x80|a|",
        "\xc0\x80|x|",
    };
    nxt_context *cx = test_context();
    nxt_tokenizer *t = tiny_load(cx, &(tiny){0});
    for (i64 k = 0; k < COUNT(rows); k++) {
        char text[128], got[256] = "";
        i64 n = 0, used = 0;
        for (const char *c = rows[k]; *c; c++)
            if (*c != '|') text[n++] = *c;
        for (i64 at = 0, end; at < n; at = end) {
            end = split_gpt2(t, (const u8 *)text, at, n);
            CHECK(end > at && end <= n);
            used += snprintf(got + used, sizeof got - (size_t)used, "%.*s|", (int)(end - at),
                             text + at);
        }
        if (strcmp(got, rows[k])) printf("  %s cut as %s\n", rows[k], got);
        CHECK(!strcmp(got, rows[k]));
    }
    nxt_tokenizer_destroy(t);
    nxt_context_destroy(cx);
}

static void utf8_text(char *out, const u32 *points, i64 n) {
    for (i64 i = 0; i < n && points[i]; i++) out += utf8_encode(out, points[i]);
    *out = 0;
}

/* Cases of normal form C by the rules of UAX 15; both sides end with 0. */
static void test_tokenizer_normal_form(void) {
    static const u32 rows[][2][6] = {
        {{'a'}, {'a'}}, {{0xe9}, {0xe9}}, {{'e', 0x301}, {0xe9}}, {{0x212b}, {0xc5}},
        {{'A', 0x30a}, {0xc5}}, {{0x301}, {0x301}}, {{'q', 0x307, 0x323}, {'q', 0x323, 0x307}},
        {{'d', 0x307, 0x323}, {0x1e0d, 0x307}}, {{0x1e0b, 0x323}, {0x1e0d, 0x307}},
        {{'a', 0x301, 0x301}, {0xe1, 0x301}},         /* blocked by one of its own class */
        {{'a', 0x313, 0x301}, {'a', 0x313, 0x301}},
        {{'a', 0x315, 0x301}, {0xe1, 0x315}},         /* of a lower class: not blocked */
        {{'a', 0x301, 0x315}, {0xe1, 0x315}}, {{0x958}, {0x915, 0x93c}}, /* exclusion */
        {{0x344}, {0x308, 0x301}}, {{0xf900}, {0x8c48}}, {{0x2f800}, {0x4e3d}},
        {{0x1112, 0x1161, 0x11ab}, {0xd55c}}, {{0xac00, 0x11a8}, {0xac01}},
        {{0xac01, 0x11a8}, {0xac01, 0x11a8}}, {{0x1100, 0x1161, 0x11a7}, {0xac00, 0x11a7}},
        {{0xac00, 0x11c3}, {0xac00, 0x11c3}}, {{0x1100, 0x1176}, {0x1100, 0x1176}},
        {{0x1f82}, {0x1f82}}, {{0x3b1, 0x313, 0x300, 0x345}, {0x1f82}},
        {{0x9c7, 0x9be}, {0x9cb}}, {{0x11099, 0x110ba}, {0x1109a}},
        {{0x1d15e}, {0x1d157, 0x1d165}}, {{0x1e9b, 0x323}, {0x1e9b, 0x323}},
        {{'x', 0x1ab0, 0x323}, {'x', 0x323, 0x1ab0}},
        {{'x', 0x8ca, 0x323}, {'x', 0x8ca, 0x323}},   /* newer than 9.0: no mark to the library */
    };
    nxt_context *cx = test_context();
    nxt_tokenizer *t = tiny_load(cx, &(tiny){.members = WITH_NFC});
    for (i64 k = 0; k < COUNT(rows); k++) {
        char around[3][96], from[64], to[64];
        utf8_text(from, rows[k][0], 6);
        utf8_text(to, rows[k][1], 6);
        for (int turn = 0; turn < 2; turn++) { /* alone, and between other text */
            snprintf(around[0], 96, turn ? "xy\xff%s\n\xe4\xb8\xad" : "%s", from);
            snprintf(around[1], 96, turn ? "xy\xff%s\n\xe4\xb8\xad" : "%s", to);
            const u8 *p = (const u8 *)around[0];
            i64 n = (i64)strlen(around[0]);
            CHECK(normalise(t, &p, &n) == NXT_OK);
            bool same = n == (i64)strlen(around[1]) && !memcmp(p, around[1], (size_t)n);
            if (!same) printf("  row %d: %.*s\n", (int)k, (int)n, (const char *)p);
            CHECK(same);
            CHECK((p == (const u8 *)around[0]) == !strcmp(from, to) || t->changes == 0);
            if (n) memcpy(around[2], p, (size_t)n);
            p = (const u8 *)around[2];
            CHECK(normalise(t, &p, &n) == NXT_OK && t->changes == 0); /* done is done */
        }
    }
    /* ends are bytes of the text that came in: e + mark (3 bytes) became 2 bytes */
    CHECK(gives_n(t, "ae\xcc\x81z", 5, "97 195 169 122", "1 4 4 5"));
    CHECK(gives_n(t, "e\xcc\x81" "e\xcc\x81", 6, "195 169 195 169", "3 3 6 6"));
    CHECK(gives_n(t, "\xe2\x84\xab", 3, "195 133", "3 3"));
    CHECK(gives_n(t, "\xf0\xaf\xa0\x80-", 5, "228 184 189 45", "4 4 4 5")); /* 4 bytes to 3 */
    nxt_tokenizer_destroy(t);
    nxt_context_destroy(cx);
}

#define ADDED(list) BYTE_LEVEL ", \"added_tokens\": [" list "]"

static void test_tokenizer_added(void) {
    nxt_context *cx = test_context();
    nxt_tokenizer *t = tiny_load(cx, &(tiny){.merges = "a b", .members = ADDED(
        "{\"id\": 257, \"content\": \"<x>\", \"special\": true},"
        "{\"id\": 258, \"content\": \"<x><x>\"}, {\"id\": 256, \"content\": \"ab\"},"
        "{\"id\": 259, \"content\": \"  \", \"normalized\": true}")});
    CHECK(gives_n(t, "a<x>b", 5, "97 257 98", "1 4 5"));
    CHECK(gives(t, "<x><x><x>", "258 257")); /* the longest */
    CHECK(gives(t, "<x", "60 120") && gives(t, "xab", "120 256"));
    CHECK(gives_n(t, "     ", 5, "259 259 32", "2 4 5"));
    CHECK(nxt_token_is_special(t, 257) && !nxt_token_is_special(t, 258));
    CHECK(!nxt_token_is_special(t, -1) && !nxt_token_is_special(t, 1 << 30));
    CHECK(nxt_token_id(t, "<x>") == 257 && nxt_token_id(t, "  ") == 259);
    CHECK(nxt_tokenizer_size(t) == 260);
    nxt_tokenizer_destroy(t);

    t = tiny_load(cx, &(tiny){.members = ADDED( /* ids are given anew, whatever the file says */
        "{\"id\": 900, \"content\": \"<l>\", \"lstrip\": true},"
        "{\"id\": 901, \"content\": \"<r>\", \"rstrip\": true},"
        "{\"id\": 902, \"content\": \"<w>\", \"single_word\": true},"
        "{\"id\": 903, \"content\": \"\\t\"}, {\"id\": 904, \"content\": \"\"},"
        "{\"id\": 905, \"content\": \"\\n\", \"lstrip\": true},"
        "{\"content\": \"<d>\", \"lstrip\": true}, {\"content\": \"<d>\"}")});
    CHECK(gives_n(t, "a \f<l> b", 8, "97 256 32 98", "1 6 7 8"));
    CHECK(gives_n(t, "a <r> \xe3\x80\x80 b", 11, "97 32 257 98", "1 2 10 11"));
    CHECK(gives_n(t, "<r> <l>", 7, "257 256", "4 7"));
    CHECK(gives(t, "a<w> <w>b (<w>)", "97 60 119 62 32 60 119 62 98 32 40 258 41"));
    CHECK(gives(t, "\xc3\xa9<w>", "195 169 60 119 62")); /* a letter */
    CHECK(gives(t, "<r> \t b", "257 259 32 98"));        /* overlap */
    CHECK(gives(t, "<r> \n b \n", "257 98 260"));        /* nothing is left for the first \n */
    CHECK(gives(t, "a <d>", "97 32 261"));               /* the last entry counts */
    nxt_tokenizer_destroy(t);

    /* raw ones see the text as it is, normalised ones its normal form, as their own texts do */
    t = tiny_load(cx, &(tiny){.members = "\"normalizer\": {\"type\": \"NFC\"}, " ADDED(
        "{\"content\": \"e\\u0301\", \"normalized\": true},"
        "{\"content\": \"o\\u0301\", \"normalized\": false}")});
    CHECK(gives(t, "\xc3\xa9", "256") && gives_n(t, "ae\xcc\x81", 4, "97 256", "1 4"));
    CHECK(gives(t, "\xc3\xb3", "195 179") && gives(t, "o\xcc\x81", "257"));
    nxt_tokenizer_destroy(t);

    t = tiny_load(cx, &(tiny){.merges = "\xc4\xa0 a", .members =
        "\"pre_tokenizer\": {\"type\": \"Sequence\","
        " \"pretokenizers\": [{\"type\": \"ByteLevel\"}]},"
        "\"added_tokens\": [{\"content\": \"<x>\"}]"}); /* add_prefix_space: true by default */
    CHECK(gives_n(t, "ab<x>a a", 8, "256 98 257 256 256", "1 2 5 6 8"));
    CHECK(gives_n(t, "\na", 2, "32 10 97", "0 1 2") && gives(t, " a", "256") && gives(t, "", ""));
    nxt_tokenizer_destroy(t);
    nxt_context_destroy(cx);
}

/* Any bytes come back, with or without tokens of two and more bytes. */
static void test_tokenizer_bytes(void) {
    nxt_context *cx = test_context();
    static const char *const members[] = {BYTE_LEVEL, WITH_NFC, ADDED("{\"content\": \"ab\"}")};
    for (int m = 0; m < 3; m++) {
        nxt_tokenizer *t = tiny_load(
            cx, &(tiny){.merges = "a b;\xc4\xa0 a;\xc3\xbf \xc3\xbf;ab ab", .members = members[m]});
        for (u64 k = 0; k < 2000; k++) {
            char text[64], back[256];
            int32_t id[64];
            size_t end[64], n = mix64(k) % 64, count, bytes;
            for (size_t i = 0; i < n; i++) {
                u64 r = mix64(k << 8 | i);
                text[i] = r % 5 ? "ab \xff\xfe"[r / 8 % 5] : (char)(r / 8);
            }
            CHECK(nxt_encode(t, text, n, id, end, 64, &count) == NXT_OK && count <= n);
            CHECK(nxt_decode(t, id, count, back, sizeof back, &bytes) == NXT_OK);
            CHECK(m == 1 || (bytes == n && !memcmp(back, text, n)));
            for (size_t i = 1; i < count; i++) CHECK(end[i] >= end[i - 1]);
            CHECK(n == 0 ? count == 0 : end[count - 1] == n);
            size_t half = 0;
            CHECK(nxt_decode(t, id, count, back, 3, &half) == NXT_OK && half == bytes);
        }
        nxt_tokenizer_destroy(t);
    }
    /* bytes without a token are dropped, or become the unknown token, one each or one a run */
    nxt_tokenizer *t = tiny_load(cx, &(tiny){.merges = "a b", .without = "q"});
    CHECK(gives_n(t, "aqqb", 4, "255", "4"));
    nxt_tokenizer_destroy(t);
    t = tiny_load(cx, &(tiny){.without = "q", .model = "\"unk_token\": \"!\", "});
    CHECK(gives_n(t, "aqqb", 4, "97 33 33 98", "1 2 3 4"));
    nxt_tokenizer_destroy(t);
    t = tiny_load(cx, &(tiny){.without = "q",
                              .model = "\"unk_token\": \"!\", \"fuse_unk\": true, "});
    CHECK(gives_n(t, "aqqb", 4, "97 33 98", "1 3 4"));
    nxt_tokenizer_destroy(t);
    nxt_context_destroy(cx);
}

static bool refuses(nxt_context *cx, const tiny *o, nxt_status expected, const char *words) {
    nxt_tokenizer *t;
    buffer b = {.cx = cx};
    const char *directory = scratch("refused");
    tiny_json(&b, o);
    put_text(directory, "tokenizer.json", b.p);
    buffer_free(&b);
    nxt_status status = nxt_tokenizer_load(&t, cx, directory);
    if (status == expected && !t && strstr(nxt_error_message(cx), words)) return true;
    printf("  %s: %s\n", nxt_status_name(status), nxt_error_message(cx));
    nxt_tokenizer_destroy(t);
    return false;
}

static void test_tokenizer_refused(void) {
    nxt_context *cx = test_context();
    nxt_tokenizer *t;
    const char *directory = scratch("nothing");
    CHECK(nxt_tokenizer_load(&t, cx, directory) == NXT_IO && !t);
    CHECK(strstr(nxt_error_message(cx), "vocab.json"));
    CHECK(nxt_tokenizer_load(&t, cx, NULL) == NXT_ARGUMENT && !t);
    static const char *const broken[] = {
        "", "[", "{}", "[]", "{\"model\": 3}", "{\"pre_tokenizer\": 1}", "{" BYTE_LEVEL "}",
        "{" BYTE_LEVEL ", \"model\": {\"vocab\": {}}}"};
    for (i64 i = 0; i < COUNT(broken); i++) {
        put_text(directory, "tokenizer.json", broken[i]);
        nxt_status status = nxt_tokenizer_load(&t, cx, directory);
        CHECK((status == NXT_FORMAT || status == NXT_UNSUPPORTED) && !t);
    }
    const nxt_status no = NXT_UNSUPPORTED, bad = NXT_FORMAT;
    CHECK(refuses(cx, &(tiny){.model = "\"type\": \"WordPiece\", "}, no, "model WordPiece"));
    CHECK(refuses(cx, &(tiny){.model = "\"dropout\": 0.1, "}, no, "dropout"));
    CHECK(refuses(cx, &(tiny){.model = "\"byte_fallback\": true, "}, no, "byte_fallback"));
    CHECK(refuses(cx, &(tiny){.model = "\"end_of_word_suffix\": \"</w>\", "}, no, "end_of_word"));
    CHECK(refuses(cx, &(tiny){.members = "\"pre_tokenizer\": null"}, no, "pre-tokenizer null"));
    CHECK(refuses(cx, &(tiny){.members = "\"pre_tokenizer\": {\"type\": \"Metaspace\", "
                  "\"replacement\": \"_\"}"}, no, "replacement _"));
    CHECK(refuses(cx, &(tiny){.members = "\"pre_tokenizer\": {\"type\": \"Digits\"}"}, no,
                  "pre-tokenizer Digits"));
    CHECK(refuses(cx, &(tiny){.members = "\"pre_tokenizer\": {\"type\": \"Sequence\","
                  "\"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a+\"}}, "
                  "{\"type\": \"ByteLevel\"}]}"}, no, "pattern a+"));
    CHECK(refuses(cx, &(tiny){.members = "\"normalizer\": {\"type\": \"Lowercase\"}, "
                  BYTE_LEVEL}, no, "normalizer Lowercase"));
    CHECK(refuses(cx, &(tiny){.merges = "a b;x yz"}, bad, "merge 2"));
    CHECK(refuses(cx, &(tiny){.merges = "a b;nospace"}, bad, "merge 2"));
    CHECK(refuses(cx, &(tiny){.members = ADDED("{\"id\": 3}")}, bad, "without content"));
    put_text(directory, "tokenizer.json",
             "{" BYTE_LEVEL ", \"model\": {\"vocab\": {\"a\": 1, \"b\": 1}, \"merges\": []}}");
    CHECK(nxt_tokenizer_load(&t, cx, directory) == NXT_FORMAT && !t);
    CHECK(strstr(nxt_error_message(cx), "two tokens have the id 1"));
    put_text(directory, "tokenizer.json",
             "{" BYTE_LEVEL ", \"model\": {\"vocab\": {\"a\": 99999999}, \"merges\": []}}");
    CHECK(nxt_tokenizer_load(&t, cx, directory) == NXT_FORMAT && !t);
    nxt_context_destroy(cx);
}

/* GPT-2's two files, and the special tokens that other files name. */
static void test_tokenizer_files(void) {
    nxt_context *cx = test_context();
    nxt_tokenizer *t;
    const char *directory = scratch("gpt2");
    buffer b = {.cx = cx};
    buffer_text(&b, "{");
    (void)letters_json(&b, "");
    buffer_text(&b, ", \"ab\": 256, \"abc\": 257, \"<|endoftext|>\": 258}\n");
    put_text(directory, "vocab.json", b.p);
    put_text(directory, "merges.txt", "#version: 0.2\r\na b\r\nab c");
    CHECK(OK(cx, nxt_tokenizer_load(&t, cx, directory)));
    CHECK(gives(t, "abc ab<|endoftext|>", "257 32 256 258"));
    CHECK(nxt_tokenizer_eos(t) == 258 && nxt_tokenizer_bos(t) == 258);
    CHECK(nxt_token_is_special(t, 258) && nxt_tokenizer_size(t) == 259);
    nxt_tokenizer_destroy(t);
    put_text(directory, "special_tokens_map.json",
             "{\"eos_token\": \"ab\", \"bos_token\": {\"content\": \"abc\", \"lstrip\": false}}");
    CHECK(OK(cx, nxt_tokenizer_load(&t, cx, directory)));
    CHECK(nxt_tokenizer_eos(t) == 256 && nxt_tokenizer_bos(t) == 257);
    nxt_tokenizer_destroy(t);
    put_text(directory, "tokenizer_config.json",
             "{\"eos_token\": {\"content\": \"a\"}, \"bos_token\": null}");
    CHECK(OK(cx, nxt_tokenizer_load(&t, cx, directory)));
    CHECK(nxt_tokenizer_eos(t) == 'a' && nxt_tokenizer_bos(t) == 257);
    nxt_tokenizer_destroy(t);
    put_text(directory, "merges.txt", "a b\n\nab c\n");
    CHECK(nxt_tokenizer_load(&t, cx, directory) == NXT_FORMAT);
    put_text(directory, "merges.txt", "a b\n");
    put_text(directory, "vocab.json", "{\"a\": 0,");
    CHECK(nxt_tokenizer_load(&t, cx, directory) == NXT_FORMAT);
    CHECK(strstr(nxt_error_message(cx), "vocab.json"));
    buffer_free(&b);
    nxt_context_destroy(cx);
}

/* A file of `json text \t ids` lines, against the tokenizer in a directory. */
static void check_tokens(const char *name, const char *directory) {
    nxt_context *cx = test_context();
    nxt_tokenizer *t;
    buffer b = {.cx = cx};
    char path[256];
    i64 rows = 0;
    snprintf(path, sizeof path, "tests/golden/tokens-%s.tsv", name);
    CHECK(OK(cx, file_read(cx, path, 1 << 20, &b)));
    CHECK(OK(cx, nxt_tokenizer_load(&t, cx, directory)));
    for (char *line = b.p, *end; t && line && *line; line = end + 1) {
        arena a = {.cx = cx};
        json *text = NULL;
        char *tab = strchr(line, '\t');
        end = strchr(line, '\n');
        CHECK(end != NULL);
        if (!end) break;
        *end = 0;
        if (*line == '#') continue;
        CHECK(tab && OK(cx, json_parse(&a, path, line, tab - line, &text)));
        CHECK(gives_n(t, text->text, (size_t)text->length, tab + 1, NULL));
        rows++;
        arena_free(&a);
    }
    CHECK(rows > 100);
    nxt_tokenizer_destroy(t);
    buffer_free(&b);
    nxt_context_destroy(cx);
}

static void test_tokenizer_pico(void) { check_tokens("pico", "data/pico-neox"); }

/* The forms of Llama and Qwen, in small tokenizers of our own (make_small_tokenizers.py). */
static void test_tokenizer_forms(void) {
    static const char *const names[] = {"spm", "metaspace", "llama3", "qwen2"};
    for (int i = 0; i < 4; i++) {
        char directory[64];
        snprintf(directory, sizeof directory, "tests/golden/tokenizers/%s", names[i]);
        check_tokens(names[i], directory);
    }
}

static void test_tokenizer_golden(void) {
    static const char *const names[] = {"gpt-neox-20b", "gpt2"};
    if (!test_data()) SKIP("NEOXTUNE_TEST_DATA is not set");
    for (int i = 0; i < 2; i++) {
        char directory[512];
        snprintf(directory, sizeof directory, "%s/tokenizers/%s", test_data(), names[i]);
        check_tokens(names[i], directory);
    }
}

/* llama.cpp's cases, which were made by yet another implementation. */
static void check_vectors(nxt_context *cx, const char *vectors, const char *tokenizer) {
    static const char mark[] = "\n__ggml_vocab_test__\n";
    nxt_tokenizer *t;
    buffer texts = {.cx = cx}, ids = texts;
    char path[512];
    i64 rows = 0;
    snprintf(path, sizeof path, "%s/tokenizer-vectors/ggml-vocab-%s.gguf.inp", test_data(), vectors);
    CHECK(OK(cx, file_read(cx, path, 1 << 20, &texts)));
    memcpy(path + strlen(path) - 3, "out", 3);
    CHECK(OK(cx, file_read(cx, path, 1 << 20, &ids)));
    snprintf(path, sizeof path, "%s/tokenizers/%s", test_data(), tokenizer);
    CHECK(OK(cx, nxt_tokenizer_load(&t, cx, path)));
    char *expected = ids.p, *end;
    for (char *text = texts.p; (end = strstr(text, mark)) && expected; rows++) {
        expected[strcspn(expected, "\n")] = 0;
        CHECK(gives_n(t, text, (size_t)(end - text), expected, NULL));
        text = end + sizeof mark - 1;
        expected += strlen(expected) + 1;
    }
    CHECK(rows == 46);
    nxt_tokenizer_destroy(t);
    buffer_free(&texts);
    buffer_free(&ids);
}

static void test_tokenizer_vectors(void) {
    if (!test_data()) SKIP("NEOXTUNE_TEST_DATA is not set");
    nxt_context *cx = test_context();
    check_vectors(cx, "gpt-2", "gpt2");
    check_vectors(cx, "llama-spm", "llama-spm");
    nxt_context_destroy(cx);
}

/* A megabyte without a cut: with anything quadratic these would take minutes. */
static void test_tokenizer_linear(void) {
    nxt_context *cx = test_context();
    const i64 n = quick_run ? 100000 : 1000000;
    nxt_tokenizer *t = tiny_load(cx, &(tiny){.merges = "a a;aa aa;aaaa aaaa;a b;b a;ab a;ab ab",
        .members = "\"normalizer\": {\"type\": \"NFC\"}, " ADDED(
        "{\"content\": \"\\t\", \"rstrip\": true}, {\"content\": \"\\n\", \"lstrip\": true}")});
    char *text;
    CHECK(OK(cx, mem_get(cx, &text, n, 1)));
    for (int kind = 0; kind < 5; kind++) {
        size_t count;
        for (i64 i = 0; i < n; i++) {
            u64 r = mix64((u64)i);
            text[i] = kind == 0 ? 'a' : kind == 1 ? (r & 1 ? 'a' : 'b') : kind == 2 ? '\t' : '\n';
            if (kind == 4) text[i] = i % 2 == 0 ? '\xcc' : r & 1 ? '\x81' : '\xa3'; /* marks */
        }
        CHECK(OK(cx, nxt_encode(t, text, (size_t)n, NULL, NULL, 0, &count)));
        CHECK(kind != 0 || count == (size_t)(n / 8));
    }
    mem_drop(cx, text);
    nxt_tokenizer_destroy(t);
    nxt_context_destroy(cx);
}

static struct {
    i64 calls, fail_at, held;
} tokenizer_memory;

static void *tokenizer_allocate(void *user, size_t bytes) {
    (void)user;
    if (++tokenizer_memory.calls == tokenizer_memory.fail_at) return NULL;
    tokenizer_memory.held++;
    return malloc(bytes);
}

static void tokenizer_release(void *user, void *memory, size_t bytes) {
    (void)user, (void)bytes;
    tokenizer_memory.held--;
    free(memory);
}

/* Each allocation of a load and of an encode fails once: an error, nothing lost. */
static void test_tokenizer_memory(void) {
    nxt_context *plain = test_context(), *cx;
    nxt_context_config config = nxt_context_config_default();
    config.threads = 1, config.allocate = tokenizer_allocate, config.release = tokenizer_release;
    nxt_tokenizer_destroy(tiny_load(plain, &(tiny){.merges = "a a;aa aa", .members =
        "\"normalizer\": {\"type\": \"NFC\"}, " ADDED("{\"content\": \"<x>\"}")}));
    nxt_context_destroy(plain);
    char path[300];
    snprintf(path, sizeof path, "%s", scratch("memory"));
    tokenizer_memory.fail_at = 0;
    CHECK(nxt_context_create(&cx, &config) == NXT_OK);
    buffer b = {.cx = cx};
    tiny_json(&b, &(tiny){.merges = "a a;aa aa", .members =
        "\"normalizer\": {\"type\": \"NFC\"}, " ADDED("{\"content\": \"<x>\"}")});
    put_text(path, "tokenizer.json", b.p);
    buffer_free(&b);
    bool done = false;
    for (i64 at = 1; !done && at < 500; at++) {
        nxt_tokenizer *t;
        const i64 held = tokenizer_memory.held;
        char text[200];
        int32_t id[300];
        size_t count, end[300];
        memset(text, 'a', sizeof text);
        memcpy(text + 150, "e\xcc\x81<x>", 6);
        tokenizer_memory.calls = 0, tokenizer_memory.fail_at = at;
        nxt_status status = nxt_tokenizer_load(&t, cx, path);
        CHECK((status == NXT_OK) == (t != NULL));
        if (status == NXT_OK) status = nxt_encode(t, text, sizeof text, id, end, 300, &count);
        done = tokenizer_memory.calls < at;
        CHECK(done ? status == NXT_OK : status == NXT_MEMORY);
        nxt_tokenizer_destroy(t);
        CHECK(tokenizer_memory.held == held);
    }
    CHECK(done);
    tokenizer_memory.fail_at = 0;
    nxt_context_destroy(cx);
}
