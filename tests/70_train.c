/* The trainer's exact statements, on a small random model and records given as token ids. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/quads.h"
#include "support/counting.h"
#include <dirent.h>
#include <unistd.h>

static wrpo_ctx *open_with(wrpo_dtype dtype, int threads) {
    wrpo_ctx *ctx;
    const wrpo_desc desc = {.threads = threads, .dtype = dtype};
    if (wrpo_open(&desc, &ctx) != WRPO_OK) exit(2);
    return ctx;
}
static wrpo_ctx *open_ctx(int threads) { return open_with(WRPO_DTYPE_F32, threads); }
static wrpo_model *make_model(wrpo_ctx *ctx) {
    wrpo_model *m;
    const wrpo_init_desc desc = {.config = config_path, .seed = 7};
    CHECK(wrpo_model_init(ctx, &desc, &m) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    return m;
}
static wrpo_data *make_data(wrpo_ctx *ctx, int64_t first, int64_t count) {
    wrpo_data *d;
    CHECK(wrpo_data_from_ids(ctx, records + first, count, &d) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    return d;
}
static double worst_difference(const wrpo_model *a, const wrpo_model *b, bool *same) {
    double worst = 0;
    *same = true;
    for (int64_t i = 0; i < a->n_weights; i++)
        for (int64_t k = 0; k < a->weights[i].rows * a->weights[i].cols; k++) {
            const float *x = (const float *)a->weights[i].data + k, *y = (const float *)b->weights[i].data + k;
            worst = test_larger(worst, fabs((double)*x - (double)*y));
            if (memcmp(x, y, 4)) *same = false;
        }
    return worst;
}
typedef struct result { wrpo_ctx *ctx; wrpo_model *model; wrpo_metrics m[8]; int steps; } result;
/* at most so many steps, then saved, if there is a directory for it */
static result run_part(wrpo_dtype dtype, wrpo_train_desc d, int threads, int steps, const char *save) {
    result r = {.ctx = open_with(dtype, threads)};
    wrpo_trainer *t;
    r.model = make_model(r.ctx);
    wrpo_data *data = make_data(r.ctx, 0, N);
    if (!d.learning_rate) d.learning_rate = 1e-3;
    if (!d.batch_size) d.batch_size = 4;
    if (wrpo_trainer_open(r.model, data, &d, &t) != WRPO_OK) {
        CHECK(false, "%s", wrpo_last_error(r.ctx)->text);
        return r;
    }
    for (wrpo_metrics m = {0}; r.steps == 0 || (m.step < m.steps && r.steps < steps);) {
        if (wrpo_trainer_step(t, &m) != WRPO_OK) { CHECK(false, "%s", wrpo_last_error(r.ctx)->text); break; }
        r.m[r.steps++] = m;
    }
    if (save)
        CHECK(wrpo_trainer_save(t, &(wrpo_save_desc){.dir = save, .dtype = WRPO_DTYPE_BF16}) == WRPO_OK, "%s",
              wrpo_last_error(r.ctx)->text);
    wrpo_trainer_free(t);
    wrpo_data_free(data);
    return r;
}
static result run_in(wrpo_dtype dtype, wrpo_train_desc d, int threads) { return run_part(dtype, d, threads, 8, NULL); }
static result run(wrpo_train_desc d, int threads) { return run_in(WRPO_DTYPE_F32, d, threads); }
static void drop(result *r) {
    wrpo_model_free(r->model);
    wrpo_close(r->ctx);
}
static void compare(const char *what, wrpo_train_desc a, int threads_a, wrpo_train_desc b, int threads_b,
                    double tolerance) {
    result x = run(a, threads_a), y = run(b, threads_b);
    bool same;
    double worst = worst_difference(x.model, y.model, &same);
    CHECK(tolerance > 0 ? worst <= tolerance : same, "%s: weights differ by %g", what, worst);
    for (int i = 0; i < x.steps && i < y.steps; i++)
        CHECK(tolerance > 0 ? fabs(x.m[i].loss - y.m[i].loss) <= tolerance
                            : x.m[i].loss == y.m[i].loss && x.m[i].grad_norm == y.m[i].grad_norm,
              "%s: step %d: loss %.17g and %.17g, gradient %.17g and %.17g", what, i, x.m[i].loss, y.m[i].loss,
              x.m[i].grad_norm, y.m[i].grad_norm);
    CHECK(x.steps == y.steps && x.steps > 1, "%s: %d and %d steps", what, x.steps, y.steps);
    drop(&x), drop(&y);
}
static double total(const double *p, int n) { double s = 0; for (int i = 0; i < n; i++) s += p[i]; return s; }

#define SAYS(call, sentence) \
    CHECK(call == WRPO_E_ARG && strstr(wrpo_last_error(ctx)->text, sentence), "want \"%s\", found \"%s\"", sentence, \
          wrpo_last_error(ctx)->text)
/* A limit that the longest record just meets by computing all layers again: shorter ones keep more in the same memory,
   the shortest all. The bits are those of a run without a limit. */
static void less_for_short_records(void) {
    enum { LONG = 90 };
    const int64_t lengths[4] = {LONG, 60, 45, 8};
    int32_t text[LONG];
    wrpo_metrics m[2][4];
    wrpo_bytes least;
    size_t limit = 0;
    for (int i = 0; i < LONG; i++) text[i] = 1 + i * 7 % 90;
    for (int limited = 0; limited < 2; limited++) {
        wrpo_ctx *ctx;
        wrpo_trainer *t;
        wrpo_data *data;
        wrpo_record longer[4];
        wrpo_tokens y[4][3];
        if (wrpo_open(&(wrpo_desc){.threads = 2, .memory_limit = limit}, &ctx) != WRPO_OK) exit(2);
        wrpo_model *model = make_model(ctx);
        for (int i = 0; i < 4; i++) {
            const wrpo_tokens one = {.ids = text, .count = lengths[i]};
            for (int k = 0; k < 3; k++)
                y[i][k] = one, y[i][k].role = responses[0][k].role, y[i][k].count -= k;
            longer[i] = (wrpo_record){.prompt = text + 3, .prompt_count = 5, .responses = y[i], .count = 3};
        }
        CHECK(!wrpo_data_from_ids(ctx, longer, 4, &data), "%s", wrpo_last_error(ctx)->text);
        wrpo_train_desc d = {.learning_rate = 1e-3, .batch_size = 1, .micro_tokens = 1, .no_shuffle = true,
                             .recompute = -1};
        CHECK(!wrpo_train_bytes(ctx, wrpo_model_config(model), data, &d, NULL, &least) && least.recompute == 3, "%s",
              wrpo_last_error(ctx)->text);
        limit = least.device + 60000;                  /* data and names beside the plan */
        d.recompute = 0;
        CHECK(!wrpo_trainer_open(model, data, &d, &t), "%s", wrpo_last_error(ctx)->text);
        int64_t before = limited ? 3 : 0;
        for (int i = 0; i < 4; i++) {
            CHECK(!wrpo_trainer_step(t, &m[limited][i]), "%s", wrpo_last_error(ctx)->text);
            const wrpo__shape *s = &t->run->shape;
            const bool at_end = !limited || i == 3, at_begin = limited && i == 0;
            CHECK(s->recompute <= before && (!at_end || (!s->recompute && s->logits)) &&
                      (!at_begin || s->recompute == 3),
                  "limited %d, record %d: %lld layers, logits %d", limited, i, (long long)s->recompute, s->logits);
            CHECK(m[limited][i].loss == m[0][i].loss && m[limited][i].grad_norm == m[0][i].grad_norm,
                  "record %d: loss %.17g and %.17g", i, m[limited][i].loss, m[0][i].loss);
            if (i == 1 && limited) CHECK(s->recompute < 3, "the second record computes all layers again");
            before = s->recompute;
        }
        wrpo_trainer_free(t), wrpo_data_free(data), wrpo_model_free(model);
        wrpo_close(ctx);
    }
}
/* A context that reads from its caller's files writes to the file system, and finds there what a run wrote: the cache
   of the reference, the checkpoint before, the lines of metrics. */
static const void *config_alone(const char *path, size_t *size, void **handle, void *user) {
    (void)handle, (void)user;
    *size = strlen(config_text);
    return strcmp(path, config_path) ? NULL : config_text;
}
static void count_cached(wrpo_level level, const char *text, void *user) {
    (void)level;
    *(int *)user += strstr(text, "reference log-probs read from") != NULL;
}
static void caller_files(void) {
    char out[96], path[160];
    int cached = 0;
    wrpo_ctx *ctx;
    snprintf(out, sizeof out, "%s/files", dir);
    if (wrpo_open(&(wrpo_desc){.files.open = config_alone, .log = {count_cached, &cached}}, &ctx) != WRPO_OK) exit(2);
    wrpo_data *data = make_data(ctx, 0, N);
    for (int again = 0; again < 2; again++) {
        wrpo_model *model = make_model(ctx);
        const wrpo_train_desc d = {
            .learning_rate = 1e-3, .batch_size = 4, .out_dir = out, .save.dir = out, .save_steps = 1};
        CHECK(wrpo_train(model, data, &d, NULL) == WRPO_OK && cached == again, "%s; the cache was read %d times",
              wrpo_last_error(ctx)->text, cached);
        wrpo_model_free(model);
    }
    for (int k = 1; k < 5; k++) {
        snprintf(path, sizeof path, "%s/checkpoint-%d", out, k);
        CHECK((access(path, F_OK) == 0) == (k == 3), "%s: the last checkpoint alone is kept", path);
    }
    wrpo_tensors *state;
    snprintf(path, sizeof path, "%s/checkpoint-3/trainer_state.wrpo", out);
    wrpo_ctx *plain = open_ctx(1);
    CHECK(wrpo_tensors_open(plain, path, &state) == WRPO_OK && wrpo_tensors_find(state, "metrics.jsonl")->count > 0,
          "%s: no metrics", path);
    wrpo_tensors_close(state);
    wrpo_close(plain);
    wrpo_data_free(data);
    wrpo_close(ctx);
}
/* The model of the evaluation with the least loss is in best/, and the last `keep` checkpoints stay. A run that goes on
   knows the best one of the run before. */
typedef struct best_run { double loss[16]; int evals; float weight[16]; int64_t stop; wrpo_model *model; } best_run;
static bool on_best(const wrpo_metrics *m, const wrpo_metrics *eval, void *user) {
    best_run *b = user;
    if (eval && b->evals < 16) b->loss[b->evals] = eval->loss;
    if (eval && b->evals < 16) b->weight[b->evals++] = ((const float *)b->model->weights[0].data)[0];
    return m->step != b->stop;
}
static void expect_best(const char *out, const best_run *b, int first, const char *what) {
    wrpo_model *m;
    wrpo_ctx *ctx = open_ctx(1);
    char path[200];
    int best = first;
    for (int i = first; i < b->evals; i++)
        if (b->loss[i] < b->loss[best]) best = i;
    snprintf(path, sizeof path, "%s/best", out);
    CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = path}, &m) == WRPO_OK, "%s: %s", what,
          wrpo_last_error(ctx)->text);
    if (m)
        CHECK(((const float *)m->weights[0].data)[0] == b->weight[best], "%s: not those of evaluation %d", what, best);
    wrpo_model_free(m), wrpo_close(ctx);
}
static void best_and_kept(void) {
    char out[96], path[200];
    wrpo_ctx *ctx = open_ctx(1);
    wrpo_data *data = make_data(ctx, 0, 8), *held = make_data(ctx, 8, 5);
    best_run b = {0};
    snprintf(out, sizeof out, "%s/best", dir);
    wrpo_train_desc d = {.learning_rate = 0.05, .batch_size = 4, .max_steps = 11, .out_dir = out, .save.dir = out,
                         .save_steps = 2, .keep = 3, .eval_data = held, .eval_steps = 1, .save_best = "loss",
                         .warmup_ratio = WRPO_ZERO, .on_step = on_best, .user = &b, .loss.beta = 0.5};
    b.model = make_model(ctx);
    CHECK(wrpo_train(b.model, data, &d, NULL) == WRPO_OK && b.evals == 11, "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(b.model);
    expect_best(out, &b, 0, "best");
    int rises = 0;
    for (int i = 1; i < b.evals; i++) rises += b.loss[i] > b.loss[i - 1];
    CHECK(rises, "the loss only falls: the last one is the best, nothing is shown");
    for (int k = 1; k < 12; k++) {
        snprintf(path, sizeof path, "%s/checkpoint-%d", out, k);
        CHECK((access(path, F_OK) == 0) == (k == 6 || k == 8 || k == 10), "%s: three are kept", path);
    }
    /* stopped after step 7, between two checkpoints; then on from there */
    char from[200], again[96];
    snprintf(again, sizeof again, "%s/best2", dir);
    d.out_dir = d.save.dir = again;
    best_run c = {.stop = 7};
    d.user = &c;
    c.model = make_model(ctx);
    CHECK(wrpo_train(c.model, data, &d, NULL) == WRPO_E_STOPPED && c.evals == 7, "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(c.model);
    for (int k = 1; k < 12; k++) {
        snprintf(path, sizeof path, "%s/checkpoint-%d", again, k);
        CHECK((access(path, F_OK) == 0) == (k == 4 || k == 6 || k == 7), "%s: three are kept, the last one too", path);
    }
    snprintf(from, sizeof from, "%s/checkpoint-7", again);
    d.resume = from, c.stop = 0;
    c.model = make_model(ctx);
    CHECK(wrpo_train(c.model, data, &d, NULL) == WRPO_OK && c.evals == 11, "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(c.model);
    expect_best(again, &c, 0, "best, after a resume");
    CHECK(!memcmp(b.loss, c.loss, sizeof b.loss), "other losses after a resume");
    /* each allocation fails once */
    wrpo_ctx *scarce;
    if (wrpo_open(&(wrpo_desc){.threads = 1, .memory = {counting_alloc, counting_free, NULL}}, &scarce) != WRPO_OK)
        exit(2);
    wrpo_data *few = make_data(scarce, 0, 2);
    wrpo_metrics e = {.loss = 1};
    wrpo_trainer *t = NULL;
    wrpo_model *model = make_model(scarce);
    d.resume = NULL, d.eval_data = few;
    CHECK(wrpo_trainer_open(model, few, &d, &t) == WRPO_OK, "%s", wrpo_last_error(scarce)->text);
    int64_t n = 0;
    double best = NAN;
    for (wrpo_result r = WRPO_E_MEMORY; r != WRPO_OK && n < 2000; n++) {
        const int64_t before = live;
        fail_at = calls + n;
        r = wrpo__best_entry(t, NULL, &best) ? WRPO_E_MEMORY : wrpo__best_entry(t, &e, &best);
        fail_at = -1;
        CHECK((r == WRPO_OK || r == WRPO_E_MEMORY) && live == before, "allocation %lld: %d", (long long)n, r);
        if (r != WRPO_OK) CHECK(isnan(best), "allocation %lld: a best that is not saved", (long long)n);
    }
    CHECK(n > 10 && n < 2000 && best == 1, "%lld allocations", (long long)n);
    e.loss = 2;
    CHECK(wrpo__best_entry(t, &e, &best) == WRPO_OK && best == 1, "a worse one");
    e.loss = NAN;
    CHECK(wrpo__best_entry(t, &e, &best) == WRPO_E_ARG, "no loss");
    wrpo_trainer_free(t), wrpo_model_free(model), wrpo_data_free(few), wrpo_close(scarce);
    /* what cannot be */
    static const char *const bad[] = {"grad_norm", "rewards/rejected", "logps/rejected", "rewards/", "eval_loss", ""};
    d.eval_data = held;
    model = make_model(ctx);
    for (int i = 0; i < 8; i++) {
        d.save_best = i < 6 ? bad[i] : "loss", d.eval_data = i == 6 ? NULL : held, d.save.dir = i == 7 ? NULL : again;
        d.save_steps = 0;
        CHECK(wrpo_train(model, data, &d, NULL) == WRPO_E_ARG && strstr(wrpo_last_error(ctx)->text, "save_best: want"),
              "best by %s: %s", d.save_best, wrpo_last_error(ctx)->text);
    }
    wrpo_model_free(model);
    wrpo_data_free(data), wrpo_data_free(held), wrpo_close(ctx);
}
/* A desc as JSON: every setting once, resolved. */
static void as_json(wrpo_ctx *ctx) {
    const wrpo_train_desc d = {.loss.method = WRPO_METHOD_SIMPO, .warmup_ratio = WRPO_ZERO, .batch_size = 6,
                               .accumulation = 2, .seed = 7, .no_shuffle = true, .learning_rate = 1e-7, .keep = 4};
    static const struct { const char *key, *text; } want[] = {
        {"method", "simpo"}, {"pair", "target"}, {"alpha_schedule", "linear"}, {"lr_schedule", "cosine"},
        {"moments", "f32"}, {"ipo_sum", NULL}, {"no_shuffle", NULL}, {"seed", "7"}, {"beta", "10"},
        {"label_smoothing", "0"}, {"gamma_ratio", "0.3"}, {"sft_weight", "0"}, {"fusion", "margin"},
        {"alpha", "0.1"}, {"alpha_power", "2"},
        {"learning_rate", "1e-7"}, {"warmup_ratio", "0"}, {"beta1", "0.9"}, {"beta2", "0.999"}, {"eps", "1e-8"},
        {"weight_decay", "0"}, {"max_grad_norm", "1"}, {"epochs", "1"}, {"batch_size", "6"}, {"accumulation", "2"},
        {"max_steps", "0"}, {"micro_tokens", "1024"}, {"recompute", "0"}, {"eval_steps", "0"}, {"save_steps", "0"},
        {"keep", "4"}};
    enum { COUNT = sizeof want / sizeof *want };
    char *text;
    wrpo_json *v = NULL;
    CHECK(wrpo_train_desc_json(ctx, &d, &text) == WRPO_OK &&
              wrpo_json_parse(ctx, "desc", text, strlen(text), &v) == WRPO_OK && v->count == COUNT,
          "%s: %s", text, wrpo_last_error(ctx)->text);
    for (int i = 0; v && i < COUNT; i++) {
        const wrpo_json *m = wrpo_json_get(v, want[i].key);
        CHECK(m && (want[i].text ? m->text && !strcmp(m->text, want[i].text) : m->kind == WRPO_JSON_BOOL), "%s in %s",
              want[i].key, text);
    }
    CHECK(v && wrpo_json_get(v, "no_shuffle")->boolean && !wrpo_json_get(v, "ipo_sum")->boolean, "%s", text);
    wrpo_json_free(ctx, v), wrpo_free(ctx, text);
    CHECK(wrpo_train_desc_json(ctx, &(wrpo_train_desc){.epochs = -1}, &text) == WRPO_E_ARG && !text &&
              strstr(wrpo_last_error(ctx)->text, "epochs: want a positive number"), "%s", wrpo_last_error(ctx)->text);
    CHECK(wrpo_train_desc_json(ctx, &(wrpo_train_desc){.keep = -1}, &text) == WRPO_E_ARG && !text, "keep -1");
}
/* wrpo_train computes the first batch once where the policy is its own reference: the same weights, metrics and cache
   as by open and step, with so many log-probs fewer. Not with dropout, nor a reference of its own. */
static int64_t labels_seen;
static void count_labels(void *dev, float *logp, float *lse, const float *logits, int64_t ldl, const int32_t *label,
                         int64_t n, int64_t V, float softcap) {
    labels_seen += n;
    wrpo_backend_cpu()->logprob(dev, logp, lse, logits, ldl, label, n, V, softcap);
}
static char *text_of(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    char *text = calloc(1, 1 << 16);
    *size = f ? fread(text, 1, 1 << 16, f) : 0;
    if (f) fclose(f);
    return text;
}
static bool equal_weights(wrpo_model *a, wrpo_model *b) {        /* as floats, whatever their type */
    bool equal = a->n_weights == b->n_weights;
    for (int64_t i = 0; i < a->n_weights && equal; i++)
        for (int64_t k = 0, n = wrpo__size(&a->weights[i]); k < n; k++) {
            float x = 0, y = 1;
            equal = equal && wrpo_weight_get(a, i, k, 1, &x) == WRPO_OK && wrpo_weight_get(b, i, k, 1, &y) == WRPO_OK &&
                !memcmp(&x, &y, sizeof x);
        }
    return equal;
}
static void reference_once(int64_t batch, wrpo_dtype dtype, int64_t rank, double dropout, bool other_reference) {
    wrpo_backend be = *wrpo_backend_cpu();
    be.logprob = count_labels;
    wrpo_ctx *ctx[2];
    wrpo_model *model[2];
    wrpo_metrics m[2] = {{0}, {0}};
    int64_t seen[2], first = 0;
    char out[2][128], other[128], *cache[2];
    size_t size[2];
    snprintf(other, sizeof other, "%s/once_other", dir);
    for (int way = 0; way < 2; way++) {
        if (wrpo_open(&(wrpo_desc){.backend = &be, .threads = 2, .dtype = dtype}, &ctx[way]) != WRPO_OK) exit(2);
        snprintf(out[way], sizeof out[way], "%s/once_%d", dir, way);
        model[way] = make_model(ctx[way]);
        wrpo_data *data = make_data(ctx[way], 0, N);
        if (rank)
            CHECK(wrpo_adapter_new(model[way], &(wrpo_adapter_desc){.r = rank, .dropout = dropout}) == WRPO_OK, "%s",
                  wrpo_last_error(ctx[way])->text);
        if (other_reference)
            CHECK(wrpo_model_save(model[way], &(wrpo_save_desc){.dir = other}) == WRPO_OK, "%s",
                  wrpo_last_error(ctx[way])->text);
        const wrpo_train_desc d = {.learning_rate = 1e-3, .batch_size = batch, .epochs = 2, .out_dir = out[way],
                                   .ref_dir = other_reference ? other : NULL, .warmup_ratio = WRPO_ZERO};
        labels_seen = 0;
        if (way) CHECK(wrpo_train(model[1], data, &d, &m[1]) == WRPO_OK, "%s", wrpo_last_error(ctx[1])->text);
        else {
            wrpo_trainer *t;
            CHECK(wrpo_trainer_open(model[0], data, &d, &t) == WRPO_OK, "%s", wrpo_last_error(ctx[0])->text);
            const int64_t *list, n = wrpo__next_batch(t, &list);
            for (int64_t i = 0; i < n; i++) first += wrpo__scored_tokens(data, list, i, i + 1);
            while (m[0].step == 0 || m[0].step < m[0].steps)
                if (wrpo_trainer_step(t, &m[0]) != WRPO_OK) { CHECK(false, "%s", ctx[0]->error.text); break; }
            wrpo_trainer_free(t);
        }
        seen[way] = labels_seen;
        char path[600] = "";
        DIR *list = opendir(out[way]);
        for (const struct dirent *e; list && (e = readdir(list)) != NULL;)
            if (!strncmp(e->d_name, "reference_logps", 15)) snprintf(path, sizeof path, "%s/%s", out[way], e->d_name);
        closedir(list);
        cache[way] = text_of(path, &size[way]);
        wrpo_data_free(data);
    }
    const bool equal = equal_weights(model[0], model[1]);
    const bool spared = !dropout && !other_reference;
    CHECK(equal && m[0].loss == m[1].loss && m[0].grad_norm == m[1].grad_norm && m[0].step == m[1].step,
          "batch %lld, rank %lld: loss %.17g and %.17g", (long long)batch, (long long)rank, m[0].loss, m[1].loss);
    CHECK(size[0] > 100 && size[0] == size[1] && !memcmp(cache[0], cache[1], size[0]), "caches of %zu and %zu bytes",
          size[0], size[1]);
    CHECK(first > 20 && seen[1] == seen[0] - (spared ? first : 0),
          "batch %lld: %lld log-probs, %lld by wrpo_train, %lld of the first batch", (long long)batch,
          (long long)seen[0], (long long)seen[1], (long long)first);
    for (int way = 0; way < 2; way++) free(cache[way]), wrpo_model_free(model[way]), wrpo_close(ctx[way]);
    char command[400];
    snprintf(command, sizeof command, "rm -r %s %s %s", out[0], out[1], other_reference ? other : "");
    CHECK(system(command) == 0, "%s", command);
}

int main(void) {
    snprintf(dir, sizeof dir, "tmp_train_%ld", (long)getpid());
    wrpo_ctx *ctx = open_ctx(2);
    {
        TEST_TRY(ctx, wrpo__arena_new(ctx), true) wrpo__make_dir(ctx, dir);
        CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", ctx->error.text);
    }
    snprintf(config_path, sizeof config_path, "%s/config.json", dir);
    FILE *f = fopen(config_path, "w");
    fputs(config_text, f);
    fclose(f);
    make_records();

    {   /* step 0: policy = reference, so the loss is ln 2 to the last bit, the margin 0, the learning rate 0 */
        result r = run((wrpo_train_desc){.warmup_ratio = 0.5}, 2);
        CHECK(r.m[0].loss == log(2), "loss %.17g, ln 2 = %.17g", r.m[0].loss, log(2));
        CHECK(r.m[0].rewards_margins == 0 && r.m[0].cur_alpha == 0 && r.m[0].learning_rate == 0, "margin %g",
              r.m[0].rewards_margins);
        CHECK(r.steps == 4 && r.m[3].steps == 4 && r.m[1].cur_alpha == 0.1 * 1 / 4, "%d steps, alpha %g", r.steps,
              r.m[1].cur_alpha);
        CHECK(fabs(r.m[3].epoch - 1) < 1e-12, "epoch %g", r.m[3].epoch);
        drop(&r);
    }
    reference_once(4, WRPO_DTYPE_F32, 0, 0, false);
    reference_once(N, WRPO_DTYPE_F32, 0, 0, false);
    reference_once(5, WRPO_DTYPE_BF16, 0, 0, false);
    reference_once(4, WRPO_DTYPE_F32, 3, 0, false);
    reference_once(4, WRPO_DTYPE_F32, 3, 0.3, false);
    reference_once(4, WRPO_DTYPE_F32, 0, 0, true);
    wrpo_train_desc base = {
        .warmup_ratio = WRPO_ZERO, .lr_schedule = WRPO_LR_SCHEDULE_CONSTANT, .epochs = 2, .loss = {.beta = 0.5}};
    wrpo_train_desc zero = base, dpo = base, one = base;
    zero.alpha = WRPO_ZERO, zero.alpha_schedule = WRPO_ALPHA_SCHEDULE_CONSTANT;
    dpo.loss.method = WRPO_METHOD_DPO;
    compare("alpha = 0 is DPO on (y_wt, y_l)", zero, 1, dpo, 1, 0);
    one = base, one.alpha = 1, one.alpha_schedule = WRPO_ALPHA_SCHEDULE_CONSTANT;
    wrpo_train_desc source = dpo;
    source.loss.pair = WRPO_PAIR_SOURCE;
    compare("alpha = 1 is DPO on (y_ws, y_l)", one, 1, source, 1, 0);
    compare("1 and 2 threads", base, 1, base, 2, 0);
    compare("1 and 3 threads", base, 1, base, 3, 0);
    compare("run to run", base, 2, base, 2, 0);
    wrpo_train_desc small = base, all = base, some = base;
    small.micro_tokens = 1, all.recompute = -1, some.recompute = 2;
    /* records packed alone or together: the same log-probs to the bit, the same gradient but for the order of sums */
    {
        wrpo_train_desc d[2] = {base, small};
        result r[2];
        double norm = 0, worst = 0;
        float *grads[2];
        for (int i = 0; i < 2; i++) {
            wrpo_trainer *t;
            r[i] = (result){.ctx = open_ctx(2)};
            r[i].model = make_model(r[i].ctx);
            wrpo_data *data = make_data(r[i].ctx, 0, N);
            d[i].batch_size = 4, d[i].learning_rate = 1e-3;
            CHECK(wrpo_trainer_open(r[i].model, data, &d[i], &t) == WRPO_OK &&
                      wrpo_trainer_step(t, &r[i].m[0]) == WRPO_OK,
                  "%s", r[i].ctx->error.text);
            grads[i] = malloc((size_t)r[i].model->count * sizeof(float));
            memcpy(grads[i], t->grads, (size_t)r[i].model->count * sizeof(float));
            wrpo_trainer_free(t), wrpo_data_free(data);
        }
        for (int64_t i = 0; i < r[0].model->count; i++)
            norm = fmax(norm, fabs((double)grads[0][i])),
            worst = test_larger(worst, fabs((double)grads[0][i] - (double)grads[1][i]));
        CHECK(worst < 1e-6 * norm && r[0].m[0].loss == r[1].m[0].loss &&
                  r[0].m[0].logps_chosen == r[1].m[0].logps_chosen,
              "4 x 1 and 1 x 4: gradients differ by %g of %g", worst, norm);
        printf("4 x 1 and 1 x 4: gradients differ by %.2g of the largest\n", worst / norm);
        for (int i = 0; i < 2; i++) free(grads[i]), drop(&r[i]);
    }
    wrpo_train_desc whole = base, parts = base;
    whole.batch_size = 4, whole.epochs = 1, whole.max_steps = 3, whole.no_shuffle = true;
    parts = whole, parts.accumulation = 4;
    compare("accumulated 4 x 1 = 1 x 4", parts, 2, whole, 2, 0);
    compare("recomputed = kept", all, 2, base, 2, 0);
    compare("recomputed in part = kept", some, 2, base, 2, 0);

    {   /* a record with the shared prompt equals its three sequences apart: bit for bit */
        wrpo_model *model = make_model(ctx);
        wrpo_data *together = make_data(ctx, 0, N), *apart;
        wrpo_record *singles = calloc(3 * N, sizeof *singles);
        for (int i = 0; i < 3 * N; i++)
            singles[i] = records[i / 3], singles[i].responses = &responses[i / 3][i % 3], singles[i].count = 1;
        CHECK(wrpo_data_from_ids(ctx, singles, 3 * N, &apart) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        double a[N][3], b[N][3];
        float *pa = NULL, *pb = NULL;
        CHECK(wrpo_logprobs(model, together, 0, N, a[0], &pa) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_logprobs(model, apart, 0, 3 * N, b[0], &pb) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        CHECK(!memcmp(a, b, sizeof a), "shared prompt: sums differ: %.9g %.9g", total(a[0], 3 * N), total(b[0], 3 * N));
        /* and equals plain sequences, prompt and response in one run of rows, up to rounding */
        int32_t joined[N * 3][2 * LENGTH];
        wrpo_tokens whole_tokens[N * 3];
        for (int i = 0; i < 3 * N; i++) {
            const wrpo_tokens *y = &responses[i / 3][i % 3];
            int64_t P = records[i / 3].prompt_count;
            memcpy(joined[i], records[i / 3].prompt, (size_t)P * 4);
            memcpy(joined[i] + P, y->ids, (size_t)y->count * 4);
            whole_tokens[i] = (wrpo_tokens){
                .role = y->role, .ids = joined[i] + 1, .count = P + y->count - 1, .first = P - 1, .share = 1};
            singles[i] = (wrpo_record){
                .prompt_id = "x", .prompt = joined[i], .prompt_count = 1, .responses = &whole_tokens[i], .count = 1};
        }
        wrpo_data *plain;
        CHECK(wrpo_data_from_ids(ctx, singles, 3 * N, &plain) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_logprobs(model, plain, 0, 3 * N, b[0], NULL) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        double worst = 0;
        for (int i = 0; i < 3 * N; i++)
            worst = test_larger(worst, fabs(a[i / 3][i % 3] - b[i / 3][i % 3]) / (double)responses[i / 3][i % 3].count);
        CHECK(worst < 2e-6, "shared prompt against plain sequences: %g a token", worst);
        printf("shared prompt against plain sequences: worst %.2g a token\n", worst);
        wrpo_free(ctx, pa), wrpo_free(ctx, pb), free(singles);

        /* evaluation: the same numbers as the trainer's first step, nothing changed */
        wrpo_metrics m;
        wrpo_train_desc d = {.alpha = 0.3};
        CHECK(wrpo_eval(model, together, &d, &m) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        CHECK(m.loss == log(2) && m.cur_alpha == 0.3 && m.records == N, "eval: loss %.17g", m.loss);
        double mean = 0;
        for (int i = 0; i < N; i++) mean += a[i][0] / N;
        CHECK(fabs(m.logps_source_chosen - mean) < 1e-9, "logps %g, want %g", m.logps_source_chosen, mean);

        /* impossible settings, one sentence each */
        const struct { wrpo_train_desc d; const char *says;
        } bad[] = {{{.alpha = 1.5}, "alpha"},
                   {{.alpha = -0.1}, "alpha"},
                   {{.alpha = NAN}, "alpha"},
                   {{.loss.beta = -1}, "beta"},
                   {{.loss.label_smoothing = 0.7}, "label_smoothing"},
                   {{.learning_rate = -1}, "learning_rate"},
                   {{.beta2 = 1}, "beta2"},
                   {{.batch_size = 5, .accumulation = 2}, "accumulation"},
                   {{.epochs = -1}, "epochs"},
                   {{.warmup_ratio = 2}, "warmup_ratio"},
                   {{.recompute = -2}, "recompute"},
                   {{.out_dir = "/proc/nowhere"}, "/proc/nowhere"},
                   {{.ref_dir = "tmp_nowhere"}, "tmp_nowhere"}};
        for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++) {
            wrpo_trainer *t = (wrpo_trainer *)&m;
            wrpo_result r = wrpo_trainer_open(model, together, &bad[i].d, &t);
            CHECK(r != WRPO_OK && !t && strstr(wrpo_last_error(ctx)->text, bad[i].says), "setting %d: %d \"%s\"", i, r,
                  wrpo_last_error(ctx)->text);
        }
        {   /* a NaN in the weights: the step stops with the record's name and changes nothing */
            wrpo_trainer *t;
            d = (wrpo_train_desc){
                .batch_size = 4, .learning_rate = 0.01, .no_shuffle = true, .warmup_ratio = WRPO_ZERO};
            CHECK(wrpo_trainer_open(model, together, &d, &t) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
            float *w = WRPO__W(model, q_proj, 1)->data;
            CHECK(wrpo_trainer_step(t, &m) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
            float keep = w[5], other = w[6];
            w[5] = NAN;
            wrpo_result r = wrpo_trainer_step(t, &m);
            CHECK(r == WRPO_E_NOT_FINITE && strstr(wrpo_last_error(ctx)->text, "\"r4\""), "%d %s", r,
                  wrpo_last_error(ctx)->text);
            CHECK(w[6] == other, "an update was made");
            w[5] = keep;
            CHECK(wrpo_trainer_step(t, &m) == WRPO_OK && m.step == 2, "after the repair: %s",
                  wrpo_last_error(ctx)->text);
            wrpo_trainer_free(t);
        }
        wrpo_data_free(plain), wrpo_data_free(apart), wrpo_data_free(together);
        wrpo_model_free(model);
    }
    {   /* training descends: SFT lowers its loss, WRPO raises its margin; every method runs */
        wrpo_train_desc d = {.loss = {.method = WRPO_METHOD_SFT}, .learning_rate = 3e-3, .epochs = 2};
        result r = run(d, 2);
        CHECK(r.m[r.steps - 1].loss < r.m[0].loss, "sft: %g -> %g", r.m[0].loss, r.m[r.steps - 1].loss);
        drop(&r);
        for (int method = 0; method < WRPO_METHOD_SFT; method++)
            for (int pair = 0; pair < 3; pair++) {
                d = (wrpo_train_desc){.loss = {.method = (wrpo_method)method, .pair = (wrpo_pair)pair},
                                      .learning_rate = 3e-3,
                                      .epochs = 2,
                                      .alpha = 0.5};
                r = run(d, 2);
                CHECK(r.m[r.steps - 1].rewards_margins > r.m[0].rewards_margins, "method %d pair %d: margin %g -> %g",
                      method, pair, r.m[0].rewards_margins, r.m[r.steps - 1].rewards_margins);
                drop(&r);
            }
    }
    /* a limit: logits first, then as few layers as it takes are made again, the run holds to it and has the same bits;
       under the least, what would fit is said */
    {
        wrpo_bytes kept, least, fitted;
        wrpo_train_desc every = base;
        every.recompute = -1, every.micro_tokens = base.micro_tokens = 600;
        wrpo_data *data = make_data(ctx, 0, N);
        wrpo_model *model = make_model(ctx);
        const wrpo_config *c = wrpo_model_config(model);
        CHECK(!wrpo_train_bytes(ctx, c, data, &base, NULL, &kept) &&
                  !wrpo_train_bytes(ctx, c, data, &every, NULL, &least) && kept.recompute == 0 &&
                  least.recompute == 3 && kept.logits && !least.logits,
              "%s", wrpo_last_error(ctx)->text);
        result free_run = run(base, 2);
        {   /* a little less than all: the logits go first */
            wrpo_ctx *tight;
            wrpo_bytes most;
            if (wrpo_open(&(wrpo_desc){.threads = 2}, &tight) != WRPO_OK) exit(2);
            CHECK(!wrpo_train_bytes(tight, c, data, &base, NULL, &most) && most.logits, "%s",
                  wrpo_last_error(tight)->text);
            const size_t used = tight->bytes;
            wrpo_close(tight);
            if (wrpo_open(&(wrpo_desc){.threads = 2, .memory_limit = most.device + used - 1}, &tight) != WRPO_OK)
                exit(2);
            CHECK(!wrpo_train_bytes(tight, c, data, &base, NULL, &most) && most.recompute == 0 && !most.logits &&
                      most.device <= most.room,
                  "%lld layers, logits %d: %zu of %zu", (long long)most.recompute, most.logits, most.device, most.room);
            wrpo_close(tight);
        }
        for (int part = 0; part < 3; part++) {
            wrpo_ctx *tight;
            wrpo_trainer *t;
            wrpo_metrics m;
            const size_t reserve = 200000;             /* data, records and names beside the plan */
            const wrpo_desc desc = {.threads = 2,
                                    .memory_limit = part == 2
                                        ? least.device / 2
                                        : (part ? least.device : (kept.device + least.device) / 2) + reserve};
            if (wrpo_open(&desc, &tight) != WRPO_OK) exit(2);
            wrpo_model *policy = make_model(tight);
            wrpo_data *records_there = make_data(tight, 0, N);
            CHECK(!wrpo_train_bytes(tight, c, records_there, &base, NULL, &fitted) &&
                      (part == 2 || (fitted.recompute > 0 && fitted.device <= fitted.room)),
                  "part %d: %lld layers", part, (long long)fitted.recompute);
            base.learning_rate = 1e-3, base.batch_size = 4;
            const wrpo_result r = wrpo_trainer_open(policy, records_there, &base, &t);
            if (part == 2)
                CHECK(r == WRPO_E_MEMORY && strstr(wrpo_last_error(tight)->text, "its limit has"), "%d %s", r,
                      wrpo_last_error(tight)->text);
            else {
                bool same = false;
                CHECK(r == WRPO_OK, "%s", wrpo_last_error(tight)->text);
                for (int i = 0; r == WRPO_OK && i < free_run.steps; i++)
                    CHECK(!wrpo_trainer_step(t, &m) && m.loss == free_run.m[i].loss, "step %d: %.17g", i, m.loss);
                worst_difference(policy, free_run.model, &same);
                CHECK(same && tight->bytes <= desc.memory_limit, "other bits, or %zu bytes held of %zu", tight->bytes,
                      desc.memory_limit);
                wrpo_trainer_free(t);
            }
            wrpo_data_free(records_there), wrpo_model_free(policy);
            wrpo_close(tight);
        }
        base.learning_rate = 0, base.batch_size = 0, base.micro_tokens = 0;
        drop(&free_run), wrpo_data_free(data), wrpo_model_free(model);
    }
    {   /* what is no source weighs 1 where nothing is said */
        wrpo_tokens unsaid[3] = {responses[0][0], responses[0][1], responses[0][2]};
        wrpo_record single = records[0];
        wrpo_data *data;
        unsaid[1].share = unsaid[2].share = 0, single.responses = unsaid;
        CHECK(!wrpo_data_from_ids(ctx, &single, 1, &data) && wrpo_data_record(data, 0).responses[1].share == 1 &&
                  wrpo_data_record(data, 0).responses[2].share == 1,
              "a weight of 0");
        wrpo_data_free(data);
        /* sources that state no share have equal ones; a record that is given again from a view is the same record */
        unsaid[0].share = 0, unsaid[1].role = WRPO_ROLE_SOURCE, single.weight = WRPO_ZERO;
        CHECK(!wrpo_data_from_ids(ctx, &single, 1, &data), "%s", wrpo_last_error(ctx)->text);
        wrpo_record view = wrpo_data_record(data, 0);
        CHECK(view.responses[0].share == 0.5 && view.responses[1].share == 0.5 && view.weight == 0, "shares %g and %g",
              view.responses[0].share, view.responses[1].share);
        unsaid[0] = view.responses[0], unsaid[1] = view.responses[1], unsaid[0].share = WRPO_ZERO, unsaid[1].share = 1,
        view.responses = unsaid;
        for (int again = 0; again < 2; again++) {
            wrpo_data *next;
            CHECK(!wrpo_data_from_ids(ctx, &view, 1, &next), "%s", wrpo_last_error(ctx)->text);
            view = wrpo_data_record(next, 0);
            CHECK(view.responses[0].share == 0 && view.responses[1].share == 1 && view.weight == 0,
                  "given %d times: shares %g and %g, weight %g", again + 1, view.responses[0].share,
                  view.responses[1].share, view.weight);
            wrpo_data_free(data), data = next;
        }
        wrpo_data_free(data);
    }
    {   /* the second example of >>top: one optimizer step on token ids */
        wrpo_model *model = make_model(ctx);
        wrpo_data *data;
        wrpo_trainer *t;
        wrpo_metrics m;
        const float before = ((const float *)model->weights[1].data)[3];
        const int32_t *p = ids[0][0], *a = ids[0][1], *b = ids[0][2], *c = ids[0][3];
        const wrpo_tokens y[] = {{.role = WRPO_ROLE_SOURCE, .ids = a, .count = 5},
                                 {.role = WRPO_ROLE_TARGET, .ids = b, .count = 4},
                                 {.role = WRPO_ROLE_REJECTED, .ids = c, .count = 6}};
        const wrpo_record record = {.prompt = p, .prompt_count = 7, .responses = y, .count = 3};
        const wrpo_train_desc desc = {.max_steps = 1, .warmup_ratio = WRPO_ZERO,
                                      .alpha_schedule = WRPO_ALPHA_SCHEDULE_CONSTANT};
        CHECK(!wrpo_data_from_ids(ctx, &record, 1, &data) && !wrpo_trainer_new(model, data, &desc, &t)
              && !wrpo_trainer_step(t, &m), "%s", wrpo_last_error(ctx)->text);
        CHECK(fabs(m.loss - log(2)) < 1e-6 && m.cur_alpha == 0.1 && m.learning_rate == 3e-7 && m.step == m.steps,
              "loss %g", m.loss);
        CHECK(((const float *)model->weights[1].data)[3] != before, "the step changed nothing");
        wrpo_trainer_free(t), wrpo_data_free(data), wrpo_model_free(model);
    }
    {   /* a model of a struct: the limits of a config, its weights out and in, a step; it has no config.json to save */
        const wrpo_config good = {.model_type = "llama",
                                  .vocab_size = 97,
                                  .hidden_size = 36,
                                  .intermediate_size = 50,
                                  .num_hidden_layers = 3,
                                  .num_attention_heads = 6,
                                  .num_key_value_heads = 2,
                                  .head_dim = 10,
                                  .max_position_embeddings = 512,
                                  .rms_norm_eps = 1e-5,
                                  .initializer_range = 0.3,
                                  .tie_word_embeddings = true,
                                  .rope.theta = 10000};
        wrpo_model *model, *read = make_model(ctx), *none;
        wrpo_data *data = make_data(ctx, 0, N);
        wrpo_metrics m;
        const wrpo_weight *w;
        float x[3] = {0}, y[3] = {1, 2, 3};
        bool equal;
        CHECK(wrpo_model_new(ctx, &good, 7, &model) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        worst_difference(model, read, &equal);
        CHECK(equal && wrpo_model_parameters(model) == wrpo_model_parameters(read),
              "another model than that of the same config.json");
        const int64_t weights = wrpo_model_weights(model, &w), size = w[1].rows * w[1].cols;
        CHECK(wrpo_weight_get(model, 1, 4, 3, x) == WRPO_OK && !memcmp(x, (const float *)w[1].data + 4, sizeof x), "%s",
              wrpo_last_error(ctx)->text);
        CHECK(wrpo_weight_put(model, 1, 4, 3, y) == WRPO_OK && wrpo_weight_get(model, 1, 4, 3, x) == WRPO_OK &&
                  !memcmp(x, y, sizeof x),
              "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_weight_get(model, 1, size, 0, x) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        SAYS(wrpo_weight_get(model, -1, 0, 1, x), "weight -1: want 0 to");
        SAYS(wrpo_weight_get(model, weights, 0, 1, x), ": want 0 to");
        SAYS(wrpo_weight_get(model, 1, size - 2, 3, x), "elements from");
        SAYS(wrpo_weight_put(model, 1, -1, 1, x), "1 elements from -1 on");
        SAYS(wrpo_weight_put(model, 1, 0, -1, x), "-1 elements from 0 on");
        CHECK(wrpo_train(model, data, &(wrpo_train_desc){.max_steps = 2, .batch_size = 4, .learning_rate = 1e-3}, &m) ==
                      WRPO_OK &&
                  isfinite(m.loss),
              "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_generate(model, &(wrpo_prompt){.ids = ids[0][0], .count = 3}, 1,
                            &(wrpo_generate_desc){.max_tokens = 3}) == WRPO_OK,
              "%s", wrpo_last_error(ctx)->text);
        SAYS(wrpo_model_save(model, &(wrpo_save_desc){.dir = "tmp_none"}),
             "want a model with a config.json, found one of wrpo_model_new");
        CHECK(!wrpo__disk_exists("tmp_none"), "a folder for nothing");
        wrpo_model_free(model), wrpo_model_free(read), wrpo_data_free(data);
        /* matrices in two halves: what is put in comes out, to the last bit */
        wrpo_ctx *masters = open_with(WRPO_DTYPE_BF16, 1);
        float in[3] = {0.1f, -1e-20f, 3e7f};
        CHECK(wrpo_model_new(masters, &good, 7, &model) == WRPO_OK && wrpo_weight_put(model, 0, 50, 3, in) == WRPO_OK &&
                  wrpo_weight_get(model, 0, 50, 3, x) == WRPO_OK && !memcmp(in, x, sizeof x),
              "%s", wrpo_last_error(masters)->text);
        wrpo_model_free(model), wrpo_close(masters);
#define BAD(change, sentence) \
    do { \
        wrpo_config c = good; \
        change; \
        SAYS(wrpo_model_new(ctx, &c, 0, &none), sentence); \
        CHECK(!none, "a model"); \
    } while (0)
        BAD(c = (wrpo_config){0}, "wrpo_config: vocab_size: want 1 to 16777216, found 0");
        BAD(c.hidden_size = -1, "hidden_size: want 1 to");
        BAD(c.hidden_size = WRPO__MAX_HIDDEN + 1, "hidden_size: want 1 to");
        BAD(c.intermediate_size = 0, "intermediate_size: want 1 to");
        BAD(c.num_hidden_layers = 513, "num_hidden_layers: want 1 to 512, found 513");
        BAD(c.num_attention_heads = 0, "num_attention_heads: want 1 to");
        BAD(c.num_key_value_heads = 0, "num_key_value_heads: want 1 to 6, found 0");
        BAD(c.num_key_value_heads = 4, "num_attention_heads modulo num_key_value_heads: want 0 to 0, found 2");
        BAD(c.head_dim = 11, "head_dim modulo 2: want 0 to 0, found 1");
        BAD(c.head_dim = 514, "head_dim: want 2 to 512, found 514");
        BAD(c.rope.dims = 5, "rope.dims modulo 2: want 0 to 0, found 1");
        BAD(c.rope.dims = 12, "rope.dims: want 2 to 10, found 12");
        BAD(c.max_position_embeddings = 0, "max_position_embeddings: want 1 to");
        BAD(c.sliding_window = -1, "sliding_window: want 0 to");
        BAD(c.rms_norm_eps = 0, "rms_norm_eps: want 1e-15 to 1e+15, found 0");
        BAD(c.initializer_range = NAN, "initializer_range: want 1e-15 to 1e+15, found ");
        BAD(c.rope.theta = -1, "rope.theta: want 1e-15 to 1e+15, found -1");
        BAD(c.attn_logit_softcapping = -1, "attn_logit_softcapping: want 0 to 1e+15, found -1");
        BAD(c.query_pre_attn_scalar = INFINITY, "query_pre_attn_scalar: want 0 to 1e+15, found inf");
        BAD(c.head = WRPO_HEAD_SCORE, "head: want WRPO_HEAD_LM");
        BAD(memset(c.model_type, 'x', sizeof c.model_type), "model_type: want a NUL");
        BAD(c.rope.type = (wrpo_rope_type)6, "rope.type: want 0 to 5, found 6");
        BAD(c.rope.type = WRPO_ROPE_LINEAR, "rope.factor: want 1e-15 to 1e+15, found 0");
        BAD((c.rope.type = WRPO_ROPE_DYNAMIC, c.rope.factor = 2, c.rope.dims = 2), "rope.dims: want 4 to 10, found 2");
        BAD((c.rope.type = WRPO_ROPE_LLAMA3, c.rope.factor = 2, c.rope.low_freq_factor = c.rope.high_freq_factor = 1),
            "original_max_position_embeddings: want 2 to 1099511627776, found 0");
        BAD((c.rope.type = WRPO_ROPE_LLAMA3, c.rope.factor = 2, c.rope.low_freq_factor = c.rope.high_freq_factor = 1,
             c.rope.original_max_position_embeddings = 8),
            "rope.high_freq_factor: want 1 to 1e+15, found 1");
        BAD((c.rope.type = WRPO_ROPE_YARN, c.rope.factor = 2, c.rope.original_max_position_embeddings = 8),
            "rope.attention_factor: want 1e-15 to 1e+15, found 0");
        BAD((c.rope.type = WRPO_ROPE_LONGROPE, c.rope.factor = c.rope.attention_factor = 2,
             c.rope.original_max_position_embeddings = 8),
            "rope.short_factor and long_factor: want 1e-15 to 1e+15, found 0");
#undef BAD
        wrpo_bytes bytes;
        SAYS(wrpo_train_bytes(ctx, &(wrpo_config){0}, NULL, NULL, NULL, &bytes), "wrpo_config: vocab_size: want 1 to");
    }
    {   /* a desc of NULL is {0} */
        wrpo_model *model = make_model(ctx), *none;
        wrpo_data *data = make_data(ctx, 0, N);
        wrpo_trainer *t;
        wrpo_reward *reward;
        wrpo_bytes bytes;
        wrpo_metrics m, other;
        wrpo_select_stats selected;
        wrpo_winrate_stats rates;
        int64_t counts[4];
        SAYS(wrpo_model_load(ctx, NULL, &none), "wrpo_model_desc: dir is missing");
        SAYS(wrpo_model_init(ctx, NULL, &none), "wrpo_init_desc: config is missing");
        SAYS(wrpo_model_save(model, NULL), "wrpo_save_desc: dir is missing");
        SAYS(wrpo_reward_load(ctx, NULL, &reward), "wrpo_reward_desc: dir is missing");
        SAYS(wrpo_split(ctx, NULL, counts), "wrpo_split_desc: want in and two of out, found NULL");
        SAYS(wrpo_winrate(ctx, NULL, &rates), "wrpo_winrate_desc: want a and b, found NULL");
        CHECK(wrpo_select(ctx, NULL, &selected) == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "want prompts"),
              "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_train_bytes(ctx, wrpo_model_config(model), data, NULL, NULL, &bytes) == WRPO_OK && bytes.total > 0,
              "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_eval(model, data, NULL, &m) == WRPO_OK &&
                  wrpo_eval(model, data, &(wrpo_train_desc){0}, &other) == WRPO_OK && m.loss == other.loss,
              "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_trainer_new(model, data, NULL, &t) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        SAYS(wrpo_trainer_save(t, NULL), "wrpo_save_desc: dir is missing");
        wrpo_trainer_free(t);
        CHECK(wrpo_train(model, data, NULL, NULL) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        wrpo_data_free(data), wrpo_model_free(model);
    }
    {   /* an explicit zero is a zero, and nobody sees its sign */
        wrpo_model *model = make_model(ctx);
        wrpo_data *data = make_data(ctx, 0, N);
        const wrpo_train_desc zeros = {.alpha = WRPO_ZERO,
                                       .learning_rate = WRPO_ZERO,
                                       .warmup_ratio = WRPO_ZERO,
                                       .beta1 = WRPO_ZERO,
                                       .beta2 = WRPO_ZERO,
                                       .eps = WRPO_ZERO,
                                       .weight_decay = WRPO_ZERO,
                                       .loss.label_smoothing = WRPO_ZERO,
                                       .batch_size = N};
        const wrpo_train_desc d = wrpo_train_defaults(ctx, &zeros), twice = wrpo_train_defaults(ctx, &d);
        wrpo_metrics last;
        char *line = NULL;
        CHECK(d.alpha == 0 && d.learning_rate == 0 && d.warmup_ratio == 0 && d.beta1 == 0 && d.beta2 == 0 &&
                  d.eps == 0 && d.weight_decay == 0,
              "explicit zeros");
        CHECK(twice.alpha == 0 && twice.learning_rate == 0 && twice.warmup_ratio == 0 && twice.beta1 == 0 &&
                  twice.beta2 == 0 && twice.eps == 0,
              "resolved twice");
        CHECK(!wrpo_train(model, data, &zeros, &last) && !wrpo_metrics_json(ctx, &last, "", &line), "%s",
              wrpo_last_error(ctx)->text);
        CHECK(last.learning_rate == 0 && last.cur_alpha == 0 && line && !strstr(line, "-0,") &&
                  strstr(line, "\"learning_rate\": 0,"),
              "%s", line ? line : "");
        wrpo_free(ctx, line);
        const wrpo_train_desc never = {.alpha_power = WRPO_ZERO};
        CHECK(wrpo_train(model, data, &never, &last) == WRPO_E_ARG && strstr(wrpo_last_error(ctx)->text, "found 0") &&
                  !strstr(wrpo_last_error(ctx)->text, "-0"),
              "%s", wrpo_last_error(ctx)->text);
        wrpo_data_free(data), wrpo_model_free(model);
    }
    /* bfloat16: a frozen model on a mapped file has the bits of a loaded one; training works on float masters, which a
       save keeps */
    {
        wrpo_model *made = make_model(ctx), *loaded, *frozen, *again;
        wrpo_data *data = make_data(ctx, 0, N);
        char half[96], float_dir[96];
        snprintf(half, sizeof half, "%s/half", dir), snprintf(float_dir, sizeof float_dir, "%s/float", dir);
        CHECK(wrpo_model_save(made, &(wrpo_save_desc){.dir = half, .dtype = WRPO_DTYPE_BF16}) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        CHECK(!wrpo_model_load(ctx, &(wrpo_model_desc){.dir = half}, &loaded) &&
                  !wrpo_model_load(ctx, &(wrpo_model_desc){.dir = half, .frozen = true}, &frozen),
              "%s", wrpo_last_error(ctx)->text);
        CHECK(WRPO__W(frozen, q_proj, 0)->dtype == WRPO_DTYPE_BF16 && WRPO__W(frozen, norm, 0)->dtype == WRPO_DTYPE_F32,
              "a frozen model keeps the file's dtype");
        double a[N][3], b[N][3];
        CHECK(!wrpo_logprobs(loaded, data, 0, N, a[0], NULL) && !wrpo_logprobs(frozen, data, 0, N, b[0], NULL), "%s",
              wrpo_last_error(ctx)->text);
        CHECK(!memcmp(a, b, sizeof a), "a mapped model has other log-probs");
        wrpo_trainer *t;
        CHECK(wrpo_trainer_open(frozen, data, &(wrpo_train_desc){0}, &t) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "frozen"),
              "a frozen model was trained");
        CHECK(wrpo_trainer_open(loaded, data, &(wrpo_train_desc){.lr_schedule = (wrpo_lr_schedule)7}, &t) ==
                      WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "schedule: want"),
              "schedule 7");
        CHECK(wrpo_trainer_open(loaded, data, &(wrpo_train_desc){.moments = (wrpo_moments)9}, &t) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "moments: want"),
              "states 9");
        wrpo_model_free(made), wrpo_model_free(frozen), wrpo_model_free(loaded), wrpo_data_free(data);

        wrpo_train_desc d = base;
        d.learning_rate = 1e-5;        /* less than a step of bfloat16: only masters move */
        result plain = run(d, 2), mixed = run_in(WRPO_DTYPE_BF16, d, 2);
        for (int i = 0; i < plain.steps; i++)
            CHECK(fabs(plain.m[i].loss - mixed.m[i].loss) < 0.15 && (i || mixed.m[i].loss == log(2)),
                  "step %d: loss %g and in bfloat16 %g", i, plain.m[i].loss, mixed.m[i].loss);
        CHECK(!wrpo_model_save(mixed.model, &(wrpo_save_desc){.dir = float_dir, .dtype = WRPO_DTYPE_F32}) &&
                  !wrpo_model_load(ctx, &(wrpo_model_desc){.dir = float_dir}, &again),
              "%s%s", wrpo_last_error(ctx)->text, wrpo_last_error(mixed.ctx)->text);
        double apart = 0, moved = 0;
        int64_t different = 0;
        made = make_model(ctx);
        for (int64_t i = 0; i < made->n_weights; i++)
            for (int64_t k = 0; k < wrpo__size(&made->weights[i]); k++) {
                float x, y = ((float *)again->weights[i].data)[k], p = ((float *)plain.model->weights[i].data)[k],
                         start = ((float *)made->weights[i].data)[k];
                wrpo__weight_get(mixed.model, &mixed.model->weights[i], k, 1, &x);
                different += memcmp(&x, &y, 4) != 0;
                apart += fabs((double)x - (double)p), moved += fabs((double)p - (double)start);
            }
        CHECK(different == 0, "%lld masters were not saved as they are", (long long)different);
        CHECK(moved > 0 && apart < 0.3 * moved, "masters moved %g away from the float run, which moved %g", apart,
              moved);
        wrpo_model_free(made), wrpo_model_free(again);
        drop(&plain), drop(&mixed);
        /* moments in fewer bits: the run stays close, and is the same for every number of threads */
        for (int moments = 1; moments < 3; moments++) {
            wrpo_train_desc few = base;
            few.moments = (wrpo_moments)moments;
            compare(wrpo_moments_name(moments), few, 1, few, 3, 0);
            result x = run(base, 2), y = run(few, 2);
            for (int i = 0; i < x.steps; i++)
                CHECK(fabs(x.m[i].loss - y.m[i].loss) < 0.02, "%s: step %d: loss %g and %g", wrpo_moments_name(moments),
                      i, x.m[i].loss, y.m[i].loss);
            drop(&x), drop(&y);
        }
    }
    /* resume: a new trainer on a new model goes on to the bits of a run that never stopped, wherever and however it was
       stopped */
    {
        char saved[96], other[96];
        snprintf(saved, sizeof saved, "%s/saved", dir), snprintf(other, sizeof other, "%s/other.json", dir);
        for (int kind = 0; kind < 12; kind++) {
            const wrpo_dtype dtype = kind % 2 ? WRPO_DTYPE_BF16 : WRPO_DTYPE_F32;
            wrpo_train_desc d = {.moments = (wrpo_moments)(kind / 2 % 3),
                                 .epochs = 2,
                                 .alpha = 0.5,
                                 .weight_decay = 0.1,
                                 .micro_tokens = 300};
            if (kind >= 6) d.accumulation = 2, d.loss.method = WRPO_METHOD_SIMPO;
            const int stop = 1 + kind % 5;             /* within the first epoch, at its end, within the second */
            result whole_run = run_in(dtype, d, 2), part = run_part(dtype, d, 1, stop, saved);
            drop(&part);
            d.resume = saved;
            result rest = run_in(dtype, d, 3);
            CHECK(rest.steps == whole_run.steps - stop, "kind %d: %d steps of %d after %d", kind, rest.steps,
                  whole_run.steps, stop);
            for (int i = 0; i < rest.steps && i + stop < 8; i++) {
                wrpo_metrics *a = &rest.m[i], *b = &whole_run.m[stop + i];
                a->seconds = b->seconds = a->tokens_per_second = b->tokens_per_second = 0;
                CHECK(!memcmp(a, b, sizeof *a), "kind %d: step %d: loss %.17g and %.17g, alpha %g and %g", kind,
                      stop + i, a->loss, b->loss, a->cur_alpha, b->cur_alpha);
            }
            float x[2][128];
            bool same = true;
            for (int64_t i = 0; i < rest.model->n_weights; i++)
                for (int64_t k = 0, n, all_of = wrpo__size(&rest.model->weights[i]); k < all_of; k += n) {
                    n = WRPO__MIN(128, all_of - k);
                    wrpo__weight_get(rest.model, &rest.model->weights[i], k, n, x[0]),
                        wrpo__weight_get(whole_run.model, &whole_run.model->weights[i], k, n, x[1]);
                    same = same && !memcmp(x[0], x[1], (size_t)n * sizeof **x);
                }
            CHECK(same, "kind %d: other weights", kind);
            drop(&rest), drop(&whole_run);
        }
        /* what is not the same is refused by its name, before anything has changed; memory may run out anywhere */
        const wrpo_train_desc was = {
            .learning_rate = 1e-3, .batch_size = 4, .moments = WRPO_MOMENTS_BF16, .resume = saved};
        wrpo_train_desc made = was;
        made.resume = NULL;
        result part = run_part(WRPO_DTYPE_F32, made, 2, 2, saved);
        drop(&part);
#define WITH(field, value, says) \
    { \
        {.learning_rate = 1e-3, .batch_size = 4, .moments = WRPO_MOMENTS_BF16, .resume = saved, .field = value}, \
            "trainer_state.wrpo: " says \
    }
        const struct { wrpo_train_desc d; const char *says;
        } bad[] = {WITH(loss.method, WRPO_METHOD_IPO, "method: want ipo, as this run has it, found wrpo"),
                   WITH(loss.beta, 0.5, "beta: want 0.5"),
                   WITH(alpha, 0.2, "alpha: want 0.2"),
                   WITH(loss.label_smoothing, 0.1, "label_smoothing: want 0.1"),
                   WITH(alpha_schedule, WRPO_ALPHA_SCHEDULE_COSINE, "alpha_schedule: want cosine"),
                   WITH(lr_schedule, WRPO_LR_SCHEDULE_LINEAR, "lr_schedule: want linear"),
                   WITH(warmup_ratio, 0.5, "warmup_ratio: want 0.5"),
                   WITH(beta2, 0.99, "beta2: want 0.99"),
                   WITH(eps, 1e-6, "eps: want 1e-6"),
                   WITH(weight_decay, 0.1, "weight_decay: want 0.1"),
                   WITH(max_grad_norm, 2, "max_grad_norm: want 2"),
                   WITH(accumulation, 2, "accumulation: want 2"),
                   WITH(micro_tokens, 512, "micro_tokens: want 512"),
                   WITH(seed, 7, "seed: want 7"),
                   WITH(no_shuffle, true, "no_shuffle: want 1"),
                   WITH(eval_steps, 2, "eval_steps: want 2"),
                   WITH(epochs, 2, "steps: want 8"),
                   WITH(max_steps, 3, "steps: want 3"),
                   {{.learning_rate = 1e-3, .batch_size = 4, .resume = saved},
                    "moments: want f32, as this run has it, found bf16"},
                   {{.learning_rate = 2e-3, .batch_size = 4, .moments = WRPO_MOMENTS_BF16, .resume = saved},
                    "learning_rate: want 0.002"},
                   {{.learning_rate = 1e-3, .batch_size = 8, .moments = WRPO_MOMENTS_BF16, .resume = saved},
                    "batch_size: want 8"}};
        wrpo_model *model = make_model(ctx), *another;
        wrpo_data *data = make_data(ctx, 0, N), *fewer = make_data(ctx, 0, N - 1), *heavier;
        wrpo_trainer *t;
        for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++)
            CHECK(wrpo_trainer_open(model, data, &bad[i].d, &t) == WRPO_E_ARG && !t &&
                      strstr(wrpo_last_error(ctx)->text, bad[i].says),
                  "setting %d: \"%s\"", i, wrpo_last_error(ctx)->text);
        records[3].weight = 2;
        CHECK(wrpo_data_from_ids(ctx, records, N, &heavier) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        records[3].weight = 0;
        CHECK(wrpo_trainer_open(model, fewer, &was, &t) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "data: want 12 records, "),
              "\"%s\"", wrpo_last_error(ctx)->text);
        CHECK(wrpo_trainer_open(model, heavier, &was, &t) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "data: want 13 records, "),
              "\"%s\"", wrpo_last_error(ctx)->text);
        CHECK(wrpo_trainer_open(model, data, &(wrpo_train_desc){.resume = "golden/states"}, &t) == WRPO_E_UNSUPPORTED &&
                  strstr(wrpo_last_error(ctx)->text,
                         "state_format: want 2, which this version reads, found none: version 0.1.0 wrote the file"),
              "the version before: \"%s\"", wrpo_last_error(ctx)->text);
        CHECK(wrpo_trainer_open(model, data, &(wrpo_train_desc){.save_steps = 3}, &t) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "save_steps: want"),
              "\"%s\"", wrpo_last_error(ctx)->text);
        ((float *)WRPO__W(model, norm, 0)->data)[3] += 0.25f;
        CHECK(wrpo_trainer_open(model, data, &was, &t) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "reference: want log-probs "),
              "\"%s\"", wrpo_last_error(ctx)->text);
        wrpo_model_free(model), wrpo_data_free(fewer), wrpo_data_free(heavier);
        f = fopen(other, "w");
        fprintf(f, "%.*s51%s", (int)(strstr(config_text, "50,") - config_text), config_text,
                strstr(config_text, "50,") + 2);
        fclose(f);
        CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = other}, &another) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        CHECK(wrpo_trainer_open(another, data, &was, &t) == WRPO_E_FORMAT &&
                  strstr(wrpo_last_error(ctx)->text, ": want F32 [51,36], found F32 [50,36]"),
              "\"%s\"", wrpo_last_error(ctx)->text);
        wrpo_model_free(another), wrpo_data_free(data);

        wrpo_ctx *scarce;
        if (wrpo_open(&(wrpo_desc){.threads = 2, .memory = {counting_alloc, counting_free, NULL}}, &scarce) != WRPO_OK)
            exit(2);
        data = make_data(scarce, 0, N);
        for (int what = 0; what < 2; what++) {
            const char *out = what ? saved : other;
            int64_t n = 0;
            bool done = false;
            if (!what) snprintf(other, sizeof other, "%s/again", dir);
            for (; !done && n < 5000; n++) {
                model = make_model(scarce);
                if (what == 0)
                    CHECK(wrpo_trainer_open(model, data, &was, &t) == WRPO_OK, "%s", wrpo_last_error(scarce)->text);
                fail_at = calls + n;
                const wrpo_result r = what ? wrpo_trainer_open(model, data, &was, &t)
                                           : wrpo_trainer_save(t, &(wrpo_save_desc){.dir = out});
                fail_at = -1;
                done = r == WRPO_OK;
                if (!done && r != WRPO_E_MEMORY)
                    CHECK(false, "call %lld: %d %s", (long long)n, r, wrpo_last_error(scarce)->text);
                if (!done && what) CHECK(!t, "call %lld: a trainer after a failure", (long long)n);
                if (!what || done) wrpo_trainer_free(t);
                wrpo_model_free(model);
            }
            CHECK(done && n > 10, "%lld failing allocations", (long long)n);
        }
        wrpo_data_free(data);
        wrpo_close(scarce);
        CHECK(live == 0, "%lld blocks are left", (long long)live);
        /* stopped after its last step: there is nothing left to do */
        part = run_part(WRPO_DTYPE_F32, made, 2, 8, saved);
        drop(&part);
        wrpo_metrics last;
        model = make_model(ctx), data = make_data(ctx, 0, N);
        CHECK(wrpo_trainer_new(model, data, NULL, &t) == WRPO_OK && wrpo_trainer_save(t, NULL) == WRPO_E_ARG,
              "no desc");
        wrpo_trainer_free(t);
        CHECK(wrpo_train(model, data, &was, &last) == WRPO_OK && last.step == 4 && last.steps == 4 && last.tokens == 0,
              "%s", wrpo_last_error(ctx)->text);
        wrpo_model_free(model), wrpo_data_free(data);
    }
    {   /* the reference cache: made once, read the second time, not trusted when its model is another */
        wrpo_model *model = make_model(ctx);
        wrpo_data *data = make_data(ctx, 0, N);
        wrpo_trainer *t;
        wrpo_train_desc d = {.out_dir = dir, .batch_size = 4};
        double *ref[2];
        for (int i = 0; i < 2; i++) {
            CHECK(wrpo_trainer_open(model, data, &d, &t) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
            ref[i] = malloc(3 * N * sizeof(double));
            memcpy(ref[i], t->train.ref, 3 * N * sizeof(double));
            wrpo_trainer_free(t);
        }
        CHECK(!memcmp(ref[0], ref[1], 3 * N * sizeof(double)), "the cache changes bits");
        ((float *)WRPO__W(model, norm, 0)->data)[3] += 0.25f;
        CHECK(wrpo_trainer_open(model, data, &d, &t) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        CHECK(memcmp(ref[0], t->train.ref, 3 * N * sizeof(double)) != 0, "a stale cache was read");
        wrpo_trainer_free(t);
        free(ref[0]), free(ref[1]);
        wrpo_data_free(data), wrpo_model_free(model);
    }
    less_for_short_records();
    caller_files();
    best_and_kept();
    as_json(ctx);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0, "rm");
    CHECK(bytes_left(ctx) == sizeof(wrpo__arena), "%zu bytes still held", ctx->bytes);
    wrpo_close(ctx);
    return test_end("train");
}
