/* Drives the tokenizer over pipes, for tests/fuzz_tokenizers.py. Numbers are 32-bit, in the
 * machine's byte order. In: texts, each after its length. Out, for each: the number of ids,
 * the ids, as many ends, the length of the decoded text, the decoded text.
 *
 *     cc -O2 -o tokenize_driver tests/tokenize_driver.c neoxtune.c -DNXT_NO_MAIN -lm -pthread
 */
#include "../neoxtune.h"

#include <stdio.h>
#include <stdlib.h>

static int put(const void *p, size_t bytes) { return fwrite(p, 1, bytes, stdout) == bytes; }

static int answer(nxt_tokenizer *tok, const char *text, uint32_t n) {
    size_t count, again, bytes;
    if (nxt_encode(tok, text, n, NULL, NULL, 0, &count)) return 0;
    int32_t *ids = malloc(count * sizeof *ids + 1);
    size_t *ends = malloc(count * sizeof *ends + 1);
    char *out = NULL;
    int ok = ids && ends && !nxt_encode(tok, text, n, ids, ends, count, &again)
             && again == count && !nxt_decode(tok, ids, count, NULL, 0, &bytes)
             && (out = malloc(bytes + 1)) && !nxt_decode(tok, ids, count, out, bytes, &again);
    uint32_t number = (uint32_t)count;
    ok = ok && put(&number, 4) && put(ids, count * 4);
    for (size_t i = 0; ok && i < count; i++) {
        number = (uint32_t)ends[i];
        ok = put(&number, 4);
    }
    number = (uint32_t)(ok ? bytes : 0);
    ok = ok && put(&number, 4) && put(out, number);
    free(ids);
    free(ends);
    free(out);
    return ok;
}

int main(int argc, char **argv) {
    nxt_context *cx;
    nxt_tokenizer *tok;
    uint32_t n;
    if (argc != 2 || nxt_context_create(&cx, NULL)) return 2;
    if (nxt_tokenizer_load(&tok, cx, argv[1])) {
        fprintf(stderr, "%s\n", nxt_error_message(cx));
        nxt_context_destroy(cx);
        return 1;
    }
    int ok = 1;
    while (ok && fread(&n, 4, 1, stdin) == 1) {
        char *text = malloc((size_t)n + 1);
        ok = text && fread(text, 1, n, stdin) == n && answer(tok, text, n);
        free(text);
    }
    nxt_tokenizer_destroy(tok);
    nxt_context_destroy(cx);
    return ok ? 0 : 1;
}
