#!/usr/bin/env python3
"""Writes tests/golden/tokens-NAME.tsv: difficult texts and the ids the `tokenizers` package
gives them. Needs tokenizers (0.23.3 made the committed files); `make test` only reads them.

    D=$NEOXTUNE_TEST_DATA/tokenizers
    python3 tests/make_tokens.py gpt-neox-20b=$D/gpt-neox-20b gpt2=$D/gpt2 pico=data/pico-neox
    python3 tests/make_tokens.py spm=tests/golden/tokenizers/spm ...       (make_small_tokenizers.py)

A line is a text as a JSON string, a tab, the ids separated by spaces.
"""
import json
import os
import random
import sys

import tokenizers
from fuzz_tokenizers import text
from tokenizers import Tokenizer

LIMIT = 60000  # bytes a file
CHOSEN = [
    "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "a", " a", "  a", "a ", "a  ",
    "a  b", "a   b", "a \n b", "a\n\n\nb", "a\t\tb", "\n\n\n a", " \t \n x", "x \u3000 y", "a\u00a0b",
    "I'm you're he'll she'd we've it's don't", "I'M YOU'RE HE'LL IT'S", "'s's's 's ''s", "'", "''",
    "' 're 'r 'v 'l 'll'", "rock 'n' roll", "a's1's!'s\u4e2d's", "\u2019s don\u2019t",
    "1 12 123 1234 12345", "3.14e-10", "a1b2c3", "\u0661\u0662\u0663", "\u00bd\u2460\u2167", "x\u00b2",
    "hello, world!", "hello,world", "foo_bar __init__", "!!!???...", " !", "  !", "a!b", "(a)(b)",
    "for (int i = 0; i < n; i++) {\n        x[i] = 0;\n    }\n", "\tif x:\n\t\treturn None\n",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>",
    "<|endoftext|", "<|padding|>", "|endoftext|>", "<|endoftext|>  <|padding|>   x",
    "caf\u00e9", "cafe\u0301", "\u00c5 A\u030a \u212b", "\u1e9b\u0323", "q\u0307\u0323", "q\u0323\u0307",
    "a\u0301\u0301", "\u0301", " \u0301", "e\u0301\u0327", "\u0344", "\u0958", "\u0928\u093c", "\u09c7\u09be",
    "\ufb1d", "\u2126", "\uf900", "\U0002f800", "\u1112\u1161\u11ab", "\u1100\u1161", "\uac00\u11a8",
    "\uac01\u11a8", "\u1100\u1161\u11a7", "\ud55c\uae00 \uc548\ub155", "\u1ab0\u0300a\u1ab0",
    "\u0e01\u0e33", "\u0f71\u0f72", "\U000110ba \U00011099\U000110ba", "\U0001d15e", "\U00011935\U00011930",
    "\u07fd\u0301\u07fd", "\u4e2d\u6587\u5b57\u7b26", "\u66f0\uff1a\u300c\u5929\u4e0b\u300d", "\u3053\u3093\u306b\u3061\u306f",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\ufeffx", "\u200b\u200c\u200d",
    "\x00", "a\x00b", "\x7f\x80\x85\x9f", "\ufffd\uffff\U0010ffff", "\ue000\U000f0000", "\u0378\U000e0001",
    "\u1c89\u1c8a \ua7cb", "\U000105c0\U00010d40", "\u2028\u2029", "\u180e \u200b", "\x1c\x1d\x1e\x1f",
    "a" * 40, "ab" * 50, " " * 23, " " * 24, " " * 25, " " * 49 + "x", "\n" * 30, "x" + " " * 26 + "\n",
    "=" * 70, "-" * 33 + "\n", "\u4e2d" * 30, "1" * 40, "the" * 20, "\u00e9" * 20, "e\u0301" * 20,
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis" * 2,
]


def main():
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
    for argument in sys.argv[1:]:
        name, directory = argument.split("=", 1)
        t = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
        with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as f:
            added = [a["content"] for a in json.load(f)["added_tokens"]]
        words = [t.decode([i]) for i in range(t.get_vocab_size()) if t.id_to_token(i)]
        words = [w for w in words if "\ufffd" not in w]
        r = random.Random(7)
        texts = CHOSEN + [text(r, words, added) for _ in range(400)]
        limit = LIMIT // 4 if "golden" in directory else LIMIT
        size = 0
        with open(os.path.join(here, f"tokens-{name}.tsv"), "w", encoding="ascii") as f:
            size += f.write(f"# tests/make_tokens.py, tokenizers {tokenizers.__version__}\n")
            for s in texts:
                ids = t.encode(s, add_special_tokens=False).ids
                line = json.dumps(s) + "\t" + " ".join(map(str, ids)) + "\n"
                if size + len(line) <= limit and len(line) < 600:
                    size += f.write(line)


main()
