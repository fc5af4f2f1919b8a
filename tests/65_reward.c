/* Reward models against PyTorch (golden/rewards.py): directories of sequence classification and of InternLM2's reward
   model, by token ids and by text; ArmoRM's gated head alone and behind a model; sharing and micro-batches; refusals; a
   file of candidates. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/folder.h"
#include "support/counting.h"
#include "support/golden.h"
#include <unistd.h>

static wrpo_ctx *ctx;
static char *get(const char *name) {                   /* NULL: not there */
    FILE *f = fopen(at(name), "rb");
    if (!f) return NULL;
    char *s = calloc(1, 1 << 16);
    s[fread(s, 1, (1 << 16) - 1, f)] = 0;
    fclose(f);
    return s;
}
static wrpo_reward *load(const char *where, int64_t label, int64_t micro_tokens) {
    wrpo_reward *r;
    CHECK(wrpo_reward_load(ctx, &(wrpo_reward_desc){.dir = where, .label = label, .micro_tokens = micro_tokens}, &r) ==
              WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    return r;
}
static void refuse(const char *where, int64_t label, const char *says) {
    wrpo_reward *r;
    wrpo_result code = wrpo_reward_load(ctx, &(wrpo_reward_desc){.dir = where, .label = label}, &r);
    CHECK(code != WRPO_OK && !r && strstr(wrpo_last_error(ctx)->text, says), "want \"%s\", found %d \"%s\"", says, code,
          wrpo_last_error(ctx)->text);
    wrpo_reward_free(r);
}

/* ---- goldens ---- */
static double want_score(const wrpo_json *v, int64_t label) {          /* one number, or one of a list */
    if (v->kind == WRPO_JSON_NUMBER) return v->number;
    for (v = v->child; --label > 0;) v = v->next;
    return v->number;
}
/* All conversations at once and one by one: the same numbers but for the order of sums, and PyTorch's within 1e-5. */
static double check_ids(const char *name, wrpo_reward *r, const wrpo_json *golden, int64_t label) {
    const wrpo_json *list = golden_get(golden, "ids"), *scores = golden_get(golden, "scores")->child;
    const int32_t *ids[16];
    int64_t counts[16], n = 0;
    double got[16], worst = 0;
    for (const wrpo_json *v = list->child; v; v = v->next, n++) ids[n] = golden_ids(v), counts[n] = v->count;
    CHECK(wrpo_reward_score_ids(r, ids, counts, n, got) == WRPO_OK, "%s: %s", name, wrpo_last_error(ctx)->text);
    for (int64_t i = 0; i < n; i++, scores = scores->next) {
        double one = NAN, d = fabs(got[i] - want_score(scores, label));
        CHECK(wrpo_reward_score_ids(r, ids + i, counts + i, 1, &one) == WRPO_OK && fabs(one - got[i]) < 1e-5,
              "%s: conversation %lld: %g alone, %g among others", name, (long long)i, one, got[i]);
        CHECK(d < 1e-5, "%s: conversation %lld: %.9g, PyTorch has %.9g", name, (long long)i, got[i],
              want_score(scores, label));
        worst = test_larger(worst, d);
        free((void *)(uintptr_t)ids[i]);
    }
    return worst;
}
static double check_texts(const char *name, wrpo_reward *r, const wrpo_json *golden, int64_t label) {
    const wrpo_json *scores = golden_get(golden, "answer_scores")->child;
    const char *answers[8];
    int64_t n = 0;
    double got[8], worst = 0;
    for (const wrpo_json *v = golden_get(golden, "answers")->child; v; v = v->next) answers[n++] = v->text;
    CHECK(wrpo_reward_score(r, golden_get(golden, "prompt"), answers, n, got) == WRPO_OK, "%s: %s", name,
          wrpo_last_error(ctx)->text);
    for (int64_t i = 0; i < n; i++, scores = scores->next) {
        const double d = fabs(got[i] - want_score(scores, label));
        CHECK(d < 1e-5, "%s: answer %lld: %.9g, PyTorch has %.9g", name, (long long)i, got[i],
              want_score(scores, label));
        worst = test_larger(worst, d);
    }
    return worst;
}
static void directories(const wrpo_json *all) {
    const struct { const char *name; int64_t label, micro;
    } runs[] = {{"llama_f32", 0, 0},    {"llama_f32", 1, 40},    {"llama_f32", 0, 1},     {"gemma2_bf16", 1, 0},
                {"gemma2_bf16", 3, 30}, {"internlm2_f32", 0, 0}, {"internlm2_f32", 0, 25}};
    for (int i = 0; i < (int)(sizeof runs / sizeof *runs); i++) {
        char where[96];
        snprintf(where, sizeof where, "golden/rewards/%s", runs[i].name);
        const wrpo_json *golden = golden_get(all, runs[i].name);
        wrpo_reward *r = load(where, runs[i].label, runs[i].micro);
        if (!r) continue;
        const double a = check_ids(runs[i].name, r, golden, runs[i].label),
                     b = check_texts(runs[i].name, r, golden, runs[i].label);
        printf("%-14s label %lld, micro tokens %4lld: rewards differ by %.1e at most (%.1e of texts)\n", runs[i].name,
               (long long)runs[i].label, (long long)runs[i].micro, a, b);
        wrpo_reward_free(r);
    }
}

/* A language model with an adapter that has score.weight: PEFT's numbers; without it no reward model. The adapter
   beside the model is applied, and a policy refuses it. */
static void adapters(const wrpo_json *all) {
    static const char base[] = "golden/rewards/llama_lora", lora[] = "golden/rewards/llama_lora/adapter";
    const wrpo_json *golden = golden_get(all, "llama_lora");
    wrpo_reward *r;
    wrpo_model *policy;
    CHECK(wrpo_reward_load(ctx, &(wrpo_reward_desc){.dir = base, .adapter = lora}, &r) == WRPO_OK, "%s",
          wrpo_last_error(ctx)->text);
    if (r) printf("llama_lora     rewards differ by %.1e at most\n", check_ids("llama_lora", r, golden, 0));
    wrpo_reward_free(r);
    refuse(base, 0, "golden/rewards/llama_lora: a language model has no reward head");
    CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = base, .adapter = lora, .frozen = true}, &policy) != WRPO_OK &&
              strstr(wrpo_last_error(ctx)->text, "modules_to_save an array"),
          "a policy: %s", wrpo_last_error(ctx)->text);
    wrpo_model_free(policy);
    shell("cp -r %s %s", base, at("lora"));
    shell("cp %s/* %s", lora, at("lora"));
    if ((r = load(at("lora"), 0, 0))) check_ids("llama_lora, beside", r, golden, 0);
    wrpo_reward_free(r);
    /* the config and the file must agree about the head */
    char *named = get("lora/adapter_config.json"), *list = named ? strstr(named, "\"modules_to_save\"") : NULL;
    char *unnamed = list ? strdup(named) : NULL;
    if (list) {
        char *end = strchr(unnamed + (list - named), '[');
        for (; end && *end != ']'; end++)
            if (*end != '[' && *end != '\n') *end = ' ';
        put("lora/adapter_config.json", unnamed);
        refuse(at("lora"), 0, "want score.weight if modules_to_save of adapter_config.json names it, and only then");
        put("lora/adapter_config.json", named);
    }
    CHECK(list, "modules_to_save is missing");
    free(unnamed);
    free(named);
    char *config = get("lora/adapter_config.json"), *other = config ? strstr(config, "\"classifier\"") : NULL;
    CHECK(other, "adapter_config.json: \"classifier\" is missing");
    if (other) {
        memcpy(other, "\"lm_head\"   ", 12);
        put("lora/adapter_config.json", config);
        refuse(at("lora"), 0, "modules_to_save an array");
    }
    free(config);
}

/* ---- ArmoRM ---- */
static float *floats(const wrpo_json *v, float *to) {  /* all numbers of nested arrays */
    if (v->kind == WRPO_JSON_NUMBER) *to++ = (float)v->number;
    for (const wrpo_json *m = v->child; m; m = m->next) to = floats(m, to);
    return to;
}
static void head_alone(void) {       /* a golden in double precision, of the head by itself */
    const char *file = test_shared("../proto/tokenizer/armorm_head_f64.json");
    if (!file) { SKIP(1, "armorm_head_f64.json"); return; }
    const wrpo_json *j = golden_read(ctx, file), *layers = golden_get(j, "gating_layers");
    static float numbers[4096];
    float *at = numbers;
    double hidden[2][64], work[3 * 64];
    wrpo__gate g = {.scale = golden_number(j, "logit_scale", NAN), .temperature = golden_number(j, "temperature", NAN)};
    const int64_t n = golden_get(j, "regression_layer")->count, D = golden_get(j, "hidden_last")->count;
    g.regression = (wrpo__dense){at, NULL, n, D}, at = floats(golden_get(j, "regression_layer"), at);
    g.transform = (wrpo__dense){at, NULL, n, n}, at = floats(golden_get(j, "reward_transform_matrix"), at);
    for (const wrpo_json *l = layers->child; l; l = l->next, g.layers++) {
        const wrpo_json *w = golden_get(l, "weight");
        wrpo__dense *to = &g.layer[g.layers];
        *to = (wrpo__dense){.w = at, .rows = w->count, .cols = w->child->count}, at = floats(w, at);
        to->b = at, at = floats(golden_get(l, "bias"), at);
        g.widest = WRPO__MAX(g.widest, WRPO__MAX(to->rows, to->cols));
    }
    for (int i = 0; i < 2; i++) {
        int64_t k = 0;
        for (const wrpo_json *v = golden_get(j, i ? "hidden_prompt" : "hidden_last")->child; v; v = v->next)
            hidden[i][k++] = v->number;
    }
    const double got = wrpo__gated_score(&g, hidden[0], hidden[1], work), want = golden_number(j, "score", NAN);
    CHECK(fabs(got - want) < 1e-6, "gated head: %.12g, want %.12g", got, want);
    printf("the gated head alone: differs by %.1e (its weights are read as float)\n", fabs(got - want));
    wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)j);
}
typedef struct head { const char *name; int64_t rows, cols; } head;    /* cols 0: a vector */
static const head gated[] = {
    {"regression_layer.weight", 5, 8}, {"reward_transform_matrix", 5, 5}, {"gating.layers.0.weight", 7, 8},
    {"gating.layers.0.bias", 7, 0},    {"gating.layers.1.weight", 7, 7},  {"gating.layers.1.bias", 7, 0},
    {"gating.layers.2.weight", 7, 7},  {"gating.layers.2.bias", 7, 0},    {"gating.layers.3.weight", 5, 7},
    {"gating.layers.3.bias", 5, 0},    {"gating.logit_scale", 1, 0}};
enum { HEADS = sizeof gated / sizeof *gated };
static const float *by_formula(void *user, int64_t tensor, int64_t first, int64_t count, float *dst) {
    const wrpo_model *m = user;
    const char *name = tensor < m->n_weights ? m->weights[tensor].name : gated[tensor - m->n_weights].name,
               *kind = golden_kind(name);
    const float offset = !strcmp(kind, "norm"), width = !strcmp(kind, "norm") || !strcmp(kind, "embed") ? 1 : 0.5f;
    for (int64_t k = 0; k < count; k++)
        dst[k] = offset + ((float)(golden_bits(name, (uint64_t)(first + k)) >> 40) / 16777216.0f - 0.5f) * width;
    return dst;
}
static void save_armorm(wrpo__arena *arena, const wrpo__save_tensor *t, int64_t n, wrpo_model *m) {
    wrpo__tensors_save(&(wrpo__save){.temp = arena, .dir = at("armorm"), .t = t, .n = n, .dtype = WRPO_DTYPE_F32,
                                     .fn = by_formula, .user = m, .rounding = &(wrpo__rounding){0}});
}
static void armorm(const wrpo_json *golden) {
    TEST_TRY(ctx, wrpo__arena_new(ctx), true) {
        wrpo__arena *arena = wrpo__entry.arena;
        wrpo__text text = {.arena = arena};
        wrpo__json_write(&text, golden_get(golden, "config"));
        shell("mkdir -p %s/armorm%s", dir, "");
        put("armorm/config.json", text.data);
        wrpo_config c;
        wrpo__config_read(arena, at("armorm"), &c);
        CHECK(c.head == WRPO_HEAD_GATED && c.gating_temperature == 10 && c.pad_token_id == 128256, "config");
        wrpo_model *m = wrpo__model_table(arena, &c, WRPO_DTYPE_F32);
        wrpo__save_tensor *t = wrpo__alloc(arena, (size_t)m->n_weights + HEADS, sizeof *t);
        for (int64_t i = 0; i < m->n_weights; i++)
            t[i] = (wrpo__save_tensor){
                m->weights[i].name, m->weights[i].vector ? 1 : 2, {m->weights[i].rows, m->weights[i].cols, 0, 0}};
        for (int i = 0; i < HEADS; i++)
            t[m->n_weights + i] =
                (wrpo__save_tensor){gated[i].name, gated[i].cols ? 2 : 1, {gated[i].rows, gated[i].cols, 0, 0}};
        save_armorm(arena, t, m->n_weights + HEADS, m);
        wrpo_reward *r = load(at("armorm"), 0, 0);
        if (r) {
            static const int32_t without[] = {1, 2, 128009, 128006, 78191, 128007, 9, 128009};
            const int32_t *list = without;
            const int64_t eight = 8, three = 3;
            double reward = check_ids("armorm", r, golden, 0);
            printf("%-14s rewards differ by %.1e at most\n", "armorm", reward);
            for (int i = 0; i < 2; i++)
                CHECK(wrpo_reward_score_ids(r, &list, i ? &three : &eight, 1, &reward) == WRPO_E_FORMAT &&
                          strstr(wrpo_last_error(ctx)->text, "header"),
                      "%s", wrpo_last_error(ctx)->text);
            wrpo_json prompt = {.kind = WRPO_JSON_STRING, .text = "a", .size = 1};
            CHECK(wrpo_reward_score(r, &prompt, &(const char *){"b"}, 1, &reward) == WRPO_E_IO &&
                      strstr(wrpo_last_error(ctx)->text, "tokenizer.json"),
                  "%s", wrpo_last_error(ctx)->text);
            wrpo_reward_free(r);
        }
        save_armorm(arena, t, m->n_weights + HEADS - 1, m);
        refuse(at("armorm"), 0, "gating.logit_scale is missing");
        t[m->n_weights].shape[0] = 4;
        save_armorm(arena, t, m->n_weights + HEADS, m);
        refuse(at("armorm"), 0, "reward_transform_matrix");
    }
    CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
}

/* ---- refusals ---- */
static void refusals(void) {
    wrpo_model *m;
    wrpo_config c;
    int64_t parameters;
    wrpo_dtype dtype;
    refuse("golden/checkpoints/llama_f32", 0, "no reward head");
    refuse("golden/rewards/gemma2_bf16", 0,
           "score.weight has 3 rows: want the reward's as label (--label), one of 1 LABEL_0, 2 LABEL_1, 3 LABEL_2; "
           "found none");
    refuse("golden/rewards/gemma2_bf16", 4, "3 LABEL_2; found 4");
    refuse("golden/rewards/internlm2_f32", 1, "one reward only");
    refuse("golden/rewards/none", 0, "none");
    wrpo_reward *r;
    CHECK(wrpo_reward_load(ctx, NULL, &r) == WRPO_E_ARG && !r && strstr(wrpo_last_error(ctx)->text, "dir is missing"),
          "no desc");
    CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = "golden/rewards/llama_f32"}, &m) == WRPO_E_UNSUPPORTED && !m &&
              strstr(wrpo_last_error(ctx)->text, "reward model"),
          "a reward model is not trained");
    CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = "golden/rewards/llama_f32"}, &m) == WRPO_E_UNSUPPORTED && !m,
          "nor made");
    CHECK(wrpo_model_check(ctx, "golden/rewards/llama_f32", &c, &parameters, &dtype) == WRPO_OK &&
              c.head == WRPO_HEAD_SCORE,
          "but looked at: %s", wrpo_last_error(ctx)->text);
    shell("cp -r golden/rewards/llama_f32 %s/mixed%s", dir, "");
    shell("sed -i s/LlamaForSequenceClassification/LlamaForCausalLM/ %s/mixed/config.json%s", dir, "");
    CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = at("mixed")}, &m) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "lm_head.weight is missing"),
          "%s", wrpo_last_error(ctx)->text);
    shell("sed -i s/LlamaForCausalLM/LlamaForRewardModelWithGating/ %s/mixed/config.json%s", dir, "");
    refuse(at("mixed"), 0, "score.weight: no such tensor");
    shell("sed -i s/LlamaForRewardModelWithGating/LlamaForTokenClassification/ %s/mixed/config.json%s", dir, "");
    refuse(at("mixed"), 0, "LlamaForTokenClassification");
}

/* ---- files ---- */
static int64_t lines_seen, stop_after;
static bool on_line(int64_t done, int64_t lines, void *user) {
    (void)lines, (void)user;
    lines_seen = done;
    return done != stop_after;
}
static void bad_file(wrpo_reward *r, const char *text, const char *says) {
    wrpo_reward_file_stats t;
    put("bad.jsonl", text);
    remove(at("new.jsonl"));
    const wrpo_result code =
        wrpo_reward_file(r, &(wrpo_reward_file_desc){.in = at("bad.jsonl"), .out = at("new.jsonl")}, &t);
    CHECK(code != WRPO_OK && strstr(wrpo_last_error(ctx)->text, says) &&
              strstr(wrpo_last_error(ctx)->text, "bad.jsonl"),
          "want \"%s\", found %d \"%s\"", says, code, wrpo_last_error(ctx)->text);
    char *left = get("new.jsonl");
    CHECK(!left, "something is left of %s", says);
    free(left);
}
static const char *const candidates =
    "{\"prompt_id\": \"a\", \"prompt\": {\"role\": \"user\", \"content\": \"Hi\"}, \"extra\": [1.50, null], "
    "\"sources\": [{\"model\": \"m\", \"content\": \"one\", \"reward\": 0.25000},"
    " {\"model\": \"m\", \"content\": \"two\", \"reward\": null}], \"target\": [{\"model\": \"t\", \"x\": {\"y\": "
    "true}, \"content\": \"three\"}]}\n"
    "\n{\"prompt_id\": 7, \"prompt\": \"Hi\", \"content\": \"two\"}\n";
static void files(void) {
    const char *answers[3] = {"one", "two", "three"};
    double want[3];
    char expected[1024];
    wrpo_reward_file_stats t;
    wrpo_json hi = {.kind = WRPO_JSON_STRING, .text = "Hi", .size = 2};
    wrpo_reward *r = load("golden/rewards/llama_f32", 0, 0);
    if (!r) return;
    put("in.jsonl", candidates);
    CHECK(wrpo_reward_score(r, &hi, answers, 3, want) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    for (int rescore = 0; rescore < 2; rescore++) {
        char number[3][40];
        CHECK(wrpo_reward_file(
                  r,
                  &(wrpo_reward_file_desc){
                      .in = at("in.jsonl"), .out = at("out.jsonl"), .rescore = rescore, .on_line = on_line},
                  &t) == WRPO_OK,
              "%s", wrpo_last_error(ctx)->text);
        CHECK(t.prompts == 2 && t.scored == 3 + rescore && t.kept == 1 - rescore && lines_seen == 2,
              "%lld prompts, %lld scored, %lld kept", (long long)t.prompts, (long long)t.scored, (long long)t.kept);
        char *out = get("out.jsonl"), *p = out ? out : (char *)(uintptr_t)"";
        /* the numbers as they stand in the file, against the call above */
        for (int i = 0; i < 3; i++) {
            static const char *const before[] = {
                "\"content\": \"one\", \"reward\": ", "\"content\": \"two\", \"reward\": ",
                "\"content\": \"three\", \"reward\": "};
            const char *at = strstr(p, before[i]);
            const double x = at ? strtod(at + strlen(before[i]), NULL) : NAN;
            snprintf(number[i], sizeof number[i], "%.*s", at ? (int)strcspn(at + strlen(before[i]), "}") : 0,
                     at ? at + strlen(before[i]) : "");
            CHECK(fabs(x - (i || rescore ? want[i] : 0.25)) < 1e-6, "reward %d: %s, want %g", i, number[i], want[i]);
        }
        snprintf(expected, sizeof expected,
                 "{\"prompt_id\": \"a\", \"prompt\": {\"role\": \"user\", \"content\": \"Hi\"}, \"extra\": [1.50, "
                 "null], \"sources\": [{\"model\": \"m\", \"content\": \"one\", \"reward\": %s},"
                 " {\"model\": \"m\", \"content\": \"two\", \"reward\": %s}], \"target\": [{\"model\": \"t\", \"x\": "
                 "{\"y\": true}, \"content\": \"three\", \"reward\": %s}]}\n"
                 "{\"prompt_id\": 7, \"prompt\": \"Hi\", \"content\": \"two\", \"reward\": ",
                 rescore ? number[0] : "0.25000", number[1], number[2]);
        CHECK(!strncmp(p, expected, strlen(expected)), "found %s\nwant  %s", p, expected);
        free(out);
    }
    stop_after = 1, remove(at("new.jsonl"));
    CHECK(wrpo_reward_file(
              r, &(wrpo_reward_file_desc){.in = at("in.jsonl"), .out = at("new.jsonl"), .on_line = on_line}, &t) ==
              WRPO_E_STOPPED,
          "%s", wrpo_last_error(ctx)->text);
    char *left = get("new.jsonl");
    CHECK(!left, "a stopped run leaves a file");
    free(left);
    stop_after = 0;
    bad_file(r, "", "found none");
    bad_file(r, "{\"prompt\": \"Hi\"}\n", "bad.jsonl:1:1: record \"line 1\": want responses");
    bad_file(r, "{\"prompt\": \"Hi\", \"sources\": []}\n", "want responses");
    bad_file(r, "\n{\"sources\": [{\"content\": \"x\"}]}\n", "bad.jsonl:2:1: record \"line 2\": prompt: want");
    bad_file(r, "{\"prompt\": \"Hi\", \"target\": {\"content\": \"x\"}}\n", "target: want an array");
    bad_file(r, "{\"prompt\": \"Hi\", \"target\": [{\"content\": 3}]}\n", "content: want a string");
    bad_file(r, "{\"prompt\": \"Hi\", \"target\": [{\"model\": \"x\"}]}\n", "content: want");
    bad_file(r, "{\"prompt\": \"Hi\", \"target\": [{\"content\": \"x\", \"reward\": \"high\"}]}\n",
             "reward: want a finite number");
    bad_file(r, "{\"prompt\": \"Hi\", \"target\": [{\"content\": \"x\", \"reward\": 1e999}]}\n",
             "reward: want a finite number");
    bad_file(r, "{\"prompt\": \"Hi\", \"target\": [{\"content\": \"x\", \"reward\": NaN}]}\n", "bad.jsonl:1:");
    bad_file(r, "{\"prompt\": 5, \"target\": [{\"content\": \"x\"}]}\n", "prompt: want");
    bad_file(r, "{\"prompt\": [{\"content\": \"Hi\"}], \"target\": [{\"content\": \"x\"}]}\n", "role");
    wrpo_reward_free(r);
}
/* tools and chat_template_kwargs reach the template, and only of their own line: what it writes with them is what it
   writes of texts that hold it already. A line's last number is its reward. */
static void template_arguments(void) {
    const char *texts[2] = {"one", "[T1]one"};
    double want[2], got[4] = {NAN, NAN, NAN, NAN};
    wrpo_reward_file_stats t;
    const wrpo_json prompts[2] = {{.kind = WRPO_JSON_STRING, .text = "Hi", .size = 2},
                                  {.kind = WRPO_JSON_STRING, .text = "[T1]Hi", .size = 6}};
    shell("cp -r golden/rewards/llama_f32 %s/kwargs%s", dir, "");
    put("kwargs/chat_template.jinja",
        "{% for m in messages %}{{ '[' + mark + (tools | length | string) + ']' if mark and tools else '' }}{{ "
        "m['content'] }}{% endfor %}");
    wrpo_reward *r = load(at("kwargs"), 0, 0);
    if (!r) return;
    for (int i = 0; i < 2; i++)
        CHECK(wrpo_reward_score(r, &prompts[i], &texts[i], 1, &want[i]) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    CHECK(want[0] != want[1], "the template's mark changes the reward");
#define ARGUMENTS "\"tools\": [{\"name\": \"f\"}], \"chat_template_kwargs\": {\"mark\": \"T\"}"
    put("in.jsonl",
        "{\"prompt\": \"Hi\", \"content\": \"one\"}\n{\"prompt\": \"Hi\", " ARGUMENTS
        ", \"content\": \"one\"}\n{\"prompt\": \"Hi\", \"content\": \"one\"}\n"
        "{\"prompt_id\": 4, \"prompt\": \"Hi\", " ARGUMENTS ", \"target\": [{\"content\": \"one\"}]}\n");
    CHECK(wrpo_reward_file(r, &(wrpo_reward_file_desc){.in = at("in.jsonl"), .out = at("out.jsonl")}, &t) ==
              WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    char *out = get("out.jsonl"), *at = out;
    for (int i = 0; i < 4 && at && (at = strstr(at, "\"reward\": ")); i++) got[i] = strtod(at += 10, NULL);
    for (int i = 0; i < 4; i++)
        CHECK(fabs(got[i] - want[i % 2]) < 1e-6, "line %d: reward %g, want %g", i + 1, got[i], want[i % 2]);
    CHECK(out && strstr(out, ARGUMENTS), "they stay in the line: %s", out);
    free(out);
    bad_file(r, "{\"prompt\": \"Hi\", \"chat_template_kwargs\": [], \"content\": \"one\"}\n",
             "chat_template_kwargs: want an object");
    bad_file(r, "{\"prompt\": \"Hi\", \"tools\": {}, \"content\": \"one\"}\n", "tools: want an array");
    wrpo_reward_free(r);
}

/* every allocation fails once: an error, and nothing held */
static void allocations(void) {
    wrpo_ctx *own;
    fail_at = -1;
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &own) == WRPO_OK,
          "open");
    wrpo__unicode_of(own);                             /* its tables stay */
    const int64_t base = live;
    for (fail_at = 0; fail_at < 20000; fail_at++) {
        wrpo_reward *r;
        wrpo_reward_file_stats t;
        calls = 0;
        wrpo_result code = wrpo_reward_load(own, &(wrpo_reward_desc){.dir = "golden/rewards/llama_f32"}, &r);
        if (code == WRPO_OK)
            code = wrpo_reward_file(r, &(wrpo_reward_file_desc){.in = at("in.jsonl"), .out = at("oom.jsonl")}, &t);
        wrpo_reward_free(r);
        if (live != base || (code != WRPO_OK && code != WRPO_E_MEMORY))
            CHECK(false, "allocation %lld: %d, %lld held: %s", (long long)fail_at, code, (long long)(live - base),
                  wrpo_last_error(own)->text);
        if (code == WRPO_OK) break;
    }
    CHECK(fail_at > 100 && fail_at < 20000, "%lld allocations", (long long)fail_at);
    printf("loading and scoring survive the failure of each of their %lld allocations\n", (long long)fail_at);
    wrpo_close(own);
}

int main(void) {
    snprintf(dir, sizeof dir, "tmp_reward_%ld", (long)getpid());
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 2;
    shell("mkdir -p %s%s", dir, "");
    const wrpo_json *all = golden_read(ctx, "golden/rewards.json");
    adapters(all);
    directories(all);
    head_alone();
    armorm(golden_get(all, "armorm"));
    refusals();
    files();
    template_arguments();
    put("in.jsonl", candidates);
    allocations();
    wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)all);
    shell("rm -rf %s%s", dir, "");
    CHECK(bytes_left(ctx) == sizeof(wrpo__arena), "%zu bytes still held", ctx->bytes);
    wrpo_close(ctx);
    return test_end("reward");
}
