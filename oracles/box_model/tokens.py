#!/usr/bin/env python3
"""Trains the byte-level BPE tokenizer and turns the corpus into token streams.

The pre-tokeniser is Qwen2's regex followed by byte-level, without a normaliser, so that a runtime which implements the GGUF
pre-tokeniser `qwen2` splits text exactly as it was split in training.

Writes `tokenizer.json`, `train.u16`, `heldout.u16` (little-endian token ids, `<|endoftext|>` after each document) and `streams.json`.

    python3 tokens.py --data DIR
"""

import argparse
import gzip
import json
import pathlib
import random

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|endoftext|>"
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def train_tokenizer(texts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[AddedToken(EOS, special=True)], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--vocab", type=int, default=4096)
    args = parser.parse_args()
    sides = {side: read(args.data / f"{side}.jsonl.gz") for side in ("train", "heldout")}

    # The toolchain's documentation counts three times: it is what people will ask about.
    def training_texts():
        for d in sides["train"]:
            for _ in range(1 if d["source"] == "crates" else 3):
                yield d["text"]

    tokenizer = train_tokenizer(training_texts(), args.vocab)
    tokenizer.save(str(args.data / "tokenizer.json"))
    eos = tokenizer.token_to_id(EOS)

    streams = {}
    for side, documents in sides.items():
        random.Random(1).shuffle(documents)
        documents.sort(key=lambda d: d["source"] == "crates")  # stable: the toolchain's documents first, crates after them
        ids, boundary, characters = [], 0, 0
        for d, encoding in zip(documents, tokenizer.encode_batch([d["text"] for d in documents])):
            ids += encoding.ids + [eos]
            characters += len(d["text"])
            if d["source"] != "crates":
                boundary = len(ids)
        np.array(ids, dtype="<u2").tofile(args.data / f"{side}.u16")
        streams[side] = {"documents": len(documents), "characters": characters, "tokens": len(ids), "toolchain_tokens": boundary}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda kv: kv[1])
    streams["eos"] = eos
    streams["vocab_size"] = len(vocab)
    # Tokens after which a paragraph starts ("Ċ" is a newline in the byte-level alphabet).
    streams["paragraph_ends"] = [i for t, i in vocab if t.endswith("\u010a\u010a") or i == eos]
    (args.data / "streams.json").write_text(json.dumps(streams))
    print({k: v for k, v in streams.items() if k != "paragraph_ends"}, len(streams["paragraph_ends"]))


if __name__ == "__main__":
    main()
