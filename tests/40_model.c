/* The whole model against a plain one in double: every response as a sequence of its own, full score matrices, full
   logits, no sharing. Log-probs directly; gradients against central differences of the double model. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"

/* ---- the plain model: weights by name as double copies ---- */
static const wrpo_model *plain;
static double *copy;                 /* of the weights, one after the other */
static int64_t place[200];           /* where each of them is */
static double *at(const wrpo_weight *w) { return w ? copy + place[w - plain->weights] : NULL; }
static const wrpo__adapter *adapter_of(const wrpo_weight *w) {
    for (int64_t l = 0; plain->lora && l < plain->config.num_hidden_layers; l++)
        for (int kind = 0; kind < WRPO__KINDS; kind++) {
            const wrpo__adapter *of = wrpo__adapters(plain, (wrpo__kind)kind, l);
            if (of->rank && wrpo__weight(plain, (wrpo__kind)kind, l) == w) return of;
        }
    return NULL;
}
static void rms(double *y, const double *x, const double *g, int64_t n, double eps, double plus) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += x[i] * x[i];
    s = 1 / sqrt(s / (double)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * s * (g[i] + plus);
}
static void matvec(double *y, const wrpo_weight *w, const wrpo_weight *b, const double *x) {
    for (int64_t r = 0; r < w->rows; r++) {
        double s = b ? at(b)[r] : 0;
        for (int64_t k = 0; k < w->cols; k++) s += at(w)[r * w->cols + k] * x[k];
        y[r] = s;
    }
    const wrpo__adapter *of = adapter_of(w);
    for (int64_t i = 0; of && i < of->rank; i++) {     /* y += scale (x A') B' */
        double t = 0;
        for (int64_t k = 0; k < w->cols; k++) t += at(of->a)[i * w->cols + k] * x[k];
        for (int64_t r = 0; r < w->rows; r++) y[r] += (double)of->scale * t * at(of->b)[r * of->rank + i];
    }
}
/* log-probs of ids[first..n) given what stands before each; out[n - first] */
static void plain_logps(const int32_t *ids, int64_t n, int64_t first, double *out) {
    const wrpo_config *c = &plain->config;
    const int64_t D = c->hidden_size, I = c->intermediate_size, H = c->num_attention_heads, G = c->num_key_value_heads,
                  d = c->head_dim, V = c->vocab_size;
    double *x = calloc((size_t)(n * D), 8), *a = calloc((size_t)WRPO__MAX(D, H * d), 8),
           *q = calloc((size_t)(n * H * d), 8), *k = calloc((size_t)(n * G * d), 8),
           *v = calloc((size_t)(n * G * d), 8), *o = calloc((size_t)(H * d), 8), *p = calloc((size_t)n, 8),
           *g = calloc((size_t)I, 8), *u = calloc((size_t)I, 8), *y = calloc((size_t)D, 8),
           *logits = calloc((size_t)V, 8);
    const int64_t turned = c->rope.dims ? c->rope.dims : d;
    const double plus = c->norm_plus_one ? 1 : 0, eps = c->rms_norm_eps,
                 by = c->attention_multiplier > 0
                          ? c->attention_multiplier
                          : 1 / sqrt(c->query_pre_attn_scalar > 0 ? c->query_pre_attn_scalar : (double)d),
                 embed = c->embedding_multiplier > 0 ? c->embedding_multiplier
                                                     : c->scale_embeddings ? sqrt((double)D) : 1,
                 add = c->residual_multiplier > 0 ? c->residual_multiplier : 1,
                 divide = c->logits_scaling > 0 ? c->logits_scaling : 1;
    float inv_all[256], inv_sliding[256];
    double slope;                        /* softcap and act are those of >>ops, in double */
    wrpo__rotary all = {.inv_freq = inv_all};
    wrpo__inv_freq(c, wrpo__rope_key(c, n), &all);
    for (int64_t e = 0; c->sliding_rope_theta > 0 && e < turned / 2; e++)
        inv_sliding[e] = (float)pow(c->sliding_rope_theta, -2 * (double)e / (double)turned);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < D; j++) x[i * D + j] = at(WRPO__W(plain, embed_tokens, 0))[ids[i] * D + j] * embed;
    for (int64_t l = 0; l < c->num_hidden_layers; l++) {
        const bool own_base = c->sliding_rope_theta > 0 && c->sliding_layers[0] >> l & 1;
        const bool turns = !(c->no_rope_layers[0] >> l & 1);
        const float *inv = own_base ? inv_sliding : inv_all;
        const double scale = own_base ? 1 : all.scale;
        for (int64_t i = 0; i < n; i++) {
            if (c->no_pre_norms) memcpy(a, x + i * D, (size_t)D * 8);
            else rms(a, x + i * D, at(WRPO__W(plain, input_layernorm, l)), D, eps, plus);
            matvec(q + i * H * d, WRPO__W(plain, q_proj, l), WRPO__W(plain, q_bias, l), a);
            matvec(k + i * G * d, WRPO__W(plain, k_proj, l), WRPO__W(plain, k_bias, l), a);
            matvec(v + i * G * d, WRPO__W(plain, v_proj, l), WRPO__W(plain, v_bias, l), a);
            if (c->qk_norm_rows) {
                rms(q + i * H * d, q + i * H * d, at(WRPO__W(plain, q_norm, l)), H * d, eps, plus);
                rms(k + i * G * d, k + i * G * d, at(WRPO__W(plain, k_norm, l)), G * d, eps, plus);
            }
            for (int64_t h = 0; h < H + G; h++) {
                double *z = h < H ? q + (i * H + h) * d : k + (i * G + h - H) * d;
                const wrpo_weight *norm = h < H ? WRPO__W(plain, q_norm, l) : WRPO__W(plain, k_norm, l);
                if (norm && !c->qk_norm_rows) rms(z, z, at(norm), d, eps, plus);
                for (int64_t e = 0; turns && e < turned / 2; e++) {
                    float angle = (float)i * inv[e];   /* the angle is the reference's float; the rest is double */
                    double s = sin((double)angle) * scale, t = cos((double)angle) * scale, z1 = z[e],
                           z2 = z[e + turned / 2];
                    z[e] = z1 * t - z2 * s, z[e + turned / 2] = z2 * t + z1 * s;
                }
            }
        }
        for (int64_t i = 0; i < n; i++) {
            for (int64_t h = 0; h < H; h++) {
                const int64_t kv = h / (H / G), window = wrpo__layer_window(c, l);
                double most = -INFINITY, sum = 0;
                for (int64_t j = 0; j <= i; j++) {
                    p[j] = 0;
                    for (int64_t e = 0; e < d; e++) p[j] += q[(i * H + h) * d + e] * k[(j * G + kv) * d + e] * by;
                    p[j] = wrpo__softcap(p[j], c->attn_logit_softcapping, &slope);
                    if (window && i - j >= window) p[j] = -INFINITY;
                    most = fmax(most, p[j]);
                }
                for (int64_t j = 0; j <= i; j++) sum += p[j] = exp(p[j] - most);
                for (int64_t e = 0; e < d; e++) {
                    o[h * d + e] = 0;
                    for (int64_t j = 0; j <= i; j++) o[h * d + e] += p[j] / sum * v[(j * G + kv) * d + e];
                }
            }
            matvec(y, WRPO__W(plain, o_proj, l), WRPO__W(plain, o_bias, l), o);
            if (c->post_norms) rms(y, y, at(WRPO__W(plain, post_attention_layernorm, l)), D, eps, plus);
            for (int64_t j = 0; j < D; j++) x[i * D + j] += add * y[j];
            if (c->no_pre_norms) memcpy(a, x + i * D, (size_t)D * 8);
            else
                rms(a, x + i * D,
                    at(c->post_norms ? WRPO__W(plain, pre_feedforward_layernorm, l)
                                     : WRPO__W(plain, post_attention_layernorm, l)),
                    D, eps, plus);
            matvec(g, WRPO__W(plain, gate_proj, l), NULL, a);
            matvec(u, WRPO__W(plain, up_proj, l), NULL, a);
            for (int64_t j = 0; j < I; j++) g[j] = wrpo__act(g[j], c->gelu, &slope) * u[j];
            matvec(y, WRPO__W(plain, down_proj, l), NULL, g);
            if (c->post_norms) rms(y, y, at(WRPO__W(plain, post_feedforward_layernorm, l)), D, eps, plus);
            for (int64_t j = 0; j < D; j++) x[i * D + j] += add * y[j];
        }
    }
    for (int64_t i = first; i < n; i++) {
        double sum = 0, most = -INFINITY;
        rms(y, x + (i - 1) * D, at(WRPO__W(plain, norm, 0)), D, eps, plus);
        matvec(logits, wrpo__head(plain), NULL, y);
        for (int64_t j = 0; j < V; j++) logits[j] /= divide;
        for (int64_t j = 0; j < V; j++) logits[j] = wrpo__softcap(logits[j], c->final_logit_softcapping, &slope);
        for (int64_t j = 0; j < V; j++) most = fmax(most, logits[j]);
        for (int64_t j = 0; j < V; j++) sum += exp(logits[j] - most);
        out[i - first] = logits[ids[i]] - most - log(sum);
    }
    free(x), free(a), free(q), free(k), free(v), free(o), free(p), free(g), free(u), free(y), free(logits);
}

/* ---- records ---- */
enum { RECORDS = 3, MOST = 40 };
static int32_t prompt[RECORDS][MOST], answer[RECORDS][3][MOST];
static wrpo_tokens tokens[RECORDS][3];
static wrpo_record records[RECORDS];
static double coef[RECORDS][3] = {{0.7, -0.4, 0.9}, {-1.1, 0.3, 0}, {0.5, -0.6, 0.2}};
static void make_records(int64_t V) {
    static const int lengths[RECORDS][4] = {{17, 3, 1, 5}, {1, 4, 17, 2}, {3, 1, 6, 9}};
    for (int i = 0; i < RECORDS; i++) {
        for (int j = 0; j < MOST; j++) {
            prompt[i][j] = (int32_t)(wrpo__random64(5, (uint64_t)i, (uint64_t)j) % (uint64_t)V);
            for (int k = 0; k < 3; k++)
                answer[i][k][j] = (int32_t)(wrpo__random64(6, (uint64_t)(i * 3 + k), (uint64_t)j) % (uint64_t)V);
        }
        for (int k = 0; k < 3; k++)
            tokens[i][k] = (wrpo_tokens){.role = (wrpo_role)k,
                                         .ids = answer[i][k],
                                         .count = lengths[i][k + 1],
                                         .first = i == 2 && k == 2 ? 2 : 0,
                                         .share = 1};
        records[i] = (wrpo_record){
            .prompt_id = "r", .prompt = prompt[i], .prompt_count = lengths[i][0], .responses = tokens[i], .count = 3};
    }
}
static double objective(double *per_token) { /* sum of coef * logp, in double; per_token in the library's order */
    double sum = 0, out[MOST];
    for (int i = 0; i < RECORDS; i++)
        for (int k = 0; k < 3; k++) {
            int32_t ids[2 * MOST];
            const int64_t P = records[i].prompt_count, n = P + tokens[i][k].count, first = P + tokens[i][k].first;
            memcpy(ids, prompt[i], (size_t)P * 4), memcpy(ids + P, answer[i][k], (size_t)tokens[i][k].count * 4);
            plain_logps(ids, n, first, out);
            for (int64_t j = 0; j < n - first; j++) {
                sum += coef[i][k] * out[j];
                if (per_token) *per_token++ = out[j];
            }
        }
    return sum;
}
static wrpo_config config(const char *name) {
    wrpo_config c = {.vocab_size = 129,
                     .hidden_size = 17,
                     .intermediate_size = 33,
                     .num_hidden_layers = 2,
                     .num_attention_heads = 3,
                     .num_key_value_heads = 1,
                     .head_dim = 6,
                     .max_position_embeddings = 512,
                     .rms_norm_eps = 1e-5,
                     .initializer_range = 0.2,
                     .rope = {.theta = 100}};
    snprintf(c.model_type, sizeof c.model_type, "%s", name);
    return c;
}
static double worst_logp, worst_grad;
static wrpo__workspace *forward(wrpo__arena *arena, wrpo_model *model, int64_t recompute, bool logits, bool means) {
    wrpo__workspace *r = wrpo__workspace_new(
        arena, model, &(wrpo__shape){.rows = 140, .chunk = logits && model->lora ? 140 : 7, .logits = logits,
                                     .recompute = recompute, .train = true});
    wrpo__pack_begin(r);
    for (int i = 0; i < RECORDS; i++) wrpo__pack_record(r, &records[i]);
    wrpo__pack_end(r);
    wrpo__forward(r, means, true);
    return r;
}
static float *backward(wrpo__arena *arena, wrpo__workspace *r,
                       bool dropped) { /* the gradient; dropped: one answer of each record has no part in it */
    int64_t t = 0;
    for (int i = 0; i < RECORDS; i++)
        for (int k = 0; k < 3; k++)
            for (int64_t j = tokens[i][k].first; j < tokens[i][k].count; j++)
                r->h_dlogp[t++] = dropped && k == i % 3 ? 0 : (float)coef[i][k];
    float *grads = wrpo__alloc(arena, (size_t)r->model->count, sizeof *grads);
    wrpo__backward(r, grads);
    return grads;
}
/* adapter: NULL, or only it is trained */
static void check_with(wrpo_ctx *ctx, const char *what, wrpo_config c, const wrpo_adapter_desc *adapter) {
    make_records(c.vocab_size);
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *arena = wrpo__entry.arena;
        wrpo_model *model = wrpo__model_new(arena, &c);
        if (adapter) {
            wrpo__adapter_begin(model, adapter);
            wrpo__model_memory(model);
        }
        for (int64_t i = 0; i < model->n_weights; i++)
            for (int64_t k = 0; k < model->weights[i].rows * model->weights[i].cols; k++) {
                double z = wrpo__normal(11, (uint64_t)i, (uint64_t)k);
                ((float *)model->weights[i].data)[k] =
                    (float)(model->weights[i].vector ? 0.8 + 0.3 * z : c.initializer_range * z);
            }
        int64_t elements = 0;
        plain = model;
        for (int64_t i = 0; i < model->n_weights; i++) {
            place[i] = elements;
            elements += wrpo__size(&model->weights[i]);
        }
        copy = calloc((size_t)elements, sizeof *copy);
        for (int64_t i = 0; i < model->n_weights; i++)
            for (int64_t k = 0; k < wrpo__size(&model->weights[i]); k++)
                copy[place[i] + k] = (double)((float *)model->weights[i].data)[k];
        for (int64_t recompute = 0; recompute <= c.num_hidden_layers; recompute += c.num_hidden_layers) {
            wrpo__workspace *r = forward(arena, model, recompute, false, true);
            double want[3 * RECORDS * MOST];
            objective(want);
            double worst = 0;
            for (int64_t t = 0; t < r->n_labels; t++) worst = test_larger(worst, fabs((double)r->h_logp[t] - want[t]));
            CHECK(worst < 2e-5, "%s: log-probs differ by %g", what, worst);
            worst_logp = test_larger(worst_logp, worst);
            float *grads = backward(arena, r, false);
            for (int64_t i = 0; i < model->n_weights;
                 i++) { /* some places of every tensor, relative to the tensor's largest gradient */
                const wrpo_weight *w = &model->weights[i];
                CHECK(adapter ? (w->at < 0) == (i < model->lora->first) : w->at >= 0, "%s: %s is trained", what,
                      w->name);
                if (w->at < 0) continue;
                float *g = grads + w->at;
                double *p = at(w), top = 0;
                int64_t size = w->rows * w->cols;
                for (int64_t k = 0; k < size; k++) top = fmax(top, fabs((double)g[k]));
                CHECK(top > 0, "%s: %s has no gradient", what, w->name);
                for (int s = 0; s < (adapter ? 2 : 7); s++) {
                    int64_t k = (int64_t)(wrpo__random64(9, (uint64_t)i, (uint64_t)s) % (uint64_t)size);
                    if (s == 0)                        /* one place that certainly has one */
                        for (k = 0; fabs((double)g[k]) < top; k++) {}
                    const double h = 1e-5, keep = p[k];
                    p[k] = keep + h;
                    double up = objective(NULL);
                    p[k] = keep - h;
                    double down = objective(NULL), error;
                    p[k] = keep;
                    error = fabs((up - down) / (2 * h) - (double)g[k]) / top;
                    CHECK(error < 2e-4, "%s: %s[%lld]: gradient %g, differences %g", what, w->name, (long long)k,
                          (double)g[k], (up - down) / (2 * h));
                    worst_grad = test_larger(worst_grad, error);
                }
            }
        }
        free(copy);
        for (int dropped = 0; dropped < 2; dropped++) { /* logits kept for the backward pass or made again (with an
                                    adapter, in one chunk or many): the same bits; also where an answer drops out */
            float *grads[2];
            for (int kept = 0; kept < 2; kept++) {
                wrpo__workspace *r = forward(arena, model, 0, kept, false);
                CHECK(r->logits_kept == (kept && !adapter), "%s: logits kept: %d", what, r->logits_kept);
                grads[kept] = backward(arena, r, dropped);
            }
            CHECK(!memcmp(grads[0], grads[1], (size_t)model->count * sizeof **grads),
                  "%s: kept logits give other gradients", what);
        }
    }
    CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s: %s", what, ctx->error.text);
}

static void check(wrpo_ctx *ctx, const char *what, wrpo_config c) {
    static int64_t ranks[] = {1, 3, 16}, next;
    check_with(ctx, what, c, NULL);
    const wrpo_adapter_desc all_linear = {.r = ranks[next++ % 3], .alpha = 5, .rslora = next % 2};
    check_with(ctx, what, c, &all_linear);
}
static void all(const wrpo_backend *backend) {
    wrpo_ctx *ctx;
    if (wrpo_open(&(wrpo_desc){.backend = backend}, &ctx) != WRPO_OK) exit(2);
    worst_logp = worst_grad = 0;
    wrpo_config c = config("llama");
    check(ctx, "llama, 3 query heads on 1", c);
    c.tie_word_embeddings = true;
    check(ctx, "tied", c);
    c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 10, c.hidden_size = 16,
    c.rope.type = WRPO_ROPE_LLAMA3, c.rope.factor = 8;
    c.rope.low_freq_factor = 1, c.rope.high_freq_factor = 4, c.rope.original_max_position_embeddings = 16;
    check(ctx, "llama3 rope, heads wider than hidden", c);
    c = config("llama"), c.attention_bias = c.output_bias = true, c.num_key_value_heads = 3;
    check(ctx, "biases on q, k, v, o", c);
    check_with(ctx, "adapters on some layers", c, &(wrpo_adapter_desc){.r = 3, .target = "v_proj,q_proj,down_proj"});
    c = config("mistral"), c.sliding_window = 5, c.sliding_layers[0] = 3;
    check(ctx, "window on all layers", c);
    c = config("qwen2"), c.attention_bias = true, c.sliding_window = 4, c.sliding_layers[0] = 2;
    check(ctx, "biases on q, k, v; window on the upper layer", c);
    c = config("qwen3"), c.qk_norm = true, c.head_dim = 8, c.tie_word_embeddings = true;
    check(ctx, "q and k norms", c);
    c = config("gemma2"), c.gelu = c.norm_plus_one = c.post_norms = c.scale_embeddings = c.tie_word_embeddings = true,
    c.query_pre_attn_scalar = 2.5;
    c.attn_logit_softcapping = 0.75, c.final_logit_softcapping = 1.5, c.sliding_window = 6, c.sliding_layers[0] = 1;
    check(ctx, "gelu, 1 + w, norms on what is added, caps, scales, window on the even layer", c);
    c.post_norms = c.gelu = false, c.attn_logit_softcapping = 0;
    check(ctx, "each switch by itself: some of them", c);
    c = config("phi3"), c.head_dim = 8, c.rope.type = WRPO_ROPE_LONGROPE, c.rope.dims = 6,
    c.rope.original_max_position_embeddings = 20, c.rope.attention_factor = 1.1875;
    for (int i = 0; i < 3; i++)
        c.rope.short_factor[i] = 1 + 0.25f * (float)i, c.rope.long_factor[i] = 1.5f + (float)(i * i);
    check(ctx, "longrope on part of a head, some sequences beyond the original length", c);
    c = config("internlm2"), c.rope.type = WRPO_ROPE_DYNAMIC, c.rope.factor = 2.5, c.max_position_embeddings = 19;
    check(ctx, "dynamic rope, every longer sequence with a theta of its own", c);
    c = config("gemma3_text"), c.gelu = c.norm_plus_one = c.post_norms = c.scale_embeddings = c.qk_norm = true,
    c.tie_word_embeddings = true, c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 8,
    c.query_pre_attn_scalar = 9, c.sliding_window = 6, c.sliding_layers[0] = 2, c.sliding_rope_theta = 7,
    c.rope.type = WRPO_ROPE_LINEAR, c.rope.factor = 4;
    check(ctx, "q and k norms of 1 + w, a base of its own where there is a window", c);
    c = config("smollm3"), c.no_rope_layers[0] = 1, c.num_hidden_layers = 3, c.sliding_window = 4,
    c.sliding_layers[0] = 5;
    check(ctx, "a layer that does not rotate", c);
    c = config("olmo2"), c.qk_norm = c.qk_norm_rows = c.post_norms = c.no_pre_norms = true, c.num_key_value_heads = 3;
    check(ctx, "norms after only, q and k norms over whole rows", c);
    c.num_key_value_heads = 1, c.residual_multiplier = 0.3, c.embedding_multiplier = 2.5, c.tie_word_embeddings = true;
    check(ctx, "the same with factors", c);
    c = config("granite"), c.embedding_multiplier = 1.75, c.residual_multiplier = 0.22, c.attention_multiplier = 0.125,
    c.logits_scaling = 1.5, c.attention_bias = c.output_bias = true;
    check(ctx, "factors of embeddings, stream, scores and logits", c);
    c.tie_word_embeddings = true, c.final_logit_softcapping = 1.5;
    check(ctx, "the same, tied and capped", c);
    c = config("one"), c.hidden_size = 1, c.intermediate_size = 1, c.num_attention_heads = 1, c.head_dim = 2,
    c.vocab_size = 3, c.num_hidden_layers = 1;
    check_with(ctx, "everything 1", c, NULL);
    printf("%s: worst difference of a log-prob %.2g, of a gradient %.2g of its tensor's largest\n", backend->name,
           worst_logp, worst_grad);
    wrpo_close(ctx);
}
int main(void) {
    all(wrpo_backend_cpu());
    all(wrpo_backend_plain());
    return test_end("model");
}
