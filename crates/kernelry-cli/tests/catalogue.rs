//! `list`, `info`, `doctor`, `completions` and what all commands share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{kernelry, kernelry_with};
use kernelry::{BACKENDS, catalogue};

#[test]
fn list_json_has_every_kernel_with_every_backend() {
    let list = kernelry(&["list", "--json"]).ok().json();
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), catalogue::builtin().len());
    assert_eq!(list.iter().filter(|k| k["extra"] == false).count(), 348);
    for kernel in list {
        assert!(kernel["name"].is_string() && kernel["family"].is_string() && kernel["summary"].is_string(), "{kernel}");
        for backend in BACKENDS {
            let state = &kernel["backends"][backend];
            let supported = state["supported"].as_bool().unwrap();
            let reason = state["reason"].as_str().unwrap();
            assert_eq!(supported, reason.is_empty(), "{kernel}");
        }
    }
    let norm = list.iter().find(|k| k["name"] == "rms_norm_f32").unwrap();
    assert_eq!(norm["family"], "norm");
    assert_eq!(norm["backends"]["cpu"]["supported"], true);
}

#[test]
fn list_filters() {
    let norms = kernelry(&["list", "--family", "norm", "--json"]).ok().json();
    assert!(norms.as_array().unwrap().iter().all(|k| k["family"] == "norm"));
    let has = kernelry(&["list", "--available", "--json"]).ok().json().as_array().unwrap().len();
    let lacks = kernelry(&["list", "--missing", "--json"]).ok().json().as_array().unwrap().len();
    assert!(has > 0 && lacks > 0);
    assert_eq!(has + lacks, catalogue::builtin().len());
}

#[test]
fn list_text_counts_and_names() {
    let run = kernelry(&["list"]).ok();
    assert!(run.stdout.contains("rms_norm_f32"));
    assert!(run.stdout.contains(&format!("{} kernels", catalogue::builtin().len())), "{}", run.stdout);
    assert!(!run.stdout.contains('\x1b'), "colours without a terminal");
}

#[test]
fn wrong_families_devices_and_flags_are_usage_errors() {
    kernelry(&["list", "--family", "norms"]).fails(2, "unknown family `norms`, expected one of: quantized, affine");
    kernelry(&["list", "--device", "tpu"]).fails(2, "unknown device `tpu`, expected one of: cpu, cuda");
    kernelry(&["list", "--available", "--missing"]).fails(2, "cannot be used with");
    kernelry(&["list", "--colour"]).fails(2, "--colour");
    kernelry(&["frobnicate"]).fails(2, "frobnicate");
    kernelry(&["--threads", "0", "list"]).fails(2, "--threads");
    assert_eq!(kernelry(&[]).code, Some(2));
}

#[test]
fn info_json_is_the_catalogue_entry() {
    let info = kernelry(&["info", "rms_norm_f32", "--json"]).ok().json();
    assert_eq!(info["bindings"][0]["name"], "x");
    assert_eq!(info["bindings"][0]["dtype"], "f32");
    assert_eq!(info["bindings"][0]["shape"], serde_json::json!(["rows", "dim"]));
    assert_eq!(info["bindings"][2]["access"], "write");
    assert_eq!(info["bindings"][2]["aliases"], serde_json::json!(["x"]));
    assert_eq!(info["params"]["fields"][2]["name"], "eps");
    assert_eq!(info["params"]["fields"][2]["type"], "float");
    assert!(info["params"]["c_declaration"].as_str().unwrap().contains("uint rows;"));
    assert!(info["examples"][0]["bytes"].as_f64().unwrap() > 0.0);
    assert_eq!(info["backends"]["cpu"]["supported"], true);
}

#[test]
fn info_works_for_every_kernel() {
    // In one process each kernel would be fast; here a few that stand for the kinds of entries.
    for name in ["rms_norm_f32", "placeholder", "kernel_mul_mv_q4_0_f32"] {
        let text = kernelry(&["info", name]).ok().stdout;
        assert!(text.starts_with(name), "{text}");
        assert!(text.contains("Bindings") && text.contains("Backends"), "{text}");
    }
}

#[test]
fn info_suggests_names() {
    kernelry(&["info", "rms_norm_f33"]).fails(2, "did you mean `rms_norm_f32`");
    kernelry(&["info"]).fails(2, "NAME");
}

#[test]
fn doctor_tells_versions_threads_and_backends() {
    let report = kernelry(&["--threads", "1", "doctor", "--json"]).ok().json();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["threads"], 1);
    assert_eq!(report["backends"]["cpu"]["available"], true);
    for backend in BACKENDS {
        assert!(!report["backends"][backend]["state"].as_str().unwrap().is_empty());
    }
    let set = kernelry_with(&std::env::temp_dir(), &["doctor", "--json"], "", &[("KERNELRY_THREADS", "1")]).ok().json();
    assert_eq!(set["threads"], 1);
    assert_eq!(set["settings"]["KERNELRY_THREADS"], "1");
    assert!(kernelry(&["doctor"]).ok().stdout.contains("Backends"));
}

#[test]
fn the_device_can_come_from_the_environment() {
    let run = kernelry_with(&std::env::temp_dir(), &["list"], "", &[("KERNELRY_DEVICE", "tpu")]);
    run.fails(2, "unknown device `tpu`");
}

#[test]
fn colours_only_where_they_are_wanted() {
    assert!(kernelry(&["--color", "always", "list"]).ok().stdout.contains("\x1b[1m"));
    assert!(!kernelry(&["--color", "never", "list"]).ok().stdout.contains('\x1b'));
}

#[test]
fn completions_for_each_shell() {
    for (shell, text) in [("bash", "_kernelry()"), ("zsh", "#compdef kernelry"), ("fish", "complete -c kernelry")] {
        assert!(kernelry(&["completions", shell]).ok().stdout.contains(text));
    }
    kernelry(&["completions", "dosh"]).fails(2, "dosh");
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let command = format!("{} list --json | head -n 1", env!("CARGO_BIN_EXE_kernelry"));
    let out = std::process::Command::new("bash").args(["-c", &format!("set -o pipefail; {command}")]).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "[");
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_kernelry")).arg("list").stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("error: standard output: "));
}
