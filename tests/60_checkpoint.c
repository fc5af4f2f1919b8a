/* config.json in its spellings and refusals; weights there and back; broken directories, one sentence each. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/folder.h"
#include "support/counting.h"
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static wrpo_ctx *ctx;
#define SMALL \
    "\"vocab_size\":37,\"hidden_size\":16,\"intermediate_size\":20,\"num_hidden_layers\":2,\"num_attention_heads\":4," \
    "\"num_key_value_heads\":2"

static void configs(void) {
    wrpo_config c;
    const struct { const char *text, *says;
    } refused[] = {
        {"{\"model_type\":\"llama\"}", "vocab_size"},
        {"[]", "object"},
        {"{", "config.json:1"},
        {"{" SMALL "}", "model_type"},
        {"{\"model_type\":\"gpt2\"," SMALL "}", "gpt2"},
        {"{\"model_type\":\"llama\"," SMALL ",\"hidden_act\":\"gelu\"}", "gelu"},
        {"{\"model_type\":\"llama\"," SMALL ",\"mlp_bias\":true}", "mlp_bias"},
        {"{\"model_type\":\"llama\"," SMALL ",\"quantization_config\":{}}", "quantization_config"},
        {"{\"model_type\":\"llama\"," SMALL ",\"num_experts\":8}", "num_experts"},
        {"{\"model_type\":\"llama\"," SMALL ",\"sliding_window\":8}", "sliding_window"},
        {"{\"model_type\":\"llama\"," SMALL ",\"rope_scaling\":{\"type\":\"dynamic\"}}", "factor"},
        {"{\"model_type\":\"llama\"," SMALL ",\"rope_scaling\":{\"type\":\"ntk\",\"factor\":2}}", "ntk"},
        {"{\"model_type\":\"llama\"," SMALL ",\"query_pre_attn_scalar\":8}", "query_pre_attn_scalar"},
        {"{\"model_type\":\"gemma2\"," SMALL ",\"hidden_activation\":\"gelu\"}", "gelu"},
        {"{\"model_type\":\"gemma2\"," SMALL ",\"hidden_act\":\"silu\"}", "hidden_act"},
        {"{\"model_type\":\"gemma2\"," SMALL ",\"use_bidirectional_attention\":true}", "use_bidirectional"},
        {"{\"model_type\":\"gemma2\"," SMALL ",\"sliding_window\":9,\"sliding_window_size\":8}", "sliding_window_size"},
        {"{\"model_type\":\"gemma2\"," SMALL ",\"final_logit_softcapping\":0}", "final_logit"},
        {"{\"model_type\":\"phi3\"," SMALL ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", "linear"},
        {"{\"model_type\":\"phi3\"," SMALL ",\"resid_pdrop\":1.5}", "resid_pdrop"},
        {"{\"model_type\":\"phi3\"," SMALL
         ",\"head_dim\":8,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1,1,1],\"long_factor\":[1,1,1]}}",
         "long_factor"},
        {"{\"model_type\":\"phi3\"," SMALL
         ",\"head_dim\":8,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1,0,1],\"long_factor\":[1,1,1,1]}}",
         "short_factor"},
        {"{\"model_type\":\"phi3\"," SMALL
         ",\"original_max_position_embeddings\":64,\"rope_scaling\":{\"type\":\"longrope\","
         "\"original_max_position_embeddings\":32,\"short_factor\":[1,1],"
         "\"long_factor\":[1,1]}}",
         "original_max_position_embeddings"},
        {"{\"model_type\":\"phi3\"," SMALL ",\"partial_rotary_factor\":0.9}", "partial_rotary_factor"},
        {"{\"model_type\":\"phi3\"," SMALL ",\"attention_bias\":true}", "attention_bias"},
        {"{\"model_type\":\"internlm2\"," SMALL ",\"attention_bias\":true}", "attention_bias"},
        {"{\"model_type\":\"internlm2\"," SMALL ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}", "yarn"},
        {"{\"model_type\":\"internlm2\"," SMALL ",\"sliding_window\":8}", "sliding_window"},
        {"{\"model_type\":\"qwen2\"," SMALL ",\"resid_pdrop\":-0.5}", "resid_pdrop"},
        {"{\"model_type\":\"llama\"," SMALL ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2}}", "llama3"},
        {"{\"model_type\":\"llama\"," SMALL ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"mscale\":1}}",
         "mscale"},
        {"{\"model_type\":\"llama\"," SMALL ",\"attention_dropout\":1}", "attention_dropout"},
        {"{\"model_type\":\"llama\"," SMALL ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
        {"{\"model_type\":\"llama\"," SMALL ",\"architectures\":[\"LlamaForTokenClassification\"]}",
         "LlamaForTokenClassification"},
        {"{\"model_type\":\"llama\"," SMALL ",\"architectures\":[\"LlamaForRewardModel\"]}", "LlamaForRewardModel"},
        {"{\"model_type\":\"internlm2\"," SMALL ",\"architectures\":[\"InternLM2ForRewardModel\"]}", "reward_token_id"},
        {"{\"model_type\":\"llama\"," SMALL ",\"head_dim\":5}", "head_dim"},
        {"{\"model_type\":\"llama\"," SMALL ",\"rms_norm_eps\":-1}", "rms_norm_eps"},
        {"{\"model_type\":\"llama\"," SMALL ",\"hidden_size\":0}", "hidden_size"},
        {"{\"model_type\":\"mistral\"," SMALL ",\"sliding_window\":0}", "sliding_window"},
        {"{\"model_type\":\"qwen2\"," SMALL ",\"layer_types\":[\"full_attention\"]}", "layer_types"},
        {"{\"model_type\":\"qwen3\"," SMALL ",\"layer_types\":[\"full_attention\",\"linear\"]}", "linear"},
        {"{\"model_type\":\"llama\",\"vocab_size\":37,\"hidden_size\":16,\"intermediate_size\":20,"
         "\"num_hidden_layers\":2,\"num_attention_heads\":5}",
         "num_attention_heads"},
        {"{\"model_type\":\"llama\",\"vocab_size\":37,\"hidden_size\":16,\"intermediate_size\":20,"
         "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":3}",
         "num_key_value_heads"},
        {"{\"model_type\":\"llama\"," SMALL ",\"is_causal\":false}", "is_causal"},
        {"{\"model_type\":\"llama\"," SMALL ",\"pad_token_id\":\"x\"}", "pad_token_id"},
        {"{\"model_type\":\"llama\"," SMALL
         ",\"rope_parameters\":{\"rope_type\":\"default\"},\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}",
         "is not the same in rope_scaling"},
        {"{\"model_type\":\"llama\"," SMALL
         ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4,\"rope_theta\":5000.0},"
         "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}",
         "rope_parameters: \"rope_theta\" is not the same in rope_scaling"},
        {"{\"model_type\":\"llama\"," SMALL
         ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4},"
         "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4,\"truncate\":true}}",
         "rope_scaling: \"truncate\" is not the same in rope_parameters"},
        {"{\"model_type\":\"gemma3_text\"," SMALL ",\"rope_parameters\":{\"rope_type\":\"default\"}}",
         "want full_attention and sliding_attention, found \"rope_type\""},
        {"{\"model_type\":\"gemma3_text\"," SMALL
         ",\"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"linear\",\"factor\":2}}}",
         "rope_type: want default, found \"linear\""},
        {"{\"model_type\":\"gemma3_text\"," SMALL ",\"sliding_window\":null}", "sliding_window: want a number"},
        {"{\"model_type\":\"gemma3_text\"," SMALL ",\"attn_logit_softcapping\":50.0}", "attn_logit_softcapping"},
        {"{\"model_type\":\"gemma3_text\"," SMALL ",\"use_bidirectional_attention\":true}", "use_bidirectional"},
        {"{\"model_type\":\"smollm3\"," SMALL ",\"no_rope_layers\":[1]}", "no_rope_layers: want 0 or 1"},
        {"{\"model_type\":\"smollm3\"," SMALL ",\"no_rope_layers\":[1,2]}", "want an integer from 0 to 1"},
        {"{\"model_type\":\"smollm3\"," SMALL ",\"mlp_bias\":true}", "mlp_bias"},
        {"{\"model_type\":\"olmo2\"," SMALL ",\"clip_qkv\":8}", "clip_qkv"},
        {"{\"model_type\":\"granite\"," SMALL ",\"residual_multiplier\":0}", "residual_multiplier"},
        {"{\"model_type\":\"granitemoehybrid\"," SMALL ",\"num_local_experts\":8}", "mixtures of experts"},
        {"{\"model_type\":\"granitemoehybrid\"," SMALL ",\"num_local_experts\":0,\"layer_types\":"
         "[\"mamba\",\"attention\"],\"shared_intermediate_size\":20,\"position_embedding_type\":\"rope\"}",
         "layer_types: want one of full_attention, attention, found \"mamba\""},
        {"{\"model_type\":\"granitemoehybrid\"," SMALL ",\"num_local_experts\":0,\"layer_types\":"
         "[\"attention\",\"attention\"],\"shared_intermediate_size\":20,\"position_embedding_type\":\"nope\"}",
         "position_embedding_type: want rope"},
        {"{\"model_type\":\"llama\"," SMALL ",\"rope_scaling\":{\"factor\":8}}", "want a rope_type"},
        {"{\"model_type\":\"llama\"," SMALL
         ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"truncate\":\"no\"}}",
         "truncate"},
        {"{\"model_type\":\"llama\"," SMALL
         ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"original_max_position_embeddings\":1}}",
         "want an integer of at least 2"},
        {"{\"model_type\":\"llama\",\"vocab_size\":37,\"hidden_size\":4096,\"intermediate_size\":20,"
         "\"num_hidden_layers\":2,\"num_attention_heads\":2}",
         "head_dim"},
        {"{\"model_type\":\"llama\"," SMALL ",\"\\u001b[2J\":1}", "\"?[2J\""},
        {"{\"model_type\":\"llama\",\"vocab_size\":3.5}", "vocab_size"},
        {"{\"model_type\":\"llama\",\"vocab_size\":\"37\"}", "vocab_size"}};
    for (int i = 0; i < (int)(sizeof refused / sizeof *refused); i++) {
        put("config.json", refused[i].text);
        wrpo_result r = wrpo_config_load(ctx, at("config.json"), &c);
        const char *says = wrpo_last_error(ctx)->text;
        CHECK(r != WRPO_OK && strstr(says, refused[i].says) && strstr(says, "config.json"), "refusal %d: %d \"%s\"", i,
              r, says);
    }
    const struct {
        const char *text;
        wrpo_rope_type rope;
        double theta;
        int64_t window, G, d;
        uint64_t sliding;
        bool bias, qk_norm, tie;
        wrpo_dtype dtype;
    } taken[] = {{"{\"model_type\":\"llama\"," SMALL "}", WRPO_ROPE_DEFAULT, 10000, 0, 2, 4, 0, false, false, false,
                  WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"llama\"," SMALL
                  ",\"head_dim\":8,\"rope_theta\":500000.0,\"torch_dtype\":\"bfloat16\",\"rope_scaling\":{"
                  "\"rope_type\":\"llama3\",\"factor\":32.0,"
                  "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192},"
                  "\"tie_word_embeddings\":true,\"attention_bias\":true}",
                  WRPO_ROPE_LLAMA3, 500000, 0, 2, 8, 0, true, false, true, WRPO_DTYPE_BF16},
                 {"{\"model_type\":\"llama\"," SMALL ",\"head_dim\":8,\"rope_parameters\":{\"rope_type\":\"linear\","
                                                     "\"rope_theta\":7000.0,\"factor\":2.0},\"dtype\":\"float16\"}",
                  WRPO_ROPE_LINEAR, 7000, 0, 2, 8, 0, false, false, false, WRPO_DTYPE_F16},
                 {"{\"model_type\":\"mistral\"," SMALL ",\"head_dim\":8}", WRPO_ROPE_DEFAULT, 10000, 4096, 2, 8, 3,
                  false, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"mistral\"," SMALL ",\"head_dim\":8,\"sliding_window\":null}", WRPO_ROPE_DEFAULT,
                  10000, 0, 2, 8, 0, false, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"qwen2\"," SMALL
                  ",\"head_dim\":8,\"use_sliding_window\":true,\"sliding_window\":9,\"max_window_layers\":1}",
                  WRPO_ROPE_DEFAULT, 10000, 9, 2, 8, 2, true, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"qwen2\"," SMALL ",\"head_dim\":8,\"use_sliding_window\":false,\"sliding_window\":"
                                                     "9,\"layer_types\":[\"full_attention\",\"full_attention\"]}",
                  WRPO_ROPE_DEFAULT, 10000, 0, 2, 8, 0, true, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"qwen3\"," SMALL "}", WRPO_ROPE_DEFAULT, 10000, 0, 2, 128, 0, false, true, false,
                  WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"qwen3\",\"vocab_size\":37,\"hidden_size\":16,\"intermediate_size\":20,"
                  "\"num_hidden_layers\":2,\"num_attention_heads\":64,\"head_dim\":16}",
                  WRPO_ROPE_DEFAULT, 10000, 0, 32, 16, 0, false, true, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"gemma2\"," SMALL "}", WRPO_ROPE_DEFAULT, 10000, 4096, 2, 256, 1, false, false,
                  true, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"phi3\"," SMALL ",\"head_dim\":8,\"sliding_window\":7}", WRPO_ROPE_DEFAULT, 10000,
                  7, 2, 8, 3, false, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"phi3\"," SMALL
                  ",\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1],\"long_factor\":[1,2]}}",
                  WRPO_ROPE_LONGROPE, 10000, 0, 2, 4, 0, false, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"phi3\"," SMALL
                  ",\"rope_scaling\":{\"type\":\"yarn\",\"short_factor\":[1,1],\"long_factor\":[1,2]}}",
                  WRPO_ROPE_LONGROPE, 10000, 0, 2, 4, 0, false, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"internlm2\"," SMALL
                  ",\"rope_theta\":1000000,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}}",
                  WRPO_ROPE_DYNAMIC, 1000000, 0, 2, 4, 0, true, false, false, WRPO_DTYPE_DEFAULT},
                 {"{\"model_type\":\"internlm2\"," SMALL ",\"bias\":false}", WRPO_ROPE_DEFAULT, 10000, 0, 2, 4, 0,
                  false, false, false, WRPO_DTYPE_DEFAULT}};
    for (int i = 0; i < (int)(sizeof taken / sizeof *taken); i++) {
        put("config.json", taken[i].text);
        wrpo_result r = wrpo_config_load(ctx, dir, &c);
        CHECK(r == WRPO_OK, "config %d: %s", i, wrpo_last_error(ctx)->text);
        if (r) continue;
        CHECK(c.rope.type == taken[i].rope && c.rope.theta == taken[i].theta, "config %d: rope %d %g", i, c.rope.type,
              c.rope.theta);
        CHECK(c.sliding_window == taken[i].window && c.sliding_layers[0] == taken[i].sliding,
              "config %d: window %lld %llx", i, (long long)c.sliding_window, (unsigned long long)c.sliding_layers[0]);
        CHECK(c.num_key_value_heads == taken[i].G && c.head_dim == taken[i].d, "config %d: heads %lld of %lld", i,
              (long long)c.num_key_value_heads, (long long)c.head_dim);
        CHECK(c.attention_bias == taken[i].bias && c.qk_norm == taken[i].qk_norm &&
                  c.tie_word_embeddings == taken[i].tie && c.dtype == taken[i].dtype,
              "config %d: switches", i);
    }
    put("config.json",
        "{\"model_type\":\"gemma2\"," SMALL
        ",\"hidden_act\":\"gelu\",\"hidden_activation\":\"gelu_pytorch_tanh\",\"attn_logit_softcapping\":null}");
    CHECK(wrpo_config_load(ctx, dir, &c) == WRPO_OK && c.gelu && c.norm_plus_one && c.post_norms &&
              c.scale_embeddings && c.query_pre_attn_scalar == 256 && c.attn_logit_softcapping == 0 &&
              c.final_logit_softcapping == 30,
          "gemma2's switches: %s", wrpo_last_error(ctx)->text);
    put("config.json",
        "{\"model_type\":\"phi3\"," SMALL ",\"head_dim\":8,\"partial_rotary_factor\":0.75,\"max_position_embeddings\":"
                                          "65536,\"rope_scaling\":{\"type\":\"longrope\","
        "\"short_factor\":[1,2,3],\"long_factor\":[4,5,6]}}");
    CHECK(wrpo_config_load(ctx, dir, &c) == WRPO_OK && c.rope.dims == 6 &&
              c.rope.original_max_position_embeddings == 4096 && c.rope.long_factor[2] == 6 &&
              fabs(c.rope.attention_factor - sqrt(1 + log(16) / log(4096))) < 1e-15,
          "phi3's rope: %s", wrpo_last_error(ctx)->text);
}

/* Families as they are published: parameters as transformers counts them, and what a run of one would take. */
static void published(void) {
    static const char *const gemma = "{\"model_type\": \"gemma3_text\", \"architectures\": [\"Gemma3ForCausalLM\"],"
        "\"_sliding_window_pattern\": 6, \"attention_bias\": false, \"attn_logit_softcapping\": null,"
        "\"final_logit_softcapping\": null, \"head_dim\": 256, \"hidden_activation\": \"gelu_pytorch_tanh\","
        "\"hidden_size\": 640, \"intermediate_size\": 2048, \"max_position_embeddings\": 32768,"
        "\"num_attention_heads\": 4, \"num_hidden_layers\": 18, \"num_key_value_heads\": 1,"
        "\"query_pre_attn_scalar\": 256, \"rms_norm_eps\": 1e-06, \"rope_local_base_freq\": 10000.0,"
        "\"rope_scaling\": null, \"rope_theta\": 1000000.0, \"sliding_window\": 512,"
        "\"use_bidirectional_attention\": false, \"vocab_size\": 262144}";
    static const char *const smollm = "{\"model_type\": \"smollm3\", \"architectures\": [\"SmolLM3ForCausalLM\"],"
        "\"attention_bias\": false, \"attention_dropout\": 0.0, \"hidden_act\": \"silu\", \"hidden_size\": 2048,"
        "\"intermediate_size\": 11008, \"max_position_embeddings\": 65536, \"max_window_layers\": 28,"
        "\"mlp_bias\": false, \"no_rope_layer_interval\": 4, \"num_attention_heads\": 16,"
        "\"num_hidden_layers\": 36, \"num_key_value_heads\": 4, \"pretraining_tp\": 2, \"rms_norm_eps\": 1e-06,"
        "\"rope_scaling\": null, \"rope_theta\": 5000000.0, \"sliding_window\": null,"
        "\"use_sliding_window\": false, \"vocab_size\": 128256}";
    static const char *const olmo = "{\"model_type\": \"olmo2\", \"architectures\": [\"Olmo2ForCausalLM\"],"
        "\"attention_bias\": false, \"hidden_act\": \"silu\", \"hidden_size\": 2048, \"intermediate_size\": 8192,"
        "\"max_position_embeddings\": 4096, \"num_attention_heads\": 16, \"num_hidden_layers\": 16,"
        "\"num_key_value_heads\": 16, \"rms_norm_eps\": 1e-06, \"rope_scaling\": null, \"rope_theta\": 500000,"
        "\"tie_word_embeddings\": false, \"vocab_size\": 100352}";
    static const char *const granite = "{\"model_type\": \"granite\", \"architectures\": [\"GraniteForCausalLM\"],"
        "\"attention_bias\": false, \"attention_multiplier\": 0.015625, \"embedding_multiplier\": 12.0,"
        "\"hidden_act\": \"silu\", \"hidden_size\": 2048, \"intermediate_size\": 8192, \"logits_scaling\": 8.0,"
        "\"max_position_embeddings\": 131072, \"mlp_bias\": false, \"num_attention_heads\": 32,"
        "\"num_hidden_layers\": 40, \"num_key_value_heads\": 8, \"residual_multiplier\": 0.22,"
        "\"rms_norm_eps\": 1e-05, \"rope_scaling\": null, \"rope_theta\": 10000000.0,"
        "\"tie_word_embeddings\": true, \"vocab_size\": 49159}";
    static const char *const mistral = "{\"model_type\": \"mistral\", \"architectures\": [\"MistralForCausalLM\"],"
        "\"attention_dropout\": 0.0, \"head_dim\": 128, \"hidden_act\": \"silu\", \"hidden_size\": 5120,"
        "\"intermediate_size\": 32768, \"max_position_embeddings\": 32768, \"num_attention_heads\": 32,"
        "\"num_hidden_layers\": 40, \"num_key_value_heads\": 8, \"rms_norm_eps\": 1e-05,"
        "\"rope_theta\": 100000000.0, \"sliding_window\": null, \"tie_word_embeddings\": false,"
        "\"vocab_size\": 131072}";
    const struct { const char *config; int64_t parameters, sliding, unrotated; bool tie; } models[] = {
        {gemma, 268098176, 15, 0, true},     /* every sixth of 18 layers sees all */
        {smollm, 3075098624, 0, 9, true},
        {olmo, 1484916736, 0, 0, false},
        {granite, 2533539840, 0, 0, true},
        {mistral, 23572403200, 0, 0, false}};
    for (int i = 0; i < (int)(sizeof models / sizeof *models); i++) {
        wrpo_config c = {0};
        wrpo_bytes run = {0};
        int64_t parameters, sliding = 0, unrotated = 0;
        put("config.json", models[i].config);
        CHECK(wrpo_config_load(ctx, dir, &c) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        wrpo__layout_weights(&c, NULL, NULL, NULL, &parameters);
        for (int64_t l = 0; l < c.num_hidden_layers; l++) {
            sliding += wrpo__layer_window(&c, l) > 0;
            unrotated += wrpo__layer_bit(c.no_rope_layers, l);
        }
        CHECK(parameters == models[i].parameters && c.tie_word_embeddings == models[i].tie &&
                  sliding == models[i].sliding && unrotated == models[i].unrotated,
              "%s: %lld parameters, %lld layers with a window, %lld without rope", c.model_type, (long long)parameters,
              (long long)sliding, (long long)unrotated);
        CHECK(wrpo_train_bytes(ctx, &c, NULL, NULL, NULL, &run) == WRPO_OK && run.total > (size_t)parameters * 8 &&
                  run.parameters == parameters,
              "%s: %s", c.model_type, wrpo_last_error(ctx)->text);
        printf("%-12s %lld parameters, a run takes %.1f GiB\n", c.model_type, (long long)parameters,
               (double)run.total / 0x1p30);
    }
}

static const char *const good = "{\n  \"model_type\": \"qwen2\", \"architectures\": [\"Qwen2ForCausalLM\"], " SMALL
                                ",\n  \"head_dim\": 4, \"torch_dtype\": \"float32\"\n}\n";
static bool equal(const wrpo_model *a, const wrpo_model *b) {
    const wrpo_weight *x, *y;
    int64_t n = wrpo_model_weights(a, &x);
    if (wrpo_model_weights(b, &y) != n) return false;
    for (int64_t i = 0; i < n; i++)
        if (memcmp(x[i].data, y[i].data, (size_t)(x[i].rows * x[i].cols) * 4)) return false;
    return true;
}
/* Loads dir/name: NULL where it must fail with all the words of says. */
static wrpo_model *load(const char *name, const char *says) {
    wrpo_model *m;
    char where[256];
    snprintf(where, sizeof where, "%s", at(name));
    wrpo_result r = wrpo_model_load(ctx, &(wrpo_model_desc){.dir = where}, &m);
    if (!says) CHECK(r == WRPO_OK, "%s: %s", name, wrpo_last_error(ctx)->text);
    else
        CHECK(r != WRPO_OK && !m && strstr(wrpo_last_error(ctx)->text, says), "want \"%s\", found %d \"%s\"", says, r,
              wrpo_last_error(ctx)->text);
    return m;
}

static void round_trips(void) {
    wrpo_model *model, *again;
    size_t n, k;
    put("config.json", good), put("tokenizer.json", "{\"any\": 1}"), put("generation_config.json", "{}"),
        put("notes.jsonl", "x"), put("LICENSE", "free");
    char config[96];
    snprintf(config, sizeof config, "%s/config.json", dir);
    CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = config, .tokenizer_dir = dir, .seed = 5}, &model) == WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    const wrpo_weight *w;
    wrpo_model_weights(model, &w);
    const float *embed = w[0].data;
    double sum = 0, square = 0;
    for (int64_t i = 0; i < w[0].rows * w[0].cols; i++)
        sum += (double)embed[i], square += (double)embed[i] * (double)embed[i];
    n = (size_t)(w[0].rows * w[0].cols);
    CHECK(fabs(sqrt(square / (double)n) - 0.02) < 0.002 && fabs(sum / (double)n) < 0.003,
          "embedding: deviation %g, mean %g", sqrt(square / (double)n), sum / (double)n);
    CHECK(((float *)WRPO__W(model, norm, 0)->data)[3] == 1 && ((float *)WRPO__W(model, q_bias, 1)->data)[2] == 0,
          "norms 1, biases 0");
    static const int64_t shards[] = {0, 3000, 1};
    for (int i = 0; i < 3; i++) {
        char out[96];
        snprintf(out, sizeof out, "%s/f32_%d", dir, i);
        CHECK(wrpo_model_save(model, &(wrpo_save_desc){.dir = out, .max_shard_size = shards[i]}) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        again = load(strrchr(out, '/') + 1, NULL);
        CHECK(again && equal(model, again), "f32, shards of %lld: bits changed", (long long)shards[i]);
        wrpo_model_free(again);
        char *a = slurp(at("config.json"), &n), name[64];
        snprintf(name, sizeof name, "f32_%d/config.json", i);
        char *b = slurp(at(name), &k);
        CHECK(a && b && n == k && !memcmp(a, b, n), "config.json changed");
        free(a), free(b);
        snprintf(name, sizeof name, "f32_%d/LICENSE", i);
        CHECK((b = slurp(at(name), &k)) && k == 4, "side files are copied");
        free(b);
        snprintf(name, sizeof name, "f32_%d/notes.jsonl", i);
        CHECK(!slurp(at(name), &k), "foreign files are not");
    }
    /* a key of the root only, whatever stands in front of it */
    char out[96];
    shell("mkdir %s/nested; echo '{\"hidden_act\":\"silu\", \"torch_dtype\":\"float16\", "
          "\"transformers.js_config\":{\"dtype\":\"q4\"},' > %s/nested/config.json",
          dir, dir);
    shell("tail -c +2 %s/config.json >> %s/nested/config.json", dir, dir);
    shell("sed -i 's/, *\"torch_dtype\": *\"float32\"//; s/\"hidden_act\": *\"silu\", *\"vocab/\"vocab/' "
          "%s/nested/config.json%s",
          dir, "");
    snprintf(out, sizeof out, "%s/nested", dir);
    wrpo_model *nested;
    CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = out, .seed = 5}, &nested) == WRPO_OK, "%s",
          wrpo_last_error(ctx)->text);
    CHECK(nested && wrpo_model_save(nested, &(wrpo_save_desc){.dir = out, .dtype = WRPO_DTYPE_BF16}) == WRPO_OK, "%s",
          wrpo_last_error(ctx)->text);
    char *b = slurp(at("nested/config.json"), &k);
    CHECK(b && strstr(b, "\"torch_dtype\":\"bfloat16\"") && strstr(b, "{\"dtype\":\"q4\"}"), "%s", b ? b : "");
    free(b);
    /* a save that fails leaves the old checkpoint; one number that F16 cannot hold is such a failure */
    if (nested) {
        wrpo_model *old = load("nested", NULL);
        shell("mv %s/nested/config.json %s/kept.json", dir, dir);
        CHECK(wrpo_model_save(nested, &(wrpo_save_desc){.dir = out}) == WRPO_E_IO &&
                  strstr(wrpo_last_error(ctx)->text, "nested/config.json"),
              "%s", wrpo_last_error(ctx)->text);
        shell("mv %s/kept.json %s/nested/config.json", dir, dir);
        ((float *)WRPO__W(nested, up_proj, 1)->data)[7] = 1e5f;
        CHECK(wrpo_model_save(nested, &(wrpo_save_desc){.dir = out, .dtype = WRPO_DTYPE_F16}) == WRPO_E_NOT_FINITE &&
                  strstr(wrpo_last_error(ctx)->text, "element 7, 100000"),
              "%s", wrpo_last_error(ctx)->text);
        again = load("nested", NULL);
        CHECK(old && again && equal(old, again), "a failed save changed the checkpoint");
        wrpo_model_free(old), wrpo_model_free(again);
    }
    wrpo_model_free(nested);
    /* bf16: what was rounded once stays; config says so */
    snprintf(out, sizeof out, "%s/bf16", dir);
    CHECK(wrpo_model_save(model, &(wrpo_save_desc){.dir = out, .dtype = WRPO_DTYPE_BF16}) == WRPO_OK, "%s",
          wrpo_last_error(ctx)->text);
    wrpo_model *half = load("bf16", NULL);
    CHECK(half && !equal(model, half), "bf16 rounds");
    b = slurp(at("bf16/config.json"), &k);
    CHECK(b && strstr(b, "\"torch_dtype\": \"bfloat16\""), "%s", b ? b : "");
    free(b);
    if (half) {
        CHECK(wrpo_model_save(half, &(wrpo_save_desc){.dir = out, .max_shard_size = 2000}) == WRPO_OK,
              "over itself: %s", wrpo_last_error(ctx)->text);
        again = load("bf16", NULL);
        CHECK(again && equal(half, again), "bf16 twice: bits changed");
        CHECK(!slurp(at("bf16/model.safetensors"), &k), "the single file of the earlier save is gone");
        wrpo_model_free(again);
    }
    wrpo_model_free(half);
    {   /* one seed, one model; another seed, another */
        wrpo_model *same, *other;
        CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = config, .seed = 5}, &same) && equal(model, same),
              "seed 5 twice");
        CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = config, .seed = 6}, &other) && !equal(model, other),
              "seeds 5 and 6");
        wrpo_model_free(same), wrpo_model_free(other);
    }
    {   /* the check answers as the load would */
        wrpo_config c;
        int64_t parameters;
        wrpo_dtype dtype;
        CHECK(wrpo_model_check(ctx, out, &c, &parameters, &dtype) == WRPO_OK &&
                  parameters == wrpo_model_parameters(model) && dtype == WRPO_DTYPE_BF16,
              "check: %s", wrpo_last_error(ctx)->text);
    }
    /* broken directories */
    shell("cp -r %s/f32_0 %s/broken", dir, dir);
    put("broken/config.json", "{\"model_type\":\"llama\"," SMALL ",\"head_dim\":4}");
    load("broken", "k_proj.bias: no such tensor");
    put("broken/config.json", "{\"model_type\":\"qwen2\"," SMALL ",\"head_dim\":6}");
    load("broken", "want [24,16], found [16,16]");
    put("broken/config.json", "{\"model_type\":\"qwen3\"," SMALL ",\"head_dim\":4}");
    load("broken", "q_norm.weight is missing");
    put("broken/config.json", "{\"model_type\":\"qwen2\",\"tie_word_embeddings\":true," SMALL ",\"head_dim\":4}");
    wrpo_model_free(load("broken", NULL));             /* tied: a stored lm_head is ignored, as transformers does */
    put("broken/config.json", good);
    CHECK(truncate(at("broken/model.safetensors"), 5000) == 0, "truncate");
    load("broken", "model.safetensors");
    remove(at("broken/model.safetensors"));
    load("broken", "broken");
    load("nowhere", "nowhere");
    ((float *)WRPO__W(model, up_proj, 1)->data)[7] = NAN;
    snprintf(out, sizeof out, "%s/nan", dir);
    CHECK(wrpo_model_save(model, &(wrpo_save_desc){.dir = out}) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    load("nan", "model.layers.1.mlp.up_proj.weight: element 7");
    ((float *)WRPO__W(model, up_proj, 1)->data)[7] = 0;
    shell("cp -r %s/f32_1 %s/escape", dir, dir);
    shell("sed -i 's|model-00002|../model-00002|' %s/escape/model.safetensors.index.json %s", dir, "");
    load("escape", "..");
    /* a full disk: an error, and nothing under a real name */
    snprintf(out, sizeof out, "%s/full", dir);
    struct rlimit keep, tight;
    getrlimit(RLIMIT_FSIZE, &keep);
    tight = keep, tight.rlim_cur = 4000;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &tight);
    wrpo_result r = wrpo_model_save(model, &(wrpo_save_desc){.dir = out});
    setrlimit(RLIMIT_FSIZE, &keep);
    CHECK(r == WRPO_E_IO && strstr(wrpo_last_error(ctx)->text, "full/model"), "%d %s", r, wrpo_last_error(ctx)->text);
    shell("test -z \"$(ls %s)\" %s", out, "");
    CHECK(wrpo_model_save(model, &(wrpo_save_desc){.dir = "/proc/none"}) == WRPO_E_IO, "%s",
          wrpo_last_error(ctx)->text);
    const wrpo_config c = *wrpo_model_config(model);
    wrpo_model_free(model);
    CHECK(wrpo_model_new(ctx, &c, 1, &model) == WRPO_OK &&
              wrpo_model_save(model, &(wrpo_save_desc){.dir = out}) == WRPO_E_ARG &&
              strstr(wrpo_last_error(ctx)->text, "wrpo_model_new"),
          "no config.json to save: %s", wrpo_last_error(ctx)->text);
    wrpo_model_free(model);
}

/* Fused and renamed tensors: the files have the family's names and layout, and what was saved is what is loaded, mapped
   or copied. */
static void layouts(void) {
    const struct { const char *name, *config, *tensor; int64_t rows, tensors;
    } families[] = {
        {"phi3", "{\"model_type\":\"phi3\"," SMALL "}", "model.layers.1.self_attn.qkv_proj.weight", 32, 3 + 2 * 6},
        {"phi3", "{\"model_type\":\"phi3\"," SMALL "}", "model.layers.0.mlp.gate_up_proj.weight", 40, 3 + 2 * 6},
        {"internlm2", "{\"model_type\":\"internlm2\"," SMALL ",\"bias\":true}", "model.layers.0.attention.wqkv.bias",
         32, 3 + 2 * 9},
        {"internlm2", "{\"model_type\":\"internlm2\",\"bias\":false,\"tie_word_embeddings\":true," SMALL "}",
         "model.tok_embeddings.weight", 37, 2 + 2 * 7},
        {"gemma2", "{\"model_type\":\"gemma2\",\"head_dim\":6," SMALL "}",
         "model.layers.1.post_feedforward_layernorm.weight", 16, 2 + 2 * 11}};
    for (int i = 0; i < (int)(sizeof families / sizeof *families); i++) {
        char config[128], out[96];
        wrpo_model *model, *again;
        wrpo_tensors *t;
        put("fused.json", families[i].config);
        snprintf(config, sizeof config, "%s", at("fused.json"));
        CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = config, .seed = 9}, &model) == WRPO_OK, "%s",
              wrpo_last_error(ctx)->text);
        if (!model) continue;
        snprintf(out, sizeof out, "%s/layout_%d", dir, i);
        CHECK(wrpo_model_save(model, &(wrpo_save_desc){.dir = out, .max_shard_size = i % 2 ? 4000 : 0}) == WRPO_OK,
              "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_tensors_open(ctx, out, &t) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        const wrpo_tensor_info *info = t ? wrpo_tensors_find(t, families[i].tensor) : NULL;
        CHECK(info && info->shape[0] == families[i].rows, "%s: %s", families[i].name, families[i].tensor);
        CHECK(t && wrpo_tensors_count(t) == families[i].tensors, "%s: %lld tensors", families[i].name,
              t ? (long long)wrpo_tensors_count(t) : 0);
        wrpo_tensors_close(t);
        for (int frozen = 0; frozen < 2; frozen++) {
            CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = out, .frozen = frozen}, &again) == WRPO_OK &&
                      equal(model, again),
                  "%s: frozen %d: %s", families[i].name, frozen, wrpo_last_error(ctx)->text);
            wrpo_model_free(again);
        }
        if (i == 0) {
            const float *w = wrpo__weight(model, WRPO__W_k_proj, 1)->data;
            CHECK(wrpo_tensors_open(ctx, out, &t) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
            info = wrpo_tensors_find(t, families[0].tensor);
            CHECK(!memcmp((const char *)info->data + 16 * 16 * 4, w, 8 * 16 * 4),
                  "k_proj is rows 16 to 24 of qkv_proj");
            wrpo_tensors_close(t);
        }
        wrpo_model_free(model);
    }
    put("layout_0/config.json", "{\"model_type\":\"llama\"," SMALL "}");
    load("layout_0", "q_proj.weight is missing");
    put("layout_0/config.json", "{\"model_type\":\"phi3\",\"head_dim\":8," SMALL "}");
    load("layout_0", "qkv_proj.weight: want [64,16], found [32,16]");
    put("layout_2/config.json", "{\"model_type\":\"internlm2\",\"bias\":false," SMALL "}");
    load("layout_2", "bias: no such tensor");
}

/* every allocation fails once: an error, and nothing held */
static void allocations(void) {
    wrpo_ctx *own;
    char in[96], out[96];
    snprintf(in, sizeof in, "%s/f32_1", dir), snprintf(out, sizeof out, "%s/oom", dir);
    fail_at = -1;
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &own) == WRPO_OK,
          "open");
    const int64_t base = live;
    for (fail_at = 0; fail_at < 5000; fail_at++) {
        wrpo_model *m;
        calls = 0;
        wrpo_result r = wrpo_model_load(own, &(wrpo_model_desc){.dir = in}, &m);
        if (r == WRPO_OK) {
            r = wrpo_model_save(m, &(wrpo_save_desc){.dir = out, .max_shard_size = 4000, .eos = &(int32_t){5},
                                                     .eos_count = 1});
            wrpo_model_free(m);
        }
        if (live != base || (r != WRPO_OK && r != WRPO_E_MEMORY))
            CHECK(false, "allocation %lld: %d, %lld held", (long long)fail_at, r, (long long)(live - base));
        if (r == WRPO_OK) break;
    }
    CHECK(fail_at > 50 && fail_at < 5000, "%lld allocations", (long long)fail_at);
    printf("load and save survive the failure of each of their %lld allocations\n", (long long)fail_at);
    wrpo_close(own);
}

/* ---- files as people have them ---- */
static char said[2000];
static void listen(wrpo_level level, const char *text, void *user) {
    (void)level, (void)user;
    snprintf(said + strlen(said), sizeof said - strlen(said), "%s\n", text);
}
/* dir/to = dir/from with other names: `with` in place of `without` at the front, and without the tensor `drop`. With
   "language_model." there is one of a vision tower, too. */
static void rename_tensors(const char *from, const char *to, const char *without, const char *with, const char *drop) {
    wrpo_tensors *t = NULL;
    char header[20000] = "{", *end = header + 1;
    FILE *f = fopen(at(to), "wb");
    CHECK(f && !wrpo_tensors_open(ctx, at(from), &t), "%s", wrpo_last_error(ctx)->text);
    if (!f || !t) return;
    size_t place = 0;
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        const wrpo_tensor_info *info = wrpo_tensors_at(t, i);
        const bool other = !strncmp(info->name, without, strlen(without));
        if (!strcmp(info->name, drop)) continue;
        end += sprintf(end, "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%lld", place ? "," : "", other ? with : "",
                       info->name + (other ? strlen(without) : 0), info->dtype, (long long)info->shape[0]);
        if (info->ndim == 2) end += sprintf(end, ",%lld", (long long)info->shape[1]);
        end += sprintf(end, "],\"data_offsets\":[%zu,%zu]}", place, place + info->bytes);
        place += info->bytes;
    }
    const bool vision = strstr(with, "language_model.");
    if (vision)
        end += sprintf(end, ",\"%svision_tower.x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                       strncmp(with, "model.", 6) ? "" : "model.", place, place + 4);
    *end++ = '}';
    const uint64_t n = (uint64_t)(end - header);
    fwrite(&n, 8, 1, f), fwrite(header, 1, n, f);
    for (int64_t i = 0; i < wrpo_tensors_count(t); i++) {
        const wrpo_tensor_info *info = wrpo_tensors_at(t, i);
        if (strcmp(info->name, drop)) fwrite(info->data, 1, info->bytes, f);
    }
    if (vision) fwrite("1234", 1, 4, f);
    fclose(f);
    wrpo_tensors_close(t);
}
/* Loads dir/name, which must be what `want` is and say what is in `says`; saves it to dir/again, which loads without a
   word, likewise. config: a text that the saved config.json has. */
static void tolerated(const char *name, const wrpo_model *want, const char *says, const char *config) {
    wrpo_model *m, *again;
    size_t n;
    int64_t parameters;
    wrpo_config c;
    wrpo_dtype dtype;
    said[0] = 0;
    m = load(name, NULL);
    CHECK(m && equal(m, want), "%s: other weights", name);
    CHECK(*says ? strstr(said, says) != NULL : !*said, "%s: said \"%s\", want \"%s\"", name, said, says);
    CHECK(!wrpo_model_check(ctx, at(name), &c, &parameters, &dtype) && parameters == wrpo_model_parameters(want),
          "%s: %s", name, wrpo_last_error(ctx)->text);
    if (!m) return;
    shell("rm -rf %s/again%s", dir, "");
    CHECK(wrpo_model_save(m, &(wrpo_save_desc){.dir = at("again")}) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(m);
    char *text = slurp(at("again/config.json"), &n);
    CHECK(text && strstr(text, config), "%s: saved %s, want %s in it", name, text, config);
    free(text);
    said[0] = 0;
    again = load("again", NULL);
    CHECK(again && equal(again, want) && !*said, "%s: saved and loaded: said \"%s\"", name, said);
    wrpo_model_free(again);
}
#define CONFIG(type, more) "{\"model_type\": \"" type "\", " SMALL ", \"head_dim\": 4" more "}"
static void as_people_have_them(void) {
    wrpo_ctx *const quiet = ctx;
    wrpo_model *model, *tied;
    if (wrpo_open(&(wrpo_desc){.log = {.fn = listen}}, &ctx) != WRPO_OK) return;
    for (int i = 0; i < 2; i++) shell("mkdir -p %s/%s", dir, i ? "b" : "a");
    put("config.json", CONFIG("llama", ", \"tie_word_embeddings\": false, \"torch_dtype\": \"float32\""));
    CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = dir, .seed = 5}, &model) &&
              !wrpo_model_save(model, &(wrpo_save_desc){.dir = at("a")}), "%s", wrpo_last_error(ctx)->text);
    /* both there and different: not tied */
    put("a/config.json", CONFIG("llama", ", \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\""));
    tolerated("a", model, "tie_word_embeddings is true, but model.embed_tokens.weight and lm_head.weight differ",
              "\"tie_word_embeddings\": false, \"torch_dtype\"");
    /* both there and equal: tied */
    put("config.json", CONFIG("llama", ", \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\""));
    CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = dir, .seed = 5}, &tied), "%s", wrpo_last_error(ctx)->text);
    const int64_t V = 37, D = 16;
    float embed[37 * 16];
    const int64_t head = model->n_weights - 1;
    float output[37 * 16];
    CHECK(!wrpo_weight_get(model, 0, 0, V * D, embed) && !wrpo_weight_get(model, head, 0, V * D, output) &&
              !wrpo_weight_put(model, head, 0, V * D, embed) &&
              !wrpo_model_save(model, &(wrpo_save_desc){.dir = at("a")}),
          "%s", wrpo_last_error(ctx)->text);
    put("a/config.json", CONFIG("llama", ", \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\""));
    tolerated("a", tied, "", "\"tie_word_embeddings\": true");
    /* the output alone: it is the embedding */
    rename_tensors("a/model.safetensors", "b/model.safetensors", "", "", "model.embed_tokens.weight");
    put("b/config.json", CONFIG("llama", ", \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\""));
    tolerated("b", tied, "", "\"tie_word_embeddings\": true");
    /* a base model's names, of a tied and of another model */
    put("b/config.json", CONFIG("llama", ", \"architectures\": [\"LlamaModel\"], \"tie_word_embeddings\": true"));
    rename_tensors("a/model.safetensors", "b/model.safetensors", "model.", "", "lm_head.weight");
    tolerated("b", tied, "a base model's file, whose names lack \"model.\"", "[\"LlamaForCausalLM\"]");
    put("b/config.json", CONFIG("llama", ", \"architectures\": [\"LlamaModel\"]"));
    load("b", "lm_head.weight is missing: want a causal language model's checkpoint, found a base model's");
    wrpo_model_free(tied);
    /* a default that the config does not state */
    wrpo_model_free(model);
    put("config.json", CONFIG("smollm3", ", \"tie_word_embeddings\": false, \"torch_dtype\": \"float32\""));
    CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = dir, .seed = 5}, &model) &&
              !wrpo_model_save(model, &(wrpo_save_desc){.dir = at("a")}), "%s", wrpo_last_error(ctx)->text);
    put("a/config.json", CONFIG("smollm3", ", \"torch_dtype\": \"float32\""));
    tolerated("a", model, "are not tied, and a save has both", "{\n  \"tie_word_embeddings\": false,\"model_type\"");
    put("a/config.json", CONFIG("smollm3", ", \"tie_word_embeddings\": null, \"torch_dtype\": \"float32\""));
    tolerated("a", model, "are not tied, and a save has both", "\"tie_word_embeddings\": false, \"torch_dtype\"");
    wrpo_model_free(model);
    /* the text model of one of several modalities, as published and as transformers saves it since 4.52 */
    for (int k = 0; k < 4; k++) {
        static const char *const outer[] = {
            "{\"model_type\": \"gemma3\", \"architectures\": [\"Gemma3ForConditionalGeneration\"],\n"
            "\"torch_dtype\": \"float32\", \"vision_config\": {\"tie_word_embeddings\": false}, \"text_config\":%s}",
            "{\"text_config\": %s\n, \"model_type\": \"mistral3\", \"dtype\": \"float32\"}"};
        char file[2000];
        const char *inner = k % 2 ? CONFIG("mistral", "") : CONFIG("gemma3_text", ", \"query_pre_attn_scalar\": 8");
        put("config.json", inner);
        CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = dir, .seed = 5}, &model) &&
                  !wrpo_model_save(model, &(wrpo_save_desc){.dir = at("a")}), "%s", wrpo_last_error(ctx)->text);
        snprintf(file, sizeof file, outer[k % 2], inner);
        put("b/config.json", file);
        rename_tensors("a/model.safetensors", "b/model.safetensors", k < 2 ? "" : "model.",
                       k < 2 ? "language_model." : "model.language_model.", "");
        tolerated("b", model, "a model of several modalities: its text model is read and saved, alone",
                  k % 2 ? "{\n  \"dtype\": \"float32\",\n  \"architectures\": [\"MistralForCausalLM\"],\"model_type\": "
                          "\"mistral\""
                        : "{\n  \"dtype\": \"float32\",\n  \"architectures\": [\"Gemma3ForCausalLM\"],\"model_type\": "
                          "\"gemma3_text\"");
        wrpo_model_free(model);
    }

    /* what ends an answer, for those who serve the model: a file that has it, one that has not, and no file */
    put("config.json", CONFIG("llama", ""));
    for (int k = 0; k < 4; k++) {
        static const char *const files[] = {"{\n  \"a\": [1, {\"eos_token_id\": 3}],\n  \"eos_token_id\": [2,\n 4], "
                                            "\"b\": \"}\\\"\"\n}\n", "{\"eos_token_id\": 2}", "{}", NULL};
        static const char *const saved[] = {"{\n  \"a\": [1, {\"eos_token_id\": 3}],\n  \"eos_token_id\": [5, 36], "
                                            "\"b\": \"}\\\"\"\n}\n", "{\"eos_token_id\": [5, 36]}",
                                            "{\n  \"eos_token_id\": [5, 36]}", "{\n  \"eos_token_id\": [5, 36]}\n"};
        const int32_t eos[] = {5, 36, 37};
        size_t n;
        put("config.json", CONFIG("llama", ""));
        CHECK(!wrpo_model_init(ctx, &(wrpo_init_desc){.config = dir, .seed = 5}, &model) &&
                  !wrpo_model_save(model, &(wrpo_save_desc){.dir = at("a")}), "%s", wrpo_last_error(ctx)->text);
        wrpo_model_free(model);
        shell("rm -f %s/a/generation_config.json%s", dir, "");
        if (files[k]) put("a/generation_config.json", files[k]);
        model = load("a", NULL);
        CHECK(model && !wrpo_model_save(model, &(wrpo_save_desc){.dir = at("b"), .eos = eos, .eos_count = 2}), "%s",
              wrpo_last_error(ctx)->text);
        char *text = slurp(at("b/generation_config.json"), &n);
        CHECK(text && !strcmp(text, saved[k]), "saved %s, want %s", text ? text : "nothing", saved[k]);
        free(text);
        CHECK(wrpo_model_save(model, &(wrpo_save_desc){.dir = at("b"), .eos = eos, .eos_count = 3}) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, "wrpo_save_desc.eos"), "%s", wrpo_last_error(ctx)->text);
        wrpo_model_free(model);
    }

    /* said, not refused */
    wrpo_config c;
    const struct { const char *config, *says;
    } heard[] = {
        {CONFIG("llama", ", \"attention_dropout\": 0.1"), "attention_dropout 0.1: the model is trained without it"},
        {CONFIG("llama", ", \"attention_dropout\": 0.0"), ""},
        {CONFIG("phi3", ", \"resid_pdrop\": 0.25"), "resid_pdrop 0.25"},
        {CONFIG("llama", ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2, \"attn_factor\": 2.0}"),
         "attn_factor"},
        {CONFIG("llama", ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2, \"attn_factor\": 1.0}"), ""},
        {CONFIG("llama", ", \"rope_theta\": 5000.0, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}, "
                         "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2, \"rope_theta\": 5000}"),
         ""},
        {CONFIG("llama", ", \"rope_scaling\": {}, "
                         "\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 2, \"rope_theta\": 5000}"),
         ""},
        {CONFIG("gemma3_text",
                ", \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 2.0}, \"rope_parameters\": "
                "{\"full_attention\": {\"rope_type\": \"linear\", \"factor\": 2.0}, \"sliding_attention\": null}"),
         ""}};
    for (int i = 0; i < (int)(sizeof heard / sizeof *heard); i++) {
        put("config.json", heard[i].config);
        said[0] = 0;
        CHECK(wrpo_config_load(ctx, dir, &c) == WRPO_OK, "%s: %s", heard[i].config, wrpo_last_error(ctx)->text);
        CHECK(*heard[i].says ? strstr(said, heard[i].says) != NULL : !*said, "%s: said \"%s\"", heard[i].config, said);
    }
    CHECK(c.rope.type == WRPO_ROPE_LINEAR && c.rope.theta == 1e6 && c.sliding_rope_theta == 1e4, "gemma3's bases");

    /* something else than a checkpoint */
    put("config.json", "{\"model_type\": \"llava\", \"text_config\": {\"model_type\": \"llama\"}}");
    CHECK(wrpo_config_load(ctx, dir, &c) && strstr(wrpo_last_error(ctx)->text, "a model of several modalities"), "%s",
          wrpo_last_error(ctx)->text);
    const struct { const char *file, *content, *says; } foreign[] = {
        {"x-Q4_K_M.gguf", "GGUF\3", "but x-Q4_K_M.gguf, a GGUF file"},
        {"pytorch_model.bin", "PK\3\4", "but pytorch_model.bin, a pickle of PyTorch: want safetensors"},
        {"pytorch_model.bin.index.json", "{}", "but pytorch_model.bin.index.json, a pickle of PyTorch"},
        {"adapter_config.json", "{}", "but adapter_config.json, an adapter: want the directory of its model here"},
        {"consolidated.safetensors", "", "names of their own"}, {"snapshots", "", "a cache of the hub"},
        {"README.md", "", "found no config.json in it"}};
    for (int i = 0; i < (int)(sizeof foreign / sizeof *foreign); i++) {
        shell("rm -rf %s/b%s", dir, ""), shell("mkdir %s/b%s", dir, "");
        char name[100];
        snprintf(name, sizeof name, "b/%s", foreign[i].file);
        put(name, foreign[i].content);
        load("b", foreign[i].says);
    }
    put("b/config.json", CONFIG("llama", ""));
    static const struct { const char *bytes, *says; } weights[] = {
        {"GGUF\3zzzzzzzzz", "model.safetensors: a GGUF file"}, {"PK\3\4zzzzzzzzz", "a pickle of PyTorch"},
        {"\x80\2}qzzzzzzzz", "a pickle of PyTorch"}, {"\x1f\x8bzzzzzzzzz", "compressed by gzip"},
        {"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"}};
    for (int i = 0; i < (int)(sizeof weights / sizeof *weights); i++) {
        put("b/model.safetensors", weights[i].bytes);
        load("b", weights[i].says);
    }
    put("x.gguf", "GGUF\3zzzzzzzzz");
    load("x.gguf", "x.gguf: a GGUF file: want the safetensors checkpoint that it was made from");
    CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = "nobody/no-model"}, &model) == WRPO_E_IO &&
              strstr(wrpo_last_error(ctx)->text,
                     "no such directory. Nothing is downloaded: get a model of the hub with "
                     "\"hf download nobody/no-model --local-dir DIR\""),
          "%s", wrpo_last_error(ctx)->text);
    load("absent", "absent: no such directory. Nothing is downloaded");
    wrpo_close(ctx);
    ctx = quiet;
}

int main(void) {
    snprintf(dir, sizeof dir, "tmp_checkpoint_%ld", (long)getpid());
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 2;
    shell("mkdir -p %s%s", dir, "");
    configs();
    published();
    as_people_have_them();
    round_trips();
    layouts();
    allocations();
    shell("rm -rf %s%s", dir, "");
    CHECK(bytes_left(ctx) == sizeof(wrpo__arena), "%zu bytes still held", ctx->bytes);
    wrpo_close(ctx);
    return test_end("checkpoint");
}
