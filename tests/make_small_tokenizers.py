#!/usr/bin/env python3
"""Writes tests/golden/tokenizers/: small tokenizers of the forms that Llama and Qwen have, trained on
the stories of data/stories.c, so that tests need no file from elsewhere.

    cc -O2 -o build/stories data/stories.c -lm && build/stories text 3000 5 > build/stories.txt
    python3 tests/make_small_tokenizers.py build/stories.txt
    T=tests/golden/tokenizers
    python3 tests/make_tokens.py spm=$T/spm metaspace=$T/metaspace llama3=$T/llama3 qwen2=$T/qwen2

spm        SentencePiece as Llama 2's: Prepend, Replace, byte fallback, bos by a template
metaspace  the same pieces behind a Metaspace pre-tokenizer ("first", not split), as newer files have them
llama3     bytes cut by Llama 3's pattern, ignore_merges, merges as pairs
qwen2      the same bytes cut by Qwen 2's pattern after NFC

Needs tokenizers; make_tokens.py writes its version into the files that tests read.
"""
import json
import os
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
MORE = ["I'LL we've don't it's 12345 3.14", "caf\u00e9 \u4e2d\u6587 \u65e5\u672c \U0001f600", "x = (a+b)*c;\r\n\r\n  return x\n"] * 40


def save(name, doc):
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "tokenizers", name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="ascii") as f:
        json.dump(doc, f, separators=(",", ":"))
        f.write("\n")


def main():
    lines = open(sys.argv[1], encoding="utf-8").read().split("\n") + MORE
    special = ["<unk>", "<s>", "</s>"]
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=640, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)], show_progress=False))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    doc = json.loads(t.to_str())
    doc["added_tokens"] = [dict(a, normalized=False) for a in doc["added_tokens"] if a["content"] in special]
    doc["pre_tokenizer"] = None
    doc["post_processor"] = dict(
        type="TemplateProcessing", single=[{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        pair=[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        special_tokens={"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}})
    save("spm", doc)
    doc["normalizer"] = None
    doc["pre_tokenizer"] = dict(type="Metaspace", replacement="\u2581", prepend_scheme="first", split=False)
    save("metaspace", doc)

    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=560, special_tokens=["<|end_of_text|>"], show_progress=False,
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    doc = json.loads(t.to_str())
    save("llama3", doc)
    doc["normalizer"] = dict(type="NFC")
    doc["model"]["ignore_merges"] = False
    doc["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = PATTERN.replace("{1,3}", "")
    save("qwen2", doc)


main()
