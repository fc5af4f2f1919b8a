/* `wrpo answer` field by field: what AlpacaEval 2, MT-Bench (FastChat) and Arena-Hard-Auto read. The program is
   compiled into this test. */
#define main program_main
#include "example.c"
#undef main
#include "support/test.h"
#include "support/folder.h"
#include "support/tiny.h"

static wrpo_ctx *ctx;
/* wrpo answer with these options; the file it wrote, or NULL */
static char *answer(const char *bench, const char *questions, const char *more, size_t *size) {
    char line[1200], *argv[40], *out = NULL;
    int argc = 0;
    tiny_put(dir, "questions", questions);
    remove(at("out"));
    snprintf(line, sizeof line, "answer --model %s --bench %s --questions %s --out %s --threads 1 %s", at("model"),
             bench, at("questions"), at("out"), more);
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    const int code = dispatch(argc, argv);
    FILE *f = fopen(at("out"), "rb");
    CHECK((code == 0) == !!f, "%s: exit code %d, %s", line, code, f ? "a file" : "no file");
    if (f) out = read_all(f, size), out[*size] = 0, fclose(f);
    return out;
}
static wrpo_json *parsed(const char *text, size_t size) {
    wrpo_json *v = NULL;
    CHECK(text && wrpo_json_parse(ctx, "out", text, size, &v) == WRPO_OK, "%s",
          text ? wrpo_last_error(ctx)->text : "nothing was written");
    return v;
}
static wrpo_json *line_of(const char *text, int i) {
    for (; text && i > 0; i--) text = strchr(text, '\n') ? strchr(text, '\n') + 1 : NULL;
    return parsed(text, text ? strcspn(text, "\n") : 0);
}
/* The object's keys, in order and no others: "a, b, c" */
static void keys(const wrpo_json *v, const char *want, const char *what) {
    char found[300] = "";
    for (const wrpo_json *m = v ? v->child : NULL; m; m = m->next)
        snprintf(found + strlen(found), sizeof found - strlen(found), "%s%s", m == v->child ? "" : ", ", m->key);
    CHECK(!strcmp(found, want), "%s: want the keys %s, found %s", what, want, found);
}
static const char *text_of(const wrpo_json *v, const char *key) {
    const wrpo_json *m = v ? wrpo_json_get(v, key) : NULL;
    CHECK(m && m->kind == WRPO_JSON_STRING, "\"%s\" is not a string", key);
    return m && m->kind == WRPO_JSON_STRING ? m->text : "";
}
static const wrpo_json *get(const wrpo_json *v, const char *key, wrpo_json_kind of) {
    const wrpo_json *m = v ? wrpo_json_get(v, key) : NULL;
    CHECK(m && m->kind == of, "\"%s\": of another kind, or absent", key);
    return m;
}
static bool is_id(const char *s) {
    return strlen(s) == 22 && strspn(s, "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz") == 22;
}
static bool is_stamp(const wrpo_json *v) {
    return v && v->kind == WRPO_JSON_NUMBER && !v->exact && v->number > 1.7e9 && v->number < 5e9;
}

static void checkpoint(void) {
    wrpo_model *model;
    tiny_tokenizer(dir,
                   "\"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + "
                   "'\\n' }}{% endfor %}"
                   "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"");
    tiny_put(dir, "config.json",
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 260, "
             "\"hidden_size\": 32, \"intermediate_size\": 40,"
             "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
             "\"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\","
             "\"initializer_range\": 0.4, \"tie_word_embeddings\": true, \"torch_dtype\": \"float32\", "
             "\"eos_token_id\": 257}");
    CHECK(wrpo_model_init(ctx, &(wrpo_init_desc){.config = at("config.json"), .tokenizer_dir = dir}, &model) ==
                  WRPO_OK &&
              wrpo_model_save(model, &(wrpo_save_desc){.dir = at("model")}) == WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    wrpo_model_free(model);
}
static char greedy_text[4000];
static bool keep_text(int64_t prompt, const wrpo_sample *y, void *user) {
    (void)prompt, (void)user;
    snprintf(greedy_text, sizeof greedy_text, "%s", y->text);
    return true;
}
/* What the model says greedily to this conversation, white space around it taken off. */
static const char *greedy(const char *messages, int64_t most) {
    wrpo_model *model;
    wrpo_tokenizer *tok = NULL;
    wrpo_json *record = parsed(messages, strlen(messages));
    int32_t *ids = NULL;
    wrpo_prompt p = {0};
    CHECK(wrpo_model_load(ctx, &(wrpo_model_desc){.dir = at("model")}, &model) == WRPO_OK &&
              wrpo_tokenizer_load(ctx, at("model"), &tok) == WRPO_OK &&
              wrpo_tokenizer_prompt(tok, &(wrpo_tokenizer_prompt_desc){0}, record, &ids, &p.count) == WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    p.ids = ids;
    CHECK(wrpo_generate(model, &p, 1,
                        &(wrpo_generate_desc){
                            .tokenizer = tok, .temperature = WRPO_ZERO, .max_tokens = most, .on_done = keep_text}) ==
              WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    wrpo_free(ctx, ids), wrpo_json_free(ctx, record), wrpo_tokenizer_free(tok), wrpo_model_free(model);
    char *text = greedy_text + strspn(greedy_text, " \t\n\v\f\r\x1c\x1d\x1e\x1f");
    for (size_t n = strlen(text); n && strchr(" \t\n\v\f\r\x1c\x1d\x1e\x1f", text[n - 1]); n--) text[n - 1] = 0;
    return text;
}

static void alpacaeval(void) {
    static const char *const forms[] = {
        "[{\"instruction\": \"First one?\", \"output\": \"someone else's\", \"generator\": \"another\", \"dataset\": "
        "\"helpful_base\"},\n {\"instruction\": \"Second \\\"one\\\"\\n\"}]",
        "{\"instruction\": \"First one?\", \"dataset\": \"helpful_base\"}\n\n{\"instruction\": \"Second "
        "\\\"one\\\"\\n\"}\n"};
    char *first = NULL;
    size_t size;
    for (int i = 0; i < 2; i++) {
        char *text = answer("alpacaeval", forms[i], "--max-tokens 20 --name Fused-1B", &size);
        wrpo_json *v = parsed(text, size);
        CHECK(v && v->kind == WRPO_JSON_ARRAY && v->count == 2, "an array of both");
        if (v && v->count == 2) {
            keys(v->child, "dataset, instruction, output, generator", "with a data set");
            keys(v->child->next, "instruction, output, generator", "without");
            CHECK(!strcmp(text_of(v->child, "dataset"), "helpful_base") &&
                      !strcmp(text_of(v->child, "instruction"), "First one?") &&
                      !strcmp(text_of(v->child->next, "instruction"), "Second \"one\"\n"),
                  "instructions as they were");
            for (const wrpo_json *m = v->child; m; m = m->next)
                CHECK(!strcmp(text_of(m, "generator"), "Fused-1B") && strcmp(text_of(m, "output"), "someone else's") &&
                          strlen(text_of(m, "output")) > 0,
                      "an answer of its own");
        }
        if (first) CHECK(!strcmp(first, text), "an array and lines give the same");
        wrpo_json_free(ctx, v);
        free(first);
        first = text;
    }
    char *cold = answer("alpacaeval", forms[1], "--max-tokens 20 --name Fused-1B --temperature 0", &size);
    CHECK(cold && strcmp(cold, first), "a temperature that is not 0 by default");
    free(cold), free(first);
}
static void mtbench(void) {
    static const char questions[] =
        "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"Tell me\", \"And then?\"]}\n"
        "{\"question_id\": 111, \"category\": \"math\", \"turns\": [\"Add them\", \"Once more\"], \"reference\": "
        "[\"3\", \"4\"]}\n"
        "{\"question_id\": 141, \"category\": \"stem\", \"turns\": [\"Why?\"]}\n"
        "{\"question_id\": 151, \"category\": \"unheard of\", \"turns\": [\"What?\"]}\n"
        "{\"question_id\": 161, \"category\": \"writing\", \"required_temperature\": 0.0, \"turns\": [\"Add them\"]}\n";
    size_t size;
    char *text = answer("mtbench", questions, "--max-tokens 30", &size),
         *other = answer("mtbench", questions, "--max-tokens 30 --seed 5", &size);
    char turns[5][2][1000] = {{{0}}};
    static const int64_t ids[] = {81, 111, 141, 151, 161};
    for (int i = 0; i < 5; i++) {
        wrpo_json *v = line_of(text, i), *w = line_of(other, i);
        keys(v, "question_id, answer_id, model_id, choices, tstamp", "mtbench");
        const wrpo_json *id = get(v, "question_id", WRPO_JSON_NUMBER), *choices = get(v, "choices", WRPO_JSON_ARRAY);
        CHECK(id && id->exact && id->integer == ids[i], "question %lld", (long long)ids[i]);
        CHECK(is_id(text_of(v, "answer_id")) && is_id(text_of(w, "answer_id")) &&
                  strcmp(text_of(v, "answer_id"), text_of(w, "answer_id")),
              "ids of 22 letters, of a run");
        CHECK(!strcmp(text_of(v, "model_id"), "model") && is_stamp(wrpo_json_get(v, "tstamp")), "model and time");
        CHECK(choices && choices->count == 1, "one choice");
        const wrpo_json *choice = choices ? choices->child : NULL,
                        *list = choice ? get(choice, "turns", WRPO_JSON_ARRAY) : NULL;
        keys(choice, "index, turns", "choice");
        CHECK(choice && get(choice, "index", WRPO_JSON_NUMBER)->integer == 0 && list && list->count == (i < 2 ? 2 : 1),
              "an answer to every turn");
        int k = 0;
        for (const wrpo_json *t = list ? list->child : NULL; t && k < 2; t = t->next, k++)
            snprintf(turns[i][k], sizeof turns[i][k], "%s", t->kind == WRPO_JSON_STRING ? t->text : "");
        const wrpo_json *again = w ? wrpo_json_get(w, "choices")->child : NULL;
        const bool same = again && !strcmp(wrpo_json_get(again, "turns")->child->text, turns[i][0]);
        /* stem, 0.1, is warm enough for this model */
        CHECK(same == (i == 1 || i == 4), "question %lld: greedy where its category says so", (long long)ids[i]);
        wrpo_json_free(ctx, v), wrpo_json_free(ctx, w);
    }
    CHECK(!strcmp(turns[1][0], greedy("{\"messages\": [{\"role\": \"user\", \"content\": \"Add them\"}]}", 30)),
          "math: the greedy answer");
    CHECK(!strcmp(turns[4][0], turns[1][0]), "a required temperature");
    char *quoted, seen[3000];
    CHECK(wrpo_json_quote(ctx, turns[1][0], strlen(turns[1][0]), &quoted) == WRPO_OK, "quote");
    snprintf(seen, sizeof seen,
             "{\"messages\": [{\"role\": \"user\", \"content\": \"Add them\"}, {\"role\": \"assistant\", \"content\": "
             "%s}, {\"role\": \"user\", \"content\": \"Once more\"}]}",
             quoted);
    wrpo_free(ctx, quoted);
    CHECK(!strcmp(turns[1][1], greedy(seen, 30)), "the second turn sees the first answer");
    CHECK(strcmp(turns[1][1], greedy("{\"messages\": [{\"role\": \"user\", \"content\": \"Once more\"}]}", 30)),
          "and says something else than without");
    free(text), free(other);
}
static void arenahard(void) {
    size_t size;
    char *text = answer("arenahard",
                        "{\"uid\": \"0af1\", \"category\": \"hard_prompt\", \"subcategory\": \"coding\", \"prompt\": "
                        "\"Write it\"}\n{\"uid\": \"0af2\", \"prompt\": \"Explain\"}\n",
                        "--max-tokens 25 --name m", &size);
    for (int i = 0; i < 2; i++) {
        wrpo_json *v = line_of(text, i);
        keys(v, "uid, ans_id, model, messages, tstamp, metadata", "arena-hard-auto");
        CHECK(!strcmp(text_of(v, "uid"), i ? "0af2" : "0af1") && is_id(text_of(v, "ans_id")) &&
                  !strcmp(text_of(v, "model"), "m") && is_stamp(wrpo_json_get(v, "tstamp")),
              "names");
        const wrpo_json *m = get(v, "messages", WRPO_JSON_ARRAY), *data = get(v, "metadata", WRPO_JSON_OBJECT);
        CHECK(m && m->count == 2, "a question and an answer");
        if (m && m->count == 2) {
            const wrpo_json *said = get(m->child->next, "content", WRPO_JSON_OBJECT);
            keys(m->child, "role, content", "question"), keys(m->child->next, "role, content", "answer"),
                keys(said, "answer", "content");
            CHECK(!strcmp(text_of(m->child, "role"), "user") &&
                      !strcmp(text_of(m->child, "content"), i ? "Explain" : "Write it"),
                  "the question");
            CHECK(!strcmp(text_of(m->child->next, "role"), "assistant") && *text_of(said, "answer"), "the answer");
            char request[200];
            snprintf(request, sizeof request, "{\"prompt\": \"%s\"}", i ? "Explain" : "Write it");
            CHECK(strstr(text_of(said, "answer"), greedy(request, 25)), "greedy");
        }
        keys(data, "header_count, list_count, bold_count", "metadata");  /* token_len is tiktoken's: not ours to fill */
        keys(get(data, "header_count", WRPO_JSON_OBJECT), "h1, h2, h3, h4, h5, h6", "headers");
        keys(get(data, "list_count", WRPO_JSON_OBJECT), "ordered, unordered", "lists");
        keys(get(data, "bold_count", WRPO_JSON_OBJECT), "**, __", "bold");
        wrpo_json_free(ctx, v);
    }
    free(text);
    text = answer("arenahard",
                  "{\"question_id\": \"328c\", \"category\": \"arena-hard-v0.1\", \"cluster\": \"c\", \"turns\": "
                  "[{\"content\": \"Write it\"}]}\n",
                  "--max-tokens 25", &size);
    wrpo_json *v = line_of(text, 0);
    keys(v, "question_id, answer_id, model_id, choices, tstamp, conv_metadata", "arena-hard of 2024");
    const wrpo_json *choices = get(v, "choices", WRPO_JSON_ARRAY),
                    *turns = choices ? get(choices->child, "turns", WRPO_JSON_ARRAY) : NULL;
    CHECK(turns && turns->count == 1 && !strcmp(text_of(v, "question_id"), "328c"), "a turn");
    if (turns) keys(turns->child, "content", "turn");
    keys(get(v, "conv_metadata", WRPO_JSON_OBJECT), "header_count, list_count, bold_count", "conv_metadata");
    wrpo_json_free(ctx, v);
    free(text);
}
/* Expected: what Python's re finds with the published expressions. */
static void markdown_counts(void) {
    static const struct { const char *text; int64_t counts[10];
    } want[] = {
        {"", {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
        {"plain text", {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
        {"# One\n## Two\n### Three\n#### Four\n##### Five\n###### Six\n####### Seven\n#No\n # indented\n#\nend #\n#",
         {2, 1, 1, 1, 1, 1, 0, 0, 0, 0}},
        {"1. a\n2. b\n  10. c\n\n\n 3. d\n4.e\n5.\n6.", {0, 0, 0, 0, 0, 0, 5, 0, 0, 0}},
        {"- a\n* b\n+ c\n -d\n  - e\n-\n\n\t* f\n---\n*", {0, 0, 0, 0, 0, 0, 0, 6, 0, 0}},
        {"**a** and **b c**, ** d **, **** and **e\nf** and ***g*** and **h*", {0, 0, 0, 0, 0, 0, 0, 0, 6, 0}},
        {"__a__ __b c__ ____ __d\n__ _e_ ___f___", {0, 0, 0, 0, 0, 0, 0, 0, 0, 4}},
        {"```\n# in code\n- a\n```\n# out\n- b\n", {1, 0, 0, 0, 0, 0, 0, 1, 0, 0}},
        {"```py\n1. x\n```\ntext 1. x\n1. x\n", {0, 0, 0, 0, 0, 0, 1, 0, 0, 0}},
        {"a ``` b `c` ``` d\n# e\n``` **x** ``` **x** y **z**", {0, 0, 0, 0, 0, 0, 0, 0, 3, 0}},
        {"````\n# q\n````\n# r", {1, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
        {"```\n```\n# a\n# b\n", {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
        {"**a**b**c**", {0, 0, 0, 0, 0, 0, 0, 0, 2, 0}},
        {"- **x**: y\n- **z**: w\n\n1. # no\n# 1. yes\r\n- end", {1, 0, 0, 0, 0, 0, 1, 3, 2, 0}},
        {"# \303\251\n\302\240- nb\n-\302\240x", {1, 0, 0, 0, 0, 0, 0, 2, 0, 0}},
        {"```a``````b``` # ab\n# a\n# b\n", {2, 0, 0, 0, 0, 0, 0, 0, 0, 0}}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        markdown m;
        int64_t got[10];
        CHECK(count_markdown(want[i].text, strlen(want[i].text), &m), "memory");
        memcpy(got, m.header, sizeof m.header);
        got[6] = m.ordered, got[7] = m.unordered, got[8] = m.bold[0], got[9] = m.bold[1];
        for (int k = 0; k < 10; k++)
            CHECK(got[k] == want[i].counts[k], "text %d, count %d: want %lld, found %lld", (int)i, k,
                  (long long)want[i].counts[k], (long long)got[k]);
    }
}
static void refusals(void) {
    static const struct { const char *bench, *questions;
    } refused[] = {
        {"alpacaeval", ""},
        {"alpacaeval", "[]"},
        {"alpacaeval", "[{\"prompt\": \"x\"}]"},
        {"alpacaeval", "{\"instruction\": 3}"},
        {"alpacaeval", "[1"},
        {"alpacaeval", "7"},
        {"mtbench", "{\"question_id\": 1, \"category\": \"math\"}"},
        {"mtbench", "{\"category\": \"math\", \"turns\": [\"x\"]}"},
        {"mtbench", "{\"question_id\": 1, \"turns\": []}"},
        {"mtbench", "{\"question_id\": 1, \"turns\": [{\"content\": \"x\"}]}"},
        {"mtbench", "{\"question_id\": 1, \"turns\": [\"x\"]}\n{\"question_id\": 1, \"turns\": [\"y\"]}"},
        {"arenahard", "{\"uid\": \"a\"}"},
        {"arenahard", "{\"prompt\": \"x\"}"},
        {"arenahard", "{\"question_id\": 1, \"turns\": [\"x\"]}"},
        {"arenahard", "{\"uid\": \"a\", \"prompt\": \"x\"}\n{\"question_id\": 1, \"turns\": [{\"content\": \"y\"}]}"}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        size_t size;
        char *text = answer(refused[i].bench, refused[i].questions, "--max-tokens 2", &size);
        CHECK(!text, "%s: %s: want a refusal", refused[i].bench, refused[i].questions);
        free(text);
    }
}
int main(void) {
    snprintf(dir, sizeof dir, "/tmp/wrpo-answer-XXXXXX");
    CHECK(mkdtemp(dir), "mkdtemp");
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 1;
    checkpoint();
    alpacaeval();
    mtbench();
    arenahard();
    markdown_counts();
    refusals();
    wrpo_close(ctx);
    scratch_remove(dir);
    return test_end("94_answer");
}
