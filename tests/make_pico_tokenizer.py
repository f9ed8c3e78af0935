#!/usr/bin/env python3
"""Makes the tokenizer of data/pico-neox: made once and committed, never by the build.

    cc -O2 data/stories.c -o stories -lm
    ./stories text 20000 1 > stories.txt
    python3 tests/make_pico_tokenizer.py stories.txt data/qa-train.jsonl

It has the form of GPT-NeoX-20B's: a byte-level BPE under an NFC normalizer, with
<|endoftext|> = 0, <|padding|> = 1 and runs of spaces as added tokens at the end.
Needs the `tokenizers` package; 0.23.3 made the committed files.
"""

import json
import pathlib
import sys

from tokenizers import AddedToken, Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 1024
SPACES = 3  # added tokens of 4, 3 and 2 spaces
END, PADDING = "<|endoftext|>", "<|padding|>"
TEMPLATE = "### Question:\n{question}\n### Answer:{answer}"
PICO = pathlib.Path(__file__).resolve().parent.parent / "data" / "pico-neox"


def texts(stories, questions):
    with open(stories, encoding="utf-8") as lines:
        yield from (line.rstrip("\n") for line in lines)
    with open(questions, encoding="utf-8") as lines:
        yield from (TEMPLATE.format(**json.loads(line)) for line in lines)


def train(stories, questions):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=True
    )
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=False, trim_offsets=True, use_regex=True
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - SPACES,
        special_tokens=[END, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(stories, questions), trainer)
    tokenizer.add_tokens(
        [AddedToken(" " * n, normalized=True, special=False) for n in (4, 3, 2)]
    )
    return tokenizer


def write_json(name, value):
    (PICO / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: make_pico_tokenizer.py STORIES.txt QUESTIONS.jsonl")
    PICO.mkdir(parents=True, exist_ok=True)
    tokenizer = train(*sys.argv[1:])
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert tokenizer.token_to_id(END) == 0 and tokenizer.token_to_id(PADDING) == 1
    tokenizer.save(str(PICO / "tokenizer.json"))
    write_json(
        "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": END,
            "eos_token": END,
            "model_max_length": 256,
            "tokenizer_class": "GPTNeoXTokenizer",
            "unk_token": END,
        },
    )
    write_json(
        "special_tokens_map.json", {"bos_token": END, "eos_token": END, "unk_token": END}
    )


if __name__ == "__main__":
    main()
