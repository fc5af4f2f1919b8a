/* Trains a tiny model on token ids with the ops of >>ops, without a file. 02_order.sh compiles it against the whole
   header and, with CUT, against the part above "Stop here if you only want to train on token ids": both must print the
   same. */
#ifdef CUT
#define WRPO_IMPLEMENTATION
#endif
#include "wrpo.h"
#include <stdio.h>
#include <string.h>
#ifdef CUT                           /* the fast ops stand below the cut */
const wrpo_backend *wrpo_backend_cpu(void) { return wrpo_backend_plain(); }
#endif

enum { RECORDS = 4, STEPS = 6 };
static wrpo_ctx *ctx;
static int fails(const char *what) { return printf("%s: %s\n", what, wrpo_last_error(ctx)->text), 1; }

int main(void) {
    static const wrpo_config config = {
        .model_type = "llama", .vocab_size = 29, .hidden_size = 24, .intermediate_size = 40, .num_hidden_layers = 2,
        .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6, .max_position_embeddings = 64,
        .rms_norm_eps = 1e-5, .initializer_range = 0.2, .rope = {.theta = 10000},
    };
    int32_t ids[RECORDS][4][8];
    wrpo_tokens y[RECORDS][3];
    wrpo_record records[RECORDS];
    memset(y, 0, sizeof y), memset(records, 0, sizeof records);
    for (int r = 0; r < RECORDS; r++) {
        for (int k = 0; k < 4; k++)      /* a prompt, then one response of each role */
            for (int i = 0; i < 8; i++) ids[r][k][i] = (7 * r + 11 * k + (k + 2) * i * i + i) % 29;
        for (int k = 0; k < 3; k++)
            y[r][k].role = (wrpo_role)k, y[r][k].ids = ids[r][k + 1], y[r][k].count = 4 + (r + k) % 5;
        records[r].prompt = ids[r][0], records[r].prompt_count = 3 + r;
        records[r].responses = y[r], records[r].count = 3;
    }
    wrpo_model *model;
    wrpo_data *data;
    wrpo_trainer *trainer;
    if (wrpo_open(&(wrpo_desc){.backend = wrpo_backend_plain(), .threads = 1}, &ctx)) return fails("wrpo_open");
    if (wrpo_model_new(ctx, &config, 3, &model)) return fails("wrpo_model_new");
    if (wrpo_data_from_ids(ctx, records, RECORDS, &data)) return fails("wrpo_data_from_ids");
    const wrpo_train_desc desc = {.max_steps = STEPS, .batch_size = RECORDS, .learning_rate = 1e-2, .loss.beta = 0.5};
    if (wrpo_trainer_new(model, data, &desc, &trainer)) return fails("wrpo_trainer_new");

    double first = 0, last = 0;
    for (int step = 0; step < STEPS; step++) {
        wrpo_metrics m;
        if (wrpo_trainer_step(trainer, &m)) return fails("wrpo_trainer_step");
        printf("step %d: loss %a, gradient norm %a\n", step, m.loss, m.grad_norm);
        if (step == 0) first = m.loss;
        last = m.loss;
    }
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a over the bytes of all weights */
    const wrpo_weight *w;
    const int64_t weights = wrpo_model_weights(model, &w);
    for (int64_t i = 0; i < weights; i++)
        for (int64_t b = 0; b < w[i].rows * w[i].cols * (int64_t)sizeof(float); b++)
            hash = (hash ^ ((const unsigned char *)w[i].data)[b]) * 0x100000001B3u;
    printf("loss %.4f to %.4f, weights %016llx\n", first, last, (unsigned long long)hash);
    wrpo_trainer_free(trainer), wrpo_data_free(data), wrpo_model_free(model), wrpo_close(ctx);
    return last < first ? 0 : 1;
}
