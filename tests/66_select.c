/* Selection by rewards, splits and win rates: exact records, every refusal and counted omission, failing allocations.
 */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"
#include "support/folder.h"
#include "support/counting.h"
#include "support/tiny.h"
#include <unistd.h>

static wrpo_ctx *ctx;
static void holds(const char *name, const char *want, const char *what) {
    size_t n;
    char *text = slurp(at(name), &n);
    CHECK(text && !strcmp(text, want), "%s: want\n%s\nfound\n%s", what, want, text ? text : "(no file)");
    free(text);
}
static wrpo_result choose(wrpo_select_desc d, const char *first, const char *second, wrpo_select_stats *stats) {
    const char *in[2] = {at("a.jsonl"), at("b.jsonl")};
    tiny_put(dir, "a.jsonl", first);
    if (second) tiny_put(dir, "b.jsonl", second);
    d.in = in, d.n_in = second ? 2 : 1, d.out = at("out.jsonl");
    remove(d.out);
    return wrpo_select(ctx, &d, stats);
}
#define R(model, text, reward) "{\"model\": \"" model "\", \"content\": \"" text "\", \"reward\": " reward "}"
#define M(text) "{\"content\": \"" text "\", \"role\": \"assistant\"}"
/* Two files; p1's target in the second; a tie between sources: the first; an answer without text. */
static const char sources[] =
    "{\"prompt_id\": \"p1\", \"prompt\": \"one\\u00e9\", \"sources\": [" R("m", "a", "0.5") ", " R(
        "n", "b",
        "7e-1") ", " R("n", "c",
                       "0.70") ", " R("m", "d",
                                      "0.1") "]}\n"
                                             "\n{\"prompt_id\": 2, \"prompt\": [{\"role\": \"user\", \"content\": "
                                             "\"two\"}], \"sources\": [" R("m", "e", "1") ", " R(
                                                 "m", "f",
                                                 "-1") "], \"target\": []}\r\n"
                                                       "{\"prompt_id\": \"p3\", \"prompt\": \"three\", \"sources\": "
                                                       "[" R("m", " \\n", "9") "], \"target\": [" R("t", "k", "3") "]}";
static const char target[] =
    "{\"prompt_id\": \"p1\", \"prompt\": \"one\xC3\xA9\", \"target\": [" R("t", "x", "0.2") ", " R(
        "t", "y", "0.6") ", " R("t", "z", "0.2") "]}\n"
                                                 "{\"prompt_id\": 2, \"target\": [" R("t", "g", "0") ", " R(
                                                     "t", "g", "0") "], \"sources\": [" R("o", "h", "0.5") "]}\n";

static void records(void) {
    wrpo_select_stats s;
    CHECK(choose((wrpo_select_desc){0}, sources, target, &s) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    holds("out.jsonl",
          "{\"prompt_id\": \"p1\", \"prompt\": \"one\xC3\xA9\", \"chosen\": [" M("b") ", " M(
              "y") "], \"rejected\": [" M("x") "], \"rewards\": [7e-1, 0.6, 0.2], \"models\": [\"n\", \"t\", \"t\"]}\n",
          "quads");
    CHECK(s.prompts == 3 && s.records == 1 && s.no_source == 1 && s.equal == 1 && s.no_target == 0 && s.gap == 0 &&
              s.empty == 1,
          "%lld %lld %lld %lld %lld", (long long)s.prompts, (long long)s.records, (long long)s.no_source,
          (long long)s.equal, (long long)s.empty);
    CHECK(s.reward[WRPO_ROLE_SOURCE] == 0.7 && s.reward[WRPO_ROLE_TARGET] == 0.6 &&
              s.reward[WRPO_ROLE_REJECTED] == 0.2 && s.length[0] == 1,
          "means");
    CHECK(s.n_models == 4 && !strcmp(s.models[0].name, "m") && !strcmp(s.models[1].name, "n") &&
              !strcmp(s.models[2].name, "t") && !strcmp(s.models[3].name, "o"),
          "models");
    CHECK(s.models[0].responses == 4 && s.models[0].selected == 0 && s.models[1].selected == 1 &&
              s.models[1].reward == 0.7,
          "model statistics");
    wrpo_free(ctx, s.models);

    CHECK(choose((wrpo_select_desc){.top = 2, .tau = 0.5}, sources, target, &s) == WRPO_OK, "%s",
          wrpo_last_error(ctx)->text);
    size_t n;
    char *text = slurp(at("out.jsonl"), &n), want[300];
    const double w = 1 / (1 + exp((0.5 - 0.7) / 0.5));
    CHECK(strstr(text, "\"chosen\": [" M("b") ", " M("a") ", " M("y") "], \"rejected\": [" M("x") "]"),
          "two sources: %s", text);
    const char *found = strstr(text, "\"weights\": [");
    CHECK(found && fabs(atof(found + 12) - w) < 1e-15 && fabs(atof(strchr(found, ',') + 1) - (1 - w)) < 1e-15,
          "softmax of rewards: %s", text);
    free(text);
    wrpo_free(ctx, s.models);

    /* a source whose best text is the rejected one is left out, wherever it stands */
    CHECK(choose((wrpo_select_desc){.top = 2},
                 "{\"prompt_id\": \"p\", \"prompt\": \"q\", \"sources\": [" R("m", "x", "3") ", " R(
                     "n", "b", "2") "], \"target\": [" R("t", "y", "1") ", " R("t", "x", "0") "]}",
                 NULL, &s) == WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    holds("out.jsonl",
          "{\"prompt_id\": \"p\", \"prompt\": \"q\", \"chosen\": [" M("b") ", " M("y") "], \"rejected\": [" M(
              "x") "], \"rewards\": [2, 1, 0], \"models\": [\"n\", \"t\", \"t\"]}\n",
          "the second source alone");
    wrpo_free(ctx, s.models);

    CHECK(choose((wrpo_select_desc){.form = WRPO_FORM_SFT}, sources, target, &s) == WRPO_OK && s.records == 2 &&
              s.no_source == 1,
          "%s", wrpo_last_error(ctx)->text);
    holds("out.jsonl",
          "{\"prompt_id\": \"p1\", \"messages\": [{\"role\": \"user\", \"content\": \"one\xC3\xA9\"}, " M(
              "b") "], \"rewards\": [7e-1], \"models\": [\"n\"]}\n"
                   "{\"prompt_id\": 2, \"messages\": [{\"role\": \"user\", \"content\": \"two\"}, " M(
                       "e") "], \"rewards\": [1], \"models\": [\"m\"]}\n",
          "sft");
    wrpo_free(ctx, s.models);

    CHECK(choose((wrpo_select_desc){.form = WRPO_FORM_PAIR}, sources, target, &s) == WRPO_OK && s.records == 1 &&
              s.equal == 1,
          "%s", wrpo_last_error(ctx)->text);
    holds("out.jsonl",
          "{\"prompt_id\": 2, \"prompt\": [{\"role\": \"user\", \"content\": \"two\"}], \"chosen\": [" M(
              "e") "], \"rejected\": [" M("f") "], \"rewards\": [1, -1], \"models\": [\"m\", \"m\"]}\n",
          "pair");
    CHECK(isnan(s.reward[WRPO_ROLE_TARGET]) && s.reward[WRPO_ROLE_REJECTED] == -1, "means of pairs");
    wrpo_free(ctx, s.models);

    CHECK(choose((wrpo_select_desc){.form = WRPO_FORM_PAIRS, .tau = 0.5},
                 "{\"prompt_id\": \"p\", \"prompt\": \"q\", \"sources\": [" R("m", "a", "0.5") ", " R(
                     "n", "b", "0.7") ", " R("n", "c", "0.1") ", " R("m", "d", "0.1") ", " R("o", "h", "5") "]}",
                 NULL, &s) == WRPO_OK,
          "%s", wrpo_last_error(ctx)->text);
    text = slurp(at("out.jsonl"), &n);
    snprintf(want, sizeof want, "\"pairs\": [{\"chosen\": [" M("b") "], \"rejected\": [" M("c") "], \"weight\": ");
    found = text ? strstr(text, want) : NULL;
    CHECK(found && fabs(atof(found + strlen(want)) - w) < 1e-15 &&
              strstr(text,
                     "\"rewards\": [0.7, 0.1], \"models\": [\"n\", \"n\"]}, {\"chosen\": [" M(
                         "a") "], \"rejected\": [" M("d") "]"),
          "pairs: %s", text);
    free(text);
    wrpo_free(ctx, s.models);
}

/* What the template was given beside the messages belongs to the prompt: it stays in every form, and lines that have a
   prompt agree in it. */
static void template_arguments(void) {
#define TOOLS ", \"tools\": [{\"name\": \"f\", \"n\": 1.0}]"
#define KWARGS ", \"chat_template_kwargs\": {\"think\": false}"
#define P "{\"prompt_id\": \"p\", \"prompt\": \"q\""
#define S ", \"sources\": [" R("m", "a", "2") ", " R("m", "b", "0") "]}\n"
#define T ", \"target\": [" R("t", "c", "1") ", " R("t", "d", "0") "]}\n"
    static const char *const want[] = {P TOOLS KWARGS ", \"chosen\": [" M("a") ", " M("c") "]",
                                       "{\"prompt_id\": \"p\"" TOOLS KWARGS
                                       ", \"messages\": [{\"role\": \"user\", \"content\": \"q\"}, " M("a") "]",
                                       P TOOLS KWARGS ", \"chosen\": [" M("a") "]", P TOOLS KWARGS ", \"pairs\": ["};
    /* in any order; nothing said */
    static const char *const same[] = {P KWARGS TOOLS T, "{\"prompt_id\": \"p\"" T};
    wrpo_select_stats s;
    for (int i = 0; i < 8; i++) {
        size_t n;
        CHECK(choose((wrpo_select_desc){.form = (wrpo_form)(i / 2)}, P TOOLS KWARGS S, same[i % 2], &s) == WRPO_OK,
              "%s", wrpo_last_error(ctx)->text);
        char *text = slurp(at("out.jsonl"), &n);
        CHECK(text && !strncmp(text, want[i / 2], strlen(want[i / 2])), "%s: want %s, found %s", wrpo_form_name(i / 2),
              want[i / 2], text ? text : "(no file)");
        free(text);
        wrpo_free(ctx, s.models);
    }
    const struct { const char *first, *second, *says;
    } bad[] = {{P TOOLS S, P T, "b.jsonl:1:1: prompt_id \"p\": want the tools as in"},
               {P S, P TOOLS T, "want the tools as in"},
               {P KWARGS S, P ", \"chat_template_kwargs\": {\"think\": true}" T, "want the chat_template_kwargs as in"},
               {P KWARGS S, P T, "a.jsonl:1, found none"},
               {P KWARGS S, "{\"prompt_id\": \"p\"" KWARGS T, "want the prompt as in"}};
    for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++)
        CHECK(choose((wrpo_select_desc){0}, bad[i].first, bad[i].second, &s) == WRPO_E_FORMAT &&
                  strstr(wrpo_last_error(ctx)->text, bad[i].says),
              "disagreement %d: %s", i, wrpo_last_error(ctx)->text);
#undef P
#undef S
#undef T
}

/* EAST: H of the target's clusters; "answer" groups texts that differ. min_gap leaves out. */
static void weights_and_gaps(void) {
    wrpo_select_stats s;
    static const char answers[] =
        "{\"prompt_id\": 1, \"prompt\": \"q\", \"sources\": [" R("m", "a", "1") "], \"target\": [" R(
            "t", "x", "0.1") ", " R("t", "y", "0.2") ", {\"model\": \"t\", \"content\": \"z\", \"reward\": 0.3, "
                                                     "\"answer\": \"y\"}, " R("t", "y", "0.2") "]}";
    size_t n;
    for (int power = 1; power < 3; power++) {
        CHECK(choose((wrpo_select_desc){.entropy_power = power, .entropy_scale = power == 1 ? 0 : 2}, answers, NULL,
                     &s) == WRPO_OK,
              "%s", wrpo_last_error(ctx)->text);
        const double H = -0.25 * log2(0.25) - 0.75 * log2(0.75);
        char *text = slurp(at("out.jsonl"), &n), *found = text ? strstr(text, "\"weight\": ") : NULL;
        CHECK(found && fabs(atof(found + 10) - (power == 1 ? H / 6.8 : H * H / 2)) < 1e-12, "entropy: %s", text);
        free(text);
        wrpo_free(ctx, s.models);
    }
    CHECK(choose((wrpo_select_desc){.min_gap = 0.19}, answers, NULL, &s) == WRPO_OK && s.records == 1,
          "a gap of 0.19 is enough");
    wrpo_free(ctx, s.models);
    CHECK(choose((wrpo_select_desc){.min_gap = 0.201}, answers, NULL, &s) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "1 rewards too close") && !s.models,
          "%s", wrpo_last_error(ctx)->text);
    CHECK(access(at("out.jsonl"), F_OK) != 0, "a failure leaves a file");
}

static void refusals(void) {
    wrpo_select_stats s;
#define LINE(rest) "{\"prompt_id\": \"p\", \"prompt\": \"q\", " rest "}"
    const struct { const char *text, *says;
    } bad[] = {
        {LINE("\"sources\": [" R("m", "a", "NaN") "]"), "a.jsonl:1:"},
        {LINE("\"sources\": [" R("m", "a", "null") "]"), "reward: want a number, found null"},
        {LINE("\"sources\": [" R("m", "a", "1e999") "]"), "reward: want a finite number"},
        {LINE("\"sources\": [" R("m", "a", "\"1\"") "]"), "reward: want a number, found \"1\""},
        {LINE("\"sources\": [{\"model\": \"m\", \"content\": \"a\"}]"), "reward: want a number, found no such key"},
        {LINE("\"sources\": [{\"model\": \"m\", \"reward\": 1}]"), "content: want a string"},
        {LINE("\"sources\": [{\"content\": \"a\", \"reward\": 1}]"), "model: want a string"},
        {LINE("\"sources\": {}"), "sources: want an array"},
        {LINE("\"source\": []"), "found neither"},
        {LINE("\"sources\": []") "\n" LINE("\"target\": []"),
         "a.jsonl:2:1: prompt_id \"p\": want each once in a file, found it in line 1 too"},
        {"{\"prompt\": \"q\", \"sources\": []}", "prompt_id: want a string or a number, found none"},
        {"{\"prompt_id\": true, \"sources\": []}", "prompt_id: want a string"},
        {"[]", "want an object"},
        {"", "want prompts, found none"},
        {LINE("\"target\": [" R("t", "a", "1") "]"), "1 have no source response"},
        {LINE("\"sources\": [" R("m", "a", "1") "]"), "1 no target response"},
        {"{\"prompt_id\": 1, \"sources\": [" R("m", "a", "1") "], "
         "\"target\": [" R("t", "x", "0") ", " R("t", "y", "1") "]}",
         "want a \"prompt\""}};
    for (int i = 0; i < (int)(sizeof bad / sizeof *bad); i++)
        CHECK(choose((wrpo_select_desc){0}, bad[i].text, NULL, &s) == WRPO_E_FORMAT &&
                  strstr(wrpo_last_error(ctx)->text, bad[i].says) && access(at("out.jsonl"), F_OK) != 0,
              "refusal %d: %s", i, wrpo_last_error(ctx)->text);
    CHECK(choose((wrpo_select_desc){0}, sources, "{\"prompt_id\": \"p1\", \"prompt\": \"another\", \"target\": []}",
                 &s) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "want the prompt as in"),
          "%s", wrpo_last_error(ctx)->text);
    const struct {
        wrpo_select_desc d;
        const char *says;
    } options[] = {{{.top = -1}, "top"},
                   {{.top = 2, .form = WRPO_FORM_SFT}, "top"},
                   {{.tau = -1}, "tau"},
                   {{.tau = NAN}, "tau"},
                   {{.tau = WRPO_ZERO}, "tau: want a finite number above 0, found 0"},
                   {{.entropy_scale = WRPO_ZERO}, "entropy_scale: want a finite number above 0, found 0"},
                   {{.min_gap = -1}, "min_gap"},
                   {{.min_gap = 1, .form = WRPO_FORM_SFT}, "min_gap"},
                   {{.entropy_power = -1}, "entropy"},
                   {{.entropy_scale = -1}, "entropy"},
                   {{.form = (wrpo_form)9}, "form"},
                   {{.max_gap = -1}, "max_gap"},
                   {{.min_gap = 2, .max_gap = 1}, "max_gap: want a finite number of at least min_gap"},
                   {{.max_gap = 1, .form = WRPO_FORM_SFT}, "max_gap"},
                   {{.strong = "a", .weak = "b"}, "strong, weak"},
                   {{.form = WRPO_FORM_DELTA, .strong = "a"}, "strong, weak"},
                   {{.form = WRPO_FORM_DELTA, .strong = "a", .weak = "a"}, "strong, weak"},
                   {{.form = WRPO_FORM_DELTA, .strong = "a", .weak = "b", .min_gap = 1}, "min_gap"}};
    for (int i = 0; i < (int)(sizeof options / sizeof *options); i++)
        CHECK(choose(options[i].d, sources, target, &s) == WRPO_E_ARG &&
                  strstr(wrpo_last_error(ctx)->text, options[i].says),
              "option %d: %s", i, wrpo_last_error(ctx)->text);
    const char *none = at("none.jsonl");
    CHECK(wrpo_select(ctx, &(wrpo_select_desc){.in = &none, .n_in = 1}, &s) == WRPO_E_IO, "a file that is not there");
    CHECK(wrpo_select(ctx, &(wrpo_select_desc){0}, &s) == WRPO_E_FORMAT, "no file");
    CHECK(wrpo_select(ctx, NULL, &s) == WRPO_E_FORMAT, "no desc");
}

/* max_gap; correctness; a stronger and a weaker model. */
#define V(model, text, reward, right) \
    "{\"model\": \"" model "\", \"content\": \"" text "\", \"reward\": " reward ", \"ok\": " right "}"
static void filters(void) {
    wrpo_select_stats s;
    static const char two[] =
        "{\"prompt_id\": \"p\", \"prompt\": \"q\", \"sources\": [" R("m", "a", "0.5") ", " R("m", "b", "0.25") "]}\n"
        "{\"prompt_id\": \"r\", \"prompt\": \"q\", \"sources\": [" R("m", "c", "2") ", " R("m", "d", "1") "]}\n";
    CHECK(choose((wrpo_select_desc){.form = WRPO_FORM_PAIR, .max_gap = 0.25}, two, NULL, &s) == WRPO_OK &&
              s.records == 1 && s.gap == 1,
          "max_gap: %s", wrpo_last_error(ctx)->text);
    holds("out.jsonl",
          "{\"prompt_id\": \"p\", \"prompt\": \"q\", \"chosen\": [" M("a") "], \"rejected\": [" M(
              "b") "], \"rewards\": [0.5, 0.25], \"models\": [\"m\", \"m\"]}\n",
          "max_gap");
    wrpo_free(ctx, s.models);
    CHECK(choose((wrpo_select_desc){.form = WRPO_FORM_PAIR, .min_gap = 0.5, .max_gap = 1}, two, NULL, &s) == WRPO_OK &&
              s.records == 1 && s.gap == 1,
          "both gaps: %s", wrpo_last_error(ctx)->text);
    wrpo_free(ctx, s.models);

    /* required: the best right answer, not the best; the worst wrong one, not the worst */
    static const char checked[] =
        "{\"prompt_id\": 1, \"prompt\": \"q\", \"sources\": [" V("m", "wrong, liked", "9", "false") ", " V(
            "m", "right", "5", "true") ", " V("n", "also right", "4", "true") "], \"target\": [" V(
            "t", "t right", "3", "true") ", " V("t", "t wrong", "2", "false") ", " V(
            "t", "t right, worst", "1", "true") "]}\n"
        "{\"prompt_id\": 2, \"prompt\": \"q\", \"sources\": [" V("m", "x", "1", "true") "], \"target\": [" V(
            "t", "y", "1", "true") ", " V("t", "z", "0", "true") "]}\n"
        "{\"prompt_id\": 3, \"prompt\": \"q\", \"sources\": [" V("m", "x", "1", "false") "], \"target\": [" V(
            "t", "y", "1", "true") ", " V("t", "z", "0", "false") "]}\n";
    CHECK(choose((wrpo_select_desc){.require = "ok"}, checked, NULL, &s) == WRPO_OK && s.records == 1 &&
              s.no_target == 1 && s.no_source == 1,
          "require: %s", wrpo_last_error(ctx)->text);
    holds("out.jsonl",
          "{\"prompt_id\": 1, \"prompt\": \"q\", \"chosen\": [" M("right") ", " M("t right") "], \"rejected\": [" M(
              "t wrong") "], \"rewards\": [5, 3, 2], \"models\": [\"m\", \"t\", \"t\"]}\n",
          "require");
    wrpo_free(ctx, s.models);
    CHECK(choose((wrpo_select_desc){.require = "ok", .form = WRPO_FORM_PAIR}, checked, NULL, &s) == WRPO_OK &&
              s.records == 1 && s.no_source == 2,
          "require, pair: %s", wrpo_last_error(ctx)->text);
    wrpo_free(ctx, s.models);
    CHECK(choose((wrpo_select_desc){.require = "ok", .form = WRPO_FORM_SFT}, checked, NULL, &s) == WRPO_OK &&
              s.records == 2,
          "require, sft: %s", wrpo_last_error(ctx)->text);
    wrpo_free(ctx, s.models);
    CHECK(choose((wrpo_select_desc){.require = "right"}, checked, NULL, &s) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "a.jsonl:1:") && strstr(wrpo_last_error(ctx)->text, "right"),
          "a key that is not there: %s", wrpo_last_error(ctx)->text);

    /* delta: no rewards; the first answer of each of two models, in either list */
    static const char models[] =
        "{\"prompt_id\": 1, \"prompt\": \"q\", \"sources\": [{\"model\": \"s\", \"content\": \"S1\"}, "
        "{\"model\": \"s\", \"content\": \"S2\"}], \"target\": [{\"model\": \"w\", \"content\": \"W1\"}, "
        "{\"model\": \"w\", \"content\": \"W2\"}]}\n"
        "{\"prompt_id\": 2, \"prompt\": \"q\", \"sources\": [{\"model\": \"s\", \"content\": \"S\"}]}\n"
        "{\"prompt_id\": 3, \"prompt\": \"q\", \"sources\": [{\"model\": \"s\", \"content\": \"X\"}, "
        "{\"model\": \"w\", \"content\": \"X\"}]}\n";
    const wrpo_select_desc delta = {.form = WRPO_FORM_DELTA, .strong = "s", .weak = "w"};
    CHECK(choose(delta, models, NULL, &s) == WRPO_OK &&
              s.records == 1 && s.no_source == 1 && s.equal == 1 && isnan(s.reward[0]) && isnan(s.models[0].reward),
          "delta: %s", wrpo_last_error(ctx)->text);
    holds("out.jsonl",
          "{\"prompt_id\": 1, \"prompt\": \"q\", \"chosen\": [" M("S1") "], \"rejected\": [" M(
              "W1") "], \"models\": [\"s\", \"w\"]}\n",
          "delta");
    wrpo_free(ctx, s.models);
}

/* What select writes, train reads: every form through the data reader. */
static void round_trip(void) {
    static const char chatml[] =
        "\"{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% "
        "endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\"";
    wrpo_tokenizer *tok;
    wrpo_select_stats s;
    tiny_tokenizer(dir, chatml);
    CHECK(wrpo_tokenizer_load(ctx, dir, &tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    for (int form = 0; tok && wrpo_form_name(form); form++) {
        wrpo_data *data;
        const bool delta = form == WRPO_FORM_DELTA;
        CHECK(choose((wrpo_select_desc){.form = (wrpo_form)form, .top = form ? 0 : 2, .entropy_power = delta ? 0 : 1,
                                        .strong = delta ? "m" : NULL, .weak = delta ? "n" : NULL},
                     sources, target, &s) == WRPO_OK,
              "%s", wrpo_last_error(ctx)->text);
        CHECK(wrpo_data_load(tok, &(wrpo_data_desc){.path = at("out.jsonl")}, &data) == WRPO_OK &&
                  wrpo_data_count(data) == s.records,
              "%s: %s", wrpo_form_name(form), wrpo_last_error(ctx)->text);
        if (data && form == 0)
            CHECK(wrpo_data_record(data, 0).count == 4 &&
                      fabs(wrpo_data_record(data, 0).weight - log2(3) / 6.8) < 1e-12,
                  "weight %g", wrpo_data_record(data, 0).weight);
        wrpo_data_free(data);
        wrpo_free(ctx, s.models);
    }
    wrpo_tokenizer_free(tok);
}

static void splits(void) {
    char text[6000] = "", seen[100] = "";
    int64_t counts[4], again[4];
    size_t n[3];
    for (int i = 0; i < 100; i++)
        snprintf(text + strlen(text), 60, "{\"prompt_id\": \"%02d\", \"prompt\": \"%02d\"}\n", i, i);
    tiny_put(dir, "prompts.jsonl", text);
    wrpo_split_desc d = {.in = at("prompts.jsonl"), .out = {at("sft.jsonl"), at("po.jsonl")}};
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_OK && counts[0] == 33 && counts[1] == 67, "%lld %lld",
          (long long)counts[0], (long long)counts[1]);
    char *part[3] = {slurp(d.out[0], &n[0]), slurp(d.out[1], &n[1]), NULL};
    for (int k = 0; k < 2; k++) {
        int last = -1, lines = 0;
        for (char *p = part[k]; *p; p = strchr(p, '\n') + 1, lines++) {
            const int id = atoi(p + 15);
            CHECK(id > last && !seen[id] && !strncmp(p, text + id * 36, 35), "part %d: line of %d", k, id);
            seen[last = id] = 1;
        }
        CHECK(lines == counts[k], "%d lines", lines);
    }
    static const int sft[33] = {2,  3,  7,  9,  16, 19, 22, 24, 25, 28, 32, 33, 34, 35, 42, 45, 47,
                                50, 51, 54, 63, 64, 66, 67, 74, 76, 77, 78, 79, 90, 91, 94, 95};
    for (int i = 0; i < 33; i++)
        CHECK(atoi(part[0] + 36 * i + 15) == sft[i], "seed 42 is another one: %d is %.2s", i, part[0] + 36 * i + 15);
    CHECK(counts[3] == 0 && wrpo_split(ctx, &d, again) == WRPO_OK, "again");
    part[2] = slurp(d.out[0], &n[2]);
    CHECK(n[2] == n[0] && !memcmp(part[0], part[2], n[0]), "the same seed gives another split");
    free(part[2]);
    d.seed = 7, d.share = 0.5;
    CHECK(wrpo_split(ctx, &d, again) == WRPO_OK && again[0] == 50, "half");
    part[2] = slurp(d.out[0], &n[2]);
    int common = 0;
    for (char *p = part[0]; *p; p = strchr(p, '\n') + 1) {
        char line[40];
        snprintf(line, sizeof line, "%.35s", p);
        common += strstr(part[2], line) != NULL;
    }
    CHECK(common > 5 && common < 30, "another seed: %d of 33 in common", common);
    for (int i = 0; i < 3; i++) free(part[i]);
    d.share = 0, d.seed = 0, d.heldout = 0.1;
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_E_ARG && strstr(wrpo_last_error(ctx)->text, "heldout and a third of out"),
          "%s", wrpo_last_error(ctx)->text);
    d.out[2] = at("held.jsonl");
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_OK && counts[0] == 30 && counts[1] == 60 && counts[2] == 10,
          "three parts: %lld %lld %lld", (long long)counts[0], (long long)counts[1], (long long)counts[2]);
    memset(seen, 0, sizeof seen);
    for (int k = 0; k < 3; k++) {
        int last = -1, lines = 0;
        part[k] = slurp(d.out[k], &n[k]);
        for (char *p = part[k]; *p; p = strchr(p, '\n') + 1, lines++) {
            const int id = atoi(p + 15);
            CHECK(id > last && !seen[id] && !strncmp(p, text + id * 36, 35), "part %d of 3: line of %d", k, id);
            seen[last = id] = 1;
        }
        CHECK(lines == counts[k], "part %d of 3: %d lines", k, lines);
        free(part[k]);
    }
    d.heldout = 0, d.out[2] = NULL;
    d.share = 1;
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_E_ARG && strstr(wrpo_last_error(ctx)->text, "share"), "share 1");
    d.share = WRPO_ZERO;
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_E_ARG &&
              strstr(wrpo_last_error(ctx)->text, "share: want a number between 0 and 1, found 0"),
          "%s", wrpo_last_error(ctx)->text);
    d.share = 0;
    tiny_put(dir, "prompts.jsonl", "{\"prompt_id\": 1}\n{\"prompt_id\": 2}\n{\"prompt_id\": 1}\n");
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text,
                     "prompts.jsonl:3:1: prompt_id \"1\": want each once in a file, found it in line 1 too"),
          "%s", wrpo_last_error(ctx)->text);
    tiny_put(dir, "prompts.jsonl", "{\"prompt_id\": 1}\n");
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "all parts"), "%s",
          wrpo_last_error(ctx)->text);
    CHECK(wrpo_split(ctx, &(wrpo_split_desc){0}, counts) == WRPO_E_ARG && wrpo_split(ctx, NULL, counts) == WRPO_E_ARG,
          "no files");
}

/* Lines of one prompt stay together, in the order of the file, however they say it; all others are as they were. */
static void splits_same(void) {
    static const char *const lines[] = {
        "{\"prompt_id\": \"00\", \"prompt\": \"same\"}\n",
        "{\"prompt_id\": \"01\", \"prompt\": \"other\"}\n",
        "{\"prompt_id\": \"02\", \"prompt\": {\"content\": \"same\", \"role\": \"user\"}}\n",
        "{\"prompt_id\": \"03\"}\n",
        "{\"prompt_id\": \"04\", \"messages\": [{\"role\": \"user\", \"content\": \"same\"}]}\n",
        "{\"prompt_id\": \"05\", \"prompt\": [{\"from\": \"human\", \"value\": \"same\"}]}\n",
        "{\"prompt_id\": \"06\", \"prompt\": [{\"role\": \"system\", \"content\": \"\"}, \"same\"]}\n",
        "{\"prompt_id\": \"07\", \"prompt\": [\"sa\", \"me\"]}\n",
        "{\"prompt_id\": \"08\"}\n",
        "{\"prompt_id\": \"09\", \"prompt\": \"Same\"}\n",
        "{\"prompt_id\": \"10\", \"prompt\": \"s\\u0061me\"}\n",
        "{\"prompt_id\": \"11\", \"prompt\": [{\"role\": \"user\", "
        "\"content\": [{\"type\": \"text\", \"text\": \"a\"}]}]}\n",
        "{\"prompt_id\": \"12\", \"prompt\": [{\"role\": \"user\", "
        "\"content\": [{\"type\": \"text\", \"text\": \"b\"}]}]}\n"};
    static const int order[] = {0, 2, 4, 5, 10, 1, 3, 6, 7, 8, 9, 11, 12};
    enum { N = sizeof lines / sizeof *lines, UNIQUE = N - 4 };
    char text[2000] = "";
    for (int i = 0; i < N; i++) snprintf(text + strlen(text), sizeof text - strlen(text), "%s", lines[i]);
    tiny_put(dir, "same.jsonl", text);
    int where[3] = {0};              /* of the prompt of five lines, over the seeds */
    for (int seed = 1; seed <= 40; seed++) {
        int64_t counts[4];
        wrpo_split_desc d = {.in = at("same.jsonl"), .out = {at("sft.jsonl"), at("po.jsonl"), at("held.jsonl")},
                             .share = 0.5, .heldout = 0.3, .seed = (uint64_t)seed};
        CHECK(wrpo_split(ctx, &d, counts) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        CHECK(counts[3] == 4 && counts[0] + counts[1] + counts[2] == N, "seed %d: counts", seed);
        int prompts = 0;
        for (int k = 0; k < 3; k++) {
            static const int want[3] = {3, 3, 3};  /* prompts: round(0.5 * 6), the rest, round(0.3 * 9) */
            size_t n;
            char *part = slurp(d.out[k], &n), *p = part;
            int seen = 0, repeats = 0;
            for (int i = 0; i < N; i++) {
                const size_t size = strlen(lines[order[i]]);
                if (strncmp(p, lines[order[i]], size)) continue;
                p += size;
                seen++;
                repeats += i > 0 && i < 5;
                where[k] += i == 0;
            }
            CHECK(!*p && seen == counts[k] && seen - repeats == want[k], "seed %d, part %d: %s", seed, k, part);
            CHECK(repeats == 0 || repeats == 4, "seed %d: the prompt is in two parts", seed);
            prompts += seen - repeats;
            free(part);
        }
        CHECK(prompts == UNIQUE, "seed %d: %d prompts", seed, prompts);
    }
    CHECK(where[0] > 3 && where[1] > 3 && where[2] > 3, "by chance: %d %d %d", where[0], where[1], where[2]);
    int64_t counts[4];
    wrpo_split_desc d = {.in = at("same.jsonl"), .out = {at("sft.jsonl"), at("po.jsonl")}};
    tiny_put(dir, "same.jsonl", "{\"prompt_id\": 1, \"prompt\": \"x\"}\n{\"prompt_id\": 2, \"prompt\": \"x\"}\n");
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "found 1 in all"), "%s",
          wrpo_last_error(ctx)->text);
    tiny_put(dir, "same.jsonl", "{\"prompt_id\": 1, \"prompt\": \"x\"}\n{\"prompt_id\": 2, \"prompt\": 5}\n");
    CHECK(wrpo_split(ctx, &d, counts) == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "same.jsonl:2:") &&
              strstr(wrpo_last_error(ctx)->text, "prompt: want a string, a message or a list of messages, found 5"),
          "%s", wrpo_last_error(ctx)->text);
}

/* n prompts: a's reward and length, b's; as flat answers. */
static void duel(const char *name, int n, const double *reward, const int *length) {
    char *text = malloc((size_t)n * 400), *p = text;
    for (int i = 0; i < n; i++) {
        p += sprintf(p, "{\"prompt_id\": %d, \"content\": \"", i);
        memset(p, 'x', (size_t)length[i]), p += length[i];
        p += sprintf(p, "\", \"reward\": %g}\n", reward[i]);
    }
    tiny_put(dir, name, text);
    free(text);
}
static void winrates(void) {
    enum { N = 400 };
    static double a[N], b[N];
    static int la[N], lb[N];
    wrpo_winrate_stats s, t;
    tiny_put(dir, "wa.jsonl",
             "{\"prompt_id\": 1, \"content\": \"xy\", \"reward\": 2}\n{\"prompt_id\": 2, \"content\": \"z\", "
             "\"reward\": 1}\n{\"prompt_id\": 3, \"content\": \"u\", \"reward\": 0}\n"
             "{\"prompt_id\": 4, \"prompt\": \"q\", \"target\": [" R("t", "v", "5") ", " R(
                 "t", "w", "1") "]}\n{\"prompt_id\": 9, \"content\": \"only here\", \"reward\": 1}\n");
    tiny_put(dir, "wb.jsonl",
             "{\"prompt_id\": 4, \"prompt\": \"q\", \"sources\": [" R("s", "v", "1") "], \"target\": [" R(
                 "s", "w", "3") "]}\n{\"prompt_id\": 3, \"content\": \"u\", \"reward\": 1}\n"
                                "{\"prompt_id\": 1, \"content\": \"x\", \"reward\": 1}\n{\"prompt_id\": 2, "
                                "\"content\": \"z\", \"reward\": 1}\n");
    const wrpo_winrate_desc ab = {.a = at("wa.jsonl"), .b = at("wb.jsonl")}, ba = {.a = ab.b, .b = ab.a};
    CHECK(wrpo_winrate(ctx, &ab, &s) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    /* win, tie, loss, and of four pairs two won, one equal, one lost */
    CHECK(s.prompts == 4 && s.only_a == 1 && s.only_b == 0 && fabs(s.wins - 1.5 / 4) < 1e-12 &&
              fabs(s.ties - 1.25 / 4) < 1e-12 && fabs(s.rate - 2.125 / 4) < 1e-12,
          "%g %g %g", s.wins, s.ties, s.rate);
    CHECK(s.reward[0] == 1.5 && s.reward[1] == 1.25 && s.length[0] == 1.25 && s.length[1] == 1, "means");
    CHECK(wrpo_winrate(ctx, &ba, &t) == WRPO_OK && fabs(t.rate + s.rate - 1) < 1e-12 &&
              fabs(t.controlled + s.controlled - 1) < 1e-9,
          "swapped: %g %g", t.rate, t.controlled);

    /* Length alone decides, for the longer one in four of five prompts: a is longer in three quarters. At equal lengths
       nothing is left of the lead. */
    const wrpo_winrate_desc long_short = {.a = at("la.jsonl"), .b = at("lb.jsonl"), .seed = 3};
    for (int i = 0; i < N; i++)
        la[i] = i % 4 ? 150 : 50, lb[i] = 100, b[i] = 0, a[i] = (i % 4 != 0) == (i / 4 % 5 != 0) ? 1 : -1;
    duel("la.jsonl", N, a, la), duel("lb.jsonl", N, b, lb);
    CHECK(wrpo_winrate(ctx, &long_short, &s) == WRPO_OK && fabs(s.rate - 0.65) < 1e-12 &&
              fabs(s.controlled - 0.5) < 0.01,
          "length decides: %g, controlled %g", s.rate, s.controlled);
    /* The interval of 400 fair draws is about 2 x 1.96 sqrt(p q / n) wide and holds the rate. */
    const double width = 2 * 1.96 * sqrt(0.65 * 0.35 / N);
    CHECK(s.low < s.rate && s.high > s.rate && fabs((s.high - s.low) / width - 1) < 0.1,
          "interval %g to %g, want a width of %g", s.low, s.high, width);
    CHECK(s.controlled_low < s.controlled && s.controlled < s.controlled_high, "interval %g to %g of %g",
          s.controlled_low, s.controlled_high, s.controlled);
    CHECK(wrpo_winrate(ctx, &long_short, &t) == WRPO_OK && !memcmp(&s, &t, sizeof s),
          "the same seed gives other numbers");
    /* The fit itself: the gradient of the penalised likelihood vanishes. */
    double y[5] = {1, 0, 0.5, 1, 1}, x[5] = {0.3, -0.2, 0.1, -0.6, 0.9}, theta = 0, phi = 0, g0 = 0, g1;
    wrpo__fit_logistic(y, x, (int64_t[]){0, 1, 2, 3, 4}, 5, &theta, &phi);
    g1 = phi;
    for (int i = 0; i < 5; i++)
        g0 += wrpo__sigmoid(theta + phi * x[i]) - y[i], g1 += (wrpo__sigmoid(theta + phi * x[i]) - y[i]) * x[i];
    CHECK(fabs(g0) < 1e-8 && fabs(g1) < 1e-8, "gradient %g %g", g0, g1);
    /* Quality decides, length is noise: length control leaves the rate; and a clean sweep is finite. */
    for (int i = 0; i < N; i++) la[i] = 100 + i % 7, lb[i] = 100 + (i + 3) % 7, a[i] = i % 10 < 7, b[i] = 0.5;
    duel("la.jsonl", N, a, la), duel("lb.jsonl", N, b, lb);
    CHECK(wrpo_winrate(ctx, &long_short, &s) == WRPO_OK && fabs(s.rate - 0.7) < 1e-12 &&
              fabs(s.controlled - 0.7) < 0.02,
          "quality decides: %g, controlled %g", s.rate, s.controlled);
    for (int i = 0; i < N; i++) a[i] = 1;
    duel("la.jsonl", N, a, la);
    CHECK(wrpo_winrate(ctx, &long_short, &s) == WRPO_OK && fabs(s.rate - 1) < 1e-12 && fabs(s.low - 1) < 1e-12 &&
              s.controlled > 0.999999 && s.controlled <= 1,
          "a sweep: %g %g", s.rate, s.controlled);

    tiny_put(dir, "wb.jsonl", "{\"prompt_id\": 77, \"content\": \"x\", \"reward\": 1}\n");
    CHECK(wrpo_winrate(ctx, &ab, &s) == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "same prompt_id") &&
              s.prompts == 0,
          "%s", wrpo_last_error(ctx)->text);
    tiny_put(dir, "wb.jsonl", "{\"prompt_id\": 1, \"content\": \"x\"}\n");
    CHECK(wrpo_winrate(ctx, &ab, &s) == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "reward: want a number"),
          "%s", wrpo_last_error(ctx)->text);
    tiny_put(dir, "wb.jsonl", "{\"prompt_id\": 1, \"content\": \" \", \"reward\": 1}\n");
    CHECK(wrpo_winrate(ctx, &ab, &s) == WRPO_E_FORMAT && strstr(wrpo_last_error(ctx)->text, "answer with text"), "%s",
          wrpo_last_error(ctx)->text);
    CHECK(wrpo_winrate(ctx, &(wrpo_winrate_desc){.a = ab.a, .b = ab.a, .resamples = -1}, &s) == WRPO_E_ARG &&
              wrpo_winrate(ctx, &(wrpo_winrate_desc){0}, &s) == WRPO_E_ARG && wrpo_winrate(ctx, NULL, &s) == WRPO_E_ARG,
          "options");
}

static void real(void) {
    const char *in = test_shared("alpacaeval/candidates.jsonl"), *want = test_shared("alpacaeval/quads.jsonl");
    wrpo_select_stats s;
    size_t n, m;
    if (!in || !want) { SKIP(2, "alpacaeval is absent"); return; }
    CHECK(wrpo_select(ctx, &(wrpo_select_desc){.in = &in, .n_in = 1, .out = at("out.jsonl")}, &s) == WRPO_OK &&
              s.records == 600 && s.n_models == 13,
          "%s", wrpo_last_error(ctx)->text);
    char *a = slurp(at("out.jsonl"), &n), *b = slurp(want, &m);
    CHECK(a && b && n == m && !memcmp(a, b, n), "the selection is not quads.jsonl");
    free(a), free(b);
    wrpo_free(ctx, s.models);
}

static void allocations(void) {
    wrpo_ctx *keep = ctx;
    wrpo_select_stats s;
    wrpo_winrate_stats w;
    int64_t counts[4];
    tiny_put(dir, "a.jsonl", sources), tiny_put(dir, "b.jsonl", target),
        tiny_put(dir, "wb.jsonl", "{\"prompt_id\": 4, \"content\": \"x\", \"reward\": 1}\n");
    const char *in[2] = {at("a.jsonl"), at("b.jsonl")}, *out = at("out.jsonl"), *wa = at("wa.jsonl"),
               *wb = at("wb.jsonl"), *sft = at("sft.jsonl");
    CHECK(wrpo_open(&(wrpo_desc){.memory = {counting_alloc, counting_free, NULL}, .threads = 1}, &ctx) == WRPO_OK,
          "open");
    for (int what = 0; what < 4; what++) {
        const int64_t base = live;
        for (fail_at = 0; fail_at < 5000; fail_at++) {
            calls = 0, s.models = NULL;
            wrpo_result r = what < 2
                ? wrpo_select(ctx,
                              &(wrpo_select_desc){
                                  .in = in, .n_in = 2, .out = out, .form = what ? WRPO_FORM_PAIRS : WRPO_FORM_QUADS},
                              &s)
                : what == 2 ? wrpo_split(ctx, &(wrpo_split_desc){.in = in[0], .out = {out, sft}}, counts)
                            : wrpo_winrate(ctx, &(wrpo_winrate_desc){.a = wa, .b = wb, .resamples = 3}, &w);
            wrpo_free(ctx, s.models);
            if (live != base || (r != WRPO_OK && r != WRPO_E_MEMORY))
                CHECK(false, "%d: allocation %lld: %d %s, %lld held", what, (long long)fail_at, r,
                      wrpo_last_error(ctx)->text, (long long)(live - base));
            if (r == WRPO_OK) break;
        }
        CHECK(fail_at > 5 && fail_at < 5000, "%d: %lld allocations", what, (long long)fail_at);
        fail_at = -1;
    }
    wrpo_close(ctx);
    ctx = keep;
}

int main(void) {
    snprintf(dir, sizeof dir, "tmp_select_%ld", (long)getpid());
    if (wrpo_open(NULL, &ctx) != WRPO_OK) return 2;
    char command[100];
    snprintf(command, sizeof command, "mkdir -p %s", dir);
    CHECK(system(command) == 0, "mkdir");
    records(), template_arguments(), weights_and_gaps(), refusals(), filters(), round_trip(), splits(), splits_same();
    winrates(), allocations(), real();
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0, "rm");
    CHECK(bytes_left(ctx) == sizeof(wrpo__arena), "%zu bytes still held", ctx->bytes);
    wrpo_close(ctx);
    return test_end("66_select");
}
