//! A machine without a driver, or with a stub of one, gets a reason and no panic. Each case is a process of its own, since the driver
//! is looked for once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use kernelry::{Context, Device, Registry, backend_state};

/// What opening the GPU says in a process that looks for libraries in `folder` first.
fn reason(folder: &Path) -> String {
    child(folder, "child_process_opens_the_gpu", &[])
}

/// Runs the ignored test of that name in a process that finds the driver in `folder`.
fn child(folder: &Path, test: &str, env: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("LD_LIBRARY_PATH", folder).envs(env.iter().copied());
    let output = command.output().unwrap();
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

/// Run by the test below alone.
#[test]
#[ignore = "a part of another test"]
fn child_process_times_graphs() {
    let ctx = Context::new(Device::open("cuda").unwrap(), Registry::new());
    println!("DRIVER {}", ctx.device().info().driver.as_deref().unwrap());
    let [src, dst] = [1.0f32, 0.0].map(|v| ctx.upload(&[v; 16], &[16]).unwrap());
    for copies in [1, 3] {
        let mut encoder = ctx.encoder();
        for _ in 0..copies {
            encoder.copy(&src, &dst).unwrap();
        }
        match encoder.finish().unwrap().run_timed(2) {
            Ok(times) => println!("TIMES {:?}", times.unwrap()),
            Err(error) => println!("ERROR {error}"),
        }
    }
}

/// On a driver by whose clock a copy takes 100 us: the run to start with is in no time.
#[test]
fn graphs_are_timed_by_the_clock_of_the_device() {
    let folder = tempfile::tempdir().unwrap();
    stub(folder.path(), include_str!("support/cuda_stub.c"));
    let text = child(folder.path(), "child_process_times_graphs", &[]);
    assert!(text.contains("CUDA 12.8\n"), "{text}");
    assert!(text.contains("TIMES [100µs, 100µs]\nTIMES [300µs, 300µs]\n"), "{text}");
    let text = child(folder.path(), "child_process_times_graphs", &[("STUB_FAILS", "1")]);
    assert!(text.contains("ERROR ") && text.contains("cuEventElapsedTime: CUDA_ERROR_OF_THE_STUB (719)"), "{text}");
}
