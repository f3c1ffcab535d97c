//! The cache on disk: what is kept, when it is used, and that nothing that can be wrong with it is an error.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use kernelry::registry::{Constants, DiskCache, Math, Options, Origin, Pipeline};
use kernelry::{Config, Device, Registry};
use proptest::prelude::*;
use support::{CountingBackend, counting, counting_as, text_of};

const NOW: Duration = Duration::ZERO;

fn registry(dir: &Path) -> Registry {
    let mut config = Config::default();
    config.cache_dir = Some(dir.to_owned());
    Registry::with_config(&config)
}

/// What a fresh process would see: a registry and a device of their own.
fn fresh(dir: &Path, text: &str) -> (std::sync::Arc<CountingBackend>, Device, Pipeline) {
    let (backend, device) = counting(NOW);
    let registry = registry(dir);
    registry.register_source("user", text).unwrap();
    let pipeline = registry.get_pipeline("user", &device).unwrap();
    assert_eq!(text_of(&pipeline), text);
    (backend, device, pipeline)
}

fn compiles(backend: &CountingBackend) -> usize {
    backend.compiles.load(Ordering::SeqCst)
}

fn only_file(dir: &Path) -> PathBuf {
    let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn the_second_process_compiles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _, made) = fresh(dir.path(), "text");
    assert_eq!((compiles(&first), made.identity().origin), (1, Origin::RuntimeSource));
    let (second, _, found) = fresh(dir.path(), "text");
    assert_eq!((compiles(&second), found.identity().origin), (0, Origin::DiskCache));
    assert_eq!(found.identity().fallback, None);
    assert_eq!(made.identity().content_hash, found.identity().content_hash);
}

#[test]
fn the_key_is_text_constants_options_and_toolchain_and_no_name() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), "text");
    let origin = |device: &Device, name: &str, text: &str, ints: &[(u32, i32)]| {
        let registry = registry(dir.path());
        registry.register_source(name, text).unwrap();
        registry.get_pipeline_with_constants(name, device, &[], ints).unwrap().identity().origin
    };
    let (_, same) = counting(NOW);
    let (_, other_compiler) = counting_as("counting", "counting 2", NOW);
    assert_eq!(origin(&same, "another name", "text", &[]), Origin::DiskCache);
    assert_eq!(origin(&same, "user", "text ", &[]), Origin::RuntimeSource);
    assert_eq!(origin(&same, "user", "text", &[(0, 1)]), Origin::RuntimeSource);
    assert_eq!(origin(&same, "user", "text", &[(0, 2)]), Origin::RuntimeSource);
    assert_eq!(origin(&same, "user", "text", &[(0, 1)]), Origin::DiskCache);
    assert_eq!(origin(&other_compiler, "user", "text", &[]), Origin::RuntimeSource);
    // This compiler makes the same in every math mode, and says so.
    let registry = registry(dir.path());
    registry.register_source("user", "text").unwrap();
    let fast = registry.get_with("user", &same, &Constants::NONE, Options::with_math(Math::Fast)).unwrap();
    assert_eq!((fast.identity().origin, fast.identity().options.math), (Origin::DiskCache, Math::Fast));
}

#[test]
fn off_means_off() {
    let (backend, device) = counting(NOW);
    for _ in 0..2 {
        let registry = Registry::with_config(&Config::default());
        assert!(registry.disk_cache().is_none());
        registry.register_source("user", "text").unwrap();
        assert_eq!(registry.get_pipeline("user", &device).unwrap().identity().origin, Origin::RuntimeSource);
    }
    assert_eq!(compiles(&backend), 2);
}

/// Damages the one entry, and expects a compilation that says why and leaves a good entry.
fn recompiles(what: &str, damage: impl FnOnce(&Path, Vec<u8>)) {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), "text");
    let path = only_file(dir.path());
    damage(&path, std::fs::read(&path).unwrap());
    let listed = DiskCache::new(dir.path()).entries(true).unwrap();
    assert!(listed[0].problem.is_some(), "{what}: {listed:?}");
    let (backend, _, pipeline) = fresh(dir.path(), "text");
    assert_eq!((compiles(&backend), pipeline.identity().origin), (1, Origin::RuntimeSource), "{what}");
    let reason = pipeline.identity().fallback.clone().unwrap_or_default();
    assert!(reason.starts_with("disk cache: entry "), "{what}: {reason}");
    let (backend, _, pipeline) = fresh(dir.path(), "text");
    assert_eq!((compiles(&backend), pipeline.identity().origin), (0, Origin::DiskCache), "{what}: it was not overwritten");
}

#[test]
fn any_defect_is_compiled_again_and_overwritten() {
    recompiles("empty", |path, _| std::fs::write(path, "").unwrap());
    recompiles("foreign", |path, _| {
        std::fs::write(path, "a file of another program, long enough to have a header of ours in it: ".repeat(4)).unwrap()
    });
    recompiles("longer", |path, data| std::fs::write(path, [data, vec![0]].concat()).unwrap());
    recompiles("version", |path, mut data| {
        data[8] += 1;
        std::fs::write(path, data).unwrap();
    });
    recompiles("lengths that overflow", |path, mut data| {
        data[12..24].fill(0xff);
        std::fs::write(path, data).unwrap();
    });
}

#[test]
fn every_truncation_and_every_flipped_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), "text");
    let path = only_file(dir.path());
    let good = std::fs::read(&path).unwrap();
    let cache = DiskCache::new(dir.path());
    let problem = || cache.entries(true).unwrap()[0].problem.clone();
    assert_eq!(problem(), None);
    for at in 0..good.len() {
        std::fs::write(&path, &good[..at]).unwrap();
        assert!(problem().is_some(), "cut at {at}");
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(&path, flipped).unwrap();
        assert!(problem().is_some(), "byte {at}");
    }
    std::fs::write(&path, &good).unwrap();
    assert_eq!(problem(), None);
}

#[test]
fn an_entry_under_another_key_is_not_used() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fresh(one.path(), "one");
    fresh(two.path(), "two");
    std::fs::copy(only_file(two.path()), only_file(one.path())).unwrap();
    let (backend, _, pipeline) = fresh(one.path(), "one");
    assert_eq!(compiles(&backend), 1);
    assert!(pipeline.identity().fallback.as_ref().unwrap().contains("another key"));
}

#[test]
fn what_the_loader_refuses_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), "text");
    let (backend, device) = counting(NOW);
    backend.refusals.store(1, Ordering::SeqCst);
    let registry = registry(dir.path());
    registry.register_source("user", "text").unwrap();
    let pipeline = registry.get_pipeline("user", &device).unwrap();
    assert_eq!((compiles(&backend), pipeline.identity().origin), (1, Origin::RuntimeSource));
    assert_eq!(pipeline.identity().fallback.as_deref(), Some("disk cache: entry cannot be loaded: refused"));
}

#[test]
fn failures_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (_, device) = counting(NOW);
    let registry = registry(dir.path());
    registry.register_source("user", "#error").unwrap();
    assert!(registry.get_pipeline("user", &device).is_err());
    assert!(registry.disk_cache().unwrap().entries(true).unwrap().is_empty());
}

#[test]
fn a_folder_that_cannot_be_made_or_written_costs_time_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut places = vec![file.join("cache"), file.clone()];
    if cfg!(target_os = "linux") {
        // Not even root can write there.
        places.push("/proc/kernelry".into());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let read_only = dir.path().join("read-only");
        std::fs::create_dir(&read_only).unwrap();
        std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o555)).unwrap();
        // Root can write there all the same.
        if std::fs::write(read_only.join("probe"), "").is_err() {
            places.push(read_only);
        }
    }
    for place in places {
        let (backend, _, pipeline) = fresh(&place, "text");
        assert_eq!(compiles(&backend), 1);
        let reason = pipeline.identity().fallback.clone().unwrap_or_default();
        assert!(reason.contains("disk cache: not written: ") && !reason.contains('\n'), "{}: {reason}", place.display());
        assert!(DiskCache::new(&place).write_problem().is_some());
    }
}

#[test]
fn clear_removes_what_is_ours_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), "one");
    fresh(dir.path(), "two");
    let entry = DiskCache::new(dir.path()).entries(false).unwrap().remove(0);
    assert_eq!(entry.label.unwrap().kernel, "user");
    let name = entry.path.file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::write(dir.path().join(format!(".{name}.77-3.tmp")), "left by a killed process").unwrap();
    for foreign in ["notes.txt", "short.kcache", ".hidden.tmp"] {
        std::fs::write(dir.path().join(foreign), "").unwrap();
    }
    let cache = DiskCache::new(dir.path());
    assert_eq!(cache.clear().unwrap().0, 3);
    assert!(cache.entries(true).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    assert_eq!(DiskCache::new(dir.path().join("absent")).clear().unwrap(), (0, 0));
}

const TEXTS: usize = 24;

/// Runs this test binary as a worker process on a cache folder.
fn worker(dir: &Path, shell: Option<&str>) -> Command {
    let me = std::env::current_exe().unwrap();
    let args = ["worker_process", "--exact", "--nocapture", "--ignored"];
    let mut command = match shell {
        Some(script) => {
            let mut bash = Command::new("bash");
            bash.args(["-c", &format!("{script}; exec \"$0\" \"$@\""), me.to_str().unwrap()]);
            bash
        }
        None => Command::new(me),
    };
    command.args(args).env("DISK_CACHE_TEST_FOLDER", dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Compilations that a worker did, from its output.
fn compiled(out: &std::process::Output) -> usize {
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    text.split("compiled ")
        .nth(1)
        .and_then(|t| t.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{text}"))
}

/// The body of the worker processes; on its own it does nothing.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn worker_process() {
    let Some(dir) = std::env::var_os("DISK_CACHE_TEST_FOLDER") else { return };
    let (backend, device) = counting(Duration::from_millis(2));
    for _ in 0..4 {
        // Each round as a process that starts: nothing in memory.
        let registry = registry(Path::new(&dir));
        for i in 0..TEXTS {
            let text = format!("text {i} {}", "x".repeat(5000));
            registry.register_source("user", text.as_str()).unwrap();
            assert_eq!(text_of(&registry.get_pipeline("user", &device).unwrap()), text);
        }
    }
    println!("compiled {}", compiles(&backend));
}

#[test]
fn eight_processes_at_once_while_entries_are_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut workers: Vec<_> = (0..8).map(|_| worker(dir.path(), None).spawn().unwrap()).collect();
    let mut random = fastrand::Rng::with_seed(8);
    while workers.iter_mut().any(|w| w.try_wait().unwrap().is_none()) {
        let files: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "kcache"))
            .collect();
        if let Some(path) = random.choice(&files) {
            let path = path.to_owned();
            let _ = match random.u8(..3) {
                0 => std::fs::write(&path, "short"),
                1 => std::fs::remove_file(&path),
                _ => std::fs::read(&path).and_then(|mut data| {
                    if let Some(byte) = data.last_mut() {
                        *byte ^= 1;
                    }
                    std::fs::write(&path, data)
                }),
            };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for worker in workers {
        let count = compiled(&worker.wait_with_output().unwrap());
        assert!(count <= 4 * TEXTS);
    }
    // One more mends what was damaged last; the next has nothing to do, and no temporary file is left.
    worker(dir.path(), None).output().unwrap();
    assert_eq!(compiled(&worker(dir.path(), None).output().unwrap()), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), TEXTS);
    let entries = DiskCache::new(dir.path()).entries(true).unwrap();
    assert_eq!(entries.iter().filter(|e| e.problem.is_none()).count(), TEXTS);
}

#[test]
fn eight_processes_at_once_share_what_they_make() {
    let dir = tempfile::tempdir().unwrap();
    let workers: Vec<_> = (0..8).map(|_| worker(dir.path(), None).spawn().unwrap()).collect();
    let counts: Vec<usize> = workers.into_iter().map(|w| compiled(&w.wait_with_output().unwrap())).collect();
    // Each text at most once a process: later rounds find it.
    assert!(counts.iter().all(|&n| n <= TEXTS), "{counts:?}");
    assert!(counts.iter().sum::<usize>() >= TEXTS);
    assert_eq!(compiled(&worker(dir.path(), None).output().unwrap()), 0);
}

/// Files may have 1024 bytes only, which stands for a disk that is full: writing fails half way.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_time_only() {
    let dir = tempfile::tempdir().unwrap();
    let out = worker(dir.path(), Some("trap '' XFSZ; ulimit -f 1")).output().unwrap();
    assert_eq!(compiled(&out), 4 * TEXTS);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "half-written files are left");
}

#[cfg(unix)]
#[test]
fn nobody_else_can_write_to_the_folder() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("a/b");
    fresh(&cache, "text");
    assert_eq!(std::fs::metadata(cache).unwrap().permissions().mode() & 0o777, 0o700);
}

/// A compiled text of the emulator is a shared object: the real thing, from the disk.
#[test]
fn the_emulator_takes_its_kernels_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let emulator = Device::emulator(kernelry::backend::emulator::EmulatorOptions::default()).expect("a C++ compiler");
    let origin = || {
        let registry = registry(dir.path());
        let ctx = kernelry::Context::new(emulator.clone(), registry.clone());
        let (x, w) = (ctx.upload(&[3.0f32, 4.0], &[1, 2]).unwrap(), ctx.upload(&[1.0f32, 2.0], &[2]).unwrap());
        let out = ctx.zeros(kernelry::DType::F32, &[1, 2]).unwrap();
        let mut encoder = ctx.encoder();
        kernelry::ops::norm::RmsNorm { x: &x, weight: &w, out: &out, eps: 0.0 }.encode(&mut encoder).unwrap();
        encoder.run().unwrap();
        let y = out.to_vec::<f32>().unwrap();
        assert!((y[0] - 0.848_528).abs() < 1e-5 && (y[1] - 2.262_742).abs() < 1e-5, "{y:?}");
        registry.identity("rms_norm_f32")[0].origin
    };
    assert_eq!(origin(), Origin::RuntimeSource);
    assert_eq!(origin(), Origin::DiskCache);
    let path = only_file(dir.path());
    let mut data = std::fs::read(&path).unwrap();
    let middle = data.len() / 2;
    data[middle] ^= 4;
    std::fs::write(&path, data).unwrap();
    assert_eq!(origin(), Origin::RuntimeSource);
    assert_eq!(origin(), Origin::DiskCache);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_an_entry_with_a_problem(data in prop::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{}.kcache", "ab".repeat(32))), data).unwrap();
        let cache = DiskCache::new(dir.path());
        prop_assert!(cache.entries(true).unwrap()[0].problem.is_some());
        prop_assert!(cache.entries(false).unwrap()[0].problem.is_some());
    }
}
