#!/usr/bin/env python3
"""Prints the Unicode tables of the >>token section as C text.

usage: unicode_tables.py DIR

DIR holds two files that list what the reference library (Hugging Face tokenizers) itself uses:
  onig_classes.json  {"\\p{Lu}": [[first, last], ...], ..., "\\s": ..., "\\w": ...}      regex classes, Unicode 16
  nfc_tables.json    {"ccc": {code: class}, "decomp": {code: [full decomposition]}, "comp": [[a, b, code], ...]}
                                                                                        NFC, Unicode 9
Both can be had again by running the library over every code point; the result is checked below for being a partition.

The numbers are packed as varints of base-32 digits, least significant first; a digit that is not the last has bit 5
set. Digit d is the character '0' + d, with 'p' for the backslash and 'q' for the question mark (trigraphs). No
number is cut by the end of a line.
"""
import json
import sys

WIDTH = 136
CLASSES = ["other", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Nd", "Nl", "No", "P", "S", "space", "Pc", "Sw", "Cw"]


def digits(value):
    out = ""
    while True:
        digit = value & 31
        value >>= 5
        out += {"\\": "p", "?": "q"}.get(chr(48 + digit + (32 if value else 0)), chr(48 + digit + (32 if value else 0)))
        if not value:
            return out


def zigzag(value):
    return 2 * value if value >= 0 else -2 * value - 1


def emit(name, comment, numbers):
    print(f"static const char *const {name}[] = {{   /* {comment} */")
    line = ""
    for number in map(digits, numbers):
        if len(line) + len(number) > WIDTH - 7:
            print(f'    "{line}",')
            line = ""
        line += number
    print(f'    "{line}"')
    print("};")


def classes(table):
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
    numbers, start = [], 0
    for c in range(1, 0x110001):
        if c == 0x110000 or kind[c] != kind[start]:
            numbers.append((c - start - 1) * 16 + kind[start])
            start = c
    return numbers


def nfc(table):
    decomp = {int(c): full for c, full in table["decomp"].items()}
    pairs = {c: [a, b] for a, b, c in table["comp"]}
    for c, (a, b) in pairs.items():
        assert decomp.get(a, [a]) + decomp.get(b, [b]) == decomp[c]
    numbers, previous, last = [], -1, [0, 0, 0]
    for c in sorted(decomp):
        parts = pairs.get(c, decomp[c])
        assert c > previous and 1 <= len(parts) <= 3
        numbers.append((c - previous - 1) * 4 + (0 if c in pairs else len(parts)))
        for k, part in enumerate(parts):
            numbers.append(zigzag(part - last[k]))
            last[k] = part
        previous = c
    return numbers


def ccc(table):
    value = {int(c): v for c, v in table["ccc"].items()}
    numbers, previous = [], -1
    ordered = sorted(value)
    i = 0
    while i < len(ordered):
        j = i
        while j + 1 < len(ordered) and ordered[j + 1] == ordered[j] + 1 and value[ordered[j + 1]] == value[ordered[i]]:
            j += 1
        numbers += [ordered[i] - previous - 1, value[ordered[i]], j - i]
        previous = ordered[j]
        i = j + 1
    return numbers


def main():
    with open(sys.argv[1] + "/onig_classes.json", encoding="utf-8") as f:
        table = json.load(f)
    with open(sys.argv[1] + "/nfc_tables.json", encoding="utf-8") as f:
        normal = json.load(f)
    emit("wrpo__unicode_classes", "runs that cover U+0000..U+10FFFF: (length - 1) * 16 + class", classes(table))
    emit("wrpo__unicode_nfc", "(code point - previous - 1) * 4 + count, zigzag steps to parts; count 0: a pair that composes", nfc(normal))
    emit("wrpo__unicode_ccc", "first - previous last - 1, combining class, last - first", ccc(normal))


main()
