"""Fixtures for block formats and GGUF files, made with the PyPI package `gguf`."""

import struct
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent / "crates/kernelry/tests/fixtures"
SEED = 20240229

# Half-precision fields of each block, which must hold finite values; every other payload is legal.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.IQ4_NL: [0], T.IQ4_XS: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.TQ1_0: [52], T.TQ2_0: [64],
    T.MXFP4: [], T.BF16: None, T.F16: None,
}  # fmt: skip
EXACT_QUANTIZERS = [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]


def random_halves(rng, n):
    """Finite halves over the whole range, with zeros and subnormals among them."""
    bits = rng.integers(0, 0x7C00, n, dtype=np.uint16) | (rng.integers(0, 2, n, dtype=np.uint16) << 15)
    bits[:2] = [0, 0x8001]
    return bits


def blocks(rng, ty, n):
    raw = rng.integers(0, 256, (n, gguf.GGML_QUANT_SIZES[ty][1]), dtype=np.uint8)
    if HALVES[ty] is None:
        raw = random_halves(rng, n).view(np.uint8).reshape(n, 2)
    else:
        for at in HALVES[ty]:
            raw[:, at : at + 2] = random_halves(rng, n).view(np.uint8).reshape(n, 2)
    return raw


def decode_fixture(rng):
    out = {}
    for ty in HALVES:
        block_len = gguf.GGML_QUANT_SIZES[ty][0]
        raw = blocks(rng, ty, 6 if block_len == 256 else 24)
        out[f"{ty.name}.blocks"] = raw.reshape(-1)
        out[f"{ty.name}.values"] = gguf.quants.dequantize(raw, ty).astype(np.float32).reshape(-1)
    save_file(out, ROOT / "quant/decode.safetensors")


def encode_fixture(rng):
    scale = np.exp2(rng.integers(-12, 6, (48, 1))).astype(np.float32)
    x = (rng.standard_normal((48, 32)) * scale).astype(np.float32)
    x[0] = 0.0
    x[1] = 1.0
    x[2] = -3.5
    x[3] = np.arange(-16, 16)  # ties between the peaks and between codes
    x[4] = np.arange(32) / 31
    x[5, 1:] = 0.0
    x[6] *= np.float32(1e-9)  # scales underflow in half precision
    out = {"x": x.reshape(-1)}
    for ty in EXACT_QUANTIZERS:
        out[f"{ty.name}.blocks"] = np.frombuffer(gguf.quants.quantize(x, ty).tobytes(), np.uint8)
    save_file(out, ROOT / "quant/encode.safetensors")


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def handmade_file():
    """What the `gguf` writer refuses to write: empty arrays, arrays of arrays, version 2, alignment 64, a scalar tensor."""
    u8, i32, f32, text, array = 0, 5, 6, 8, 9
    values = [
        ("general.alignment", struct.pack("<II", 4, 64)),
        ("empty.strings", struct.pack("<IIQ", array, text, 0)),
        ("empty.nested", struct.pack("<IIQ", array, array, 0)),
        (
            "nested",
            struct.pack("<IIQ", array, array, 2)
            + struct.pack("<IQ2i", i32, 2, -1, 7)
            + struct.pack("<IQ", array, 2)
            + struct.pack("<IQ3B", u8, 3, 1, 2, 3)
            + (struct.pack("<IQ", text, 2) + string("über") + string("")),
        ),
        ("float", struct.pack("<If", f32, 0.1)),
    ]
    tensors = [("scalar", (), 0, 0), ("matrix", (3, 2), 24, 64), ("empty", (0, 4), 0, 128)]
    head = b"GGUF" + struct.pack("<IQQ", 2, len(tensors), len(values))
    for key, value in values:
        head += string(key) + value
    for name, dims, ty, offset in tensors:
        head += string(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", ty, offset)
    head += bytes(-len(head) % 64)
    data = struct.pack("<f", 2.5) + bytes(60) + struct.pack("<6b", -3, -2, -1, 0, 1, 127) + bytes(58)
    (ROOT / "gguf/handmade.gguf").write_bytes(head + data)


def library_file(rng):
    """All value types, and tensors of every decodable type with rows of 96 or 256 values."""
    path = ROOT / "gguf/library.gguf"
    writer = gguf.GGUFWriter(path, "fixture")
    writer.add_uint8("value.u8", 200)
    writer.add_int8("value.i8", -100)
    writer.add_uint16("value.u16", 60000)
    writer.add_int16("value.i16", -30000)
    writer.add_uint32("value.u32", 4_000_000_000)
    writer.add_int32("value.i32", -2_000_000_000)
    writer.add_float32("value.f32", 1.5)
    writer.add_bool("value.bool", True)
    writer.add_string("value.string", "naïve 東京 🦀")
    writer.add_uint64("value.u64", 1 << 63)
    writer.add_int64("value.i64", -(1 << 62))
    writer.add_float64("value.f64", 1e300)
    writer.add_array("array.strings", ["<s>", "", "▁the"])
    writer.add_array("array.i32", [1, -2, 3])
    writer.add_array("array.f32", [0.5, -0.25])
    writer.add_array("array.bool", [True, False, True])
    expected = {}
    for ty in HALVES:
        block_len = gguf.GGML_QUANT_SIZES[ty][0]
        k = 256 if block_len == 256 else 96
        raw = blocks(rng, ty, 3 * k // block_len).reshape(3, -1)
        name = f"blk.0.{ty.name.lower()}.weight"
        if ty == T.F16:
            writer.add_tensor(name, raw.view(np.float16))
        else:
            writer.add_tensor(name, raw, raw_dtype=ty)
        expected[name] = gguf.quants.dequantize(raw, ty).astype(np.float32).reshape(3, k)
    for dtype in (np.float32, np.float64, np.int8, np.int16, np.int32, np.int64):
        values = (rng.standard_normal((2, 2, 5)) * 100).astype(dtype)
        name = f"plain.{np.dtype(dtype).name}"
        writer.add_tensor(name, values)
        expected[name] = values.astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, ROOT / "gguf/library.safetensors")


def main():
    (ROOT / "quant").mkdir(parents=True, exist_ok=True)
    (ROOT / "gguf").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    with np.errstate(all="ignore"):
        decode_fixture(rng)
        encode_fixture(rng)
        library_file(rng)
    handmade_file()


if __name__ == "__main__":
    main()
