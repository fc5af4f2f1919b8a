/* Tokenizers: ids and texts against those of the reference library, on small tokenizers that use every component
   (golden/tokenizers.json) and, where they are, on real ones; refusals; damaged files; every allocation failing once.
 */
#define WRPO_IMPLEMENTATION
#include "wrpo.h"
#include "support/test.h"

static wrpo_ctx *ctx;
static char dir[] = "/tmp/wrpo_token_XXXXXX";

static void put(const char *name, const char *text, size_t n) {    /* a file in dir; n 0: none */
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    remove(path);
    if (!n) return;
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(text, 1, n, f) != n || fclose(f)) { printf("%s: cannot be written\n", path); exit(1); }
}
static void puts_to(const char *name, const char *text) { put(name, text, strlen(text)); }
static wrpo_tokenizer *load(const char *from) {
    wrpo_tokenizer *tok;
    CHECK(wrpo_tokenizer_load(ctx, from, &tok) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    return tok;
}
static wrpo_json *parse(const char *name, const char *text, size_t n) {
    wrpo_json *root;
    if (wrpo_json_parse(ctx, name, text, n, &root)) { printf("%s\n", wrpo_last_error(ctx)->text); exit(1); }
    return root;
}
static wrpo_json *parse_file(const char *path, char **text) {
    FILE *f = fopen(path, "rb");
    *text = NULL;
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    rewind(f);
    *text = malloc(n + 1);
    if (fread(*text, 1, n, f) != n) exit(1);
    (*text)[n] = 0;
    fclose(f);
    return parse(path, *text, n);
}
/* want: the ids, between before and after (NULL: none) */
static void check_encode(wrpo_tokenizer *tok, const char *name, const wrpo_json *text, unsigned flags,
                         const wrpo_json *before, const wrpo_json *want, const wrpo_json *after) {
    const wrpo_json *const parts[] = {before, want, after};
    int32_t *ids;
    int64_t count, i = 0;
    bool same = wrpo_tokenizer_encode(tok, text->text, text->size, flags, &ids, &count) == WRPO_OK;
    for (int k = 0; k < 3; k++)
        for (const wrpo_json *v = parts[k] ? parts[k]->child : NULL; v && same; v = v->next, i++)
            same = i < count && ids[i] == v->integer;
    CHECK(same && i == count, "%s: flags %u: ids of \"%s\"", name, flags, text->text);
    wrpo_free(ctx, ids);
}
static void check_decode(wrpo_tokenizer *tok, const char *name, const wrpo_json *list, bool skip,
                         const wrpo_json *want) {
    int32_t *ids = malloc((size_t)(list->count + 1) * sizeof *ids);
    int64_t i = 0;
    char *text;
    size_t size;
    for (const wrpo_json *v = list->child; v; v = v->next) ids[i++] = (int32_t)v->integer;
    wrpo_result r = wrpo_tokenizer_decode(tok, ids, list->count, skip, &text, &size);
    CHECK(r == WRPO_OK && size == want->size && memcmp(text, want->text, size) == 0,
          "%s: skip %d: want \"%s\", found \"%s\"", name, skip, want->text, text);
    wrpo_free(ctx, text);
    free(ids);
}
/* ids(prompt) and ids(reply as what goes on) decode to the prompt's text and, unchanged, the reply's. */
static int check_continue(wrpo_tokenizer *tok, const char *name) {
    static const char *const prompts[] = {"Hello",   " a b ", "x\n", "<s> [INST] hi [/INST]", "<|im_start|>assistant\n",
                                          "<|end|>", "\n"};
    static const char *const replies[] = {
        "Hello there", " Hello", "  two  spaces ",          "\nHello\n\n x", "\xF0\x9F\x91\x8D ok",
        "7 x",         "",       "caf\xC3\xA9 \xE6\x9D\xB1"};
    int n = 0;
    for (int p = 0; p < 7; p++)
        for (int r = 0; r < 8; r++, n++) {
            int32_t *ids = NULL, *rest = NULL, all[256];
            int64_t count = 0, more = 0;
            char *before = NULL, *after = NULL;
            size_t before_size = 0, after_size = 0, size = strlen(replies[r]);
            bool ok = wrpo_tokenizer_encode(tok, prompts[p], strlen(prompts[p]), 0, &ids, &count) == WRPO_OK;
            ok = ok && wrpo_tokenizer_encode(tok, replies[r], size, WRPO_TOKENIZER_CONTINUE, &rest, &more) == WRPO_OK &&
                count + more < 256;
            if (!ok) { CHECK(ok, "%s", name); return n; }
            memcpy(all, ids, (size_t)count * sizeof *ids);
            memcpy(all + count, rest, (size_t)more * sizeof *rest);
            ok = wrpo_tokenizer_decode(tok, ids, count, false, &before, &before_size) == WRPO_OK;
            ok = ok && wrpo_tokenizer_decode(tok, all, count + more, false, &after, &after_size) == WRPO_OK;
            CHECK(ok && after_size == before_size + size && memcmp(after, before, before_size) == 0 &&
                      memcmp(after + before_size, replies[r], size) == 0,
                  "%s: \"%s\" and \"%s\" became \"%s\"", name, prompts[p], replies[r], after);
            wrpo_free(ctx, ids), wrpo_free(ctx, rest), wrpo_free(ctx, before), wrpo_free(ctx, after);
        }
    return n;
}

/* ---- the tables ---- */
static int64_t nfc_changed, nfc_rejoined, nfc_wrong;
static void check_unicode(void) {
    static const struct { uint32_t classes; int64_t count;
    } sizes[] = {
        {WRPO__L, 141028},
        {WRPO__N, 1911},
        {1u << WRPO__ND, 760},
        {1u << WRPO__M, 2501},
        {1u << WRPO__P | 1u << WRPO__PC, 855},
        {1u << WRPO__S | 1u << WRPO__SW, 8514},
        {1u << WRPO__LU, 1858},
        {1u << WRPO__LL, 2258},
        {1u << WRPO__LT, 31},
        {1u << WRPO__LM, 404},
        {1u << WRPO__LO, 136477},
        {1u << WRPO__SPACE, 25},
        {WRPO__WORD, 144667},
        {WRPO__CLASSES, 0x110000},
    };
    wrpo__unicode *u = wrpo__unicode_of(ctx);
    wrpo__keyed *marks = NULL;
    wrpo__text out = {.arena = wrpo__current}, again = {.arena = wrpo__current};
    wrpo__unicode_load_nfc(u);
    for (int64_t k = 0; k < WRPO__COUNT(sizes); k++) {
        int64_t n = 0;
        for (int32_t c = 0; c < 0x110000; c++) n += sizes[k].classes >> (u->kind[c] & 15) & 1;
        CHECK(n == sizes[k].count, "classes %x: want %lld code points, found %lld", (unsigned)sizes[k].classes,
              (long long)sizes[k].count, (long long)n);
    }
    /* every code point alone and decomposed: NFC of both is the same, and NFC of NFC changes nothing */
    for (int32_t c = 0; c < 0x110000; c++) {
        char s[128];
        size_t n = wrpo__utf8_put(s, (uint32_t)c), m = 0;
        if (c >= 0xD800 && c < 0xE000) continue;
        out.size = again.size = 0;
        wrpo__nfc(u, s, n, &out, &marks);
        nfc_changed += out.size != n || memcmp(out.data, s, n) != 0;
        stbds_arrsetlen(marks, 0);
        wrpo__decompose(u, c, &marks);
        for (int64_t k = 0; k < stbds_arrlen(marks); k++) m += wrpo__utf8_put(s + m, (uint32_t)marks[k].value);
        wrpo__nfc(u, s, m, &again, &marks);
        nfc_rejoined += m != again.size || memcmp(s, again.data, m) != 0;
        nfc_wrong += out.size != again.size || memcmp(out.data, again.data, out.size) != 0;
    }
}
static void test_unicode(void) {
    WRPO__CALL(ctx, wrpo__arena_new(ctx), true, check_unicode());
    CHECK(wrpo__end(&wrpo__entry) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
    CHECK(nfc_changed == 1120, "NFC changes %lld code points", (long long)nfc_changed);
    CHECK(nfc_rejoined == 940 + 18 + 11172, "%lld decompositions compose again", (long long)nfc_rejoined);
    CHECK(nfc_wrong == 0, "NFC of %lld code points differs from NFC of their decompositions", (long long)nfc_wrong);
}

/* ---- the reference library's results ---- */
static void test_golden(void) {
    static const char *const goes_on[] = {
        "llama3",           "qwen3",          "nemo",       "deepseek",  "gpt2", "prefix",
        "smollm2",          "o200k",          "mistral_v1", "internlm2", "yi",   "metaspace_first",
        "metaspace_always", "metaspace_never"};
    char *file;
    wrpo_json *root = parse_file("golden/tokenizers.json", &file);
    CHECK(root, "golden/tokenizers.json");
    if (!root) return;
    int cases = 0, vectors = 0, continued = 0;
    for (const wrpo_json *c = wrpo_json_get(root, "cases")->child; c; c = c->next, cases++) {
        const wrpo_json *parts = wrpo_json_get(c, "parts"),
                        *model = wrpo_json_get(wrpo_json_get(root, "models"), wrpo_json_get(c, "model")->text);
        const char *name = wrpo_json_get(c, "name")->text;
        char *text = malloc(parts->size + model->size + 64);
        put("tokenizer.json", text, (size_t)sprintf(text, "{%s,\n\"model\":%s}", parts->text, model->text));
        wrpo_tokenizer *tok = load(dir);
        for (const wrpo_json *v = wrpo_json_get(c, "vectors")->child; v && tok; v = v->next, vectors++) {
            const wrpo_json *in = v->child, *ids = in->next, *decoded = ids->next, *skipped = decoded->next,
                            *t = wrpo_json_get(root, "texts")->child;
            if (in->kind == WRPO_JSON_NUMBER) {
                for (int64_t k = 0; k < in->integer; k++) t = t->next;
                in = t;
            }
            if (decoded->kind == WRPO_JSON_NUMBER) decoded = in;
            if (skipped->kind == WRPO_JSON_NUMBER) skipped = decoded;
            /* the second time from the cache of words */
            for (int turn = 0; turn < 2 && in->kind != WRPO_JSON_NULL; turn++) {
                check_encode(tok, name, in, 0, NULL, ids, NULL);
                check_encode(tok, name, in, WRPO_TOKENIZER_SPECIAL, wrpo_json_get(c, "before"), ids,
                             wrpo_json_get(c, "after"));
            }
            check_decode(tok, name, ids, false, decoded);
            check_decode(tok, name, ids, true, skipped);
        }
        for (int64_t k = 0; k < WRPO__COUNT(goes_on) && tok; k++)
            if (strcmp(name, goes_on[k]) == 0) continued += check_continue(tok, name);
        wrpo_tokenizer_free(tok);
        free(text);
    }
    printf("golden: %d tokenizers, %d texts, %d continued\n", cases, vectors, continued);
    wrpo_json_free(ctx, root);
    free(file);
}
static void test_shared_tokenizers(void) {
    static const char *const names[] = {"gemma2",
                                        "gpt2",
                                        "llama3",
                                        "llama3_1",
                                        "llama3_2",
                                        "mistral_v1",
                                        "phi-3-mini",
                                        "qwen2_5",
                                        "variants/added_flags",
                                        "variants/bpe_nounk_drops",
                                        "variants/bpe_unk_fuse",
                                        "variants/digits_bytelevel",
                                        "variants/llama2_normalized_added",
                                        "variants/metaspace_first"};
    for (int64_t k = 0; k < WRPO__COUNT(names); k++) {
        char path[256];
        int encoded = 0, decoded = 0, continued = 0;
        snprintf(path, sizeof path, "tokenizers/%s/tokenizer.json", names[k]);
        const char *found = test_shared(path);
        if (!found) { SKIP(1, "%s is not here", path); continue; }
        char from[512];
        snprintf(from, sizeof from, "%.*s", (int)(strlen(found) - strlen("/tokenizer.json")), found);
        wrpo_tokenizer *tok = load(from);
        for (int f = 0; f < 2 && tok; f++) {
            snprintf(path, sizeof path, "tokenizers/%s/%s.jsonl", names[k], f ? "fuzz" : "vectors");
            FILE *lines = (found = test_shared(path)) ? fopen(found, "rb") : NULL;
            char *line = malloc(1 << 20);
            while (lines && fgets(line, 1 << 20, lines)) {
                wrpo_json *v = parse(path, line, strlen(line));
                const wrpo_json *text = wrpo_json_get(v, "text"), *ids = wrpo_json_get(v, "ids"),
                                *special = wrpo_json_get(v, "ids_special");
                const wrpo_json *plain = wrpo_json_get(v, "decoded"), *skipped = wrpo_json_get(v, "decoded_skip");
                check_encode(tok, names[k], text, 0, NULL, ids, NULL);
                check_encode(tok, names[k], text, WRPO_TOKENIZER_SPECIAL, NULL, special ? special : ids, NULL);
                check_decode(tok, names[k], ids, false, plain ? plain : text);
                check_decode(tok, names[k], ids, true, skipped ? skipped : plain ? plain : text);
                encoded += 2, decoded += 2;
                wrpo_json_free(ctx, v);
            }
            free(line);
            if (lines) fclose(lines);
        }
        /* those lose text */
        if (strncmp(names[k], "variants/bpe", 12) != 0 && strcmp(names[k], "variants/added_flags") != 0 && tok)
            continued = check_continue(tok, names[k]);
        printf("%s: %d encoded, %d decoded, %d continued\n", names[k], encoded, decoded, continued);
        wrpo_tokenizer_free(tok);
    }
}

/* ---- small tokenizers made here ---- */
#define MODEL "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"<s>\":3,\"</s>\":4},\"merges\":[\"a b\"]}"
#define TOKEN(id, content, flags) \
    "{\"id\":" #id ",\"content\":\"" content "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false," flags "}"
#define SPECIAL "\"normalized\":false,\"special\":true"
#define SPLIT(regex) \
    "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"invert\":false,\"pattern\":{\"Regex\":\"" regex "\"}}"
static void write_small(const char *key, const char *value) {      /* one member of tokenizer.json is this */
    static const char *const usual[][2] = {
        {"version", "\"1.0\""},
        {"added_tokens", "[" TOKEN(3, "<s>", SPECIAL) "," TOKEN(4, "</s>", SPECIAL) "]"},
        {"normalizer", "null"},
        {"pre_tokenizer", "null"},
        {"post_processor", "null"},
        {"decoder", "{\"type\":\"Fuse\"}"},
        {"model", MODEL}};
    char text[8192];
    int n = 0;
    for (int k = 0; k < 7; k++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s\"%s\":%s", k ? ",\n" : "{", usual[k][0],
                      strcmp(key, usual[k][0]) == 0 ? value : usual[k][1]);
    put("tokenizer.json", text, (size_t)(n + snprintf(text + n, sizeof text - (size_t)n, "}\n")));
}
static void check_refused(wrpo_result code, const char *says) {
    wrpo_tokenizer *tok;
    wrpo_result r = wrpo_tokenizer_load(ctx, dir, &tok);
    CHECK(r == code && !tok && strstr(wrpo_last_error(ctx)->text, says), "want error %d with \"%s\", found %d, \"%s\"",
          (int)code, says, (int)r, r ? wrpo_last_error(ctx)->text : "loaded");
    wrpo_tokenizer_free(tok);
}
static void test_refusals(void) {
    static const struct { const char *key, *value; wrpo_result code; const char *says;
    } cases[] = {
        {"version", "\"2.0\"", WRPO_E_UNSUPPORTED,
         "tokenizer.json:1:12: tokenizer.json version \"2.0\" is not supported"},
        {"model", "{\"type\":\"Unigram\",\"vocab\":[]}", WRPO_E_UNSUPPORTED,
         "tokenizer.json:7:17: model \"Unigram\" is not supported"},
        {"model", "{\"type\":\"WordPiece\",\"vocab\":{}}", WRPO_E_UNSUPPORTED, "model \"WordPiece\" is not supported"},
        {"model", "{\"type\":\"WordLevel\",\"vocab\":{}}", WRPO_E_UNSUPPORTED, "model \"WordLevel\" is not supported"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{}}", WRPO_E_FORMAT, "merges: want an array, found no such key"},
        {"model", "{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{},\"merges\":[]}", WRPO_E_UNSUPPORTED,
         "dropout 0.1 is not supported"},
        {"model", "{\"type\":\"BPE\",\"continuing_subword_prefix\":\"##\",\"vocab\":{},\"merges\":[]}",
         WRPO_E_UNSUPPORTED, "continuing_subword_prefix \"##\""},
        {"model", "{\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\",\"vocab\":{},\"merges\":[]}", WRPO_E_UNSUPPORTED,
         "end_of_word_suffix \"</w>\""},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}", WRPO_E_FORMAT,
         "vocab: the id 0 stands twice"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}", WRPO_E_FORMAT, "a: want an integer from 0"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":1.5},\"merges\":[]}", WRPO_E_FORMAT, "a: want an integer from 0"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":2000000000},\"merges\":[]}", WRPO_E_FORMAT,
         "a: want an integer from 0"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}", WRPO_E_FORMAT,
         "merge 0: its result \"ab\" is not in the vocabulary"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[[\"a\",\"c\"]]}", WRPO_E_FORMAT,
         "merge 0: its part \"c\" is not in the vocabulary"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"ab\":1},\"merges\":[\"ab\"]}", WRPO_E_FORMAT,
         "merge 0: want two tokens, as two strings or with one space between them, found \"ab\""},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"ab\":1},\"merges\":[\"a  b\"]}", WRPO_E_FORMAT,
         "merge 0: want two tokens, as two strings or with one space between them, found \"a  b\""},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}", WRPO_E_FORMAT,
         "merge 0: want two tokens, as two strings or with one space between them, found an array of 1"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[7]}", WRPO_E_FORMAT,
         "merge 0: want two tokens, as two strings or with one space between them, found 7"},
        {"normalizer", "{\"type\":\"NFKC\"}", WRPO_E_UNSUPPORTED,
         "tokenizer.json:3:22: normalizer \"NFKC\" is not supported"},
        {"normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}", WRPO_E_UNSUPPORTED,
         "normalizer \"Lowercase\" is not supported"},
        {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}", WRPO_E_UNSUPPORTED,
         "a pattern that matches the empty text is not supported"},
        {"normalizer", "{\"type\":\"Prepend\"}", WRPO_E_FORMAT, "prepend: want a string, found no such key"},
        {"pre_tokenizer", "{\"type\":\"UnicodeScripts\"}", WRPO_E_UNSUPPORTED,
         "pre_tokenizer \"UnicodeScripts\" is not supported"},
        {"pre_tokenizer", "{\"type\":\"Punctuation\",\"behavior\":\"Isolate\"}", WRPO_E_UNSUPPORTED,
         "Split behavior \"Isolate\""},
        {"pre_tokenizer", "{\"type\":\"Split\",\"behavior\":\"Isolate\",\"pattern\":{\"String\":\" \"}}",
         WRPO_E_UNSUPPORTED, "Split behavior \"Isolate\""},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"maybe\"}",
         WRPO_E_UNSUPPORTED, "prepend_scheme \"maybe\""},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}", WRPO_E_FORMAT,
         "add_prefix_space false goes only with"},
        {"pre_tokenizer", SPLIT("^"), WRPO_E_UNSUPPORTED, "regex, byte 2: a pattern that matches the empty text"},
        {"pre_tokenizer", SPLIT("a|$"), WRPO_E_UNSUPPORTED, "a pattern that matches the empty text"},
        {"pre_tokenizer", SPLIT("a(?=$)"), WRPO_E_UNSUPPORTED, "regex, byte 5: an anchor is not supported: a(?=$)"},
        {"pre_tokenizer", SPLIT("a*"), WRPO_E_UNSUPPORTED, "a pattern that matches the empty text"},
        {"pre_tokenizer", SPLIT("a|"), WRPO_E_UNSUPPORTED, "a pattern that matches the empty text"},
        {"pre_tokenizer", SPLIT("a+?"), WRPO_E_UNSUPPORTED, "this repetition"},
        {"pre_tokenizer", SPLIT("a{2}+"), WRPO_E_UNSUPPORTED, "this repetition"},
        {"pre_tokenizer", SPLIT("a{3,2}"), WRPO_E_UNSUPPORTED, "this repetition"},
        {"pre_tokenizer", SPLIT("a{}"), WRPO_E_UNSUPPORTED, "this repetition"},
        {"pre_tokenizer", SPLIT("a{,}"), WRPO_E_UNSUPPORTED, "this repetition"},
        {"pre_tokenizer", SPLIT("a{99999999999}"), WRPO_E_UNSUPPORTED, "a number this large"},
        {"pre_tokenizer", SPLIT("b|(a)?"), WRPO_E_UNSUPPORTED, "a pattern that matches the empty text"},
        {"pre_tokenizer", SPLIT("+a"), WRPO_E_UNSUPPORTED, "this repetition"},
        {"pre_tokenizer", SPLIT("(ab)+"), WRPO_E_UNSUPPORTED, "this repetition of a group"},
        {"pre_tokenizer", SPLIT("(ab"), WRPO_E_UNSUPPORTED, "a group without its end"},
        {"pre_tokenizer", SPLIT("ab)"), WRPO_E_UNSUPPORTED, "this bracket"},
        {"pre_tokenizer", SPLIT("(?<=a)b"), WRPO_E_UNSUPPORTED, "this kind of group"},
        {"pre_tokenizer", SPLIT("a(?!bc)"), WRPO_E_UNSUPPORTED, "a lookahead for more than one character"},
        {"pre_tokenizer", SPLIT("a(?!(b))"), WRPO_E_UNSUPPORTED, "a lookahead for more than one character"},
        {"pre_tokenizer", SPLIT("\\\\bab"), WRPO_E_UNSUPPORTED, "this escape"},
        {"pre_tokenizer", SPLIT("(a)\\\\1"), WRPO_E_UNSUPPORTED, "this escape"},
        {"pre_tokenizer", SPLIT("a\\\\"), WRPO_E_UNSUPPORTED, "a pattern that ends here"},
        {"pre_tokenizer", SPLIT("\\\\u0041"), WRPO_E_UNSUPPORTED, "regex, byte 3: this escape"},
        {"pre_tokenizer", SPLIT("\\\\x{41}"), WRPO_E_UNSUPPORTED, "this escape"},
        {"pre_tokenizer", SPLIT("\\\\p{^L}"), WRPO_E_UNSUPPORTED, "this property"},
        {"pre_tokenizer", SPLIT("\\\\p{Thai}"), WRPO_E_UNSUPPORTED, "this property"},
        {"pre_tokenizer", SPLIT("[&&b]"), WRPO_E_UNSUPPORTED, "an empty class"},
        {"pre_tokenizer", SPLIT("[a[]]"), WRPO_E_UNSUPPORTED, "an empty class"},
        {"pre_tokenizer", SPLIT("[a[b]"), WRPO_E_UNSUPPORTED, "a pattern that ends here"},
        {"pre_tokenizer", SPLIT("[a-[b]]"), WRPO_E_UNSUPPORTED, "a class within a class"},
        {"pre_tokenizer", SPLIT("[[:alpha:]]"), WRPO_E_UNSUPPORTED, "a POSIX class"},
        {"pre_tokenizer", SPLIT("[]a]"), WRPO_E_UNSUPPORTED, "an empty class"},
        {"pre_tokenizer", SPLIT("[b-a]"), WRPO_E_UNSUPPORTED, "this range"},
        {"pre_tokenizer", SPLIT("[a-c-e]"), WRPO_E_UNSUPPORTED, "'-' at this place"},
        {"pre_tokenizer", SPLIT("[a"), WRPO_E_UNSUPPORTED, "a pattern that ends here"},
        {"pre_tokenizer", SPLIT("(?i:ss)"), WRPO_E_UNSUPPORTED, "a pair of letters with a ligature"},
        {"pre_tokenizer", SPLIT("(?i:[a-\xC3\xA9])"), WRPO_E_UNSUPPORTED, "anything but ASCII letters in (?i:...)"},
        {"pre_tokenizer", SPLIT("(?i:[\\\\p{L}])"), WRPO_E_UNSUPPORTED, "anything but ASCII letters in (?i:...)"},
        {"post_processor", "{\"type\":\"BertProcessing\",\"sep\":[\"a\",0],\"cls\":[\"a\",0]}", WRPO_E_UNSUPPORTED,
         "post_processor \"BertProcessing\""},
        {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}", WRPO_E_UNSUPPORTED,
         "want text A once in \"single\", found none"},
        {"post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"B\",\"type_id\":0}}],\"special_tokens\":"
         "{}}",
         WRPO_E_UNSUPPORTED, "found another sequence"},
        {"post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}"
         "}],\"special_tokens\":{}}",
         WRPO_E_FORMAT, "<s>: want an object, found no such key"},
        {"post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}"
         "}],"
         "\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[5],\"tokens\":[\"<s>\"]}}}",
         WRPO_E_FORMAT, "want an integer from 0 to 4, found 5"},
        {"decoder", "{\"type\":\"WordPiece\",\"prefix\":\"##\"}", WRPO_E_UNSUPPORTED,
         "decoder \"WordPiece\" is not supported"},
        {"decoder", "{\"type\":\"Strip\",\"content\":\"ab\",\"start\":1,\"stop\":0}", WRPO_E_FORMAT,
         "content: want one character, found \"ab\""},
        {"added_tokens", "[" TOKEN(3, "<s>", SPECIAL) "," TOKEN(3, "<s>", "\"normalized\":false,\"special\":false") "]",
         WRPO_E_FORMAT, "\"<s>\" stands twice, with different flags"},
        {"added_tokens", "[{\"id\":3,\"content\":\"<s>\"}]", WRPO_E_FORMAT,
         "single_word: want true or false, found no such key"},
        {"added_tokens", "{}", WRPO_E_FORMAT, "added_tokens: want an array"},
        {"post_processor",
         "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":"
         "\"A\"}}],\"special_tokens\":{}},"
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{}}]}",
         WRPO_E_UNSUPPORTED, "more than one \"TemplateProcessing\" is not supported"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"__\"}", WRPO_E_FORMAT,
         "replacement: want one character, found \"__\""},
    };
    for (int64_t k = 0; k < WRPO__COUNT(cases); k++)
        write_small(cases[k].key, cases[k].value), check_refused(cases[k].code, cases[k].says);
    puts_to("tokenizer.json", "{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"_\"},\"model\":" MODEL ","
            "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}}");
    check_refused(WRPO_E_UNSUPPORTED, "after this normalizer, prepend_scheme \"first\" is not supported");
    static const char *const longer[] = {"{\"Regex\":\"[0-9]+\"}", "{\"String\":\"22\"}",   "{\"Regex\":\"2|33\"}",
                                         "{\"Regex\":\"2(?=3)\"}", "{\"Regex\":\"[0-9]\"}", "{\"String\":\"2\"}"};
    /* a normalizer that can drop characters before Metaspace looks for the first */
    for (int k = 0; k < 6; k++) {
        char text[512];
        int32_t *ids;
        int64_t count;
        snprintf(
            text, sizeof text,
            "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":%s,\"content\":\"N\"},\"pre_tokenizer\":{\"type\":"
            "\"Metaspace\",\"replacement\":\"_\","
            "\"prepend_scheme\":\"first\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"N\":0,\"_\":7},\"merges\":[]}}",
            longer[k]);
        puts_to("tokenizer.json", text);
        if (k < 4) {
            check_refused(WRPO_E_UNSUPPORTED, "after this normalizer, prepend_scheme \"first\" is not supported");
            continue;
        }
        wrpo_tokenizer *tok = load(dir);
        CHECK(wrpo_tokenizer_encode(tok, "22", 2, 0, &ids, &count) == WRPO_OK && count == 3 && ids[0] == 7 &&
                  ids[1] == 0 && ids[2] == 0,
              "%s", longer[k]);
        wrpo_free(ctx, ids);
        wrpo_tokenizer_free(tok);
    }
    puts_to("tokenizer.json",
            "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"y\"},\"content\":\"x\"},\"model\":" MODEL
            ","
            "\"added_tokens\":[" TOKEN(5, "x", "\"normalized\":true,\"special\":false") "," TOKEN(
                6, "y", "\"normalized\":true,\"special\":false") "]}");
    check_refused(WRPO_E_FORMAT, "added token 6 looks like added token 5");
    write_small("model", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"<s>\":3,\"</s>\":4,\"b\":5},\"merges\":[]}");
    wrpo_tokenizer_free(load(dir));                    /* holes in the vocabulary are no error */
    write_small("added_tokens",
                "[" TOKEN(3, "<s>", SPECIAL) "," TOKEN(3, "<s>", SPECIAL) "," TOKEN(9, "", SPECIAL) "]");
    wrpo_tokenizer_free(load(dir));                    /* nor is the same token again, nor an empty one */
    for (int n = 400; n <= 2000; n += 1600) {          /* alternatives, beyond which the parser would go too deep */
        char pattern[4200];
        for (int k = 0; k < n; k++) memcpy(pattern + 2 * k, "a|", 2);
        pattern[2 * n - 1] = 0;
        char *split = malloc(sizeof pattern + 128);
        sprintf(split, SPLIT("%s"), pattern);
        write_small("pre_tokenizer", split);
        if (n == 400) wrpo_tokenizer_free(load(dir));
        else check_refused(WRPO_E_UNSUPPORTED, "so many alternatives, or so deep a nest of groups is not supported");
        free(split);
    }
    put("tokenizer.json", NULL, 0);
    check_refused(WRPO_E_IO, "want a tokenizer's directory, found no tokenizer.json in it");
    puts_to("tokenizer.json", "[]");
    check_refused(WRPO_E_FORMAT, "tokenizer.json:1:1: tokenizer.json: want an object, found an array of 0");
}
/* Special tokens, chat templates, and the post-processor that some classes get. */
static void test_config(void) {
    write_small("", "");
    wrpo_tokenizer *tok = load(dir);
    CHECK(!tok->config && !tok->chat[0].text && !tok->special[0] && wrpo_tokenizer_bos(tok) == -1 &&
              wrpo_tokenizer_eos(tok) == -1,
          "nothing given");
    CHECK(wrpo_tokenizer_size(tok) == 5 && wrpo__is_special(tok, 4) && !wrpo__is_special(tok, 0) &&
              !wrpo__is_special(tok, 5) && !wrpo__is_special(tok, -1),
          "sizes");
    CHECK(wrpo__token_id(tok, "ab", 2) == 2 && wrpo__token_id(tok, "ba", 2) == -1 && wrpo__token_id(tok, "", 0) == -1,
          "token ids");
    wrpo_tokenizer_free(tok);

    puts_to("special_tokens_map.json",
            "{\"bos_token\":{\"content\":\"<s>\",\"lstrip\":false},\"eos_token\":\"a\",\"pad_token\":\"</"
            "s>\",\"cls_token\":null}");
    tok = load(dir);
    CHECK(tok->bos == 3 && tok->eos == 0 && !strcmp(tok->special[4], "</s>") && !tok->special[2],
          "special_tokens_map.json");
    CHECK(wrpo__is_special(tok, 0), "a special token is an added one");
    wrpo_tokenizer_free(tok);

    puts_to("tokenizer_config.json",
            "{\"bos_token\":null,\"eos_token\":{\"content\":\"</"
            "s>\"},\"unk_token\":\"nowhere\",\"cls_token\":\"b\",\"rare\":\"x\",\"add_bos_token\":true}");
    tok = load(dir);
    CHECK(tok->bos == 3 && tok->eos == 0 && !strcmp(tok->special[4], "</s>") && !strcmp(tok->special[2], "nowhere") &&
              !tok->special[5],
          "special_tokens_map.json goes first");
    CHECK(wrpo__is_special(tok, 0) && !wrpo__is_special(tok, 1), "what it hides is no special token");
    CHECK(wrpo__json_is(wrpo_json_get(tok->config, "rare"), "x") && stbds_arrlen(tok->prefix) == 0,
          "the rest of it is kept; other classes keep their post-processor");
    wrpo_tokenizer_free(tok);

    puts_to("tokenizer_config.json", "{\"bos_token\":null,\"eos_token\":\"</s>\",\"added_tokens_decoder\":{}}");
    tok = load(dir);
    CHECK(tok->bos == -1 && !tok->special[0] && tok->eos == 4 && !tok->special[4] && !wrpo__is_special(tok, 0),
          "but not beside an added_tokens_decoder");
    wrpo_tokenizer_free(tok);
    puts_to("special_tokens_map.json", "{\"bos_token\":7}");
    puts_to("tokenizer_config.json", "{\"bos_token\":\"<s>\"}");
    check_refused(WRPO_E_FORMAT, "special_tokens_map.json:1:14: bos_token: want a string, found 7");
    put("special_tokens_map.json", NULL, 0);

    puts_to("tokenizer_config.json", "{\"eos_token\":\"<|im_end|>\"}");
    tok = load(dir);
    CHECK(tok->eos == 5 && wrpo_tokenizer_size(tok) == 6 && !strcmp(tok->special[1], "<|im_end|>"),
          "a token that is not in the vocabulary gets the next id");
    wrpo_tokenizer_free(tok);
    puts_to("tokenizer_config.json", "{\"bos_token\":7}");
    check_refused(WRPO_E_FORMAT, "bos_token: want a string, found 7");
    puts_to("tokenizer_config.json", "[1]");
    check_refused(WRPO_E_FORMAT, "tokenizer_config.json: want an object");
    puts_to("tokenizer_config.json",
            "{\"tokenizer_class\":\"LlamaTokenizerFast\",\"bos_token\":null,\"add_bos_token\":true}");
    check_refused(WRPO_E_FORMAT, "add_bos_token is true, but no bos_token is in the vocabulary");
    puts_to("tokenizer_config.json", "{\"tokenizer_class\":\"GemmaTokenizer\"}");
    check_refused(WRPO_E_FORMAT,
                  "tokenizer_config.json:1:20: add_bos_token is true, as this class has it, but no bos_token is in the "
                  "vocabulary");

    /* text "ab"; tokenizer.json: </s> before it */
    static const struct { const char *config; int32_t want[4]; int64_t count;
    } classes[] = {
        {"{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"bos_token\":\"<s>\",\"add_bos_token\":true}", {4, 2}, 2},
        {"{\"tokenizer_class\":\"LlamaTokenizer\",\"bos_token\":\"<s>\"}", {3, 2}, 2},
        {"{\"tokenizer_class\":\"LlamaTokenizerFast\",\"bos_token\":\"<s>\",\"eos_token\":\"</"
         "s>\",\"add_bos_token\":false,\"add_eos_token\":true}",
         {2, 4},
         2},
        {"{\"tokenizer_class\":\"GemmaTokenizerFast\",\"bos_token\":\"<s>\",\"eos_token\":\"</"
         "s>\",\"add_bos_token\":true,\"add_eos_token\":true}",
         {3, 2, 4},
         3},
        {"{\"tokenizer_class\":\"GemmaTokenizer\",\"bos_token\":\"<s>\",\"add_bos_token\":false}", {2}, 1},
        {"{\"tokenizer_class\":\"LlamaTokenizer\"}", {3, 2}, 2},
        {"{\"tokenizer_class\":\"LlamaTokenizerFast\",\"add_bos_token\":false,\"add_eos_token\":true}", {2, 4}, 2},
        {"{\"tokenizer_class\":\"LlamaTokenizers\"}", {4, 2}, 2},
    };
    write_small("post_processor",
                "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"</"
                "s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
                "\"special_tokens\":{\"</s>\":{\"id\":\"</s>\",\"ids\":[4],\"tokens\":[\"</s>\"]}}}");
    for (int64_t k = 0; k < WRPO__COUNT(classes); k++) {
        int32_t *ids;
        int64_t count;
        puts_to("tokenizer_config.json", classes[k].config);
        if (!(tok = load(dir))) continue;
        CHECK(wrpo_tokenizer_encode(tok, "ab", 2, WRPO_TOKENIZER_SPECIAL, &ids, &count) == WRPO_OK &&
                  count == classes[k].count && memcmp(ids, classes[k].want, (size_t)count * 4) == 0,
              "%s", classes[k].config);
        wrpo_free(ctx, ids);
        wrpo_tokenizer_free(tok);
    }
    /* want: for a plain conversation, for one with tools */
    static const struct { const char *config, *jinja, *tools, *want[2];
    } templates[] = {
        {"{\"chat_template\":\"A\"}", "", "", {"A"}},
        {"{\"chat_template\":[{\"name\":\"rag\",\"template\":\"R\"},{\"name\":\"default\",\"template\":\"D\"}]}",
         "",
         "",
         {"D"}},
        {"{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"},{"
         "\"name\":\"default\",\"template\":\"E\"}]}",
         "",
         "",
         {"E", "T"}},
        {"{\"chat_template\":[{\"name\":\"rag\",\"template\":\"R\"}]}", "", "", {NULL}},
        {"{\"chat_template\":\"A\"}", "C\n", "", {"C\n"}},
        {"{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}",
         "C",
         "",
         {"C"}},
        {"{\"chat_template\":\"A\"}", "C", "U", {"C", "U"}},
        {"{\"chat_template\":\"A\"}", "", "U", {NULL, "U"}},
        {"", "C", "", {"C"}},
    };
    char folder[256];
    snprintf(folder, sizeof folder, "%s/additional_chat_templates", dir);
    CHECK(mkdir(folder, 0700) == 0, "%s", folder);
    puts_to("chat_template.json", "{\"chat_template\":\"B\"}");       /* is a processor's, not a tokenizer's */
    for (int64_t k = 0; k < WRPO__COUNT(templates); k++) {
        puts_to("tokenizer_config.json", templates[k].config);
        puts_to("chat_template.jinja", templates[k].jinja);
        puts_to("additional_chat_templates/tool_use.jinja", templates[k].tools);
        tok = load(dir);
        for (int i = 0; i < 2; i++) {
            const char *want = templates[k].want[i], *found = tok->chat[i].text;
            CHECK(!want == !found && (!want || (!strcmp(found, want) && tok->chat[i].size == strlen(want))),
                  "template %lld: found %s", (long long)k, found ? found : "none");
        }
        wrpo_tokenizer_free(tok);
    }
    puts_to("chat_template.json", ""), puts_to("additional_chat_templates/tool_use.jinja", ""), remove(folder);
    puts_to("chat_template.jinja", "ab\xFF");
    check_refused(WRPO_E_FORMAT, "chat_template.jinja: not UTF-8 at byte 2");
    puts_to("tokenizer_config.json", ""), puts_to("chat_template.jinja", "");
}
/* What tokenizer_config.json and special_tokens_map.json make of tokens: ids as transformers (5.24) has them, without
   and with the skipping of special tokens. tokenizer.json adds <s> alone; there x becomes </s>. */
#define ADD(content, flags) "{\"content\":\"" content "\",\"single_word\":false," flags "}"
#define PLAIN "\"lstrip\":false,\"rstrip\":false," SPECIAL
static void test_added_by_config(void) {
    static const struct {
        const char *config, *map, *text;
        int64_t count;
        int32_t ids[8];
        const char *skipped;
    } cases[] = {
        {"{}", "", "ab</s>b", 6, {2, 5, 6, 3, 7, 1}, NULL},
        {"{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}", "", "ab</s>b", 3, {2, 4, 1}, "abb"},
        {"{\"eos_token\":\"</s>\"}", "", "abxb", 6, {2, 5, 6, 3, 7, 1}, NULL},
        {"{\"eos_token\":{\"__type\":\"AddedToken\",\"content\":\"</s>\",\"rstrip\":true}}",
         "",
         "ab </s>  b",
         4,
         {2, 8, 4, 1},
         "ab b"},
        {"{\"eos_token\":{\"__type\":\"AddedToken\",\"content\":\"</s>\",\"normalized\":true}}",
         "",
         "abxb",
         3,
         {2, 4, 1},
         "abb"},
        {"{}", "{\"eos_token\":{\"content\":\"</s>\",\"rstrip\":true}}", " </s>  b", 3, {8, 4, 1}, " b"},
        {"{\"eos_token\":\"</s>\"}", "", " </s> b", 4, {8, 4, 8, 1}, "  b"},
        {"{}", "{\"eos_token\":{\"content\":\"</s>\",\"normalized\":true}}", "abxb", 3, {2, 4, 1}, "abb"},
        {"{\"cls_token\":\"a\"}", "", "ab", 2, {0, 1}, "b"},
        {"{\"image_token\":\"a\"}", "", "ab", 2, {0, 1}, "b"},
        {"{\"additional_special_tokens\":[\"a\"]}", "", "ab", 2, {0, 1}, "b"},
        {"{}", "{\"additional_special_tokens\":[\"a\"]}", "ab", 2, {0, 1}, "b"},
        {"{\"extra_special_tokens\":{\"image_token\":\"a\"}}", "", "ab", 2, {0, 1}, "b"},
        {"{\"tokenizer_class\":\"LlamaTokenizer\"}", "", "ab</s>", 2, {2, 4}, "ab"},
        {"{\"added_tokens_decoder\":{\"5\":" ADD("<", PLAIN) "}}", "", "<b", 2, {5, 1}, "b"},
        {"{\"added_tokens_decoder\":{\"0\":{\"content\":\"a\",\"special\":true}}}", "", "ab", 2, {0, 1}, "b"},
        {"{\"added_tokens_decoder\":{\"9\":" ADD("<s>", PLAIN) ",\"10\":" ADD("q", PLAIN) "}}",
         "",
         "aqb",
         3,
         {0, 10, 1},
         "ab"},
    };
    static const struct { const char *decoder, *says;
    } refused[] = {
        {"\"9\":" ADD("<s>", "\"lstrip\":false,\"rstrip\":true," SPECIAL),
         "tokenizer_config.json:1:30: added token \"<s>\" has other flags in tokenizer.json"},
        {"\"9\":" ADD("<s>", "\"lstrip\":true,\"rstrip\":false," SPECIAL), "has other flags"},
        {"\"9\":" ADD("<s>", "\"lstrip\":false,\"rstrip\":false,\"normalized\":true,\"special\":true"),
         "has other flags"},
        {"\"9\":" ADD("<s>", "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":false"),
         "has other flags"},
        {"\"9\":{\"content\":\"<s>\",\"single_word\":true,\"special\":true}", "has other flags"},
        {"\"12\":" ADD("<t>", PLAIN) ",\"9\":" ADD("<u>", PLAIN), "9: want ids that ascend"},
        {"\"9\":\"<s>\"", "want an object"},
        {"\"9\":{}", "content: want a string, found no such key"},
    };
    put("special_tokens_map.json", NULL, 0);
    char config[512];
    puts_to("tokenizer.json",
            "{\"added_tokens\":[" TOKEN(
                9, "<s>", SPECIAL) "],\"decoder\":{\"type\":\"Fuse\"},\"normalizer\":{\"type\":\"Replace\",\"pattern\":"
                                   "{\"String\":\"x\"},\"content\":\"</s>\"},"
                                   "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"s\":3,\"</"
                                   "s>\":4,\"<\":5,\"/\":6,\">\":7,\" \":8},\"merges\":[\"a b\"]}}");
    for (int64_t k = 0; k < WRPO__COUNT(cases); k++) {
        int32_t *ids;
        int64_t count;
        char *text;
        size_t size;
        puts_to("tokenizer_config.json", cases[k].config), puts_to("special_tokens_map.json", cases[k].map);
        wrpo_tokenizer *tok = load(dir);
        if (!tok) continue;
        CHECK(wrpo_tokenizer_encode(tok, cases[k].text, strlen(cases[k].text), 0, &ids, &count) == WRPO_OK &&
                  count == cases[k].count && memcmp(ids, cases[k].ids, (size_t)count * sizeof *ids) == 0,
              "%s %s", cases[k].config, cases[k].map);
        CHECK(wrpo_tokenizer_decode(tok, ids, count, true, &text, &size) == WRPO_OK &&
                  (!cases[k].skipped || !strcmp(text, cases[k].skipped)),
              "%s: %s", cases[k].config, text);
        wrpo_free(ctx, ids), wrpo_free(ctx, text);
        wrpo_tokenizer_free(tok);
    }
    put("special_tokens_map.json", NULL, 0);
    for (int64_t k = 0; k < WRPO__COUNT(refused); k++) {
        snprintf(config, sizeof config, "{\"added_tokens_decoder\":{%s}}", refused[k].decoder);
        puts_to("tokenizer_config.json", config);
        check_refused(WRPO_E_FORMAT, refused[k].says);
    }
    puts_to("tokenizer_config.json", "");
}
/* Tokens without a row in the vocabulary, and ids that a file only claims: as tokenizers (0.23) and transformers (5.24)
   have them. The texts' ids; size: of the tokenizer; says: the warning. */
static char said[2000];
static void listen(wrpo_level level, const char *text, void *user) {
    (void)level, (void)user;
    snprintf(said + strlen(said), sizeof said - strlen(said), "%s\n", text);
}
static void test_ids(void) {
    static const struct {
        const char *vocab, *added, *config, *text;
        int64_t count, size;
        int32_t ids[8];
        const char *says;
    } cases[] = {
        {"", "", "{\"pad_token\":\"[PAD]\"}", "a[PAD]b", 3, 5, {0, 4, 1}, ""},
        {"", TOKEN(4, "<x>", SPECIAL), "{\"pad_token\":\"[PAD]\",\"eos_token\":\"<e>\",\"bos_token\":\"<b>\"}",
         "a[PAD]b<e><b>", 5, 8, {0, 7, 1, 6, 5}, ""},
        {"", "", "{\"pad_token\":{\"__type\":\"AddedToken\",\"content\":\"[PAD]\",\"lstrip\":true}}", "a [PAD]b", 3, 5,
         {0, 4, 1}, ""},
        {"", "", "{\"extra_special_tokens\":{\"image_token\":\"<image>\",\"z_token\":\"<z>\"}}", "a<image><z>", 3, 6,
         {0, 4, 5}, ""},
        {"", "", "{\"extra_special_tokens\":[\"<image>\",\"<z>\"]}", "a<image><z>", 3, 6, {0, 4, 5}, ""},
        {"", "", "{\"additional_special_tokens\":[\"<i>\",\"<z>\"],\"pad_token\":\"<p>\"}", "a<i><z><p>", 4, 7,
         {0, 5, 6, 4}, ""},
        {"", "",
         "{\"additional_special_tokens\":[\"<w>\"],\"extra_special_tokens\":{\"q_token\":\"<q>\"},"
         "\"some_token\":\"<i>\",\"pad_token\":\"<p>\"}", "a<i><p><q><w>", 5, 8, {0, 5, 4, 6, 7}, ""},
        {"", "", "{\"sep_token\":\"<s>\",\"pad_token\":\"<p>\"}", "<p><s>", 2, 6, {5, 4}, ""},
        {"", "", "{\"pad_token\":null,\"extra_special_tokens\":[]}", "a", 1, 4, {0}, ""},
        {"", "", "{\"added_tokens_decoder\":{\"1\":" ADD("<p>", PLAIN) "}}", "a<p>", 2, 5, {0, 4},
         "added token \"<p>\": its id is 4, the next one free, and not 1: so the tokenizers library has it\n"},
        {"", "", "{\"added_tokens_decoder\":{\"4\":" ADD("<q>", PLAIN) ",\"9\":" ADD("<p>", PLAIN) "}}", "a<p><q>", 3,
         6, {0, 5, 4}, "added token \"<p>\": its id is 5, the next one free, and not 9"},
        {"", TOKEN(1, "<x>", SPECIAL) "," TOKEN(2, "<y>", SPECIAL), "", "abc<x><y>", 5, 6, {0, 1, 2, 4, 5},
         "tokenizer.json:1: added token \"<x>\": its id is 4, the next one free, and not 1; and others: so"},
        {"", TOKEN(8, "c", SPECIAL) "," TOKEN(4, "<y>", SPECIAL), "", "abc<y>", 4, 5, {0, 1, 2, 4},
         "added token \"c\": its id is 2, which the vocabulary gives it, and not 8"},
        {"", TOKEN(4, "<x>", SPECIAL) "," TOKEN(5, "<x>", SPECIAL) "," TOKEN(6, "<y>", SPECIAL), "", "<x><y>", 2, 6,
         {4, 5}, "and others"},
        {"\"z\":9,", TOKEN(5, "<x>", SPECIAL), "{\"pad_token\":\"<p>\"}", "z<x><p>", 3, 10, {9, 5, 6}, ""},
    };
    wrpo_ctx *const quiet = ctx;
    if (wrpo_open(&(wrpo_desc){.log = {.fn = listen}}, &ctx) != WRPO_OK) return;
    for (int64_t k = 0; k < WRPO__COUNT(cases); k++) {
        char file[2000];
        int32_t *ids = NULL;
        int64_t count = 0;
        snprintf(file, sizeof file,
                 "{\"added_tokens\":[%s],\"model\":{\"type\":\"BPE\",\"vocab\":{%s\"a\":0,\"b\":1,\"c\":2,\" "
                 "\":3},\"merges\":[]}}", cases[k].added, cases[k].vocab);
        said[0] = 0;
        puts_to("tokenizer.json", file), puts_to("tokenizer_config.json", cases[k].config);
        wrpo_tokenizer *tok = load(dir);
        if (!tok) continue;
        CHECK(wrpo_tokenizer_encode(tok, cases[k].text, strlen(cases[k].text), 0, &ids, &count) == WRPO_OK &&
                  count == cases[k].count && memcmp(ids, cases[k].ids, (size_t)count * sizeof *ids) == 0,
              "%s %s", cases[k].added, cases[k].config);
        CHECK(wrpo_tokenizer_size(tok) == cases[k].size, "%s: size %lld", cases[k].config,
              (long long)wrpo_tokenizer_size(tok));
        CHECK(*cases[k].says ? strstr(said, cases[k].says) != NULL : !*said, "%s %s: said \"%s\"", cases[k].added,
              cases[k].config, said);
        wrpo_free(ctx, ids);
        wrpo_tokenizer_free(tok);
    }
    puts_to("tokenizer_config.json", "");
    wrpo_close(ctx);
    ctx = quiet;
}
/* No tokenizer.json, but a file from which it is made. */
static void test_other_files(void) {
    static const char *const files[] = {"tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "x.tiktoken"};
    char want[300];
    puts_to("tokenizer.json", "");
    for (int64_t k = 0; k < WRPO__COUNT(files); k++) {
        puts_to(files[k], "x");
        snprintf(want, sizeof want, "no tokenizer.json in this directory, but %s, from which transformers makes one: "
                 "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)", files[k]);
        check_refused(WRPO_E_IO, want);
        puts_to(files[k], "");
    }
}
static void test_arguments(void) {
    static const struct { const char *text; size_t size; const char *says;
    } bad[] = {
        {"a\xFF", 2, "not UTF-8 at byte 1"},  {"\xC0\x80", 2, "at byte 0"},    {"ab\xED\xA0\x80", 5, "at byte 2"},
        {"\xF4\x90\x80\x80", 4, "at byte 0"}, {"abc\xE2\x96", 5, "at byte 3"},
    };
    int32_t *ids;
    int64_t count;
    char *text;
    size_t size;
    write_small("", "");
    wrpo_tokenizer *tok = load(dir);
    for (int64_t k = 0; k < WRPO__COUNT(bad); k++)
        CHECK(wrpo_tokenizer_encode(tok, bad[k].text, bad[k].size, 0, &ids, &count) == WRPO_E_FORMAT && !ids &&
                  !count && strstr(wrpo_last_error(ctx)->text, bad[k].says),
              "%s", wrpo_last_error(ctx)->text);
    CHECK(wrpo_tokenizer_encode(tok, NULL, 0, 0, &ids, &count) == WRPO_OK && ids && count == 0, "no text");
    wrpo_free(ctx, ids);
    CHECK(wrpo_tokenizer_encode(tok, "<s></s>", 7, 0, &ids, &count) == WRPO_OK && count == 2 && ids[0] == 3 &&
              ids[1] == 4,
          "only special tokens");
    wrpo_free(ctx, ids);
    CHECK(wrpo_tokenizer_decode(tok, NULL, 0, false, &text, &size) == WRPO_OK && size == 0 && *text == 0, "no ids");
    wrpo_free(ctx, text);
    const int32_t good[] = {3, 2, 4, 0};
    CHECK(wrpo_tokenizer_decode(tok, good, 4, true, &text, &size) == WRPO_OK && size == 3 && !strcmp(text, "aba"),
          "special tokens skipped");
    wrpo_free(ctx, text);
    for (int32_t id = -1; id <= 5; id += 6) {
        const int32_t list[] = {0, id};
        CHECK(wrpo_tokenizer_decode(tok, list, 2, false, &text, &size) == WRPO_E_ARG && !text && !size &&
                  strstr(wrpo_last_error(ctx)->text, "id 1 of the text to decode: no token has the id"),
              "%s", wrpo_last_error(ctx)->text);
    }
    wrpo_tokenizer_free(tok);
    /* texts and tokens with NUL; holes in the ids; an unk_token that does not exist */
    write_small("model",
                "{\"type\":\"BPE\",\"unk_token\":\"<u>\",\"vocab\":{\"a\\u0000\":0,\"\\u0000\":1,\"a\":2,\"<s>\":3,\"</"
                "s>\":4,\"aa\":6},\"merges\":[\"a \\u0000\"]}");
    tok = load(dir);
    CHECK(wrpo_tokenizer_encode(tok, "\0a\0", 3, 0, &ids, &count) == WRPO_OK && count == 2 && ids[0] == 1 &&
              ids[1] == 0,
          "NUL");
    wrpo_free(ctx, ids);
    CHECK(wrpo_tokenizer_encode(tok, "ax", 2, 0, &ids, &count) == WRPO_E_FORMAT &&
              strstr(wrpo_last_error(ctx)->text, "unk_token \"<u>\" is not in the vocabulary"),
          "%s", wrpo_last_error(ctx)->text);
    CHECK(wrpo_tokenizer_decode(tok, (const int32_t[]){5}, 1, false, &text, &size) == WRPO_E_ARG, "a hole");
    wrpo_tokenizer_free(tok);
    wrpo_tokenizer_free(NULL);
}
/* A word of a million characters, a run of as many combining marks -- neither takes quadratic time -- and memory
   that does not grow from call to call. */
static void test_long(void) {
    const size_t n = 1 << 20;
    char *text = malloc(n + 1);
    int32_t *ids;
    int64_t count, wrong = 0;
    write_small("", "");
    wrpo_tokenizer *tok = load(dir);
    for (size_t i = 0; i < n; i++) text[i] = i % 2 ? 'b' : 'a';
    size_t held = ctx->bytes;
    for (int turn = 0; turn < 3; turn++) {
        CHECK(wrpo_tokenizer_encode(tok, text, n, 0, &ids, &count) == WRPO_OK && count == (int64_t)n / 2, "%lld ids",
              (long long)count);
        for (int64_t i = 0; i < count; i++) wrong += ids[i] != 2;
        wrpo_free(ctx, ids);
        CHECK(ctx->bytes == held && wrong == 0, "%zu bytes held before, %zu after; %lld wrong", held, ctx->bytes,
              (long long)wrong);
    }
    wrpo_tokenizer_free(tok);
    write_small("normalizer", "{\"type\":\"NFC\"}");
    tok = load(dir);
    for (size_t i = 0; i < n; i++) text[i] = "\xCC\x81\xCC\xA3"[i % 4];        /* acute, dot below: in turns */
    CHECK(wrpo_tokenizer_encode(tok, text, n, 0, &ids, &count) == WRPO_OK && count == 0, "%s",
          wrpo_last_error(ctx)->text);
    wrpo_free(ctx, ids);
    wrpo_tokenizer_free(tok);
    free(text);
}

/* ---- damage: whatever is in the file, an error with a sentence or a tokenizer that works ---- */
#define RICH_CONFIG \
    "{\"tokenizer_class\":\"LlamaTokenizer\",\"bos_token\":\"<s>\"," \
    "\"eos_token\":{\"content\":\"aba\",\"normalized\":true},\"image_token\":\"ab\"," \
    "\"added_tokens_decoder\":{\"6\":" ADD("<s>", PLAIN) "," \
    "\"8\":{\"content\":\"<x>\"},\"9\":{\"content\":\"d<\",\"lstrip\":true}}," \
    "\"additional_special_tokens\":[\"b\"],\"add_eos_token\":true," \
    "\"chat_template\":[{\"name\":\"default\",\"template\":\"x\"},{\"name\":\"tool_use\",\"template\":\"y\"}]}"
static char *rich_file(size_t *n) {                    /* every section of the loader in one file */
    static const char text[] =
        "{\"version\":\"1.0\",\"truncation\":null,\"added_tokens\":["
        TOKEN(6, "<s>", SPECIAL) "," TOKEN(8, "<x>", "\"normalized\":true,\"special\":false") "],\n"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
        "{\"type\":\"Prepend\",\"prepend\":\"b\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"c\"},\"content\":\"b\"}]},\n"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
        "{\"type\":\"Digits\",\"individual_digits\":true},"
        "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\"},"
        SPLIT("(?i:'s|k)?[^\\\\s\\\\p{L}a-c]{1,2}|\\\\s+(?!\\\\S)") ","
        SPLIT("[\\\\p{Han}d[e-g]&&[^f]]+|^\\\\w") ",{\"type\":\"Punctuation\"},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}]},\n"
        "\"post_processor\":{\"type\":\"TemplateProcessing\","
        "\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],"
        "\"special_tokens\":{\"<s>\":{\"ids\":[6]}}},\n"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
        "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"b+\"},\"content\":\" \"},"
        "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},\n"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"a\",\"byte_fallback\":true,\"fuse_unk\":true,"
        "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"aba\":3,\"<0x64>\":4,\"_\":5,\"<s>\":6,\"\\u0120\":7},"
        "\"merges\":[\"a b\",[\"ab\",\"a\"]]}}\n";
    *n = sizeof text - 1;
    return memcpy(malloc(*n), text, *n);
}
static void try_file(int *loaded, int *refused) {
    static const char words[] = "abacab d<s> <x>\xC3\xA9" "a\xCC\x81 12'S\n  b";
    wrpo_tokenizer *tok;
    int32_t *ids;
    int64_t count;
    char *text;
    size_t size;
    if (wrpo_tokenizer_load(ctx, dir, &tok)) {
        ++*refused;
        CHECK(wrpo_last_error(ctx)->code != WRPO_OK && wrpo_last_error(ctx)->text[0], "an error without a sentence");
        return;
    }
    ++*loaded;
    if (wrpo_tokenizer_encode(tok, words, sizeof words - 1, WRPO_TOKENIZER_SPECIAL, &ids, &count) == WRPO_OK) {
        CHECK(wrpo_tokenizer_decode(tok, ids, count, false, &text, &size) == WRPO_OK, "%s", wrpo_last_error(ctx)->text);
        wrpo_free(ctx, text);
    }
    wrpo_free(ctx, ids);
    wrpo_tokenizer_free(tok);
}
static void test_damage(void) {
    size_t n, held;
    char *text = rich_file(&n);
    int loaded = 0, refused = 0;
    put("tokenizer.json", text, n);
    wrpo_tokenizer_free(load(dir));
    held = ctx->bytes;
    for (size_t k = 1; k + 2 < n; k += 3) put("tokenizer.json", text, k), try_file(&loaded, &refused);   /* cut off */
    CHECK(loaded == 0 && refused > 400, "cut off, yet loaded: %d of %d", loaded, loaded + refused);
    for (uint64_t k = 0; k < 4000; k++) {
        char *damaged = memcpy(malloc(n), text, n);
        for (uint64_t j = 0; j <= k % 3; j++) {
            uint64_t r = wrpo__random64(54, k, j);
            size_t at = (size_t)(r % n), from = (size_t)(r >> 32) % n, len = (size_t)(r >> 20 & 15) + 1;
            if (k % 2) damaged[at] = (char)(r >> 40);  /* a byte; or a piece of the file at another place */
            else memmove(damaged + WRPO__MIN(at, n - len), damaged + WRPO__MIN(from, n - len), len);
        }
        put("tokenizer.json", damaged, n);
        try_file(&loaded, &refused);
        free(damaged);
    }
    CHECK(loaded > 20 && refused > 2000, "damaged: %d loaded, %d refused", loaded, refused);
    printf("damaged: %d loaded, %d refused; ", loaded, refused);
    put("tokenizer.json", text, n);
    loaded = refused = 0;
    for (uint64_t k = 0; k < 2000; k++) {              /* the same with the other file */
        char damaged[] = RICH_CONFIG;
        const size_t m = sizeof damaged - 1, at = (size_t)(wrpo__random64(55, k, 0) % m),
                     from = (size_t)(wrpo__random64(55, k, 1) % m), len = k % 24 + 1;
        if (k % 2) damaged[at] = (char)(k * 37);
        else memmove(damaged + WRPO__MIN(at, m - len), damaged + WRPO__MIN(from, m - len), len);
        put("tokenizer_config.json", damaged, m);
        try_file(&loaded, &refused);
    }
    put("tokenizer_config.json", NULL, 0);
    CHECK(loaded > 100 && refused > 400, "damaged config: %d loaded, %d refused", loaded, refused);
    CHECK(ctx->bytes == held, "%zu bytes held before, %zu after", held, ctx->bytes);
    printf("configs: %d and %d\n", loaded, refused);
    free(text);
}

/* ---- every allocation fails once ---- */
static struct { int64_t count, fail_at, live; } memory;
static void *counted_alloc(size_t n, void *user) {
    (void)user;
    if (++memory.count == memory.fail_at) return NULL;
    memory.live++;
    return malloc(n);
}
static void counted_free(void *p, void *user) { (void)user; memory.live--; free(p); }
static void test_memory(void) {
    static const char words[] = "abacab d<s> <x>\xC3\xA9" "a\xCC\x81 12'S\n  b abababababababababababab";
    wrpo_ctx *kept = ctx;
    size_t n;
    char *text = rich_file(&n);
    put("tokenizer.json", text, n);
    puts_to("tokenizer_config.json", RICH_CONFIG);
    wrpo_desc desc = {.memory = {counted_alloc, counted_free, NULL}, .threads = 1};
    CHECK(wrpo_open(&desc, &ctx) == WRPO_OK, "a context");
    int64_t fails[3] = {0};
    wrpo_tokenizer *tok = NULL;
    /* the first load fails at each allocation as well; Unicode's tables stay in the context */
    for (memory.fail_at = 1;; memory.fail_at++) {
        memory.count = 0;
        const wrpo_result r = wrpo_tokenizer_load(ctx, dir, &tok);
        if (memory.count < memory.fail_at) break;
        CHECK(r == WRPO_E_MEMORY, "the first load, allocation %lld: %d", (long long)memory.fail_at, r);
    }
    wrpo_tokenizer_free(tok);
    tok = NULL;
    const int64_t before = memory.live;
    int32_t *ids = NULL;
    int64_t count = 0;
    char *back = NULL;
    size_t size = 0;
    /* load, encode, decode: from the first allocation on, until none is left to fail */
    for (int step = 0; step < 3; step++)
        for (memory.fail_at = 1;; memory.fail_at++, fails[step]++) {
            int64_t live = memory.live;
            memory.count = 0;
            wrpo_result r = step == 0 ? wrpo_tokenizer_load(ctx, dir, &tok)
                : step == 1 ? wrpo_tokenizer_encode(tok, words, sizeof words - 1, WRPO_TOKENIZER_SPECIAL, &ids, &count)
                            : wrpo_tokenizer_decode(tok, ids, count, false, &back, &size);
            if (memory.count < memory.fail_at) {
                memory.fail_at = 0;
                CHECK(r == WRPO_OK, "step %d: %s", step, wrpo_last_error(ctx)->text);
                break;
            }
            /* a failed call may leave what it used in the tokenizer's scratch arena, until the next */
            if (tok) wrpo__arena_clear(tok->scratch);
            CHECK(r == WRPO_E_MEMORY && memory.live == live && strstr(wrpo_last_error(ctx)->text, "out of memory"),
                  "step %d, allocation %lld: %s, %lld left", step, (long long)memory.fail_at,
                  wrpo_last_error(ctx)->text, (long long)(memory.live - live));
        }
    CHECK(fails[0] > 30 && fails[1] > 10 && fails[2] > 4, "allocations: %lld, %lld, %lld", (long long)fails[0],
          (long long)fails[1], (long long)fails[2]);
    printf("allocations made to fail: %lld of load, %lld of encode, %lld of decode\n", (long long)fails[0],
           (long long)fails[1], (long long)fails[2]);
    wrpo_free(ctx, ids), wrpo_free(ctx, back);
    wrpo_tokenizer_free(tok);
    CHECK(memory.live == before, "%lld blocks left", (long long)(memory.live - before));
    wrpo_close(ctx);
    CHECK(memory.live == 0, "%lld blocks left", (long long)memory.live);
    ctx = kept;
    puts_to("tokenizer_config.json", "");
    free(text);
}

int main(void) {
    if (!mkdtemp(dir) || wrpo_open(NULL, &ctx)) return 1;
    test_unicode();
    const size_t held = ctx->bytes;                    /* Unicode's tables stay */
    test_golden();
    test_refusals();
    test_config();
    test_added_by_config();
    test_ids();
    test_other_files();
    test_arguments();
    test_long();
    test_damage();
    test_memory();
    test_shared_tokenizers();
    CHECK(ctx->bytes == held, "%zu bytes held at the end, %zu at the start", ctx->bytes, held);
    wrpo_close(ctx);
    put("tokenizer.json", NULL, 0);
    remove(dir);
    return test_end("54_token");
}
