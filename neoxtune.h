/* neoxtune.h: fine-tune language models (GPT-NeoX, GPT-2, GPT-Neo, Llama) from C.
 *
 * Add neoxtune.c and neoxtune.h to your program, compile neoxtune.c with -DNXT_NO_MAIN and
 * link with -lm -pthread. Ten lines fine-tune a Hugging Face model directory:
 *
 *     nxt_context *cx; nxt_model *model; nxt_tokenizer *tok; nxt_dataset *data; nxt_trainer *tr;
 *     nxt_data_config dc = nxt_data_config_default();
 *     nxt_train_config tc = nxt_train_config_default();
 *     nxt_step_info info;
 *     if (nxt_context_create(&cx, NULL) || nxt_model_load(&model, cx, "pythia-70m")
 *         || nxt_tokenizer_load(&tok, cx, "pythia-70m")
 *         || nxt_dataset_from_files(&data, tok, &file, 1, &dc)
 *         || nxt_trainer_create(&tr, model, data, &tc)) return fail(nxt_error_message(cx));
 *     while (!nxt_trainer_done(tr) && nxt_trainer_step(tr, &info) == NXT_OK)
 *         printf("%lld  loss %.4f\n", (long long)info.step, info.loss);
 *     if (nxt_model_save(model, "tuned", NULL)) return fail(nxt_error_message(cx));
 *
 * RULES
 *   - Handles are opaque. `_create`, `_load` and `_from_` functions return them through their
 *     first parameter, which is NULL after a failure; `_destroy(NULL)` does nothing. A handle
 *     must be destroyed before the ones it was made from (trainer, dataset, model, context).
 *   - Fallible functions return nxt_status; nxt_error_message(ctx) says in one sentence what
 *     went wrong, where and why. The text is valid until the next call on that context fails.
 *   - The library never exits, prints, reads the environment or keeps mutable globals. Two
 *     contexts may be used from two threads at once; one context by one thread at a time
 *     (nxt_cancel alone may be called from anywhere, a signal handler included).
 *   - Configs come from their `_default()` function, so that fields may be added later. The
 *     promise is source compatibility: recompile neoxtune.c together with its header.
 *   - Strings are UTF-8 and end with NUL unless a length is asked for. Token ids are int32_t.
 *   - Losses are natural logarithms (nats) per trained token.
 */
#ifndef NEOXTUNE_H
#define NEOXTUNE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef NXT_API
#define NXT_API /* linkage of the public functions; a host may say `static` or an export */
#endif
#if defined(__GNUC__)
#define NXT_CHECKED __attribute__((warn_unused_result))
#else
#define NXT_CHECKED
#endif

/* ---- Status ------------------------------------------------------------------------- */

typedef enum nxt_status {
    NXT_OK = 0,
    NXT_ARGUMENT,    /* a call or an option that cannot be right */
    NXT_MEMORY,      /* the allocator said no, or the machine has less than the plan needs */
    NXT_IO,          /* the operating system said no: absent, unreadable, full */
    NXT_FORMAT,      /* a file breaks the rules of its format */
    NXT_UNSUPPORTED, /* a valid file that asks for something neoxtune does not do */
    NXT_SHAPE,       /* a tensor is missing or has the wrong shape */
    NXT_DEVICE,      /* the device failed */
    NXT_DIVERGED,    /* loss or gradient is not finite */
    NXT_CANCELLED    /* nxt_cancel was called */
} nxt_status;

NXT_API const char *nxt_version(void);
NXT_API const char *nxt_status_name(nxt_status status);

/* ---- Context: threads, memory, log, errors ------------------------------------------- */

typedef struct nxt_context nxt_context;

typedef enum nxt_log_level { NXT_LOG_INFO = 0, NXT_LOG_WARNING = 1 } nxt_log_level;

typedef struct nxt_context_config {
    int threads;     /* 0: as many as this process may use */
    const char *cpu; /* kernels: NULL (the best), "reference", "baseline", "avx2", "avx512" */
    /* The host's allocator: both or neither. Called by the calling thread only. allocate
     * returns NULL when there is no memory, and need not clear or align beyond malloc. */
    void *(*allocate)(void *user, size_t bytes);
    void (*release)(void *user, void *memory, size_t bytes);
    /* Warnings and notes, one line each without a newline. NULL: dropped. */
    void (*log)(void *user, nxt_log_level level, const char *line);
    /* The host's thread pool: run task(arg, 0) .. task(arg, tasks - 1) in any order on any
     * threads, return when all are done. NULL: neoxtune's own pool. */
    void (*parallel_for)(void *user, int64_t tasks, void (*task)(void *arg, int64_t i),
                         void *arg);
    void *user; /* handed to every callback */
    const struct nxt_backend *backend; /* NULL: the CPU. Another must bring every operation */
    void *backend_state;
} nxt_context_config;

NXT_API nxt_context_config nxt_context_config_default(void);
/* config NULL: the defaults. On failure *ctx is NULL and there is nothing to destroy. */
NXT_API NXT_CHECKED nxt_status nxt_context_create(nxt_context **ctx,
                                                  const nxt_context_config *config);
NXT_API void nxt_context_destroy(nxt_context *ctx);
NXT_API const char *nxt_error_message(const nxt_context *ctx);
NXT_API int nxt_context_threads(const nxt_context *ctx);
NXT_API const char *nxt_context_cpu(const nxt_context *ctx); /* which kernels were chosen */
/* on 1: from now on the operands of large matrix products are rounded to bf16, sums stay f32,
 * where this processor multiplies bf16 faster than f32. Returns whether they are. */
NXT_API int nxt_use_bf16(nxt_context *ctx, int on);
/* Bytes now held through the allocator, and the most ever held. */
NXT_API void nxt_context_memory(const nxt_context *ctx, size_t *now, size_t *peak);
/* Ask the long call now running on ctx to stop; it returns NXT_CANCELLED at a safe point.
 * Async-signal-safe. nxt_cancel_clear takes it back. */
NXT_API void nxt_cancel(nxt_context *ctx);
NXT_API void nxt_cancel_clear(nxt_context *ctx);

/* ---- Profile: where the time of a step goes ---------------------------------------------- */

typedef struct nxt_profile_row {
    const char *op;    /* an operation of nxt_backend; a product is named by what it computes */
    int64_t out, in;   /* a matrix product's weights; else 0 */
    int64_t calls, rows; /* rows: of x, in all calls of a matrix product */
    double seconds, flop, bytes; /* of all calls; bytes: operands and results, each once */
} nxt_profile_row;

typedef struct nxt_limits {
    double f32, bf16;  /* FLOP per second on registers, all threads; 0: unknown, or no bf16 */
    double read;       /* bytes per second from memory */
} nxt_limits;

/* Times every operation on ctx until nxt_profile_stop, which drops the rows. */
NXT_API NXT_CHECKED nxt_status nxt_profile_start(nxt_context *ctx);
NXT_API void nxt_profile_stop(nxt_context *ctx);
/* The rows so far, at most `capacity` of them; returns how many there are. */
NXT_API int64_t nxt_profile_read(const nxt_context *ctx, nxt_profile_row *rows,
                                 int64_t capacity);
/* What this machine could do at best, measured now (a third of a second, 256 MB). */
NXT_API NXT_CHECKED nxt_status nxt_measure_limits(nxt_context *ctx, nxt_limits *limits);

/* ---- Tokenizer ------------------------------------------------------------------------ */

typedef struct nxt_tokenizer nxt_tokenizer;

/* path: a model directory, a tokenizer.json, or a folder with vocab.json and merges.txt */
NXT_API NXT_CHECKED nxt_status nxt_tokenizer_load(nxt_tokenizer **tok, nxt_context *ctx,
                                                  const char *path);
NXT_API void nxt_tokenizer_destroy(nxt_tokenizer *tok);
/* The ids of a text (no special tokens are added), at most `capacity` of them into ids;
 * *count is the full number, so a call with capacity 0 asks for it. ends (NULL, or as long
 * as ids): the byte of the original text at which each token ends. */
NXT_API NXT_CHECKED nxt_status nxt_encode(nxt_tokenizer *tok, const char *text, size_t bytes,
                                          int32_t *ids, size_t *ends, size_t capacity,
                                          size_t *count);
/* The bytes that ids stand for (of the normalised text; special tokens as their text), at
 * most capacity of them into out; *bytes is the full number. No NUL is added. */
NXT_API NXT_CHECKED nxt_status nxt_decode(nxt_tokenizer *tok, const int32_t *ids, size_t n,
                                          char *out, size_t capacity, size_t *bytes);
NXT_API int32_t nxt_token_id(const nxt_tokenizer *tok, const char *text); /* -1: none */
NXT_API int32_t nxt_tokenizer_size(const nxt_tokenizer *tok);             /* highest id + 1 */
NXT_API int32_t nxt_tokenizer_eos(const nxt_tokenizer *tok); /* -1: the files name none */
NXT_API int32_t nxt_tokenizer_bos(const nxt_tokenizer *tok);
/* Whether the model wants bos in front of every text. nxt_encode adds no special tokens; data
 * sets and sessions of the program do. */
NXT_API int nxt_tokenizer_adds_bos(const nxt_tokenizer *tok);
/* Whether the first word of a text is encoded with a space in front that the text does not
 * have: who decodes a whole text drops it, who decodes what follows a prompt keeps it. */
NXT_API int nxt_tokenizer_adds_space(const nxt_tokenizer *tok);
NXT_API int nxt_token_is_special(const nxt_tokenizer *tok, int32_t id);

/* ---- Model ---------------------------------------------------------------------------- */

typedef struct nxt_model nxt_model;

typedef struct nxt_model_info {
    const char *family, *architecture, *dtype; /* "gpt_neox", "GPTNeoXForCausalLM", "f16" */
    const char *activation;
    int64_t layers, width, heads, inner, vocabulary, positions;
    int64_t rotary;                 /* values of each head that the position turns */
    int parallel_residual, tied;
    int64_t parameters, embedding_parameters; /* the second: of the input embedding */
    int64_t trainable;              /* parameters, adapters included, that training changes */
    int64_t mapped_bytes;           /* of the weight files */
    int32_t bos, eos;               /* -1: none */
    int64_t key_heads, head_size;   /* fewer key than query heads: grouped */
    int64_t window;                 /* tokens that local layers see; 0: there are none */
    int64_t lora_rank;              /* the largest of the adapters; 0: none */
    int gated;                      /* down(act(gate x) * up x) */
    const char *norm;               /* "LayerNorm" or "RMSNorm" */
} nxt_model_info;

typedef struct nxt_param_info {
    const char *name;
    int64_t rows, cols; /* a vector has one row */
    const char *dtype;
    int trainable;
} nxt_param_info;

typedef struct nxt_save_config {
    const char *dtype;      /* "f32", "f16", "bf16"; NULL: as the model was stored */
    int64_t shard_bytes;    /* a new file above this many bytes; default 5e9 */
    const char *tokenizer;  /* file or directory to copy the tokenizer from; NULL: the model's */
    int merge;              /* with adapters: the whole model, they added to its weights */
} nxt_save_config;

typedef struct nxt_export_config {
    const char *format;    /* "gguf" or "safetensors"; NULL: as the file's name ends */
    const char *dtype;     /* "f32", "f16", "bf16", for gguf "q8_0" too; NULL: as stored */
    const char *tokenizer; /* file or directory; NULL: the model's. Only gguf holds one */
} nxt_export_config;

/* LoRA: A (rank, in) and B (out, rank) beside the frozen weights of linear layers. */
typedef struct nxt_lora_config {
    int rank;            /* default 8 */
    double alpha;        /* default 8; the adapter counts alpha / rank times */
    double dropout;      /* of the adapter's input, in training only; default 0 */
    int rslora;          /* alpha / sqrt(rank) instead [Kalajdzievski23] */
    const char *targets; /* ends of names, with commas, or "all-linear"; NULL: as PEFT */
    const char *base;    /* base_model_name_or_path to write; NULL: the model's directory */
    uint64_t seed;       /* of A; B starts at zero */
} nxt_lora_config;

/* Bytes that training or using a model takes beside the mapped files. */
typedef struct nxt_memory_plan {
    int64_t weights, gradients, optimizer, activations, workspace, total;
    int64_t mapped; /* file pages: the kernel may drop and read them again */
} nxt_memory_plan;

/* A Hugging Face model directory as downloaded: config.json and model.safetensors or
 * pytorch_model.bin, one file or shards. Weights stay in the mapped files. */
NXT_API NXT_CHECKED nxt_status nxt_model_load(nxt_model **model, nxt_context *ctx,
                                              const char *dir);
NXT_API void nxt_model_destroy(nxt_model *model);
/* Writes a Hugging Face directory: config, weights, and the tokenizer and generation files
 * of the directory the model came from. Complete or absent: never half. A directory that
 * exists keeps its other files. config NULL: the defaults. */
NXT_API NXT_CHECKED nxt_status nxt_model_save(const nxt_model *model, const char *dir,
                                              const nxt_save_config *config);
NXT_API nxt_save_config nxt_save_config_default(void);
/* Freezes the parameters with one of `names` (parts of dotted names, with commas: "embed_in",
 * "layers.0", "bias") in their name; others: freezes all the others instead. No gradient and
 * no optimizer state for them. Before a trainer is made. */
NXT_API NXT_CHECKED nxt_status nxt_model_freeze(nxt_model *model, const char *names, int others);
/* Backward keeps the output of each layer alone and computes the rest once more: about a third
 * more time for a seventh of the activations' memory, and the same bits. Before a trainer. */
NXT_API void nxt_model_gradient_checkpointing(nxt_model *model, int on);
NXT_API nxt_lora_config nxt_lora_config_default(void);
/* Fresh adapters on a model that is loaded: everything else is frozen, and nxt_model_save
 * writes PEFT's adapter_config.json and adapter_model.safetensors instead of the model. */
NXT_API NXT_CHECKED nxt_status nxt_lora_attach(nxt_model *model, const nxt_lora_config *config);
/* Adapters from a directory that PEFT or nxt_model_save wrote; mapped, like the model. */
NXT_API NXT_CHECKED nxt_status nxt_lora_load(nxt_model *model, const char *dir);
/* The base model that an adapter's directory names; kept until the context is destroyed. */
NXT_API NXT_CHECKED nxt_status nxt_lora_base(nxt_context *ctx, const char *dir,
                                             const char **base);
/* A directory with random weights (Hugging Face's initialisation) for the architecture in
 * config_file; tokenizer: file or directory whose tokenizer files are copied, or NULL. One
 * tensor is in memory at a time. dtype NULL: the config's. */
NXT_API NXT_CHECKED nxt_status nxt_model_init(nxt_context *ctx, const char *config_file,
                                              const char *tokenizer, const char *dir,
                                              const char *dtype, uint64_t seed);
/* The model, its adapters merged, as one file for other programs: complete or absent, in the
 * place of a file of that name. GGUF (llama.cpp's) is for GPT-NeoX, GPT-2, Llama and Qwen2;
 * matrices take dtype, vectors stay f32. NXT_UNSUPPORTED: the format cannot say what this model
 * computes, or how its tokenizer cuts. One piece of a tensor is in memory at a time, and before
 * that the tokenizer's files as trees. */
NXT_API NXT_CHECKED nxt_status nxt_model_export(const nxt_model *model, const char *file,
                                                const nxt_export_config *config);
NXT_API nxt_export_config nxt_export_config_default(void);
NXT_API void nxt_model_describe(const nxt_model *model, nxt_model_info *info);
/* Whether a text is over when the model says this id: any of the eos_token_id of config.json
 * and generation_config.json. */
NXT_API int nxt_model_ends(const nxt_model *model, int32_t id);
NXT_API int64_t nxt_param_count(const nxt_model *model);
NXT_API void nxt_param_describe(const nxt_model *model, int64_t i, nxt_param_info *info);
/* Elements [at, at + n) of parameter i, or of its gradient (zeros when it has none). */
NXT_API NXT_CHECKED nxt_status nxt_param_read(const nxt_model *model, int64_t i, int64_t at,
                                              int64_t n, float *out);
NXT_API NXT_CHECKED nxt_status nxt_grad_read(const nxt_model *model, int64_t i, int64_t at,
                                             int64_t n, float *out);
/* rows: tokens in a micro-batch; train 0: evaluation of as many */
NXT_API void nxt_model_memory(const nxt_model *model, int64_t rows, int train,
                              nxt_memory_plan *plan);

/* ---- Data ----------------------------------------------------------------------------- */

typedef struct nxt_dataset nxt_dataset;

typedef enum nxt_truncation {
    NXT_TRUNCATE_AUTO = 0, /* RIGHT for plain text, PROMPT where there is a completion */
    NXT_TRUNCATE_RIGHT,    /* keep the beginning */
    NXT_TRUNCATE_LEFT,     /* keep the end */
    NXT_TRUNCATE_PROMPT,   /* shorten the prompt at its beginning; the completion stays */
    NXT_TRUNCATE_ERROR     /* refuse */
} nxt_truncation;

typedef struct nxt_data_config {
    int64_t block_size; /* > 0: texts are joined and cut into blocks, the rest is dropped */
    int64_t max_length; /* longest example in tokens, when block_size is 0 */
    const char *text_column, *prompt_column, *completion_column; /* NULL: looked for */
    const char *template_text; /* "{column}" places a column, "{{" is a brace; NULL: none */
    nxt_truncation truncation;
    int train_on_all; /* 1: the prompt is trained too */
    int append_eos;   /* 1 yes, 0 no, -1: after examples, not inside blocks */
    int add_bos;      /* in front of every text: 1 yes, 0 no, -1: as the tokenizer's files say */
    int32_t eos;      /* the id to append; -1: the tokenizer's */
    int64_t max_samples; /* first rows only; 0: all */
    int skip_bad_lines;
    int prompts_only; /* 1: an example is what stands before the completion */
} nxt_data_config;

typedef struct nxt_dataset_info {
    int64_t rows;       /* read from the files */
    int64_t examples;   /* sequences to train on */
    int64_t tokens, trained_tokens; /* a sequence's first token is never trained */
    int64_t longest;    /* tokens of the longest example */
    int64_t truncated, completions_cut, untrained, ends_in_eos, bad_lines;
    int64_t dropped_tokens;     /* after the last full block */
    int64_t text_bytes;
    int has_completions;
    const char *columns; /* how rows became text: "question + answer", "template", ... */
} nxt_dataset_info;

NXT_API nxt_data_config nxt_data_config_default(void);
/* .txt (with block_size a file is one text, else each non-empty line), .jsonl, .json. */
NXT_API NXT_CHECKED nxt_status nxt_dataset_from_files(nxt_dataset **data, nxt_tokenizer *tok,
                                                      const char *const *paths, int count,
                                                      const nxt_data_config *config);
/* One example per offset pair: tokens offsets[i] .. offsets[i + 1]; trained (NULL: all)
 * says which tokens count. The arrays are copied. */
NXT_API NXT_CHECKED nxt_status nxt_dataset_from_tokens(nxt_dataset **data, nxt_context *ctx,
                                                       const int32_t *ids,
                                                       const uint8_t *trained,
                                                       const int64_t *offsets, int64_t count);
/* Moves a seeded share of the examples (at least one) out of data into *held_out. */
NXT_API NXT_CHECKED nxt_status nxt_dataset_split(nxt_dataset *data, double share, uint64_t seed,
                                                 nxt_dataset **held_out);
/* The rows of the dataset's files as they were read, one JSON object per line. */
NXT_API NXT_CHECKED nxt_status nxt_dataset_write_rows(const nxt_dataset *data,
                                                      const char *path);
NXT_API void nxt_dataset_describe(const nxt_dataset *data, nxt_dataset_info *info);
/* Example i, in place: n tokens and which of them are trained. */
NXT_API void nxt_dataset_example(const nxt_dataset *data, int64_t i, const int32_t **ids,
                                 const uint8_t **trained, int64_t *n);
NXT_API void nxt_dataset_destroy(nxt_dataset *data);

/* ---- One pass over sequences, for hosts with a loop of their own ------------------------ */

/* Mean loss over the trained tokens of examples [at, at + n) of data. nxt_backward also
 * adds the gradient of the SUMMED loss to the model's gradients (nxt_grad_read). */
NXT_API NXT_CHECKED nxt_status nxt_forward(nxt_model *model, const nxt_dataset *data,
                                           int64_t at, int64_t n, double *loss);
NXT_API NXT_CHECKED nxt_status nxt_backward(nxt_model *model, const nxt_dataset *data,
                                            int64_t at, int64_t n, double *loss);
NXT_API NXT_CHECKED nxt_status nxt_grad_zero(nxt_model *model);
/* logits: (n, vocabulary) of one sequence of n tokens */
NXT_API NXT_CHECKED nxt_status nxt_logits(nxt_model *model, const int32_t *ids, int64_t n,
                                          float *logits);

/* ---- Trainer -------------------------------------------------------------------------- */

typedef struct nxt_trainer nxt_trainer;

typedef enum nxt_schedule {
    NXT_SCHEDULE_LINEAR = 0, NXT_SCHEDULE_COSINE, NXT_SCHEDULE_CONSTANT,
    NXT_SCHEDULE_CONSTANT_WITH_WARMUP
} nxt_schedule;

typedef struct nxt_train_config { /* names and defaults: Hugging Face's TrainingArguments */
    double learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon, max_grad_norm;
    double num_train_epochs;
    int64_t max_steps;      /* > 0 wins over epochs */
    int64_t warmup_steps;   /* > 0 wins over the ratio */
    double warmup_ratio;
    nxt_schedule schedule;
    int64_t batch_size, gradient_accumulation_steps; /* examples a micro-batch; of those */
    int shuffle;
    uint64_t seed;
    int64_t max_skipped_steps; /* steps with a gradient that is not finite to skip */
    /* Data parallel hosts: replace each of n values by its sum over all workers. Called
     * once per step with the loss and token counts, then with pieces of the gradient. */
    void (*all_reduce)(void *user, double *counts, int64_t n_counts, float *grad, int64_t n);
    void *user;
} nxt_train_config;

typedef struct nxt_step_info {
    int64_t step, total_steps;
    double epoch, loss, grad_norm, learning_rate; /* loss: mean over this step's tokens */
    int64_t tokens, num_tokens; /* in this step; in all steps so far (prompts included) */
    int64_t trained_tokens;     /* in this step */
    double seconds;
    int skipped;                /* the update was left out: gradient not finite */
} nxt_step_info;

typedef struct nxt_eval_info {
    double loss, perplexity; /* per trained token */
    int64_t tokens, examples;
    double seconds;
} nxt_eval_info;

NXT_API nxt_train_config nxt_train_config_default(void);
/* Whether a trainer could be made of these: what can be refused without allocating anything. */
NXT_API NXT_CHECKED nxt_status nxt_trainer_check(const nxt_model *model,
                                                 const nxt_dataset *data,
                                                 const nxt_train_config *config);
NXT_API NXT_CHECKED nxt_status nxt_trainer_create(nxt_trainer **trainer, nxt_model *model,
                                                  const nxt_dataset *data,
                                                  const nxt_train_config *config);
NXT_API NXT_CHECKED nxt_status nxt_trainer_step(nxt_trainer *trainer, nxt_step_info *info);
NXT_API int nxt_trainer_done(const nxt_trainer *trainer);
NXT_API int64_t nxt_trainer_total_steps(const nxt_trainer *trainer);
NXT_API int64_t nxt_trainer_steps_per_epoch(const nxt_trainer *trainer);
/* A checkpoint directory: the model, optimizer.safetensors, trainer_state.json. A trainer
 * made from the same model, data and config and resumed from it goes on bit for bit. After a
 * resume that failed the trainer can only be destroyed. */
NXT_API NXT_CHECKED nxt_status nxt_trainer_save(nxt_trainer *trainer, const char *dir);
NXT_API NXT_CHECKED nxt_status nxt_trainer_resume(nxt_trainer *trainer, const char *dir);
NXT_API void nxt_trainer_destroy(nxt_trainer *trainer);

/* Loss over a whole dataset, `batch_size` examples at a time. */
NXT_API NXT_CHECKED nxt_status nxt_evaluate(nxt_model *model, const nxt_dataset *data,
                                            int64_t batch_size, nxt_eval_info *info);
/* Hugging Face evaluate's "perplexity" of each example: exp of the mean loss of all its
 * tokens, the first included, after a start token (bos; < 0: none, and the first is free). */
NXT_API NXT_CHECKED nxt_status nxt_perplexities(nxt_model *model, const nxt_dataset *data,
                                                int64_t batch_size, int32_t bos,
                                                double *perplexity);

/* ---- Run: a trainer with evaluation, metrics.jsonl and checkpoints --------------------- */

typedef struct nxt_run nxt_run;

typedef enum nxt_when { NXT_NEVER = 0, NXT_STEPS, NXT_EPOCH } nxt_when;

typedef struct nxt_run_config {
    const char *output_dir;
    const nxt_dataset *eval_data; /* NULL: no evaluation */
    int64_t logging_steps, eval_steps, save_steps, eval_batch_size;
    nxt_when eval_when, save_when;
    int64_t save_total_limit;     /* 0: all; the best one is never deleted */
    int load_best_model_at_end;
    const char *dtype;            /* of saved models; NULL: as stored */
    const char *tokenizer;        /* as in nxt_save_config; kept until the run is destroyed */
    const char *run_json;         /* text of run.json, or NULL */
} nxt_run_config;

typedef struct nxt_run_info {
    nxt_step_info step;
    int logged;        /* a row of metrics.jsonl was written: its loss is in mean_loss */
    double mean_loss;  /* since the last row */
    double tokens_per_second;
    int evaluated;
    nxt_eval_info eval;
    int saved;
    char checkpoint[256]; /* its name, when saved */
} nxt_run_info;

NXT_API nxt_run_config nxt_run_config_default(void);
/* Creates output_dir when needed. resume: a checkpoint directory; NULL: a new run, and the
 * checkpoints of an earlier one in output_dir are deleted. */
NXT_API NXT_CHECKED nxt_status nxt_run_create(nxt_run **run, nxt_trainer *trainer,
                                              const nxt_run_config *config, const char *resume);
/* One optimizer step and what is due after it. */
NXT_API NXT_CHECKED nxt_status nxt_run_step(nxt_run *run, nxt_run_info *info);
NXT_API NXT_CHECKED nxt_status nxt_run_checkpoint(nxt_run *run, nxt_run_info *info);
/* The final (or best) model into output_dir, and the last row of metrics.jsonl. */
NXT_API NXT_CHECKED nxt_status nxt_run_finish(nxt_run *run);
NXT_API void nxt_run_destroy(nxt_run *run);
/* The newest complete checkpoint below output_dir; path gets "" when there is none. */
NXT_API NXT_CHECKED nxt_status nxt_run_last_checkpoint(nxt_context *ctx, const char *output_dir,
                                                       char *path, size_t capacity);

/* ---- Generation ------------------------------------------------------------------------ */

typedef struct nxt_session nxt_session;

typedef struct nxt_sample_config {
    double temperature;        /* 0: greedy */
    int top_k;                 /* 0: all */
    double top_p;              /* 1: all */
    double repetition_penalty; /* 1: none */
    uint64_t seed;
} nxt_sample_config;

typedef struct nxt_feed {
    int sequence;
    const int32_t *ids;
    int64_t n;
} nxt_feed;

/* Caches keys and values of `sequences` sequences of up to `capacity` tokens each. */
NXT_API NXT_CHECKED nxt_status nxt_session_create(nxt_session **session, nxt_model *model,
                                                  int sequences, int64_t capacity);
/* Appends tokens to sequences (each named once) in one pass; logits: (count, vocabulary),
 * what follows the last token of each, or NULL. Prompts and single tokens alike. */
NXT_API NXT_CHECKED nxt_status nxt_session_feed(nxt_session *session, const nxt_feed *feeds,
                                                int count, float *logits);
NXT_API int64_t nxt_session_length(const nxt_session *session, int sequence);
/* Forgets all but the first n tokens of a sequence. */
NXT_API void nxt_session_rewind(nxt_session *session, int sequence, int64_t n);
NXT_API void nxt_session_destroy(nxt_session *session);
NXT_API nxt_sample_config nxt_sample_config_default(void);
/* Picks the next token from one row of logits, which it overwrites. seen: the tokens so far,
 * for the penalty; the draw is a function of the seed, `stream` and their number. */
NXT_API NXT_CHECKED nxt_status nxt_sample(nxt_context *ctx, float *logits, int64_t vocabulary,
                                          const nxt_sample_config *config, uint64_t stream,
                                          const int32_t *seen, int64_t n, int32_t *token);

/* ---- Scores: strings in, numbers out --------------------------------------------------- */

/* SQuAD v1.1: equal after lower-casing and removing punctuation, articles, extra space. */
NXT_API NXT_CHECKED nxt_status nxt_score_exact_match(nxt_context *ctx, const char *prediction,
                                                     const char *reference, double *score);
/* Bytes of text, at most n, that end on a UTF-8 character boundary: what may be printed. */
NXT_API size_t nxt_utf8_whole(const char *text, size_t n);

/* ---- Small helpers for programs ----------------------------------------------------------- */

/* Calls set(user, name, value) for every member of a JSON object, lists item by item, other
 * values as their text. Names and values live as long as the context. */
NXT_API NXT_CHECKED nxt_status nxt_options_read(nxt_context *ctx, const char *path,
                                                void (*set)(void *user, const char *name,
                                                            const char *value),
                                                void *user);
/* A whole file, or a copy of a text, kept as long as the context. */
NXT_API NXT_CHECKED nxt_status nxt_text_read(nxt_context *ctx, const char *path,
                                             const char **text);
NXT_API NXT_CHECKED nxt_status nxt_text_keep(nxt_context *ctx, const char *text,
                                             const char **kept);

/* ---- Backend interface: for writers of devices and for hosts that bring their own ------
 *
 * A backend is a table of operations over flat rows. neoxtune.c fills one with plain
 * reference kernels, one per CPU generation with fast ones; cuda/ fills another. Sizes
 * travel in the views. Operations return nothing, may be asynchronous and never allocate;
 * errors stick in the state until sync. Gradients (dw, db, dx where it says +=) accumulate.
 */
typedef enum nxt_dtype { NXT_F32 = 0, NXT_F16 = 1, NXT_BF16 = 2 } nxt_dtype;

/* rows x cols, row r at p + r * stride elements. A vector is one row. p NULL: absent. */
typedef struct nxt_mat {
    void *p;
    nxt_dtype type;
    int64_t rows, cols, stride;
} nxt_mat;

/* (rows, heads, size) inside a matrix: head h of row r at p + r * stride + h * step, so
 * that fused, split and interleaved projections are used where they lie. */
typedef struct nxt_heads {
    void *p;
    nxt_dtype type;
    int64_t rows, stride, step;
    int heads, size;
} nxt_heads;

typedef enum nxt_norm_kind { NXT_LAYER_NORM = 0, NXT_RMS_NORM = 1 } nxt_norm_kind;
typedef enum nxt_act_kind {
    NXT_GELU = 0,
    NXT_GELU_TANH,
    NXT_GELU_FAST,
    NXT_RELU,
    NXT_SILU
} nxt_act_kind;

enum { NXT_TRANS_A = 1, NXT_TRANS_B = 2 };

/* One AdamW update of n elements; see §6 for the formula. `scale` multiplies the gradient
 * (1 / trained tokens, times the clip factor); corrections are 1 - beta^t. */
typedef struct nxt_adamw {
    float *w, *g, *m, *v;
    int64_t n;
    float scale, lr, beta1, beta2, eps, decay, correction1, correction2;
} nxt_adamw;

typedef struct nxt_backend {
    const char *name;
    /* memory of the device; addresses are opaque to the model */
    void *(*alloc)(void *s, size_t bytes);
    void (*release)(void *s, void *p);
    void (*upload)(void *s, void *dst, const void *src, size_t bytes);
    void (*download)(void *s, void *dst, const void *src, size_t bytes);
    nxt_status (*sync)(void *s);

    /* y[n] = wte[ids[n]] + wpe[pos[n]]   (wpe may be absent) */
    void (*embed_fwd)(void *s, nxt_mat y, nxt_mat wte, nxt_mat wpe, const int32_t *ids,
                      const int32_t *pos);
    void (*embed_bwd)(void *s, nxt_mat dwte, nxt_mat dwpe, nxt_mat dy, const int32_t *ids,
                      const int32_t *pos);
    /* y = norm(x) * w + b; stats (rows,2) f32: mean and 1/std, kept for backward */
    void (*norm_fwd)(void *s, nxt_mat y, nxt_mat stats, nxt_mat x, nxt_mat w, nxt_mat b,
                     float eps, nxt_norm_kind kind);
    /* dx += , dw += , db += ; dw and db may be absent */
    void (*norm_bwd)(void *s, nxt_mat dx, nxt_mat dw, nxt_mat db, nxt_mat dy, nxt_mat x,
                     nxt_mat w, nxt_mat stats, nxt_norm_kind kind);
    /* c = alpha op(a) op(b) + beta c + bias (one row, may be absent); beta 0 ignores what c held */
    void (*matmul)(void *s, nxt_mat c, nxt_mat a, nxt_mat b, int trans, float alpha, float beta,
                   nxt_mat bias);
    /* db += sum of the rows of dy */
    void (*bias_bwd)(void *s, nxt_mat db, nxt_mat dy);
    /* rotates the first 2 * pairs values of every head in place by pos[n] * freq[i]; sign -1
     * is the inverse */
    void (*rope)(void *s, nxt_heads x, const float *freq, int pairs, const int32_t *pos,
                 float sign);
    /* y[n] = sum_j softmax_j(scale q[n].k[j]) v[j] over key rows first[n] <= j <= last[n];
     * lse (rows, heads). Query head h reads key head h / (q.heads / k.heads). */
    void (*attention_fwd)(void *s, nxt_heads y, nxt_mat lse, nxt_heads q, nxt_heads k,
                          nxt_heads v, const int32_t *first, const int32_t *last, float scale);
    /* dq, dk, dv are set, not accumulated. work: (rows, heads) f32 */
    void (*attention_bwd)(void *s, nxt_heads dq, nxt_heads dk, nxt_heads dv, nxt_heads dy,
                          nxt_heads y, nxt_mat lse, nxt_mat work, nxt_heads q, nxt_heads k,
                          nxt_heads v, const int32_t *first, const int32_t *last, float scale);
    void (*act_fwd)(void *s, nxt_mat y, nxt_mat x,
                    nxt_act_kind kind); /* y = act(x); y may be x */
    void (*act_bwd)(void *s, nxt_mat dx, nxt_mat dy, nxt_mat x,
                    nxt_act_kind kind); /* dx = dy act'(x); dx may be dy */
    void (*mul)(void *s, nxt_mat y, nxt_mat a, nxt_mat b); /* y = a b, each element; y may be any */
    /* y = beta y + (x / (1 - rate) where a hash of mix(key[n] + site) and the column says so, else
     * 0): see the reference for the hash; y may be x when beta is 0 */
    void (*dropout)(void *s, nxt_mat y, nxt_mat x, const uint64_t *key, uint64_t site, float rate,
                    float beta);
    void (*gather)(void *s, nxt_mat y, nxt_mat x, const int32_t *rows);  /* y[n] = x[rows[n]] */
    void (*scatter)(void *s, nxt_mat y, nxt_mat x, const int32_t *rows); /* y[rows[n]] = x[n] */
    void (*store)(void *s, nxt_heads y, nxt_heads x,
                  const int32_t *slot); /* y[slot[n], h] = x[n, h] */
    void (*fill)(void *s, nxt_mat x, float value);
    void (*convert)(void *s, nxt_mat y, nxt_mat x); /* y = x in the type of y */
    /* loss[n] = -log softmax(logits[n])[label[n]] for label >= 0, else 0; with `backward`
     * logits become d sum(loss) / d logits */
    void (*xent)(void *s, float *loss, nxt_mat logits, const int32_t *label, int backward);
    void (*sumsq)(void *s, double *out, nxt_mat x); /* *out += sum of squares */
    void (*adamw)(void *s, const nxt_adamw *update);
} nxt_backend;

#ifdef __cplusplus
}
#endif
#endif
