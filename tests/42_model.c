/* Every model family against transformers in float32: per-token log-probs and gradients of golden/families (weights by
   formula), log-probs of golden/checkpoints (directories that transformers wrote). golden/families.py made them. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/golden.h"

static const char *const families[] = {
    "llama",        "llama3",    "llama3_new",     "llama_bias",   "llama_linear", "llama_yarn",   "mistral",
    "mistral_nemo", "qwen2",     "qwen2_layers",   "qwen2_window", "qwen2_yarn",   "qwen3",        "qwen3_new",
    "smollm2",      "yi",        "llama_dynamic",  "gemma2",       "gemma2_new",   "phi3",         "phi3_long",
    "phi3_partial", "internlm2", "internlm2_bias", "gemma3",       "gemma3_new",   "smollm3",      "smollm3_new",
    "olmo2",        "olmo2_new", "granite",        "granite_new",  "granite4",     "mistral_small"};
static const char *const checkpoints[] = {"llama_f32",         "qwen2_bf16_sharded", "gemma2_bf16",
                                          "phi3_bf16_sharded", "internlm2_f32",      "gemma3_bf16",
                                          "olmo2_bf16",        "granite4_bf16",      "smollm3_bf16"};

/* Worst difference of any token's log-prob. */
static double check_logps(const char *name, wrpo_model *model, const wrpo_data *data, const wrpo_json *records) {
    wrpo_ctx *ctx = model->ctx;
    double *sums = malloc((size_t)records->count * 3 * sizeof *sums), worst = 0;
    float *tokens = NULL;
    int64_t t = 0, i = 0;
    CHECK(wrpo_logprobs(model, data, 0, records->count, sums, &tokens) == WRPO_OK, "%s: %s", name,
          wrpo_last_error(ctx)->text);
    if (!tokens) return free(sums), INFINITY;
    for (const wrpo_json *record = records->child; record; record = record->next)
        for (const wrpo_json *response = golden_get(record, "logps")->child; response; response = response->next, i++) {
            double sum = 0;
            for (const wrpo_json *v = response->child; v; v = v->next, t++) {
                double d = fabs((double)tokens[t] - v->number);
                worst = test_larger(worst, d);
                sum += (double)tokens[t];
            }
            CHECK(sum == sums[i], "%s: response %lld: the sum %.17g is not that of its tokens, %.17g", name,
                  (long long)i, sums[i], sum);
        }
    CHECK(worst <= 2e-5, "%s: a token's log-prob differs by %g", name, worst);
    wrpo_free(ctx, tokens);
    free(sums);
    return worst;
}
/* Gradient of sum coef * logp, in batches of `batch` records, with `recompute` layers made again; as params. */
static float *gradients(wrpo_model *model, const wrpo_data *data, const wrpo_json *records, int64_t batch,
                        int64_t recompute) {
    wrpo_ctx *ctx = model->ctx;
    float *grads = calloc((size_t)model->count, sizeof *grads);
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__shape shape = {.rows = wrpo__workspace_rows(&model->config, data, 0, wrpo_data_count(data), 4096),
                             .chunk = 7,
                             .recompute = recompute,
                             .train = true};
        wrpo__workspace *run = wrpo__workspace_new(wrpo__current, model, &shape);
        const wrpo_json *v = records->child;
        for (int64_t at = 0; at < records->count; at += batch) {
            wrpo__pack_begin(run);
            int64_t end = WRPO__MIN(at + batch, records->count), t = 0;
            for (int64_t i = at; i < end; i++) {
                wrpo_record record = wrpo_data_record(data, i);
                wrpo__pack_record(run, &record);
            }
            wrpo__pack_end(run);
            wrpo__forward(run, false, true);
            for (int64_t i = at; i < end; i++, v = v->next) {
                wrpo_record record = wrpo_data_record(data, i);
                const wrpo_json *coef = golden_get(v, "coef")->child;
                for (int k = 0; k < record.count; k++, coef = coef->next)
                    for (int64_t j = record.responses[k].first; j < record.responses[k].count; j++)
                        run->h_dlogp[t++] = (float)coef->number;
            }
            wrpo__backward(run, grads);
        }
    }
    CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    return grads;
}
/* Norm and samples of every tensor. Errors are measured in the tensor's root mean square: worst of all. Where positions
   turn slowly a key's bias adds nearly the same to every score, so its gradient is a small rest of large terms: 3e-5;
   others 4e-6. */
static double check_gradients(const char *name, const wrpo_model *model, const float *grads, const wrpo_json *want) {
    const wrpo_weight *w;
    int64_t n = wrpo_model_weights(model, &w);
    double worst = 0;
    CHECK(n == want->count, "%s: %lld tensors, transformers has %lld", name, (long long)n, (long long)want->count);
    for (const wrpo_json *g = want->child; g; g = g->next) {
        const wrpo_weight *weight = golden_weight(model, g->key);
        CHECK(weight, "%s: the model has no tensor %s", name, g->key);
        if (!weight) continue;
        const float *p = grads + weight->at;
        const int64_t count = weight->rows * weight->cols;
        double sum = 0, norm = golden_number(g, "norm", NAN), unit = norm / sqrt((double)count), tensor_worst = 0;
        for (int64_t k = 0; k < count; k++) sum += (double)p[k] * (double)p[k];
        tensor_worst = fabs(sqrt(sum) - norm) / norm;
        for (const wrpo_json *s = golden_get(g, "samples")->child; s; s = s->next) {
            int64_t k = s->child->integer;
            double d = k < count
                           ? fabs((double)p[k] - s->child->next->number) / fmax(unit, fabs(s->child->next->number))
                           : INFINITY;
            tensor_worst = test_larger(tensor_worst, d);
        }
        CHECK(tensor_worst <= 1e-4, "%s: gradient of %s differs by %g of its size", name, g->key, tensor_worst);
        worst = test_larger(worst, tensor_worst);
    }
    return worst;
}

static void all(const wrpo_backend *backend) {
    wrpo_ctx *ctx;
    char path[256];
    if (wrpo_open(&(wrpo_desc){.threads = 1, .backend = backend}, &ctx) != WRPO_OK) exit(1);
    printf("%s\n", backend->name);
    CHECK(golden_bits("model.norm.weight", 5) == 0x7C9F4023C6A6151Au, "the formula's bits: %016llx",
          (unsigned long long)golden_bits("model.norm.weight", 5));
    for (int64_t i = 0; i < WRPO__COUNT(families); i++) {
        snprintf(path, sizeof path, "golden/families/%s/golden.json", families[i]);
        const wrpo_json *golden = golden_read(ctx, path), *records = golden_get(golden, "records"),
                        *grad = golden_get(golden, "grad");
        wrpo_model *model;
        snprintf(path, sizeof path, "golden/families/%s", families[i]);
        CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = path}, &model) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        if (!model) continue;
        golden_fill(model, golden_get(golden, "scale"));
        wrpo_data *data = golden_data(ctx, records);
        double logp = check_logps(families[i], model, data, records), worst[3];
        const struct { int64_t batch, recompute; } ways[3] = {{3, 0}, {1, 0}, {2, model->config.num_hidden_layers}};
        for (int k = 0; k < 3; k++) {
            float *grads = gradients(model, data, records, ways[k].batch, ways[k].recompute);
            worst[k] = check_gradients(families[i], model, grads, grad);
            free(grads);
        }
        printf("%-20s log-prob of a token differs by %.1e at most, gradients by %.1e (%.1e record by record, %.1e "
               "recomputed)\n",
               families[i], logp, worst[0], worst[1], worst[2]);
        wrpo_data_free(data);
        wrpo_model_free(model);
        wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)golden);
    }
    for (int64_t i = 0; i < WRPO__COUNT(checkpoints); i++) {
        snprintf(path, sizeof path, "golden/checkpoints/%s.json", checkpoints[i]);
        const wrpo_json *golden = golden_read(ctx, path), *records = golden_get(golden, "records");
        wrpo_model *model;
        snprintf(path, sizeof path, "golden/checkpoints/%s", checkpoints[i]);
        CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = path}, &model) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        if (!model) continue;
        wrpo_data *data = golden_data(ctx, records);
        printf("%-20s log-prob of a token differs by %.1e at most\n", checkpoints[i],
               check_logps(checkpoints[i], model, data, records));
        wrpo_data_free(data);
        wrpo_model_free(model);
        wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)golden);
    }
    wrpo_close(ctx);
}
int main(void) {
    all(wrpo_backend_cpu());
    all(wrpo_backend_plain());
    return test_end("42_model");
}
