/* A tokenizer of 256 bytes and a few special tokens, written into a folder: ids are the bytes, specials follow from
   256. */
#ifndef WRPO_TINY_H
#define WRPO_TINY_H
static const char *const tiny_specials[] = {"<|im_start|>", "<|im_end|>", "<s>", "</s>", NULL};
static inline void tiny_put(const char *folder, const char *name, const char *text) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (!f) { CHECK(false, "%s cannot be written", path); return; }
    fputs(text, f);
    fclose(f);
}
/* template: the JSON string of a chat template, quotes included. */
static inline void tiny_tokenizer(const char *folder, const char *template_json) {
    static char text[40000];
    size_t n = (size_t)snprintf(text, sizeof text,
                                "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    for (int i = 0; tiny_specials[i]; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                              "\"normalized\":false,\"special\":true}",
                              i ? "," : "", 256 + i, tiny_specials[i]);
    n += (size_t)snprintf(text + n, sizeof text - n,
                          "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                          "\"trim_offsets\":true,\"use_regex\":true},"
                          "\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                          "\"dropout\":null,\"unk_token\":null,\"fuse_unk\":false,"
                          "\"byte_fallback\":false,\"vocab\":{");
    for (int b = 0, other = 256; b < 256; b++) {       /* the byte alphabet of GPT-2 */
        bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"\\u%04x\":%d", b ? "," : "", shown ? b : other++, b);
    }
    snprintf(text + n, sizeof text - n, "},\"merges\":[]}}");
    tiny_put(folder, "tokenizer.json", text);
    snprintf(text, sizeof text, "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"chat_template\":%s}", template_json);
    tiny_put(folder, "tokenizer_config.json", text);
}
#endif
