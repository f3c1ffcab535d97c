"""Tiny models with random weights: GGUF files, and the logits and greedy continuations that `transformers` computes for them in f32.

    python oracles/tiny_models.py

Every greedy step has a gap of more than 1e-3 between the two highest logits (another seed is tried otherwise), so that the tokens do
not depend on the order of a sum.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

OUT = Path(__file__).resolve().parent.parent / "crates/kernelry-models/tests/fixtures/tiny"
VOCAB = 120
PROMPT_LEN = 21
GREEDY = 64
GAP = 1e-3
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def config(cls, **kwargs):
    base = dict(
        vocab_size=VOCAB,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=1,
        attention_dropout=0.0,
        attn_implementation="eager",
    )
    return cls(**{**base, **kwargs})


MODELS = {
    "llama": (
        "llama",
        LlamaForCausalLM,
        lambda: config(
            LlamaConfig,
            hidden_size=40,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=10,
            rope_parameters=LLAMA3_ROPE,
            tie_word_embeddings=False,
        ),
    ),
    "llama_tied": (
        "llama",
        LlamaForCausalLM,
        lambda: config(
            LlamaConfig,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
        ),
    ),
    "qwen2": (
        "qwen2",
        Qwen2ForCausalLM,
        lambda: config(
            Qwen2Config,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            tie_word_embeddings=True,
            use_sliding_window=False,
        ),
    ),
    "qwen3": (
        "qwen3",
        Qwen3ForCausalLM,
        lambda: config(
            Qwen3Config,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
    ),
}


def randomise(model, seed):
    """Weights that make every part matter: norms away from one, biases away from zero, attention that is neither flat nor one-hot."""
    generator = torch.Generator().manual_seed(seed)
    # A tied output mostly repeats its input unless the layers add more than the embedding holds.
    branch = 3.0 if model.config.tie_word_embeddings else 1.0
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight"):
                p.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                p.copy_(noise / branch)
            elif "o_proj" in name or "down_proj" in name:
                p.copy_(noise * branch / p.shape[1] ** 0.5)
            elif "q_proj" in name or "k_proj" in name:
                p.copy_(noise * 1.6 / p.shape[1] ** 0.5)
            else:
                p.copy_(noise / p.shape[1] ** 0.5)


def greedy(model, prompt):
    """Logits of every prompt position, the greedy tokens, and the smallest gap between first and second."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0]
        tokens, gap, row = [], float("inf"), logits[-1]
        for _ in range(GREEDY):
            top = torch.topk(row, 2).values
            gap = min(gap, float(top[0] - top[1]))
            tokens.append(int(torch.argmax(row)))
            # The whole sequence again at each step: no cache that could be wrong.
            row = model(torch.tensor([prompt + tokens])).logits[0, -1]
    return logits.numpy(), tokens, gap


def build(cls, make_config):
    best = None
    for seed in range(200):
        model = cls(make_config()).float().eval()
        randomise(model, seed)
        rng = np.random.default_rng(seed)
        prompt = [0] + [int(t) for t in rng.integers(4, VOCAB, PROMPT_LEN - 1)]
        logits, tokens, gap = greedy(model, prompt)
        distinct = len(set(tokens))
        # A continuation that falls into a short loop says little about long contexts.
        if gap > 5 * GAP and distinct >= 20:
            return seed, model, prompt, logits, tokens, gap
        if best is None or distinct > best:
            best = distinct
    raise SystemExit(f"no seed gives a robust greedy path (most distinct tokens: {best})")


def permute(weight, heads):
    """Rows of Q and K reordered from split-half to adjacent rotary pairs, as the llama.cpp converter does."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def rope_factors(cfg):
    """Divisors of the rotary angles: the ratio of the plain and the scaled inverse frequencies."""
    head_dim = cfg.head_dim
    plain = 1.0 / (cfg.rope_parameters["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim))
    scaled = LlamaRotaryEmbedding(cfg).inv_freq.float().numpy()
    return (plain / scaled).astype(np.float32)


def tokenizer(writer):
    """A byte-level vocabulary: control tokens, printable ASCII, and a few merges."""
    tokens = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"] + [chr(c) for c in range(0x21, 0x7F)] + ["Ġ", "Ċ"]
    merges = ["t h", "th e", "Ġ the", "a n", "an d", "Ġ and", "i n", "in g", "e r", "o n", "r e", "Ġ t", "o f", "h i", "e s"]
    for merge in merges:
        joined = merge.replace(" ", "")
        if joined not in tokens:
            tokens.append(joined)
    while len(tokens) < VOCAB:
        tokens.append(f"<|unused_{len(tokens)}|>")
    assert len(tokens) == VOCAB, len(tokens)
    kinds = [3 if t.startswith("<|") and not t.startswith("<|unused") else 5 if t.startswith("<|unused") else 1 for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def export(name, arch, model):
    cfg = model.config
    head_dim = getattr(cfg, "head_dim", None) or cfg.hidden_size // cfg.num_attention_heads
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    writer.add_name(f"tiny {name}")
    writer.add_context_length(cfg.max_position_embeddings)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_key_value_heads)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if arch == "llama":
        writer.add_vocab_size(cfg.vocab_size)
        writer.add_rope_dimension_count(head_dim)
    if arch == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    tokenizer(writer)
    if cfg.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(cfg))
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    heads = {"attn_q": cfg.num_attention_heads, "attn_k": cfg.num_key_value_heads}
    for key, value in model.state_dict().items():
        value = value.float().numpy()
        stem, suffix = key.rsplit(".", 1)
        if stem == "model.embed_tokens":
            out = "token_embd"
        elif stem == "model.norm":
            out = "output_norm"
        elif stem == "lm_head":
            if cfg.tie_word_embeddings:
                continue
            out = "output"
        else:
            _, _, layer, part = stem.split(".", 3)
            out = f"blk.{layer}.{names[part]}"
            if arch == "llama" and names[part] in heads:
                value = permute(value, heads[names[part]])
        writer.add_tensor(f"{out}.{suffix}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, (arch, cls, make_config) in MODELS.items():
        seed, model, prompt, logits, tokens, gap = build(cls, make_config)
        assert gap > GAP
        export(name, arch, model)
        save_file(
            {
                "prompt": np.array(prompt, dtype=np.int32),
                "logits": logits.astype(np.float32),
                "greedy": np.array(tokens, dtype=np.int32),
            },
            OUT / f"{name}.safetensors",
        )
        size = sum((OUT / f"{name}.{ext}").stat().st_size for ext in ["gguf", "safetensors"])
        total += size
        print(f"{name}: seed {seed}, smallest gap {gap:.4f}, {len(set(tokens))} distinct tokens, {size} bytes, logits std {logits.std():.2f}")
    print(f"total {total} bytes")
