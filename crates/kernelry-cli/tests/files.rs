//! `inspect` and `quantize`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{files, kernelry_in};
use kernelry::DType;
use kernelry::gguf::{GgufFile, GgufWriter};
use kernelry::quant::{GgmlType, dequantize_to_vec, quantize};
use kernelry::safetensors::{NewTensor, save};

/// Tensors of a small model: name, shape.
const TENSORS: &[(&str, &[usize])] = &[
    ("token_embd.weight", &[8, 512]),
    ("blk.0.attn_norm.weight", &[512]),
    ("blk.0.attn_q.weight", &[6, 512]),
    ("blk.0.attn_v.weight", &[6, 512]),
    ("blk.0.attn_q.bias", &[6]),
    ("blk.0.ffn_gate_inp.weight", &[4, 512]),
    ("blk.0.ffn_up_exps.weight", &[2, 3, 256]),
    ("blk.0.ffn_down.weight", &[4, 96]),
    ("blk.0.odd.weight", &[2, 33]),
    ("output.weight", &[8, 512]),
];

fn values(name: &str, n: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(17u32, |s, b| s.wrapping_mul(31).wrapping_add(b.into()));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Writes the model in f32.
fn model(path: &Path) {
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "llama").unwrap();
    writer.set("general.file_type", 0u32).unwrap();
    writer.set("llama.rope.freq_base", 0.1f32).unwrap();
    writer.set("tokenizer.ggml.tokens", vec!["a", "b"]).unwrap();
    let mut data = Vec::new();
    for (name, shape) in TENSORS {
        writer.tensor(name, GgmlType::F32, shape).unwrap();
        data.push(values(name, shape.iter().product()).iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    std::fs::write(path, writer.to_bytes(&data).unwrap()).unwrap();
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    model(&dir.path().join("m.gguf"));
    dir
}

#[test]
fn inspect_gguf() {
    let dir = folder();
    let report = kernelry_in(dir.path(), &["inspect", "m.gguf", "--json"]).ok().json();
    assert_eq!(report["format"], "gguf");
    assert_eq!(report["version"], 3);
    assert_eq!(report["metadata"]["general.architecture"], "llama");
    assert_eq!(report["metadata"]["llama.rope.freq_base"], 0.1);
    assert_eq!(report["metadata"]["tokenizer.ggml.tokens"], serde_json::json!(["a", "b"]));
    assert_eq!(report["tensors"].as_array().unwrap().len(), TENSORS.len());
    assert_eq!(report["tensors"][0]["name"], "token_embd.weight");
    assert_eq!(report["tensors"][0]["shape"], serde_json::json!([8, 512]));
    assert_eq!(report["tensors"][0]["bytes"], 8 * 512 * 4);
    let count: usize = TENSORS.iter().map(|t| t.1.iter().product::<usize>()).sum();
    assert_eq!(report["parameters"], count);
    let text = kernelry_in(dir.path(), &["inspect", "m.gguf"]).ok().stdout;
    assert!(text.contains("llama.rope.freq_base") && text.contains("blk.0.attn_q.weight"), "{text}");
    let some = kernelry_in(dir.path(), &["inspect", "m.gguf", "--tensor", "*attn_q*"]).ok().stdout;
    assert!(some.contains("blk.0.attn_q.bias") && !some.contains("output.weight"), "{some}");
}

#[test]
fn inspect_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let a = NewTensor { name: "a", dtype: DType::BF16, shape: &[2], bytes: &[0; 4] };
    let b = NewTensor { name: "b", dtype: DType::F32, shape: &[1, 2], bytes: &[0; 8] };
    save(dir.path().join("t.safetensors"), &[a, b], &[("made by", "a test")]).unwrap();
    let report = kernelry_in(dir.path(), &["inspect", "t.safetensors", "--json"]).ok().json();
    assert_eq!(report["format"], "safetensors");
    assert_eq!(report["metadata"]["made by"], "a test");
    let first = &report["tensors"][0];
    assert_eq!((&first["name"], &first["type"], &first["bytes"]), (&"b".into(), &"F32".into(), &8.into()));
    let offset = first["offset"].as_u64().unwrap() as usize;
    assert_eq!(offset + 12, report["file_bytes"].as_u64().unwrap() as usize);
    // A folder with a model is read as one.
    std::fs::rename(dir.path().join("t.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert_eq!(kernelry_in(dir.path(), &["inspect", ".", "--json"]).ok().json()["tensors"], report["tensors"]);
}

#[test]
fn inspect_refuses_what_it_cannot_read() {
    let dir = folder();
    kernelry_in(dir.path(), &["inspect", "none.gguf"]).fails(1, "none.gguf: ");
    kernelry_in(dir.path(), &["inspect", "."]).fails(1, "model.safetensors: ");
    kernelry_in(dir.path(), &["inspect", "m.gguf", "--tensor", "nothing"]).fails(2, "no tensor of m.gguf matches `nothing`");
    std::fs::write(dir.path().join("text.txt"), "just text, long enough for a header").unwrap();
    kernelry_in(dir.path(), &["inspect", "text.txt"]).fails(1, "text.txt: not a GGUF or safetensors file");
    std::fs::write(dir.path().join("empty"), "").unwrap();
    kernelry_in(dir.path(), &["inspect", "empty"]).fails(1, "empty: not a GGUF or safetensors file");
}

/// Cut anywhere, a file is an error and never a crash, for both commands that read it.
#[test]
fn truncated_models_are_errors() {
    let dir = folder();
    let whole = std::fs::read(dir.path().join("m.gguf")).unwrap();
    let cut = dir.path().join("cut.gguf");
    for len in [0, 3, 4, 8, 20, 24, 40, 100, 200, 400, whole.len() / 2, whole.len() - 4096] {
        std::fs::write(&cut, &whole[..len]).unwrap();
        kernelry_in(dir.path(), &["inspect", "cut.gguf"]).fails(1, "cut.gguf: gguf: ");
        kernelry_in(dir.path(), &["quantize", "cut.gguf", "o.gguf", "--type", "Q4_K"]).fails(1, "cut.gguf: gguf: ");
        assert_eq!(files(dir.path()), ["cut.gguf", "m.gguf"]);
    }
}

fn types(path: &Path) -> Vec<(String, GgmlType)> {
    GgufFile::open(path).unwrap().tensors().iter().map(|t| (t.name.clone(), t.ty)).collect()
}

#[test]
fn quantize_chooses_types_by_shape_and_role() {
    use GgmlType::{F16, F32, Q4_K, Q5_0, Q6_K};
    let dir = folder();
    let run = kernelry_in(dir.path(), &["quantize", "m.gguf", "o.gguf", "--type", "q4_k"]).ok();
    assert!(run.stdout.starts_with("o.gguf: "), "{}", run.stdout);
    let expected = [Q6_K, F32, Q4_K, Q4_K, F32, F32, Q4_K, Q5_0, F16, Q6_K];
    let got = types(&dir.path().join("o.gguf"));
    assert_eq!(got.iter().map(|t| t.1).collect::<Vec<_>>(), expected, "{got:?}");
    assert_eq!(files(dir.path()), ["m.gguf", "o.gguf"]);
    // The mix gives the value projection more bits.
    kernelry_in(dir.path(), &["quantize", "m.gguf", "m2.gguf", "--type", "Q4_K_M"]).ok();
    let mixed = types(&dir.path().join("m2.gguf"));
    assert_eq!((mixed[2].1, mixed[3].1), (Q4_K, Q6_K));
}

#[test]
fn quantize_keeps_metadata_and_values() {
    let dir = folder();
    for target in ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K"] {
        kernelry_in(dir.path(), &["quantize", "m.gguf", "o.gguf", "--type", target]).ok();
        let file = GgufFile::open(dir.path().join("o.gguf")).unwrap();
        assert_eq!(file.get_str("general.architecture").unwrap(), "llama");
        assert_eq!(file.get_strs("tokenizer.ggml.tokens").unwrap(), ["a", "b"]);
        assert_eq!(file.find::<u32>("general.quantization_version").unwrap().is_some(), !target.ends_with('6') && !target.starts_with('F'));
        for tensor in file.tensors() {
            let source = values(&tensor.name, tensor.elements());
            let expected = dequantize_to_vec(tensor.ty, &quantize(tensor.ty, &source).unwrap()).unwrap();
            assert_eq!(file.tensor_f32(&tensor.name).unwrap(), expected, "{target} {}", tensor.name);
        }
    }
}

#[test]
fn quantizing_again_is_noted() {
    let dir = folder();
    kernelry_in(dir.path(), &["quantize", "m.gguf", "q8.gguf", "--type", "Q8_0"]).ok();
    let run = kernelry_in(dir.path(), &["quantize", "q8.gguf", "q4.gguf", "--type", "Q4_0"]).ok();
    assert!(run.stderr.contains("quantised already"), "{}", run.stderr);
    assert_eq!(types(&dir.path().join("q4.gguf"))[2].1, GgmlType::Q4_0);
}

#[test]
fn a_dry_run_writes_nothing() {
    let dir = folder();
    let run = kernelry_in(dir.path(), &["quantize", "m.gguf", "o.gguf", "--type", "Q6_K", "--dry-run"]).ok();
    assert!(run.stdout.lines().any(|l| l.contains("blk.0.ffn_down.weight") && l.ends_with("Q8_0")), "{}", run.stdout);
    assert_eq!(files(dir.path()), ["m.gguf"]);
}

#[test]
fn quantize_refuses_wrong_arguments() {
    let dir = folder();
    let before = std::fs::read(dir.path().join("m.gguf")).unwrap();
    kernelry_in(dir.path(), &["quantize", "m.gguf", "o.gguf", "--type", "Q3_K"]).fails(2, "expected one of: F32, F16");
    kernelry_in(dir.path(), &["quantize", "m.gguf", "o.gguf"]).fails(2, "--type");
    kernelry_in(dir.path(), &["quantize", "m.gguf", "m.gguf", "--type", "Q8_0"]).fails(2, "same file");
    kernelry_in(dir.path(), &["quantize", "m.gguf", "./m.gguf", "--type", "Q8_0"]).fails(2, "same file");
    kernelry_in(dir.path(), &["quantize", "none.gguf", "o.gguf", "--type", "Q8_0"]).fails(1, "none.gguf: ");
    kernelry_in(dir.path(), &["quantize", "m.gguf", "no/folder/o.gguf", "--type", "Q8_0"]).fails(1, "no/folder");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("m.gguf", dir.path().join("link.gguf")).unwrap();
        kernelry_in(dir.path(), &["quantize", "m.gguf", "link.gguf", "--type", "Q8_0"]).fails(2, "same file");
        std::fs::remove_file(dir.path().join("link.gguf")).unwrap();
        std::fs::hard_link(dir.path().join("m.gguf"), dir.path().join("hard.gguf")).unwrap();
        kernelry_in(dir.path(), &["quantize", "m.gguf", "hard.gguf", "--type", "Q8_0"]).fails(2, "same file");
        std::fs::remove_file(dir.path().join("hard.gguf")).unwrap();
    }
    assert_eq!(std::fs::read(dir.path().join("m.gguf")).unwrap(), before);
    assert_eq!(files(dir.path()), ["m.gguf"]);
}

/// A value that no block can hold ends the work with the name of the tensor, and leaves nothing behind.
#[test]
fn values_that_are_not_finite_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = GgufWriter::new();
    writer.tensor("fine.weight", GgmlType::F32, &[1, 32]).unwrap().tensor("bad.weight", GgmlType::F32, &[1, 32]).unwrap();
    let fine = [0u8; 128];
    let mut bad = fine;
    bad[64..68].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.path().join("m.gguf"), writer.to_bytes(&[&fine, &bad]).unwrap()).unwrap();
    kernelry_in(dir.path(), &["quantize", "m.gguf", "o.gguf", "--type", "Q8_0"]).fails(1, "m.gguf: tensor `bad.weight`: ");
    assert_eq!(files(dir.path()), ["m.gguf"]);
}

/// Ctrl-C in the middle leaves nothing behind.
#[cfg(unix)]
#[test]
fn an_interrupted_quantisation_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = GgufWriter::new();
    let shape = [1 << 12, 1 << 12];
    writer.tensor("a.weight", GgmlType::F32, &shape).unwrap().tensor("b.weight", GgmlType::F32, &shape).unwrap();
    let data = vec![0u8; 4 << 24];
    std::fs::write(dir.path().join("m.gguf"), writer.to_bytes(&[&data, &data]).unwrap()).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kernelry"));
    command.current_dir(dir.path()).args(["--threads", "1", "quantize", "m.gguf", "o.gguf", "--type", "Q6_K"]);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // The temporary file shows that the work has begun.
    while files(dir.path()).len() < 2 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(130), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "error: interrupted\n");
    assert_eq!(files(dir.path()), ["m.gguf"]);
}
