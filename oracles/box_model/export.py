#!/usr/bin/env python3
"""Writes the trained model as a Q8_0 GGUF, and what tests and the model card need.

The GGUF has llama.cpp's names for `qwen3`; norms are F32 and matrices Q8_0, rounded by PyPI `gguf`. Perplexity, samples and the test
fixture are computed from the file just written: its tensors are dequantised and run by `transformers` in f32.

    python3 export.py --data DIR --model DIR --out kernelry-box-q8_0.gguf [--fixture box.json] [--report report.json]
"""

import argparse
import json
import math
import pathlib

import gguf
import numpy as np
import torch
from model import Config
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS = ["Ownership is", "A trait", "The borrow checker"]


def gguf_name(name):
    name = name.removeprefix("model.").removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, rest = name.split(".", 2)
        return f"blk.{layer}.{NAMES[rest]}.weight"
    return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[name]


def write_gguf(path, config, weights, tokenizer_json):
    w = gguf.GGUFWriter(str(path), "qwen3")
    w.add_type(gguf.GGUFType.MODEL)
    w.add_name("Kernelry Box")
    w.add_description("A 7 M parameter language model of Rust documentation")
    w.add_license("MIT OR Apache-2.0")
    w.add_languages(["en"])
    w.add_size_label("7.3M")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_key_length(config.head_dim)
    w.add_value_length(config.head_dim)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(config.rope_theta)
    w.add_vocab_size(config.vocab_size)

    model = json.loads(tokenizer_json)["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda kv: kv[1])]
    special = {t["id"] for t in json.loads(tokenizer_json)["added_tokens"]}
    assert len(tokens) == config.vocab_size and special == {0}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))])
    w.add_token_merges([" ".join(m) for m in model["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.add_pad_token_id(0)
    w.add_add_bos_token(False)

    for name, tensor in weights.items():
        data = tensor.float().numpy()
        if data.ndim == 1:
            w.add_tensor(gguf_name(name), data)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            w.add_tensor(gguf_name(name), gguf.quants.quantize(data, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def read_gguf(path, names):
    """The file's tensors as f32, under transformers' names."""
    tensors = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    assert set(tensors) == {gguf_name(n) for n in names}
    out = {}
    for name in names:
        t = tensors[gguf_name(name)]
        out[name] = torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).copy())
    return out


def load(config, weights):
    model = Qwen3ForCausalLM(config.to_transformers()).eval().float()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model.to(DEVICE)


@torch.no_grad()
def perplexity(model, ids, boundary, length=1024):
    """Held-out perplexity in windows of `length`: all documents, and the toolchain's alone."""
    losses, where = [], []
    for start in range(0, len(ids) - length, length):
        row = torch.from_numpy(ids[start:start + length + 1].astype(np.int64))[None].to(DEVICE)
        logits = model(row[:, :-1]).logits[0].float()
        losses.append(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none").double().cpu())
        where.append(torch.arange(start + 1, start + length + 1))
    losses, where = torch.cat(losses), torch.cat(where)
    return {"all": math.exp(losses.mean()), "toolchain": math.exp(losses[where < boundary].mean())}


@torch.no_grad()
def continuation(model, ids, count, temperature=0.0, seed=0, margins=None):
    """`ids` followed by up to `count` more, ending early at the end-of-text token; `margins` collects how far the best logit leads."""
    generator = torch.Generator().manual_seed(seed)
    ids = list(ids)
    for _ in range(count):
        logits = model(torch.tensor([ids], device=DEVICE)).logits[0, -1].float().cpu()
        token = int(logits.argmax()) if temperature == 0 else int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        if margins is not None:
            first, second = logits.topk(2).values.tolist()
            margins.append(first - second)
        ids.append(token)
        if token == 0:
            break
    return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="where tokens.py wrote")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="where train.py wrote")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--fixture", type=pathlib.Path)
    parser.add_argument("--report", type=pathlib.Path)
    args = parser.parse_args()

    config = Config(**json.loads((args.model / "config.json").read_text()))
    weights = {k: v.float() for k, v in load_file(str(args.model / "model.safetensors")).items()}
    tokenizer = Tokenizer.from_file(str(args.data / "tokenizer.json"))
    write_gguf(args.out, config, weights, (args.data / "tokenizer.json").read_text())
    size = args.out.stat().st_size
    assert size <= 8_000_000, size
    rounded = load(config, read_gguf(args.out, list(weights)))

    if args.fixture:
        cases = []
        for prompt in PROMPTS:
            ids = tokenizer.encode(prompt).ids
            with torch.no_grad():
                logits = rounded(torch.tensor([ids], device=DEVICE)).logits[0, -1].float().cpu()
            top = logits.topk(10)
            margins = []
            greedy = continuation(rounded, ids, 32, margins=margins)[len(ids):]
            cases.append({"prompt": prompt, "ids": ids, "greedy": greedy, "greedy_margins": [round(x, 5) for x in margins],
                          "greedy_text": tokenizer.decode(greedy),
                          "top_ids": top.indices.tolist(), "top_logits": [round(x, 6) for x in top.values.tolist()]})
        args.fixture.write_text(json.dumps({"made_by": "oracles/box_model/export.py", "cases": cases}, indent=1) + "\n")

    if args.report:
        ids = np.fromfile(args.data / "heldout.u16", dtype="<u2")
        boundary = json.loads((args.data / "streams.json").read_text())["heldout"]["toolchain_tokens"]
        report = {"bytes": size, "parameters": sum(w.numel() for w in weights.values()),
                  "perplexity_f16": perplexity(load(config, weights), ids, boundary), "perplexity_q8_0": perplexity(rounded, ids, boundary), "samples": []}
        for prompt in PROMPTS:
            start = tokenizer.encode(prompt).ids
            for temperature in (0.0, 0.7):
                text = tokenizer.decode(continuation(rounded, start, 96, temperature), skip_special_tokens=False)
                report["samples"].append({"prompt": prompt, "temperature": temperature, "text": text})
                print(f"[{temperature}] {text}\n")
        args.report.write_text(json.dumps(report, indent=1) + "\n")
        print({k: v for k, v in report.items() if k != "samples"})


if __name__ == "__main__":
    main()
