"""Fixtures for the tokenizers: small vocabularies trained here with `tokenizers` and `sentencepiece`, the ids those libraries give for
hard texts, and the words their regex engine cuts for each pre-tokenizer.

    python oracles/tokenizer_fixtures.py
"""

import io
import json
from collections import Counter
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(__file__).resolve().parent.parent / "crates/kernelry-models/tests/fixtures/tokenizer"

CORPUS = """The quick brown fox jumps over the lazy dog. It's a test; they're sure we've seen it, and I'd say she'll agree. I'm done.
Numbers like 1, 22, 333, 4444 and 55555 occur, also 3.14159 and 1,000,000 or 2024-01-31. HELLO World, CamelCaseWords and snake_case_words.
def main(argc: int) -> None:\n    for i in range(10):\n        if i % 2 == 0:\n            print(f"{i} is even")\n\treturn None\n\n
fn add(a: u32, b: u32) -> u32 { a.wrapping_add(b) } // adds two numbers\n#include <stdio.h>\nint main(void) { return 0; }\n
Der schnelle braune Fuchs springt über den faulen Hund. Die Größe der Straße ist schön. Ähnlich übel.
Le renard brun saute par-dessus le chien paresseux. L'été à la plage, ça va très bien, n'est-ce pas? Où êtes-vous allé?
El zorro marrón salta sobre el perro perezoso. ¿Cómo estás? ¡Muy bien, señor! La niña comió una manzana mañana.
Быстрая коричневая лиса прыгает через ленивую собаку. Привет, как дела? Хорошо, спасибо большое.
敏捷的棕色狐狸跳过了懒狗。你好，世界！今天天气很好，我们去公园吧。 素早い茶色の狐がのろまな犬を飛び越える。こんにちは世界。
안녕하세요 세계. 빠른 갈색 여우가 게으른 개를 뛰어넘습니다. नमस्ते दुनिया। तेज़ भूरी लोमड़ी आलसी कुत्ते पर कूदती है।
مرحبا بالعالم. الثعلب البني السريع يقفز فوق الكلب الكسول. שלום עולם. Γειά σου Κόσμε. สวัสดีชาวโลก
the the the and and of of of to to in in that it is was for on are as with his they be at one have this from
""" * 3

TEXTS = [
    "",
    " ",
    "Hello world",
    " Hello  world ",
    "the quick brown fox isn't THE'LL they'RE lazy",
    "Überraschung: größer, naïve café, señor, Straße",
    "cafe\u0301 n\u0303 A\u030a (decomposed)",
    "Привет, мир! Как дела?",
    "你好，世界！今天天气很好。 こんにちは 안녕하세요",
    "नमस्ते दुनिया। कूदती है",
    "مرحبا بالعالم שלום",
    "สวัสดีชาวโลก",
    "emoji: 😀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇩🇪",
    "math: ∑∫√∞ ≠ ½ ² Ⅷ ٣٤٥",
    "x = foo(bar)[1:2]; // comment\n\tif (a != b) {\n\t\treturn *p++;\n\t}\n",
    "def f(x):\n    return x ** 2\n\n\n\nprint(f(3))\n",
    "a\n\n\nb\r\n\r\nc \n d",
    "     leading and trailing     ",
    "tabs\t\tand\t spaces \t mixed",
    "12345678901234567890 1,234.56 v2.0.1 0x1F",
    "control\x00\x01\x1f\x7f\x85chars",
    "nbsp\u00a0and\u2003em\u200bzero\u3000wide",
    "CamelCaseHTTPServerXMLParser iPhone McDonald",
    "it's It'S 'tis rock'n'roll y'all'd've",
    "!!!???...---___===***```",
    "https://example.com/path?query=1&x=%20#frag",
    "\ufeffbom \ufffd \ue000 private",
    "\n",
    "   \n   \n   ",
    "ab" * 200,
    "a" * 500,
    " " * 300,
    "\n" * 100 + "x",
    "🙂" * 50,
    "end with space ",
    "end with newline\n",
    "<|im_start|>user\nHi<|im_end|>\n<tool>x</tool><|im_",
]


def byte_alphabet():
    return sorted(pre_tokenizers.ByteLevel.alphabet())


CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN35 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters of scripts with case, as the published tokenizer lists them.
CASED_SCRIPTS = "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
PRE = {
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "qwen35": [QWEN35],
    "tekken": [TEKKEN],
    "gpt-4o": [GPT4O],
    "smollm": [r"\p{N}", GPT2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
    "deepseek-llm": [
        r"[\r\n]",
        rf"\s?[{CASED_SCRIPTS}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        "[一-龥ࠀ-一가-\ud7ff]+",
        r"\p{N}+",
    ],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
    "bloom": [" ?[^(\\s|.,!?…。，、।۔،)]+"],
    "seed-coder": [CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"],
}
NFC = {"qwen2", "qwen35"}


def splitter(stages):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(s), "isolated") for s in stages])


def spec_of(tokenizer, model, pre, kinds, **extra):
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    tokens = [None] * (max(vocab.values()) + 1)
    for token, i in vocab.items():
        tokens[i] = token
    assert None not in tokens
    merges = json.loads(tokenizer.to_str())["model"].get("merges", [])
    merges = [m if isinstance(m, str) else " ".join(m) for m in merges]
    types = [kinds.get(t, 1) for t in tokens]
    return {"model": model, "pre": pre, "tokens": tokens, "token_types": types, "merges": merges, "scores": [], **extra}


def cases(encode, encode_special, decode, texts=TEXTS):
    out = []
    for text in texts:
        ids = encode(text)
        case = {"text": text, "ids": ids, "decoded": decode(ids)}
        special = encode_special(text)
        if special != ids:
            case["ids_parsed"] = special
        out.append(case)
    return out


def byte_level(name, vocab_size=900):
    nfc = name in NFC
    plain = Tokenizer(models.BPE(ignore_merges=name in {"llama-bpe", "tekken"}))
    if nfc:
        plain.normalizer = normalizers.NFC()
    plain.pre_tokenizer = pre_tokenizers.Sequence([splitter(PRE[name]), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=byte_alphabet(), show_progress=False)
    plain.train_from_iterator([CORPUS], trainer)
    special = Tokenizer.from_str(plain.to_str())
    special.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|im_start|>user"])
    special.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False)])
    kinds = {"<|im_start|>": 3, "<|im_end|>": 3, "<|im_start|>user": 3, "<tool>": 4, "</tool>": 4}
    spec = spec_of(special, "gpt2", name, kinds, eos=special.token_to_id("<|im_end|>"))
    return {
        "spec": spec,
        "cases": cases(
            lambda t: plain.encode(t).ids,
            lambda t: special.encode(t).ids,
            lambda ids: special.decode(ids, skip_special_tokens=False),
        ),
    }


def gemma4():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # Training words begin with ▁ and never hold a newline with anything else, as in the published vocabularies.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n+"), "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    data["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    kinds = {"<pad>": 3, "<eos>": 3, "<bos>": 3, "<unk>": 2} | {f"<0x{b:02X}>": 6 for b in range(256)}
    spec = spec_of(tokenizer, "gemma4", None, kinds, bos=2, eos=1, unk=3, pad=0)
    plain = lambda t: tokenizer.encode(t).ids
    return {"spec": spec, "cases": cases(plain, plain, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))}


def sentence_piece():
    blob = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_writer=blob,
        model_type="bpe",
        vocab_size=720,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    sp = sentencepiece.SentencePieceProcessor(model_proto=blob.getvalue())
    n = sp.get_piece_size()

    def kind(i):
        if sp.is_unknown(i):
            return 2
        if sp.is_control(i):
            return 3
        if sp.is_byte(i):
            return 6
        return 5 if sp.is_unused(i) else 1

    spec = {
        "model": "llama",
        "pre": None,
        "tokens": [sp.id_to_piece(i) for i in range(n)],
        "scores": [sp.get_score(i) for i in range(n)],
        "token_types": [kind(i) for i in range(n)],
        "merges": [],
        "bos": sp.bos_id(),
        "eos": sp.eos_id(),
        "unk": sp.unk_id(),
    }
    texts = [t for t in TEXTS if "\x00" not in t]  # the library's C++ side ends the text there
    return {"spec": spec, "cases": cases(sp.encode, sp.encode, sp.decode, texts)}


def word_piece():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(CORPUS)))
    # The trainer of the library breaks ties at random, so the vocabulary is put together here: characters, beginnings and ends of words.
    pieces = Counter()
    for word, count in words.items():
        for n in range(2, 6):
            pieces[word[:n]] += count
            if len(word) > n:
                pieces["##" + word[-n:]] += count
    frequent = sorted(pieces, key=lambda p: (-pieces[p], p))[:500]
    letters = sorted({c for word in words for c in word if c not in "狸狗ग"})
    vocab = specials + letters + ["##" + c for c in letters] + frequent
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    spec = spec_of(tokenizer, "bert", None, {t: 3 for t in ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]} | {"[UNK]": 2}, bos=2, eos=3, unk=1, pad=0)
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    spec["tokens"] = [t if t in special else t[2:] if t.startswith("##") else "▁" + t for t in spec["tokens"]]
    out = []
    for text in TEXTS:
        out.append({"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids, "prompt": tokenizer.encode(text).ids})
    return {"spec": spec, "cases": out}


def pre_splits():
    out = {}
    for name, stages in PRE.items():
        rows = []
        for text in TEXTS:
            if name in NFC:
                text = normalizers.NFC().normalize_str(text)
            rows.append([word for word, _ in splitter(stages).pre_tokenize_str(text)])
        out[name] = rows
    return {"texts": TEXTS, "words": out}


def write(name, data):
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for name in ["gpt-2", "llama-bpe", "qwen2"]:
        write(name, byte_level(name))
    write("gemma4", gemma4())
    write("llama", sentence_piece())
    write("bert", word_piece())
    write("pre", pre_splits())
