/* Reading the committed goldens of tests/golden: JSON files, weights by formula, records of token ids. After wrpo.h and
   test.h. */
#ifndef WRPO_GOLDEN_H
#define WRPO_GOLDEN_H

/* A parsed file; exits if it is not there: goldens are committed. */
static const wrpo_json *golden_read(wrpo_ctx *ctx, const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) { printf("FAIL %s: not there (run the tests in tests/)\n", path); exit(1); }
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    char *text = malloc(n + 1);
    rewind(f);
    n = fread(text, 1, n, f);
    fclose(f);
    wrpo_json *root;
    if (wrpo_json_parse(ctx, path, text, n, &root) != WRPO_OK) {
        printf("FAIL %s\n", wrpo_last_error(ctx)->text);
        exit(1);
    }
    free(text);
    return root;
}
static const wrpo_json *golden_get(const wrpo_json *object, const char *key) {
    const wrpo_json *v = wrpo_json_get(object, key);
    if (!v) { printf("FAIL the golden has no \"%s\"\n", key); exit(1); }
    return v;
}
static inline double golden_number(const wrpo_json *object, const char *key, double otherwise) {
    const wrpo_json *v = wrpo_json_get(object, key);
    return v ? v->number : otherwise;
}
static inline const char *golden_text(const wrpo_json *object, const char *key, const char *otherwise) {
    const wrpo_json *v = wrpo_json_get(object, key);
    return v ? v->text : otherwise;
}

/* ---- weights by formula (golden/common.py says the same in Python) ---- */
static uint64_t golden_bits(const char *name, uint64_t index) {        /* splitmix64(fnv1a64(name) + index) */
    uint64_t z = 0xCBF29CE484222325u;
    for (; *name; name++) z = (z ^ (unsigned char)*name) * 0x100000001B3u;
    z += index + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static inline const char *golden_kind(const char *name) {
    size_t n = strlen(name);
    return strstr(name, "norm")                   ? "norm"
        : n > 5 && !strcmp(name + n - 5, ".bias") ? "bias"
        : strstr(name, "embed_tokens")            ? "embed"
        : !strncmp(name, "lm_head", 7)            ? "head"
                                                  : "linear";
}
/* Overwrites every weight: offset + (24 bits / 2^24 - 1/2) scale, in float. */
static inline void golden_fill(wrpo_model *model, const wrpo_json *scale) {
    const wrpo_weight *w;
    int64_t n = wrpo_model_weights(model, &w);
    for (int64_t i = 0; i < n; i++) {
        const wrpo_json *pair = golden_get(scale, golden_kind(w[i].name));
        const float offset = (float)pair->child->number, width = (float)pair->child->next->number;
        for (int64_t k = 0; k < w[i].rows * w[i].cols; k++)
            ((float *)w[i].data)[k] =
                offset + ((float)(golden_bits(w[i].name, (uint64_t)k) >> 40) / 16777216.0f - 0.5f) * width;
    }
}
static inline const wrpo_weight *golden_weight(const wrpo_model *model, const char *name) {
    const wrpo_weight *w;
    int64_t n = wrpo_model_weights(model, &w);
    for (int64_t i = 0; i < n; i++)
        if (!strcmp(w[i].name, name)) return &w[i];
    return NULL;
}

/* ---- records: [{"prompt": [ids], "responses": [[source], [target], [rejected]]}, ...], or with roles, weights, pairs
   and weight ---- */
static inline int32_t *golden_ids(const wrpo_json *array) {
    int32_t *ids = malloc((size_t)array->count * sizeof *ids), *p = ids;
    for (const wrpo_json *v = array->child; v; v = v->next) *p++ = (int32_t)v->integer;
    return ids;
}
static double golden_nth(const wrpo_json *object, const char *key, int k, double otherwise) {
    const wrpo_json *v = wrpo_json_get(object, key);
    if (!v) return otherwise;
    for (v = v->child; k; k--) v = v->next;
    return v->number;
}
static inline wrpo_data *golden_data(wrpo_ctx *ctx, const wrpo_json *records) {
    enum { MOST = 8 };
    wrpo_record *r = calloc((size_t)records->count, sizeof *r);
    wrpo_tokens *y = calloc((size_t)records->count * MOST, sizeof *y);
    wrpo_source_logp *source_logps = calloc((size_t)records->count * MOST * MOST, sizeof *source_logps);
    int64_t i = 0;
    for (const wrpo_json *v = records->child; v; v = v->next, i++) {
        const wrpo_json *prompt = golden_get(v, "prompt"), *all = golden_get(v, "responses"), *response = all->child;
        r[i] = (wrpo_record){.prompt_id = "golden",
                             .line = v->line,
                             .prompt = golden_ids(prompt),
                             .prompt_count = prompt->count,
                             .responses = y + MOST * i,
                             .count = (int)all->count,
                             .weight = golden_number(v, "weight", 0)};
        const wrpo_json *known = wrpo_json_get(v, "source_logps");
        r[i].sources = known ? (int)known->count : 0;
        for (int k = 0; k < r[i].count; k++, response = response->next)
            y[MOST * i + k] = (wrpo_tokens){.role = (wrpo_role)golden_nth(v, "roles", k, k),
                                            .ids = golden_ids(response),
                                            .count = response->count,
                                            .share = golden_nth(v, "weights", k, 1),
                                            .pair_id = (int)golden_nth(v, "pairs", k, 0)};
        for (int k = 0; k < r[i].count && r[i].sources; k++) {
            wrpo_source_logp *logps = source_logps + (MOST * i + k) * MOST;
            const wrpo_json *model = known->child;
            for (int m = 0; m < r[i].sources; m++, model = model->next) {
                const wrpo_json *pair = model->child;
                for (int skip = 0; skip < k; skip++) pair = pair->next;
                logps[m] = (wrpo_source_logp){pair->child->number, pair->child->next->integer};
            }
            y[MOST * i + k].source_logps = logps;
        }
    }
    wrpo_data *data;
    CHECK(wrpo_data_from_ids(ctx, r, records->count, &data) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    for (i = 0; i < records->count; i++) {             /* everything was copied */
        free((void *)(uintptr_t)r[i].prompt);
        for (int k = 0; k < r[i].count; k++) free((void *)(uintptr_t)y[MOST * i + k].ids);
    }
    free(r), free(y), free(source_logps);
    return data;
}
#endif
