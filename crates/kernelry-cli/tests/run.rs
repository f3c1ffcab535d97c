//! `run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{files, kernelry_in};
use kernelry::DType;
use kernelry::safetensors::{NewTensor, SafeTensors, save};

/// Writes f32 tensors.
fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let list = tensors.iter().zip(&bytes).map(|(t, bytes)| NewTensor { name: t.0, dtype: DType::F32, shape: t.1, bytes });
    let list: Vec<NewTensor<'_>> = list.collect();
    save(path, &list, &[]).unwrap();
}

fn read(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::open(path).unwrap();
    (file.tensor(name).unwrap().shape.clone(), file.read_f32(name).unwrap())
}

/// A folder with `a.safetensors`: x = [[3, 4]] and weight = [1, 2].
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("a.safetensors"), &[("x", &[1, 2], &[3.0, 4.0]), ("weight", &[2], &[1.0, 2.0])]);
    dir
}

const RUN: &[&str] = &["run", "rms_norm_f32", "--in", "a.safetensors", "--param", "eps=0"];

/// Root mean square of 3 and 4 is 5/sqrt(2).
fn check_result(path: &Path) {
    let (shape, y) = read(path, "out");
    assert_eq!(shape, [1, 2]);
    let scale = 2f32.sqrt() / 5.0;
    assert!((y[0] - 3.0 * scale).abs() < 1e-6 && (y[1] - 8.0 * scale).abs() < 1e-6, "{y:?}");
}

#[test]
fn sizes_follow_from_the_tensors() {
    let dir = folder();
    let run = kernelry_in(dir.path(), &[RUN, &["--out", "b.safetensors"]].concat()).ok();
    assert!(run.stdout.contains("rms_norm_f32 on cpu: rows=1 dim=2 eps=0"), "{}", run.stdout);
    check_result(&dir.path().join("b.safetensors"));
    assert_eq!(files(dir.path()), ["a.safetensors", "b.safetensors"]);
}

#[test]
fn all_parameters_can_be_given() {
    let dir = folder();
    kernelry_in(dir.path(), &[RUN, &["--param", "rows=1", "-p", "dim=2", "--out", "b.safetensors"]].concat()).ok();
    check_result(&dir.path().join("b.safetensors"));
}

#[test]
fn inputs_can_be_in_several_files_and_results_can_be_inputs() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("x.safetensors"), &[("x", &[1, 2], &[3.0, 4.0]), ("out", &[7], &[0.0; 7])]);
    write(&dir.path().join("w.safetensors"), &[("weight", &[2], &[1.0, 2.0])]);
    let args = ["run", "rms_norm_f32", "--in", "x.safetensors", "--in", "w.safetensors", "--param", "eps=0", "--out", "x.safetensors"];
    kernelry_in(dir.path(), &args).ok();
    check_result(&dir.path().join("x.safetensors"));
}

#[test]
fn tensors_can_be_bound_under_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: [(&str, &[usize], &[f32]); 3] =
        [("h", &[1, 2], &[3.0, 4.0]), ("blk.0.attn_norm.weight", &[2], &[1.0, 2.0]), ("unrelated", &[1], &[0.0])];
    write(&dir.path().join("m.safetensors"), &tensors);
    let bind = ["--bind", "x=h", "--bind", "weight=blk.0.attn_norm.weight", "--out", "b.safetensors"];
    let base = ["run", "rms_norm_f32", "--in", "m.safetensors", "--param", "eps=0"];
    kernelry_in(dir.path(), &[&base[..], &bind].concat()).ok();
    check_result(&dir.path().join("b.safetensors"));
    kernelry_in(dir.path(), &base).fails(2, "expected a binding: x, weight, out");
}

#[test]
fn json_tells_what_came_out() {
    let dir = folder();
    let report = kernelry_in(dir.path(), &[RUN, &["--json"]].concat()).ok().json();
    assert_eq!(report["params"]["dim"], "2");
    assert_eq!(report["outputs"][0]["name"], "out");
    assert_eq!(report["outputs"][0]["not_finite"], 0);
    assert!((report["outputs"][0]["max"].as_f64().unwrap() - 8.0 * 2f64.sqrt() / 5.0).abs() < 1e-6);
}

/// Each of these leaves nothing behind.
#[test]
fn wrong_arguments_are_refused() {
    let dir = folder();
    let out = ["--out", "b.safetensors"];
    let cases: &[(&[&str], i32, &str)] = &[
        (&["run", "rms_norm_f23", "--in", "a.safetensors"], 2, "did you mean `rms_norm_f32`"),
        (&["run", "rms_norm_f32", "--in", "a.safetensors"], 2, "parameters: got no value for eps"),
        (&["run", "rms_norm_f32", "--param", "eps=0"], 2, "x: no input has this tensor, f32 [rows, dim]"),
        (&["run", "rms_norm_f32", "--in", "a.safetensors", "--param", "eps"], 2, "expected NAME=VALUE"),
        (&["run", "rms_norm_f32", "--in", "a.safetensors", "--param", "eps=x"], 2, "parameter eps: got `x`"),
        (&["run", "rms_norm_f32", "--in", "a.safetensors", "--param", "eps=-1"], 2, "eps: got -1"),
        (
            &["run", "rms_norm_f32", "--in", "a.safetensors", "--param", "epsilon=0"],
            2,
            "parameter: got `epsilon`, expected one of: rows, dim, eps",
        ),
        (&[RUN, &["--param", "eps=1"]].concat(), 2, "parameter eps: given twice"),
        (&[RUN, &["--param", "dim=3"]].concat(), 2, "x: got shape [1, 2], expected [rows, dim] = [1, 3]"),
        (&[RUN, &["--param", "rows=2"]].concat(), 2, "x: got shape [1, 2], expected [rows, dim] = [2, 2]"),
        (&[RUN, &["--constant", "3=1"]].concat(), 2, "constant: got slot `3`, expected one of: none"),
        (&[RUN, &["--zero", "y"]].concat(), 2, "binding: got `y`, expected one of: x, weight, out"),
        (&[RUN, &["--bind", "x=nothing"]].concat(), 2, "no input file has a tensor `nothing`"),
        (&[RUN, &["--in", "a.safetensors"]].concat(), 2, "is in two input files"),
        (&[RUN, &["--math", "wild"]].concat(), 2, "expected precise or fast"),
        (&[RUN, &["--device", "tpu"]].concat(), 2, "unknown device `tpu`"),
        (&["run", "rms_norm_f32", "--in", "missing.safetensors"], 1, "missing.safetensors: "),
        (&["run", "placeholder"], 1, "placeholder"),
    ];
    for (args, code, text) in cases {
        kernelry_in(dir.path(), &[args, &out[..]].concat()).fails(*code, text);
        assert_eq!(files(dir.path()), ["a.safetensors"], "{args:?}");
    }
}

#[test]
fn tensors_of_another_dtype_are_refused() {
    let dir = folder();
    let x = NewTensor { name: "x", dtype: DType::F16, shape: &[1, 2], bytes: &[0; 4] };
    save(dir.path().join("h.safetensors"), &[x], &[]).unwrap();
    write(&dir.path().join("w.safetensors"), &[("weight", &[2], &[1.0, 2.0])]);
    let args = ["run", "rms_norm_f32", "--in", "h.safetensors", "--in", "w.safetensors", "--param", "eps=0"];
    kernelry_in(dir.path(), &args).fails(2, "x: got dtype f16, expected f32");
}

#[test]
fn outputs_that_cannot_be_written_leave_nothing_behind() {
    let dir = folder();
    kernelry_in(dir.path(), &[RUN, &["--out", "no/such/folder/b.safetensors"]].concat()).fails(1, "no/such/folder/b.safetensors: ");
    std::fs::create_dir(dir.path().join("d")).unwrap();
    kernelry_in(dir.path(), &[RUN, &["--out", "d"]].concat()).fails(1, "d: ");
    assert_eq!(files(dir.path()), ["a.safetensors", "d"]);
}

/// Whatever is cut off or flipped, the answer is an error and not a crash.
#[test]
fn broken_files_are_errors() {
    let dir = folder();
    let whole = std::fs::read(dir.path().join("a.safetensors")).unwrap();
    let broken = dir.path().join("broken.safetensors");
    let args = ["run", "rms_norm_f32", "--in", "broken.safetensors", "--param", "eps=0"];
    for len in [0, 1, 7, 8, 9, 20, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&broken, &whole[..len]).unwrap();
        kernelry_in(dir.path(), &args).fails(1, "broken.safetensors");
    }
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&broken, &huge).unwrap();
    kernelry_in(dir.path(), &args).fails(1, "broken.safetensors");
    kernelry_in(dir.path(), &["run", "rms_norm_f32", "--in", "."]).fails(1, "model.safetensors: ");
}
