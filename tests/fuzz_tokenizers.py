#!/usr/bin/env python3
"""Differential fuzz: neoxtune's tokenizer against the `tokenizers` package.

    cc -O2 -o tokenize_driver tests/tokenize_driver.c neoxtune.c -DNXT_NO_MAIN -lm -pthread
    python3 tests/fuzz_tokenizers.py ./tokenize_driver DIR [--strings 1000000] [--seed 1]
                                     [--variants N]

DIR holds a tokenizer.json. Random strings of Unicode scalars must give the same ids. Besides,
ends must not decrease and must close at the end of the text, and decoding must give the
normalised text. --variants N tries N tokenizers more, made of DIR's by giving it random
added tokens (all flags), normaliser, prefix space and pattern, with a share of the strings;
of a SentencePiece tokenizer others with Metaspace instead of its normaliser.
Prints the count and the first differences; exits 1 if there are any.
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer  # noqa: E402

BATCH = 10000
SCALARS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
NAMED = [c for c in SCALARS if unicodedata.category(chr(c)) not in ("Cn", "Co")]
MARKS = [c for c in NAMED if unicodedata.combining(chr(c))]
SPLIT = [c for c in NAMED if unicodedata.normalize("NFD", chr(c)) != chr(c)]
SPLIT = [c for c in SPLIT if not 0xAC00 <= c < 0xD7A4] + list(range(0xAC00, 0xD7A4, 97))
SECONDS = sorted({ord(unicodedata.normalize("NFD", chr(c))[-1]) for c in SPLIT})
BASES = sorted({ord(unicodedata.normalize("NFD", chr(c))[0]) for c in SPLIT})
SPACES = [c for c in NAMED if chr(c).isspace()]
BLANK = [" "] * 6 + ["\n"] * 3 + ["\t", "\r", "\r\n", "\u3000", "\u00a0", "\u0085", "\u200b"]
WORDS = ("the of and in to a don't I'll we've you're he's she'd I'm O'S 'tis 'll 'LL 're "
         "rock'n'roll hello world 2024 3.14 1,000 foo_bar __init__ <div> </s> http://x.y/z?q=1 "
         "caf\u00e9 na\u00efve \u00fcber \u65e5\u672c\u8a9e \u4e2d\u6587 \ud55c\uad6d\uc5b4 "
         "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u05e2\u05d1\u05e8\u05d9\u05ea "
         "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 "
         "\u0e44\u0e17\u0e22 \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 "
         "\U0001f1e9\U0001f1ea \u2460\u00bd\u0663").split()


def marks(r):
    return "".join(chr(r.choice(MARKS)) for _ in range(r.choice((1, 1, 2, 3, 8))))


def hangul(r):
    parts = [0x1100 + r.randrange(21), 0x115F + r.randrange(26), 0x11A5 + r.randrange(32),
             0xAC00 + 28 * r.randrange(399), 0xAC00 + r.randrange(11172)]
    return "".join(chr(r.choice(parts)) for _ in range(r.randrange(1, 5)))


def piece(r, tokens, added):
    kind = r.randrange(16)
    if kind == 0:
        return "".join(chr(r.choice(SCALARS)) for _ in range(r.randrange(1, 4)))
    if kind == 1:
        return "".join(chr(r.choice(NAMED)) for _ in range(r.randrange(1, 6)))
    if kind == 2:
        return chr(r.choice(NAMED)) + marks(r)
    if kind == 3:
        return unicodedata.normalize(r.choice(("NFD", "NFKD")), chr(r.choice(SPLIT)))
    if kind == 4:
        return chr(r.choice(SPLIT)) + (marks(r) if r.random() < 0.5 else "")
    if kind == 5:
        return hangul(r)
    if kind == 6:
        return chr(r.choice(BASES)) + "".join(chr(r.choice(SECONDS)) for _ in range(r.randrange(3)))
    if kind in (7, 8):
        return r.choice(BLANK) * r.choice((1, 1, 2, 2, 3, 5, 24, 30))
    if kind == 9:
        return "".join(r.choice(BLANK) for _ in range(r.randrange(1, 7)))
    if kind == 10 and added:
        text = r.choice(added)
        return text if r.random() < 0.7 else text[:r.randrange(len(text) + 1)]
    if kind == 11:
        return r.choice(tokens)
    if kind == 12:
        return "".join(chr(r.randrange(32, 127)) for _ in range(r.randrange(1, 6)))
    if kind == 13:
        return chr(0x4E00 + r.randrange(3000)) * r.choice((1, 1, 2)) + chr(r.choice(SPACES))
    return r.choice(WORDS) + r.choice(("", "", " "))


def text(r, tokens, added):
    n = r.choice((1, 2, 3, 4, 6, 8, 12, 12)) if r.random() < 0.995 else r.randrange(60, 200)
    return "".join(piece(r, tokens, added) for _ in range(n))


def run_driver(driver, path, texts):
    blob = b"".join(struct.pack("=I", len(t)) + t for t in texts)
    p = subprocess.run([driver, path], input=blob, stdout=subprocess.PIPE, check=True)
    at = 0
    for _ in texts:
        (n,) = struct.unpack_from("=I", p.stdout, at)
        ids = struct.unpack_from(f"={n}i", p.stdout, at + 4)
        ends = struct.unpack_from(f"={n}I", p.stdout, at + 4 + 4 * n)
        (m,) = struct.unpack_from("=I", p.stdout, at + 4 + 8 * n)
        at += 8 + 8 * n + m
        yield list(ids), ends, p.stdout[at - m:at]


def expected(t, texts):
    """None where the library itself fails (it may, when stripping tokens overlap)."""
    try:
        return [e.ids for e in t.encode_batch(texts, add_special_tokens=False)]
    except BaseException:  # a Rust panic is not an Exception
        if len(texts) == 1:
            return [None]
        half = len(texts) // 2
        return expected(t, texts[:half]) + expected(t, texts[half:])


def compare(driver, path, count, r, plain):
    """The number of strings and of differences. plain: no tokens that strip or prefix."""
    t = Tokenizer.from_file(path)
    doc = json.load(open(path, encoding="utf-8"))
    added = [a["content"] for a in doc["added_tokens"]]
    tokens = [t.decode([i]) for i in range(t.get_vocab_size()) if t.id_to_token(i)]
    tokens = [s for s in tokens if "\ufffd" not in s]
    bad = skipped = 0
    for start in range(0, count, BATCH):
        texts = [text(r, tokens, added) for _ in range(min(BATCH, count - start))]
        raw = [s.encode() for s in texts]
        for s, b, want, (ids, ends, back) in zip(texts, raw, expected(t, texts),
                                                 run_driver(driver, path, raw)):
            normal = t.normalizer.normalize_str(s) if t.normalizer else s
            fault = None
            if want is None:
                skipped += 1
            elif ids != want:
                fault = f"ids {ids}, not {want}"
            elif plain and (list(ends) != sorted(ends) or (ends or (0,))[-1] != len(b)):
                fault = f"ends {ends} of {len(b)} bytes"
            elif plain and pieces(doc):
                bare = lambda x: x.replace(" ", "").replace("\u2581", "")  # noqa: E731
                strips = any(a["lstrip"] or a["rstrip"] for a in doc["added_tokens"])
                if not strips and bare(back.decode(errors="replace")) != bare(s):
                    fault = f"decoded {back!r}"
            elif plain and added_free(doc) and back != normal.encode():
                fault = f"decoded {back!r}, not {normal.encode()!r}"
            if fault:
                bad += 1
                if bad <= 10:
                    print(f"{path}: {s!r}: {fault}")
    return count, bad, skipped


def pieces(doc):
    """SentencePiece: characters, and a letter for the space."""
    return doc["model"].get("byte_fallback", False)


def added_free(doc):
    """Decoding gives the normal form of the whole text unless raw tokens cut it first."""
    return True if not doc["normalizer"] else all(
        a["content"].isascii() for a in doc["added_tokens"])


def variant(base, r):
    """base with random added tokens, normaliser, prefix space and pattern."""
    doc = json.loads(base)
    pool = ["<a>", "<b>", "<ab>", "<a><b>", "the", " the", "  ", "   ", "\t", "e\u0301", "\u00e9",
            "\u0301", "\n", "\n\n", "caf\u00e9", "cafe\u0301", "'s", "world", "\u4e2d", "don't"]
    names = r.sample(pool, r.randrange(1, 10))
    seen = set()  # of two that normalise to one text the library takes either
    names = [s for s in names if not (unicodedata.normalize("NFC", s) in seen
                                      or seen.add(unicodedata.normalize("NFC", s)))]
    if r.random() < 0.3:
        names.append(r.choice(names))
    flag = lambda: r.random() < 0.35  # noqa: E731
    doc["added_tokens"] = [
        dict(id=100000 + i, content=s, single_word=flag(), lstrip=flag(), rstrip=flag(),
             normalized=flag(), special=flag()) for i, s in enumerate(names)]
    if pieces(doc):  # where ours differs: tokens looked for in text whose spaces are a letter by now
        for a in doc["added_tokens"]:
            a["normalized"] &= not (a["lstrip"] or a["rstrip"] or a["content"].isspace())
        if flag():
            return doc
        scheme = r.choice(("always", "first", "never", True))
        space = dict(type="Metaspace", replacement="\u2581")
        space.update(dict(prepend_scheme=scheme, split=flag()) if isinstance(scheme, str)
                     else dict(add_prefix_space=scheme))
        doc["normalizer"], doc["decoder"], doc["pre_tokenizer"] = None, None, space
        return doc
    doc["normalizer"] = r.choice((None, {"type": "NFC"},
                                  {"type": "Sequence", "normalizers": [{"type": "NFC"}]}))
    if doc["pre_tokenizer"]["type"] == "Sequence" and flag():  # Llama 3's pattern, or Qwen 2's
        pattern = doc["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        if flag():
            pattern["Regex"] = pattern["Regex"].replace("{1,3}", "")
        return doc
    level = dict(type="ByteLevel", add_prefix_space=flag(), trim_offsets=True,
                 use_regex=r.random() < 0.8)
    doc["pre_tokenizer"] = r.choice((level, {"type": "Sequence", "pretokenizers": [level]}))
    doc["model"]["ignore_merges"] = flag()
    if flag():
        merges = doc["model"]["merges"]
        doc["model"]["merges"] = [m if isinstance(m, list) else m.split(" ") for m in merges]
    if flag():  # bytes without a token
        for c in "q\u0122\u00c3":
            doc["model"]["vocab"].pop(c, None)
            doc["model"]["merges"] = [m for m in doc["model"]["merges"] if c not in "".join(m)]
        kept = [w for w in doc["model"]["vocab"] if not set(w) & set("q\u0122\u00c3")]
        doc["model"]["vocab"] = {w: i for i, w in enumerate(kept)}
        doc["model"]["unk_token"] = r.choice((None, "the", "\u0120"))
        doc["model"]["fuse_unk"] = flag()
    return doc


def main():
    a = argparse.ArgumentParser()
    a.add_argument("driver")
    a.add_argument("directory")
    a.add_argument("--strings", type=int, default=1000000)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--variants", type=int, default=0)
    o = a.parse_args()
    r = random.Random(o.seed)
    path = os.path.join(o.directory, "tokenizer.json")
    total, bad, skipped = 0, 0, 0
    if not o.variants:
        total, bad, skipped = compare(o.driver, path, o.strings, r, True)
    base = open(path, encoding="utf-8").read()
    for _ in range(o.variants):
        with tempfile.TemporaryDirectory() as d:
            file = os.path.join(d, "tokenizer.json")
            doc = variant(base, r)
            with open(file, "w", encoding="utf-8") as f:
                json.dump(doc, f)
            n, b, k = compare(o.driver, file, o.strings // o.variants, r, False)
            if b:
                doc["model"] = {k: v for k, v in doc["model"].items() if k not in
                                ("vocab", "merges")}
                print("in the variant", doc)
            total, bad, skipped = total + n, bad + b, skipped + k
    print(f"{o.directory}: seed {o.seed}, {total} strings, {bad} differ, "
          f"{skipped} on which the library itself fails")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
