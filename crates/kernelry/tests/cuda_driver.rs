//! A machine without a driver, or with a stub of one, gets a reason and no panic. Each case is a process of its own, since the driver
//! is looked for once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use kernelry::{Device, backend_state};

/// What opening the GPU says in a process that looks for libraries in `folder` first.
fn reason(folder: &Path) -> String {
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["--exact", "child_process_opens_the_gpu", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Run by [`reason`] alone.
#[test]
#[ignore = "a part of the other tests"]
fn child_process_opens_the_gpu() {
    match Device::open("cuda") {
        Ok(device) => println!("OPENED {}", device.info().name),
        Err(error) => println!("REASON {error}"),
    }
    println!("STATE {}", backend_state("cuda"));
    println!("BAD {}", Device::open("cuda:x").unwrap_err());
    println!("FAR {}", Device::open("cuda:77").unwrap_err());
}

fn stub(folder: &Path, source: &str) {
    let text = folder.join("stub.c");
    std::fs::write(&text, source).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(folder.join("libcuda.so")).arg(&text).status().unwrap();
    assert!(status.success());
    std::fs::copy(folder.join("libcuda.so"), folder.join("libcuda.so.1")).unwrap();
}

#[test]
fn without_a_driver_the_reason_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let text = reason(folder.path());
    if text.contains("OPENED") {
        return; // a machine with a GPU
    }
    assert!(text.contains("REASON ") && text.contains("libcuda was not found"), "{text}");
    assert!(text.contains("STATE no NVIDIA driver"), "{text}");
    assert!(text.contains("expected `cuda` or `cuda:` and a number"), "{text}");
}

#[test]
fn a_driver_that_lacks_functions_is_named() {
    let folder = tempfile::tempdir().unwrap();
    stub(folder.path(), "int cuInit(unsigned flags) { return 0; }");
    let text = reason(folder.path());
    assert!(text.contains("the NVIDIA driver lacks cuDriverGetVersion"), "{text}");
}

#[test]
fn a_stub_driver_that_refuses_to_start_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let names = include_str!("../src/backend/cuda/driver.rs").lines().filter_map(|l| l.trim().strip_prefix("\"cu")?.strip_suffix("\","));
    let mut source = String::new();
    for name in names {
        // What the stub of the toolkit answers to every call.
        source.push_str(&format!("int cu{name}() {{ return 34; }}\n"));
    }
    stub(folder.path(), &source);
    let text = reason(folder.path());
    assert!(text.contains("cuInit") && text.contains("(34)"), "{text}");
}
