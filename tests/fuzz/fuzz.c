/* One fuzz target per reader of files from outside. FUZZ_TARGET names it: json, tensors, config, adapter, tokenizer,
   template, data, state, questions. Whatever the bytes are, a reader returns or refuses them with a sentence, frees all
   that it took, and breaks no rule of C; what it accepts can be used.
     with libFuzzer        make -C tests fuzz [SECONDS_EACH=20 | RUNS=10000000]        run.sh builds and runs it
     any compiler -DFUZZ_REPLAY: a main that runs the files it is given, for AFL, honggfuzz and to look at a find:
                           FUZZ_TARGET=json afl-fuzz -i build/fuzz/json -o out -x fuzz/words.dict -- build/fuzz/replay
                           @@
                           FUZZ_TARGET=json build/fuzz/replay build/fuzz/found-json-...
                           build/fuzz/replay --seeds DIR writes DIR/TARGET/..., the inputs to begin with: those of
                           corpus/ among them, which 88_corpus.sh runs on every commit
   Files come from memory (wrpo_desc.files); only example.c's reader of questions gets a file. A context serves 4096
   inputs, of which each leaves as many blocks as it found. Runs in tests/. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
FILE *to_nowhere;                         /* the program's complaints go nowhere */
#undef stderr
#define stderr to_nowhere
#define main program_main
#define WRPO_IMPLEMENTATION
#include "example.c"
#undef main
#include "../support/counting.h"

static wrpo_ctx *ctx;
static void must(bool ok, const char *what) {
    if (ok) return;
    dprintf(2, "fuzz: %s (%s)\n", what, ctx ? wrpo_last_error(ctx)->text : "");
    abort();
}
/* ---- memory ----
   The counting allocator; large blocks are used again, since the system takes longer to map their pages than a reader
   to read. Those that wait are poisoned at their ends, for AddressSanitizer. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif
#endif
#ifndef ASAN_POISON_MEMORY_REGION
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p))
#endif
enum { LARGE = 1 << 17, LARGEST = 1 << 23, END = 1 << 14, BLOCKS = 16 };
static struct { void *p; size_t size; bool used; } blocks[BLOCKS];
static void *fuzz_alloc(size_t n, void *user) {
    int at = -1;
    const bool large = n >= LARGE && n <= LARGEST;
    for (int i = 0; large && i < BLOCKS; i++)
        if (blocks[i].p && !blocks[i].used && blocks[i].size == n) at = i;
    if (at >= 0) {
        live++;
        ASAN_UNPOISON_MEMORY_REGION(blocks[at].p, END);
        ASAN_UNPOISON_MEMORY_REGION((char *)blocks[at].p + n - END, END);
    } else {
        void *p = counting_alloc(n, user);
        for (int i = 0; large && i < BLOCKS && at < 0; i++)
            if (!blocks[i].p) at = i, blocks[i].p = p, blocks[i].size = n;
        if (at < 0) return p;
    }
    blocks[at].used = true;
    return blocks[at].p;
}
static void fuzz_free(void *p, void *user) {
    for (int i = 0; p && i < BLOCKS; i++)
        if (blocks[i].p == p) {
            must(blocks[i].used, "a block is freed twice");
            blocks[i].used = false;
            live--;
            ASAN_POISON_MEMORY_REGION(p, END);
            ASAN_POISON_MEMORY_REGION((char *)p + blocks[i].size - END, END);
            return;
        }
    counting_free(p, user);
}
/* ---- files in memory ---- */
enum { FILES = 16 };
static struct { const char *path; const void *data; size_t size; } files[FILES];
static int n_files;
static void put(const char *path, const void *data, size_t size) {
    int i = 0;
    while (i < n_files && strcmp(files[i].path, path)) i++;
    must(i < FILES, "too many files");
    n_files += i == n_files;
    files[i].path = path, files[i].data = data, files[i].size = size;
}
static const void *memory_open(const char *path, size_t *size, void **handle, void *user) {
    (void)user, (void)handle;
    for (int i = 0; i < n_files; i++)
        if (!strcmp(files[i].path, path)) return *size = files[i].size, files[i].data;
    return NULL;
}
/* A tokenizer whose tokens are the bytes. */
static void put_tokenizer(void) {
    static const char config[] = "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";
    static const char chat[] = "{% for m in messages %}<s>{{ m.role + '\\n' + m.content }}</s>{% endfor %}"
                               "{% if add_generation_prompt %}<s>assistant\n{% endif %}";
    static char text[8000];
    size_t n = (size_t)snprintf(text, sizeof text, "{\"version\":\"1.0\",\"added_tokens\":[");
    for (int i = 0; i < 2; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                              "\"normalized\":false,\"special\":true}", i ? "," : "", 256 + i, i ? "</s>" : "<s>");
    n += (size_t)snprintf(text + n, sizeof text - n,
                          "],\"normalizer\":null,\"pre_tokenizer\":null,\"post_processor\":null,"
                          "\"decoder\":{\"type\":\"ByteFallback\"},"
                          "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"merges\":[],\"vocab\":{");
    for (int b = 0; b < 256; b++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"<0x%02X>\":%d", b ? "," : "", (unsigned)b, b);
    n += (size_t)snprintf(text + n, sizeof text - n, "}}}");
    put("t/tokenizer.json", text, n);
    put("t/tokenizer_config.json", config, sizeof config - 1);
    put("t/chat_template.jinja", chat, sizeof chat - 1);
}
static void open_ctx(bool with_files) {
    wrpo_desc desc = {.backend = wrpo_backend_plain(), .threads = 1,
                      .memory = {fuzz_alloc, fuzz_free, NULL}};
    if (with_files) desc.files.open = memory_open;
    must(!wrpo_open(&desc, &ctx), "wrpo_open");
}
/* A refusal has a sentence. */
static bool taken(wrpo_result r) {
    must(r == WRPO_OK || wrpo_last_error(ctx)->text[0], "an error without a sentence");
    must(r != WRPO_E_MEMORY, "no memory");
    return r == WRPO_OK;
}

/* ---- the targets ---- */
/* What was parsed is written as text that is parsed to the same text. */
static void run_json(const char *data, size_t size) {
    wrpo_json *root, *again;
    char *text, *twice;
    if (!taken(wrpo_json_parse(ctx, "input", data, size, &root))) return;
    must(!wrpo_json_text(ctx, root, &text), "a value cannot be written");
    must(!wrpo_json_parse(ctx, "text", text, strlen(text), &again), "what was written cannot be read");
    must(!wrpo_json_text(ctx, again, &twice) && !strcmp(text, twice), "written twice, the text differs");
    wrpo_free(ctx, text), wrpo_free(ctx, twice);
    wrpo_json_free(ctx, root), wrpo_json_free(ctx, again);
}
#define SHARD "\x40\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}          1234"
_Static_assert(sizeof SHARD - 1 == 8 + 0x40 + 4, "the header has 64 bytes");
/* A safetensors file; what begins with { is the index of shards, of which one is there. */
static void run_tensors(const char *data, size_t size) {
    const bool index = size && data[0] == '{';
    put("d/model-00001-of-00001.safetensors", SHARD, sizeof SHARD - 1);
    put(index ? "d/model.safetensors.index.json" : "d.safetensors", data, size);
    wrpo_tensors *t;
    if (!taken(wrpo_tensors_open(ctx, index ? "d" : "d.safetensors", &t))) return;
    volatile unsigned sum = 0;                         /* every byte can be read */
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        const wrpo_tensor_info *info = wrpo_tensors_at(t, i);
        must(wrpo_tensors_find(t, info->name) == info, "a tensor is not found by its name");
        for (size_t b = 0; b < info->bytes; b++) sum += ((const unsigned char *)info->data)[b];
    }
    (void)sum;
    wrpo_tensors_close(t);
}
/* What a config asks for can be added up. */
static void run_config(const char *data, size_t size) {
    put("config.json", data, size);
    wrpo_config config;
    wrpo_bytes bytes;
    if (!taken(wrpo_config_load(ctx, "config.json", &config))) return;
    const wrpo_train_desc desc = {.batch_size = 1};
    const wrpo_result r = wrpo_train_bytes(ctx, &config, NULL, &desc, NULL, &bytes);
    must(r == WRPO_OK || wrpo_last_error(ctx)->text[0], "an error without a sentence");
}
/* What is kept from input to input: it takes longer to make than an input to read. */
static struct { wrpo_tokenizer *tokenizer; wrpo_model *model; wrpo_data *data; } kept;
static const char tiny_config[] =
    "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":7,\"hidden_size\":4,"
    "\"intermediate_size\":4,\"num_hidden_layers\":1,\"num_attention_heads\":1,\"num_key_value_heads\":1,"
    "\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,\"hidden_act\":\"silu\",\"tie_word_embeddings\":true}";
static const int32_t tiny_ids[4] = {1, 2, 3, 4};
/* A tiny model, the same each time. */
static wrpo_model *tiny_model(void) {
    static wrpo_config config;
    wrpo_model *model;
    if (!config.vocab_size) {
        put("config.json", tiny_config, sizeof tiny_config - 1);
        must(!wrpo_config_load(ctx, "config.json", &config), "the config of a model");
    }
    must(!wrpo_model_new(ctx, &config, 1, &model), "a model");
    return model;
}
static const char tiny_adapter_config[] =
    "{\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":2,\"target_modules\":[\"q_proj\",\"v_proj\",\"down_proj\"]}";
static char tiny_adapter[2000];
static size_t tiny_adapter_size;
/* The tensors that this config asks for. */
static void make_tiny_adapter(void) {
    static const char *const linear[] = {"mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"};
    const float x = 0.5f;
    size_t n = (size_t)sprintf(tiny_adapter + 8, "{\"__metadata__\":{\"format\":\"pt\"}") + 8, at = 0;
    for (int i = 0; i < 3; i++)
        for (int b = 0; b < 2; b++) {
            n += (size_t)sprintf(tiny_adapter + n, ",\"base_model.model.model.layers.0.%s.lora_%c.weight\":{\"dtype\":"
                                 "\"F32\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}", linear[i], "AB"[b],
                                 b ? 4 : 1, b ? 1 : 4, at, at + 16);
            at += 16;
        }
    tiny_adapter[n++] = '}';
    while (n % 8) tiny_adapter[n++] = ' ';
    memcpy(tiny_adapter, &(uint64_t){n - 8}, 8);
    for (size_t i = 0; i < at; i += 4, n += 4) memcpy(tiny_adapter + n, &x, 4);
    tiny_adapter_size = n;
}
/* adapter_config.json, or, where it does not begin with {, adapter_model.safetensors. What is taken can be used. */
static void run_adapter(const char *data, size_t size) {
    const bool is_config = size && data[0] == '{';
    float hidden[4 * 4];
    put("a/adapter_config.json", is_config ? data : tiny_adapter_config,
        is_config ? size : sizeof tiny_adapter_config - 1);
    put("a/adapter_model.safetensors", is_config ? tiny_adapter : data, is_config ? tiny_adapter_size : size);
    wrpo_model *model = tiny_model();
    if (taken(wrpo_adapter_load(model, "a")))
        must(!wrpo_hidden(model, tiny_ids, 4, hidden, NULL), "a model with an adapter");
    wrpo_model_free(model);
}
static const char sample_text[] =
    "Hello, w\xC3\xB6rld!  12345 <s>don't</s>\n\n\t\xE4\xBD\xA0\xE5\xA5\xBD \xF0\x9F\x98\x80 a\xCC\x81";
static void run_tokenizer(const char *data, size_t size) {
    put("t/tokenizer.json", data, size);
    wrpo_tokenizer *tok;
    if (!taken(wrpo_tokenizer_load(ctx, "t", &tok))) return;
    for (unsigned flags = 0; flags < 4; flags++) {
        int32_t *ids;
        int64_t count;
        char *text;
        size_t bytes;
        if (!taken(wrpo_tokenizer_encode(tok, sample_text, sizeof sample_text - 1, flags, &ids, &count))) continue;
        for (int64_t i = 0; i < count; i++) must(ids[i] >= 0 && ids[i] < wrpo_tokenizer_size(tok), "no such id");
        if (taken(wrpo_tokenizer_decode(tok, ids, count, flags & 1, &text, &bytes))) wrpo_free(ctx, text);
        wrpo_free(ctx, ids);
    }
    wrpo_tokenizer_free(tok);
}
static void run_template(const char *data, size_t size) {
    static const char messages[] =
        "[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\" Hi <there> \"},"
        "{\"role\":\"assistant\",\"content\":\"Hello.\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{"
        "\"x\":[1,2.5]}}}]},"
        "{\"role\":\"tool\",\"content\":\"3\"},{\"role\":\"user\",\"content\":\"B\xC3\xA4r\"}]";
    static const char kwargs[] =
        "{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],\"n\":7,\"s\":\"a,b\"}";
    wrpo_json *list, *more;
    if (wrpo__valid_utf8(data, size) < size) return;   /* wrpo_tokenizer_load refuses it */
    wrpo_tokenizer tok = *kept.tokenizer;              /* with an arena of its own, and this template */
    tok.arena = wrpo__arena_new(ctx);
    tok.chat[0] = (wrpo__template){.text = data, .size = size};
    must(!wrpo_json_parse(ctx, "messages", messages, sizeof messages - 1, &list), "messages");
    must(!wrpo_json_parse(ctx, "kwargs", kwargs, sizeof kwargs - 1, &more), "kwargs");
    for (int way = 0; way < 2; way++) {
        char *text;
        size_t bytes;
        if (taken(wrpo_tokenizer_chat(&tok, list, way, way ? more : NULL, &text, &bytes))) wrpo_free(ctx, text);
    }
    wrpo_json_free(ctx, list), wrpo_json_free(ctx, more);
    wrpo__arena_free(tok.arena);
}
static void run_data(const char *data, size_t size) {
    put("d.jsonl", data, size);
    for (int way = 0; way < 4; way++) {                /* clean, authors; every turn of the assistant; packed */
        wrpo_data *records;
        const wrpo_data_desc desc = {.path = "d.jsonl",
                                     .tokenization = way == 1 ? WRPO_TOKENIZATION_AUTHORS : WRPO_TOKENIZATION_CLEAN,
                                     .max_length = 64,
                                     .max_prompt_length = 48,
                                     .sft_on = way < 2 ? WRPO_SFT_ON_ANSWERS : WRPO_SFT_ON_ASSISTANT,
                                     .packing = way == 3};
        if (!taken(wrpo_data_load(kept.tokenizer, &desc, &records))) continue;
        for (int64_t i = 0; i < wrpo_data_count(records); i++) {
            const wrpo_record r = wrpo_data_record(records, i);
            must(r.prompt_count > 0 && r.count > 0, "an empty record");
            for (int k = 0; k < r.count; k++) must(r.responses[k].count > r.responses[k].first, "an empty response");
        }
        wrpo_data_free(records);
    }
    int32_t *ids;
    int64_t count;
    must(!wrpo_tokenizer_encode(kept.tokenizer, "", 0, 0, &ids, &count), "nothing"); /* a refusal left its scratch */
    wrpo_free(ctx, ids);
}
static wrpo_data *tiny_data(void) {
    static const wrpo_tokens y[3] = {{.role = WRPO_ROLE_SOURCE, .ids = tiny_ids, .count = 3},
                                     {.role = WRPO_ROLE_TARGET, .ids = tiny_ids + 1, .count = 2},
                                     {.role = WRPO_ROLE_REJECTED, .ids = tiny_ids + 2, .count = 2}};
    const wrpo_record record = {.prompt = tiny_ids, .prompt_count = 4, .responses = y, .count = 3};
    wrpo_data *data;
    must(!wrpo_data_from_ids(ctx, &record, 1, &data), "the data of a run");
    return data;
}
static const wrpo_train_desc run_desc = {.batch_size = 1, .max_steps = 3, .learning_rate = 1e-2};
static void run_state(const char *data, size_t size) {
    wrpo_trainer *t;
    wrpo_train_desc desc = run_desc;
    desc.resume = "run";
    put("run/trainer_state.wrpo", data, size);
    if (!taken(wrpo_trainer_open(kept.model, kept.data, &desc, &t))) return;
    wrpo_trainer_free(t);
    wrpo_model_free(kept.model);                       /* its weights are those of the state */
    kept.model = tiny_model();
}
static char questions_path[64];
static void run_questions(const char *data, size_t size) {
    FILE *f = fopen(questions_path, "wb");
    must(f && fwrite(data, 1, size, f) == size && !fclose(f), questions_path);
    for (int bench = 0; bench_name(bench); bench++) {
        session z = {.ctx = ctx};
        const settings s = {.questions = questions_path, .bench = bench};
        asks q = {.name = s.questions, .bench = s.bench};
        questions_load(&z, &s, &q);
        questions_free(&z, &q);
    }
}
static const struct target { const char *name; void (*run)(const char *data, size_t size); } targets[] = {
    {"json", run_json}, {"tensors", run_tensors}, {"config", run_config}, {"adapter", run_adapter},
    {"tokenizer", run_tokenizer}, {"template", run_template}, {"data", run_data}, {"state", run_state},
    {"questions", run_questions},
};
static const struct target *target;
static void remove_questions(void) { remove(questions_path); }
static void begin(void) {
    static const char nfc[] = "{\"normalizer\":{\"type\":\"NFC\"},\"model\":{\"type\":\"BPE\",\"vocab\":{},"
                              "\"merges\":[]}}";
    static const char record[] = "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}";
    const bool state = target->run == run_state;
    open_ctx(target->run != run_questions);
    put_tokenizer();
    if (target->run == run_adapter) make_tiny_adapter();
    if (state) kept.model = tiny_model(), kept.data = tiny_data();
    if (target->run == run_data || target->run == run_template)
        must(!wrpo_tokenizer_load(ctx, "t", &kept.tokenizer), "the tokenizer");
    /* what is kept from input to input is there: Unicode's tables, a compiled template */
    target->run(nfc, sizeof nfc - 1);
    target->run(record, sizeof record - 1);
}
static void end(void) {
    wrpo_tokenizer_free(kept.tokenizer), wrpo_data_free(kept.data), wrpo_model_free(kept.model);
    wrpo_close(ctx);
    kept.tokenizer = NULL, kept.data = NULL, kept.model = NULL, ctx = NULL;
    must(live == 0, "memory is left");
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    const char *name = getenv("FUZZ_TARGET"), *base = getenv("TMPDIR");
    for (int i = 0; name && i < (int)(sizeof targets / sizeof *targets); i++)
        if (!strcmp(targets[i].name, name)) target = &targets[i];
    if (!target) { dprintf(2, "fuzz: FUZZ_TARGET names no target\n"); exit(2); }
    to_nowhere = fopen("/dev/null", "w");
    snprintf(questions_path, sizeof questions_path, "%.40s/fuzz_questions_%d", base && *base ? base : "/tmp",
             (int)getpid());
    atexit(remove_questions);
    return 0;
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static unsigned inputs;
    if (ctx && inputs++ % 4096 == 0) end();            /* a context frees all that it took, and then others begin */
    if (!ctx) begin();
    const int64_t before = live;
    target->run((const char *)data, size);
    must(live == before, "an input's memory is left");
    return 0;
}

#ifdef FUZZ_REPLAY
static char *load(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    must(f, path);
    char *text = read_all(f, size);
    fclose(f);
    return text;
}
static void seed(const char *dir, const char *name, int number, const void *data, size_t size) {
    char path[600];
    mkdir(dir, 0755);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/%s/%d", dir, name, number);
    FILE *f = fopen(path, "wb");
    must(f && fwrite(data, 1, size, f) == size && !fclose(f), path);
}
static void seed_file(const char *dir, const char *name, int number, const char *path) {
    size_t size;
    char *text = load(path, &size);
    seed(dir, name, number, text, size);
    free(text);
}
/* The lines of corpus/TARGET.txt: inputs that reach much of a reader. A byte is written as in words.dict: itself, \\ or
   \xNN. */
static void seed_corpus(const char *dir, const char *name) {
    char path[100];
    size_t size, n = 0;
    int number = 1000;
    snprintf(path, sizeof path, "fuzz/corpus/%s.txt", name);
    char *text = load(path, &size);
    for (size_t i = 0; i < size; i++) {                /* in place: it becomes shorter */
        unsigned byte = (unsigned char)text[i];
        if (byte == '\n') {
            seed(dir, name, number++, text, n);
            n = 0;
            continue;
        }
        if (byte == '\\' && i + 3 < size && sscanf(text + i, "\\x%2x", &byte) == 1) i += 3;
        else if (byte == '\\' && i + 1 < size) byte = (unsigned char)text[++i];
        text[n++] = (char)byte;
    }
    free(text);
}
/* The inputs to begin with: small files, the committed goldens, and the state of a run that is made here. */
static void write_seeds(const char *dir) {
    static const struct { const char *name, *text;
    } small[] = {
        {"json",
         "{\"a\": [1, -2.5e3, true, null, \"\\u00e9\\ud83d\\ude00\\n\"], \"b\": {}, \"c\": 12345678901234567890}"},
        {"json", "[[], [[\"x\"]], 0, 1e-400, \"\\\\\\/\"]"},
        {"tensors",
         "{\"metadata\": {\"total_size\": 4}, \"weight_map\": {\"a\": \"model-00001-of-00001.safetensors\"}}"},
        {"tokenizer",
         "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["
         "{\"type\":\"NFC\"},{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},{\"type\":\"Replace\","
         "\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]},\"pre_tokenizer\":null,"
         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"
         "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[0]}}},\"decoder\":"
         "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\\u2581\"},"
         "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \","
         "\"start\":1,\"stop\":0}]},\"model\":{\"type\":\"BPE\",\"unk_token\":\"<s>\",\"byte_fallback\":true,"
         "\"fuse_unk\":true,\"vocab\":{\"<s>\":0,\"a\":1,\"b\":2,\"ab\":3,\"\\u2581\":4},\"merges\":[\"a b\"]}}"},
        {"tokenizer",
         "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\","
         "\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,\"pattern\":{\"Regex\":"
         "\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|\\\\s+(?!\\\\S)|\\\\s+\"}},"
         "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},\"post_processor\":null,"
         "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"H\":0,\"e\":1,\"l\":2,"
         "\"o\":3,\"ll\":4},\"merges\":[[\"l\",\"l\"]]}}"},
        {"data", "{\"prompt\": \"hi\", \"chosen\": \"yes\", \"rejected\": \"no\"}\n"},
        {"data",
         "{\"prompt_id\": \"q\", \"prompt\": {\"role\": \"user\", \"content\": \"hi\"}, \"chosen\": [{\"role\": "
         "\"assistant\", "
         "\"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}], \"rejected\": [{\"role\": "
         "\"assistant\", "
         "\"content\": \"c\"}], \"weight\": 0.5}\n"},
        {"data",
         "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": "
         "\"a\"}]}\n\n"},
        {"data",
         "{\"prompt\": \"hi\", \"chosen\": [\"a\", \"b\", \"c\"], \"weights\": [1, 2], \"rejected\": \"d\", \"tools\": "
         "[],"
         " \"chat_template_kwargs\": {\"x\": 1}}\n"},
        {"data", "[{\"system\": \"s\", \"conversations\": [{\"from\": \"human\", \"value\": \"hi\"}, "
                 "{\"from\": \"gpt\", \"value\": \"yes\"}]}]"},
        {"data", "{\"instruction\": \"hi\", \"input\": \"x\", \"output\": \"yes\"}\n"},
        {"data", "{\"prompt\": \"hi\", \"pairs\": [{\"chosen\": \"a\", \"rejected\": \"b\", \"weight\": 1}]}\n"},
        {"data",
         "{\"prompt\": \"hi\", \"chosen\": [\"a\", \"b\"], \"rejected\": \"d\", \"source_logps\": {\"m\": [[-1.5, 2], "
         "[-2, 1], [-3, 1]]}}\n"},
        {"questions",
         "[{\"instruction\": \"What?\", \"output\": \"\", \"generator\": \"x\", \"dataset\": \"helpful\"}]"},
        {"questions", "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"One?\", \"Two?\"]}\n"},
        {"questions",
         "{\"question_id\": \"a\", \"category\": \"arena-hard-200\", \"cluster\": \"c\", \"turns\": [{\"content\": "
         "\"One?\"}]}\n"},
        {"questions", "{\"uid\": \"b\", \"category\": \"hard_prompt\", \"prompt\": \"One?\"}\n"},
        {"template",
         "{% set ns = namespace(x='') %}{% for m in messages %}{% if loop.first and m.role == 'system' %}{{ m.content "
         "| trim }}"
         "{% elif m['tool_calls'] is defined %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ loop.index0 ~ "
         "m['content'][1:-1] }}"
         "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}{% endif %}"},
        {"template",
         "{%- macro f(a, b=2) -%}{{ a + b }}{%- endmacro -%}{{ f(1) }}{{ tools | length }}{{ s.split(',') | join('-') "
         "}}"
         "{{ (n // 2) % 3 - 1 }}{{ {'a': [1, 2]} | items | list }}{{ raise_exception('no') if not messages }}"},
    };
    for (int i = 0; i < (int)(sizeof small / sizeof *small); i++)
        seed(dir, small[i].name, i, small[i].text, strlen(small[i].text));
    for (int i = 0; i < (int)(sizeof targets / sizeof *targets); i++) seed_corpus(dir, targets[i].name);
    seed(dir, "tensors", 90, SHARD, sizeof SHARD - 1);
    seed_file(dir, "adapter", 0, "golden/adapters/llama/adapter_config.json");
    seed_file(dir, "adapter", 1, "golden/adapters/qwen3/adapter_config.json");
    make_tiny_adapter();
    seed(dir, "adapter", 2, tiny_adapter, tiny_adapter_size);
    seed(dir, "adapter", 3, tiny_adapter_config, sizeof tiny_adapter_config - 1);
    static const char *const checkpoints[] = {"llama_f32", "qwen2_bf16_sharded", "gemma2_bf16", "phi3_bf16_sharded",
                                              "internlm2_f32"};
    for (int i = 0; i < 5; i++) {
        char path[100];
        snprintf(path, sizeof path, "golden/checkpoints/%s/config.json", checkpoints[i]);
        seed_file(dir, "config", i, path);
        snprintf(path, sizeof path, "golden/checkpoints/%s/chat_template.jinja", checkpoints[i]);
        seed_file(dir, "template", 100 + i, path);
    }
    put_tokenizer();
    seed(dir, "tokenizer", 0, files[0].data, files[0].size);
    seed_file(dir, "tokenizer", 1, "golden/checkpoints/llama_f32/tokenizer.json");
    wrpo_trainer *t;
    wrpo_metrics m;
    char path[600];
    open_ctx(true);
    put("m/config.json", tiny_config, sizeof tiny_config - 1);
    must(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = "m", .seed = 1}, &kept.model), "the model of a run");
    kept.data = tiny_data();
    must(!wrpo_trainer_new(kept.model, kept.data, &run_desc, &t) && !wrpo_trainer_step(t, &m), "a step");
    snprintf(path, sizeof path, "%s/run", dir);
    const wrpo_save_desc save = {.dir = path};
    must(!wrpo_trainer_save(t, &save), "a save");
    snprintf(path, sizeof path, "%s/run/trainer_state.wrpo", dir);
    seed_file(dir, "state", 0, path);
    wrpo_trainer_free(t);
    end();
}
int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--seeds")) return write_seeds(argv[2]), 0;
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        size_t size;
        /* exact: a sanitizer sees a read beyond */
        char *data = load(argv[i], &size), *exact = malloc(size + !size);
        must(exact, "no memory");
        memcpy(exact, data, size);
        LLVMFuzzerTestOneInput((const uint8_t *)exact, size);
        free(data), free(exact);
    }
    if (ctx) end();
    return 0;
}
#endif
