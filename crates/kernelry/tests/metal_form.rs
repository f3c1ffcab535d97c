//! Every kernel text in its Metal form passes clang's OpenCL C++ front end without the generic address space, against a stand-in for
//! Metal's library: syntax, types and the address space of every pointer, on any machine.
//!
//! Needs `clang++-19` (or the compiler named by `KERNELRY_CLANG`); without it the tests say that they checked nothing, unless
//! `KERNELRY_REQUIRE_TOOLS` is set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use kernelry::backend::{Target, Unit};
use kernelry::catalogue;
use kernelry::registry::{Constants, Options};

fn compiler() -> Option<String> {
    let name = std::env::var("KERNELRY_CLANG").unwrap_or_else(|_| "clang++-19".into());
    if Command::new(&name).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return Some(name);
    }
    assert!(std::env::var_os("KERNELRY_REQUIRE_TOOLS").is_none(), "{name} is required and not here");
    eprintln!("SKIPPED: {name} is not installed, the Metal form is not checked");
    None
}

/// The front end's messages about a text; empty if it has none.
fn check(compiler: &str, name: &str, text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.metal");
    let unit = Unit::new(name, text, &Constants::NONE, Options::default());
    std::fs::write(&path, Target::Metal.translation_unit(&unit)).unwrap();
    let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/prelude/metal_check");
    let output = Command::new(compiler)
        .args(["-x", "cl", "-cl-std=clc++2021", "-target", "spir64", "-fsyntax-only", "-Wno-unknown-attributes"])
        .args(["-Xclang", "-finclude-default-header", "-Xclang"])
        .arg("-cl-ext=-__opencl_c_generic_address_space,-__opencl_c_pipes,-__opencl_c_device_enqueue")
        .arg("-I")
        .arg(stand_in)
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { String::new() } else { text }
}

#[test]
fn every_text_is_sound_in_its_metal_form() {
    let Some(compiler) = compiler() else { return };
    let mut texts: BTreeMap<String, &str> = BTreeMap::new();
    for kernel in catalogue::builtin() {
        if let Some(text) = kernel.gpu_text() {
            texts.entry(text).or_insert(kernel.name());
        }
    }
    assert!(!texts.is_empty());
    let (limits, [name, ..]) = kernelry::bench::limit_kernels();
    texts.insert(limits, name);
    let mut problems = Vec::new();
    for (text, name) in &texts {
        let messages = check(&compiler, name, text);
        if !messages.is_empty() {
            problems.push(format!("{name}:\n{messages}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_pointer_without_address_space_fails() {
    let Some(compiler) = compiler() else { return };
    let text = |space: &str| {
        format!(
            "struct P {{ uint n; }};
KN_FN float first({space} const float* p) {{ return p[0]; }}
KN_KERNEL(copy, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {{ y[0] = first(x); }}"
        )
    };
    assert_eq!(check(&compiler, "sound", &text("KN_GLOBAL")), "");
    assert!(check(&compiler, "broken", &text("")).contains("no matching function"));
    assert!(check(&compiler, "broken", &text("KN_LOCAL")).contains("no matching function"));
}

#[test]
fn an_unknown_function_fails() {
    let Some(compiler) = compiler() else { return };
    let text = "struct P { uint n; };
KN_KERNEL(fill, 64, P, KN_OUT(0, float, y)) { y[0] = metal::no_such_function(1.0f); }";
    assert!(check(&compiler, "broken", text).contains("no_such_function"));
}
