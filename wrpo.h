/* wrpo.h - Weighted-Reward Preference Optimization in one C header. MIT licence, at the end.

   --------------------------------------------------------------------------------------------- >>top
   WRPO (Yang et al., ICLR 2025) fuses what different language models are good at into one of them, with no
   alignment of vocabularies: source models answer the prompts, a reward model picks the best answer y_ws; the
   model itself gives its best y_wt and its worst y_l; preference optimisation on such quadruples then moves it
   from its own good answers toward the sources'. This file takes a Hugging Face checkpoint and a JSONL file of
   quadruples and gives back a fine-tuned Hugging Face checkpoint, on the CPU, in float or bfloat16, without Python.

   In one C file of your project (the only dependency is stb_ds: Debian's libstb-dev):

       #define WRPO_IMPLEMENTATION
       #include "wrpo.h"

   and where you use it:

       #include "wrpo.h"
       wrpo_ctx *ctx; wrpo_model *model; wrpo_tokenizer *tok; wrpo_data *data; wrpo_metrics last;
       if (wrpo_open(NULL, &ctx)
        || wrpo_model_load(ctx, &(wrpo_model_desc){.dir = "SmolLM2-135M-Instruct"}, &model)
        || wrpo_tokenizer_load(ctx, "SmolLM2-135M-Instruct", &tok)
        || wrpo_data_load(tok, &(wrpo_data_desc){.path = "quads.jsonl"}, &data)
        || wrpo_train(model, data, &(wrpo_train_desc){.batch_size = 16, .learning_rate = 1e-6}, &last)
        || wrpo_model_save(model, &(wrpo_save_desc){.dir = "fused"}))
           fprintf(stderr, "%s\n", wrpo_last_error(ctx)->text);

   Build:  cc -O2 -fopenmp main.c wrpo_impl.c -lm      without -fopenmp: one thread. No other flag is needed:
           the hot loops pick AVX-512, AVX2 or portable code when the program runs.

   Options, defined before the implementation:
       WRPO_API                  linkage of the public functions (extern); static makes the library private
   At run time:
       WRPO_CPU                  environment: avx512, avx2 or generic, to force a path (see >>cpu)

   Does NOT: train in float16, use other GPUs than NVIDIA's (wrpo_cuda.cu beside this file), read GGUF or pickled weights, quantise, run
   mixture-of-experts or encoder models, or download anything. What a checkpoint asks for and this file does not
   compute is refused by name, never ignored. No function exits, prints, or keeps state outside a context.

   Contents (search for the tag)
       >>api         every public declaration, documented
       >>base        errors, arenas, text, files, threads, random numbers
       >>loss        WRPO and its family, on one page; schedules of alpha and of the learning rate
       >>ops         every op in plain C, forward above backward: what each one means
       >>layout      the table of weights; memory measured, then assigned
       >>model       the decoder, forward and backward, over packed records with a shared prompt
       >>step        records of token ids -> packed batch -> log-probs -> loss -> gradients -> AdamW
       ---- Stop here if you only want the algorithm ----
       >>json >>tensors >>checkpoint >>token >>chat >>data        from files to token ids, and back
       >>generate    samples, over a cache of keys and values
       >>reward      reward models
       >>run         memory plan, reference cache, metrics, resume, the loop with files
       >>recipe      candidates to records, splits, win rates
       >>cpu         the fast ops: dispatch, SIMD, products, attention
       >>end         the licence                                                                            */
/* ---------------------------------------------------------------------------------------------- >>api
   Every public declaration. Stop at "Stop here" if you only want to use the library.

   Conventions. {0} is valid for every desc struct and means the documented default. 0 (WRPO_OK) is
   success everywhere, so calls chain with ||. An out-parameter comes last; after a failure handles, arrays,
   texts and their counts are NULL / 0, structs hold nothing to be read. The sentence that explains a failure
   is in wrpo_last_error(ctx). Text is UTF-8. A context and everything made from it belong to one thread at a
   time; different contexts are independent (but for the seed of stb_ds's maps, a race that shows in no result).
   Shapes are row-major and use these letters:
     n  rows (tokens) in a packed batch     D  hidden_size            V  vocab_size      L  layers
     H  query heads    G  key/value heads   d  head_dim               I  intermediate_size              */
#ifndef WRPO_H
#define WRPO_H
#define WRPO_VERSION "0.1.0"
#if defined(WRPO_IMPLEMENTATION) && !defined(_FEATURES_H) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L      /* mmap, rename, fsync under -std=c11 */
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifndef WRPO_API                     /* -DWRPO_API=static makes the library private to one file */
#define WRPO_API extern
#endif
#define WRPO_ZERO (-0.0)              /* an explicit zero in a desc, where 0 means "the default" */
#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ---- */
typedef enum wrpo_result {
    WRPO_OK,
    WRPO_E_ARG,                      /* an impossible option or argument */
    WRPO_E_MEMORY,                   /* the allocator returned NULL, or a size does not fit */
    WRPO_E_IO,                       /* a file cannot be opened, read, written or renamed */
    WRPO_E_FORMAT,                   /* a file says something it must not say */
    WRPO_E_UNSUPPORTED,              /* valid, but not something this library computes */
    WRPO_E_DEVICE,                   /* the backend failed */
    WRPO_E_NOT_FINITE,               /* NaN or infinity where a number is needed */
    WRPO_E_STOPPED                   /* a callback asked to stop */
} wrpo_result;

typedef struct wrpo_error {          /* of the context's last failed call */
    wrpo_result code;
    int64_t line, column;            /* in the text file it is about, from 1; 0 where there is none */
    char text[512];                  /* "model.safetensors: lm_head.weight: want [32000,4096], found [32000,2048]" */
} wrpo_error;

/* ---- context: all state; no globals ---- */
typedef enum wrpo_dtype { WRPO_DTYPE_DEFAULT, WRPO_DTYPE_F32, WRPO_DTYPE_BF16, WRPO_DTYPE_F16 } wrpo_dtype;
typedef struct wrpo_ctx wrpo_ctx;
typedef struct wrpo_backend wrpo_backend;
typedef struct wrpo_allocator {      /* both functions or neither; {0} = malloc and free */
    void *(*alloc)(size_t n, void *user);              /* NULL = out of memory, which is survived */
    void (*free)(void *p, void *user);                 /* p is never NULL */
    void *user;
} wrpo_allocator;
typedef enum wrpo_level { WRPO_LOG_INFO, WRPO_LOG_WARN } wrpo_level;
typedef struct wrpo_logger { void (*fn)(wrpo_level level, const char *text, void *user); void *user; } wrpo_logger;
typedef struct wrpo_desc {
    const wrpo_backend *backend;     /* 0 = wrpo_backend_cpu() */
    int threads;                     /* 0 = all that OpenMP offers; 1 without OpenMP */
    wrpo_dtype dtype;                /* of the products' arithmetic, and of the matrices of models that are trained; 0 = the
                                        backend's own: F32 on the CPU. BF16: a machine that multiplies bfloat16 in hardware rounds the
                                        factors to it, sums are float, and the optimizer works on float masters, of which the matrices
                                        are the high halves */
    size_t memory_limit;             /* bytes that a training run may make the context hold; 0 = what the machine or device has free */
    wrpo_allocator memory;
    wrpo_logger log;                 /* 0 = silent; wrpo_log_stderr is one */
    wrpo_error *why;                 /* filled if wrpo_open fails, when there is no context to ask; may be NULL */
} wrpo_desc;
WRPO_API wrpo_result wrpo_open(const wrpo_desc *desc /* NULL = {0} */, wrpo_ctx **out);
WRPO_API void wrpo_close(wrpo_ctx *ctx);               /* after everything made from it; NULL is allowed */
WRPO_API const wrpo_error *wrpo_last_error(const wrpo_ctx *ctx);   /* NULL ctx: "out of memory" */
WRPO_API void wrpo_free(wrpo_ctx *ctx, void *p);       /* text and arrays that the library handed out; NULL is allowed */
WRPO_API size_t wrpo_memory_peak(const wrpo_ctx *ctx); /* the most bytes held at once: its allocator's and a device's, but for the CPU backend's 4 MiB and 2 MiB a thread */
WRPO_API void wrpo_log_stderr(wrpo_level level, const char *text, void *user);

/* ---- JSON (RFC 8259, strict) ---- */
typedef enum wrpo_json_kind { WRPO_JSON_NULL, WRPO_JSON_BOOL, WRPO_JSON_NUMBER, WRPO_JSON_STRING,
                              WRPO_JSON_ARRAY, WRPO_JSON_OBJECT } wrpo_json_kind;
typedef struct wrpo_json {           /* read-only; lives until wrpo_json_free of its root */
    wrpo_json_kind kind;
    bool boolean;
    bool exact;                      /* NUMBER: an integer without fraction or exponent that fits `integer` */
    int32_t line, column;            /* where the value begins, from 1 */
    const char *key; size_t key_size;    /* its name in the object around it; unescaped, NUL-terminated */
    const char *text; size_t size;   /* STRING: unescaped, NUL-terminated (may hold NULs); NUMBER: as written */
    double number; int64_t integer;
    int64_t count;                   /* ARRAY, OBJECT: members */
    struct wrpo_json *child, *next;  /* first member; next sibling */
} wrpo_json;
/* name: what errors call the text. A duplicate key is an error. */
WRPO_API wrpo_result wrpo_json_parse(wrpo_ctx *ctx, const char *name, const char *text, size_t size, wrpo_json **out);
WRPO_API void wrpo_json_free(wrpo_ctx *ctx, wrpo_json *root);
WRPO_API const wrpo_json *wrpo_json_get(const wrpo_json *object, const char *key);   /* NULL: absent, or no object */
WRPO_API wrpo_result wrpo_json_quote(wrpo_ctx *ctx, const char *text, size_t size, char **out);  /* "..." with escapes; wrpo_free */
WRPO_API wrpo_result wrpo_json_text(wrpo_ctx *ctx, const wrpo_json *value, char **out);   /* one line, numbers as they were written; wrpo_free */

/* ---- safetensors: a file, a shard index or a directory; memory-mapped ---- */
typedef struct wrpo_tensors wrpo_tensors;
typedef struct wrpo_tensor_info {    /* pointers live as long as the wrpo_tensors */
    const char *name, *dtype;        /* dtype as written: "F32", "BF16", ... */
    const char *file;                /* the file it lies in */
    int ndim; const int64_t *shape;
    int64_t count; size_t bytes;
    const void *data;                /* not aligned; little-endian */
} wrpo_tensor_info;
WRPO_API wrpo_result wrpo_tensors_open(wrpo_ctx *ctx, const char *path, wrpo_tensors **out);
WRPO_API void wrpo_tensors_close(wrpo_tensors *t);
WRPO_API int64_t wrpo_tensors_count(const wrpo_tensors *t);
WRPO_API const wrpo_tensor_info *wrpo_tensors_at(const wrpo_tensors *t, int64_t i);            /* sorted by name */
WRPO_API const wrpo_tensor_info *wrpo_tensors_find(const wrpo_tensors *t, const char *name);   /* NULL: absent */

/* ---- tokenizer and chat template: tokenizer.json, tokenizer_config.json, chat_template.jinja ---- */
typedef struct wrpo_tokenizer wrpo_tokenizer;
typedef enum wrpo_tokenizer_flags {
    WRPO_TOKENIZER_SPECIAL = 1,         /* run the post-processor (adds BOS and the like) */
    WRPO_TOKENIZER_CONTINUE = 2         /* the text continues an earlier one: nothing is prepended to it */
} wrpo_tokenizer_flags;
WRPO_API wrpo_result wrpo_tokenizer_load(wrpo_ctx *ctx, const char *dir, wrpo_tokenizer **out);
WRPO_API void wrpo_tokenizer_free(wrpo_tokenizer *tok);
WRPO_API int64_t wrpo_tokenizer_size(const wrpo_tokenizer *tok);      /* highest id + 1 */
WRPO_API int32_t wrpo_tokenizer_bos(const wrpo_tokenizer *tok);       /* -1: none */
WRPO_API int32_t wrpo_tokenizer_eos(const wrpo_tokenizer *tok);       /* -1: none */
WRPO_API wrpo_result wrpo_tokenizer_encode(wrpo_tokenizer *tok, const char *text, size_t size, unsigned flags,
                                 int32_t **ids, int64_t *count);      /* wrpo_free(ids) */
WRPO_API wrpo_result wrpo_tokenizer_decode(wrpo_tokenizer *tok, const int32_t *ids, int64_t count, bool skip_special,
                                 char **text, size_t *size);          /* wrpo_free(text); NUL-terminated */
/* Renders the checkpoint's own template. messages: array of {role, content, ...}; kwargs: object of extra
   variables, or NULL. A template's raise_exception is WRPO_E_FORMAT with its sentence. wrpo_free(text). */
WRPO_API wrpo_result wrpo_tokenizer_chat(wrpo_tokenizer *tok, const wrpo_json *messages, bool add_generation_prompt,
                               const wrpo_json *kwargs, char **text, size_t *size);

/* ---- model: a Hugging Face directory in, a Hugging Face directory out ---- */
typedef enum wrpo_rope_type { WRPO_ROPE_DEFAULT, WRPO_ROPE_LINEAR, WRPO_ROPE_LLAMA3, WRPO_ROPE_YARN,
                              WRPO_ROPE_DYNAMIC, WRPO_ROPE_LONGROPE } wrpo_rope_type;
WRPO_API const char *wrpo_rope_name(int i);            /* "default", "linear", ..., in the order of the enum; NULL past the last */
typedef struct wrpo_rope {           /* transformers' rope_parameters; zero where the type has no such number */
    wrpo_rope_type type;
    int64_t dims;                    /* numbers of a head that turn; 0 = head_dim (Phi-3's partial_rotary_factor) */
    double theta, factor, low_freq_factor, high_freq_factor;
    double beta_fast, beta_slow, attention_factor; bool yarn_truncate;
    int64_t original_max_position_embeddings;
    float short_factor[256], long_factor[256];         /* longrope: [dims / 2], of sequences within the original length and beyond */
} wrpo_rope;
typedef enum wrpo_head { WRPO_HEAD_LM, WRPO_HEAD_SCORE, WRPO_HEAD_VALUE, WRPO_HEAD_GATED } wrpo_head;
typedef struct wrpo_config {         /* config.json, old and new spellings, defaults resolved */
    char model_type[32];             /* "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "internlm2" */
    int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
    int64_t num_attention_heads, num_key_value_heads, head_dim;
    int64_t max_position_embeddings;
    int64_t sliding_window;          /* 0 = none: keys at most sliding_window - 1 positions back are seen */
    uint64_t sliding_layers[8];      /* bit l: layer l has the window; the others attend in full. Up to 512 layers */
    double rms_norm_eps, initializer_range;
    wrpo_rope rope;
    bool attention_bias;             /* q, k, v */
    bool output_bias;                /* o */
    bool qk_norm;
    bool tie_word_embeddings;
    bool gelu;                       /* the MLP's gate: gelu_tanh in place of silu */
    bool norm_plus_one;              /* norms scale by 1 + w (not those of q and k) */
    bool post_norms;                 /* norms on what attention and MLP add to the stream */
    bool scale_embeddings;           /* by sqrt(D), rounded to the dtype of the context */
    double query_pre_attn_scalar;    /* scores are scaled by its -0.5th power; 0 = head_dim */
    double attn_logit_softcapping, final_logit_softcapping;   /* x -> cap tanh(x / cap); 0 = none */
    wrpo_dtype dtype;                /* as the checkpoint states */
    wrpo_head head;                  /* by "architectures": of a language model, or of a reward model (see there) */
    int64_t pad_token_id, reward_token_id;             /* of reward models; -1 = none */
    double gating_temperature;
} wrpo_config;
WRPO_API wrpo_result wrpo_config_load(wrpo_ctx *ctx, const char *path /* config.json or its directory */, wrpo_config *out);

typedef struct wrpo_model wrpo_model;
typedef struct wrpo_model_desc {
    const char *dir;
    bool frozen;                     /* not to be trained: matrices stay as the file has them, mapped into memory where they can be */
} wrpo_model_desc;
typedef struct wrpo_init_desc {      /* random weights: N(0, initializer_range), norms that scale by 1, biases 0 */
    const char *config;              /* config.json or its directory */
    const char *tokenizer_dir;       /* side files that a save copies; may be NULL */
    uint64_t seed;                   /* counter-based: a tensor's numbers depend on seed, its name and the index */
    wrpo_dtype dtype;                /* what a save writes by default; 0 = F32 */
} wrpo_init_desc;
typedef struct wrpo_save_desc {
    const char *dir;                 /* made if absent */
    wrpo_dtype dtype;                /* 0 = as loaded */
    int64_t max_shard_size;          /* bytes; 0 = 5e9, as transformers */
} wrpo_save_desc;
typedef struct wrpo_weight {         /* one tensor of the table of weights; cols 1 and vector true for norms and biases */
    const char *name;                /* "model.layers.0.self_attn.q_proj.weight": in the Llama layout, whatever the family's files call it */
    int64_t rows, cols; bool vector;
    bool decay;                      /* takes weight decay: all but norms and biases */
    wrpo_dtype dtype;                /* of data: F32, or BF16 for matrices only */
    void *data;                      /* the backend's memory; read-only in a frozen model */
    int64_t at;                      /* its place in arrays that mirror all weights (gradients, moments), in numbers */
} wrpo_weight;
WRPO_API wrpo_result wrpo_model_load(wrpo_ctx *ctx, const wrpo_model_desc *desc, wrpo_model **out);
WRPO_API wrpo_result wrpo_model_init(wrpo_ctx *ctx, const wrpo_init_desc *desc, wrpo_model **out);
/* Random weights for a config that the caller filled in: no file is read. */
WRPO_API wrpo_result wrpo_model_new(wrpo_ctx *ctx, const wrpo_config *config, uint64_t seed, wrpo_model **out);
WRPO_API wrpo_result wrpo_model_save(wrpo_model *model, const wrpo_save_desc *desc);
WRPO_API void wrpo_model_free(wrpo_model *model);
/* Config and tensors against each other, without reading a weight: what a load would say, in milliseconds. */
WRPO_API wrpo_result wrpo_model_check(wrpo_ctx *ctx, const char *dir, wrpo_config *config, int64_t *parameters, wrpo_dtype *dtype);
WRPO_API const wrpo_config *wrpo_model_config(const wrpo_model *model);
WRPO_API int64_t wrpo_model_weights(const wrpo_model *model, const wrpo_weight **out);   /* the table; its length */
WRPO_API int64_t wrpo_model_parameters(const wrpo_model *model);                         /* tied weights once */

/* ---- data: JSON lines of {prompt, chosen, rejected} or {messages} ---- */
typedef enum wrpo_role { WRPO_ROLE_SOURCE, WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED } wrpo_role;
typedef enum wrpo_tokenization { WRPO_TOKENIZATION_CLEAN, WRPO_TOKENIZATION_AUTHORS } wrpo_tokenization;
typedef struct wrpo_data wrpo_data;
typedef struct wrpo_data_desc {
    const char *path;
    wrpo_tokenization tokenization;
    int64_t max_length, max_prompt_length;   /* tokens; 0 = 2048, 1800 */
    int64_t limit;                   /* read only the first records; 0 = all */
} wrpo_data_desc;
typedef struct wrpo_tokens {         /* one response: ids[0..count), of which ids[first..count) are scored */
    wrpo_role role;
    const int32_t *ids; int64_t count, first;
    double weight;                   /* among the sources of a record, where it sums to 1; of others 0 = 1 */
    int pair;                        /* pair methods: compared with the rejected responses of the same number */
} wrpo_tokens;
typedef struct wrpo_record {         /* a view; lives as long as the data */
    const char *prompt_id;           /* "line 7" where the file has none */
    int64_t line;
    const int32_t *prompt; int64_t prompt_count;
    const wrpo_tokens *responses; int count;   /* sources first, then the target's, then the rejected ones */
    double weight;                   /* of its loss in the batch's mean; 0 = 1 (WRPO_ZERO for none) */
} wrpo_record;
typedef struct wrpo_data_stats {
    int64_t records, prompt_tokens, response_tokens, longest;      /* longest: prompt + longest response */
    int64_t truncated_prompts, truncated_responses;
} wrpo_data_stats;
/* One line is one record. The keys, each with its forms (>>data):
     prompt, chosen, rejected    a quadruple (chosen: source, target) or a pair; with K sources chosen has K + 1 answers, and
     weights                     K numbers, divided by their sum, says what each counts for (absent: the same)
     prompt, pairs               FuseRL: [{chosen, rejected, weight}, ...], a source's own best and worst each; weights likewise
     messages                    SFT
     tools, chat_template_kwargs an array and an object, for the chat template beside the messages
     weight                      what the record's loss counts for (EAST), at least 0; 1 if absent                             */
WRPO_API wrpo_result wrpo_data_load(wrpo_tokenizer *tok, const wrpo_data_desc *desc, wrpo_data **out);
/* Records that are token ids already; everything is copied. */
WRPO_API wrpo_result wrpo_data_from_ids(wrpo_ctx *ctx, const wrpo_record *records, int64_t count, wrpo_data **out);
WRPO_API void wrpo_data_free(wrpo_data *data);
WRPO_API int64_t wrpo_data_count(const wrpo_data *data);
WRPO_API wrpo_record wrpo_data_record(const wrpo_data *data, int64_t i);
WRPO_API wrpo_data_stats wrpo_data_get_stats(const wrpo_data *data);

/* ---- the algorithm: pure, host, double. Log-probs in; loss and its derivatives out ---- */
typedef enum wrpo_method { WRPO_METHOD_WRPO, WRPO_METHOD_DPO, WRPO_METHOD_IPO, WRPO_METHOD_HINGE,
                           WRPO_METHOD_SIMPO, WRPO_METHOD_DPO_NORM, WRPO_METHOD_SFT } wrpo_method;
typedef enum wrpo_pair { WRPO_PAIR_TARGET, WRPO_PAIR_SOURCE, WRPO_PAIR_BOTH } wrpo_pair;
typedef struct wrpo_loss_desc {
    wrpo_method method;
    wrpo_pair pair;                  /* which (chosen, rejected) a pair method takes of a quadruple */
    double beta;                     /* 0 = 0.01; 10 for simpo and dpo-norm */
    double label_smoothing;          /* eps in [0, 0.5) */
    double gamma_ratio;              /* simpo: gamma / beta; 0 = 0.3 */
    bool ipo_sum;                    /* ipo on sums of log-probs in place of means over tokens */
} wrpo_loss_desc;
typedef struct wrpo_response {       /* one response of a record, as the loss sees it */
    wrpo_role role;
    double weight;                   /* of a source among the sources; 1 if there is one */
    int64_t tokens;                  /* scored tokens |y| */
    double logp, ref;                /* log pi(y|x) and log ref(y|x): sums over those tokens */
    double dlogp;                    /* out: dL / d logp */
    int pair;                        /* pair methods compare with the rejected responses of the same number; 0 where there is one pair */
} wrpo_response;
/* Loss of one record and, in r[i].dlogp, its derivatives. WRPO (Yang et al., ICLR 2025, eq. 5):
     z = beta (alpha sum_i w_i d_si + (1 - alpha) d_t - d_l),  d = logp - ref,  L = -log sigmoid(z)
   Several sources share by weight; several rejected responses count as their mean, of each pair for a pair method. With a
   missing role (a pair without source, say) the method must not need it: otherwise *why says so, dlogp is 0 and NaN is
   returned. A record without target is pairs of sources: a pair method takes them, whatever desc->pair. sft_tokens: the denominator of SFT's mean (scored tokens of the whole batch). */
WRPO_API double wrpo_loss(const wrpo_loss_desc *desc, double alpha, wrpo_response *r, int n, double sft_tokens, const char **why);

typedef enum wrpo_alpha_schedule { WRPO_ALPHA_SCHEDULE_LINEAR, WRPO_ALPHA_SCHEDULE_CONSTANT, WRPO_ALPHA_SCHEDULE_POWER, WRPO_ALPHA_SCHEDULE_COSINE } wrpo_alpha_schedule;
typedef enum wrpo_lr_schedule { WRPO_LR_SCHEDULE_COSINE, WRPO_LR_SCHEDULE_LINEAR, WRPO_LR_SCHEDULE_CONSTANT } wrpo_lr_schedule;
/* The names on the command line ("wrpo", "dpo-norm", ...), in the order of the enums; NULL past the last. */
WRPO_API const char *wrpo_method_name(int i);
WRPO_API const char *wrpo_pair_name(int i);
WRPO_API const char *wrpo_alpha_schedule_name(int i);
WRPO_API const char *wrpo_lr_schedule_name(int i);
/* alpha(k) = end * f(k / T): f(u) = u, 1, u^p, (1 - cos(pi u)) / 2; k clamped to [0, T]. */
WRPO_API double wrpo_alpha(wrpo_alpha_schedule schedule, double power, double end, int64_t k, int64_t T);
/* factor(k) of the peak rate: k / warmup below warmup, then cosine or line to 0 at T, or 1. */
WRPO_API double wrpo_lr_factor(wrpo_lr_schedule schedule, int64_t warmup, int64_t k, int64_t T);

/* ---- log-probs ---- */
/* For records [first, first + count): logps[count][K] (K: the largest response count of all records of data; NaN
   where a record has fewer) and, if per_token is not NULL, a new array of every scored token's log-prob in order (wrpo_free). */
WRPO_API wrpo_result wrpo_logprobs(wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count,
                                   double *logps, float **per_token);

/* ---- generation: many prompts and samples at once, over a cache of keys and values ----
   A sample depends on the model, its prompt's ids and stream, its number, the seed and the settings of sampling; not on what
   is computed beside it, the batch or the threads. */
typedef struct wrpo_prompt {
    const int32_t *ids; int64_t count;                 /* as the model is given them: wrpo_tokenizer_prompt makes them */
    uint64_t stream;                 /* of random numbers: a hash of the prompt's name, say */
    bool own_temperature; double temperature;          /* own_temperature false: the desc's is used */
} wrpo_prompt;
typedef struct wrpo_sample {         /* lives until the callback returns */
    const int32_t *ids; const float *logps; int64_t count;   /* log pi of each token, at temperature 1 and over the whole vocabulary */
    const char *text; size_t size;   /* without stop token and special tokens; NULL where there is no tokenizer */
    bool stopped;                    /* by a stop token, which is the last of ids; false: cut off */
} wrpo_sample;
typedef struct wrpo_generate_desc {
    wrpo_tokenizer *tokenizer;       /* for text and stop tokens; NULL = ids only */
    int64_t n;                       /* samples of each prompt; 0 = 1 */
    int64_t max_tokens;              /* of a sample; 0 = 2048. It ends at max_position_embeddings as well. Longrope turns a prompt and
                                        its samples as sequences of so many tokens more than the prompt */
    double temperature;              /* 0 = greedy: the likeliest token, of equal ones the first */
    double top_p;                    /* from the likeliest tokens that have this probability together; 0 = 1: from all */
    int64_t top_k;                   /* from the k likeliest; first top_k, then top_p of what is left; 0 = all */
    uint64_t seed;                   /* 0 = 42 */
    const int32_t *stop; int64_t stop_count;           /* NULL = wrpo_stop_tokens */
    int64_t batch;                   /* samples decoded at once: speed against memory; 0 = 32; fewer where there is no room for them */
    bool (*on_text)(int64_t prompt, int64_t sample, const char *utf8, size_t size, void *user);   /* as it comes, in whole characters */
    bool (*on_done)(int64_t prompt, const wrpo_sample *samples /* [n] */, void *user);              /* in the order of the prompts */
    bool (*on_step)(int64_t prompts /* done */, int64_t tokens /* made */, void *user);
    void *user;                      /* a callback returning false stops cleanly: WRPO_E_STOPPED */
} wrpo_generate_desc;
WRPO_API wrpo_generate_desc wrpo_generate_defaults(const wrpo_generate_desc *desc);   /* the zeros, resolved: log this */
WRPO_API wrpo_result wrpo_generate(wrpo_model *model, const wrpo_prompt *prompts, int64_t count, const wrpo_generate_desc *desc);
/* eos_token_id of generation_config.json, or of config.json where that has none, the tokenizer's EOS and the token that ends
   an answer in its chat template (tok may be NULL); ascending. wrpo_free(ids). */
WRPO_API wrpo_result wrpo_stop_tokens(wrpo_model *model, wrpo_tokenizer *tok, int32_t **ids, int64_t *count);
typedef struct wrpo_tokenizer_prompt_desc {
    const char *name; int64_t line;  /* what errors call the record's place; 0 = "prompts" and the record's own line */
    bool raw;                        /* no template: the prompt is a string, encoded as it is, BOS and the like included */
    int64_t now;                     /* seconds since 1970 for templates that show the date; 0 = now */
} wrpo_tokenizer_prompt_desc;
/* The ids that training gives the model for the prompt of such a record ({prompt} or {messages}, tools, chat_template_kwargs):
   what the template writes, with the generation prompt. wrpo_free(ids). */
WRPO_API wrpo_result wrpo_tokenizer_prompt(wrpo_tokenizer *tok, const wrpo_tokenizer_prompt_desc *desc, const wrpo_json *record, int32_t **ids, int64_t *count);

/* ---- reward models: a conversation in, a number out ----
   A directory of any family above whose architecture ends in
     ForSequenceClassification   score.weight [labels, D] on the last hidden state at the last token that is not pad_token_id
     ForRewardModel              InternLM2's: v_head.weight [1, D] at reward_token_id, which is put behind the conversation
     ForRewardModelWithGating    ArmoRM's: objectives at the last token, weighed by a gate that reads the prompt
   The matrices stay in the file where they can. Conversations that begin alike are computed in one piece up to where they part. */
typedef struct wrpo_reward wrpo_reward;
typedef struct wrpo_reward_desc {
    const char *dir;
    int64_t label;                   /* which row of score.weight is the reward, from 1; 0 = it has only one */
    int64_t micro_tokens;            /* rows computed at once, a longer conversation alone; 0 = 1024 */
} wrpo_reward_desc;
WRPO_API wrpo_result wrpo_reward_load(wrpo_ctx *ctx, const wrpo_reward_desc *desc, wrpo_reward **out);
WRPO_API void wrpo_reward_free(wrpo_reward *reward);
WRPO_API const wrpo_config *wrpo_reward_config(const wrpo_reward *reward);
/* Rewards of n answers to one prompt, by the model's own chat template. prompt: a string, a message or an array of messages. */
WRPO_API wrpo_result wrpo_reward_score(wrpo_reward *reward, const wrpo_json *prompt, const char *const *answers, int64_t n, double *rewards);
/* Rewards of n conversations of token ids, as the template makes them. */
WRPO_API wrpo_result wrpo_reward_score_ids(wrpo_reward *reward, const int32_t *const *ids, const int64_t *counts, int64_t n, double *rewards);
/* A file of candidates (see selection) or answers, {"prompt", "content"} a line, with their rewards; all else stays. */
typedef struct wrpo_reward_file_desc {
    const char *in, *out;            /* out appears when all is done, whole */
    bool rescore;                    /* replace the rewards that are there; otherwise they are kept as they stand */
    bool (*on_line)(int64_t done, int64_t lines, void *user); void *user;      /* after each; false stops: WRPO_E_STOPPED */
} wrpo_reward_file_desc;
typedef struct wrpo_reward_file_stats { int64_t prompts, scored, kept; double mean, least, most; } wrpo_reward_file_stats;   /* of scored ones; NaN: none */
WRPO_API wrpo_result wrpo_reward_file(wrpo_reward *reward, const wrpo_reward_file_desc *desc, wrpo_reward_file_stats *out);

/* ---- selection: candidates with rewards -> records to train on; prompts -> two parts; answers -> a win rate ---- */
/* A file of candidates has one line a prompt; several responses of a model are several entries; other keys are let be:
     {"prompt_id", "prompt", "sources": [{"model", "content", "reward"}, ...], "target": [the same]}
   and "tools" and "chat_template_kwargs" where the template was given them: they belong to the prompt. Lines of several files with one
   prompt_id belong together, and those that have a prompt have the same; within a file a prompt_id occurs once. A reward that is not
   a finite number is an error. A response without text is left out and counted. */
typedef enum wrpo_form {             /* what a prompt becomes; best and worst by reward, on a tie the first in the order of the files */
    WRPO_FORM_QUADS,                 /* chosen: the best source's answer, the target's best; rejected: the target's worst */
    WRPO_FORM_SFT,                   /* messages: the prompt and the best source's answer */
    WRPO_FORM_PAIR,                  /* chosen, rejected: best and worst of the source that has the best (FuseChat-3.0) */
    WRPO_FORM_PAIRS                  /* pairs: best and worst of every source, weight softmax(best's reward / tau) (FuseRL) */
} wrpo_form;
WRPO_API const char *wrpo_form_name(int i);
typedef struct wrpo_select_desc {
    const char *const *in; int64_t n_in;
    const char *out;                 /* NULL: only the statistics */
    wrpo_form form;
    int64_t top;                     /* quads: this many sources, each one's best, weights softmax(reward / tau); 0 = 1 */
    double tau;                      /* 0 = 1 */
    double min_gap;                  /* rewards of chosen responses exceed the rejected one's by this; what does not is left out */
    double entropy_power;            /* EAST: weight = H^power / entropy_scale, H in bits over the target's responses (the sources' */
    double entropy_scale;            /* if there are none), the same where "answer", or else the text, is the same. 0 = no weight; 6.8 */
} wrpo_select_desc;
typedef struct wrpo_select_model { const char *name; int64_t responses, selected; double reward; } wrpo_select_model;   /* reward: its mean */
typedef struct wrpo_select_stats {
    int64_t prompts, records;
    int64_t no_source, no_target, equal, gap;          /* prompts left out: no such response, the same text on both sides, rewards too close */
    int64_t empty;                   /* responses left out */
    double reward[3], length[3];     /* means over the selected responses, by wrpo_role; length in characters; NaN: none */
    wrpo_select_model *models; int64_t n_models;       /* in the order of the files; selected: as source. wrpo_free(models) */
} wrpo_select_stats;
WRPO_API wrpo_result wrpo_select(wrpo_ctx *ctx, const wrpo_select_desc *desc, wrpo_select_stats *out);
typedef struct wrpo_split_desc {
    const char *in;                  /* JSON lines, a prompt each */
    const char *out[2];              /* round(share N) lines go to the first, the rest to the second, as they are, in their order */
    double share;                    /* 0 = 1/3, the paper's part for SFT */
    uint64_t seed;                   /* 0 = 42 */
} wrpo_split_desc;
WRPO_API wrpo_result wrpo_split(wrpo_ctx *ctx, const wrpo_split_desc *desc, int64_t counts[2]);

/* Two files of scored answers, as above or {"prompt_id", "content", "reward"} a line: how often a's reward is higher. A prompt's
   value is 1, 1/2 for equal rewards, 0; with several answers the mean over their pairs. Intervals hold 95 %, from resampled prompts.
   `controlled` takes length out, in the spirit of AlpacaEval-2: P(win) = sigmoid(theta + phi tanh((length a - length b) / sd)) is
   fitted by maximum likelihood with a penalty phi^2 / 2; it is sigmoid(theta), the rate at equal lengths. Swapping a and b gives 1 - rate. */
typedef struct wrpo_winrate_desc { const char *a, *b; int64_t resamples; uint64_t seed; } wrpo_winrate_desc;     /* 0 = 1000, 42 */
typedef struct wrpo_winrate_stats {
    int64_t prompts, only_a, only_b;                   /* in both files; in one, left out */
    double wins, ties, losses;                         /* their shares */
    double rate, low, high, controlled, controlled_low, controlled_high;
    double reward[2], length[2];                       /* means of a and of b */
} wrpo_winrate_stats;
WRPO_API wrpo_result wrpo_winrate(wrpo_ctx *ctx, const wrpo_winrate_desc *desc, wrpo_winrate_stats *out);

/* ---- training: wrpo_train is new, step until done, save where asked, free -- and nothing else ---- */
/* field, name in metrics.jsonl: averages over the batch's records. A reward is beta times the method's score. */
#define WRPO_METRICS(X) \
    X(loss, "loss")                                    /* NaN is never logged: the run stops with an error */ \
    X(grad_norm, "grad_norm")                          /* before clipping */ \
    X(learning_rate, "learning_rate") \
    X(epoch, "epoch") \
    X(cur_alpha, "cur_alpha") \
    X(rewards_chosen, "rewards/chosen")                /* weighted: alpha * source + (1 - alpha) * target */ \
    X(rewards_source_chosen, "rewards/source_chosen") \
    X(rewards_target_chosen, "rewards/target_chosen") \
    X(rewards_rejected, "rewards/rejected") \
    X(rewards_accuracies, "rewards/accuracies")        /* share of records with chosen > rejected */ \
    X(rewards_source_accuracies, "rewards/source_accuracies") \
    X(rewards_target_accuracies, "rewards/pivot_accuracies")      /* target > rejected */ \
    X(rewards_margins, "rewards/margins") \
    X(logps_chosen, "logps/chosen") \
    X(logps_source_chosen, "logps/source_chosen") \
    X(logps_target_chosen, "logps/target_chosen") \
    X(logps_rejected, "logps/rejected") \
    X(logits_chosen, "logits/chosen")                  /* mean logit over all positions and the vocabulary; not of capped logits */ \
    X(logits_rejected, "logits/rejected")
typedef struct wrpo_metrics {        /* NaN: not defined for this method or these records */
    int64_t step, steps;             /* step counts from 1 after the first update */
    int64_t records, tokens;         /* of this step; tokens are rows computed: prompts once */
    double tokens_per_second, seconds;   /* of this step; since the start */
#define WRPO_X(field, name) double field;
    WRPO_METRICS(WRPO_X)
#undef WRPO_X
} wrpo_metrics;

/* The moments of AdamW in memory: float; bfloat16; or blocks of WRPO_BLOCK numbers (after Dettmers et al. 2022), each a byte per
   number and then a float s, the largest magnitude. m = +-s (q / 127)^4 with +-q a signed byte, v = s (q / 255)^4 with q an unsigned
   one, never 0 for a v above 0. Where numbers are rounded, it is up or down at random so that the mean is right: moments move by less than
   half a step of bfloat16. */
typedef enum wrpo_moments { WRPO_MOMENTS_F32, WRPO_MOMENTS_BF16, WRPO_MOMENTS_8BIT } wrpo_moments;
enum { WRPO_BLOCK = 256, WRPO_BLOCK_BYTES = WRPO_BLOCK + 4 };
WRPO_API const char *wrpo_moments_name(int i);                           /* "f32", "bf16", "8bit"; NULL past the last */
WRPO_API size_t wrpo_moments_bytes(wrpo_moments moments, int64_t count);   /* of one moment of count numbers; whole blocks, but for f32 */
typedef struct wrpo_train_desc {
    wrpo_loss_desc loss;
    double alpha;                    /* 0 = 0.1 (WRPO_ZERO for none) */
    wrpo_alpha_schedule alpha_schedule; double alpha_power;   /* 0 = linear; power 0 = 2 */
    double learning_rate;            /* 0 = 3e-7; 7e-6 for sft, 1e-6 for simpo, 8e-7 for dpo-norm */
    double beta1, beta2, eps, weight_decay;   /* 0 = 0.9, 0.999, 1e-8, 0 */
    wrpo_moments moments;              /* of the moments; 0 = float */
    double max_grad_norm;            /* 0 = 1; negative = off */
    wrpo_lr_schedule lr_schedule; double warmup_ratio;   /* 0 = cosine, 0.1 (WRPO_ZERO for none) */
    double epochs;                   /* 0 = 1 */
    int64_t batch_size;              /* records per optimizer step; 0 = 128 */
    int64_t accumulation;            /* micro-batches of batch_size / accumulation, as the authors count epochs; 0 = 1 */
    int64_t max_steps;               /* 0 = by epochs */
    int64_t micro_tokens;            /* rows computed at once, a longer record alone; 0 = 1024 */
    int64_t recompute;               /* layers whose activations are recomputed in the backward pass, from the first; -1 = all,
                                        0 = as many as it takes to fit into the context's memory_limit. Logits are
                                        kept where this is 0 and all fits, or where a micro-batch is no more than a chunk of them */
    uint64_t seed; bool no_shuffle;  /* seed 0 = 42 */
    const char *out_dir;             /* metrics.jsonl and the cache of reference log-probs; NULL = no files */
    const char *ref_dir;             /* the reference; NULL = the policy as it is before step 1 */
    const wrpo_data *eval_data; int64_t eval_steps;    /* 0 = at the end only */
    const char *resume;              /* a directory that wrpo_trainer_save wrote: the run goes on from there, to the bits of one that never stopped. All
                                        else is as it was, or refused by name: settings above, data, backend, and the policy as it was before
                                        step 1 (the reference, if ref_dir is NULL), whose weights are then replaced. NULL = from the start */
    wrpo_save_desc save; int64_t save_steps;           /* save.dir not NULL: wrpo_train leaves save.dir/checkpoint-K where it ends early after K steps (not
                                        after an error of a device); and every save_steps steps (0 = never), in place of its last */
    bool (*on_step)(const wrpo_metrics *m, const wrpo_metrics *eval /* NULL but where one was made */, void *user);
    void *user;                      /* on_step returning false stops cleanly: WRPO_E_STOPPED */
} wrpo_train_desc;
typedef struct wrpo_bytes {          /* of a run, before anything is allocated */
    size_t weights, gradients, moments, activations, head, data, total;
    size_t device, room;             /* of total, in the backend's memory; what there is for it: SIZE_MAX where nobody knows */
    int64_t recompute;               /* layers that the run recomputes */
    bool logits;                     /* there is room for a micro-batch's logits until its backward pass */
} wrpo_bytes;
typedef struct wrpo_trainer wrpo_trainer;
WRPO_API wrpo_train_desc wrpo_train_defaults(const wrpo_train_desc *desc);   /* the zeros, resolved: log this */
WRPO_API wrpo_result wrpo_train_bytes(wrpo_ctx *ctx, const wrpo_config *config, const wrpo_data *data /* or NULL: micro_tokens rows */,
                                      const wrpo_train_desc *desc, wrpo_bytes *out);
/* All in memory: no file is read or written; the reference is the policy as it is now. Free with wrpo_trainer_free. */
WRPO_API wrpo_result wrpo_trainer_new(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_trainer **out);
/* With the desc's files: out_dir, ref_dir, resume. Free with wrpo_trainer_free. */
WRPO_API wrpo_result wrpo_trainer_open(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_trainer **out);
WRPO_API wrpo_result wrpo_trainer_step(wrpo_trainer *t, wrpo_metrics *m);    /* m->step == m->steps: that was the last */
/* data: the training data or desc.eval_data, whose reference log-probs are known. */
WRPO_API wrpo_result wrpo_trainer_eval(wrpo_trainer *t, const wrpo_data *data, wrpo_metrics *m);
/* The model, as wrpo_model_save writes it, and beside it the state of the run, for wrpo_train_desc.resume: trainer_state.wrpo, a safetensors file
   of the weights as the optimizer has them (float), their moments NAME.exp_avg and NAME.exp_avg_sq, the metrics.jsonl so far, and, as
   metadata, the step and all that must be the same. It is written in pieces, and is whole or not there. */
WRPO_API wrpo_result wrpo_trainer_save(wrpo_trainer *t, const wrpo_save_desc *desc);
WRPO_API void wrpo_trainer_free(wrpo_trainer *t);
/* The metrics of a model on data, nothing trained: desc gives loss, alpha (taken as it is) and ref_dir. */
WRPO_API wrpo_result wrpo_eval(wrpo_model *model, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_metrics *m);
/* One line of JSON, the names with a prefix ("", "eval_"); undefined metrics are left out. wrpo_free(text). */
WRPO_API wrpo_result wrpo_metrics_json(wrpo_ctx *ctx, const wrpo_metrics *m, const char *prefix, char **text);
WRPO_API wrpo_result wrpo_train(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_metrics *last);

/* ---- backend: memory and about twenty ops; the model is written once, above this table ----
   Contract: y and dx are written, dw (float, gradients) is accumulated; no op allocates, waits or exits; results
   depend neither on the number of threads nor on the run. Activations have act_bytes per number (4 = float, 2 =
   bfloat16); a matrix of weights has its dtype beside it, vectors of weights (norms, biases), gradients and float * are
   float. Pointers are the backend's own memory. ld*: numbers from one row to the next. To replace one op:
   wrpo_backend be = *wrpo_backend_cpu(); be.gemm = my_blas; */
typedef enum wrpo_mm {               /* c[m,n] = or += */
    WRPO_MM_NT,                         /* a[m,k] b[n,k]'   activations, weights -> activations:  y = x W' */
    WRPO_MM_NT_FLOAT,                  /* the same, but c is float */
    WRPO_MM_NN,                         /* a[m,k] b[k,n]    activations, weights -> activations:  dx = dy W */
    WRPO_MM_TN                          /* a[k,m]' b[k,n]   activations, activations -> float:    dW += dy' x */
} wrpo_mm;
typedef struct wrpo_seg {
    int64_t begin, end;              /* rows of q and o */
    int64_t prefix, prefix_end;      /* rows of k and v that all of them see, at positions from 0; equal: none */
    int64_t own, own_end;            /* rows of k and v at the positions behind; the last row of q is at the last of them, and each sees
                                        those up to its own position. In training own = begin and own_end = end; in decoding, k and v are
                                        a cache, and own .. own_end is longer than begin .. end by what was decoded before */
} wrpo_seg;
typedef struct wrpo_attn {
    int64_t n; const wrpo_seg *segs; int64_t n_segs;   /* segs in the backend's memory; they cover rows 0..n of q in order */
    int64_t H, G, d;                 /* H query heads share G key/value heads: head h uses h / (H / G) */
    int64_t ldq, ldkv, ldo;          /* q [n, ldq], k and v [n, ldkv], o [n, ldo]; dq, dk, dv, do likewise */
    int64_t window;                  /* key visible iff position(q) - position(k) < window; 0 = no limit */
    float scale, softcap;            /* softmax(scale q.k); softcap 0 = none */
} wrpo_attn;
typedef struct wrpo_adamw {
    float lr, beta1, beta2, eps, weight_decay, grad_scale; double correction1, correction2;
    wrpo_moments moments;
    uint64_t seed;                   /* of the stochastic rounding: of this step and array */
} wrpo_adamw;
struct wrpo_backend {
    const char *name;
    int act_bytes;
    wrpo_dtype dtype;                /* what a context's dtype is by default */
    bool host;                       /* its memory is the host's: weights may lie in a mapped file */
    wrpo_result (*open)(void **dev, const wrpo_desc *desc, wrpo_error *why);
    void (*close)(void *dev);
    void *(*alloc)(void *dev, size_t n);               /* NULL: out of memory; 64-byte aligned */
    size_t (*room)(void *dev);                         /* bytes that alloc can still give; NULL: not known */
    void (*release)(void *dev, void *p);
    void (*put)(void *dev, void *dst, const void *host, size_t n);
    void (*get)(void *dev, void *host, const void *src, size_t n);    /* waits */
    void (*copy)(void *dev, void *dst, const void *src, size_t n);
    void (*zero)(void *dev, void *dst, size_t n);
    wrpo_result (*sync)(void *dev, wrpo_error *why);   /* waits; the first error since the last */
    /* ops(user), a stretch of ops that comes again and again; or, in its stead, what was recorded under the same key. NULL: ops are called. So
       whatever the ops are given, pointers and sizes, follows from key, and what changes from call to call lies in the backend's memory.
       ops does nothing but call ops of this table, copy and zero, and may be called twice (the first time nothing is run). release forgets
       all that is recorded. */
    void (*replay)(void *dev, const int64_t key[4], void (*ops)(void *user), void *user);
    /* c = a b (beta 0) or c += a b (beta 1) */
    void (*gemm)(void *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b, int64_t ldb, wrpo_dtype b_type,
                 int64_t m, int64_t n, int64_t k, float beta);          /* b_type: of a weight; TN does not look at it */
    /* y[r] = scale w[ids[r]]  and  dw[ids[r]] += scale dy[r] */
    void (*embed)(void *dev, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids, int64_t n, int64_t D, float scale);
    void (*embed_bwd)(void *dev, float *dw, const void *dy, const int32_t *ids, int64_t n, int64_t D, float scale);
    /* y[r] = x[index[r]]  and  dx[index[r]] += dy[r] (dx accumulated; indices repeat) */
    void (*gather)(void *dev, void *y, const void *x, const int32_t *index, int64_t n, int64_t D);
    void (*gather_bwd)(void *dev, void *dx, const void *dy, const int32_t *index, int64_t n, int64_t D);
    /* y[index[r]] = x[r], rows of D numbers, ldy and ldx apart; no index twice. Only decoding needs it (NULL: there is none) */
    void (*scatter)(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, const int32_t *index, int64_t n, int64_t D);
    /* y[r] += b  and  db += sum_r dy[r] */
    void (*bias)(void *dev, void *y, int64_t ldy, const float *b, int64_t n, int64_t D);
    void (*bias_bwd)(void *dev, float *db, const void *dy, int64_t lddy, int64_t n, int64_t D);
    void (*colsum)(void *dev, float *y, const void *w, wrpo_dtype w_type, int64_t rows, int64_t cols);    /* y[cols] = sum_r w[r] */
    void (*add)(void *dev, void *y, const void *x, int64_t count);    /* y += x */
    /* each row holds `heads` vectors of D numbers (heads 1: the whole row):  y = (w + plus) x rstd, rstd = 1/sqrt(mean(x^2) + eps)
       rstd [n, heads] is written. y may be x.  Backward: dx = dres + ..., dres NULL = 0; dx may be dy or dres. */
    void (*rmsnorm)(void *dev, void *y, int64_t ldy, float *rstd, const void *x, int64_t ldx, const float *w,
                    int64_t n, int64_t heads, int64_t D, float eps, float plus);
    void (*rmsnorm_bwd)(void *dev, void *dx, int64_t lddx, float *dw, const void *dy, int64_t lddy, const void *dres, int64_t lddres,
                        const void *x, int64_t ldx, const float *w, const float *rstd, int64_t n, int64_t heads, int64_t D, float plus);
    /* rotate-half in place on `heads` vectors of d numbers per row; table[n][d/2][2] = cos, sin; sign -1 is the backward */
    void (*rope)(void *dev, void *x, int64_t ldx, const float *table, int64_t n, int64_t heads, int64_t d, float sign);
    /* o = softmax(scale q k' + mask) v; lse [n, H] = log-sum-exp of the scaled scores.  Never a full score matrix. */
    void (*attention)(void *dev, const wrpo_attn *a, void *o, float *lse, const void *q, const void *k, const void *v);
    void (*attention_bwd)(void *dev, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o, const void *o, const float *lse,
                          const void *q, const void *k, const void *v, void *scratch);
    size_t (*attention_scratch)(void *dev, int64_t n, int64_t H, int64_t G, int64_t d);      /* bytes for the above */
    /* gu [n, 2I] = gate | up:  h = silu(gate) up  (gelu true: gelu_tanh).  Backward writes dgu (may be gu) and h if not NULL. */
    void (*glu)(void *dev, void *h, const void *gu, int64_t n, int64_t I, bool gelu);
    void (*glu_bwd)(void *dev, void *dgu, void *h, const void *dh, const void *gu, int64_t n, int64_t I, bool gelu);
    /* logits float [n, V]:  lse[r] = log sum exp, logp[r] = logits[r, target[r]] - lse[r]
       dlogits[r, v] = dlogp[r] ([v == target[r]] - exp(logits[r, v] - lse[r])); dlogits may be logits where activations are float */
    void (*logprob)(void *dev, float *logp, float *lse, const float *logits, const int32_t *target, int64_t n, int64_t V, float softcap);
    void (*logprob_bwd)(void *dev, void *dlogits, const float *logits, const int32_t *target, const float *lse, const float *dlogp,
                        int64_t n, int64_t V, float softcap);
    void (*sumsq)(void *dev, double *out, const float *x, int64_t count);                     /* *out += sum x^2, in double */
    /* one AdamW step (Loshchilov & Hutter 2019) as torch.optim.AdamW computes it; g is read times grad_scale. low NULL: w is float;
       else w is bfloat16, the masters rounded, and low what that left over: bits(master) = (w << 16) + (int16_t)low.
       Arrays that are not float have room for whole blocks of WRPO_BLOCK numbers; what is behind count in the last is read and written. */
    void (*adamw)(void *dev, void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count, const wrpo_adamw *step);
};
WRPO_API const wrpo_backend *wrpo_backend_cpu(void);
WRPO_API const wrpo_backend *wrpo_backend_cuda(void);  /* in wrpo_cuda.cu: link it or do not call it */
#ifdef __cplusplus
}
#endif
#endif /* WRPO_H */
/* ------------------------------------------------------------------ Stop here if you only want to use it. */
#ifdef WRPO_IMPLEMENTATION
/* --------------------------------------------------------------------------------------------- >>base
   Errors, memory, text, files, threads, random numbers.

   How failure travels: a private function that cannot go on calls wrpo__fail, which writes the sentence
   into the context and jumps to the public entry. That entry was opened by WRPO__TRY with an arena; the
   arena owns every byte, mapping and temporary file made since, so failure is one free. No private
   function returns an error code, and none can be ignored.                                             */
#ifdef __cplusplus
#error "wrpo.h: the declarations are C and C++, the implementation is C: give it a .c file of its own"
#endif
#if defined(_FEATURES_H) && !defined(__USE_XOPEN2K8)
#error "wrpo.h: include it before any system header where WRPO_IMPLEMENTATION is defined, or compile with -D_POSIX_C_SOURCE=200809L"
#endif
#include <errno.h>
#include <float.h>
#include <limits.h>
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
#include <windows.h>
#else
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__GNUC__)
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
#define WRPO__ALIGN 64               /* of every block: a cache line, an AVX-512 vector */

/* ---- context, frames, arenas ---- */
typedef struct wrpo__block {         /* header of one allocation, a node of its arena's ring */
    struct wrpo__block *prev, *next;
    struct wrpo__arena *arena;
    void *base; size_t size;         /* as the allocator gave it */
} wrpo__block;
typedef struct wrpo__cleanup { void (*fn)(void *); void *p; struct wrpo__cleanup *next; } wrpo__cleanup;
typedef struct wrpo__arena {
    wrpo_ctx *ctx;
    wrpo__block ring;                /* sentinel */
    wrpo__cleanup *cleanups;         /* run last in, first out, before any memory goes */
    char *chunk; size_t used, cap;   /* where small things are carved from */
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
    size_t bytes, peak, device_bytes;                  /* held, the most ever held, held of the backend's memory */
    wrpo__arena *handouts;           /* text and arrays given to the user */
};
static WRPO__THREAD wrpo__arena *wrpo__current;   /* where stb_ds allocates: the innermost entry's arena */

static int32_t wrpo__utf8_get(const char *s, size_t n, size_t *size);
/* line, column: the place in a text file; the sentence should say it as well: "%s:%lld: ...". */
_Noreturn WRPO__PRINTF(5, 6) static void wrpo__fail_at(wrpo_ctx *ctx, wrpo_result code, int64_t line, int64_t column, const char *format, ...) {
    va_list args;
    va_start(args, format);
    ctx->error.code = code, ctx->error.line = line, ctx->error.column = column;
    vsnprintf(ctx->error.text, sizeof ctx->error.text, format, args);
    va_end(args);
    for (size_t i = 0, size, n = strlen(ctx->error.text); i < n; i += size) {     /* foreign text may hold anything, or be cut within a code point */
        const int32_t c = wrpo__utf8_get(ctx->error.text + i, n - i, &size);
        if (c < 0x20 || c == 0x7F) memset(ctx->error.text + i, '?', size);
    }
    longjmp(ctx->frame->jump, 1);
}
#define wrpo__fail(ctx, code, ...) wrpo__fail_at(ctx, code, 0, 0, __VA_ARGS__)
/* Settings: each must lie where it can. */
#define WRPO__RANGE(ok, name, value, wanted) \
    if (!(ok)) wrpo__fail(ctx, WRPO_E_ARG, "%s: want %s, found %g", name, wanted, (double)(value))
WRPO__PRINTF(3, 4) static void wrpo__log(wrpo_ctx *ctx, wrpo_level level, const char *format, ...) {
    char text[1024];
    if (!ctx->desc.log.fn) return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ctx->desc.log.fn(level, text, ctx->desc.log.user);
}

/* Checked sizes: count * size, or failure. */
static size_t wrpo__mul(wrpo_ctx *ctx, size_t count, size_t size) {
    if (size && count > (SIZE_MAX - 4 * WRPO__ALIGN) / size) wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %zu x %zu bytes", count, size);
    return count * size;
}
/* One block of n bytes, aligned to WRPO__ALIGN, not cleared; NULL if there is none. p NULL or a block to resize. */
static void *wrpo__block_resize(wrpo__arena *arena, void *p, size_t n) {
    wrpo_ctx *ctx = arena->ctx;
    const size_t head = (sizeof(wrpo__block) + WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN;
    if (n > SIZE_MAX - head - WRPO__ALIGN) return NULL;
    size_t size = head + n + WRPO__ALIGN;
    void *base = ctx->desc.memory.alloc(size, ctx->desc.memory.user);
    if (!base) return NULL;
    char *data = (char *)(((uintptr_t)base + head + WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN);
    wrpo__block *block = (wrpo__block *)(void *)(data - head);
    block->base = base, block->size = size, block->arena = arena;
    ctx->bytes += size;
    if (ctx->bytes > ctx->peak) ctx->peak = ctx->bytes;
    if (!p) {
        wrpo__block *next = arena->ring.next;
        block->prev = &arena->ring, block->next = next;
        next->prev = arena->ring.next = block;
        return data;
    }
    wrpo__block *old = (wrpo__block *)(void *)((char *)p - head);
    size_t kept = old->size - (size_t)((char *)p - (char *)old->base);
    memcpy(data, p, WRPO__MIN(kept, n));
    block->prev = old->prev, block->next = old->next, block->arena = old->arena;
    block->next->prev = block->prev->next = block;
    ctx->bytes -= old->size;
    ctx->desc.memory.free(old->base, ctx->desc.memory.user);
    return data;
}
static void wrpo__block_free(void *p) {
    if (!p) return;
    const size_t head = (sizeof(wrpo__block) + WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN;
    wrpo__block *block = (wrpo__block *)(void *)((char *)p - head);
    wrpo_ctx *ctx = block->arena->ctx;
    block->next->prev = block->prev, block->prev->next = block->next;
    ctx->bytes -= block->size;
    ctx->desc.memory.free(block->base, ctx->desc.memory.user);
}
static void *wrpo__resize(wrpo__arena *arena, void *p, size_t n) {      /* the same, or failure */
    p = wrpo__block_resize(arena, p, n);
    if (!p) wrpo__fail(arena->ctx, WRPO_E_MEMORY, "out of memory: %zu bytes wanted, %zu held", n, arena->ctx->bytes);
    return p;
}
/* count * size bytes, not cleared; for what is large. Freed with the arena or by wrpo__block_free. */
static void *wrpo__raw(wrpo__arena *arena, size_t count, size_t size) { return wrpo__resize(arena, NULL, wrpo__mul(arena->ctx, count, size)); }
/* count * size bytes, cleared; small things share chunks. */
static void *wrpo__alloc(wrpo__arena *arena, size_t count, size_t size) {
    size_t n = (wrpo__mul(arena->ctx, count, size) + 15) / 16 * 16;
    if (n > 4096) return memset(wrpo__raw(arena, n, 1), 0, n);
    if (n > arena->cap - arena->used) {
        size_t cap = arena->cap == 0 ? 4096 : arena->cap < 1 << 16 ? arena->cap * 4 : arena->cap;
        arena->chunk = wrpo__raw(arena, cap, 1);
        arena->cap = cap, arena->used = 0;
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
/* fn(p) when the arena goes. To own what does not exist yet, register it as NULL first and set ->p once it does. */
static wrpo__cleanup *wrpo__on_free(wrpo__arena *arena, void (*fn)(void *), void *p) {
    wrpo__cleanup *c = WRPO__NEW(arena, wrpo__cleanup);
    c->fn = fn, c->p = p, c->next = arena->cleanups;
    arena->cleanups = c;
    return c;
}
static wrpo__arena *wrpo__arena_new(wrpo_ctx *ctx) {   /* NULL: out of memory */
    wrpo__arena *arena = ctx->desc.memory.alloc(sizeof *arena, ctx->desc.memory.user);
    if (!arena) return NULL;
    memset(arena, 0, sizeof *arena);
    arena->ctx = ctx;
    arena->ring.prev = arena->ring.next = &arena->ring;
    ctx->bytes += sizeof *arena;
    return arena;
}
static void wrpo__arena_clear(wrpo__arena *arena) {    /* as new; what it owned is gone */
    wrpo_ctx *ctx = arena->ctx;
    for (; arena->cleanups; arena->cleanups = arena->cleanups->next)
        if (arena->cleanups->p) arena->cleanups->fn(arena->cleanups->p);
    for (wrpo__block *b = arena->ring.next, *next; b != &arena->ring; b = next) {
        next = b->next;
        ctx->bytes -= b->size;
        ctx->desc.memory.free(b->base, ctx->desc.memory.user);
    }
    arena->ring.prev = arena->ring.next = &arena->ring;
    arena->chunk = NULL, arena->used = arena->cap = 0;
}
static void wrpo__arena_free(wrpo__arena *arena) {
    if (!arena) return;
    wrpo__arena_clear(arena);
    arena->ctx->bytes -= sizeof *arena;
    arena->ctx->desc.memory.free(arena, arena->ctx->desc.memory.user);
}

/* An arena of its own inside another one, which it goes with. */
static void wrpo__free_arena(void *p) { wrpo__arena_free(p); }
static wrpo__arena *wrpo__sub_arena(wrpo__arena *arena) {
    wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__free_arena, NULL);
    wrpo__arena *sub = owner->p = wrpo__arena_new(arena->ctx);
    if (!sub) wrpo__fail(arena->ctx, WRPO_E_MEMORY, "out of memory: %zu bytes held", arena->ctx->bytes);
    return sub;
}
/* The public entry:      WRPO__TRY(ctx, arena, temporary) { ...private calls...; *out = ...; }
                          return wrpo__end(&wrpo__entry);
   temporary false: the arena becomes the new object's and is freed only on failure. An arena that could
   not be made (NULL) is a failure too. Entries nest. No local variable may change inside the braces. */
static bool wrpo__begin(wrpo__frame *f, wrpo_ctx *ctx, wrpo__arena *arena, bool temporary) {
    f->ctx = ctx, f->up = ctx->frame, f->arena = arena, f->outer = wrpo__current;
    f->temporary = temporary, f->failed = true;
    ctx->frame = f;
    if (arena) wrpo__current = arena;
    else {
        ctx->error.code = WRPO_E_MEMORY, ctx->error.line = ctx->error.column = 0;
        snprintf(ctx->error.text, sizeof ctx->error.text, "out of memory");
    }
    return arena != NULL;
}
#define WRPO__TRY(context, new_arena, is_temporary) \
    wrpo__frame wrpo__entry; \
    if (wrpo__begin(&wrpo__entry, context, new_arena, is_temporary)) \
        if (setjmp(wrpo__entry.jump) == 0) \
            for (bool wrpo__once = true; wrpo__once; wrpo__once = false, wrpo__entry.failed = false)
/* The same where `call`, one call of a private function, is the whole body: WRPO__CALL(ctx, arena, temporary, f(...)); */
#define WRPO__CALL(context, new_arena, is_temporary, call) \
    wrpo__frame wrpo__entry; \
    if (wrpo__begin(&wrpo__entry, context, new_arena, is_temporary) && setjmp(wrpo__entry.jump) == 0) { \
        call; \
        wrpo__entry.failed = false; \
    }
static wrpo_result wrpo__end(wrpo__frame *f) {
    wrpo_ctx *ctx = f->ctx;
    ctx->frame = f->up;
    wrpo__current = f->outer;
    if (f->failed || f->temporary) wrpo__arena_free(f->arena);
    if (!f->failed) return WRPO_OK;
    return ctx->error.code;
}
/* A private call across a nested entry: passes the failure on. */
static void wrpo__rethrow(wrpo_ctx *ctx, wrpo_result r) { if (r != WRPO_OK) longjmp(ctx->frame->jump, 1); }

/* ---- stb_ds: dynamic arrays and hash maps, in the current arena, under our own names ---- */
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
#include <stb/stb_ds.h>
#undef STB_DS_IMPLEMENTATION
#ifdef __GNUC__                      /* stb_ds says typeof, which -std=c11 does not know */
#undef STBDS_ADDRESSOF
#define STBDS_ADDRESSOF(variable, value) ((__typeof__(variable)[1]){value})
#endif

/* ---- text: a growing string in an arena; data is always NUL-terminated ---- */
typedef struct wrpo__text { wrpo__arena *arena; char *data; size_t size, cap; } wrpo__text;
static void wrpo__text_add(wrpo__text *t, const char *s, size_t n) {
    if (n >= t->cap - t->size || !t->data) {
        size_t cap = WRPO__MAX(t->cap * 2, 64);
        while (cap <= t->size + n) cap *= 2;
        t->data = wrpo__resize(t->arena, t->data, cap), t->cap = cap;
    }
    if (n) memcpy(t->data + t->size, s, n);
    t->size += n;
    t->data[t->size] = 0;
}
static void wrpo__text_puts(wrpo__text *t, const char *s) { wrpo__text_add(t, s, strlen(s)); }
WRPO__PRINTF(2, 3) static void wrpo__text_printf(wrpo__text *t, const char *format, ...) {
    char small[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(small, sizeof small, format, args);
    va_end(args);
    if (n < (int)sizeof small) { wrpo__text_add(t, small, n > 0 ? (size_t)n : 0); return; }
    char *big = wrpo__raw(t->arena, (size_t)n + 1, 1);
    va_start(args, format);
    vsnprintf(big, (size_t)n + 1, format, args);
    va_end(args);
    wrpo__text_add(t, big, (size_t)n);
    wrpo__block_free(big);
}
/* printf into the arena, for paths and names */
WRPO__PRINTF(2, 3) static char *wrpo__format(wrpo__arena *arena, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *p = wrpo__alloc(arena, (size_t)(n < 0 ? 0 : n) + 1, 1);
    va_start(args, format);
    vsnprintf(p, (size_t)(n < 0 ? 0 : n) + 1, format, args);
    va_end(args);
    return p;
}
/* For the user: a copy that outlives the entry and is given back by wrpo_free. */
static void *wrpo__handout(wrpo_ctx *ctx, const void *p, size_t n) {
    char *q = wrpo__raw(ctx->handouts, n + 1, 1);
    if (n) memcpy(q, p, n);
    q[n] = 0;
    return q;
}
WRPO_API void wrpo_free(wrpo_ctx *ctx, void *p) { (void)ctx; wrpo__block_free(p); }

/* UTF-8: the code point at s (of n > 0 bytes) and its length; -1 if the bytes are not valid there
   (overlong forms, surrogates, above U+10FFFF, cut off), with *size the maximal subpart to skip. */
static int32_t wrpo__utf8_get(const char *s, size_t n, size_t *size) {
    const unsigned char *p = (const unsigned char *)s;
    unsigned c = p[0], low = 0x80, high = 0xBF;
    size_t need;
    *size = 1;
    if (c < 0x80) return (int32_t)c;
    if (c >= 0xC2 && c <= 0xDF) need = 1, c &= 0x1F;
    else if (c >= 0xE0 && c <= 0xEF) need = 2, low = c == 0xE0 ? 0xA0 : 0x80, high = c == 0xED ? 0x9F : 0xBF, c &= 0x0F;
    else if (c >= 0xF0 && c <= 0xF4) need = 3, low = c == 0xF0 ? 0x90 : 0x80, high = c == 0xF4 ? 0x8F : 0xBF, c &= 0x07;
    else return -1;
    for (size_t i = 1; i <= need; i++, low = 0x80, high = 0xBF) {
        if (i >= n || p[i] < low || p[i] > high) { *size = i; return -1; }
        c = c << 6 | (p[i] & 0x3Fu);
    }
    *size = need + 1;
    return (int32_t)c;
}
static size_t wrpo__utf8_put(char *s, uint32_t c) {    /* writes up to 4 bytes */
    if (c < 0x80) { s[0] = (char)c; return 1; }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) s[i] = (char)(0x80 | (c & 0x3F));
    s[0] = (char)(c | (n == 2 ? 0xC0u : n == 3 ? 0xE0u : 0xF0u));
    return n;
}

/* ---- files ---- */
static char *wrpo__join(wrpo__arena *arena, const char *dir, const char *name) {
    size_t n = strlen(dir);
    return wrpo__format(arena, n && dir[n - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}
static const char *wrpo__basename(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
static bool wrpo__is_dir(const char *path) { struct stat st; return stat(path, &st) == 0 && S_ISDIR(st.st_mode); }
static bool wrpo__exists(const char *path) { struct stat st; return stat(path, &st) == 0; }

typedef struct wrpo__file { const char *path; const unsigned char *data; size_t size; bool mapped; int fd; } wrpo__file;    /* fd: while it is read, else -1 */
static void wrpo__unmap(void *p) {
    wrpo__file *f = p;
#ifndef _WIN32
    if (f->mapped) munmap((void *)(uintptr_t)f->data, f->size);
    if (f->fd >= 0) close(f->fd);
#endif
    f->mapped = false, f->fd = -1;
}
/* The whole file, read-only, for as long as the arena lives: a mapping where there is one. */
static const wrpo__file *wrpo__open_file(wrpo__arena *arena, const char *path) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo__file *f = WRPO__NEW(arena, wrpo__file);
    f->path = wrpo__strndup(arena, path, strlen(path));
    f->data = (const unsigned char *)"";
    if (wrpo__is_dir(path)) wrpo__fail(ctx, WRPO_E_IO, "%s: want a file, found a directory", path);
#ifdef _WIN32
    FILE *in = fopen(path, "rb");
    if (!in) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    _fseeki64(in, 0, SEEK_END);
    f->size = (size_t)_ftelli64(in);
    rewind(in);
    unsigned char *data = wrpo__block_resize(arena, NULL, f->size + 1);
    size_t got = data ? fread(data, 1, f->size, in) : 0;
    fclose(in);
    if (!data) wrpo__fail(ctx, WRPO_E_MEMORY, "%s: out of memory: %zu bytes wanted", path, f->size);
    if (got != f->size) wrpo__fail(ctx, WRPO_E_IO, "%s: %zu bytes wanted, %zu read", path, f->size, got);
    f->data = data;
#else
    f->fd = -1;
    wrpo__on_free(arena, wrpo__unmap, f);
    f->fd = open(path, O_RDONLY);
    if (f->fd < 0) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    struct stat st;
    if (fstat(f->fd, &st) != 0 || st.st_size < 0) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be read: %s", path, strerror(errno));
    wrpo__text t = {.arena = arena};
    if (S_ISREG(st.st_mode) && st.st_size) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, f->fd, 0);
        if (p == MAP_FAILED) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        f->data = p, f->size = (size_t)st.st_size, f->mapped = true;
    } else if (!S_ISREG(st.st_mode))
        for (ssize_t n = 1; n;) {                      /* a pipe, a terminal: read to its end */
            char part[1 << 14];
            n = read(f->fd, part, sizeof part);
            if (n > 0) wrpo__text_add(&t, part, (size_t)n);
            else if (n < 0 && errno != EINTR) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be read: %s", path, strerror(errno));
        }
    close(f->fd), f->fd = -1;
    if (t.size) f->data = (const unsigned char *)t.data, f->size = t.size;
#endif
    return f;
}
static void wrpo__make_dir(wrpo_ctx *ctx, const char *path) {   /* and its parents; existing is fine */
    char part[4096];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part) wrpo__fail(ctx, WRPO_E_IO, "\"%.200s\": not a usable path for a directory", path);
    for (size_t i = 1; i <= n; i++) {
        if (i < n && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
#ifdef _WIN32
        int r = _mkdir(part);
#else
        int r = mkdir(part, 0777);
#endif
        const int e = errno == EEXIST ? ENOTDIR : errno;
        if (r != 0 && !wrpo__is_dir(part)) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be made: %s", part, strerror(e));
    }
}
static bool wrpo__ends(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}
typedef struct wrpo__name { char *text; } wrpo__name;
static int wrpo__by_name(const void *a, const void *b) { return strcmp(((const wrpo__name *)a)->text, ((const wrpo__name *)b)->text); }
#ifndef _WIN32
static void wrpo__dir_close(void *p) { closedir(p); }
#endif
/* The names in a directory, sorted; an stb_ds array. */
static wrpo__name *wrpo__list_dir(wrpo__arena *arena, const char *dir) {
    wrpo__name *names = NULL;
#ifdef _WIN32
    WIN32_FIND_DATAA e;
    HANDLE h = FindFirstFileA(wrpo__join(arena, dir, "*"), &e);
    if (h == INVALID_HANDLE_VALUE) wrpo__fail(arena->ctx, WRPO_E_IO, "%s: cannot be listed", dir);
    do { wrpo__name name = {wrpo__strndup(arena, e.cFileName, strlen(e.cFileName))}; stbds_arrput(names, name); } while (FindNextFileA(h, &e));
    FindClose(h);
#else
    wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__dir_close, NULL);
    DIR *d = owner->p = opendir(dir);
    if (!d) wrpo__fail(arena->ctx, WRPO_E_IO, "%s: cannot be listed: %s", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        wrpo__name name = {wrpo__strndup(arena, e->d_name, strlen(e->d_name))};
        stbds_arrput(names, name);
    }
    owner->p = NULL;
    closedir(d);
#endif
    if (names) qsort(names, (size_t)stbds_arrlen(names), sizeof *names, wrpo__by_name);
    return names;
}
/* A file that appears under its name whole or not at all: written beside it, synced, then renamed. */
typedef struct wrpo__writer { wrpo_ctx *ctx; char *path, *part; FILE *f; bool waits; } wrpo__writer;
static void wrpo__writer_drop(void *p) {
    wrpo__writer *w = p;
    if (w->f) fclose(w->f);
    if (w->f || w->waits) remove(w->part);
    w->f = NULL, w->waits = false;
}
static wrpo__writer *wrpo__create(wrpo__arena *arena, const char *path) {
    wrpo__writer *w = WRPO__NEW(arena, wrpo__writer);
    w->ctx = arena->ctx;
    w->path = wrpo__strndup(arena, path, strlen(path));
#ifdef _WIN32
    w->part = wrpo__format(arena, "%s.%lu.part", path, (unsigned long)GetCurrentProcessId());
#else
    w->part = wrpo__format(arena, "%s.%ld.part", path, (long)getpid());
#endif
    wrpo__on_free(arena, wrpo__writer_drop, w);
    w->f = fopen(w->part, "wb");
    if (!w->f) wrpo__fail(w->ctx, WRPO_E_IO, "%s: cannot be written: %s", path, strerror(errno));
    return w;
}
static void wrpo__write(wrpo__writer *w, const void *p, size_t n) {
    if (n && fwrite(p, 1, n, w->f) != n) wrpo__fail(w->ctx, WRPO_E_IO, "%s: cannot be written: %s", w->path, strerror(errno));
}
/* The file is whole, and waits for its name: closed and synced, so that many can wait without a descriptor each. */
static void wrpo__finish(wrpo__writer *w) {
    bool ok = fflush(w->f) == 0;
    int e = errno;
#ifndef _WIN32
    if (ok && fsync(fileno(w->f)) != 0 && errno != EINVAL && errno != ENOTSUP) ok = false, e = errno;
#endif
    if (fclose(w->f) != 0 && ok) ok = false, e = errno;
    w->f = NULL, w->waits = true;
    if (!ok) wrpo__fail(w->ctx, WRPO_E_IO, "%s: cannot be written: %s", w->path, strerror(e));
}
static void wrpo__publish(wrpo__writer *w) {
#ifdef _WIN32
    bool ok = MoveFileExA(w->part, w->path, MOVEFILE_REPLACE_EXISTING) != 0;
    errno = EIO;
#else
    bool ok = rename(w->part, w->path) == 0;
#endif
    if (!ok) wrpo__fail(w->ctx, WRPO_E_IO, "%s: cannot be written: %s", w->path, strerror(errno));
    w->waits = false;
}
static void wrpo__commit(wrpo__writer *w) { wrpo__finish(w), wrpo__publish(w); }

/* ---- time, threads ---- */
static double wrpo__now(void) {      /* seconds */
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
/* WRPO__PARFOR(threads) for (int64_t i = ...; i < n; i++) body: iterations are independent and each writes
   places of its own; sums are never shared between iterations, so the thread count cannot show in a result.
   WRPO__PARROWS: the same over n rows of D numbers, as many rows at a time as are worth fetching. */
#define WRPO__PRAGMA(x) _Pragma(#x)
#ifdef _OPENMP
#define WRPO__PARFOR(threads) WRPO__PRAGMA(omp parallel for num_threads(threads) schedule(dynamic, 1))
#define WRPO__PARROWS(cpu, n, D) WRPO__PRAGMA(omp parallel for num_threads(wrpo__cpu_team(cpu, (n) * (D))) schedule(dynamic, wrpo__cpu_chunk(D)))
#else
#define WRPO__PARFOR(threads) (void)(threads);
#define WRPO__PARROWS(cpu, n, D) (void)(wrpo__cpu_team(cpu, (n) * (D)) + wrpo__cpu_chunk(D));
#endif

/* ---- numbers: Philox4x32-10 (Salmon et al. 2011), a counter-based generator; and a 64-bit hash ---- */
typedef struct wrpo__philox { uint32_t v[4]; } wrpo__philox;
static wrpo__philox wrpo__random(uint64_t seed, uint64_t stream, uint64_t counter) {
    uint32_t c[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[0] = n0, c[1] = (uint32_t)b, c[2] = n2, c[3] = (uint32_t)a;
    }
    wrpo__philox r = {{c[0], c[1], c[2], c[3]}};
    return r;
}
static uint64_t wrpo__random64(uint64_t seed, uint64_t stream, uint64_t counter) {
    wrpo__philox r = wrpo__random(seed, stream, counter);
    return (uint64_t)r.v[0] << 32 | r.v[1];
}
static double wrpo__normal(uint64_t seed, uint64_t stream, uint64_t counter) {   /* Box-Muller */
    wrpo__philox r = wrpo__random(seed, stream, counter);
    double u = ((double)r.v[0] + 0.5) / 4294967296.0, v = ((double)r.v[1] + 0.5) / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}
static uint64_t wrpo__hash(uint64_t h, const void *p, size_t n) {   /* chains; not against adversaries */
    const unsigned char *s = p;
    h ^= n * 0x9E3779B97F4A7C15u;
    while (n) {
        uint64_t w = 0;
        size_t k = WRPO__MIN(n, 8);
        memcpy(&w, s, k);
        h = (h ^ w) * 0xBF58476D1CE4E5B9u;
        h ^= h >> 29;
        s += k, n -= k;
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
    uint32_t u = wrpo__float_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1)) >> 16);
}
/* A float master in two halves: high, the nearest bfloat16, and low, what that left over: bits = (high << 16) + (int16_t)low. */
static float wrpo__master(uint16_t high, uint16_t low) { return wrpo__bits_float(((uint32_t)high << 16) + (uint32_t)(int16_t)low); }
static void wrpo__master_split(float x, uint16_t *high, uint16_t *low) {
    const uint32_t bits = wrpo__float_bits(x);
    *high = (uint16_t)((bits + 0x8000u) >> 16), *low = (uint16_t)bits;
}
WRPO_API const char *wrpo_moments_name(int i) { return i == 0 ? "f32" : i == 1 ? "bf16" : i == 2 ? "8bit" : NULL; }
WRPO_API size_t wrpo_moments_bytes(wrpo_moments moments, int64_t count) {
    if (moments == WRPO_MOMENTS_8BIT) return (size_t)wrpo__div_up(count, WRPO_BLOCK) * WRPO_BLOCK_BYTES;
    return moments == WRPO_MOMENTS_BF16 ? (size_t)wrpo__div_up(count, WRPO_BLOCK) * WRPO_BLOCK * 2 : (size_t)count * 4;
}

/* ---- context ---- */
static void *wrpo__malloc(size_t n, void *user) { (void)user; return malloc(n); }
static void wrpo__mfree(void *p, void *user) { (void)user; free(p); }
static wrpo_result wrpo__open_fails(const wrpo_desc *d, wrpo_result r, const char *text) {
    if (d->why) d->why->code = r, d->why->line = d->why->column = 0, snprintf(d->why->text, sizeof d->why->text, "%s", text);
    return r;
}
WRPO_API wrpo_result wrpo_open(const wrpo_desc *desc, wrpo_ctx **out) {
    wrpo_desc d = {0};
    *out = NULL;
    if (desc) d = *desc;
    if (!d.memory.alloc != !d.memory.free || d.threads < 0) return wrpo__open_fails(&d, WRPO_E_ARG, "wrpo_open: want both functions of memory or none, and no negative number of threads");
    if (!d.memory.alloc) d.memory.alloc = wrpo__malloc, d.memory.free = wrpo__mfree;
#ifdef _OPENMP
    if (!d.threads) d.threads = omp_get_max_threads();
#else
    d.threads = 1;
#endif
    if (!d.backend) d.backend = wrpo_backend_cpu();
    if (!d.dtype) d.dtype = d.backend->dtype;
    if (d.dtype != WRPO_DTYPE_F32 && d.dtype != WRPO_DTYPE_BF16) return wrpo__open_fails(&d, WRPO_E_ARG, "wrpo_open: dtype: want f32 or bf16");
    wrpo_ctx *ctx = d.memory.alloc(sizeof *ctx, d.memory.user);
    if (!ctx) return wrpo__open_fails(&d, WRPO_E_MEMORY, "out of memory");
    memset(ctx, 0, sizeof *ctx);
    ctx->desc = d;
    ctx->handouts = wrpo__arena_new(ctx);
    snprintf(ctx->error.text, sizeof ctx->error.text, "out of memory");
    wrpo_result r = ctx->handouts ? d.backend->open(&ctx->dev, &ctx->desc, &ctx->error) : WRPO_E_MEMORY;
    if (r == WRPO_OK) {
        ctx->error = (wrpo_error){0};
        *out = ctx;
        return r;
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

/* --------------------------------------------------------------------------------------------- >>loss
   Where is WRPO? On this page. Everything else in the file computes the numbers that go in here.

   A prompt x comes with three responses, ranked by a reward model:

     y_ws  source     the best answer of other models, whose strength is to be learned
     y_wt  target     the best answer of the model in training (pi)
     y_l   rejected   the worst answer of the model in training

   A reward that needs no reward model (DPO's): how much likelier is y under pi than under the frozen
   copy ref that the run began with? log-probs are sums over the tokens of y.

     d(y) = log pi(y|x) - log ref(y|x)              reward(y) = beta d(y)

   DPO would raise y_ws above y_l. But other models' answers are improbable under pi, and pulling at them
   hard from the start wrecks it. WRPO averages the rewards of both good answers and shifts the weight
   from its own to the source's while it learns, alpha = 0 -> 0.1 over the T steps of the run:

     z = beta ( alpha d(y_ws) + (1 - alpha) d(y_wt) - d(y_l) )
     L = -(1 - eps) log sigmoid(z) - eps log sigmoid(-z)           eps: label smoothing, usually 0
     g = dL/dz = eps - sigmoid(-z)

     dL/dlog pi(y_ws) = beta alpha g     dL/dlog pi(y_wt) = beta (1 - alpha) g     dL/dlog pi(y_l) = -beta g

   Those three numbers are all that the model's backward pass needs to know of the method. At step 0
   pi = ref, so z = 0, L = ln 2 and g = -1/2. At alpha = 0 this is DPO on (y_wt, y_l), at 1 on (y_ws, y_l).

   The family. With scores s(y) and shares a(y) of the chosen responses (they sum to 1), every method is

     WRPO             link( scale (sum_y a(y) s(y) - s(y_l) - offset) )            the mean stands inside the link
     pair methods     sum_y a(y) link( scale (s(y) - s(y_l) - offset) )            the mean stands outside; y_l is y's own
     SFT              sum_y a(y) -log pi(y|x) / tokens

   and the table below says which score, scale, offset and link. FuseRL (2025) is these on K sources with shares
   a = softmax(reward / tau) that the data bring: SFT on their best answers, then a pair method on each one's best
   and worst. EAST weights a record's loss by the entropy of its answers. >>select writes such data.       */
typedef enum wrpo__link { WRPO__LOGISTIC, WRPO__SQUARE, WRPO__HINGE, WRPO__LIKELIHOOD } wrpo__link;

typedef struct wrpo__rule { const char *name; wrpo__link link; double beta; bool reference, per_token; } wrpo__rule;
static const wrpo__rule wrpo__rules[] = {
/*   method                     name        link              beta   s has -log ref   s per token      scale  offset      source */
    [WRPO_METHOD_WRPO]     = {"wrpo",     WRPO__LOGISTIC,   0.01,  true,            false},         /* beta   0           Yang et al. 2025 */
    [WRPO_METHOD_DPO]      = {"dpo",      WRPO__LOGISTIC,   0.01,  true,            false},         /* beta   0           Rafailov et al. 2023 */
    [WRPO_METHOD_IPO]      = {"ipo",      WRPO__SQUARE,     0.01,  true,            true},          /* 1      1/(2 beta)  Azar et al. 2024 */
    [WRPO_METHOD_HINGE]    = {"hinge",    WRPO__HINGE,      0.01,  true,            false},         /* beta   0           Zhao et al. 2023 */
    [WRPO_METHOD_SIMPO]    = {"simpo",    WRPO__LOGISTIC,   10,    false,           true},          /* beta   gamma/beta  Meng et al. 2024 */
    [WRPO_METHOD_DPO_NORM] = {"dpo-norm", WRPO__LOGISTIC,   10,    true,            true},          /* beta   0           Yang et al. 2025b */
    [WRPO_METHOD_SFT]      = {"sft",      WRPO__LIKELIHOOD, 0.01,  false,           false}};

/* ---- names: one list each; NULL past the last ---- */
static const char *const wrpo__pairs[] = {[WRPO_PAIR_TARGET] = "target", [WRPO_PAIR_SOURCE] = "source", [WRPO_PAIR_BOTH] = "both"};
static const char *const wrpo__ramps[] = {[WRPO_ALPHA_SCHEDULE_LINEAR] = "linear", [WRPO_ALPHA_SCHEDULE_CONSTANT] = "constant", [WRPO_ALPHA_SCHEDULE_POWER] = "power", [WRPO_ALPHA_SCHEDULE_COSINE] = "cosine"};
static const char *const wrpo__schedules[] = {[WRPO_LR_SCHEDULE_COSINE] = "cosine", [WRPO_LR_SCHEDULE_LINEAR] = "linear", [WRPO_LR_SCHEDULE_CONSTANT] = "constant"};
WRPO_API const char *wrpo_method_name(int i) { return i >= 0 && i < WRPO__COUNT(wrpo__rules) ? wrpo__rules[i].name : NULL; }
WRPO_API const char *wrpo_pair_name(int i) { return i >= 0 && i < WRPO__COUNT(wrpo__pairs) ? wrpo__pairs[i] : NULL; }
WRPO_API const char *wrpo_alpha_schedule_name(int i) { return i >= 0 && i < WRPO__COUNT(wrpo__ramps) ? wrpo__ramps[i] : NULL; }
WRPO_API const char *wrpo_lr_schedule_name(int i) { return i >= 0 && i < WRPO__COUNT(wrpo__schedules) ? wrpo__schedules[i] : NULL; }

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
/* The sources' part in the average over the chosen responses; the target's is the rest. SFT is on the
   sources' answers, or on the one answer there is (`messages`, or the chosen one of a plain pair).     */
static double wrpo__source_share(const wrpo_loss_desc *d, double alpha, bool has_source, bool has_target) {
    switch (d->method) {
    case WRPO_METHOD_WRPO: return alpha;
    case WRPO_METHOD_SFT: return has_source ? 1 : 0;
    default: return has_source && !has_target ? 1 : d->pair == WRPO_PAIR_SOURCE ? 1 : d->pair == WRPO_PAIR_BOTH ? 0.5 : 0;
    }
}
/* a(y): 0 for a response that is left out, or is rejected. K sources share by their weights, which sum to 1. */
static double wrpo__share(double source_share, const wrpo_response *y) {
    return y->role == WRPO_ROLE_SOURCE ? source_share * y->weight : y->role == WRPO_ROLE_TARGET ? 1 - source_share : 0;
}
static bool wrpo__per_token(const wrpo_loss_desc *d) {
    return wrpo__rules[d->method].per_token && !(d->method == WRPO_METHOD_IPO && d->ipo_sum);
}
/* s(y) */
static double wrpo__score(const wrpo_loss_desc *d, const wrpo_response *y) {
    double s = wrpo__rules[d->method].reference ? y->logp - y->ref : y->logp;
    return wrpo__per_token(d) ? s / (double)y->tokens : s;
}
static bool wrpo__has(wrpo_role role, const wrpo_response *r, int n) {
    for (int i = 0; i < n; i++)
        if (r[i].role == role) return true;
    return false;
}
/* Is y the opponent of chosen response x? A pair method compares within a pair. */
static bool wrpo__against(const wrpo_loss_desc *d, const wrpo_response *x, const wrpo_response *y) {
    return y->role == WRPO_ROLE_REJECTED && (d->method == WRPO_METHOD_WRPO || x->pair == y->pair);
}
static int wrpo__opponents(const wrpo_loss_desc *d, const wrpo_response *x, const wrpo_response *r, int n, double *mean) {   /* s(y_l) for x */
    int count = 0;
    *mean = 0;
    for (int i = 0; i < n; i++)
        if (wrpo__against(d, x, &r[i])) *mean += wrpo__score(d, &r[i]), count++;
    *mean /= count;
    return count;
}
/* NULL, or what the record lacks for this method at this alpha. */
static const char *wrpo__record_check(const wrpo_loss_desc *d, double alpha, const wrpo_response *r, int n) {
    int sources = 0, targets = 0, rejected = 0;
    double weight = 0;
    for (int i = 0; i < n; i++) {
        if (r[i].role == WRPO_ROLE_SOURCE) sources++, weight += r[i].weight >= 0 ? r[i].weight : NAN;
        else if (r[i].role == WRPO_ROLE_TARGET) targets++;
        else if (r[i].role == WRPO_ROLE_REJECTED) rejected++;
        else return "a response has no valid role";
    }
    const double a = wrpo__source_share(d, alpha, sources > 0, targets > 0);
    double mean;
    if (d->method == WRPO_METHOD_SFT && sources + targets == 0) return "sft needs a response to learn from";
    if (a > 0 && sources == 0) return "the method needs a source response (the first of two in \"chosen\")";
    if (a < 1 && targets == 0) return "the method needs a target response (the last in \"chosen\")";
    if (d->method != WRPO_METHOD_SFT && rejected == 0) return "the method needs a rejected response";
    if (targets > 1) return "want one target response, found several";
    if (sources && !(fabs(weight - 1) < 1e-6)) return "the weights of the source responses do not sum to 1";
    for (int i = 0; i < n; i++) {
        if (r[i].role != WRPO_ROLE_REJECTED && wrpo__share(a, &r[i]) == 0) continue;      /* left out: may be anything */
        if (r[i].role == WRPO_ROLE_REJECTED && d->method == WRPO_METHOD_SFT) continue;
        if (r[i].role != WRPO_ROLE_REJECTED && d->method != WRPO_METHOD_SFT && !wrpo__opponents(d, &r[i], r, n, &mean)) return "a chosen response has no rejected one in its pair";
        if (wrpo__per_token(d) && r[i].tokens < 1) return "the method divides by the length of a response that has no tokens";
        if (!isfinite(r[i].logp) || (wrpo__rules[d->method].reference && !isfinite(r[i].ref))) return "a log-probability is not finite";
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
        /* -log sigmoid(-z) = -log sigmoid(z) + z, so the smoothed loss is one softplus and a slope, and at
           z = 0 ln 2 whatever eps is. sigmoid(-z) rather than 1 - sigmoid(z): no cancellation at large z. */
        *g = eps - wrpo__sigmoid(-z);
        return wrpo__softplus(-z) + eps * z;
    }
}

/* ---- the loss of one record ---- */
WRPO_API double wrpo_loss(const wrpo_loss_desc *desc, double alpha, wrpo_response *r, int n, double sft_tokens, const char **why) {
    for (int i = 0; i < n; i++) r[i].dlogp = 0;
    const char *wrong = wrpo__loss_check(desc, alpha);
    const wrpo_loss_desc d = wrpo__loss_defaults(*desc);
    if (!wrong) wrong = wrpo__record_check(&d, alpha, r, n);
    if (!wrong && d.method == WRPO_METHOD_SFT && !(sft_tokens > 0)) wrong = "sft_tokens: want the number of scored tokens of the batch";
    if (why) *why = wrong;
    if (wrong) return NAN;

    const wrpo__rule *rule = &wrpo__rules[d.method];
    const double a = wrpo__source_share(&d, alpha, wrpo__has(WRPO_ROLE_SOURCE, r, n), wrpo__has(WRPO_ROLE_TARGET, r, n));
    double loss = 0, chosen = 0, rejected = 0, g = 0;
    if (rule->link == WRPO__LIKELIHOOD) {
        for (int i = 0; i < n; i++) {
            double share = wrpo__share(a, &r[i]);
            if (share == 0) continue;
            r[i].dlogp = -share / sft_tokens;
            loss += r[i].dlogp * r[i].logp;
        }
        return loss;
    }
    const double scale = rule->link == WRPO__SQUARE ? 1 : d.beta;
    const double offset = rule->link == WRPO__SQUARE ? 1 / (2 * d.beta) : d.method == WRPO_METHOD_SIMPO ? d.gamma_ratio : 0;

    /* 1. The loss, and dL/ds(y) of the chosen responses. A share of 0 is skipped rather than multiplied by, so that
          a response which is left out cannot touch a bit of the result and need not have been computed. */
    if (d.method == WRPO_METHOD_WRPO) {
        wrpo__opponents(&d, r, r, n, &rejected);
        for (int i = 0; i < n; i++)
            if (wrpo__share(a, &r[i]) != 0) chosen += wrpo__share(a, &r[i]) * wrpo__score(&d, &r[i]);
        loss = wrpo__link_loss(rule->link, scale * (chosen - rejected - offset), d.label_smoothing, &g);
        for (int i = 0; i < n; i++)
            if (wrpo__share(a, &r[i]) != 0) r[i].dlogp = wrpo__share(a, &r[i]) * (scale * g);
    } else
        for (int i = 0; i < n; i++) {
            double share = wrpo__share(a, &r[i]);
            if (share == 0) continue;
            wrpo__opponents(&d, &r[i], r, n, &rejected);
            loss += share * wrpo__link_loss(rule->link, scale * (wrpo__score(&d, &r[i]) - rejected - offset), d.label_smoothing, &g);
            r[i].dlogp = share * (scale * g);
        }

    /* 2. What pulls the chosen up pushes their rejected down; WRPO's shares sum to 1. */
    for (int k = 0; k < n; k++) {
        double pull = d.method == WRPO_METHOD_WRPO ? scale * g : 0;
        if (r[k].role != WRPO_ROLE_REJECTED) continue;
        for (int i = 0; i < n && d.method != WRPO_METHOD_WRPO; i++)
            if (r[i].role != WRPO_ROLE_REJECTED && wrpo__against(&d, &r[i], &r[k])) pull += r[i].dlogp;
        r[k].dlogp = -pull / wrpo__opponents(&d, &r[k], r, n, &rejected);
    }

    /* 3. ds/dlogp: 1 or 1 / |y| */
    for (int i = 0; i < n; i++)
        if (r[i].dlogp == 0) r[i].dlogp = 0;           /* no negative zeros */
        else if (wrpo__per_token(&d)) r[i].dlogp /= (double)r[i].tokens;
    return loss;
}

/* ---- for the metrics: rewards as the method sees them; SFT has none ---- */
static double wrpo__reward_of(const wrpo_loss_desc *desc, const wrpo_response *y) {
    const wrpo_loss_desc d = wrpo__loss_defaults(*desc);
    return d.method == WRPO_METHOD_SFT ? NAN : d.beta * wrpo__score(&d, y);
}
/* rewards/chosen: the average with the shares of the loss; NaN if a response it needs is not there. */
static double wrpo__weighted_reward(const wrpo_loss_desc *desc, double alpha, const wrpo_response *r, int n) {
    const double a = wrpo__source_share(desc, alpha, wrpo__has(WRPO_ROLE_SOURCE, r, n), wrpo__has(WRPO_ROLE_TARGET, r, n));
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
    const double a = wrpo__source_share(&d, 0, wrpo__has(WRPO_ROLE_SOURCE, r, n), false);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += wrpo__share(a, &r[i]) * (double)r[i].tokens;
    return sum;
}

/* ---- schedules: k optimizer steps done of T ---- */
WRPO_API double wrpo_alpha(wrpo_alpha_schedule schedule, double power, double end, int64_t k, int64_t T) {
    const double pi = 3.14159265358979323846;
    const double u = T <= 0 || k >= T ? 1 : k <= 0 ? 0 : (double)k / (double)T;
    if (power == 0) power = 2;
    end += 0.0;                      /* -0 becomes 0 */
    switch (schedule) {
    case WRPO_ALPHA_SCHEDULE_LINEAR: return end * u;
    case WRPO_ALPHA_SCHEDULE_CONSTANT: return end;
    case WRPO_ALPHA_SCHEDULE_POWER: return power > 0 ? end * pow(u, power) : NAN;
    case WRPO_ALPHA_SCHEDULE_COSINE: return end * (0.5 * (1 - cos(pi * u)));
    }
    return NAN;
}
WRPO_API double wrpo_lr_factor(wrpo_lr_schedule schedule, int64_t warmup, int64_t k, int64_t T) {
    const double pi = 3.14159265358979323846;
    k = k < 0 ? 0 : k > T && T >= 0 ? T : k;
    if (k < warmup) return (double)k / (double)warmup;
    const double rest = (double)WRPO__MAX(T - warmup, 1);
    switch (schedule) {
    case WRPO_LR_SCHEDULE_COSINE: return WRPO__MAX(0.5 * (1 + cos(pi * ((double)(k - warmup) / rest))), 0);
    case WRPO_LR_SCHEDULE_LINEAR: return WRPO__MAX((double)(T - k) / rest, 0);
    case WRPO_LR_SCHEDULE_CONSTANT: return 1;
    }
    return NAN;
}

/* ------------------------------------------------------------------------------------------- >>layout
   The table of weights, and memory measured before it is taken.                                        */

/* One row per kind of tensor: field, name in the checkpoint, rows, cols (0: a vector), where it exists.
   Loader, saver, optimizer and tests walk this table and nothing else. PER_LAYER names stand behind
   "model.layers.<l>.". A row marked JOINED follows the row above without a gap, so that the pair (q, k, v;
   gate, up) is one matrix and one product.                                                              */
#define WRPO__WEIGHTS(X) \
    X(embed_tokens,               ONCE,      "model.embed_tokens.weight",         V,     D,     true,                      false) \
    X(input_layernorm,            PER_LAYER, "input_layernorm.weight",            D,     0,     true,                      false) \
    X(q_proj,                     PER_LAYER, "self_attn.q_proj.weight",           H * d, D,     true,                      false) \
    X(k_proj,                     PER_LAYER, "self_attn.k_proj.weight",           G * d, D,     true,                      JOINED) \
    X(v_proj,                     PER_LAYER, "self_attn.v_proj.weight",           G * d, D,     true,                      JOINED) \
    X(q_bias,                     PER_LAYER, "self_attn.q_proj.bias",             H * d, 0,     c->attention_bias,         false) \
    X(k_bias,                     PER_LAYER, "self_attn.k_proj.bias",             G * d, 0,     c->attention_bias,         JOINED) \
    X(v_bias,                     PER_LAYER, "self_attn.v_proj.bias",             G * d, 0,     c->attention_bias,         JOINED) \
    X(q_norm,                     PER_LAYER, "self_attn.q_norm.weight",           d,     0,     c->qk_norm,                false) \
    X(k_norm,                     PER_LAYER, "self_attn.k_norm.weight",           d,     0,     c->qk_norm,                false) \
    X(o_proj,                     PER_LAYER, "self_attn.o_proj.weight",           D,     H * d, true,                      false) \
    X(o_bias,                     PER_LAYER, "self_attn.o_proj.bias",             D,     0,     c->output_bias,            false) \
    X(post_attention_layernorm,   PER_LAYER, "post_attention_layernorm.weight",   D,     0,     true,                      false) \
    X(pre_feedforward_layernorm,  PER_LAYER, "pre_feedforward_layernorm.weight",  D,     0,     c->post_norms,             false) \
    X(gate_proj,                  PER_LAYER, "mlp.gate_proj.weight",              I,     D,     true,                      false) \
    X(up_proj,                    PER_LAYER, "mlp.up_proj.weight",                I,     D,     true,                      JOINED) \
    X(down_proj,                  PER_LAYER, "mlp.down_proj.weight",              D,     I,     true,                      false) \
    X(post_feedforward_layernorm, PER_LAYER, "post_feedforward_layernorm.weight", D,     0,     c->post_norms,             false) \
    X(norm,                       AT_END,    "model.norm.weight",                 D,     0,     true,                      false) \
    X(lm_head,                    AT_END,    "lm_head.weight",                    V,     D,     c->head == WRPO_HEAD_LM && !c->tie_word_embeddings, false)
enum { WRPO__MAX_HIDDEN = 1 << 20, WRPO__MAX_D = 512 };        /* the largest hidden_size and head_dim of any backend */
typedef enum wrpo__kind {
#define WRPO__X(field, scope, name, rows, cols, exists, joined) WRPO__W_##field,
    WRPO__WEIGHTS(WRPO__X)
#undef WRPO__X
    WRPO__KINDS
} wrpo__kind;

struct wrpo_model {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_config config;
    const char *dir;                 /* where config.json and the side files lie that a save copies */
    wrpo_dtype dtype;                /* of the checkpoint: what a save writes by default */
    const char *tokenizer_dir;       /* the same for the tokenizer's files; dir unless made by wrpo_model_init */
    wrpo_weight *weights; int64_t n_weights;
    int64_t *at;                     /* [L][KINDS] -> index into weights, -1 where it does not exist */
    int64_t count;                   /* numbers in arrays that mirror the weights, gaps included (gaps stay 0) */
    uint16_t *low;                   /* [count] what is left of the masters of BF16 matrices; NULL: weights are what they are */
    bool frozen;
};
/* The weight of this kind in layer l (0 for those outside the layers); NULL where the model has none. */
static const wrpo_weight *wrpo__weight(const wrpo_model *model, wrpo__kind kind, int64_t l) {
    int64_t i = model->at[l * WRPO__KINDS + (int64_t)kind];
    return i < 0 ? NULL : &model->weights[i];
}
#define WRPO__W(model, field, l) wrpo__weight(model, WRPO__W_##field, l)

/* Walks the table for a config. With model NULL it only counts: *weights tensors, *count numbers with gaps.
   With model, its weights (but for dtype and data) and at are filled in. */
static void wrpo__layout_weights(const wrpo_config *c, wrpo_model *model, int64_t *weights, int64_t *count, int64_t *parameters) {
    enum { ONCE, PER_LAYER, AT_END, JOINED = 1 };
    const int64_t V = c->vocab_size, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, L = c->num_hidden_layers;
    const struct { int scope, joined; bool exists; const char *name; int64_t rows, cols; } table[] = {
#define WRPO__X(field, scope, name, rows, cols, exists, joined) {scope, joined, exists, name, rows, cols},
        WRPO__WEIGHTS(WRPO__X)
#undef WRPO__X
    };
    int64_t n = 0, offset = 0, total = 0;
    for (int scope = ONCE; scope <= AT_END; scope++)
        for (int64_t l = 0; l < (scope == PER_LAYER ? L : 1); l++)
            for (int64_t kind = 0; kind < WRPO__KINDS; kind++) {
                if (table[kind].scope != scope || !table[kind].exists) continue;
                int64_t size = table[kind].rows * WRPO__MAX(table[kind].cols, 1);
                if (!table[kind].joined) offset = (offset + WRPO_BLOCK - 1) / WRPO_BLOCK * WRPO_BLOCK;
                if (model) {
                    wrpo_weight *w = &model->weights[n];
                    w->name = scope == PER_LAYER ? wrpo__format(model->arena, "model.layers.%lld.%s", (long long)l, table[kind].name) : table[kind].name;
                    w->rows = table[kind].rows, w->cols = WRPO__MAX(table[kind].cols, 1);
                    w->vector = table[kind].cols == 0, w->decay = !w->vector;
                    w->at = offset;
                    for (int64_t k = scope == PER_LAYER ? l : 0; k <= (scope == PER_LAYER ? l : L - 1); k++) model->at[k * WRPO__KINDS + kind] = n;
                }
                n++, offset += size, total += size;
            }
    if (weights) *weights = n;
    if (count) *count = (offset + WRPO_BLOCK - 1) / WRPO_BLOCK * WRPO_BLOCK;
    if (parameters) *parameters = total;
}

static int64_t wrpo__layer_window(const wrpo_config *c, int64_t l) { return c->sliding_layers[l / 64] >> l % 64 & 1 ? c->sliding_window : 0; }

/* ---- memory of the backend, owned by an arena ---- */
typedef struct wrpo__device_block { wrpo_ctx *ctx; void *p; size_t n; } wrpo__device_block;
static void wrpo__device_release(void *p) {
    wrpo__device_block *b = p;
    if (!b->p) return;
    b->ctx->desc.backend->release(b->ctx->dev, b->p);
    b->ctx->bytes -= b->n, b->ctx->device_bytes -= b->n;
}
static void *wrpo__device_alloc(wrpo__arena *arena, size_t n, const char *what) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo__device_block *b = WRPO__NEW(arena, wrpo__device_block);
    b->ctx = ctx, b->n = n;
    wrpo__on_free(arena, wrpo__device_release, b);
    b->p = ctx->desc.backend->alloc(ctx->dev, WRPO__MAX(n, 1));
    if (!b->p && !ctx->desc.backend->host && ctx->desc.backend->room)
        wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %s: %zu bytes wanted, the device has %zu left", what, n, ctx->desc.backend->room(ctx->dev));
    if (!b->p) wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %s: %zu bytes wanted, %zu held", what, n, ctx->bytes);
    ctx->bytes += n, ctx->device_bytes += n;
    if (ctx->bytes > ctx->peak) ctx->peak = ctx->bytes;
    return b->p;
}
static size_t wrpo__room(const wrpo_ctx *ctx) {        /* bytes that may still be taken */
    const size_t limit = ctx->desc.memory_limit, room = ctx->desc.backend->room ? ctx->desc.backend->room(ctx->dev) : SIZE_MAX;
    return limit ? WRPO__MIN(room, limit - WRPO__MIN(limit, ctx->bytes)) : room;
}
/* A layout is run twice over one text: on base NULL to measure, on real memory to assign. */
typedef struct wrpo__bump { char *base; size_t used; bool overflow; } wrpo__bump;
static void *wrpo__take(wrpo__bump *b, int64_t rows, int64_t cols, size_t bytes) {
    size_t at = b->used, size = (size_t)rows * (size_t)cols;
    if (cols > 0 && (size_t)rows > SIZE_MAX / 16 / (size_t)cols) b->overflow = true;
    b->used += (size * bytes + WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN;
    if (b->used < at || b->used > SIZE_MAX / 2) b->overflow = true;
    return b->base ? b->base + at : NULL;
}
/* ---- weights in memory ---- */
static int64_t wrpo__size(const wrpo_weight *w) { return w->rows * w->cols; }
static size_t wrpo__dtype_size(wrpo_dtype dtype) { return dtype == WRPO_DTYPE_BF16 || dtype == WRPO_DTYPE_F16 ? 2 : 4; }
/* b lies right behind a: what is done to a may be done to both at once. */
static bool wrpo__follows(const wrpo_weight *a, const wrpo_weight *b) {
    const void *end = a->data ? (const char *)a->data + (size_t)wrpo__size(a) * wrpo__dtype_size(a->dtype) : NULL;
    return b->at == a->at + wrpo__size(a) && b->dtype == a->dtype && b->decay == a->decay && b->data == end;
}
/* The end of the run of such weights that begins at i; their numbers in *size. */
static int64_t wrpo__weight_run(const wrpo_weight *w, int64_t n, int64_t i, int64_t *size) {
    *size = wrpo__size(&w[i]);
    while (i + 1 < n && wrpo__follows(&w[i], &w[i + 1])) *size += wrpo__size(&w[++i]);
    return i + 1;
}
/* The table of a model, with its matrices of one dtype; nothing has a place yet. */
static wrpo_model *wrpo__model_table(wrpo__arena *arena, const wrpo_config *config, wrpo_dtype matrices) {
    wrpo_model *model = WRPO__NEW(arena, wrpo_model);
    model->ctx = arena->ctx, model->arena = arena, model->config = *config;
    wrpo__layout_weights(config, NULL, &model->n_weights, &model->count, NULL);
    model->weights = wrpo__alloc(arena, (size_t)model->n_weights, sizeof *model->weights);
    model->at = wrpo__alloc(arena, (size_t)config->num_hidden_layers, WRPO__KINDS * sizeof *model->at);
    for (int64_t i = 0; i < config->num_hidden_layers * WRPO__KINDS; i++) model->at[i] = -1;
    wrpo__layout_weights(config, model, NULL, NULL, NULL);
    for (int64_t i = 0; i < model->n_weights; i++) model->weights[i].dtype = model->weights[i].vector ? WRPO_DTYPE_F32 : matrices;
    return model;
}
/* Gives memory to the weights that have none yet. */
static void wrpo__place_weights(wrpo_model *model, wrpo__bump *b) {
    int64_t size;
    for (int64_t i = 0, end; i < model->n_weights; i = end) {
        wrpo_weight *w = &model->weights[i];
        end = wrpo__weight_run(w, model->n_weights - i, 0, &size) + i;
        if (w->data) continue;
        char *p = wrpo__take(b, (size + WRPO_BLOCK - 1) / WRPO_BLOCK * WRPO_BLOCK, 1, wrpo__dtype_size(w->dtype));     /* whole blocks, for adamw */
        for (; p && w < model->weights + end; p += (size_t)wrpo__size(w) * wrpo__dtype_size(w->dtype), w++) w->data = p;
    }
}
/* Masters: the low halves lie apart, where matrices that are trained are bfloat16. */
static bool wrpo__has_masters(const wrpo_ctx *ctx, bool frozen) { return !frozen && ctx->desc.dtype == WRPO_DTYPE_BF16; }
static void wrpo__model_memory(wrpo_model *model) {
    wrpo_ctx *ctx = model->ctx;
    wrpo__bump b = {0};
    wrpo__place_weights(model, &b);
    const size_t bytes = b.used, low = wrpo__mul(ctx, (size_t)model->count, sizeof *model->low);
    if (b.overflow) wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: the weights do not fit into the address space");
    b = (wrpo__bump){.base = wrpo__device_alloc(model->arena, bytes, "weights")};
    ctx->desc.backend->zero(ctx->dev, b.base, bytes);
    wrpo__place_weights(model, &b);
    if (!wrpo__has_masters(ctx, model->frozen)) return;
    model->low = wrpo__device_alloc(model->arena, low, "masters of the weights");
    ctx->desc.backend->zero(ctx->dev, model->low, low);
}
/* A model to train or to fill; every weight is 0. */
static wrpo_model *wrpo__model_new(wrpo__arena *arena, const wrpo_config *config) {
    wrpo_model *model = wrpo__model_table(arena, config, arena->ctx->desc.dtype);
    wrpo__model_memory(model);
    return model;
}
/* Numbers [first, first + count) of a weight as floats, in and out: the masters where there are any, else rounded to its dtype. */
enum { WRPO__HALVES = 8192 };        /* at a time */
static void wrpo__weight_get(const wrpo_model *model, const wrpo_weight *w, int64_t first, int64_t count, float *dst) {
    const wrpo_backend *be = model->ctx->desc.backend;
    void *dev = model->ctx->dev;
    uint16_t high[WRPO__HALVES], low[WRPO__HALVES] = {0};
    if (w->dtype == WRPO_DTYPE_F32) { be->get(dev, dst, (const float *)w->data + first, (size_t)count * sizeof *dst); return; }
    for (int64_t i = 0; i < count; i += WRPO__HALVES) {
        const int64_t n = WRPO__MIN(count - i, WRPO__HALVES);
        be->get(dev, high, (const uint16_t *)w->data + first + i, (size_t)n * 2);
        if (model->low) be->get(dev, low, model->low + w->at + first + i, (size_t)n * 2);
        for (int64_t k = 0; k < n; k++) dst[i + k] = wrpo__master(high[k], low[k]);
    }
}
static void wrpo__weight_put(wrpo_model *model, const wrpo_weight *w, int64_t first, int64_t count, const float *src) {
    const wrpo_backend *be = model->ctx->desc.backend;
    void *dev = model->ctx->dev;
    uint16_t high[WRPO__HALVES], low[WRPO__HALVES];
    if (w->dtype == WRPO_DTYPE_F32) { be->put(dev, (float *)w->data + first, src, (size_t)count * sizeof *src); return; }
    for (int64_t i = 0; i < count; i += WRPO__HALVES) {
        const int64_t n = WRPO__MIN(count - i, WRPO__HALVES);
        for (int64_t k = 0; k < n; k++) wrpo__master_split(src[i + k], &high[k], &low[k]);
        be->put(dev, (uint16_t *)w->data + first + i, high, (size_t)n * 2);
        if (model->low) be->put(dev, model->low + w->at + first + i, low, (size_t)n * 2);
    }
}
static void wrpo__sync(wrpo_ctx *ctx) {
    wrpo_error why = {WRPO_E_DEVICE, 0, 0, ""};
    if (ctx->desc.backend->sync(ctx->dev, &why) != WRPO_OK) wrpo__fail(ctx, why.code, "%s: %s", ctx->desc.backend->name, why.text);
}
/* Random weights: matrices N(0, initializer_range), norms that scale by 1, biases 0. Counter-based: an element depends
   on the seed, the tensor's name and its index. */
enum { WRPO__PIECE = 1 << 20 };      /* elements converted at a time: weights may be in a device's memory */
static void wrpo__model_randomize(wrpo_model *model, uint64_t seed) {
    const wrpo_config *c = &model->config;
    const int threads = model->ctx->desc.threads;
    float *piece = wrpo__raw(model->arena, WRPO__PIECE, sizeof *piece);
    for (int64_t i = 0; i < model->n_weights; i++) {
        const wrpo_weight *w = &model->weights[i];
        const uint64_t stream = wrpo__hash(0, w->name, strlen(w->name));
        const bool norm = w->vector && wrpo__ends(w->name, ".weight");
        for (int64_t at = 0, n; at < wrpo__size(w); at += n) {
            n = WRPO__MIN(wrpo__size(w) - at, WRPO__PIECE);
            for (int64_t k = 0; w->vector && k < n; k++) piece[k] = norm && !c->norm_plus_one;
            WRPO__PARFOR(threads)
            for (int64_t block = 0; block < (w->vector ? 0 : (n + 4095) / 4096); block++)
                for (int64_t k = block * 4096; k < WRPO__MIN(n, block * 4096 + 4096); k++)
                    piece[k] = (float)(c->initializer_range * wrpo__normal(seed ? seed : 42, stream, (uint64_t)(at + k)));
            wrpo__weight_put(model, w, at, n, piece);
        }
    }
    wrpo__block_free(piece);
    wrpo__sync(model->ctx);
}
static wrpo_model *wrpo__model_random(wrpo__arena *arena, const wrpo_config *config, uint64_t seed) {
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
static void wrpo__free_model(void *p) { wrpo_model_free(p); }

/* -------------------------------------------------------------------------------------------- >>model
   The decoder, forward and backward, over a packed micro-batch. Written once, in ops of the backend table.

   Packing. A record is one prompt of P tokens and K responses of R_k tokens; it takes P + sum R_k rows:

       row   0 ...  P-1 | P ... P+R_1-1 | ...            the prompt's hidden states are computed once.
             prompt     | response 1    | response 2     Positions of every response go on from P; a response
       pos   0 ...  P-1 | P ... P+R_1-1 | P ... P+R_2-1  attends to the prompt and, causally, to itself.

   Records follow each other; there is no padding. The token at response position j is predicted by the row
   before it: the prompt's last row for j = 0. Only those rows ("targets") meet the LM head, in chunks.

   One step on a micro-batch: pack, forward (log-probs), loss on the host, backward (gradients accumulated). */

typedef struct wrpo__acts {          /* what the backward pass needs of one layer; n rows, act_bytes each */
    void *x;                         /* [n, D]  residual stream entering the layer */
    void *mid;                       /* [n, D]  after attention */
    void *qkv;                       /* [n, (H+2G)d]  q and k rotated */
    void *qk0;                       /* [n, (H+G)d]  q and k before their norms; only with qk_norm */
    void *o;                         /* [n, Hd]  attention output */
    void *gu;                        /* [n, 2I]  gate | up */
    void *add_1, *add_2;             /* [n, D]  what attention and MLP add, before their norms; only with post_norms */
    float *rstd_1, *rstd_2;          /* [n] */
    float *rstd_add_1, *rstd_add_2;  /* [n]; only with post_norms */
    float *rstd_q, *rstd_k;          /* [n, H], [n, G]; only with qk_norm */
    float *lse;                      /* [n, H] */
} wrpo__acts;
typedef struct wrpo__shape {         /* capacities of a run */
    int64_t rows;                    /* packed rows; targets and segments are never more */
    int64_t chunk;                   /* targets per chunk of the head */
    bool logits;                     /* there is room for those of all rows, not of a chunk only */
    int64_t recompute;               /* layers [0, recompute) keep only x */
    int64_t cache;                   /* rows of keys and values that outlive a forward pass, for decoding; 0 = none */
    bool train;
} wrpo__shape;
typedef struct wrpo__run {           /* a workspace for micro-batches, and the one that is packed in it */
    wrpo_model *model;
    wrpo__shape shape;
    /* host */
    int64_t n, segs, targets;
    int32_t *h_ids, *h_rows, *h_target, *h_place;      /* place: with a cache, where in it a row's key and value go */
    wrpo_seg *h_segs;
    float *h_rope, *h_logp, *h_coef, *h_mean;          /* rope [n, d/2, 2]; mean [n]: mean logit of each row, if wanted */
    /* backend */
    int32_t *ids, *rows, *target, *place;
    void *cache;                     /* [L][shape.cache, 2Gd]  k | v */
    wrpo_seg *d_segs;
    float *rope, *inv_freq;          /* inv_freq [rope dims / 2] is on the host */
    double rope_scale;
    int64_t rope_key;                /* of the sequences that inv_freq is for */
    float *logp, *lse, *coef, *mean, *mean_w;          /* mean_w [D]: sum of the LM head's rows */
    wrpo__acts *layer;               /* [L + 1]; x of the last one enters the final norm */
    wrpo__acts scratch;              /* shared by layers that keep nothing */
    void *norm, *h;                  /* [n, D], [n, I]: a norm's output, the MLP's inside; valid within a layer */
    void *y;                         /* [n, D]  final norm's output */
    float *rstd_f;
    void *hid, *dhid; float *logits; /* [span, D], [span, D], [span, V]: wrpo__span */
    bool held;                       /* logits and lse are those of all targets: the backward pass need not make them again */
    void *dlogits;                   /* [chunk, V]; NULL where activations are float: it replaces the logits then */
    void *dx, *dqkv, *dgu, *d_o, *dh, *dy;             /* backward only */
    void *attn_scratch;
    size_t bytes, head_bytes;
} wrpo__run;

static int64_t wrpo__span(const wrpo__shape *s) { return s->logits ? s->rows : s->chunk; }     /* targets that the logits have room for */
/* Bytes and places of a run on the backend. */
static void wrpo__run_layout(wrpo_ctx *ctx, const wrpo_config *c, const wrpo__shape *s, wrpo__run *r, wrpo__bump *b) {
    const wrpo_backend *be = ctx->desc.backend;
    const size_t A = (size_t)be->act_bytes, F = sizeof(float);
    const int64_t V = c->vocab_size, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim, L = c->num_hidden_layers;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, n = s->rows;
    r->ids = wrpo__take(b, n, 1, 4), r->rows = wrpo__take(b, n, 1, 4), r->target = wrpo__take(b, n, 1, 4);
    r->d_segs = wrpo__take(b, n, 1, sizeof(wrpo_seg));
    r->place = s->cache ? wrpo__take(b, n, 1, 4) : NULL, r->cache = s->cache ? wrpo__take(b, s->cache, L * 2 * G * d, A) : NULL;
    r->rope = wrpo__take(b, n, d, F);
    r->logp = wrpo__take(b, n, 1, F), r->lse = wrpo__take(b, n, 1, F), r->coef = wrpo__take(b, n, 1, F);
    r->mean = wrpo__take(b, n, 1, F), r->mean_w = wrpo__take(b, D, 1, F);
    for (int64_t l = -1; l <= L; l++) {                /* -1: the scratch layer; L: only x */
        wrpo__acts *a = l < 0 ? &r->scratch : b->base ? &r->layer[l] : &(wrpo__acts){0};
        bool full = l < 0 ? !s->train || s->recompute > 0 : s->train && l < L && l >= s->recompute;
        bool x = l < 0 ? !s->train : s->train;
        a->x = x ? wrpo__take(b, n, D, A) : NULL;
        if (!full) continue;
        a->mid = s->train ? wrpo__take(b, n, D, A) : a->x;
        a->qkv = wrpo__take(b, n, (H + 2 * G) * d, A);
        a->qk0 = c->qk_norm ? wrpo__take(b, n, (H + G) * d, A) : NULL;
        a->o = wrpo__take(b, n, H * d, A);
        a->gu = wrpo__take(b, n, 2 * I, A);
        a->add_1 = c->post_norms ? wrpo__take(b, n, D, A) : NULL, a->add_2 = c->post_norms ? wrpo__take(b, n, D, A) : NULL;
        a->rstd_1 = wrpo__take(b, n, 1, F), a->rstd_2 = wrpo__take(b, n, 1, F);
        a->rstd_add_1 = c->post_norms ? wrpo__take(b, n, 1, F) : NULL, a->rstd_add_2 = c->post_norms ? wrpo__take(b, n, 1, F) : NULL;
        a->rstd_q = c->qk_norm ? wrpo__take(b, n, H, F) : NULL, a->rstd_k = c->qk_norm ? wrpo__take(b, n, G, F) : NULL;
        a->lse = wrpo__take(b, n, H, F);
    }
    r->norm = wrpo__take(b, n, D, A), r->h = wrpo__take(b, n, I, A);
    r->y = wrpo__take(b, n, D, A), r->rstd_f = wrpo__take(b, n, 1, F);
    size_t before_head = b->used;
    const int64_t span = wrpo__span(s);
    r->hid = wrpo__take(b, span, D, A), r->logits = wrpo__take(b, span, V, F);
    if (s->train) {
        r->dhid = wrpo__take(b, span, D, A);
        r->dlogits = A == F ? NULL : wrpo__take(b, s->chunk, V, A);
    }
    r->head_bytes = b->used - before_head;
    if (s->train) {
        r->dx = wrpo__take(b, n, D, A), r->dy = wrpo__take(b, n, D, A);
        r->dqkv = wrpo__take(b, n, (H + 2 * G) * d, A), r->d_o = wrpo__take(b, n, H * d, A);
        r->dgu = wrpo__take(b, n, 2 * I, A), r->dh = wrpo__take(b, n, I, A);
        r->attn_scratch = wrpo__take(b, (int64_t)be->attention_scratch(ctx->dev, n, H, G, d), 1, 1);
    }
    r->bytes = b->used;
}
/* Targets per chunk of the head: about 64 MiB of logits, 32 to 512 of them; on a device, which wants large products, 8 times that. */
static int64_t wrpo__head_chunk(const wrpo_ctx *ctx, const wrpo_config *c, int64_t rows) {
    const int64_t more = ctx->desc.backend->host ? 1 : 8, chunk = (more << 26) / (4 * c->vocab_size) / 32 * 32;
    return WRPO__MIN(rows, WRPO__MAX(32, WRPO__MIN(512 * more, chunk)));
}
/* Host bytes of the packing buffers, per row. */
static size_t wrpo__run_host_bytes(const wrpo_config *c, int64_t rows) {
    return (size_t)rows * (3 * sizeof(int32_t) + sizeof(wrpo_seg) + 3 * sizeof(float) + (size_t)c->head_dim * sizeof(float));
}

/* ---- rotary embedding (Su et al. 2021): inverse frequencies, in the float arithmetic of the reference ----
   Two types look at the length of the whole sequence, prompt and response: longrope takes other factors beyond the original
   length, dynamic another theta for each length beyond max_position_embeddings. Sequences of one key turn alike.          */
static int64_t wrpo__rope_dims(const wrpo_config *c) { return c->rope.dims ? c->rope.dims : c->head_dim; }
static int64_t wrpo__rope_key(const wrpo_config *c, int64_t length) {
    if (c->rope.type == WRPO_ROPE_LONGROPE) return length > c->rope.original_max_position_embeddings;
    return c->rope.type == WRPO_ROPE_DYNAMIC && length > c->max_position_embeddings ? length : 0;
}
static void wrpo__inv_freq(const wrpo_config *c, int64_t key, float *inv, double *scale) {
    const wrpo_rope *p = &c->rope;
    const int64_t d = wrpo__rope_dims(c);
    const double pi = 3.14159265358979323846;
    float theta = (float)p->theta;
    *scale = 1;
    if (p->type == WRPO_ROPE_DYNAMIC && key)
        theta *= powf((float)p->factor * (float)key / (float)c->max_position_embeddings - (float)(p->factor - 1), (float)((double)d / (double)(d - 2)));
    for (int64_t i = 0; i < d / 2; i++) inv[i] = 1.0f / powf(theta, (float)(2 * i) / (float)d);
    if (p->type == WRPO_ROPE_LONGROPE) {               /* Ding et al. 2024 */
        for (int64_t i = 0; i < d / 2; i++) inv[i] = 1.0f / ((key ? p->long_factor : p->short_factor)[i] * powf(theta, (float)(2 * i) / (float)d));
        *scale = p->attention_factor;
    }
    if (p->type == WRPO_ROPE_LINEAR)
        for (int64_t i = 0; i < d / 2; i++) inv[i] /= (float)p->factor;
    if (p->type == WRPO_ROPE_LLAMA3) {                 /* long waves slowed by factor, short ones kept, a ramp between */
        const float low = (float)((double)p->original_max_position_embeddings / p->low_freq_factor);
        const float high = (float)((double)p->original_max_position_embeddings / p->high_freq_factor);
        for (int64_t i = 0; i < d / 2; i++) {
            float wave = (float)(2 * pi) / inv[i];
            float smooth = ((float)p->original_max_position_embeddings / wave - (float)p->low_freq_factor)
                         / (float)(p->high_freq_factor - p->low_freq_factor);
            if (wave > low) inv[i] /= (float)p->factor;
            else if (wave >= high) inv[i] = (1 - smooth) * (inv[i] / (float)p->factor) + smooth * inv[i];
        }
    }
    if (p->type == WRPO_ROPE_YARN) {                   /* Peng et al. 2023: by number of turns within the original length */
        double length = (double)p->original_max_position_embeddings;
        double first = (double)d * log(length / (p->beta_fast * 2 * pi)) / (2 * log(p->theta));
        double last = (double)d * log(length / (p->beta_slow * 2 * pi)) / (2 * log(p->theta));
        if (p->yarn_truncate) first = floor(first), last = ceil(last);
        first = WRPO__MAX(first, 0), last = WRPO__MIN(last, (double)(d - 1));
        if (first == last) last += 0.001;
        for (int64_t i = 0; i < d / 2; i++) {
            float ramp = ((float)i - (float)first) / (float)(last - first);
            float keep = 1 - WRPO__MIN(WRPO__MAX(ramp, 0.0f), 1.0f);
            inv[i] = inv[i] / (float)p->factor * (1 - keep) + inv[i] * keep;
        }
        *scale = p->attention_factor;
    }
}

static wrpo__run *wrpo__run_new(wrpo__arena *arena, wrpo_model *model, const wrpo__shape *shape) {
    const wrpo_config *c = &model->config;
    const size_t n = (size_t)shape->rows;
    wrpo__run *r = WRPO__NEW(arena, wrpo__run);
    r->model = model, r->shape = *shape;
    r->layer = wrpo__alloc(arena, (size_t)c->num_hidden_layers + 1, sizeof *r->layer);
    wrpo__bump b = {0};
    wrpo__run_layout(arena->ctx, c, shape, r, &b);
    if (b.overflow) wrpo__fail(arena->ctx, WRPO_E_MEMORY, "out of memory: %lld rows of this model do not fit into the address space", (long long)shape->rows);
    b = (wrpo__bump){.base = wrpo__device_alloc(arena, b.used, "activations")};
    wrpo__run_layout(arena->ctx, c, shape, r, &b);
    r->h_ids = wrpo__raw(arena, n, 4), r->h_rows = wrpo__raw(arena, n, 4), r->h_target = wrpo__raw(arena, n, 4);
    r->h_place = shape->cache ? wrpo__raw(arena, n, 4) : NULL;
    r->h_segs = wrpo__raw(arena, n, sizeof(wrpo_seg));
    r->h_rope = wrpo__raw(arena, n, (size_t)c->head_dim * sizeof(float));
    r->h_logp = wrpo__raw(arena, n, 4), r->h_coef = wrpo__raw(arena, n, 4), r->h_mean = wrpo__raw(arena, n, 4);
    r->inv_freq = wrpo__alloc(arena, (size_t)c->head_dim / 2, sizeof(float));
    wrpo__inv_freq(c, 0, r->inv_freq, &r->rope_scale);
    return r;
}

/* ---- packing ---- */
/* Response k cannot share the prompt's rows with the response before it: their sequences turn differently. */
static bool wrpo__prompt_again(const wrpo_config *c, const wrpo_record *record, int k) {
    return k && wrpo__rope_key(c, record->prompt_count + record->responses[k].count) != wrpo__rope_key(c, record->prompt_count + record->responses[k - 1].count);
}
static int64_t wrpo__record_rows(const wrpo_config *c, const wrpo_record *record) {
    int64_t n = record->prompt_count;
    for (int k = 0; k < record->count; k++) n += record->responses[k].count + (wrpo__prompt_again(c, record, k) ? record->prompt_count : 0);
    return n;
}
static void wrpo__pack_begin(wrpo__run *r) { r->n = r->segs = r->targets = 0, r->held = false; }
/* From here on rows of sequences of this length, prompt and response, are packed. */
static void wrpo__pack_turn(wrpo__run *r, int64_t length) {
    const int64_t key = wrpo__rope_key(&r->model->config, length);
    if (key != r->rope_key) wrpo__inv_freq(&r->model->config, r->rope_key = key, r->inv_freq, &r->rope_scale);
}
/* One run of rows at positions from `position`, the last one at the end of `seg`'s own keys; the caller has made sure that it fits. */
static void wrpo__pack_rows(wrpo__run *r, const int32_t *ids, int64_t count, int64_t position, wrpo_seg seg) {
    const int64_t half = wrpo__rope_dims(&r->model->config) / 2;
    for (int64_t i = 0; i < count; i++) {
        r->h_ids[r->n + i] = ids[i];
        for (int64_t k = 0; k < half; k++) {
            float angle = (float)(position + i) * r->inv_freq[k], *t = r->h_rope + ((r->n + i) * half + k) * 2;
            t[0] = cosf(angle) * (float)r->rope_scale, t[1] = sinf(angle) * (float)r->rope_scale;
        }
    }
    for (int64_t i = 0; r->h_place && i < count; i++) r->h_place[r->n + i] = (int32_t)(seg.own_end - count + i);
    seg.begin = r->n, seg.end = r->n += count;
    r->h_segs[r->segs++] = seg;
}
static void wrpo__pack_seg(wrpo__run *r, const int32_t *ids, int64_t count, int64_t position, int64_t prefix, int64_t prefix_end) {
    wrpo__pack_rows(r, ids, count, position, (wrpo_seg){0, 0, prefix, prefix_end, r->n, r->n + count});
}
static void wrpo__pack_target(wrpo__run *r, int64_t row, int32_t id) { r->h_rows[r->targets] = (int32_t)row, r->h_target[r->targets++] = id; }
static void wrpo__pack_record(wrpo__run *r, const wrpo_record *record) {
    const int64_t P = record->prompt_count;
    int64_t first = r->n;
    for (int k = 0; k < record->count; k++) {
        const wrpo_tokens *y = &record->responses[k];
        if (k == 0 || wrpo__prompt_again(&r->model->config, record, k)) {
            wrpo__pack_turn(r, P + y->count);
            first = r->n;
            wrpo__pack_seg(r, record->prompt, P, 0, first, first);
        }
        for (int64_t j = y->first; j < y->count; j++) wrpo__pack_target(r, j ? r->n + j - 1 : first + P - 1, y->ids[j]);
        wrpo__pack_seg(r, y->ids, y->count, P, first, first + P);
    }
}
static void wrpo__pack_end(wrpo__run *r) {
    wrpo_ctx *ctx = r->model->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    be->put(ctx->dev, r->ids, r->h_ids, (size_t)r->n * 4);
    be->put(ctx->dev, r->rows, r->h_rows, (size_t)r->targets * 4);
    be->put(ctx->dev, r->target, r->h_target, (size_t)r->targets * 4);
    if (r->place) be->put(ctx->dev, r->place, r->h_place, (size_t)r->n * 4);
    be->put(ctx->dev, r->d_segs, r->h_segs, (size_t)r->segs * sizeof(wrpo_seg));
    be->put(ctx->dev, r->rope, r->h_rope, (size_t)(r->n * wrpo__rope_dims(&r->model->config)) * sizeof(float));
}

/* ---- linear layers ----
   Weights that the table joins are one matrix: y[n, sum of rows] = x W' with as few products as memory allows. */
typedef struct wrpo__linear { const wrpo_weight *w[3]; const wrpo_weight *b[3]; } wrpo__linear;
#define WRPO__ROWS(w) ((w) ? (w)->rows : 0)
static int wrpo__joined(const wrpo__linear *lin, int i, int64_t *rows) {   /* end of the run of joined weights from i; its rows */
    int j = i + 1;
    for (*rows = lin->w[i]->rows; j < 3 && lin->w[j] && wrpo__follows(lin->w[j - 1], lin->w[j]); j++) *rows += lin->w[j]->rows;
    return j;
}
static void *wrpo__at(const wrpo_backend *be, const void *p, int64_t i) { return (char *)(uintptr_t)p + i * be->act_bytes; }
static void wrpo__linear_fwd(wrpo_ctx *ctx, const wrpo__linear *lin, void *y, int64_t ldy, const void *x, int64_t n, float beta) {
    const wrpo_backend *be = ctx->desc.backend;
    int64_t rows, at = 0, cols = lin->w[0]->cols;
    for (int i = 0, j; i < 3 && lin->w[i]; i = j, at += rows) {
        j = wrpo__joined(lin, i, &rows);
        be->gemm(ctx->dev, WRPO_MM_NT, wrpo__at(be, y, at), ldy, x, cols, lin->w[i]->data, cols, lin->w[i]->dtype, n, rows, cols, beta);
    }
    at = 0;
    for (int i = 0; i < 3 && lin->w[i]; at += lin->w[i]->rows, i++)
        if (lin->b[i]) be->bias(ctx->dev, wrpo__at(be, y, at), ldy, lin->b[i]->data, n, lin->b[i]->rows);
}
/* dx = dy W;  dW += dy' x;  db += sum dy.  grads mirrors the weights. What is NULL is not wanted. */
static void wrpo__linear_bwd(wrpo_ctx *ctx, const wrpo__linear *lin, void *dx, float *grads, const void *dy, int64_t lddy, const void *x, int64_t n) {
    const wrpo_backend *be = ctx->desc.backend;
    int64_t rows, at = 0, cols = lin->w[0]->cols;
    for (int i = 0, j; i < 3 && lin->w[i]; i = j, at += rows) {
        j = wrpo__joined(lin, i, &rows);
        const void *part = wrpo__at(be, dy, at);
        if (dx) be->gemm(ctx->dev, WRPO_MM_NN, dx, cols, part, lddy, lin->w[i]->data, cols, lin->w[i]->dtype, n, cols, rows, at ? 1.0f : 0.0f);
        if (grads) be->gemm(ctx->dev, WRPO_MM_TN, grads + lin->w[i]->at, cols, part, lddy, x, cols, WRPO_DTYPE_F32, rows, cols, n, 1);
    }
    at = 0;
    for (int i = 0; i < 3 && lin->w[i]; at += lin->w[i]->rows, i++)
        if (grads && lin->b[i]) be->bias_bwd(ctx->dev, grads + lin->b[i]->at, wrpo__at(be, dy, at), lddy, n, lin->b[i]->rows);
}

/* ---- one layer ---- */
#define WRPO__GRAD(weight) (grads + (weight)->at)
typedef struct wrpo__layer_weights { wrpo__linear qkv, o, gu, down; const wrpo_weight *norm_1, *norm_2, *norm_q, *norm_k, *norm_add_1, *norm_add_2; } wrpo__layer_weights;
static wrpo__layer_weights wrpo__layer_of(const wrpo_model *m, int64_t l) {
    const wrpo_weight *after = WRPO__W(m, post_attention_layernorm, l), *before = WRPO__W(m, pre_feedforward_layernorm, l);   /* with post_norms the name is meant */
    wrpo__layer_weights w = {
        .qkv = {{WRPO__W(m, q_proj, l), WRPO__W(m, k_proj, l), WRPO__W(m, v_proj, l)}, {WRPO__W(m, q_bias, l), WRPO__W(m, k_bias, l), WRPO__W(m, v_bias, l)}},
        .o = {{WRPO__W(m, o_proj, l)}, {WRPO__W(m, o_bias, l)}},
        .gu = {{WRPO__W(m, gate_proj, l), WRPO__W(m, up_proj, l)}, {NULL}},
        .down = {{WRPO__W(m, down_proj, l)}, {NULL}},
        .norm_1 = WRPO__W(m, input_layernorm, l), .norm_2 = before ? before : after,
        .norm_add_1 = before ? after : NULL, .norm_add_2 = WRPO__W(m, post_feedforward_layernorm, l),
        .norm_q = WRPO__W(m, q_norm, l), .norm_k = WRPO__W(m, k_norm, l)};
    return w;
}
static wrpo_attn wrpo__attn_of(const wrpo__run *r, int64_t l) {
    const wrpo_config *c = &r->model->config;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, d = c->head_dim;
    wrpo_attn a = {.n = r->n, .segs = r->d_segs, .n_segs = r->segs, .H = H, .G = G, .d = d,
                   .ldq = (H + 2 * G) * d, .ldkv = (r->cache ? 2 * G : H + 2 * G) * d, .ldo = H * d,
                   .window = wrpo__layer_window(c, l), .scale = (float)(1 / sqrt(c->query_pre_attn_scalar > 0 ? c->query_pre_attn_scalar : (double)d)),
                   .softcap = (float)c->attn_logit_softcapping};
    return a;
}
/* q and k, H + G heads beside each other, turned by position; sign -1 turns back. Where only part of a head turns, head by head. */
static void wrpo__rotate(wrpo__run *r, void *q, float sign) {
    const wrpo_backend *be = r->model->ctx->desc.backend;
    const wrpo_config *c = &r->model->config;
    const int64_t heads = c->num_attention_heads + c->num_key_value_heads, d = c->head_dim, dims = wrpo__rope_dims(c), ld = (heads + c->num_key_value_heads) * d;
    if (dims == d) be->rope(r->model->ctx->dev, q, ld, r->rope, r->n, heads, d, sign);
    else for (int64_t h = 0; h < heads; h++) be->rope(r->model->ctx->dev, wrpo__at(be, q, h * d), ld, r->rope, r->n, 1, dims, sign);
}
/* x += a W'; with a norm on what is added, x += g (a W') / rms(a W'), and what the norm reads is kept. x NULL: only that. */
static void wrpo__add_fwd(wrpo__run *r, const wrpo__linear *lin, const wrpo_weight *norm, void *kept, float *rstd, void *x, const void *a) {
    wrpo_ctx *ctx = r->model->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    const wrpo_config *c = &r->model->config;
    const int64_t D = c->hidden_size;
    wrpo__linear_fwd(ctx, lin, norm ? kept : x, D, a, r->n, norm ? 0 : 1);
    if (!norm) return;
    be->rmsnorm(ctx->dev, r->norm, D, rstd, kept, D, norm->data, r->n, 1, D, (float)c->rms_norm_eps, c->norm_plus_one);
    if (x) be->add(ctx->dev, x, r->norm, r->n * D);
}
/* dL/d(a W'), from dL/dx in r->dx: that, or behind the norm, in r->dy. */
static const void *wrpo__add_bwd(wrpo__run *r, const wrpo_weight *norm, const void *kept, const float *rstd, float *grads) {
    wrpo_model *m = r->model;
    const int64_t D = m->config.hidden_size;
    if (!norm) return r->dx;
    m->ctx->desc.backend->rmsnorm_bwd(m->ctx->dev, r->dy, D, WRPO__GRAD(norm), r->dx, D, NULL, 0, kept, D, norm->data, rstd, r->n, 1, D, m->config.norm_plus_one);
    return r->dy;
}
/* x -> x_out; everything else goes to a. x, a->mid and x_out may be one place (inference): the stream is then updated
   in place. x_out NULL: only what the backward pass needs is made. */
static void wrpo__layer_fwd(wrpo__run *r, int64_t l, const wrpo__acts *a, void *x, void *x_out) {
    wrpo_ctx *ctx = r->model->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    void *dev = ctx->dev;
    const wrpo_config *c = &r->model->config;
    const wrpo__layer_weights w = wrpo__layer_of(r->model, l);
    const int64_t n = r->n, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, ld = (H + 2 * G) * d;
    const float eps = (float)c->rms_norm_eps, plus = c->norm_plus_one;
    const size_t stream = (size_t)(n * D) * (size_t)be->act_bytes;
    void *q = a->qkv, *k = wrpo__at(be, q, H * d), *v = wrpo__at(be, k, G * d);
    const wrpo_attn attn = wrpo__attn_of(r, l);

    be->rmsnorm(dev, r->norm, D, a->rstd_1, x, D, w.norm_1->data, n, 1, D, eps, plus);     /* 2  a = g_1 x / rms(x) */
    if (!c->qk_norm) wrpo__linear_fwd(ctx, &w.qkv, q, ld, r->norm, n, 0);                  /* 3  q | k | v = a W' + b */
    else {
        const wrpo__linear qk = {{w.qkv.w[0], w.qkv.w[1]}, {w.qkv.b[0], w.qkv.b[1]}}, only_v = {{w.qkv.w[2]}, {w.qkv.b[2]}};
        const void *k0 = wrpo__at(be, a->qk0, H * d);
        wrpo__linear_fwd(ctx, &qk, a->qk0, (H + G) * d, r->norm, n, 0);
        wrpo__linear_fwd(ctx, &only_v, v, ld, r->norm, n, 0);
        be->rmsnorm(dev, q, ld, a->rstd_q, a->qk0, (H + G) * d, w.norm_q->data, n, H, d, eps, 0);   /* 4  per head (Qwen3) */
        be->rmsnorm(dev, k, ld, a->rstd_k, k0, (H + G) * d, w.norm_k->data, n, G, d, eps, 0);
    }
    wrpo__rotate(r, q, 1);                                                                 /* 5  q, k turned by position */
    if (r->cache) {                  /* k | v to their places, to stay there */
        void *kv = wrpo__at(be, r->cache, l * r->shape.cache * attn.ldkv);
        be->scatter(dev, kv, attn.ldkv, k, ld, r->place, n, attn.ldkv);
        k = kv, v = wrpo__at(be, kv, G * d);
    }
    be->attention(dev, &attn, a->o, a->lse, q, k, v);                                      /* 6  o = softmax(q k' / sqrt d) v */
    if (a->mid != x) be->copy(dev, a->mid, x, stream);
    wrpo__add_fwd(r, &w.o, w.norm_add_1, a->add_1, a->rstd_add_1, a->mid, a->o);           /* 7  x' = x + o W' */
    be->rmsnorm(dev, r->norm, D, a->rstd_2, a->mid, D, w.norm_2->data, n, 1, D, eps, plus);   /* 8  c = g_2 x' / rms(x') */
    wrpo__linear_fwd(ctx, &w.gu, a->gu, 2 * I, r->norm, n, 0);                             /* 9  g | u = c W' */
    if (!x_out && !w.norm_add_2) return;
    be->glu(dev, r->h, a->gu, n, I, c->gelu);                                              /* 10 h = silu(g) u */
    if (x_out && x_out != a->mid) be->copy(dev, x_out, a->mid, stream);
    wrpo__add_fwd(r, &w.down, w.norm_add_2, a->add_2, a->rstd_add_2, x_out, r->h);         /* 11 x'' = x' + h W' */
}
/* r->dx holds dL/dx'' and is turned into dL/dx in place. r->norm and r->h are rebuilt, not kept. */
static void wrpo__layer_bwd(wrpo__run *r, int64_t l, const wrpo__acts *a, const void *x, float *grads) {
    wrpo_model *m = r->model;
    wrpo_ctx *ctx = m->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    void *dev = ctx->dev;
    const wrpo_config *c = &m->config;
    const wrpo__layer_weights w = wrpo__layer_of(m, l);
    const int64_t n = r->n, D = c->hidden_size, I = c->intermediate_size, d = c->head_dim;
    const int64_t H = c->num_attention_heads, G = c->num_key_value_heads, ld = (H + 2 * G) * d;
    const float eps = (float)c->rms_norm_eps, plus = c->norm_plus_one;
    void *q = a->qkv, *k = wrpo__at(be, q, H * d), *v = wrpo__at(be, k, G * d);
    void *dq = r->dqkv, *dk = wrpo__at(be, dq, H * d), *dv = wrpo__at(be, dk, G * d);
    const wrpo_attn attn = wrpo__attn_of(r, l);

    const void *dy = wrpo__add_bwd(r, w.norm_add_2, a->add_2, a->rstd_add_2, grads);
    wrpo__linear_bwd(ctx, &w.down, r->dh, NULL, dy, D, NULL, n);                           /* 11 dh = dx W */
    be->glu_bwd(dev, r->dgu, r->h, r->dh, a->gu, n, I, c->gelu);                           /* 10, and h once more */
    wrpo__linear_bwd(ctx, &w.down, NULL, grads, dy, D, r->h, n);                           /* 11 dW += dx' h */
    be->rmsnorm(dev, r->norm, D, a->rstd_2, a->mid, D, w.norm_2->data, n, 1, D, eps, plus);
    wrpo__linear_bwd(ctx, &w.gu, r->dy, grads, r->dgu, 2 * I, r->norm, n);                 /* 9  dc = dgu W */
    be->rmsnorm_bwd(dev, r->dx, D, WRPO__GRAD(w.norm_2), r->dy, D, r->dx, D, a->mid, D,
                    w.norm_2->data, a->rstd_2, n, 1, D, plus);                             /* 8  dx' = dx'' + ... */
    dy = wrpo__add_bwd(r, w.norm_add_1, a->add_1, a->rstd_add_1, grads);
    wrpo__linear_bwd(ctx, &w.o, r->d_o, grads, dy, D, a->o, n);                            /* 7  do = dx' W */
    be->attention_bwd(dev, &attn, dq, dk, dv, r->d_o, a->o, a->lse, q, k, v, r->attn_scratch);   /* 6 */
    wrpo__rotate(r, dq, -1);                                                               /* 5  turned back */
    if (c->qk_norm) {                                                                      /* 4 */
        const void *k0 = wrpo__at(be, a->qk0, H * d);
        be->rmsnorm_bwd(dev, dq, ld, WRPO__GRAD(w.norm_q), dq, ld, NULL, 0, a->qk0, (H + G) * d, w.norm_q->data, a->rstd_q, n, H, d, 0);
        be->rmsnorm_bwd(dev, dk, ld, WRPO__GRAD(w.norm_k), dk, ld, NULL, 0, k0, (H + G) * d, w.norm_k->data, a->rstd_k, n, G, d, 0);
    }
    be->rmsnorm(dev, r->norm, D, a->rstd_1, x, D, w.norm_1->data, n, 1, D, eps, plus);
    wrpo__linear_bwd(ctx, &w.qkv, r->dy, grads, dq, ld, r->norm, n);                       /* 3  da = dqkv W */
    be->rmsnorm_bwd(dev, r->dx, D, WRPO__GRAD(w.norm_1), r->dy, D, r->dx, D, x, D,
                    w.norm_1->data, a->rstd_1, n, 1, D, plus);                             /* 2  dx = dx' + ... */
}

/* ---- the whole model ---- */
static const wrpo_weight *wrpo__head(const wrpo_model *m) {
    return m->config.tie_word_embeddings ? WRPO__W(m, embed_tokens, 0) : WRPO__W(m, lm_head, 0);
}
static float wrpo__embed_scale(const wrpo_model *m) {  /* the same for all models of a context, wherever their weights lie */
    if (!m->config.scale_embeddings) return 1;
    const float s = (float)sqrt((double)m->config.hidden_size);
    return m->ctx->desc.dtype == WRPO_DTYPE_BF16 ? wrpo__float_of(wrpo__float_to_bf16(s)) : s;
}
/* Before forward passes with means, whenever the weights have changed. Capped logits have none. */
static void wrpo__sum_head(wrpo__run *r) {
    const wrpo_weight *head = wrpo__head(r->model);
    if (r->model->config.final_logit_softcapping > 0) return;
    r->model->ctx->desc.backend->colsum(r->model->ctx->dev, r->mean_w, head->data, head->dtype, head->rows, head->cols);
}
/* Steps 1 to 12: what is packed, to r->y. */
static void wrpo__trunk(wrpo__run *r) {
    wrpo_model *m = r->model;
    const wrpo_backend *be = m->ctx->desc.backend;
    void *dev = m->ctx->dev;
    const wrpo_config *c = &m->config;
    const wrpo_weight *embed = WRPO__W(m, embed_tokens, 0);
    const int64_t D = c->hidden_size, L = c->num_hidden_layers;
    const bool train = r->shape.train;
    void *x = train ? r->layer[0].x : r->scratch.x;
    be->embed(dev, x, embed->data, embed->dtype, r->ids, r->n, D, wrpo__embed_scale(m));   /* 1  x = E[ids] */
    for (int64_t l = 0; l < L; l++) {
        void *x_out = train ? r->layer[l + 1].x : r->scratch.x;
        wrpo__layer_fwd(r, l, train && l >= r->shape.recompute ? &r->layer[l] : &r->scratch, x, x_out);
        x = x_out;
    }
    be->rmsnorm(dev, r->y, D, r->rstd_f, x, D, WRPO__W(m, norm, 0)->data, r->n, 1, D, (float)c->rms_norm_eps, c->norm_plus_one);   /* 12 y */
}
/* Targets whose logits are made at once: all of a micro-batch that there is room for; on a device, whose products may choose their
   arithmetic by their shape, always a chunk, so that no bit depends on what is kept. And where those from target t on are. */
static int64_t wrpo__at_once(const wrpo__run *r) {
    const wrpo_backend *be = r->model->ctx->desc.backend;
    return be->host && be->act_bytes == sizeof(float) && r->targets <= wrpo__span(&r->shape) ? WRPO__MAX(r->targets, 1) : r->shape.chunk;
}
static float *wrpo__logits_at(const wrpo__run *r, int64_t t) { return r->logits + (r->targets <= wrpo__span(&r->shape) ? t * r->model->config.vocab_size : 0); }
static void wrpo__gather_hidden(wrpo__run *r, int64_t t, int64_t count) {
    r->model->ctx->desc.backend->gather(r->model->ctx->dev, r->hid, r->y, r->rows + t, count, r->model->config.hidden_size);
}
static void wrpo__logits(wrpo__run *r, int64_t t, int64_t count) {     /* of targets [t, t + count), made at once; also fills r->hid */
    wrpo_ctx *ctx = r->model->ctx;
    const wrpo_weight *head = wrpo__head(r->model);
    const int64_t D = r->model->config.hidden_size, V = r->model->config.vocab_size;
    wrpo__gather_hidden(r, t, count);
    ctx->desc.backend->gemm(ctx->dev, WRPO_MM_NT_FLOAT, wrpo__logits_at(r, t), V, r->hid, D, head->data, D, head->dtype, count, V, D, 0);
}
/* Log-probs of all targets into r->h_logp; with means, the mean logit over the vocabulary of every row into r->h_mean: NaN
   where logits are capped, for then their mean is no product of vectors. */
static void wrpo__forward(wrpo__run *r, bool means) {
    wrpo_ctx *ctx = r->model->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    void *dev = ctx->dev;
    const int64_t D = r->model->config.hidden_size, V = r->model->config.vocab_size;
    const float cap = (float)r->model->config.final_logit_softcapping;
    wrpo__trunk(r);
    const int64_t step = wrpo__at_once(r);
    for (int64_t t = 0; t < r->targets; t += step) {                                       /* 13 log softmax(y W')[target] */
        int64_t count = WRPO__MIN(step, r->targets - t);
        wrpo__logits(r, t, count);
        be->logprob(dev, r->logp + t, r->lse + t, wrpo__logits_at(r, t), r->target + t, count, V, cap);
    }
    r->held = r->targets <= wrpo__span(&r->shape);
    if (means && cap > 0)
        for (int64_t i = 0; i < r->n; i++) r->h_mean[i] = NAN;
    else if (means) {                /* mean_v(y W_v) = y (sum_v W_v) / V: one vector, not V columns */
        be->gemm(dev, WRPO_MM_NT_FLOAT, r->mean, 1, r->y, D, r->mean_w, D, WRPO_DTYPE_F32, r->n, 1, D, 0);
        be->get(dev, r->h_mean, r->mean, (size_t)r->n * sizeof(float));
        for (int64_t i = 0; i < r->n; i++) r->h_mean[i] /= (float)V;
    }
    be->get(dev, r->h_logp, r->logp, (size_t)r->targets * sizeof(float));
    wrpo__sync(ctx);
}
/* Adds the gradient of sum_t coef[t] logp[t] (r->h_coef, filled by the caller) to grads, which mirrors the weights.
   Targets with coefficient 0 drop out of the head. The packed arrays of targets are reordered. */
static void wrpo__backward(wrpo__run *r, float *grads) {
    wrpo_model *m = r->model;
    wrpo_ctx *ctx = m->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    void *dev = ctx->dev;
    const wrpo_config *c = &m->config;
    const wrpo_weight *head = wrpo__head(m), *norm = WRPO__W(m, norm, 0), *embed = WRPO__W(m, embed_tokens, 0);
    const int64_t D = c->hidden_size, V = c->vocab_size, L = c->num_hidden_layers, n = r->n;
    const float cap = (float)c->final_logit_softcapping;
    int64_t live = 0;
    for (int64_t t = 0; t < r->targets; t++)
        if (r->h_coef[t] != 0) r->h_rows[live] = r->h_rows[t], r->h_target[live] = r->h_target[t], r->h_coef[live++] = r->h_coef[t];
    const bool held = r->held && live == r->targets;   /* not where some have dropped out: their places are not those of the forward pass */
    r->held = false, r->targets = live;
    be->put(dev, r->rows, r->h_rows, (size_t)live * 4);
    be->put(dev, r->target, r->h_target, (size_t)live * 4);
    be->put(dev, r->coef, r->h_coef, (size_t)live * sizeof(float));

    be->zero(dev, r->dy, (size_t)(n * D) * (size_t)be->act_bytes);
    const int64_t step = wrpo__at_once(r), chunk = r->shape.chunk;
    for (int64_t t = 0; t < live; t += step) {                                             /* 13 the logits, kept or made again; then their gradient */
        const int64_t count = WRPO__MIN(step, live - t);
        float *logits = wrpo__logits_at(r, t);
        void *dlogits = r->dlogits ? r->dlogits : logits;
        if (held) wrpo__gather_hidden(r, t, count);
        else {
            wrpo__logits(r, t, count);
            be->logprob(dev, r->logp + t, r->lse + t, logits, r->target + t, count, V, cap);
        }
        be->logprob_bwd(dev, dlogits, logits, r->target + t, r->lse + t, r->coef + t, count, V, cap);
        be->gemm(dev, WRPO_MM_NN, r->dhid, D, dlogits, V, head->data, D, head->dtype, count, D, V, 0);
        for (int64_t s = 0; s < count; s += chunk) {           /* summed chunk by chunk, kept or not: the same bits */
            const int64_t some = WRPO__MIN(chunk, count - s);
            be->gemm(dev, WRPO_MM_TN, WRPO__GRAD(head), D, wrpo__at(be, dlogits, s * V), V, wrpo__at(be, r->hid, s * D), D, WRPO_DTYPE_F32, V, D, some, 1);
            be->gather_bwd(dev, r->dy, wrpo__at(be, r->dhid, s * D), r->rows + t + s, some, D);
        }
    }
    be->rmsnorm_bwd(dev, r->dx, D, WRPO__GRAD(norm), r->dy, D, NULL, 0, r->layer[L].x, D,
                    norm->data, r->rstd_f, n, 1, D, c->norm_plus_one);                     /* 12 */
    for (int64_t l = L - 1; l >= 0; l--) {
        const wrpo__acts *a = l >= r->shape.recompute ? &r->layer[l] : &r->scratch;
        if (a == &r->scratch) wrpo__layer_fwd(r, l, a, r->layer[l].x, NULL);               /* what was not kept is made again */
        wrpo__layer_bwd(r, l, a, r->layer[l].x, grads);
    }
    be->embed_bwd(dev, WRPO__GRAD(embed), r->dx, r->ids, n, D, wrpo__embed_scale(m));   /* 1 */
    wrpo__sync(ctx);
}

/* --------------------------------------------------------------------------------------------- >>step
   One optimizer step: records of token ids -> packed micro-batches -> log-probs -> loss -> gradients -> AdamW.

   A batch is computed in micro-batches that fit into the workspace. For each, the forward pass gives log-probs, the
   host computes every record's loss and its derivatives (>>loss), and the backward pass adds to the gradients. Then
   the global norm of the gradients is clipped, and AdamW changes the weights.

   Steps are counted as the authors' trainer counts them, for N records:
     micro-batches of an epoch   M = ceil(N / (batch_size / accumulation))
     steps of an epoch           S = floor(M / accumulation), at least 1
     steps of the run            T = ceil(epochs S)
   The loss of a step is the mean over its micro-batches of the mean over their records. These micro-batches only
   define that mean; how many rows are computed at once is micro_tokens, and changes no bit.                     */

/* ---- data: records of token ids ---- */
struct wrpo_data {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_record *records;            /* stb array */
    wrpo_data_stats stats;
    int most;                        /* the most responses that a record has */
};
/* Copies a record into the data, its ids as one block. */
static void wrpo__data_add(wrpo_data *data, const wrpo_record *record) {
    wrpo__arena *arena = data->arena, *outer = wrpo__current;
    int64_t total = record->prompt_count, longest = 0;
    for (int k = 0; k < record->count; k++) {
        total += record->responses[k].count;
        longest = WRPO__MAX(longest, record->responses[k].count);
    }
    int32_t *ids = wrpo__alloc(arena, (size_t)total, sizeof *ids);
    wrpo_tokens *responses = wrpo__alloc(arena, (size_t)record->count, sizeof *responses);
    wrpo_record r = *record;
    r.prompt_id = wrpo__strndup(arena, record->prompt_id, strlen(record->prompt_id));
    r.prompt = ids;
    r.responses = responses;
    r.weight = wrpo__or_default(r.weight, 1) + 0.0;                            /* -0 becomes 0 */
    memcpy(ids, record->prompt, (size_t)r.prompt_count * sizeof *ids);
    ids += r.prompt_count;
    for (int k = 0; k < r.count; k++) {
        responses[k] = record->responses[k];
        responses[k].ids = ids;
        if (responses[k].role != WRPO_ROLE_SOURCE) responses[k].weight = wrpo__or_default(responses[k].weight, 1);
        memcpy(ids, record->responses[k].ids, (size_t)responses[k].count * sizeof *ids);
        ids += responses[k].count;
    }
    wrpo__current = arena;
    stbds_arrput(data->records, r);
    wrpo__current = outer;
    data->stats.records++;
    data->stats.prompt_tokens += r.prompt_count;
    data->stats.response_tokens += total - r.prompt_count;
    data->stats.longest = WRPO__MAX(data->stats.longest, r.prompt_count + longest);
    data->most = WRPO__MAX(data->most, r.count);
}
static wrpo_data *wrpo__data_from_ids(wrpo__arena *arena, const wrpo_record *records, int64_t count) {
    wrpo_data *data = WRPO__NEW(arena, wrpo_data);
    data->ctx = arena->ctx;
    data->arena = arena;
    for (int64_t i = 0; i < count; i++) {
        wrpo_record r = records[i];
        bool ok = r.prompt_count >= 1 && r.count >= 1;
        for (int k = 0; ok && k < r.count; k++) ok = r.responses[k].first >= 0 && r.responses[k].count > r.responses[k].first;
        if (!(r.weight >= 0 && r.weight <= DBL_MAX))
            wrpo__fail(arena->ctx, WRPO_E_ARG, "record %lld: weight: want a finite number of at least 0, found %g", (long long)i, r.weight);
        if (!ok) wrpo__fail(arena->ctx, WRPO_E_ARG, "record %lld: want a prompt and responses, each with at least one token", (long long)i);
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

/* ---- log-probs of records: packed until micro_tokens rows are full; a longer record goes alone ---- */
enum { WRPO__MICRO_TOKENS = 1024 };
/* Rows a run needs for these records: micro_tokens, all of them if that is less, the longest record if that is more. */
static int64_t wrpo__run_rows(const wrpo_config *c, const wrpo_data *data, int64_t first, int64_t count, int64_t micro_tokens) {
    int64_t all = 0, longest = 1;
    for (int64_t i = first; i < first + count; i++) {
        const wrpo_record record = wrpo_data_record(data, i);
        const int64_t rows = wrpo__record_rows(c, &record);
        all = WRPO__MIN(all + rows, micro_tokens), longest = WRPO__MAX(longest, rows);
    }
    return WRPO__MAX(all, longest);
}
/* Every id is a row of the embedding; every record has something to score. */
static void wrpo__check_data(const wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count) {
    int64_t longest = 0;
    for (int64_t i = first; i < first + count; i++) {
        wrpo_record record = wrpo_data_record(data, i);
        for (int k = -1; k < record.count; k++) {
            const int32_t *ids = k < 0 ? record.prompt : record.responses[k].ids;
            int64_t n = k < 0 ? record.prompt_count : record.responses[k].count;
            longest = WRPO__MAX(longest, k < 0 ? n : record.prompt_count + n);
            for (int64_t j = 0; j < n; j++)
                if (ids[j] < 0 || ids[j] >= model->config.vocab_size)
                    wrpo__fail(model->ctx, WRPO_E_FORMAT, "record \"%s\": token id %d is outside the model's vocabulary of %lld: tokenizer and model do not belong together",
                               record.prompt_id, (int)ids[j], (long long)model->config.vocab_size);
        }
    }
    if (longest > model->config.max_position_embeddings && longest == wrpo_data_get_stats(data).longest)      /* once, however often the data are looked at in part */
        wrpo__log(model->ctx, WRPO_LOG_WARN, "a sequence of %lld tokens is longer than the model's max_position_embeddings %lld",
                  (long long)longest, (long long)model->config.max_position_embeddings);
}
/* Packs as many of the records list[at..count) as fit (at least one); returns where it stopped. list NULL: i itself. */
static int64_t wrpo__pack_some(wrpo__run *r, const wrpo_data *data, const int64_t *list, int64_t at, int64_t count, int64_t micro_tokens) {
    wrpo__pack_begin(r);
    for (; at < count; at++) {
        wrpo_record record = wrpo_data_record(data, list ? list[at] : at);
        if (r->n && r->n + wrpo__record_rows(&r->model->config, &record) > micro_tokens) break;
        wrpo__pack_record(r, &record);
    }
    wrpo__pack_end(r);
    return at;
}
/* Sums of log-probs, in double, of the scored tokens of every response of a packed record: target *t onwards. */
static void wrpo__sum_logps(const wrpo__run *r, const wrpo_record *record, int64_t *t, double *logps) {
    for (int k = 0; k < record->count; k++) {
        logps[k] = 0;
        for (int64_t j = record->responses[k].first; j < record->responses[k].count; j++) logps[k] += (double)r->h_logp[(*t)++];
    }
}
/* logps[(count)][K] of records [first, first + count) with a run of its own; tokens: an stb_ds array or NULL. */
static void wrpo__logprobs(wrpo__arena *temp, wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count, int64_t micro_tokens,
                           double *logps, int K, float **tokens) {
    wrpo__check_data(model, data, first, count);
    wrpo__shape shape = {.rows = wrpo__run_rows(&model->config, data, first, count, micro_tokens)};
    shape.chunk = wrpo__head_chunk(model->ctx, &model->config, shape.rows);
    wrpo__run *r = wrpo__run_new(temp, model, &shape);
    for (int64_t at = first, next; at < first + count; at = next) {
        int64_t t = 0;
        next = wrpo__pack_some(r, data, NULL, at, first + count, micro_tokens);
        wrpo__forward(r, false);
        for (int64_t i = at; i < next; i++) {
            wrpo_record record = wrpo_data_record(data, i);
            double *row = logps + (i - first) * K;
            int64_t begin = t;
            wrpo__sum_logps(r, &record, &t, row);
            for (int k = 0; k < K; k++) {
                if (k >= record.count) row[k] = NAN;
                else if (!isfinite(row[k]))
                    wrpo__fail(model->ctx, WRPO_E_NOT_FINITE, "record \"%s\" (line %lld): the log-prob of response %d is not a finite number",
                               record.prompt_id, (long long)record.line, k + 1);
            }
            for (; tokens && begin < t; begin++) stbds_arrput(*tokens, r->h_logp[begin]);
        }
    }
}
WRPO_API wrpo_result wrpo_logprobs(wrpo_model *model, const wrpo_data *data, int64_t first, int64_t count, double *logps, float **per_token) {
    if (per_token) *per_token = NULL;
    WRPO__TRY(model->ctx, wrpo__arena_new(model->ctx), true) {
        float *tokens = NULL;
        if (first < 0 || count < 0 || first > wrpo_data_count(data) || count > wrpo_data_count(data) - first)
            wrpo__fail(model->ctx, WRPO_E_ARG, "%lld records from %lld on: the data has %lld", (long long)count, (long long)first, (long long)wrpo_data_count(data));
        wrpo__logprobs(wrpo__entry.arena, model, data, first, count, WRPO__MICRO_TOKENS, logps, data->most, per_token ? &tokens : NULL);
        if (per_token) *per_token = wrpo__handout(model->ctx, tokens, (size_t)stbds_arrlen(tokens) * sizeof *tokens);
    }
    return wrpo__end(&wrpo__entry);
}

/* ---- settings: field, name in errors and state files, what 0 means, valid if (x is the value), wanted,
        whether a run that goes on must have the same ---- */
#define WRPO__SETTINGS(X) \
    X(alpha,         "alpha",         0.1,  x >= 0 && x <= 1,                "a number in [0, 1]",     true) \
    X(alpha_power,   "alpha_power",   2,    x > 0 && x < 1e6,                "a positive number",      true) \
    X(learning_rate, "learning_rate", rate, x >= 0 && x <= 1e3,              "a number from 0 to 1000", true) \
    X(warmup_ratio,  "warmup_ratio",  0.1,  x >= 0 && x <= 1,                "a number in [0, 1]",     true) \
    X(beta1,         "beta1",         0.9,  x >= 0 && x < 1,                 "a number in [0, 1)",     true) \
    X(beta2,         "beta2",         0.999, x >= 0 && x < 1,                "a number in [0, 1)",     true) \
    X(eps,           "eps",           1e-8, x >= 0 && x < 1,                 "a number in [0, 1)",     true) \
    X(weight_decay,  "weight_decay",  0,    x >= 0 && x <= 1e3,              "a number from 0 to 1000", true) \
    X(max_grad_norm, "max_grad_norm", 1,    x == x,                          "a number",               true) \
    X(epochs,        "epochs",        1,    x > 0 && x < 1e9,                "a positive number",      false) \
    X(batch_size,    "batch_size",    128,  x >= 1 && x <= 0x1p40,           "at least 1",             true) \
    X(accumulation,  "accumulation",  1,    x >= 1 && d->batch_size % d->accumulation == 0, \
                                                                             "a divisor of batch_size", true) \
    X(max_steps,     "max_steps",     0,    x >= 0,                          "at least 0",             false) \
    X(micro_tokens,  "micro_tokens",  WRPO__MICRO_TOKENS, x >= 1 && x <= 0x1p30, "1 to 2^30",          true) \
    X(recompute,     "recompute",     0,    x >= -1,                         "a number of layers, or -1 for all", false) \
    X(eval_steps,    "eval_steps",    0,    x >= 0,                          "at least 0",             true) \
    X(save_steps,    "save_steps",    0,    x >= 0 && (x == 0 || d->save.dir), "at least 0, and a directory in save", false)

WRPO_API wrpo_train_desc wrpo_train_defaults(const wrpo_train_desc *desc) {
    wrpo_train_desc d = {0};
    if (desc) d = *desc;
    const wrpo_method m = d.loss.method;
    const double rate = m == WRPO_METHOD_SFT ? 7e-6 : m == WRPO_METHOD_SIMPO ? 1e-6 : m == WRPO_METHOD_DPO_NORM ? 8e-7 : 3e-7;
    d.loss = wrpo__loss_defaults(d.loss);
#define WRPO__X(field, name, otherwise, valid, want, same) if (wrpo__is_default((double)d.field)) d.field = otherwise;
    WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    if (!d.seed) d.seed = 42;
    return d;
}
static void wrpo__train_check(wrpo_ctx *ctx, const wrpo_train_desc *d) {   /* d resolved */
    const char *why;
#define WRPO__X(field, name, otherwise, valid, want, same) { const double x = (double)d->field; WRPO__RANGE(valid, name, x, want); }
    WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
    why = wrpo__loss_check(&d->loss, d->alpha);
    if (why) wrpo__fail(ctx, WRPO_E_ARG, "%s", why);
    WRPO__RANGE(wrpo_lr_schedule_name((int)d->lr_schedule), "lr_schedule", d->lr_schedule, "one of wrpo_lr_schedule");
    WRPO__RANGE(wrpo_alpha_schedule_name((int)d->alpha_schedule), "alpha_schedule", d->alpha_schedule, "one of wrpo_alpha_schedule");
    WRPO__RANGE(wrpo_moments_name((int)d->moments), "moments", d->moments, "one of wrpo_moments");
}

/* ---- the trainer ---- */
typedef struct wrpo__set {           /* records, and what the reference says about them */
    const wrpo_data *given;          /* as the caller knows it; NULL: there is no such set */
    const wrpo_data *data;           /* what is computed: `given`, or for SFT the sources of its records alone */
    int64_t N; int K;                /* records; the most responses that one has */
    double *ref;                     /* [N, K] log-probs of the reference; NULL where the method needs none */
} wrpo__set;
struct wrpo_trainer {
    wrpo_ctx *ctx;
    wrpo__arena *arena;
    wrpo_model *model;
    wrpo_train_desc desc;            /* resolved */
    wrpo__set train, eval;
    int64_t rows;                    /* of the workspace: the most that a micro-batch of either set needs */
    int64_t micro, steps_per_epoch, T, k;              /* batch_size / accumulation, S, T, and the steps done */
    int64_t *order, order_epoch;     /* [N] the records in this epoch's order */
    double *weight;                  /* [batch] of each record in a step's loss */
    wrpo__run *run;
    float *grads;                    /* mirrors the weights; NULL in an evaluation */
    char *exp_avg, *exp_avg_sq;      /* AdamW's moments, mirror the weights */
    double *sumsq;                   /* one element in the backend's memory */
    double start;                    /* when the run began, in seconds */
    const char *out_dir; FILE *metrics;                /* set and used by >>run, with the next */
    void (*log)(wrpo_trainer *t, const wrpo_metrics *m, const char *prefix);   /* called with every line of metrics */
};
/* The record's responses as the loss sees them; log-probs are left 0. */
static void wrpo__as_loss(const wrpo_record *record, wrpo_response *r) {
    for (int k = 0; k < record->count; k++) {
        const wrpo_tokens *y = &record->responses[k];
        r[k] = (wrpo_response){.role = y->role, .weight = y->weight, .pair = y->pair, .tokens = y->count - y->first};
    }
}
/* Every record must have the roles that the method needs. */
static void wrpo__check_roles(wrpo_ctx *ctx, const wrpo__set *set, const wrpo_train_desc *d) {
    wrpo_response *r = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *r);
    if (set->N == 0) wrpo__fail(ctx, WRPO_E_ARG, "the data has no records");
    for (int64_t i = 0; i < set->N; i++) {
        wrpo_record record = wrpo_data_record(set->data, i);
        const char *why = NULL;
        wrpo__as_loss(&record, r);
        for (int end = 0; end < 2 && !why; end++)      /* alpha of the first step, and its end value */
            wrpo_loss(&d->loss, wrpo_alpha(d->alpha_schedule, d->alpha_power, d->alpha, end, 1), r, record.count, 1, &why);
        if (why) wrpo__fail(ctx, WRPO_E_FORMAT, "record \"%s\" (line %lld): %s", record.prompt_id, (long long)record.line, why);
    }
}
/* SFT scores y_ws alone, so the other responses are not computed. The new data lives as long as the arena. */
static void wrpo__data_drop(void *p) { wrpo_data_free(p); }
static const wrpo_data *wrpo__only_sources(wrpo__arena *arena, const wrpo_data *data) {
    const int64_t N = wrpo_data_count(data);
    wrpo_record *records = wrpo__alloc(arena, (size_t)N, sizeof *records);
    wrpo_data *out;
    for (int64_t i = 0; i < N; i++) {
        wrpo_record *r = &records[i];
        *r = wrpo_data_record(data, i);
        if (r->weight == 0) r->weight = WRPO_ZERO;
        while (r->count > 1 && r->responses[r->count - 1].role != WRPO_ROLE_SOURCE) r->count--;      /* sources come first */
    }
    wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__data_drop, NULL);
    wrpo__rethrow(arena->ctx, wrpo_data_from_ids(arena->ctx, records, N, &out));
    owner->p = out;
    return out;
}
static void wrpo__set_begin(wrpo_trainer *t, wrpo__set *set, const wrpo_data *data) {
    set->given = data;
    if (!data) return;
    set->data = t->desc.loss.method == WRPO_METHOD_SFT ? wrpo__only_sources(t->arena, data) : data;
    set->N = wrpo_data_count(set->data);
    set->K = set->data->most;
    wrpo__check_roles(t->ctx, set, &t->desc);
    wrpo__check_data(t->model, set->data, 0, set->N);
    t->rows = WRPO__MAX(t->rows, wrpo__run_rows(&t->model->config, set->data, 0, set->N, t->desc.micro_tokens));
    if (wrpo__rules[t->desc.loss.method].reference)
        set->ref = wrpo__alloc(t->arena, (size_t)set->N * (size_t)set->K, sizeof *set->ref);
}
/* 1. Settings and data checked; nothing large is allocated yet. */
static wrpo_trainer *wrpo__trainer_begin(wrpo__arena *arena, wrpo_model *policy, const wrpo_data *data,
                                         const wrpo_train_desc *desc, bool train) {
    wrpo_trainer *t = WRPO__NEW(arena, wrpo_trainer);
    t->ctx = arena->ctx;
    t->arena = arena;
    t->model = policy;
    t->desc = wrpo_train_defaults(desc);
    if (train && policy->frozen) wrpo__fail(t->ctx, WRPO_E_ARG, "the model was loaded frozen (wrpo_model_desc): it cannot be trained");
    const wrpo_train_desc *d = &t->desc;
    wrpo__train_check(t->ctx, d);
    wrpo__set_begin(t, &t->train, data);
    wrpo__set_begin(t, &t->eval, d->eval_data);
    const int64_t N = t->train.N;
    t->micro = d->batch_size / d->accumulation;
    t->steps_per_epoch = WRPO__MAX((N + t->micro - 1) / t->micro / d->accumulation, 1);
    const double steps = ceil(d->epochs * (double)t->steps_per_epoch - 1e-9);
    t->T = d->max_steps ? d->max_steps : WRPO__MAX((int64_t)steps, 1);
    t->order = wrpo__alloc(arena, (size_t)N, sizeof *t->order);
    t->weight = wrpo__alloc(arena, (size_t)WRPO__MIN(N, d->batch_size), sizeof *t->weight);
    t->order_epoch = -1;
    return t;
}
/* 2. The reference's log-probs, before the memory of training is taken: ref is the policy as it is now, or another model. */
static void wrpo__set_reference(wrpo__arena *temp, const wrpo_trainer *t, const wrpo__set *set, wrpo_model *ref) {
    wrpo__logprobs(temp, ref, set->data, 0, set->N, t->desc.micro_tokens, set->ref, set->K, NULL);
}
/* 3. The workspace; in training also gradients and moments. recompute, logits: as in wrpo_bytes. */
static wrpo__shape wrpo__train_shape(const wrpo_ctx *ctx, const wrpo_config *c, int64_t recompute, bool logits, int64_t rows) {
    wrpo__shape s = {.rows = rows, .train = true, .chunk = wrpo__head_chunk(ctx, c, rows), .logits = logits};
    s.recompute = recompute < 0 ? c->num_hidden_layers : WRPO__MIN(recompute, c->num_hidden_layers);
    return s;
}
static void wrpo__trainer_memory(wrpo_trainer *t, bool train, int64_t recompute, bool logits) {
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
    t->ctx->desc.backend->zero(t->ctx->dev, t->exp_avg, bytes);
    t->ctx->desc.backend->zero(t->ctx->dev, t->exp_avg_sq, bytes);
}
static wrpo_trainer *wrpo__trainer_new(wrpo__arena *arena, wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc) {
    wrpo_trainer *t = wrpo__trainer_begin(arena, policy, data, desc, true);
    const wrpo_train_desc *d = &t->desc;
    if (d->out_dir || d->ref_dir || d->resume || d->save.dir)
        wrpo__fail(t->ctx, WRPO_E_ARG, "wrpo_trainer_new works in memory: want out_dir, ref_dir, resume and save.dir of NULL, or wrpo_trainer_open");
    wrpo__arena *temp = wrpo__sub_arena(arena);
    if (t->train.ref) wrpo__set_reference(temp, t, &t->train, policy);
    if (t->eval.ref) wrpo__set_reference(temp, t, &t->eval, policy);
    wrpo__arena_clear(temp);
    wrpo__trainer_memory(t, true, d->recompute, false);
    return t;
}
WRPO_API wrpo_result wrpo_trainer_new(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_trainer **out) {
    *out = NULL;
    WRPO__CALL(policy->ctx, wrpo__arena_new(policy->ctx), false, *out = wrpo__trainer_new(wrpo__current, policy, data, desc));
    return wrpo__end(&wrpo__entry);
}
WRPO_API void wrpo_trainer_free(wrpo_trainer *t) {
    if (t) wrpo__arena_free(t->arena);
}

/* ---- metrics: sums over records, weighted as in the loss, under the names of the authors' trainer ---- */
typedef struct wrpo__tally { wrpo_metrics m; double chosen, chosen_rows, rejected, rejected_rows; } wrpo__tally;
/* Adds one record of weight w; its loss is added elsewhere. mean: the mean logit of each of its rows, in packed order. */
static void wrpo__tally_add(wrpo__tally *t, const wrpo_config *model, const wrpo_loss_desc *d, double alpha,
                            const wrpo_record *record, const wrpo_response *r, double w, const float *mean) {
    double logp[3] = {0}, reward[3] = {0}, share[3] = {0}, all_chosen = 0, chosen = 0, prompt = 0;
    wrpo_metrics *m = &t->m;
    for (int k = 0; k < record->count; k++) {
        if (k == 0 || wrpo__prompt_again(model, record, k)) {
            prompt = 0;
            for (int64_t i = 0; i < record->prompt_count; i++) prompt += (double)*mean++;
        }
        double rows = (double)(record->prompt_count + record->responses[k].count), sum = prompt;
        for (int64_t i = 0; i < record->responses[k].count; i++) sum += (double)*mean++;
        if (r[k].role == WRPO_ROLE_REJECTED) {
            t->rejected += sum;
            t->rejected_rows += rows;
        } else {
            t->chosen += sum;
            t->chosen_rows += rows;
            all_chosen += r[k].logp;
            chosen++;
        }
        share[r[k].role] += r[k].weight;
        logp[r[k].role] += r[k].weight * r[k].logp;
        reward[r[k].role] += r[k].weight * wrpo__reward_of(d, &r[k]);
    }
    for (int role = 0; role < 3; role++) {             /* NaN for a role that is absent */
        logp[role] = share[role] > 0 ? logp[role] / share[role] : NAN;
        reward[role] = share[role] > 0 ? reward[role] / share[role] : NAN;
    }
    const double source = reward[WRPO_ROLE_SOURCE], target = reward[WRPO_ROLE_TARGET], rejected = reward[WRPO_ROLE_REJECTED];
    const double weighted = wrpo__weighted_reward(d, alpha, r, record->count);
    m->logps_chosen += w * all_chosen / chosen;
    m->logps_source_chosen += w * logp[WRPO_ROLE_SOURCE];
    m->logps_target_chosen += w * logp[WRPO_ROLE_TARGET];
    m->logps_rejected += w * logp[WRPO_ROLE_REJECTED];
    m->rewards_chosen += w * weighted;
    m->rewards_source_chosen += w * source;
    m->rewards_target_chosen += w * target;
    m->rewards_rejected += w * rejected;
    m->rewards_accuracies += isnan(weighted - rejected) ? NAN : w * (weighted > rejected);
    m->rewards_source_accuracies += isnan(source - rejected) ? NAN : w * (source > rejected);
    m->rewards_target_accuracies += isnan(target - rejected) ? NAN : w * (target > rejected);
    m->rewards_margins += w * (weighted - rejected);
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
   list[i]: a record of the set (NULL: i itself); weight[i]: its weight in the loss (NULL: 1 / count). */
static void wrpo__pass(wrpo_trainer *t, const wrpo__set *set, const int64_t *list, const double *weight, int64_t count,
                       double alpha, bool train, wrpo__tally *tally) {
    wrpo__run *r = t->run;
    const wrpo_config *c = &r->model->config;
    const wrpo_loss_desc *d = &t->desc.loss;
    wrpo_response *y = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *y);
    double *logps = wrpo__alloc(wrpo__current, (size_t)set->K, sizeof *logps), scored = 0;
    wrpo__sum_head(r);
    for (int64_t i = 0; i < count && d->method == WRPO_METHOD_SFT; i++) {      /* SFT's mean is over the batch's tokens */
        wrpo_record record = wrpo_data_record(set->data, list ? list[i] : i);
        wrpo__as_loss(&record, y);
        scored += wrpo__sft_tokens(y, record.count);
    }
    for (int64_t at = 0, next; at < count; at = next) {
        int64_t target = 0, row = 0;
        next = wrpo__pack_some(r, set->data, list, at, count, t->desc.micro_tokens);
        wrpo__forward(r, true);                                                /* log pi of every scored token */
        for (int64_t i = at; i < next; i++) {
            const int64_t index = list ? list[i] : i;
            wrpo_record record = wrpo_data_record(set->data, index);
            int64_t first = target;
            const char *why = NULL;
            wrpo__as_loss(&record, y);
            wrpo__sum_logps(r, &record, &target, logps);
            for (int k = 0; k < record.count; k++) {
                y[k].logp = logps[k];
                y[k].ref = set->ref ? set->ref[index * set->K + k] : 0;
            }
            const double loss = wrpo_loss(d, alpha, y, record.count, scored, &why);         /* WRPO is here: >>loss */
            if (!isfinite(loss))
                wrpo__fail(t->ctx, WRPO_E_NOT_FINITE, "step %lld: record \"%s\" (line %lld): %s", (long long)t->k + train,
                           record.prompt_id, (long long)record.line, why ? why : "the loss is not a finite number");
            const double mean = weight ? weight[i] : 1 / (double)count;
            const double w = record.weight * (d->method == WRPO_METHOD_SFT ? 1 : mean);
            for (int k = 0; train && k < record.count; k++)                    /* dL/dlogp of each of its tokens */
                for (int64_t j = 0; j < y[k].tokens; j++) r->h_coef[first++] = (float)(w * y[k].dlogp);
            tally->m.loss += w * loss;
            wrpo__tally_add(tally, c, d, alpha, &record, y, mean, r->h_mean + row);
            row += wrpo__record_rows(c, &record);
        }
        tally->m.tokens += r->n;
        if (train) wrpo__backward(r, t->grads);
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
    const int64_t parts = (count + t->micro - 1) / t->micro;
    for (int64_t i = 0; i < count; i++) {
        const int64_t part = i / t->micro, size = WRPO__MIN(t->micro, count - part * t->micro);
        t->weight[i] = 1 / ((double)parts * (double)size);
    }
    *list = t->order + first;
    return count;
}
/* AdamW on every run of weights that are contiguous and decay alike. */
static void wrpo__update(wrpo_trainer *t, double lr, double grad_scale) {
    const wrpo_train_desc *d = &t->desc;
    const wrpo_backend *be = t->ctx->desc.backend;
    const double steps = (double)(t->k + 1);
    wrpo_adamw step = {.lr = (float)lr, .beta1 = (float)d->beta1, .beta2 = (float)d->beta2, .eps = (float)d->eps,
                       .grad_scale = (float)grad_scale, .moments = d->moments,
                       .correction1 = 1 - pow(d->beta1, steps), .correction2 = sqrt(1 - pow(d->beta2, steps))};
    for (int64_t i = 0, end, size; i < t->model->n_weights; i = end) {
        const wrpo_weight *w = &t->model->weights[i];
        const size_t at = wrpo_moments_bytes(d->moments, w->at);
        end = i + wrpo__weight_run(w, t->model->n_weights - i, 0, &size);
        step.weight_decay = w->decay ? (float)d->weight_decay : 0;
        step.seed = wrpo__random64(d->seed, (uint64_t)t->k, (uint64_t)w->at);
        be->adamw(t->ctx->dev, w->data, w->dtype == WRPO_DTYPE_BF16 ? t->model->low + w->at : NULL,
                  t->exp_avg + at, t->exp_avg_sq + at, t->grads + w->at, size, &step);
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

    /* 1. The schedules' values for step k of T; the records of the batch. */
    const int64_t warmup = (int64_t)ceil(d->warmup_ratio * (double)t->T - 1e-9);
    const double alpha = wrpo_alpha(d->alpha_schedule, d->alpha_power, d->alpha, t->k, t->T);
    const double lr = d->learning_rate * wrpo_lr_factor(d->lr_schedule, warmup, t->k, t->T);
    const int64_t count = wrpo__next_batch(t, &list);
    /* 2. Gradients of the batch's loss. */
    be->zero(ctx->dev, t->grads, (size_t)t->model->count * sizeof *t->grads);
    wrpo__pass(t, &t->train, list, t->weight, count, alpha, true, &tally);
    /* 3. Their global norm; clipping is a factor in AdamW. */
    be->zero(ctx->dev, t->sumsq, sizeof *t->sumsq);
    be->sumsq(ctx->dev, t->sumsq, t->grads, t->model->count);
    be->get(ctx->dev, &sumsq, t->sumsq, sizeof sumsq);
    wrpo__sync(ctx);
    const double norm = sqrt(sumsq);
    if (!isfinite(norm))
        wrpo__fail(ctx, WRPO_E_NOT_FINITE, "step %lld: the gradient is not finite (batch of %lld records, the first is \"%s\")",
                   (long long)t->k + 1, (long long)count, wrpo_data_record(t->train.data, list[0]).prompt_id);
    /* 4. The update. */
    wrpo__update(t, lr, d->max_grad_norm > 0 ? WRPO__MIN(1, d->max_grad_norm / (norm + 1e-6)) : 1);
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
        wrpo__fail(t->ctx, WRPO_E_ARG, "wrpo_trainer_eval: want the training data or desc.eval_data, whose reference is known");
    const double alpha = wrpo_alpha(t->desc.alpha_schedule, t->desc.alpha_power, t->desc.alpha, t->k, t->T);
    const wrpo_metrics m = wrpo__evaluate(t, data == t->train.given ? &t->train : &t->eval, alpha);
    if (t->log) t->log(t, &m, "eval_");
    return m;
}
WRPO_API wrpo_result wrpo_trainer_eval(wrpo_trainer *t, const wrpo_data *data, wrpo_metrics *m) {
    WRPO__CALL(t->ctx, wrpo__arena_new(t->ctx), true, *m = wrpo__trainer_eval(t, data));
    return wrpo__end(&wrpo__entry);
}

/* ------------------------------------------------------------ Stop here if you only want the algorithm. */

/* --------------------------------------------------------------------------------------------- >>json
   RFC 8259, strictly: valid UTF-8, no byte order mark, no lone surrogate, no key twice in an object, one
   value and nothing behind it. One pass without recursion. Every node knows its line and column.       */
enum { WRPO__JSON_DEPTH = 256, WRPO__JSON_SCAN = 16 /* members up to which keys are compared in pairs */ };
typedef char wrpo__shown[96];

/* Foreign text in one of our sentences: control characters escaped, bytes that are not UTF-8 as '?', cut to fit. */
static const char *wrpo__show(char *out, const char *s, size_t n) {
    size_t used = 0;
    for (size_t at = 0, size; at < n; at += size) {
        int32_t c = wrpo__utf8_get(s + at, n - at, &size);
        char part[16] = "?";
        if (c >= 0 && (c < 0x20 || (c >= 0x7F && c <= 0xA0))) snprintf(part, sizeof part, "\\u%04X", (unsigned)c);
        else if (c >= 0) memcpy(part, s + at, size), part[size] = 0;
        size_t k = strlen(part);
        if (used + k + 4 > sizeof(wrpo__shown)) { memcpy(out + used, "...", 3); used += 3; break; }
        memcpy(out + used, part, k);
        used += k;
    }
    out[used] = 0;
    return out;
}

/* ---- read ---- */
typedef struct wrpo__json_in {
    wrpo__arena *arena;
    const char *name;
    const char *at, *end;            /* what is left to read */
    const char *line_begin; int64_t line;
    int64_t inner;                   /* bytes of this line that continue a code point: they are no columns */
    char *out;                       /* where the next unescaped text goes */
} wrpo__json_in;

_Noreturn static void wrpo__json_stop(wrpo__json_in *in, wrpo_result code, const char *want, const char *found) {
    int64_t column = in->at - in->line_begin - in->inner + 1;
    wrpo__fail_at(in->arena->ctx, code, in->line, column, "%s:%lld:%lld: want %s, found %s", in->name, (long long)in->line, (long long)column, want, found);
}
/* The reader stands on what must not be there. */
_Noreturn static void wrpo__json_expect(wrpo__json_in *in, const char *want) {
    char found[128];
    wrpo__shown shown;
    size_t n = (size_t)(in->end - in->at), size;
    int32_t c = n ? wrpo__utf8_get(in->at, n, &size) : 0;
    if (!n) snprintf(found, sizeof found, "the end of the text");
    else if (c < 0) snprintf(found, sizeof found, "byte 0x%02X, which is not UTF-8 here", (unsigned char)*in->at);
    else if (c == 0xFEFF) snprintf(found, sizeof found, "a byte order mark");
    else if (c < 0x20) snprintf(found, sizeof found, "the control character U+%04X", (unsigned)c);
    else {
        size_t word = 0;                               /* NaN, True, undefined: shown whole */
        while (word < n && word < 24 && ((in->at[word] | 32) >= 'a' && (in->at[word] | 32) <= 'z')) word++;
        snprintf(found, sizeof found, "'%s'", wrpo__show(shown, in->at, word ? word : size));
    }
    wrpo__json_stop(in, WRPO_E_FORMAT, want, found);
}
static char wrpo__json_peek(const wrpo__json_in *in) { return in->at < in->end ? *in->at : 0; }   /* 0 is nowhere valid */
static void wrpo__json_space(wrpo__json_in *in) {
    for (; in->at < in->end; in->at++) {
        char c = *in->at;
        if (c == '\n') in->line++, in->line_begin = in->at + 1, in->inner = 0;
        else if (c != ' ' && c != '\t' && c != '\r') return;
    }
}
static uint32_t wrpo__json_hex4(wrpo__json_in *in) {
    uint32_t c = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        char d = wrpo__json_peek(in), low = (char)(d | 32);
        if (d >= '0' && d <= '9') c = c << 4 | (uint32_t)(d - '0');
        else if (low >= 'a' && low <= 'f') c = c << 4 | (uint32_t)(low - 'a' + 10);
        else wrpo__json_expect(in, "four hexadecimal digits after \\u");
    }
    return c;
}
/* The code point behind \u, the other half of its pair included. */
static uint32_t wrpo__json_unicode(wrpo__json_in *in) {
    const char *begin = in->at - 2;
    char found[32];
    uint32_t c = wrpo__json_hex4(in);
    if (c < 0xD800 || c > 0xDFFF) return c;
    if (c < 0xDC00 && in->end - in->at >= 2 && in->at[0] == '\\' && in->at[1] == 'u') {
        in->at += 2;
        uint32_t low = wrpo__json_hex4(in);
        if (low >= 0xDC00 && low <= 0xDFFF) return 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    in->at = begin;
    snprintf(found, sizeof found, "\\u%04X alone", (unsigned)c);
    wrpo__json_stop(in, WRPO_E_FORMAT, "both halves of a surrogate pair", found);
}
/* A string, from behind its opening quote. Unescaped it is never longer than it stands in the text, quotes against
   NUL; numbers have a byte behind them. So one buffer of the text's size and 1 holds all texts and keys. */
static const char *wrpo__json_string(wrpo__json_in *in, size_t *size) {
    char *begin = in->out, *to = begin;
    for (;;) {
        const char *run = in->at, *s = run;
        for (unsigned char c; s < in->end && (c = (unsigned char)*s) >= 0x20 && c != '"' && c != '\\';) {
            if (c < 0x80) { s++; continue; }
            size_t k;
            if (wrpo__utf8_get(s, (size_t)(in->end - s), &k) < 0) break;
            in->inner += (int64_t)k - 1;
            s += k;
        }
        if (s > run) memcpy(to, run, (size_t)(s - run));
        to += s - run;
        in->at = s;
        char c = wrpo__json_peek(in);
        if (c == '"') break;
        if (c != '\\') wrpo__json_expect(in, "a string's text or its closing '\"'");
        in->at++;
        c = wrpo__json_peek(in);
        static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
        const char *simple = c ? strchr(from, c) : NULL;
        if (!simple && c != 'u') wrpo__json_expect(in, "one of \" \\ / b f n r t u after a backslash");
        in->at++;
        if (simple) *to++ = into[simple - from];
        else to += wrpo__utf8_put(to, wrpo__json_unicode(in));
    }
    in->at++;
    *to = 0;
    in->out = to + 1;
    *size = (size_t)(to - begin);
    return begin;
}
/* A number of the grammar, correctly rounded whatever the locale's decimal point: 1.25e3 is read as 125e1. */
static double wrpo__json_double(wrpo__arena *arena, const char *s, size_t n) {
    char small[128], *digits = n + 32 <= sizeof small ? small : wrpo__raw(arena, n + 32, 1);
    size_t k = 0, i = 0;
    int64_t power = 0, written = 0;
    bool fraction = false;
    for (; i < n && (s[i] | 32) != 'e'; i++) {
        if (s[i] == '.') fraction = true;
        else digits[k++] = s[i], power -= fraction;
    }
    bool down = i + 1 < n && s[i + 1] == '-';
    for (; i < n; i++)
        if (s[i] >= '0' && s[i] <= '9' && written < INT64_MAX / 100) written = written * 10 + (s[i] - '0');
    snprintf(digits + k, 32, "e%lld", (long long)(power + (down ? -written : written)));
    double x = strtod(digits, NULL);
    if (digits != small) wrpo__block_free(digits);
    return x;
}
static void wrpo__json_digits(wrpo__json_in *in) {
    if (wrpo__json_peek(in) < '0' || wrpo__json_peek(in) > '9') wrpo__json_expect(in, "a digit");
    while (wrpo__json_peek(in) >= '0' && wrpo__json_peek(in) <= '9') in->at++;
}
static void wrpo__json_read_number(wrpo__json_in *in, wrpo_json *v) {
    const char *begin = in->at;
    bool minus = *begin == '-', whole = true;
    in->at += minus;
    const char *first = in->at;
    if (wrpo__json_peek(in) == '0') in->at++;
    else wrpo__json_digits(in);
    const uint64_t limit = (uint64_t)INT64_MAX + minus;
    uint64_t integer = 0;
    for (const char *s = first; s < in->at && whole; s++) {
        uint64_t d = (uint64_t)(*s - '0');
        if (integer > (limit - d) / 10) whole = false;
        else integer = integer * 10 + d;
    }
    if (wrpo__json_peek(in) == '.') { whole = false; in->at++; wrpo__json_digits(in); }
    if ((wrpo__json_peek(in) | 32) == 'e') {
        whole = false;
        in->at++;
        if (wrpo__json_peek(in) == '+' || wrpo__json_peek(in) == '-') in->at++;
        wrpo__json_digits(in);
    }
    v->kind = WRPO_JSON_NUMBER;
    v->size = (size_t)(in->at - begin);
    v->text = memcpy(in->out, begin, v->size);
    in->out[v->size] = 0;
    in->out += v->size + 1;
    v->exact = whole;
    if (whole) {
        v->integer = minus ? (int64_t)(0 - integer) : (int64_t)integer;
        v->number = minus ? -(double)integer : (double)integer;     /* -0 stays -0 */
    } else v->number = wrpo__json_double(in->arena, begin, v->size);
}
static bool wrpo__json_word(wrpo__json_in *in, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(in->end - in->at) < n || memcmp(in->at, word, n)) return false;
    in->at += n;
    return true;
}
/* One value; of an array or object only its opening bracket. */
static void wrpo__json_value(wrpo__json_in *in, wrpo_json *v) {
    v->line = (int32_t)WRPO__MIN(in->line, INT32_MAX);
    v->column = (int32_t)(in->at - in->line_begin - in->inner + 1);
    char c = wrpo__json_peek(in);
    if (c == '"') { in->at++; v->kind = WRPO_JSON_STRING; v->text = wrpo__json_string(in, &v->size); }
    else if (c == '-' || (c >= '0' && c <= '9')) wrpo__json_read_number(in, v);
    else if (c == '[' || c == '{') { in->at++; v->kind = c == '[' ? WRPO_JSON_ARRAY : WRPO_JSON_OBJECT; }
    else if (wrpo__json_word(in, "true")) { v->kind = WRPO_JSON_BOOL; v->boolean = true; }
    else if (wrpo__json_word(in, "false")) v->kind = WRPO_JSON_BOOL;
    else if (!wrpo__json_word(in, "null")) wrpo__json_expect(in, "a value");
}
static bool wrpo__json_same_key(const wrpo_json *a, const wrpo_json *b) { return a->key_size == b->key_size && !memcmp(a->key, b->key, a->key_size); }
/* Every key of this object once: pairs where there are few, a hash table of half load where there are many. Keys made
   to collide would take quadratic time; they are refused long before. */
static void wrpo__json_unique(wrpo__json_in *in, const wrpo_json *object) {
    wrpo_ctx *ctx = in->arena->ctx;
    const wrpo_json *twice = NULL, *first = NULL;
    if (object->count <= WRPO__JSON_SCAN) {
        for (const wrpo_json *b = object->child; b && !twice; b = b->next)
            for (const wrpo_json *a = object->child; a != b && !twice; a = a->next)
                if (wrpo__json_same_key(a, b)) twice = b, first = a;
    } else {
        typedef struct { uint64_t hash; const wrpo_json *member; } slot;
        size_t slots = 64;
        while (slots < (size_t)object->count * 2) slots *= 2;
        int64_t steps = 16 * object->count + 1024;
        slot *table = wrpo__raw(in->arena, slots, sizeof *table);
        memset(table, 0, slots * sizeof *table);
        for (const wrpo_json *b = object->child; b && !twice; b = b->next) {
            uint64_t hash = wrpo__hash(0, b->key, b->key_size);
            size_t i = hash & (slots - 1);
            for (; table[i].member && !twice && --steps > 0; i = (i + 1) & (slots - 1))
                if (table[i].hash == hash && wrpo__json_same_key(table[i].member, b)) twice = b, first = table[i].member;
            if (steps <= 0)
                wrpo__fail_at(ctx, WRPO_E_UNSUPPORTED, object->line, object->column, "%s:%d:%d: want keys as texts have them, found %lld made to collide",
                              in->name, object->line, object->column, (long long)object->count);
            table[i].hash = hash, table[i].member = b;
        }
        wrpo__block_free(table);
    }
    if (!twice) return;
    wrpo__shown key;
    wrpo__fail_at(ctx, WRPO_E_FORMAT, twice->line, twice->column, "%s:%d:%d: want every key once, found \"%s\" again (first on line %d)",
                  in->name, twice->line, twice->column, wrpo__show(key, twice->key, twice->key_size), first->line);
}
/* The text as a tree in the arena. name: what errors call it. first_line: of JSON lines, the line that this text is. */
static wrpo_json *wrpo__json_parse(wrpo__arena *arena, const char *name, int64_t first_line, const char *text, size_t n) {
    if (!n) text = "";
    wrpo__json_in in = {.arena = arena, .name = name, .at = text, .end = text + n, .line_begin = text, .line = first_line};
    struct { wrpo_json *node, **tail; } up[WRPO__JSON_DEPTH];       /* the containers that are open */
    int depth = 0;
    wrpo_json *root = NULL;
    if (n >= INT32_MAX) wrpo__fail(arena->ctx, WRPO_E_UNSUPPORTED, "%s: want less than 2 GiB of JSON, found %zu bytes", name, n);
    in.out = wrpo__raw(arena, n + 1, 1);
    wrpo__json_space(&in);
    for (;;) {
        wrpo_json *v = WRPO__NEW(arena, wrpo_json);
        if (depth && up[depth - 1].node->kind == WRPO_JSON_OBJECT) {
            if (wrpo__json_peek(&in) != '"') wrpo__json_expect(&in, "a key in double quotes");
            in.at++;
            v->key = wrpo__json_string(&in, &v->key_size);
            wrpo__json_space(&in);
            if (wrpo__json_peek(&in) != ':') wrpo__json_expect(&in, "':' after a key");
            in.at++;
            wrpo__json_space(&in);
        }
        wrpo__json_value(&in, v);
        if (depth) {
            *up[depth - 1].tail = v;
            up[depth - 1].tail = &v->next;
            up[depth - 1].node->count++;
        } else root = v;
        if (v->kind == WRPO_JSON_ARRAY || v->kind == WRPO_JSON_OBJECT) {
            if (depth == WRPO__JSON_DEPTH) { in.at--; wrpo__json_stop(&in, WRPO_E_FORMAT, "at most 256 levels of nesting", "one more"); }
            up[depth].node = v;
            up[depth++].tail = &v->child;
            wrpo__json_space(&in);
            if (wrpo__json_peek(&in) != (v->kind == WRPO_JSON_ARRAY ? ']' : '}')) continue;
        }
        for (; depth; depth--) {                       /* behind a whole value: a comma, or ends */
            bool array = up[depth - 1].node->kind == WRPO_JSON_ARRAY;
            wrpo__json_space(&in);
            char c = wrpo__json_peek(&in);
            if (c != ',' && c != (array ? ']' : '}')) wrpo__json_expect(&in, array ? "',' or ']'" : "',' or '}'");
            in.at++;
            if (c == ',') break;
            if (!array) wrpo__json_unique(&in, up[depth - 1].node);
        }
        wrpo__json_space(&in);
        if (!depth) break;
    }
    if (in.at != in.end) wrpo__json_expect(&in, "the end of the text");
    return root;
}
static const wrpo_json *wrpo__json_get(const wrpo_json *object, const char *key) {
    if (!object || object->kind != WRPO_JSON_OBJECT) return NULL;
    size_t n = strlen(key);
    for (const wrpo_json *v = object->child; v; v = v->next)
        if (v->key_size == n && !memcmp(v->key, key, n)) return v;
    return NULL;
}

/* ---- use: values as they are wanted, or "NAME:LINE:COLUMN: KEY: want ..., found ..." ---- */
static bool wrpo__json_is(const wrpo_json *v, const char *text) {      /* this string */
    return v && v->kind == WRPO_JSON_STRING && v->size == strlen(text) && !memcmp(v->text, text, v->size);
}
_Noreturn WRPO__PRINTF(5, 6) static void wrpo__json_fail(wrpo_ctx *ctx, wrpo_result code, const char *name, const wrpo_json *v, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    wrpo__fail_at(ctx, code, v->line, v->column, "%s:%d:%d: %s", name, v->line, v->column, text);
}
/* What a value is, for the end of a sentence; out: of the size of wrpo__shown. */
static const char *wrpo__json_found(char *out, const wrpo_json *v) {
    wrpo__shown text;
    const size_t n = sizeof(wrpo__shown);
    switch (v->kind) {
    case WRPO_JSON_NULL: snprintf(out, n, "null"); break;
    case WRPO_JSON_BOOL: snprintf(out, n, v->boolean ? "true" : "false"); break;
    case WRPO_JSON_NUMBER: snprintf(out, n, v->size > 40 ? "%.40s..." : "%s", v->text); break;
    case WRPO_JSON_STRING: snprintf(out, n, "\"%.80s\"", wrpo__show(text, v->text, WRPO__MIN(v->size, 64))); break;
    case WRPO_JSON_ARRAY: snprintf(out, n, "an array of %lld", (long long)v->count); break;
    case WRPO_JSON_OBJECT: snprintf(out, n, "an object of %lld", (long long)v->count); break;
    }
    return out;
}
static const char *wrpo__json_kind(wrpo_json_kind kind) {
    static const char *const names[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
    return names[kind];
}
/* what: the value in words; NULL = its key. Every "want" below ends in one of these two. */
_Noreturn static void wrpo__json_refuse(wrpo_ctx *ctx, const char *name, const wrpo_json *v, const char *what, const char *want) {
    wrpo__shown key, found;
    if (!what) what = v->key ? wrpo__show(key, v->key, v->key_size) : "JSON";
    wrpo__json_fail(ctx, WRPO_E_FORMAT, name, v, "%s: want %s, found %s", what, want, wrpo__json_found(found, v));
}
static const wrpo_json *wrpo__json_want(wrpo_ctx *ctx, const char *name, const wrpo_json *v, wrpo_json_kind kind, const char *what) {
    if (v->kind != kind) wrpo__json_refuse(ctx, name, v, what, wrpo__json_kind(kind));
    return v;
}
/* A member of an object: of this kind and there; or NULL where it is absent or null. */
static const wrpo_json *wrpo__json_maybe(wrpo_ctx *ctx, const char *name, const wrpo_json *object, const char *key, wrpo_json_kind kind) {
    const wrpo_json *v = wrpo__json_get(wrpo__json_want(ctx, name, object, WRPO_JSON_OBJECT, NULL), key);
    return v && v->kind != WRPO_JSON_NULL ? wrpo__json_want(ctx, name, v, kind, NULL) : NULL;
}
static const wrpo_json *wrpo__json_need(wrpo_ctx *ctx, const char *name, const wrpo_json *object, const char *key, wrpo_json_kind kind) {
    const wrpo_json *v = wrpo__json_get(wrpo__json_want(ctx, name, object, WRPO_JSON_OBJECT, NULL), key);
    if (!v) wrpo__json_fail(ctx, WRPO_E_FORMAT, name, object, "%s: want %s, found no such key in this object", key, wrpo__json_kind(kind));
    return wrpo__json_want(ctx, name, v, kind, NULL);
}
static int64_t wrpo__json_integer(wrpo_ctx *ctx, const char *name, const wrpo_json *v, int64_t low, int64_t high, const char *what) {
    char want[80];
    if (v->kind == WRPO_JSON_NUMBER && v->exact && v->integer >= low && v->integer <= high) return v->integer;
    snprintf(want, sizeof want, "an integer from %lld to %lld", (long long)low, (long long)high);
    wrpo__json_refuse(ctx, name, v, what, want);
}
static double wrpo__json_real(wrpo_ctx *ctx, const char *name, const wrpo_json *v, const char *what) {
    if (v->kind != WRPO_JSON_NUMBER || !isfinite(v->number)) wrpo__json_refuse(ctx, name, v, what, "a finite number");
    return v->number;
}

/* ---- write ---- */
static void wrpo__json_quote(wrpo__text *out, const char *s, size_t n) {   /* bytes that are not UTF-8 become U+FFFD */
    size_t done = 0;
    wrpo__text_puts(out, "\"");
    for (size_t at = 0, size; at < n; at += size) {
        static const char special[] = "\"\\\b\f\n\r\t", escape[] = "\"\\bfnrt";
        int32_t c = wrpo__utf8_get(s + at, n - at, &size);
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        wrpo__text_add(out, s + done, at - done);
        done = at + size;
        const char *simple = c > 0 ? strchr(special, c) : NULL;
        if (c < 0) wrpo__text_puts(out, "\xEF\xBF\xBD");
        else if (simple) wrpo__text_printf(out, "\\%c", escape[simple - special]);
        else wrpo__text_printf(out, "\\u%04X", (unsigned)c);
    }
    wrpo__text_add(out, s + done, n - done);
    wrpo__text_puts(out, "\"");
}
/* The fewest digits of a finite x that read back as the same double, whatever the locale: returns their number n, |x| = d.ddd * 10^power. */
static int wrpo__json_digits_of(double x, char digits[24], int *power) {
    char s[48];
    snprintf(s, sizeof s, "%.14e", x);
    int precision = strtod(s, NULL) == x ? 0 : 15;
    for (; precision < 17; precision++) {
        snprintf(s, sizeof s, "%.*e", precision, x);
        if (strtod(s, NULL) == x) break;
    }
    int n = 0;
    const char *p = s;
    for (; *p != 'e'; p++)                             /* skips the sign and a decimal point of any locale */
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    digits[n] = 0;
    *power = (int)strtol(p + 1, NULL, 10);
    if (n == 17) {                                     /* a power of two owns more of the line above it: its 16 digits may be those rounded up */
        char up[24];
        int i = 15;
        memcpy(up, digits, 16);
        while (i >= 0 && up[i] == '9') up[i--] = '0';
        if (i >= 0) up[i]++;
        snprintf(s, sizeof s, "%.16se%d", up, *power - 15);
        if (strtod(s, NULL) == fabs(x)) { memcpy(digits, up, 16); digits[n = 16] = 0; }
    }
    return n;
}
static void wrpo__json_number(wrpo__text *out, double x) {   /* NaN and infinity become null */
    char digits[24];
    int power = 0, n = isfinite(x) ? wrpo__json_digits_of(x, digits, &power) : 0;
    if (n == 0) { wrpo__text_puts(out, "null"); return; }
    if (signbit(x)) wrpo__text_puts(out, "-");
    if (power < -5 || power > 16) wrpo__text_printf(out, n > 1 ? "%.1s.%se%d" : "%.1s%se%d", digits, digits + 1, power);
    else if (power < 0) wrpo__text_printf(out, "0.%.*s%s", -power - 1, "00000", digits);
    else if (power < n - 1) wrpo__text_printf(out, "%.*s.%s", power + 1, digits, digits + power + 1);
    else wrpo__text_printf(out, "%s%.*s", digits, power - n + 1, "0000000000000000");
}

static void wrpo__json_write(wrpo__text *out, const wrpo_json *v) {    /* a value on one line; numbers as they were written */
    switch (v->kind) {
    case WRPO_JSON_NULL: wrpo__text_puts(out, "null"); return;
    case WRPO_JSON_BOOL: wrpo__text_puts(out, v->boolean ? "true" : "false"); return;
    case WRPO_JSON_NUMBER: wrpo__text_add(out, v->text, v->size); return;
    case WRPO_JSON_STRING: wrpo__json_quote(out, v->text, v->size); return;
    case WRPO_JSON_ARRAY: case WRPO_JSON_OBJECT: break;
    }
    const bool object = v->kind == WRPO_JSON_OBJECT;
    wrpo__text_puts(out, object ? "{" : "[");
    for (const wrpo_json *m = v->child; m; m = m->next) {
        if (object) wrpo__json_quote(out, m->key, m->key_size), wrpo__text_puts(out, ": ");
        wrpo__json_write(out, m);
        if (m->next) wrpo__text_puts(out, ", ");
    }
    wrpo__text_puts(out, object ? "}" : "]");
}

/* ---- the public face ---- */
typedef struct wrpo__json_root { wrpo__arena *arena; wrpo_json node; } wrpo__json_root;   /* the user holds &node */
WRPO_API wrpo_result wrpo_json_parse(wrpo_ctx *ctx, const char *name, const char *text, size_t size, wrpo_json **out) {
    *out = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), false) {
        wrpo__json_root *root = WRPO__NEW(wrpo__entry.arena, wrpo__json_root);
        root->arena = wrpo__entry.arena;
        root->node = *wrpo__json_parse(root->arena, name ? name : "JSON", 1, text, size);
        *out = &root->node;
    }
    return wrpo__end(&wrpo__entry);
}
WRPO_API void wrpo_json_free(wrpo_ctx *ctx, wrpo_json *root) {
    (void)ctx;
    if (root) wrpo__arena_free(((wrpo__json_root *)(void *)((char *)root - offsetof(wrpo__json_root, node)))->arena);
}
WRPO_API const wrpo_json *wrpo_json_get(const wrpo_json *object, const char *key) { return wrpo__json_get(object, key); }
WRPO_API wrpo_result wrpo_json_quote(wrpo_ctx *ctx, const char *text, size_t size, char **out) {
    *out = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__text t = {.arena = wrpo__entry.arena};
        wrpo__json_quote(&t, text, size);
        *out = wrpo__handout(ctx, t.data, t.size);
    }
    return wrpo__end(&wrpo__entry);
}
WRPO_API wrpo_result wrpo_json_text(wrpo_ctx *ctx, const wrpo_json *value, char **out) {
    *out = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__text t = {.arena = wrpo__entry.arena};
        wrpo__json_write(&t, value);
        *out = wrpo__handout(ctx, t.data, t.size);
    }
    return wrpo__end(&wrpo__entry);
}
static const wrpo_json *wrpo__present(const wrpo_json *root, const char *key) {   /* NULL: absent or null */
    const wrpo_json *v = wrpo__json_get(root, key);
    return v && v->kind != WRPO_JSON_NULL ? v : NULL;
}

/* ------------------------------------------------------------------------------------------ >>tensors
   safetensors: 8 bytes N, little-endian; N bytes of JSON; the data. The JSON names every tensor with its
   dtype, shape and [begin, end) in the data, which they must cover without a hole or an overlap.
   Opening reads headers only, so a checkpoint of any size opens in milliseconds.                       */
#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "wrpo.h: checkpoints are little-endian, and so must the machine be"
#endif
#define WRPO__SINGLE_FILE "model.safetensors"
#define WRPO__INDEX_FILE "model.safetensors.index.json"
enum { WRPO__HEADER_MAX = 100000000, WRPO__CHUNK = 1 << 20 /* floats written at a time */ };

/* ---- dtypes ---- */
static int wrpo__dtype_bits(const char *name) {        /* of one element; 0: no such dtype */
    static const struct { const char *name; int bits; } table[] = {
        {"F64", 64}, {"F32", 32}, {"F16", 16}, {"BF16", 16}, {"I64", 64}, {"I32", 32}, {"I16", 16}, {"I8", 8},
        {"U64", 64}, {"U32", 32}, {"U16", 16}, {"U8", 8}, {"BOOL", 8}, {"C64", 64},
        {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
        {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}};
    for (int64_t i = 0; i < WRPO__COUNT(table); i++)
        if (!strcmp(table[i].name, name)) return table[i].bits;
    return 0;
}
static const char *wrpo__dtype_name(wrpo_dtype dtype) { return dtype == WRPO_DTYPE_BF16 ? "BF16" : dtype == WRPO_DTYPE_F16 ? "F16" : "F32"; }
/* What wrpo__to_float can read; WRPO_DTYPE_DEFAULT: not this tensor. */
static wrpo_dtype wrpo__float_dtype(const wrpo_tensor_info *t) {
    return !strcmp(t->dtype, "F32") ? WRPO_DTYPE_F32 : !strcmp(t->dtype, "BF16") ? WRPO_DTYPE_BF16 : !strcmp(t->dtype, "F16") ? WRPO_DTYPE_F16 : WRPO_DTYPE_DEFAULT;
}

/* Bit patterns, not floats, pass through here: no signalling NaN is quieted by a move, no mode flushes a denormal. */
static uint32_t wrpo__bf16_to_bits(uint16_t h) { return (uint32_t)h << 16; }
static uint32_t wrpo__f16_to_bits(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, m = h & 0x7FFFu;
    uint32_t large = m << 13 | 0x7F800000u;            /* infinity, NaN with its payload */
    uint32_t usual = (m << 13) + (112u << 23);         /* exponent bias 15 -> 127 */
    uint32_t small = wrpo__float_bits((float)(int32_t)m * 0x1p-24f);                /* denormal here, normal there */
    return sign | (m >= 0x7C00 ? large : m >= 0x0400 ? usual : small);
}
static uint16_t wrpo__float_to_f16(float x) {
    uint32_t u = wrpo__float_bits(x), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | (a >> 13 & 0x3FFu));
    if (a >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);                        /* from 65520 on: infinity */
    if (a >= 0x38800000u) return (uint16_t)(sign | ((a - (112u << 23) + 0xFFFu + (a >> 13 & 1)) >> 13));
    if (a < 0x33000000u) return (uint16_t)sign;                                     /* below half the least denormal, 2^-25 */
    uint32_t shift = 126 - (a >> 23), m = (a & 0x7FFFFFu) | 0x800000u;              /* 14..24: units of 2^-24 */
    uint32_t rest = m & ((1u << shift) - 1), half = 1u << (shift - 1);
    m >>= shift;
    return (uint16_t)(sign | (m + (rest > half || (rest == half && (m & 1)))));
}
/* dst[count] = elements [first, first + count) of t, exactly. Fails for a dtype that is no float: check with
   wrpo__float_dtype where a failure cannot be passed on, as in a parallel loop. */
static void wrpo__to_float(wrpo_ctx *ctx, float *dst, const wrpo_tensor_info *t, int64_t first, int64_t count) {
    wrpo_dtype dtype = wrpo__float_dtype(t);
    if (!dtype) wrpo__fail(ctx, WRPO_E_UNSUPPORTED, "%s: %s: want F32, F16 or BF16, found %s", t->file, t->name, t->dtype);
    if (count <= 0) return;
    const unsigned char *src = (const unsigned char *)t->data + (size_t)first * wrpo__dtype_size(dtype);
    if (dtype == WRPO_DTYPE_F32) { memcpy(dst, src, (size_t)count * 4); return; }
    uint16_t h;
    uint32_t u;
    if (dtype == WRPO_DTYPE_BF16) for (int64_t i = 0; i < count; i++) { memcpy(&h, src + 2 * i, 2); u = wrpo__bf16_to_bits(h); memcpy(dst + i, &u, 4); }
    else for (int64_t i = 0; i < count; i++) { memcpy(&h, src + 2 * i, 2); u = wrpo__f16_to_bits(h); memcpy(dst + i, &u, 4); }
}
/* The way back, rounded; dst has wrpo__dtype_size bytes per number, no alignment, and may be src. */
static void wrpo__from_float(void *dst, wrpo_dtype dtype, const float *src, int64_t count) {
    unsigned char *out = dst;
    if (dtype != WRPO_DTYPE_BF16 && dtype != WRPO_DTYPE_F16) { if (count > 0) memmove(dst, src, (size_t)count * 4); return; }
    for (int64_t i = 0; i < count; i++) {
        uint16_t h = dtype == WRPO_DTYPE_BF16 ? wrpo__float_to_bf16(src[i]) : wrpo__float_to_f16(src[i]);
        memcpy(out + 2 * i, &h, 2);
    }
}

/* ---- one file ---- */
struct wrpo_tensors { wrpo__arena *arena; wrpo_tensor_info *info; int64_t count; };   /* info: sorted by name */
typedef struct wrpo__part { const char *path; wrpo_tensor_info *info; int64_t count; } wrpo__part;

static int wrpo__by_place(const void *x, const void *y) {               /* where the data begins, then where it ends */
    const wrpo_tensor_info *a = x, *b = y;
    if (a->data != b->data) return (uintptr_t)a->data < (uintptr_t)b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}
static int wrpo__by_tensor_name(const void *x, const void *y) { return strcmp(((const wrpo_tensor_info *)x)->name, ((const wrpo_tensor_info *)y)->name); }

_Noreturn WRPO__PRINTF(5, 6) static void wrpo__tensor_fail(wrpo_ctx *ctx, wrpo_result code, const char *path, const char *name, const char *format, ...) {
    char text[320];
    wrpo__shown shown;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    wrpo__fail(ctx, code, "%s: %s: %s", path, wrpo__show(shown, name, strlen(name)), text);
}
static bool wrpo__is_size(const wrpo_json *v) { return v->kind == WRPO_JSON_NUMBER && v->exact && v->text[0] != '-'; }
/* One entry of the header; data[size]: all that follows the header. */
static void wrpo__tensor_read(wrpo__arena *arena, const wrpo_json *entry, const unsigned char *data, size_t size, wrpo_tensor_info *t) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo__shown found;
    if (entry->kind != WRPO_JSON_OBJECT) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want an object of dtype, shape and data_offsets, found %s", wrpo__json_found(found, entry));
    const wrpo_json *dtype = NULL, *shape = NULL, *place = NULL;
    for (const wrpo_json *v = entry->child; v; v = v->next) {
        const wrpo_json **to = !strcmp(v->key, "dtype") ? &dtype : !strcmp(v->key, "shape") ? &shape : !strcmp(v->key, "data_offsets") ? &place : NULL;
        if (!to || *to) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want dtype, shape and data_offsets, found \"%s\" as well", wrpo__show(found, v->key, v->key_size));
        *to = v;
    }
    const char *missing = !dtype ? "dtype" : !shape ? "shape" : !place ? "data_offsets" : NULL;
    if (missing) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want dtype, shape and data_offsets, found no %s", missing);

    int bits = dtype->kind == WRPO_JSON_STRING ? wrpo__dtype_bits(dtype->text) : 0;
    if (!bits || strlen(dtype->text) != dtype->size) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want a dtype, found %s", wrpo__json_found(found, dtype));
    t->dtype = wrpo__strndup(arena, dtype->text, dtype->size);
    if (shape->kind != WRPO_JSON_ARRAY) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want shape to be an array, found %s", wrpo__json_found(found, shape));
    int64_t *dims = wrpo__alloc(arena, (size_t)shape->count, sizeof *dims);
    t->ndim = (int)shape->count, t->shape = dims, t->count = 1;
    for (const wrpo_json *v = shape->child; v; v = v->next) {           /* the product in the order written, as the format's library forms it */
        if (!wrpo__is_size(v)) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want shape to hold sizes, found %s", wrpo__json_found(found, v));
        if (v->integer && t->count > INT64_MAX / v->integer) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want a shape whose product fits 63 bits, found more");
        t->count *= *dims++ = v->integer;
    }
    if (t->count > INT64_MAX / bits) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want a size that fits 63 bits, found %lld x %d bits", (long long)t->count, bits);
    if (t->count * bits % 8) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want whole bytes, found %lld x %d bits", (long long)t->count, bits);

    if (place->kind != WRPO_JSON_ARRAY || place->count != 2 || !wrpo__is_size(place->child) || !wrpo__is_size(place->child->next))
        wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want data_offsets to be [begin, end], found %s%s", wrpo__json_found(found, place),
                          place->kind == WRPO_JSON_ARRAY && place->count == 2 ? ", not both whole numbers" : "");
    uint64_t begin = (uint64_t)place->child->integer, end = (uint64_t)place->child->next->integer;
    if (begin > end || end > size)
        wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want data within the file's %zu bytes, found [%llu, %llu)", size, (unsigned long long)begin, (unsigned long long)end);
    if (end - begin != (uint64_t)(t->count * bits / 8))
        wrpo__tensor_fail(ctx, WRPO_E_FORMAT, t->file, t->name, "want %lld bytes for %lld of %s, found %llu", (long long)(t->count * bits / 8), (long long)t->count, t->dtype,
                          (unsigned long long)(end - begin));
    t->bytes = (size_t)(end - begin);
    t->data = data + begin;
}
/* A .safetensors file, mapped into the arena: its tensors, sorted by name. */
static wrpo__part wrpo__part_open(wrpo__arena *arena, const char *path) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo__arena *temp = wrpo__sub_arena(arena);
    const wrpo__file *f = wrpo__open_file(arena, path);
    if (f->size < 8) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want 8 bytes of header size, found a file of %zu", path, f->size);
    uint64_t header = 0;
    for (int i = 7; i >= 0; i--) header = header << 8 | f->data[i];
    if (header > WRPO__HEADER_MAX) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want a header of at most %d bytes, found %llu", path, WRPO__HEADER_MAX, (unsigned long long)header);
    if (header > f->size - 8) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want %llu bytes of header, found %zu", path, (unsigned long long)header, f->size - 8);
    const unsigned char *data = f->data + 8 + header;
    const size_t size = f->size - 8 - (size_t)header;

    const char *name = wrpo__format(temp, "%s: header", path);
    const wrpo_json *root = wrpo__json_want(ctx, name, wrpo__json_parse(temp, name, 1, (const char *)f->data + 8, (size_t)header), WRPO_JSON_OBJECT, "the header");
    const wrpo_json *metadata = wrpo__json_get(root, "__metadata__");
    if (metadata) {
        wrpo__json_want(ctx, name, metadata, WRPO_JSON_OBJECT, NULL);
        for (const wrpo_json *v = metadata->child; v; v = v->next) wrpo__json_want(ctx, name, v, WRPO_JSON_STRING, NULL);
    }
    wrpo__part part = {f->path, NULL, root->count - (metadata != NULL)};
    wrpo_tensor_info *t = part.info = wrpo__raw(arena, (size_t)part.count, sizeof *t);
    for (const wrpo_json *v = root->child; v; v = v->next) {
        wrpo__shown shown;
        if (v == metadata) continue;
        if (strlen(v->key) != v->key_size) wrpo__fail(ctx, WRPO_E_UNSUPPORTED, "%s: %s: want a name without U+0000", path, wrpo__show(shown, v->key, v->key_size));
        *t = (wrpo_tensor_info){.name = wrpo__strndup(arena, v->key, v->key_size), .file = f->path};
        wrpo__tensor_read(arena, v, data, size, t++);
    }
    wrpo__arena_clear(temp);
    if (part.count) qsort(part.info, (size_t)part.count, sizeof *t, wrpo__by_place);
    size_t at = 0;
    for (int64_t i = 0; i < part.count; i++) {
        t = &part.info[i];
        size_t begin = (size_t)((const unsigned char *)t->data - data);
        if (begin != at) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, path, t->name, "want data from byte %zu on, found %zu: %s", at, begin, begin < at ? "an overlap" : "a hole");
        at = begin + t->bytes;
    }
    if (at != size) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want %zu bytes of data, found %zu", path, at, size);
    if (part.count) qsort(part.info, (size_t)part.count, sizeof *t, wrpo__by_tensor_name);
    return part;
}

/* ---- many files: the index maps every tensor to its file ---- */
typedef struct wrpo__mapped { const char *file, *name; } wrpo__mapped;
static int wrpo__by_file(const void *x, const void *y) {
    const wrpo__mapped *a = x, *b = y;
    int order = strcmp(a->file, b->file);
    return order ? order : strcmp(a->name, b->name);
}
static wrpo__part wrpo__index_open(wrpo__arena *arena, const char *path) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo__arena *temp = wrpo__sub_arena(arena);
    const wrpo__file *f = wrpo__open_file(temp, path);
    const wrpo_json *root = wrpo__json_want(ctx, path, wrpo__json_parse(temp, path, 1, (const char *)f->data, f->size), WRPO_JSON_OBJECT, "the index");
    const wrpo_json *map = wrpo__json_need(ctx, path, root, "weight_map", WRPO_JSON_OBJECT), *metadata = wrpo__json_maybe(ctx, path, root, "metadata", WRPO_JSON_OBJECT);
    wrpo__part all = {path, wrpo__raw(arena, (size_t)map->count, sizeof *all.info), 0};
    wrpo__mapped *mapped = wrpo__raw(temp, (size_t)map->count, sizeof *mapped);
    const char *dir = wrpo__strndup(temp, path, (size_t)(wrpo__basename(path) - path));
    for (const wrpo_json *v = map->child; v; v = v->next) {
        wrpo__shown shown;
        wrpo__json_want(ctx, path, v, WRPO_JSON_STRING, NULL);
        if (!v->size || strlen(v->text) != v->size || strpbrk(v->text, "/\\") || strstr(v->text, ".."))
            wrpo__json_fail(ctx, WRPO_E_FORMAT, path, v, "%s: want the name of a file beside the index, found \"%s\"", v->key, wrpo__show(shown, v->text, v->size));
        mapped[all.count++] = (wrpo__mapped){v->text, v->key};
    }
    if (all.count) qsort(mapped, (size_t)all.count, sizeof *mapped, wrpo__by_file);
    double bytes = 0;
    for (int64_t i = 0, next; i < all.count; i = next) {                /* a file's tensors stand together, sorted as the file's are */
        wrpo__part part = wrpo__part_open(arena, wrpo__format(temp, "%s%s", dir, mapped[i].file));
        for (next = i; next < all.count && !strcmp(mapped[next].file, mapped[i].file); next++) {}
        int64_t k = 0;
        for (int64_t m = i; m < next || k < part.count;) {
            int order = m == next ? 1 : k == part.count ? -1 : strcmp(mapped[m].name, part.info[k].name);
            if (order < 0) wrpo__tensor_fail(ctx, WRPO_E_FORMAT, path, mapped[m].name, "want it in %s, found no such tensor there", mapped[m].file);
            if (order > 0) {
                for (int64_t j = 0; j < all.count; j++)
                    if (!strcmp(mapped[j].name, part.info[k].name))
                        wrpo__tensor_fail(ctx, WRPO_E_FORMAT, part.path, part.info[k].name, "want it only in %s, as %s says, found it here as well", mapped[j].file, wrpo__basename(path));
                wrpo__tensor_fail(ctx, WRPO_E_FORMAT, part.path, part.info[k].name, "want an entry in the weight_map of %s, found none", wrpo__basename(path));
            }
            bytes += (double)part.info[k].bytes;
            all.info[m++] = part.info[k++];
        }
        wrpo__block_free(part.info);
    }
    const wrpo_json *total = metadata ? wrpo__json_get(metadata, "total_size") : NULL;
    if (total && !(total->kind == WRPO_JSON_NUMBER && total->number == bytes)) {
        wrpo__shown found;
        wrpo__log(ctx, WRPO_LOG_WARN, "%s:%d: total_size: want %.0f, found %s", path, total->line, bytes, wrpo__json_found(found, total));
    }
    wrpo__arena_clear(temp);
    if (all.count) qsort(all.info, (size_t)all.count, sizeof *all.info, wrpo__by_tensor_name);
    return all;
}

/* ---- open ----
   A directory is read as transformers reads it: the single file first, then the index. Nothing is guessed. */
WRPO_API wrpo_result wrpo_tensors_open(wrpo_ctx *ctx, const char *path, wrpo_tensors **out) {
    *out = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), false) {
        wrpo__arena *arena = wrpo__entry.arena;
        const char *file = path, *suffix = ".json";
        if (wrpo__is_dir(path)) {
            const char *single = wrpo__join(arena, path, WRPO__SINGLE_FILE), *index = wrpo__join(arena, path, WRPO__INDEX_FILE);
            file = wrpo__exists(single) ? single : wrpo__exists(index) ? index : NULL;
            if (!file) wrpo__fail(ctx, WRPO_E_IO, "%s: want " WRPO__SINGLE_FILE " or " WRPO__INDEX_FILE " in this directory, found neither", path);
        }
        size_t n = strlen(file), k = strlen(suffix);
        wrpo__part part = n > k && !strcmp(file + n - k, suffix) ? wrpo__index_open(arena, file) : wrpo__part_open(arena, file);
        wrpo_tensors *t = WRPO__NEW(arena, wrpo_tensors);
        t->arena = arena, t->info = part.info, t->count = part.count;
        *out = t;
    }
    return wrpo__end(&wrpo__entry);
}
WRPO_API void wrpo_tensors_close(wrpo_tensors *t) { if (t) wrpo__arena_free(t->arena); }
static void wrpo__tensors_drop(void *p) { wrpo_tensors_close(p); }     /* for wrpo__on_free */
WRPO_API int64_t wrpo_tensors_count(const wrpo_tensors *t) { return t->count; }
WRPO_API const wrpo_tensor_info *wrpo_tensors_at(const wrpo_tensors *t, int64_t i) { return i >= 0 && i < t->count ? &t->info[i] : NULL; }
WRPO_API const wrpo_tensor_info *wrpo_tensors_find(const wrpo_tensors *t, const char *name) {
    for (int64_t low = 0, high = t->count; low < high;) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(t->info[middle].name, name);
        if (!order) return &t->info[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return NULL;
}

/* ---- save ----
   All files are written whole under part names, then renamed, the index last. A save that is interrupted leaves the
   old checkpoint, the new one, or a directory that does not open; never a mixture of the two.                  */
typedef struct wrpo__save_tensor { const char *name; int ndim; int64_t shape[4]; } wrpo__save_tensor;
/* dst[count] = elements [first, first + count) of tensor */
typedef void (*wrpo__save_fn)(void *user, int64_t tensor, int64_t first, int64_t count, float *dst);

/* model-00002-of-00003.safetensors, exactly: its two numbers. */
static bool wrpo__shard_name(const char *name, int64_t *shard, int64_t *shards) {
    static const char pattern[] = "model-#####-of-#####.safetensors";
    *shard = *shards = 0;
    if (strlen(name) != sizeof pattern - 1) return false;
    for (size_t i = 0; pattern[i]; i++) {
        int64_t *n = i < 12 ? shard : shards;
        if (pattern[i] != '#' ? name[i] != pattern[i] : name[i] < '0' || name[i] > '9') return false;
        if (pattern[i] == '#') *n = *n * 10 + (name[i] - '0');
    }
    return true;
}
static void wrpo__remove(wrpo_ctx *ctx, const char *path) {
    if (remove(path) != 0 && errno != ENOENT) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be removed: %s", path, strerror(errno));
}
/* The shards in dir that belong to a split into other than `shards` files: paths, an stb_ds array. */
static char **wrpo__stale_shards(wrpo__arena *temp, const char *dir, int64_t shards) {
    const wrpo__name *names = wrpo__list_dir(temp, dir);
    char **stale = NULL;
    for (int64_t i = 0, shard, of; i < stbds_arrlen(names); i++)
        if (wrpo__shard_name(names[i].text, &shard, &of) && !(of == shards && shard >= 1 && shard <= of)) stbds_arrput(stale, wrpo__join(temp, dir, names[i].text));
    return stale;
}

/* shard[i]: the file, from 0, that tensor i goes to; returns their number. The split of huggingface_hub: tensors fill a
   shard in the order given until the next would not fit; one above the limit gets a shard of its own at once, while the
   shard being filled stays open and so takes a later number. */
static int64_t wrpo__split(const int64_t *bytes, int64_t n, int64_t limit, int64_t *shard) {
    int64_t shards = 0, filled = 0, since = 0, waiting = 0;             /* waiting: tensors of the open shard, all in [since, i) */
    for (int64_t i = 0; i <= n; i++) {
        if (i < n && bytes[i] > limit) { shard[i] = shards++; continue; }
        if (waiting && (i == n || filled + bytes[i] > limit)) {
            for (int64_t k = since; k < i; k++)
                if (shard[k] < 0) shard[k] = shards;
            shards++, filled = waiting = 0, since = i;
        }
        if (i < n) shard[i] = -1, filled += bytes[i], waiting++;
    }
    return shards;
}
typedef struct wrpo__placed { int64_t shard, tensor; const char *name; } wrpo__placed;
static int wrpo__by_shard(const void *x, const void *y) {
    const wrpo__placed *a = x, *b = y;
    return a->shard != b->shard ? (a->shard > b->shard) - (a->shard < b->shard) : strcmp(a->name, b->name);
}
static int wrpo__by_placed_name(const void *x, const void *y) { return strcmp(((const wrpo__placed *)x)->name, ((const wrpo__placed *)y)->name); }
static char *wrpo__shard_path(wrpo__arena *arena, const char *dir, int64_t shard, int64_t shards) {
    if (shards <= 1) return wrpo__join(arena, dir, WRPO__SINGLE_FILE);
    return wrpo__join(arena, dir, wrpo__format(arena, "model-%05lld-of-%05lld.safetensors", (long long)shard + 1, (long long)shards));
}
/* The header: {"__metadata__":{...} by the caller, then each tensor in the order of the data, then the end. */
static void wrpo__header_add(wrpo__text *header, const char *name, const char *dtype, int ndim, const int64_t *shape, int64_t at, int64_t bytes) {
    wrpo__text_puts(header, ",");
    wrpo__json_quote(header, name, strlen(name));
    wrpo__text_printf(header, ":{\"dtype\":\"%s\",\"shape\":[", dtype);
    for (int d = 0; d < ndim; d++) wrpo__text_printf(header, d ? ",%lld" : "%lld", (long long)shape[d]);
    wrpo__text_printf(header, "],\"data_offsets\":[%lld,%lld]}", (long long)at, (long long)(at + bytes));
}
static void wrpo__header_write(wrpo__writer *w, wrpo__text *header) {
    unsigned char length[8];
    wrpo__text_puts(header, "}");
    while (header->size % 8) wrpo__text_puts(header, " ");              /* the data begins aligned */
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(header->size >> 8 * i);
    wrpo__write(w, length, sizeof length);
    wrpo__write(w, header->data, header->size);
    wrpo__block_free(header->data);
}
/* One file of tensors p[n], sorted by name, under its part name. chunk: room for WRPO__CHUNK floats. */
static wrpo__writer *wrpo__shard_write(wrpo__arena *temp, const char *path, const wrpo__save_tensor *t, const int64_t *bytes, const wrpo__placed *p, int64_t n,
                                       wrpo_dtype dtype, wrpo__save_fn fn, void *user, float *chunk) {
    const int64_t size = (int64_t)wrpo__dtype_size(dtype);
    wrpo__text header = {.arena = temp};
    wrpo__text_puts(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t i = 0, at = 0; i < n; at += bytes[p[i].tensor], i++)
        wrpo__header_add(&header, t[p[i].tensor].name, wrpo__dtype_name(dtype), t[p[i].tensor].ndim, t[p[i].tensor].shape, at, bytes[p[i].tensor]);
    wrpo__writer *w = wrpo__create(temp, path);
    wrpo__header_write(w, &header);
    for (int64_t i = 0; i < n; i++) {
        int64_t count = bytes[p[i].tensor] / size;
        for (int64_t at = 0, k; at < count; at += k) {
            k = WRPO__MIN(count - at, WRPO__CHUNK);
            fn(user, p[i].tensor, at, k, chunk);
            for (int64_t e = 0; dtype == WRPO_DTYPE_F16 && e < k; e++)
                if (isfinite(chunk[e]) && fabsf(chunk[e]) >= 65520)
                    wrpo__fail(temp->ctx, WRPO_E_NOT_FINITE, "%s: %s: element %lld, %g, is infinite in F16", path, t[p[i].tensor].name, (long long)(at + e), (double)chunk[e]);
            wrpo__from_float(chunk, dtype, chunk, k);
            wrpo__write(w, chunk, (size_t)(k * size));
        }
    }
    wrpo__finish(w);
    return w;
}
static wrpo__writer *wrpo__index_write(wrpo__arena *temp, const char *path, const wrpo__placed *p, int64_t n, int64_t shards, int64_t total) {
    wrpo__text t = {.arena = temp};
    wrpo__text_printf(&t, "{\n  \"metadata\": {\n    \"total_size\": %lld\n  },\n  \"weight_map\": {", (long long)total);
    for (int64_t i = 0; i < n; i++) {
        wrpo__text_puts(&t, i ? ",\n    " : "\n    ");
        wrpo__json_quote(&t, p[i].name, strlen(p[i].name));
        wrpo__text_printf(&t, ": \"model-%05lld-of-%05lld.safetensors\"", (long long)p[i].shard + 1, (long long)shards);
    }
    wrpo__text_puts(&t, "\n  }\n}\n");
    wrpo__writer *w = wrpo__create(temp, path);
    wrpo__write(w, t.data, t.size);
    wrpo__finish(w);
    return w;
}
/* t[n] into the directory, which exists: one file, or shards of at most max_shard_size bytes (0: 5e9) and their index.
   dtype 0 is F32. fn is called for each file's tensors in the order of their names, with bounded pieces. beside: an
   stb_ds array of whole files that wait for their names; what they replace goes before, so that no kill leaves it with these tensors. */
static void wrpo__tensors_save(wrpo__arena *temp, const char *dir, const wrpo__save_tensor *t, int64_t n, wrpo_dtype dtype, int64_t max_shard_size,
                               wrpo__save_fn fn, void *user, wrpo__writer **beside) {
    wrpo_ctx *ctx = temp->ctx;
    int64_t *bytes = wrpo__raw(temp, (size_t)n, sizeof *bytes), *shard = wrpo__raw(temp, (size_t)n, sizeof *shard), total = 0;
    for (int64_t i = 0; i < n; i++) {
        size_t size = wrpo__dtype_size(dtype);
        for (int d = 0; d < t[i].ndim; d++) size = wrpo__mul(ctx, size, (size_t)t[i].shape[d]);
        total += bytes[i] = (int64_t)size;
    }
    const int64_t shards = wrpo__split(bytes, n, max_shard_size > 0 ? max_shard_size : 5000000000, shard);
    wrpo__placed *placed = wrpo__raw(temp, (size_t)n, sizeof *placed);
    for (int64_t i = 0; i < n; i++) placed[i] = (wrpo__placed){shard[i], i, t[i].name};
    if (n) qsort(placed, (size_t)n, sizeof *placed, wrpo__by_shard);

    const int64_t files = WRPO__MAX(shards, 1);
    wrpo__writer **ready = wrpo__alloc(temp, (size_t)files, sizeof *ready), *index = NULL;
    float *chunk = wrpo__raw(temp, WRPO__CHUNK, sizeof *chunk);
    for (int64_t s = 0, i = 0, end; s < files; s++, i = end) {
        for (end = i; end < n && placed[end].shard == s; end++) {}
        ready[s] = wrpo__shard_write(temp, wrpo__shard_path(temp, dir, s, shards), t, bytes, placed + i, end - i, dtype, fn, user, chunk);
    }
    const char *index_path = wrpo__join(temp, dir, WRPO__INDEX_FILE);
    char **stale = wrpo__stale_shards(temp, dir, shards > 1 ? shards : 0);      /* now: nothing is to fail once names are given */
    if (shards > 1) {
        if (n) qsort(placed, (size_t)n, sizeof *placed, wrpo__by_placed_name);
        index = wrpo__index_write(temp, index_path, placed, n, shards, total);
        for (int64_t s = 0; s < shards; s++)           /* an old index over old and new shards of the same names would open as a mixture */
            if (wrpo__exists(ready[s]->path)) { wrpo__remove(ctx, index_path); break; }
    }
    for (int64_t i = 0; i < stbds_arrlen(beside); i++) wrpo__remove(ctx, beside[i]->path);
    for (int64_t s = 0; s < files; s++) wrpo__publish(ready[s]);
    if (index) wrpo__publish(index);
    for (int64_t i = stbds_arrlen(beside) - 1; i >= 0; i--) wrpo__publish(beside[i]);      /* config.json, the first, comes last: a load wants it */
    wrpo__remove(ctx, index ? wrpo__join(temp, dir, WRPO__SINGLE_FILE) : index_path);
    for (int64_t i = 0; i < stbds_arrlen(stale); i++) wrpo__remove(ctx, stale[i]);
    wrpo__block_free(chunk);
}

/* --------------------------------------------------------------------------------------- >>checkpoint
   A Hugging Face directory in, a Hugging Face directory out: config.json, weights, side files.          */

/* ---- config.json: old (rope_theta, rope_scaling, torch_dtype) and new (rope_parameters, dtype) spellings ----
   A key either changes a number below, or is known not to change one, or is refused by its name.        */
typedef struct wrpo__reader { wrpo_ctx *ctx; const char *path; const wrpo_json *root; } wrpo__reader;
#define WRPO__REFUSE(at, code, ...) wrpo__json_fail(in->ctx, code, in->path, at, __VA_ARGS__)
static int64_t wrpo__config_int(const wrpo__reader *in, const char *key, int64_t otherwise, int64_t low, int64_t high) {   /* otherwise -1: required */
    const wrpo_json *v = otherwise < 0 ? wrpo__json_need(in->ctx, in->path, in->root, key, WRPO_JSON_NUMBER) : wrpo__present(in->root, key);
    return v ? wrpo__json_integer(in->ctx, in->path, v, low, high, NULL) : otherwise;
}
static double wrpo__config_number(const wrpo__reader *in, const wrpo_json *object, const char *key, double otherwise) {
    const wrpo_json *v = wrpo__present(object, key);
    if (v && !(v->kind == WRPO_JSON_NUMBER && v->number > 0 && v->number < 1e15)) wrpo__json_refuse(in->ctx, in->path, v, NULL, "a positive number");
    return v ? v->number : otherwise;
}
static bool wrpo__config_bool(const wrpo__reader *in, const char *key, bool otherwise) {
    const wrpo_json *v = wrpo__json_maybe(in->ctx, in->path, in->root, key, WRPO_JSON_BOOL);
    return v ? v->boolean : otherwise;
}
static bool wrpo__among(const char *key, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(key, *list)) return true;
    return false;
}
/* The families: what transformers takes where a key is absent (0: as many as heads, hidden / heads, none), and the keys that
   only this family knows. */
typedef enum wrpo__family_name { WRPO__LLAMA, WRPO__MISTRAL, WRPO__QWEN2, WRPO__QWEN3, WRPO__GEMMA2, WRPO__PHI3, WRPO__INTERNLM2, WRPO__FAMILIES } wrpo__family_name;
static const struct wrpo__family { const char *name; int64_t kv_heads, head_dim, positions, window; double eps; bool tied; const char *keys[7]; } wrpo__families[] = {
    {"llama", 0, 0, 2048, 0, 1e-6, false, {NULL}},
    {"mistral", 8, 0, 131072, 4096, 1e-6, false, {NULL}},
    {"qwen2", 32, 0, 32768, 4096, 1e-6, false, {"use_sliding_window", "max_window_layers", NULL}},
    {"qwen3", 32, 128, 32768, 4096, 1e-6, false, {"use_sliding_window", "max_window_layers", NULL}},
    {"gemma2", 4, 256, 8192, 4096, 1e-6, true, {"hidden_activation", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
                                                "cache_implementation", "sliding_window_size", NULL}},
    {"phi3", 0, 0, 4096, 0, 1e-5, false, {"original_max_position_embeddings", "resid_pdrop", "embd_pdrop", "interpolate_factor", "full_attn_mod", NULL}},
    {"internlm2", 0, 0, 2048, 0, 1e-6, false, {"bias", NULL}}};
static const char *const wrpo__rope_names[] = {"default", "linear", "llama3", "yarn", "dynamic", "longrope"};
WRPO_API const char *wrpo_rope_name(int i) { return i >= 0 && i < WRPO__COUNT(wrpo__rope_names) ? wrpo__rope_names[i] : NULL; }
/* An array of positive numbers, one for each pair of numbers that turns. */
static void wrpo__config_factors(const wrpo__reader *in, const wrpo_json *r, const char *key, float *out, int64_t count) {
    const wrpo_json *list = wrpo__present(r, key);
    int64_t n = 0;
    for (const wrpo_json *v = list && list->kind == WRPO_JSON_ARRAY && list->count == count ? list->child : NULL; v && v->kind == WRPO_JSON_NUMBER && v->number > 0; v = v->next)
        out[n++] = (float)v->number;
    if (n == count) return;
    WRPO__REFUSE(list ? list : r, WRPO_E_FORMAT, "rope type longrope: %s: want %lld positive numbers", key, (long long)count);
}
static void wrpo__config_rope(const wrpo__reader *in, wrpo__family_name family, wrpo_config *c) {
    static const char *const known[] = {"type", "rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
                                        "beta_fast", "beta_slow", "attention_factor", "truncate", "finetuned", "partial_rotary_factor", "short_factor", "long_factor", NULL};
    static const bool phi3[] = {true, false, false, false, false, true}, internlm2[] = {true, true, false, false, true, false};
    wrpo_rope *p = &c->rope;
    const wrpo_json *v5 = wrpo__present(in->root, "rope_parameters"), *v4 = wrpo__present(in->root, "rope_scaling"), *r = v5 ? v5 : v4;
    p->theta = wrpo__config_number(in, in->root, "rope_theta", 10000);
    double part = wrpo__config_number(in, in->root, "partial_rotary_factor", 1);
    if (r && r->kind != WRPO_JSON_OBJECT) WRPO__REFUSE(r, WRPO_E_FORMAT, "rope_scaling: want an object");
    const wrpo_json *type = wrpo__present(r, "rope_type");
    if (!type) type = wrpo__present(r, "type");
    int kind = 0;
    while (type && kind < WRPO__COUNT(wrpo__rope_names) && !wrpo__json_is(type, wrpo__rope_names[kind])) kind++;
    if (family == WRPO__PHI3 && (wrpo__json_is(type, "su") || wrpo__json_is(type, "yarn"))) kind = WRPO_ROPE_LONGROPE;   /* what Phi-3 called it first */
    if (kind == WRPO__COUNT(wrpo__rope_names) || (family == WRPO__PHI3 && !phi3[kind]) || (family == WRPO__INTERNLM2 && !internlm2[kind]))
        WRPO__REFUSE(type, WRPO_E_UNSUPPORTED, "rope_type \"%.60s\" is not supported for model_type %s (%s)", type->kind == WRPO_JSON_STRING ? type->text : "?",
                     c->model_type, family == WRPO__PHI3 ? "default and longrope are" : family == WRPO__INTERNLM2 ? "default, linear and dynamic are"
                                                                                   : "default, linear, llama3, yarn, dynamic and longrope are");
    p->type = (wrpo_rope_type)kind;
    if (v4 && v5) WRPO__REFUSE(v4, WRPO_E_FORMAT, "rope_scaling: want either this or rope_parameters");
    if (!type && wrpo__present(r, "factor")) WRPO__REFUSE(r, WRPO_E_FORMAT, "%s: want a rope_type for its factor", r->key);
    for (const wrpo_json *v = r ? r->child : NULL; v; v = v->next)
        if (v->kind != WRPO_JSON_NULL && !wrpo__among(v->key, known))
            WRPO__REFUSE(v, WRPO_E_UNSUPPORTED, "%s: \"%.60s\" is not supported", r->key, v->key);
    p->theta = wrpo__config_number(in, r, "rope_theta", p->theta);
    part = wrpo__config_number(in, r, "partial_rotary_factor", part);
    if (part != 1 && family != WRPO__PHI3)
        WRPO__REFUSE(wrpo__present(r, "partial_rotary_factor") ? r : wrpo__json_get(in->root, "partial_rotary_factor"), WRPO_E_UNSUPPORTED,
                     "partial_rotary_factor other than 1 is supported for model_type phi3 only");
    p->dims = (int64_t)((double)c->head_dim * part);
    if (p->dims < 2 || p->dims % 2 || p->dims > c->head_dim)
        WRPO__REFUSE(in->root, WRPO_E_UNSUPPORTED, "partial_rotary_factor: want an even number of the %lld numbers of a head, found %lld", (long long)c->head_dim, (long long)p->dims);
    if (p->type == WRPO_ROPE_DEFAULT) return;
    const double stated = wrpo__config_number(in, in->root, "original_max_position_embeddings", family == WRPO__PHI3 ? 4096 : 0);   /* Phi-3: beside the object */
    const double original = wrpo__config_number(in, r, "original_max_position_embeddings", stated > 0 ? stated : p->type == WRPO_ROPE_LLAMA3 ? 0 : (double)c->max_position_embeddings);
    if (stated > 0 && stated != original)
        WRPO__REFUSE(r, WRPO_E_FORMAT, "original_max_position_embeddings: the number in this object and that of config.json (4096 if it has none) differ");
    if (original != floor(original) || original == 1)
        WRPO__REFUSE(r, WRPO_E_FORMAT, "original_max_position_embeddings: want an integer of at least 2, found %g", original);
    p->original_max_position_embeddings = (int64_t)original;
    p->factor = wrpo__config_number(in, r, "factor", p->type == WRPO_ROPE_LONGROPE ? (double)c->max_position_embeddings / original : 0);
    p->low_freq_factor = wrpo__config_number(in, r, "low_freq_factor", 0), p->high_freq_factor = wrpo__config_number(in, r, "high_freq_factor", 0);
    if (p->factor == 0 || (p->type == WRPO_ROPE_LLAMA3 && (original == 0 || p->low_freq_factor == 0 || p->high_freq_factor <= p->low_freq_factor)))
        WRPO__REFUSE(r, WRPO_E_FORMAT, p->type == WRPO_ROPE_LLAMA3
            ? "rope type llama3: want factor, low_freq_factor < high_freq_factor and original_max_position_embeddings" : "rope scaling: want a factor");
    if (p->type == WRPO_ROPE_DYNAMIC && p->dims < 4) WRPO__REFUSE(r, WRPO_E_UNSUPPORTED, "rope type dynamic: want heads of at least 4 numbers");
    p->beta_fast = wrpo__config_number(in, r, "beta_fast", 32), p->beta_slow = wrpo__config_number(in, r, "beta_slow", 1);
    p->attention_factor = wrpo__config_number(in, r, "attention_factor", p->factor <= 1 ? 1 : p->type == WRPO_ROPE_YARN ? 0.1 * log(p->factor) + 1
                                              : p->type == WRPO_ROPE_LONGROPE ? sqrt(1 + log(p->factor) / log(original)) : 1);
    const wrpo_json *truncate = wrpo__json_maybe(in->ctx, in->path, r, "truncate", WRPO_JSON_BOOL);
    p->yarn_truncate = !truncate || truncate->boolean;
    if (p->type != WRPO_ROPE_LONGROPE) return;
    wrpo__config_factors(in, r, "short_factor", p->short_factor, p->dims / 2);
    wrpo__config_factors(in, r, "long_factor", p->long_factor, p->dims / 2);
}
static void wrpo__config_parse(wrpo__arena *arena, const char *path, const wrpo_json *root, wrpo_config *c) {
    /* read below or by the tokenizer */
    static const char *const used[] = {"model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range", "rope_theta", "rope_scaling", "rope_parameters",
        "sliding_window", "layer_types", "attention_bias", "tie_word_embeddings", "torch_dtype", "dtype", "hidden_act",
        "mlp_bias", "attention_dropout", "rope_interleaved", "partial_rotary_factor", "pad_token_id", NULL};
    /* known not to change a log-prob: ids, caching, generation defaults, provenance */
    static const char *const harmless[] = {"bos_token_id", "eos_token_id", "num_labels", "sep_token_id", "unk_token_id", "decoder_start_token_id", "use_cache",
        "transformers_version", "pretraining_tp", "is_llama_config", "auto_map", "return_dict", "output_hidden_states", "output_attentions", "torchscript",
        "use_bfloat16", "pruned_heads", "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "id2label", "label2id", "task_specific_params",
        "problem_type", "finetuning_task", "tokenizer_class", "prefix", "top_k", "top_p", "temperature", "typical_p", "repetition_penalty", "length_penalty",
        "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
        "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
        "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "tf_legacy_loss", "name_or_path",
        "attn_implementation", "head_dim_original", "max_sequence_length", "model_max_length", "pad_token", "unsloth_fixed", "unsloth_version", NULL};
    const wrpo__reader *in = &(wrpo__reader){arena->ctx, path, root};
    char what[256];
    memset(c, 0, sizeof *c);
    if (root->kind != WRPO_JSON_OBJECT) WRPO__REFUSE(root, WRPO_E_FORMAT, "want an object");
    const wrpo_json *type = wrpo__present(root, "model_type"), *arch = wrpo__present(root, "architectures");
    if (!type || type->kind != WRPO_JSON_STRING) wrpo__fail(in->ctx, WRPO_E_FORMAT, "%s: \"model_type\" is missing", path);
    int index = 0;
    while (index < WRPO__FAMILIES && !wrpo__json_is(type, wrpo__families[index].name)) index++;
    if (index == WRPO__FAMILIES) {
        size_t at = (size_t)snprintf(what, sizeof what, "model_type \"%.60s\" is not supported (these are:", type->text);
        for (index = 0; index < WRPO__FAMILIES; index++) at += (size_t)snprintf(what + at, sizeof what - at, " %s", wrpo__families[index].name);
        snprintf(what + at, sizeof what - at, ")");
        WRPO__REFUSE(type, WRPO_E_UNSUPPORTED, "%s", what);
    }
    const wrpo__family_name family = (wrpo__family_name)index;
    const struct wrpo__family *const defaults = &wrpo__families[index];
    const bool gemma2 = family == WRPO__GEMMA2, qwen = family == WRPO__QWEN2 || family == WRPO__QWEN3;
    snprintf(c->model_type, sizeof c->model_type, "%s", type->text);
    static const char *const heads[] = {"ForCausalLM", "ForSequenceClassification", "ForRewardModel", "ForRewardModelWithGating"};
    static const char *const head_keys[][5] = {{NULL}, {NULL}, {"reward_token_id", NULL},
                                               {"num_objectives", "gating_temperature", "gating_hidden_dim", "gating_n_hidden", NULL}};
    for (const wrpo_json *a = arch ? arch->child : NULL; a; a = a->next) {
        const char *of = a->kind == WRPO_JSON_STRING ? strstr(a->text, "For") : NULL;
        int h = 0;
        while (h < 4 && (!of || strcmp(of, heads[h]) || (h == WRPO_HEAD_VALUE && family != WRPO__INTERNLM2))) h++;
        if (h == 4 || (a != arch->child && h != (int)c->head))
            WRPO__REFUSE(a, WRPO_E_UNSUPPORTED, "architectures: \"%.60s\" is not supported (causal language models, sequence classification and the reward models of "
                     "InternLM2 and ArmoRM are)", a->kind == WRPO_JSON_STRING ? a->text : "?");
        c->head = (wrpo_head)h;
    }
    for (const wrpo_json *v = root->child; v; v = v->next) {
        bool off = v->kind == WRPO_JSON_NULL || (v->kind == WRPO_JSON_BOOL && v->boolean == !strcmp(v->key, "is_causal"));
        if (off || v->key[0] == '_' || !strncmp(v->key, "transformers.", 13) || wrpo__among(v->key, used) || wrpo__among(v->key, harmless) || wrpo__among(v->key, defaults->keys) || wrpo__among(v->key, head_keys[c->head])) continue;
        WRPO__REFUSE(v, WRPO_E_UNSUPPORTED, "\"%.80s\" is not supported for model_type %s", v->key, c->model_type);
    }
    const int64_t most = (int64_t)1 << 24;
    c->vocab_size = wrpo__config_int(in, "vocab_size", -1, 1, most), c->hidden_size = wrpo__config_int(in, "hidden_size", -1, 1, WRPO__MAX_HIDDEN);
    c->intermediate_size = wrpo__config_int(in, "intermediate_size", -1, 1, most);
    c->num_hidden_layers = wrpo__config_int(in, "num_hidden_layers", -1, 1, 512);
    c->num_attention_heads = wrpo__config_int(in, "num_attention_heads", -1, 1, 65536);
    const wrpo_json *kv = wrpo__json_get(root, "num_key_value_heads");   /* null means all heads; absent, the family's default */
    c->num_key_value_heads = wrpo__config_int(in, "num_key_value_heads", kv || !defaults->kv_heads ? c->num_attention_heads : defaults->kv_heads, 1, 65536);
    const int64_t head_dim = wrpo__json_get(root, "head_dim") ? 0 : defaults->head_dim;   /* null means hidden / heads */
    if (!head_dim && !wrpo__present(root, "head_dim") && c->hidden_size % c->num_attention_heads)
        wrpo__fail(in->ctx, WRPO_E_FORMAT, "%s: hidden_size %lld is no multiple of num_attention_heads %lld, and there is no head_dim", path,
                   (long long)c->hidden_size, (long long)c->num_attention_heads);
    c->head_dim = wrpo__config_int(in, "head_dim", head_dim ? head_dim : c->hidden_size / c->num_attention_heads, 2, 512);
    if (c->head_dim % 2 || c->head_dim > WRPO__MAX_D) wrpo__fail(in->ctx, WRPO_E_UNSUPPORTED, "%s: head_dim: want an even number up to 512, found %lld", path, (long long)c->head_dim);
    if (c->num_attention_heads % c->num_key_value_heads)
        wrpo__fail(in->ctx, WRPO_E_FORMAT, "%s: num_attention_heads %lld is no multiple of num_key_value_heads %lld", path,
                   (long long)c->num_attention_heads, (long long)c->num_key_value_heads);
    c->max_position_embeddings = wrpo__config_int(in, "max_position_embeddings", defaults->positions, 1, (int64_t)1 << 40);
    c->rms_norm_eps = wrpo__config_number(in, root, "rms_norm_eps", defaults->eps);
    c->initializer_range = wrpo__config_number(in, root, "initializer_range", 0.02);
    c->tie_word_embeddings = wrpo__config_bool(in, "tie_word_embeddings", defaults->tied);
    c->attention_bias = family == WRPO__QWEN2 || wrpo__config_bool(in, family == WRPO__INTERNLM2 ? "bias" : "attention_bias", family == WRPO__INTERNLM2);
    c->output_bias = family != WRPO__QWEN2 && c->attention_bias;
    c->qk_norm = family == WRPO__QWEN3;
    c->gelu = c->norm_plus_one = c->post_norms = c->scale_embeddings = gemma2;
    if (gemma2) {                    /* a cap of null is none */
        c->query_pre_attn_scalar = wrpo__config_number(in, root, "query_pre_attn_scalar", 256);
        c->attn_logit_softcapping = wrpo__config_number(in, root, "attn_logit_softcapping", wrpo__json_get(root, "attn_logit_softcapping") ? 0 : 50);
        c->final_logit_softcapping = wrpo__config_number(in, root, "final_logit_softcapping", wrpo__json_get(root, "final_logit_softcapping") ? 0 : 30);
    }
    if ((family == WRPO__MISTRAL || family == WRPO__PHI3 || family == WRPO__INTERNLM2) && wrpo__config_bool(in, "attention_bias", false))
        WRPO__REFUSE(wrpo__json_get(root, "attention_bias"), WRPO_E_UNSUPPORTED, "attention_bias is not supported for model_type %s", c->model_type);
    const wrpo_json *act = gemma2 ? wrpo__present(root, "hidden_activation") : NULL;
    if (!act) act = wrpo__present(root, "hidden_act");
    if (act && !(gemma2 ? wrpo__json_is(act, "gelu_pytorch_tanh") : wrpo__json_is(act, "silu") || wrpo__json_is(act, "swish")))
        WRPO__REFUSE(act, WRPO_E_UNSUPPORTED, "%s \"%.60s\" is not supported (%s is)", act->key, act->kind == WRPO_JSON_STRING ? act->text : "?", gemma2 ? "gelu_pytorch_tanh" : "silu");
    static const char *const dropouts[] = {"attention_dropout", "resid_pdrop", "embd_pdrop"}, *const off[] = {"mlp_bias", "rope_interleaved"};
    for (int i = 0; i < 3; i++) {
        const wrpo_json *drop = wrpo__present(root, dropouts[i]);
        if (drop && (drop->kind != WRPO_JSON_NUMBER || drop->number != 0)) WRPO__REFUSE(drop, WRPO_E_UNSUPPORTED, "%s other than 0 is not supported", dropouts[i]);
    }
    for (int i = 0; i < 2; i++) {
        if (wrpo__config_bool(in, off[i], false)) WRPO__REFUSE(wrpo__json_get(root, off[i]), WRPO_E_UNSUPPORTED, "%s is not supported", off[i]);
    }
    wrpo__config_rope(in, family, c);

    /* the window: every layer of mistral and phi3; qwen's upper layers; gemma2's even ones; layer_types overrides */
    const wrpo_json *window = wrpo__json_get(root, "sliding_window"), *layers = wrpo__present(root, "layer_types");
    if ((family == WRPO__LLAMA || family == WRPO__INTERNLM2) && wrpo__present(root, "sliding_window"))
        WRPO__REFUSE(window, WRPO_E_UNSUPPORTED, "sliding_window is not supported for model_type %s", c->model_type);
    if (!qwen || wrpo__config_bool(in, "use_sliding_window", false)) c->sliding_window = wrpo__config_int(in, "sliding_window", window ? 0 : defaults->window, 1, (int64_t)1 << 40);
    if (gemma2 && wrpo__config_int(in, "sliding_window_size", c->sliding_window, 0, (int64_t)1 << 40) != c->sliding_window)
        WRPO__REFUSE(wrpo__json_get(root, "sliding_window_size"), WRPO_E_FORMAT, "sliding_window_size: want the number of sliding_window");
    const int64_t first = qwen && c->sliding_window ? wrpo__config_int(in, "max_window_layers", 28, 0, (int64_t)1 << 40) : 0;
    for (int64_t l = first; c->sliding_window && l < c->num_hidden_layers; l += gemma2 ? 2 : 1) c->sliding_layers[l / 64] |= (uint64_t)1 << l % 64;
    if (layers) {
        if (layers->kind != WRPO_JSON_ARRAY || layers->count != c->num_hidden_layers) WRPO__REFUSE(layers, WRPO_E_FORMAT, "layer_types: want one entry a layer");
        memset(c->sliding_layers, 0, sizeof c->sliding_layers);
        int64_t l = 0;
        for (const wrpo_json *v = layers->child; v; v = v->next, l++) {
            bool sliding = wrpo__json_is(v, "sliding_attention");
            if (!sliding && !wrpo__json_is(v, "full_attention"))
                WRPO__REFUSE(v, WRPO_E_UNSUPPORTED, "layer_types: \"%.60s\" is not supported", v->kind == WRPO_JSON_STRING ? v->text : "?");
            if (sliding && !c->sliding_window) WRPO__REFUSE(v, WRPO_E_FORMAT, "layer_types: sliding_attention without a sliding_window in force");
            if (sliding) c->sliding_layers[l / 64] |= (uint64_t)1 << l % 64;
        }
    }
    const wrpo_json *pad = wrpo__present(root, "pad_token_id");
    if (pad && !(pad->kind == WRPO_JSON_NUMBER && pad->exact)) WRPO__REFUSE(pad, WRPO_E_FORMAT, "pad_token_id: want an integer");
    c->pad_token_id = pad ? pad->integer : -1;           /* some files say -1 for none */
    c->reward_token_id = c->head == WRPO_HEAD_VALUE ? wrpo__config_int(in, "reward_token_id", -1, 0, c->vocab_size - 1) : -1;
    c->gating_temperature = c->head == WRPO_HEAD_GATED ? wrpo__config_number(in, root, "gating_temperature", 10) : 0;
    const wrpo_json *dtype = wrpo__present(root, "dtype");
    if (!dtype) dtype = wrpo__present(root, "torch_dtype");
    c->dtype = wrpo__json_is(dtype, "float32") ? WRPO_DTYPE_F32 : wrpo__json_is(dtype, "bfloat16") ? WRPO_DTYPE_BF16 : wrpo__json_is(dtype, "float16") ? WRPO_DTYPE_F16 : WRPO_DTYPE_DEFAULT;
}
static void wrpo__config_read(wrpo__arena *arena, const char *path, wrpo_config *c) {   /* path: the file or its directory */
    if (wrpo__is_dir(path)) path = wrpo__join(arena, path, "config.json");
    const wrpo__file *f = wrpo__open_file(arena, path);
    wrpo__config_parse(arena, path, wrpo__json_parse(arena, path, 1, (const char *)f->data, f->size), c);
}
WRPO_API wrpo_result wrpo_config_load(wrpo_ctx *ctx, const char *path, wrpo_config *out) {
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) wrpo__config_read(wrpo__entry.arena, path, out);
    return wrpo__end(&wrpo__entry);
}

/* ---- names: where the numbers of the table lie in the files ----
   The table has the Llama layout. Phi-3 and InternLM2 have other names, and tensors that hold the rows of several weights: one below
   the other in the order of the table, or, in wqkv, so in each of G groups, a key/value head with its query heads.                  */
static const struct { const char *family, *ours, *theirs; } wrpo__renames[] = {
    {"phi3", "self_attn.q_proj.", "self_attn.qkv_proj."}, {"phi3", "self_attn.k_proj.", "self_attn.qkv_proj."}, {"phi3", "self_attn.v_proj.", "self_attn.qkv_proj."},
    {"phi3", "mlp.gate_proj.", "mlp.gate_up_proj."}, {"phi3", "mlp.up_proj.", "mlp.gate_up_proj."},
    {"internlm2", "embed_tokens.", "tok_embeddings."}, {"internlm2", "lm_head.", "output."},
    {"internlm2", "self_attn.q_proj.", "attention.wqkv."}, {"internlm2", "self_attn.k_proj.", "attention.wqkv."}, {"internlm2", "self_attn.v_proj.", "attention.wqkv."},
    {"internlm2", "self_attn.o_proj.", "attention.wo."}, {"internlm2", "input_layernorm.", "attention_norm."}, {"internlm2", "post_attention_layernorm.", "ffn_norm."},
    {"internlm2", "mlp.gate_proj.", "feed_forward.w1."}, {"internlm2", "mlp.up_proj.", "feed_forward.w3."}, {"internlm2", "mlp.down_proj.", "feed_forward.w2."}};
typedef struct wrpo__place {         /* row r of a weight is row r / own * stride + first + r % own of the tensor `name` */
    char name[128];
    int64_t groups, stride, first, own;
} wrpo__place;
static void wrpo__file_name(const wrpo_config *c, const char *name, char out[128]) {
    for (int64_t i = 0; i < WRPO__COUNT(wrpo__renames); i++) {
        const char *at = strcmp(c->model_type, wrpo__renames[i].family) ? NULL : strstr(name, wrpo__renames[i].ours);
        if (!at) continue;
        snprintf(out, 128, "%.*s%s%s", (int)(at - name), name, wrpo__renames[i].theirs, at + strlen(wrpo__renames[i].ours));
        return;
    }
    snprintf(out, 128, "%s", name);
}
static wrpo__place wrpo__place_of(const wrpo_model *m, const wrpo_weight *w) {
    wrpo__place p = {.groups = 1};
    char other[128];
    const wrpo_weight *begin = w, *end = w, *last = m->weights + m->n_weights;
    wrpo__file_name(&m->config, w->name, p.name);
    while (begin > m->weights && (wrpo__file_name(&m->config, begin[-1].name, other), !strcmp(other, p.name))) p.first += (--begin)->rows;
    p.stride = p.first;
    do p.stride += (end++)->rows; while (end < last && (wrpo__file_name(&m->config, end->name, other), !strcmp(other, p.name)));
    if (strstr(p.name, ".wqkv.")) p.groups = m->config.num_key_value_heads;
    p.own = w->rows / p.groups, p.first /= p.groups, p.stride /= p.groups;
    return p;
}

/* ---- tensors against the table of weights ---- */
static void wrpo__shape_text(char *s, size_t n, int ndim, const int64_t *shape) {
    size_t at = (size_t)snprintf(s, n, "[");
    for (int i = 0; i < ndim && at < n; i++) at += (size_t)snprintf(s + at, n - at, "%s%lld", i ? "," : "", (long long)shape[i]);
    if (at < n) snprintf(s + at, n - at, "]");
}
/* The tensor that holds this weight, or a sentence: missing, misshapen, of a type that is no float. */
static const wrpo_tensor_info *wrpo__tensor_of(const wrpo_model *m, const char *dir, const wrpo_tensors *t, const wrpo_weight *w, wrpo__place *place) {
    *place = wrpo__place_of(m, w);
    const wrpo_tensor_info *info = wrpo_tensors_find(t, place->name);
    char want[80], found[160];
    if (!info) wrpo__fail(m->ctx, WRPO_E_FORMAT, "%s: %s is missing", dir, place->name);
    const int64_t shape[2] = {place->groups * place->stride, w->cols};
    wrpo__shape_text(want, sizeof want, w->vector ? 1 : 2, shape);
    wrpo__shape_text(found, sizeof found, info->ndim, info->shape);
    if (strcmp(want, found)) wrpo__fail(m->ctx, WRPO_E_FORMAT, "%s: %s: want %s, found %s", info->file, info->name, want, found);
    if (strcmp(info->dtype, "F32") && strcmp(info->dtype, "BF16") && strcmp(info->dtype, "F16"))
        wrpo__fail(m->ctx, WRPO_E_UNSUPPORTED, "%s: %s: want F32, F16 or BF16, found %s", info->file, info->name, info->dtype);
    return info;
}
/* A tensor of a reward model's head: read by wrpo_reward_load, beside the table, for nothing trains it. */
static bool wrpo__in_head(const wrpo_config *c, const char *name) {
    if (c->head == WRPO_HEAD_GATED) return !strcmp(name, "regression_layer.weight") || !strcmp(name, "reward_transform_matrix") || !strncmp(name, "gating.", 7);
    return (c->head == WRPO_HEAD_SCORE && !strcmp(name, "score.weight")) || (c->head == WRPO_HEAD_VALUE && !strcmp(name, "v_head.weight"));
}
/* m: the table of the config, without data. Every weight is there, and nothing else. */
static wrpo_dtype wrpo__check_tensors(const wrpo_model *m, const char *dir, const wrpo_tensors *t) {
    const wrpo_tensor_info *all = wrpo_tensors_at(t, 0), *first = NULL, *other = NULL;
    bool *seen = wrpo__alloc(wrpo__current, (size_t)wrpo_tensors_count(t), sizeof *seen);
    wrpo__place place;
    char head[128];
    for (int64_t i = 0; i < m->n_weights; i++) {
        const wrpo_tensor_info *info = wrpo__tensor_of(m, dir, t, &m->weights[i], &place);
        if (!first) first = info;
        if (wrpo__float_dtype(info) != wrpo__float_dtype(first)) other = info;
        seen[info - all] = true;
    }
    if (other) wrpo__log(m->ctx, WRPO_LOG_WARN, "%s: %s is %s, %s %s: saved again, all are %s unless a type is asked for", dir, first->name, first->dtype, other->name, other->dtype, first->dtype);
    wrpo__file_name(&m->config, "lm_head.weight", head);
    for (const wrpo_tensor_info *info = all; info < all + wrpo_tensors_count(t); info++)
        if (!seen[info - all] && !wrpo__ends(info->name, ".rotary_emb.inv_freq") && !wrpo__in_head(&m->config, info->name) && !(m->config.tie_word_embeddings && !strcmp(info->name, head)))
            wrpo__fail(m->ctx, WRPO_E_FORMAT, "%s: %s: no such tensor in a %s of this config", info->file, info->name, m->config.model_type);
    return wrpo__float_dtype(first);
}
static wrpo_tensors *wrpo__tensors_in(wrpo_ctx *ctx, const char *dir) {
    wrpo_tensors *t;
    wrpo__cleanup *owner = wrpo__on_free(wrpo__current, wrpo__tensors_drop, NULL);
    wrpo__rethrow(ctx, wrpo_tensors_open(ctx, dir, &t));
    owner->p = t;
    return t;
}
WRPO_API wrpo_result wrpo_model_check(wrpo_ctx *ctx, const char *dir, wrpo_config *config, int64_t *parameters, wrpo_dtype *dtype) {
    *parameters = 0, *dtype = WRPO_DTYPE_DEFAULT;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *arena = wrpo__entry.arena;
        wrpo__config_read(arena, dir, config);
        const wrpo_model *table = wrpo__model_table(arena, config, WRPO_DTYPE_F32);      /* alone, no memory behind it */
        *parameters = wrpo_model_parameters(table);
        *dtype = wrpo__check_tensors(table, dir, wrpo__tensors_in(ctx, dir));
    }
    return wrpo__end(&wrpo__entry);
}

/* ---- load ----
   A frozen model on the host keeps its matrices in the file that holds them, if they lie there in one piece, as floats or bfloat16 and aligned. */
static const void *wrpo__mapped_data(const wrpo_tensor_info *info, const wrpo__place *p, const wrpo_weight *w) {   /* NULL: it must be copied */
    const size_t size = !strcmp(info->dtype, "F32") ? 4 : !strcmp(info->dtype, "BF16") ? 2 : 0;
    if (w->vector || p->groups > 1 || !size || (uintptr_t)info->data % size) return NULL;
    return (const char *)info->data + (size_t)(p->first * w->cols) * size;
}
static void wrpo__map_weights(wrpo_model *model, const wrpo_tensors *t) {
    for (int64_t i = 0; i < model->n_weights; i++) {
        wrpo_weight *w = &model->weights[i];
        wrpo__place place;
        const wrpo_tensor_info *info = wrpo__tensor_of(model, model->dir, t, w, &place);
        const void *data = wrpo__mapped_data(info, &place, w);
        if (data) w->data = (void *)(uintptr_t)data, w->dtype = !strcmp(info->dtype, "F32") ? WRPO_DTYPE_F32 : WRPO_DTYPE_BF16;
    }
}
static wrpo_result wrpo__load_weights(wrpo_model *model, const wrpo_tensors *mapped /* or NULL */) {
    wrpo_ctx *ctx = model->ctx;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        const wrpo_tensors *t = mapped ? mapped : wrpo__tensors_in(ctx, model->dir);
        float *piece = wrpo__raw(wrpo__entry.arena, WRPO__PIECE, sizeof *piece);
        for (int64_t i = 0; i < model->n_weights; i++) {
            const wrpo_weight *w = &model->weights[i];
            wrpo__place p;
            const wrpo_tensor_info *info = wrpo__tensor_of(model, model->dir, t, w, &p);
            if (mapped && w->data == wrpo__mapped_data(info, &p, w)) continue;
            const int64_t part = p.own * w->cols;      /* lies in one piece */
            for (int64_t at = 0, n; at < wrpo__size(w); at += n) {
                const int64_t from = (at / part * p.stride + p.first) * w->cols + at % part;
                n = WRPO__MIN(part - at % part, WRPO__PIECE);
                wrpo__to_float(ctx, piece, info, from, n);
                for (int64_t k = 0; k < n; k++)
                    if (!isfinite(piece[k])) wrpo__fail(ctx, WRPO_E_NOT_FINITE, "%s: %s: element %lld is not a finite number", info->file, info->name, (long long)(from + k));
                wrpo__weight_put(model, w, at, n, piece);
            }
        }
        wrpo__sync(ctx);
    }
    return wrpo__end(&wrpo__entry);
}
static void wrpo__need_language_model(wrpo_ctx *ctx, const char *dir, const wrpo_config *c) {
    if (c->head != WRPO_HEAD_LM) wrpo__fail(ctx, WRPO_E_UNSUPPORTED, "%s: a reward model: it scores answers (wrpo_reward_load), it has no logits to train", dir);
}
static wrpo_result wrpo__model_load(wrpo_ctx *ctx, const wrpo_model_desc *desc, bool reward, wrpo_model **out) {
    *out = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), false) {
        wrpo__arena *arena = wrpo__entry.arena;
        wrpo_config config;
        wrpo_dtype dtype;
        if (!desc->dir) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_model_desc: dir is missing");
        wrpo__rethrow(ctx, wrpo_model_check(ctx, desc->dir, &config, &(int64_t){0}, &dtype));   /* before memory is taken */
        if (!reward) wrpo__need_language_model(ctx, desc->dir, &config);
        const bool map = desc->frozen && ctx->desc.backend->host;
        wrpo_model *model = wrpo__model_table(arena, &config, map ? WRPO_DTYPE_F32 : ctx->desc.dtype);
        model->dir = model->tokenizer_dir = wrpo__strndup(arena, desc->dir, strlen(desc->dir));
        model->dtype = dtype, model->frozen = desc->frozen;
        const wrpo_tensors *mapped = map ? wrpo__tensors_in(ctx, model->dir) : NULL;      /* open as long as the model */
        if (map) wrpo__map_weights(model, mapped);
        wrpo__model_memory(model);
        wrpo__rethrow(ctx, wrpo__load_weights(model, mapped));
        *out = model;
    }
    return wrpo__end(&wrpo__entry);
}

WRPO_API wrpo_result wrpo_model_load(wrpo_ctx *ctx, const wrpo_model_desc *desc, wrpo_model **out) { return wrpo__model_load(ctx, desc, false, out); }

/* ---- random weights ---- */
WRPO_API wrpo_result wrpo_model_init(wrpo_ctx *ctx, const wrpo_init_desc *desc, wrpo_model **out) {
    *out = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), false) {
        wrpo__arena *arena = wrpo__entry.arena;
        if (!desc->config) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_init_desc: config is missing");
        wrpo_config config;
        wrpo__config_read(arena, desc->config, &config);
        wrpo__need_language_model(ctx, desc->config, &config);
        wrpo_model *model = wrpo__model_new(arena, &config);
        model->dir = wrpo__strndup(arena, desc->config, strlen(desc->config));
        model->tokenizer_dir = desc->tokenizer_dir ? wrpo__strndup(arena, desc->tokenizer_dir, strlen(desc->tokenizer_dir)) : NULL;
        model->dtype = desc->dtype ? desc->dtype : WRPO_DTYPE_F32;
        wrpo__model_randomize(model, desc->seed);
        *out = model;
    }
    return wrpo__end(&wrpo__entry);
}

/* ---- save ---- */
/* What belongs to a checkpoint beside its weights and config.json: settings, tokenizer, template, licence. */
static bool wrpo__is_side_file(const char *name) {
    static const char *const ends[] = {".json", ".jinja", ".txt", ".model", ".md", ".py", "LICENSE", "NOTICE", NULL};
    static const char *const not[] = {".index.json", "trainer_state.json", "config.json", NULL};
    bool yes = false;
    for (const char *const *end = ends; *end; end++) yes = yes || wrpo__ends(name, *end);
    yes = yes && name[0] != '.' && strncmp(name, "reference_logps", 15) != 0;
    return yes && !wrpo__ends(name, not[0]) && strcmp(name, not[1]) && strcmp(name, not[2]);
}
/* One more file of a checkpoint, under its part name so far; not if it is there already, the same. */
static void wrpo__beside(wrpo__arena *arena, wrpo__writer ***files, const char *to, const void *data, size_t size) {
    const wrpo__file *old = wrpo__exists(to) ? wrpo__open_file(arena, to) : NULL;
    if (old && old->size == size && !memcmp(old->data, data, size)) return;
    wrpo__writer *w = wrpo__create(arena, to);
    wrpo__write(w, data, size);
    wrpo__finish(w);
    stbds_arrput(*files, w);
}
/* config.json unchanged, but for the value of dtype / torch_dtype where the weights are written in another type. */
static void wrpo__save_config(wrpo__arena *arena, wrpo__writer ***files, const char *from, const char *to, wrpo_dtype dtype) {
    const wrpo__file *f = wrpo__open_file(arena, from);
    const char *name = dtype == WRPO_DTYPE_BF16 ? "bfloat16" : dtype == WRPO_DTYPE_F16 ? "float16" : "float32";
    const char *text = wrpo__strndup(arena, (const char *)f->data, f->size), *rest = text;
    wrpo__text out = {.arena = arena};
    for (const wrpo_json *v = wrpo__json_parse(arena, from, 1, text, f->size)->child; v; v = v->next) {
        if (v->kind != WRPO_JSON_STRING || (strcmp(v->key, "dtype") && strcmp(v->key, "torch_dtype"))) continue;
        const char *at = text;                         /* its opening quote */
        for (int32_t i = 1; i < v->line; i++) at = strchr(at, '\n') + 1;
        for (int32_t i = 1; i < v->column; i++) do at++; while ((*at & 0xC0) == 0x80);
        wrpo__text_add(&out, rest, (size_t)(at + 1 - rest));
        wrpo__text_puts(&out, name);
        rest = strchr(at + 1, '"');
    }
    wrpo__text_puts(&out, rest);
    wrpo__beside(arena, files, to, out.data, out.size);
}
typedef struct wrpo__saving { const wrpo_model *model; const wrpo_weight **of; } wrpo__saving;   /* of[tensor]: the first weight in it */
static void wrpo__save_piece(void *user, int64_t tensor, int64_t first, int64_t count, float *dst) {
    const wrpo__saving *s = user;
    for (int64_t n; count > 0; first += n, dst += n, count -= n) {
        const wrpo_weight *w = s->of[tensor];
        const int64_t row = first / w->cols, col = first % w->cols;
        wrpo__place p = wrpo__place_of(s->model, w);
        while (row % p.stride >= p.first + p.own) p = wrpo__place_of(s->model, ++w);
        const int64_t in = row % p.stride - p.first;
        n = WRPO__MIN(count, (p.own - in) * w->cols - col);
        wrpo__weight_get(s->model, w, (row / p.stride * p.own + in) * w->cols + col, n, dst);
    }
}
WRPO_API wrpo_result wrpo_model_save(wrpo_model *model, const wrpo_save_desc *desc) {
    wrpo_ctx *ctx = model->ctx;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *arena = wrpo__entry.arena;
        if (!desc->dir) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_save_desc: dir is missing");
        if (desc->max_shard_size < 0) wrpo__fail(ctx, WRPO_E_ARG, "max_shard_size: want a number of bytes, found %lld", (long long)desc->max_shard_size);
        wrpo_dtype dtype = desc->dtype ? desc->dtype : model->dtype;
        wrpo__make_dir(ctx, desc->dir);
        wrpo__save_tensor *t = wrpo__alloc(arena, (size_t)model->n_weights, sizeof *t);
        wrpo__saving saving = {model, wrpo__alloc(arena, (size_t)model->n_weights, sizeof *saving.of)};
        int64_t tensors = 0;
        for (int64_t i = 0; i < model->n_weights; i++) {
            const wrpo_weight *w = &model->weights[i];
            const wrpo__place p = wrpo__place_of(model, w);
            if (p.first) continue;
            t[tensors] = (wrpo__save_tensor){wrpo__strndup(arena, p.name, strlen(p.name)), w->vector ? 1 : 2, {p.groups * p.stride, w->cols, 0, 0}};
            saving.of[tensors++] = w;
        }
        wrpo__writer **beside = NULL;
        bool dir = wrpo__is_dir(model->dir);
        const char *config = dir ? wrpo__join(arena, model->dir, "config.json") : model->dir;
        wrpo__save_config(arena, &beside, config, wrpo__join(arena, desc->dir, "config.json"), dtype);
        const char *from[2] = {model->tokenizer_dir, dir ? model->dir : NULL};
        for (int i = 0; i < 2; i++) {
            if (!from[i] || (i && from[0] && !strcmp(from[0], from[1]))) continue;
            wrpo__name *names = wrpo__list_dir(arena, from[i]);
            for (int64_t k = 0; k < stbds_arrlen(names); k++) {
                const char *path = wrpo__join(arena, from[i], names[k].text);
                bool known = i && from[0] && wrpo__exists(wrpo__join(arena, from[0], names[k].text));   /* the tokenizer's folder wins */
                if (!wrpo__is_side_file(names[k].text) || known || wrpo__is_dir(path)) continue;
                const wrpo__file *f = wrpo__open_file(arena, path);
                wrpo__beside(arena, &beside, wrpo__join(arena, desc->dir, names[k].text), f->data, f->size);
            }
        }
        wrpo__tensors_save(arena, desc->dir, t, tensors, dtype, desc->max_shard_size, wrpo__save_piece, &saving, beside);
    }
    return wrpo__end(&wrpo__entry);
}

/* -------------------------------------------------------------------------------------------- >>token
   tokenizer.json of Hugging Face's tokenizers, for BPE models: text -> ids -> text, exactly as the library does it.

       text --> added tokens --> normalizer --> added tokens --> pre-tokenizer --> BPE --> post-processor --> ids
                in the raw       rewrites       in normalized    cuts text         ids of  ids before and
                text             the text       text             into words        a word  after all others
       ids --> a text for each token --> decoder --> text

   On its way the text is a list of pieces (wrpo__piece): words and added tokens. All before BPE is a list of edits
   (wrpo__edit), and so is the decoder. An edit rewrites or cuts every piece that is no added token. A file that asks
   for anything else is refused when it is loaded, by the name of what it asks for.

   To add a normalizer, a pre-tokenizer or a decoder: a row in wrpo__components, with a reader if it is several edits.
   If the edits cannot express it: a kind of edit, its settings in wrpo__read_edit, its work in wrpo__edit_piece.   */

/* ---- Unicode: one class for each code point, and what NFC needs ----
   The classes divide the code points as the regexes of tokenizers do (Unicode 16, as oniguruma has it) and as \w of
   Rust's regex does, which added tokens ask for (WRPO__WORD). NFC is that of Unicode 9, as the library has it. */
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
/* The tables hold numbers, packed by an adaptive arithmetic coder; tests/golden/unicode_tables.py writes them. */
/* runs from U+0000 to U+10FFFF: class, length - 1; class 16 is M with a combining class, which comes next */
static const char *const wrpo__unicode_classes[] = {
"UPAYx2i86[d{}8(G2]Pc4-cOo7{PF;KzLnd6Y8sdi6]h}gf@1Lsh!Kuz.mo<;d-ut D~g^eDupNxZ =+=Fxf^aUBd@xl>ssEm668.LV,N}C:!&7Jn> Y2",
"G6SdCW8X%n=D0-4Ur4XLSksVn)h2%xBU~~}|><<;fZfmhOt)r4e_@ibLX0~DTMSQ:'=f J}e,hv{$Vx-{GsK]ag0;MtJbwn0dAIFn$t{zqm1nX|0554_'",
"r3rvrR>'-=>YyFNS};CVqR4c$vWj*}H;=dVV+!Unzk2^5eYulYz[B7<[){npe1H;=o})}4==>DHnx =XSAa5P6FLwY)J!t<eL5$EU~Jp,9[Sjx<fX#qXt",
"NW=s4*P6O|v5'qLsd1+7oR8L[qhR guQL|4wATMiYu[xP~=%tIN$Ft!k|}GR6qzuB<_}~C^ :bj'sy0ynZ[0C)Bz(om@BF]IYt88g&@m=(=i^3|T2*Mn)",
"Y@A6SmyBX;Nj$SLB4Oc|V_J{gePk&,}2}QP{}lD(NYu)2XUMoQj2duK$awfvlp`N&HdAtt@`fNpH3!2TQC;U]PkT$^z}4< ;=J1-{;V~z<t'M&%zmBPTr",
"&E$ETU]sS=;tM4Ne%b~sD$qRODcy%~~,-zVt2DKuHiZ0@s3opTCV[nR7ZfvJMQ|- Q]~:0c(87x#HLchz#Ih6h+!9R)>nuB4}G,r$}*a;tSM2X~u!MuG]",
"3M<*5tiQNwLKjg-KVciS~]A_w^Vu;~RsX&Bo@*CVubJu:~@=f`U#9b:p,m{tvFiC4mA3'1'Lk*%c<on[8{pW6OGA2b~fCNrm(s({yo2h!'+MviQg#Me}c",
"sTB #yPL0N#$WZTkhbk F0DCPf%sKj]rH6X;jb0,<$cw8+8k'E~_(HIBdBO;F`zVtbG^*o_L-1c}(Li*^HkSV'rsPFCa'eZ[ ZMQxT$ r.38S$s>S1WnV",
"Ne2XRKYcVoRK&#K#b=xdx#_81-a=(^Z',x:QG-Y_uvNS{{XU5p{;97|WMkdPP6 If>}tM+rs9m)1!@RFX+$,$=O<yFpm9@x4x4zjM(9N_*]oWDo7-V|9;",
"YN]U459%CGK;oJH[XZ]Fs Zl,+Tens~q1-cEV7N>C|{[`>QUE1&(@AY1B;[ZuW;=(<1g (yYpE8ne]U^G_SMf8.4v_Oh,{UW3tAJA2QesGn;K_XW[aK]$",
"i{R)wEog&XQ1D,U;#O(!;{A[=oPv2w M<1GG-A_D0jez05'c4j)A{V<DJB;!T9seacaA3O@sM+[<nRxC!,`P,jN~K6IQFjUxl_AoWx9f0f;-j~gZVXP0K",
"4@`CL~}b-.fF<DB_(MJ5+xQlEYZ<GOhO.Vve;65<JJGICRH3btn'(2&fWp+GSd7^Bx-gkOPDfYPcW.qI0b%0BE '5IbO&zYjRy|pc#h:dHb:]y|%O-F>+",
"'6*k5O98w4g`bD7ERL1G9ABJ&t|G>&z+9C;dYFaHC5IS'5EY8E'FN1:IbgPZOQ|5{-S=}MAjX4o!DjR=dqBdq'-P9lFq7gxP]s3u${PCTty30&uovcuh[",
"Alrq1s,#^c&,r8|o!cskpkRwU&46@):dG3zu9@psEbksF.K0cGdf^N3RR)Rm|w{=pfdzKTmqq}KmT%fE0b_;OR#rmH%Mz~aG@gYo{-}dqvoTR|]Ft,1jn",
")0%|lj~:ZV.Skp j~DCIbxuf|w!fu:y4>g(X,)pzN>f0yXzs'qbQZn.WZaG8<W>X2'vt Z{n,TIIZ~*b]'nly`twF+mkoD|v3'C,~F>hW<n:c:a+Kk;nM",
"!e.hxG%2YgWJO65qAOa*2UP^Dxfe2.(E(`vDuT@L%oa%K.m[7Su,ssz>4vcy-=;_[Ef!L6^ttq|o5&Wd)_#j#p9CO:Fz]48P}g,lGerpxoLSWB-OcA.DE",
"QXivQs;,.]Kp$s)}{~Z;@';E, BTTEOR+UE}&yy(K)cL`6}(y^ST[9^{K1}$=<G>V(dBn4}M.'^$1&VuKz^y8n jH> PCE$24->Hn4.JrR-h>uvw|)Tx^",
"HK&'FZsQq'&RWhw_u5|}I<czrj^,P-bBUUfQ!$D]Is(;dfk_tAFnB{Rf_TjAp7WI)FX9Si4nMSyq3 )8&}$IE`vP60:6=m};ENi~RoD^@T|:]>vDOfwRk",
"8_iuWgEq[9#:RtbR5A6dcjvv05Z2Oc)V`ItlJ-OdrKj&1kJ#si*3LO%7%,+o-K|&[[#|_nDH&91uPL+hIK(suWK=Y.e^%]U>e<SwRs'F[_4((CkGHDpY^",
"A9dp:P.$kuX0c8Iyw!;Dq.r`v}8f)t[a$DU07t,q|QlFbv*+So@HY=S*C|vd3!P:=V:3e69.DTj@_g1w6~fYPznbv1dccsOt5p.^.L8t>;O>~t,;(w=K_",
"!;YZ8Zd]Q(wt5%Ro;RzE2O18)~Aar^t=%VN^$k|;6_z4_!,vseO l:M>e'dQa6A6PqFmSuF_h0mFK[>C1'u*Sct(R_QNdLSYg82AONM_;GKAvw)<J;S|j",
"A]0:q*%|9wWNyLcM7r;,c1_,J=:2*2R>#Q<t6@[}~{m#aBY(m]7::q5pmtzGpfKY`FO*^DR6mM,0'dH`Kq5GF1pTuExQ#Fs4+xZCmbIN.~.BXISWN=DOe",
"~C)uxBDq&KUpP1|z:=1Xtg=7D-MUDcOt!WZgF18qPM^,$7<Sj!aL'M.L@ }[A%yIy-=#vK,wj{9(f+na;rKaMA<PYKzOCXr{bsQ)zQXa%sKmK+I6p^&Sy",
"Pf8tA#rkhrgjByNS0#npuOrS%X`}vorUU[JfPxXg{DIyB^7{[Q2-9%}9@E'kjq,Gikkc7GCQd&.=pG*AHd{Mu`Qlhm_(3[EJtFnv 01M}#P:jr**JdZX[",
"]ueahw)-[1k}){L11^bX% gm09~gsm4<)Bc!ua)biB!BwBN9x15vNT0dk*PQ^V*jE9]wFl6gZE%(Clx5FV)XAe#vz`0C$.a;5S'Y+!5_6t{nmje23zCDO",
" 6x)Ds*)Vdn&}z9a;&k0-`HQeuVp,B7ue6,2cXX6IHc|0cIZW<-Xn,QWt,6F<&T+te4'D*O,E=wa!J@Y4,pKD#b6#rmuJB<Q:b9#=z<L*gz[Fsea o3=p",
"RHn%z_d)o2r YSHyN+0dMf-ewksacTp{ k8]Y+<hk&38ATuu$U4g)hj{Sh&=W=(`L:VNQ<GaVjNItKj0|x_SAKd-~Xr[C-pIN$kV=2n1*rL4vc_llE|sy",
"05r.@~j2axsWTn~AWB[W6+hB%s%2o9*sY'vo]f<m(P)::LmzF}|u+vP>-z*]%u}ylZ[NW6wJVo2q.XgH!|mwhT:va(:p#~i_>tMks!Dy'LoL5v^5Q0-WV",
")!gm~ivgYey1;_(OPTRjm*B31^q0`>"
};
/* runs of decompositions: count, gap, length - 1, then for each code point the zigzag steps to its parts.
   count 0: two parts, which also compose */
static const char *const wrpo__unicode_nfc[] = {
"Pi<a_8QNgdIA@eR5j;o>1W~=IODWZrK00ydaV-u,Ce6.t&T}draN$l^[3^ TkVgkk*q'&CZ]Uf7ecHdNZ`_U@3PhMb +I&,Ul')9u2O>;XvaPxfnLMQfK",
"e;9#u*B6~drjKAq1m#Xs,-L)M&)$P&}VOPqHx uLi{0%7O*)UBnsazQ}JA M<Rl(:|403O5%|jhD#6-0^a*4Eh9^N!(#=Uk68vvMiTbS+57B8Z8~!mmSb",
"ysKSDAfZl~Bp>+tT~hO<lxyXT>fd^AB~BO2[)Zj0D{RJcj2V@Pdo<:=>5g4+eh1M;{:t`A${|l) j+qSm%nRIL+Pd!66R&{8~WT>Q6RjMl4,f^Q69k>l6",
"a1I5$R'#U)N2Zb@[ N)yvA]Y4x)bENp=Nb~FLz9qoi[M9[WN seB+)e|Y$*Z@[Fa6W1`XGQD7:NKN|lJDO<QuE{ D>,dx>%7GDk3]>$kfLWrq~w*_HYw0",
"J%G,u5xe&:zstV!J]x0pHl_33x:H~2] WpxozH9(,d>&{O_._u&!yB&+6Z4QsmE]DsN;ETYg;&#IxkdGfQyq+LqowJyhTU.<c8,Ci+dhS<C1Ej dyDaui",
"dueXdO[rfTL$9Z!kL+xKUIF9s9H<F&V8R<*pt4 WsaIHsAGYu;#WYQ{t9@cLC2D@YDdv&Vt]6Es#=8m$>>(.i}dRN=0-ZQBUoI6KMZH M)E5(K7T*E`%S",
"CF_+qwJ|ZE7'(e4zk`EDte{E9d1Qb-u>v4xCQulN,d6[nz}S^02]WC+vL9mcLSQS3F$p^7P)E8UCuMqeq`i*(5xarqR+lWAsL8(EL]clWNk.l_oJwPkH3",
"p@|j{#b{g-V:!VU7i;-9D+8bsdQGNDe,dCTGc.Fi]>HyEcT*D>AKDm)hEgCt(=v[M4PFa@7U3{XFRDP#&UqQ3X-VV~u$cE6:EV22K'Q: mn[n&JA o1i0",
"Q8Da*]vxTdlp.EX-P:U(M:LpK;'*)I8UZa)vqu#^7S%j.HaMjW) +=d}{MaZkvAp!zX26gboRWRxfS(eW#|GZ#xlmc!W7@.CdRkE[^,U{t;'3|#*A7Lpx",
"g4$Jm{R|y0A6Nf{qxTxJ;6JKL($hRsm~-PDAX]*b4^m~KCt48{+YiW`IYrg|@2 ~6]+ 4wirLo2LCYz;CEst7_}#m()}tGsfD'bo=Sk4a04#}hb)pD>:j",
"F+NfB<1xC*JIO]YkO}X~4Lza2Xc'JrqDY*l,dC}OxzE'.eQ1d:vfODtk{*#rJO0mU8,`To3a!>'tWk4za.F#*cJ|qz64Cog|6[vl;wubB4E'Uu9(y|L@0",
"Z]n|*P{}&J;O{<6{G,{GWoW^K|Atm$^tDbxZew>+UM|C[4w%Pbmr4`TN1PAk<XUlf.lL`O4,$>x~9#w+Ez}7<TRUO:(LZYuGN><$(T&h`L$fe6:9X<_^r",
"y!RS6Ctn}UyB2kLv0Z'qy0k}KxXF{y:]QZfNL#`Nej<LU9LDg|Oya)80h0KZJH9]`Rn]v>n=^JA=]E,g0G7+R '8Xb-6B<pppv,tD!s|omp^,3LCT r)p",
"1wPGlER7z7<s )ngr:CQ!K]|{gv0:py7O4C]v21Y-pI<C9~ydsF$PVTCYP1hKntI;iY-tO*WhC:t`O)C=4:b$)Lh)0]kXpE.r*[;G.Rqi$`m$U+9g%ePK",
"(5*dU7A0<1(BT8UJ9Ag1|&ivyH)1=MHOq)RF46El2>$7|}:'i5LyjbYQw[F[O@||9[ Lz;z6^Tn[3V&_ _0.oIHmA(omo^bzM}9ZNDDa~4!!(5XwX`@2k",
"z`-xl8^ahrn.(=5Suts44%1yZK[Qo(x#dMy[qr!Rn}7IRvB*&I&1MgyO!LztmL4wp{t42A4bf5|V7FM#5^82.bS35:9P2{H0[:igb6Y7p(+EEatrunIc@",
")m$0qSPUa*_D*c_18Tb:E~y zg=8Ts=X&f+9`7N^NMIn0Rm8qkGrVp%OS`m.]<d1_2N+B1Ut{<>sGzIaBr-In&YDB@*G)9On_`3:d~cSdzyVNiVCl$Uub",
"'}$Y_OB1}b^au9zN}%IB,,=(02xC0FqDKl3oSge9.;]5;htRj6P+ug`A sJGuDOm*^OQ:wY}A6;&x([ w {wTKq:z|V]*]c)|CNgtHE.cnB'IIcVr_v~x",
"dWo.z(] 4=f2l.h.eMdHty}{_Ho=):b<WwKm6i#GiEM>0lZ3KB`F<fnI7|04MzgS$11#hJXif.4^,8iK)J}6}0g}:2HUn0)*o]L#@&jU@#hv.>%n,I,E>",
"`p[i>X:>,J(l|I%A[! Yxisb-s$88{TJJf yK2V69MYXP! tWj<hE,c%(eGnZt%_%B$F6^gLw`uy)O.1raf$g%^vUu* rpS#tz~QfD3gO[1}xWOLVR{R1",
"d:D${,xS-swe[ 14NvlXLKjSJn`tj]X>7VFdt[SgO`3tUAe1Dg{0HSGun_+rpYrocrX5FU^~7]*j%`|@qPLB:nq=EyOZ>R&MRUcjBZTwd{2.<PPrK^MdC",
" ZBwf<*l,STQ&S3p>}m~n0SHj lVyMCrc1(s@H92jZ4IIU9J;zYh{ocQJoSRkgR7RV!A+F9D%nYU`Y(p!MO8:QJReh@'*xP9I6<HGg2vYmZW>HrCG*{lg",
"A5Yh!Ev'<Nb3UD#@CJIKD=6bc)pc{w*m9g-(%%$r(*;v.*otkAeRrcVDGCFf#N.N:iRhBqvaL=gGr&swrK]!.m9<Wp-6rEbvQn]{E>aML[Yiuji6FtAJB",
"|cK38II<)4[s@=#M4>l)My!t>l%8`bFFJ:V7OcLtG+k41UMS};6l.fQi3^HqX#whU'{@IVx6rnIee_7]:sGZ]mORhPSmCj.93,kNu()3nTCpVI4H,$%zF",
"2BpfdYBLS6tSxL|$qCv$Hb(*DJhI. )9]Jrsgb _M^*{,^WnOA^_hl#H4!x*8tQ{R|xTzPD0M6zcdZMuE9{+7F;B6DnS^4'M$lCeYTpWKh`r`t]:Bj6T%",
"5Z}d! q;L!AqWm&%*X}I,dWkY,R}Zq@a6Y@Xt50zqo@98%e@SS[h$GQ$+'Gk;oLN6EXE8Ru9bb:{Ifi.Q8x(i6v7D8cx%Ane> l{[nxwg4=K<8s_w*T^8",
"M8+&1wswq(F{XG8MQ<io#BJO-Kf`Z^BU|{-l3{3UrAs})qi');kdb!l%$tU,A=*gg6KMe;hac+J`cO|1Z`2937',VVE0F3O}|vi9,(q=j)cAc2K7!aIbl",
"%iI|jNYNj@_,KvAozT%FHh L>bog$N)beU7l0fPz%OU.=Ks>^Rpa98y$u`7&Yqrv7xD4b@b+m{UH}t9S4^=W>.2F^Kj[}!Q18`GKP]L3w#~R@27dDD']r",
"g!u!{#Q#k=kiLs.MAD}G-7Isx)E,;]%.`eWg<fY~+I`z{PlsX[fT2g[ORSP%tb1Zu@T9>fbZaYvW$NzSvoOQAX>FE3wWA[5zj)g`UrO_K':&Xn%s*)A&3",
"~=:S|fWWM4('osu :*w+qW5}D+|VuW']R%5.Wc$s+#ZSz&T`lAM-E<5`KcJ=vAcq@'U58Hvp2D65gr_k=_DXyvV8y9fS_Ypg|-f}ez*tlGQ[>WzX2_s'd",
"xyD)t`+=}P+Jz8w+>O-xQ~6`rC1!N>}k$%zQOb4q;h18sK!@^N#asFT!zCqUFEsy8 D5Ybsa3,E3V#&bPnFMl1Sb9!p_|ZjEVD}^9,-:1$L;x9D>TvQ9X",
"(0)dz5T4QR>&6F!.VPo6_|093vFz=5:N`xo7.ISuca%{x:K5AtY{WS5)<+)OSH(`VhdmhkPu0pB1)tMm7NvxOjydw7zBm{56Ewq!Q%*sTC}YPF23O$1WS",
"7A:EvL6'y4A`vQ'=;`qoeeJr6<vX~kX.)!T*^@E)oaO9zjd)5}:v<CBfgz$RdG-xi[T~8Aa2irf$kZx]s.:]TT6_,V6b6u6fwF7>d[=Ja.0vr-(YYFRU{",
"gadv+&:_3OVi8.8UdEvCwpE ix2w$.pTv;Ph-x{VchKqEIz*@xC)p%5D<8{s$F,T<}.Xs`)H4TD>rt{M`OniS=r4kN]}hB4#eO=Cdwpj0%w6fq J-Cb^5",
"IXkQpBw5#;-XB.3+>XsIW6b$SA{}K@|!LnOoc "
};
/* A number is its size in bits, in unary, then the bits below the highest. Its context is its kind: class, gap... */
typedef struct wrpo__packed {
    const char *const *line, *s;  /* the line that is read, and what is left of it */
    uint32_t range, code;
    int16_t odds[35][21][16];     /* [context][size][bits before]: of a 1, in 4096ths, minus 2048 */
} wrpo__packed;
static int wrpo__unpack_bit(wrpo__packed *p, int16_t *odds) {
    for (; p->range < 1u << 24; p->range *= 91) {
        if (!*p->s) p->s = *++p->line;
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
    for (int k = 0; k < size; k++) {
        int16_t even = 0;
        v = 2 * v + wrpo__unpack_bit(p, v < 16 ? &p->odds[context][size][v] : &even);
    }
    return v - 1;
}
typedef struct wrpo__keyed { uint64_t key; int32_t value; } wrpo__keyed;
typedef struct wrpo__decomposition { uint64_t key; int32_t count, part[3]; } wrpo__decomposition;  /* count 0: a pair */
static uint64_t wrpo__pair(int32_t a, int32_t b) { return (uint64_t)a << 32 | (uint32_t)b; }
static int wrpo__by_key(const void *a, const void *b) {
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}
typedef struct wrpo__unicode {
    uint16_t *kind;                       /* [0x110000] class, | WRPO__CAREFUL, | combining class << 8 */
    wrpo__decomposition *decompositions;  /* stb array; key: the code point */
    wrpo__keyed *pairs;                   /* stb array; key: the pair that composes to value */
} wrpo__unicode;

static void wrpo__unicode_load_classes(wrpo__arena *arena, wrpo__unicode *u) {
    wrpo__packed in = {.line = wrpo__unicode_classes, .s = wrpo__unicode_classes[0], .range = 1};
    int32_t c = 0, class = 0;
    u->kind = wrpo__raw(arena, 0x110000, sizeof *u->kind);
    while (c < 0x110000) {
        class = wrpo__unpack(&in, class);
        int32_t end = c + wrpo__unpack(&in, 17 + class) + 1, kind = class;
        if (class == 16) kind = WRPO__M | WRPO__CAREFUL | wrpo__unpack(&in, 34) << 8;
        while (c < end) u->kind[c++] = (uint16_t)kind;
    }
}
static void wrpo__add_pair(wrpo__unicode *u, int32_t a, int32_t b, int32_t c) {
    stbds_arrput(u->decompositions, ((wrpo__decomposition){(uint64_t)c, 0, {a, b}}));
    stbds_arrput(u->pairs, ((wrpo__keyed){wrpo__pair(a, b), c}));
    u->kind[b] |= WRPO__CAREFUL;
}
static void wrpo__unicode_load_nfc(wrpo__unicode *u) {
    if (u->pairs) return;
    wrpo__packed in = {.line = wrpo__unicode_nfc, .s = wrpo__unicode_nfc[0], .range = 1};
    int32_t c = 0, last[3] = {0};
    while (c <= 0x2FA1D) {  /* the last one */
        int32_t count = wrpo__unpack(&in, 0);
        c += wrpo__unpack(&in, 1);
        for (int32_t end = c + wrpo__unpack(&in, 2) + 1; c < end; c++) {
            for (int k = 0; k < (count ? count : 2); k++) {
                int32_t step = wrpo__unpack(&in, 3 + k);
                last[k] += step & 1 ? -(step + 1) / 2 : step / 2;
            }
            if (!count) { wrpo__add_pair(u, last[0], last[1], c); continue; }
            stbds_arrput(u->decompositions, ((wrpo__decomposition){(uint64_t)c, count, {last[0], last[1], last[2]}}));
            u->kind[c] |= WRPO__CAREFUL;
        }
    }
    for (c = 0xAC00; c < 0xAC00 + 11172; c++) {  /* Hangul: another syllable and a final, or an initial and a vowel */
        int32_t i = c - 0xAC00, final = i % 28;
        if (final) wrpo__add_pair(u, c - final, 0x11A7 + final, c);
        else wrpo__add_pair(u, 0x1100 + i / 588, 0x1161 + i / 28 % 21, c);
    }
    qsort(u->pairs, (size_t)stbds_arrlen(u->pairs), sizeof *u->pairs, wrpo__by_key);
    qsort(u->decompositions, (size_t)stbds_arrlen(u->decompositions), sizeof *u->decompositions, wrpo__by_key);
}

/* The code point at s[i] of s[0..n), and where the next one begins; -1: not UTF-8. */
static int32_t wrpo__char_at(const char *s, int64_t n, int64_t i, int64_t *next) {
    size_t size;
    int32_t c = wrpo__utf8_get(s + i, (size_t)(n - i), &size);
    *next = i + (int64_t)size;
    return c;
}
static int64_t wrpo__before(const char *s, int64_t i) {  /* where the code point before s[i] begins */
    do i--; while (i > 0 && ((unsigned char)s[i] & 0xC0) == 0x80);
    return i;
}
static bool wrpo__is_utf8(const char *s, size_t n, size_t *bad) {  /* bad: the first byte that is not */
    size_t size;
    for (*bad = 0; *bad < n; *bad += size)
        if (wrpo__utf8_get(s + *bad, n - *bad, &size) < 0) return false;
    return true;
}

/* Appends the parts of c as marks. Their keys: the combining class, then the index, which keeps sorts stable. */
static void wrpo__decompose(const wrpo__unicode *u, int32_t c, wrpo__keyed **out) {
    const wrpo__decomposition own = {(uint64_t)c, 1, {c}}, *d;
    d = bsearch(&own, u->decompositions, (size_t)stbds_arrlen(u->decompositions), sizeof own, wrpo__by_key);
    if (!d) d = &own;
    for (int k = 0; k < 2 && !d->count; k++) wrpo__decompose(u, d->part[k], out);
    for (int k = 0; k < d->count; k++) {
        int32_t part = d->part[k];
        stbds_arrput(*out, ((wrpo__keyed){wrpo__pair(u->kind[part] >> 8, (int32_t)stbds_arrlen(*out)), part}));
    }
}
/* Sorts each run of marks by combining class, then composes. Returns the new length. */
static int64_t wrpo__recompose(const wrpo__unicode *u, wrpo__keyed *m, int64_t n) {
    int64_t starter = -1, kept = 0;
    for (int64_t i = 0, run; i < n; i += run + 1) {
        for (run = 0; i + run < n && m[i + run].key >> 32; run++) {}
        if (run > 1) qsort(m + i, (size_t)run, sizeof *m, wrpo__by_key);
    }
    for (int64_t i = 0; i < n; i++) {  /* m[0..kept) is done */
        uint64_t ccc = m[i].key >> 32;
        bool blocked = starter < 0 || (kept - 1 != starter && m[kept - 1].key >> 32 >= ccc);
        wrpo__keyed key = {blocked ? 0 : wrpo__pair(m[starter].value, m[i].value), 0};
        const wrpo__keyed *pair = bsearch(&key, u->pairs, (size_t)stbds_arrlen(u->pairs), sizeof key, wrpo__by_key);
        if (pair) { m[starter].value = pair->value; continue; }
        if (!ccc) starter = kept;
        m[kept++] = m[i];
    }
    return kept;
}
static bool wrpo__careful(const wrpo__unicode *u, const char *s, int64_t n, int64_t i, int64_t *next) {
    return u->kind[wrpo__char_at(s, n, i, next)] & WRPO__CAREFUL;
}
/* Appends NFC of s to out. Only clusters change: careful code points in a row, and the one before them. */
static void wrpo__nfc(const wrpo__unicode *u, const char *s, int64_t n, wrpo__text *out, wrpo__keyed **marks) {
    int64_t done = 0, cluster = 0, next;
    for (int64_t i = 0; i < n; i = next) {
        if (!wrpo__careful(u, s, n, i, &next)) { cluster = i; continue; }
        while (next < n && wrpo__careful(u, s, n, next, &i)) next = i;
        wrpo__text_add(out, s + done, (size_t)(cluster - done));
        stbds_arrsetlen(*marks, 0);
        while (cluster < next) wrpo__decompose(u, wrpo__char_at(s, n, cluster, &cluster), marks);
        done = next;
        int64_t count = wrpo__recompose(u, *marks, stbds_arrlen(*marks));
        for (int64_t k = 0; k < count; k++) {
            char bytes[4];
            wrpo__text_add(out, bytes, wrpo__utf8_put(bytes, (uint32_t)(*marks)[k].value));
        }
    }
    wrpo__text_add(out, s + done, (size_t)(n - done));
}

/* ---- regex: the part of oniguruma's syntax that tokenizers use ----
   A pattern is alternatives of items. An item is a literal, an escape, a class in brackets or a lookahead for one of
   these; all but lookaheads take ? * + {m,n} and possessive ?+ *+ ++. Groups are (...), (?:...) and (?i:...), with or
   without ?. The pattern becomes a graph without cycles, and matching backtracks no deeper than the pattern is long. */
typedef struct wrpo__charset {
    bool ascii[128], negate;  /* ascii: the answer for these; the rest is for other code points */
    uint32_t classes;
    int32_t (*ranges)[2];     /* stb array: first, last */
    const uint16_t *kind;     /* of each code point */
} wrpo__charset;
typedef enum wrpo__rx_kind { WRPO__RX_SET, WRPO__RX_AHEAD, WRPO__RX_FORK, WRPO__RX_JOIN, WRPO__RX_END } wrpo__rx_kind;
typedef struct wrpo__rx_node {
    wrpo__rx_kind kind;
    bool possessive, negative;  /* SET: never gives back; AHEAD: (?!...) */
    int64_t min, max;           /* SET: how many */
    int32_t next, other;        /* FORK: other is tried if next fails */
    wrpo__charset set;
} wrpo__rx_node;
typedef struct wrpo__regex { wrpo__rx_node *nodes; int32_t first; } wrpo__regex;

static bool wrpo__set_has(const wrpo__charset *set, int32_t c) {
    bool in = set->classes >> (set->kind[c] & 15) & 1;
    for (int64_t k = 0; k < stbds_arrlen(set->ranges) && !in; k++)
        in = c >= set->ranges[k][0] && c <= set->ranges[k][1];
    return in != set->negate;
}
/* The size of the code point at s[i] if the set has it, else 0. s is valid UTF-8. */
static int64_t wrpo__set_at(const wrpo__charset *set, const char *s, int64_t n, int64_t i) {
    int64_t next;
    if (i >= n) return 0;
    if ((unsigned char)s[i] < 128) return set->ascii[(unsigned char)s[i]];
    return wrpo__set_has(set, wrpo__char_at(s, n, i, &next)) ? next - i : 0;
}
/* Where a match that begins at s[i], from node `at` of the graph, ends; -1: there is none. */
static int64_t wrpo__rx_match(const wrpo__regex *rx, int32_t at, const char *s, int64_t n, int64_t i) {
    for (;;) {
        const wrpo__rx_node *x = &rx->nodes[at];
        at = x->next;
        int64_t count = 0, size, end;
        switch (x->kind) {
        case WRPO__RX_END: return i;
        case WRPO__RX_JOIN: break;
        case WRPO__RX_AHEAD:
            size = wrpo__set_at(&x->set, s, n, i);
            if ((size > 0) == x->negative) return -1;
            break;
        case WRPO__RX_FORK:
            end = wrpo__rx_match(rx, x->next, s, n, i);
            if (end >= 0) return end;
            at = x->other;
            break;
        case WRPO__RX_SET:
            for (; count < x->max; count++) {
                size = wrpo__set_at(&x->set, s, n, i);
                if (!size) break;
                i += size;
            }
            if (count < x->min) return -1;
            if (x->possessive || rx->nodes[at].kind == WRPO__RX_END) break;
            for (; count > x->min; count--) {  /* tries the longest first; this loop goes on with the shortest */
                end = wrpo__rx_match(rx, at, s, n, i);
                if (end >= 0) return end;
                i = wrpo__before(s, i);
            }
        }
    }
}
/* The first match in s[from..n), as [*begin, *end). No pattern matches the empty text. */
static bool wrpo__rx_find(const wrpo__regex *rx, const char *s, int64_t n, int64_t from, int64_t *begin, int64_t *end) {
    for (int64_t i = from; i < n; i++) {
        if (((unsigned char)s[i] & 0xC0) == 0x80) continue;
        *begin = i;
        *end = wrpo__rx_match(rx, rx->first, s, n, i);
        if (*end >= 0) return true;
    }
    return false;
}

/* ---- the tokenizer ---- */
enum {
    WRPO__TOKEN_MODEL = 1, WRPO__TOKEN_ADDED = 2, WRPO__TOKEN_SINGLE_WORD = 4, WRPO__TOKEN_LSTRIP = 8,
    WRPO__TOKEN_RSTRIP = 16, WRPO__TOKEN_SPECIAL = 32, WRPO__TOKEN_NORMALIZED = 64, WRPO__TOKEN_RENAMED = 128,
    WRPO__WORDS = 1 << 13, WRPO__SMALL_CHARS = 1 << 10, WRPO__MAX_ID = 1 << 22
};
typedef struct wrpo__token { const char *text; int32_t size; uint32_t flags; } wrpo__token;  /* text NULL: none */
typedef struct wrpo__merge { uint64_t pair; int32_t rank, id; } wrpo__merge;  /* rank -1: a free slot */
typedef struct wrpo__added { const char *text; int32_t size, id, next; } wrpo__added;  /* next: one not longer, or 0 */
typedef struct wrpo__word { uint8_t size, count; char text[22]; int32_t ids[10]; } wrpo__word;  /* in the cache */

typedef enum wrpo__edit_kind {
    WRPO__EDIT_NONE,
    WRPO__EDIT_ADDED,          /* cuts out added tokens; start: those of raw text 0, of normalized text 1 */
    WRPO__EDIT_NFC,
    WRPO__EDIT_REPLACE,        /* what matches regex becomes text */
    WRPO__EDIT_PREPEND,        /* text before a piece; unless: if it is not there yet; first: before the first only */
    WRPO__EDIT_SPLIT,          /* cuts where regex matches; invert: where it does not */
    WRPO__EDIT_BYTES,          /* each byte becomes a character of GPT-2's alphabet */
    WRPO__EDIT_UNBYTES,        /* and back; all tokens become one */
    WRPO__EDIT_REPAIR,         /* what is not UTF-8 becomes U+FFFD */
    WRPO__EDIT_BYTE_FALLBACK,  /* <0xNN> becomes a byte */
    WRPO__EDIT_FUSE,           /* all tokens become one */
    WRPO__EDIT_STRIP,          /* takes text away, at most start and stop times */
    WRPO__EDIT_METASPACE       /* text becomes a space; start != 0: nothing, in the first token */
} wrpo__edit_kind;
typedef enum wrpo__behavior {  /* SPLIT: what becomes of a match */
    WRPO__REMOVED, WRPO__ISOLATED, WRPO__MERGED_WITH_PREVIOUS, WRPO__MERGED_WITH_NEXT, WRPO__CONTIGUOUS
} wrpo__behavior;
typedef struct wrpo__edit {
    wrpo__edit_kind kind;
    const wrpo__regex *regex;
    const char *text; size_t size;
    wrpo__behavior behavior;
    bool invert, unless, first;
    int64_t start, stop;
} wrpo__edit;

typedef struct wrpo__template {  /* text NULL: none; the rest by >>chat */
    const char *text; size_t size;
    wrpo__arena *arena; const void *tree; bool compiled;
} wrpo__template;
struct wrpo_tokenizer {
    wrpo_ctx *ctx;
    wrpo__arena *arena, *scratch;        /* scratch: what one call needs; cleared by the next */
    const char *dir;                     /* where it was loaded from */
    wrpo__unicode unicode;
    wrpo__token *tokens; int64_t size;   /* by id */
    int32_t *slots; uint64_t mask;       /* text -> id: open addressing, -1 = free */
    wrpo__merge *merges; uint64_t merge_mask, seed;  /* pair -> rank and id: open addressing; seed: of both */
    wrpo__added *added;                  /* stb array; [0] is none */
    int32_t heads[2][256];               /* [in raw, in normalized text][first byte] -> the longest added token, or 0 */
    wrpo__edit *encoder, *decoder;       /* stb arrays; encoder: added tokens, normalizer, these again, pre-tokenizer */
    int64_t normalizer_end;              /* encoder[1..here) is the normalizer */
    bool has_decoder, has_template, byte_fallback, fuse_unk, ignore_merges, cut_at_mark;
    const char *unk_text;                /* the model's unk_token, or NULL */
    int32_t unk, bytes[256], small[WRPO__SMALL_CHARS];  /* ids: of unk_text, <0xNN>, the characters below U+0400 */
    int16_t byte_char[256], char_byte[324];  /* the alphabet of byte-level BPE; -1: not of it */
    int32_t *prefix, *suffix;            /* stb arrays: the post-processor */
    wrpo__word *words;                   /* [WORDS] direct-mapped cache of BPE results */
    const wrpo_json *config;             /* tokenizer_config.json, or NULL */
    const char *special[7];              /* texts of wrpo__special_names; NULL: none */
    int32_t bos, eos;                    /* -1: none */
    wrpo__template chat[2];              /* the second, if there is one: for conversations with tools */
};

/* Hash tables of our own: texts may hold NULs, and the maps of stb_ds change a seed that all threads share. */
static int64_t wrpo__slot(const wrpo_tokenizer *tok, const char *s, size_t n) {  /* where s is or would be */
    for (uint64_t at = wrpo__hash(tok->seed, s, n);; at++) {
        at &= tok->mask;
        int32_t id = tok->slots[at];
        const wrpo__token *t = &tok->tokens[id < 0 ? 0 : id];
        if (id < 0 || ((size_t)t->size == n && memcmp(t->text, s, n) == 0)) return (int64_t)at;
    }
}
static int32_t wrpo__token_id(const wrpo_tokenizer *tok, const char *s, size_t n) {  /* -1: none */
    return tok->slots[wrpo__slot(tok, s, n)];
}
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
    uint64_t pair = wrpo__pair(left, right), at = (pair ^ tok->seed) * 0x9E3779B97F4A7C15u;
    for (at ^= at >> 32;; at++) {
        wrpo__merge *m = &tok->merges[at & tok->merge_mask];
        if (m->rank < 0 || m->pair == pair) return m;
    }
}

/* ---- pieces and edits ---- */
typedef struct wrpo__piece {
    int64_t begin, end;  /* of the text */
    int32_t id;          /* >= 0: an added token, which no edit changes */
    bool first;          /* of the whole text */
} wrpo__piece;
typedef struct wrpo__symbol { int32_t id, prev, next; } wrpo__symbol;  /* of a word in BPE, a list; id -1: merged */
typedef struct wrpo__work {
    wrpo_tokenizer *tok;
    wrpo__arena *outer;         /* the arena that was current before */
    bool continues, decodes;    /* nothing is put before the first piece; empty pieces are kept */
    const char *s; int64_t n;   /* the text of the pieces: the caller's, or text.data */
    wrpo__text text, spare;     /* spare: what an edit writes; its first `done` bytes are in pieces */
    int64_t done, run;          /* run: bytes of <0xNN> tokens that follow these */
    wrpo__piece *pieces, *put;  /* stb arrays, like those below; put: what an edit makes of the pieces */
    wrpo__symbol *symbols;
    wrpo__keyed *marks, *heap;  /* heap: possible merges; key: rank, left symbol; value: the merged one */
} wrpo__work;
static const char wrpo__no_char[] = "\xEF\xBF\xBD";  /* U+FFFD: for bytes that are not UTF-8 */

static void wrpo__put_piece(wrpo__work *w, int64_t begin, int64_t end, int32_t id, bool first) {
    wrpo__piece p = {begin, end, id, first};
    if (end > begin || w->decodes) stbds_arrput(w->put, p);
}
static void wrpo__put_spare(wrpo__work *w, bool first) {  /* what spare has gained is a piece */
    wrpo__put_piece(w, w->done, (int64_t)w->spare.size, -1, first);
    w->done = (int64_t)w->spare.size;
}
static void wrpo__take_pieces(wrpo__work *w) {  /* those that were put become the pieces */
    wrpo__piece *swap = w->pieces;
    w->pieces = w->put, w->put = swap;
    stbds_arrsetlen(w->put, 0);
}
static void wrpo__take_spare(wrpo__work *w) {  /* likewise the text */
    wrpo__text swap = w->text;
    w->text = w->spare, w->spare = swap;
    wrpo__text_add(&w->text, "", 0);
    w->s = w->text.data, w->n = (int64_t)w->text.size;
    w->spare.size = 0, w->done = 0;
    wrpo__take_pieces(w);
}
static bool wrpo__is_space(const wrpo_tokenizer *tok, const char *s, int64_t n, int64_t i, int64_t *next) {
    return (tok->unicode.kind[wrpo__char_at(s, n, i, next)] & 15) == WRPO__SPACE;
}
static bool wrpo__is_word(const wrpo_tokenizer *tok, const char *s, int64_t n, int64_t i) {
    return WRPO__WORD >> (tok->unicode.kind[wrpo__char_at(s, n, i, &n)] & 15) & 1;
}
/* Cuts a piece at added tokens: the leftmost, there the longest, as the library does it. If a token strips the space on
   its right and the next one begins with that space, the space comes twice, as in the library. */
static void wrpo__cut_added(wrpo__work *w, const int32_t *heads, wrpo__piece p) {
    const wrpo_tokenizer *tok = w->tok;
    const char *s = w->s + p.begin;
    int64_t n = p.end - p.begin, done = 0, next;
    for (int64_t i = 0; i < n;) {
        int32_t head = heads[(unsigned char)s[i]];
        if (!head) { i++; continue; }
        const wrpo__added *a = &tok->added[head];
        for (; a->size; a = &tok->added[a->next]) {
            int32_t last = a->size - 1;  /* compared first: many differ there */
            if (n - i > last && s[i + last] == a->text[last] && memcmp(s + i, a->text, (size_t)last) == 0) break;
        }
        int64_t begin = i, end = i + a->size;
        i = WRPO__MAX(end, begin + 1);
        if (begin == end) continue;
        uint32_t flags = tok->tokens[a->id].flags;
        if (flags & WRPO__TOKEN_SINGLE_WORD) {
            if (begin > 0 && wrpo__is_word(tok, s, begin, wrpo__before(s, begin))) continue;
            if (end < n && wrpo__is_word(tok, s, n, end)) continue;
        }
        if (flags & WRPO__TOKEN_LSTRIP) {
            begin = WRPO__MAX(begin, done);
            while (begin > done && wrpo__is_space(tok, s, begin, wrpo__before(s, begin), &next))
                begin = wrpo__before(s, begin);
        }
        if (flags & WRPO__TOKEN_RSTRIP) while (end < n && wrpo__is_space(tok, s, n, end, &next)) end = next;
        if (done < begin) wrpo__put_piece(w, p.begin + done, p.begin + begin, -1, p.first && done == 0);
        wrpo__put_piece(w, p.begin + begin, p.begin + end, a->id, false);
        done = end;
    }
    wrpo__put_piece(w, p.begin + done, p.end, -1, p.first && done == 0);
}
/* Does a part of a text join the part before it? before, matched: whether each matches the pattern. */
static bool wrpo__joins(wrpo__behavior behavior, bool before, bool matched) {
    if (behavior == WRPO__MERGED_WITH_PREVIOUS) return matched && !before;
    if (behavior == WRPO__MERGED_WITH_NEXT) return before && !matched;
    return behavior == WRPO__CONTIGUOUS && before == matched;
}
static void wrpo__split_piece(wrpo__work *w, const wrpo__edit *e, wrpo__piece p) {
    int64_t end = p.begin, open = -1;  /* open: where the piece that grows begins; -1: there is none */
    bool before = false;
    while (end < p.end) {
        int64_t match[2];
        if (!wrpo__rx_find(e->regex, w->s, p.end, end, &match[0], &match[1])) match[0] = match[1] = p.end;
        for (int k = 0; k < 2; k++) {  /* what is before the match, then the match */
            int64_t begin = end;
            end = match[k];
            if (begin == end) continue;
            bool matched = (k == 1) != e->invert;
            if (open >= 0 && !wrpo__joins(e->behavior, before, matched)) {
                wrpo__put_piece(w, open, begin, -1, p.first && open == p.begin);
                open = -1;
            }
            if (open < 0 && !(matched && e->behavior == WRPO__REMOVED)) open = begin;
            before = matched;
        }
    }
    if (open >= 0) wrpo__put_piece(w, open, end, -1, p.first && open == p.begin);
}
static bool wrpo__begins(const wrpo__edit *e, const char *s, int64_t n) {  /* does s begin with the edit's text? */
    return n >= (int64_t)e->size && memcmp(s, e->text, e->size) == 0;
}
static int wrpo__hex_digit(char c) {  /* -1: none */
    char low = (char)(c | 32);
    if (c >= '0' && c <= '9') return c - '0';
    return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}
static int wrpo__byte_token(const char *s, int64_t n) {  /* the byte NN of <0xNN>; -1: another token */
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int high = wrpo__hex_digit(s[3]), low = wrpo__hex_digit(s[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}
/* <0xNN> tokens in a row are the bytes of a text; if that is not UTF-8, each byte becomes U+FFFD. */
static void wrpo__end_run(wrpo__work *w) {
    size_t bad;
    int64_t run = w->run;
    w->run = 0;
    if (!run) return;
    if (wrpo__is_utf8(w->spare.data + w->done, (size_t)run, &bad)) { wrpo__put_spare(w, false); return; }
    for (w->spare.size = (size_t)w->done; run > 0; run--) {
        wrpo__text_add(&w->spare, wrpo__no_char, 3);
        wrpo__put_spare(w, false);
    }
}
static bool wrpo__fuses(const wrpo__edit *e) { return e->kind == WRPO__EDIT_UNBYTES || e->kind == WRPO__EDIT_FUSE; }
static void wrpo__edit_piece(wrpo__work *w, const wrpo__edit *e, wrpo__piece p) {
    wrpo__text *out = &w->spare;
    const char *s = w->s + p.begin;
    int64_t n = p.end - p.begin, one = (int64_t)e->size, next;
    size_t begin = out->size;
    int byte = -1;
    bool wanted;
    char c;
    switch (e->kind) {  /* after the switch, s[0..n) is added to out */
    case WRPO__EDIT_NONE: case WRPO__EDIT_FUSE: break;
    case WRPO__EDIT_ADDED: wrpo__cut_added(w, w->tok->heads[e->start], p); return;
    case WRPO__EDIT_SPLIT: wrpo__split_piece(w, e, p); return;
    case WRPO__EDIT_NFC:
        wrpo__nfc(&w->tok->unicode, s, n, out, &w->marks);
        n = 0;
        break;
    case WRPO__EDIT_REPLACE:
        for (int64_t i = 0; i < n; i = next) {
            int64_t match;
            if (!wrpo__rx_find(e->regex, s, n, i, &match, &next)) match = next = n;
            if (match > i) wrpo__text_add(out, s + i, (size_t)(match - i));
            if (next > match) wrpo__text_add(out, e->text, e->size);
        }
        n = 0;
        break;
    case WRPO__EDIT_PREPEND:
        wanted = p.first ? !w->continues : !e->first;
        if (wanted && !(e->unless && wrpo__begins(e, s, n))) wrpo__text_add(out, e->text, e->size);
        break;
    case WRPO__EDIT_BYTES:
        for (int64_t i = 0; i < n; i = next) {
            char utf8[4];
            for (next = i; next < n && s[next] > 32 && s[next] < 127; next++) {}
            wrpo__text_add(out, s + i, (size_t)(next - i));
            if (next == n) break;
            wrpo__text_add(out, utf8, wrpo__utf8_put(utf8, (uint32_t)w->tok->byte_char[(unsigned char)s[next++]]));
        }
        n = 0;
        break;
    case WRPO__EDIT_UNBYTES:  /* a token with a character outside the alphabet is text already */
        for (int64_t i = 0; i < n; i = next) {
            int32_t from = wrpo__char_at(s, n, i, &next);
            byte = from >= 0 && from < WRPO__COUNT(w->tok->char_byte) ? w->tok->char_byte[from] : -1;
            if (byte < 0) break;
            c = (char)byte;
            wrpo__text_add(out, &c, 1);
        }
        if (byte < 0) out->size = begin;
        else n = 0;
        break;
    case WRPO__EDIT_REPAIR:
        for (int64_t i = 0; i < n; i = next) {
            bool good = wrpo__char_at(s, n, i, &next) >= 0;
            wrpo__text_add(out, good ? s + i : wrpo__no_char, good ? (size_t)(next - i) : 3);
        }
        n = 0;
        break;
    case WRPO__EDIT_BYTE_FALLBACK:
        byte = wrpo__byte_token(s, n);
        c = (char)byte;
        if (byte < 0) wrpo__end_run(w);
        else s = &c, n = 1, w->run++;
        break;
    case WRPO__EDIT_STRIP:
        for (int64_t k = 0; k < e->start && wrpo__begins(e, s, n); k++) s += one, n -= one;
        for (int64_t k = 0; k < e->stop && n >= one && wrpo__begins(e, s + n - one, one); k++) n -= one;
        break;
    case WRPO__EDIT_METASPACE:
        for (int64_t i = 0; i < n; i = next) {
            wrpo__char_at(s, n, i, &next);
            if (!wrpo__begins(e, s + i, n - i)) wrpo__text_add(out, s + i, (size_t)(next - i));
            else if (!e->start || stbds_arrlen(w->put)) wrpo__text_add(out, " ", 1);
        }
        n = 0;
        break;
    }
    if (n) wrpo__text_add(out, s, (size_t)n);
    if (!wrpo__fuses(e) && !w->run) wrpo__put_spare(w, p.first);
}
static void wrpo__edit_all(wrpo__work *w, const wrpo__edit *edits, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        const wrpo__edit *e = &edits[k];
        for (int64_t i = 0; i < stbds_arrlen(w->pieces); i++) {
            if (w->pieces[i].id >= 0) stbds_arrput(w->put, w->pieces[i]);
            else wrpo__edit_piece(w, e, w->pieces[i]);
        }
        wrpo__end_run(w);
        if (wrpo__fuses(e)) wrpo__put_spare(w, true);
        if (e->kind == WRPO__EDIT_ADDED || e->kind == WRPO__EDIT_SPLIT) wrpo__take_pieces(w);
        else wrpo__take_spare(w);
    }
}
static void wrpo__begin_text(wrpo__work *w, const char *s, int64_t n) {  /* as one piece */
    w->s = s, w->n = n;
    stbds_arrsetlen(w->put, 0);
    wrpo__put_piece(w, 0, n, -1, true);
    wrpo__take_pieces(w);
}

/* ---- BPE ---- */
static void wrpo__put_symbol(wrpo__work *w, int32_t id) {
    int32_t at = (int32_t)stbds_arrlen(w->symbols);
    stbds_arrput(w->symbols, ((wrpo__symbol){id, at - 1, at + 1}));
}
static void wrpo__symbols(wrpo__work *w, const char *s, int64_t n) {
    const wrpo_tokenizer *tok = w->tok;
    bool pending = false;  /* an unknown character whose unk is not written yet */
    int64_t next;
    stbds_arrsetlen(w->symbols, 0);
    for (int64_t i = 0; i < n; i = next) {
        int32_t c = wrpo__char_at(s, n, i, &next);
        int32_t id = c < WRPO__SMALL_CHARS ? tok->small[c] : wrpo__model_id(tok, s + i, (size_t)(next - i));
        bool bytes = id < 0 && tok->byte_fallback;
        for (int64_t k = i; k < next && bytes; k++) bytes = tok->bytes[(unsigned char)s[k]] >= 0;
        if (bytes) {  /* before an unk that is pending: the library's order */
            for (int64_t k = i; k < next; k++) wrpo__put_symbol(w, tok->bytes[(unsigned char)s[k]]);
            continue;
        }
        if (id < 0 && !tok->unk_text) continue;  /* dropped, as the library drops it */
        if (id < 0 && tok->unk < 0)
            wrpo__fail(tok->ctx, WRPO_E_FORMAT, "a character has no token, and unk_token \"%.80s\" is not in the "
                       "vocabulary", tok->unk_text);
        if (pending && (id >= 0 || !tok->fuse_unk)) wrpo__put_symbol(w, tok->unk);
        pending = id < 0;
        if (id >= 0) wrpo__put_symbol(w, id);
    }
    if (pending) wrpo__put_symbol(w, tok->unk);
    if (stbds_arrlen(w->symbols)) stbds_arrlast(w->symbols).next = -1;
}
/* A binary heap: the lowest rank first, of equal ranks the leftmost. */
static void wrpo__push_merge(wrpo__work *w, int32_t at) {  /* of symbol `at` and the next, if there is one */
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
        int32_t at = (int32_t)(best.key & 0xFFFFFFFFu), next = y[at].next;
        if (y[at].id < 0 || next < 0) continue;  /* merged into another symbol since */
        const wrpo__merge *m = wrpo__merge_slot(w->tok, y[at].id, y[next].id);
        if (m->rank < 0 || m->id != best.value) continue;  /* another pair is here now */
        y[at].id = m->id, y[at].next = y[next].next, y[next].id = -1;
        if (y[at].next >= 0) y[y[at].next].prev = at;
        if (y[at].prev >= 0) wrpo__push_merge(w, y[at].prev);
        wrpo__push_merge(w, at);
    }
}
static void wrpo__put_ids(int32_t **ids, const int32_t *more, int64_t n) {
    if (n) memcpy(stbds_arraddnptr(*ids, (size_t)n), more, (size_t)n * sizeof *more);
}
static void wrpo__bpe(wrpo__work *w, const char *s, int64_t n, int32_t **ids) {
    const wrpo_tokenizer *tok = w->tok;
    wrpo__word *word = NULL;
    if (n <= (int64_t)sizeof word->text) {
        word = &tok->words[wrpo__hash(tok->seed, s, (size_t)n) % WRPO__WORDS];
        if (word->size == n && memcmp(word->text, s, (size_t)n) == 0) {
            wrpo__put_ids(ids, word->ids, word->count);
            return;
        }
    }
    int64_t first = stbds_arrlen(*ids);
    int32_t whole = tok->ignore_merges ? wrpo__model_id(tok, s, (size_t)n) : -1;
    if (whole >= 0) stbds_arrput(*ids, whole);
    else {
        wrpo__symbols(w, s, n);
        wrpo__merge_symbols(w);
        for (int64_t i = 0; i < stbds_arrlen(w->symbols); i++)
            if (w->symbols[i].id >= 0) stbds_arrput(*ids, w->symbols[i].id);
    }
    int64_t count = stbds_arrlen(*ids) - first;
    if (!word || count > WRPO__COUNT(word->ids)) return;
    word->size = (uint8_t)n, word->count = (uint8_t)count;
    memcpy(word->text, s, (size_t)n);
    if (count) memcpy(word->ids, *ids + first, (size_t)count * sizeof *word->ids);
}
/* SentencePiece models have no pre-tokenizer: a whole text is one word. If no merge makes a token with a mark (U+2581)
   after another character, and no character is dropped, no merge reaches across such a place: cutting there changes
   nothing, and the words are short again. */
static const char wrpo__mark_text[] = "\xE2\x96\x81";
static inline bool wrpo__cut_at(const char *s, int64_t n, int64_t i) {
    if (s[i] != wrpo__mark_text[0] || i + 3 > n || memcmp(s + i, wrpo__mark_text, 3) != 0) return false;
    return i < 3 || memcmp(s + i - 3, wrpo__mark_text, 3) != 0;
}
static void wrpo__bpe_cut(wrpo__work *w, const char *s, int64_t n, int32_t **ids) {
    int64_t begin = 0;
    for (int64_t i = 1; i < n && w->tok->cut_at_mark; i++) {
        if (!wrpo__cut_at(s, n, i)) continue;
        wrpo__bpe(w, s + begin, i - begin, ids);
        begin = i;
    }
    wrpo__bpe(w, s + begin, n - begin, ids);
}

/* ---- encode and decode ---- */
static wrpo__work wrpo__work_begin(wrpo_tokenizer *tok) {  /* what it allocates is in tok->scratch */
    wrpo__work w = {.tok = tok, .outer = wrpo__current, .text.arena = tok->scratch, .spare.arena = tok->scratch};
    wrpo__arena_clear(tok->scratch);
    wrpo__current = tok->scratch;
    return w;
}
static void wrpo__work_end(const wrpo__work *w) {
    wrpo__current = w->outer;
    wrpo__arena_clear(w->tok->scratch);
}
/* Appends the ids of text to *ids, an stb array of the caller's arena. */
static void wrpo__encode(wrpo_tokenizer *tok, const char *text, size_t n, unsigned flags, int32_t **ids) {
    size_t bad;
    if (n > INT32_MAX)
        wrpo__fail(tok->ctx, WRPO_E_UNSUPPORTED, "a text of %zu bytes: more than %d cannot be tokenized at once", n,
                   INT32_MAX);
    if (!wrpo__is_utf8(text, n, &bad))
        wrpo__fail(tok->ctx, WRPO_E_FORMAT, "text to tokenize: not UTF-8 at byte %zu", bad);
    if (!*ids) stbds_arrsetcap(*ids, n / 4 + 16);  /* before the scratch arena becomes the current one */
    wrpo__work w = wrpo__work_begin(tok);
    w.continues = flags & WRPO_TOKENIZER_CONTINUE;
    wrpo__begin_text(&w, text, (int64_t)n);
    wrpo__edit_all(&w, tok->encoder, stbds_arrlen(tok->encoder));
    if (flags & WRPO_TOKENIZER_SPECIAL) wrpo__put_ids(ids, tok->prefix, stbds_arrlen(tok->prefix));
    for (int64_t i = 0; i < stbds_arrlen(w.pieces); i++) {
        wrpo__piece p = w.pieces[i];
        if (p.id >= 0) stbds_arrput(*ids, p.id);
        else wrpo__bpe_cut(&w, w.s + p.begin, p.end - p.begin, ids);
    }
    if (flags & WRPO_TOKENIZER_SPECIAL) wrpo__put_ids(ids, tok->suffix, stbds_arrlen(tok->suffix));
    wrpo__work_end(&w);
}
/* Appends the text of ids to out. */
static void wrpo__decode(wrpo_tokenizer *tok, const int32_t *ids, int64_t n, bool skip_special, wrpo__text *out) {
    wrpo__work w = wrpo__work_begin(tok);
    w.decodes = true;
    for (int64_t i = 0; i < n; i++) {
        const wrpo__token *token = wrpo__token_of(tok, ids[i]);
        if (!token)
            wrpo__fail(tok->ctx, WRPO_E_ARG, "id %lld of the text to decode: no token has the id %d; they go to %lld",
                       (long long)i, (int)ids[i], (long long)tok->size - 1);
        const wrpo__added *a = tok->added;
        bool renamed = token->flags & WRPO__TOKEN_RENAMED;
        if (skip_special && token->flags & WRPO__TOKEN_SPECIAL && !renamed) continue;
        while (renamed && a->id != ids[i]) a++;
        if (!tok->has_decoder && stbds_arrlen(w.put)) wrpo__text_add(&w.spare, " ", 1);
        wrpo__text_add(&w.spare, renamed ? a->text : token->text, (size_t)(renamed ? a->size : token->size));
        wrpo__put_spare(&w, false);
    }
    wrpo__take_spare(&w);
    wrpo__edit_all(&w, tok->decoder, stbds_arrlen(tok->decoder));
    wrpo__text_add(out, w.s, (size_t)w.n);
    wrpo__work_end(&w);
}

/* ---- load: what all readers use ---- */
typedef struct wrpo__loader {
    wrpo_tokenizer *tok; wrpo_ctx *ctx;
    const char *name;     /* of the file, for errors */
    wrpo__work *work;     /* normalizes the texts of added tokens */
    int64_t next;         /* the id of the next added token that is not in the vocabulary */
    wrpo__edit **edits;   /* the list that readers of components add to */
} wrpo__loader;
#define wrpo__load_fail(in, v, ...) wrpo__json_fail((in)->ctx, WRPO_E_FORMAT, (in)->name, v, __VA_ARGS__)
_Noreturn static void wrpo__load_refuse(const wrpo__loader *in, const char *what, const wrpo_json *v) {
    wrpo__shown s;
    wrpo__json_fail(in->ctx, WRPO_E_UNSUPPORTED, in->name, v, "%s %s is not supported", what, wrpo__json_found(s, v));
}
/* A member of an object, of this kind; from wrpo__load_maybe NULL, if it is absent or null. */
static const wrpo_json *wrpo__load_need(const wrpo__loader *in, const wrpo_json *v, const char *key, wrpo_json_kind k) {
    return wrpo__json_need(in->ctx, in->name, v, key, k);
}
static const wrpo_json *wrpo__load_maybe(const wrpo__loader *in, const wrpo_json *v, const char *key,
                                         wrpo_json_kind k) {
    return wrpo__json_maybe(in->ctx, in->name, v, key, k);
}
static bool wrpo__load_flag(const wrpo__loader *in, const wrpo_json *object, const char *key, bool otherwise) {
    const wrpo_json *v = wrpo__load_maybe(in, object, key, WRPO_JSON_BOOL);
    return v ? v->boolean : otherwise;
}
static int32_t wrpo__load_count(const wrpo__loader *in, const wrpo_json *v, int64_t high) {
    return (int32_t)wrpo__json_integer(in->ctx, in->name, v, 0, high, NULL);
}

/* ---- load: regexes ---- */
typedef struct wrpo__rx_parser {
    const wrpo__loader *in; const wrpo_json *json;  /* where the pattern is, for errors */
    const char *s; size_t n, i;                     /* the pattern, and how much of it is read */
    bool literal, fold;                             /* all characters are literals; inside (?i:...) */
    int depth;
    wrpo__rx_node *nodes;
} wrpo__rx_parser;
typedef struct wrpo__rx_part { int32_t first, last; int64_t shortest; } wrpo__rx_part;  /* shortest: of its matches */

_Noreturn static void wrpo__rx_fail(const wrpo__rx_parser *p, const char *what) {
    wrpo__json_fail(p->in->ctx, WRPO_E_UNSUPPORTED, p->in->name, p->json, "regex, byte %zu: %s is not supported: %.*s",
                    p->i + 1, what, (int)WRPO__MIN(p->n, 200), p->s);
}
static bool wrpo__rx_sees(const wrpo__rx_parser *p, const char *any) {  /* is the next character one of these? */
    return !p->literal && p->i < p->n && p->s[p->i] && strchr(any, p->s[p->i]);
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
static void wrpo__rx_range(wrpo__charset *set, int32_t first, int32_t last) {
    int32_t *range = *stbds_arraddnptr(set->ranges, 1);
    range[0] = first, range[1] = last;
}
static int64_t wrpo__rx_number(wrpo__rx_parser *p, int base, size_t digits) {  /* at most so many; -1: there is none */
    int64_t v = -1;
    for (size_t end = WRPO__MIN(p->n, p->i + digits); p->i < end; p->i++) {
        int digit = wrpo__hex_digit(p->s[p->i]);
        if (digit < 0 || digit >= base) break;
        v = WRPO__MAX(v, 0) * base + digit;
        if (v > 0x10FFFF) wrpo__rx_fail(p, "a number this large");
    }
    return v;
}
/* After a backslash: the classes of the escape, or 0 and the one code point *c. */
static uint32_t wrpo__rx_escape(wrpo__rx_parser *p, int32_t *c) {
    static const struct { const char *name; uint32_t classes; } properties[] = {
        {"L}", WRPO__L}, {"Lu}", 1u << WRPO__LU}, {"Ll}", 1u << WRPO__LL}, {"Lt}", 1u << WRPO__LT},
        {"Lm}", 1u << WRPO__LM}, {"Lo}", 1u << WRPO__LO}, {"N}", WRPO__N}, {"Nd}", 1u << WRPO__ND},
        {"M}", 1u << WRPO__M}, {"P}", 1u << WRPO__P | 1u << WRPO__PC}, {"S}", 1u << WRPO__S | 1u << WRPO__SW},
    };
    static const char letters[] = "nrtfva", controls[] = "\n\r\t\f\v\a";
    *c = wrpo__rx_char(p);
    size_t begin = p->i;
    char letter = *c < 128 ? (char)*c : 0, low = (char)(letter | 32);
    const char *control = letter ? strchr(letters, letter) : NULL;
    bool negate = letter != low, known = letter >= 32 && !(low >= 'a' && low <= 'z') && !(low >= '0' && low <= '9');
    uint32_t classes = 0;
    if (low == 's') classes = 1u << WRPO__SPACE;
    else if (low == 'd') classes = 1u << WRPO__ND;
    else if (low == 'p' && wrpo__rx_take(p, "{")) {
        if (wrpo__rx_take(p, "^")) negate = !negate;
        for (int64_t k = 0; k < WRPO__COUNT(properties) && !classes; k++)
            if (wrpo__rx_take(p, properties[k].name)) classes = properties[k].classes;
        if (!classes) wrpo__rx_fail(p, "this property");
    } else if (control) {
        *c = controls[control - letters];
        known = true;
    } else if (letter == 'u') {
        *c = (int32_t)wrpo__rx_number(p, 16, 4);
        known = p->i == begin + 4;
    } else if (letter == 'x' && wrpo__rx_take(p, "{")) {
        *c = (int32_t)wrpo__rx_number(p, 16, p->n);
        known = *c >= 0 && wrpo__rx_take(p, "}");
    }
    if (!classes && !known) wrpo__rx_fail(p, "this escape");
    return classes && negate ? WRPO__CLASSES ^ classes : classes;
}
static bool wrpo__rx_dash(const wrpo__rx_parser *p) {  /* of a range: a '-' before ']' is a literal */
    return wrpo__rx_sees(p, "-") && !(p->i + 1 < p->n && p->s[p->i + 1] == ']');
}
static void wrpo__rx_bracket(wrpo__rx_parser *p, wrpo__charset *set) {  /* after '[' */
    set->negate = wrpo__rx_take(p, "^");
    if (wrpo__rx_sees(p, "]")) wrpo__rx_fail(p, "an empty class");
    for (bool begun = false; !wrpo__rx_take(p, "]"); begun = true) {
        if (wrpo__rx_sees(p, "[")) wrpo__rx_fail(p, "a class within a class");
        if (wrpo__rx_take(p, "&&")) wrpo__rx_fail(p, "an intersection of classes");
        if (begun && wrpo__rx_dash(p)) wrpo__rx_fail(p, "'-' at this place");
        int32_t first = wrpo__rx_char(p);
        uint32_t classes = first == '\\' ? wrpo__rx_escape(p, &first) : 0;
        int32_t last = first;
        set->classes |= classes;
        if (classes) continue;
        if (wrpo__rx_dash(p)) {
            p->i++;
            if (wrpo__rx_sees(p, "[")) wrpo__rx_fail(p, "a class within a class");
            last = wrpo__rx_char(p);
            if ((last == '\\' && wrpo__rx_escape(p, &last)) || last < first) wrpo__rx_fail(p, "this range");
        }
        wrpo__rx_range(set, first, last);
    }
}
/* One literal, escape or class. In (?i:...) a letter is a class of its cases. Only ASCII is folded, where U+017F and
   U+212A fold too; two letters in a row that a ligature folds to are refused. */
static wrpo__charset wrpo__rx_atom(wrpo__rx_parser *p) {
    static const char *const refused[][2] = {
        {".", "'.'"}, {"^$", "an anchor"}, {"{?*+", "this repetition"}, {"]}", "this bracket"},
    };
    static const char *const ligatures[] = {"ss", "ff", "fi", "fl", "st"};
    wrpo__charset set = {.kind = p->in->tok->unicode.kind};
    int32_t c = 0;
    for (int k = 0; k < 4; k++) if (wrpo__rx_sees(p, refused[k][0])) wrpo__rx_fail(p, refused[k][1]);
    if (p->fold && p->i < p->n && (wrpo__rx_sees(p, "[\\") || (unsigned char)p->s[p->i] >= 128))
        wrpo__rx_fail(p, "anything but ASCII letters in (?i:...)");
    if (wrpo__rx_take(p, "[")) wrpo__rx_bracket(p, &set);
    else {
        if (wrpo__rx_take(p, "\\")) set.classes = wrpo__rx_escape(p, &c);
        else c = wrpo__rx_char(p);
        if (!set.classes) wrpo__rx_range(&set, c, c);
    }
    int32_t low = c | 32;
    if (p->fold && low >= 'a' && low <= 'z') {
        for (int k = 0; k < 5; k++)
            if (low == ligatures[k][0] && p->i < p->n && (p->s[p->i] | 32) == ligatures[k][1])
                wrpo__rx_fail(p, "a pair of letters with a ligature in (?i:...)");
        wrpo__rx_range(&set, c ^ 32, c ^ 32);
        if (low == 's') wrpo__rx_range(&set, 0x17F, 0x17F);
        if (low == 'k') wrpo__rx_range(&set, 0x212A, 0x212A);
    }
    for (c = 0; c < 128; c++) set.ascii[c] = wrpo__set_has(&set, c);
    return set;
}
static wrpo__rx_part wrpo__rx_node_new(wrpo__rx_parser *p, wrpo__rx_kind kind) {
    const wrpo__rx_node node = {.kind = kind, .min = 1, .max = 1, .next = -1, .other = -1};
    int32_t at = (int32_t)stbds_arrlen(p->nodes);
    stbds_arrput(p->nodes, node);
    return (wrpo__rx_part){at, at, 0};
}
static wrpo__rx_part wrpo__rx_either(wrpo__rx_parser *p, wrpo__rx_part a, wrpo__rx_part b) {  /* a, else b */
    int32_t fork = wrpo__rx_node_new(p, WRPO__RX_FORK).first, join = wrpo__rx_node_new(p, WRPO__RX_JOIN).first;
    p->nodes[fork].next = a.first, p->nodes[fork].other = b.first;
    p->nodes[a.last].next = p->nodes[b.last].next = join;
    return (wrpo__rx_part){fork, join, WRPO__MIN(a.shortest, b.shortest)};
}
static wrpo__rx_part wrpo__rx_alternatives(wrpo__rx_parser *p);
static wrpo__rx_part wrpo__rx_group(wrpo__rx_parser *p) {  /* after "(" */
    bool fold = p->fold;
    if (wrpo__rx_take(p, "?i:")) p->fold = true;
    else if (!wrpo__rx_take(p, "?:") && wrpo__rx_sees(p, "?")) wrpo__rx_fail(p, "this kind of group");
    wrpo__rx_part part = wrpo__rx_alternatives(p);
    if (!wrpo__rx_take(p, ")")) wrpo__rx_fail(p, "a group without its end");
    p->fold = fold;
    if (wrpo__rx_take(p, "?")) part = wrpo__rx_either(p, part, wrpo__rx_node_new(p, WRPO__RX_JOIN));
    if (wrpo__rx_sees(p, "?*+{")) wrpo__rx_fail(p, "this repetition of a group");
    return part;
}
static wrpo__rx_part wrpo__rx_item(wrpo__rx_parser *p) {
    bool negative = wrpo__rx_take(p, "(?!"), ahead = negative || wrpo__rx_take(p, "(?=");
    if (!ahead && wrpo__rx_take(p, "(")) return wrpo__rx_group(p);
    wrpo__rx_part part = wrpo__rx_node_new(p, ahead ? WRPO__RX_AHEAD : WRPO__RX_SET);
    wrpo__rx_node *x = &p->nodes[part.first];
    if (ahead && wrpo__rx_sees(p, "(|)")) wrpo__rx_fail(p, "a lookahead for more than one character");
    x->set = wrpo__rx_atom(p);
    x->negative = negative;
    if (ahead) {
        if (!wrpo__rx_take(p, ")")) wrpo__rx_fail(p, "a lookahead for more than one character");
        return part;
    }
    if (wrpo__rx_take(p, "{")) {
        int64_t min = wrpo__rx_number(p, 10, p->n), max = min;
        if (wrpo__rx_take(p, ",")) max = wrpo__rx_number(p, 10, p->n);
        if (max < 0 && min >= 0) max = INT64_MAX;
        x->min = WRPO__MAX(min, 0), x->max = max;
        if (max < x->min || !wrpo__rx_take(p, "}")) wrpo__rx_fail(p, "this repetition");
    } else if (wrpo__rx_sees(p, "?*+")) {
        char c = p->s[p->i++];
        x->min = c == '+', x->max = c == '?' ? 1 : INT64_MAX;
        x->possessive = wrpo__rx_take(p, "+");
    }
    if (wrpo__rx_sees(p, "?*+{")) wrpo__rx_fail(p, "this repetition");
    part.shortest = x->min;
    return part;
}
static wrpo__rx_part wrpo__rx_alternatives(wrpo__rx_parser *p) {
    wrpo__rx_part all = {-1, -1, 0};
    if (++p->depth > 400) wrpo__rx_fail(p, "so many alternatives, or so deep a nest of groups");
    while (p->i < p->n && !wrpo__rx_sees(p, "|)")) {
        wrpo__rx_part part = wrpo__rx_item(p);
        if (all.first < 0) all.first = part.first;
        else p->nodes[all.last].next = part.first;
        all.last = part.last, all.shortest += part.shortest;
    }
    if (all.first < 0) all = wrpo__rx_node_new(p, WRPO__RX_JOIN);
    if (wrpo__rx_take(p, "|")) all = wrpo__rx_either(p, all, wrpo__rx_alternatives(p));
    p->depth--;
    return all;
}
static const wrpo__regex *wrpo__load_regex(const wrpo__loader *in, const wrpo_json *v, const char *s, size_t n,
                                           bool literal) {
    wrpo__rx_parser p = {.in = in, .json = v, .s = s, .n = n, .literal = literal};
    if (n > 4096) wrpo__rx_fail(&p, "a pattern this long");
    wrpo__rx_part all = wrpo__rx_alternatives(&p);
    if (p.i < n) wrpo__rx_fail(&p, "this bracket");
    if (all.shortest == 0) wrpo__rx_fail(&p, "a pattern that matches the empty text");
    int32_t end = wrpo__rx_node_new(&p, WRPO__RX_END).first;
    p.nodes[all.last].next = end;
    wrpo__regex *rx = WRPO__NEW(in->tok->arena, wrpo__regex);
    rx->nodes = p.nodes, rx->first = all.first;
    return rx;
}

/* ---- load: components ---- */
static void wrpo__read_text(const wrpo__loader *in, const wrpo_json *v, const char *key, wrpo__edit *e) {
    v = wrpo__load_need(in, v, key, WRPO_JSON_STRING);
    e->text = wrpo__strndup(in->tok->arena, v->text, v->size);
    e->size = v->size;
}
static void wrpo__read_char(const wrpo__loader *in, const wrpo_json *v, const char *key, wrpo__edit *e) {
    size_t one = 0;
    wrpo__read_text(in, v, key, e);
    if (e->size) wrpo__utf8_get(e->text, e->size, &one);
    if (!one || one != e->size)
        wrpo__json_refuse(in->ctx, in->name, wrpo__json_get(v, key), NULL, "one character");
}
static void wrpo__read_pattern(const wrpo__loader *in, const wrpo_json *v, wrpo__edit *e) {
    const wrpo_json *pattern = wrpo__load_need(in, v, "pattern", WRPO_JSON_OBJECT);
    bool literal = wrpo__json_get(pattern, "String");
    v = wrpo__load_need(in, pattern, literal ? "String" : "Regex", WRPO_JSON_STRING);
    e->regex = wrpo__load_regex(in, v, v->text, v->size, literal);
}
/* The settings of an edit, where it is all of a component. */
static void wrpo__read_edit(const wrpo__loader *in, const wrpo_json *v, wrpo__edit e) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const wrpo_json *behavior;
    int b = 0;
    switch (e.kind) {
    case WRPO__EDIT_NFC: wrpo__unicode_load_nfc(&in->tok->unicode); break;
    case WRPO__EDIT_UNBYTES:
        stbds_arrput(*in->edits, e);
        e.kind = WRPO__EDIT_REPAIR;
        break;
    case WRPO__EDIT_PREPEND: wrpo__read_text(in, v, "prepend", &e); break;
    case WRPO__EDIT_REPLACE:
        wrpo__read_pattern(in, v, &e);
        wrpo__read_text(in, v, "content", &e);
        break;
    case WRPO__EDIT_SPLIT:
        behavior = wrpo__load_need(in, v, "behavior", WRPO_JSON_STRING);
        while (b < 5 && !wrpo__json_is(behavior, names[b])) b++;
        if (b == 5) wrpo__load_refuse(in, "Split behavior", behavior);
        e.behavior = (wrpo__behavior)b;
        e.invert = wrpo__load_flag(in, v, "invert", false);
        wrpo__read_pattern(in, v, &e);
        break;
    case WRPO__EDIT_STRIP:
        wrpo__read_char(in, v, "content", &e);
        e.start = wrpo__load_count(in, wrpo__load_need(in, v, "start", WRPO_JSON_NUMBER), INT32_MAX);
        e.stop = wrpo__load_count(in, wrpo__load_need(in, v, "stop", WRPO_JSON_NUMBER), INT32_MAX);
        break;
    case WRPO__EDIT_METASPACE:
        wrpo__read_char(in, v, "replacement", &e);
        e.start = !wrpo__json_is(wrpo__json_get(v, "prepend_scheme"), "never");
        break;
    default: break;
    }
    stbds_arrput(*in->edits, e);
}
static void wrpo__read_digits(const wrpo__loader *in, const wrpo_json *v, wrpo__edit e) {
    static const char numeric[] = "[\\p{N}\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}]";  /* Rust's, of Unicode 17 */
    e.behavior = wrpo__load_flag(in, v, "individual_digits", false) ? WRPO__ISOLATED : WRPO__CONTIGUOUS;
    e.regex = wrpo__load_regex(in, v, numeric, sizeof numeric - 1, false);
    stbds_arrput(*in->edits, e);
}
static void wrpo__read_byte_level(const wrpo__loader *in, const wrpo_json *v, wrpo__edit e) {
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    wrpo__edit space = {.kind = WRPO__EDIT_PREPEND, .text = " ", .size = 1, .unless = true};
    wrpo__edit split = {.kind = WRPO__EDIT_SPLIT, .behavior = WRPO__ISOLATED};
    split.regex = wrpo__load_regex(in, v, gpt2, sizeof gpt2 - 1, false);
    if (wrpo__load_flag(in, v, "add_prefix_space", true)) stbds_arrput(*in->edits, space);
    if (wrpo__load_flag(in, v, "use_regex", true)) stbds_arrput(*in->edits, split);
    stbds_arrput(*in->edits, e);
}
/* Does a normalizer keep the number of characters? */
static bool wrpo__keeps_count(const wrpo__edit *e) {
    size_t one = 0;
    if (e->kind != WRPO__EDIT_REPLACE || !e->size) return e->kind == WRPO__EDIT_NFC;
    wrpo__utf8_get(e->text, e->size, &one);
    const wrpo__rx_node *x = e->regex->nodes;  /* one for one: a SET and the END */
    return one == e->size && stbds_arrlen(x) == 2 && x->kind == WRPO__RX_SET && x->min == 1 && x->max == 1;
}
static void wrpo__read_metaspace(const wrpo__loader *in, const wrpo_json *v, wrpo__edit e) {
    const wrpo_json *scheme = wrpo__load_maybe(in, v, "prepend_scheme", WRPO_JSON_STRING);
    bool never = wrpo__json_is(scheme, "never"), first = wrpo__json_is(scheme, "first");
    wrpo__read_char(in, v, "replacement", &e);
    if (scheme && !never && !first && !wrpo__json_is(scheme, "always")) wrpo__load_refuse(in, "prepend_scheme", scheme);
    if (!wrpo__load_flag(in, v, "add_prefix_space", true) && !never)
        wrpo__load_fail(in, v, "Metaspace: add_prefix_space false goes only with prepend_scheme \"never\"");
    /* "first" means the first of the original text, which is known if the normalizer keeps the number of characters */
    for (int64_t i = 1; i < in->tok->normalizer_end && first; i++)
        if (!wrpo__keeps_count(&in->tok->encoder[i]))
            wrpo__load_refuse(in, "after this normalizer, prepend_scheme", scheme);
    e.kind = WRPO__EDIT_REPLACE;  /* a space becomes the mark */
    e.regex = wrpo__load_regex(in, v, " ", 1, true);
    stbds_arrput(*in->edits, e);
    e.kind = WRPO__EDIT_PREPEND, e.unless = true, e.first = first;
    if (!never) stbds_arrput(*in->edits, e);
    e.kind = WRPO__EDIT_SPLIT, e.behavior = WRPO__MERGED_WITH_NEXT;
    e.regex = wrpo__load_regex(in, v, e.text, e.size, true);
    if (wrpo__load_flag(in, v, "split", true)) stbds_arrput(*in->edits, e);
}
/* The post-processor: only what a single text gets, ids before and after it. */
static void wrpo__read_template(const wrpo__loader *in, const wrpo_json *v, wrpo__edit e) {
    wrpo_tokenizer *tok = in->tok;
    int32_t **ids = &tok->prefix;
    const wrpo_json *wrong = NULL;
    (void)e;
    if (tok->has_template) wrpo__load_refuse(in, "more than one", wrpo__json_get(v, "type"));
    tok->has_template = true;
    for (const wrpo_json *k = wrpo__load_need(in, v, "single", WRPO_JSON_ARRAY)->child; k; k = k->next) {
        const wrpo_json *text = wrpo__load_maybe(in, k, "Sequence", WRPO_JSON_OBJECT);
        if (text) {
            if (ids == &tok->suffix || !wrpo__json_is(wrpo__json_get(text, "id"), "A")) wrong = k;
            ids = &tok->suffix;
            continue;
        }
        const wrpo_json *tokens = wrpo__load_need(in, v, "special_tokens", WRPO_JSON_OBJECT);
        const wrpo_json *token = wrpo__load_need(in, k, "SpecialToken", WRPO_JSON_OBJECT);
        token = wrpo__load_need(in, tokens, wrpo__load_need(in, token, "id", WRPO_JSON_STRING)->text, WRPO_JSON_OBJECT);
        for (const wrpo_json *i = wrpo__load_need(in, token, "ids", WRPO_JSON_ARRAY)->child; i; i = i->next)
            stbds_arrput(*ids, wrpo__load_count(in, i, tok->size - 1));
    }
    if (wrong || ids == &tok->prefix)
        wrpo__json_fail(in->ctx, WRPO_E_UNSUPPORTED, in->name, wrong ? wrong : v, "TemplateProcessing: want text A "
                        "once in \"single\", found %s", wrong ? "another sequence" : "none");
}

typedef struct wrpo__component {
    const char *list, *type;
    wrpo__edit_kind kind;
    void (*read)(const wrpo__loader *in, const wrpo_json *v, wrpo__edit e);  /* adds e, of this kind, or other edits */
} wrpo__component;
static const wrpo__component wrpo__components[] = {
    {"normalizer", "NFC", WRPO__EDIT_NFC, wrpo__read_edit},
    {"normalizer", "Prepend", WRPO__EDIT_PREPEND, wrpo__read_edit},
    {"normalizer", "Replace", WRPO__EDIT_REPLACE, wrpo__read_edit},
    {"pre_tokenizer", "Split", WRPO__EDIT_SPLIT, wrpo__read_edit},
    {"pre_tokenizer", "Digits", WRPO__EDIT_SPLIT, wrpo__read_digits},
    {"pre_tokenizer", "ByteLevel", WRPO__EDIT_BYTES, wrpo__read_byte_level},
    {"pre_tokenizer", "Metaspace", WRPO__EDIT_NONE, wrpo__read_metaspace},
    {"post_processor", "ByteLevel", WRPO__EDIT_NONE, NULL},  /* moves offsets only */
    {"post_processor", "TemplateProcessing", WRPO__EDIT_NONE, wrpo__read_template},
    {"decoder", "ByteLevel", WRPO__EDIT_UNBYTES, wrpo__read_edit},
    {"decoder", "ByteFallback", WRPO__EDIT_BYTE_FALLBACK, wrpo__read_edit},
    {"decoder", "Fuse", WRPO__EDIT_FUSE, wrpo__read_edit},
    {"decoder", "Replace", WRPO__EDIT_REPLACE, wrpo__read_edit},
    {"decoder", "Strip", WRPO__EDIT_STRIP, wrpo__read_edit},
    {"decoder", "Metaspace", WRPO__EDIT_METASPACE, wrpo__read_edit},
};
/* A component, or a Sequence of them, which may nest. members: the key of the Sequence's members. */
static void wrpo__load_component(const wrpo__loader *in, const wrpo_json *v, const char *list, const char *members) {
    if (!v) return;
    const wrpo_json *type = wrpo__load_need(in, v, "type", WRPO_JSON_STRING);
    if (wrpo__json_is(type, "Sequence")) {
        v = wrpo__load_need(in, v, members, WRPO_JSON_ARRAY);
        for (const wrpo_json *k = v->child; k; k = k->next) wrpo__load_component(in, k, list, members);
        return;
    }
    for (int64_t i = 0; i < WRPO__COUNT(wrpo__components); i++) {
        const wrpo__component *c = &wrpo__components[i];
        if (strcmp(c->list, list) != 0 || !wrpo__json_is(type, c->type)) continue;
        if (c->read) c->read(in, v, (wrpo__edit){.kind = c->kind});
        return;
    }
    wrpo__load_refuse(in, list, type);
}

/* ---- load: the model ---- */
static void wrpo__new_token(wrpo_tokenizer *tok, int32_t id, const char *text, size_t size, uint32_t flags) {
    tok->tokens[id] = (wrpo__token){wrpo__strndup(tok->arena, text, size), (int32_t)size, flags};
    tok->slots[wrpo__slot(tok, text, size)] = id;
}
static void wrpo__load_vocab(const wrpo__loader *in, const wrpo_json *vocab, int64_t added) {
    wrpo_tokenizer *tok = in->tok;
    size_t slots = 64;
    char text[8];
    for (const wrpo_json *v = vocab->child; v; v = v->next)
        tok->size = WRPO__MAX(tok->size, wrpo__load_count(in, v, WRPO__MAX_ID - 1) + 1);
    while (slots < 2 * (size_t)(vocab->count + added)) slots *= 2;
    tok->mask = slots - 1;
    tok->slots = memset(wrpo__raw(tok->arena, slots, sizeof *tok->slots), 0xFF, slots * sizeof *tok->slots);
    tok->tokens = wrpo__alloc(tok->arena, (size_t)(tok->size + added) + 1, sizeof *tok->tokens);
    for (const wrpo_json *v = vocab->child; v; v = v->next) {
        int32_t id = (int32_t)v->integer;
        if (tok->tokens[id].text) wrpo__load_fail(in, v, "vocab: the id %d stands twice", (int)id);
        wrpo__new_token(tok, id, v->key, v->key_size, WRPO__TOKEN_MODEL);
    }
    for (uint32_t c = 0; c < WRPO__SMALL_CHARS; c++) tok->small[c] = wrpo__model_id(tok, text, wrpo__utf8_put(text, c));
    for (int k = 0; k < 256; k++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)k);
        tok->bytes[k] = wrpo__model_id(tok, text, 6);
    }
}
static void wrpo__load_merges(const wrpo__loader *in, const wrpo_json *merges) {
    wrpo_tokenizer *tok = in->tok;
    wrpo__text text = {.arena = tok->scratch};
    wrpo__shown shown;
    size_t slots = 64;
    int32_t rank = 0;
    while (slots < 2 * (size_t)merges->count) slots *= 2;
    tok->merge_mask = slots - 1;
    tok->merges = wrpo__raw(tok->arena, slots, sizeof *tok->merges);
    for (size_t i = 0; i < slots; i++) tok->merges[i].rank = -1;
    for (const wrpo_json *v = merges->child; v; v = v->next) {  /* "left right" or ["left", "right"] */
        const bool string = v->kind == WRPO_JSON_STRING, array = v->kind == WRPO_JSON_ARRAY && v->count == 2;
        const char *space = string ? memchr(v->text, ' ', v->size) : NULL;
        const wrpo_json *a = array ? v->child : v, *b = array ? a->next : v;
        if (string && v->size >= 8 && memcmp(v->text, "#version", 8) == 0) continue;
        size_t left = space ? (size_t)(space - v->text) : a->size, skip = string ? left + 1 : 0;
        if (string && (!space || memchr(space + 1, ' ', v->size - skip)))
            wrpo__load_fail(in, v, "merge %d: want two tokens and one space between them, found %s", (int)rank,
                            wrpo__json_found(shown, v));
        if (a->kind != WRPO_JSON_STRING || b->kind != WRPO_JSON_STRING)
            wrpo__load_fail(in, v, "merge %d: want two strings, found %s", (int)rank, wrpo__json_found(shown, v));
        text.size = 0;
        wrpo__text_add(&text, a->text, left);
        wrpo__text_add(&text, b->text + skip, b->size - skip);
        const char *part[3] = {text.data, text.data + left, text.data};
        const size_t size[3] = {left, text.size - left, text.size};
        int32_t id[3];
        for (int k = 0; k < 3; k++) {
            id[k] = wrpo__model_id(tok, part[k], size[k]);
            if (id[k] < 0)
                wrpo__load_fail(in, v, "merge %d: its %s \"%s\" is not in the vocabulary", (int)rank,
                                k == 2 ? "result" : "part", wrpo__show(shown, part[k], size[k]));
        }
        wrpo__merge merge = {wrpo__pair(id[0], id[1]), rank++, id[2]};
        *wrpo__merge_slot(tok, id[0], id[1]) = merge;  /* of equal pairs the last counts */
        for (int64_t i = 1; tok->cut_at_mark && i < (int64_t)text.size; i++)
            tok->cut_at_mark = !wrpo__cut_at(text.data, (int64_t)text.size, i);
    }
}
static void wrpo__load_model(const wrpo__loader *in, const wrpo_json *model, int64_t added) {
    static const char *const refused[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
    wrpo_tokenizer *tok = in->tok;
    const wrpo_json *type = wrpo__load_maybe(in, model, "type", WRPO_JSON_STRING);  /* old files have none */
    if (type && !wrpo__json_is(type, "BPE")) wrpo__load_refuse(in, "model", type);
    for (int k = 0; k < 3; k++) {  /* unless 0 or empty */
        const wrpo_json *v = wrpo__load_maybe(in, model, refused[k], k ? WRPO_JSON_STRING : WRPO_JSON_NUMBER);
        if (v && (k ? v->size > 0 : v->number != 0)) wrpo__load_refuse(in, refused[k], v);
    }
    const wrpo_json *vocab = wrpo__load_need(in, model, "vocab", WRPO_JSON_OBJECT);
    const wrpo_json *merges = wrpo__load_need(in, model, "merges", WRPO_JSON_ARRAY);
    const wrpo_json *unk = wrpo__load_maybe(in, model, "unk_token", WRPO_JSON_STRING);
    tok->byte_fallback = wrpo__load_flag(in, model, "byte_fallback", false);
    tok->fuse_unk = wrpo__load_flag(in, model, "fuse_unk", false);
    tok->ignore_merges = wrpo__load_flag(in, model, "ignore_merges", false);
    wrpo__load_vocab(in, vocab, added);
    if (unk) {
        tok->unk_text = wrpo__strndup(tok->arena, unk->text, unk->size);
        tok->unk = wrpo__model_id(tok, unk->text, unk->size);
    }
    bool drops = !unk && !tok->byte_fallback;  /* characters without a token; see wrpo__bpe_cut */
    for (int k = 0; k < 256 && !unk; k++) drops = drops || tok->bytes[k] < 0;
    tok->cut_at_mark = !tok->ignore_merges && !drops && wrpo__model_id(tok, wrpo__mark_text, 3) >= 0;
    wrpo__load_merges(in, merges);
    tok->words = wrpo__alloc(tok->arena, WRPO__WORDS, sizeof *tok->words);
}

/* ---- load: added and special tokens ---- */
/* all: no flag may be absent. Otherwise an absent one is false, but an absent "normalized" is "not special". */
static uint32_t wrpo__load_flags(const wrpo__loader *in, const wrpo_json *v, uint32_t flags, bool all) {
    static const char *const keys[] = {"single_word", "lstrip", "rstrip", "special", "normalized"};
    for (int k = 0; k < 5; k++) {  /* in the order of the flags */
        if (all) wrpo__load_need(in, v, keys[k], WRPO_JSON_BOOL);
        bool otherwise = k == 4 && !(flags & WRPO__TOKEN_SPECIAL);
        if (wrpo__load_flag(in, v, keys[k], otherwise)) flags |= (uint32_t)WRPO__TOKEN_SINGLE_WORD << k;
    }
    return flags;
}
static void wrpo__add_token(const wrpo__loader *in, const wrpo_json *v, int32_t id, uint32_t flags) {
    wrpo_tokenizer *tok = in->tok;
    wrpo__work *w = in->work;
    wrpo__token *token = &tok->tokens[id];
    wrpo__added a = {token->text, token->size, id, 0};
    bool normalized = flags & WRPO__TOKEN_NORMALIZED;
    token->flags |= flags;
    if (normalized) {
        wrpo__begin_text(w, token->text, token->size);
        wrpo__edit_all(w, tok->encoder + 1, tok->normalizer_end - 1);
        a.size = (int32_t)w->n;
        a.text = wrpo__strndup(tok->arena, w->s, (size_t)w->n);
        /* the library decodes it to its normalized form, which it does not find among the special ones */
        bool same = a.size == token->size && memcmp(a.text, token->text, (size_t)a.size) == 0;
        if (!same) token->flags |= WRPO__TOKEN_RENAMED;
    }
    int32_t *at = &tok->heads[normalized][(unsigned char)a.text[0]];
    while (tok->added[*at].size > a.size) at = &tok->added[*at].next;
    for (const wrpo__added *b = &tok->added[*at]; a.size && b->size == a.size; b = &tok->added[b->next])
        if (memcmp(b->text, a.text, (size_t)a.size) == 0)
            wrpo__load_fail(in, v, "added token %d looks like added token %d", (int)id, (int)b->id);
    a.next = *at;
    if (a.size) *at = (int32_t)stbds_arrlen(tok->added);  /* else it normalizes to nothing: never found */
    stbds_arrput(tok->added, a);
}
/* added_tokens of tokenizer.json, then (again) added_tokens_decoder of tokenizer_config.json, whose keys are the ids:
   transformers adds what only it has. Where they differ, the library's answer depends on its version: refused. */
static void wrpo__load_added(wrpo__loader *in, const wrpo_json *list, bool again) {
    wrpo_tokenizer *tok = in->tok;
    for (const wrpo_json *v = list ? list->child : NULL; v; v = v->next) {
        const wrpo_json *content = wrpo__load_need(in, v, "content", WRPO_JSON_STRING);
        const wrpo_json *number = again ? v : wrpo__load_need(in, v, "id", WRPO_JSON_NUMBER);
        const char *found = again ? v->key : number->text;
        uint32_t flags = wrpo__load_flags(in, v, WRPO__TOKEN_ADDED, !again);
        wrpo__shown shown;
        char want[16];
        if (!content->size) continue;
        /* the library chooses the id: the model's, else the next one from the size of the vocabulary on */
        int32_t id = wrpo__token_id(tok, content->text, content->size);
        bool known = id >= 0;
        if (!known) id = (int32_t)in->next++;
        wrpo__token *token = &tok->tokens[id];
        snprintf(want, sizeof want, "%d", (int)id);
        wrpo__show(shown, content->text, content->size);
        if (strcmp(found, want) != 0)
            wrpo__load_fail(in, number, "added token \"%s\": want the id %s, %s, found %.40s", shown, want,
                            known ? "which the vocabulary gives it" : "the next one free", found);
        if (!known && token->text)
            wrpo__load_fail(in, v, "added token \"%s\": its id %s is another token's", shown, want);
        if (!known) wrpo__new_token(tok, id, content->text, content->size, 0);
        tok->size = WRPO__MAX(tok->size, id + 1);
        if (!(token->flags & WRPO__TOKEN_ADDED)) wrpo__add_token(in, v, id, flags);
        else if ((token->flags & ~(uint32_t)(WRPO__TOKEN_MODEL | WRPO__TOKEN_RENAMED)) != flags)
            wrpo__load_fail(in, v, "added token \"%s\" %s", shown,
                            again ? "has other flags in tokenizer.json" : "stands twice, with different flags");
    }
}

static const char *const wrpo__special_names[7] = {
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token",
};
/* What some tokenizer classes of transformers bring with them: special tokens, Llama and Gemma a post-processor too. */
typedef struct wrpo__class_defaults { const char *name, *special[7]; bool processor; } wrpo__class_defaults;
static const wrpo__class_defaults wrpo__tokenizer_classes[] = {
    {"LlamaTokenizer", {"<s>", "</s>", "<unk>"}, true},
    {"GemmaTokenizer", {"<bos>", "<eos>", "<unk>", "<pad>"}, true},
    {"GPT2Tokenizer", {"<|endoftext|>", "<|endoftext|>", "<|endoftext|>"}, false},
    {"Qwen2Tokenizer", {NULL, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"}, false},
};
/* A special token, a string or an object that holds it, becomes an added token, as in transformers. One that is not in
   the vocabulary does not: transformers would give it an id for which the model has no row. Its *id is -1, but
   templates use its text. Returns the text, or NULL: none. */
static const wrpo_json *wrpo__load_special(const wrpo__loader *in, const wrpo_json *v, int32_t *id) {
    const wrpo_json *text = v && v->kind == WRPO_JSON_OBJECT ? wrpo__json_get(v, "content") : v;
    uint32_t flags = WRPO__TOKEN_ADDED | WRPO__TOKEN_SPECIAL;
    *id = -1;
    if (!text || text->kind != WRPO_JSON_STRING) return NULL;
    *id = wrpo__token_id(in->tok, text->text, text->size);
    if (text != v) flags = wrpo__load_flags(in, v, flags, false);
    bool adds = *id >= 0 && text->size && !(in->tok->tokens[*id].flags & WRPO__TOKEN_ADDED);
    if (adds) wrpo__add_token(in, v, *id, flags);
    return text;
}
/* Special tokens by other names: any key that ends in _token, and the members of two lists. over: another file, whose
   keys go first. */
static void wrpo__load_unnamed(const wrpo__loader *in, const wrpo_json *file, const wrpo_json *over) {
    int32_t id;
    for (const wrpo_json *v = file ? file->child : NULL; v; v = v->next) {
        if (wrpo__json_get(over, v->key)) continue;
        if (wrpo__ends(v->key, "_token")) wrpo__load_special(in, v, &id);
        else if (!strcmp(v->key, "additional_special_tokens") || !strcmp(v->key, "extra_special_tokens"))
            for (const wrpo_json *k = v->child; k; k = k->next) wrpo__load_special(in, k, &id);
    }
}
/* The special tokens of tokenizer_config.json. Those of special_tokens_map.json go first if the config has no
   added_tokens_decoder; if it has one, that file is not read. Those of the tokenizer's class are for what is absent. */
static void wrpo__load_specials(wrpo__loader *in, const wrpo_json *map, const char *map_name) {
    static const char *const adds[] = {"add_bos_token", "add_eos_token"};
    wrpo_tokenizer *tok = in->tok;
    const char *const config_name = in->name;
    const wrpo_json *class_name = wrpo__json_get(tok->config, "tokenizer_class");
    const char *name = class_name && class_name->kind == WRPO_JSON_STRING ? class_name->text : "";
    const wrpo__class_defaults *class = NULL;
    int32_t ids[7];
    for (int64_t k = 0; k < WRPO__COUNT(wrpo__tokenizer_classes); k++) {
        size_t n = strlen(wrpo__tokenizer_classes[k].name);
        if (strncmp(name, wrpo__tokenizer_classes[k].name, n) != 0) continue;
        if (!name[n] || !strcmp(name + n, "Fast")) class = &wrpo__tokenizer_classes[k];
    }
    for (int i = 0; i < 7; i++) {
        const char *key = wrpo__special_names[i], *usual = class ? class->special[i] : NULL;
        const wrpo_json own = {.kind = WRPO_JSON_STRING, .text = usual, .size = usual ? strlen(usual) : 0};
        const wrpo_json *v = wrpo__json_get(map, key);
        in->name = v ? map_name : config_name;
        if (!v) v = wrpo__json_get(tok->config, key);
        if (!v && usual) v = &own;
        const wrpo_json *text = wrpo__load_special(in, v, &ids[i]);
        if (text) tok->special[i] = wrpo__strndup(tok->arena, text->text, text->size);
        else if (v && v->kind != WRPO_JSON_NULL) wrpo__json_want(in->ctx, in->name, v, WRPO_JSON_STRING, key);
    }
    tok->bos = ids[0], tok->eos = ids[1];
    in->name = map_name;
    wrpo__load_unnamed(in, map, NULL);
    in->name = config_name;
    wrpo__load_unnamed(in, tok->config, map);
    if (!class || !class->processor) return;
    /* transformers (4.x) gives these classes a post-processor of their own, whatever tokenizer.json says */
    tok->prefix = tok->suffix = NULL;
    for (int i = 0; i < 2; i++) {
        int32_t **list = i ? &tok->suffix : &tok->prefix;
        const wrpo_json *v = wrpo__json_get(tok->config, adds[i]);
        if (!wrpo__load_flag(in, tok->config, adds[i], i == 0)) continue;
        if (ids[i] < 0)
            wrpo__load_fail(in, v ? v : class_name, "%s is true%s, but no %s is in the vocabulary", adds[i],
                            v ? "" : ", as this class has it", wrpo__special_names[i]);
        stbds_arrput(*list, ids[i]);
    }
}

/* ---- load: chat templates, files ---- */
static void wrpo__set_template(wrpo_tokenizer *tok, int i, const char *text, size_t size) {
    tok->chat[i] = (wrpo__template){.text = wrpo__strndup(tok->arena, text, size), .size = size};
}
/* chat_template of the config: a string, or a list of {name, template}, of which two names count. */
static void wrpo__load_template(const wrpo__loader *in, const wrpo_json *v) {
    static const char *const names[] = {"default", "tool_use"};
    if (!v) return;
    for (const wrpo_json *k = v->kind == WRPO_JSON_ARRAY ? v->child : NULL; k; k = k->next)
        for (int i = 0; i < 2; i++) {
            if (!wrpo__json_is(wrpo__json_get(k, "name"), names[i])) continue;
            const wrpo_json *text = wrpo__load_need(in, k, "template", WRPO_JSON_STRING);
            wrpo__set_template(in->tok, i, text->text, text->size);
        }
    if (v->kind == WRPO_JSON_ARRAY) return;
    wrpo__json_want(in->ctx, in->name, v, WRPO_JSON_STRING, "chat_template");
    wrpo__set_template(in->tok, 0, v->text, v->size);
}
/* Templates in files of their own; if there is one, the config's do not count. */
static void wrpo__load_template_files(wrpo_tokenizer *tok) {
    static const char *const files[] = {"chat_template.jinja", "additional_chat_templates/tool_use.jinja"};
    bool found = false;
    for (int i = 0; i < 2; i++) {
        const char *path = wrpo__join(tok->arena, tok->dir, files[i]);
        size_t bad;
        if (!wrpo__exists(path)) continue;
        const wrpo__file *f = wrpo__open_file(tok->scratch, path);
        const char *text = (const char *)f->data;
        if (!wrpo__is_utf8(text, f->size, &bad))
            wrpo__fail(tok->ctx, WRPO_E_FORMAT, "%s: not UTF-8 at byte %zu", path, bad);
        if (!found) memset(tok->chat, 0, sizeof tok->chat);
        found = true;
        wrpo__set_template(tok, i, text, f->size);
    }
}
/* The JSON object in a file of the directory, in the arena; NULL if there is no such file. */
static const wrpo_json *wrpo__load_json(wrpo__loader *in, wrpo__arena *arena, const char *file) {
    const char *path = wrpo__join(in->tok->arena, in->tok->dir, file);
    if (!wrpo__exists(path)) return NULL;
    const wrpo__file *f = wrpo__open_file(in->tok->scratch, path);
    in->name = path;
    const wrpo_json *root = wrpo__json_parse(arena, path, 1, (const char *)f->data, f->size);
    return wrpo__json_want(in->ctx, path, root, WRPO_JSON_OBJECT, file);
}
static wrpo_tokenizer *wrpo__tokenizer_load(wrpo__arena *arena, const char *dir) {
    wrpo_tokenizer *tok = WRPO__NEW(arena, wrpo_tokenizer);
    tok->ctx = arena->ctx, tok->arena = arena;
    tok->dir = wrpo__strndup(arena, dir, strlen(dir));
    tok->scratch = wrpo__sub_arena(arena);
    double now = wrpo__now();
    tok->seed = wrpo__hash((uint64_t)(uintptr_t)arena, &now, sizeof now);  /* decides about speed, never about ids */
    wrpo__unicode_load_classes(arena, &tok->unicode);
    int16_t next = 0x100;
    memset(tok->char_byte, 0xFF, sizeof tok->char_byte);
    for (int16_t b = 0; b < 256; b++) {  /* printable Latin-1 is itself, the other bytes are U+0100 and up */
        tok->byte_char[b] = (b > 32 && b < 127) || (b > 160 && b != 173) ? b : next++;
        tok->char_byte[tok->byte_char[b]] = b;
    }
    wrpo__work work = {.tok = tok, .text.arena = tok->scratch, .spare.arena = tok->scratch};
    wrpo__loader in = {.tok = tok, .ctx = tok->ctx, .name = dir, .work = &work};

    tok->config = wrpo__load_json(&in, arena, "tokenizer_config.json");
    const char *config_name = in.name;
    const wrpo_json *again = NULL;
    if (tok->config) again = wrpo__load_maybe(&in, tok->config, "added_tokens_decoder", WRPO_JSON_OBJECT);
    const wrpo_json *root = wrpo__load_json(&in, tok->scratch, "tokenizer.json");
    if (!root) wrpo__fail(tok->ctx, WRPO_E_IO, "%s: want a tokenizer.json in this directory, found none", dir);
    const wrpo_json *version = wrpo__load_maybe(&in, root, "version", WRPO_JSON_STRING);
    if (version && !wrpo__json_is(version, "1.0")) wrpo__load_refuse(&in, "tokenizer.json version", version);
    /* truncation and padding are for batches of a fixed shape: transformers switches both off for a plain call */
    const wrpo_json *model = wrpo__load_need(&in, root, "model", WRPO_JSON_OBJECT);
    const wrpo_json *added = wrpo__load_maybe(&in, root, "added_tokens", WRPO_JSON_ARRAY);
    wrpo__load_model(&in, model, (added ? added->count : 0) + (again ? again->count : 0));
    tok->has_decoder = wrpo__present(root, "decoder");
    in.edits = &tok->encoder;
    stbds_arrput(tok->encoder, ((wrpo__edit){.kind = WRPO__EDIT_ADDED, .start = 0}));
    wrpo__load_component(&in, wrpo__present(root, "normalizer"), "normalizer", "normalizers");
    tok->normalizer_end = stbds_arrlen(tok->encoder);
    stbds_arrput(tok->encoder, ((wrpo__edit){.kind = WRPO__EDIT_ADDED, .start = 1}));
    wrpo__load_component(&in, wrpo__present(root, "pre_tokenizer"), "pre_tokenizer", "pretokenizers");
    in.edits = &tok->decoder;
    wrpo__load_component(&in, wrpo__present(root, "decoder"), "decoder", "decoders");
    stbds_arrput(tok->added, ((wrpo__added){"", 0, -1, 0}));
    in.next = wrpo__json_get(model, "vocab")->count;
    wrpo__load_added(&in, added, false);
    wrpo__load_component(&in, wrpo__present(root, "post_processor"), "post_processor", "processors");

    const wrpo_json *map = again ? NULL : wrpo__load_json(&in, tok->scratch, "special_tokens_map.json");
    const char *map_name = in.name;
    in.name = config_name;
    wrpo__load_added(&in, again, true);
    wrpo__load_specials(&in, map, map_name);
    wrpo__load_template(&in, wrpo__present(tok->config, "chat_template"));
    wrpo__load_template_files(tok);
    wrpo__arena_clear(tok->scratch);
    return tok;
}

/* ---- the public face ---- */
WRPO_API wrpo_result wrpo_tokenizer_load(wrpo_ctx *ctx, const char *dir, wrpo_tokenizer **out) {
    *out = NULL;
    WRPO__CALL(ctx, wrpo__arena_new(ctx), false, *out = wrpo__tokenizer_load(wrpo__current, dir));
    return wrpo__end(&wrpo__entry);
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
    *ids = NULL, *count = 0;
    WRPO__CALL(tok->ctx, wrpo__arena_new(tok->ctx), true, *ids = wrpo__encode_new(tok, text, size, flags, count));
    return wrpo__end(&wrpo__entry);
}
static char *wrpo__decode_new(wrpo_tokenizer *tok, const int32_t *ids, int64_t count, bool skip_special, size_t *size) {
    wrpo__text out = {.arena = wrpo__current};
    wrpo__decode(tok, ids, count, skip_special, &out);
    *size = out.size;
    return wrpo__handout(tok->ctx, out.data, out.size);
}
WRPO_API wrpo_result wrpo_tokenizer_decode(wrpo_tokenizer *tok, const int32_t *ids, int64_t count, bool skip_special,
                                           char **text, size_t *size) {
    *text = NULL, *size = 0;
    WRPO__CALL(tok->ctx, wrpo__arena_new(tok->ctx), true,
               *text = wrpo__decode_new(tok, ids, count, skip_special, size));
    return wrpo__end(&wrpo__entry);
}

/* --------------------------------------------------------------------------------------------- >>chat
   Chat templates: an interpreter for the Jinja that published templates are written in.

   The environment is the one transformers renders with: sandboxed, trim_blocks, lstrip_blocks, one final
   newline dropped, `break` and `continue`, `{% generation %}`, tojson without HTML escapes, raise_exception
   and strftime_now. What a template prints is what Python prints; what Python refuses is WRPO_E_FORMAT with
   the template's line; what this interpreter does not know is WRPO_E_UNSUPPORTED by name, never a guess:
   inheritance, imports, call, filter, with and raw blocks, recursive loops, varargs, chains of comparisons,
   powers, format strings, escaping, and the filters, tests and methods that stand in no row of wrpo__jdefs.
   One difference is known and not refused: a name that an inner block reads before the block around it sets
   it for the first time. Jinja decides when it compiles that this name is the outer block's, and finds it
   undefined; here it is looked up as it stands then, a variable of the caller's (bos_token, tools) included.
   Text -> tree (once per tokenizer) -> output (per rendering). Names: jv a value, jnode a node of the tree. */

/* A template is a stranger's program: it is given this much and no more. */
enum {
    WRPO__J_MAX_NESTING = 200,       /* of expressions and blocks in its text */
    WRPO__J_MAX_DEPTH = 1000,        /* of evaluation: nesting times recursion */
    WRPO__J_MAX_STEPS = 20000000,    /* nodes evaluated, elements compared */
    WRPO__J_MAX_BYTES = 1 << 28,     /* of values and text made */
    WRPO__J_MAX_RANGE = 100000       /* as Jinja's sandbox */
};

/* ---- values: namespaces excepted, immutable once made; in the arena of the rendering (constants: of the template) ---- */
typedef enum wrpo__jkind {
    WRPO__J_UNDEFINED, WRPO__J_NONE, WRPO__J_BOOL, WRPO__J_INT, WRPO__J_FLOAT, WRPO__J_STR,
    WRPO__J_LIST, WRPO__J_TUPLE, WRPO__J_RANGE, WRPO__J_VIEW, WRPO__J_ITER,   /* these five have items[count] */
    WRPO__J_DICT, WRPO__J_NAMESPACE, /* keys[count], items[count], in order of insertion; a NAMESPACE is also a scope of variables */
    WRPO__J_FUNCTION, WRPO__J_MACRO, WRPO__J_LOOP
} wrpo__jkind;
typedef struct wrpo__jval wrpo__jval;
typedef const wrpo__jval *wrpo__jv;
typedef struct wrpo__jnode wrpo__jnode;
typedef struct wrpo__jloop wrpo__jloop;
typedef struct wrpo__jdef wrpo__jdef;
struct wrpo__jval {
    wrpo__jkind kind;
    bool safe;                       /* STR: marked so by the filter; only what does not care takes it */
    bool *spent;                     /* ITER: read already; a generator runs once */
    int64_t i;                       /* BOOL, INT */
    double f;                        /* FLOAT */
    const char *s; size_t n;         /* STR: bytes; UNDEFINED: what is; INT: its digits if beyond 64 bits */
    wrpo__jv *items, *keys; int64_t count;
    const wrpo__jdef *def; wrpo__jv self;              /* FUNCTION: and the value whose method it is */
    const wrpo__jnode *node;         /* MACRO */
    wrpo__jval *scope;               /* MACRO: where it was defined; NAMESPACE: the scope around it */
    wrpo__jloop *loop;               /* LOOP */
};
typedef struct wrpo__jinja {         /* one compilation or one rendering */
    wrpo_ctx *ctx; wrpo__arena *arena;
    wrpo_tokenizer *tok;             /* whose template this is: knows the classes of characters */
    int line, depth; int64_t steps;
    size_t held;                     /* by the context when this began */
    time_t now;                      /* of strftime_now */
} wrpo__jinja;
typedef struct wrpo__jcall {         /* of a filter, test, method or global function */
    const wrpo__jdef *def;
    int op;                          /* def->op: several names share one function */
    wrpo__jv self;                   /* the value before the bar, `is` or the dot */
    wrpo__jv a[4];                   /* the arguments in the order of the signature; NULL where left out */
    wrpo__jv named;                  /* DICT: those given by name */
} wrpo__jcall;
struct wrpo__jdef {
    const char *name, *where;        /* f filter, t test, g global; method of: s str, d dict, l list; m: strings marked safe are welcome */
    const char *signature;           /* "old new count=": '=' marks the optional; NULL: any names */
    wrpo__jv (*fn)(wrpo__jinja *J, const wrpo__jcall *c);
    int op;
};
static const wrpo__jval wrpo__jnone = {.kind = WRPO__J_NONE}, wrpo__jtrue = {.kind = WRPO__J_BOOL, .i = 1}, wrpo__jfalse = {.kind = WRPO__J_BOOL};
static const wrpo__jval wrpo__jempty = {.kind = WRPO__J_STR, .s = ""}, wrpo__jno_names = {.kind = WRPO__J_DICT};

_Noreturn WRPO__PRINTF(3, 4) static void wrpo__jfail(wrpo__jinja *J, wrpo_result code, const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    wrpo__fail_at(J->ctx, code, J->line, 0, "chat template, line %d: %s%s", J->line, text, code == WRPO_E_UNSUPPORTED ? " is not supported" : "");
}
#define WRPO__J_TEXT_OF(v) (int)WRPO__MIN((v)->n, 60), (v)->s   /* for "%.*s" */
static void wrpo__jspend(wrpo__jinja *J, int64_t steps) {   /* called wherever a template can make something run or grow */
    J->steps += steps;
    if (J->steps > WRPO__J_MAX_STEPS) wrpo__jfail(J, WRPO_E_FORMAT, "the template runs too long: more than %d steps", (int)WRPO__J_MAX_STEPS);
    if (J->ctx->bytes > J->held + WRPO__J_MAX_BYTES)
        wrpo__jfail(J, WRPO_E_FORMAT, "the template makes too much text: more than %d bytes", (int)WRPO__J_MAX_BYTES);
}
static void wrpo__jspend_bytes(wrpo__jinja *J, size_t n) { wrpo__jspend(J, (int64_t)(n >> 5)); }   /* for a pass over n bytes */
static void wrpo__jenter(wrpo__jinja *J) {
    if (++J->depth > WRPO__J_MAX_DEPTH) wrpo__jfail(J, WRPO_E_FORMAT, "nested too deeply: more than %d levels", (int)WRPO__J_MAX_DEPTH);
}
static void wrpo__jput(wrpo__jinja *J, wrpo__text *t, const char *s, size_t n) {
    wrpo__jspend_bytes(J, n);
    wrpo__text_add(t, s, n);
}
static void wrpo__jputs(wrpo__jinja *J, wrpo__text *t, const char *s) { wrpo__jput(J, t, s, strlen(s)); }

static wrpo__jval *wrpo__jnew(wrpo__jinja *J, wrpo__jkind kind) {
    wrpo__jval *v = WRPO__NEW(J->arena, wrpo__jval);
    wrpo__jspend(J, 0);
    v->kind = kind;
    if (kind == WRPO__J_ITER) v->spent = WRPO__NEW(J->arena, bool);
    return v;
}
static wrpo__jv wrpo__jbool(bool b) { return b ? &wrpo__jtrue : &wrpo__jfalse; }
static wrpo__jv wrpo__jint(wrpo__jinja *J, int64_t i) { wrpo__jval *v = wrpo__jnew(J, WRPO__J_INT); v->i = i; return v; }
static wrpo__jv wrpo__jfloat(wrpo__jinja *J, double f) { wrpo__jval *v = wrpo__jnew(J, WRPO__J_FLOAT); v->f = f; return v; }
static wrpo__jv wrpo__jbytes(wrpo__jinja *J, const char *s, size_t n) {   /* shares the bytes */
    wrpo__jval *v = wrpo__jnew(J, WRPO__J_STR);
    v->s = n ? s : "", v->n = n;
    return v;
}
static wrpo__jv wrpo__jstring(wrpo__jinja *J, const char *s) { return wrpo__jbytes(J, s, strlen(s)); }
static wrpo__jv wrpo__jfinish(wrpo__jinja *J, const wrpo__text *t) { return wrpo__jbytes(J, t->data, t->size); }
static wrpo__jv wrpo__jundefined(wrpo__jinja *J, wrpo__jv what) {
    wrpo__jval *v = wrpo__jnew(J, WRPO__J_UNDEFINED);
    v->s = what->s, v->n = what->n;
    return v;
}
static wrpo__jv wrpo__jshare(wrpo__jinja *J, wrpo__jkind kind, wrpo__jv *items, int64_t count) {   /* items of another value */
    wrpo__jval *v = wrpo__jnew(J, kind);
    v->items = items, v->count = count;
    return v;
}
static void wrpo__jpush(wrpo__jinja *J, wrpo__jval *to, wrpo__jv key, wrpo__jv item) {   /* onto a value under construction; key NULL: no dict */
    if ((to->count & (to->count - 1)) == 0) {          /* full: it has room for a power of two */
        size_t count = (size_t)to->count, cap = count ? 2 * count : 1;
        wrpo__jv *items = wrpo__alloc(J->arena, cap, sizeof *items), *keys = key ? wrpo__alloc(J->arena, cap, sizeof *keys) : NULL;
        if (count) memcpy(items, to->items, count * sizeof *items);
        if (count && key) memcpy(keys, to->keys, count * sizeof *keys);
        to->items = items, to->keys = keys;
    }
    if (key) to->keys[to->count] = key;
    to->items[to->count++] = item;
}

static const char *wrpo__jtype(wrpo__jv v) {
    static const char *const names[] = {"undefined", "None", "bool", "int", "float", "str", "list", "tuple", "range", "dict view",
                                        "generator", "dict", "namespace", "function", "macro", "loop"};
    return names[v->kind];
}
static bool wrpo__jis_int(wrpo__jv v) { return v->kind == WRPO__J_BOOL || v->kind == WRPO__J_INT; }
static bool wrpo__jis_number(wrpo__jv v) { return wrpo__jis_int(v) || v->kind == WRPO__J_FLOAT; }
static bool wrpo__jis_list(wrpo__jv v) { return v->kind >= WRPO__J_LIST && v->kind <= WRPO__J_RANGE; }   /* has items by number */
static wrpo__jv wrpo__jneed_defined(wrpo__jinja *J, wrpo__jv v) {
    if (v->kind == WRPO__J_UNDEFINED) wrpo__jfail(J, WRPO_E_FORMAT, "\"%.*s\" is undefined", WRPO__J_TEXT_OF(v));
    return v;
}
static int64_t wrpo__jto_int(wrpo__jinja *J, wrpo__jv v) {
    if (!wrpo__jis_int(v)) wrpo__jfail(J, WRPO_E_FORMAT, "want an integer, found %s", wrpo__jtype(v));
    if (v->s) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "an integer beyond 64 bits: %.*s", WRPO__J_TEXT_OF(v));
    return v->i;
}
static double wrpo__jto_float(wrpo__jinja *J, wrpo__jv v) { return v->kind == WRPO__J_FLOAT ? v->f : (double)wrpo__jto_int(J, v); }
static wrpo__jv wrpo__jto_str(wrpo__jinja *J, wrpo__jv v) {   /* v, which must be a string */
    if (v->kind != WRPO__J_STR) wrpo__jfail(J, WRPO_E_FORMAT, "want a string, found %s", wrpo__jtype(v));
    return v;
}
static wrpo__jv wrpo__jplain(wrpo__jinja *J, wrpo__jv v) {   /* v, for what would have to escape or to mark its result */
    if (v->safe) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "more than printing or comparing a string marked safe");
    return v;
}
static bool wrpo__jtruth(wrpo__jv v) {
    if (v->kind <= WRPO__J_INT) return v->i != 0 || (v->kind == WRPO__J_INT && v->s);
    if (v->kind == WRPO__J_FLOAT) return v->f != 0;
    if (v->kind == WRPO__J_STR) return v->n > 0;
    return v->kind == WRPO__J_ITER || v->kind > WRPO__J_DICT || v->count > 0;
}
static bool wrpo__jsame(wrpo__jv a, wrpo__jv b) { return a->n == b->n && memcmp(a->s, b->s, a->n) == 0; }   /* the same bytes */
static bool wrpo__jnamed(wrpo__jv a, const char *b) { return a->n == strlen(b) && memcmp(a->s, b, a->n) == 0; }
static bool wrpo__jword(const char *list, wrpo__jv v) {   /* is it one of these words? */
    for (; *list; list += strcspn(list, " "), list += strspn(list, " "))
        if (v->n && v->n == strcspn(list, " ") && memcmp(list, v->s, v->n) == 0) return true;
    return false;
}

/* ---- equality and order, as Python has them; dicts, scopes ---- */
static wrpo__jv wrpo__jdict_get(wrpo__jinja *J, wrpo__jv d, wrpo__jv key);
static bool wrpo__jequal(wrpo__jinja *J, wrpo__jv a, wrpo__jv b) {
    wrpo__jspend(J, 1);
    if (wrpo__jis_number(a) && wrpo__jis_number(b)) {
        if (a->s || b->s) return a->s && b->s && wrpo__jsame(a, b);
        return wrpo__jis_int(a) && wrpo__jis_int(b) ? a->i == b->i : wrpo__jto_float(J, a) == wrpo__jto_float(J, b);
    }
    if (a == b) return true;
    if (a->kind != b->kind) return false;
    if (a->kind < WRPO__J_BOOL) return true;
    if (a->kind == WRPO__J_STR) { wrpo__jspend_bytes(J, WRPO__MIN(a->n, b->n)); return wrpo__jsame(a, b); }
    if (a->kind == WRPO__J_VIEW) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "a comparison of dict views");
    if (!wrpo__jis_list(a) && a->kind != WRPO__J_DICT) return false;
    bool same = a->count == b->count;
    wrpo__jenter(J);
    for (int64_t i = 0; same && i < a->count; i++) {
        wrpo__jv other = a->kind == WRPO__J_DICT ? wrpo__jdict_get(J, b, a->keys[i]) : b->items[i];
        same = other && wrpo__jequal(J, a->items[i], other);
    }
    J->depth--;
    return same;
}
static int wrpo__jcompare(wrpo__jinja *J, wrpo__jv a, wrpo__jv b) {   /* -1, 0, 1; 2 where one is NaN */
    wrpo__jspend(J, 1);
    wrpo__jneed_defined(J, a), wrpo__jneed_defined(J, b);
    if (wrpo__jis_int(a) && wrpo__jis_int(b)) {
        int64_t x = wrpo__jto_int(J, a), y = wrpo__jto_int(J, b);
        return (x > y) - (x < y);
    }
    if (wrpo__jis_number(a) && wrpo__jis_number(b)) {
        double x = wrpo__jto_float(J, a), y = wrpo__jto_float(J, b);
        return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
    }
    if (a->kind == b->kind && wrpo__jis_list(a)) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "the order of two %ss", wrpo__jtype(a));
    if (a->kind != WRPO__J_STR || b->kind != WRPO__J_STR) wrpo__jfail(J, WRPO_E_FORMAT, "%s and %s have no order", wrpo__jtype(a), wrpo__jtype(b));
    wrpo__jspend_bytes(J, WRPO__MIN(a->n, b->n));
    int r = memcmp(a->s, b->s, WRPO__MIN(a->n, b->n));   /* UTF-8 sorts as its code points do */
    return r ? (r > 0) - (r < 0) : (a->n > b->n) - (a->n < b->n);
}
static int64_t wrpo__jdict_find(wrpo__jinja *J, wrpo__jv d, wrpo__jv key) {   /* its place; -1: absent */
    if (key->kind > WRPO__J_STR) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "a key of type %s", wrpo__jtype(key));
    wrpo__jspend(J, d->count / 8);
    for (int64_t i = 0; i < d->count; i++) {
        wrpo__jv k = d->keys[i];
        if (k->kind == WRPO__J_STR && key->kind == WRPO__J_STR ? wrpo__jsame(k, key) : wrpo__jequal(J, k, key)) return i;
    }
    return -1;
}
static wrpo__jv wrpo__jdict_get(wrpo__jinja *J, wrpo__jv d, wrpo__jv key) {   /* NULL: absent */
    int64_t i = wrpo__jdict_find(J, d, key);
    return i < 0 ? NULL : d->items[i];
}
static bool wrpo__jdict_put(wrpo__jinja *J, wrpo__jval *d, wrpo__jv key, wrpo__jv value) {   /* false: in place of an older value */
    int64_t i = wrpo__jdict_find(J, d, key);
    if (i < 0) wrpo__jpush(J, d, key, value);
    else d->items[i] = value;
    return i < 0;
}
static wrpo__jval *wrpo__jscope(wrpo__jinja *J, wrpo__jval *around) {
    wrpo__jval *scope = wrpo__jnew(J, WRPO__J_NAMESPACE);
    scope->scope = around;
    return scope;
}

/* ---- text: code points, white space, case, numbers ---- */
static bool wrpo__jspace(int32_t c) {                  /* str.isspace */
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
           c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}
static size_t wrpo__jskip_space(const char *s, size_t n, size_t i) {
    for (size_t size; i < n && wrpo__jspace(wrpo__utf8_get(s + i, n - i, &size)); i += size) {}
    return i;
}
static size_t wrpo__jrstrip(const char *s, size_t from, size_t to) {
    for (size_t i, size; to > from; to = i) {
        i = (size_t)wrpo__before(s, (int64_t)to);
        if (!wrpo__jspace(wrpo__utf8_get(s + i, to - i, &size))) break;
    }
    return to;
}
static int64_t wrpo__jlength(wrpo__jinja *J, wrpo__jv v) {   /* in code points */
    int64_t length = 0;
    wrpo__jspend_bytes(J, v->n);
    for (size_t i = 0; i < v->n; i++) length += ((unsigned char)v->s[i] & 0xC0) != 0x80;
    return length;
}
static size_t wrpo__joffset(wrpo__jv v, int64_t index) {   /* the byte where code point `index` begins */
    size_t i = 0;
    for (; i < v->n; i++)
        if (((unsigned char)v->s[i] & 0xC0) != 0x80 && index-- == 0) break;
    return i;
}
static size_t wrpo__jfind(wrpo__jinja *J, wrpo__jv v, wrpo__jv sub, size_t from) {   /* SIZE_MAX: nowhere */
    if (sub->n == 0) return from;
    while (from < v->n && sub->n <= v->n - from) {
        const char *p = memchr(v->s + from, sub->s[0], v->n - from - sub->n + 1);
        size_t at = p ? (size_t)(p - v->s) : v->n;
        wrpo__jspend_bytes(J, (at - from) / 8 + sub->n / 8 + 32);
        if (p && memcmp(p, sub->s, sub->n) == 0) return at;
        from = at + 1;
    }
    return SIZE_MAX;
}
static int wrpo__jclass(wrpo__jinja *J, int32_t c) {   /* of a code point; see wrpo__class */
    if (!J->tok->unicode.kind) wrpo__unicode_load_classes(J->tok->arena, &J->tok->unicode);
    return c < 0 ? WRPO__OTHER : J->tok->unicode.kind[c] & 15;
}
/* One code point in upper or lower case: of ASCII, Latin-1, Latin Extended-A and Cyrillic. What has no case passes;
   of other letters that have one nothing is known here, and saying so beats a wrong letter. */
static int32_t wrpo__jcase(wrpo__jinja *J, int32_t c, bool upper) {
    static const int32_t pairs[][3] = {                /* capitals from, to, distance of the small ones; 1: they take turns */
        {'A', 'Z', 32}, {0xC0, 0xD6, 32}, {0xD8, 0xDE, 32}, {0x100, 0x12F, 1}, {0x132, 0x137, 1}, {0x139, 0x148, 1}, {0x14A, 0x177, 1},
        {0x178, 0x178, 0xFF - 0x178}, {0x179, 0x17E, 1}, {0x400, 0x40F, 80}, {0x410, 0x42F, 32}, {0x460, 0x481, 1}, {0x48A, 0x4BF, 1}};
    for (int64_t k = 0; k < WRPO__COUNT(pairs); k++) {
        int32_t by = pairs[k][2];
        bool capital = c >= pairs[k][0] && c <= pairs[k][1], small = by != 1 && c >= pairs[k][0] + by && c <= pairs[k][1] + by;
        if (capital && by == 1) return pairs[k][0] + (((c - pairs[k][0]) & ~1) | !upper);
        if (capital || small) return capital == upper ? c : capital ? c + by : c - by;
    }
    const int cased = 1 << WRPO__LU | 1 << WRPO__LL | 1 << WRPO__LT | 1 << WRPO__NL | 1 << WRPO__SW;
    if (c >= 128 && (cased >> wrpo__jclass(J, c) & 1 || c == 0xAA || c == 0xBA || c == 0x345))
        wrpo__jfail(J, WRPO_E_UNSUPPORTED, "upper or lower case of U+%04X", (unsigned)c);
    return c;
}
/* op: u upper, l lower, c first letter only, t every word (of letters), T Jinja's filter (words end at space and -({[<) */
static wrpo__jv wrpo__jrecase(wrpo__jinja *J, wrpo__jv v, int op) {
    wrpo__text t = {.arena = J->arena};
    bool start = true;
    for (size_t i = 0, size; i < v->n; i += size) {
        char out[4];
        int32_t c = wrpo__utf8_get(v->s + i, v->n - i, &size), to = wrpo__jcase(J, c, op == 'u' || (op != 'l' && start));
        wrpo__jput(J, &t, c < 0 ? v->s + i : out, c < 0 ? size : wrpo__utf8_put(out, (uint32_t)to));
        if (op == 't') start = wrpo__jcase(J, c, true) == wrpo__jcase(J, c, false);
        else start = op == 'T' && (wrpo__jspace(c) || (c > 0 && c < 128 && strchr("-({[<", c)));
    }
    return wrpo__jfinish(J, &t);
}
/* A whole decimal number as int() and float() read one, -12.5 with white space around: an INT or a FLOAT; NULL: it is none. */
static wrpo__jv wrpo__jread_number(wrpo__jinja *J, wrpo__jv v) {
    static const char digits[] = "0123456789";
    size_t begin = wrpo__jskip_space(v->s, v->n, 0), n = wrpo__jrstrip(v->s, begin, v->n) - begin;
    const char *text = wrpo__strndup(J->arena, v->s + begin, n), *s = text + (n && (*text == '-' || *text == '+'));
    size_t whole = strspn(s, digits), point = s[whole] == '.', part = point ? strspn(s + whole + 1, digits) : 0;
    if (s + whole + point + part != text + n || whole + part == 0) {   /* Python also reads 1e3, 1_000 and the digits of other scripts */
        bool maybe = whole || point || (unsigned char)*s >= 0x80 || wrpo__jword("inf nan infinity", wrpo__jstring(J, s));
        if (maybe) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "the number \"%.*s\"", WRPO__J_TEXT_OF(v));
        return NULL;
    }
    double f = wrpo__json_double(J->arena, s, whole + point + part);
    if (point) return wrpo__jfloat(J, *text == '-' ? -f : f);
    if (f >= 9e18) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "an integer beyond 64 bits: %.*s", WRPO__J_TEXT_OF(v));
    return wrpo__jint(J, strtoll(text, NULL, 10));
}

/* ---- printing: str(), repr(), json.dumps: one walk, two styles ---- */
typedef struct wrpo__jstyle { bool json; wrpo__jv item, key, indent; } wrpo__jstyle;   /* between items, behind a key; NULL: one line */
static void wrpo__jquote(wrpo__jinja *J, wrpo__text *t, wrpo__jv v, const wrpo__jstyle *style) {
    static const char marks[] = "\n\r\t\b\f", names[] = "nrtbf";
    bool json = style->json, apostrophe = !json && (!memchr(v->s, '\'', v->n) || memchr(v->s, '"', v->n));
    char quote = apostrophe ? '\'' : '"', e[16];
    if (!json) wrpo__jplain(J, v);
    wrpo__jput(J, t, &quote, 1);
    for (size_t i = 0, size; i < v->n; i += size) {
        int32_t c = wrpo__utf8_get(v->s + i, v->n - i, &size);
        int kind = !json && c >= 127 ? wrpo__jclass(J, c) : WRPO__LL;   /* str.isprintable: neither space nor control nor format */
        bool shown = c >= 32 && (json || (kind != WRPO__OTHER && kind != WRPO__SPACE && kind != WRPO__CW));
        const char *mark = c > 0 && c < 128 ? strchr(marks, c) : NULL;
        if (c == quote || c == '\\') snprintf(e, sizeof e, "\\%c", (int)c);
        else if (mark && (json || mark < marks + 3)) snprintf(e, sizeof e, "\\%c", names[mark - marks]);
        else if (c < 0 || shown) { wrpo__jput(J, t, v->s + i, size); continue; }
        else snprintf(e, sizeof e, json || (c >= 0x100 && c < 0x10000) ? "\\u%04x" : c < 0x100 ? "\\x%02x" : "\\U%08x", (unsigned)c);
        wrpo__jputs(J, t, e);
    }
    wrpo__jput(J, t, &quote, 1);
}
static void wrpo__jput_float(wrpo__text *t, double f, bool json) {   /* Python's repr: the shortest digits that read back as the same */
    char digits[24];
    int exponent, n = isfinite(f) ? wrpo__json_digits_of(f, digits, &exponent) : 0;
    if (isnan(f)) { wrpo__text_puts(t, json ? "NaN" : "nan"); return; }
    if (signbit(f)) wrpo__text_puts(t, "-");
    if (isinf(f)) wrpo__text_puts(t, json ? "Infinity" : "inf");
    else if (exponent < -4 || exponent >= 16)
        wrpo__text_printf(t, n > 1 ? "%c.%se%c%02d" : "%c%se%c%02d", digits[0], digits + 1, exponent < 0 ? '-' : '+', abs(exponent));
    else if (exponent < 0) wrpo__text_printf(t, "0.%.*s%s", -exponent - 1, "0000", digits);
    else if (n <= exponent + 1) wrpo__text_printf(t, "%s%.*s.0", digits, exponent + 1 - n, "0000000000000000");
    else wrpo__text_printf(t, "%.*s.%s", exponent + 1, digits, digits + exponent + 1);
}
static void wrpo__jnewline(wrpo__jinja *J, wrpo__text *t, const wrpo__jstyle *style, int level) {
    if (style->indent) wrpo__jputs(J, t, "\n");
    for (int k = 0; style->indent && k < level; k++) wrpo__jput(J, t, style->indent->s, style->indent->n);
}
static void wrpo__jwrite(wrpo__jinja *J, wrpo__text *t, wrpo__jv v, const wrpo__jstyle *style, int level) {
    static const char *const words[][2] = {{"Undefined", NULL}, {"None", "null"}, {"False", "false"}, {"True", "true"}};
    bool json = style->json, dict = v->kind == WRPO__J_DICT, tuple = v->kind == WRPO__J_TUPLE && !json;
    wrpo__jspend(J, 1);
    if (v->kind <= WRPO__J_BOOL && words[v->kind + (v->i != 0)][json]) wrpo__jputs(J, t, words[v->kind + (v->i != 0)][json]);
    else if (v->kind == WRPO__J_INT && v->s) wrpo__jput(J, t, v->s, v->n);
    else if (v->kind == WRPO__J_INT) wrpo__text_printf(t, "%lld", (long long)v->i);
    else if (v->kind == WRPO__J_FLOAT) wrpo__jput_float(t, v->f, json);
    else if (v->kind == WRPO__J_STR) wrpo__jquote(J, t, v, style);
    else if (v->kind == WRPO__J_LIST || v->kind == WRPO__J_TUPLE || dict) {
        wrpo__jenter(J);
        wrpo__jputs(J, t, dict ? "{" : tuple ? "(" : "[");
        for (int64_t i = 0; i < v->count; i++) {
            if (i) wrpo__jput(J, t, style->item->s, style->item->n);
            wrpo__jnewline(J, t, style, level + 1);
            if (dict && json && v->keys[i]->kind != WRPO__J_STR)
                wrpo__jfail(J, WRPO_E_UNSUPPORTED, "tojson of a key of type %s", wrpo__jtype(v->keys[i]));
            if (dict) wrpo__jwrite(J, t, v->keys[i], style, level + 1);
            if (dict) wrpo__jput(J, t, style->key->s, style->key->n);
            wrpo__jwrite(J, t, v->items[i], style, level + 1);
        }
        if (tuple && v->count == 1) wrpo__jputs(J, t, ",");
        if (v->count) wrpo__jnewline(J, t, style, level);
        wrpo__jputs(J, t, dict ? "}" : tuple ? ")" : "]");
        J->depth--;
    } else if (json) wrpo__jfail(J, WRPO_E_FORMAT, "a value of type %s has no JSON form", wrpo__jtype(v));
    else wrpo__jfail(J, WRPO_E_UNSUPPORTED, "printing a value of type %s", wrpo__jtype(v));
}
static void wrpo__jprint(wrpo__jinja *J, wrpo__text *t, wrpo__jv v) {   /* as str(v) */
    static const wrpo__jval item = {.kind = WRPO__J_STR, .s = ", ", .n = 2}, key = {.kind = WRPO__J_STR, .s = ": ", .n = 2};
    const wrpo__jstyle repr = {.item = &item, .key = &key};
    if (v->kind == WRPO__J_STR) wrpo__jput(J, t, v->s, v->n);
    else if (v->kind != WRPO__J_UNDEFINED) wrpo__jwrite(J, t, v, &repr, 0);
}
static wrpo__jv wrpo__jstr(wrpo__jinja *J, wrpo__jv v) {   /* str(v) */
    if (v->kind == WRPO__J_STR && !v->safe) return v;
    wrpo__text t = {.arena = J->arena};
    wrpo__jprint(J, &t, v);
    return wrpo__jfinish(J, &t);
}

/* ---- sequences, attributes, items ---- */
/* What a loop over v meets, as items[count]: characters, elements, keys. A generator is spent then. */
static wrpo__jv wrpo__jitems(wrpo__jinja *J, wrpo__jv v) {
    if (wrpo__jis_list(v) || v->kind == WRPO__J_VIEW) return v;
    if (v->kind == WRPO__J_DICT) return wrpo__jshare(J, WRPO__J_LIST, v->keys, v->count);
    if (v->kind == WRPO__J_ITER) {
        if (*v->spent) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "reading a generator a second time");
        *v->spent = true;
        return wrpo__jshare(J, WRPO__J_LIST, v->items, v->count);
    }
    if (v->kind != WRPO__J_STR && v->kind != WRPO__J_UNDEFINED) wrpo__jfail(J, WRPO_E_FORMAT, "%s is not iterable", wrpo__jtype(v));
    wrpo__jval *chars = wrpo__jnew(J, WRPO__J_LIST);
    for (size_t i = 0, size; v->kind == WRPO__J_STR && i < v->n; i += size) {
        wrpo__utf8_get(v->s + i, v->n - i, &size);
        wrpo__jpush(J, chars, NULL, wrpo__jbytes(J, v->s + i, size));
    }
    return chars;
}
/* v[start:stop:step]; each may be NULL or None. Of the steps 1 and, without bounds, -1. */
static wrpo__jv wrpo__jslice(wrpo__jinja *J, wrpo__jv v, wrpo__jv start, wrpo__jv stop, wrpo__jv step) {
    bool str = wrpo__jneed_defined(J, v)->kind == WRPO__J_STR, ends[2] = {start && start->kind != WRPO__J_NONE, stop && stop->kind != WRPO__J_NONE};
    int64_t by = step && step->kind != WRPO__J_NONE ? wrpo__jto_int(J, step) : 1;
    if (!str && !wrpo__jis_list(v)) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "a slice of %s", wrpo__jtype(v));
    if (by != 1 && (by != -1 || ends[0] || ends[1])) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "a slice with step %lld and bounds", (long long)by);
    if (by < 0) {
        wrpo__jval *out = wrpo__jnew(J, v->kind);
        wrpo__text t = {.arena = J->arena};
        wrpo__jv all = wrpo__jitems(J, v);
        for (int64_t i = all->count; i-- > 0;) {
            if (str) wrpo__jput(J, &t, all->items[i]->s, all->items[i]->n);
            else wrpo__jpush(J, out, NULL, all->items[i]);
        }
        return str ? wrpo__jfinish(J, &t) : out;
    }
    int64_t n = str ? wrpo__jlength(J, v) : v->count, from = ends[0] ? wrpo__jto_int(J, start) : 0, to = ends[1] ? wrpo__jto_int(J, stop) : n;
    from = from < -n ? 0 : from < 0 ? from + n : WRPO__MIN(from, n);
    to = WRPO__MAX(to < -n ? 0 : to < 0 ? to + n : WRPO__MIN(to, n), from);
    if (!str) return wrpo__jshare(J, v->kind, v->count ? v->items + from : NULL, to - from);
    size_t begin = wrpo__joffset(v, from);
    return wrpo__jbytes(J, v->s + begin, wrpo__joffset(v, to) - begin);
}
static bool wrpo__jcontains(wrpo__jinja *J, wrpo__jv v, wrpo__jv x) {   /* x in v */
    if (v->kind == WRPO__J_STR) return wrpo__jfind(J, v, wrpo__jto_str(J, x), 0) != SIZE_MAX;
    if (v->kind == WRPO__J_DICT) return wrpo__jdict_get(J, v, x) != NULL;
    v = wrpo__jitems(J, v);
    for (int64_t i = 0; i < v->count; i++)
        if (wrpo__jequal(J, v->items[i], x)) return true;
    return false;
}
static const wrpo__jdef *wrpo__jlookup(char where, wrpo__jv name);
static wrpo__jv wrpo__jloop_attr(wrpo__jinja *J, wrpo__jloop *loop, wrpo__jv name);
static wrpo__jv wrpo__jfunction(wrpo__jinja *J, const wrpo__jdef *def, wrpo__jv self) {   /* NULL: of no function */
    if (!def) return NULL;
    wrpo__jval *f = wrpo__jnew(J, WRPO__J_FUNCTION);
    f->def = def, f->self = self;
    return f;
}
/* v's own attribute: a method, as a value, or what a namespace or a loop has; NULL: none. */
static wrpo__jv wrpo__jown(wrpo__jinja *J, wrpo__jv v, wrpo__jv name) {
    /* Python has these too. The sandbox hides the ones that change a value. */
    static const char str[] = "casefold center count encode expandtabs find format format_map index isalnum isalpha isascii isdecimal isdigit "
        "isidentifier islower isnumeric isprintable isspace istitle isupper ljust maketrans partition rfind rindex rjust rpartition rsplit "
        "splitlines swapcase translate zfill", list[] = "append clear copy count extend index insert pop remove reverse sort";
    const char *const unknown[] = {str, list, "clear copy fromkeys pop popitem setdefault update"};
    int kind = v->kind == WRPO__J_STR ? 0 : v->kind == WRPO__J_LIST || v->kind == WRPO__J_TUPLE ? 1 : v->kind == WRPO__J_DICT ? 2 : -1;
    if (v->kind == WRPO__J_LOOP) return wrpo__jloop_attr(J, v->loop, name);
    if (v->kind == WRPO__J_NAMESPACE) return wrpo__jdict_get(J, v, name);
    if (kind < 0) return NULL;
    if (wrpo__jword(unknown[kind], name)) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "method \"%.*s\" of %s", WRPO__J_TEXT_OF(name), wrpo__jtype(v));
    return wrpo__jfunction(J, wrpo__jlookup("sld"[kind], name), v);
}
/* attr: v.key, Python's attribute, else the item; or v[key], the item, else for a string key the attribute. */
static wrpo__jv wrpo__jget(wrpo__jinja *J, wrpo__jv v, wrpo__jv key, bool attr) {
    wrpo__jv r = attr ? wrpo__jown(J, wrpo__jneed_defined(J, v), key) : NULL;
    if (!r && wrpo__jneed_defined(J, v)->kind == WRPO__J_DICT && key->kind <= WRPO__J_STR) r = wrpo__jdict_get(J, v, key);
    if (!attr && wrpo__jis_int(key) && (v->kind == WRPO__J_STR || wrpo__jis_list(v))) {
        int64_t n = v->kind == WRPO__J_STR ? wrpo__jlength(J, v) : v->count, i = wrpo__jto_int(J, key);
        if (i < 0) i += n;
        if (i >= 0 && i < n) return v->kind == WRPO__J_STR ? wrpo__jslice(J, v, wrpo__jint(J, i), wrpo__jint(J, i + 1), NULL) : v->items[i];
    }
    if (!r && !attr && key->kind == WRPO__J_STR) r = wrpo__jown(J, v, key);
    return r ? r : wrpo__jundefined(J, wrpo__jstr(J, key->kind <= WRPO__J_STR ? key : &wrpo__jnone));
}
/* "a.b" of v, as the filters' attribute= arguments say it: by item. */
static wrpo__jv wrpo__jpath(wrpo__jinja *J, wrpo__jv v, wrpo__jv path) {
    if (path->kind != WRPO__J_STR) return wrpo__jget(J, v, path, false);
    for (size_t i = 0, end; i <= path->n; i = end + 1) {
        for (end = i; end < path->n && path->s[end] != '.'; end++)
            if (strchr(",0123456789", path->s[end])) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "the attribute \"%.*s\"", WRPO__J_TEXT_OF(path));
        v = wrpo__jget(J, v, wrpo__jbytes(J, path->s + i, end - i), false);
    }
    return v;
}

/* ---- operators ---- */
static wrpo__jv wrpo__jrepeat(wrpo__jinja *J, wrpo__jv v, int64_t times) {
    wrpo__text t = {.arena = J->arena};
    for (; times > 0; times--) wrpo__jspend(J, 1), wrpo__jput(J, &t, v->s, v->n);
    return wrpo__jfinish(J, &t);
}
static wrpo__jv wrpo__jjoin2(wrpo__jinja *J, wrpo__jv a, wrpo__jv b) {   /* strings, lists or tuples, one after the other */
    wrpo__jval *both = wrpo__jnew(J, a->kind);
    wrpo__jspend(J, a->count + b->count + (int64_t)((a->n + b->n) >> 5));
    char *s = a->kind == WRPO__J_STR ? wrpo__alloc(J->arena, a->n + b->n + 1, 1) : NULL;
    if (s) memcpy(s, a->s, a->n), memcpy(s + a->n, b->s, b->n), both->s = s, both->n = a->n + b->n;
    for (int64_t i = 0; i < a->count; i++) wrpo__jpush(J, both, NULL, a->items[i]);
    for (int64_t i = 0; i < b->count; i++) wrpo__jpush(J, both, NULL, b->items[i]);
    return both;
}
static wrpo__jv wrpo__jarithmetic(wrpo__jinja *J, int op, wrpo__jv a, wrpo__jv b) {   /* op: + - * / % F (//) */
    bool joins = a->kind == WRPO__J_STR || a->kind == WRPO__J_LIST || a->kind == WRPO__J_TUPLE;
    if (op == '%' && a->kind == WRPO__J_STR) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "formatting by %%");
    wrpo__jneed_defined(J, wrpo__jplain(J, a)), wrpo__jneed_defined(J, wrpo__jplain(J, b));
    if (op == '+' && joins && a->kind == b->kind) return wrpo__jjoin2(J, a, b);
    if (op == '*' && a->kind == WRPO__J_STR && wrpo__jis_int(b)) return wrpo__jrepeat(J, a, wrpo__jto_int(J, b));
    if (op == '*' && (joins || wrpo__jis_int(a)) && !(wrpo__jis_number(a) && wrpo__jis_number(b)))
        wrpo__jfail(J, WRPO_E_UNSUPPORTED, "the product of %s and %s", wrpo__jtype(a), wrpo__jtype(b));
    if (!wrpo__jis_number(a) || !wrpo__jis_number(b))
        wrpo__jfail(J, WRPO_E_FORMAT, "'%s' cannot join %s and %s", op == 'F' ? "//" : (char[2]){(char)op, 0}, wrpo__jtype(a), wrpo__jtype(b));
    bool whole = wrpo__jis_int(a) && wrpo__jis_int(b), divides = op == '/' || op == '%' || op == 'F';
    double f = wrpo__jto_float(J, a), g = wrpo__jto_float(J, b);
    if (divides && g == 0) wrpo__jfail(J, WRPO_E_FORMAT, "division by zero");
    if (!whole && (op == '%' || op == 'F')) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "the remainder or the floor of a division of floats");
    const double limit = op == '*' ? 0x1p31 : op == '/' ? 0x1p53 : 0x1p62;   /* whole numbers up to it: neither overflow nor rounding */
    if (whole && (fabs(f) >= limit || fabs(g) >= limit)) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "arithmetic near 64 bits");
    if (!whole || op == '/') return wrpo__jfloat(J, op == '+' ? f + g : op == '-' ? f - g : op == '*' ? f * g : f / g);
    int64_t x = wrpo__jto_int(J, a), y = wrpo__jto_int(J, b);
    if (!divides) return wrpo__jint(J, op == '+' ? x + y : op == '-' ? x - y : x * y);
    int64_t rest = x % y + (x % y && (x % y < 0) != (y < 0) ? y : 0);   /* the remainder has the divisor's sign */
    return wrpo__jint(J, op == '%' ? rest : (x - rest) / y);
}
static bool wrpo__jrelation(wrpo__jinja *J, int op, wrpo__jv a, wrpo__jv b) {   /* op: = ! < l (<=) > g (>=) i (in) n (not in) */
    if (op == '=' || op == '!') return wrpo__jequal(J, a, b) == (op == '=');
    if (op == 'i' || op == 'n') return wrpo__jcontains(J, b, a) == (op == 'i');
    int r = wrpo__jcompare(J, a, b);
    return op == '<' ? r == -1 : op == 'l' ? r == -1 || r == 0 : op == '>' ? r == 1 : r == 1 || r == 0;
}

/* ---- filters, tests, methods, functions: each takes its bound call ---- */
static wrpo__jv wrpo__jinvoke(wrpo__jinja *J, char where, wrpo__jv name, wrpo__jv self, wrpo__jv args, wrpo__jv named);
static wrpo__jv wrpo__jgiven(const wrpo__jcall *c, int k) { return c->a[k] && c->a[k]->kind != WRPO__J_NONE ? c->a[k] : NULL; }
static bool wrpo__jflag(const wrpo__jcall *c, int k) { return c->a[k] && wrpo__jtruth(c->a[k]); }
static wrpo__jv wrpo__jf_strip(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: 1 left, 2 right, 3 both */
    wrpo__jv v = wrpo__jstr(J, c->self), chars = wrpo__jgiven(c, 0) ? wrpo__jto_str(J, c->a[0]) : NULL;
    size_t a = 0, b = v->n, size;
    if ((c->op & 1) && !chars) a = wrpo__jskip_space(v->s, b, 0);
    if ((c->op & 2) && !chars) b = wrpo__jrstrip(v->s, a, b);
    for (; (c->op & 1) && chars && a < b; a += size) {
        wrpo__utf8_get(v->s + a, b - a, &size);
        if (wrpo__jfind(J, chars, wrpo__jbytes(J, v->s + a, size), 0) == SIZE_MAX) break;
    }
    for (size_t i; (c->op & 2) && chars && a < b; b = i) {
        i = (size_t)wrpo__before(v->s, (int64_t)b);
        if (wrpo__jfind(J, chars, wrpo__jbytes(J, v->s + i, b - i), 0) == SIZE_MAX) break;
    }
    wrpo__jspend_bytes(J, v->n - (b - a));
    return wrpo__jbytes(J, v->s + a, b - a);
}
static wrpo__jv wrpo__jf_case(wrpo__jinja *J, const wrpo__jcall *c) { return wrpo__jrecase(J, wrpo__jstr(J, c->self), c->op); }
static wrpo__jv wrpo__jf_length(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv v = c->self;
    if (v->kind == WRPO__J_STR) return wrpo__jint(J, wrpo__jlength(J, v));
    bool counted = wrpo__jis_list(v) || v->kind == WRPO__J_VIEW || v->kind == WRPO__J_DICT || v->kind == WRPO__J_UNDEFINED;
    if (!counted) wrpo__jfail(J, WRPO_E_FORMAT, "%s has no length", wrpo__jtype(v));
    return wrpo__jint(J, v->count);
}
static wrpo__jv wrpo__jspaces(wrpo__jinja *J, wrpo__jv width) {   /* a string as it is, a number of spaces */
    return width->kind == WRPO__J_STR ? width : wrpo__jrepeat(J, wrpo__jstring(J, " "), wrpo__jto_int(J, width));
}
static wrpo__jv wrpo__jf_tojson(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jstyle style = {.json = true, .indent = wrpo__jgiven(c, 1) ? wrpo__jspaces(J, c->a[1]) : NULL};
    wrpo__text t = {.arena = J->arena};
    if (wrpo__jflag(c, 0) || wrpo__jflag(c, 3)) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "tojson with ensure_ascii or sort_keys");
    style.item = wrpo__jstring(J, style.indent ? "," : ", "), style.key = wrpo__jstring(J, ": ");
    if (wrpo__jgiven(c, 2)) {
        wrpo__jv separators = wrpo__jitems(J, c->a[2]);
        if (separators->count != 2) wrpo__jfail(J, WRPO_E_FORMAT, "tojson wants two separators, found %lld", (long long)separators->count);
        style.item = wrpo__jto_str(J, separators->items[0]), style.key = wrpo__jto_str(J, separators->items[1]);
    }
    wrpo__jwrite(J, &t, c->self, &style, 0);
    return wrpo__jfinish(J, &t);
}
static wrpo__jv wrpo__jf_string(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: marked safe? */
    wrpo__jval *v = wrpo__jnew(J, WRPO__J_STR);
    *v = c->self->kind == WRPO__J_STR ? *c->self : *wrpo__jstr(J, c->self);
    v->safe = v->safe || c->op;
    return v;
}
static wrpo__jv wrpo__jf_default(wrpo__jinja *J, const wrpo__jcall *c) {
    bool missing = c->self->kind == WRPO__J_UNDEFINED || (wrpo__jflag(c, 1) && !wrpo__jtruth(c->self));
    (void)J;
    return !missing ? c->self : c->a[0] ? c->a[0] : &wrpo__jempty;
}
static wrpo__jv wrpo__jf_end(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: f first, l last */
    if (c->self->kind == WRPO__J_ITER && c->op == 'l') wrpo__jfail(J, WRPO_E_FORMAT, "a generator has no last item");
    wrpo__jv v = wrpo__jitems(J, c->self);
    return v->count == 0 ? wrpo__jundefined(J, wrpo__jstring(J, c->def->name)) : v->items[c->op == 'f' ? 0 : v->count - 1];
}
static wrpo__jv wrpo__jf_list(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv v = wrpo__jitems(J, c->self);
    return wrpo__jshare(J, WRPO__J_LIST, v->items, v->count);
}
static wrpo__jv wrpo__jf_join(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: f filter, of any values; m method, of strings */
    bool filter = c->op == 'f';
    wrpo__jv v = wrpo__jitems(J, filter ? c->self : c->a[0]), between = !filter ? c->self : c->a[0] ? wrpo__jstr(J, c->a[0]) : &wrpo__jempty;
    wrpo__text t = {.arena = J->arena};
    for (int64_t i = 0; i < v->count; i++) {
        if (i) wrpo__jput(J, &t, between->s, between->n);
        wrpo__jprint(J, &t, filter ? v->items[i] : wrpo__jto_str(J, v->items[i]));
    }
    return wrpo__jfinish(J, &t);
}
static wrpo__jv wrpo__jf_replace(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: f filter, of any values; m method, of strings */
    bool filter = c->op == 'f';
    wrpo__jv v = wrpo__jstr(J, c->self), old = filter ? wrpo__jstr(J, c->a[0]) : wrpo__jto_str(J, c->a[0]);
    wrpo__jv with = filter ? wrpo__jstr(J, c->a[1]) : wrpo__jto_str(J, c->a[1]);
    int64_t left = (filter ? wrpo__jgiven(c, 2) : c->a[2]) ? wrpo__jto_int(J, c->a[2]) : -1;
    wrpo__text t = {.arena = J->arena};
    size_t i = 0;
    if (old->n == 0) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "replacing the empty string");
    for (size_t at; left-- != 0 && (at = wrpo__jfind(J, v, old, i)) != SIZE_MAX; i = at + old->n) {
        wrpo__jput(J, &t, v->s + i, at - i);
        wrpo__jput(J, &t, with->s, with->n);
    }
    wrpo__jput(J, &t, v->s + i, v->n - i);
    return wrpo__jfinish(J, &t);
}
static wrpo__jv wrpo__jf_number(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: i int, f float */
    wrpo__jv v = wrpo__jneed_defined(J, c->self), otherwise = c->a[0] ? c->a[0] : c->op == 'i' ? wrpo__jint(J, 0) : wrpo__jfloat(J, 0);
    if (v->kind == WRPO__J_STR) v = wrpo__jread_number(J, v);
    if (!v || !wrpo__jis_number(v)) return otherwise;
    if (c->op == 'f') return wrpo__jfloat(J, wrpo__jto_float(J, v));
    if (v->kind != WRPO__J_FLOAT) return wrpo__jint(J, wrpo__jto_int(J, v));
    if (!(fabs(v->f) < 9e18)) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "%g as an integer", v->f);
    return wrpo__jint(J, (int64_t)v->f);
}
static wrpo__jv wrpo__jf_indent(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv v = wrpo__jto_str(J, c->self), by = wrpo__jspaces(J, c->a[0] ? c->a[0] : wrpo__jint(J, 4));
    wrpo__text t = {.arena = J->arena};
    for (size_t i = 0, end, size; i <= v->n; i = end + 1) {
        for (end = i; end < v->n && v->s[end] != '\n'; end += size) {
            int32_t x = wrpo__utf8_get(v->s + end, v->n - end, &size);
            bool other = (x >= 11 && x <= 13) || (x >= 0x1C && x <= 0x1E) || x == 0x85 || x == 0x2028 || x == 0x2029;
            if (other) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "indent of a text with the line end U+%04X", (unsigned)x);
        }
        if (i == 0 ? wrpo__jflag(c, 1) : end > i || wrpo__jflag(c, 2)) wrpo__jput(J, &t, by->s, by->n);   /* first=, blank= */
        wrpo__jput(J, &t, v->s + i, end - i + (end < v->n));
    }
    return wrpo__jfinish(J, &t);
}
static wrpo__jv wrpo__jf_items(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: i filter, I items(), k keys(), v values() */
    wrpo__jv v = c->self;
    wrpo__jval *rows = wrpo__jnew(J, c->op == 'i' ? WRPO__J_ITER : WRPO__J_VIEW);
    if (v->kind == WRPO__J_UNDEFINED) return rows;
    if (v->kind != WRPO__J_DICT) wrpo__jfail(J, WRPO_E_FORMAT, "%s wants a dict, found %s", c->def->name, wrpo__jtype(v));
    if (c->op == 'k' || c->op == 'v') return wrpo__jshare(J, WRPO__J_VIEW, c->op == 'k' ? v->keys : v->items, v->count);
    for (int64_t i = 0; i < v->count; i++) {
        wrpo__jval *pair = wrpo__jnew(J, WRPO__J_TUPLE);
        wrpo__jpush(J, pair, NULL, v->keys[i]);
        wrpo__jpush(J, pair, NULL, v->items[i]);
        wrpo__jpush(J, rows, NULL, pair);
    }
    return rows;
}
static wrpo__jv wrpo__jf_reverse(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv v = c->self, minus = wrpo__jint(J, -1);
    if (v->kind == WRPO__J_STR) return wrpo__jslice(J, v, NULL, NULL, minus);
    bool once = v->kind == WRPO__J_ITER;
    v = wrpo__jslice(J, wrpo__jf_list(J, c), NULL, NULL, minus);
    return once ? v : wrpo__jshare(J, WRPO__J_ITER, v->items, v->count);
}
/* sort and dictsort: a stable sort by the item or its attribute, strings without case unless asked. op: s sort, d dictsort */
static wrpo__jv wrpo__jf_sort(wrpo__jinja *J, const wrpo__jcall *c) {
    bool dict = c->op == 'd', case_sensitive = wrpo__jflag(c, dict ? 0 : 1), reverse = wrpo__jflag(c, dict ? 2 : 0);
    const wrpo__jcall pairs = {.def = c->def, .op = 'I', .self = dict ? wrpo__jneed_defined(J, c->self) : c->self};
    wrpo__jv v = dict ? wrpo__jf_items(J, &pairs) : wrpo__jitems(J, c->self);
    wrpo__jv attribute = wrpo__jgiven(c, dict ? 1 : 2);
    if (dict && attribute && !wrpo__jword("key value", wrpo__jto_str(J, attribute))) wrpo__jfail(J, WRPO_E_FORMAT, "dictsort by what?");
    if (dict) attribute = wrpo__jint(J, attribute && wrpo__jnamed(attribute, "value"));
    wrpo__jv *keys = wrpo__alloc(J->arena, (size_t)v->count, sizeof *keys), *out = wrpo__alloc(J->arena, (size_t)v->count, sizeof *out);
    for (int64_t i = 0, k; i < v->count; i++) {
        wrpo__jv key = attribute ? wrpo__jpath(J, v->items[i], attribute) : v->items[i];
        if (key->kind == WRPO__J_STR && !case_sensitive) key = wrpo__jrecase(J, key, 'l');
        for (k = i; k > 0 && !wrpo__jequal(J, keys[k - 1], key) && wrpo__jcompare(J, keys[k - 1], key) == (reverse ? -1 : 1); k--)
            keys[k] = keys[k - 1], out[k] = out[k - 1];
        keys[k] = key, out[k] = v->items[i];
    }
    return wrpo__jshare(J, WRPO__J_LIST, out, v->count);
}
/* select, reject, selectattr, rejectattr, map. op: bit 0: the items that fail the test; 1: the test is of an attribute; 2: map */
static wrpo__jv wrpo__jf_select(wrpo__jinja *J, const wrpo__jcall *c) {
    bool map = c->op & 4;
    int first = c->op & 2 ? 1 : 0;                     /* of the filter or test, then its arguments */
    wrpo__jv attribute = map ? c->a[3] : first ? c->a[0] : NULL, name = c->a[first];
    wrpo__jv v = wrpo__jitems(J, wrpo__jtruth(c->self) ? c->self : &wrpo__jempty);
    wrpo__jval *out = wrpo__jnew(J, WRPO__J_ITER), *args = wrpo__jnew(J, WRPO__J_LIST);
    for (int k = first + 1; k < 3 && c->a[k]; k++) wrpo__jpush(J, args, NULL, c->a[k]);
    if (map && !name == !attribute) wrpo__jfail(J, WRPO_E_FORMAT, "map takes either a filter or attribute=");
    for (int64_t i = 0; i < v->count; i++) {
        wrpo__jv x = attribute ? wrpo__jpath(J, v->items[i], attribute) : v->items[i];
        if (name) x = wrpo__jinvoke(J, map ? 'f' : 't', wrpo__jto_str(J, name), x, args, &wrpo__jno_names);
        if (map || wrpo__jtruth(x) != (c->op & 1)) wrpo__jpush(J, out, NULL, map ? x : v->items[i]);
    }
    return out;
}

static wrpo__jv wrpo__jm_split(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv v = c->self, sep = wrpo__jgiven(c, 0) ? wrpo__jto_str(J, c->a[0]) : NULL;
    int64_t left = c->a[1] ? wrpo__jto_int(J, c->a[1]) : -1;
    wrpo__jval *out = wrpo__jnew(J, WRPO__J_LIST);
    size_t i = 0, at;
    if (sep && sep->n == 0) wrpo__jfail(J, WRPO_E_FORMAT, "split() by an empty string");
    if (!sep && left >= 0) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "split() at white space with maxsplit");
    if (!sep) wrpo__jspend_bytes(J, v->n);
    for (size_t size; !sep && (i = wrpo__jskip_space(v->s, v->n, i)) < v->n; i = at) {
        for (at = i; at < v->n && !wrpo__jspace(wrpo__utf8_get(v->s + at, v->n - at, &size)); at += size) {}
        wrpo__jpush(J, out, NULL, wrpo__jbytes(J, v->s + i, at - i));
    }
    for (; sep && left-- != 0 && (at = wrpo__jfind(J, v, sep, i)) != SIZE_MAX; i = at + sep->n)
        wrpo__jpush(J, out, NULL, wrpo__jbytes(J, v->s + i, at - i));
    if (sep) wrpo__jpush(J, out, NULL, wrpo__jbytes(J, v->s + i, v->n - i));
    return out;
}
static wrpo__jv wrpo__jm_affix(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: s startswith, e endswith, p removeprefix, x removesuffix */
    wrpo__jv v = c->self, x = c->a[0];
    bool front = c->op == 's' || c->op == 'p', test = c->op == 's' || c->op == 'e', tuple = test && x->kind == WRPO__J_TUPLE, has = false;
    for (int64_t i = 0; !has && i < (tuple ? x->count : 1); i++) {
        wrpo__jv one = wrpo__jto_str(J, tuple ? x->items[i] : x);
        has = one->n <= v->n && memcmp(front ? v->s : v->s + v->n - one->n, one->s, one->n) == 0;
    }
    return test ? wrpo__jbool(has) : !has ? v : wrpo__jbytes(J, front ? v->s + x->n : v->s, v->n - x->n);
}
static wrpo__jv wrpo__jm_get(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv r = wrpo__jdict_get(J, c->self, c->a[0]);
    return r ? r : c->a[1] ? c->a[1] : &wrpo__jnone;
}

static wrpo__jv wrpo__jt_kind(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: the kinds that pass */
    (void)J;
    return wrpo__jbool(c->op >> c->self->kind & 1);
}
static wrpo__jv wrpo__jt_is(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: 1 true, 0 false */
    (void)J;
    return wrpo__jbool(c->self->kind == WRPO__J_BOOL && c->self->i == c->op);
}
static wrpo__jv wrpo__jt_relation(wrpo__jinja *J, const wrpo__jcall *c) { return wrpo__jbool(wrpo__jrelation(J, c->op, c->self, c->a[0])); }
static wrpo__jv wrpo__jt_divisible(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: o odd, e even, d divisibleby */
    wrpo__jv rest = wrpo__jarithmetic(J, '%', c->self, c->op == 'd' ? c->a[0] : wrpo__jint(J, 2));
    return wrpo__jbool(wrpo__jequal(J, rest, wrpo__jint(J, c->op == 'o')));
}

static wrpo__jv wrpo__jg_range(wrpo__jinja *J, const wrpo__jcall *c) {
    const int64_t limit = INT64_MAX / 4;
    int64_t v[3] = {0, wrpo__jto_int(J, c->a[0]), c->a[2] ? wrpo__jto_int(J, c->a[2]) : 1};   /* from, to, by */
    wrpo__jval *out = wrpo__jnew(J, WRPO__J_RANGE);
    if (c->a[1]) v[0] = v[1], v[1] = wrpo__jto_int(J, c->a[1]);
    for (int k = 0; k < 3; k++)
        if (v[k] > limit || v[k] < -limit) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "a range near 64 bits");
    if (v[2] == 0) wrpo__jfail(J, WRPO_E_FORMAT, "range() with step 0");
    for (int64_t i = v[0]; v[2] > 0 ? i < v[1] : i > v[1]; i += v[2]) {
        if (out->count == WRPO__J_MAX_RANGE) wrpo__jfail(J, WRPO_E_FORMAT, "range of more than %d numbers", (int)WRPO__J_MAX_RANGE);
        wrpo__jpush(J, out, NULL, wrpo__jint(J, i));
    }
    return out;
}
static wrpo__jv wrpo__jg_dict(wrpo__jinja *J, const wrpo__jcall *c) {   /* op: the kind */
    wrpo__jval *v = wrpo__jnew(J, (wrpo__jkind)c->op);
    for (int64_t i = 0; i < c->named->count; i++) wrpo__jpush(J, v, c->named->keys[i], c->named->items[i]);
    return v;
}
static wrpo__jv wrpo__jg_raise(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv m = wrpo__jstr(J, c->a[0]);
    wrpo__fail_at(J->ctx, WRPO_E_FORMAT, J->line, 0, "chat template: %.*s", (int)WRPO__MIN(m->n, 400), m->s);
}
static wrpo__jv wrpo__jg_strftime(wrpo__jinja *J, const wrpo__jcall *c) {
    wrpo__jv format = wrpo__jto_str(J, c->a[0]);
    struct tm tm;
    char out[512];
#ifdef _WIN32
    bool ok = localtime_s(&tm, &J->now) == 0;
#else
    bool ok = localtime_r(&J->now, &tm) != NULL;
#endif
    const char *text = wrpo__format(J->arena, "%.*s|", (int)WRPO__MIN(format->n, 400), format->s);   /* so 0 from strftime means: no room */
    if (strstr(text, "%z") || strstr(text, "%Z") || strstr(text, "%f")) ok = false;   /* a naive time has no zone, ours no microseconds */
    size_t n = ok ? strftime(out, sizeof out, text, &tm) : 0;
    if (n == 0) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "strftime_now(\"%.*s\")", WRPO__J_TEXT_OF(format));
    return wrpo__jbytes(J, wrpo__strndup(J->arena, out, n - 1), n - 1);
}

#define WRPO__J_BIT(kind) (1 << WRPO__J_##kind)
enum {                               /* what the tests call ... */
    WRPO__J_NUMBERS = WRPO__J_BIT(BOOL) | WRPO__J_BIT(INT) | WRPO__J_BIT(FLOAT),
    WRPO__J_SEQUENCES = WRPO__J_BIT(STR) | WRPO__J_BIT(LIST) | WRPO__J_BIT(TUPLE) | WRPO__J_BIT(RANGE) | WRPO__J_BIT(DICT) | WRPO__J_BIT(UNDEFINED),
    WRPO__J_ITERABLES = WRPO__J_SEQUENCES | WRPO__J_BIT(VIEW) | WRPO__J_BIT(ITER) | WRPO__J_BIT(LOOP),
    WRPO__J_CALLABLES = WRPO__J_BIT(FUNCTION) | WRPO__J_BIT(MACRO) | WRPO__J_BIT(LOOP) | WRPO__J_BIT(UNDEFINED)
};
static const wrpo__jdef wrpo__jdefs[] = {
    /* filters */
    {"count", "fm", "", wrpo__jf_length, 0}, {"length", "fm", "", wrpo__jf_length, 0}, {"d", "fm", "default_value= boolean=", wrpo__jf_default, 0},
    {"default", "fm", "default_value= boolean=", wrpo__jf_default, 0}, {"dictsort", "f", "case_sensitive= by= reverse=", wrpo__jf_sort, 'd'},
    {"first", "f", "", wrpo__jf_end, 'f'}, {"last", "f", "", wrpo__jf_end, 'l'}, {"float", "f", "default=", wrpo__jf_number, 'f'},
    {"int", "f", "default=", wrpo__jf_number, 'i'}, {"indent", "f", "width= first= blank=", wrpo__jf_indent, 0},
    {"items", "f", "", wrpo__jf_items, 'i'}, {"join", "f", "d=", wrpo__jf_join, 'f'}, {"list", "f", "", wrpo__jf_list, 0},
    {"map", "f", "filter= x= y= attribute=", wrpo__jf_select, 4}, {"select", "f", "test= x=", wrpo__jf_select, 0},
    {"reject", "f", "test= x=", wrpo__jf_select, 1}, {"selectattr", "f", "attribute test= x=", wrpo__jf_select, 2},
    {"rejectattr", "f", "attribute test= x=", wrpo__jf_select, 3}, {"replace", "fm", "old new count=", wrpo__jf_replace, 'f'},
    {"reverse", "f", "", wrpo__jf_reverse, 0}, {"safe", "fm", "", wrpo__jf_string, 1},
    {"sort", "f", "reverse= case_sensitive= attribute=", wrpo__jf_sort, 's'}, {"string", "fm", "", wrpo__jf_string, 0},
    {"title", "f", "", wrpo__jf_case, 'T'}, {"trim", "f", "chars=", wrpo__jf_strip, 3},
    {"tojson", "fm", "ensure_ascii= indent= separators= sort_keys=", wrpo__jf_tojson, 0},
    /* filters and methods of strings, methods of strings, methods of dicts */
    {"capitalize", "fs", "", wrpo__jf_case, 'c'}, {"lower", "fs", "", wrpo__jf_case, 'l'}, {"upper", "fs", "", wrpo__jf_case, 'u'},
    {"title", "s", "", wrpo__jf_case, 't'}, {"join", "s", "iterable", wrpo__jf_join, 'm'}, {"startswith", "s", "prefix", wrpo__jm_affix, 's'},
    {"endswith", "s", "suffix", wrpo__jm_affix, 'e'}, {"removeprefix", "s", "prefix", wrpo__jm_affix, 'p'},
    {"removesuffix", "s", "suffix", wrpo__jm_affix, 'x'}, {"strip", "s", "chars=", wrpo__jf_strip, 3}, {"lstrip", "s", "chars=", wrpo__jf_strip, 1},
    {"rstrip", "s", "chars=", wrpo__jf_strip, 2}, {"replace", "s", "old new count=", wrpo__jf_replace, 'm'},
    {"split", "s", "sep= maxsplit=", wrpo__jm_split, 0}, {"get", "d", "key default=", wrpo__jm_get, 0}, {"items", "d", "", wrpo__jf_items, 'I'},
    {"keys", "d", "", wrpo__jf_items, 'k'}, {"values", "d", "", wrpo__jf_items, 'v'},
    /* tests */
    {"defined", "tm", "", wrpo__jt_kind, ~WRPO__J_BIT(UNDEFINED)}, {"undefined", "tm", "", wrpo__jt_kind, WRPO__J_BIT(UNDEFINED)},
    {"none", "tm", "", wrpo__jt_kind, WRPO__J_BIT(NONE)}, {"boolean", "tm", "", wrpo__jt_kind, WRPO__J_BIT(BOOL)},
    {"integer", "tm", "", wrpo__jt_kind, WRPO__J_BIT(INT)}, {"float", "tm", "", wrpo__jt_kind, WRPO__J_BIT(FLOAT)},
    {"number", "tm", "", wrpo__jt_kind, WRPO__J_NUMBERS}, {"string", "tm", "", wrpo__jt_kind, WRPO__J_BIT(STR)},
    {"mapping", "tm", "", wrpo__jt_kind, WRPO__J_BIT(DICT)}, {"sequence", "tm", "", wrpo__jt_kind, WRPO__J_SEQUENCES},
    {"iterable", "tm", "", wrpo__jt_kind, WRPO__J_ITERABLES}, {"callable", "tm", "", wrpo__jt_kind, WRPO__J_CALLABLES},
    {"true", "tm", "", wrpo__jt_is, 1}, {"false", "tm", "", wrpo__jt_is, 0}, {"odd", "t", "", wrpo__jt_divisible, 'o'},
    {"even", "t", "", wrpo__jt_divisible, 'e'}, {"divisibleby", "t", "num", wrpo__jt_divisible, 'd'}, {"in", "tm", "seq", wrpo__jt_relation, 'i'},
    {"==", "tm", "other", wrpo__jt_relation, '='}, {"eq", "tm", "other", wrpo__jt_relation, '='}, {"equalto", "tm", "other", wrpo__jt_relation, '='},
    {"!=", "tm", "other", wrpo__jt_relation, '!'}, {"ne", "tm", "other", wrpo__jt_relation, '!'}, {"gt", "tm", "other", wrpo__jt_relation, '>'},
    {"ge", "tm", "other", wrpo__jt_relation, 'g'}, {"lt", "tm", "other", wrpo__jt_relation, '<'}, {"le", "tm", "other", wrpo__jt_relation, 'l'},
    /* functions */
    {"range", "g", "start stop= step=", wrpo__jg_range, 0}, {"dict", "g", NULL, wrpo__jg_dict, WRPO__J_DICT},
    {"namespace", "g", NULL, wrpo__jg_dict, WRPO__J_NAMESPACE}, {"raise_exception", "g", "message", wrpo__jg_raise, 0},
    {"strftime_now", "g", "format", wrpo__jg_strftime, 0}};

static const wrpo__jdef *wrpo__jlookup(char where, wrpo__jv name) {   /* NULL: no such name */
    for (int64_t k = 0; k < WRPO__COUNT(wrpo__jdefs); k++)
        if (strchr(wrpo__jdefs[k].where, where) && wrpo__jnamed(name, wrpo__jdefs[k].name)) return &wrpo__jdefs[k];
    return NULL;
}
static wrpo__jv wrpo__jcall_def(wrpo__jinja *J, const wrpo__jdef *def, wrpo__jv self, wrpo__jv args, wrpo__jv named) {
    wrpo__jcall c = {.def = def, .op = def->op, .self = self, .named = named};
    int64_t k = 0, taken = 0;
    if (self && !strchr(def->where, 'm')) wrpo__jplain(J, self);
    for (const char *p = def->signature; p && *p; k++, p += strcspn(p, " "), p += *p == ' ') {
        size_t n = strcspn(p, " =");
        wrpo__jv given = wrpo__jdict_get(J, named, wrpo__jbytes(J, p, n));
        c.a[k] = k < args->count ? args->items[k] : given;
        if (given && c.a[k] != given) wrpo__jfail(J, WRPO_E_FORMAT, "%s() has two values for \"%.*s\"", def->name, (int)n, p);
        if (!c.a[k] && p[n] != '=') wrpo__jfail(J, WRPO_E_FORMAT, "%s() wants an argument \"%.*s\"", def->name, (int)n, p);
        taken += given != NULL;
    }
    if (args->count > k || (def->signature && taken < named->count))
        wrpo__jfail(J, WRPO_E_UNSUPPORTED, "%s() with other arguments than \"%s\"", def->name, def->signature ? def->signature : "name=");
    return def->fn(J, &c);
}
static wrpo__jv wrpo__jinvoke(wrpo__jinja *J, char where, wrpo__jv name, wrpo__jv self, wrpo__jv args, wrpo__jv named) {
    const wrpo__jdef *def = wrpo__jlookup(where, name);
    if (!def) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "%s \"%.*s\"", where == 'f' ? "filter" : "test", WRPO__J_TEXT_OF(name));
    return wrpo__jcall_def(J, def, self, args, named);
}

/* ---- text to a tree: the parser asks for one token after the other ---- */
typedef enum wrpo__jnode_kind {
    /* expressions; x is the node's value */
    WRPO__J_CONST, WRPO__J_VAR,      /* x; the variable x */
    WRPO__J_ATTR, WRPO__J_ITEM,      /* a.x; a[b] */
    WRPO__J_SLICE,                   /* a[b:c:d] */
    WRPO__J_NOT, WRPO__J_NEG, WRPO__J_BINARY,          /* a; a op b */
    WRPO__J_COND,                    /* b if a else c */
    WRPO__J_CALL, WRPO__J_FILTER, WRPO__J_TEST,        /* a(list); a|x(list); a is x(list) */
    WRPO__J_MAKE_LIST, WRPO__J_MAKE_TUPLE, WRPO__J_MAKE_DICT,   /* of list */
    WRPO__J_KEYWORD,                 /* in such a list: x=a; a parameter x with its default a; a dict's pair a: b */
    /* statements */
    WRPO__J_TEXT, WRPO__J_PRINT,     /* x; a */
    WRPO__J_SET, WRPO__J_SET_BLOCK,  /* a = b; a = the text of list */
    WRPO__J_IF,                      /* if a: list, else: d */
    WRPO__J_FOR,                     /* for a in b if c: list, else: d */
    WRPO__J_DEFINE,                  /* macro x: parameters c, body list */
    WRPO__J_SCOPE,                   /* list with variables of its own */
    WRPO__J_BREAK, WRPO__J_CONTINUE
} wrpo__jnode_kind;
struct wrpo__jnode {
    wrpo__jnode_kind kind;
    int op, line;
    wrpo__jv value;
    wrpo__jnode *a, *b, *c, *d;
    wrpo__jnode *list, *next;        /* first child; next sibling */
};
typedef enum wrpo__jtoken { WRPO__J_END, WRPO__J_CLOSE /* of a tag */, WRPO__J_NAME, WRPO__J_LITERAL, WRPO__J_MARK } wrpo__jtoken;
typedef struct wrpo__jparser {
    wrpo__jinja *J;                  /* J->line: of the current token */
    const char *s; size_t n, at;     /* the template; newlines are \n; what follows the current token */
    size_t counted;                  /* the newlines before it are in J->line */
    bool output, fresh;              /* inside {{ }}, not {% %}; the text behind the last tag begins a line */
    int open, nesting, loops;        /* brackets; expressions and blocks; loops: each around this place */
    wrpo__jtoken kind; wrpo__jv value;   /* the current token: a literal's value, else its text */
} wrpo__jparser;

_Noreturn static void wrpo__jwant(wrpo__jparser *P, const char *what) {
    wrpo__jfail(P->J, WRPO_E_FORMAT, "want %s, found \"%.*s\"", what, WRPO__J_TEXT_OF(wrpo__jstr(P->J, P->value)));
}
static void wrpo__jcount_lines(wrpo__jparser *P, size_t to) {
    for (; P->counted < to; P->counted++) P->J->line += P->s[P->counted] == '\n';
}
static bool wrpo__jstarts(const wrpo__jparser *P, size_t at, const char *text) {
    size_t n = strlen(text);
    return at <= P->n && P->n - at >= n && memcmp(P->s + at, text, n) == 0;
}
/* Passes the end of a tag at P->at if there is one: mark (2 bytes), after "-" with all white space that follows,
   after "+" (a block's or comment's) with nothing, plain with one newline if the tag is not {{ }}. */
static bool wrpo__jtag_end(wrpo__jparser *P, const char *mark) {
    bool output = mark[0] == '}', minus = wrpo__jstarts(P, P->at, "-"), plus = !output && wrpo__jstarts(P, P->at, "+");
    size_t i = P->at + minus + plus;
    if (!wrpo__jstarts(P, i, mark)) return false;
    i += 2;
    if (minus) i = wrpo__jskip_space(P->s, P->n, i);
    else if (!plus && !output && wrpo__jstarts(P, i, "\n")) i++;
    P->fresh = P->s[i - 1] == '\n';
    P->at = i;
    return true;
}
static wrpo__jv wrpo__jlex_string(wrpo__jparser *P) {  /* at its quote; Python's escapes */
    static const char names[] = "\\'\"nrtabfv", marks[] = "\\'\"\n\r\t\a\b\f\v";
    wrpo__text t = {.arena = P->J->arena};
    char quote = P->s[P->at++];
    for (; P->at < P->n && P->s[P->at] != quote; P->at++) {
        const char *c = P->s + P->at, *p;
        if (*c != '\\' || P->at + 1 == P->n) { wrpo__jput(P->J, &t, c, 1); continue; }
        P->at++;
        if (c[1] && strchr("01234567xuUN", c[1])) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "the escape %.2s in a string", c);
        if (c[1] && (p = strchr(names, c[1]))) wrpo__jput(P->J, &t, marks + (p - names), 1);
        else if (c[1] != '\n') wrpo__jput(P->J, &t, c, 2);
    }
    if (P->at >= P->n) wrpo__jfail(P->J, WRPO_E_FORMAT, "a string without its closing quote");
    P->at++;
    return wrpo__jfinish(P->J, &t);
}
static size_t wrpo__jword_end(const wrpo__jparser *P, size_t i) {   /* of letters, digits, _ and all that is not ASCII */
    for (; i < P->n; i++) {
        unsigned char c = (unsigned char)P->s[i];
        if (!((c | 32) >= 'a' && (c | 32) <= 'z') && !(c >= '0' && c <= '9') && c != '_' && c < 0x80) break;
    }
    return i;
}
static void wrpo__jadvance(wrpo__jparser *P) {         /* to the next token of a tag; behind the tag's end the text goes on */
    static const char *const pairs[] = {"//", "**", "==", "!=", ">=", "<="};
    wrpo__jcount_lines(P, P->at);
    P->kind = WRPO__J_CLOSE, P->value = wrpo__jstring(P->J, "the end of the tag");
    if (P->open == 0 && wrpo__jtag_end(P, P->output ? "}}" : "%}")) return;
    size_t begin = wrpo__jskip_space(P->s, P->n, P->at), end = wrpo__jword_end(P, begin);
    bool spaced = begin > P->at;
    P->at = begin;
    if (spaced) { wrpo__jadvance(P); return; }
    if (begin == P->n) wrpo__jfail(P->J, WRPO_E_FORMAT, "the template ends inside a tag");
    char c = P->s[begin];
    if (c == '"' || c == '\'') { P->kind = WRPO__J_LITERAL, P->value = wrpo__jlex_string(P); return; }
    if (c >= '0' && c <= '9') {
        if (wrpo__jstarts(P, end, ".") && end + 1 < P->n && P->s[end + 1] >= '0' && P->s[end + 1] <= '9') end = wrpo__jword_end(P, end + 1);
        P->value = wrpo__jread_number(P->J, wrpo__jbytes(P->J, P->s + begin, end - begin)), P->kind = WRPO__J_LITERAL, P->at = end;
        if (c == '0' && wrpo__jtruth(P->value) && P->value->kind == WRPO__J_INT) wrpo__jfail(P->J, WRPO_E_FORMAT, "a number with zeros before it");
        return;
    }
    P->kind = end > begin ? WRPO__J_NAME : WRPO__J_MARK;
    if (end == begin && c && strchr("+-/*%~[](){}><=!.:|,", c)) end++;
    for (int64_t k = 0; P->kind == WRPO__J_MARK && k < WRPO__COUNT(pairs); k++)
        if (wrpo__jstarts(P, begin, pairs[k])) end = begin + 2;
    if (end == begin) wrpo__jfail(P->J, WRPO_E_FORMAT, "unexpected character \"%c\"", c < 32 ? '?' : c);
    if (P->kind == WRPO__J_MARK) P->open += strchr("[({", c) ? 1 : strchr("])}", c) ? -1 : 0;
    if (P->open < 0) wrpo__jfail(P->J, WRPO_E_FORMAT, "unexpected \"%c\"", c);
    P->value = wrpo__jbytes(P->J, P->s + begin, end - begin);
    P->at = end;
}
static bool wrpo__jat(const wrpo__jparser *P, const char *words) {   /* at one of these names or marks */
    return (P->kind == WRPO__J_NAME || P->kind == WRPO__J_MARK) && wrpo__jword(words, P->value);
}
static bool wrpo__jtake(wrpo__jparser *P, const char *word) {
    if (!wrpo__jat(P, word)) return false;
    wrpo__jadvance(P);
    return true;
}
static void wrpo__jneed(wrpo__jparser *P, const char *word) { if (!wrpo__jtake(P, word)) wrpo__jwant(P, word); }
static void wrpo__jneed_close(wrpo__jparser *P) { if (P->kind != WRPO__J_CLOSE) wrpo__jwant(P, "the end of the tag"); }
static wrpo__jnode *wrpo__jnode_new(wrpo__jparser *P, wrpo__jnode_kind kind, wrpo__jnode *a, wrpo__jnode *b) {
    wrpo__jnode *x = WRPO__NEW(P->J->arena, wrpo__jnode);
    x->kind = kind, x->line = P->J->line, x->a = a, x->b = b;
    return x;
}
static wrpo__jv wrpo__jname(wrpo__jparser *P) {
    wrpo__jv name = P->value;
    if (P->kind != WRPO__J_NAME) wrpo__jwant(P, "a name");
    wrpo__jadvance(P);
    return name;
}
static void wrpo__jnest(wrpo__jparser *P) {
    if (++P->nesting > WRPO__J_MAX_NESTING) wrpo__jfail(P->J, WRPO_E_FORMAT, "nested too deeply: more than %d levels", (int)WRPO__J_MAX_NESTING);
}
static wrpo__jnode *wrpo__jexpr(wrpo__jparser *P);
static wrpo__jnode *wrpo__jlevel(wrpo__jparser *P, int level);

/* a, b, c up to the end of the tag or a word that ends it; one item alone is not made a tuple. */
static wrpo__jnode *wrpo__jtuple(wrpo__jparser *P, wrpo__jnode *(*item)(wrpo__jparser *), const char *ends) {
    wrpo__jnode *x = wrpo__jnode_new(P, WRPO__J_MAKE_TUPLE, NULL, NULL), **last = &x->list;
    bool tuple = false;
    for (; P->kind != WRPO__J_CLOSE && !wrpo__jat(P, ends); last = &(*last)->next, tuple = true) {
        *last = item(P);
        if (!wrpo__jtake(P, ",")) break;
    }
    if (!x->list && ends[0] != ')') wrpo__jwant(P, "an expression");
    return x->list && !tuple ? x->list : x;
}
/* The items up to `end`, which is passed, of a list '[', dict '{', call '(' or of a macro's parameters 'm'. */
static wrpo__jnode *wrpo__jlist_of(wrpo__jparser *P, int of, const char *end) {
    wrpo__jnode *first = NULL, **last = &first;
    bool named = false;
    for (; !wrpo__jat(P, end); last = &(*last)->next) {
        wrpo__jnode *x = wrpo__jnode_new(P, WRPO__J_KEYWORD, NULL, NULL);
        if (of == '(' && wrpo__jat(P, "* **")) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "an argument list with %.*s", WRPO__J_TEXT_OF(P->value));
        if (of == 'm') x->value = wrpo__jname(P);
        else x->a = wrpo__jexpr(P);
        bool equals = (of == 'm' || (of == '(' && x->a->kind == WRPO__J_VAR)) && wrpo__jtake(P, "=");
        if (named && !equals) wrpo__jwant(P, "a named argument");
        if (equals) {
            if (of == '(') x->value = x->a->value;
            x->a = wrpo__jexpr(P), named = true;
        } else if (of == '{') {
            wrpo__jneed(P, ":");
            x->b = wrpo__jexpr(P);
        } else if (of != 'm') x = x->a;
        *last = x;
        if (!wrpo__jtake(P, ",")) { last = &x->next; break; }
    }
    wrpo__jneed(P, end);
    return first;
}
static wrpo__jnode *wrpo__jprimary(wrpo__jparser *P) {
    wrpo__jnode *x = wrpo__jnode_new(P, WRPO__J_CONST, NULL, NULL);
    if (P->kind == WRPO__J_NAME) {
        x->value = wrpo__jname(P);
        if (wrpo__jword("true True", x->value)) x->value = &wrpo__jtrue;
        else if (wrpo__jword("false False", x->value)) x->value = &wrpo__jfalse;
        else if (wrpo__jword("none None", x->value)) x->value = &wrpo__jnone;
        else x->kind = WRPO__J_VAR;
    } else if (P->kind == WRPO__J_LITERAL) {           /* strings side by side are one */
        for (x->value = P->value, wrpo__jadvance(P); x->value->kind == WRPO__J_STR && P->kind == WRPO__J_LITERAL; wrpo__jadvance(P))
            x->value = wrpo__jjoin2(P->J, x->value, wrpo__jto_str(P->J, P->value));
    } else if (wrpo__jtake(P, "(")) {
        x = wrpo__jtuple(P, wrpo__jexpr, ")");
        wrpo__jneed(P, ")");
    } else if (wrpo__jtake(P, "[")) x->kind = WRPO__J_MAKE_LIST, x->list = wrpo__jlist_of(P, '[', "]");
    else if (wrpo__jtake(P, "{")) x->kind = WRPO__J_MAKE_DICT, x->list = wrpo__jlist_of(P, '{', "}");
    else wrpo__jwant(P, "an expression");
    return x;
}
static wrpo__jnode *wrpo__jsubscript(wrpo__jparser *P, wrpo__jnode *x) {   /* after "[" */
    x = wrpo__jnode_new(P, WRPO__J_ITEM, x, NULL);
    wrpo__jnode **part[] = {&x->b, &x->c, &x->d};
    for (int k = 0; k < 3; k++) {
        if (!wrpo__jat(P, ": ]")) *part[k] = wrpo__jexpr(P);
        if (k == 2 || !wrpo__jtake(P, ":")) break;
        x->kind = WRPO__J_SLICE;
    }
    if (x->kind == WRPO__J_ITEM && !x->b) wrpo__jwant(P, "an expression");
    if (wrpo__jat(P, ",")) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "a subscript with a comma");
    wrpo__jneed(P, "]");
    return x;
}
static wrpo__jnode *wrpo__jpostfix(wrpo__jparser *P, wrpo__jnode *x, bool filters) {   /* .name [...] (...), then |name(...) and is name(...) */
    for (bool filtered = false;;) {
        bool filter = filters && wrpo__jat(P, "|"), test = filters && wrpo__jat(P, "is"), negated = false;
        if (filter || test) {
            wrpo__jadvance(P);
            negated = test && wrpo__jtake(P, "not"), filtered = true;
            x = wrpo__jnode_new(P, filter ? WRPO__J_FILTER : WRPO__J_TEST, x, NULL);
            x->value = wrpo__jname(P);
            if (wrpo__jtake(P, "(")) x->list = wrpo__jlist_of(P, '(', ")");
            else if (test && wrpo__jat(P, "is")) wrpo__jwant(P, "one test");
            else if (test && (P->kind == WRPO__J_LITERAL || wrpo__jat(P, "[ {") || (P->kind == WRPO__J_NAME && !wrpo__jat(P, "else or and"))))
                x->list = wrpo__jpostfix(P, wrpo__jprimary(P), false);
            if (negated) x = wrpo__jnode_new(P, WRPO__J_NOT, x, NULL);
        } else if (!filtered && wrpo__jtake(P, ".")) x = wrpo__jnode_new(P, WRPO__J_ATTR, x, NULL), x->value = wrpo__jname(P);
        else if (!filtered && wrpo__jtake(P, "[")) x = wrpo__jsubscript(P, x);
        else if (wrpo__jtake(P, "(")) x = wrpo__jnode_new(P, WRPO__J_CALL, x, NULL), x->list = wrpo__jlist_of(P, '(', ")");
        else return x;
    }
}
/* Operators by level, loosest first. A sign's operand takes no filters: -1|abs is (-1)|abs. */
enum { WRPO__J_NOT_LEVEL = 2, WRPO__J_COMPARE = 3, WRPO__J_UNARY = 7, WRPO__J_OPERAND = 8 };
static wrpo__jnode *wrpo__jprefix(wrpo__jparser *P, wrpo__jnode_kind kind, int level) {   /* behind the operator */
    wrpo__jnest(P);
    wrpo__jnode *x = wrpo__jnode_new(P, kind, wrpo__jlevel(P, level), NULL);
    P->nesting--;
    return x;
}
static wrpo__jnode *wrpo__jlevel(wrpo__jparser *P, int level) {
    static const struct { const char *text; int level, op; } operators[] = {
        {"or", 0, '|'}, {"and", 1, '&'}, {"==", 3, '='}, {"!=", 3, '!'}, {"<=", 3, 'l'}, {">=", 3, 'g'}, {"<", 3, '<'}, {">", 3, '>'}, {"in", 3, 'i'},
        {"not", 3, 'n'}, {"+", 4, '+'}, {"-", 4, '-'}, {"~", 5, '~'}, {"*", 6, '*'}, {"//", 6, 'F'}, {"/", 6, '/'}, {"%", 6, '%'}};
    if (level >= WRPO__J_UNARY)
        return wrpo__jpostfix(P, wrpo__jtake(P, "-") ? wrpo__jprefix(P, WRPO__J_NEG, WRPO__J_OPERAND) : wrpo__jprimary(P), level == WRPO__J_UNARY);
    if (level == WRPO__J_NOT_LEVEL && wrpo__jtake(P, "not")) return wrpo__jprefix(P, WRPO__J_NOT, level);
    wrpo__jnode *x = wrpo__jlevel(P, level + 1);
    for (bool again = false;; again = true) {
        int64_t k = 0;
        while (k < WRPO__COUNT(operators) && !(operators[k].level == level && wrpo__jat(P, operators[k].text))) k++;
        if (wrpo__jat(P, "**")) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "the operator **");
        if (k == WRPO__COUNT(operators)) return x;
        if (again && level == WRPO__J_COMPARE) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "a chain of comparisons");
        x = wrpo__jnode_new(P, WRPO__J_BINARY, x, NULL);
        wrpo__jadvance(P);
        if (operators[k].op == 'n') wrpo__jneed(P, "in");
        x->op = operators[k].op, x->b = wrpo__jlevel(P, level + 1);
    }
}
static wrpo__jnode *wrpo__jno_cond(wrpo__jparser *P) { return wrpo__jlevel(P, 0); }
static wrpo__jnode *wrpo__jexpr(wrpo__jparser *P) {
    wrpo__jnest(P);
    wrpo__jnode *x = wrpo__jlevel(P, 0);
    while (wrpo__jtake(P, "if")) {
        x = wrpo__jnode_new(P, WRPO__J_COND, wrpo__jlevel(P, 0), x);
        if (wrpo__jtake(P, "else")) x->c = wrpo__jexpr(P);
    }
    P->nesting--;
    return x;
}
static wrpo__jnode *wrpo__jtarget(wrpo__jparser *P) {  /* what `set` and `for` assign to: a name, a namespace's attribute, several in () */
    wrpo__jnode *x = wrpo__jnode_new(P, WRPO__J_VAR, NULL, NULL);
    wrpo__jnest(P);
    if (wrpo__jtake(P, "(")) {
        x = wrpo__jtuple(P, wrpo__jtarget, ")");
        wrpo__jneed(P, ")");
    } else {
        if (wrpo__jat(P, "loop")) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "assigning to \"loop\"");
        if (wrpo__jat(P, "true false none True False None")) wrpo__jwant(P, "a name to assign to");
        x->value = wrpo__jname(P);
        if (wrpo__jtake(P, ".")) x = wrpo__jnode_new(P, WRPO__J_ATTR, x, NULL), x->value = wrpo__jname(P);
    }
    P->nesting--;
    return x;
}
static wrpo__jnode *wrpo__jblocks(wrpo__jparser *P, const char *ends);
static wrpo__jnode *wrpo__jbody(wrpo__jparser *P, const char *ends) {   /* to the name of the tag that ends it */
    wrpo__jneed_close(P);
    wrpo__jnode *x = wrpo__jblocks(P, ends);
    if (P->kind == WRPO__J_END) wrpo__jwant(P, ends);
    return x;
}
/* One statement from its name to before the end of its last tag. */
static wrpo__jnode *wrpo__jstatement(wrpo__jparser *P) {
    wrpo__jnode *x = wrpo__jnode_new(P, WRPO__J_SCOPE, NULL, NULL);
    const char *end = NULL;                            /* the name of the last tag, still to pass */
    int loops = P->loops;
    if (wrpo__jtake(P, "if")) {
        wrpo__jnode *branch = x;
        for (;; branch = branch->d = wrpo__jnode_new(P, WRPO__J_IF, NULL, NULL)) {
            branch->kind = WRPO__J_IF;
            branch->a = wrpo__jtuple(P, wrpo__jno_cond, "");
            branch->list = wrpo__jbody(P, "elif else endif");
            if (!wrpo__jtake(P, "elif")) break;
        }
        if (wrpo__jtake(P, "else")) branch->d = wrpo__jbody(P, "endif");
        end = "endif";
    } else if (wrpo__jtake(P, "for")) {
        x->kind = WRPO__J_FOR;
        x->a = wrpo__jtuple(P, wrpo__jtarget, "in");
        wrpo__jneed(P, "in");
        x->b = wrpo__jtuple(P, wrpo__jno_cond, "recursive");
        if (wrpo__jtake(P, "if")) x->c = wrpo__jexpr(P);
        if (wrpo__jat(P, "recursive")) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "a recursive loop");
        P->loops++;
        x->list = wrpo__jbody(P, "else endfor");
        P->loops--;
        if (wrpo__jtake(P, "else")) x->d = wrpo__jbody(P, "endfor");
        end = "endfor";
    } else if (wrpo__jtake(P, "set")) {
        x->kind = WRPO__J_SET;
        x->a = wrpo__jtuple(P, wrpo__jtarget, "=");
        if (wrpo__jtake(P, "=")) { x->b = wrpo__jtuple(P, wrpo__jexpr, ""); return x; }
        if (wrpo__jat(P, "|")) wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "a set block with a filter");
        x->kind = WRPO__J_SET_BLOCK;
        x->list = wrpo__jbody(P, end = "endset");
    } else if (wrpo__jtake(P, "macro")) {
        x->kind = WRPO__J_DEFINE;
        x->value = wrpo__jname(P);
        wrpo__jneed(P, "(");
        x->c = wrpo__jlist_of(P, 'm', ")");
        P->loops = 0;                                  /* break and continue do not reach out of a macro */
        x->list = wrpo__jbody(P, end = "endmacro");
    } else if (wrpo__jtake(P, "generation")) {         /* marks the assistant's text for a loss mask: here it is only text */
        P->loops = 0;
        x->list = wrpo__jbody(P, end = "endgeneration");
    } else if (wrpo__jat(P, "break continue")) {
        x->kind = wrpo__jat(P, "break") ? WRPO__J_BREAK : WRPO__J_CONTINUE;
        if (P->loops == 0) wrpo__jwant(P, "a loop around this");
        wrpo__jadvance(P);
    } else if (wrpo__jat(P, "block extends include import from autoescape call filter with raw print do debug trans"))
        wrpo__jfail(P->J, WRPO_E_UNSUPPORTED, "statement \"%.*s\"", WRPO__J_TEXT_OF(P->value));
    else wrpo__jwant(P, "a statement");
    if (end) wrpo__jneed(P, end);
    P->loops = loops;
    return x;
}
/* The text before a tag or the end: "-" strips its white space; else a block or comment alone on its line so far strips the indent. */
static wrpo__jnode *wrpo__jdata(wrpo__jparser *P, size_t from, size_t to, char sign, bool output) {
    size_t line = to;
    wrpo__jcount_lines(P, from);
    if (sign == '-') to = wrpo__jrstrip(P->s, from, to);
    else if (sign != '+' && !output) {
        while (line > from && P->s[line - 1] != '\n') line--;
        if ((line > from || P->fresh) && wrpo__jrstrip(P->s, line, to) == line) to = line;
    }
    wrpo__jnode *x = to > from ? wrpo__jnode_new(P, WRPO__J_TEXT, NULL, NULL) : NULL;
    if (x) x->value = wrpo__jbytes(P->J, P->s + from, to - from);
    return x;
}
/* Text, output and statements up to {% and one of the words `ends` (current then), or the end of the template. */
static wrpo__jnode *wrpo__jblocks(wrpo__jparser *P, const char *ends) {
    wrpo__jnode *first = NULL, **last = &first;
    wrpo__jnest(P);
    for (size_t from = P->at, i = from;; i++) {
        bool comment = wrpo__jstarts(P, i, "{#"), output = wrpo__jstarts(P, i, "{{");
        if (i < P->n && !comment && !output && !wrpo__jstarts(P, i, "{%")) continue;
        bool sign = wrpo__jstarts(P, i + 2, "-") || wrpo__jstarts(P, i + 2, "+");
        if ((*last = wrpo__jdata(P, from, i, i == P->n ? '+' : sign ? P->s[i + 2] : (char)0, output))) last = &(*last)->next;
        P->at = i + 2 + sign, P->kind = WRPO__J_END, P->value = wrpo__jstring(P->J, "the end of the template");
        if (i == P->n) break;
        for (; comment && !wrpo__jtag_end(P, "#}"); P->at++)
            if (P->at >= P->n) wrpo__jfail(P->J, WRPO_E_FORMAT, "a comment without its end");
        if (!comment) {
            P->output = output;
            wrpo__jadvance(P);
            if (!output && wrpo__jat(P, ends)) break;
            *last = output ? wrpo__jnode_new(P, WRPO__J_PRINT, NULL, NULL) : wrpo__jstatement(P);
            if (output) (*last)->a = wrpo__jtuple(P, wrpo__jexpr, "");
            wrpo__jneed_close(P);
            last = &(*last)->next;
        }
        from = P->at, i = from - 1;
    }
    P->nesting--;
    return first;
}

/* ---- the tree to text ---- */
typedef enum wrpo__jflow { WRPO__J_GO, WRPO__J_BROKE, WRPO__J_CONTINUED } wrpo__jflow;
static wrpo__jv wrpo__jeval(wrpo__jinja *J, const wrpo__jnode *x, wrpo__jval *scope);
static wrpo__jflow wrpo__jexec(wrpo__jinja *J, const wrpo__jnode *x, wrpo__jval *scope, wrpo__text *out);

static void wrpo__jassign(wrpo__jinja *J, const wrpo__jnode *target, wrpo__jv value, wrpo__jval *scope) {
    J->line = target->line;
    if (target->kind == WRPO__J_VAR) { wrpo__jdict_put(J, scope, target->value, value); return; }
    if (target->kind == WRPO__J_ATTR) {
        wrpo__jv space = wrpo__jeval(J, target->a, scope);
        if (space->kind != WRPO__J_NAMESPACE) wrpo__jfail(J, WRPO_E_FORMAT, "only a namespace takes attributes, found %s", wrpo__jtype(space));
        wrpo__jdict_put(J, (wrpo__jval *)(uintptr_t)space, target->value, value);
        return;
    }
    wrpo__jv items = wrpo__jitems(J, value);
    int64_t i = 0;
    const wrpo__jnode *t = target->list;
    for (; t && i < items->count; t = t->next) wrpo__jassign(J, t, items->items[i++], scope);
    if (t || i < items->count) wrpo__jfail(J, WRPO_E_FORMAT, "too %s values to unpack: %lld", t ? "few" : "many", (long long)items->count);
}
struct wrpo__jloop {
    const wrpo__jnode *node; wrpo__jval *outer;
    wrpo__jv base; int64_t at;       /* what it runs over, the next item to look at */
    wrpo__jval *passed;              /* LIST: the items that have passed the filter: those the loop has met or looked ahead for */
    int64_t index0;
};
/* Has the loop an item of this number? The filter sees no item before somebody asks for it. */
static bool wrpo__jloop_has(wrpo__jinja *J, wrpo__jloop *loop, int64_t index) {
    while (loop->passed->count <= index && loop->at < loop->base->count) {
        wrpo__jv x = loop->base->items[loop->at++];
        wrpo__jval *scope = loop->node->c ? wrpo__jscope(J, loop->outer) : NULL;
        if (scope) wrpo__jassign(J, loop->node->a, x, scope);
        if (!scope || wrpo__jtruth(wrpo__jeval(J, loop->node->c, scope))) wrpo__jpush(J, loop->passed, NULL, x);
    }
    return loop->passed->count > index;
}
static wrpo__jv wrpo__jloop_attr(wrpo__jinja *J, wrpo__jloop *loop, wrpo__jv name) {
    int64_t i = loop->index0;
    if (wrpo__jnamed(name, "index0")) return wrpo__jint(J, i);
    if (wrpo__jnamed(name, "index")) return wrpo__jint(J, i + 1);
    if (wrpo__jnamed(name, "first")) return wrpo__jbool(i == 0);
    if (wrpo__jnamed(name, "last")) return wrpo__jbool(!wrpo__jloop_has(J, loop, i + 1));
    if (wrpo__jnamed(name, "previtem")) return i > 0 ? loop->passed->items[i - 1] : wrpo__jundefined(J, name);
    if (wrpo__jnamed(name, "nextitem")) return wrpo__jloop_has(J, loop, i + 1) ? loop->passed->items[i + 1] : wrpo__jundefined(J, name);
    if (!wrpo__jword("length revindex revindex0", name)) wrpo__jfail(J, WRPO_E_UNSUPPORTED, "loop.%.*s", WRPO__J_TEXT_OF(name));
    wrpo__jloop_has(J, loop, INT64_MAX - 1);
    return wrpo__jint(J, loop->passed->count - (name->n == 6 ? 0 : name->n == 8 ? i : i + 1));
}
static void wrpo__jrun_loop(wrpo__jinja *J, const wrpo__jnode *x, wrpo__jv over, wrpo__jval *scope, wrpo__text *out) {
    wrpo__jloop *loop = WRPO__NEW(J->arena, wrpo__jloop);
    wrpo__jval *self = wrpo__jnew(J, WRPO__J_LOOP);
    wrpo__jflow flow = WRPO__J_GO;
    bool completed = false;
    loop->node = x, loop->outer = scope, loop->base = wrpo__jitems(J, over), loop->passed = wrpo__jnew(J, WRPO__J_LIST), self->loop = loop;
    for (; flow != WRPO__J_BROKE && wrpo__jloop_has(J, loop, loop->index0); loop->index0++) {
        wrpo__jval *inner = wrpo__jscope(J, scope);
        wrpo__jdict_put(J, inner, wrpo__jstring(J, "loop"), self);
        wrpo__jassign(J, x->a, loop->passed->items[loop->index0], inner);
        flow = wrpo__jexec(J, x->list, inner, out);
        completed = completed || flow == WRPO__J_GO;
    }
    if (!completed && x->d) wrpo__jexec(J, x->d, wrpo__jscope(J, scope), out);   /* as Jinja: also where every pass was cut short */
}
static wrpo__jv wrpo__jcall_macro(wrpo__jinja *J, wrpo__jv macro, wrpo__jv args, wrpo__jv named) {
    wrpo__jval *scope = wrpo__jscope(J, macro->scope);
    wrpo__text out = {.arena = J->arena};
    int64_t k = 0, taken = 0;
    for (const wrpo__jnode *p = macro->node->c; p; p = p->next, k++) {
        wrpo__jv given = wrpo__jdict_get(J, named, p->value), v = k < args->count ? args->items[k] : given;
        if (given && v != given) wrpo__jfail(J, WRPO_E_FORMAT, "a macro has two values for \"%.*s\"", WRPO__J_TEXT_OF(p->value));
        if (!v) v = p->a ? wrpo__jeval(J, p->a, scope) : wrpo__jundefined(J, p->value);
        wrpo__jdict_put(J, scope, p->value, v);
        taken += given != NULL;
    }
    if (args->count > k || taken < named->count) wrpo__jfail(J, WRPO_E_FORMAT, "a macro is given arguments it does not name");
    wrpo__jexec(J, macro->node->list, scope, &out);
    return wrpo__jfinish(J, &out);
}
static wrpo__jv wrpo__jlookup_var(wrpo__jinja *J, wrpo__jv name, const wrpo__jval *scope) {
    wrpo__jv v = NULL;
    for (; scope && !v; scope = scope->scope) v = wrpo__jdict_get(J, scope, name);
    if (!v && wrpo__jword("caller cycler joiner kwargs lipsum self varargs", name))
        wrpo__jfail(J, WRPO_E_UNSUPPORTED, "\"%.*s\"", WRPO__J_TEXT_OF(name));
    if (!v) v = wrpo__jfunction(J, wrpo__jlookup('g', name), NULL);
    return v ? v : wrpo__jundefined(J, name);
}
static wrpo__jv wrpo__jeval(wrpo__jinja *J, const wrpo__jnode *x, wrpo__jval *scope) {
    wrpo__jspend(J, 1);
    J->line = x->line;
    if (x->kind == WRPO__J_CONST) return x->value;
    if (x->kind == WRPO__J_VAR) return wrpo__jlookup_var(J, x->value, scope);
    wrpo__jenter(J);
    bool lazy = x->kind == WRPO__J_COND || (x->kind == WRPO__J_BINARY && (x->op == '|' || x->op == '&'));   /* b only if a says so */
    wrpo__jv r = NULL, a = x->a ? wrpo__jeval(J, x->a, scope) : NULL, b = x->b && !lazy ? wrpo__jeval(J, x->b, scope) : NULL;
    bool lists = x->kind >= WRPO__J_CALL && x->kind <= WRPO__J_MAKE_DICT;
    wrpo__jval *items = lists ? wrpo__jnew(J, x->kind == WRPO__J_MAKE_TUPLE ? WRPO__J_TUPLE : WRPO__J_LIST) : NULL;
    wrpo__jval *named = lists ? wrpo__jnew(J, WRPO__J_DICT) : NULL;
    for (const wrpo__jnode *p = x->list; p; p = p->next) {   /* of a call, list, tuple: items and names; of a dict: pairs */
        bool word = p->kind == WRPO__J_KEYWORD;
        wrpo__jv v = wrpo__jeval(J, word ? p->a : p, scope), key = !word ? NULL : p->b ? v : p->value;
        if (word && p->b) v = wrpo__jeval(J, p->b, scope);
        if (!key) wrpo__jpush(J, items, NULL, v);
        else if (!wrpo__jdict_put(J, named, key, v) && x->kind != WRPO__J_MAKE_DICT) wrpo__jfail(J, WRPO_E_FORMAT, "an argument given twice");
    }
    J->line = x->line;
    switch (x->kind) {
    case WRPO__J_ATTR: r = wrpo__jget(J, a, x->value, true); break;
    case WRPO__J_ITEM: r = wrpo__jget(J, a, b, false); break;
    case WRPO__J_SLICE: r = wrpo__jslice(J, a, b, x->c ? wrpo__jeval(J, x->c, scope) : NULL, x->d ? wrpo__jeval(J, x->d, scope) : NULL); break;
    case WRPO__J_CALL:
        wrpo__jneed_defined(J, a);
        if (a->kind != WRPO__J_FUNCTION && a->kind != WRPO__J_MACRO) wrpo__jfail(J, WRPO_E_FORMAT, "%s cannot be called", wrpo__jtype(a));
        r = a->kind == WRPO__J_MACRO ? wrpo__jcall_macro(J, a, items, named) : wrpo__jcall_def(J, a->def, a->self, items, named);
        break;
    case WRPO__J_FILTER: r = wrpo__jinvoke(J, 'f', x->value, a, items, named); break;
    case WRPO__J_TEST: r = wrpo__jinvoke(J, 't', x->value, a, items, named); break;
    case WRPO__J_NOT: r = wrpo__jbool(!wrpo__jtruth(a)); break;
    case WRPO__J_NEG: r = a->kind == WRPO__J_FLOAT ? wrpo__jfloat(J, -a->f) : wrpo__jarithmetic(J, '-', wrpo__jint(J, 0), a); break;
    case WRPO__J_BINARY:
        if (lazy) r = wrpo__jtruth(a) == (x->op == '&') ? wrpo__jeval(J, x->b, scope) : a;
        else if (x->op == '~') r = wrpo__jjoin2(J, wrpo__jstr(J, a), wrpo__jstr(J, b));
        else r = strchr("+-*/%F", x->op) ? wrpo__jarithmetic(J, x->op, a, b) : wrpo__jbool(wrpo__jrelation(J, x->op, a, b));
        break;
    case WRPO__J_COND:
        if (wrpo__jtruth(a)) r = wrpo__jeval(J, x->b, scope);
        else r = x->c ? wrpo__jeval(J, x->c, scope) : wrpo__jundefined(J, wrpo__jstring(J, "if without else"));
        break;
    case WRPO__J_MAKE_DICT: r = named; break;
    default: r = items;                                /* MAKE_LIST, MAKE_TUPLE */
    }
    J->depth--;
    return r;
}
static wrpo__jflow wrpo__jexec(wrpo__jinja *J, const wrpo__jnode *x, wrpo__jval *scope, wrpo__text *out) {
    wrpo__jflow flow = WRPO__J_GO;
    wrpo__jenter(J);
    for (; x && flow == WRPO__J_GO; x = x->next) {
        wrpo__text body = {.arena = J->arena};
        wrpo__jval *macro;
        wrpo__jspend(J, 1);
        J->line = x->line;
        switch (x->kind) {
        case WRPO__J_TEXT: wrpo__jput(J, out, x->value->s, x->value->n); break;
        case WRPO__J_PRINT: wrpo__jprint(J, out, wrpo__jeval(J, x->a, scope)); break;
        case WRPO__J_SET: wrpo__jassign(J, x->a, wrpo__jeval(J, x->b, scope), scope); break;
        case WRPO__J_SET_BLOCK:
            wrpo__jexec(J, x->list, wrpo__jscope(J, scope), &body);
            wrpo__jassign(J, x->a, wrpo__jfinish(J, &body), scope);
            break;
        case WRPO__J_IF: flow = wrpo__jexec(J, wrpo__jtruth(wrpo__jeval(J, x->a, scope)) ? x->list : x->d, scope, out); break;
        case WRPO__J_FOR: wrpo__jrun_loop(J, x, wrpo__jeval(J, x->b, scope), scope, out); break;
        case WRPO__J_DEFINE:
            macro = wrpo__jnew(J, WRPO__J_MACRO);
            macro->node = x, macro->scope = scope;
            wrpo__jdict_put(J, scope, x->value, macro);
            break;
        case WRPO__J_BREAK: flow = WRPO__J_BROKE; break;
        case WRPO__J_CONTINUE: flow = WRPO__J_CONTINUED; break;
        default: wrpo__jexec(J, x->list, wrpo__jscope(J, scope), out);   /* SCOPE */
        }
    }
    J->depth--;
    return flow;
}

/* ---- a template, compiled once per tokenizer; and a conversation through it ---- */
static const wrpo__jnode *wrpo__jcompile(wrpo_tokenizer *tok, const wrpo__template *t) {
    wrpo__jinja J = {.ctx = tok->ctx, .arena = t->arena, .tok = tok, .line = 1, .held = tok->ctx->bytes};
    wrpo__jparser P = {.J = &J, .fresh = true};
    char *s = wrpo__alloc(t->arena, t->size + 1, 1);
    for (size_t i = 0, k, size = t->size; i < size; i += k) {   /* every newline is \n; the last one is dropped */
        const char *from = t->text + i;
        if (wrpo__utf8_get(from, size - i, &k) < 0) wrpo__fail(J.ctx, WRPO_E_FORMAT, "chat template, byte %zu: not UTF-8", i + 1);
        memcpy(s + P.n, from, k);
        P.n += k;
        if (*from == '\r') s[P.n - 1] = '\n', k = i + 1 < size && from[1] == '\n' ? 2 : 1;
    }
    P.s = s, P.n -= P.n && s[P.n - 1] == '\n';
    return wrpo__jblocks(&P, "");
}
static wrpo__jv wrpo__jfrom_json(wrpo__jinja *J, const wrpo_json *j) {
    if (j->kind == WRPO_JSON_NULL) return &wrpo__jnone;
    if (j->kind == WRPO_JSON_BOOL) return wrpo__jbool(j->boolean);
    if (j->kind == WRPO_JSON_STRING) return wrpo__jbytes(J, j->text, j->size);
    if (j->kind == WRPO_JSON_NUMBER && j->exact) return wrpo__jint(J, j->integer);
    if (j->kind == WRPO_JSON_NUMBER && strpbrk(j->text, ".eE")) return wrpo__jfloat(J, j->number);
    wrpo__jval *v = wrpo__jnew(J, j->kind == WRPO_JSON_NUMBER ? WRPO__J_INT : j->kind == WRPO_JSON_OBJECT ? WRPO__J_DICT : WRPO__J_LIST);
    if (j->kind == WRPO_JSON_NUMBER) v->s = j->text, v->n = j->size;   /* beyond 64 bits: printed as it stands */
    wrpo__jenter(J);
    for (const wrpo_json *x = j->kind == WRPO_JSON_NUMBER ? NULL : j->child; x; x = x->next)
        wrpo__jpush(J, v, j->kind == WRPO_JSON_OBJECT ? wrpo__jbytes(J, x->key, x->key_size) : NULL, wrpo__jfrom_json(J, x));
    J->depth--;
    return v;
}
/* transformers shows a message's reasoning under each name that templates know: reasoning_content, thinking. */
static wrpo__jv wrpo__jmessage(wrpo__jinja *J, const wrpo_json *message) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    wrpo__jv v = wrpo__jfrom_json(J, message), reasoning = NULL;
    wrpo__jval *d = wrpo__jnew(J, WRPO__J_DICT);
    for (int i = 0; i < 3 && !reasoning; i++) {
        reasoning = wrpo__jdict_get(J, v, wrpo__jstring(J, names[i]));
        if (reasoning && reasoning->kind == WRPO__J_NONE) reasoning = NULL;
    }
    if (!reasoning) return v;
    wrpo__jdict_put(J, d, wrpo__jstring(J, "thinking"), reasoning);
    for (int64_t i = 0; i < v->count; i++) wrpo__jdict_put(J, d, v->keys[i], v->items[i]);
    wrpo__jdict_put(J, d, wrpo__jstring(J, "reasoning_content"), reasoning);
    return d;
}
/* The conversation as text, appended to out. Everything made on the way lives in temp. now: of strftime_now. */
static void wrpo__chat_at(wrpo__arena *temp, wrpo_tokenizer *tok, const wrpo_json *messages, bool add_generation_prompt,
                          const wrpo_json *kwargs, time_t now, wrpo__text *out) {
    wrpo_ctx *ctx = tok->ctx;
    const wrpo_json *tools = wrpo__json_get(kwargs, "tools");
    wrpo__template *t = &tok->chat[tok->chat[1].text && tools && tools->kind != WRPO_JSON_NULL];    /* transformers' choice */
    if (!t->text)
        wrpo__fail(ctx, WRPO_E_FORMAT, "%s: no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)", tok->dir);
    if (messages->kind != WRPO_JSON_ARRAY) wrpo__fail(ctx, WRPO_E_ARG, "chat: want an array of messages");
    if (!t->arena) t->arena = wrpo__sub_arena(tok->arena);
    if (!t->compiled) wrpo__arena_clear(t->arena), t->tree = wrpo__jcompile(tok, t), t->compiled = true;
    wrpo__jinja J = {.ctx = ctx, .arena = temp, .tok = tok, .line = 1, .held = ctx->bytes, .now = now};
    wrpo__jval *root = wrpo__jscope(&J, NULL), *list = wrpo__jnew(&J, WRPO__J_LIST);
    for (const wrpo_json *m = messages->child; m; m = m->next) {
        if (m->kind != WRPO_JSON_OBJECT) wrpo__fail(ctx, WRPO_E_ARG, "chat: want every message to be an object");
        wrpo__jpush(&J, list, NULL, wrpo__jmessage(&J, m));
    }
    for (int i = 0; i < 7; i++)
        if (tok->special[i]) wrpo__jdict_put(&J, root, wrpo__jstring(&J, wrpo__special_names[i]), wrpo__jstring(&J, tok->special[i]));
    wrpo__jdict_put(&J, root, wrpo__jstring(&J, "tools"), &wrpo__jnone);
    wrpo__jdict_put(&J, root, wrpo__jstring(&J, "documents"), &wrpo__jnone);
    wrpo__jdict_put(&J, root, wrpo__jstring(&J, "messages"), list);
    wrpo__jdict_put(&J, root, wrpo__jstring(&J, "add_generation_prompt"), wrpo__jbool(add_generation_prompt));
    for (const wrpo_json *k = kwargs ? kwargs->child : NULL; k; k = k->next)
        wrpo__jdict_put(&J, root, wrpo__jbytes(&J, k->key, k->key_size), wrpo__jfrom_json(&J, k));
    wrpo__jexec(&J, t->tree, root, out);
}
WRPO_API wrpo_result wrpo_tokenizer_chat(wrpo_tokenizer *tok, const wrpo_json *messages, bool add_generation_prompt, const wrpo_json *kwargs, char **text, size_t *size) {
    wrpo_ctx *ctx = tok->ctx;
    *text = NULL, *size = 0;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__text out = {.arena = wrpo__current};
        wrpo__chat_at(wrpo__current, tok, messages, add_generation_prompt, kwargs, time(NULL), &out);
        *text = wrpo__handout(ctx, out.data, out.size);
        *size = out.size;
    }
    return wrpo__end(&wrpo__entry);
}

/* --------------------------------------------------------------------------------------------- >>data
   JSON lines of records to token ids.

   A record is read into the prompt's messages and its answers, each a message with a role in the loss:
     prompt    a string (a user's turn), a message, or a list of messages; or absent, where a conversation holds it
     chosen    a string, a message, or a conversation that ends in the answer: the target's answer of a pair;
               or two and more messages of an assistant: candidates, the sources first, the target last
     rejected  a string, a message or a conversation: one answer
     weights   with chosen: of the sources, divided by their sum; absent: equal
     pairs     instead of the two: [{chosen, rejected, weight}, ...], one answer each: of one source a pair
     messages  instead of the two: a conversation; its last message is the answer, for SFT
     weight    of the record's loss
   and may hold prompt_id, tools and chat_template_kwargs. Then it is tokenized in one of two ways:
     clean     the prompt's ids are what the model is given at inference; an answer's ids are what the template
               writes after that, up to and including the turn's end token, once
     authors   as the reference trainer does it, for parity                                                   */
typedef struct wrpo__answer { wrpo_role role; const wrpo_json *message; double weight; int pair; } wrpo__answer;
typedef struct wrpo__ids { int32_t *ids; int64_t first; } wrpo__ids;         /* stb array; scored from first */
typedef struct wrpo__reading {       /* a file on its way into data */
    wrpo_ctx *ctx;
    wrpo_data *data;
    wrpo_tokenizer *tok;
    wrpo_data_desc desc;             /* resolved */
    time_t now;                      /* one date for all templates that show one */
    int32_t *ends;                   /* stb array: the tokens that may end a turn: special ones and EOS */
    /* of the record; in its arena, which goes when it is done */
    int64_t line;
    const char *id;
    const wrpo_json **prompt;        /* stb array of messages; NULL: not known yet */
    wrpo__answer *answers;           /* stb array */
    const wrpo_json *kwargs;         /* for the template; NULL: none */
    double weight;
    bool tokenizing;                 /* an error now is the template's or the tokenizer's, and does not name the record yet */
} wrpo__reading;
_Noreturn WRPO__PRINTF(3, 4) static void wrpo__record_fail(wrpo__reading *in, const wrpo_json *at, const char *format, ...) {
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    in->tokenizing = false;
    wrpo__fail_at(in->ctx, WRPO_E_FORMAT, in->line, at ? at->column : 0, "%s:%lld: record \"%.80s\": %s", in->desc.path, (long long)in->line, in->id, what);
}
_Noreturn static void wrpo__record_refuse(wrpo__reading *in, const wrpo_json *v, const char *what, const char *want) {
    wrpo__shown found;
    wrpo__record_fail(in, v, "%s: want %s, found %s", what, want, wrpo__json_found(found, v));
}

/* ---- a line to messages. Nodes that are put together anew are shallow copies: a node is in one list only ---- */
static wrpo_json *wrpo__json_copy(wrpo__arena *arena, const wrpo_json *v, const char *key) {   /* v, alone and under another name */
    wrpo_json *copy = WRPO__NEW(arena, wrpo_json);
    *copy = *v;
    copy->next = NULL;
    if (key) copy->key = key, copy->key_size = strlen(key);
    return copy;
}
static void wrpo__json_append(wrpo_json *parent, wrpo_json *v) {
    wrpo_json **tail = &parent->child;
    while (*tail) tail = &(*tail)->next;
    *tail = v;
    parent->count++;
}
static const wrpo_json *wrpo__message_of(const char *role, const wrpo_json *text) {   /* a bare string as a message */
    wrpo_json *message = WRPO__NEW(wrpo__current, wrpo_json), r = {.kind = WRPO_JSON_STRING, .text = role, .size = strlen(role)};
    message->kind = WRPO_JSON_OBJECT, message->line = text->line, message->column = text->column;
    wrpo__json_append(message, wrpo__json_copy(wrpo__current, &r, "role"));
    wrpo__json_append(message, wrpo__json_copy(wrpo__current, text, "content"));
    return message;
}
/* A string, a message or a list of either, as an stb array of messages; a string takes the role given. */
static const wrpo_json **wrpo__messages(wrpo__reading *in, const wrpo_json *v, const char *role, const char *what) {
    const wrpo_json **list = NULL;
    bool many = v->kind == WRPO_JSON_ARRAY;
    for (const wrpo_json *m = many ? v->child : v; m; m = many ? m->next : NULL) {
        const wrpo_json *message = m->kind == WRPO_JSON_STRING ? wrpo__message_of(role, m) : m, *r = wrpo__json_get(message, "role");
        if (message->kind != WRPO_JSON_OBJECT) wrpo__record_refuse(in, m, what, many ? "messages" : "a string, a message or a list of messages");
        if (!r) wrpo__record_fail(in, message, "%s: want a message with a \"role\", found none", what);
        if (r->kind != WRPO_JSON_STRING) wrpo__record_refuse(in, r, what, "a string as \"role\"");
        stbds_arrput(list, message);
    }
    if (!list) wrpo__record_fail(in, v, "%s: want at least one message, found none", what);
    return list;
}
static bool wrpo__is_assistant(const wrpo_json *message) { return wrpo__json_is(wrpo__json_get(message, "role"), "assistant"); }
static void wrpo__add_answer(wrpo__reading *in, wrpo_role role, const wrpo_json *message, double weight, int pair, const char *what) {
    const wrpo_json *content = wrpo__json_get(message, "content");
    if (!content) wrpo__record_fail(in, message, "%s: want a message with a \"content\", found none", what);
    if (content->kind != WRPO_JSON_STRING) wrpo__record_refuse(in, content, what, "a string as \"content\"");
    if (wrpo__jskip_space(content->text, content->size, 0) == content->size) wrpo__record_fail(in, message, "%s: want a response, found an empty one", what);
    wrpo__answer answer = {role, message, weight, pair};
    stbds_arrput(in->answers, answer);
}
static bool wrpo__json_same(const wrpo_json *a, const wrpo_json *b) {
    if (!a || !b || a->kind != b->kind || a->count != b->count) return a == b;
    if (a->kind == WRPO_JSON_STRING || a->kind == WRPO_JSON_NUMBER) return a->size == b->size && memcmp(a->text, b->text, a->size) == 0;
    if (a->kind == WRPO_JSON_BOOL) return a->boolean == b->boolean;
    const wrpo_json *x = a->child, *y = b->child;
    for (; x; x = x->next, y = y->next)
        if (!wrpo__json_same(x, a->kind == WRPO_JSON_OBJECT ? wrpo__json_get(b, x->key) : y)) return false;
    return true;
}
/* The answer at the end of a conversation; the messages before it are the prompt, or agree with the one that is known. */
static const wrpo_json *wrpo__take_conversation(wrpo__reading *in, const wrpo_json **list, const char *what) {
    const int64_t n = stbds_arrlen(list) - 1;
    if (!wrpo__is_assistant(list[n])) wrpo__record_refuse(in, wrpo__json_get(list[n], "role"), what, "\"assistant\" as the last role");
    if (n == 0) return list[0];
    bool same = !in->prompt || stbds_arrlen(in->prompt) == n;
    if (!in->prompt)
        for (int64_t i = 0; i < n; i++) stbds_arrput(in->prompt, list[i]);
    for (int64_t i = 0; same && i < n; i++)
        same = wrpo__json_same(wrpo__json_get(list[i], "role"), wrpo__json_get(in->prompt[i], "role")) &&
               wrpo__json_same(wrpo__json_get(list[i], "content"), wrpo__json_get(in->prompt[i], "content"));
    if (!same) wrpo__record_fail(in, list[0], "%s: want the prompt before the answer, found other messages", what);
    return list[n];
}
/* A number of at least 0; absent: otherwise. */
static double wrpo__read_weight(wrpo__reading *in, const wrpo_json *v, const char *what, double otherwise) {
    if (v && !(v->kind == WRPO_JSON_NUMBER && v->number >= 0 && v->number <= DBL_MAX)) wrpo__record_refuse(in, v, what, "a finite number of at least 0");
    return v ? v->number : otherwise;
}
/* The sources' answers, which come first, share by their weights. */
static void wrpo__share_weights(wrpo__reading *in, int64_t sources, const wrpo_json *at) {
    double sum = 0;
    for (int64_t i = 0; i < sources; i++) sum += in->answers[i].weight;
    if (!(sum > 0 && sum <= DBL_MAX)) wrpo__record_fail(in, at, "weights: want a positive sum, found %g", sum);
    for (int64_t i = 0; i < sources; i++) in->answers[i].weight /= sum;
}
static void wrpo__read_answers(wrpo__reading *in, const wrpo_json *v, const wrpo_json *weights, bool chosen) {
    const char *what = chosen ? "chosen" : "rejected";
    const wrpo_json **list = wrpo__messages(in, v, "assistant", what), *w = weights ? weights->child : NULL;
    const int64_t n = stbds_arrlen(list), sources = n - 1;
    bool candidates = n > 1;
    for (int64_t i = 0; i < n; i++) candidates = candidates && wrpo__is_assistant(list[i]);
    if (!chosen && candidates) wrpo__record_fail(in, v, "rejected: want one response, found %lld", (long long)n);
    if (weights && (weights->kind != WRPO_JSON_ARRAY || !candidates || weights->count != sources))
        wrpo__record_fail(in, weights, "weights: want an array of a number for each source, %lld, found %lld", candidates ? (long long)sources : 0LL, (long long)weights->count);
    if (!candidates) {
        wrpo__add_answer(in, chosen ? WRPO_ROLE_TARGET : WRPO_ROLE_REJECTED, wrpo__take_conversation(in, list, what), 1, 0, what);
        return;
    }
    for (int64_t i = 0; i < sources; i++, w = w ? w->next : NULL) wrpo__add_answer(in, WRPO_ROLE_SOURCE, list[i], wrpo__read_weight(in, w, "weights", 1), 0, what);
    wrpo__share_weights(in, sources, v);
    wrpo__add_answer(in, WRPO_ROLE_TARGET, list[sources], 1, 0, what);
}
/* [{chosen, rejected, weight}, ...]: the chosen ones as sources, then the rejected ones; pairs are numbered from 1. */
static void wrpo__read_pairs(wrpo__reading *in, const wrpo_json *pairs) {
    static const char *const sides[] = {"chosen", "rejected"};
    int64_t weighted = 0;
    if (pairs->kind != WRPO_JSON_ARRAY || !pairs->count) wrpo__record_refuse(in, pairs, "pairs", "an array of {chosen, rejected}");
    for (int side = 0; side < 2; side++) {
        int k = 1;
        for (const wrpo_json *p = pairs->child; p; p = p->next, k++) {
            if (p->kind != WRPO_JSON_OBJECT) wrpo__record_refuse(in, p, "pairs", "an object {chosen, rejected}");
            const wrpo_json *v = wrpo__present(p, sides[side]), *w = wrpo__present(p, "weight");
            if (!v) wrpo__record_fail(in, p, "pairs: want \"chosen\" and \"rejected\", found no \"%s\"", sides[side]);
            const wrpo_json **list = wrpo__messages(in, v, "assistant", sides[side]);
            if (side == 0) weighted += w != NULL;
            wrpo__add_answer(in, side ? WRPO_ROLE_REJECTED : WRPO_ROLE_SOURCE, wrpo__take_conversation(in, list, sides[side]), wrpo__read_weight(in, w, "weight", 1), k, sides[side]);
        }
    }
    if (weighted && weighted != pairs->count) wrpo__record_fail(in, pairs, "pairs: want a weight for all of them or for none, found %lld of %lld", (long long)weighted, (long long)pairs->count);
    wrpo__share_weights(in, pairs->count, pairs);
    for (int64_t i = 0; i < pairs->count; i++) in->answers[pairs->count + i].weight = in->answers[i].weight;
}
static void wrpo__read_head(wrpo__reading *in, const wrpo_json *root) {   /* what it is called, and what the template wants beside messages */
    if (root->kind != WRPO_JSON_OBJECT) wrpo__record_refuse(in, root, "JSON", "an object");
    const wrpo_json *id = wrpo__present(root, "prompt_id"), *tools = wrpo__present(root, "tools"), *kwargs = wrpo__present(root, "chat_template_kwargs");
    if (id && id->kind != WRPO_JSON_STRING && id->kind != WRPO_JSON_NUMBER) wrpo__record_refuse(in, id, "prompt_id", "a string or a number");
    if (id) in->id = id->text;
    if (kwargs && kwargs->kind != WRPO_JSON_OBJECT) wrpo__record_refuse(in, kwargs, "chat_template_kwargs", "an object");
    if (tools && tools->kind != WRPO_JSON_ARRAY) wrpo__record_refuse(in, tools, "tools", "an array");
    if ((kwargs || tools) && in->desc.tokenization == WRPO_TOKENIZATION_AUTHORS)
        wrpo__record_fail(in, tools ? tools : kwargs, "want no tools and no chat_template_kwargs: the authors' tokenization knows none");
    in->kwargs = NULL;
    if (kwargs || tools) {
        wrpo_json *all = WRPO__NEW(wrpo__current, wrpo_json);
        all->kind = WRPO_JSON_OBJECT;
        if (tools) wrpo__json_append(all, wrpo__json_copy(wrpo__current, tools, NULL));
        for (const wrpo_json *k = kwargs ? kwargs->child : NULL; k; k = k->next) wrpo__json_append(all, wrpo__json_copy(wrpo__current, k, NULL));
        in->kwargs = all;
    }
}
static void wrpo__end_prompt(wrpo__reading *in) {
    const wrpo_json *last = stbds_arrlast(in->prompt);
    if (wrpo__is_assistant(last)) wrpo__record_refuse(in, wrpo__json_get(last, "role"), "prompt", "another last role than the assistant's");
}
static void wrpo__read_record(wrpo__reading *in, const wrpo_json *root) {
    wrpo__read_head(in, root);
    const wrpo_json *prompt = wrpo__present(root, "prompt"), *messages = wrpo__present(root, "messages");
    const wrpo_json *chosen = wrpo__present(root, "chosen"), *rejected = wrpo__present(root, "rejected");
    const wrpo_json *pairs = wrpo__present(root, "pairs"), *weights = wrpo__present(root, "weights"), *weight = wrpo__present(root, "weight");
    in->weight = wrpo__read_weight(in, weight, "weight", 1);
    if (in->weight == 0) in->weight = WRPO_ZERO;
    if (pairs && (chosen || rejected || messages)) wrpo__record_fail(in, pairs, "want \"pairs\" alone, or \"chosen\" and \"rejected\", or \"messages\"; found several");
    if (weights && !chosen) wrpo__record_fail(in, weights, "weights: want them with the sources of \"chosen\", found no \"chosen\"");
    if (pairs) {
        if (prompt) in->prompt = wrpo__messages(in, prompt, "user", "prompt");
        wrpo__read_pairs(in, pairs);
    } else if (messages && !chosen && !rejected) {
        const wrpo_json **list = wrpo__messages(in, messages, "user", "messages");
        if (stbds_arrlen(list) < 2) wrpo__record_fail(in, messages, "messages: want a prompt and an answer, found one message");
        wrpo__add_answer(in, WRPO_ROLE_SOURCE, wrpo__take_conversation(in, list, "messages"), 1, 0, "messages");
    } else {
        if (!chosen || !rejected) wrpo__record_fail(in, root, "want \"chosen\" and \"rejected\", or \"messages\"; found no \"%s\"", chosen ? "rejected" : "chosen");
        if (prompt) in->prompt = wrpo__messages(in, prompt, "user", "prompt");
        wrpo__read_answers(in, chosen, weights, true);
        wrpo__read_answers(in, rejected, NULL, false);
    }
    if (!in->prompt) wrpo__record_fail(in, root, "want a \"prompt\" or a conversation in \"chosen\", found none");
    wrpo__end_prompt(in);
}

/* ---- clean ---- */
static void wrpo__render(wrpo__reading *in, const wrpo_json *const *messages, int64_t count, const wrpo_json *answer, bool add_generation_prompt, wrpo__text *out) {
    wrpo_json all = {.kind = WRPO_JSON_ARRAY};
    for (int64_t i = 0; i < count; i++) wrpo__json_append(&all, wrpo__json_copy(wrpo__current, messages[i], NULL));
    if (answer) wrpo__json_append(&all, wrpo__json_copy(wrpo__current, answer, NULL));
    wrpo__chat_at(wrpo__current, in->tok, &all, add_generation_prompt, in->kwargs, in->now, out);
    wrpo__text_add(out, "", 0);                        /* never NULL */
}
/* Which part of `whole`, the conversation with its answer, is the response: from where `before`, the prompt as the
   model gets it, ends; to behind the first end token after the answer's own text (which may hold such tokens as
   well). Where that text begins and ends shows in a second rendering, with an answer that shares no character
   with it: what both texts have in common in front and behind is the template's. false: no end token.         */
static bool wrpo__response_span(wrpo__reading *in, const wrpo_json *message, const wrpo__text *before, const wrpo__text *whole, size_t *from, size_t *to) {
    static const char marks[] = "\1\2\3\4\5\6QZX";
    const wrpo_json *content = wrpo__json_get(message, "content");
    const size_t n = whole->size;
    size_t head = 0, tail = 0, k = 0;
    while (marks[k + 1] && memchr(content->text, marks[k], content->size)) k++;
    wrpo_json mark = {.kind = WRPO_JSON_STRING, .text = marks + k, .size = 1}, other = {.kind = WRPO_JSON_OBJECT};
    for (const wrpo_json *v = message->child; v; v = v->next) wrpo__json_append(&other, wrpo__json_copy(wrpo__current, v == content ? &mark : v, v->key));
    wrpo__text probe = {.arena = wrpo__current};
    wrpo__render(in, in->prompt, stbds_arrlen(in->prompt), &other, false, &probe);
    const size_t least = WRPO__MIN(n, probe.size);
    while (head < least && whole->data[head] == probe.data[head]) head++;
    while (tail < least - head && whole->data[n - 1 - tail] == probe.data[probe.size - 1 - tail]) tail++;
    if (head + tail >= n || head + tail >= probe.size) wrpo__record_fail(in, message, "the chat template does not show the response");
    *from = before->size;
    if (before->size > n - tail || memcmp(whole->data, before->data, before->size) != 0) {
        *from = head;                /* a template that writes a prompt differently once it is answered */
        while (*from > 0 && before->size && wrpo__jspace(whole->data[*from - 1]) && whole->data[*from - 1] != before->data[before->size - 1]) --*from;
    }
    for (size_t i = n - tail; i < n; i++) {
        size_t longest = 0;
        for (int64_t t = 0; t < stbds_arrlen(in->ends); t++) {
            const wrpo__token *token = &in->tok->tokens[in->ends[t]];
            const size_t size = (size_t)token->size;
            if (size > longest && size <= n - i && memcmp(whole->data + i, token->text, size) == 0) longest = size;
        }
        *to = i + longest;
        if (longest) return true;
    }
    *to = n;
    return false;
}
/* The ids of `rest` behind the prompt's: both as one text, from which the prompt's ids are taken off, since families that
   put a space in front of a text do so behind a special token as well. The prompt stays as it is at inference, so
   where its last token would merge with the rest or swallow white space of it, the rest is tokenized on its own. */
static void wrpo__encode_after(wrpo__reading *in, const wrpo__text *before, const int32_t *prompt, const char *rest, size_t n, int32_t **ids) {
    const int64_t P = stbds_arrlen(prompt);
    wrpo__text both = {.arena = wrpo__current};
    wrpo__text_add(&both, before->data, before->size);
    wrpo__text_add(&both, rest, n);
    wrpo__encode(in->tok, both.data, both.size, 0, ids);
    bool swallows = P && n && in->tok->tokens[prompt[P - 1]].flags & WRPO__TOKEN_RSTRIP && wrpo__jskip_space(rest, n, 0) > 0;
    if (!swallows && stbds_arrlen(*ids) >= P && (!P || memcmp(*ids, prompt, (size_t)P * sizeof *prompt) == 0)) {
        if (P) stbds_arrdeln(*ids, 0, (size_t)P);
        return;
    }
    stbds_arrsetlen(*ids, 0);
    wrpo__encode(in->tok, rest, n, WRPO_TOKENIZER_CONTINUE, ids);
}
static void wrpo__tokenize_clean(wrpo__reading *in, wrpo__ids *prompt, wrpo__ids *out) {
    const int64_t count = stbds_arrlen(in->prompt), K = stbds_arrlen(in->answers);
    wrpo__text before = {.arena = wrpo__current};
    wrpo__render(in, in->prompt, count, NULL, true, &before);
    wrpo__encode(in->tok, before.data, before.size, 0, &prompt->ids);
    const int64_t full = stbds_arrlen(prompt->ids), P = WRPO__MIN(full, in->desc.max_prompt_length);
    for (int64_t k = 0; k < K; k++) {
        wrpo__text whole = {.arena = wrpo__current};
        size_t from, to;
        wrpo__render(in, in->prompt, count, in->answers[k].message, false, &whole);
        bool ends = wrpo__response_span(in, in->answers[k].message, &before, &whole, &from, &to);
        wrpo__encode_after(in, &before, prompt->ids, whole.data + from, to - from, &out[k].ids);
        if (!ends && in->tok->eos >= 0) stbds_arrput(out[k].ids, in->tok->eos);
        if (P + stbds_arrlen(out[k].ids) > in->desc.max_length) {   /* a response keeps its begin */
            stbds_arrsetlen(out[k].ids, (size_t)(in->desc.max_length - P));
            in->data->stats.truncated_responses++;
        }
    }
    if (full > P) stbds_arrdeln(prompt->ids, 0, (size_t)(full - P));          /* the prompt its end */
    in->data->stats.truncated_prompts += full > P;
}

/* ---- authors: tokenize_row of the reference trainer ----
   The prompt is rendered without the generation prompt; each answer as a conversation of its own without BOS, so
   that the assistant's header is scored with it. Both are tokenized as one text, in which the prompt is as long as
   alone, or a token less if that would change it. EOS is appended once more. Truncation looks at the longest
   response for all: the prompts keep their ends, then, if still needed, every response its begin.             */
static void wrpo__tokenize_authors(wrpo__reading *in, wrpo__ids *prompt, wrpo__ids *out) {
    const int64_t K = stbds_arrlen(in->answers), max_length = in->desc.max_length, max_prompt = in->desc.max_prompt_length;
    const char *bos_token = in->tok->special[0];
    const size_t bos = bos_token ? strlen(bos_token) : 0;
    int32_t *alone = NULL;                             /* stb array */
    int64_t longest = 0, shared = INT64_MAX;
    bool cut = false;
    wrpo__text before = {.arena = wrpo__current};
    if (in->tok->eos < 0) wrpo__fail(in->ctx, WRPO_E_ARG, "the authors' tokenization wants an eos_token, the tokenizer has none");
    wrpo__render(in, in->prompt, stbds_arrlen(in->prompt), NULL, false, &before);
    wrpo__encode(in->tok, before.data, before.size, 0, &alone);
    for (int64_t k = 0; k < K; k++) {
        wrpo__text turn = {.arena = wrpo__current}, whole = {.arena = wrpo__current};
        wrpo__render(in, NULL, 0, in->answers[k].message, false, &turn);
        size_t skip = bos && turn.size >= bos && memcmp(turn.data, bos_token, bos) == 0 ? bos : 0;
        wrpo__text_add(&whole, before.data, before.size);
        wrpo__text_add(&whole, turn.data + skip, turn.size - skip);
        int32_t *ids = NULL;
        wrpo__encode(in->tok, whole.data, whole.size, 0, &ids);
        int64_t border = stbds_arrlen(alone), n = stbds_arrlen(ids);
        if (border > n) wrpo__record_fail(in, in->answers[k].message, "with the response, the prompt has fewer tokens than alone: the authors' tokenization cannot tell them apart");
        if (border && memcmp(ids, alone, (size_t)border * sizeof *ids) != 0) border--;
        if (border == n) wrpo__record_fail(in, in->answers[k].message, "response %lld has no token", (long long)k + 1);
        stbds_arrput(ids, in->tok->eos);
        out[k] = (wrpo__ids){ids, border};             /* the prompt and the response, until below */
        longest = WRPO__MAX(longest, n + 1 - border);
    }
    for (int64_t k = 0; k < K - 1; k++) {              /* a chosen one's prompt and the rejected one's: at most one token may differ */
        int64_t other = 0;
        for (int64_t i = 0; i < WRPO__MIN(out[k].first, out[K - 1].first); i++) other += out[k].ids[i] != out[K - 1].ids[i];
        if (other > 1) wrpo__record_fail(in, in->answers[k].message, "the responses change more than the prompt's last token");
    }
    for (int64_t k = 0; k < K; k++) {
        int64_t P = out[k].first;
        if (P + longest > max_length && P > max_prompt) {
            stbds_arrdeln(out[k].ids, 0, (size_t)(P - max_prompt));
            out[k].first = P = max_prompt, cut = true;
        }
        if (P + longest > max_length && stbds_arrlen(out[k].ids) - P > max_length - max_prompt) {
            stbds_arrsetlen(out[k].ids, (size_t)(P + max_length - max_prompt));
            in->data->stats.truncated_responses++;
        }
        int64_t same = 0;                              /* with the first one's prompt */
        while (same < P && same < out[0].first && out[k].ids[same] == out[0].ids[same]) same++;
        shared = WRPO__MIN(shared, same);
    }
    in->data->stats.truncated_prompts += cut;
    if (shared == 0 && cut) wrpo__record_fail(in, NULL, "truncated, the responses' prompts have no token in common: want a shorter prompt or a larger max_prompt_length");
    for (int64_t i = 0; i < shared; i++) stbds_arrput(prompt->ids, out[0].ids[i]);
    for (int64_t k = 0; k < K; k++) {                  /* what is not shared stays with the response, unscored */
        stbds_arrdeln(out[k].ids, 0, (size_t)shared);
        out[k].first -= shared;
    }
}

/* ---- lines of a file, but for blank ones ---- */
typedef struct wrpo__lines { const wrpo__file *file; const char *text; size_t size, next; int64_t number; } wrpo__lines;
static bool wrpo__next_line(wrpo__lines *l) {
    const char *data = (const char *)l->file->data;
    if (!l->next && l->file->size >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) l->next = 3;      /* a byte order mark: once, in front */
    while (l->next < l->file->size) {
        const char *at = data + l->next, *newline = memchr(at, '\n', l->file->size - l->next);
        size_t n = newline ? (size_t)(newline - at) : l->file->size - l->next, blank = 0;
        l->next += n + (newline != NULL);
        l->number++;
        if (n && at[n - 1] == '\r') n--;
        while (blank < n && (at[blank] == ' ' || at[blank] == '\t')) blank++;
        l->text = at, l->size = n;
        if (blank < n) return true;
    }
    return false;
}

/* ---- records ---- */
static void wrpo__name_record(const wrpo__reading *in) {   /* in front of the sentence of an error from below */
    wrpo_error *e = &in->ctx->error;
    char place[256], sentence[sizeof e->text];
    snprintf(place, sizeof place, "%.150s:%lld: record \"%.60s\": ", in->desc.path, (long long)in->line, in->id);
    memcpy(sentence, e->text, sizeof sentence);
    size_t n = strlen(place), m = WRPO__MIN(strlen(sentence), sizeof e->text - 1 - n);
    memcpy(e->text, place, n);
    memcpy(e->text + n, sentence, m);
    e->text[n + m] = 0;
    e->line = in->line, e->column = 0;
}
/* One line. An entry of its own, so that its arena goes with it and an error from below learns which record it is about. */
static wrpo_result wrpo__load_line(wrpo__reading *in, const char *text, size_t n) {
    WRPO__TRY(in->ctx, wrpo__arena_new(in->ctx), true) {
        in->id = wrpo__format(wrpo__current, "line %lld", (long long)in->line);
        in->prompt = NULL, in->answers = NULL;
        wrpo__read_record(in, wrpo__json_parse(wrpo__current, in->desc.path, in->line, text, n));
        const int64_t K = stbds_arrlen(in->answers);
        wrpo__ids prompt = {0}, *out = wrpo__alloc(wrpo__current, (size_t)K, sizeof *out);
        wrpo_tokens *responses = wrpo__alloc(wrpo__current, (size_t)K, sizeof *responses);
        in->tokenizing = true;
        if (in->desc.tokenization == WRPO_TOKENIZATION_AUTHORS) wrpo__tokenize_authors(in, &prompt, out);
        else wrpo__tokenize_clean(in, &prompt, out);
        in->tokenizing = false;
        if (stbds_arrlen(prompt.ids) == 0) wrpo__record_fail(in, NULL, "the prompt has no token");
        for (int64_t k = 0; k < K; k++) {
            responses[k] = (wrpo_tokens){in->answers[k].role, out[k].ids, stbds_arrlen(out[k].ids), out[k].first, in->answers[k].weight, in->answers[k].pair};
            if (responses[k].count <= responses[k].first) wrpo__record_fail(in, in->answers[k].message, "response %lld has no token", (long long)k + 1);
        }
        const wrpo_record record = {in->id, in->line, prompt.ids, stbds_arrlen(prompt.ids), responses, (int)K, in->weight};
        wrpo__data_add(in->data, &record);
    }
    if (wrpo__entry.failed && in->tokenizing && in->ctx->error.code != WRPO_E_MEMORY) wrpo__name_record(in);
    in->tokenizing = false;
    return wrpo__end(&wrpo__entry);
}
static void wrpo__find_ends(wrpo__reading *in) {
    for (int32_t id = 0; id < (int32_t)in->tok->size; id++)
        if ((wrpo__is_special(in->tok, id) || id == in->tok->eos) && in->tok->tokens[id].size > 0) stbds_arrput(in->ends, id);
}
static wrpo_data *wrpo__data_load(wrpo__arena *arena, wrpo_tokenizer *tok, const wrpo_data_desc *desc) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo_data *data = WRPO__NEW(arena, wrpo_data);
    wrpo__reading in = {.ctx = ctx, .data = data, .tok = tok, .desc = *desc, .now = time(NULL)};
    int64_t *max_length = &in.desc.max_length, *max_prompt = &in.desc.max_prompt_length;
    data->ctx = ctx, data->arena = arena;
    if (!desc->path) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_data_desc: want a path, found NULL");
    if (*max_length < 0 || *max_prompt < 0 || desc->limit < 0)
        wrpo__fail(ctx, WRPO_E_ARG, "wrpo_data_desc: want max_length, max_prompt_length and limit of at least 0, found %lld, %lld and %lld",
                   (long long)*max_length, (long long)*max_prompt, (long long)desc->limit);
    if (!*max_length) *max_length = 2048;
    if (!*max_prompt) *max_prompt = WRPO__MAX(*max_length / 2048 * 1800 + *max_length % 2048 * 1800 / 2048, 1);
    if (*max_prompt >= *max_length)
        wrpo__fail(ctx, WRPO_E_ARG, "max_prompt_length: want less than max_length, %lld, found %lld", (long long)*max_length, (long long)*max_prompt);
    wrpo__arena *work = wrpo__sub_arena(arena);            /* what goes when the file is read */
    const wrpo__file *f = wrpo__open_file(work, desc->path);
    wrpo__current = work;
    wrpo__find_ends(&in);
    for (wrpo__lines l = {.file = f}; !(desc->limit && data->stats.records >= desc->limit) && wrpo__next_line(&l);) {
        in.line = l.number;
        wrpo__rethrow(ctx, wrpo__load_line(&in, l.text, l.size));
    }
    wrpo__current = arena;
    wrpo__arena_clear(work);
    if (!data->stats.records) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want records, found none", desc->path);
    if (data->stats.truncated_prompts || data->stats.truncated_responses)
        wrpo__log(ctx, WRPO_LOG_WARN, "%s: %lld prompts and %lld responses were cut to fit %lld tokens, of which %lld for a prompt", desc->path,
                  (long long)data->stats.truncated_prompts, (long long)data->stats.truncated_responses, (long long)*max_length, (long long)*max_prompt);
    return data;
}
WRPO_API wrpo_result wrpo_data_load(wrpo_tokenizer *tok, const wrpo_data_desc *desc, wrpo_data **out) {
    *out = NULL;
    WRPO__TRY(tok->ctx, wrpo__arena_new(tok->ctx), false) *out = wrpo__data_load(wrpo__entry.arena, tok, desc);
    return wrpo__end(&wrpo__entry);
}

/* ---- for generation: the prompt alone, and what ends an answer ---- */
static wrpo_result wrpo__prompt_ids(wrpo__reading *in, const wrpo_json *record, bool raw, int32_t **ids, int64_t *count) {
    WRPO__TRY(in->ctx, wrpo__arena_new(in->ctx), true) {
        int32_t *list = NULL;
        wrpo__read_head(in, record);
        const wrpo_json *prompt = wrpo__present(record, "prompt"), *messages = wrpo__present(record, "messages");
        if (!prompt == !messages) wrpo__record_fail(in, record, "want either \"prompt\" or \"messages\", found %s", prompt ? "both" : "none");
        if (raw && (messages || prompt->kind != WRPO_JSON_STRING)) wrpo__record_refuse(in, prompt ? prompt : messages, "raw prompt", "a string");
        if (!raw) {
            in->prompt = wrpo__messages(in, prompt ? prompt : messages, "user", prompt ? "prompt" : "messages");
            wrpo__end_prompt(in);
        }
        wrpo__text text = {.arena = wrpo__current};
        in->tokenizing = true;
        if (raw) wrpo__text_add(&text, prompt->text, prompt->size);
        else wrpo__render(in, in->prompt, stbds_arrlen(in->prompt), NULL, true, &text);
        wrpo__encode(in->tok, text.data, text.size, raw ? WRPO_TOKENIZER_SPECIAL : 0, &list);
        in->tokenizing = false;
        if (stbds_arrlen(list) == 0) wrpo__record_fail(in, NULL, "the prompt has no token");
        *ids = wrpo__handout(in->ctx, list, (size_t)stbds_arrlen(list) * sizeof *list);
        *count = stbds_arrlen(list);
    }
    if (wrpo__entry.failed && in->tokenizing && in->ctx->error.code != WRPO_E_MEMORY) wrpo__name_record(in);
    return wrpo__end(&wrpo__entry);
}
WRPO_API wrpo_result wrpo_tokenizer_prompt(wrpo_tokenizer *tok, const wrpo_tokenizer_prompt_desc *desc, const wrpo_json *record, int32_t **ids, int64_t *count) {
    char id[40];
    wrpo__reading in = {.ctx = tok->ctx, .tok = tok, .desc.path = desc->name ? desc->name : "prompts", .line = desc->line ? desc->line : record->line,
                        .now = desc->now ? (time_t)desc->now : time(NULL), .id = id};
    snprintf(id, sizeof id, "line %lld", (long long)in.line);
    *ids = NULL, *count = 0;
    return wrpo__prompt_ids(&in, record, desc->raw, ids, count);
}
/* The token that ends an answer in the chat template; -1: it has none, raises on this conversation, or there is no template. */
static wrpo_result wrpo__answer_end(wrpo_tokenizer *tok, int32_t *end) {
    *end = -1;
    WRPO__TRY(tok->ctx, wrpo__arena_new(tok->ctx), true) {
        const wrpo_json said = {.kind = WRPO_JSON_STRING, .text = "x", .size = 1};
        wrpo__reading in = {.ctx = tok->ctx, .tok = tok, .desc.path = "chat template", .id = "of stop tokens", .now = time(NULL)};
        wrpo__text before = {.arena = wrpo__current}, whole = {.arena = wrpo__current};
        const wrpo_json *answer = wrpo__message_of("assistant", &said);
        int32_t *ids = NULL;
        size_t from, to;
        wrpo__find_ends(&in);
        stbds_arrput(in.prompt, wrpo__message_of("user", &said));
        wrpo__render(&in, in.prompt, 1, NULL, true, &before);
        wrpo__render(&in, in.prompt, 1, answer, false, &whole);
        if (wrpo__response_span(&in, answer, &before, &whole, &from, &to)) {
            wrpo__encode(tok, whole.data + from, to - from, WRPO_TOKENIZER_CONTINUE, &ids);
            *end = stbds_arrlast(ids);
        }
    }
    return wrpo__end(&wrpo__entry);
}

/* ------------------------------------------------------------------------------------------ >>generate
   Samples of many prompts at once, over a cache of keys and values.

   A prompt's keys and values are computed once and are the prefix that all its samples attend to; a sample has rows of the cache
   of its own. One step packs the newest token of every live sample and, into the rows left, pieces of prompts, and runs the one
   model text over them; a row's bits do not depend on the others. From the logits of a prompt's last row all its samples draw
   their first token; those that find no place among the live ones wait with it. A prompt is begun when places would stay empty. */
typedef struct wrpo__draft {         /* a sample in the making */
    struct wrpo__job *job;
    int64_t number, place;           /* place among the live ones; -1: none */
    int32_t *ids; float *logps;      /* stb arrays */
    size_t shown;                    /* bytes of its text that on_text has had */
    bool stopped, done;
} wrpo__draft;
typedef struct wrpo__job {           /* a prompt that is begun and not delivered yet */
    int64_t prompt, place, rows, left, limit;          /* rows of it in the cache; samples not done; tokens of a sample at most */
    wrpo__draft *drafts;             /* [n] */
} wrpo__job;
typedef struct wrpo__weighed { float weight; int32_t id; } wrpo__weighed;
typedef struct wrpo__generation {
    wrpo_model *model;
    wrpo_generate_desc desc;         /* resolved */
    const wrpo_prompt *prompts; int64_t count;
    int64_t longest, limit, jobs_most;                 /* rows of a prompt's and of a sample's place in the cache; places of prompts */
    wrpo__run *run;
    wrpo__job **jobs;                /* stb array: of prompts [delivered, begun) */
    int64_t begun, delivered, tokens;
    wrpo__draft **live, **waiting;   /* [batch], NULL: free; stb array */
    bool *taken;                     /* [jobs_most] places of prompts */
    wrpo__draft **draws;             /* [rows] who draws from the run's target i */
    wrpo__text *texts; wrpo_sample *samples;           /* [n] of a prompt that is delivered */
    float *logits; wrpo__weighed *ranked;               /* [chunk, V] on the host; ranked NULL where none is needed */
} wrpo__generation;

WRPO_API wrpo_generate_desc wrpo_generate_defaults(const wrpo_generate_desc *desc) {
    wrpo_generate_desc d = *desc;
    if (!d.n) d.n = 1;
    if (!d.max_tokens) d.max_tokens = 2048;
    if (d.top_p == 0) d.top_p = 1;
    if (!d.seed) d.seed = 42;
    if (!d.batch) d.batch = 32;
    return d;
}
static void wrpo__add_stop(int32_t **list, int64_t id) {   /* in its place, once */
    int64_t at = stbds_arrlen(*list);
    for (int64_t i = 0; i < at; i++)
        if ((*list)[i] == id) return;
    stbds_arrput(*list, (int32_t)id);
    for (; at > 0 && (*list)[at - 1] > id; at--) (*list)[at] = (*list)[at - 1];
    (*list)[at] = (int32_t)id;
}
static bool wrpo__read_eos(wrpo_ctx *ctx, const char *path, int64_t V, int32_t **list) {   /* false: the file says nothing */
    if (!wrpo__exists(path)) return false;
    const wrpo__file *f = wrpo__open_file(wrpo__current, path);
    const wrpo_json *root = wrpo__json_want(ctx, path, wrpo__json_parse(wrpo__current, path, 1, (const char *)f->data, f->size), WRPO_JSON_OBJECT, NULL);
    const wrpo_json *eos = wrpo__present(root, "eos_token_id");
    bool many = eos && eos->kind == WRPO_JSON_ARRAY;
    for (const wrpo_json *v = many ? eos->child : eos; v; v = many ? v->next : NULL)
        wrpo__add_stop(list, wrpo__json_integer(ctx, path, v, 0, V - 1, "eos_token_id"));
    return eos != NULL;
}
static int32_t *wrpo__stop_tokens(wrpo_model *model, wrpo_tokenizer *tok) {   /* stb array */
    const char *dirs[2] = {model->tokenizer_dir, wrpo__is_dir(model->dir) ? model->dir : NULL};   /* the tokenizer's folder wins, as in a save */
    const int64_t V = model->config.vocab_size;
    int32_t *list = NULL, end = -1;
    bool said = false;
    if (tok && wrpo__answer_end(tok, &end) == WRPO_E_MEMORY) wrpo__rethrow(model->ctx, WRPO_E_MEMORY);
    for (int i = 0; i < 2 && !said; i++) said = dirs[i] && wrpo__read_eos(model->ctx, wrpo__join(wrpo__current, dirs[i], "generation_config.json"), V, &list);
    if (!said) wrpo__read_eos(model->ctx, dirs[1] ? wrpo__join(wrpo__current, dirs[1], "config.json") : model->dir, V, &list);
    if (tok && tok->eos >= 0) wrpo__add_stop(&list, tok->eos);
    if (end >= 0) wrpo__add_stop(&list, end);
    return list;
}
WRPO_API wrpo_result wrpo_stop_tokens(wrpo_model *model, wrpo_tokenizer *tok, int32_t **ids, int64_t *count) {
    *ids = NULL, *count = 0;
    WRPO__TRY(model->ctx, wrpo__arena_new(model->ctx), true) {
        int32_t *list = wrpo__stop_tokens(model, tok);
        *ids = wrpo__handout(model->ctx, list, (size_t)stbds_arrlen(list) * sizeof *list);
        *count = stbds_arrlen(list);
    }
    return wrpo__end(&wrpo__entry);
}

/* ---- the sampler: one row of logits, on the host ---- */
static bool wrpo__outranks(wrpo__weighed a, wrpo__weighed b) { return a.weight > b.weight || (a.weight == b.weight && a.id < b.id); }
/* The fewest of w[n], by rank, that are `most` or weigh `mass`, to the front, in no order; their number, at least 1 (Hoare 1961). */
static int64_t wrpo__select_top(wrpo__weighed *w, int64_t n, int64_t most, double mass) {
    int64_t low = 0, high = n;       /* those before low are in, those from high on are out */
    while (high - low > 1) {
        const wrpo__weighed a = w[low], b = w[low + (high - low) / 2], c = w[high - 1];
        const wrpo__weighed pivot = wrpo__outranks(a, b) ? (wrpo__outranks(b, c) ? b : wrpo__outranks(a, c) ? c : a) : wrpo__outranks(a, c) ? a : wrpo__outranks(b, c) ? c : b;
        int64_t at = low;
        double sum = 0;
        for (int64_t i = low; i < high; i++) {         /* what outranks the pivot, then the pivot, then the rest */
            if (wrpo__outranks(pivot, w[i])) continue;
            const wrpo__weighed x = w[i];
            sum += x.id == pivot.id ? 0 : (double)x.weight;
            w[i] = w[at], w[at++] = x;
        }
        int64_t own = low;
        while (w[own].id != pivot.id) own++;
        w[own] = w[at - 1], w[at - 1] = pivot;
        if (at - 1 - low >= most || (at - 1 > low && sum >= mass)) high = at - 1;
        else if (at - low >= most || sum + (double)pivot.weight >= mass) return at;
        else mass -= sum + (double)pivot.weight, most -= at - low, low = at;
    }
    return WRPO__MAX(high, 1);
}
/* A token by u in [0, 1): weights w = e^((x - max x) / temperature); the top_k largest of them; of these the fewest, by rank, that
   have top_p of their sum; from those the one at u of theirs. room [V] is not needed where nothing is left out. */
static int32_t wrpo__draw(const float *x, int64_t V, float cap, double temperature, int64_t top_k, double top_p, double u, wrpo__weighed *room) {
    int64_t best = 0, n = 0;
    double total = 0, sum = 0;
    for (int64_t i = 1; i < V; i++)
        if (x[i] > x[best]) best = i;
    if (temperature < 1e-37) return (int32_t)best;     /* greedy, or its inverse is no float */
    const float scale = (float)(1 / temperature), top = cap > 0 ? cap * tanhf(x[best] / cap) : x[best];
#define WRPO__WEIGHT(i) expf(((cap > 0 ? cap * tanhf(x[i] / cap) : x[i]) - top) * scale)
    if (!room) {
        for (int64_t i = 0; i < V; i++) total += (double)WRPO__WEIGHT(i);
        for (int64_t i = 0; i < V; i++)
            if ((sum += (double)WRPO__WEIGHT(i)) > u * total) return (int32_t)i;
        return (int32_t)best;
    }
    for (int64_t i = 0; i < V; i++) total += (double)(room[i] = (wrpo__weighed){WRPO__WEIGHT(i), (int32_t)i}).weight;
#undef WRPO__WEIGHT
    const double least = top_k ? 0 : (1 - top_p) * total / (double)V;      /* all the smaller ones together have less than 1 - top_p */
    for (int64_t i = 0; i < V; i++)
        if ((double)room[i].weight >= least) room[n++] = room[i];
    if (top_k && top_k < n) {
        n = wrpo__select_top(room, n, top_k, INFINITY), total = 0;
        for (int64_t i = 0; i < n; i++) total += (double)room[i].weight;
    }
    if (top_p < 1) n = wrpo__select_top(room, n, n, top_p * total);
    total = 0;
    for (int64_t i = 0; i < n; i++) total += (double)room[i].weight;
    for (int64_t i = 0; i < n; i++)
        if ((sum += (double)room[i].weight) > u * total) return room[i].id;
    return room[n - 1].id;
}

/* ---- text ---- */
/* The text of a sample; how much of it will stay as it is, whatever comes: all of it once the sample is done; before, not a character
   that is not whole, nor the <0xNN> tokens at its end. Ids without a token (a vocabulary padded to a round number) have no text. */
static size_t wrpo__draft_text(wrpo_tokenizer *tok, const wrpo__draft *d, wrpo__text *text) {
    int32_t *ids = NULL;
    for (int64_t i = 0; i < stbds_arrlen(d->ids) - d->stopped; i++)
        if (d->ids[i] < tok->size && tok->tokens[d->ids[i]].text) stbds_arrput(ids, d->ids[i]);
    while (!d->done && stbds_arrlen(ids) && wrpo__byte_token(tok->tokens[stbds_arrlast(ids)].text, tok->tokens[stbds_arrlast(ids)].size) >= 0) (void)stbds_arrpop(ids);
    wrpo__decode(tok, ids, stbds_arrlen(ids), true, text);
    stbds_arrfree(ids);
    size_t size = text->size;
    while (!d->done && size >= 3 && memcmp(text->data + size - 3, "\xEF\xBF\xBD", 3) == 0) size -= 3;
    return size;
}
static void wrpo__stop_if(wrpo_ctx *ctx, bool go) {
    if (!go) wrpo__fail(ctx, WRPO_E_STOPPED, "stopped by the callback");
}
static void wrpo__show_text(wrpo__generation *g, wrpo__draft *d) {
    wrpo_tokenizer *tok = g->desc.tokenizer;
    if (!g->desc.on_text || !tok) return;
    wrpo__text text = {.arena = wrpo__current};
    const size_t size = wrpo__draft_text(tok, d, &text);
    if (size > d->shown) {
        wrpo__stop_if(g->model->ctx, g->desc.on_text(d->job->prompt, d->number, text.data + d->shown, size - d->shown, g->desc.user));
        d->shown = size;
    }
    wrpo__block_free(text.data);
}

/* ---- jobs ---- */
static void wrpo__begin_job(wrpo__generation *g) {
    const wrpo_prompt *p = &g->prompts[g->begun];
    wrpo__job *job = wrpo__raw(wrpo__current, 1, sizeof *job);
    *job = (wrpo__job){.prompt = g->begun++, .left = g->desc.n, .limit = WRPO__MIN(g->limit, g->model->config.max_position_embeddings - p->count)};
    while (g->taken[job->place]) job->place++;
    g->taken[job->place] = true;
    job->drafts = wrpo__raw(wrpo__current, (size_t)g->desc.n, sizeof *job->drafts);
    for (int64_t k = 0; k < g->desc.n; k++) job->drafts[k] = (wrpo__draft){.job = job, .number = k, .place = -1};
    stbds_arrput(g->jobs, job);
}
static void wrpo__deliver(wrpo__generation *g) {       /* what is done, in order */
    for (wrpo__job *job; stbds_arrlen(g->jobs) && (job = g->jobs[0])->left == 0; g->delivered++) {
        for (int64_t k = 0; k < g->desc.n; k++) {
            const wrpo__draft *d = &job->drafts[k];
            g->texts[k] = (wrpo__text){.arena = wrpo__current};
            if (g->desc.tokenizer) wrpo__draft_text(g->desc.tokenizer, d, &g->texts[k]);
            g->samples[k] = (wrpo_sample){d->ids, d->logps, stbds_arrlen(d->ids), g->texts[k].data, g->texts[k].size, d->stopped};
        }
        if (g->desc.on_done) wrpo__stop_if(g->model->ctx, g->desc.on_done(job->prompt, g->samples, g->desc.user));
        for (int64_t k = 0; k < g->desc.n; k++) {
            wrpo__block_free(g->texts[k].data);
            stbds_arrfree(job->drafts[k].ids);
            stbds_arrfree(job->drafts[k].logps);
        }
        wrpo__block_free(job->drafts);
        wrpo__block_free(job);
        stbds_arrdel(g->jobs, 0);
    }
}
static void wrpo__drawn(wrpo__generation *g, wrpo__draft *d, int32_t id, float logp) {
    wrpo__job *job = d->job;
    if (!isfinite(logp))
        wrpo__fail(g->model->ctx, WRPO_E_NOT_FINITE, "prompt %lld, sample %lld, token %lld: the log-prob is not a finite number", (long long)job->prompt,
                   (long long)d->number, (long long)stbds_arrlen(d->ids));
    stbds_arrput(d->ids, id);
    stbds_arrput(d->logps, logp);
    g->tokens++;
    for (int64_t i = 0; i < g->desc.stop_count; i++) d->stopped = d->stopped || g->desc.stop[i] == id;
    d->done = d->stopped || stbds_arrlen(d->ids) == job->limit;
    wrpo__show_text(g, d);
    if (!d->done) {
        if (d->place < 0) stbds_arrput(g->waiting, d);
        return;
    }
    if (d->place >= 0) g->live[d->place] = NULL;
    if (--job->left == 0) g->taken[job->place] = false;
}
static int64_t wrpo__prompt_row(const wrpo__generation *g, const wrpo__job *job) { return job->place * g->longest; }
static int64_t wrpo__draft_row(const wrpo__generation *g, const wrpo__draft *d) { return g->jobs_most * g->longest + d->place * g->limit; }
/* Fills the places, begins prompts, packs what can be computed now. */
static void wrpo__pack_step(wrpo__generation *g) {
    wrpo__run *r = g->run;
    int64_t empty = 0, begun = 0;
    for (int64_t i = 0, next = 0; i < g->desc.batch; i++) {
        if (!g->live[i] && next < stbds_arrlen(g->waiting)) {
            g->live[i] = g->waiting[next];
            g->waiting[next++]->place = i;
        }
        empty += !g->live[i];
        if (i == g->desc.batch - 1 && next) stbds_arrdeln(g->waiting, 0, (size_t)next);
    }
    for (int64_t i = 0; i < stbds_arrlen(g->jobs); i++) begun += g->jobs[i]->rows < g->prompts[g->jobs[i]->prompt].count;
    for (; g->begun < g->count && stbds_arrlen(g->waiting) + begun * g->desc.n < empty; begun++) {
        int64_t used = 0;
        for (int64_t i = 0; i < g->jobs_most; i++) used += g->taken[i];
        if (used == g->jobs_most) break;
        wrpo__begin_job(g);
    }
    wrpo__pack_begin(r);
    for (int64_t i = 0; i < stbds_arrlen(g->jobs) * g->desc.n; i++) {  /* samples of a prompt beside each other */
        wrpo__draft *d = &g->jobs[i / g->desc.n]->drafts[i % g->desc.n];
        if (d->place < 0 || d->done) continue;
        const int64_t P = g->prompts[d->job->prompt].count, n = stbds_arrlen(d->ids), prefix = wrpo__prompt_row(g, d->job), own = wrpo__draft_row(g, d);
        g->draws[r->targets] = d;
        wrpo__pack_target(r, r->n, 0);
        wrpo__pack_turn(r, P + d->job->limit);
        wrpo__pack_rows(r, d->ids + n - 1, 1, P + n - 1, (wrpo_seg){0, 0, prefix, prefix + P, own, own + n});
    }
    for (int64_t i = 0; i < stbds_arrlen(g->jobs); i++) {
        wrpo__job *job = g->jobs[i];
        const wrpo_prompt *p = &g->prompts[job->prompt];
        const int64_t own = wrpo__prompt_row(g, job), n = WRPO__MIN(p->count - job->rows, r->shape.rows - r->n);
        const bool last = job->rows + n == p->count;
        if (n <= 0 || (last && r->targets + g->desc.n > r->shape.rows)) continue;
        wrpo__pack_turn(r, p->count + job->limit);
        wrpo__pack_rows(r, p->ids + job->rows, n, job->rows, (wrpo_seg){0, 0, own, own, own, own + job->rows + n});
        job->rows += n;
        for (int64_t k = 0; last && k < g->desc.n; k++) {
            g->draws[r->targets] = &job->drafts[k];
            wrpo__pack_target(r, r->n - 1, 0);
        }
    }
    wrpo__pack_end(r);
}
static void wrpo__step_ops(void *run) {
    wrpo__run *r = run;
    wrpo__trunk(r);
    if (r->targets) wrpo__logits(r, 0, WRPO__MIN(r->shape.chunk, r->targets));
}
static void wrpo__generate_step(wrpo__generation *g) {
    wrpo__run *r = g->run;
    wrpo_ctx *ctx = g->model->ctx;
    const wrpo_backend *be = ctx->desc.backend;
    const int64_t V = g->model->config.vocab_size;
    const float cap = (float)g->model->config.final_logit_softcapping;
    wrpo__pack_step(g);
    /* Steps that only decode, a row a segment, come again and again: ids, turns, places and segments are what differs, and packing put them on the device. */
    const int64_t key[4] = {(int64_t)(uintptr_t)r, r->n, r->segs, r->targets};
    if (be->replay && r->segs == r->n) be->replay(ctx->dev, key, wrpo__step_ops, r);
    else wrpo__step_ops(r);
    for (int64_t t = 0; t < r->targets; t += r->shape.chunk) {
        const int64_t count = WRPO__MIN(r->shape.chunk, r->targets - t);
        if (t) wrpo__logits(r, t, count);
        be->get(ctx->dev, g->logits, r->logits, (size_t)(count * V) * sizeof *g->logits);
        wrpo__sync(ctx);
        WRPO__PARFOR((int)WRPO__MIN(ctx->desc.threads, count))
        for (int64_t i = 0; i < count; i++) {
            const wrpo__draft *d = g->draws[t + i];
            const wrpo_prompt *p = &g->prompts[d->job->prompt];
            const uint64_t bits = wrpo__random64(g->desc.seed, p->stream, (uint64_t)d->number << 32 | (uint64_t)stbds_arrlen(d->ids));
            r->h_target[t + i] = wrpo__draw(g->logits + i * V, V, cap, p->own_temperature ? p->temperature : g->desc.temperature, g->desc.top_k, g->desc.top_p,
                                            (double)(bits >> 11) / 9007199254740992.0, g->ranked ? g->ranked + i * V : NULL);
        }
        be->put(ctx->dev, r->target + t, r->h_target + t, (size_t)count * 4);
        be->logprob(ctx->dev, r->logp + t, r->lse + t, r->logits, r->target + t, count, V, cap);
    }
    be->get(ctx->dev, r->h_logp, r->logp, (size_t)r->targets * sizeof(float));
    wrpo__sync(ctx);
    for (int64_t t = 0; t < r->targets; t++) wrpo__drawn(g, g->draws[t], r->h_target[t], r->h_logp[t]);
    wrpo__deliver(g);
    if (g->desc.on_step) wrpo__stop_if(ctx, g->desc.on_step(g->delivered, g->tokens, g->desc.user));
}
static void wrpo__generate_check(const wrpo__generation *g) {
    const wrpo_generate_desc *d = &g->desc;
    const wrpo_config *c = &g->model->config;
    wrpo_ctx *ctx = g->model->ctx;
    WRPO__RANGE(d->n >= 1 && d->n <= 1 << 20, "n", d->n, "1 to 2^20 samples");
    WRPO__RANGE(d->max_tokens >= 1 && d->max_tokens <= INT32_MAX, "max tokens", d->max_tokens, "1 to 2^31 - 1");
    WRPO__RANGE(d->temperature >= 0 && d->temperature <= 1e6, "temperature", d->temperature, "a number in [0, 1e6]");
    WRPO__RANGE(d->top_p > 0 && d->top_p <= 1, "top p", d->top_p, "a number in (0, 1]");
    WRPO__RANGE(d->top_k >= 0, "top k", d->top_k, "at least 0");
    WRPO__RANGE(d->batch >= 1 && d->batch <= 1 << 20, "batch", d->batch, "1 to 2^20 samples");
    if (!ctx->desc.backend->scatter) wrpo__fail(ctx, WRPO_E_UNSUPPORTED, "%s: this backend does not generate", ctx->desc.backend->name);
    for (int64_t i = 0; i < g->count; i++) {
        const wrpo_prompt *p = &g->prompts[i];
        WRPO__RANGE(p->temperature >= 0 && p->temperature <= 1e6, "a prompt's temperature", p->temperature, "a number in [0, 1e6]");
        if (p->count < 1) wrpo__fail(ctx, WRPO_E_ARG, "prompt %lld has no token", (long long)i);
        if (p->count >= c->max_position_embeddings)
            wrpo__fail(ctx, WRPO_E_ARG, "prompt %lld: want fewer tokens than max_position_embeddings, %lld, found %lld", (long long)i,
                       (long long)c->max_position_embeddings, (long long)p->count);
        for (int64_t j = 0; j < p->count; j++)
            if (p->ids[j] < 0 || p->ids[j] >= c->vocab_size)
                wrpo__fail(ctx, WRPO_E_FORMAT, "prompt %lld: token id %d is outside the model's vocabulary of %lld: tokenizer and model do not belong together",
                           (long long)i, (int)p->ids[j], (long long)c->vocab_size);
    }
}
/* The capacities; fewer samples at once where memory is short, which changes none of them. */
static wrpo__shape wrpo__generation_shape(wrpo__generation *g) {
    wrpo_ctx *ctx = g->model->ctx;
    const wrpo_config *c = &g->model->config;
    int64_t *batch = &g->desc.batch, n = g->desc.n, wanted = *batch;
    for (;; *batch = (*batch + 1) / 2) {
        g->jobs_most = WRPO__MIN(g->count, 2 * wrpo__div_up(*batch, n) + 1);
        wrpo__shape shape = {.rows = *batch + WRPO__MAX(n, WRPO__MIN(g->jobs_most * g->longest, WRPO__MICRO_TOKENS)),
                             .cache = g->jobs_most * g->longest + *batch * g->limit};
        wrpo__run run = {.layer = NULL};
        wrpo__bump need = {0};
        shape.chunk = wrpo__head_chunk(ctx, c, WRPO__MIN(shape.rows, 2 * *batch + n));
        wrpo__run_layout(ctx, c, &shape, &run, &need);
        const bool possible = shape.cache <= INT32_MAX && !need.overflow, fits = possible && need.used <= wrpo__room(ctx);
        if (fits && *batch < wanted) wrpo__log(ctx, WRPO_LOG_INFO, "memory for %lld samples at once, not %lld", (long long)*batch, (long long)wanted);
        if (fits) return shape;
        if (*batch > 1) continue;
        if (possible && ctx->desc.backend->host && !ctx->desc.memory_limit) return shape;      /* a host may have more than it says: it can swap */
        wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: one sample at a time takes %.3f GiB, there are %.3f; want fewer tokens", (double)need.used / 1073741824.0,
                   (double)wrpo__room(ctx) / 1073741824.0);
    }
}
WRPO_API wrpo_result wrpo_generate(wrpo_model *model, const wrpo_prompt *prompts, int64_t count, const wrpo_generate_desc *desc) {
    wrpo_ctx *ctx = model->ctx;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *arena = wrpo__entry.arena;
        const wrpo_config *c = &model->config;
        wrpo__generation *g = WRPO__NEW(arena, wrpo__generation);
        int64_t shortest = INT64_MAX;
        *g = (wrpo__generation){.model = model, .desc = wrpo_generate_defaults(desc), .prompts = prompts, .count = count};
        wrpo__generate_check(g);
        if (!g->desc.stop) {
            int32_t *stop = wrpo__stop_tokens(model, g->desc.tokenizer);
            g->desc.stop = stop, g->desc.stop_count = stbds_arrlen(stop);
        }
        bool ranks = g->desc.top_k > 0 || g->desc.top_p < 1;
        if (count == 0) continue;
        for (int64_t i = 0; i < count; i++) g->longest = WRPO__MAX(g->longest, prompts[i].count), shortest = WRPO__MIN(shortest, prompts[i].count);
        g->limit = WRPO__MIN(g->desc.max_tokens, c->max_position_embeddings - shortest);
        if (count <= g->desc.batch / g->desc.n) g->desc.batch = count * g->desc.n;
        const wrpo__shape shape = wrpo__generation_shape(g);
        g->run = wrpo__run_new(arena, model, &shape);
        g->live = wrpo__alloc(arena, (size_t)g->desc.batch, sizeof(wrpo__draft *));
        g->taken = wrpo__alloc(arena, (size_t)g->jobs_most, sizeof *g->taken);
        g->texts = wrpo__alloc(arena, (size_t)g->desc.n, sizeof *g->texts);
        g->samples = wrpo__alloc(arena, (size_t)g->desc.n, sizeof *g->samples);
        g->draws = wrpo__raw(arena, (size_t)shape.rows, sizeof(wrpo__draft *));
        g->logits = wrpo__raw(arena, (size_t)(shape.chunk * c->vocab_size), sizeof *g->logits);
        g->ranked = ranks ? wrpo__raw(arena, (size_t)(shape.chunk * c->vocab_size), sizeof *g->ranked) : NULL;
        while (g->delivered < count) wrpo__generate_step(g);
    }
    return wrpo__end(&wrpo__entry);
}

/* ------------------------------------------------------------------------------------------- >>reward
   Reward models: the trunk of a language model, and a head on a few rows of its last hidden state, computed on the host in double. */
typedef struct wrpo__dense { const float *w, *b; int64_t rows, cols; } wrpo__dense;        /* y = W x + b; b may be NULL */
enum { WRPO__GATE_LAYERS = 16 };
typedef struct wrpo__gate {          /* ArmoRM (Wang et al. 2024): objectives weighed by what the prompt is about */
    wrpo__dense regression, transform, layer[WRPO__GATE_LAYERS];       /* transform: [objectives, objectives], taken from the left */
    int64_t layers, widest;
    double scale, temperature;
} wrpo__gate;
struct wrpo_reward {
    wrpo_ctx *ctx;
    wrpo__arena *arena, *run_arena;  /* run_arena: of the run, which grows */
    wrpo_model *model;
    wrpo_tokenizer *tok;             /* NULL: the directory has none, ids only */
    wrpo__run *run;
    wrpo__dense score;               /* its row `label` is the reward */
    int64_t label, micro_tokens;
    wrpo__gate gate;
    bool warned;
};
static void wrpo__dense_apply(const wrpo__dense *l, const double *x, double *y) {
    for (int64_t r = 0; r < l->rows; r++) {
        y[r] = l->b ? (double)l->b[r] : 0;
        for (int64_t k = 0; k < l->cols; k++) y[r] += (double)l->w[r * l->cols + k] * x[k];
    }
}
/* last, prompt: the hidden states at the last token and where the answer's header begins; work: 3 * widest numbers. */
static double wrpo__gated_score(const wrpo__gate *g, const double *last, const double *prompt, double *work) {
    const int64_t n = g->regression.rows;
    double *x = work, *y = work + g->widest, *r = y + g->widest, most = -INFINITY, sum = 0, score = 0;
    memcpy(x, prompt, (size_t)g->layer[0].cols * sizeof *x);
    for (int64_t l = 0; l < g->layers; l++) {
        double *swap = x;
        wrpo__dense_apply(&g->layer[l], x, y);
        for (int64_t k = 0; l + 1 < g->layers && k < g->layer[l].rows; k++) y[k] = y[k] > 0 ? y[k] : 0;
        x = y, y = swap;
    }
    for (int64_t j = 0; j < n; j++) most = fmax(most, x[j] / g->temperature);
    for (int64_t j = 0; j < n; j++) sum += x[j] = exp(x[j] / g->temperature - most);
    wrpo__dense_apply(&g->regression, last, r);
    for (int64_t j = 0; j < n; j++) {                  /* sum_j softmax_j scale (r' M)_j */
        double adjusted = 0;
        for (int64_t i = 0; i < n; i++) adjusted += r[i] * (double)g->transform.w[i * n + j];
        score += x[j] / sum * g->scale * adjusted;
    }
    return score;
}

/* ---- load ---- */
/* A tensor of the head as floats; rows, cols 0: any number. A vector has cols -1. */
static const float *wrpo__head_tensor(wrpo_reward *r, const wrpo_tensors *t, const char *name, int64_t *rows, int64_t *cols) {
    const wrpo_tensor_info *info = wrpo_tensors_find(t, name);
    const int64_t want[2] = {*rows, *cols};
    char found[160];
    if (!info) wrpo__fail(r->ctx, WRPO_E_FORMAT, "%s: %s is missing: a reward model of this architecture has it", r->model->dir, name);
    bool fits = info->ndim == (*cols < 0 ? 1 : 2);
    for (int k = 0; fits && k < info->ndim; k++) fits = info->shape[k] > 0 && (want[k] <= 0 || info->shape[k] == want[k]);
    wrpo__shape_text(found, sizeof found, info->ndim, info->shape);
    if (!fits && *cols < 0) wrpo__fail(r->ctx, WRPO_E_FORMAT, "%s: %s: want [%lld], found %s", info->file, name, (long long)*rows, found);
    if (!fits) wrpo__fail(r->ctx, WRPO_E_FORMAT, "%s: %s: want %lld rows of %lld (0: any number), found %s", info->file, name, (long long)*rows, (long long)*cols, found);
    if (strcmp(info->dtype, "F32") && strcmp(info->dtype, "BF16") && strcmp(info->dtype, "F16"))
        wrpo__fail(r->ctx, WRPO_E_UNSUPPORTED, "%s: %s: want F32, F16 or BF16, found %s", info->file, name, info->dtype);
    float *p = wrpo__raw(r->arena, (size_t)info->count, sizeof *p);
    wrpo__to_float(r->ctx, p, info, 0, info->count);
    for (int64_t k = 0; k < info->count; k++)
        if (!isfinite(p[k])) wrpo__fail(r->ctx, WRPO_E_NOT_FINITE, "%s: %s: element %lld is not a finite number", info->file, name, (long long)k);
    *rows = info->shape[0];
    if (*cols >= 0) *cols = info->shape[1];
    return p;
}
static wrpo__dense wrpo__head_dense(wrpo_reward *r, const wrpo_tensors *t, const char *name, const char *bias, int64_t rows, int64_t cols) {
    wrpo__dense l = {.rows = rows, .cols = cols};
    int64_t vector = -1;
    l.w = wrpo__head_tensor(r, t, name, &l.rows, &l.cols);
    if (bias) l.b = wrpo__head_tensor(r, t, bias, &l.rows, &vector);
    return l;
}
static void wrpo__load_gate(wrpo_reward *r, const wrpo_tensors *t) {
    wrpo__gate *g = &r->gate;
    int64_t one = 1, vector = -1, cols = r->model->config.hidden_size;
    char name[64], bias[64];
    g->regression = wrpo__head_dense(r, t, "regression_layer.weight", NULL, 0, cols);
    g->transform = wrpo__head_dense(r, t, "reward_transform_matrix", NULL, g->regression.rows, g->regression.rows);
    for (g->layers = 0; snprintf(name, sizeof name, "gating.layers.%lld.weight", (long long)g->layers), wrpo_tensors_find(t, name); g->layers++) {
        if (g->layers == WRPO__GATE_LAYERS) wrpo__fail(r->ctx, WRPO_E_UNSUPPORTED, "%s: a gate of more than %d layers is not supported", r->model->dir, WRPO__GATE_LAYERS);
        snprintf(bias, sizeof bias, "gating.layers.%lld.bias", (long long)g->layers);
        g->layer[g->layers] = wrpo__head_dense(r, t, name, bias, 0, cols);
        cols = g->layer[g->layers].rows;
        g->widest = WRPO__MAX(g->widest, WRPO__MAX(cols, g->layer[g->layers].cols));
    }
    if (!g->layers) wrpo__fail(r->ctx, WRPO_E_FORMAT, "%s: %s is missing: a reward model of this architecture has it", r->model->dir, name);
    if (cols != g->regression.rows)
        wrpo__fail(r->ctx, WRPO_E_FORMAT, "%s: the gate weighs %lld objectives, regression_layer.weight has %lld", r->model->dir, (long long)cols, (long long)g->regression.rows);
    g->scale = (double)*wrpo__head_tensor(r, t, "gating.logit_scale", &one, &vector);
    g->temperature = r->model->config.gating_temperature;
}
static void wrpo__free_tokenizer(void *p) { wrpo_tokenizer_free(p); }
WRPO_API wrpo_result wrpo_reward_load(wrpo_ctx *ctx, const wrpo_reward_desc *desc, wrpo_reward **out) {
    *out = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), false) {
        wrpo__arena *arena = wrpo__entry.arena;
        wrpo_reward *r = WRPO__NEW(arena, wrpo_reward);
        wrpo_config config;
        r->ctx = ctx, r->arena = arena, r->run_arena = wrpo__sub_arena(arena);
        if (!desc->dir) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_reward_desc: dir is missing");
        if (desc->micro_tokens < 0) wrpo__fail(ctx, WRPO_E_ARG, "micro_tokens: want at least 1, found %lld", (long long)desc->micro_tokens);
        r->micro_tokens = desc->micro_tokens ? desc->micro_tokens : WRPO__MICRO_TOKENS;
        wrpo__config_read(arena, desc->dir, &config);
        if (config.head == WRPO_HEAD_LM)
            wrpo__fail(ctx, WRPO_E_UNSUPPORTED, "%s: a language model has no reward head: want architectures of sequence classification or of a reward model", desc->dir);
        wrpo__cleanup *owner = wrpo__on_free(arena, wrpo__free_model, NULL);
        wrpo__rethrow(ctx, wrpo__model_load(ctx, &(wrpo_model_desc){.dir = desc->dir, .frozen = true}, true, &r->model));
        owner->p = r->model;
        if (wrpo__exists(wrpo__join(arena, desc->dir, "tokenizer.json"))) {
            owner = wrpo__on_free(arena, wrpo__free_tokenizer, NULL);
            wrpo__rethrow(ctx, wrpo_tokenizer_load(ctx, desc->dir, &r->tok));
            owner->p = r->tok;
        }
        const wrpo_tensors *t = wrpo__tensors_in(ctx, desc->dir);
        if (config.head == WRPO_HEAD_GATED) wrpo__load_gate(r, t);
        else if (config.head == WRPO_HEAD_VALUE) r->score = wrpo__head_dense(r, t, "v_head.weight", NULL, 1, config.hidden_size);
        else r->score = wrpo__head_dense(r, t, "score.weight", NULL, 0, config.hidden_size);
        if (config.head != WRPO_HEAD_SCORE && desc->label) wrpo__fail(ctx, WRPO_E_ARG, "label: %s has one reward only", desc->dir);
        if (config.head == WRPO_HEAD_SCORE && (desc->label < 0 || desc->label > r->score.rows || (!desc->label && r->score.rows > 1)))
            wrpo__fail(ctx, WRPO_E_ARG, "label: score.weight has %lld rows: want the number of one, found %lld", (long long)r->score.rows, (long long)desc->label);
        r->label = WRPO__MAX(desc->label, 1) - 1;
        *out = r;
    }
    return wrpo__end(&wrpo__entry);
}
WRPO_API void wrpo_reward_free(wrpo_reward *reward) {
    if (reward) wrpo__arena_free(reward->arena);
}
WRPO_API const wrpo_config *wrpo_reward_config(const wrpo_reward *reward) { return &reward->model->config; }

/* ---- score ---- */
/* Places of ids[n] that the head looks at: the last token, by the rule of the model's code, and for a gate where the answer's header
   begins, the last time: <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n of Llama 3. false: there is no such place. */
static bool wrpo__pooled(const wrpo_config *c, const int32_t *ids, int64_t n, int64_t *last, int64_t *gate) {
    static const int32_t header[] = {128009, 128006, 78191, 128007, 271};
    *last = n - 1, *gate = n - WRPO__COUNT(header);
    if (c->head == WRPO_HEAD_SCORE)
        for (*last = n - 1; *last > 0 && ids[*last] == c->pad_token_id;) --*last;
    if (c->head != WRPO_HEAD_GATED) return true;
    for (int64_t i = n; i-- > 0;)
        if (ids[i] == c->pad_token_id) *last = i ? i - 1 : n - 1;
    while (*gate >= 0 && memcmp(ids + *gate, header, sizeof header)) --*gate;
    return *gate >= 0;
}
static void wrpo__hidden_row(const wrpo__run *r, int64_t row, double *out) {
    const wrpo_backend *be = r->model->ctx->desc.backend;
    const int64_t D = r->model->config.hidden_size;
    for (int64_t k = 0; k < D; k += WRPO__HALVES) {
        const int64_t n = WRPO__MIN(D - k, WRPO__HALVES);
        union { float whole[WRPO__HALVES]; uint16_t half[WRPO__HALVES]; } part;
        be->get(r->model->ctx->dev, &part, wrpo__at(be, r->y, row * D + k), (size_t)n * (size_t)be->act_bytes);
        for (int64_t i = 0; i < n; i++) out[k + i] = (double)(be->act_bytes == 4 ? part.whole[i] : wrpo__float_of(part.half[i]));
    }
}
/* As many of the conversations [at, n) as fit, at least one; the first P tokens of all are the same. Returns where it stopped. */
static int64_t wrpo__score_some(wrpo__arena *temp, wrpo_reward *w, const int32_t *const *ids, const int64_t *counts, int64_t P, int64_t at, int64_t n, double *rewards) {
    const wrpo_config *c = &w->model->config;
    const int64_t D = c->hidden_size, first = at;
    int64_t rows = 0, end = at, prefix = 0;
#define WRPO__PARTS(k) ((k) == first || wrpo__rope_key(c, counts[k]) != wrpo__rope_key(c, counts[(k) - 1]))
    for (int64_t more; end < n && (more = counts[end] - (WRPO__PARTS(end) ? 0 : P), end == at || rows + more <= w->micro_tokens); end++) rows += more;
    if (!w->run || w->run->shape.rows < rows) {
        w->run = NULL;
        wrpo__arena_clear(w->run_arena);
        w->run = wrpo__run_new(w->run_arena, w->model, &(wrpo__shape){.rows = rows});
    }
    int64_t (*places)[2] = wrpo__alloc(temp, (size_t)(end - at), sizeof *places);
    double *hidden = wrpo__alloc(temp, (size_t)D, 2 * sizeof *hidden), *work = wrpo__alloc(temp, (size_t)WRPO__MAX(3 * w->gate.widest, w->score.rows), sizeof *work);
    wrpo__pack_begin(w->run);
    for (int64_t k = at; k < end; k++) {
        int64_t pooled[2];
        if (WRPO__PARTS(k)) {
            wrpo__pack_turn(w->run, counts[k]);
            prefix = w->run->n;
            if (P) wrpo__pack_seg(w->run, ids[k], P, 0, prefix, prefix);
        }
        if (!wrpo__pooled(c, ids[k], counts[k], &pooled[0], &pooled[1]))
            wrpo__fail(w->ctx, WRPO_E_FORMAT, "conversation %lld: want the header of an assistant's answer, which the gate of this reward model looks for, found none", (long long)k + 1);
        for (int i = 0; i < 2; i++) places[k - at][i] = pooled[i] < P ? prefix + pooled[i] : w->run->n + pooled[i] - P;
        wrpo__pack_seg(w->run, ids[k] + P, counts[k] - P, P, prefix, prefix + P);
    }
    wrpo__pack_end(w->run);
    wrpo__trunk(w->run);
    for (int64_t k = at; k < end; k++) {
        wrpo__hidden_row(w->run, places[k - at][0], hidden);
        if (c->head == WRPO_HEAD_GATED) {
            wrpo__hidden_row(w->run, places[k - at][1], hidden + D);
            rewards[k] = wrpo__gated_score(&w->gate, hidden, hidden + D, work);
        } else {
            wrpo__dense_apply(&w->score, hidden, work);
            rewards[k] = work[w->label];
        }
        if (!isfinite(rewards[k])) wrpo__fail(w->ctx, WRPO_E_NOT_FINITE, "conversation %lld: the reward is not a finite number", (long long)k + 1);
    }
    wrpo__sync(w->ctx);
    return end;
#undef WRPO__PARTS
}
static void wrpo__score_ids(wrpo__arena *temp, wrpo_reward *w, const int32_t *const *ids, const int64_t *counts, int64_t n, double *rewards) {
    const wrpo_config *c = &w->model->config;
    const int32_t **own = wrpo__alloc(temp, (size_t)n, sizeof *own);
    int64_t *sizes = wrpo__alloc(temp, (size_t)n, sizeof *sizes), P = INT64_MAX;
    for (int64_t k = 0; k < n; k++) {
        own[k] = ids[k], sizes[k] = counts[k];
        if (counts[k] < 1) wrpo__fail(w->ctx, WRPO_E_ARG, "conversation %lld: want at least one token, found none", (long long)k + 1);
        for (int64_t i = 0; i < counts[k]; i++)
            if (ids[k][i] < 0 || ids[k][i] >= c->vocab_size)
                wrpo__fail(w->ctx, WRPO_E_FORMAT, "conversation %lld: token id %d is outside the model's vocabulary of %lld", (long long)k + 1, (int)ids[k][i], (long long)c->vocab_size);
        if (c->head == WRPO_HEAD_VALUE && ids[k][counts[k] - 1] != c->reward_token_id) {
            int32_t *longer = wrpo__alloc(temp, (size_t)counts[k] + 1, sizeof *longer);
            memcpy(longer, ids[k], (size_t)counts[k] * sizeof *longer);
            longer[sizes[k]++] = (int32_t)c->reward_token_id, own[k] = longer;
        }
        if (sizes[k] > c->max_position_embeddings && !w->warned)
            wrpo__log(w->ctx, WRPO_LOG_WARN, "a conversation of %lld tokens is longer than the reward model's max_position_embeddings %lld", (long long)sizes[k],
                      (long long)c->max_position_embeddings), w->warned = true;
        int64_t same = 0;
        while (same < P && same < sizes[k] - 1 && own[k][same] == own[0][same]) same++;      /* each keeps a token of its own */
        P = same;
    }
    for (int64_t at = 0; at < n;) at = wrpo__score_some(temp, w, own, sizes, P, at, n, rewards);
}
WRPO_API wrpo_result wrpo_reward_score_ids(wrpo_reward *reward, const int32_t *const *ids, const int64_t *counts, int64_t n, double *rewards) {
    WRPO__TRY(reward->ctx, wrpo__arena_new(reward->ctx), true) wrpo__score_ids(wrpo__entry.arena, reward, ids, counts, n, rewards);
    return wrpo__end(&wrpo__entry);
}
/* answers[n]: strings. Errors name the line and record of in. */
static void wrpo__score_answers(wrpo__arena *temp, wrpo_reward *w, wrpo__reading *in, const wrpo_json *prompt, const wrpo_json *answers, int64_t n, double *rewards) {
    if (!w->tok) wrpo__fail(w->ctx, WRPO_E_IO, "%s: tokenizer.json: want it, to score texts, found none", w->model->dir);
    const wrpo_json **list = wrpo__messages(in, prompt, "user", "prompt");
    int32_t **ids = wrpo__alloc(temp, (size_t)n, sizeof *ids);
    int64_t *counts = wrpo__alloc(temp, (size_t)n, sizeof *counts);
    in->tok = w->tok, in->tokenizing = true;
    for (int64_t k = 0; k < n; k++) {
        wrpo__text text = {.arena = temp};
        wrpo__render(in, list, stbds_arrlen(list), wrpo__message_of("assistant", &answers[k]), false, &text);
        wrpo__encode(w->tok, text.data, text.size, 0, &ids[k]);
        counts[k] = stbds_arrlen(ids[k]);
    }
    wrpo__score_ids(temp, w, (const int32_t *const *)ids, counts, n, rewards);
    in->tokenizing = false;
}
WRPO_API wrpo_result wrpo_reward_score(wrpo_reward *reward, const wrpo_json *prompt, const char *const *answers, int64_t n, double *rewards) {
    WRPO__TRY(reward->ctx, wrpo__arena_new(reward->ctx), true) {
        wrpo__arena *temp = wrpo__entry.arena;
        wrpo__reading in = {.ctx = reward->ctx, .desc.path = "wrpo_reward_score", .id = "prompt", .line = prompt->line, .now = time(NULL)};
        wrpo_json *texts = wrpo__alloc(temp, (size_t)n, sizeof *texts);
        for (int64_t k = 0; k < n; k++) texts[k] = (wrpo_json){.kind = WRPO_JSON_STRING, .text = answers[k], .size = strlen(answers[k])};
        wrpo__score_answers(temp, reward, &in, prompt, texts, n, rewards);
    }
    return wrpo__end(&wrpo__entry);
}

/* ---- a file of candidates ---- */
typedef struct wrpo__scoring { wrpo_reward *reward; const wrpo_reward_file_desc *desc; wrpo__reading in; wrpo__writer *out; wrpo_reward_file_stats *stats; double sum; } wrpo__scoring;
/* The reward that an entry has: NULL if it has none, or none that counts. */
static const wrpo_json *wrpo__has_reward(const wrpo__scoring *s, const wrpo_json *entry) {
    const wrpo_json *v = wrpo__present(entry, "reward");
    if (v) wrpo__json_real(s->in.ctx, s->in.desc.path, v, NULL);
    return s->desc->rescore ? NULL : v;
}
/* A copy of v, which is an entry, with the reward at *next behind its other members, if it has none; *next goes on. */
static wrpo_json *wrpo__with_reward(const wrpo__scoring *s, const wrpo_json *v, const double **next) {
    wrpo_json *copy = wrpo__json_copy(wrpo__current, v, NULL), number = {.kind = WRPO_JSON_NUMBER};
    if (wrpo__has_reward(s, v)) return copy;
    wrpo__text text = {.arena = wrpo__current};
    wrpo__json_number(&text, *(*next)++);
    number.text = text.data, number.size = text.size;
    copy->child = NULL, copy->count = 0;
    for (const wrpo_json *m = v->child; m; m = m->next)
        if (strcmp(m->key, "reward")) wrpo__json_append(copy, wrpo__json_copy(wrpo__current, m, NULL));
    wrpo__json_append(copy, wrpo__json_copy(wrpo__current, &number, "reward"));
    return copy;
}
static bool wrpo__is_list(const wrpo_json *v) { return !strcmp(v->key, "sources") || !strcmp(v->key, "target"); }
static void wrpo__score_root(wrpo__scoring *s, const wrpo_json *root) {
    const char *path = s->in.desc.path;
    wrpo_ctx *ctx = s->in.ctx;
    wrpo_reward_file_stats *stats = s->stats;
    wrpo__read_head(&s->in, root);
    wrpo_json *texts = NULL, copy = *root;             /* texts: an stb array */
    const bool alone = wrpo__present(root, "content") != NULL;
    int64_t entries = 0;
    for (const wrpo_json *list = alone ? root : root->child; list; list = alone ? NULL : list->next) {
        if (!alone && (!wrpo__is_list(list) || list->kind == WRPO_JSON_NULL)) continue;
        const wrpo_json *first = alone ? root : wrpo__json_want(ctx, path, list, WRPO_JSON_ARRAY, NULL)->child;
        for (const wrpo_json *v = first; v; v = alone ? NULL : v->next, entries++) {
            const wrpo_json *content = wrpo__json_need(ctx, path, v, "content", WRPO_JSON_STRING);
            if (!wrpo__has_reward(s, v)) stbds_arrput(texts, *content);
        }
    }
    if (!entries) wrpo__json_fail(ctx, WRPO_E_FORMAT, path, root, "want responses in \"sources\" or \"target\", or a \"content\", found none");
    const int64_t n = stbds_arrlen(texts);
    double *rewards = wrpo__alloc(wrpo__current, (size_t)n, sizeof *rewards);
    const double *next = rewards;
    if (n) {
        const wrpo_json *prompt = wrpo__present(root, "prompt");
        if (!prompt) wrpo__json_fail(ctx, WRPO_E_FORMAT, path, root, "prompt: want a string, a message or an array of messages, found none");
        wrpo__score_answers(wrpo__current, s->reward, &s->in, prompt, texts, n, rewards);
    }
    if (alone) copy = *wrpo__with_reward(s, root, &next);
    else {
        copy.child = NULL, copy.count = 0;
        for (const wrpo_json *m = root->child; m; m = m->next) {
            wrpo_json *member = wrpo__json_copy(wrpo__current, m, NULL);
            if (wrpo__is_list(m) && m->kind == WRPO_JSON_ARRAY) {
                member->child = NULL, member->count = 0;
                for (const wrpo_json *v = m->child; v; v = v->next) wrpo__json_append(member, wrpo__with_reward(s, v, &next));
            }
            wrpo__json_append(&copy, member);
        }
    }
    for (int64_t k = 0; k < n; k++) s->sum += rewards[k], stats->least = fmin(stats->least, rewards[k]), stats->most = fmax(stats->most, rewards[k]);
    stats->prompts++, stats->scored += n, stats->kept += entries - n;
    wrpo__text line = {.arena = wrpo__current};
    wrpo__json_write(&line, &copy);
    wrpo__text_puts(&line, "\n");
    wrpo__write(s->out, line.data, line.size);
}
static wrpo_result wrpo__score_line(wrpo__scoring *s, const char *text, size_t n) {      /* an entry of its own: see wrpo__load_line */
    WRPO__TRY(s->in.ctx, wrpo__arena_new(s->in.ctx), true) {
        s->in.id = wrpo__format(wrpo__current, "line %lld", (long long)s->in.line);
        wrpo__score_root(s, wrpo__json_parse(wrpo__current, s->in.desc.path, s->in.line, text, n));
    }
    if (wrpo__entry.failed && s->in.tokenizing && s->in.ctx->error.code != WRPO_E_MEMORY) wrpo__name_record(&s->in);
    s->in.tokenizing = false;
    return wrpo__end(&wrpo__entry);
}
WRPO_API wrpo_result wrpo_reward_file(wrpo_reward *reward, const wrpo_reward_file_desc *desc, wrpo_reward_file_stats *out) {
    wrpo_ctx *ctx = reward->ctx;
    *out = (wrpo_reward_file_stats){.mean = NAN, .least = NAN, .most = NAN};
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *arena = wrpo__entry.arena;
        if (!desc->in || !desc->out) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_reward_file_desc: want in and out, found NULL");
        const wrpo__file *f = wrpo__open_file(arena, desc->in);
        wrpo__scoring s = {.reward = reward, .desc = desc, .out = wrpo__create(arena, desc->out), .stats = out};
        s.in = (wrpo__reading){.ctx = ctx, .desc.path = desc->in, .now = time(NULL)};
        int64_t lines = 0, done = 0;
        for (wrpo__lines l = {.file = f}; wrpo__next_line(&l);) lines++;
        if (!lines) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want lines of candidates, found none", desc->in);
        for (wrpo__lines l = {.file = f}; wrpo__next_line(&l);) {
            s.in.line = l.number;
            wrpo__rethrow(ctx, wrpo__score_line(&s, l.text, l.size));
            if (desc->on_line && !desc->on_line(++done, lines, desc->user)) wrpo__fail(ctx, WRPO_E_STOPPED, "%s: stopped after %lld of %lld lines", desc->in, (long long)done, (long long)lines);
        }
        wrpo__commit(s.out);
        if (out->scored) out->mean = s.sum / (double)out->scored;
    }
    return wrpo__end(&wrpo__entry);
}

/* ---------------------------------------------------------------------------------------------- >>run
   A run with files: the memory plan, the reference's cache, the state that a run goes on from, metrics, the loop. */

/* ---- memory of a run: measured, and fitted into what there is ---- */
/* gradients, moments, activations, head and, for a backend with memory of its own, device (all but the weights); total is left to the caller */
static void wrpo__measure(wrpo_ctx *ctx, const wrpo_config *config, wrpo_moments moments, int64_t recompute, bool logits, int64_t rows, wrpo_bytes *out) {
    const wrpo__shape shape = wrpo__train_shape(ctx, config, recompute, logits, rows);
    wrpo__run run = {0};
    wrpo__bump b = {0};
    int64_t count;
    wrpo__layout_weights(config, NULL, NULL, &count, NULL);
    wrpo__run_layout(ctx, config, &shape, &run, &b);
    if (b.overflow) wrpo__fail(ctx, WRPO_E_MEMORY, "out of memory: %lld rows of this model do not fit into the address space", (long long)rows);
    out->gradients = (size_t)count * sizeof(float), out->moments = 2 * wrpo_moments_bytes(moments, count);
    out->head = run.head_bytes;
    out->activations = run.bytes - run.head_bytes + wrpo__run_host_bytes(config, rows);
    out->device = out->gradients + out->moments + run.bytes;
    out->recompute = shape.recompute, out->logits = wrpo__span(&shape) >= rows;
}
/* As asked; where no recomputing is asked for, with as little recomputed as lets the run fit into `room`: nothing, else the logits
   (of all that is kept they save the least time a byte), else as few layers as do. False: it does not fit. */
static bool wrpo__fit(wrpo_ctx *ctx, const wrpo_config *config, const wrpo_train_desc *d, wrpo_moments moments, int64_t rows, size_t room, wrpo_bytes *out) {
    int64_t low = 0, high = config->num_hidden_layers;
    const bool keep = d->recompute == 0 && (uint64_t)rows < SIZE_MAX / 16 / (uint64_t)config->vocab_size;      /* logits that can be addressed */
    wrpo__measure(ctx, config, moments, d->recompute, keep, rows, out);
    if (out->device <= room) return true;
    if (d->recompute) return false;
    while (low < high) {                               /* the more, the less it takes, but for the first, which brings a layer to share */
        const int64_t middle = (low + high) / 2;
        wrpo__measure(ctx, config, moments, middle, false, rows, out);
        if (out->device <= room) high = middle;
        else low = middle + 1;
    }
    wrpo__measure(ctx, config, moments, low, false, rows, out);
    return out->device <= room;
}
WRPO_API wrpo_result wrpo_train_bytes(wrpo_ctx *ctx, const wrpo_config *config, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_bytes *out) {
    memset(out, 0, sizeof *out);
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo_train_desc d = wrpo_train_defaults(desc);
        wrpo__train_check(ctx, &d);
        int64_t count, rows = data ? wrpo__run_rows(config, data, 0, wrpo_data_count(data), d.micro_tokens) : d.micro_tokens;
        wrpo__layout_weights(config, NULL, NULL, &count, NULL);
        wrpo_model *table = wrpo__model_table(wrpo__entry.arena, config, ctx->desc.dtype);
        wrpo__bump weights = {0};
        wrpo__place_weights(table, &weights);
        out->weights = weights.used + (wrpo__has_masters(ctx, false) ? (size_t)count * sizeof *table->low : 0);
        const size_t held = WRPO__MIN(ctx->device_bytes, out->weights), free = wrpo__room(ctx);            /* the weights may be there already */
        const size_t room = free < SIZE_MAX - held ? free + held : SIZE_MAX;
        wrpo__fit(ctx, config, &d, d.moments, rows, room > out->weights ? room - out->weights : 0, out);
        out->device += out->weights, out->room = room;
        if (data) {
            wrpo_data_stats s = wrpo_data_get_stats(data);
            out->data = (size_t)(s.prompt_tokens + s.response_tokens) * 4 + (size_t)s.records * (64 + 4 * sizeof(wrpo_tokens) + 3 * sizeof(double));
        }
        out->total = out->weights + out->gradients + out->moments + out->activations + out->head + out->data;
    }
    return wrpo__end(&wrpo__entry);
}
/* What would fit: first other moments, then fewer rows at once; NULL: nothing. */
static const char *wrpo__would_fit(wrpo_trainer *t, int64_t rows, size_t room) {
    const wrpo_config *c = &t->model->config;
    int64_t least = wrpo__run_rows(c, t->train.data, 0, t->train.N, 1);                /* the longest record */
    if (t->eval.data) least = WRPO__MAX(least, wrpo__run_rows(c, t->eval.data, 0, t->eval.N, 1));
    wrpo_train_desc d = t->desc;
    wrpo_bytes need;
    d.recompute = 0;
    for (int64_t n = rows, last = 0; n != last; last = n, n = WRPO__MAX(least, n / 2))
        for (int i = (int)d.moments; i <= (int)WRPO_MOMENTS_8BIT; i++)
            if (wrpo__fit(t->ctx, c, &d, (wrpo_moments)i, n, room, &need))
                return wrpo__format(wrpo__current, "moments in %s, %lld micro tokens and %lld of %lld layers recomputed", wrpo_moments_name(i), (long long)n,
                                    (long long)need.recompute, (long long)c->num_hidden_layers);
    return NULL;
}
/* What a run takes and recomputes, or an error that says what would fit. The weights are in memory, the rest is not yet. */
static wrpo_bytes wrpo__fitted(wrpo_trainer *t, int64_t rows) {
    const size_t room = wrpo__room(t->ctx);
    wrpo_bytes need;
    const bool fits = wrpo__fit(t->ctx, &t->model->config, &t->desc, t->desc.moments, rows, room, &need), host = t->ctx->desc.backend->host;
    if (fits || (host && !t->ctx->desc.memory_limit)) return need;                 /* a host may have more than it says: it can swap */
    const char *with = wrpo__would_fit(t, rows, room);
    wrpo__fail(t->ctx, WRPO_E_MEMORY, "out of memory: besides its weights the run takes %.3f GiB, %s %.3f GiB left; %s%s", (double)need.device / 1073741824.0,
               host ? "its limit has" : "the device has", (double)room / 1073741824.0, with ? "it would fit with " : "nothing that can be set makes it fit", with ? with : "");
}

/* ---- the reference: three numbers a record, computed once, kept in a file under a fingerprint ---- */
static uint64_t wrpo__config_hash(const wrpo_ctx *ctx, const wrpo_config *c) {
    const double numbers[] = {c->rms_norm_eps, c->rope.theta, (double)c->rope.type, c->rope.factor, c->rope.low_freq_factor, c->rope.high_freq_factor,
                              c->rope.beta_fast, c->rope.beta_slow, c->rope.attention_factor, (double)c->rope.original_max_position_embeddings,
                              (double)c->sliding_window, (double)c->head_dim, (double)c->num_attention_heads, (double)c->num_key_value_heads,
                              (double)ctx->desc.dtype, (double)c->rope.dims, (double)c->rope.yarn_truncate,
                              (double)c->max_position_embeddings, c->query_pre_attn_scalar, c->attn_logit_softcapping, c->final_logit_softcapping,
                              c->gelu, c->norm_plus_one, c->post_norms, c->scale_embeddings};
    uint64_t h = wrpo__hash(wrpo__hash(0, numbers, sizeof numbers), c->sliding_layers, sizeof c->sliding_layers);
    return wrpo__hash(wrpo__hash(h, c->rope.short_factor, sizeof c->rope.short_factor), c->rope.long_factor, sizeof c->rope.long_factor);
}
static uint64_t wrpo__data_hash(uint64_t h, const wrpo_data *data) {
    for (int64_t i = 0; i < wrpo_data_count(data); i++) {
        wrpo_record record = wrpo_data_record(data, i);
        h = wrpo__hash(wrpo__hash(h, record.prompt, (size_t)record.prompt_count * sizeof *record.prompt), &record.weight, sizeof record.weight);
        for (int k = 0; k < record.count; k++) {
            const wrpo_tokens *y = &record.responses[k];
            const int64_t scored[3] = {y->first, (int64_t)y->role, y->pair};
            h = wrpo__hash(wrpo__hash(wrpo__hash(h, y->ids, (size_t)y->count * sizeof *y->ids), scored, sizeof scored), &y->weight, sizeof y->weight);
        }
    }
    return h;
}
static uint64_t wrpo__fingerprint(const wrpo_model *model, const wrpo_data *data, float *piece) {
    uint64_t h = wrpo__config_hash(model->ctx, &model->config);
    for (int64_t i = 0; i < model->n_weights; i++) {
        const wrpo_weight *w = &model->weights[i];
        h = wrpo__hash(h, w->name, strlen(w->name));
        for (int64_t at = 0, n; at < w->rows * w->cols; at += n) {
            n = WRPO__MIN(w->rows * w->cols - at, WRPO__PIECE);
            wrpo__weight_get(model, w, at, n, piece);
            h = wrpo__hash(h, piece, (size_t)n * sizeof *piece);
        }
    }
    return wrpo__data_hash(h, data);
}
/* A cache that is there and whole fills ref; anything else is made anew. */
static bool wrpo__reference_read(wrpo__arena *temp, const char *path, uint64_t fingerprint, double *ref, int64_t N, int K) {
    char want[32];
    if (!wrpo__exists(path)) return false;
    const wrpo__file *f = wrpo__open_file(temp, path);
    wrpo_json *root;
    if (wrpo_json_parse(temp->ctx, path, (const char *)f->data, f->size, &root) != WRPO_OK) return false;
    snprintf(want, sizeof want, "%016llx", (unsigned long long)fingerprint);
    const wrpo_json *rows = wrpo__json_get(root, "logps"), *row = rows ? rows->child : NULL;
    bool ok = wrpo__json_is(wrpo__json_get(root, "fingerprint"), want) && rows && rows->kind == WRPO_JSON_ARRAY && rows->count == N;
    for (int64_t i = 0; ok && i < N; i++, row = row->next) {
        const wrpo_json *v = row->child;
        ok = row->kind == WRPO_JSON_ARRAY && row->count == K;
        for (int k = 0; ok && k < K; k++, v = v->next) ref[i * K + k] = v->kind == WRPO_JSON_NUMBER ? v->number : NAN;
    }
    wrpo_json_free(temp->ctx, root);
    return ok;
}
static void wrpo__reference_write(wrpo__arena *temp, const char *path, uint64_t fingerprint, const double *ref, int64_t N, int K) {
    wrpo__text t = {.arena = temp};
    wrpo__text_printf(&t, "{\"fingerprint\": \"%016llx\", \"logps\": [", (unsigned long long)fingerprint);
    for (int64_t i = 0; i < N; i++) {
        wrpo__text_puts(&t, i ? ",\n[" : "\n[");
        for (int k = 0; k < K; k++) {
            if (k) wrpo__text_puts(&t, ",");
            wrpo__json_number(&t, ref[i * K + k]);
        }
        wrpo__text_puts(&t, "]");
    }
    wrpo__text_puts(&t, "\n]}\n");
    wrpo__writer *w = wrpo__create(temp, path);
    wrpo__write(w, t.data, t.size);
    wrpo__commit(w);
}
/* Reference log-probs of one set: from the cache in out_dir, or computed and then kept there. */
static void wrpo__set_cached(wrpo__arena *temp, const wrpo_trainer *t, const wrpo__set *set, wrpo_model *ref, float *piece) {
    const char *path = NULL;
    uint64_t fingerprint = 0;
    if (!set->ref) return;
    if (t->out_dir) {
        fingerprint = wrpo__fingerprint(ref, set->data, piece);
        path = wrpo__format(temp, "%s/reference_logps-%016llx.json", t->out_dir, (unsigned long long)fingerprint);
        if (wrpo__reference_read(temp, path, fingerprint, set->ref, set->N, set->K)) {
            wrpo__log(t->ctx, WRPO_LOG_INFO, "reference log-probs read from %s", path);
            return;
        }
    }
    wrpo__set_reference(temp, t, set, ref);
    if (path) wrpo__reference_write(temp, path, fingerprint, set->ref, set->N, set->K);
}
/* Both sets by one reference model, which is freed afterwards. */
static void wrpo__reference(const wrpo_trainer *t) {
    wrpo__arena *temp = wrpo__current;
    wrpo_model *ref = t->model;
    if (t->desc.ref_dir) {
        const wrpo_model_desc desc = {.dir = t->desc.ref_dir, .frozen = true};
        wrpo__cleanup *owner = wrpo__on_free(temp, wrpo__free_model, NULL);
        wrpo__rethrow(t->ctx, wrpo_model_load(t->ctx, &desc, &ref));
        owner->p = ref;
    }
    float *piece = wrpo__raw(temp, WRPO__PIECE, sizeof *piece);
    wrpo__set_cached(temp, t, &t->train, ref, piece);
    wrpo__set_cached(temp, t, &t->eval, ref, piece);
}
static wrpo_result wrpo__reference_entry(const wrpo_trainer *t) {
    WRPO__CALL(t->ctx, wrpo__arena_new(t->ctx), true, wrpo__reference(t));
    return wrpo__end(&wrpo__entry);
}

/* ---- the state of a run on disk: all that the next step depends on, in one file ----
   The weights stand in it as well, for those beside it may be rounded, so it never belongs to others. Order of records, alpha, rate and
   dice of the rounding follow from the step. Its name keeps loaders that read every *.safetensors of a directory from taking it for weights. */
#define WRPO__STATE_FILE "trainer_state.wrpo"
enum { WRPO__STATE_FORMAT = 2 };     /* goes up when a state of before can no longer be read; 1 named a version of the library instead */
typedef struct wrpo__setting { const char *name, *text; } wrpo__setting;
/* What must be the same, the reference last; then two numbers that say where the run is. An stb_ds array. */
static wrpo__setting *wrpo__state_settings(wrpo__arena *temp, const wrpo_trainer *t) {
    const wrpo_train_desc *d = &t->desc;
    const wrpo__set *sets[2] = {&t->train, &t->eval};
    const char *is[2] = {NULL, "none"};
    uint64_t h = 0;
    for (int i = 0; i < 2; i++) {
        const wrpo__set *s = sets[i];
        if (!s->data) continue;
        is[i] = wrpo__format(temp, "%lld records, %016llx", (long long)s->N, (unsigned long long)wrpo__data_hash(0, s->data));
        if (s->ref) h = wrpo__hash(h, s->ref, (size_t)s->N * (size_t)s->K * sizeof *s->ref);
    }
    const char *config = wrpo__format(temp, "%s %016llx", t->model->config.model_type,
                                      (unsigned long long)wrpo__config_hash(t->ctx, &t->model->config));
    const struct { const char *name, *word; double number; bool same; } table[] = {
        {"state_format", NULL, WRPO__STATE_FORMAT, true},
        {"backend", t->ctx->desc.backend->name, 0, true},
        {"dtype", wrpo__dtype_name(t->ctx->desc.dtype), 0, true},
        {"config", config, 0, true},
        {"method", wrpo_method_name((int)d->loss.method), 0, true},
        {"pair", wrpo_pair_name((int)d->loss.pair), 0, true},
        {"beta", NULL, d->loss.beta, true},
        {"label_smoothing", NULL, d->loss.label_smoothing, true},
        {"gamma_ratio", NULL, d->loss.gamma_ratio, true},
        {"ipo_sum", NULL, d->loss.ipo_sum, true},
        {"alpha_schedule", wrpo_alpha_schedule_name((int)d->alpha_schedule), 0, true},
        {"lr_schedule", wrpo_lr_schedule_name((int)d->lr_schedule), 0, true},
        {"moments", wrpo_moments_name((int)d->moments), 0, true},
#define WRPO__X(field, name, otherwise, valid, want, same) {name, NULL, (double)d->field, same},
        WRPO__SETTINGS(WRPO__X)
#undef WRPO__X
        {"seed", wrpo__format(temp, "%llu", (unsigned long long)d->seed), 0, true},
        {"no_shuffle", NULL, d->no_shuffle, true},
        {"data", is[0], 0, true},
        {"eval_data", is[1], 0, true},
        {"steps", NULL, (double)t->T, true},
        {"reference", wrpo__format(temp, "log-probs %016llx", (unsigned long long)h), 0, true},
        {"step", NULL, (double)t->k, true},
        {"milliseconds", NULL, WRPO__MAX(0, floor((wrpo__now() - t->start) * 1000)), true}};
    wrpo__setting *out = NULL;
    for (int64_t i = 0; i < WRPO__COUNT(table); i++) {
        wrpo__text number = {.arena = temp};
        if (!table[i].same) continue;
        if (!table[i].word) wrpo__json_number(&number, table[i].number + 0.0);         /* -0 becomes 0 */
        const wrpo__setting s = {table[i].name, table[i].word ? table[i].word : number.data};
        stbds_arrput(out, s);
    }
    return out;
}
typedef struct wrpo__state_part {    /* a tensor of the file: a weight as floats, or moments as they lie in memory */
    const char *name, *dtype;
    int ndim; int64_t shape[2];
    const wrpo_weight *w;
    int moment;                      /* 0: the weight itself; 1, 2: m, v */
    size_t at, bytes;                /* in the memory of moments; in the file */
} wrpo__state_part;
/* In the file's order: all weights, their first moments, their second ones; moments in blocks are those of a run of weights, under the
   name of its first. An stb_ds array. */
static wrpo__state_part *wrpo__state_parts(wrpo__arena *temp, const wrpo_trainer *t) {
    const bool blocks = t->desc.moments == WRPO_MOMENTS_8BIT, half = t->desc.moments == WRPO_MOMENTS_BF16;
    wrpo__state_part *parts = NULL;
    for (int moment = 0; moment < 3; moment++)
        for (int64_t i = 0, end, size; i < t->model->n_weights; i = end) {
            const wrpo_weight *w = &t->model->weights[i];
            const size_t each = half && moment ? 2 : 4;
            wrpo__state_part p = {w->name, half && moment ? "BF16" : "F32", w->vector ? 1 : 2, {w->rows, w->cols}, w, moment, (size_t)w->at * each, (size_t)wrpo__size(w) * each};
            end = i + 1;
            if (moment) p.name = wrpo__format(temp, moment == 1 ? "%s.exp_avg" : "%s.exp_avg_sq", w->name);
            if (moment && blocks) {
                end = i + wrpo__weight_run(w, t->model->n_weights - i, 0, &size);
                p.dtype = "U8", p.ndim = 2, p.at = wrpo_moments_bytes(t->desc.moments, w->at), p.bytes = wrpo_moments_bytes(t->desc.moments, size);
                p.shape[0] = (int64_t)(p.bytes / WRPO_BLOCK_BYTES), p.shape[1] = WRPO_BLOCK_BYTES;
            }
            stbds_arrput(parts, p);
        }
    return parts;
}
/* As many of its bytes as fit into piece[WRPO__PIECE], from byte `from` on, out of the run or into it; returns how many. */
static size_t wrpo__state_move(wrpo_trainer *t, const wrpo__state_part *p, size_t from, float *piece, bool put) {
    const wrpo_backend *be = t->ctx->desc.backend;
    const size_t n = WRPO__MIN(p->bytes - from, WRPO__PIECE * sizeof *piece);
    const int64_t first = (int64_t)(from / sizeof *piece), count = (int64_t)(n / sizeof *piece);
    char *moments = p->moment ? (p->moment == 1 ? t->exp_avg : t->exp_avg_sq) + p->at + from : NULL;
    if (moments && put) be->put(t->ctx->dev, moments, piece, n);
    else if (moments) be->get(t->ctx->dev, piece, moments, n);
    else if (put) wrpo__weight_put(t->model, p->w, first, count, piece);
    else wrpo__weight_get(t->model, p->w, first, count, piece);
    return n;
}
WRPO_API wrpo_result wrpo_trainer_save(wrpo_trainer *t, const wrpo_save_desc *desc) {
    wrpo_ctx *ctx = t->ctx;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *temp = wrpo__entry.arena;
        if (!desc->dir) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_save_desc: dir is missing");
        const char *path = wrpo__join(temp, desc->dir, WRPO__STATE_FILE), *log = t->out_dir ? wrpo__join(temp, t->out_dir, "metrics.jsonl") : NULL;
        const wrpo__file *metrics = log && wrpo__exists(log) ? wrpo__open_file(temp, log) : NULL;
        const int64_t log_size = metrics ? (int64_t)metrics->size : 0, eight = 8;
        const wrpo__setting *settings = wrpo__state_settings(temp, t);
        const wrpo__state_part *parts = wrpo__state_parts(temp, t), *parts_end = parts + stbds_arrlen(parts);
        uint64_t h = 0;                                /* the checksum: of the metadata, then of all data */
        int64_t at = 0;
        wrpo__text header = {.arena = temp};
        for (int64_t i = 0; i < stbds_arrlen(settings); i++) {
            wrpo__text_puts(&header, i ? ",\"" : "{\"__metadata__\":{\"");
            wrpo__text_printf(&header, "%s\":", settings[i].name);
            wrpo__json_quote(&header, settings[i].text, strlen(settings[i].text));
            h = wrpo__hash(h, settings[i].text, strlen(settings[i].text));
        }
        wrpo__text_puts(&header, "}");
        for (const wrpo__state_part *p = parts; p < parts_end; at += (int64_t)p->bytes, p++) wrpo__header_add(&header, p->name, p->dtype, p->ndim, p->shape, at, (int64_t)p->bytes);
        wrpo__header_add(&header, "metrics.jsonl", "U8", 1, &log_size, at, log_size);
        wrpo__header_add(&header, "checksum", "U8", 1, &eight, at + log_size, eight);

        wrpo__remove(ctx, path);                       /* an old state does not stand beside new weights, not even for a moment */
        wrpo__rethrow(ctx, wrpo_model_save(t->model, desc));
        float *piece = wrpo__raw(temp, WRPO__PIECE, sizeof *piece);
        wrpo__writer *w = wrpo__create(temp, path);
        wrpo__header_write(w, &header);
        for (const wrpo__state_part *p = parts; p < parts_end; p++)
            for (size_t from = 0, n; from < p->bytes; from += n) {
                n = wrpo__state_move(t, p, from, piece, false);
                h = wrpo__hash(h, piece, n);
                wrpo__write(w, piece, n);
            }
        wrpo__sync(ctx);                               /* a device that failed gave no moments */
        if (metrics) wrpo__write(w, metrics->data, metrics->size);
        h = wrpo__hash(h, metrics ? metrics->data : NULL, (size_t)log_size);
        wrpo__write(w, &h, sizeof h);
        wrpo__commit(w);
    }
    return wrpo__end(&wrpo__entry);
}
static const wrpo_tensor_info *wrpo__state_tensor(wrpo_ctx *ctx, const wrpo_tensors *file, const char *path, const char *name, const char *dtype, int ndim, const int64_t *shape) {
    const wrpo_tensor_info *info = wrpo_tensors_find(file, name);
    char want[80], found[160] = "no such tensor";
    wrpo__shape_text(want, sizeof want, ndim, shape);
    if (info) wrpo__shape_text(found, sizeof found, info->ndim, info->shape);
    if (!info || strcmp(want, found) || strcmp(info->dtype, dtype))
        wrpo__fail(ctx, WRPO_E_FORMAT, "%s: %s: want %s %s, found %s%s%s", path, name, dtype, want, info ? info->dtype : "", info ? " " : "", found);
    return info;
}
/* check: before anything is computed, that the file is whole and of this run, but for the reference. Later, when that is known and memory is taken,
   the run is put where it was. */
static wrpo_result wrpo__resume(wrpo_trainer *t, bool check) {
    wrpo_ctx *ctx = t->ctx;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *temp = wrpo__entry.arena;
        const char *path = wrpo__join(temp, t->desc.resume, WRPO__STATE_FILE);
        const wrpo_tensors *file = wrpo__tensors_in(ctx, path);
        const wrpo__file *f = wrpo__open_file(temp, path);              /* once more, for what the tensors do not say */
        uint64_t size = 0, h = 0, sum;
        memcpy(&size, f->data, WRPO__MIN(f->size, 8));
        const wrpo_json *metadata = wrpo__json_get(wrpo__json_parse(temp, path, 1, (const char *)f->data + 8, (size_t)WRPO__MIN(size, f->size - 8)), "__metadata__");
        const wrpo__setting *settings = wrpo__state_settings(temp, t);
        const int64_t same = stbds_arrlen(settings) - 2;
        long long place[2] = {0};
        for (int64_t i = 0; i < same + 2; i++) {
            const wrpo_json *v = metadata ? wrpo__json_get(metadata, settings[i].name) : NULL;
            const char *found = v ? v->text : "no such setting", *want = settings[i].text;
            if (i < same && strcmp(found, want) && !(check && i == same - 1))
                wrpo__fail(ctx, v ? WRPO_E_ARG : WRPO_E_FORMAT, "%s: %s: want %.100s, as this run has it, found %.100s", path, settings[i].name, want, found);
            if (i >= same && (strspn(found, "0123456789") != strlen(found) || (place[i - same] = strtoll(found, NULL, 10)) > (i == same ? t->T : LLONG_MAX - 1)))
                wrpo__fail(ctx, WRPO_E_FORMAT, "%s: %s: want a whole number, steps up to %lld, found %.100s", path, settings[i].name, (long long)t->T, found);
            h = wrpo__hash(h, found, strlen(found));
        }
        const wrpo__state_part *parts = wrpo__state_parts(temp, t), *parts_end = parts + stbds_arrlen(parts);
        const wrpo_tensor_info *log = wrpo_tensors_find(file, "metrics.jsonl");
        const int64_t eight = 8, log_size = log ? log->count : 0;
        float *piece = wrpo__raw(temp, WRPO__PIECE, sizeof *piece);
        log = wrpo__state_tensor(ctx, file, path, "metrics.jsonl", "U8", 1, &log_size);
        memcpy(&sum, wrpo__state_tensor(ctx, file, path, "checksum", "U8", 1, &eight)->data, sizeof sum);
        if (wrpo_tensors_count(file) != parts_end - parts + 2)
            wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want %lld tensors, found %lld", path, (long long)(parts_end - parts + 2), (long long)wrpo_tensors_count(file));
        if (!check && t->out_dir) {
            wrpo__writer *w = wrpo__create(temp, wrpo__join(temp, t->out_dir, "metrics.jsonl"));
            wrpo__write(w, log->data, log->bytes);
            wrpo__commit(w);
        }
        for (const wrpo__state_part *p = parts; p < parts_end; p++) {
            const wrpo_tensor_info *info = wrpo__state_tensor(ctx, file, path, p->name, p->dtype, p->ndim, p->shape);
            for (size_t from = 0, n; from < p->bytes; from += n) {
                n = WRPO__MIN(p->bytes - from, WRPO__PIECE * sizeof *piece);
                if (check) h = wrpo__hash(h, (const char *)info->data + from, n);
                else memcpy(piece, (const char *)info->data + from, n), wrpo__state_move(t, p, from, piece, true);
            }
        }
        h = wrpo__hash(h, log->data, log->bytes);
        if (check && h != sum) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: checksum: want %016llx, found %016llx: not the bytes that were written", path, (unsigned long long)sum, (unsigned long long)h);
        if (!check) t->k = (int64_t)place[0], t->start = wrpo__now() - (double)place[1] / 1000;
        wrpo__sync(ctx);
    }
    return wrpo__end(&wrpo__entry);
}

/* ---- metrics as lines of JSON ---- */
static void wrpo__metrics_text(wrpo__text *out, const wrpo_metrics *m, const char *prefix) {
    wrpo__text_printf(out, "{\"step\": %lld", (long long)m->step);
#define WRPO__X(field, name) \
    if (!isnan(m->field)) { wrpo__text_printf(out, ", \"%s%s\": ", prefix, name); wrpo__json_number(out, m->field); }
    WRPO_METRICS(WRPO__X)
#undef WRPO__X
    wrpo__text_printf(out, ", \"%srecords\": %lld, \"%stokens\": %lld, \"%stokens_per_second\": ", prefix, (long long)m->records, prefix, (long long)m->tokens, prefix);
    wrpo__json_number(out, round(m->tokens_per_second * 10) / 10);
    wrpo__text_printf(out, ", \"%sseconds\": ", prefix), wrpo__json_number(out, round(m->seconds * 1000) / 1000), wrpo__text_puts(out, "}");
}
WRPO_API wrpo_result wrpo_metrics_json(wrpo_ctx *ctx, const wrpo_metrics *m, const char *prefix, char **text) {
    *text = NULL;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__text t = {.arena = wrpo__entry.arena};
        wrpo__metrics_text(&t, m, prefix);
        *text = wrpo__handout(ctx, t.data, t.size);
    }
    return wrpo__end(&wrpo__entry);
}
static void wrpo__log_metrics(wrpo_trainer *t, const wrpo_metrics *m, const char *prefix) {
    if (!t->metrics) return;
    wrpo__text line = {.arena = wrpo__current};
    wrpo__metrics_text(&line, m, prefix);
    wrpo__text_puts(&line, "\n");
    if (fwrite(line.data, 1, line.size, t->metrics) != line.size || fflush(t->metrics) != 0)
        wrpo__fail(t->ctx, WRPO_E_IO, "%s/metrics.jsonl: cannot be written: %s", t->out_dir, strerror(errno));
}

/* ---- open, with files ---- */
static void wrpo__close_metrics(void *p) {
    wrpo_trainer *t = p;
    if (t->metrics) fclose(t->metrics);
    t->metrics = NULL;
}
static wrpo_trainer *wrpo__trainer_open(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, bool train) {
    wrpo__arena *arena = wrpo__current;
    wrpo_trainer *t = wrpo__trainer_begin(arena, policy, data, desc, train);
    wrpo_ctx *ctx = t->ctx;
    const char *resume = train ? t->desc.resume : NULL;
    wrpo__on_free(arena, wrpo__close_metrics, t);
    if (t->desc.out_dir) {
        t->out_dir = wrpo__strndup(arena, t->desc.out_dir, strlen(t->desc.out_dir));
        wrpo__make_dir(ctx, t->out_dir);
    }
    if (resume) wrpo__rethrow(ctx, wrpo__resume(t, true));
    const wrpo_bytes plan = train ? wrpo__fitted(t, t->rows) : (wrpo_bytes){0};
    wrpo__rethrow(ctx, wrpo__reference_entry(t));         /* before the memory of training is taken */
    wrpo__trainer_memory(t, train, plan.recompute, plan.logits);
    if (resume) wrpo__rethrow(ctx, wrpo__resume(t, false));
    if (train && t->out_dir) {
        const char *path = wrpo__join(arena, t->out_dir, "metrics.jsonl");
        t->metrics = fopen(path, resume ? "a" : "w");
        if (!t->metrics) wrpo__fail(ctx, WRPO_E_IO, "%s: cannot be written: %s", path, strerror(errno));
        t->log = wrpo__log_metrics;
    }
    return t;
}
static wrpo_result wrpo__trainer_make(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, bool train,
                                      wrpo_trainer **out) {
    *out = NULL;
    WRPO__CALL(policy->ctx, wrpo__arena_new(policy->ctx), false, *out = wrpo__trainer_open(policy, data, desc, train));
    return wrpo__end(&wrpo__entry);
}
WRPO_API wrpo_result wrpo_trainer_open(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_trainer **out) {
    return wrpo__trainer_make(policy, data, desc, true, out);
}

/* ---- evaluation and the loop ---- */
static wrpo_result wrpo__eval_entry(wrpo_trainer *t, wrpo_metrics *m) {
    WRPO__CALL(t->ctx, wrpo__arena_new(t->ctx), true, *m = wrpo__evaluate(t, &t->train, t->desc.alpha + 0.0));
    m->epoch = NAN;
    return wrpo__end(&wrpo__entry);
}
WRPO_API wrpo_result wrpo_eval(wrpo_model *model, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_metrics *m) {
    wrpo_train_desc d = desc ? *desc : (wrpo_train_desc){0};
    wrpo_trainer *t;
    d.eval_data = NULL;
    wrpo_result r = wrpo__trainer_make(model, data, &d, false, &t);
    if (r != WRPO_OK) return r;
    r = wrpo__eval_entry(t, m);
    wrpo_trainer_free(t);
    return r;
}
/* save.dir/checkpoint-K, and then without the one before it, of step *saved (-1: none) */
static wrpo_result wrpo__checkpoint(wrpo_trainer *t, int64_t *saved) {
    WRPO__TRY(t->ctx, wrpo__arena_new(t->ctx), true) {
        wrpo__arena *temp = wrpo__entry.arena;
        wrpo_save_desc save = t->desc.save;
        const char *old = *saved < 0 ? NULL : wrpo__format(temp, "%s/checkpoint-%lld", save.dir, (long long)*saved);
        save.dir = wrpo__format(temp, "%s/checkpoint-%lld", save.dir, (long long)t->k);
        wrpo__rethrow(t->ctx, wrpo_trainer_save(t, &save));
        *saved = t->k;
        const wrpo__name *names = old ? wrpo__list_dir(temp, old) : NULL;
        for (int64_t i = 0; i < stbds_arrlen(names); i++)
            if (strcmp(names[i].text, ".") && strcmp(names[i].text, "..")) wrpo__remove(t->ctx, wrpo__join(temp, old, names[i].text));
#ifdef _WIN32
        if (old) _rmdir(old);
#else
        if (old) rmdir(old);
#endif
    }
    return wrpo__end(&wrpo__entry);
}
WRPO_API wrpo_result wrpo_train(wrpo_model *policy, const wrpo_data *data, const wrpo_train_desc *desc, wrpo_metrics *last) {
    wrpo_ctx *ctx = policy->ctx;
    wrpo_trainer *t;
    wrpo_metrics m = {0}, e;
    bool go = true;
    wrpo_result r = wrpo_trainer_open(policy, data, desc, &t);
    int64_t saved = -1;
    if (r == WRPO_OK) m.step = t->k, m.steps = t->T, m.seconds = wrpo__now() - t->start;
    const int64_t first = m.step;
    while (r == WRPO_OK && go && m.step < t->T) {
        r = wrpo_trainer_step(t, &m);
        bool eval = r == WRPO_OK && desc->eval_data && (m.step == t->T || (desc->eval_steps && m.step % desc->eval_steps == 0));
        if (eval) r = wrpo_trainer_eval(t, desc->eval_data, &e);
        if (r == WRPO_OK && desc->save_steps && m.step % desc->save_steps == 0 && m.step < t->T) r = wrpo__checkpoint(t, &saved);
        if (r == WRPO_OK && desc->on_step) go = desc->on_step(&m, eval ? &e : NULL, desc->user);
    }
    if (r == WRPO_OK && !go && m.step < t->T) ctx->error = (wrpo_error){WRPO_E_STOPPED, 0, 0, "stopped by the callback"}, r = WRPO_E_STOPPED;
    if (t) m.step = t->k;            /* a step whose line could not be written is done */
    if (desc->save.dir && r != WRPO_OK && r != WRPO_E_DEVICE && m.step > first && m.step != saved) {
        const wrpo_error why = ctx->error;
        if (wrpo__checkpoint(t, &saved) == WRPO_OK) ctx->error = why;
        else r = ctx->error.code;
    }
    if (last) *last = m;
    wrpo_trainer_free(t);
    return r;
}
/* ------------------------------------------------------------------------------------------- >>recipe
   Rewards decide: which answers a record is made of, how often one file of answers beats another.

   Files of candidates are read twice, so that one prompt at a time is in memory: once for the prompts' ids, which
   say what lines belong together, and once, prompt by prompt, for the responses.                             */
enum { WRPO__SOURCES, WRPO__TARGETS };
typedef struct wrpo__scored {
    const char *model; int64_t models_at;              /* its place in wrpo__prompts.models */
    const wrpo_json *content, *number;                 /* number: the reward as written */
    const wrpo_json *answer;                           /* what entropy looks at: "answer", or content */
    double reward;
} wrpo__scored;
typedef struct wrpo__spot { const char *path, *text; size_t size; int64_t line; struct wrpo__spot *next; } wrpo__spot;
typedef struct wrpo__ranked { const char *id; wrpo__spot *first, *last; } wrpo__ranked;     /* a prompt's lines */
typedef struct wrpo__named { char *key; int64_t value; } wrpo__named;
static const char *const wrpo__prompt_keys[] = {"prompt", "tools", "chat_template_kwargs"};
typedef struct wrpo__prompts {         /* the prompts of some files */
    wrpo_ctx *ctx;
    wrpo__arena *arena, *line;       /* line: of the prompt in work */
    wrpo__ranked *prompts;           /* stb array, in the order of their first lines */
    wrpo__named *ids, *names;        /* stb maps to places in prompts and models */
    wrpo_select_model *models;       /* stb array; reward: the sum */
    int64_t empty;
    const wrpo_json *prompt[3], *id; /* of the prompt in work: what wrpo__prompt_keys names, from the line `said` on; and its responses: stb arrays */
    const wrpo__spot *said;
    wrpo__scored *lists[2];
} wrpo__prompts;
static const char *wrpo__prompt_id(wrpo_ctx *ctx, const char *path, const wrpo_json *root, const wrpo_json **id) {
    wrpo__json_want(ctx, path, root, WRPO_JSON_OBJECT, "line");
    *id = wrpo__present(root, "prompt_id");
    if (!*id) return NULL;
    if ((*id)->kind != WRPO_JSON_NUMBER) wrpo__json_want(ctx, path, *id, WRPO_JSON_STRING, NULL);
    return (*id)->text;
}
static void wrpo__prompts_add(wrpo__prompts *t, const char *path) {
    const wrpo__file *f = wrpo__open_file(t->arena, path);
    for (wrpo__lines l = {.file = f}; wrpo__next_line(&l); wrpo__arena_clear(t->line)) {
        const wrpo_json *root = wrpo__json_parse(t->line, path, l.number, l.text, l.size), *id;
        const char *name = wrpo__prompt_id(t->ctx, path, root, &id);
        if (!name) wrpo__json_fail(t->ctx, WRPO_E_FORMAT, path, root, "prompt_id: want a string or a number, found none");
        wrpo__spot *place = WRPO__NEW(t->arena, wrpo__spot);
        *place = (wrpo__spot){path, l.text, l.size, l.number, NULL};
        ptrdiff_t at = stbds_shgeti(t->ids, name);
        if (at < 0) {
            wrpo__ranked prompt = {wrpo__strndup(t->arena, name, strlen(name)), place, place};
            stbds_shput(t->ids, prompt.id, stbds_arrlen(t->prompts));
            stbds_arrput(t->prompts, prompt);
            continue;
        }
        wrpo__ranked *prompt = &t->prompts[t->ids[at].value];
        if (prompt->last->path == path)
            wrpo__json_fail(t->ctx, WRPO_E_FORMAT, path, root, "prompt_id \"%.80s\": want each once in a file, found it in line %lld too", name, (long long)prompt->last->line);
        prompt->last = prompt->last->next = place;
    }
}
static void wrpo__prompts_open(wrpo__prompts *t, wrpo__arena *arena, const char *const *paths, int64_t n) {
    *t = (wrpo__prompts){.ctx = arena->ctx, .arena = arena, .line = wrpo__sub_arena(arena)};
    for (int64_t i = 0; i < n; i++) wrpo__prompts_add(t, wrpo__strndup(arena, paths[i], strlen(paths[i])));
    if (!t->prompts) wrpo__fail(t->ctx, WRPO_E_FORMAT, "%s: want prompts, found none", n ? paths[0] : "wrpo_select_desc.in");
}
static void wrpo__add_candidate(wrpo__prompts *t, const char *path, const wrpo_json *v, int list, bool named) {
    const wrpo_json *model = named ? wrpo__json_need(t->ctx, path, v, "model", WRPO_JSON_STRING) : NULL;
    const wrpo_json *answer = wrpo__present(v, "answer");
    wrpo__scored c = {.model = model ? model->text : "", .content = wrpo__json_need(t->ctx, path, v, "content", WRPO_JSON_STRING),
                         .number = wrpo__json_need(t->ctx, path, v, "reward", WRPO_JSON_NUMBER)};
    c.reward = wrpo__json_real(t->ctx, path, c.number, NULL), c.answer = answer ? answer : c.content;
    if (wrpo__jskip_space(c.content->text, c.content->size, 0) == c.content->size) { t->empty++; return; }
    ptrdiff_t at = stbds_shgeti(t->names, c.model);
    if (at < 0) {
        wrpo_select_model m = {.name = wrpo__strndup(t->arena, c.model, strlen(c.model))};
        stbds_shput(t->names, m.name, stbds_arrlen(t->models));
        stbds_arrput(t->models, m);
        at = stbds_shgeti(t->names, c.model);
    }
    c.models_at = t->names[at].value;
    t->models[c.models_at].responses++, t->models[c.models_at].reward += c.reward;
    stbds_arrput(t->lists[list], c);
}
/* Reads the lines of a prompt. flat: a line may be an answer itself. */
static void wrpo__prompts_read(wrpo__prompts *t, const wrpo__ranked *prompt, bool flat) {
    static const char *const keys[] = {"sources", "target"};
    wrpo__arena_clear(t->line);
    t->said = NULL, memset(t->prompt, 0, sizeof t->prompt);
    for (int list = 0; list < 2; list++)
        if (t->lists[list]) stbds_arrsetlen(t->lists[list], 0);
    for (const wrpo__spot *p = prompt->first; p; p = p->next) {
        const wrpo_json *root = wrpo__json_parse(t->line, p->path, p->line, p->text, p->size), *said[3];
        const bool alone = flat && wrpo__present(root, "content");
        bool says = false;             /* a line without any of them says nothing of the prompt; else what it lacks is none */
        int found = alone;
        wrpo__prompt_id(t->ctx, p->path, root, &t->id);
        for (int k = 0; k < 3; k++) said[k] = wrpo__present(root, wrpo__prompt_keys[k]), says = says || said[k];
        for (int k = 0; k < 3 && says && t->said; k++)
            if (!wrpo__json_same(said[k], t->prompt[k]))
                wrpo__json_fail(t->ctx, WRPO_E_FORMAT, p->path, said[k] ? said[k] : root, "prompt_id \"%.80s\": want the %s as in %s:%lld, found %s", prompt->id, wrpo__prompt_keys[k],
                                t->said->path, (long long)t->said->line, said[k] ? "another one" : "none");
        if (says) t->said = p, memcpy(t->prompt, said, sizeof said);
        if (alone) wrpo__add_candidate(t, p->path, root, WRPO__TARGETS, false);
        for (int list = 0; list < 2 && !alone; list++) {
            const wrpo_json *all = wrpo__json_maybe(t->ctx, p->path, root, keys[list], WRPO_JSON_ARRAY);
            found += all != NULL;
            for (const wrpo_json *v = all ? all->child : NULL; v; v = v->next) wrpo__add_candidate(t, p->path, v, list, true);
        }
        if (!found) wrpo__json_fail(t->ctx, WRPO_E_FORMAT, p->path, root, "prompt_id \"%.80s\": want responses in \"sources\" or \"target\", found neither", prompt->id);
    }
}

/* ---- selection ---- */
#define WRPO__FORMS(X) X(WRPO_FORM_QUADS, "quads") X(WRPO_FORM_SFT, "sft") X(WRPO_FORM_PAIR, "pair") X(WRPO_FORM_PAIRS, "pairs")
#define WRPO__X(value, name) [value] = name,
static const char *const wrpo__forms[] = {WRPO__FORMS(WRPO__X)};
#undef WRPO__X
WRPO_API const char *wrpo_form_name(int i) { return i >= 0 && i < WRPO__COUNT(wrpo__forms) ? wrpo__forms[i] : NULL; }
typedef struct wrpo__extremes { const wrpo__scored *best, *worst; double share; } wrpo__extremes;
static bool wrpo__same_text(const wrpo__scored *a, const wrpo__scored *b) { return wrpo__json_same(a->content, b->content); }
/* Best and worst of each model of a list, the models by their best; by_model false: of the list. An stb array. */
static wrpo__extremes *wrpo__rank(const wrpo__scored *list, bool by_model) {
    wrpo__extremes *out = NULL;
    for (int64_t i = 0, k; i < stbds_arrlen(list); i++) {
        const wrpo__scored *c = &list[i];
        for (k = 0; k < stbds_arrlen(out) && by_model && out[k].best->models_at != c->models_at; k++) {}
        if (k == stbds_arrlen(out)) {
            const wrpo__extremes first = {c, c, 0};
            stbds_arrput(out, first);
        }
        if (c->reward > out[k].best->reward) out[k].best = c;
        if (c->reward < out[k].worst->reward) out[k].worst = c;
    }
    for (int64_t i = 1; i < stbds_arrlen(out); i++)    /* by reward, then by place */
        for (int64_t k = i; k > 0; k--) {
            const wrpo__extremes a = out[k - 1], b = out[k];
            if (a.best->reward > b.best->reward || (a.best->reward == b.best->reward && a.best < b.best)) break;
            out[k - 1] = b, out[k] = a;
        }
    return out;
}
static void wrpo__softmax_shares(wrpo__extremes *list, int64_t n, double tau) {      /* of the best ones' rewards, the first the highest */
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += list[i].share = exp((list[i].best->reward - list[0].best->reward) / tau);
    for (int64_t i = 0; i < n; i++) list[i].share /= sum;
}
static double wrpo__entropy(const wrpo__scored *list) {                           /* bits */
    const int64_t n = stbds_arrlen(list);
    double H = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t same = 0;
        for (int64_t k = 0; k < n; k++) same += wrpo__json_same(list[i].answer, list[k].answer);
        H -= log2((double)same / (double)n) / (double)n;
    }
    return H > 0 ? H : 0;
}
static int64_t wrpo__characters(const wrpo_json *text) {
    int64_t n = 0;
    for (size_t i = 0; i < text->size; i++) n += ((unsigned char)text->text[i] & 0xC0) != 0x80;
    return n;
}
typedef struct wrpo__selected { wrpo__text *line; wrpo_select_stats *stats; double count[3]; wrpo__prompts *t; } wrpo__selected;
/* A list of answers as messages; counts them. */
static void wrpo__put_answers(wrpo__selected *s, const char *key, const wrpo__scored *const *list, int64_t n, int64_t targets_from, wrpo_role role) {
    wrpo__text_puts(s->line, key);
    for (int64_t i = 0; i < n; i++) {
        const wrpo_role as = role == WRPO_ROLE_SOURCE && i >= targets_from ? WRPO_ROLE_TARGET : role;
        wrpo__text_puts(s->line, i ? ", {\"content\": " : "{\"content\": ");
        wrpo__json_write(s->line, list[i]->content);
        wrpo__text_puts(s->line, ", \"role\": \"assistant\"}");
        s->stats->reward[as] += list[i]->reward, s->stats->length[as] += (double)wrpo__characters(list[i]->content), s->count[as]++;
        s->t->models[list[i]->models_at].selected += as == WRPO_ROLE_SOURCE;
    }
    wrpo__text_puts(s->line, "]");
}
static void wrpo__put_scores(wrpo__text *out, const wrpo__scored *const *list, int64_t n) {
    for (int64_t i = 0; i < n; i++) wrpo__text_puts(out, i ? ", " : ", \"rewards\": ["), wrpo__text_add(out, list[i]->number->text, list[i]->number->size);
    for (int64_t i = 0; i < n; i++) wrpo__text_puts(out, i ? ", " : "], \"models\": ["), wrpo__json_quote(out, list[i]->model, strlen(list[i]->model));
    wrpo__text_puts(out, "]");
}
/* The prompt in work as a line of the form; false: left out and counted. */
static bool wrpo__select_prompt(wrpo__selected *s, const wrpo_select_desc *d) {
    wrpo_select_stats *stats = s->stats;
    wrpo__prompts *t = s->t;
    wrpo__text *out = s->line;
    wrpo__extremes *sources = wrpo__rank(t->lists[WRPO__SOURCES], true), *target = wrpo__rank(t->lists[WRPO__TARGETS], false);
    int64_t n = stbds_arrlen(sources);
    if (!n) return stats->no_source++, false;
    if (d->form == WRPO_FORM_QUADS) {
        n = WRPO__MIN(n, d->top);
        if (!target) return stats->no_target++, false;
        if (wrpo__same_text(target->best, target->worst) || wrpo__same_text(sources->best, target->worst)) return stats->equal++, false;
        while (n && sources[n - 1].best->reward - target->worst->reward < d->min_gap && d->min_gap > 0) n--;       /* the last is the lowest */
        if (!n || target->best->reward - target->worst->reward < d->min_gap) return stats->gap++, false;
        for (int64_t i = 1; i < n; i++) if (wrpo__same_text(sources[i].best, target->worst)) n = i;
    } else if (d->form != WRPO_FORM_SFT) {
        int64_t kept = 0, equal = 0;
        if (d->form == WRPO_FORM_PAIR) n = 1;
        for (int64_t i = 0; i < n; i++) {
            const bool same = wrpo__same_text(sources[i].best, sources[i].worst);
            equal += same;
            if (!same && sources[i].best->reward - sources[i].worst->reward >= d->min_gap) sources[kept++] = sources[i];
        }
        if (!kept) return equal == n ? stats->equal++ : stats->gap++, false;
        n = kept;
    } else n = 1;
    wrpo__softmax_shares(sources, n, d->tau);
    if (!t->prompt[0]) wrpo__json_fail(t->ctx, WRPO_E_FORMAT, "candidates", t->id, "prompt_id \"%.80s\": want a \"prompt\" in one of its lines, found none", t->id->text);

    const bool many = t->prompt[0]->kind == WRPO_JSON_ARRAY;
    const wrpo__scored **all = NULL;                /* stb array */
    wrpo__text_puts(out, "{\"prompt_id\": "), wrpo__json_write(out, t->id);
    for (int k = d->form == WRPO_FORM_SFT; k < 3; k++)
        if (t->prompt[k]) wrpo__text_printf(out, ", \"%s\": ", wrpo__prompt_keys[k]), wrpo__json_write(out, t->prompt[k]);
    switch (d->form) {
    case WRPO_FORM_SFT:
        wrpo__text_puts(out, ", \"messages\": [");
        for (const wrpo_json *m = many ? t->prompt[0]->child : t->prompt[0]; m; m = many ? m->next : NULL)
            wrpo__json_write(out, m->kind == WRPO_JSON_STRING ? wrpo__message_of("user", m) : m), wrpo__text_puts(out, ", ");
        wrpo__put_answers(s, "", &sources->best, 1, 1, WRPO_ROLE_SOURCE);
        wrpo__put_scores(out, &sources->best, 1);
        break;
    case WRPO_FORM_PAIR:
        wrpo__put_answers(s, ", \"chosen\": [", &sources->best, 1, 1, WRPO_ROLE_SOURCE);
        wrpo__put_answers(s, ", \"rejected\": [", &sources->worst, 1, 0, WRPO_ROLE_REJECTED);
        wrpo__put_scores(out, (const wrpo__scored *const[]){sources->best, sources->worst}, 2);
        break;
    case WRPO_FORM_PAIRS:
        for (int64_t i = 0; i < n; i++) {
            wrpo__put_answers(s, i ? "}, {\"chosen\": [" : ", \"pairs\": [{\"chosen\": [", &sources[i].best, 1, 1, WRPO_ROLE_SOURCE);
            wrpo__put_answers(s, ", \"rejected\": [", &sources[i].worst, 1, 0, WRPO_ROLE_REJECTED);
            wrpo__text_puts(out, ", \"weight\": "), wrpo__json_number(out, sources[i].share);
            wrpo__put_scores(out, (const wrpo__scored *const[]){sources[i].best, sources[i].worst}, 2);
        }
        wrpo__text_puts(out, "}]");
        break;
    case WRPO_FORM_QUADS:
        for (int64_t i = 0; i < n; i++) stbds_arrput(all, sources[i].best);
        stbds_arrput(all, target->best);
        stbds_arrput(all, target->worst);
        wrpo__put_answers(s, ", \"chosen\": [", all, n + 1, n, WRPO_ROLE_SOURCE);
        wrpo__put_answers(s, ", \"rejected\": [", all + n + 1, 1, 0, WRPO_ROLE_REJECTED);
        wrpo__put_scores(out, all, n + 2);
        for (int64_t i = 0; i < n && n > 1; i++) wrpo__text_puts(out, i ? ", " : ", \"weights\": ["), wrpo__json_number(out, sources[i].share);
        if (n > 1) wrpo__text_puts(out, "]");
    }
    if (d->entropy_power > 0) {
        wrpo__text_puts(out, ", \"weight\": ");
        wrpo__json_number(out, pow(wrpo__entropy(t->lists[target ? WRPO__TARGETS : WRPO__SOURCES]), d->entropy_power) / d->entropy_scale);
    }
    wrpo__text_puts(out, "}\n");
    return true;
}
static void wrpo__select(wrpo__arena *arena, const wrpo_select_desc *desc, wrpo_select_stats *stats) {
    wrpo_ctx *ctx = arena->ctx;
    wrpo_select_desc d = *desc;
    wrpo__prompts t;
    wrpo__selected s = {.stats = stats, .t = &t};
    if (!d.top) d.top = 1;
    if (d.tau == 0) d.tau = 1;
    if (d.entropy_scale == 0) d.entropy_scale = 6.8;
    if (!wrpo_form_name((int)d.form)) wrpo__fail(ctx, WRPO_E_ARG, "form: no such form");
    if (d.top < 1 || (d.top > 1 && d.form != WRPO_FORM_QUADS)) wrpo__fail(ctx, WRPO_E_ARG, "top: want at least 1, and more than 1 for quads only, found %lld", (long long)d.top);
    if (!(d.tau > 0 && d.tau <= DBL_MAX)) wrpo__fail(ctx, WRPO_E_ARG, "tau: want a finite number above 0, found %g", d.tau);
    if (!(d.min_gap >= 0 && d.min_gap <= DBL_MAX) || (d.min_gap > 0 && d.form == WRPO_FORM_SFT))
        wrpo__fail(ctx, WRPO_E_ARG, "min_gap: want a finite number of at least 0, and 0 for sft, which rejects nothing; found %g", d.min_gap);
    if (!(d.entropy_power >= 0 && d.entropy_power <= 100 && d.entropy_scale > 0 && d.entropy_scale <= DBL_MAX))
        wrpo__fail(ctx, WRPO_E_ARG, "entropy: want a power from 0 to 100 and a scale above 0, found %g and %g", d.entropy_power, d.entropy_scale);
    wrpo__prompts_open(&t, arena, d.in, d.n_in);
    wrpo__writer *w = d.out ? wrpo__create(arena, d.out) : NULL;
    for (int64_t i = 0; i < stbds_arrlen(t.prompts); i++) {
        wrpo__text line = {.arena = t.line};
        wrpo__prompts_read(&t, &t.prompts[i], false);
        s.line = &line, stats->prompts++;
        wrpo__current = t.line;                           /* for the lists of one prompt */
        const bool made = wrpo__select_prompt(&s, &d);
        wrpo__current = arena;
        if (!made) continue;
        stats->records++;
        if (w) wrpo__write(w, line.data, line.size);
    }
    if (!stats->records)
        wrpo__fail(ctx, WRPO_E_FORMAT, "%s: no prompt gives a record: of %lld, %lld have no source response, %lld no target response, %lld equal texts, %lld rewards too close", d.in[0],
                   (long long)stats->prompts, (long long)stats->no_source, (long long)stats->no_target, (long long)stats->equal, (long long)stats->gap);
    for (int role = 0; role < 3; role++) stats->reward[role] /= s.count[role], stats->length[role] /= s.count[role];
    for (int64_t i = 0; i < stbds_arrlen(t.models); i++) t.models[i].reward /= (double)t.models[i].responses;
    stats->empty = t.empty, stats->n_models = stbds_arrlen(t.models);

    const size_t head = (size_t)stats->n_models * sizeof *t.models;                  /* the models and, behind them, their names */
    wrpo__text block = {.arena = arena};
    wrpo__text_add(&block, (const char *)t.models, head);
    for (int64_t i = 0; i < stats->n_models; i++) wrpo__text_add(&block, t.models[i].name, strlen(t.models[i].name) + 1);
    if (w) wrpo__commit(w);
    stats->models = wrpo__handout(ctx, block.data, block.size);
    char *name = (char *)stats->models + head;
    for (int64_t i = 0; i < stats->n_models; i++, name += strlen(name) + 1) stats->models[i].name = name;
}
WRPO_API wrpo_result wrpo_select(wrpo_ctx *ctx, const wrpo_select_desc *desc, wrpo_select_stats *out) {
    memset(out, 0, sizeof *out);
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) wrpo__select(wrpo__entry.arena, desc, out);
    if (wrpo__entry.failed) memset(out, 0, sizeof *out);
    return wrpo__end(&wrpo__entry);
}

/* ---- split ---- */
static void wrpo__split_lines(wrpo__arena *arena, const wrpo_split_desc *d, int64_t counts[2]) {
    wrpo_ctx *ctx = arena->ctx;
    const double share = d->share == 0 ? 1.0 / 3 : d->share;
    const uint64_t seed = d->seed ? d->seed : 42;
    wrpo__arena *work = wrpo__sub_arena(arena);
    wrpo__named *ids = NULL;
    wrpo__lines *all = NULL;                           /* stb array */
    if (!(share > 0 && share < 1)) wrpo__fail(ctx, WRPO_E_ARG, "share: want a number between 0 and 1, found %g", share);
    const wrpo__file *f = wrpo__open_file(arena, d->in);
    for (wrpo__lines l = {.file = f}; wrpo__next_line(&l); wrpo__arena_clear(work)) {
        const wrpo_json *root = wrpo__json_parse(work, d->in, l.number, l.text, l.size), *id;
        const char *name = wrpo__prompt_id(ctx, d->in, root, &id);
        ptrdiff_t at = name ? stbds_shgeti(ids, name) : -1;
        if (at >= 0) wrpo__json_fail(ctx, WRPO_E_FORMAT, d->in, root, "prompt_id \"%.80s\": want each once, found it in line %lld too", name, (long long)ids[at].value);
        if (name) stbds_shput(ids, wrpo__strndup(arena, name, strlen(name)), l.number);
        stbds_arrput(all, l);
    }
    const int64_t n = stbds_arrlen(all), first = (int64_t)floor(share * (double)n + 0.5);
    if (n < 2 || first < 1 || first >= n) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: want prompts for both parts, found %lld in all", d->in, (long long)n);
    int64_t *order = wrpo__alloc(arena, (size_t)n, sizeof *order);
    bool *chosen = wrpo__alloc(arena, (size_t)n, sizeof *chosen);
    for (int64_t i = 0; i < n; i++) order[i] = i;
    for (int64_t i = 0; i < first; i++) {              /* the first places of a shuffle */
        const int64_t k = i + (int64_t)(wrpo__random64(seed, 0, (uint64_t)i) % (uint64_t)(n - i)), taken = order[k];
        order[k] = order[i], order[i] = taken, chosen[taken] = true;
    }
    wrpo__writer *w[2] = {wrpo__create(arena, d->out[0]), wrpo__create(arena, d->out[1])};
    for (int64_t i = 0; i < n; i++) wrpo__write(w[!chosen[i]], all[i].text, all[i].size), wrpo__write(w[!chosen[i]], "\n", 1);
    wrpo__commit(w[0]), wrpo__commit(w[1]);
    counts[0] = first, counts[1] = n - first;
}
WRPO_API wrpo_result wrpo_split(wrpo_ctx *ctx, const wrpo_split_desc *desc, int64_t counts[2]) {
    counts[0] = counts[1] = 0;
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        if (!desc->in || !desc->out[0] || !desc->out[1]) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_split_desc: want in and both of out, found NULL");
        wrpo__split_lines(wrpo__entry.arena, desc, counts);
    }
    return wrpo__end(&wrpo__entry);
}

/* ---- win rate ---- */
/* theta and phi of P(win) = sigmoid(theta + phi x[i]) for values y[i] in [0, 1], by Newton's method from where they are. */
static void wrpo__fit_logistic(const double *y, const double *x, const int64_t *sample, int64_t n, double *theta, double *phi) {
    for (int step = 0; step < 50; step++) {
        double g0 = 0, g1 = *phi, h00 = 1e-9, h01 = 0, h11 = 1;       /* the penalty phi^2 / 2 */
        for (int64_t i = 0; i < n; i++) {
            const int64_t k = sample ? sample[i] : i;
            const double p = wrpo__sigmoid(*theta + *phi * x[k]), v = p * (1 - p);
            g0 += p - y[k], g1 += (p - y[k]) * x[k];
            h00 += v, h01 += v * x[k], h11 += v * x[k] * x[k];
        }
        const double det = h00 * h11 - h01 * h01, d0 = (h11 * g0 - h01 * g1) / det, d1 = (h00 * g1 - h01 * g0) / det;
        const double most = WRPO__MAX(fabs(d0), fabs(d1)), cut = most > 2 ? 2 / most : 1;
        *theta = WRPO__MAX(WRPO__MIN(*theta - cut * d0, 30), -30), *phi -= cut * d1;      /* 30: won or lost throughout */
        if (most < 1e-10) break;
    }
}
static int wrpo__by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static void wrpo__interval(double *sorted, int64_t n, double *low, double *high) {
    qsort(sorted, (size_t)n, sizeof *sorted, wrpo__by_value);
    *low = sorted[(int64_t)floor(0.025 * (double)(n - 1))], *high = sorted[(int64_t)ceil(0.975 * (double)(n - 1))];
}
static void wrpo__winrate(wrpo__arena *arena, const wrpo_winrate_desc *d, wrpo_winrate_stats *out) {
    wrpo_ctx *ctx = arena->ctx;
    const int64_t resamples = d->resamples ? d->resamples : 1000;
    const uint64_t seed = d->seed ? d->seed : 42;
    wrpo__prompts a, b;
    if (resamples < 1 || resamples > 1 << 24) wrpo__fail(ctx, WRPO_E_ARG, "resamples: want 1 to 2^24, found %lld", (long long)resamples);
    wrpo__prompts_open(&a, arena, &d->a, 1), wrpo__prompts_open(&b, arena, &d->b, 1);
    const int64_t all = stbds_arrlen(a.prompts);
    double *y = wrpo__alloc(arena, (size_t)all, sizeof *y), *x = wrpo__alloc(arena, (size_t)all, sizeof *x), squares = 0;
    int64_t n = 0;
    for (int64_t i = 0; i < all; i++) {
        const ptrdiff_t at = stbds_shgeti(b.ids, a.prompts[i].id);
        if (at < 0) continue;
        double pairs = 0, win = 0, tie = 0;
        wrpo__scored *lists[2] = {NULL, NULL};      /* stb arrays in `arena`: sources and target alike are answers */
        for (int side = 0; side < 2; side++) {
            wrpo__prompts *t = side ? &b : &a;
            wrpo__prompts_read(t, side ? &b.prompts[b.ids[at].value] : &a.prompts[i], true);
            for (int list = 0; list < 2; list++)
                for (int64_t k = 0; k < stbds_arrlen(t->lists[list]); k++) stbds_arrput(lists[side], t->lists[list][k]);
            if (!lists[side]) wrpo__fail(ctx, WRPO_E_FORMAT, "%s: prompt_id \"%.80s\": want an answer with text, found none", side ? d->b : d->a, a.prompts[i].id);
            double reward = 0, length = 0, count = (double)stbds_arrlen(lists[side]);
            for (int64_t k = 0; k < stbds_arrlen(lists[side]); k++) reward += lists[side][k].reward, length += (double)wrpo__characters(lists[side][k].content);
            out->reward[side] += reward / count, out->length[side] += length / count;
            x[n] += (side ? -1 : 1) * length / count;
        }
        for (int64_t k = 0; k < stbds_arrlen(lists[0]); k++)
            for (int64_t l = 0; l < stbds_arrlen(lists[1]); l++, pairs++) win += lists[0][k].reward > lists[1][l].reward, tie += lists[0][k].reward == lists[1][l].reward;
        out->wins += win / pairs, out->ties += tie / pairs;
        y[n] = (win + 0.5 * tie) / pairs, squares += x[n] * x[n];
        n++;
        stbds_arrfree(lists[0]);
        stbds_arrfree(lists[1]);
    }
    if (!n) wrpo__fail(ctx, WRPO_E_FORMAT, "%s, %s: want prompts with the same prompt_id, found none", d->a, d->b);
    const double N = (double)n, sd = sqrt(squares / N);
    out->prompts = n, out->only_a = all - n, out->only_b = stbds_arrlen(b.prompts) - n;
    out->wins /= N, out->ties /= N, out->losses = 1 - out->wins - out->ties;
    for (int side = 0; side < 2; side++) out->reward[side] /= N, out->length[side] /= N;
    for (int64_t i = 0; i < n; i++) x[i] = sd > 0 ? tanh(x[i] / sd) : 0, out->rate += y[i] / N;
    double theta = 0, phi = 0, *rates = wrpo__alloc(arena, 2 * (size_t)resamples, sizeof *rates), *controlled = rates + resamples;
    int64_t *sample = wrpo__alloc(arena, (size_t)n, sizeof *sample);
    wrpo__fit_logistic(y, x, NULL, n, &theta, &phi);
    out->controlled = wrpo__sigmoid(theta);
    for (int64_t r = 0; r < resamples; r++) {
        double t = 0, p = 0;
        for (int64_t i = 0; i < n; i++) {
            sample[i] = (int64_t)(wrpo__random64(seed, (uint64_t)r, (uint64_t)i) % (uint64_t)n);
            rates[r] += y[sample[i]] / N;
        }
        wrpo__fit_logistic(y, x, sample, n, &t, &p);
        controlled[r] = wrpo__sigmoid(t);
    }
    wrpo__interval(rates, resamples, &out->low, &out->high);
    wrpo__interval(controlled, resamples, &out->controlled_low, &out->controlled_high);
}
WRPO_API wrpo_result wrpo_winrate(wrpo_ctx *ctx, const wrpo_winrate_desc *desc, wrpo_winrate_stats *out) {
    memset(out, 0, sizeof *out);
    WRPO__TRY(ctx, wrpo__arena_new(ctx), true) {
        if (!desc->a || !desc->b) wrpo__fail(ctx, WRPO_E_ARG, "wrpo_winrate_desc: want a and b, found NULL");
        wrpo__winrate(wrpo__entry.arena, desc, out);
    }
    if (wrpo__entry.failed) memset(out, 0, sizeof *out);
    return wrpo__end(&wrpo__entry);
}

/* ---------------------------------------------------------------------------------------------- >>cpu
   The backend that every machine has: all ops in fp32, on one to many threads.

   The text below WRPO__LANES is compiled once per vector width: this file includes itself with WRPO__LANES
   set to 16 (AVX-512) and 8 (AVX2 and FMA), then reads on with 4 (whatever 16-byte vectors the compiler knows:
   SSE2, NEON) or, for a compiler without GCC's vector extensions, 1. wrpo_backend_cpu picks the widest one
   that the machine runs, whatever -march says; the environment variable WRPO_CPU = avx512, avx2 or generic
   asks for less (avx512: without AMX).

   What holds throughout: a thread never adds into another's sum, and how a sum is cut depends on the shapes
   alone; so results depend neither on the number of threads nor on the run. Further, the numbers of a row
   (of y in NT and NN products, of o and lse in attention) depend on that row's inputs only, not on which
   other rows are computed with it. They do depend on the vector width, in the last bits.                 */
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "wrpo.h: -ffast-math and -ffinite-math-only break the handling of infinities and NaN: compile without it"
#endif
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
#include <immintrin.h>
#include <cpuid.h>
#elif defined(__GNUC__) && defined(__aarch64__)
#include <arm_neon.h>
#endif
enum {
    WRPO__KC = 384,                  /* a product's k is summed in blocks of this many words */
    WRPO__MC = 504,                  /* rows of A, one block deep, that stay in the cache next to the core */
    WRPO__NB = 8,                    /* panels of B that a task packs at once */
    WRPO__MB = 12,                   /* or of A, where B is packed for all */
    WRPO__ABREAST = 16,              /* steps that are packed side by side */
    WRPO__PACKED_WORDS = WRPO__MAX_HIDDEN,             /* of the packed piece of A, or of B; rmsnorm_bwd needs a row of it */
    WRPO__THREAD_FLOATS = 1 << 19,   /* of scratch per thread */
    WRPO__GRAIN = 1 << 14            /* numbers that are worth a task of their own */
};
typedef struct wrpo__cpu {
    wrpo_allocator memory;
    int threads;
    bool pairs, tiles;               /* bfloat16 is wanted and the machine multiplies it, by vectors or by tiles: a weight in it, two activations (TN) */
    float *packed;                   /* a product's A or B, shared by all threads */
    float *scratch;                  /* WRPO__THREAD_FLOATS for each thread */
} wrpo__cpu;

static void *wrpo__cpu_alloc(void *dev, size_t n) {    /* a word in front of the block: where it begins */
    wrpo__cpu *cpu = dev;
    if (n > SIZE_MAX - 2 * WRPO__ALIGN) return NULL;
    char *base = cpu->memory.alloc(n + 2 * WRPO__ALIGN, cpu->memory.user);
    if (!base) return NULL;
    char *p = (char *)(((uintptr_t)base + 2 * WRPO__ALIGN - 1) / WRPO__ALIGN * WRPO__ALIGN);
    memcpy(p - sizeof base, &base, sizeof base);
    return p;
}
static void wrpo__cpu_release(void *dev, void *p) {
    wrpo__cpu *cpu = dev;
    char *base;
    if (!p) return;
    memcpy(&base, (char *)p - sizeof base, sizeof base);
    cpu->memory.free(base, cpu->memory.user);
}
static void wrpo__cpu_close(void *dev) {
    wrpo__cpu *cpu = dev;
    if (!cpu) return;
    wrpo__cpu_release(cpu, cpu->packed);
    wrpo__cpu_release(cpu, cpu->scratch);
    cpu->memory.free(cpu, cpu->memory.user);
}
static bool wrpo__has_pairs(void) {    /* AVX512_BF16: CPUID 7.1, EAX bit 5 */
#if defined(__GNUC__) && defined(__x86_64__)
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
#else
    return false;
#endif
}
/* AMX: tiles of 16 rows of 64 bytes, named 0 ... 7, and c += a b of tiles of bfloat16 pairs. By name, as no compiler option may be asked
   for. A test may define the six itself and so run this code on any machine. */
#if defined(__GNUC__) && defined(__x86_64__) && !defined(WRPO__TILE_DOT)
#define WRPO__TILE_CONFIG(p) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])(p)))
#define WRPO__TILE_RELEASE() __asm__ volatile("tilerelease")
#define WRPO__TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define WRPO__TILE_LOAD(t, p, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define WRPO__TILE_STORE(t, p, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define WRPO__TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : :)
static bool wrpo__has_tiles(void) {    /* CPUID 1: OSXSAVE; 7: AMX-BF16, AMX-TILE; XCR0: the system saves tiles; and it lets this process use them */
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return false;
#ifdef __linux__
    long r;                            /* arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) */
    __asm__ volatile("syscall" : "=a"(r) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return r == 0;
#else
    return true;
#endif
}
#elif defined(WRPO__TILE_DOT)
static bool wrpo__has_tiles(void) { return true; }
#else
static bool wrpo__has_tiles(void) { return false; }
#endif
static wrpo_result wrpo__cpu_open(void **dev, const wrpo_desc *desc, wrpo_error *why) {
    wrpo__cpu *cpu = desc->memory.alloc(sizeof *cpu, desc->memory.user);
    *dev = NULL;
    if (cpu) {
        memset(cpu, 0, sizeof *cpu);
        cpu->memory = desc->memory;
        cpu->threads = WRPO__MAX(desc->threads, 1), cpu->pairs = desc->dtype == WRPO_DTYPE_BF16 && !strcmp(desc->backend->name, "cpu-avx512") && wrpo__has_pairs();
        const char *want = getenv("WRPO_CPU");
        cpu->tiles = cpu->pairs && (!want || strcmp(want, "avx512")) && wrpo__has_tiles();
        cpu->packed = wrpo__cpu_alloc(cpu, WRPO__PACKED_WORDS * sizeof(float));
        if ((size_t)cpu->threads < SIZE_MAX / 2 / (WRPO__THREAD_FLOATS * sizeof(float)))
            cpu->scratch = wrpo__cpu_alloc(cpu, (size_t)cpu->threads * WRPO__THREAD_FLOATS * sizeof(float));
        if (cpu->packed && cpu->scratch) { *dev = cpu; return WRPO_OK; }
        wrpo__cpu_close(cpu);
    }
    why->code = WRPO_E_MEMORY, why->line = why->column = 0;
    snprintf(why->text, sizeof why->text, "out of memory: buffers for %d threads", desc->threads);
    return WRPO_E_MEMORY;
}
static void wrpo__cpu_copy(void *dev, void *dst, const void *src, size_t n) { (void)dev; if (n) memmove(dst, src, n); }
static void wrpo__cpu_zero(void *dev, void *dst, size_t n) { (void)dev; if (n) memset(dst, 0, n); }
static size_t wrpo__cpu_room(void *dev) {              /* what the system can still give without swapping */
    unsigned long long kib = 0;
    char line[128];
    (void)dev;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f) && sscanf(line, "MemAvailable: %llu", &kib) != 1) {}
    if (f) fclose(f);
    return kib ? (size_t)kib * 1024 : SIZE_MAX;
}
static wrpo_result wrpo__cpu_sync(void *dev, wrpo_error *why) { (void)dev; (void)why; return WRPO_OK; }

/* Threads for `work` numbers: one thread where waking others costs more than it saves. */
static int wrpo__cpu_team(const wrpo__cpu *cpu, int64_t work) { return work <= WRPO__GRAIN ? 1 : cpu->threads; }
static int64_t wrpo__cpu_chunk(int64_t D) { return WRPO__MAX(WRPO__GRAIN / 4 / WRPO__MAX(D, 1), 1); }
static float *wrpo__cpu_scratch(const wrpo__cpu *cpu) {     /* of the calling thread */
#ifdef _OPENMP
    return cpu->scratch + (size_t)omp_get_thread_num() * WRPO__THREAD_FLOATS;
#else
    return cpu->scratch;
#endif
}
/* Panels of a strip, at most `most`, that let `threads` threads be done soonest; of equals the most. */
static int64_t wrpo__strip(int64_t panels, int64_t most, int threads) {
    int64_t best = 1, least = INT64_MAX;
    for (int64_t p = WRPO__MAX(most, 1); p >= 1; p--) {
        const int64_t time = wrpo__div_up(wrpo__div_up(panels, p), threads) * (4 * p + 1);      /* a quarter of a panel's time to begin a strip */
        if (time < least) least = time, best = p;
    }
    return best;
}
/* The widths. A compiler that does not say the file's name gets it from WRPO_FILE; without either only
   the narrow one is compiled. */
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
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__)) && defined(WRPO_FILE) && defined(__has_include)
#if __has_include(WRPO_FILE)
#define WRPO__LANES 16
#include WRPO_FILE
#undef WRPO__LANES
#define WRPO__LANES 8
#include WRPO_FILE
#undef WRPO__LANES
#endif
#endif
#ifdef __GNUC__
#define WRPO__LANES 4
#else
#define WRPO__LANES 1
#endif
#define WRPO_IMPLEMENTATION
#endif /* WRPO_IMPLEMENTATION */

#ifdef WRPO__LANES
/* ---- one vector width: WRPO__LANES floats; WRPO__(x) is wrpo__x_avx512 and so on ---- */
#define WRPO__JOIN2(a, b, c) a##b##_##c
#define WRPO__JOIN(a, b, c) WRPO__JOIN2(a, b, c)
#define WRPO__(name) WRPO__JOIN(wrpo__, name, WRPO__LEVEL)
#if WRPO__LANES == 16
#define WRPO__LEVEL avx512
#define WRPO__AT __attribute__((target("avx512f,avx512dq,avx2,fma")))
#define WRPO__FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define WRPO__ALL(x) ((WRPO__V)_mm512_set1_ps(x))
#define WRPO__SQRT(a) _mm512_sqrt_ps(a)
#define WRPO__MORE(a, b) _mm512_max_ps(b, a)
#define WRPO__LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define WRPO__HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
enum { WRPO__(MR) = 14, WRPO__(NV) = 2 };              /* rows and vectors of a register tile of C: 28 of 32 registers */
#define WRPO__HAVE_AVX512
/* Products of bfloat16, by name: no compiler option is needed where the machine is asked first (wrpo__has_pairs).
   DOT: c + low(a) low(b) + high(a) high(b) for each word; TWO: 32 floats, rounded, as 16 words; the second: low halves from a, high from b. */
static inline WRPO__AT __attribute__((always_inline)) __m512 wrpo__pair_dot(__m512 a, __m512 b, __m512 c) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
}
static inline WRPO__AT __attribute__((always_inline)) __m512 wrpo__pair_of(__m512 a, __m512 b) {
    __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(a) : "v"(b), "v"(a));
    return a;
}
#define WRPO__IN_PAIRS
#define WRPO__STEP(pairs, a, b, c) ((pairs) ? wrpo__pair_dot(a, b, c) : _mm512_fmadd_ps(a, b, c))
#elif WRPO__LANES == 8
#define WRPO__LEVEL avx2
#define WRPO__AT __attribute__((target("avx2,fma")))
#define WRPO__FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define WRPO__SQRT(a) _mm256_sqrt_ps(a)
#define WRPO__MORE(a, b) _mm256_max_ps(b, a)
#define WRPO__LOW 0, 8, 1, 9, 2, 10, 3, 11
#define WRPO__HIGH 4, 12, 5, 13, 6, 14, 7, 15
enum { WRPO__(MR) = 6, WRPO__(NV) = 2 };               /* 12 of 16 */
#define WRPO__HAVE_AVX2
#else
#define WRPO__LEVEL generic
#define WRPO__AT
#define WRPO__LOW 0, 4, 1, 5
#define WRPO__HIGH 2, 6, 3, 7
#if defined(__GNUC__) && defined(__aarch64__)
#define WRPO__FMA(a, b, c) vfmaq_f32(c, a, b)
#define WRPO__SQRT(a) vsqrtq_f32(a)
enum { WRPO__(MR) = 6, WRPO__(NV) = 4 };               /* 24 of 32 */
#else
#define WRPO__FMA(a, b, c) ((a) * (b) + (c))
enum { WRPO__(MR) = 6, WRPO__(NV) = 2 };
#endif
#endif
enum {
    WRPO__(NR) = WRPO__LANES * WRPO__(NV),
    WRPO__(MS) = (WRPO__(MR) + WRPO__LANES - 1) / WRPO__LANES * WRPO__LANES    /* a step of a packed panel of A, padded */
};
/* V is a vector of floats, U of their bits. LESS gives all ones where it holds; a NaN is never less. */
#ifndef WRPO__STEP
#define WRPO__STEP(pairs, a, b, c) WRPO__FMA(a, b, c)
#endif
#ifdef __GNUC__
#define WRPO__INLINE static inline WRPO__AT __attribute__((always_inline))
#define WRPO__ROW static WRPO__AT __attribute__((noinline))
#define WRPO__UNROLL _Pragma("GCC unroll 16")
#define WRPO__PREFETCH(p, write) __builtin_prefetch(p, write)
typedef float WRPO__(v) __attribute__((vector_size(4 * WRPO__LANES)));
typedef uint32_t WRPO__(u) __attribute__((vector_size(4 * WRPO__LANES)));
typedef WRPO__(v) WRPO__(vmem) __attribute__((aligned(4), may_alias));         /* a vector anywhere in memory */
#define WRPO__V WRPO__(v)
#define WRPO__U WRPO__(u)
#define WRPO__LOAD(p) ((WRPO__V)*(const WRPO__(vmem) *)(const void *)(p))
#define WRPO__STORE(p, x) (*(WRPO__(vmem) *)(void *)(p) = (x))
typedef uint16_t WRPO__(h) __attribute__((vector_size(2 * WRPO__LANES)));      /* bfloat16: the high halves of floats */
typedef WRPO__(h) WRPO__(hmem) __attribute__((aligned(2), may_alias));
#define WRPO__LOAD_HALF(p) WRPO__FLOATS(__builtin_convertvector(*(const WRPO__(hmem) *)(const void *)(p), WRPO__U) << 16)
#define WRPO__STORE_HIGH(p, u) (*(WRPO__(hmem) *)(void *)(p) = __builtin_convertvector((u) >> 16, WRPO__(h)))    /* of bits */
typedef int32_t WRPO__(i) __attribute__((vector_size(4 * WRPO__LANES)));
#define WRPO__REAL(u) __builtin_convertvector((WRPO__(i))(u), WRPO__V)          /* of whole numbers below 2^31 */
#define WRPO__WHOLE(x) __builtin_convertvector(__builtin_convertvector(x, WRPO__(i)), WRPO__V)     /* toward 0 */
#define WRPO__BITS(x) ((WRPO__U)(x))
#define WRPO__FLOATS(x) ((WRPO__V)(x))
#define WRPO__LESS(a, b) ((WRPO__U)((a) < (b)))
#if defined(__clang__) || __GNUC__ >= 12
#define WRPO__MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define WRPO__MIX(a, b, ...) __builtin_shuffle(a, b, (WRPO__U){__VA_ARGS__})
#endif
#else
#define WRPO__INLINE static inline
#define WRPO__ROW static
#define WRPO__UNROLL
#define WRPO__PREFETCH(p, write) (void)(p)
#define WRPO__V float
#define WRPO__U uint32_t
#define WRPO__LOAD(p) (*(p))
#define WRPO__STORE(p, x) (*(p) = (x))
#define WRPO__LOAD_HALF(p) WRPO__FLOATS((uint32_t)*(p) << 16)
#define WRPO__STORE_HIGH(p, u) (*(p) = (uint16_t)((u) >> 16))
#define WRPO__REAL(u) ((float)(u))
#define WRPO__WHOLE(x) ((float)(int32_t)(x))
#define WRPO__BITS(x) wrpo__float_bits(x)
#define WRPO__FLOATS(x) wrpo__bits_float(x)
#define WRPO__LESS(a, b) ((a) < (b) ? ~(uint32_t)0 : 0)
#endif
#define WRPO__SET(x) ((x) - (WRPO__V){0})              /* the same number in all lanes */
#ifndef WRPO__ALL
#define WRPO__ALL(x) WRPO__SET(x)                      /* the same bits: arithmetic may not touch words */
#endif
#define WRPO__PICK(mask, a, b) WRPO__FLOATS(((mask) & WRPO__BITS(a)) | (~(mask) & WRPO__BITS(b)))

/* The ends of rows: `left` numbers may be fewer than a vector; missing ones read as `fill`, and are not written. */
WRPO__INLINE WRPO__V WRPO__(get)(const float *p, int64_t left, float fill) {
    if (left >= WRPO__LANES) return WRPO__LOAD(p);
    float t[WRPO__LANES];
    for (int i = 0; i < WRPO__LANES; i++) t[i] = i < left ? p[i] : fill;
    return WRPO__LOAD(t);
}
WRPO__INLINE WRPO__V WRPO__(get_half)(const uint16_t *p, int64_t left) {
    if (left >= WRPO__LANES) return WRPO__LOAD_HALF(p);
    uint16_t t[WRPO__LANES] = {0};
    for (int i = 0; i < left; i++) t[i] = p[i];
    return WRPO__LOAD_HALF(t);
}
WRPO__INLINE void WRPO__(put)(float *p, int64_t left, WRPO__V x) {
    if (left >= WRPO__LANES) { WRPO__STORE(p, x); return; }
    float t[WRPO__LANES];
    WRPO__STORE(t, x);
    for (int i = 0; i < left; i++) p[i] = t[i];
}
WRPO__INLINE float WRPO__(sum)(WRPO__V x) {
    float t[WRPO__LANES];
    WRPO__STORE(t, x);
    for (int w = WRPO__LANES / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) t[i] += t[i + w];
    return t[0];
}
WRPO__INLINE float WRPO__(largest)(WRPO__V x) {
    float t[WRPO__LANES];
    WRPO__STORE(t, x);
    for (int i = 1; i < WRPO__LANES; i++) t[0] = t[0] < t[i] ? t[i] : t[0];
    return t[0];
}
WRPO__INLINE WRPO__V WRPO__(max)(WRPO__V a, WRPO__V b) {     /* a < b ? b : a, so a where either is NaN */
#ifdef WRPO__MORE
    return WRPO__MORE(a, b);
#else
    return WRPO__PICK(WRPO__LESS(a, b), b, a);
#endif
}
WRPO__INLINE WRPO__V WRPO__(sqrt)(WRPO__V x) {
#ifdef WRPO__SQRT
    return WRPO__SQRT(x);
#else
    float t[WRPO__LANES];
    WRPO__STORE(t, x);
    for (int i = 0; i < WRPO__LANES; i++) t[i] = sqrtf(t[i]);
    return WRPO__LOAD(t);
#endif
}
/* e^x, relative error below 1.2e-7: x = z ln 2 + r with integer z and |r| <= ln 2 / 2, e^r by a polynomial.
   0 below -87.336 (no denormals), the value at 88.37 above it; NaN stays NaN. */
WRPO__INLINE WRPO__V WRPO__(exp)(WRPO__V x) {
    const WRPO__V low = WRPO__SET(-87.336f), high = WRPO__SET(88.37f);
    WRPO__U zero = WRPO__LESS(x, low);
    x = WRPO__(max)(x, low);
    x = -WRPO__(max)(-x, -high);
    /* adding 1.5 * 2^23 rounds to an integer, and leaves it in the low bits: with 127 more, an exponent */
    WRPO__V z = WRPO__FMA(x, WRPO__SET(1.44269504f), WRPO__SET(12582912.0f + 127.0f));
    WRPO__V power = WRPO__FLOATS(WRPO__BITS(z) << 23);
    z = z - WRPO__SET(12582912.0f + 127.0f);
    x = WRPO__FMA(z, WRPO__SET(-0.693359375f), x);     /* ln 2 in two parts; the first one times z is exact */
    x = WRPO__FMA(z, WRPO__SET(2.12194440e-4f), x);
    WRPO__V p = WRPO__FMA(x, WRPO__SET(1.9875691500e-4f), WRPO__SET(1.3981999507e-3f));
    p = WRPO__FMA(p, x, WRPO__SET(8.3334519073e-3f));
    p = WRPO__FMA(p, x, WRPO__SET(4.1665795894e-2f));
    p = WRPO__FMA(p, x, WRPO__SET(1.6666665459e-1f));
    p = WRPO__FMA(p, x, WRPO__SET(5.0000001201e-1f));
    p = WRPO__FMA(p, x * x, x) + WRPO__SET(1.0f);
    return WRPO__FLOATS(~zero & WRPO__BITS(p * power));
}
/* tanh x: an odd polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel */
WRPO__INLINE WRPO__V WRPO__(tanh)(WRPO__V x) {
    const WRPO__V one = WRPO__SET(1.0f);
    WRPO__V q = x * x;
    WRPO__V p = WRPO__FMA(q, WRPO__SET(-5.70498872745e-3f), WRPO__SET(2.06390887954e-2f));
    p = WRPO__FMA(p, q, WRPO__SET(-5.37397155531e-2f));
    p = WRPO__FMA(p, q, WRPO__SET(1.33314422036e-1f));
    p = WRPO__FMA(p, q, WRPO__SET(-3.33332819422e-1f));
    p = WRPO__FMA(p * q, x, x);
    WRPO__V far = one - WRPO__SET(2.0f) / (WRPO__(exp)(x + x) + one);
    return WRPO__PICK(WRPO__LESS(q, WRPO__SET(0.39f)), p, far);
}

/* ---- rows: what one thread does with one piece of memory ---- */
WRPO__ROW void WRPO__(axpy)(float *y, float s, const float *x, int64_t n) {    /* y += s x */
    for (int64_t i = 0; i < n; i += WRPO__LANES)
        WRPO__(put)(y + i, n - i, WRPO__FMA(WRPO__SET(s), WRPO__(get)(x + i, n - i, 0), WRPO__(get)(y + i, n - i, 0)));
}
WRPO__ROW void WRPO__(scaled)(float *y, float s, const float *x, int64_t n) {  /* y = s x */
    for (int64_t i = 0; i < n; i += WRPO__LANES) WRPO__(put)(y + i, n - i, s * WRPO__(get)(x + i, n - i, 0));
}
WRPO__ROW void WRPO__(scaled_half)(float *y, float s, const uint16_t *x, int64_t n) {  /* the same of bfloat16 */
    for (int64_t i = 0; i < n; i += WRPO__LANES) WRPO__(put)(y + i, n - i, s * WRPO__(get_half)(x + i, n - i));
}
WRPO__ROW float WRPO__(dot)(const float *x, const float *y, int64_t n) {
    WRPO__V s = {0};
    for (int64_t i = 0; i < n; i += WRPO__LANES) s = WRPO__FMA(WRPO__(get)(x + i, n - i, 0), WRPO__(get)(y + i, n - i, 0), s);
    return WRPO__(sum)(s);
}

/* ---- embed, gather, bias, colsum, add ----
   Backward passes that add rows into shared places give each task a slice of the columns and all the rows, in order. */
enum { WRPO__(SLICE) = 64 };
static void WRPO__(embed)(void *dev, void *y, const void *w, wrpo_dtype w_type, const int32_t *ids, int64_t n, int64_t D, float scale) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, D)
    for (int64_t r = 0; r < n; r++)
        if (w_type == WRPO_DTYPE_BF16) WRPO__(scaled_half)((float *)y + r * D, scale, (const uint16_t *)w + ids[r] * D, D);
        else WRPO__(scaled)((float *)y + r * D, scale, (const float *)w + ids[r] * D, D);
}
static void WRPO__(embed_bwd)(void *dev, float *dw, const void *dy, const int32_t *ids, int64_t n, int64_t D, float scale) {
    wrpo__cpu *cpu = dev;
    WRPO__PARFOR(wrpo__cpu_team(cpu, n * D))
    for (int64_t j = 0; j < D; j += WRPO__(SLICE))
        for (int64_t r = 0; r < n; r++)
            WRPO__(axpy)(dw + ids[r] * D + j, scale, (const float *)dy + r * D + j, WRPO__MIN(D - j, WRPO__(SLICE)));
}
static void WRPO__(gather)(void *dev, void *y, const void *x, const int32_t *index, int64_t n, int64_t D) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, D)
    for (int64_t r = 0; r < n; r++) memcpy((float *)y + r * D, (const float *)x + index[r] * D, (size_t)D * sizeof(float));
}
static void WRPO__(scatter)(void *dev, void *y, int64_t ldy, const void *x, int64_t ldx, const int32_t *index, int64_t n, int64_t D) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, D)
    for (int64_t r = 0; r < n; r++) memcpy((float *)y + index[r] * ldy, (const float *)x + r * ldx, (size_t)D * sizeof(float));
}
static void WRPO__(gather_bwd)(void *dev, void *dx, const void *dy, const int32_t *index, int64_t n, int64_t D) {
    WRPO__(embed_bwd)(dev, dx, dy, index, n, D, 1);
}
static void WRPO__(bias)(void *dev, void *y, int64_t ldy, const float *b, int64_t n, int64_t D) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, D)
    for (int64_t r = 0; r < n; r++) WRPO__(axpy)((float *)y + r * ldy, 1, b, D);
}
static void WRPO__(add_columns)(const wrpo__cpu *cpu, float *y, const void *w, bool half, int64_t ld, int64_t n, int64_t D) {    /* y += sum_r w[r] */
    WRPO__PARFOR(wrpo__cpu_team(cpu, n * D))
    for (int64_t j = 0; j < D; j += WRPO__(SLICE)) {
        float part[WRPO__(SLICE)], row[WRPO__(SLICE)];  /* sums of 64 rows first: rounding grows with the longest chain */
        int64_t width = WRPO__MIN(D - j, WRPO__(SLICE));
        for (int64_t r = 0; r < n; r += 64) {
            memset(part, 0, sizeof part);
            for (int64_t i = r; i < n && i < r + 64; i++) {
                if (half) WRPO__(scaled_half)(row, 1, (const uint16_t *)w + i * ld + j, width);
                WRPO__(axpy)(part, 1, half ? row : (const float *)w + i * ld + j, width);
            }
            WRPO__(axpy)(y + j, 1, part, width);
        }
    }
}
static void WRPO__(bias_bwd)(void *dev, float *db, const void *dy, int64_t lddy, int64_t n, int64_t D) { WRPO__(add_columns)(dev, db, dy, false, lddy, n, D); }
static void WRPO__(colsum)(void *dev, float *y, const void *w, wrpo_dtype w_type, int64_t rows, int64_t cols) {
    memset(y, 0, (size_t)cols * sizeof *y);
    WRPO__(add_columns)(dev, y, w, w_type == WRPO_DTYPE_BF16, cols, rows, cols);
}
static void WRPO__(add)(void *dev, void *y, const void *x, int64_t count) {
    wrpo__cpu *cpu = dev;
    WRPO__PARFOR(wrpo__cpu_team(cpu, count))
    for (int64_t i = 0; i < count; i += WRPO__GRAIN) WRPO__(axpy)((float *)y + i, 1, (const float *)x + i, WRPO__MIN(count - i, WRPO__GRAIN));
}

/* ---- rmsnorm ----
   rstd = 1 / sqrt(mean(x^2) + eps),  y = (w + plus) x rstd
   With g = dy (w + plus) and c = mean(g x) rstd^2:  dx = dres + rstd (g - c x),  dw += sum dy x rstd */
WRPO__ROW void WRPO__(rmsnorm_row)(float *y, float *rstd, const float *x, const float *w, int64_t D, float eps, float plus) {
    WRPO__V ss = {0};
    for (int64_t i = 0; i < D; i += WRPO__LANES) {
        WRPO__V v = WRPO__(get)(x + i, D - i, 0);
        ss = WRPO__FMA(v, v, ss);
    }
    const float s = 1 / sqrtf(WRPO__(sum)(ss) / (float)D + eps);
    for (int64_t i = 0; i < D; i += WRPO__LANES)
        WRPO__(put)(y + i, D - i, WRPO__(get)(x + i, D - i, 0) * s * (WRPO__(get)(w + i, D - i, 0) + plus));
    *rstd = s;
}
WRPO__ROW void WRPO__(rmsnorm_bwd_row)(float *dx, const float *dy, const float *dres, const float *x, const float *w, float rstd, int64_t D, float plus) {
    WRPO__V dot = {0};
    for (int64_t i = 0; i < D; i += WRPO__LANES)
        dot = WRPO__FMA(WRPO__(get)(dy + i, D - i, 0) * (WRPO__(get)(w + i, D - i, 0) + plus), WRPO__(get)(x + i, D - i, 0), dot);
    const float c = WRPO__(sum)(dot) / (float)D * rstd * rstd;
    for (int64_t i = 0; i < D; i += WRPO__LANES) {
        WRPO__V g = WRPO__(get)(dy + i, D - i, 0) * (WRPO__(get)(w + i, D - i, 0) + plus);
        WRPO__V v = (g - c * WRPO__(get)(x + i, D - i, 0)) * rstd;
        WRPO__(put)(dx + i, D - i, dres ? v + WRPO__(get)(dres + i, D - i, 0) : v);
    }
}
WRPO__ROW void WRPO__(rmsnorm_dw_row)(float *dw, const float *dy, const float *x, float rstd, int64_t n) {
    for (int64_t i = 0; i < n; i += WRPO__LANES)
        WRPO__(put)(dw + i, n - i, WRPO__FMA(WRPO__(get)(dy + i, n - i, 0) * rstd, WRPO__(get)(x + i, n - i, 0), WRPO__(get)(dw + i, n - i, 0)));
}
static void WRPO__(rmsnorm)(void *dev, void *y, int64_t ldy, float *rstd, const void *x, int64_t ldx, const float *w,
                            int64_t n, int64_t heads, int64_t D, float eps, float plus) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, heads * D)
    for (int64_t r = 0; r < n; r++)
        for (int64_t h = 0; h < heads; h++)
            WRPO__(rmsnorm_row)((float *)y + r * ldy + h * D, rstd + r * heads + h, (const float *)x + r * ldx + h * D, w, D, eps, plus);
}
/* Groups of 64 (row, head)s: each one's sum for dw, and its dx while dy and x are at hand; then the sums of all groups, in order. */
static void WRPO__(rmsnorm_bwd)(void *dev, void *dx, int64_t lddx, float *dw, const void *dy, int64_t lddy, const void *dres, int64_t lddres,
                                const void *x, int64_t ldx, const float *w, const float *rstd, int64_t n, int64_t heads, int64_t D, float plus) {
    wrpo__cpu *cpu = dev;
    const float *dyf = dy, *xf = x, *dresf = dres;
    float *sums = cpu->packed;                         /* [groups][D], the products' buffer */
    const int64_t rows = n * heads, most = WRPO__PACKED_WORDS / D;
    for (int64_t first = 0; first < rows; first += 64 * most) {
        const int64_t groups = wrpo__div_up(WRPO__MIN(rows - first, 64 * most), 64);
        WRPO__PARFOR(wrpo__cpu_team(cpu, rows * D))
        for (int64_t g = 0; g < groups; g++) {
            const int64_t begin = first + 64 * g, end = WRPO__MIN(rows, begin + 64);
            memset(sums + g * D, 0, (size_t)D * sizeof *sums);
            for (int64_t i = begin; i < end; i++) {    /* dw first: dx may be dy */
                const int64_t r = i / heads, at = i % heads * D;
                WRPO__(rmsnorm_dw_row)(sums + g * D, dyf + r * lddy + at, xf + r * ldx + at, rstd[i], D);
                WRPO__(rmsnorm_bwd_row)((float *)dx + r * lddx + at, dyf + r * lddy + at, dresf ? dresf + r * lddres + at : NULL, xf + r * ldx + at, w, rstd[i], D, plus);
            }
        }
        for (int64_t g = 0; g < groups; g++) WRPO__(axpy)(dw, 1, sums + g * D, D);
    }
}

/* ---- rope: (x1, x2) = (x[i], x[i + d/2]) is turned by the angle of table[r][i]; the backward turns it back ---- */
WRPO__ROW void WRPO__(rope_row)(float *x, const float *table, int64_t heads, int64_t d, float sign) {
    const int64_t half = d / 2;
    float cosine[WRPO__MAX_D / 2], sine[WRPO__MAX_D / 2];
    for (int64_t i = 0; i < half; i++) cosine[i] = table[2 * i], sine[i] = sign * table[2 * i + 1];
    for (int64_t h = 0; h < heads; h++, x += d)
        for (int64_t i = 0; i < half; i += WRPO__LANES) {
            const WRPO__V c = WRPO__(get)(cosine + i, half - i, 0), s = WRPO__(get)(sine + i, half - i, 0);
            const WRPO__V x1 = WRPO__(get)(x + i, half - i, 0), x2 = WRPO__(get)(x + half + i, half - i, 0);
            WRPO__(put)(x + i, half - i, x1 * c - x2 * s);
            WRPO__(put)(x + half + i, half - i, x2 * c + x1 * s);
        }
}
static void WRPO__(rope)(void *dev, void *x, int64_t ldx, const float *table, int64_t n, int64_t heads, int64_t d, float sign) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, heads * d)
    for (int64_t r = 0; r < n; r++) WRPO__(rope_row)((float *)x + r * ldx, table + r * (d / 2 * 2), heads, d, sign);
}

/* ---- glu: h = act(gate) up.  silu(g) = g s with s = 1 / (1 + e^-g), silu' = s (1 + g (1 - s))
   gelu(g) = g (1 + t) / 2 with t = tanh(a (g + b g^3)), gelu' = (1 + t) / 2 + g (1 - t^2) a (1 + 3 b g^2) / 2 ---- */
WRPO__INLINE WRPO__V WRPO__(act)(WRPO__V g, bool gelu, WRPO__V *slope) {
    const WRPO__V one = WRPO__SET(1.0f), half = WRPO__SET(0.5f);
    if (!gelu) {
        WRPO__V s = one / (one + WRPO__(exp)(-g));
        *slope = s * WRPO__FMA(g, one - s, one);
        return g * s;
    }
    const float a = 0.7978845608f, b = 0.044715f;      /* sqrt(2 / pi) */
    WRPO__V t = WRPO__(tanh)(a * WRPO__FMA(b * g * g, g, g)), u = WRPO__FMA(half, t, half);
    *slope = WRPO__FMA(half * g * WRPO__FMA(-t, t, one), a * WRPO__FMA(3 * b * g, g, one), u);
    return g * u;
}
WRPO__ROW void WRPO__(glu_row)(float *h, const float *gu, int64_t I, bool gelu) {
    WRPO__V slope;
    for (int64_t i = 0; i < I; i += WRPO__LANES) {     /* what is written is fetched too: the machine sees only what is read coming */
        WRPO__PREFETCH(gu + i + 512, 0), WRPO__PREFETCH(gu + I + i + 512, 0), WRPO__PREFETCH(h + i + 512, 1);
        WRPO__(put)(h + i, I - i, WRPO__(act)(WRPO__(get)(gu + i, I - i, 0), gelu, &slope) * WRPO__(get)(gu + I + i, I - i, 0));
    }
}
WRPO__ROW void WRPO__(glu_bwd_row)(float *dgu, float *h, const float *dh, const float *gu, int64_t I, bool gelu) {
    for (int64_t i = 0; i < I; i += WRPO__LANES) {
        WRPO__PREFETCH(gu + i + 512, 0), WRPO__PREFETCH(gu + I + i + 512, 0), WRPO__PREFETCH(dh + i + 512, 0);
        WRPO__PREFETCH(dgu + i + 512, 1), WRPO__PREFETCH(dgu + I + i + 512, 1);
        WRPO__V slope, up = WRPO__(get)(gu + I + i, I - i, 0), d = WRPO__(get)(dh + i, I - i, 0);
        WRPO__V act = WRPO__(act)(WRPO__(get)(gu + i, I - i, 0), gelu, &slope);
        if (h) WRPO__(put)(h + i, I - i, act * up);
        WRPO__(put)(dgu + i, I - i, d * up * slope);
        WRPO__(put)(dgu + I + i, I - i, d * act);
    }
}
static void WRPO__(glu)(void *dev, void *h, const void *gu, int64_t n, int64_t I, bool gelu) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, 4 * I)
    for (int64_t r = 0; r < n; r++) WRPO__(glu_row)((float *)h + r * I, (const float *)gu + r * 2 * I, I, gelu);
}
static void WRPO__(glu_bwd)(void *dev, void *dgu, void *h, const void *dh, const void *gu, int64_t n, int64_t I, bool gelu) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, 4 * I)
    for (int64_t r = 0; r < n; r++)
        WRPO__(glu_bwd_row)((float *)dgu + r * 2 * I, h ? (float *)h + r * I : NULL, (const float *)dh + r * I, (const float *)gu + r * 2 * I, I, gelu);
}

/* ---- logprob: lse = log sum exp(x), logp = x[target] - lse; x = softcap tanh(logits / softcap) where there is a softcap
   The maximum runs along: in blocks of 1024 numbers, sums so far are rescaled when a block brings a larger one. ---- */
WRPO__INLINE WRPO__V WRPO__(cap)(WRPO__V x, float softcap) {   /* -inf stays: it marks what does not count */
    if (softcap <= 0) return x;
    return WRPO__PICK(WRPO__LESS(x, WRPO__SET(-FLT_MAX)), x, softcap * WRPO__(tanh)(x / softcap));
}
WRPO__ROW double WRPO__(lse_row)(const float *x, int64_t n, float softcap) {
    float m = -INFINITY;
    double sum = 0;
    for (int64_t b = 0; b < n; b += 1024) {
        const int64_t e = WRPO__MIN(n, b + 1024);
        WRPO__V top = WRPO__SET(-INFINITY), s = {0};
        for (int64_t i = b; i < e; i += WRPO__LANES) top = WRPO__(max)(top, WRPO__(get)(x + i, e - i, -INFINITY));
        float block = WRPO__(largest)(WRPO__(cap)(top, softcap));
        if (block > m) sum *= exp((double)m - (double)block), m = block;
        float base = m > -INFINITY ? m : 0;            /* nothing but -inf so far: the sum stays 0 */
        for (int64_t i = b; i < e; i += WRPO__LANES) s += WRPO__(exp)(WRPO__(cap)(WRPO__(get)(x + i, e - i, -INFINITY), softcap) - base);
        sum += (double)WRPO__(sum)(s);
    }
    return (double)m + log(sum);
}
WRPO__ROW void WRPO__(dlogits_row)(float *y, const float *x, int64_t target, float lse, float g, int64_t n, float softcap) {
    const float xt = x[target], t = softcap > 0 ? tanhf(xt / softcap) : 0;
    for (int64_t i = 0; i < n; i += WRPO__LANES) {
        WRPO__V v = WRPO__(cap)(WRPO__(get)(x + i, n - i, 0), softcap), p = WRPO__(exp)(v - lse);
        if (softcap > 0) {
            WRPO__V th = WRPO__(max)(v / softcap, WRPO__SET(-1.0f));   /* of -inf: p is 0 there, and must stay it */
            p = p * WRPO__FMA(-th, th, WRPO__SET(1.0f));
        }
        WRPO__(put)(y + i, n - i, -g * p);
    }
    y[target] += g * (1 - t * t);
}
static void WRPO__(logprob)(void *dev, float *logp, float *lse, const float *logits, const int32_t *target, int64_t n, int64_t V, float softcap) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, V)
    for (int64_t r = 0; r < n; r++) {
        const float *x = logits + r * V;
        double sum = WRPO__(lse_row)(x, V, softcap), xt = (double)x[target[r]];
        if (softcap > 0) xt = (double)softcap * tanh(xt / (double)softcap);
        lse[r] = (float)sum;
        logp[r] = (float)(xt - sum);
    }
}
static void WRPO__(logprob_bwd)(void *dev, void *dlogits, const float *logits, const int32_t *target, const float *lse, const float *dlogp,
                                int64_t n, int64_t V, float softcap) {
    wrpo__cpu *cpu = dev;
    WRPO__PARROWS(cpu, n, V)
    for (int64_t r = 0; r < n; r++) WRPO__(dlogits_row)((float *)dlogits + r * V, logits + r * V, target[r], lse[r], dlogp[r], V, softcap);
}

/* ---- sumsq, adamw ---- */
WRPO__ROW double WRPO__(sumsq_part)(const float *x, int64_t n) {
    double s[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) s[j] += (double)x[i + j] * (double)x[i + j];
    for (; i < n; i++) s[0] += (double)x[i] * (double)x[i];
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}
static void WRPO__(sumsq)(void *dev, double *out, const float *x, int64_t count) {
    wrpo__cpu *cpu = dev;
    double part[256], sum = 0;                         /* as many parts for every number of threads */
    const int64_t size = WRPO__MAX(wrpo__div_up(count, WRPO__COUNT(part)), WRPO__GRAIN), parts = wrpo__div_up(count, size);
    WRPO__PARFOR(wrpo__cpu_team(cpu, count))
    for (int64_t i = 0; i < parts; i++) part[i] = WRPO__(sumsq_part)(x + i * size, WRPO__MIN(size, count - i * size));
    for (int64_t i = 0; i < parts; i++) sum += part[i];
    *out += sum;
}
/* m += (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g^2,  w = w (1 - lr decay) - lr / correction1 m / (sqrt(v) / correction2 + eps) */
WRPO__ROW void WRPO__(adamw_part)(float *w, float *m, float *v, const float *g, int64_t n, const wrpo_adamw *step) {
    const float keep = (float)(1 - (double)step->lr * (double)step->weight_decay), rate = (float)((double)step->lr / step->correction1);
    const float b1 = (float)(1 - (double)step->beta1), b2 = (float)(1 - (double)step->beta2), correction2 = (float)step->correction2;
    for (int64_t i = 0; i < n; i += WRPO__LANES) {
        WRPO__V gi = WRPO__(get)(g + i, n - i, 0) * step->grad_scale, mi = WRPO__(get)(m + i, n - i, 0), vi = WRPO__(get)(v + i, n - i, 0);
        mi = WRPO__FMA(WRPO__SET(b1), gi - mi, mi);
        vi = WRPO__FMA(b2 * gi, gi, vi * step->beta2);
        WRPO__V root = WRPO__(sqrt)(vi) / correction2 + step->eps;
        WRPO__(put)(m + i, n - i, mi);
        WRPO__(put)(v + i, n - i, vi);
        WRPO__(put)(w + i, n - i, WRPO__(get)(w + i, n - i, 0) * keep - rate * mi / root);
    }
}
/* What is not float in memory is unpacked a block at a time, and packed again. */
WRPO__INLINE WRPO__U WRPO__(random)(uint32_t seed, int64_t i) {        /* 32 bits for each of numbers i ... i + LANES: a hash of (seed, i) */
    uint32_t count[WRPO__LANES];
    for (int k = 0; k < WRPO__LANES; k++) count[k] = seed + (uint32_t)(i + k) * 0x9E3779B9u;
    WRPO__U x;
    memcpy(&x, count, sizeof x);
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}
WRPO__ROW void WRPO__(masters_unpack)(float *x, const uint16_t *w, const uint16_t *low) {
    for (int64_t i = 0; i < WRPO_BLOCK; i++) x[i] = wrpo__master(w[i], low[i]);
}
WRPO__ROW void WRPO__(masters_pack)(uint16_t *w, uint16_t *low, const float *x) {
    for (int64_t i = 0; i < WRPO_BLOCK; i++) wrpo__master_split(x[i], &w[i], &low[i]);
}
WRPO__ROW void WRPO__(bf16_unpack)(float *x, const uint16_t *y) {
    for (int64_t i = 0; i < WRPO_BLOCK; i += WRPO__LANES) WRPO__STORE(x + i, WRPO__LOAD_HALF(y + i));
}
WRPO__ROW void WRPO__(bf16_pack)(uint16_t *y, const float *x, uint32_t seed, int64_t first) {
    for (int64_t i = 0; i < WRPO_BLOCK; i += WRPO__LANES) WRPO__STORE_HIGH(y + i, WRPO__BITS(WRPO__LOAD(x + i)) + (WRPO__(random)(seed, first + i) >> 16));
}
/* codes 0 ... top of magnitudes: s (q / top)^4 */
WRPO__INLINE WRPO__V WRPO__(decode)(WRPO__V q, float s, float top) {
    q = q * (1 / top);
    q = q * q;
    return q * q * s;
}
WRPO__ROW void WRPO__(bytes_unpack)(float *x, const uint8_t *y, bool moment2) {
    float s;
    memcpy(&s, y + WRPO_BLOCK, 4);
    for (int64_t i = 0; i < WRPO_BLOCK; i++) x[i] = moment2 ? (float)y[i] : (float)(int8_t)y[i];
    for (int64_t i = 0; i < WRPO_BLOCK; i += WRPO__LANES) {
        WRPO__V q = WRPO__LOAD(x + i), size = WRPO__(decode)(q, s, moment2 ? 255 : 127);
        WRPO__STORE(x + i, WRPO__PICK(WRPO__LESS(q, WRPO__SET(0.0f)), -size, size));
    }
}
WRPO__ROW void WRPO__(bytes_pack)(uint8_t *y, const float *x, bool moment2, uint32_t seed, int64_t first) {
    const float top = moment2 ? 255 : 127;
    WRPO__V most = {0};
    for (int64_t i = 0; i < WRPO_BLOCK; i += WRPO__LANES) most = WRPO__(max)(most, WRPO__(max)(WRPO__LOAD(x + i), -WRPO__LOAD(x + i)));
    const float s = WRPO__(largest)(most), inverse = s >= FLT_MIN ? 1 / s : 0;
    float codes[WRPO_BLOCK];
    for (int64_t i = 0; i < WRPO_BLOCK; i += WRPO__LANES) {
        WRPO__V size = WRPO__(max)(WRPO__LOAD(x + i), -WRPO__LOAD(x + i)), q = WRPO__(sqrt)(WRPO__(sqrt)(size * inverse)) * top;
        q = WRPO__WHOLE(-WRPO__(max)(-q, WRPO__SET(1 - top)));                 /* q and q + 1 are the codes around it */
        const WRPO__V low = WRPO__(decode)(q, s, top), high = WRPO__(decode)(q + 1, s, top);
        const WRPO__V dice = WRPO__REAL(WRPO__(random)(seed, first + i) >> 8) * (1.0f / 16777216);
        q = WRPO__PICK(WRPO__LESS(dice * (high - low), size - low), q + 1, q);
        if (moment2) q = WRPO__PICK(WRPO__LESS(WRPO__SET(0.0f), size), WRPO__(max)(q, WRPO__SET(1.0f)), q);
        WRPO__STORE(codes + i, q);
    }
    for (int64_t i = 0; i < WRPO_BLOCK; i++) y[i] = moment2 ? (uint8_t)codes[i] : (uint8_t)(int8_t)(x[i] < 0 ? -codes[i] : codes[i]);
    memcpy(y + WRPO_BLOCK, &s, 4);
}
WRPO__ROW void WRPO__(moment_unpack)(float *x, const void *y, wrpo_moments moments, bool moment2) {
    if (moments == WRPO_MOMENTS_BF16) WRPO__(bf16_unpack)(x, y);
    else WRPO__(bytes_unpack)(x, y, moment2);
}
WRPO__ROW void WRPO__(moment_pack)(void *y, const float *x, wrpo_moments moments, bool moment2, uint32_t seed, int64_t first) {
    if (moments == WRPO_MOMENTS_BF16) WRPO__(bf16_pack)(y, x, seed, first);
    else WRPO__(bytes_pack)(y, x, moment2, seed, first);
}
/* numbers [first, first + n) of the arrays; first is at a block */
static void WRPO__(adamw_task)(void *w, uint16_t *low, void *m, void *v, const float *g, int64_t first, int64_t n, const wrpo_adamw *step) {
    const bool floats = step->moments == WRPO_MOMENTS_F32;
    const uint32_t seed_m = (uint32_t)step->seed, seed_v = (uint32_t)(step->seed >> 32);
    if (floats && !low) {
        WRPO__(adamw_part)((float *)w + first, (float *)m + first, (float *)v + first, g + first, n, step);
        return;
    }
    for (int64_t i = first; i < first + n; i += WRPO_BLOCK) {
        float tw[WRPO_BLOCK], tm[WRPO_BLOCK], tv[WRPO_BLOCK];
        char *pm = (char *)m + wrpo_moments_bytes(step->moments, i), *pv = (char *)v + wrpo_moments_bytes(step->moments, i);
        if (low) WRPO__(masters_unpack)(tw, (uint16_t *)w + i, low + i);
        if (!floats) WRPO__(moment_unpack)(tm, pm, step->moments, false), WRPO__(moment_unpack)(tv, pv, step->moments, true);
        WRPO__(adamw_part)(low ? tw : (float *)w + i, floats ? (float *)m + i : tm, floats ? (float *)v + i : tv, g + i, WRPO__MIN(WRPO_BLOCK, first + n - i), step);
        if (!floats) WRPO__(moment_pack)(pm, tm, step->moments, false, seed_m, i), WRPO__(moment_pack)(pv, tv, step->moments, true, seed_v, i);
        if (low) WRPO__(masters_pack)((uint16_t *)w + i, low + i, tw);
    }
}
static void WRPO__(adamw)(void *dev, void *w, uint16_t *low, void *m, void *v, const float *g, int64_t count, const wrpo_adamw *step) {
    wrpo__cpu *cpu = dev;
    WRPO__PARFOR(wrpo__cpu_team(cpu, count))
    for (int64_t i = 0; i < count; i += WRPO__GRAIN) WRPO__(adamw_task)(w, low, m, v, g, i, WRPO__MIN(count - i, WRPO__GRAIN), step);
}

/* ---- gemm ----
   Goto's scheme. A (rows of C) is packed into panels of MR rows, B (columns) into panels of NR, both step by step of k:
   a[k][MS], b[k][NR]. The register tile multiplies one panel of each: per step NV vectors of B, MR single numbers of A,
   MR * NV multiply-adds, all of C's tile in registers. The panels of the smaller of the two are packed by all threads for
   all of them; then a task packs a few panels of the other, which stay in the cache next to its core, and runs them past all
   of the first. Where A is one panel, B is not packed (thin_of). Each number of C is the sum over blocks of k (cut from 0, by
   K alone) of the sums over k in order: the same for every row, whatever m, n and the threads.                            */

/* x becomes its own transpose: log2(LANES) rounds, each interleaving row i with row i + LANES/2 */
WRPO__INLINE void WRPO__(transpose)(WRPO__V *x) {
#if WRPO__LANES > 1
    WRPO__V t[WRPO__LANES];
    WRPO__UNROLL
    for (int w = 1; w < WRPO__LANES; w *= 2) {
        WRPO__UNROLL
        for (int i = 0; i < WRPO__LANES / 2; i++) {
            t[2 * i] = WRPO__MIX(x[i], x[i + WRPO__LANES / 2], WRPO__LOW);
            t[2 * i + 1] = WRPO__MIX(x[i], x[i + WRPO__LANES / 2], WRPO__HIGH);
        }
        WRPO__UNROLL
        for (int i = 0; i < WRPO__LANES; i++) x[i] = t[i];
    }
#else
    (void)x;
#endif
}
/* n lanes (rows of A, columns of B) by kc steps into panels of `width` lanes, [word][stride] each, `next` numbers apart; missing
   lanes are 0. Lane l, step k is number l * ls + k * ks of from, which are floats or halves (bfloat16); either ls or ks is 1. A word
   is the float of a step; in pairs it is two steps, rounded to bfloat16, a last single one with 0. Where steps are rows of `from`,
   ABREAST of them are read side by side, each from end to end. */
#define WRPO__NUMBER(i) (half ? wrpo__float_of(((const uint16_t *)from)[i]) : ((const float *)from)[i])
#define WRPO__VECTOR(i) (half ? WRPO__LOAD_HALF((const uint16_t *)from + (i)) : WRPO__LOAD((const float *)from + (i)))
#define WRPO__AHEAD(i) WRPO__PREFETCH((const char *)from + (i) * (half ? 2 : 4) + 192, 0)     /* rows are left again before the machine sees them coming */
#ifdef WRPO__IN_PAIRS
/* words of two steps: low halves from a, high ones from b, rounded to nearest unless they are bfloat16 already */
WRPO__INLINE WRPO__V WRPO__(pair_words)(WRPO__U a, WRPO__U b, const bool round) {
    if (round) a += 0x7FFFu + (a >> 16 & 1), b += 0x7FFFu + (b >> 16 & 1);
    return WRPO__FLOATS(a >> 16 | (b & ((WRPO__U){0} + 0xFFFF0000u)));
}
WRPO__INLINE WRPO__V WRPO__(halves)(const uint16_t *p) { WRPO__V x; memcpy(&x, p, sizeof x); return x; }     /* two to a word, as they are */
/* from number i on: one word of LANES lanes; LANES words of one lane */
#define WRPO__ACROSS(i) (pairs ? WRPO__(pair_words)(WRPO__BITS(WRPO__VECTOR(i)), WRPO__BITS(WRPO__VECTOR((i) + ks)), !half) : WRPO__VECTOR(i))
#define WRPO__ALONG(i) (!pairs ? WRPO__VECTOR(i) : half ? WRPO__(halves)((const uint16_t *)from + (i)) \
                                                       : (WRPO__V)wrpo__pair_of(WRPO__VECTOR(i), WRPO__VECTOR((i) + WRPO__LANES)))
#else
#define WRPO__ACROSS(i) WRPO__VECTOR(i)
#define WRPO__ALONG(i) WRPO__VECTOR(i)
#endif
WRPO__INLINE float WRPO__(word)(const bool pairs, const bool half, const void *from, int64_t at, int64_t ks, int64_t left) {
    if (!pairs) return WRPO__NUMBER(at);
    const uint32_t low = wrpo__float_to_bf16(WRPO__NUMBER(at)), high = left > 1 ? wrpo__float_to_bf16(WRPO__NUMBER(at + ks)) : 0;
    return wrpo__bits_float(low | high << 16);
}
WRPO__INLINE void WRPO__(pack)(const int width, const int stride, const bool pairs, const bool half, float *dst, int64_t next, const void *from, int64_t ls, int64_t ks, int64_t n, int64_t kc) {
    const int step = pairs ? 2 : 1;
    if (ls == 1) {
        for (int64_t k0 = 0; k0 < kc; k0 += WRPO__ABREAST)
            for (int64_t p = 0; p < n; p += width)
                for (int64_t k = k0; k < WRPO__MIN(kc, k0 + WRPO__ABREAST); k += step) {
                    const int64_t at = p + k * ks;
                    float *d = dst + p / width * next + k / step * stride;
                    WRPO__AHEAD(at);
                    if (pairs) WRPO__AHEAD(at + ks);
                    if (p + stride <= n && k + step <= kc)     /* lanes between width and stride may hold anything: no tile looks at them */
                        for (int l = 0; l < stride; l += WRPO__LANES) WRPO__STORE(d + l, WRPO__ACROSS(at + l));
                    else
                        for (int l = 0; l < stride; l++) d[l] = l < WRPO__MIN(n - p, width) ? WRPO__(word)(pairs, half, from, at + l, ks, kc - k) : 0;
                }
        return;
    }
    for (int64_t p = 0; p < n; p += width, dst += next) {
        const int64_t lanes = WRPO__MIN(n - p, width);
        int64_t k = 0;
        for (; k + step * WRPO__LANES <= kc; k += step * WRPO__LANES)
            for (int l = 0; l < stride; l += WRPO__LANES) {
                WRPO__V x[WRPO__LANES];
                WRPO__UNROLL
                for (int i = 0; i < WRPO__LANES; i++) {
                    const int64_t at = (p + l + i) * ls + k;
                    WRPO__AHEAD(at);
                    x[i] = l + i < lanes ? WRPO__ALONG(at) : (WRPO__V){0};
                }
                WRPO__(transpose)(x);
                WRPO__UNROLL
                for (int i = 0; i < WRPO__LANES; i++) WRPO__STORE(dst + (k / step + i) * stride + l, x[i]);
            }
        for (int left = (int)(kc - k); left > 0; left -= step, k += step)
            for (int l = 0; l < stride; l++) dst[k / step * stride + l] = l < lanes ? WRPO__(word)(pairs, half, from, (p + l) * ls + k, ks, left) : 0;
    }
}
#define WRPO__PACK(name, width, stride, pairs, half) \
    WRPO__ROW void WRPO__(name)(float *dst, int64_t next, const void *from, int64_t ls, int64_t ks, int64_t n, int64_t kc) { \
        WRPO__(pack)(width, stride, pairs, half, dst, next, from, ls, ks, n, kc); \
    }
WRPO__PACK(pack_a, WRPO__(MR), WRPO__(MS), false, false)
WRPO__PACK(pack_b, WRPO__(NR), WRPO__(NR), false, false)
WRPO__PACK(pack_b_half, WRPO__(NR), WRPO__(NR), false, true)
#ifdef WRPO__IN_PAIRS
WRPO__PACK(pack_a_pairs, WRPO__(MR), WRPO__(MS), true, false)
WRPO__PACK(pack_b_pairs, WRPO__(NR), WRPO__(NR), true, false)
WRPO__PACK(pack_b_half_pairs, WRPO__(NR), WRPO__(NR), true, true)
/* The same of A for tiles: panels of 32 lanes, [lane][words]; words are a multiple of 16, what is missing is 0. */
WRPO__ROW void WRPO__(pack_a_tiles)(float *dst, const float *src, int64_t ls, int64_t ks, int64_t n, int64_t kc, int64_t words) {
    for (int64_t l = 0; l < (n + 31) / 32 * 32; l += 16)
        for (int64_t k = 0; k < 2 * words; k += 32) {
            WRPO__V x[16];
            for (int64_t i = 0; i < 16; i++)
                if (ls != 1) {
                    const float *from = src + (l + i) * ls + k;
                    x[i] = l + i < n ? (WRPO__V)wrpo__pair_of(WRPO__(get)(from, kc - k, 0), WRPO__(get)(kc - k > 16 ? from + 16 : from, kc - k - 16, 0)) : (WRPO__V){0};
                } else {
                    const int64_t at = k + 2 * i;
                    const WRPO__U a = at < kc ? WRPO__BITS(WRPO__(get)(src + at * ks + l, n - l, 0)) : (WRPO__U){0};
                    const WRPO__U b = at + 1 < kc ? WRPO__BITS(WRPO__(get)(src + (at + 1) * ks + l, n - l, 0)) : (WRPO__U){0};
                    x[i] = WRPO__(pair_words)(a, b, true);
                }
            if (ls == 1) WRPO__(transpose)(x);
            for (int i = 0; i < 16; i++) WRPO__STORE(dst + (l + i) * words + k / 2, x[i]);
        }
}
#endif
#undef WRPO__PACK
#undef WRPO__ACROSS
/* panels of A (side 0) or of B (1), in words of `pair` steps; half: B's, from bfloat16 */
static void WRPO__(pack_side)(int side, int64_t pair, bool half, float *dst, int64_t next, const void *from, int64_t ls, int64_t ks, int64_t n, int64_t kc) {
#ifdef WRPO__IN_PAIRS
    if (pair == 2) {
        (half ? WRPO__(pack_b_half_pairs) : side ? WRPO__(pack_b_pairs) : WRPO__(pack_a_pairs))(dst, next, from, ls, ks, n, kc);
        return;
    }
#endif
    (void)pair;
    (half ? WRPO__(pack_b_half) : side ? WRPO__(pack_b) : WRPO__(pack_a))(dst, next, from, ls, ks, n, kc);
}
/* c[m,n] = or += a' b for few rows: a panel a[kc][MS] and n <= LANES columns of b, column i at number i * ld, which are turned in registers
   and not packed: each number of b is used but m times. The same sums in the same order as a tile's. */
WRPO__INLINE void WRPO__(thin_of)(const int rows, const bool pairs, const bool half, int64_t kc, const float *a, const void *from, int64_t ld, float *c, int64_t ldc, int64_t m, int64_t n, bool add) {
    const int step = pairs ? 2 : 1;
    WRPO__V sum[WRPO__(MR)], x[WRPO__LANES];
    WRPO__UNROLL
    for (int r = 0; r < rows; r++) sum[r] = (WRPO__V){0};
    for (int64_t k = 0; k < kc; k += step * WRPO__LANES) {
        const int64_t left = kc - k, words = WRPO__MIN((left + step - 1) / step, WRPO__LANES);
        WRPO__UNROLL
        for (int i = 0; i < WRPO__LANES; i++) {
            const int64_t at = i * ld + k;
            x[i] = (WRPO__V){0};
            if (i >= n) continue;
            WRPO__AHEAD(at);
            if (left >= step * WRPO__LANES) x[i] = WRPO__ALONG(at);
            else if (pairs) memcpy(&x[i], (const uint16_t *)from + at, (size_t)left * 2);
            else for (int64_t l = 0; l < left; l++) ((float *)&x[i])[l] = WRPO__NUMBER(at + l);
        }
        WRPO__(transpose)(x);
        if (words == WRPO__LANES) {
            WRPO__UNROLL
            for (int i = 0; i < WRPO__LANES; i++, a += WRPO__(MS)) {
                WRPO__UNROLL
                for (int r = 0; r < rows; r++) sum[r] = WRPO__STEP(pairs, WRPO__ALL(a[r]), x[i], sum[r]);
            }
        } else
            for (int64_t i = 0; i < words; i++, a += WRPO__(MS)) {
                WRPO__UNROLL
                for (int r = 0; r < rows; r++) sum[r] = WRPO__STEP(pairs, WRPO__ALL(a[r]), x[i], sum[r]);
            }
    }
    WRPO__UNROLL
    for (int r = 0; r < rows; r++)
        if (r < m) WRPO__(put)(c + r * ldc, n, add ? (WRPO__V)(WRPO__(get)(c + r * ldc, n, 0) + sum[r]) : sum[r]);
}
#define WRPO__THIN(name, rows, pairs, half) \
    WRPO__ROW void WRPO__(name)(int64_t kc, const float *a, const void *b, int64_t ld, float *c, int64_t ldc, int64_t m, int64_t n, bool add) { \
        WRPO__(thin_of)(rows, pairs, half, kc, a, b, ld, c, ldc, m, n, add); \
    }
WRPO__THIN(thin_full, WRPO__(MR), false, false)
WRPO__THIN(thin_four, 4, false, false)
WRPO__THIN(thin_one, 1, false, false)
WRPO__THIN(thin_full_half, WRPO__(MR), false, true)
WRPO__THIN(thin_four_half, 4, false, true)
WRPO__THIN(thin_one_half, 1, false, true)
#ifdef WRPO__IN_PAIRS
WRPO__THIN(thin_full_pairs, WRPO__(MR), true, true)
WRPO__THIN(thin_four_pairs, 4, true, true)
WRPO__THIN(thin_one_pairs, 1, true, true)
#endif
#undef WRPO__THIN
#undef WRPO__NUMBER
#undef WRPO__VECTOR
#undef WRPO__AHEAD
#undef WRPO__ALONG
/* c[m,n] = or += a' b for a panel a[kc][MS] and NR columns b[kc][ldb]; m <= rows, n <= NR. The whole tile is computed, m by n is written.
   pairs: a step is a word of two. */
WRPO__INLINE void WRPO__(tile_of)(const int rows, const bool pairs, int64_t kc, const float *a, const float *b, int64_t ldb, float *c, int64_t ldc, int64_t m, int64_t n, bool add) {
    WRPO__V x[WRPO__(MR)][WRPO__(NV)];
    (void)pairs;
    WRPO__UNROLL
    for (int i = 0; i < rows; i++) {
        WRPO__UNROLL
        for (int j = 0; j < WRPO__(NV); j++) x[i][j] = (WRPO__V){0};
    }
    if (m == rows) {
        WRPO__UNROLL
        for (int i = 0; i < rows; i++) {
            WRPO__UNROLL
            for (int j = 0; j < WRPO__(NV); j++) WRPO__PREFETCH(c + i * ldc + j * WRPO__LANES, 1);
        }
    }
    for (int64_t k = 0; k < kc; k++, a += WRPO__(MS), b += ldb) {
        WRPO__V bk[WRPO__(NV)];
        WRPO__UNROLL
        for (int j = 0; j < WRPO__(NV); j++) bk[j] = WRPO__LOAD(b + j * WRPO__LANES);
        WRPO__PREFETCH(a + 8 * WRPO__(MS), 0);
        WRPO__UNROLL
        for (int i = 0; i < rows; i++) {
            WRPO__UNROLL
            for (int j = 0; j < WRPO__(NV); j++) x[i][j] = WRPO__STEP(pairs, WRPO__ALL(a[i]), bk[j], x[i][j]);
        }
    }
    if (m == rows && n == WRPO__(NR)) {
        WRPO__UNROLL
        for (int i = 0; i < rows; i++) {
            WRPO__UNROLL
            for (int j = 0; j < WRPO__(NV); j++) {
                float *p = c + i * ldc + j * WRPO__LANES;
                WRPO__STORE(p, add ? (WRPO__V)(WRPO__LOAD(p) + x[i][j]) : x[i][j]);
            }
        }
        return;
    }
    float t[WRPO__(MR)][WRPO__(NR)];
    WRPO__UNROLL
    for (int i = 0; i < rows; i++) {
        WRPO__UNROLL
        for (int j = 0; j < WRPO__(NV); j++) WRPO__STORE(t[i] + j * WRPO__LANES, x[i][j]);
    }
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * ldc + j] = add ? c[i * ldc + j] + t[i][j] : t[i][j];
}
#define WRPO__TILE(name, rows, pairs) \
    WRPO__ROW void WRPO__(name)(int64_t kc, const float *a, const float *b, int64_t ldb, float *c, int64_t ldc, int64_t m, int64_t n, bool add) { \
        WRPO__(tile_of)(rows, pairs, kc, a, b, ldb, c, ldc, m, n, add); \
    }
WRPO__TILE(tile_full, WRPO__(MR), false)
WRPO__TILE(tile_four, 4, false)
WRPO__TILE(tile_one, 1, false)
#ifdef WRPO__IN_PAIRS
WRPO__TILE(tile_full_pairs, WRPO__(MR), true)
WRPO__TILE(tile_four_pairs, 4, true)
WRPO__TILE(tile_one_pairs, 1, true)
#endif
#undef WRPO__TILE
#if defined(WRPO__IN_PAIRS) && defined(WRPO__TILE_DOT)
/* c[m,n] = or += a b: a[32][words] by b[words][32], in four tiles of C */
WRPO__ROW void WRPO__(tile_amx)(int64_t words, const float *a, const float *b, float *c, int64_t ldc, int64_t m, int64_t n, bool add) {
    float t[32 * 32];
    const bool both = m > 16;
    WRPO__TILE_ZERO(0);
    WRPO__TILE_ZERO(1);
    WRPO__TILE_ZERO(2);
    WRPO__TILE_ZERO(3);
    for (int64_t w = 0; w < words; w += 16) {
        WRPO__TILE_LOAD(4, a + w, words * 4);
        WRPO__TILE_LOAD(6, b + w * 32, 128);
        WRPO__TILE_DOT(0, 4, 6);
        WRPO__TILE_LOAD(7, b + w * 32 + 16, 128);
        WRPO__TILE_DOT(1, 4, 7);
        if (!both) continue;
        WRPO__TILE_LOAD(5, a + 16 * words + w, words * 4);
        WRPO__TILE_DOT(2, 5, 6);
        WRPO__TILE_DOT(3, 5, 7);
    }
    WRPO__TILE_STORE(0, t, 128);
    WRPO__TILE_STORE(1, t + 16, 128);
    WRPO__TILE_STORE(2, t + 512, 128);
    WRPO__TILE_STORE(3, t + 528, 128);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += WRPO__LANES) {
            float *p = c + i * ldc + j;
            WRPO__V x = WRPO__LOAD(t + i * 32 + j);
            WRPO__(put)(p, n - j, add ? x + WRPO__(get)(p, n - j, 0) : x);
        }
}
#endif
static void WRPO__(tile)(bool pairs, int64_t kc, const float *a, const float *b, int64_t ldb, float *c, int64_t ldc, int64_t m, int64_t n, bool add) {
#ifdef WRPO__IN_PAIRS
    if (pairs) {
        (m > 4 ? WRPO__(tile_full_pairs) : m > 1 ? WRPO__(tile_four_pairs) : WRPO__(tile_one_pairs))(kc, a, b, ldb, c, ldc, m, n, add);
        return;
    }
#endif
    (void)pairs;
    (m > 4 ? WRPO__(tile_full) : m > 1 ? WRPO__(tile_four) : WRPO__(tile_one))(kc, a, b, ldb, c, ldc, m, n, add);
}
/* the block of k that begins at k0: KC words, with the last two halved evenly */
static int64_t WRPO__(kblock)(int64_t k, int64_t k0, int pair) {
    const int64_t left = k - k0, whole = WRPO__KC * pair;
    return left >= 2 * whole ? whole : left > whole ? (left / 2 + 31) / 32 * 32 : left;
}
typedef struct WRPO__(product) {     /* one piece. A and B are sides 0 and 1; their lanes, the rows and columns of C: [begin, end); steps [k0, k1) */
    wrpo__cpu *cpu;
    float *c; int64_t ldc;
    const void *of[2];               /* lane i, step k is number i * ls + k * ks */
    int64_t ls[2], ks[2], begin[2], end[2], k, k0, k1;
    int pair;                        /* steps of k in a word: 2 where bfloat16 is multiplied */
    int width[2], room[2];           /* lanes of a panel, and their room in it */
    int shared;                      /* the side of which all panels of the piece are packed, for all threads */
    bool half, add, tiles, thin;     /* half: B is bfloat16 */
} WRPO__(product);
/* lanes of one of `parts` equal parts, in whole panels */
static int64_t WRPO__(share)(const WRPO__(product) *g, int side, int64_t lanes, int64_t parts) {
    return wrpo__div_up(wrpo__div_up(lanes, WRPO__MAX(parts, 1)), g->width[side]) * g->width[side];
}
/* words of kc steps; tiles take 16 at a time */
static int64_t WRPO__(words)(const WRPO__(product) *g, int64_t kc) {
    const int64_t words = wrpo__div_up(kc, g->pair);
    return g->tiles ? wrpo__div_up(words, 16) * 16 : words;
}
/* lanes [lane, lane + n) of a side, steps [k, k + kc) */
static void WRPO__(gemm_pack)(const WRPO__(product) *g, int side, float *panels, int64_t lane, int64_t n, int64_t k, int64_t kc) {
    const int64_t ls = g->ls[side], ks = g->ks[side], words = WRPO__(words)(g, kc), made = wrpo__div_up(kc, g->pair), next = g->room[side] * words;
    const bool half = side && g->half;
    const void *from = (const char *)g->of[side] + (lane * ls + k * ks) * (half ? 2 : 4);
#ifdef WRPO__IN_PAIRS
    if (!side && g->tiles) { WRPO__(pack_a_tiles)(panels, from, ls, ks, n, kc, words); return; }
#endif
    WRPO__(pack_side)(side, g->pair, half, panels, next, from, ls, ks, n, kc);
    for (float *p = panels; made < words && p < panels + wrpo__div_up(n, g->width[side]) * next; p += next)        /* tiles of B */
        memset(p + made * g->room[side], 0, (size_t)((words - made) * g->room[side]) * sizeof *p);
}
/* Shared panels, of the words from step k on, each `words` deep: the one of lane `lane`. */
static float *WRPO__(gemm_shared)(const WRPO__(product) *g, int64_t lane, int64_t k, int64_t words) {
    const int side = g->shared, width = g->width[side], room = g->room[side];
    return g->cpu->packed + ((k - g->k0) / g->pair * wrpo__div_up(g->end[side] - g->begin[side], width) + (lane - g->begin[side]) / width * words) * room;
}
/* packs lanes [lane, lane + n) of the shared side, all steps of the piece */
static void WRPO__(gemm_share)(const WRPO__(product) *g, int64_t lane, int64_t n) {
    for (int64_t k = g->k0, kc; k < g->k1; k += kc) {
        kc = WRPO__(kblock)(g->k, k, g->pair);
        WRPO__(gemm_pack)(g, g->shared, WRPO__(gemm_shared)(g, lane, k, WRPO__(words)(g, kc)), lane, n, k, kc);
    }
}
/* columns [j0, j1) of the piece, whose rows are few */
static void WRPO__(gemm_thin)(const WRPO__(product) *g, int64_t j0, int64_t j1) {
    const int64_t top = g->begin[0], rows = g->end[0] - top;
    for (int64_t j = j0; j < j1; j += WRPO__LANES)
        for (int64_t k = g->k0, kc; k < g->k1; k += kc) {
            kc = WRPO__(kblock)(g->k, k, g->pair);
            const float *a = WRPO__(gemm_shared)(g, top, k, WRPO__(words)(g, kc));
            const void *b = (const char *)g->of[1] + (j * g->ls[1] + k) * (g->half ? 2 : 4);
            float *c = g->c + top * g->ldc + j;
            const int64_t n = WRPO__MIN(WRPO__LANES, j1 - j);
            const bool add = g->add || k > 0;
#define WRPO__RUN_THIN(kind) (rows > 4 ? WRPO__(thin_full##kind) : rows > 1 ? WRPO__(thin_four##kind) : WRPO__(thin_one##kind))(kc, a, b, g->ls[1], c, g->ldc, rows, n, add)
#ifdef WRPO__IN_PAIRS
            if (g->pair == 2) { WRPO__RUN_THIN(_pairs); continue; }
#endif
            if (g->half) WRPO__RUN_THIN(_half);
            else WRPO__RUN_THIN();
#undef WRPO__RUN_THIN
        }
}
/* a part of the piece: lanes [begin, end) of both sides */
static void WRPO__(gemm_task)(const WRPO__(product) *g, const int64_t *begin, const int64_t *end) {
    if (g->thin) { WRPO__(gemm_thin)(g, begin[1], end[1]); return; }
    const int64_t block = WRPO__(share)(g, 0, end[0] - begin[0], wrpo__div_up(end[0] - begin[0], WRPO__MC));
    const int side = g->shared, other = !side;
    float *own = wrpo__cpu_scratch(g->cpu);
#if defined(WRPO__IN_PAIRS) && defined(WRPO__TILE_DOT)
    static const struct { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    if (g->tiles) WRPO__TILE_CONFIG(&config);
#endif
    for (int64_t k = g->k0, kc; k < g->k1; k += kc) {
        kc = WRPO__(kblock)(g->k, k, g->pair);
        const int64_t words = WRPO__(words)(g, kc);
        const float *panels[2];
        panels[side] = WRPO__(gemm_shared)(g, begin[side], k, words), panels[other] = own;
        WRPO__(gemm_pack)(g, other, own, begin[other], end[other] - begin[other], k, kc);
        for (int64_t top = begin[0], low; top < end[0]; top = low) {   /* rows of A that stay in the cache for all panels */
            low = WRPO__MIN(end[0], top + block);
            for (int64_t j = begin[1]; j < end[1]; j += WRPO__(NR))
                for (int64_t i = top; i < low; i += g->width[0]) {
                    const float *a = panels[0] + (i - begin[0]) / g->width[0] * g->room[0] * words, *b = panels[1] + (j - begin[1]) * words;
                    float *c = g->c + i * g->ldc + j;
                    const int64_t m = WRPO__MIN(g->width[0], end[0] - i), n = WRPO__MIN(WRPO__(NR), end[1] - j);
#if defined(WRPO__IN_PAIRS) && defined(WRPO__TILE_DOT)
                    if (g->tiles) { WRPO__(tile_amx)(words, a, b, c, g->ldc, m, n, g->add || k > 0); continue; }
#endif
                    WRPO__(tile)(g->pair == 2, words, a, b, WRPO__(NR), c, g->ldc, m, n, g->add || k > 0);
                }
        }
    }
#if defined(WRPO__IN_PAIRS) && defined(WRPO__TILE_DOT)
    if (g->tiles) WRPO__TILE_RELEASE();
#endif
}
static void WRPO__(gemm)(void *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b, int64_t ldb, wrpo_dtype b_type,
                         int64_t m, int64_t n, int64_t k, float beta) {
    const bool at = mm == WRPO_MM_TN, bt = mm != WRPO_MM_NN && mm != WRPO_MM_TN;
    WRPO__(product) g = {.cpu = dev, .c = c, .ldc = ldc, .of = {a, b}, .ls = {at ? 1 : lda, bt ? ldb : 1}, .ks = {at ? lda : 1, bt ? 1 : ldb}, .end = {m, n}, .k = k, .pair = 1,
                         .width = {WRPO__(MR), WRPO__(NR)}, .room = {WRPO__(MS), WRPO__(NR)}, .half = b_type == WRPO_DTYPE_BF16 && !at, .add = beta != 0};
#ifdef WRPO__IN_PAIRS
    if (g.cpu->pairs && (g.half || at)) g.pair = 2, g.tiles = g.cpu->tiles;
    if (g.tiles) g.width[0] = g.room[0] = 32;
#endif
    g.thin = m <= g.width[0] && bt && !g.tiles;
    g.shared = n < m && !g.thin;
    if (k <= 0 && !g.add)
        for (int64_t i = 0; i < m; i++) memset(g.c + i * ldc, 0, (size_t)n * sizeof(float));
    const int threads = m * n * k <= 1 << 16 ? 1 : g.cpu->threads, side = g.shared, other = !side;
    /* A shared piece is as large as `packed` holds, so that there are few barriers; a task takes some lanes of the other side and
       all of the piece, or a part of it where those are few for many threads. */
    const int64_t lanes = g.end[side], across = g.end[other], panels = wrpo__div_up(across, g.width[other]);
    const int64_t strip = wrpo__strip(panels, WRPO__MIN(side ? WRPO__MB : WRPO__NB, panels / (2 * threads)), threads) * g.width[other], strips = wrpo__div_up(across, strip);
    const int64_t depth = WRPO__MAX(1, WRPO__MIN(wrpo__div_up(k, g.pair), WRPO__KC)), most = WRPO__PACKED_WORDS / (depth + 16) / g.room[side] * g.width[side];
    const int64_t piece = WRPO__(share)(&g, side, lanes, wrpo__div_up(lanes, most));
    for (int64_t first = 0; first < lanes; first += piece) {
        const int64_t count = WRPO__MIN(piece, lanes - first), packing = WRPO__(share)(&g, side, count, 4 * threads);
        const int64_t part = WRPO__(share)(&g, side, count, g.thin || strips >= 2 * threads ? 1 : wrpo__div_up(2 * threads, strips)), parts = wrpo__div_up(count, part);
        g.begin[side] = first, g.end[side] = first + count;
        for (g.k0 = 0; g.k0 < k; g.k0 = g.k1) {
            const int64_t room = wrpo__div_up(count, g.width[side]) * g.room[side];
            g.k1 = g.k0 + WRPO__(kblock)(k, g.k0, g.pair);
            while (g.k1 < k && WRPO__(words)(&g, g.k1 - g.k0 + WRPO__(kblock)(k, g.k1, g.pair)) * room <= WRPO__PACKED_WORDS) g.k1 += WRPO__(kblock)(k, g.k1, g.pair);
            WRPO__PARFOR(WRPO__MIN(threads, wrpo__cpu_team(g.cpu, count * (g.k1 - g.k0))))
            for (int64_t i = 0; i < count; i += packing) WRPO__(gemm_share)(&g, first + i, WRPO__MIN(packing, count - i));
            WRPO__PARFOR(threads)
            for (int64_t t = 0; t < parts * strips; t++) {
                int64_t begin[2], end[2];
                begin[side] = first + t / strips * part, end[side] = WRPO__MIN(first + count, begin[side] + part);
                begin[other] = t % strips * strip, end[other] = WRPO__MIN(across, begin[other] + strip);
                WRPO__(gemm_task)(&g, begin, end);
            }
        }
    }
}

/* ---- attention ----
   Blocked, with a running maximum and sum (Dao et al. 2022). Everything is transposed: a score tile is [key][lane], a lane
   being one query row of one head; so maxima, sums and scalings go down the columns, lane by lane, and no number ever
   crosses lanes. The query heads that share a key/value head are lanes of the same tiles: lane i of a segment is row i / share
   and head i % share of its group. With K and V tiles packed as A panels and lanes as B panels, all products are gemm's tile:
     s[key][lane] = K q            o[d][lane] += V' p[key][lane]
   A query sees keys at positions up to its own and, with a window, less than that far back; prefix and own rows are two ranges,
   and key tiles are cut from the start of each. A tile or a key that a lane does not see changes none of its bits: p is 0 there.

   Backward, with delta = sum_i do o and p = exp(s - lse):
     dp = V do,  ds = p (dp - delta) (times 1 - (s/softcap)^2)
     dq[d][lane] += K' ds          dk[key][d] += ds q          dv[key][d] += p do
   in two passes that recompute s and dp: one task owns some lanes, or some keys, and nothing is added across tasks.
   Where bfloat16 is multiplied (cpu->pairs), every factor is packed in words of two steps: `pair` steps of d, keys or lanes to a word. */
enum { WRPO__(BK) = WRPO__(MR) * (WRPO__(MR) > 8 ? 8 : 16) };         /* keys per tile */
typedef struct WRPO__(lanes) {       /* lanes [first, first + count) of a segment, for key/value head g; or of `segs` siblings: */
    const wrpo_attn *a; const wrpo_seg *seg;           /* segments of one row each that have one prefix, samples of a prompt in decoding, */
    int64_t g, share, first, count, segs, pair;        /* whose lanes go through the prefix together */
} WRPO__(lanes);
/* panels of A of n lanes and kc steps; they are MS * words apart */
static void WRPO__(factor)(int64_t pair, float *dst, const float *src, int64_t ls, int64_t ks, int64_t n, int64_t kc) {
    WRPO__(pack_side)(0, pair, false, dst, WRPO__(MS) * wrpo__div_up(kc, pair), src, ls, ks, n, kc);
}
/* x[rows][width] becomes [rows / 2][width] of words, in place, for use as B; width is whole vectors; a last single row is paired with 0 */
WRPO__ROW void WRPO__(pair_rows)(int64_t pair, float *x, int64_t rows, int64_t width) {
#ifdef WRPO__IN_PAIRS
    for (int64_t r = 0; pair == 2 && r < rows; r += 2)
        for (int64_t j = 0; j < width; j += WRPO__LANES) {
            const WRPO__U a = WRPO__BITS(WRPO__LOAD(x + r * width + j)), b = r + 1 < rows ? WRPO__BITS(WRPO__LOAD(x + (r + 1) * width + j)) : (WRPO__U){0};
            WRPO__STORE(x + r / 2 * width + j, WRPO__(pair_words)(a, b, true));
        }
#else
    (void)pair, (void)x, (void)rows, (void)width;
#endif
}
static int64_t WRPO__(lane_row)(const WRPO__(lanes) *b, int64_t i) { return b->seg->begin + (b->first + i) / b->share; }
static int64_t WRPO__(lane_head)(const WRPO__(lanes) *b, int64_t i) { return b->g * b->share + (b->first + i) % b->share; }
/* the position of its query: the prefix, the keys before the first query, and on from there */
static int64_t WRPO__(lane_position)(const WRPO__(lanes) *b, int64_t i) {
    const int64_t row = (b->first + i) / b->share;
    const wrpo_seg *s = b->seg + (b->segs > 1 ? row : 0);
    return s->prefix_end - s->prefix + (s->own_end - s->own) - (s->end - s->begin) + (b->segs > 1 ? 0 : row);
}
static int64_t WRPO__(round_up)(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* The part of [key0, key0 + keys) (positions) that lanes [i, i + n) see: keys [0, *seen) of it; masked: not all of them by all lanes. */
static bool WRPO__(visible)(const WRPO__(lanes) *b, int64_t i, int64_t n, int64_t key0, int64_t keys, int64_t *seen, bool *masked) {
    const int64_t window = b->a->window;
    int64_t low = WRPO__(lane_position)(b, i), high = WRPO__(lane_position)(b, i + n - 1);
    for (int64_t j = i; b->segs > 1 && j < i + n; j++) {
        const int64_t at = WRPO__(lane_position)(b, j);
        low = WRPO__MIN(low, at), high = WRPO__MAX(high, at);
    }
    *seen = WRPO__MIN(keys, high - key0 + 1);
    *masked = low < key0 + *seen - 1 || (window > 0 && high - key0 >= window);
    return *seen > 0 && (window <= 0 || low - (key0 + keys - 1) < window);
}
/* rows[i][ld] = scale times lane i's vector of x, and packed for use as B: panel[i / NR][d / pair][NR]. Padding is 0. */
static void WRPO__(lane_vectors)(const WRPO__(lanes) *b, const float *x, int64_t ldx, float scale, float *rows, int64_t ld, float *panels) {
    const int64_t d = b->a->d, all = WRPO__(round_up)(b->count, WRPO__(NR));
    for (int64_t i = 0; i < all; i++) {
        const int64_t have = i < b->count ? d : 0, ahead = i + 8;
        if (ahead < b->count) {          /* the next row is far away, no machine foresees it */
            const float *next = x + WRPO__(lane_row)(b, ahead) * ldx + WRPO__(lane_head)(b, ahead) * d;
            for (int64_t j = 0; j < d; j += 16) WRPO__PREFETCH(next + j, 0);
        }
        if (have) WRPO__(scaled)(rows + i * ld, scale, x + WRPO__(lane_row)(b, i) * ldx + WRPO__(lane_head)(b, i) * d, d);
        memset(rows + i * ld + have, 0, (size_t)(ld - have) * sizeof *rows);
    }
    WRPO__(pack_side)(1, b->pair, false, panels, wrpo__div_up(d, b->pair) * WRPO__(NR), rows, ld, 1, all, d);
}
/* the way back: lane i's vector of y = scale[i] times column i % NR of t[i / NR][padded d][NR] */
WRPO__ROW void WRPO__(lane_results)(const WRPO__(lanes) *b, float *y, int64_t ldy, const float *t, const float *scale) {
    const int64_t d = b->a->d, size = WRPO__(round_up)(d, WRPO__(MR)) * WRPO__(NR);
    for (int64_t i = 0; i < b->count; i += WRPO__LANES)
        for (int64_t j = 0; j < d; j += WRPO__LANES) {
            const float *in = t + i / WRPO__(NR) * size + i % WRPO__(NR);
            WRPO__V x[WRPO__LANES];
            for (int64_t r = 0; r < WRPO__LANES; r++) x[r] = j + r < d ? WRPO__LOAD(in + (j + r) * WRPO__(NR)) : (WRPO__V){0};
            WRPO__(transpose)(x);
            for (int64_t r = 0; r < WRPO__MIN(WRPO__LANES, b->count - i); r++)
                WRPO__(put)(y + WRPO__(lane_row)(b, i + r) * ldy + WRPO__(lane_head)(b, i + r) * d + j, d - j, WRPO__SET(scale[i + r]) * x[r]);
        }
}
/* c[m,n] = or += a b over kc steps: a in panels `next` apart, b[kc / pair][ldb]; c has room for whole tiles, in rows and columns */
static void WRPO__(panels)(int64_t pair, int64_t m, int64_t n, int64_t kc, const float *a, int64_t next, const float *b, int64_t ldb, float *c, int64_t ldc, bool add) {
    for (int64_t j = 0; j < n; j += WRPO__(NR))
        for (int64_t i = 0; i < m; i += WRPO__(MR))
            WRPO__(tile)(pair == 2, wrpo__div_up(kc, pair), a + i / WRPO__(MR) * next, b + j, ldb, c + i * ldc + j, ldc, WRPO__(MR), WRPO__(NR), add);
}
/* one vector of scores of key `key`; at: the queries' positions, both counted from the tile's first key */
WRPO__INLINE WRPO__V WRPO__(masked)(WRPO__V s, float key, WRPO__V at, float window) {
    const WRPO__V never = WRPO__SET(-INFINITY);
    s = WRPO__PICK(WRPO__LESS(at, WRPO__SET(key)), never, s);
    return WRPO__PICK(WRPO__LESS(at - key, WRPO__SET(window)), s, never);
}
/* Scores s[keys][NR] become e^(s - m); m and l, the running maximum and sum, are brought up to date; rescale = e^(old m - m). */
WRPO__ROW void WRPO__(softmax_tile)(float *s, int64_t keys, const float *at, float window, bool masked, float softcap, float *m, float *l, float *rescale) {
    WRPO__V old[WRPO__(NV)], top[WRPO__(NV)], sum[WRPO__(NV)];
    WRPO__UNROLL
    for (int j = 0; j < WRPO__(NV); j++) old[j] = top[j] = WRPO__LOAD(m + j * WRPO__LANES), sum[j] = (WRPO__V){0};
    for (int64_t k = 0; k < keys; k++) {
        WRPO__UNROLL
        for (int j = 0; j < WRPO__(NV); j++) {
            float *p = s + k * WRPO__(NR) + j * WRPO__LANES;
            WRPO__V x = WRPO__LOAD(p);
            if (softcap > 0) x = WRPO__(cap)(x, softcap);
            if (masked) x = WRPO__(masked)(x, (float)k, WRPO__LOAD(at + j * WRPO__LANES), window);
            if (masked || softcap > 0) WRPO__STORE(p, x);
            top[j] = WRPO__(max)(top[j], x);
        }
    }
    for (int64_t k = 0; k < keys; k++) {
        WRPO__UNROLL
        for (int j = 0; j < WRPO__(NV); j++) {
            float *p = s + k * WRPO__(NR) + j * WRPO__LANES;
            WRPO__V e = WRPO__(exp)(WRPO__LOAD(p) - top[j]);
            sum[j] += e;
            WRPO__STORE(p, e);
        }
    }
    for (int j = 0; j < WRPO__(NV); j++) {
        WRPO__V f = WRPO__(exp)(old[j] - top[j]);
        WRPO__STORE(l + j * WRPO__LANES, WRPO__FMA(WRPO__LOAD(l + j * WRPO__LANES), f, sum[j]));
        WRPO__STORE(m + j * WRPO__LANES, top[j]);
        WRPO__STORE(rescale + j * WRPO__LANES, f);
    }
}
WRPO__ROW void WRPO__(rescale_tile)(float *o, const float *factor, int64_t rows) {
    WRPO__V f[WRPO__(NV)];
    for (int j = 0; j < WRPO__(NV); j++) f[j] = WRPO__LOAD(factor + j * WRPO__LANES);
    for (int64_t i = 0; i < rows; i++)
        for (int j = 0; j < WRPO__(NV); j++) {
            float *p = o + i * WRPO__(NR) + j * WRPO__LANES;
            WRPO__STORE(p, WRPO__LOAD(p) * f[j]);
        }
}
/* The backward's: s becomes p = e^(s - lse), dp becomes ds. */
WRPO__ROW void WRPO__(softmax_tile_bwd)(float *s, float *dp, int64_t keys, const float *at, float window, bool masked, float softcap,
                                        const float *lse, const float *delta) {
    for (int64_t k = 0; k < keys; k++)
        for (int j = 0; j < WRPO__(NV); j++) {
            float *ps = s + k * WRPO__(NR) + j * WRPO__LANES, *pd = dp + k * WRPO__(NR) + j * WRPO__LANES;
            WRPO__V x = WRPO__LOAD(ps), slope = WRPO__SET(1.0f);
            if (softcap > 0) {
                x = WRPO__(cap)(x, softcap);
                slope = WRPO__FMA(x / -softcap, x / softcap, slope);
            }
            if (masked) x = WRPO__(masked)(x, (float)k, WRPO__LOAD(at + j * WRPO__LANES), window);
            x = WRPO__(exp)(x - WRPO__LOAD(lse + j * WRPO__LANES));
            WRPO__STORE(ps, x);
            WRPO__STORE(pd, x * (WRPO__LOAD(pd) - WRPO__LOAD(delta + j * WRPO__LANES)) * slope);
        }
}
/* groups of NR lanes that a task takes: 8, or as many as its scratch has room for */
static int64_t WRPO__(lane_groups)(int64_t fixed, int64_t each) {
    return WRPO__MAX(1, WRPO__MIN(8, (WRPO__THREAD_FLOATS - fixed) / each));
}
static void WRPO__(attention_task)(const wrpo__cpu *cpu, const WRPO__(lanes) *b, float *o, float *lse, const float *q, const float *k, const float *v) {
    enum { NR = WRPO__(NR), MR = WRPO__(MR), MS = WRPO__(MS), BK = WRPO__(BK) };
    const wrpo_attn *a = b->a;
    const int64_t d = a->d, dm = WRPO__(round_up)(d, MR), groups = wrpo__div_up(b->count, NR), pair = b->pair, dw = wrpo__div_up(d, pair);
    float *at = wrpo__cpu_scratch(cpu), *m = at + NR, *l = m + groups * NR, *f = l + groups * NR, *s = f + NR;
    float *keys = s + BK * NR, *values = keys + BK / MR * MS * d, *queries = values + dm / MR * MS * BK, *out = queries + groups * NR * d;
    WRPO__(lane_vectors)(b, q, a->ldq, a->scale, out, d, queries);             /* out is free as yet */
    for (int64_t i = 0; i < groups * NR; i++) m[i] = -FLT_MAX, l[i] = 0;
    memset(out, 0, (size_t)(groups * NR * dm) * sizeof *out);
    const int64_t shared = b->seg->prefix_end - b->seg->prefix;
    const float window = a->window > 0 ? (float)a->window : INFINITY;
    for (int64_t range = 0; range <= b->segs; range++) {                       /* the prefix; the own keys of each segment, for its lanes */
        const bool own = range > 0, one = own && b->segs > 1;
        const wrpo_seg *seg = b->seg + (own ? range - 1 : 0);
        const int64_t begin = own ? seg->own : seg->prefix, end = own ? seg->own_end : seg->prefix_end;
        const int64_t from = one ? WRPO__MAX((range - 1) * b->share - b->first, 0) : 0, to = one ? WRPO__MIN(range * b->share - b->first, b->count) : b->count;
        for (int64_t t = begin; t < end && from < to; t += BK) {
            const int64_t n = WRPO__MIN(BK, end - t), key0 = (own ? shared : 0) + t - begin;
            int64_t seen;
            bool masked;
            if (!WRPO__(visible)(b, from, to - from, key0, n, &seen, &masked)) continue;
            WRPO__(factor)(pair, keys, k + t * a->ldkv + b->g * d, a->ldkv, 1, n, d);
            WRPO__(factor)(pair, values, v + t * a->ldkv + b->g * d, 1, a->ldkv, d, n);
            for (int64_t i = from / NR; i * NR < to; i++) {
                const int64_t lane0 = WRPO__MAX(from, i * NR), lanes = WRPO__MIN(i * NR + NR, to) - lane0;
                if (!WRPO__(visible)(b, lane0, lanes, key0, n, &seen, &masked)) continue;
                for (int64_t j = 0; j < NR; j++) {     /* a sibling's lanes see nothing; behind the last lane is padding */
                    const int64_t lane = i * NR + j;
                    at[j] = one && (lane < lane0 || lane >= lane0 + lanes) ? -1 : (float)(WRPO__(lane_position)(b, WRPO__MIN(lane, lane0 + lanes - 1)) - key0);
                }
                WRPO__(panels)(pair, seen, NR, d, keys, MS * dw, queries + i * NR * dw, NR, s, NR, false);
                WRPO__(softmax_tile)(s, seen, at, window, masked || one, a->softcap, m + i * NR, l + i * NR, f);
                WRPO__(rescale_tile)(out + i * NR * dm, f, d);
                WRPO__(pair_rows)(pair, s, seen, NR);
                WRPO__(panels)(pair, d, NR, seen, values, MS * wrpo__div_up(n, pair), s, NR, out + i * NR * dm, NR, true);
            }
        }
    }
    for (int64_t i = 0; i < b->count; i++) {
        lse[WRPO__(lane_row)(b, i) * a->H + WRPO__(lane_head)(b, i)] = m[i] + logf(l[i]);
        l[i] = 1 / l[i];
    }
    WRPO__(lane_results)(b, o, a->ldo, out, l);
}
/* p and ds of a group of lanes and a tile of keys, both [key][NR]; keys that no lane of the group sees get zeros up to n */
static void WRPO__(attention_weights)(const wrpo_attn *a, int64_t pair, int64_t n, int64_t seen, bool masked, const float *keys, const float *values,
                                      const float *queries, const float *d_outs, const float *at, const float *lse, const float *delta, float *p, float *ds) {
    enum { NR = WRPO__(NR), MS = WRPO__(MS) };
    const int64_t next = MS * wrpo__div_up(a->d, pair);
    WRPO__(panels)(pair, seen, NR, a->d, keys, next, queries, NR, p, NR, false);
    WRPO__(panels)(pair, seen, NR, a->d, values, next, d_outs, NR, ds, NR, false);
    WRPO__(softmax_tile_bwd)(p, ds, seen, at, a->window > 0 ? (float)a->window : INFINITY, masked, a->softcap, lse, delta);
    memset(p + seen * NR, 0, (size_t)((n - seen) * NR) * sizeof *p);
    memset(ds + seen * NR, 0, (size_t)((n - seen) * NR) * sizeof *ds);
}
/* What the backward knows of a lane besides its vectors: position, lse and delta, in [group][3][NR]. Padded lanes have zeros. */
static void WRPO__(lane_numbers)(const WRPO__(lanes) *b, const float *lse, const float *delta, float *x) {
    for (int64_t i = 0; i < WRPO__(round_up)(b->count, WRPO__(NR)); i++) {
        float *y = x + i / WRPO__(NR) * 3 * WRPO__(NR) + i % WRPO__(NR);
        const int64_t lane = WRPO__MIN(i, b->count - 1), j = WRPO__(lane_row)(b, lane) * b->a->H + WRPO__(lane_head)(b, lane);
        y[0] = (float)WRPO__(lane_position)(b, lane);
        y[WRPO__(NR)] = i < b->count ? lse[j] : 0;
        y[2 * WRPO__(NR)] = i < b->count ? delta[j] : 0;
    }
}
static void WRPO__(attention_dq_task)(const wrpo__cpu *cpu, const WRPO__(lanes) *b, float *dq, const float *d_o, const float *lse, const float *delta,
                                      const float *q, const float *k, const float *v) {
    enum { NR = WRPO__(NR), MR = WRPO__(MR), MS = WRPO__(MS), BK = WRPO__(BK) };
    const wrpo_attn *a = b->a;
    const int64_t d = a->d, dm = WRPO__(round_up)(d, MR), groups = wrpo__div_up(b->count, NR), shared = b->seg->prefix_end - b->seg->prefix;
    const int64_t pair = b->pair, dw = wrpo__div_up(d, pair);
    float *at = wrpo__cpu_scratch(cpu), *numbers = at + NR, *p = numbers + groups * 3 * NR, *ds = p + BK * NR, *keys = ds + BK * NR;
    float *values = keys + BK / MR * MS * d, *across = values + BK / MR * MS * d, *queries = across + dm / MR * MS * BK;
    float *d_outs = queries + groups * NR * d, *out = d_outs + groups * NR * d;
    WRPO__(lane_vectors)(b, q, a->ldq, a->scale, out, d, queries);
    WRPO__(lane_vectors)(b, d_o, a->ldo, 1, out, d, d_outs);
    WRPO__(lane_numbers)(b, lse, delta, numbers);
    memset(out, 0, (size_t)(groups * NR * dm) * sizeof *out);
    for (int own = 0; own < 2; own++) {
        const int64_t begin = own ? b->seg->own : b->seg->prefix, end = own ? b->seg->own_end : b->seg->prefix_end;
        for (int64_t t = begin; t < end; t += BK) {
            const int64_t n = WRPO__MIN(BK, end - t), key0 = (own ? shared : 0) + t - begin;
            int64_t seen;
            bool masked;
            if (!WRPO__(visible)(b, 0, b->count, key0, n, &seen, &masked)) continue;
            WRPO__(factor)(pair, keys, k + t * a->ldkv + b->g * d, a->ldkv, 1, n, d);
            WRPO__(factor)(pair, values, v + t * a->ldkv + b->g * d, a->ldkv, 1, n, d);
            WRPO__(factor)(pair, across, k + t * a->ldkv + b->g * d, 1, a->ldkv, d, n);
            for (int64_t i = 0; i < groups; i++) {
                const float *x = numbers + i * 3 * NR;
                if (!WRPO__(visible)(b, i * NR, WRPO__MIN(NR, b->count - i * NR), key0, n, &seen, &masked)) continue;
                for (int64_t j = 0; j < NR; j++) at[j] = x[j] - (float)key0;
                WRPO__(attention_weights)(a, pair, seen, seen, masked, keys, values, queries + i * NR * dw, d_outs + i * NR * dw, at, x + NR, x + 2 * NR, p, ds);
                WRPO__(pair_rows)(pair, ds, seen, NR);
                WRPO__(panels)(pair, d, NR, seen, across, MS * wrpo__div_up(n, pair), ds, NR, out + i * NR * dm, NR, true);
            }
        }
    }
    for (int64_t i = 0; i < b->count; i++) numbers[i] = a->scale;
    WRPO__(lane_results)(b, dq, a->ldq, out, numbers);
}
/* dk and dv of rows [t, t + n) of segment `home`: from its own lanes and from those of every segment that has the rows as prefix, in order */
static void WRPO__(attention_dkv_task)(const wrpo__cpu *cpu, const wrpo_attn *a, int64_t pair, int64_t home, int64_t t, int64_t n, int64_t g, float *dk, float *dv,
                                       const float *d_o, const float *lse, const float *delta, const float *q, const float *k, const float *v) {
    enum { NR = WRPO__(NR), MR = WRPO__(MR), MS = WRPO__(MS), BK = WRPO__(BK) };
    const int64_t d = a->d, dn = WRPO__(round_up)(d, NR), panels = BK / MR * MS, dw = wrpo__div_up(d, pair);
    const int64_t groups = WRPO__(lane_groups)(2 * panels * d + 2 * (BK + MR) * dn + 2 * BK * NR + NR, (2 * d + 2 * dn + 3 + 2 * panels) * NR), block = groups * NR;
    float *at = wrpo__cpu_scratch(cpu), *numbers = at + NR, *p = numbers + 3 * block, *ds = p + BK * NR, *keys = ds + BK * NR, *values = keys + panels * d;
    float *dks = values + panels * d, *dvs = dks + (BK + MR) * dn, *queries = dvs + (BK + MR) * dn, *d_outs = queries + block * d;
    float *q_rows = d_outs + block * d, *do_rows = q_rows + block * dn, *p_packed = do_rows + block * dn, *ds_packed = p_packed + panels * block;
    memset(dks, 0, (size_t)(2 * (BK + MR) * dn) * sizeof *dks);
    for (int64_t s = 0; s < a->n_segs; s++) {
        const wrpo_seg *seg = &a->segs[s];
        const int64_t first = s == home ? t : WRPO__MAX(t, seg->prefix), last = s == home ? t + n : WRPO__MIN(t + n, seg->prefix_end), count = last - first;
        const int64_t shared = seg->prefix_end - seg->prefix, key0 = s == home ? shared + t - seg->begin : first - seg->prefix;
        if (count <= 0) continue;
        WRPO__(factor)(pair, keys, k + first * a->ldkv + g * d, a->ldkv, 1, count, d);
        WRPO__(factor)(pair, values, v + first * a->ldkv + g * d, a->ldkv, 1, count, d);
        WRPO__(lanes) b = {a, seg, g, a->H / a->G, 0, 0, 1, pair};
        const int64_t all = (seg->end - seg->begin) * b.share;
        for (; b.first < all; b.first += block) {
            int64_t seen, begin = -1, end = 0;        /* groups that see any of the keys */
            bool masked;
            b.count = WRPO__MIN(block, all - b.first);
            for (int64_t i = 0; i < b.count; i += NR)
                if (WRPO__(visible)(&b, i, WRPO__MIN(NR, b.count - i), key0, count, &seen, &masked)) begin = begin < 0 ? i : begin, end = i + NR;
            if (begin < 0) continue;
            WRPO__(lane_vectors)(&b, q, a->ldq, a->scale, q_rows, dn, queries);
            WRPO__(lane_vectors)(&b, d_o, a->ldo, 1, do_rows, dn, d_outs);
            WRPO__(lane_numbers)(&b, lse, delta, numbers);
            WRPO__(pair_rows)(pair, q_rows, WRPO__(round_up)(b.count, NR), dn), WRPO__(pair_rows)(pair, do_rows, WRPO__(round_up)(b.count, NR), dn);
            for (int64_t i = begin; i < end; i += NR) {
                const float *x = numbers + 3 * i;
                WRPO__(visible)(&b, i, WRPO__MIN(NR, b.count - i), key0, count, &seen, &masked);
                for (int64_t j = 0; j < NR; j++) at[j] = x[j] - (float)key0;
                WRPO__(attention_weights)(a, pair, count, seen, masked, keys, values, queries + i * dw, d_outs + i * dw, at, x + NR, x + 2 * NR, p, ds);
                const int64_t next = MS * block / pair;        /* the tiles' NR lanes are steps of the keys' panels */
                WRPO__(pack_side)(0, pair, false, p_packed + i / pair * MS, next, p, NR, 1, count, NR);
                WRPO__(pack_side)(0, pair, false, ds_packed + i / pair * MS, next, ds, NR, 1, count, NR);
            }
            const int64_t from = begin / pair;
            WRPO__(panels)(pair, count, d, end - begin, p_packed + from * MS, MS * block / pair, do_rows + from * dn, dn, dvs + (first - t) * dn, dn, true);
            WRPO__(panels)(pair, count, d, end - begin, ds_packed + from * MS, MS * block / pair, q_rows + from * dn, dn, dks + (first - t) * dn, dn, true);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        memcpy(dk + (t + i) * a->ldkv + g * d, dks + i * dn, (size_t)d * sizeof(float));
        memcpy(dv + (t + i) * a->ldkv + g * d, dvs + i * dn, (size_t)d * sizeof(float));
    }
}
/* Segments [s, s + n) that go through their prefix together. */
static int64_t WRPO__(siblings)(const wrpo_attn *a, int64_t s, bool together) {
    const wrpo_seg *x = &a->segs[s];
    int64_t n = 1;
    if (!together || x->end - x->begin != 1 || x->prefix == x->prefix_end) return 1;
    while (s + n < a->n_segs && x[n].end - x[n].begin == 1 && x[n].prefix == x->prefix && x[n].prefix_end == x->prefix_end) n++;
    return n;
}
/* Tasks are numbered through all segments, `step` units of each segment's `share` per row; siblings count as one. */
static int64_t WRPO__(attention_tasks)(const wrpo_attn *a, int64_t share, int64_t step, bool together) {
    int64_t tasks = 0;
    for (int64_t s = 0, n; s < a->n_segs; s += n) {
        n = WRPO__(siblings)(a, s, together);
        tasks += wrpo__div_up((a->segs[s + n - 1].end - a->segs[s].begin) * share, step);
    }
    return tasks;
}
/* The segment of number i, counted from the end, where the long ones are; how many siblings it has, itself included. */
static int64_t WRPO__(attention_find)(const wrpo_attn *a, int64_t share, int64_t step, bool together, int64_t i, int64_t *first, int64_t *count, int64_t *n) {
    i = WRPO__(attention_tasks)(a, share, step, together) - 1 - i;
    for (int64_t s = 0;; s += *n) {
        *n = WRPO__(siblings)(a, s, together);
        const int64_t all = (a->segs[s + *n - 1].end - a->segs[s].begin) * share, tasks = wrpo__div_up(all, step);
        if (i < tasks) {
            *first = i * step;
            *count = WRPO__MIN(step, all - *first);
            return s;
        }
        i -= tasks;
    }
}
static void WRPO__(attention)(void *dev, const wrpo_attn *a, void *o, float *lse, const void *q, const void *k, const void *v) {
    enum { NR = WRPO__(NR), MR = WRPO__(MR), MS = WRPO__(MS), BK = WRPO__(BK) };
    const wrpo__cpu *cpu = dev;
    const int64_t d = a->d, dm = WRPO__(round_up)(d, MR), share = a->H / a->G;
    const int64_t step = NR * WRPO__(lane_groups)(2 * NR + BK * NR + BK / MR * MS * d + dm / MR * MS * BK, NR * (2 + d + dm));
    const int64_t tasks = WRPO__(attention_tasks)(a, share, step, true) * a->G;
    WRPO__PARFOR(wrpo__cpu_team(cpu, a->n * a->H * d))
    for (int64_t i = 0; i < tasks; i++) {
        int64_t first, count, n, s = WRPO__(attention_find)(a, share, step, true, i / a->G, &first, &count, &n);
        const WRPO__(lanes) b = {a, a->segs + s, i % a->G, share, first, count, n, cpu->pairs ? 2 : 1};
        WRPO__(attention_task)(cpu, &b, o, lse, q, k, v);
    }
}
static size_t WRPO__(attention_scratch)(void *dev, int64_t n, int64_t H, int64_t G, int64_t d) {   /* delta */
    (void)dev; (void)G; (void)d;
    return (size_t)(n * H) * sizeof(float);
}
static void WRPO__(attention_bwd)(void *dev, const wrpo_attn *a, void *dq, void *dk, void *dv, const void *d_o, const void *o, const float *lse,
                                  const void *q, const void *k, const void *v, void *scratch) {
    enum { NR = WRPO__(NR), MR = WRPO__(MR), MS = WRPO__(MS), BK = WRPO__(BK) };
    const wrpo__cpu *cpu = dev;
    float *delta = scratch;
    const int64_t d = a->d, dm = WRPO__(round_up)(d, MR), share = a->H / a->G, team = wrpo__cpu_team(cpu, a->n * a->H * d);
    const int64_t step = NR * WRPO__(lane_groups)(NR + 2 * BK * NR + 2 * BK / MR * MS * d + dm / MR * MS * BK, NR * (3 + 2 * d + dm));
    const int64_t blocks = WRPO__(attention_tasks)(a, share, step, false) * a->G, tiles = WRPO__(attention_tasks)(a, 1, BK, false) * a->G;
    WRPO__PARFOR((int)team)
    for (int64_t r = 0; r < a->n; r++)
        for (int64_t h = 0; h < a->H; h++) delta[r * a->H + h] = WRPO__(dot)((const float *)d_o + r * a->ldo + h * d, (const float *)o + r * a->ldo + h * d, d);
    WRPO__PARFOR((int)team)
    for (int64_t i = 0; i < blocks; i++) {
        int64_t first, count, n, s = WRPO__(attention_find)(a, share, step, false, i / a->G, &first, &count, &n);
        const WRPO__(lanes) b = {a, a->segs + s, i % a->G, share, first, count, 1, cpu->pairs ? 2 : 1};
        WRPO__(attention_dq_task)(cpu, &b, dq, d_o, lse, delta, q, k, v);
    }
    WRPO__PARFOR((int)team)
    for (int64_t i = 0; i < tiles; i++) {
        int64_t first, count, n, s = WRPO__(attention_find)(a, 1, BK, false, i / a->G, &first, &count, &n);
        WRPO__(attention_dkv_task)(cpu, a, cpu->pairs ? 2 : 1, s, a->segs[s].begin + first, count, i % a->G, dk, dv, d_o, lse, delta, q, k, v);
    }
}

#define WRPO__STRING2(x) #x
#define WRPO__STRING(x) WRPO__STRING2(x)
static const wrpo_backend WRPO__(backend) = {
    .name = "cpu-" WRPO__STRING(WRPO__LEVEL), .act_bytes = 4, .dtype = WRPO_DTYPE_F32, .host = true,
    .open = wrpo__cpu_open, .close = wrpo__cpu_close, .alloc = wrpo__cpu_alloc, .release = wrpo__cpu_release,
    .put = wrpo__cpu_copy, .get = wrpo__cpu_copy, .copy = wrpo__cpu_copy, .zero = wrpo__cpu_zero, .room = wrpo__cpu_room, .sync = wrpo__cpu_sync,
    .gemm = WRPO__(gemm), .embed = WRPO__(embed), .embed_bwd = WRPO__(embed_bwd), .gather = WRPO__(gather), .gather_bwd = WRPO__(gather_bwd), .scatter = WRPO__(scatter),
    .bias = WRPO__(bias), .bias_bwd = WRPO__(bias_bwd), .colsum = WRPO__(colsum), .add = WRPO__(add), .rmsnorm = WRPO__(rmsnorm), .rmsnorm_bwd = WRPO__(rmsnorm_bwd),
    .rope = WRPO__(rope), .attention = WRPO__(attention), .attention_bwd = WRPO__(attention_bwd), .attention_scratch = WRPO__(attention_scratch),
    .glu = WRPO__(glu), .glu_bwd = WRPO__(glu_bwd), .logprob = WRPO__(logprob), .logprob_bwd = WRPO__(logprob_bwd),
    .sumsq = WRPO__(sumsq), .adamw = WRPO__(adamw)
};
#undef WRPO__LEVEL
#undef WRPO__AT
#undef WRPO__FMA
#undef WRPO__IN_PAIRS
#undef WRPO__STEP
#undef WRPO__SQRT
#undef WRPO__MORE
#undef WRPO__LOW
#undef WRPO__HIGH
#undef WRPO__ALL
#endif /* WRPO__LANES */

#ifdef WRPO_IMPLEMENTATION
#undef WRPO__LANES
WRPO_API const wrpo_backend *wrpo_backend_cpu(void) {
    const char *want = getenv("WRPO_CPU");
    if (!want) want = "";
#ifdef WRPO__HAVE_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && strcmp(want, "avx2") != 0 && strcmp(want, "generic") != 0)
        return &wrpo__backend_avx512;
#endif
#ifdef WRPO__HAVE_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && strcmp(want, "generic") != 0) return &wrpo__backend_avx2;
#endif
    return &wrpo__backend_generic;
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
