/* White-box tests: the whole file is included, so that every static function can be called.
 *
 *     build/test [NAME...] [--list] [--quick] [--long] [--seed=N]
 *
 * A NAME runs the tests whose names contain it. --quick takes smaller shapes, --long makes every
 * single allocation fail. */
#define NXT_NO_MAIN
#include "../neoxtune.c"

#include "harness.h"
#include "micro.h"
#include "test_kernels.h"

#define ROW(name) {#name, test_##name}
static const test_row tests[] = {
    ROW(numbers), ROW(op_embed), ROW(op_norm), ROW(op_matmul), ROW(op_bias), ROW(op_rope),
    ROW(op_attention), ROW(op_attention_cache), ROW(op_act), ROW(op_rows), ROW(op_store),
    ROW(op_convert), ROW(op_xent), ROW(op_adamw), ROW(op_sumsq),
};

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "--seed=", 7)) kernel_seed = strtoull(argv[i] + 7, NULL, 10);
    printf("seed %" PRIu64 "\n", kernel_seed);
    return run_tests(tests, COUNT(tests), argc, argv);
}
