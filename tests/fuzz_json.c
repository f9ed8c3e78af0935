/* libFuzzer on §10: what parses is written and parsed again to the same text.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -o fuzz_json tests/fuzz_json.c -lm
 */
#define NXT_NO_MAIN
#include "../neoxtune.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    nxt_context cx = {.config = {.allocate = default_allocate, .release = default_release}};
    arena a = {.cx = &cx};
    json *first, *second;
    if (json_parse(&a, "input", (const char *)data, (i64)size, &first) == NXT_OK) {
        buffer once = {.cx = &cx}, twice = {.cx = &cx};
        json_write(&once, first, -1);
        if (json_parse(&a, "output", once.p, once.n, &second) != NXT_OK) abort();
        json_write(&twice, second, -1);
        if (once.n != twice.n || memcmp(once.p, twice.p, (size_t)once.n)) abort();
        buffer_free(&twice);
        json_write(&twice, first, 0);
        if (json_parse(&a, "indented", twice.p, twice.n, &second) != NXT_OK) abort();
        buffer_free(&once);
        buffer_free(&twice);
    } else if (!cx.message[0]) abort();
    arena_free(&a);
    if (cx.bytes_now) abort();
    return 0;
}
