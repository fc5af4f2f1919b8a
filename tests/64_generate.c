/* Generation: greedy answers of every family against transformers' generate (golden/generate.py), log-probs to the bit
   those of the training forward, samples that depend on nothing beside them, frequencies, streamed text, stops,
   refusals. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/counting.h"
#include "support/golden.h"
#include "support/tiny.h"
#include <dirent.h>
#include <unistd.h>

static wrpo_ctx *ctx;
typedef struct kept {
    int64_t count;
    int32_t ids[300];
    float logps[300];
    char text[2000];
    size_t size;
    bool stopped;
} kept;
typedef struct keeper {              /* what callbacks saw */
    kept *of; int64_t n, next, limit; bool text_too;
    char streamed[2000]; size_t size; int pieces; bool whole, in_order;
} keeper;
static bool keep(int64_t prompt, const wrpo_sample *y, void *user) {
    keeper *k = user;
    k->in_order = k->in_order && prompt == k->next++;
    for (int64_t i = 0; i < k->n; i++) {
        kept *to = &k->of[prompt * k->n + i];
        to->count = y[i].count, to->stopped = y[i].stopped, to->size = y[i].size;
        memcpy(to->ids, y[i].ids, (size_t)y[i].count * sizeof *to->ids);
        memcpy(to->logps, y[i].logps, (size_t)y[i].count * sizeof *to->logps);
        if (y[i].text) memcpy(to->text, y[i].text, y[i].size + 1);
    }
    return !k->limit || k->next < k->limit;
}
static keeper generate(wrpo_model *model, const wrpo_prompt *prompts, int64_t count, wrpo_generate_desc d,
                       wrpo_result want) {
    keeper k = {.n = d.n ? d.n : 1, .in_order = true};
    k.of = calloc((size_t)(count * k.n) + 1, sizeof *k.of);
    d.on_done = keep, d.user = &k;
    if (d.temperature == 0 && !signbit(d.temperature)) d.temperature = 0.8;          /* WRPO_ZERO asks for greedy */
    if (d.top_p == 0) d.top_p = 0.95;
    const wrpo_result r = wrpo_generate(model, prompts, count, &d);
    CHECK(r == want, "%d: %s", (int)r, wrpo_last_error(model->ctx)->text);
    CHECK(k.in_order && (r != WRPO_OK || k.next == count), "delivered %lld of %lld prompts, in order %d",
          (long long)k.next, (long long)count, k.in_order);
    return k;
}
static bool same(const kept *a, const kept *b) {
    return a->count == b->count && a->stopped == b->stopped &&
        !memcmp(a->ids, b->ids, (size_t)a->count * sizeof *a->ids) &&
        !memcmp(a->logps, b->logps, (size_t)a->count * sizeof *a->logps);
}
static wrpo_model *family(wrpo_ctx *c, const char *name, const wrpo_json *scale) {
    char folder[200];
    wrpo_model *model;
    snprintf(folder, sizeof folder, "golden/families/%s", name);
    CHECK(wrpo_model_init(c, &(wrpo_init_desc){.config = folder}, &model) == WRPO_OK, "%s", wrpo_last_error(c)->text);
    if (model) golden_fill(model, scale);
    return model;
}

/* ---- against transformers ---- */
static void greedy_families(const wrpo_json *golden, const wrpo_json *scale) {
    int64_t prompts = 0, tokens = 0, wrong = 0;
    for (const wrpo_json *f = golden_get(golden, "families")->child; f; f = f->next) {
        wrpo_model *model = family(ctx, f->key, scale);
        if (!model) continue;
        wrpo_prompt *list = calloc((size_t)f->count, sizeof *list), *p = list;
        for (const wrpo_json *v = f->child; v; v = v->next, p++)
            *p = (wrpo_prompt){.ids = golden_ids(v->child), .count = v->child->count};
        keeper k = generate(model, list, f->count,
                            (wrpo_generate_desc){.max_tokens = 64, .temperature = WRPO_ZERO, .batch = 3}, WRPO_OK);
        int64_t i = 0;
        for (const wrpo_json *v = f->child; v; v = v->next, i++) {
            int32_t *want = golden_ids(v->child->next);
            const int64_t n = v->child->next->count;
            const bool ok = k.of[i].count == n && !memcmp(k.of[i].ids, want, (size_t)n * sizeof *want) &&
                k.of[i].stopped ==
                    (n < WRPO__MIN(64, model->config.max_position_embeddings - list[i].count) || want[n - 1] == 2);
            CHECK(ok, "%s, prompt %lld: another answer", f->key, (long long)i);
            wrong += !ok, prompts++, tokens += n;
            free(want), free((void *)(uintptr_t)list[i].ids);
        }
        free(k.of), free(list);
        wrpo_model_free(model);
    }
    printf("greedy: %lld prompts, %lld tokens, %lld answers differ from transformers'\n", (long long)prompts,
           (long long)tokens, (long long)wrong);
    CHECK(prompts >= 2 * 34, "%lld prompts", (long long)prompts);
}
static void greedy_checkpoints(const wrpo_json *golden) {
    for (const wrpo_json *f = golden_get(golden, "checkpoints")->child; f; f = f->next) {
        char dir[200];
        wrpo_model *model;
        wrpo_tokenizer *tok;
        snprintf(dir, sizeof dir, "golden/checkpoints/%s", f->key);
        const bool loaded = wrpo_model_load(ctx, &(wrpo_model_desc){.dir = dir, .frozen = true}, &model) == WRPO_OK &&
            wrpo_tokenizer_load(ctx, dir, &tok) == WRPO_OK;
        CHECK(loaded, "%s", wrpo_last_error(ctx)->text);
        if (!loaded) continue;
        wrpo_prompt *list = calloc((size_t)f->count, sizeof *list), *p = list;
        for (const wrpo_json *v = f->child; v; v = v->next, p++) {
            wrpo_json prompt = *v->child, record = {.kind = WRPO_JSON_OBJECT, .count = 1, .child = &prompt};
            int32_t *ids;
            prompt.key = "prompt", prompt.key_size = 6, prompt.next = NULL;
            CHECK(wrpo_tokenizer_prompt(tok, &(wrpo_tokenizer_prompt_desc){0}, &record, &ids, &p->count) == WRPO_OK,
                  "%s", wrpo_last_error(ctx)->text);
            p->ids = ids;
        }
        keeper k =
            generate(model, list, f->count,
                     (wrpo_generate_desc){.tokenizer = tok, .max_tokens = 64, .temperature = WRPO_ZERO}, WRPO_OK);
        int64_t i = 0, wrong = 0;
        for (const wrpo_json *v = f->child; v; v = v->next, i++) {
            const wrpo_json *text = v->child->next->next;
            const bool ok = k.of[i].size == text->size && !memcmp(k.of[i].text, text->text, text->size);
            CHECK(ok, "%s: \"%s\": want \"%s\", found \"%s\"", f->key, v->child->text, text->text, k.of[i].text);
            wrong += !ok;
            wrpo_free(ctx, (void *)(uintptr_t)list[i].ids);
        }
        printf("greedy: %s: %lld texts, %lld differ from transformers'\n", f->key, (long long)f->count,
               (long long)wrong);
        free(k.of), free(list);
        wrpo_tokenizer_free(tok);
        wrpo_model_free(model);
    }
}

/* ---- to the bit ---- */
static wrpo_prompt *some_prompts(int64_t count, const wrpo_config *c) {
    wrpo_prompt *list = calloc((size_t)count, sizeof *list);
    for (int64_t i = 0; i < count; i++) {
        /* over a tile of keys, too */
        const int64_t n = WRPO__MIN(i % 3 == 2 ? 150 : 1 + i * 13 % 40, c->max_position_embeddings - 20);
        int32_t *ids = malloc((size_t)n * sizeof *ids);
        for (int64_t j = 0; j < n; j++)
            ids[j] = (int32_t)(golden_bits("generate", (uint64_t)(1000 * i + j)) % (uint64_t)c->vocab_size);
        list[i] = (wrpo_prompt){.ids = ids, .count = n, .stream = (uint64_t)i * 77};
    }
    return list;
}
static void free_prompts(wrpo_prompt *list, int64_t count) {
    for (int64_t i = 0; i < count; i++) free((void *)(uintptr_t)list[i].ids);
    free(list);
}
/* A backend that counts what is kept, and the products since then: all, and those of other weights. */
static struct { const wrpo_backend *of; int64_t kept, bytes, products, others, forgotten; } watch;
static void watch_keep(void *dev, void *to, const void *b, int64_t ldb, wrpo_dtype type, int64_t n, int64_t k) {
    watch.kept++;
    watch.bytes += (int64_t)watch.of->keep_bytes(dev, type, n, k);
    watch.of->keep(dev, to, b, ldb, type, n, k);
}
static void watch_forget(void *dev) {
    watch.forgotten++;
    watch.of->forget(dev);
}
static void watch_gemm(void *dev, wrpo_mm mm, void *c, int64_t ldc, const void *a, int64_t lda, const void *b,
                       int64_t ldb, wrpo_dtype type, int64_t m, int64_t n, int64_t k, float beta) {
    if (watch.kept && !watch.forgotten) {
        watch.products++;
        watch.others += wrpo__kept_of(dev, b, ldb, type, n, k) == NULL;
    }
    watch.of->gemm(dev, mm, c, ldc, a, lda, b, ldb, type, m, n, k, beta);
}
static wrpo_backend watching(const wrpo_backend *of) {
    wrpo_backend be = *of;
    memset(&watch, 0, sizeof watch);
    watch.of = of;
    if (be.keep) be.keep = watch_keep, be.forget = watch_forget, be.gemm = watch_gemm;
    return be;
}
/* Decoded with a cache, beside others, in pieces: the log-probs are those of the whole texts in one training forward.
   No stops, so that the texts are as long as longrope took them to be. */
static void same_as_forward(const char *name, const wrpo_json *scale, const wrpo_backend *backend) {
    enum { COUNT = 4, N = 3 };
    const wrpo_backend be = watching(backend);
    wrpo_ctx *c;
    if (wrpo_open(&(wrpo_desc){.threads = 2, .backend = &be}, &c)) { CHECK(false, "%s", backend->name); return; }
    wrpo_model *model = family(c, name, scale);
    if (!model) { wrpo_close(c); return; }
    wrpo_prompt *list = some_prompts(COUNT, &model->config);
    keeper k = generate(model, list, COUNT,
                        (wrpo_generate_desc){.n = N,
                                             .max_tokens = 70,
                                             .temperature = 1,
                                             .top_p = 1,
                                             .batch = 5,
                                             .seed = 3,
                                             .stop = list[0].ids,
                                             .stop_count = 0},
                        WRPO_OK);
    const int64_t own = !model->config.tie_word_embeddings;
    CHECK(!be.keep || (watch.products > 500 && watch.others == 0 && watch.forgotten == 1),
          "%s on %s: of %lld products %lld have a weight that is not kept; forgotten %lld times", name, backend->name,
          (long long)watch.products, (long long)watch.others, (long long)watch.forgotten);
    CHECK(!be.keep || watch.kept >= 4 * model->config.num_hidden_layers + own, "%lld kept", (long long)watch.kept);
    wrpo_record records[COUNT];
    wrpo_tokens y[COUNT * N];
    for (int64_t i = 0; i < COUNT; i++) {
        records[i] =
            (wrpo_record){.prompt = list[i].ids, .prompt_count = list[i].count, .responses = y + i * N, .count = N};
        for (int64_t j = 0; j < N; j++)
            y[i * N + j] = (wrpo_tokens){
                .role = WRPO_ROLE_TARGET, .ids = k.of[i * N + j].ids, .count = k.of[i * N + j].count, .share = 1};
    }
    wrpo_data *data;
    double sums[COUNT * N];
    float *tokens;
    CHECK(wrpo_data_from_ids(c, records, COUNT, &data) == WRPO_OK &&
              wrpo_logprobs(model, data, 0, COUNT, sums, &tokens) == WRPO_OK,
          "%s", wrpo_last_error(c)->text);
    int64_t t = 0, differ = 0;
    for (int64_t i = 0; i < COUNT * N; i++)
        for (int64_t j = 0; j < k.of[i].count; j++, t++)
            differ += memcmp(&tokens[t], &k.of[i].logps[j], sizeof *tokens) != 0;
    CHECK(t > 100 && differ == 0, "%s on %s: %lld of %lld log-probs differ from the forward pass", name, backend->name,
          (long long)differ, (long long)t);
    wrpo_free(c, tokens);
    wrpo_data_free(data);
    free_prompts(list, COUNT), free(k.of);
    wrpo_model_free(model);
    wrpo_close(c);
}
static char heard[200];
static void hear(wrpo_level level, const char *text, void *user) {
    (void)level, (void)user;
    snprintf(heard, sizeof heard, "%s", text);
}
/* A sample is the same in whatever batch, with however many threads, beside whatever other prompts. */
static void same_beside_others(const wrpo_json *scale) {
    enum { COUNT = 7, N = 4 };
    wrpo_model *model = family(ctx, "smollm2", scale);
    if (!model) return;
    wrpo_prompt *list = some_prompts(COUNT, &model->config), turned[COUNT];
    list[3].own_temperature = list[4].own_temperature = true, list[3].temperature = 0.3;
    const wrpo_generate_desc d = {.n = N, .max_tokens = 40, .temperature = 1.3, .top_k = 50};
    keeper all = generate(model, list, COUNT, d, WRPO_OK);
    for (int64_t batch = 1; batch <= 64; batch = batch * 3 + 1) {
        wrpo_generate_desc other = d;
        other.batch = batch;
        keeper k = generate(model, list, COUNT, other, WRPO_OK);
        for (int64_t i = 0; i < COUNT * N; i++)
            CHECK(same(&k.of[i], &all.of[i]), "batch %lld: sample %lld", (long long)batch, (long long)i);
        free(k.of);
    }
    for (int64_t i = 0; i < COUNT; i++) turned[i] = list[COUNT - 1 - i];
    keeper k = generate(model, turned, COUNT, d, WRPO_OK);
    for (int64_t i = 0; i < COUNT * N; i++)
        CHECK(same(&k.of[i], &all.of[(COUNT - 1 - i / N) * N + i % N]), "in another order: sample %lld", (long long)i);
    free(k.of);
    wrpo_generate_desc one = d;
    one.n = 1;
    k = generate(model, list + 2, 1, one, WRPO_OK);    /* alone: the first sample */
    CHECK(same(&k.of[0], &all.of[2 * N]), "alone");
    free(k.of);
    one.seed = 43;
    k = generate(model, list + 2, 1, one, WRPO_OK);
    CHECK(!same(&k.of[0], &all.of[2 * N]), "another seed, the same sample");
    free(k.of);
    for (int64_t i = 1; i < N; i++) {
        CHECK(!same(&all.of[2 * N], &all.of[2 * N + i]), "samples 0 and %lld are the same", (long long)i);
        CHECK(same(&all.of[4 * N], &all.of[4 * N + i]), "greedy samples differ");
    }
    wrpo_ctx *c;
    CHECK(wrpo_open(&(wrpo_desc){.threads = 1, .log.fn = hear}, &c) == WRPO_OK, "open");
    wrpo_model *again = family(c, "smollm2", scale);
    /* a limit that has room for few at once, then for not even one */
    for (int tight = 0; again && tight < 2; tight++) {
        c->desc.memory_limit = c->bytes + (tight ? 100000 : 1700000);
        wrpo_generate_desc few = d;
        few.batch = 64;
        k = generate(again, list, COUNT, few, tight ? WRPO_E_MEMORY : WRPO_OK);
        if (tight)
            CHECK(strstr(wrpo_last_error(c)->text, "out of memory: one sample at a time takes"), "%s",
                  wrpo_last_error(c)->text);
        else CHECK(strstr(heard, "samples at once, not 28"), "\"%s\"", heard);
        for (int64_t i = 0; i < COUNT * N && !tight; i++)
            CHECK(same(&k.of[i], &all.of[i]), "short of memory: sample %lld", (long long)i);
        free(k.of);
    }
    c->desc.memory_limit = 0;
    k = generate(again, list, COUNT, d, WRPO_OK);
    for (int64_t i = 0; i < COUNT * N; i++) CHECK(same(&k.of[i], &all.of[i]), "one thread: sample %lld", (long long)i);
    free(k.of), free(all.of);
    free_prompts(list, COUNT);
    wrpo_model_free(again), wrpo_model_free(model);
    wrpo_close(c);
}

/* Weights are kept in half of the memory that is free: all, some or none, for the same samples; not by short calls. */
static void keeps_what_fits(const wrpo_json *scale) {
    enum { COUNT = 3 };
    const wrpo_backend be = watching(wrpo_backend_cpu());
    wrpo_ctx *c;
    CHECK(wrpo_open(&(wrpo_desc){.threads = 2, .backend = &be}, &c) == WRPO_OK, "open");
    wrpo_model *model = family(c, "smollm2", scale);
    if (!model || !be.keep) { wrpo_model_free(model), wrpo_close(c); return; }
    wrpo_prompt *list = some_prompts(COUNT, &model->config);
    const wrpo_generate_desc d = {.max_tokens = 40, .batch = 1};
    keeper want = generate(model, list, COUNT, d, WRPO_OK);
    const int64_t all = watch.kept, bytes = watch.bytes;
    bool some = false, none = false, whole = false;
    CHECK(all > 4 && watch.others == 0 && c->peak >= c->bytes + (size_t)bytes, "%lld kept, %lld not", (long long)all,
          (long long)watch.others);
    for (size_t limit = c->bytes + 100000; !whole; limit += (size_t)bytes / 8) {
        memset(&watch, 0, sizeof watch);
        watch.of = wrpo_backend_cpu();
        c->desc.memory_limit = limit;
        c->peak = c->bytes;
        keeper k = {.n = 1, .in_order = true, .of = calloc(COUNT, sizeof *k.of)};
        wrpo_generate_desc limited = wrpo_generate_defaults(&d);
        limited.temperature = 0.8, limited.top_p = 0.95, limited.on_done = keep, limited.user = &k;
        if (wrpo_generate(model, list, COUNT, &limited) == WRPO_OK) {
            none = none || !watch.kept;
            some = some || (watch.kept && watch.kept < all);
            whole = watch.kept == all;
            CHECK(!watch.kept || (c->peak <= limit && watch.forgotten == 1), "peak %zu of %zu", c->peak, limit);
            for (int64_t i = 0; i < COUNT; i++)
                CHECK(same(&k.of[i], &want.of[i]), "%lld kept: sample %lld", (long long)watch.kept, (long long)i);
        }
        free(k.of);
    }
    CHECK(some && none, "there was no limit with some kept (%d), and with none (%d)", some, none);
    c->desc.memory_limit = 0;
    memset(&watch, 0, sizeof watch);
    watch.of = wrpo_backend_cpu();
    free(generate(model, list, 1, (wrpo_generate_desc){.max_tokens = 20}, WRPO_OK).of);
    CHECK(watch.kept == 0, "a call of 20 tokens keeps %lld weights", (long long)watch.kept);
    free_prompts(list, COUNT), free(want.of);
    wrpo_model_free(model), wrpo_close(c);
}

/* ---- frequencies ---- */
typedef struct ranked { double p; int64_t id; } ranked;
static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : x->id < y->id ? -1 : 1;
}
/* The distribution that the settings make of log-probs, said plainly. */
static void expected(const float *logps, int64_t V, double temperature, int64_t top_k, double top_p, double *out) {
    ranked *r = malloc((size_t)V * sizeof *r);
    double sum = 0, mass = 0;
    for (int64_t i = 0; i < V; i++) r[i] = (ranked){exp((double)logps[i] / temperature), i}, out[i] = 0;
    qsort(r, (size_t)V, sizeof *r, by_rank);
    const int64_t k = top_k ? WRPO__MIN(top_k, V) : V;
    for (int64_t i = 0; i < k; i++) sum += r[i].p;
    int64_t n = 0;
    while (n < k && mass < top_p * sum) mass += r[n++].p;
    for (int64_t i = 0; i < n; i++) out[r[i].id] = r[i].p / mass;
    free(r);
}
/* Pearson's chi-square of counts against probabilities; cells of fewer than 5 expected are one. z: (chi2 - df) / sqrt(2
   df). */
static double chi_square(const int64_t *counts, const double *p, int64_t V, int64_t total, int64_t *df) {
    double chi = 0, rest_p = 0;
    int64_t rest = 0;
    *df = -1;
    for (int64_t i = 0; i < V; i++) {
        const double want = p[i] * (double)total;
        if (p[i] == 0 && counts[i]) return INFINITY;   /* what was left out came */
        if (want < 5) { rest_p += p[i], rest += counts[i]; continue; }
        chi += ((double)counts[i] - want) * ((double)counts[i] - want) / want;
        ++*df;
    }
    if (rest_p * (double)total >= 5)
        chi += ((double)rest - rest_p * (double)total) * ((double)rest - rest_p * (double)total) /
            (rest_p * (double)total),
            ++*df;
    return (chi - (double)*df) / sqrt(2 * (double)*df);
}
static void frequencies(const wrpo_json *scale) {
    enum { N = 20000 };
    static const struct {
        double temperature, top_p;
        int64_t top_k;
    } settings[] = {{1, 1, 0}, {0.8, 0.95, 0}, {1.5, 0.5, 0}, {0.7, 1, 20}, {2, 0.9, 40}, {0.3, 0.95, 3}};
    wrpo_model *model = family(ctx, "qwen3", scale);
    if (!model) return;
    const int64_t V = model->config.vocab_size;
    wrpo_prompt *list = some_prompts(1, &model->config);
    wrpo_tokens *y = calloc((size_t)V, sizeof *y);
    int32_t *ids = malloc((size_t)V * sizeof *ids);
    double *sums = malloc((size_t)V * sizeof *sums), *p = malloc((size_t)V * sizeof *p);
    float *logps;
    wrpo_data *data;
    for (int64_t i = 0; i < V; i++)
        ids[i] = (int32_t)i, y[i] = (wrpo_tokens){.role = WRPO_ROLE_TARGET, .ids = ids + i, .count = 1, .share = 1};
    wrpo_record record = {.prompt = list->ids, .prompt_count = list->count, .responses = y, .count = (int)V};
    CHECK(wrpo_data_from_ids(ctx, &record, 1, &data) == WRPO_OK &&
              wrpo_logprobs(model, data, 0, 1, sums, &logps) == WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    for (int i = 0; i < 6; i++) {
        wrpo_generate_desc d = {.n = N,
                                .max_tokens = 1,
                                .temperature = settings[i].temperature,
                                .top_p = settings[i].top_p,
                                .top_k = settings[i].top_k,
                                .seed = 5};
        keeper k = generate(model, list, 1, d, WRPO_OK);
        int64_t *counts = calloc((size_t)V, sizeof *counts), df;
        for (int64_t j = 0; j < N; j++) counts[k.of[j].ids[0]]++;
        expected(logps, V, settings[i].temperature, settings[i].top_k, settings[i].top_p, p);
        const double z = chi_square(counts, p, V, N, &df);
        printf("%d samples at temperature %g, top_p %g, top_k %lld: chi-square %.1f, %lld degrees of freedom\n", N,
               settings[i].temperature, settings[i].top_p, (long long)settings[i].top_k,
               (double)df + z * sqrt(2 * (double)df), (long long)df);
        CHECK(df >= 1 && fabs(z) < 4, "setting %d: %lld degrees of freedom, z %g", i, (long long)df, z);
        expected(logps, V, settings[i].temperature * 1.1, settings[i].top_k, settings[i].top_p, p);
        CHECK(!(chi_square(counts, p, V, N, &df) < 4),
              "setting %d: the test would not see a temperature that is wrong by a tenth", i);
        free(counts), free(k.of);
    }
    wrpo_free(ctx, logps);
    wrpo_data_free(data);
    free(y), free(ids), free(sums), free(p);
    free_prompts(list, 1);
    wrpo_model_free(model);
}
/* Edges of the sampler: what is kept is exact, also where weights are equal. */
static void sampler(void) {
    /* nearly equal once they are capped */
    static const float x[6] = {1, 3, 2, 3, -INFINITY, 0}, capped[2] = {100, 1000};
    wrpo__weighed room[600];
    int counts[4] = {0};
    CHECK(wrpo__draw(x, 6, 0, WRPO_ZERO, 0, 0.9, 0.99, room) == 1, "greedy: of equal ones the first");
    for (int i = 0; i < 100; i++) {
        const double u = i / 100.0;
        CHECK(wrpo__draw(x, 6, 0, 1, 1, 1, u, room) == 1, "top_k 1 at %g", u);
        CHECK(wrpo__draw(x, 6, 0, 1, 0, 1e-9, u, room) == 1, "the smallest top_p at %g", u);
        CHECK(wrpo__draw(x, 6, 0, 1, 2, 0.5, u, room) == 1, "half of two equal ones is the first, at %g", u);
        CHECK(wrpo__draw(x, 6, 0, 1, 0, 1, u, room) != 4, "a token without probability at %g", u);
        const int32_t two = wrpo__draw(x, 6, 0, 1, 2, 1, u, room), cold = wrpo__draw(x, 6, 0, 1e-3, 0, 1, u, room);
        CHECK((two == 1 || two == 3) && (cold == 1 || cold == 3), "at %g: %d and %d", u, (int)two, (int)cold);
        counts[0] += two == 1, counts[1] += cold == 1, counts[2] += wrpo__draw(capped, 2, 1.0f, 1, 0, 1, u, room) == 0;
    }
    CHECK(counts[0] == 50 && counts[1] == 50 && counts[2] == 50, "halves: %d, %d, %d of 100", counts[0], counts[1],
          counts[2]);
    for (int n = 1; n <= 600; n = n * 3 / 2 + 1)       /* what selection keeps is what sorting keeps */
        for (int kind = 0; kind < 4; kind++) {
            ranked sorted[600];
            double total = 0, mass = 0;
            for (int i = 0; i < n; i++) {
                const uint64_t bits = golden_bits("select", (uint64_t)(n * 1000 + i));
                const float weight = kind == 0 ? 1
                    : kind == 1                ? (float)(bits % 3)
                    : kind == 2                ? (float)i
                                               : (float)(bits % 1000) * 1e-3f;
                room[i] = (wrpo__weighed){weight, i}, sorted[i] = (ranked){(double)weight, i}, total += (double)weight;
            }
            const double want = total * (double)(golden_bits("mass", (uint64_t)(n + kind)) % 1000) / 1000;
            const int64_t most = 1 + (int64_t)(golden_bits("most", (uint64_t)(n + kind)) % (uint64_t)n),
                          got = wrpo__select_top(room, n, most, want);
            int64_t k = 0;
            bool in[600] = {false};
            qsort(sorted, (size_t)n, sizeof *sorted, by_rank);
            while (k < n && (k == 0 || (k < most && mass < want))) mass += sorted[k++].p;
            for (int64_t i = 0; i < got; i++) in[room[i].id] = true;
            bool all = got == k;
            for (int64_t i = 0; i < k; i++) all = all && in[sorted[i].id];
            CHECK(all, "%d weights of kind %d, at most %lld, %g of %g: %lld kept, want %lld", n, kind, (long long)most,
                  want, total, (long long)got, (long long)k);
        }
}

/* ---- text, stops, refusals ---- */
static bool stream(int64_t prompt, int64_t sample, const char *utf8, size_t size, void *user) {
    keeper *k = user;
    size_t one;
    for (size_t i = 0; i < size; i += one) k->whole = k->whole && wrpo__utf8_get(utf8 + i, size - i, &one) >= 0;
    k->whole = k->whole && prompt == 0 && sample == 0 && size > 0;
    memcpy(k->streamed + k->size, utf8, size);
    k->size += size, k->pieces++;
    return true;
}
static void put_fallback(const char *dir) {            /* a SentencePiece-like BPE: <0xNN>, U+2581, a few letters */
    static char text[20000];
    size_t n = (size_t)snprintf(
        text, sizeof text,
        "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[{\"id\":1,\"content\":\"</"
        "s>\",\"single_word\":false,"
        "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],\"normalizer\":{\"type\":"
        "\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"},"
        "\"pre_tokenizer\":null,\"post_processor\":null,\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":"
        "\"Replace\",\"pattern\":{\"String\":\"\\u2581\"},\"content\":\" \"},"
        "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
        "\",\"start\":1,\"stop\":0}]},\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\","
        "\"fuse_unk\":true,\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,\"</"
        "s>\":1,\"\\u2581\":2,\"a\":3,\"b\":4,\"\\u00e9\":5,\"\\u20ac\":6,\"\\u2581a\":7");
    for (int b = 0; b < 256; b++) n += (size_t)snprintf(text + n, sizeof text - n, ",\"<0x%02X>\":%d", b, 8 + b);
    snprintf(text + n, sizeof text - n, "},\"merges\":[\"\\u2581 a\"]}}");
    tiny_put(dir, "tokenizer.json", text);
    tiny_put(dir, "tokenizer_config.json", "{\"eos_token\":\"</s>\"}");
}
static void texts(const wrpo_json *scale) {
    char dir[64] = "/tmp/wrpo-generate-XXXXXX";
    CHECK(mkdtemp(dir), "mkdtemp");
    wrpo_model *model = family(ctx, "llama", scale);   /* 301 ids */
    for (int kind = 0; model && kind < 2; kind++) {
        wrpo_tokenizer *tok;
        if (kind) put_fallback(dir);
        else
            tiny_tokenizer(dir,
                           "\"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
                           "'<|im_end|>' + '\\n' }}{% endfor %}\"");
        CHECK(wrpo_tokenizer_load(ctx, dir, &tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        if (!tok) break;
        int64_t held = 0;
        for (int i = 0; i < 200; i++) {
            const int32_t id = 4;
            keeper k = {.n = 1, .in_order = true, .whole = true};
            kept one = {0};
            k.of = &one;
            /* any bytes in any order; more likely ones at a low temperature repeat and make whole characters */
            const wrpo_generate_desc d = {.tokenizer = tok,
                                          .max_tokens = 60,
                                          .temperature = 3,
                                          .top_p = 1,
                                          .seed = (uint64_t)i + 1,
                                          .on_text = stream,
                                          .on_done = keep,
                                          .user = &k};
            CHECK(wrpo_generate(model, &(wrpo_prompt){.ids = &id, .count = 1}, 1, &d) == WRPO_OK, "%s",
                  wrpo_last_error(ctx)->text);
            CHECK(k.whole && k.size == one.size && !memcmp(k.streamed, one.text, one.size),
                  "seed %d: the pieces are not the text, or not whole", i + 1);
            held += one.count - k.pieces;
            int32_t known[100];
            int64_t n = 0;
            char *text;
            size_t size;
            for (int64_t j = 0; j < one.count - one.stopped; j++)
                if (one.ids[j] < wrpo_tokenizer_size(tok)) known[n++] = one.ids[j];
            CHECK(wrpo_tokenizer_decode(tok, known, n, true, &text, &size) == WRPO_OK && size == one.size &&
                      !memcmp(text, one.text, size),
                  "seed %d: text", i + 1);
            wrpo_free(ctx, text);
        }
        CHECK(held > 100, "characters of several tokens came, %lld pieces fewer than tokens", (long long)held);
        wrpo_tokenizer_free(tok);
    }
    /* stops: generation_config.json wins over config.json, the tokenizer's EOS and the template's end token come in
       addition */
    tiny_tokenizer(dir,
                   "\"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
                   "'\\n' }}{% endfor %}\"");
    wrpo_tokenizer *tok;
    CHECK(wrpo_tokenizer_load(ctx, dir, &tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    static const struct { const char *file; int64_t n; int32_t ids[5]; const char *error;
    } stops[] = {{NULL, 3, {2, 257, 259}, NULL},
                 {"{\"eos_token_id\": 7}", 3, {7, 257, 259}, NULL},
                 {"{\"eos_token_id\": [9, 7, 259, 9]}", 4, {7, 9, 257, 259}, NULL},
                 {"{\"eos_token_id\": null, \"top_k\": 5}", 3, {2, 257, 259}, NULL},
                 {"{\"eos_token_id\": 301}", 0, {0}, "eos_token_id: want an integer from 0 to 300, found 301"},
                 {"{\"eos_token_id\": [\"x\"]}", 0, {0}, "want an integer from 0 to 300, found \"x\""},
                 {"[]", 0, {0}, "want an object"}};
    for (int i = 0; model && tok && i < 7; i++) {
        int32_t *ids;
        int64_t n;
        char config[200];
        snprintf(config, sizeof config, "%s/generation_config.json", dir);
        if (stops[i].file) tiny_put(dir, "generation_config.json", stops[i].file);
        else remove(config);
        model->tokenizer_dir = dir;
        const wrpo_result r = wrpo_stop_tokens(model, tok, &ids, &n);
        if (stops[i].error)
            CHECK(r == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, stops[i].error), "%s",
                  wrpo_last_error(ctx)->text);
        else
            CHECK(r == WRPO_OK && n == stops[i].n && !memcmp(ids, stops[i].ids, (size_t)n * sizeof *ids),
                  "stops %d: %lld", i, (long long)n);
        wrpo_free(ctx, ids);
        if (i == 1) {                /* and a sample ends there, its text without it */
            const int32_t start = 4;
            keeper k =
                generate(model, &(wrpo_prompt){.ids = &start, .count = 1}, 1,
                         (wrpo_generate_desc){.n = 50, .tokenizer = tok, .max_tokens = 200, .temperature = 2}, WRPO_OK);
            int64_t stopped = 0;
            for (int64_t j = 0; j < 50; j++) {
                const kept *y = &k.of[j];
                int64_t ends = 0;
                for (int64_t t = 0; t < y->count; t++) ends += y->ids[t] == 7 || y->ids[t] == 257 || y->ids[t] == 259;
                CHECK(y->stopped ? ends == 1 && y->ids[y->count - 1] != 4 : ends == 0 && y->count == 200,
                      "sample %lld: %lld end tokens", (long long)j, (long long)ends);
                stopped += y->stopped;
            }
            CHECK(stopped > 25, "%lld of 50 stopped", (long long)stopped);
            free(k.of);
        }
    }
    wrpo_tokenizer_free(tok);
    if (model) model->tokenizer_dir = NULL;
    wrpo_model_free(model);
    const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"};
    for (int i = 0; i < 3; i++) {
        char path[200];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        remove(path);
    }
    CHECK(rmdir(dir) == 0, "%s is not empty", dir);
}
/* ---- checkpoints in memory; a prompt's text in, an answer's text out; hidden states and logits ---- */
typedef struct memory { struct { char path[300]; char *data; size_t size; } file[20]; int64_t count, open; } memory;
static const void *memory_open(const char *path, size_t *size, void **handle, void *user) {
    memory *m = user;
    for (int64_t i = 0; i < m->count; i++) {
        if (strcmp(path, m->file[i].path) != 0) continue;
        m->open++;
        *size = m->file[i].size;
        return *handle = m->file[i].data;
    }
    return NULL;
}
static void memory_close(void *handle, const void *data, void *user) {
    CHECK(handle == data, "the handle of another file");
    ((memory *)user)->open--;
}
static const char *memory_list(const char *dir, int64_t i, void *user) {
    const memory *m = user;
    const size_t n = strlen(dir);
    for (int64_t k = 0; k < m->count; k++)
        if (!strncmp(m->file[k].path, dir, n) && m->file[k].path[n] == '/' && i-- == 0) return m->file[k].path + n + 1;
    return NULL;
}
static void memory_put(memory *m, const char *path, const char *data, size_t size) {
    snprintf(m->file[m->count].path, sizeof m->file[0].path, "%s", path);
    m->file[m->count].data = malloc(size + 1), m->file[m->count].size = size;
    memcpy(m->file[m->count++].data, data, size);
}
static void memory_read(memory *m, const char *from, const char *to) {
    static char data[1 << 18];
    DIR *d = opendir(from);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[600], name[600];
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", from, e->d_name), snprintf(name, sizeof name, "%s/%s", to, e->d_name);
        FILE *f = fopen(path, "rb");
        CHECK(f, "%s", path);
        const size_t n = f ? fread(data, 1, sizeof data, f) : 0;
        CHECK(n < sizeof data, "%s is too long", path);
        memory_put(m, name, data, n);
        if (f) fclose(f);
    }
    if (d) closedir(d);
}
/* Logits of all rows, from one call and from the hidden states and the head's weights; log-probs against the
   generator's. */
static void hidden_states(wrpo_model *model, const int32_t *prompt, int64_t P, const kept *y) {
    const wrpo_config *c = wrpo_model_config(model);
    const int64_t n = P + y->count, D = c->hidden_size, V = c->vocab_size,
                  head = c->tie_word_embeddings ? 0 : model->n_weights - 1;
    int32_t *all = malloc((size_t)n * sizeof *all);
    float *hidden = malloc((size_t)(n * D) * 4), *logits = malloc((size_t)(n * V) * 4),
          *alone = malloc((size_t)(n * V) * 4), *w = malloc((size_t)(V * D) * 4);
    memcpy(all, prompt, (size_t)P * 4), memcpy(all + P, y->ids, (size_t)y->count * 4);
    CHECK(wrpo_hidden(model, all, n, hidden, logits) == WRPO_OK && wrpo_hidden(model, all, n, NULL, alone) == WRPO_OK &&
              wrpo_weight_get(model, head, 0, V * D, w) == WRPO_OK,
          "%s", wrpo_last_error(model->ctx)->text);
    CHECK(!memcmp(logits, alone, (size_t)(n * V) * 4), "logits depend on what else is asked for");
    double worst = 0, apart = 0;
    for (int64_t r = 0; r < n; r++) {
        double sum = 0;
        for (int64_t v = 0; v < V; v++) {
            double x = 0, scale = 1;
            for (int64_t k = 0; k < D; k++)
                x += (double)hidden[r * D + k] * w[v * D + k], scale += fabs((double)hidden[r * D + k] * w[v * D + k]);
            if (c->logits_scaling > 0) x /= c->logits_scaling;
            if (c->final_logit_softcapping > 0) x = c->final_logit_softcapping * tanh(x / c->final_logit_softcapping);
            worst = test_larger(worst, fabs(x - logits[r * V + v]) / scale);
            sum += exp((double)logits[r * V + v]);
        }
        if (r >= P - 1 && r + 1 < n)
            apart = test_larger(
                apart, fabs((double)logits[r * V + all[r + 1]] - log(sum) - (double)y->logps[r + 1 - P]));
    }
    CHECK(worst < 1e-6 && apart < 2e-5, "logits are %g from the hidden states', log-probs %g from the generator's",
          worst, apart);
    CHECK(wrpo_hidden(model, all, 0, hidden, NULL) == WRPO_E_ARG &&
              strstr(wrpo_last_error(model->ctx)->text, "want at least one token id, found 0"),
          "%s", wrpo_last_error(model->ctx)->text);
    all[n - 1] = (int32_t)V;
    CHECK(wrpo_hidden(model, all, n, hidden, NULL) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(model->ctx)->text, "is outside the model's vocabulary"),
          "%s", wrpo_last_error(model->ctx)->text);
    free(all), free(hidden), free(logits), free(alone), free(w);
}
static bool stream_answer(int64_t prompt, int64_t sample, const char *utf8, size_t size, void *user) {
    keeper *k = user;
    CHECK(prompt == 0 && sample == 0, "the one sample of the one prompt");
    memcpy(k->streamed + k->size, utf8, size);
    k->size += size;
    return !k->limit || ++k->pieces < k->limit;
}
static bool count_step(int64_t prompts, int64_t tokens, void *user) {
    ((keeper *)user)->next = prompts + tokens;
    return true;
}
static void in_memory(const wrpo_json *golden) {
    char out[64] = "/tmp/wrpo-memory-XXXXXX";
    CHECK(mkdtemp(out), "mkdtemp");
    for (const wrpo_json *f = golden_get(golden, "checkpoints")->child; f; f = f->next)
        for (int frozen = 0; frozen < 2; frozen++) {
            static memory m;
            char dir[200];
            wrpo_ctx *c;
            wrpo_model *model, *again;
            wrpo_tokenizer *tok, *other;
            wrpo_config config;
            wrpo_data *data;
            m = (memory){0};
            snprintf(dir, sizeof dir, "golden/checkpoints/%s", f->key);
            memory_read(&m, dir, "no/such/folder");
            static const char line[] = "{\"prompt\":\"a\",\"chosen\":[\"b\",\"a\"],\"rejected\":\"ab\"}\n";
            memory_put(&m, "d.jsonl", line, sizeof line - 1);
            CHECK(wrpo_open(&(wrpo_desc){.files = {memory_open, memory_close, memory_list, &m}}, &c) == WRPO_OK,
                  "open");
            const bool loaded =
                wrpo_model_load(c, &(wrpo_model_desc){.dir = "no/such/folder", .frozen = frozen}, &model) == WRPO_OK &&
                wrpo_tokenizer_load(c, "no/such/folder", &tok) == WRPO_OK;
            CHECK(loaded && m.open == (frozen ? m.open : 0), "%s: %s; %lld files are open", f->key,
                  wrpo_last_error(c)->text, (long long)m.open);
            if (!loaded) continue;
            CHECK(wrpo_config_load(c, "no/such/folder", &config) == WRPO_OK &&
                      config.vocab_size == model->config.vocab_size,
                  "%s", wrpo_last_error(c)->text);
            CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = "d.jsonl"}, &data) == WRPO_OK &&
                      wrpo_data_count(data) == 1,
                  "%s", wrpo_last_error(c)->text);
            wrpo_data_free(data);
            CHECK(wrpo_data_load(tok, NULL, &data) == WRPO_E_ARG &&
                      strstr(wrpo_last_error(c)->text, "wrpo_data_desc: want a path, found NULL"),
                  "%s", wrpo_last_error(c)->text);
            CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = "golden/generate.json"}, &data) == WRPO_E_IO,
                  "a file of the file system: %s", wrpo_last_error(c)->text);
            CHECK(wrpo_model_load(c, &(wrpo_model_desc){.dir = dir}, &again) == WRPO_E_IO,
                  "a directory of the file system: %s", wrpo_last_error(c)->text);
            for (const wrpo_json *v = f->child; v; v = v->next) {      /* {prompt, ids, text} */
                const wrpo_json *want = v->child->next->next;
                char *answer = NULL;
                keeper k = {0};
                const wrpo_generate_desc d = {
                    .max_tokens = 64, .on_text = stream_answer, .on_step = count_step, .user = &k};
                CHECK(wrpo_answer(model, tok, v->child->text, &d, &answer) == WRPO_OK, "%s", wrpo_last_error(c)->text);
                CHECK(answer && !strcmp(answer, want->text), "%s: \"%s\": want \"%s\", found \"%s\"", f->key,
                      v->child->text, want->text, answer ? answer : "");
                CHECK(k.size == want->size && !memcmp(k.streamed, want->text, k.size) && k.next > 1,
                      "the callbacks of %s got another text", f->key);
                wrpo_free(c, answer);
                if (v != f->child) continue;
                wrpo_json prompt = *v->child, record = {.kind = WRPO_JSON_OBJECT, .count = 1, .child = &prompt};
                wrpo_prompt p = {0};
                int32_t *ids;
                prompt.key = "prompt", prompt.key_size = 6, prompt.next = NULL;
                CHECK(wrpo_tokenizer_prompt(tok, NULL, &record, &ids, &p.count) == WRPO_OK, "%s",
                      wrpo_last_error(c)->text);
                p.ids = ids;
                keeper one =
                    generate(model, &p, 1, (wrpo_generate_desc){.max_tokens = 20, .temperature = WRPO_ZERO}, WRPO_OK);
                hidden_states(model, ids, p.count, one.of);
                free(one.of), wrpo_free(c, ids);
            }
            keeper few = {.limit = 2};
            char *cut = out;
            CHECK(wrpo_answer(model, tok, "a",
                              &(wrpo_generate_desc){.temperature = 9, .on_text = stream_answer, .user = &few},
                              &cut) == WRPO_E_STOPPED &&
                      !cut,
                  "stopped: %s", wrpo_last_error(c)->text);
            CHECK(wrpo_tokenizer_load(ctx, dir, &other) == WRPO_OK &&
                      wrpo_answer(model, other, "a", NULL, &cut) == WRPO_E_ARG &&
                      strstr(wrpo_last_error(c)->text, "a tokenizer of the model's context"),
                  "%s", wrpo_last_error(c)->text);
            wrpo_tokenizer_free(other);
            /* saved to the file system, with the side files; loaded from there it has the same weights */
            CHECK(wrpo_model_save(model, &(wrpo_save_desc){.dir = out}) == WRPO_OK, "%s", wrpo_last_error(c)->text);
            CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = out}, &again) == WRPO_OK &&
                      wrpo_tokenizer_load(ctx, out, &other) == WRPO_OK,
                  "%s", wrpo_last_error(ctx)->text);
            for (int64_t i = 0; again && i < model->n_weights; i++) {
                const int64_t n = wrpo__size(&model->weights[i]);
                float *a = malloc((size_t)n * 4), *b = malloc((size_t)n * 4);
                CHECK(wrpo_weight_get(model, i, 0, n, a) == WRPO_OK && wrpo_weight_get(again, i, 0, n, b) == WRPO_OK &&
                          !memcmp(a, b, (size_t)n * 4),
                      "%s", model->weights[i].name);
                if (frozen)
                    CHECK(wrpo_weight_put(model, i, 0, 1, a) == WRPO_E_ARG &&
                              strstr(wrpo_last_error(c)->text, "frozen"),
                          "%s", wrpo_last_error(c)->text);
                free(a), free(b);
            }
            wrpo_tokenizer_free(other), wrpo_model_free(again);
            wrpo_tokenizer_free(tok), wrpo_model_free(model);
            CHECK(m.open == 0, "%s: %lld files were not closed", f->key, (long long)m.open);
            wrpo_close(c);
            for (int64_t i = 0; i < m.count; i++) free(m.file[i].data);
            char command[100];
            snprintf(command, sizeof command, "rm -f %s/*", out);
            CHECK(system(command) == 0, "rm");
        }
    CHECK(rmdir(out) == 0, "%s is not empty", out);
}
/* Any allocation of an answer may fail, and of hidden states. */
static void out_of_memory(void) {
    wrpo_ctx *c;
    wrpo_model *model;
    wrpo_tokenizer *tok;
    const int32_t ids[3] = {5, 6, 7};
    float *hidden = malloc(3 * 24 * 4), *logits = malloc(3 * 1000 * 4);
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &c) == WRPO_OK,
          "open");
    CHECK(wrpo_model_load(c, &(wrpo_model_desc){.dir = "golden/checkpoints/llama_f32"}, &model) == WRPO_OK &&
              wrpo_tokenizer_load(c, "golden/checkpoints/llama_f32", &tok) == WRPO_OK,
          "load");
    CHECK(model->config.hidden_size == 24 && model->config.vocab_size <= 1000, "the buffers of this test");
    char *first = NULL;                /* the tokenizer keeps what it compiled for it */
    CHECK(wrpo_answer(model, tok, "a b", &(wrpo_generate_desc){.max_tokens = 3}, &first) == WRPO_OK, "%s",
          wrpo_last_error(c)->text);
    wrpo_free(c, first);
    for (int way = 0; way < 2; way++) {
        const int64_t base = live;
        wrpo_result r = WRPO_E_MEMORY;
        int64_t tries = 0, spared = 0;
        for (bool failed = true; failed; tries++) {
            char *answer = NULL;
            calls = 0, fail_at = tries;
            r = way ? wrpo_hidden(model, ids, 3, hidden, logits)
                    : wrpo_answer(model, tok, "a b", &(wrpo_generate_desc){.max_tokens = 40}, &answer);
            fail_at = -1;
            failed = calls > tries;
            spared += failed && r == WRPO_OK;
            CHECK(r == WRPO_OK || (failed && r == WRPO_E_MEMORY), "%s", wrpo_last_error(c)->text);
            wrpo_free(c, answer);
            int32_t *some = NULL;      /* the tokenizer's scratch is cleared when it is next used */
            int64_t n;
            CHECK(wrpo_tokenizer_encode(tok, "a", 1, 0, &some, &n) == WRPO_OK, "%s", wrpo_last_error(c)->text);
            wrpo_free(c, some);
            CHECK(live == base, "allocation %lld failed: %lld blocks left", (long long)tries, (long long)(live - base));
        }
        CHECK(r == WRPO_OK && tries >= 5, "%lld allocations: %s", (long long)tries, wrpo_last_error(c)->text);
        CHECK(way || !wrpo_backend_cpu()->keep || spared == 1, "without room for what is kept: %lld answers",
              (long long)spared);
    }
    wrpo_tokenizer_free(tok), wrpo_model_free(model), wrpo_close(c);
    free(hidden), free(logits);
    CHECK(live == 0, "%lld blocks left", (long long)live);
}

static bool never(int64_t done, int64_t tokens, void *user) { (void)user, (void)done; return tokens < 10; }
static void refusals(const wrpo_json *scale) {
    const int32_t good[3] = {5, 6, 7}, bad[2] = {5, 301}, negative = -1;
    int32_t *many = calloc(300, sizeof *many);
    wrpo_model *model = family(ctx, "llama", scale);
    if (!model) return;
    const wrpo_prompt fine = {.ids = good, .count = 3};
    const struct { wrpo_prompt prompt; wrpo_generate_desc d; const char *sentence;
    } refused[] = {
        {{.ids = good, .count = 0}, {0}, "prompt 0 has no token"},
        {{.ids = bad, .count = 2}, {0}, "prompt 0: token id 301 is outside the model's vocabulary of 301"},
        {{.ids = &negative, .count = 1}, {0}, "token id -1 is outside"},
        {{.ids = many, .count = 256}, {0}, "prompt 0: want fewer tokens than max_position_embeddings, 256, found 256"},
        {{.ids = good, .count = 3, .own_temperature = true, .temperature = -1},
         {0},
         "a prompt's temperature: want a number in [0, 1e6], found -1"},
        {fine, {.n = -1}, "n: want 1 to 2^20 samples, found -1"},
        {fine, {.max_tokens = -5}, "max_tokens: want 1 to 2^31 - 1, found -5"},
        {fine, {.temperature = -0.1}, "temperature: want a number in [0, 1e6]"},
        {fine, {.temperature = NAN}, "temperature: want"},
        {fine, {.top_p = 1.5}, "top_p: want a number in (0, 1], found 1.5"},
        {fine, {.top_p = -1}, "top_p: want"},
        {fine, {.top_k = -1}, "top_k: want at least 0"},
        {fine, {.batch = -1}, "batch: want 1 to 2^20 samples"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        const wrpo_result r = wrpo_generate(model, &refused[i].prompt, 1, &refused[i].d);
        CHECK(r != WRPO_OK && strstr(wrpo_last_error(ctx)->text, refused[i].sentence), "want \"%s\", found \"%s\"",
              refused[i].sentence, wrpo_last_error(ctx)->text);
    }
    CHECK(wrpo_generate(model, NULL, 0, &(wrpo_generate_desc){0}) == WRPO_OK, "no prompts: nothing to do");
    CHECK(wrpo_generate(model, NULL, 0, NULL) == WRPO_OK && wrpo_generate_defaults(NULL).batch == 32,
          "no desc: all defaults");
    keeper k = generate(model, &(wrpo_prompt){.ids = many, .count = 255}, 1,
                        (wrpo_generate_desc){.max_tokens = 9, .stop = good, .stop_count = 0}, WRPO_OK);
    CHECK(k.of[0].count == 1 && !k.of[0].stopped, "the last position: %lld tokens", (long long)k.of[0].count);
    free(k.of);
    CHECK(wrpo_generate(model, &fine, 1, &(wrpo_generate_desc){.on_step = never, .n = 3, .temperature = 0.8}) ==
              WRPO_E_STOPPED,
          "a callback that stops");
    ((float *)WRPO__W(model, down_proj, 1)->data)[0] = NAN;
    CHECK(wrpo_generate(model, &fine, 1, &(wrpo_generate_desc){0}) == WRPO_E_NOT_FINITE &&
              strstr(wrpo_last_error(ctx)->text, "prompt 0, sample 0, token 0: the log-prob is not a finite number"),
          "NaN: %s", wrpo_last_error(ctx)->text);
    wrpo_model_free(model);
    free(many);
    wrpo_ctx *c;                     /* any allocation may fail */
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &c) == WRPO_OK,
          "open");
    model = family(c, "llama", scale);
    const int64_t base = live;
    wrpo_result r = WRPO_E_MEMORY;
    int64_t tries = 0;
    for (; model && r == WRPO_E_MEMORY; tries++) {
        calls = 0, fail_at = tries;
        r = wrpo_generate(
            model, &fine, 1,
            &(wrpo_generate_desc){.n = 3, .max_tokens = 6, .batch = 2, .temperature = 0.8, .top_p = 0.95});
        CHECK(live == base, "allocation %lld failed: %lld blocks left", (long long)tries, (long long)(live - base));
    }
    fail_at = -1;
    CHECK(r == WRPO_OK && tries > 10, "%lld allocations: %s", (long long)tries, wrpo_last_error(c)->text);
    wrpo_model_free(model);
    wrpo_close(c);
    CHECK(live == 0, "%lld blocks left", (long long)live);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"plain", "avx512", "avx2", "generic"};
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 1;
    const wrpo_json *golden = golden_read(ctx, argc > 1 ? argv[1] : "golden/generate.json"),
                    *weights = golden_read(ctx, "golden/families/llama/golden.json");
    const wrpo_json *scale = golden_get(weights, "scale");             /* common.py's, of all families */
    greedy_families(golden, scale);
    greedy_checkpoints(golden);
    in_memory(golden);
    out_of_memory();
    sampler();
    for (int i = 0; i < WRPO__COUNT(names); i++) {
        const wrpo_backend *backend = wrpo_backend_find(names[i]);
        if (!backend) { SKIP(1, "this machine does not run %s", names[i]); continue; }
        for (const wrpo_json *f = golden_get(golden, "families")->child; f; f = f->next)
            same_as_forward(f->key, scale, backend);
    }
    same_beside_others(scale);
    keeps_what_fits(scale);
    frequencies(scale);
    texts(scale);
    refusals(scale);
    wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)golden);
    wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)weights);
    wrpo_close(ctx);
    return test_end("64_generate");
}
