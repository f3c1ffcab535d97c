//! The registry's contract.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kernelry::backend::Capability;
use kernelry::catalogue;
use kernelry::registry::{ConstantType, ConstantValue, Constants, Math, Options, Origin, SourceSlots, format_key, parse_key};
use kernelry::{Config, Device, Error, Registry};
use proptest::prelude::*;
use support::counting;

const NOW: Duration = Duration::ZERO;

/// Without what is on this machine's disk.
fn registry() -> Registry {
    Registry::with_config(&Config::default())
}

#[test]
fn construction_needs_no_device_and_compiles_nothing() {
    let registry = Registry::default();
    assert_eq!(registry.cached_count(), 0);
    assert!(registry.source_count() >= 348);
    assert_eq!(registry.names().len(), registry.source_count());
}

#[test]
fn every_listed_name_is_in_the_catalogue_and_answers() {
    let listed: Vec<&str> = catalogue::core_names().collect();
    assert_eq!(listed.len(), 348);
    let (registry, cpu) = (registry(), Device::cpu());
    for name in listed {
        let entry = catalogue::find(name).unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        assert!(!entry.summary().is_empty(), "{name} has no summary");
        match registry.get_pipeline(name, &cpu) {
            Ok(pipeline) => assert_eq!(pipeline.label(), name),
            Err(Error::Compilation { message, .. }) => assert_eq!((name, message.as_str()), ("placeholder", "kernel has no entry point")),
            Err(Error::BackendUnsupported { name: n, backend }) => assert_eq!((n.as_str(), backend.as_str()), (name, "cpu")),
            Err(other) => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn catalogue_names_are_unique() {
    let mut names: Vec<&str> = catalogue::builtin().iter().map(|k| k.name()).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(before, names.len());
}

#[test]
fn the_second_request_returns_the_same_object() {
    let (registry, cpu) = (registry(), Device::cpu());
    assert!(!registry.is_cached("rms_norm_f32"));
    let first = registry.get_pipeline("rms_norm_f32", &cpu).unwrap();
    assert!(registry.is_cached("rms_norm_f32"));
    assert_eq!(registry.cached_count(), 1);
    assert_eq!(first, registry.get_pipeline("rms_norm_f32", &cpu).unwrap());
    let id = registry.id("rms_norm_f32").unwrap();
    assert_eq!(first, registry.get_by_id(id, &cpu, &Constants::NONE, Options::default()).unwrap());
    assert_eq!(registry.cached_count(), 1);
    assert_eq!(first.label(), "rms_norm_f32");
    assert_eq!(first.identity().origin, Origin::BuiltIn);
}

#[test]
fn an_unknown_name_is_named_with_its_neighbours() {
    let error = registry().get_pipeline("rms_norm_f23", &Device::cpu()).unwrap_err();
    let Error::KernelNotFound { name, nearest } = &error else { panic!("{error}") };
    assert_eq!(name, "rms_norm_f23");
    assert!(nearest.contains(&"rms_norm_f32".to_owned()), "{nearest:?}");
    assert!(error.to_string().contains("rms_norm_f23") && error.to_string().contains("did you mean"), "{error}");
}

#[test]
fn constants_make_pipelines_of_their_own_in_any_order() {
    let (backend, device) = counting(NOW);
    let registry = registry();
    registry.register_source("user", "text").unwrap();
    let four = registry.get_pipeline_with_constants("user", &device, &[], &[(3, 4)]).unwrap();
    let eight = registry.get_pipeline_with_constants("user", &device, &[], &[(3, 8)]).unwrap();
    assert_eq!(registry.cached_count(), 2);
    assert_ne!(four, eight);
    assert_eq!((four.label(), eight.label()), ("user|3:i4", "user|3:i8"));
    assert_eq!(four, registry.get_pipeline_with_constants("user", &device, &[], &[(3, 4)]).unwrap());
    assert_eq!(registry.cached_count(), 2);

    let plain = registry.get_pipeline_with_bool_constants("user", &device, &[]).unwrap();
    assert_eq!(plain, registry.get_pipeline("user", &device).unwrap());
    assert_eq!(registry.cached_count(), 3);

    let a = registry.get_pipeline_with_constants("user", &device, &[(0, true), (1, false)], &[(7, 2), (5, 1)]).unwrap();
    let b = registry.get_pipeline_with_constants("user", &device, &[(1, false), (0, true)], &[(5, 1), (7, 2)]).unwrap();
    assert_eq!(a, b);
    assert_eq!(a.label(), "user|0:b1|1:b0|5:i1|7:i2");
    assert!(registry.is_cached("user|0:b1|1:b0|5:i1|7:i2") && registry.is_cached("user|1:b0|0:b1|7:i2|5:i1"));
    assert_eq!(backend.compiles.load(Ordering::SeqCst), 4);
}

#[test]
fn wrong_constants_are_refused() {
    let (registry, cpu) = (registry(), Device::cpu());
    let twice = registry.get_pipeline_with_constants("rms_norm_f32", &cpu, &[(1, true)], &[(1, 2)]).unwrap_err();
    assert!(matches!(&twice, Error::InvalidConstant { index: 1, reason, .. } if reason.contains("twice")), "{twice}");
    let unknown = registry.get_pipeline_with_constants("rms_norm_f32", &cpu, &[], &[(9, 2)]).unwrap_err();
    assert!(matches!(&unknown, Error::InvalidConstant { index: 9, reason, .. } if reason.contains("unknown slot")), "{unknown}");
    let (_, device) = counting(NOW);
    registry.register_source_for("counting", "typed", "t", SourceSlots::Declared(vec![(2, ConstantType::Bool)])).unwrap();
    assert!(registry.get_pipeline_with_bool_constants("typed", &device, &[(2, true)]).is_ok());
    assert!(matches!(registry.get_pipeline_with_constants("typed", &device, &[], &[(2, 1)]), Err(Error::InvalidConstant { index: 2, .. })));
    assert!(matches!(
        registry.get_pipeline_with_bool_constants("typed", &device, &[(3, true)]),
        Err(Error::InvalidConstant { index: 3, .. })
    ));
}

#[test]
fn threads_compile_each_key_once_and_keys_in_parallel() {
    let (backend, device) = counting(Duration::from_millis(40));
    let registry = registry();
    registry.register_source("user", "text").unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            for key in 0..8 {
                let (registry, device) = (&registry, &device);
                scope.spawn(move || registry.get_pipeline_with_constants("user", device, &[], &[(0, key)]).unwrap());
            }
        }
    });
    assert_eq!(backend.compiles.load(Ordering::SeqCst), 8);
    assert_eq!(registry.cached_count(), 8);
    // One after the other they would take 320 ms.
    assert!(started.elapsed() < Duration::from_millis(280), "{:?}", started.elapsed());
}

#[test]
fn names_with_one_text_share_a_module() {
    let (backend, device) = counting(NOW);
    let registry = registry();
    for name in ["a", "b", "c"] {
        registry.register_source(name, "one text").unwrap();
        registry.get_pipeline(name, &device).unwrap();
    }
    assert_eq!(backend.compiles.load(Ordering::SeqCst), 1);
    assert_eq!(registry.cached_count(), 3);
}

#[test]
fn one_name_with_another_text_is_another_kernel() {
    let (backend, device) = counting(NOW);
    let registry = registry();
    registry.register_source("user", "first").unwrap();
    let first = registry.get_pipeline("user", &device).unwrap();
    let special = registry.get_pipeline_with_constants("user", &device, &[], &[(0, 1)]).unwrap();

    registry.register_source("user", "first").unwrap();
    assert_eq!(first, registry.get_pipeline("user", &device).unwrap(), "identical text keeps the cache");

    registry.register_source("user", "second").unwrap();
    assert!(!registry.is_cached_any("user"), "specialisations of the old text are gone too");
    let second = registry.get_pipeline("user", &device).unwrap();
    assert_ne!(first, second);
    assert_ne!(first.identity().content_hash, second.identity().content_hash);
    assert_ne!(special, registry.get_pipeline_with_constants("user", &device, &[], &[(0, 1)]).unwrap());
    assert_eq!(first.label(), "user", "old handles keep working");
    assert_eq!(backend.compiles.load(Ordering::SeqCst), 4);
}

#[test]
fn a_compile_of_a_replaced_text_is_not_inserted() {
    let (backend, device) = counting(Duration::from_millis(100));
    let registry = registry();
    registry.register_source("user", "old").unwrap();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| registry.get_pipeline("user", &device).unwrap());
        while backend.compiles.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        registry.register_source("user", "new").unwrap();
        let new = registry.get_pipeline("user", &device).unwrap();
        let old = slow.join().unwrap();
        assert_ne!(old, new);
        assert_eq!(new, registry.get_pipeline("user", &device).unwrap());
    });
    assert_eq!(registry.cached_count(), 1);
    assert_eq!(backend.by_text.lock().unwrap().len(), 2);
}

#[test]
fn a_failure_compiles_once_and_recovers_with_the_source() {
    let (backend, device) = counting(NOW);
    let registry = registry();
    registry.register_source("user", "#error").unwrap();
    for _ in 0..5 {
        let error = registry.get_pipeline("user", &device).unwrap_err();
        assert!(matches!(&error, Error::Compilation { name, message, .. } if name == "user" && message.contains("line 1")), "{error}");
        assert!(error.to_string().contains("user") && error.to_string().contains("#error"));
    }
    assert_eq!(backend.compiles.load(Ordering::SeqCst), 1);
    assert!(!registry.is_cached("user"));
    assert_eq!(registry.cached_count(), 0);
    registry.register_source("user", "fixed").unwrap();
    assert!(registry.get_pipeline("user", &device).is_ok());
    registry.register_source("user", "no entry").unwrap();
    assert!(matches!(registry.get_pipeline("user", &device), Err(Error::Compilation { .. })));
}

#[test]
fn a_built_in_can_be_replaced_and_comes_back() {
    let (_, device) = counting(NOW);
    let (registry, cpu) = (registry(), Device::cpu());
    let native = registry.get_pipeline("rms_norm_f32", &cpu).unwrap();
    registry.register_source("rms_norm_f32", "mine").unwrap();
    let mine = registry.get_pipeline("rms_norm_f32", &device).unwrap();
    assert_eq!(mine.identity().origin, Origin::RuntimeSource);
    assert_eq!(registry.describe("rms_norm_f32").unwrap().overridden_for, ["*"]);
    // A text is for backends that compile texts: the CPU keeps its native function, under a fresh pipeline.
    assert_eq!(registry.get_pipeline("rms_norm_f32", &cpu).unwrap().identity().origin, Origin::BuiltIn);
    assert_eq!(native.name(), "rms_norm_f32");
    registry.unregister("rms_norm_f32").unwrap();
    // The text that ships with the library is back.
    let shipped = registry.get_pipeline("rms_norm_f32", &device).unwrap();
    assert_ne!(shipped.identity().content_hash, mine.identity().content_hash);
    assert!(registry.describe("rms_norm_f32").unwrap().overridden_for.is_empty());
    assert!(matches!(registry.unregister("rms_norm_f32"), Err(Error::KernelNotFound { .. })));
    registry.register_source("user", "t").unwrap();
    let count = registry.source_count();
    registry.unregister("user").unwrap();
    assert!(matches!(registry.get_pipeline("user", &device), Err(Error::KernelNotFound { .. })));
    assert_eq!(registry.source_count(), count - 1);
}

#[test]
fn names_that_cannot_be_keys_are_refused() {
    let registry = registry();
    for name in ["", "a|b", "|"] {
        assert!(matches!(registry.register_source(name, "t"), Err(Error::InvalidArgument { .. })), "{name}");
    }
}

#[test]
fn a_protected_kernel_is_a_typed_error() {
    let registry = registry();
    registry.register_source("user", "one").unwrap();
    let guard = registry.protect("user").unwrap();
    assert!(registry.register_source("user", "one").is_ok(), "identical text changes nothing");
    assert!(matches!(registry.register_source("user", "two"), Err(Error::ProtectedKernel { .. })));
    assert!(matches!(registry.unregister("user"), Err(Error::ProtectedKernel { .. })));
    drop(guard);
    assert!(registry.register_source("user", "two").is_ok());
}

#[test]
fn devices_and_options_do_not_share_pipelines() {
    let registry = registry();
    let (a, b) = (Device::cpu(), Device::cpu());
    let on_a = registry.get_pipeline("rms_norm_f32", &a).unwrap();
    let on_b = registry.get_pipeline("rms_norm_f32", &b).unwrap();
    assert_ne!(on_a, on_b);
    let fast = registry.get_with("rms_norm_f32", &a, &Constants::NONE, Options::with_math(Math::Fast)).unwrap();
    assert_ne!(on_a, fast);
    assert_eq!(fast.identity().options.math, Math::Fast);
    assert_eq!(registry.cached_count(), 3);
    assert_eq!(registry.identity("rms_norm_f32").len(), 3);
    assert_eq!(registry.cached_keys(), ["rms_norm_f32"; 3]);
}

#[test]
fn prewarm_reports_and_clear_empties() {
    let (backend, device) = counting(NOW);
    let registry = registry();
    registry.register_source("good", "g").unwrap();
    registry.register_source("bad", "#error").unwrap();
    let report = registry.prewarm(&device, &["good", "bad", "nowhere"]);
    assert_eq!((report.warmed, report.skipped, report.failed.len()), (1, 0, 2));
    assert_eq!(registry.prewarm(&device, &["good"]).skipped, 1);
    registry.evict("good");
    assert!(!registry.is_cached("good"));
    registry.get_pipeline("good", &device).unwrap();
    assert_eq!(backend.compiles.load(Ordering::SeqCst), 2, "the module outlives its pipeline");
    registry.clear();
    assert_eq!(registry.cached_count(), 0);
    let cpu = Device::cpu();
    let all = registry.prewarm_all(&cpu, |_| true);
    assert_eq!(all.failed.len(), 1, "only the placeholder fails: {:?}", all.failed);
    assert!(all.warmed > 0 && all.warmed + all.skipped + 1 == catalogue::builtin().len());
}

#[test]
fn a_capability_is_asked_once_a_device() {
    let (backend, device) = counting(NOW);
    let registry = registry();
    for _ in 0..3 {
        assert!(registry.probe(&device, Capability::MatrixUnits).unwrap());
    }
    assert_eq!(backend.probes.load(Ordering::SeqCst), 1);
    assert!(!registry.probe(&Device::cpu(), Capability::RuntimeCompilation).unwrap());
}

#[test]
fn the_registry_is_shared_between_threads() {
    fn check<T: Send + Sync + Clone>() {}
    check::<Registry>();
    check::<kernelry::registry::Pipeline>();
    let registry = registry();
    let clone = registry.clone();
    clone.register_source("user", "t").unwrap();
    assert!(registry.id("user").is_ok());
}

fn constant() -> impl Strategy<Value = ConstantValue> {
    prop_oneof![
        any::<bool>().prop_map(ConstantValue::Bool),
        any::<i32>().prop_map(ConstantValue::I32),
        any::<u32>().prop_map(ConstantValue::U32),
        any::<u32>().prop_map(ConstantValue::F32),
    ]
}

proptest! {
    #[test]
    fn keys_round_trip(name in "[a-zA-Z0-9_]{1,24}", pairs in prop::collection::btree_map(0u32..2000, constant(), 0..8)) {
        let constants = Constants::new(&name, pairs).unwrap();
        let key = format_key(&name, &constants);
        let (parsed_name, parsed) = parse_key(&key).unwrap();
        prop_assert_eq!(parsed_name, name.as_str());
        prop_assert_eq!(parsed, constants);
        prop_assert_eq!(format_key(parsed_name, &parsed), key);
    }

    #[test]
    fn any_text_parses_or_errs(text in ".{0,40}") {
        let _ = parse_key(&text);
        let registry = registry();
        prop_assert!(!registry.is_cached(&text));
    }
}
