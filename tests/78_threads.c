/* Contexts in threads: two train side by side, one generates while another loads and reads JSON. Each must do what it
   does alone, to the bit, and share nothing with the others; `make tsan` runs this under ThreadSanitizer, without
   OpenMP, whose runtime it does not know. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>
#include "wrpo.h"
#include "support/test.h"
#include "support/folder.h"

/* mktime takes the C library's own lock, which ThreadSanitizer does not see. A library without symbols does not name
   tzset_internal. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void) { return "race:tzset_internal\ncalled_from_lib:libc.so.6\n"; }

enum { LENGTH = 6, RECORDS = 6, ROUNDS = 4 };
typedef struct work { void *(*run)(void *); int number; uint64_t result; char why[600]; } work;
static uint64_t hash(uint64_t h, const void *p, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)p)[i]) * 1099511628211u;
    return h;
}
static bool failed(work *w, wrpo_ctx *ctx, wrpo_result r) {
    if (r != WRPO_OK) snprintf(w->why, sizeof w->why, "%s", wrpo_last_error(ctx)->text);
    return r != WRPO_OK;
}
static const char llama[] = "golden/checkpoints/llama_f32", qwen[] = "golden/checkpoints/qwen2_bf16_sharded";

/* Trains the checkpoint with files and saves it. */
static void *train(void *p) {
    work *w = p;
    wrpo_ctx *ctx;
    wrpo_model *model = NULL;
    wrpo_data *data = NULL;
    wrpo_metrics last;
    int32_t ids[RECORDS][4][LENGTH];
    wrpo_tokens y[RECORDS][3];
    wrpo_record records[RECORDS];
    char out[100], path[120];
    if (wrpo_open(&(wrpo_desc){.threads = 2}, &ctx)) return NULL;
    for (int r = 0; r < RECORDS; r++) {
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < LENGTH; i++) ids[r][k][i] = 3 + (7 * r + 11 * k + (k + 2) * i * i + w->number) % 60;
        for (int k = 0; k < 3; k++)
            y[r][k] = (wrpo_tokens){.role = (wrpo_role)k, .ids = ids[r][k + 1], .count = LENGTH - k};
        records[r] = (wrpo_record){.prompt = ids[r][0], .prompt_count = LENGTH, .responses = y[r], .count = 3};
    }
    snprintf(out, sizeof out, "%s/out-%d", dir, w->number);
    const wrpo_train_desc d = {.batch_size = 2, .epochs = 2, .learning_rate = 1e-2, .out_dir = out, .save_steps = 2,
                               .save = {.dir = out}, .save_model = true};
    if (!failed(w, ctx, wrpo_model_load(ctx, &(wrpo_model_desc){.dir = llama}, &model)) &&
        !failed(w, ctx, wrpo_data_from_ids(ctx, records, RECORDS, &data)) &&
        !failed(w, ctx, wrpo_train(model, data, &d, &last))) {
        size_t size;
        snprintf(path, sizeof path, "%s/model.safetensors", out);
        char *saved = slurp(path, &size);
        w->result = hash(hash(1, &last.loss, sizeof last.loss), saved, saved ? size : 0);
        free(saved);
    }
    wrpo_data_free(data), wrpo_model_free(model), wrpo_close(ctx);
    return NULL;
}
static bool on_text(int64_t prompt, int64_t sample, const char *text, size_t size, void *user) {
    work *w = user;
    w->result = hash(w->result, text, size) + (uint64_t)(prompt + sample);
    return true;
}
static void *generate(void *p) {
    work *w = p;
    wrpo_ctx *ctx;
    wrpo_model *model = NULL;
    wrpo_tokenizer *tok = NULL;
    static const int32_t ids[LENGTH] = {5, 9, 13, 21, 34, 8};
    const wrpo_prompt prompts[2] = {{.ids = ids, .count = LENGTH}, {.ids = ids + 1, .count = 3}};
    if (wrpo_open(&(wrpo_desc){.threads = 2}, &ctx)) return NULL;
    if (!failed(w, ctx, wrpo_model_load(ctx, &(wrpo_model_desc){.dir = llama, .frozen = true}, &model)) &&
        !failed(w, ctx, wrpo_tokenizer_load(ctx, llama, &tok))) {
        const wrpo_generate_desc d = {.tokenizer = tok, .n = 3, .max_tokens = 24, .temperature = 1, .seed = 7,
                                      .on_text = on_text, .user = w};
        failed(w, ctx, wrpo_generate(model, prompts, 2, &d));
    }
    wrpo_tokenizer_free(tok), wrpo_model_free(model), wrpo_close(ctx);
    return NULL;
}
static void *load(void *p) {
    work *w = p;
    static const char text[] = "{\"a\": [1, 2.5, \"x\"], \"b\": {\"c\": null}}";
    for (int i = 0; i < ROUNDS && !w->why[0]; i++) {
        wrpo_ctx *ctx;
        wrpo_model *model = NULL;
        wrpo_tokenizer *tok = NULL;
        wrpo_json *json = NULL;
        int32_t *ids = NULL;
        int64_t count = 0;
        if (wrpo_open(&(wrpo_desc){.threads = 2}, &ctx)) return NULL;
        if (!failed(w, ctx, wrpo_model_load(ctx, &(wrpo_model_desc){.dir = i % 2 ? llama : qwen}, &model)) &&
            !failed(w, ctx, wrpo_tokenizer_load(ctx, llama, &tok)) &&
            !failed(w, ctx, wrpo_tokenizer_encode(tok, "Hello there", 11, 0, &ids, &count)) &&
            !failed(w, ctx, wrpo_json_parse(ctx, "text", text, sizeof text - 1, &json)))
            w->result = hash(w->result, ids, (size_t)count * sizeof *ids) + (uint64_t)wrpo_model_parameters(model);
        /* A failure of one context is no other's. */
        if (wrpo_config_load(ctx, "nowhere", &(wrpo_config){0}) != WRPO_E_IO || !wrpo_last_error(ctx)->text[0])
            snprintf(w->why, sizeof w->why, "a config that is nowhere loads");
        wrpo_json_free(ctx, json), wrpo_free(ctx, ids), wrpo_tokenizer_free(tok), wrpo_model_free(model);
        wrpo_close(ctx);
    }
    return NULL;
}

int main(void) {
    const char *base = getenv("TMPDIR");
    work alone[] = {{.run = train, .number = 0}, {.run = train, .number = 1}, {.run = generate}, {.run = load}};
    enum { N = sizeof alone / sizeof *alone };
    snprintf(dir, sizeof dir, "%.40s/threads_XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(dir)) return printf("78_threads: no folder\n"), 1;
    for (int i = 0; i < N; i++) {
        alone[i].run(&alone[i]);
        CHECK(!alone[i].why[0] && alone[i].result, "%d alone: %s", i, alone[i].why);
    }
    for (int round = 0; round < 3; round++) {
        work together[N];
        pthread_t threads[N];
        shell("rm -rf %s/out-%s", dir, "*");
        for (int i = 0; i < N; i++) {
            together[i] = (work){.run = alone[i].run, .number = alone[i].number};
            CHECK(pthread_create(&threads[i], NULL, together[i].run, &together[i]) == 0, "thread %d", i);
        }
        for (int i = 0; i < N; i++) {
            pthread_join(threads[i], NULL);
            CHECK(!together[i].why[0] && together[i].result == alone[i].result, "%d, beside others: %s", i,
                  together[i].why[0] ? together[i].why : "another result");
        }
    }
    shell("rm -rf %s%s", dir, "");
    return test_end("78_threads");
}
