/* White-box tests: the whole file is included, so that every static function can be called.
 *
 *     build/test [NAME...] [--list] [--quick] [--long] [--seed=N]
 *
 * A NAME runs the tests whose names contain it. --quick takes smaller shapes, --long makes
 * every single allocation fail. */
#define NXT_NO_MAIN
#define _GNU_SOURCE 1
#include <unistd.h>

/* Waiting for the disk is what makes saving slow: tests that save hundreds of times do
 * without, and one counts. */
static int flushes;
static int skip_flushes;
static int counted_fsync(int fd) {
    flushes++;
    return skip_flushes ? 0 : fsync(fd);
}
#define fsync counted_fsync
#include "../neoxtune.c"
#undef fsync

#include "harness.h"
#include "micro.h"
#include "test_files.h"
#include "test_tokenizer.h"
#include "test_kernels.h"
#include "test_fast.h"
#include "test_golden.h"
#include "test_train.h"
#include "test_data.h"
#include "test_session.h"
#include "test_report.h"
#include "test_export.h"

#define ROW(name) {#name, test_##name}
static const test_row tests[] = {
    /* §5, §6 */
    ROW(numbers),
    ROW(op_embed),
    ROW(op_norm),
    ROW(op_matmul),
    ROW(op_bias),
    ROW(op_rope),
    ROW(op_attention),
    ROW(op_attention_cache),
    ROW(op_act),
    ROW(op_rows),
    ROW(op_store),
    ROW(op_convert),
    ROW(op_xent),
    ROW(op_adamw),
    ROW(op_sumsq),
    /* §7, §8 */
    ROW(fast_functions),
    ROW(fast_matmul),
    ROW(fast_threads), ROW(fast_pool_ends), ROW(fast_blocks),
    ROW(fast_cache), ROW(fast_wide_head),
    /* §10 to §12 */
    ROW(json_values),
    ROW(json_refused),
    ROW(json_depth),
    ROW(json_prefixes),
    ROW(json_numbers),
    ROW(json_write),
    ROW(files_map),
    ROW(save_commit),
    ROW(save_link),
    ROW(save_into),
    ROW(save_failure),
    ROW(save_killed),
    ROW(safetensors_accepted),
    ROW(safetensors_lies),
    ROW(safetensors_starts),
    ROW(safetensors_damage),
    ROW(safetensors_reference_bytes),
    ROW(safetensors_padding),
    ROW(safetensors_round_trip),
    ROW(safetensors_overflow),
    ROW(safetensors_shards),
    ROW(weights_index),
    ROW(torchbin_good),
    ROW(torchbin_views),
    ROW(torchbin_refused),
    ROW(torchbin_damage),
    ROW(torchbin_pickles),
    ROW(torchbin_extents),
    ROW(torchbin_archive),
    ROW(torchbin_integers),
    ROW(torchbin_zip64),
    ROW(torchbin_directory),
    ROW(torchbin_foreign),
    ROW(files_memory),
    ROW(files_leaks),
    /* §13 */
    ROW(tokenizer_merges),
    ROW(tokenizer_words),
    ROW(tokenizer_split),
    ROW(tokenizer_normal_form),
    ROW(tokenizer_added),
    ROW(tokenizer_bytes),
    ROW(tokenizer_refused),
    ROW(tokenizer_files),
    ROW(tokenizer_pico), ROW(tokenizer_forms),
    ROW(tokenizer_golden),
    ROW(tokenizer_vectors),
    ROW(tokenizer_linear),
    ROW(tokenizer_memory),
    /* §14 to §17 */
    ROW(golden_parallel_025),
    ROW(golden_parallel_100),
    ROW(golden_sequential_025),
    ROW(golden_sequential_100),
    ROW(golden_variants), ROW(golden_linear),
    ROW(golden_gpt2_plain), ROW(golden_gpt2_bare), ROW(golden_gpt2_untied),
    ROW(golden_neo_window), ROW(golden_llama_grouped), ROW(golden_llama_tied),
    ROW(golden_qwen2), ROW(golden_lora), ROW(golden_recompute), ROW(golden_sessions), ROW(golden_stories260k), ROW(golden_configs),
    ROW(rope_linear),
    ROW(perplexity_golden),
    /* §18 */
    ROW(data_masks),
    ROW(data_templates),
    ROW(data_columns_refused),
    ROW(data_files),
    ROW(data_bad_rows),
    ROW(data_mixed),
    ROW(data_truncation),
    ROW(data_blocks),
    ROW(data_untrained),
    ROW(data_split),
    ROW(data_write_rows),
    ROW(data_tokens),
    ROW(shuffle),
    /* §19, §20, §22 */
    ROW(train_threads),
    ROW(train_accumulation),
    ROW(train_resume_f32),
    ROW(train_resume_f16),
    ROW(train_resume_refused),
    ROW(run_refused),
    ROW(schedules),
    ROW(train_epochs),
    ROW(train_config_refused),
    ROW(train_diverged),
    ROW(cancel),
    ROW(evaluate),
    ROW(run_resume),
    ROW(run_metrics),
    ROW(metrics_numbers),
    ROW(memory_plan),
    ROW(run_skipped),
    ROW(run_best),
    ROW(save_load_save),
    ROW(save_overflow),
    ROW(save_flushes),
    ROW(save_killed_run),
    /* §21 */
    ROW(session),
    ROW(session_refused),
    ROW(sample_distribution),
    ROW(sample_choice),
    ROW(sample_large),
    ROW(utf8_whole),
    ROW(exact_match),
    /* §23 */
    ROW(export_pico), ROW(export_neox), ROW(export_gpt2), ROW(export_llama),
    ROW(export_spm), ROW(export_bpe), ROW(export_refused), ROW(export_safetensors),
    ROW(export_adapter),
    /* §24 */
    ROW(eval_numbers),
    ROW(info_numbers),
    ROW(stream_utf8),
    /* §3 */
    ROW(step_allocates_nothing),
    ROW(dirty_memory),
    ROW(refused_context),
    ROW(refused_loading),
    ROW(refused_training),
    ROW(refused_saving),
};

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "--seed=", 7)) kernel_seed = strtoull(argv[i] + 7, NULL, 10);
    printf("seed %" PRIu64 "\n", kernel_seed);
    return run_tests(tests, COUNT(tests), argc, argv);
}
