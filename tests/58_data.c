/* Records: every accepted form, both tokenizations, truncation, and one sentence for every refusal. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/folder.h"
#include "support/counting.h"
#include "support/tiny.h"
#include "support/golden.h"
#include <unistd.h>

static wrpo_ctx *ctx;
static wrpo_tokenizer *tokenizer(const char *template_json) {
    wrpo_tokenizer *tok;
    tiny_tokenizer(dir, template_json);
    CHECK(wrpo_tokenizer_load(ctx, dir, &tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    return tok;
}
static wrpo_data *load(wrpo_tokenizer *tok, const char *text, wrpo_data_desc desc) {
    wrpo_data *data;
    tiny_put(dir, "data.jsonl", text);
    desc.path = at("data.jsonl");
    wrpo_data_load(tok, &desc, &data);
    return data;
}
static void is(wrpo_tokenizer *tok, const int32_t *ids, int64_t n, const char *want, const char *what) {
    char *text;
    size_t size;
    CHECK(wrpo_tokenizer_decode(tok, ids, n, false, &text, &size) == WRPO_OK && !strcmp(text, want),
          "%s: want \"%s\", found \"%s\"", what, want, text ? text : wrpo_last_error(ctx)->text);
    wrpo_free(ctx, text);
}
static const char *const chatml = "\"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
                                  "'<|im_end|>' + '\\n' }}{% endfor %}"
                                  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"";
#define QUAD \
    "{\"prompt_id\":\"q\",\"prompt\":{\"role\":\"user\",\"content\":\"hi\"},\"chosen\":[{\"role\":\"assistant\"," \
    "\"content\":\"one\"}," \
    "{\"role\":\"assistant\",\"content\":\"two\"}],\"rejected\":[{\"role\":\"assistant\",\"content\":\"bad\"}]}"

static void forms(void) {
    wrpo_tokenizer *tok = tokenizer(chatml);
    wrpo_data *data = load(
        tok,
        "\n" QUAD "\r\n  \n"
        "{\"prompt\":\"hi\",\"chosen\":\"two\",\"rejected\":\"bad\"}\n"
        "{\"prompt\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"hi\"}],\"chosen\":[{"
        "\"role\":\"assistant\",\"content\":\"two\"}],\"rejected\":{\"role\":\"assistant\",\"content\":\"bad\"}}\n"
        "{\"chosen\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"two\"}],"
        "\"rejected\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"bad\"}]}\n"
        "{\"prompt\":\"hi\",\"chosen\":[\"a\",\"b\",\"c\"],\"rejected\":\"bad\"}",
        (wrpo_data_desc){0});
    CHECK(data && wrpo_data_count(data) == 5, "%s", wrpo_last_error(ctx)->text);
    if (!data) return;
    const char *prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    const struct { const char *id; int64_t line; int count; wrpo_role role[4]; const char *text[4];
    } want[] = {{"q",
                 2,
                 3,
                 {WRPO_ROLE_SOURCE, WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED},
                 {"one<|im_end|>", "two<|im_end|>", "bad<|im_end|>"}},
                {"line 4", 4, 2, {WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED}, {"two<|im_end|>", "bad<|im_end|>"}},
                {"line 5", 5, 2, {WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED}, {"two<|im_end|>", "bad<|im_end|>"}},
                {"line 6", 6, 2, {WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED}, {"two<|im_end|>", "bad<|im_end|>"}},
                {"line 7",
                 7,
                 4,
                 {WRPO_ROLE_SOURCE, WRPO_ROLE_SOURCE, WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED},
                 {"a<|im_end|>", "b<|im_end|>", "c<|im_end|>", "bad<|im_end|>"}}};
    for (int i = 0; i < 5; i++) {
        wrpo_record r = wrpo_data_record(data, i);
        CHECK(!strcmp(r.prompt_id, want[i].id) && r.line == want[i].line && r.count == want[i].count,
              "record %d: \"%s\", line %lld, %d responses", i, r.prompt_id, (long long)r.line, r.count);
        is(tok, r.prompt, r.prompt_count,
           i == 2 ? "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" : prompt,
           "prompt");
        for (int k = 0; k < r.count && k < 4; k++) {
            CHECK(r.responses[k].role == want[i].role[k] && r.responses[k].first == 0,
                  "record %d, response %d: role %d", i, k, r.responses[k].role);
            CHECK(r.responses[k].share == (i == 4 && k < 2 ? 0.5 : 1), "share %g", r.responses[k].share);
            is(tok, r.responses[k].ids, r.responses[k].count, want[i].text[k], "response");
        }
    }
    wrpo_data_free(data);
    data = load(tok,
                "{\"prompt_id\":7,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\","
                "\"content\":\"one\"}]}",
                (wrpo_data_desc){0});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        const wrpo_record r = wrpo_data_record(data, 0);
        CHECK(!strcmp(r.prompt_id, "7") && r.count == 1 && r.responses[0].role == WRPO_ROLE_SOURCE, "messages");
        is(tok, r.prompt, r.prompt_count, prompt, "prompt of messages");
        is(tok, r.responses[0].ids, r.responses[0].count, "one<|im_end|>", "answer of messages");
    }
    wrpo_data_free(data);
    /* shares, pairs, weights */
    for (int part = 0; part < 2; part++) {
    data = load(
        tok, part ?
        "{\"prompt\":\"hi\",\"pairs\":[{\"chosen\":\"a\",\"rejected\":\"x\",\"weight\":2},{\"chosen\":[\"b\"],"
        "\"rejected\":{\"role\":\"assistant\",\"content\":\"y\"},\"weight\":6}]}\n"
        "{\"weight\":0,\"pairs\":[{\"chosen\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\","
        "\"content\":\"a\"}],\"rejected\":\"x\"}]}\n"
        : "{\"prompt\":\"hi\",\"chosen\":[\"a\",\"b\",\"c\"],\"rejected\":\"bad\",\"weights\":[3,1],\"weight\":0.25}",
        (wrpo_data_desc){0});
    CHECK(data && wrpo_data_count(data) == 1 + part, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        static const struct {
            int count;
            double weight;
            const char *text;
            wrpo_role role[4];
            double share[4];
            int pair[4];
        } fused[] = {{4,
                      0.25,
                      "abcbad",
                      {WRPO_ROLE_SOURCE, WRPO_ROLE_SOURCE, WRPO_ROLE_TARGET, WRPO_ROLE_REJECTED},
                      {0.75, 0.25, 1, 1},
                      {0, 0, 0, 0}},
                     {4,
                      1,
                      "abxy",
                      {WRPO_ROLE_SOURCE, WRPO_ROLE_SOURCE, WRPO_ROLE_REJECTED, WRPO_ROLE_REJECTED},
                      {0.25, 0.75, 0.25, 0.75},
                      {1, 2, 1, 2}},
                     {2, WRPO_ZERO, "ax", {WRPO_ROLE_SOURCE, WRPO_ROLE_REJECTED}, {1, 1}, {1, 1}}};
        for (int i = part; i < 1 + 2 * part; i++) {
            wrpo_record r = wrpo_data_record(data, i - part);
            CHECK(r.count == fused[i].count && r.weight == fused[i].weight, "fused %d: %d responses, weight %g", i,
                  r.count, r.weight);
            for (int k = 0; k < r.count; k++)
                CHECK(r.responses[k].role == fused[i].role[k] && r.responses[k].share == fused[i].share[k] &&
                          r.responses[k].pair_id == fused[i].pair[k] && r.responses[k].ids[0] == fused[i].text[k],
                      "fused %d, response %d: share %g, pair %d", i, k, r.responses[k].share, r.responses[k].pair_id);
        }
    }
    wrpo_data_free(data);
    }
    data = load(tok, QUAD "\n" QUAD "\n" QUAD, (wrpo_data_desc){.limit = 2});
    CHECK(data && wrpo_data_count(data) == 2, "limit");
    wrpo_data_free(data);
    wrpo_tokenizer_free(tok);
}

static void endings(void) {   /* what the template writes around the reply; what the reply holds itself */
    const struct { const char *template_json, *reply, *want;
    } cases[] = {
        {chatml, "  padded \\n", "  padded \n<|im_end|>"},
        {chatml, "\\nnew line", "\nnew line<|im_end|>"},
        {chatml, "\\ud83d\\ude00 smile", "\xF0\x9F\x98\x80 smile<|im_end|>"},
        {chatml, "says <|im_end|> itself", "says <|im_end|> itself<|im_end|>"},
        {"\"{% for m in messages %}{{ m.role + ': ' + m.content|trim + '</s>' }}{% endfor %}{% if "
         "add_generation_prompt %}assistant:{% endif %}\"",
         " trimmed ", " trimmed</s>"},
        {"\"{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>\\n' }}{% endfor %}{% if "
         "add_generation_prompt %}assistant: {% else %}</s>{% endif %}\"",
         "first end only", "first end only<|im_end|>"},
        {"\"{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}{% if add_generation_prompt "
         "%}[assistant]{% endif %}\"",
         "no end", "no end</s>"},
        {"\"{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}go:{% endif %}\"",
         "another prompt", "another prompt</s>"}};
    for (int i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        char text[400];
        wrpo_tokenizer *tok = tokenizer(cases[i].template_json);
        snprintf(text, sizeof text, "{\"prompt\":\"hi\",\"chosen\":\"%s\",\"rejected\":\"bad\"}", cases[i].reply);
        wrpo_data *data = load(tok, text, (wrpo_data_desc){0});
        CHECK(data, "ending %d: %s", i, wrpo_last_error(ctx)->text);
        if (data)
            is(tok, wrpo_data_record(data, 0).responses[0].ids, wrpo_data_record(data, 0).responses[0].count,
               cases[i].want, "ending");
        wrpo_data_free(data);
        wrpo_tokenizer_free(tok);
    }
}

static void cut(void) {
    wrpo_tokenizer *tok = tokenizer(chatml);
    char text[1000] = "{\"prompt\":\"";
    for (int i = 0; i < 100; i++) strcat(text, i % 2 ? "b" : "a");
    strcat(text, "\",\"chosen\":[\"0123456789\",\"short\"],\"rejected\":\"x\"}");
    wrpo_data *data = load(tok, text, (wrpo_data_desc){.max_length = 30, .max_prompt_length = 22});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {              /* the prompt keeps its last 22 ids, responses have 8 */
        wrpo_record r = wrpo_data_record(data, 0);
        wrpo_data_stats s = wrpo_data_get_stats(data);
        is(tok, r.prompt, r.prompt_count, "bababababab<|im_end|>\n<|im_start|>assistant\n" + 2, "clean: prompt");
        is(tok, r.responses[0].ids, r.responses[0].count, "01234567", "clean: response");
        is(tok, r.responses[1].ids, r.responses[1].count, "short<|im_end|>", "clean: response that fits");
        CHECK(s.truncated_prompts == 1 && s.truncated_responses == 1 && s.longest == 30, "%lld %lld %lld",
              (long long)s.truncated_prompts, (long long)s.truncated_responses, (long long)s.longest);
    }
    wrpo_data_free(data);
    /* authors: header scored, BOS of the reply's own rendering off, EOS once more; all responses cut because of the
       longest */
    wrpo_tokenizer_free(tok);
    tok = tokenizer("\"<s>{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' "
                    "}}{% endfor %}{% if add_generation_prompt %}never{% endif %}\"");
    data = load(tok, QUAD, (wrpo_data_desc){.tokenization = WRPO_TOKENIZATION_AUTHORS});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.prompt, r.prompt_count, "<s><|im_start|>user hi<|im_end|>", "authors: prompt");
        is(tok, r.responses[0].ids, r.responses[0].count, "<|im_start|>assistant one<|im_end|></s>",
           "authors: response");
    }
    wrpo_data_free(data);
    data = load(tok, text,
                (wrpo_data_desc){.tokenization = WRPO_TOKENIZATION_AUTHORS, .max_length = 30, .max_prompt_length = 10});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.prompt, r.prompt_count, "babababab<|im_end|>", "authors: end of the prompt");
        is(tok, r.responses[0].ids, r.responses[0].count, "<|im_start|>assistant 012345678",
           "authors: begin of the response");
        is(tok, r.responses[2].ids, r.responses[2].count, "<|im_start|>assistant x<|im_end|></s>",
           "authors: short response");
    }
    wrpo_data_free(data);
    wrpo_tokenizer_free(tok);
}

static void refusals(void) {
    wrpo_tokenizer *tok = tokenizer(chatml);
    const struct { const char *line, *says;
    } bad[] = {
        {"{\"prompt\":\"x\",\"chosen\":[\"a\",\"b\"]}", "found no \"rejected\""},
        {"{\"prompt\":\"x\",\"rejected\":\"b\"}", "found no \"chosen\""},
        {"{\"chosen\":[\"a\",\"b\"],\"rejected\":\"c\"}", "want a \"prompt\""},
        {"{\"chosen\":\"\\n\\nHuman: a\\n\\nAssistant: b\",\"rejected\":\"\\n\\nHuman: a\\n\\nAssistant: c\"}",
         "have to be split into messages"},
        {"[]", "want an object"},
        {"{\"prompt\":\"x\"", "data.jsonl:2:"},
        {"nonsense", "data.jsonl:2:"},
        {"{\"prompt_id\":\"id9\",\"prompt\":\"x\",\"chosen\":[\"a\",\"\"],\"rejected\":\"c\"}",
         "record \"id9\": chosen: want a response, found an empty one"},
        {"{\"prompt\":\"x\",\"chosen\":\"a\",\"rejected\":\" \\n\"}", "record \"line 2\": rejected: want a response"},
        {"{\"prompt\":3,\"chosen\":\"a\",\"rejected\":\"b\"}",
         "data.jsonl:2:11: record \"line 2\": prompt: want a string"},
        {"{\"prompt\":{\"role\":\"user\"},\"chosen\":\"a\",\"rejected\":\"b\"}", "\"content\""},
        {"{\"prompt\":\"x\",\"chosen\":[],\"rejected\":\"b\"}", "at least one message"},
        {"{\"prompt\":\"x\",\"chosen\":\"a\",\"rejected\":[\"b\",\"c\"]}", "want one response, found 2"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", "messages: want \"assistant\" as the last role"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"}]}", "want a \"prompt\", or a conversation"},
        {"{\"messages\":[\"x\",\"y\"]}", "messages: want \"assistant\" as the last role"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\"},{\"role\":\"user\",\"content\":\"x\"}]}",
         "want \"assistant\" as the last role"},
        {"{\"prompt\":\"y\",\"chosen\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":"
         "\"a\"}],\"rejected\":\"b\"}",
         "want the prompt before the answer"},
        {"{\"prompt\":\"x\",\"chosen\":[\"a\",\"b\"],\"rejected\":\"c\",\"weights\":[1,1]}",
         "weights: want an array of a number for each source, 1, found 2"},
        {"{\"prompt\":\"x\",\"chosen\":[\"a\",\"b\"],\"rejected\":\"c\",\"weights\":[-1]}",
         "weights: want a finite number of at least 0, found -1"},
        {"{\"prompt\":\"x\",\"chosen\":[\"a\",\"b\"],\"rejected\":\"c\",\"weights\":[0]}",
         "weights: want a positive sum"},
        {"{\"prompt\":\"x\",\"chosen\":\"a\",\"rejected\":\"c\",\"weights\":[1]}",
         "weights: want an array of a number for each source, 0"},
        {"{\"prompt\":\"x\",\"chosen\":[\"a\",\"b\"],\"rejected\":\"c\",\"weight\":1e999}",
         "weight: want a finite number"},
        {"{\"prompt\":\"x\",\"pairs\":[{\"chosen\":\"a\"}]}",
         "pairs: want \"chosen\" and \"rejected\", found no \"rejected\""},
        {"{\"prompt\":\"x\",\"pairs\":[]}", "pairs: want an array"},
        {"{\"prompt\":\"x\",\"pairs\":[{\"chosen\":[\"a\",\"b\"],\"rejected\":\"c\"}]}",
         "chosen: want one response, found 2"},
        {"{\"prompt\":\"x\",\"pairs\":[{\"chosen\":\"a\",\"rejected\":\"c\",\"weight\":1},{\"chosen\":\"a\","
         "\"rejected\":\"c\"}]}",
         "for all of them or for none"},
        {"{\"prompt\":\"x\",\"pairs\":[{\"chosen\":\"a\",\"rejected\":\"c\"}],\"chosen\":\"a\"}", "found several"},
        {"{\"messages\":[\"x\"],\"weights\":[1]}", "found no \"chosen\""},
        {"{\"prompt_id\":[],\"prompt\":\"x\",\"chosen\":\"a\",\"rejected\":\"b\"}", "prompt_id"},
        {"{\"prompt\":\"\xFF\",\"chosen\":\"a\",\"rejected\":\"b\"}", "data.jsonl:2:"}};
    for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++) {
        char text[600];
        const char *first = QUAD;  /* of the same format */
        if (strstr(bad[i].line, "\"messages\""))
            first = "{\"messages\":[\"x\",{\"role\":\"assistant\",\"content\":\"y\"}]}";
        if (strstr(bad[i].line, "\"pairs\""))
            first = "{\"prompt\":\"x\",\"pairs\":[{\"chosen\":\"a\",\"rejected\":\"b\"}]}";
        snprintf(text, sizeof text, "%s\n%s\n", first, bad[i].line);
        wrpo_data *data = load(tok, text, (wrpo_data_desc){0});
        const wrpo_error *e = wrpo_last_error(ctx);
        CHECK(!data && strstr(e->text, bad[i].says) && strstr(e->text, "data.jsonl:2") && e->line == 2,
              "refusal %d: %s", i, data ? "loaded" : e->text);
        wrpo_data_free(data);
    }
    CHECK(!load(tok, "\n\n", (wrpo_data_desc){0}) && strstr(wrpo_last_error(ctx)->text, "records"), "an empty file");
    CHECK(!load(tok, QUAD, (wrpo_data_desc){.max_length = 10, .max_prompt_length = 10}) &&
              strstr(wrpo_last_error(ctx)->text, "max_prompt_length"),
          "no room");
    wrpo_data *data;
    CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = "tmp_none.jsonl"}, &data) == WRPO_E_IO && !data,
          "a file that is not there");
    CHECK(wrpo_data_load(tok, &(wrpo_data_desc){0}, &data) == WRPO_E_ARG && !data, "no path");
    wrpo_tokenizer_free(tok);
    tok = tokenizer("\"{{ raise_exception('only in pairs') }}\"");
    CHECK(!load(tok, QUAD, (wrpo_data_desc){0}) && strstr(wrpo_last_error(ctx)->text, "only in pairs"), "%s",
          wrpo_last_error(ctx)->text);
    wrpo_tokenizer_free(tok);
    tok = tokenizer("null");
    CHECK(!load(tok, QUAD, (wrpo_data_desc){0}) && strstr(wrpo_last_error(ctx)->text, "chat template"), "%s",
          wrpo_last_error(ctx)->text);
    wrpo_tokenizer_free(tok);
    const wrpo_tokens none = {.ids = (const int32_t[]){1}, .count = 1, .first = 1};
    const wrpo_record empty = {.prompt_id = "x", .prompt = none.ids, .prompt_count = 1, .responses = &none, .count = 1};
    CHECK(wrpo_data_from_ids(ctx, &empty, 1, &data) == WRPO_E_ARG && !data, "ids without a scored token");
}

/* A part set aside for evaluation: the two parts are the file, a prompt is in one of them, and neither the template
   nor the order of the lines moves it. */
static bool split_has(const wrpo_data *data, const char *id) {
    for (int64_t i = 0; i < wrpo_data_count(data); i++)
        if (!strcmp(wrpo_data_record(data, i).prompt_id, id)) return true;
    return false;
}
static void splits(void) {
    enum { N = 400 };
    static char text[N * 120], back[N * 120];
    static bool held[N];
    static const char *const line =
        "{\"prompt_id\":%d,\"prompt\":\"question %d\",\"chosen\":\"%d\",\"rejected\":\"no\"}\n";
    size_t n = 0, m = 0;
    for (int i = 0; i < N; i++) {    /* two records of each prompt */
        const int k = N - 1 - i;
        n += (size_t)snprintf(text + n, sizeof text - n, line, i, i / 2, i);
        m += (size_t)snprintf(back + m, sizeof back - m, line, k, k / 2, k);
    }
    for (int turn = 0; turn < 2; turn++) {             /* then with another template and order */
        static const char *const other = "\"{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}\"";
        wrpo_tokenizer *tok = tokenizer(turn ? other : chatml);
        wrpo_data *part[2];
        for (int k = 0; k < 2; k++) {
            part[k] = load(tok, turn ? back : text, (wrpo_data_desc){.eval_split = 0.2, .eval_part = k});
            CHECK(part[k], "%s", wrpo_last_error(ctx)->text);
            if (!part[k]) return;
        }
        const int64_t count = wrpo_data_count(part[1]);
        CHECK(wrpo_data_count(part[0]) + count == N && count > N / 8 && count < N * 3 / 10, "%lld of %d are held out",
              (long long)count, N);
        for (int i = 0; i < N; i++) {
            char id[16];
            snprintf(id, sizeof id, "%d", i);
            const bool in = split_has(part[1], id);
            CHECK(in != split_has(part[0], id), "record %d is in both parts or in none", i);
            if (i % 2) CHECK(in == held[i - 1], "the prompt of records %d and %d is in both parts", i - 1, i);
            if (turn) CHECK(in == held[i], "record %d has moved", i);
            held[i] = in;
        }
        wrpo_data_free(part[0]);
        part[0] = load(tok, text, (wrpo_data_desc){.eval_split = 0.2, .limit = 100});
        wrpo_data_free(part[1]);
        part[1] = load(tok, text, (wrpo_data_desc){.eval_split = 0.2, .limit = 100, .eval_part = true});
        CHECK(wrpo_data_count(part[0]) + wrpo_data_count(part[1]) == 100, "the limit is of the file's records");
        wrpo_data_free(part[0]), wrpo_data_free(part[1]);
        static const struct { double split; bool part; const char *says;
        } bad[] = {{1, false, "eval_split: want a number in [0, 1), found 1"},
                   {-0.5, false, "eval_split: want a number in [0, 1)"},
                   {NAN, true, "eval_split: want a number in [0, 1)"},
                   {1e-9, true, "eval_split: want a share that leaves records in both parts of"}};
        for (int i = 0; i < 4; i++)
            CHECK(!load(tok, text, (wrpo_data_desc){.eval_split = bad[i].split, .eval_part = bad[i].part}) &&
                      strstr(wrpo_last_error(ctx)->text, bad[i].says), "split %d: %s", i, wrpo_last_error(ctx)->text);
        wrpo_tokenizer_free(tok);
    }
}
/* JSON in which ' stands for ". */
static const char *doubled(const char *text) {
    static char out[2000];
    size_t n = 0;
    for (; text[n]; n++) out[n] = text[n] == '\'' ? '"' : text[n];
    out[n] = 0;
    return out;
}

static void allocations(void) {
    wrpo_ctx *keep = ctx;
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &ctx) == WRPO_OK,
          "open");
    wrpo__unicode_of(ctx);                             /* its tables stay */
    for (int how = 0; how < 4; how++) {                /* clean, authors; every turn; packed, an array */
        const int64_t base = live;
        const wrpo_data_desc desc = {.path = at("data.jsonl"),
                                     .tokenization = how == 1 ? WRPO_TOKENIZATION_AUTHORS : WRPO_TOKENIZATION_CLEAN,
                                     .sft_on = how < 2 ? WRPO_SFT_ON_ANSWERS : WRPO_SFT_ON_ASSISTANT,
                                     .packing = how == 3};
        if (how > 1)
            tiny_put(dir, "data.jsonl",
                     doubled("[{'system':'s','conversations':[{'from':'human','value':'x'},{'from':'gpt','value':'y'},"
                             "{'from':'human','value':'z'},{'from':'gpt','value':'w'}]}]"));
        for (fail_at = 0; fail_at < 5000; fail_at++) {
            wrpo_tokenizer *tok;
            wrpo_data *data = NULL;
            calls = 0;
            wrpo_result r = wrpo_tokenizer_load(ctx, dir, &tok);
            if (r == WRPO_OK) r = wrpo_data_load(tok, &desc, &data);
            wrpo_data_free(data), wrpo_tokenizer_free(tok);
            if (live != base || (r != WRPO_OK && r != WRPO_E_MEMORY))
                CHECK(false, "allocation %lld: %d %s, %lld held", (long long)fail_at, r, wrpo_last_error(ctx)->text,
                      (long long)(live - base));
            if (r == WRPO_OK) break;
        }
        CHECK(fail_at > 30 && fail_at < 5000, "%lld allocations", (long long)fail_at);
        fail_at = -1;
    }
    wrpo_close(ctx);
    ctx = keep;
}
/* the property of the clean way, on every family: prompt + response = the rendered conversation up to its end */
static void real(void) {
    static const char *const pairs[][2] = {
        {"llama3", "llama3"},           {"llama3_2", "llama3_2"},    {"qwen2_5", "qwen2_5"},
        {"gemma2", "gemma2"},           {"phi-3-mini", "phi3_mini"}, {"mistral_v1", "mistral_v0_2"},
        {"mistral_v1", "mistral_wrpo"}, {"mistral_v1", "zephyr"},    {"qwen2_5", "chatml"}};
    static const char *const replies[] = {"Letter first.", " space first", "\\nnewline first",
                                          "\\ud83d\\ude00 emoji first", "two\\n\\nparagraphs\\n"};
    for (int i = 0; i < (int)(sizeof pairs / sizeof *pairs); i++) {
        char name[128], command[900];
        snprintf(name, sizeof name, "tokenizers/%s/tokenizer.json", pairs[i][0]);
        const char *json = test_shared(name);
        snprintf(name, sizeof name, "chat/%s.jinja", pairs[i][1]);
        const char *jinja = test_shared(name);
        if (!json || !jinja) { SKIP(5, "%s is absent", name); continue; }
        snprintf(command, sizeof command, "cp -f %s %s/tokenizer.json && cp -f %s %s/chat_template.jinja", json, dir,
                 jinja, dir);
        CHECK(system(command) == 0, "%s", command);
        bool bos = !strstr(pairs[i][0], "qwen"), llama = !strncmp(pairs[i][0], "llama3", 6),
             gemma = !strcmp(pairs[i][0], "gemma2");
        snprintf(command, sizeof command, "{%s%s%s\"eos_token\":\"%s\"}", bos ? "\"bos_token\":\"" : "",
                 bos ? (llama       ? "<|begin_of_text|>"
                            : gemma ? "<bos>"
                                    : "<s>")
                     : "",
                 bos ? "\"," : "",
                 llama       ? "<|eot_id|>"
                     : gemma ? "<eos>"
                     : bos   ? (strstr(pairs[i][0], "phi") ? "<|endoftext|>" : "</s>")
                             : "<|im_end|>");
        tiny_put(dir, "tokenizer_config.json", command);
        wrpo_tokenizer *tok;
        CHECK(wrpo_tokenizer_load(ctx, dir, &tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        if (!tok) continue;
        for (int k = 0; k < 5; k++) {
            char text[300];
            snprintf(text, sizeof text, "{\"prompt\":\"Hello there\",\"chosen\":\"%s\",\"rejected\":\"no\"}",
                     replies[k]);
            wrpo_data *data = load(tok, text, (wrpo_data_desc){0});
            CHECK(data, "%s: %s", pairs[i][1], wrpo_last_error(ctx)->text);
            if (!data) continue;
            wrpo_record r = wrpo_data_record(data, 0);
            const wrpo_tokens *y = &r.responses[0];
            int32_t ids[300], ends = 0;
            memcpy(ids, r.prompt, (size_t)r.prompt_count * 4),
                memcpy(ids + r.prompt_count, y->ids, (size_t)y->count * 4);
            char *joined, *prompt;
            size_t n, m;
            CHECK(!wrpo_tokenizer_decode(tok, ids, r.prompt_count + y->count, false, &joined, &n) &&
                      !wrpo_tokenizer_decode(tok, r.prompt, r.prompt_count, false, &prompt, &m),
                  "decode");
            const char *reply = strstr(joined,
                                       k == 0       ? "Letter first."
                                           : k == 1 ? "space first"
                                           : k == 2 ? "newline first"
                                           : k == 3 ? "\xF0\x9F\x98\x80 emoji first"
                                                    : "two\n\nparagraphs");
            CHECK(reply && m <= n && !memcmp(joined, prompt, m), "%s: \"%s\" does not go on from \"%s\"", pairs[i][1],
                  joined, prompt);
            for (int64_t j = 0; j < y->count; j++) ends += wrpo__is_special(tok, y->ids[j]);
            CHECK(ends == 1 && wrpo__is_special(tok, y->ids[y->count - 1]), "%s: %d special tokens in \"%s\"",
                  pairs[i][1], (int)ends, joined + m);
            wrpo_free(ctx, joined), wrpo_free(ctx, prompt);
            wrpo_data_free(data);
        }
        wrpo_tokenizer_free(tok);
    }
    remove(at("chat_template.jinja"));
}

/* An eos_token that only the vocabulary has is one token in a rendered text, ends an answer, and stands at the end of a
   response. */
static void named(void) {
    wrpo_tokenizer *tok;
    int32_t end = -1;
    tiny_put(dir, "tokenizer.json",
             "{\"added_tokens\":[],\"decoder\":{\"type\":\"Fuse\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"x\":0,"
             "\"y\":1,\"<\":2,\"/\":3,\"s\":4,\">\":5,\"</s>\":6,\":\":7},\"merges\":[]}}");
    tiny_put(dir, "tokenizer_config.json",
             "{\"eos_token\":\"</s>\",\"chat_template\":\"{% for m in messages %}{{ m.content }}{{ ':' if m.role == "
             "'user' else eos_token }}{% endfor %}\"}");
    CHECK(wrpo_tokenizer_load(ctx, dir, &tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    if (!tok) return;
    CHECK(wrpo__answer_end(tok, &end) == WRPO_OK && end == 6, "an answer ends with token %d", (int)end);
    wrpo_data *data = load(tok, "{\"prompt\":\"x\",\"chosen\":\"y\",\"rejected\":\"x\"}", (wrpo_data_desc){0});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        const wrpo_record r = wrpo_data_record(data, 0);
        CHECK(r.prompt_count == 2 && r.responses[0].count == 2 && r.responses[0].ids[0] == 1 &&
                  r.responses[0].ids[1] == 6,
              "%lld ids", (long long)r.responses[0].count);
    }
    wrpo_data_free(data);
    wrpo_tokenizer_free(tok);
}

/* Shapes of public data sets, to the ids of TRL (golden/data.py says what differs on purpose). */
static bool same_ids(const wrpo_json *want, int64_t from, const int32_t *ids, int64_t n) {
    const wrpo_json *v = want->child;
    if (want->count < from + n) return false;
    for (; from > 0; from--) v = v->next;
    for (int64_t i = 0; i < n; i++, v = v->next)
        if (v->integer != ids[i]) return false;
    return true;
}
/* What TRL has and we have not: what the template writes after the end token. */
static bool only_space(wrpo_tokenizer *tok, const wrpo_json *want, int64_t from) {
    int32_t *ids = golden_ids(want);
    char *text;
    size_t size;
    CHECK(wrpo_tokenizer_decode(tok, ids + from, want->count - from, false, &text, &size) == WRPO_OK, "decode");
    const bool space = strspn(text, " \n") == size;
    wrpo_free(ctx, text);
    free(ids);
    return space;
}
static void compare_pair(wrpo_tokenizer *tok, const char *name, const wrpo_record *r, const wrpo_json *want) {
    const wrpo_json *prompt = golden_get(want, "prompt"), *y = golden_get(want, "responses")->child;
    CHECK(r->prompt_count == prompt->count && same_ids(prompt, 0, r->prompt, r->prompt_count),
          "%s: prompt of %lld ids, TRL has %lld", name, (long long)r->prompt_count, (long long)prompt->count);
    CHECK(r->count == 2, "%s: %d responses", name, r->count);
    for (int k = 0; k < r->count && y; k++, y = y->next)
        CHECK(same_ids(y, 0, r->responses[k].ids, r->responses[k].count) && only_space(tok, y, r->responses[k].count),
              "%s: response %d of %lld ids, TRL has %lld", name, k, (long long)r->responses[k].count,
              (long long)y->count);
}
static void compare_sft(wrpo_tokenizer *tok, const char *name, const wrpo_record *r, const wrpo_json *want,
                        bool whole) {
    const wrpo_json *ids = golden_get(want, "ids"), *mark = golden_get(want, "scored")->child;
    const wrpo_tokens *y = &r->responses[0];
    const int64_t n = r->prompt_count + y->count;
    CHECK(same_ids(ids, 0, r->prompt, r->prompt_count) && same_ids(ids, r->prompt_count, y->ids, y->count),
          "%s: %lld ids differ from TRL's %lld", name, (long long)n, (long long)ids->count);
    CHECK(!whole || n == ids->count, "%s: %lld ids, TRL has %lld", name, (long long)n, (long long)ids->count);
    for (int64_t i = 0; i < ids->count; i++, mark = mark->next) {
        const int64_t j = i - r->prompt_count;
        const bool scored = j >= 0 && j < y->count && (!y->scored || y->scored[j]);
        if (i > 0 && scored != (bool)mark->integer && !(j >= y->count && only_space(tok, ids, n)))
            CHECK(false, "%s: id %lld is %s", name, (long long)i, scored ? "scored, not in TRL" : "not scored");
    }
}
static void published(void) {
    const wrpo_json *root = golden_read(ctx, "golden/data.json");
    char *text;
    for (const wrpo_json *c = golden_get(root, "cases")->child; c; c = c->next) {
        const char *name = golden_text(c, "name", "?"), *on = golden_text(c, "sft_on", "answers");
        const wrpo_json *template = golden_get(golden_get(root, "templates"), golden_text(c, "template", ""));
        const bool packing = wrpo_json_get(c, "packing") != NULL;
        wrpo_data_desc desc = {.packing = packing, .max_length = (int64_t)golden_number(c, "max_length", 0)};
        while (strcmp(wrpo_sft_on_name((int)desc.sft_on), on)) desc.sft_on++;
        CHECK(!wrpo_json_text(ctx, golden_get(root, "tokenizer"), &text), "tokenizer");
        tiny_put(dir, "tokenizer.json", text);
        wrpo_free(ctx, text);
        CHECK(!wrpo_json_quote(ctx, template->text, template->size, &text), "template");
        char *config = malloc(template->size * 6 + 200);
        sprintf(config, "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"chat_template\":%s}", text);
        tiny_put(dir, "tokenizer_config.json", config);
        free(config);
        wrpo_free(ctx, text);
        wrpo_tokenizer *tok;
        CHECK(!wrpo_tokenizer_load(ctx, dir, &tok), "%s", wrpo_last_error(ctx)->text);
        CHECK(!wrpo_json_text(ctx, golden_get(c, "lines"), &text), "lines");   /* an array is read as lines are */
        wrpo_data *data = load(tok, text, desc);
        wrpo_free(ctx, text);
        const wrpo_json *want = golden_get(c, "records");
        CHECK(data && wrpo_data_count(data) == want->count, "%s: %s", name,
              data ? "another number of records" : wrpo_last_error(ctx)->text);
        const wrpo_json *w = want->child;
        for (int64_t i = 0; data && w && i < wrpo_data_count(data); i++, w = w->next) {
            const wrpo_record r = wrpo_data_record(data, i);
            if (wrpo_json_get(w, "prompt")) compare_pair(tok, name, &r, w);
            else compare_sft(tok, name, &r, w, packing || desc.sft_on == WRPO_SFT_ON_ALL);
        }
        wrpo_data_free(data);
        wrpo_tokenizer_free(tok);
    }
    wrpo_json_free(ctx, (wrpo_json *)(uintptr_t)root);
}

#define HI "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
#define BRIEF "<|im_start|>system\nBe brief.<|im_end|>\n"
#define A "<|im_end|>"
/* What people bring, a file each. says: the prompt and the responses, or the refusal. */
static void brought(void) {
    static const struct { const char *name, *lines, *format, *says; wrpo_data_format is; } files[] = {
        {"a string as prompt beside conversations with a system turn",
         "{'prompt':'hi','chosen':[{'role':'system','content':'Be brief.'},{'role':'user','content':'hi'},"
         "{'role':'assistant','content':'Four.'}],'rejected':[{'role':'system','content':'Be brief.'},"
         "{'role':'user','content':'hi'},{'role':'assistant','content':'Five.'}]}", NULL,
         BRIEF HI "|Four." A "|Five." A, WRPO_DATA_FORMAT_PREFERENCE},
        {"prompt and completion", "{'prompt':'hi','completion':'Four.'}", NULL, HI "|Four." A,
         WRPO_DATA_FORMAT_PROMPT_COMPLETION},
        {"prompt and completion, messages",
         "{'prompt':[{'role':'user','content':'hi'}],'completion':"
         "[{'role':'assistant','content':'Four.'}]}", NULL, HI "|Four." A, WRPO_DATA_FORMAT_PROMPT_COMPLETION},
        {"explicit prompt, messages", "{'prompt':[{'role':'system','content':'Be brief.'},{'role':'user','content':"
         "'hi'}],'chosen':[{'role':'assistant','content':'Four.'}],'rejected':[{'role':'assistant','content':'No.'}]}",
         NULL, BRIEF HI "|Four." A "|No." A, WRPO_DATA_FORMAT_PREFERENCE},
        {"ShareGPT", "{'conversations':[{'from':'human','value':'hi'},{'from':'gpt','value':'Four.'}]}", NULL,
         HI "|Four." A, WRPO_DATA_FORMAT_SHAREGPT},
        {"ShareGPT, a system beside", "{'system':'Be brief.','conversations':[{'from':'human','value':'hi'},"
         "{'from':'gpt','value':'Four.'}]}", NULL, BRIEF HI "|Four." A, WRPO_DATA_FORMAT_SHAREGPT},
        {"ShareGPT, a pair", "{'conversations':[{'from':'human','value':'hi'}],'chosen':{'from':'gpt','value':'Four.'},"
         "'rejected':{'from':'gpt','value':'No.'}}", NULL, HI "|Four." A "|No." A, WRPO_DATA_FORMAT_SHAREGPT},
        {"ShareGPT's messages as a pair", "{'chosen':[{'from':'human','value':'hi'},{'from':'gpt','value':'Four.'}],"
         "'rejected':[{'from':'human','value':'hi'},{'from':'gpt','value':'No.'}]}", NULL, HI "|Four." A "|No." A,
         WRPO_DATA_FORMAT_PREFERENCE},
        {"messages and a pair", "{'messages':[{'role':'user','content':'hi'}],'chosen':'Four.','rejected':'No.'}", NULL,
         HI "|Four." A "|No." A, WRPO_DATA_FORMAT_MESSAGES},
        {"Alpaca", "{'instruction':'hi','input':'','output':'Four.'}", NULL, HI "|Four." A, WRPO_DATA_FORMAT_ALPACA},
        {"Alpaca, input and system", "{'instruction':'Add.','input':'2, 2','output':'4','system':'Be brief.'}", NULL,
         BRIEF "<|im_start|>user\nAdd.\n2, 2<|im_end|>\n<|im_start|>assistant\n|4" A, WRPO_DATA_FORMAT_ALPACA},
        {"Alpaca, a pair", "{'instruction':'hi','chosen':'Four.','rejected':'No.'}", NULL, HI "|Four." A "|No." A,
         WRPO_DATA_FORMAT_ALPACA},
        {"Orca, a pair", "{'system':'Be brief.','question':'hi','chosen':'Four.','rejected':'No.'}", NULL,
         BRIEF HI "|Four." A "|No." A, WRPO_DATA_FORMAT_ORCA},
        {"Orca", "{'system_prompt':'','question':'hi','response':'Four.'}", NULL, HI "|Four." A, WRPO_DATA_FORMAT_ORCA},
        {"a question and its context", "{'question':'How many?','context':'Four birds.','answer':'4'}", NULL,
         "<|im_start|>user\nHow many?\nFour birds.<|im_end|>\n<|im_start|>assistant\n|4" A, WRPO_DATA_FORMAT_ORCA},
        {"a system beside a prompt", "{'system':'Be brief.','prompt':'hi','chosen':'Four.','rejected':'No.'}", NULL,
         BRIEF HI "|Four." A "|No." A, WRPO_DATA_FORMAT_PREFERENCE},
        {"a system that the conversation has",
         "{'system':'Be brief.','prompt':[{'role':'system','content':'Be brief.'},"
         "{'role':'user','content':'hi'}],'chosen':'Four.','rejected':'No.'}", NULL, BRIEF HI "|Four." A "|No." A,
         WRPO_DATA_FORMAT_PREFERENCE},
        {"an array over several lines",
         "[\n  {\n    'prompt': 'hi',\n    'chosen': 'Four.',\n    'rejected': 'No.'\n  }\n"
         "]", NULL, HI "|Four." A "|No." A, WRPO_DATA_FORMAT_PREFERENCE},
        {"messages, though there is a pair", "{'prompt':'x','chosen':'a','rejected':'b','messages':[{'role':'user',"
         "'content':'hi'},{'role':'assistant','content':'Four.'}]}", "messages", HI "|Four." A,
         WRPO_DATA_FORMAT_MESSAGES},
        {"an instruction, though there is a prompt", "{'prompt':'x','instruction':'hi','output':'Four.'}", "alpaca",
         HI "|Four." A, WRPO_DATA_FORMAT_ALPACA},
        /* refused */
        {"two readings", "{'prompt':'x','instruction':'hi','output':'Four.'}", NULL,
         "!found those of prompt-completion "
         "(prompt and completion) and of alpaca (instruction and output): say which with --data-format", 0},
        {"two readings of a talk", "{'messages':[],'conversations':[]}", NULL,
         "!found those of messages (messages) and of sharegpt (conversations)", 0},
        {"two names of an answer", "{'prompt':'x','output':'a','response':'b'}", NULL,
         "!want \"output\" or \"response\", found both", 0},
        {"a file of two formats", "{'prompt':'x','completion':'y'}\n{'instruction':'x','output':'y'}", NULL,
         "!data.jsonl:2:1: record \"line 2\": want format prompt-completion (prompt and completion), as above, found "
         "alpaca", 0},
        {"pairs and a conversation",
         "{'prompt':'x','chosen':'a','rejected':'b'}\n{'messages':[{'role':'user','content':"
         "'x'},{'role':'assistant','content':'y'}]}", NULL, "!as above, found messages", 0},
        {"another format than forced", "{'instruction':'x','output':'y'}", "sharegpt",
         "!want conversations, the keys of format sharegpt, found \"instruction\", \"output\"", 0},
        {"no format", "{'text':'x','id':1}", NULL, "question and response; found \"text\", \"id\"", 0},
        {"an unknown speaker", "{'conversations':[{'from':'observer','value':'x'}]}", NULL,
         "!from: want human, gpt, system, user, assistant or tool, found \"observer\"", 0},
        {"another system in the conversation", "{'system':'x','prompt':[{'role':'system','content':'y'},{'role':'user',"
         "'content':'x'}],'chosen':'a','rejected':'b'}", NULL, "!system: want the text of the system's turn", 0},
        {"Alpaca's history", "{'instruction':'x','output':'y','history':[['a','b']]}", NULL, "!history: want none", 0},
        {"KTO", "{'prompt':'x','completion':'y','label':true}", NULL, "!label: want none, or pairs", 0},
        {"several turns in one completion", "{'prompt':'x','completion':[{'role':'assistant','content':'a'},{'role':"
         "'user','content':'b'},{'role':'assistant','content':'c'}]}", NULL, "!want the prompt before the answer", 0},
        {"an array's second record", "[\n{'prompt':'x','completion':'y'},\n{'prompt':\n3,'completion':'y'}]", NULL,
         "!data.jsonl:4:1: record \"line 3\": prompt: want a string", 0},
        {"an array that ends early", "[{'prompt':'x','completion':'y'}", NULL, "!want ',' or ']'", 0}};
    wrpo_tokenizer *tok = tokenizer(chatml);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        wrpo_data_desc desc = {0};
        while (files[i].format && strcmp(wrpo_data_format_name((int)desc.format), files[i].format)) desc.format++;
        wrpo_data *data = load(tok, doubled(files[i].lines), desc);
        char found[2000] = "";
        if (!data) {
            snprintf(found, sizeof found, "!%s", wrpo_last_error(ctx)->text);
            CHECK(strstr(found, files[i].says + (files[i].says[0] == '!')), "%s: want \"%s\", found \"%s\"",
                  files[i].name, files[i].says, found);
            continue;
        }
        const wrpo_record r = wrpo_data_record(data, 0);
        for (int k = -1; k < r.count; k++) {
            char *text;
            size_t size;
            CHECK(!wrpo_tokenizer_decode(tok, k < 0 ? r.prompt : r.responses[k].ids,
                                         k < 0 ? r.prompt_count : r.responses[k].count, false, &text, &size), "decode");
            strcat(strcat(found, k < 0 ? "" : "|"), text);
            wrpo_free(ctx, text);
        }
        CHECK(!strcmp(found, files[i].says) && wrpo_data_get_stats(data).format == files[i].is,
              "%s: want \"%s\", found \"%s\" of format %s", files[i].name, files[i].says, found,
              wrpo_data_format_name((int)wrpo_data_get_stats(data).format));
        wrpo_data_free(data);
    }
    static const char *const shared[] = {"alpaca.jsonl", "json_array.json", "null_keys.jsonl", "orca.jsonl",
                                         "prefilled_think/records.jsonl", "prompt_completion.jsonl",
                                         "prompt_completion_messages.jsonl", "prompt_string_and_conversations.jsonl",
                                         "sharegpt.jsonl", "trl_explicit.jsonl"};
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++) {
        char name[100];
        wrpo_data *data;
        snprintf(name, sizeof name, "cases/%s", shared[i]);
        const char *path = test_shared(name);
        if (!path) { SKIP(1, "%s is absent", name); continue; }
        CHECK(!wrpo_data_load(tok, &(wrpo_data_desc){.path = path}, &data) && wrpo_data_count(data) == 1, "%s: %s",
              name, wrpo_last_error(ctx)->text);
        wrpo_data_free(data);
    }
    static const char *const kinds[][2] = {{"PAR1x", "parquet"}, {"ARROW1xx", "Arrow"}, {"\xFF\xFF\xFF\xFFx", "Arrow"},
                                           {"\x1F\x8Bx", "gzip"}, {"\x28\xB5\x2F\xFDx", "zstd"}, {"PK\3\4x", "zip"}};
    CHECK(!load(tok, "\x1c", (wrpo_data_desc){0}), "a line of a control character");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char want[100];
        snprintf(want, sizeof want, "want JSON lines, found %s: convert it with", kinds[i][1]);
        CHECK(!load(tok, kinds[i][0], (wrpo_data_desc){0}) && strstr(wrpo_last_error(ctx)->text, want), "%s: %s",
              kinds[i][1], wrpo_last_error(ctx)->text);
    }
    wrpo_tokenizer_free(tok);
}

/* Keys that are null do not reach the template; tools as JSON in a string do. */
static void null_keys(void) {
    wrpo_tokenizer *tok = tokenizer("\"{% for t in tools or [] %}{{ t.name }};{% endfor %}{% for m in messages %}"
                                    "{% for key in m %}{{ key }},{% endfor %}{{ m.content }}</s>{% endfor %}"
                                    "{% if add_generation_prompt %}role,content,{% endif %}\"");
    wrpo_data *data = load(tok, doubled("{'prompt':[{'role':'user','content':'Hi','tool_calls':null,'name':null}],"
                                        "'chosen':[{'role':'assistant','content':'Yo','tool_calls':null}],'rejected':"
                                        "[{'role':'assistant','content':'No','tool_calls':null}],"
                                        "'tools':'[{\\'name\\':\\'add\\'}]'}"), (wrpo_data_desc){0});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (!data) return;
    const wrpo_record r = wrpo_data_record(data, 0);
    is(tok, r.prompt, r.prompt_count, "add;role,content,Hi</s>role,content,", "null keys: prompt");
    is(tok, r.responses[0].ids, r.responses[0].count, "Yo</s>", "null keys: answer");
    wrpo_data_free(data);
    wrpo_tokenizer_free(tok);
}

/* The turn of the system that the desc puts where a record has none, in training and in generation. */
static void system_messages(void) {
    static const char plain_template[] = "\"{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
                                         "{% if add_generation_prompt %}assistant:{% endif %}\"";
    static const char none[] = "{'prompt':'hi','chosen':'Yo','rejected':'No'}",
                      own[] = "{'system':'Be brief.','prompt':'hi','chosen':'Yo','rejected':'No'}",
                      empty[] = "{'system':'','prompt':'hi','chosen':'Yo','rejected':'No'}";
    static const struct { const char *of, *record, *message, *want; } cases[] = {
        {chatml, none, NULL, HI}, {chatml, none, "", "<|im_start|>system\n<|im_end|>\n" HI},
        {chatml, none, "Be brief.", BRIEF HI}, {chatml, own, "", BRIEF HI}, {chatml, own, "Be long.", BRIEF HI},
        {chatml, empty, "Be brief.", BRIEF HI},
        {plain_template, none, "", "user:hi</s>assistant:"},       /* it knows of no system: no empty turn */
        {plain_template, none, "S", "system:S</s>user:hi</s>assistant:"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        wrpo_tokenizer *tok = tokenizer(cases[i].of);
        wrpo_data *data = load(tok, doubled(cases[i].record), (wrpo_data_desc){.system_message = cases[i].message});
        CHECK(data, "system message %d: %s", (int)i, wrpo_last_error(ctx)->text);
        if (!data) continue;
        const wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.prompt, r.prompt_count, cases[i].want, "system message");
        wrpo_json *json;
        int32_t *ids = NULL;
        int64_t n = 0;
        CHECK(!wrpo_json_parse(ctx, "p", doubled(cases[i].record), strlen(cases[i].record), &json), "json");
        CHECK(!wrpo_tokenizer_prompt(tok, &(wrpo_tokenizer_prompt_desc){.system_message = cases[i].message}, json, &ids,
                                     &n) && n == r.prompt_count && !memcmp(ids, r.prompt, (size_t)n * sizeof *ids),
              "system message %d: generation and training differ", (int)i);
        wrpo_free(ctx, ids);
        ids = NULL;
        CHECK(wrpo_tokenizer_prompt(tok, &(wrpo_tokenizer_prompt_desc){.raw = true, .system_message = "S"}, json, &ids,
                                    &n) == WRPO_E_FORMAT &&
                  strstr(wrpo_last_error(ctx)->text, "raw prompt: want no system_message"),
              "raw: %s", wrpo_last_error(ctx)->text);
        wrpo_json_free(ctx, json);
        wrpo_data_free(data);
        wrpo_tokenizer_free(tok);
    }
}

/* A generation prompt that the conversation does not have, and reasoning that the template drops. */
static char heard[2000];
static void hear(wrpo_level level, const char *text, void *user) {
    (void)level, (void)user;
    snprintf(heard, sizeof heard, "%s", text);
}
static void open_block(void) {
    static const char think[] = "\"{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n"
                                "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n<think>\\n"
                                "{% endif %}\"";
    static const char drops[] = "\"{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content.split('</think>')[-1]"
                                " }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n"
                                "{% endif %}\"";
    static const struct { const char *template_json, *chosen, *rejected, *prompt, *want[2], *says; } cases[] = {
        {think, "four", "<think>\\nhm\\n</think>\\nfive", HI, {"four" A, "<think>\nhm\n</think>\nfive" A},
         "1 of 1 records lose \"<think>\\n\": the chat template writes it before an answer only at inference"},
        {think, "<think>\\na\\n</think>\\nfour", "<think>\\nhm\\n</think>\\nfive", HI "<think>\n",
         {"a\n</think>\nfour" A, "hm\n</think>\nfive" A}, ""},
        {think, "a\\n</think>\\nfour", "hm\\n</think>\\nfive", HI "<think>\n",   /* as a model says it */
         {"a\n</think>\nfour" A, "hm\n</think>\nfive" A}, ""},
        {drops, "<think>a</think>four", "five", "<|im_start|>user\nhi<|im_end|><|im_start|>assistant\n",
         {"four" A, "five" A}, "1 of 2 answers are not shown whole by the chat template"}};
    wrpo_ctx *keep = ctx;
    CHECK(wrpo_open(&(wrpo_desc){.threads = 1, .log.fn = hear}, &ctx) == WRPO_OK, "open");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400];
        wrpo_tokenizer *tok = tokenizer(cases[i].template_json);
        heard[0] = 0;
        snprintf(text, sizeof text, "{\"prompt\":\"hi\",\"chosen\":\"%s\",\"rejected\":\"%s\"}", cases[i].chosen,
                 cases[i].rejected);
        wrpo_data *data = load(tok, text, (wrpo_data_desc){0});
        CHECK(data, "open block %d: %s", (int)i, wrpo_last_error(ctx)->text);
        if (!data) continue;
        const wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.prompt, r.prompt_count, cases[i].prompt, "open block: prompt");
        for (int k = 0; k < 2; k++)
            is(tok, r.responses[k].ids, r.responses[k].count, cases[i].want[k], "open block: response");
        CHECK(*cases[i].says ? strstr(heard, cases[i].says) != NULL : !*heard, "open block %d: \"%s\"", (int)i, heard);
        wrpo_data_free(data);
        wrpo_tokenizer_free(tok);
    }
    wrpo_close(ctx);
    ctx = keep;
}

/* The day is the context's: a template shows it, whatever the clock says. */
static void day(void) {
    wrpo_tokenizer *tok = tokenizer("\"{{ strftime_now('%d %b %Y %H:%M') }} {% for m in messages %}{{ m.content }}</s>"
                                    "{% endfor %}\"");
    static const char *const bad[] = {"", "2026-2-3", "2026-02-30", "2026-13-01", "26-01-01", "2026-01-01x", "today"};
    const char *today = wrpo_get_date(ctx);
    CHECK(strlen(today) == 10, "%s", today);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(wrpo_set_date(ctx, bad[i]) == WRPO_E_ARG && strstr(wrpo_last_error(ctx)->text, "date: want a day such as "
              "2026-11-29"), "the day \"%s\"", bad[i]);
    CHECK(!wrpo_set_date(ctx, "2024-02-29") && !strcmp(wrpo_get_date(ctx), "2024-02-29"), "a day");
    wrpo_data *data = load(tok, "{\"prompt\":\"hi\",\"chosen\":\"a\",\"rejected\":\"b\"}", (wrpo_data_desc){0});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        const wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.prompt, r.prompt_count, "29 Feb 2024 12:00 hi</s>", "the day in a prompt");
    }
    wrpo_data_free(data);
    CHECK(!wrpo_set_date(ctx, NULL), "today");
    wrpo_tokenizer_free(tok);
}

/* sft_on and packing, beside golden/data.json: what cannot be, and what is left out. */
static void sft(void) {
    wrpo_tokenizer *tok = tokenizer(chatml);
    static const struct { wrpo_data_desc desc; const char *says; } bad[] = {
        {{.sft_on = WRPO_SFT_ON_ALL}, "sft_on, packing: want records of one conversation, found chosen and rejected"},
        {{.packing = true}, "sft_on, packing: want records of one conversation"},
        {{.sft_on = (wrpo_sft_on)3}, "sft_on"}, {{.format = (wrpo_data_format)99}, "format"},
        {{.packing = true, .tokenization = WRPO_TOKENIZATION_AUTHORS}, "want the clean tokenization"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!load(tok, QUAD, bad[i].desc) && strstr(wrpo_last_error(ctx)->text, bad[i].says), "sft %d: %s", (int)i,
              wrpo_last_error(ctx)->text);
    const char *talk = "{'messages':[{'role':'user','content':'abcdefgh'},{'role':'assistant','content':'x'}]}";
    CHECK(!load(tok, doubled(talk), (wrpo_data_desc){.sft_on = WRPO_SFT_ON_ASSISTANT, .max_length = 8}) &&
              strstr(wrpo_last_error(ctx)->text, "no record has a scored token within 8"), "%s",
          wrpo_last_error(ctx)->text);
    wrpo_data *data = load(tok, doubled(talk), (wrpo_data_desc){.sft_on = WRPO_SFT_ON_ALL});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {              /* the first token has nothing before it */
        const wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.prompt, r.prompt_count, "<|im_start|>", "all: prompt");
        is(tok, r.responses[0].ids, r.responses[0].count,
           "user\nabcdefgh<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n", "all: response");
        CHECK(!r.responses[0].scored, "all are scored");
    }
    wrpo_data_free(data);
    /* Every turn: the last may be a user's, and a call of a tool has no text. */
    wrpo_tokenizer_free(tok);
    tok = tokenizer("\"{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% for t in m.tool_calls or "
                    "[] %}{{ t.name }}{% endfor %};{% endgeneration %}{% endfor %}\"");
    data = load(tok, doubled("{'conversation':[{'role':'user','content':'x'},{'role':'assistant','content':null,"
                             "'tool_calls':[{'name':'f'}]},{'role':'tool','content':'1'}]}"),
                (wrpo_data_desc){.sft_on = WRPO_SFT_ON_ALL});
    CHECK(data && wrpo_data_get_stats(data).format == WRPO_DATA_FORMAT_SHAREGPT, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        const wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.responses[0].ids, r.responses[0].count, "ser:x;assistant:f;tool:1;", "a call of a tool");
    }
    wrpo_data_free(data);
    wrpo_tokenizer_free(tok);
    tok = tokenizer(chatml);
    data = load(tok, doubled("{'messages':[{'role':'user','content':'x'},{'role':'assistant','content':'y'},{'role':"
                             "'user','content':'z'}]}"), (wrpo_data_desc){.sft_on = WRPO_SFT_ON_ASSISTANT});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        const wrpo_record r = wrpo_data_record(data, 0);
        is(tok, r.responses[0].ids, r.responses[0].count, "y<|im_end|>", "a user has the last word");
    }
    wrpo_data_free(data);
    wrpo_tokenizer_free(tok);
    /* A template whose turns end in no token of their own: of a turn that another follows, its text alone. */
    tok = tokenizer("\"{% for m in messages %}{{ m.role }}: {{ m.content }}. {% endfor %}{% if add_generation_prompt %}"
                    "assistant: {% endif %}\"");
    data = load(tok, doubled("{'messages':[{'role':'user','content':'x'},{'role':'assistant','content':'yes'},{'role':"
                             "'user','content':'z'},{'role':'assistant','content':'no'}]}"),
                (wrpo_data_desc){.sft_on = WRPO_SFT_ON_ASSISTANT});
    CHECK(data, "%s", wrpo_last_error(ctx)->text);
    if (data) {
        const wrpo_tokens *y = wrpo_data_record(data, 0).responses;
        char scored[100] = "";
        for (int64_t i = 0; i < y->count; i++) scored[i] = y->scored && !y->scored[i] ? '-' : (char)y->ids[i];
        CHECK(!strcmp(scored, "yes----------------------no. "), "turns without end tokens: \"%s\"", scored);
    }
    wrpo_data_free(data);
    wrpo_tokenizer_free(tok);
}

int main(void) {
    snprintf(dir, sizeof dir, "tmp_data_%ld", (long)getpid());
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 2;
    char command[100];
    snprintf(command, sizeof command, "mkdir -p %s", dir);
    CHECK(system(command) == 0, "mkdir");
    forms(), endings(), cut(), refusals(), splits();
    tiny_tokenizer(dir, chatml), tiny_put(dir, "data.jsonl", QUAD "\n" QUAD "\n");
    allocations();
    named();
    published();
    brought();
    null_keys();
    system_messages();
    open_block();
    day();
    sft();
    real();
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0, "rm");
    CHECK(bytes_left(ctx) == sizeof(wrpo__arena), "%zu bytes still held", ctx->bytes);
    wrpo_close(ctx);
    return test_end("data");
}
