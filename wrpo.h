/* wrpo.h - Weighted-Reward Preference Optimization in one C header. MIT licence, at the end.

   --------------------------------------------------------------------------------------------- >>top
   WRPO (Yang et al., ICLR 2025) fuses what different language models are good at into one of them, with no alignment
   of vocabularies. Source models answer the prompts, and a reward model picks the best answer, y_ws. The model itself
   gives its best answer, y_wt, and its worst, y_l. Preference optimization on such quadruples then moves the model from
   its own good answers toward the sources'. This file takes a Hugging Face checkpoint and a JSONL file of quadruples
   and gives back a fine-tuned Hugging Face checkpoint, on the CPU, in float or bfloat16, without Python.

   In one C file of your project (the only dependency is stb_ds: Debian's libstb-dev, or stb_ds.h beside this file):

       #define WRPO_IMPLEMENTATION
       #include "wrpo.h"

   and where you use it:

       #include "wrpo.h"
       wrpo_ctx *ctx; wrpo_model *model; wrpo_tokenizer *tok; wrpo_data *data; wrpo_metrics last;
       wrpo_error why;
       if (wrpo_open(&(wrpo_desc){.why = &why}, &ctx)) return fprintf(stderr, "%s\n", why.text), 1;
       if (wrpo_model_load(ctx, &(wrpo_model_desc){.dir = "SmolLM2-135M-Instruct"}, &model)
        || wrpo_tokenizer_load(ctx, "SmolLM2-135M-Instruct", &tok)
        || wrpo_data_load(tok, &(wrpo_data_desc){.path = "quads.jsonl"}, &data)
        || wrpo_train(model, data, &(wrpo_train_desc){.batch_size = 16, .learning_rate = 1e-6}, &last)
        || wrpo_model_save(model, &(wrpo_save_desc){.dir = "fused"}))
           fprintf(stderr, "%s\n", wrpo_last_error(ctx)->text);

   A prompt's text in, the answer's text out:

       char *answer;
       if (!wrpo_answer(model, tok, "Why is the sky blue?", NULL, &answer)) fputs(answer, stdout);
       wrpo_free(ctx, answer);

   One optimizer step on token ids (p, a, b and c are arrays of int32_t). In a run of one step, warm-up would make the
   rate 0, and a rising alpha would be 0:

       wrpo_trainer *t; wrpo_metrics m;
       const wrpo_tokens y[] = {{.role = WRPO_ROLE_SOURCE, .ids = a, .count = 5},
                                {.role = WRPO_ROLE_TARGET, .ids = b, .count = 4},
                                {.role = WRPO_ROLE_REJECTED, .ids = c, .count = 6}};
       const wrpo_record record = {.prompt = p, .prompt_count = 7, .responses = y, .count = 3};
       const wrpo_train_desc desc = {.max_steps = 1, .warmup_ratio = WRPO_ZERO,
                                     .alpha_schedule = WRPO_ALPHA_SCHEDULE_CONSTANT};
       if (wrpo_data_from_ids(ctx, &record, 1, &data) || wrpo_trainer_new(model, data, &desc, &t)
        || wrpo_trainer_step(t, &m)) ...

   Build:  cc -O2 -fopenmp main.c wrpo_impl.c -lm      without -fopenmp: one thread. No other flag is needed:
           the fast ops pick AVX-512, AVX2 or portable code when the program runs.

   Options, defined before the implementation:
       WRPO_API                  linkage of the public functions (extern); static makes the library private
       WRPO_NO_SIMD              leaves out the fast ops: the plain ones of >>ops serve on every machine
       WRPO_STB_DS_H             stb_ds.h, as #include takes it: <stb/stb_ds.h>, or "stb_ds.h" where that is not found
       WRPO_MPI                  ranks over MPI, compiled by mpicc (wrpo_mpi_open)
       WRPO_FILE                 this file, likewise, if you renamed it and your GCC is older than 12

   Does NOT: train in float16, read GGUF or pickled weights, quantize, run mixture-of-experts or encoder models, or
   download anything. NVIDIA's GPUs need wrpo_cuda.cu, the file beside this one; there is no other GPU backend.
   What a checkpoint asks for and this file does not compute is refused by name, never ignored. No function exits,
   prints, or keeps state outside a context.

   Contents (search for the tag), with their lengths in lines
       >>api         960  every public declaration, documented. For the algorithm: its parts "the algorithm" and
                          "training", and the table of ops at its end
       >>base        550  errors, arenas, text, random numbers: to be looked up
       >>loss        370  WRPO and its family, on one page; schedules of alpha and of the learning rate
       >>ops         460  every op in plain C, forward above backward: what each one means
       >>layout      150  the table of weights; memory measured, then assigned
       >>model       770  the decoder, forward and backward, over packed records with a shared prompt
       >>step        450  records of token ids -> packed batch -> log-probs -> loss -> gradients -> AdamW
       ---- Stop here if you only want the algorithm ----
       >>setup      1030  contexts, models, data and trainers, made in memory; evaluation
       >>files       250  files and directories
       >>json        480  from files to token ids, and back: this,
                          >>tensors 590, >>checkpoint 1270, >>token 1580, >>chat 1600, >>data 1010
       >>generate    620  samples, over a cache of keys and values
       >>reward      400  reward models
       >>run         730  memory plan, reference cache, metrics, resume, the loop with files
       >>recipe      660  candidates to records, splits, win rates
       >>mpi          89  ranks over MPI, with -DWRPO_MPI
       >>cpu        2180  the fast ops: dispatch, SIMD, products, attention
       >>end          22  the licence */
/* ---------------------------------------------------------------------------------------------- >>api
   Every public declaration. If you only want to use the library, read up to the end of this section.

   Results. 0 (WRPO_OK) is success everywhere, so calls chain with ||. After a failure wrpo_last_error(ctx) has the
   sentence: file, place, wanted, found. An out-parameter comes last; after a failure handles, arrays, texts and their
   counts are NULL or 0, and the contents of structs are undefined.
   Descs. 0 in a field means the documented default, and a desc of NULL is one of zeros. If a required path is missing,
   the error names the field.
   Lifetimes. What is passed to a call must live until it returns; the library copies what it needs longer. Exceptions:
     a context                     lives until everything made from it is freed
     wrpo_desc                     its backend, memory, files and log, with their user pointers, live until wrpo_close
     a trainer                     its policy, data and eval_data live until wrpo_trainer_free; its desc need not. The
                                   policy takes no adapter meanwhile
     wrpo_tensors, a frozen model  may be mapped files: these must not change until the object is freed
   What a returned pointer to const points to belongs to the object that was asked. An object that comes through an
   out-parameter is freed by the function of its kind, text and arrays by wrpo_free. All of these take NULL.
   Callbacks (allocator and logger too) run on the thread that made the call, before it returns. They must return: no
   longjmp, no exception. They may call the library, but must not change or free what the call works with.
   Threads. A context and everything made from it belong to one thread at a time; a call takes objects of one context.
   Contexts are independent, except for one variable without a lock, the seed of stb_ds's maps; no result depends on it.
   Text is UTF-8.
   Shapes are row-major and use these letters:
     n  rows (tokens) in a packed batch     D  hidden_size            V  vocab_size      L  layers
     H  query heads    G  key/value heads   d  head_dim               I  intermediate_size */
#ifndef WRPO_H
#define WRPO_H
#define WRPO_VERSION "0.1.0"
#define WRPO_VERSION_NUMBER 100  /* 10000 major + 100 minor + patch */
#if defined(WRPO_IMPLEMENTATION) && !defined(_FEATURES_H) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L  /* mmap, rename, fsync under -std=c11 */
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifndef WRPO_API
#define WRPO_API extern
#endif
#define WRPO_ZERO (-0.0)     /* an explicit zero, for a double of a desc or record where 0 means "the default" */
#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ---- */
typedef enum wrpo_result {
    WRPO_OK,
    WRPO_E_ARG,              /* an impossible option or argument */
    WRPO_E_MEMORY,           /* the allocator returned NULL, or a size does not fit */
    WRPO_E_IO,               /* a file cannot be opened, read, written or renamed */
    WRPO_E_FORMAT,           /* a file says something it must not say */
    WRPO_E_UNSUPPORTED,      /* valid, but not something this library computes */
    WRPO_E_DEVICE,           /* the backend failed */
    WRPO_E_NOT_FINITE,       /* NaN or infinity where a number is needed */
    WRPO_E_STOPPED           /* a callback asked to stop */
} wrpo_result;
typedef struct wrpo_error {
    wrpo_result code;
    int64_t line, column;    /* in the text file it is about, from 1; 0 where there is none */
    char text[512];          /* "model.safetensors: lm_head.weight: want [32000,4096], found [32000,2048]" */
} wrpo_error;

/* ---- context: all state; no globals ---- */
typedef enum wrpo_dtype { WRPO_DTYPE_DEFAULT, WRPO_DTYPE_F32, WRPO_DTYPE_BF16, WRPO_DTYPE_F16 } wrpo_dtype;
typedef struct wrpo_ctx wrpo_ctx;
typedef struct wrpo_backend wrpo_backend;
typedef struct wrpo_allocator {  /* both functions or neither; {0} = malloc and free */
    void *(*alloc)(size_t n, void *user);  /* NULL = out of memory: the call fails, nothing else */
    void (*free)(void *p, void *user);  /* p is never NULL */
    void *user;
} wrpo_allocator;
/* Files from the caller in place of the file system, for all that a call is given to read. The library still writes to
   the file system, and reads there what it wrote into out_dir or the directory of a save. A path that is no file is
   taken for a directory: PATH/config.json and so on are asked for, some more than once. */
typedef struct wrpo_files {
    /* The file's bytes, valid until close; NULL: there is no such file. *handle is for close. 0 = the file system */
    const void *(*open)(const char *path, size_t *size, void **handle, void *user);
    void (*close)(void *handle, const void *data, void *user);  /* 0 = the bytes stay until wrpo_close */
    /* The i-th name in a directory, from 0; NULL past the last. Only a save asks, to copy side files. 0 = no names */
    const char *(*list)(const char *dir, int64_t i, void *user);
    void *user;
} wrpo_files;
typedef enum wrpo_level { WRPO_LOG_INFO, WRPO_LOG_WARN } wrpo_level;
typedef struct wrpo_logger { void (*fn)(wrpo_level level, const char *text, void *user); void *user; } wrpo_logger;
/* ---- ranks: one run on several processes, machines or devices ----
   A rank is a process (or a thread) with a context of its own. All ranks make the calls marked [all] in the same order,
   with equal arguments, and get the same results. Micro-batches, prompts and lines to score are dealt to the ranks.
   Each holds all weights and gradients, and a share of AdamW's moments and of the low halves of float masters (ZeRO-1,
   Rajbhandari et al. 2020). All ranks read files; rank 0 alone writes. A call [all] that fails on one rank fails on
   all, with its sentence: before anything is moved the ranks agree that none has failed. What they were given must be
   equal, or the run does not start.
   A group moves bytes and adds nothing, so the order of a sum does not depend on it. Its functions return when their
   result is there. If one fails, with *why, the group is not used again. */
typedef struct wrpo_group {
    int rank, ranks;         /* this one, from 0; how many there are */
    int local, locals;       /* the same among the ranks of this machine, which share its memory and processors */
    bool device;             /* exchange and gather take the backend's memory; false: the host's */
    void *self;              /* what the functions are given */
    /* All-reduce: *x = the largest of all ranks' */
    wrpo_result (*most)(void *self, int64_t *x, wrpo_error *why);
    /* p[n] bytes on the host: those of rank `from` */
    wrpo_result (*broadcast)(void *self, void *p, size_t n, int from, wrpo_error *why);
    /* All-gather in place, x[ranks][n] bytes: a rank has filled x[rank]; then all are filled. dev NULL: on the host */
    wrpo_result (*gather)(void *self, void *dev, void *x, size_t n, wrpo_error *why);
    /* All-to-all: parts[i][n] = x[rank * stride, + n) of rank i, where rank is the receiver's */
    wrpo_result (*exchange)(void *self, void *dev, float *parts, const float *x, int64_t stride, int64_t n,
        wrpo_error *why);
} wrpo_group;
/* MPI's ranks, all of MPI_COMM_WORLD: compile the implementation with -DWRPO_MPI and mpicc. MPI is started if it was
   not, and ended by close if open started it. The library calls it from the thread that calls the library. */
WRPO_API wrpo_result wrpo_mpi_open(wrpo_group *out, wrpo_error *why);
WRPO_API void wrpo_mpi_close(wrpo_group *group);
/* For contexts of wrpo_backend_cuda alone. Ranks with a device each, the one of their place on the machine, which
   becomes the thread's current one: exchange and gather by NCCL, the rest by `hosts`, which stays until close. In
   wrpo_cuda.cu, compiled with -DWRPO_NCCL. */
WRPO_API wrpo_result wrpo_nccl_open(const wrpo_group *hosts, wrpo_group *out, wrpo_error *why);  /* [all] */
WRPO_API void wrpo_nccl_close(wrpo_group *group);

typedef struct wrpo_desc {
    const wrpo_backend *backend;  /* 0 = wrpo_backend_cpu() */
    int threads;             /* 0 = all that OpenMP offers; 1 without OpenMP */
    wrpo_dtype dtype;        /* F32 or BF16; 0 = the backend's own, F32 on the CPU. BF16: matrices are bfloat16; of a
                                trained one 16 low bits are kept beside it, which make it a float master. If the
                                machine has products of bfloat16, gemm rounds both factors to it. Sums are float */
    size_t memory_limit;     /* bytes that a run of wrpo_trainer_open or a generation may hold; 0 = what is free (a
                                run on a host may take more: it can swap) */
    wrpo_allocator memory;
    wrpo_files files;
    wrpo_logger log;         /* 0 = silent; wrpo_log_stderr is one */
    wrpo_error *why;         /* filled if wrpo_open fails, as there is no context to ask; may be NULL */
    const wrpo_group *group; /* the ranks; lives until wrpo_close. 0 = one rank */
    /* Micro-batch b belongs to lane b % lanes. Each lane sums its own gradient; then lanes are added in pairs, ((0 + 1)
       + (2 + 3)) + ... So bits depend on the number of lanes, not of ranks. A rank computes lanes / ranks of them, a
       power of two, and needs log2(lanes / ranks) + 1 arrays of gradients. 0 = one lane a rank */
    int64_t lanes;
} wrpo_desc;
WRPO_API wrpo_result wrpo_open(const wrpo_desc *desc, wrpo_ctx **out);  /* [all] */
WRPO_API void wrpo_close(wrpo_ctx *ctx);
WRPO_API const wrpo_error *wrpo_last_error(const wrpo_ctx *ctx);  /* until the next one; NULL ctx: "out of memory" */
WRPO_API void wrpo_free(wrpo_ctx *ctx, void *p);
/* [all] Did a rank fail in what the caller did? Then its code, on all of them, and its sentence in wrpo_last_error.
   r: how it went here; sentence: of a failure that is not the library's, otherwise NULL. */
WRPO_API wrpo_result wrpo_agree(wrpo_ctx *ctx, wrpo_result r, const char *sentence);
/* The day, "2026-11-29", that chat templates with strftime_now show; its time is noon. NULL: today, as wrpo_open sets
   it; it does not move on by itself. A run that goes on wants the day of its begin: wrpo_checkpoint_date. */
WRPO_API wrpo_result wrpo_set_date(wrpo_ctx *ctx, const char *date);
WRPO_API const char *wrpo_get_date(const wrpo_ctx *ctx);  /* "2026-11-29"; until the next wrpo_set_date */
/* The most bytes held at once, a device's included; without the CPU backend's own 4 MiB + 2 MiB a thread. */
WRPO_API size_t wrpo_memory_peak(const wrpo_ctx *ctx);
WRPO_API void wrpo_log_stderr(wrpo_level level, const char *text, void *user);

/* ---- what is written ----
   A file gets its name when it is whole and on the disk: written as NAME.wrpo-PROCESS.part, synced, renamed; then its
   directory is synced. Not synced: lines of metrics.jsonl before the end of the run (checkpoints have them).
   An input that is mapped (safetensors, JSON lines) must not be written to while it is in use: if it becomes shorter,
   the process gets SIGBUS; else it may read old and new bytes. To replace it, rename a new file over it. */

/* ---- JSON (RFC 8259, strict) ---- */
typedef enum wrpo_json_kind { WRPO_JSON_NULL, WRPO_JSON_BOOL, WRPO_JSON_NUMBER, WRPO_JSON_STRING,
                              WRPO_JSON_ARRAY, WRPO_JSON_OBJECT } wrpo_json_kind;
typedef struct wrpo_json {   /* read-only; lives until wrpo_json_free of its root */
    wrpo_json_kind kind;
    bool boolean;
    bool exact;              /* NUMBER: an integer without fraction or exponent that fits `integer` */
    const char *name;        /* of its text, as errors call it; NULL: not read from a text */
    int32_t line, column;    /* where the value begins, from 1 */
    const char *key; size_t key_size;  /* its name in the object around it; unescaped, NUL-terminated */
    const char *text; size_t size;  /* STRING: unescaped, NUL-terminated (may hold NULs); NUMBER: as written */
    double number; int64_t integer;
    int64_t count;           /* ARRAY, OBJECT: members */
    struct wrpo_json *child, *next;  /* first member; next sibling */
} wrpo_json;
/* name: what errors call the text (NULL = "JSON"). A duplicate key is an error. */
WRPO_API wrpo_result wrpo_json_parse(wrpo_ctx *ctx, const char *name, const char *text, size_t size, wrpo_json **out);
WRPO_API void wrpo_json_free(wrpo_ctx *ctx, wrpo_json *root);
WRPO_API const wrpo_json *wrpo_json_get(const wrpo_json *object, const char *key);  /* NULL: absent, or no object */
/* A string of JSON, "..." with escapes; a value on one line, numbers as they were written. wrpo_free(out). */
WRPO_API wrpo_result wrpo_json_quote(wrpo_ctx *ctx, const char *text, size_t size, char **out);
WRPO_API wrpo_result wrpo_json_text(wrpo_ctx *ctx, const wrpo_json *value, char **out);

/* ---- safetensors: a file, a shard index or a directory; memory-mapped ---- */
typedef struct wrpo_tensors wrpo_tensors;
typedef struct wrpo_tensor_info {  /* lives as long as the wrpo_tensors */
    const char *name, *dtype;  /* dtype as written: "F32", "BF16", ... */
    const char *file;        /* the file that holds it */
    int ndim; const int64_t *shape;
    int64_t count; size_t bytes;
    const void *data;        /* not aligned; little-endian */
} wrpo_tensor_info;
WRPO_API wrpo_result wrpo_tensors_open(wrpo_ctx *ctx, const char *path, wrpo_tensors **out);
WRPO_API void wrpo_tensors_close(wrpo_tensors *t);
WRPO_API int64_t wrpo_tensors_count(const wrpo_tensors *t);
WRPO_API const wrpo_tensor_info *wrpo_tensors_at(const wrpo_tensors *t, int64_t i);  /* sorted by name */
WRPO_API const wrpo_tensor_info *wrpo_tensors_find(const wrpo_tensors *t, const char *name);  /* NULL: absent */

/* ---- tokenizer and chat template: tokenizer.json, tokenizer_config.json, chat_template.jinja ---- */
typedef struct wrpo_tokenizer wrpo_tokenizer;
typedef enum wrpo_tokenizer_flags {
    WRPO_TOKENIZER_SPECIAL = 1,  /* run the post-processor (adds BOS and the like) */
    WRPO_TOKENIZER_CONTINUE = 2  /* the text continues an earlier one: nothing is prepended to it */
} wrpo_tokenizer_flags;
/* Unicode's tables, 3 MB, stay with the context. */
WRPO_API wrpo_result wrpo_tokenizer_load(wrpo_ctx *ctx, const char *dir, wrpo_tokenizer **out);
WRPO_API void wrpo_tokenizer_free(wrpo_tokenizer *tok);
WRPO_API int64_t wrpo_tokenizer_size(const wrpo_tokenizer *tok);  /* highest id + 1 */
WRPO_API int32_t wrpo_tokenizer_bos(const wrpo_tokenizer *tok);  /* -1: none */
WRPO_API int32_t wrpo_tokenizer_eos(const wrpo_tokenizer *tok);  /* -1: none */
/* flags: of wrpo_tokenizer_flags. wrpo_free(ids). */
WRPO_API wrpo_result wrpo_tokenizer_encode(wrpo_tokenizer *tok, const char *text, size_t size, unsigned flags,
        int32_t **ids, int64_t *count);
WRPO_API wrpo_result wrpo_tokenizer_decode(wrpo_tokenizer *tok, const int32_t *ids, int64_t count, bool skip_special,
        char **text, size_t *size);  /* wrpo_free(text); NUL-terminated */
/* Renders the checkpoint's own template. messages: an array of {role, content, ...}; kwargs: an object of extra
   variables, or NULL. A template's raise_exception is WRPO_E_FORMAT with its sentence. wrpo_free(text). */
WRPO_API wrpo_result wrpo_tokenizer_chat(wrpo_tokenizer *tok, const wrpo_json *messages, bool add_generation_prompt,
        const wrpo_json *kwargs, char **text, size_t *size);

/* ---- model: a Hugging Face directory in, a Hugging Face directory out ---- */
typedef enum wrpo_rope_type { WRPO_ROPE_DEFAULT, WRPO_ROPE_LINEAR, WRPO_ROPE_LLAMA3, WRPO_ROPE_YARN,
                              WRPO_ROPE_DYNAMIC, WRPO_ROPE_LONGROPE } wrpo_rope_type;
typedef struct wrpo_rope {   /* transformers' rope_parameters; 0 where the type has no such number */
    wrpo_rope_type type;
    int64_t dims;            /* elements of a head that are rotated; 0 = head_dim (Phi-3: a part of it) */
    double theta, factor, low_freq_factor, high_freq_factor;
    double beta_fast, beta_slow, attention_factor; bool yarn_truncate;
    int64_t original_max_position_embeddings;
    float short_factor[256], long_factor[256];  /* longrope: [dims / 2], for sequences up to that length; beyond */
} wrpo_rope;
typedef enum wrpo_head { WRPO_HEAD_LM, WRPO_HEAD_SCORE, WRPO_HEAD_VALUE, WRPO_HEAD_GATED } wrpo_head;
typedef struct wrpo_config {  /* config.json, old and new spellings, defaults resolved */
    char model_type[32];     /* "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "internlm2",
                                "smollm3", "olmo2", "granite", "granitemoehybrid" (without experts) */
    int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
    int64_t num_attention_heads, num_key_value_heads, head_dim;
    int64_t max_position_embeddings;
    int64_t sliding_window;  /* a position sees itself and the sliding_window - 1 before it; 0 = all */
    uint64_t sliding_layers[8];  /* bit l: layer l has the window; the others see all. Up to 512 layers */
    double rms_norm_eps, initializer_range;
    wrpo_rope rope;
    double sliding_rope_theta;  /* layers with the window rotate by this base, unscaled; 0 = as the others */
    uint64_t no_rope_layers[8];  /* bit l: layer l does not rotate q and k */
    bool attention_bias;     /* q, k, v */
    bool output_bias;        /* o */
    bool qk_norm;
    bool qk_norm_rows;       /* these norm all heads of a row together; otherwise each head by itself */
    bool tie_word_embeddings;
    bool gelu;               /* the MLP's gate: gelu_tanh in place of silu */
    bool norm_plus_one;      /* norms scale by 1 + w */
    bool post_norms;         /* norms on what attention and MLP add to the residual stream */
    bool no_pre_norms;       /* attention and MLP read the residual stream itself, without a norm */
    bool scale_embeddings;   /* by sqrt(D), rounded to the dtype of the context */
    double query_pre_attn_scalar;  /* scores are scaled by its -0.5th power; 0 = head_dim */
    double attn_logit_softcapping, final_logit_softcapping;  /* x -> cap tanh(x / cap); 0 = none */
    /* Factors; 0 = 1: of embeddings; of what attention and MLP add to the stream; of scores, in place of
       query_pre_attn_scalar. Logits are divided by logits_scaling. */
    double embedding_multiplier, residual_multiplier, attention_multiplier, logits_scaling;
    wrpo_dtype dtype;        /* as the checkpoint states */
    wrpo_head head;          /* by "architectures": LM, or a reward model's, below */
    int64_t pad_token_id, reward_token_id;  /* of reward models; -1 = none */
    double gating_temperature;
} wrpo_config;
/* path: config.json or its directory. */
WRPO_API wrpo_result wrpo_config_load(wrpo_ctx *ctx, const char *path, wrpo_config *out);

typedef struct wrpo_model wrpo_model;
typedef struct wrpo_model_desc {
    const char *dir;
    bool frozen;             /* not for training, except for an adapter: matrices stay as the file has them, mapped
                                where that is possible */
    const char *adapter;     /* directory of an adapter; wants frozen. NULL: one beside config.json is applied, and
                                refused without frozen */
} wrpo_model_desc;
typedef struct wrpo_init_desc {
    const char *config;      /* config.json or its directory */
    const char *tokenizer_dir;  /* side files that a save copies; may be NULL */
    uint64_t seed;           /* 0 = 42 */
    wrpo_dtype dtype;        /* what a save writes by default; 0 = F32 */
    bool frozen;             /* not for training, except for an adapter: in a context of bfloat16, without masters */
} wrpo_init_desc;
typedef struct wrpo_save_desc {
    const char *dir;         /* made if absent */
    wrpo_dtype dtype;        /* 0 = as loaded; of an adapter F32 */
    int64_t max_shard_size;  /* bytes; 0 = 5e9, as transformers */
    bool merge;              /* of a model with an adapter: the whole model, W + scale B A in place of W */
    bool random_rounding;    /* to BF16 up or down by chance, so that the mean is the weight: small updates are kept in
                                the mean. The same bits every time. false: to the nearest */
    const int32_t *eos; int64_t eos_count;  /* becomes eos_token_id in generation_config.json, where vLLM looks for what
                                               ends an answer: see wrpo_stop_tokens. 0 = as it was */
} wrpo_save_desc;
typedef struct wrpo_weight {  /* one tensor of the table of weights, in the Llama layout, for every family */
    const char *name;        /* "model.layers.0.self_attn.q_proj.weight" */
    int64_t rows, cols; bool vector;  /* norms and biases: cols 1, vector true */
    bool decay;              /* takes weight decay: all except norms and biases */
    wrpo_dtype dtype;        /* of data: F32; of matrices also BF16 and, in a frozen model, F16 */
    void *data;              /* [rows, cols] in the backend's memory; read-only in a frozen model */
    int64_t at;              /* its first element in arrays that mirror what is trained (gradients, moments); -1: frozen
                                beside an adapter */
} wrpo_weight;
WRPO_API wrpo_result wrpo_model_load(wrpo_ctx *ctx, const wrpo_model_desc *desc, wrpo_model **out);
/* Random weights: matrices N(0, initializer_range), norms that scale by 1, biases 0. An element depends on the seed,
   its tensor's name and its index. init reads config.json. new takes a struct; its model cannot be saved, but an
   adapter of it can. */
WRPO_API wrpo_result wrpo_model_init(wrpo_ctx *ctx, const wrpo_init_desc *desc, wrpo_model **out);
WRPO_API wrpo_result wrpo_model_new(wrpo_ctx *ctx, const wrpo_config *config, uint64_t seed, wrpo_model **out);
/* [all] Weights, config.json and side files; of a model with an adapter, see adapters. A save that is cut short leaves
   the old checkpoint, the new one, or a directory that does not open. Where weights are rounded, the log says how much
   of the training survives that (metrics.jsonl: update_kept), from 1, all, to 0: sum (round(w) - round(w0)) (w - w0)
   over sum (w - w0)^2, w0 as loaded. Less than a half is a warning. */
WRPO_API wrpo_result wrpo_model_save(wrpo_model *model, const wrpo_save_desc *desc);
WRPO_API void wrpo_model_free(wrpo_model *model);
/* What a load would say of config and tensors, in milliseconds: no weight is read. */
WRPO_API wrpo_result wrpo_model_check(wrpo_ctx *ctx, const char *dir, wrpo_config *config, int64_t *parameters,
        wrpo_dtype *dtype);
WRPO_API const wrpo_config *wrpo_model_config(const wrpo_model *model);
WRPO_API wrpo_dtype wrpo_model_dtype(const wrpo_model *model);   /* of its files: what a save writes by default */
WRPO_API int64_t wrpo_model_weights(const wrpo_model *model, const wrpo_weight **out);  /* the table; its length */
/* Of the model without its adapter; a tied weight counts once. */
WRPO_API int64_t wrpo_model_parameters(const wrpo_model *model);
/* Elements [first, first + count) of weight i of the table, as floats, from or to any backend's memory. Where there
   are float masters, these; otherwise put rounds to the weight's dtype. put refuses frozen weights. get is [all]. */
WRPO_API wrpo_result wrpo_weight_get(wrpo_model *model, int64_t i, int64_t first, int64_t count, float *out);
WRPO_API wrpo_result wrpo_weight_put(wrpo_model *model, int64_t i, int64_t first, int64_t count, const float *values);

/* ---- adapters: LoRA (Hu et al. 2021), from and to the directories of PEFT ----
   A linear layer with an adapter of rank r is  y = x W' + scale (x A') B',  A [r, in], B [out, r]. The model's own
   weights stay as they are. Only A and B are trained, so gradients, moments and saved states are theirs alone. They are
   the last weights of the model's table.
   wrpo_model_save of such a model writes the adapter alone, or with merge the whole model: W + scale B A, in float,
   rounded once. It refuses the directory of the model and that of the adapter. The reference of a training run is the
   model with the adapter as it is before step 1; a new adapter changes nothing, so that is the model without it. */
typedef struct wrpo_adapter_desc {   /* of a new adapter: A is uniform in +-1/sqrt(in), B is 0 */
    int64_t r;               /* the rank; 0 = 16 */
    double alpha;            /* scale = alpha / r; 0 = 32 */
    bool rslora;             /* scale = alpha / sqrt(r) (Kalajdzievski 2023) */
    double dropout;          /* probability that an element of A's input is 0 in a training step; 0 = none */
    const char *target;      /* "q_proj,v_proj": names of layers; 0 = "all-linear": all except lm_head */
    uint64_t seed;           /* of A; 0 = 42 */
} wrpo_adapter_desc;
/* Both want a model without an adapter, in a context of bfloat16 one that is frozen already. They freeze it. dir has
   adapter_config.json and adapter_model.safetensors. What the library does not compute (DoRA, biases, modules_to_save
   other than a reward model's score) is refused by name. */
WRPO_API wrpo_result wrpo_adapter_new(wrpo_model *model, const wrpo_adapter_desc *desc);
WRPO_API wrpo_result wrpo_adapter_load(wrpo_model *model, const char *dir);
/* The adapter's settings; target is NULL. r 0: the model has no adapter. */
WRPO_API wrpo_adapter_desc wrpo_model_adapter(const wrpo_model *model);

/* ---- data: JSON lines, or an array, of {prompt, chosen, rejected}, {messages} and what other trainers read ---- */
typedef enum wrpo_role { WRPO_ROLE_SOURCE, WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED } wrpo_role;
typedef enum wrpo_tokenization { WRPO_TOKENIZATION_CLEAN, WRPO_TOKENIZATION_AUTHORS } wrpo_tokenization;  /* >>data */
typedef enum wrpo_data_format { WRPO_DATA_FORMAT_AUTO, WRPO_DATA_FORMAT_PREFERENCE, WRPO_DATA_FORMAT_PAIRS,
                                WRPO_DATA_FORMAT_MESSAGES, WRPO_DATA_FORMAT_SHAREGPT,
                                WRPO_DATA_FORMAT_PROMPT_COMPLETION, WRPO_DATA_FORMAT_ALPACA,
                                WRPO_DATA_FORMAT_ORCA } wrpo_data_format;
/* What SFT scores of a conversation: its last answer, every turn of the assistant, or every token. */
typedef enum wrpo_sft_on { WRPO_SFT_ON_ANSWERS, WRPO_SFT_ON_ASSISTANT, WRPO_SFT_ON_ALL } wrpo_sft_on;
typedef struct wrpo_data wrpo_data;
typedef struct wrpo_data_desc {
    const char *path;
    wrpo_tokenization tokenization;  /* 0 = clean */
    int64_t max_length, max_prompt_length;  /* tokens; 0 = 2048, and 1800 / 2048 of max_length */
    int64_t limit;           /* read only that many records; 0 = all */
    /* Share of the records, in [0, 1), that are set aside for evaluation; 0 = none. A hash of the prompt's messages
       decides: records of one prompt stay together, whatever the tokenizer, the order or the length of the file */
    double eval_split;
    bool eval_part;          /* read those; false: read the others */
    wrpo_data_format format; /* 0 = by the keys of each record; all of a file have one format */
    const char *system_message;  /* the turn of the system in records that have none; "": an empty one, where the chat
                                template knows of such turns, as in the authors' trainer; NULL: none */
    wrpo_sft_on sft_on;      /* other than 0: of records of one conversation, which keeps its beginning */
    bool packing;            /* the tokens of all conversations as one stream, cut into records of max_length: a token
                                sees what is before it in its row, of other conversations too. These are the rows of
                                TRL's "wrapped" packing; of its "bfd" a row is computed like records without it */
} wrpo_data_desc;
typedef struct wrpo_source_logp {  /* of a response under a source model, in that model's own tokens and template */
    double logp;             /* log M(y|x), the sum over its tokens */
    int64_t tokens;
} wrpo_source_logp;
typedef struct wrpo_tokens {  /* one response: ids[0..count), of which ids[first..count) are scored */
    wrpo_role role;
    const int32_t *ids; int64_t count, first;
    double share;            /* of a source among its record's sources: they sum to 1, or all are 0 = equal */
    int pair_id;             /* pair methods compare a response with the rejected ones of the same pair_id */
    const wrpo_source_logp *source_logps;  /* [its data's sources]; NULL: none */
    const bool *scored;      /* [count] which of ids[first..count) are scored; NULL: all */
} wrpo_tokens;
typedef struct wrpo_record {
    const char *prompt_id;   /* "line 7" where the file has none; 0 = by number */
    int64_t line;
    const int32_t *prompt; int64_t prompt_count;
    const wrpo_tokens *responses; int count;  /* sources first, then the target's, then the rejected ones */
    double weight;           /* its loss is multiplied by it; the mean is still over records. 0 = 1 (WRPO_ZERO: 0) */
    int sources;             /* source models whose log-probs each response has; 0 = none */
} wrpo_record;
typedef struct wrpo_data_stats {
    int64_t records, prompt_tokens, response_tokens, longest;  /* longest: prompt + longest response */
    int64_t truncated_prompts, truncated_responses;
    wrpo_data_format format;
} wrpo_data_stats;
/* One line, or one element of an array, is one record. Its keys tell its format; their forms are in >>data:
     preference          prompt, chosen, rejected: a quadruple (chosen: source, target) or a pair. With K sources chosen
                         has K + 1; "weights", K numbers divided by their sum, are the sources' shares (absent: equal)
     pairs               prompt, pairs: FuseRL: [{chosen, rejected, weight}, ...], a source's own best and worst each
     messages            SFT
     sharegpt            conversations: messages of from and value; beside chosen and rejected, the prompt
     prompt-completion   prompt, completion
     alpaca              instruction and, on a line below, input: the prompt. output, or chosen and rejected
     orca                question (or query, or input): the prompt. response, or chosen and rejected
   completion, output, response and answer are one. A preference may have what source models think of its answers:
     source_logps                 InfiFPO: {"NAME": [[sum, tokens], ...], ...}, a source model's log-prob of each
                                  response and the tokens it is over: the chosen ones in their order, then the
                                  rejected ones. All records of a file name the same models
   Keys of all formats:
     system, system_prompt        a turn of the system before the prompt; empty: none
     tools, chat_template_kwargs  an array and an object, for the chat template beside the messages
     weight                       what the record's loss counts for (EAST), at least 0; 1 if absent
   Keys of two formats are refused; but chosen and rejected beside messages are a preference. The tokenizer may be
   freed afterwards. */
WRPO_API wrpo_result wrpo_data_load(wrpo_tokenizer *tok, const wrpo_data_desc *desc, wrpo_data **out);
/* Records that are token ids already. All is copied. */
WRPO_API wrpo_result wrpo_data_from_ids(wrpo_ctx *ctx, const wrpo_record *records, int64_t count, wrpo_data **out);
WRPO_API void wrpo_data_free(wrpo_data *data);
WRPO_API int64_t wrpo_data_count(const wrpo_data *data);
WRPO_API wrpo_record wrpo_data_record(const wrpo_data *data, int64_t i);  /* a view; lives as long as the data */
WRPO_API wrpo_data_stats wrpo_data_get_stats(const wrpo_data *data);

/* ---- the algorithm: pure, host, double. Log-probs in; loss and its derivatives out ---- */
typedef enum wrpo_method { WRPO_METHOD_WRPO, WRPO_METHOD_DPO, WRPO_METHOD_IPO, WRPO_METHOD_HINGE,
                           WRPO_METHOD_SIMPO, WRPO_METHOD_DPO_NORM, WRPO_METHOD_SFT,
                           WRPO_METHOD_INFIFPO, WRPO_METHOD_INFIFPO_WRPO, WRPO_METHOD_INFIFPO_IPO } wrpo_method;
typedef enum wrpo_pair { WRPO_PAIR_TARGET, WRPO_PAIR_SOURCE, WRPO_PAIR_BOTH } wrpo_pair;
typedef enum wrpo_fusion {   /* InfiFPO: which source's log-prob is a response's reference (>>loss) */
    WRPO_FUSION_MARGIN,      /* that of the source farthest from the policy as it is now */
    WRPO_FUSION_MARGIN_INITIAL,  /* of the source farthest from the policy before the run */
    WRPO_FUSION_MEAN,        /* the mean */
    WRPO_FUSION_CONFIDENCE   /* a mean in which surer sources count more */
} wrpo_fusion;
typedef struct wrpo_loss_desc {
    wrpo_method method;      /* 0 = WRPO */
    wrpo_pair pair;          /* what a pair method takes of a quadruple as chosen; 0 = the target's answer */
    double beta;             /* 0 = 0.01; 10 for simpo and dpo-norm, 2.5 for InfiFPO */
    double label_smoothing;  /* eps in [0, 0.5); 0 = none */
    double gamma_ratio;      /* simpo: gamma / beta; 0 = 0.3 (WRPO_ZERO for none) */
    bool ipo_sum;            /* ipo on sums of log-probs in place of means over tokens */
    wrpo_fusion fusion;      /* InfiFPO; 0 = margin */
    double sft_weight;       /* adds sft_weight sum_y a(y) (-log pi(y|x) / |y|) over the chosen y; 0 = nothing */
} wrpo_loss_desc;
typedef struct wrpo_response {  /* one response of a record, as the loss sees it */
    wrpo_role role;
    double share;            /* of a source among the sources: they sum to 1 */
    int64_t tokens;          /* scored tokens |y| */
    double logp, ref;        /* log pi(y|x) and log ref(y|x): sums over those tokens */
    double dlogp;            /* out: dL / d logp */
    int pair_id;             /* as in wrpo_tokens; 0 where there is one pair */
    const wrpo_source_logp *source_logps;  /* InfiFPO: [sources] */
    int sources;
} wrpo_response;
/* Loss of one record of n responses and, in r[i].dlogp, its derivatives. WRPO (Yang et al., ICLR 2025, eq. 5):
     z = beta (alpha sum_i share_i d_i + (1 - alpha) d_t - d_l),  d = logp - ref,  L = -log sigmoid(z)
   over the sources i, the target's answer t and the rejected l. Several rejected responses count as their mean; for a
   pair method, as the mean of each pair. If a role is missing that the method needs, *why says so (NULL: not wanted),
   dlogp is 0 and NaN is returned. A record without target is pairs of sources, which a pair method takes whatever
   desc->pair is. sft_tokens: the denominator of SFT's mean, the scored tokens of the whole batch. */
WRPO_API double wrpo_loss(const wrpo_loss_desc *desc, double alpha, wrpo_response *r, int n, double sft_tokens,
        const char **why);

typedef enum wrpo_alpha_schedule { WRPO_ALPHA_SCHEDULE_LINEAR, WRPO_ALPHA_SCHEDULE_CONSTANT, WRPO_ALPHA_SCHEDULE_POWER,
                                   WRPO_ALPHA_SCHEDULE_COSINE } wrpo_alpha_schedule;
typedef enum wrpo_lr_schedule { WRPO_LR_SCHEDULE_COSINE, WRPO_LR_SCHEDULE_LINEAR,
                                WRPO_LR_SCHEDULE_CONSTANT } wrpo_lr_schedule;
/* Schedules over a run of T steps; k = 0 ... T - 1 is the number of steps done before.
   alpha(k) = end f(k / T), f(u) = u, 1, u^power (0 = 2), (1 - cos(pi u)) / 2. Only a constant alpha has the end value
   in a step: a rising one would have it at k = T. k is clamped to [0, T]. */
WRPO_API double wrpo_alpha(wrpo_alpha_schedule schedule, double power, double end, int64_t k, int64_t T);
/* The factor of the learning rate: k / warmup for k < warmup, so the first step of a run with warm-up changes no
   weight. Then it falls from 1 to 0 at k = T, by a cosine or a line, or stays 1. */
WRPO_API double wrpo_lr_factor(wrpo_lr_schedule schedule, int64_t warmup, int64_t k, int64_t T);

/* ---- log-probs, hidden states ---- */
/* [all] For records [first, first + count): logps [count, K] (K: the most responses of a record in data; NaN where it
   has fewer) and, if per_token is not NULL, a new array of every scored token's log-prob in order (wrpo_free). Its
   length is the number of scored tokens of the responses. */
WRPO_API wrpo_result wrpo_logprobs(wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count,
        double *logps, float **per_token);
/* Of count token ids as one sequence: hidden [count, D], after the final norm, and logits [count, V], capped where the
   model caps them. NULL: not wanted. */
WRPO_API wrpo_result wrpo_hidden(wrpo_model *model, const int32_t *ids, int64_t count, float *hidden, float *logits);

/* ---- generation: many prompts and samples at once, over a cache of keys and values ----
   A sample depends on the model, its prompt's ids and stream, its number, the seed and the settings of sampling. It
   does not depend on what is computed beside it, nor on the batch or the threads. */
typedef struct wrpo_prompt {
    const int32_t *ids; int64_t count;  /* as the model is given them: wrpo_tokenizer_prompt makes them */
    uint64_t stream;         /* of random numbers: a hash of the prompt's name, say */
    bool own_temperature; double temperature;  /* own_temperature false: the desc's is used */
} wrpo_prompt;
typedef struct wrpo_sample {  /* lives until the callback returns */
    const int32_t *ids; const float *logps; int64_t count;  /* logps: at temperature 1, over the whole vocabulary */
    const char *text; size_t size;  /* without stop token and special tokens; NULL where there is no tokenizer */
    bool stopped;            /* by a stop token, which is the last of ids; false: cut off */
} wrpo_sample;
typedef struct wrpo_generate_desc {
    wrpo_tokenizer *tokenizer;  /* for text and stop tokens; NULL = ids only */
    int64_t n;               /* samples of each prompt; 0 = 1 */
    int64_t max_tokens;      /* of a sample, which ends at max_position_embeddings as well; 0 = 2048. Longrope
                                and dynamic rope take prompt + max_tokens (at most the position limit) as the
                                sequence's length */
    double temperature;      /* 0 = greedy: the likeliest token, of equal ones the first */
    double top_p;            /* from the fewest likeliest tokens that have this probability together; 0 = 1: all */
    int64_t top_k;           /* from the k likeliest; first top_k, then top_p of what is left; 0 = all */
    uint64_t seed;           /* 0 = 42 */
    const int32_t *stop; int64_t stop_count;  /* NULL = wrpo_stop_tokens */
    int64_t batch;           /* samples decoded at once, fewer where memory is short; 0 = 32. Changes no sample */
    /* Callbacks; one that returns false stops the call: WRPO_E_STOPPED. 0 = none. */
    bool (*on_text)(int64_t prompt, int64_t sample, const char *utf8, size_t size, void *user);  /* whole characters */
    bool (*on_done)(int64_t prompt, const wrpo_sample *samples /* [n] */, void *user); /* in the order of the prompts */
    bool (*on_step)(int64_t prompts /* done */, int64_t tokens /* made */, void *user);
    void *user;
} wrpo_generate_desc;
WRPO_API wrpo_generate_desc wrpo_generate_defaults(const wrpo_generate_desc *desc);  /* zeros resolved: log this */
/* [all] Callbacks are made on every rank; on_text by the rank that computes the prompt, on_step for its own prompts.
   A call of more than a few steps copies matrices into the order in which decoding reads them, as many as fit into half
   of the memory that is free (memory_limit): no weight may change before it ends. */
WRPO_API wrpo_result wrpo_generate(wrpo_model *model, const wrpo_prompt *prompts, int64_t count,
        const wrpo_generate_desc *desc);
/* eos_token_id of generation_config.json, or of config.json where that has none; the tokenizer's EOS; the token that
   ends an answer in its chat template (tok may be NULL). Ascending. wrpo_free(ids). */
WRPO_API wrpo_result wrpo_stop_tokens(wrpo_model *model, wrpo_tokenizer *tok, int32_t **ids, int64_t *count);
typedef struct wrpo_tokenizer_prompt_desc {
    const char *name; int64_t line;  /* what errors call the record's place; 0 = "prompts", the record's own line */
    bool raw;                /* no template: the prompt is a string, encoded as it is, with BOS and the like */
    const char *system_message;  /* as in wrpo_data_desc */
} wrpo_tokenizer_prompt_desc;
/* The ids that training gives the model for the prompt of a record ({prompt} or {messages}; tools,
   chat_template_kwargs): what the template writes, with the generation prompt. wrpo_free(ids). */
WRPO_API wrpo_result wrpo_tokenizer_prompt(wrpo_tokenizer *tok, const wrpo_tokenizer_prompt_desc *desc,
        const wrpo_json *record, int32_t **ids, int64_t *count);
/* A user's text in, the model's answer out, by the chat template. desc: as for wrpo_generate; its tokenizer and n are
   ignored. wrpo_free(answer). */
WRPO_API wrpo_result wrpo_answer(wrpo_model *model, wrpo_tokenizer *tok, const char *prompt,
        const wrpo_generate_desc *desc, char **answer);

/* ---- reward models: a conversation in, a number out ----
   A directory of any family above whose architecture ends in
     ForSequenceClassification   score.weight [labels, D] on the hidden state of the last token that is not pad_token_id
     ForRewardModel              InternLM2's: v_head.weight [1, D] on that of reward_token_id, put at the end
     ForRewardModelWithGating    ArmoRM's: objectives at the last token, weighted by a gate that reads the prompt
   The model is frozen. Conversations that begin alike are computed in one piece up to where they part. */
typedef struct wrpo_reward wrpo_reward;
typedef struct wrpo_reward_desc {
    const char *dir;
    const char *adapter;     /* directory of an adapter; one with score.weight (modules_to_save) makes a language model
                                a reward model. Texts are rendered by dir's tokenizer. NULL: one beside config.json is
                                applied */
    int64_t label;           /* which row of score.weight is the reward, from 1; 0 = it has only one */
    int64_t micro_tokens;    /* rows computed at once, a longer conversation alone; 0 = the backend's */
} wrpo_reward_desc;
WRPO_API wrpo_result wrpo_reward_load(wrpo_ctx *ctx, const wrpo_reward_desc *desc, wrpo_reward **out);
WRPO_API void wrpo_reward_free(wrpo_reward *reward);
WRPO_API const wrpo_config *wrpo_reward_config(const wrpo_reward *reward);
/* rewards[n] of n answers to one prompt, by the model's own chat template. prompt: a string, a message or an array of
   messages. */
WRPO_API wrpo_result wrpo_reward_score(wrpo_reward *reward, const wrpo_json *prompt, const char *const *answers,
        int64_t n, double *rewards);
/* rewards[n] of n conversations of token ids, as the template makes them: ids[i][counts[i]]. */
WRPO_API wrpo_result wrpo_reward_score_ids(wrpo_reward *reward, const int32_t *const *ids, const int64_t *counts,
        int64_t n, double *rewards);
/* [all] A file of candidates (see selection), or of {"prompt", "content"} lines, with their rewards; all else stays. */
typedef struct wrpo_reward_file_desc {
    const char *in, *out;    /* out gets its name when it is whole */
    bool rescore;            /* replace rewards that are there; false: keep them */
    bool (*on_line)(int64_t done, int64_t lines, void *user); void *user;  /* after each; false: WRPO_E_STOPPED */
} wrpo_reward_file_desc;
typedef struct wrpo_reward_file_stats {
    int64_t prompts, scored, kept;
    double mean, least, most;  /* of the scored rewards; NaN: none */
} wrpo_reward_file_stats;
WRPO_API wrpo_result wrpo_reward_file(wrpo_reward *reward, const wrpo_reward_file_desc *desc,
        wrpo_reward_file_stats *out);

/* ---- selection: candidates with rewards -> records to train on; prompts -> two parts; answers -> a win rate ----
   A file of candidates has one line for each prompt; other keys are ignored:
     {"prompt_id", "prompt", "sources": [{"model", "content", "reward"}, ...], "target": [likewise]}
   "tools" and "chat_template_kwargs" belong to the prompt if the template was given them. A model with several
   responses has several entries. Lines of several files with one prompt_id belong together, and those that have a
   prompt have the same; within a file a prompt_id occurs once. A reward that is not a finite number is an error. A
   response without text is left out and counted. */
typedef enum wrpo_form {     /* what a prompt becomes, by reward; of equal rewards the first in the files' order */
    WRPO_FORM_QUADS,         /* chosen: the best source's answer, the target's best; rejected: its worst */
    WRPO_FORM_SFT,           /* messages: the prompt and the best source's answer */
    WRPO_FORM_PAIR,          /* chosen, rejected: best and worst of the source that has the best (FuseChat-3.0) */
    WRPO_FORM_PAIRS,         /* pairs: best and worst of each source, weight softmax(best's reward / tau) (FuseRL) */
    WRPO_FORM_DELTA          /* chosen: the strong model's first answer; rejected: the weak one's (Geng 2025). No
                                rewards are read */
} wrpo_form;
typedef struct wrpo_select_desc {
    const char *const *in; int64_t n_in;
    const char *out;         /* NULL: only the statistics */
    wrpo_form form;          /* 0 = quads */
    int64_t top;             /* quads: that many sources, each one's best, shares softmax(reward / tau); 0 = 1 */
    double tau;              /* 0 = 1 */
    /* Leave out what is not better than the rejected response by min_gap, or by more than max_gap. 0 = keep all */
    double min_gap, max_gap;
    const char *require;     /* a key of every response, true or false, "correct" say: chosen ones must have true,
                                rejected ones false. NULL: none */
    const char *strong, *weak;  /* delta: models by name */
    /* EAST: weight = H^entropy_power / entropy_scale. H is the entropy in bits of the target's responses (of the
       sources', if there are none); responses are alike whose "answer", or else text, is the same. */
    double entropy_power;    /* 0 = no weight */
    double entropy_scale;    /* 0 = 6.8 */
} wrpo_select_desc;
typedef struct wrpo_select_model {
    const char *name;
    int64_t responses, selected;  /* selected: as a source's chosen one */
    double reward;           /* the mean */
} wrpo_select_model;
typedef struct wrpo_select_stats {
    int64_t prompts, records;
    int64_t no_source, no_target, equal, gap;  /* prompts left out: no such response, equal texts, the gap */
    int64_t empty;           /* responses left out */
    double reward[3], length[3];  /* means over the selected, by wrpo_role; length in characters; NaN: none */
    wrpo_select_model *models; int64_t n_models;  /* in the order of the files. wrpo_free(models) */
} wrpo_select_stats;
WRPO_API wrpo_result wrpo_select(wrpo_ctx *ctx, const wrpo_select_desc *desc, wrpo_select_stats *out);
/* The log-probs of records' responses under a source model, by its own tokenizer and template, for InfiFPO. The records
   of in, as for training, are written to out with `name` added to their source_logps. with: files of the same records
   (by prompt_id), whose source_logps are added too. model and tok NULL: only these. A record that the model's
   max_length would cut is refused: its mean log-prob would be another one. */
typedef struct wrpo_source_logps_desc {
    const char *in, *out;    /* out gets its name when it is whole */
    const char *name;        /* of the source model */
    const char *const *with; int64_t n_with;
    int64_t max_length;      /* tokens; 0 = the model's max_position_embeddings */
    const char *system_message;  /* as in wrpo_data_desc */
    int64_t micro_tokens;    /* rows computed at once; 0 = the backend's */
    bool (*on_step)(int64_t records /* done */, int64_t of, void *user); void *user;  /* false: WRPO_E_STOPPED */
} wrpo_source_logps_desc;
WRPO_API wrpo_result wrpo_source_logps(wrpo_ctx *ctx, wrpo_model *model, wrpo_tokenizer *tok,
        const wrpo_source_logps_desc *desc);       /* [all] */

typedef struct wrpo_split_desc {
    const char *in;          /* JSON lines. Those of the same roles and texts are one prompt: they stay together */
    const char *out[3];      /* by chance: round(share N) of the N prompts not held out; the rest; the held-out ones,
                                NULL without. Prompts stay in the file's order */
    double share;            /* 0 = 1/3, the paper's part for SFT */
    double heldout;          /* share of all prompts for the third; 0 = none */
    uint64_t seed;           /* 0 = 42 */
} wrpo_split_desc;
WRPO_API wrpo_result wrpo_split(wrpo_ctx *ctx, const wrpo_split_desc *desc, int64_t counts[4]);
/* counts: lines of each part, and those that repeat a prompt. */

/* Two files of scored answers, candidates or {"prompt_id", "content", "reward"} lines: how often a's reward is higher.
   A prompt counts 1, 1/2 for equal rewards, or 0; with several answers, the mean over their pairs. Intervals hold 95 %,
   from resampled prompts. `controlled` takes length out, in the spirit of AlpacaEval 2: it is sigmoid(theta), the rate
   at equal lengths, where P(win) = sigmoid(theta + phi tanh((length a - length b) / sd)) is fitted by maximum
   likelihood with a penalty phi^2 / 2. Swapping a and b gives 1 - rate. */
typedef struct wrpo_winrate_desc {
    const char *a, *b;
    int64_t resamples;       /* 0 = 1000 */
    uint64_t seed;           /* 0 = 42 */
} wrpo_winrate_desc;
typedef struct wrpo_winrate_stats {
    int64_t prompts, only_a, only_b;  /* in both files; left out: in one of them */
    double wins, ties, losses;  /* their shares of the pairs */
    double rate, low, high, controlled, controlled_low, controlled_high;
    double reward[2], length[2];  /* means of a and of b */
} wrpo_winrate_stats;
WRPO_API wrpo_result wrpo_winrate(wrpo_ctx *ctx, const wrpo_winrate_desc *desc, wrpo_winrate_stats *out);

/* ---- training: wrpo_train is open, step until done, save where asked, free. All but free and bytes are [all] ----
   Metrics: field, name in metrics.jsonl; means over the batch's records. A reward is beta times the method's score. */
#define WRPO_METRICS(X) \
    X(loss, "loss")          /* NaN is never logged: the run stops with an error */ \
    X(grad_norm, "grad_norm")  /* before clipping */ \
    X(learning_rate, "learning_rate") \
    X(epoch, "epoch") \
    X(cur_alpha, "cur_alpha") \
    X(rewards_chosen, "rewards/chosen")  /* weighted: alpha source + (1 - alpha) target */ \
    X(rewards_source_chosen, "rewards/source_chosen") \
    X(rewards_target_chosen, "rewards/target_chosen") \
    X(rewards_rejected, "rewards/rejected") \
    X(rewards_accuracies, "rewards/accuracies")  /* share of records with chosen > rejected */ \
    X(rewards_source_accuracies, "rewards/source_accuracies") \
    X(rewards_target_accuracies, "rewards/pivot_accuracies")  /* target > rejected; the authors' name */ \
    X(rewards_margins, "rewards/margins") \
    X(logps_chosen, "logps/chosen") \
    X(logps_source_chosen, "logps/source_chosen") \
    X(logps_target_chosen, "logps/target_chosen") \
    X(logps_rejected, "logps/rejected") \
    X(logits_chosen, "logits/chosen")  /* mean over all positions and the vocabulary; NaN if capped */ \
    X(logits_rejected, "logits/rejected")
typedef struct wrpo_metrics {  /* NaN: not defined for this method or these records */
    int64_t step, steps;     /* steps done; steps of the run */
    int64_t records, tokens;  /* of this step; tokens are rows computed: prompts once */
    double tokens_per_second, seconds;  /* of this step; since the start */
#define WRPO_X(field, name) double field;
    WRPO_METRICS(WRPO_X)
#undef WRPO_X
} wrpo_metrics;

/* How the moments of AdamW are stored: float; bfloat16; or blocks of WRPO_BLOCK elements (after Dettmers et al. 2022):
   a byte for each, then a float s, the largest magnitude. m = +-s (q / 127)^4 with +-q a signed byte; v = s (q / 255)^4
   with q unsigned, never 0 for a v above 0. Moments move by less than half a step of bfloat16, so what is not float is
   rounded up or down at random, with the right mean. */
typedef enum wrpo_moments { WRPO_MOMENTS_F32, WRPO_MOMENTS_BF16, WRPO_MOMENTS_8BIT } wrpo_moments;
enum { WRPO_BLOCK = 256, WRPO_BLOCK_BYTES = WRPO_BLOCK + 4 };
/* Bytes of one moment of count elements; whole blocks, except for F32. */
WRPO_API size_t wrpo_moments_bytes(wrpo_moments moments, int64_t count);
typedef struct wrpo_train_desc {
    wrpo_loss_desc loss;
    double alpha;            /* the schedule's end value; 0 = 0.1 (WRPO_ZERO for none) */
    wrpo_alpha_schedule alpha_schedule; double alpha_power;  /* 0 = linear; power 0 = 2 */
    double learning_rate;    /* the peak; 0 = 3e-7; 7e-6 for sft, 1e-6 for simpo, 8e-7 for dpo-norm, 1e-7 for
                                InfiFPO */
    double beta1, beta2, eps, weight_decay;  /* of AdamW; 0 = 0.9, 0.999, 1e-8, 0 (WRPO_ZERO for none) */
    wrpo_moments moments;    /* 0 = float */
    double max_grad_norm;    /* a gradient, of all weights and ranks, whose norm is larger is scaled down to it; 0 = 1;
                                negative or WRPO_ZERO = no clipping */
    wrpo_lr_schedule lr_schedule;  /* 0 = cosine */
    double warmup_ratio;     /* of the run's steps, rounded up; 0 = 0.1 (WRPO_ZERO for none) */
    double epochs;           /* 0 = 1 */
    int64_t batch_size;      /* records per optimizer step; 0 = 128 */
    int64_t accumulation;    /* a step's loss is the mean of that many means, over batch_size / accumulation
                                records each, as in the authors' trainer (sft: one mean over the batch's tokens).
                                It saves no memory, which micro_tokens does; 0 = 1 */
    int64_t max_steps;       /* 0 = by epochs */
    int64_t micro_tokens;    /* rows computed at once, a longer record alone: memory against speed; 0 = the
                                backend's: 1024; of CUDA 8192, which saves most of the traffic of gradients */
    int64_t recompute;       /* layers, from the first, that store only their input; the backward pass computes the
                                rest again: less memory, more time. -1 = all. 0: wrpo_trainer_open takes the fewest
                                that fit memory_limit, after the logits; wrpo_trainer_new recomputes no layer, and
                                the logits unless one chunk has them all. An adapter's run wants no logits again.
                                So it is for the most rows; fewer recompute less */
    uint64_t seed; bool no_shuffle;  /* seed 0 = 42 */
    const char *out_dir;     /* for metrics.jsonl and the cache of reference log-probs; NULL = no files */
    const char *ref_dir;     /* the reference; NULL = the policy as it is before step 1 */
    const wrpo_data *eval_data; int64_t eval_steps;  /* wrpo_train evaluates every eval_steps steps; 0 = at the end */
    /* A directory that wrpo_trainer_save wrote; NULL = from the start. The run goes on to the bits of one that never
       stopped. Load the policy, or make its adapter, as before step 1, not from this directory: it is the reference, if
       ref_dir is NULL. It, settings, data and backend must be the same, or are refused by name. What was trained is
       then read from the directory. */
    const char *resume;
    /* save.dir not NULL: wrpo_train writes save.dir/checkpoint-K if it ends early, after K steps (not after a device's
       error), and every save_steps steps (0 = never). Of the checkpoints that this call wrote the newest `keep` stay
       (0 = 1); older ones are removed. */
    wrpo_save_desc save; int64_t save_steps, keep;
    /* A metric: after an evaluation that has the least "loss" so far, or the most of another, wrpo_train saves the
       model in save.dir/best. A run that goes on knows the earlier ones by out_dir. NULL = never */
    const char *save_best;
    bool save_model;         /* wrpo_train saves the model in save.dir when it has done all steps. Where a finished
                                model is, metrics.jsonl is replaced only then, with it */
    bool (*on_step)(const wrpo_metrics *m, const wrpo_metrics *eval /* or NULL */, void *user);  /* 0 = none */
    void *user;              /* on_step returning false stops cleanly: WRPO_E_STOPPED */
} wrpo_train_desc;
typedef struct wrpo_bytes {  /* of a rank's run, before anything is allocated */
    size_t weights, gradients, moments, activations, head, data, total;  /* head: hidden states, logits and their
                                gradients of the tokens that are scored together (with an adapter, gradients of the
                                hidden states of all); data: records, reference */
    size_t device, room;     /* bytes of total in the backend's memory; bytes that it can give, SIZE_MAX: unknown */
    int64_t recompute;       /* layers recomputed where the most rows are computed at once */
    int64_t parameters;      /* of the model, without the adapter */
    bool logits;             /* nor logits: they are kept until the backward pass, or not wanted in it */
} wrpo_bytes;
typedef struct wrpo_trainer wrpo_trainer;
/* The zeros, resolved: log this. */
WRPO_API wrpo_train_desc wrpo_train_defaults(const wrpo_ctx *ctx, const wrpo_train_desc *desc);
/* The settings, zeros resolved, as one line of JSON under the names of the fields; no directories, data, callbacks.
   wrpo_free(text). */
WRPO_API wrpo_result wrpo_train_desc_json(wrpo_ctx *ctx, const wrpo_train_desc *desc, char **text);
/* data NULL: micro_tokens rows. adapter: a new one is trained; NULL: all weights are. */
WRPO_API wrpo_result wrpo_train_bytes(wrpo_ctx *ctx, const wrpo_config *config, const wrpo_data *data,
        const wrpo_train_desc *desc, const wrpo_adapter_desc *adapter, wrpo_bytes *out);
/* All in memory: no file is read or written; the reference is the policy as it is now. */
WRPO_API wrpo_result wrpo_trainer_new(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
        wrpo_trainer **out);
/* With the desc's files: out_dir, ref_dir, resume. */
WRPO_API wrpo_result wrpo_trainer_open(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
        wrpo_trainer **out);
/* m->step == m->steps: that was the last. A step that fails before its update (no memory, NaN) changes no weight. */
WRPO_API wrpo_result wrpo_trainer_step(wrpo_trainer *t, wrpo_metrics *m);
/* data: the training data or desc.eval_data, whose reference log-probs are known. */
WRPO_API wrpo_result wrpo_trainer_eval(wrpo_trainer *t, const wrpo_data *data, wrpo_metrics *m);
/* The model, as wrpo_model_save writes it, and beside it the run's state, for wrpo_train_desc.resume:
   trainer_state.wrpo, a safetensors file of the weights as the optimizer has them (float), their moments NAME.exp_avg
   and NAME.exp_avg_sq, metrics.jsonl, and, as metadata, the step and all that must be the same. */
WRPO_API wrpo_result wrpo_trainer_save(wrpo_trainer *t, const wrpo_save_desc *desc);
WRPO_API void wrpo_trainer_free(wrpo_trainer *t);
/* The date that the chat template showed in the data of the run that wrote this checkpoint; NULL: it showed none.
   wrpo_set_date takes it before the data is loaded again. wrpo_free(date). */
WRPO_API wrpo_result wrpo_checkpoint_date(wrpo_ctx *ctx, const char *dir, char **date);
/* The metrics of a model on data, without training. Of desc: loss, alpha (taken as it is), micro_tokens, ref_dir and
   out_dir (the reference's cache). Without ref_dir the model is its own reference, and every reward is 0. */
WRPO_API wrpo_result wrpo_eval(wrpo_model *model, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_metrics *m);
/* One line of JSON, the names with a prefix ("", "eval_"); undefined metrics are left out. wrpo_free(text). */
WRPO_API wrpo_result wrpo_metrics_json(wrpo_ctx *ctx, const wrpo_metrics *m, const char *prefix, char **text);
/* last: the last step's metrics; may be NULL. */
WRPO_API wrpo_result wrpo_train(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
        wrpo_metrics *last);

/* ---- names of enum values, as files and the command line spell them: "dpo-norm", ...; NULL past the last ---- */
WRPO_API const char *wrpo_method_name(int i);
WRPO_API const char *wrpo_pair_name(int i);
WRPO_API const char *wrpo_fusion_name(int i);
WRPO_API const char *wrpo_alpha_schedule_name(int i);
WRPO_API const char *wrpo_lr_schedule_name(int i);
WRPO_API const char *wrpo_moments_name(int i);
WRPO_API const char *wrpo_rope_name(int i);
WRPO_API const char *wrpo_form_name(int i);
WRPO_API const char *wrpo_data_format_name(int i);
WRPO_API const char *wrpo_sft_on_name(int i);

/* ---- backend: memory and about twenty ops; the model is written once, above this table ----
   To replace one op:  wrpo_backend be = *wrpo_backend_cpu(); be.gemm = my_gemm;   dev is what the table's open made.
   What every op keeps, a replaced one as well (>>ops defines them):
     y and dx are written (gather_bwd adds to dx), dw (float: gradients) is added to; no op allocates, waits or exits
     an op gives the same bits again, with any number of threads; and a row of a product NT or NN or of attention
     depends on that row's inputs only: a record has the same bits whatever is computed beside it (products by
     cuBLASLt: as far as NVIDIA's library keeps to it; wrpo_cuda.cu says how it is asked to, and that decoding adds
     long rows of attention up in another order than a forward pass)
     pointers are the backend's memory, and overlap only where the op says so
     activations have act_bytes bytes an element (4 = float, 2 = bfloat16); a matrix of weights has its dtype beside it;
     vectors of weights, gradients and float * are float
     ldx: elements from one row of x to the next */
typedef enum wrpo_mm {       /* c[m,n] = or += */
    WRPO_MM_NT,              /* a[m,k] b[n,k]'   activations, weights -> activations:  y = x W' */
    WRPO_MM_NT_FLOAT,        /* the same, but c is float */
    WRPO_MM_NN,              /* a[m,k] b[k,n]    activations, weights -> activations:  dx = dy W */
    WRPO_MM_TN               /* a[k,m]' b[k,n]   activations, activations -> float:    dW += dy' x */
} wrpo_mm;
typedef struct wrpo_seg {
    int64_t begin, end;      /* rows of q and o */
    int64_t prefix, prefix_end;  /* rows of k and v at positions from 0, which all rows of q see (a response's
                                    prompt); equal: none */
    /* Its own rows of k and v, after the prefix. The last row of q is at the last of their positions; each row sees
       those up to its own. In training these are begin and end; in decoding they include earlier tokens. */
    int64_t own, own_end;
} wrpo_seg;
typedef struct wrpo_attn {
    int64_t n; const wrpo_seg *segs; int64_t n_segs;  /* in the backend's memory; they cover rows 0..n of q in order */
    int64_t H, G, d;         /* H query heads share G key/value heads: head h uses h / (H / G) */
    int64_t ldq, ldkv, ldo;  /* q [n, ldq], k and v [n, ldkv], o [n, ldo]; likewise for dq, dk, dv, do */
    int64_t window;          /* a key is visible if position(q) - position(k) < window; 0 = no limit */
    float scale, softcap;    /* softmax(scale q.k); softcap 0 = none */
} wrpo_attn;
typedef struct wrpo_adamw {
    float lr, beta1, beta2, eps, weight_decay, grad_scale;
    double correction1, correction2;  /* 1 - beta1^t, sqrt(1 - beta2^t); t from 1 */
    wrpo_moments moments;
    uint64_t seed;           /* of the random rounding: of this step and array */
} wrpo_adamw;
typedef struct wrpo_dropout {
    float scale, p; uint64_t seed, stream;
    int64_t row;             /* of the first row: random numbers belong to elements, whatever is computed together */
} wrpo_dropout;
typedef enum wrpo_feature {
    WRPO_FEATURE_BF16 = 1,   /* a context of bfloat16 multiplies it in hardware: AVX512_BF16 */
    WRPO_FEATURE_AMX = 2,    /* and in tiles */
    WRPO_FEATURE_CUBLAS = 4, /* CUDA: products by cuBLASLt; without it by the backend's own kernel of mma.sync */
    WRPO_FEATURE_WGMMA = 8,  /* CUDA: products by its kernel of wgmma and TMA; refused where the device cannot */
    WRPO_FEATURE_GRAPHS = 16 /* CUDA: decoding steps are recorded and replayed */
} wrpo_feature;
struct wrpo_backend {
    const char *name;
    int act_bytes;
    wrpo_dtype dtype;        /* what a context's dtype is by default */
    bool host;               /* its memory is the host's: weights may be in a mapped file */
    int64_t micro_tokens;    /* of descs that leave it open; at least 1 */
    unsigned features;       /* of wrpo_feature: what open uses where the machine has it. A copy may have others */
    wrpo_result (*open)(void **dev, const wrpo_desc *desc, wrpo_error *why);
    void (*close)(void *dev);
    void *(*alloc)(void *dev, size_t n);  /* NULL: out of memory; 64-byte aligned */
    size_t (*room)(void *dev);  /* bytes that alloc can still give; NULL: not known */
    void (*release)(void *dev, void *p);
    void (*put)(void *dev, void *dst, const void *host, size_t n);
    void (*get)(void *dev, void *host, const void *src, size_t n);  /* waits */
    void (*copy)(void *dev, void *dst, const void *src, size_t n);
    void (*zero)(void *dev, void *dst, size_t n);
    wrpo_result (*sync)(void *dev, wrpo_error *why);  /* waits; the first error since the last */
    /* Runs ops(user), or replays a recording with the same key. The key must determine every pointer and size; what
       changes from call to call is in the backend's memory. ops only calls ops of this table, copy and zero, and may be
       called twice (the first time nothing is run). release forgets all recordings. NULL: ops are called. */
    void (*replay)(void *dev, const int64_t key[4], void (*ops)(void *user), void *user);
    /* c = a b (beta 0) or c += a b (beta 1). b_type: of a weight; not used for TN */
    void (*gemm)(void *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b, int64_t ldb,
        wrpo_dtype b_type, int64_t m, int64_t n, int64_t k, float beta);
    /* What decoding multiplies again and again. keep writes b, of NT products, to `to` in the order in which gemm reads
       it, in its own type: keep_bytes of the backend's memory, 0: it has no use for that. From then on gemm may read
       `to` where it is given b, which must not change until forget. The bits are the same. NULL: nothing is kept */
    size_t (*keep_bytes)(void *dev, wrpo_dtype b_type, int64_t n, int64_t k);
    void (*keep)(void *dev, void *to, const void *b, int64_t ldb, wrpo_dtype b_type, int64_t n, int64_t k);
    void (*forget)(void *dev);  /* all of them */
    /* y[r] = scale w[ids[r]]  and  dw[ids[r]] += scale dy[r] */
    void (*embed)(void *dev, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids, int64_t n, int64_t D,
        float scale);
    void (*embed_bwd)(void *dev, float *dw, const void *dy, const int32_t *ids, int64_t n, int64_t D, float scale);
    /* y[r] = x[index[r]]  and  dx[index[r]] += scale[r] dy[r]: dx is added to, as indices repeat. scale NULL: 1; a row
       of scale 0 is left out, whatever it is */
    void (*gather)(void *dev, void *y, const void *x, const int32_t *index, int64_t n, int64_t D);
    void (*gather_bwd)(void *dev, void *dx, const void *dy, const float *scale, const int32_t *index, int64_t n,
        int64_t D);
    /* y[index[r]] = x[r], rows of D elements; no index twice. Only decoding needs it (NULL: it is refused) */
    void (*scatter)(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, const int32_t *index, int64_t n,
        int64_t D);
    /* y[r] += b  and  db += sum_r dy[r] */
    void (*bias)(void *dev, void *y, int64_t ldy, const float *b, int64_t n, int64_t D);
    void (*bias_bwd)(void *dev, float *db, const void *dy, int64_t lddy, int64_t n, int64_t D);
    /* y[cols] = sum_r w[r] */
    void (*colsum)(void *dev, float *y, const void *w, wrpo_dtype w_type, int64_t rows, int64_t cols);
    void (*add)(void *dev, void *y, const void *x, int64_t count);  /* y += x */
    /* y = scale x / (1 - p), or 0 with probability p, for each element by itself; p is rounded to a multiple of 2^-16.
       p 0: y = scale x. y may be x. Only adapters and residual_multiplier or logits_scaling need it (NULL: they are
       refused) */
    void (*dropout)(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, int64_t n, int64_t D,
        const wrpo_dropout *d);
    /* A row is `heads` vectors of D elements:  y = (w + plus) x rstd,  rstd [n, heads] = 1 / sqrt(mean(x^2) + eps)
       dx = dres + ...; dres NULL is 0, dw NULL is not wanted. y may be x; dx may be dy or dres */
    void (*rmsnorm)(void *dev, void *y, int64_t ldy, float *rstd, const void *x, int64_t ldx, const float *w,
        int64_t n, int64_t heads, int64_t D, float eps, float plus);
    void (*rmsnorm_bwd)(void *dev, void *dx, int64_t lddx, float *dw, const void *dy, int64_t lddy, const void *dres,
        int64_t lddres, const void *x, int64_t ldx, const float *w, const float *rstd, int64_t n,
        int64_t heads, int64_t D, float plus);
    /* Rotates `heads` vectors of d elements of row r, in place, by table[index[r]], [d/2, 2] cos, sin; sign -1: back */
    void (*rope)(void *dev, void *x, int64_t ldx, const float *table, const int32_t *index, int64_t n, int64_t heads,
        int64_t d, float sign);
    /* o = softmax(s + mask) v,  s = scale q k', or softcap tanh(scale q k' / softcap);  lse [n, H] = log sum exp s */
    void (*attention)(void *dev, const wrpo_attn *a, void *o, float *lse, const void *q, const void *k, const void *v);
    void (*attention_bwd)(void *dev, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o, const void *o,
        const float *lse, const void *q, const void *k, const void *v, void *scratch);
    size_t (*attention_scratch)(void *dev, int64_t n, int64_t H, int64_t G, int64_t d);  /* bytes for the above;
                                fewer rows: no more */
    /* gu [n, 2I] = gate | up:  h = silu(gate) up  (gelu: gelu_tanh). Backward writes dgu (may be gu); h if not NULL */
    void (*glu)(void *dev, void *h, const void *gu, int64_t n, int64_t I, bool gelu);
    void (*glu_bwd)(void *dev, void *dgu, void *h, const void *dh, const void *gu, int64_t n, int64_t I, bool gelu);
    /* logits float [n, ldl], V of a row; dlogits too. x = logits, or softcap tanh(logits / softcap)
         lse[r] = log sum exp x[r],  logp[r] = x[r, label[r]] - lse[r]
         dlogits[r, v] = dlogp[r] ([v == label[r]] - exp(x[r, v] - lse[r])) dx/dlogits
       dlogits may be logits if act_bytes is 4 */
    void (*logprob)(void *dev, float *logp, float *lse, const float *logits, int64_t ldl, const int32_t *label,
        int64_t n, int64_t V, float softcap);
    void (*logprob_bwd)(void *dev, void *dlogits, const float *logits, int64_t ldl, const int32_t *label,
        const float *lse, const float *dlogp, int64_t n, int64_t V, float softcap);
    /* y += x, in float: gradients of lanes and ranks (NULL: there is one lane, or they are refused) */
    void (*sum)(void *dev, float *y, const float *x, int64_t count);
    void (*sumsq)(void *dev, double *out, const float *x, int64_t count);  /* *out += sum x^2, in double */
    /* One AdamW step (Loshchilov & Hutter 2019) as torch.optim.AdamW computes it; g is read times grad_scale. low NULL:
       w is float. Otherwise w is bfloat16, the masters rounded, and low the rest: master = (w << 16) + (int16_t)low.
       Arrays that are not float have room for whole blocks of WRPO_BLOCK elements, and all of it may be written. */
    void (*adamw)(void *dev, void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count,
        const wrpo_adamw *step);
};
WRPO_API const wrpo_backend *wrpo_backend_cpu(void);  /* the fastest of this machine */
WRPO_API const wrpo_backend *wrpo_backend_plain(void); /* the definition of each op, in plain loops: slow (>>ops) */
/* "plain", "generic", "avx2", "avx512" (without AMX) or "amx" (bfloat16 in tiles); NULL: no such name, or this machine
   or this build does not have it. "generic" uses the vectors that the compiler has for any machine. */
WRPO_API const wrpo_backend *wrpo_backend_find(const char *name);
WRPO_API const wrpo_backend *wrpo_backend_cuda(void);  /* in wrpo_cuda.cu: link it or do not call it */
#ifdef __cplusplus
}
#endif
#endif /* WRPO_H */
/* ------------------------------------------------------------------ Stop here if you only want to use it. */
#ifdef WRPO_IMPLEMENTATION
/* --------------------------------------------------------------------------------------------- >>base
   Errors, memory, text, threads, random numbers.

   How failure travels. A private function that cannot go on calls wrpo__fail, which writes the sentence into the
   context and jumps to the public entry. WRPO__CALL opened that entry with an arena. The arena owns every block,
   mapping and temporary file made since, so failure is one free. A private function returns an error code only if it
   opens an entry of its own; wrpo__rethrow passes that failure on.                                              */
#ifdef __cplusplus
#error "wrpo.h: the declarations are C and C++, the implementation is C: give it a .c file of its own"
#endif
#if defined(_FEATURES_H) && !defined(__USE_XOPEN2K8)
#error "wrpo.h: include it before any system header, or compile with -D_POSIX_C_SOURCE=200809L (WRPO_IMPLEMENTATION)"
#endif
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _WIN32
#include <sys/timeb.h>
#else
#include <unistd.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __MINGW32__
#define WRPO__PRINTF(f, a) __attribute__((format(gnu_printf, f, a), nonnull(f)))
#elif defined(__GNUC__)
#define WRPO__PRINTF(f, a) __attribute__((format(printf, f, a), nonnull(f)))
#else
#define WRPO__PRINTF(f, a)
#endif
#ifdef _MSC_VER
#define WRPO__THREAD __declspec(thread)
#else
#define WRPO__THREAD _Thread_local
#endif
#define WRPO__COUNT(a) ((int64_t)(sizeof(a) / sizeof *(a)))
#define WRPO__MIN(a, b) ((a) < (b) ? (a) : (b))
#define WRPO__MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- context, entries, arenas ---- */
enum { WRPO__ALIGN = 64 };           /* bytes that every block is aligned to: a cache line, an AVX-512 vector */
typedef struct wrpo__block {         /* stands before the bytes of one allocation; a node of its arena's ring */
    struct wrpo__block *prev, *next;
    struct wrpo__arena *arena;
    void *base; size_t size;         /* as the allocator gave it */
} wrpo__block;
enum { WRPO__BLOCK_HEAD = (sizeof(wrpo__block) + WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN };
typedef struct wrpo__cleanup { void (*fn)(void *); void *p; struct wrpo__cleanup *next; } wrpo__cleanup;
typedef struct wrpo__arena {
    wrpo_ctx *ctx;
    wrpo__block ring;                /* of its blocks; this one is none of them */
    wrpo__cleanup *cleanups;         /* run before any block is freed, the last one first */
    char *chunk; size_t used, cap;   /* a block that small things share */
} wrpo__arena;
typedef struct wrpo__frame {         /* one public entry in progress */
    jmp_buf jump;
    wrpo_ctx *ctx; struct wrpo__frame *up;
    wrpo__arena *arena, *outer;      /* outer: the arena that was current before */
    bool temporary, failed;
    bool together;                   /* an entry of all ranks: WRPO__CALL_ALL */
} wrpo__frame;
struct wrpo_ctx {
    wrpo_desc desc;                  /* resolved */
    wrpo_error error;
    wrpo__frame *frame;
    void *dev;                       /* the backend's */
    size_t bytes, peak, device_bytes;                  /* held; the most ever held; held of the backend's memory */
    wrpo__arena *handouts;           /* text and arrays given to the caller; unicode */
    void *unicode;                   /* by >>token */
    int peers;                       /* of the group: WRPO__SOUND, ... */
    time_t now;                      /* what chat templates show */
    char date[40];                   /* its day */
};
static WRPO__THREAD wrpo__arena *wrpo__current;        /* the innermost entry's arena, where stb_ds allocates */

static int32_t wrpo__utf8_get(const char *s, size_t n, size_t *size);
/* line, column: a position in a text file. The sentence should state it as well: "%s:%lld: ...". */
_Noreturn WRPO__PRINTF(5, 6) static void wrpo__fail_at(wrpo_ctx *ctx, wrpo_result code, int64_t line, int64_t column,
                                                       const char *format, ...) {
    char *text = ctx->error.text;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof ctx->error.text, format, args);
    va_end(args);
    ctx->error.code = code;
    ctx->error.line = line;
    ctx->error.column = column;
    const size_t n = strlen(text);
    for (size_t i = 0, size; i < n; i += size) {       /* foreign text may hold any byte, or be cut in a character */
        const int32_t c = wrpo__utf8_get(text + i, n - i, &size);
        if (c < 0x20 || c == 0x7F) memset(text + i, '?', size);
    }
    longjmp(ctx->frame->jump, 1);
}
#define wrpo__fail(ctx, code, ...) wrpo__fail_at(ctx, code, 0, 0, __VA_ARGS__)
WRPO__PRINTF(3, 4) static void wrpo__log(wrpo_ctx *ctx, wrpo_level level, const char *format, ...) {
    char text[1024];
    if (!ctx->desc.log.fn) return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ctx->desc.log.fn(level, text, ctx->desc.log.user);
}

/* In the current context. */
#define wrpo__fail_arg(...) wrpo__fail(wrpo__current->ctx, WRPO_E_ARG, __VA_ARGS__)
#define wrpo__fail_format(...) wrpo__fail(wrpo__current->ctx, WRPO_E_FORMAT, __VA_ARGS__)
#define wrpo__fail_unsupported(...) wrpo__fail(wrpo__current->ctx, WRPO_E_UNSUPPORTED, __VA_ARGS__)
#define wrpo__fail_io(...) wrpo__fail(wrpo__current->ctx, WRPO_E_IO, __VA_ARGS__)
#define wrpo__fail_memory(...) wrpo__fail(wrpo__current->ctx, WRPO_E_MEMORY, __VA_ARGS__)
#define wrpo__warn(...) wrpo__log(wrpo__current->ctx, WRPO_LOG_WARN, __VA_ARGS__)
/* A setting that must be in a range. WRPO_ZERO is shown as 0. */
#define WRPO__RANGE(ok, name, value, wanted) \
    if (!(ok)) wrpo__fail_arg("%s: want %s, found %g", name, wanted, (double)(value) + 0.0)

/* count * size, or failure. */
static size_t wrpo__mul(wrpo_ctx *ctx, size_t count, size_t size) {
    if (size && count > (SIZE_MAX - 4 * WRPO__ALIGN) / size)
        wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %zu x %zu bytes", count, size);
    return count * size;
}
static wrpo__block *wrpo__block_of(void *p) { return (wrpo__block *)(void *)((char *)p - WRPO__BLOCK_HEAD); }
static void wrpo__block_free(void *p) {
    if (!p) return;
    wrpo__block *b = wrpo__block_of(p);
    wrpo_ctx *ctx = b->arena->ctx;
    b->next->prev = b->prev;
    b->prev->next = b->next;
    ctx->bytes -= b->size;
    ctx->desc.memory.free(b->base, ctx->desc.memory.user);
}
/* A block of n bytes, not cleared; NULL: out of memory. p: NULL, or a block whose bytes it takes over. */
static void *wrpo__block_resize(wrpo__arena *arena, void *p, size_t n) {
    if (p) arena = wrpo__block_of(p)->arena;
    wrpo_ctx *ctx = arena->ctx;
    if (n > SIZE_MAX - WRPO__BLOCK_HEAD - WRPO__ALIGN) return NULL;
    const size_t size = WRPO__BLOCK_HEAD + n + WRPO__ALIGN;
    void *base = ctx->desc.memory.alloc(size, ctx->desc.memory.user);
    if (!base) return NULL;
    const uintptr_t end = (uintptr_t)base + WRPO__BLOCK_HEAD + WRPO__ALIGN - 1;
    char *data = (char *)(end - end % WRPO__ALIGN);
    wrpo__block *b = wrpo__block_of(data);
    *b = (wrpo__block){&arena->ring, arena->ring.next, arena, base, size};
    b->next->prev = b->prev->next = b;
    ctx->bytes += size;
    ctx->peak = WRPO__MAX(ctx->peak, ctx->bytes);
    if (p) {
        const wrpo__block *old = wrpo__block_of(p);
        const size_t kept = old->size - (size_t)((char *)p - (char *)old->base);
        memcpy(data, p, WRPO__MIN(kept, n));
        wrpo__block_free(p);
    }
    return data;
}
static void *wrpo__resize(wrpo__arena *arena, void *p, size_t n) {     /* likewise, or failure */
    p = wrpo__block_resize(arena, p, n);
    if (!p)
        wrpo__fail(arena->ctx, WRPO_E_MEMORY, "out of memory: %zu bytes wanted, %zu held", n, arena->ctx->bytes);
    return p;
}
/* count * size bytes, not cleared, in a block of their own. Freed with the arena or by wrpo__block_free. */
static void *wrpo__raw(wrpo__arena *arena, size_t count, size_t size) {
    return wrpo__resize(arena, NULL, wrpo__mul(arena->ctx, count, size));
}
/* count * size bytes, cleared. Small things share a block. */
static void *wrpo__alloc(wrpo__arena *arena, size_t count, size_t size) {
    const size_t n = (wrpo__mul(arena->ctx, count, size) + 15) / 16 * 16;
    if (n > 4096) return memset(wrpo__raw(arena, n, 1), 0, n);
    if (n > arena->cap - arena->used) {
        const size_t cap = arena->cap ? WRPO__MIN(arena->cap * 4, (size_t)1 << 16) : 4096;
        arena->chunk = wrpo__raw(arena, cap, 1);
        arena->cap = cap;
        arena->used = 0;
    }
    void *p = arena->chunk + arena->used;
    arena->used += n;
    return memset(p, 0, n);
}
#define WRPO__NEW(arena, T) ((T *)wrpo__alloc(arena, 1, sizeof(T)))
#define WRPO__ARRAY(T, n) ((T *)wrpo__alloc(wrpo__current, (size_t)(n), sizeof(T)))
static char *wrpo__strndup(wrpo__arena *arena, const char *s, size_t n) {
    char *p = wrpo__alloc(arena, n + 1, 1);
    if (n) memcpy(p, s, n);
    return p;
}
/* fn(p) when the arena is freed, if p is not NULL. To own a thing before it exists, register NULL and set ->p later. */
static wrpo__cleanup *wrpo__on_free(wrpo__arena *arena, void (*fn)(void *), void *p) {
    wrpo__cleanup *c = WRPO__NEW(arena, wrpo__cleanup);
    *c = (wrpo__cleanup){fn, p, arena->cleanups};
    return arena->cleanups = c;
}
static wrpo__arena *wrpo__arena_new(wrpo_ctx *ctx) {   /* NULL: out of memory */
    wrpo__arena *arena = ctx->desc.memory.alloc(sizeof *arena, ctx->desc.memory.user);
    if (!arena) return NULL;
    *arena = (wrpo__arena){.ctx = ctx, .ring = {.prev = &arena->ring, .next = &arena->ring}};
    ctx->bytes += sizeof *arena;
    return arena;
}
static void wrpo__arena_clear(wrpo__arena *arena) {    /* as new; all that it owned is freed */
    for (; arena->cleanups; arena->cleanups = arena->cleanups->next)
        if (arena->cleanups->p) arena->cleanups->fn(arena->cleanups->p);
    while (arena->ring.next != &arena->ring) wrpo__block_free((char *)arena->ring.next + WRPO__BLOCK_HEAD);
    arena->used = arena->cap = 0;
}
static void wrpo__arena_free(wrpo__arena *arena) {
    if (!arena) return;
    wrpo__arena_clear(arena);
    arena->ctx->bytes -= sizeof *arena;
    arena->ctx->desc.memory.free(arena, arena->ctx->desc.memory.user);
}
/* An arena inside another one, which frees it. */
static void wrpo__free_arena(void *p) { wrpo__arena_free(p); }
static wrpo__arena *wrpo__sub_arena(wrpo__arena *arena) {
    wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__free_arena, NULL);
    wrpo__arena *sub = owner->p = wrpo__arena_new(arena->ctx);
    if (!sub) wrpo__fail(arena->ctx, WRPO_E_MEMORY, "out of memory: %zu bytes held", arena->ctx->bytes);
    return sub;
}
/* ---- ranks: they agree that none has failed ---- */
static int wrpo__my_rank(const wrpo_ctx *ctx) { return ctx->desc.group ? ctx->desc.group->rank : 0; }
static int wrpo__ranks(const wrpo_ctx *ctx) { return ctx->desc.group ? ctx->desc.group->ranks : 1; }
/* No failure; a rank failed and all know it; the group itself failed, and is not used again. */
enum { WRPO__SOUND, WRPO__AGREED, WRPO__ALONE };
static int wrpo__alone(const wrpo_group *g, wrpo_error *error, const wrpo_error why) {
    *error = (wrpo_error){.code = WRPO_E_DEVICE};
    snprintf(error->text, sizeof error->text, "rank %d: the group failed: %.400s", g->rank, why.text);
    return WRPO__ALONE;
}
/* Has a rank failed (here: failed, *error)? Then *error is that of the first such rank on all of them, and names it,
   unless all failed. It is the maximum of ranks - rank over those that failed. Nothing is allocated: it may be memory
   that failed. */
static int wrpo__ask(const wrpo_group *g, bool failed, wrpo_error *error) {
    int64_t first = failed ? g->ranks - g->rank : 0, sound = !failed;
    wrpo_error why = {0}, said = *error;
    wrpo_result r = g->most(g->self, &first, &why);
    if (r == WRPO_OK && first == 0) return WRPO__SOUND;
    const int who = g->ranks - (int)first;
    if (r == WRPO_OK) r = g->most(g->self, &sound, &why);
    if (r == WRPO_OK) {
        if (sound) snprintf(error->text, sizeof error->text, "rank %d: %.490s", who, said.text);
        r = g->broadcast(g->self, error, sizeof *error, who, &why);
    }
    if (r == WRPO_OK) return WRPO__AGREED;
    if (!failed) return wrpo__alone(g, error, why);
    *error = said;
    return WRPO__ALONE;
}
/* Before anything is moved between ranks: if one has failed, all fail with its sentence. */
static void wrpo__agree(wrpo_ctx *ctx) {
    if (ctx->desc.group && ctx->peers != WRPO__ALONE) ctx->peers = wrpo__ask(ctx->desc.group, false, &ctx->error);
    if (ctx->peers) longjmp(ctx->frame->jump, 1);
}
/* After a call of the group's, which was given &ctx->error for its reason: has it failed? */
static void wrpo__group_check(wrpo_ctx *ctx, wrpo_result r) {
    if (r == WRPO_OK) return;
    ctx->peers = wrpo__alone(ctx->desc.group, &ctx->error, ctx->error);
    longjmp(ctx->frame->jump, 1);
}
/* The same on the host, once the ranks agree. */
static void wrpo__broadcast(wrpo_ctx *ctx, void *p, size_t n, int from) {
    const wrpo_group *g = ctx->desc.group;
    wrpo__agree(ctx);
    if (g) wrpo__group_check(ctx, g->broadcast(g->self, p, n, from, &ctx->error));
}
static void wrpo__gather(wrpo_ctx *ctx, void *x, size_t n) {
    const wrpo_group *g = ctx->desc.group;
    wrpo__agree(ctx);
    if (g) wrpo__group_check(ctx, g->gather(g->self, NULL, x, n, &ctx->error));
}
static int64_t wrpo__most(wrpo_ctx *ctx, int64_t x) {
    const wrpo_group *g = ctx->desc.group;
    wrpo__agree(ctx);
    if (g) wrpo__group_check(ctx, g->most(g->self, &x, &ctx->error));
    return x;
}
/* A public entry:    WRPO__CALL(ctx, arena, temporary, call);      call: one call of a private function
                      return wrpo__end(&wrpo__entry);
   temporary false: the arena belongs to the object that is made, and is freed only on failure. An arena of NULL, for
   want of memory, is a failure as well. Entries nest. WRPO__CALL_ALL is an entry that all ranks make together. */
static bool wrpo__begin(wrpo__frame *f, wrpo_ctx *ctx, wrpo__arena *arena, bool temporary) {
    if (!ctx->frame && ctx->peers == WRPO__AGREED) ctx->peers = WRPO__SOUND;
    *f = (wrpo__frame){.ctx = ctx, .up = ctx->frame, .arena = arena, .outer = wrpo__current,
                       .temporary = temporary, .failed = true};
    ctx->frame = f;
    if (arena) wrpo__current = arena;
    else ctx->error = (wrpo_error){WRPO_E_MEMORY, 0, 0, "out of memory"};
    return arena != NULL;
}
#define WRPO__CALL(context, new_arena, is_temporary, call) \
    wrpo__frame wrpo__entry; \
    if (wrpo__begin(&wrpo__entry, context, new_arena, is_temporary) && setjmp(wrpo__entry.jump) == 0) { \
        call; \
        wrpo__entry.failed = false; \
    }
#define WRPO__CALL_ALL(context, new_arena, is_temporary, call) \
    WRPO__CALL(context, new_arena, is_temporary, call) \
    wrpo__entry.together = true
static wrpo_result wrpo__end(wrpo__frame *f) {
    wrpo_ctx *ctx = f->ctx;
    if (f->together && ctx->desc.group && !ctx->peers)
        ctx->peers = wrpo__ask(ctx->desc.group, f->failed, &ctx->error);
    if (f->together && ctx->peers) f->failed = true;
    ctx->frame = f->up;
    wrpo__current = f->outer;
    if (f->failed || f->temporary) wrpo__arena_free(f->arena);
    return f->failed ? f->ctx->error.code : WRPO_OK;
}
/* A whole public entry with a new arena, and its return. */
#define WRPO__ENTRY(ctx, temporary, call) \
    WRPO__CALL(ctx, wrpo__arena_new(ctx), temporary, call) \
    return wrpo__end(&wrpo__entry)
#define WRPO__ENTRY_ALL(ctx, temporary, call) \
    WRPO__CALL_ALL(ctx, wrpo__arena_new(ctx), temporary, call); \
    return wrpo__end(&wrpo__entry)
/* After a nested entry that may have failed: passes its failure on. */
static void wrpo__rethrow(wrpo_ctx *ctx, wrpo_result r) {
    if (r != WRPO_OK) longjmp(ctx->frame->jump, 1);
}

/* ---- stb_ds: dynamic arrays and hash maps, in the current arena, under names of our own ---- */
#ifdef INCLUDE_STB_DS_H
#error "wrpo.h: give the implementation a file of its own, or include stb_ds.h after it in another one"
#endif
#define STBDS_REALLOC(context, p, n) wrpo__resize(wrpo__current, p, n)
#define STBDS_FREE(context, p) wrpo__block_free(p)
#define STBDS_NO_SHORT_NAMES
#define stbds_rand_seed wrpo__stbds_rand_seed
#define stbds_hash_bytes wrpo__stbds_hash_bytes
#define stbds_hash_string wrpo__stbds_hash_string
#define stbds_stralloc wrpo__stbds_stralloc
#define stbds_strreset wrpo__stbds_strreset
#define stbds_unit_tests wrpo__stbds_unit_tests
#define stbds_arrgrowf wrpo__stbds_arrgrowf
#define stbds_arrfreef wrpo__stbds_arrfreef
#define stbds_hmfree_func wrpo__stbds_hmfree_func
#define stbds_hmget_key wrpo__stbds_hmget_key
#define stbds_hmget_key_ts wrpo__stbds_hmget_key_ts
#define stbds_hmput_default wrpo__stbds_hmput_default
#define stbds_hmput_key wrpo__stbds_hmput_key
#define stbds_hmdel_key wrpo__stbds_hmdel_key
#define stbds_shmode_func wrpo__stbds_shmode_func
#define STB_DS_IMPLEMENTATION
#if !defined(WRPO_STB_DS_H) && defined(__has_include)
#if !__has_include(<stb/stb_ds.h>)
#define WRPO_STB_DS_H "stb_ds.h"  /* beside this file, or on the include path */
#endif
#endif
#ifndef WRPO_STB_DS_H
#define WRPO_STB_DS_H <stb/stb_ds.h>
#endif
#include WRPO_STB_DS_H
#undef STB_DS_IMPLEMENTATION
#ifdef __GNUC__  /* stb_ds says typeof, which -std=c11 does not know */
#undef STBDS_ADDRESSOF
#define STBDS_ADDRESSOF(variable, value) ((__typeof__(variable)[1]){value})
#endif

/* ---- text: a growing string in an arena; its bytes end in NUL ---- */
typedef struct wrpo__text { wrpo__arena *arena; char *data; size_t size, cap; } wrpo__text;
static void wrpo__text_room(wrpo__text *t, size_t n) { /* for n more bytes and the NUL */
    if (t->data && n < t->cap - t->size) return;
    size_t cap = WRPO__MAX(t->cap * 2, 64);
    while (cap <= t->size + n) cap *= 2;
    t->data = wrpo__resize(t->arena, t->data, cap);
    t->cap = cap;
}
static void wrpo__text_add(wrpo__text *t, const char *s, size_t n) {
    wrpo__text_room(t, n);
    if (n) memcpy(t->data + t->size, s, n);
    t->size += n;
    t->data[t->size] = 0;
}
/* printf into the arena, for paths and names. */
WRPO__PRINTF(2, 3) static char *wrpo__format(wrpo__arena *arena, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const size_t n = (size_t)vsnprintf(NULL, 0, format, args) + 1;
    va_end(args);
    char *p = wrpo__alloc(arena, n, 1);
    va_start(args, format);
    vsnprintf(p, n, format, args);
    va_end(args);
    return p;
}
/* Every rank's text, on all of them, at 8-byte boundaries, until the current arena is freed. */
static const char **wrpo__all_gather_texts(wrpo_ctx *ctx, const wrpo__text *mine) {
    const int R = wrpo__ranks(ctx);
    const size_t room = ((size_t)wrpo__most(ctx, (int64_t)mine->size) + 7) / 8 * 8;
    const char **all = wrpo__alloc(wrpo__current, (size_t)R, sizeof *all);
    char *to = wrpo__alloc(wrpo__current, wrpo__mul(ctx, (size_t)R, room) + 8, 1);
    if (mine->size) memcpy(to + (size_t)wrpo__my_rank(ctx) * room, mine->data, mine->size);
    wrpo__gather(ctx, to, room);
    for (int i = 0; i < R; i++) all[i] = to + (size_t)i * room;
    return all;
}
/* UTF-8: the code point at s (n > 0 bytes) and the size of its bytes. -1 if they are not valid (an overlong form, a
   surrogate, above U+10FFFF, cut off); *size is then the maximal subpart, to be skipped. */
static int32_t wrpo__utf8_get(const char *s, size_t n, size_t *size) {
    const unsigned char *p = (const unsigned char *)s;
    const unsigned first = p[0], more = 1u + (first >= 0xE0) + (first >= 0xF0);  /* bytes after the first */
    *size = 1;
    if (first < 0x80) return (int32_t)first;
    if (first < 0xC2 || first > 0xF4) return -1;
    unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;  /* the range of the second byte */
    unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    unsigned c = first & 0x3Fu >> more;
    for (size_t i = 1; i <= more; i++) {
        *size = i;
        if (i >= n || p[i] < low || p[i] > high) return -1;
        c = c << 6 | (p[i] & 0x3Fu);
        low = 0x80;
        high = 0xBF;
    }
    *size = more + 1;
    return (int32_t)c;
}
/* ---- time, threads ---- */
static double wrpo__now(void) {  /* seconds */
#ifdef _WIN32
    struct __timeb64 t;
    _ftime64(&t);
    return (double)t.time + 1e-3 * (double)t.millitm;
#else
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}
/* WRPO__PARFOR(threads) for (int64_t i = ...; i < n; i++) body: iterations are independent, and each writes elements
   of its own. No sum is shared by iterations, so no result depends on the number of threads. */
#define WRPO__PRAGMA(x) _Pragma(#x)
#ifdef _OPENMP
#define WRPO__PARFOR(threads) WRPO__PRAGMA(omp parallel for num_threads(threads) schedule(dynamic, 1))
#else
#define WRPO__PARFOR(threads) (void)(threads);
#endif

/* ---- random numbers: Philox4x32-10 (Salmon et al. 2011), a function of a counter; and a 64-bit hash ---- */
typedef struct wrpo__philox { uint32_t v[4]; } wrpo__philox;
static wrpo__philox wrpo__random(uint64_t seed, uint64_t stream, uint64_t counter) {
    wrpo__philox r = {{(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)}};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32), *v = r.v;
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * v[0], b = (uint64_t)0xCD9E8D57u * v[2];
        v[0] = (uint32_t)(b >> 32) ^ v[1] ^ k0;
        v[2] = (uint32_t)(a >> 32) ^ v[3] ^ k1;
        v[1] = (uint32_t)b;
        v[3] = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return r;
}
static uint64_t wrpo__random64(uint64_t seed, uint64_t stream, uint64_t counter) {
    const wrpo__philox r = wrpo__random(seed, stream, counter);
    return (uint64_t)r.v[0] << 32 | r.v[1];
}
static uint64_t wrpo__hash(uint64_t h, const void *p, size_t n) {  /* can be chained; not against adversaries */
    const unsigned char *s = p;
    h ^= n * 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t w = 0;
        memcpy(&w, s + i, WRPO__MIN(n - i, 8));
        h = (h ^ w) * 0xBF58476D1CE4E5B9u;
        h ^= h >> 29;
    }
    return h * 0x94D049BB133111EBu ^ h >> 32;
}

/* Is x the 0 that means "the default"? WRPO_ZERO, an explicit zero, is -0. */
static bool wrpo__is_default(double x) { return x == 0 && !signbit(x); }
static double wrpo__or_default(double x, double value) { return wrpo__is_default(x) ? value : x; }

/* ---- number formats: bfloat16, float masters in two halves, the moments of AdamW ---- */
static int64_t wrpo__div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static float wrpo__bits_float(uint32_t u) { float x; memcpy(&x, &u, sizeof x); return x; }
static float wrpo__float_of(uint16_t half) { return wrpo__bits_float((uint32_t)half << 16); }  /* of bfloat16 */
static uint32_t wrpo__float_bits(float x) { uint32_t u; memcpy(&u, &x, sizeof u); return u; }
static uint16_t wrpo__float_to_bf16(float x) {  /* to nearest, ties to even; NaN stays NaN */
    const uint32_t u = wrpo__float_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1)) >> 16);
}
/* A float master in two halves: high is the nearest bfloat16, low the rest: bits = (high << 16) + (int16_t)low. */
static float wrpo__master(uint16_t high, uint16_t low) {
    return wrpo__bits_float(((uint32_t)high << 16) + (uint32_t)(int16_t)low);
}
static void wrpo__master_split(float x, uint16_t *high, uint16_t *low) {
    const uint32_t bits = wrpo__float_bits(x);
    *high = (uint16_t)((bits + 0x8000u) >> 16);
    *low = (uint16_t)bits;
}
static uint32_t wrpo__f16_to_bits(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, m = h & 0x7FFFu;
    if (m >= 0x7C00) return sign | m << 13 | 0x7F800000u;  /* infinity, NaN with its payload */
    if (m >= 0x0400) return sign | ((m << 13) + (112u << 23));  /* exponent bias 15 -> 127 */
    return sign | wrpo__float_bits((float)(int32_t)m * 0x1p-24f);  /* denormal in F16, normal in F32 */
}
static float wrpo__element(const void *x, wrpo_dtype type, int64_t i) {
    if (type == WRPO_DTYPE_BF16) return wrpo__float_of(((const uint16_t *)x)[i]);
    if (type == WRPO_DTYPE_F16) return wrpo__bits_float(wrpo__f16_to_bits(((const uint16_t *)x)[i]));
    return ((const float *)x)[i];
}
WRPO_API size_t wrpo_moments_bytes(wrpo_moments moments, int64_t count) {
    const size_t blocks = (size_t)wrpo__div_up(count, WRPO_BLOCK);
    if (moments == WRPO_MOMENTS_8BIT) return blocks * WRPO_BLOCK_BYTES;
    return moments == WRPO_MOMENTS_BF16 ? blocks * WRPO_BLOCK * 2 : (size_t)count * 4;
}

/* ---- memory of the backend, owned by an arena ---- */
typedef struct wrpo__device_block { wrpo_ctx *ctx; void *p; size_t n; } wrpo__device_block;
static void wrpo__device_release(void *p) {
    wrpo__device_block *b = p;
    if (!b->p) return;
    b->ctx->desc.backend->release(b->ctx->dev, b->p);
    b->ctx->bytes -= b->n;
    b->ctx->device_bytes -= b->n;
}
static void *wrpo__device_try(wrpo__arena *arena, size_t n) {  /* NULL: there is no room */
    wrpo_ctx *ctx = arena->ctx;
    wrpo__device_block *b = WRPO__NEW(arena, wrpo__device_block);
    b->ctx = ctx;
    b->n = n;
    wrpo__on_free(arena, wrpo__device_release, b);
    b->p = ctx->desc.backend->alloc(ctx->dev, WRPO__MAX(n, 1));
    if (!b->p) return NULL;
    ctx->bytes += n;
    ctx->device_bytes += n;
    ctx->peak = WRPO__MAX(ctx->peak, ctx->bytes);
    return b->p;
}
static void *wrpo__device_alloc(wrpo__arena *arena, size_t n, const char *what) {
    const wrpo_ctx *ctx = arena->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    void *p = wrpo__device_try(arena, n);
    if (!p && !be->host && be->room)
        wrpo__fail_memory("out of memory: %s: %zu bytes wanted, the device has %zu left", what, n, be->room(ctx->dev));
    if (!p) wrpo__fail_memory("out of memory: %s: %zu bytes wanted, %zu held", what, n, ctx->bytes);
    return p;
}
static void wrpo__sync(wrpo_ctx *ctx) {
    wrpo_error why = {WRPO_E_DEVICE, 0, 0, ""};
    if (ctx->desc.backend->sync(ctx->dev, &why) != WRPO_OK)
        wrpo__fail(ctx, why.code, "%s: %s", ctx->desc.backend->name, why.text);
}

/* --------------------------------------------------------------------------------------------- >>loss
   Where is WRPO? In this section. Everything else in the file computes the numbers that go in here.

   A prompt x comes with three responses, ranked by a reward model:

     y_ws  source     the best answer of other models, whose strength is to be learned
     y_wt  target     the best answer of the model in training (pi)
     y_l   rejected   the worst answer of the model in training

   A reward that needs no reward model (DPO's): how much likelier is y under pi than under the reference ref, pi as it
   was before the run? Log-probs are sums over the tokens of y; those of ref are computed once, when a trainer is made.

     d(y) = log pi(y|x) - log ref(y|x)              reward(y) = beta d(y)

   DPO would raise y_ws above y_l. But other models' answers are improbable under pi, and large gradients on them from
   the start damage it. So WRPO averages the rewards of both good answers, and moves weight from y_wt to y_ws during
   the run: alpha = 0.1 k / T in step k = 0 ... T - 1.

     z = beta ( alpha d(y_ws) + (1 - alpha) d(y_wt) - d(y_l) )
     L = -(1 - eps) log sigmoid(z) - eps log sigmoid(-z)           eps: label smoothing, usually 0
     g = dL/dz = eps - sigmoid(-z)

     dL/dlog pi(y_ws) = beta alpha g     dL/dlog pi(y_wt) = beta (1 - alpha) g     dL/dlog pi(y_l) = -beta g

   Those three numbers are all that the model's backward pass needs to know of the method. Before the first update
   pi = ref (without dropout), so z = 0, L = ln 2 and g = eps - 1/2. At alpha = 0 this is DPO on (y_wt, y_l), at
   alpha = 1 on (y_ws, y_l).

   The family. link(z) is the loss of a margin z: -log sigmoid(z) (logistic), z^2 (square) or max(0, 1 - z) (hinge).
   With scores s(y) and shares a(y) of the chosen responses (they sum to 1), every method is

     WRPO             link( scale (sum_y a(y) s(y) - s(y_l) - offset) )       the mean is inside the link
     pair methods     sum_y a(y) link( scale (s(y) - s(y_l) - offset) )       the mean is outside; y_l is of y's pair
     SFT              sum_y a(y) (-log pi(y|x)) / tokens                      tokens: the scored ones of the batch

   The table below says which score, scale, offset and link a method has.

   InfiFPO (2025) also uses what the sources think of each response. l(M, y) = log M(y|x) / |y|, in M's own tokens.
   ref counts as a source too, M_0. A source is clipped, so that it never argues against the preference:

     c_i(y) = max(l(M_i, y), l(ref, y)) for a chosen y, min(...) for a rejected one
     s(y)   = l(pi, y) - c(y)

   c(y) is the c_i of the source with the largest |exp l(M_i, y) - exp l(pi, y)|, or a mean of all c_i. No gradient
   goes through it. With ref as the only source, s(y) is that of dpo-norm.

   FuseRL (2025) is SFT on the best answers of K sources, then a pair method on each one's best and worst; the shares
   a = softmax(reward / tau) come with the data. EAST weights a record's loss by the entropy of its answers. >>recipe
   writes such data.

   To add a method: a value of wrpo_method (>>api), a row of wrpo__rules, a case in tests/20_loss.c. If no link or
   score fits: a case in wrpo__link_loss or in wrpo__score. */
typedef enum wrpo__link { WRPO__LOGISTIC, WRPO__SQUARE, WRPO__HINGE, WRPO__LIKELIHOOD } wrpo__link;

typedef enum wrpo__baseline { WRPO__NONE, WRPO__REF, WRPO__FUSED } wrpo__baseline;
typedef struct wrpo__rule {
    const char *name;
    wrpo__link link;
    double beta, rate;               /* defaults of beta and of the learning rate */
    wrpo__baseline reference;        /* what s(y) subtracts: nothing, log ref(y|x) or c(y) */
    bool per_token;                  /* s(y) is divided by |y| */
    bool inside;                     /* the mean over the chosen responses is inside the link, as in WRPO */
} wrpo__rule;
/* Scale is beta and offset 0, except for simpo: offset gamma / beta, and for the square link: scale 1, offset
   1 / (2 beta). First authors: wrpo Yang 2025, dpo Rafailov 2023, ipo Azar 2024, hinge Zhao 2023, simpo Meng 2024,
   dpo-norm Yang 2025b, infifpo Gu 2025. */
static const wrpo__rule wrpo__rules[] = {
    /*                            name             link              beta  rate  reference    /|y|   inside */
    [WRPO_METHOD_WRPO]           = {"wrpo",          WRPO__LOGISTIC,   0.01, 3e-7, WRPO__REF,   false, true},
    [WRPO_METHOD_DPO]            = {"dpo",           WRPO__LOGISTIC,   0.01, 3e-7, WRPO__REF,   false, false},
    [WRPO_METHOD_IPO]            = {"ipo",           WRPO__SQUARE,     0.01, 3e-7, WRPO__REF,   true,  false},
    [WRPO_METHOD_HINGE]          = {"hinge",         WRPO__HINGE,      0.01, 3e-7, WRPO__REF,   false, false},
    [WRPO_METHOD_SIMPO]          = {"simpo",         WRPO__LOGISTIC,   10,   1e-6, WRPO__NONE,  true,  false},
    [WRPO_METHOD_DPO_NORM]       = {"dpo-norm",      WRPO__LOGISTIC,   10,   8e-7, WRPO__REF,   true,  false},
    [WRPO_METHOD_SFT]            = {"sft",           WRPO__LIKELIHOOD, 0.01, 7e-6, WRPO__NONE,  false, false},
    [WRPO_METHOD_INFIFPO]        = {"infifpo",       WRPO__LOGISTIC,   2.5,  1e-7, WRPO__FUSED, true,  false},
    [WRPO_METHOD_INFIFPO_WRPO]   = {"infifpo-wrpo",  WRPO__LOGISTIC,   2.5,  1e-7, WRPO__FUSED, true,  true},
    [WRPO_METHOD_INFIFPO_IPO]    = {"infifpo-ipo",   WRPO__SQUARE,     2.5,  1e-7, WRPO__FUSED, true,  false}};

WRPO_API const char *wrpo_method_name(int i) {
    return i >= 0 && i < WRPO__COUNT(wrpo__rules) ? wrpo__rules[i].name : NULL;
}
/* ---- settings ---- */
/* The zeros of a desc, resolved; doing it twice changes nothing. An unknown method stays as it is. */
static wrpo_loss_desc wrpo__loss_defaults(wrpo_loss_desc d) {
    if (wrpo__is_default(d.beta)) d.beta = wrpo_method_name((int)d.method) ? wrpo__rules[d.method].beta : 0.01;
    d.gamma_ratio = wrpo__or_default(d.gamma_ratio, 0.3);
    return d;
}
/* NULL, or the sentence that says which setting cannot be. */
static const char *wrpo__loss_check(const wrpo_loss_desc *desc, double alpha) {
    if (!wrpo_method_name((int)desc->method)) return "method: no such method";
    if (!wrpo_pair_name((int)desc->pair)) return "pair: no such pair";
    if (!wrpo_fusion_name((int)desc->fusion)) return "fusion: no such fusion";
    const wrpo_loss_desc d = wrpo__loss_defaults(*desc);
    if (!(d.beta > 0 && d.beta <= DBL_MAX)) return "beta: want a finite number above 0";
    if (!(alpha >= 0 && alpha <= 1)) return "alpha: want a number in [0, 1]";
    if (!(d.label_smoothing >= 0 && d.label_smoothing < 0.5)) return "label_smoothing: want a number in [0, 0.5)";
    if (d.label_smoothing > 0 && wrpo__rules[d.method].link != WRPO__LOGISTIC)
        return "label_smoothing: not defined for this method: want 0, or a method whose loss is -log sigmoid(z)";
    if (d.method == WRPO_METHOD_SIMPO && !(d.gamma_ratio >= 0 && d.gamma_ratio <= DBL_MAX))
        return "gamma_ratio: want a finite number of at least 0";
    if (!(d.sft_weight >= 0 && d.sft_weight <= DBL_MAX)) return "sft_weight: want a finite number of at least 0";
    if (d.sft_weight > 0 && d.method == WRPO_METHOD_SFT) return "sft_weight: want 0 for sft, which has no other loss";
    return NULL;
}

/* ---- what a response counts for ---- */
static bool wrpo__has(wrpo_role role, const wrpo_response *r, int n) {
    for (int i = 0; i < n; i++)
        if (r[i].role == role) return true;
    return false;
}
/* The sources' part in the average over the chosen responses; the target's is the rest. SFT is on the sources'
   answers, or on the one answer there is (`messages`, or the chosen one of a plain pair). */
static double wrpo__source_share(const wrpo_loss_desc *d, double alpha, const wrpo_response *r, int n) {
    const bool has_source = wrpo__has(WRPO_ROLE_SOURCE, r, n), has_target = wrpo__has(WRPO_ROLE_TARGET, r, n);
    if (wrpo__rules[d->method].inside) return alpha;
    if (d->method == WRPO_METHOD_SFT) return has_source ? 1 : 0;
    if (d->pair == WRPO_PAIR_SOURCE || (has_source && !has_target)) return 1;
    return d->pair == WRPO_PAIR_BOTH ? 0.5 : 0;
}
/* a(y): 0 for a response that is left out, or is rejected. K sources have shares of their own, which sum to 1. */
static double wrpo__share(double source_share, const wrpo_response *y) {
    if (y->role == WRPO_ROLE_SOURCE) return source_share * y->share;
    return y->role == WRPO_ROLE_TARGET ? 1 - source_share : 0;
}
static bool wrpo__per_token(const wrpo_loss_desc *d) {
    return wrpo__rules[d->method].per_token && !(d->method == WRPO_METHOD_IPO && d->ipo_sum);
}
static double wrpo__fused_logp(const wrpo_loss_desc *d, const wrpo_response *y);    /* |y| c(y): InfiFPO's, below */
static const char *wrpo__source_check(const wrpo_response *y);
/* s(y) */
static double wrpo__score(const wrpo_loss_desc *d, const wrpo_response *y) {
    const wrpo__baseline reference = wrpo__rules[d->method].reference;
    double s = y->logp;
    if (reference == WRPO__REF) s -= y->ref;
    if (reference == WRPO__FUSED) s -= wrpo__fused_logp(d, y);
    return wrpo__per_token(d) ? s / (double)y->tokens : s;
}
/* Is y the opponent of chosen response x? A pair method compares within a pair. */
static bool wrpo__against(const wrpo_loss_desc *d, const wrpo_response *x, const wrpo_response *y) {
    return y->role == WRPO_ROLE_REJECTED && (wrpo__rules[d->method].inside || x->pair_id == y->pair_id);
}
static int wrpo__opponents(const wrpo_loss_desc *d, const wrpo_response *x, const wrpo_response *r, int n) {
    int count = 0;
    for (int i = 0; i < n; i++) count += wrpo__against(d, x, &r[i]);
    return count;
}
/* s(y_l) for x: the mean of its opponents' scores. */
static double wrpo__rejected_score(const wrpo_loss_desc *d, const wrpo_response *x, const wrpo_response *r, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        if (wrpo__against(d, x, &r[i])) sum += wrpo__score(d, &r[i]);
    return sum / wrpo__opponents(d, x, r, n);
}
/* NULL, or what the record lacks for this method at this alpha. */
static const char *wrpo__record_check(const wrpo_loss_desc *d, double alpha, const wrpo_response *r, int n) {
    const bool sft = d->method == WRPO_METHOD_SFT;
    const wrpo__baseline reference = wrpo__rules[d->method].reference;
    const char *wrong;
    int count[3] = {0};
    double shares = 0;
    for (int i = 0; i < n; i++) {
        if ((int)r[i].role < 0 || r[i].role > WRPO_ROLE_REJECTED) return "a response has no valid role";
        count[r[i].role]++;
        if (r[i].role == WRPO_ROLE_SOURCE) shares += r[i].share >= 0 ? r[i].share : NAN;
    }
    const int sources = count[WRPO_ROLE_SOURCE], targets = count[WRPO_ROLE_TARGET];
    const double a = wrpo__source_share(d, alpha, r, n);
    if (sft && sources + targets == 0) return "sft needs a response to learn from";
    if (a > 0 && sources == 0)
        return "the method needs a source response (the first of two in \"chosen\"); pairs are for dpo and the like";
    if (a < 1 && targets == 0)
        return "the method needs a target response (the last in \"chosen\"); answers alone are for sft";
    if (!sft && count[WRPO_ROLE_REJECTED] == 0) return "the method needs a rejected response";
    if (targets > 1) return "want one target response, found several";
    if (sources && !(fabs(shares - 1) < 1e-6)) return "the shares of the source responses do not sum to 1";
    for (int i = 0; i < n; i++) {
        const bool rejected = r[i].role == WRPO_ROLE_REJECTED;
        if (rejected ? sft : wrpo__share(a, &r[i]) == 0) continue;             /* left out: may be anything */
        if (!rejected && !sft && !wrpo__opponents(d, &r[i], r, n))
            return "a chosen response has no rejected one in its pair";
        if ((wrpo__per_token(d) || d->sft_weight > 0) && r[i].tokens < 1)
            return "the method divides by the length of a response that has no tokens";
        if (!isfinite(r[i].logp) || (reference && !isfinite(r[i].ref))) return "a log-probability is not finite";
        if (reference == WRPO__FUSED && (wrong = wrpo__source_check(&r[i])) != NULL) return wrong;
    }
    return NULL;
}

/* ---- links: L(z), with g = dL/dz; finite for every finite z ---- */
static double wrpo__sigmoid(double x) {
    double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}
static double wrpo__softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }      /* -log sigmoid(-x) */

static double wrpo__link_loss(wrpo__link link, double z, double eps, double *g) {
    switch (link) {
    case WRPO__SQUARE: *g = 2 * z; return z * z;
    case WRPO__HINGE: *g = z < 1 ? -1 : 0; return z < 1 ? 1 - z : 0;
    default:
        /* -log sigmoid(-z) = -log sigmoid(z) + z, so the smoothed loss is softplus(-z) + eps z. At z = 0 it is
           ln 2 for every eps. sigmoid(-z) rather than 1 - sigmoid(z): no cancellation at large z. */
        *g = eps - wrpo__sigmoid(-z);
        return wrpo__softplus(-z) + eps * z;
    }
}

/* ---- the loss of one record ---- */
WRPO_API double wrpo_loss(const wrpo_loss_desc *desc, double alpha, wrpo_response *r, int n, double sft_tokens,
                          const char **why) {
    const wrpo_loss_desc zero = {0}, d = wrpo__loss_defaults(desc ? *desc : zero);
    const char *wrong = wrpo__loss_check(&d, alpha);
    for (int i = 0; i < n; i++) r[i].dlogp = 0;
    if (!wrong) wrong = wrpo__record_check(&d, alpha, r, n);
    if (!wrong && d.method == WRPO_METHOD_SFT && !(sft_tokens > 0))
        wrong = "sft_tokens: want the number of scored tokens of the batch";
    if (why) *why = wrong;
    if (wrong) return NAN;

    const wrpo__rule *rule = &wrpo__rules[d.method];
    const double a = wrpo__source_share(&d, alpha, r, n);
    double loss = 0, chosen = 0, g = 0;
    if (rule->link == WRPO__LIKELIHOOD) {
        for (int i = 0; i < n; i++) {
            const double share = wrpo__share(a, &r[i]);
            if (share == 0) continue;
            r[i].dlogp = -share / sft_tokens;
            loss += r[i].dlogp * r[i].logp;
        }
        return loss;
    }
    const double scale = rule->link == WRPO__SQUARE ? 1 : d.beta;
    double offset = 0;
    if (d.method == WRPO_METHOD_SIMPO) offset = d.gamma_ratio;
    if (rule->link == WRPO__SQUARE) offset = 1 / (2 * d.beta);

    /* 1. The loss, and dL/ds(y) of the chosen responses; dlogp holds dL/ds until 3. A share of 0 is skipped rather than
          multiplied by: a response that is left out cannot touch a bit of the result and need not be computed. */
    if (rule->inside) {
        for (int i = 0; i < n; i++)
            if (wrpo__share(a, &r[i]) != 0) chosen += wrpo__share(a, &r[i]) * wrpo__score(&d, &r[i]);
        const double z = scale * (chosen - wrpo__rejected_score(&d, r, r, n) - offset);
        loss = wrpo__link_loss(rule->link, z, d.label_smoothing, &g);
        for (int i = 0; i < n; i++)
            if (wrpo__share(a, &r[i]) != 0) r[i].dlogp = wrpo__share(a, &r[i]) * (scale * g);
    } else {
        for (int i = 0; i < n; i++) {
            const double share = wrpo__share(a, &r[i]);
            if (share == 0) continue;
            const double z = scale * (wrpo__score(&d, &r[i]) - wrpo__rejected_score(&d, &r[i], r, n) - offset);
            loss += share * wrpo__link_loss(rule->link, z, d.label_smoothing, &g);
            r[i].dlogp = share * (scale * g);
        }
    }

    /* 2. dL/ds(y) of the rejected: minus the sum of what their chosen ones got (inside the link scale g, as the shares
          sum to 1), divided by the number of rejected responses in the pair, this one included. */
    for (int k = 0; k < n; k++) {
        double pull = rule->inside ? scale * g : 0;
        if (r[k].role != WRPO_ROLE_REJECTED) continue;
        for (int i = 0; i < n && !rule->inside; i++)
            if (r[i].role != WRPO_ROLE_REJECTED && wrpo__against(&d, &r[i], &r[k])) pull += r[i].dlogp;
        r[k].dlogp = -pull / wrpo__opponents(&d, &r[k], r, n);
    }

    /* 3. ds/dlogp: 1 or 1 / |y| */
    for (int i = 0; i < n; i++) {
        if (r[i].dlogp == 0) r[i].dlogp = 0;           /* no negative zeros */
        else if (wrpo__per_token(&d)) r[i].dlogp /= (double)r[i].tokens;
    }

    /* 4. The anchor: it keeps the chosen responses from becoming less likely beside the rejected ones (Pang 2024). */
    for (int i = 0; i < n && d.sft_weight > 0; i++) {
        const double share = wrpo__share(a, &r[i]);
        if (share == 0) continue;
        const double pull = d.sft_weight * share / (double)r[i].tokens;
        loss -= pull * r[i].logp;
        r[i].dlogp -= pull;
    }
    return loss;
}

/* ---- InfiFPO's reference: what the source models think of a response ---- */
/* |y| l(M_i, y), so that it compares with the policy's sums. The reference is source 0. */
static double wrpo__source_logp(const wrpo_response *y, int i) {
    if (i == 0) return y->ref;
    const wrpo_source_logp *m = &y->source_logps[i - 1];
    return m->logp * ((double)y->tokens / (double)m->tokens);
}
/* |y| c(y): InfiFPO's reference. Confidence weighs c_i with softmax_i(1 / -l(M_i, y)). */
static double wrpo__fused_logp(const wrpo_loss_desc *d, const wrpo_response *y) {
    const double n = (double)y->tokens, policy = exp((d->fusion == WRPO_FUSION_MARGIN ? y->logp : y->ref) / n);
    const int sources = y->sources + 1;
    double fused = y->ref, widest = -1, surest = 0, sum = 0, weights = 0;
    for (int i = 0; i < sources; i++) surest = WRPO__MAX(surest, 1 / (1e-8 - wrpo__source_logp(y, i) / n));
    for (int i = 0; i < sources; i++) {
        const double m = wrpo__source_logp(y, i), margin = fabs(exp(m / n) - policy);
        const double clipped = y->role == WRPO_ROLE_REJECTED ? WRPO__MIN(m, y->ref) : WRPO__MAX(m, y->ref);
        const double w = d->fusion == WRPO_FUSION_CONFIDENCE ? exp(1 / (1e-8 - m / n) - surest) : 1;
        sum += w * clipped;
        weights += w;
        if (margin > widest) fused = clipped;
        widest = WRPO__MAX(widest, margin);
    }
    const bool mean = d->fusion == WRPO_FUSION_MEAN || d->fusion == WRPO_FUSION_CONFIDENCE;
    return mean ? sum / weights : fused;
}
/* NULL, or what is wrong with the source models' log-probs of y. */
static const char *wrpo__source_check(const wrpo_response *y) {
    if (!y->sources || !y->source_logps)
        return "the method needs \"source_logps\": the responses' log-probs under at least one source model";
    for (int i = 0; i < y->sources; i++)
        if (!(y->source_logps[i].logp <= 0 && isfinite(y->source_logps[i].logp) && y->source_logps[i].tokens > 0))
            return "source_logps: want finite log-probs of at most 0, of at least one token";
    return NULL;
}

/* ---- for the metrics: rewards as the method sees them; SFT has none ---- */
static double wrpo__reward_of(const wrpo_loss_desc *desc, const wrpo_response *y) {
    const wrpo_loss_desc d = wrpo__loss_defaults(*desc);
    return d.method == WRPO_METHOD_SFT ? NAN : d.beta * wrpo__score(&d, y);
}
/* rewards/chosen: the average with the shares of the loss; NaN if a response it needs is not there. */
static double wrpo__weighted_reward(const wrpo_loss_desc *desc, double alpha, const wrpo_response *r, int n) {
    const double a = wrpo__source_share(desc, alpha, r, n);
    double sum = 0, shares = 0;
    for (int i = 0; i < n; i++) {
        double share = wrpo__share(a, &r[i]);
        if (share == 0) continue;
        shares += share;
        sum += share * wrpo__reward_of(desc, &r[i]);
    }
    return fabs(shares - 1) < 1e-6 ? sum : NAN;
}
/* What a record adds to sft_tokens: its scored tokens; with several sources, their weighted mean. */
static double wrpo__sft_tokens(const wrpo_response *r, int n) {
    const wrpo_loss_desc d = {.method = WRPO_METHOD_SFT};
    const double a = wrpo__source_share(&d, 0, r, n);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += wrpo__share(a, &r[i]) * (double)r[i].tokens;
    return sum;
}

/* ---- schedules: k optimizer steps done of T ---- */
static const double wrpo__pi = 3.14159265358979323846;
WRPO_API double wrpo_alpha(wrpo_alpha_schedule schedule, double power, double end, int64_t k, int64_t T) {
    const double u = T <= 0 || k >= T ? 1 : (double)WRPO__MAX(k, 0) / (double)T;
    power = wrpo__or_default(power, 2);
    end += 0.0;                      /* -0 becomes 0 */
    switch (schedule) {
    case WRPO_ALPHA_SCHEDULE_LINEAR: return end * u;
    case WRPO_ALPHA_SCHEDULE_CONSTANT: return end;
    case WRPO_ALPHA_SCHEDULE_POWER: return power > 0 ? end * pow(u, power) : NAN;
    case WRPO_ALPHA_SCHEDULE_COSINE: return end * (0.5 * (1 - cos(wrpo__pi * u)));
    }
    return NAN;
}
WRPO_API double wrpo_lr_factor(wrpo_lr_schedule schedule, int64_t warmup, int64_t k, int64_t T) {
    if (T >= 0) k = WRPO__MIN(k, T);
    k = WRPO__MAX(k, 0);
    if (k < warmup) return (double)k / (double)warmup;
    const double left = (double)WRPO__MAX(T - warmup, 1);
    switch (schedule) {
    case WRPO_LR_SCHEDULE_COSINE: return WRPO__MAX(0.5 * (1 + cos(wrpo__pi * ((double)(k - warmup) / left))), 0);
    case WRPO_LR_SCHEDULE_LINEAR: return WRPO__MAX((double)(T - k) / left, 0);
    case WRPO_LR_SCHEDULE_CONSTANT: return 1;
    }
    return NAN;
}

/* ---------------------------------------------------------------------------------------------- >>ops
   What the model computes, one op after the other, in plain loops. These functions define the ops of struct
   wrpo_backend: every faster backend is measured against them. They run where there is nothing faster, and
   wrpo_backend_plain returns them anywhere.

   Each gradient is directly below its forward op. A d before a name is the derivative of the loss by it: dx is
   dL/dx. Parameters are outputs, then inputs, then sizes; ldx is the number of elements from one row of x to the
   next. Outputs and dx are written. dw and db are added to: a step sums the gradients of several micro-batches.

   Inputs and outputs are float. Sums within a call are double; what only adds to memory (embed_bwd, gather_bwd, add,
   sum) and adamw are float. A matrix of weights may be bfloat16. In a context of bfloat16,
   gemm rounds its factors as a processor with such products does; the other ops round nothing. */
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "wrpo.h: -ffast-math and -ffinite-math-only break the handling of infinities and NaN: compile without it"
#endif

enum { WRPO__MAX_HIDDEN = 1 << 20, WRPO__MAX_D = 512 };  /* the largest hidden_size and head_dim of any backend */

/* ---- the state of the plain backend ---- */
typedef struct wrpo__plain { wrpo_allocator memory; bool bf16; } wrpo__plain;      /* bf16: the context's dtype */
/* ---- gemm: c[m,n] = a b, or c += a b (beta 1) ----
   NT: a[m,k] b[n,k]', a layer's y = x W'.  NN: a[m,k] b[k,n], its dx = dy W.  TN: a[k,m]' b[k,n], its dW += dy' x.
   A context of bfloat16 rounds the factors of TN, and of NT and NN where the weight b is bfloat16. */
static void wrpo__plain_gemm(void *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b,
                             int64_t ldb, wrpo_dtype b_type, int64_t m, int64_t n, int64_t k, float beta) {
    const bool a_transposed = mm == WRPO_MM_TN, b_transposed = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT;
    /* elements from one row i of c, column j of c, or step l of k to the next */
    const int64_t a_row = a_transposed ? 1 : lda, a_step = a_transposed ? lda : 1;
    const int64_t b_column = b_transposed ? ldb : 1, b_step = b_transposed ? 1 : ldb;
    const wrpo_dtype type = mm == WRPO_MM_TN ? WRPO_DTYPE_F32 : b_type;
    const bool round = ((wrpo__plain *)dev)->bf16 && (mm == WRPO_MM_TN || type == WRPO_DTYPE_BF16);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float *out = (float *)c + i * ldc + j;
            double sum = beta != 0 ? *out : 0;
            for (int64_t l = 0; l < k; l++) {
                float x = ((const float *)a)[i * a_row + l * a_step];
                float w = wrpo__element(b, type, j * b_column + l * b_step);
                if (round) x = wrpo__float_of(wrpo__float_to_bf16(x));
                if (round) w = wrpo__float_of(wrpo__float_to_bf16(w));
                sum += (double)x * w;
            }
            *out = (float)sum;
        }
}

/* ---- embed: y[n,D] = scale w[ids], a row of the table w[V,D] for each token.   dw[ids] += scale dy ---- */
static void wrpo__plain_embed(void *dev, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids,
                              int64_t n, int64_t D, float scale) {
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < D; j++) ((float *)y)[r * D + j] = scale * wrpo__element(w, w_type, ids[r] * D + j);
}
static void wrpo__plain_embed_bwd(void *dev, float *dw, const void *dy, const int32_t *ids,
                                  int64_t n, int64_t D, float scale) {
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < D; j++) dw[ids[r] * D + j] += scale * ((const float *)dy)[r * D + j];
}

/* ---- gather: y[n,D] = x[index].   dx[index] += scale dy: added, as an index may occur again ---- */
static void wrpo__plain_gather(void *dev, void *y, const void *x, const int32_t *index, int64_t n, int64_t D) {
    wrpo__plain_embed(dev, y, x, WRPO_DTYPE_F32, index, n, D, 1);
}
static void wrpo__plain_gather_bwd(void *dev, void *dx, const void *dy, const float *scale, const int32_t *index,
                                   int64_t n, int64_t D) {
    for (int64_t r = 0; r < n; r++)
        if (!scale || scale[r] != 0)
            wrpo__plain_embed_bwd(dev, dx, (const float *)dy + r * D, index + r, 1, D, scale ? scale[r] : 1);
}
/* ---- scatter: y[index] = x[n,D]. Only decoding needs it, so there is no gradient ---- */
static void wrpo__plain_scatter(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, const int32_t *index,
                                int64_t n, int64_t D) {
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < D; j++) ((float *)y)[index[r] * ldy + j] = ((const float *)x)[r * ldx + j];
}

/* ---- bias: y[n,D] += b[D], in each row.   db += the sum of dy over the rows ---- */
static double wrpo__column_sum(const void *x, wrpo_dtype type, int64_t ldx, int64_t rows, int64_t column) {
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) sum += wrpo__element(x, type, r * ldx + column);
    return sum;
}
static void wrpo__plain_bias(void *dev, void *y, int64_t ldy, const float *b, int64_t n, int64_t D) {
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < D; j++) ((float *)y)[r * ldy + j] += b[j];
}
static void wrpo__plain_bias_bwd(void *dev, float *db, const void *dy, int64_t lddy, int64_t n, int64_t D) {
    (void)dev;
    for (int64_t j = 0; j < D; j++) db[j] = (float)(db[j] + wrpo__column_sum(dy, WRPO_DTYPE_F32, lddy, n, j));
}
/* ---- colsum: y[cols] = the sum of w[rows,cols] over its rows. It serves a metric, so there is no gradient ---- */
static void wrpo__plain_colsum(void *dev, float *y, const void *w, wrpo_dtype w_type, int64_t rows, int64_t cols) {
    (void)dev;
    for (int64_t j = 0; j < cols; j++) y[j] = (float)wrpo__column_sum(w, w_type, cols, rows, j);
}
/* ---- add: y += x.   Both have the same gradient, so there is nothing to compute ---- */
static void wrpo__plain_add(void *dev, void *y, const void *x, int64_t count) {
    (void)dev;
    for (int64_t i = 0; i < count; i++) ((float *)y)[i] += ((const float *)x)[i];
}

/* ---- dropout (Srivastava et al. 2014): y = scale x m, where m = 0 with probability p, else 1 / (1 - p) ----
   Element j of row r has number i = (row + r) D + j, and draw i % 8 of eight 16-bit draws of the random block i / 8.
   dx = scale dy m: the same op */
static void wrpo__dropout_row(float *y, const float *x, int64_t D, int64_t r, const wrpo_dropout *d) {
    const uint32_t bound = (uint32_t)((double)d->p * 65536 + 0.5);     /* of 65536 draws, those that are dropped */
    const float kept = d->scale * 65536 / (float)(65536 - bound);
    wrpo__philox block = {{0}};
    for (int64_t j = 0; j < D; j++) {
        const uint64_t i = (uint64_t)((d->row + r) * D + j);
        if (bound && (j == 0 || i % 8 == 0)) block = wrpo__random(d->seed, d->stream, i / 8);
        const uint32_t draw = (block.v[(i % 8) / 2] >> (16 * (i % 2))) & 0xFFFF;
        y[j] = draw < bound ? 0 : kept * x[j];
    }
}
static void wrpo__plain_dropout(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, int64_t n, int64_t D,
                                const wrpo_dropout *d) {
    (void)dev;
    for (int64_t r = 0; r < n; r++) wrpo__dropout_row((float *)y + r * ldy, (const float *)x + r * ldx, D, r, d);
}

/* ---- rmsnorm (Zhang and Sennrich 2019): each row is `heads` vectors x[D], each normalized separately ----
   rstd = 1 / sqrt(mean(x^2) + eps)        y = (w + plus) x rstd
   g = dy (w + plus)        dx = dres + rstd (g - x mean(g x) rstd^2)        dw += the sum of dy x rstd over all vectors
   dres is the gradient beside the norm (of the residual stream), or NULL. y may be x; dx may be dy or dres. */
static void wrpo__plain_rmsnorm(void *dev, void *y, int64_t ldy, float *rstd, const void *x, int64_t ldx,
                                const float *w, int64_t n, int64_t heads, int64_t D, float eps, float plus) {
    (void)dev;
    for (int64_t i = 0; i < n * heads; i++) {
        const int64_t row = i / heads, column = i % heads * D;
        const float *in = (const float *)x + row * ldx + column;
        float *out = (float *)y + row * ldy + column;
        double sum = 0;
        for (int64_t j = 0; j < D; j++) sum += (double)in[j] * in[j];
        const double inverse = 1 / sqrt(sum / (double)D + eps);
        for (int64_t j = 0; j < D; j++) out[j] = (float)(((double)w[j] + plus) * in[j] * inverse);
        rstd[i] = (float)inverse;
    }
}
static void wrpo__plain_rmsnorm_bwd(void *dev, void *dx, int64_t lddx, float *dw, const void *dy, int64_t lddy,
                                    const void *dres, int64_t lddres, const void *x, int64_t ldx, const float *w,
                                    const float *rstd, int64_t n, int64_t heads, int64_t D, float plus) {
    (void)dev;
    for (int64_t j = 0; dw && j < D; j++) {            /* dw before dx, which may be dy */
        double sum = dw[j];
        for (int64_t i = 0; i < n * heads; i++) {
            const int64_t row = i / heads, column = i % heads * D + j;
            sum += (double)((const float *)dy)[row * lddy + column] * ((const float *)x)[row * ldx + column] * rstd[i];
        }
        dw[j] = (float)sum;
    }
    for (int64_t i = 0; i < n * heads; i++) {
        const int64_t row = i / heads, column = i % heads * D;
        const float *in = (const float *)x + row * ldx + column, *d_out = (const float *)dy + row * lddy + column;
        const float *beside = dres ? (const float *)dres + row * lddres + column : NULL;
        float *d_in = (float *)dx + row * lddx + column;
        const double inverse = rstd[i];
        double mean = 0;                               /* of g x */
        for (int64_t j = 0; j < D; j++) mean += ((double)w[j] + plus) * d_out[j] * in[j] / (double)D;
        for (int64_t j = 0; j < D; j++) {
            const double g = ((double)w[j] + plus) * d_out[j];
            d_in[j] = (float)((beside ? beside[j] : 0) + inverse * (g - in[j] * mean * inverse * inverse));
        }
    }
}

/* ---- rope (Su et al. 2021), in place: each row is `heads` vectors x[d]; table[...][d / 2] = (cosine, sine) ----
   Each pair (x[i], x[i + d / 2]) is rotated by table[index[row]][i]. The gradient is rotated back: sign -1. */
static void wrpo__plain_rope(void *dev, void *x, int64_t ldx, const float *table, const int32_t *index, int64_t n,
                             int64_t heads, int64_t d, float sign) {
    const int64_t half = d / 2;
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < half; i++) {
                const float *angle = table + 2 * (index[r] * half + i);
                float *first = (float *)x + r * ldx + h * d + i, *second = first + half;
                const double x1 = *first, x2 = *second, cosine = angle[0], sine = sign * angle[1];
                *first = (float)(x1 * cosine - x2 * sine);
                *second = (float)(x2 * cosine + x1 * sine);
            }
}

/* x -> cap tanh(x / cap) (Gemma 2, 2024), and its slope; cap 0 is no cap. -inf stays: such a logit does not count. */
static double wrpo__softcap(double x, double cap, double *slope) {
    *slope = 1;
    if (cap <= 0 || x == -INFINITY) return x;
    const double t = tanh(x / cap);
    *slope = 1 - t * t;
    return cap * t;
}

/* ---- attention (Vaswani et al. 2017), H query heads on G key/value heads (Ainslie et al. 2023) ----
   For a row of q and one of its heads h, which uses key/value head h / (H / G), over the positions t that the row sees:
     s_t = softcap(scale q.k_t)        lse = log sum exp(s_t)        p_t = exp(s_t - lse)        o = sum p_t v_t
   A row's sequence is its segment's prefix, then its segment's own keys. The row sees the positions up to its own;
   with a window, only the last `window` of them (Beltagy et al. 2020). The gradient starts from the stored lse and o:
     dp_t = do.v_t        ds_t = p_t (dp_t - do.o) slope_t scale, because sum p_t dp_t = do.o
     dq = sum over t of ds_t k_t        dk_t = sum over rows and heads of ds_t q        dv_t = likewise of p_t do
   Scores are computed again wherever they are needed: there is never a matrix of them (Dao et al. 2022). */
static int64_t wrpo__query_position(const wrpo_seg *s, int64_t row) {  /* the last row of q has the last own key */
    return s->prefix_end - s->prefix + (s->own_end - s->own) - (s->end - row);
}
static int64_t wrpo__first_seen(const wrpo_attn *a, int64_t position) {
    return a->window > 0 ? WRPO__MAX(0, position - a->window + 1) : 0;
}
static int64_t wrpo__key_row(const wrpo_seg *s, int64_t position) {
    const int64_t shared = s->prefix_end - s->prefix;
    return position < shared ? s->prefix + position : s->own + position - shared;
}
static int64_t wrpo__key_position(const wrpo_seg *s, int64_t row) {    /* the inverse; -1: not a key of the segment */
    if (row >= s->prefix && row < s->prefix_end) return row - s->prefix;
    return row >= s->own && row < s->own_end ? s->prefix_end - s->prefix + row - s->own : -1;
}
static double wrpo__dot(const float *x, const float *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}
static double wrpo__attention_score(const wrpo_attn *a, const float *q, const float *k, double *slope) {
    return wrpo__softcap(a->scale * wrpo__dot(q, k, a->d), a->softcap, slope);
}
static void wrpo__plain_attention(void *dev, const wrpo_attn *a, void *o, float *lse,
                                  const void *q, const void *k, const void *v) {
    (void)dev;
    for (const wrpo_seg *s = a->segs; s < a->segs + a->n_segs; s++)
        for (int64_t r = s->begin; r < s->end; r++)
            for (int64_t h = 0; h < a->H; h++) {
                const int64_t last = wrpo__query_position(s, r), first = wrpo__first_seen(a, last);
                const int64_t column = h / (a->H / a->G) * a->d;               /* of its key/value head */
                const float *query = (const float *)q + r * a->ldq + h * a->d;
                float *out = (float *)o + r * a->ldo + h * a->d;
                double slope, top = -INFINITY, sum = 0, weighted[WRPO__MAX_D] = {0};
                for (int64_t t = first; t <= last; t++) {
                    const float *key = (const float *)k + wrpo__key_row(s, t) * a->ldkv + column;
                    top = fmax(top, wrpo__attention_score(a, query, key, &slope));
                }
                for (int64_t t = first; t <= last; t++) {                      /* exp(s - top) does not overflow */
                    const int64_t at = wrpo__key_row(s, t) * a->ldkv + column;
                    const double p = exp(wrpo__attention_score(a, query, (const float *)k + at, &slope) - top);
                    sum += p;
                    for (int64_t i = 0; i < a->d; i++) weighted[i] += p * ((const float *)v)[at + i];
                }
                for (int64_t i = 0; i < a->d; i++) out[i] = (float)(weighted[i] / sum);
                lse[r * a->H + h] = (float)(top + log(sum));
            }
}
static void wrpo__plain_attention_bwd(void *dev, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o,
                                      const void *o, const float *lse, const void *q, const void *k, const void *v,
                                      void *scratch) {
    const int64_t H = a->H, d = a->d, per_group = H / a->G;
    (void)dev;
    (void)scratch;
    for (const wrpo_seg *s = a->segs; s < a->segs + a->n_segs; s++)            /* dq: for a query, over its keys */
        for (int64_t r = s->begin; r < s->end; r++)
            for (int64_t h = 0; h < H; h++) {
                const int64_t at_o = r * a->ldo + h * d;
                const float *query = (const float *)q + r * a->ldq + h * d, *d_out = (const float *)d_o + at_o;
                const double delta = wrpo__dot(d_out, (const float *)o + at_o, d);
                const int64_t last = wrpo__query_position(s, r);
                double slope, sum[WRPO__MAX_D] = {0};
                for (int64_t t = wrpo__first_seen(a, last); t <= last; t++) {
                    const int64_t at = wrpo__key_row(s, t) * a->ldkv + h / per_group * d;
                    const float *key = (const float *)k + at, *value = (const float *)v + at;
                    const double p = exp(wrpo__attention_score(a, query, key, &slope) - lse[r * H + h]);
                    const double ds = p * (wrpo__dot(d_out, value, d) - delta) * slope * a->scale;
                    for (int64_t i = 0; i < d; i++) sum[i] += ds * key[i];
                }
                for (int64_t i = 0; i < d; i++) ((float *)dq)[r * a->ldq + h * d + i] = (float)sum[i];
            }
    for (int64_t row = 0; row < a->n; row++)           /* dk and dv: for a key, over the queries that see it */
        for (int64_t g = 0; g < a->G; g++) {
            const int64_t at = row * a->ldkv + g * d;
            const float *key = (const float *)k + at, *value = (const float *)v + at;
            double slope, sum_k[WRPO__MAX_D] = {0}, sum_v[WRPO__MAX_D] = {0};
            for (const wrpo_seg *s = a->segs; s < a->segs + a->n_segs; s++) {
                const int64_t t = wrpo__key_position(s, row);
                for (int64_t i = s->begin * H; i < s->end * H && t >= 0; i++) {
                    const int64_t r = i / H, h = i % H, last = wrpo__query_position(s, r);
                    if (h / per_group != g || t > last || t < wrpo__first_seen(a, last)) continue;
                    const int64_t at_o = r * a->ldo + h * d;
                    const float *query = (const float *)q + r * a->ldq + h * d, *d_out = (const float *)d_o + at_o;
                    const double delta = wrpo__dot(d_out, (const float *)o + at_o, d);
                    const double p = exp(wrpo__attention_score(a, query, key, &slope) - lse[i]);
                    const double ds = p * (wrpo__dot(d_out, value, d) - delta) * slope * a->scale;
                    for (int64_t j = 0; j < d; j++) sum_k[j] += ds * query[j];
                    for (int64_t j = 0; j < d; j++) sum_v[j] += p * d_out[j];
                }
            }
            for (int64_t j = 0; j < d; j++) ((float *)dk)[at + j] = (float)sum_k[j];
            for (int64_t j = 0; j < d; j++) ((float *)dv)[at + j] = (float)sum_v[j];
        }
}
static size_t wrpo__plain_attention_scratch(void *dev, int64_t n, int64_t H, int64_t G, int64_t d) {
    (void)dev, (void)n, (void)H, (void)G, (void)d;
    return 0;
}

/* ---- glu (Shazeer 2020): h[n,I] = act(gate) up; a row of gu[n,2I] is gate[I], then up[I] ----
   silu (Elfwing et al. 2017): act(g) = g s with s = 1 / (1 + e^-g)        slope = s (1 + g (1 - s))
   gelu (Hendrycks and Gimpel 2016): act(g) = g (1 + t) / 2 with t = tanh(a (g + b g^3))
                                     slope = (1 + t) / 2 + g (1 - t^2) a (1 + 3 b g^2) / 2
   dgate = dh up slope        dup = dh act(gate)        dgu may be gu. h is computed again if it is not NULL. */
static double wrpo__act(double g, bool gelu, double *slope) {
    if (!gelu) {
        const double s = 1 / (1 + exp(-g));
        *slope = s * (1 + g * (1 - s));
        return g * s;
    }
    const double a = 0.79788456080286535588, b = 0.044715;     /* a = sqrt(2 / pi) */
    const double t = tanh(a * (g + b * g * g * g));
    *slope = (1 + t) / 2 + g * (1 - t * t) * a * (1 + 3 * b * g * g) / 2;
    return g * (1 + t) / 2;
}
static void wrpo__plain_glu(void *dev, void *h, const void *gu, int64_t n, int64_t I, bool gelu) {
    (void)dev;
    for (int64_t i = 0; i < n * I; i++) {
        const float *gate = (const float *)gu + i / I * 2 * I + i % I, *up = gate + I;
        double slope;
        ((float *)h)[i] = (float)(wrpo__act(*gate, gelu, &slope) * *up);
    }
}
static void wrpo__plain_glu_bwd(void *dev, void *dgu, void *h, const void *dh, const void *gu,
                                int64_t n, int64_t I, bool gelu) {
    (void)dev;
    for (int64_t i = 0; i < n * I; i++) {
        const int64_t at = i / I * 2 * I + i % I;
        const double gate = ((const float *)gu)[at], up = ((const float *)gu)[at + I], d_out = ((const float *)dh)[i];
        double slope;
        const double act = wrpo__act(gate, gelu, &slope);
        if (h) ((float *)h)[i] = (float)(act * up);
        ((float *)dgu)[at] = (float)(d_out * up * slope);
        ((float *)dgu)[at + I] = (float)(d_out * act);
    }
}

/* ---- logprob: log-softmax of each row of logits[n,ldl] at its label, with x = softcap(logits) ----
   lse = log sum exp(x)        logp = x[label] - lse
   dlogits[v] = dlogp ([v = label] - exp(x[v] - lse)) slope[v]
   dlogits may be logits. */
static void wrpo__plain_logprob(void *dev, float *logp, float *lse, const float *logits, int64_t ldl,
                                const int32_t *label, int64_t n, int64_t V, float softcap) {
    (void)dev;
    for (int64_t r = 0; r < n; r++) {
        const float *x = logits + r * ldl;
        double slope, top = -INFINITY, sum = 0;
        for (int64_t v = 0; v < V; v++) top = fmax(top, x[v]);
        top = wrpo__softcap(top, softcap, &slope);
        for (int64_t v = 0; v < V && top > -INFINITY; v++) sum += exp(wrpo__softcap(x[v], softcap, &slope) - top);
        const double log_sum = top + log(sum);
        logp[r] = (float)(wrpo__softcap(x[label[r]], softcap, &slope) - log_sum);
        lse[r] = (float)log_sum;
    }
}
static void wrpo__plain_logprob_bwd(void *dev, void *dlogits, const float *logits, int64_t ldl,
                                    const int32_t *label, const float *lse, const float *dlogp, int64_t n, int64_t V,
                                    float softcap) {
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t v = 0; v < V; v++) {
            double slope;
            const double p = exp(wrpo__softcap(logits[r * ldl + v], softcap, &slope) - lse[r]);
            ((float *)dlogits)[r * ldl + v] = (float)(dlogp[r] * ((v == label[r]) - p) * slope);
        }
}

/* ---- sum: y += x, gradients of lanes and ranks ---- */
static void wrpo__plain_sum(void *dev, float *y, const float *x, int64_t count) {
    (void)dev;
    for (int64_t i = 0; i < count; i++) y[i] += x[i];
}

/* ---- sumsq: *out += the sum of x^2, for the norm of all gradients ---- */
static void wrpo__plain_sumsq(void *dev, double *out, const float *x, int64_t count) {
    (void)dev;
    *out += wrpo__dot(x, x, count);
}

/* ---- the moments of AdamW: float, bfloat16, or a code of 8 bits (after Dettmers et al. 2022) ----
   Codes come in blocks of WRPO_BLOCK, and then their scale, the block's largest magnitude. The magnitude of code q is
   scale (q / most)^4: most is 127, and there is a sign, for the first moment; most is 255 for the second.
   bfloat16 and codes are rounded up or down at random, so that the mean is right. Element i draws a hash of (seed, i).
   Every backend draws the same numbers, so the arithmetic is float, here and in adamw, operation by operation. */
#define WRPO__DICE_STEP 0x9E3779B9u
static uint32_t wrpo__dice(uint32_t seed, int64_t i) {
    uint32_t x = seed + (uint32_t)i * WRPO__DICE_STEP;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}
static float wrpo__code_value(float code, float scale, float most) {
    const float root = code * (1 / most), square = root * root;
    return square * square * scale;
}
static float wrpo__code_of(float size, float scale, float most, float dice) {  /* dice in [0, 1) */
    const float inverse = scale >= FLT_MIN ? 1 / scale : 0, root = sqrtf(sqrtf(size * inverse)) * most;
    const float code = (float)(int)fminf(root, most - 1);
    const float low = wrpo__code_value(code, scale, most), high = wrpo__code_value(code + 1, scale, most);
    return dice * (high - low) < size - low ? code + 1 : code;
}
/* n elements, at most WRPO_BLOCK, of the block that begins at element `first` of a first or second moment. */
static void wrpo__moment_load(float *x, const void *block, wrpo_moments moments, bool second, int64_t n) {
    const uint8_t *codes = block;
    float scale = 0;
    if (moments == WRPO_MOMENTS_8BIT) memcpy(&scale, codes + WRPO_BLOCK, sizeof scale);
    for (int64_t i = 0; i < n; i++) {
        if (moments == WRPO_MOMENTS_F32) x[i] = ((const float *)block)[i];
        else if (moments == WRPO_MOMENTS_BF16) x[i] = wrpo__float_of(((const uint16_t *)block)[i]);
        else if (second) x[i] = wrpo__code_value(codes[i], scale, 255);
        else x[i] = copysignf(wrpo__code_value((int8_t)codes[i], scale, 127), (int8_t)codes[i]);
    }
}
static void wrpo__moment_store(void *block, const float *x, wrpo_moments moments, bool second, int64_t n,
                               uint32_t seed, int64_t first) {
    uint8_t *codes = block;
    float scale = 0;
    for (int64_t i = 0; i < n; i++) scale = fmaxf(scale, fabsf(x[i]));
    for (int64_t i = 0; i < n; i++) {
        const uint32_t dice = wrpo__dice(seed, first + i), bits = wrpo__float_bits(x[i]);
        if (moments == WRPO_MOMENTS_F32) ((float *)block)[i] = x[i];
        else if (moments == WRPO_MOMENTS_BF16) ((uint16_t *)block)[i] = (uint16_t)((bits + (dice >> 16)) >> 16);
        else {
            const float code = wrpo__code_of(fabsf(x[i]), scale, second ? 255 : 127, (float)(dice >> 8) / 16777216);
            if (second) codes[i] = (uint8_t)(x[i] > 0 ? fmaxf(code, 1) : code);  /* above 0 stays above 0 */
            else codes[i] = (uint8_t)(int8_t)(x[i] < 0 ? -code : code);
        }
    }
    if (moments == WRPO_MOMENTS_8BIT) memcpy(codes + WRPO_BLOCK, &scale, sizeof scale);
}

/* ---- adamw (Loshchilov and Hutter 2019), as torch.optim.AdamW computes it; g is read times grad_scale ----
   m += (1 - beta1) (g - m)        v = beta2 v + (1 - beta2) g^2
   w = w (1 - lr weight_decay) - (lr / correction1) m / (sqrt(v) / correction2 + eps)
   with correction1 = 1 - beta1^step, correction2 = sqrt(1 - beta2^step). w is float (low NULL) or masters in halves. */
static void wrpo__plain_adamw(void *dev, void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count,
                              const wrpo_adamw *step) {
    const float keep = (float)(1 - (double)step->lr * step->weight_decay), rate = (float)(step->lr / step->correction1);
    const float new1 = (float)(1 - (double)step->beta1), new2 = (float)(1 - (double)step->beta2);
    const float correction2 = (float)step->correction2;
    uint16_t *high = w;
    (void)dev;
    for (int64_t first = 0; first < count; first += WRPO_BLOCK) {
        const int64_t n = WRPO__MIN(WRPO_BLOCK, count - first);
        char *m_block = (char *)m + wrpo_moments_bytes(step->moments, first);
        char *v_block = (char *)v + wrpo_moments_bytes(step->moments, first);
        float m_now[WRPO_BLOCK], v_now[WRPO_BLOCK];
        wrpo__moment_load(m_now, m_block, step->moments, false, n);
        wrpo__moment_load(v_now, v_block, step->moments, true, n);
        for (int64_t i = 0; i < n; i++) {
            const float gradient = g[first + i] * step->grad_scale;
            float weight = low ? wrpo__master(high[first + i], low[first + i]) : ((float *)w)[first + i];
            m_now[i] = fmaf(new1, gradient - m_now[i], m_now[i]);
            v_now[i] = fmaf(new2 * gradient, gradient, v_now[i] * step->beta2);
            weight = weight * keep - rate * m_now[i] / (sqrtf(v_now[i]) / correction2 + step->eps);
            if (low) wrpo__master_split(weight, &high[first + i], &low[first + i]);
            else ((float *)w)[first + i] = weight;
        }
        wrpo__moment_store(m_block, m_now, step->moments, false, n, (uint32_t)step->seed, first);
        wrpo__moment_store(v_block, v_now, step->moments, true, n, (uint32_t)(step->seed >> 32), first);
    }
}

/* ------------------------------------------------------------------------------------------- >>layout
   In: a config. Out: a model, whose weights are a table of tensors in the backend's memory. Gradients and moments are
   arrays that mirror the weights: an element of a weight is at the same offset in each of them.

   To add a weight: a row of WRPO__WEIGHTS; if not every model has it, a flag of wrpo_config, which >>checkpoint sets;
   its use, forward and backward (>>model), and in plain_logps of tests/40_model.c, in double. A norm: wrpo__norm_of.
   Loader, saver, optimizer and tests walk the table. */

/* One row per kind of tensor; cols 0: a vector. FIRST and LAST are there once. LAYER is there in each layer, and its
   name comes after "model.layers.<l>.". JOINED is like LAYER, but in memory directly after the row above: q, k and v
   are one matrix and one product, and so are gate and up. rows, cols and exists are locals of wrpo__layout_weights.
   With post_norms, post_attention_layernorm is on what attention adds, and the MLP's is pre_feedforward_layernorm. */
#define WRPO__WEIGHTS(X) \
/*    field                       scope   name in the checkpoint               rows   cols   exists */ \
    X(embed_tokens,               FIRST,  "model.embed_tokens.weight",         V,     D,     always) \
    X(input_layernorm,            LAYER,  "input_layernorm.weight",            D,     0,     pre_norms) \
    X(q_proj,                     LAYER,  "self_attn.q_proj.weight",           H * d, D,     always) \
    X(k_proj,                     JOINED, "self_attn.k_proj.weight",           G * d, D,     always) \
    X(v_proj,                     JOINED, "self_attn.v_proj.weight",           G * d, D,     always) \
    X(q_bias,                     LAYER,  "self_attn.q_proj.bias",             H * d, 0,     qkv_bias) \
    X(k_bias,                     JOINED, "self_attn.k_proj.bias",             G * d, 0,     qkv_bias) \
    X(v_bias,                     JOINED, "self_attn.v_proj.bias",             G * d, 0,     qkv_bias) \
    X(q_norm,                     LAYER,  "self_attn.q_norm.weight",           dq,    0,     qk_norm) \
    X(k_norm,                     LAYER,  "self_attn.k_norm.weight",           dk,    0,     qk_norm) \
    X(o_proj,                     LAYER,  "self_attn.o_proj.weight",           D,     H * d, always) \
    X(o_bias,                     LAYER,  "self_attn.o_proj.bias",             D,     0,     o_bias) \
    X(post_attention_layernorm,   LAYER,  "post_attention_layernorm.weight",   D,     0,     always) \
    X(pre_feedforward_layernorm,  LAYER,  "pre_feedforward_layernorm.weight",  D,     0,     both_norms) \
    X(gate_proj,                  LAYER,  "mlp.gate_proj.weight",              I,     D,     always) \
    X(up_proj,                    JOINED, "mlp.up_proj.weight",                I,     D,     always) \
    X(down_proj,                  LAYER,  "mlp.down_proj.weight",              D,     I,     always) \
    X(post_feedforward_layernorm, LAYER,  "post_feedforward_layernorm.weight", D,     0,     post_norms) \
    X(norm,                       LAST,   "model.norm.weight",                 D,     0,     always) \
    X(lm_head,                    LAST,   "lm_head.weight",                    V,     D,     own_head)
typedef enum wrpo__kind {
#define WRPO__X(field, scope, name, rows, cols, exists) WRPO__W_##field,
    WRPO__WEIGHTS(WRPO__X)
#undef WRPO__X
    WRPO__KINDS, WRPO__W_none = WRPO__KINDS
} wrpo__kind;

struct wrpo_model {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_config config;
    wrpo_weight *weights; int64_t n_weights;
    int64_t *index;                  /* [L][KINDS] into weights; -1 where the model has no such weight */
    int64_t count;                   /* elements of an array that mirrors the weights, gaps included (they stay 0) */
    uint16_t *low;                   /* this rank's shard of [count] low halves of float masters, the weights being the
                                        high ones; or NULL */
    bool frozen;                     /* is not trained, except for its adapter */
    struct wrpo__lora *lora;         /* its adapter; NULL: none */
    int trainers;                    /* alive: they count on its weights */
    size_t mapped;                   /* bytes of its weights that are in mapped files */
    wrpo_dtype dtype;                /* of the checkpoint: what a save writes by default */
    const char *dir;                 /* of config.json and the other files that a save copies; NULL: none */
    const char *tokenizer_dir;       /* of the tokenizer's; differs from dir only after wrpo_model_init */
};
/* The weight of this kind in layer l (0 for those outside the layers); NULL: the model has none. */
static const wrpo_weight *wrpo__weight(const wrpo_model *model, wrpo__kind kind, int64_t l) {
    const int64_t i = kind == WRPO__W_none ? -1 : model->index[l * WRPO__KINDS + (int64_t)kind];
    return i < 0 ? NULL : &model->weights[i];
}
#define WRPO__W(model, field, l) wrpo__weight(model, WRPO__W_##field, l)

static int64_t wrpo__whole_blocks(int64_t count) { return wrpo__div_up(count, WRPO_BLOCK) * WRPO_BLOCK; }
/* Walks the table. Out, where not NULL: how many weights, elements with gaps, and parameters the config has; in model,
   its index and its weights, except for dtype and data. */
static void wrpo__layout_weights(const wrpo_config *c, wrpo_model *model, int64_t *weights, int64_t *count,
                                 int64_t *parameters) {
    enum { FIRST, LAYER, LAST, JOINED };
    const int64_t V = c->vocab_size, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, L = c->num_hidden_layers;
    const bool always = true, qkv_bias = c->attention_bias, o_bias = c->output_bias, qk_norm = c->qk_norm;
    const int64_t dq = c->qk_norm_rows ? H * d : d, dk = c->qk_norm_rows ? G * d : d;
    const bool post_norms = c->post_norms, pre_norms = !c->no_pre_norms, both_norms = pre_norms && post_norms;
    const bool own_head = c->head == WRPO_HEAD_LM && !c->tie_word_embeddings;
    const struct { int scope; const char *name; int64_t rows, cols; bool exists; } table[] = {
#define WRPO__X(field, scope, name, rows, cols, exists) {scope, name, rows, cols, exists},
        WRPO__WEIGHTS(WRPO__X)
#undef WRPO__X
    };
    int64_t n = 0, offset = 0, total = 0;
    for (int scope = FIRST; scope <= LAST; scope++)
        for (int64_t l = 0; l < (scope == LAYER ? L : 1); l++)
            for (int64_t kind = 0; kind < WRPO__KINDS; kind++) {
                const int64_t rows = table[kind].rows, cols = WRPO__MAX(table[kind].cols, 1);
                const bool joined = table[kind].scope == JOINED;
                const char *name = table[kind].name;
                if ((joined ? LAYER : table[kind].scope) != scope || !table[kind].exists) continue;
                if (!joined) offset = wrpo__whole_blocks(offset);
                if (model) {
                    if (scope == LAYER) name = wrpo__format(model->arena, "model.layers.%lld.%s", (long long)l, name);
                    const bool vector = table[kind].cols == 0;
                    model->weights[n] = (wrpo_weight){.name = name, .rows = rows, .cols = cols, .vector = vector,
                                                      .decay = !vector, .at = offset};
                    model->index[l * WRPO__KINDS + kind] = n;
                }
                n++;
                offset += rows * cols;
                total += rows * cols;
            }
    if (weights) *weights = n;
    if (count) *count = wrpo__whole_blocks(offset);
    if (parameters) *parameters = total;
}

/* ---- memory: a layout runs twice, with base NULL to measure, then to assign. An empty buffer is NULL ---- */
typedef struct wrpo__bump { char *base; size_t used; bool overflow; } wrpo__bump;
static void *wrpo__take(wrpo__bump *b, int64_t rows, int64_t cols, size_t bytes) {
    const size_t offset = b->used, size = (size_t)rows * (size_t)cols * bytes;
    if (cols > 0 && (size_t)rows > SIZE_MAX / 16 / (size_t)cols) b->overflow = true;
    b->used += (size + WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN;
    if (b->used < offset || b->used > SIZE_MAX / 2) b->overflow = true;
    return b->base && size > 0 ? b->base + offset : NULL;
}

/* ---- weights in memory ---- */
static int64_t wrpo__size(const wrpo_weight *w) { return w->rows * w->cols; }
static size_t wrpo__dtype_size(wrpo_dtype dtype) { return dtype == WRPO_DTYPE_BF16 || dtype == WRPO_DTYPE_F16 ? 2 : 4; }
/* Is b directly after a, in memory and in the arrays that mirror the weights, and treated alike? They are then one. */
static bool wrpo__follows(const wrpo_weight *a, const wrpo_weight *b) {
    const size_t bytes = (size_t)wrpo__size(a) * wrpo__dtype_size(a->dtype);
    const void *end = a->data ? (const char *)a->data + bytes : NULL;
    const int64_t at = a->at < 0 ? -1 : a->at + wrpo__size(a);
    return b->at == at && b->dtype == a->dtype && b->decay == a->decay && b->data == end;
}
/* Weights from i on, each of which follows the one before: they are one array. Returns their end; *size: elements. */
static int64_t wrpo__contiguous(const wrpo_model *model, int64_t i, int64_t *size) {
    const wrpo_weight *w = model->weights;
    *size = wrpo__size(&w[i]);
    for (i++; i < model->n_weights && wrpo__follows(&w[i - 1], &w[i]); i++) *size += wrpo__size(&w[i]);
    return i;
}
/* ---- adapters (LoRA): a weight W [out, in] of a linear layer may have A [r, in] and B [out, r] ----
   What they compute is in >>model, after the parts of a layer; >>checkpoint makes, reads and saves them. */
typedef struct wrpo__adapter {       /* of one weight */
    int64_t rank;                    /* 0: none */
    double alpha; float scale;
    bool shared;                     /* a fused layer of the family (qkv_proj): A is that of the weight before */
    const wrpo_weight *a, *b;        /* in the table */
} wrpo__adapter;
typedef struct wrpo__lora {
    wrpo__adapter *of;               /* [L][KINDS], by the kind of W */
    int64_t rank, cols;              /* of a product, the largest sum of ranks; the largest input */
    wrpo_adapter_desc desc;          /* resolved; target is NULL */
    const char *dir;                 /* where it was read; NULL: it is new */
    int64_t first;                   /* its first weight; those before are the model's own */
} wrpo__lora;
/* The adapter of a weight; the next ones are those of the weights after it in its product. NULL: the model has none. */
static const wrpo__adapter *wrpo__adapters(const wrpo_model *model, wrpo__kind kind, int64_t l) {
    return model->lora ? &model->lora->of[l * WRPO__KINDS + (int64_t)kind] : NULL;
}
/* -------------------------------------------------------------------------------------------- >>model
   The decoder, forward and backward, over a packed micro-batch. It is written once, in ops of the backend's table.
   In: records of token ids. Out: the log-prob of every scored token; then, from dL/dlogp of each, the gradients.
   No op's result depends on the number of threads, so none here does.

   Packing. A record is one prompt of P tokens and K responses of R_k tokens. It takes P + sum R_k rows:

       row   0 ...  P-1 | P ... P+R_1-1 | P+R_1 ...
             prompt     | response 1    | response 2
       pos   0 ...  P-1 | P ... P+R_1-1 | P ... P+R_2-1

   The prompt's hidden states are computed once. The positions of every response go on from P. A token of a response
   sees the prompt, the tokens before it in its own response, and itself; it sees no other response. (A window hides
   what is too far back.) Longrope and dynamic rope have other angles for some lengths: the prompt is then packed again.

   Records follow each other; there is no padding. The token at response position j is predicted by the row
   before it: the prompt's last row for j = 0. Only those rows get logits, in chunks.

   Steps, by their numbers in the code: 1 embedding; 2 to 7 attention; 8 to 11 MLP; 12 final norm; 13 log-probs.

   Words.  row       one token of the packed micro-batch, and its hidden state; activations are [n, columns]
           segment   the rows of one prompt or one response: what attention takes for a sequence
           prefix    rows whose keys all queries of a segment see: a response's prompt; a prompt has none
           own keys  those of the segment's own rows; each query sees them up to its own position
           label     a scored token: label_id is it; the logits of label_row predict it
           chunk     labels that go through the head together where memory is short
           span      labels whose logits there is room for: a chunk, or as many as there are rows
           rotate    apply the rotary position embedding to q and k

   To add an op or a family: .github/CONTRIBUTING.md. Ops are called in wrpo__layer_fwd and wrpo__layer_bwd, where a
   family is a flag of wrpo_config at each step that differs. A norm in a new place: its weight (>>layout), its rstd and
   its input (WRPO__LAYER_ACTS), a wrpo__norm_fwd and a wrpo__norm_bwd in these two functions, wrpo__norm_of. Another
   kind of norm: an op, then wrpo__norm_fwd and wrpo__norm_bwd, through which all go; its bias is a weight. */

/* ---- rotary embedding (Su et al. 2021): inverse frequencies, in the float arithmetic of transformers ----
   For two types they depend on the length of the sequence, prompt and response: longrope has other factors beyond the
   original length, dynamic another theta for each length beyond max_position_embeddings. Equal keys: equal angles. */
static int64_t wrpo__rope_dims(const wrpo_config *c) { return c->rope.dims ? c->rope.dims : c->head_dim; }
static int64_t wrpo__rope_key(const wrpo_config *c, int64_t length) {
    if (c->rope.type == WRPO_ROPE_LONGROPE) return length > c->rope.original_max_position_embeddings;
    return c->rope.type == WRPO_ROPE_DYNAMIC && length > c->max_position_embeddings ? length : 0;
}
typedef struct wrpo__rotary {
    float *inv_freq; double scale;   /* radians per position, [dims / 2]; factor of cosine and sine */
    float *table, *h_table;          /* cosines and sines, [*, dims / 2, 2]; see wrpo__make_angles */
} wrpo__rotary;
static void wrpo__inv_freq(const wrpo_config *c, int64_t key, wrpo__rotary *r) {
    const wrpo_rope *p = &c->rope;
    const int64_t d = wrpo__rope_dims(c);
    const double pi = 3.14159265358979323846, length = (double)p->original_max_position_embeddings;
    const float factor = (float)p->factor, *longrope = key ? p->long_factor : p->short_factor;
    float theta = (float)p->theta, *inv = r->inv_freq;
    r->scale = p->type == WRPO_ROPE_LONGROPE || p->type == WRPO_ROPE_YARN ? p->attention_factor : 1;
    if (p->type == WRPO_ROPE_DYNAMIC && key) {
        const float stretch = factor * (float)key / (float)c->max_position_embeddings - (float)(p->factor - 1);
        theta *= powf(stretch, (float)((double)d / (double)(d - 2)));
    }
    for (int64_t i = 0; i < d / 2; i++) {
        const float power = powf(theta, (float)(2 * i) / (float)d);
        inv[i] = 1.0f / (p->type == WRPO_ROPE_LONGROPE ? longrope[i] * power : power);  /* Ding et al. 2024 */
        if (p->type == WRPO_ROPE_LINEAR) inv[i] /= factor;
    }
    if (p->type == WRPO_ROPE_LLAMA3) {  /* long waves slowed by factor, short ones kept, a ramp */
        const float slow = (float)p->low_freq_factor, fast = (float)(p->high_freq_factor - p->low_freq_factor);
        const float low = (float)(length / p->low_freq_factor), high = (float)(length / p->high_freq_factor);
        for (int64_t i = 0; i < d / 2; i++) {
            const float wave = (float)(2 * pi) / inv[i], smooth = ((float)length / wave - slow) / fast;
            if (wave > low) inv[i] /= factor;
            else if (wave >= high) inv[i] = (1 - smooth) * (inv[i] / factor) + smooth * inv[i];
        }
    }
    if (p->type == WRPO_ROPE_YARN) {  /* Peng et al. 2023: by rotations within the original length */
        double first = (double)d * log(length / (p->beta_fast * 2 * pi)) / (2 * log(p->theta));
        double last = (double)d * log(length / (p->beta_slow * 2 * pi)) / (2 * log(p->theta));
        first = WRPO__MAX(p->yarn_truncate ? floor(first) : first, 0);
        last = WRPO__MIN(p->yarn_truncate ? ceil(last) : last, (double)(d - 1));
        if (first == last) last += 0.001;
        for (int64_t i = 0; i < d / 2; i++) {
            const float ramp = ((float)i - (float)first) / (float)(last - first);
            const float keep = 1 - WRPO__MIN(WRPO__MAX(ramp, 0.0f), 1.0f);
            inv[i] = inv[i] / factor * (1 - keep) + inv[i] * keep;
        }
    }
}

/* ---- the workspace: the memory that micro-batches are computed in ---- */
typedef struct wrpo__shape {         /* what there is room for; in training, of a micro-batch */
    int64_t rows;                    /* never fewer than labels, segments or responses */
    int64_t chunk;                   /* labels in a chunk */
    bool logits;                     /* the span is all rows, not a chunk */
    int64_t recompute;               /* layers [0, recompute) store only x; the backward pass computes the rest again */
    int64_t cache;                   /* rows of keys and values that outlive a forward pass, for decoding; 0 = none */
    int64_t positions;               /* 0 = as many as rows */
    bool train, frozen_head;         /* frozen_head: by wrpo__full_shape; the head is not trained */
    int64_t rank, drop;              /* columns of lora_t; of lora_x */
} wrpo__shape;
/* Of a row of logits: on a device rows are 16-byte aligned, also in bfloat16, whatever the vocabulary. */
static int64_t wrpo__ldl(const wrpo_backend *be, int64_t V) { return be->host ? V : (V + 7) / 8 * 8; }
static int64_t wrpo__span(const wrpo__shape *s) { return s->logits ? s->rows : s->chunk; }

/* The tables of buffers, [n, columns] each. void: activations, of the backend's act_bytes an element. train, qk_norm,
   post_norms are 0 or 1; a buffer of 0 columns is not allocated, so D * train is there only in training.
   Per layer: what the backward pass needs besides the x that enters the layer. The names in the columns are locals of
   wrpo__acts_layout. */
#define WRPO__LAYER_ACTS(X) \
    X(void, mid, D * train)                            /* the residual stream after attention */ \
    X(void, qk0, (H + G) * d * qk_norm)                /* q | k before their norms */ \
    X(void, qkv, (H + 2 * G) * d)                      /* q | k | v; q and k are rotated */ \
    X(void, o, H * d) X(float, lse, H)                 /* attention's output, and its log sum exp */ \
    X(void, gu, 2 * I)                                 /* gate | up */ \
    X(void, attn_out, D * post_norms) X(void, mlp_out, D * post_norms)      /* added to x, before the norm on it */ \
    X(float, rstd_attn, 1) X(float, rstd_q, H * qk_norm) X(float, rstd_k, G * qk_norm)   /* 1 / rms, of each norm */ \
    X(float, rstd_attn_out, post_norms) X(float, rstd_mlp, 1) X(float, rstd_mlp_out, post_norms)
/* Once. dy is scratch: the gradient of a product's input or output. */
#define WRPO__SHARED_ACTS(X) \
    X(void, branch, D)                                 /* what attention or MLP reads, normed; or adds to x */ \
    X(void, h, I)                                      /* act(gate) up */ \
    X(void, y, D) X(float, rstd_final, 1)              /* the final norm's output */ \
    X(float, label_lse, 1)                             /* log sum exp of each label's logits */ \
    X(void, dx, D * train) X(void, dy, D * train)      /* dL/d of the residual stream; dy as above */ \
    X(void, dqkv, (H + 2 * G) * d * train) X(void, d_o, H * d * train) \
    X(void, dgu, 2 * I * train) X(void, dh, I * train) \
    X(void, lora_t, s->rank) X(void, lora_dt, s->rank * train)              /* of adapters: t, dL/dt */ \
    X(void, lora_x, s->drop * train)                   /* x after dropout, then its gradient */
/* On the backend and, as h_ids and so on, on the host. */
#define WRPO__PACKED(X) \
    X(int32_t, ids, 1) X(wrpo_seg, segs, 1) \
    X(int32_t, angle, 1)                               /* row of wrpo__rotary's table */ \
    X(int32_t, cache_row, s->cache > 0)                /* where in the cache a row's key and value go */ \
    X(int32_t, label_row, 1) X(int32_t, label_id, 1) \
    X(float, logp, 1) X(float, dlogp, 1)               /* of each label; dlogp: dL/dlogp */ \
    X(float, mean, 1)                                  /* mean logit of each row, a metric */
typedef struct wrpo__acts {
    void *x;                         /* [n, D] residual stream that enters the layer */
#define WRPO__X(type, field, columns) type *field;
    WRPO__LAYER_ACTS(WRPO__X)
} wrpo__acts;
typedef struct wrpo__location {      /* where a response is: the first row of its prompt, its own, its first label */
    int64_t prompt_row, row, label;
} wrpo__location;
typedef struct wrpo__workspace {
    wrpo_model *model; const wrpo_backend *be; void *dev;
    wrpo__shape shape;
    wrpo_dropout dropout;            /* of adapters, in this micro-batch; p 0: none */
    bool no_adapter;                 /* it is known to add nothing */
    int64_t n, n_segs, n_labels, n_packed;            /* rows and so on that are packed */
    wrpo__location *packed;          /* [n_packed] responses */
    wrpo__rotary rotary[2];          /* the second: of the layers with a base of their own */
    int64_t rope_key;                /* of the sequences that inv_freq is for */
    int64_t own_angles;              /* the first packed row whose angles are behind the tables; INT64_MAX: none */
    WRPO__SHARED_ACTS(WRPO__X)
#undef WRPO__X
#define WRPO__X(type, field, columns) type *field, *h_##field;
    WRPO__PACKED(WRPO__X)
#undef WRPO__X
    wrpo__acts *layer;               /* [L + 1]; the last has only x, which enters the final norm */
    wrpo__acts scratch;              /* of all layers that store only x, and in inference of all */
    void *cache, *attn_scratch;      /* cache [L][shape.cache, 2Gd]: k | v */
    void *hid, *dhid; float *logits; /* [span, D], [span, D], [span, ldl]; hid: y at the label rows; with a
                                        frozen head dhid is [rows, D], of all labels */
    void *dlogits;                   /* [chunk, ldl]; NULL where activations are float: it takes the place of logits */
    float *head_sum;                 /* [D] sum of the head's rows */
    bool logits_kept;                /* logits and label_lse are those of all labels */
    void *memory;                    /* on the backend; what is packed, tables and cache come first */
    size_t bytes, fixed_bytes, head_bytes;   /* of all; of those; of hid to dlogits */
    wrpo__bump host;                 /* the memory of what is on the host */
} wrpo__workspace;

/* Measures the buffers of s->rows rows (r->layer may be NULL), or assigns their memory. */
static void wrpo__acts_layout(wrpo_ctx *ctx, const wrpo_config *c, const wrpo__shape *s, wrpo__workspace *r,
                              wrpo__bump *b) {
    const wrpo_backend *be = ctx->desc.backend;
    const size_t size_void = (size_t)be->act_bytes, size_float = sizeof(float);
    const int64_t V = c->vocab_size, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, L = c->num_hidden_layers, n = s->rows;
    const int64_t train = s->train, qk_norm = c->qk_norm, post_norms = c->post_norms, span = wrpo__span(s);
    for (int64_t l = 0; l <= L + 1; l++) {
        const bool shared = l == L + 1;                /* r->scratch */
        const bool stored = s->train && l >= s->recompute && l < L;
        const bool full = shared ? !s->train || s->recompute > 0 : stored;
        const bool own_x = s->train ? !shared : shared;        /* training stores each layer's x; else one serves all */
        wrpo__acts unused, *a = shared ? &r->scratch : &unused;
        if (!shared && r->layer) a = &r->layer[l];
        a->x = wrpo__take(b, own_x ? n : 0, D, size_void);
#define WRPO__X(type, field, columns) a->field = wrpo__take(b, full ? n : 0, columns, size_##type);
        WRPO__LAYER_ACTS(WRPO__X)
#undef WRPO__X
        if (!s->train) a->mid = a->x;                  /* the stream is updated in place */
    }
#define WRPO__X(type, field, columns) r->field = wrpo__take(b, n, columns, size_##type);
    WRPO__SHARED_ACTS(WRPO__X)
#undef WRPO__X
    r->attn_scratch = wrpo__take(b, train, (int64_t)be->attention_scratch(ctx->dev, n, H, G, d), 1);
    r->head_bytes = b->used;
    r->hid = wrpo__take(b, span, D, size_void);
    r->logits = wrpo__take(b, span, wrpo__ldl(be, V), size_float);
    r->dhid = wrpo__take(b, s->frozen_head ? n : span, D * train, size_void);
    r->dlogits = wrpo__take(b, s->chunk, size_void == size_float ? 0 : wrpo__ldl(be, V) * train, size_void);
    r->head_bytes = b->used - r->head_bytes;
}
/* The next shape of less memory: first the logits are computed again, unless a chunk has them all, as they save the
   least time a byte; then one more layer. false: none. */
static bool wrpo__keep_less(wrpo__shape *s, int64_t layers) {
    if (s->logits && s->rows > s->chunk) s->logits = false;
    else s->recompute++;
    return s->recompute <= layers;
}
/* Lays out the memory anew for what is packed. It was measured for the most rows of a micro-batch: one of fewer keeps
   more for its backward pass, as much as fits. The bits are the same. */
static void wrpo__arrange(wrpo__workspace *r) {
    wrpo_ctx *ctx = r->model->ctx;
    const wrpo_config *c = &r->model->config;
    wrpo__workspace measured = {0};
    wrpo__bump b;
    r->shape.rows = r->n;
    r->shape.recompute = 0;
    r->shape.logits = !r->shape.frozen_head;
    for (;;) {
        b = (wrpo__bump){.used = r->fixed_bytes};
        wrpo__acts_layout(ctx, c, &r->shape, &measured, &b);
        if (!b.overflow && b.used <= r->bytes) break;
        if (!wrpo__keep_less(&r->shape, c->num_hidden_layers))
            wrpo__fail_arg("attention_scratch: want no more bytes for fewer rows");
    }
    b = (wrpo__bump){.base = r->memory, .used = r->fixed_bytes};
    wrpo__acts_layout(ctx, c, &r->shape, r, &b);
}

/* Rows of the tables for `count` positions, on the host. Row p is position p's; then come rows for sequences whose key
   is not 0, one for each packed row. */
static void wrpo__make_angles(wrpo__workspace *r, int64_t row, int64_t position, int64_t count) {
    const int64_t half = wrpo__rope_dims(&r->model->config) / 2, at = row * 2 * half, n = count * half;
    for (wrpo__rotary *t = r->rotary; t < r->rotary + 2 && t->table; t++) {
        float *to = t->h_table + at;
        for (int64_t i = 0; i < n; i++) {
            const float angle = (float)(position + i / half) * t->inv_freq[i % half];
            to[2 * i] = cosf(angle) * (float)t->scale;
            to[2 * i + 1] = sinf(angle) * (float)t->scale;
        }
    }
}
static void wrpo__put_angles(const wrpo__workspace *r, int64_t row, int64_t count) {
    const int64_t dims = wrpo__rope_dims(&r->model->config);
    for (const wrpo__rotary *t = r->rotary; t < r->rotary + 2 && t->table; t++)
        r->be->put(r->dev, t->table + row * dims, t->h_table + row * dims, (size_t)(count * dims) * sizeof *t->table);
}

/* ---- packing: begin, records, end ---- */
static void wrpo__pack_begin(wrpo__workspace *r) {
    r->n = r->n_segs = r->n_labels = r->n_packed = 0;
    r->own_angles = INT64_MAX;
    r->logits_kept = false;
}
/* What is packed next belongs to a sequence of this length, prompt and response. */
static void wrpo__pack_rotary(wrpo__workspace *r, int64_t length) {
    const int64_t key = wrpo__rope_key(&r->model->config, length);
    if (key == r->rope_key) return;
    r->rope_key = key;
    wrpo__inv_freq(&r->model->config, key, r->rotary);
}
/* A segment of `count` rows, the first at `position`. seg gives its prefix and its own keys; the last of these is the
   last row's. The caller has made sure that there is room. */
static void wrpo__pack_rows(wrpo__workspace *r, const int32_t *ids, int64_t count, int64_t position, wrpo_seg seg) {
    const int64_t first = r->rope_key ? r->shape.positions + r->n : position;
    if (r->rope_key) {
        wrpo__make_angles(r, first, position, count);
        r->own_angles = WRPO__MIN(r->own_angles, r->n);
    }
    seg.begin = r->n;
    seg.end = r->n + count;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = seg.begin + i;
        r->h_ids[row] = ids[i];
        if (r->h_cache_row) r->h_cache_row[row] = (int32_t)(seg.own_end - count + i);
        r->h_angle[row] = (int32_t)(first + i);
    }
    r->h_segs[r->n_segs++] = seg;
    r->n = seg.end;
}
static void wrpo__pack_seg(wrpo__workspace *r, const int32_t *ids, int64_t count, int64_t position, int64_t prefix,
                           int64_t prefix_end) {
    wrpo__pack_rows(r, ids, count, position, (wrpo_seg){0, 0, prefix, prefix_end, r->n, r->n + count});
}
static void wrpo__pack_label(wrpo__workspace *r, int64_t row, int32_t id) {
    r->h_label_row[r->n_labels] = (int32_t)row;
    r->h_label_id[r->n_labels++] = id;
}
/* Is the prompt packed before response k? No, if responses k - 1 and k have equal rotary keys: they share its rows. */
static bool wrpo__packs_prompt(const wrpo_config *c, const wrpo_record *record, int k) {
    const int64_t P = record->prompt_count;
    const wrpo_tokens *y = &record->responses[k];
    return k == 0 || wrpo__rope_key(c, P + y->count) != wrpo__rope_key(c, P + y[-1].count);
}
static int64_t wrpo__record_rows(const wrpo_config *c, const wrpo_record *record) {
    int64_t n = 0;
    for (int k = 0; k < record->count; k++)
        n += record->responses[k].count + (wrpo__packs_prompt(c, record, k) ? record->prompt_count : 0);
    return n;
}
static void wrpo__pack_record(wrpo__workspace *r, const wrpo_record *record) {
    const int64_t P = record->prompt_count;
    int64_t prompt = 0;
    for (int k = 0; k < record->count; k++) {
        const wrpo_tokens *y = &record->responses[k];
        if (wrpo__packs_prompt(&r->model->config, record, k)) {
            prompt = r->n;
            wrpo__pack_rotary(r, P + y->count);
            wrpo__pack_seg(r, record->prompt, P, 0, prompt, prompt);
        }
        r->packed[r->n_packed++] = (wrpo__location){.prompt_row = prompt, .row = r->n, .label = r->n_labels};
        for (int64_t j = y->first; j < y->count; j++)
            if (!y->scored || y->scored[j]) wrpo__pack_label(r, j > 0 ? r->n + j - 1 : prompt + P - 1, y->ids[j]);
        wrpo__pack_seg(r, y->ids, y->count, P, prompt, prompt + P);            /* sees the prompt's rows and its own */
    }
}
static void wrpo__pack_end(wrpo__workspace *r) {
    const size_t n = (size_t)r->n, labels = (size_t)r->n_labels;
    r->be->put(r->dev, r->ids, r->h_ids, n * sizeof *r->ids);
    r->be->put(r->dev, r->segs, r->h_segs, (size_t)r->n_segs * sizeof *r->segs);
    r->be->put(r->dev, r->angle, r->h_angle, n * sizeof *r->angle);
    if (r->own_angles < r->n) wrpo__put_angles(r, r->shape.positions + r->own_angles, r->n - r->own_angles);
    if (r->cache) r->be->put(r->dev, r->cache_row, r->h_cache_row, n * sizeof *r->cache_row);
    r->be->put(r->dev, r->label_row, r->h_label_row, labels * sizeof *r->label_row);
    r->be->put(r->dev, r->label_id, r->h_label_id, labels * sizeof *r->label_id);
}

/* ---- the parts of a layer ---- */
static void *wrpo__at(const wrpo_backend *be, const void *p, int64_t i) {      /* &p[i] of activations */
    return (char *)(uintptr_t)p + i * be->act_bytes;
}
/* Products, each of `count` weights that follow each other in the table, and of their biases. */
typedef struct wrpo__linear { int count; wrpo__kind weight, bias; } wrpo__linear;
static const wrpo__linear
    wrpo__qkv = {3, WRPO__W_q_proj, WRPO__W_q_bias}, wrpo__qk = {2, WRPO__W_q_proj, WRPO__W_q_bias},
    wrpo__v = {1, WRPO__W_v_proj, WRPO__W_v_bias}, wrpo__o = {1, WRPO__W_o_proj, WRPO__W_o_bias},
    wrpo__gu = {2, WRPO__W_gate_proj, WRPO__W_none}, wrpo__down = {1, WRPO__W_down_proj, WRPO__W_none};
/* The end of the weights from i on that are one matrix in memory, and its rows. */
static int wrpo__joined(const wrpo_weight *w, int i, int count, int64_t *rows) {
    *rows = w[i].rows;
    for (i++; i < count && wrpo__follows(&w[i - 1], &w[i]); i++) *rows += w[i].rows;
    return i;
}
static float *wrpo__grad(float *grads, const wrpo_weight *w) {         /* NULL: not wanted, or w is not trained */
    return grads && w->at >= 0 ? grads + w->at : NULL;
}
static void wrpo__adapter_fwd(const wrpo__workspace *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
                              void *y, int64_t ldy, const void *x);
static void wrpo__adapter_bwd(const wrpo__workspace *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
                              void *dx, float *grads, const void *dy, int64_t lddy, const void *x);
/* y = x W' + b, or y += if add; then the adapters' part. */
static void wrpo__linear_fwd(const wrpo__workspace *r, int64_t l, const wrpo__linear *lin, void *y, int64_t ldy,
                             const void *x, bool add) {
    const wrpo_weight *w = wrpo__weight(r->model, lin->weight, l), *b = wrpo__weight(r->model, lin->bias, l);
    const wrpo__adapter *adapters = wrpo__adapters(r->model, lin->weight, l);
    const int64_t n = r->n, cols = w->cols;
    int64_t rows;
    void *const all = y;
    for (int i = 0, end; i < lin->count;) {
        end = wrpo__joined(w, i, lin->count, &rows);
        r->be->gemm(r->dev, WRPO_MM_NT, y, ldy, x, cols, w[i].data, cols, w[i].dtype, n, rows, cols, add);
        for (; i < end; i++) {
            if (b) r->be->bias(r->dev, y, ldy, b[i].data, n, b[i].rows);
            y = wrpo__at(r->be, y, w[i].rows);
        }
    }
    if (adapters && !r->no_adapter) wrpo__adapter_fwd(r, adapters, w, lin->count, all, ldy, x);
}
/* dx = dy W;  dW += dy' x;  db += sum dy;  then the adapters' part. What is NULL, dx or grads, is not computed. */
static void wrpo__linear_bwd(const wrpo__workspace *r, int64_t l, const wrpo__linear *lin, void *dx, float *grads,
                             const void *dy, int64_t lddy, const void *x) {
    const wrpo_backend *be = r->be;
    const wrpo_weight *w = wrpo__weight(r->model, lin->weight, l), *b = wrpo__weight(r->model, lin->bias, l);
    const wrpo__adapter *adapters = wrpo__adapters(r->model, lin->weight, l);
    const int64_t n = r->n, cols = w->cols;
    int64_t rows;
    const void *const all = dy;
    for (int i = 0, end; i < lin->count;) {
        float *dw = wrpo__grad(grads, &w[i]);
        const bool add = i > 0;
        end = wrpo__joined(w, i, lin->count, &rows);
        if (dx) be->gemm(r->dev, WRPO_MM_NN, dx, cols, dy, lddy, w[i].data, cols, w[i].dtype, n, cols, rows, add);
        if (dw) be->gemm(r->dev, WRPO_MM_TN, dw, cols, dy, lddy, x, cols, WRPO_DTYPE_F32, rows, cols, n, 1);
        for (; i < end; i++) {
            float *db = b ? wrpo__grad(grads, &b[i]) : NULL;
            if (db) be->bias_bwd(r->dev, db, dy, lddy, n, b[i].rows);
            dy = wrpo__at(be, dy, w[i].rows);
        }
    }
    if (adapters) wrpo__adapter_bwd(r, adapters, w, lin->count, dx, grads, all, lddy, x);
}
/* Norms: y = (w + plus) x / rms(x), for each of the `heads` vectors of a row. All norms of the model are these. */
typedef struct wrpo__norm { const wrpo_weight *w; int64_t heads; float plus; } wrpo__norm;
static wrpo__norm wrpo__norm_of(const wrpo_model *m, wrpo__kind kind, int64_t l) {
    const wrpo_config *c = &m->config;
    wrpo__norm norm = {wrpo__weight(m, kind, l), 1, c->norm_plus_one};
    if (kind == WRPO__W_q_norm && !c->qk_norm_rows) norm.heads = c->num_attention_heads;
    if (kind == WRPO__W_k_norm && !c->qk_norm_rows) norm.heads = c->num_key_value_heads;
    return norm;
}
static void wrpo__norm_fwd(const wrpo__workspace *r, int64_t l, wrpo__kind kind, void *y, int64_t ldy, float *rstd,
                           const void *x, int64_t ldx) {
    const wrpo__norm norm = wrpo__norm_of(r->model, kind, l);
    r->be->rmsnorm(r->dev, y, ldy, rstd, x, ldx, norm.w->data, r->n, norm.heads, norm.w->rows,
                   (float)r->model->config.rms_norm_eps, norm.plus);
}
/* dx = dL/dx, plus dres unless it is NULL; dL/dw is added to grads. dx may be dy or dres. */
static void wrpo__norm_bwd(const wrpo__workspace *r, int64_t l, wrpo__kind kind, float *grads, void *dx, int64_t lddx,
                           const void *dy, const void *dres, const float *rstd, const void *x, int64_t ldx) {
    const wrpo__norm norm = wrpo__norm_of(r->model, kind, l);
    r->be->rmsnorm_bwd(r->dev, dx, lddx, wrpo__grad(grads, norm.w), dy, lddx, dres, lddx, x, ldx, norm.w->data, rstd,
                       r->n, norm.heads, norm.w->rows, norm.plus);
}
/* What attention or MLP reads: norm(x), in r->branch; x itself where the model has no norm before it. */
static const void *wrpo__pre_norm_fwd(const wrpo__workspace *r, int64_t l, wrpo__kind kind, float *rstd,
                                      const void *x) {
    const int64_t D = r->model->config.hidden_size;
    if (!wrpo__weight(r->model, kind, l)) return x;
    wrpo__norm_fwd(r, l, kind, r->branch, D, rstd, x, D);
    return r->branch;
}
/* r->dy is dL/d of that; dL/dx is added to r->dx. */
static void wrpo__pre_norm_bwd(const wrpo__workspace *r, int64_t l, wrpo__kind kind, float *grads, const float *rstd,
                               const void *x) {
    const int64_t D = r->model->config.hidden_size;
    if (!wrpo__weight(r->model, kind, l)) r->be->add(r->dev, r->dx, r->dy, r->n * D);
    else wrpo__norm_bwd(r, l, kind, grads, r->dx, D, r->dy, r->dx, rstd, x, D);
}
/* y = factor x, [rows, D]: the op dropout with p 0. y may be x. */
static void wrpo__scale(const wrpo__workspace *r, void *y, const void *x, int64_t rows, double factor) {
    const int64_t D = r->model->config.hidden_size;
    r->be->dropout(r->dev, y, D, x, D, rows, D, &(wrpo_dropout){.scale = (float)factor});
}
/* x += m a W'; or with post_norms x += m norm(a W'), and a W' stays in `out` for the backward pass. m is
   residual_multiplier. x NULL (only with post_norms): `out` and rstd alone are wanted. */
static void wrpo__residual_fwd(const wrpo__workspace *r, int64_t l, const wrpo__linear *lin, wrpo__kind norm, void *out,
                               float *rstd, void *x, const void *a) {
    const wrpo_config *c = &r->model->config;
    const int64_t D = c->hidden_size;
    const bool normed = c->post_norms, scaled = c->residual_multiplier > 0;
    if (!normed && !scaled) {        /* x += a W' */
        wrpo__linear_fwd(r, l, lin, x, D, a, true);
        return;
    }
    wrpo__linear_fwd(r, l, lin, normed ? out : r->branch, D, a, false);
    if (normed) wrpo__norm_fwd(r, l, norm, r->branch, D, rstd, out, D);
    if (scaled) wrpo__scale(r, r->branch, r->branch, r->n, c->residual_multiplier);
    if (x) r->be->add(r->dev, x, r->branch, r->n * D);
}
/* Returns dL/d(a W'): r->dx itself, or r->dy after the backward of the factor and of the norm on what is added. */
static const void *wrpo__residual_bwd(const wrpo__workspace *r, int64_t l, wrpo__kind norm, float *grads,
                                      const float *rstd, const void *out) {
    const wrpo_config *c = &r->model->config;
    const int64_t D = c->hidden_size;
    const void *dy = r->dx;
    if (c->residual_multiplier > 0) {
        wrpo__scale(r, r->dy, r->dx, r->n, c->residual_multiplier);
        dy = r->dy;
    }
    if (!c->post_norms) return dy;
    wrpo__norm_bwd(r, l, norm, grads, r->dy, D, dy, NULL, rstd, out, D);
    return r->dy;
}
static bool wrpo__layer_bit(const uint64_t bits[8], int64_t l) { return bits[l / 64] >> l % 64 & 1; }
/* q | k, rotated by position; sign -1 rotates back. If only the first dims of a head are, it is done head by head. */
static void wrpo__rotate(const wrpo__workspace *r, int64_t l, void *q, float sign) {
    const wrpo_config *c = &r->model->config;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim, ld = (H + 2 * G) * d;
    const int64_t dims = wrpo__rope_dims(c), parts = dims == d ? 1 : H + G;
    const bool own_base = r->rotary[1].table && wrpo__layer_bit(c->sliding_layers, l);
    const float *table = r->rotary[own_base].table;
    for (int64_t i = 0; i < parts && !wrpo__layer_bit(c->no_rope_layers, l); i++)
        r->be->rope(r->dev, wrpo__at(r->be, q, i * d), ld, table, r->angle, r->n, (H + G) / parts, dims, sign);
}
static int64_t wrpo__layer_window(const wrpo_config *c, int64_t l) {
    return wrpo__layer_bit(c->sliding_layers, l) ? c->sliding_window : 0;
}
static wrpo_attn wrpo__attn_of(const wrpo__workspace *r, int64_t l) {
    const wrpo_config *c = &r->model->config;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim;
    const double scalar = c->query_pre_attn_scalar > 0 ? c->query_pre_attn_scalar : (double)d;
    const double scale = c->attention_multiplier > 0 ? c->attention_multiplier : 1 / sqrt(scalar);
    return (wrpo_attn){.n = r->n, .segs = r->segs, .n_segs = r->n_segs, .H = H, .G = G, .d = d,
                       .ldq = (H + 2 * G) * d, .ldkv = (r->cache ? 2 * G : H + 2 * G) * d, .ldo = H * d,
                       .window = wrpo__layer_window(c, l), .scale = (float)scale,
                       .softcap = (float)c->attn_logit_softcapping};
}

/* ---- one layer ---- */
/* The norm before the MLP. With post_norms, post_attention_layernorm is the norm on what attention adds. */
static wrpo__kind wrpo__norm_mlp(const wrpo_config *c) {
    return c->post_norms ? WRPO__W_pre_feedforward_layernorm : WRPO__W_post_attention_layernorm;
}
/* x -> x_out; all else goes to a. In inference x, a->mid and x_out are one buffer: the stream is updated in place.
   x_out NULL: only what the backward pass needs is computed. */
static void wrpo__layer_fwd(const wrpo__workspace *r, int64_t l, const wrpo__acts *a, void *x, void *x_out) {
    const wrpo_backend *be = r->be;
    const wrpo_config *c = &r->model->config;
    const int64_t n = r->n, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, ld = (H + 2 * G) * d, ld0 = (H + G) * d;
    const size_t stream = (size_t)(n * D) * (size_t)be->act_bytes;
    void *q = a->qkv, *k = wrpo__at(be, q, H * d), *v = wrpo__at(be, k, G * d);
    const wrpo_attn attn = wrpo__attn_of(r, l);
    const void *in;                                    /* of attention, then of the MLP */

    in = wrpo__pre_norm_fwd(r, l, WRPO__W_input_layernorm, a->rstd_attn, x);            /* 2  in = w_1 x / rms(x) */
    if (!c->qk_norm) wrpo__linear_fwd(r, l, &wrpo__qkv, q, ld, in, false);           /* 3  q | k | v = in W' + b */
    else {
        wrpo__linear_fwd(r, l, &wrpo__qk, a->qk0, ld0, in, false);
        wrpo__linear_fwd(r, l, &wrpo__v, v, ld, in, false);
        wrpo__norm_fwd(r, l, WRPO__W_q_norm, q, ld, a->rstd_q, a->qk0, ld0);         /* 4  q = g_q q / rms(q), k too */
        wrpo__norm_fwd(r, l, WRPO__W_k_norm, k, ld, a->rstd_k, wrpo__at(be, a->qk0, H * d), ld0);
    }
    wrpo__rotate(r, l, q, 1);                                                        /* 5  q, k rotated by position */
    if (r->cache) {                                                                  /*    k | v stay in the cache */
        void *kv = wrpo__at(be, r->cache, l * r->shape.cache * attn.ldkv);
        be->scatter(r->dev, kv, attn.ldkv, k, ld, r->cache_row, n, attn.ldkv);
        k = kv;
        v = wrpo__at(be, kv, G * d);
    }
    be->attention(r->dev, &attn, a->o, a->lse, q, k, v);                             /* 6  o = softmax(qk'/sqrt d) v */
    if (a->mid != x) be->copy(r->dev, a->mid, x, stream);                            /* 7  x' = x + o W' */
    wrpo__residual_fwd(r, l, &wrpo__o, WRPO__W_post_attention_layernorm, a->attn_out, a->rstd_attn_out, a->mid, a->o);
    in = wrpo__pre_norm_fwd(r, l, wrpo__norm_mlp(c), a->rstd_mlp, a->mid);              /* 8  in = w_2 x' / rms(x') */
    wrpo__linear_fwd(r, l, &wrpo__gu, a->gu, 2 * I, in, false);                      /* 9  g | u = in W' */
    if (!x_out && !c->post_norms) return;
    be->glu(r->dev, r->h, a->gu, n, I, c->gelu);                                     /* 10 h = silu(g) u */
    if (x_out && x_out != a->mid) be->copy(r->dev, x_out, a->mid, stream);           /* 11 x'' = x' + h W' */
    wrpo__residual_fwd(r, l, &wrpo__down, WRPO__W_post_feedforward_layernorm, a->mlp_out, a->rstd_mlp_out, x_out, r->h);
}
/* r->dx is dL/dx'' and becomes dL/dx. The comments repeat the steps of the forward pass, in reverse. h and both `in`
   were not stored: they are computed once more. */
static void wrpo__layer_bwd(const wrpo__workspace *r, int64_t l, const wrpo__acts *a, const void *x, float *grads) {
    const wrpo_backend *be = r->be;
    const wrpo_config *c = &r->model->config;
    const int64_t n = r->n, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, ld = (H + 2 * G) * d, ld0 = (H + G) * d;
    void *q = a->qkv, *k = wrpo__at(be, q, H * d), *v = wrpo__at(be, k, G * d);
    void *dq = r->dqkv, *dk = wrpo__at(be, dq, H * d), *dv = wrpo__at(be, dk, G * d);
    const wrpo_attn attn = wrpo__attn_of(r, l);
    const void *dy, *in;
    dy = wrpo__residual_bwd(r, l, WRPO__W_post_feedforward_layernorm, grads, a->rstd_mlp_out, a->mlp_out);
    wrpo__linear_bwd(r, l, &wrpo__down, r->dh, NULL, dy, D, NULL);                   /* 11 x'' = x' + h W', now dh */
    be->glu_bwd(r->dev, r->dgu, r->h, r->dh, a->gu, n, I, c->gelu);                  /* 10 h = silu(g) u, and h again */
    wrpo__linear_bwd(r, l, &wrpo__down, NULL, grads, dy, D, r->h);                   /* 11 now dW */
    in = wrpo__pre_norm_fwd(r, l, wrpo__norm_mlp(c), a->rstd_mlp, a->mid);              /*    in again */
    wrpo__linear_bwd(r, l, &wrpo__gu, r->dy, grads, r->dgu, 2 * I, in);              /* 9  g | u = in W' */
    wrpo__pre_norm_bwd(r, l, wrpo__norm_mlp(c), grads, a->rstd_mlp, a->mid);            /* 8  in = w_2 x' / rms(x') */
    dy = wrpo__residual_bwd(r, l, WRPO__W_post_attention_layernorm, grads, a->rstd_attn_out, a->attn_out);
    wrpo__linear_bwd(r, l, &wrpo__o, r->d_o, grads, dy, D, a->o);                    /* 7  x' = x + o W' */
    be->attention_bwd(r->dev, &attn, dq, dk, dv, r->d_o, a->o, a->lse, q, k, v,      /* 6  o = softmax(qk'/sqrt d) v */
                      r->attn_scratch);
    wrpo__rotate(r, l, dq, -1);                                                      /* 5  q, k rotated */
    if (c->qk_norm) {                                                                /* 4  q = g_q q / rms(q) */
        wrpo__norm_bwd(r, l, WRPO__W_q_norm, grads, dq, ld, dq, NULL, a->rstd_q, a->qk0, ld0);
        wrpo__norm_bwd(r, l, WRPO__W_k_norm, grads, dk, ld, dk, NULL, a->rstd_k, wrpo__at(be, a->qk0, H * d), ld0);
    }
    in = wrpo__pre_norm_fwd(r, l, WRPO__W_input_layernorm, a->rstd_attn, x);            /*    in again */
    wrpo__linear_bwd(r, l, &wrpo__qkv, r->dy, grads, dq, ld, in);                    /* 3  q | k | v = in W' + b */
    wrpo__pre_norm_bwd(r, l, WRPO__W_input_layernorm, grads, a->rstd_attn, x);          /* 2  in = w_1 x / rms(x) */
}

/* ---- the head: log-probs of labels ----
   Logits are the largest array. If the span has room for those of all labels, the backward pass finds them there;
   if not, they are computed chunk by chunk, each in place of the one before, and again in the backward pass.
   A frozen head, beside an adapter, has no dW. Then the forward pass makes dlogp/dy of each label, [D], while it has
   the logits, also of labels whose dL/dlogp will be 0; the backward pass multiplies it by dL/dlogp; and logits are
   neither kept nor computed again. */
static const wrpo_weight *wrpo__head(const wrpo_model *m) {
    return m->config.tie_word_embeddings ? WRPO__W(m, embed_tokens, 0) : WRPO__W(m, lm_head, 0);
}
static bool wrpo__logits_fit(const wrpo__workspace *r) { return r->n_labels <= wrpo__span(&r->shape); }
/* How many labels one product takes. On the host in float: all, if their logits fit. Otherwise a chunk, as dlogits has
   no room for more. In neither case do bits depend on the memory there is: in float each row of a product is
   independent, and dW is summed chunk by chunk (wrpo__head_bwd). */
static int64_t wrpo__labels_at_once(const wrpo__workspace *r) {
    const bool any_shape = r->be->host && r->be->act_bytes == sizeof(float);
    return any_shape && wrpo__logits_fit(r) ? WRPO__MAX(r->n_labels, 1) : r->shape.chunk;
}
static float *wrpo__logits_at(const wrpo__workspace *r, int64_t t) {         /* of label t and those after it */
    return r->logits + (wrpo__logits_fit(r) ? t * wrpo__ldl(r->be, r->model->config.vocab_size) : 0);
}
/* y at the label rows, divided by logits_scaling, which divides the logits. */
static void wrpo__head_input(const wrpo__workspace *r, int64_t t, int64_t count) {   /* of labels [t, t + count) */
    const wrpo_config *c = &r->model->config;
    r->be->gather(r->dev, r->hid, r->y, r->label_row + t, count, c->hidden_size);
    if (c->logits_scaling > 0) wrpo__scale(r, r->hid, r->hid, count, 1 / c->logits_scaling);
}
static void wrpo__logits(const wrpo__workspace *r, int64_t t, int64_t count) {
    const wrpo_weight *w = wrpo__head(r->model);
    const int64_t V = w->rows, D = w->cols;
    wrpo__head_input(r, t, count);
    r->be->gemm(r->dev, WRPO_MM_NT_FLOAT, wrpo__logits_at(r, t), wrpo__ldl(r->be, V), r->hid, D, w->data, D, w->dtype,
                count, V, D, 0);
}
static void wrpo__log_probs(const wrpo__workspace *r, int64_t t, int64_t count) {
    const wrpo_config *c = &r->model->config;
    wrpo__logits(r, t, count);
    r->be->logprob(r->dev, r->logp + t, r->label_lse + t, wrpo__logits_at(r, t), wrpo__ldl(r->be, c->vocab_size),
                   r->label_id + t, count, c->vocab_size, (float)c->final_logit_softcapping);
}
/* After log_probs: r->dhid[at ...] = the gradient at y of sum_t dlogp[t] logp[t], for these labels. Returns dlogits. */
static void *wrpo__head_dx(const wrpo__workspace *r, int64_t t, int64_t count, int64_t at) {
    const wrpo_config *c = &r->model->config;
    const wrpo_weight *w = wrpo__head(r->model);
    const int64_t V = w->rows, D = w->cols, ldl = wrpo__ldl(r->be, V);
    float *logits = wrpo__logits_at(r, t);
    void *dlogits = r->dlogits ? r->dlogits : logits, *dhid = wrpo__at(r->be, r->dhid, at * D);
    r->be->logprob_bwd(r->dev, dlogits, logits, ldl, r->label_id + t, r->label_lse + t, r->dlogp + t, count, V,
                       (float)c->final_logit_softcapping);
    r->be->gemm(r->dev, WRPO_MM_NN, dhid, D, dlogits, ldl, w->data, D, w->dtype, count, D, V, 0);
    if (c->logits_scaling > 0) wrpo__scale(r, dhid, dhid, count, 1 / c->logits_scaling);
    return dlogits;
}
/* For a metric: the mean logit of every row, y (sum_v W_v) / V, is one product with the sum of the head's rows. It is
   NaN where logits are capped: their mean is no such product. The sum is made before each pass over records. */
static void wrpo__sum_head(const wrpo__workspace *r) {
    const wrpo_weight *w = wrpo__head(r->model);
    if (r->model->config.final_logit_softcapping > 0) return;
    r->be->colsum(r->dev, r->head_sum, w->data, w->dtype, w->rows, w->cols);
}
static void wrpo__mean_logits(const wrpo__workspace *r) {
    const wrpo_config *c = &r->model->config;
    const int64_t D = c->hidden_size;
    if (c->final_logit_softcapping > 0) {
        for (int64_t i = 0; i < r->n; i++) r->h_mean[i] = NAN;
        return;
    }
    r->be->gemm(r->dev, WRPO_MM_NT_FLOAT, r->mean, 1, r->y, D, r->head_sum, D, WRPO_DTYPE_F32, r->n, 1, D, 0);
    r->be->get(r->dev, r->h_mean, r->mean, (size_t)r->n * sizeof *r->mean);
    const float divisor = (float)((double)c->vocab_size * (c->logits_scaling > 0 ? c->logits_scaling : 1));
    for (int64_t i = 0; i < r->n; i++) r->h_mean[i] /= divisor;
}

/* ---- the whole model ---- */
static float wrpo__embed_scale(const wrpo_model *m) {  /* sqrt(D) in the context's dtype, whatever the weights' is */
    const float scale = m->config.scale_embeddings ? (float)sqrt((double)m->config.hidden_size) : 1;
    if (m->config.embedding_multiplier > 0) return (float)m->config.embedding_multiplier;
    return m->ctx->desc.dtype == WRPO_DTYPE_BF16 ? wrpo__float_of(wrpo__float_to_bf16(scale)) : scale;
}
/* Steps 1 to 12: what is packed, to r->y. */
static void wrpo__trunk(const wrpo__workspace *r) {
    const wrpo_model *m = r->model;
    const wrpo_weight *embed = WRPO__W(m, embed_tokens, 0);
    const int64_t D = m->config.hidden_size;
    const bool train = r->shape.train;
    void *x = train ? r->layer[0].x : r->scratch.x;
    r->be->embed(r->dev, x, embed->data, embed->dtype, r->ids, r->n, D, wrpo__embed_scale(m)); /* 1  x = E[ids] */
    for (int64_t l = 0; l < m->config.num_hidden_layers; l++) {
        const bool stored = train && l >= r->shape.recompute;
        void *x_out = train ? r->layer[l + 1].x : x;
        wrpo__layer_fwd(r, l, stored ? &r->layer[l] : &r->scratch, x, x_out);                  /* 2 to 11 */
        x = x_out;
    }
    wrpo__norm_fwd(r, 0, WRPO__W_norm, r->y, D, r->rstd_final, x, D);                          /* 12 y = g x / rms(x) */
}
static void wrpo__put_dlogp(const wrpo__workspace *r) {
    r->be->put(r->dev, r->dlogp, r->h_dlogp, (size_t)r->n_labels * sizeof *r->dlogp);
}
/* Log-probs of all labels into r->h_logp and, if wanted, the mean logit of every row into r->h_mean. train: the
   backward pass follows. */
static void wrpo__forward(wrpo__workspace *r, bool means, bool train) {
    wrpo__trunk(r);
    const int64_t step = wrpo__labels_at_once(r);
    const bool ahead = train && r->shape.frozen_head;
    for (int64_t t = 0; ahead && t < r->n_labels; t++) r->h_dlogp[t] = 1;
    if (ahead) wrpo__put_dlogp(r);
    for (int64_t t = 0; t < r->n_labels; t += step) {                    /* 13 log softmax(y W')[label] */
        const int64_t count = WRPO__MIN(step, r->n_labels - t);
        wrpo__log_probs(r, t, count);
        if (ahead) wrpo__head_dx(r, t, count, t);
    }
    r->logits_kept = !ahead && wrpo__logits_fit(r);
    if (means) wrpo__mean_logits(r);
    r->be->get(r->dev, r->h_logp, r->logp, (size_t)r->n_labels * sizeof *r->logp);
    wrpo__sync(r->model->ctx);
}
/* Labels of dlogp 0 add nothing to the gradient: they are removed, and those after them move up. The kept
   logits are then in other places than their labels, and are computed again. */
static void wrpo__drop_labels(wrpo__workspace *r) {
    int64_t left = 0;
    for (int64_t t = 0; t < r->n_labels; t++) {
        if (r->h_dlogp[t] == 0) continue;
        r->h_label_row[left] = r->h_label_row[t];
        r->h_label_id[left] = r->h_label_id[t];
        r->h_dlogp[left++] = r->h_dlogp[t];
    }
    r->logits_kept = r->logits_kept && left == r->n_labels;
    r->n_labels = left;
    r->be->put(r->dev, r->label_row, r->h_label_row, (size_t)left * sizeof *r->label_row);
    r->be->put(r->dev, r->label_id, r->h_label_id, (size_t)left * sizeof *r->label_id);
}
/* Step 13: r->dy, and the gradient of the head. */
static void wrpo__head_bwd(wrpo__workspace *r, float *grads) {
    const wrpo_backend *be = r->be;
    const wrpo_weight *head = wrpo__head(r->model);
    const int64_t V = head->rows, D = head->cols, ldl = wrpo__ldl(be, V), chunk = r->shape.chunk;
    be->zero(r->dev, r->dy, (size_t)(r->n * D) * (size_t)be->act_bytes);
    if (!r->shape.frozen_head) wrpo__drop_labels(r);
    wrpo__put_dlogp(r);
    if (r->shape.frozen_head) {      /* the forward pass was here */
        be->gather_bwd(r->dev, r->dy, r->dhid, r->dlogp, r->label_row, r->n_labels, D);
        return;
    }
    const int64_t step = wrpo__labels_at_once(r);
    for (int64_t t = 0; t < r->n_labels; t += step) {                    /* 13 log softmax(y W')[label] */
        const int64_t count = WRPO__MIN(step, r->n_labels - t);
        if (r->logits_kept) wrpo__head_input(r, t, count);
        else wrpo__log_probs(r, t, count);
        const void *dlogits = wrpo__head_dx(r, t, count, 0);
        for (int64_t s = 0; s < count; s += chunk) {   /* summed chunk by chunk, whatever the step: the same bits */
            const int64_t some = WRPO__MIN(chunk, count - s);
            be->gemm(r->dev, WRPO_MM_TN, grads + head->at, D, wrpo__at(be, dlogits, s * ldl), ldl,
                     wrpo__at(be, r->hid, s * D), D, WRPO_DTYPE_F32, V, D, some, 1);
            be->gather_bwd(r->dev, r->dy, wrpo__at(be, r->dhid, s * D), NULL, r->label_row + t + s, some, D);
        }
    }
    r->logits_kept = false;
}
/* Adds the gradient of sum_t dlogp[t] logp[t] to grads, which mirrors the weights. The caller has filled r->h_dlogp. */
static void wrpo__backward(wrpo__workspace *r, float *grads) {
    const wrpo_model *m = r->model;
    const wrpo_backend *be = r->be;
    const wrpo_weight *embed = WRPO__W(m, embed_tokens, 0);
    const int64_t D = m->config.hidden_size, L = m->config.num_hidden_layers;
    float *d_embed = wrpo__grad(grads, embed);
    wrpo__head_bwd(r, grads);                                                                                /* 13 */
    wrpo__norm_bwd(r, 0, WRPO__W_norm, grads, r->dx, D, r->dy, NULL, r->rstd_final, r->layer[L].x, D);       /* 12 */
    for (int64_t l = L - 1; l >= 0; l--) {
        const bool stored = l >= r->shape.recompute;
        const wrpo__acts *a = stored ? &r->layer[l] : &r->scratch;
        if (!stored) wrpo__layer_fwd(r, l, a, r->layer[l].x, NULL);       /* computed again, from x */
        wrpo__layer_bwd(r, l, a, r->layer[l].x, grads);                   /* 11 to 2 */
    }
    if (d_embed) be->embed_bwd(r->dev, d_embed, r->dx, r->ids, r->n, D, wrpo__embed_scale(m));     /* 1  x = E[ids] */
    wrpo__sync(m->ctx);
}

/* ---- adapters:  y += t B',  t = scale dropout(x) A',  for the weights w[count] of a product; of[j] is w[j]'s ----
   The A matrices of a product lie together, so one product gives t [n, rank]. With dropout each A has its own x, so its
   own t. Weights of a fused layer share one A, so they share columns of t. */
/* The end of the weights from i on that share t; the columns of t in *rank, 0 if w[i] has no adapter. */
static int wrpo__adapter_group(const wrpo__workspace *r, const wrpo__adapter *of, int i, int count, int64_t *rank) {
    const wrpo_weight *a = of[i].a;
    *rank = of[i].rank;
    for (i++; i < count && a; i++) {
        if (!of[i].rank || of[i].shared) continue;     /* no columns of its own */
        if (r->dropout.p > 0 || !wrpo__follows(a, of[i].a)) break;
        *rank += of[i].rank;
        a = of[i].a;
    }
    return i;
}
/* t *= scale: the op dropout with p 0. */
static void wrpo__adapter_scale(const wrpo__workspace *r, const wrpo__adapter *of, int count, void *t, int64_t rank) {
    for (int j = 0; j < count; j++) {
        if (!of[j].rank || of[j].shared) continue;
        r->be->dropout(r->dev, t, rank, t, rank, r->n, of[j].rank, &(wrpo_dropout){.scale = of[j].scale});
        t = wrpo__at(r->be, t, of[j].rank);
    }
}
static void wrpo__adapter_drop(const wrpo__workspace *r, const wrpo_weight *a, void *y, const void *x) {
    wrpo_dropout d = r->dropout;
    d.scale = 1;
    d.stream = (uint64_t)(a - r->model->weights);
    r->be->dropout(r->dev, y, a->cols, x, a->cols, r->n, a->cols, &d);
}
/* t of such a group into r->lora_t. Returns A's input: x, or r->lora_x with dropout. */
static const void *wrpo__adapter_t(const wrpo__workspace *r, const wrpo__adapter *of, int count, int64_t rank,
                                   const void *x) {
    const wrpo_weight *a = of->a;
    if (r->dropout.p > 0) {
        wrpo__adapter_drop(r, a, r->lora_x, x);
        x = r->lora_x;
    }
    r->be->gemm(r->dev, WRPO_MM_NT, r->lora_t, rank, x, a->cols, a->data, a->cols, a->dtype, r->n, rank, a->cols, 0);
    wrpo__adapter_scale(r, of, count, r->lora_t, rank);
    return x;
}
/* y += t B' for the weights w of a product. */
static void wrpo__adapter_fwd(const wrpo__workspace *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
                              void *y, int64_t ldy, const void *x) {
    int64_t rank;
    for (int i = 0, end; i < count; i = end) {
        end = wrpo__adapter_group(r, of, i, count, &rank);
        if (rank) wrpo__adapter_t(r, &of[i], end - i, rank, x);
        int64_t column = 0;                            /* of t, where w[j]'s begin */
        for (int j = i; j < end; j++) {
            const wrpo_weight *b = of[j].b;
            if (b) r->be->gemm(r->dev, WRPO_MM_NT, y, ldy, wrpo__at(r->be, r->lora_t, column), rank, b->data, b->cols,
                               b->dtype, r->n, b->rows, b->cols, 1);
            if (j + 1 < end && !of[j + 1].shared) column += of[j].rank;
            y = wrpo__at(r->be, y, w[j].rows);
        }
    }
}
/* dt = scale dy B;  dB += dy' t;  dA += dt' dropout(x);  dx += dropout(dt A).  dx or grads NULL: not computed. */
static void wrpo__adapter_bwd(const wrpo__workspace *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
                              void *dx, float *grads, const void *dy, int64_t lddy, const void *x) {
    const wrpo_backend *be = r->be;
    const int64_t n = r->n;
    int64_t rank;
    for (int i = 0, end; i < count; i = end) {
        const wrpo_weight *a = of[i].a;
        end = wrpo__adapter_group(r, of, i, count, &rank);
        const void *input = rank && grads ? wrpo__adapter_t(r, &of[i], end - i, rank, x) : NULL;  /* t again */
        int64_t column = 0;                            /* of t and dt, where w[j]'s begin */
        for (int j = i; j < end; j++) {
            const wrpo_weight *b = of[j].b;
            if (b) be->gemm(r->dev, WRPO_MM_NN, wrpo__at(be, r->lora_dt, column), rank, dy, lddy, b->data, b->cols,
                            b->dtype, n, b->cols, b->rows, of[j].shared);      /* added to the columns it shares */
            if (b && grads) be->gemm(r->dev, WRPO_MM_TN, grads + b->at, b->cols, dy, lddy,
                                     wrpo__at(be, r->lora_t, column), rank, WRPO_DTYPE_F32, b->rows, b->cols, n, 1);
            if (j + 1 < end && !of[j + 1].shared) column += of[j].rank;
            dy = wrpo__at(be, dy, w[j].rows);
        }
        if (!rank) continue;
        wrpo__adapter_scale(r, &of[i], end - i, r->lora_dt, rank);
        if (grads) be->gemm(r->dev, WRPO_MM_TN, grads + a->at, a->cols, r->lora_dt, rank, input, a->cols,
                            WRPO_DTYPE_F32, rank, a->cols, n, 1);
        const bool drop = r->dropout.p > 0;
        if (dx) be->gemm(r->dev, WRPO_MM_NN, drop ? r->lora_x : dx, a->cols, r->lora_dt, rank, a->data, a->cols,
                         a->dtype, n, a->cols, rank, !drop);
        if (dx && drop) {
            wrpo__adapter_drop(r, a, r->lora_x, r->lora_x);
            be->add(r->dev, dx, r->lora_x, n * a->cols);
        }
    }
}

/* --------------------------------------------------------------------------------------------- >>step
   One optimizer step: wrpo__step, at the end of this section. In: a model, records of token ids. Out: the model after
   the step, its metrics. wrpo__step is four phases:
     1. alpha and the learning rate of this step; the records of its batch
     2. wrpo__pass, in micro-batches that fit into the workspace: pack, forward to log-probs, loss and derivatives of
        every record on the host (wrpo_loss: WRPO is there), backward to gradients
     3. the norm of all gradients, and the factor that clips it
     4. AdamW on all weights, or on an adapter's; only matrices decay
   With several ranks, each computes some of the micro-batches in 2. Before 3 each gets the sum of all ranks' gradients
   for its shard of what is trained. It updates that shard in 4. Then all ranks get all weights. Without a wrpo_group
   the one shard is everything.
   The reference is the policy as it is before step 1, or another model. Its log-probs of all responses are computed
   once, when the trainer is made; nothing else of it is needed.

   Steps are counted as the authors' trainer counts them, for N records:
     parts of an epoch           M = ceil(N / (batch_size / accumulation))
     steps of an epoch           S = floor(M / accumulation), at least 1; the records left over are not used
     steps of the run            T = ceil(epochs S), at least 1; or max_steps
   A step's loss is the mean over its parts of the mean over a part's records; a part is the authors' micro-batch. Parts
   only define that mean. micro_tokens says how many rows are computed at once, in micro-batches of our own. It changes
   no log-prob. It changes the order in which gradients are added, and so their last bits.

   To add a setting: a field of wrpo_train_desc, a row of WRPO__SETTINGS (>>setup), an option of example.c. A metric: a
   row of WRPO_METRICS (>>api), its value in wrpo__tally_add. A method: see >>loss. */

/* ---- data: records of token ids ---- */
struct wrpo_data {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_record *records;  /* stb array */
    wrpo_data_stats stats;
    int most;  /* the most responses that a record has */
    const char **source_names;  /* stb array: the models of source_logps, in the order of each response's */
    const char *date;  /* that the chat template showed; NULL: it showed none */
};
static int64_t wrpo__scored_count(const wrpo_tokens *y) {
    int64_t n = y->scored ? 0 : y->count - y->first;
    for (int64_t j = y->first; y->scored && j < y->count; j++) n += y->scored[j];
    return n;
}
/* Records list[first..end) (list NULL: i itself) as micro-batches: as many records as fit, at least one. row: how many
   rows of the pass come before it (dropout numbers elements by it). Micro-batch b is in lane b modulo lanes, and the
   lanes are dealt to the ranks in order. */
typedef struct wrpo__micro { int64_t begin, end, row; int lane; } wrpo__micro;        /* a micro-batch */
static wrpo__micro *wrpo__micro_batches(const wrpo_ctx *ctx, const wrpo_config *c, const wrpo_data *data,
                                        const int64_t *list, int64_t first, int64_t end,
                                        int64_t micro_tokens) {     /* an stb array */
    wrpo__micro *all = NULL;
    int64_t row = 0, n = 0;
    for (int64_t i = first; i < end; i++, row += n) {
        const int64_t b = stbds_arrlen(all);
        n = wrpo__record_rows(c, &data->records[list ? list[i] : i]);
        const wrpo__micro next = {i, i + 1, row, (int)(b % ctx->desc.lanes)};
        if (b && row + n - all[b - 1].row <= micro_tokens) all[b - 1].end++;
        else stbds_arrput(all, next);
    }
    return all;
}
static int wrpo__owner(const wrpo_ctx *ctx, const wrpo__micro *micro) {        /* its rank */
    return (int)(micro->lane / (ctx->desc.lanes / wrpo__ranks(ctx)));
}
static void wrpo__pack_micro(wrpo__workspace *r, const wrpo_data *data, const int64_t *list, const wrpo__micro *micro) {
    wrpo__pack_begin(r);
    for (int64_t i = micro->begin; i < micro->end; i++) wrpo__pack_record(r, &data->records[list ? list[i] : i]);
    wrpo__pack_end(r);
}
/* The sum of log-probs, in double, of a response's n scored tokens. */
static double wrpo__sum_logps(const float *logp, int64_t n) {
    double sum = 0;
    for (int64_t j = 0; j < n; j++) sum += (double)logp[j];
    return sum;
}
/* ---- the trainer; >>setup makes it ---- */
typedef struct wrpo__set {           /* records, and what the reference says about them */
    const wrpo_data *given;          /* as the caller knows it; NULL: there is no such set */
    const wrpo_data *data;           /* what is computed: `given`, or for SFT the sources of its records alone */
    int64_t N; int K;                /* records; the most responses that one has */
    double *ref;                     /* [N, K] log-probs of the reference; NULL where the method needs none */
} wrpo__set;

/* ---- what is split over the ranks: an array of elements that are trained, in shards of whole blocks, one a rank ----
   A shard is one unit for each of the rank's lanes, so that sums over units do not depend on the ranks. */
static int64_t wrpo__unit(const wrpo_ctx *ctx, int64_t count) {
    return wrpo__div_up(wrpo__div_up(count, WRPO_BLOCK), ctx->desc.lanes) * WRPO_BLOCK;
}
static int64_t wrpo__shard(const wrpo_ctx *ctx, int64_t count) {
    return wrpo__unit(ctx, count) * (ctx->desc.lanes / wrpo__ranks(ctx));
}
/* What [a, a + size) and [b, b + n) have in common: *first, *count. */
static void wrpo__overlap(int64_t a, int64_t size, int64_t b, int64_t n, int64_t *first, int64_t *count) {
    *first = WRPO__MAX(a, b);
    *count = WRPO__MAX(WRPO__MIN(a + size, b + n) - *first, 0);
}
/* How arrays of `count` elements that are trained are split over the ranks; bytes of what mirrors them. */
typedef struct wrpo__sharding {
    int64_t shard, padded, piece;    /* elements of one rank; of all; of a shard, moved between ranks at a time */
    size_t gradients, moments, moving;
} wrpo__sharding;
struct wrpo_trainer {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_model *model;               /* the policy */
    wrpo_train_desc desc;            /* resolved */
    wrpo__set train, eval;
    int64_t rows;                    /* of the workspace: the most that a micro-batch of either set needs */
    int64_t part_size;               /* batch_size / accumulation */
    int64_t steps_per_epoch, T, k;   /* S, T, and how many steps are done */
    int64_t *order, order_epoch;     /* [N] the records in this epoch's order */
    double *weight;                  /* [batch_size] of each record in a step's loss */
    wrpo__workspace *run;
    float *grads;                    /* mirrors the weights, once for each level of the lanes; NULL in an evaluation */
    wrpo__sharding split;
    char *exp_avg, *exp_avg_sq;      /* AdamW's moments of this rank's shard */
    double *sumsq;                   /* one element in the backend's memory */
    bool own_reference;              /* an evaluation of a model against itself computes log-probs once */
    /* Not NULL: the reference of step 1's records is what step 1 itself computes of them, with the policy as it is
       before its update. Called when it has. */
    void (*reference_known)(wrpo_trainer *t);
    const char *reference_path;      /* used by >>run alone */
    float *moving;                   /* [ranks][split.piece] what is moved between ranks at a time; NULL: one rank */
    double start;                    /* when the run began, in seconds */
    const char *out_dir; FILE *metrics; void *part;    /* used by >>run alone. part, a wrpo__writer: of the metrics */
    void (*log)(wrpo_trainer *t, const wrpo_metrics *m, const char *prefix);   /* called with every line of metrics */
};
/* The record's responses as the loss sees them; log-probs are left 0. */
static void wrpo__responses_of(const wrpo_record *record, wrpo_response *r) {
    for (int k = 0; k < record->count; k++) {
        const wrpo_tokens *y = &record->responses[k];
        r[k] = (wrpo_response){.role = y->role, .share = y->share, .pair_id = y->pair_id,
                               .tokens = wrpo__scored_count(y), .source_logps = y->source_logps,
                               .sources = record->sources};
    }
}
/* ---- metrics: means over records, under the names of the authors' trainer. Only the loss has record.weight ---- */
typedef struct wrpo__tally { wrpo_metrics m; double chosen, chosen_rows, rejected, rejected_rows; } wrpo__tally;
static double wrpo__wins(double gap) { return isnan(gap) ? NAN : gap > 0; }
/* Adds a record of weight w, except for its loss. r: its responses with their log-probs; packed: where they are. */
static void wrpo__tally_add(wrpo__tally *t, const wrpo__workspace *run, const wrpo_loss_desc *d, double alpha,
                            const wrpo_record *record, const wrpo_response *r, const wrpo__location *packed, double w) {
    double logp[3] = {0}, reward[3] = {0}, share[3] = {0}, all_chosen = 0, chosen = 0;         /* by wrpo_role */
    wrpo_metrics *m = &t->m;
    for (int k = 0; k < record->count; k++) {
        const wrpo_role role = r[k].role;
        const int64_t P = record->prompt_count, R = record->responses[k].count;
        double logits = 0;           /* mean logits, summed over the rows of prompt and response */
        for (int64_t i = 0; i < P; i++) logits += (double)run->h_mean[packed[k].prompt_row + i];
        for (int64_t i = 0; i < R; i++) logits += (double)run->h_mean[packed[k].row + i];
        if (role == WRPO_ROLE_REJECTED) {
            t->rejected += logits;
            t->rejected_rows += (double)(P + R);
        } else {
            t->chosen += logits;
            t->chosen_rows += (double)(P + R);
            all_chosen += r[k].logp;
            chosen++;
        }
        share[role] += r[k].share;
        logp[role] += r[k].share * r[k].logp;
        reward[role] += r[k].share * wrpo__reward_of(d, &r[k]);
    }
    double *const logps_sum[] = {&m->logps_source_chosen, &m->logps_target_chosen, &m->logps_rejected};
    double *const rewards_sum[] = {&m->rewards_source_chosen, &m->rewards_target_chosen, &m->rewards_rejected};
    for (int role = 0; role < 3; role++) {             /* NaN for a role that is absent */
        logp[role] = share[role] > 0 ? logp[role] / share[role] : NAN;
        reward[role] = share[role] > 0 ? reward[role] / share[role] : NAN;
        *logps_sum[role] += w * logp[role];
        *rewards_sum[role] += w * reward[role];
    }
    const double weighted = wrpo__weighted_reward(d, alpha, r, record->count), rejected = reward[WRPO_ROLE_REJECTED];
    const double source = reward[WRPO_ROLE_SOURCE] - rejected, target = reward[WRPO_ROLE_TARGET] - rejected;
    m->logps_chosen += w * all_chosen / chosen;
    m->rewards_chosen += w * weighted;
    m->rewards_margins += w * (weighted - rejected);
    m->rewards_accuracies += wrpo__wins(weighted - rejected);  /* a count: adding 1/n n times need not give 1 */
    m->rewards_source_accuracies += wrpo__wins(source);
    m->rewards_target_accuracies += wrpo__wins(target);
}
static void wrpo__tally_sum(wrpo__tally *t, const wrpo__tally *record) {
#define WRPO__X(field, name) t->m.field += record->m.field;
    WRPO_METRICS(WRPO__X)
#undef WRPO__X
    t->chosen += record->chosen;
    t->chosen_rows += record->chosen_rows;
    t->rejected += record->rejected;
    t->rejected_rows += record->rejected_rows;
}
static void wrpo__tally_end(wrpo__tally *tally, const wrpo_trainer *t, double alpha, double begin) {
    wrpo_metrics *m = &tally->m;
    m->rewards_accuracies /= (double)m->records;
    m->rewards_source_accuracies /= (double)m->records;
    m->rewards_target_accuracies /= (double)m->records;
    m->logits_chosen = tally->chosen / tally->chosen_rows;
    m->logits_rejected = tally->rejected / tally->rejected_rows;
    m->cur_alpha = wrpo__rules[t->desc.loss.method].inside ? alpha : NAN;
    m->epoch = (double)t->k / (double)t->steps_per_epoch;
    m->seconds = wrpo__now() - t->start;
    m->tokens_per_second = (double)m->tokens / WRPO__MAX(wrpo__now() - begin, 1e-9);
}

/* ---- one pass over records: log-probs, losses, metrics and, in training, gradients ----
   list[i]: a record of the set (NULL: i itself); weight[i]: its share of the loss (NULL: 1 / count). */
/* A micro-batch; own[i]: each record's metrics. scored: tokens of an SFT batch. grads NULL: an evaluation. */
static void wrpo__pass_micro(wrpo_trainer *t, const wrpo__set *set, const int64_t *list, const double *weight,
                             int64_t count, double alpha, const wrpo__micro *micro, double scored, float *grads,
                             wrpo__tally *own) {
    wrpo__workspace *r = t->run;
    const wrpo_loss_desc *d = &t->desc.loss;
    const bool sft = d->method == WRPO_METHOD_SFT;
    wrpo_response *y = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *y);
    r->dropout.row = micro->row;
    wrpo__pack_micro(r, set->data, list, micro);
    wrpo__arrange(r);
    wrpo__forward(r, true, grads != NULL);                                     /* log pi of every scored token */
    const wrpo__location *packed = r->packed;
    for (int64_t i = micro->begin; i < micro->end; i++) {
        const int64_t index = list ? list[i] : i;
        const wrpo_record *record = &set->data->records[index];
        const char *why = NULL;
        wrpo__responses_of(record, y);
        for (int k = 0; k < record->count; k++) {
            double *ref = set->ref ? &set->ref[index * set->K + k] : NULL;
            y[k].logp = wrpo__sum_logps(r->h_logp + packed[k].label, y[k].tokens);
            if (ref && isnan(*ref) && t->reference_known) *ref = y[k].logp;
            y[k].ref = t->own_reference ? y[k].logp : ref ? *ref : 0;
        }
        const double loss = wrpo_loss(d, alpha, y, record->count, scored, &why);            /* WRPO is here: >>loss */
        if (!isfinite(loss))
            wrpo__fail(t->ctx, WRPO_E_NOT_FINITE, "step %lld: record \"%s\" (line %lld): %s",
                       (long long)t->k + (grads != NULL), record->prompt_id, (long long)record->line,
                       why ? why : "the loss is not a finite number");
        const double share = weight ? weight[i] : 1 / (double)count;           /* of the batch's mean */
        const double w = record->weight * (sft ? 1 : share);                   /* SFT's loss is a share already */
        for (int k = 0; grads && k < record->count; k++)                       /* dL/dlogp of each of its tokens */
            for (int64_t j = 0; j < y[k].tokens; j++) r->h_dlogp[packed[k].label + j] = (float)(w * y[k].dlogp);
        own[i] = (wrpo__tally){.m.loss = w * loss};
        wrpo__tally_add(&own[i], r, d, alpha, record, y, packed, share);
        packed += record->count;
    }
    if (grads) wrpo__backward(r, grads);
}
static void wrpo__pass(wrpo_trainer *t, const wrpo__set *set, const int64_t *list, const double *weight, int64_t count,
                       double alpha, bool train, wrpo__tally *tally) {
    wrpo__workspace *r = t->run;
    const wrpo_loss_desc *d = &t->desc.loss;
    const bool sft = d->method == WRPO_METHOD_SFT;
    wrpo_response *y = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *y);
    double scored = 0;
    r->dropout = (wrpo_dropout){.p = train && t->model->lora ? (float)t->model->lora->desc.dropout : 0,
                                .seed = wrpo__random64(t->desc.seed, UINT64_MAX, (uint64_t)t->k)};
    wrpo__sum_head(r);
    for (int64_t i = 0; sft && i < count; i++) {       /* SFT's mean is over the batch's tokens */
        const wrpo_record *record = &set->data->records[list ? list[i] : i];
        wrpo__responses_of(record, y);
        scored += wrpo__sft_tokens(y, record->count);
    }
    const wrpo__micro *all = wrpo__micro_batches(t->ctx, &t->model->config, set->data, list, 0, count,
                                                 t->desc.micro_tokens);
    const wrpo__micro *const end = all + stbds_arrlen(all);
    wrpo__tally *own = wrpo__raw(wrpo__current, (size_t)count, sizeof *own);           /* of each record */
    const int lanes = (int)(t->ctx->desc.lanes / wrpo__ranks(t->ctx)), first = wrpo__my_rank(t->ctx) * lanes;
    const int64_t size = t->split.padded;
    int64_t level = 0;               /* of t->grads: where the lane is computed */
    /* Lanes are added as a binary counter carries: after an odd lane, its array is added to the one before it, and
       again for each further low bit of the lane's number that is 1. log2(lanes) + 1 arrays are enough. */
    for (int lane = 0; lane < lanes; lane++, level++) {
        float *grads = train ? t->grads + level * size : NULL;
        if (train) r->be->zero(r->dev, grads, (size_t)size * sizeof *grads);
        for (const wrpo__micro *micro = all; micro < end; micro++)
            if (micro->lane == first + lane)
                wrpo__pass_micro(t, set, list, weight, count, alpha, micro, scored, grads, own);
        for (int odd = lane; train && odd & 1; odd >>= 1) {                    /* lanes in pairs, and pairs of pairs */
            r->be->sum(r->dev, t->grads + (level - 1) * size, t->grads + level * size, size);
            level--;
        }
    }
    /* The records' metrics, of all ranks, in the order of the records: the sums do not depend on the ranks. */
    wrpo__text mine = {.arena = wrpo__current};
    for (const wrpo__micro *micro = all; micro < end; micro++)
        if (wrpo__owner(t->ctx, micro) == wrpo__my_rank(t->ctx))
            wrpo__text_add(&mine, (const char *)&own[micro->begin],
                           (size_t)(micro->end - micro->begin) * sizeof *own);
    const char **from = wrpo__all_gather_texts(t->ctx, &mine);
    for (const wrpo__micro *micro = all; micro < end; micro++) {
        const char **next = &from[wrpo__owner(t->ctx, micro)];
        for (int64_t i = micro->begin; i < micro->end; i++, *next += sizeof *own) {
            wrpo__tally_sum(tally, (const wrpo__tally *)*next);
            tally->m.tokens += wrpo__record_rows(&t->model->config, &set->data->records[list ? list[i] : i]);
        }
    }
    tally->m.records = count;
}

/* ---- between ranks (ZeRO-1): a rank gets the sum of all gradients of its shard, and updates it; then all ranks get
        the weights of all shards ---- */
/* The sum over ranks, in pairs as over lanes, where this rank's shard is in t->grads. */
static void wrpo__reduce_scatter(wrpo_trainer *t) {
    wrpo_ctx *ctx = t->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    const wrpo_group *g = ctx->desc.group;
    const int64_t shard = t->split.shard;
    float *mine = t->grads + wrpo__my_rank(ctx) * shard, *part = t->moving;
    wrpo__agree(ctx);
    for (int64_t at = 0, n; part && at < shard; at += n) {
        n = WRPO__MIN(shard - at, t->split.piece);
        wrpo__group_check(ctx, g->exchange(g->self, ctx->dev, part, t->grads + at, shard, n, &ctx->error));
        for (int apart = 1; apart < g->ranks; apart *= 2)
            for (int i = 0; i + apart < g->ranks; i += 2 * apart)
                be->sum(ctx->dev, part + i * n, part + (i + apart) * n, n);
        be->copy(ctx->dev, mine + at, part, (size_t)n * sizeof *mine);
    }
}
/* Copies the trained weights of elements [from, from + n) to the buffer; put: from it; NULL: copies nothing. Returns
   their bytes. */
static size_t wrpo__weights_move(const wrpo_model *model, int64_t from, int64_t n, char *buffer, bool put) {
    size_t used = 0;
    for (int64_t i = 0, end, size, first, count; i < model->n_weights; i = end) {
        const wrpo_weight *w = &model->weights[i];
        const size_t each = wrpo__dtype_size(w->dtype);
        end = wrpo__contiguous(model, i, &size);
        if (w->at < 0) continue;
        wrpo__overlap(w->at, size, from, n, &first, &count);
        char *data = (char *)w->data + (size_t)(first - w->at) * each, *to = put ? data : buffer + used;
        if (buffer && count)
            model->ctx->desc.backend->copy(model->ctx->dev, to, put ? buffer + used : data, (size_t)count * each);
        used += (size_t)count * each;
    }
    return used;
}
static void wrpo__all_gather_weights(wrpo_trainer *t) {
    wrpo_ctx *ctx = t->ctx;
    const wrpo_group *g = ctx->desc.group;
    const int64_t shard = t->split.shard;
    char *moving = (char *)t->moving;
    wrpo__agree(ctx);
    for (int64_t at = 0, n; moving && at < shard; at += n) {
        size_t most = 0;
        n = WRPO__MIN(shard - at, t->split.piece);
        for (int i = 0; i < g->ranks; i++)
            most = WRPO__MAX(most, wrpo__weights_move(t->model, i * shard + at, n, NULL, false));
        wrpo__weights_move(t->model, g->rank * shard + at, n, moving + (size_t)g->rank * most, false);
        wrpo__group_check(ctx, g->gather(g->self, ctx->dev, moving, most, &ctx->error));
        for (int i = 0; i < g->ranks; i++)
            if (i != g->rank) wrpo__weights_move(t->model, i * shard + at, n, moving + (size_t)i * most, true);
    }
}

/* ---- one optimizer step ---- */
/* The records of step k, *list[count], and in t->weight what each counts for in the loss. */
static int64_t wrpo__next_batch(wrpo_trainer *t, const int64_t **list) {
    const int64_t epoch = t->k / t->steps_per_epoch, step = t->k % t->steps_per_epoch, N = t->train.N;
    if (epoch != t->order_epoch) {   /* Fisher-Yates, from the identity: the order depends on seed and epoch alone */
        for (int64_t i = 0; i < N; i++) t->order[i] = i;
        for (int64_t i = N - 1; i > 0 && !t->desc.no_shuffle; i--) {
            const uint64_t draw = wrpo__random64(t->desc.seed, (uint64_t)epoch, (uint64_t)i);
            const int64_t j = (int64_t)(draw % (uint64_t)(i + 1)), swap = t->order[i];
            t->order[i] = t->order[j];
            t->order[j] = swap;
        }
        t->order_epoch = epoch;
    }
    const int64_t first = step * t->desc.batch_size, count = WRPO__MIN(t->desc.batch_size, N - first);
    const int64_t parts = wrpo__div_up(count, t->part_size);
    for (int64_t i = 0; i < count; i++) {
        const int64_t part = i / t->part_size, size = WRPO__MIN(t->part_size, count - part * t->part_size);
        t->weight[i] = 1 / ((double)parts * (double)size);
    }
    *list = t->order + first;
    return count;
}
/* The norm of the gradient: sums over units, added in order. */
static double wrpo__grad_norm(wrpo_trainer *t) {
    wrpo_ctx *ctx = t->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    const int64_t count = t->model->count, unit = wrpo__unit(ctx, count), lanes = ctx->desc.lanes;
    const int64_t own = lanes / wrpo__ranks(ctx), first = own * wrpo__my_rank(ctx);
    double *sums = wrpo__alloc(wrpo__current, (size_t)lanes, sizeof *sums), total = 0;
    for (int64_t i = first; i < first + own; i++) {
        const int64_t n = WRPO__MIN(count - i * unit, unit);
        be->zero(ctx->dev, t->sumsq, sizeof *t->sumsq);
        if (n > 0) be->sumsq(ctx->dev, t->sumsq, t->grads + i * unit, n);
        be->get(ctx->dev, &sums[i], t->sumsq, sizeof *sums);
    }
    wrpo__sync(ctx);
    wrpo__gather(ctx, sums, (size_t)own * sizeof *sums);
    for (int64_t i = 0; i < lanes; i++) total += sums[i];
    return sqrt(total);
}
/* AdamW on all weights that are trained, as far as they are in this rank's shard; matrices decay, norms and biases do
   not. Random rounding depends on the element, not on the shard: element i of an array draws by seed + i * DICE_STEP,
   so a shard that begins at its element s adds s * DICE_STEP to the seed. */
static void wrpo__update(wrpo_trainer *t, double lr, double grad_scale) {
    const wrpo_train_desc *d = &t->desc;
    const wrpo_backend *be = t->ctx->desc.backend;
    const int64_t shard = t->split.shard, begin = wrpo__my_rank(t->ctx) * shard;
    const double steps = (double)(t->k + 1);
    wrpo_adamw step = {.lr = (float)lr, .beta1 = (float)d->beta1, .beta2 = (float)d->beta2, .eps = (float)d->eps,
                       .grad_scale = (float)grad_scale, .moments = d->moments,
                       .correction1 = 1 - pow(d->beta1, steps), .correction2 = sqrt(1 - pow(d->beta2, steps))};
    for (int64_t i = 0, end, size, first, count; i < t->model->n_weights; i = end) {
        const wrpo_weight *w = &t->model->weights[i];
        end = wrpo__contiguous(t->model, i, &size);
        if (w->at < 0) continue;                       /* frozen */
        wrpo__overlap(begin, shard, w->at, size, &first, &count);
        if (count == 0) continue;
        const size_t offset = wrpo_moments_bytes(d->moments, first - begin);
        const uint64_t seed = wrpo__random64(d->seed, (uint64_t)t->k, (uint64_t)w->at);
        const uint32_t skip = (uint32_t)(first - w->at) * WRPO__DICE_STEP;
        step.weight_decay = w->decay ? (float)d->weight_decay : 0;
        step.seed = (uint64_t)((uint32_t)(seed >> 32) + skip) << 32 | ((uint32_t)seed + skip);
        be->adamw(t->ctx->dev, (char *)w->data + (size_t)(first - w->at) * wrpo__dtype_size(w->dtype),
                  w->dtype == WRPO_DTYPE_BF16 ? t->model->low + (first - begin) : NULL, t->exp_avg + offset,
                  t->exp_avg_sq + offset, t->grads + first, count, &step);
    }
}
static wrpo_metrics wrpo__step(wrpo_trainer *t) {
    wrpo_ctx *ctx = t->ctx;
    const wrpo_train_desc *d = &t->desc;
    wrpo__tally tally = {.m = {.step = t->k + 1, .steps = t->T}};
    const int64_t *list;
    const double begin = wrpo__now();
    if (t->k >= t->T) wrpo__fail_arg("all %lld steps are done", (long long)t->T);

    /* 1. Alpha and the learning rate of step k = 0 ... T - 1, and the records of its batch. A rising alpha never has
          its end value; with warm-up the rate of the first step is 0. */
    const int64_t warmup = (int64_t)ceil(d->warmup_ratio * (double)t->T - 1e-9);
    const double alpha = wrpo_alpha(d->alpha_schedule, d->alpha_power, d->alpha, t->k, t->T);
    const double lr = d->learning_rate * wrpo_lr_factor(d->lr_schedule, warmup, t->k, t->T) + 0.0;      /* no -0 */
    const int64_t count = wrpo__next_batch(t, &list);
    /* 2. Gradients of the batch's loss. */
    wrpo__pass(t, &t->train, list, t->weight, count, alpha, true, &tally);
    if (t->reference_known) t->reference_known(t);
    wrpo__reduce_scatter(t);
    /* 3. Their global norm. Above max_grad_norm they are clipped to it, as by torch.nn.utils.clip_grad_norm_: AdamW
          multiplies each gradient by a factor as it reads it, and the clipped gradient is never stored. */
    const double norm = wrpo__grad_norm(t), clip = d->max_grad_norm > 0 ? d->max_grad_norm / (norm + 1e-6) : 1;
    if (!isfinite(norm))
        wrpo__fail(ctx, WRPO_E_NOT_FINITE, "step %lld: the gradient is not finite (batch of %lld records, the first is "
                   "\"%s\")", (long long)t->k + 1, (long long)count, t->train.data->records[list[0]].prompt_id);
    /* 4. The update. */
    wrpo__update(t, lr, WRPO__MIN(1, clip));
    wrpo__all_gather_weights(t);
    wrpo__sync(ctx);
    t->k++;

    wrpo__tally_end(&tally, t, alpha, begin);
    tally.m.grad_norm = norm;
    tally.m.learning_rate = lr;
    if (t->log) t->log(t, &tally.m, "");
    return tally.m;
}
WRPO_API wrpo_result wrpo_trainer_step(wrpo_trainer *t, wrpo_metrics *m) {
    WRPO__ENTRY_ALL(t->ctx, true, *m = wrpo__step(t));
}

/* ------------------------------------------------------------ Stop here if you only want the algorithm. */

/* -------------------------------------------------------------------------------------------- >>setup
   What a step works on, made in memory: contexts, models with random weights, data of token ids, trainers with the
   reference's log-probs; evaluation. All that can be wrong with them is found here, before the first step.        */
/* ---- memory of the host. dev: a backend's state, whose first member is its wrpo_allocator ---- */
static void *wrpo__host_alloc(void *dev, size_t n) {  /* a word in front of the block says where it begins */
    const wrpo_allocator *memory = dev;
    if (n > SIZE_MAX - 2 * WRPO__ALIGN) return NULL;
    char *base = memory->alloc(n + 2 * WRPO__ALIGN, memory->user);
    if (!base) return NULL;
    char *p = (char *)(((uintptr_t)base + 2 * WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN);
    memcpy(p - sizeof base, &base, sizeof base);
    return p;
}
static void wrpo__host_release(void *dev, void *p) {
    const wrpo_allocator *memory = dev;
    char *base;
    if (!p) return;
    memcpy(&base, (char *)p - sizeof base, sizeof base);
    memory->free(base, memory->user);
}
static void wrpo__host_copy(void *dev, void *dst, const void *src, size_t n) { (void)dev; if (n) memmove(dst, src, n); }
static void wrpo__host_zero(void *dev, void *dst, size_t n) { (void)dev; if (n) memset(dst, 0, n); }
static size_t wrpo__host_room(void *dev) {  /* what the system can still give without swapping */
    unsigned long long kib = 0;
    char line[128];
    (void)dev;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "MemAvailable: %llu", &kib) != 1) {}
    if (f) fclose(f);
    return kib ? (size_t)kib * 1024 : SIZE_MAX;
}
static wrpo_result wrpo__host_sync(void *dev, wrpo_error *why) { (void)dev; (void)why; return WRPO_OK; }

/* ---- context ---- */
static void *wrpo__malloc(size_t n, void *user) { (void)user; return malloc(n); }
static void wrpo__mfree(void *p, void *user) { (void)user; free(p); }
static wrpo_result wrpo__open_fails(const wrpo_desc *d, wrpo_result r, const char *text) {
    *d->why = (wrpo_error){.code = r};
    snprintf(d->why->text, sizeof d->why->text, "%s", text);
    return r;
}
static struct tm wrpo__local_time(time_t t) {
    struct tm tm = {0};
#ifdef _WIN32
    localtime_s(&tm, &t);
#else
    localtime_r(&t, &tm);
#endif
    return tm;
}
static bool wrpo__set_date(wrpo_ctx *ctx, const char *date) {  /* false: no such day */
    const struct tm now = wrpo__local_time(time(NULL));
    int year = now.tm_year + 1900, month = now.tm_mon + 1, day = now.tm_mday, end = 0;
    if (date && (sscanf(date, "%4d-%2d-%2d%n", &year, &month, &day, &end) != 3 || end != 10 || date[end])) return false;
    struct tm tm = {.tm_year = year - 1900, .tm_mon = month - 1, .tm_mday = day, .tm_hour = 12, .tm_isdst = -1};
    const time_t noon = mktime(&tm);
    if (noon == (time_t)-1 || tm.tm_mon != month - 1 || tm.tm_mday != day) return false;
    ctx->now = noon;
    snprintf(ctx->date, sizeof ctx->date, "%04d-%02d-%02d", year, month, day);
    return true;
}
static void wrpo__need_date(wrpo_ctx *ctx, const char *date) {
    if (!wrpo__set_date(ctx, date)) wrpo__fail_arg("date: want a day such as 2026-11-29, found \"%.40s\"", date);
}
WRPO_API wrpo_result wrpo_set_date(wrpo_ctx *ctx, const char *date) {
    WRPO__ENTRY(ctx, true, wrpo__need_date(ctx, date));
}
WRPO_API const char *wrpo_get_date(const wrpo_ctx *ctx) { return ctx->date; }
static int wrpo__default_threads(const wrpo_desc *d) { /* ranks that are bound to no processors share them */
    int64_t threads = 1;
    (void)d;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#ifdef _SC_NPROCESSORS_ONLN
    const int64_t all = sysconf(_SC_NPROCESSORS_ONLN);
    if (d->group && omp_get_num_procs() >= all)
        threads = WRPO__MIN(threads, WRPO__MAX(all / d->group->locals, 1));
#endif
#endif
    return (int)threads;
}
static wrpo_result wrpo__open(wrpo_desc d, wrpo_ctx **out) {
    const int64_t ranks = d.group ? d.group->ranks : 1, own = (d.lanes ? d.lanes : ranks) / ranks;
    if (!d.backend) d.backend = wrpo_backend_cpu();
    if (!d.dtype) d.dtype = d.backend->dtype;
    const struct { bool wrong; wrpo_result code; const char *text; } checks[] = {
        {!d.memory.alloc != !d.memory.free, WRPO_E_ARG, "wrpo_open: memory: want both functions or none"},
        {d.threads < 0, WRPO_E_ARG, "wrpo_open: threads: want at least 0"},
        {d.lanes < 0 || d.lanes > 1 << 20 || (d.lanes && own * ranks != d.lanes) || (own & (own - 1)),
         WRPO_E_ARG, "wrpo_open: lanes: want the number of ranks times a power of two"},
        {ranks > 1 && !d.backend->host && !d.group->device, WRPO_E_UNSUPPORTED,
         "wrpo_open: group: want one that moves a device's memory"},
        {own * ranks > 1 && !d.backend->sum, WRPO_E_UNSUPPORTED, "wrpo_open: lanes: this backend has no sum"},
        {d.backend->micro_tokens < 1, WRPO_E_ARG, "wrpo_open: backend: micro_tokens: want at least 1"},
        {d.dtype != WRPO_DTYPE_F32 && d.dtype != WRPO_DTYPE_BF16, WRPO_E_ARG,
         "wrpo_open: dtype: want f32 or bf16"}};
    for (int i = 0; i < WRPO__COUNT(checks); i++)
        if (checks[i].wrong) return wrpo__open_fails(&d, checks[i].code, checks[i].text);
    if (!d.memory.alloc) d.memory = (wrpo_allocator){wrpo__malloc, wrpo__mfree, NULL};
    d.lanes = own * ranks;
#ifndef _OPENMP
    d.threads = 1;
#endif
    if (!d.threads) d.threads = wrpo__default_threads(&d);
    wrpo_ctx *ctx = d.memory.alloc(sizeof *ctx, d.memory.user);
    if (!ctx) return wrpo__open_fails(&d, WRPO_E_MEMORY, "out of memory");
    *ctx = (wrpo_ctx){.desc = d, .error = {.text = "out of memory"}};
    ctx->desc.why = NULL;
    ctx->handouts = wrpo__arena_new(ctx);
    wrpo__set_date(ctx, NULL);
    const wrpo_result r = ctx->handouts ? d.backend->open(&ctx->dev, &ctx->desc, &ctx->error) : WRPO_E_MEMORY;
    if (r == WRPO_OK) {
        ctx->error = (wrpo_error){0};
        *out = ctx;
        return WRPO_OK;
    }
    wrpo__open_fails(&d, r, ctx->error.text);
    wrpo__arena_free(ctx->handouts);
    d.memory.free(ctx, d.memory.user);
    return r;
}
WRPO_API wrpo_result wrpo_open(const wrpo_desc *desc, wrpo_ctx **out) {
    wrpo_desc d = desc ? *desc : (wrpo_desc){0};
    wrpo_error error = {0}, *why = d.why ? d.why : &error;
    *out = NULL;
    d.why = why;
    const wrpo_result r = wrpo__open(d, out);
    if (!d.group || !wrpo__ask(d.group, r != WRPO_OK, why)) return r;
    wrpo_close(*out);
    *out = NULL;
    return why->code;
}
WRPO_API wrpo_result wrpo_agree(wrpo_ctx *ctx, wrpo_result r, const char *sentence) {
    if (r != WRPO_OK && sentence) {
        ctx->error = (wrpo_error){.code = r};
        snprintf(ctx->error.text, sizeof ctx->error.text, "%s", sentence);
    }
    if (!ctx->desc.group || ctx->peers == WRPO__ALONE || (r != WRPO_OK && ctx->peers)) return r;
    ctx->peers = wrpo__ask(ctx->desc.group, r != WRPO_OK, &ctx->error);
    return ctx->peers ? ctx->error.code : WRPO_OK;
}
WRPO_API void wrpo_close(wrpo_ctx *ctx) {
    if (!ctx) return;
    ctx->desc.backend->close(ctx->dev);
    wrpo__arena_free(ctx->handouts);
    ctx->desc.memory.free(ctx, ctx->desc.memory.user);
}
WRPO_API const wrpo_error *wrpo_last_error(const wrpo_ctx *ctx) {
    static const wrpo_error none = {WRPO_E_MEMORY, 0, 0, "out of memory"};
    return ctx ? &ctx->error : &none;
}
WRPO_API size_t wrpo_memory_peak(const wrpo_ctx *ctx) { return ctx->peak; }
WRPO_API void wrpo_log_stderr(wrpo_level level, const char *text, void *user) {
    (void)user;
    fprintf(stderr, "%s%s\n", level == WRPO_LOG_WARN ? "warning: " : "", text);
}
/* For the caller: a copy that outlives the entry, until wrpo_free. */
static void *wrpo__handout(wrpo_ctx *ctx, const void *p, size_t n) {
    char *q = wrpo__raw(ctx->handouts, n + 1, 1);
    if (n) memcpy(q, p, n);
    q[n] = 0;
    return q;
}
WRPO_API void wrpo_free(wrpo_ctx *ctx, void *p) {
    (void)ctx;
    wrpo__block_free(p);
}

/* ---- the plain backend ---- */
static wrpo_result wrpo__plain_open(void **dev, const wrpo_desc *desc, wrpo_error *why) {
    wrpo__plain *plain = *dev = desc->memory.alloc(sizeof *plain, desc->memory.user);
    if (!plain) {
        *why = (wrpo_error){WRPO_E_MEMORY, 0, 0, "out of memory: the state of the plain backend"};
        return WRPO_E_MEMORY;
    }
    plain->memory = desc->memory;
    plain->bf16 = desc->dtype == WRPO_DTYPE_BF16;
    return WRPO_OK;
}
static void wrpo__plain_close(void *dev) {
    const wrpo_allocator memory = ((wrpo__plain *)dev)->memory;
    memory.free(dev, memory.user);
}
/* The fields of a backend on the host: its functions are wrpo__LEVEL_OP. */
#define WRPO__HOST_BACKEND(level) \
    .act_bytes = 4, .dtype = WRPO_DTYPE_F32, .host = true, .micro_tokens = 1024, .close = wrpo__##level##_close, \
    .alloc = wrpo__host_alloc, .release = wrpo__host_release, .put = wrpo__host_copy, .get = wrpo__host_copy, \
    .room = wrpo__host_room, .sync = wrpo__host_sync, .gemm = wrpo__##level##_gemm, \
    .embed = wrpo__##level##_embed, .embed_bwd = wrpo__##level##_embed_bwd, .gather = wrpo__##level##_gather, \
    .gather_bwd = wrpo__##level##_gather_bwd, .scatter = wrpo__##level##_scatter, .bias = wrpo__##level##_bias, \
    .bias_bwd = wrpo__##level##_bias_bwd, .colsum = wrpo__##level##_colsum, .add = wrpo__##level##_add, \
    .dropout = wrpo__##level##_dropout, .rmsnorm = wrpo__##level##_rmsnorm, \
    .rmsnorm_bwd = wrpo__##level##_rmsnorm_bwd, .rope = wrpo__##level##_rope, \
    .attention = wrpo__##level##_attention, .attention_bwd = wrpo__##level##_attention_bwd, \
    .attention_scratch = wrpo__##level##_attention_scratch, .glu = wrpo__##level##_glu, \
    .glu_bwd = wrpo__##level##_glu_bwd, .logprob = wrpo__##level##_logprob, \
    .logprob_bwd = wrpo__##level##_logprob_bwd, .sum = wrpo__##level##_sum, .sumsq = wrpo__##level##_sumsq, \
    .adamw = wrpo__##level##_adamw
WRPO_API const wrpo_backend *wrpo_backend_plain(void) {
    static const wrpo_backend backend = {.name = "plain", .open = wrpo__plain_open, .copy = wrpo__host_copy,
                                         .zero = wrpo__host_zero, WRPO__HOST_BACKEND(plain)};
    return &backend;
}

/* ---- configs ---- */
/* A config that a caller filled in keeps the limits of one that is read from a file. */
static void wrpo__config_check(const wrpo_config *c) {
    const wrpo_rope *p = &c->rope;
    const bool llama3 = p->type == WRPO_ROPE_LLAMA3, dynamic = p->type == WRPO_ROPE_DYNAMIC;
    const bool yarn = p->type == WRPO_ROPE_YARN, longrope = p->type == WRPO_ROPE_LONGROPE;
    const double most = 1e15, least = 1 / most, huge = 0x1p40;  /* most: of a number; huge: of positions */
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, dims = p->dims ? p->dims : c->head_dim;
    double factor = longrope ? most : 1;  /* the smallest of its factors */
    for (int i = 0; longrope && i < WRPO__MIN(dims, WRPO__MAX_D) / 2; i++)
        factor = WRPO__MIN(factor, (double)WRPO__MIN(p->short_factor[i], p->long_factor[i]));
    const struct { const char *name; double value, low, high; } limits[] = {
        {"vocab_size", (double)c->vocab_size, 1, 1 << 24}, {"hidden_size", (double)c->hidden_size, 1, WRPO__MAX_HIDDEN},
        {"intermediate_size", (double)c->intermediate_size, 1, 1 << 24},
        {"num_hidden_layers", (double)c->num_hidden_layers, 1, 512}, {"num_attention_heads", (double)H, 1, 65536},
        {"num_key_value_heads", (double)G, 1, (double)H},
        {"num_attention_heads modulo num_key_value_heads", G > 0 ? (double)(H % G) : 0, 0, 0},
        {"head_dim", (double)c->head_dim, 2, WRPO__MAX_D}, {"head_dim modulo 2", (double)(c->head_dim % 2), 0, 0},
        {"max_position_embeddings", (double)c->max_position_embeddings, 1, huge},
        {"sliding_window", (double)c->sliding_window, 0, huge}, {"rms_norm_eps", c->rms_norm_eps, least, most},
        {"initializer_range", c->initializer_range, least, most},
        {"query_pre_attn_scalar", c->query_pre_attn_scalar, 0, most},
        {"attn_logit_softcapping", c->attn_logit_softcapping, 0, most},
        {"final_logit_softcapping", c->final_logit_softcapping, 0, most},
        {"embedding_multiplier", c->embedding_multiplier, 0, most},
        {"residual_multiplier", c->residual_multiplier, 0, most},
        {"attention_multiplier", c->attention_multiplier, 0, most}, {"logits_scaling", c->logits_scaling, 0, most},
        {"heads times head_dim, with qk_norm_rows", c->qk_norm_rows ? (double)(H * c->head_dim) : 0, 0,
         WRPO__MAX_HIDDEN},
        {"sliding_rope_theta", c->sliding_rope_theta, 0, most},
        {"rope.type", (double)p->type, 0, WRPO_ROPE_LONGROPE}, {"rope.theta", p->theta, least, most},
        {"rope.dims", (double)dims, dynamic ? 4 : 2, (double)c->head_dim},
        {"rope.dims modulo 2", (double)(dims % 2), 0, 0},
        {"rope.factor", p->factor, p->type != WRPO_ROPE_DEFAULT ? least : 0, most},
        {"rope.original_max_position_embeddings", (double)p->original_max_position_embeddings,
         llama3 || yarn || longrope ? 2 : 0, huge},
        {"rope.attention_factor", p->attention_factor, yarn || longrope ? least : 0, most},
        {"rope.beta_fast", p->beta_fast, yarn ? least : 0, most},
        {"rope.beta_slow", p->beta_slow, yarn ? least : 0, most},
        {"rope.low_freq_factor", p->low_freq_factor, llama3 ? least : 0, most},
        {"rope.high_freq_factor", p->high_freq_factor, llama3 ? nextafter(p->low_freq_factor, most) : 0, most},
        {"rope.short_factor and long_factor", factor, least, most}};
    for (int i = 0; i < WRPO__COUNT(limits); i++)
        if (!(limits[i].value >= limits[i].low && limits[i].value <= limits[i].high))
            wrpo__fail_arg("wrpo_config: %s: want %.15g to %.15g, found %.15g", limits[i].name, limits[i].low,
                           limits[i].high, limits[i].value);
    if (!memchr(c->model_type, 0, sizeof c->model_type)) wrpo__fail_arg("wrpo_config: model_type: want a NUL");
    if (c->no_pre_norms && !c->post_norms) wrpo__fail_arg("wrpo_config: no_pre_norms: want post_norms with it");
}
static uint64_t wrpo__config_hash(const wrpo_ctx *ctx, const wrpo_config *c) {
    const wrpo_rope *p = &c->rope;
    const double numbers[] = {
        c->rms_norm_eps, p->theta, (double)p->type, p->factor, p->low_freq_factor, p->high_freq_factor, p->beta_fast,
        p->beta_slow, p->attention_factor, (double)p->original_max_position_embeddings, (double)c->sliding_window,
        (double)c->head_dim, (double)c->num_attention_heads, (double)c->num_key_value_heads, (double)ctx->desc.dtype,
        (double)p->dims, (double)p->yarn_truncate, (double)c->max_position_embeddings, c->query_pre_attn_scalar,
        c->attn_logit_softcapping, c->final_logit_softcapping, c->gelu, c->norm_plus_one, c->post_norms,
        c->scale_embeddings};
    const double later[] = {c->sliding_rope_theta, c->qk_norm_rows, c->no_pre_norms, c->embedding_multiplier,
                            c->residual_multiplier, c->attention_multiplier, c->logits_scaling};
    uint64_t h = wrpo__hash(0, numbers, sizeof numbers);
    for (int64_t i = 0; i < WRPO__COUNT(later); i++)  /* a model without them keeps its name */
        if (later[i] != 0) h = wrpo__hash(h ^ (uint64_t)i, &later[i], sizeof later[i]);
    for (int64_t l = 0; l < c->num_hidden_layers; l++)
        if (wrpo__layer_bit(c->no_rope_layers, l)) h = wrpo__hash(h, &l, sizeof l);
    h = wrpo__hash(h, c->sliding_layers, sizeof c->sliding_layers);
    h = wrpo__hash(h, p->short_factor, sizeof p->short_factor);
    return wrpo__hash(h, p->long_factor, sizeof p->long_factor);
}

/* ---- a weight's elements, from and to floats ---- */
/* Bytes [from, from + n) of the whole array out of the shards of `size` bytes, on every rank; mine: this rank's. */
static void wrpo__split_get(wrpo_ctx *ctx, char *out, const void *mine, int64_t size, int64_t from, int64_t n) {
    for (int64_t rank = from / size, first, count; rank * size < from + n; rank++) {
        wrpo__overlap(rank * size, size, from, n, &first, &count);
        if (rank == wrpo__my_rank(ctx))
            ctx->desc.backend->get(ctx->dev, out + (first - from), (const char *)mine + first % size, (size_t)count);
        wrpo__broadcast(ctx, out + (first - from), (size_t)count, (int)rank);
    }
}
/* The inverse: this rank keeps what belongs to its shard. */
static void wrpo__split_put(wrpo_ctx *ctx, void *mine, int64_t size, int64_t from, int64_t n, const char *in) {
    int64_t first, count;
    wrpo__overlap(wrpo__my_rank(ctx) * size, size, from, n, &first, &count);
    if (count)
        ctx->desc.backend->put(ctx->dev, (char *)mine + first % size, in + (first - from), (size_t)count);
}
/* Elements [first, first + count) of a weight from floats: rounded to its dtype, unless there are masters. */
enum { WRPO__HALVES = 1 << 15 };     /* elements split at a time */
static void wrpo__weight_put(wrpo_model *model, const wrpo_weight *w, int64_t first, int64_t count, const float *src) {
    const wrpo_backend *be = model->ctx->desc.backend;
    void *dev = model->ctx->dev;
    uint16_t high[WRPO__HALVES], low[WRPO__HALVES];
    if (w->dtype == WRPO_DTYPE_F32) {
        be->put(dev, (float *)w->data + first, src, (size_t)count * sizeof *src);
        return;
    }
    for (int64_t i = 0; i < count; i += WRPO__HALVES) {
        const int64_t n = WRPO__MIN(count - i, WRPO__HALVES);
        const bool master = model->low && w->at >= 0;
        for (int64_t k = 0; k < n; k++) {
            if (master) wrpo__master_split(src[i + k], &high[k], &low[k]);
            else high[k] = wrpo__float_to_bf16(src[i + k]);
        }
        be->put(dev, (uint16_t *)w->data + first + i, high, (size_t)n * sizeof *high);
        if (master)
            wrpo__split_put(model->ctx, model->low, 2 * wrpo__shard(model->ctx, model->count),
                            2 * (w->at + first + i), 2 * n, (const char *)low);
    }
}
/* The inverse of wrpo__weight_put: elements [first, first + count) as floats, the masters where there are any. These
   are split, so all ranks call it. */
static void wrpo__weight_get(const wrpo_model *model, const wrpo_weight *w, int64_t first, int64_t count, float *dst) {
    const wrpo_backend *be = model->ctx->desc.backend;
    void *dev = model->ctx->dev;
    uint16_t high[WRPO__HALVES], low[WRPO__HALVES] = {0};
    if (w->dtype == WRPO_DTYPE_F32) {
        be->get(dev, dst, (const float *)w->data + first, (size_t)count * sizeof *dst);
        return;
    }
    for (int64_t i = 0; i < count; i += WRPO__HALVES) {
        const int64_t n = WRPO__MIN(count - i, WRPO__HALVES);
        be->get(dev, high, (const uint16_t *)w->data + first + i, (size_t)n * sizeof *high);
        if (model->low && w->at >= 0)
            wrpo__split_get(model->ctx, (char *)low, model->low, 2 * wrpo__shard(model->ctx, model->count),
                            2 * (w->at + first + i), 2 * n);
        for (int64_t k = 0; k < n; k++)
            dst[i + k] = w->dtype == WRPO_DTYPE_F16 ? wrpo__element(high, w->dtype, k) : wrpo__master(high[k], low[k]);
    }
}
enum { WRPO__PIECE = 1 << 20, WRPO__DRAWS = 4096 };   /* elements converted at a time; drawn by a thread at a time */
static uint64_t wrpo__weights_hash(const wrpo_model *model, uint64_t h) {      /* as floats */
    float *piece = wrpo__raw(wrpo__current, WRPO__PIECE, sizeof *piece);
    for (int64_t i = 0; i < model->n_weights; i++) {
        const wrpo_weight *w = &model->weights[i];
        h = wrpo__hash(h, w->name, strlen(w->name));
        for (int64_t at = 0, n; at < wrpo__size(w); at += n) {
            n = WRPO__MIN(wrpo__size(w) - at, WRPO__PIECE);
            wrpo__weight_get(model, w, at, n, piece);
            h = wrpo__hash(h, piece, (size_t)n * sizeof *piece);
        }
    }
    wrpo__block_free(piece);
    return h;
}

/* ---- a model in memory ---- */
/* The table of a model whose matrices have one dtype. No weight has memory yet. */
static wrpo_model *wrpo__model_table(wrpo__arena *arena, const wrpo_config *config, wrpo_dtype matrices) {
    const int64_t L = config->num_hidden_layers;
    wrpo_model *model = WRPO__NEW(arena, wrpo_model);
    *model = (wrpo_model){.ctx = arena->ctx, .arena = arena, .config = *config};
    wrpo__layout_weights(config, NULL, &model->n_weights, &model->count, NULL);
    model->weights = wrpo__alloc(arena, (size_t)model->n_weights, sizeof *model->weights);
    model->index = wrpo__alloc(arena, (size_t)L, WRPO__KINDS * sizeof *model->index);
    for (int64_t i = 0; i < L * WRPO__KINDS; i++) model->index[i] = -1;
    wrpo__layout_weights(config, model, NULL, NULL, NULL);
    for (wrpo_weight *w = model->weights; w < model->weights + model->n_weights; w++)
        w->dtype = w->vector ? WRPO_DTYPE_F32 : matrices;
    return model;
}
/* Memory for the weights that have none yet: whole blocks, as adamw wants them. */
static void wrpo__place_weights(wrpo_model *model, wrpo__bump *b) {
    for (int64_t i = 0, end, size; i < model->n_weights; i = end) {
        wrpo_weight *w = &model->weights[i];
        end = wrpo__contiguous(model, i, &size);
        if (w->data) continue;
        char *p = wrpo__take(b, wrpo__whole_blocks(size), 1, wrpo__dtype_size(w->dtype));
        for (; p && w < model->weights + end; w++) {
            w->data = p;
            p += (size_t)wrpo__size(w) * wrpo__dtype_size(w->dtype);
        }
    }
}
/* A bfloat16 matrix that is trained is the high half of a float master: small updates are not rounded away. */
static bool wrpo__has_masters(const wrpo_ctx *ctx, bool frozen) {
    return !frozen && ctx->desc.dtype == WRPO_DTYPE_BF16;
}
static void wrpo__model_memory(wrpo_model *model) {
    wrpo_ctx *ctx = model->ctx;
    const wrpo_config *c = &model->config;
    wrpo__bump b = {0};
    if ((c->residual_multiplier > 0 || c->logits_scaling > 0) && !ctx->desc.backend->dropout)
        wrpo__fail_unsupported("%s: %.32s: residual_multiplier and logits_scaling want the backend's dropout",
                               ctx->desc.backend->name, c->model_type);
    wrpo__place_weights(model, &b);
    const size_t shard = (size_t)wrpo__shard(ctx, model->count);
    const size_t bytes = b.used, low = wrpo__mul(ctx, shard, sizeof *model->low);
    if (b.overflow) wrpo__fail_memory("out of memory: the weights do not fit into the address space");
    b = (wrpo__bump){.base = wrpo__device_alloc(model->arena, bytes, "weights")};
    ctx->desc.backend->zero(ctx->dev, b.base, bytes);
    wrpo__place_weights(model, &b);
    if (!wrpo__has_masters(ctx, model->frozen && !model->lora)) return;
    model->low = wrpo__device_alloc(model->arena, low, "masters of the weights");
    ctx->desc.backend->zero(ctx->dev, model->low, low);
}
/* A model to train or to fill; every weight is 0. */
static wrpo_model *wrpo__model_new(wrpo__arena *arena, const wrpo_config *config) {
    wrpo_model *model = wrpo__model_table(arena, config, arena->ctx->desc.dtype);
    wrpo__model_memory(model);
    return model;
}
static bool wrpo__ends(const char *s, const char *end) {
    const size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}
static double wrpo__normal(uint64_t seed, uint64_t stream, uint64_t counter) { /* N(0, 1): Box and Muller 1958 */
    const wrpo__philox r = wrpo__random(seed, stream, counter);
    const double u = ((double)r.v[0] + 0.5) / 4294967296.0, v = ((double)r.v[1] + 0.5) / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}
/* Random weights: matrices N(0, initializer_range), norms that scale by 1, biases 0. Counter-based: an element depends
   on the seed, the tensor's name and its index. */
static void wrpo__model_randomize(wrpo_model *model, uint64_t seed) {
    const wrpo_config *c = &model->config;
    const int threads = model->ctx->desc.threads;
    float *piece = wrpo__raw(model->arena, WRPO__PIECE, sizeof *piece);
    if (!seed) seed = 42;
    for (const wrpo_weight *w = model->weights; w < model->weights + model->n_weights; w++) {
        const uint64_t stream = wrpo__hash(0, w->name, strlen(w->name));
        const bool norm = w->vector && wrpo__ends(w->name, ".weight");
        for (int64_t first = 0, n; first < wrpo__size(w); first += n) {
            n = WRPO__MIN(wrpo__size(w) - first, WRPO__PIECE);
            for (int64_t k = 0; w->vector && k < n; k++) piece[k] = norm && !c->norm_plus_one;
            WRPO__PARFOR(threads)
            for (int64_t begin = 0; begin < (w->vector ? 0 : n); begin += WRPO__DRAWS)
                for (int64_t k = begin; k < WRPO__MIN(begin + WRPO__DRAWS, n); k++)
                    piece[k] = (float)(c->initializer_range * wrpo__normal(seed, stream, (uint64_t)(first + k)));
            wrpo__weight_put(model, w, first, n, piece);
        }
    }
    wrpo__block_free(piece);
    wrpo__sync(model->ctx);
}
static wrpo_model *wrpo__model_random(wrpo__arena *arena, const wrpo_config *config, uint64_t seed) {
    wrpo__config_check(config);
    if (config->head != WRPO_HEAD_LM) wrpo__fail_arg("wrpo_config: head: want WRPO_HEAD_LM");
    wrpo_model *model = wrpo__model_new(arena, config);
    model->dtype = WRPO_DTYPE_F32;
    wrpo__model_randomize(model, seed);
    return model;
}
WRPO_API wrpo_result wrpo_model_new(wrpo_ctx *ctx, const wrpo_config *config, uint64_t seed, wrpo_model **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__model_random(wrpo__current, config, seed));
}
WRPO_API const wrpo_config *wrpo_model_config(const wrpo_model *model) { return &model->config; }
WRPO_API wrpo_dtype wrpo_model_dtype(const wrpo_model *model) { return model->dtype; }
WRPO_API int64_t wrpo_model_weights(const wrpo_model *model, const wrpo_weight **out) {
    if (out) *out = model->weights;
    return model->n_weights;
}
WRPO_API int64_t wrpo_model_parameters(const wrpo_model *model) {
    int64_t n;
    wrpo__layout_weights(&model->config, NULL, NULL, NULL, &n);
    return n;
}
WRPO_API void wrpo_model_free(wrpo_model *model) {
    if (model) wrpo__arena_free(model->arena);
}

/* ---- a workspace ---- */
static wrpo__shape wrpo__full_shape(wrpo__shape shape, const wrpo_model *model) {
    if (!shape.positions) shape.positions = shape.rows;
    shape.frozen_head = shape.train && model->lora;
    if (shape.frozen_head) shape.logits = false;   /* the backward pass wants none */
    shape.rank = model->lora ? model->lora->rank : 0;
    shape.drop = model->lora && model->lora->desc.dropout > 0 ? model->lora->cols : 0;
    return shape;
}
/* Measures a workspace (r->layer may be NULL), or assigns its memory. */
static void wrpo__workspace_layout(wrpo_ctx *ctx, const wrpo_config *c, const wrpo__shape *s, wrpo__workspace *r,
                                   wrpo__bump *b) {
    const size_t size_float = sizeof(float);
    const int64_t G = c->num_key_value_heads, L = c->num_hidden_layers, n = s->rows;
    const int64_t two_ropes = c->sliding_rope_theta > 0, dims = wrpo__rope_dims(c);
    const int64_t angles = s->positions + (wrpo__rope_key(c, INT64_MAX) ? n : 0);
#define WRPO__X(type, field, columns) \
    r->field = wrpo__take(b, n, columns, sizeof(type)); \
    r->h_##field = wrpo__take(&r->host, n, columns, sizeof(type));
    WRPO__PACKED(WRPO__X)
#undef WRPO__X
    r->packed = wrpo__take(&r->host, n, 1, sizeof *r->packed);
    for (wrpo__rotary *t = r->rotary; t <= r->rotary + two_ropes; t++) {
        t->inv_freq = wrpo__take(&r->host, 1, dims / 2, size_float);
        t->table = wrpo__take(b, angles, dims, size_float);
        t->h_table = wrpo__take(&r->host, angles, dims, size_float);
    }
    r->cache = wrpo__take(b, s->cache, L * 2 * G * c->head_dim, (size_t)ctx->desc.backend->act_bytes);
    r->head_sum = wrpo__take(b, 1, c->hidden_size, size_float);
    r->fixed_bytes = b->used;
    wrpo__acts_layout(ctx, c, s, r, b);
    r->bytes = b->used;
}
/* As many labels as have 64 MiB of logits, from 32 to 512; on a device, which wants large products, up to 8 times as
   many. Never more than rows. */
static int64_t wrpo__head_chunk(const wrpo_ctx *ctx, const wrpo_config *c, int64_t rows) {
    const int64_t more = ctx->desc.backend->host ? 1 : 8, chunk = (more << 26) / (4 * c->vocab_size) / 32 * 32;
    return WRPO__MIN(rows, WRPO__MAX(32, WRPO__MIN(512 * more, chunk)));
}

static wrpo__workspace *wrpo__workspace_new(wrpo__arena *arena, wrpo_model *model, const wrpo__shape *shape) {
    wrpo_ctx *ctx = arena->ctx;
    const wrpo_config *c = &model->config;
    wrpo__workspace *r = WRPO__NEW(arena, wrpo__workspace);
    wrpo__bump b = {0};
    *r = (wrpo__workspace){.model = model, .be = ctx->desc.backend, .dev = ctx->dev,
                           .shape = wrpo__full_shape(*shape, model)};
    r->layer = wrpo__alloc(arena, (size_t)c->num_hidden_layers + 1, sizeof *r->layer);
    wrpo__workspace_layout(ctx, c, &r->shape, r, &b);
    if (b.overflow || r->host.overflow)
        wrpo__fail_memory("out of memory: %lld rows of this model do not fit into the address space",
                          (long long)shape->rows);
    r->memory = wrpo__device_alloc(arena, b.used, "activations");
    b = (wrpo__bump){.base = r->memory};
    r->host = (wrpo__bump){.base = wrpo__raw(arena, r->host.used, 1)};
    wrpo__workspace_layout(ctx, c, &r->shape, r, &b);
    wrpo__inv_freq(c, 0, r->rotary);
    if (r->rotary[1].table) {
        wrpo_config own = *c;
        own.rope = (wrpo_rope){.theta = c->sliding_rope_theta, .dims = c->rope.dims};
        wrpo__inv_freq(&own, 0, &r->rotary[1]);
    }
    wrpo__make_angles(r, 0, 0, r->shape.positions);
    wrpo__put_angles(r, 0, r->shape.positions);
    return r;
}

/* ---- data: records of token ids ---- */
static const int32_t *wrpo__copy_ids(wrpo__arena *arena, const int32_t *ids, int64_t count) {
    return memcpy(wrpo__alloc(arena, (size_t)count, sizeof *ids), ids, (size_t)count * sizeof *ids);
}
static wrpo_data *wrpo__data_new(wrpo__arena *arena) {  /* its arrays stay in the arena, where they begin */
    wrpo__arena *outer = wrpo__current;
    wrpo_data *data = WRPO__NEW(arena, wrpo_data);
    data->ctx = arena->ctx;
    data->arena = wrpo__current = arena;
    stbds_arrsetcap(data->records, 4);
    stbds_arrsetcap(data->source_names, 1);
    wrpo__current = outer;
    return data;
}
/* Copies a record into the data. */
static void wrpo__data_add(wrpo_data *data, const wrpo_record *record) {
    wrpo__arena *arena = data->arena;
    wrpo_tokens *responses = wrpo__alloc(arena, (size_t)record->count, sizeof *responses);
    wrpo_record r = *record;
    r.prompt_id = wrpo__strndup(arena, r.prompt_id, strlen(r.prompt_id));
    r.prompt = wrpo__copy_ids(arena, r.prompt, r.prompt_count);
    r.responses = responses;
    r.weight = wrpo__or_default(r.weight, 1);  /* WRPO_ZERO stays, so that a view can be given again */
    int sources = 0, stated = 0;
    for (int k = 0; k < r.count; k++) {
        sources += record->responses[k].role == WRPO_ROLE_SOURCE;
        stated += record->responses[k].role == WRPO_ROLE_SOURCE && !wrpo__is_default(record->responses[k].share);
    }
    const double equal = stated ? 0 : 1 / (double)sources;  /* a source's share where no source states one */
    for (int k = 0; k < r.count; k++) {
        wrpo_tokens *y = &responses[k];
        *y = record->responses[k];
        y->ids = wrpo__copy_ids(arena, y->ids, y->count);
        if (y->scored) y->scored = memcpy(wrpo__alloc(arena, (size_t)y->count, 1), y->scored, (size_t)y->count);
        y->share = wrpo__or_default(y->share, y->role == WRPO_ROLE_SOURCE ? equal : 1);
        data->stats.response_tokens += y->count;
        data->stats.longest = WRPO__MAX(data->stats.longest, r.prompt_count + y->count);
        y->source_logps = NULL;
        if (!r.sources) continue;
        const size_t bytes = (size_t)r.sources * sizeof *y->source_logps;
        y->source_logps = memcpy(wrpo__alloc(arena, bytes, 1), record->responses[k].source_logps, bytes);
    }
    stbds_arrput(data->records, r);
    data->stats.records++;
    data->stats.prompt_tokens += r.prompt_count;
    data->most = WRPO__MAX(data->most, r.count);
}
static wrpo_data *wrpo__data_from_ids(wrpo__arena *arena, const wrpo_record *records, int64_t count) {
    wrpo_data *data = wrpo__data_new(arena);
    for (int64_t i = 0; i < count; i++) {
        wrpo_record r = records[i];
        bool ok = r.prompt_count >= 1 && r.count >= 1;
        for (int k = 0; ok && k < r.count; k++)
            ok = r.responses[k].first >= 0 && wrpo__scored_count(&r.responses[k]) > 0;
        if (!(r.weight >= 0 && r.weight <= DBL_MAX))
            wrpo__fail_arg("record %lld: weight: want a finite number of at least 0, found %g", (long long)i, r.weight);
        if (!ok) wrpo__fail_arg("record %lld: want a prompt, and responses with a scored token each", (long long)i);
        for (int k = 0; k < r.count; k++)
            if (r.sources < 0 || (r.sources && !r.responses[k].source_logps))
                wrpo__fail_arg("record %lld: response %d: want source_logps of %d sources, found none", (long long)i, k,
                               r.sources);
        if (!r.prompt_id) r.prompt_id = wrpo__format(arena, "record %lld", (long long)i);
        wrpo__data_add(data, &r);
    }
    return data;
}
WRPO_API wrpo_result wrpo_data_from_ids(wrpo_ctx *ctx, const wrpo_record *records, int64_t count, wrpo_data **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__data_from_ids(wrpo__current, records, count));
}
WRPO_API void wrpo_data_free(wrpo_data *data) { if (data) wrpo__arena_free(data->arena); }
WRPO_API int64_t wrpo_data_count(const wrpo_data *data) { return data->stats.records; }
WRPO_API wrpo_record wrpo_data_record(const wrpo_data *data, int64_t i) { return data->records[i]; }
WRPO_API wrpo_data_stats wrpo_data_get_stats(const wrpo_data *data) { return data->stats; }
/* Every id must be a row of the embedding. Errors say `what` with its name, or its number if name is NULL. */
static void wrpo__check_ids(int64_t V, const int32_t *ids, int64_t count, const char *what, const char *name,
                            int64_t number) {
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] >= 0 && ids[i] < V) continue;
        const char *of = name ? wrpo__format(wrpo__current, "%s \"%s\"", what, name)
                              : wrpo__format(wrpo__current, "%s %lld", what, (long long)number);
        wrpo__fail_format("%s: token id %d is outside the model's vocabulary of %lld: tokenizer and model do not "
                          "belong together", of, (int)ids[i], (long long)V);
    }
}
static void wrpo__check_data(const wrpo_config *c, const wrpo_data *data, int64_t first, int64_t count) {
    int64_t longest = 0;
    for (const wrpo_record *record = data->records + first; record < data->records + first + count; record++) {
        wrpo__check_ids(c->vocab_size, record->prompt, record->prompt_count, "record", record->prompt_id, 0);
        for (int k = 0; k < record->count; k++) {
            const wrpo_tokens *y = &record->responses[k];
            wrpo__check_ids(c->vocab_size, y->ids, y->count, "record", record->prompt_id, 0);
            longest = WRPO__MAX(longest, record->prompt_count + y->count);
        }
    }
    if (longest > c->max_position_embeddings && longest == data->stats.longest)  /* once, not for each part */
        wrpo__warn("a sequence of %lld tokens is longer than the model's max_position_embeddings %lld",
                   (long long)longest, (long long)c->max_position_embeddings);
}

static uint64_t wrpo__data_hash(uint64_t h, const wrpo_data *data) {
    for (int64_t i = 0; i < wrpo_data_count(data); i++) {
        const wrpo_record record = wrpo_data_record(data, i);
        h = wrpo__hash(h, record.prompt, (size_t)record.prompt_count * sizeof *record.prompt);
        h = wrpo__hash(h, &record.weight, sizeof record.weight);
        for (int k = 0; k < record.count; k++) {
            const wrpo_tokens *y = &record.responses[k];
            const int64_t scored[3] = {y->first, (int64_t)y->role, y->pair_id};
            h = wrpo__hash(h, y->ids, (size_t)y->count * sizeof *y->ids);
            h = wrpo__hash(h, scored, sizeof scored);
            h = wrpo__hash(h, &y->share, sizeof y->share);
            if (record.sources) h = wrpo__hash(h, y->source_logps, (size_t)record.sources * sizeof *y->source_logps);
            if (y->scored) h = wrpo__hash(h, y->scored, (size_t)y->count);
        }
    }
    return h;
}

/* ---- log-probs of records: packed until micro_tokens rows are full; a longer record goes alone ---- */
/* Rows of a workspace for these records: micro_tokens, all if that is less, the longest record if that is more. */
static int64_t wrpo__workspace_rows(const wrpo_config *c, const wrpo_data *data, int64_t first, int64_t count,
                                    int64_t micro_tokens) {
    int64_t all = 0, longest = 1;
    for (int64_t i = first; i < first + count; i++) {
        const int64_t rows = wrpo__record_rows(c, &data->records[i]);
        all = WRPO__MIN(all + rows, micro_tokens);
        longest = WRPO__MAX(longest, rows);
    }
    return WRPO__MAX(all, longest);
}
/* What the ranks were given, by its hash, must be the same. */
static void wrpo__same(wrpo_ctx *ctx, const char *what, uint64_t hash) {
    const int R = wrpo__ranks(ctx);
    uint64_t want = hash;
    wrpo__broadcast(ctx, &want, sizeof want, 0);
    const int64_t other = wrpo__most(ctx, want == hash ? 0 : R - wrpo__my_rank(ctx));
    if (other) wrpo__fail_arg("rank %d: %s: want that of rank 0, found another", R - (int)other, what);
}
/* Of records [begin, end), or of those in the list. */
static int64_t wrpo__scored_tokens(const wrpo_data *data, const int64_t *list, int64_t begin, int64_t end) {
    int64_t n = 0;
    for (int64_t i = begin; i < end; i++) {
        const wrpo_record *record = &data->records[list ? list[i] : i];
        for (int k = 0; k < record->count; k++) n += wrpo__scored_count(&record->responses[k]);
    }
    return n;
}
/* Does the model's adapter add nothing? Every B of a new one is 0. */
static bool wrpo__adds_nothing(const wrpo_model *model) {
    float piece[WRPO__HALVES];
    for (int64_t i = model->lora ? model->lora->first : model->n_weights; i < model->n_weights; i++) {
        const wrpo_weight *w = &model->weights[i];
        if (!wrpo__ends(w->name, ".lora_B.weight")) continue;
        for (int64_t at = 0, n; at < wrpo__size(w); at += n) {
            n = WRPO__MIN(wrpo__size(w) - at, WRPO__HALVES);
            wrpo__weight_get(model, w, at, n, piece);
            for (int64_t k = 0; k < n; k++)
                if (piece[k] != 0) return false;
        }
    }
    return true;
}
/* logps [count, K] of records [first, first + count), in a workspace of its own; or, where there is a list, of records
   list[first ...], and each has its place in logps [N, K]. tokens: an stb array of every scored token's log-prob, or
   NULL. All ranks get all of them. */
static void wrpo__logprobs(wrpo__arena *temp, wrpo_model *model, const wrpo_data *data, const int64_t *list,
                           int64_t first, int64_t count, int64_t micro_tokens, double *logps, int K, float **tokens) {
    const int64_t begin = list ? 0 : first, n_checked = list ? data->stats.records : count;
    if (list && count == 0) return;
    wrpo__check_data(&model->config, data, begin, n_checked);
    wrpo__shape shape = {.rows = wrpo__workspace_rows(&model->config, data, begin, n_checked, micro_tokens)};
    shape.chunk = wrpo__head_chunk(model->ctx, &model->config, shape.rows);
    wrpo__workspace *r = wrpo__workspace_new(temp, model, &shape);
    r->no_adapter = wrpo__adds_nothing(model);
    wrpo_ctx *ctx = model->ctx;
    wrpo__micro *all = wrpo__micro_batches(ctx, &model->config, data, list, first, first + count, micro_tokens), *micro;
    const wrpo__micro *const end = all + stbds_arrlen(all);
    const int64_t sizes[] = {count, K, stbds_arrlen(all), wrpo__scored_tokens(data, list, first, first + count)};
    float *each = wrpo__raw(temp, (size_t)sizes[3] + 1, sizeof *each), *at = each;
    wrpo__same(ctx, "the records", wrpo__hash(0, sizes, sizeof sizes));
    for (micro = all; micro < end; micro++) {
        if (wrpo__owner(ctx, micro) == wrpo__my_rank(ctx)) {
            wrpo__pack_micro(r, data, list, micro);
            wrpo__forward(r, false, false);
            memcpy(at, r->h_logp, (size_t)r->n_labels * sizeof *at);
        }
        at += wrpo__scored_tokens(data, list, micro->begin, micro->end);
    }
    for (micro = all, at = each; micro < end; micro++) {
        const int64_t n = wrpo__scored_tokens(data, list, micro->begin, micro->end);
        wrpo__broadcast(ctx, at, (size_t)n * sizeof *at, wrpo__owner(ctx, micro));
        for (int64_t i = 0; tokens && i < n; i++) stbds_arrput(*tokens, at[i]);
        for (int64_t i = micro->begin; i < micro->end; i++) {
            const wrpo_record *record = &data->records[list ? list[i] : i];
            double *to = logps + (list ? list[i] : i - first) * K;
            for (int k = 0; k < K; k++) {
                const int64_t scored = k < record->count ? wrpo__scored_count(&record->responses[k]) : 0;
                to[k] = k < record->count ? wrpo__sum_logps(at, scored) : NAN;
                at += scored;
                if (k < record->count && !isfinite(to[k]))
                    wrpo__fail(ctx, WRPO_E_NOT_FINITE,
                               "record \"%s\" (line %lld): the log-prob of response %d is not a finite number",
                               record->prompt_id, (long long)record->line, k + 1);
            }
        }
    }
    stbds_arrfree(all);
}

/* ---- names of values ---- */
/* The public name of each value of an enum, from a list of them; NULL past the last. */
#define WRPO__NAMED(function, list) \
    WRPO_API const char *function(int i) { return i >= 0 && i < WRPO__COUNT(list) ? (list)[i] : NULL; }
static const char *const wrpo__pairs[] = {
    [WRPO_PAIR_TARGET] = "target", [WRPO_PAIR_SOURCE] = "source", [WRPO_PAIR_BOTH] = "both"};
static const char *const wrpo__fusions[] = {
    [WRPO_FUSION_MARGIN] = "margin", [WRPO_FUSION_MARGIN_INITIAL] = "margin-initial", [WRPO_FUSION_MEAN] = "mean",
    [WRPO_FUSION_CONFIDENCE] = "confidence"};
static const char *const wrpo__ramps[] = {
    [WRPO_ALPHA_SCHEDULE_LINEAR] = "linear", [WRPO_ALPHA_SCHEDULE_CONSTANT] = "constant",
    [WRPO_ALPHA_SCHEDULE_POWER] = "power", [WRPO_ALPHA_SCHEDULE_COSINE] = "cosine"};
static const char *const wrpo__schedules[] = {
    [WRPO_LR_SCHEDULE_COSINE] = "cosine", [WRPO_LR_SCHEDULE_LINEAR] = "linear",
    [WRPO_LR_SCHEDULE_CONSTANT] = "constant"};
WRPO__NAMED(wrpo_pair_name, wrpo__pairs)
WRPO__NAMED(wrpo_fusion_name, wrpo__fusions)
WRPO__NAMED(wrpo_alpha_schedule_name, wrpo__ramps)
WRPO__NAMED(wrpo_lr_schedule_name, wrpo__schedules)
static const char *const wrpo__moments_names[] = {
    [WRPO_MOMENTS_F32] = "f32", [WRPO_MOMENTS_BF16] = "bf16", [WRPO_MOMENTS_8BIT] = "8bit"};
WRPO__NAMED(wrpo_moments_name, wrpo__moments_names)

/* ---- settings. Columns: field, its name in errors and state files too; default; test of the value x; what is wanted;
        must it be the same in a run that goes on? ---- */
#define WRPO__SETTINGS(X) \
    X(alpha,         0.1,   x >= 0 && x <= 1,     "a number in [0, 1]",     true) \
    X(alpha_power,   2,     x > 0 && x < 1e6,     "a positive number",      true) \
    X(learning_rate, rate,  x >= 0 && x <= 1e3,   "a number from 0 to 1000", true) \
    X(warmup_ratio,  0.1,   x >= 0 && x <= 1,     "a number in [0, 1]",     true) \
    X(beta1,         0.9,   x >= 0 && x < 1,      "a number in [0, 1)",     true) \
    X(beta2,         0.999, x >= 0 && x < 1,      "a number in [0, 1)",     true) \
    X(eps,           1e-8,  x >= 0 && x < 1,      "a number in [0, 1)",     true) \
    X(weight_decay,  0,     x >= 0 && x <= 1e3,   "a number from 0 to 1000", true) \
    X(max_grad_norm, 1,     x == x,               "a number",               true) \
    X(epochs,        1,     x > 0 && x < 1e9,     "a positive number",      false) \
    X(batch_size,    128,   x >= 1 && x <= 0x1p40, "at least 1",            true) \
    X(accumulation,  1,     x >= 1 && d->batch_size % d->accumulation == 0, "a divisor of batch_size", true) \
    X(max_steps,     0,     x >= 0,               "at least 0",             false) \
    X(micro_tokens,  ctx->desc.backend->micro_tokens, x >= 1 && x <= 0x1p30, "1 to 2^30", true) \
    X(recompute,     0,     x >= -1,              "a number of layers, or -1 for all", false) \
    X(eval_steps,    0,     x >= 0,               "at least 0",             true) \
    X(save_steps,    0,     x >= 0 && (x == 0 || d->save.dir), "at least 0, and a directory in save", false) \
    X(keep,          1,     x >= 1,               "at least 1",             false)

WRPO_API wrpo_train_desc wrpo_train_defaults(const wrpo_ctx *ctx, const wrpo_train_desc *desc) {
    wrpo_train_desc d = {0};
    if (desc) d = *desc;
    const double rate = wrpo_method_name((int)d.loss.method) ? wrpo__rules[d.loss.method].rate : 3e-7;
    d.loss = wrpo__loss_defaults(d.loss);
#define WRPO__X(field, otherwise, valid, want, same) if (wrpo__is_default((double)d.field)) d.field = otherwise;
    WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    if (!d.seed) d.seed = 42;
    return d;
}
/* A metric by its name. false: not one for save_best, which takes the loss or what rises as a model gets better. */
static bool wrpo__metric(const wrpo_metrics *m, const char *name, double *out) {
    const size_t n = strlen(name);
    if (strcmp(name, "loss") && strncmp(name, "rewards/", 8) && strncmp(name, "logps/", 6)) return false;
    if (n > 9 && !strcmp(name + n - 9, "/rejected")) return false;
#define WRPO__X(field, key) if (!strcmp(name, key)) return *out = m->field, true;
    WRPO_METRICS(WRPO__X)
#undef WRPO__X
    return false;
}
static void wrpo__train_check(const wrpo_train_desc *d) {   /* d resolved */
    const wrpo_metrics none = {0};
    double x;
#define WRPO__X(field, otherwise, valid, want, same) x = (double)d->field; WRPO__RANGE(valid, #field, x, want);
    WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    const char *why = wrpo__loss_check(&d->loss, d->alpha);
    if (why) wrpo__fail_arg("%s", why);
    WRPO__RANGE(wrpo_lr_schedule_name((int)d->lr_schedule), "lr_schedule", d->lr_schedule, "one of wrpo_lr_schedule");
    WRPO__RANGE(wrpo_alpha_schedule_name((int)d->alpha_schedule), "alpha_schedule", d->alpha_schedule,
                "one of wrpo_alpha_schedule");
    WRPO__RANGE(wrpo_moments_name((int)d->moments), "moments", d->moments, "one of wrpo_moments");
    const bool sft = d->loss.method == WRPO_METHOD_SFT;
    if (d->save_best && (!wrpo__metric(&none, d->save_best, &x) || (sft && strcmp(d->save_best, "loss"))))
        wrpo__fail_arg("save_best: want loss%s, found %.60s",
                       sft ? "" : ", rewards/margins, rewards/accuracies or such", d->save_best);
    if (d->save_best && (!d->eval_data || !d->save.dir))
        wrpo__fail_arg("save_best: want eval_data, and a directory in save");
}

/* ---- a trainer, in three phases: wrpo__trainer_new ---- */
static wrpo__sharding wrpo__sharding_of(wrpo_ctx *ctx, int64_t count, wrpo_moments moments) {
    const int64_t ranks = wrpo__ranks(ctx), shard = wrpo__shard(ctx, count), blocks = (1 << 22) / WRPO_BLOCK;
    wrpo__sharding s = {.shard = shard, .padded = shard * ranks, .moments = wrpo_moments_bytes(moments, shard),
                        .piece = WRPO__MIN(shard, WRPO__MAX(blocks / ranks, 1) * WRPO_BLOCK)};
    s.gradients = wrpo__mul(ctx, (size_t)s.padded, sizeof(float));
    for (int64_t lanes = ctx->desc.lanes / ranks; lanes > 1; lanes /= 2)
        s.gradients += wrpo__mul(ctx, (size_t)s.padded, sizeof(float));
    if (ranks > 1) s.moving = (size_t)(s.piece * ranks) * sizeof(float);
    return s;
}
/* Every record must have the roles that the method needs. */
static void wrpo__check_roles(const wrpo__set *set, const wrpo_train_desc *d) {
    wrpo_response *r = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *r);
    if (set->N == 0) wrpo__fail_arg("the data has no records");
    for (int64_t i = 0; i < set->N; i++) {
        const wrpo_record *record = &set->data->records[i];
        const char *why = NULL;
        wrpo__responses_of(record, r);
        for (int k = 0; k < 2 && !why; k++) {          /* alpha of the first step, and its end value */
            const double alpha = wrpo_alpha(d->alpha_schedule, d->alpha_power, d->alpha, k, 1);
            wrpo_loss(&d->loss, alpha, r, record->count, 1, &why);
        }
        if (why) wrpo__fail_format("record \"%s\" (line %lld): %s", record->prompt_id, (long long)record->line, why);
    }
}
/* SFT scores the sources alone, so the other responses are not computed: a view of the data without them.
   Sources come first in a record. */
static const wrpo_data *wrpo__only_sources(wrpo__arena *arena, const wrpo_data *data) {
    wrpo_data *view = WRPO__NEW(arena, wrpo_data);
    view->date = data->date;
    view->stats.records = data->stats.records;
    view->records = wrpo__alloc(arena, (size_t)data->stats.records, sizeof *view->records);
    for (int64_t i = 0; i < data->stats.records; i++) {
        wrpo_record *r = &view->records[i];
        *r = data->records[i];
        while (r->count > 1 && r->responses[r->count - 1].role != WRPO_ROLE_SOURCE) r->count--;    /* they come first */
        view->most = WRPO__MAX(view->most, r->count);
        for (int k = 0; k < r->count; k++)
            view->stats.longest = WRPO__MAX(view->stats.longest, r->prompt_count + r->responses[k].count);
    }
    return view;
}
static void wrpo__set_begin(wrpo_trainer *t, wrpo__set *set, const wrpo_data *data) {
    set->given = data;
    if (!data) return;
    set->data = t->desc.loss.method == WRPO_METHOD_SFT ? wrpo__only_sources(t->arena, data) : data;
    set->N = set->data->stats.records;
    set->K = set->data->most;
    wrpo__check_roles(set, &t->desc);
    wrpo__check_data(&t->model->config, set->data, 0, set->N);
    const int64_t rows = wrpo__workspace_rows(&t->model->config, set->data, 0, set->N, t->desc.micro_tokens);
    t->rows = WRPO__MAX(t->rows, rows);
    if (wrpo__rules[t->desc.loss.method].reference)
        set->ref = wrpo__alloc(t->arena, (size_t)set->N * (size_t)set->K, sizeof *set->ref);
}
static void wrpo__same_weights(const wrpo_model *model, const char *what) {
    if (model->ctx->desc.group) wrpo__same(model->ctx, what, wrpo__weights_hash(model, 0));
}
static uint64_t wrpo__lora_hash(const wrpo_model *model) {
    const wrpo__lora *lora = model->lora;
    uint64_t h = 0;
    if (!lora) return 0;
    for (int64_t i = 0; i < model->config.num_hidden_layers * WRPO__KINDS; i++)
        h = wrpo__hash(h, &lora->of[i].scale, sizeof lora->of[i].scale);
    return wrpo__hash(h, &lora->desc.dropout, sizeof lora->desc.dropout);
}
/* The ranks must be given the same. */
static void wrpo__same_inputs(const wrpo_trainer *t, bool train) {
    wrpo_ctx *ctx = t->ctx;
    const wrpo_train_desc *d = &t->desc;
    if (wrpo__ranks(ctx) == 1) return;
    const double choices[] = {(double)d->loss.method, (double)d->loss.pair, d->loss.beta, d->loss.label_smoothing,
                              d->loss.gamma_ratio, d->loss.ipo_sum, (double)d->alpha_schedule, (double)d->lr_schedule,
                              (double)d->seed, d->no_shuffle, d->resume != NULL, d->ref_dir != NULL,
                              d->out_dir != NULL, train, d->save.dir != NULL, d->save_model,
                              (double)d->loss.fusion, d->loss.sft_weight};
    wrpo__same(ctx, "the config of the model", wrpo__config_hash(ctx, &t->model->config));
    wrpo__same(ctx, "lanes", (uint64_t)ctx->desc.lanes);
    wrpo__same(ctx, "the backend", wrpo__hash(0, ctx->desc.backend->name, strlen(ctx->desc.backend->name)));
#define WRPO__X(field, otherwise, valid, want, same) wrpo__same(ctx, #field, wrpo__hash(0, &d->field, sizeof d->field));
    WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    wrpo__same(ctx, "the settings of training", wrpo__hash(d->moments, choices, sizeof choices));
    wrpo__same(ctx, "the adapter's scale and dropout", wrpo__lora_hash(t->model));
    wrpo__same(ctx, "the data", wrpo__data_hash((uint64_t)t->train.N, t->train.data));
    wrpo__same(ctx, "the eval data", t->eval.data ? wrpo__data_hash((uint64_t)t->eval.N, t->eval.data) : 0);
    wrpo__same_weights(t->model, "the model's weights");
}
static void wrpo__trainer_gone(void *policy) { ((wrpo_model *)policy)->trainers--; }
/* 1. Settings and data checked; nothing large is allocated yet. */
static wrpo_trainer *wrpo__trainer_begin(wrpo__arena *arena, wrpo_model *policy, const wrpo_data *data,
                                         const wrpo_train_desc *desc, bool train) {
    wrpo_trainer *t = WRPO__NEW(arena, wrpo_trainer);
    *t = (wrpo_trainer){.ctx = arena->ctx, .arena = arena, .model = policy};
    t->desc = wrpo_train_defaults(t->ctx, desc);
    if (train && policy->frozen && !policy->lora)
        wrpo__fail_arg("the model was loaded frozen (wrpo_model_desc): without an adapter it cannot be trained");
    const wrpo_train_desc *d = &t->desc;
    wrpo__on_free(arena, wrpo__trainer_gone, policy);
    policy->trainers++;
    wrpo__train_check(d);
    wrpo__set_begin(t, &t->train, data);
    wrpo__set_begin(t, &t->eval, d->eval_data);
    wrpo__same_inputs(t, train);
    const int64_t N = t->train.N;
    t->part_size = d->batch_size / d->accumulation;
    t->steps_per_epoch = WRPO__MAX(wrpo__div_up(N, t->part_size) / d->accumulation, 1);
    const double steps = ceil(d->epochs * (double)t->steps_per_epoch - 1e-9);  /* 0.1 * 30 > 3: still 3 steps */
    t->T = d->max_steps ? d->max_steps : WRPO__MAX((int64_t)steps, 1);
    t->order = wrpo__alloc(arena, (size_t)N, sizeof *t->order);
    t->weight = wrpo__alloc(arena, (size_t)WRPO__MIN(N, d->batch_size), sizeof *t->weight);
    t->order_epoch = -1;
    return t;
}
/* 2. The reference's log-probs, before the memory of training is taken. ref: the policy as it is, or another model.
      later: not of step 1's records, which get NaN (wrpo_trainer.reference_known). */
static void wrpo__set_reference(wrpo__arena *temp, wrpo_trainer *t, const wrpo__set *set, wrpo_model *ref, bool later) {
    const int64_t *batch, n = later ? wrpo__next_batch(t, &batch) : 0;      /* it begins t->order */
    for (int64_t i = 0; i < n * set->K; i++) set->ref[batch[i / set->K] * set->K + i % set->K] = NAN;
    wrpo__logprobs(temp, ref, set->data, later ? t->order : NULL, n, set->N - n, t->desc.micro_tokens, set->ref, set->K,
                   NULL);
}
/* 3. The workspace; in training also gradients and moments. recompute, logits: as in wrpo_bytes. */
static wrpo__shape wrpo__train_shape(const wrpo_ctx *ctx, const wrpo_config *c, int64_t recompute, bool logits,
                                     int64_t rows) {
    const int64_t L = c->num_hidden_layers;
    return (wrpo__shape){.rows = rows, .chunk = wrpo__head_chunk(ctx, c, rows), .logits = logits, .train = true,
                         .recompute = recompute < 0 ? L : WRPO__MIN(recompute, L)};
}
static void wrpo__trainer_memory(wrpo_trainer *t, bool train, int64_t recompute, bool logits) {
    const wrpo_backend *be = t->ctx->desc.backend;
    wrpo__shape shape = wrpo__train_shape(t->ctx, &t->model->config, recompute, logits, t->rows);
    shape.train = train;
    t->run = wrpo__workspace_new(t->arena, t->model, &shape);
    t->start = wrpo__now();
    if (!train) return;
    const wrpo__sharding split = t->split = wrpo__sharding_of(t->ctx, t->model->count, t->desc.moments);
    t->grads = wrpo__device_alloc(t->arena, split.gradients, "gradients");
    t->exp_avg = wrpo__device_alloc(t->arena, split.moments, "first moments");
    t->exp_avg_sq = wrpo__device_alloc(t->arena, split.moments, "second moments");
    if (split.moving) t->moving = wrpo__device_alloc(t->arena, split.moving, "what moves between ranks");
    t->sumsq = wrpo__device_alloc(t->arena, sizeof *t->sumsq, "gradient norm");
    be->zero(t->ctx->dev, t->exp_avg, split.moments);
    be->zero(t->ctx->dev, t->exp_avg_sq, split.moments);
}
static wrpo_trainer *wrpo__trainer_new(wrpo__arena *arena, wrpo_model *policy, const wrpo_data *data,
                                       const wrpo_train_desc *desc) {
    wrpo_trainer *t = wrpo__trainer_begin(arena, policy, data, desc, true);
    const wrpo_train_desc *d = &t->desc;
    if (d->out_dir || d->ref_dir || d->resume || d->save.dir)
        wrpo__fail_arg("wrpo_trainer_new works in memory: want out_dir, ref_dir, resume and save.dir of NULL, or "
                       "wrpo_trainer_open");
    wrpo__arena *temp = wrpo__sub_arena(arena);
    if (t->train.ref) wrpo__set_reference(temp, t, &t->train, policy, false);
    if (t->eval.ref) wrpo__set_reference(temp, t, &t->eval, policy, false);
    wrpo__arena_clear(temp);
    wrpo__trainer_memory(t, true, d->recompute, false);
    wrpo__agree(t->ctx);
    return t;
}
WRPO_API wrpo_result wrpo_trainer_new(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
                                      wrpo_trainer **out) {
    *out = NULL;
    WRPO__ENTRY_ALL(policy->ctx, false, *out = wrpo__trainer_new(wrpo__current, policy, data, desc));
}
WRPO_API void wrpo_trainer_free(wrpo_trainer *t) {
    if (t) wrpo__arena_free(t->arena);
}

/* ---- evaluation ---- */
static wrpo_metrics wrpo__evaluate(wrpo_trainer *t, const wrpo__set *set, double alpha) {
    wrpo__tally tally = {.m = {.step = t->k, .steps = t->T}};
    const double begin = wrpo__now();
    wrpo__pass(t, set, NULL, NULL, set->N, alpha, false, &tally);
    wrpo__tally_end(&tally, t, alpha, begin);
    tally.m.grad_norm = tally.m.learning_rate = NAN;
    return tally.m;
}
static wrpo_metrics wrpo__trainer_eval(wrpo_trainer *t, const wrpo_data *data) {
    if (!data || (data != t->train.given && data != t->eval.given))
        wrpo__fail_arg("wrpo_trainer_eval: want the training data or desc.eval_data, whose reference is known");
    const double alpha = wrpo_alpha(t->desc.alpha_schedule, t->desc.alpha_power, t->desc.alpha, t->k, t->T);
    const wrpo_metrics m = wrpo__evaluate(t, data == t->train.given ? &t->train : &t->eval, alpha);
    if (t->log) t->log(t, &m, "eval_");
    return m;
}
WRPO_API wrpo_result wrpo_trainer_eval(wrpo_trainer *t, const wrpo_data *data, wrpo_metrics *m) {
    WRPO__ENTRY_ALL(t->ctx, true, *m = wrpo__trainer_eval(t, data));
}

/* --------------------------- Stop here if you only want to train on token ids: tests/02_order.sh cuts here. */

/* -------------------------------------------------------------------------------------------- >>files
   Reading and writing files. A file that is written gets its name when it is whole, or never. wrpo__disk_x looks at the
   file system, where all that the library writes is. wrpo__x is for what the caller gives it to read, and asks the
   context's wrpo_files if there are any. */
#include <sys/stat.h>
#ifdef _WIN32
#include <direct.h>
#include <io.h>
#include <process.h>
/* Not from windows.h, which makes macros of common words. */
__declspec(dllimport) int __stdcall MoveFileExA(const char *from, const char *to, unsigned long flags);
#define wrpo__mkdir(path) _mkdir(path)
#define wrpo__rmdir(path) _rmdir(path)
#define wrpo__rename(from, to) (MoveFileExA(from, to, 1 | 8 /* replace; wait for the disk */) ? 0 : -1)
#define wrpo__fsync(f) _commit(_fileno(f))
#define wrpo__process() _getpid()
#ifndef S_ISDIR
#define S_ISDIR(mode) (((mode) & _S_IFMT) == _S_IFDIR)
#endif
#else
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#define wrpo__mkdir(path) mkdir(path, 0777)
#define wrpo__rmdir(path) rmdir(path)
#define wrpo__fsync(f) fsync(fileno(f))
#define wrpo__rename(from, to) rename(from, to)
#define wrpo__process() getpid()
#endif
static char *wrpo__join(wrpo__arena *arena, const char *dir, const char *name) {
    const size_t n = strlen(dir);
    return wrpo__format(arena, n && dir[n - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}
static const char *wrpo__basename(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
static bool wrpo__disk_exists(const char *path) { struct stat st; return stat(path, &st) == 0; }
static bool wrpo__disk_is_dir(const char *path) { struct stat st; return stat(path, &st) == 0 && S_ISDIR(st.st_mode); }
typedef struct wrpo__file {
    const char *path; const unsigned char *data; size_t size;
    bool mapped; FILE *in;  /* in: while it is read */
    const wrpo_files *files; void *handle;  /* whom the bytes belong to; NULL: not a caller's */
} wrpo__file;
static void wrpo__file_drop(void *p) {
    wrpo__file *f = p;
    if (f->in) fclose(f->in);
    f->in = NULL;
    if (f->files && f->files->close) f->files->close(f->handle, f->data, f->files->user);
#ifndef _WIN32
    if (f->mapped) munmap((void *)(uintptr_t)f->data, f->size);
#endif
}
static wrpo__file *wrpo__file_new(wrpo__arena *arena, const char *path) {
    wrpo__file *f = WRPO__NEW(arena, wrpo__file);
    f->path = wrpo__strndup(arena, path, strlen(path));
    f->data = (const unsigned char *)"";
    wrpo__on_free(arena, wrpo__file_drop, f);
    return f;
}
/* The whole file, read-only, until the arena is freed: a mapping where there is one. */
static const wrpo__file *wrpo__disk_open(wrpo__arena *arena, const char *path) {
    wrpo__file *f = wrpo__file_new(arena, path);
    wrpo__text t = {.arena = arena};
    if (wrpo__disk_is_dir(path)) wrpo__fail_io("%s: want a file, found a directory", path);
    f->in = fopen(path, "rb");
    if (!f->in) wrpo__fail_io("%s: cannot be opened: %s", path, strerror(errno));
#ifndef _WIN32
    struct stat st;
    if (fstat(fileno(f->in), &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fileno(f->in), 0);
        if (p == MAP_FAILED) wrpo__fail_io("%s: cannot be mapped: %s", path, strerror(errno));
        f->data = p;
        f->size = (size_t)st.st_size;
        f->mapped = true;
    }
#endif
    while (!f->mapped) {  /* a pipe, a terminal, no mappings: read to its end */
        char part[1 << 14];
        const size_t n = fread(part, 1, sizeof part, f->in);
        wrpo__text_add(&t, part, n);
        if (n == 0 && !ferror(f->in)) break;
        if (n == 0 && errno != EINTR) wrpo__fail_io("%s: cannot be read: %s", path, strerror(errno));
        clearerr(f->in);
    }
    fclose(f->in);
    f->in = NULL;
    if (!f->mapped) f->data = (const unsigned char *)t.data;
    if (!f->mapped) f->size = t.size;
    return f;
}
typedef struct wrpo__name { char *text; } wrpo__name;
static int wrpo__by_name(const void *a, const void *b) {
    return strcmp(((const wrpo__name *)a)->text, ((const wrpo__name *)b)->text);
}
static void wrpo__add_name(wrpo__arena *arena, wrpo__name **names, const char *text) {
    const wrpo__name name = {wrpo__strndup(arena, text, strlen(text))};
    stbds_arrput(*names, name);
}
#ifndef _WIN32
static void wrpo__dir_close(void *p) { closedir(p); }
#endif
/* The names in a directory, sorted; an stb_ds array. */
static wrpo__name *wrpo__disk_list(wrpo__arena *arena, const char *dir) {
    wrpo__name *names = NULL;
#ifdef _WIN32
    struct _finddata_t e;
    const intptr_t h = _findfirst(wrpo__join(arena, dir, "*"), &e);
    if (h == -1) wrpo__fail_io("%s: cannot be listed: %s", dir, strerror(errno));
    do wrpo__add_name(arena, &names, e.name); while (_findnext(h, &e) == 0);
    _findclose(h);
#else
    wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__dir_close, NULL);
    DIR *d = owner->p = opendir(dir);
    if (!d) wrpo__fail_io("%s: cannot be listed: %s", dir, strerror(errno));
    for (struct dirent *e = readdir(d); e; e = readdir(d)) wrpo__add_name(arena, &names, e->d_name);
    owner->p = NULL;
    closedir(d);
#endif
    if (names) qsort(names, (size_t)stbds_arrlen(names), sizeof *names, wrpo__by_name);
    return names;
}
static const wrpo_files *wrpo__files(void) {  /* the current context's; NULL: it reads the file system */
    const wrpo_files *files = &wrpo__current->ctx->desc.files;
    return files->open ? files : NULL;
}
static bool wrpo__exists(const char *path) {
    const wrpo_files *files = wrpo__files();
    if (!files) return wrpo__disk_exists(path);
    size_t size;
    void *handle = NULL;
    const void *data = files->open(path, &size, &handle, files->user);
    if (data && files->close) files->close(handle, data, files->user);
    return data != NULL;
}
/* Among wrpo_files, a path that names no file is that of a directory. */
static bool wrpo__is_dir(const char *path) { return wrpo__files() ? !wrpo__exists(path) : wrpo__disk_is_dir(path); }
static const wrpo__file *wrpo__open_file(wrpo__arena *arena, const char *path) {
    const wrpo_files *files = wrpo__files();
    if (!files) return wrpo__disk_open(arena, path);
    wrpo__file *f = wrpo__file_new(arena, path);
    const void *data = files->open(path, &f->size, &f->handle, files->user);
    if (!data) wrpo__fail_io("%s: cannot be opened: wrpo_desc.files has no such file", path);
    f->data = data;
    f->files = files;
    return f;
}
static wrpo__name *wrpo__list_dir(wrpo__arena *arena, const char *dir) {
    const wrpo_files *files = wrpo__files();
    wrpo__name *names = NULL;
    if (!files) return wrpo__disk_list(arena, dir);
    for (int64_t i = 0; files->list; i++) {
        const char *name = files->list(dir, i, files->user);
        if (!name) break;
        wrpo__add_name(arena, &names, name);
    }
    return names;
}
/* The names in the directory of `path` outlive a power cut once it is synced. Windows' rename waits for that itself. */
static void wrpo__sync_parent(const char *path) {
#ifndef _WIN32
    char dir[4096];
    const char *slash = strrchr(path, '/');
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    const int d = open(dir, O_RDONLY);
    if (d >= 0) fsync(d);  /* not every file system can */
    if (d >= 0) close(d);
#else
    (void)path;
#endif
}
/* Rank 0 alone writes. On the others these do nothing, so that all ranks go the same way. */
static void wrpo__make_dir(wrpo_ctx *ctx, const char *path) {  /* and its parents; one that exists is fine */
    char part[4096];
    if (wrpo__my_rank(ctx)) return;
    const size_t n = strlen(path);
    if (n == 0 || n >= sizeof part) wrpo__fail_io("\"%.200s\": not a usable path for a directory", path);
    for (size_t i = 1; i <= n; i++) {
        if (i < n && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
        const int r = wrpo__mkdir(part);
        const int e = errno == EEXIST ? ENOTDIR : errno;
        if (r == 0) wrpo__sync_parent(part);
        else if (!wrpo__disk_is_dir(part)) wrpo__fail_io("%s: cannot be made: %s", part, strerror(e));
    }
}
static void wrpo__remove(wrpo_ctx *ctx, const char *path) {
    if (!wrpo__my_rank(ctx) && remove(path) != 0 && errno != ENOENT)
        wrpo__fail_io("%s: cannot be removed: %s", path, strerror(errno));
}
/* A checkpoint and its files. The state is the first to go: without it the directory is no checkpoint. */
#define WRPO__STATE_FILE "trainer_state.wrpo"
static void wrpo__remove_dir(wrpo__arena *arena, const char *dir) {
    const wrpo__name *names = wrpo__disk_list(arena, dir);
    wrpo__remove(arena->ctx, wrpo__join(arena, dir, WRPO__STATE_FILE));
    for (int64_t i = 0; i < stbds_arrlen(names); i++)
        if (strcmp(names[i].text, ".") && strcmp(names[i].text, ".."))
            wrpo__remove(arena->ctx, wrpo__join(arena, dir, names[i].text));
    wrpo__rmdir(dir);
}

#define WRPO__PART ".wrpo-%lu.part"
/* A file that gets its name only when it is whole: written under a part name, synced, renamed. */
typedef struct wrpo__writer { wrpo_ctx *ctx; char *path, *part; FILE *f; bool waits; } wrpo__writer;
static void wrpo__writer_drop(void *p) {
    wrpo__writer *w = p;
    const bool there = w->f || w->waits;
    if (w->f) fclose(w->f);
    if (there) remove(w->part);
    w->f = NULL;
    w->waits = false;
}
_Noreturn static void wrpo__writer_fail(const wrpo__writer *w, int e) {
    wrpo__fail_io("%s: cannot be written: %s", w->path, strerror(e));
}
static wrpo__writer *wrpo__create(wrpo__arena *arena, const char *path) {
    wrpo__writer *w = WRPO__NEW(arena, wrpo__writer);
    w->ctx = arena->ctx;
    w->path = wrpo__strndup(arena, path, strlen(path));
    w->part = wrpo__format(arena, "%s" WRPO__PART, path, (unsigned long)wrpo__process());
    wrpo__on_free(arena, wrpo__writer_drop, w);
    if (wrpo__my_rank(w->ctx)) return w;
    w->f = fopen(w->part, "wb");
    if (!w->f) wrpo__writer_fail(w, errno);
    return w;
}
static void wrpo__write(wrpo__writer *w, const void *p, size_t n) {
    if (n && w->f && fwrite(p, 1, n, w->f) != n) wrpo__writer_fail(w, errno);
}
/* The file is whole and waits for its name. It is closed, so many can wait without a descriptor each. */
static void wrpo__finish(wrpo__writer *w) {
    if (!w->f) return;
    int e = fflush(w->f) == 0 ? 0 : errno;
    if (!e && wrpo__fsync(w->f) != 0 && errno != EINVAL && errno != ENOTSUP) e = errno;
    if (fclose(w->f) != 0 && !e) e = errno;
    w->f = NULL;
    w->waits = true;
    if (e) wrpo__writer_fail(w, e);
}
static void wrpo__publish(wrpo__writer *w) {
    if (!w->waits) return;
    errno = EIO;  /* for Windows, which does not set it */
    if (wrpo__rename(w->part, w->path) != 0) wrpo__writer_fail(w, errno);
    w->waits = false;
}
static void wrpo__commit(wrpo__writer *w) {
    wrpo__finish(w);
    wrpo__publish(w);
    wrpo__sync_parent(w->path);
}

/* --------------------------------------------------------------------------------------------- >>json
   RFC 8259, strictly: valid UTF-8, no byte order mark, no lone surrogate, no key twice in an object, one value and
   nothing after it. A node knows the name of its text, its line and its column, for errors. */
enum { WRPO__JSON_DEPTH = 256 };
static const wrpo_json *wrpo__first(const wrpo_json *parent) { return parent ? parent->child : NULL; }
#define WRPO__EACH(v, parent) for (const wrpo_json *v = wrpo__first(parent); v; v = v->next)  /* parent may be NULL */

static size_t wrpo__utf8_put(char *s, uint32_t c) {  /* writes up to 4 bytes; returns how many */
    static const unsigned char marks[] = {0, 0, 0xC0, 0xE0, 0xF0};  /* of the first of n bytes */
    const size_t n = 1u + (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);
    for (size_t i = n - 1; i > 0; i--) {
        s[i] = (char)(0x80 | (c & 0x3F));
        c >>= 6;
    }
    s[0] = (char)(c | marks[n]);
    return n;
}
static void wrpo__text_puts(wrpo__text *t, const char *s) { wrpo__text_add(t, s, strlen(s)); }
WRPO__PRINTF(2, 3) static void wrpo__text_printf(wrpo__text *t, const char *format, ...) {
    size_t n = 32;  /* a first guess; the second one is exact */
    for (bool fits = false; !fits;) {
        wrpo__text_room(t, n);
        va_list args;
        va_start(args, format);
        n = (size_t)vsnprintf(t->data + t->size, t->cap - t->size, format, args);
        va_end(args);
        fits = n < t->cap - t->size;
    }
    t->size += n;
}

/* With JSON's escapes, or those of what a sentence should not show. What is not UTF-8 becomes U+FFFD or '?'. */
static void wrpo__json_escape(wrpo__text *out, const char *s, size_t n, bool sentence) {
    static const char special[] = "\"\\\b\f\n\r\t", escape[] = "\"\\bfnrt";
    size_t done = 0;
    for (size_t i = 0, size; i < n; i += size) {
        const int32_t c = wrpo__utf8_get(s + i, n - i, &size);
        if (c >= 0x20 && (sentence ? c < 0x7F || c > 0xA0 : c != '"' && c != '\\')) continue;
        wrpo__text_add(out, s + done, i - done);
        done = i + size;
        const char *simple = c > 0 ? strchr(special, c) : NULL;
        if (c < 0) wrpo__text_puts(out, sentence ? "?" : "\xEF\xBF\xBD");
        else if (simple) wrpo__text_printf(out, "\\%c", escape[simple - special]);
        else wrpo__text_printf(out, "\\u%04x", (unsigned)c);
    }
    wrpo__text_add(out, s + done, n - done);
}
static void wrpo__json_quote(wrpo__text *out, const char *s, size_t n) {
    wrpo__text_puts(out, "\"");
    wrpo__json_escape(out, s, n, false);
    wrpo__text_puts(out, "\"");
}
static const char *wrpo__legible(const char *s, size_t n) {  /* foreign text for a sentence, cut to 80 bytes */
    wrpo__text out = {.arena = wrpo__current};
    size_t shown = WRPO__MIN(n, 80);
    while (shown < n && shown > 0 && (s[shown] & 0xC0) == 0x80) shown--;
    wrpo__json_escape(&out, s, shown, true);
    if (shown < n) wrpo__text_puts(&out, "...");
    return out.data;
}
/* "NAME:LINE:COLUMN: " and the sentence, or it alone if v was not read from a text. */
_Noreturn static void wrpo__fail_json(wrpo_result code, const wrpo_json *v, const char *text) {
    wrpo_ctx *ctx = wrpo__current->ctx;
    if (!v->name) wrpo__fail(ctx, code, "%s", text);
    wrpo__fail_at(ctx, code, v->line, v->column, "%s:%d:%d: %s", v->name, v->line, v->column, text);
}
#define wrpo__wrong(v, ...) wrpo__fail_json(WRPO_E_FORMAT, v, wrpo__format(wrpo__current, __VA_ARGS__))
#define wrpo__unsupported(v, ...) wrpo__fail_json(WRPO_E_UNSUPPORTED, v, wrpo__format(wrpo__current, __VA_ARGS__))

/* ---- read ---- */
typedef struct wrpo__json_in {
    wrpo__arena *arena;
    const char *name;
    const char *at, *end;
    int64_t line;
    const char *line_begin;  /* moved on by bytes that continue a code point: no columns */
    char *out;  /* for unescaped text */
} wrpo__json_in;

static int64_t wrpo__json_column(const wrpo__json_in *in) { return in->at - in->line_begin + 1; }
_Noreturn static void wrpo__json_stop(wrpo__json_in *in, const char *want, const char *found) {
    const int64_t column = wrpo__json_column(in);
    wrpo__fail_at(in->arena->ctx, WRPO_E_FORMAT, in->line, column, "%s:%lld:%lld: want %s, found %s", in->name,
            (long long)in->line, (long long)column, want, found);
}
_Noreturn static void wrpo__json_expect(wrpo__json_in *in, const char *want) {
    const size_t n = (size_t)(in->end - in->at);
    const char *found = "the end of the text";
    size_t size;
    const int32_t c = n ? wrpo__utf8_get(in->at, n, &size) : 0;
    if (n && c < 0)
        found = wrpo__format(in->arena, "byte 0x%02X, which is not UTF-8 here", (unsigned char)*in->at);
    else if (c == 0xFEFF) found = "a byte order mark";
    else if (n && c < 0x20) found = wrpo__format(in->arena, "the control character U+%04X", (unsigned)c);
    else if (n) {
        size_t word = 0;  /* NaN, True, undefined: shown whole */
        while (word < n && word < 24 && (in->at[word] | 32) >= 'a' && (in->at[word] | 32) <= 'z') word++;
        found = wrpo__format(in->arena, "'%s'", wrpo__legible(in->at, word ? word : size));
    }
    wrpo__json_stop(in, want, found);
}
static char wrpo__json_peek(const wrpo__json_in *in) { return in->at < in->end ? *in->at : 0; }  /* 0 is never valid */
static bool wrpo__json_take(wrpo__json_in *in, const char *any) {
    const char c = wrpo__json_peek(in);
    const bool found = c && strchr(any, c);
    in->at += found;
    return found;
}
static void wrpo__json_skip(wrpo__json_in *in, const char *c, const char *want) {
    if (!wrpo__json_take(in, c)) wrpo__json_expect(in, want);
}
static void wrpo__json_space(wrpo__json_in *in) {
    for (; in->at < in->end; in->at++) {
        const char c = *in->at;
        if (c != '\n' && c != ' ' && c != '\t' && c != '\r') return;
        if (c != '\n') continue;
        in->line++;
        in->line_begin = in->at + 1;
    }
}
static uint32_t wrpo__json_hex4(wrpo__json_in *in) {
    uint32_t c = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        const char d = wrpo__json_peek(in), low = (char)(d | 32);
        if (d >= '0' && d <= '9') c = c << 4 | (uint32_t)(d - '0');
        else if (low >= 'a' && low <= 'f') c = c << 4 | (uint32_t)(low - 'a' + 10);
        else wrpo__json_expect(in, "four hexadecimal digits after \\u");
    }
    return c;
}
/* After \u; of a surrogate pair, both halves. */
static uint32_t wrpo__json_unicode(wrpo__json_in *in) {
    const char *begin = in->at - 2;
    const uint32_t c = wrpo__json_hex4(in);
    if (c < 0xD800 || c > 0xDFFF) return c;
    if (c < 0xDC00 && in->end - in->at >= 2 && in->at[0] == '\\' && in->at[1] == 'u') {
        in->at += 2;
        const uint32_t low = wrpo__json_hex4(in);
        if (low >= 0xDC00 && low <= 0xDFFF) return 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    in->at = begin;
    wrpo__json_stop(in, "both halves of a surrogate pair", wrpo__format(in->arena, "\\u%04X alone", (unsigned)c));
}
/* A string, after its opening quote. Unescaped text is never longer than its source: its NUL replaces a quote, and a
   byte follows every number. So one buffer of the text's size and 1 holds all strings, keys and numbers. */
static const char *wrpo__json_string(wrpo__json_in *in, size_t *size) {
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    char *begin = in->out;
    for (;;) {
        const char *run = in->at;
        while (in->at < in->end && (unsigned char)*in->at >= 0x20 && *in->at != '"' && *in->at != '\\') {
            size_t bytes;
            if (wrpo__utf8_get(in->at, (size_t)(in->end - in->at), &bytes) < 0) break;
            in->line_begin += bytes - 1;
            in->at += bytes;
        }
        memcpy(in->out, run, (size_t)(in->at - run));
        in->out += in->at - run;
        if (wrpo__json_take(in, "\"")) break;
        wrpo__json_skip(in, "\\", "a string's text or its closing '\"'");
        const char c = wrpo__json_peek(in), *simple = c ? strchr(escapes, c) : NULL;
        if (!simple && c != 'u') wrpo__json_expect(in, "one of \" \\ / b f n r t u after a backslash");
        in->at++;
        if (simple) *in->out++ = meant[simple - escapes];
        else in->out += wrpo__utf8_put(in->out, wrpo__json_unicode(in));
    }
    *size = (size_t)(in->out - begin);
    *in->out++ = 0;
    return begin;
}
/* The nearest double, whatever the locale's decimal point. */
static double wrpo__json_double(wrpo__arena *arena, const char *s, size_t n) {
    const char *point = memchr(s, '.', n), *end = s + n;
    if (!point) return strtod(wrpo__strndup(arena, s, n), NULL);
    return strtod(wrpo__format(arena, "%.*s%s%.*s", (int)(point - s), s, localeconv()->decimal_point,
            (int)(end - point - 1), point + 1), NULL);
}
static void wrpo__json_digits(wrpo__json_in *in) {
    static const char digits[] = "0123456789";
    wrpo__json_skip(in, digits, "a digit");
    while (wrpo__json_take(in, digits)) {}
}
static void wrpo__json_read_number(wrpo__json_in *in, wrpo_json *v) {
    const char *begin = in->at;
    wrpo__json_take(in, "-");
    if (!wrpo__json_take(in, "0")) wrpo__json_digits(in);
    const char *point = in->at;
    if (wrpo__json_take(in, ".")) wrpo__json_digits(in);
    if (wrpo__json_take(in, "eE")) {
        wrpo__json_take(in, "+-");
        wrpo__json_digits(in);
    }
    v->kind = WRPO_JSON_NUMBER;
    v->size = (size_t)(in->at - begin);
    v->text = memcpy(in->out, begin, v->size);
    in->out[v->size] = 0;
    in->out += v->size + 1;
    errno = 0;
    const long long integer = strtoll(v->text, NULL, 10);
    v->exact = in->at == point && errno == 0;
    if (v->exact) v->integer = integer;
    v->number = v->integer ? (double)v->integer : wrpo__json_double(in->arena, begin, v->size);  /* -0 too */
}
static bool wrpo__json_word(wrpo__json_in *in, const char *word) {
    const size_t n = strlen(word);
    const bool found = (size_t)(in->end - in->at) >= n && !memcmp(in->at, word, n);
    if (found) in->at += n;
    return found;
}
static size_t wrpo__table_size(int64_t n) {  /* of a hash table that n things fill by half at most */
    size_t slots = 64;
    while (slots < (size_t)n * 2) slots *= 2;
    return slots;
}
/* Every key once. Keys made to collide, which would take quadratic time, are refused. */
static void wrpo__json_unique(const wrpo__json_in *in, const wrpo_json *object) {
    const wrpo_json *small[64] = {0}, **table = small;
    const size_t slots = wrpo__table_size(object->count);
    if (slots > 64) table = memset(wrpo__raw(in->arena, slots, sizeof *table), 0, slots * sizeof *table);
    int64_t steps = 16 * object->count + 1024;
    WRPO__EACH(b, object) {
        size_t i = wrpo__hash(0, b->key, b->key_size) & (slots - 1);
        for (const wrpo_json *a; (a = table[i]) != NULL; i = (i + 1) & (slots - 1)) {
            if (a->key_size == b->key_size && !memcmp(a->key, b->key, a->key_size))
                wrpo__wrong(b, "want every key once, found \"%s\" again (first on line %d)",
                        wrpo__legible(b->key, b->key_size), a->line);
            if (--steps == 0)
                wrpo__unsupported(object, "want keys as texts have them, found %lld made to collide",
                        (long long)object->count);
        }
        table[i] = b;
    }
    if (table != small) wrpo__block_free(table);
}
static void wrpo__json_value(wrpo__json_in *in, wrpo_json *v, int depth);
static void wrpo__json_members(wrpo__json_in *in, wrpo_json *v, int depth) {  /* from bracket to bracket */
    const bool object = v->kind == WRPO_JSON_OBJECT;
    wrpo_json **tail = &v->child;
    if (depth == WRPO__JSON_DEPTH) wrpo__json_stop(in, "at most 256 levels of nesting", "one more");
    in->at++;
    wrpo__json_space(in);
    bool more = wrpo__json_peek(in) != (object ? '}' : ']');
    while (more) {
        wrpo_json *member = *tail = WRPO__NEW(in->arena, wrpo_json);
        tail = &member->next;
        v->count++;
        if (object) {
            wrpo__json_space(in);
            wrpo__json_skip(in, "\"", "a key in double quotes");
            member->key = wrpo__json_string(in, &member->key_size);
            wrpo__json_space(in);
            wrpo__json_skip(in, ":", "':' after a key");
        }
        wrpo__json_value(in, member, depth + 1);
        more = wrpo__json_take(in, ",");
    }
    wrpo__json_skip(in, object ? "}" : "]", object ? "',' or '}'" : "',' or ']'");
    if (object) wrpo__json_unique(in, v);
}
/* One value, and the space around it. */
static void wrpo__json_value(wrpo__json_in *in, wrpo_json *v, int depth) {
    wrpo__json_space(in);
    v->name = in->name;
    v->line = (int32_t)WRPO__MIN(in->line, INT32_MAX);
    v->column = (int32_t)wrpo__json_column(in);
    const char c = wrpo__json_peek(in);
    if (wrpo__json_take(in, "\"")) {
        v->kind = WRPO_JSON_STRING;
        v->text = wrpo__json_string(in, &v->size);
    } else if (c == '[' || c == '{') {
        v->kind = c == '[' ? WRPO_JSON_ARRAY : WRPO_JSON_OBJECT;
        wrpo__json_members(in, v, depth);
    } else if (c == '-' || (c >= '0' && c <= '9')) wrpo__json_read_number(in, v);
    else if (wrpo__json_word(in, "true")) v->kind = WRPO_JSON_BOOL, v->boolean = true;
    else if (wrpo__json_word(in, "false")) v->kind = WRPO_JSON_BOOL;
    else if (!wrpo__json_word(in, "null")) wrpo__json_expect(in, "a value");
    wrpo__json_space(in);
}
/* name: what errors call the text; it outlives the tree. line: the text's in a file of JSON lines, else 1. */
static wrpo_json *wrpo__json_parse(wrpo__arena *arena, const char *name, int64_t line, const char *text, size_t n) {
    if (n >= INT32_MAX) wrpo__fail_unsupported("%s: want less than 2 GiB of JSON, found %zu bytes", name, n);
    if (!n) text = "";
    wrpo__json_in in = {arena, name, text, text + n, line, text, wrpo__raw(arena, n + 1, 1)};
    wrpo_json *root = WRPO__NEW(arena, wrpo_json);
    wrpo__json_value(&in, root, 0);
    if (in.at != in.end) wrpo__json_expect(&in, "the end of the text");
    return root;
}
static wrpo_json *wrpo__json_file(wrpo__arena *arena, const char *path) {
    const wrpo__file *f = wrpo__open_file(arena, path);
    return wrpo__json_parse(arena, path, 1, (const char *)f->data, f->size);
}

/* ---- use: values as they are wanted, or "NAME:LINE:COLUMN: KEY: want ..., found ..." ---- */
WRPO_API const wrpo_json *wrpo_json_get(const wrpo_json *object, const char *key) {
    if (!object || object->kind != WRPO_JSON_OBJECT) return NULL;
    const size_t n = strlen(key);
    WRPO__EACH(v, object)
        if (v->key_size == n && !memcmp(v->key, key, n)) return v;
    return NULL;
}
static const wrpo_json *wrpo__present(const wrpo_json *object, const char *key) {  /* NULL: absent or null */
    const wrpo_json *v = wrpo_json_get(object, key);
    return v && v->kind != WRPO_JSON_NULL ? v : NULL;
}
static bool wrpo__json_is(const wrpo_json *v, const char *text) {
    return v && v->kind == WRPO_JSON_STRING && v->size == strlen(text) && !memcmp(v->text, text, v->size);
}
/* Which of the words s[n] is, from 1; 0: none. They end in a space or a comma. */
static int wrpo__word_of(const char *words, const char *s, size_t n) {
    size_t size;
    for (int k = 1; *words; k++) {
        size = strcspn(words + 1, " ,") + 1;
        if (size == n && !memcmp(words, s, n)) return k;
        words += size + (words[size] != 0);
    }
    return 0;
}
static bool wrpo__listed(const char *words, const char *word) { return wrpo__word_of(words, word, strlen(word)); }
static const char *wrpo__keys_text(const wrpo_json *object) {  /* "a", "b": for the end of a sentence */
    wrpo__text out = {.arena = wrpo__current};
    for (const wrpo_json *v = object->child; v && out.size < 160; v = v->next)
        wrpo__text_printf(&out, "%s\"%s\"", v == object->child ? "" : ", ", wrpo__legible(v->key, v->key_size));
    return out.data ? out.data : "nothing";
}
static bool wrpo__json_same(const wrpo_json *a, const wrpo_json *b) {
    if (!a || !b || a->kind != b->kind || a->count != b->count) return a == b;
    if (a->kind == WRPO_JSON_STRING || a->kind == WRPO_JSON_NUMBER)
        return a->size == b->size && memcmp(a->text, b->text, a->size) == 0;
    if (a->kind == WRPO_JSON_BOOL) return a->boolean == b->boolean;
    const wrpo_json *x = a->child, *y = b->child;
    for (; x; x = x->next, y = y->next)
        if (!wrpo__json_same(x, a->kind == WRPO_JSON_OBJECT ? wrpo_json_get(b, x->key) : y)) return false;
    return true;
}
static const char *const wrpo__json_kinds[] = {
    "null", "true or false", "a number", "a string", "an array", "an object"};
static const char *wrpo__found(const wrpo_json *v) {  /* for the end of a sentence */
    if (v->kind == WRPO_JSON_NULL) return "null";
    if (v->kind == WRPO_JSON_BOOL) return v->boolean ? "true" : "false";
    if (v->kind == WRPO_JSON_NUMBER) return wrpo__legible(v->text, v->size);
    if (v->kind == WRPO_JSON_STRING) return wrpo__format(wrpo__current, "\"%s\"", wrpo__legible(v->text, v->size));
    return wrpo__format(wrpo__current, "%s of %lld", wrpo__json_kinds[v->kind], (long long)v->count);
}
/* what NULL: the value is called by its key. */
_Noreturn static void wrpo__refuse(const wrpo_json *v, const char *what, const char *want) {
    if (!what) what = v->key ? wrpo__legible(v->key, v->key_size) : "JSON";
    wrpo__wrong(v, "%s: want %s, found %s", what, want, wrpo__found(v));
}
_Noreturn static void wrpo__load_refuse(const char *what, const wrpo_json *v) {
    wrpo__unsupported(v, "%.80s %s is not supported", what, wrpo__found(v));
}
static const wrpo_json *wrpo__want(const wrpo_json *v, wrpo_json_kind kind, const char *what) {
    if (v->kind != kind) wrpo__refuse(v, what, wrpo__json_kinds[kind]);
    return v;
}
/* A member of this kind; NULL: absent or null. */
static const wrpo_json *wrpo__maybe(const wrpo_json *object, const char *key, wrpo_json_kind kind) {
    const wrpo_json *v = wrpo__present(wrpo__want(object, WRPO_JSON_OBJECT, NULL), key);
    return v ? wrpo__want(v, kind, NULL) : NULL;
}
static bool wrpo__switch(const wrpo_json *object, const char *key, bool otherwise) {
    const wrpo_json *v = wrpo__maybe(object, key, WRPO_JSON_BOOL);
    return v ? v->boolean : otherwise;
}
/* A member that must be there, of this kind. */
static const wrpo_json *wrpo__need(const wrpo_json *object, const char *key, wrpo_json_kind kind) {
    const wrpo_json *v = wrpo_json_get(wrpo__want(object, WRPO_JSON_OBJECT, NULL), key);
    if (!v) wrpo__wrong(object, "%s: want %s, found no such key in this object", key, wrpo__json_kinds[kind]);
    return wrpo__want(v, kind, NULL);
}
static int64_t wrpo__integer(const wrpo_json *v, long long low, long long high, const char *what) {
    if (v->kind != WRPO_JSON_NUMBER || !v->exact || v->integer < low || v->integer > high)
        wrpo__refuse(v, what, wrpo__format(wrpo__current, "an integer from %lld to %lld", low, high));
    return v->integer;
}
static double wrpo__real(const wrpo_json *v, const char *what) {
    if (v->kind != WRPO_JSON_NUMBER || !isfinite(v->number)) wrpo__refuse(v, what, "a finite number");
    return v->number;
}

/* A new last member: a shallow copy, as a node is in one list only. key NULL: its own. */
static wrpo_json *wrpo__json_put(wrpo_json *parent, const wrpo_json *v, const char *key) {
    wrpo_json **tail = &parent->child, *copy = WRPO__NEW(wrpo__current, wrpo_json);
    while (*tail) tail = &(*tail)->next;
    *tail = copy;
    *copy = *v;
    copy->next = NULL;
    if (key) copy->key = key;
    if (key) copy->key_size = strlen(key);
    parent->count++;
    return copy;
}

/* ---- write ---- */
/* The fewest digits that read back as the finite x; returns their count. |x| = d.ddd * 10^power */
static int wrpo__json_digits_of(double x, char digits[24], int *power) {
    char s[48];
    int n = 0, precision = 0;
    do snprintf(s, sizeof s, "%.*e", precision, x); while (strtod(s, NULL) != x && ++precision < 17);
    const char *p = s;
    for (; *p != 'e'; p++)  /* skips the sign and a decimal point of any locale */
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    digits[n] = 0;
    *power = (int)strtol(p + 1, NULL, 10);
    if (n < 17) return n;
    /* Below a power of two doubles are closer than above it: the 16 digits rounded up may read back as x where the
       nearest 16 do not. */
    char up[24];
    int i = 15;
    memcpy(up, digits, 16);
    while (i >= 0 && up[i] == '9') up[i--] = '0';
    if (i >= 0) up[i]++;
    snprintf(s, sizeof s, "%.16se%d", up, *power - 15);
    if (strtod(s, NULL) != fabs(x)) return n;
    memcpy(digits, up, 16);
    digits[16] = 0;
    return 16;
}
/* A finite x: 5, 1e-7, or as Python's repr: 5.0, 1e-07. */
static void wrpo__double_write(wrpo__text *out, double x, bool python) {
    char digits[24];
    int power;
    const int n = wrpo__json_digits_of(x, digits, &power);
    if (signbit(x)) wrpo__text_puts(out, "-");
    if (power < (python ? -4 : -5) || power > (python ? 15 : 16)) {
        wrpo__text_printf(out, n > 1 ? "%.1s.%s" : "%.1s%s", digits, digits + 1);
        wrpo__text_printf(out, python ? "e%+03d" : "e%d", power);
    } else if (power < 0) wrpo__text_printf(out, "0.%.*s%s", -power - 1, "00000", digits);
    else if (power < n - 1) wrpo__text_printf(out, "%.*s.%s", power + 1, digits, digits + power + 1);
    else wrpo__text_printf(out, "%s%.*s%s", digits, power - n + 1, "0000000000000000", python ? ".0" : "");
}
static void wrpo__json_number(wrpo__text *out, double x) {  /* NaN and infinity become null */
    if (isfinite(x)) wrpo__double_write(out, x, false);
    else wrpo__text_puts(out, "null");
}
static const char *wrpo__number_text(double x) {
    wrpo__text text = {.arena = wrpo__current};
    wrpo__json_number(&text, x + 0.0);  /* -0 becomes 0 */
    return text.data;
}
static void wrpo__json_write(wrpo__text *out, const wrpo_json *v) {  /* on one line; numbers as they were written */
    const bool object = v->kind == WRPO_JSON_OBJECT, array = v->kind == WRPO_JSON_ARRAY;
    if (v->kind == WRPO_JSON_NUMBER) wrpo__text_add(out, v->text, v->size);
    else if (v->kind == WRPO_JSON_STRING) wrpo__json_quote(out, v->text, v->size);
    else if (!object && !array) wrpo__text_puts(out, wrpo__found(v));
    if (!object && !array) return;
    wrpo__text_puts(out, object ? "{" : "[");
    WRPO__EACH(m, v) {
        if (object) wrpo__json_quote(out, m->key, m->key_size), wrpo__text_puts(out, ": ");
        wrpo__json_write(out, m);
        if (m->next) wrpo__text_puts(out, ", ");
    }
    wrpo__text_puts(out, object ? "}" : "]");
}

/* ---- the public face ---- */
static wrpo_json *wrpo__json_new(wrpo__arena *arena, const char *name, const char *text, size_t size) {
    if (!name) name = "JSON";
    wrpo_json *root = wrpo__raw(arena, 1, sizeof *root);  /* its block knows the arena */
    *root = *wrpo__json_parse(arena, wrpo__strndup(arena, name, strlen(name)), 1, text, size);
    return root;
}
static char *wrpo__json_line(wrpo_ctx *ctx, const wrpo_json *value) {
    wrpo__text t = {.arena = wrpo__current};
    wrpo__json_write(&t, value);
    return wrpo__handout(ctx, t.data, t.size);
}
WRPO_API wrpo_result wrpo_json_parse(wrpo_ctx *ctx, const char *name, const char *text, size_t size, wrpo_json **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__json_new(wrpo__current, name, text, size));
}
WRPO_API void wrpo_json_free(wrpo_ctx *ctx, wrpo_json *root) {
    (void)ctx;
    if (root) wrpo__arena_free(wrpo__block_of(root)->arena);
}
WRPO_API wrpo_result wrpo_json_text(wrpo_ctx *ctx, const wrpo_json *value, char **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, true, *out = wrpo__json_line(ctx, value));
}
WRPO_API wrpo_result wrpo_json_quote(wrpo_ctx *ctx, const char *text, size_t size, char **out) {
    const wrpo_json value = {.kind = WRPO_JSON_STRING, .text = text, .size = size};
    return wrpo_json_text(ctx, &value, out);
}
/* ------------------------------------------------------------------------------------------ >>tensors
   safetensors: 8 bytes N, little-endian; N bytes of JSON; the data. The JSON names every tensor with its dtype, shape
   and [begin, end) in the data, which the tensors cover without a hole or an overlap. Opening reads headers only. */
#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "wrpo.h: checkpoints are little-endian, and so must the machine be"
#endif
#define WRPO__SINGLE_FILE "model.safetensors"
#define WRPO__INDEX_FILE "model.safetensors.index.json"
#define WRPO__SHARD_FILE "model-%05lld-of-%05lld.safetensors"
enum { WRPO__HEADER_MAX = 100000000, WRPO__CHUNK = 1 << 20 /* floats written at a time */ };

/* ---- dtypes: those of wrpo_dtype, in its order, with PyTorch's names; then the others of the format ---- */
static const struct wrpo__dtype { const char *name, *torch; int bits; } wrpo__dtypes[] = {
    {"F32", "float32", 32}, {"F32", "float32", 32}, {"BF16", "bfloat16", 16}, {"F16", "float16", 16},
    {"F64", "", 64}, {"I64", "", 64}, {"I32", "", 32}, {"I16", "", 16}, {"I8", "", 8}, {"U64", "", 64}, {"U32", "", 32},
    {"U16", "", 16}, {"U8", "", 8}, {"BOOL", "", 8}, {"C64", "", 64}, {"F8_E5M2", "", 8}, {"F8_E4M3", "", 8},
    {"F8_E8M0", "", 8}, {"F8_E4M3FNUZ", "", 8}, {"F8_E5M2FNUZ", "", 8}, {"F6_E2M3", "", 6}, {"F6_E3M2", "", 6},
    {"F4", "", 4}};
static int wrpo__dtype_index(const char *name) {  /* 0: no such dtype */
    for (int i = 1; i < WRPO__COUNT(wrpo__dtypes); i++)
        if (!strcmp(wrpo__dtypes[i].name, name)) return i;
    return 0;
}
static const char *wrpo__dtype_name(wrpo_dtype dtype) { return wrpo__dtypes[dtype].name; }
/* "FILE: TENSOR: " and the sentence. */
#define wrpo__fail_tensor(code, t, format, ...) \
    wrpo__fail(wrpo__current->ctx, code, "%s: %.80s: " format, (t)->file, (t)->name, __VA_ARGS__)
#define wrpo__wrong_tensor(t, ...) wrpo__fail_tensor(WRPO_E_FORMAT, t, __VA_ARGS__)
/* WRPO_DTYPE_DEFAULT: wrpo__to_float cannot read it. */
static wrpo_dtype wrpo__float_dtype(const wrpo_tensor_info *t) {
    const int i = wrpo__dtype_index(t->dtype);
    return i <= WRPO_DTYPE_F16 ? (wrpo_dtype)i : WRPO_DTYPE_DEFAULT;
}
static wrpo_dtype wrpo__need_float(const wrpo_tensor_info *t) {
    const wrpo_dtype dtype = wrpo__float_dtype(t);
    if (!dtype) wrpo__fail_tensor(WRPO_E_UNSUPPORTED, t, "want F32, F16 or BF16, found %s", t->dtype);
    return dtype;
}

/* Conversions move bit patterns: no signalling NaN is quieted, no mode flushes a denormal that the result can tell. */
static uint16_t wrpo__float_to_f16(float x) {
    const uint32_t u = wrpo__float_bits(x), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | (a >> 13 & 0x3FFu));
    if (a >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);  /* from 65520 on: infinity */
    if (a < 0x38800000u)  /* a multiple of 2^-24 in F16, as is any float from 0.5 to 1 */
        return (uint16_t)(sign | (wrpo__float_bits(fabsf(x) + 0.5f) - 0x3F000000u));
    return (uint16_t)(sign | ((a - (112u << 23) + 0xFFFu + (a >> 13 & 1)) >> 13));
}
static uint32_t wrpo__widen(wrpo_dtype dtype, uint16_t h) {  /* the bits of the float */
    return dtype == WRPO_DTYPE_BF16 ? (uint32_t)h << 16 : wrpo__f16_to_bits(h);
}
/* dst[count] = elements [first, first + count) of t, exactly. */
static void wrpo__to_float(float *dst, const wrpo_tensor_info *t, int64_t first, int64_t count) {
    const wrpo_dtype dtype = wrpo__need_float(t);
    if (count <= 0) return;
    const unsigned char *src = (const unsigned char *)t->data + (size_t)first * wrpo__dtype_size(dtype);
    if (dtype == WRPO_DTYPE_F32) { memcpy(dst, src, (size_t)count * 4); return; }
    for (int64_t i = 0; i < count; i++) {
        uint16_t h;
        memcpy(&h, src + 2 * i, 2);
        const uint32_t bits = wrpo__widen(dtype, h);
        memcpy(dst + i, &bits, 4);
    }
}
static void wrpo__to_finite(float *dst, const wrpo_tensor_info *t, int64_t first, int64_t count) {
    wrpo__to_float(dst, t, first, count);
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(dst[i]))
            wrpo__fail_tensor(WRPO_E_NOT_FINITE, t, "element %lld is not a finite number", (long long)(first + i));
}

/* ---- files that are something else: a sentence each ---- */
static const struct wrpo__foreign {
    const char *name, *magic; size_t size;  /* part of its name; how it begins. NULL: no matter */
    bool tokens;  /* of a tokenizer */
    const char *says;  /* what it is, and the way out */
} wrpo__foreign[] = {
    {".gguf", "GGUF", 4, false, "a GGUF file: want the safetensors checkpoint that it was made from"},
    {"pytorch_model", "PK\3\4", 4, false,
     "a pickle of PyTorch: want safetensors; transformers' save_pretrained converts it"},
    {NULL, "\x80\2", 2, false, "a pickle of PyTorch: want safetensors; transformers' save_pretrained converts it"},
    {NULL, "version https://git-lfs", 23, false, "a pointer of Git LFS: want the file itself (git lfs pull)"},
    {NULL, "\x1F\x8B", 2, false, "compressed by gzip: want the file itself (gunzip)"},
    {"adapter_config.json", NULL, 0, false,
     "an adapter: want the directory of its model here, and this one as the adapter"},
    {"consolidated", NULL, 0, false, "weights with names of their own: want the Hugging Face form, model.safetensors"},
    {"snapshots", NULL, 0, false, "a cache of the hub: want a directory within its snapshots"},
#define WRPO__X(name) {name, NULL, 0, true, "from which transformers makes one: AutoTokenizer.from_pretrained(DIR)" \
                                            ".save_pretrained(DIR)"}
    WRPO__X("tokenizer.model"), WRPO__X("spiece.model"), WRPO__X("tekken.json"), WRPO__X(".tiktoken"),
    WRPO__X("merges.txt"), WRPO__X("vocab.")};
#undef WRPO__X
/* Refuses a file that is something else by its first bytes. */
static void wrpo__refuse_foreign(const wrpo__file *file) {
    for (int i = 0; i < WRPO__COUNT(wrpo__foreign); i++) {
        const struct wrpo__foreign *f = &wrpo__foreign[i];
        if (f->magic && file->size >= f->size && !memcmp(file->data, f->magic, f->size))
            wrpo__fail_format("%s: %s", file->path, f->says);
    }
}
/* Says why a path that should be the directory of a checkpoint, or tokenizer, has no `want`. */
_Noreturn static void wrpo__no_checkpoint(wrpo__arena *arena, const char *path, const char *want, bool tokens) {
    const char *slash = strchr(path, '/');
    const bool there = wrpo__files() || wrpo__disk_exists(path);
    const bool hub = slash && slash != path && slash[1] && !strchr(slash + 1, '/') && path[0] != '.' && path[0] != '~';
    const char *way = ": get a model of the hub with \"hf download %s --local-dir DIR\", then name DIR";
    if (!there)
        wrpo__fail(arena->ctx, WRPO_E_IO, "%s: no such directory. Nothing is downloaded%s", path,
                hub ? wrpo__format(arena, way, path) : "");
    const wrpo__name *names = wrpo__list_dir(arena, path);
    for (int k = 0; k < WRPO__COUNT(wrpo__foreign); k++)
        for (int64_t i = 0; i < stbds_arrlen(names); i++)
            if (wrpo__foreign[k].name && wrpo__foreign[k].tokens == tokens &&
                strstr(names[i].text, wrpo__foreign[k].name))
                wrpo__fail(arena->ctx, WRPO_E_IO, "%s: no %s in this directory, but %s, %s", path, want, names[i].text,
                        wrpo__foreign[k].says);
    wrpo__fail(arena->ctx, WRPO_E_IO, "%s: want a %s's directory, found no %s in it", path,
            tokens ? "tokenizer" : "checkpoint", want);
}

/* ---- one file ---- */
struct wrpo_tensors { wrpo__arena *arena; int64_t count; wrpo_tensor_info *info; };  /* info: sorted by name */
static int wrpo__by_offset(const void *x, const void *y) {  /* where the data begins, then where it ends */
    const wrpo_tensor_info *a = x, *b = y;
    if (a->data != b->data) return (uintptr_t)a->data < (uintptr_t)b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}
/* of structs that begin with their name */
static int wrpo__by_first_name(const void *x, const void *y) {
    return strcmp(*(const char *const *)x, *(const char *const *)y);
}
WRPO_API const wrpo_tensor_info *wrpo_tensors_find(const wrpo_tensors *t, const char *name) {
    if (!t->count) return NULL;
    return bsearch(&name, t->info, (size_t)t->count, sizeof *t->info, wrpo__by_first_name);
}
static const char *wrpo__shape_text(int ndim, const int64_t *shape) {
    wrpo__text text = {.arena = wrpo__current};
    wrpo__text_puts(&text, "[");
    for (int d = 0; d < ndim; d++) wrpo__text_printf(&text, d ? ",%lld" : "%lld", (long long)shape[d]);
    wrpo__text_puts(&text, "]");
    return text.data;
}
static int64_t wrpo__size_in(const wrpo_json *v, const char *what) {
    if (v->kind != WRPO_JSON_NUMBER || !v->exact || v->text[0] == '-') wrpo__refuse(v, what, "a size");
    return v->integer;
}
/* data[size]: all that follows the header */
static void wrpo__tensor_read(wrpo__arena *arena, const wrpo_json *entry, const unsigned char *data, size_t size,
        wrpo_tensor_info *t) {
    const wrpo_json *dtype = wrpo__need(entry, "dtype", WRPO_JSON_STRING);
    const wrpo_json *shape = wrpo__need(entry, "shape", WRPO_JSON_ARRAY);
    const wrpo_json *offsets = wrpo__need(entry, "data_offsets", WRPO_JSON_ARRAY);
    WRPO__EACH(v, entry)
        if (v != dtype && v != shape && v != offsets)
            wrpo__wrong(v, "want dtype, shape and data_offsets, found \"%s\" as well",
                    wrpo__legible(v->key, v->key_size));
    const int index = wrpo__dtype_index(dtype->text);
    const long long bits = wrpo__dtypes[index].bits;
    t->dtype = wrpo__dtypes[index].name;
    if (!index || !wrpo__json_is(dtype, t->dtype)) wrpo__refuse(dtype, NULL, "a type of safetensors");

    int64_t *dims = wrpo__alloc(arena, (size_t)shape->count, sizeof *dims);
    t->ndim = (int)shape->count;
    t->shape = dims;
    t->count = 1;
    WRPO__EACH(v, shape) {  /* the order of the format's own library */
        *dims = wrpo__size_in(v, "shape");
        if (*dims && t->count > INT64_MAX / *dims)
            wrpo__wrong(v, "shape: want a product that fits 63 bits, found more");
        t->count *= *dims++;
    }
    const bool fits = t->count <= INT64_MAX / bits;
    if (!fits || t->count * bits % 8)
        wrpo__wrong(shape, "shape: want %s, found %lld x %lld bits", fits ? "whole bytes" : "a size that fits 63 bits",
                (long long)t->count, bits);
    const long long want = t->count * bits / 8;

    if (offsets->count != 2) wrpo__refuse(offsets, NULL, "[begin, end]");
    const long long begin = wrpo__size_in(offsets->child, "data_offsets");
    const long long end = wrpo__size_in(offsets->child->next, "data_offsets");
    if (begin > end || (uint64_t)end > size)
        wrpo__wrong(offsets, "data_offsets: want data within the file's %zu bytes, found [%lld, %lld)", size, begin,
                end);
    if (end - begin != want)
        wrpo__wrong(offsets, "data_offsets: want %lld bytes for %lld of %s, found %lld", want, (long long)t->count,
                t->dtype, end - begin);
    t->bytes = (size_t)want;
    t->data = data + begin;
}
static void wrpo__sort_by_name(wrpo_tensors *t) {
    if (t->count) qsort(t->info, (size_t)t->count, sizeof *t->info, wrpo__by_first_name);
}
/* Adds the tensors of a .safetensors file, which is mapped into the arena. */
static void wrpo__file_open(wrpo_tensors *all, const char *path) {
    wrpo__arena *arena = all->arena, *temp = wrpo__sub_arena(arena);
    const wrpo__file *f = wrpo__open_file(arena, path);
    if (f->size < 8) wrpo__fail_format("%s: want 8 bytes of header size, found a file of %zu", path, f->size);
    unsigned long long header;
    wrpo__refuse_foreign(f);
    memcpy(&header, f->data, 8);
    if (header > WRPO__HEADER_MAX)
        wrpo__fail_format("%s: want a header of at most %d bytes, found %llu", path, WRPO__HEADER_MAX, header);
    if (header > f->size - 8) wrpo__fail_format("%s: want %llu bytes of header, found %zu", path, header, f->size - 8);
    const unsigned char *data = f->data + 8 + header;
    const size_t size = f->size - 8 - (size_t)header;

    const size_t room = strlen(path) + 100;
    char *name = wrpo__raw(temp, room, 1);  /* what errors call the text: FILE: header, then FILE: TENSOR */
    snprintf(name, room, "%s: header", path);
    const wrpo_json *root = wrpo__json_parse(temp, name, 1, (const char *)f->data + 8, (size_t)header);
    const wrpo_json *metadata = wrpo_json_get(wrpo__want(root, WRPO_JSON_OBJECT, "the header"), "__metadata__");
    if (metadata) wrpo__want(metadata, WRPO_JSON_OBJECT, NULL);
    WRPO__EACH(v, metadata) wrpo__want(v, WRPO_JSON_STRING, NULL);
    const size_t before = (size_t)all->count, count = (size_t)root->count - (metadata != NULL);
    all->count += (int64_t)count;
    all->info = wrpo__resize(arena, all->info, (before + count) * sizeof *all->info);
    wrpo_tensor_info *t = all->info + before;
    WRPO__EACH(v, root) {
        if (v == metadata) continue;
        snprintf(name, room, "%s: %.80s", path, v->key);
        if (strlen(v->key) != v->key_size) wrpo__unsupported(v, "want a name without U+0000");
        *t = (wrpo_tensor_info){.name = wrpo__strndup(arena, v->key, v->key_size), .file = f->path};
        wrpo__tensor_read(arena, v, data, size, t++);
    }
    wrpo__arena_clear(temp);
    qsort(all->info + before, count, sizeof *t, wrpo__by_offset);
    size_t covered = 0;
    for (t = all->info + before; t < all->info + all->count; t++) {
        const size_t begin = (size_t)((const unsigned char *)t->data - data);
        if (begin != covered)
            wrpo__wrong_tensor(t, "want data from byte %zu on, found %zu: %s", covered, begin,
                    begin < covered ? "an overlap" : "a hole");
        covered += t->bytes;
    }
    if (covered != size) wrpo__fail_format("%s: want %zu bytes of data, found %zu", path, covered, size);
}

/* ---- many files: the index maps every tensor to its file ----
   What its files have is read, as transformers does it. Where the index says something else, that is a warning. */
static void wrpo__index_open(wrpo_tensors *all, const char *path) {
    wrpo__arena *temp = wrpo__sub_arena(all->arena);
    const wrpo_json *root = wrpo__want(wrpo__json_file(temp, path), WRPO_JSON_OBJECT, "the index");
    const wrpo_json *map = wrpo__need(root, "weight_map", WRPO_JSON_OBJECT);
    const wrpo_json *size = wrpo_json_get(wrpo__maybe(root, "metadata", WRPO_JSON_OBJECT), "total_size");
    const int dir = (int)(wrpo__basename(path) - path);
    const char **files = NULL;
    double bytes = 0;
    WRPO__EACH(v, map) {
        int64_t k = 0;
        wrpo__want(v, WRPO_JSON_STRING, NULL);
        if (!v->size || strlen(v->text) != v->size || strpbrk(v->text, "/\\") || strstr(v->text, ".."))
            wrpo__refuse(v, NULL, "the name of a file beside the index");
        while (k < stbds_arrlen(files) && strcmp(files[k], v->text)) k++;
        if (k < stbds_arrlen(files)) continue;
        stbds_arrput(files, v->text);
        wrpo__file_open(all, wrpo__format(temp, "%.*s%s", dir, path, v->text));
    }
    stbds_arrfree(files);
    wrpo__sort_by_name(all);
    bool *named = wrpo__alloc(temp, (size_t)all->count, sizeof *named);
    const char *nowhere = NULL, *unsaid = NULL;
    int64_t absent = 0, unnamed = 0;
    WRPO__EACH(v, map) {
        const wrpo_tensor_info *t = strlen(v->key) == v->key_size ? wrpo_tensors_find(all, v->key) : NULL;
        if (t && !strcmp(wrpo__basename(t->file), v->text)) named[t - all->info] = true;
        else if (!absent++) nowhere = wrpo__legible(v->key, v->key_size);
    }
    for (int64_t i = 0; i < all->count; i++) {
        const wrpo_tensor_info *t = &all->info[i];
        bytes += (double)t->bytes;
        if (!named[i] && !unnamed++) unsaid = t->name;
        if (i > 0 && !strcmp(t->name, t[-1].name))
            wrpo__wrong_tensor(t, "want it once, found it in %s too", t[-1].file);
    }
    if (absent)
        wrpo__warn("%s: its files do not have what it says of %lld tensors, such as %s", path, (long long)absent,
                nowhere);
    if (unnamed)
        wrpo__warn("%s: %lld tensors of its files are not named there, such as %s: they are read as well", path,
                (long long)unnamed, unsaid);
    if (size && !(size->kind == WRPO_JSON_NUMBER && size->number == bytes))
        wrpo__warn("%s:%d: total_size: want %.0f, found %s", path, size->line, bytes, wrpo__found(size));
    wrpo__arena_clear(temp);
}

/* ---- open ---- */
/* A directory is read as transformers does: the single file first, then the index. */
static wrpo_tensors *wrpo__tensors_new(wrpo__arena *arena, const char *path) {
    const char *file = path;
    if (wrpo__is_dir(path)) {
        file = wrpo__join(arena, path, WRPO__SINGLE_FILE);
        if (!wrpo__exists(file)) file = wrpo__join(arena, path, WRPO__INDEX_FILE);
        if (!wrpo__exists(file)) wrpo__no_checkpoint(arena, path, WRPO__SINGLE_FILE " or " WRPO__INDEX_FILE, false);
    }
    wrpo_tensors *t = WRPO__NEW(arena, wrpo_tensors);
    t->arena = arena;
    if (wrpo__ends(file, ".json")) wrpo__index_open(t, file);
    else wrpo__file_open(t, file);
    wrpo__sort_by_name(t);
    return t;
}
WRPO_API wrpo_result wrpo_tensors_open(wrpo_ctx *ctx, const char *path, wrpo_tensors **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__tensors_new(wrpo__current, path));
}
WRPO_API void wrpo_tensors_close(wrpo_tensors *t) { if (t) wrpo__arena_free(t->arena); }
static void wrpo__tensors_drop(void *p) { wrpo_tensors_close(p); }
WRPO_API int64_t wrpo_tensors_count(const wrpo_tensors *t) { return t->count; }
WRPO_API const wrpo_tensor_info *wrpo_tensors_at(const wrpo_tensors *t, int64_t i) {
    return i >= 0 && i < t->count ? &t->info[i] : NULL;
}

/* ---- save ----
   All files are written whole under part names, then renamed, the index last. A save that is interrupted leaves the
   old checkpoint, the new one, or a directory that does not open; never a mixture. */
typedef struct wrpo__save_tensor { const char *name; int ndim; int64_t shape[4]; } wrpo__save_tensor;
/* Elements [first, first + count) of tensor: dst, or where they are */
typedef const float *(*wrpo__save_fn)(void *user, int64_t tensor, int64_t first, int64_t count, float *dst);
typedef struct wrpo__placed { const char *name; const wrpo__save_tensor *t; int64_t bytes, shard; } wrpo__placed;
/* How a save rounds, and what that leaves of the change since `from`. */
typedef struct wrpo__rounding {
    bool random;  /* BF16: up or down by chance, the weight in the mean */
    const wrpo_tensors *from;  /* NULL: nothing is measured */
    double changed, kept;  /* sums of d^2 and (rounded w - rounded from) d, d = w - from */
    /* May be NULL. Called when the weights are written; the file that it returns gets its name with theirs. */
    wrpo__writer *(*done)(void *user, double kept); void *user;
} wrpo__rounding;
static double wrpo__kept(const wrpo__rounding *r) { return r->changed > 0 ? r->kept / r->changed : (double)NAN; }
typedef struct wrpo__save {  /* one save */
    wrpo__arena *temp;
    const char *dir;  /* exists */
    const char *file;  /* NULL: model.safetensors or shards */
    const wrpo__save_tensor *t; int64_t n;
    wrpo_dtype dtype;  /* 0: F32 */
    int64_t max_shard_size;  /* 0: 5e9 bytes */
    wrpo__save_fn fn; void *user;  /* called for each file's tensors in the order of their names */
    wrpo__writer **sides;  /* stb array: files that wait for their names */
    wrpo__rounding *rounding;
    wrpo__placed *placed; int64_t shards;  /* sorted by name */
    float *chunk; uint16_t *halves;  /* [CHUNK] */
} wrpo__save;

static char *wrpo__shard_file(const wrpo__save *save, int64_t shard) {
    if (save->shards <= 1) return wrpo__format(save->temp, "%s", save->file ? save->file : WRPO__SINGLE_FILE);
    return wrpo__format(save->temp, WRPO__SHARD_FILE, (long long)shard + 1, (long long)save->shards);
}
/* A file that waits for its name. */
static wrpo__writer *wrpo__write_whole(wrpo__arena *arena, const char *path, const void *data, size_t size) {
    wrpo__writer *w = wrpo__create(arena, path);
    wrpo__write(w, data, size);
    wrpo__finish(w);
    return w;
}
/* The shards in dir of a split into another number of files; an stb array. */
static char **wrpo__stale_shards(const wrpo__save *save) {
    if (wrpo__my_rank(save->temp->ctx)) return NULL;
    const wrpo__name *names = wrpo__disk_list(save->temp, save->dir);
    char **stale = NULL;
    for (int64_t i = 0; i < stbds_arrlen(names); i++) {
        long long shard, shards;
        if (sscanf(names[i].text, "model-%5lld-of-%5lld", &shard, &shards) != 2) continue;
        const bool exact = !strcmp(names[i].text, wrpo__format(save->temp, WRPO__SHARD_FILE, shard, shards));
        const bool ours = save->shards > 1 && shards == save->shards && shard >= 1 && shard <= shards;
        if (exact && !ours) stbds_arrput(stale, wrpo__join(save->temp, save->dir, names[i].text));
    }
    return stale;
}
/* The shard of each tensor; returns their number. The split is huggingface_hub's: in the order given, tensors fill a
   shard until the next does not fit. A tensor above the limit gets a shard at once; the shard being filled stays open
   and so takes a later number. */
static int64_t wrpo__split(wrpo__placed *p, int64_t n, int64_t limit) {
    int64_t shards = 0, filled = 0, first = 0, waiting = 0;  /* the open shard: of the tensors [first, i) */
    for (int64_t i = 0; i <= n; i++) {
        if (i < n && p[i].bytes > limit) { p[i].shard = shards++; continue; }
        if (waiting && (i == n || filled + p[i].bytes > limit)) {
            for (int64_t k = first; k < i; k++)
                if (p[k].shard < 0) p[k].shard = shards;
            shards++;
            filled = waiting = 0;
            first = i;
        }
        if (i == n) break;
        p[i].shard = -1;
        filled += p[i].bytes;
        waiting++;
    }
    return shards;
}
/* The caller writes {"__metadata__":{...}, then each tensor in the order of the data, then the end. */
static void wrpo__header_add(wrpo__text *header, const char *name, const char *dtype, int ndim, const int64_t *shape,
        int64_t offset, int64_t bytes) {
    wrpo__text_puts(header, ",");
    wrpo__json_quote(header, name, strlen(name));
    wrpo__text_printf(header, ":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%lld,%lld]}", dtype,
            wrpo__shape_text(ndim, shape), (long long)offset, (long long)(offset + bytes));
}
static void wrpo__header_write(wrpo__writer *w, wrpo__text *header) {
    wrpo__text_puts(header, "}");
    while (header->size % 8) wrpo__text_puts(header, " ");  /* the data begins aligned */
    const uint64_t size = header->size;
    wrpo__write(w, &size, 8);
    wrpo__write(w, header->data, header->size);
    wrpo__block_free(header->data);
}
/* A block of a save. Without old, w is rounded to h. With it, what h leaves of the change is added to the sums, which
   compilers put in vectors. */
enum { WRPO__ROUNDS = 256, WRPO__SUMS = 8 };
typedef struct wrpo__rounded {
    const float *w; const void *old; uint16_t *h;
    bool same;  /* old is of h's dtype, not floats */
    double changed[WRPO__SUMS], kept[WRPO__SUMS];
} wrpo__rounded;
#define WRPO__BLOCK(i) for (int i = 0; i < WRPO__ROUNDS; i++)
#define WRPO__HALF(x) (dtype == WRPO_DTYPE_BF16 ? wrpo__float_to_bf16(x) : wrpo__float_to_f16(x))
#define WRPO__WIDE(h) wrpo__bits_float(wrpo__widen(dtype, h))
static
#ifdef __GNUC__
__attribute__((always_inline)) inline
#endif
void wrpo__block_any(wrpo__rounded *r, const wrpo_dtype dtype) {
    const float *w = r->w, *old = r->old;
    const uint16_t *halves = r->old;
    uint16_t *h = r->h;
    float to[WRPO__ROUNDS], from[WRPO__ROUNDS];
    if (!old) {
        WRPO__BLOCK(k) h[k] = WRPO__HALF(w[k]);
        return;
    }
    WRPO__BLOCK(k) to[k] = WRPO__WIDE(h[k]);
    if (r->same) {
        WRPO__BLOCK(k) from[k] = WRPO__WIDE(halves[k]);
        old = from;
    } else WRPO__BLOCK(k) from[k] = WRPO__WIDE(WRPO__HALF(old[k]));
    for (int j = 0; j < WRPO__ROUNDS; j += WRPO__SUMS)
        for (int k = 0; k < WRPO__SUMS; k++) {
            const double d = (double)w[j + k] - (double)old[j + k];
            r->changed[k] += d * d;
            r->kept[k] += ((double)to[j + k] - (double)from[j + k]) * d;
        }
}
static void wrpo__block_f16(wrpo__rounded *r) { wrpo__block_any(r, WRPO_DTYPE_F16); }
static void wrpo__block_bf16(wrpo__rounded *r) { wrpo__block_any(r, WRPO_DTYPE_BF16); }
#if defined(__GNUC__) && defined(__x86_64__) && !defined(WRPO_NO_SIMD)
__attribute__((target("avx2"))) static void wrpo__block_avx2(wrpo__rounded *r) { wrpo__block_any(r, WRPO_DTYPE_BF16); }
#define wrpo__block_bf16 (__builtin_cpu_supports("avx2") ? wrpo__block_avx2 : wrpo__block_bf16)
#endif
/* The bytes of x[n], elements [first, first + n) of a tensor, in the dtype of the file. The dice of an element are its
   own: a function of the tensor's name and its index. */
static const void *wrpo__round(const wrpo__save *save, const char *name, const float *x, int64_t first, int64_t n) {
    enum { PIECE = 1 << 14 };
    wrpo__rounding *r = save->rounding;
    const wrpo_tensor_info *t = r->from ? wrpo_tensors_find(r->from, name) : NULL;
    const wrpo_dtype was = t && first + n <= t->count ? wrpo__float_dtype(t) : WRPO_DTYPE_DEFAULT;
    const int64_t size = (int64_t)wrpo__dtype_size(was);
    const uint64_t stream = wrpo__hash(0, name, strlen(name));
    double sums[WRPO__CHUNK / PIECE][2];
    const int threads = save->temp->ctx->desc.threads;
    void (*block)(wrpo__rounded *) = save->dtype == WRPO_DTYPE_BF16 ? wrpo__block_bf16 : wrpo__block_f16;
    if (wrpo__dtype_size(save->dtype) == 4) return x;
    WRPO__PARFOR(threads)
    for (int64_t piece = 0; piece < wrpo__div_up(n, PIECE); piece++) {
        wrpo__rounded b = {.same = was == save->dtype};
        for (int64_t i = piece * PIECE; i < WRPO__MIN(n, (piece + 1) * PIECE); i += WRPO__ROUNDS) {
            const int64_t count = WRPO__MIN(n - i, WRPO__ROUNDS);
            float end[WRPO__ROUNDS];                   /* a part */
            union { float floats[WRPO__ROUNDS]; uint16_t halves[WRPO__ROUNDS]; } old;
            wrpo__philox dice = {{0}};
            b.w = x + i;
            b.h = save->halves + i;
            b.old = NULL;
            if (count < WRPO__ROUNDS) {
                memset(&old, 0, sizeof old);
                b.w = memcpy(memset(end, 0, sizeof end), x + i, (size_t)count * sizeof *x);
            }
            block(&b);
            for (int k = 0; r->random && k < count; k++) {
                if (k % 8 == 0) dice = wrpo__random(0, stream, (uint64_t)(first + i + k) / 8);
                if (!isfinite(wrpo__float_of(b.h[k]))) continue;
                b.h[k] = (uint16_t)((wrpo__float_bits(b.w[k]) + (dice.v[k % 8 / 2] >> k % 2 * 16 & 0xFFFF)) >> 16);
            }
            if (!was) continue;
            b.old = (const char *)t->data + (first + i) * size;
            if (count < WRPO__ROUNDS || (uintptr_t)b.old % (size_t)size || !(b.same || size == 4)) {
                if (b.same) memcpy(old.halves, b.old, (size_t)count * 2);
                else wrpo__to_float(old.floats, t, first + i, count);
                b.old = &old;
            }
            block(&b);
        }
        sums[piece][0] = sums[piece][1] = 0;
        for (int k = 0; k < WRPO__SUMS; k++) sums[piece][0] += b.changed[k], sums[piece][1] += b.kept[k];
    }
    for (int64_t piece = 0; piece < wrpo__div_up(n, PIECE); piece++) {
        r->changed += sums[piece][0];
        r->kept += sums[piece][1];
    }
    return save->halves;
}
/* under its part name */
static wrpo__writer *wrpo__shard_write(const wrpo__save *save, int64_t shard) {
    const char *path = wrpo__join(save->temp, save->dir, wrpo__shard_file(save, shard));
    const int64_t size = (int64_t)wrpo__dtype_size(save->dtype);
    const wrpo__placed *end = save->placed + save->n;
    int64_t offset = 0;
    wrpo__text header = {.arena = save->temp};
    wrpo__text_puts(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (const wrpo__placed *p = save->placed; p < end; p++) {
        if (p->shard != shard) continue;
        wrpo__header_add(&header, p->name, wrpo__dtype_name(save->dtype), p->t->ndim, p->t->shape, offset, p->bytes);
        offset += p->bytes;
    }
    wrpo__writer *w = wrpo__create(save->temp, path);
    wrpo__header_write(w, &header);
    for (const wrpo__placed *p = save->placed; p < end; p++)
        for (int64_t first = 0, n; p->shard == shard && first < p->bytes / size; first += n) {
            n = WRPO__MIN(p->bytes / size - first, WRPO__CHUNK);
            const float *piece = save->fn(save->user, p->t - save->t, first, n, save->chunk);
            for (int64_t k = 0; save->dtype == WRPO_DTYPE_F16 && k < n; k++) {
                const float x = piece[k];
                if (isfinite(x) && fabsf(x) >= 65520)
                    wrpo__fail(w->ctx, WRPO_E_NOT_FINITE, "%s: %s: element %lld, %g, is infinite in F16", path, p->name,
                            (long long)(first + k), (double)x);
            }
            wrpo__write(w, wrpo__round(save, p->name, piece, first, n), (size_t)(n * size));
        }
    wrpo__finish(w);
    return w;
}
static wrpo__writer *wrpo__index_write(const wrpo__save *save, const char *path) {
    wrpo__text t = {.arena = save->temp};
    int64_t total = 0;
    for (int64_t i = 0; i < save->n; i++) total += save->placed[i].bytes;
    wrpo__text_printf(&t, "{\n  \"metadata\": {\n    \"total_size\": %lld\n  },\n", (long long)total);
    wrpo__text_puts(&t, "  \"weight_map\": {");
    for (int64_t i = 0; i < save->n; i++) {
        const wrpo__placed *p = &save->placed[i];
        wrpo__text_puts(&t, i ? ",\n    " : "\n    ");
        wrpo__json_quote(&t, p->name, strlen(p->name));
        wrpo__text_printf(&t, ": \"%s\"", wrpo__shard_file(save, p->shard));
    }
    wrpo__text_puts(&t, "\n  }\n}\n");
    return wrpo__write_whole(save->temp, path, t.data, t.size);
}
/* With `file`, the files of other models stay. What the sides replace is removed first, so that no kill leaves it with
   the new tensors. The directory is synced between the two, before what is left of the old is removed, and at the end:
   nor does a power cut. */
static void wrpo__tensors_save(wrpo__save *save) {
    wrpo__arena *temp = save->temp;
    wrpo_ctx *ctx = temp->ctx;
    wrpo__rounding *rounding = save->rounding;
    const int64_t n = save->n;
    save->placed = wrpo__raw(temp, (size_t)n, sizeof *save->placed);
    for (int64_t i = 0; i < n; i++) {
        const wrpo__save_tensor *t = &save->t[i];
        size_t size = wrpo__dtype_size(save->dtype);
        for (int d = 0; d < t->ndim; d++) size = wrpo__mul(ctx, size, (size_t)t->shape[d]);
        save->placed[i] = (wrpo__placed){t->name, t, (int64_t)size, 0};
    }
    const int64_t limit = save->max_shard_size > 0 ? save->max_shard_size : 5000000000;
    save->shards = wrpo__split(save->placed, n, save->file ? INT64_MAX : limit);
    if (n) qsort(save->placed, (size_t)n, sizeof *save->placed, wrpo__by_first_name);

    const int64_t files = WRPO__MAX(save->shards, 1);
    wrpo__writer **ready = wrpo__alloc(temp, (size_t)files, sizeof *ready), *index = NULL;
    save->chunk = wrpo__raw(temp, WRPO__CHUNK, sizeof *save->chunk);
    if (wrpo__dtype_size(save->dtype) == 2) save->halves = wrpo__raw(temp, WRPO__CHUNK, sizeof *save->halves);
    for (int64_t s = 0; s < files; s++) ready[s] = wrpo__shard_write(save, s);
    const char *index_path = wrpo__join(temp, save->dir, WRPO__INDEX_FILE);
    char **stale = save->file ? NULL : wrpo__stale_shards(save);  /* now: nothing may fail once names are given */
    if (save->shards > 1) {
        index = wrpo__index_write(save, index_path);
        bool same_names = false;  /* then the old index would open old and new shards together */
        for (int64_t s = 0; s < files; s++) same_names = same_names || wrpo__disk_exists(ready[s]->path);
        if (same_names) wrpo__remove(ctx, index_path);
    }
    wrpo__writer *last = rounding->done ? rounding->done(rounding->user, wrpo__kept(rounding)) : NULL;
    if (last) stbds_arrput(save->sides, last);
    for (int64_t i = 0; i < stbds_arrlen(save->sides); i++) wrpo__remove(ctx, save->sides[i]->path);
    wrpo__sync_parent(index_path);
    for (int64_t s = 0; s < files; s++) wrpo__publish(ready[s]);
    if (index) wrpo__publish(index);
    wrpo__sync_parent(index_path);
    for (int64_t i = stbds_arrlen(save->sides) - 1; i >= 0; i--) wrpo__publish(save->sides[i]);  /* config.json last */
    if (!save->file) wrpo__remove(ctx, index ? wrpo__join(temp, save->dir, WRPO__SINGLE_FILE) : index_path);
    for (int64_t i = 0; i < stbds_arrlen(stale); i++) wrpo__remove(ctx, stale[i]);
    wrpo__sync_parent(index_path);
    wrpo__block_free(save->chunk);
    wrpo__block_free(save->halves);
}

/* --------------------------------------------------------------------------------------- >>checkpoint
   A Hugging Face directory in, a Hugging Face directory out: config.json, weights, side files. */

/* ---- config.json: old (rope_theta, rope_scaling, torch_dtype) and new (rope_parameters, dtype) spellings ----
   A key sets a field, or is known not to change a log-prob, or is refused by its name. */
enum {  /* bits: the families, as in the table; two heads */
    WRPO__LLAMA = 1, WRPO__MISTRAL = 2, WRPO__QWEN2 = 4, WRPO__QWEN3 = 8, WRPO__GEMMA2 = 16, WRPO__PHI3 = 32,
    WRPO__INTERNLM2 = 64, WRPO__GEMMA3 = 128, WRPO__SMOLLM3 = 256, WRPO__OLMO2 = 512, WRPO__GRANITE3 = 1024,
    WRPO__GRANITE4 = 2048, WRPO__HEADS = 4096, WRPO__VALUE = WRPO__HEADS << WRPO_HEAD_VALUE,
    WRPO__GATED = WRPO__HEADS << WRPO_HEAD_GATED, WRPO__ALL = 0xFFFF,
    WRPO__QWEN = WRPO__QWEN2 | WRPO__QWEN3, WRPO__GEMMA = WRPO__GEMMA2 | WRPO__GEMMA3,
    WRPO__GRANITE = WRPO__GRANITE3 | WRPO__GRANITE4, WRPO__SWITCHED = WRPO__QWEN | WRPO__SMOLLM3,
    WRPO__WINDOWED = WRPO__MISTRAL | WRPO__SWITCHED | WRPO__GEMMA | WRPO__PHI3
};
/* Where a key is absent. 0: a key/value head for each head; hidden_size / heads; no window; 2048 positions. */
#define WRPO__OF_GEMMA .tie_word_embeddings = true, .gelu = true, .norm_plus_one = true, .post_norms = true, \
                       .scale_embeddings = true, .query_pre_attn_scalar = 256
static const wrpo_config wrpo__families[] = {
    {.model_type = "llama"},
    {.model_type = "mistral", .num_key_value_heads = 8, .max_position_embeddings = 131072, .sliding_window = 4096},
    {.model_type = "qwen2", .num_key_value_heads = 32, .max_position_embeddings = 32768, .sliding_window = 4096,
     .attention_bias = true},
    {.model_type = "qwen3", .num_key_value_heads = 32, .head_dim = 128, .max_position_embeddings = 32768,
     .sliding_window = 4096, .qk_norm = true},
    {.model_type = "gemma2", .num_key_value_heads = 4, .head_dim = 256, .max_position_embeddings = 8192,
     .sliding_window = 4096, WRPO__OF_GEMMA, .attn_logit_softcapping = 50, .final_logit_softcapping = 30},
    {.model_type = "phi3", .max_position_embeddings = 4096, .rms_norm_eps = 1e-5},
    {.model_type = "internlm2", .attention_bias = true},
    {.model_type = "gemma3_text", .vocab_size = 262208, .hidden_size = 2304, .intermediate_size = 9216,
     .num_hidden_layers = 26, .num_attention_heads = 8, .num_key_value_heads = 4, .head_dim = 256,
     .max_position_embeddings = 131072, .sliding_window = 4096, .rope.theta = 1e6, .sliding_rope_theta = 1e4,
     .qk_norm = true, WRPO__OF_GEMMA},
    {.model_type = "smollm3", .num_key_value_heads = 4, .max_position_embeddings = 32768, .rope.theta = 2e6,
     .tie_word_embeddings = true},
    {.model_type = "olmo2", .rms_norm_eps = 1e-5, .qk_norm = true, .qk_norm_rows = true, .post_norms = true,
     .no_pre_norms = true},
    {.model_type = "granite", .attention_multiplier = 1},
    {.model_type = "granitemoehybrid", .attention_multiplier = 1}};

/* The keys that set a field, for the families or heads that read them: integers in a range, numbers above 0. null is as
   if absent; of the kinds OR_NONE it is 0. */
typedef enum wrpo__key_kind {
    WRPO__REQUIRED, WRPO__INTEGER, WRPO__INTEGER_OR_NONE, WRPO__NUMBER, WRPO__NUMBER_OR_NONE, WRPO__SWITCH
} wrpo__key_kind;
static const struct wrpo__key { const char *key; unsigned of; wrpo__key_kind kind; size_t field; int64_t low, high; }
wrpo__keys[] = {
#define WRPO__KEY(key, of, kind, low, high) {#key, WRPO__##of, WRPO__##kind, offsetof(wrpo_config, key), low, high}
    WRPO__KEY(vocab_size, ALL, REQUIRED, 1, 1 << 24),
    WRPO__KEY(hidden_size, ALL, REQUIRED, 1, WRPO__MAX_HIDDEN),
    WRPO__KEY(intermediate_size, ALL, REQUIRED, 1, 1 << 24),
    WRPO__KEY(num_hidden_layers, ALL, REQUIRED, 1, 512),
    WRPO__KEY(num_attention_heads, ALL, REQUIRED, 1, 65536),
    WRPO__KEY(num_key_value_heads, ALL, INTEGER_OR_NONE, 1, 65536),
    WRPO__KEY(head_dim, ALL, INTEGER_OR_NONE, 2, WRPO__MAX_D),
    WRPO__KEY(max_position_embeddings, ALL, INTEGER, 1, (int64_t)1 << 40),
    WRPO__KEY(rms_norm_eps, ALL, NUMBER, 0, 0),
    WRPO__KEY(initializer_range, ALL, NUMBER, 0, 0),
    WRPO__KEY(tie_word_embeddings, ALL, SWITCH, 0, 0),
    WRPO__KEY(attention_bias, LLAMA | WRPO__QWEN3 | WRPO__GEMMA | WRPO__SMOLLM3 | WRPO__OLMO2 | WRPO__GRANITE, SWITCH,
            0, 0),
    {"bias", WRPO__INTERNLM2, WRPO__SWITCH, offsetof(wrpo_config, attention_bias), 0, 0},
    WRPO__KEY(query_pre_attn_scalar, GEMMA, NUMBER, 0, 0),
    WRPO__KEY(attn_logit_softcapping, GEMMA2, NUMBER_OR_NONE, 0, 0),
    WRPO__KEY(final_logit_softcapping, GEMMA, NUMBER_OR_NONE, 0, 0),
    {"rope_local_base_freq", WRPO__GEMMA3, WRPO__NUMBER, offsetof(wrpo_config, sliding_rope_theta), 0, 0},
    WRPO__KEY(embedding_multiplier, GRANITE, NUMBER, 0, 0),
    WRPO__KEY(residual_multiplier, GRANITE, NUMBER, 0, 0),
    WRPO__KEY(attention_multiplier, GRANITE, NUMBER, 0, 0),
    WRPO__KEY(logits_scaling, GRANITE, NUMBER, 0, 0),
    {"shared_intermediate_size", WRPO__GRANITE4, WRPO__INTEGER, offsetof(wrpo_config, intermediate_size), 1, 1 << 24},
    WRPO__KEY(pad_token_id, ALL, INTEGER, INT64_MIN, INT64_MAX),  /* some files say -1 for none */
    WRPO__KEY(gating_temperature, GATED, NUMBER, 0, 0)};
#undef WRPO__KEY
static const struct { unsigned of; const char *keys; } wrpo__known_keys[] = {
    /* read below */
    {WRPO__ALL, "model_type architectures rope_theta rope_scaling rope_parameters partial_rotary_factor layer_types "
                "torch_dtype dtype hidden_act"},
    {WRPO__WINDOWED, "sliding_window"}, {WRPO__SWITCHED, "use_sliding_window max_window_layers"},
    {WRPO__GEMMA, "hidden_activation"}, {WRPO__GEMMA2, "sliding_window_size"},
    {WRPO__GEMMA3, "sliding_window_pattern"}, {WRPO__SMOLLM3, "no_rope_layers no_rope_layer_interval"},
    {WRPO__GRANITE4, "num_local_experts position_embedding_type"},
    {WRPO__PHI3, "original_max_position_embeddings"}, {WRPO__VALUE, "reward_token_id"},
    /* without effect on a log-prob: ids, caching, generation defaults, provenance */
    {WRPO__ALL,
     "bos_token_id eos_token_id sep_token_id unk_token_id decoder_start_token_id pad_token tokenizer_class prefix "
     "is_encoder_decoder is_decoder is_llama_config use_cache pretraining_tp use_bfloat16 pruned_heads num_labels "
     "torchscript return_dict return_dict_in_generate output_hidden_states output_attentions output_scores id2label "
     "label2id task_specific_params problem_type finetuning_task chunk_size_feed_forward tf_legacy_loss auto_map "
     "max_sequence_length model_max_length head_dim_original attn_implementation name_or_path transformers_version "
     "unsloth_fixed unsloth_version use_flash_attn use_flash_attention_2 neftune_noise_alpha gradient_checkpointing "
     "trust_remote_code tokenizer_model_max_length seq_length loss_type "
     "top_k top_p temperature typical_p repetition_penalty length_penalty "
     "exponential_decay_length_penalty diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
     "bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id max_length "
     "min_length remove_invalid_values do_sample early_stopping num_beams num_beam_groups num_return_sequences"},
    {WRPO__QWEN2, "attention_bias"}, {WRPO__GEMMA, "cache_implementation"},
    {WRPO__GRANITE4,
     "num_experts_per_tok router_aux_loss_coef init_method normalization_function time_step_limit mamba_n_heads "
     "mamba_n_groups mamba_d_state mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size mamba_conv_bias"},
    {WRPO__PHI3, "interpolate_factor full_attn_mod"},
    {WRPO__GATED, "num_objectives gating_hidden_dim gating_n_hidden"}};

typedef struct wrpo__reader {
    const wrpo_json *root;
    wrpo_config *c;
    unsigned is;  /* of its family and head */
} wrpo__reader;
static bool wrpo__is_known(const wrpo__reader *in, const wrpo_json *v) {
    if (v->kind == WRPO_JSON_NULL || v->key[0] == '_' || !strncmp(v->key, "transformers.", 13)) return true;
    if (v->kind == WRPO_JSON_BOOL && v->boolean == !strcmp(v->key, "is_causal")) return true;
    const bool dropout = wrpo__ends(v->key, "_dropout") || wrpo__ends(v->key, "_pdrop");
    if (dropout && v->kind == WRPO_JSON_NUMBER && v->number >= 0 && v->number < 1) return true;
    for (int i = 0; i < WRPO__COUNT(wrpo__keys); i++)
        if (in->is & wrpo__keys[i].of && !strcmp(v->key, wrpo__keys[i].key)) return true;
    for (int i = 0; i < WRPO__COUNT(wrpo__known_keys); i++)
        if (in->is & wrpo__known_keys[i].of && wrpo__listed(wrpo__known_keys[i].keys, v->key)) return true;
    return false;
}
/* which of the names with a bit in `allowed` */
static int wrpo__choice(const wrpo_json *v, const char *what, const char *const *names, unsigned allowed) {
    wrpo__text list = {.arena = wrpo__current};
    for (int i = 0; names[i]; i++) {
        if (!(allowed >> i & 1)) continue;
        if (wrpo__json_is(v, names[i])) return i;
        wrpo__text_printf(&list, list.size ? ", %s" : "%s", names[i]);
    }
    wrpo__unsupported(v, "%s: want one of %s, found %s", what, list.data, wrpo__found(v));
}
static void wrpo__check(bool ok, const wrpo_json *v, const char *want) {
    if (!ok) wrpo__refuse(v, NULL, want);
}
static double wrpo__positive(const wrpo_json *object, const char *key, double otherwise) {
    const wrpo_json *v = wrpo__present(object, key);
    if (!v) return otherwise;
    wrpo__check(v->kind == WRPO_JSON_NUMBER && v->number > 0 && v->number < 1e15, v, "a positive number");
    return v->number;
}
static int64_t wrpo__count(const wrpo_json *object, const char *key, int64_t otherwise, int64_t low, int64_t high) {
    const wrpo_json *v = wrpo__present(object, key);
    return v ? wrpo__integer(v, low, high, NULL) : otherwise;
}
static void wrpo__config_key(const wrpo__reader *in, const struct wrpo__key *k) {
    void *field = (char *)in->c + k->field;
    int64_t *integer = field;
    double *number = field;
    bool *on = field;
    const wrpo_json *v = wrpo_json_get(in->root, k->key);
    const bool null = v && v->kind == WRPO_JSON_NULL;
    if (k->kind == WRPO__REQUIRED && !*integer) wrpo__need(in->root, k->key, WRPO_JSON_NUMBER);
    if (k->kind == WRPO__INTEGER_OR_NONE && null) *integer = 0;
    if (k->kind == WRPO__NUMBER_OR_NONE && null) *number = 0;
    if (k->kind == WRPO__SWITCH) *on = wrpo__switch(in->root, k->key, *on);
    else if (k->kind >= WRPO__NUMBER) *number = wrpo__positive(in->root, k->key, *number);
    else *integer = wrpo__count(in->root, k->key, *integer, k->low, k->high);
}

static const char *const wrpo__rope_names[] = {"default", "linear", "llama3", "yarn", "dynamic", "longrope", NULL};
WRPO__NAMED(wrpo_rope_name, wrpo__rope_names)
/* One for each pair of elements that is rotated. */
static void wrpo__rope_factors(const wrpo_json *r, const char *key, float *out, int64_t count) {
    const wrpo_json *list = wrpo__present(r, key);
    bool fits = list && list->kind == WRPO_JSON_ARRAY && list->count == count;
    WRPO__EACH(v, fits ? list : NULL) {
        fits = fits && v->kind == WRPO_JSON_NUMBER && v->number > 0;
        *out++ = (float)v->number;
    }
    if (!fits) wrpo__wrong(list ? list : r, "%s: want %lld positive numbers", key, (long long)count);
}
/* Types other than default. */
static void wrpo__rope_scaling(const wrpo__reader *in, const wrpo_json *r) {
    static const char key[] = "original_max_position_embeddings";
    wrpo_rope *p = &in->c->rope;
    const bool llama3 = p->type == WRPO_ROPE_LLAMA3, longrope = p->type == WRPO_ROPE_LONGROPE;
    double stated = llama3 ? 0 : (double)in->c->max_position_embeddings;
    if (in->is & WRPO__PHI3) stated = wrpo__positive(in->root, key, 4096);
    const double original = wrpo__positive(r, key, stated);
    if (in->is & WRPO__PHI3 && original != stated)
        wrpo__wrong(r, "%s: want %g, as outside of it (4096 if absent there), found %g", key, stated, original);
    if (original != floor(original) || original == 1)
        wrpo__wrong(r, "%s: want an integer of at least 2, found %g", key, original);
    p->original_max_position_embeddings = (int64_t)original;
    const double stretch = longrope ? (double)in->c->max_position_embeddings / original : 0;
    p->factor = wrpo__positive(r, "factor", stretch);
    p->low_freq_factor = wrpo__positive(r, "low_freq_factor", 0);
    p->high_freq_factor = wrpo__positive(r, "high_freq_factor", 0);
    wrpo__check(p->factor > 0, r, "a factor");
    const bool ramp = p->low_freq_factor > 0 && p->low_freq_factor < p->high_freq_factor;
    wrpo__check(!llama3 || (ramp && original > 0), r,
            "for llama3 low_freq_factor < high_freq_factor and original_max_position_embeddings");
    if (p->type == WRPO_ROPE_DYNAMIC && p->dims < 4)
        wrpo__unsupported(r, "rope type dynamic: want heads of at least 4 elements");
    p->beta_fast = wrpo__positive(r, "beta_fast", 32);
    p->beta_slow = wrpo__positive(r, "beta_slow", 1);
    double attention = 1;
    if (p->factor > 1 && p->type == WRPO_ROPE_YARN) attention = 0.1 * log(p->factor) + 1;
    if (p->factor > 1 && longrope) attention = sqrt(1 + log(p->factor) / log(original));
    p->attention_factor = wrpo__positive(r, "attention_factor", attention);
    p->yarn_truncate = wrpo__switch(r, "truncate", true);
    if (!longrope) return;
    wrpo__rope_factors(r, "short_factor", p->short_factor, p->dims / 2);
    wrpo__rope_factors(r, "long_factor", p->long_factor, p->dims / 2);
}
static const wrpo_json *wrpo__rope_kind(const wrpo_json *r) {
    const wrpo_json *type = wrpo__present(r, "rope_type");
    return type ? type : wrpo__present(r, "type");
}
/* transformers reads rope_scaling if both spellings are there, and rope_theta outside of it. The other must agree. */
static void wrpo__rope_agrees(const wrpo_json *from, const wrpo_json *with, double theta) {
    WRPO__EACH(v, from) {
        const bool type = wrpo__listed("rope_type type", v->key);
        const wrpo_json *other = type ? wrpo__rope_kind(with) : wrpo__present(with, v->key);
        const bool number = v->kind == WRPO_JSON_NUMBER && other && other->kind == WRPO_JSON_NUMBER;
        bool same = number ? v->number == other->number : wrpo__json_same(v, other);
        if (!strcmp(v->key, "rope_theta")) same = v->number == theta;
        if (v->kind != WRPO_JSON_NULL && !same)
            wrpo__wrong(v, "%s: \"%.60s\" is not the same in %s", from->key, v->key, with->key);
    }
}
/* Gemma 3: an object for layers without a window, which is returned, and one for those with it: only a base. */
static const wrpo_json *wrpo__rope_by_layer(const wrpo__reader *in, const wrpo_json *parameters) {
    WRPO__EACH(v, parameters)
        if (!wrpo__listed("full_attention sliding_attention", v->key))
            wrpo__unsupported(v, "%s: want full_attention and sliding_attention, found \"%.60s\"", parameters->key,
                    v->key);
    const wrpo_json *sliding = wrpo__present(parameters, "sliding_attention"), *type = wrpo__rope_kind(sliding);
    if (type && !wrpo__json_is(type, "default")) wrpo__refuse(type, NULL, "default");
    in->c->sliding_rope_theta = wrpo__positive(sliding, "rope_theta", in->c->sliding_rope_theta);
    return wrpo__present(parameters, "full_attention");
}
static void wrpo__config_rope(const wrpo__reader *in) {
    static const char part_key[] = "partial_rotary_factor";
    static const char keys[] = "type rope_type rope_theta factor low_freq_factor high_freq_factor beta_fast beta_slow "
                               "original_max_position_embeddings attention_factor attn_factor truncate finetuned "
                               "partial_rotary_factor short_factor long_factor";
    wrpo_rope *p = &in->c->rope;
    const int64_t d = in->c->head_dim;
    const bool phi3 = in->is & WRPO__PHI3;
    const wrpo_json *parameters = wrpo__maybe(in->root, "rope_parameters", WRPO_JSON_OBJECT);
    const wrpo_json *scaling = wrpo__maybe(in->root, "rope_scaling", WRPO_JSON_OBJECT);
    if (in->is & WRPO__GEMMA3) parameters = wrpo__rope_by_layer(in, parameters);
    if (scaling && !scaling->count) scaling = NULL;
    const wrpo_json *r = scaling ? scaling : parameters, *attn;
    p->theta = wrpo__positive(in->root, "rope_theta", p->theta > 0 ? p->theta : 10000);
    p->theta = wrpo__positive(r, "rope_theta", p->theta);
    if (parameters && scaling) {
        wrpo__rope_agrees(parameters, scaling, p->theta);
        wrpo__rope_agrees(scaling, parameters, p->theta);
    }
    WRPO__EACH(v, r)
        if (v->kind != WRPO_JSON_NULL && !wrpo__listed(keys, v->key))
            wrpo__unsupported(v, "%s: \"%.60s\" is not supported", r->key, v->key);
    attn = wrpo__present(r, "attn_factor");
    if (attn && attn->number != 1)
        wrpo__warn("%s: %s: attn_factor is left out, as transformers does", attn->name, r->key);

    unsigned allowed = 63;  /* a bit for each type */
    if (phi3) allowed = 1 << WRPO_ROPE_DEFAULT | 1 << WRPO_ROPE_LONGROPE;
    if (in->is & WRPO__INTERNLM2) allowed = 1 << WRPO_ROPE_DEFAULT | 1 << WRPO_ROPE_LINEAR | 1 << WRPO_ROPE_DYNAMIC;
    const wrpo_json *type = wrpo__rope_kind(r);
    wrpo__check(type || !wrpo__present(r, "factor"), r, "a rope_type for its factor");
    if (phi3 && (wrpo__json_is(type, "su") || wrpo__json_is(type, "yarn")))
        p->type = WRPO_ROPE_LONGROPE;  /* what Phi-3 called it first */
    else if (type) p->type = (wrpo_rope_type)wrpo__choice(type, "rope_type", wrpo__rope_names, allowed);

    const wrpo_json *part_of = wrpo__present(r, part_key) ? r : in->root;
    const double part = wrpo__positive(part_of, part_key, 1);
    if (part != 1 && !phi3)
        wrpo__unsupported(part_of, "%s other than 1 is supported for model_type phi3 only", part_key);
    p->dims = (int64_t)((double)d * part);
    if (p->dims < 2 || p->dims % 2 || p->dims > d)
        wrpo__unsupported(in->root, "%s: want an even number of the %lld elements of a head, found %lld", part_key,
                (long long)d, (long long)p->dims);
    if (p->type != WRPO_ROPE_DEFAULT) wrpo__rope_scaling(in, r);
}
/* SmolLM3: every fourth layer does not rotate, or those of a list. */
static void wrpo__config_no_rope(const wrpo__reader *in) {
    const wrpo_json *list = wrpo__present(in->root, "no_rope_layers");
    const int64_t L = in->c->num_hidden_layers;
    const int64_t every = wrpo__count(in->root, "no_rope_layer_interval", 4, 1, INT32_MAX);
    wrpo__check(!list || (list->kind == WRPO_JSON_ARRAY && list->count >= L), list, "0 or 1 for each layer");
    const wrpo_json *v = wrpo__first(list);
    for (int64_t l = 0; l < L; l++) {
        const bool rotates = v ? wrpo__integer(v, 0, 1, NULL) : (l + 1) % every != 0;
        if (!rotates) in->c->no_rope_layers[l / 64] |= (uint64_t)1 << l % 64;
        if (v) v = v->next;
    }
}
/* Layers with a window: all; Qwen's from max_window_layers on; Gemma 2's even ones; Gemma 3's but every sixth;
   SmolLM3's that do not rotate. layer_types overrides. */
static void wrpo__config_windows(const wrpo__reader *in) {
    static const char *const types[] = {"full_attention", "sliding_attention", "attention", NULL};
    static const char size_key[] = "sliding_window_size";
    const int64_t most = (int64_t)1 << 40;
    wrpo_config *c = in->c;
    const wrpo_json *window = wrpo_json_get(in->root, "sliding_window");
    const wrpo_json *layers = wrpo__present(in->root, "layer_types");
    const bool qwen = in->is & WRPO__QWEN, gemma2 = in->is & WRPO__GEMMA2, gemma3 = in->is & WRPO__GEMMA3;
    const bool off = in->is & WRPO__SWITCHED && !wrpo__switch(in->root, "use_sliding_window", false);
    const int64_t pattern = gemma3 ? wrpo__count(in->root, "sliding_window_pattern", 6, 1, most) : 0;
    if (off || (window && window->kind == WRPO_JSON_NULL)) c->sliding_window = 0;
    else c->sliding_window = wrpo__count(in->root, "sliding_window", c->sliding_window, 1, most);
    wrpo__check(!gemma3 || c->sliding_window, window, "a number: its layers differ by their windows");
    if (gemma2 && wrpo__count(in->root, size_key, c->sliding_window, 0, most) != c->sliding_window)
        wrpo__refuse(wrpo_json_get(in->root, size_key), NULL, "that of sliding_window");
    const int64_t first = qwen && c->sliding_window ? wrpo__count(in->root, "max_window_layers", 28, 0, most) : 0;
    const bool fits = !layers || (layers->kind == WRPO_JSON_ARRAY && layers->count == c->num_hidden_layers);
    wrpo__check(fits, layers, "one entry a layer");
    const wrpo_json *v = wrpo__first(layers);
    for (int64_t l = 0; l < c->num_hidden_layers; l++) {
        bool sliding = c->sliding_window && l >= first && !(gemma2 && l % 2) && !(gemma3 && (l + 1) % pattern == 0);
        if (in->is & WRPO__SMOLLM3) sliding = c->sliding_window && wrpo__layer_bit(c->no_rope_layers, l);
        if (layers) {
            sliding = wrpo__choice(v, "layer_types", types, in->is & WRPO__GRANITE4 ? 5 : 3) == 1;
            wrpo__check(!sliding || c->sliding_window, layers, "full_attention: there is no sliding_window");
            v = v->next;
        }
        if (sliding) c->sliding_layers[l / 64] |= (uint64_t)1 << l % 64;
    }
}
static void wrpo__config_head(wrpo__reader *in) {
    static const char *const heads[] = {
        "ForCausalLM", "ForSequenceClassification", "ForRewardModel", "ForRewardModelWithGating"};
    const wrpo_json *list = wrpo__present(in->root, "architectures");
    WRPO__EACH(v, list) {
        int head = v->kind == WRPO_JSON_STRING ? 0 : 4;
        while (head < 4 && !wrpo__ends(v->text, heads[head])) head++;
        if (head == 4 && v->kind == WRPO_JSON_STRING && wrpo__ends(v->text, "Model")) head = WRPO_HEAD_LM;  /* a base */
        const bool fits = head < 4 && (head != WRPO_HEAD_VALUE || in->is & WRPO__INTERNLM2);
        if (!fits || (v != list->child && head != (int)in->c->head))
            wrpo__unsupported(v, "architectures: want causal language models, sequence classification or the reward "
                    "models of InternLM2 and ArmoRM, found %s", wrpo__found(v));
        in->c->head = (wrpo_head)head;
    }
    in->is |= (unsigned)WRPO__HEADS << in->c->head;
}
/* Granite 4's dense models: no experts, no Mamba layers. */
static void wrpo__config_granite4(const wrpo_json *root) {
    const wrpo_json *experts = wrpo__need(root, "num_local_experts", WRPO_JSON_NUMBER);
    if (experts->number != 0) wrpo__refuse(experts, NULL, "0: mixtures of experts are not supported");
    wrpo__need(root, "layer_types", WRPO_JSON_ARRAY);
    wrpo__need(root, "shared_intermediate_size", WRPO_JSON_NUMBER);
    const wrpo_json *position = wrpo__need(root, "position_embedding_type", WRPO_JSON_STRING);
    wrpo__check(wrpo__json_is(position, "rope"), position, "rope");
}
/* Of several modalities the text model's; *class: what transformers calls it. */
static const wrpo_json *wrpo__config_text(const wrpo_json *root, const char **class) {
    const wrpo_json *text = wrpo__maybe(root, "text_config", WRPO_JSON_OBJECT);
    const wrpo_json *type = wrpo__need(root, "model_type", WRPO_JSON_STRING);
    *class = NULL;
    if (!text) return root;
    if (wrpo__json_is(type, "gemma3")) *class = "Gemma3ForCausalLM";
    else if (wrpo__json_is(type, "mistral3")) *class = "MistralForCausalLM";
    else
        wrpo__unsupported(type, "model_type %s: a model of several modalities: want its text model alone, as a "
                "directory of its own", wrpo__found(type));
    return text;
}
static void wrpo__config_parse(const wrpo_json *whole, wrpo_config *c) {
    static const char *const acts[] = {"silu", "swish", "gelu_pytorch_tanh", NULL};
    const char *names[WRPO__COUNT(wrpo__families) + 1] = {NULL};
    const char *class;
    const wrpo_json *root = wrpo__config_text(whole, &class);
    wrpo__reader reader = {.root = root, .c = c}, *in = &reader;
    const wrpo_json *type = wrpo__need(root, "model_type", WRPO_JSON_STRING);
    for (int i = 0; i < WRPO__COUNT(wrpo__families); i++) names[i] = wrpo__families[i].model_type;
    const int family = wrpo__choice(type, "model_type", names, WRPO__ALL);
    in->is = 1u << family;
    *c = wrpo__families[family];
    wrpo__config_head(in);
    if (c->rms_norm_eps == 0) c->rms_norm_eps = 1e-6;
    if (!c->max_position_embeddings) c->max_position_embeddings = 2048;
    c->initializer_range = 0.02;
    c->pad_token_id = c->reward_token_id = -1;
    if (c->head == WRPO_HEAD_GATED) c->gating_temperature = 10;
    WRPO__EACH(v, root) {
        const bool dropout = v->kind == WRPO_JSON_NUMBER && v->number > 0 &&
            wrpo__listed("attention_dropout attn_pdrop resid_pdrop embd_pdrop hidden_dropout", v->key);
        if (!wrpo__is_known(in, v))
            wrpo__unsupported(v, "\"%.80s\": %s is not supported for model_type %s", v->key, wrpo__found(v),
                    c->model_type);
        if (dropout) wrpo__warn("%s: %s %g: the model is trained without it", v->name, v->key, v->number);
    }
    for (int i = 0; i < WRPO__COUNT(wrpo__keys); i++)
        if (in->is & wrpo__keys[i].of) wrpo__config_key(in, &wrpo__keys[i]);
    c->tie_word_embeddings = wrpo__switch(whole, "tie_word_embeddings", c->tie_word_embeddings);

    const int64_t H = c->num_attention_heads;
    if (!c->num_key_value_heads) c->num_key_value_heads = H;
    if (!c->head_dim && c->hidden_size % H)
        wrpo__wrong(root, "hidden_size: want a multiple of num_attention_heads, %lld, where there is no head_dim, "
                "found %lld", (long long)H, (long long)c->hidden_size);
    if (!c->head_dim) c->head_dim = c->hidden_size / H;
    if (c->head_dim % 2 || c->head_dim > WRPO__MAX_D)
        wrpo__unsupported(root, "head_dim: want an even number up to %d, found %lld", WRPO__MAX_D,
                (long long)c->head_dim);
    if (H % c->num_key_value_heads)
        wrpo__wrong(root, "num_attention_heads: want a multiple of num_key_value_heads, %lld, found %lld",
                (long long)c->num_key_value_heads, (long long)H);
    c->output_bias = c->attention_bias && !(in->is & WRPO__QWEN2);
    const wrpo_json *act = c->gelu ? wrpo__present(root, "hidden_activation") : NULL;
    if (!act) act = wrpo__present(root, "hidden_act");
    if (act) wrpo__choice(act, act->key, acts, c->gelu ? 4 : 3);
    if (c->residual_multiplier == 1) c->residual_multiplier = 0;
    if (c->logits_scaling == 1) c->logits_scaling = 0;
    if (in->is & WRPO__GRANITE4) wrpo__config_granite4(root);
    wrpo__config_rope(in);
    if (in->is & WRPO__SMOLLM3) wrpo__config_no_rope(in);
    wrpo__config_windows(in);
    if (c->head == WRPO_HEAD_VALUE)
        c->reward_token_id = wrpo__integer(wrpo__need(root, "reward_token_id", WRPO_JSON_NUMBER), 0, c->vocab_size - 1,
                NULL);
    for (int k = 0; k < 4 && !c->dtype; k++)
        for (int i = WRPO_DTYPE_F32; i <= WRPO_DTYPE_F16; i++)
            if (wrpo__json_is(wrpo__present(k < 2 ? root : whole, k % 2 ? "torch_dtype" : "dtype"),
                    wrpo__dtypes[i].torch)) c->dtype = (wrpo_dtype)i;
}
#define WRPO__ADAPTER_FILE "adapter_model.safetensors"
#define WRPO__ADAPTER_CONFIG "adapter_config.json"
#define WRPO__ADAPTER_SCORE "base_model.model.score.weight"
static void wrpo__config_read(wrpo__arena *arena, const char *path, wrpo_config *c) {  /* path: or its directory */
    const char *config = wrpo__is_dir(path) ? wrpo__join(arena, path, "config.json") : path;
    if (!wrpo__exists(config)) wrpo__no_checkpoint(arena, path, "config.json", false);
    const wrpo__file *f = wrpo__open_file(arena, config);
    wrpo__refuse_foreign(f);
    memset(c, 0, sizeof *c);
    wrpo__config_parse(wrpo__json_parse(arena, config, 1, (const char *)f->data, f->size), c);
}
WRPO_API wrpo_result wrpo_config_load(wrpo_ctx *ctx, const char *path, wrpo_config *out) {
    WRPO__ENTRY(ctx, true, wrpo__config_read(wrpo__current, path, out));
}

/* ---- names: where the weights of the table are in the files ----
   The table has the Llama layout. Phi-3 and InternLM2 have other names, and tensors with the rows of several weights in
   the order of the table. InternLM2's wqkv has G groups: the query heads of a key/value head, its key, its value. */
static const struct { const char *family, *names; } wrpo__renames[] = {  /* our name, theirs, ... */
    {"phi3", "q_proj qkv_proj k_proj qkv_proj v_proj qkv_proj gate_proj gate_up_proj up_proj gate_up_proj"},
    {"granitemoehybrid", "mlp.gate_proj shared_mlp.input_linear mlp.up_proj shared_mlp.input_linear "
                         "mlp.down_proj shared_mlp.output_linear"},
    {"internlm2", "embed_tokens tok_embeddings lm_head output self_attn.q_proj attention.wqkv "
                  "self_attn.k_proj attention.wqkv self_attn.v_proj attention.wqkv self_attn.o_proj attention.wo "
                  "input_layernorm attention_norm post_attention_layernorm ffn_norm mlp.gate_proj feed_forward.w1 "
                  "mlp.up_proj feed_forward.w3 mlp.down_proj feed_forward.w2"}};
typedef struct wrpo__slice {  /* row r of a weight is row r / own * stride + first + r % own of tensor `name` */
    const char *name;
    int64_t rows, stride, first, own;  /* rows: of the tensor */
    const wrpo_tensor_info *info;  /* the tensor, once it is found */
    bool mapped;  /* the weight is used where the file has it */
} wrpo__slice;
static const char *wrpo__file_name(const wrpo_config *c, const char *name) {
    char ours[32], theirs[32];
    for (int i = 0; i < WRPO__COUNT(wrpo__renames); i++) {
        const char *rest = strcmp(c->model_type, wrpo__renames[i].family) ? "" : wrpo__renames[i].names;
        for (int n; sscanf(rest, "%31s %31s%n", ours, theirs, &n) == 2; rest += n) {
            const char *found = strstr(name, ours);
            if (!found) continue;
            return wrpo__format(wrpo__current, "%.*s%s%s", (int)(found - name), name, theirs, found + strlen(ours));
        }
    }
    return name;
}
static wrpo__slice *wrpo__slices(wrpo__arena *arena, const wrpo_model *m) {  /* of all weights */
    const int64_t n = m->n_weights;
    wrpo__slice *s = wrpo__alloc(arena, (size_t)n, sizeof *s);
    for (int64_t i = 0; i < n; i++) s[i].name = wrpo__file_name(&m->config, m->weights[i].name);
    for (int64_t i = 0, end; i < n; i = end) {  /* weights [i, end) are one tensor */
        const bool grouped = strstr(s[i].name, ".wqkv.") && !strstr(s[i].name, ".lora_A.");
        const int64_t groups = grouped ? m->config.num_key_value_heads : 1;
        int64_t rows = 0;
        for (end = i; end < n && !strcmp(s[end].name, s[i].name); end++) {
            s[end].first = rows / groups;
            s[end].own = m->weights[end].rows / groups;
            rows += m->weights[end].rows;
        }
        for (int64_t k = i; k < end; k++) {
            s[k].rows = rows;
            s[k].stride = rows / groups;
        }
    }
    return s;
}

/* ---- tensors against the table of weights ---- */
/* A tensor that a load leaves alone: a tied output; frequencies of old files; what is beside a text model; a reward
   model's head, which wrpo_reward_load reads. form: see wrpo__prefixes. */
static bool wrpo__is_extra(const wrpo_config *c, const char *name, int form) {
    const char *head = wrpo__file_name(c, "lm_head.weight");
    if (form > 1 && (strstr(name, "vision_tower.") || strstr(name, "multi_modal_projector."))) return true;
    if (form == 2 && !strncmp(name, "language_model.", 15)) name += 15;
    if (wrpo__ends(name, ".rotary_emb.inv_freq") || (c->tie_word_embeddings && !strcmp(name, head))) return true;
    switch (c->head) {
    case WRPO_HEAD_SCORE:            /* also of an adapter, and the output of the language model below it */
        return !strcmp(name, "score.weight") || !strcmp(name, WRPO__ADAPTER_SCORE) || !strcmp(name, head);
    case WRPO_HEAD_VALUE: return !strcmp(name, "v_head.weight");
    case WRPO_HEAD_GATED: return !strncmp(name, "gating.", 7) || !strcmp(name, "regression_layer.weight") ||
                                 !strcmp(name, "reward_transform_matrix");
    default: return false;
    }
}
/* Instead of "model." or of nothing: a base model; a text model beside others, before and since transformers 4.52. */
static const struct { const char *model, *head; } wrpo__prefixes[] = {
    {"model.", ""}, {"", ""}, {"language_model.model.", "language_model."}, {"model.language_model.", ""}};
static const wrpo_tensor_info *wrpo__find_as(const wrpo_tensors *t, int form, const char *name) {
    char found[160];
    const bool in_model = !strncmp(name, "model.", 6);
    const char *prefix = in_model ? wrpo__prefixes[form].model : wrpo__prefixes[form].head;
    snprintf(found, sizeof found, "%s%s", prefix, in_model ? name + 6 : name);
    return wrpo_tensors_find(t, found);
}
/* Which of these, by the last norm. */
static int wrpo__name_form(const wrpo_tensors *t, const wrpo_config *c) {
    const char *name = wrpo__file_name(c, "model.norm.weight");
    int form = 3;
    while (form > 0 && !wrpo__find_as(t, form, name)) form--;
    return form;
}
/* If a language model's config says that the output is the embedding, but the file has both and they differ, it is
   not: as in transformers 5. */
static void wrpo__untie(const wrpo_tensors *t, wrpo_config *c) {
    if (!c->tie_word_embeddings || c->head != WRPO_HEAD_LM) return;
    const char *in = wrpo__file_name(c, "model.embed_tokens.weight"), *out = wrpo__file_name(c, "lm_head.weight");
    const int form = wrpo__name_form(t, c);
    const wrpo_tensor_info *embed = wrpo__find_as(t, form, in), *head = wrpo__find_as(t, form, out);
    if (!embed || !head || (embed->bytes == head->bytes && !memcmp(embed->data, head->data, head->bytes))) return;
    c->tie_word_embeddings = false;
    wrpo__warn("%s: tie_word_embeddings is true, but %s and %s differ: they are not tied, and a save has both",
            head->file, in, out);
}
/* The slice of each weight from `begin` on: all are there, in their shapes, and nothing else. *dtype: of the first. */
static wrpo__slice *wrpo__find_weights(wrpo__arena *arena, const wrpo_model *m, int64_t begin, const char *dir,
        const wrpo_tensors *t, wrpo_dtype *dtype) {
    const wrpo_tensor_info *first = NULL, *other = NULL;
    wrpo__slice *slices = wrpo__slices(arena, m);
    bool *seen = wrpo__alloc(arena, (size_t)t->count, sizeof *seen);
    const int form = begin ? 0 : wrpo__name_form(t, &m->config);
    if (form == 1) wrpo__warn("%s: a base model's file, whose names lack \"model.\": a save has them", dir);
    if (form > 1) wrpo__warn("%s: a model of several modalities: its text model is read and saved, alone", dir);
    for (int64_t i = begin; i < m->n_weights; i++) {
        const wrpo_weight *w = &m->weights[i];
        wrpo__slice *s = &slices[i];
        const bool embedding = strstr(s->name, "embed_tokens.") || strstr(s->name, "tok_embeddings.");
        const wrpo_tensor_info *info = wrpo__find_as(t, form, s->name);
        if (!info && embedding && m->config.tie_word_embeddings)  /* it is there as the output */
            info = wrpo__find_as(t, form, wrpo__file_name(&m->config, "lm_head.weight"));
        if (!info)
            wrpo__fail_format("%s: %s is missing%s", dir, s->name,
                    form == 1 ? ": want a causal language model's checkpoint, found a base model's" : "");
        const int64_t shape[2] = {s->rows, w->cols};
        const int ndim = w->vector ? 1 : 2;
        if (info->ndim != ndim || memcmp(info->shape, shape, (size_t)ndim * sizeof *shape))
            wrpo__wrong_tensor(info, "want %s, found %s", wrpo__shape_text(ndim, shape),
                    wrpo__shape_text(info->ndim, info->shape));
        wrpo__need_float(info);
        s->info = info;
        if (!first) first = info;
        if (strcmp(info->dtype, first->dtype)) other = info;
        seen[info - t->info] = true;
    }
    if (other)
        wrpo__warn("%s: %s is %s, %s %s: saved again, all are %s unless a type is asked for", dir, first->name,
                first->dtype, other->name, other->dtype, first->dtype);
    for (int64_t i = 0; i < t->count; i++)
        if (!seen[i] && !wrpo__is_extra(&m->config, t->info[i].name, form))
            wrpo__wrong_tensor(&t->info[i], "no such tensor in a %s of this config", m->config.model_type);
    *dtype = wrpo__float_dtype(first);
    return slices;
}
/* The tensors of a directory, open until the current entry's arena is freed. */
static wrpo_tensors *wrpo__tensors_in(wrpo_ctx *ctx, const char *dir) {
    return wrpo__tensors_new(ctx->frame->arena, dir);
}
static void wrpo__model_check(const char *dir, wrpo_config *config, int64_t *parameters, wrpo_dtype *dtype) {
    wrpo__arena *temp = wrpo__current;
    wrpo__config_read(temp, dir, config);
    const wrpo_tensors *t = wrpo__tensors_new(temp, dir);
    wrpo__untie(t, config);
    const wrpo_model *table = wrpo__model_table(temp, config, WRPO_DTYPE_F32);
    *parameters = wrpo_model_parameters(table);
    wrpo__find_weights(temp, table, 0, dir, t, dtype);
}
WRPO_API wrpo_result wrpo_model_check(wrpo_ctx *ctx, const char *dir, wrpo_config *config, int64_t *parameters,
        wrpo_dtype *dtype) {
    *parameters = 0, *dtype = WRPO_DTYPE_DEFAULT;
    WRPO__ENTRY(ctx, true, wrpo__model_check(dir, config, parameters, dtype));
}

/* ---- load ----
   A frozen model on the host uses its matrices where the file has them, if they are aligned and in one piece there.
   Everything else is copied. */
static void wrpo__map_weights(wrpo_model *model, wrpo__slice *slices) {
    bool floats = false;
    for (int64_t i = 0; i < model->n_weights; i++) {
        wrpo_weight *w = &model->weights[i];
        wrpo__slice *s = &slices[i];
        const wrpo_dtype dtype = wrpo__float_dtype(s->info);
        const uintptr_t data = (uintptr_t)s->info->data, size = wrpo__dtype_size(dtype);
        s->mapped = !w->vector && s->stride == s->rows && data % size == 0;
        if (!s->mapped) continue;
        w->data = (void *)(data + (uintptr_t)(s->first * w->cols) * size);
        w->dtype = dtype;
        model->mapped += (size_t)wrpo__size(w) * size;
        floats = floats || dtype != WRPO_DTYPE_BF16;
    }
    if (floats && model->ctx->desc.dtype == WRPO_DTYPE_BF16)
        wrpo__warn("%s: not all matrices are BF16: products with the others are computed in float, not in bfloat16",
                model->dir);
}
static void wrpo__copy_weights(wrpo_model *model, int64_t begin, const wrpo__slice *slices, float *piece) {
    for (int64_t i = begin; i < model->n_weights; i++) {
        const wrpo_weight *w = &model->weights[i];
        const wrpo__slice *s = &slices[i];
        const int64_t run = s->own * w->cols;  /* elements in one piece of the file */
        for (int64_t k = 0, n; k < wrpo__size(w) && !s->mapped; k += n) {
            n = WRPO__MIN(run - k % run, WRPO__PIECE);
            wrpo__to_finite(piece, s->info, (k / run * s->stride + s->first) * w->cols + k % run, n);
            wrpo__weight_put(model, w, k, n, piece);
        }
    }
    wrpo__sync(model->ctx);
}
/* ---- adapters: new ones, and those of PEFT's directories ---- */
enum { WRPO__LINEARS = 7, WRPO__MAX_RANK = 4096 };
static const wrpo__kind wrpo__linears[WRPO__LINEARS] = {WRPO__W_q_proj, WRPO__W_k_proj, WRPO__W_v_proj, WRPO__W_o_proj,
                                                        WRPO__W_gate_proj, WRPO__W_up_proj, WRPO__W_down_proj};
/* The layer of a weight, as its family calls it: "model.layers.0.self_attn.qkv_proj". */
static const char *wrpo__layer_name(const wrpo_config *c, const wrpo_weight *w) {
    const char *name = wrpo__file_name(c, w->name);
    return wrpo__strndup(wrpo__current, name, strlen(name) - strlen(".weight"));
}
/* with the weight before it, into one layer (qkv_proj)? */
static bool wrpo__is_fused(const wrpo_config *c, const wrpo_weight *w) {
    return !strcmp(wrpo__layer_name(c, w), wrpo__layer_name(c, w - 1));
}
/* Room for adapters, none yet. Until it is put back, model->arena is an arena of their own: after a failure nothing is
   left of them. */
static wrpo__lora *wrpo__lora_new(wrpo_model *model) {
    wrpo_ctx *ctx = model->ctx;
    if (model->lora) wrpo__fail_arg("the model has an adapter already");
    if (model->low) wrpo__fail_arg("an adapter, in a context of bfloat16: want a model that was loaded frozen");
    if (!ctx->desc.backend->dropout)
        wrpo__fail_unsupported("%s: the backend has no dropout, which adapters need", ctx->desc.backend->name);
    if (model->trainers) wrpo__fail_arg("an adapter: want a model that no trainer trains");
    model->arena = wrpo__sub_arena(model->arena);
    wrpo__lora *lora = WRPO__NEW(model->arena, wrpo__lora);
    lora->of = wrpo__alloc(model->arena, (size_t)model->config.num_hidden_layers, WRPO__KINDS * sizeof *lora->of);
    return lora;
}
/* The i-th linear weight, layer by layer, and its adapter; false: there are no more. */
static bool wrpo__linear_at(const wrpo_model *model, const wrpo__lora *lora, int64_t i, const wrpo_weight **w,
        wrpo__adapter **of) {
    const wrpo__kind kind = wrpo__linears[i % WRPO__LINEARS];
    if (i == model->config.num_hidden_layers * WRPO__LINEARS) return false;
    *of = &lora->of[i / WRPO__LINEARS * WRPO__KINDS + (int64_t)kind];
    *w = wrpo__weight(model, kind, i / WRPO__LINEARS);
    return true;
}
static wrpo__adapter wrpo__adapter_of(const wrpo_config *c, const wrpo_weight *w, int64_t rank, double alpha,
        bool rslora) {
    const double root = rslora ? sqrt((double)rank) : (double)rank;
    return (wrpo__adapter){.rank = rank, .alpha = alpha, .scale = (float)(alpha / root),
                           .shared = wrpo__is_fused(c, w)};
}
/* Appends to the table, for each product, its As, which are one matrix, then its Bs. All are one run of memory. The
   other weights are trained no more. */
static void wrpo__adapter_table(wrpo_model *model, wrpo__lora *lora) {
    const wrpo__linear products[] = {wrpo__qkv, wrpo__o, wrpo__gu, wrpo__down};
    const int64_t L = model->config.num_hidden_layers, n = model->n_weights;
    wrpo_weight *w = wrpo__alloc(model->arena, (size_t)(n + 2 * WRPO__KINDS * L), sizeof *w), *next = w + n;
    memcpy(w, model->weights, (size_t)n * sizeof *w);
    for (int64_t i = 0; i < n; i++) w[i].at = -1;
    model->weights = w;
    model->lora = lora;
    model->frozen = true;
    model->count = 0;
    lora->first = n;
    for (int64_t i = 0; i < L * WRPO__COUNT(products); i++) {
        const int64_t l = i / WRPO__COUNT(products), p = i % WRPO__COUNT(products);
        const int count = products[p].count;
        wrpo__adapter *of = &lora->of[l * WRPO__KINDS + (int64_t)products[p].weight];
        const wrpo_weight *of_weight = wrpo__weight(model, products[p].weight, l);
        int64_t rank = 0;
        for (int k = 0; k < 2 * count; k++) {
            const int j = k % count;
            const bool is_b = k >= count;
            if (!of[j].rank) continue;
            if (!is_b && of[j].shared) {
                of[j].a = of[j - 1].a;
                continue;
            }
            const int stem = (int)strlen(of_weight[j].name) - (int)strlen("weight");
            const char *name = wrpo__format(model->arena, "base_model.model.%.*slora_%c.weight", stem,
                    of_weight[j].name, is_b ? 'B' : 'A');
            *next = (wrpo_weight){.name = name, .rows = is_b ? of_weight[j].rows : of[j].rank,
                                  .cols = is_b ? of[j].rank : of_weight[j].cols, .decay = true, .at = model->count,
                                  .dtype = model->ctx->desc.dtype};
            if (is_b) of[j].b = next;
            else of[j].a = next;
            if (!is_b) rank += of[j].rank;
            model->count += wrpo__size(next++);
        }
        lora->rank = WRPO__MAX(lora->rank, rank);
        if (rank) lora->cols = WRPO__MAX(lora->cols, of_weight->cols);
    }
    model->n_weights = next - w;
    model->count = wrpo__whole_blocks(model->count);
}
/* The table of a new adapter; it has no memory yet. */
static void wrpo__adapter_begin(wrpo_model *model, const wrpo_adapter_desc *desc) {
    wrpo__lora *lora = wrpo__lora_new(model);
    wrpo_adapter_desc *d = &lora->desc;
    if (desc) *d = *desc;
    if (!d->r) d->r = 16;
    if (!d->seed) d->seed = 42;
    d->alpha = wrpo__or_default(d->alpha, 32);
    const char *target = d->target ? d->target : "all-linear";
    const bool all = !strcmp(target, "all-linear");
    wrpo__text used = {.arena = wrpo__current};
    WRPO__RANGE(d->r >= 1 && d->r <= WRPO__MAX_RANK, "r", d->r, "a rank from 1 to 4096");
    WRPO__RANGE(d->alpha > 0 && d->alpha <= 1e6, "alpha", d->alpha, "a number above 0, to 1000000");
    WRPO__RANGE(d->dropout >= 0 && d->dropout <= 0.999, "dropout", d->dropout, "a number in [0, 0.999]");
    const wrpo_weight *w;
    wrpo__adapter *of;
    for (int64_t i = 0; wrpo__linear_at(model, lora, i, &w, &of); i++) {
        const char *leaf = strrchr(wrpo__layer_name(&model->config, w), '.') + 1;
        if (all || wrpo__listed(target, leaf)) *of = wrpo__adapter_of(&model->config, w, d->r, d->alpha, d->rslora);
        if (i < WRPO__LINEARS && !wrpo__is_fused(&model->config, w))
            wrpo__text_printf(&used, "%s%s", used.size ? "," : "", leaf);
    }
    size_t size = 0;
    for (const char *at = target; !all && (*at || at == target); at += size + (at[size] != 0)) {
        size = strcspn(at, ",");
        const char *name = wrpo__format(wrpo__current, "%.*s", (int)WRPO__MIN(size, 60), at);
        if (!wrpo__listed(used.data, name))
            wrpo__fail_arg("target: want all-linear or names out of %s, found \"%s\"", used.data, name);
    }
    d->target = NULL;
    wrpo__adapter_table(model, lora);
}
static void wrpo__adapter_new(wrpo_model *model, const wrpo_adapter_desc *desc) {
    const int64_t first = model->n_weights;
    wrpo__adapter_begin(model, desc);
    wrpo__model_memory(model);  /* cleared: every B is 0 */
    float *piece = wrpo__raw(wrpo__current, WRPO__PIECE, sizeof *piece);
    for (int64_t i = first; i < model->n_weights; i++) {
        const wrpo_weight *w = &model->weights[i];
        const uint64_t stream = wrpo__hash(0, w->name, strlen(w->name));
        if (wrpo__ends(w->name, ".lora_B.weight")) continue;
        for (int64_t at = 0, n; at < wrpo__size(w); at += n) {
            n = WRPO__MIN(wrpo__size(w) - at, WRPO__PIECE);
            for (int64_t k = 0; k < n; k++) {
                const uint64_t draw = wrpo__random64(model->lora->desc.seed, stream, (uint64_t)(at + k)) >> 11;
                piece[k] = (float)((2 * (double)draw / 0x1p53 - 1) / sqrt((double)w->cols));
            }
            wrpo__weight_put(model, w, at, n, piece);
        }
    }
    wrpo__sync(model->ctx);
}
static double wrpo__adapter_alpha(const wrpo_json *v) {
    if (!(v->number > 0 && v->number <= 1e6)) wrpo__refuse(v, NULL, "a positive number");
    return v->number;
}
/* Does modules_to_save name a reward model's head alone? PEFT adds "classifier", which decoders do not have. */
static bool wrpo__saves_score(const wrpo_json *list) {
    bool score = list->kind == WRPO_JSON_ARRAY && list->count > 0;
    for (const wrpo_json *v = list->child; v; v = v->next)
        score = score && (wrpo__json_is(v, "score") || wrpo__json_is(v, "classifier"));
    return score;
}
/* A key that would change the result has the value that is computed, or is refused. Unknown keys pass if they are null,
   false or empty. */
static void wrpo__adapter_config(const wrpo_json *root, bool reward, wrpo_adapter_desc *d) {
    static const char known[] =
        "r lora_alpha lora_dropout use_rslora rank_pattern alpha_pattern peft_type "
        "task_type base_model_name_or_path revision inference_mode target_modules exclude_modules "
        "layers_to_transform layers_pattern auto_mapping peft_version loftq_config eva_config init_lora_weights "
        "corda_config lora_ga_config megatron_config megatron_core runtime_config ensure_weight_tying";
    wrpo__want(root, WRPO_JSON_OBJECT, NULL);
    WRPO__EACH(v, root) {
        const bool off = v->kind == WRPO_JSON_NULL || (v->kind == WRPO_JSON_BOOL && !v->boolean) ||
            ((v->kind == WRPO_JSON_ARRAY || v->kind == WRPO_JSON_OBJECT) && !v->count) ||
            (!strcmp(v->key, "bias") && wrpo__json_is(v, "none")) ||
            (!strcmp(v->key, "qalora_group_size") && v->kind == WRPO_JSON_NUMBER) ||
            (!strcmp(v->key, "modules_to_save") && reward && wrpo__saves_score(v));
        if (off || wrpo__listed(known, v->key)) continue;
        wrpo__load_refuse(v->key, v);
    }
    const wrpo_json *type = wrpo__need(root, "peft_type", WRPO_JSON_STRING);
    wrpo__check(wrpo__json_is(type, "LORA"), type, "LORA");
    const wrpo_json *init = wrpo__present(root, "init_lora_weights");  /* others change the base */
    if (init && init->kind != WRPO_JSON_BOOL &&
            !(init->kind == WRPO_JSON_STRING && wrpo__listed("gaussian orthogonal eva mica", init->text)))
        wrpo__load_refuse(init->key, init);
    const wrpo_json *dropout = wrpo__maybe(root, "lora_dropout", WRPO_JSON_NUMBER);
    d->r = wrpo__integer(wrpo__need(root, "r", WRPO_JSON_NUMBER), 1, WRPO__MAX_RANK, NULL);
    d->alpha = wrpo__adapter_alpha(wrpo__need(root, "lora_alpha", WRPO_JSON_NUMBER));
    d->dropout = dropout ? dropout->number : 0;
    if (!(d->dropout >= 0 && d->dropout <= 0.999)) wrpo__refuse(dropout, NULL, "a number in [0, 0.999]");
    d->rslora = wrpo__switch(root, "use_rslora", false);
}
static bool wrpo__ends_layer(const char *layer, const char *name) {  /* whole, or from a dot on */
    const size_t n = strlen(layer), k = strlen(name);
    return wrpo__ends(layer, name) && (n == k || layer[n - k - 1] == '.');
}
/* rank_pattern or alpha_pattern: the value of the first key that ends the layer's name, or with ^ is all of it. As
   PEFT, but other regular expressions are refused. */
static const wrpo_json *wrpo__adapter_pattern(const wrpo_json *pattern, const char *layer) {
    WRPO__EACH(v, pattern) {
        const bool whole = v->key[0] == '^';
        const char *key = v->key + whole;
        if (key[strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")])
            wrpo__unsupported(v, "%s: want names of layers, found \"%.60s\"", pattern->key, v->key);
        wrpo__want(v, WRPO_JSON_NUMBER, NULL);
        if (whole ? !strcmp(layer, key) : wrpo__ends_layer(layer, key)) return v;
    }
    return NULL;
}
static bool wrpo__names_layer(const wrpo_json *list, const char *layer) {  /* does an array of names have it? */
    WRPO__EACH(v, list)
        if (wrpo__ends_layer(layer, wrpo__want(v, WRPO_JSON_STRING, list->key)->text)) return true;
    return false;
}
/* PEFT leaves out tensors that the config does not mean, and makes adapters that the file lacks. Here both must agree
   as far as the config has names; a regular expression means what the file has. */
static void wrpo__adapter_agrees(const wrpo_json *root, const char *layer, int64_t l, bool found) {
    const wrpo_json *target = wrpo__present(root, "target_modules"), *not = wrpo__present(root, "exclude_modules");
    const wrpo_json *layers = wrpo__present(root, "layers_to_transform");
    const bool many = layers && layers->kind == WRPO_JSON_ARRAY, all = wrpo__json_is(target, "all-linear");
    bool meant = all || (target && target->kind == WRPO_JSON_ARRAY ? wrpo__names_layer(target, layer) : found);
    if (not && not->kind == WRPO_JSON_ARRAY && wrpo__names_layer(not, layer)) meant = false;
    bool chosen = !layers;
    for (const wrpo_json *v = many ? layers->child : layers; v; v = many ? v->next : NULL)
        chosen = chosen || wrpo__integer(v, 0, INT32_MAX, "layers_to_transform") == l;
    if (found == (meant && chosen)) return;
    const wrpo_json *v = !chosen ? layers : not && !meant ? not : target;
    wrpo__wrong(v ? v : root, "%s: %s an adapter of %s, found %s", v ? v->key : "target_modules",
            found ? "want no" : "want", layer, found ? "its tensors" : "none");
}
static void wrpo__adapter_load(wrpo__arena *temp, wrpo_model *model, const char *dir) {
    const int64_t first = model->n_weights;
    if (!dir) wrpo__fail_arg("wrpo_adapter_load: dir is missing");
    wrpo__lora *lora = wrpo__lora_new(model);
    const char *file = wrpo__join(temp, dir, WRPO__ADAPTER_FILE);
    const wrpo_json *root = wrpo__json_file(temp, wrpo__join(temp, dir, WRPO__ADAPTER_CONFIG));
    wrpo__adapter_config(root, model->config.head != WRPO_HEAD_LM, &lora->desc);
    const wrpo_tensors *t = wrpo__tensors_new(temp, file);
    const wrpo_json *saved = wrpo__present(root, "modules_to_save");
    if ((saved && saved->count) != (wrpo_tensors_find(t, WRPO__ADAPTER_SCORE) != NULL))
        wrpo__fail_format("%s: want score.weight if modules_to_save of %s names it, and only then", file,
                WRPO__ADAPTER_CONFIG);
    const wrpo_json *ranks = wrpo__maybe(root, "rank_pattern", WRPO_JSON_OBJECT);
    const wrpo_json *alphas = wrpo__maybe(root, "alpha_pattern", WRPO_JSON_OBJECT);
    const wrpo_weight *w;
    wrpo__adapter *of;
    for (int64_t i = 0; wrpo__linear_at(model, lora, i, &w, &of); i++) {
        const char *layer = wrpo__layer_name(&model->config, w);
        const bool found = wrpo_tensors_find(t, wrpo__format(temp, "base_model.model.%s.lora_A.weight", layer));
        wrpo__adapter_agrees(root, layer, i / WRPO__LINEARS, found);
        if (!found) continue;
        const wrpo_json *rank = wrpo__adapter_pattern(ranks, layer);
        const wrpo_json *alpha = wrpo__adapter_pattern(alphas, layer);
        *of = wrpo__adapter_of(&model->config, w, rank ? wrpo__integer(rank, 1, WRPO__MAX_RANK, NULL) : lora->desc.r,
                alpha ? wrpo__adapter_alpha(alpha) : lora->desc.alpha, lora->desc.rslora);
    }
    for (int64_t i = 0; i < t->count; i++)
        if (strstr(t->info[i].name, "embed_tokens.") || strstr(t->info[i].name, "lm_head."))
            wrpo__fail_unsupported("%s: %s: an adapter of the embedding or of lm_head is not supported", file,
                    t->info[i].name);
    wrpo__adapter_table(model, lora);
    if (!model->count && !t->count) wrpo__fail_format("%s: want an adapter, found no tensors", file);
    wrpo_dtype dtype;
    wrpo__slice *slices = wrpo__find_weights(temp, model, first, file, t, &dtype);
    wrpo__model_memory(model);
    wrpo__copy_weights(model, first, slices, wrpo__raw(temp, WRPO__PIECE, sizeof(float)));
    lora->dir = wrpo__strndup(model->arena, dir, strlen(dir));
}
static wrpo_result wrpo__adapter_end(wrpo__frame *f, wrpo_model *model, const wrpo_model *before) {
    const wrpo_result r = wrpo__end(f);
    if (r != WRPO_OK && model->arena != before->arena) wrpo__arena_clear(model->arena);
    if (r != WRPO_OK) *model = *before;
    model->arena = before->arena;
    return r;
}
WRPO_API wrpo_result wrpo_adapter_new(wrpo_model *model, const wrpo_adapter_desc *desc) {
    const wrpo_model before = *model;
    WRPO__CALL(model->ctx, wrpo__arena_new(model->ctx), true, wrpo__adapter_new(model, desc));
    return wrpo__adapter_end(&wrpo__entry, model, &before);
}
WRPO_API wrpo_result wrpo_adapter_load(wrpo_model *model, const char *dir) {
    const wrpo_model before = *model;
    WRPO__CALL(model->ctx, wrpo__arena_new(model->ctx), true, wrpo__adapter_load(wrpo__current, model, dir));
    return wrpo__adapter_end(&wrpo__entry, model, &before);
}
WRPO_API wrpo_adapter_desc wrpo_model_adapter(const wrpo_model *model) {
    return model->lora ? model->lora->desc : (wrpo_adapter_desc){0};
}
/* The desc's adapter, or the one beside config.json, as transformers does it. */
static void wrpo__adapter_beside(wrpo__arena *temp, wrpo_model *model, const wrpo_model_desc *desc) {
    const bool beside = wrpo__exists(wrpo__join(temp, desc->dir, WRPO__ADAPTER_CONFIG));
    const char *dir = desc->adapter;
    if (dir && beside) wrpo__warn("%s: the adapter beside the model is left out", desc->dir);
    if (!dir && beside) dir = desc->dir;
    if (!dir) return;
    if (!desc->frozen)
        wrpo__fail_arg("%s: an adapter: want it merged into the model, or named as the adapter that is trained, in a "
                       "model loaded frozen", dir);
    wrpo__arena *arena = model->arena;
    wrpo__adapter_load(temp, model, dir);
    model->arena = arena;
    if (!desc->adapter) wrpo__log(model->ctx, WRPO_LOG_INFO, "%s: the adapter beside the model is applied", dir);
}

static void wrpo__need_language_model(const char *dir, const wrpo_config *c) {
    if (c->head != WRPO_HEAD_LM)
        wrpo__fail_unsupported("%s: a reward model: it scores answers (wrpo_reward_load), it has no logits to train",
                dir);
}
static wrpo_model *wrpo__model_from(wrpo__arena *arena, const wrpo_model_desc *desc, bool reward) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo__arena *temp = wrpo__sub_arena(arena);
    wrpo_config config;
    if (!desc || !desc->dir) wrpo__fail_arg("wrpo_model_desc: dir is missing");
    wrpo__config_read(temp, desc->dir, &config);
    if (!reward) wrpo__need_language_model(desc->dir, &config);
    else if (config.head == WRPO_HEAD_LM) config.head = WRPO_HEAD_SCORE;  /* the adapter has it */
    const bool map = desc->frozen && ctx->desc.backend->host;
    const wrpo_tensors *t = wrpo__tensors_new(map ? arena : temp, desc->dir);  /* open as long as the model */
    wrpo__untie(t, &config);
    wrpo_model *model = wrpo__model_table(arena, &config, map ? WRPO_DTYPE_F32 : ctx->desc.dtype);
    model->dir = model->tokenizer_dir = wrpo__format(arena, "%s", desc->dir);
    model->frozen = desc->frozen;
    wrpo__slice *slices = wrpo__find_weights(temp, model, 0, model->dir, t, &model->dtype);
    if (map) wrpo__map_weights(model, slices);
    wrpo__model_memory(model);
    wrpo__copy_weights(model, 0, slices, wrpo__raw(temp, WRPO__PIECE, sizeof(float)));
    wrpo__arena_clear(temp);
    wrpo__adapter_beside(temp, model, desc);
    wrpo__arena_clear(temp);
    return model;
}
WRPO_API wrpo_result wrpo_model_load(wrpo_ctx *ctx, const wrpo_model_desc *desc, wrpo_model **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__model_from(wrpo__current, desc, false));
}

/* ---- random weights ---- */
static wrpo_model *wrpo__model_init(wrpo__arena *arena, const wrpo_init_desc *desc) {
    wrpo_config config;
    if (!desc || !desc->config) wrpo__fail_arg("wrpo_init_desc: config is missing");
    wrpo__config_read(arena, desc->config, &config);
    wrpo__need_language_model(desc->config, &config);
    wrpo_model *model = wrpo__model_table(arena, &config, arena->ctx->desc.dtype);
    model->frozen = desc->frozen;
    wrpo__model_memory(model);
    const char *tokenizer = desc->tokenizer_dir;
    model->dir = wrpo__format(arena, "%s", desc->config);
    model->tokenizer_dir = tokenizer ? wrpo__format(arena, "%s", tokenizer) : NULL;
    model->dtype = desc->dtype ? desc->dtype : WRPO_DTYPE_F32;
    wrpo__model_randomize(model, desc->seed);
    return model;
}
WRPO_API wrpo_result wrpo_model_init(wrpo_ctx *ctx, const wrpo_init_desc *desc, wrpo_model **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__model_init(wrpo__current, desc));
}

/* ---- weights in and out; one of `get` and `put` is NULL ---- */
static void wrpo__weight_move(wrpo_model *model, int64_t i, int64_t first, int64_t count,
        float *get, const float *put) {
    wrpo_ctx *ctx = model->ctx;
    if (i < 0 || i >= model->n_weights)
        wrpo__fail_arg("weight %lld: want 0 to %lld", (long long)i, (long long)model->n_weights - 1);
    const wrpo_weight *w = &model->weights[i];
    if (first < 0 || count < 0 || first > wrpo__size(w) || count > wrpo__size(w) - first)
        wrpo__fail_arg("%s: %lld elements from %lld on: it has %lld", w->name, (long long)count, (long long)first,
                (long long)wrpo__size(w));
    if (put && model->frozen && !(model->lora && w->at >= 0))
        wrpo__fail_arg("%s: the model was loaded frozen (wrpo_model_desc)", w->name);
    if (put) wrpo__weight_put(model, w, first, count, put);
    else wrpo__weight_get(model, w, first, count, get);
    wrpo__sync(ctx);
}
WRPO_API wrpo_result wrpo_weight_get(wrpo_model *model, int64_t i, int64_t first, int64_t count, float *out) {
    WRPO__CALL_ALL(model->ctx, wrpo__arena_new(model->ctx), true, wrpo__weight_move(model, i, first, count, out, NULL));
    return wrpo__end(&wrpo__entry);
}
WRPO_API wrpo_result wrpo_weight_put(wrpo_model *model, int64_t i, int64_t first, int64_t count, const float *values) {
    WRPO__ENTRY(model->ctx, true, wrpo__weight_move(model, i, first, count, NULL, values));
}

/* ---- save ----
   Side files are what belongs to a checkpoint beside its weights: config.json, tokenizer, template, licence. */
static bool wrpo__is_side_file(const char *name) {  /* other than config.json, which is written anew */
    static const char *const ends[] = {".json", ".jinja", ".txt", ".model", ".md", ".py", "LICENSE", "NOTICE"};
    if (name[0] == '.' || !strncmp(name, "reference_logps", 15) || wrpo__ends(name, ".index.json")) return false;
    if (wrpo__listed("config.json run.json trainer_state.json " WRPO__ADAPTER_CONFIG, name)) return false;
    for (int i = 0; i < WRPO__COUNT(ends); i++)
        if (wrpo__ends(name, ends[i])) return true;
    return false;
}
/* One more side file, unless it is there with the same content. */
static void wrpo__side_file(wrpo__save *save, const char *name, const void *data, size_t size) {
    const char *to = wrpo__join(save->temp, save->dir, name);
    const wrpo__file *old = wrpo__disk_exists(to) ? wrpo__disk_open(save->temp, to) : NULL;
    if (old && old->size == size && !memcmp(old->data, data, size)) return;
    stbds_arrput(save->sides, wrpo__write_whole(save->temp, to, data, size));
}
/* Where a value begins, by line and column. */
static const char *wrpo__json_place(const char *text, const wrpo_json *v) {
    for (int32_t i = 1; i < v->line; i++) text = strchr(text, '\n') + 1;
    for (int32_t i = 1; i < v->column; i++)
        for (text++; (*text & 0xC0) == 0x80;) text++;  /* to the next code point */
    return text;
}
static const char *wrpo__json_end(const char *s) {  /* where the value that begins there ends */
    const size_t n = strlen(s);
    wrpo__json_in in = {wrpo__current, "", s, s + n, 1, s, wrpo__raw(wrpo__current, n + 1, 1)};
    wrpo_json v = {0};
    wrpo__json_value(&in, &v, 0);
    while (strchr(" \t\r\n", in.at[-1])) in.at--;
    return in.at;
}
/* A side file with the text of a whole value, of which `object` is or becomes all: unchanged except for some members,
   or, with add, what it lacks. value NULL: no edit. */
typedef struct wrpo__json_edit { const char *key, *value; bool add; } wrpo__json_edit;
static void wrpo__save_edited(wrpo__save *save, const char *name, const char *text, const wrpo_json *whole,
        const wrpo_json *object, const wrpo__json_edit *edits, int count) {
    const char *begin = wrpo__json_place(text, whole), *rest = wrpo__json_place(text, object);
    const char *end = wrpo__json_end(rest);
    int64_t members = object->count;
    wrpo__text out = {.arena = save->temp};
    wrpo__text_add(&out, text, (size_t)(begin - text));
    wrpo__text_add(&out, rest++, 1);
    for (int i = 0; i < count; i++)
        if (edits[i].value && edits[i].add && !wrpo_json_get(object, edits[i].key))
            wrpo__text_printf(&out, "\n  \"%s\": %s%s", edits[i].key, edits[i].value, members++ ? "," : "");
    WRPO__EACH(v, object)
        for (int i = 0; i < count; i++) {
            if (!edits[i].value || strcmp(edits[i].key, v->key)) continue;
            const char *at = wrpo__json_place(text, v);
            wrpo__text_add(&out, rest, (size_t)(at - rest));
            wrpo__text_puts(&out, edits[i].value);
            rest = wrpo__json_end(at);
        }
    wrpo__text_add(&out, rest, (size_t)(end - rest));
    wrpo__text_puts(&out, wrpo__json_end(begin));
    wrpo__side_file(save, name, out.data, out.size);
}
/* config.json, unchanged except for what is written: the dtype; whether it is tied; a language model where a base model
   or one of several modalities was read. */
static void wrpo__save_config(wrpo__save *save, const char *from, const wrpo_config *c) {
    wrpo__arena *arena = save->temp;
    const wrpo__file *f = wrpo__open_file(arena, from);
    const char *text = wrpo__strndup(arena, (const char *)f->data, f->size), *class = NULL;
    const wrpo_json *whole = wrpo__json_parse(arena, from, 1, text, f->size);
    const wrpo_json *root = wrpo__config_text(whole, &class);
    const wrpo_json *name = wrpo_json_get(root, "architectures");
    const char *type = wrpo__format(arena, "\"%s\"", wrpo__dtypes[save->dtype].torch);
    bool tied = false;
    for (int i = 0; i < WRPO__COUNT(wrpo__families); i++)
        if (!strcmp(c->model_type, wrpo__families[i].model_type)) tied = wrpo__families[i].tie_word_embeddings;
    tied = wrpo__switch(root, "tie_word_embeddings", tied);
    if (class) class = wrpo__format(arena, "[\"%s\"]", class);
    else if (name && name->child && c->head == WRPO_HEAD_LM && wrpo__ends(name->child->text, "Model"))
        class = wrpo__format(arena, "[\"%.*sForCausalLM\"]", (int)name->child->size - 5, name->child->text);
    const bool differs = c->head == WRPO_HEAD_LM && tied != c->tie_word_embeddings;
    const char *const tying = c->tie_word_embeddings ? "true" : "false";
    const wrpo__json_edit edits[] = {
        {"torch_dtype", wrpo__present(root, "torch_dtype") ? type : NULL, false},
        {"dtype", root != whole || wrpo__present(root, "dtype") ? type : NULL, true},
        {"tie_word_embeddings", differs ? tying : NULL, true},
        {"architectures", class, true}};
    wrpo__save_edited(save, "config.json", text, whole, root, edits, WRPO__COUNT(edits));
}
#define WRPO__GENERATION_CONFIG "generation_config.json"
static void wrpo__save_eos(wrpo__save *save, const char *from, const wrpo_save_desc *desc) {
    wrpo__arena *arena = save->temp;
    wrpo__text list = {.arena = arena};
    const wrpo__file *f = from ? wrpo__open_file(arena, from) : NULL;
    const char *text = f ? wrpo__strndup(arena, (const char *)f->data, f->size) : "{}\n";
    const wrpo_json *root = wrpo__json_parse(arena, from ? from : WRPO__GENERATION_CONFIG, 1, text, strlen(text));
    for (int64_t i = 0; i < desc->eos_count; i++)
        wrpo__text_printf(&list, "%s%d", i ? ", " : "[", (int)desc->eos[i]);
    wrpo__text_puts(&list, "]");
    const wrpo__json_edit edit = {"eos_token_id", list.data, true};
    wrpo__save_edited(save, WRPO__GENERATION_CONFIG, text, root, wrpo__want(root, WRPO_JSON_OBJECT, NULL), &edit, 1);
}
/* Of the tokenizer's directory, then of the model's, where names are not taken. */
static void wrpo__save_sides(wrpo__save *save, const wrpo_model *model, const wrpo_save_desc *desc) {
    wrpo__arena *arena = save->temp;
    const bool dir = wrpo__is_dir(model->dir);  /* else it is the path of a config.json */
    const char *from[2] = {model->tokenizer_dir, dir ? model->dir : NULL}, *stops = NULL;
    wrpo__save_config(save, dir ? wrpo__join(arena, model->dir, "config.json") : model->dir, &model->config);
    for (int i = 0; i < 2; i++) {
        const wrpo__name *names = from[i] ? wrpo__list_dir(arena, from[i]) : NULL;
        for (int64_t k = 0; k < stbds_arrlen(names); k++) {
            const char *name = names[k].text, *path = wrpo__join(arena, from[i], name);
            const bool taken = i && from[0] && wrpo__exists(wrpo__join(arena, from[0], name));
            if (taken || !wrpo__is_side_file(name) || wrpo__is_dir(path)) continue;
            if (desc->eos_count && !strcmp(name, WRPO__GENERATION_CONFIG)) {
                stops = path;
                continue;
            }
            const wrpo__file *f = wrpo__open_file(arena, path);
            wrpo__side_file(save, name, f->data, f->size);
        }
    }
    if (desc->eos_count) wrpo__save_eos(save, stops, desc);
}
/* adapter_config.json, as PEFT writes it. Patterns name layers whose rank or alpha differs. target_modules names layers
   one by one where not all of a name have an adapter. */
static void wrpo__save_adapter_config(wrpo__save *save, const wrpo_model *model) {
    const wrpo__lora *lora = model->lora;
    const wrpo_adapter_desc *d = &lora->desc;
    wrpo__text out = {.arena = save->temp}, targets = out, ranks = out, alphas = out;
    wrpo__text_puts(&ranks, "");  /* never NULL */
    wrpo__text_puts(&alphas, "");
    int64_t adapted[WRPO__LINEARS] = {0};
    const wrpo_weight *w;
    wrpo__adapter *of;
    for (int64_t i = 0; wrpo__linear_at(model, lora, i, &w, &of); i++) adapted[i % WRPO__LINEARS] += of->rank > 0;
    for (int64_t i = 0; wrpo__linear_at(model, lora, i, &w, &of); i++) {
        const bool everywhere = adapted[i % WRPO__LINEARS] == model->config.num_hidden_layers;
        if (!of->rank || of->shared) continue;
        const char *name = wrpo__layer_name(&model->config, w);
        if (of->rank != d->r)
            wrpo__text_printf(&ranks, "%s\"%s\": %lld", ranks.size ? ", " : "", name, (long long)of->rank);
        if (of->alpha != d->alpha)
            wrpo__text_printf(&alphas, "%s\"%s\": %s", alphas.size ? ", " : "", name, wrpo__number_text(of->alpha));
        if (!everywhere || i < WRPO__LINEARS)
            wrpo__text_printf(&targets, "%s\"%s\"", targets.size ? ", " : "",
                    everywhere ? strrchr(name, '.') + 1 : name);
    }
    wrpo__text_puts(&out, "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": \"CAUSAL_LM\",\n  "
            "\"base_model_name_or_path\": ");
    if (model->dir) wrpo__json_quote(&out, model->dir, strlen(model->dir));
    else wrpo__text_puts(&out, "null");
    wrpo__text_printf(&out, ",\n  \"r\": %lld,\n  \"lora_alpha\": %s,\n  \"lora_dropout\": %s,\n  "
            "\"use_rslora\": %s,\n  \"target_modules\": [%s],\n  \"rank_pattern\": {%s},\n  "
            "\"alpha_pattern\": {%s},\n  \"bias\": \"none\",\n  \"use_dora\": false,\n  "
            "\"fan_in_fan_out\": false,\n  \"modules_to_save\": null,\n  \"init_lora_weights\": true,\n  "
            "\"inference_mode\": true\n}\n", (long long)d->r, wrpo__number_text(d->alpha),
            wrpo__number_text(d->dropout), d->rslora ? "true" : "false", targets.data, ranks.data, alphas.data);
    wrpo__side_file(save, WRPO__ADAPTER_CONFIG, out.data, out.size);
}
/* first[tensor]: its first weight. of[weight]: its adapter, to be merged; a, b: of weight `merged` */
typedef struct wrpo__saving {
    const wrpo_model *model; const wrpo__slice *slices; int64_t *first;
    const wrpo__adapter **of; const wrpo_weight *merged; float *a, *b;
} wrpo__saving;
/* dst, elements [first, first + count) of w, += scale B A, summed in double. */
static void wrpo__merge_adapter(wrpo__saving *saving, const wrpo_weight *w, int64_t first, int64_t count, float *dst) {
    enum { PIECE = 256 };
    const wrpo__adapter *of = saving->of ? saving->of[w - saving->model->weights] : NULL;
    const int threads = saving->model->ctx->desc.threads;
    if (!of) return;
    if (saving->merged != w) {
        wrpo__block_free(saving->a);
        wrpo__block_free(saving->b);
        saving->a = wrpo__raw(wrpo__current, (size_t)wrpo__size(of->a), sizeof(float));
        saving->b = wrpo__raw(wrpo__current, (size_t)wrpo__size(of->b), sizeof(float));
        wrpo__weight_get(saving->model, of->a, 0, wrpo__size(of->a), saving->a);
        wrpo__weight_get(saving->model, of->b, 0, wrpo__size(of->b), saving->b);
        saving->merged = w;
    }
    WRPO__PARFOR(threads)
    for (int64_t begin = first / PIECE; begin <= (first + count - 1) / PIECE; begin++)
        for (int64_t i = WRPO__MAX(first, begin * PIECE); i < WRPO__MIN(first + count, (begin + 1) * PIECE); i++) {
            const float *a = saving->a + i % w->cols, *b = saving->b + i / w->cols * of->rank;
            double sum = 0;
            for (int64_t k = 0; k < of->rank; k++) sum += (double)b[k] * a[k * w->cols];
            dst[i - first] = (float)(dst[i - first] + (double)of->scale * sum);
        }
}
static const float *wrpo__save_piece(void *user, int64_t tensor, int64_t first, int64_t count, float *dst) {
    wrpo__saving *saving = user;
    const float *begin = dst;
    for (int64_t n; count > 0; first += n, dst += n, count -= n) {
        const wrpo_weight *w = saving->model->weights + saving->first[tensor];
        const wrpo__slice *s = saving->slices + saving->first[tensor];
        const int64_t row = first / w->cols, col = first % w->cols, place = row % s->stride;
        while (place >= s->first + s->own) {
            s++;
            w++;
        }
        const int64_t own_row = place - s->first;  /* within the weight's rows of this group */
        n = WRPO__MIN(count, (s->own - own_row) * w->cols - col);
        const int64_t at = (row / s->stride * s->own + own_row) * w->cols + col;
        if (n == count && dst == begin && w->dtype == WRPO_DTYPE_F32 && !saving->of &&
            saving->model->ctx->desc.backend->host)
            return (const float *)w->data + at;
        wrpo__weight_get(saving->model, w, at, n, dst);
        wrpo__merge_adapter(saving, w, at, n, dst);
    }
    return begin;
}
/* With an adapter, no directory that was read is written to, and no adapter comes to be beside another model. */
static void wrpo__other_dir(const char *dir, const char *input, const char *what) {
    struct stat a, b;
    if (!input || stat(dir, &a) || stat(input, &b)) return;
    if (a.st_ino ? a.st_dev == b.st_dev && a.st_ino == b.st_ino : !strcmp(dir, input))
        wrpo__fail_arg("%s: want another directory than that of %s", dir, what);
}
static void wrpo__save_check(wrpo__arena *temp, const wrpo_model *model, const wrpo_save_desc *desc) {
    if (!desc || !desc->dir) wrpo__fail_arg("wrpo_save_desc: dir is missing");
    const bool alone = model->lora && !desc->merge;
    const char *other = wrpo__join(temp, desc->dir, alone ? "config.json" : WRPO__ADAPTER_CONFIG);
    if (!model->dir && !alone)
        wrpo__fail_arg("wrpo_model_save: want a model with a config.json, found one of wrpo_model_new");
    if (desc->merge && !model->lora) wrpo__fail_arg("wrpo_model_save: merge: the model has no adapter");
    if (model->lora) wrpo__other_dir(desc->dir, model->lora->dir, "the adapter");
    if (model->lora) wrpo__other_dir(desc->dir, model->dir, "the adapter's base");
    if (wrpo__disk_exists(other))
        wrpo__fail_arg("%s: %s would be beside it: want another directory, or remove it", other,
                alone ? "an adapter" : "a whole model");
    WRPO__RANGE(desc->max_shard_size >= 0, "max_shard_size", desc->max_shard_size, "a number of bytes");
    for (int64_t i = 0; i < desc->eos_count; i++)
        WRPO__RANGE(desc->eos[i] >= 0 && desc->eos[i] < model->config.vocab_size, "wrpo_save_desc.eos", desc->eos[i],
                "a token's id");
}
static void wrpo__model_save(wrpo__arena *arena, const wrpo_model *model, const wrpo_save_desc *desc,
        wrpo__rounding *r) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo__save_check(arena, model, desc);
    wrpo__make_dir(ctx, desc->dir);
    const wrpo__lora *lora = model->lora;
    const bool alone = lora && !desc->merge;
    const int64_t begin = alone ? lora->first : 0, end = lora && !alone ? lora->first : model->n_weights;
    const wrpo_dtype dtype = desc->dtype ? desc->dtype : alone ? WRPO_DTYPE_F32 : model->dtype;
    const bool loaded = model->dir && model->dir == model->tokenizer_dir;
    wrpo_tensors *from = NULL;
    r->random = desc->random_rounding && dtype == WRPO_DTYPE_BF16;
    if (loaded && !alone && dtype != WRPO_DTYPE_F32) {
        const wrpo_result opened = wrpo_tensors_open(ctx, model->dir, &from);
        if (opened == WRPO_E_MEMORY) wrpo__rethrow(ctx, opened);  /* other failures: it is gone */
    }
    if (from) {
        wrpo__on_free(arena, wrpo__tensors_drop, from);
        r->from = from;
    }
    wrpo__save_tensor *t = wrpo__alloc(arena, (size_t)model->n_weights, sizeof *t);
    const wrpo__slice *s = wrpo__slices(arena, model);
    wrpo__saving saving = {.model = model, .slices = s};
    saving.first = wrpo__alloc(arena, (size_t)model->n_weights, sizeof *saving.first);
    if (desc->merge) saving.of = wrpo__alloc(arena, (size_t)model->n_weights, sizeof *saving.of);
    const wrpo_weight *linear;
    wrpo__adapter *of;
    for (int64_t i = 0; desc->merge && wrpo__linear_at(model, lora, i, &linear, &of); i++)
        if (of->rank) saving.of[linear - model->weights] = of;
    wrpo__save save = {.temp = arena, .dir = desc->dir, .file = alone ? WRPO__ADAPTER_FILE : NULL, .t = t,
                       .dtype = dtype, .max_shard_size = desc->max_shard_size, .fn = wrpo__save_piece,
                       .user = &saving, .rounding = r};
    for (int64_t i = begin; i < end; i++) {
        const wrpo_weight *w = &model->weights[i];
        if (s[i].first) continue;  /* in the tensor of an earlier weight */
        t[save.n] = (wrpo__save_tensor){s[i].name, w->vector ? 1 : 2, {s[i].rows, w->cols, 0, 0}};
        saving.first[save.n++] = i;
    }
    if (alone) wrpo__save_adapter_config(&save, model);
    else wrpo__save_sides(&save, model, desc);
    wrpo__tensors_save(&save);
    const double kept = wrpo__kept(r);
    if (r->changed > 0)
        wrpo__log(ctx, kept < 0.5 ? WRPO_LOG_WARN : WRPO_LOG_INFO, "%s: %.3g %% of the change to the weights is left "
                "after they were rounded to %s%s", desc->dir, 100 * kept, wrpo__dtype_name(dtype),
                kept < 0.5 ? ": --save-dtype f32 (wrpo_save_desc.dtype) keeps all of it" : "");
}
WRPO_API wrpo_result wrpo_model_save(wrpo_model *model, const wrpo_save_desc *desc) {
    WRPO__CALL_ALL(model->ctx, wrpo__arena_new(model->ctx), true,
            wrpo__model_save(wrpo__current, model, desc, &(wrpo__rounding){0}));
    return wrpo__end(&wrpo__entry);
}

/* -------------------------------------------------------------------------------------------- >>token
   tokenizer.json of Hugging Face's tokenizers, for BPE models: text -> ids -> text, exactly as the library does it.

       text --> added tokens --> normalizer --> added tokens --> pre-tokenizer --> BPE --> post-processor --> ids
                in the raw       rewrites       in normalized    cuts text         ids of  ids before and
                text             the text       text             into words        a word  after all others
       ids --> a text for each token --> decoder --> text

   Between these steps the text is a list of pieces: words and added tokens. All before BPE is a list of edits, and so
   is the decoder. An edit rewrites or cuts every piece that is no added token. Loading refuses all else by name. A new
   normalizer, pre-tokenizer or decoder is a row of wrpo__components and, if need be, a kind of edit.               */

/* ---- Unicode: one class for each code point, and what NFC needs ----
   Classes are those of oniguruma's regexes (Unicode 16) and of \w in Rust's regex, for added tokens (WRPO__WORD). NFC
   is Unicode 9's, as in the library. */
typedef enum wrpo__class {
    WRPO__OTHER, WRPO__LU, WRPO__LL, WRPO__LT, WRPO__LM, WRPO__LO, WRPO__M, WRPO__ND, WRPO__NL /* numbers in \w */,
    WRPO__NO, WRPO__P, WRPO__S, WRPO__SPACE, WRPO__PC /* punctuation in \w */, WRPO__SW /* symbols in \w */,
    WRPO__CW /* joiners: the rest of \w */
} wrpo__class;
enum {
    WRPO__L = 1 << WRPO__LU | 1 << WRPO__LL | 1 << WRPO__LT | 1 << WRPO__LM | 1 << WRPO__LO,
    WRPO__N = 1 << WRPO__ND | 1 << WRPO__NL | 1 << WRPO__NO,
    WRPO__WORD = WRPO__L | 1 << WRPO__M | 1 << WRPO__ND | 1 << WRPO__NL | 1 << WRPO__PC | 1 << WRPO__SW | 1 << WRPO__CW,
    WRPO__CLASSES = 0xFFFF,
    WRPO__CAREFUL = 16  /* added to a class: NFC may change this code point or the one before it */
};
/* Numbers, packed by an adaptive arithmetic coder; tests/golden/unicode_tables.py writes them.
   runs from U+0000 to U+10FFFF: class, length - 1; class 16 is M with a combining class, which comes next */
static const char *const wrpo__unicode_classes[] = {
"UPAYx2i86[d{}8(G2]Pc4-cOo7{PF;KzLnd6Y8sdi6]h}gf@1Lsh!Kuz.mo<;d-ut D~g^eDupNxZ =+=Fxf^aUBd@xl>ssEm668.LV,N}C:!&7Jn> Y2",
"G6SdCW8X%n=D0-4Ur4XLSksmTvFNo2i~e=1%^,&%EG4J7pcbavk7]@r+A8PyQ7Ff4SX2ayH$9..;7k_=<HaaACzWK.aJdj],LP7IBt-.j!1h3urFi 3,c",
",,1XP+ZgX[}6 38+tnz.2n3x!a1.2v:zz.p(O|O5Z:!GB6P<~DAiTLRPq&|-E:2uOc}KfgVZ]OY-k^o%9D]_d<|q@#E#H(@f9iG;igiwFZ_c18=OR8on1",
",=]#!$-rmmHm8O)y GG}fPU @R|RCj}};1@b@t|=D*5@~_BI6ut jbCw47I=c#XGQ,^toE`Mmjm~Ni;WlqdF~czjXOA<_UP[QP@cW)vUB><ut54A[f}fJ",
"DxreZ(d_w4)`Ah<&%meoy5#rgd=te3t8j[=!F,wqJY,E!rhZOK)$Ep3PuTr`<My$#oaWLr@G#hceh`%INKD<gpR,.+Gw1MBZDsa`G*8^FYiYB([jyTp0p",
"5J^E*)c8P^Nwp<PD zu!sax8]a{8KvT|1EzPx0Fl(m8H8hY<G5(`YZ|t1t$#9M[k4uJGv=:Ae>SrTCF8&_Nz(8'VE@Sb%ieVw=#c6Q%eo1#(XvP!!*=N`",
"R|c&*K#_t=dm~Mcz2N{hF5 yWG0d5b`ma]y.BL,>PW6e$9=I`jkak7cA[6b%ug6.)BZIl>&6+^C+M=tq|sHxy2]B$w9B+bRn<lMe]2W[+aoxE&slD8:7t",
"$*TbenyEO6%'pl=LW,,OlMY5YU|a{L2xBwbtWZGnq&0W7RRF#L{tn'o@V5u>WJ.TVMa#Yky%e,Lz1>$nVZJ*lRRb(G~idF+:LfP!j2v@eLpuSlKzHP^L-",
"d{oVki%q#LY82XJSNax.4yk_@9'.l9IP9<R<C^f37uPb~Y l9>hdyMPAxLMdi~g.]S7EzT^^#-glMxI}qK BR3z-3:t-=CXi;B,f>62Qfc5Y1yd]R!~Y'",
"Iul!$%6JOMOVeaUSwC]`PQ1l),m!$sjVM%@4N4Tsd^@xBp)>o( @CE'O!aEm:|)H8>.e@8l6e_*bx@smJ6 %.s$t=}SQzo'H+{'IP&s1_U#CRSZ[Wh%-l",
"xX|mM]][YX&wv_Pl (0Aee%nVjxfvSmqp4Ma2(g.ZtLx#1}W`RW2Z9QfU>hr3g5$'n+|PmoXIBRsDn:E{m.u_>n5bX7JdeT^SFcpK0mk!q{}}_@BM}@'&",
"o$u+D ozE+3#F7=L1Tx`~xiqW0Yv'^1d<.:O,FN(pq|IXdx4~qZt6k#4j&D*jH27Xw`Vq7yZ^yP]%uN];;5meIqUy5)A*FNFqCXqB69qfoG0@XC`,4R91",
"zs|QRk7|WF)[103%IS>-a^N >& CQLjt].fx_*366EOKs7l@kptxF0A4t-dy|$)&5}r@MP!V_1@W+J{__rPN2b%(TC>aQ_gYq]dm6Ui cod*JsB3&edGs",
"_R>le70k+^T*(:]mO8g.x;_a}f_j[qBym#n>U1C@#8-}(~^C8QsVa3d]U_3OePGjIHcNq3nmYvCHub(z:;V%[p 6-KzpY++U;u_1^fQIL^5%4'wz-W)6@",
"Ug'PQsAyBt;h>!v$Fp;_pp#!Usi_e5I_j}SW&TO*n]!>',xhM158#.jJNybCE:_yIz}aVPYPju^gXFMWe9NG>FJaRNq1>naC.<|G!nKY^q wTAxWUWA@d",
"qz4U>(q;pXxAJ@J=j.}-V'a<4k&Q5QdvJ$va_9gcV+]tTDM=7WC.dt{{kG|lJGZQOhx7|q~LYLb! gA &E6ihv[NHkM_p#WN$:*H.S+DvwwL`BNClbgxS",
"(vL>CfKL==cAE 2%8^2|=L C&<68G+DLs*86j=9c#jcECUdZms[P.jsV&ICUPXx>(*`AhlrJV]%y'9|,)~aGWS<fNdoR2aJ_Alu^' ~_.H*m(BvV9:KJn",
"JlzIka1[;@aQszP]wy!V^VO[Gd(4ttb 6&kjjx<o@m+vd04LI-,0v7^tK!#'!Y5pq6R{.,0~!iIzG(lkLxak_VV,y2k[~tQM95KAHQ`!54*UopKM1COm]",
"scsi<BBCM~diIJ3|x~0qk2%vsb.zAw~%@j'r%5po*S`a`YTN j9V=Ma]<eYc]d#hq7`<kfZ6M,h[rA>;I2}scpbEOdHd'}6{@Q*~w=<##{cp#'eViy4$v",
"M(EU8hB9D~%QFh{]rC[,ocnIcjj'LjcUD-zPj+6XLAn1' -0TF;,Dz[a=xuJtByt-LtyzVkmki%DjkSSM+ZAOY'dm.@(;35l:F&q7JSLD<6-ju9{UGJi7",
"9Sjn1',Mo*+pKi3Y.e;h4{+8G[,o<1UQfP.6KA4SsPoZgS2txP9P%B0qU)xOMf6MmO.XLW*Ld9JBg,%Of3ABnS3L`Sm>]'YDuW`uKNn :c!,.)E:Duo`<",
"vLGJ|wp[My(`_XNfinI 2~ qM:15RBHF[Wd^LNb!AJXux$Lapt<S#,XU+6mS+Cdu]+DYc5a!F5_jG!!G!|PqPr.korYs}6KG+!7S_B(J;)=%NNq2TnCS}",
"EM+_NTd5CwVq7_5aqJ*^V*x!@$1kD,;}_q={$Fzj[>OMRh -<*1HoQt ~3R$G{7W{=TA+:^1lT1rfN(:KoXGGZ}33b6GVESKTTDMRvjZ!*4u<1r[7o{&M",
"DGP}vSndI{`9`CZ:<xo(pfYKt#VPf^(zyNh!C*clI_@{x>ypp%6woooCFB(jt8%w)$GF56Y0<!B4ink|ojE[DBYC8_)}]VT+f#)u@%_88:Kq[&k-6WkO0",
"%aX@5d3UU'n$X'!A+&p04VD]| |D'{3,0c&R >#-Lug<pwSDT$za7WLy%1D]=lL3S2U=JG^;uB=RlV}&0'*j0s,R=UsPTPPJld=o#k$a97>8Hv9OpdM5U",
"Pj+zyuX^j|0P,^8>s7,Se7:i,8SuOoBJx{:5GKZ~lc|(k11S0z_o+iafatUs=N%};YLp4rZ2K1+2ODNx&0[s9BW;pGB+(gWS;4!wUL-&)_,p9O.&V@&*~",
"rn*_I-=Mf=FQ]-axP|]6o2%kJmJua86O[]J*w$8=F&;fgY5L} Pj()WZaKW%1(pWofe>((Due6.y=Rt',c#HiPM,}4nXNE~l6~nS$1NA.aYmKu,>|KL{Z",
"W97$kAc)3upTw-v'25Dee`ZYL3|i!V9V)M$j7&}+!b1&sdwd2TU,_>+~=5Vj(P.9!l}nl`421FY&a[9c^ &Pe$jW]2^Gd EqJ3i3gIAl|_ mWRY4@E"
};
/* runs of decompositions: kind, gap, length - 1, then for each code point the zigzag steps to its parts.
   kind 0: two parts, which also compose; 1: one part; 2: two parts */
static const char *const wrpo__unicode_nfc[] = {
"Pi<L2Xchg%ioCv_-('Q5b|<^8oQ[~_=AG0W<a=h|JM^w.o&(CXJlK~Air.+eE4cJ:2^:s@%qQ(f6Jqp7%8GIG@eOSFxs^N[=ww)%V}^AMjH'hjL5~$c)x",
"HVlt*r}XA._:W4dq_*s|kK<^YXPZe69$0,l2nfzf3W_pvBM^o,:3RD+C5H%1ZEE(I1Hj`057ow]S(TzC&f$c6)i=X`C9]@;>28FXu$FJ|bi0Cf.ecvc'h",
"Ur=d!>f{cx.)j$O()U-4* P7d -*'|,!5.;KIGxKYnDH &vl<4q_(|ZGp'irvtu;j}9yF-WxTh^eG-><`g^$_}pG=~Rh05I-QJpg$d[t$j{GeAbd)aHTc",
"c*RZNf-3rd{JLkfUMxQ|Bj8Sh=b5@a^N.)uuKOvK0$aY4}{b40#COB$}y5SCX%r0H=>g<%`tX!!ZejO8GKq#uh9fR>.vvc1<KS|27&Wp9=|fcun%=rQ !",
"Kn#l.MuJO;Q7`xLVH4|nJkD!k,sOrXl06VO,t(>zyoVP<((:J&|nGgrQn>pHsT[k['K=a.8]BIHP_+7*xIN&4gwl_DX!Xvh.Cz$kGdK[>sgY#`.[cEW27",
"|b}{B``Da#bV!C>-1idN5)KwJLxQ6,haS0K$#bNaX2!(a^;R%xsdYC#j[(2Qx9`o+2vx|,x||Fmw;sTm8GNEmpm3g!az`EH+2cqK[x%5hdys4XtKV>7'*",
"4ln<I94e}a6 )1^%Bz:6YSy@A];Kcz0h`P2`I P:LS5erHl'tih&EB<i k3<A:z-{2K{J[zTM;8)jqVrpkqdU(xig*GDmbKwq`p$Uc95j2ztPKh@eIDAc",
"i(ZFk-L9PM!umQ;F>oY';%$U([ DSu7aaI)ovVyq]=t2,%0!Q$SSgwrmY4p0kOeOq|qZN0gHU%OE[5R^*7D[F 3kH|~|=Mn+$DTwO^E~+=29khD0mWhSS",
"'kOh`L#>~bscSPOr)|cYpS@U`U,J$Z4~q0tEt{`#@T{+gY=X0QHYZip-J~nt:=pIs^TW%LZ%XqpFD`Ie~DEmt;CPKof+gS+,.M$xtrq{V6kg)SL>a&*l,",
"(V:1PEno]|iHbs9fH2PY+A-wPhvc@Em,-&-0'GSs9C^T5bpK)oE,aa&zZ^+M(Ti<iU4pXCQ4kGM:!>u}4p'+;%nW2R>`'Zw!a,aN)zTjE}RE>$N6$277{",
"`P]}L#V]o&E{QQnNBsVT=3*ic_-2JL5&$U9c)R@L=)1,t; D0umZ9)7-Y}{Q(#U1s02fGGXX-#Ar$E!2sDjolz5 GcT+qyr,.2cP*`MDp8FUkI<J=V2Ow",
"Ac.-v)~L*kg.3:hp%rw8tx+w;(->TxR8qc;s'LH)Z>Jt1*OHO-]R{3_Ul;E2`ZGrWS9hv.,@+jABT2]$@M.Osj:9#C}Pv^4|'(-7_{yv0bjS54c;,GxS1",
"( ;-v:$|;xl*5KL`avp1P<iVNRX$[Qlek<Klg4ZP.*#jZL%PH}J:GS4B(jGB$7$[EHdbT{C>Vn<rI+rT`C>^ $NHdkEEU7:H}R(, nb)~`o4uT3d_Bd=w",
";AA#u83X0t d`0(Jg#^+.f3wCd{fKd}.F.xeD6 A.vz@,M0RvrE1jrevtM<h%.K.DaS7rwP[leGQ-a:_J=<c@0}]g2Oa~6a>XR1ih(p7h#P_t)TZ &0m~",
"aTGsBa_Z;h>xd`2q2Xj3dh!i(Uz6j>jb#F!94AML(TU@}1RhxYb9bls$oXY:!-VMiO8.TQ]ily>t=nj{.wb0>WTImx^<KJMs{V#<98jgo*vJruT$Y+-'f",
"YgAby_d}Pf+q6DWngEz~z&9sxdJkyRsa(;l),'P)2O83j^>~xuFzsgl)jXVV+(B'%P8t=.~jq}P|vrj0$RXN[X2B%VOC,5[83X0f[Ud<EVON{60!U*dW;",
"Hk+j(^p#|-aAMY1uiS@U3:od0{>g>X&Z`~h7Bu(QEDOUfU=)VhY&Yz;^ZI=Ri}.#!5a{.t1<PVUXxzsXoKC}aq0MP@)&gmfiHr72h.AV@1@UR(eZ&yi;[",
"H4[C5n.-SDx%cx|J]vH+YCi7cqsLfCDd#t$yN}]Q4){ifk)L5uBjX_+F8=E~C$IAf!%7.l(I2FQ;dTpl7f;<;yyZupwf]m-G`DYMe%Jv#qi$(cL(G(]V(",
"ljcC&q-14*af#OX05U<n)!n:9DvXW4V'cemGxzT7{rM&t$:wW=cE~TEY`Lun0&{n%Q,l#;lWL(|f($*n=U1S;g[H|3E44H0R~1>BNoCB.P46%IDI+RBMP",
" JO]|CtYeLRl3wkq~I9Rcz0>^L5Cy1'WCow~2j#QCwho]$qQH.M.b%O75,C.MIihhWlv}U'^0F]wGzQkB-|jsw+$cVoU^Ww~+D9(8$,He+z_,FAD[~uX.",
"!+dH*WZcBgzL`>6yhZ|>]%Yo%K8RnD`9tJze8ElxZ9)4wP+g iE7~oncWka|rQHv.(AU`$9H'buzI0'ucQ9;jt$SQ+6Q8Pr QOf=r7Z $y;GQ$PDrdeB|",
"Be()`XF(<)|.:mpf-pP6X5a$'wLM=!wiDv3}o{>B 72XzhMco5_9n;$9JNbl[i^u%Ncdsz6&CrY^cht_}.g QeiL8kfbuGAVeCd]zsJe)M,ukaAys-l`J",
"``!8zW|g1bC: NOL$4o1Ep$Y Y-fG|ci)I5d=TovWjM)xVT1$_!a&abX{vVZ^p!F6@0q,)vmw,7@iRf[X;3)NJsvpZ+VZ#I(BlG$$=-^1E^*@ QEvYa+V",
"!&lL^rgqAMB&}'C-pedEw'&z,`[AksLkOI8k'q[+m]'Unw+zDhHFn(t@sZ4oA`b{E>k<!F%%szo3}3sCD'Q+(TL_iV|V6M&Ec;5 G$fr=tf3DtN;2X'0q",
"2hz^hfWI!^vt&PZx:&5{1[X1ut>2(aTKFhOP`-'[N:8B=4hZ'J4|,Dv.%8c+.tHg1Yf5bruhbP,i>Iz#QCT=TBn_U$0y v}x1[QADJV&sI$yjJ=w|Daa,",
"&MapFR~x}p8{F^}][_4jla<l`[@FH fE,a{!0V9H&xnM$]b`fxXa)K!C'vd%:7}-5pQxC{PP18amnHo%u{)Ugvu=~dW-&c._M;P1xC-~]W^gbcj_q$Psk",
"&jV{k;64JA%'dO2W('*~jO1^*H)o^H]x[[i8%NAl:a5qS34vWwuBn_TAR_dg~n49qxsV=mh+TS_fOqwr2[vmd-9Eu4tix]L<0>#9;U][FBs-,~+3T7kA8",
"xeiHMj6V==:j'c~g*u.t7B&`5.s>jAj]H{gG@,YWN;~Rqn.DRd>VZvH_9mrw}l9<ckXNfCBrEI337[P`e`1fk$._:)aCl,`!J)Zf~6qB)<=p_Yz-.rW]u",
";xr!o )F0ovx6h,x_oVMj^fS@.v=<[$*Wv-&5|6>[p#EScH~jHm=14|p.!P;LuQ2TITaVf:ReSH,)`8ph@14m}K%Jt|EUpnO+3pbl!n7e@qy&ZS*##dO ",
"Z}fQR,+J[6'sa:5|!J TJ8<>sJ*n|9R3p7A%PzQCYmVqMq=wQfccp:9l8OWHfZf$@NaePdmJC:Q<#a%>]>Z-&`GK`P)IR9;7:xg@^aZ(<Bx*AHJQQv^,y",
"H+sI[cHp({pYTy3#Ay6G(D6bqW3}[a'SHaYA+&kjrg^j}-]Nn!KP}ZaWtqIzPliIuu7vHmkED:),M@wQNKylBPY2n1Ey{l:_a1>UnrRr^U6+cZBXk]SU.",
">vD7Yf9-6F>'{;+bN:e:msr;N]2_[V>7}GM='9{%@wmr~S[lasg!xeW2 *}YBvY9Cy<yml6Rd}VF:n1%+ib)U2e#B*pH2_hhfu'q}SU}-[6%5Orp(Z5P+",
"{I_tJbzmQJ$vUT)6!)= *aR#)17dZWtlj%!uX9i;f];z0]k(2v$eE7]y,}=v_BG(($@_iJ!_6Y$N:E|5!k1V(yvx@5FX3P)r`B_6A,HW{Q[!mR|6bM9+n",
"L'WPX'(h1hN:jovcN3-esfNS37*'vh^<W.>e=F6xG6o1,{PxUwv~,u2BC3^'6ib wC8q<:b*q3N]>aD0KWYA74kd%)Nqx3WFU}Jh@WRt-=L0G2^oIoesQ",
"dKyXy1K<t4z9%"
};
/* A number: its size in bits, in unary, then the bits below the highest. Context: what it is (class, gap...). */
typedef struct wrpo__packed {
    const char *const *line, *s;  /* the next line; the rest of this one */
    uint32_t range, code;
    int16_t odds[35][21][32];  /* [context][size][bits before, or 31]: of a 1, in 4096ths, minus 2048 */
} wrpo__packed;
static int wrpo__unpack_bit(wrpo__packed *p, int16_t *odds) {
    for (; p->range < 1u << 24; p->range *= 91) {
        if (!*p->s) p->s = *p->line++;
        char c = *p->s++;
        int digit = c - ' ' - (c > '"') - (c > '/') - (c > '?') - (c > '\\');  /* 0..90: these four are not used */
        p->code = p->code * 91 + (uint32_t)digit;
    }
    uint32_t ones = (p->range >> 12) * (uint32_t)(2048 + *odds);
    bool bit = p->code < ones;
    if (!bit) p->code -= ones;
    p->range = bit ? ones : p->range - ones;
    *odds = (int16_t)(*odds + ((bit ? 2047 : -2048) - *odds) / 8);
    return bit;
}
static int32_t wrpo__unpack(wrpo__packed *p, int context) {
    int32_t size = 0, v = 1;
    while (wrpo__unpack_bit(p, &p->odds[context][size][0])) size++;
    for (int k = 0; k < size; k++) v = 2 * v + wrpo__unpack_bit(p, &p->odds[context][size][WRPO__MIN(v, 31)]);
    return v - 1;
}
typedef struct wrpo__keyed { int64_t key, value; } wrpo__keyed;
static int64_t wrpo__pair(int64_t a, int32_t b) { return a << 32 | b; }
static int wrpo__by_key(const void *a, const void *b) {
    const int64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}
static void wrpo__sort(wrpo__keyed *list, int64_t n) { qsort(list, (size_t)n, sizeof *list, wrpo__by_key); }
static const wrpo__keyed *wrpo__find_key(const wrpo__keyed *list, int64_t key) {  /* in a sorted stb array */
    return bsearch(&key, list, (size_t)stbds_arrlen(list), sizeof *list, wrpo__by_key);
}
typedef struct wrpo__unicode {  /* one for all tokenizers of a context */
    bool nfc;  /* parts and wholes are there */
    wrpo__keyed *parts, *wholes;  /* sorted stb arrays: code point -> its two parts (or one and 0); and back */
    uint16_t kind[0x110000];  /* class, | WRPO__CAREFUL, | combining class << 8 */
} wrpo__unicode;

static wrpo__unicode *wrpo__unicode_of(wrpo_ctx *ctx) {
    if (ctx->unicode) return ctx->unicode;
    wrpo__packed in = {.line = wrpo__unicode_classes, .s = "", .range = 1};
    int32_t c = 0, class = 0;
    wrpo__unicode *u = wrpo__raw(ctx->handouts, 1, sizeof *u);
    u->nfc = false;
    u->parts = u->wholes = NULL;
    while (c < 0x110000) {
        class = wrpo__unpack(&in, class);
        int32_t end = c + wrpo__unpack(&in, 17 + class) + 1, kind = class;
        if (class == 16) kind = WRPO__M | WRPO__CAREFUL | wrpo__unpack(&in, 34) << 8;
        while (c < end) u->kind[c++] = (uint16_t)kind;
    }
    return ctx->unicode = u;
}
static void wrpo__add_parts(wrpo__unicode *u, int32_t whole, int32_t a, int32_t b, bool composes) {
    stbds_arrput(u->parts, ((wrpo__keyed){whole, wrpo__pair(a, b)}));
    if (composes) stbds_arrput(u->wholes, ((wrpo__keyed){wrpo__pair(a, b), whole}));
    u->kind[composes ? b : whole] |= WRPO__CAREFUL;
}
static void wrpo__unicode_load_nfc(wrpo__unicode *u) {
    if (u->nfc) return;
    wrpo__arena *outer = wrpo__current;
    wrpo__current = outer->ctx->handouts;
    stbds_arrfree(u->parts);  /* of one that failed */
    stbds_arrfree(u->wholes);
    wrpo__packed in = {.line = wrpo__unicode_nfc, .s = "", .range = 1};
    int32_t c = 0, part[2] = {0};
    while (c <= 0x2FA1D) {  /* the last one */
        int32_t kind = wrpo__unpack(&in, 0);
        c += wrpo__unpack(&in, 1);
        for (int32_t end = c + wrpo__unpack(&in, 2) + 1; c < end; c++) {
            for (int k = 0; k < 2 - (kind == 1); k++) {
                int32_t step = wrpo__unpack(&in, 3 + k);
                part[k] += step & 1 ? -(step + 1) / 2 : step / 2;
            }
            wrpo__add_parts(u, c, part[0], kind == 1 ? 0 : part[1], kind == 0);
        }
    }
    for (c = 0xAC00; c < 0xAC00 + 11172; c++) {  /* Hangul: a syllable and a final, or an initial and a vowel */
        int32_t i = c - 0xAC00, final = i % 28;
        if (final) wrpo__add_parts(u, c, c - final, 0x11A7 + final, true);
        else wrpo__add_parts(u, c, 0x1100 + i / 588, 0x1161 + i / 28 % 21, true);
    }
    wrpo__sort(u->parts, stbds_arrlen(u->parts));
    wrpo__sort(u->wholes, stbds_arrlen(u->wholes));
    u->nfc = true;
    wrpo__current = outer;
}

static size_t wrpo__before(const char *s, size_t i) {  /* where the code point before s[i] begins */
    do i--; while (i > 0 && ((unsigned char)s[i] & 0xC0) == 0x80);
    return i;
}
static size_t wrpo__valid_utf8(const char *s, size_t n) {  /* the bytes before the first that is not */
    size_t i = 0;
    for (size_t size; i < n && wrpo__utf8_get(s + i, n - i, &size) >= 0; i += size) {}
    return i;
}

static void wrpo__need_utf8(const char *what, const char *s, size_t n) {
    const size_t valid = wrpo__valid_utf8(s, n);
    if (valid < n) wrpo__fail_format("%s: not UTF-8 at byte %zu", what, valid);
}
/* Appends the parts of c. Keys: the combining class, then the index, so that sorts are stable. */
static void wrpo__decompose(const wrpo__unicode *u, int32_t c, wrpo__keyed **marks) {
    const wrpo__keyed *parts = wrpo__find_key(u->parts, c);
    if (parts) {
        wrpo__decompose(u, (int32_t)(parts->value >> 32), marks);
        c = (int32_t)parts->value;
        if (c) wrpo__decompose(u, c, marks);
        return;
    }
    wrpo__keyed mark = {wrpo__pair(u->kind[c] >> 8, (int32_t)stbds_arrlen(*marks)), c};
    stbds_arrput(*marks, mark);
}
/* Sorts each run of marks, composes, and appends what is left. */
static void wrpo__compose(const wrpo__unicode *u, wrpo__keyed *m, wrpo__text *out) {
    int64_t n = stbds_arrlen(m), starter = -1, kept = 0;
    for (int64_t i = 0, run; i < n; i += run + 1) {
        for (run = 0; i + run < n && m[i + run].key >> 32; run++) {}
        wrpo__sort(m + i, run);
    }
    for (int64_t i = 0; i < n; i++) {  /* m[0..kept) is done */
        int64_t ccc = m[i].key >> 32;
        bool blocked = starter < 0 || (kept - 1 != starter && m[kept - 1].key >> 32 >= ccc);
        const wrpo__keyed *whole = NULL;
        if (!blocked) whole = wrpo__find_key(u->wholes, wrpo__pair(m[starter].value, (int32_t)m[i].value));
        if (whole) { m[starter].value = whole->value; continue; }
        if (!ccc) starter = kept;
        m[kept++] = m[i];
    }
    for (int64_t i = 0; i < kept; i++) {
        char bytes[4];
        wrpo__text_add(out, bytes, wrpo__utf8_put(bytes, (uint32_t)m[i].value));
    }
}
static void wrpo__nfc(const wrpo__unicode *u, const char *s, size_t n, wrpo__text *out, wrpo__keyed **marks) {
    bool careful = false;
    stbds_arrsetlen(*marks, 0);
    for (size_t i = 0, size; i < n && !careful; i += size)
        careful = u->kind[wrpo__utf8_get(s + i, n - i, &size)] & WRPO__CAREFUL;
    for (size_t i = 0, size; i < n && careful; i += size)
        wrpo__decompose(u, wrpo__utf8_get(s + i, n - i, &size), marks);
    if (careful) wrpo__compose(u, *marks, out);
    else wrpo__text_add(out, s, n);
}

/* ---- regex: the part of oniguruma's syntax that tokenizers use ----
   A pattern is alternatives of items: a literal, an escape or a class in brackets, and ? * + {m,n} ?+ *+ ++ or none; a
   lookahead for one of these; ^ and $, ends of lines; a group (...), (?:...) or (?i:...), and ? or none. A class may
   have classes in it, and && between parts. The pattern becomes a tree; matching backtracks no deeper than that. */
typedef enum wrpo__rx_kind {
    WRPO__RX_SET, WRPO__RX_AHEAD, WRPO__RX_GROUP, WRPO__RX_BEGIN, WRPO__RX_END
} wrpo__rx_kind;
typedef struct wrpo__range { int32_t first, last; } wrpo__range;
typedef struct wrpo__regex {  /* one item */
    wrpo__rx_kind kind;
    struct wrpo__regex *next;
    struct wrpo__regex *items, *other;  /* GROUP: an alternative, the others; SET: classes in it, one to intersect */
    int64_t min, max;  /* of characters in a match; max: SET only */
    bool possessive, negative, optional;  /* SET: never gives back; AHEAD: (?!...); GROUP: (...)? */
    bool ascii[128], negate;  /* ascii[c]: is c < 128 in the set? The rest decides for others */
    uint32_t classes;
    wrpo__range *ranges;  /* stb array */
    bool assigned;  /* the ranges have no code points that Unicode has not assigned */
    const uint16_t *unicode;  /* the class of each code point */
} wrpo__regex;
typedef struct wrpo__rx_rest { const wrpo__regex *x; const struct wrpo__rx_rest *up; } wrpo__rx_rest;
typedef struct wrpo__piece {  /* of a text or of tokens to decode; valid UTF-8 */
    const char *s; size_t n;
    int32_t id;  /* >= 0: an added token, which no edit changes */
    bool first;  /* of the whole text */
} wrpo__piece;

static bool wrpo__set_has(const wrpo__regex *x, int32_t c) {
    const int class = x->unicode[c] & 15;
    const int64_t n = x->assigned && class == WRPO__OTHER ? 0 : stbds_arrlen(x->ranges);
    bool in = x->classes >> class & 1;
    for (int64_t k = 0; k < n && !in; k++) in = c >= x->ranges[k].first && c <= x->ranges[k].last;
    for (const wrpo__regex *part = x->items; part && !in; part = part->next) in = wrpo__set_has(part, c);
    return (in && (!x->other || wrpo__set_has(x->other, c))) != x->negate;
}
/* The size of the code point at p->s[i]; 0: the set lacks it. */
static size_t wrpo__set_at(const wrpo__regex *x, const wrpo__piece *p, size_t i) {
    size_t size;
    if (i >= p->n) return 0;
    if ((unsigned char)p->s[i] < 128) return x->ascii[(unsigned char)p->s[i]];
    return wrpo__set_has(x, wrpo__utf8_get(p->s + i, p->n - i, &size)) ? size : 0;
}
/* Where a match of x and what follows ends; 0: none. rest: what follows the groups around x. */
static size_t wrpo__rx_match(const wrpo__regex *x, const wrpo__rx_rest *rest, const wrpo__piece *p, size_t i) {
    for (; x || rest; x = x->next) {
        int64_t count = 0;
        size_t size = 1, end;
        if (!x) return wrpo__rx_match(rest->x, rest->up, p, i);
        const wrpo__rx_rest after = {x->next, rest};
        switch (x->kind) {
        case WRPO__RX_BEGIN:
            if (i > 0 && p->s[i - 1] != '\n') return 0;
            break;
        case WRPO__RX_END:
            if (i < p->n && p->s[i] != '\n') return 0;
            break;
        case WRPO__RX_AHEAD:
            if ((wrpo__set_at(x, p, i) > 0) == x->negative) return 0;
            break;
        case WRPO__RX_GROUP:
            for (const wrpo__regex *g = x; g; g = g->other) {
                end = wrpo__rx_match(g->items, &after, p, i);
                if (end) return end;
            }
            if (!x->optional) return 0;
            break;
        case WRPO__RX_SET:
            for (; count < x->max && (size = wrpo__set_at(x, p, i)) > 0; count++) i += size;
            if (count < x->min) return 0;
            if (x->possessive || !(x->next || rest)) break;
            for (; count > x->min; count--) {  /* the longest first; the loop goes on with the shortest */
                end = wrpo__rx_match(x->next, rest, p, i);
                if (end) return end;
                i = wrpo__before(p->s, i);
            }
        }
    }
    return i;
}
/* The first match from `from` on: [*begin, end); none: both are p->n. No pattern matches the empty text. */
static size_t wrpo__rx_find(const wrpo__regex *rx, const wrpo__piece *p, size_t from, size_t *begin) {
    for (*begin = from; *begin < p->n; ++*begin) {
        if (((unsigned char)p->s[*begin] & 0xC0) == 0x80) continue;
        size_t end = wrpo__rx_match(rx, NULL, p, *begin);
        if (end) return end;
    }
    return p->n;
}

/* ---- the tokenizer ---- */
enum {
    WRPO__TOKEN_MODEL = 1, WRPO__TOKEN_ADDED = 2, WRPO__TOKEN_SINGLE_WORD = 4, WRPO__TOKEN_LSTRIP = 8,
    WRPO__TOKEN_RSTRIP = 16, WRPO__TOKEN_SPECIAL = 32, WRPO__TOKEN_NORMALIZED = 64, WRPO__TOKEN_RENAMED = 128,
    WRPO__WORDS = 1 << 13, WRPO__SMALL_CHARS = 1 << 10, WRPO__MAX_ID = 1 << 22
};
typedef struct wrpo__token { const char *text; uint32_t size, flags; } wrpo__token;  /* text NULL: none */
typedef struct wrpo__merge { int64_t pair; int32_t rank, id; } wrpo__merge;  /* rank -1: a free slot */
typedef struct wrpo__added { const char *text; uint32_t size; int32_t id, next; } wrpo__added;  /* next: see heads */
typedef struct wrpo__word { uint8_t size, count; char text[22]; int32_t ids[10]; } wrpo__word;  /* in the cache */

typedef enum wrpo__edit_kind {
    WRPO__EDIT_NONE,
    WRPO__EDIT_ADDED,          /* cuts out added tokens, of normalized or raw text */
    WRPO__EDIT_NFC,
    WRPO__EDIT_REPLACE,        /* a match of regex becomes text; first: nothing, in the first token */
    WRPO__EDIT_PREPEND,        /* text before a piece; unless it is there; first: before the first only */
    WRPO__EDIT_SPLIT,          /* cuts where regex matches; invert: where it does not */
    WRPO__EDIT_BYTES,          /* each byte becomes a character of GPT-2's alphabet */
    WRPO__EDIT_UNBYTES,        /* and back; all tokens become one */
    WRPO__EDIT_BYTE_FALLBACK,  /* <0xNN> becomes a byte */
    WRPO__EDIT_FUSE,           /* all tokens become one */
    WRPO__EDIT_STRIP           /* takes text off, at most start and stop times */
} wrpo__edit_kind;
typedef enum wrpo__behavior {  /* SPLIT: what becomes of a match */
    WRPO__REMOVED, WRPO__ISOLATED, WRPO__MERGED_WITH_PREVIOUS, WRPO__MERGED_WITH_NEXT, WRPO__CONTIGUOUS
} wrpo__behavior;
typedef struct wrpo__edit {
    wrpo__edit_kind kind;
    const wrpo__regex *regex;
    const char *text; size_t size;
    wrpo__behavior behavior;
    bool invert, unless, first, normalized;
    int32_t start, stop;
} wrpo__edit;

typedef struct wrpo__template {  /* text NULL: none */
    const char *text; size_t size;
    wrpo__arena *arena; void *tokens;  /* by >>chat: what the text compiles to */
} wrpo__template;
struct wrpo_tokenizer {
    wrpo_ctx *ctx;
    wrpo__arena *arena, *scratch;  /* scratch: for one call */
    const char *dir;  /* where it was loaded from */
    wrpo__unicode *unicode;
    wrpo__token *tokens; int64_t size;  /* by id */
    int32_t *slots; uint64_t mask;  /* text -> id: open addressing, -1 = free */
    wrpo__merge *merges; uint64_t merge_mask, seed;  /* pair -> rank and id: open addressing; seed: of both */
    wrpo__added *added;  /* stb array; [0] is none */
    int32_t heads[2][256];  /* [normalized][first byte] -> the longest added token, next: one not longer */
    wrpo__edit *encoder, *decoder;  /* stb arrays; encoder: added, normalizer, added, pre-tokenizer */
    bool has_decoder, byte_fallback, fuse_unk, ignore_merges;
    const char *unk_text;  /* the model's unk_token, or NULL */
    int32_t unk, bytes[256], small[WRPO__SMALL_CHARS];  /* ids: of unk_text, <0xNN>, the characters below U+0400 */
    char byte_text[256][4]; int16_t char_byte[324];  /* the alphabet of byte-level BPE; -1: not of it */
    int32_t *prefix, *suffix;  /* stb arrays: the post-processor */
    wrpo__word *words;  /* [WORDS] direct-mapped cache of BPE results */
    const wrpo_json *config;  /* tokenizer_config.json, or NULL */
    const char *special[7];  /* texts of wrpo__special_names; NULL: none */
    int32_t bos, eos;  /* -1: none */
    wrpo__template chat[2];  /* the second: for conversations with tools */
    bool dated;  /* one of them has asked for the date */
    /* only while it is loaded: */
    struct wrpo__work *work;  /* normalizes the texts of added tokens */
    int64_t next_id;  /* of the next added token that is not in the vocabulary */
    wrpo__edit **edits;  /* encoder or decoder */
    int64_t normalizer_end;  /* encoder[1..here) is the normalizer */
    bool has_template, cuts;  /* cuts: see wrpo__mark_within */
};

/* Our own hash tables: texts may hold NULs, and the maps of stb_ds change a seed that threads share. */
static int32_t *wrpo__slot(const wrpo_tokenizer *tok, const char *s, size_t n) {  /* -1: none yet */
    for (uint64_t at = wrpo__hash(tok->seed, s, n);; at++) {
        int32_t *id = &tok->slots[at & tok->mask];
        if (*id < 0 || (tok->tokens[*id].size == n && memcmp(tok->tokens[*id].text, s, n) == 0)) return id;
    }
}
static int32_t wrpo__token_id(const wrpo_tokenizer *tok, const char *s, size_t n) { return *wrpo__slot(tok, s, n); }
static int32_t wrpo__model_id(const wrpo_tokenizer *tok, const char *s, size_t n) {  /* -1: none, or only added */
    int32_t id = wrpo__token_id(tok, s, n);
    return id >= 0 && tok->tokens[id].flags & WRPO__TOKEN_MODEL ? id : -1;
}
static const wrpo__token *wrpo__token_of(const wrpo_tokenizer *tok, int32_t id) {  /* NULL: no token has this id */
    return id >= 0 && id < tok->size && tok->tokens[id].text ? &tok->tokens[id] : NULL;
}
static bool wrpo__is_special(const wrpo_tokenizer *tok, int32_t id) {
    const wrpo__token *token = wrpo__token_of(tok, id);
    return token && token->flags & WRPO__TOKEN_SPECIAL;
}
static wrpo__merge *wrpo__merge_slot(const wrpo_tokenizer *tok, int32_t left, int32_t right) {
    int64_t pair = wrpo__pair(left, right);
    uint64_t at = ((uint64_t)pair ^ tok->seed) * 0x9E3779B97F4A7C15u;
    for (at ^= at >> 32;; at++) {
        wrpo__merge *m = &tok->merges[at & tok->merge_mask];
        if (m->rank < 0 || m->pair == pair) return m;
    }
}

/* ---- pieces and edits ---- */
typedef struct wrpo__symbol { int32_t id, prev, next; } wrpo__symbol;  /* of a word in BPE, a list; id -1: merged */
typedef struct wrpo__work {
    wrpo_tokenizer *tok;
    wrpo__arena *outer;  /* the arena that was current before */
    bool continues;  /* nothing is put before the first piece */
    wrpo__piece *pieces, *put;  /* stb arrays, as below; put: what an edit makes */
    wrpo__text out;  /* a piece in the making */
    wrpo__symbol *symbols;
    wrpo__keyed *marks, *heap;  /* heap: merges; key: rank, left symbol; value: the merged one */
} wrpo__work;
static const char wrpo__no_char[] = "\xEF\xBF\xBD";  /* U+FFFD: for bytes that are not UTF-8 */

static void wrpo__put_piece(wrpo__work *w, const char *s, size_t n, bool first) {
    wrpo__piece p = {s, n, -1, first};
    stbds_arrput(w->put, p);
}
/* p[from..to), unless it is empty. id: of the added token, or -1 */
static void wrpo__put_part(wrpo__work *w, const wrpo__piece *p, size_t from, size_t to, int32_t id) {
    if (from >= to) return;
    wrpo__put_piece(w, p->s + from, to - from, p->first && from == 0);
    stbds_arrlast(w->put).id = id;
}
static void wrpo__put_out(wrpo__work *w, bool first) {
    wrpo__put_piece(w, wrpo__strndup(w->tok->scratch, w->out.data, w->out.size), w->out.size, first);
    w->out.size = 0;
}
static void wrpo__take_pieces(wrpo__work *w) {
    wrpo__piece *swap = w->pieces;
    w->pieces = w->put;
    w->put = swap;
    stbds_arrsetlen(w->put, 0);
}
/* The size of the code point at p->s[i]; 0: it is of no such class. */
static size_t wrpo__in_class(const wrpo__work *w, const wrpo__piece *p, size_t i, int classes) {
    size_t size;
    if (i >= p->n) return 0;
    int32_t c = wrpo__utf8_get(p->s + i, p->n - i, &size);
    return classes >> (w->tok->unicode->kind[c] & 15) & 1 ? size : 0;
}
/* the longest at p->s[i], or NULL */
static const wrpo__added *wrpo__added_at(const wrpo_tokenizer *tok, bool normalized, const wrpo__piece *p, size_t i) {
    for (int32_t at = tok->heads[normalized][(unsigned char)p->s[i]]; at; at = tok->added[at].next) {
        const wrpo__added *a = &tok->added[at];
        if (p->n - i >= a->size && !memcmp(p->s + i, a->text, a->size)) return a;
    }
    return NULL;
}
/* Cuts at added tokens: the leftmost, there the longest. If a token strips the space on its right and the next begins
   with that space, the space comes twice: as in the library. */
static void wrpo__cut_added(wrpo__work *w, const wrpo__piece *p, bool normalized) {
    size_t done = 0, next;
    for (size_t i = 0; i < p->n; i = next) {
        const wrpo__added *a = wrpo__added_at(w->tok, normalized, p, i);
        next = i + (a ? a->size : 1);
        if (!a) continue;
        size_t begin = i, end = next, size;
        uint32_t flags = w->tok->tokens[a->id].flags;
        const bool joined = begin > 0 && wrpo__in_class(w, p, wrpo__before(p->s, begin), WRPO__WORD);
        if (flags & WRPO__TOKEN_SINGLE_WORD && (joined || wrpo__in_class(w, p, end, WRPO__WORD))) continue;
        if (flags & WRPO__TOKEN_LSTRIP) {
            begin = WRPO__MAX(begin, done);
            while (begin > done && wrpo__in_class(w, p, wrpo__before(p->s, begin), 1 << WRPO__SPACE))
                begin = wrpo__before(p->s, begin);
        }
        if (flags & WRPO__TOKEN_RSTRIP)
            while ((size = wrpo__in_class(w, p, end, 1 << WRPO__SPACE)) > 0) end += size;
        wrpo__put_part(w, p, done, begin, -1);
        wrpo__put_part(w, p, begin, end, a->id);
        done = end;
    }
    wrpo__put_part(w, p, done, p->n, -1);
}
/* Does a part join the part before it? before, matched: whether each matches. */
static bool wrpo__joins(wrpo__behavior behavior, bool before, bool matched) {
    if (behavior == WRPO__MERGED_WITH_PREVIOUS) return matched && !before;
    if (behavior == WRPO__MERGED_WITH_NEXT) return before && !matched;
    return behavior == WRPO__CONTIGUOUS && before == matched;
}
static void wrpo__split_piece(wrpo__work *w, const wrpo__edit *e, const wrpo__piece *p) {
    size_t end = 0, open = SIZE_MAX;  /* open: where the growing piece begins; SIZE_MAX: none */
    bool before = false;
    while (end < p->n) {
        size_t match[2];
        match[1] = wrpo__rx_find(e->regex, p, end, &match[0]);
        for (int k = 0; k < 2; k++) {  /* before the match, then the match */
            size_t begin = end;
            end = match[k];
            if (begin == end) continue;
            bool matched = (k == 1) != e->invert;
            if (!wrpo__joins(e->behavior, before, matched)) {
                wrpo__put_part(w, p, open, begin, -1);
                open = SIZE_MAX;
            }
            if (open > begin && !(matched && e->behavior == WRPO__REMOVED)) open = begin;
            before = matched;
        }
    }
    wrpo__put_part(w, p, open, end, -1);
}
static bool wrpo__begins(const wrpo__edit *e, const char *s, size_t n) {  /* with the edit's text? */
    return n >= e->size && memcmp(s, e->text, e->size) == 0;
}
static int wrpo__byte_token(const char *s, size_t n) {  /* the byte NN of <0xNN>; -1: another token */
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || strspn(s + 3, "0123456789ABCDEFabcdef") != 2 || s[5] != '>') return -1;
    return (int)strtol(s + 3, NULL, 16);
}
/* <0xNN> tokens in a row are a text, or, if that is not UTF-8, one U+FFFD a byte. */
static void wrpo__end_bytes(wrpo__work *w) {
    size_t n = w->out.size;
    if (n && wrpo__valid_utf8(w->out.data, n) == n) wrpo__put_out(w, false);
    else for (w->out.size = 0; n > 0; n--) wrpo__put_piece(w, wrpo__no_char, 3, false);
}
/* What is not UTF-8 becomes U+FFFD. */
static void wrpo__put_fused(wrpo__work *w) {
    wrpo__text raw = w->out;
    w->out = (wrpo__text){.arena = raw.arena};
    for (size_t i = 0, size; i < raw.size; i += size) {
        bool good = wrpo__utf8_get(raw.data + i, raw.size - i, &size) >= 0;
        wrpo__text_add(&w->out, good ? raw.data + i : wrpo__no_char, good ? size : 3);
    }
    wrpo__put_out(w, true);
}
static bool wrpo__fuses(const wrpo__edit *e) { return e->kind == WRPO__EDIT_UNBYTES || e->kind == WRPO__EDIT_FUSE; }
static void wrpo__edit_piece(wrpo__work *w, const wrpo__edit *e, const wrpo__piece *p) {
    wrpo__text *out = &w->out;
    const char *s = p->s;
    size_t n = p->n, i = 0, size, begin = out->size;
    int byte;
    switch (e->kind) {  /* then s[i..n) is added to out */
    case WRPO__EDIT_ADDED: wrpo__cut_added(w, p, e->normalized); return;
    case WRPO__EDIT_SPLIT: wrpo__split_piece(w, e, p); return;
    case WRPO__EDIT_NFC:
        wrpo__nfc(w->tok->unicode, s, n, out, &w->marks);
        i = n;
        break;
    case WRPO__EDIT_REPLACE:
        for (size_t match, end; i < n; i = end) {
            end = wrpo__rx_find(e->regex, p, i, &match);
            wrpo__text_add(out, s + i, match - i);
            if (match < end && !(e->first && !stbds_arrlen(w->put))) wrpo__text_add(out, e->text, e->size);
        }
        break;
    case WRPO__EDIT_PREPEND:
        if (!n || (p->first ? w->continues : e->first) || (e->unless && wrpo__begins(e, s, n))) break;
        wrpo__text_add(out, e->text, e->size);
        break;
    case WRPO__EDIT_BYTES:
        for (; i < n; i++) wrpo__text_puts(out, w->tok->byte_text[(unsigned char)s[i]]);
        break;
    case WRPO__EDIT_UNBYTES:
        for (; i < n; i += size) {
            int32_t c = wrpo__utf8_get(s + i, n - i, &size);
            byte = c < WRPO__COUNT(w->tok->char_byte) ? w->tok->char_byte[c] : -1;
            if (byte < 0) break;
            wrpo__text_add(out, (char[]){(char)byte}, 1);
        }
        if (i == n) break;
        out->size = begin;  /* a character outside the alphabet: text already */
        i = 0;
        break;
    case WRPO__EDIT_BYTE_FALLBACK:
        byte = wrpo__byte_token(s, n);
        if (byte < 0) { wrpo__end_bytes(w); break; }
        wrpo__text_add(out, (char[]){(char)byte}, 1);
        return;
    case WRPO__EDIT_STRIP:
        for (int32_t k = 0; k < e->start && wrpo__begins(e, s + i, n - i); k++) i += e->size;
        for (int32_t k = 0; k < e->stop && i < n && wrpo__begins(e, s + n - e->size, e->size); k++) n -= e->size;
        break;
    case WRPO__EDIT_NONE: case WRPO__EDIT_FUSE: break;
    }
    wrpo__text_add(out, s + i, n - i);
    if (!wrpo__fuses(e)) wrpo__put_out(w, p->first);
}
static void wrpo__edit_all(wrpo__work *w, const wrpo__edit *e, int64_t count) {
    for (; count > 0; count--, e++) {
        for (int64_t i = 0; i < stbds_arrlen(w->pieces); i++) {
            if (w->pieces[i].id >= 0) stbds_arrput(w->put, w->pieces[i]);
            else wrpo__edit_piece(w, e, &w->pieces[i]);
        }
        if (e->kind == WRPO__EDIT_BYTE_FALLBACK) wrpo__end_bytes(w);
        if (wrpo__fuses(e)) wrpo__put_fused(w);
        wrpo__take_pieces(w);
    }
}
static void wrpo__edit_text(wrpo__work *w, const char *s, size_t n, const wrpo__edit *e, int64_t count) {
    wrpo__put_piece(w, s, n, true);
    wrpo__take_pieces(w);
    wrpo__edit_all(w, e, count);
}

/* ---- BPE ---- */
static void wrpo__put_symbol(wrpo__work *w, int32_t id) {
    int32_t at = (int32_t)stbds_arrlen(w->symbols);
    stbds_arrput(w->symbols, ((wrpo__symbol){id, at - 1, at + 1}));
}
static void wrpo__symbols(wrpo__work *w, const char *s, size_t n) {
    const wrpo_tokenizer *tok = w->tok;
    bool pending = false;  /* an unk to be written */
    int32_t whole = tok->ignore_merges ? wrpo__model_id(tok, s, n) : -1;
    stbds_arrsetlen(w->symbols, 0);
    if (whole >= 0) { wrpo__put_symbol(w, whole); n = 0; }
    for (size_t i = 0, size; i < n; i += size) {
        int32_t c = wrpo__utf8_get(s + i, n - i, &size);
        int32_t id = c < WRPO__SMALL_CHARS ? tok->small[c] : wrpo__model_id(tok, s + i, size);
        bool bytes = id < 0 && tok->byte_fallback;
        for (size_t k = i; k < i + size && bytes; k++) bytes = tok->bytes[(unsigned char)s[k]] >= 0;
        if (bytes) {  /* before an unk that is pending: the library's order */
            for (size_t k = i; k < i + size; k++) wrpo__put_symbol(w, tok->bytes[(unsigned char)s[k]]);
            continue;
        }
        if (id < 0 && !tok->unk_text) continue;  /* dropped, as the library drops it */
        if (id < 0 && tok->unk < 0)
            wrpo__fail_format("a character has no token, and unk_token \"%.80s\" is not in the vocabulary",
                    tok->unk_text);
        if (pending && (id >= 0 || !tok->fuse_unk)) wrpo__put_symbol(w, tok->unk);
        pending = id < 0;
        if (id >= 0) wrpo__put_symbol(w, id);
    }
    if (pending) wrpo__put_symbol(w, tok->unk);
    if (stbds_arrlen(w->symbols)) stbds_arrlast(w->symbols).next = -1;
}
/* A binary heap: the lowest rank first, then the leftmost. */
static void wrpo__push_merge(wrpo__work *w, int32_t at) {  /* of symbol `at` and the next */
    int32_t next = w->symbols[at].next;
    if (next < 0) return;
    const wrpo__merge *m = wrpo__merge_slot(w->tok, w->symbols[at].id, w->symbols[next].id);
    if (m->rank < 0) return;
    wrpo__keyed c = {wrpo__pair(m->rank, at), m->id};
    stbds_arrput(w->heap, c);
    int64_t i = stbds_arrlen(w->heap) - 1;
    for (; i > 0 && w->heap[(i - 1) / 2].key > c.key; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}
static wrpo__keyed wrpo__pop_merge(wrpo__work *w) {
    wrpo__keyed top = w->heap[0], last = stbds_arrpop(w->heap);
    int64_t n = stbds_arrlen(w->heap), i = 0;
    for (int64_t down = 1; down < n; down = 2 * i + 1) {
        if (down + 1 < n && w->heap[down + 1].key < w->heap[down].key) down++;
        if (w->heap[down].key >= last.key) break;
        w->heap[i] = w->heap[down];
        i = down;
    }
    if (n) w->heap[i] = last;
    return top;
}
static void wrpo__merge_symbols(wrpo__work *w) {
    wrpo__symbol *y = w->symbols;
    for (int64_t i = 0; i < stbds_arrlen(y); i++) wrpo__push_merge(w, (int32_t)i);
    while (stbds_arrlen(w->heap)) {
        wrpo__keyed best = wrpo__pop_merge(w);
        int32_t at = (int32_t)(best.key & 0xFFFFFFFF), next = y[at].next;
        if (y[at].id < 0 || next < 0) continue;  /* merged since */
        const wrpo__merge *m = wrpo__merge_slot(w->tok, y[at].id, y[next].id);
        if (m->rank < 0 || m->id != best.value) continue;  /* another pair by now */
        y[at].id = m->id;
        y[at].next = y[next].next;
        y[next].id = -1;
        if (y[at].next >= 0) y[y[at].next].prev = at;
        if (y[at].prev >= 0) wrpo__push_merge(w, y[at].prev);
        wrpo__push_merge(w, at);
    }
}
static void wrpo__put_ids(int32_t **ids, const int32_t *more, int64_t n) {
    if (n) memcpy(stbds_arraddnptr(*ids, (size_t)n), more, (size_t)n * sizeof *more);
}
static void wrpo__bpe(wrpo__work *w, const char *s, size_t n, int32_t **ids) {
    const wrpo_tokenizer *tok = w->tok;
    wrpo__word *word = &tok->words[wrpo__hash(tok->seed, s, n) % WRPO__WORDS];
    if (word->size == n && memcmp(word->text, s, n) == 0) {
        wrpo__put_ids(ids, word->ids, word->count);
        return;
    }
    int64_t first = stbds_arrlen(*ids);
    wrpo__symbols(w, s, n);
    wrpo__merge_symbols(w);
    for (int64_t i = 0; i < stbds_arrlen(w->symbols); i++)
        if (w->symbols[i].id >= 0) stbds_arrput(*ids, w->symbols[i].id);
    int64_t count = stbds_arrlen(*ids) - first;
    if (n > sizeof word->text || count > WRPO__COUNT(word->ids)) return;
    word->size = (uint8_t)n;
    word->count = (uint8_t)count;
    memcpy(word->text, s, n);
    if (count) memcpy(word->ids, *ids + first, (size_t)count * sizeof *word->ids);
}

/* ---- encode and decode ---- */
static wrpo__work wrpo__work_begin(wrpo_tokenizer *tok) {  /* what it allocates is in tok->scratch */
    wrpo__work w = {.tok = tok, .outer = wrpo__current, .out.arena = tok->scratch};
    wrpo__arena_clear(tok->scratch);
    wrpo__current = tok->scratch;
    return w;
}
static void wrpo__work_end(const wrpo__work *w) {
    wrpo__current = w->outer;
    wrpo__arena_clear(w->tok->scratch);
}
/* *ids: an stb array of the caller's arena */
static void wrpo__encode(wrpo_tokenizer *tok, const char *text, size_t n, unsigned flags, int32_t **ids) {
    const bool special = flags & WRPO_TOKENIZER_SPECIAL;
    if (n > INT32_MAX) wrpo__fail_unsupported("a text of %zu bytes: at most %d can be tokenized at once", n, INT32_MAX);
    wrpo__need_utf8("text to tokenize", text, n);
    if (!*ids) stbds_arrsetcap(*ids, n / 4 + 16);  /* before the scratch arena becomes the current one */
    wrpo__work w = wrpo__work_begin(tok);
    w.continues = flags & WRPO_TOKENIZER_CONTINUE;
    wrpo__edit_text(&w, n ? text : "", n, tok->encoder, stbds_arrlen(tok->encoder));
    if (special) wrpo__put_ids(ids, tok->prefix, stbds_arrlen(tok->prefix));
    for (int64_t i = 0; i < stbds_arrlen(w.pieces); i++) {
        const wrpo__piece *p = &w.pieces[i];
        if (p->id >= 0) stbds_arrput(*ids, p->id);
        else if (p->n) wrpo__bpe(&w, p->s, p->n, ids);
    }
    if (special) wrpo__put_ids(ids, tok->suffix, stbds_arrlen(tok->suffix));
    wrpo__work_end(&w);
}
static void wrpo__decode(wrpo_tokenizer *tok, const int32_t *ids, int64_t n, bool skip_special, wrpo__text *out) {
    wrpo__work w = wrpo__work_begin(tok);
    for (int64_t i = 0; i < n; i++) {
        const wrpo__token *token = wrpo__token_of(tok, ids[i]);
        if (!token)
            wrpo__fail_arg("id %lld of the text to decode: no token has the id %d; they go to %lld", (long long)i,
                    (int)ids[i], (long long)tok->size - 1);
        const wrpo__added *a = token->flags & WRPO__TOKEN_RENAMED ? tok->added : NULL;
        if (skip_special && token->flags & WRPO__TOKEN_SPECIAL && !a) continue;
        while (a && a->id != ids[i]) a++;
        wrpo__put_piece(&w, a ? a->text : token->text, a ? a->size : token->size, false);
    }
    wrpo__take_pieces(&w);
    wrpo__edit_all(&w, tok->decoder, stbds_arrlen(tok->decoder));
    for (int64_t i = 0; i < stbds_arrlen(w.pieces); i++) {
        if (i && !tok->has_decoder) wrpo__text_add(out, " ", 1);
        wrpo__text_add(out, w.pieces[i].s, w.pieces[i].n);
    }
    wrpo__work_end(&w);
}

/* ---- load: what all readers use ---- */
/* Which of the words v is, from 0. */
static int wrpo__load_choice(const wrpo_json *v, const char *what, const char *words) {
    const int k = wrpo__word_of(words, v->text, v->size);
    if (!k) wrpo__load_refuse(what, v);
    return k - 1;
}
static int32_t wrpo__load_count(const wrpo_json *v, int64_t high) { return (int32_t)wrpo__integer(v, 0, high, NULL); }

/* ---- load: regexes ---- */
typedef struct wrpo__rx_parser {
    wrpo_tokenizer *tok; const wrpo_json *json;  /* json: where the pattern is, for errors */
    const char *s; size_t n, i;  /* the pattern; how much is read */
    bool literal, fold;  /* all characters are literals; inside (?i:...) */
    int depth;
} wrpo__rx_parser;

_Noreturn static void wrpo__rx_fail(const wrpo__rx_parser *p, const char *what) {
    wrpo__unsupported(p->json, "regex, byte %zu: %s is not supported: %.*s", p->i + 1, what, (int)WRPO__MIN(p->n, 200),
            p->s);
}
static bool wrpo__rx_sees(const wrpo__rx_parser *p, const char *any) {
    return !p->literal && p->i < p->n && p->s[p->i] && strchr(any, p->s[p->i]);
}
static void wrpo__rx_refuse(const wrpo__rx_parser *p, const char *any, const char *what) {
    if (wrpo__rx_sees(p, any)) wrpo__rx_fail(p, what);
}
static bool wrpo__rx_take(wrpo__rx_parser *p, const char *text) {
    size_t n = strlen(text);
    if (p->literal || p->n - p->i < n || memcmp(p->s + p->i, text, n) != 0) return false;
    p->i += n;
    return true;
}
static int32_t wrpo__rx_char(wrpo__rx_parser *p) {
    size_t size;
    if (p->i >= p->n) wrpo__rx_fail(p, "a pattern that ends here");
    int32_t c = wrpo__utf8_get(p->s + p->i, p->n - p->i, &size);  /* valid, as all JSON is */
    p->i += size;
    return c;
}
static int64_t wrpo__rx_number(wrpo__rx_parser *p, int64_t otherwise) {
    int64_t v = 0;
    if (!wrpo__rx_sees(p, "0123456789")) return otherwise;
    for (; wrpo__rx_sees(p, "0123456789"); p->i++) {
        v = v * 10 + p->s[p->i] - '0';
        if (v > INT32_MAX) wrpo__rx_fail(p, "a number this large");
    }
    return v;
}
static int32_t wrpo__rx_escaped(wrpo__rx_parser *p) {  /* after a backslash */
    static const char letters[] = "nrtfva", controls[] = "\n\r\t\f\v\a";
    const int32_t c = wrpo__rx_char(p), low = c | 32;
    if (low == 'p') wrpo__rx_refuse(p, "{", "this property");
    const char *control = c > 0 && c < 128 ? strchr(letters, c) : NULL;
    if (control) return controls[control - letters];
    if (c < 32 || c > 127 || (low >= 'a' && low <= 'z') || (c >= '0' && c <= '9')) wrpo__rx_fail(p, "this escape");
    return c;
}
static bool wrpo__rx_dash(const wrpo__rx_parser *p) {  /* of a range: a '-' before ']' is a literal */
    return wrpo__rx_sees(p, "-") && !(p->i + 1 < p->n && p->s[p->i + 1] == ']');
}
static wrpo__regex *wrpo__rx_new(wrpo__rx_parser *p, wrpo__rx_kind kind) {
    wrpo__regex *x = WRPO__NEW(p->tok->arena, wrpo__regex);
    x->kind = kind;
    x->unicode = p->tok->unicode->kind;
    return x;
}
static void wrpo__rx_range(wrpo__regex *x, int32_t first, int32_t last) {
    stbds_arrput(x->ranges, ((wrpo__range){first, last}));
}
/* Adds a class that is an escape, or what is none of it (\S), to a set. \w has its ranges only outside of brackets
   (many): so the library has it. */
static bool wrpo__rx_escape(wrpo__rx_parser *p, wrpo__regex *x, bool many) {
    static const struct { const char *name; uint32_t classes; const char *ranges; } escapes[] = {
        {"s", 1u << WRPO__SPACE, ""}, {"d", 1u << WRPO__ND, ""}, {"p{Nd}", 1u << WRPO__ND, ""}, {"p{L}", WRPO__L, ""},
        {"p{Lu}", 1u << WRPO__LU, ""}, {"p{Ll}", 1u << WRPO__LL, ""}, {"p{Lt}", 1u << WRPO__LT, ""},
        {"p{Lm}", 1u << WRPO__LM, ""}, {"p{Lo}", 1u << WRPO__LO, ""}, {"p{N}", WRPO__N, ""},
        {"p{M}", 1u << WRPO__M, ""}, {"p{P}", 1u << WRPO__P | 1u << WRPO__PC, ""},
        {"p{S}", 1u << WRPO__S | 1u << WRPO__SW, ""},
        {"w", WRPO__WORD & ~(1u << WRPO__CW), "B2-B3 B9 BC-BE"},
        {"p{Han}", 0, "2E80-2FD5 3005 3007 3021-3029 3038-303B 3400-4DBF 4E00-9FFF F900-FAD9 16FE2-16FE3 16FF0-16FF1 "
                      "20000-323AF"},
        {"p{Hiragana}", 0, "3041-3096 309D-309F 1B001-1B11F 1B132-1B152 1F200"},
        {"p{Katakana}", 0, "30A1-30FA 30FD-30FF 31F0-31FF 32D0-32FE 3300-3357 FF66-FF6F FF71-FF9D 1AFF0-1B000 "
                           "1B120-1B122 1B155-1B167"},
        {"p{Hangul}", 0, "1100-11FF 302E-302F 3131-318E 3200-321E 3260-327E A960-A97C AC00-D7FB FFA0-FFDC"},
        {"p{P since Unicode 9}", 0, "61D 9FD-A76 C77-C84 1B4E-1B4F 1B7D-1B7F 2E43-2E5D 10D6E-10F89 113D4-1145D "
                                    "11660-116B9 1183B-11FFF 12FF1-12FF2 16D6D-16FE2 1E5FF-1E95F"}};  /* of \p{P} */
    const size_t at = p->i;
    if (!wrpo__rx_take(p, "\\")) return false;
    for (int k = 0; k < WRPO__COUNT(escapes); k++, p->i = at + 1) {
        const bool other = p->i < p->n && p->s[p->i] == (escapes[k].name[0] ^ 32);
        const uint32_t classes = escapes[k].classes;
        p->i += other;
        if (!wrpo__rx_take(p, escapes[k].name + other)) continue;
        const char *r = many && classes ? "" : escapes[k].ranges;
        wrpo__regex *set = *r ? wrpo__rx_new(p, WRPO__RX_SET) : NULL;
        if (set) {
            *set = (wrpo__regex){.classes = classes, .negate = other, .assigned = true, .unicode = x->unicode,
                                 .next = x->items};
            x->items = set;
        } else x->classes |= other ? WRPO__CLASSES ^ classes : classes;
        while (*r) {
            char *end;
            const int32_t first = (int32_t)strtol(r, &end, 16);
            wrpo__rx_range(set, first, *end == '-' ? (int32_t)strtol(end + 1, &end, 16) : first);
            r = end;
        }
        return true;
    }
    p->i = at;
    return false;
}
/* In (?i:...) a letter is a class of its cases. Only ASCII is folded, to which U+017F and U+212A fold; two letters that
   a ligature folds to are refused. */
static void wrpo__rx_fold(wrpo__rx_parser *p, wrpo__regex *x, int32_t letter, bool many) {
    static const char *const ligatures[] = {"ss", "ff", "fi", "fl", "st"};
    const int32_t low = letter | 32;
    if (low < 'a' || low > 'z') return;
    for (int k = 0; k < 5 && !many; k++)
        if (low == ligatures[k][0] && p->i < p->n && (p->s[p->i] | 32) == ligatures[k][1])
            wrpo__rx_fail(p, "a pair of letters with a ligature in (?i:...)");
    wrpo__rx_range(x, letter ^ 32, letter ^ 32);
    if (low == 's') wrpo__rx_range(x, 0x17F, 0x17F);
    if (low == 'k') wrpo__rx_range(x, 0x212A, 0x212A);
}
/* Adds a literal or an escape, in brackets (many) also a range. */
static void wrpo__rx_element(wrpo__rx_parser *p, wrpo__regex *x, bool many) {
    if (wrpo__rx_escape(p, x, many)) return;
    int32_t first = wrpo__rx_char(p);
    if (first == '\\' && !p->literal) first = wrpo__rx_escaped(p);
    int32_t last = first;
    if (many && wrpo__rx_dash(p)) {
        p->i++;
        wrpo__rx_refuse(p, "[", "a class within a class");
        last = wrpo__rx_char(p);
        if (last == '\\') last = wrpo__rx_escaped(p);
        if (last < first) wrpo__rx_fail(p, "this range");
    }
    wrpo__rx_range(x, first, last);
    if (p->fold && last >= 128) wrpo__rx_fail(p, "anything but ASCII letters in (?i:...)");
    for (int32_t c = first; p->fold && c <= last; c++) wrpo__rx_fold(p, x, c, many);
}
static void wrpo__rx_unfoldable(const wrpo__rx_parser *p) {
    if (p->fold) wrpo__rx_refuse(p, "\\.", "anything but ASCII letters in (?i:...)");
}
static void wrpo__rx_class(wrpo__rx_parser *p, wrpo__regex *x) {  /* after "[" */
    const int depth = p->depth++;
    bool begun = false;
    x->negate = wrpo__rx_take(p, "^");
    wrpo__rx_refuse(p, "]", "an empty class");
    while (!wrpo__rx_take(p, "]")) {
        if (p->depth > 400) wrpo__rx_fail(p, "so deep a nest of classes");
        if (begun && wrpo__rx_take(p, "&&")) {
            x = x->other = wrpo__rx_new(p, WRPO__RX_SET);
            begun = false;
            p->depth++;
            continue;
        }
        if (wrpo__rx_take(p, "&&")) wrpo__rx_fail(p, "an empty class");
        if (begun && wrpo__rx_dash(p)) wrpo__rx_fail(p, "'-' at this place");
        begun = true;
        wrpo__rx_unfoldable(p);
        if (!wrpo__rx_take(p, "[")) {
            wrpo__rx_element(p, x, true);
            continue;
        }
        wrpo__rx_refuse(p, ":", "a POSIX class");
        wrpo__regex *part = wrpo__rx_new(p, WRPO__RX_SET);
        wrpo__rx_class(p, part);
        part->next = x->items;
        x->items = part;
    }
    p->depth = depth;
}
static wrpo__regex *wrpo__rx_set(wrpo__rx_parser *p, wrpo__rx_kind kind) {  /* a literal, an escape or a class */
    wrpo__regex *x = wrpo__rx_new(p, kind);
    wrpo__rx_refuse(p, "^$", "an anchor");
    wrpo__rx_refuse(p, "?*+{", "this repetition");
    wrpo__rx_refuse(p, "]}", "this bracket");
    wrpo__rx_unfoldable(p);
    if (wrpo__rx_take(p, "[")) wrpo__rx_class(p, x);
    else if (wrpo__rx_take(p, ".")) {
        x->negate = true;
        wrpo__rx_range(x, '\n', '\n');
    } else wrpo__rx_element(p, x, false);
    for (int32_t c = 0; c < 128; c++) x->ascii[c] = wrpo__set_has(x, c);
    return x;
}
static wrpo__regex *wrpo__rx_alternatives(wrpo__rx_parser *p);
static wrpo__regex *wrpo__rx_group(wrpo__rx_parser *p) {  /* after "(" */
    bool fold = p->fold;
    if (wrpo__rx_take(p, "?i:")) p->fold = true;
    else if (!wrpo__rx_take(p, "?:")) wrpo__rx_refuse(p, "?", "this kind of group");
    wrpo__regex *x = wrpo__rx_alternatives(p);
    if (!wrpo__rx_take(p, ")")) wrpo__rx_fail(p, "a group without its end");
    p->fold = fold;
    x->optional = wrpo__rx_take(p, "?");
    if (x->optional) x->min = 0;
    wrpo__rx_refuse(p, "?*+{", "this repetition of a group");
    return x;
}
static wrpo__regex *wrpo__rx_item(wrpo__rx_parser *p) {
    static const char longer[] = "a lookahead for more than one character";
    const bool negative = wrpo__rx_take(p, "(?!");
    if (negative || wrpo__rx_take(p, "(?=")) {
        wrpo__rx_refuse(p, "(|)", longer);
        wrpo__regex *x = wrpo__rx_set(p, WRPO__RX_AHEAD);
        x->negative = negative;
        if (!wrpo__rx_take(p, ")")) wrpo__rx_fail(p, longer);
        return x;
    }
    if (wrpo__rx_take(p, "(")) return wrpo__rx_group(p);
    if (wrpo__rx_take(p, "^")) return wrpo__rx_new(p, WRPO__RX_BEGIN);
    if (wrpo__rx_take(p, "$")) return wrpo__rx_new(p, WRPO__RX_END);
    wrpo__regex *x = wrpo__rx_set(p, WRPO__RX_SET);
    x->min = x->max = 1;
    if (wrpo__rx_take(p, "{")) {
        x->max = wrpo__rx_number(p, -1);
        x->min = WRPO__MAX(x->max, 0);
        if (wrpo__rx_take(p, ",")) x->max = wrpo__rx_number(p, x->max < 0 ? -1 : INT64_MAX);
        if (x->max < x->min || !wrpo__rx_take(p, "}")) wrpo__rx_fail(p, "this repetition");
        if (x->min == 1 && wrpo__rx_take(p, "+")) x->max = INT64_MAX;  /* {1,3}+ is (?:...{1,3})+ */
    } else if (wrpo__rx_sees(p, "?*+")) {
        char c = p->s[p->i++];
        x->min = c == '+';
        x->max = c == '?' ? 1 : INT64_MAX;
        x->possessive = wrpo__rx_take(p, "+");
    }
    wrpo__rx_refuse(p, "?*+{", "this repetition");
    return x;
}
static wrpo__regex *wrpo__rx_alternatives(wrpo__rx_parser *p) {
    wrpo__regex *x = wrpo__rx_new(p, WRPO__RX_GROUP), **end = &x->items;
    if (++p->depth > 400) wrpo__rx_fail(p, "so many alternatives, or so deep a nest of groups");
    for (; p->i < p->n && !wrpo__rx_sees(p, "|)"); end = &(*end)->next) {
        *end = wrpo__rx_item(p);
        x->min += (*end)->min;
    }
    if (wrpo__rx_take(p, "|")) {
        x->other = wrpo__rx_alternatives(p);
        x->min = WRPO__MIN(x->min, x->other->min);
    }
    p->depth--;
    return x;
}
static const wrpo__regex *wrpo__load_regex(wrpo_tokenizer *tok, const wrpo_json *v, const char *s, size_t n,
        bool literal) {
    wrpo__rx_parser p = {.tok = tok, .json = v, .s = s, .n = n, .literal = literal};
    if (n > 4096) wrpo__rx_fail(&p, "a pattern this long");
    const wrpo__regex *x = wrpo__rx_alternatives(&p);
    if (p.i < n) wrpo__rx_fail(&p, "this bracket");
    if (x->min == 0) wrpo__rx_fail(&p, "a pattern that matches the empty text");
    return x;
}

/* ---- load: components ---- */
/* Reads what a component says into its edit e; puts edits before it. */
#define WRPO__READ(name) static void wrpo__read_##name(wrpo_tokenizer *tok, const wrpo_json *v, wrpo__edit *e)
static void wrpo__put_edit(wrpo_tokenizer *tok, wrpo__edit e) { stbds_arrput(*tok->edits, e); }
WRPO__READ(pattern) {
    const wrpo_json *pattern = wrpo__need(v, "pattern", WRPO_JSON_OBJECT);
    bool literal = wrpo_json_get(pattern, "String");
    v = wrpo__need(pattern, literal ? "String" : "Regex", WRPO_JSON_STRING);
    e->regex = wrpo__load_regex(tok, v, v->text, v->size, literal);
}
WRPO__READ(behavior) {
    static const char names[] = "Removed Isolated MergedWithPrevious MergedWithNext Contiguous";
    const wrpo_json *behavior = wrpo__maybe(v, "behavior", WRPO_JSON_STRING);
    (void)tok;
    if (behavior) e->behavior = (wrpo__behavior)wrpo__load_choice(behavior, "Split behavior", names);
}
WRPO__READ(split) {
    wrpo__need(v, "behavior", WRPO_JSON_STRING);
    wrpo__read_behavior(tok, v, e);
    e->invert = wrpo__switch(v, "invert", false);
    wrpo__read_pattern(tok, v, e);
}
WRPO__READ(digits) {
    (void)tok;
    if (wrpo__switch(v, "individual_digits", false)) e->behavior = WRPO__ISOLATED;
}
WRPO__READ(byte_level) {
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    (void)e;
    if (wrpo__switch(v, "add_prefix_space", true))
        wrpo__put_edit(tok, (wrpo__edit){.kind = WRPO__EDIT_PREPEND, .text = " ", .size = 1, .unless = true});
    if (!wrpo__switch(v, "use_regex", true)) return;
    wrpo__put_edit(tok, (wrpo__edit){.kind = WRPO__EDIT_SPLIT, .behavior = WRPO__ISOLATED,
            .regex = wrpo__load_regex(tok, v, gpt2, sizeof gpt2 - 1, false)});
}
static bool wrpo__one_char(const wrpo__edit *e) {
    size_t size = 0;
    if (e->size) wrpo__utf8_get(e->text, e->size, &size);
    return size && size == e->size;
}
/* Does a normalizer keep the number of characters? */
static bool wrpo__keeps_count(const wrpo__edit *e) {
    if (e->kind != WRPO__EDIT_REPLACE) return e->kind == WRPO__EDIT_NFC;
    const wrpo__regex *x = e->regex->items;
    return wrpo__one_char(e) && !e->regex->other && x->kind == WRPO__RX_SET && !x->next && x->min == 1 && x->max == 1;
}
WRPO__READ(metaspace) {
    const wrpo_json *scheme = wrpo__maybe(v, "prepend_scheme", WRPO_JSON_STRING);
    const int choice = scheme ? wrpo__load_choice(scheme, "prepend_scheme", "always first never") : 0;
    const bool first = choice == 1, never = choice == 2;
    if (!wrpo__switch(v, "add_prefix_space", true) && !never)
        wrpo__wrong(v, "Metaspace: add_prefix_space false goes only with prepend_scheme \"never\"");
    /* "first" of the original text: known if the normalizer keeps the number of characters */
    for (int64_t i = 1; i < tok->normalizer_end && first; i++)
        if (!wrpo__keeps_count(&tok->encoder[i]))
            wrpo__load_refuse("after this normalizer, prepend_scheme", scheme);
    e->kind = WRPO__EDIT_REPLACE;  /* a space becomes the mark */
    e->regex = wrpo__load_regex(tok, v, " ", 1, true);
    wrpo__put_edit(tok, *e);
    e->kind = WRPO__EDIT_PREPEND;
    e->unless = true;
    e->first = first;
    if (!never) wrpo__put_edit(tok, *e);
    e->kind = wrpo__switch(v, "split", true) ? WRPO__EDIT_SPLIT : WRPO__EDIT_NONE;
    e->behavior = WRPO__MERGED_WITH_NEXT;
    e->regex = wrpo__load_regex(tok, v, e->text, e->size, true);
}
WRPO__READ(unmark) {
    e->regex = wrpo__load_regex(tok, v, e->text, e->size, true);
    e->text = " ";
    e->size = 1;
    e->first = !wrpo__json_is(wrpo_json_get(v, "prepend_scheme"), "never");
}
WRPO__READ(strip) {
    (void)tok;
    e->start = wrpo__load_count(wrpo__need(v, "start", WRPO_JSON_NUMBER), INT32_MAX);
    e->stop = wrpo__load_count(wrpo__need(v, "stop", WRPO_JSON_NUMBER), INT32_MAX);
}
/* The post-processor: the ids before and after a single text. */
WRPO__READ(template) {
    int32_t **ids = &tok->prefix;
    const wrpo_json *wrong = NULL;
    (void)e;
    if (tok->has_template) wrpo__load_refuse("more than one", wrpo_json_get(v, "type"));
    tok->has_template = true;
    WRPO__EACH(k, wrpo__need(v, "single", WRPO_JSON_ARRAY)) {
        const wrpo_json *text = wrpo__maybe(k, "Sequence", WRPO_JSON_OBJECT);
        if (text) {
            if (ids == &tok->suffix || !wrpo__json_is(wrpo_json_get(text, "id"), "A")) wrong = k;
            ids = &tok->suffix;
            continue;
        }
        const wrpo_json *tokens = wrpo__need(v, "special_tokens", WRPO_JSON_OBJECT);
        const wrpo_json *token = wrpo__need(k, "SpecialToken", WRPO_JSON_OBJECT);
        token = wrpo__need(tokens, wrpo__need(token, "id", WRPO_JSON_STRING)->text, WRPO_JSON_OBJECT);
        WRPO__EACH(i, wrpo__need(token, "ids", WRPO_JSON_ARRAY))
            stbds_arrput(*ids, wrpo__load_count(i, tok->size - 1));
    }
    if (wrong || ids == &tok->prefix)
        wrpo__unsupported(wrong ? wrong : v, "TemplateProcessing: want text A "
                "once in \"single\", found %s", wrong ? "another sequence" : "none");
}

typedef struct wrpo__component {
    const char *list, *type;
    wrpo__edit edit;
    const char *text, *regex;  /* the key of the edit's text; its regex */
    void (*read)(wrpo_tokenizer *tok, const wrpo_json *v, wrpo__edit *e);
} wrpo__component;
/* Digits has numbers as Rust has them, of Unicode 17: also U+11DE0..11DE9 and U+16FF4..16FF6. Punctuation and
   Whitespace have Rust's classes: all of ASCII's punctuation and Unicode 8's; \w with the two joiners. */
static const wrpo__component wrpo__components[] = {
    {"normalizer", "NFC", {.kind = WRPO__EDIT_NFC}, NULL, NULL, NULL},
    {"normalizer", "Prepend", {.kind = WRPO__EDIT_PREPEND}, "prepend", NULL, NULL},
    {"normalizer", "Replace", {.kind = WRPO__EDIT_REPLACE}, "content", NULL, wrpo__read_pattern},
    {"pre_tokenizer", "Split", {.kind = WRPO__EDIT_SPLIT}, NULL, NULL, wrpo__read_split},
    {"pre_tokenizer", "Digits", {.kind = WRPO__EDIT_SPLIT, .behavior = WRPO__CONTIGUOUS}, NULL,
     "[\\p{N}\xF0\x91\xB7\xA0-\xF0\x91\xB7\xA9\xF0\x96\xBF\xB4-\xF0\x96\xBF\xB6]", wrpo__read_digits},
    {"pre_tokenizer", "Punctuation", {.kind = WRPO__EDIT_SPLIT, .behavior = WRPO__ISOLATED}, NULL,
     "[\\p{P}$+<=>\\^`|~\xE1\x99\xAD\xF0\x91\x87\x89&&\\P{P since Unicode 9}]", wrpo__read_behavior},
    {"pre_tokenizer", "Whitespace", {.kind = WRPO__EDIT_SPLIT, .invert = true}, NULL,
     "[\\w\xE2\x80\x8C\xE2\x80\x8D]+|[^\\s\\w\xE2\x80\x8C\xE2\x80\x8D]+", NULL},
    {"pre_tokenizer", "WhitespaceSplit", {.kind = WRPO__EDIT_SPLIT}, NULL, "\\s+", NULL},
    {"pre_tokenizer", "ByteLevel", {.kind = WRPO__EDIT_BYTES}, NULL, NULL, wrpo__read_byte_level},
    {"pre_tokenizer", "Metaspace", {.kind = WRPO__EDIT_REPLACE}, "replacement", NULL, wrpo__read_metaspace},
    {"post_processor", "ByteLevel", {.kind = WRPO__EDIT_NONE}, NULL, NULL, NULL},  /* moves offsets only */
    {"post_processor", "TemplateProcessing", {.kind = WRPO__EDIT_NONE}, NULL, NULL, wrpo__read_template},
    {"decoder", "ByteLevel", {.kind = WRPO__EDIT_UNBYTES}, NULL, NULL, NULL},
    {"decoder", "ByteFallback", {.kind = WRPO__EDIT_BYTE_FALLBACK}, NULL, NULL, NULL},
    {"decoder", "Fuse", {.kind = WRPO__EDIT_FUSE}, NULL, NULL, NULL},
    {"decoder", "Replace", {.kind = WRPO__EDIT_REPLACE}, "content", NULL, wrpo__read_pattern},
    {"decoder", "Strip", {.kind = WRPO__EDIT_STRIP}, "content", NULL, wrpo__read_strip},
    {"decoder", "Metaspace", {.kind = WRPO__EDIT_REPLACE}, "replacement", NULL, wrpo__read_unmark},
};
/* A component, or a Sequence, which may nest. members: the key of its members. */
static void wrpo__load_component(wrpo_tokenizer *tok, const wrpo_json *v, const char *list, const char *members) {
    const wrpo_json *type = wrpo__need(v, "type", WRPO_JSON_STRING);
    if (wrpo__json_is(type, "Sequence")) {
        v = wrpo__need(v, members, WRPO_JSON_ARRAY);
        WRPO__EACH(k, v) wrpo__load_component(tok, k, list, members);
        return;
    }
    const wrpo__component *c = wrpo__components, *end = c + WRPO__COUNT(wrpo__components);
    while (c < end && !(strcmp(c->list, list) == 0 && wrpo__json_is(type, c->type))) c++;
    if (c == end) wrpo__load_refuse(list, type);
    wrpo__edit e = c->edit;
    if (c->regex) e.regex = wrpo__load_regex(tok, v, c->regex, strlen(c->regex), false);
    if (c->text) {
        const wrpo_json *text = wrpo__need(v, c->text, WRPO_JSON_STRING);
        e.text = wrpo__strndup(tok->arena, text->text, text->size);
        e.size = text->size;
        bool one = e.kind == WRPO__EDIT_STRIP || !strcmp(c->text, "replacement");
        if (one && !wrpo__one_char(&e)) wrpo__refuse(text, NULL, "one character");
    }
    if (c->read) c->read(tok, v, &e);
    if (e.kind == WRPO__EDIT_NFC) wrpo__unicode_load_nfc(tok->unicode);
    if (e.kind != WRPO__EDIT_NONE) wrpo__put_edit(tok, e);
}

static void wrpo__load_list(wrpo_tokenizer *tok, const wrpo_json *root, const char *list, const char *members) {
    const wrpo_json *v = wrpo__present(root, list);
    if (v) wrpo__load_component(tok, v, list, members);
}

/* ---- load: the model ---- */
static void wrpo__new_token(wrpo_tokenizer *tok, int32_t id, const char *text, size_t size, uint32_t flags) {
    tok->tokens[id] = (wrpo__token){wrpo__strndup(tok->arena, text, size), (uint32_t)size, flags};
    *wrpo__slot(tok, text, size) = id;
}
static void *wrpo__free_slots(wrpo_tokenizer *tok, int64_t n, size_t size, uint64_t *mask) {  /* all bits set */
    const size_t slots = wrpo__table_size(n);
    *mask = slots - 1;
    return memset(wrpo__raw(tok->arena, slots, size), 0xFF, slots * size);
}
static void wrpo__load_vocab(wrpo_tokenizer *tok, const wrpo_json *vocab, int64_t added) {
    char text[8];
    WRPO__EACH(v, vocab)
        tok->size = WRPO__MAX(tok->size, wrpo__load_count(v, WRPO__MAX_ID - 1) + 1);
    tok->next_id = vocab->count;
    tok->slots = wrpo__free_slots(tok, vocab->count + added, sizeof *tok->slots, &tok->mask);
    tok->tokens = wrpo__alloc(tok->arena, (size_t)(tok->size + added) + 1, sizeof *tok->tokens);
    WRPO__EACH(v, vocab) {
        int32_t id = (int32_t)v->integer;
        if (tok->tokens[id].text) wrpo__wrong(v, "vocab: the id %d stands twice", (int)id);
        wrpo__new_token(tok, id, v->key, v->key_size, WRPO__TOKEN_MODEL);
    }
    for (uint32_t c = 0; c < WRPO__SMALL_CHARS; c++) tok->small[c] = wrpo__model_id(tok, text, wrpo__utf8_put(text, c));
    for (int k = 0; k < 256; k++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)k);
        tok->bytes[k] = wrpo__model_id(tok, text, 6);
    }
}
/* SentencePiece models have no pre-tokenizer: a text is one word. If no merge makes a token with a mark (U+2581) after
   another character, and none is dropped for want of an unk_token, cutting there changes nothing: words are short. */
static const char wrpo__mark[] = "\xE2\x96\x81";
static bool wrpo__mark_within(const char *s, size_t n) {
    for (size_t i = 1; i + 3 <= n; i++)
        if (!memcmp(s + i, wrpo__mark, 3) && (i < 3 || memcmp(s + i - 3, wrpo__mark, 3) != 0)) return true;
    return false;
}
/* Both tokens of a merge: "left right" or ["left", "right"]. */
static bool wrpo__merge_parts(const wrpo_json *v, wrpo_json part[2]) {
    if (v->kind == WRPO_JSON_ARRAY && v->count == 2) {
        part[0] = *v->child;
        part[1] = *v->child->next;
        return part[0].kind == WRPO_JSON_STRING && part[1].kind == WRPO_JSON_STRING;
    }
    const char *space = v->kind == WRPO_JSON_STRING ? memchr(v->text, ' ', v->size) : NULL;
    if (!space) return false;
    part[0] = part[1] = *v;
    part[0].size = (size_t)(space - v->text);
    part[1].text = space + 1;
    part[1].size -= part[0].size + 1;
    return !memchr(part[1].text, ' ', part[1].size);
}
static void wrpo__load_merges(wrpo_tokenizer *tok, const wrpo_json *merges) {
    wrpo__text text = {.arena = tok->scratch};
    int32_t rank = 0;
    tok->merges = wrpo__free_slots(tok, merges->count, sizeof *tok->merges, &tok->merge_mask);
    WRPO__EACH(v, merges) {
        wrpo_json part[3];  /* left, right, both */
        int32_t id[3];
        if (!wrpo__merge_parts(v, part))
            wrpo__wrong(v, "merge %d: want two tokens, as two strings or with one space between them, found %s",
                    (int)rank, wrpo__found(v));
        text.size = 0;
        for (int k = 0; k < 2; k++) wrpo__text_add(&text, part[k].text, part[k].size);
        part[2].text = text.data;
        part[2].size = text.size;
        for (int k = 0; k < 3; k++) {
            id[k] = wrpo__model_id(tok, part[k].text, part[k].size);
            if (id[k] < 0)
                wrpo__wrong(v, "merge %d: its %s \"%s\" is not in the vocabulary", (int)rank,
                        k == 2 ? "result" : "part", wrpo__legible(part[k].text, part[k].size));
        }
        wrpo__merge merge = {wrpo__pair(id[0], id[1]), rank, id[2]};
        *wrpo__merge_slot(tok, id[0], id[1]) = merge;  /* of equal pairs the last counts */
        tok->cuts = tok->cuts && !wrpo__mark_within(text.data, text.size);
        rank++;
    }
}
static void wrpo__load_model(wrpo_tokenizer *tok, const wrpo_json *model, int64_t added) {
    static const char *const refused[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
    const wrpo_json *type = wrpo__maybe(model, "type", WRPO_JSON_STRING);  /* old files have none */
    if (type && !wrpo__json_is(type, "BPE")) wrpo__load_refuse("model", type);
    for (int k = 0; k < 3; k++) {  /* unless 0 or empty */
        const wrpo_json *v = wrpo__maybe(model, refused[k], k ? WRPO_JSON_STRING : WRPO_JSON_NUMBER);
        if (v && (k ? v->size > 0 : v->number != 0)) wrpo__load_refuse(refused[k], v);
    }
    const wrpo_json *vocab = wrpo__need(model, "vocab", WRPO_JSON_OBJECT);
    const wrpo_json *merges = wrpo__need(model, "merges", WRPO_JSON_ARRAY);
    const wrpo_json *unk = wrpo__maybe(model, "unk_token", WRPO_JSON_STRING);
    tok->byte_fallback = wrpo__switch(model, "byte_fallback", false);
    tok->fuse_unk = wrpo__switch(model, "fuse_unk", false);
    tok->ignore_merges = wrpo__switch(model, "ignore_merges", false);
    wrpo__load_vocab(tok, vocab, added);
    if (unk) {
        tok->unk_text = wrpo__strndup(tok->arena, unk->text, unk->size);
        tok->unk = wrpo__model_id(tok, unk->text, unk->size);
    }
    tok->cuts = !tok->ignore_merges && unk && wrpo__model_id(tok, wrpo__mark, 3) >= 0;
    wrpo__load_merges(tok, merges);
    tok->words = wrpo__alloc(tok->arena, WRPO__WORDS, sizeof *tok->words);
}

/* ---- load: added and special tokens ---- */
/* all: no flag may be absent; else an absent one is false, but "normalized" is "not special". */
static uint32_t wrpo__load_flags(const wrpo_json *v, uint32_t flags, bool all) {
    static const char *const keys[] = {"single_word", "lstrip", "rstrip", "special", "normalized"};
    for (int k = 0; k < 5; k++) {  /* as the flags */
        if (all) wrpo__need(v, keys[k], WRPO_JSON_BOOL);
        bool otherwise = k == 4 && !(flags & WRPO__TOKEN_SPECIAL);
        if (wrpo__switch(v, keys[k], otherwise)) flags |= (uint32_t)WRPO__TOKEN_SINGLE_WORD << k;
    }
    return flags;
}
static void wrpo__add_token(wrpo_tokenizer *tok, const wrpo_json *v, int32_t id, uint32_t flags) {
    wrpo__token *token = &tok->tokens[id];
    wrpo__added a = {token->text, token->size, id, 0};
    bool normalized = flags & WRPO__TOKEN_NORMALIZED;
    token->flags |= flags;
    if (normalized) {
        wrpo__edit_text(tok->work, token->text, token->size, tok->encoder + 1, tok->normalizer_end - 1);
        const wrpo__piece *p = tok->work->pieces;  /* one: a normalizer does not cut */
        a.size = (uint32_t)p->n;
        a.text = wrpo__strndup(tok->arena, p->s, p->n);
        /* the library decodes to the normalized form, which is not among its special tokens */
        if (a.size != token->size || memcmp(a.text, token->text, a.size) != 0) token->flags |= WRPO__TOKEN_RENAMED;
    }
    int32_t *at = &tok->heads[normalized][(unsigned char)a.text[0]];
    while (tok->added[*at].size > a.size) at = &tok->added[*at].next;
    for (const wrpo__added *b = &tok->added[*at]; a.size && b->size == a.size; b = &tok->added[b->next])
        if (memcmp(b->text, a.text, a.size) == 0)
            wrpo__wrong(v, "added token %d looks like added token %d", (int)id, (int)b->id);
    a.next = *at;
    if (a.size) *at = (int32_t)stbds_arrlen(tok->added);  /* else never found */
    stbds_arrput(tok->added, a);
}
/* A token that the vocabulary lacks gets the next id. */
static int32_t wrpo__missing_token(wrpo_tokenizer *tok, const wrpo_json *v, const wrpo_json *text) {
    const int32_t id = (int32_t)tok->next_id++;
    if (tok->tokens[id].text)
        wrpo__wrong(v, "\"%s\": its id %d is another token's", wrpo__legible(text->text, text->size), (int)id);
    wrpo__new_token(tok, id, text->text, text->size, 0);
    tok->size = WRPO__MAX(tok->size, id + 1);
    return id;
}
/* added_tokens of tokenizer.json, then (again) added_tokens_decoder of tokenizer_config.json, whose keys are ids. Where
   flags differ, the library's answer depends on its version: refused. */
static void wrpo__load_added(wrpo_tokenizer *tok, const wrpo_json *list, bool again) {
    int64_t before = -1, others = 0;
    const char *other = NULL;
    WRPO__EACH(v, list) {
        const wrpo_json *content = wrpo__need(v, "content", WRPO_JSON_STRING);
        const char *found = again ? v->key : wrpo__need(v, "id", WRPO_JSON_NUMBER)->text;
        uint32_t flags = wrpo__load_flags(v, WRPO__TOKEN_ADDED, !again);
        char want[16];
        if (!content->size) continue;
        /* the library's choice: the model's id, else the next from the vocabulary's size on */
        int32_t id = wrpo__token_id(tok, content->text, content->size);
        bool known = id >= 0;
        if (again && !known && strtoll(found, NULL, 10) <= before) wrpo__refuse(v, NULL, "ids that ascend");
        before = again ? strtoll(found, NULL, 10) : -1;
        if (!known) id = wrpo__missing_token(tok, v, content);
        wrpo__token *token = &tok->tokens[id];
        snprintf(want, sizeof want, "%d", (int)id);
        const char *shown = wrpo__legible(content->text, content->size);
        if (strcmp(found, want) != 0 && !others++)
            other = wrpo__format(tok->scratch, "%s:%d: added token \"%s\": its id is %s, %s, and not %.40s", v->name,
                    v->line, shown, want, known ? "which the vocabulary gives it" : "the next one free", found);
        if (!(token->flags & WRPO__TOKEN_ADDED)) wrpo__add_token(tok, v, id, flags);
        else if ((token->flags & ~(uint32_t)(WRPO__TOKEN_MODEL | WRPO__TOKEN_RENAMED)) != flags)
            wrpo__wrong(v, "added token \"%s\" %s", shown,
                    again ? "has other flags in tokenizer.json" : "stands twice, with different flags");
    }
    if (others) wrpo__warn("%s%s: so the tokenizers library has it", other, others > 1 ? "; and others" : "");
}

static const char *const wrpo__special_names[7] = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
};
/* What tokenizer classes of transformers bring: special tokens, and a post-processor. */
typedef struct wrpo__class_defaults { const char *name, *special[7]; bool processor; } wrpo__class_defaults;
static const wrpo__class_defaults wrpo__tokenizer_classes[] = {
    {"LlamaTokenizer", {"<s>", "</s>", "<unk>"}, true},
    {"GemmaTokenizer", {"<bos>", "<eos>", "<unk>", NULL, "<pad>"}, true},
    {"GPT2Tokenizer", {"<|endoftext|>", "<|endoftext|>", "<|endoftext|>"}, false},
    {"Qwen2Tokenizer", {NULL, "<|endoftext|>", "<|endoftext|>", NULL, "<|endoftext|>"}, false},
};
/* A special token, a string or an object that holds it, becomes an added token, as in transformers; with the next id
   if it is not in the vocabulary, except a class's default (not own), for which the model has no row. Returns its id,
   or -1. keep: where its text goes, for templates; NULL: nowhere, and what is no token is ignored. */
static int32_t wrpo__load_special(wrpo_tokenizer *tok, const wrpo_json *v, bool own, const char **keep) {
    const wrpo_json *text = v && v->kind == WRPO_JSON_OBJECT ? wrpo_json_get(v, "content") : v;
    uint32_t flags = WRPO__TOKEN_ADDED | WRPO__TOKEN_SPECIAL;
    if (!text || text->kind != WRPO_JSON_STRING) {
        if (keep && v && v->kind != WRPO_JSON_NULL) wrpo__want(v, WRPO_JSON_STRING, NULL);
        return -1;
    }
    if (keep) *keep = wrpo__strndup(tok->arena, text->text, text->size);
    if (text != v) flags = wrpo__load_flags(v, flags, false);
    int32_t id = wrpo__token_id(tok, text->text, text->size);
    if (id < 0 && own && text->size) id = wrpo__missing_token(tok, v, text);
    if (id >= 0 && text->size && !(tok->tokens[id].flags & WRPO__TOKEN_ADDED)) wrpo__add_token(tok, v, id, flags);
    return id;
}
/* The special tokens of tokenizer_config.json; before them those of special_tokens_map.json, which is read only if the
   config has no added_tokens_decoder (else map is NULL); after them those of the tokenizer's class. Others have any key
   that ends in _token, or are members of two objects or lists. The order decides the ids of new ones. */
static void wrpo__load_specials(wrpo_tokenizer *tok, const wrpo_json *map) {
    static const char *const adds[] = {"add_bos_token", "add_eos_token"};
    const wrpo_json *const files[2] = {map, tok->config};
    const wrpo_json *class_name = wrpo_json_get(tok->config, "tokenizer_class");
    const wrpo__class_defaults *class = NULL;
    int32_t ids[7];
    for (int k = 0; k < WRPO__COUNT(wrpo__tokenizer_classes); k++) {
        const wrpo__class_defaults *c = &wrpo__tokenizer_classes[k];
        const char *fast = wrpo__format(wrpo__current, "%sFast", c->name);
        if (wrpo__json_is(class_name, c->name) || wrpo__json_is(class_name, fast)) class = c;
    }
    for (int i = 0; i < 7; i++) {
        const char *key = wrpo__special_names[i], *usual = class ? class->special[i] : NULL;
        const wrpo_json own = {.kind = WRPO_JSON_STRING, .text = usual, .size = usual ? strlen(usual) : 0};
        const wrpo_json *v = wrpo_json_get(map, key);
        if (!v) v = wrpo_json_get(tok->config, key);
        if (!v && usual) v = &own;
        ids[i] = wrpo__load_special(tok, v, v != &own, &tok->special[i]);
    }
    tok->bos = ids[0];
    tok->eos = ids[1];
    for (int k = 0; k < 6; k++) {  /* in both files: such keys, then objects, then lists */
        const wrpo_json *file = files[k % 2];
        WRPO__EACH(v, file) {
            const bool list = v->kind == (k < 4 ? WRPO_JSON_OBJECT : WRPO_JSON_ARRAY) &&
                wrpo__listed("additional_special_tokens extra_special_tokens", v->key);
            if (k % 2 && wrpo_json_get(map, v->key)) continue;
            if (k < 2 && wrpo__ends(v->key, "_token")) wrpo__load_special(tok, v, true, NULL);
            WRPO__EACH(t, list && k > 1 ? v : NULL) wrpo__load_special(tok, t, true, NULL);
        }
    }
    if (!class || !class->processor) return;
    /* as in transformers 4.x, whatever tokenizer.json says */
    tok->prefix = tok->suffix = NULL;
    for (int i = 0; i < 2; i++) {
        int32_t **list = i ? &tok->suffix : &tok->prefix;
        const wrpo_json *v = wrpo_json_get(tok->config, adds[i]);
        if (!wrpo__switch(tok->config, adds[i], i == 0)) continue;
        if (ids[i] < 0)
            wrpo__wrong(v ? v : class_name, "%s is true%s, but no %s is in the vocabulary", adds[i],
                    v ? "" : ", as this class has it", wrpo__special_names[i]);
        stbds_arrput(*list, ids[i]);
    }
}

/* ---- load: chat templates, files ---- */
static void wrpo__set_template(wrpo_tokenizer *tok, int i, const char *text, size_t size) {
    tok->chat[i] = (wrpo__template){.text = wrpo__strndup(tok->arena, text, size), .size = size};
}
/* chat_template: a string, or a list of {name, template}, of which two names count. If a template has its own file, the
   config's do not count. */
static void wrpo__load_templates(wrpo_tokenizer *tok, const wrpo_json *v) {
    static const char *const names[] = {"default", "tool_use"};
    static const char *const files[] = {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"};
    if (v && v->kind != WRPO_JSON_ARRAY) {
        wrpo__want(v, WRPO_JSON_STRING, NULL);
        wrpo__set_template(tok, 0, v->text, v->size);
        v = NULL;
    }
    WRPO__EACH(k, v)
        for (int i = 0; i < 2; i++) {
            if (!wrpo__json_is(wrpo_json_get(k, "name"), names[i])) continue;
            const wrpo_json *text = wrpo__need(k, "template", WRPO_JSON_STRING);
            wrpo__set_template(tok, i, text->text, text->size);
        }
    bool found = false;
    for (int i = 0; i < 2; i++) {
        const char *path = wrpo__join(tok->arena, tok->dir, files[i]);
        if (!wrpo__exists(path)) continue;
        const wrpo__file *f = wrpo__open_file(tok->scratch, path);
        wrpo__need_utf8(path, (const char *)f->data, f->size);
        if (!found) memset(tok->chat, 0, sizeof tok->chat);
        found = true;
        wrpo__set_template(tok, i, (const char *)f->data, f->size);
    }
}
/* An object in a file of the directory; NULL: no such file. */
static const wrpo_json *wrpo__load_json(wrpo_tokenizer *tok, wrpo__arena *arena, const char *file) {
    const char *path = wrpo__join(tok->arena, tok->dir, file);
    if (!wrpo__exists(path)) return NULL;
    const wrpo__file *f = wrpo__open_file(tok->scratch, path);         /* it is closed once the tokenizer is loaded */
    return wrpo__want(wrpo__json_parse(arena, path, 1, (const char *)f->data, f->size), WRPO_JSON_OBJECT, file);
}
static wrpo_tokenizer *wrpo__tokenizer_new(wrpo__arena *arena, const char *dir) {
    wrpo_tokenizer *tok = WRPO__NEW(arena, wrpo_tokenizer);
    *tok = (wrpo_tokenizer){.ctx = arena->ctx, .arena = arena, .scratch = wrpo__sub_arena(arena),
                            .dir = wrpo__strndup(arena, dir, strlen(dir)),
                            .unicode = wrpo__unicode_of(arena->ctx)};
    double now = wrpo__now();
    tok->seed = wrpo__hash((uint64_t)(uintptr_t)arena, &now, sizeof now);  /* for speed: ids do not depend on it */
    uint32_t next = 0x100;
    memset(tok->char_byte, 0xFF, sizeof tok->char_byte);
    for (uint32_t b = 0; b < 256; b++) {  /* printable Latin-1 is itself; others are U+0100 and up */
        const uint32_t c = (b > 32 && b < 127) || (b > 160 && b != 173) ? b : next++;
        wrpo__utf8_put(tok->byte_text[b], c);
        tok->char_byte[c] = (int16_t)b;
    }
    stbds_arrput(tok->added, ((wrpo__added){"", 0, -1, 0}));
    return tok;
}
static int64_t wrpo__leaves(const wrpo_json *v) {  /* members of an object, and their members */
    int64_t n = 0;
    WRPO__EACH(k, v) n += 1 + k->count;
    return n;
}
static wrpo_tokenizer *wrpo__tokenizer_load(wrpo__arena *arena, const char *dir) {
    wrpo_tokenizer *tok = wrpo__tokenizer_new(arena, dir);
    wrpo__work work = {.tok = tok, .out.arena = tok->scratch};
    tok->work = &work;

    tok->config = wrpo__load_json(tok, arena, "tokenizer_config.json");
    const wrpo_json *again = NULL;
    if (tok->config) again = wrpo__maybe(tok->config, "added_tokens_decoder", WRPO_JSON_OBJECT);
    const wrpo_json *root = wrpo__load_json(tok, tok->scratch, "tokenizer.json");
    if (!root) wrpo__no_checkpoint(arena, dir, "tokenizer.json", true);
    const wrpo_json *version = wrpo__maybe(root, "version", WRPO_JSON_STRING);
    if (version && !wrpo__json_is(version, "1.0")) wrpo__load_refuse("tokenizer.json version", version);
    /* truncation and padding are off in a plain call of transformers */
    const wrpo_json *model = wrpo__need(root, "model", WRPO_JSON_OBJECT);
    const wrpo_json *added = wrpo__maybe(root, "added_tokens", WRPO_JSON_ARRAY);
    const wrpo_json *map = again ? NULL : wrpo__load_json(tok, tok->scratch, "special_tokens_map.json");
    wrpo__load_model(tok, model, (added ? added->count : 0) + wrpo__leaves(tok->config) + wrpo__leaves(map));
    tok->edits = &tok->encoder;
    wrpo__put_edit(tok, (wrpo__edit){.kind = WRPO__EDIT_ADDED});
    wrpo__load_list(tok, root, "normalizer", "normalizers");
    tok->normalizer_end = stbds_arrlen(tok->encoder);
    wrpo__put_edit(tok, (wrpo__edit){.kind = WRPO__EDIT_ADDED, .normalized = true});
    wrpo__load_list(tok, root, "pre_tokenizer", "pretokenizers");
    if (tok->cuts)
        wrpo__put_edit(tok, (wrpo__edit){.kind = WRPO__EDIT_SPLIT, .behavior = WRPO__MERGED_WITH_NEXT,
                .regex = wrpo__load_regex(tok, root, "\xE2\x96\x81+", 4, false)});
    tok->has_decoder = wrpo__present(root, "decoder");
    tok->edits = &tok->decoder;
    wrpo__load_list(tok, root, "decoder", "decoders");
    wrpo__load_added(tok, added, false);
    wrpo__load_list(tok, root, "post_processor", "processors");

    wrpo__load_added(tok, again, true);
    wrpo__load_specials(tok, map);
    wrpo__load_templates(tok, wrpo__present(tok->config, "chat_template"));
    wrpo__arena_clear(tok->scratch);
    tok->work = NULL;
    return tok;
}

/* ---- the public face ---- */
WRPO_API wrpo_result wrpo_tokenizer_load(wrpo_ctx *ctx, const char *dir, wrpo_tokenizer **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__tokenizer_load(wrpo__current, dir));
}
WRPO_API void wrpo_tokenizer_free(wrpo_tokenizer *tok) { if (tok) wrpo__arena_free(tok->arena); }
WRPO_API int64_t wrpo_tokenizer_size(const wrpo_tokenizer *tok) { return tok->size; }
WRPO_API int32_t wrpo_tokenizer_bos(const wrpo_tokenizer *tok) { return tok->bos; }
WRPO_API int32_t wrpo_tokenizer_eos(const wrpo_tokenizer *tok) { return tok->eos; }
static int32_t *wrpo__encode_new(wrpo_tokenizer *tok, const char *text, size_t size, unsigned flags, int64_t *count) {
    int32_t *ids = NULL;
    wrpo__encode(tok, text, size, flags, &ids);
    *count = stbds_arrlen(ids);
    return wrpo__handout(tok->ctx, ids, (size_t)*count * sizeof *ids);
}
WRPO_API wrpo_result wrpo_tokenizer_encode(wrpo_tokenizer *tok, const char *text, size_t size, unsigned flags,
        int32_t **ids, int64_t *count) {
    *ids = NULL;
    *count = 0;
    WRPO__ENTRY(tok->ctx, true, *ids = wrpo__encode_new(tok, text, size, flags, count));
}
static char *wrpo__decode_new(wrpo_tokenizer *tok, const int32_t *ids, int64_t count, bool skip_special, size_t *size) {
    wrpo__text out = {.arena = wrpo__current};
    wrpo__decode(tok, ids, count, skip_special, &out);
    *size = out.size;
    return wrpo__handout(tok->ctx, out.data, out.size);
}
WRPO_API wrpo_result wrpo_tokenizer_decode(wrpo_tokenizer *tok, const int32_t *ids, int64_t count, bool skip_special,
        char **text, size_t *size) {
    *text = NULL;
    *size = 0;
    WRPO__ENTRY(tok->ctx, true, *text = wrpo__decode_new(tok, ids, count, skip_special, size));
}

/* --------------------------------------------------------------------------------------------- >>chat
   Chat templates: an interpreter for the part of Jinja that published templates are written in.

   The environment is that of transformers: sandboxed, trim_blocks, lstrip_blocks, one final newline dropped,
   `break` and `continue`, `{% generation %}`, tojson without HTML escapes, raise_exception and strftime_now.
   The output is what Python prints. What Python refuses is WRPO_E_FORMAT with the template's line. What is not
   known here is WRPO_E_UNSUPPORTED by name: inheritance, imports, call, filter, with and raw blocks, recursive
   loops, varargs, chained comparisons, powers, format strings, escaping, and all without a row in wrpo__jdefs.
   One difference is not refused:  {% for m in messages %}{{ bos_token }}{% endfor %}{% set bos_token = 1 %}
   Jinja sees that the template sets bos_token and writes nothing for an undefined variable. Here the caller's
   bos_token is written, for a name is looked up when it is read.

   A template becomes tokens once per tokenizer. There is no tree: compiling reads all tokens while J->idle, to
   find errors of grammar and note jumps between tokens; each rendering reads them again. While J->idle nothing
   is looked up, computed or written, and values mean nothing. A rendering skips code that way.
   Names: jv is a value; J is the state of one compilation or rendering.                                     */

/* A template is a stranger's program: it gets no more. */
#ifndef WRPO__J_MAX_STEPS  /* tokens read, elements compared, pieces of text written; fuzzing has less time */
#define WRPO__J_MAX_STEPS 20000000
#endif
enum {
    WRPO__J_MAX_DEPTH = 1000,  /* of nesting times recursion, and of values */
    WRPO__J_MAX_BYTES = 1 << 28,  /* of values and text made */
    WRPO__J_MAX_RANGE = 100000  /* as in Jinja's sandbox */
};

/* ---- values: immutable except namespaces; in wrpo__current, the arena of the rendering or the template ---- */
enum {  /* kinds: bits, which make sets */
    WRPO__J_UNDEFINED = 1, WRPO__J_NONE = 2, WRPO__J_BOOL = 4, WRPO__J_INT = 8, WRPO__J_FLOAT = 16, WRPO__J_STR = 32,
    WRPO__J_LIST = 64, WRPO__J_TUPLE = 128, WRPO__J_RANGE = 256, WRPO__J_VIEW = 512, WRPO__J_ITER = 1024,
    WRPO__J_DICT = 2048, WRPO__J_NAMESPACE = 4096, WRPO__J_FUNCTION = 8192, WRPO__J_MACRO = 16384, WRPO__J_LOOP = 32768,

    WRPO__J_INTS = WRPO__J_BOOL | WRPO__J_INT, WRPO__J_NUMBERS = WRPO__J_INTS | WRPO__J_FLOAT,
    WRPO__J_SCALARS = WRPO__J_NUMBERS | WRPO__J_STR | WRPO__J_NONE | WRPO__J_UNDEFINED,
    WRPO__J_LISTS = WRPO__J_LIST | WRPO__J_TUPLE | WRPO__J_RANGE, WRPO__J_INDEXED = WRPO__J_LISTS | WRPO__J_STR,
    WRPO__J_SEQUENCES = WRPO__J_INDEXED | WRPO__J_DICT | WRPO__J_UNDEFINED,
    WRPO__J_SIZED = WRPO__J_SEQUENCES | WRPO__J_VIEW, WRPO__J_ITERABLES = WRPO__J_SIZED | WRPO__J_ITER,
    WRPO__J_CALLABLES = WRPO__J_FUNCTION | WRPO__J_MACRO
};
typedef struct wrpo__jval wrpo__jval;
typedef const wrpo__jval *wrpo__jv;
typedef struct wrpo__jtoken wrpo__jtoken;
typedef struct wrpo__jloop wrpo__jloop;
typedef struct wrpo__jdef wrpo__jdef;
struct wrpo__jval {
    int kind;
    bool safe;  /* STR: marked by the filter `safe` */
    int64_t i;  /* BOOL, INT; ITER: 1 once it is read */
    double f;  /* FLOAT: finite */
    const char *s; size_t n;  /* STR: bytes; UNDEFINED, FUNCTION: the name */
    wrpo__jv *items, *keys;  /* [count] LIST to ITER: items; DICT, NAMESPACE: in order of insertion */
    int64_t count;
    const wrpo__jdef *def; wrpo__jv self;  /* FUNCTION; the value whose method it is */
    wrpo__jval *scope;  /* MACRO: the scope that defined it; NAMESPACE as a scope: the one around it */
    wrpo__jtoken *parameters;  /* MACRO */
    wrpo__jloop *loop;  /* LOOP */
};
typedef struct wrpo__jinja {  /* one compilation or one rendering */
    wrpo_ctx *ctx;
    wrpo_tokenizer *tok;
    wrpo__jtoken *at;  /* the current token */
    int idle;  /* above 0: tokens are only read */
    int line, depth, loops;  /* of the current token */
    wrpo__jval *scope;
    wrpo__text out;  /* the rendering, and strings in the making: wrpo__jcut */
    char flow;  /* 'b' break, 'c' continue; else 0 */
    int64_t steps; size_t held;  /* steps done; bytes that the context held before */
    size_t **spans;  /* stb array: where generation blocks begin and end in out; NULL: not wanted */
    /* A compilation: */
    const char *s; size_t n, next;  /* the template with newlines \n; where its next token begins */
    bool fresh;  /* the text after the last tag begins a line */
    wrpo__jtoken *tokens;  /* stb array */
} wrpo__jinja;

_Noreturn static void wrpo__jraise(wrpo__jinja *J, wrpo_result code, const char *text, const char *more) {
    wrpo__fail_at(J->ctx, code, J->line, 0, "chat template, line %d: %s%s", J->line, text, more);
}
/* What Python refuses too; what is not supported. */
#define wrpo__jfail(J, ...) wrpo__jraise(J, WRPO_E_FORMAT, wrpo__format(wrpo__current, __VA_ARGS__), "")
#define wrpo__jrefuse(J, ...) \
    wrpo__jraise(J, WRPO_E_UNSUPPORTED, wrpo__format(wrpo__current, __VA_ARGS__), " is not supported")
#define WRPO__J_SHOW(v) (int)WRPO__MIN((v)->n, 60), (v)->s  /* for "%.*s" */
static void wrpo__jspend(wrpo__jinja *J, size_t bytes) {
    J->steps += 1 + (int64_t)(bytes >> 5);
    if (J->steps > WRPO__J_MAX_STEPS) wrpo__jfail(J, "the template runs too long: %d steps", WRPO__J_MAX_STEPS);
    if (J->ctx->bytes > J->held + WRPO__J_MAX_BYTES)
        wrpo__jfail(J, "the template makes too much text: %d bytes", WRPO__J_MAX_BYTES);
}
static void wrpo__jenter(wrpo__jinja *J) {
    if (++J->depth > WRPO__J_MAX_DEPTH) wrpo__jfail(J, "nested too deeply: more than %d levels", WRPO__J_MAX_DEPTH);
}

static wrpo__jval *wrpo__jmake(wrpo__jval v) {
    wrpo__jval *made = WRPO__NEW(wrpo__current, wrpo__jval);
    *made = v;
    return made;
}
#define WRPO__J_VAL(...) wrpo__jmake((wrpo__jval){__VA_ARGS__})
static wrpo__jval *wrpo__jnew(int kind) { return WRPO__J_VAL(.kind = kind); }
static const wrpo__jval wrpo__jnone = {.kind = WRPO__J_NONE}, wrpo__jempty = {.kind = WRPO__J_STR, .s = ""};
static wrpo__jv wrpo__jbool(bool b) {
    static const wrpo__jval values[] = {{.kind = WRPO__J_BOOL}, {.kind = WRPO__J_BOOL, .i = 1}};
    return &values[b];
}
static wrpo__jv wrpo__jint(int64_t i) { return WRPO__J_VAL(.kind = WRPO__J_INT, .i = i); }
static wrpo__jv wrpo__jfloat(wrpo__jinja *J, double f) {
    if (!isfinite(f)) wrpo__jrefuse(J, "a number beyond the range of a double");
    return WRPO__J_VAL(.kind = WRPO__J_FLOAT, .f = f);
}
static wrpo__jv wrpo__jbytes(const char *s, size_t n) {
    return WRPO__J_VAL(.kind = WRPO__J_STR, .s = n ? s : "", .n = n);
}
static wrpo__jv wrpo__jstring(const char *s) { return wrpo__jbytes(s, strlen(s)); }
static wrpo__jv wrpo__jundefined(wrpo__jv name) {
    return WRPO__J_VAL(.kind = WRPO__J_UNDEFINED, .s = name->s, .n = name->n);
}
static wrpo__jv wrpo__jshare(int kind, wrpo__jv *items, int64_t count) {
    return WRPO__J_VAL(.kind = kind, .items = items, .count = count);
}
static wrpo__jval *wrpo__jscope(wrpo__jval *around) { return WRPO__J_VAL(.kind = WRPO__J_NAMESPACE, .scope = around); }
/* Appends an item to a new value. In a dict, the caller appends its key. */
static void wrpo__jpush(wrpo__jinja *J, wrpo__jval *to, wrpo__jv item) {
    wrpo__jspend(J, 0);
    stbds_arrput(to->items, item);
    to->count++;
}
/* Takes the output from `from` on back, as a string. */
static wrpo__jv wrpo__jcut(wrpo__jinja *J, size_t from) {
    size_t n = J->out.size - from;
    if (!n) return &wrpo__jempty;
    const char *s = memcpy(wrpo__raw(wrpo__current, n, 1), J->out.data + from, n);
    J->out.size = from;
    J->out.data[from] = 0;
    return wrpo__jbytes(s, n);
}
static void wrpo__jput(wrpo__jinja *J, const char *s, size_t n) {
    wrpo__jspend(J, n);
    wrpo__text_add(&J->out, s, n);
}
static void wrpo__jputs(wrpo__jinja *J, wrpo__jv v) { wrpo__jput(J, v->s, v->n); }

static bool wrpo__jis_str(wrpo__jv v) { return v->kind == WRPO__J_STR; }
static bool wrpo__jboth(wrpo__jv a, wrpo__jv b, int kinds) { return (a->kind & kinds) && (b->kind & kinds); }
static const char *wrpo__jtype(wrpo__jv v) {
    static const char *const names[] = {"undefined", "None", "bool", "int", "float", "str", "list", "tuple", "range",
                                        "dict view", "generator", "dict", "namespace", "function", "macro", "loop"};
    int bit = 0;
    while (v->kind >> bit > 1) bit++;
    return names[bit];
}
static wrpo__jv wrpo__jwant(wrpo__jinja *J, wrpo__jv v, int kinds, const char *what) {
    if (v->kind & kinds) return v;
    if (v->kind == WRPO__J_UNDEFINED) wrpo__jfail(J, "\"%.*s\" is undefined", WRPO__J_SHOW(v));
    wrpo__jfail(J, "want %s, found %s", what, wrpo__jtype(v));
}
static wrpo__jv wrpo__jdefined(wrpo__jinja *J, wrpo__jv v) { return wrpo__jwant(J, v, ~WRPO__J_UNDEFINED, ""); }
static wrpo__jv wrpo__jto_str(wrpo__jinja *J, wrpo__jv v) { return wrpo__jwant(J, v, WRPO__J_STR, "a string"); }
static int64_t wrpo__jto_int(wrpo__jinja *J, wrpo__jv v) { return wrpo__jwant(J, v, WRPO__J_INTS, "an integer")->i; }
static double wrpo__jdouble(wrpo__jv v) { return v->kind == WRPO__J_FLOAT ? v->f : (double)v->i; }
static wrpo__jv wrpo__jplain(wrpo__jinja *J, wrpo__jv v) {  /* v, where Jinja would escape or mark the result */
    if (v->safe) wrpo__jrefuse(J, "more than printing or comparing a string marked safe");
    return v;
}
static bool wrpo__jtruth(wrpo__jv v) {
    if (v->kind <= WRPO__J_FLOAT) return v->i != 0 || v->f != 0;
    if (wrpo__jis_str(v)) return v->n > 0;
    return v->count > 0 || !(v->kind & WRPO__J_SIZED);
}
static bool wrpo__jsame(wrpo__jv a, wrpo__jv b) { return a->n == b->n && memcmp(a->s, b->s, a->n) == 0; }
static int wrpo__jword(const char *words, wrpo__jv v) { return wrpo__word_of(words, v->s, v->n); }

/* ---- equality and order, as in Python; dicts ---- */
static wrpo__jv wrpo__jdict_get(wrpo__jinja *J, wrpo__jv d, wrpo__jv key);
static int wrpo__jorder(wrpo__jv a, wrpo__jv b) {  /* of two numbers: < 0, 0, > 0 */
    double x = wrpo__jdouble(a), y = wrpo__jdouble(b);
    return wrpo__jboth(a, b, WRPO__J_INTS) ? (a->i > b->i) - (a->i < b->i) : (x > y) - (x < y);
}
static bool wrpo__jequal(wrpo__jinja *J, wrpo__jv a, wrpo__jv b) {
    wrpo__jspend(J, WRPO__MIN(a->n, b->n));
    if (wrpo__jboth(a, b, WRPO__J_NUMBERS)) return wrpo__jorder(a, b) == 0;
    if (a == b) return true;
    if (a->kind != b->kind) return false;
    if (wrpo__jis_str(a)) return wrpo__jsame(a, b);
    if (a->kind == WRPO__J_VIEW) wrpo__jrefuse(J, "a comparison of dict views");
    if (!(a->kind & (WRPO__J_DICT | WRPO__J_LISTS))) return a->kind <= WRPO__J_NONE;
    bool same = a->count == b->count;
    wrpo__jenter(J);
    for (int64_t i = 0; same && i < a->count; i++) {
        wrpo__jv other = a->kind == WRPO__J_DICT ? wrpo__jdict_get(J, b, a->keys[i]) : b->items[i];
        same = other && wrpo__jequal(J, a->items[i], other);
    }
    J->depth--;
    return same;
}
static int wrpo__jcompare(wrpo__jinja *J, wrpo__jv a, wrpo__jv b) {
    size_t n = WRPO__MIN(a->n, b->n);
    wrpo__jspend(J, n);
    wrpo__jdefined(J, a);
    wrpo__jdefined(J, b);
    if (wrpo__jboth(a, b, WRPO__J_NUMBERS)) return wrpo__jorder(a, b);
    if (a->kind == b->kind && (a->kind & WRPO__J_LISTS)) wrpo__jrefuse(J, "the order of two %ss", wrpo__jtype(a));
    if (!wrpo__jboth(a, b, WRPO__J_STR)) wrpo__jfail(J, "%s and %s have no order", wrpo__jtype(a), wrpo__jtype(b));
    int r = memcmp(a->s, b->s, n);  /* UTF-8 sorts as its code points do */
    return r ? r : (a->n > b->n) - (a->n < b->n);
}
/* NULL: none */
static wrpo__jv *wrpo__jdict_at(wrpo__jinja *J, wrpo__jv d, wrpo__jv key) {
    if (!(key->kind & WRPO__J_SCALARS)) wrpo__jrefuse(J, "a key of type %s", wrpo__jtype(key));
    wrpo__jspend(J, 4 * (size_t)d->count);
    for (int64_t i = 0; i < d->count; i++) {
        bool texts = wrpo__jboth(d->keys[i], key, WRPO__J_STR);
        if (texts ? wrpo__jsame(d->keys[i], key) : wrpo__jequal(J, d->keys[i], key)) return &d->items[i];
    }
    return NULL;
}
static wrpo__jv wrpo__jdict_get(wrpo__jinja *J, wrpo__jv d, wrpo__jv key) {
    wrpo__jv *item = wrpo__jdict_at(J, d, key);
    return item ? *item : NULL;
}
static void wrpo__jdict_put(wrpo__jinja *J, wrpo__jval *d, wrpo__jv key, wrpo__jv value) {
    wrpo__jv *item = wrpo__jdict_at(J, d, key);
    if (item) *item = value;
    else {
        stbds_arrput(d->keys, key);
        wrpo__jpush(J, d, value);
    }
}

/* ---- text: code points, white space, case, numbers ---- */
static bool wrpo__jspace(int32_t c) {  /* str.isspace */
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}
static int64_t wrpo__jlength(wrpo__jinja *J, wrpo__jv v) {  /* in code points */
    int64_t length = 0;
    wrpo__jspend(J, v->n);
    for (size_t i = 0; i < v->n; i++) length += ((unsigned char)v->s[i] & 0xC0) != 0x80;
    return wrpo__jis_str(v) ? length : v->count;
}
static size_t wrpo__joffset(wrpo__jv v, int64_t index) {  /* the byte where code point `index` begins */
    size_t i = 0;
    for (; i < v->n; i++)
        if (((unsigned char)v->s[i] & 0xC0) != 0x80 && index-- == 0) break;
    return i;
}
static size_t wrpo__jfind(wrpo__jinja *J, wrpo__jv v, wrpo__jv sub, size_t from) {  /* SIZE_MAX: nowhere */
    if (sub->n == 0) return from;
    while (from < v->n && sub->n <= v->n - from) {
        const char *p = memchr(v->s + from, sub->s[0], v->n - from - sub->n + 1);
        size_t at = p ? (size_t)(p - v->s) : v->n;
        wrpo__jspend(J, (at - from) / 8 + sub->n / 8 + 32);
        if (p && memcmp(p, sub->s, sub->n) == 0) return at;
        from = at + 1;
    }
    return SIZE_MAX;
}
/* Is the code point s[0..n) one of these? chars NULL: white space. */
static bool wrpo__jone_of(wrpo__jinja *J, wrpo__jv chars, const char *s, size_t n) {
    if (!chars) return wrpo__jspace(wrpo__utf8_get(s, n, &n));
    return wrpo__jfind(J, chars, &(wrpo__jval){.s = s, .n = n}, 0) != SIZE_MAX;
}
/* Where s[from..to) begins without such code points at its front; ends without those at its back. */
static size_t wrpo__jlstrip(wrpo__jinja *J, wrpo__jv chars, const char *s, size_t from, size_t to) {
    for (size_t size; from < to; from += size) {
        wrpo__utf8_get(s + from, to - from, &size);
        if (!wrpo__jone_of(J, chars, s + from, size)) break;
    }
    return from;
}
static size_t wrpo__jrstrip(wrpo__jinja *J, wrpo__jv chars, const char *s, size_t from, size_t to) {
    for (size_t i; from < to; to = i) {
        i = wrpo__before(s, to);
        if (!wrpo__jone_of(J, chars, s + i, to - i)) break;
    }
    return to;
}
static size_t wrpo__jskip_space(const char *s, size_t n, size_t i) { return wrpo__jlstrip(NULL, NULL, s, i, n); }
static int wrpo__jclass(wrpo__jinja *J, int32_t c) {  /* the bit of its wrpo__class */
    return 1 << (wrpo__unicode_of(J->ctx)->kind[c] & 15);
}
/* ASCII, Latin-1, Cyrillic; other letters that have a case are refused. */
static int32_t wrpo__jcase(wrpo__jinja *J, int32_t c, bool upper) {
    static const int32_t ranges[][3] = {  /* capitals from, to; distance to the small letters */
        {'A', 'Z', 32}, {0xC0, 0xD6, 32}, {0xD8, 0xDE, 32}, {0x400, 0x40F, 80}, {0x410, 0x42F, 32}};
    for (int64_t k = 0; k < WRPO__COUNT(ranges); k++) {
        int32_t first = ranges[k][0], last = ranges[k][1], by = ranges[k][2];
        if (c >= first && c <= last) return upper ? c : c + by;
        if (c >= first + by && c <= last + by) return upper ? c - by : c;
    }
    int cased = 1 << WRPO__LU | 1 << WRPO__LL | 1 << WRPO__LT | 1 << WRPO__NL | 1 << WRPO__SW;
    if (c >= 128 && ((cased & wrpo__jclass(J, c)) || c == 0xAA || c == 0xBA || c == 0x345))
        wrpo__jrefuse(J, "upper or lower case of U+%04X", (unsigned)c);
    return c;
}
/* op: 0 lower, 1 upper, 2 upper at the start, 3 where a word of letters starts, 4 after white space and -({[< */
static wrpo__jv wrpo__jrecase(wrpo__jinja *J, wrpo__jv v, int op) {
    size_t from = J->out.size;
    bool start = true;
    for (size_t i = 0, size; i < v->n; i += size) {
        char out[4];
        int32_t c = wrpo__utf8_get(v->s + i, v->n - i, &size);
        int32_t to = wrpo__jcase(J, c, op == 1 || (op > 1 && start));
        wrpo__jput(J, c < 0 ? v->s + i : out, c < 0 ? size : wrpo__utf8_put(out, (uint32_t)to));
        if (op == 3) start = wrpo__jcase(J, c, true) == wrpo__jcase(J, c, false);
        else start = op == 4 && (wrpo__jspace(c) || (c > 0 && c < 128 && strchr("-({[<", c)));
    }
    return wrpo__jcut(J, from);
}
/* What int() and float() read from v; NULL: no decimal number. */
static wrpo__jv wrpo__jread_number(wrpo__jinja *J, wrpo__jv v) {
    static const char digits[] = "0123456789";
    size_t begin = wrpo__jskip_space(v->s, v->n, 0), n = wrpo__jrstrip(J, NULL, v->s, begin, v->n) - begin;
    const char *text = wrpo__strndup(wrpo__current, v->s + begin, n), *s = text + (*text == '-' || *text == '+');
    size_t whole = strspn(s, digits), point = s[whole] == '.';
    size_t part = point ? strspn(s + whole + 1, digits) : 0, length = whole + point + part;
    if (s + length != text + n || whole + part == 0) { /* Python also reads 1e3, 1_000, inf, digits of other scripts */
        bool maybe = length || (unsigned char)*s >= 0x80;
        if (maybe || wrpo__jword("inf nan infinity", wrpo__jrecase(J, wrpo__jstring(s), 0)))
            wrpo__jrefuse(J, "the number \"%.*s\"", WRPO__J_SHOW(v));
        return NULL;
    }
    double f = wrpo__json_double(wrpo__current, s, length);
    if (point) return wrpo__jfloat(J, *text == '-' ? -f : f);
    if (f >= 9e18) wrpo__jrefuse(J, "the integer %.*s", WRPO__J_SHOW(v));
    return wrpo__jint(strtoll(text, NULL, 10));
}

/* ---- printing: str(), repr() and json.dumps() ---- */
typedef struct wrpo__jstyle {
    bool json;
    wrpo__jv item, key, indent;  /* what follows an item, a key; indent NULL: all on one line */
    int depth;  /* J->depth around the outermost value */
} wrpo__jstyle;
static void wrpo__jquote(wrpo__jinja *J, wrpo__jv v) {  /* repr(v) */
    bool apostrophe = !memchr(v->s, '\'', v->n) || memchr(v->s, '"', v->n);
    char quote = apostrophe ? '\'' : '"';
    const char marks[] = {'\n', '\r', '\t', '\\', quote}, names[] = {'n', 'r', 't', '\\', quote};
    int hidden = 1 << WRPO__OTHER | 1 << WRPO__SPACE | 1 << WRPO__CW;  /* str.isprintable goes by it */
    wrpo__jplain(J, v);
    wrpo__jput(J, &quote, 1);
    for (size_t i = 0, size; i < v->n; i += size) {
        int32_t c = wrpo__utf8_get(v->s + i, v->n - i, &size);
        const char *mark = c > 0 && c < 128 ? memchr(marks, c, sizeof marks) : NULL;
        if (mark) wrpo__text_printf(&J->out, "\\%c", names[mark - marks]);
        else if (c >= 32 && (c < 127 || !(wrpo__jclass(J, c) & hidden))) wrpo__jput(J, v->s + i, size);
        else if (c < 0x100) wrpo__text_printf(&J->out, "\\x%02x", (unsigned)c);
        else wrpo__text_printf(&J->out, c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
    }
    wrpo__jput(J, &quote, 1);
}
static void wrpo__jnewline(wrpo__jinja *J, const wrpo__jstyle *style) {
    if (style->indent) wrpo__jput(J, "\n", 1);
    for (int k = style->depth; style->indent && k < J->depth; k++) wrpo__jputs(J, style->indent);
}
static void wrpo__jwrite(wrpo__jinja *J, wrpo__jv v, const wrpo__jstyle *style) {
    static const char *const words[][2] = {{"False", "false"}, {"True", "true"}};
    bool json = style->json, dict = v->kind == WRPO__J_DICT, tuple = v->kind == WRPO__J_TUPLE && !json;
    const char *brackets = tuple ? "()" : "[]";
    wrpo__jspend(J, 0);
    switch (v->kind) {
    case WRPO__J_NONE: wrpo__text_puts(&J->out, json ? "null" : "None"); return;
    case WRPO__J_BOOL: wrpo__text_puts(&J->out, words[v->i][json]); return;
    case WRPO__J_INT: wrpo__text_printf(&J->out, "%lld", (long long)v->i); return;
    case WRPO__J_FLOAT: wrpo__double_write(&J->out, v->f, true); return;
    case WRPO__J_STR:
        wrpo__jspend(J, v->n);
        if (json) wrpo__json_quote(&J->out, v->s, v->n);
        else wrpo__jquote(J, v);
        return;
    case WRPO__J_DICT: brackets = "{}"; break;
    case WRPO__J_LIST: case WRPO__J_TUPLE: break;
    default:
        if (json) wrpo__jfail(J, "a value of type %s has no JSON form", wrpo__jtype(v));
        if (v->kind != WRPO__J_UNDEFINED) wrpo__jrefuse(J, "printing a value of type %s", wrpo__jtype(v));
        wrpo__text_puts(&J->out, "Undefined");
        return;
    }
    wrpo__jenter(J);
    wrpo__jput(J, brackets, 1);
    for (int64_t i = 0; i < v->count; i++) {
        if (i) wrpo__jputs(J, style->item);
        wrpo__jnewline(J, style);
        if (dict) {
            wrpo__jv key = v->keys[i];
            if (json && !wrpo__jis_str(key)) wrpo__jrefuse(J, "tojson of a key of type %s", wrpo__jtype(key));
            wrpo__jwrite(J, key, style);
            wrpo__jputs(J, style->key);
        }
        wrpo__jwrite(J, v->items[i], style);
    }
    if (tuple && v->count == 1) wrpo__jput(J, ",", 1);
    J->depth--;
    if (v->count) wrpo__jnewline(J, style);
    wrpo__jput(J, brackets + 1, 1);
}
static void wrpo__jprint(wrpo__jinja *J, wrpo__jv v) {  /* str(v) */
    static const wrpo__jval item = {.kind = WRPO__J_STR, .s = ", ", .n = 2},
                             key = {.kind = WRPO__J_STR, .s = ": ", .n = 2};
    if (wrpo__jis_str(v)) wrpo__jputs(J, v);
    else if (v->kind != WRPO__J_UNDEFINED) wrpo__jwrite(J, v, &(wrpo__jstyle){.item = &item, .key = &key});
}
static wrpo__jv wrpo__jstr(wrpo__jinja *J, wrpo__jv v) {
    if (wrpo__jis_str(v) && !v->safe) return v;
    size_t from = J->out.size;
    wrpo__jprint(J, v);
    return wrpo__jcut(J, from);
}

/* ---- sequences, attributes, items ---- */
static wrpo__jval *wrpo__jchange(wrpo__jv v) { return (wrpo__jval *)(uintptr_t)v; }  /* a namespace, a generator */
/* What a loop over v takes: elements, keys, characters. */
static wrpo__jv wrpo__jitems(wrpo__jinja *J, wrpo__jv v) {
    wrpo__jwant(J, v, WRPO__J_ITERABLES, "something to iterate over");
    if (v->kind == WRPO__J_DICT) return wrpo__jshare(WRPO__J_LIST, v->keys, v->count);
    if (v->kind == WRPO__J_ITER && wrpo__jchange(v)->i++) wrpo__jrefuse(J, "reading a generator a second time");
    if (!wrpo__jis_str(v)) return v;
    wrpo__jval *chars = wrpo__jnew(WRPO__J_LIST);
    for (size_t i = 0, size; i < v->n; i += size) {
        wrpo__utf8_get(v->s + i, v->n - i, &size);
        wrpo__jpush(J, chars, wrpo__jbytes(v->s + i, size));
    }
    return chars;
}
static wrpo__jv wrpo__jreversed(wrpo__jinja *J, wrpo__jv v, int kind) {  /* a string; a list as this kind */
    wrpo__jv all = wrpo__jitems(J, v);
    wrpo__jval *list = wrpo__jnew(kind);
    for (int64_t i = all->count; i-- > 0;) wrpo__jpush(J, list, all->items[i]);
    if (!wrpo__jis_str(v)) return list;
    size_t from = J->out.size;
    for (int64_t i = 0; i < list->count; i++) wrpo__jputs(J, list->items[i]);
    return wrpo__jcut(J, from);
}
static bool wrpo__jgiven(wrpo__jv v) { return v && v->kind != WRPO__J_NONE; }
static int64_t wrpo__jbound(wrpo__jinja *J, wrpo__jv bound, int64_t n, int64_t otherwise) {  /* of a slice: 0 to n */
    if (!wrpo__jgiven(bound)) return otherwise;
    int64_t i = wrpo__jto_int(J, bound);
    return i < 0 ? WRPO__MAX(i + n, 0) : WRPO__MIN(i, n);
}
/* v[start:stop:step]; each may be NULL or None. The steps: 1 and, without bounds, -1. */
static wrpo__jv wrpo__jslice(wrpo__jinja *J, wrpo__jv v, wrpo__jv start, wrpo__jv stop, wrpo__jv step) {
    int64_t by = wrpo__jgiven(step) ? wrpo__jto_int(J, step) : 1;
    if (!(wrpo__jdefined(J, v)->kind & WRPO__J_INDEXED)) wrpo__jrefuse(J, "a slice of %s", wrpo__jtype(v));
    if (by == -1 && !wrpo__jgiven(start) && !wrpo__jgiven(stop)) return wrpo__jreversed(J, v, v->kind);
    if (by != 1) wrpo__jrefuse(J, "a slice with step %lld and bounds", (long long)by);
    int64_t n = wrpo__jlength(J, v), from = wrpo__jbound(J, start, n, 0);
    int64_t to = WRPO__MAX(wrpo__jbound(J, stop, n, n), from);
    if (!wrpo__jis_str(v)) return wrpo__jshare(v->kind, n ? v->items + from : NULL, to - from);
    size_t begin = wrpo__joffset(v, from);
    return wrpo__jbytes(v->s + begin, wrpo__joffset(v, to) - begin);
}
static bool wrpo__jcontains(wrpo__jinja *J, wrpo__jv v, wrpo__jv x) {  /* x in v */
    if (wrpo__jis_str(v)) return wrpo__jfind(J, v, wrpo__jto_str(J, x), 0) != SIZE_MAX;
    if (v->kind == WRPO__J_DICT) return wrpo__jdict_get(J, v, x) != NULL;
    v = wrpo__jitems(J, v);
    for (int64_t i = 0; i < v->count; i++)
        if (wrpo__jequal(J, v->items[i], x)) return true;
    return false;
}
static wrpo__jv wrpo__jloop_attr(wrpo__jinja *J, wrpo__jloop *loop, wrpo__jv name);
static wrpo__jv wrpo__jfunction(wrpo__jinja *J, char where, wrpo__jv name, wrpo__jv self);
/* v's own attribute: a method, or what a namespace or a loop has; NULL: none. */
static wrpo__jv wrpo__jown(wrpo__jinja *J, wrpo__jv v, wrpo__jv name) {
    switch (v->kind) {
    case WRPO__J_LOOP: return wrpo__jloop_attr(J, v->loop, name);
    case WRPO__J_NAMESPACE: return wrpo__jdict_get(J, v, name);
    case WRPO__J_STR: return wrpo__jfunction(J, 's', name, v);
    case WRPO__J_LIST: case WRPO__J_TUPLE: return wrpo__jfunction(J, 'l', name, v);
    case WRPO__J_DICT: return wrpo__jfunction(J, 'd', name, v);
    default: return NULL;
    }
}
/* v.key (attr), the attribute or else the item; v[key], the item or else, if key is a string, the attribute. */
static wrpo__jv wrpo__jget(wrpo__jinja *J, wrpo__jv v, wrpo__jv key, bool attr) {
    bool scalar = key->kind & WRPO__J_SCALARS;
    wrpo__jv r = wrpo__jdefined(J, v) && attr ? wrpo__jown(J, v, key) : NULL;
    if (!r && v->kind == WRPO__J_DICT && scalar) r = wrpo__jdict_get(J, v, key);
    if ((key->kind & WRPO__J_INTS) && (v->kind & WRPO__J_INDEXED)) {
        int64_t n = wrpo__jlength(J, v), i = key->i < 0 ? key->i + n : key->i;
        if (i >= 0 && i < n && !wrpo__jis_str(v)) r = v->items[i];
        else if (i >= 0 && i < n) r = wrpo__jslice(J, v, wrpo__jint(i), wrpo__jint(i + 1), NULL);
    }
    if (!r && !attr && wrpo__jis_str(key)) r = wrpo__jown(J, v, key);
    return r ? r : wrpo__jundefined(scalar ? wrpo__jstr(J, key) : &wrpo__jempty);
}
/* For the filters' attribute=. */
static wrpo__jv wrpo__jattribute(wrpo__jinja *J, wrpo__jv v, wrpo__jv name) {
    for (size_t i = 0; wrpo__jis_str(name) && i < name->n; i++)
        if (strchr(".,0123456789", name->s[i])) wrpo__jrefuse(J, "the attribute \"%.*s\"", WRPO__J_SHOW(name));
    return wrpo__jget(J, v, name, false);
}

/* ---- operators ---- */
static wrpo__jv wrpo__jjoin(wrpo__jinja *J, wrpo__jv a, wrpo__jv b) {  /* both as text */
    size_t from = J->out.size;
    wrpo__jprint(J, a);
    wrpo__jprint(J, b);
    return wrpo__jcut(J, from);
}
static wrpo__jv wrpo__jconcat(wrpo__jinja *J, wrpo__jv a, wrpo__jv b) {
    wrpo__jval *both = wrpo__jnew(a->kind);
    both->count = a->count + b->count;
    wrpo__jspend(J, (size_t)both->count * sizeof *both->items);
    stbds_arrsetlen(both->items, (size_t)both->count);
    for (int64_t i = 0; i < both->count; i++) both->items[i] = i < a->count ? a->items[i] : b->items[i - a->count];
    return both;
}
static wrpo__jv wrpo__jrepeat(wrpo__jinja *J, wrpo__jv v, int64_t times) {
    size_t from = J->out.size;
    for (; times > 0; times--) wrpo__jputs(J, v);
    return wrpo__jcut(J, from);
}
static wrpo__jv wrpo__jarithmetic(wrpo__jinja *J, int op, wrpo__jv a, wrpo__jv b) {  /* op: + - * / % F (//) */
    const double limit = 0x1p52;  /* the operations on integers below it are exact in double */
    bool whole = wrpo__jboth(a, b, WRPO__J_INTS), list = a->kind & (WRPO__J_LIST | WRPO__J_TUPLE);
    if (op == '%' && wrpo__jis_str(a)) wrpo__jrefuse(J, "formatting by %%");
    wrpo__jdefined(J, wrpo__jplain(J, a));
    wrpo__jdefined(J, wrpo__jplain(J, b));
    if (op == '+' && wrpo__jboth(a, b, WRPO__J_STR)) return wrpo__jjoin(J, a, b);
    if (op == '+' && list && a->kind == b->kind) return wrpo__jconcat(J, a, b);
    if (op == '*' && wrpo__jis_str(a) && (b->kind & WRPO__J_INTS)) return wrpo__jrepeat(J, a, b->i);
    if (!wrpo__jboth(a, b, WRPO__J_NUMBERS)) {
        const char *name = op == 'F' ? "//" : (char[2]){(char)op, 0};
        if (op == '*') wrpo__jrefuse(J, "the product of %s and %s", wrpo__jtype(a), wrpo__jtype(b));
        wrpo__jfail(J, "'%s' cannot join %s and %s", name, wrpo__jtype(a), wrpo__jtype(b));
    }
    double f = wrpo__jdouble(a), g = wrpo__jdouble(b), r;
    if (strchr("/%F", op) && g == 0) wrpo__jfail(J, "division by zero");
    if (!whole && (op == '%' || op == 'F')) wrpo__jrefuse(J, "the remainder or the floor of a division of floats");
    double rest = g != 0 ? fmod(f, g) : 0;
    if (rest != 0 && (rest < 0) != (g < 0)) rest += g;  /* Python's remainder has the divisor's sign */
    switch (op) {
    case '+': r = f + g; break;
    case '-': r = f - g; break;
    case '*': r = f * g; break;
    case '/': r = f / g; break;
    case '%': r = rest; break;
    default: r = (f - rest) / g;
    }
    if (whole && (fabs(f) >= limit || fabs(g) >= limit || fabs(r) >= limit))
        wrpo__jrefuse(J, "arithmetic with an integer of more than 52 bits");
    return whole && op != '/' ? wrpo__jint((int64_t)r) : wrpo__jfloat(J, r);
}
static wrpo__jv wrpo__joperate(wrpo__jinja *J, int op, wrpo__jv a, wrpo__jv b) {  /* op: see wrpo__joperators */
    switch (op) {
    case '|': case '&': return b;  /* a has not decided it */
    case '~': return wrpo__jjoin(J, a, b);
    case '=': return wrpo__jbool(wrpo__jequal(J, a, b));
    case '!': return wrpo__jbool(!wrpo__jequal(J, a, b));
    case 'i': return wrpo__jbool(wrpo__jcontains(J, b, a));
    case 'n': return wrpo__jbool(!wrpo__jcontains(J, b, a));
    case '<': return wrpo__jbool(wrpo__jcompare(J, a, b) < 0);
    case 'l': return wrpo__jbool(wrpo__jcompare(J, a, b) <= 0);
    case '>': return wrpo__jbool(wrpo__jcompare(J, a, b) > 0);
    case 'g': return wrpo__jbool(wrpo__jcompare(J, a, b) >= 0);
    default: return wrpo__jarithmetic(J, op, a, b);
    }
}

/* ---- filters, tests, methods, functions ---- */
typedef struct wrpo__jcall {  /* of a row of wrpo__jdefs */
    int op;  /* of the names that share fn */
    wrpo__jv self;  /* before the bar, `is` or the dot */
    wrpo__jv a[4];  /* the arguments by the signature; NULL: absent */
    wrpo__jval args, named;  /* as given: items; keys and items */
    int64_t asked, bound;  /* parameters seen; arguments that they took */
} wrpo__jcall;
struct wrpo__jdef {
    const char *names, *where;  /* f filter, t test, g function, s l d method of str list dict; m: takes safe strings */
    const char *signature;  /* '=' after an optional argument, '?' if None counts as absent; NULL: any names */
    wrpo__jv (*fn)(wrpo__jinja *J, const wrpo__jcall *c);  /* its result NULL: what it wrote. fn NULL: refused */
    int op;  /* of the first name, plus one for each that follows */
};
#define WRPO__J_FN(name) static wrpo__jv wrpo__jf_##name(wrpo__jinja *J, const wrpo__jcall *c)
static wrpo__jv wrpo__jinvoke(wrpo__jinja *J, char where, wrpo__jv name, wrpo__jcall *c);
static bool wrpo__jflag(const wrpo__jcall *c, int k) { return c->a[k] && wrpo__jtruth(c->a[k]); }

WRPO__J_FN(strip) {  /* op: 0 strip, 1 lstrip, 2 rstrip */
    wrpo__jv v = wrpo__jstr(J, c->self), chars = c->a[0] ? wrpo__jto_str(J, c->a[0]) : NULL;
    size_t from = c->op == 2 ? 0 : wrpo__jlstrip(J, chars, v->s, 0, v->n);
    size_t to = c->op == 1 ? v->n : wrpo__jrstrip(J, chars, v->s, from, v->n);
    wrpo__jspend(J, v->n - (to - from));
    return wrpo__jbytes(v->s + from, to - from);
}
WRPO__J_FN(case) { return wrpo__jrecase(J, wrpo__jstr(J, c->self), c->op); }
WRPO__J_FN(length) {
    return wrpo__jint(wrpo__jlength(J, wrpo__jwant(J, c->self, WRPO__J_SIZED, "something with a length")));
}
static wrpo__jv wrpo__jspaces(wrpo__jinja *J, wrpo__jv width) {  /* a string as it is, or that many spaces */
    return wrpo__jis_str(width) ? width : wrpo__jrepeat(J, wrpo__jstring(" "), wrpo__jto_int(J, width));
}
WRPO__J_FN(tojson) {
    wrpo__jv indent = c->a[1] ? wrpo__jspaces(J, c->a[1]) : NULL, separators = c->a[2];
    wrpo__jstyle style = {true, wrpo__jstring(indent ? "," : ", "), wrpo__jstring(": "), indent, J->depth};
    if (wrpo__jflag(c, 0) || wrpo__jflag(c, 3)) wrpo__jrefuse(J, "tojson with ensure_ascii or sort_keys");
    if (separators) {
        separators = wrpo__jitems(J, separators);
        if (separators->count != 2) wrpo__jfail(J, "tojson wants two separators, found %d", (int)separators->count);
        style.item = wrpo__jto_str(J, separators->items[0]);
        style.key = wrpo__jto_str(J, separators->items[1]);
    }
    wrpo__jwrite(J, c->self, &style);
    return NULL;
}
WRPO__J_FN(string) {  /* op: 1 marks it safe */
    wrpo__jval *v = wrpo__jmake(wrpo__jis_str(c->self) ? *c->self : *wrpo__jstr(J, c->self));
    v->safe = v->safe || c->op;
    return v;
}
WRPO__J_FN(default) {
    (void)J;
    if (c->self->kind != WRPO__J_UNDEFINED && !(wrpo__jflag(c, 1) && !wrpo__jtruth(c->self))) return c->self;
    return c->a[0] ? c->a[0] : &wrpo__jempty;
}
WRPO__J_FN(end) {  /* op: 0 first, 1 last */
    if (c->self->kind == WRPO__J_ITER && c->op) wrpo__jfail(J, "a generator has no last item");
    wrpo__jv v = wrpo__jitems(J, c->self);
    if (!v->count) return wrpo__jundefined(wrpo__jstring(c->op ? "last" : "first"));
    return v->items[c->op ? v->count - 1 : 0];
}
WRPO__J_FN(list) {
    wrpo__jv v = wrpo__jitems(J, c->self);
    return wrpo__jshare(WRPO__J_LIST, v->items, v->count);
}
/* Filters (op 0) take values of any type, methods (op 1) only strings. */
static wrpo__jv wrpo__jtext(wrpo__jinja *J, const wrpo__jcall *c, wrpo__jv v) {
    return c->op ? wrpo__jto_str(J, v) : wrpo__jstr(J, v);
}
WRPO__J_FN(join) {
    wrpo__jv v = wrpo__jitems(J, c->op ? c->a[0] : c->self), between = c->op ? c->self : c->a[0];
    for (int64_t i = 0; i < v->count; i++) {
        if (i && between) wrpo__jprint(J, between);
        wrpo__jputs(J, wrpo__jtext(J, c, v->items[i]));
    }
    return NULL;
}
WRPO__J_FN(replace) {
    wrpo__jv v = wrpo__jstr(J, c->self), old = wrpo__jtext(J, c, c->a[0]), with = wrpo__jtext(J, c, c->a[1]);
    int64_t left = c->a[2] ? wrpo__jto_int(J, c->a[2]) : -1;
    size_t done = 0;
    if (old->n == 0) wrpo__jrefuse(J, "replacing the empty string");
    while (left-- != 0) {
        size_t at = wrpo__jfind(J, v, old, done);
        if (at == SIZE_MAX) break;
        wrpo__jput(J, v->s + done, at - done);
        wrpo__jputs(J, with);
        done = at + old->n;
    }
    wrpo__jput(J, v->s + done, v->n - done);
    return NULL;
}
WRPO__J_FN(number) {  /* op: 0 int, 1 float */
    wrpo__jv v = wrpo__jdefined(J, c->self);
    if (wrpo__jis_str(v)) v = wrpo__jread_number(J, v);
    bool found = v && (v->kind & WRPO__J_NUMBERS);
    if (!found && c->a[0]) return c->a[0];
    if (!found) v = wrpo__jbool(false);  /* 0 */
    if (c->op) return wrpo__jfloat(J, wrpo__jdouble(v));
    if (fabs(v->f) >= 9e18) wrpo__jrefuse(J, "%g as an integer", v->f);
    return wrpo__jint(v->i + (int64_t)v->f);  /* one of the two is 0 */
}
WRPO__J_FN(indent) {
    wrpo__jv v = wrpo__jto_str(J, c->self), by = wrpo__jspaces(J, c->a[0] ? c->a[0] : wrpo__jint(4));
    bool first = wrpo__jflag(c, 1), blank = wrpo__jflag(c, 2);
    for (size_t i = 0, end, size; i <= v->n; i = end + 1) {
        for (end = i; end < v->n && v->s[end] != '\n'; end += size) {
            int32_t x = wrpo__utf8_get(v->s + end, v->n - end, &size);
            if ((x >= 11 && x <= 13) || (x >= 0x1C && x <= 0x1E) || x == 0x85 || x == 0x2028 || x == 0x2029)
                wrpo__jrefuse(J, "indent of a text with the line end U+%04X", (unsigned)x);
        }
        if (i == 0 ? first : end > i || blank) wrpo__jputs(J, by);
        wrpo__jput(J, v->s + i, end - i + (end < v->n));
    }
    return NULL;
}
WRPO__J_FN(items) {  /* op: 0 filter, 1 items(), 2 keys(), 3 values() */
    wrpo__jv v = c->self;
    wrpo__jval *rows = wrpo__jnew(c->op ? WRPO__J_VIEW : WRPO__J_ITER);
    if (!c->op && v->kind == WRPO__J_UNDEFINED) return rows;
    wrpo__jwant(J, v, WRPO__J_DICT, "a dict");
    if (c->op > 1) return wrpo__jshare(WRPO__J_VIEW, c->op == 2 ? v->keys : v->items, v->count);
    for (int64_t i = 0; i < v->count; i++) {
        wrpo__jval *pair = wrpo__jnew(WRPO__J_TUPLE);
        wrpo__jpush(J, pair, v->keys[i]);
        wrpo__jpush(J, pair, v->items[i]);
        wrpo__jpush(J, rows, pair);
    }
    return rows;
}
WRPO__J_FN(reverse) {  /* a generator becomes a list, all else a generator */
    return wrpo__jreversed(J, c->self, c->self->kind == WRPO__J_ITER ? WRPO__J_LIST : WRPO__J_ITER);
}
WRPO__J_FN(sort) {  /* stable; strings without case unless asked. op: 0 sort, 1 dictsort, as items() */
    wrpo__jv v = c->op ? wrpo__jf_items(J, c) : wrpo__jitems(J, c->self), by = c->op ? wrpo__jint(0) : c->a[2];
    int order = wrpo__jflag(c, 0) ? -1 : 1;
    wrpo__jv *keys = NULL, *sorted = NULL;
    stbds_arrsetlen(keys, (size_t)v->count);
    stbds_arrsetlen(sorted, (size_t)v->count);
    for (int64_t i = 0, k; i < v->count; i++) {
        wrpo__jv key = by ? wrpo__jattribute(J, v->items[i], by) : v->items[i];
        if (wrpo__jis_str(key) && !wrpo__jflag(c, 1)) key = wrpo__jrecase(J, key, 0);
        for (k = i; k > 0 && wrpo__jcompare(J, keys[k - 1], key) * order > 0; k--) {
            keys[k] = keys[k - 1];
            sorted[k] = sorted[k - 1];
        }
        keys[k] = key;
        sorted[k] = v->items[i];
    }
    return wrpo__jshare(WRPO__J_LIST, sorted, v->count);
}
/* Bits of op: 1 keeps what fails the test, 2 tests an attribute, 4 is map. */
WRPO__J_FN(select) {
    bool map = c->op & 4, negated = c->op & 1;
    int first = c->op & 2 ? 1 : 0;  /* of the filter or test, then its arguments */
    wrpo__jv name = c->a[first], attribute = map ? c->a[3] : first ? c->a[0] : NULL;
    wrpo__jv v = wrpo__jitems(J, wrpo__jtruth(c->self) ? c->self : &wrpo__jempty);
    wrpo__jval *out = wrpo__jnew(WRPO__J_ITER);
    if (map && !name == !attribute) wrpo__jfail(J, "map takes either a filter or attribute=");
    for (int64_t i = 0; i < v->count; i++) {
        wrpo__jv x = attribute ? wrpo__jattribute(J, v->items[i], attribute) : v->items[i];
        wrpo__jcall call = {.self = x};
        for (int k = first + 1; k < 3 && c->a[k]; k++) wrpo__jpush(J, &call.args, c->a[k]);
        if (name) x = wrpo__jinvoke(J, map ? 'f' : 't', wrpo__jto_str(J, name), &call);
        if (map || wrpo__jtruth(x) != negated) wrpo__jpush(J, out, map ? x : v->items[i]);
    }
    return out;
}
WRPO__J_FN(split) {
    wrpo__jv v = c->self, sep = c->a[0] ? wrpo__jto_str(J, c->a[0]) : NULL;
    int64_t left = c->a[1] ? wrpo__jto_int(J, c->a[1]) : -1;
    wrpo__jval *out = wrpo__jnew(WRPO__J_LIST);
    size_t i = sep ? 0 : wrpo__jskip_space(v->s, v->n, 0), end, size;
    if (sep && sep->n == 0) wrpo__jfail(J, "split() by an empty string");
    if (!sep && left >= 0) wrpo__jrefuse(J, "split() at white space with maxsplit");
    wrpo__jspend(J, v->n);
    while (sep ? i <= v->n : i < v->n) {
        wrpo__jv part;
        if (sep) {
            end = left-- != 0 ? wrpo__jfind(J, v, sep, i) : SIZE_MAX;
            part = wrpo__jbytes(v->s + i, WRPO__MIN(end, v->n) - i);
            i += part->n + sep->n;
        } else {
            for (end = i; end < v->n && !wrpo__jspace(wrpo__utf8_get(v->s + end, v->n - end, &size)); end += size) {}
            part = wrpo__jbytes(v->s + i, end - i);
            i = wrpo__jskip_space(v->s, v->n, end);
        }
        wrpo__jpush(J, out, part);
    }
    return out;
}
WRPO__J_FN(affix) {  /* op: 0 startswith, 1 endswith, 2 removeprefix, 3 removesuffix */
    wrpo__jv v = c->self, x = c->a[0];
    bool front = c->op % 2 == 0, test = c->op < 2, has = false;
    wrpo__jv all = test && x->kind == WRPO__J_TUPLE ? x : wrpo__jshare(WRPO__J_TUPLE, &x, 1);
    for (int64_t i = 0; !has && i < all->count; i++) {
        wrpo__jv one = wrpo__jto_str(J, all->items[i]);
        has = one->n <= v->n && memcmp(front ? v->s : v->s + v->n - one->n, one->s, one->n) == 0;
    }
    if (test) return wrpo__jbool(has);
    return has ? wrpo__jbytes(front ? v->s + x->n : v->s, v->n - x->n) : v;
}
WRPO__J_FN(get) {
    wrpo__jv r = wrpo__jdict_get(J, c->self, c->a[0]);
    if (!r) r = c->a[1];
    return r ? r : &wrpo__jnone;
}
WRPO__J_FN(kind) {
    static const int pass[] = {  /* defined to true, as in wrpo__jdefs */
        ~WRPO__J_UNDEFINED, WRPO__J_UNDEFINED, WRPO__J_NONE, WRPO__J_BOOL, WRPO__J_INT, WRPO__J_FLOAT,
        WRPO__J_NUMBERS, WRPO__J_STR, WRPO__J_DICT, WRPO__J_SEQUENCES, WRPO__J_ITERABLES | WRPO__J_LOOP,
        WRPO__J_CALLABLES | WRPO__J_LOOP | WRPO__J_UNDEFINED, WRPO__J_BOOL, WRPO__J_BOOL};
    (void)J;
    return wrpo__jbool(c->self->kind & pass[c->op] && (c->op < 12 || c->self->i == c->op - 12));
}
WRPO__J_FN(operate) { return wrpo__joperate(J, "i===!!"[c->op], c->self, c->a[0]); }
WRPO__J_FN(parity) {  /* op: 0 even, 1 odd */
    return wrpo__jbool(wrpo__jarithmetic(J, '%', c->self, wrpo__jint(2))->i == c->op);
}
WRPO__J_FN(range) {
    const int64_t limit = INT64_MAX / 4;
    int64_t first = wrpo__jto_int(J, c->a[0]), to = c->a[1] ? wrpo__jto_int(J, c->a[1]) : first;
    int64_t from = c->a[1] ? first : 0, by = c->a[2] ? wrpo__jto_int(J, c->a[2]) : 1;
    wrpo__jval *out = wrpo__jnew(WRPO__J_RANGE);
    if (by == 0) wrpo__jfail(J, "range() with step 0");
    if (llabs(from) > limit || llabs(to) > limit || llabs(by) > limit) wrpo__jrefuse(J, "a range near 64 bits");
    for (int64_t i = from; by > 0 ? i < to : i > to; i += by) {
        if (out->count == WRPO__J_MAX_RANGE) wrpo__jfail(J, "range of more than %d numbers", WRPO__J_MAX_RANGE);
        wrpo__jpush(J, out, wrpo__jint(i));
    }
    return out;
}
WRPO__J_FN(dict) {  /* op: 0 dict, 1 namespace */
    (void)J;
    wrpo__jval *v = wrpo__jmake(c->named);
    v->kind = c->op ? WRPO__J_NAMESPACE : WRPO__J_DICT;
    return v;
}
WRPO__J_FN(raise) {
    wrpo__jv m = wrpo__jstr(J, c->a[0]);
    wrpo__fail_at(J->ctx, WRPO_E_FORMAT, J->line, 0, "chat template: %.*s", (int)WRPO__MIN(m->n, 400), m->s);
}
WRPO__J_FN(strftime) {
    wrpo__jv format = wrpo__jto_str(J, c->a[0]);
    /* With the bar, 0 from strftime means no room. */
    const char *text = wrpo__format(wrpo__current, "%.*s|", (int)WRPO__MIN(format->n, 400), format->s);
    const struct tm tm = wrpo__local_time(J->ctx->now);
    char out[512];
    const bool ok = !strstr(text, "%z") && !strstr(text, "%Z") && !strstr(text, "%f");  /* no zone, no microseconds */
    size_t n = ok ? strftime(out, sizeof out, text, &tm) : 0;
    J->tok->dated = true;
    if (n == 0) wrpo__jrefuse(J, "strftime_now(\"%.*s\")", WRPO__J_SHOW(format));
    wrpo__jput(J, out, n - 1);
    return NULL;
}

static const wrpo__jdef wrpo__jdefs[] = {
    /* filters */
    {"length count", "fm", "", wrpo__jf_length, 0},
    {"default d", "fm", "default_value= boolean=", wrpo__jf_default, 0},
    {"first last", "f", "", wrpo__jf_end, 0}, {"int float", "f", "default=", wrpo__jf_number, 0},
    {"indent", "f", "width= first= blank=", wrpo__jf_indent, 0}, {"items", "f", "", wrpo__jf_items, 0},
    {"list", "f", "", wrpo__jf_list, 0}, {"join", "f", "d=", wrpo__jf_join, 0},
    {"select reject", "f", "test= x=", wrpo__jf_select, 0},
    {"selectattr rejectattr", "f", "attribute test= x=", wrpo__jf_select, 2},
    {"map", "f", "filter= x= y= attribute=", wrpo__jf_select, 4},
    {"replace", "fm", "old new count?", wrpo__jf_replace, 0}, {"reverse", "f", "", wrpo__jf_reverse, 0},
    {"string safe", "fm", "", wrpo__jf_string, 0}, {"dictsort", "f", "", wrpo__jf_sort, 1},
    {"sort", "f", "reverse= case_sensitive= attribute?", wrpo__jf_sort, 0},
    {"title", "f", "", wrpo__jf_case, 4}, {"trim", "f", "chars?", wrpo__jf_strip, 0},
    {"tojson", "fm", "ensure_ascii= indent? separators? sort_keys=", wrpo__jf_tojson, 0},
    /* methods of strings, some also filters; of dicts */
    {"lower upper capitalize", "fs", "", wrpo__jf_case, 0}, {"title", "s", "", wrpo__jf_case, 3},
    {"join", "s", "iterable", wrpo__jf_join, 1}, {"replace", "s", "old new count=", wrpo__jf_replace, 1},
    {"split", "s", "sep? maxsplit=", wrpo__jf_split, 0}, {"strip lstrip rstrip", "s", "chars?", wrpo__jf_strip, 0},
    {"startswith endswith removeprefix removesuffix", "s", "prefix", wrpo__jf_affix, 0},
    {"get", "d", "key default=", wrpo__jf_get, 0}, {"items keys values", "d", "", wrpo__jf_items, 1},
    /* tests */
    {"defined undefined none boolean integer float number string mapping sequence iterable callable false true", "tm",
     "", wrpo__jf_kind, 0},
    {"even odd", "t", "", wrpo__jf_parity, 0},
    {"in == eq equalto != ne", "tm", "other", wrpo__jf_operate, 0},
    /* functions */
    {"range", "g", "start stop= step=", wrpo__jf_range, 0}, {"dict namespace", "g", NULL, wrpo__jf_dict, 0},
    {"raise_exception", "g", "message", wrpo__jf_raise, 0}, {"strftime_now", "g", "format", wrpo__jf_strftime, 0},
    /* what else Python has: refused. The sandbox hides methods that change a value. */
    {"casefold center count encode expandtabs find format format_map index isalnum isalpha isascii isdecimal isdigit "
     "isidentifier islower isnumeric isprintable isspace istitle isupper ljust maketrans partition rfind rindex rjust "
     "rpartition rsplit splitlines swapcase translate zfill", "s", "", NULL, 0},
    {"append clear copy count extend index insert pop remove reverse sort", "l", "", NULL, 0},
    {"clear copy fromkeys pop popitem setdefault update", "d", "", NULL, 0},
    {"caller cycler joiner kwargs lipsum self varargs", "g", "", NULL, 0}};

static const wrpo__jdef *wrpo__jlookup(char where, wrpo__jv name) {  /* NULL: no such name */
    for (int64_t k = 0; k < WRPO__COUNT(wrpo__jdefs); k++)
        if (strchr(wrpo__jdefs[k].where, where) && wrpo__jword(wrpo__jdefs[k].names, name)) return &wrpo__jdefs[k];
    return NULL;
}
/* NULL: no such name. */
static wrpo__jv wrpo__jfunction(wrpo__jinja *J, char where, wrpo__jv name, wrpo__jv self) {
    const wrpo__jdef *def = wrpo__jlookup(where, name);
    if (!def) return NULL;
    if (!def->fn && self) wrpo__jrefuse(J, "method \"%.*s\" of %s", WRPO__J_SHOW(name), wrpo__jtype(self));
    if (!def->fn) wrpo__jrefuse(J, "\"%.*s\"", WRPO__J_SHOW(name));
    return WRPO__J_VAL(.kind = WRPO__J_FUNCTION, .s = name->s, .n = name->n, .def = def, .self = self);
}
/* For the next parameter: the next argument in order, or that of this name; NULL: neither. */
static wrpo__jv wrpo__jargument(wrpo__jinja *J, wrpo__jcall *c, wrpo__jv name) {
    wrpo__jv named = wrpo__jdict_get(J, &c->named, name);
    wrpo__jv placed = c->asked < c->args.count ? c->args.items[c->asked] : NULL;
    if (named && placed) wrpo__jfail(J, "two values for the argument \"%.*s\"", WRPO__J_SHOW(name));
    c->asked++;
    c->bound += named || placed;
    return placed ? placed : named;
}
static bool wrpo__jbound_all(const wrpo__jcall *c) { return c->bound == c->args.count + c->named.count; }
static wrpo__jv wrpo__jcall_def(wrpo__jinja *J, const wrpo__jdef *def, wrpo__jv name, wrpo__jcall *c) {
    const char *p = def->signature;
    c->op = def->op + wrpo__jword(def->names, name) - 1;
    if (c->self && !strchr(def->where, 'm')) wrpo__jplain(J, c->self);
    for (int k = 0; p && *p; k++) {
        size_t n = strcspn(p, " =?");
        wrpo__jv v = wrpo__jargument(J, c, wrpo__jbytes(p, n));
        bool optional = p[n] == '=' || p[n] == '?';
        if (!v && !optional) wrpo__jfail(J, "%.*s() wants an argument \"%.*s\"", WRPO__J_SHOW(name), (int)n, p);
        c->a[k] = p[n] == '?' && !wrpo__jgiven(v) ? NULL : v;
        p += n + optional;
        p += *p == ' ';
    }
    if (p ? !wrpo__jbound_all(c) : c->args.count > 0)
        wrpo__jrefuse(J, "%.*s() with other arguments than \"%s\"", WRPO__J_SHOW(name), p ? def->signature : "name=");
    size_t from = J->out.size;
    wrpo__jv v = def->fn(J, c);
    return v ? v : wrpo__jcut(J, from);
}
static wrpo__jv wrpo__jinvoke(wrpo__jinja *J, char where, wrpo__jv name, wrpo__jcall *c) {
    const wrpo__jdef *def = wrpo__jlookup(where, name);
    if (!def) wrpo__jrefuse(J, "%s \"%.*s\"", where == 'f' ? "filter" : "test", WRPO__J_SHOW(name));
    return wrpo__jcall_def(J, def, name, c);
}

/* ---- text to tokens ---- */
enum {
    WRPO__J_END, WRPO__J_TEXT, WRPO__J_OUTPUT, WRPO__J_STATEMENT, WRPO__J_CLOSE, WRPO__J_LITERAL,
    WRPO__J_NAME, WRPO__J_MARK
};
typedef struct wrpo__joperator { const char *text; int level, op; } wrpo__joperator;  /* level: how tightly it binds */
struct wrpo__jtoken {
    int kind, line;
    const wrpo__joperator *op;  /* NULL: none */
    wrpo__jv value;  /* TEXT, LITERAL: the value; else the characters */
    /* From a tag's name to that of the tag which ends its body; from an expression's first token to its `if`; at the
       first target of an assignment: not NULL if a comma follows. */
    wrpo__jtoken *jump;
};
static const wrpo__joperator wrpo__joperators[] = {
    {"or", 0, '|'}, {"and", 1, '&'}, {"==", 3, '='}, {"!=", 3, '!'}, {"<=", 3, 'l'}, {">=", 3, 'g'}, {"<", 3, '<'},
    {">", 3, '>'}, {"in", 3, 'i'}, {"not", 3, 'n'}, {"+", 4, '+'}, {"-", 4, '-'}, {"~", 5, '~'}, {"*", 6, '*'},
    {"//", 6, 'F'}, {"/", 6, '/'}, {"%", 6, '%'}};
enum { WRPO__J_NOT = 2, WRPO__J_COMPARES = 3 };  /* the levels of the prefix `not` and of comparisons */

static void wrpo__jadvance(wrpo__jinja *J, size_t to) {
    for (; J->next < to; J->next++) J->line += J->s[J->next] == '\n';
}
static void wrpo__jtoken_put(wrpo__jinja *J, int kind, wrpo__jv value) {
    wrpo__jtoken token = {.kind = kind, .line = J->line, .value = value};
    for (int64_t k = 0; kind >= WRPO__J_NAME && k < WRPO__COUNT(wrpo__joperators); k++)
        if (wrpo__jword(wrpo__joperators[k].text, value)) token.op = &wrpo__joperators[k];
    stbds_arrput(J->tokens, token);
}
/* Passes the end of a tag, if it is next. "-" takes the white space after it; without a sign, a tag other than {{ }},
   which has no "+", takes one newline. */
static bool wrpo__jtag_end(wrpo__jinja *J, const char *mark) {
    bool output = mark[0] == '}', minus = J->s[J->next] == '-', plus = !output && J->s[J->next] == '+';
    size_t i = J->next + minus + plus;
    if (strncmp(J->s + i, mark, 2) != 0) return false;
    i += 2;
    if (minus) i = wrpo__jskip_space(J->s, J->n, i);
    else if (!plus && !output && J->s[i] == '\n') i++;
    J->fresh = J->s[i - 1] == '\n';
    if (mark[0] != '#') wrpo__jtoken_put(J, WRPO__J_CLOSE, wrpo__jstring("the end of the tag"));
    wrpo__jadvance(J, i);
    return true;
}
static wrpo__jv wrpo__jlex_string(wrpo__jinja *J, size_t *end) {  /* Python's escapes; *end: after the closing quote */
    static const char names[] = "\\'\"nrtabfv\n", marks[] = "\\'\"\n\r\t\a\b\f\v";
    size_t from = J->out.size;
    size_t i = J->next + 1;
    for (; i < J->n && J->s[i] != J->s[J->next]; i++) {
        const char *c = J->s + i, *name = c[1] ? strchr(names, c[1]) : NULL;
        if (*c != '\\' || i + 1 == J->n) {
            wrpo__jput(J, c, 1);
            continue;
        }
        i++;
        if (c[1] && strchr("01234567xuUN", c[1])) wrpo__jrefuse(J, "the escape %.2s in a string", c);
        if (!name) wrpo__jput(J, c, 2);
        else if (*name != '\n') wrpo__jput(J, marks + (name - names), 1);
    }
    if (i >= J->n) wrpo__jfail(J, "a string without its closing quote");
    *end = i + 1;
    return wrpo__jcut(J, from);
}
static size_t wrpo__jword_end(const wrpo__jinja *J, size_t i) {  /* letters, digits, _ and all but ASCII */
    for (; i < J->n; i++) {
        const unsigned char c = (unsigned char)J->s[i], letter = c | 32;
        if (!(letter >= 'a' && letter <= 'z') && !(c >= '0' && c <= '9') && c != '_' && c < 0x80) break;
    }
    return i;
}
/* Returns the change of the number of open brackets. */
static int wrpo__jlex_token(wrpo__jinja *J) {
    const char *s = J->s + J->next, c = *s;
    const wrpo__jtoken last = stbds_arrlast(J->tokens);
    size_t begin = J->next, end = wrpo__jword_end(J, begin);
    int open = 0;
    if (c == '"' || c == '\'') {
        wrpo__jv value = wrpo__jlex_string(J, &end);
        bool joins = last.kind == WRPO__J_LITERAL && wrpo__jis_str(last.value);  /* adjacent strings are one */
        if (joins) stbds_arrlast(J->tokens).value = wrpo__jjoin(J, last.value, value);
        else wrpo__jtoken_put(J, WRPO__J_LITERAL, value);
    } else if (c >= '0' && c <= '9') {
        if (J->s[end] == '.' && J->s[end + 1] >= '0' && J->s[end + 1] <= '9') end = wrpo__jword_end(J, end + 1);
        wrpo__jv value = wrpo__jread_number(J, wrpo__jbytes(s, end - begin));
        if (c == '0' && value->i) wrpo__jfail(J, "a number with zeros before it");
        wrpo__jtoken_put(J, WRPO__J_LITERAL, value);
    } else {
        bool mark = end == begin;
        if (mark && c && strchr("+-/*%~[](){}><=!.:|,", c)) end++;
        if (mark && wrpo__jword("// ** == != >= <=", wrpo__jbytes(s, 2))) end = begin + 2;
        if (end == begin) wrpo__jfail(J, "unexpected character \"%c\"", c < 32 ? '?' : c);
        wrpo__jv text = wrpo__jbytes(s, end - begin);
        if (last.kind == WRPO__J_STATEMENT && wrpo__jword("raw", text)) wrpo__jrefuse(J, "statement \"raw\"");
        if (wrpo__jword("**", text)) wrpo__jrefuse(J, "the operator **");
        wrpo__jtoken_put(J, mark ? WRPO__J_MARK : WRPO__J_NAME, text);
        if (mark) open = (strchr("[({", c) != NULL) - (strchr("])}", c) != NULL);
    }
    wrpo__jadvance(J, end);
    return open;
}
/* A tag, after its opening mark. kind: { output, % statement, # comment, which leaves no tokens. */
static void wrpo__jlex_tag(wrpo__jinja *J, char kind) {
    const char end[] = {kind == '{' ? '}' : kind, '}', 0};
    bool comment = kind == '#';
    int line = J->line, open = 0;
    if (!comment) wrpo__jtoken_put(J, kind == '{' ? WRPO__J_OUTPUT : WRPO__J_STATEMENT, &wrpo__jempty);
    for (;;) {
        if (!comment) wrpo__jadvance(J, wrpo__jskip_space(J->s, J->n, J->next));
        if (open == 0 && wrpo__jtag_end(J, end)) break;
        if (J->next == J->n) {
            J->line = line;
            wrpo__jfail(J, "a %s without its end", comment ? "comment" : "tag");
        }
        if (comment) wrpo__jadvance(J, J->next + 1);
        else open += wrpo__jlex_token(J);
        if (open < 0) wrpo__jfail(J, "unexpected \"%c\"", J->s[J->next - 1]);
    }
}
static void wrpo__jlex(wrpo__jinja *J) {
    for (const char *s = J->s;;) {
        size_t from = J->next, at = from;
        while (at < J->n && !(s[at] == '{' && memchr("{%#", s[at + 1], 3))) at++;
        bool end = at == J->n;
        char kind = end ? 0 : s[at + 1], sign = end ? '+' : s[at + 2];
        size_t to = at, line = at;
        while (line > from && s[line - 1] != '\n') line--;
        bool alone = (line > from || J->fresh) && wrpo__jrstrip(J, NULL, s, line, at) == line;
        /* "-" strips the white space before; "+" none; else a statement or comment strips its line's. */
        if (sign == '-') to = wrpo__jrstrip(J, NULL, s, from, at);
        else if (sign != '+' && kind != '{' && alone) to = line;
        if (to > from) wrpo__jtoken_put(J, WRPO__J_TEXT, wrpo__jbytes(s + from, to - from));
        wrpo__jadvance(J, at);
        if (end) break;
        wrpo__jadvance(J, at + 2 + (sign == '-' || sign == '+'));
        wrpo__jlex_tag(J, kind);
    }
    wrpo__jtoken_put(J, WRPO__J_END, wrpo__jstring("the end of the template"));
}

/* ---- expressions ---- */
static wrpo__jv wrpo__jexpr(wrpo__jinja *J);
static wrpo__jv wrpo__joperation(wrpo__jinja *J, int least);
static wrpo__jv wrpo__jcall_macro(wrpo__jinja *J, wrpo__jv macro, wrpo__jcall *c);

static void wrpo__jgo(wrpo__jinja *J, wrpo__jtoken *at) {
    J->at = at;
    J->line = at->line;
    wrpo__jspend(J, 0);
}
_Noreturn static void wrpo__jexpected(wrpo__jinja *J, const char *what) {
    wrpo__jfail(J, "want %s, found \"%.*s\"", what, WRPO__J_SHOW(wrpo__jstr(J, J->at->value)));
}
static bool wrpo__jat(const wrpo__jinja *J, const char *words) {
    return J->at->kind >= WRPO__J_NAME && wrpo__jword(words, J->at->value);
}
static bool wrpo__jtake(wrpo__jinja *J, const char *words) {
    bool at = wrpo__jat(J, words);
    if (at) wrpo__jgo(J, J->at + 1);
    return at;
}
static void wrpo__jneed(wrpo__jinja *J, const char *word) { if (!wrpo__jtake(J, word)) wrpo__jexpected(J, word); }
static wrpo__jv wrpo__jname(wrpo__jinja *J) {
    if (J->at->kind != WRPO__J_NAME) wrpo__jexpected(J, "a name");
    wrpo__jgo(J, J->at + 1);
    return J->at[-1].value;
}
static wrpo__jv wrpo__jlookup_var(wrpo__jinja *J, wrpo__jv name) {
    wrpo__jv v = NULL;
    for (const wrpo__jval *scope = J->scope; scope && !v; scope = scope->scope) v = wrpo__jdict_get(J, scope, name);
    if (!v) v = wrpo__jfunction(J, 'g', name, NULL);
    return v ? v : wrpo__jundefined(name);
}
/* a, b, c up to the end of the tag or a word of `ends`, without conditions also `if`; no comma: no tuple. */
static wrpo__jv wrpo__jtuple(wrpo__jinja *J, bool conditions, const char *ends) {
    wrpo__jval *tuple = NULL;
    wrpo__jv v = NULL;
    for (bool comma = true; comma && J->at->kind != WRPO__J_CLOSE && !wrpo__jat(J, ends);) {
        v = conditions ? wrpo__jexpr(J) : wrpo__joperation(J, 0);
        comma = wrpo__jtake(J, ",");
        if (comma && !tuple) tuple = wrpo__jnew(WRPO__J_TUPLE);
        if (tuple) wrpo__jpush(J, tuple, v);
    }
    if (!v && ends[0] != ')') wrpo__jexpected(J, "an expression");
    if (!v) tuple = wrpo__jnew(WRPO__J_TUPLE);
    return tuple ? tuple : v;
}
static void wrpo__jcomma(wrpo__jinja *J, const char *end) { if (!wrpo__jat(J, end)) wrpo__jneed(J, ","); }
static wrpo__jv wrpo__jprimary(wrpo__jinja *J) {
    const wrpo__jtoken *t = J->at;
    wrpo__jval *v;
    if (t->kind == WRPO__J_NAME || t->kind == WRPO__J_LITERAL) {
        wrpo__jgo(J, J->at + 1);
        if (J->idle) return &wrpo__jnone;
        if (t->kind == WRPO__J_LITERAL) return t->value;
        int constant = wrpo__jword("none None false False true True", t->value);
        if (constant > 2) return wrpo__jbool(constant > 4);
        return constant ? &wrpo__jnone : wrpo__jlookup_var(J, t->value);
    }
    if (wrpo__jtake(J, "(")) {
        wrpo__jv tuple = wrpo__jtuple(J, true, ")");
        wrpo__jneed(J, ")");
        return tuple;
    }
    if (wrpo__jtake(J, "[")) {
        for (v = wrpo__jnew(WRPO__J_LIST); !wrpo__jtake(J, "]"); wrpo__jcomma(J, "]"))
            wrpo__jpush(J, v, wrpo__jexpr(J));
        return v;
    }
    if (!wrpo__jtake(J, "{")) wrpo__jexpected(J, "an expression");
    for (v = wrpo__jnew(WRPO__J_DICT); !wrpo__jtake(J, "}"); wrpo__jcomma(J, "}")) {
        wrpo__jv key = wrpo__jexpr(J);
        wrpo__jneed(J, ":");
        wrpo__jdict_put(J, v, key, wrpo__jexpr(J));
    }
    return v;
}
static wrpo__jv wrpo__jsubscript(wrpo__jinja *J, wrpo__jv v) {  /* after "[" */
    wrpo__jv part[3] = {NULL, NULL, NULL};
    int k = 0;
    for (;; k++) {
        if (!wrpo__jat(J, ": ]")) part[k] = wrpo__jexpr(J);
        if (k == 2 || !wrpo__jtake(J, ":")) break;
    }
    if (k == 0 && !part[0]) wrpo__jexpected(J, "an expression");
    if (wrpo__jat(J, ",")) wrpo__jrefuse(J, "a subscript with a comma");
    wrpo__jneed(J, "]");
    if (J->idle) return v;
    return k ? wrpo__jslice(J, v, part[0], part[1], part[2]) : wrpo__jget(J, v, part[0], false);
}
static void wrpo__jarguments(wrpo__jinja *J, wrpo__jcall *c) {  /* after "(" */
    for (; !wrpo__jtake(J, ")"); wrpo__jcomma(J, ")")) {
        const wrpo__jtoken *t = J->at;
        if (wrpo__jat(J, "*")) wrpo__jrefuse(J, "an argument list with *");
        bool named = t->kind == WRPO__J_NAME && wrpo__jword("=", t[1].value);
        if (named) wrpo__jgo(J, J->at + 2);
        else if (c->named.count) wrpo__jexpected(J, "a named argument");
        wrpo__jv v = wrpo__jexpr(J);
        if (named && wrpo__jdict_get(J, &c->named, t->value)) wrpo__jfail(J, "an argument given twice");
        if (named) stbds_arrput(c->named.keys, t->value);
        wrpo__jpush(J, named ? &c->named : &c->args, v);
    }
}
static wrpo__jv wrpo__jcalled(wrpo__jinja *J, wrpo__jv v) {  /* after "(" */
    wrpo__jcall c = {.self = v->self};
    wrpo__jarguments(J, &c);
    if (J->idle) return v;
    wrpo__jwant(J, v, WRPO__J_CALLABLES, "a function");
    return v->def ? wrpo__jcall_def(J, v->def, v, &c) : wrpo__jcall_macro(J, v, &c);
}
static wrpo__jv wrpo__jpostfix(wrpo__jinja *J, wrpo__jv v, bool filters);
static wrpo__jv wrpo__jfiltered(wrpo__jinja *J, wrpo__jv v) {  /* at "|" or "is" */
    wrpo__jcall c = {.self = v};
    bool test = wrpo__jtake(J, "is"), negated = test && wrpo__jtake(J, "not");
    if (!test) wrpo__jneed(J, "|");
    wrpo__jv name = wrpo__jname(J);
    if (wrpo__jtake(J, "(")) wrpo__jarguments(J, &c);
    else if (test) {  /* an argument without brackets */
        int kind = J->at->kind;
        if (wrpo__jat(J, "is")) wrpo__jexpected(J, "one test");
        if (kind == WRPO__J_LITERAL || wrpo__jat(J, "[ {") || (kind == WRPO__J_NAME && !wrpo__jat(J, "else or and")))
            wrpo__jpush(J, &c.args, wrpo__jpostfix(J, wrpo__jprimary(J), false));
    }
    if (J->idle) return v;
    v = wrpo__jinvoke(J, test ? 't' : 'f', name, &c);
    return negated ? wrpo__jbool(!wrpo__jtruth(v)) : v;
}
static wrpo__jv wrpo__jpostfix(wrpo__jinja *J, wrpo__jv v, bool filters) {  /* .name [...] (...), then | and is */
    int depth = J->depth;
    for (bool filtered = false;; wrpo__jenter(J)) {
        if (filters && wrpo__jat(J, "| is")) {
            v = wrpo__jfiltered(J, v);
            filtered = true;
        } else if (!filtered && wrpo__jtake(J, ".")) {
            wrpo__jv name = wrpo__jname(J);
            if (!J->idle) v = wrpo__jget(J, v, name, true);
        } else if (!filtered && wrpo__jtake(J, "[")) v = wrpo__jsubscript(J, v);
        else if (wrpo__jtake(J, "(")) v = wrpo__jcalled(J, v);
        else break;
    }
    J->depth = depth;
    return v;
}
static wrpo__jv wrpo__jsigned(wrpo__jinja *J, bool filters) {
    if (!wrpo__jtake(J, "-")) return wrpo__jpostfix(J, wrpo__jprimary(J), filters);
    wrpo__jenter(J);
    wrpo__jv v = wrpo__jsigned(J, false);  /* -1|abs is (-1)|abs */
    J->depth--;
    if (!J->idle) v = wrpo__jarithmetic(J, '*', wrpo__jint(-1), wrpo__jwant(J, v, WRPO__J_NUMBERS, "a number"));
    return wrpo__jpostfix(J, v, filters);
}
/* Operators that bind at least this tightly, and their operands. */
static wrpo__jv wrpo__joperation(wrpo__jinja *J, int least) {
    int depth = J->depth;
    wrpo__jv v;
    wrpo__jenter(J);
    if (least <= WRPO__J_NOT && wrpo__jtake(J, "not")) v = wrpo__jbool(!wrpo__jtruth(wrpo__joperation(J, WRPO__J_NOT)));
    else v = wrpo__jsigned(J, true);
    for (int last = -1; J->at->op && J->at->op->level >= least; wrpo__jenter(J)) {
        int level = J->at->op->level, op = J->at->op->op;
        if (level == WRPO__J_COMPARES && last == level) wrpo__jrefuse(J, "a chain of comparisons");
        wrpo__jgo(J, J->at + 1);
        if (op == 'n') wrpo__jneed(J, "in");
        bool decided = (op == '|' || op == '&') && wrpo__jtruth(v) == (op == '|');
        J->idle += decided;
        wrpo__jv b = wrpo__joperation(J, level + 1);
        J->idle -= decided;
        if (!J->idle && !decided) v = wrpo__joperate(J, op, v, b);
        last = level;
    }
    J->depth = depth;
    return v;
}
/* value if condition else otherwise. The idle reader notes the condition, which a rendering reads first. */
static wrpo__jv wrpo__jexpr(wrpo__jinja *J) {
    wrpo__jtoken *first = J->at;
    wrpo__jv v = NULL;
    wrpo__jenter(J);
    if (J->idle || !first->jump) v = wrpo__joperation(J, 0);
    if (J->idle && wrpo__jat(J, "if")) first->jump = J->at;
    if (first->jump) {
        wrpo__jgo(J, first->jump + 1);
        bool holds = wrpo__jtruth(wrpo__joperation(J, 0)) && !J->idle;
        wrpo__jtoken *after = J->at;
        if (holds) {
            wrpo__jgo(J, first);
            v = wrpo__joperation(J, 0);
            wrpo__jgo(J, after);
        }
        J->idle += holds;
        wrpo__jv no = wrpo__jtake(J, "else") ? wrpo__jexpr(J) : wrpo__jundefined(wrpo__jstring("if without else"));
        J->idle -= holds;
        if (!holds) v = no;
        if (wrpo__jat(J, "if")) wrpo__jrefuse(J, "an \"if\" after another one");
    }
    J->depth--;
    return v;
}

/* ---- statements ---- */
static void wrpo__jclose(wrpo__jinja *J) {
    if (J->at->kind != WRPO__J_CLOSE) wrpo__jexpected(J, "the end of the tag");
    wrpo__jgo(J, J->at + 1);
}
static void wrpo__jstatement(wrpo__jinja *J);
/* From the end of a tag to a name of `ends`; "": a whole template. */
static void wrpo__jbody(wrpo__jinja *J, const char *ends, wrpo__jval *scope) {
    wrpo__jval *outer = J->scope;
    if (*ends) wrpo__jclose(J);
    wrpo__jenter(J);
    J->scope = scope;
    while (!J->flow && (*ends || J->at->kind != WRPO__J_END)) {
        const wrpo__jtoken *t = J->at;
        if (t->kind == WRPO__J_END) wrpo__jexpected(J, ends);
        wrpo__jgo(J, J->at + 1);
        if (t->kind == WRPO__J_TEXT) {
            if (!J->idle) wrpo__jputs(J, t->value);
            continue;
        }
        if (t->kind == WRPO__J_OUTPUT) {
            wrpo__jv v = wrpo__jtuple(J, true, "");
            if (!J->idle) wrpo__jprint(J, v);
        } else if (wrpo__jat(J, ends)) break;
        else wrpo__jstatement(J);
        if (!J->flow) wrpo__jclose(J);
    }
    J->depth--;
    J->scope = outer;
}
/* What `set` and `for` assign to: names, attributes of namespaces, several in (). Commas unpack the value; NULL: only
   reads the targets. */
static void wrpo__jtargets(wrpo__jinja *J, wrpo__jv value, const char *end) {
    wrpo__jtoken *first = J->at;
    wrpo__jv items = NULL;
    int64_t count = 0;
    if (value) items = first->jump ? wrpo__jitems(J, value) : wrpo__jshare(WRPO__J_LIST, &value, 1);
    wrpo__jenter(J);
    for (bool more = true; more && !wrpo__jat(J, end); count++) {
        if (items && count == items->count) wrpo__jfail(J, "too few values to unpack: %lld", (long long)count);
        wrpo__jv v = items ? items->items[count] : NULL;
        if (wrpo__jtake(J, "(")) {
            wrpo__jtargets(J, v, ")");
            wrpo__jneed(J, ")");
        } else {
            if (wrpo__jat(J, "loop")) wrpo__jrefuse(J, "assigning to \"loop\"");
            if (wrpo__jat(J, "true false none True False None")) wrpo__jexpected(J, "a name to assign to");
            wrpo__jv name = wrpo__jname(J), attr = wrpo__jtake(J, ".") ? wrpo__jname(J) : NULL;
            if (v && attr) {
                wrpo__jv space = wrpo__jwant(J, wrpo__jlookup_var(J, name), WRPO__J_NAMESPACE, "a namespace");
                wrpo__jdict_put(J, wrpo__jchange(space), attr, v);
            } else if (v) wrpo__jdict_put(J, J->scope, name, v);
        }
        more = wrpo__jtake(J, ",");
        if (more && J->idle) first->jump = first;
    }
    J->depth--;
    if (!count) wrpo__jexpected(J, "a name to assign to");
    if (items && count < items->count) wrpo__jfail(J, "too many values to unpack: %lld", (long long)items->count);
}
/* The idle reader notes where the body ends; a rendering goes there. */
static void wrpo__jskip_body(wrpo__jinja *J, wrpo__jtoken *name) {
    if (J->idle) name->jump = J->at;
    else wrpo__jgo(J, name->jump);
}
static void wrpo__jif(wrpo__jinja *J) {  /* after `if` */
    bool done = false;
    do {
        wrpo__jtoken *name = J->at - 1;
        if (J->idle || !done) {
            bool last = wrpo__jword("else", name->value);
            done = last || wrpo__jtruth(wrpo__jtuple(J, false, ""));
            if (J->idle || done) wrpo__jbody(J, last ? "endif" : "elif else endif", J->scope);
            if (J->flow) return;
        }
        wrpo__jskip_body(J, name);
    } while (wrpo__jtake(J, "elif else"));
    wrpo__jneed(J, "endif");
}
struct wrpo__jloop {
    wrpo__jtoken *target, *condition;  /* condition NULL: none */
    int64_t index0;
    wrpo__jval *outer;  /* scope */
    wrpo__jv base; int64_t next;  /* what it runs over; the next item to look at */
    wrpo__jval *passed;  /* the items so far that meet the condition */
};
/* A new scope with the loop's variables for x; goes to `to`. */
static void wrpo__jloop_enter(wrpo__jinja *J, wrpo__jloop *loop, wrpo__jv x, wrpo__jtoken *to) {
    J->scope = wrpo__jscope(loop->outer);
    wrpo__jgo(J, loop->target);
    wrpo__jtargets(J, x, "in");
    wrpo__jgo(J, to);
}
/* Does the loop have this item? It meets the condition only when it is asked for. */
static bool wrpo__jloop_has(wrpo__jinja *J, wrpo__jloop *loop, int64_t index) {
    wrpo__jval *scope = J->scope;
    wrpo__jtoken *at = J->at;
    while (loop->passed->count <= index && loop->next < loop->base->count) {
        wrpo__jv x = loop->base->items[loop->next++];
        if (loop->condition) wrpo__jloop_enter(J, loop, x, loop->condition);
        if (!loop->condition || wrpo__jtruth(wrpo__jexpr(J))) wrpo__jpush(J, loop->passed, x);
    }
    J->scope = scope;
    wrpo__jgo(J, at);
    return loop->passed->count > index;
}
static wrpo__jv wrpo__jloop_attr(wrpo__jinja *J, wrpo__jloop *loop, wrpo__jv name) {
    int attr = wrpo__jword("index0 index first last previtem nextitem length revindex revindex0", name);
    int64_t i = loop->index0, other = i + (attr == 5 ? -1 : 1);  /* of previtem, of last and nextitem */
    bool has = attr > 3 && other >= 0 && wrpo__jloop_has(J, loop, attr > 6 ? INT64_MAX - 1 : other);
    switch (attr) {
    case 0: wrpo__jrefuse(J, "loop.%.*s", WRPO__J_SHOW(name));
    case 1: case 2: return wrpo__jint(i + attr - 1);
    case 3: return wrpo__jbool(i == 0);
    case 4: return wrpo__jbool(!has);
    case 5: case 6: return has ? loop->passed->items[other] : wrpo__jundefined(name);
    case 7: return wrpo__jint(loop->passed->count);
    default: return wrpo__jint(loop->passed->count - i - (attr - 8));
    }
}
static void wrpo__jdefine(wrpo__jinja *J, const char *name, wrpo__jv value) {
    wrpo__jdict_put(J, J->scope, wrpo__jstring(name), value);
}
static void wrpo__jfor(wrpo__jinja *J) {  /* after `for` */
    wrpo__jloop *loop = WRPO__NEW(wrpo__current, wrpo__jloop);
    wrpo__jtoken *name = J->at - 1;
    bool completed = false;  /* a pass was not cut short; if none, `else` runs */
    loop->target = J->at;
    loop->outer = J->scope;
    wrpo__jtargets(J, NULL, "in");
    wrpo__jneed(J, "in");
    wrpo__jv over = wrpo__jtuple(J, false, "recursive");
    if (wrpo__jtake(J, "if")) {
        loop->condition = J->at;
        J->idle++;
        wrpo__jexpr(J);
        J->idle--;
    }
    if (wrpo__jat(J, "recursive")) wrpo__jrefuse(J, "a recursive loop");
    if (J->idle) {
        J->loops++;
        wrpo__jbody(J, "else endfor", J->scope);
        J->loops--;
    } else {
        wrpo__jtoken *body = J->at;
        wrpo__jv self = WRPO__J_VAL(.kind = WRPO__J_LOOP, .loop = loop);
        loop->base = wrpo__jitems(J, over);
        loop->passed = wrpo__jnew(WRPO__J_LIST);
        for (bool broken = false; !broken && wrpo__jloop_has(J, loop, loop->index0); loop->index0++) {
            wrpo__jloop_enter(J, loop, loop->passed->items[loop->index0], body);
            wrpo__jdefine(J, "loop", self);
            wrpo__jbody(J, "else endfor", J->scope);
            completed = completed || !J->flow;
            broken = J->flow == 'b';
            J->flow = 0;
        }
        J->scope = loop->outer;
    }
    wrpo__jskip_body(J, name);
    if (wrpo__jtake(J, "else")) {
        wrpo__jtoken *other = J->at - 1;
        if (J->idle || !completed) wrpo__jbody(J, "endfor", wrpo__jscope(J->scope));
        if (J->flow) return;
        wrpo__jskip_body(J, other);
    }
    wrpo__jneed(J, "endfor");
}
static void wrpo__jassign(wrpo__jinja *J) {  /* after `set` */
    wrpo__jtoken *target = J->at;
    wrpo__jv value;
    wrpo__jtargets(J, NULL, "=");
    if (wrpo__jat(J, "|")) wrpo__jrefuse(J, "a set block with a filter");
    if (wrpo__jtake(J, "=")) value = wrpo__jtuple(J, true, "");
    else {
        size_t from = J->out.size;
        wrpo__jbody(J, "endset", wrpo__jscope(J->scope));
        value = wrpo__jcut(J, from);
        wrpo__jneed(J, "endset");
    }
    if (J->idle) return;
    wrpo__jtoken *after = J->at;
    wrpo__jgo(J, target);
    wrpo__jtargets(J, value, "=");
    wrpo__jgo(J, after);
}
/* A macro's parameters take arguments or defaults. c NULL: only reads them. */
static void wrpo__jparameters(wrpo__jinja *J, wrpo__jcall *c) {
    bool optional = false;
    wrpo__jneed(J, "(");
    for (; !wrpo__jtake(J, ")"); wrpo__jcomma(J, ")")) {
        wrpo__jv name = wrpo__jname(J), v = c ? wrpo__jargument(J, c, name) : NULL;
        bool given = v != NULL;
        if (optional && !wrpo__jat(J, "=")) wrpo__jexpected(J, "a default");
        if (!given) v = wrpo__jundefined(name);
        if (wrpo__jtake(J, "=")) {
            optional = true;
            J->idle += given;
            wrpo__jv otherwise = wrpo__jexpr(J);
            J->idle -= given;
            if (!given) v = otherwise;
        }
        if (c) wrpo__jdict_put(J, J->scope, name, v);
    }
}
static void wrpo__jmacro(wrpo__jinja *J) {  /* after `macro` */
    wrpo__jtoken *tag = J->at - 1;
    wrpo__jv name = wrpo__jname(J);
    wrpo__jv macro = WRPO__J_VAL(.kind = WRPO__J_MACRO, .parameters = J->at, .scope = J->scope);
    if (J->idle) {
        wrpo__jparameters(J, NULL);
        wrpo__jbody(J, "endmacro", J->scope);
    } else wrpo__jdict_put(J, J->scope, name, macro);
    wrpo__jskip_body(J, tag);
    wrpo__jneed(J, "endmacro");
}
static wrpo__jv wrpo__jcall_macro(wrpo__jinja *J, wrpo__jv macro, wrpo__jcall *c) {
    wrpo__jtoken *at = J->at;
    wrpo__jval *scope = J->scope;
    size_t from = J->out.size;
    J->scope = wrpo__jscope(macro->scope);
    wrpo__jgo(J, macro->parameters);
    wrpo__jparameters(J, c);
    if (!wrpo__jbound_all(c)) wrpo__jfail(J, "a macro is given arguments it does not name");
    wrpo__jbody(J, "endmacro", J->scope);
    J->scope = scope;
    wrpo__jgo(J, at);
    return wrpo__jcut(J, from);
}
static void wrpo__jgeneration(wrpo__jinja *J) {  /* marks what is learned from */
    size_t *span = J->spans && !J->idle ? stbds_arraddnptr(*J->spans, 2) : NULL;
    const int64_t at = span ? stbds_arrlen(*J->spans) - 2 : 0;
    if (span) *span = J->out.size;
    wrpo__jbody(J, "endgeneration", wrpo__jscope(J->scope));
    if (span) (*J->spans)[at + 1] = J->out.size;
    wrpo__jneed(J, "endgeneration");
}
static void wrpo__jstatement(wrpo__jinja *J) {
    static const struct { const char *name; void (*fn)(wrpo__jinja *J); } statements[] = {
        {"if", wrpo__jif}, {"for", wrpo__jfor}, {"set", wrpo__jassign}, {"macro", wrpo__jmacro},
        {"generation", wrpo__jgeneration}};
    int loops = J->loops;
    if (wrpo__jat(J, "break continue")) {
        if (J->idle && loops == 0) wrpo__jexpected(J, "a loop around this");
        if (!J->idle) J->flow = J->at->value->s[0];
        wrpo__jgo(J, J->at + 1);
        return;
    }
    if (wrpo__jat(J, "block extends include import from autoescape call filter with print do debug trans"))
        wrpo__jrefuse(J, "statement \"%.*s\"", WRPO__J_SHOW(J->at->value));
    for (int k = 0; k < WRPO__COUNT(statements); k++) {
        if (!wrpo__jtake(J, statements[k].name)) continue;
        if (k > 1) J->loops = 0;  /* break and continue stay within */
        statements[k].fn(J);
        J->loops = loops;
        return;
    }
    wrpo__jexpected(J, "a statement");
}

/* ---- a template, compiled once per tokenizer; a conversation through it ---- */
static void wrpo__jcompile(wrpo_tokenizer *tok, wrpo__template *t) {
    wrpo__arena *outer = wrpo__current;
    size_t n = 0;
    wrpo__need_utf8("chat template", t->text, t->size);
    if (!t->arena) t->arena = wrpo__sub_arena(tok->arena);
    wrpo__arena_clear(t->arena);  /* of an attempt that failed */
    wrpo__current = t->arena;
    char *s = wrpo__alloc(t->arena, t->size + 1, 1);
    for (size_t i = 0; i < t->size; i++) {  /* newlines become \n; the last one is dropped */
        bool newline = t->text[i] == '\r';
        if (newline && i + 1 < t->size && t->text[i + 1] == '\n') i++;
        s[n++] = newline ? '\n' : t->text[i];
    }
    if (n && s[n - 1] == '\n') s[--n] = 0;
    wrpo__jinja J = {.ctx = tok->ctx, .tok = tok, .line = 1, .held = tok->ctx->bytes, .idle = 1,
                     .s = s, .n = n, .fresh = true, .out.arena = wrpo__current};
    wrpo__jlex(&J);
    J.at = J.tokens;
    wrpo__jbody(&J, "", NULL);
    t->tokens = J.tokens;
    wrpo__current = outer;
}
static wrpo__jv wrpo__jfrom_json(wrpo__jinja *J, const wrpo_json *j) {
    bool object = j->kind == WRPO_JSON_OBJECT;
    switch (j->kind) {
    case WRPO_JSON_NULL: return &wrpo__jnone;
    case WRPO_JSON_BOOL: return wrpo__jbool(j->boolean);
    case WRPO_JSON_STRING: return wrpo__jbytes(j->text, j->size);
    case WRPO_JSON_NUMBER:
        if (j->exact) return wrpo__jint(j->integer);
        if (!strpbrk(j->text, ".eE")) wrpo__jrefuse(J, "the integer %.60s", j->text);
        return wrpo__jfloat(J, j->number);
    case WRPO_JSON_ARRAY: case WRPO_JSON_OBJECT: break;
    }
    wrpo__jval *v = wrpo__jnew(object ? WRPO__J_DICT : WRPO__J_LIST);
    wrpo__jenter(J);
    WRPO__EACH(x, j) {
        if (object) stbds_arrput(v->keys, wrpo__jbytes(x->key, x->key_size));
        wrpo__jpush(J, v, wrpo__jfrom_json(J, x));
    }
    J->depth--;
    return v;
}
/* As transformers shows a message: without keys that are null, its reasoning under both names that templates know. */
static const char *const wrpo__reasoning[] = {"reasoning_content", "thinking", "reasoning"};
static wrpo__jv wrpo__jmessage(wrpo__jinja *J, const wrpo_json *message) {
    wrpo__jval *d = wrpo__jnew(WRPO__J_DICT);
    const wrpo_json *given = NULL;
    for (int i = 0; i < 3 && !given; i++) given = wrpo__present(message, wrpo__reasoning[i]);
    wrpo__jv reasoning = given ? wrpo__jfrom_json(J, given) : NULL;
    if (reasoning) wrpo__jdict_put(J, d, wrpo__jstring("thinking"), reasoning);
    WRPO__EACH(m, message)
        if (m->kind != WRPO_JSON_NULL) wrpo__jdict_put(J, d, wrpo__jbytes(m->key, m->key_size), wrpo__jfrom_json(J, m));
    if (reasoning) wrpo__jdict_put(J, d, wrpo__jstring("reasoning_content"), reasoning);
    return d;
}
/* Appends the conversation to out. spans: as in wrpo__jinja. */
static void wrpo__chat_at(wrpo_tokenizer *tok, const wrpo_json *messages, bool add_generation_prompt,
        const wrpo_json *kwargs, size_t **spans, wrpo__text *out) {
    wrpo_ctx *ctx = tok->ctx;
    const wrpo_json *tools = wrpo__present(kwargs, "tools");
    wrpo__template *t = &tok->chat[tok->chat[1].text && tools];  /* as transformers */
    if (!t->text)
        wrpo__fail_format("%s: no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)",
                tok->dir);
    if (messages->kind != WRPO_JSON_ARRAY) wrpo__fail_arg("chat: want an array of messages");
    if (!t->tokens) wrpo__jcompile(tok, t);
    wrpo__jinja J = {.ctx = ctx, .tok = tok, .at = t->tokens, .line = 1, .out = *out,
                     .held = ctx->bytes, .spans = spans};
    wrpo__jval *list = wrpo__jnew(WRPO__J_LIST);
    J.scope = wrpo__jscope(NULL);
    WRPO__EACH(m, messages) {
        if (m->kind != WRPO_JSON_OBJECT) wrpo__fail_arg("chat: want every message to be an object");
        wrpo__jpush(&J, list, wrpo__jmessage(&J, m));
    }
    for (int i = 0; i < 7; i++)
        if (tok->special[i]) wrpo__jdefine(&J, wrpo__special_names[i], wrpo__jstring(tok->special[i]));
    wrpo__jdefine(&J, "tools", &wrpo__jnone);
    wrpo__jdefine(&J, "documents", &wrpo__jnone);
    wrpo__jdefine(&J, "messages", list);
    wrpo__jdefine(&J, "add_generation_prompt", wrpo__jbool(add_generation_prompt));
    WRPO__EACH(k, kwargs)
        wrpo__jdict_put(&J, J.scope, wrpo__jbytes(k->key, k->key_size), wrpo__jfrom_json(&J, k));
    wrpo__jbody(&J, "", J.scope);
    *out = J.out;
}
static void wrpo__chat(wrpo_tokenizer *tok, const wrpo_json *messages, bool add_generation_prompt,
        const wrpo_json *kwargs, char **text, size_t *size) {
    wrpo__text out = {.arena = wrpo__current};
    wrpo__chat_at(tok, messages, add_generation_prompt, kwargs, NULL, &out);
    *text = wrpo__handout(tok->ctx, out.data, out.size);
    *size = out.size;
}
WRPO_API wrpo_result wrpo_tokenizer_chat(wrpo_tokenizer *tok, const wrpo_json *messages, bool add_generation_prompt,
        const wrpo_json *kwargs, char **text, size_t *size) {
    wrpo_ctx *ctx = tok->ctx;
    *text = NULL;
    *size = 0;
    WRPO__ENTRY(ctx, true, wrpo__chat(tok, messages, add_generation_prompt, kwargs, text, size));
}

/* --------------------------------------------------------------------------------------------- >>data
   Records to token ids. wrpo_data_load (>>api) says what the keys are for. Their forms:
     prompt    a string (what a user says), a message, or a list of messages; absent if a conversation has it
     chosen    a string, a message, or a conversation that ends in the answer; or two and more messages of an assistant:
               candidates, first the sources, then the target. Beside conversations a string as prompt is not read:
               the prompt is what both begin with, as in TRL
     rejected  a string, a message or a conversation: one answer, as are both of a pair
     messages  a conversation: its last message is the answer
   A message has role and content, or from (human, gpt, ...) and value.
   A record is tokenized in one of these ways:
     clean     the prompt's ids are what the model is given at inference; an answer's ids are what the template
               writes after that, up to and including the first token that ends a turn. If the template never writes
               the end of the generation prompt before an answer, the answer begins where the two part, as in TRL
     authors   as the reference trainer does it, for parity
     sft_on    assistant or all: the ids of the whole conversation, as TRL has them
   To add a format: a value of wrpo_data_format and a row of wrpo__formats. */
typedef struct wrpo__reading {  /* a file on its way into data */
    wrpo_ctx *ctx;
    wrpo_data *data;
    wrpo_tokenizer *tok;
    wrpo_data_desc desc;  /* resolved */
    wrpo_data_format format;  /* of the file; AUTO: not known yet */
    int64_t read, passed;  /* records; those of the other part of an eval_split */
    /* What warnings are about: answers, of them not shown whole; records; one example of what `parted` lost */
    int64_t said_count, dropped, parted, rewritten, unscored;
    char lost[64];
    wrpo__arena *pack; int32_t *stream; bool *marks;  /* packing: tokens, stb arrays in pack; which are scored */
    /* of the current record, in its arena: */
    int64_t line;
    const char *id;
    const wrpo_json *root;  /* NULL until its text is parsed */
    const wrpo_json *prompt;  /* an array of messages; NULL: not known yet */
    const wrpo_json *kwargs;  /* for the template; NULL: none */
    const wrpo_json **said;  /* stb array: the answers' messages */
    wrpo_tokens *answers;  /* stb array; the functions that tokenize fill in ids, count and first */
    const int32_t *ids;
    int64_t count;
    double weight;
    int sources;  /* the models of source_logps */
} wrpo__reading;

/* ---- values that no file has ---- */
static wrpo_json wrpo__json_of(wrpo_json_kind kind, const char *text) {  /* text: of a string or a number, else "" */
    return (wrpo_json){.kind = kind, .text = text, .size = strlen(text)};
}
static wrpo_json *wrpo__json_add(wrpo_json *parent, const char *key, wrpo_json_kind kind, const char *text) {
    const wrpo_json v = wrpo__json_of(kind, text);
    return wrpo__json_put(parent, &v, key);
}
/* An empty array or object; errors say that it is where `at` is, unless that is NULL. */
static wrpo_json *wrpo__json_empty(wrpo_json_kind kind, const wrpo_json *at) {
    wrpo_json *v = WRPO__NEW(wrpo__current, wrpo_json);
    if (at) *v = (wrpo_json){.name = at->name, .line = at->line, .column = at->column};
    v->kind = kind;
    return v;
}
static void wrpo__json_put_all(wrpo_json *to, const wrpo_json *from) {  /* its members; from NULL: none */
    WRPO__EACH(v, from) wrpo__json_put(to, v, NULL);
}

/* ---- a line to messages ---- */
static const wrpo_json *wrpo__message_of(const char *role, const wrpo_json *text) {  /* a bare string as a message */
    wrpo_json *message = wrpo__json_empty(WRPO_JSON_OBJECT, text);
    wrpo__json_add(message, "role", WRPO_JSON_STRING, role);
    wrpo__json_put(message, text, "content");
    return message;
}
/* A message of a list: it has the list's name, for errors. */
static const wrpo_json *wrpo__message_get(const wrpo_json *message, const char *key) {
    const wrpo_json *v = wrpo_json_get(message, key);
    if (!v) wrpo__wrong(message, "%s: want a message with a \"%s\", found none", message->key, key);
    if (v->kind != WRPO_JSON_STRING)
        wrpo__wrong(v, "%s: want a string as \"%s\", found %s", message->key, key, wrpo__found(v));
    return v;
}
/* ShareGPT's names: from and value, human and gpt. */
static const wrpo_json *wrpo__named_message(const wrpo_json *m) {
    const wrpo_json *from = wrpo__present(m, "from");
    if (!from || wrpo__present(m, "role")) return m;
    wrpo_json role = *from, *out = wrpo__json_empty(WRPO_JSON_OBJECT, m);
    if (wrpo__json_is(from, "human")) role.text = "user";
    if (wrpo__json_is(from, "gpt")) role.text = "assistant";
    if (from->kind != WRPO_JSON_STRING || !wrpo__listed("system user assistant tool", role.text))
        wrpo__refuse(from, NULL, "human, gpt, system, user, assistant or tool");
    role.size = strlen(role.text);
    WRPO__EACH(v, m)
        if (v == from) wrpo__json_put(out, &role, "role");
        else wrpo__json_put(out, v, strcmp(v->key, "value") ? NULL : "content");
    return out;
}
/* A string, a message or a list of either, as an array of messages; a string takes the role given. */
static wrpo_json *wrpo__messages(const wrpo_json *v, const char *role) {
    wrpo_json *list = wrpo__json_empty(WRPO_JSON_ARRAY, NULL);
    const bool many = v->kind == WRPO_JSON_ARRAY;
    const char *what = v->key ? v->key : "prompt";
    for (const wrpo_json *m = many ? v->child : v; m; m = many ? m->next : NULL) {
        const wrpo_json *message = m->kind == WRPO_JSON_STRING ? wrpo__message_of(role, m) : m;
        if (message->kind != WRPO_JSON_OBJECT)
            wrpo__refuse(m, what, many ? "messages" : "a string, a message or a list of messages");
        wrpo__message_get(wrpo__json_put(list, wrpo__named_message(message), what), "role");
    }
    if (!list->count) wrpo__wrong(v, "%s: want at least one message, found none", what);
    return list;
}
static bool wrpo__is_assistant(const wrpo_json *message) {
    return wrpo__json_is(wrpo_json_get(message, "role"), "assistant");
}
static void wrpo__add_answer(wrpo__reading *in, const wrpo_json *message, wrpo_tokens answer) {
    const wrpo_json *content = in->desc.sft_on ? NULL : wrpo__message_get(message, "content");
    if (content && wrpo__jskip_space(content->text, content->size, 0) == content->size)
        wrpo__wrong(message, "%s: want a response, found an empty one", message->key);
    stbds_arrput(in->answers, answer);
    stbds_arrput(in->said, message);
}
/* The answer, taken off the end of a conversation. What is left is the prompt, or the same as the prompt. */
static const wrpo_json *wrpo__take_answer(wrpo__reading *in, wrpo_json *list) {
    wrpo_json **last = &list->child;
    while ((*last)->next) last = &(*last)->next;
    const wrpo_json *answer = *last;
    if (!wrpo__is_assistant(answer) && !in->desc.sft_on)
        wrpo__refuse(wrpo_json_get(answer, "role"), answer->key, "\"assistant\" as the last role");
    *last = NULL;
    list->count--;
    if (!list->count) return answer;
    if (!in->prompt) in->prompt = list;
    bool same = list->count == in->prompt->count;
    const wrpo_json *a = list->child, *b = in->prompt->child;
    for (; same && a; a = a->next, b = b->next)
        same = wrpo__json_same(wrpo_json_get(a, "role"), wrpo_json_get(b, "role")) &&
               wrpo__json_same(wrpo_json_get(a, "content"), wrpo_json_get(b, "content"));
    if (!same) wrpo__wrong(answer, "%s: want the prompt before the answer, found other messages", answer->key);
    return answer;
}
static double wrpo__read_weight(const wrpo_json *v) {  /* absent: 1 */
    if (v && !(v->kind == WRPO_JSON_NUMBER && v->number >= 0 && v->number <= DBL_MAX))
        wrpo__refuse(v, v->key ? NULL : "weights", "a finite number of at least 0");
    return v ? v->number : 1;
}
/* The weights of the sources' answers, which come first, are divided by their sum. */
static void wrpo__share_weights(wrpo__reading *in, int64_t sources, const wrpo_json *at) {
    double sum = 0;
    for (int64_t i = 0; i < sources; i++) sum += in->answers[i].share;
    if (!(sum > 0 && sum <= DBL_MAX)) wrpo__wrong(at, "weights: want a positive sum, found %g", sum);
    for (int64_t i = 0; i < sources; i++) in->answers[i].share /= sum;
}
/* The answer that v ends in. "chosen" may be a list of candidates, all of them an assistant's: the sources, then the
   target. */
static void wrpo__read_answer(wrpo__reading *in, const wrpo_json *v, wrpo_tokens answer, const wrpo_json *weights) {
    const bool whole = answer.role == WRPO_ROLE_SOURCE && !answer.pair_id && !in->prompt;
    wrpo_json *list = wrpo__messages(v, whole ? "user" : "assistant");  /* of "messages" a bare string is a user's */
    const wrpo_json *m = list->child, *w = weights ? weights->child : NULL;
    bool candidates = list->count > 1;
    for (; m; m = m->next) candidates = candidates && wrpo__is_assistant(m);
    const int64_t sources = candidates ? list->count - 1 : 0;
    if (candidates && answer.role != WRPO_ROLE_TARGET)
        wrpo__wrong(v, "%s: want one response, found %lld", v->key, (long long)list->count);
    if (weights && (weights->kind != WRPO_JSON_ARRAY || !candidates || weights->count != sources))
        wrpo__wrong(weights, "weights: want an array of a number for each source, %lld, found %lld",
                    (long long)sources, (long long)weights->count);
    m = list->child;
    for (int64_t i = 0; i < sources; i++, m = m->next, w = w ? w->next : NULL)
        wrpo__add_answer(in, m, (wrpo_tokens){.share = wrpo__read_weight(w)});
    if (candidates) wrpo__share_weights(in, sources, v);
    else m = wrpo__take_answer(in, list);
    wrpo__add_answer(in, m, answer);
}
/* [{chosen, rejected, weight}, ...]: the chosen ones as sources, then the rejected ones; pairs are numbered from 1. */
static void wrpo__read_pairs(wrpo__reading *in, const wrpo_json *pairs) {
    static const char *const sides[] = {"chosen", "rejected"};
    int64_t weighted = 0;
    if (pairs->kind != WRPO_JSON_ARRAY || !pairs->count)
        wrpo__refuse(pairs, NULL, "an array of {chosen, rejected}");
    for (int side = 0; side < 2; side++) {
        wrpo_tokens answer = {.role = side ? WRPO_ROLE_REJECTED : WRPO_ROLE_SOURCE};
        WRPO__EACH(p, pairs) {
            if (p->kind != WRPO_JSON_OBJECT) wrpo__refuse(p, "pairs", "an object {chosen, rejected}");
            const wrpo_json *v = wrpo__present(p, sides[side]), *w = wrpo__present(p, "weight");
            if (!v) wrpo__wrong(p, "pairs: want \"chosen\" and \"rejected\", found no \"%s\"", sides[side]);
            answer.share = wrpo__read_weight(w);
            answer.pair_id++;
            wrpo__read_answer(in, v, answer, NULL);
            weighted += w && !side;
        }
    }
    if (weighted && weighted != pairs->count)
        wrpo__wrong(pairs, "pairs: want a weight for all of them or for none, found %lld of %lld",
                    (long long)weighted, (long long)pairs->count);
    wrpo__share_weights(in, pairs->count, pairs);
    for (int64_t i = 0; i < pairs->count; i++) in->answers[pairs->count + i].share = in->answers[i].share;
}
/* {"NAME": [[sum, tokens], ...], ...}: a pair for each answer. The file's first record says which names there are. */
static void wrpo__read_source_logps(wrpo__reading *in, const wrpo_json *root) {
    const wrpo_json *all = wrpo__maybe(root, "source_logps", WRPO_JSON_OBJECT);
    const int64_t K = stbds_arrlen(in->answers);
    wrpo_data *data = in->data;
    WRPO__EACH(v, all && !data->stats.records ? all : NULL)
        stbds_arrput(data->source_names, wrpo__strndup(data->arena, v->key, v->key_size));
    in->sources = (int)stbds_arrlen(data->source_names);
    const int64_t found = all ? all->count : 0;
    if (found != in->sources)
        wrpo__wrong(all ? all : root, "source_logps: want %d models, as in the first record, found %lld", in->sources,
                    (long long)found);
    for (int64_t k = 0; k < K && in->sources; k++)
        in->answers[k].source_logps = WRPO__ARRAY(wrpo_source_logp, in->sources);
    for (int i = 0; i < in->sources; i++) {
        const wrpo_json *model = wrpo__need(all, data->source_names[i], WRPO_JSON_ARRAY), *pair = model->child;
        if (model->count != K)
            wrpo__wrong(model, "want a pair [sum, tokens] for each of %lld responses, found %lld", (long long)K,
                        (long long)model->count);
        for (int64_t k = 0; k < K; k++, pair = pair->next) {
            if (pair->kind != WRPO_JSON_ARRAY || pair->count != 2)
                wrpo__refuse(pair, model->key, "a pair [sum, tokens]");
            const double logp = wrpo__real(pair->child, model->key);
            if (logp > 0) wrpo__refuse(pair->child, model->key, "a log-probability of at most 0");
            const int64_t tokens = wrpo__integer(pair->child->next, 1, INT64_MAX, model->key);
            ((wrpo_source_logp *)in->answers[k].source_logps)[i] = (wrpo_source_logp){logp, tokens};
        }
    }
}
static void wrpo__read_head(wrpo__reading *in, const wrpo_json *root) {  /* its name; what else the template gets */
    const wrpo_json *id = wrpo__present(root, "prompt_id");
    in->root = root;
    in->id = wrpo__format(wrpo__current, "line %lld", (long long)in->line);
    if (id && id->kind != WRPO_JSON_STRING && id->kind != WRPO_JSON_NUMBER)
        wrpo__refuse(id, NULL, "a string or a number");
    if (id) in->id = id->text;
    const wrpo_json *kwargs = wrpo__maybe(root, "chat_template_kwargs", WRPO_JSON_OBJECT);
    const wrpo_json *tools = wrpo__present(root, "tools");
    in->kwargs = NULL;
    if (tools && tools->kind == WRPO_JSON_STRING)  /* as JSON in a string: so data sets keep them */
        tools = wrpo__json_parse(wrpo__current, "tools", 1, tools->text, tools->size);
    if (tools) wrpo__want(tools, WRPO_JSON_ARRAY, "tools");
    if (!kwargs && !tools) return;
    if (in->desc.tokenization == WRPO_TOKENIZATION_AUTHORS)
        wrpo__wrong(tools ? tools : kwargs,
                    "want no tools and no chat_template_kwargs: the authors' tokenization knows none");
    wrpo_json *all = wrpo__json_empty(WRPO_JSON_OBJECT, NULL);
    if (tools) wrpo__json_put(all, tools, "tools");
    wrpo__json_put_all(all, kwargs);
    in->kwargs = all;
}
/* The value under one of the names, a list separated by spaces; NULL: there is none. */
static const wrpo_json *wrpo__field(const wrpo_json *root, const char *names) {
    const wrpo_json *v = NULL;
    WRPO__EACH(m, root) {
        if (m->kind == WRPO_JSON_NULL || !wrpo__listed(names, m->key)) continue;
        if (v) wrpo__wrong(m, "want \"%s\" or \"%s\", found both", v->key, m->key);
        v = m;
    }
    return v;
}
static bool wrpo__shows_system(const wrpo_tokenizer *tok) {  /* as the authors' trainer guesses it */
    const char *text = tok->chat[0].text;
    return text && (strstr(text, "system") || strstr(text, "<|im_start|>"));
}
/* A "system" beside the prompt becomes its first message; where there is none, the system_message of the desc. */
static void wrpo__put_system(wrpo__reading *in) {
    const wrpo_json *system = wrpo__field(in->root, "system system_prompt"), *first = in->prompt->child;
    const char *otherwise = in->desc.system_message;
    const bool there = wrpo__json_is(wrpo_json_get(first, "role"), "system");
    if (system && !wrpo__want(system, WRPO_JSON_STRING, NULL)->size) system = NULL;
    if (system && there) {
        if (wrpo__json_same(wrpo_json_get(first, "content"), system)) return;
        wrpo__wrong(system, "%s: want the text of the system's turn in the conversation, or none; found another",
                    system->key);
    }
    const wrpo_json usual = wrpo__json_of(WRPO_JSON_STRING, otherwise ? otherwise : "");
    if (!system && otherwise && !there && (*otherwise || wrpo__shows_system(in->tok))) system = &usual;
    if (!system) return;
    wrpo_json *list = wrpo__messages(system, "system");
    wrpo__json_put_all(list, in->prompt);
    in->prompt = list;
}
static void wrpo__end_prompt(const wrpo__reading *in) {
    const wrpo_json *last = in->prompt->child;
    while (last->next) last = last->next;
    if (wrpo__is_assistant(last) && !in->desc.sft_on)
        wrpo__refuse(wrpo_json_get(last, "role"), "prompt", "another last role than the assistant's");
}

/* ---- formats ---- */
typedef struct wrpo__format_keys { const char *name, *prompt, *answer, *wants; } wrpo__format_keys;
#define WRPO__ANSWER "completion output response answer"
static const wrpo__format_keys wrpo__formats[] = {  /* the keys of each wrpo_data_format, beside chosen and rejected */
    {"auto", "", "", ""},
    {"preference", "prompt", "", "chosen and rejected"},
    {"pairs", "prompt", "pairs", "pairs"},
    {"messages", "messages", "messages", "messages"},
    {"sharegpt", "conversations conversation", "conversations conversation", "conversations"},
    {"prompt-completion", "prompt", WRPO__ANSWER, "prompt and completion"},
    {"alpaca", "instruction", WRPO__ANSWER, "instruction and output"},
    {"orca", "question query input", WRPO__ANSWER, "question and response"}};
static const char *const wrpo__sft_ons[] = {"answers", "assistant", "all"};
WRPO__NAMED(wrpo_sft_on_name, wrpo__sft_ons)
WRPO_API const char *wrpo_data_format_name(int i) {
    return i >= 0 && i < WRPO__COUNT(wrpo__formats) ? wrpo__formats[i].name : NULL;
}
/* Messages of others than the assistant? Then the prompt is in them. */
static bool wrpo__is_conversation(const wrpo_json *v) {
    WRPO__EACH(m, v && v->kind == WRPO_JSON_ARRAY ? v : NULL) {
        const wrpo_json *role = wrpo__present(m, "role"), *from = role ? role : wrpo__present(m, "from");
        if (from && !wrpo__json_is(from, "assistant") && !wrpo__json_is(from, "gpt")) return true;
    }
    return false;
}
/* Are chosen and rejected the record's answers? If they have a prompt of their own, they are a preference alone. */
static bool wrpo__takes_pair(const wrpo_json *root, wrpo_data_format format) {
    const wrpo_json *chosen = wrpo__present(root, "chosen");
    return chosen && wrpo__present(root, "rejected") && format != WRPO_DATA_FORMAT_PAIRS &&
           (format == WRPO_DATA_FORMAT_PREFERENCE ||
            (!wrpo__present(root, "prompt") && !wrpo__is_conversation(chosen)));
}
static bool wrpo__fits(const wrpo_json *root, wrpo_data_format format) {
    const wrpo__format_keys *keys = &wrpo__formats[format];
    const bool alpaca = format == WRPO_DATA_FORMAT_ORCA && wrpo__present(root, "instruction");  /* "input" is its */
    return (format <= WRPO_DATA_FORMAT_PAIRS || wrpo__field(root, alpaca ? "question query" : keys->prompt)) &&
           (wrpo__takes_pair(root, format) || wrpo__field(root, keys->answer));
}
static wrpo_data_format wrpo__format_of(const wrpo__reading *in, const wrpo_json *root) {
    const bool pair = wrpo__takes_pair(root, WRPO_DATA_FORMAT_PREFERENCE);
    const bool alone = pair && !wrpo__takes_pair(root, WRPO_DATA_FORMAT_AUTO);
    const wrpo__format_keys *f = wrpo__formats;
    wrpo_data_format found = in->desc.format;
    if (found && !wrpo__fits(root, found))
        wrpo__wrong(root, "want %s, the keys of format %s, found %s", f[found].wants, f[found].name,
                    wrpo__keys_text(root));
    for (wrpo_data_format i = WRPO_DATA_FORMAT_PAIRS; !in->desc.format && !alone && i <= WRPO_DATA_FORMAT_ORCA; i++) {
        if (!wrpo__fits(root, i)) continue;
        if (found)
            wrpo__wrong(root, "want the keys of one format, found those of %s (%s) and of %s (%s): say which with "
                        "--data-format (wrpo_data_desc.format)", f[found].name, f[found].wants, f[i].name, f[i].wants);
        found = i;
    }
    if (!found && pair) found = WRPO_DATA_FORMAT_PREFERENCE;
    if (!found && (wrpo__present(root, "chosen") || wrpo__present(root, "rejected")))
        wrpo__wrong(root, "want \"chosen\" and \"rejected\", or \"messages\"; found no \"%s\"",
                    wrpo__present(root, "chosen") ? "rejected" : "chosen");
    if (!found)
        wrpo__wrong(root, "want chosen and rejected, messages, conversations, prompt and completion, instruction and "
                    "output, or question and response; found %s", wrpo__keys_text(root));
    if (in->format && found != in->format)
        wrpo__wrong(root, "want format %s (%s), as above, found %s (%s)", f[in->format].name, f[in->format].wants,
                    f[found].name, f[found].wants);
    return found;
}
/* An instruction or a question and, on a line below, its input. */
static const wrpo_json *wrpo__with_input(const wrpo_json *root, const wrpo_json *prompt) {
    const wrpo_json *input = wrpo__field(root, "input context"), *history = wrpo__present(root, "history");
    wrpo_json *both = WRPO__NEW(wrpo__current, wrpo_json);
    *both = *wrpo__want(prompt, WRPO_JSON_STRING, NULL);
    if (history && history->count) wrpo__refuse(history, NULL, "none, or messages");
    if (!input || input == prompt || !wrpo__want(input, WRPO_JSON_STRING, NULL)->size) return both;
    wrpo__text text = {.arena = wrpo__current};
    wrpo__text_add(&text, prompt->text, prompt->size);
    wrpo__text_puts(&text, "\n");
    wrpo__text_add(&text, input->text, input->size);
    both->text = text.data;
    both->size = text.size;
    return both;
}
static void wrpo__read_record(wrpo__reading *in, const wrpo_json *root) {
    wrpo__read_head(in, root);
    const wrpo_json *chosen = wrpo__present(root, "chosen"), *rejected = wrpo__present(root, "rejected");
    const wrpo_json *pairs = wrpo__present(root, "pairs"), *weights = wrpo__present(root, "weights");
    in->weight = wrpo__read_weight(wrpo__present(root, "weight"));
    if (in->weight == 0) in->weight = WRPO_ZERO;
    if (pairs && (chosen || rejected || wrpo__present(root, "messages")))
        wrpo__wrong(pairs, "want \"pairs\" alone, or \"chosen\" and \"rejected\", or \"messages\"; found several");
    if (weights && !chosen)
        wrpo__wrong(weights, "weights: want them with the sources of \"chosen\", found no \"chosen\"");
    const wrpo_data_format format = in->format = wrpo__format_of(in, root);
    const bool pair = wrpo__takes_pair(root, format);
    /* 1. The prompt, if the answers do not have it. */
    const wrpo_json *prompt = wrpo__field(root, wrpo__formats[format].prompt);
    const wrpo_json *answer = pair ? chosen : wrpo__field(root, wrpo__formats[format].answer);
    if (format >= WRPO_DATA_FORMAT_ALPACA) prompt = wrpo__with_input(root, prompt);
    if (pair && prompt && prompt->kind == WRPO_JSON_STRING && wrpo__is_conversation(chosen) &&
        wrpo__is_conversation(rejected)) prompt = NULL;
    if (prompt && prompt != answer) in->prompt = wrpo__messages(prompt, "user");
    /* 2. The answers. */
    if (format == WRPO_DATA_FORMAT_PAIRS) wrpo__read_pairs(in, pairs);
    else if (pair) {
        wrpo__read_answer(in, chosen, (wrpo_tokens){.role = WRPO_ROLE_TARGET, .share = 1}, weights);
        wrpo__read_answer(in, rejected, (wrpo_tokens){.role = WRPO_ROLE_REJECTED, .share = 1}, NULL);
    } else {
        const wrpo_json *label = wrpo__present(root, "label");
        if (label && label->kind == WRPO_JSON_BOOL)
            wrpo__wrong(label, "label: want none, or pairs: single answers with labels (KTO) are not supported");
        wrpo__read_answer(in, answer, (wrpo_tokens){.role = WRPO_ROLE_SOURCE, .share = 1}, NULL);
    }
    if (!in->prompt)
        wrpo__wrong(root, "want a \"prompt\", or a conversation that ends in an answer, found none: texts with turns "
                          "in them (\"Human: ... Assistant: ...\") have to be split into messages");
    wrpo__put_system(in);
    wrpo__end_prompt(in);
    if ((in->desc.sft_on || in->desc.packing) && (pair || pairs))
        wrpo__wrong(root, "sft_on, packing: want records of one conversation, found %s", wrpo__formats[format].wants);
}

/* ---- clean ---- */
/* messages, NULL for none, and one more, unless it is NULL. */
static wrpo_json *wrpo__and_message(const wrpo_json *messages, const wrpo_json *more) {
    wrpo_json *all = wrpo__json_empty(WRPO_JSON_ARRAY, NULL);
    wrpo__json_put_all(all, messages);
    if (more) wrpo__json_put(all, more, NULL);
    return all;
}
/* spans: as in wrpo__jinja, or NULL. */
static wrpo__text wrpo__render_spans(wrpo__reading *in, const wrpo_json *all, bool add_generation_prompt,
                                     size_t **spans) {
    wrpo__text out = {.arena = wrpo__current};
    wrpo__chat_at(in->tok, all, add_generation_prompt, in->kwargs, spans, &out);
    wrpo__text_add(&out, "", 0);  /* never NULL */
    return out;
}
static wrpo__text wrpo__render(wrpo__reading *in, const wrpo_json *messages, const wrpo_json *answer,
                               bool add_generation_prompt) {
    return wrpo__render_spans(in, wrpo__and_message(messages, answer), add_generation_prompt, NULL);
}
static size_t wrpo__common(const wrpo__text *a, const wrpo__text *b) {  /* bytes that both begin with */
    const size_t least = WRPO__MIN(a->size, b->size);
    size_t n = 0;
    while (n < least && a->data[n] == b->data[n]) n++;
    while (n > 0 && n < least && ((a->data[n] & 0xC0) == 0x80 || (b->data[n] & 0xC0) == 0x80)) n--;
    return n;
}
static int64_t wrpo__common_ids(const int32_t *a, const int32_t *b) {  /* stb arrays */
    const int64_t least = WRPO__MIN(stbds_arrlen(a), stbds_arrlen(b));
    int64_t n = 0;
    while (n < least && a[n] == b[n]) n++;
    return n;
}
/* A copy of a message with another content. */
static wrpo_json *wrpo__with_content(const wrpo_json *message, const char *text, size_t size) {
    const wrpo_json *content = wrpo_json_get(message, "content");
    wrpo_json *out = WRPO__NEW(wrpo__current, wrpo_json), said = {.kind = WRPO_JSON_STRING, .text = text, .size = size};
    *out = *message;
    out->child = NULL;
    out->count = 0;
    WRPO__EACH(v, message) wrpo__json_put(out, v == content ? &said : v, v->key);
    return out;
}
/* Bytes of the special token or EOS that text[n] begins with; 0: none. */
static size_t wrpo__end_at(const wrpo_tokenizer *tok, const char *text, size_t n) {
    size_t longest = 0;
    for (int normalized = 0; normalized < 2; normalized++) {
        const wrpo__added *a = &tok->added[tok->heads[normalized][(unsigned char)*text]];
        for (; a->size; a = &tok->added[a->next]) {
            const size_t size = (size_t)a->size;
            const bool ends = a->id == tok->eos || wrpo__is_special(tok, a->id);
            if (ends && size > longest && size <= n && !memcmp(text, a->text, size)) longest = size;
        }
    }
    return longest;
}
/* Finds the text of a message of `all` in their rendering `whole`: [*head, *end). A second rendering shows where it is.
   Its text shares no character with the first one's, so what both renderings have in common at their two ends is the
   template's. false: it is not shown. */
static bool wrpo__find_text(wrpo__reading *in, const wrpo_json *all, const wrpo_json *message, const wrpo__text *whole,
                            size_t *head, size_t *end) {
    static const char marks[] = "\1\2\3\4\5\6QZX";
    const wrpo_json *content = wrpo_json_get(message, "content");
    size_t n = whole->size, tail = 0, k = 0;
    wrpo_json other = {.kind = WRPO_JSON_ARRAY};
    while (marks[k + 1] && memchr(content->text, marks[k], content->size)) k++;
    WRPO__EACH(m, all)
        wrpo__json_put(&other, m == message ? wrpo__with_content(m, marks + k, 1) : m, NULL);
    const wrpo__text probe = wrpo__render_spans(in, &other, false, NULL);
    const size_t least = WRPO__MIN(n, probe.size);
    *head = wrpo__common(whole, &probe);
    while (tail < least - *head && whole->data[n - 1 - tail] == probe.data[probe.size - 1 - tail]) tail++;
    *end = n - tail;
    return *head + tail < least;
}
/* Where an answer begins in `whole`. before: the prompt as the model gets it, messages with the generation prompt. */
typedef enum wrpo__start { WRPO__GOES_ON, WRPO__PARTED, WRPO__REWRITTEN } wrpo__start;
static wrpo__start wrpo__find_start(wrpo__reading *in, const wrpo_json *messages, const wrpo__text *before,
                                    const wrpo__text *whole, size_t head, size_t *from) {
    *from = wrpo__common(before, whole);
    if (*from == before->size) return WRPO__GOES_ON;
    /* 1. Only the generation prompt's end is missing, "<think>" for one: the answer begins where the two part. */
    const wrpo__text bare = wrpo__render(in, messages, NULL, false);
    if (*from >= wrpo__common(&bare, before)) return WRPO__PARTED;
    /* 2. The template writes the prompt's messages differently once they are answered: the prompt stays as it is at
          inference. Space that it does not end in is the response's. */
    const char last = before->size ? before->data[before->size - 1] : 0;
    *from = head;
    while (*from > 0 && last && wrpo__jspace(whole->data[*from - 1]) && whole->data[*from - 1] != last) --*from;
    return WRPO__REWRITTEN;
}
/* The end of the first end token in bytes [at, stop). false: there is none, and stop is returned. */
static bool wrpo__find_end(const wrpo__reading *in, const wrpo__text *whole, size_t at, size_t stop, size_t *to) {
    for (; at < stop; at++) {
        const size_t size = wrpo__end_at(in->tok, whole->data + at, whole->size - at);
        *to = at + size;
        if (size) return true;
    }
    *to = stop;
    return false;
}
/* Is all that is said in text[n], white space aside, in the rendering? NULs end both. */
static bool wrpo__shows(const wrpo__text *whole, const char *text, size_t n) {
    const char *from[2] = {whole->data, text};
    const size_t sizes[2] = {whole->size, n};
    char *to[2];
    for (int i = 0; i < 2; i++) {
        size_t kept = 0;
        to[i] = wrpo__alloc(wrpo__current, sizes[i] + 1, 1);
        for (size_t k = 0; k < sizes[i]; k++)
            if (!wrpo__jspace(from[i][k])) to[i][kept++] = from[i][k];
    }
    return strstr(to[0], to[1]) != NULL;
}
/* Counts an answer of which the template leaves something out: its reasoning, mostly. */
static void wrpo__check_shown(wrpo__reading *in, const wrpo_json *message, const wrpo__text *whole) {
    bool shown = true;
    for (int i = -1; i < 3; i++) {
        const wrpo_json *v = wrpo__present(message, i < 0 ? "content" : wrpo__reasoning[i]);
        if (v && v->kind == WRPO_JSON_STRING) shown = shown && wrpo__shows(whole, v->text, v->size);
    }
    in->said_count++;
    in->dropped += !shown;
}
/* An answer that closes a "</think>" which it did not open goes on in the block that the prompt has opened. */
static const wrpo_json *wrpo__in_open_block(const wrpo_json *message, const wrpo__text *before) {
    static const char open[] = "<think>";
    const size_t n = sizeof open - 1;
    const wrpo_json *content = wrpo_json_get(message, "content");
    const char *close = strstr(content->text, "</think>"), *opened = strstr(content->text, open);
    size_t end = before->size;
    while (end > 0 && wrpo__jspace(before->data[end - 1])) end--;
    if (!close || (opened && opened < close) || end < n || memcmp(before->data + end - n, open, n)) return message;
    wrpo__text text = {.arena = wrpo__current};
    wrpo__text_add(&text, before->data + end - n, before->size - end + n);
    wrpo__text_add(&text, content->text, content->size);
    return wrpo__with_content(message, text.data, text.size);
}
/* ids: those of the prompt and `rest` as one text, since families that put a space before a text do so after a special
   token as well. Returns how many of them are the prompt's. The prompt stays as it is at inference: where its last
   token would merge with the rest or swallow its white space, ids are those of the rest alone. */
static int64_t wrpo__encode_after(const wrpo__reading *in, const wrpo__text *before, const int32_t *prompt,
                                  const char *rest, size_t n, int32_t **ids) {
    const int64_t P = stbds_arrlen(prompt);
    wrpo__text both = {.arena = wrpo__current};
    wrpo__text_add(&both, before->data, before->size);
    wrpo__text_add(&both, rest, n);
    wrpo__encode(in->tok, both.data, both.size, 0, ids);
    const bool strips = P && in->tok->tokens[prompt[P - 1]].flags & WRPO__TOKEN_RSTRIP;
    const bool swallows = strips && n && wrpo__jskip_space(rest, n, 0) > 0;
    const bool same = stbds_arrlen(*ids) >= P && (!P || !memcmp(*ids, prompt, (size_t)P * sizeof *prompt));
    if (same && !swallows) return P;
    stbds_arrsetlen(*ids, 0);
    wrpo__encode(in->tok, rest, n, WRPO_TOKENIZER_CONTINUE, ids);
    return 0;
}
static void wrpo__tokenize_clean(wrpo__reading *in) {
    const wrpo__text before = wrpo__render(in, in->prompt, NULL, true);
    const int64_t K = stbds_arrlen(in->answers);
    int32_t *prompt = NULL, **all = WRPO__ARRAY(int32_t *, K);
    int64_t *first = WRPO__ARRAY(int64_t, K);  /* of all[k], what is not the prompt's */
    bool *parted = WRPO__ARRAY(bool, K), lost = false, rewritten = false;
    wrpo__encode(in->tok, before.data, before.size, 0, &prompt);
    int64_t full = stbds_arrlen(prompt);  /* what all conversations have of it: they share one prompt */
    for (int64_t k = 0; k < K; k++) {
        const wrpo_json *said = wrpo__in_open_block(in->said[k], &before), *with = wrpo__and_message(in->prompt, said);
        const wrpo_json *message = with->child;
        const wrpo__text whole = wrpo__render_spans(in, with, false, NULL);
        size_t head, from, to;
        while (message->next) message = message->next;
        if (!wrpo__find_text(in, with, message, &whole, &head, &to))
            wrpo__wrong(message, "the chat template does not show the response");
        const wrpo__start start = wrpo__find_start(in, in->prompt, &before, &whole, head, &from);
        const bool ends = wrpo__find_end(in, &whole, to, whole.size, &to);
        wrpo__check_shown(in, said, &whole);
        parted[k] = start == WRPO__PARTED;
        rewritten = rewritten || start == WRPO__REWRITTEN;
        if (parted[k]) {
            wrpo__encode(in->tok, whole.data, to, 0, &all[k]);
            first[k] = wrpo__common_ids(prompt, all[k]);
            full = WRPO__MIN(full, first[k]);
            snprintf(in->lost, sizeof in->lost, "%s", wrpo__legible(before.data + from, before.size - from));
            lost = true;
        } else first[k] = wrpo__encode_after(in, &before, prompt, whole.data + from, to - from, &all[k]);
        if (!ends && in->tok->eos >= 0) stbds_arrput(all[k], in->tok->eos);
    }
    const int64_t P = WRPO__MIN(full, in->desc.max_prompt_length), N = stbds_arrlen(prompt);
    for (int64_t k = 0; k < K; k++) {
        wrpo_tokens *a = &in->answers[k];
        int32_t *ids = NULL;
        for (int64_t i = full; i < N && !parted[k]; i++) stbds_arrput(ids, prompt[i]);  /* the others end earlier */
        for (int64_t i = parted[k] ? full : first[k]; i < stbds_arrlen(all[k]); i++) stbds_arrput(ids, all[k][i]);
        const int64_t n = stbds_arrlen(ids);
        a->ids = ids;
        a->count = WRPO__MIN(n, in->desc.max_length - P);  /* a response keeps its beginning, */
        in->data->stats.truncated_responses += a->count < n;
    }
    in->parted += lost;
    in->rewritten += rewritten;
    in->ids = full > P ? prompt + full - P : prompt;  /* the prompt its end */
    in->count = P;
    in->data->stats.truncated_prompts += full > P;
}

/* ---- sft_on: every assistant turn, or every token, of one conversation, as TRL tokenizes it: in one piece ---- */
/* Where the assistant's turns are in `whole`, for a template that does not mark them: after the generation prompt,
   through the first end token after the turn's text and before the next turn's. An stb array of bytes. */
static size_t *wrpo__assistant_spans(wrpo__reading *in, const wrpo_json *all, const wrpo__text *whole) {
    size_t *spans = NULL;
    wrpo_json messages = {.kind = WRPO_JSON_ARRAY};
    for (const wrpo_json *m = all->child; m; wrpo__json_put(&messages, m, NULL), m = m->next) {
        size_t head, from, to, end, next_end, stop = whole->size;
        if (!wrpo__is_assistant(m)) continue;
        wrpo__message_get(m, "content");
        const wrpo__text before = wrpo__render_spans(in, &messages, true, NULL);
        if (!wrpo__find_text(in, all, m, whole, &head, &to))
            wrpo__wrong(m, "the chat template does not show the response");
        const wrpo_json *next = m->next ? wrpo__present(m->next, "content") : NULL;
        if (next && (next->kind != WRPO_JSON_STRING ||
                     !wrpo__find_text(in, all, m->next, whole, &stop, &next_end))) stop = whole->size;
        wrpo__find_start(in, &messages, &before, whole, head, &from);
        if (wrpo__find_end(in, whole, to, stop, &end) || !m->next) to = end;
        wrpo__check_shown(in, m, whole);
        stbds_arrput(spans, from);
        stbds_arrput(spans, to);
    }
    return spans;
}
/* How many of ids, those of `whole`, are before byte `at`. through: a token that this byte ends in counts too. */
static int64_t wrpo__ids_before(const wrpo__reading *in, const wrpo__text *whole, size_t at, const int32_t *ids,
                                bool through) {
    int32_t *own = NULL;
    wrpo__encode(in->tok, whole->data, at, 0, &own);
    const int64_t n = wrpo__common_ids(own, ids);
    return n + (through && n < stbds_arrlen(own) && n < stbds_arrlen(ids));
}
static void wrpo__tokenize_sft(wrpo__reading *in) {
    const wrpo_json *all = wrpo__and_message(in->prompt, in->said[0]);
    const bool every = in->desc.sft_on == WRPO_SFT_ON_ALL;
    size_t *spans = NULL;
    int32_t *ids = NULL;
    const wrpo__text whole = wrpo__render_spans(in, all, false, &spans);
    wrpo__encode(in->tok, whole.data, whole.size, 0, &ids);
    const int64_t n = stbds_arrlen(ids), most = in->desc.packing ? n : WRPO__MIN(n, in->desc.max_length);
    int64_t count = in->desc.packing ? n : 0, P = in->desc.packing ? 0 : most;
    bool *scored = WRPO__ARRAY(bool, n), gaps = false;
    if (every) wrpo__check_shown(in, in->said[0], &whole);
    else if (!spans) spans = wrpo__assistant_spans(in, all, &whole);
    for (int64_t k = 0; k < stbds_arrlen(spans) && !every; k += 2) {
        const int64_t end = wrpo__ids_before(in, &whole, spans[k + 1], ids, true);
        for (int64_t i = wrpo__ids_before(in, &whole, spans[k], ids, false); i < end; i++) scored[i] = true;
    }
    for (int64_t i = 0; i < most; i++) {  /* from the first that is scored to the last: the response */
        scored[i] = scored[i] || every;
        if (scored[i] && i > 0) P = WRPO__MIN(P, i);
        if (scored[i]) count = WRPO__MAX(count, i + 1);
    }
    for (int64_t i = P; i < count; i++) gaps = gaps || !scored[i];
    in->data->stats.truncated_responses += most < n;
    in->ids = ids;
    in->count = P;
    in->answers->ids = ids + P;
    in->answers->count = WRPO__MAX(count - P, 0);
    in->answers->scored = gaps ? scored + P : NULL;
}

/* ---- authors: tokenize_row of the reference trainer ----
   The prompt is rendered without the generation prompt, each answer as a conversation of its own without BOS, so that
   the assistant's header is scored with it. Both are tokenized as one text. In it the prompt has as many tokens as
   alone, or one less if they would differ. EOS is appended once more. Truncation goes by the longest response: all
   prompts keep their ends, then, if that is not enough, every response its beginning. */
static void wrpo__drop_ids(wrpo_tokens *a, int64_t n) {  /* the first n */
    a->ids += n;
    a->count -= n;
    a->first -= n;
}
/* The prompt and answer k, of which the prompt's ids, alone[border], are the first. */
static void wrpo__encode_authors(wrpo__reading *in, int64_t k, const wrpo__text *before, const int32_t *alone) {
    const char *bos = in->tok->special[0] ? in->tok->special[0] : "";
    const size_t size = strlen(bos);
    const wrpo__text reply = wrpo__render(in, NULL, in->said[k], false);
    const size_t skip = reply.size >= size && !memcmp(reply.data, bos, size) ? size : 0;
    wrpo__text whole = {.arena = wrpo__current};
    int64_t border = stbds_arrlen(alone);
    int32_t *ids = NULL;
    wrpo__text_add(&whole, before->data, before->size);
    wrpo__text_add(&whole, reply.data + skip, reply.size - skip);
    wrpo__encode(in->tok, whole.data, whole.size, 0, &ids);
    const int64_t n = stbds_arrlen(ids);
    if (border > n)
        wrpo__wrong(in->said[k], "with the response, the prompt has fewer tokens than alone: "
                    "the authors' tokenization cannot tell them apart");
    if (border && memcmp(ids, alone, (size_t)border * sizeof *alone)) border--;
    if (border == n) wrpo__wrong(in->said[k], "response %lld has no token", (long long)k + 1);
    stbds_arrput(ids, in->tok->eos);
    in->answers[k].ids = ids;
    in->answers[k].count = n + 1;
    in->answers[k].first = border;
}
static void wrpo__tokenize_authors(wrpo__reading *in) {
    const int64_t K = stbds_arrlen(in->answers), max_length = in->desc.max_length;
    const int64_t max_prompt = in->desc.max_prompt_length, max_answer = max_length - max_prompt;
    wrpo_tokens *const first = in->answers, *const end = first + K, *const last = end - 1;
    int32_t *alone = NULL;  /* stb array */
    int64_t longest = 0, shared = INT64_MAX;
    bool cut = false;
    if (in->tok->eos < 0) wrpo__fail_arg("the authors' tokenization wants an eos_token, the tokenizer has none");
    const wrpo__text before = wrpo__render(in, in->prompt, NULL, false);
    wrpo__encode(in->tok, before.data, before.size, 0, &alone);
    for (int64_t k = 0; k < K; k++) {
        wrpo__encode_authors(in, k, &before, alone);
        longest = WRPO__MAX(longest, first[k].count - first[k].first);
    }
    for (const wrpo_tokens *a = first; a < last; a++) {  /* a chosen one's prompt and the rejected one's */
        int64_t other = 0;
        for (int64_t i = 0; i < WRPO__MIN(a->first, last->first); i++) other += a->ids[i] != last->ids[i];
        if (other > 1) wrpo__wrong(in->said[a - first], "the responses change more than the prompt's last token");
    }
    for (wrpo_tokens *a = first; a < end; a++) {
        int64_t same = 0;  /* with the first one's prompt */
        if (a->first + longest > max_length && a->first > max_prompt) {
            wrpo__drop_ids(a, a->first - max_prompt);
            cut = true;
        }
        if (a->first + longest > max_length && a->count - a->first > max_answer) {
            a->count = a->first + max_answer;
            in->data->stats.truncated_responses++;
        }
        while (same < a->first && same < first->first && a->ids[same] == first->ids[same]) same++;
        shared = WRPO__MIN(shared, same);
    }
    in->data->stats.truncated_prompts += cut;
    if (shared == 0 && cut)
        wrpo__wrong(in->root, "truncated, the responses' prompts have no token in common: "
                    "want a shorter prompt or a larger max_prompt_length");
    in->ids = first->ids;
    in->count = shared;
    for (wrpo_tokens *a = first; a < end; a++) wrpo__drop_ids(a, shared);  /* the rest stays there, unscored */
}

/* ---- lines of a file, except blank ones ---- */
typedef struct wrpo__lines { const wrpo__file *file; const char *text; size_t size, next; int64_t number; } wrpo__lines;
static bool wrpo__next_line(wrpo__lines *l) {
    const char *data = (const char *)l->file->data;
    const size_t end = l->file->size;
    if (!l->next && end >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) l->next = 3;  /* a byte order mark */
    while (l->next < end) {
        const char *at = data + l->next, *newline = memchr(at, '\n', end - l->next);
        const size_t n = newline ? (size_t)(newline - at) : end - l->next;
        size_t blank = 0;
        while (blank < n && memchr(" \t\r", at[blank], 3)) blank++;
        l->next += n + 1;
        l->number++;
        l->text = at;
        l->size = n;
        if (blank < n) return true;
    }
    return false;
}

static wrpo_json *wrpo__line_json(wrpo__arena *arena, const wrpo__lines *l) {
    return wrpo__json_parse(arena, l->file->path, l->number, l->text, l->size);
}

/* ---- records ---- */
/* Puts the record's name before the sentence of an error, after its position in the file. */
static void wrpo__name_record(const wrpo__reading *in) {
    wrpo_error *e = &in->ctx->error;
    const wrpo_error was = *e;
    if (!in->root || was.code == WRPO_E_MEMORY) return;
    const char *text = was.text, *file = in->root->name, *colon = NULL;
    if (file && was.line && !strncmp(text, file, strlen(file))) colon = strstr(text + strlen(file), ": ");
    if (colon) text = colon + 2;
    else e->column = 0;  /* no value of the record is to blame */
    if (!colon) e->line = in->line;  /* else the value's own: a record of an array may have several */
    int n = snprintf(e->text, sizeof e->text, "%.150s:%lld:", in->desc.path, (long long)e->line);
    if (colon) n += snprintf(e->text + n, sizeof e->text - (size_t)n, "%lld:", (long long)was.column);
    snprintf(e->text + n, sizeof e->text - (size_t)n, " record \"%.60s\": %.430s", in->id, text);
}
/* In [0, 1), by the prompt's roles, contents and tool calls. */
static double wrpo__prompt_place(const wrpo_json *messages) {
    static const char *const keys[] = {"role", "content", "tool_calls"};
    uint64_t h = 0;
    WRPO__EACH(m, messages)
        for (int k = 0; k < WRPO__COUNT(keys); k++) {
            const wrpo_json *v = wrpo_json_get(m, keys[k]);
            wrpo__text parts = {.arena = wrpo__current};
            if (v && v->kind == WRPO_JSON_STRING) h = wrpo__hash(h, v->text, v->size);
            if (!v || v->kind < WRPO_JSON_ARRAY) continue;
            wrpo__json_write(&parts, v);
            h = wrpo__hash(h, parts.data, parts.size);
            wrpo__block_free(parts.data);
        }
    return (double)(wrpo__hash(0, &h, sizeof h) >> 11) * 0x1p-53;
}
/* ---- packing: one stream of tokens, cut into rows; after so many records anew, as TRL's map does ---- */
enum { WRPO__PACK_BLOCK = 1000 };
static void wrpo__flush_stream(wrpo__reading *in) {  /* the first token of a row cannot be scored */
    const int64_t n = stbds_arrlen(in->stream);
    for (int64_t at = 0, next; at < n; at = next) {
        next = WRPO__MIN(n, at + in->desc.max_length);
        const wrpo_tokens y = {.role = WRPO_ROLE_SOURCE, .share = 1, .ids = in->stream + at + 1,
                               .count = next - at - 1, .scored = in->marks + at + 1};
        const char *id = wrpo__format(wrpo__current, "row %lld", (long long)in->data->stats.records + 1);
        const wrpo_record row = {.prompt_id = id, .line = in->line, .prompt = in->stream + at, .prompt_count = 1,
                                 .responses = &y, .count = 1};
        if (wrpo__scored_count(&y)) wrpo__data_add(in->data, &row);
        else in->unscored++;
    }
    if (n) stbds_arrsetlen(in->stream, 0);
    if (n) stbds_arrsetlen(in->marks, 0);
}
static void wrpo__stream_record(wrpo__reading *in) {
    wrpo__arena *outer = wrpo__current;
    const wrpo_tokens *y = in->answers;
    wrpo__current = in->pack;
    for (int64_t i = -in->count; i < y->count; i++) {
        stbds_arrput(in->stream, i < 0 ? in->ids[in->count + i] : y->ids[i]);
        stbds_arrput(in->marks, i >= 0 && (!y->scored || y->scored[i]));
    }
    wrpo__current = outer;
    if (in->read % WRPO__PACK_BLOCK == 0) wrpo__flush_stream(in);
}

/* ---- a file ---- */
/* One record: a line, or root. */
static void wrpo__read_line(wrpo__reading *in, const char *text, size_t n, const wrpo_json *root) {
    in->root = in->prompt = NULL;
    in->said = NULL;
    in->answers = NULL;
    wrpo__read_record(in, root ? root : wrpo__json_parse(wrpo__current, in->desc.path, in->line, text, n));
    if (in->desc.eval_split > 0 && (wrpo__prompt_place(in->prompt) < in->desc.eval_split) != in->desc.eval_part) {
        in->passed++;
        return;
    }
    wrpo__read_source_logps(in, in->root);
    if (in->desc.tokenization == WRPO_TOKENIZATION_AUTHORS) wrpo__tokenize_authors(in);
    else if (in->desc.sft_on) wrpo__tokenize_sft(in);
    else wrpo__tokenize_clean(in);
    const int64_t K = stbds_arrlen(in->answers);
    in->read++;
    if (in->desc.packing) wrpo__stream_record(in);
    else if (in->desc.sft_on && !in->answers->count) in->unscored++;
    else if (in->count == 0) wrpo__wrong(in->root, "the prompt has no token");
    if (in->desc.packing || (in->desc.sft_on && !in->answers->count)) return;
    for (int64_t k = 0; k < K; k++)
        if (in->answers[k].count <= in->answers[k].first)
            wrpo__wrong(in->said[k], "response %lld has no token", (long long)k + 1);
    const wrpo_record record = {in->id, in->line, in->ids, in->count, in->answers, (int)K, in->weight,
                                in->sources};
    wrpo__data_add(in->data, &record);
}
/* An entry of its own: its arena goes with it, and an error learns which record it is about. */
#define WRPO__RECORD_ENTRY(in, call) \
    WRPO__CALL((in)->ctx, wrpo__arena_new((in)->ctx), true, call) \
    if (wrpo__entry.failed) wrpo__name_record(in); \
    return wrpo__end(&wrpo__entry)
static wrpo_result wrpo__load_line(wrpo__reading *in, const char *text, size_t n, const wrpo_json *root) {
    WRPO__RECORD_ENTRY(in, wrpo__read_line(in, text, n, root));
}
/* Files in which others keep records, by their first bytes. */
static void wrpo__check_kind(const wrpo__file *f, const char *path) {
    static const struct { const char *magic; size_t size; const char *kind, *way; } kinds[] = {
        {"PAR1", 4, "parquet", "pandas.read_parquet(FILE).to_json(OUT, orient=\"records\", lines=True)"},
        {"ARROW1", 6, "Arrow", "datasets.load_from_disk(DIR).to_json(OUT)"},
        {"\xFF\xFF\xFF\xFF", 4, "Arrow", "datasets.load_from_disk(DIR).to_json(OUT)"},
        {"\x1F\x8B", 2, "gzip", "gunzip"}, {"\x28\xB5\x2F\xFD", 4, "zstd", "zstd -d"}, {"PK\3\4", 4, "zip", "unzip"}};
    for (int i = 0; i < WRPO__COUNT(kinds); i++)
        if (f->size >= kinds[i].size && !memcmp(f->data, kinds[i].magic, kinds[i].size))
            wrpo__fail_format("%s: want JSON lines, found %s: convert it with %s", path, kinds[i].kind, kinds[i].way);
}
/* The records of a file: lines, or one array over any number of lines. */
typedef struct wrpo__records { wrpo__lines line; const wrpo_json *array, *root; int64_t number; } wrpo__records;
static wrpo__records wrpo__records_open(wrpo__arena *arena, const char *path) {
    wrpo__records r = {.line = {.file = wrpo__open_file(arena, path)}};
    wrpo__check_kind(r.line.file, path);
    wrpo__lines l = r.line;
    if (!wrpo__next_line(&l)) return r;
    const size_t begin = wrpo__jskip_space(l.text, l.size, 0);
    if (begin == l.size || l.text[begin] != '[') return r;
    const size_t size = l.file->size - (size_t)(l.text - (const char *)l.file->data);
    r.array = wrpo__json_parse(arena, path, l.number, l.text, size);
    return r;
}
/* The next one is root, of an array, or the text of the line. */
static bool wrpo__next_record(wrpo__records *r) {
    if (!r->array && !wrpo__next_line(&r->line)) return false;
    if (r->array) r->root = r->root ? r->root->next : r->array->child;
    if (r->array && !r->root) return false;
    r->number = r->array ? r->root->line : r->line.number;
    return true;
}
static void wrpo__read_file(wrpo__reading *in, wrpo__arena *work) {
    wrpo__records r = wrpo__records_open(work, in->desc.path);
    while ((!in->desc.limit || in->read + in->passed < in->desc.limit) && wrpo__next_record(&r)) {
        in->line = r.number;
        wrpo__rethrow(in->ctx, wrpo__load_line(in, r.line.text, r.line.size, r.root));
    }
}
static void wrpo__say(const wrpo__reading *in, int64_t count, int64_t of, const char *what) {
    if (count) wrpo__warn("%s: %lld of %lld %s", in->desc.path, (long long)count, (long long)of, what);
}
/* What a user may not expect, with counts. */
static void wrpo__say_counts(const wrpo__reading *in) {
    const wrpo_data_stats *stats = &in->data->stats;
    if (stats->truncated_prompts || stats->truncated_responses)
        wrpo__warn("%s: %lld prompts and %lld responses were cut to fit %lld tokens, of which %lld for a prompt",
                   in->desc.path, (long long)stats->truncated_prompts, (long long)stats->truncated_responses,
                   (long long)in->desc.max_length, (long long)in->desc.max_prompt_length);
    wrpo__say(in, in->dropped, in->said_count, "answers are not shown whole by the chat template, which drops their "
              "reasoning, most likely: that is not trained on");
    wrpo__say(in, in->parted, in->read, wrpo__format(wrpo__current, "records lose \"%s\": the chat template writes it "
              "before an answer only at inference. The answer begins where they part, as in TRL", in->lost));
    wrpo__say(in, in->rewritten, in->read, "records have a prompt that the chat template writes differently once it is "
              "answered: the model gets it as at inference");
    wrpo__say(in, in->unscored, in->read, "records or rows have no scored token within the maximum length: left out");
}
static wrpo_data *wrpo__data_load(wrpo__arena *arena, wrpo_tokenizer *tok, const wrpo_data_desc *desc) {
    wrpo_ctx *ctx = arena->ctx;
    if (!desc || !desc->path) wrpo__fail_arg("wrpo_data_desc: want a path, found NULL");
    wrpo_data *data = wrpo__data_new(arena);
    wrpo__reading in = {.ctx = ctx, .data = data, .tok = tok, .desc = *desc};
    int64_t *max_length = &in.desc.max_length, *max_prompt = &in.desc.max_prompt_length;
    WRPO__RANGE(*max_length >= 0, "max_length", *max_length, "at least 0");
    WRPO__RANGE(*max_prompt >= 0, "max_prompt_length", *max_prompt, "at least 0");
    WRPO__RANGE(desc->limit >= 0, "limit", desc->limit, "at least 0");
    WRPO__RANGE(desc->eval_split >= 0 && desc->eval_split < 1, "eval_split", desc->eval_split, "a number in [0, 1)");
    WRPO__RANGE(wrpo_data_format_name((int)desc->format), "format", desc->format, "one of wrpo_data_format");
    WRPO__RANGE(wrpo_sft_on_name((int)desc->sft_on), "sft_on", desc->sft_on, "one of wrpo_sft_on");
    if (desc->tokenization == WRPO_TOKENIZATION_AUTHORS && (desc->sft_on || desc->packing))
        wrpo__fail_arg("sft_on, packing: want the clean tokenization, found the authors'");
    if (!*max_length) *max_length = 2048;
    if (!*max_prompt) *max_prompt = WRPO__MAX(*max_length / 2048 * 1800 + *max_length % 2048 * 1800 / 2048, 1);
    if (*max_prompt >= *max_length)
        wrpo__fail_arg("max_prompt_length: want less than max_length, %lld, found %lld", (long long)*max_length,
                       (long long)*max_prompt);
    wrpo__arena *work = wrpo__sub_arena(arena);  /* what goes when the file is read */
    in.pack = wrpo__sub_arena(arena);
    wrpo__read_file(&in, work);
    if (!in.read && in.passed)
        wrpo__fail_arg("eval_split: want a share that leaves records in both parts of %s, found %g of %lld records",
                       desc->path, desc->eval_split, (long long)in.passed);
    if (!in.read) wrpo__fail_format("%s: want records, found none", desc->path);
    wrpo__flush_stream(&in);
    data->stats.format = in.format;
    wrpo__arena_clear(work);
    wrpo__arena_clear(in.pack);
    if (tok->dated) data->date = wrpo__strndup(arena, ctx->date, strlen(ctx->date));
    wrpo__say_counts(&in);
    if (!data->stats.records)
        wrpo__fail_format("%s: no record has a scored token within %lld", desc->path, (long long)*max_length);
    return data;
}
WRPO_API wrpo_result wrpo_data_load(wrpo_tokenizer *tok, const wrpo_data_desc *desc, wrpo_data **out) {
    *out = NULL;
    WRPO__ENTRY(tok->ctx, false, *out = wrpo__data_load(wrpo__current, tok, desc));
}

/* ---- for generation: the prompt alone, and what ends an answer ---- */
static void wrpo__tokenize_prompt(wrpo__reading *in, const wrpo_json *record, bool raw, int32_t **ids, int64_t *count) {
    wrpo__read_head(in, record);
    const wrpo_json *prompt = wrpo__present(record, "prompt"), *messages = wrpo__present(record, "messages");
    const wrpo_json *v = prompt ? prompt : messages;
    wrpo__text text = {.arena = wrpo__current};
    if (!prompt == !messages)
        wrpo__wrong(record, "want either \"prompt\" or \"messages\", found %s", prompt ? "both" : "none");
    if (raw) {
        if (messages || v->kind != WRPO_JSON_STRING) wrpo__refuse(v, "raw prompt", "a string");
        if (in->desc.system_message) wrpo__wrong(v, "raw prompt: want no system_message, which a template would show");
        wrpo__text_add(&text, v->text, v->size);
    } else {
        in->prompt = wrpo__messages(v, "user");
        wrpo__put_system(in);
        wrpo__end_prompt(in);
        text = wrpo__render(in, in->prompt, NULL, true);
    }
    int32_t *own = NULL;  /* stb array */
    wrpo__encode(in->tok, text.data, text.size, raw ? WRPO_TOKENIZER_SPECIAL : 0, &own);
    if (!own) wrpo__wrong(record, "the prompt has no token");
    *ids = wrpo__handout(in->ctx, own, stbds_arrlenu(own) * sizeof **ids);
    *count = stbds_arrlen(own);
}
static wrpo_result wrpo__prompt_ids(wrpo__reading *in, const wrpo_json *record, bool raw, int32_t **ids,
                                    int64_t *count) {
    WRPO__RECORD_ENTRY(in, wrpo__tokenize_prompt(in, record, raw, ids, count));
}
WRPO_API wrpo_result wrpo_tokenizer_prompt(wrpo_tokenizer *tok, const wrpo_tokenizer_prompt_desc *desc,
                                           const wrpo_json *record, int32_t **ids, int64_t *count) {
    desc = desc ? desc : &(wrpo_tokenizer_prompt_desc){0};
    wrpo__reading in = {.ctx = tok->ctx, .tok = tok,
                        .desc = {.path = desc->name ? desc->name : "prompts", .system_message = desc->system_message},
                        .line = desc->line ? desc->line : record->line};
    *ids = NULL;
    *count = 0;
    return wrpo__prompt_ids(&in, record, desc->raw, ids, count);
}
static void wrpo__find_answer_end(wrpo_tokenizer *tok, int32_t *end) {
    const wrpo_json said = wrpo__json_of(WRPO_JSON_STRING, "x");
    wrpo_data none = {0};
    wrpo__reading in = {.ctx = tok->ctx, .data = &none, .tok = tok,
                        .desc = {.max_length = INT64_MAX, .max_prompt_length = INT64_MAX}};
    in.prompt = wrpo__messages(&said, "user");
    wrpo__add_answer(&in, wrpo__message_of("assistant", &said), (wrpo_tokens){0});
    wrpo__tokenize_clean(&in);
    const int64_t n = in.answers->count;
    const int32_t last = n ? in.answers->ids[n - 1] : -1;
    if (last == tok->eos || wrpo__is_special(tok, last)) *end = last;
}
/* The token that ends an answer in the chat template; -1: it has none or raises here, or there is no template. */
static wrpo_result wrpo__answer_end(wrpo_tokenizer *tok, int32_t *end) {
    *end = -1;
    WRPO__ENTRY(tok->ctx, true, wrpo__find_answer_end(tok, end));
}

/* ------------------------------------------------------------------------------------------ >>generate
   Samples of many prompts at once, over a cache of keys and values.

   A prompt's keys and values are computed once: they are the prefix that all its samples attend to. Each live sample
   has rows of its own. One step packs the newest token of every live sample, fills the rows that are left with pieces
   of prompts, and runs the model over them; the bits of a row do not depend on the other rows. All samples of a prompt
   draw their first token from the logits of its last row. Those that find no free slot wait. A prompt is begun when
   slots would stay empty otherwise. */
typedef struct wrpo__draft {  /* a sample in the making */
    struct wrpo__job *job;
    int64_t number, slot;  /* slot -1: none */
    int32_t *ids; float *logps;  /* stb arrays */
    wrpo__text text; size_t shown;  /* what they say; how many of its bytes on_text has had */
    bool stopped, done;
} wrpo__draft;
typedef struct wrpo__job {  /* a prompt that is begun and not delivered yet */
    int64_t prompt, slot;  /* its index; its slot in the cache */
    int64_t rows;  /* of it in the cache so far */
    int64_t left, limit;  /* samples that are not done; the most tokens of a sample */
    wrpo__draft drafts[];  /* [n] */
} wrpo__job;
typedef struct wrpo__weighed { float weight; int32_t id; } wrpo__weighed;
typedef struct wrpo__generation {
    wrpo_model *model;
    wrpo_generate_desc desc;  /* resolved */
    const wrpo_prompt *prompts; int64_t count;
    int64_t prompt_slots;  /* of the cache; then come batch slots of samples */
    int64_t prompt_rows, sample_rows;  /* rows of a slot */
    wrpo__workspace *run;
    wrpo__job **jobs;  /* stb array: of prompts [delivered, begun) */
    int64_t begun, delivered, tokens, steps;
    int64_t *free_prompts, *free_samples;  /* stb arrays: slots */
    wrpo__draft **draws;  /* [rows] which sample draws from the workspace's label i */
    wrpo_sample *samples;  /* [n] of the prompt that is delivered */
    wrpo__text *answer;  /* for wrpo_answer: what all samples say; NULL: not wanted */
    float *logits; wrpo__weighed *weights;  /* [chunk, ldl] on the host */
} wrpo__generation;

/* Settings: field, what 0 means, valid if (x is the value), wanted. */
#define WRPO__SAMPLING(X) \
    X(n,           1,    x >= 1 && x <= 1 << 20,   "1 to 2^20 samples") \
    X(max_tokens,  2048, x >= 1 && x <= INT32_MAX, "1 to 2^31 - 1") \
    X(temperature, 0,    x >= 0 && x <= 1e6,       "a number in [0, 1e6]") \
    X(top_p,       1,    x > 0 && x <= 1,          "a number in (0, 1]") \
    X(top_k,       0,    x >= 0,                   "at least 0") \
    X(batch,       32,   x >= 1 && x <= 1 << 20,   "1 to 2^20 samples")
WRPO_API wrpo_generate_desc wrpo_generate_defaults(const wrpo_generate_desc *desc) {
    wrpo_generate_desc d = {0};
    if (desc) d = *desc;
#define WRPO__X(field, otherwise, valid, want) if (d.field == 0) d.field = otherwise;
    WRPO__SAMPLING(WRPO__X)
#undef WRPO__X
    if (!d.seed) d.seed = 42;
    return d;
}
/* Checks settings and prompts; sets how many rows a slot has. */
static void wrpo__generate_check(wrpo__generation *g) {
    wrpo_ctx *ctx = g->model->ctx;
    const int64_t most = g->model->config.max_position_embeddings;
    int64_t shortest = most;
    double x;
#define WRPO__X(field, otherwise, valid, want) x = (double)g->desc.field; WRPO__RANGE(valid, #field, x, want);
    WRPO__SAMPLING(WRPO__X)
#undef WRPO__X
    if (!ctx->desc.backend->scatter)
        wrpo__fail_unsupported("%s: this backend does not generate", ctx->desc.backend->name);
    for (int64_t i = 0; i < g->count; i++) {
        const wrpo_prompt *p = &g->prompts[i];
        WRPO__RANGE(p->temperature >= 0 && p->temperature <= 1e6, "a prompt's temperature", p->temperature,
                    "a number in [0, 1e6]");
        if (p->count < 1) wrpo__fail_arg("prompt %lld has no token", (long long)i);
        if (p->count >= most)
            wrpo__fail_arg("prompt %lld: want fewer tokens than max_position_embeddings, %lld, found %lld",
                           (long long)i, (long long)most, (long long)p->count);
        wrpo__check_ids(g->model->config.vocab_size, p->ids, p->count, "prompt", NULL, i);
        g->prompt_rows = WRPO__MAX(g->prompt_rows, p->count);
        shortest = WRPO__MIN(shortest, p->count);
    }
    g->sample_rows = WRPO__MIN(g->desc.max_tokens, most - shortest);
}

/* ---- stop tokens: an stb array, ascending, each once ---- */
static void wrpo__add_stop(int32_t **list, int64_t id) {
    int64_t at = stbds_arrlen(*list);
    for (int64_t i = 0; i < at; i++)
        if ((*list)[i] == id) return;
    stbds_arrput(*list, (int32_t)id);
    for (; at > 0 && (*list)[at - 1] > id; at--) (*list)[at] = (*list)[at - 1];
    (*list)[at] = (int32_t)id;
}
/* Adds "eos_token_id" of the file; false: the file is missing or has none. */
static bool wrpo__read_eos(const wrpo_model *model, const char *path, int32_t **list) {
    if (!wrpo__exists(path)) return false;
    const wrpo_json *root = wrpo__json_file(wrpo__current, path);
    const wrpo_json *eos = wrpo__present(wrpo__want(root, WRPO_JSON_OBJECT, NULL), "eos_token_id");
    const bool many = eos && eos->kind == WRPO_JSON_ARRAY;
    for (const wrpo_json *v = many ? eos->child : eos; v; v = many ? v->next : NULL)
        wrpo__add_stop(list, wrpo__integer(v, 0, model->config.vocab_size - 1, "eos_token_id"));
    return eos != NULL;
}
static int32_t *wrpo__stop_tokens(wrpo_model *model, wrpo_tokenizer *tok) {
    const char *own = model->dir && wrpo__is_dir(model->dir) ? model->dir : NULL;
    const char *dirs[2] = {model->tokenizer_dir, own};  /* the tokenizer's folder wins, as in a save */
    int32_t *list = NULL, end = -1;
    bool found = false;
    if (tok && wrpo__answer_end(tok, &end) == WRPO_E_MEMORY) wrpo__rethrow(model->ctx, WRPO_E_MEMORY);
    for (int i = 0; i < 2 && !found; i++)
        if (dirs[i]) found = wrpo__read_eos(model, wrpo__join(wrpo__current, dirs[i], "generation_config.json"), &list);
    if (!found && model->dir)  /* NULL: made in memory; a file: the config itself */
        wrpo__read_eos(model, own ? wrpo__join(wrpo__current, own, "config.json") : model->dir, &list);
    if (tok && tok->eos >= 0) wrpo__add_stop(&list, tok->eos);
    if (end >= 0) wrpo__add_stop(&list, end);
    return list;
}
static void wrpo__hand_out_stops(wrpo_model *model, wrpo_tokenizer *tok, int32_t **ids, int64_t *count) {
    const int32_t *list = wrpo__stop_tokens(model, tok);
    *ids = wrpo__handout(model->ctx, list, (size_t)stbds_arrlen(list) * sizeof *list);
    *count = stbds_arrlen(list);
}
WRPO_API wrpo_result wrpo_stop_tokens(wrpo_model *model, wrpo_tokenizer *tok, int32_t **ids, int64_t *count) {
    *ids = NULL;
    *count = 0;
    WRPO__ENTRY(model->ctx, true, wrpo__hand_out_stops(model, tok, ids, count));
}

/* ---- the sampler: one row of logits, on the host ---- */
static double wrpo__total_weight(const wrpo__weighed *w, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)w[i].weight;
    return sum;
}
/* Moves the fewest of w[n], the heaviest first, that are `most` or weigh `mass` to the front, in no order (quickselect,
   Hoare 1961). Of equal weights the smaller id is first. Returns how many they are, at least 1. */
static int64_t wrpo__select_top(wrpo__weighed *w, int64_t n, int64_t most, double mass) {
    int64_t low = 0, high = n;  /* those before low are in, those from high on are out */
    while (low < high && most > 0 && mass > 0) {
        const int64_t middle = low + (high - low) / 2;
        const wrpo__weighed pivot = w[middle];
        int64_t end = low;
        double sum = 0;
        w[middle] = w[high - 1];
        for (int64_t i = low; i < high - 1; i++) {  /* what outranks the pivot goes to [low, end), and weighs sum */
            const wrpo__weighed x = w[i];
            if (pivot.weight > x.weight || (pivot.weight == x.weight && pivot.id < x.id)) continue;
            sum += (double)x.weight;
            w[i] = w[end];
            w[end++] = x;
        }
        w[high - 1] = w[end];
        w[end] = pivot;
        if (end - low >= most || sum >= mass) high = end;
        else {
            most -= end + 1 - low;
            mass -= sum + (double)pivot.weight;
            low = end + 1;
        }
    }
    return WRPO__MAX(low, 1);
}
static float wrpo__capped(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }
/* A token by u in [0, 1). The weights w[V] are e^((x - max x) / temperature). Of the top_k largest, the fewest that
   have top_p of their sum are kept; the token is the one at u of the sum of those. */
static int32_t wrpo__draw(const float *x, int64_t V, float cap, double temperature, int64_t top_k, double top_p,
                          double u, wrpo__weighed *w) {
    int64_t best = 0, n = 0;
    for (int64_t i = 1; i < V; i++)
        if (x[i] > x[best]) best = i;
    if (temperature < 1e-37) return (int32_t)best;  /* greedy, or its inverse is no float */
    const float scale = (float)(1 / temperature), top = wrpo__capped(x[best], cap);
    for (int64_t i = 0; i < V; i++) w[i] = (wrpo__weighed){expf((wrpo__capped(x[i], cap) - top) * scale), (int32_t)i};
    double total = wrpo__total_weight(w, V), sum = 0;
    const double least = top_k ? 0 : (1 - top_p) * total / (double)V;  /* all below it have less than 1 - top_p */
    for (int64_t i = 0; i < V; i++)
        if ((double)w[i].weight >= least) w[n++] = w[i];
    if (top_k && top_k < n) {
        n = wrpo__select_top(w, n, top_k, INFINITY);
        total = wrpo__total_weight(w, n);
    }
    if (top_p < 1) n = wrpo__select_top(w, n, n, top_p * total);
    total = wrpo__total_weight(w, n);
    for (int64_t i = 0; i < n; i++) {
        sum += (double)w[i].weight;
        if (sum > u * total) return w[i].id;
    }
    return w[n - 1].id;
}

/* ---- text ---- */
static void wrpo__stop_if(wrpo_ctx *ctx, bool go) {
    if (!go) wrpo__fail(ctx, WRPO_E_STOPPED, "stopped by the callback");
}
/* Writes a sample's text, if it is wanted, and shows what is final of it. Until the sample is done, <0xNN> tokens and
   an incomplete character at the end may change. Ids without a token (a padded vocabulary) have no text. */
static void wrpo__draft_text(const wrpo__generation *g, wrpo__draft *d) {
    const wrpo_generate_desc *desc = &g->desc;
    wrpo_tokenizer *tok = desc->tokenizer;
    int32_t *ids = NULL;
    if (!tok || !(desc->on_text || d->done)) return;
    wrpo__block_free(d->text.data);
    d->text = (wrpo__text){.arena = wrpo__current};
    for (int64_t i = 0; i < stbds_arrlen(d->ids) - d->stopped; i++)
        if (d->ids[i] < tok->size && tok->tokens[d->ids[i]].text) stbds_arrput(ids, d->ids[i]);
    while (!d->done && stbds_arrlen(ids)) {
        const wrpo__token *last = &tok->tokens[stbds_arrlast(ids)];
        if (wrpo__byte_token(last->text, last->size) < 0) break;
        (void)stbds_arrpop(ids);
    }
    wrpo__decode(tok, ids, stbds_arrlen(ids), true, &d->text);
    stbds_arrfree(ids);
    const size_t at = d->shown;
    size_t size = d->text.size;
    while (!d->done && size >= 3 && memcmp(d->text.data + size - 3, "\xEF\xBF\xBD", 3) == 0) size -= 3;
    if (!desc->on_text || size <= at) return;
    d->shown = size;
    wrpo__stop_if(g->model->ctx, desc->on_text(d->job->prompt, d->number, d->text.data + at, size - at, desc->user));
}

/* ---- jobs ---- */
static void wrpo__deliver(wrpo__generation *g) {  /* what is done, in the order of the prompts */
    const wrpo_generate_desc *desc = &g->desc;
    for (; stbds_arrlen(g->jobs) && g->jobs[0]->left == 0; g->delivered++) {
        wrpo__job *job = g->jobs[0];
        for (int64_t k = 0; k < desc->n; k++) {
            const wrpo__draft *d = &job->drafts[k];
            g->samples[k] = (wrpo_sample){d->ids, d->logps, stbds_arrlen(d->ids), d->text.data, d->text.size,
                                          d->stopped};
            if (g->answer) wrpo__text_add(g->answer, d->text.data, d->text.size);
        }
        if (desc->on_done) wrpo__stop_if(g->model->ctx, desc->on_done(job->prompt, g->samples, desc->user));
        for (int64_t k = 0; k < desc->n; k++) {
            stbds_arrfree(job->drafts[k].ids);
            stbds_arrfree(job->drafts[k].logps);
            wrpo__block_free(job->drafts[k].text.data);
        }
        wrpo__block_free(job);
        stbds_arrdel(g->jobs, 0);
    }
}
static void wrpo__drawn(wrpo__generation *g, wrpo__draft *d, int32_t id, float logp) {
    wrpo__job *job = d->job;
    if (!isfinite(logp))
        wrpo__fail(g->model->ctx, WRPO_E_NOT_FINITE, "prompt %lld, sample %lld, token %lld: the log-prob is not "
                   "a finite number", (long long)job->prompt, (long long)d->number, (long long)stbds_arrlen(d->ids));
    stbds_arrput(d->ids, id);
    stbds_arrput(d->logps, logp);
    g->tokens++;
    for (int64_t i = 0; i < g->desc.stop_count; i++) d->stopped = d->stopped || g->desc.stop[i] == id;
    d->done = d->stopped || stbds_arrlen(d->ids) == job->limit;
    wrpo__draft_text(g, d);
    if (!d->done) return;
    if (d->slot >= 0) stbds_arrput(g->free_samples, d->slot);
    if (--job->left == 0) stbds_arrput(g->free_prompts, job->slot);
}

/* ---- one step: slots are filled and prompts begun, rows packed and computed, tokens drawn ---- */
/* Longrope and dynamic pick their frequencies by the length of prompt + max_tokens (at most the position limit). */
static void wrpo__pack_job(wrpo__generation *g, wrpo__job *job) {
    wrpo__workspace *r = g->run;
    const wrpo_prompt *p = &g->prompts[job->prompt];
    const int64_t own = job->slot * g->prompt_rows, n = WRPO__MIN(p->count - job->rows, r->shape.rows - r->n);
    const bool last = job->rows + n == p->count;
    if (n <= 0 || (last && r->n_labels + g->desc.n > r->shape.rows)) return;
    wrpo__pack_rotary(r, p->count + job->limit);
    wrpo__pack_rows(r, p->ids + job->rows, n, job->rows, (wrpo_seg){0, 0, own, own, own, own + job->rows + n});
    job->rows += n;
    for (int64_t k = 0; last && k < g->desc.n; k++) {
        g->draws[r->n_labels] = &job->drafts[k];
        wrpo__pack_label(r, r->n - 1, 0);
    }
}
static void wrpo__pack_draft(wrpo__generation *g, wrpo__draft *d) {
    wrpo__workspace *r = g->run;
    const int64_t P = g->prompts[d->job->prompt].count, n = stbds_arrlen(d->ids);
    const int64_t prefix = d->job->slot * g->prompt_rows, first = g->prompt_slots * g->prompt_rows;
    const int64_t own = first + d->slot * g->sample_rows;
    g->draws[r->n_labels] = d;
    wrpo__pack_label(r, r->n, 0);
    wrpo__pack_rotary(r, P + d->job->limit);
    wrpo__pack_rows(r, d->ids + n - 1, 1, P + n - 1, (wrpo_seg){0, 0, prefix, prefix + P, own, own + n});
}
static void wrpo__pack_step(wrpo__generation *g) {
    const int64_t n = g->desc.n;
    int64_t coming = 0;  /* samples of begun prompts that have no slot yet */
    wrpo__pack_begin(g->run);
    for (int64_t i = 0; i < stbds_arrlen(g->jobs); i++)
        for (int64_t k = 0; k < n; k++) {
            wrpo__draft *d = &g->jobs[i]->drafts[k];
            const bool waits = d->slot < 0 && stbds_arrlen(d->ids) > 0;
            if (d->done) continue;
            if (waits && stbds_arrlen(g->free_samples)) d->slot = stbds_arrpop(g->free_samples);
            if (d->slot >= 0) wrpo__pack_draft(g, d);
            else coming++;
        }
    while (g->begun < g->count && coming < stbds_arrlen(g->free_samples) && stbds_arrlen(g->free_prompts)) {
        wrpo__job *job = wrpo__raw(wrpo__current, 1, sizeof *job + (size_t)n * sizeof *job->drafts);
        const int64_t room = g->model->config.max_position_embeddings - g->prompts[g->begun].count;
        *job = (wrpo__job){.prompt = g->begun++, .left = n, .limit = WRPO__MIN(g->sample_rows, room)};
        job->slot = stbds_arrpop(g->free_prompts);
        for (int64_t k = 0; k < n; k++) job->drafts[k] = (wrpo__draft){.job = job, .number = k, .slot = -1};
        stbds_arrput(g->jobs, job);
        coming += n;
    }
    for (int64_t i = 0; i < stbds_arrlen(g->jobs); i++) wrpo__pack_job(g, g->jobs[i]);
    wrpo__pack_end(g->run);
}
static void wrpo__step_ops(void *run) {
    wrpo__workspace *r = run;
    wrpo__trunk(r);
    if (r->n_labels) wrpo__logits(r, 0, WRPO__MIN(r->shape.chunk, r->n_labels));
}
/* The next token of a sample by its row of logits. Every token has a random number of its own. */
static int32_t wrpo__next_token(const wrpo__generation *g, const wrpo__draft *d, const float *x, wrpo__weighed *w) {
    const wrpo_config *c = &g->model->config;
    const wrpo_prompt *p = &g->prompts[d->job->prompt];
    const uint64_t counter = (uint64_t)d->number << 32 | (uint64_t)stbds_arrlen(d->ids);
    const double u = (double)(wrpo__random64(g->desc.seed, p->stream, counter) >> 11) / 0x1p53;
    return wrpo__draw(x, c->vocab_size, (float)c->final_logit_softcapping,
                      p->own_temperature ? p->temperature : g->desc.temperature, g->desc.top_k, g->desc.top_p, u, w);
}
static void wrpo__generate_step(wrpo__generation *g) {
    wrpo__workspace *r = g->run;
    wrpo_ctx *ctx = g->model->ctx;
    const int64_t V = g->model->config.vocab_size, ldl = wrpo__ldl(r->be, V);
    wrpo__pack_step(g);
    /* Steps that only decode, one row a segment, have a key that comes back. What differs is in the backend's memory:
       packing has put it there. */
    const int64_t key[4] = {(int64_t)(uintptr_t)r, r->n, r->n_segs, r->n_labels};
    if (r->be->replay && r->n_segs == r->n) r->be->replay(r->dev, key, wrpo__step_ops, r);
    else wrpo__step_ops(r);
    for (int64_t t = 0; t < r->n_labels; t += r->shape.chunk) {
        const int64_t count = WRPO__MIN(r->shape.chunk, r->n_labels - t);
        if (t) wrpo__logits(r, t, count);
        r->be->get(r->dev, g->logits, r->logits, (size_t)(count * ldl) * sizeof *g->logits);
        wrpo__sync(ctx);
        WRPO__PARFOR((int)WRPO__MIN(ctx->desc.threads, count))
        for (int64_t i = 0; i < count; i++)
            r->h_label_id[t + i] = wrpo__next_token(g, g->draws[t + i], g->logits + i * ldl, g->weights + i * V);
        r->be->put(r->dev, r->label_id + t, r->h_label_id + t, (size_t)count * sizeof *r->h_label_id);
        r->be->logprob(r->dev, r->logp + t, r->label_lse + t, r->logits, ldl, r->label_id + t, count, V,
                       (float)g->model->config.final_logit_softcapping);
    }
    r->be->get(r->dev, r->h_logp, r->logp, (size_t)r->n_labels * sizeof *r->h_logp);
    wrpo__sync(ctx);
    for (int64_t t = 0; t < r->n_labels; t++) wrpo__drawn(g, g->draws[t], r->h_label_id[t], r->h_logp[t]);
    wrpo__deliver(g);
    if (g->desc.on_step) wrpo__stop_if(ctx, g->desc.on_step(g->delivered, g->tokens, g->desc.user));
}

/* ---- memory, and the loop ---- */
static size_t wrpo__room(const wrpo_ctx *ctx) {  /* bytes that may still be taken */
    const size_t limit = ctx->desc.memory_limit;
    const size_t room = ctx->desc.backend->room ? ctx->desc.backend->room(ctx->dev) : SIZE_MAX;
    return limit ? WRPO__MIN(room, limit - WRPO__MIN(limit, ctx->bytes)) : room;
}
static double wrpo__gib(size_t bytes) { return (double)bytes / 0x1p30; }
/* The capacities. If memory is short, fewer samples are computed at once, which changes none of them. */
static wrpo__shape wrpo__generation_shape(wrpo__generation *g) {
    wrpo_ctx *ctx = g->model->ctx;
    const wrpo_config *c = &g->model->config;
    const int64_t wanted = g->desc.batch, n = g->desc.n;
    for (int64_t batch = wanted, piece = ctx->desc.backend->micro_tokens;;) {      /* piece: of a prompt, in a step */
        g->desc.batch = batch;
        g->prompt_slots = WRPO__MIN(g->count, 2 * wrpo__div_up(batch, n) + 1);
        const int64_t prompts = g->prompt_slots * g->prompt_rows;
        wrpo__shape shape = {.rows = batch + WRPO__MAX(n, WRPO__MIN(prompts, piece)),
                             .cache = prompts + batch * g->sample_rows,
                             .positions = g->prompt_rows + g->sample_rows};
        shape.chunk = wrpo__head_chunk(ctx, c, WRPO__MIN(shape.rows, 2 * batch + n));
        wrpo__workspace run = {.layer = NULL};
        wrpo__bump need = {0};
        shape = wrpo__full_shape(shape, g->model);
        wrpo__workspace_layout(ctx, c, &shape, &run, &need);
        const bool possible = shape.cache <= INT32_MAX && !need.overflow;
        const bool fits = possible && need.used <= wrpo__room(ctx);
        if (fits && batch < wanted)
            wrpo__log(ctx, WRPO_LOG_INFO, "memory for %lld samples at once, not %lld", (long long)batch,
                      (long long)wanted);
        if (fits) return shape;
        const bool shorter = piece > 1024;
        if (shorter) piece /= 2;
        else if (batch > 1) batch = (batch + 1) / 2;
        if (shorter || batch < g->desc.batch) continue;
        if (possible && ctx->desc.backend->host && !ctx->desc.memory_limit) return shape;  /* a host may swap */
        wrpo__fail_memory("out of memory: one sample at a time takes %.3f GiB, there are %.3f; want fewer tokens",
                          wrpo__gib(need.used), wrpo__gib(wrpo__room(ctx)));
    }
}
/* The matrices of products, as gemm keeps them: as many as fit into `most` bytes are measured, or laid out and kept. */
static void wrpo__keep_layout(const wrpo__workspace *r, wrpo__bump *room, size_t most) {
    const bool apart = r->model->config.qk_norm;       /* q and k from v, as in >>model */
    const wrpo__linear products[] = {apart ? wrpo__qk : wrpo__qkv, wrpo__o, wrpo__gu, wrpo__down, wrpo__v};
    const wrpo__linear head = {1, WRPO__W_none, WRPO__W_none};
    const int64_t L = r->model->config.num_hidden_layers, each = apart ? 5 : 4;
    for (int64_t p = 0; p <= L * each; p++) {
        const wrpo__linear *lin = p ? &products[(p - 1) % each] : &head;
        const wrpo_weight *w = p ? wrpo__weight(r->model, lin->weight, (p - 1) / each) : wrpo__head(r->model);
        int64_t rows;
        for (int i = 0, end; i < lin->count; i = end) {
            end = wrpo__joined(w, i, lin->count, &rows);
            const size_t bytes = r->be->keep_bytes(r->dev, w[i].dtype, rows, w->cols);
            if (room->used > most || bytes > most - room->used) return;
            void *to = wrpo__take(room, 1, (int64_t)bytes, 1);
            if (to) r->be->keep(r->dev, to, w[i].data, w->cols, w[i].dtype, rows, w->cols);
        }
    }
}
static void wrpo__forget(void *ctx) { ((wrpo_ctx *)ctx)->desc.backend->forget(((wrpo_ctx *)ctx)->dev); }
/* After a few steps weights are kept until the call ends, in no more than half of the free memory. */
static void wrpo__keep_weights(const wrpo__generation *g) {
    enum { AFTER = 8 };
    wrpo_ctx *ctx = g->model->ctx;
    const bool soon_over = g->begun == g->count && g->sample_rows < 4 * AFTER;
    wrpo__bump room = {0};
    if (!ctx->desc.backend->keep || g->steps != AFTER || soon_over) return;
    wrpo__keep_layout(g->run, &room, WRPO__MIN(wrpo__room(ctx), SIZE_MAX / 4) / 2);
    if (!room.used) return;
    const size_t bytes = room.used;
    room = (wrpo__bump){.base = wrpo__device_try(wrpo__current, bytes)};
    if (!room.base) return;
    wrpo__on_free(wrpo__current, wrpo__forget, ctx);
    wrpo__keep_layout(g->run, &room, bytes);
}
static void wrpo__generate(wrpo_model *model, const wrpo_prompt *prompts, int64_t count,
                           const wrpo_generate_desc *desc, wrpo__text *answer) {
    wrpo__arena *arena = wrpo__current;
    wrpo__generation *g = WRPO__NEW(arena, wrpo__generation);
    *g = (wrpo__generation){.model = model, .desc = wrpo_generate_defaults(desc), .prompts = prompts, .count = count,
                            .answer = answer};
    wrpo_generate_desc *d = &g->desc;
    wrpo__generate_check(g);
    if (!d->stop) {
        d->stop = wrpo__stop_tokens(model, d->tokenizer);
        d->stop_count = stbds_arrlen(d->stop);
    }
    if (count == 0) return;
    if (count <= d->batch / d->n) d->batch = count * d->n;
    const wrpo__shape shape = wrpo__generation_shape(g);
    const size_t logits = (size_t)(shape.chunk * wrpo__ldl(model->ctx->desc.backend, model->config.vocab_size));
    g->run = wrpo__workspace_new(arena, model, &shape);
    for (int64_t i = g->prompt_slots; i-- > 0;) stbds_arrput(g->free_prompts, i);
    for (int64_t i = d->batch; i-- > 0;) stbds_arrput(g->free_samples, i);
    g->samples = WRPO__ARRAY(wrpo_sample, d->n);
    g->draws = wrpo__raw(arena, (size_t)shape.rows, sizeof(wrpo__draft *));
    g->logits = wrpo__raw(arena, logits, sizeof *g->logits);
    g->weights = wrpo__raw(arena, logits, sizeof *g->weights);
    for (; g->delivered < count; g->steps++) {
        wrpo__keep_weights(g);
        wrpo__generate_step(g);
    }
}
/* ---- several ranks: in rounds, each computes its prompts, and all get all samples, in the prompts' order ---- */
typedef struct wrpo__sharing { const wrpo_generate_desc *desc; wrpo__text out; int64_t done, tokens; } wrpo__sharing;
static void wrpo__put8(wrpo__text *t, const void *p, size_t n) {  /* in whole words, so that all is aligned */
    wrpo__text_add(t, p, n);
    wrpo__text_add(t, "\0\0\0\0\0\0\0", (8 - n % 8) % 8);
}
static const void *wrpo__take8(const char **p, size_t n) {
    *p += (n + 7) / 8 * 8;
    return *p - (n + 7) / 8 * 8;
}
static bool wrpo__round_done(int64_t prompt, const wrpo_sample *samples, void *user) {
    wrpo__sharing *r = user;
    (void)prompt;
    for (const wrpo_sample *y = samples; y < samples + r->desc->n; y++) {
        wrpo__put8(&r->out, y, sizeof *y);
        wrpo__put8(&r->out, y->ids, (size_t)y->count * sizeof *y->ids);
        wrpo__put8(&r->out, y->logps, (size_t)y->count * sizeof *y->logps);
        if (y->text) wrpo__put8(&r->out, y->text, y->size + 1);
    }
    return true;
}
static bool wrpo__round_step(int64_t prompts, int64_t tokens, void *user) {
    const wrpo__sharing *r = user;
    return !r->desc->on_step || r->desc->on_step(r->done + prompts, r->tokens + tokens, r->desc->user);
}
static void wrpo__generate_all(wrpo_model *model, const wrpo_prompt *prompts, int64_t count,
                               const wrpo_generate_desc *desc) {
    wrpo_ctx *ctx = model->ctx;
    const int R = wrpo__ranks(ctx), rank = wrpo__my_rank(ctx);
    if (R == 1) {
        wrpo__generate(model, prompts, count, desc, NULL);
        return;
    }
    const wrpo_generate_desc d = wrpo_generate_defaults(desc);
    const double numbers[] = {(double)d.n, (double)d.max_tokens, d.temperature, d.top_p, (double)d.top_k};
    uint64_t h = wrpo__hash(d.seed, numbers, sizeof numbers);
    for (int64_t i = 0; i < count; i++)
        h = wrpo__hash(h ^ prompts[i].stream, prompts[i].ids, (size_t)prompts[i].count * sizeof *prompts[i].ids);
    wrpo__same(ctx, "the prompts and the settings of sampling", h);
    wrpo__same_weights(model, "the model's weights");
    WRPO__RANGE(d.n >= 1 && d.batch >= 1, "n, batch", d.n, "at least 1");
    wrpo__arena *outer = wrpo__current, *temp = wrpo__sub_arena(outer);
    wrpo__sharing r = {.desc = &d};
    wrpo_generate_desc own = d;
    own.on_done = wrpo__round_done;
    own.on_step = wrpo__round_step;
    if (count > 1) own.on_text = NULL;
    own.user = &r;
    for (int64_t n; r.done < count; r.done += n) {
        const int64_t each = WRPO__MAX(4 * d.batch / d.n, 1);  /* prompts of a rank in a round */
        wrpo__current = temp;
        n = WRPO__MIN(count - r.done, each * R);
        r.out = (wrpo__text){.arena = temp};
        wrpo_prompt *list = WRPO__ARRAY(wrpo_prompt, each);
        wrpo_sample *y = WRPO__ARRAY(wrpo_sample, d.n);
        int64_t k = 0;
        for (int64_t i = rank; i < n; i += R) list[k++] = prompts[r.done + i];
        wrpo__generate(model, list, k, &own, NULL);
        const char **from = wrpo__all_gather_texts(ctx, &r.out);
        for (int64_t i = 0; i < n; i++) {
            const char **at = &from[i % R];
            for (k = 0; k < d.n; k++) {
                y[k] = *(const wrpo_sample *)wrpo__take8(at, sizeof *y);
                y[k].ids = wrpo__take8(at, (size_t)y[k].count * sizeof *y->ids);
                y[k].logps = wrpo__take8(at, (size_t)y[k].count * sizeof *y->logps);
                if (y[k].text) y[k].text = wrpo__take8(at, y[k].size + 1);
                r.tokens += y[k].count;
            }
            wrpo__stop_if(ctx, !d.on_done || d.on_done(r.done + i, y, d.user));
        }
        wrpo__current = outer;
        wrpo__arena_clear(temp);
    }
}
WRPO_API wrpo_result wrpo_generate(wrpo_model *model, const wrpo_prompt *prompts, int64_t count,
                                   const wrpo_generate_desc *desc) {
    WRPO__ENTRY_ALL(model->ctx, true, wrpo__generate_all(model, prompts, count, desc));
}

/* ---- log-probs of records ---- */
static void wrpo__logprobs_part(wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count,
                                double *logps, float **per_token) {
    const int64_t N = data->stats.records;
    float *tokens = NULL;
    if (first < 0 || count < 0 || first > N || count > N - first)
        wrpo__fail_arg("%lld records from %lld on: the data has %lld", (long long)count, (long long)first,
                       (long long)N);
    wrpo__logprobs(wrpo__current, model, data, NULL, first, count, model->ctx->desc.backend->micro_tokens, logps,
                   data->most, per_token ? &tokens : NULL);
    if (per_token) tokens = wrpo__handout(model->ctx, tokens, (size_t)stbds_arrlen(tokens) * sizeof *tokens);
    wrpo__agree(model->ctx);
    if (per_token) *per_token = tokens;
}
WRPO_API wrpo_result wrpo_logprobs(wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count,
                                   double *logps, float **per_token) {
    if (per_token) *per_token = NULL;
    WRPO__ENTRY_ALL(model->ctx, true, wrpo__logprobs_part(model, data, first, count, logps, per_token));
}

/* ---- hidden states and logits of one sequence of token ids ---- */
/* The hidden states of n rows, from `row` on, as floats. */
static void wrpo__hidden_rows(const wrpo__workspace *r, int64_t row, int64_t n, float *out) {
    const int64_t D = r->model->config.hidden_size;
    r->be->get(r->dev, out, wrpo__at(r->be, r->y, row * D), (size_t)(n * D) * (size_t)r->be->act_bytes);
    for (int64_t i = n * D - 1; r->be->act_bytes == 2 && i >= 0; i--) {  /* bfloat16, in the first half of out */
        uint16_t half;
        memcpy(&half, (const char *)out + 2 * i, sizeof half);
        out[i] = wrpo__float_of(half);
    }
}
static void wrpo__hidden(wrpo_model *model, const int32_t *ids, int64_t count, float *hidden, float *logits) {
    wrpo_ctx *ctx = model->ctx;
    const int64_t V = model->config.vocab_size;
    const float cap = (float)model->config.final_logit_softcapping;
    if (count < 1) wrpo__fail_arg("wrpo_hidden: want at least one token id, found %lld", (long long)count);
    wrpo__check_ids(V, ids, count, "wrpo_hidden: sequence", NULL, 1);
    const wrpo__shape shape = {.rows = count, .chunk = wrpo__head_chunk(ctx, &model->config, count)};
    wrpo__workspace *r = wrpo__workspace_new(wrpo__current, model, &shape);
    wrpo__pack_begin(r);
    wrpo__pack_rotary(r, count);
    wrpo__pack_seg(r, ids, count, 0, 0, 0);
    for (int64_t i = 0; logits && i < count; i++) wrpo__pack_label(r, i, 0);
    wrpo__pack_end(r);
    wrpo__trunk(r);
    if (hidden) wrpo__hidden_rows(r, 0, count, hidden);
    for (int64_t t = 0, n; t < r->n_labels; t += n) {
        n = WRPO__MIN(shape.chunk, r->n_labels - t);
        wrpo__logits(r, t, n);
        const int64_t ldl = wrpo__ldl(r->be, V), rows = ldl == V ? n : 1;  /* at once */
        for (int64_t i = 0; i < n; i += rows)
            r->be->get(r->dev, logits + (t + i) * V, wrpo__logits_at(r, t) + i * ldl,
                       (size_t)(rows * V) * sizeof *logits);
    }
    wrpo__sync(ctx);
    for (int64_t i = 0; logits && cap > 0 && i < count * V; i++) logits[i] = wrpo__capped(logits[i], cap);
}
WRPO_API wrpo_result wrpo_hidden(wrpo_model *model, const int32_t *ids, int64_t count, float *hidden, float *logits) {
    wrpo_ctx *ctx = model->ctx;
    WRPO__ENTRY(ctx, true, wrpo__hidden(model, ids, count, hidden, logits));
}

/* ---- a prompt's text in, the answer's text out ---- */
static void wrpo__answer_prompt(wrpo_model *model, wrpo_tokenizer *tok, const char *prompt,
                                const wrpo_generate_desc *desc, char **answer) {
    wrpo__text text = {.arena = wrpo__current};
    wrpo_json said = {.kind = WRPO_JSON_STRING, .key = "prompt", .key_size = 6, .text = prompt, .size = strlen(prompt)};
    const wrpo_json record = {.kind = WRPO_JSON_OBJECT, .count = 1, .child = &said};
    wrpo_prompt one = {.stream = wrpo__hash(0, prompt, said.size)};
    wrpo_generate_desc d = {0};
    int32_t *ids;
    if (desc) d = *desc;
    d.tokenizer = tok;
    d.n = 1;
    if (tok->ctx != model->ctx) wrpo__fail_arg("wrpo_answer: want a tokenizer of the model's context");
    wrpo__cleanup *owner = wrpo__on_free(wrpo__current, wrpo__block_free, NULL);
    wrpo__rethrow(model->ctx, wrpo_tokenizer_prompt(tok, NULL, &record, &ids, &one.count));
    one.ids = owner->p = ids;
    wrpo__generate(model, &one, 1, &d, &text);
    *answer = wrpo__handout(model->ctx, text.data, text.size);
}
WRPO_API wrpo_result wrpo_answer(wrpo_model *model, wrpo_tokenizer *tok, const char *prompt,
                                 const wrpo_generate_desc *desc, char **answer) {
    *answer = NULL;
    WRPO__ENTRY(model->ctx, true, wrpo__answer_prompt(model, tok, prompt, desc, answer));
}

/* ------------------------------------------------------------------------------------------- >>reward
   Reward models: the trunk of a language model, and a head on a few rows of its last hidden state. The head is computed
   on the host, in double. */
typedef struct wrpo__dense { const float *w, *b; int64_t rows, cols; } wrpo__dense;  /* y = W x + b; b may be NULL */
enum { WRPO__GATE_LAYERS = 16 };
typedef struct wrpo__gate {  /* ArmoRM (Wang et al. 2024): objectives weighed by what the prompt is about */
    wrpo__dense regression, transform, layer[WRPO__GATE_LAYERS];  /* transform: [objectives, objectives], r' M */
    int64_t layers, widest;
    double scale, temperature;
} wrpo__gate;
struct wrpo_reward {
    wrpo_ctx *ctx;
    wrpo__arena *arena, *run_arena;  /* run_arena: of the workspace, which grows */
    wrpo_model *model;
    wrpo_tokenizer *tok;  /* NULL: the directory has none, ids only */
    wrpo__workspace *run;
    wrpo__dense score;  /* the row that is asked for */
    wrpo__gate gate;
    int64_t micro_tokens;
    bool warned;
};
static void wrpo__dense_apply(const wrpo__dense *l, const double *x, double *y) {
    for (int64_t r = 0; r < l->rows; r++) {
        y[r] = l->b ? (double)l->b[r] : 0;
        for (int64_t k = 0; k < l->cols; k++) y[r] += (double)l->w[r * l->cols + k] * x[k];
    }
}
/* last, prompt: the hidden states at the last token and where the answer's header begins. scratch [3 * widest]. */
static double wrpo__gated_score(const wrpo__gate *g, const double *last, const double *prompt, double *scratch) {
    const int64_t n = g->regression.rows;
    double *x = scratch, *y = x + g->widest, *r = y + g->widest, most = -INFINITY, sum = 0, score = 0;
    wrpo__dense_apply(&g->regression, last, r);
    memcpy(x, prompt, (size_t)g->layer[0].cols * sizeof *x);
    for (int64_t l = 0; l < g->layers; l++) {  /* x = the gate's logits of the objectives */
        double *swap = x;
        wrpo__dense_apply(&g->layer[l], x, y);
        for (int64_t k = 0; l + 1 < g->layers && k < g->layer[l].rows; k++) y[k] = y[k] > 0 ? y[k] : 0;
        x = y;
        y = swap;
    }
    for (int64_t j = 0; j < n; j++) most = fmax(most, x[j] / g->temperature);
    for (int64_t j = 0; j < n; j++) {  /* sum_j softmax_j scale (r' M)_j */
        const double weight = exp(x[j] / g->temperature - most);
        double adjusted = 0;
        for (int64_t i = 0; i < n; i++) adjusted += r[i] * (double)g->transform.w[i * n + j];
        score += weight * g->scale * adjusted;
        sum += weight;
    }
    return score / sum;
}

/* ---- load ---- */
/* The tensor `name`, which must have this shape (-1: any number) and this dtype (NULL: one of floats). */
static const wrpo_tensor_info *wrpo__need_tensor(const wrpo_tensors *t, const char *file, const char *name,
                                                 const char *dtype, int ndim, const int64_t *shape) {
    const wrpo_tensor_info *info = wrpo_tensors_find(t, name);
    if (!info) wrpo__fail_format("%s: %s is missing", file, name);
    bool fits = info->ndim == ndim && (!dtype || !strcmp(info->dtype, dtype));
    for (int k = 0; fits && k < ndim; k++) fits = shape[k] < 0 ? info->shape[k] > 0 : info->shape[k] == shape[k];
    if (!fits)
        wrpo__fail_format("%s: %s: want %s %s, found %s %s", info->file, name,
                          dtype ? dtype : "floats (-1: any number)", wrpo__shape_text(ndim, shape), info->dtype,
                          wrpo__shape_text(info->ndim, info->shape));
    if (!dtype) wrpo__need_float(info);
    return info;
}
/* A tensor of the head; rows, cols -1: any number; cols 0: a vector. */
static wrpo__dense wrpo__head_tensor(wrpo_reward *r, const wrpo_tensors *t, const char *name, int64_t rows,
                                     int64_t cols) {
    const int64_t shape[2] = {rows, cols};
    const wrpo_tensor_info *info = wrpo__need_tensor(t, r->model->dir, name, NULL, cols ? 2 : 1, shape);
    float *w = wrpo__raw(r->arena, (size_t)info->count, sizeof *w);
    wrpo__to_finite(w, info, 0, info->count);
    return (wrpo__dense){w, NULL, info->shape[0], cols ? info->shape[1] : 1};
}
static void wrpo__load_gate(wrpo_reward *r, const wrpo_tensors *t) {
    wrpo__gate *g = &r->gate;
    int64_t cols = r->model->config.hidden_size;
    g->regression = wrpo__head_tensor(r, t, "regression_layer.weight", -1, cols);
    g->transform = wrpo__head_tensor(r, t, "reward_transform_matrix", g->regression.rows, g->regression.rows);
    for (;; g->layers++) {
        const char *name = wrpo__format(r->arena, "gating.layers.%lld.weight", (long long)g->layers);
        const char *bias = wrpo__format(r->arena, "gating.layers.%lld.bias", (long long)g->layers);
        wrpo__dense *layer = &g->layer[g->layers];
        if (!wrpo_tensors_find(t, name) && g->layers) break;
        if (g->layers == WRPO__GATE_LAYERS)
            wrpo__fail_unsupported("%s: a gate of more than %d layers is not supported", r->model->dir,
                                   WRPO__GATE_LAYERS);
        *layer = wrpo__head_tensor(r, t, name, -1, cols);
        layer->b = wrpo__head_tensor(r, t, bias, layer->rows, 0).w;
        cols = layer->rows;
        g->widest = WRPO__MAX(g->widest, WRPO__MAX(cols, layer->cols));
    }
    if (cols != g->regression.rows)
        wrpo__fail_format("%s: the gate weighs %lld objectives, regression_layer.weight has %lld", r->model->dir,
                          (long long)cols, (long long)g->regression.rows);
    g->scale = (double)*wrpo__head_tensor(r, t, "gating.logit_scale", 1, 0).w;
    g->temperature = r->model->config.gating_temperature;
}
_Noreturn static void wrpo__label_fail(wrpo__arena *arena, const char *dir, int64_t rows, int64_t label) {
    const wrpo_json *names = wrpo_json_get(wrpo__json_file(arena, wrpo__join(arena, dir, "config.json")), "id2label");
    wrpo__text list = {.arena = arena};
    for (int64_t i = 0; i < WRPO__MIN(rows, 20); i++) {
        const wrpo_json *v = wrpo_json_get(names, wrpo__format(arena, "%lld", (long long)i));
        wrpo__text_puts(&list, wrpo__format(arena, "%s%lld%s%.40s", i ? ", " : "", (long long)i + 1, v ? " " : "",
                                            v && v->kind == WRPO_JSON_STRING ? v->text : ""));
    }
    const char *found = label ? wrpo__format(arena, "%lld", (long long)label) : "none";
    wrpo__fail_arg("%s: score.weight has %lld rows: want the reward's as label (--label), one of %s; found %s", dir,
                   (long long)rows, list.data, found);
}
static wrpo_reward *wrpo__reward_load(wrpo__arena *arena, const wrpo_reward_desc *desc) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo_config c;
    wrpo_reward *r = WRPO__NEW(arena, wrpo_reward);
    if (!desc || !desc->dir) wrpo__fail_arg("wrpo_reward_desc: dir is missing");
    const char *dir = desc->dir, *adapter = desc->adapter;
    const int64_t label = desc->label;
    WRPO__RANGE(desc->micro_tokens >= 0, "micro_tokens", desc->micro_tokens, "at least 1");
    *r = (wrpo_reward){.ctx = ctx, .arena = arena, .run_arena = wrpo__sub_arena(arena),
                       .micro_tokens = desc->micro_tokens ? desc->micro_tokens : ctx->desc.backend->micro_tokens};
    wrpo__config_read(arena, dir, &c);
    if (!adapter && wrpo__exists(wrpo__join(arena, dir, WRPO__ADAPTER_CONFIG))) adapter = dir;
    const bool by_adapter = adapter && (c.head == WRPO_HEAD_LM || c.head == WRPO_HEAD_SCORE);
    wrpo__arena *files = wrpo__sub_arena(arena);
    const wrpo_tensors *t = NULL;
    const char *score = WRPO__ADAPTER_SCORE;
    if (by_adapter) t = wrpo__tensors_new(files, wrpo__join(arena, adapter, WRPO__ADAPTER_FILE));
    if (!t || !wrpo_tensors_find(t, score)) {
        if (c.head == WRPO_HEAD_LM)
            wrpo__fail_unsupported("%s: a language model has no reward head: want architectures of sequence "
                                   "classification or of a reward model, or an adapter with score.weight", dir);
        t = wrpo__tensors_new(files, dir);
        score = "score.weight";
    }
    r->model = wrpo__model_from(arena, &(wrpo_model_desc){.dir = dir, .adapter = desc->adapter, .frozen = true}, true);
    c.head = r->model->config.head;
    if (wrpo__exists(wrpo__join(arena, dir, "tokenizer.json"))) r->tok = wrpo__tokenizer_load(arena, dir);
    if (c.head == WRPO_HEAD_GATED) wrpo__load_gate(r, t);
    else if (c.head == WRPO_HEAD_VALUE) r->score = wrpo__head_tensor(r, t, "v_head.weight", 1, c.hidden_size);
    else {
        r->score = wrpo__head_tensor(r, t, score, -1, c.hidden_size);
        if (label < 0 || label > r->score.rows || (!label && r->score.rows > 1))
            wrpo__label_fail(arena, dir, r->score.rows, label);
        r->score.w += WRPO__MAX(label - 1, 0) * c.hidden_size;
        r->score.rows = 1;
    }
    if (c.head != WRPO_HEAD_SCORE && label) wrpo__fail_arg("label: %s has one reward only", dir);
    wrpo__arena_clear(files);
    return r;
}
WRPO_API wrpo_result wrpo_reward_load(wrpo_ctx *ctx, const wrpo_reward_desc *desc, wrpo_reward **out) {
    *out = NULL;
    WRPO__ENTRY(ctx, false, *out = wrpo__reward_load(wrpo__current, desc));
}
WRPO_API void wrpo_reward_free(wrpo_reward *reward) { if (reward) wrpo__arena_free(reward->arena); }
WRPO_API const wrpo_config *wrpo_reward_config(const wrpo_reward *reward) { return &reward->model->config; }

/* ---- score ---- */
typedef struct wrpo__conversation {
    const int32_t *ids; int64_t count;
    int64_t rows[2];  /* that the head looks at: tokens of ids, then rows of the run */
} wrpo__conversation;
/* Finds the tokens that the head looks at: the last one, by the rule of the model's code, and for a gate where the last
   answer's header begins, <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n of Llama 3. false: none. */
static bool wrpo__pooled(const wrpo_config *c, wrpo__conversation *y) {
    static const int32_t want[] = {128009, 128006, 78191, 128007, 271};
    int64_t last = y->count - 1, header = 0;
    if (c->head == WRPO_HEAD_SCORE)
        while (last > 0 && y->ids[last] == c->pad_token_id) last--;
    if (c->head == WRPO_HEAD_GATED) {
        int64_t pad = 0;
        while (pad < y->count && y->ids[pad] != c->pad_token_id) pad++;
        last = (pad ? pad : y->count) - 1;
        header = y->count - WRPO__COUNT(want);
        while (header >= 0 && memcmp(y->ids + header, want, sizeof want)) header--;
    }
    y->rows[0] = last;
    y->rows[1] = header;
    return header >= 0;
}
/* Scores as many of list[n] from `first` on as fit, at least one. Returns where it stopped. They share their first
   P tokens, and each has more. */
static int64_t wrpo__score_some(wrpo_reward *w, wrpo__conversation *list, int64_t first, int64_t n, int64_t P,
                                double *rewards) {
    const wrpo_config *c = &w->model->config;
    const int64_t D = c->hidden_size;
    int64_t rows = P, end = first;
    for (; end < n; end++) {
        const int64_t more = list[end].count - P;
        if (end > first && rows + more > w->micro_tokens) break;
        rows += more;
    }
    if (!w->run || w->run->shape.rows < rows) {
        w->run = NULL;
        wrpo__arena_clear(w->run_arena);
        w->run = wrpo__workspace_new(w->run_arena, w->model, &(wrpo__shape){.rows = rows});
    }
    float *row = WRPO__ARRAY(float, D);
    double *hidden = WRPO__ARRAY(double, 2 * D), *scratch = WRPO__ARRAY(double, 3 * w->gate.widest);
    wrpo__pack_begin(w->run);
    for (wrpo__conversation *y = list + first; y < list + end; y++) {
        wrpo__pack_rotary(w->run, y->count);
        if (P && y == list + first) wrpo__pack_seg(w->run, y->ids, P, 0, 0, 0);
        if (!wrpo__pooled(c, y))
            wrpo__fail_format("conversation %lld: want the header of an assistant's answer, which the gate of this "
                              "reward model looks for, found none", (long long)(y - list) + 1);
        for (int i = 0; i < 2; i++)
            if (y->rows[i] >= P) y->rows[i] += w->run->n - P;
        wrpo__pack_seg(w->run, y->ids + P, y->count - P, P, 0, P);
    }
    wrpo__pack_end(w->run);
    wrpo__trunk(w->run);
    for (int64_t k = first; k < end; k++) {
        for (int i = 0; i < 2; i++) {
            wrpo__hidden_rows(w->run, list[k].rows[i], 1, row);
            for (int64_t d = 0; d < D; d++) hidden[i * D + d] = (double)row[d];
        }
        if (c->head == WRPO_HEAD_GATED) rewards[k] = wrpo__gated_score(&w->gate, hidden, hidden + D, scratch);
        else wrpo__dense_apply(&w->score, hidden, &rewards[k]);
        if (!isfinite(rewards[k]))
            wrpo__fail(w->ctx, WRPO_E_NOT_FINITE, "conversation %lld: the reward is not a finite number",
                       (long long)k + 1);
    }
    wrpo__sync(w->ctx);
    return end;
}
static void wrpo__score_ids(wrpo_reward *w, const int32_t *const *ids, const int64_t *counts, int64_t n,
                            double *rewards) {
    const wrpo_config *c = &w->model->config;
    wrpo__conversation *list = WRPO__ARRAY(wrpo__conversation, n);
    int64_t shared = INT64_MAX;  /* that many first tokens, and their angles, are the same in all */
    for (int64_t k = 0; k < n; k++) {
        int64_t count = counts[k], same = 0;
        const int32_t *own = ids[k];
        if (count < 1) wrpo__fail_arg("conversation %lld: want at least one token, found none", (long long)k + 1);
        wrpo__check_ids(c->vocab_size, own, count, "conversation", NULL, k + 1);
        if (c->head == WRPO_HEAD_VALUE && own[count - 1] != c->reward_token_id) {
            int32_t *longer = WRPO__ARRAY(int32_t, count + 1);
            memcpy(longer, own, (size_t)count * sizeof *longer);
            longer[count++] = (int32_t)c->reward_token_id;
            own = longer;
        }
        if (count > c->max_position_embeddings && !w->warned) {
            wrpo__warn("a conversation of %lld tokens is longer than the reward model's max_position_embeddings %lld",
                       (long long)count, (long long)c->max_position_embeddings);
            w->warned = true;
        }
        list[k] = (wrpo__conversation){.ids = own, .count = count};
        if (wrpo__rope_key(c, count) != wrpo__rope_key(c, list[0].count)) shared = 0;
        while (same < shared && same < count - 1 && own[same] == list[0].ids[same]) same++;
        shared = same;
    }
    for (int64_t at = 0; at < n;) at = wrpo__score_some(w, list, at, n, shared, rewards);
}
WRPO_API wrpo_result wrpo_reward_score_ids(wrpo_reward *reward, const int32_t *const *ids, const int64_t *counts,
                                           int64_t n, double *rewards) {
    WRPO__ENTRY(reward->ctx, true, wrpo__score_ids(reward, ids, counts, n, rewards));
}
/* answers[n]: strings. Errors name the line and record of in. */
static void wrpo__score_answers(wrpo_reward *w, wrpo__reading *in, const wrpo_json *prompt, const wrpo_json *answers,
                                int64_t n, double *rewards) {
    if (!w->tok) wrpo__fail_io("%s: tokenizer.json: want it to score texts, found none", w->model->dir);
    in->prompt = wrpo__messages(prompt, "user");
    if (in->root) wrpo__put_system(in);
    int32_t **ids = WRPO__ARRAY(int32_t *, n);
    int64_t *counts = WRPO__ARRAY(int64_t, n);
    in->tok = w->tok;
    for (int64_t k = 0; k < n; k++) {
        const wrpo__text text = wrpo__render(in, in->prompt, wrpo__message_of("assistant", &answers[k]), false);
        wrpo__encode(w->tok, text.data, text.size, 0, &ids[k]);
        counts[k] = stbds_arrlen(ids[k]);
    }
    wrpo__score_ids(w, (const int32_t *const *)ids, counts, n, rewards);
}
static void wrpo__reward_score(wrpo_reward *reward, const wrpo_json *prompt, const char *const *answers, int64_t n,
                               double *rewards) {
    wrpo__reading in = {.ctx = reward->ctx, .desc.path = "wrpo_reward_score", .id = "prompt", .line = prompt->line};
    wrpo_json *texts = WRPO__ARRAY(wrpo_json, n);
    for (int64_t k = 0; k < n; k++) texts[k] = wrpo__json_of(WRPO_JSON_STRING, answers[k]);
    wrpo__score_answers(reward, &in, prompt, texts, n, rewards);
}
WRPO_API wrpo_result wrpo_reward_score(wrpo_reward *reward, const wrpo_json *prompt, const char *const *answers,
                                       int64_t n, double *rewards) {
    WRPO__ENTRY(reward->ctx, true, wrpo__reward_score(reward, prompt, answers, n, rewards));
}

/* ---- a file of candidates ---- */
enum { WRPO__SOURCES, WRPO__TARGETS };
static const char *const wrpo__lists[] = {"sources", "target"};  /* of responses, in a line */
static void wrpo__set_reward(wrpo_json *entry, double reward) {
    wrpo_json *m = entry->child;
    while (m && strcmp(m->key, "reward")) m = m->next;
    if (!m) m = wrpo__json_add(entry, "reward", WRPO_JSON_NUMBER, "");
    m->kind = WRPO_JSON_NUMBER;
    m->text = wrpo__number_text(reward);
    m->size = strlen(m->text);
}
static void wrpo__write_line(wrpo__writer *w, const wrpo_json *line) {
    wrpo__text text = {.arena = wrpo__current};
    wrpo__json_write(&text, line);
    wrpo__text_puts(&text, "\n");
    wrpo__write(w, text.data, text.size);
}
typedef struct wrpo__scoring {
    wrpo_reward *reward; bool rescore;
    wrpo__reading in;
    wrpo__text out;  /* of every line: how many rewards are new and kept, the new ones, its text */
} wrpo__scoring;
static void wrpo__score_text(wrpo__scoring *s, const char *line, size_t size) {
    const char *path = s->in.desc.path;
    wrpo_json **list = NULL, *texts = NULL;  /* stb arrays: responses, and the texts of list[0..n), which are scored */
    s->in.id = wrpo__format(wrpo__current, "line %lld", (long long)s->in.line);
    wrpo_json *root = wrpo__json_parse(wrpo__current, path, s->in.line, line, size);
    wrpo__read_head(&s->in, root);
    const bool alone = wrpo__present(root, "content");
    if (alone) stbds_arrput(list, root);
    for (int k = 0; k < 2 && !alone; k++) {
        const wrpo_json *all = wrpo__maybe(root, wrpo__lists[k], WRPO_JSON_ARRAY);
        for (wrpo_json *v = all ? all->child : NULL; v; v = v->next) stbds_arrput(list, v);
    }
    const int64_t all = stbds_arrlen(list);
    if (!all)
        wrpo__wrong(root, "want responses in \"sources\" or \"target\", or a \"content\", found none");
    for (int64_t i = 0; i < all; i++) {
        const wrpo_json *content = wrpo__need(list[i], "content", WRPO_JSON_STRING);
        const wrpo_json *reward = wrpo__present(list[i], "reward");
        if (reward) wrpo__real(reward, NULL);
        if (reward && !s->rescore) continue;
        list[stbds_arrlen(texts)] = list[i];
        stbds_arrput(texts, *content);
    }
    const int64_t n = stbds_arrlen(texts);
    double *rewards = WRPO__ARRAY(double, n);
    const wrpo_json *prompt = wrpo__present(root, "prompt");
    if (n && !prompt)
        wrpo__wrong(root, "prompt: want a string, a message or an array of messages, found none");
    if (n) wrpo__score_answers(s->reward, &s->in, prompt, texts, n, rewards);
    for (int64_t k = 0; k < n; k++) wrpo__set_reward(list[k], rewards[k]);
    wrpo__text text = {.arena = wrpo__current};
    wrpo__json_write(&text, root);
    const int64_t head[3] = {n, all - n, (int64_t)text.size};
    wrpo__put8(&s->out, head, sizeof head);
    wrpo__put8(&s->out, rewards, (size_t)n * sizeof *rewards);
    wrpo__put8(&s->out, text.data, text.size);
}
static wrpo_result wrpo__score_line(wrpo__scoring *s, const char *text, size_t n) {
    WRPO__RECORD_ENTRY(&s->in, wrpo__score_text(s, text, n));
}
static void wrpo__reward_file(wrpo_reward *reward, const wrpo_reward_file_desc *desc, wrpo_reward_file_stats *stats) {
    wrpo_ctx *ctx = reward->ctx;
    int64_t lines = 0, done = 0;
    if (!desc || !desc->in || !desc->out) wrpo__fail_arg("wrpo_reward_file_desc: want in and out, found NULL");
    const wrpo__file *f = wrpo__open_file(wrpo__current, desc->in);
    wrpo__scoring s = {.reward = reward, .rescore = desc->rescore,
                       .in = {.ctx = ctx, .desc.path = desc->in}};
    wrpo__writer *w = wrpo__create(wrpo__current, desc->out);
    wrpo__arena *outer = wrpo__current, *temp = wrpo__sub_arena(outer);
    const int64_t R = wrpo__ranks(ctx), round = R == 1 ? 1 : 16 * R;
    if (R > 1) {
        wrpo__same(ctx, desc->in, wrpo__hash(desc->rescore, f->data, f->size));
        wrpo__same_weights(reward->model, "the model's weights");
    }
    for (wrpo__lines l = {.file = f}; wrpo__next_line(&l);) lines++;
    if (!lines) wrpo__fail_format("%s: want lines of candidates, found none", desc->in);
    for (wrpo__lines l = {.file = f}; done < lines;) {  /* in rounds: the ranks take lines in turn, all get all */
        const int64_t end = WRPO__MIN(lines, done + round);
        wrpo__current = temp;
        s.out = (wrpo__text){.arena = temp};
        for (int64_t i = done; i < end; i++) {
            wrpo__next_line(&l);
            s.in.line = l.number;
            if (i % R == wrpo__my_rank(ctx)) wrpo__rethrow(ctx, wrpo__score_line(&s, l.text, l.size));
        }
        const char **from = wrpo__all_gather_texts(ctx, &s.out);
        while (done < end) {
            const char **at = &from[done++ % R];
            const int64_t *head = wrpo__take8(at, 3 * sizeof *head);
            const double *rewards = wrpo__take8(at, (size_t)head[0] * sizeof *rewards);
            for (int64_t k = 0; k < head[0]; k++) {
                stats->mean += rewards[k];
                stats->least = fmin(stats->least, rewards[k]);
                stats->most = fmax(stats->most, rewards[k]);
            }
            stats->prompts++;
            stats->scored += head[0];
            stats->kept += head[1];
            wrpo__write(w, wrpo__take8(at, (size_t)head[2]), (size_t)head[2]);
            wrpo__write(w, "\n", 1);
            if (desc->on_line && !desc->on_line(done, lines, desc->user))
                wrpo__fail(ctx, WRPO_E_STOPPED, "%s: stopped after %lld of %lld lines", desc->in, (long long)done,
                           (long long)lines);
        }
        wrpo__current = outer;
        wrpo__arena_clear(temp);
    }
    wrpo__commit(w);
    stats->mean /= (double)stats->scored;  /* NaN: none */
}
WRPO_API wrpo_result wrpo_reward_file(wrpo_reward *reward, const wrpo_reward_file_desc *desc,
                                      wrpo_reward_file_stats *out) {
    *out = (wrpo_reward_file_stats){.least = NAN, .most = NAN};
    WRPO__ENTRY_ALL(reward->ctx, true, wrpo__reward_file(reward, desc, out));
}

/* ---------------------------------------------------------------------------------------------- >>run
   A run with files: the memory plan, the reference's cache, the state that a run goes on from, metrics, the loop. */

/* ---- memory of a run: measured, and fitted into what there is ---- */
/* Fills in what a run takes of the backend's memory beside its weights, and what it recomputes. */
static void wrpo__measure(const wrpo_model *model, wrpo_moments moments, wrpo__shape shape, wrpo_bytes *out) {
    wrpo__workspace run = {0};
    wrpo__bump b = {0};
    shape = wrpo__full_shape(shape, model);
    wrpo__workspace_layout(model->ctx, &model->config, &shape, &run, &b);
    if (b.overflow)
        wrpo__fail_memory("out of memory: %lld rows of this model do not fit into the address space",
                          (long long)shape.rows);
    const wrpo__sharding split = wrpo__sharding_of(model->ctx, model->count, moments);
    out->parameters = wrpo_model_parameters(model);
    out->gradients = split.gradients + split.moving;
    out->moments = 2 * split.moments;
    out->head = run.head_bytes;
    out->activations = run.bytes - run.head_bytes + run.host.used;
    out->device = out->gradients + out->moments + run.bytes;
    out->recompute = shape.recompute;
    out->logits = shape.frozen_head || wrpo__span(&shape) >= shape.rows;
}
/* Finds the least recomputation with which the run fits into `room`; recompute other than 0 fixes it. false: none
   does. */
static bool wrpo__fit(const wrpo_model *model, wrpo_moments moments, int64_t recompute, int64_t rows, size_t room,
                      wrpo_bytes *out) {
    const wrpo_config *c = &model->config;
    const bool addressable = (uint64_t)rows < SIZE_MAX / 16 / (uint64_t)c->vocab_size;  /* all logits */
    wrpo__shape shape = wrpo__train_shape(model->ctx, c, recompute, recompute == 0 && addressable, rows);
    do wrpo__measure(model, moments, shape, out);
    while (out->device > room && !recompute && wrpo__keep_less(&shape, c->num_hidden_layers));
    return out->device <= room;
}
static void wrpo__train_bytes(wrpo_ctx *ctx, const wrpo_config *config, const wrpo_data *data,
                              const wrpo_train_desc *desc, const wrpo_adapter_desc *adapter, wrpo_bytes *out) {
    const wrpo_train_desc d = wrpo_train_defaults(ctx, desc);
    wrpo__bump weights = {0};
    wrpo__config_check(config);
    wrpo__train_check(&d);
    const bool mapped = adapter && ctx->desc.backend->host;
    wrpo_model *table = wrpo__model_table(wrpo__current, config, mapped ? config->dtype : ctx->desc.dtype);
    if (adapter) {
        table->frozen = true;
        wrpo__adapter_begin(table, adapter);
    }
    wrpo__place_weights(table, &weights);
    out->weights = weights.used;
    if (wrpo__has_masters(ctx, false)) out->weights += (size_t)wrpo__shard(ctx, table->count) * sizeof *table->low;
    const int64_t rows = data ? wrpo__workspace_rows(config, data, 0, wrpo_data_count(data), d.micro_tokens)
                              : d.micro_tokens;
    const size_t held = WRPO__MIN(ctx->device_bytes, out->weights), free = wrpo__room(ctx);  /* held: loaded ones */
    out->room = free < SIZE_MAX - held ? free + held : SIZE_MAX;
    const size_t room = out->room > out->weights ? out->room - out->weights : 0;
    wrpo__fit(table, d.moments, d.recompute, rows, room, out);
    out->device += out->weights;
    if (data) {
        const wrpo_data_stats s = data->stats;
        const size_t record = 64 + 4 * sizeof(wrpo_tokens) + 3 * sizeof(double);
        out->data = (size_t)(s.prompt_tokens + s.response_tokens) * sizeof(int32_t) + (size_t)s.records * record;
    }
    out->total = out->weights + out->gradients + out->moments + out->activations + out->head + out->data;
}
WRPO_API wrpo_result wrpo_train_bytes(wrpo_ctx *ctx, const wrpo_config *config, const wrpo_data *data,
                                      const wrpo_train_desc *desc, const wrpo_adapter_desc *adapter, wrpo_bytes *out) {
    *out = (wrpo_bytes){0};
    WRPO__ENTRY(ctx, true, wrpo__train_bytes(ctx, config, data, desc, adapter, out));
}
/* What would fit: first other moments, then fewer rows at once. */
static const char *wrpo__would_fit(const wrpo_trainer *t, size_t room) {
    const wrpo_config *c = &t->model->config;
    const wrpo__set *sets[2] = {&t->train, &t->eval};
    int64_t least = 1;  /* the longest record */
    for (int i = 0; i < 2; i++)
        if (sets[i]->data) least = WRPO__MAX(least, wrpo__workspace_rows(c, sets[i]->data, 0, sets[i]->N, 1));
    wrpo_bytes need;
    for (int64_t n = t->rows, last = 0; n != last; last = n, n = WRPO__MAX(least, n / 2))
        for (int i = (int)t->desc.moments; wrpo_moments_name(i); i++)
            if (wrpo__fit(t->model, (wrpo_moments)i, 0, n, room, &need))
                return wrpo__format(wrpo__current, "it would fit with moments in %s, %lld micro tokens and %lld of "
                                    "%lld layers recomputed", wrpo_moments_name(i), (long long)n,
                                    (long long)need.recompute, (long long)c->num_hidden_layers);
    return "nothing that can be set makes it fit";
}
/* What a run takes and recomputes, or an error that says what would fit. Only the weights are in memory yet. */
static wrpo_bytes wrpo__fitted(const wrpo_trainer *t) {
    const size_t free = wrpo__room(t->ctx), mapped = t->model->mapped;  /* which shall stay in memory too */
    const size_t room = free > mapped ? free - mapped : 0;
    const bool host = t->ctx->desc.backend->host, swaps = host && !t->ctx->desc.memory_limit;
    wrpo_bytes need;
    if (wrpo__fit(t->model, t->desc.moments, t->desc.recompute, t->rows, room, &need) || swaps) return need;
    wrpo__fail_memory("out of memory: besides its weights the run takes %.3f GiB, %s %.3f GiB left; %s",
                      wrpo__gib(need.device), host ? "its limit has" : "the device has", wrpo__gib(room),
                      wrpo__would_fit(t, room));
}

/* ---- the reference: log-probs [N, K], computed once, kept in a file under a name that tells model and data ---- */
static const char *wrpo__adapter_text(const wrpo_model *model) {
    const wrpo__lora *lora = model->lora;
    uint64_t h = 0;
    if (!lora) return "none";
    for (int64_t i = 0; i < model->config.num_hidden_layers * WRPO__KINDS; i++) {
        const double numbers[2] = {(double)lora->of[i].rank, (double)lora->of[i].scale};
        h = wrpo__hash(h, numbers, sizeof numbers);
    }
    return wrpo__format(wrpo__current, "r %lld, alpha %g%s, dropout %g, layers and ranks %016llx",
                        (long long)lora->desc.r, lora->desc.alpha, lora->desc.rslora ? " rslora" : "",
                        lora->desc.dropout, (unsigned long long)h);
}
/* What tells the model of an adapter from others: the first elements of each of its weights. */
static const char *wrpo__base_text(const wrpo_model *model) {
    uint64_t h = 0;
    float piece[256];
    for (const wrpo_weight *w = model->weights; w < model->weights + model->n_weights && w->at < 0; w++) {
        const int64_t n = WRPO__MIN(wrpo__size(w), WRPO__COUNT(piece));
        wrpo__weight_get(model, w, 0, n, piece);
        h = wrpo__hash(h, piece, (size_t)n * sizeof *piece);
    }
    return wrpo__format(wrpo__current, "%016llx", (unsigned long long)h);
}
static uint64_t wrpo__fingerprint(const wrpo_model *model, const wrpo_data *data) {
    const char *adapter = wrpo__adapter_text(model);  /* its scales */
    uint64_t h = wrpo__config_hash(model->ctx, &model->config);
    if (model->lora) h = wrpo__hash(h, adapter, strlen(adapter));
    return wrpo__data_hash(wrpo__weights_hash(model, h), data);
}
/* A cache that is there and whole fills set->ref; anything else is made anew. */
static bool wrpo__reference_read(wrpo_ctx *ctx, const char *path, const wrpo__set *set) {
    wrpo_json *root;
    double *to = set->ref;
    if (!wrpo__disk_exists(path)) return false;
    const wrpo__file *f = wrpo__disk_open(wrpo__current, path);
    if (wrpo_json_parse(ctx, path, (const char *)f->data, f->size, &root) != WRPO_OK) return false;
    const bool whole = root->kind == WRPO_JSON_ARRAY && root->count == set->N * set->K;
    WRPO__EACH(v, whole ? root : NULL)
        *to++ = v->kind == WRPO_JSON_NUMBER ? v->number : NAN;
    wrpo_json_free(ctx, root);
    return whole;
}
static void wrpo__reference_write(const wrpo__set *set, const char *path) {  /* an array, a line a record */
    wrpo__text text = {.arena = wrpo__current};
    for (int64_t k = 0; k < set->N * set->K; k++) {
        const char *before = k % set->K ? "," : ",\n";
        wrpo__text_puts(&text, k ? before : "[");
        wrpo__json_number(&text, set->ref[k]);
    }
    wrpo__text_puts(&text, "]\n");
    wrpo__publish(wrpo__write_whole(wrpo__current, path, text.data, text.size));
}
static void wrpo__reference_known(wrpo_trainer *t) {
    if (t->reference_path) wrpo__reference_write(&t->train, t->reference_path);
    t->reference_known = NULL;
}
/* Fills in ref of both sets: from the caches in out_dir, or by running the reference, and then it writes the caches.
   once: nobody else sees the policy before step 1. Where it is the reference, and step 1 computes the very same
   log-probs of its records, with this rank alone and without dropout, they are not computed twice. A model of ref_dir
   is freed with the current arena. */
static void wrpo__reference(wrpo_trainer *t, bool once) {
    const wrpo__set *sets[2] = {&t->train, &t->eval};
    const wrpo_model_desc desc = {.dir = t->desc.ref_dir, .frozen = true};
    wrpo_model *ref = desc.dir ? wrpo__model_from(wrpo__current, &desc, false) : t->model;
    const bool drops = t->model->lora && t->model->lora->desc.dropout > 0;
    if (desc.dir) wrpo__same_weights(ref, "the reference's weights");
    for (int i = 0; i < 2; i++) {
        const wrpo__set *set = sets[i];
        const bool later = once && i == 0 && ref == t->model && !t->desc.resume && !drops &&
            t->ctx->desc.backend->host && wrpo__ranks(t->ctx) == 1;
        const char *path = NULL;
        if (!set->ref) continue;
        if (t->out_dir)
            path = wrpo__format(wrpo__current, "%s/reference_logps-%016llx.json", t->out_dir,
                                (unsigned long long)wrpo__fingerprint(ref, set->data));
        if (wrpo__most(t->ctx, path && !wrpo__my_rank(t->ctx) && wrpo__reference_read(t->ctx, path, set))) {
            wrpo__broadcast(t->ctx, set->ref, (size_t)(set->N * set->K) * sizeof *set->ref, 0);
            wrpo__log(t->ctx, WRPO_LOG_INFO, "reference log-probs read from %s", path);
            continue;
        }
        wrpo__set_reference(wrpo__current, t, set, ref, later);
        if (later) {
            t->reference_known = wrpo__reference_known;
            t->reference_path = path ? wrpo__strndup(t->arena, path, strlen(path)) : NULL;
        } else if (path) wrpo__reference_write(set, path);
    }
}

/* ---- the state of a run on disk: all that the next step depends on, in one file ----
   The weights are in it too, since those beside it may be rounded. The order of records, alpha, the rate and the random
   rounding follow from the step. Its name keeps loaders that read every *.safetensors of a directory away from it. */
enum { WRPO__STATE_FORMAT = 2 };  /* goes up when earlier states can no longer be read; format 1 had no number */
enum { WRPO__SAID = 3 };  /* the last settings of the file say where the run is */
typedef struct wrpo__setting {
    const char *name, *text;
    enum { WRPO__AS_NUMBER, WRPO__AS_WORD, WRPO__AS_BOOL } kind;  /* in JSON */
} wrpo__setting;
static const char *wrpo__reference_text(const wrpo_trainer *t) {
    const wrpo__set *sets[2] = {&t->train, &t->eval};
    uint64_t h = 0;
    for (int i = 0; i < 2; i++)
        if (sets[i]->ref) h = wrpo__hash(h, sets[i]->ref, (size_t)(sets[i]->N * sets[i]->K) * sizeof(double));
    return wrpo__format(wrpo__current, "log-probs %016llx", (unsigned long long)h);
}
static const char *wrpo__set_text(const wrpo__set *set) {
    if (!set->data) return "none";
    const unsigned long long h = wrpo__data_hash(0, set->data);
    return wrpo__format(wrpo__current, "%lld records, %016llx", (long long)set->N, h);
}
/* The date that the chat template showed in the run's data; NULL: none. */
static const char *wrpo__run_date(const wrpo_trainer *t) {
    return t->train.data->date ? t->train.data->date : t->eval.data ? t->eval.data->date : NULL;
}
static void wrpo__add_settings(wrpo__setting **list, const wrpo__setting *table, int64_t n) {  /* NULL: no such one */
    for (int64_t i = 0; i < n; i++)
        if (table[i].name) stbds_arrput(*list, table[i]);
}
/* What a desc says of the numbers of a run; all: what a run that goes on may change too. */
static void wrpo__desc_settings(wrpo__setting **list, const wrpo_train_desc *d, bool all) {
    const wrpo__setting table[] = {
        {"method", wrpo_method_name((int)d->loss.method), WRPO__AS_WORD},
        {"pair", wrpo_pair_name((int)d->loss.pair), WRPO__AS_WORD},
        {"beta", wrpo__number_text(d->loss.beta), WRPO__AS_NUMBER},
        {"label_smoothing", wrpo__number_text(d->loss.label_smoothing), WRPO__AS_NUMBER},
        {"gamma_ratio", wrpo__number_text(d->loss.gamma_ratio), WRPO__AS_NUMBER},
        {"ipo_sum", wrpo__number_text(d->loss.ipo_sum), WRPO__AS_BOOL},
        {"fusion", wrpo_fusion_name((int)d->loss.fusion), WRPO__AS_WORD},
        {"sft_weight", wrpo__number_text(d->loss.sft_weight), WRPO__AS_NUMBER},
        {"alpha_schedule", wrpo_alpha_schedule_name((int)d->alpha_schedule), WRPO__AS_WORD},
        {"lr_schedule", wrpo_lr_schedule_name((int)d->lr_schedule), WRPO__AS_WORD},
        {"moments", wrpo_moments_name((int)d->moments), WRPO__AS_WORD},
#define WRPO__X(field, otherwise, valid, want, same) \
        {all || same ? #field : NULL, wrpo__number_text((double)d->field), WRPO__AS_NUMBER},
        WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    };
    wrpo__add_settings(list, table, WRPO__COUNT(table));
}
/* What the file says of the run. All but the last ones must be the same in a run that goes on. An stb_ds array. */
static wrpo__setting *wrpo__state_settings(const wrpo_trainer *t) {
    wrpo__arena *temp = wrpo__current;
    const wrpo_train_desc *d = &t->desc;
    const unsigned long long config = wrpo__config_hash(t->ctx, &t->model->config);
    const wrpo__setting machine[] = {
        {"state_format", wrpo__number_text(WRPO__STATE_FORMAT), 0},
        {"backend", t->ctx->desc.backend->name, 0},
        {"dtype", wrpo__dtype_name(t->ctx->desc.dtype), 0},
        {"config", wrpo__format(temp, "%s %016llx", t->model->config.model_type, config), 0}};
    const wrpo__setting run[] = {
        {t->ctx->desc.lanes > 1 ? "lanes" : NULL, wrpo__number_text((double)t->ctx->desc.lanes), 0},
        {t->model->lora ? "adapter" : NULL, wrpo__adapter_text(t->model), 0},
        {t->model->lora ? "base" : NULL, wrpo__base_text(t->model), 0},
        {wrpo__run_date(t) ? "date" : NULL, wrpo__run_date(t), 0},
        {"seed", wrpo__format(temp, "%llu", (unsigned long long)d->seed), 0},
        {"no_shuffle", wrpo__number_text(d->no_shuffle), 0},
        {"data", wrpo__set_text(&t->train), 0},
        {"eval_data", wrpo__set_text(&t->eval), 0},
        {"steps", wrpo__number_text((double)t->T), 0},
        {"reference", wrpo__reference_text(t), 0},
        {"step", wrpo__number_text((double)t->k), 0},
        {"milliseconds", wrpo__number_text(WRPO__MAX(0, floor((wrpo__now() - t->start) * 1000))), 0}};
    wrpo__setting *out = NULL;
    wrpo__add_settings(&out, machine, WRPO__COUNT(machine));
    wrpo__desc_settings(&out, d, false);
    wrpo__add_settings(&out, run, WRPO__COUNT(run));
    return out;
}
typedef struct wrpo__state_part {  /* a tensor of the file: a weight as floats, or moments as they are in memory */
    const char *name, *dtype;
    int ndim; int64_t shape[2];
    const wrpo_weight *w;
    int moment;  /* 0: the weight itself; 1, 2: m, v */
    size_t at, bytes;  /* where it begins in the memory of moments; its bytes */
    const char *data;  /* in a file that is read */
} wrpo__state_part;
/* In the file's order: all weights, their first moments, their second ones. Moments in blocks are those of a run of
   weights, under the name of its first. An stb_ds array. */
static wrpo__state_part *wrpo__state_parts(const wrpo_trainer *t) {
    static const char *const suffix[] = {"", ".exp_avg", ".exp_avg_sq"};
    const wrpo_moments moments = t->desc.moments;
    wrpo__state_part *parts = NULL;
    for (int moment = 0; moment < 3; moment++)
        for (int64_t i = 0, end, size; i < t->model->n_weights; i = end) {
            const wrpo_weight *w = &t->model->weights[i];
            end = i + 1;
            if (w->at < 0) continue;  /* frozen beside an adapter */
            const bool half = moment && moments == WRPO_MOMENTS_BF16;
            const size_t each = half ? 2 : 4;
            wrpo__state_part p = {.w = w, .moment = moment, .dtype = half ? "BF16" : "F32", .ndim = w->vector ? 1 : 2,
                                  .shape = {w->rows, w->cols}, .at = (size_t)w->at * each};
            p.name = wrpo__format(wrpo__current, "%s%s", w->name, suffix[moment]);
            p.bytes = (size_t)wrpo__size(w) * each;
            if (moment && moments == WRPO_MOMENTS_8BIT) {
                end = wrpo__contiguous(t->model, i, &size);
                p.at = wrpo_moments_bytes(moments, w->at);
                p.bytes = wrpo_moments_bytes(moments, size);
                p.dtype = "U8";
                p.ndim = 2;
                p.shape[0] = (int64_t)(p.bytes / WRPO_BLOCK_BYTES);
                p.shape[1] = WRPO_BLOCK_BYTES;
            }
            stbds_arrput(parts, p);
        }
    return parts;
}
/* All parts in pieces: out of the run and into the file w, or, if w is NULL, out of the file that is read and, if `put`
   says so, into the run. Returns the hash h, continued over their bytes. */
static uint64_t wrpo__state_move(wrpo_trainer *t, const wrpo__state_part *parts, wrpo__writer *w, bool put,
                                 uint64_t h) {
    const int64_t shard = (int64_t)wrpo_moments_bytes(t->desc.moments, t->split.shard);
    float *piece = wrpo__raw(wrpo__current, WRPO__PIECE, sizeof *piece);
    for (const wrpo__state_part *p = parts; p < parts + stbds_arrlen(parts); p++)
        for (size_t from = 0, n; from < p->bytes; from += n) {
            char *moments = p->moment == 1 ? t->exp_avg : t->exp_avg_sq;
            const int64_t begin = (int64_t)(p->at + from);
            n = WRPO__MIN(p->bytes - from, WRPO__PIECE * sizeof *piece);
            const int64_t first = (int64_t)(from / sizeof *piece), count = (int64_t)(n / sizeof *piece);
            if (!w) memcpy(piece, p->data + from, n);
            else if (p->moment) wrpo__split_get(t->ctx, (char *)piece, moments, shard, begin, (int64_t)n);
            else wrpo__weight_get(t->model, p->w, first, count, piece);
            h = wrpo__hash(h, piece, n);
            if (w) wrpo__write(w, piece, n);
            else if (put && p->moment) wrpo__split_put(t->ctx, moments, shard, begin, (int64_t)n, (char *)piece);
            else if (put) wrpo__weight_put(t->model, p->w, first, count, piece);
        }
    wrpo__sync(t->ctx);  /* a device that failed moved nothing */
    wrpo__block_free(piece);
    return h;
}
static void wrpo__log_kept(wrpo_trainer *t, double kept);
static const char *wrpo__log_path(const wrpo_trainer *t) {  /* of the lines of metrics so far; NULL: none */
    const wrpo__writer *w = t->part;
    const char *log = w ? w->part : NULL;  /* until it has its name */
    if (t->out_dir && (!log || !wrpo__disk_exists(log))) log = wrpo__join(wrpo__current, t->out_dir, "metrics.jsonl");
    return log;
}
static void wrpo__trainer_save(wrpo_trainer *t, const wrpo_save_desc *desc) {
    wrpo_ctx *ctx = t->ctx;
    wrpo__arena *temp = wrpo__current;
    const wrpo_train_desc *d = &t->desc;
    wrpo__save_check(temp, t->model, desc);
    const char *path = wrpo__join(temp, desc->dir, WRPO__STATE_FILE);
    /* 1. The model, without an old state beside it, not even for a moment. */
    wrpo__remove(ctx, path);
    wrpo__rounding r = {0};
    wrpo__model_save(temp, t->model, desc, &r);
    if (d->save_steps && t->k < t->T && t->k % d->save_steps == 0) wrpo__log_kept(t, wrpo__kept(&r));
    const char *log = wrpo__log_path(t);
    const bool writes = wrpo__my_rank(ctx) == 0;
    const wrpo__file *metrics = writes && log && wrpo__disk_exists(log) ? wrpo__disk_open(temp, log) : NULL;
    const int64_t eight = 8;
    int64_t log_size = metrics ? (int64_t)metrics->size : 0;
    while (log_size && metrics->data[log_size - 1] != '\n') log_size--;  /* a line that the disk did not take whole */
    const wrpo__setting *settings = wrpo__state_settings(t);
    const wrpo__state_part *parts = wrpo__state_parts(t), *p = parts;
    /* 2. The header. The checksum is of the metadata, then of all data. */
    uint64_t h = 0;
    int64_t at = 0;
    wrpo__text header = {.arena = temp};
    for (int64_t i = 0; i < stbds_arrlen(settings); i++) {
        wrpo__text_printf(&header, "%s\"%s\":", i ? "," : "{\"__metadata__\":{", settings[i].name);
        wrpo__json_quote(&header, settings[i].text, strlen(settings[i].text));
        h = wrpo__hash(h, settings[i].text, strlen(settings[i].text));
    }
    wrpo__text_puts(&header, "}");
    for (; p < parts + stbds_arrlen(parts); at += (int64_t)p->bytes, p++)
        wrpo__header_add(&header, p->name, p->dtype, p->ndim, p->shape, at, (int64_t)p->bytes);
    wrpo__header_add(&header, "metrics.jsonl", "U8", 1, &log_size, at, log_size);
    wrpo__header_add(&header, "checksum", "U8", 1, &eight, at + log_size, eight);
    /* 3. The state. */
    wrpo__writer *w = wrpo__create(temp, path);
    wrpo__header_write(w, &header);
    h = wrpo__state_move(t, parts, w, false, h);
    if (metrics) wrpo__write(w, metrics->data, (size_t)log_size);
    h = wrpo__hash(h, metrics ? metrics->data : NULL, (size_t)log_size);
    wrpo__write(w, &h, sizeof h);
    wrpo__commit(w);
}
WRPO_API wrpo_result wrpo_trainer_save(wrpo_trainer *t, const wrpo_save_desc *desc) {
    WRPO__ENTRY_ALL(t->ctx, true, wrpo__trainer_save(t, desc));
}

/* ---- resume: wrpo__state_open before anything is computed, wrpo__state_restore when the memory is taken ---- */
typedef struct wrpo__state {  /* a file that is read */
    wrpo_ctx *ctx;
    const char *path;
    const wrpo_json *metadata;
    wrpo__state_part *parts;
    const wrpo_tensor_info *log;
    int64_t step, milliseconds;
    uint64_t sum;  /* of the bytes */
} wrpo__state;
static const char *wrpo__state_text(const wrpo__state *s, const char *name) {
    const wrpo_json *v = wrpo_json_get(s->metadata, name);
    return v ? v->text : "no such setting";
}
static void wrpo__state_same(const wrpo__state *s, const char *name, const char *want) {
    const char *found = wrpo__state_text(s, name);
    if (!strcmp(want, found)) return;
    const char *hint = strcmp(name, "date") ? "" : ": the chat template shows it (--date, wrpo_set_date)";
    wrpo__fail(s->ctx, wrpo_json_get(s->metadata, name) ? WRPO_E_ARG : WRPO_E_FORMAT,
               "%s: %s: want %.100s, as this run has it, found %.100s%s", s->path, name, want, found, hint);
}
static int64_t wrpo__state_count(const wrpo__state *s, const char *name, int64_t most) {
    const char *found = wrpo__state_text(s, name);
    const long long n = strtoll(found, NULL, 10);
    if (strspn(found, "0123456789") != strlen(found) || n > most)
        wrpo__fail_format("%s: %s: want a whole number up to %lld, found %.100s", s->path, name, (long long)most,
                          found);
    return n;
}
/* Checks the file, and reads its header again: tensors have no metadata. */
static const wrpo_json *wrpo__state_metadata(wrpo_ctx *ctx, const char *path, const wrpo_tensors **tensors) {
    uint64_t size;
    *tensors = wrpo__tensors_in(ctx, path);
    const char *file = (const char *)wrpo__open_file(wrpo__current, path)->data;
    memcpy(&size, file, sizeof size);
    return wrpo_json_get(wrpo__json_parse(wrpo__current, path, 1, file + 8, (size_t)size), "__metadata__");
}
static void wrpo__checkpoint_date(wrpo_ctx *ctx, const char *dir, char **date) {
    const char *path = wrpo__join(wrpo__current, dir, WRPO__STATE_FILE);
    const wrpo_tensors *tensors;
    const wrpo_json *v = wrpo_json_get(wrpo__state_metadata(ctx, path, &tensors), "date");
    if (v) *date = wrpo__handout(ctx, v->text, v->size);
}
WRPO_API wrpo_result wrpo_checkpoint_date(wrpo_ctx *ctx, const char *dir, char **date) {
    *date = NULL;
    WRPO__ENTRY(ctx, true, wrpo__checkpoint_date(ctx, dir, date));
}
/* The file is whole and, except for the reference, of this run. The state lives as long as the current arena. */
static wrpo__state wrpo__state_open(wrpo_trainer *t) {
    const char *path = wrpo__join(wrpo__current, t->desc.resume, WRPO__STATE_FILE);
    wrpo__state s = {.ctx = t->ctx, .path = path, .parts = wrpo__state_parts(t)};
    const wrpo_tensors *tensors;
    uint64_t h = 0, sum;
    /* 1. The settings. */
    s.metadata = wrpo__state_metadata(t->ctx, path, &tensors);
    if (wrpo_json_get(s.metadata, "wrpo") && !wrpo_json_get(s.metadata, "state_format"))
        wrpo__fail_unsupported("%s: state_format: want %d, which this version reads, found none: version %.40s wrote "
                               "the file, when formats had no number", path, WRPO__STATE_FORMAT,
                               wrpo__state_text(&s, "wrpo"));
    if (!t->model->lora && wrpo_json_get(s.metadata, "adapter")) wrpo__state_same(&s, "adapter", "none");
    if (t->ctx->desc.lanes == 1 && wrpo_json_get(s.metadata, "lanes")) wrpo__state_same(&s, "lanes", "1");
    const wrpo__setting *settings = wrpo__state_settings(t);
    for (int64_t i = 0, n = stbds_arrlen(settings); i < n; i++) {
        const char *found = wrpo__state_text(&s, settings[i].name);
        if (!strcmp(settings[i].name, "date") && !wrpo_json_get(s.metadata, "date")) continue;  /* an older file */
        if (i < n - WRPO__SAID) wrpo__state_same(&s, settings[i].name, settings[i].text);
        h = wrpo__hash(h, found, strlen(found));
    }
    s.step = wrpo__state_count(&s, "step", t->T);
    s.milliseconds = wrpo__state_count(&s, "milliseconds", LLONG_MAX - 1);
    /* 2. The tensors. */
    const wrpo_tensor_info *log = wrpo_tensors_find(tensors, "metrics.jsonl");
    const int64_t log_size = log ? log->count : 0, eight = 8;
    const long long want = stbds_arrlen(s.parts) + 2, found = wrpo_tensors_count(tensors);
    s.log = wrpo__need_tensor(tensors, path, "metrics.jsonl", "U8", 1, &log_size);
    memcpy(&sum, wrpo__need_tensor(tensors, path, "checksum", "U8", 1, &eight)->data, sizeof sum);
    if (found != want) wrpo__fail_format("%s: want %lld tensors, found %lld", path, want, found);
    for (wrpo__state_part *p = s.parts; p < s.parts + stbds_arrlen(s.parts); p++)
        p->data = wrpo__need_tensor(tensors, path, p->name, p->dtype, p->ndim, p->shape)->data;
    h = wrpo__state_move(t, s.parts, NULL, false, h);
    h = wrpo__hash(h, s.log->data, s.log->bytes);
    if (h != sum)
        wrpo__fail_format("%s: checksum: want %016llx, found %016llx: not the bytes that were written", path,
                          (unsigned long long)sum, (unsigned long long)h);
    s.sum = sum;
    return s;
}
/* Puts the run where the file says. */
static void wrpo__state_restore(wrpo_trainer *t, const wrpo__state *s) {
    wrpo__same(t->ctx, "the checkpoint's step", (uint64_t)s->step);
    wrpo__same(t->ctx, "the checkpoint", s->sum);
    wrpo__state_same(s, "reference", wrpo__reference_text(t));
    if (t->out_dir) {
        const char *log = wrpo__join(wrpo__current, t->out_dir, "metrics.jsonl");
        if (t->part) wrpo__write(t->part, s->log->data, s->log->bytes);
        else wrpo__publish(wrpo__write_whole(wrpo__current, log, s->log->data, s->log->bytes));
    }
    wrpo__state_move(t, s->parts, NULL, true, 0);
    t->k = s->step;
    t->start = wrpo__now() - (double)s->milliseconds / 1000;
}

/* ---- metrics as lines of JSON ---- */
static void wrpo__put_metric(wrpo__text *out, const char *prefix, const char *name, double x) {  /* NaN: left out */
    if (isnan(x)) return;
    wrpo__text_printf(out, ", \"%s%s\": ", prefix, name);
    wrpo__json_number(out, x);
}
static wrpo__text wrpo__metrics_text(const wrpo_metrics *m, const char *prefix) {
    wrpo__text out = {.arena = wrpo__current};
    wrpo__text_printf(&out, "{\"step\": %lld", (long long)m->step);
#define WRPO__X(field, name) wrpo__put_metric(&out, prefix, name, m->field);
    WRPO_METRICS(WRPO__X)
#undef WRPO__X
    wrpo__put_metric(&out, prefix, "records", (double)m->records);
    wrpo__put_metric(&out, prefix, "tokens", (double)m->tokens);
    wrpo__put_metric(&out, prefix, "tokens_per_second", round(m->tokens_per_second * 10) / 10);
    wrpo__put_metric(&out, prefix, "seconds", round(m->seconds * 1000) / 1000);
    wrpo__text_puts(&out, "}");
    return out;
}
static char *wrpo__metrics_json(wrpo_ctx *ctx, const wrpo_metrics *m, const char *prefix) {
    const wrpo__text line = wrpo__metrics_text(m, prefix);
    return wrpo__handout(ctx, line.data, line.size);
}
WRPO_API wrpo_result wrpo_metrics_json(wrpo_ctx *ctx, const wrpo_metrics *m, const char *prefix, char **text) {
    *text = NULL;
    WRPO__ENTRY(ctx, true, *text = wrpo__metrics_json(ctx, m, prefix));
}
/* ---- settings as JSON ---- */
static char *wrpo__desc_json(wrpo_ctx *ctx, const wrpo_train_desc *desc) {
    const wrpo_train_desc d = wrpo_train_defaults(ctx, desc);
    wrpo__text out = {.arena = wrpo__current};
    wrpo__setting *list = NULL;
    wrpo__train_check(&d);
    wrpo__desc_settings(&list, &d, true);
    for (const wrpo__setting *s = list; s < list + stbds_arrlen(list); s++) {
        const char *quote = s->kind == WRPO__AS_WORD ? "\"" : "", *text = s->text;
        if (s->kind == WRPO__AS_BOOL) text = *text == '1' ? "true" : "false";
        wrpo__text_printf(&out, "%s\"%s\": %s%s%s", s == list ? "{" : ", ", s->name, quote, text, quote);
    }
    wrpo__text_printf(&out, ", \"no_shuffle\": %s, \"seed\": %llu}", d.no_shuffle ? "true" : "false",
                      (unsigned long long)d.seed);
    return wrpo__handout(ctx, out.data, out.size);
}
WRPO_API wrpo_result wrpo_train_desc_json(wrpo_ctx *ctx, const wrpo_train_desc *desc, char **text) {
    *text = NULL;
    WRPO__ENTRY(ctx, true, *text = wrpo__desc_json(ctx, desc));
}
static void wrpo__log_line(wrpo_trainer *t, wrpo__text line) {
    wrpo__text_puts(&line, "\n");
    if (fwrite(line.data, 1, line.size, t->metrics) != line.size || fflush(t->metrics) != 0)
        wrpo__fail_io("%s/metrics.jsonl: cannot be written: %s", t->out_dir, strerror(errno));
}
static void wrpo__log_metrics(wrpo_trainer *t, const wrpo_metrics *m, const char *prefix) {
    wrpo__text line = wrpo__metrics_text(m, prefix);
    if (wrpo__run_date(t)) {
        line.size--;
        wrpo__text_printf(&line, ", \"date\": \"%s\"}", wrpo__run_date(t));
    }
    wrpo__log_line(t, line);
}
/* What a save of the plan kept of the update; other saves leave no line, as a run that never stopped has none. */
static void wrpo__log_kept(wrpo_trainer *t, double kept) {
    wrpo__text line = {.arena = wrpo__current};
    if (!t->metrics || isnan(kept)) return;
    wrpo__text_printf(&line, "{\"step\": %lld", (long long)t->k);
    wrpo__put_metric(&line, "", "update_kept", kept);
    wrpo__text_puts(&line, "}");
    wrpo__log_line(t, line);
}

/* ---- open, with files ---- */
static void wrpo__close_file(void *p) { fclose(p); }
static wrpo_trainer *wrpo__trainer_open(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
                                        bool train, bool once) {
    wrpo__arena *arena = wrpo__current, *temp = wrpo__sub_arena(arena), *file = wrpo__sub_arena(arena);
    wrpo_trainer *t = wrpo__trainer_begin(arena, policy, data, desc, train);
    const char *out_dir = t->desc.out_dir;
    const bool resume = train && t->desc.resume;
    wrpo__state state = {0};
    wrpo_bytes plan = {0};
    if (t->desc.save_model && !t->desc.save.dir) wrpo__fail_arg("wrpo_train_desc: save_model: save.dir is missing");
    if (out_dir) {
        t->out_dir = wrpo__strndup(arena, out_dir, strlen(out_dir));
        wrpo__make_dir(t->ctx, out_dir);
    }
    const char *model = t->desc.save.dir;
    if (train && out_dir && t->desc.save_model && (wrpo__disk_exists(wrpo__join(temp, model, "config.json")) ||
                                                   wrpo__disk_exists(wrpo__join(temp, model, WRPO__ADAPTER_CONFIG))))
        t->part = wrpo__create(arena, wrpo__join(arena, out_dir, "metrics.jsonl"));
    wrpo__current = file;  /* of the state, until the run is where it says */
    if (resume) state = wrpo__state_open(t);
    wrpo__current = temp;
    if (train) plan = wrpo__fitted(t);
    t->own_reference = !train && !out_dir && !t->desc.ref_dir && !policy->lora;
    if (!t->own_reference) wrpo__reference(t, once);  /* before the memory of training is taken */
    wrpo__arena_clear(temp);
    wrpo__trainer_memory(t, train, plan.recompute, plan.logits);
    if (resume) wrpo__state_restore(t, &state);
    wrpo__current = arena;
    wrpo__arena_clear(temp);
    wrpo__arena_clear(file);
    if (train && out_dir && !wrpo__my_rank(t->ctx)) {
        const char *path = wrpo__join(arena, out_dir, "metrics.jsonl");
        wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__close_file, NULL);
        if (t->part) t->metrics = ((wrpo__writer *)t->part)->f;
        else owner->p = t->metrics = fopen(path, resume ? "a" : "w");
        if (!t->metrics) wrpo__fail_io("%s: cannot be written: %s", path, strerror(errno));
        t->log = wrpo__log_metrics;
    }
    wrpo__agree(t->ctx);
    return t;
}
WRPO_API wrpo_result wrpo_trainer_open(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
                                       wrpo_trainer **out) {
    *out = NULL;
    WRPO__ENTRY_ALL(policy->ctx, false, *out = wrpo__trainer_open(policy, data, desc, true, false));
}

/* ---- evaluation and the loop ---- */
static void wrpo__eval(wrpo_model *model, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_metrics *m) {
    wrpo_train_desc d = {0};
    if (desc) d = *desc;
    d.eval_data = NULL;
    wrpo_trainer *t = wrpo__trainer_open(model, data, &d, false, false);
    *m = wrpo__evaluate(t, &t->train, t->desc.alpha + 0.0);
    m->epoch = NAN;
}
WRPO_API wrpo_result wrpo_eval(wrpo_model *model, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_metrics *m) {
    WRPO__ENTRY_ALL(model->ctx, true, wrpo__eval(model, data, desc, m));
}
static void wrpo__rename_dir(wrpo_ctx *ctx, const char *from, const char *to) {
    if (wrpo__my_rank(ctx)) return;
    if (wrpo__rename(from, to) != 0) wrpo__fail_io("%s: cannot be renamed: %s", from, strerror(errno));
    wrpo__sync_parent(to);
}
/* By another name: half removed, it must not look whole. Process 0 is nobody's. */
static void wrpo__drop_checkpoint(wrpo__arena *temp, const char *dir) {
    const char *aside = wrpo__format(temp, "%s" WRPO__PART, dir, 0ul);
    if (wrpo__my_rank(temp->ctx) || !wrpo__disk_exists(dir)) return;
    wrpo__rename_dir(temp->ctx, dir, aside);
    wrpo__remove_dir(temp, aside);
}
/* save.dir/checkpoint-K, whole from its first moment; then one that is too many goes. This call, which began after
   `first` steps, wrote those before at multiples of save_steps. */
static void wrpo__checkpoint(wrpo_trainer *t, int64_t first, int64_t *saved) {
    wrpo__arena *temp = wrpo__current;
    const char *dir = t->desc.save.dir, *name = wrpo__format(temp, "%s/checkpoint-%lld", dir, (long long)t->k);
    const char *part = wrpo__format(temp, "%s" WRPO__PART, name, (unsigned long)wrpo__process());
    wrpo_save_desc save = t->desc.save;
    const int64_t every = t->desc.save_steps, gone = every ? ((t->k - 1) / every - t->desc.keep + 1) * every : 0;
    const char *old = wrpo__format(temp, "%s/checkpoint-%lld", dir, (long long)gone);
    save.dir = part;
    wrpo__trainer_save(t, &save);
    wrpo__drop_checkpoint(temp, name);  /* of another run */
    wrpo__rename_dir(t->ctx, part, name);
    *saved = t->k;
    if (gone > first) wrpo__drop_checkpoint(temp, old);
}
static wrpo_result wrpo__checkpoint_entry(wrpo_trainer *t, int64_t first, int64_t *saved) {
    WRPO__ENTRY_ALL(t->ctx, true, wrpo__checkpoint(t, first, saved));
}
static bool wrpo__is_better(const char *metric, double x, double best) {
    return isnan(best) || (strcmp(metric, "loss") ? x > best : x < best);
}
typedef struct wrpo__best { double value, step; } wrpo__best;
/* The best value in the lines of metrics that a run which goes on begins with; NaN: none. */
static wrpo__best wrpo__best_before(const wrpo_trainer *t) {
    const char *path = t->k ? wrpo__log_path(t) : NULL;
    wrpo__best best = {NAN, NAN};
    if (!path || !t->metrics || fflush(t->metrics) != 0) return best;
    wrpo__lines in = {.file = wrpo__disk_open(wrpo__current, path)};
    while (wrpo__next_line(&in)) {
        const wrpo_json *line = wrpo__line_json(wrpo__current, &in);
        const wrpo_json *v = wrpo_json_get(line, wrpo__format(wrpo__current, "eval_%s", t->desc.save_best));
        if (!v || !wrpo__is_better(t->desc.save_best, v->number, best.value)) continue;
        best = (wrpo__best){v->number, wrpo__need(line, "step", WRPO_JSON_NUMBER)->number};
    }
    return best;
}
/* After an evaluation: save.dir/best, if it is better than *best. e NULL: before the first one; the best of all may
   be the model that the run goes on with, and its save what stopped the run: it is saved again. */
static void wrpo__save_best(const wrpo_trainer *t, const wrpo_metrics *e, double *best) {
    const char *metric = t->desc.save_best;
    wrpo_save_desc save = t->desc.save;
    double x = NAN;
    if (!e) {  /* the first rank has the lines */
        wrpo__text mine = {.arena = wrpo__current};
        wrpo__best before = wrpo__best_before(t);
        wrpo__text_add(&mine, (const char *)&before, sizeof before);
        memcpy(&before, wrpo__all_gather_texts(t->ctx, &mine)[0], sizeof before);
        *best = x = before.value;
        if (before.step != (double)t->k) return;
    } else if (!wrpo__metric(e, metric, &x) || isnan(x)) wrpo__fail_arg("save_best: this evaluation has no %s", metric);
    else if (!wrpo__is_better(metric, x, *best)) return;
    save.dir = wrpo__join(wrpo__current, save.dir, "best");
    wrpo__rethrow(t->ctx, wrpo_model_save(t->model, &save));
    *best = x;
    wrpo__log(t->ctx, WRPO_LOG_INFO, "%s: step %lld, eval_%s %.4g", save.dir, (long long)t->k, metric, x);
}
static wrpo_result wrpo__best_entry(const wrpo_trainer *t, const wrpo_metrics *e, double *best) {
    WRPO__ENTRY_ALL(t->ctx, true, wrpo__save_best(t, e, best));
}
/* The metrics are complete. Those that wait get their name with the model. */
static wrpo__writer *wrpo__metrics_done(void *user, double kept) {
    wrpo_trainer *t = user;
    wrpo__log_kept(t, kept);
    if (t->part) wrpo__finish(t->part);
    else if (t->metrics) wrpo__fsync(t->metrics);
    if (t->part) t->metrics = NULL;
    return t->part;
}
static wrpo_result wrpo__save_last(wrpo_trainer *t) {
    WRPO__ENTRY_ALL(t->ctx, true,
                    wrpo__model_save(wrpo__current, t->model, &t->desc.save,
                                     &(wrpo__rounding){.done = wrpo__metrics_done, .user = t}));
}
static wrpo_result wrpo__open_once(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
                                   wrpo_trainer **out) {
    WRPO__ENTRY_ALL(policy->ctx, false, *out = wrpo__trainer_open(policy, data, desc, true, true));
}
WRPO_API wrpo_result wrpo_train(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
                                wrpo_metrics *last) {
    wrpo_ctx *ctx = policy->ctx;
    wrpo_trainer *t;
    wrpo_metrics m = {0}, e;
    if (last) *last = m;
    wrpo_result r = wrpo__open_once(policy, data, desc, &t);
    if (r != WRPO_OK) return r;
    const wrpo_train_desc *d = &t->desc;
    const int64_t first = t->k;
    int64_t saved = -1;
    double best = NAN;
    bool go = true;
    if (d->save_best) r = wrpo__best_entry(t, NULL, &best);
    m.step = t->k;
    m.steps = t->T;
    m.seconds = wrpo__now() - t->start;
    while (r == WRPO_OK && go && t->k < t->T) {
        r = wrpo_trainer_step(t, &m);
        const bool end = t->k == t->T, eval = d->eval_data && (end || (d->eval_steps && t->k % d->eval_steps == 0));
        const bool save = !end && d->save_steps && t->k % d->save_steps == 0;
        if (r == WRPO_OK && eval) r = wrpo_trainer_eval(t, d->eval_data, &e);
        if (r == WRPO_OK && eval && d->save_best) r = wrpo__best_entry(t, &e, &best);
        if (r == WRPO_OK && save) r = wrpo__checkpoint_entry(t, first, &saved);
        if (r == WRPO_OK && d->on_step) go = d->on_step(&m, eval ? &e : NULL, d->user);
        if (r == WRPO_OK && ctx->desc.group && t->k < t->T)  /* one that stops stops all */
            r = wrpo_agree(ctx, go ? WRPO_OK : WRPO_E_STOPPED, "stopped by the callback");
    }
    if (r == WRPO_OK && t->k < t->T) {
        ctx->error = (wrpo_error){WRPO_E_STOPPED, 0, 0, "stopped by the callback"};
        r = WRPO_E_STOPPED;
    }
    if (r == WRPO_OK && d->save_model) r = wrpo__save_last(t);
    if (d->save.dir && r != WRPO_OK && r != WRPO_E_DEVICE && t->k > first && t->k != saved) {  /* it ends early */
        const wrpo_error why = ctx->error;
        if (wrpo__checkpoint_entry(t, first, &saved) == WRPO_OK) ctx->error = why;
        else r = ctx->error.code;
    }
    m.step = t->k;  /* a step whose line could not be written is done */
    if (last) *last = m;
    wrpo_trainer_free(t);
    return r;
}

/* ------------------------------------------------------------------------------------------- >>recipe
   Rewards decide which answers a record is made of, and how often one file of answers beats another.

   Files are read twice: once for the prompts' ids, which say what lines belong together, and once, prompt by prompt,
   for the responses. So only one prompt at a time is in memory. */
typedef struct wrpo__scored {  /* a response */
    int64_t model;  /* which of wrpo__prompts.models */
    const wrpo_json *content, *number;  /* number: the reward as written */
    const wrpo_json *answer;  /* what entropy looks at: "answer", or content */
    double reward;
    bool right;  /* what the key that is required says; without one true */
} wrpo__scored;
typedef struct wrpo__gathered { char *key; wrpo__lines *value; } wrpo__gathered;
typedef struct wrpo__model_stats { char *key; wrpo_select_model value; } wrpo__model_stats;
enum { WRPO__PROMPT_KEYS = 5 };
static const char *const wrpo__prompt_keys[] = {"prompt", "tools", "chat_template_kwargs", "system", "system_prompt"};
typedef struct wrpo__prompts {  /* the prompts of some files */
    wrpo_ctx *ctx;
    wrpo__arena *arena, *temp;  /* temp: of the current prompt */
    wrpo__gathered *prompts;  /* stb map from ids to lines (stb arrays), in the order of their first lines */
    wrpo__model_stats *models;  /* stb map from names; reward: the sum */
    int64_t empty;  /* responses without text */
    const char *require;  /* as in wrpo_select_desc */
    bool unscored;  /* rewards are not read */
    bool by_text;
    wrpo__gathered *alike;  /* by_text: the same lines; those of one prompt together, whatever their ids */
    /* of the current prompt: its id, what wrpo__prompt_keys names, the line that says it, responses (stb arrays) */
    const wrpo_json *id, *prompt[WRPO__PROMPT_KEYS];
    const wrpo__lines *said;
    wrpo__scored *lists[2];  /* the highest reward first; of equal ones the first in the files */
} wrpo__prompts;
/* ids: every line must have a prompt_id. A line that has none is a prompt of its own, under a key that is no UTF-8. */
static void wrpo__prompts_add(wrpo__prompts *t, const char *path, bool ids) {
    for (wrpo__lines l = {.file = wrpo__open_file(t->arena, path)}; wrpo__next_line(&l); wrpo__arena_clear(t->temp)) {
        const wrpo_json *root = wrpo__line_json(t->temp, &l);
        const wrpo_json *id = wrpo__present(wrpo__want(root, WRPO_JSON_OBJECT, "line"), "prompt_id");
        if (id && id->kind != WRPO_JSON_NUMBER) wrpo__want(id, WRPO_JSON_STRING, NULL);
        if (ids && !id) wrpo__wrong(root, "prompt_id: want a string or a number, found none");
        char *key = id ? wrpo__strndup(t->arena, id->text, id->size)
                       : wrpo__format(t->arena, "\xFF%lld", (long long)l.number);
        if (stbds_shgeti(t->prompts, key) < 0) stbds_shput(t->prompts, key, NULL);
        wrpo__gathered *prompt = stbds_shgetp(t->prompts, key);
        if (prompt->value && stbds_arrlast(prompt->value).file == l.file)
            wrpo__wrong(root, "prompt_id \"%.80s\": want each once in a file, found it in line %lld too", key,
                        (long long)stbds_arrlast(prompt->value).number);
        stbds_arrput(prompt->value, l);
        if (!t->by_text) continue;
        const wrpo_json *v = wrpo__present(root, wrpo__present(root, "prompt") ? "prompt" : "messages");
        if (v) {
            wrpo__current = t->temp;
            key = wrpo__format(t->arena, "\xFE%a", wrpo__prompt_place(wrpo__messages(v, "user")));
            wrpo__current = t->arena;
        }
        if (stbds_shgeti(t->alike, key) < 0) stbds_shput(t->alike, key, NULL);
        stbds_arrput(stbds_shgetp(t->alike, key)->value, l);
    }
}
static void wrpo__prompts_open(wrpo__prompts *t, const char *const *paths, int64_t n, bool ids, bool by_text) {
    wrpo__arena *arena = wrpo__current;
    *t = (wrpo__prompts){
        .ctx = arena->ctx, .arena = arena, .temp = wrpo__sub_arena(arena), .by_text = by_text};
    for (int64_t i = 0; i < n; i++) wrpo__prompts_add(t, paths[i], ids);
    if (!t->prompts) wrpo__fail_format("%s: want prompts, found none", n ? paths[0] : "wrpo_select_desc.in");
}
static void wrpo__add_response(wrpo__prompts *t, const wrpo_json *v, const char *model, int list) {
    wrpo__scored r = {.content = wrpo__need(v, "content", WRPO_JSON_STRING), .reward = NAN, .right = true};
    if (!t->unscored) {
        r.number = wrpo__need(v, "reward", WRPO_JSON_NUMBER);
        r.reward = wrpo__real(r.number, NULL);
    }
    if (t->require) r.right = wrpo__need(v, t->require, WRPO_JSON_BOOL)->boolean;
    r.answer = wrpo__present(v, "answer");
    if (!r.answer) r.answer = r.content;
    if (wrpo__jskip_space(r.content->text, r.content->size, 0) == r.content->size) {
        t->empty++;
        return;
    }
    if (stbds_shgeti(t->models, model) < 0) {
        const wrpo_select_model m = {.name = wrpo__strndup(t->arena, model, strlen(model))};
        stbds_shput(t->models, m.name, m);
    }
    r.model = stbds_shgeti(t->models, model);
    t->models[r.model].value.responses++;
    t->models[r.model].value.reward += r.reward;
    stbds_arrput(t->lists[list], r);
    wrpo__scored *all = t->lists[list];
    int64_t k = stbds_arrlen(all) - 1;
    for (; k > 0 && all[k - 1].reward < r.reward; k--) all[k] = all[k - 1];
    all[k] = r;
}
/* What a line says of the prompt must be what an earlier line said. A line without any of the keys says nothing. */
static void wrpo__candidates_prompt(wrpo__prompts *t, const wrpo__lines *line, const wrpo_json *root, const char *id) {
    const wrpo_json *says[WRPO__PROMPT_KEYS];
    bool any = false;
    for (int k = 0; k < WRPO__PROMPT_KEYS; k++) {
        says[k] = wrpo__present(root, wrpo__prompt_keys[k]);
        any = any || says[k];
    }
    if (!any) return;
    for (int k = 0; k < 3 && t->said; k++)
        if (!wrpo__json_same(says[k], t->prompt[k]))
            wrpo__wrong(says[k] ? says[k] : root, "prompt_id \"%.80s\": want the %s as in %s:%lld, found %s", id,
                        wrpo__prompt_keys[k], t->said->file->path, (long long)t->said->number,
                        says[k] ? "another one" : "none");
    t->said = line;
    memcpy(t->prompt, says, sizeof says);
}
/* Reads the lines of a prompt. For a comparison all its responses are answers, and a line may be an answer itself. */
static void wrpo__prompts_read(wrpo__prompts *t, const wrpo__gathered *prompt, bool compare) {
    wrpo__arena_clear(t->temp);
    t->said = NULL;
    memset(t->prompt, 0, sizeof t->prompt);
    for (int list = 0; list < 2; list++)
        if (t->lists[list]) stbds_arrsetlen(t->lists[list], 0);
    for (const wrpo__lines *l = prompt->value; l < prompt->value + stbds_arrlen(prompt->value); l++) {
        const wrpo_json *root = wrpo__line_json(t->temp, l);
        const bool alone = compare && wrpo__present(root, "content");
        bool found = alone;
        t->id = wrpo_json_get(root, "prompt_id");
        wrpo__candidates_prompt(t, l, root, prompt->key);
        if (alone) wrpo__add_response(t, root, "", WRPO__TARGETS);
        for (int k = 0; k < 2 && !alone; k++) {
            const wrpo_json *all = wrpo__maybe(root, wrpo__lists[k], WRPO_JSON_ARRAY);
            WRPO__EACH(v, all)
                wrpo__add_response(t, v, wrpo__need(v, "model", WRPO_JSON_STRING)->text,
                                   compare ? WRPO__TARGETS : k);
            found = found || all;
        }
        if (!found)
            wrpo__wrong(root, "prompt_id \"%.80s\": want responses in \"sources\" or \"target\", found neither",
                        prompt->key);
    }
}
static int64_t wrpo__characters(const wrpo_json *text) {
    int64_t n = 0;
    for (size_t i = 0; i < text->size; i++) n += ((unsigned char)text->text[i] & 0xC0) != 0x80;
    return n;
}

/* ---- selection ---- */
static const char *const wrpo__forms[] = {
    [WRPO_FORM_QUADS] = "quads", [WRPO_FORM_SFT] = "sft", [WRPO_FORM_PAIR] = "pair", [WRPO_FORM_PAIRS] = "pairs",
    [WRPO_FORM_DELTA] = "delta"};
WRPO__NAMED(wrpo_form_name, wrpo__forms)
typedef struct wrpo__extremes { const wrpo__scored *best, *worst; double share; } wrpo__extremes;
/* Best and worst of each model of a list, the models by their best; by_model false: of the list. An stb array. With a
   key that is required, the best is one that has it, the worst one that has not; NULL: there is none. */
static wrpo__extremes *wrpo__rank(const wrpo__scored *list, bool by_model, bool required) {
    wrpo__extremes *out = NULL;
    const wrpo__scored *const end = list + stbds_arrlen(list);
    for (const wrpo__scored *c = list; c < end; c++) {
        int64_t k = 0;
        while (c->right && k < stbds_arrlen(out) && by_model && out[k].best->model != c->model) k++;
        const wrpo__extremes first = {c, NULL, 0};
        if (c->right && k == stbds_arrlen(out)) stbds_arrput(out, first);
    }
    for (int64_t k = 0; k < stbds_arrlen(out); k++)
        for (const wrpo__scored *c = list; c < end; c++) {
            const bool able = (!by_model || c->model == out[k].best->model) && !(required && c->right);
            if (able && (!out[k].worst || c->reward < out[k].worst->reward)) out[k].worst = c;
        }
    return out;
}
/* For delta pairs: the first answers of two models, as one source's best and worst. An stb array. */
static wrpo__extremes *wrpo__rank_models(const wrpo__prompts *t, const char *strong, const char *weak) {
    wrpo__extremes pair = {NULL, NULL, 1}, *out = NULL;
    for (int list = 1; list >= 0; list--)
        for (int64_t i = stbds_arrlen(t->lists[list]) - 1; i >= 0; i--) {
            const wrpo__scored *c = &t->lists[list][i];
            if (!strcmp(t->models[c->model].key, strong)) pair.best = c;
            if (!strcmp(t->models[c->model].key, weak)) pair.worst = c;
        }
    if (pair.best) stbds_arrput(out, pair);
    return out;
}
/* share = softmax(best's reward / tau); the first is the highest. */
static void wrpo__softmax_shares(wrpo__extremes *list, double tau) {
    const int64_t n = stbds_arrlen(list);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        list[i].share = exp((list[i].best->reward - list[0].best->reward) / tau);
        sum += list[i].share;
    }
    for (int64_t i = 0; i < n; i++) list[i].share /= sum;
}
static double wrpo__entropy(const wrpo__scored *list) {  /* bits */
    const int64_t n = stbds_arrlen(list);
    double H = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t same = 0;
        for (int64_t k = 0; k < n; k++) same += wrpo__json_same(list[i].answer, list[k].answer);
        H -= log2((double)same / (double)n) / (double)n;
    }
    return H > 0 ? H : 0;
}
typedef struct wrpo__selection {
    wrpo_select_desc desc;  /* resolved */
    wrpo_select_stats *stats; double count[3];  /* count: of the sums in stats, by role */
    wrpo__prompts t;
    /* of the current prompt, stb arrays: each source's extremes, the target's, answers since the last list of scores */
    wrpo__extremes *sources, *target;
    const wrpo__scored **put;
} wrpo__selection;
static bool wrpo__gap_fits(const wrpo_select_desc *d, const wrpo__scored *better, const wrpo__scored *rejected) {
    const double gap = better->reward - rejected->reward;
    return (d->min_gap == 0 || gap >= d->min_gap) && (d->max_gap == 0 || gap <= d->max_gap);
}
/* Leaves the sources that the form takes. Returns NULL, or what counts prompts that are left out for this reason. */
static int64_t *wrpo__choose(wrpo__selection *s) {
    const wrpo_select_desc *d = &s->desc;
    const wrpo__extremes *target = d->form == WRPO_FORM_QUADS ? s->target : NULL;
    int64_t n = stbds_arrlen(s->sources), kept = 0, equal = 0, unpaired = 0;
    if (!n) return &s->stats->no_source;
    if (d->form == WRPO_FORM_QUADS && (!target || !target->worst)) return &s->stats->no_target;
    if (target && wrpo__json_same(target->best->content, target->worst->content)) return &s->stats->equal;
    if (d->form != WRPO_FORM_PAIRS) n = WRPO__MIN(n, d->top);
    for (int64_t i = 0; i < n; i++) {
        const wrpo__extremes c = s->sources[i];
        const wrpo__scored *rejected = target ? target->worst : c.worst;
        const bool sft = d->form == WRPO_FORM_SFT;
        if (!sft && !rejected) {
            unpaired++;
            continue;
        }
        const bool same = !sft && wrpo__json_same(c.best->content, rejected->content);
        equal += same;
        if (sft || (!same && wrpo__gap_fits(d, c.best, rejected))) s->sources[kept++] = c;
    }
    if (unpaired == n) return &s->stats->no_source;
    if (equal == n) return &s->stats->equal;
    if (!kept || (target && !wrpo__gap_fits(d, target->best, target->worst))) return &s->stats->gap;
    stbds_arrsetlen(s->sources, (size_t)kept);
    return NULL;
}
/* An answer as a message of the list; counts it. */
static void wrpo__put_answer(wrpo__selection *s, wrpo_json *list, const wrpo__scored *answer, wrpo_role role) {
    wrpo_json *message = wrpo__json_add(list, NULL, WRPO_JSON_OBJECT, "");
    wrpo__json_put(message, answer->content, NULL);
    wrpo__json_add(message, "role", WRPO_JSON_STRING, "assistant");
    s->stats->reward[role] += answer->reward;
    s->stats->length[role] += (double)wrpo__characters(answer->content);
    s->count[role]++;
    s->t.models[answer->model].value.selected += role == WRPO_ROLE_SOURCE;
    stbds_arrput(s->put, answer);
}
static void wrpo__put_number(wrpo_json *to, const char *key, double x) {
    wrpo__json_add(to, key, WRPO_JSON_NUMBER, wrpo__number_text(x));
}
/* The rewards and models of the answers since the last call. */
static void wrpo__put_scores(wrpo__selection *s, wrpo_json *to) {
    wrpo_json *rewards = s->t.unscored ? NULL : wrpo__json_add(to, "rewards", WRPO_JSON_ARRAY, "");
    wrpo_json *models = wrpo__json_add(to, "models", WRPO_JSON_ARRAY, "");
    for (int64_t i = 0; i < stbds_arrlen(s->put); i++) {
        if (rewards) wrpo__json_put(rewards, s->put[i]->number, NULL);
        wrpo__json_add(models, NULL, WRPO_JSON_STRING, s->t.models[s->put[i]->model].key);
    }
    stbds_arrsetlen(s->put, 0);
}
/* chosen: the best of each source, then the target's; rejected: the target's worst. target NULL: the source's worst. */
static void wrpo__put_choice(wrpo__selection *s, wrpo_json *to, const wrpo__extremes *sources, int64_t n,
                             const wrpo__extremes *target) {
    wrpo_json *chosen = wrpo__json_add(to, "chosen", WRPO_JSON_ARRAY, "");
    wrpo_json *rejected = wrpo__json_add(to, "rejected", WRPO_JSON_ARRAY, "");
    for (int64_t i = 0; i < n; i++) wrpo__put_answer(s, chosen, sources[i].best, WRPO_ROLE_SOURCE);
    if (target) wrpo__put_answer(s, chosen, target->best, WRPO_ROLE_TARGET);
    wrpo__put_answer(s, rejected, target ? target->worst : sources->worst, WRPO_ROLE_REJECTED);
}
/* The current prompt as a record of the form. */
static wrpo_json *wrpo__make_record(wrpo__selection *s) {
    const wrpo_select_desc *d = &s->desc;
    const wrpo__extremes *sources = s->sources;
    const int64_t n = stbds_arrlen(sources);
    const wrpo__prompts *t = &s->t;
    const bool quads = d->form == WRPO_FORM_QUADS;
    wrpo_json *record = wrpo__json_empty(WRPO_JSON_OBJECT, NULL), *list;
    wrpo__json_put(record, t->id, NULL);
    for (int k = d->form == WRPO_FORM_SFT ? 1 : 0; k < WRPO__PROMPT_KEYS; k++)
        if (t->prompt[k]) wrpo__json_put(record, t->prompt[k], NULL);
    if (d->form == WRPO_FORM_SFT) {
        list = wrpo__json_add(record, "messages", WRPO_JSON_ARRAY, "");
        wrpo__json_put_all(list, wrpo__messages(t->prompt[0], "user"));
        wrpo__put_answer(s, list, sources->best, WRPO_ROLE_SOURCE);
    } else if (d->form == WRPO_FORM_PAIRS) {
        list = wrpo__json_add(record, "pairs", WRPO_JSON_ARRAY, "");
        for (int64_t i = 0; i < n; i++) {
            wrpo_json *pair = wrpo__json_add(list, NULL, WRPO_JSON_OBJECT, "");
            wrpo__put_choice(s, pair, &sources[i], 1, NULL);
            wrpo__put_number(pair, "weight", sources[i].share);
            wrpo__put_scores(s, pair);
        }
    } else wrpo__put_choice(s, record, sources, n, quads ? s->target : NULL);
    if (d->form != WRPO_FORM_PAIRS) wrpo__put_scores(s, record);
    if (quads && n > 1) {
        list = wrpo__json_add(record, "weights", WRPO_JSON_ARRAY, "");
        for (int64_t i = 0; i < n; i++) wrpo__put_number(list, NULL, sources[i].share);
    }
    if (d->entropy_power > 0) {
        const double entropy = wrpo__entropy(t->lists[s->target ? WRPO__TARGETS : WRPO__SOURCES]);
        wrpo__put_number(record, "weight", pow(entropy, d->entropy_power) / d->entropy_scale);
    }
    return record;
}
/* NULL: the prompt is left out and counted. */
static wrpo_json *wrpo__select_prompt(wrpo__selection *s) {
    const wrpo__prompts *t = &s->t;
    s->put = NULL;
    const wrpo_select_desc *d = &s->desc;
    s->target = wrpo__rank(t->lists[WRPO__TARGETS], false, d->require);
    if (d->form == WRPO_FORM_DELTA) s->sources = wrpo__rank_models(t, d->strong, d->weak);
    else s->sources = wrpo__rank(t->lists[WRPO__SOURCES], true, d->require);
    int64_t *left_out = wrpo__choose(s);
    if (left_out) {
        ++*left_out;
        return NULL;
    }
    if (!t->prompt[0])
        wrpo__wrong(t->id, "prompt_id \"%.80s\": want a \"prompt\" in one of its lines, found none", t->id->text);
    wrpo__softmax_shares(s->sources, d->tau);
    return wrpo__make_record(s);
}
/* A setting of *d: its default where it is 0, and what it must be; x is its value. */
#define WRPO__SETTING(field, otherwise, valid, wanted) { \
    if (wrpo__is_default((double)d->field)) d->field = otherwise; \
    const double x = (double)d->field; \
    WRPO__RANGE(valid, #field, x, wanted); }
static void wrpo__select_settings(wrpo_select_desc *d) {
    const bool quads = d->form == WRPO_FORM_QUADS, sft = d->form == WRPO_FORM_SFT;
    WRPO__RANGE(wrpo_form_name((int)d->form), "form", d->form, "one of wrpo_form");
    WRPO__SETTING(top, 1, x == 1 || (x > 1 && quads), "at least 1, and more than 1 for quads only");
    WRPO__SETTING(tau, 1, x > 0 && x <= DBL_MAX, "a finite number above 0");
    WRPO__SETTING(min_gap, 0, x >= 0 && x <= DBL_MAX && (x == 0 || !sft),
                  "a finite number of at least 0, and 0 for sft, which rejects nothing");
    WRPO__SETTING(max_gap, 0, x >= 0 && x <= DBL_MAX && (x == 0 || (x >= d->min_gap && !sft)),
                  "a finite number of at least min_gap, and 0 for sft");
    const bool delta = d->form == WRPO_FORM_DELTA;
    if (delta ? !d->strong || !d->weak || !strcmp(d->strong, d->weak) : d->strong || d->weak)
        wrpo__fail_arg("strong, weak: want the names of two models for the form delta, else NULL");
    if (delta && (d->min_gap != 0 || d->max_gap != 0 || d->require || d->entropy_power != 0))
        wrpo__fail_arg("min_gap, max_gap, require, entropy_power: want none for the form delta, which reads models' "
                       "names alone");
    WRPO__SETTING(entropy_power, 0, x >= 0 && x <= 100, "a number from 0 to 100");
    WRPO__SETTING(entropy_scale, 6.8, x > 0 && x <= DBL_MAX, "a finite number above 0");
}
/* The models' array and their names, as one block for the user. */
static void wrpo__hand_out_models(const wrpo__prompts *t, wrpo_select_stats *stats) {
    const int64_t n = stbds_shlen(t->models);
    size_t bytes = 0;
    for (int64_t i = 0; i < n; i++) bytes += sizeof *stats->models + strlen(t->models[i].key) + 1;
    stats->models = wrpo__raw(t->ctx->handouts, bytes, 1);
    stats->n_models = n;
    char *name = (char *)(stats->models + n);
    for (int64_t i = 0; i < n; i++, name += strlen(name) + 1) {
        wrpo_select_model *m = &stats->models[i];
        *m = t->models[i].value;
        m->reward /= (double)m->responses;
        m->name = strcpy(name, t->models[i].key);
    }
}
static void wrpo__select(const wrpo_select_desc *desc, wrpo_select_stats *stats) {
    wrpo__arena *arena = wrpo__current;
    wrpo__selection s = {.stats = stats};
    wrpo_select_desc *d = &s.desc;
    if (desc) *d = *desc;
    wrpo__select_settings(d);
    wrpo__prompts_open(&s.t, d->in, d->n_in, true, false);
    s.t.require = d->require;
    s.t.unscored = d->form == WRPO_FORM_DELTA;
    wrpo__writer *w = d->out ? wrpo__create(arena, d->out) : NULL;
    for (int64_t i = 0; i < stbds_shlen(s.t.prompts); i++) {
        wrpo__prompts_read(&s.t, &s.t.prompts[i], false);
        stats->prompts++;
        wrpo__current = s.t.temp;  /* for what is made of one prompt */
        const wrpo_json *record = wrpo__select_prompt(&s);
        stats->records += record != NULL;
        if (record && w) wrpo__write_line(w, record);
        wrpo__current = arena;
    }
    if (!stats->records)
        wrpo__fail_format("%s: no prompt gives a record: of %lld, %lld have no source response, %lld no target "
                          "response, %lld equal texts, %lld rewards too close", d->in[0], (long long)stats->prompts,
                          (long long)stats->no_source, (long long)stats->no_target, (long long)stats->equal,
                          (long long)stats->gap);
    for (int role = 0; role < 3; role++) {
        stats->reward[role] /= s.count[role];
        stats->length[role] /= s.count[role];
    }
    stats->empty = s.t.empty;
    if (w) wrpo__commit(w);
    wrpo__hand_out_models(&s.t, stats);
}
WRPO_API wrpo_result wrpo_select(wrpo_ctx *ctx, const wrpo_select_desc *desc, wrpo_select_stats *out) {
    *out = (wrpo_select_stats){0};
    WRPO__ENTRY(ctx, true, wrpo__select(desc, out));
}

/* ---- log-probs under a source model ---- */
typedef struct wrpo__annotation {  /* a file of records on its way to one with more source_logps */
    wrpo_source_logps_desc desc;
    const wrpo_data *data;  /* the records in the source model's tokens; NULL: no model */
    double *logps;  /* [N, K] */
    wrpo__prompts with;
} wrpo__annotation;
/* Adds the models of more to those of `to`, which has none of them. */
static void wrpo__add_models(wrpo_json *to, const wrpo_json *more) {
    WRPO__EACH(model, more) {
        if (wrpo_json_get(to, model->key))
            wrpo__wrong(model, "source_logps: want each model once, found \"%.80s\" again", model->key);
        wrpo__json_put(to, model, NULL);
    }
}
/* Record i with all its source_logps. */
static const wrpo_json *wrpo__annotate(wrpo__annotation *a, const wrpo_json *root, int64_t i) {
    wrpo_json *record = wrpo__json_empty(WRPO_JSON_OBJECT, root), *all = wrpo__json_empty(WRPO_JSON_OBJECT, root);
    const wrpo_json *had = wrpo__maybe(root, "source_logps", WRPO_JSON_OBJECT), *id = wrpo__present(root, "prompt_id");
    WRPO__EACH(v, root)
        if (strcmp(v->key, "source_logps")) wrpo__json_put(record, v, NULL);
    if (had) wrpo__add_models(all, had);
    if (a->desc.n_with && !id) wrpo__wrong(root, "prompt_id: want one, to find the record in other files; found none");
    const wrpo__lines *lines = a->desc.n_with ? stbds_shget(a->with.prompts, id->text) : NULL;
    if (stbds_arrlen(lines) != a->desc.n_with)
        wrpo__wrong(root, "prompt_id \"%.80s\": want it in %lld other files, found it in %lld", id->text,
                    (long long)a->desc.n_with, (long long)stbds_arrlen(lines));
    for (const wrpo__lines *l = lines; l < lines + a->desc.n_with; l++) {
        wrpo__add_models(all, wrpo__need(wrpo__line_json(wrpo__current, l), "source_logps", WRPO_JSON_OBJECT));
    }
    if (a->data) {
        const wrpo_record r = wrpo_data_record(a->data, i);
        wrpo_json own = {.kind = WRPO_JSON_OBJECT}, *model = wrpo__json_add(&own, a->desc.name, WRPO_JSON_ARRAY, "");
        for (int k = 0; k < r.count; k++) {
            wrpo_json *pair = wrpo__json_add(model, NULL, WRPO_JSON_ARRAY, "");
            wrpo__put_number(pair, NULL, WRPO__MIN(a->logps[i * a->data->most + k], 0));
            wrpo__put_number(pair, NULL, (double)(r.responses[k].count - r.responses[k].first));
        }
        wrpo__add_models(all, &own);
    }
    wrpo__json_put(record, all, "source_logps");
    return record;
}
/* The log-probs of all records, in parts, so that the caller hears of them. */
static void wrpo__source_logps_run(wrpo__annotation *a, wrpo_model *model) {
    enum { PART = 64 };
    const int K = a->data->most;
    const int64_t N = a->data->stats.records;
    wrpo__arena *temp = wrpo__sub_arena(wrpo__current);
    a->logps = wrpo__alloc(wrpo__current, wrpo__mul(model->ctx, (size_t)N, (size_t)K), sizeof *a->logps);
    wrpo__check_data(&model->config, a->data, 0, N);
    for (int64_t at = 0; at < N; at += PART) {
        const int64_t count = WRPO__MIN(PART, N - at);
        wrpo__logprobs(temp, model, a->data, NULL, at, count, a->desc.micro_tokens, a->logps + at * K, K, NULL);
        wrpo__arena_clear(temp);
        if (a->desc.on_step && !a->desc.on_step(at + count, N, a->desc.user))
            wrpo__fail(model->ctx, WRPO_E_STOPPED, "stopped after %lld of %lld records", (long long)(at + count),
                       (long long)N);
    }
}
static void wrpo__source_logps_file(wrpo_model *model, wrpo_tokenizer *tok, const wrpo_source_logps_desc *desc) {
    wrpo__arena *arena = wrpo__current, *temp = wrpo__sub_arena(arena);
    wrpo__annotation a = {.desc = desc ? *desc : (wrpo_source_logps_desc){0}};
    wrpo_source_logps_desc *d = &a.desc;
    if (!d->in || !d->out || !model != !tok || (model && !d->name) || (!model && !d->n_with))
        wrpo__fail_arg("wrpo_source_logps_desc: want in and out, and a model, its tokenizer and a name, or files of "
                       "`with`");
    WRPO__SETTING(max_length, 0, x >= 0, "at least 0");
    WRPO__SETTING(micro_tokens, wrpo__current->ctx->desc.backend->micro_tokens, x > 0 && x <= 1 << 30, "0 to 2^30");
    if (d->n_with) wrpo__prompts_open(&a.with, d->with, d->n_with, true, false);
    if (model) {
        const int64_t length = d->max_length ? d->max_length : model->config.max_position_embeddings;
        const wrpo_data_desc data = {.path = d->in, .max_length = length, .max_prompt_length = length - 1,
                                     .system_message = d->system_message};
        a.data = wrpo__data_load(wrpo__sub_arena(arena), tok, &data);
        const int64_t cut = a.data->stats.truncated_prompts + a.data->stats.truncated_responses;
        if (cut)
            wrpo__fail_format("%s: want prompts with responses of at most %lld tokens, found %lld that are longer: of "
                              "what is cut the model would give another log-prob", d->in, (long long)length,
                              (long long)cut);
        wrpo__source_logps_run(&a, model);
    }
    wrpo__writer *w = wrpo__create(arena, d->out);
    wrpo__records records = wrpo__records_open(arena, d->in);
    for (int64_t i = 0; wrpo__next_record(&records); i++, wrpo__arena_clear(temp)) {
        wrpo__current = temp;
        const wrpo_json *root = records.root ? records.root : wrpo__line_json(temp, &records.line);
        wrpo__write_line(w, wrpo__annotate(&a, wrpo__want(root, WRPO_JSON_OBJECT, "line"), i));
        wrpo__current = arena;
    }
    wrpo__commit(w);
}
WRPO_API wrpo_result wrpo_source_logps(wrpo_ctx *ctx, wrpo_model *model, wrpo_tokenizer *tok,
                                       const wrpo_source_logps_desc *desc) {
    WRPO__ENTRY_ALL(ctx, true, wrpo__source_logps_file(model, tok, desc));
}

/* ---- split ---- */
static void wrpo__split_prompts(wrpo_ctx *ctx, const wrpo_split_desc *desc, int64_t counts[4]) {
    wrpo__prompts t;
    wrpo_split_desc *d = &(wrpo_split_desc){0};
    if (desc) *d = *desc;
    if (!d->in || !d->out[0] || !d->out[1]) wrpo__fail_arg("wrpo_split_desc: want in and two of out, found NULL");
    WRPO__SETTING(share, 1.0 / 3, x > 0 && x < 1, "a number between 0 and 1");
    WRPO__SETTING(heldout, 0, x >= 0 && x < 1, "a number from 0 to below 1");
    if (!d->out[2] != (d->heldout == 0)) wrpo__fail_arg("wrpo_split_desc: want heldout and a third of out, or neither");
    if (!d->seed) d->seed = 42;
    wrpo__prompts_open(&t, &d->in, 1, false, true);
    const int64_t n = stbds_shlen(t.alike), held = (int64_t)floor(d->heldout * (double)n + 0.5);
    const int64_t first = (int64_t)floor(d->share * (double)(n - held) + 0.5);
    if (first < 1 || first >= n - held || (d->out[2] && held < 1))
        wrpo__fail_format("%s: want prompts for all parts, found %lld in all", d->in, (long long)n);
    counts[3] = stbds_shlen(t.prompts) - n;
    int64_t left[3] = {first, n - held - first, held};
    wrpo__writer *parts[3];
    const int n_parts = d->out[2] ? 3 : 2;
    for (int k = 0; k < n_parts; k++) parts[k] = wrpo__create(wrpo__current, d->out[k]);
    for (int64_t i = 0; i < n; i++) {  /* of the n - i prompts to come, left[k] go to part k */
        const wrpo__lines *lines = t.alike[i].value;
        int64_t draw = (int64_t)(wrpo__random64(d->seed, 0, (uint64_t)i) % (uint64_t)(n - i));
        int k = 0;
        while (draw >= left[k]) draw -= left[k++];
        for (const wrpo__lines *l = lines; l < lines + stbds_arrlen(lines); l++, counts[k]++) {
            wrpo__write(parts[k], l->text, l->size);
            wrpo__write(parts[k], "\n", 1);
        }
        left[k]--;
    }
    for (int k = 0; k < n_parts; k++) wrpo__finish(parts[k]);
    for (int k = 1; k < n_parts; k++) {  /* no kill leaves one beside another first part */
        wrpo__remove(ctx, d->out[k]);
        wrpo__sync_parent(d->out[k]);
    }
    for (int k = 0; k < n_parts; k++) {
        wrpo__publish(parts[k]);
        wrpo__sync_parent(d->out[k]);
    }
}
WRPO_API wrpo_result wrpo_split(wrpo_ctx *ctx, const wrpo_split_desc *desc, int64_t counts[4]) {
    memset(counts, 0, 4 * sizeof *counts);
    WRPO__ENTRY(ctx, true, wrpo__split_prompts(ctx, desc, counts));
}

/* ---- win rate ---- */
/* theta and phi of P(win) = sigmoid(theta + phi x[i]) for values y[i] in [0, 1] of i = sample[n], by Newton's method
   from where they are. */
static void wrpo__fit_logistic(const double *y, const double *x, const int64_t *sample, int64_t n, double *theta,
                               double *phi) {
    for (int step = 0; step < 50; step++) {
        double g0 = 0, g1 = *phi, h00 = 1e-9, h01 = 0, h11 = 1;  /* the penalty phi^2 / 2 */
        for (int64_t i = 0; i < n; i++) {
            const int64_t k = sample[i];
            const double p = wrpo__sigmoid(*theta + *phi * x[k]), v = p * (1 - p);
            g0 += p - y[k];
            g1 += (p - y[k]) * x[k];
            h00 += v;
            h01 += v * x[k];
            h11 += v * x[k] * x[k];
        }
        const double det = h00 * h11 - h01 * h01, d0 = (h11 * g0 - h01 * g1) / det, d1 = (h00 * g1 - h01 * g0) / det;
        const double most = WRPO__MAX(fabs(d0), fabs(d1)), cut = most > 2 ? 2 / most : 1;
        *theta = WRPO__MAX(WRPO__MIN(*theta - cut * d0, 30), -30);  /* 30: won or lost throughout */
        *phi -= cut * d1;
        if (most < 1e-10) break;
    }
}
/* The rate of sample[n], and their rate at equal lengths. */
static void wrpo__rates(const double *y, const double *x, const int64_t *sample, int64_t n, double *rate,
                        double *controlled) {
    double theta = 0, phi = 0;
    for (int64_t i = 0; i < n; i++) *rate += y[sample[i]] / (double)n;
    wrpo__fit_logistic(y, x, sample, n, &theta, &phi);
    *controlled = wrpo__sigmoid(theta);
}
static int wrpo__by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static void wrpo__interval(double *sorted, int64_t n, double *low, double *high) {
    qsort(sorted, (size_t)n, sizeof *sorted, wrpo__by_value);
    *low = sorted[(int64_t)floor(0.025 * (double)(n - 1))];
    *high = sorted[(int64_t)ceil(0.975 * (double)(n - 1))];
}
/* One prompt: adds to wins, ties and the means of out. Returns its value; *longer: how much longer a's answers are. */
static double wrpo__compare(wrpo__prompts sides[2], const char *id, wrpo_winrate_stats *out, double *longer) {
    double win = 0, tie = 0, length[2] = {0};
    for (int side = 0; side < 2; side++) {
        wrpo__prompts *t = &sides[side];
        const wrpo__gathered *prompt = stbds_shgetp(t->prompts, id);
        wrpo__prompts_read(t, prompt, true);
        const wrpo__scored *list = t->lists[WRPO__TARGETS];
        const double count = (double)stbds_arrlen(list);
        if (count == 0)
            wrpo__fail_format("%s: prompt_id \"%.80s\": want an answer with text, found none",
                              prompt->value->file->path, id);
        for (int64_t k = 0; k < stbds_arrlen(list); k++) {
            out->reward[side] += list[k].reward / count;
            length[side] += (double)wrpo__characters(list[k].content) / count;
        }
        out->length[side] += length[side];
    }
    const wrpo__scored *a = sides[0].lists[WRPO__TARGETS], *b = sides[1].lists[WRPO__TARGETS];
    for (int64_t k = 0; k < stbds_arrlen(a); k++)
        for (int64_t l = 0; l < stbds_arrlen(b); l++) {
            win += a[k].reward > b[l].reward;
            tie += a[k].reward == b[l].reward;
        }
    const double pairs = (double)(stbds_arrlen(a) * stbds_arrlen(b));
    out->wins += win / pairs;
    out->ties += tie / pairs;
    *longer = length[0] - length[1];
    return (win + 0.5 * tie) / pairs;
}
static void wrpo__winrate(const wrpo_winrate_desc *desc, wrpo_winrate_stats *out) {
    wrpo__prompts sides[2];
    wrpo_winrate_desc *d = &(wrpo_winrate_desc){0};
    if (desc) *d = *desc;
    if (!d->a || !d->b) wrpo__fail_arg("wrpo_winrate_desc: want a and b, found NULL");
    WRPO__SETTING(resamples, 1000, x >= 1 && x <= 1 << 24, "1 to 2^24");
    if (!d->seed) d->seed = 42;
    wrpo__prompts_open(&sides[0], &d->a, 1, true, false);
    wrpo__prompts_open(&sides[1], &d->b, 1, true, false);
    /* 1. The prompts of both files: values y, differences of length x. */
    const int64_t all = stbds_shlen(sides[0].prompts);
    double *y = WRPO__ARRAY(double, all), *x = WRPO__ARRAY(double, all);
    double squares = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < all; i++) {
        const char *id = sides[0].prompts[i].key;
        if (stbds_shgeti(sides[1].prompts, id) < 0) continue;
        y[n] = wrpo__compare(sides, id, out, &x[n]);
        squares += x[n] * x[n];
        n++;
    }
    if (!n) wrpo__fail_format("%s, %s: want prompts with the same prompt_id, found none", d->a, d->b);
    const double N = (double)n, sd = sqrt(squares / N);
    out->prompts = n;
    out->only_a = all - n;
    out->only_b = stbds_shlen(sides[1].prompts) - n;
    out->wins /= N;
    out->ties /= N;
    out->losses = 1 - out->wins - out->ties;
    for (int side = 0; side < 2; side++) {
        out->reward[side] /= N;
        out->length[side] /= N;
    }
    /* 2. The rates, and their intervals from resampled prompts. */
    int64_t *sample = WRPO__ARRAY(int64_t, n);
    double *rates = WRPO__ARRAY(double, d->resamples), *controlled = WRPO__ARRAY(double, d->resamples);
    for (int64_t i = 0; i < n; i++) {
        x[i] = sd > 0 ? tanh(x[i] / sd) : 0;
        sample[i] = i;
    }
    wrpo__rates(y, x, sample, n, &out->rate, &out->controlled);
    for (int64_t r = 0; r < d->resamples; r++) {
        for (int64_t i = 0; i < n; i++)
            sample[i] = (int64_t)(wrpo__random64(d->seed, (uint64_t)r, (uint64_t)i) % (uint64_t)n);
        wrpo__rates(y, x, sample, n, &rates[r], &controlled[r]);
    }
    wrpo__interval(rates, d->resamples, &out->low, &out->high);
    wrpo__interval(controlled, d->resamples, &out->controlled_low, &out->controlled_high);
}
WRPO_API wrpo_result wrpo_winrate(wrpo_ctx *ctx, const wrpo_winrate_desc *desc, wrpo_winrate_stats *out) {
    *out = (wrpo_winrate_stats){0};
    WRPO__ENTRY(ctx, true, wrpo__winrate(desc, out));
}

#ifdef WRPO_MPI
/* ----------------------------------------------------------------------------------------------- >>mpi
   A wrpo_group over MPI. Its counts are ints, so what is larger is moved in pieces. */
#include <mpi.h>
#ifndef WRPO__MPI_MOST
#define WRPO__MPI_MOST (1 << 30)     /* bytes of one message */
#endif
typedef struct wrpo__mpi { MPI_Comm all; int rank, ranks; bool ours; } wrpo__mpi;
static wrpo_result wrpo__mpi_says(int code, const char *call, wrpo_error *why) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    if (code == MPI_SUCCESS) return WRPO_OK;
    MPI_Error_string(code, text, &n);
    snprintf(why->text, sizeof why->text, "%s: %.300s", call, text);
    return why->code = WRPO_E_DEVICE;
}
static wrpo_result wrpo__mpi_most(void *self, int64_t *x, wrpo_error *why) {
    const wrpo__mpi *m = self;
    return wrpo__mpi_says(MPI_Allreduce(MPI_IN_PLACE, x, 1, MPI_INT64_T, MPI_MAX, m->all), "MPI_Allreduce", why);
}
static wrpo_result wrpo__mpi_broadcast(void *self, void *p, size_t n, int from, wrpo_error *why) {
    const wrpo__mpi *m = self;
    int code = MPI_SUCCESS;
    for (size_t at = 0; at < n && code == MPI_SUCCESS; at += WRPO__MPI_MOST)
        code = MPI_Bcast((char *)p + at, (int)WRPO__MIN(n - at, WRPO__MPI_MOST), MPI_BYTE, from, m->all);
    return wrpo__mpi_says(code, "MPI_Bcast", why);
}
static wrpo_result wrpo__mpi_gather(void *self, void *dev, void *x, size_t n, wrpo_error *why) {
    const wrpo__mpi *m = self;
    wrpo_result r = WRPO_OK;
    (void)dev;
    if (n <= WRPO__MPI_MOST)
        return wrpo__mpi_says(MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, x, (int)n, MPI_BYTE, m->all), "MPI_Allgather",
                              why);
    for (int i = 0; i < m->ranks && r == WRPO_OK; i++)
        r = wrpo__mpi_broadcast(self, (char *)x + (size_t)i * n, n, i, why);
    return r;
}
/* In round k each rank sends to the one k above and receives from the one k below. */
static wrpo_result wrpo__mpi_exchange(void *self, void *dev, float *parts, const float *x, int64_t stride, int64_t n,
                                      wrpo_error *why) {
    const wrpo__mpi *m = self;
    const int64_t most = WRPO__MPI_MOST / (int64_t)sizeof *x;
    int code = MPI_SUCCESS;
    (void)dev;
    for (int k = 0; k < m->ranks; k++) {
        const int to = (m->rank + k) % m->ranks, from = (m->rank + m->ranks - k) % m->ranks;
        for (int64_t at = 0; at < n && code == MPI_SUCCESS; at += most) {
            const int count = (int)WRPO__MIN(n - at, most);
            code = MPI_Sendrecv(x + to * stride + at, count, MPI_FLOAT, to, 0, parts + from * n + at, count, MPI_FLOAT,
                                from, 0, m->all, MPI_STATUS_IGNORE);
        }
    }
    return wrpo__mpi_says(code, "MPI_Sendrecv", why);
}
WRPO_API wrpo_result wrpo_mpi_open(wrpo_group *out, wrpo_error *why) {
    wrpo__mpi *m = calloc(1, sizeof *m);
    MPI_Comm machine;
    int there, level = MPI_THREAD_FUNNELED;
    *out = (wrpo_group){.ranks = 1, .locals = 1};
    *why = (wrpo_error){.code = WRPO_E_DEVICE, .text = "MPI cannot start with threads (MPI_THREAD_FUNNELED)"};
    if (!m || MPI_Initialized(&there) || (!there && MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level)) ||
        level < MPI_THREAD_FUNNELED || MPI_Comm_dup(MPI_COMM_WORLD, &m->all) ||
        MPI_Comm_set_errhandler(m->all, MPI_ERRORS_RETURN) ||
        MPI_Comm_split_type(m->all, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine)) {
        free(m);
        return why->code;
    }
    m->ours = !there;
    MPI_Comm_rank(m->all, &m->rank);
    MPI_Comm_size(m->all, &m->ranks);
    *out = (wrpo_group){.rank = m->rank, .ranks = m->ranks, .self = m, .most = wrpo__mpi_most,
                        .broadcast = wrpo__mpi_broadcast, .gather = wrpo__mpi_gather, .exchange = wrpo__mpi_exchange};
    MPI_Comm_rank(machine, &out->local);
    MPI_Comm_size(machine, &out->locals);
    MPI_Comm_free(&machine);
    *why = (wrpo_error){0};
    return WRPO_OK;
}
WRPO_API void wrpo_mpi_close(wrpo_group *group) {
    wrpo__mpi *m = group->self;
    if (!m) return;
    MPI_Barrier(m->all);             /* so that the launcher ends nobody who still has something to say */
    MPI_Comm_free(&m->all);
    if (m->ours) MPI_Finalize();
    free(m);
    group->self = NULL;
}
#endif /* WRPO_MPI */

/* ---------------------------------------------------------------------------------------------- >>cpu
   The fast backend: the ops of >>ops in vectors, on one to many threads. What an op computes is defined there; here is
   how it is made fast, and the order of its sums.

   First come the kernels: what one thread does with one row or one tile. They are compiled once per vector width: this
   file includes itself with WRPO__LANES set to 16 (AVX-512) and 8 (AVX2 and FMA), then reads on with 4 (the 16-byte
   vectors that the compiler has for any machine: SSE2, NEON). Then come the ops, compiled once: they cut the work into
   tasks and call the kernels of one width. wrpo_backend_cpu picks the widest one that the machine runs, whatever -march
   says; wrpo_backend_find gives each of them. The vectors are GNU C: another compiler, or WRPO_NO_SIMD, leaves all of
   it out, and the plain ops serve.

   A thread never adds to the sum of another one, and the shapes alone decide how a sum is cut: results depend neither
   on the number of threads nor on the run. A row of y in NT and NN products, and of o and lse in attention, depends on
   the inputs of that row only, not on the rows that are computed with it. The vector width changes the last bits. */
#ifndef __GNUC__
#undef WRPO_NO_SIMD
#define WRPO_NO_SIMD
#endif
#ifndef WRPO_NO_SIMD
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#include <cpuid.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
enum {
    WRPO__KC = 384,  /* a product sums k in blocks of this many words */
    WRPO__MC = 504,  /* rows of A, one block deep, that stay in the core's own cache */
    WRPO__A_PANELS = 12,  /* panels that a task packs for itself, of A */
    WRPO__B_PANELS = 8,  /* or of B */
    WRPO__UNPACKED = 48,  /* lanes of the other operand, at most, for which one is not packed */
    WRPO__FEW = 4,  /* rows that are multiplied as they come, one to a few floats a word */
    WRPO__PACKED_FLOATS = WRPO__MAX_HIDDEN,  /* of the buffer that threads share; rmsnorm_bwd needs a row of it */
    WRPO__SCRATCH_FLOATS = 1 << 19,  /* of each thread's own */
    WRPO__GRAIN = 1 << 14,  /* elements that are worth a task */
    WRPO__GROUP = 64  /* rows, or columns, that a task sums at a time */
};
typedef enum wrpo__factors {  /* what a product multiplies. A word is the float of one step of k or, in pairs, */
    WRPO__FLOATS,  /* two steps rounded to bfloat16, the first one in the low half */
    WRPO__PAIRS,  /* by vectors (AVX512_BF16) */
    WRPO__TILES  /* by tiles (AMX) */
} wrpo__factors;
/* A or B of a product. Lanes are the rows of A or the columns of B, steps are those of k. */
typedef struct wrpo__operand {
    const void *data; wrpo_dtype type;
    int64_t lane, step;  /* elements from one lane, or step, to the next; one of the two is 1 */
} wrpo__operand;
/* n lanes by kc steps of `from` become panels, `next` floats apart, of `words` words. */
typedef struct wrpo__packing {
    wrpo__operand from; int64_t n, kc;
    float *panels; int64_t next, words;
    bool few;  /* A has one panel, of at most WRPO__FEW lanes */
} wrpo__packing;
/* What is packed next, for a tile to fetch while it multiplies: lanes, and as many words of each as it has itself. */
typedef struct wrpo__ahead { const char *at; int64_t lanes, lane_bytes, word_bytes; } wrpo__ahead;
typedef struct wrpo__target {  /* c[m,n] = or += */
    float *c; int64_t ldc, m, n; bool add;
    wrpo__ahead ahead;
    int64_t few;  /* floats of a word of A: FEW, or 1: a row as it is in memory; 0: MR_ROOM */
} wrpo__target;
/* What lanes at these positions see of a tile of keys, the first one at key0 */
typedef struct wrpo__mask { const float *positions; int64_t key0; float window, softcap; bool masked; } wrpo__mask;
static const char *wrpo__address(const void *x, wrpo_dtype type, int64_t i) {  /* of element i */
    return (const char *)x + i * (type == WRPO_DTYPE_F32 ? 4 : 2);
}
static bool wrpo__has_pairs(void) {
#ifdef __x86_64__
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);  /* AVX512_BF16 */
#else
    return false;
#endif
}
/* AMX: eight tiles of 16 rows of 64 bytes; DOT is c += a b of tiles of bfloat16 pairs. These are instructions by name,
   because no compiler option may be asked for. A test may define the six itself and so run this code anywhere. */
#ifdef WRPO__TILE_DOT
static bool wrpo__has_tiles(void) { return true; }
#elif defined(__x86_64__)
#define WRPO__TILE_CONFIG(p) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])(p)))
#define WRPO__TILE_RELEASE() __asm__ volatile("tilerelease")
#define WRPO__TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define WRPO__TILE_LOAD(t, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define WRPO__TILE_STORE(t, p, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define WRPO__TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)
static bool wrpo__has_tiles(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  /* OSXSAVE */
    /* AMX-BF16, -TILE */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return false;  /* the system saves tiles */
#ifdef __linux__
    long refused;  /* arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): this process may use them */
    __asm__ volatile("syscall" : "=a"(refused) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return refused == 0;
#else
    return true;
#endif
}
#else
#define WRPO__TILE_CONFIG(p) (void)(p)
#define WRPO__TILE_RELEASE() (void)0
#define WRPO__TILE_ZERO(t) (void)0
#define WRPO__TILE_LOAD(t, p, stride) (void)(p)
#define WRPO__TILE_STORE(t, p, stride) (void)(p)
#define WRPO__TILE_DOT(c, a, b) (void)0
static bool wrpo__has_tiles(void) { return false; }
#endif
/* The widths. A compiler that does not tell the name of the file gets it from WRPO_FILE; without either, only the
   narrow one is compiled. */
#if !defined(WRPO_FILE) && defined(__INCLUDE_LEVEL__)
#if __INCLUDE_LEVEL__ > 0
#ifdef __FILE_NAME__
#define WRPO_FILE __FILE_NAME__
#else
#define WRPO_FILE "wrpo.h"
#endif
#endif
#endif
#undef WRPO_IMPLEMENTATION
#if (defined(__x86_64__) || defined(__i386__)) && defined(WRPO_FILE) && defined(__has_include)
#if __has_include(WRPO_FILE)
#define WRPO__HAVE_AVX
#define WRPO__LANES 16
#include WRPO_FILE
#undef WRPO__LANES
#define WRPO__LANES 8
#include WRPO_FILE
#undef WRPO__LANES
#else
#warning "wrpo.h: there is no file WRPO_FILE: AVX-512 and AVX2 are left out. Define WRPO_FILE as this file's name"
#endif
#endif
#define WRPO__LANES 4
#define WRPO_IMPLEMENTATION
#endif /* WRPO_NO_SIMD */
#endif /* WRPO_IMPLEMENTATION */

#ifdef WRPO__LANES
/* ---- the kernels of one vector width: WRPO__LANES floats; WRPO__(x) is wrpo__x_avx512 and so on ---- */
#define WRPO__JOIN2(a, b) wrpo__##a##_##b
#define WRPO__JOIN(a, b) WRPO__JOIN2(a, b)
#define WRPO__(name) WRPO__JOIN(name, WRPO__LEVEL)
#define WRPO__INLINE static inline WRPO__TARGET __attribute__((always_inline))
#define WRPO__KERNEL static WRPO__TARGET __attribute__((noinline))
#define WRPO__COLD __attribute__((cold)) WRPO__KERNEL
#ifdef __clang__
#define WRPO__UNROLL _Pragma("clang loop unroll(full)")
#else
#define WRPO__UNROLL _Pragma("GCC unroll 16")
#endif
#define WRPO__UNROLLED(i, n) WRPO__UNROLL for (int i = 0; i < (n); i++)
#define WRPO__PREFETCH(p, write) __builtin_prefetch(p, write)
/* V is a vector of floats, U one of their bits, I one of integers; H is one of bfloat16, the high halves of floats. */
#define WRPO__V WRPO__(v)
#define WRPO__U WRPO__(u)
#define WRPO__I WRPO__(i)
#define WRPO__H WRPO__(h)
#if WRPO__LANES == 16
#define WRPO__LEVEL avx512
#define WRPO__TARGET __attribute__((target("avx512f,avx512dq,avx2,fma,f16c")))
#define WRPO__MM(op) _mm512_##op##_ps
#define WRPO__QUADS(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4, \
    a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
enum { WRPO__(MR) = 14, WRPO__(NV) = 2 };  /* rows and vectors of a tile of C: 28 of 32 registers */
/* Products of bfloat16 are instructions by name: no compiler option is needed where the machine is asked first
   (wrpo__has_pairs). pair_dot: c + low(a) low(b) + high(a) high(b), word by word. pair_of: 32 floats as 16 words. */
#define WRPO__STEP(pairs, a, b, c) ((pairs) ? wrpo__pair_dot(a, b, c) : WRPO__FMA(a, b, c))
#define WRPO__PAIR_OF(a, b) (WRPO__V)wrpo__pair_of(a, b)
static inline WRPO__TARGET __attribute__((always_inline)) __m512 wrpo__pair_dot(__m512 a, __m512 b, __m512 c) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}
static inline WRPO__TARGET __attribute__((always_inline)) __m512 wrpo__pair_of(__m512 a, __m512 b) {
    __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(a) : "v"(b), "v"(a));
    return a;
}
#elif WRPO__LANES == 8
#define WRPO__LEVEL avx2
#define WRPO__TARGET __attribute__((target("avx2,fma,f16c")))
#define WRPO__MM(op) _mm256_##op##_ps
#define WRPO__QUADS(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
enum { WRPO__(MR) = 6, WRPO__(NV) = 2 };  /* 12 of 16 */
#else
#define WRPO__LEVEL generic
#define WRPO__TARGET
#define WRPO__QUADS(a, b, c, d) a, b, c, d
#ifdef __aarch64__
enum { WRPO__(MR) = 6, WRPO__(NV) = 4 };  /* 24 of 32 */
#else
enum { WRPO__(MR) = 6, WRPO__(NV) = 2 };
#endif
#endif
enum {
    WRPO__(LANES) = WRPO__LANES,
    WRPO__(NR) = WRPO__LANES * WRPO__(NV),
    WRPO__(MR_ROOM) = (WRPO__(MR) + WRPO__LANES - 1) / WRPO__LANES * WRPO__LANES,
    WRPO__(HAS_PAIRS) = WRPO__LANES == 16
};
typedef float WRPO__V __attribute__((vector_size(4 * WRPO__LANES)));
typedef uint32_t WRPO__U __attribute__((vector_size(4 * WRPO__LANES)));
typedef int32_t WRPO__I __attribute__((vector_size(4 * WRPO__LANES)));
typedef uint16_t WRPO__H __attribute__((vector_size(2 * WRPO__LANES)));
typedef WRPO__V WRPO__(v_at) __attribute__((aligned(4), may_alias));  /* anywhere in memory */
typedef WRPO__H WRPO__(h_at) __attribute__((aligned(2), may_alias));
#define WRPO__LOAD(p) ((WRPO__V)*(const WRPO__(v_at) *)(const void *)(p))
#define WRPO__STORE(p, x) (*(WRPO__(v_at) *)(void *)(p) = (x))
#define WRPO__LOAD_BF16(p) WRPO__FLOATS(WRPO__LOAD_HALVES(p) << 16)
#define WRPO__BITS(x) ((WRPO__U)(x))
#define WRPO__FLOATS(x) ((WRPO__V)(x))
#define WRPO__TRUNCATE(x) __builtin_convertvector(__builtin_convertvector(x, WRPO__I), WRPO__V)
#if defined(__clang__) || __GNUC__ >= 12
#define WRPO__SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define WRPO__SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (WRPO__U){__VA_ARGS__})
#endif
/* Operands of these may be vectors, or floats, which then are the same in all lanes. A word is broadcast by an
   instruction where it may be a pair, because arithmetic would change it. */
#define WRPO__VECTOR(x) ((x) - (WRPO__V){0})
#ifdef WRPO__MM
#if WRPO__LANES == 16
#define WRPO__LOAD_HALVES(p) ((WRPO__U)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(p))))
#define WRPO__LOAD_F16(p) WRPO__MM(cvtph)(_mm256_loadu_si256((const void *)(p)))
#else
#define WRPO__LOAD_HALVES(p) ((WRPO__U)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p))))
#define WRPO__LOAD_F16(p) WRPO__MM(cvtph)(_mm_loadu_si128((const void *)(p)))
#endif
#define WRPO__BROADCAST(word) ((WRPO__V)WRPO__MM(set1)(word))
#define WRPO__FMA(a, b, c) WRPO__MM(fmadd)(WRPO__VECTOR(a), WRPO__VECTOR(b), WRPO__VECTOR(c))
#elif defined(__aarch64__)
#define WRPO__BROADCAST(word) WRPO__VECTOR(word)
#define WRPO__FMA(a, b, c) vfmaq_f32(WRPO__VECTOR(c), WRPO__VECTOR(a), WRPO__VECTOR(b))
#else
#define WRPO__BROADCAST(word) WRPO__VECTOR(word)
#define WRPO__FMA(a, b, c) ((a) * (b) + (c))
#endif
#ifdef WRPO__MM
/* c + a b, in the register of c: left to itself, the compiler moves the sums of a tile from register to register. */
WRPO__INLINE WRPO__V WRPO__(add_product)(WRPO__V a, WRPO__V b, WRPO__V c) {
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}
#define WRPO__ADD_PRODUCT(a, b, c) WRPO__(add_product)(a, b, c)
#else
#define WRPO__ADD_PRODUCT(a, b, c) ((WRPO__V)WRPO__FMA(a, b, c))
#endif
#ifndef WRPO__STEP
/* pairs is false: only AVX-512 has them */
#define WRPO__STEP(pairs, a, b, c) ((pairs) ? (c) : (WRPO__V)WRPO__FMA(a, b, c))
#define WRPO__PAIR_OF(a, b) (a)
#endif
#define WRPO__LESS(a, b) WRPO__BITS(WRPO__VECTOR(a) < WRPO__VECTOR(b))  /* all ones where it holds; NaN is not less */
WRPO__INLINE WRPO__V WRPO__(select)(WRPO__U mask, WRPO__V a, WRPO__V b) {
    return WRPO__FLOATS((mask & WRPO__BITS(a)) | (~mask & WRPO__BITS(b)));
}
WRPO__INLINE WRPO__V WRPO__(max)(WRPO__V a, WRPO__V b) {  /* a < b ? b : a, so a where either is NaN */
#ifdef WRPO__MM
    return WRPO__MM(max)(b, a);
#else
    return WRPO__(select)(WRPO__LESS(a, b), b, a);
#endif
}
WRPO__INLINE WRPO__V WRPO__(sqrt)(WRPO__V x) {
#ifdef WRPO__MM
    return WRPO__MM(sqrt)(x);
#elif defined(__aarch64__)
    return vsqrtq_f32(x);
#else
    for (int i = 0; i < WRPO__LANES; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}
#ifndef WRPO__LOAD_HALVES
#define WRPO__LOAD_HALVES(p) __builtin_convertvector(*(const WRPO__(h_at) *)(const void *)(p), WRPO__U)
#define WRPO__LOAD_F16(p) WRPO__(load_f16)(p)
/* wrpo__f16_to_bits of a vector: the exponent, whose bias is 15, becomes 127's by a product that also makes denormals
   normal; infinity and NaN get all its bits. */
WRPO__INLINE WRPO__V WRPO__(load_f16)(const uint16_t *p) {
    const WRPO__U h = WRPO__LOAD_HALVES(p), size = (h & 0x7FFF) << 13, special = (WRPO__U)(size >= 0x7C00u << 13);
    const WRPO__U bits = WRPO__BITS(WRPO__FLOATS(size) * 0x1p112f) | (special & 0x7F800000u);
    return WRPO__FLOATS(bits | (h & 0x8000) << 16);
}
#endif
#if defined(WRPO__MM) && WRPO__LANES == 16  /* the first `left` of a vector's floats, 0 < left < LANES */
#define WRPO__SOME(left) ((__mmask16)((1u << (left)) - 1))
#define WRPO__LOAD_SOME(p, left, fill) ((WRPO__V)WRPO__MM(mask_loadu)(WRPO__BROADCAST(fill), WRPO__SOME(left), p))
#define WRPO__STORE_SOME(p, left, x) WRPO__MM(mask_storeu)(p, WRPO__SOME(left), x)
#elif defined(WRPO__MM)
#define WRPO__SOME(left) ((WRPO__U)((WRPO__I){0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)(left)))
#define WRPO__LOAD_SOME(p, left, fill) \
    WRPO__(select)(WRPO__SOME(left), (WRPO__V)WRPO__MM(maskload)(p, (__m256i)WRPO__SOME(left)), WRPO__BROADCAST(fill))
#define WRPO__STORE_SOME(p, left, x) WRPO__MM(maskstore)(p, (__m256i)WRPO__SOME(left), x)
#else
#define WRPO__STORE_SOME(p, left, x) for (int64_t k = 0; k < (left); k++) (p)[k] = (x)[k]
#endif
/* The elements of x from i on; where fewer than a vector are left, missing ones read as `fill`, and are not written. */
WRPO__COLD WRPO__V WRPO__(read_end)(const void *x, wrpo_dtype type, int64_t i, int64_t left, float fill) {
    float t[WRPO__LANES];
    for (int k = 0; k < WRPO__LANES; k++) t[k] = k < left ? wrpo__element(x, type, i + k) : fill;
    return WRPO__LOAD(t);
}
WRPO__INLINE WRPO__V WRPO__(read)(const void *x, wrpo_dtype type, int64_t i, int64_t left, float fill) {
#ifdef WRPO__LOAD_SOME
    if (left > 0 && left < WRPO__LANES && type == WRPO_DTYPE_F32)
        return WRPO__LOAD_SOME((const float *)x + i, left, fill);
#endif
    if (left < WRPO__LANES) return WRPO__(read_end)(x, type, i, left, fill);
    if (type == WRPO_DTYPE_F16) return WRPO__LOAD_F16((const uint16_t *)x + i);
    return type == WRPO_DTYPE_BF16 ? WRPO__LOAD_BF16((const uint16_t *)x + i) : WRPO__LOAD((const float *)x + i);
}
WRPO__INLINE void WRPO__(write)(float *y, int64_t left, WRPO__V x) {
    if (left >= WRPO__LANES) WRPO__STORE(y, x);
    else if (left > 0) WRPO__STORE_SOME(y, left, x);
}
#define WRPO__VECTORS(i, n) for (int64_t i = 0; i < (n); i += WRPO__LANES)
/* The same in the loops of kernels over a row of n elements: the vector at i. */
#define WRPO__GET(x) WRPO__(read)(x, WRPO_DTYPE_F32, i, n - i, 0)
#define WRPO__PUT(y, x) WRPO__(write)((y) + i, n - i, x)
WRPO__INLINE float WRPO__(sum)(WRPO__V x) {  /* each round adds the upper half to the lower one */
#if WRPO__LANES == 16
    x += WRPO__SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
    x += WRPO__SHUFFLE(x, x, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
#elif WRPO__LANES == 8
    x += WRPO__SHUFFLE(x, x, 4, 5, 6, 7, 4, 5, 6, 7);
#endif
    return (x[0] + x[2]) + (x[1] + x[3]);
}
WRPO__INLINE float WRPO__(largest)(WRPO__V x) {
    for (int i = 1; i < WRPO__LANES; i++) x[0] = x[0] < x[i] ? x[i] : x[0];
    return x[0];
}
/* x becomes its own transpose: each square of four by four in itself, then the squares as wholes. Shuffles within four
   lanes are the cheapest. */
#define WRPO__RUN(i) i, i + 1, i + 2, i + 3
WRPO__INLINE void WRPO__(turn)(WRPO__V *x) {
    enum { N = WRPO__LANES };
    WRPO__UNROLL
    for (int i = 0; i < N; i += 4) {
        const WRPO__V a = WRPO__SHUFFLE(x[i], x[i + 1], WRPO__QUADS(0, N, 1, N + 1));
        const WRPO__V b = WRPO__SHUFFLE(x[i], x[i + 1], WRPO__QUADS(2, N + 2, 3, N + 3));
        const WRPO__V c = WRPO__SHUFFLE(x[i + 2], x[i + 3], WRPO__QUADS(0, N, 1, N + 1));
        const WRPO__V d = WRPO__SHUFFLE(x[i + 2], x[i + 3], WRPO__QUADS(2, N + 2, 3, N + 3));
        x[i] = WRPO__SHUFFLE(a, c, WRPO__QUADS(0, 1, N, N + 1));
        x[i + 1] = WRPO__SHUFFLE(a, c, WRPO__QUADS(2, 3, N + 2, N + 3));
        x[i + 2] = WRPO__SHUFFLE(b, d, WRPO__QUADS(0, 1, N, N + 1));
        x[i + 3] = WRPO__SHUFFLE(b, d, WRPO__QUADS(2, 3, N + 2, N + 3));
    }
#if WRPO__LANES == 16
#define WRPO__HALVES(x, y, i) WRPO__SHUFFLE(x, y, WRPO__RUN(i), WRPO__RUN(i + 4), WRPO__RUN(i + 16), WRPO__RUN(i + 20))
#define WRPO__FOURTHS(x, y, i) WRPO__SHUFFLE(x, y, WRPO__RUN(i), WRPO__RUN(i + 8), WRPO__RUN(i + 16), WRPO__RUN(i + 24))
    WRPO__UNROLLED(i, 4) {
        const WRPO__V a = WRPO__HALVES(x[i], x[i + 4], 0), b = WRPO__HALVES(x[i], x[i + 4], 8);
        const WRPO__V c = WRPO__HALVES(x[i + 8], x[i + 12], 0), d = WRPO__HALVES(x[i + 8], x[i + 12], 8);
        x[i] = WRPO__FOURTHS(a, c, 0);
        x[i + 4] = WRPO__FOURTHS(a, c, 4);
        x[i + 8] = WRPO__FOURTHS(b, d, 0);
        x[i + 12] = WRPO__FOURTHS(b, d, 4);
    }
#undef WRPO__HALVES
#undef WRPO__FOURTHS
#elif WRPO__LANES == 8
    WRPO__UNROLLED(i, 4) {
        const WRPO__V a = x[i];
        x[i] = WRPO__SHUFFLE(a, x[i + 4], WRPO__RUN(0), WRPO__RUN(8));
        x[i + 4] = WRPO__SHUFFLE(a, x[i + 4], WRPO__RUN(4), WRPO__RUN(12));
    }
#endif
}
/* e^x, relative error below 1.2e-7: x = z ln 2 + r with integer z and |r| <= ln 2 / 2, e^r by a polynomial.
   0 below -87.336 (no denormals), the value at 88.37 above it; NaN stays NaN. */
WRPO__INLINE WRPO__V WRPO__(exp)(WRPO__V x) {
    const float round = 12582912.0f + 127.0f;
    const WRPO__U zero = WRPO__LESS(x, -87.336f);
    x = WRPO__(max)(x, WRPO__VECTOR(-87.336f));
    x = -WRPO__(max)(-x, WRPO__VECTOR(-88.37f));
    /* adding 1.5 * 2^23 rounds to an integer, and leaves it in the low bits: with 127 more, an exponent */
    WRPO__V z = WRPO__FMA(x, 1.44269504f, round);
    const WRPO__V power = WRPO__FLOATS(WRPO__BITS(z) << 23);
    z = z - round;
    x = WRPO__FMA(z, -0.693359375f, x);  /* ln 2 in two parts; the first one times z is exact */
    x = WRPO__FMA(z, 2.12194440e-4f, x);
    WRPO__V p = WRPO__FMA(x, 1.9875691500e-4f, 1.3981999507e-3f);
    p = WRPO__FMA(p, x, 8.3334519073e-3f);
    p = WRPO__FMA(p, x, 4.1665795894e-2f);
    p = WRPO__FMA(p, x, 1.6666665459e-1f);
    p = WRPO__FMA(p, x, 5.0000001201e-1f);
    p = WRPO__FMA(p, x * x, x) + 1.0f;
    return WRPO__FLOATS(~zero & WRPO__BITS(p * power));
}
/* tanh x: an odd polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel */
WRPO__INLINE WRPO__V WRPO__(tanh)(WRPO__V x) {
    const WRPO__V q = x * x;
    WRPO__V p = WRPO__FMA(q, -5.70498872745e-3f, 2.06390887954e-2f);
    p = WRPO__FMA(p, q, -5.37397155531e-2f);
    p = WRPO__FMA(p, q, 1.33314422036e-1f);
    p = WRPO__FMA(p, q, -3.33332819422e-1f);
    p = WRPO__FMA(p * q, x, x);
    return WRPO__(select)(WRPO__LESS(q, 0.39f), p, 1.0f - 2.0f / (WRPO__(exp)(x + x) + 1.0f));
}

/* ---- rows ---- */
WRPO__KERNEL void WRPO__(scale)(float *y, float s, const void *x, wrpo_dtype type, int64_t n) {
    WRPO__VECTORS(i, n) WRPO__PUT(y, s * WRPO__(read)(x, type, i, n - i, 0));
}
WRPO__KERNEL void WRPO__(axpy)(float *y, float s, const float *x, int64_t n) {
    WRPO__VECTORS(i, n) WRPO__PUT(y, WRPO__FMA(s, WRPO__GET(x), WRPO__GET(y)));
}
WRPO__KERNEL float WRPO__(dot)(const float *x, const float *y, int64_t n) {
    WRPO__V s = {0};
    WRPO__VECTORS(i, n) s = WRPO__FMA(WRPO__GET(x), WRPO__GET(y), s);
    return WRPO__(sum)(s);
}
WRPO__KERNEL void WRPO__(rmsnorm)(float *y, float *rstd, const float *x, const float *w, int64_t n, float eps,
                                  float plus) {
    WRPO__V squares = {0};
    WRPO__VECTORS(i, n) squares = WRPO__FMA(WRPO__GET(x), WRPO__GET(x), squares);
    const float s = 1 / sqrtf(WRPO__(sum)(squares) / (float)n + eps);
    WRPO__VECTORS(i, n) WRPO__PUT(y, WRPO__GET(x) * s * (WRPO__GET(w) + plus));
    *rstd = s;
}
WRPO__KERNEL void WRPO__(rmsnorm_bwd)(float *dx, float *dw, const float *dy, const float *dres, const float *x,
                                      const float *w, float rstd, int64_t n, float plus) {
    WRPO__V dot = {0};
    WRPO__VECTORS(i, n)
        dot = WRPO__FMA(WRPO__GET(dy) * (WRPO__GET(w) + plus), WRPO__GET(x), dot);
    const float c = WRPO__(sum)(dot) / (float)n * rstd * rstd;
    WRPO__VECTORS(i, n) {  /* dy is read before dx is written, which may be dy */
        const WRPO__V d = WRPO__GET(dy), in = WRPO__GET(x);
        const WRPO__V v = (d * (WRPO__GET(w) + plus) - c * in) * rstd;
        WRPO__PUT(dw, WRPO__FMA(d * rstd, in, WRPO__GET(dw)));
        WRPO__PUT(dx, dres ? v + WRPO__GET(dres) : v);
    }
}
WRPO__KERNEL void WRPO__(rope)(float *x, const float *table, int64_t heads, int64_t d, float sign) {
    const int64_t n = d / 2;
    float cosine[WRPO__MAX_D / 2], sine[WRPO__MAX_D / 2];
    for (int64_t i = 0; i < n; i++) {
        cosine[i] = table[2 * i];
        sine[i] = sign * table[2 * i + 1];
    }
    for (int64_t h = 0; h < heads; h++, x += d)
        WRPO__VECTORS(i, n) {
            const WRPO__V c = WRPO__GET(cosine), s = WRPO__GET(sine), x1 = WRPO__GET(x), x2 = WRPO__GET(x + n);
            WRPO__PUT(x, x1 * c - x2 * s);
            WRPO__PUT(x + n, x2 * c + x1 * s);
        }
}
WRPO__INLINE WRPO__V WRPO__(act)(WRPO__V g, bool gelu, WRPO__V *slope) {
    if (!gelu) {
        const WRPO__V s = 1.0f / (1.0f + WRPO__(exp)(-g));
        *slope = s * WRPO__FMA(g, 1.0f - s, 1.0f);
        return g * s;
    }
    const float a = 0.7978845608f, b = 0.044715f;
    const WRPO__V t = WRPO__(tanh)(a * WRPO__FMA(b * g * g, g, g)), u = WRPO__FMA(0.5f, t, 0.5f);
    *slope = WRPO__FMA(0.5f * g * WRPO__FMA(-t, t, 1.0f), a * WRPO__FMA(3 * b * g, g, 1.0f), u);
    return g * u;
}
/* What is written is fetched ahead too: by itself the machine does so only for what is read. */
WRPO__KERNEL void WRPO__(glu)(float *h, const float *gu, int64_t n, bool gelu) {
    WRPO__V slope;
    WRPO__VECTORS(i, n) {
        WRPO__PREFETCH(gu + i + 512, 0);
        WRPO__PREFETCH(gu + n + i + 512, 0);
        WRPO__PREFETCH(h + i + 512, 1);
        WRPO__PUT(h, WRPO__(act)(WRPO__GET(gu), gelu, &slope) * WRPO__GET(gu + n));
    }
}
WRPO__KERNEL void WRPO__(glu_bwd)(float *dgu, float *h, const float *dh, const float *gu, int64_t n, bool gelu) {
    WRPO__VECTORS(i, n) {
        WRPO__PREFETCH(gu + i + 512, 0);
        WRPO__PREFETCH(gu + n + i + 512, 0);
        WRPO__PREFETCH(dh + i + 512, 0);
        WRPO__PREFETCH(dgu + i + 512, 1);
        WRPO__PREFETCH(dgu + n + i + 512, 1);
        WRPO__V slope;
        const WRPO__V up = WRPO__GET(gu + n), d = WRPO__GET(dh), act = WRPO__(act)(WRPO__GET(gu), gelu, &slope);
        if (h) WRPO__PUT(h, act * up);
        WRPO__PUT(dgu, d * up * slope);
        WRPO__PUT(dgu + n, d * act);
    }
}
WRPO__INLINE WRPO__V WRPO__(softcap)(WRPO__V x, float cap) {  /* -inf stays: such a logit does not count */
    if (cap <= 0) return x;
    return WRPO__(select)(WRPO__LESS(x, -FLT_MAX), x, cap * WRPO__(tanh)(x / cap));
}
/* In blocks of 1024 elements; the sum so far is rescaled when a block has a larger maximum. */
WRPO__KERNEL double WRPO__(lse)(const float *x, int64_t n, float softcap) {
    float top = -INFINITY;
    double sum = 0;
    for (int64_t block = 0; block < n; block += 1024) {
        const int64_t end = WRPO__MIN(n, block + 1024);
        WRPO__V most = WRPO__VECTOR(-INFINITY), part = {0};
        for (int64_t i = block; i < end; i += WRPO__LANES)
            most = WRPO__(max)(most, WRPO__(read)(x, WRPO_DTYPE_F32, i, end - i, -INFINITY));
        const float block_top = WRPO__(largest)(WRPO__(softcap)(most, softcap));
        if (block_top > top) {
            sum *= exp((double)top - (double)block_top);
            top = block_top;
        }
        const float base = top > -INFINITY ? top : 0;  /* nothing but -inf so far: the sum stays 0 */
        for (int64_t i = block; i < end; i += WRPO__LANES) {
            const WRPO__V v = WRPO__(read)(x, WRPO_DTYPE_F32, i, end - i, -INFINITY);
            part += WRPO__(exp)(WRPO__(softcap)(v, softcap) - base);
        }
        sum += (double)WRPO__(sum)(part);
    }
    return (double)top + log(sum);
}
WRPO__KERNEL void WRPO__(logprob_bwd)(float *y, const float *x, int64_t label, float lse, float g, int64_t n,
                                      float softcap) {
    const float t = softcap > 0 ? tanhf(x[label] / softcap) : 0;
    WRPO__VECTORS(i, n) {
        const WRPO__V v = WRPO__(softcap)(WRPO__GET(x), softcap);
        WRPO__V p = WRPO__(exp)(v - lse);
        if (softcap > 0) {  /* p of -inf is 0: its slope must be finite */
            const WRPO__V tanh = WRPO__(max)(v / softcap, WRPO__VECTOR(-1.0f));
            p = p * WRPO__FMA(-tanh, tanh, 1.0f);
        }
        WRPO__PUT(y, -g * p);
    }
    y[label] += g * (1 - t * t);
}
WRPO__KERNEL double WRPO__(sumsq)(const float *x, int64_t n) { /* eight sums, then their sum */
    double s[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) s[j] += (double)x[i + j] * (double)x[i + j];
    for (; i < n; i++) s[0] += (double)x[i] * (double)x[i];
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* ---- adamw: what is not float is unpacked a block at a time, and packed again ---- */
WRPO__KERNEL void WRPO__(adamw_floats)(float *w, float *m, float *v, const float *g, int64_t n,
                                       const wrpo_adamw *step) {
    const float keep = (float)(1 - (double)step->lr * (double)step->weight_decay);
    const float rate = (float)((double)step->lr / step->correction1), correction2 = (float)step->correction2;
    const float new1 = (float)(1 - (double)step->beta1), new2 = (float)(1 - (double)step->beta2);
    WRPO__VECTORS(i, n) {
        const WRPO__V gradient = WRPO__GET(g) * step->grad_scale, old = WRPO__GET(m);
        const WRPO__V m_now = WRPO__FMA(new1, gradient - old, old);
        const WRPO__V v_now = WRPO__FMA(new2 * gradient, gradient, WRPO__GET(v) * step->beta2);
        WRPO__PUT(m, m_now);
        WRPO__PUT(v, v_now);
        WRPO__PUT(w, WRPO__GET(w) * keep - rate * m_now / (WRPO__(sqrt)(v_now) / correction2 + step->eps));
    }
}
WRPO__INLINE WRPO__V WRPO__(code_value)(WRPO__V code, float scale, float top) {
    const WRPO__V root = code * (1 / top), square = root * root;
    return square * square * scale;
}
WRPO__KERNEL void WRPO__(moment_load)(float *x, const void *block, bool bf16, bool second) {
    const uint8_t *codes = block;
    float scale;
    if (bf16) {
        WRPO__VECTORS(i, WRPO_BLOCK)
            WRPO__STORE(x + i, WRPO__LOAD_BF16((const uint16_t *)block + i));
        return;
    }
    memcpy(&scale, codes + WRPO_BLOCK, sizeof scale);
    for (int64_t i = 0; i < WRPO_BLOCK; i++) x[i] = second ? (float)codes[i] : (float)(int8_t)codes[i];
    WRPO__VECTORS(i, WRPO_BLOCK) {
        const WRPO__V code = WRPO__LOAD(x + i), size = WRPO__(code_value)(code, scale, second ? 255 : 127);
        WRPO__STORE(x + i, WRPO__(select)(WRPO__LESS(code, 0.0f), -size, size));
    }
}
WRPO__KERNEL void WRPO__(moment_store)(void *block, const float *x, bool bf16, bool second, uint32_t seed,
                                       int64_t first) {
    const float top = second ? 255 : 127;
    uint8_t *codes = block;
    uint32_t dice[WRPO_BLOCK];
    float code[WRPO_BLOCK];
    for (int64_t i = 0; i < WRPO_BLOCK; i++) dice[i] = wrpo__dice(seed, first + i);
    if (bf16) {
        for (int64_t i = 0; i < WRPO_BLOCK; i++)
            ((uint16_t *)block)[i] = (uint16_t)((wrpo__float_bits(x[i]) + (dice[i] >> 16)) >> 16);
        return;
    }
    WRPO__V most = {0};
    WRPO__VECTORS(i, WRPO_BLOCK)
        most = WRPO__(max)(most, WRPO__(max)(WRPO__LOAD(x + i), -WRPO__LOAD(x + i)));
    const float scale = WRPO__(largest)(most), inverse = scale >= FLT_MIN ? 1 / scale : 0;
    for (int64_t i = 0; i < WRPO_BLOCK; i++) code[i] = (float)(int32_t)(dice[i] >> 8) * (1.0f / 16777216);
    WRPO__VECTORS(i, WRPO_BLOCK) {
        const WRPO__V size = WRPO__(max)(WRPO__LOAD(x + i), -WRPO__LOAD(x + i)), chance = WRPO__LOAD(code + i);
        WRPO__V q = WRPO__(sqrt)(WRPO__(sqrt)(size * inverse)) * top;
        q = WRPO__TRUNCATE(-WRPO__(max)(-q, WRPO__VECTOR(1 - top)));  /* q and q + 1 are the codes around it */
        const WRPO__V low = WRPO__(code_value)(q, scale, top), high = WRPO__(code_value)(q + 1, scale, top);
        q = WRPO__(select)(WRPO__LESS(chance * (high - low), size - low), q + 1, q);
        if (second) q = WRPO__(select)(WRPO__LESS(0.0f, size), WRPO__(max)(q, WRPO__VECTOR(1.0f)), q);
        WRPO__STORE(code + i, q);
    }
    for (int64_t i = 0; i < WRPO_BLOCK; i++)
        codes[i] = second ? (uint8_t)code[i] : (uint8_t)(int8_t)(x[i] < 0 ? -code[i] : code[i]);
    memcpy(codes + WRPO_BLOCK, &scale, sizeof scale);
}
/* Elements [first, first + n) of the arrays; first is at a block. */
WRPO__KERNEL void WRPO__(adamw)(void *w, uint16_t *low, void *m, void *v, const float *g, int64_t first, int64_t n,
                                const wrpo_adamw *step) {
    const bool floats = step->moments == WRPO_MOMENTS_F32, bf16 = step->moments == WRPO_MOMENTS_BF16;
    const uint32_t seed_m = (uint32_t)step->seed, seed_v = (uint32_t)(step->seed >> 32);
    const int64_t end = first + n, at_once = floats && !low ? n : WRPO_BLOCK;
    for (int64_t i = first; i < end; i += at_once) {
        float w_now[WRPO_BLOCK], m_now[WRPO_BLOCK], v_now[WRPO_BLOCK];
        char *m_block = (char *)m + wrpo_moments_bytes(step->moments, i);
        char *v_block = (char *)v + wrpo_moments_bytes(step->moments, i);
        uint16_t *high = low ? (uint16_t *)w + i : NULL;
        for (int64_t k = 0; low && k < WRPO_BLOCK; k++) w_now[k] = wrpo__master(high[k], low[i + k]);
        if (!floats) {
            WRPO__(moment_load)(m_now, m_block, bf16, false);
            WRPO__(moment_load)(v_now, v_block, bf16, true);
        }
        WRPO__(adamw_floats)(low ? w_now : (float *)w + i, floats ? (float *)m + i : m_now,
                             floats ? (float *)v + i : v_now, g + i, WRPO__MIN(at_once, end - i), step);
        if (!floats) {
            WRPO__(moment_store)(m_block, m_now, bf16, false, seed_m, i);
            WRPO__(moment_store)(v_block, v_now, bf16, true, seed_v, i);
        }
        for (int64_t k = 0; low && k < WRPO_BLOCK; k++) wrpo__master_split(w_now[k], &high[k], &low[i + k]);
    }
}

/* ---- products: panels and tiles ----
   A packed panel of A is a[word][MR_ROOM], of B b[word][NR]: the lanes of a word are side by side. The tile multiplies
   one panel of each: per word NV vectors of B, MR single words of A and MR NV multiply-adds, with all of C's tile in
   registers. An element of C is the sum of its block of k in the order of k, whatever kernel computes it. */
/* a and b are the bits of two steps of all lanes: rounded to nearest, unless they are bfloat16 already. */
WRPO__INLINE WRPO__V WRPO__(pair_across)(WRPO__U a, WRPO__U b, const bool round) {
    if (round) {
        a += 0x7FFFu + (a >> 16 & 1);
        b += 0x7FFFu + (b >> 16 & 1);
    }
    return WRPO__FLOATS(a >> 16 | (b & 0xFFFF0000u));
}
/* The words at element `at` of an operand, in a vector: LANES words of one lane (along) or one word of LANES lanes
   (across). `lanes` and `steps` are left from there on. */
WRPO__INLINE WRPO__V WRPO__(words)(const bool across, const bool pairs, wrpo__operand from, int64_t at,
                                   int64_t lanes, int64_t steps) {
    const bool bf16 = from.type == WRPO_DTYPE_BF16;
    if (pairs && bf16 && !across) {  /* two to a word, as they are in memory */
        WRPO__V x = {0};
        memcpy(&x, (const uint16_t *)from.data + at, 2 * (size_t)WRPO__MIN(steps, 2 * WRPO__LANES));
        return x;
    }
    const WRPO__V first = WRPO__(read)(from.data, from.type, at, across ? lanes : steps, 0);
    if (!pairs) return first;
    if (!across)
        return WRPO__PAIR_OF(first, WRPO__(read)(from.data, from.type, at + WRPO__LANES, steps - WRPO__LANES, 0));
    const WRPO__V second = steps > 1 ? WRPO__(read)(from.data, from.type, at + from.step, lanes, 0) : (WRPO__V){0};
    return WRPO__(pair_across)(WRPO__BITS(first), WRPO__BITS(second), !bf16);
}
/* LANES such vectors, of one lane or word after the other; those from `count` on are 0. Where fewer elements are left
   than a whole square needs, a function of its own reads them, to keep this code short. */
WRPO__COLD void WRPO__(square_end)(WRPO__V *x, bool across, bool pairs, wrpo__operand from, int64_t at, int64_t count,
                                   int64_t lanes, int64_t steps) {
    const int step = pairs ? 2 : 1;
    for (int i = 0; i < WRPO__LANES; i++, at += across ? from.step * step : from.lane) {
        const int64_t left = across ? steps - i * step : steps;
        x[i] = i < count ? WRPO__(words)(across, pairs, from, at, lanes, left) : (WRPO__V){0};
    }
}
WRPO__INLINE void WRPO__(square)(WRPO__V *x, const bool across, const bool pairs, wrpo__operand from, int64_t at,
                                 int64_t count, int64_t lanes, int64_t steps, const char *later, int64_t later_step) {
    const int whole = (pairs ? 2 : 1) * WRPO__LANES;
    const int64_t next = across ? from.step * (pairs ? 2 : 1) : from.lane;
    const bool inside = lanes >= WRPO__LANES || (steps > whole && WRPO__LANES - lanes <= from.step);
    if (steps < whole || (across && !inside)) {
        WRPO__V t[WRPO__LANES];
        WRPO__(square_end)(t, across, pairs, from, at, count, lanes, steps);
        WRPO__UNROLLED(i, WRPO__LANES) x[i] = t[i];
        return;
    }
    WRPO__UNROLL
    for (int i = 0; i < WRPO__LANES; i++, at += next, later += later_step) {
        x[i] = (WRPO__V){0};
        if (!across && i >= count) continue;
        WRPO__PREFETCH(later, 0);
        if (across && pairs) WRPO__PREFETCH(wrpo__address(later, from.type, from.step), 0);
        x[i] = WRPO__(words)(across, pairs, from, at, WRPO__LANES, whole);
    }
}
/* Panels of `width` lanes, each [words][room] or, for tiles of A, lane by lane, [room][words]. They are made in squares
   of LANES lanes by LANES words, which are read along the stride 1, and turned where the panel has the other order.
   A word is stored as a whole vector: where `room` is less, the next word overwrites the rest. Missing lanes and steps
   are 0; lanes from width to room may have any value, because no tile looks at them. Where steps are rows of the
   operand, squares side by side come first. */
WRPO__INLINE void WRPO__(pack_as)(const bool across, const int width, const int room, const bool pairs,
                                  const bool by_lane, wrpo__packing p) {
    const int step = pairs ? 2 : 1, size = p.from.type == WRPO_DTYPE_F32 ? 4 : 2;
    const int64_t panels = wrpo__div_up(p.n, width), squares = wrpo__div_up(p.words, WRPO__LANES);
    for (int64_t outer = 0; outer < (across ? squares : panels); outer++)
        for (int64_t inner = 0; inner < (across ? panels : squares); inner++) {
            const int64_t panel = across ? inner : outer, word = (across ? outer : inner) * WRPO__LANES;
            const int64_t k = word * step, steps = p.kc - k;
            for (int slot = 0; slot < room; slot += WRPO__LANES) {
                const int64_t lane = panel * width + slot, at = lane * p.from.lane + k * p.from.step;
                const int64_t lanes = p.n - lane, in_panel = WRPO__MIN(lanes, width - slot);
                float *to = p.panels + panel * p.next + (by_lane ? slot * p.words + word : word * room + slot);
                WRPO__V x[WRPO__LANES];
                const int64_t count = across ? wrpo__div_up(steps, step) : in_panel;
                const int64_t next = (across ? p.from.step * step : p.from.lane) * size;
                const char *later = wrpo__address(p.from.data, p.from.type, at) + 192;
                WRPO__(square)(x, across, pairs, p.from, at, count, lanes, steps, later, next);
                if (across == by_lane) WRPO__(turn)(x);
                WRPO__UNROLLED(i, WRPO__LANES)
                    if (by_lane || word + i < p.words) WRPO__STORE(to + i * (by_lane ? p.words : room), x[i]);
            }
        }
}
WRPO__INLINE void WRPO__(pack_of)(const int width, const int room, const bool pairs, const bool by_lane,
                                  const wrpo_dtype type, wrpo__packing p) {
    p.from.type = type;
    if (p.from.lane == 1) WRPO__(pack_as)(true, width, room, pairs, by_lane, p);
    else WRPO__(pack_as)(false, width, room, pairs, by_lane, p);
}
WRPO__KERNEL void WRPO__(pack)(wrpo__factors factors, bool is_b, wrpo__packing p) {
    enum { MR = WRPO__(MR), ROOM = WRPO__(MR_ROOM), NR = WRPO__(NR) };
    const bool pairs = WRPO__(HAS_PAIRS) && factors != WRPO__FLOATS, bf16 = p.from.type == WRPO_DTYPE_BF16;
    if (is_b && p.from.type == WRPO_DTYPE_F16) WRPO__(pack_of)(NR, NR, false, false, WRPO_DTYPE_F16, p);
    else if (is_b && pairs && bf16) WRPO__(pack_of)(NR, NR, true, false, WRPO_DTYPE_BF16, p);
    else if (is_b && pairs) WRPO__(pack_of)(NR, NR, true, false, WRPO_DTYPE_F32, p);
    else if (is_b && bf16) WRPO__(pack_of)(NR, NR, false, false, WRPO_DTYPE_BF16, p);
    else if (is_b) WRPO__(pack_of)(NR, NR, false, false, WRPO_DTYPE_F32, p);
    else if (p.few) WRPO__(pack_of)(WRPO__FEW, WRPO__FEW, pairs, false, WRPO_DTYPE_F32, p);
    else if (!pairs) WRPO__(pack_of)(MR, ROOM, false, false, WRPO_DTYPE_F32, p);
    else if (factors == WRPO__PAIRS) WRPO__(pack_of)(MR, ROOM, true, false, WRPO_DTYPE_F32, p);
    else WRPO__(pack_of)(32, 32, true, true, WRPO_DTYPE_F32, p);
}

/* t = or += a' b, for one packed panel of each; the words of b are ldb apart. All of the tile is computed, or
   its first vector of columns if that is enough, and m by n of it are written. `type` is that of b's words: floats (or
   pairs, for products of pairs), or two steps of halves: of bfloat16 lane by lane, of float16 [2][NR]. */
WRPO__INLINE void WRPO__(tile_write)(const float *tile, wrpo__target t) {
    const int64_t n = t.n;
    for (; t.m > 0; t.m--, t.c += t.ldc, tile += WRPO__(NR))
        WRPO__VECTORS(i, n)
            WRPO__PUT(t.c, t.add ? WRPO__GET(t.c) + WRPO__LOAD(tile + i) : WRPO__LOAD(tile + i));
}
WRPO__INLINE WRPO__V WRPO__(tile_vector)(const wrpo_dtype type, const float *b, int step, int j) {
    if (type == WRPO_DTYPE_F16) return WRPO__LOAD_F16((const uint16_t *)b + step * WRPO__(NR) + j);
    if (type == WRPO_DTYPE_F32) return WRPO__LOAD(b + j);
    return WRPO__FLOATS(step ? WRPO__BITS(WRPO__LOAD(b + j)) & 0xFFFF0000u : WRPO__BITS(WRPO__LOAD(b + j)) << 16);
}
WRPO__INLINE void WRPO__(tile_step)(const int rows, const int vectors, const bool pairs, const wrpo_dtype type,
                                    const int step, const float *a, const float *b, WRPO__V (*x)[WRPO__(NV)]) {
    WRPO__V bk[WRPO__(NV)];
    WRPO__UNROLLED(j, vectors) bk[j] = WRPO__(tile_vector)(type, b, step, j * WRPO__LANES);
    WRPO__UNROLLED(i, rows) {
        WRPO__UNROLLED(j, vectors) {
            const WRPO__V row = WRPO__BROADCAST(a[i]);
            x[i][j] = pairs ? (WRPO__V)WRPO__STEP(true, row, bk[j], x[i][j]) : WRPO__ADD_PRODUCT(row, bk[j], x[i][j]);
        }
    }
}
WRPO__INLINE void WRPO__(tile_of)(const int rows, const int vectors, const bool pairs, const wrpo_dtype type,
                                  const int room, int64_t words, const float *a, const float *b, int64_t ldb,
                                  wrpo__target t) {
    enum { NV = WRPO__(NV), LANES = WRPO__LANES };
    const int each = type == WRPO_DTYPE_F32 ? 1 : 2;  /* steps of b's word; `words` and a's words are single ones */
    WRPO__V x[WRPO__(MR)][NV];
    WRPO__UNROLLED(i, rows) {
        WRPO__UNROLLED(j, NV) {
            x[i][j] = (WRPO__V){0};
            WRPO__PREFETCH(t.c + (t.m == rows ? i : 0) * t.ldc + j * LANES, 1);
        }
    }
    int64_t word = 0;
    for (int64_t end; word + 4 <= words;) {
        end = WRPO__MIN(word + 16, words / 4 * 4);
        for (int64_t i = 0; i < t.ahead.lanes; i++)
            __builtin_prefetch(t.ahead.at + i * t.ahead.lane_bytes + word * t.ahead.word_bytes, 0, 2);
        for (; word < end; word += 4, a += 4 * room, b += 4 / each * ldb) {
            WRPO__UNROLL
            for (int i = 0; i < 4 * room; i += 16) WRPO__PREFETCH(a + 8 * room + i, 0);
            WRPO__UNROLLED(i, 4) {
                WRPO__(tile_step)(rows, vectors, pairs, type, i % each, a + i * room, b + i / each * ldb, x);
                __asm__ volatile("" ::: "memory");  /* loads that move up would need more registers than there are */
            }
        }
    }
    for (; word < words; word++, a += room) {
        WRPO__(tile_step)(rows, vectors, pairs, type, 0, a, b, x);
        if (each == 2 && ++word < words) {
            a += room;
            WRPO__(tile_step)(rows, vectors, pairs, type, 1, a, b, x);
        }
        b += ldb;
    }
    if (t.m < rows || t.n < WRPO__(NR)) {
        float part[WRPO__(MR) * WRPO__(NR)];
        memcpy(part, x, sizeof part);
        WRPO__(tile_write)(part, t);
        return;
    }
    WRPO__UNROLL
    for (int i = 0; i < rows; i++, t.c += t.ldc) {
        WRPO__UNROLLED(j, NV) {
            float *c = t.c + j * LANES;
            WRPO__STORE(c, t.add ? WRPO__LOAD(c) + x[i][j] : x[i][j]);
        }
    }
}
WRPO__INLINE void WRPO__(tile_rows)(const bool pairs, const wrpo_dtype type, int64_t words, const float *a,
                                    const float *b, int64_t ldb, wrpo__target t) {
    enum { MR = WRPO__(MR), NV = WRPO__(NV), ROOM = WRPO__(MR_ROOM), FEW = WRPO__FEW };
    if (!t.few && t.n <= WRPO__LANES && t.m > 4) WRPO__(tile_of)(MR, 1, pairs, type, ROOM, words, a, b, ldb, t);
    else if (!t.few && t.m > 8) WRPO__(tile_of)(MR, NV, pairs, type, ROOM, words, a, b, ldb, t);
    else if (!t.few && t.m > 4) WRPO__(tile_of)(WRPO__MIN(8, MR), NV, pairs, type, ROOM, words, a, b, ldb, t);
    else if (!t.few) WRPO__(tile_of)(4, NV, pairs, type, ROOM, words, a, b, ldb, t);
    else if (t.m > 1) WRPO__(tile_of)(FEW, NV, pairs, type, FEW, words, a, b, ldb, t);
    else if (t.few > 1) WRPO__(tile_of)(1, NV, pairs, type, FEW, words, a, b, ldb, t);
    else WRPO__(tile_of)(1, NV, pairs, type, 1, words, a, b, ldb, t);
}
/* a[32][words] by b[words][32], in four tiles of C: 0 and 1 are its upper rows, 2 and 3 the lower ones. */
WRPO__INLINE void WRPO__(tile_amx)(int64_t words, const float *a, const float *b, wrpo__target t) {
    float c[32 * 32];
    WRPO__TILE_ZERO(0);
    WRPO__TILE_ZERO(1);
    WRPO__TILE_ZERO(2);
    WRPO__TILE_ZERO(3);
    for (int64_t word = 0; word < words; word += 16) {
        WRPO__TILE_LOAD(4, a + word, words * 4);
        WRPO__TILE_LOAD(6, b + word * 32, 128);
        WRPO__TILE_DOT(0, 4, 6);
        WRPO__TILE_LOAD(7, b + word * 32 + 16, 128);
        WRPO__TILE_DOT(1, 4, 7);
        if (t.m <= 16) continue;
        WRPO__TILE_LOAD(5, a + 16 * words + word, words * 4);
        WRPO__TILE_DOT(2, 5, 6);
        WRPO__TILE_DOT(3, 5, 7);
    }
    WRPO__TILE_STORE(0, c, 128);
    WRPO__TILE_STORE(1, c + 16, 128);
    WRPO__TILE_STORE(2, c + 512, 128);
    WRPO__TILE_STORE(3, c + 528, 128);
    WRPO__(tile_write)(c, t);
}
WRPO__KERNEL void WRPO__(tile)(wrpo__factors factors, wrpo_dtype type, int64_t words, const float *a, const float *b,
                               int64_t ldb, const wrpo__target *t) {
    if (WRPO__(HAS_PAIRS) && factors == WRPO__TILES) WRPO__(tile_amx)(words, a, b, *t);
    else if (WRPO__(HAS_PAIRS) && factors == WRPO__PAIRS)
        WRPO__(tile_rows)(true, WRPO_DTYPE_F32, words, a, b, ldb, *t);
    else if (type == WRPO_DTYPE_F32) WRPO__(tile_rows)(false, WRPO_DTYPE_F32, words, a, b, ldb, *t);
    else if (type == WRPO_DTYPE_BF16) WRPO__(tile_rows)(false, WRPO_DTYPE_BF16, words, a, b, ldb, *t);
    else WRPO__(tile_rows)(false, WRPO_DTYPE_F16, words, a, b, ldb, *t);
}
/* A panel of B in halves: lanes whose steps are side by side in memory. */
WRPO__KERNEL void WRPO__(pack_halves)(wrpo__packing p) {
    enum { NR = WRPO__(NR) };
    const bool f16 = p.from.type == WRPO_DTYPE_F16;
    p.from.type = WRPO_DTYPE_BF16;  /* bits that are moved */
    WRPO__(pack_as)(false, NR, NR, true, false, p);
    for (int64_t word = 0; f16 && word < p.words; word++) {
        uint16_t *to = (uint16_t *)(void *)(p.panels + word * NR), lanes[2 * NR];
        memcpy(lanes, to, sizeof lanes);
        for (int i = 0; i < 2 * NR; i++) to[i] = lanes[i % NR * 2 + i / NR];
    }
}
/* The same for few rows: one panel of A, or a single row as it is, and at most LANES columns of b, whose steps are side
   by side in memory. They are turned in registers and not packed, because each is used for m rows only. bfloat16 is
   turned two steps a word. Fetched ahead is what comes `ahead` bytes later; where that is 0, from t.ahead.at on in the
   order of memory. */
WRPO__INLINE void WRPO__(thin_step)(const int rows, const bool pairs, const float *a, WRPO__V x, WRPO__V *sum) {
    WRPO__UNROLLED(r, rows) sum[r] = WRPO__STEP(pairs, WRPO__BROADCAST(a[r]), x, sum[r]);
}
WRPO__INLINE void WRPO__(thin_of)(const int rows, const bool pairs, int64_t kc, const float *a, wrpo__operand b,
                                  int64_t ahead, wrpo__target t) {
    enum { LANES = WRPO__LANES };
    const bool split = b.type == WRPO_DTYPE_BF16 && !pairs, two = pairs || split;
    const int whole = two ? 2 * LANES : LANES, room = rows == 1 ? 1 : WRPO__(MR_ROOM);
    const int size = b.type == WRPO_DTYPE_F32 ? 4 : 2;
    WRPO__V sum[WRPO__(MR)] = {{0}}, x[LANES];
    int64_t k = 0;
    for (; k + whole <= kc; k += whole, a += (pairs ? LANES : whole) * room) {
        const char *later = ahead ? wrpo__address(b.data, b.type, k) + ahead : t.ahead.at;
        if (t.n < LANES) WRPO__(square_end)(x, false, two, b, k, t.n, 0, whole);
        else WRPO__(square)(x, false, two, b, k, LANES, 0, whole, later, ahead ? b.lane * size : whole * size);
        if (!ahead) t.ahead.at += LANES * whole * size;
        WRPO__(turn)(x);
        WRPO__UNROLLED(i, LANES) {
            if (!split) WRPO__(thin_step)(rows, pairs, a + i * room, x[i], sum);
            else {
                const WRPO__V high = WRPO__FLOATS(WRPO__BITS(x[i]) & 0xFFFF0000u);
                WRPO__(thin_step)(rows, false, a + 2 * i * room, WRPO__FLOATS(WRPO__BITS(x[i]) << 16), sum);
                WRPO__(thin_step)(rows, false, a + (2 * i + 1) * room, high, sum);
            }
        }
    }
    for (int64_t words; k < kc; k += pairs ? 2 * LANES : LANES, a += words * room) {  /* what is no whole square */
        words = WRPO__MIN(pairs ? wrpo__div_up(kc - k, 2) : kc - k, LANES);
        WRPO__(square_end)(x, false, pairs, b, k, t.n, 0, kc - k);
        WRPO__(turn)(x);
        for (int64_t i = 0; i < words; i++) WRPO__(thin_step)(rows, pairs, a + i * room, x[i], sum);
    }
    for (int64_t r = 0, i = 0, n = t.n; r < rows && r < t.m; r++, t.c += t.ldc)
        WRPO__PUT(t.c, t.add ? WRPO__GET(t.c) + sum[r] : sum[r]);
}
WRPO__INLINE void WRPO__(thin_rows)(const bool pairs, const wrpo_dtype type, int64_t kc, const float *a,
                                    wrpo__operand b, int64_t ahead, wrpo__target t) {
    b.type = type;
    if (t.m > 8) WRPO__(thin_of)(WRPO__(MR), pairs, kc, a, b, ahead, t);
    else if (t.m > 4) WRPO__(thin_of)(WRPO__MIN(8, WRPO__(MR)), pairs, kc, a, b, ahead, t);
    else if (pairs || !t.few) WRPO__(thin_of)(4, pairs, kc, a, b, ahead, t);
    else WRPO__(thin_of)(1, pairs, kc, a, b, ahead, t);
}
WRPO__KERNEL void WRPO__(thin)(wrpo__factors factors, int64_t kc, const float *a, wrpo__operand b, int64_t ahead,
                               wrpo__target t) {
    const bool pairs = WRPO__(HAS_PAIRS) && factors != WRPO__FLOATS, bf16 = b.type == WRPO_DTYPE_BF16;
    if (pairs && bf16) WRPO__(thin_rows)(true, WRPO_DTYPE_BF16, kc, a, b, ahead, t);
    else if (pairs) WRPO__(thin_rows)(true, WRPO_DTYPE_F32, kc, a, b, ahead, t);
    else if (bf16) WRPO__(thin_rows)(false, WRPO_DTYPE_BF16, kc, a, b, ahead, t);
    else if (b.type == WRPO_DTYPE_F16) WRPO__(thin_rows)(false, WRPO_DTYPE_F16, kc, a, b, ahead, t);
    else WRPO__(thin_rows)(false, WRPO_DTYPE_F32, kc, a, b, ahead, t);
}
/* The same where A has few uses and is not packed: m lanes of it, at most MR, whose steps are side by side in memory,
   by a panel of B. A word of bfloat16 has two steps. `turned`: of C the rows are B's lanes. Lanes before `skip` are
   computed and not written. All of C's vectors are in registers, so rows are found from every third one. Fetched ahead
   are t.ahead.lanes lines of the cache, from t.ahead.at on, in every 16 words. */
WRPO__INLINE WRPO__V WRPO__(unpacked_word)(const char *at, const bool bf16, const size_t bytes) {
    uint32_t word = 0;
    float x;
    memcpy(&word, at, bytes);
    memcpy(&x, &word, sizeof x);
#ifndef WRPO__MM  /* whose broadcast only moves bits */
    if (bf16) return WRPO__FLOATS(word + (WRPO__U){0});  /* two halves are no float */
#endif
    (void)bf16;
    return (WRPO__V)WRPO__BROADCAST(x);
}
WRPO__INLINE void WRPO__(unpacked_step)(const int vectors, const bool pairs, const bool bf16, const size_t bytes,
                                        const char *const *row, int64_t lane, int at, const float *b,
                                        WRPO__V (*x)[WRPO__(NV)]) {
    enum { MR = WRPO__(MR), NR = WRPO__(NR), LANES = WRPO__LANES };
    WRPO__UNROLLED(i, MR) {
        const WRPO__V a = WRPO__(unpacked_word)(row[i / 3] + i % 3 * lane + at, bf16, bytes);
        if (pairs || !bf16) {
            WRPO__UNROLLED(j, vectors) x[i][j] = WRPO__STEP(pairs, a, WRPO__LOAD(b + j * LANES), x[i][j]);
            continue;
        }
        const WRPO__V low = WRPO__FLOATS(WRPO__BITS(a) << 16), high = WRPO__FLOATS(WRPO__BITS(a) & 0xFFFF0000u);
        WRPO__UNROLLED(j, vectors) x[i][j] = WRPO__STEP(false, low, WRPO__LOAD(b + j * LANES), x[i][j]);
        if (bytes < 4) continue;
        WRPO__UNROLLED(j, vectors) x[i][j] = WRPO__STEP(false, high, WRPO__LOAD(b + NR + j * LANES), x[i][j]);
    }
}
/* Lanes [skip, m) of a tile. */
WRPO__INLINE void WRPO__(unpacked_write)(const float *tile, int64_t skip, bool turned, wrpo__target t) {
    enum { MR = WRPO__(MR), NR = WRPO__(NR), LANES = WRPO__LANES };
    if (!turned) {
        t.m -= skip;
        t.c += skip * t.ldc;
        WRPO__(tile_write)(tile + skip * NR, t);
        return;
    }
    for (int top = 0; top < MR; top += LANES)
        for (int64_t j = 0; j < t.n; j += LANES) {
            WRPO__V y[LANES];
            float part[LANES];
            for (int i = 0; i < LANES; i++) y[i] = top + i < MR ? WRPO__LOAD(tile + (top + i) * NR + j) : (WRPO__V){0};
            WRPO__(turn)(y);
            for (int i = 0; i < LANES && j + i < t.n; i++) {
                float *c = t.c + (j + i) * t.ldc;
                WRPO__STORE(part, y[i]);
                for (int64_t k = WRPO__MAX(skip, top); k < WRPO__MIN(MR, top + LANES); k++)
                    c[k] = t.add ? c[k] + part[k - top] : part[k - top];
            }
        }
}
WRPO__INLINE void WRPO__(unpacked_of)(const int vectors, const bool pairs, const bool bf16, int64_t kc, wrpo__operand a,
                                      const float *b, int64_t skip, bool turned, wrpo__target t) {
    enum { MR = WRPO__(MR), NR = WRPO__(NR) };
    const int64_t words = bf16 ? kc / 2 : kc, next = bf16 && !pairs ? 2 * NR : NR;
    int64_t lane = a.lane * (bf16 ? 2 : 4);
    const char *row[(MR + 2) / 3];
    float tile[MR * NR];
    WRPO__V x[MR][WRPO__(NV)];
    WRPO__UNROLLED(i, MR) WRPO__UNROLLED(j, WRPO__(NV)) x[i][j] = (WRPO__V){0};
    WRPO__UNROLLED(i, (MR + 2) / 3) row[i] = (const char *)a.data + 3 * i * lane;
    int64_t word = 0;
    for (; word + 4 <= words; word += 4, b += 4 * next) {
        if (word % 16 == 0)
            for (int64_t i = 0; i < t.ahead.lanes; i++, t.ahead.at += 64) WRPO__PREFETCH(t.ahead.at, 0);
        WRPO__UNROLLED(i, 4) {
            WRPO__(unpacked_step)(vectors, pairs, bf16, 4, row, lane, 4 * i, b + i * next, x);
            __asm__ volatile("" : "+r"(lane)::"memory");  /* not a register for each row */
        }
        WRPO__UNROLLED(i, (MR + 2) / 3) row[i] += 16;
    }
    for (; word < words; word++, b += next) {
        WRPO__(unpacked_step)(vectors, pairs, bf16, 4, row, lane, 0, b, x);
        WRPO__UNROLLED(i, (MR + 2) / 3) row[i] += 4;
    }
    if (bf16 && kc % 2) WRPO__(unpacked_step)(vectors, pairs, bf16, 2, row, lane, 0, b, x);
    memcpy(tile, x, sizeof tile);
    WRPO__(unpacked_write)(tile, skip, turned, t);
}
WRPO__INLINE void WRPO__(unpacked_vectors)(const bool pairs, const bool bf16, int64_t kc, wrpo__operand a,
                                           const float *b, int64_t skip, bool turned, wrpo__target t) {
    if (t.n <= WRPO__LANES) WRPO__(unpacked_of)(1, pairs, bf16, kc, a, b, skip, turned, t);
    else WRPO__(unpacked_of)(WRPO__(NV), pairs, bf16, kc, a, b, skip, turned, t);
}
WRPO__KERNEL void WRPO__(unpacked)(wrpo__factors factors, int64_t kc, wrpo__operand a, const float *b, int64_t skip,
                                   bool turned, wrpo__target t) {
    if (WRPO__(HAS_PAIRS) && factors == WRPO__PAIRS) WRPO__(unpacked_vectors)(true, true, kc, a, b, skip, turned, t);
    else if (a.type == WRPO_DTYPE_BF16) WRPO__(unpacked_vectors)(false, true, kc, a, b, skip, turned, t);
    else WRPO__(unpacked_vectors)(false, false, kc, a, b, skip, turned, t);
}

/* ---- attention: a tile of scores is s[key][NR], a column for each lane ---- */
/* x[rows][width] becomes words [rows / 2][width], in place; a last single row is paired with 0. */
WRPO__KERNEL void WRPO__(pair_rows)(float *x, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r += 2)
        WRPO__VECTORS(j, width) {
            const WRPO__U low = WRPO__BITS(WRPO__LOAD(x + r * width + j));
            const WRPO__U high = r + 1 < rows ? WRPO__BITS(WRPO__LOAD(x + (r + 1) * width + j)) : (WRPO__U){0};
            WRPO__STORE(x + r / 2 * width + j, WRPO__(pair_across)(low, high, true));
        }
}
/* rows[NR][n] from columns[n][NR] */
WRPO__KERNEL void WRPO__(transpose)(float *rows, const float *columns, int64_t n) {
    for (int lane = 0; lane < WRPO__(NR); lane += WRPO__LANES)
        WRPO__VECTORS(i, n) {
            WRPO__V x[WRPO__LANES];
            for (int k = 0; k < WRPO__LANES; k++)
                x[k] = i + k < n ? WRPO__LOAD(columns + (i + k) * WRPO__(NR) + lane) : (WRPO__V){0};
            WRPO__(turn)(x);
            for (int k = 0; k < WRPO__LANES; k++) WRPO__PUT(rows + (lane + k) * n, x[k]);
        }
}
/* A vector of scores of a key. Lanes that do not see the key get -inf. */
WRPO__INLINE WRPO__V WRPO__(masked)(WRPO__V s, int64_t key, int lane, wrpo__mask mask) {
    if (!mask.masked) return s;
    const WRPO__V never = WRPO__VECTOR(-INFINITY), back = WRPO__LOAD(mask.positions + lane) - (float)(mask.key0 + key);
    s = WRPO__(select)(WRPO__LESS(back, 0.0f), never, s);
    return WRPO__(select)(WRPO__LESS(back, mask.window), s, never);
}
/* Scores become e^(s - top). The running maximum and sum of a lane are brought up to date, and out[d][NR], which was
   summed with the old maximum, is rescaled. */
WRPO__KERNEL void WRPO__(softmax)(float *s, int64_t keys, wrpo__mask mask, float *top, float *sum, float *out,
                                  int64_t d) {
    enum { NV = WRPO__(NV), NR = WRPO__(NR), LANES = WRPO__LANES };
    WRPO__V most[NV], part[NV], factor[NV];
    WRPO__UNROLLED(j, NV) {
        most[j] = WRPO__LOAD(top + j * LANES);
        part[j] = (WRPO__V){0};
    }
    for (int64_t k = 0; k < keys; k++) {
        WRPO__UNROLLED(j, NV) {
            float *p = s + k * NR + j * LANES;
            const WRPO__V x = WRPO__(masked)(WRPO__(softcap)(WRPO__LOAD(p), mask.softcap), k, j * LANES, mask);
            if (mask.masked || mask.softcap > 0) WRPO__STORE(p, x);
            most[j] = WRPO__(max)(most[j], x);
        }
    }
    for (int64_t k = 0; k < keys; k++) {
        WRPO__UNROLLED(j, NV) {
            float *p = s + k * NR + j * LANES;
            const WRPO__V e = WRPO__(exp)(WRPO__LOAD(p) - most[j]);
            part[j] += e;
            WRPO__STORE(p, e);
        }
    }
    for (int j = 0; j < NV; j++) {
        float *old = top + j * LANES, *total = sum + j * LANES;
        factor[j] = WRPO__(exp)(WRPO__LOAD(old) - most[j]);
        WRPO__STORE(total, WRPO__FMA(WRPO__LOAD(total), factor[j], part[j]));
        WRPO__STORE(old, most[j]);
    }
    for (int64_t i = 0; i < d; i++, out += NR)
        for (int j = 0; j < NV; j++) WRPO__STORE(out + j * LANES, WRPO__LOAD(out + j * LANES) * factor[j]);
}
/* The same for one lane, whose n scores and d outputs are side by side. It does not see keys before `first`. */
WRPO__KERNEL void WRPO__(softmax_row)(float *s, int64_t first, int64_t n, float softcap, float *top, float *sum,
                                      float *out, int64_t d) {
    WRPO__V most = WRPO__VECTOR(*top);
    float part = 0;
    for (int64_t i = 0; i < first; i++) s[i] = -INFINITY;
    WRPO__VECTORS(i, n) {
        const WRPO__V x = WRPO__(softcap)(WRPO__(read)(s, WRPO_DTYPE_F32, i, n - i, -INFINITY), softcap);
        if (softcap > 0) WRPO__PUT(s, x);
        most = WRPO__(max)(most, x);
    }
    const float high = WRPO__(largest)(most);
    WRPO__VECTORS(i, n) WRPO__PUT(s, WRPO__(exp)(WRPO__GET(s) - high));
    for (int64_t i = 0; i < n; i++) part += s[i];
    const WRPO__V factor = WRPO__(exp)(WRPO__VECTOR(*top - high));
    *sum = ((WRPO__V)WRPO__FMA(*sum, factor, part))[0];
    *top = high;
    WRPO__(scale)(out, factor[0], out, WRPO_DTYPE_F32, d);
}
/* Scores become e^(s - lse), and dp becomes ds. */
WRPO__KERNEL void WRPO__(softmax_bwd)(float *s, float *dp, int64_t keys, wrpo__mask mask, const float *lse,
                                      const float *delta) {
    for (int64_t k = 0; k < keys; k++)
        for (int j = 0; j < WRPO__(NR); j += WRPO__LANES, s += WRPO__LANES, dp += WRPO__LANES) {
            const WRPO__V x = WRPO__(softcap)(WRPO__LOAD(s), mask.softcap);
            const WRPO__V e = WRPO__(exp)(WRPO__(masked)(x, k, j, mask) - WRPO__LOAD(lse + j));
            WRPO__V slope = WRPO__VECTOR(1.0f);
            if (mask.softcap > 0) slope = WRPO__FMA(x / -mask.softcap, x / mask.softcap, slope);
            WRPO__STORE(s, e);
            WRPO__STORE(dp, e * (WRPO__LOAD(dp) - WRPO__LOAD(delta + j)) * slope);
        }
}
#undef WRPO__LEVEL
#undef WRPO__TARGET
#undef WRPO__MM
#undef WRPO__QUADS
#undef WRPO__RUN
#undef WRPO__BROADCAST
#undef WRPO__LOAD_HALVES
#undef WRPO__LOAD_F16
#undef WRPO__SOME
#undef WRPO__LOAD_SOME
#undef WRPO__STORE_SOME
#undef WRPO__FMA
#undef WRPO__ADD_PRODUCT
#undef WRPO__STEP
#undef WRPO__PAIR_OF
#endif /* WRPO__LANES */

#ifdef WRPO_IMPLEMENTATION
#undef WRPO__LANES
#ifndef WRPO_NO_SIMD
/* ---- a backend of one width ---- */
#define WRPO__KERNELS(X, level) \
    X(scale, level) X(axpy, level) X(dot, level) X(rmsnorm, level) X(rmsnorm_bwd, level) X(rope, level) \
    X(glu, level) X(glu_bwd, level) X(lse, level) X(logprob_bwd, level) X(sumsq, level) X(adamw, level) \
    X(pack, level) X(pack_halves, level) X(tile, level) X(thin, level) \
    X(unpacked, level) X(pair_rows, level) X(softmax, level) X(softmax_row, level) X(softmax_bwd, level) \
    X(transpose, level)
#define WRPO__KERNEL_FIELD(name, level) __typeof__(&wrpo__##name##_##level) name;
#define WRPO__KERNEL_OF(name, level) .name = wrpo__##name##_##level,
typedef struct wrpo__kernels {
    int LANES;  /* floats of a vector */
    int MR, NR;  /* rows and columns of a tile of C that is kept in registers */
    int MR_ROOM;  /* MR, rounded up to whole vectors */
    WRPO__KERNELS(WRPO__KERNEL_FIELD, generic)
} wrpo__kernels;
/* An operand B of NT products that is kept. After it come its panels, each with all steps: [panel][words][NR]. */
typedef struct wrpo__stored {
    const void *b; int64_t ldb, n, k;
    wrpo_dtype type;
    struct wrpo__stored *next;  /* in its bucket */
} wrpo__stored;
enum { WRPO__KEPT_BYTES = 64, WRPO__BUCKETS = 256 };  /* of a wrpo__stored, so that panels are aligned */
typedef struct wrpo__cpu {
    wrpo_allocator memory;  /* first, for wrpo__host_alloc */
    const wrpo__kernels *kernel;
    int threads;
    /* products round to bfloat16: of weights in it, and TN; with tiles, or by vectors */
    bool pairs, tiles;
    float *packed;  /* [PACKED_FLOATS], shared by all threads: a part of A or B */
    float *scratch;  /* [threads][SCRATCH_FLOATS] */
    wrpo__stored *kept[WRPO__BUCKETS];
} wrpo__cpu;
static void wrpo__cpu_close(void *dev) {
    wrpo__cpu *cpu = dev;
    if (!cpu) return;
    wrpo__host_release(cpu, cpu->packed);
    wrpo__host_release(cpu, cpu->scratch);
    cpu->memory.free(cpu, cpu->memory.user);
}
static wrpo_result wrpo__cpu_open(void **dev, const wrpo_desc *desc, wrpo_error *why, const wrpo__kernels *kernels) {
    const unsigned features = desc->dtype == WRPO_DTYPE_BF16 ? desc->backend->features : 0;
    wrpo__cpu *cpu = desc->memory.alloc(sizeof *cpu, desc->memory.user);
    *dev = NULL;
    if (cpu) {
        *cpu = (wrpo__cpu){.memory = desc->memory, .kernel = kernels, .threads = WRPO__MAX(desc->threads, 1)};
        cpu->pairs = (features & WRPO_FEATURE_BF16) && wrpo__has_pairs();
        cpu->tiles = (features & WRPO_FEATURE_AMX) && cpu->pairs && wrpo__has_tiles();
        cpu->packed = wrpo__host_alloc(cpu, (WRPO__PACKED_FLOATS + 16) * sizeof(float));  /* 16: of a last vector */
        if ((size_t)cpu->threads < SIZE_MAX / 2 / (WRPO__SCRATCH_FLOATS * sizeof(float)))
            cpu->scratch = wrpo__host_alloc(cpu, (size_t)cpu->threads * WRPO__SCRATCH_FLOATS * sizeof(float));
        if (cpu->packed && cpu->scratch) {
            *dev = cpu;
            return WRPO_OK;
        }
        wrpo__cpu_close(cpu);
    }
    *why = (wrpo_error){.code = WRPO_E_MEMORY};
    snprintf(why->text, sizeof why->text, "out of memory: buffers for %d threads", desc->threads);
    return WRPO_E_MEMORY;
}
#define WRPO__OPEN(level) \
    static wrpo_result wrpo__open_##level(void **dev, const wrpo_desc *desc, wrpo_error *why) { \
        static const wrpo__kernels kernels = { \
            .LANES = wrpo__LANES_##level, .MR = wrpo__MR_##level, .NR = wrpo__NR_##level, \
            .MR_ROOM = wrpo__MR_ROOM_##level, WRPO__KERNELS(WRPO__KERNEL_OF, level)}; \
        return wrpo__cpu_open(dev, desc, why, &kernels); \
    }
WRPO__OPEN(generic)
#ifdef WRPO__HAVE_AVX
WRPO__OPEN(avx2)
WRPO__OPEN(avx512)
#endif
/* ---- the ops. Threads: one where waking others costs more than it saves ---- */
static int wrpo__cpu_team(const wrpo__cpu *cpu, int64_t work) { return work <= WRPO__GRAIN ? 1 : cpu->threads; }
static int64_t wrpo__cpu_chunk(int64_t D) { return WRPO__MAX(WRPO__GRAIN / 4 / WRPO__MAX(D, 1), 1); }
/* WRPO__PARROWS(cpu, r, n, D) body: WRPO__PARFOR for each row r of n, of D elements, several rows at a time. */
#ifdef _OPENMP
#define WRPO__PARROWS(cpu, r, n, D) \
    WRPO__PRAGMA(omp parallel for num_threads(wrpo__cpu_team(cpu, (n) * (D))) schedule(dynamic, wrpo__cpu_chunk(D))) \
    for (int64_t r = 0; r < (n); r++)
#else
#define WRPO__PARROWS(cpu, r, n, D) \
    (void)(wrpo__cpu_team(cpu, (n) * (D)) + wrpo__cpu_chunk(D)); \
    for (int64_t r = 0; r < (n); r++)
#endif
static float *wrpo__cpu_scratch(const wrpo__cpu *cpu) {  /* of the calling thread */
#ifdef _OPENMP
    return cpu->scratch + (size_t)omp_get_thread_num() * WRPO__SCRATCH_FLOATS;
#else
    return cpu->scratch;
#endif
}
/* Gradients that add rows at shared indices: a task takes GROUP columns and all the rows, in order. */
static void wrpo__cpu_embed(void *dev, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids,
                            int64_t n, int64_t D, float scale) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, D)
        cpu->kernel->scale((float *)y + r * D, scale, wrpo__address(w, w_type, ids[r] * D), w_type, D);
}
/* to[index[r]] += scales[r] x[r]; scales NULL: scale x[r]. A task has GROUP columns. */
static void wrpo__cpu_add_to(const wrpo__cpu *cpu, float *to, const float *x, float scale, const float *scales,
                             const int32_t *index, int64_t n, int64_t D) {
    WRPO__PARFOR(wrpo__cpu_team(cpu, n * D))
    for (int64_t j = 0; j < D; j += WRPO__GROUP)
        for (int64_t r = 0; r < n; r++)
            if (!scales || scales[r] != 0)
                cpu->kernel->axpy(to + index[r] * D + j, scales ? scales[r] : scale, x + r * D + j,
                                  WRPO__MIN(D - j, WRPO__GROUP));
}
static void wrpo__cpu_embed_bwd(void *dev, float *dw, const void *dy, const int32_t *ids,
                                int64_t n, int64_t D, float scale) {
    wrpo__cpu_add_to(dev, dw, dy, scale, NULL, ids, n, D);
}
static void wrpo__cpu_gather(void *dev, void *y, const void *x, const int32_t *index, int64_t n, int64_t D) {
    wrpo__cpu_embed(dev, y, x, WRPO_DTYPE_F32, index, n, D, 1);
}
static void wrpo__cpu_gather_bwd(void *dev, void *dx, const void *dy, const float *scale, const int32_t *index,
                                 int64_t n, int64_t D) {
    wrpo__cpu_add_to(dev, dx, dy, 1, scale, index, n, D);
}
static void wrpo__cpu_scatter(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, const int32_t *index,
                              int64_t n, int64_t D) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, D)
        memcpy((float *)y + index[r] * ldy, (const float *)x + r * ldx, (size_t)D * sizeof(float));
}
static void wrpo__cpu_bias(void *dev, void *y, int64_t ldy, const float *b, int64_t n, int64_t D) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, D) cpu->kernel->axpy((float *)y + r * ldy, 1, b, D);
}
/* y += the sum of the rows of w: GROUP columns to a task, and sums of GROUP rows first, as rounding grows with the
   longest chain */
static void wrpo__cpu_add_rows(const wrpo__cpu *cpu, float *y, const void *w, wrpo_dtype type, int64_t ld, int64_t n,
                               int64_t D) {
    WRPO__PARFOR(wrpo__cpu_team(cpu, n * D))
    for (int64_t j = 0; j < D; j += WRPO__GROUP) {
        const int64_t width = WRPO__MIN(D - j, WRPO__GROUP);
        float part[WRPO__GROUP], floats[WRPO__GROUP];
        for (int64_t r = 0; r < n; r += WRPO__GROUP) {
            memset(part, 0, sizeof part);
            for (int64_t i = r; i < WRPO__MIN(n, r + WRPO__GROUP); i++) {
                const void *row = wrpo__address(w, type, i * ld + j);
                if (type != WRPO_DTYPE_F32) cpu->kernel->scale(floats, 1, row, type, width);
                cpu->kernel->axpy(part, 1, type != WRPO_DTYPE_F32 ? floats : row, width);
            }
            cpu->kernel->axpy(y + j, 1, part, width);
        }
    }
}
static void wrpo__cpu_bias_bwd(void *dev, float *db, const void *dy, int64_t lddy, int64_t n, int64_t D) {
    wrpo__cpu_add_rows(dev, db, dy, WRPO_DTYPE_F32, lddy, n, D);
}
static void wrpo__cpu_colsum(void *dev, float *y, const void *w, wrpo_dtype w_type, int64_t rows, int64_t cols) {
    memset(y, 0, (size_t)cols * sizeof *y);
    wrpo__cpu_add_rows(dev, y, w, w_type, cols, rows, cols);
}
static void wrpo__cpu_add(void *dev, void *y, const void *x, int64_t count) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARFOR(wrpo__cpu_team(cpu, count))
    for (int64_t i = 0; i < count; i += WRPO__GRAIN)
        cpu->kernel->axpy((float *)y + i, 1, (const float *)x + i, WRPO__MIN(count - i, WRPO__GRAIN));
}
static void wrpo__cpu_sum(void *dev, float *y, const float *x, int64_t count) { wrpo__cpu_add(dev, y, x, count); }
static void wrpo__cpu_dropout(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, int64_t n, int64_t D,
                              const wrpo_dropout *d) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, D) {
        float *to = (float *)y + r * ldy;
        const float *from = (const float *)x + r * ldx;
        if (d->p > 0) wrpo__dropout_row(to, from, D, r, d);
        else cpu->kernel->scale(to, d->scale, from, WRPO_DTYPE_F32, D);
    }
}
static void wrpo__cpu_rmsnorm(void *dev, void *y, int64_t ldy, float *rstd, const void *x, int64_t ldx, const float *w,
                              int64_t n, int64_t heads, int64_t D, float eps, float plus) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, heads * D)
        for (int64_t h = 0; h < heads; h++)
            cpu->kernel->rmsnorm((float *)y + r * ldy + h * D, rstd + r * heads + h,
                                (const float *)x + r * ldx + h * D, w, D, eps, plus);
}
/* A task takes GROUP vectors and makes their sum for dw; then come the sums of all tasks, in order. */
static void wrpo__cpu_rmsnorm_bwd(void *dev, void *dx, int64_t lddx, float *dw, const void *dy, int64_t lddy,
                                  const void *dres, int64_t lddres, const void *x, int64_t ldx, const float *w,
                                  const float *rstd, int64_t n, int64_t heads, int64_t D, float plus) {
    const wrpo__cpu *cpu = dev;
    const int64_t vectors = n * heads, at_once = WRPO__PACKED_FLOATS / D * WRPO__GROUP;
    for (int64_t first = 0; first < vectors; first += at_once) {
        const int64_t tasks = wrpo__div_up(WRPO__MIN(vectors - first, at_once), WRPO__GROUP);
        float *sums = cpu->packed;  /* [tasks][D] */
        WRPO__PARFOR(wrpo__cpu_team(cpu, vectors * D))
        for (int64_t t = 0; t < tasks; t++) {
            const int64_t begin = first + t * WRPO__GROUP;
            memset(sums + t * D, 0, (size_t)D * sizeof *sums);
            for (int64_t i = begin; i < WRPO__MIN(vectors, begin + WRPO__GROUP); i++) {
                const int64_t row = i / heads, column = i % heads * D;
                const float *beside = dres ? (const float *)dres + row * lddres + column : NULL;
                cpu->kernel->rmsnorm_bwd((float *)dx + row * lddx + column, sums + t * D,
                                        (const float *)dy + row * lddy + column, beside,
                                        (const float *)x + row * ldx + column, w, rstd[i], D, plus);
            }
        }
        for (int64_t t = 0; dw && t < tasks; t++) cpu->kernel->axpy(dw, 1, sums + t * D, D);
    }
}
static void wrpo__cpu_rope(void *dev, void *x, int64_t ldx, const float *table, const int32_t *index, int64_t n,
                           int64_t heads, int64_t d, float sign) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, heads * d)
        cpu->kernel->rope((float *)x + r * ldx, table + index[r] * (d / 2 * 2), heads, d, sign);
}
static void wrpo__cpu_glu(void *dev, void *h, const void *gu, int64_t n, int64_t I, bool gelu) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, 4 * I) cpu->kernel->glu((float *)h + r * I, (const float *)gu + r * 2 * I, I, gelu);
}
static void wrpo__cpu_glu_bwd(void *dev, void *dgu, void *h, const void *dh, const void *gu,
                              int64_t n, int64_t I, bool gelu) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, 4 * I)
        cpu->kernel->glu_bwd((float *)dgu + r * 2 * I, h ? (float *)h + r * I : NULL, (const float *)dh + r * I,
                            (const float *)gu + r * 2 * I, I, gelu);
}
static void wrpo__cpu_logprob(void *dev, float *logp, float *lse, const float *logits, int64_t ldl,
                              const int32_t *label, int64_t n, int64_t V, float softcap) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, V) {
        const float *x = logits + r * ldl;
        const double log_sum = cpu->kernel->lse(x, V, softcap);
        double slope;
        logp[r] = (float)(wrpo__softcap((double)x[label[r]], (double)softcap, &slope) - log_sum);
        lse[r] = (float)log_sum;
    }
}
static void wrpo__cpu_logprob_bwd(void *dev, void *dlogits, const float *logits, int64_t ldl,
                                  const int32_t *label, const float *lse, const float *dlogp, int64_t n, int64_t V,
                                  float softcap) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, r, n, V)
        cpu->kernel->logprob_bwd((float *)dlogits + r * ldl, logits + r * ldl, label[r], lse[r], dlogp[r], V, softcap);
}
/* In at most 256 parts, whatever the number of threads. */
static void wrpo__cpu_sumsq(void *dev, double *out, const float *x, int64_t count) {
    const wrpo__cpu *cpu = dev;
    double part[256], sum = 0;
    const int64_t size = WRPO__MAX(wrpo__div_up(count, WRPO__COUNT(part)), WRPO__GRAIN);
    const int64_t parts = wrpo__div_up(count, size);
    WRPO__PARFOR(wrpo__cpu_team(cpu, count))
    for (int64_t i = 0; i < parts; i++)
        part[i] = cpu->kernel->sumsq(x + i * size, WRPO__MIN(size, count - i * size));
    for (int64_t i = 0; i < parts; i++) sum += part[i];
    *out += sum;
}
static void wrpo__cpu_adamw(void *dev, void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count,
                            const wrpo_adamw *step) {
    const wrpo__cpu *cpu = dev;
    WRPO__PARFOR(wrpo__cpu_team(cpu, count))
    for (int64_t i = 0; i < count; i += WRPO__GRAIN)
        cpu->kernel->adamw(w, low, m, v, g, i, WRPO__MIN(count - i, WRPO__GRAIN), step);
}

/* ---- gemm: Goto's scheme ----
   Both operands are packed into panels (the kernel `pack`). The one with fewer lanes is shared: all threads pack a
   piece of it, as large as cpu->packed holds, so that there are few barriers. Then each task packs a strip of the other
   operand for itself, block of k by block of k, and multiplies it by its part of the piece:

                            piece 0 of the shared lanes   piece 1 ...
                            part 0        part 1
       own     strip 0      task 0        task 1
       lanes   strip 1      task 2        task 3            (C, or its transpose)

   Where B is kept, A is shared and no task packs: the panels are there, in B's own type. Otherwise, where A is a single
   panel, B is not packed (the kernel `thin`). Where one operand has few lanes, the other one is used too little to be
   packed (the kernel `unpacked`), if its steps are side by side, in words that a tile can take: it becomes A, and C is
   turned if it was B.
   An element of C is the sum over blocks of k, which are cut from 0 by K alone, of their sums: it does not depend on
   m, n or the threads. */
typedef struct wrpo__product {
    const wrpo__cpu *cpu;
    wrpo__factors factors;
    wrpo__operand operand[2];  /* 0 is A, 1 is B, likewise below */
    int64_t lanes[2];
    int64_t width[2], room[2];  /* of a panel: its lanes, and floats per word */
    float *c; int64_t ldc, k;
    bool add, thin, unpacked, turned, few;
    const wrpo__stored *kept;  /* B; NULL: it is not */
    int shared, own;  /* which of the two is shared, and which a task packs for itself */
    int64_t begin, end, k0, k1;  /* the current piece: shared lanes [begin, end), steps [k0, k1) */
} wrpo__product;
/* Steps of the block that begins at k; the last two blocks are about equal. */
static int64_t wrpo__gemm_block(const wrpo__product *p, int64_t k) {
    const int64_t left = p->k - k, whole = p->factors == WRPO__FLOATS ? WRPO__KC : 2 * WRPO__KC;
    if (left >= 2 * whole) return whole;
    return left > whole ? wrpo__div_up(left / 2, 32) * 32 : left;
}
static int64_t wrpo__gemm_words(const wrpo__product *p, int64_t steps) {
    if (p->factors == WRPO__FLOATS) return steps;
    return p->factors == WRPO__PAIRS ? wrpo__div_up(steps, 2) : wrpo__div_up(steps, 32) * 16;  /* tiles take 16 words */
}
/* `lanes` lanes in `parts` equal parts of whole panels: the lanes of one part */
static int64_t wrpo__gemm_part(const wrpo__product *p, int side, int64_t lanes, int64_t parts) {
    return wrpo__div_up(wrpo__div_up(lanes, WRPO__MAX(parts, 1)), p->width[side]) * p->width[side];
}
/* The operand from a lane and a step on. */
static wrpo__operand wrpo__gemm_from(const wrpo__product *p, int side, int64_t lane, int64_t k) {
    wrpo__operand from = p->operand[side];
    from.data = wrpo__address(from.data, from.type, lane * from.lane + k * from.step);
    return from;
}
static void wrpo__gemm_pack(const wrpo__product *p, int side, float *panels, int64_t lane, int64_t n, int64_t k,
                            int64_t kc) {
    const int64_t words = wrpo__gemm_words(p, kc);
    p->cpu->kernel->pack(p->factors, side == 1, (wrpo__packing){wrpo__gemm_from(p, side, lane, k), n, kc, panels,
                                                               p->room[side] * words, words, p->few});
}
/* Of halves that are multiplied as floats, a word of a panel that is kept has two steps. */
static bool wrpo__kept_halves(const wrpo__product *p) {
    return p->factors == WRPO__FLOATS && p->operand[1].type != WRPO_DTYPE_F32;
}
static int64_t wrpo__kept_words(const wrpo__product *p, int64_t steps) {
    return wrpo__kept_halves(p) ? wrpo__div_up(steps, 2) : wrpo__gemm_words(p, steps);
}
static int64_t wrpo__kept_size(const wrpo__product *p) {  /* of a panel, in floats: blocks have whole words */
    const int64_t last = p->k % 32;
    return (wrpo__kept_words(p, p->k - last) + wrpo__kept_words(p, last)) * p->width[1];
}
static float *wrpo__kept_panel(const wrpo__product *p, const wrpo__stored *kept, int64_t lane, int64_t k) {
    float *first = (float *)(void *)((char *)(uintptr_t)kept + WRPO__KEPT_BYTES);
    return first + lane / p->width[1] * wrpo__kept_size(p) + wrpo__kept_words(p, k) * p->width[1];
}
/* The shared panel of `lane` in the block of k. Blocks follow each other, each with the panels of the whole piece. */
static float *wrpo__gemm_panel(const wrpo__product *p, int64_t lane, int64_t k) {
    const int64_t width = p->width[p->shared], panels = wrpo__div_up(p->end - p->begin, width);
    const int64_t words_before = wrpo__gemm_words(p, k - p->k0), words = wrpo__gemm_words(p, wrpo__gemm_block(p, k));
    return p->cpu->packed + (words_before * panels + (lane - p->begin) / width * words) * p->room[p->shared];
}
/* Panels of a strip, at most `most`, with which the threads are done soonest; the most of those that are equal. To
   begin a strip takes a quarter of a panel's time. */
static int64_t wrpo__gemm_strip(int64_t panels, int64_t most, int threads) {
    int64_t best = 1, least = INT64_MAX;
    for (int64_t p = WRPO__MAX(most, 1); p >= 1; p--) {
        const int64_t time = wrpo__div_up(wrpo__div_up(panels, p), threads) * (4 * p + 1);
        if (time >= least) continue;
        least = time;
        best = p;
    }
    return best;
}
/* The end of the blocks from k0 on, at least one, that the shared buffer has room for. */
static int64_t wrpo__gemm_depth(const wrpo__product *p) {
    const int64_t panels = wrpo__div_up(p->end - p->begin, p->width[p->shared]);
    int64_t end = p->k0 + wrpo__gemm_block(p, p->k0);
    while (end < p->k) {
        const int64_t next = end + wrpo__gemm_block(p, end);
        if (wrpo__gemm_words(p, next - p->k0) * panels * p->room[p->shared] > WRPO__PACKED_FLOATS) break;
        end = next;
    }
    return end;
}
/* Is A one row, which is read where it is? */
static bool wrpo__gemm_one_row(const wrpo__product *p) {
    return (p->thin || p->few) && p->lanes[0] == 1 && p->factors == WRPO__FLOATS;
}
/* The rows, which are one panel, by columns [begin, end). Meanwhile the next columns are fetched. */
static void wrpo__gemm_thin(const wrpo__product *p, int64_t begin, int64_t end) {
    const wrpo__operand *b = &p->operand[1];
    const int64_t LANES = p->cpu->kernel->LANES;
    const bool one_row = wrpo__gemm_one_row(p);
    for (int64_t j = begin; j < end; j += LANES)
        for (int64_t k = p->k0, kc; k < p->k1; k += kc) {
            kc = wrpo__gemm_block(p, k);
            const char *next = wrpo__address(wrpo__gemm_from(p, 1, j + LANES, 0).data, b->type, k * LANES);
            const float *a = one_row ? wrpo__gemm_from(p, 0, 0, k).data : wrpo__gemm_panel(p, 0, k);
            p->cpu->kernel->thin(p->factors, kc, a, wrpo__gemm_from(p, 1, j, k), 0,
                                 (wrpo__target){p->c + j, p->ldc, p->lanes[0], WRPO__MIN(LANES, end - j),
                                                p->add || k > 0, {.at = next}, one_row});
        }
}
/* Lanes [begin, end) of A by all lanes of the piece. The last lanes are MR too, some of which have been before. */
static void wrpo__gemm_unpacked(const wrpo__product *p, int64_t begin, int64_t end) {
    const int64_t MR = p->width[0], NR = p->width[1];
    for (int64_t i = begin; i < end; i += MR) {
        const int64_t first = WRPO__MIN(i, p->lanes[0] - MR), more = WRPO__MIN(MR, p->lanes[0] - i - MR);
        for (int64_t k = p->k0, kc; k < p->k1; k += kc) {
            kc = wrpo__gemm_block(p, k);
            for (int64_t j = p->begin; j < p->end; j += NR) {
                wrpo__target t = {.ldc = p->ldc, .m = MR, .n = WRPO__MIN(NR, p->end - j), .add = p->add || k > 0};
                t.c = p->c + (p->turned ? j * p->ldc + first : first * p->ldc + j);
                if (j == p->begin && more > 0)         /* the next lanes, in the order of memory */
                    t.ahead = (wrpo__ahead){.lanes = more,
                                            .at = (const char *)wrpo__gemm_from(p, 0, i + MR, k * more).data};
                p->cpu->kernel->unpacked(p->factors, kc, wrpo__gemm_from(p, 0, first, k), wrpo__gemm_panel(p, j, k),
                                         i - first, p->turned, t);
            }
        }
    }
}
/* What a task most likely packs after the block of k. Only lanes with their steps side by side are worth it; of the
   others the machine foresees the next. */
static wrpo__ahead wrpo__gemm_ahead(const wrpo__product *p, int64_t begin, int64_t end, int64_t k) {
    const wrpo__operand *from = &p->operand[p->own];
    const int64_t next = k + wrpo__gemm_block(p, k), size = (int64_t)wrpo__dtype_size(from->type);
    const bool last = next >= p->k1;
    const int64_t lane = begin + (last ? p->cpu->threads * (end - begin) : 0);
    const int64_t lanes = from->step == 1 && !p->kept ? WRPO__MIN(end - begin, p->lanes[p->own] - lane) : 0;
    if (lanes <= 0) return (wrpo__ahead){0};
    return (wrpo__ahead){wrpo__gemm_from(p, p->own, lane, last ? p->k0 : next).data, lanes, from->lane * size,
                         p->factors == WRPO__FLOATS ? size : 2 * size};
}
/* Lanes [begin, end) of A and of B, all steps of the piece. */
static void wrpo__gemm_task(const wrpo__product *p, const int64_t begin[2], const int64_t end[2]) {
    static const struct { uint8_t palette, start, none[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } config = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    const int64_t rows = end[0] - begin[0], MR = p->width[0], NR = p->width[1];
    const bool one_row = wrpo__gemm_one_row(p);
    const int64_t few = one_row ? 1 : p->few ? WRPO__FEW : 0;
    const wrpo_dtype type = p->kept && wrpo__kept_halves(p) ? p->operand[1].type : WRPO_DTYPE_F32;
    const int64_t block = wrpo__gemm_part(p, 0, rows, wrpo__div_up(rows, WRPO__MC));  /* rows that stay in the cache */
    if (p->factors == WRPO__TILES) WRPO__TILE_CONFIG(&config);
    for (int64_t k = p->k0, kc; k < p->k1; k += kc) {
        kc = wrpo__gemm_block(p, k);
        const int64_t words = wrpo__gemm_words(p, kc);
        const int64_t next = p->kept ? wrpo__kept_size(p) : words * NR;  /* from a panel of B to the next */
        float *own = p->kept ? wrpo__kept_panel(p, p->kept, begin[1], k) : wrpo__cpu_scratch(p->cpu);
        const float *panels[2];
        panels[p->own] = own;
        panels[p->shared] = one_row ? wrpo__gemm_from(p, 0, 0, k).data : wrpo__gemm_panel(p, begin[p->shared], k);
        if (!p->kept) wrpo__gemm_pack(p, p->own, own, begin[p->own], end[p->own] - begin[p->own], k, kc);
        /* Down the columns of C, so that a panel of B stays near; where steps are few, most of the time goes into
           moving C: then along its rows, as they are in memory. */
        const bool along = words <= 64;
        const int64_t across = wrpo__div_up(end[1] - begin[1], NR), tiles = wrpo__div_up(rows, MR) * across;
        wrpo__ahead later = wrpo__gemm_ahead(p, begin[p->own], end[p->own], k);
        const int64_t each = wrpo__div_up(later.lanes, tiles);  /* lanes that are fetched during a tile */
        for (int64_t top = begin[0]; top < end[0]; top += block) {
            const int64_t down = wrpo__div_up(WRPO__MIN(end[0] - top, block), MR), first = (top - begin[0]) / MR;
            const int64_t outer = along ? down : across, inner = along ? across : down;
            for (int64_t x = 0; x < outer; x++)
                for (int64_t y = 0; y < inner; y++) {
                    const int64_t row = first + (along ? x : y), column = along ? y : x;
                    const int64_t i = begin[0] + row * MR, j = begin[1] + column * NR;
                    const int64_t m = WRPO__MIN(MR, end[0] - i), n = WRPO__MIN(NR, end[1] - j);
                    const float *a = panels[0] + row * words * p->room[0], *b = panels[1] + column * next;
                    wrpo__target c = {p->c + i * p->ldc + j, p->ldc, m, n, p->add || k > 0, later, few};
                    c.ahead.lanes = WRPO__MIN(each, later.lanes);
                    if (c.ahead.lanes > 0) later.at += c.ahead.lanes * later.lane_bytes;
                    later.lanes -= c.ahead.lanes;
                    p->cpu->kernel->tile(p->factors, type, words, a, b, NR, &c);
                }
        }
    }
    if (p->factors == WRPO__TILES) WRPO__TILE_RELEASE();
}
/* One piece: pack it, then multiply it by all strips. */
static void wrpo__gemm_piece(const wrpo__product *p, int64_t strip, int threads) {
    const int64_t count = p->end - p->begin, strips = wrpo__div_up(p->lanes[p->own], strip);
    const int64_t packing = wrpo__gemm_part(p, p->shared, count, 4 * threads);
    const int64_t wanted = p->thin || p->unpacked || strips >= 2 * threads ? 1 : wrpo__div_up(2 * threads, strips);
    const int64_t part = wrpo__gemm_part(p, p->shared, count, wanted), parts = wrpo__div_up(count, part);
    WRPO__PARFOR(WRPO__MIN(threads, wrpo__cpu_team(p->cpu, count * (p->k1 - p->k0))))
    for (int64_t lane = p->begin; lane < (wrpo__gemm_one_row(p) ? 0 : p->end); lane += packing)
        for (int64_t k = p->k0, kc; k < p->k1; k += kc) {
            kc = wrpo__gemm_block(p, k);
            wrpo__gemm_pack(p, p->shared, wrpo__gemm_panel(p, lane, k), lane, WRPO__MIN(packing, p->end - lane), k, kc);
        }
    WRPO__PARFOR(threads)
    for (int64_t t = 0; t < parts * strips; t++) {
        int64_t begin[2], end[2];
        begin[p->shared] = p->begin + t / strips * part;
        end[p->shared] = WRPO__MIN(p->end, begin[p->shared] + part);
        begin[p->own] = t % strips * strip;
        end[p->own] = WRPO__MIN(p->lanes[p->own], begin[p->own] + strip);
        if (p->thin) wrpo__gemm_thin(p, begin[1], end[1]);
        else if (p->unpacked) wrpo__gemm_unpacked(p, begin[0], end[0]);
        else if (p->kept && p->lanes[0] <= WRPO__UNPACKED)  /* each panel to its end, as it is in memory */
            for (const int64_t last = end[1]; begin[1] < last; begin[1] = end[1]) {
                end[1] = WRPO__MIN(begin[1] + p->width[1], last);
                wrpo__gemm_task(p, begin, end);
            }
        else wrpo__gemm_task(p, begin, end);
    }
}
/* ---- operands that are kept, in buckets by their address ---- */
static wrpo__stored **wrpo__kept_bucket(wrpo__cpu *cpu, const void *b) {
    return &cpu->kept[(uint32_t)((uintptr_t)b >> 4) * 2654435761u >> 24];
}
static const wrpo__stored *wrpo__kept_of(wrpo__cpu *cpu, const void *b, int64_t ldb, wrpo_dtype type, int64_t n,
                                       int64_t k) {
    const wrpo__stored *x = *wrpo__kept_bucket(cpu, b);
    while (x && !(x->b == b && x->ldb == ldb && x->type == type && x->n == n && x->k == k)) x = x->next;
    return x;
}
/* A product without its pieces: what depends on its operands alone. */
static wrpo__product wrpo__gemm_product(const wrpo__cpu *cpu, wrpo_mm mm, const void *a, int64_t lda, const void *b,
                                        int64_t ldb, wrpo_dtype b_type, int64_t m, int64_t n, int64_t k) {
    const bool a_transposed = mm == WRPO_MM_TN, b_transposed = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT;
    wrpo__product p = {
        .cpu = cpu, .k = k, .lanes = {m, n},
        .operand = {{a, WRPO_DTYPE_F32, a_transposed ? 1 : lda, a_transposed ? lda : 1},
                    {b, a_transposed ? WRPO_DTYPE_F32 : b_type, b_transposed ? ldb : 1, b_transposed ? 1 : ldb}},
        .width = {cpu->kernel->MR, cpu->kernel->NR}, .room = {cpu->kernel->MR_ROOM, cpu->kernel->NR}};
    if (cpu->pairs && (a_transposed || p.operand[1].type == WRPO_DTYPE_BF16))
        p.factors = cpu->tiles ? WRPO__TILES : WRPO__PAIRS;
    if (p.factors == WRPO__TILES) p.width[0] = p.room[0] = 32;
    return p;
}
static void wrpo__cpu_gemm(void *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b,
                           int64_t ldb, wrpo_dtype b_type, int64_t m, int64_t n, int64_t k, float beta) {
    wrpo__cpu *cpu = dev;
    const bool b_transposed = mm == WRPO_MM_NT || mm == WRPO_MM_NT_FLOAT;
    wrpo__product p = wrpo__gemm_product(cpu, mm, a, lda, b, ldb, b_type, m, n, k);
    p.c = c;
    p.ldc = ldc;
    p.add = beta != 0;
    if (b_transposed) p.kept = wrpo__kept_of(cpu, b, ldb, b_type, n, k);
    p.few = p.kept && m <= WRPO__FEW && p.factors != WRPO__TILES;
    if (p.few) p.width[0] = p.room[0] = WRPO__FEW;
    p.thin = !p.kept && m <= p.width[0] && b_transposed && p.factors != WRPO__TILES;
    const int few = n <= m;                            /* the operand of fewer lanes */
    const wrpo__operand *many = &p.operand[!few];
    const bool words = p.factors == WRPO__PAIRS ? many->type == WRPO_DTYPE_BF16 : many->type != WRPO_DTYPE_F16;
    p.unpacked = !p.kept && !p.thin && p.factors != WRPO__TILES && words && many->step == 1 &&
        p.lanes[few] <= WRPO__UNPACKED && p.lanes[!few] >= p.width[0];
    p.turned = p.unpacked && !few;
    if (p.turned) {
        const wrpo__operand other = p.operand[0];
        p.operand[0] = p.operand[1], p.operand[1] = other;
        p.lanes[0] = n, p.lanes[1] = m;
    }
    p.shared = p.unpacked || (n < m && !p.thin && !p.kept);
    p.own = !p.shared;
    if (k <= 0 && !p.add)
        for (int64_t i = 0; i < m; i++) memset(p.c + i * ldc, 0, (size_t)n * sizeof(float));

    /* To wake a thread takes longer than a small product, or than to read a small b. */
    const int threads = m * n * k <= 1 << 19 && n * k <= 1 << 17 ? 1 : cpu->threads;
    const int64_t own_panels = wrpo__div_up(p.lanes[p.own], p.width[p.own]);
    const int64_t most = WRPO__MIN(p.own == 0 ? WRPO__A_PANELS : WRPO__B_PANELS, own_panels / (2 * threads));
    const int64_t strip = wrpo__gemm_strip(own_panels, most, threads) * p.width[p.own];
    const int64_t depth = WRPO__MAX(1, WRPO__MIN(wrpo__gemm_words(&p, k), WRPO__KC));
    const int64_t fit = WRPO__PACKED_FLOATS / depth / p.room[p.shared] * p.width[p.shared];
    const int64_t lanes = p.lanes[p.shared], piece = wrpo__gemm_part(&p, p.shared, lanes, wrpo__div_up(lanes, fit));
    for (; p.begin < lanes; p.begin = p.end) {
        p.end = WRPO__MIN(lanes, p.begin + piece);
        for (p.k0 = 0; p.k0 < k; p.k0 = p.k1) {
            p.k1 = wrpo__gemm_depth(&p);
            wrpo__gemm_piece(&p, strip, threads);
        }
    }
}

static size_t wrpo__cpu_keep_bytes(void *dev, wrpo_dtype type, int64_t n, int64_t k) {
    const wrpo__product p = wrpo__gemm_product(dev, WRPO_MM_NT, NULL, k, NULL, k, type, 1, n, k);
    return WRPO__KEPT_BYTES + (size_t)(wrpo__div_up(n, p.width[1]) * wrpo__kept_size(&p)) * sizeof(float);
}
static void wrpo__cpu_keep(void *dev, void *to, const void *b, int64_t ldb, wrpo_dtype type, int64_t n, int64_t k) {
    wrpo__cpu *cpu = dev;
    const wrpo__product p = wrpo__gemm_product(cpu, WRPO_MM_NT, NULL, k, b, ldb, type, 1, n, k);
    wrpo__stored *kept = to, **bucket = wrpo__kept_bucket(cpu, b);
    *kept = (wrpo__stored){b, ldb, n, k, type, *bucket};
    *bucket = kept;
    WRPO__PARFOR(wrpo__cpu_team(cpu, n * k))
    for (int64_t lane = 0; lane < n; lane += p.width[1])
        for (int64_t at = 0, kc; at < k; at += kc) {
            kc = wrpo__gemm_block(&p, at);
            float *panel = wrpo__kept_panel(&p, kept, lane, at);
            const int64_t lanes = WRPO__MIN(p.width[1], n - lane), words = wrpo__kept_words(&p, kc);
            if (!wrpo__kept_halves(&p)) wrpo__gemm_pack(&p, 1, panel, lane, lanes, at, kc);
            else cpu->kernel->pack_halves((wrpo__packing){wrpo__gemm_from(&p, 1, lane, at), lanes, kc, panel,
                                                          words * p.width[1], words, false});
        }
}
static void wrpo__cpu_forget(void *dev) { memset(((wrpo__cpu *)dev)->kept, 0, sizeof ((wrpo__cpu *)dev)->kept); }

/* ---- attention: blocked, with a running maximum and sum (Dao et al. 2022) ----
   Everything is transposed: a tile of scores is [key][lane], and a lane is one query row of one head. So maxima, sums
   and scalings go down the columns, and no value crosses lanes. The query heads of one key/value head are lanes of the
   same tiles: lane i of a segment is row i / share, and head i % share of its group. Keys or values are packed as
   panels of A, vectors of lanes as panels of B, and all products are gemm's tile:
     s[key][lane] = K q         dp[key][lane] = V do         out[d][lane] += X' w[key][lane]
   In the forward, out is o, X is V and w is p. In the backward, out is dq, X is K and w is ds, and
     dk[key][d] += ds q         dv[key][d] += p do
   Nothing is added across tasks. A task of the backward has all lanes of a segment: it makes dk and dv of their own
   keys, and its part of the prefix's, in the op's scratch; a second pass adds these parts up. A segment that is too
   long for a task, or shorter than its prefix, is cut, and its weights are made again in the second pass.

   The prefix and the own keys of a segment are two ranges, cut into tiles from the start of each. A tile or a key that
   a lane does not see changes none of its bits, because its weight is 0.

   In decoding a segment has one row, and its keys are for few lanes. The pass for such rows makes the same sums by the
   products of few rows: scores are [lane][key], and keys and values are read where they are. Segments of one row with
   the same prefix (samples of a prompt) are siblings: their lanes go through the prefix together. */
enum { WRPO__PASS_O = 1, WRPO__PASS_BWD = 2, WRPO__PASS_ROW = 4 };
enum { WRPO__TASK_LANES = 4096 };  /* at most, of one task of the backward */
typedef struct wrpo__key_grads { float *of[2]; int64_t ld; } wrpo__key_grads;  /* dk and dv */
typedef struct wrpo__attention {  /* the arguments of both ops; those of the backward are NULL in the forward */
    const wrpo__cpu *cpu; const wrpo__kernels *kernel; const wrpo_attn *a;
    wrpo__factors factors; int pass;
    int64_t share, tile, chunk;  /* query heads of a key/value head; keys of a tile; lanes that are packed at once */
    const float *q, *k, *v, *d_o, *lse, *delta;  /* delta [n, H] is the sum of do o over d */
    float *o, *new_lse, *dq;
    wrpo__key_grads grads, parts;  /* parts: of prefixes */
} wrpo__attention;
typedef struct wrpo__lanes {  /* lanes [first, first + count), for head g of k and v, of a segment or of siblings */
    const wrpo__attention *x; const wrpo_seg *seg;
    int64_t segs, g, first, count;
} wrpo__lanes;
/* What a task keeps in its scratch: name, rows, columns, passes. d_mr is d rounded up to MR, likewise d_nr; slots are
   the tile's keys in panels of A. */
#define WRPO__BUFFERS(X) \
    X(numbers, 3, lanes, 7)  /* [group][3][NR]: position; running maximum and sum, or lse and delta */ \
    X(p, tile, NR, 7)        /* the weights of a tile, [key][lane] */ \
    X(ds, tile, NR, 6)       /* for rows: those weights as a panel of A */ \
    X(keys, slots, d, 3)     /* panels of A: its lanes are keys, its steps are d */ \
    X(values, slots, d, 2) \
    X(across, d_mr / MR * ROOM, tile, 3) /* panels of X': its lanes are d, its steps are keys */ \
    X(queries, lanes, d, 7)  /* panels of B: [group][d][NR] */ \
    X(d_outs, lanes, d, 2) \
    X(out, lanes, d_mr, 7)   /* [group][d_mr][NR] */ \
    X(columns, d_nr, tile, 4) /* values as panels of B */ \
    X(q_rows, lanes, d_nr, 7) /* queries and do again, [lane][d] */ \
    X(do_rows, lanes, d_nr, 2) \
    X(p_panels, slots, lanes, 2) /* panels of A: the weights of all groups, its steps are lanes */ \
    X(ds_panels, slots, lanes, 2)
typedef struct wrpo__buffers {
#define WRPO__X(name, rows, columns, passes) float *name;
    WRPO__BUFFERS(WRPO__X)
#undef WRPO__X
} wrpo__buffers;
static int64_t wrpo__round_up(int64_t n, int64_t to) { return wrpo__div_up(n, to) * to; }
/* The buffers for a chunk of lanes; base NULL measures them, in bytes. */
static size_t wrpo__attention_layout(const wrpo__attention *x, int pass, int64_t lanes, float *base,
                                     wrpo__buffers *w) {
    const int64_t MR = x->kernel->MR, NR = x->kernel->NR, ROOM = x->kernel->MR_ROOM, tile = x->tile, d = x->a->d;
    const int64_t d_mr = wrpo__round_up(d, MR), d_nr = wrpo__round_up(d, NR), slots = tile / MR * ROOM;
    wrpo__bump b = {.base = (char *)base};
#define WRPO__X(name, rows, columns, passes) \
    w->name = (passes) & pass ? wrpo__take(&b, rows, columns, sizeof(float)) : NULL;
    WRPO__BUFFERS(WRPO__X)
#undef WRPO__X
    return b.used;
}
/* Lanes of a chunk: 8 groups, or as many as the scratch has room for. */
static int64_t wrpo__attention_chunk(const wrpo__attention *x) {
    const size_t room = WRPO__SCRATCH_FLOATS * sizeof(float);
    wrpo__buffers w;
    const int64_t NR = x->kernel->NR;
    int64_t lanes = 8 * NR;
    while (lanes > NR && wrpo__attention_layout(x, x->pass, lanes, NULL, &w) > room) lanes -= NR;
    return lanes;
}
static int64_t wrpo__attention_words(const wrpo__attention *x, int64_t steps) {
    return x->factors == WRPO__FLOATS ? steps : wrpo__div_up(steps, 2);
}
/* Lane i: its row, its head, the position of its query, and the offset of its vector in rows of ld elements. */
static int64_t wrpo__lane_row(const wrpo__lanes *b, int64_t i) { return b->seg->begin + (b->first + i) / b->x->share; }
static int64_t wrpo__lane_head(const wrpo__lanes *b, int64_t i) {
    return b->g * b->x->share + (b->first + i) % b->x->share;
}
static int64_t wrpo__lane_number(const wrpo__lanes *b, int64_t i) {  /* of its lse */
    return wrpo__lane_row(b, i) * b->x->a->H + wrpo__lane_head(b, i);
}
static int64_t wrpo__lane_position(const wrpo__lanes *b, int64_t i) {
    const int64_t row = wrpo__lane_row(b, i);
    return wrpo__query_position(b->seg + (b->segs > 1 ? row - b->seg->begin : 0), row);
}
static int64_t wrpo__lane_at(const wrpo__lanes *b, int64_t i, int64_t ld) {
    return wrpo__lane_row(b, i) * ld + wrpo__lane_head(b, i) * b->x->a->d;
}
/* For lanes [i, i + n) and keys at positions [key0, key0 + keys): is any key seen? Then keys [0, *seen) are, some of
   them not by all lanes if *masked. */
static bool wrpo__visible(const wrpo__lanes *b, int64_t i, int64_t n, int64_t key0, int64_t keys, int64_t *seen,
                          bool *masked) {
    const int64_t window = b->x->a->window;
    const int64_t low = wrpo__lane_position(b, i), high = wrpo__lane_position(b, i + n - 1);
    *seen = WRPO__MIN(keys, high - key0 + 1);
    *masked = low < key0 + *seen - 1 || (window > 0 && high - key0 >= window);
    return *seen > 0 && (window <= 0 || low - (key0 + keys - 1) < window);
}
/* n lanes by `steps` steps of x become panels of A or, if is_b, of B. */
static void wrpo__attention_pack(const wrpo__attention *x, bool is_b, float *panels, const float *from, int64_t lane,
                                 int64_t step, int64_t n, int64_t steps) {
    const int64_t words = wrpo__attention_words(x, steps), room = is_b ? x->kernel->NR : x->kernel->MR_ROOM;
    x->kernel->pack(x->factors, is_b, (wrpo__packing){{from, WRPO_DTYPE_F32, lane, step}, n, steps, panels,
                                                      room * words, words, false});
}
/* x[n][width] as words of products, in place */
static void wrpo__to_words(const wrpo__attention *x, float *rows, int64_t n, int64_t width) {
    if (x->factors == WRPO__PAIRS) x->kernel->pair_rows(rows, n, width);
}
/* scale times the lanes' vectors of y, as panels of B and as words of rows[lane][d_nr]. What is missing is 0. */
static void wrpo__lane_vectors(const wrpo__lanes *b, const float *y, int64_t ldy, float scale, float *rows,
                               float *panels) {
    const wrpo__attention *x = b->x;
    const int64_t NR = x->kernel->NR, d = x->a->d, ld = wrpo__round_up(d, NR), all = wrpo__round_up(b->count, NR);
    for (int64_t i = 0; i < all; i++) {
        const int64_t have = i < b->count ? d : 0, ahead = i + 8;
        for (int64_t j = 0; ahead < b->count && j < d; j += 16)  /* the machine does not foresee that row */
            WRPO__PREFETCH(y + wrpo__lane_at(b, ahead, ldy) + j, 0);
        if (have) x->kernel->scale(rows + i * ld, scale, y + wrpo__lane_at(b, i, ldy), WRPO_DTYPE_F32, d);
        memset(rows + i * ld + have, 0, (size_t)(ld - have) * sizeof *rows);
    }
    wrpo__attention_pack(x, true, panels, rows, ld, 1, all, d);
    wrpo__to_words(x, rows, all, ld);
}
/* o and lse of a lane, from the sum of its outputs, its running maximum and its sum. */
static void wrpo__lane_write(const wrpo__lanes *b, int64_t i, const float *out, float top, float sum) {
    const wrpo__attention *x = b->x;
    x->new_lse[wrpo__lane_number(b, i)] = top + logf(sum);
    x->kernel->scale(x->o + wrpo__lane_at(b, i, x->a->ldo), 1 / sum, out, WRPO_DTYPE_F32, x->a->d);
}
static void wrpo__lane_numbers(const wrpo__lanes *b, float *numbers) {
    const int64_t NR = b->x->kernel->NR;
    for (int64_t i = 0; i < wrpo__round_up(b->count, NR); i++) {
        float *y = numbers + i / NR * 3 * NR + i % NR;
        const int64_t lane = WRPO__MIN(i, b->count - 1);
        const int64_t at = wrpo__lane_number(b, lane);
        y[0] = (float)wrpo__lane_position(b, lane);
        y[NR] = b->x->lse ? b->x->lse[at] : -FLT_MAX;
        y[2 * NR] = b->x->lse ? b->x->delta[at] : 0;
    }
}
/* c[m][n] = or += a b over `steps` steps: panels of a `next` apart, rows of b ldb apart. */
static void wrpo__multiply(const wrpo__attention *x, int64_t m, int64_t n, int64_t steps, const float *a, int64_t next,
                           const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
    const int64_t MR = x->kernel->MR, NR = x->kernel->NR, words = wrpo__attention_words(x, steps);
    for (int64_t j = 0; j < n; j += NR)
        for (int64_t i = 0; i < m; i += MR)
            x->kernel->tile(x->factors, WRPO_DTYPE_F32, words, a + i / MR * next, b + j, ldb,
                            &(wrpo__target){.c = c + i * ldc + j, .ldc = ldc, .m = WRPO__MIN(MR, m - i),
                                             .n = WRPO__MIN(NR, n - j), .add = add});
}
static void wrpo__attention_begin(const wrpo__lanes *b, const wrpo__buffers *w) {
    const wrpo__attention *x = b->x;
    wrpo__lane_numbers(b, w->numbers);
    wrpo__lane_vectors(b, x->q, x->a->ldq, x->a->scale, w->q_rows, w->queries);
    if (x->d_o) wrpo__lane_vectors(b, x->d_o, x->a->ldo, 1, w->do_rows, w->d_outs);
}
/* What a chunk and a tile, the keys of rows [row, row + n), add to o or dq (of_lanes), and to dk and dv, if given. */
static void wrpo__attention_tile(const wrpo__lanes *b, const wrpo__buffers *w, int64_t row, int64_t n, bool of_lanes,
                                 const wrpo__key_grads *grads) {
    const wrpo__attention *x = b->x;
    const wrpo_attn *a = x->a;
    const bool bwd = x->d_o != NULL;
    const int64_t NR = x->kernel->NR, ROOM = x->kernel->MR_ROOM, d = a->d, d_nr = wrpo__round_up(d, NR);
    const int64_t d_mr = wrpo__round_up(d, x->kernel->MR), group_words = wrpo__attention_words(x, NR);
    const int64_t next = x->chunk / NR * group_words * ROOM;  /* from one panel of weights to the next */
    const int64_t words = wrpo__attention_words(x, d);
    const float window = a->window > 0 ? (float)a->window : INFINITY;
    float *const weights[] = {w->ds, w->p}, *const panels[] = {w->ds_panels, w->p_panels};
    const float *const rows[] = {w->q_rows, w->do_rows};
    const int64_t key0 = wrpo__key_position(b->seg, row), at = row * a->ldkv + b->g * d;
    int64_t seen, begin = 0, end = 0;  /* the groups that see any of the keys */
    bool masked;
    if (!wrpo__visible(b, 0, b->count, key0, n, &seen, &masked)) return;
    if (!of_lanes) wrpo__attention_begin(b, w);
    wrpo__attention_pack(x, false, w->keys, x->k + at, a->ldkv, 1, n, d);
    if (bwd) wrpo__attention_pack(x, false, w->values, x->v + at, a->ldkv, 1, n, d);
    if (of_lanes) wrpo__attention_pack(x, false, w->across, (bwd ? x->k : x->v) + at, 1, a->ldkv, d, n);
    for (int64_t i = 0; i < b->count; i += NR) {
        if (!wrpo__visible(b, i, WRPO__MIN(NR, b->count - i), key0, n, &seen, &masked)) continue;
        float *numbers = w->numbers + 3 * i, *out = w->out + i * d_mr;
        const wrpo__mask mask = {numbers, key0, window, a->softcap, masked};
        const int64_t most = wrpo__round_up(seen, 4);  /* whole tiles are faster */
        wrpo__multiply(x, most, NR, d, w->keys, ROOM * words, w->queries + i * words, NR, w->p, NR, false);
        if (!bwd) x->kernel->softmax(w->p, seen, mask, numbers + NR, numbers + 2 * NR, out, d);
        else {
            wrpo__multiply(x, most, NR, d, w->values, ROOM * words, w->d_outs + i * words, NR, w->ds, NR, false);
            x->kernel->softmax_bwd(w->p, w->ds, seen, mask, numbers + NR, numbers + 2 * NR);
        }
        if (end == 0) begin = i;
        end = i + NR;
        for (int k = 0; k < 2 && grads; k++) {
            memset(weights[k] + seen * NR, 0, (size_t)((n - seen) * NR) * sizeof(float));
            const wrpo__operand from = {weights[k], WRPO_DTYPE_F32, NR, 1};
            float *to = panels[k] + i / NR * group_words * ROOM;
            x->kernel->pack(x->factors, false, (wrpo__packing){from, n, NR, to, next, group_words, false});
        }
        if (!of_lanes) continue;
        wrpo__to_words(x, weights[!bwd], seen, NR);
        wrpo__multiply(x, WRPO__MIN(d_mr, wrpo__round_up(d, 4)), NR, seen, w->across,
                       ROOM * wrpo__attention_words(x, n), weights[!bwd], NR, out, NR, true);
    }
    const int64_t first = begin / NR * group_words;
    for (int k = 0; k < 2 && grads; k++)
        wrpo__multiply(x, n, d, end - begin, panels[k] + first * ROOM, next, rows[k] + first * d_nr, d_nr,
                       grads->of[k], grads->ld, true);
}
/* Does one task of the backward have the segment? Its part of the prefix's gradients has room at its own rows. */
static bool wrpo__at_once(const wrpo__attention *x, const wrpo_seg *seg) {
    const int64_t rows = seg->end - seg->begin;
    return x->d_o && rows * x->share <= WRPO__TASK_LANES && seg->prefix_end - seg->prefix <= rows;
}
static wrpo__key_grads wrpo__grads_at(wrpo__key_grads y, int64_t row, int64_t column) {
    return (wrpo__key_grads){{y.of[0] + row * y.ld + column, y.of[1] + row * y.ld + column}, y.ld};
}
/* n rows of a head become 0, or a part is added to them. */
static void wrpo__grads_add(const wrpo__attention *x, wrpo__key_grads y, const wrpo__key_grads *part, int64_t n) {
    for (int64_t i = 0; i < 2 * n; i++) {
        float *to = y.of[i % 2] + i / 2 * y.ld;
        if (part) x->kernel->axpy(to, 1, part->of[i % 2] + i / 2 * part->ld, x->a->d);
        else memset(to, 0, (size_t)x->a->d * sizeof *to);
    }
}
/* o or dq of lanes and, if they are all of a segment's, what they add to dk and dv. */
static void wrpo__attention_lanes(wrpo__lanes b) {
    const wrpo__attention *x = b.x;
    const wrpo_attn *a = x->a;
    const wrpo_seg *seg = b.seg;
    const bool of_keys = wrpo__at_once(x, seg);
    const int64_t NR = x->kernel->NR, d = a->d, d_mr = wrpo__round_up(d, x->kernel->MR), last = b.first + b.count;
    wrpo__buffers w;
    wrpo__attention_layout(x, x->pass, x->chunk, wrpo__cpu_scratch(x->cpu), &w);
    for (int64_t first = b.first; b.first < last; b.first += b.count) {
        b.count = WRPO__MIN(x->chunk, last - b.first);
        wrpo__attention_begin(&b, &w);
        memset(w.out, 0, (size_t)(wrpo__round_up(b.count, NR) * d_mr) * sizeof *w.out);
        for (int own = 0; own < 2; own++) {
            const int64_t begin = own ? seg->own : seg->prefix, end = own ? seg->own_end : seg->prefix_end;
            for (int64_t row = begin; row < end; row += x->tile) {
                const wrpo__key_grads y = wrpo__grads_at(own ? x->grads : x->parts, seg->begin + row - begin, b.g * d);
                const int64_t n = WRPO__MIN(x->tile, end - row);
                if (of_keys && b.first == first) wrpo__grads_add(x, y, NULL, n);
                wrpo__attention_tile(&b, &w, row, n, true, of_keys ? &y : NULL);
            }
        }
        for (int64_t i = 0; i < b.count; i++) {
            const float *number = w.numbers + i / NR * 3 * NR + i % NR;
            if (i % NR == 0) x->kernel->transpose(w.queries, w.out + i * d_mr, d);  /* of one group, [NR][d] */
            const float *row = w.queries + i % NR * d;
            if (x->dq) x->kernel->scale(x->dq + wrpo__lane_at(&b, i, a->ldq), a->scale, row, WRPO_DTYPE_F32, d);
            else wrpo__lane_write(&b, i, row, number[NR], number[2 * NR]);
        }
    }
}
/* The pass for o where segments have one row: lanes [from, to) of those from `first` on, one panel of A, and the keys
   of rows [row, end), less than a tile; the first one is at position key0. */
static void wrpo__attention_row_tile(const wrpo__lanes *b, const wrpo__buffers *w, int64_t first, int64_t from,
                                     int64_t to, int64_t row, int64_t n, int64_t key0) {
    const wrpo__attention *x = b->x;
    const wrpo_attn *a = x->a;
    const int64_t NR = x->kernel->NR, LANES = x->kernel->LANES, d = a->d, d_nr = wrpo__round_up(d, NR), m = to - from;
    const int64_t words = wrpo__attention_words(x, n);
    const float *keys = x->k + row * a->ldkv + b->g * d, *values = x->v + row * a->ldkv + b->g * d;
    const bool packed = x->factors != WRPO__FLOATS || d_nr != d;
    int64_t hidden[64], least = n;  /* keys that a lane does not see, from the first one on */
    for (int64_t i = from; i < to; i++) {
        const int64_t past = wrpo__lane_position(b, first + i) + 1 - a->window - key0;
        hidden[i] = a->window > 0 ? WRPO__MAX(0, WRPO__MIN(n, past)) : 0;
        least = WRPO__MIN(least, hidden[i]);
    }
    if (least == n) return;
    for (int64_t j = 0; j < n; j += LANES) {
        const wrpo__operand k = {keys + j * a->ldkv, WRPO_DTYPE_F32, a->ldkv, 1};
        x->kernel->thin(x->factors, d, w->queries + from, k, 4 * LANES * a->ldkv,
                        (wrpo__target){.c = w->p + from * x->tile + j, .ldc = x->tile, .m = m,
                                       .n = WRPO__MIN(LANES, n - j)});
    }
    for (int64_t i = from; i < to; i++)
        x->kernel->softmax_row(w->p + i * x->tile, hidden[i], n, a->softcap, w->numbers + i, w->numbers + NR + i,
                               w->out + i * d_nr, d);
    wrpo__attention_pack(x, false, w->ds, w->p + from * x->tile, x->tile, 1, m, n);
    if (packed) wrpo__attention_pack(x, true, w->columns, values, 1, a->ldkv, d, n);
    for (int64_t j = 0; j < d; j += NR)
        x->kernel->tile(x->factors, WRPO_DTYPE_F32, words, w->ds, packed ? w->columns + j * words : values + j,
                        packed ? NR : a->ldkv,
                        &(wrpo__target){.c = w->out + from * d_nr + j, .ldc = d_nr, .m = m, .n = NR, .add = true});
}
static void wrpo__attention_row(const wrpo__lanes *b) {
    const wrpo__attention *x = b->x;
    const wrpo_attn *a = x->a;
    const int64_t NR = x->kernel->NR, d = a->d, d_nr = wrpo__round_up(d, NR), share = x->share;
    wrpo__buffers w;
    wrpo__attention_layout(x, WRPO__PASS_ROW, NR, wrpo__cpu_scratch(x->cpu), &w);
    for (int64_t first = 0, count; first < b->count; first += count) {
        count = WRPO__MIN(x->kernel->MR, b->count - first);
        for (int64_t i = 0; i < count; i++) {
            const float *q = x->q + wrpo__lane_at(b, first + i, a->ldq);
            x->kernel->scale(w.q_rows + i * d, a->scale, q, WRPO_DTYPE_F32, d);
            w.numbers[i] = -FLT_MAX;
            w.numbers[NR + i] = 0;
        }
        wrpo__attention_pack(x, false, w.queries, w.q_rows, d, 1, count, d);
        memset(w.out, 0, (size_t)(count * d_nr) * sizeof *w.out);
        for (int64_t range = 0; range <= b->segs; range++) {  /* the prefix; own keys of each segment, for its lanes */
            const wrpo_seg *seg = b->seg + WRPO__MAX(range - 1, 0);
            const int64_t begin = range ? seg->own : seg->prefix, end = range ? seg->own_end : seg->prefix_end;
            const int64_t lane = b->first + first;
            const int64_t from = range ? WRPO__MAX((range - 1) * share - lane, 0) : 0;
            const int64_t to = range ? WRPO__MIN(range * share - lane, count) : count;
            for (int64_t row = begin; row < end && from < to; row += x->tile)
                wrpo__attention_row_tile(b, &w, first, from, to, row, WRPO__MIN(x->tile, end - row),
                                         wrpo__key_position(seg, row));
        }
        for (int64_t i = 0; i < count; i++)
            wrpo__lane_write(b, first + i, w.out + i * d_nr, w.numbers[i], w.numbers[NR + i]);
    }
}
/* The second pass: dk and dv of rows [row, row + n) of segment `home`, from all segments that see them, in order. */
static void wrpo__attention_rows(const wrpo__attention *x, const wrpo_seg *home, int64_t row, int64_t n, int64_t g) {
    const wrpo_attn *a = x->a;
    wrpo__buffers w;
    wrpo__attention_layout(x, x->pass, x->chunk, wrpo__cpu_scratch(x->cpu), &w);
    if (!wrpo__at_once(x, home)) wrpo__grads_add(x, wrpo__grads_at(x->grads, row, g * a->d), NULL, n);
    for (const wrpo_seg *seg = a->segs; seg < a->segs + a->n_segs; seg++) {
        const int64_t first = seg == home ? row : WRPO__MAX(row, seg->prefix);
        const int64_t keys = (seg == home ? row + n : WRPO__MIN(row + n, seg->prefix_end)) - first;
        const int64_t lanes = (seg->end - seg->begin) * x->share;
        const bool made = wrpo__at_once(x, seg);
        if (keys <= 0 || (made && seg == home)) continue;
        const wrpo__key_grads grads = wrpo__grads_at(x->grads, first, g * a->d);
        const wrpo__key_grads part = wrpo__grads_at(x->parts, seg->begin + first - seg->prefix, g * a->d);
        if (made) wrpo__grads_add(x, grads, &part, keys);
        for (wrpo__lanes b = {x, seg, 1, g, 0, 0}; !made && b.first < lanes; b.first += x->chunk) {
            b.count = WRPO__MIN(x->chunk, lanes - b.first);
            wrpo__attention_tile(&b, &w, first, keys, false, &grads);
        }
    }
}
/* How many segments that end before `end` are siblings. */
static int64_t wrpo__siblings(const wrpo_attn *a, int64_t end) {
    const wrpo_seg *last = &a->segs[end - 1];
    int64_t n = 0;
    while (last->prefix < last->prefix_end && n < end && last[-n].end - last[-n].begin == 1 &&
           last[-n].prefix == last->prefix && last[-n].prefix_end == last->prefix_end) n++;
    return WRPO__MAX(1, n);
}
/* A task is a tile of a segment's rows, or else a chunk of the lanes of a segment or of siblings, or all of them in the
   backward. Fills in *b for task i; the last segments come first, because they are long. Returns i, or the number of
   all tasks if there are not so many. */
static int64_t wrpo__attention_task(const wrpo__attention *x, bool rows, int64_t i, wrpo__lanes *b) {
    const wrpo_attn *a = x->a;
    int64_t tasks = 0;
    for (int64_t end = a->n_segs; end > 0; end -= b->segs) {
        b->segs = x->d_o ? 1 : wrpo__siblings(a, end);
        b->seg = &a->segs[end - b->segs];
        const int64_t units = (a->segs[end - 1].end - b->seg->begin) * (rows ? 1 : x->share);
        const int64_t step = rows ? x->tile : wrpo__at_once(x, b->seg) ? WRPO__TASK_LANES : x->chunk;
        const int64_t here = wrpo__div_up(units, step);
        if (i < tasks + here) {
            b->first = (tasks + here - 1 - i) * step;
            b->count = WRPO__MIN(step, units - b->first);
            return i;
        }
        tasks += here;
    }
    return tasks;
}
static void wrpo__attention_pass(const wrpo__attention *x, bool rows) {
    const wrpo_attn *a = x->a;
    wrpo__lanes all;
    const int64_t tasks = wrpo__attention_task(x, rows, INT64_MAX, &all) * a->G;
    int64_t work = 0;
    for (const wrpo_seg *s = a->segs; s < a->segs + a->n_segs; s++)
        work += (s->end - s->begin) * (s->prefix_end - s->prefix + s->own_end - s->own) * a->H * a->d / 32;
    WRPO__PARFOR(wrpo__cpu_team(x->cpu, work))
    for (int64_t i = 0; i < tasks; i++) {
        wrpo__lanes b = {.x = x, .g = i % a->G};
        wrpo__attention_task(x, rows, i / a->G, &b);
        if (rows) wrpo__attention_rows(x, b.seg, b.seg->begin + b.first, b.count, b.g);
        else if (!x->d_o && b.seg->end - b.seg->begin == 1) wrpo__attention_row(&b);
        else wrpo__attention_lanes(b);
    }
}
static wrpo__attention wrpo__attention_of(const wrpo__cpu *cpu, int pass, const wrpo_attn *a, const float *q,
                                          const float *k, const float *v) {
    const int64_t panels = cpu->kernel->MR > 8 ? 8 : 16;
    wrpo__attention x = {
        .cpu = cpu, .kernel = cpu->kernel, .a = a, .factors = cpu->pairs ? WRPO__PAIRS : WRPO__FLOATS, .pass = pass,
        .share = a->H / a->G, .tile = panels * cpu->kernel->MR, .q = q, .k = k, .v = v};
    x.chunk = wrpo__attention_chunk(&x);
    return x;
}
static void wrpo__cpu_attention(void *dev, const wrpo_attn *a, void *o, float *lse,
                                const void *q, const void *k, const void *v) {
    wrpo__attention x = wrpo__attention_of(dev, WRPO__PASS_O, a, q, k, v);
    x.o = o;
    x.new_lse = lse;
    wrpo__attention_pass(&x, false);
}
static size_t wrpo__cpu_attention_scratch(void *dev, int64_t n, int64_t H, int64_t G, int64_t d) {
    (void)dev;
    return (size_t)(n * H + 2 * n * G * d) * sizeof(float);
}
static void wrpo__cpu_attention_bwd(void *dev, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o,
                                    const void *o, const float *lse, const void *q, const void *k, const void *v,
                                    void *scratch) {
    wrpo__attention x = wrpo__attention_of(dev, WRPO__PASS_BWD, a, q, k, v);
    float *delta = scratch;
    x.grads = (wrpo__key_grads){{dk, dv}, a->ldkv};
    x.parts = (wrpo__key_grads){{delta + a->n * a->H, delta + a->n * (a->H + a->G * a->d)}, a->G * a->d};
    WRPO__PARFOR(wrpo__cpu_team(x.cpu, a->n * a->H * a->d))
    for (int64_t i = 0; i < a->n * a->H; i++) {
        const int64_t at = i / a->H * a->ldo + i % a->H * a->d;
        delta[i] = x.kernel->dot((const float *)d_o + at, (const float *)o + at, a->d);
    }
    x.d_o = d_o;
    x.lse = lse;
    x.delta = delta;
    x.dq = dq;
    wrpo__attention_pass(&x, false);
    wrpo__attention_pass(&x, true);
}
/* By several threads, because one does not fill the memory's lines. src NULL: zeros. */
static void wrpo__cpu_copy(void *dev, void *dst, const void *src, size_t n) {
    const wrpo__cpu *cpu = dev;
    const int64_t bytes = (int64_t)n, part = 4 * WRPO__GRAIN;
    WRPO__PARFOR(wrpo__cpu_team(cpu, bytes / 4))
    for (int64_t i = 0; i < bytes; i += part) {
        const size_t size = (size_t)WRPO__MIN(part, bytes - i);
        if (src) memcpy((char *)dst + i, (const char *)src + i, size);
        else memset((char *)dst + i, 0, size);
    }
}
static void wrpo__cpu_zero(void *dev, void *dst, size_t n) { wrpo__cpu_copy(dev, dst, NULL, n); }
#define WRPO__CPU_BACKEND(level, allowed) { \
    .name = "cpu-" #level, .features = allowed, .open = wrpo__open_##level, .copy = wrpo__cpu_copy, \
    .zero = wrpo__cpu_zero, .keep_bytes = wrpo__cpu_keep_bytes, .keep = wrpo__cpu_keep, .forget = wrpo__cpu_forget, \
    WRPO__HOST_BACKEND(cpu)}
#endif /* WRPO_NO_SIMD */
WRPO_API const wrpo_backend *wrpo_backend_find(const char *name) {
#ifndef WRPO_NO_SIMD
    static const wrpo_backend generic = WRPO__CPU_BACKEND(generic, 0);
    if (strcmp(name, "generic") == 0) return &generic;
#ifdef WRPO__HAVE_AVX
    static const wrpo_backend avx2 = WRPO__CPU_BACKEND(avx2, 0), avx512 = WRPO__CPU_BACKEND(avx512, WRPO_FEATURE_BF16);
    static const wrpo_backend amx = WRPO__CPU_BACKEND(avx512, WRPO_FEATURE_BF16 | WRPO_FEATURE_AMX);
    unsigned a, b, c = 0, d;  /* 29: F16C */
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    if (strcmp(name, "avx2") == 0 && has_avx2) return &avx2;
    if (strcmp(name, "avx512") == 0 && has_avx512) return &avx512;
    if (strcmp(name, "amx") == 0 && has_avx512 && wrpo__has_pairs() && wrpo__has_tiles()) return &amx;
#endif
#endif
    return strcmp(name, "plain") == 0 ? wrpo_backend_plain() : NULL;
}
WRPO_API const wrpo_backend *wrpo_backend_cpu(void) {
    static const char *const names[] = {"amx", "avx512", "avx2", "generic"};
    for (int i = 0; i < WRPO__COUNT(names); i++) {
        const wrpo_backend *backend = wrpo_backend_find(names[i]);
        if (backend) return backend;
    }
    return wrpo_backend_plain();
}
#endif /* WRPO_IMPLEMENTATION */
/* ----------------------------------------------------------------------------------------------- >>end
   MIT License

   Copyright (c) 2026 the wrpo.h authors

   Permission is hereby granted, free of charge, to any person obtaining a copy
   of this software and associated documentation files (the "Software"), to deal
   in the Software without restriction, including without limitation the rights
   to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
   copies of the Software, and to permit persons to whom the Software is
   furnished to do so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all
   copies or substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
   IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
   FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
   AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
   LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
   SOFTWARE. */
