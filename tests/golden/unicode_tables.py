#!/usr/bin/env python3
"""Prints the Unicode tables of the >>token section as C text.

usage: unicode_tables.py DIR

DIR holds two files that list what the reference library (Hugging Face tokenizers) itself uses:
  onig_classes.json  {"\\p{Lu}": [[first, last], ...], ..., "\\s": ..., "\\w": ...}      regex classes, Unicode 16
  nfc_tables.json    {"ccc": {code: class}, "decomp": {code: [full decomposition]}, "comp": [[a, b, code], ...]}
                                                                                        NFC, Unicode 9
Both can be had again by running the library over every code point; the result is checked below for being a partition.

How a list of numbers becomes text: a character is a digit 0..91, its place among the printable characters that need
no escape in C (", ? and \\ are left out). A digit below 56 ends a number, digits 56..79 before it are its higher digits
in base 24. A digit d from 80 on and a number n that follows it repeat d - 78 numbers, the first of them n + 1 numbers
back. The encoder finds the shortest text.
"""
import json
import sys

WIDTH = 113
ALPHABET = [chr(c) for c in range(32, 127) if chr(c) not in '"?\\']
LAST, HIGH = 56, 24                                    # digits that end a number, digits that begin one
SHORTEST, LONGEST = 2, 1 + len(ALPHABET) - LAST - HIGH  # repetitions
CLASSES = ["other", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Nd", "Nl", "No", "P", "S", "space", "Pc", "Sw", "Cw"]


def digits(value):
    out = [value % LAST]
    value //= LAST
    while value:
        out.insert(0, LAST + value % HIGH)
        value //= HIGH
    return out


def pack(numbers):
    """The digits of a list of numbers: of all ways to write it with repetitions, the shortest."""
    places, repeats = {}, []
    for i in range(len(numbers)):
        longest = {}                                   # cost -> the longest repetition that costs it
        for back in reversed(places.setdefault(tuple(numbers[i:i + SHORTEST]), [])):
            n = 0
            while n < LONGEST and i + n < len(numbers) and numbers[back + n] == numbers[i + n]:
                n += 1
            far = digits(i - back - 1)
            if n >= SHORTEST and n > longest.get(len(far), (0, None))[0]:
                longest[len(far)] = n, far
        repeats.append(longest.values())
        places[tuple(numbers[i:i + SHORTEST])].append(i)
    best = [(0, [], 0)] * (len(numbers) + 1)           # from i to the end: the cost, the first digits, where the rest begins
    for i in reversed(range(len(numbers))):
        own = digits(numbers[i])
        best[i] = len(own) + best[i + 1][0], own, i + 1
        for longest, far in repeats[i]:
            for n in range(SHORTEST, longest + 1):
                cost = 1 + len(far) + best[i + n][0]
                if cost < best[i][0]:
                    best[i] = cost, [LAST + HIGH + n - SHORTEST] + far, i + n
    out, i = [], 0
    while i < len(numbers):
        out += best[i][1]
        i = best[i][2]
    return out


def zigzag(value):
    return 2 * value if value >= 0 else -2 * value - 1


def emit(name, comment, numbers):
    text = "".join(ALPHABET[d] for d in pack(numbers))
    print(f"/* {comment} */")
    print(f"static const char *const {name}[] = {{")
    print(",\n".join(f'    "{text[i:i + WIDTH]}"' for i in range(0, len(text), WIDTH)))
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
    numbers, start = [], 0
    for c in range(1, 0x110001):
        own = ccc.get(start, 0)
        if c == 0x110000 or kind[c] != kind[start] or ccc.get(c, 0) != own:
            numbers += [(c - start - 1) * 17 + 16, own] if own else [(c - start - 1) * 17 + kind[start]]
            start = c
    return numbers


def nfc(table):
    decomp = {int(c): full for c, full in table["decomp"].items()}
    pairs = {c: [a, b] for a, b, c in table["comp"]}
    for c, (a, b) in pairs.items():
        assert decomp.get(a, [a]) + decomp.get(b, [b]) == decomp[c]
    numbers, previous, last = [], -1, [0, 0, 0]
    ordered = sorted(decomp)
    kind = {c: 0 if c in pairs else len(decomp[c]) for c in ordered}
    i = 0
    while i < len(ordered):
        j = i
        while j + 1 < len(ordered) and ordered[j + 1] == ordered[j] + 1 and kind[ordered[j + 1]] == kind[ordered[i]]:
            j += 1
        numbers += [(ordered[i] - previous - 1) * 4 + kind[ordered[i]], j - i]
        for c in ordered[i:j + 1]:
            parts = pairs.get(c, decomp[c])
            assert 1 <= len(parts) <= 3
            for k, part in enumerate(parts):
                numbers.append(zigzag(part - last[k]))
                last[k] = part
        previous = ordered[j]
        i = j + 1
    return numbers


def main():
    with open(sys.argv[1] + "/onig_classes.json", encoding="utf-8") as f:
        table = json.load(f)
    with open(sys.argv[1] + "/nfc_tables.json", encoding="utf-8") as f:
        normal = json.load(f)
    emit("wrpo__unicode_classes", "runs of one class from U+0000 to U+10FFFF: (length - 1) * 17 + class. 16: class M, and the next "
         "number is\n   its combining class", classes(table, normal["ccc"]))
    emit("wrpo__unicode_nfc", "runs of decompositions: gap * 4 + count, length - 1, then for each code point the zigzag steps to its "
         "parts.\n   count 0: two parts, which also compose", nfc(normal))


main()
