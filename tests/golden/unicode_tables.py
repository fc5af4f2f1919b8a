#!/usr/bin/env python3
"""Prints the Unicode tables of the >>token section as C text.

usage: unicode_tables.py DIR

DIR holds two files that list what the reference library (Hugging Face tokenizers) itself uses:
  onig_classes.json  {"\\p{Lu}": [[first, last], ...], ..., "\\s": ..., "\\w": ...}      regex classes, Unicode 16
  nfc_tables.json    {"ccc": {code: class}, "decomp": {code: [full decomposition]}, "comp": [[a, b, code], ...]}
                                                                                        NFC, Unicode 9
Both can be had again by running the library over every code point; the result is checked below for being a partition.

The numbers are packed by an adaptive binary arithmetic coder. A number is its size in bits, in unary, then the bits
below the highest. Each bit has odds for a 1, by what the number is (its context), the size and the bits before it; every
bit moves its odds by an eighth of the way. The text is the code in base 91: the printable characters that need no
escape in C, without the slash, which could begin what looks like a comment.
"""
import json
import sys

WIDTH = 117
ALPHABET = [chr(c) for c in range(32, 127) if chr(c) not in '"/?\\']
CLASSES = ["other", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Nd", "Nl", "No", "P", "S", "space", "Pc", "Sw", "Cw"]


class Packer:
    def __init__(self):
        self.low, self.range, self.size, self.odds = 0, 1, 0, {}

    def bit(self, bit, key):
        while self.range < 1 << 24:
            self.low, self.range, self.size = self.low * 91, self.range * 91, self.size + 1
        odds = self.odds.get(key, 0)
        ones = (self.range >> 12) * (2048 + odds)
        if bit:
            self.range = ones
        else:
            self.low, self.range = self.low + ones, self.range - ones
        self.odds[key] = odds + int(((2047 if bit else -2048) - odds) / 8)

    def put(self, value, context):
        value += 1
        size = value.bit_length() - 1
        for k in range(size + 1):
            self.bit(k < size, (context, k, 0))
        for k in range(size):
            self.bit(value >> (size - k - 1) & 1, (context, size, min(value >> (size - k), 31)))

    def text(self):
        out = ""
        for _ in range(self.size):
            self.low, digit = divmod(self.low, 91)
            out = ALPHABET[digit] + out
        return out


def zigzag(value):
    return 2 * value if value >= 0 else -2 * value - 1


def emit(name, comment, packer):
    text = packer.text()
    print(f"/* {comment} */")
    print(f"static const char *const {name}[] = {{")
    print(",\n".join(f'"{text[i:i + WIDTH]}"' for i in range(0, len(text), WIDTH)))
    print("};")


def classes(table, ccc):
    def members(key):
        return {c for first, last in table[key] for c in range(first, last + 1)}

    # \w of the library's added tokens (Rust's regex) differs from oniguruma's in eight places
    word = (members("\\w") - {0xB2, 0xB3, 0xB9, 0xBC, 0xBD, 0xBE}) | {0x200C, 0x200D}
    digit = members("\\p{Nd}")
    kind = [0] * 0x110000
    for name, key in [(c, "\\p{%s}" % c) for c in ("Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "P", "S")] + [("space", "\\s")]:
        for c in members(key):
            assert kind[c] == 0, f"U+{c:04X} is in two classes"
            kind[c] = CLASSES.index("Nd" if c in digit else "Nl" if c in word else "No") if name == "N" else CLASSES.index(name)
    for c in word:
        kind[c] = {CLASSES.index("P"): CLASSES.index("Pc"), CLASSES.index("S"): CLASSES.index("Sw"), 0: CLASSES.index("Cw")}.get(kind[c], kind[c])
    assert {c for c in range(0x110000) if kind[c] in (1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15)} == word
    assert {c for c in range(0x110000) if kind[c] in (1, 2, 3, 4, 5)} == members("\\p{L}")
    ccc = {int(c): value for c, value in ccc.items()}
    assert all(kind[c] == CLASSES.index("M") for c in ccc)
    out, start, last = Packer(), 0, 0
    for c in range(1, 0x110001):
        own = ccc.get(start, 0)
        if c == 0x110000 or kind[c] != kind[start] or ccc.get(c, 0) != own:
            name = 16 if own else kind[start]
            out.put(name, last)
            out.put(c - start - 1, 17 + name)
            if own:
                out.put(own, 34)
            start, last = c, name
    return out


def nfc(table):
    decomp = {int(c): full for c, full in table["decomp"].items()}
    pairs = {c: [a, b] for a, b, c in table["comp"]}
    for c, (a, b) in pairs.items():
        assert decomp.get(a, [a]) + decomp.get(b, [b]) == decomp[c]
    parts = {}
    for c, full in decomp.items():
        first = full[:-1] if len(full) < 3 else [d for d in sorted(decomp) if decomp[d] == full[:2]][:1]
        parts[c] = pairs.get(c, first + full[-1:])
        assert [d for p in parts[c] for d in decomp.get(p, [p])] == full
    out, previous, last = Packer(), -1, [0, 0]
    ordered = sorted(decomp)
    kind = {c: 0 if c in pairs else len(parts[c]) for c in ordered}
    i = 0
    while i < len(ordered):
        j = i
        while j + 1 < len(ordered) and ordered[j + 1] == ordered[j] + 1 and kind[ordered[j + 1]] == kind[ordered[i]]:
            j += 1
        out.put(kind[ordered[i]], 0)
        out.put(ordered[i] - previous - 1, 1)
        out.put(j - i, 2)
        for c in ordered[i:j + 1]:
            for k, part in enumerate(parts[c]):
                out.put(zigzag(part - last[k]), 3 + k)
                last[k] = part
        previous = ordered[j]
        i = j + 1
    assert previous == 0x2FA1D
    return out


def main():
    with open(sys.argv[1] + "/onig_classes.json", encoding="utf-8") as f:
        table = json.load(f)
    with open(sys.argv[1] + "/nfc_tables.json", encoding="utf-8") as f:
        normal = json.load(f)
    emit("wrpo__unicode_classes", "runs from U+0000 to U+10FFFF: class, length - 1; class 16 is M with a combining class, "
         "which comes next", classes(table, normal["ccc"]))
    emit("wrpo__unicode_nfc", "runs of decompositions: kind, gap, length - 1, then for each code point the zigzag steps to its "
         "parts.\n   kind 0: two parts, which also compose; 1: one part; 2: two parts", nfc(normal))


main()
