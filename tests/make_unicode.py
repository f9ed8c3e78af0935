#!/usr/bin/env python3
"""Prints the Unicode tables at the end of neoxtune.c.

    python3 tests/make_unicode.py > tables.c        (needs: pip install tokenizers)

A tokenizer must agree with the one a model was trained with, whatever Unicode version that
one was built on. So the tables are measured: every code point is sent through the
`tokenizers` package, and Python's unicodedata only checks the result. With tokenizers
0.23.3 the outcome is
    classes of the GPT-2 pattern (letter, number, space) and \\w   Unicode 16.0
    normal form C: combining classes, (de)compositions            Unicode 9.0
so a mark added after 9.0 counts as an ordinary character when text is normalised.
"""
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3  # as in § 13
HANGUL = range(0xAC00, 0xD7A4)  # computed, not tabulated
nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str


def char_class(c):
    """A letter does not end a run of letters, and so on."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    for kind, run in (LETTER, "a"), (NUMBER, "1"), (OTHER, "!"):
        if len(split(run + chr(c) + run)) == 1:
            return kind
    return SPACE


def word_characters():
    """Next to these an added token with single_word is not taken: \\w of another library."""
    t = Tokenizer(models.BPE(vocab={"x": 0}, merges=[]))
    t.add_tokens([AddedToken("<q>", single_word=True, normalized=False)])
    before = {c for c in POINTS if "<q>" not in t.encode(chr(c) + "<q>").tokens}
    after = {c for c in POINTS if "<q>" not in t.encode("<q>" + chr(c)).tokens}
    assert before == after
    return before


def strip_characters(side):
    t = Tokenizer(models.BPE(vocab={"x": 0}, merges=[]))
    t.add_tokens([AddedToken("<q>", normalized=False, **{side: True})])
    place = (lambda c: c + "<q>") if side == "lstrip" else (lambda c: "<q>" + c)
    return {c for c in POINTS if [o for o in t.encode(place(chr(c))).offsets if o == (0, 4)]}


def combining_classes():
    """Which class a mark has shows in how it is ordered among marks of known class."""
    sample = {}  # one old mark of each class (Unicode 3.2: known to every version)
    for c in POINTS:
        k = unicodedata.ucd_3_2_0.combining(chr(c))
        if k and unicodedata.combining(chr(c)) == k:
            sample.setdefault(k, c)
    first, last = chr(sample[min(sample)]), chr(sample[max(sample)])
    classes = {}
    for c in POINTS:
        s = chr(c)
        if c in HANGUL or len(nfd(s)) > 1 or nfd(s) != s:
            continue
        after_last, before_first = nfd(last + s) != last + s, nfd(s + first) != s + first
        if not (after_last or before_first or s in (first, last)):
            continue  # never moves: a starter
        k = unicodedata.combining(s)
        assert k, f"U+{c:04X} is a mark to tokenizers and not to unicodedata: too old"
        for other, mark in sample.items():
            assert (nfd(chr(mark) + s) != chr(mark) + s) == (k < other), hex(c)
            assert (nfd(s + chr(mark)) != s + chr(mark)) == (k > other), hex(c)
        classes[c] = k
    return classes


def decompositions():
    """(c, first, second): c is first + second, or first alone (second 0). Those that also
    compose come first. Only the full decompositions are visible; a chain of pairs that
    yields them is as good as the one in UnicodeData.txt."""
    full = {c: nfd(chr(c)) for c in POINTS if c not in HANGUL and nfd(chr(c)) != chr(c)}
    whole = {d: chr(c) for c, d in full.items()}
    whole.update({d: chr(c) for c, d in full.items() if nfc(d) == chr(c)})
    both, one_way = [], []
    for c, d in full.items():
        if len(d) == 1:
            one_way.append((c, ord(d), 0))
            continue
        head = d[:-1] if len(d) == 2 else whole[d[:-1]]
        row = c, ord(head), ord(d[-1])
        (both if nfc(d) == chr(c) else one_way).append(row)
    return both, one_way


def check_against_unicodedata(classes, both, one_way):
    known = {c for c, _, _ in both + one_way}
    newer = [c for c in POINTS if unicodedata.decomposition(chr(c))
             and not unicodedata.decomposition(chr(c)).startswith("<") and c not in known]
    late = [c for c in POINTS if unicodedata.combining(chr(c)) and c not in classes]
    for c in known:
        assert nfc(chr(c)) == unicodedata.normalize("NFC", chr(c)), hex(c)
        assert nfd(chr(c)) == unicodedata.normalize("NFD", chr(c)), hex(c)
    print(f"unicodedata {unicodedata.unidata_version} has {len(late)} more marks and "
          f"{len(newer)} more decompositions (newer than 9.0)", file=sys.stderr)


def table(kind, name, size, values, note):
    print(f"\n/* {note} */\nstatic const {kind} {name}[{size}] = {{")
    line = "   "
    for v in values:
        word = f" {v},"
        if len(line) + len(word) > 96:
            print(line)
            line = "   "
        line += word
    print(line + "\n};")


def main():
    words, classes = word_characters(), combining_classes()
    kinds = {c: char_class(c) for c in POINTS}
    spaces = {c for c in POINTS if kinds[c] == SPACE}
    assert spaces == strip_characters("lstrip") == strip_characters("rstrip")
    runs, last = [], None
    for c in POINTS:  # surrogates do not occur in text; they prolong the run before them
        p = classes.get(c, 0) << 3 | (c in words) << 2 | kinds[c]
        if p != last:
            runs.append(c << 11 | p)
            last = p
    both, one_way = decompositions()
    check_against_unicodedata(classes, both, one_way)

    print("\n/* " + "=" * 76)
    print(f" * GENERATED TABLES: Unicode for § 13, printed by tests/make_unicode.py from what\n"
          f" * tokenizers {tokenizers.__version__} does: classes of Unicode 16.0, normal form C of "
          f"9.0. Not to be edited.\n */")
    print(f"_Static_assert(UNICODE_RUNS == {len(runs)} && UNICODE_PAIRS == "
          f"{len(both) + len(one_way)} && UNICODE_COMPOSED == {len(both)},\n"
          '               "§ 13 must name the sizes of these tables");')
    table("u32", "unicode_runs", "UNICODE_RUNS", [f"0x{r:X}" for r in runs],
          "first code point of a run << 11 | combining class << 3 | word << 2 | class")
    rows = [f"0x{v:X}" if v else "0" for row in both + one_way for v in row]
    table("u32", "unicode_pairs", "3 * UNICODE_PAIRS", rows,
          "c, first, second: c decomposes into the two; the first UNICODE_COMPOSED also compose")


main()
