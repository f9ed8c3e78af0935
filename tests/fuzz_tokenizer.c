/* libFuzzer on §13. The first byte chooses: even, the rest is a tokenizer.json, which must be
 * refused with a sentence or load and encode; odd, the rest is a text, whose bytes must come
 * back, and whose normal form must stay what it is.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -o fuzz_tokenizer \
 *         tests/fuzz_tokenizer.c -lm
 *     ./fuzz_tokenizer -max_len=4096 CORPUS
 *
 * It needs a CORPUS: a zero byte and a tokenizer.json of some words, and an odd byte and a text.
 */
#define NXT_NO_MAIN
#include "../neoxtune.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok) {
    if (!ok) abort();
}

/* A tokenizer without tokens that shares the tables of `base`: to fill them takes too long. */
static nxt_tokenizer *empty(nxt_context *cx, const nxt_tokenizer *base) {
    nxt_tokenizer *t;
    must(mem_zero(cx, &t, 1, sizeof *t) == NXT_OK);
    t->cx = t->memory.cx = t->scratch.cx = t->text.cx = t->prefixed.cx = cx;
    t->unknown = t->eos = t->bos = -1;
    t->property = base->property;
    t->unicode = base->unicode;
    memcpy(t->byte_of, base->byte_of, sizeof t->byte_of);
    must(mem_zero(cx, &t->cache, (i64)1 << CACHE_BITS, sizeof *t->cache) == NXT_OK);
    return t;
}

static nxt_tokenizer *load(nxt_context *cx, const nxt_tokenizer *base, const char *text, i64 n) {
    nxt_tokenizer *t;
    json *root;
    nxt_status status = NXT_OK;
    if (base) t = empty(cx, base);
    else status = tokenizer_create(cx, &t);
    cx->message[0] = 0;
    t->path = "input";
    if (status == NXT_OK) status = json_parse(&t->scratch, "input", text, n, &root);
    if (status == NXT_OK) status = load_tokenizer(t, root);
    arena_free(&t->scratch);
    if (status == NXT_OK) return t;
    must(cx->message[0]);
    nxt_tokenizer_destroy(t);
    return NULL;
}

/* All bytes are tokens, and some pairs of what this fuzzer's texts may hold. */
static nxt_tokenizer *builtin(nxt_context *cx, bool form_c) {
    static const char *const merges[] = {"a a", "aa aa", "\xc3\x8c \xc4\xa3", "\xc4\xa0 a",
                                         "e \xc3\x8c"};
    nxt_tokenizer letters;
    buffer b = {.cx = cx};
    alphabet_create(&letters);
    buffer_print(&b, "{\"normalizer\": %s, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                 "\"add_prefix_space\": false}, \"model\": {\"vocab\": {\"\": 256",
                 form_c ? "{\"type\": \"NFC\"}" : "null");
    for (u32 c = 0; c < ALPHABET; c++) {
        char letter[4];
        if (letters.byte_of[c] < 0) continue;
        buffer_text(&b, ", ");
        json_write_text(&b, letter, utf8_encode(letter, c));
        buffer_print(&b, ": %d", letters.byte_of[c]);
    }
    for (int i = 0; i < COUNT(merges); i++) {
        int left = (int)strcspn(merges[i], " ");
        buffer_print(&b, ", \"%.*s%s\": %d", left, merges[i], merges[i] + left + 1, 257 + i);
    }
    buffer_text(&b, "}, \"merges\": [");
    for (int i = 0; i < COUNT(merges); i++)
        buffer_print(&b, "%s\"%s\"", i ? ", " : "", merges[i]);
    buffer_text(&b, "]}}");
    nxt_tokenizer *t = load(cx, NULL, b.p, b.n);
    must(t != NULL);
    buffer_free(&b);
    return t;
}

/* Encodes and decodes; the text that comes back is left in `back`. */
static void round_trip(nxt_tokenizer *t, const char *text, i64 n, buffer *back) {
    token_list list = {.cx = t->cx};
    must(encode(t, text, n, true, &list) == NXT_OK);
    for (i64 i = 0; i < list.n; i++) {
        const u8 *p;
        i64 bytes;
        must(list.end[i] >= (i ? list.end[i - 1] : 0) && list.end[i] <= n);
        decode_bytes(t, list.id[i], &p, &bytes);
        buffer_add(back, p, bytes);
    }
    must(list.n ? list.end[list.n - 1] == n : n == 0);
    mem_drop(t->cx, list.id);
    mem_drop(t->cx, list.end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static nxt_context cx;
    static nxt_tokenizer *plain, *normal;
    if (!plain) {
        cx.config.allocate = default_allocate;
        cx.config.release = default_release;
        plain = builtin(&cx, false);
        normal = builtin(&cx, true);
    }
    if (size == 0) return 0;
    const char *text = (const char *)data + 1;
    i64 n = (i64)size - 1;
    if (*data % 2 == 0) {
        nxt_tokenizer *t = load(&cx, plain, text, n);
        token_list list = {.cx = &cx};
        if (t) must(encode(t, text, n, true, &list) == NXT_OK);
        for (i64 i = 0; i < list.n; i++)
            must(list.id[i] >= 0 && list.id[i] < t->size && list.end[i] >= 0 && list.end[i] <= n);
        mem_drop(&cx, list.id);
        mem_drop(&cx, list.end);
        nxt_tokenizer_destroy(t);
        return 0;
    }
    buffer once = {.cx = &cx}, twice = once;
    round_trip(plain, text, n, &once);
    must(once.n == n && (n == 0 || !memcmp(once.p, text, (size_t)n)));
    once.n = 0;
    round_trip(normal, text, n, &once);
    round_trip(normal, once.p ? once.p : "", once.n, &twice);
    must(once.n == twice.n && (once.n == 0 || !memcmp(once.p, twice.p, (size_t)once.n)));
    buffer_free(&once);
    buffer_free(&twice);
    return 0;
}
