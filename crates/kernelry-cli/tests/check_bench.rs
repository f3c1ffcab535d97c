//! `check` and `bench`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::kernelry;

#[test]
fn check_passes_and_counts() {
    let run = kernelry(&["check", "rms_norm_f32*", "--seed", "7"]).ok();
    assert!(run.stdout.contains("ok   rms_norm_f32 "), "{}", run.stdout);
    assert!(run.stdout.contains(" passed, 0 failed, "), "{}", run.stdout);
    assert!(run.stdout.contains("seed 7"), "{}", run.stdout);
}

#[test]
fn check_json() {
    let report = kernelry(&["check", "rms_norm_f32", "--json"]).ok().json();
    assert_eq!((&report["passed"], &report["failed"]), (&1.into(), &0.into()));
    let cases = report["cases"].as_u64().unwrap();
    assert!(cases > 10);
    assert_eq!(report["kernels"][0]["cases"], cases);
    let more = kernelry(&["check", "rms_norm_f32", "--json", "--intensity", "4"]).ok().json();
    assert!(more["cases"].as_u64().unwrap() >= cases);
    let one = kernelry(&["check", "rms_norm_f32", "--json", "--case", "2"]).ok().json();
    assert_eq!(one["cases"], 1);
}

#[test]
fn check_refuses_wrong_arguments() {
    kernelry(&["check", "no_such_*"]).fails(2, "no kernel matches `no_such_*`");
    kernelry(&["check", "norm"]).fails(2, "--family norm");
    kernelry(&["check", "rms_norm_f33"]).fails(2, "did you mean `rms_norm_f32`");
    kernelry(&["check", "rms_norm_f32", "--case", "9999"]).fails(2, "case: got 9999, expected less than");
    kernelry(&["check", "rms_norm_f32", "--intensity", "5"]).fails(2, "--intensity");
    kernelry(&["check", "rms_norm_f32", "--seed", "x"]).fails(2, "--seed");
    kernelry(&["check", "--device", "tpu"]).fails(2, "unknown device");
    kernelry(&["check", "placeholder"]).fails(1, "kernel has no entry point");
    #[cfg(not(target_os = "macos"))]
    kernelry(&["check", "--device", "metal"]).fails(1, "device `metal`");
}

#[test]
fn bench_measures_and_compares_with_the_device() {
    let report = kernelry(&["bench", "rms_norm_f32", "--time", "20", "--json"]).ok().json();
    assert!(report["roofline"]["copy_bytes_per_second"].as_f64().unwrap() > 1e8);
    assert_eq!(report["command"], "kernelry bench rms_norm_f32 --time 20 --json");
    assert!(report["threads"].as_u64().unwrap() > 0 && report["device"]["name"].is_string(), "{report}");
    let rows = report["results"].as_array().unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let [p10, p50, p90] = ["p10_us", "p50_us", "p90_us"].map(|k| row[k].as_f64().unwrap());
        assert!(0.0 < p10 && p10 <= p50 && p50 <= p90, "{row}");
        let gb_s = row["gb_s"].as_f64().unwrap();
        assert!((gb_s - row["bytes"].as_f64().unwrap() / p50 / 1e3).abs() < 1e-6 * gb_s, "{row}");
        match row["residency"].as_str().unwrap() {
            "memory" => {
                assert!(row["roofline_pct"].as_f64().unwrap() > 0.0, "{row}");
                assert!(["copy", "read", "f32"].contains(&row["limit"].as_str().unwrap()), "{row}");
            }
            other => assert_eq!(other, "cache"),
        }
    }
}

#[test]
fn bench_csv_has_a_field_for_each_column() {
    let run = kernelry(&["bench", "rms_norm_f32", "--time", "20", "--csv"]).ok();
    let mut lines = run.stdout.lines();
    let columns = lines.next().unwrap().split(',').count();
    let rows: Vec<&str> = lines.collect();
    assert!(!rows.is_empty());
    for row in rows {
        assert_eq!(row.split(',').count(), columns, "{row}");
        assert!(row.starts_with("rms_norm_f32,norm,cpu,"), "{row}");
    }
}

/// A compiler that fails stands for all that can go wrong with one kernel: the run goes on, and says so at its end.
#[cfg(unix)]
#[test]
fn bench_goes_on_after_a_kernel_that_fails() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let compiler = folder.path().join("c++");
    std::fs::write(&compiler, "#!/bin/sh\ncase \"$1\" in --version) echo false 1.0 ;; *) echo 'text, broken' >&2; exit 1 ;; esac\n")
        .unwrap();
    std::fs::set_permissions(&compiler, std::fs::Permissions::from_mode(0o755)).unwrap();
    let env = [("CXX", compiler.to_str().unwrap()), ("KERNELRY_CACHE", "off")];
    let bench = |format: &[&str]| {
        let args = [&["bench", "argmax_f32", "top_k_f32", "--device", "emulator", "--time", "5"], format].concat();
        let run = common::kernelry_with(folder.path(), &args, "", &env);
        assert_eq!(run.code, Some(1), "{}\n{}", run.stdout, run.stderr);
        assert!(run.stderr.contains("6 of 6 shapes could not be measured"), "{}", run.stderr);
        run
    };
    let report = bench(&["--json"]).json();
    let rows = report["results"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for row in rows {
        assert!(row["error"].as_str().unwrap().contains("text, broken"), "{row}");
        assert!(row["shape"].is_string() && row["p50_us"].is_null(), "{row}");
    }
    let text = bench(&[]).stdout;
    assert!(text.contains("\ntop_k_f32\n") && text.contains("failed: "), "{text}");
    assert_eq!(bench(&["--csv"]).stdout.matches("argmax_f32,sampling,emulator,").count(), 3);
}

#[test]
fn bench_refuses_wrong_arguments() {
    kernelry(&["bench", "no_such_kernel"]).fails(2, "no kernel matches");
    kernelry(&["bench", "rms_norm_f32", "--json", "--csv"]).fails(2, "cannot be used with");
    kernelry(&["bench", "rms_norm_f32", "--time", "0"]).fails(2, "--time");
    kernelry(&["bench", "placeholder"]).fails(1, "can measure none");
}
