//! `compile`, `cache`, `info --text`, and what `doctor` tells of compiled kernels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{Run, files, kernelry, kernelry_with};
use kernelry::backend::cuda::nvrtc::Nvrtc;

fn with_cache(dir: &Path, args: &[&str]) -> Run {
    kernelry_with(dir, args, "", &[("KERNELRY_CACHE", dir.join("cache").to_str().unwrap())])
}

/// Whether NVRTC is here; the caller's test is skipped without it, unless the environment names one.
fn has_nvrtc(test: &str) -> bool {
    match Nvrtc::find() {
        Ok(_) => true,
        Err(e) if kernelry::Config::from_env().nvrtc.is_some() => panic!("{e}"),
        Err(e) => {
            eprintln!("SKIPPED {test}: {e}");
            false
        }
    }
}

#[test]
fn a_pack_of_the_emulator_is_made_shown_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let made =
        kernelry_with(dir.path(), &["compile", "--arch", "emulator", "--out", "e.kpack", "rms_norm_f32", "--json"], "", &[]).ok().json();
    assert_eq!(made["kernels"][0]["kernel"], "rms_norm_f32");
    assert_eq!(made["modules"], 1);
    assert_eq!(files(dir.path()), ["e.kpack"]);

    let path = dir.path().join("e.kpack");
    let env = [("KERNELRY_PACK", path.to_str().unwrap()), ("KERNELRY_CACHE", "off")];
    let report = kernelry_with(dir.path(), &["doctor", "--json"], "", &env).ok().json();
    assert_eq!(report["packs"][0]["kernels"], 1);
    assert_eq!(report["packs"][0]["current"], 1);
    assert_eq!(report["packs"][0]["targets"][0]["backend"], "emulator");
    assert_eq!(report["cache"]["folder"], serde_json::Value::Null);
    let text = kernelry_with(dir.path(), &["doctor"], "", &env).ok().stdout;
    assert!(text.contains("e.kpack: 1 kernels for emulator warp32, 1 from this build's texts") && text.contains("off"), "{text}");
    // With a compiler that can only fail, what runs comes from the pack.
    let mut env = env.to_vec();
    let fake = dir.path().join("c++");
    fake_compiler(&fake);
    env.push(("CXX", fake.to_str().unwrap()));
    let check = ["check", "rms_norm_f32", "--device", "emulator"];
    kernelry_with(dir.path(), &check, "", &env[..2]).ok();
    let without = kernelry_with(dir.path(), &check, "", &env[1..]);
    assert!(without.code == Some(1) && without.stdout.contains("compiles nothing"), "{}{}", without.stdout, without.stderr);
}

/// A compiler that knows its version and nothing else.
fn fake_compiler(path: &Path) {
    std::fs::write(path, "#!/bin/sh\nif [ \"$1\" = --version ]; then echo fake 1; exit 0; fi\necho compiles nothing >&2\nexit 1\n")
        .unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_pack_for_two_generations_shows_what_kernels_take() {
    if !has_nvrtc("a_pack_for_two_generations_shows_what_kernels_take") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let args = ["compile", "--arch", "sm_80,sm_90a", "--out", "k.kpack", "rms_norm_f*"];
    let made = kernelry_with(dir.path(), &[&args[..], &["--json"]].concat(), "", &[]).ok().json();
    let kernels = made["kernels"].as_array().unwrap();
    assert!(kernels.len() >= 4 && kernels.iter().all(|k| k["resources"]["registers"].as_u64().unwrap() > 8), "{made}");
    assert!(kernels.iter().any(|k| k["arch"] == "sm_80") && kernels.iter().any(|k| k["arch"] == "sm_90a"));
    let table = kernelry_with(dir.path(), &args, "", &[]).ok().stdout;
    assert!(table.contains("registers") && table.contains("none") && table.contains("k.kpack: "), "{table}");
    kernelry_with(dir.path(), &["compile", "--arch", "sm_10", "--out", "x.kpack"], "", &[]).fails(2, "architecture: got `sm_10`");
    let report = kernelry(&["doctor", "--json"]).ok().json();
    assert_eq!(report["nvrtc"]["available"], true);
    assert!(report["nvrtc"]["archs"].as_array().unwrap().contains(&"sm_90".into()));
    assert_eq!(files(dir.path()), ["k.kpack"]);
}

#[test]
fn what_cannot_be_compiled_is_an_error_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| kernelry_with(dir.path(), &[&["compile", "--out", "x.kpack"], args].concat(), "", &[]);
    run(&["--arch", "gfx90a"]).fails(2, "architecture: got `gfx90a`");
    run(&["--arch", "emulator", "placeholder"]).fails(1, "kernel `placeholder` has no text to compile");
    run(&["--arch", "emulator", "rms_norm_f33"]).fails(2, "no kernel matches");
    run(&[]).fails(2, "--arch");
    kernelry_with(dir.path(), &["compile", "--arch", "emulator", "--out", "."], "", &[]).fails(2, "not the name of a file");
    let fake = dir.path().join("c++");
    fake_compiler(&fake);
    let args = ["compile", "--arch", "emulator", "--out", "x.kpack", "rms_norm_f32"];
    kernelry_with(dir.path(), &args, "", &[("CXX", fake.to_str().unwrap())]).fails(1, "compiles nothing");
    assert_eq!(files(dir.path()), ["c++"]);
    let nowhere = kernelry_with(dir.path(), &["compile", "--arch", "sm_90a", "--out", "x.kpack"], "", &[("KERNELRY_NVRTC", "/nowhere")]);
    nowhere.fails(1, "/nowhere");
}

#[test]
fn the_cache_is_listed_verified_and_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let empty = with_cache(dir.path(), &["cache", "list", "--json"]).ok().json();
    assert_eq!(empty["entries"], serde_json::json!([]));
    with_cache(dir.path(), &["check", "rms_norm_f32", "--device", "emulator"]).ok();
    let list = with_cache(dir.path(), &["cache", "list", "--json"]).ok().json();
    assert_eq!(list["entries"][0]["label"]["kernel"], "rms_norm_f32");
    assert_eq!(list["entries"][0]["label"]["backend"], "emulator");
    assert!(with_cache(dir.path(), &["cache", "list"]).ok().stdout.contains("1 entries"));
    assert!(with_cache(dir.path(), &["cache", "verify"]).ok().stdout.contains("0 damaged"));
    let report = with_cache(dir.path(), &["doctor", "--json"]).ok().json();
    assert_eq!((report["cache"]["entries"].as_u64(), report["cache"]["problem"].is_null()), (Some(1), true));

    let path = Path::new(list["entries"][0]["path"].as_str().unwrap());
    let mut data = std::fs::read(path).unwrap();
    *data.last_mut().unwrap() ^= 1;
    std::fs::write(path, data).unwrap();
    let damaged = with_cache(dir.path(), &["cache", "verify", "--json"]);
    assert_eq!((damaged.code, damaged.json()["damaged"].as_u64()), (Some(1), Some(1)));
    let cleared = with_cache(dir.path(), &["cache", "clear", "--json"]).ok().json();
    assert_eq!(cleared["removed"], 1);
    assert!(with_cache(dir.path(), &["cache", "list"]).ok().stdout.contains("0 entries"));
    kernelry_with(dir.path(), &["cache", "list"], "", &[("KERNELRY_CACHE", "off")]).fails(1, "there is no cache on disk");
    kernelry(&["cache"]).code.filter(|&c| c == 2).expect("a subcommand is needed");
}

#[test]
fn doctor_tells_what_is_wrong_with_packs_and_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.kpack");
    std::fs::write(&bad, "not a pack of anything, and longer than the header of one would be").unwrap();
    let bad = bad.to_str().unwrap();
    let inside = format!("{bad}/cache");
    let env = [("KERNELRY_PACK", bad), ("KERNELRY_CACHE", inside.as_str()), ("KERNELRY_NVRTC", "/nowhere")];
    let report = kernelry_with(dir.path(), &["doctor", "--json"], "", &env).ok().json();
    assert!(report["packs"][0]["problem"].as_str().unwrap().contains("not a pack of kernels"), "{report}");
    assert!(!report["cache"]["problem"].as_str().unwrap().is_empty());
    assert_eq!(report["nvrtc"]["available"], false);
    let text = kernelry_with(dir.path(), &["doctor"], "", &env).ok().stdout;
    assert!(text.contains("unusable") && text.contains("cannot be used") && text.contains("/nowhere"), "{text}");
}

#[test]
fn info_prints_the_text() {
    let text = kernelry(&["info", "rms_norm_f32", "--text"]).ok().stdout;
    assert_eq!(text, kernelry::catalogue::find("rms_norm_f32").unwrap().gpu_text().unwrap());
    assert!(text.contains("#line 1 \"norm.h\"") && text.contains("struct NormParams"));
    kernelry(&["info", "placeholder", "--text"]).fails(1, "kernel `placeholder` has no text");
    kernelry(&["info", "rms_norm_f32", "--text", "--json"]).fails(2, "cannot be used with");
}
