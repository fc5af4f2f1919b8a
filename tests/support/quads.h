/* A small model's config.json, and quadruples for it as token ids, of many lengths. Needs wrpo.h's implementation. */
#ifndef WRPO_QUADS_H
#define WRPO_QUADS_H
static const char config_text[] =
    "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"vocab_size\":97,\"hidden_size\":36,"
    "\"intermediate_size\":50,\"num_hidden_layers\":3,\"num_attention_heads\":6,\"num_key_value_heads\":2,"
    "\"head_dim\":10,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,"
    "\"initializer_range\":0.3,\"tie_word_embeddings\":true,\"torch_dtype\":\"float32\"}";
static char dir[64], config_path[96];
enum { N = 13, LENGTH = 40 };
static int32_t ids[N][4][LENGTH];
static wrpo_tokens responses[N][3];
static wrpo_record records[N];
static char names[N][16];
static void make_records(void) {
    for (int i = 0; i < N; i++) {
        for (int s = 0; s < 4; s++)
            for (int j = 0; j < LENGTH; j++)
                ids[i][s][j] = (int32_t)(wrpo__random64(1, (uint64_t)(i * 4 + s), (uint64_t)j) % 97);
        for (int k = 0; k < 3; k++)
            responses[i][k] = (wrpo_tokens){.role = (wrpo_role)k, .ids = ids[i][k + 1], .share = 1,
                                            .count = 1 + (i * 7 + k * 11) % 29};
        snprintf(names[i], sizeof names[i], "r%d", i);
        records[i] = (wrpo_record){.prompt_id = names[i], .line = i + 1, .prompt = ids[i][0], .count = 3,
                                   .prompt_count = 1 + i * 5 % 33, .responses = responses[i]};
    }
}
#endif
