/* libFuzzer on §12: the input is read as a whole archive, and as a pickle alone.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -o fuzz_torchbin \
 *         tests/fuzz_torchbin.c -lm
 */
#define NXT_NO_MAIN
#include "../neoxtune.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    nxt_context cx = {.config = {.allocate = default_allocate, .release = default_release}};
    weights w = {.cx = &cx, .arena.cx = &cx};
    if (torchbin_parse(&w, "input", data, (i64)size) == NXT_OK) {
        for (i64 i = 0; i < w.count; i++) {
            const tensor *t = &w.tensors[i];
            i64 last = 0;
            float x;
            for (int d = 0; d < t->rank; d++) last += (t->dim[d] - 1) * t->stride[d];
            if (t->p < data || t->p > data + size) abort();
            if (t->type >= 0 && t->count) load_floats(&x, t->p, (dtype)t->type, last, 1);
        }
    } else if (!cx.message[0]) abort();
    weights_close(&w);
    pickle_machine k = {.cx = &cx, .file = "input", .arena.cx = &cx, .start = data, .p = data,
                        .end = data + size};
    pickle_value *top;
    if (pickle_run(&k, &top) == NXT_OK) (void)holds_tensors(find_state_dict(top));
    arena_free(&k.arena);
    if (cx.bytes_now) abort();
    return 0;
}
