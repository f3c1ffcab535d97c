//! Packs: made, checked, loaded, and refused with a reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kernelry::backend::{DeviceCompiler, OfflineCompiler, offline_compiler};
use kernelry::catalogue::{self, Kernel};
use kernelry::registry::{Constants, Math, Options, Origin, Pack, PackBuilder, PackReport};
use kernelry::{Config, Device, Error, Registry, Result};
use support::{CountingBackend, counting_as, text_of};

const NOW: Duration = Duration::ZERO;

fn registry() -> Registry {
    Registry::with_config(&Config::default())
}

fn compiler(backend: &str, toolchain: &str) -> (Arc<CountingBackend>, Box<dyn OfflineCompiler>) {
    let (counting, device) = counting_as(backend, toolchain, NOW);
    (counting, Box::new(DeviceCompiler::new(device, "prelude".into()).unwrap()))
}

fn kernels(names: &[&str]) -> Vec<&'static Kernel> {
    names.iter().map(|n| catalogue::find(n).unwrap()).collect()
}

fn build(path: &Path, compilers: &[Box<dyn OfflineCompiler>], names: &[&str]) -> Result<PackReport> {
    PackBuilder { compilers, kernels: &kernels(names), progress: &|_, _| {}, stop: &|| false }.write(path)
}

/// A pack of two norms for a counting device of compiler 1.
fn pack_of_norms(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("norms.kpack");
    build(&path, &[compiler("counting", "counting 1").1], &["rms_norm_f32", "rms_norm_f16"]).unwrap();
    path
}

#[test]
fn a_kernel_comes_from_the_pack() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.kpack");
    let progress = AtomicUsize::new(0);
    let compilers = [compiler("counting", "counting 1").1];
    let report = PackBuilder {
        compilers: &compilers,
        kernels: &kernels(&["rms_norm_f32", "rms_norm_f16", "placeholder"]),
        progress: &|all, name| {
            assert!(all == 1 && name.starts_with("rms_norm"));
            progress.fetch_add(1, Ordering::SeqCst);
        },
        stop: &|| false,
    }
    .write(&path)
    .unwrap();
    // Both norms have one text, which is one artefact.
    assert_eq!((report.modules, report.kernels.len(), progress.into_inner()), (1, 2, 1));
    assert_eq!(report.without_text, ["placeholder"]);
    assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the pack is left");

    for embedded in [false, true] {
        let (backend, device) = counting_as("counting", "counting 1", NOW);
        let registry = registry();
        if embedded {
            registry.add_pack_bytes("embedded", std::fs::read(&path).unwrap()).unwrap();
        } else {
            registry.add_pack(&path).unwrap();
        }
        for name in ["rms_norm_f32", "rms_norm_f16"] {
            let pipeline = registry.get_pipeline(name, &device).unwrap();
            assert_eq!((pipeline.identity().origin, pipeline.identity().fallback.as_ref()), (Origin::Precompiled, None));
            assert_eq!(text_of(&pipeline), catalogue::find(name).unwrap().gpu_text().unwrap());
        }
        // Texts of this device compute the same in every mode.
        let fast = registry.get_with("rms_norm_f32", &device, &Constants::NONE, Options::with_math(Math::Fast)).unwrap();
        assert_eq!(fast.identity().origin, Origin::Precompiled);
        assert_eq!((backend.compiles.load(Ordering::SeqCst), backend.loads.load(Ordering::SeqCst)), (0, 1), "one artefact, loaded once");
    }
}

#[test]
fn the_pack_comes_before_the_disk_and_the_disk_before_the_compiler() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.cache_dir = Some(dir.path().join("cache"));
    let (_, device) = counting_as("counting", "counting 1", NOW);
    let origin = |config: &Config| Registry::with_config(config).get_pipeline("rms_norm_f32", &device).unwrap().identity().origin;
    assert_eq!(origin(&config), Origin::RuntimeSource);
    assert_eq!(origin(&config), Origin::DiskCache);
    config.packs = vec![pack_of_norms(dir.path())];
    assert_eq!(origin(&config), Origin::Precompiled);
}

/// The reason why a pipeline did not come from the packs of this registry.
fn reason(registry: &Registry, device: &Device, name: &str) -> Option<String> {
    let pipeline = registry.get_pipeline(name, device).unwrap();
    assert_eq!(pipeline.identity().origin, Origin::RuntimeSource);
    assert_eq!(text_of(&pipeline), catalogue::find(name).unwrap().gpu_text().unwrap());
    pipeline.identity().fallback.clone()
}

#[test]
fn a_pack_that_does_not_fit_is_skipped_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = pack_of_norms(dir.path());
    let registry = registry();
    registry.add_pack(&path).unwrap();
    let skipped = |device: &Device, name: &str| reason(&registry, device, name).unwrap_or_default();
    let (_, device) = counting_as("counting", "counting 1", NOW);
    let (_, other) = counting_as("counting", "counting 2", NOW);
    assert!(skipped(&device, "layer_norm_f32").ends_with("norms.kpack: has no `layer_norm_f32`"));
    assert!(skipped(&other, "rms_norm_f32").ends_with("norms.kpack: made by `counting 1`, expected `counting 2`"));
    // For another backend altogether there is nothing to say.
    let (_, elsewhere) = counting_as("elsewhere", "counting 1", NOW);
    assert_eq!(reason(&registry, &elsewhere, "rms_norm_f32"), None);
}

#[test]
fn a_pack_of_another_text_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = pack_of_norms(dir.path());
    // The manifest says that the kernel was made from another text; its checksum is right again.
    let source = blake3::hash(catalogue::find("rms_norm_f32").unwrap().gpu_text().unwrap().as_bytes()).to_hex();
    let data = rewrite_manifest(&std::fs::read(&path).unwrap(), |json| json.replace(source.as_str(), &"ab".repeat(32)));
    let registry = registry();
    registry.add_pack_bytes("stale", data).unwrap();
    let (_, device) = counting_as("counting", "counting 1", NOW);
    assert_eq!(reason(&registry, &device, "rms_norm_f32").as_deref(), Some("pack stale: made from another text"));
    let data = rewrite_manifest(&std::fs::read(&path).unwrap(), |json| json.replace("\"math\":\"precise\"", "\"math\":\"fast\""));
    registry.clear();
    registry.add_pack_bytes("fast", data).unwrap();
    let why = reason(&registry, &device, "rms_norm_f32");
    assert_eq!(why.as_deref(), Some("pack stale: made from another text; pack fast: made with other options"));
}

fn rewrite_manifest(pack: &[u8], change: impl Fn(String) -> String) -> Vec<u8> {
    let len = u64::from_le_bytes(pack[16..24].try_into().unwrap()) as usize;
    let manifest = String::from_utf8(pack[56..56 + len].to_vec()).unwrap();
    let changed = change(manifest.clone());
    assert_ne!(manifest, changed);
    let mut out = pack[..16].to_vec();
    out.extend((changed.len() as u64).to_le_bytes());
    out.extend(blake3::hash(changed.as_bytes()).as_bytes());
    out.extend(changed.as_bytes());
    out.extend(&pack[56 + len..]);
    out
}

#[test]
fn a_text_registered_at_run_time_is_never_shadowed() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry();
    registry.add_pack(&pack_of_norms(dir.path())).unwrap();
    let (_, device) = counting_as("counting", "counting 1", NOW);
    assert_eq!(registry.get_pipeline("rms_norm_f32", &device).unwrap().identity().origin, Origin::Precompiled);
    registry.register_source("rms_norm_f32", "mine").unwrap();
    let mine = registry.get_pipeline("rms_norm_f32", &device).unwrap();
    assert_eq!((mine.identity().origin, text_of(&mine)), (Origin::RuntimeSource, "mine"));
    registry.unregister("rms_norm_f32").unwrap();
    assert_eq!(registry.get_pipeline("rms_norm_f32", &device).unwrap().identity().origin, Origin::Precompiled);
}

#[test]
fn specialisations_that_the_pack_lacks_are_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry();
    let tested = catalogue::builtin().iter().find(|k| k.gpu_text().is_some() && !k.constants().is_empty());
    let Some(kernel) = tested else { return eprintln!("SKIPPED: no text with constants") };
    let path = dir.path().join("a.kpack");
    build(&path, &[compiler("counting", "counting 1").1], &[kernel.name()]).unwrap();
    registry.add_pack(&path).unwrap();
    let (_, device) = counting_as("counting", "counting 1", NOW);
    let value = match kernel.constants()[0].ty {
        kernelry::registry::ConstantType::Bool => kernelry::registry::ConstantValue::Bool(true),
        _ => kernelry::registry::ConstantValue::I32(4),
    };
    let constants = Constants::new(kernel.name(), [(kernel.constants()[0].slot, value)]).unwrap();
    let special = registry.get_with(kernel.name(), &device, &constants, Options::default()).unwrap();
    assert_eq!(special.identity().origin, Origin::RuntimeSource);
    assert!(special.identity().fallback.as_ref().unwrap().contains("has no `"));
}

#[test]
fn what_the_loader_refuses_falls_back() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry();
    registry.add_pack(&pack_of_norms(dir.path())).unwrap();
    let (backend, device) = counting_as("counting", "counting 1", NOW);
    backend.refusals.store(1, Ordering::SeqCst);
    assert!(reason(&registry, &device, "rms_norm_f32").unwrap().ends_with("norms.kpack: refused"));
}

#[test]
fn a_pack_with_missing_functions_is_an_error_and_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = pack_of_norms(dir.path());
    let good = std::fs::read(&path).unwrap();
    let (backend, lossy) = compiler("counting", "counting 1");
    backend.lost.lock().unwrap().push("rms_norm_f16".into());
    let error = build(&path, &[lossy], &["rms_norm_f32", "rms_norm_f16"]).unwrap_err();
    assert!(matches!(&error, Error::Format { problem, .. } if problem.contains("the artefact has no rms_norm_f16")), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), good, "the pack that was there is kept");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_empty_or_partial_pack_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.kpack");
    let one = || [compiler("counting", "counting 1").1];
    let nothing = build(&path, &one(), &["placeholder"]).unwrap_err();
    assert!(nothing.to_string().contains("none of the 1 kernels has a text"), "{nothing}");
    assert!(matches!(build(&path, &one(), &[]), Err(Error::InvalidArgument { .. })));
    assert!(matches!(build(&path, &[], &["rms_norm_f32"]), Err(Error::InvalidArgument { .. })));
    let stopped =
        PackBuilder { compilers: &one(), kernels: &kernels(&["rms_norm_f32"]), progress: &|_, _| {}, stop: &|| true }.write(&path);
    assert!(stopped.unwrap_err().to_string().contains("stopped"));
    assert!(!path.exists());
    let nowhere = build(&dir.path().join("absent/a.kpack"), &one(), &["rms_norm_f32"]);
    assert!(matches!(nowhere, Err(Error::Io { .. })));
}

#[test]
fn files_that_are_no_packs_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.kpack");
    assert!(matches!(Pack::open(&path), Err(Error::Io { .. })));
    std::fs::write(&path, "not a pack").unwrap();
    let error = Pack::open(&path).unwrap_err().to_string();
    assert!(error.contains("bad.kpack"), "{error}");
    // Named by the environment it is not an error of the registry, but the reason of every kernel.
    let mut config = Config::default();
    config.packs = vec![path];
    let registry = Registry::with_config(&config);
    assert!(registry.packs()[0].pack.is_err());
    let (_, device) = counting_as("counting", "counting 1", NOW);
    assert!(reason(&registry, &device, "rms_norm_f32").unwrap().contains("bad.kpack"));
}

#[test]
fn every_truncation_and_every_flipped_byte_falls_back_or_fails_to_open() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(pack_of_norms(dir.path())).unwrap();
    let (_, device) = counting_as("counting", "counting 1", NOW);
    let check = |data: Vec<u8>| {
        let registry = registry();
        // What cannot be opened cannot be used; what is used must be right.
        if registry.add_pack_bytes("damaged", data).is_ok() {
            let why = reason(&registry, &device, "rms_norm_f32").unwrap();
            assert!(why.contains("does not match its checksum"), "{why}");
        }
    };
    let mut random = fastrand::Rng::with_seed(3);
    let head = 56 + u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize;
    let samples: Vec<usize> = (0..head).chain((0..100).map(|_| random.usize(head..good.len()))).collect();
    for at in samples {
        // Four bytes after the version mean nothing yet.
        if !(12..16).contains(&at) {
            let mut flipped = good.clone();
            flipped[at] ^= 1 << (at % 8);
            check(flipped);
        }
        assert!(Pack::from_bytes("cut", good[..at].to_vec()).is_err(), "cut at {at}");
    }
}

#[test]
fn unknown_architectures_are_refused() {
    for arch in ["gfx90a", "", "sm90"] {
        let error = offline_compiler(arch).err().unwrap().to_string();
        assert!(error.contains(&format!("got `{arch}`")), "{error}");
    }
}

/// The whole way with a real compiler: text, shared object, pack, kernel that runs.
#[test]
fn a_pack_of_the_emulator_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("emulator.kpack");
    let report = build(&path, &[offline_compiler("emulator").unwrap()], &["rms_norm_f32"]).unwrap();
    assert_eq!(report.kernels[0].arch, "warp32");
    let registry = registry();
    registry.add_pack(&path).unwrap();
    let ctx = kernelry::Context::new(Device::open("emulator").unwrap(), registry.clone());
    let (x, w) = (ctx.upload(&[3.0f32, 4.0], &[1, 2]).unwrap(), ctx.upload(&[1.0f32, 2.0], &[2]).unwrap());
    let out = ctx.zeros(kernelry::DType::F32, &[1, 2]).unwrap();
    let mut encoder = ctx.encoder();
    kernelry::ops::norm::RmsNorm { x: &x, weight: &w, out: &out, eps: 0.0 }.encode(&mut encoder).unwrap();
    encoder.run().unwrap();
    let y = out.to_vec::<f32>().unwrap();
    assert!((y[0] - 0.848_528).abs() < 1e-5 && (y[1] - 2.262_742).abs() < 1e-5, "{y:?}");
    let identity = registry.identity("rms_norm_f32").remove(0);
    assert_eq!((identity.origin, identity.fallback), (Origin::Precompiled, None));
}
