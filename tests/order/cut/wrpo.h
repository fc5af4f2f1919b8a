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
       WRPO_FILE                 this file, likewise, if you renamed it and your GCC is older than 12

   Does NOT: train in float16, read GGUF or pickled weights, quantize, run mixture-of-experts or encoder models, or
   download anything. NVIDIA's GPUs need wrpo_cuda.cu, the file beside this one; there is no other GPU backend.
   What a checkpoint asks for and this file does not compute is refused by name, never ignored. No function exits,
   prints, or keeps state outside a context.

   Contents (search for the tag), with their lengths in lines
       >>api         770  every public declaration, documented
       >>base       1040  errors, arenas, text, files, threads, random numbers
       >>loss        300  WRPO and its family, on one page; schedules of alpha and of the learning rate
       >>ops         430  every op in plain C, forward above backward: what each one means
       >>layout      290  the table of weights; memory measured, then assigned
       >>model       680  the decoder, forward and backward, over packed records with a shared prompt
       >>step        510  records of token ids -> packed batch -> log-probs -> loss -> gradients -> AdamW
       ---- Stop here if you only want the algorithm ----
       >>json        450  from files to token ids, and back: this,
                          >>tensors 440, >>checkpoint 1040, >>token 1480, >>chat 1610, >>data 510
       >>generate    500  samples, over a cache of keys and values
       >>reward      380  reward models
       >>run         600  memory plan, reference cache, metrics, resume, the loop with files
       >>recipe      510  candidates to records, splits, win rates
       >>cpu        1690  the fast ops: dispatch, SIMD, products, attention
       >>end          23  the licence */
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
   out-parameter is freed by the function of its kind, text and arrays by wrpo_free. All of these take NULL. Callbacks
   (allocator and logger too) run on the thread that made the call, before it returns. They must return: no longjmp, no
   exception. They may call the library, but must not change or free what the call works with. Threads. A context and
   everything made from it belong to one thread at a time; a call takes objects of one context. Contexts are
   independent, but for one variable without a lock, the seed of stb_ds's maps; no result depends on it. Text is UTF-8.
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
typedef struct wrpo_desc {
    const wrpo_backend *backend;  /* 0 = wrpo_backend_cpu() */
    int threads;             /* 0 = all that OpenMP offers; 1 without OpenMP */
    wrpo_dtype dtype;        /* F32 or BF16; 0 = the backend's own, F32 on the CPU. BF16: products with weights of
                                bfloat16, and of gradients, round both factors to it if the machine has such
                                products; sums are float. A model to train has matrices of bfloat16, the high
                                halves of float masters */
    size_t memory_limit;     /* bytes that a run of wrpo_trainer_open or a generation may hold; 0 = what is free (a
                                run on a host may take more: it can swap) */
    wrpo_allocator memory;
    wrpo_files files;
    wrpo_logger log;         /* 0 = silent; wrpo_log_stderr is one */
    wrpo_error *why;         /* filled if wrpo_open fails, as there is no context to ask; may be NULL */
} wrpo_desc;
WRPO_API wrpo_result wrpo_open(const wrpo_desc *desc, wrpo_ctx **out);
WRPO_API void wrpo_close(wrpo_ctx *ctx);
WRPO_API const wrpo_error *wrpo_last_error(const wrpo_ctx *ctx);  /* until the next one; NULL ctx: "out of memory" */
WRPO_API void wrpo_free(wrpo_ctx *ctx, void *p);
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
    wrpo_head head;          /* by "architectures": LM, or the head of a reward model (see there) */
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
    bool merge;              /* of a model with an adapter: the whole model, W + scale B A in place of W; see there */
    bool random_rounding;    /* to BF16 up or down by chance, so that the mean is the weight: small updates are kept in
                                the mean. The same bits every time. false: to the nearest */
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
/* Weights, config.json and side files; of a model with an adapter, see there. A save that is cut short leaves the old
   checkpoint, the new one, or a directory that does not open. Where weights are rounded, the log says how much of the
   change since the load that leaves (metrics.jsonl: update_kept): sum (round(w) - round(w0)) (w - w0) over
   sum (w - w0)^2. Less than a half is a warning. */
WRPO_API wrpo_result wrpo_model_save(wrpo_model *model, const wrpo_save_desc *desc);
WRPO_API void wrpo_model_free(wrpo_model *model);
/* What a load would say of config and tensors, in milliseconds: no weight is read. */
WRPO_API wrpo_result wrpo_model_check(wrpo_ctx *ctx, const char *dir, wrpo_config *config, int64_t *parameters,
        wrpo_dtype *dtype);
WRPO_API const wrpo_config *wrpo_model_config(const wrpo_model *model);
WRPO_API int64_t wrpo_model_weights(const wrpo_model *model, const wrpo_weight **out);  /* the table; its length */
/* Of the model without its adapter; a tied weight counts once. */
WRPO_API int64_t wrpo_model_parameters(const wrpo_model *model);
/* Elements [first, first + count) of weight i of the table, as floats, from or to any backend's memory. Where there
   are float masters, these; otherwise put rounds to the weight's dtype. put refuses frozen weights. */
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
   adapter_config.json and adapter_model.safetensors. What the library does not compute (DoRA, biases, modules_to_save)
   is refused by name. */
WRPO_API wrpo_result wrpo_adapter_new(wrpo_model *model, const wrpo_adapter_desc *desc);
WRPO_API wrpo_result wrpo_adapter_load(wrpo_model *model, const char *dir);
/* The adapter's settings; target is NULL. r 0: the model has no adapter. */
WRPO_API wrpo_adapter_desc wrpo_model_adapter(const wrpo_model *model);

/* ---- data: JSON lines of {prompt, chosen, rejected} or {messages} ---- */
typedef enum wrpo_role { WRPO_ROLE_SOURCE, WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED } wrpo_role;
typedef enum wrpo_tokenization { WRPO_TOKENIZATION_CLEAN, WRPO_TOKENIZATION_AUTHORS } wrpo_tokenization;  /* >>data */
typedef struct wrpo_data wrpo_data;
typedef struct wrpo_data_desc {
    const char *path;
    wrpo_tokenization tokenization;  /* 0 = clean */
    int64_t max_length, max_prompt_length;  /* tokens; 0 = 2048, and 1800 / 2048 of max_length */
    int64_t limit;           /* read only that many records; 0 = all */
} wrpo_data_desc;
typedef struct wrpo_tokens {  /* one response: ids[0..count), of which ids[first..count) are scored */
    wrpo_role role;
    const int32_t *ids; int64_t count, first;
    double share;            /* of a source among its record's sources: they sum to 1, or all are 0 = equal */
    int pair_id;             /* pair methods compare a response with the rejected ones of the same pair_id */
} wrpo_tokens;
typedef struct wrpo_record {
    const char *prompt_id;   /* "line 7" where the file has none; 0 = by number */
    int64_t line;
    const int32_t *prompt; int64_t prompt_count;
    const wrpo_tokens *responses; int count;  /* sources first, then the target's, then the rejected ones */
    double weight;           /* its loss is multiplied by it; the mean is still over records. 0 = 1 (WRPO_ZERO: 0) */
} wrpo_record;
typedef struct wrpo_data_stats {
    int64_t records, prompt_tokens, response_tokens, longest;  /* longest: prompt + longest response */
    int64_t truncated_prompts, truncated_responses;
} wrpo_data_stats;
/* One line is one record. The keys, each with its forms (>>data):
     prompt, chosen, rejected     a quadruple (chosen: source, target) or a pair. With K sources chosen has K + 1
     weights                      K numbers, divided by their sum: the sources' shares (absent: equal)
     prompt, pairs                FuseRL: [{chosen, rejected, weight}, ...], a source's own best and worst each
     messages                     SFT
     tools, chat_template_kwargs  an array and an object, for the chat template beside the messages
     weight                       what the record's loss counts for (EAST), at least 0; 1 if absent
   The tokenizer may be freed afterwards. */
WRPO_API wrpo_result wrpo_data_load(wrpo_tokenizer *tok, const wrpo_data_desc *desc, wrpo_data **out);
/* Records that are token ids already. All is copied. */
WRPO_API wrpo_result wrpo_data_from_ids(wrpo_ctx *ctx, const wrpo_record *records, int64_t count, wrpo_data **out);
WRPO_API void wrpo_data_free(wrpo_data *data);
WRPO_API int64_t wrpo_data_count(const wrpo_data *data);
WRPO_API wrpo_record wrpo_data_record(const wrpo_data *data, int64_t i);  /* a view; lives as long as the data */
WRPO_API wrpo_data_stats wrpo_data_get_stats(const wrpo_data *data);

/* ---- the algorithm: pure, host, double. Log-probs in; loss and its derivatives out ---- */
typedef enum wrpo_method { WRPO_METHOD_WRPO, WRPO_METHOD_DPO, WRPO_METHOD_IPO, WRPO_METHOD_HINGE,
                           WRPO_METHOD_SIMPO, WRPO_METHOD_DPO_NORM, WRPO_METHOD_SFT } wrpo_method;
typedef enum wrpo_pair { WRPO_PAIR_TARGET, WRPO_PAIR_SOURCE, WRPO_PAIR_BOTH } wrpo_pair;
typedef struct wrpo_loss_desc {
    wrpo_method method;      /* 0 = WRPO */
    wrpo_pair pair;          /* what a pair method takes of a quadruple as chosen; 0 = the target's answer */
    double beta;             /* 0 = 0.01; 10 for simpo and dpo-norm */
    double label_smoothing;  /* eps in [0, 0.5); 0 = none */
    double gamma_ratio;      /* simpo: gamma / beta; 0 = 0.3 (WRPO_ZERO for none) */
    bool ipo_sum;            /* ipo on sums of log-probs in place of means over tokens */
} wrpo_loss_desc;
typedef struct wrpo_response {  /* one response of a record, as the loss sees it */
    wrpo_role role;
    double share;            /* of a source among the sources: they sum to 1 */
    int64_t tokens;          /* scored tokens |y| */
    double logp, ref;        /* log pi(y|x) and log ref(y|x): sums over those tokens */
    double dlogp;            /* out: dL / d logp */
    int pair_id;             /* as in wrpo_tokens; 0 where there is one pair */
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
/* For records [first, first + count): logps [count, K] (K: the most responses of a record in data; NaN where a record
   has fewer) and, if per_token is not NULL, a new array of every scored token's log-prob in order (wrpo_free). Its
   length is the sum of count - first over the responses. */
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
WRPO_API wrpo_result wrpo_generate(wrpo_model *model, const wrpo_prompt *prompts, int64_t count,
        const wrpo_generate_desc *desc);
/* eos_token_id of generation_config.json, or of config.json where that has none; the tokenizer's EOS; the token that
   ends an answer in its chat template (tok may be NULL). Ascending. wrpo_free(ids). */
WRPO_API wrpo_result wrpo_stop_tokens(wrpo_model *model, wrpo_tokenizer *tok, int32_t **ids, int64_t *count);
typedef struct wrpo_tokenizer_prompt_desc {
    const char *name; int64_t line;  /* what errors call the record's place; 0 = "prompts", the record's own line */
    bool raw;                /* no template: the prompt is a string, encoded as it is, with BOS and the like */
    int64_t now;             /* seconds since 1970, for templates that show the date; 0 = now */
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
    int64_t label;           /* which row of score.weight is the reward, from 1; 0 = it has only one */
    int64_t micro_tokens;    /* rows computed at once, a longer conversation alone; 0 = 1024 */
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
/* A file of candidates (see selection), or of {"prompt", "content"} lines, with their rewards; all else stays. */
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
    WRPO_FORM_PAIRS          /* pairs: best and worst of each source, weight softmax(best's reward / tau) (FuseRL) */
} wrpo_form;
typedef struct wrpo_select_desc {
    const char *const *in; int64_t n_in;
    const char *out;         /* NULL: only the statistics */
    wrpo_form form;          /* 0 = quads */
    int64_t top;             /* quads: that many sources, each one's best, shares softmax(reward / tau); 0 = 1 */
    double tau;              /* 0 = 1 */
    double min_gap;          /* leave out what is not better than the rejected response by this; 0 = keep all */
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
    int64_t no_source, no_target, equal, gap;  /* prompts left out: no such response, equal texts, too close */
    int64_t empty;           /* responses left out */
    double reward[3], length[3];  /* means over the selected, by wrpo_role; length in characters; NaN: none */
    wrpo_select_model *models; int64_t n_models;  /* in the order of the files. wrpo_free(models) */
} wrpo_select_stats;
WRPO_API wrpo_result wrpo_select(wrpo_ctx *ctx, const wrpo_select_desc *desc, wrpo_select_stats *out);
typedef struct wrpo_split_desc {
    const char *in;          /* JSON lines, one for each prompt */
    const char *out[2];      /* round(share N) lines, by chance, for the first; the rest; in their order */
    double share;            /* 0 = 1/3, the paper's part for SFT */
    uint64_t seed;           /* 0 = 42 */
} wrpo_split_desc;
WRPO_API wrpo_result wrpo_split(wrpo_ctx *ctx, const wrpo_split_desc *desc, int64_t counts[2]);

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

/* ---- training: wrpo_train is open, step until done, save where asked, free ----
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
    double learning_rate;    /* the peak; 0 = 3e-7; 7e-6 for sft, 1e-6 for simpo, 8e-7 for dpo-norm */
    double beta1, beta2, eps, weight_decay;  /* of AdamW; 0 = 0.9, 0.999, 1e-8, 0 (WRPO_ZERO for none) */
    wrpo_moments moments;    /* 0 = float */
    double max_grad_norm;    /* 0 = 1; negative or WRPO_ZERO = no clipping */
    wrpo_lr_schedule lr_schedule;  /* 0 = cosine */
    double warmup_ratio;     /* of the run's steps, rounded up; 0 = 0.1 (WRPO_ZERO for none) */
    double epochs;           /* 0 = 1 */
    int64_t batch_size;      /* records per optimizer step; 0 = 128 */
    int64_t accumulation;    /* a step's loss is the mean of that many means, over batch_size / accumulation
                                records each, as the authors form it (sft: one mean over the batch's tokens). It
                                saves no memory; 0 = 1 */
    int64_t max_steps;       /* 0 = by epochs */
    int64_t micro_tokens;    /* rows computed at once, a longer record alone: memory against speed; 0 = 1024 */
    int64_t recompute;       /* layers, from the first, whose activations the backward pass computes again: less
                                memory, more time. -1 = all. 0: wrpo_trainer_open recomputes as few as
                                memory_limit allows, the logits first; wrpo_trainer_new the logits alone, unless
                                one chunk has them all */
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
       error), and every save_steps steps (0 = never). Then all files of the checkpoint that this call wrote before are
       removed. */
    wrpo_save_desc save; int64_t save_steps;
    bool save_model;         /* wrpo_train saves the model in save.dir when it has done all steps. Where a finished
                                model is, metrics.jsonl is replaced only then, with it */
    bool (*on_step)(const wrpo_metrics *m, const wrpo_metrics *eval /* or NULL */, void *user);  /* 0 = none */
    void *user;              /* on_step returning false stops cleanly: WRPO_E_STOPPED */
} wrpo_train_desc;
typedef struct wrpo_bytes {  /* of a run, before anything is allocated */
    size_t weights, gradients, moments, activations, head, data, total;
    size_t device, room;     /* bytes of total in the backend's memory; bytes that it can give, SIZE_MAX: unknown */
    int64_t recompute;       /* layers that the run recomputes */
    bool logits;             /* a micro-batch's logits are kept until its backward pass */
} wrpo_bytes;
typedef struct wrpo_trainer wrpo_trainer;
WRPO_API wrpo_train_desc wrpo_train_defaults(const wrpo_train_desc *desc);  /* the zeros, resolved: log this */
/* data NULL: micro_tokens rows. adapter: a new one is trained; NULL: all weights are. */
WRPO_API wrpo_result wrpo_train_bytes(wrpo_ctx *ctx, const wrpo_config *config, const wrpo_data *data,
        const wrpo_train_desc *desc, const wrpo_adapter_desc *adapter, wrpo_bytes *out);
/* All in memory: no file is read or written; the reference is the policy as it is now. */
WRPO_API wrpo_result wrpo_trainer_new(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
        wrpo_trainer **out);
/* With the desc's files: out_dir, ref_dir, resume. */
WRPO_API wrpo_result wrpo_trainer_open(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
        wrpo_trainer **out);
WRPO_API wrpo_result wrpo_trainer_step(wrpo_trainer *t, wrpo_metrics *m);  /* m->step == m->steps: that was the last */
/* data: the training data or desc.eval_data, whose reference log-probs are known. */
WRPO_API wrpo_result wrpo_trainer_eval(wrpo_trainer *t, const wrpo_data *data, wrpo_metrics *m);
/* The model, as wrpo_model_save writes it, and beside it the run's state, for wrpo_train_desc.resume:
   trainer_state.wrpo, a safetensors file of the weights as the optimizer has them (float), their moments NAME.exp_avg
   and NAME.exp_avg_sq, metrics.jsonl, and, as metadata, the step and all that must be the same. */
WRPO_API wrpo_result wrpo_trainer_save(wrpo_trainer *t, const wrpo_save_desc *desc);
WRPO_API void wrpo_trainer_free(wrpo_trainer *t);
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
WRPO_API const char *wrpo_alpha_schedule_name(int i);
WRPO_API const char *wrpo_lr_schedule_name(int i);
WRPO_API const char *wrpo_moments_name(int i);
WRPO_API const char *wrpo_rope_name(int i);
WRPO_API const char *wrpo_form_name(int i);

/* ---- backend: memory and about twenty ops; the model is written once, above this table ----
   To replace one op:  wrpo_backend be = *wrpo_backend_cpu(); be.gemm = my_gemm;   dev is what the table's open made.
   What every op keeps, a replaced one as well (>>ops defines them):
     y and dx are written, dw (float: gradients) is added to; no op allocates, waits or exits
     an op gives the same bits again, with any number of threads; and a row of a product NT or NN or of attention
     depends on that row's inputs only: a record has the same bits whatever is computed beside it
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
    int64_t prefix, prefix_end;  /* rows of k and v at positions from 0, which all of them see; equal: none */
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
    float lr, beta1, beta2, eps, weight_decay, grad_scale; double correction1, correction2;
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
    /* y[r] = scale w[ids[r]]  and  dw[ids[r]] += scale dy[r] */
    void (*embed)(void *dev, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids, int64_t n, int64_t D,
        float scale);
    void (*embed_bwd)(void *dev, float *dw, const void *dy, const int32_t *ids, int64_t n, int64_t D, float scale);
    /* y[r] = x[index[r]]  and  dx[index[r]] += dy[r]: dx is added to, as indices repeat */
    void (*gather)(void *dev, void *y, const void *x, const int32_t *index, int64_t n, int64_t D);
    void (*gather_bwd)(void *dev, void *dx, const void *dy, const int32_t *index, int64_t n, int64_t D);
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
    /* Rotates `heads` vectors of d elements per row, in place; table [n, d/2, 2] = cos, sin; backward: sign -1 */
    void (*rope)(void *dev, void *x, int64_t ldx, const float *table, int64_t n, int64_t heads, int64_t d, float sign);
    /* o = softmax(scale q k' + mask) v; lse [n, H] = log-sum-exp of the scaled scores */
    void (*attention)(void *dev, const wrpo_attn *a, void *o, float *lse, const void *q, const void *k, const void *v);
    void (*attention_bwd)(void *dev, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o, const void *o,
        const float *lse, const void *q, const void *k, const void *v, void *scratch);
    size_t (*attention_scratch)(void *dev, int64_t n, int64_t H, int64_t G, int64_t d);  /* bytes for the above */
    /* gu [n, 2I] = gate | up:  h = silu(gate) up  (gelu: gelu_tanh). Backward writes dgu (may be gu); h if not NULL */
    void (*glu)(void *dev, void *h, const void *gu, int64_t n, int64_t I, bool gelu);
    void (*glu_bwd)(void *dev, void *dgu, void *h, const void *dh, const void *gu, int64_t n, int64_t I, bool gelu);
    /* logits float [n, V]:  lse[r] = log sum exp,  logp[r] = logits[r, target[r]] - lse[r]
       dlogits[r, v] = dlogp[r] ([v == target[r]] - exp(logits[r, v] - lse[r])); it may be logits if act_bytes is 4 */
    void (*logprob)(void *dev, float *logp, float *lse, const float *logits, const int32_t *target, int64_t n,
        int64_t V, float softcap);
    void (*logprob_bwd)(void *dev, void *dlogits, const float *logits, const int32_t *target, const float *lse,
        const float *dlogp, int64_t n, int64_t V, float softcap);
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
   Errors, memory, text, files, threads, random numbers.

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
#include <sys/stat.h>
#ifdef _WIN32
#include <direct.h>
#include <io.h>
#include <process.h>
#include <sys/timeb.h>
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
#include <unistd.h>
#define wrpo__mkdir(path) mkdir(path, 0777)
#define wrpo__rmdir(path) rmdir(path)
#define wrpo__fsync(f) fsync(fileno(f))
#define wrpo__rename(from, to) rename(from, to)
#define wrpo__process() getpid()
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
/* The public name of each value of an enum, from a list of them; NULL past the last. */
#define WRPO__NAMED(function, list) \
    WRPO_API const char *function(int i) { return i >= 0 && i < WRPO__COUNT(list) ? (list)[i] : NULL; }

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
} wrpo__frame;
struct wrpo_ctx {
    wrpo_desc desc;                  /* resolved */
    wrpo_error error;
    wrpo__frame *frame;
    void *dev;                       /* the backend's */
    size_t bytes, peak, device_bytes;                  /* held; the most ever held; held of the backend's memory */
    wrpo__arena *handouts;           /* text and arrays given to the caller */
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
/* A setting that must be in a range. WRPO_ZERO is shown as 0. */
#define WRPO__RANGE(ok, name, value, wanted) \
    if (!(ok)) wrpo__fail(ctx, WRPO_E_ARG, "%s: want %s, found %g", name, wanted, (double)(value) + 0.0)
WRPO__PRINTF(3, 4) static void wrpo__log(wrpo_ctx *ctx, wrpo_level level, const char *format, ...) {
    char text[1024];
    if (!ctx->desc.log.fn) return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ctx->desc.log.fn(level, text, ctx->desc.log.user);
}

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
/* A public entry:    WRPO__CALL(ctx, arena, temporary, call);      call: one call of a private function
                      return wrpo__end(&wrpo__entry);
   temporary false: the arena belongs to the object that is made, and is freed only on failure. An arena of NULL, for
   want of memory, is a failure as well. Entries nest. */
static bool wrpo__begin(wrpo__frame *f, wrpo_ctx *ctx, wrpo__arena *arena, bool temporary) {
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
static wrpo_result wrpo__end(wrpo__frame *f) {
    f->ctx->frame = f->up;
    wrpo__current = f->outer;
    if (f->failed || f->temporary) wrpo__arena_free(f->arena);
    return f->failed ? f->ctx->error.code : WRPO_OK;
}
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
#define WRPO_STB_DS_H "stb_ds.h"     /* beside this file, or on the include path */
#endif
#endif
#ifndef WRPO_STB_DS_H
#define WRPO_STB_DS_H <stb/stb_ds.h>
#endif
#include WRPO_STB_DS_H
#undef STB_DS_IMPLEMENTATION
#ifdef __GNUC__                      /* stb_ds says typeof, which -std=c11 does not know */
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
static void wrpo__text_puts(wrpo__text *t, const char *s) { wrpo__text_add(t, s, strlen(s)); }
WRPO__PRINTF(2, 3) static void wrpo__text_printf(wrpo__text *t, const char *format, ...) {
    size_t n = 32;                   /* a first guess; the second one is exact */
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

/* UTF-8: the code point at s (n > 0 bytes) and the size of its bytes. -1 if they are not valid (an overlong form, a
   surrogate, above U+10FFFF, cut off); *size is then the maximal subpart, to be skipped. */
static int32_t wrpo__utf8_get(const char *s, size_t n, size_t *size) {
    const unsigned char *p = (const unsigned char *)s;
    const unsigned first = p[0], more = 1u + (first >= 0xE0) + (first >= 0xF0);        /* bytes after the first */
    *size = 1;
    if (first < 0x80) return (int32_t)first;
    if (first < 0xC2 || first > 0xF4) return -1;
    unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;         /* the range of the second byte */
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
static size_t wrpo__utf8_put(char *s, uint32_t c) {    /* writes up to 4 bytes; returns how many */
    static const unsigned char marks[] = {0, 0, 0xC0, 0xE0, 0xF0};     /* of the first of n bytes */
    const size_t n = 1u + (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);
    for (size_t i = n - 1; i > 0; i--) {
        s[i] = (char)(0x80 | (c & 0x3F));
        c >>= 6;
    }
    s[0] = (char)(c | marks[n]);
    return n;
}

/* ---- files ----
   wrpo__disk_x looks at the file system, where all that the library writes is. wrpo__x is for what the caller gives it
   to read, and asks the context's wrpo_files if there are any. */
static char *wrpo__join(wrpo__arena *arena, const char *dir, const char *name) {
    const size_t n = strlen(dir);
    return wrpo__format(arena, n && dir[n - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}
static const char *wrpo__basename(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
static bool wrpo__ends(const char *s, const char *end) {
    const size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}
static bool wrpo__disk_exists(const char *path) { struct stat st; return stat(path, &st) == 0; }
static bool wrpo__disk_is_dir(const char *path) { struct stat st; return stat(path, &st) == 0 && S_ISDIR(st.st_mode); }
typedef struct wrpo__file {
    const char *path; const unsigned char *data; size_t size;
    bool mapped; FILE *in;           /* in: while it is read */
    const wrpo_files *files; void *handle;             /* whom the bytes belong to; NULL: not a caller's */
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
    wrpo_ctx *ctx = arena->ctx;
    wrpo__file *f = wrpo__file_new(arena, path);
    wrpo__text t = {.arena = arena};
    if (wrpo__disk_is_dir(path)) wrpo__fail(ctx, WRPO_E_IO, "%s: want a file, found a directory", path);
    f->in = fopen(path, "rb");
    if (!f->in) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
#ifndef _WIN32
    struct stat st;
    if (fstat(fileno(f->in), &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fileno(f->in), 0);
        if (p == MAP_FAILED) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        f->data = p;
        f->size = (size_t)st.st_size;
        f->mapped = true;
    }
#endif
    while (!f->mapped) {             /* a pipe, a terminal, no mappings: read to its end */
        char part[1 << 14];
        const size_t n = fread(part, 1, sizeof part, f->in);
        wrpo__text_add(&t, part, n);
        if (n == 0 && !ferror(f->in)) break;
        if (n == 0 && errno != EINTR) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be read: %s", path, strerror(errno));
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
    if (h == -1) wrpo__fail(arena->ctx, WRPO_E_IO, "%s: cannot be listed: %s", dir, strerror(errno));
    do wrpo__add_name(arena, &names, e.name); while (_findnext(h, &e) == 0);
    _findclose(h);
#else
    wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__dir_close, NULL);
    DIR *d = owner->p = opendir(dir);
    if (!d) wrpo__fail(arena->ctx, WRPO_E_IO, "%s: cannot be listed: %s", dir, strerror(errno));
    for (struct dirent *e = readdir(d); e; e = readdir(d)) wrpo__add_name(arena, &names, e->d_name);
    owner->p = NULL;
    closedir(d);
#endif
    if (names) qsort(names, (size_t)stbds_arrlen(names), sizeof *names, wrpo__by_name);
    return names;
}
static const wrpo_files *wrpo__files(void) {           /* the current context's; NULL: it reads the file system */
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
    if (!data) wrpo__fail(arena->ctx, WRPO_E_IO, "%s: cannot be opened: wrpo_desc.files has no such file", path);
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
    if (d >= 0) fsync(d);            /* not every file system can */
    if (d >= 0) close(d);
#else
    (void)path;
#endif
}
static void wrpo__make_dir(wrpo_ctx *ctx, const char *path) {  /* and its parents; one that exists is fine */
    char part[4096];
    const size_t n = strlen(path);
    if (n == 0 || n >= sizeof part) wrpo__fail(ctx, WRPO_E_IO, "\"%.200s\": not a usable path for a directory", path);
    for (size_t i = 1; i <= n; i++) {
        if (i < n && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
        const int r = wrpo__mkdir(part);
        const int e = errno == EEXIST ? ENOTDIR : errno;
        if (r == 0) wrpo__sync_parent(part);
        else if (!wrpo__disk_is_dir(part))
            wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be made: %s", part, strerror(e));
    }
}
static void wrpo__remove(wrpo_ctx *ctx, const char *path) {
    if (remove(path) != 0 && errno != ENOENT)
        wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be removed: %s", path, strerror(errno));
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
    wrpo__fail(w->ctx, WRPO_E_IO, "%s: cannot be written: %s", w->path, strerror(e));
}
static wrpo__writer *wrpo__create(wrpo__arena *arena, const char *path) {
    wrpo__writer *w = WRPO__NEW(arena, wrpo__writer);
    w->ctx = arena->ctx;
    w->path = wrpo__strndup(arena, path, strlen(path));
    w->part = wrpo__format(arena, "%s" WRPO__PART, path, (unsigned long)wrpo__process());
    wrpo__on_free(arena, wrpo__writer_drop, w);
    w->f = fopen(w->part, "wb");
    if (!w->f) wrpo__writer_fail(w, errno);
    return w;
}
static void wrpo__write(wrpo__writer *w, const void *p, size_t n) {
    if (n && fwrite(p, 1, n, w->f) != n) wrpo__writer_fail(w, errno);
}
/* The file is whole and waits for its name. It is closed, so many can wait without a descriptor each. */
static void wrpo__finish(wrpo__writer *w) {
    int e = fflush(w->f) == 0 ? 0 : errno;
    if (!e && wrpo__fsync(w->f) != 0 && errno != EINVAL && errno != ENOTSUP) e = errno;
    if (fclose(w->f) != 0 && !e) e = errno;
    w->f = NULL;
    w->waits = true;
    if (e) wrpo__writer_fail(w, e);
}
static void wrpo__publish(wrpo__writer *w) {
    errno = EIO;                     /* for Windows, which does not set it */
    if (wrpo__rename(w->part, w->path) != 0) wrpo__writer_fail(w, errno);
    w->waits = false;
}
static void wrpo__commit(wrpo__writer *w) {
    wrpo__finish(w);
    wrpo__publish(w);
    wrpo__sync_parent(w->path);
}

/* ---- time, threads ---- */
static double wrpo__now(void) {      /* seconds */
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
static double wrpo__normal(uint64_t seed, uint64_t stream, uint64_t counter) { /* N(0, 1): Box and Muller 1958 */
    const wrpo__philox r = wrpo__random(seed, stream, counter);
    const double u = ((double)r.v[0] + 0.5) / 4294967296.0, v = ((double)r.v[1] + 0.5) / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}
static uint64_t wrpo__hash(uint64_t h, const void *p, size_t n) {      /* can be chained; not against adversaries */
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
static float wrpo__float_of(uint16_t half) { return wrpo__bits_float((uint32_t)half << 16); }    /* of bfloat16 */
static uint32_t wrpo__float_bits(float x) { uint32_t u; memcpy(&u, &x, sizeof u); return u; }
static uint16_t wrpo__float_to_bf16(float x) {         /* to nearest, ties to even; NaN stays NaN */
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
    if (m >= 0x7C00) return sign | m << 13 | 0x7F800000u;                  /* infinity, NaN with its payload */
    if (m >= 0x0400) return sign | ((m << 13) + (112u << 23));             /* exponent bias 15 -> 127 */
    return sign | wrpo__float_bits((float)(int32_t)m * 0x1p-24f);          /* denormal in F16, normal in F32 */
}
static float wrpo__element(const void *x, wrpo_dtype type, int64_t i) {
    if (type == WRPO_DTYPE_BF16) return wrpo__float_of(((const uint16_t *)x)[i]);
    if (type == WRPO_DTYPE_F16) return wrpo__bits_float(wrpo__f16_to_bits(((const uint16_t *)x)[i]));
    return ((const float *)x)[i];
}
static const char *const wrpo__moments_names[] = {
    [WRPO_MOMENTS_F32] = "f32", [WRPO_MOMENTS_BF16] = "bf16", [WRPO_MOMENTS_8BIT] = "8bit"};
WRPO__NAMED(wrpo_moments_name, wrpo__moments_names)
WRPO_API size_t wrpo_moments_bytes(wrpo_moments moments, int64_t count) {
    const size_t blocks = (size_t)wrpo__div_up(count, WRPO_BLOCK);
    if (moments == WRPO_MOMENTS_8BIT) return blocks * WRPO_BLOCK_BYTES;
    return moments == WRPO_MOMENTS_BF16 ? blocks * WRPO_BLOCK * 2 : (size_t)count * 4;
}

/* ---- the moments of AdamW: float, bfloat16, or a code of 8 bits (after Dettmers et al. 2022) ----
   Codes come in blocks of WRPO_BLOCK, and then their scale, the block's largest magnitude. The magnitude of code q is
   scale (q / top)^4: top is 127, and there is a sign, for the first moment; top is 255 for the second.
   bfloat16 and codes are rounded up or down at random, so that the mean is right. Element i draws a hash of (seed, i).
   Every backend draws the same numbers, so the arithmetic is float, here and in adamw, operation by operation. */
static uint32_t wrpo__dice(uint32_t seed, int64_t i) {
    uint32_t x = seed + (uint32_t)i * 0x9E3779B9u;
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}
static float wrpo__code_value(float code, float scale, float top) {
    const float root = code * (1 / top), square = root * root;
    return square * square * scale;
}
static float wrpo__code_of(float size, float scale, float top, float dice) {   /* dice in [0, 1) */
    const float inverse = scale >= FLT_MIN ? 1 / scale : 0, root = sqrtf(sqrtf(size * inverse)) * top;
    const float code = (float)(int)fminf(root, top - 1);
    const float low = wrpo__code_value(code, scale, top), high = wrpo__code_value(code + 1, scale, top);
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
            if (second) codes[i] = (uint8_t)(x[i] > 0 ? fmaxf(code, 1) : code);        /* above 0 stays above 0 */
            else codes[i] = (uint8_t)(int8_t)(x[i] < 0 ? -code : code);
        }
    }
    if (moments == WRPO_MOMENTS_8BIT) memcpy(codes + WRPO_BLOCK, &scale, sizeof scale);
}

/* ---- memory of the host; a device on it begins with its allocator ---- */
static void *wrpo__host_alloc(void *dev, size_t n) {   /* a word in front of the block says where it begins */
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
static size_t wrpo__host_room(void *dev) {             /* what the system can still give without swapping */
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
    if (!d->why) return r;
    *d->why = (wrpo_error){.code = r};
    snprintf(d->why->text, sizeof d->why->text, "%s", text);
    return r;
}
WRPO_API wrpo_result wrpo_open(const wrpo_desc *desc, wrpo_ctx **out) {
    wrpo_desc d = desc ? *desc : (wrpo_desc){0};
    *out = NULL;
    if (!d.memory.alloc != !d.memory.free)
        return wrpo__open_fails(&d, WRPO_E_ARG, "wrpo_open: memory: want both functions or none");
    if (d.threads < 0) return wrpo__open_fails(&d, WRPO_E_ARG, "wrpo_open: threads: want at least 0");
    if (!d.memory.alloc) d.memory = (wrpo_allocator){wrpo__malloc, wrpo__mfree, NULL};
#ifdef _OPENMP
    if (!d.threads) d.threads = omp_get_max_threads();
#else
    d.threads = 1;
#endif
    if (!d.backend) d.backend = wrpo_backend_cpu();
    if (!d.dtype) d.dtype = d.backend->dtype;
    if (d.dtype != WRPO_DTYPE_F32 && d.dtype != WRPO_DTYPE_BF16)
        return wrpo__open_fails(&d, WRPO_E_ARG, "wrpo_open: dtype: want f32 or bf16");
    wrpo_ctx *ctx = d.memory.alloc(sizeof *ctx, d.memory.user);
    if (!ctx) return wrpo__open_fails(&d, WRPO_E_MEMORY, "out of memory");
    *ctx = (wrpo_ctx){.desc = d, .error = {.text = "out of memory"}};
    ctx->handouts = wrpo__arena_new(ctx);
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

/* ---- configs ---- */
enum { WRPO__MAX_HIDDEN = 1 << 20, WRPO__MAX_D = 512 };    /* the largest hidden_size and head_dim of any backend */
/* A config that a caller filled in keeps the limits of one that is read from a file. */
static void wrpo__config_check(wrpo_ctx *ctx, const wrpo_config *c) {
    const wrpo_rope *p = &c->rope;
    const bool llama3 = p->type == WRPO_ROPE_LLAMA3, dynamic = p->type == WRPO_ROPE_DYNAMIC;
    const bool yarn = p->type == WRPO_ROPE_YARN, longrope = p->type == WRPO_ROPE_LONGROPE;
    const double most = 1e15, least = 1 / most, huge = 0x1p40;         /* most: of a number; huge: of positions */
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, dims = p->dims ? p->dims : c->head_dim;
    double factor = longrope ? most : 1;               /* the smallest of its factors */
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
            wrpo__fail(ctx, WRPO_E_ARG, "wrpo_config: %s: want %.15g to %.15g, found %.15g", limits[i].name,
                       limits[i].low, limits[i].high, limits[i].value);
    if (!memchr(c->model_type, 0, sizeof c->model_type))
        wrpo__fail(ctx, WRPO_E_ARG, "wrpo_config: model_type: want a NUL");
    if (c->no_pre_norms && !c->post_norms)
        wrpo__fail(ctx, WRPO_E_ARG, "wrpo_config: no_pre_norms: want post_norms with it");
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
static void *wrpo__device_alloc(wrpo__arena *arena, size_t n, const char *what) {
    wrpo_ctx *ctx = arena->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    wrpo__device_block *b = WRPO__NEW(arena, wrpo__device_block);
    b->ctx = ctx;
    b->n = n;
    wrpo__on_free(arena, wrpo__device_release, b);
    b->p = be->alloc(ctx->dev, WRPO__MAX(n, 1));
    if (!b->p && !be->host && be->room)
        wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %s: %zu bytes wanted, the device has %zu left", what, n,
                   be->room(ctx->dev));
    if (!b->p) wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %s: %zu bytes wanted, %zu held", what, n, ctx->bytes);
    ctx->bytes += n;
    ctx->device_bytes += n;
    ctx->peak = WRPO__MAX(ctx->peak, ctx->bytes);
    return b->p;
}
static void wrpo__sync(wrpo_ctx *ctx) {
    wrpo_error why = {WRPO_E_DEVICE, 0, 0, ""};
    if (ctx->desc.backend->sync(ctx->dev, &why) != WRPO_OK)
        wrpo__fail(ctx, why.code, "%s: %s", ctx->desc.backend->name, why.text);
}

/* ---- data: records of token ids ---- */
struct wrpo_data {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_record *records;            /* stb array */
    wrpo_data_stats stats;
    int most;                        /* the most responses that a record has */
};
static const int32_t *wrpo__copy_ids(wrpo__arena *arena, const int32_t *ids, int64_t count) {
    return memcpy(wrpo__alloc(arena, (size_t)count, sizeof *ids), ids, (size_t)count * sizeof *ids);
}
/* Copies a record into the data. */
static void wrpo__data_add(wrpo_data *data, const wrpo_record *record) {
    wrpo__arena *arena = data->arena, *outer = wrpo__current;
    wrpo_tokens *responses = wrpo__alloc(arena, (size_t)record->count, sizeof *responses);
    wrpo_record r = *record;
    r.prompt_id = wrpo__strndup(arena, r.prompt_id, strlen(r.prompt_id));
    r.prompt = wrpo__copy_ids(arena, r.prompt, r.prompt_count);
    r.responses = responses;
    r.weight = wrpo__or_default(r.weight, 1);          /* WRPO_ZERO stays, so that a view can be given again */
    int sources = 0, stated = 0;
    for (int k = 0; k < r.count; k++) {
        sources += record->responses[k].role == WRPO_ROLE_SOURCE;
        stated += record->responses[k].role == WRPO_ROLE_SOURCE && !wrpo__is_default(record->responses[k].share);
    }
    const double equal = stated ? 0 : 1 / (double)sources;     /* a source's share where no source states one */
    for (int k = 0; k < r.count; k++) {
        wrpo_tokens *y = &responses[k];
        *y = record->responses[k];
        y->ids = wrpo__copy_ids(arena, y->ids, y->count);
        y->share = wrpo__or_default(y->share, y->role == WRPO_ROLE_SOURCE ? equal : 1);
        data->stats.response_tokens += y->count;
        data->stats.longest = WRPO__MAX(data->stats.longest, r.prompt_count + y->count);
    }
    wrpo__current = arena;
    stbds_arrput(data->records, r);
    wrpo__current = outer;
    data->stats.records++;
    data->stats.prompt_tokens += r.prompt_count;
    data->most = WRPO__MAX(data->most, r.count);
}
static wrpo_data *wrpo__data_from_ids(wrpo__arena *arena, const wrpo_record *records, int64_t count) {
    wrpo_data *data = WRPO__NEW(arena, wrpo_data);
    data->ctx = arena->ctx;
    data->arena = arena;
    for (int64_t i = 0; i < count; i++) {
        wrpo_record r = records[i];
        bool ok = r.prompt_count >= 1 && r.count >= 1;
        for (int k = 0; ok && k < r.count; k++)
            ok = r.responses[k].first >= 0 && r.responses[k].count > r.responses[k].first;
        if (!(r.weight >= 0 && r.weight <= DBL_MAX))
            wrpo__fail(arena->ctx, WRPO_E_ARG, "record %lld: weight: want a finite number of at least 0, found %g",
                       (long long)i, r.weight);
        if (!ok)
            wrpo__fail(arena->ctx, WRPO_E_ARG,
                       "record %lld: want a prompt, and responses with a scored token each", (long long)i);
        if (!r.prompt_id) r.prompt_id = wrpo__format(arena, "record %lld", (long long)i);
        wrpo__data_add(data, &r);
    }
    return data;
}
WRPO_API wrpo_result wrpo_data_from_ids(wrpo_ctx *ctx, const wrpo_record *records, int64_t count, wrpo_data **out) {
    *out = NULL;
    WRPO__CALL(ctx, wrpo__arena_new(ctx), false, *out = wrpo__data_from_ids(wrpo__current, records, count));
    return wrpo__end(&wrpo__entry);
}
WRPO_API void wrpo_data_free(wrpo_data *data) { if (data) wrpo__arena_free(data->arena); }
WRPO_API int64_t wrpo_data_count(const wrpo_data *data) { return data->stats.records; }
WRPO_API wrpo_record wrpo_data_record(const wrpo_data *data, int64_t i) { return data->records[i]; }
WRPO_API wrpo_data_stats wrpo_data_get_stats(const wrpo_data *data) { return data->stats; }
/* Every id must be a row of the embedding. Errors say `what` with its name, or its number if name is NULL. */
static void wrpo__check_ids(wrpo_ctx *ctx, int64_t V, const int32_t *ids, int64_t count, const char *what,
                            const char *name, int64_t number) {
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] >= 0 && ids[i] < V) continue;
        const char *of = name ? wrpo__format(wrpo__current, "%s \"%s\"", what, name)
                              : wrpo__format(wrpo__current, "%s %lld", what, (long long)number);
        wrpo__fail(ctx, WRPO_E_FORMAT, "%s: token id %d is outside the model's vocabulary of %lld: "
                   "tokenizer and model do not belong together", of, (int)ids[i], (long long)V);
    }
}
static void wrpo__check_data(wrpo_ctx *ctx, const wrpo_config *c, const wrpo_data *data, int64_t first, int64_t count) {
    int64_t longest = 0;
    for (const wrpo_record *record = data->records + first; record < data->records + first + count; record++) {
        wrpo__check_ids(ctx, c->vocab_size, record->prompt, record->prompt_count, "record", record->prompt_id, 0);
        for (int k = 0; k < record->count; k++) {
            const wrpo_tokens *y = &record->responses[k];
            wrpo__check_ids(ctx, c->vocab_size, y->ids, y->count, "record", record->prompt_id, 0);
            longest = WRPO__MAX(longest, record->prompt_count + y->count);
        }
    }
    if (longest > c->max_position_embeddings && longest == data->stats.longest)        /* once, not for each part */
        wrpo__log(ctx, WRPO_LOG_WARN,
                  "a sequence of %lld tokens is longer than the model's max_position_embeddings %lld",
                  (long long)longest, (long long)c->max_position_embeddings);
}

/* ---- rotary embedding (Su et al. 2021): inverse frequencies, in the float arithmetic of transformers ----
   For two types they depend on the length of the sequence, prompt and response: longrope has other factors beyond the
   original length, dynamic another theta for each length beyond max_position_embeddings. Equal keys: equal angles. */
static int64_t wrpo__rope_dims(const wrpo_config *c) { return c->rope.dims ? c->rope.dims : c->head_dim; }
static int64_t wrpo__rope_key(const wrpo_config *c, int64_t length) {
    if (c->rope.type == WRPO_ROPE_LONGROPE) return length > c->rope.original_max_position_embeddings;
    return c->rope.type == WRPO_ROPE_DYNAMIC && length > c->max_position_embeddings ? length : 0;
}
static void wrpo__inv_freq(const wrpo_config *c, int64_t key, float *inv, double *scale) {
    const wrpo_rope *p = &c->rope;
    const int64_t d = wrpo__rope_dims(c);
    const double pi = 3.14159265358979323846, length = (double)p->original_max_position_embeddings;
    const float factor = (float)p->factor, *longrope = key ? p->long_factor : p->short_factor;
    float theta = (float)p->theta;
    *scale = p->type == WRPO_ROPE_LONGROPE || p->type == WRPO_ROPE_YARN ? p->attention_factor : 1;
    if (p->type == WRPO_ROPE_DYNAMIC && key) {
        const float stretch = factor * (float)key / (float)c->max_position_embeddings - (float)(p->factor - 1);
        theta *= powf(stretch, (float)((double)d / (double)(d - 2)));
    }
    for (int64_t i = 0; i < d / 2; i++) {
        const float power = powf(theta, (float)(2 * i) / (float)d);
        inv[i] = 1.0f / (p->type == WRPO_ROPE_LONGROPE ? longrope[i] * power : power);         /* Ding et al. 2024 */
        if (p->type == WRPO_ROPE_LINEAR) inv[i] /= factor;
    }
    if (p->type == WRPO_ROPE_LLAMA3) {                 /* long waves slowed by factor, short ones kept, a ramp */
        const float slow = (float)p->low_freq_factor, fast = (float)(p->high_freq_factor - p->low_freq_factor);
        const float low = (float)(length / p->low_freq_factor), high = (float)(length / p->high_freq_factor);
        for (int64_t i = 0; i < d / 2; i++) {
            const float wave = (float)(2 * pi) / inv[i], smooth = ((float)length / wave - slow) / fast;
            if (wave > low) inv[i] /= factor;
            else if (wave >= high) inv[i] = (1 - smooth) * (inv[i] / factor) + smooth * inv[i];
        }
    }
    if (p->type == WRPO_ROPE_YARN) {                   /* Peng et al. 2023: by rotations within the original length */
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
/* Likewise of the layers that have a base of their own. */
static void wrpo__inv_freq_sliding(const wrpo_config *c, float *inv) {
    double scale;
    wrpo_config own = *c;
    own.rope = (wrpo_rope){.theta = c->sliding_rope_theta, .dims = c->rope.dims};
    wrpo__inv_freq(&own, 0, inv, &scale);
}

/* --------------------------------------------------------------------------------------------- >>loss
   Where is WRPO? In this section. Everything else in the file computes the numbers that go in here.

   A prompt x comes with three responses, ranked by a reward model:

     y_ws  source     the best answer of other models, whose strength is to be learned
     y_wt  target     the best answer of the model in training (pi)
     y_l   rejected   the worst answer of the model in training

   A reward that needs no reward model (DPO's): how much likelier is y under pi than under the reference
   ref, pi as it was before the run? log-probs are sums over the tokens of y.

     d(y) = log pi(y|x) - log ref(y|x)              reward(y) = beta d(y)

   DPO would raise y_ws above y_l. But other models' answers are improbable under pi, and pulling at them
   hard from the start wrecks it. WRPO averages the rewards of both good answers and shifts the weight
   from its own to the source's while it learns, alpha = 0 -> 0.1 over the T steps of the run:

     z = beta ( alpha d(y_ws) + (1 - alpha) d(y_wt) - d(y_l) )
     L = -(1 - eps) log sigmoid(z) - eps log sigmoid(-z)           eps: label smoothing, usually 0
     g = dL/dz = eps - sigmoid(-z)

     dL/dlog pi(y_ws) = beta alpha g     dL/dlog pi(y_wt) = beta (1 - alpha) g     dL/dlog pi(y_l) = -beta g

   Those three numbers are all that the model's backward pass needs to know of the method. Before the
   first update pi = ref (without dropout), so z = 0, L = ln 2 and g = eps - 1/2. At alpha = 0 this is DPO on (y_wt,
   y_l), at 1 on (y_ws, y_l).

   The family. With scores s(y) and shares a(y) of the chosen responses (they sum to 1), every method is

     WRPO             link( scale (sum_y a(y) s(y) - s(y_l) - offset) )       the mean is inside the link
     pair methods     sum_y a(y) link( scale (s(y) - s(y_l) - offset) )       the mean is outside; y_l is y's own
     SFT              sum_y a(y) -log pi(y|x) / tokens

   and the table below says which score, scale, offset and link. FuseRL (2025) is these on K sources with shares
   a = softmax(reward / tau) that the data bring: SFT on their best answers, then a pair method on each one's best
   and worst. EAST weights a record's loss by the entropy of its answers. >>recipe writes such data. */
typedef enum wrpo__link { WRPO__LOGISTIC, WRPO__SQUARE, WRPO__HINGE, WRPO__LIKELIHOOD } wrpo__link;

/* reference: s(y) has -log ref(y|x). per_token: s(y) is divided by |y|. */
typedef struct wrpo__rule { const char *name; wrpo__link link; double beta; bool reference, per_token; } wrpo__rule;
static const wrpo__rule wrpo__rules[] = {
    /*                         name        link              beta  ref    /|y|       scale  offset      first author */
    [WRPO_METHOD_WRPO]     = {"wrpo",     WRPO__LOGISTIC,   0.01, true,  false},  /* beta   0           Yang 2025 */
    [WRPO_METHOD_DPO]      = {"dpo",      WRPO__LOGISTIC,   0.01, true,  false},  /* beta   0           Rafailov 2023 */
    [WRPO_METHOD_IPO]      = {"ipo",      WRPO__SQUARE,     0.01, true,  true},   /* 1      1/(2 beta)  Azar 2024 */
    [WRPO_METHOD_HINGE]    = {"hinge",    WRPO__HINGE,      0.01, true,  false},  /* beta   0           Zhao 2023 */
    [WRPO_METHOD_SIMPO]    = {"simpo",    WRPO__LOGISTIC,   10,   false, true},   /* beta   gamma/beta  Meng 2024 */
    [WRPO_METHOD_DPO_NORM] = {"dpo-norm", WRPO__LOGISTIC,   10,   true,  true},   /* beta   0           Yang 2025b */
    [WRPO_METHOD_SFT]      = {"sft",      WRPO__LIKELIHOOD, 0.01, false, false}};

WRPO_API const char *wrpo_method_name(int i) {
    return i >= 0 && i < WRPO__COUNT(wrpo__rules) ? wrpo__rules[i].name : NULL;
}
static const char *const wrpo__pairs[] = {
    [WRPO_PAIR_TARGET] = "target", [WRPO_PAIR_SOURCE] = "source", [WRPO_PAIR_BOTH] = "both"};
static const char *const wrpo__ramps[] = {
    [WRPO_ALPHA_SCHEDULE_LINEAR] = "linear", [WRPO_ALPHA_SCHEDULE_CONSTANT] = "constant",
    [WRPO_ALPHA_SCHEDULE_POWER] = "power", [WRPO_ALPHA_SCHEDULE_COSINE] = "cosine"};
static const char *const wrpo__schedules[] = {
    [WRPO_LR_SCHEDULE_COSINE] = "cosine", [WRPO_LR_SCHEDULE_LINEAR] = "linear",
    [WRPO_LR_SCHEDULE_CONSTANT] = "constant"};
WRPO__NAMED(wrpo_pair_name, wrpo__pairs)
WRPO__NAMED(wrpo_alpha_schedule_name, wrpo__ramps)
WRPO__NAMED(wrpo_lr_schedule_name, wrpo__schedules)

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
    const wrpo_loss_desc d = wrpo__loss_defaults(*desc);
    if (!(d.beta > 0 && d.beta <= DBL_MAX)) return "beta: want a finite number above 0";
    if (!(alpha >= 0 && alpha <= 1)) return "alpha: want a number in [0, 1]";
    if (!(d.label_smoothing >= 0 && d.label_smoothing < 0.5)) return "label_smoothing: want a number in [0, 0.5)";
    if (d.label_smoothing > 0 && wrpo__rules[d.method].link != WRPO__LOGISTIC)
        return "label_smoothing: not defined for this method: want 0, or wrpo, dpo, simpo or dpo-norm";
    if (d.method == WRPO_METHOD_SIMPO && !(d.gamma_ratio >= 0 && d.gamma_ratio <= DBL_MAX))
        return "gamma_ratio: want a finite number of at least 0";
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
    if (d->method == WRPO_METHOD_WRPO) return alpha;
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
/* s(y) */
static double wrpo__score(const wrpo_loss_desc *d, const wrpo_response *y) {
    const double s = wrpo__rules[d->method].reference ? y->logp - y->ref : y->logp;
    return wrpo__per_token(d) ? s / (double)y->tokens : s;
}
/* Is y the opponent of chosen response x? A pair method compares within a pair. */
static bool wrpo__against(const wrpo_loss_desc *d, const wrpo_response *x, const wrpo_response *y) {
    return y->role == WRPO_ROLE_REJECTED && (d->method == WRPO_METHOD_WRPO || x->pair_id == y->pair_id);
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
    const bool sft = d->method == WRPO_METHOD_SFT, reference = wrpo__rules[d->method].reference;
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
    if (a > 0 && sources == 0) return "the method needs a source response (the first of two in \"chosen\")";
    if (a < 1 && targets == 0) return "the method needs a target response (the last in \"chosen\")";
    if (!sft && count[WRPO_ROLE_REJECTED] == 0) return "the method needs a rejected response";
    if (targets > 1) return "want one target response, found several";
    if (sources && !(fabs(shares - 1) < 1e-6)) return "the shares of the source responses do not sum to 1";
    for (int i = 0; i < n; i++) {
        const bool rejected = r[i].role == WRPO_ROLE_REJECTED;
        if (rejected ? sft : wrpo__share(a, &r[i]) == 0) continue;             /* left out: may be anything */
        if (!rejected && !sft && !wrpo__opponents(d, &r[i], r, n))
            return "a chosen response has no rejected one in its pair";
        if (wrpo__per_token(d) && r[i].tokens < 1)
            return "the method divides by the length of a response that has no tokens";
        if (!isfinite(r[i].logp) || (reference && !isfinite(r[i].ref))) return "a log-probability is not finite";
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
    if (d.method == WRPO_METHOD_IPO) offset = 1 / (2 * d.beta);

    /* 1. The loss, and dL/ds(y) of the chosen responses. A share of 0 is skipped rather than multiplied by, so that
          a response which is left out cannot touch a bit of the result and need not have been computed. */
    if (d.method == WRPO_METHOD_WRPO) {
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

    /* 2. What pulls the chosen up pushes their rejected down; WRPO's shares sum to 1. */
    for (int k = 0; k < n; k++) {
        double pull = d.method == WRPO_METHOD_WRPO ? scale * g : 0;
        if (r[k].role != WRPO_ROLE_REJECTED) continue;
        for (int i = 0; i < n && d.method != WRPO_METHOD_WRPO; i++)
            if (r[i].role != WRPO_ROLE_REJECTED && wrpo__against(&d, &r[i], &r[k])) pull += r[i].dlogp;
        r[k].dlogp = -pull / wrpo__opponents(&d, &r[k], r, n);
    }

    /* 3. ds/dlogp: 1 or 1 / |y| */
    for (int i = 0; i < n; i++) {
        if (r[i].dlogp == 0) r[i].dlogp = 0;           /* no negative zeros */
        else if (wrpo__per_token(&d)) r[i].dlogp /= (double)r[i].tokens;
    }
    return loss;
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

   Inputs and outputs are float, sums are double. A matrix of weights may be bfloat16. In a context of bfloat16,
   gemm rounds its factors as a processor with such products does; the other ops round nothing. */
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "wrpo.h: -ffast-math and -ffinite-math-only break the handling of infinities and NaN: compile without it"
#endif

/* ---- the state of the plain backend ---- */
typedef struct wrpo__plain { wrpo_allocator memory; bool bf16; } wrpo__plain;      /* bf16: the context's dtype */
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

/* ---- gather: y[n,D] = x[index].   dx[index] += dy: added, as an index may occur again ---- */
static void wrpo__plain_gather(void *dev, void *y, const void *x, const int32_t *index, int64_t n, int64_t D) {
    wrpo__plain_embed(dev, y, x, WRPO_DTYPE_F32, index, n, D, 1);
}
static void wrpo__plain_gather_bwd(void *dev, void *dx, const void *dy, const int32_t *index, int64_t n, int64_t D) {
    wrpo__plain_embed_bwd(dev, dx, dy, index, n, D, 1);
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
        const uint32_t draw = block.v[i % 8 / 2] >> i % 2 * 16 & 0xFFFF;
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
        const double scale = 1 / sqrt(sum / (double)D + eps);
        for (int64_t j = 0; j < D; j++) out[j] = (float)(((double)w[j] + plus) * in[j] * scale);
        rstd[i] = (float)scale;
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
        const double scale = rstd[i];
        double mean = 0;                               /* of g x */
        for (int64_t j = 0; j < D; j++) mean += ((double)w[j] + plus) * d_out[j] * in[j] / (double)D;
        for (int64_t j = 0; j < D; j++) {
            const double g = ((double)w[j] + plus) * d_out[j];
            d_in[j] = (float)((beside ? beside[j] : 0) + scale * (g - in[j] * mean * scale * scale));
        }
    }
}

/* ---- rope (Su et al. 2021), in place: each row is `heads` vectors x[d]; table[n][d / 2] = (cosine, sine) ----
   Each pair (x[i], x[i + d / 2]) is rotated by the angle table[row][i]. The gradient is rotated back: sign -1. */
static void wrpo__plain_rope(void *dev, void *x, int64_t ldx, const float *table, int64_t n, int64_t heads, int64_t d,
                             float sign) {
    const int64_t half = d / 2;
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < half; i++) {
                const float *angle = table + 2 * (r * half + i);
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
    const int64_t H = a->H, d = a->d, share = H / a->G;
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
                    const int64_t at = wrpo__key_row(s, t) * a->ldkv + h / share * d;
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
                    if (h / share != g || t > last || t < wrpo__first_seen(a, last)) continue;
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

/* ---- logprob: log-softmax of each row of logits[n,V] at its target, with x = softcap(logits) ----
   lse = log sum exp(x)        logp = x[target] - lse
   dlogits[v] = dlogp ([v = target] - exp(x[v] - lse)) slope[v]
   dlogits may be logits. */
static void wrpo__plain_logprob(void *dev, float *logp, float *lse, const float *logits, const int32_t *target,
                                int64_t n, int64_t V, float softcap) {
    (void)dev;
    for (int64_t r = 0; r < n; r++) {
        const float *x = logits + r * V;
        double slope, top = -INFINITY, sum = 0;
        for (int64_t v = 0; v < V; v++) top = fmax(top, x[v]);
        top = wrpo__softcap(top, softcap, &slope);
        for (int64_t v = 0; v < V && top > -INFINITY; v++) sum += exp(wrpo__softcap(x[v], softcap, &slope) - top);
        const double log_sum = top + log(sum);
        logp[r] = (float)(wrpo__softcap(x[target[r]], softcap, &slope) - log_sum);
        lse[r] = (float)log_sum;
    }
}
static void wrpo__plain_logprob_bwd(void *dev, void *dlogits, const float *logits, const int32_t *target,
                                    const float *lse, const float *dlogp, int64_t n, int64_t V, float softcap) {
    (void)dev;
    for (int64_t r = 0; r < n; r++)
        for (int64_t v = 0; v < V; v++) {
            double slope;
            const double p = exp(wrpo__softcap(logits[r * V + v], softcap, &slope) - lse[r]);
            ((float *)dlogits)[r * V + v] = (float)(dlogp[r] * ((v == target[r]) - p) * slope);
        }
}

/* ---- sumsq: *out += the sum of x^2, for the norm of all gradients ---- */
static void wrpo__plain_sumsq(void *dev, double *out, const float *x, int64_t count) {
    (void)dev;
    *out += wrpo__dot(x, x, count);
}

/* ---- adamw (Loshchilov and Hutter 2019), as torch.optim.AdamW computes it; g is read times grad_scale ----
   m += (1 - beta1) (g - m)        v = beta2 v + (1 - beta2) g^2
   w = w (1 - lr weight_decay) - lr / correction1 m / (sqrt(v) / correction2 + eps)
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

WRPO_API const wrpo_backend *wrpo_backend_plain(void) {
    static const wrpo_backend backend = {
        .name = "plain", .act_bytes = 4, .dtype = WRPO_DTYPE_F32, .host = true,
        .open = wrpo__plain_open, .close = wrpo__plain_close, .alloc = wrpo__host_alloc, .release = wrpo__host_release,
        .put = wrpo__host_copy, .get = wrpo__host_copy, .copy = wrpo__host_copy, .zero = wrpo__host_zero,
        .room = wrpo__host_room, .sync = wrpo__host_sync, .gemm = wrpo__plain_gemm,
        .embed = wrpo__plain_embed, .embed_bwd = wrpo__plain_embed_bwd,
        .gather = wrpo__plain_gather, .gather_bwd = wrpo__plain_gather_bwd, .scatter = wrpo__plain_scatter,
        .bias = wrpo__plain_bias, .bias_bwd = wrpo__plain_bias_bwd, .colsum = wrpo__plain_colsum,
        .add = wrpo__plain_add, .dropout = wrpo__plain_dropout,
        .rmsnorm = wrpo__plain_rmsnorm, .rmsnorm_bwd = wrpo__plain_rmsnorm_bwd, .rope = wrpo__plain_rope,
        .attention = wrpo__plain_attention, .attention_bwd = wrpo__plain_attention_bwd,
        .attention_scratch = wrpo__plain_attention_scratch, .glu = wrpo__plain_glu, .glu_bwd = wrpo__plain_glu_bwd,
        .logprob = wrpo__plain_logprob, .logprob_bwd = wrpo__plain_logprob_bwd,
        .sumsq = wrpo__plain_sumsq, .adamw = wrpo__plain_adamw
    };
    return &backend;
}

/* ------------------------------------------------------------------------------------------- >>layout
   In: a config. Out: a model, whose weights are a table of tensors in the backend's memory. Gradients and moments are
   arrays that mirror the weights: an element of a weight is at the same offset in each of them.

   To add a weight: a row of WRPO__WEIGHTS; if not every model has it, a flag of wrpo_config, which >>checkpoint sets;
   its use, forward and backward (>>model), and in plain_logps of tests/40_model.c, in double. A norm: wrpo__norm_of.
   Loader, saver, optimizer and tests walk the table. */

/* One row per kind of tensor; cols 0: a vector. FIRST and LAST are there once. LAYER is there in each layer, and its
   name comes after "model.layers.<l>.". JOINED is like LAYER, but in memory directly after the row above: q, k and v
   are one matrix and one product, and so are gate and up. */
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
    uint16_t *low;                   /* [count] low halves of float masters, the weights being the high ones; or NULL */
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
/* The end of the run of such weights that begins at weight i; how many elements it has in *size. */
static int64_t wrpo__weight_run(const wrpo_model *model, int64_t i, int64_t *size) {
    const wrpo_weight *w = model->weights;
    *size = wrpo__size(&w[i]);
    for (i++; i < model->n_weights && wrpo__follows(&w[i - 1], &w[i]); i++) *size += wrpo__size(&w[i]);
    return i;
}
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
        end = wrpo__weight_run(model, i, &size);
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
        wrpo__fail(ctx, WRPO_E_UNSUPPORTED, "%s: the backend has no dropout, which scales what a %.32s adds",
                   ctx->desc.backend->name, c->model_type);
    wrpo__place_weights(model, &b);
    const size_t bytes = b.used, low = wrpo__mul(ctx, (size_t)model->count, sizeof *model->low);
    if (b.overflow) wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: the weights do not fit into the address space");
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
/* Elements [first, first + count) of a weight from floats: rounded to its dtype, unless there are masters. */
enum { WRPO__HALVES = 8192 };        /* elements split at a time */
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
        if (master) be->put(dev, model->low + w->at + first + i, low, (size_t)n * sizeof *low);
    }
}
/* The inverse of wrpo__weight_put: elements [first, first + count) as floats, the masters where there are any. */
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
        if (model->low && w->at >= 0) be->get(dev, low, model->low + w->at + first + i, (size_t)n * sizeof *low);
        for (int64_t k = 0; k < n; k++)
            dst[i + k] = w->dtype == WRPO_DTYPE_F16 ? wrpo__element(high, w->dtype, k) : wrpo__master(high[k], low[k]);
    }
}
/* Random weights: matrices N(0, initializer_range), norms that scale by 1, biases 0. Counter-based: an element depends
   on the seed, the tensor's name and its index. */
enum { WRPO__PIECE = 1 << 20, WRPO__DRAWS = 4096 };   /* elements converted at a time; drawn by a thread at a time */
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
    wrpo__config_check(arena->ctx, config);
    if (config->head != WRPO_HEAD_LM) wrpo__fail(arena->ctx, WRPO_E_ARG, "wrpo_config: head: want WRPO_HEAD_LM");
    wrpo_model *model = wrpo__model_new(arena, config);
    model->dtype = WRPO_DTYPE_F32;
    wrpo__model_randomize(model, seed);
    return model;
}
WRPO_API wrpo_result wrpo_model_new(wrpo_ctx *ctx, const wrpo_config *config, uint64_t seed, wrpo_model **out) {
    *out = NULL;
    WRPO__CALL(ctx, wrpo__arena_new(ctx), false, *out = wrpo__model_random(wrpo__current, config, seed));
    return wrpo__end(&wrpo__entry);
}

/* ---- adapters (LoRA): a weight W [out, in] of a linear layer may have A [r, in] and B [out, r] ----
   What they compute is at the end of the parts of a layer (>>model), how they are made, read and saved in >>checkpoint.
   */
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
WRPO_API const wrpo_config *wrpo_model_config(const wrpo_model *model) { return &model->config; }
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

/* -------------------------------------------------------------------------------------------- >>model
   The decoder, forward and backward, over a packed micro-batch. It is written once, in ops of the backend's table.
   In: records of token ids. Out: the log-prob of every scored token; then, from dL/dlogp of each, the gradients.
   No op's result depends on the number of threads, so none here does.

   Packing. A record is one prompt of P tokens and K responses of R_k tokens; it takes P + sum R_k rows (longrope and
   dynamic rope may need the prompt again):

       row   0 ...  P-1 | P ... P+R_1-1 | ...            the prompt's hidden states are computed once.
             prompt     | response 1    | response 2     Positions of every response go on from P; a response
       pos   0 ...  P-1 | P ... P+R_1-1 | P ... P+R_2-1  attends to the prompt and, causally, to itself.

   Records follow each other; there is no padding. The token at response position j is predicted by the row
   before it: the prompt's last row for j = 0. Only those rows get logits, in chunks.

   Words.  row       one token of the packed micro-batch, and its hidden state; activations are [n, columns]
           segment   the rows of one prompt or one response: what attention takes for a sequence
           prefix    rows whose keys all queries of a segment see: a response's prompt; a prompt has none
           own keys  those of the segment's own rows; each query sees them up to its own position
           target    a scored token: target_id is it, target_row predicts it
           chunk     targets that go through the head together where memory is short
           span      targets whose logits there is room for: a chunk, or as many as there are rows
           rotate    apply the rotary position embedding to q and k

   To add an op: wrpo_backend (>>api), >>ops, >>cpu, wrpo_cuda.cu, tests/30_ops.c; then a call in wrpo__layer_fwd, and
   its gradient's in wrpo__layer_bwd. A norm: its weight (>>layout), its rstd and its input (WRPO__LAYER_ACTS), a
   wrpo__norm_fwd and a wrpo__norm_bwd in the same two functions, wrpo__norm_of. A family: its
   model_type and names of tensors (>>checkpoint), a flag of wrpo_config at each step that differs, a case in
   tests/40_model.c and in 42_model.c. */

/* ---- a run: the memory that micro-batches are computed in ---- */
typedef struct wrpo__shape {         /* what there is room for */
    int64_t rows;                    /* never fewer than targets, segments or responses */
    int64_t chunk;                   /* targets in a chunk */
    bool logits;                     /* the span is all rows, not a chunk */
    int64_t recompute;               /* layers [0, recompute) store only x; the backward pass computes the rest again */
    int64_t cache;                   /* rows of keys and values that outlive a forward pass, for decoding; 0 = none */
    bool train;
    int64_t rank, drop;              /* columns of lora_t; of lora_x */
} wrpo__shape;
static int64_t wrpo__span(const wrpo__shape *s) { return s->logits ? s->rows : s->chunk; }

/* The tables of buffers, [n, columns] each. void: activations, of the backend's act_bytes an element. train, qk_norm,
   post_norms are 0 or 1, and 0 columns are no buffer. WRPO__X is what a use of a table makes of each X.
   Per layer: what the backward pass needs besides the x that enters the layer. */
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
#define WRPO__RUN_ACTS(X) \
    X(void, norm, D) X(void, h, I)                     /* a norm's output; act(gate) up: within a layer */ \
    X(void, y, D) X(float, rstd_final, 1)              /* the final norm's output */ \
    X(float, target_lse, 1)                            /* log sum exp of each target's logits */ \
    X(void, dx, D * train) X(void, dy, D * train)      /* dL/d of the residual stream; dy as above */ \
    X(void, dqkv, (H + 2 * G) * d * train) X(void, d_o, H * d * train) \
    X(void, dgu, 2 * I * train) X(void, dh, I * train) \
    X(void, lora_t, s->rank) X(void, lora_dt, s->rank * train)              /* of adapters: t, dL/dt */ \
    X(void, lora_x, s->drop * train)                   /* x after dropout, then its gradient */
/* On the backend and, as h_ids and so on, on the host. */
#define WRPO__RUN_BOTH(X) \
    X(int32_t, ids, 1) X(wrpo_seg, segs, 1) \
    X(float, rope, d)                                  /* cosine and sine, [n, dims / 2, 2] */ \
    X(float, rope_sliding, d * two_ropes)              /* of the layers with a base of their own */ \
    X(int32_t, cache_row, s->cache > 0)                /* where in the cache a row's key and value go */ \
    X(int32_t, target_row, 1) X(int32_t, target_id, 1) \
    X(float, logp, 1) X(float, coef, 1)                /* of each target; coef: dL/dlogp */ \
    X(float, mean, 1)                                  /* mean logit of each row, a metric */
typedef struct wrpo__acts {
    void *x;                         /* [n, D] residual stream that enters the layer */
#define WRPO__X(type, field, columns) type *field;
    WRPO__LAYER_ACTS(WRPO__X)
} wrpo__acts;
typedef struct wrpo__location {      /* where a response is: the first row of its prompt, its own, its first target */
    int64_t prompt_row, row, target;
} wrpo__location;
typedef struct wrpo__run {
    wrpo_model *model; const wrpo_backend *be; void *dev;
    wrpo__shape shape;
    wrpo_dropout dropout;            /* of adapters, in this micro-batch; p 0: none */
    bool no_adapter;                 /* it is known to add nothing */
    int64_t n, n_segs, n_targets, n_packed;            /* rows and so on that are packed */
    wrpo__location *packed;          /* [n_packed] responses */
    float *inv_freq; double rope_scale;                /* radians per position, [dims / 2]; factor of cosine and sine */
    float *inv_freq_sliding;                           /* NULL: the layers have one base */
    int64_t rope_key;                /* of the sequences that these two are for */
    WRPO__RUN_ACTS(WRPO__X)
#undef WRPO__X
#define WRPO__X(type, field, columns) type *field, *h_##field;
    WRPO__RUN_BOTH(WRPO__X)
#undef WRPO__X
    wrpo__acts *layer;               /* [L + 1]; the last has only x, which enters the final norm */
    wrpo__acts scratch;              /* of all layers that store only x, and in inference of all */
    void *cache, *attn_scratch;      /* cache [L][shape.cache, 2Gd]: k | v */
    void *hid, *dhid; float *logits; /* [span, D], [span, D], [span, V]; hid: y at the target rows */
    void *dlogits;                   /* [chunk, V]; NULL where activations are float: it takes the place of logits */
    float *head_sum;                 /* [D] sum of the head's rows */
    bool logits_kept;                /* logits and target_lse are those of all targets */
    size_t bytes, head_bytes;        /* on the backend: of all, of hid to dlogits */
    wrpo__bump host;                 /* the memory of what is on the host */
} wrpo__run;

static wrpo__shape wrpo__with_adapter(wrpo__shape shape, const wrpo_model *model) {
    shape.rank = model->lora ? model->lora->rank : 0;
    shape.drop = model->lora && model->lora->desc.dropout > 0 ? model->lora->cols : 0;
    return shape;
}
/* Measures a run (r->layer may be NULL), or assigns its memory. */
static void wrpo__run_layout(wrpo_ctx *ctx, const wrpo_config *c, const wrpo__shape *s, wrpo__run *r, wrpo__bump *b) {
    const wrpo_backend *be = ctx->desc.backend;
    const size_t size_void = (size_t)be->act_bytes, size_float = sizeof(float);
    const int64_t V = c->vocab_size, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, L = c->num_hidden_layers, n = s->rows;
    const int64_t train = s->train, qk_norm = c->qk_norm, post_norms = c->post_norms, span = wrpo__span(s);
    const int64_t two_ropes = c->sliding_rope_theta > 0;
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
    WRPO__RUN_ACTS(WRPO__X)
#undef WRPO__X
#define WRPO__X(type, field, columns) \
    r->field = wrpo__take(b, n, columns, sizeof(type)); \
    r->h_##field = wrpo__take(&r->host, n, columns, sizeof(type));
    WRPO__RUN_BOTH(WRPO__X)
#undef WRPO__X
    r->packed = wrpo__take(&r->host, n, 1, sizeof *r->packed);
    r->inv_freq = wrpo__take(&r->host, 1, d / 2, sizeof *r->inv_freq);
    r->inv_freq_sliding = wrpo__take(&r->host, two_ropes, d / 2, sizeof *r->inv_freq);
    r->cache = wrpo__take(b, s->cache, L * 2 * G * d, size_void);
    r->attn_scratch = wrpo__take(b, train, (int64_t)be->attention_scratch(ctx->dev, n, H, G, d), 1);
    r->head_sum = wrpo__take(b, 1, D, size_float);
    r->head_bytes = b->used;
    r->hid = wrpo__take(b, span, D, size_void);
    r->logits = wrpo__take(b, span, V, size_float);
    r->dhid = wrpo__take(b, span, D * train, size_void);
    r->dlogits = wrpo__take(b, s->chunk, size_void == size_float ? 0 : V * train, size_void);
    r->head_bytes = b->used - r->head_bytes;
    r->bytes = b->used;
}
/* As many targets as have 64 MiB of logits, from 32 to 512; on a device, which wants large products, up to 8 times as
   many. Never more than rows. */
static int64_t wrpo__head_chunk(const wrpo_ctx *ctx, const wrpo_config *c, int64_t rows) {
    const int64_t more = ctx->desc.backend->host ? 1 : 8, chunk = (more << 26) / (4 * c->vocab_size) / 32 * 32;
    return WRPO__MIN(rows, WRPO__MAX(32, WRPO__MIN(512 * more, chunk)));
}

static wrpo__run *wrpo__run_new(wrpo__arena *arena, wrpo_model *model, const wrpo__shape *shape) {
    wrpo_ctx *ctx = arena->ctx;
    const wrpo_config *c = &model->config;
    wrpo__run *r = WRPO__NEW(arena, wrpo__run);
    wrpo__bump b = {0};
    *r = (wrpo__run){.model = model, .be = ctx->desc.backend, .dev = ctx->dev,
                     .shape = wrpo__with_adapter(*shape, model)};
    r->layer = wrpo__alloc(arena, (size_t)c->num_hidden_layers + 1, sizeof *r->layer);
    wrpo__run_layout(ctx, c, &r->shape, r, &b);
    if (b.overflow || r->host.overflow)
        wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %lld rows of this model do not fit into the address space",
                   (long long)shape->rows);
    b = (wrpo__bump){.base = wrpo__device_alloc(arena, b.used, "activations")};
    r->host = (wrpo__bump){.base = wrpo__raw(arena, r->host.used, 1)};
    wrpo__run_layout(ctx, c, &r->shape, r, &b);
    wrpo__inv_freq(c, 0, r->inv_freq, &r->rope_scale);
    if (r->inv_freq_sliding) wrpo__inv_freq_sliding(c, r->inv_freq_sliding);
    return r;
}

/* ---- packing: begin, records, end ---- */
static void wrpo__pack_begin(wrpo__run *r) {
    r->n = r->n_segs = r->n_targets = r->n_packed = 0;
    r->logits_kept = false;
}
/* What is packed next belongs to a sequence of this length, prompt and response. */
static void wrpo__pack_rotary(wrpo__run *r, int64_t length) {
    const int64_t key = wrpo__rope_key(&r->model->config, length);
    if (key == r->rope_key) return;
    r->rope_key = key;
    wrpo__inv_freq(&r->model->config, key, r->inv_freq, &r->rope_scale);
}
/* Cosine and sine of one position, [half, 2]. */
static void wrpo__angles(float *rope, int64_t half, int64_t position, const float *inv_freq, double scale) {
    for (int64_t k = 0; k < half; k++) {
        const float angle = (float)position * inv_freq[k];
        rope[2 * k] = cosf(angle) * (float)scale;
        rope[2 * k + 1] = sinf(angle) * (float)scale;
    }
}
/* A segment of `count` rows, the first at `position`. seg gives its prefix and its own keys; the last of these is the
   last row's. The caller has made sure that there is room. */
static void wrpo__pack_rows(wrpo__run *r, const int32_t *ids, int64_t count, int64_t position, wrpo_seg seg) {
    const int64_t half = wrpo__rope_dims(&r->model->config) / 2;
    seg.begin = r->n;
    seg.end = r->n + count;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = seg.begin + i;
        r->h_ids[row] = ids[i];
        if (r->h_cache_row) r->h_cache_row[row] = (int32_t)(seg.own_end - count + i);
        wrpo__angles(r->h_rope + row * half * 2, half, position + i, r->inv_freq, r->rope_scale);
        if (r->h_rope_sliding)
            wrpo__angles(r->h_rope_sliding + row * half * 2, half, position + i, r->inv_freq_sliding, 1);
    }
    r->h_segs[r->n_segs++] = seg;
    r->n = seg.end;
}
static void wrpo__pack_seg(wrpo__run *r, const int32_t *ids, int64_t count, int64_t position, int64_t prefix,
                           int64_t prefix_end) {
    wrpo__pack_rows(r, ids, count, position, (wrpo_seg){0, 0, prefix, prefix_end, r->n, r->n + count});
}
static void wrpo__pack_target(wrpo__run *r, int64_t row, int32_t id) {
    r->h_target_row[r->n_targets] = (int32_t)row;
    r->h_target_id[r->n_targets++] = id;
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
static void wrpo__pack_record(wrpo__run *r, const wrpo_record *record) {
    const int64_t P = record->prompt_count;
    int64_t prompt = 0;
    for (int k = 0; k < record->count; k++) {
        const wrpo_tokens *y = &record->responses[k];
        if (wrpo__packs_prompt(&r->model->config, record, k)) {
            prompt = r->n;
            wrpo__pack_rotary(r, P + y->count);
            wrpo__pack_seg(r, record->prompt, P, 0, prompt, prompt);
        }
        r->packed[r->n_packed++] = (wrpo__location){.prompt_row = prompt, .row = r->n, .target = r->n_targets};
        for (int64_t j = y->first; j < y->count; j++)
            wrpo__pack_target(r, j > 0 ? r->n + j - 1 : prompt + P - 1, y->ids[j]);
        wrpo__pack_seg(r, y->ids, y->count, P, prompt, prompt + P);            /* sees the prompt's rows and its own */
    }
}
static void wrpo__pack_end(wrpo__run *r) {
    const size_t n = (size_t)r->n, targets = (size_t)r->n_targets;
    const size_t angles = n * (size_t)wrpo__rope_dims(&r->model->config);
    r->be->put(r->dev, r->ids, r->h_ids, n * sizeof *r->ids);
    r->be->put(r->dev, r->segs, r->h_segs, (size_t)r->n_segs * sizeof *r->segs);
    r->be->put(r->dev, r->rope, r->h_rope, angles * sizeof *r->rope);
    if (r->rope_sliding) r->be->put(r->dev, r->rope_sliding, r->h_rope_sliding, angles * sizeof *r->rope);
    if (r->cache) r->be->put(r->dev, r->cache_row, r->h_cache_row, n * sizeof *r->cache_row);
    r->be->put(r->dev, r->target_row, r->h_target_row, targets * sizeof *r->target_row);
    r->be->put(r->dev, r->target_id, r->h_target_id, targets * sizeof *r->target_id);
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
static void wrpo__adapter_fwd(const wrpo__run *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
                              void *y, int64_t ldy, const void *x);
static void wrpo__adapter_bwd(const wrpo__run *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
                              void *dx, float *grads, const void *dy, int64_t lddy, const void *x);
/* y = x W' + b, or y += if add; then the adapters' part. */
static void wrpo__linear_fwd(const wrpo__run *r, int64_t l, const wrpo__linear *lin, void *y, int64_t ldy,
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
static void wrpo__linear_bwd(const wrpo__run *r, int64_t l, const wrpo__linear *lin, void *dx, float *grads,
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
static void wrpo__norm_fwd(const wrpo__run *r, int64_t l, wrpo__kind kind, void *y, int64_t ldy, float *rstd,
                           const void *x, int64_t ldx) {
    const wrpo__norm norm = wrpo__norm_of(r->model, kind, l);
    r->be->rmsnorm(r->dev, y, ldy, rstd, x, ldx, norm.w->data, r->n, norm.heads, norm.w->rows,
                   (float)r->model->config.rms_norm_eps, norm.plus);
}
/* dx = dL/dx, plus dres unless it is NULL; dL/dw is added to grads. dx may be dy or dres. */
static void wrpo__norm_bwd(const wrpo__run *r, int64_t l, wrpo__kind kind, float *grads, void *dx, int64_t lddx,
                           const void *dy, const void *dres, const float *rstd, const void *x, int64_t ldx) {
    const wrpo__norm norm = wrpo__norm_of(r->model, kind, l);
    r->be->rmsnorm_bwd(r->dev, dx, lddx, wrpo__grad(grads, norm.w), dy, lddx, dres, lddx, x, ldx, norm.w->data, rstd,
                       r->n, norm.heads, norm.w->rows, norm.plus);
}
/* What attention or MLP reads: norm(x), in r->norm; x itself where the model has no norm before it. */
static const void *wrpo__input_fwd(const wrpo__run *r, int64_t l, wrpo__kind kind, float *rstd, const void *x) {
    const int64_t D = r->model->config.hidden_size;
    if (!wrpo__weight(r->model, kind, l)) return x;
    wrpo__norm_fwd(r, l, kind, r->norm, D, rstd, x, D);
    return r->norm;
}
/* r->dy is dL/d of that; dL/dx is added to r->dx. */
static void wrpo__input_bwd(const wrpo__run *r, int64_t l, wrpo__kind kind, float *grads, const float *rstd,
                            const void *x) {
    const int64_t D = r->model->config.hidden_size;
    if (!wrpo__weight(r->model, kind, l)) r->be->add(r->dev, r->dx, r->dy, r->n * D);
    else wrpo__norm_bwd(r, l, kind, grads, r->dx, D, r->dy, r->dx, rstd, x, D);
}
/* y = factor x, [rows, D]: the op dropout with p 0. y may be x. */
static void wrpo__scale(const wrpo__run *r, void *y, const void *x, int64_t rows, double factor) {
    const int64_t D = r->model->config.hidden_size;
    r->be->dropout(r->dev, y, D, x, D, rows, D, &(wrpo_dropout){.scale = (float)factor});
}
/* x += m a W', or with post_norms x += m norm(a W'), and a W' stays in `out`; m: residual_multiplier. With post_norms x
   may be NULL: nothing is added. */
static void wrpo__add_fwd(const wrpo__run *r, int64_t l, const wrpo__linear *lin, wrpo__kind norm, void *out,
                          float *rstd, void *x, const void *a) {
    const wrpo_config *c = &r->model->config;
    const int64_t D = c->hidden_size;
    const bool normed = c->post_norms, scaled = c->residual_multiplier > 0;
    void *y = normed ? out : scaled ? r->norm : x;
    wrpo__linear_fwd(r, l, lin, y, D, a, y == x);
    if (normed) wrpo__norm_fwd(r, l, norm, r->norm, D, rstd, out, D);
    if (scaled) wrpo__scale(r, r->norm, r->norm, r->n, c->residual_multiplier);
    if (y != x && x) r->be->add(r->dev, x, r->norm, r->n * D);
}
/* Returns dL/d(a W'): r->dx itself, or r->dy after the backward of the factor and of the norm on what is added. */
static const void *wrpo__add_bwd(const wrpo__run *r, int64_t l, wrpo__kind norm, float *grads, const float *rstd,
                                 const void *out) {
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
static void wrpo__rotate(const wrpo__run *r, int64_t l, void *q, float sign) {
    const wrpo_config *c = &r->model->config;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim, ld = (H + 2 * G) * d;
    const int64_t dims = wrpo__rope_dims(c), parts = dims == d ? 1 : H + G;
    const float *rope = r->rope_sliding && wrpo__layer_bit(c->sliding_layers, l) ? r->rope_sliding : r->rope;
    for (int64_t i = 0; i < parts && !wrpo__layer_bit(c->no_rope_layers, l); i++)
        r->be->rope(r->dev, wrpo__at(r->be, q, i * d), ld, rope, r->n, (H + G) / parts, dims, sign);
}
static int64_t wrpo__layer_window(const wrpo_config *c, int64_t l) {
    return wrpo__layer_bit(c->sliding_layers, l) ? c->sliding_window : 0;
}
static wrpo_attn wrpo__attn_of(const wrpo__run *r, int64_t l) {
    const wrpo_config *c = &r->model->config;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim;
    const double scalar = c->query_pre_attn_scalar > 0 ? c->query_pre_attn_scalar : (double)d;
    const double scale = c->attention_multiplier > 0 ? c->attention_multiplier : 1 / sqrt(scalar);
    return (wrpo_attn){.n = r->n, .segs = r->segs, .n_segs = r->n_segs, .H = H, .G = G, .d = d,
                       .ldq = (H + 2 * G) * d, .ldkv = (r->cache ? 2 * G : H + 2 * G) * d, .ldo = H * d,
                       .window = wrpo__layer_window(c, l), .scale = (float)scale,
                       .softcap = (float)c->attn_logit_softcapping};
}

/* ---- adapters:  y += t B',  t = scale dropout(x) A',  for the weights w[count] of a product; of[j] is w[j]'s ----
   The As of a product are one matrix, so one product gives t [n, rank], with columns for each of them; but with dropout
   each A has its own x, so its own t. Weights of a fused layer share one A, so they share columns of t. */
/* The end of the weights from i on that share t; the columns of t in *rank, 0 if w[i] has no adapter. */
static int wrpo__adapter_group(const wrpo__run *r, const wrpo__adapter *of, int i, int count, int64_t *rank) {
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
static void wrpo__adapter_scale(const wrpo__run *r, const wrpo__adapter *of, int count, void *t, int64_t rank) {
    for (int j = 0; j < count; j++) {
        if (!of[j].rank || of[j].shared) continue;
        r->be->dropout(r->dev, t, rank, t, rank, r->n, of[j].rank, &(wrpo_dropout){.scale = of[j].scale});
        t = wrpo__at(r->be, t, of[j].rank);
    }
}
static void wrpo__adapter_drop(const wrpo__run *r, const wrpo_weight *a, void *y, const void *x) {
    wrpo_dropout d = r->dropout;
    d.scale = 1;
    d.stream = (uint64_t)(a - r->model->weights);
    r->be->dropout(r->dev, y, a->cols, x, a->cols, r->n, a->cols, &d);
}
/* t of such a group into r->lora_t. Returns A's input: x, or r->lora_x with dropout. */
static const void *wrpo__adapter_t(const wrpo__run *r, const wrpo__adapter *of, int count, int64_t rank,
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
static void wrpo__adapter_fwd(const wrpo__run *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
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
static void wrpo__adapter_bwd(const wrpo__run *r, const wrpo__adapter *of, const wrpo_weight *w, int count,
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

/* ---- one layer ---- */
/* The norm before the MLP. With post_norms, post_attention_layernorm is the norm on what attention adds. */
static wrpo__kind wrpo__norm_mlp(const wrpo_config *c) {
    return c->post_norms ? WRPO__W_pre_feedforward_layernorm : WRPO__W_post_attention_layernorm;
}
/* x -> x_out; all else goes to a. In inference x, a->mid and x_out are one buffer: the stream is updated in place.
   x_out NULL: only what the backward pass needs is computed. */
static void wrpo__layer_fwd(const wrpo__run *r, int64_t l, const wrpo__acts *a, void *x, void *x_out) {
    const wrpo_backend *be = r->be;
    const wrpo_config *c = &r->model->config;
    const int64_t n = r->n, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, ld = (H + 2 * G) * d, ld0 = (H + G) * d;
    const size_t stream = (size_t)(n * D) * (size_t)be->act_bytes;
    void *q = a->qkv, *k = wrpo__at(be, q, H * d), *v = wrpo__at(be, k, G * d);
    const wrpo_attn attn = wrpo__attn_of(r, l);
    const void *in;                                    /* of attention, then of the MLP */

    in = wrpo__input_fwd(r, l, WRPO__W_input_layernorm, a->rstd_attn, x);            /* 2  a = g_1 x / rms(x) */
    if (!c->qk_norm) wrpo__linear_fwd(r, l, &wrpo__qkv, q, ld, in, false);           /* 3  q | k | v = a W' + b */
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
    wrpo__add_fwd(r, l, &wrpo__o, WRPO__W_post_attention_layernorm, a->attn_out, a->rstd_attn_out, a->mid, a->o);
    in = wrpo__input_fwd(r, l, wrpo__norm_mlp(c), a->rstd_mlp, a->mid);              /* 8  c = g_2 x' / rms(x') */
    wrpo__linear_fwd(r, l, &wrpo__gu, a->gu, 2 * I, in, false);                      /* 9  g | u = c W' */
    if (!x_out && !c->post_norms) return;
    be->glu(r->dev, r->h, a->gu, n, I, c->gelu);                                     /* 10 h = silu(g) u */
    if (x_out && x_out != a->mid) be->copy(r->dev, x_out, a->mid, stream);           /* 11 x'' = x' + h W' */
    wrpo__add_fwd(r, l, &wrpo__down, WRPO__W_post_feedforward_layernorm, a->mlp_out, a->rstd_mlp_out, x_out, r->h);
}
/* r->dx is dL/dx'' and becomes dL/dx. Numbers and formulas are those of the forward pass, in reverse. a, c and h were
   not stored: they are computed once more. */
static void wrpo__layer_bwd(const wrpo__run *r, int64_t l, const wrpo__acts *a, const void *x, float *grads) {
    const wrpo_backend *be = r->be;
    const wrpo_config *c = &r->model->config;
    const int64_t n = r->n, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, ld = (H + 2 * G) * d, ld0 = (H + G) * d;
    void *q = a->qkv, *k = wrpo__at(be, q, H * d), *v = wrpo__at(be, k, G * d);
    void *dq = r->dqkv, *dk = wrpo__at(be, dq, H * d), *dv = wrpo__at(be, dk, G * d);
    const wrpo_attn attn = wrpo__attn_of(r, l);
    const void *dy, *in;
                                                                                     /*    was, in the forward pass: */
    dy = wrpo__add_bwd(r, l, WRPO__W_post_feedforward_layernorm, grads, a->rstd_mlp_out, a->mlp_out);
    wrpo__linear_bwd(r, l, &wrpo__down, r->dh, NULL, dy, D, NULL);                   /* 11 x'' = x' + h W', now dh */
    be->glu_bwd(r->dev, r->dgu, r->h, r->dh, a->gu, n, I, c->gelu);                  /* 10 h = silu(g) u, and h again */
    wrpo__linear_bwd(r, l, &wrpo__down, NULL, grads, dy, D, r->h);                   /* 11 now dW */
    in = wrpo__input_fwd(r, l, wrpo__norm_mlp(c), a->rstd_mlp, a->mid);              /*    c again */
    wrpo__linear_bwd(r, l, &wrpo__gu, r->dy, grads, r->dgu, 2 * I, in);              /* 9  g | u = c W' */
    wrpo__input_bwd(r, l, wrpo__norm_mlp(c), grads, a->rstd_mlp, a->mid);            /* 8  c = g_2 x' / rms(x') */
    dy = wrpo__add_bwd(r, l, WRPO__W_post_attention_layernorm, grads, a->rstd_attn_out, a->attn_out);
    wrpo__linear_bwd(r, l, &wrpo__o, r->d_o, grads, dy, D, a->o);                    /* 7  x' = x + o W' */
    be->attention_bwd(r->dev, &attn, dq, dk, dv, r->d_o, a->o, a->lse, q, k, v,      /* 6  o = softmax(qk'/sqrt d) v */
                      r->attn_scratch);
    wrpo__rotate(r, l, dq, -1);                                                      /* 5  q, k rotated */
    if (c->qk_norm) {                                                                /* 4  q = g_q q / rms(q) */
        wrpo__norm_bwd(r, l, WRPO__W_q_norm, grads, dq, ld, dq, NULL, a->rstd_q, a->qk0, ld0);
        wrpo__norm_bwd(r, l, WRPO__W_k_norm, grads, dk, ld, dk, NULL, a->rstd_k, wrpo__at(be, a->qk0, H * d), ld0);
    }
    in = wrpo__input_fwd(r, l, WRPO__W_input_layernorm, a->rstd_attn, x);            /*    a again */
    wrpo__linear_bwd(r, l, &wrpo__qkv, r->dy, grads, dq, ld, in);                    /* 3  q | k | v = a W' + b */
    wrpo__input_bwd(r, l, WRPO__W_input_layernorm, grads, a->rstd_attn, x);          /* 2  a = g_1 x / rms(x) */
}

/* ---- the head: log-probs of targets ----
   Logits are the largest array. If the span has room for those of all targets, the backward pass finds them there;
   if not, they are computed chunk by chunk, each in place of the one before, and again in the backward pass. */
static const wrpo_weight *wrpo__head(const wrpo_model *m) {
    return m->config.tie_word_embeddings ? WRPO__W(m, embed_tokens, 0) : WRPO__W(m, lm_head, 0);
}
static bool wrpo__logits_fit(const wrpo__run *r) { return r->n_targets <= wrpo__span(&r->shape); }
/* The targets of one product. On the host in float all that fit go at once. Elsewhere it is a chunk: dlogits has no
   room for more, and no bit depends on how much memory there is. */
static int64_t wrpo__targets_at_once(const wrpo__run *r) {
    const bool any_shape = r->be->host && r->be->act_bytes == sizeof(float);
    return any_shape && wrpo__logits_fit(r) ? WRPO__MAX(r->n_targets, 1) : r->shape.chunk;
}
static float *wrpo__logits_at(const wrpo__run *r, int64_t t) {         /* of target t and those after it */
    return r->logits + (wrpo__logits_fit(r) ? t * r->model->config.vocab_size : 0);
}
/* Dividing its input by logits_scaling divides the logits. */
static void wrpo__head_input(const wrpo__run *r, int64_t t, int64_t count) {   /* of targets [t, t + count) */
    const wrpo_config *c = &r->model->config;
    r->be->gather(r->dev, r->hid, r->y, r->target_row + t, count, c->hidden_size);
    if (c->logits_scaling > 0) wrpo__scale(r, r->hid, r->hid, count, 1 / c->logits_scaling);
}
static void wrpo__logits(const wrpo__run *r, int64_t t, int64_t count) {
    const wrpo_weight *w = wrpo__head(r->model);
    const int64_t V = w->rows, D = w->cols;
    wrpo__head_input(r, t, count);
    r->be->gemm(r->dev, WRPO_MM_NT_FLOAT, wrpo__logits_at(r, t), V, r->hid, D, w->data, D, w->dtype, count, V, D, 0);
}
static void wrpo__log_probs(const wrpo__run *r, int64_t t, int64_t count) {
    const wrpo_config *c = &r->model->config;
    wrpo__logits(r, t, count);
    r->be->logprob(r->dev, r->logp + t, r->target_lse + t, wrpo__logits_at(r, t), r->target_id + t, count,
                   c->vocab_size, (float)c->final_logit_softcapping);
}
/* For a metric: the mean logit of every row, y (sum_v W_v) / V, is one product with the sum of the head's rows. It is
   NaN where logits are capped: their mean is no such product. The sum is made before each pass over records. */
static void wrpo__sum_head(const wrpo__run *r) {
    const wrpo_weight *w = wrpo__head(r->model);
    if (r->model->config.final_logit_softcapping > 0) return;
    r->be->colsum(r->dev, r->head_sum, w->data, w->dtype, w->rows, w->cols);
}
static void wrpo__mean_logits(const wrpo__run *r) {
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
static void wrpo__trunk(const wrpo__run *r) {
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
/* Log-probs of all targets into r->h_logp and, if wanted, the mean logit of every row into r->h_mean. */
static void wrpo__forward(wrpo__run *r, bool means) {
    wrpo__trunk(r);
    const int64_t step = wrpo__targets_at_once(r);
    for (int64_t t = 0; t < r->n_targets; t += step)                      /* 13 log softmax(y W')[target] */
        wrpo__log_probs(r, t, WRPO__MIN(step, r->n_targets - t));
    r->logits_kept = wrpo__logits_fit(r);
    if (means) wrpo__mean_logits(r);
    r->be->get(r->dev, r->h_logp, r->logp, (size_t)r->n_targets * sizeof *r->logp);
    wrpo__sync(r->model->ctx);
}
/* Targets with coefficient 0 add nothing to the gradient: they are removed, and those after them move up. The kept
   logits are then in other places than their targets, and are computed again. */
static void wrpo__drop_targets(wrpo__run *r) {
    int64_t left = 0;
    for (int64_t t = 0; t < r->n_targets; t++) {
        if (r->h_coef[t] == 0) continue;
        r->h_target_row[left] = r->h_target_row[t];
        r->h_target_id[left] = r->h_target_id[t];
        r->h_coef[left++] = r->h_coef[t];
    }
    r->logits_kept = r->logits_kept && left == r->n_targets;
    r->n_targets = left;
    r->be->put(r->dev, r->target_row, r->h_target_row, (size_t)left * sizeof *r->target_row);
    r->be->put(r->dev, r->target_id, r->h_target_id, (size_t)left * sizeof *r->target_id);
    r->be->put(r->dev, r->coef, r->h_coef, (size_t)left * sizeof *r->coef);
}
/* Adds the gradient of sum_t coef[t] logp[t] to grads, which mirrors the weights. The caller has filled r->h_coef. */
static void wrpo__backward(wrpo__run *r, float *grads) {
    const wrpo_model *m = r->model;
    const wrpo_backend *be = r->be;
    const wrpo_config *c = &m->config;
    const wrpo_weight *head = wrpo__head(m), *embed = WRPO__W(m, embed_tokens, 0);
    const int64_t D = c->hidden_size, V = c->vocab_size, L = c->num_hidden_layers, chunk = r->shape.chunk;
    const float cap = (float)c->final_logit_softcapping;
    float *d_head = wrpo__grad(grads, head), *d_embed = wrpo__grad(grads, embed);
    wrpo__drop_targets(r);
    be->zero(r->dev, r->dy, (size_t)(r->n * D) * (size_t)be->act_bytes);
    const int64_t step = wrpo__targets_at_once(r);
    for (int64_t t = 0; t < r->n_targets; t += step) {                    /* 13 log softmax(y W')[target] */
        const int64_t count = WRPO__MIN(step, r->n_targets - t);
        float *logits = wrpo__logits_at(r, t);
        void *dlogits = r->dlogits ? r->dlogits : logits;
        if (r->logits_kept) wrpo__head_input(r, t, count);
        else wrpo__log_probs(r, t, count);
        be->logprob_bwd(r->dev, dlogits, logits, r->target_id + t, r->target_lse + t, r->coef + t, count, V, cap);
        be->gemm(r->dev, WRPO_MM_NN, r->dhid, D, dlogits, V, head->data, D, head->dtype, count, D, V, 0);
        if (c->logits_scaling > 0) wrpo__scale(r, r->dhid, r->dhid, count, 1 / c->logits_scaling);
        for (int64_t s = 0; s < count; s += chunk) {   /* summed chunk by chunk, whatever the step: the same bits */
            const int64_t some = WRPO__MIN(chunk, count - s);
            if (d_head) be->gemm(r->dev, WRPO_MM_TN, d_head, D, wrpo__at(be, dlogits, s * V), V,
                                 wrpo__at(be, r->hid, s * D), D, WRPO_DTYPE_F32, V, D, some, 1);
            be->gather_bwd(r->dev, r->dy, wrpo__at(be, r->dhid, s * D), r->target_row + t + s, some, D);
        }
    }
    r->logits_kept = false;
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

/* --------------------------------------------------------------------------------------------- >>step
   One optimizer step: wrpo__step, at the end of this section. In: a model, records of token ids. Out: the model after
   the step, its metrics. wrpo__step is four phases:
     1. alpha and the learning rate of this step; the records of its batch
     2. wrpo__pass, in micro-batches that fit into the workspace: pack, forward to log-probs, loss and derivatives of
        every record on the host (wrpo_loss: WRPO is there), backward to gradients
     3. the norm of all gradients, and the factor that clips it
     4. AdamW on all weights, or on an adapter's; only matrices decay
   The reference is the policy as it is before step 1, or another model. Its log-probs of all responses are computed
   once, when the trainer is made; nothing else of it is needed.

   Steps are counted as the authors' trainer counts them, for N records:
     micro-batches of an epoch   M = ceil(N / (batch_size / accumulation))
     steps of an epoch           S = floor(M / accumulation), at least 1
     steps of the run            T = ceil(epochs S), at least 1; or max_steps
   The loss of a step is the mean over its micro-batches of the mean over their records. These micro-batches only
   define that mean. How many rows are computed at once is micro_tokens: it changes no log-prob, but the order in which
   gradients are added, so their last bits.

   To add a setting: a field of wrpo_train_desc, a row of WRPO__SETTINGS, an option of example.c. A metric: a row of
   WRPO_METRICS (>>api), its value in wrpo__tally_add. A method: >>loss, nothing here.                             */

/* ---- log-probs of records: packed until micro_tokens rows are full; a longer record goes alone ---- */
enum { WRPO__MICRO_TOKENS = 1024 };
/* Rows a run needs for these records: micro_tokens, all of them if that is less, the longest record if that is more. */
static int64_t wrpo__run_rows(const wrpo_config *c, const wrpo_data *data, int64_t first, int64_t count,
                              int64_t micro_tokens) {
    int64_t all = 0, longest = 1;
    for (int64_t i = first; i < first + count; i++) {
        const int64_t rows = wrpo__record_rows(c, &data->records[i]);
        all = WRPO__MIN(all + rows, micro_tokens);
        longest = WRPO__MAX(longest, rows);
    }
    return WRPO__MAX(all, longest);
}
/* Packs as many records list[first..count) as fit, at least one; returns where it stopped. list NULL: i itself. */
static int64_t wrpo__pack_some(wrpo__run *r, const wrpo_data *data, const int64_t *list, int64_t first, int64_t count,
                               int64_t micro_tokens) {
    int64_t i = first;
    wrpo__pack_begin(r);
    for (; i < count; i++) {
        const wrpo_record *record = &data->records[list ? list[i] : i];
        if (r->n && r->n + wrpo__record_rows(&r->model->config, record) > micro_tokens) break;
        wrpo__pack_record(r, record);
    }
    wrpo__pack_end(r);
    return i;
}
/* The sum of log-probs, in double, of a response's scored tokens. */
static double wrpo__sum_logps(const wrpo__run *r, const wrpo_tokens *y, const wrpo__location *packed) {
    double sum = 0;
    for (int64_t j = 0; j < y->count - y->first; j++) sum += (double)r->h_logp[packed->target + j];
    return sum;
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
/* logps [count, K] of records [first, first + count), with a run of its own. tokens: an stb array of every scored
   token's log-prob, or NULL. */
static void wrpo__logprobs(wrpo__arena *temp, wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count,
                           int64_t micro_tokens, double *logps, int K, float **tokens) {
    wrpo__check_data(model->ctx, &model->config, data, first, count);
    wrpo__shape shape = {.rows = wrpo__run_rows(&model->config, data, first, count, micro_tokens)};
    shape.chunk = wrpo__head_chunk(model->ctx, &model->config, shape.rows);
    wrpo__run *r = wrpo__run_new(temp, model, &shape);
    r->no_adapter = wrpo__adds_nothing(model);
    for (int64_t i = first, next; i < first + count; ) {
        next = wrpo__pack_some(r, data, NULL, i, first + count, micro_tokens);
        wrpo__forward(r, false);
        for (const wrpo__location *packed = r->packed; i < next; i++, logps += K) {
            const wrpo_record *record = &data->records[i];
            for (int k = 0; k < K; k++) {
                logps[k] = k < record->count ? wrpo__sum_logps(r, &record->responses[k], packed++) : NAN;
                if (k < record->count && !isfinite(logps[k]))
                    wrpo__fail(model->ctx, WRPO_E_NOT_FINITE,
                               "record \"%s\" (line %lld): the log-prob of response %d is not a finite number",
                               record->prompt_id, (long long)record->line, k + 1);
            }
        }
        for (int64_t t = 0; tokens && t < r->n_targets; t++) stbds_arrput(*tokens, r->h_logp[t]);
    }
}

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
    X(micro_tokens,  WRPO__MICRO_TOKENS, x >= 1 && x <= 0x1p30, "1 to 2^30", true) \
    X(recompute,     0,     x >= -1,              "a number of layers, or -1 for all", false) \
    X(eval_steps,    0,     x >= 0,               "at least 0",             true) \
    X(save_steps,    0,     x >= 0 && (x == 0 || d->save.dir), "at least 0, and a directory in save", false)

WRPO_API wrpo_train_desc wrpo_train_defaults(const wrpo_train_desc *desc) {
    wrpo_train_desc d = {0};
    if (desc) d = *desc;
    double rate = 3e-7;
    if (d.loss.method == WRPO_METHOD_SFT) rate = 7e-6;
    if (d.loss.method == WRPO_METHOD_SIMPO) rate = 1e-6;
    if (d.loss.method == WRPO_METHOD_DPO_NORM) rate = 8e-7;
    d.loss = wrpo__loss_defaults(d.loss);
#define WRPO__X(field, otherwise, valid, want, same) if (wrpo__is_default((double)d.field)) d.field = otherwise;
    WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    if (!d.seed) d.seed = 42;
    return d;
}
static void wrpo__train_check(wrpo_ctx *ctx, const wrpo_train_desc *d) {   /* d resolved */
    double x;
#define WRPO__X(field, otherwise, valid, want, same) x = (double)d->field; WRPO__RANGE(valid, #field, x, want);
    WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    const char *why = wrpo__loss_check(&d->loss, d->alpha);
    if (why) wrpo__fail(ctx, WRPO_E_ARG, "%s", why);
    WRPO__RANGE(wrpo_lr_schedule_name((int)d->lr_schedule), "lr_schedule", d->lr_schedule, "one of wrpo_lr_schedule");
    WRPO__RANGE(wrpo_alpha_schedule_name((int)d->alpha_schedule), "alpha_schedule", d->alpha_schedule,
                "one of wrpo_alpha_schedule");
    WRPO__RANGE(wrpo_moments_name((int)d->moments), "moments", d->moments, "one of wrpo_moments");
}

/* ---- the trainer, made in three phases: wrpo__trainer_new ---- */
typedef struct wrpo__set {           /* records, and what the reference says about them */
    const wrpo_data *given;          /* as the caller knows it; NULL: there is no such set */
    const wrpo_data *data;           /* what is computed: `given`, or for SFT the sources of its records alone */
    int64_t N; int K;                /* records; the most responses that one has */
    double *ref;                     /* [N, K] log-probs of the reference; NULL where the method needs none */
} wrpo__set;
struct wrpo_trainer {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_model *model;               /* the policy */
    wrpo_train_desc desc;            /* resolved */
    wrpo__set train, eval;
    int64_t rows;                    /* of the workspace: the most that a micro-batch of either set needs */
    int64_t micro;                   /* batch_size / accumulation */
    int64_t steps_per_epoch, T, k;   /* S, T, and how many steps are done */
    int64_t *order, order_epoch;     /* [N] the records in this epoch's order */
    double *weight;                  /* [batch_size] of each record in a step's loss */
    wrpo__run *run;
    float *grads;                    /* mirrors the weights; NULL in an evaluation */
    char *exp_avg, *exp_avg_sq;      /* AdamW's moments, mirror the weights */
    double *sumsq;                   /* one element in the backend's memory */
    double start;                    /* when the run began, in seconds */
    const char *out_dir; FILE *metrics; wrpo__writer *part;        /* used by >>run alone. part: of the metrics */
    void (*log)(wrpo_trainer *t, const wrpo_metrics *m, const char *prefix);   /* called with every line of metrics */
};
/* The record's responses as the loss sees them; log-probs are left 0. */
static void wrpo__as_loss(const wrpo_record *record, wrpo_response *r) {
    for (int k = 0; k < record->count; k++) {
        const wrpo_tokens *y = &record->responses[k];
        r[k] = (wrpo_response){.role = y->role, .share = y->share, .pair_id = y->pair_id,
                               .tokens = y->count - y->first};
    }
}
/* Every record must have the roles that the method needs. */
static void wrpo__check_roles(wrpo_ctx *ctx, const wrpo__set *set, const wrpo_train_desc *d) {
    wrpo_response *r = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *r);
    if (set->N == 0) wrpo__fail(ctx, WRPO_E_ARG, "the data has no records");
    for (int64_t i = 0; i < set->N; i++) {
        const wrpo_record *record = &set->data->records[i];
        const char *why = NULL;
        wrpo__as_loss(record, r);
        for (int k = 0; k < 2 && !why; k++) {          /* alpha of the first step, and its end value */
            const double alpha = wrpo_alpha(d->alpha_schedule, d->alpha_power, d->alpha, k, 1);
            wrpo_loss(&d->loss, alpha, r, record->count, 1, &why);
        }
        if (why) wrpo__fail(ctx, WRPO_E_FORMAT, "record \"%s\" (line %lld): %s", record->prompt_id,
                            (long long)record->line, why);
    }
}
/* SFT scores the sources alone, so the other responses are not computed: a view of the data without them.
   Sources come first in a record. */
static const wrpo_data *wrpo__only_sources(wrpo__arena *arena, const wrpo_data *data) {
    wrpo_data *view = WRPO__NEW(arena, wrpo_data);
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
    wrpo__check_roles(t->ctx, set, &t->desc);
    wrpo__check_data(t->ctx, &t->model->config, set->data, 0, set->N);
    const int64_t rows = wrpo__run_rows(&t->model->config, set->data, 0, set->N, t->desc.micro_tokens);
    t->rows = WRPO__MAX(t->rows, rows);
    if (wrpo__rules[t->desc.loss.method].reference)
        set->ref = wrpo__alloc(t->arena, (size_t)set->N * (size_t)set->K, sizeof *set->ref);
}
static void wrpo__trainer_gone(void *policy) { ((wrpo_model *)policy)->trainers--; }
/* 1. Settings and data checked; nothing large is allocated yet. */
static wrpo_trainer *wrpo__trainer_begin(wrpo__arena *arena, wrpo_model *policy, const wrpo_data *data,
                                         const wrpo_train_desc *desc, bool train) {
    wrpo_trainer *t = WRPO__NEW(arena, wrpo_trainer);
    *t = (wrpo_trainer){.ctx = arena->ctx, .arena = arena, .model = policy, .desc = wrpo_train_defaults(desc)};
    if (train && policy->frozen && !policy->lora)
        wrpo__fail(t->ctx, WRPO_E_ARG,
                   "the model was loaded frozen (wrpo_model_desc): without an adapter it cannot be trained");
    const wrpo_train_desc *d = &t->desc;
    wrpo__on_free(arena, wrpo__trainer_gone, policy);
    policy->trainers++;
    wrpo__train_check(t->ctx, d);
    wrpo__set_begin(t, &t->train, data);
    wrpo__set_begin(t, &t->eval, d->eval_data);
    const int64_t N = t->train.N;
    t->micro = d->batch_size / d->accumulation;
    t->steps_per_epoch = WRPO__MAX(wrpo__div_up(N, t->micro) / d->accumulation, 1);
    const double steps = ceil(d->epochs * (double)t->steps_per_epoch - 1e-9);
    t->T = d->max_steps ? d->max_steps : WRPO__MAX((int64_t)steps, 1);
    t->order = wrpo__alloc(arena, (size_t)N, sizeof *t->order);
    t->weight = wrpo__alloc(arena, (size_t)WRPO__MIN(N, d->batch_size), sizeof *t->weight);
    t->order_epoch = -1;
    return t;
}
/* 2. The reference's log-probs, before the memory of training is taken. ref: the policy as it is, or another model. */
static void wrpo__set_reference(wrpo__arena *temp, const wrpo_trainer *t, const wrpo__set *set, wrpo_model *ref) {
    wrpo__logprobs(temp, ref, set->data, 0, set->N, t->desc.micro_tokens, set->ref, set->K, NULL);
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
    t->run = wrpo__run_new(t->arena, t->model, &shape);
    t->start = wrpo__now();
    if (!train) return;
    const size_t count = (size_t)t->model->count, bytes = wrpo_moments_bytes(t->desc.moments, t->model->count);
    t->grads = wrpo__device_alloc(t->arena, wrpo__mul(t->ctx, count, sizeof *t->grads), "gradients");
    t->exp_avg = wrpo__device_alloc(t->arena, bytes, "first moments");
    t->exp_avg_sq = wrpo__device_alloc(t->arena, bytes, "second moments");
    t->sumsq = wrpo__device_alloc(t->arena, sizeof *t->sumsq, "gradient norm");
    be->zero(t->ctx->dev, t->exp_avg, bytes);
    be->zero(t->ctx->dev, t->exp_avg_sq, bytes);
}
static wrpo_trainer *wrpo__trainer_new(wrpo__arena *arena, wrpo_model *policy, const wrpo_data *data,
                                       const wrpo_train_desc *desc) {
    wrpo_trainer *t = wrpo__trainer_begin(arena, policy, data, desc, true);
    const wrpo_train_desc *d = &t->desc;
    if (d->out_dir || d->ref_dir || d->resume || d->save.dir)
        wrpo__fail(t->ctx, WRPO_E_ARG, "wrpo_trainer_new works in memory: want out_dir, ref_dir, resume and save.dir "
                   "of NULL, or wrpo_trainer_open");
    wrpo__arena *temp = wrpo__sub_arena(arena);
    if (t->train.ref) wrpo__set_reference(temp, t, &t->train, policy);
    if (t->eval.ref) wrpo__set_reference(temp, t, &t->eval, policy);
    wrpo__arena_clear(temp);
    wrpo__trainer_memory(t, true, d->recompute, false);
    return t;
}
WRPO_API wrpo_result wrpo_trainer_new(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc,
                                      wrpo_trainer **out) {
    *out = NULL;
    WRPO__CALL(policy->ctx, wrpo__arena_new(policy->ctx), false,
               *out = wrpo__trainer_new(wrpo__current, policy, data, desc));
    return wrpo__end(&wrpo__entry);
}
WRPO_API void wrpo_trainer_free(wrpo_trainer *t) {
    if (t) wrpo__arena_free(t->arena);
}

/* ---- metrics: means over records, under the names of the authors' trainer. Only the loss has record.weight ---- */
typedef struct wrpo__tally { wrpo_metrics m; double chosen, chosen_rows, rejected, rejected_rows; } wrpo__tally;
static double wrpo__wins(double gap, double w) { return isnan(gap) ? NAN : w * (gap > 0); }
/* Adds a record of weight w, except for its loss. r: its responses with their log-probs; packed: where they are. */
static void wrpo__tally_add(wrpo__tally *t, const wrpo__run *run, const wrpo_loss_desc *d, double alpha,
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
    m->rewards_accuracies += wrpo__wins(weighted - rejected, w);
    m->rewards_source_accuracies += wrpo__wins(source, w);
    m->rewards_target_accuracies += wrpo__wins(target, w);
}
static void wrpo__tally_end(wrpo__tally *tally, const wrpo_trainer *t, double alpha, double begin) {
    wrpo_metrics *m = &tally->m;
    m->logits_chosen = tally->chosen / tally->chosen_rows;
    m->logits_rejected = tally->rejected / tally->rejected_rows;
    m->cur_alpha = t->desc.loss.method == WRPO_METHOD_WRPO ? alpha : NAN;
    m->epoch = (double)t->k / (double)t->steps_per_epoch;
    m->seconds = wrpo__now() - t->start;
    m->tokens_per_second = (double)m->tokens / WRPO__MAX(wrpo__now() - begin, 1e-9);
}

/* ---- one pass over records: log-probs, losses, metrics and, in training, gradients ----
   list[i]: a record of the set (NULL: i itself); weight[i]: its share of the loss (NULL: 1 / count). */
static void wrpo__pass(wrpo_trainer *t, const wrpo__set *set, const int64_t *list, const double *weight, int64_t count,
                       double alpha, bool train, wrpo__tally *tally) {
    wrpo__run *r = t->run;
    const wrpo_loss_desc *d = &t->desc.loss;
    const bool sft = d->method == WRPO_METHOD_SFT;
    wrpo_response *y = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *y);
    double scored = 0;
    r->dropout = (wrpo_dropout){.p = train && t->model->lora ? (float)t->model->lora->desc.dropout : 0,
                                .seed = wrpo__random64(t->desc.seed, UINT64_MAX, (uint64_t)t->k)};
    wrpo__sum_head(r);
    for (int64_t i = 0; sft && i < count; i++) {       /* SFT's mean is over the batch's tokens */
        const wrpo_record *record = &set->data->records[list ? list[i] : i];
        wrpo__as_loss(record, y);
        scored += wrpo__sft_tokens(y, record->count);
    }
    for (int64_t i = 0, next; i < count;) {            /* micro-batches */
        next = wrpo__pack_some(r, set->data, list, i, count, t->desc.micro_tokens);
        wrpo__forward(r, true);                                                /* log pi of every scored token */
        for (const wrpo__location *packed = r->packed; i < next; i++) {
            const int64_t index = list ? list[i] : i;
            const wrpo_record *record = &set->data->records[index];
            const char *why = NULL;
            wrpo__as_loss(record, y);
            for (int k = 0; k < record->count; k++) {
                y[k].logp = wrpo__sum_logps(r, &record->responses[k], &packed[k]);
                y[k].ref = set->ref ? set->ref[index * set->K + k] : 0;
            }
            const double loss = wrpo_loss(d, alpha, y, record->count, scored, &why);        /* WRPO is here: >>loss */
            if (!isfinite(loss))
                wrpo__fail(t->ctx, WRPO_E_NOT_FINITE, "step %lld: record \"%s\" (line %lld): %s",
                           (long long)t->k + train, record->prompt_id, (long long)record->line,
                           why ? why : "the loss is not a finite number");
            const double share = weight ? weight[i] : 1 / (double)count;       /* of the batch's mean */
            const double w = record->weight * (sft ? 1 : share);               /* dL/dloss; sft's loss is a share */
            for (int k = 0; train && k < record->count; k++)                   /* dL/dlogp of each of its tokens */
                for (int64_t j = 0; j < y[k].tokens; j++) r->h_coef[packed[k].target + j] = (float)(w * y[k].dlogp);
            tally->m.loss += w * loss;
            wrpo__tally_add(tally, r, d, alpha, record, y, packed, share);
            packed += record->count;
        }
        tally->m.tokens += r->n;
        if (train) wrpo__backward(r, t->grads);
        r->dropout.row += r->n;
    }
    tally->m.records = count;
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
    const int64_t parts = wrpo__div_up(count, t->micro);
    for (int64_t i = 0; i < count; i++) {
        const int64_t part = i / t->micro, size = WRPO__MIN(t->micro, count - part * t->micro);
        t->weight[i] = 1 / ((double)parts * (double)size);
    }
    *list = t->order + first;
    return count;
}
/* AdamW on every run of weights that are contiguous and decay alike: matrices decay, norms and biases do not. */
static void wrpo__update(wrpo_trainer *t, double lr, double grad_scale) {
    const wrpo_train_desc *d = &t->desc;
    const wrpo_backend *be = t->ctx->desc.backend;
    const double steps = (double)(t->k + 1);
    wrpo_adamw step = {.lr = (float)lr, .beta1 = (float)d->beta1, .beta2 = (float)d->beta2, .eps = (float)d->eps,
                       .grad_scale = (float)grad_scale, .moments = d->moments,
                       .correction1 = 1 - pow(d->beta1, steps), .correction2 = sqrt(1 - pow(d->beta2, steps))};
    for (int64_t i = 0, end, size; i < t->model->n_weights; i = end) {
        const wrpo_weight *w = &t->model->weights[i];
        end = wrpo__weight_run(t->model, i, &size);
        if (w->at < 0) continue;                       /* frozen */
        const size_t offset = wrpo_moments_bytes(d->moments, w->at);
        step.weight_decay = w->decay ? (float)d->weight_decay : 0;
        step.seed = wrpo__random64(d->seed, (uint64_t)t->k, (uint64_t)w->at);
        be->adamw(t->ctx->dev, w->data, w->dtype == WRPO_DTYPE_BF16 ? t->model->low + w->at : NULL,
                  t->exp_avg + offset, t->exp_avg_sq + offset, t->grads + w->at, size, &step);
    }
}
static wrpo_metrics wrpo__step(wrpo_trainer *t) {
    wrpo_ctx *ctx = t->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    const wrpo_train_desc *d = &t->desc;
    wrpo__tally tally = {.m = {.step = t->k + 1, .steps = t->T}};
    const int64_t *list;
    double sumsq = 0;
    const double begin = wrpo__now();
    if (t->k >= t->T) wrpo__fail(ctx, WRPO_E_ARG, "all %lld steps are done", (long long)t->T);

    /* 1. The schedules' values for step k = 0 ... T - 1: a rising alpha never has its end value, and with warm-up the
          rate of the first step is 0. The records of the batch. */
    const int64_t warmup = (int64_t)ceil(d->warmup_ratio * (double)t->T - 1e-9);
    const double alpha = wrpo_alpha(d->alpha_schedule, d->alpha_power, d->alpha, t->k, t->T);
    const double lr = d->learning_rate * wrpo_lr_factor(d->lr_schedule, warmup, t->k, t->T) + 0.0;      /* no -0 */
    const int64_t count = wrpo__next_batch(t, &list);
    /* 2. Gradients of the batch's loss. */
    be->zero(ctx->dev, t->grads, (size_t)t->model->count * sizeof *t->grads);
    wrpo__pass(t, &t->train, list, t->weight, count, alpha, true, &tally);
    /* 3. Their global norm. Above max_grad_norm they are scaled down to it: a factor in AdamW. */
    be->zero(ctx->dev, t->sumsq, sizeof *t->sumsq);
    be->sumsq(ctx->dev, t->sumsq, t->grads, t->model->count);
    be->get(ctx->dev, &sumsq, t->sumsq, sizeof sumsq);
    wrpo__sync(ctx);
    const double norm = sqrt(sumsq), clip = d->max_grad_norm > 0 ? d->max_grad_norm / (norm + 1e-6) : 1;
    if (!isfinite(norm))
        wrpo__fail(ctx, WRPO_E_NOT_FINITE, "step %lld: the gradient is not finite (batch of %lld records, the first is "
                   "\"%s\")", (long long)t->k + 1, (long long)count, t->train.data->records[list[0]].prompt_id);
    /* 4. The update. */
    wrpo__update(t, lr, WRPO__MIN(1, clip));
    wrpo__sync(ctx);
    t->k++;

    wrpo__tally_end(&tally, t, alpha, begin);
    tally.m.grad_norm = norm;
    tally.m.learning_rate = lr;
    if (t->log) t->log(t, &tally.m, "");
    return tally.m;
}
WRPO_API wrpo_result wrpo_trainer_step(wrpo_trainer *t, wrpo_metrics *m) {
    WRPO__CALL(t->ctx, wrpo__arena_new(t->ctx), true, *m = wrpo__step(t));
    return wrpo__end(&wrpo__entry);
}
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
        wrpo__fail(t->ctx, WRPO_E_ARG,
                   "wrpo_trainer_eval: want the training data or desc.eval_data, whose reference is known");
    const double alpha = wrpo_alpha(t->desc.alpha_schedule, t->desc.alpha_power, t->desc.alpha, t->k, t->T);
    const wrpo_metrics m = wrpo__evaluate(t, data == t->train.given ? &t->train : &t->eval, alpha);
    if (t->log) t->log(t, &m, "eval_");
    return m;
}
WRPO_API wrpo_result wrpo_trainer_eval(wrpo_trainer *t, const wrpo_data *data, wrpo_metrics *m) {
    WRPO__CALL(t->ctx, wrpo__arena_new(t->ctx), true, *m = wrpo__trainer_eval(t, data));
    return wrpo__end(&wrpo__entry);
}

#endif
