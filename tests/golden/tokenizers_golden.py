#!/usr/bin/env python3
"""Writes tokenizers.json: small tokenizers that use every supported component, and what the reference library
(pip install tokenizers; 0.23.3 wrote the committed file) makes of some texts.

usage: tokenizers_golden.py > tokenizers.json

{"models": {name: text of a model}, "texts": [...], "cases": [{"name", "model", "parts": text of the other members of
tokenizer.json, "before": ids, "after": ids that the post-processor puts around every text,
"vectors": [[text or its index, ids, decoded, decoded without special tokens], ...]}, ...]}
where 0 means: decoded to the same text; the same as decoded. Text null: ids to decode only. The models and parts are JSON as text, so that a test can paste them together without a JSON writer.
"""
import json
import random

from tokenizers import Tokenizer

CORPUS = """The quick brown fox jumps over the lazy dog; they're sure it's 12345 times, I'll say. We don't know 3.14159!
def main(argc, argv):\n    return x == y and not (a < b)\n\n\n    print("hello world")\t# done\r\n
Straße, naïve café, déjà vu, Ελληνικά, привет мир, 東京と日本語テスト, 한국어, 👩‍👩‍👧 🇩🇪 — “quoted” … ½ ² Ⅻ ﬁ
the then there these other another weather whether HTTP HTML iPhone AbcDef XMLHttpRequest user_id 2024 2025 1999
"""
BYTE = {}
for b in range(256):
    BYTE[b] = chr(b) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174 else chr(256 + len([k for k in BYTE.values() if ord(k) > 255]))


def train(words, vocab, count):
    """Plain BPE: the most frequent pair, of equals the first in order."""
    vocab, merges = list(vocab), []
    words = [list(w) for w in words]
    for _ in range(count):
        seen = {}
        for w in words:
            for pair in zip(w, w[1:]):
                seen[pair] = seen.get(pair, 0) + 1
        if not seen:
            break
        best = min(seen, key=lambda p: (-seen[p], p))
        merges.append(best)
        if best[0] + best[1] not in vocab:
            vocab.append(best[0] + best[1])
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best:
                    w[i:i + 2] = [best[0] + best[1]]
                i += 1
    return vocab, merges


def model(vocab, merges, **more):
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **more,
            "vocab": {t: i for i, t in enumerate(vocab)}, "merges": merges}


def words_of(text):
    out, word = [], ""
    for c in text:
        if word and (c.isspace() or (c.isalpha() != word[-1].isalpha() and word != " ")):
            out.append(word)
            word = ""
        word += c
    return out + [word]


byte_words = ["".join(BYTE[b] for b in w.encode()) for w in words_of(CORPUS)]
v, m = train(byte_words, [BYTE[b] for b in sorted(BYTE, key=lambda b: ord(BYTE[b]))], 100)
m += [p for p in [("1", "2"), ("12", "3"), ("e", "e"), ("Ġ", "Ġ"), ("Å", "¿"), ("Å¿", "Å¿")] if p not in m]   # what only the right cut tells apart
v += [a + b for a, b in m if a + b not in v] + ["Ġquickly", "<|end|>", "whole-word"]
BYTES = model(v, [f"{a} {b}" for a, b in m])
BYTES_IGNORE = model(v, [list(p) for p in m], ignore_merges=True, continuing_subword_prefix="", end_of_word_suffix="")
marks = [w.replace(" ", "▁") for w in words_of(CORPUS.replace("\n", " "))]
alphabet = sorted({c for w in marks for c in w if ord(c) < 0x250 and c != "é"}) + ["▁", "▁▁", "▁▁▁▁", "▁▁▁"]
v, m = train([w for w in marks if all(c in alphabet for c in w)], alphabet, 80)
m += [("▁", "▁"), ("▁▁", "▁▁"), ("▁▁", "▁")]
head = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
v = head + [t for t in v if t not in head]
MARKS = model(v, m, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
v2 = [t for t in v if t != "<0x09>" and t != "<0x9F>"]     # gemma2 lacks one: characters with this byte are unknown
GAPS = model(v2, [f"{a} {b}" for a, b in m], unk_token="<unk>", fuse_unk=False, byte_fallback=True)
SMALL = model(["<unk>", "a", "b", "c", "ab", "bc", "abc", "▁", "▁a", "a▁", "<0x64>", "x", "y", "z", "yz", "xy", "yzx", "xyz"],
              [["a", "b"], ["b", "c"], ["ab", "c"], ["▁", "a"], ["a", "▁"], ["y", "z"], ["x", "y"], ["yz", "x"], ["x", "yz"]],
              unk_token="<unk>", byte_fallback=True)
FUSED = dict(SMALL, fuse_unk=True)
DROPS = model(["a", "▁", "▁▁", "b", "ab"], [["▁", "▁"], ["a", "b"]])
MODELS = {"bytes": BYTES, "bytes_ignore": BYTES_IGNORE, "marks": MARKS, "gaps": GAPS, "small": SMALL, "fused": FUSED, "drops": DROPS}

A = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
T = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
D3 = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
CL = r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
TK = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
CASED = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI = "[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?%s*%s+%s|[^\\r\\n\\p{L}\\p{N}]?%s+%s*%s|" % (CASED * 2) + T.split("*|", 1)[1]
O2 = T.replace("|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}", 1)


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def replace(a, b, kind="String"):
    return {"type": "Replace", "pattern": {kind: a}, "content": b}


def pre(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def norm(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def dec(*steps):
    return {"type": "Sequence", "decoders": list(steps)}


def metaspace(scheme, split_too):
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split_too}


def template(before, after=()):
    special = list(before) + list(after)
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": t, "type_id": 0}} for t, _ in before] + [{"Sequence": {"id": "A", "type_id": 0}}]
            + [{"SpecialToken": {"id": t, "type_id": 0}} for t, _ in after],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in special}}


def token(content, **flags):
    return dict({"id": -1, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}, **flags)


PREPEND = {"type": "Prepend", "prepend": "▁"}
FALLBACK, FUSE, NFC = {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "NFC"}
SP = dec(replace("▁", " "), FALLBACK, FUSE, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
NO_STRIP = dec(replace("▁", " "), FALLBACK, FUSE)
BL, END = byte_level(), [token("<|end|>", special=True), token("<|user|>", special=True)]
HEADS = [token("<unk>", special=True), token("<s>", special=True), token("</s>", special=True)]
FLAGS = [token("<L>", lstrip=True, special=True), token("<R>", rstrip=True), token("<LR>", lstrip=True, rstrip=True, special=True),
         token("ab", single_word=True), token("abc"), token("<N>", normalized=True), token("é", normalized=True, special=True),
         token("  x", rstrip=True), token("\n\n", lstrip=True, rstrip=True)]
CASES = {   # name: model, normalizer, pre_tokenizer, post_processor, decoder, added tokens
    "llama3": ("bytes_ignore", None, pre(split(A), BL), {"type": "Sequence", "processors": [BL, template([("<|end|>", 0)])]}, BL, END),
    "qwen3": ("bytes", NFC, pre(split(A.replace("{1,3}", "")), BL), BL, BL, END),
    "nemo": ("bytes_ignore", None, pre(split(T), BL), template([("<|end|>", 0)], [("<|end|>", 0)]), BL, END),
    "deepseek": ("bytes", norm(), pre(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(D3), BL), BL, BL, END),
    "gpt2": ("bytes", None, byte_level(False, True), BL, BL, END),
    "prefix": ("bytes", None, byte_level(True, True), BL, BL, END),
    "smollm2": ("bytes", None, pre({"type": "Digits", "individual_digits": True}, byte_level(False, True)), None, BL, END),
    "digits": ("bytes", None, pre({"type": "Digits", "individual_digits": False}, BL), None, BL, []),
    "cl100k": ("bytes", None, pre(split(CL, "Removed", True), BL), None, BL, END),
    "o200k": ("bytes", None, pre(split(O2), BL), None, BL, END),
    "mistral_v1": ("marks", norm(PREPEND, replace(" ", "▁")), None, template([("<s>", 1)]), SP, HEADS),
    "internlm2": ("marks", replace(" ", "▁"), None, template([("<s>", 1)]), SP, HEADS),
    "yi": ("marks", replace(" ", "▁"), None, None, NO_STRIP, HEADS),
    "gemma": ("gaps", replace(" ", "▁"), split(" ", "MergedWithPrevious", kind="String"), template([("<s>", 1)]), NO_STRIP, HEADS),
    "old_llama": ("marks", norm(PREPEND, replace(" ", "▁")), None, template([]), SP, [dict(t, normalized=True) for t in HEADS]),
    "metaspace_first": ("marks", None, metaspace("first", False), template([("<s>", 1)]), SP, HEADS),
    "metaspace_first_split": ("gaps", None, metaspace("first", True), None, metaspace("first", True), HEADS),
    "metaspace_always": ("marks", None, metaspace("always", True), None, dec(metaspace("always", True), FALLBACK, FUSE), HEADS),
    "metaspace_never": ("marks", None, metaspace("never", True), None, dec(metaspace("never", True), FALLBACK, FUSE), HEADS),
    "metaspace_old": ("marks", None, {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}, None, None, HEADS),
    "flags": ("bytes", NFC, byte_level(False, True), BL, BL, FLAGS),
    "flags_marks": ("marks", norm(PREPEND, replace(" ", "▁")), None, None, SP, [dict(t, normalized=i % 2 == 0) for i, t in enumerate(FLAGS)]),
    "removed": ("bytes", None, pre(split(r"[^\S\r\n]+", "Removed"), BL), None, BL, []),
    "contiguous": ("bytes", None, pre(split(r"\p{P}|e", "Contiguous"), BL), None, BL, []),
    "next": ("bytes", None, pre(split(r"\s", "MergedWithNext"), BL), None, BL, []),
    "next_inverted": ("bytes", None, pre(split(r"[\p{L}\p{M}]+(?=[^\p{L}])", "MergedWithNext", True), BL), None, BL, []),
    "previous": ("bytes", None, pre(split(r"(?:e|é)(n|r)?|\d| ", "MergedWithPrevious"), BL), None, BL, []),
    "folded": ("bytes", None, pre(split(r"(?i:s|k)|t*+the"), BL), None, BL, []),
    "previous_inverted": ("bytes", None, pre(split("th", "MergedWithPrevious", True, "String"), BL), None, BL, []),
    "replaced": ("bytes", norm(replace("``", "\""), replace(r"\s+", " ", "Regex"), replace("x", "")), BL, None, dec(BL, replace("e", "E")), []),
    "small": ("small", None, None, None, None, []),
    "fused": ("fused", None, None, None, dec(FALLBACK), []),
    "drops": ("drops", None, None, None, {"type": "Strip", "content": "a", "start": 2, "stop": 0}, []),
    "anchors": ("bytes", None, pre(split(r"\s+$|^the|\p{N}{1,3}+|a.b"), BL), None, BL, []),
    "tiktoken": ("bytes", None, pre(split(TK), BL), None, BL, END),
    "han": ("bytes", None, pre(split(KIMI), BL), None, BL, END),
    "scripts": ("bytes", None, pre(split(r"\p{Hiragana}+|\p{Katakana}|\p{Hangul}+|[^\P{Han}一]|[\w&&[^a-m]&&[^\p{Lu}]]+"), BL), None, BL, []),
    "within": ("bytes", None, pre(split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), BL), None, BL, []),
    "punctuation": ("bytes", None, pre({"type": "Punctuation"}, {"type": "Punctuation", "behavior": "Contiguous"}, BL), None, BL, END),
    "whitespace": ("fused", None, {"type": "Whitespace"}, None, None, []),
    "whitespace_bytes": ("bytes", None, pre({"type": "Whitespace"}, BL), None, BL, []),
    "whitespace_split": ("bytes", None, pre({"type": "WhitespaceSplit"}, BL), None, BL, []),
}
TEXTS = [
    "", " ", "Hello world", "  The quick brown fox's 12345 dogs don't  care.\n\n  They'LL say: I'M 3.14159!", "a\tb\r\nc \n d  \n",
    "Straße naïve café cafe\u0301 A\u030a ﬁ ½²Ⅻ ǅ \u1100\u1161\u11a8 각\u11a8 q\u0307\u0323 \u0344 a\u0305\u0301", "東京と日本語テスト2024年 한국어 👩‍👩‍👧🇩🇪 नमस्ते",
    "x\u00a0\u3000\u0085\u2028y \u200b\ufeff\u180e z\u017f 'ſ '\u212a", "<|user|> Hello <|end|>\nHi<|end|>", "<s> [INST] hi [/INST]</s><unk> ok", "▁a▁▁b quickly Ġquickly Ċ<0x41><0x0A>",
    "a  <L>  b <R>  c<LR> xabcab ab.ab <N>é e\u0301  x  y\n\n \n\n z", "abcabcdab▁a▁aabd dd👍ab xyzx.xyxyz▁ü▁ 123see the \u017f\u017f", "\x00\x01\x7f\t\x9f",
]


def main():
    rnd = random.Random(7)
    cases = []
    for name, (kind, normalizer, pre_tokenizer, post, decoder, added) in CASES.items():
        vocab = MODELS[kind]["vocab"]
        free = len(vocab)
        added = [dict(t) for t in added]
        for t in added:
            t["id"] = vocab.get(t["content"], free)
            free += t["content"] not in vocab
        if "template" in json.dumps(post or {}).lower() and kind.startswith("bytes"):
            post = json.loads(json.dumps(post).replace("[0]", "[%d]" % vocab["<|end|>"]))
        parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
                 "pre_tokenizer": pre_tokenizer, "post_processor": post, "decoder": decoder}
        t = Tokenizer.from_str(json.dumps({**parts, "model": MODELS[kind]}))
        texts = list(TEXTS)
        for _ in range(2):
            texts.append("".join(rnd.choice(rnd.choice([CORPUS.split(), [" ", "\n", "  ", "'s", "7", "é", "日", "x", "ab", "<s>"]])) for _ in range(6)))
        vectors, whole = [], t.encode("").ids
        before, after = (whole[:1], whole[1:]) if len(CASES[name][3].get("single", []) if CASES[name][3] else []) == 3 else (whole, [])
        for text in texts:
            ids = t.encode(text, add_special_tokens=False).ids
            assert t.encode(text).ids == before + ids + after
            plain, skipped = t.decode(ids, skip_special_tokens=False), t.decode(ids, skip_special_tokens=True)
            vectors.append([TEXTS.index(text) if text in TEXTS else text, ids, 0 if plain == text else plain, 0 if skipped == plain else skipped])
        for _ in range(3):                               # any ids, which no text need give; and bytes that are not UTF-8
            ids = [rnd.randrange(t.get_vocab_size()) for _ in range(4)] + [rnd.randrange(3, 259) % len(vocab) for _ in range(4)]
            plain, skipped = t.decode(ids, skip_special_tokens=False), t.decode(ids, skip_special_tokens=True)
            vectors.append([None, ids, plain, 0 if skipped == plain else skipped])
        cases.append({"name": name, "model": kind, "parts": json.dumps(parts, ensure_ascii=False, separators=(",", ":"))[1:-1],
                      "before": before, "after": after, "vectors": vectors})
    print('{"models": {')
    print(",\n".join(f'"{k}": {json.dumps(json.dumps(m, ensure_ascii=False, separators=(",", ":")), ensure_ascii=False)}' for k, m in MODELS.items()))
    print(f'}},\n"texts": {json.dumps(TEXTS)},\n"cases": [')
    print(",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases))
    print("]}")


main()
