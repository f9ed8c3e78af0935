/* libFuzzer on §11: whatever a file says, its tensors fill it exactly and can be read.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -o fuzz_safetensors \
 *         tests/fuzz_safetensors.c -lm
 */
#define NXT_NO_MAIN
#include "../neoxtune.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    nxt_context cx = {.config = {.allocate = default_allocate, .release = default_release}};
    weights w = {.cx = &cx, .arena.cx = &cx};
    if (safetensors_parse(&w, "input", data, (i64)size) == NXT_OK) {
        i64 bits = 0;
        for (i64 i = 0; i < w.count; i++) {
            const tensor *t = &w.tensors[i];
            float last = 0;
            if (weights_find(&w, t->name) != t) abort();
            if (t->p < data || t->p > data + size) abort();
            if (t->type >= 0 && t->count) load_floats(&last, t->p, (dtype)t->type, t->count - 1, 1);
            bits += t->count * tensor_kind_named(t->type_name)->bits;
        }
        if (8 + (i64)read_le(data, 8) + bits / 8 != (i64)size) abort();
    } else if (!cx.message[0]) abort();
    weights_close(&w);
    if (cx.bytes_now) abort();
    return 0;
}
