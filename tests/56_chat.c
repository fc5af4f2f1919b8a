/* Chat templates: snippets against jinja2 (golden/templates.json), limits on hostile ones, real templates where they
   are at hand. */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/counting.h"

static wrpo_ctx *ctx;
static wrpo_json *read_json(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    wrpo_json *root = NULL;
    char *text = malloc(1 << 24);
    size_t n = fread(text, 1, 1 << 24, f);
    fclose(f);
    CHECK(wrpo_json_parse(ctx, path, text, n, &root) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    free(text);
    return root;
}
/* A tokenizer that has this template and nothing else of interest. */
static wrpo_tokenizer template_of(wrpo__arena *arena, const char *text, size_t size) {
    wrpo_tokenizer tok = {.ctx = ctx, .arena = arena, .dir = "here", .special = {"<s>"}, .bos = -1, .eos = -1};
    tok.chat[0].text = text, tok.chat[0].size = size;
    return tok;
}
static void snippets(void) {
    wrpo_json *golden = read_json("golden/templates.json");
    CHECK(golden, "golden/templates.json is absent");
    if (!golden) return;
    const wrpo_json *context = wrpo_json_get(golden, "context"), *messages = wrpo_json_get(context, "messages");
    for (const wrpo_json *s = wrpo_json_get(golden, "snippets")->child; s; s = s->next) {
        const wrpo_json *t = wrpo_json_get(s, "template"), *want = wrpo_json_get(s, "text"),
                        *refused = wrpo_json_get(s, "refused");
        wrpo__arena *arena = wrpo__arena_new(ctx);
        wrpo_tokenizer tok = template_of(arena, t->text, t->size);
        char *text;
        size_t size;
        for (int twice = 0; twice < 2; twice++) {      /* compiled, then from its cache */
            wrpo_result r = wrpo_tokenizer_chat(&tok, messages, true, context, &text, &size);
            if (refused)
                CHECK(r == WRPO_E_UNSUPPORTED && !text && strstr(wrpo_last_error(ctx)->text, refused->text),
                      "%s: %d %s", t->text, r, wrpo_last_error(ctx)->text);
            else if (want)
                CHECK(r == WRPO_OK && size == want->size && !memcmp(text, want->text, size),
                      "%s\n   want %s\n   found %s", t->text, want->text, r ? wrpo_last_error(ctx)->text : text);
            else
                CHECK(r == WRPO_E_FORMAT || r == WRPO_E_UNSUPPORTED, "%s: want an error, found \"%s\"", t->text,
                      text ? text : "");
            wrpo_free(ctx, text);
        }
        wrpo__arena_free(arena);
    }
    wrpo_json_free(ctx, golden);
}
#define DOUBLED "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
#define GROWN "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(13) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
static void limits(void) {
    static char deep[200000], nots[200000], blocks[200000], chain[200000], sum[200000];
    memset(deep, '(', 60000), memcpy(deep, "{{ ", 3), deep[60000] = '1';
    memset(deep + 60001, ')', 59997), strcpy(deep + 119998, " }}");
    strcpy(nots, "{{ "), strcpy(chain, "{{ a"), strcpy(sum, "{{ 1");
    for (int i = 0; i < 15000; i++)
        memcpy(nots + 3 + 4 * i, i < 7000 ? "not " : " -  ", 4), memcpy(blocks + 11 * i, "{% if 1 -%}", 11);
    for (int i = 0; i < 30000; i++) memcpy(chain + 4 + 5 * i, "|trim", 5), memcpy(sum + 4 + 2 * i, "~1", 2);
    strcpy(nots + 3 + 4 * 15000, "1 }}");
    strcpy(chain + 4 + 5 * 30000, " }}"), strcpy(sum + 4 + 2 * 30000, " }}");
    const struct { const char *text, *says;
    } bad[] = {{"{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}", ""},
               {deep, "deep"},
               {"{% if x", ""},
               {"{{ 'open }}", ""},
               {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ""},
               {"{% for a in messages %}{% set ns.x = 1 %}{% endfor %}", ""},
               {"{{ 1 / 0 }}", "line 1"},
               {"\n\n{{ nothing.here }}", "line 3"},
               {"{{ raise_exception('my words') }}", "my words"},
               {"{% include 'x' %}", "include"},
               {"{% endfor %}", ""},
               {"{{ 'a' * 999999999 }}", ""},
               {nots, "deep"},
               {blocks, "deep"},
               {chain, "deep"},
               {sum, "deep"},
               {DOUBLED "{{ ns.x }}", "too much"},
               {GROWN "{{ ns.x|replace('a', ns.x) }}", "too much"},
               {GROWN "{{ range(99999)|join(ns.x) }}", "too much"},
               {GROWN "{% set ns.l = ns.x|list %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
                "too much"},
               {GROWN "{% set ns.l = (ns.x ~ '\n') * 9999 %}{{ ns.l|indent(ns.x) }}", "too much"},
               {"{{ messages|tojson(indent=99999999) }}", ""},
               {"{% for a in range(99999) %}{% set x = 'a' * 99999 %}{% endfor %}", ""},
               {"{% for a in range(9999) %}{{ 'x' * 99999 in 'x' * 99998 ~ 'y' }}{% endfor %}", ""},
               {"{{ 4503599627370496 + 1 }}", "an integer of more than 52 bits is not supported"},
               {"{{ 4503599627370495 * 2 }}", "an integer of more than 52 bits is not supported"},
               {"{{ -'a' }}", "want a number, found str"},
               {"{% for m in messages %}{{ loop.depth }}{% endfor %}", "loop.depth is not supported"},
               {"{{ 'a\x0B'|indent }}", "the line end U+000B is not supported"},
               {"a\xFF", "chat template: not UTF-8 at byte 1"},
               {"\n{% if true\n%}\n{{ 1 }}\n{% if x %}", "line 5: want elif else endif"},
               {"\n{{ 1\n~ }}\n", "line 3: want an expression"},
               {"\n{# 1\n }", "line 2: a comment without its end"},
               {"\n{{ 1\n ", "line 2: a tag without its end"},
               {"{% set x, y = 'a' %}", "too few values to unpack: 1"},
               {"{% set x, y = 'abc' %}", "too many values to unpack: 3"},
               {"{% for x, (y, z) in [[1, [2]]] %}{% endfor %}", "too few values to unpack: 1"},
               {"{{ 'a'.endswith('a', 1) }}", "endswith() with other arguments"},
               {"{{ strftime_now('%z') }}", "strftime_now(\"%z\") is not supported"}};
    wrpo_json *messages;
    const char *m = "[{\"role\":\"user\",\"content\":\"x\"}]";
    CHECK(wrpo_json_parse(ctx, "m", m, strlen(m), &messages) == WRPO_OK, "messages");
    for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++) {
        wrpo__arena *arena = wrpo__arena_new(ctx);
        wrpo_tokenizer tok = template_of(arena, bad[i].text, strlen(bad[i].text));
        char *text;
        size_t size;
        wrpo_result r = wrpo_tokenizer_chat(&tok, messages, true, NULL, &text, &size);
        CHECK(r != WRPO_OK && !text && strstr(wrpo_last_error(ctx)->text, bad[i].says), "template %d: %d %s", i, r,
              r ? wrpo_last_error(ctx)->text : "rendered");
        wrpo__arena_free(arena);
    }
    wrpo_json_free(ctx, messages);
}
static void real(void) {
    const char *path = test_shared("chat/index.json");
    if (!path) { SKIP(700, "chat/index.json is absent"); return; }
    wrpo_json *index = read_json(path);
    for (const wrpo_json *e = index->child; e; e = e->next) {
        char name[128];
        snprintf(name, sizeof name, "chat/%s.chat.jsonl", e->key);
        path = test_shared(name);
        FILE *f = path ? fopen(path, "rb") : NULL;
        if (!f) { SKIP(50, "%s is absent", name); continue; }
        const wrpo_json *t = wrpo_json_get(e, "template"), *bos = wrpo_json_get(e, "bos_token"),
                        *eos = wrpo_json_get(e, "eos_token");
        wrpo__arena *arena = wrpo__arena_new(ctx);
        wrpo_tokenizer tok = template_of(arena, t->text, t->size);
        tok.special[0] = bos && bos->kind == WRPO_JSON_STRING ? bos->text : NULL,
        tok.special[1] = eos && eos->kind == WRPO_JSON_STRING ? eos->text : NULL;
        static char line[1 << 18];
        int lines = 0;
        while (fgets(line, sizeof line, f)) {
            wrpo_json *v;
            char *text;
            size_t size;
            CHECK(wrpo_json_parse(ctx, name, line, strlen(line), &v) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
            const wrpo_json *want = wrpo_json_get(v, "text"), *gen = wrpo_json_get(v, "add_generation_prompt");
            wrpo_result r = wrpo_tokenizer_chat(&tok, wrpo_json_get(v, "messages"), gen && gen->boolean,
                                                wrpo_json_get(v, "kwargs"), &text, &size);
            CHECK(want ? r == WRPO_OK && size == want->size && !memcmp(text, want->text, size) : r != WRPO_OK,
                  "%s line %d: %s", name, lines + 1, r ? wrpo_last_error(ctx)->text : text);
            wrpo_free(ctx, text), wrpo_json_free(ctx, v);
            lines++;
        }
        CHECK(lines > 0, "%s is empty", name);
        fclose(f);
        wrpo__arena_free(arena);
    }
    wrpo_json_free(ctx, index);
}
/* What needs more than a context of JSON: names for a message's reasoning, today's date, text in the making inside of
   other text, a template that failed once. */
static void shown(void) {
    static const struct { const char *text, *want; } good[] = {
        {"{{ messages[0] }}", "{'thinking': 'why', 'role': 'user', 'reasoning': 'why', 'reasoning_content': 'why'}"},
        {"{{ messages[1] }}", "{'role': 'user'}"},
        {"{{ 'a%b'|replace('%b', strftime_now('%%')) }}{{ strftime_now('%Y')|length }}", "a%4"},
        {"{% macro f(x) %}<{{ x ~ ('b'|upper ~ 'c') }}>{% endmacro %}1{{ f('a' ~ f('')) ~ '2' }}3", "1<a<Bc>Bc>23"},
        {"{% set x %}{{ ['a', 'b']|map('upper')|join('-') }}{% endset %}{{ x * 2 }}{{ ''.join(['']) }}", "A-BA-B"},
        {"{% for a, (b, c), d in [[1, [2, 3], 4]] %}{{ [a, b, c, d] }}{% endfor %}", "[1, 2, 3, 4]"},
        {"{{ 4503599627370495 - -0 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ -0.0 }}",
         "4503599627370495 -4 2 -2 -0.0"},
        {"{{ [3, 1, 2] + [0] }}{{ ([3, 1] + [])|sort }}{{ [] + [] }}{{ ('c', 'B', 'a')|sort(reverse=true) }}",
         "[3, 1, 2, 0][1, 3][]['c', 'B', 'a']"}};
    wrpo_json *messages;
    const char *m = "[{\"role\":\"user\",\"reasoning\":\"why\"},{\"role\":\"user\",\"thinking\":null}]";
    CHECK(wrpo_json_parse(ctx, "m", m, strlen(m), &messages) == WRPO_OK, "messages");
    for (int i = 0; i < (int)(sizeof good / sizeof *good); i++) {
        wrpo__arena *arena = wrpo__arena_new(ctx);
        wrpo_tokenizer tok = template_of(arena, good[i].text, strlen(good[i].text));
        char *text;
        size_t size;
        const wrpo_result r = wrpo_tokenizer_chat(&tok, messages, true, NULL, &text, &size);
        CHECK(r == WRPO_OK && !strcmp(text, good[i].want) && size == strlen(text), "%s\n   found %s", good[i].text,
              r ? wrpo_last_error(ctx)->text : text);
        wrpo_free(ctx, text);
        wrpo__arena_free(arena);
    }
    wrpo_json_free(ctx, messages);
}
/* Every allocation of compiling and rendering fails once. */
static void allocations(void) {
    wrpo_ctx *keep = ctx;
    const char *text = "{% macro f(x, y=2) %}{{ x ~ y }}{% endmacro %}{% for m in messages if m.role != 'z' %}{{ "
                       "f(m.content|upper) }}{{ m|tojson(indent=1) }}{{ [1, 2]|join(',') }}{% endfor %}";
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &ctx) == WRPO_OK,
          "open");
    wrpo_json *messages;
    const char *m = "[{\"role\":\"user\",\"content\":\"hello\"},{\"role\":\"z\",\"content\":\"x\"}]";
    CHECK(wrpo_json_parse(ctx, "m", m, strlen(m), &messages) == WRPO_OK, "messages");
    const int64_t base = live;
    for (fail_at = 0; fail_at < 5000; fail_at++) {
        calls = 0;
        wrpo__arena *arena = wrpo__arena_new(ctx);
        wrpo_result r = WRPO_E_MEMORY;
        char *out = NULL;
        size_t size;
        if (arena) {
            wrpo_tokenizer tok = template_of(arena, text, strlen(text));
            r = wrpo_tokenizer_chat(&tok, messages, false, NULL, &out, &size);
        }
        wrpo_free(ctx, out), wrpo__arena_free(arena);
        if (live != base || (r != WRPO_OK && r != WRPO_E_MEMORY))
            CHECK(false, "allocation %lld: %d %s, %lld held", (long long)fail_at, r, wrpo_last_error(ctx)->text,
                  (long long)(live - base));
        if (r == WRPO_OK) break;
    }
    CHECK(fail_at > 5 && fail_at < 5000, "%lld allocations", (long long)fail_at);
    wrpo_json_free(ctx, messages);
    wrpo_close(ctx);
    ctx = keep;
}
int main(void) {
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 2;
    snippets(), limits(), shown(), allocations(), real();
    {   /* without a template: a sentence that names the folder */
        wrpo__arena *arena = wrpo__arena_new(ctx);
        wrpo_tokenizer tok = template_of(arena, NULL, 0);
        char *text;
        size_t size;
        wrpo_json *m;
        CHECK(wrpo_json_parse(ctx, "m", "[]", 2, &m) == WRPO_OK, "[]");
        CHECK(wrpo_tokenizer_chat(&tok, m, true, NULL, &text, &size) == WRPO_E_FORMAT &&
                  strstr(wrpo_last_error(ctx)->text, "here: no chat template"),
              "%s", wrpo_last_error(ctx)->text);
        wrpo_json_free(ctx, m);
        wrpo__arena_free(arena);
    }
    {   /* numbers that JSON holds and the interpreter does not */
        static const struct { const char *kwargs, *says; } big[] = {
            {"{\"x\":123456789012345678901}", "the integer 123456789012345678901 is not supported"},
            {"{\"x\":[1e999]}", "beyond the range of a double is not supported"}};
        wrpo__arena *arena = wrpo__arena_new(ctx);
        wrpo_tokenizer tok = template_of(arena, "{{ x }}", 7);
        for (int k = 0; k < 2; k++) {
            const char *kw = big[k].kwargs;
            wrpo_json *m, *kwargs;
            char *text;
            size_t size;
            CHECK(!wrpo_json_parse(ctx, "m", "[]", 2, &m) && !wrpo_json_parse(ctx, "k", kw, strlen(kw), &kwargs),
                  "JSON");
            const wrpo_result r = wrpo_tokenizer_chat(&tok, m, true, kwargs, &text, &size);
            const char *found = wrpo_last_error(ctx)->text;
            CHECK(r == WRPO_E_UNSUPPORTED && strstr(found, big[k].says), "%s: %s", kw, found);
            wrpo_json_free(ctx, m), wrpo_json_free(ctx, kwargs);
        }
        wrpo__arena_free(arena);
    }
    /* two templates: that for tools is taken where tools are given, as transformers chooses (an empty list included) */
    {
        static const struct {
            const char *kwargs, *want;
        } tools[] = {{"{}", "D"},
                     {"{\"tools\":[{\"name\":\"f\"}]}", "T1"},
                     {"{\"tools\":null}", "D"},
                     {"{\"tools\":[]}", "T0"},
                     {"{\"x\":1}", "D"}};
        for (int alone = 0; alone < 2; alone++) {
            wrpo__arena *arena = wrpo__arena_new(ctx);
            wrpo_tokenizer tok = template_of(arena, "D", alone ? 0 : 1);
            if (alone) tok.chat[0].text = NULL;
            tok.chat[1].text = "T{{ tools|length }}", tok.chat[1].size = strlen(tok.chat[1].text);
            for (int k = 0; k < 5; k++) {
                wrpo_json *m, *kwargs;
                char *text;
                size_t size;
                CHECK(!wrpo_json_parse(ctx, "m", "[]", 2, &m) &&
                          !wrpo_json_parse(ctx, "k", tools[k].kwargs, strlen(tools[k].kwargs), &kwargs),
                      "tools");
                wrpo_result r = wrpo_tokenizer_chat(&tok, m, true, kwargs, &text, &size);
                if (alone && *tools[k].want == 'D')
                    CHECK(r == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "no chat template"), "%s",
                          tools[k].kwargs);
                else
                    CHECK(r == WRPO_OK && !strcmp(text, tools[k].want), "%s: %s", tools[k].kwargs,
                          r ? wrpo_last_error(ctx)->text : text);
                wrpo_free(ctx, text), wrpo_json_free(ctx, m), wrpo_json_free(ctx, kwargs);
            }
            wrpo__arena_free(arena);
        }
    }
    CHECK(bytes_left(ctx) == sizeof(wrpo__arena), "%zu bytes still held", ctx->bytes);
    wrpo_close(ctx);
    return test_end("chat");
}
