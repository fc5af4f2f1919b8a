/* Log-probs of records' responses under source models: the numbers, files merged, refusals, failing allocations; and
   InfiFPO on such files, down to the bits of dpo-norm where the model itself is the source. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/folder.h"
#include "support/counting.h"
#include "support/tiny.h"
#include <unistd.h>

static const char config_text[] = "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],"
                                  "\"vocab_size\":260,\"hidden_size\":24,\"intermediate_size\":26,"
                                  "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
                                  "\"max_position_embeddings\":200,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,"
                                  "\"initializer_range\":0.3,\"tie_word_embeddings\":true}";
static const char chatml[] =
    "\"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"";
static const char plain[] = "\"{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' .</s>' }}{% endfor %}"
                            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}\"";
#define M(text) "{\"role\": \"assistant\", \"content\": \"" text "\"}"
static const char quads[] =
    "{\"prompt_id\": \"a\", \"prompt\": \"How?\", \"chosen\": [" M("So and so.") ", " M("Thus.") "], "
    "\"rejected\": [" M("No.") "], \"rewards\": [3.0, 2.50, 1]}\n"
    "\n{\"prompt_id\": 7, \"prompt\": \"Why is that?\", \"chosen\": [" M("Because.") ", " M("It is, \\u00e9.") "], "
    "\"rejected\": [" M("Hm") "]}\r\n"
    "{\"prompt_id\": \"c\", \"prompt\": \"When\", \"chosen\": [" M("Now, then, today.") ", " M("1999") "], "
    "\"rejected\": [" M("Never ever") "]}";
static wrpo_ctx *ctx;
typedef struct source { wrpo_model *model; wrpo_tokenizer *tok; } source;
static source make(const char *template_json, uint64_t seed) {
    source s = {0};
    tiny_tokenizer(dir, template_json);
    CHECK(wrpo_tokenizer_load(ctx, dir, &s.tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = at("config.json"), .seed = seed}, &s.model) == WRPO_OK, "%s",
          wrpo_last_error(ctx)->text);
    if (!s.tok || !s.model) exit(2);
    return s;
}
static void drop(source s) {
    wrpo_model_free(s.model);
    wrpo_tokenizer_free(s.tok);
}
static wrpo_result annotate(source s, const char *name, const char *in, const char *out) {
    const wrpo_source_logps_desc d = {.in = in, .out = out, .name = name};
    return wrpo_source_logps(ctx, s.model, s.tok, &d);
}
static wrpo_data *load(wrpo_tokenizer *tok, const char *name) {
    wrpo_data *data;
    CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = at(name)}, &data) == WRPO_OK, "%s",
          wrpo_last_error(ctx)->text);
    return data;
}
static bool same_file(const char *a, const char *b) {
    size_t n, m;
    char *x = slurp(at(a), &n), *y = slurp(at(b), &m);
    const bool same = x && y && n == m && !memcmp(x, y, n);
    free(x), free(y);
    return same;
}

/* Each number is that of wrpo_logprobs in the source's own tokens; everything else of a record stays. */
static void numbers(source a, source b) {
    CHECK(annotate(a, "A", at("quads.jsonl"), at("a.jsonl")) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    CHECK(annotate(b, "B", at("a.jsonl"), at("ab.jsonl")) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    const source all[2] = {a, b};
    wrpo_data *data = load(a.tok, "ab.jsonl");
    CHECK(data && wrpo_data_count(data) == 3, "records");
    for (int s = 0; data && s < 2; s++) {
        wrpo_data *own = load(all[s].tok, "quads.jsonl");
        double logps[9];
        CHECK(wrpo_logprobs(all[s].model, own, 0, 3, logps, NULL) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        for (int i = 0; i < 3; i++) {
            const wrpo_record r = wrpo_data_record(data, i), mine = wrpo_data_record(own, i);
            CHECK(r.sources == 2 && mine.sources == 0, "record %d: %d sources", i, r.sources);
            for (int k = 0; k < 3; k++)
                CHECK(fabs(r.responses[k].source_logps[s].logp - logps[i * 3 + k]) < 1e-6 &&
                          r.responses[k].source_logps[s].tokens == mine.responses[k].count,
                      "record %d, response %d: %.9g of %lld, want %.9g of %lld", i, k,
                      r.responses[k].source_logps[s].logp, (long long)r.responses[k].source_logps[s].tokens,
                      logps[i * 3 + k], (long long)mine.responses[k].count);
        }
        if (s == 1)
            CHECK(wrpo_data_record(own, 0).responses[0].count != wrpo_data_record(data, 0).responses[0].count,
                  "both tokenizers give the same tokens: nothing is tested");
        wrpo_data_free(own);
    }
    wrpo_data_free(data);
    size_t n;
    char *text = slurp(at("ab.jsonl"), &n);
    CHECK(text && strstr(text, "{\"prompt_id\": \"a\", \"prompt\": \"How?\"") == text &&
              strstr(text, "\"rewards\": [3.0, 2.50, 1], \"source_logps\": {\"A\": [[-") &&
              strstr(text, "]], \"B\": [[-"),
          "%s", text);
    free(text);
    /* the same from files that were made side by side */
    const char *with = at("b.jsonl");
    CHECK(annotate(b, "B", at("quads.jsonl"), at("b.jsonl")) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    const wrpo_source_logps_desc merge = {.in = at("a.jsonl"), .out = at("merged.jsonl"), .with = &with, .n_with = 1};
    CHECK(wrpo_source_logps(ctx, NULL, NULL, &merge) == WRPO_OK &&
              same_file("ab.jsonl", "merged.jsonl"),
          "merged: %s", wrpo_last_error(ctx)->text);
    /* the same records as one array */
    char array[2000];
    size_t size = 0;
    for (const char *p = quads; *p; p++)
        if (*p != '\r' && !(*p == '\n' && p[1] == '\n'))
            array[++size] = *p == '\n' ? ',' : *p;
    array[0] = '[';
    array[++size] = ']';
    array[size + 1] = 0;
    tiny_put(dir, "array.json", array);
    CHECK(annotate(a, "A", at("array.json"), at("of_array.jsonl")) == WRPO_OK && same_file("a.jsonl", "of_array.jsonl"),
          "an array: %s", wrpo_last_error(ctx)->text);
}

/* The model before training as the only source: infifpo is dpo-norm, to the bits of the weights. */
static double *train(wrpo_method method, const char *file, wrpo_metrics *last) {
    source s = make(chatml, 5);
    wrpo_data *data = load(s.tok, file);
    double *sums = calloc(64, sizeof *sums);
    const wrpo_train_desc d = {.loss = {.method = method, .beta = 2, .sft_weight = 0.1}, .batch_size = 2, .epochs = 3,
                               .learning_rate = 1e-2};
    CHECK(data && wrpo_train(s.model, data, &d, last) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    for (int64_t i = 0; i < s.model->n_weights; i++)
        for (int64_t k = 0; k < s.model->weights[i].rows * s.model->weights[i].cols; k++)
            sums[i] += (double)(k % 97 + 1) * (double)((float *)s.model->weights[i].data)[k];
    wrpo_data_free(data);
    drop(s);
    return sums;
}
static void itself(void) {
    wrpo_metrics m[4];
    source s = make(chatml, 5);
    CHECK(annotate(s, "itself", at("quads.jsonl"), at("itself.jsonl")) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    drop(s);
    double *sums[4] = {train(WRPO_METHOD_DPO_NORM, "quads.jsonl", &m[0]),
                       train(WRPO_METHOD_INFIFPO, "itself.jsonl", &m[1]),
                       train(WRPO_METHOD_INFIFPO, "ab.jsonl", &m[2]),
                       train(WRPO_METHOD_INFIFPO_WRPO, "ab.jsonl", &m[3])};
    CHECK(!memcmp(sums[0], sums[1], 64 * sizeof(double)) && m[0].loss == m[1].loss,
          "infifpo with the model as its source is not dpo-norm: loss %.17g, %.17g", m[1].loss, m[0].loss);
    CHECK(memcmp(sums[0], sums[2], 64 * sizeof(double)) && memcmp(sums[2], sums[3], 64 * sizeof(double)),
          "the sources change nothing");
    CHECK(isnan(m[2].cur_alpha) && m[3].cur_alpha > 0, "alpha");
    for (int i = 0; i < 4; i++) free(sums[i]);
    /* without source_logps the record is named */
    wrpo_trainer *t;
    s = make(chatml, 5);
    wrpo_data *data = load(s.tok, "quads.jsonl");
    const wrpo_train_desc infifpo = {.loss.method = WRPO_METHOD_INFIFPO};
    CHECK(wrpo_trainer_new(s.model, data, &infifpo, &t) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "record \"a\" (line 1): the method needs \"source_logps\""),
          "%s", wrpo_last_error(ctx)->text);
    wrpo_data_free(data);
    drop(s);
}

static void refuse_data(wrpo_tokenizer *tok, const char *text, const char *says) {
    wrpo_data *data;
    put("bad.jsonl", text);
    CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = at("bad.jsonl")}, &data) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, says),
          "want \"%s\", found \"%s\"", says, wrpo_last_error(ctx)->text);
    wrpo_data_free(data);
}
#define RECORD(logps) "{\"prompt\": \"q\", \"chosen\": \"x\", \"rejected\": \"y\"" logps "}\n"
#define LOGPS(models) RECORD(", \"source_logps\": {" models "}")
static void refusals(source s) {
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2]]"), "want a pair [sum, tokens] for each of 2 responses, found 1");
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2], [-1]]"), "a pair [sum, tokens]");
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2], [0.5, 3]]"), "a log-probability of at most 0");
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2], [-1e999, 3]]"), "finite");
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2], [-1, 0]]"), "an integer from 1");
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2], [null, 3]]"), "a finite number");
    refuse_data(s.tok, LOGPS("\"A\": 3"), "A: want an array");
    refuse_data(s.tok, RECORD(", \"source_logps\": 3"), "source_logps: want an object");
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2], [-1, 3]]") RECORD(""),
                "record \"line 2\": source_logps: want 1 models, as in the first record, found 0");
    refuse_data(s.tok, RECORD("") LOGPS("\"A\": [[-1, 2], [-1, 3]]"), "want 0 models");
    refuse_data(s.tok, LOGPS("\"A\": [[-1, 2], [-1, 3]]") LOGPS("\"B\": [[-1, 2], [-1, 3]]"), "A: want an array");

    remove(at("out.jsonl"));
    CHECK(annotate(s, "A", at("a.jsonl"), at("out.jsonl")) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "found \"A\" again"),
          "%s", wrpo_last_error(ctx)->text);
    CHECK(annotate(s, NULL, at("a.jsonl"), at("out.jsonl")) == WRPO_E_ARG, "no name");
    CHECK(wrpo_source_logps(ctx, s.model, s.tok, NULL) == WRPO_E_ARG, "no desc");
    wrpo_source_logps_desc d = {.in = at("quads.jsonl"), .out = at("out.jsonl"), .name = "A", .max_length = 40};
    CHECK(wrpo_source_logps(ctx, s.model, s.tok, &d) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "of at most 40 tokens, found"),
          "%s", wrpo_last_error(ctx)->text);
    const char *with = at("other.jsonl");
    put("other.jsonl", "{\"prompt_id\": \"a\", \"source_logps\": {}}\n");
    d = (wrpo_source_logps_desc){.in = at("quads.jsonl"), .out = at("out.jsonl"), .with = &with, .n_with = 1};
    CHECK(wrpo_source_logps(ctx, NULL, NULL, &d) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "prompt_id \"7\": want it in 1 other files, found it in 0"),
          "%s", wrpo_last_error(ctx)->text);
    CHECK(access(at("out.jsonl"), F_OK) != 0, "a refused call leaves a file");
}

static void allocations(void) {
    wrpo_ctx *keep = ctx;
    const char *with = at("b.jsonl");
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &ctx) == WRPO_OK,
          "open");
    source s = make(chatml, 5);
    wrpo_tokenizer_free(s.tok);            /* its own memory grows with use: a new one each time */
    const wrpo_source_logps_desc d = {
        .in = at("quads.jsonl"), .out = at("out.jsonl"), .name = "A", .with = &with, .n_with = 1};
    const int64_t base = live;
    for (fail_at = 0; fail_at < 5000; fail_at++) {
        calls = 0;
        wrpo_result r = wrpo_tokenizer_load(ctx, dir, &s.tok);
        if (r == WRPO_OK) r = wrpo_source_logps(ctx, s.model, s.tok, &d);
        wrpo_tokenizer_free(s.tok);
        if (live != base || (r != WRPO_OK && r != WRPO_E_MEMORY))
            CHECK(false, "allocation %lld: %d %s, %lld held", (long long)fail_at, r, wrpo_last_error(ctx)->text,
                  (long long)(live - base));
        if (r == WRPO_OK) break;
        if (access(d.out, F_OK) == 0) CHECK(false, "allocation %lld: a file is left", (long long)fail_at);
    }
    CHECK(fail_at > 30 && fail_at < 5000, "%lld allocations", (long long)fail_at);
    fail_at = -1;
    wrpo_model_free(s.model);
    wrpo_close(ctx);
    ctx = keep;
}

int main(void) {
    char command[100];
    snprintf(dir, sizeof dir, "tmp_sources_%ld", (long)getpid());
    snprintf(command, sizeof command, "mkdir -p %s", dir);
    CHECK(system(command) == 0, "mkdir");
    if (wrpo_open(&(wrpo_desc){.threads = 1}, &ctx) != WRPO_OK) return 2;
    put("config.json", config_text);
    put("quads.jsonl", quads);
    source a = make(chatml, 1), b = make(plain, 2);
    numbers(a, b), itself(), refusals(a), allocations();
    drop(a), drop(b);
    CHECK(bytes_left(ctx) == sizeof(wrpo__arena), "%zu bytes still held", ctx->bytes);
    wrpo_close(ctx);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0, "rm");
    return test_end("67_sources");
}
