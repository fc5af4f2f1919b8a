/* Adapters: what a run with one computes, whatever the threads, the micro-batches and the layers recomputed; its state;
   PEFT's directories out and in; merging; what is refused. Gradients are checked in 40_model.c, against PEFT in
   72_parity.c. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/folder.h"
#include "support/golden.h"
#include <unistd.h>

enum { RECORDS = 12, LENGTH = 24, V = 97 };
static int32_t ids[RECORDS][4][LENGTH];
static wrpo_tokens responses[RECORDS][3];
static wrpo_record records[RECORDS];
static void make_records(void) {
    for (int i = 0; i < RECORDS; i++) {
        for (int s = 0; s < 4; s++)
            for (int j = 0; j < LENGTH; j++)
                ids[i][s][j] = (int32_t)(wrpo__random64(3, (uint64_t)(i * 4 + s), (uint64_t)j) % V);
        for (int k = 0; k < 3; k++)
            responses[i][k] = (wrpo_tokens){
                .role = (wrpo_role)k, .ids = ids[i][k + 1], .count = 1 + (i * 7 + k * 5) % (LENGTH - 1), .share = 1};
        records[i] = (wrpo_record){.prompt = ids[i][0], .prompt_count = 1 + i * 5 % (LENGTH - 1),
                                   .responses = responses[i], .count = 3};
    }
}
static void write_config(const char *folder, const char *model_type) {
    char text[1000], path[100];
    const char *more = "";
    if (!strcmp(model_type, "phi3")) more = ",\"pad_token_id\":0";
    if (!strcmp(model_type, "internlm2")) more = ",\"bias\":false";
    snprintf(text, sizeof text,
             "{\"model_type\":\"%s\",\"vocab_size\":97,\"hidden_size\":36,\"intermediate_size\":50,"
             "\"num_hidden_layers\":3,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":10,"
             "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"initializer_range\":0.3,"
             "\"tie_word_embeddings\":false,\"torch_dtype\":\"float32\"%s}", model_type, more);
    snprintf(path, sizeof path, "%s/config.json", folder);
    put(path, text);
}
/* A checkpoint of random weights in the folder `name`. */
static void write_base(wrpo_ctx *ctx, const char *name, const char *model_type, wrpo_dtype dtype) {
    wrpo_model *m = NULL;
    shell("mkdir -p %s%s", at(name), "");
    write_config(name, model_type);
    CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = at(name), .seed = 7}, &m) &&
              !wrpo_model_save(m, &(wrpo_save_desc){.dir = at(name), .dtype = dtype}),
          "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(m);
}
static wrpo_ctx *open_ctx(int threads, const wrpo_backend *backend) {
    wrpo_ctx *ctx = NULL;
    if (wrpo_open(&(wrpo_desc){.threads = threads, .backend = backend}, &ctx) != WRPO_OK) exit(2);
    return ctx;
}
static wrpo_model *load(wrpo_ctx *ctx, const char *base, const char *adapter) {
    wrpo_model *m = NULL;
    const wrpo_model_desc desc = {.dir = at(base), .frozen = true, .adapter = adapter ? at(adapter) : NULL};
    CHECK(wrpo_model_load(ctx, &desc, &m) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    return m;
}
static void logps_of(wrpo_model *m, double out[RECORDS * 3]) {
    wrpo_data *data = NULL;
    CHECK(!wrpo_data_from_ids(m->ctx, records, RECORDS, &data) && !wrpo_logprobs(m, data, 0, RECORDS, out, NULL), "%s",
          wrpo_last_error(m->ctx)->text);
    wrpo_data_free(data);
}
static double apart(const double *a, const double *b) {
    double worst = 0;
    for (int i = 0; i < RECORDS * 3; i++) worst = test_larger(worst, fabs(a[i] - b[i]));
    return worst;
}

/* ---- runs ---- */
typedef struct result { double loss[8], norm[8], after[RECORDS * 3]; int steps; } result;
static const wrpo_train_desc settings = {.learning_rate = 3e-3, .warmup_ratio = WRPO_ZERO, .batch_size = 4, .epochs = 2,
                                         .lr_schedule = WRPO_LR_SCHEDULE_CONSTANT, .loss = {.beta = 0.5}};
typedef struct way { wrpo_adapter_desc adapter; wrpo_train_desc train; int threads, stop; const char *save, *to; } way;
/* Trains; the state is saved after `stop` steps in `save`; what the run made is saved in `to`. */
static result run(way w) {
    result r = {0};
    wrpo_ctx *ctx = open_ctx(w.threads ? w.threads : 2, NULL);
    wrpo_model *m = load(ctx, "llama", NULL);
    wrpo_data *data = NULL;
    wrpo_trainer *t = NULL;
    wrpo_metrics step = {0};
    CHECK(!wrpo_adapter_new(m, &w.adapter) && !wrpo_data_from_ids(ctx, records, RECORDS, &data) &&
              !wrpo_trainer_open(m, data, &w.train, &t), "%s", wrpo_last_error(ctx)->text);
    for (bool go = t != NULL; go; go = step.step < step.steps && !(w.save && step.step == w.stop)) {
        if (wrpo_trainer_step(t, &step) != WRPO_OK) { CHECK(false, "%s", wrpo_last_error(ctx)->text); break; }
        r.loss[step.step - 1] = step.loss;
        r.norm[step.step - 1] = step.grad_norm;
        r.steps = (int)step.step;
    }
    if (t && w.save)
        CHECK(!wrpo_trainer_save(t, &(wrpo_save_desc){.dir = at(w.save)}), "%s", wrpo_last_error(ctx)->text);
    if (w.to) CHECK(!wrpo_model_save(m, &(wrpo_save_desc){.dir = at(w.to)}), "%s", wrpo_last_error(ctx)->text);
    logps_of(m, r.after);
    wrpo_trainer_free(t), wrpo_data_free(data), wrpo_model_free(m), wrpo_close(ctx);
    return r;
}
static void same(const char *what, result a, result b, int first) {
    CHECK(a.steps == b.steps && a.steps == 6, "%s: %d and %d steps", what, a.steps, b.steps);
    for (int i = first; i < a.steps; i++)
        CHECK(a.loss[i] == b.loss[i] && a.norm[i] == b.norm[i],
              "%s: step %d: loss %.17g and %.17g, norm %.17g and %.17g", what, i + 1, a.loss[i], b.loss[i], a.norm[i],
              b.norm[i]);
    CHECK(apart(a.after, b.after) == 0, "%s: log-probs after it differ by %g", what, apart(a.after, b.after));
}
static void test_runs(void) {
    for (int dropped = 0; dropped < 2; dropped++) {
        way base = {.adapter = {.r = 3, .dropout = dropped ? 0.3 : 0, .rslora = true}, .train = settings}, w;
        const result r = run(base);
        CHECK(dropped || r.loss[0] == log(2), "loss %.17g, want ln 2", r.loss[0]); /* the adapter changes nothing yet */
        CHECK(!dropped || fabs(r.loss[0] - log(2)) < 1e-6, "loss %.17g, want ln 2", r.loss[0]);
        CHECK(r.loss[5] < r.loss[0], "loss %g after %g", r.loss[5], r.loss[0]);
        w = base, w.threads = 1, same("one thread", r, run(w), 0);
        w = base, w.train.micro_tokens = 50;           /* gradients are summed in another order; dropout is the same */
        const result parts = run(w);
        CHECK(parts.loss[0] == r.loss[0] && fabs(parts.norm[0] / r.norm[0] - 1) < 1e-7 &&
                  fabs(parts.loss[1] / r.loss[1] - 1) < 1e-5,
              "other micro-batches: loss %.17g and %.17g, norm %.17g and %.17g", parts.loss[1], r.loss[1],
              parts.norm[0], r.norm[0]);
        w = base, w.train.recompute = -1, same("all layers recomputed", r, run(w), 0);
        w = base, w.save = "state", w.stop = 2, run(w);
        CHECK(access(at("state/adapter_model.safetensors"), F_OK) == 0 && access(at("state/config.json"), F_OK) != 0,
              "a checkpoint of a run with an adapter is not the adapter");
        w = base, w.train.resume = at("state"), same("gone on after 2 steps", r, run(w), 2);
        w = base, w.adapter.dropout = dropped ? 0 : 0.3;
        const result other = run(w);
        CHECK(other.loss[1] != r.loss[1], "dropout changes nothing");
        w = base, w.adapter.seed = 5;
        CHECK(run(w).loss[1] != r.loss[1], "the seed changes nothing");
    }
    wrpo_ctx *ctx = open_ctx(1, NULL);
    wrpo_model *m = load(ctx, "llama", NULL);
    wrpo_data *data = NULL;
    wrpo_trainer *t = NULL;
    wrpo_train_desc d = settings;
    d.resume = at("state");
    CHECK(!wrpo_adapter_new(m, &(wrpo_adapter_desc){.r = 3}) && !wrpo_data_from_ids(ctx, records, RECORDS, &data), "%s",
          wrpo_last_error(ctx)->text);
    CHECK(wrpo_trainer_open(m, data, &d, &t) == WRPO_E_ARG && strstr(wrpo_last_error(ctx)->text, "adapter: want r 3"),
          "%s", wrpo_last_error(ctx)->text);
    wrpo_data_free(data), wrpo_model_free(m), wrpo_close(ctx);
}

/* ---- the plan: no logits are kept, and below what it takes, layers are recomputed at once ---- */
static void test_plan(void) {
    const wrpo_adapter_desc adapter = {.r = 3};
    size_t limit = 0;
    for (int i = 0; i < 2; i++) {
        wrpo_ctx *ctx;
        wrpo_data *data;
        wrpo_bytes need;
        if (wrpo_open(&(wrpo_desc){.threads = 1, .memory_limit = limit}, &ctx)) exit(2);
        wrpo_model *m = load(ctx, "llama", NULL);
        const wrpo_config c = *wrpo_model_config(m);
        wrpo_model_free(m);
        CHECK(!wrpo_data_from_ids(ctx, records, RECORDS, &data) &&
                  !wrpo_train_bytes(ctx, &c, data, &settings, &adapter, &need), "%s", wrpo_last_error(ctx)->text);
        CHECK(need.logits && (need.recompute > 0) == i && need.device <= need.room,
              "logits %d, %lld layers recomputed, %zu bytes of %zu", need.logits, (long long)need.recompute,
              need.device, need.room);
        limit = need.device + ctx->bytes - 1;
        wrpo_data_free(data), wrpo_close(ctx);
    }
}

/* ---- the gradient through dropout: along a direction, against differences of the plain backend's own forward ---- */
static double objective(wrpo__workspace *r) {
    double sum = 0;
    wrpo__pack_begin(r);
    for (int i = 0; i < 3; i++) wrpo__pack_record(r, &records[i]);
    wrpo__pack_end(r);
    wrpo__forward(r, false, true);
    for (int t = 0; t < r->n_labels; t++) {
        r->h_dlogp[t] = 1 + (float)(t % 5) - 2.5f * (float)(t % 3);
        sum += (double)r->h_dlogp[t] * (double)r->h_logp[t];
    }
    return sum;
}
static void test_dropout(void) {
    wrpo_ctx *ctx = open_ctx(1, wrpo_backend_plain());
    wrpo_model *m = load(ctx, "llama", NULL);
    CHECK(!wrpo_adapter_new(m, &(wrpo_adapter_desc){.r = 3, .dropout = 0.3}), "%s", wrpo_last_error(ctx)->text);
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *arena = wrpo__entry.arena;
        float *grads = wrpo__alloc(arena, (size_t)m->count, sizeof *grads),
              *start = wrpo__raw(arena, (size_t)m->count, 4);
        float *data = m->weights[m->lora->first].data;
        double slope = 0, sum[2];
        for (int64_t i = 0; i < m->count; i++) start[i] = data[i] += 0.1f * (float)wrpo__normal(1, 1, (uint64_t)i);
        const wrpo__shape shape = {.rows = 200, .chunk = 7, .train = true, .recompute = 1};
        wrpo__workspace *r = wrpo__workspace_new(arena, m, &shape);
        r->dropout = (wrpo_dropout){.p = 0.3f, .seed = 8, .row = 5};
        objective(r);
        wrpo__backward(r, grads);
        for (int64_t i = 0; i < m->count; i++) slope += (double)grads[i] * wrpo__normal(2, 2, (uint64_t)i);
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < m->count; i++)
                data[i] = start[i] + (side ? 2e-4f : -2e-4f) * (float)wrpo__normal(2, 2, (uint64_t)i);
            sum[side] = objective(r);
        }
        CHECK(fabs((sum[1] - sum[0]) / 4e-4 - slope) < 2e-3 * fabs(slope), "slope %g, differences %g", slope,
              (sum[1] - sum[0]) / 4e-4);
    }
    CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", ctx->error.text);
    wrpo_model_free(m), wrpo_close(ctx);
}

/* ---- directories ---- */
static void test_directories(const char *type, const char *target) {
    wrpo_ctx *ctx = open_ctx(2, NULL);
    double base[RECORDS * 3], fresh[RECORDS * 3], trained[RECORDS * 3], again[RECORDS * 3];
    char out[40], whole[40];
    snprintf(out, sizeof out, "%s-adapter", type), snprintf(whole, sizeof whole, "%s-merged", type);
    write_base(ctx, type, type, WRPO_DTYPE_F32);
    wrpo_model *m = load(ctx, type, NULL);
    logps_of(m, base);
    CHECK(!wrpo_adapter_new(m, &(wrpo_adapter_desc){.r = 5, .alpha = 3, .target = target}), "%s: %s", type,
          wrpo_last_error(ctx)->text);
    logps_of(m, fresh);
    CHECK(!memcmp(base, fresh, sizeof base), "%s: a new adapter changes log-probs by %g", type, apart(base, fresh));
    for (int64_t i = m->lora->first; i < m->n_weights; i++)
        for (int64_t k = 0; k < wrpo__size(&m->weights[i]); k++)
            ((float *)m->weights[i].data)[k] = 0.2f * (float)wrpo__normal(4, (uint64_t)i, (uint64_t)k);
    logps_of(m, trained);
    CHECK(apart(base, trained) > 0.01, "%s: the adapter changes log-probs by %g only", type, apart(base, trained));
    CHECK(!wrpo_model_save(m, &(wrpo_save_desc){.dir = at(out)}) &&
              !wrpo_model_save(m, &(wrpo_save_desc){.dir = at(whole), .merge = true}), "%s: %s", type,
          wrpo_last_error(ctx)->text);
    wrpo_model_free(m);
    m = load(ctx, type, out);                          /* the adapter that was saved: the same bits */
    logps_of(m, again);
    CHECK(!memcmp(trained, again, sizeof again), "%s: read again it is another by %g", type, apart(trained, again));
    CHECK(m->lora->desc.r == 5 && m->lora->desc.alpha == 3, "%s: r, alpha", type);
    wrpo_model_free(m);
    m = load(ctx, whole, NULL);                        /* merged: to rounding */
    logps_of(m, again);
    CHECK(!m->lora && apart(trained, again) < 2e-4, "%s: merged, log-probs differ by %g", type, apart(trained, again));
    wrpo_model_free(m);
    wrpo_close(ctx);
}

/* ---- PEFT's own directories (golden/adapters.py): what a model is with one; written again, its tensors are the same;
   merged as merge_and_unload does it. With WRPO_KEEP=FOLDER both stay there, for adapters.py --reload ---- */
static void same_tensors(wrpo_ctx *ctx, const char *family, const char *a, const char *b) {
    wrpo_tensors *x = NULL, *y = NULL;
    CHECK(!wrpo_tensors_open(ctx, a, &x) && !wrpo_tensors_open(ctx, b, &y), "%s", wrpo_last_error(ctx)->text);
    CHECK(wrpo_tensors_count(x) == wrpo_tensors_count(y), "%s: %lld tensors, want %lld", family,
          (long long)wrpo_tensors_count(y), (long long)wrpo_tensors_count(x));
    for (int64_t i = 0; i < wrpo_tensors_count(x); i++) {
        const wrpo_tensor_info *p = wrpo_tensors_at(x, i), *q = wrpo_tensors_find(y, p->name);
        CHECK(q && !strcmp(p->dtype, q->dtype) && p->ndim == q->ndim &&
                  !memcmp(p->shape, q->shape, sizeof *p->shape * 2) && !memcmp(p->data, q->data, p->bytes),
              "%s: %s is another", family, p->name);
    }
    wrpo_tensors_close(x), wrpo_tensors_close(y);
}
static void test_golden(void) {
    wrpo_ctx *ctx = open_ctx(2, NULL);
    const wrpo_json *golden = golden_read(ctx, "golden/adapters.json");
    wrpo_data *data = golden_data(ctx, golden_get(golden, "records"));
    const char *keep = getenv("WRPO_KEEP");
    int families = 0;
    for (const wrpo_json *made = golden_get(golden, "made")->child; made; made = made->next, families++) {
        char base[100], adapter[100], ours[300], whole[300], file[2][400];
        double logps[8 * 3], worst = 0;
        wrpo_model *m = NULL;
        wrpo_tensors *t = NULL;
        snprintf(base, sizeof base, "golden/families/%s", made->key);
        snprintf(adapter, sizeof adapter, "golden/adapters/%s", made->key);
        snprintf(ours, sizeof ours, "%s/%s-adapter", keep ? keep : dir, made->key);
        snprintf(whole, sizeof whole, "%s/%s-merged", keep ? keep : dir, made->key);
        CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = base}, &m), "%s", wrpo_last_error(ctx)->text);
        golden_fill(m, golden_get(golden, "scale"));
        CHECK(!wrpo_adapter_load(m, adapter) && !wrpo_logprobs(m, data, 0, 8, logps, NULL), "%s: %s", made->key,
              wrpo_last_error(ctx)->text);
        int i = 0;
        for (const wrpo_json *row = golden_get(made, "logps")->child; row; row = row->next)
            for (const wrpo_json *v = row->child; v; v = v->next)
                worst = test_larger(worst, fabs(v->number - logps[i++]));
        CHECK(i == 24 && worst < 1e-4, "%s: log-probs differ from PEFT's by %g", made->key, worst);
        CHECK(!wrpo_model_save(m, &(wrpo_save_desc){.dir = ours}) &&
                  !wrpo_model_save(m, &(wrpo_save_desc){.dir = whole, .merge = true}), "%s: %s", made->key,
              wrpo_last_error(ctx)->text);
        snprintf(file[0], sizeof file[0], "%s/adapter_model.safetensors", adapter);
        snprintf(file[1], sizeof file[1], "%s/adapter_model.safetensors", ours);
        same_tensors(ctx, made->key, file[0], file[1]);
        const wrpo_adapter_desc before = wrpo_model_adapter(m);
        wrpo_model_free(m);
        CHECK(!wrpo_model_load(ctx, &(wrpo_model_desc){.dir = whole, .frozen = true, .adapter = ours}, &m), "%s: %s",
              made->key, wrpo_last_error(ctx)->text);  /* it reads its own config: scales and ranks */
        const wrpo_adapter_desc after = wrpo_model_adapter(m);
        CHECK(before.r == after.r && before.alpha == after.alpha && before.rslora == after.rslora, "%s: r, alpha",
              made->key);
        wrpo_model_free(m);
        CHECK(!wrpo_tensors_open(ctx, whole, &t), "%s", wrpo_last_error(ctx)->text);
        for (const wrpo_json *v = golden_get(made, "merged")->child; v; v = v->next) {
            const wrpo_tensor_info *info = wrpo_tensors_find(t, v->key);
            CHECK(info != NULL, "%s: no tensor %s", made->key, v->key);
            for (const wrpo_json *s = info ? v->child : NULL; s; s = s->next) {
                float x;
                memcpy(&x, (const char *)info->data + 4 * s->child->integer, 4);
                CHECK(fabs((double)x - s->child->next->number) < 1e-6, "%s: merged: %s[%lld] is %.9g, want %.9g",
                      made->key, v->key, (long long)s->child->integer, (double)x, s->child->next->number);
            }
        }
        wrpo_tensors_close(t);
    }
    CHECK(families == 9, "%d families", families);
    wrpo_data_free(data), wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)golden), wrpo_close(ctx);
}

/* ---- what is refused ---- */
#define SAYS(call, code, sentence)                                                                                     \
    do {                                                                                                               \
        const wrpo_result got = call;                                                                                  \
        CHECK(got == code && strstr(wrpo_last_error(ctx)->text, sentence), "want %d \"%s\", found %d \"%s\"", code,    \
              sentence, got, wrpo_last_error(ctx)->text);                                                              \
    } while (0)
static void test_refused(void) {
    wrpo_ctx *ctx = open_ctx(1, NULL);
    wrpo_model *m = NULL, *other = NULL;
    static const char *const configs[][2] = {
        /* more of a config; what is said of it */
        {"\"use_dora\": true", "use_dora true is not supported"},
        {"\"bias\": \"all\"", "bias \"all\" is not supported"},
        {"\"modules_to_save\": [\"lm_head\"]", "modules_to_save an array of 1 is not supported"},
        {"\"fan_in_fan_out\": true", "fan_in_fan_out true is not supported"},
        {"\"a_new_key\": 3", "a_new_key 3 is not supported"},
        {"\"lora_dropout\": 1", "want a number in [0, 0.999]"},
        {"\"rank_pattern\": {\"q_.*\": 2}", "rank_pattern: want names of layers"},
        {"\"rank_pattern\": {\"q_proj\": 2}", "want [2,36], found [3,36]"},
        {"\"init_lora_weights\": \"olora\"", "init_lora_weights \"olora\" is not supported"},
        {"\"init_lora_weights\": \"pissa_niter_4\"", "init_lora_weights \"pissa_niter_4\" is not supported"},
        {"\"target_modules\": [\"q_proj\"]",
         "want no an adapter of model.layers.0.self_attn.k_proj, found its tensors"},
        {"\"exclude_modules\": [\"down_proj\"]", "exclude_modules: want no an adapter of model.layers.0.mlp.down_proj"},
        {"\"layers_to_transform\": [0, 2]", "layers_to_transform: want no an adapter of model.layers.1."},
        {"\"layers_to_transform\": 1", "layers_to_transform: want no an adapter of model.layers.0."},
        {"\"alpha_pattern\": {\"q_proj\": 0}", "want a positive number"},
        {"\"r\": 3", "found \"r\" again"}};
    write_base(ctx, "bf16", "llama", WRPO_DTYPE_BF16);
    m = load(ctx, "llama", NULL);
    SAYS(wrpo_adapter_new(m, &(wrpo_adapter_desc){.r = -1}), WRPO_E_ARG, "r: want a rank from 1 to 4096, found -1");
    SAYS(wrpo_adapter_new(m, &(wrpo_adapter_desc){.alpha = -1}), WRPO_E_ARG, "alpha: want a number above 0");
    SAYS(wrpo_adapter_new(m, &(wrpo_adapter_desc){.dropout = 1}), WRPO_E_ARG, "dropout: want a number in [0, 0.999]");
    SAYS(wrpo_adapter_new(m, &(wrpo_adapter_desc){.target = "q_proj,lm_head"}), WRPO_E_ARG,
         "want all-linear or names out of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj, found \"lm_head\"");
    SAYS(wrpo_adapter_new(m, &(wrpo_adapter_desc){.target = ""}), WRPO_E_ARG, "found \"\"");
    CHECK(!m->lora && m->weights[0].at == 0 && m->count > 0, "a refused adapter leaves traces");
    SAYS(wrpo_model_save(m, &(wrpo_save_desc){.dir = at("no"), .merge = true}), WRPO_E_ARG, "the model has no adapter");
    CHECK(!wrpo_adapter_new(m, &(wrpo_adapter_desc){.r = 3}), "%s", wrpo_last_error(ctx)->text);
    SAYS(wrpo_adapter_new(m, NULL), WRPO_E_ARG, "the model has an adapter already");
    SAYS(wrpo_model_save(m, &(wrpo_save_desc){.dir = at("llama")}), WRPO_E_ARG, "want another directory than that of");
    SAYS(wrpo_model_save(m, &(wrpo_save_desc){.dir = at("llama"), .merge = true}), WRPO_E_ARG,
         "want another directory");
    SAYS(wrpo_weight_put(m, 0, 0, 1, &(float){0}), WRPO_E_ARG, "frozen");
    CHECK(!wrpo_weight_put(m, m->lora->first, 0, 1, &(float){0.5f}), "%s", wrpo_last_error(ctx)->text);
    CHECK(!wrpo_model_save(m, &(wrpo_save_desc){.dir = at("good")}), "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(m);

    shell("cp -r %s %s", at("good"), at("bad"));
    for (int i = 0; i < WRPO__COUNT(configs); i++) {
        char text[400];
        snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 32, %s}", configs[i][0]);
        put("bad/adapter_config.json", text);
        m = load(ctx, "llama", NULL);
        CHECK(wrpo_adapter_load(m, at("bad")) != WRPO_OK && strstr(wrpo_last_error(ctx)->text, configs[i][1]) &&
                  strstr(wrpo_last_error(ctx)->text, "adapter_"), "%s: %s", configs[i][0], wrpo_last_error(ctx)->text);
        CHECK(!m->lora, "a refused adapter leaves traces");
        wrpo_model_free(m);
    }
    /* one that fails late leaves no memory; half a file; a whole model where an adapter is, and the other way around */
    put("bad/adapter_config.json",
        "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 32, \"target_modules\": \"all-linear\"}");
    m = load(ctx, "llama", NULL);
    CHECK(!wrpo_adapter_load(m, at("bad")), "%s", wrpo_last_error(ctx)->text);
    SAYS(wrpo_model_save(m, &(wrpo_save_desc){.dir = at("bf16")}), WRPO_E_ARG, "an adapter would be beside it");
    SAYS(wrpo_model_save(m, &(wrpo_save_desc){.dir = at("good"), .merge = true}), WRPO_E_ARG,
         "a whole model would be beside");
    for (int64_t i = m->lora->first; i < m->n_weights; i++)
        wrpo_weight_put(m, i, 0, 1, &(float){NAN});
    CHECK(!wrpo_model_save(m, &(wrpo_save_desc){.dir = at("nan")}), "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(m);
    m = load(ctx, "llama", NULL);
    const size_t held = ctx->bytes;
    for (int i = 0; i < 5; i++) SAYS(wrpo_adapter_load(m, at("nan")), WRPO_E_NOT_FINITE, "not a finite number");
    CHECK(ctx->bytes < held + 5 * 4096, "%zu bytes are left of adapters that failed", ctx->bytes - held);
    wrpo_data *data = NULL;
    wrpo_trainer *t = NULL;
    CHECK(!wrpo_adapter_load(m, at("good")) && !wrpo_data_from_ids(ctx, records, RECORDS, &data), "%s",
          wrpo_last_error(ctx)->text);
    wrpo_model_free(m);
    m = load(ctx, "llama", NULL);
    wrpo_metrics metrics;
    CHECK(!wrpo_eval(m, data, NULL, &metrics), "%s", wrpo_last_error(ctx)->text);
    m->frozen = false;
    CHECK(!wrpo_trainer_new(m, data, NULL, &t), "%s", wrpo_last_error(ctx)->text);
    SAYS(wrpo_adapter_load(m, at("good")), WRPO_E_ARG, "want a model that no trainer trains");
    wrpo_trainer_free(t);
    CHECK(!wrpo_adapter_load(m, at("good")), "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(m);
    /* the cache of the reference is that of these scales */
    for (int i = 0; i < 2; i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": %d}", i ? 320 : 32);
        put("bad/adapter_config.json", text);
        wrpo_train_desc d = settings;
        d.out_dir = at("run");
        m = load(ctx, "llama", "bad");
        CHECK(!wrpo_trainer_open(m, data, &d, &t) && !wrpo_trainer_step(t, &metrics) && metrics.loss == log(2),
              "alpha %d: loss %.17g: %s", i ? 320 : 32, metrics.loss, wrpo_last_error(ctx)->text);
        wrpo_trainer_free(t), wrpo_model_free(m);
    }
    /* a run goes on only on its own base, whether it has a reference or not */
    wrpo_train_desc sft = settings;
    sft.loss.method = WRPO_METHOD_SFT;
    m = load(ctx, "llama", "good");
    CHECK(!wrpo_trainer_open(m, data, &sft, &t) && !wrpo_trainer_step(t, &metrics) &&
              !wrpo_trainer_save(t, &(wrpo_save_desc){.dir = at("sft")}), "%s", wrpo_last_error(ctx)->text);
    wrpo_trainer_free(t), wrpo_model_free(m);
    sft.resume = at("sft");
    for (int i = 0; i < 2; i++) {
        CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = at("llama"), .seed = i ? 8 : 7}, &m) &&
                  !wrpo_adapter_load(m, at("good")), "%s", wrpo_last_error(ctx)->text);
        if (i) SAYS(wrpo_trainer_open(m, data, &sft, &t), WRPO_E_ARG, "base: want");
        else CHECK(!wrpo_trainer_open(m, data, &sft, &t), "%s", wrpo_last_error(ctx)->text);
        wrpo_trainer_free(t), wrpo_model_free(m);
    }
    wrpo_data_free(data);
    /* beside config.json, as transformers does it */
    shell("cp %s/* %s", at("good"), at("bf16"));
    m = load(ctx, "bf16", NULL);
    CHECK(m && m->lora, "the adapter beside the model is not applied");
    wrpo_model_free(m);
    SAYS(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = at("bf16")}, &other), WRPO_E_ARG,
         "an adapter: want it merged");
    /* of another base; in a context of bfloat16, whose masters it would lose */
    write_base(ctx, "phi3", "phi3", WRPO_DTYPE_F32);
    m = load(ctx, "phi3", NULL);
    SAYS(wrpo_adapter_load(m, at("good")), WRPO_E_FORMAT, "no such tensor in a phi3 of this config");
    SAYS(wrpo_adapter_load(m, at("phi3")), WRPO_E_IO, "adapter_config.json");
    wrpo_model_free(m), wrpo_close(ctx);
    if (wrpo_open(&(wrpo_desc){.dtype = WRPO_DTYPE_BF16}, &ctx) != WRPO_OK) exit(2);
    CHECK(!wrpo_model_load(ctx, &(wrpo_model_desc){.dir = at("llama")}, &m), "%s", wrpo_last_error(ctx)->text);
    SAYS(wrpo_adapter_new(m, NULL), WRPO_E_ARG, "loaded frozen");
    wrpo_model_free(m), wrpo_close(ctx);
}
int main(void) {
    snprintf(dir, sizeof dir, "tmp_adapter_%ld", (long)getpid());
    shell("mkdir -p %s%s", dir, "");
    make_records();
    wrpo_ctx *ctx = open_ctx(1, NULL);
    write_base(ctx, "llama", "llama", WRPO_DTYPE_F32);
    wrpo_close(ctx);
    test_runs();
    test_plan();
    test_dropout();
    test_directories("llama", "q_proj,v_proj,down_proj");
    test_directories("qwen3", NULL);
    test_directories("phi3", NULL);
    test_directories("phi3", "qkv_proj");
    test_directories("internlm2", NULL);
    test_golden();
    test_refused();
    shell("rm -rf %s%s", dir, "");
    return test_end("adapter");
}
