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
fn bench_measures_what_a_launch_costs() {
    let report = kernelry(&["bench", "--launch", "--time", "5", "--json"]).ok().json();
    let rows = report["results"].as_array().unwrap();
    let steps: Vec<&str> = rows.iter().map(|r| r["shape"].as_str().unwrap().rsplit("step=").next().unwrap()).collect();
    assert_eq!(steps, ["record", "record", "submit", "run", "node", "replay"]);
    for row in rows {
        assert_eq!((&row["family"], &row["backend"], &row["residency"]), (&"launch".into(), &"cpu".into(), &"cache".into()), "{row}");
        let [p10, p50, p90] = ["p10_us", "p50_us", "p90_us"].map(|k| row[k].as_f64().unwrap());
        assert!(0.0 < p10 && p10 <= p50 && p50 <= p90 && row["roofline_pct"].is_null(), "{row}");
        assert!(kernelry::catalogue::find(row["kernel"].as_str().unwrap()).is_some(), "{row}");
    }
    // Recording is a part of running, and a replay does everything that its launches do.
    let us = |i: usize| rows[i]["p50_us"].as_f64().unwrap();
    assert!(us(3) > us(0) && us(5) > us(4), "{report}");

    // What was written is read again, beside peers and alone.
    let folder = tempfile::tempdir().unwrap();
    let [from, peers] = ["run.json", "peers.json"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    std::fs::write(&from, report.to_string()).unwrap();
    let head = "{\"device\": \"d\", \"date\": \"2026-11-24\", \"versions\": {}, \"results\": [";
    let peer = "{\"peer\": \"Other\", \"op\": \"launch\", \"type\": \"f32\", \"shape\": \"step=run\", \"us\": 8.9}]}";
    std::fs::write(&peers, format!("{head}{peer}")).unwrap();
    let table = kernelry(&["bench", "--from", &from, "--compare", &peers]).ok().stdout;
    let compared: Vec<&str> = table.split("Compared with").nth(1).unwrap().lines().skip(2).collect();
    assert!(compared.len() == 1 && compared[0].contains("step=run") && compared[0].contains("8.90"), "{table}");
    assert_eq!(kernelry(&["bench", "--launch", "--from", &from, "--csv"]).ok().stdout.lines().count(), 1 + rows.len());
    assert_eq!(kernelry(&["bench", "elementwise_*", "--from", &from, "--csv"]).ok().stdout.lines().count(), 1);
    kernelry(&["bench", "--launch", "rms_norm_f32"]).fails(2, "cannot be used with");
    kernelry(&["bench", "--launch", "-p", "16"]).fails(2, "expected one of them");
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

/// An earlier run as `--json` prints it, of two kernels and one that failed.
fn earlier(folder: &std::path::Path) -> String {
    let row = |kernel: &str, family: &str, shape: &str, us: f64| {
        format!(
            "{{\"kernel\": \"{kernel}\", \"family\": \"{family}\", \"backend\": \"cuda\", \"shape\": \"{shape}\", \"math\": \"precise\", \
             \"samples\": 9, \"launches\": 4, \"p10_us\": {us}, \"p50_us\": {us}, \"p90_us\": {us}, \"mean_us\": {us}, \"stddev_us\": 0.0, \
             \"bytes\": 33000000.0, \"flops\": 117440512.0, \"gb_s\": {}, \"gflop_s\": {}, \"roofline_pct\": 50.0, \"limit\": \"read\", \
             \"residency\": \"memory\"}}",
            33000.0 / us,
            117_440.512 / us
        )
    };
    let rows = [
        row("kernel_mul_mv_q4_0_f32", "quantized", "m=1 n=14336 k=4096", 8.94),
        row("rms_norm_f32", "norm", "rows=8192 dim=4096", 71.0),
        row("softcap_f32", "activation", "n=262144", 2.0),
        "{\"kernel\": \"top_k_f32\", \"family\": \"sampling\", \"backend\": \"cuda\", \"shape\": \"n=7\", \"math\": \"fast\", \
         \"error\": \"<b>no & memory</b>, \\\"none\\\"\"}"
            .into(),
    ];
    let text = format!(
        "{{\"version\": \"0.1.0\", \"commit\": \"0123abc\", \"build\": \"release\", \"command\": \"kernelry bench --json\", \"threads\": 132,\n\
         \"device\": {{\"backend\": \"cuda\", \"name\": \"NVIDIA H200\", \"arch\": \"sm_90a\", \"max_allocation\": 150000000000, \
         \"units\": 132, \"driver\": \"580.1\"}},\n\"roofline\": {{\"copy_bytes_per_second\": 4.2e12, \"read_bytes_per_second\": 4.3e12, \
         \"f32_flops_per_second\": 6e13, \"matrix16_flops_per_second\": 8e14}},\n\"results\": [{}]}}",
        rows.join(",\n")
    );
    let path = folder.join("run.json");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn bench_compares_with_peers() {
    let folder = tempfile::tempdir().unwrap();
    let from = earlier(folder.path());
    let run = kernelry(&["bench", "--from", &from, "--compare"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("1 of 4 shapes could not be measured"), "{}", run.stderr);
    assert!(run.stdout.contains("Compared with NVIDIA H200, 2026-11-23, "), "{}", run.stdout);
    let table = run.stdout.split("Compared with").nth(1).unwrap();
    let line = |kernel: &str, peer: &str| {
        let found = table.lines().find(|l| l.starts_with(kernel) && l.contains(peer));
        found.unwrap_or_else(|| panic!("{kernel} {peer}: {table}")).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("kernel_mul_mv_q4_0_f32", "ggml")[4..], ["ggml", "17.88", "8.94", "2.00"]);
    assert_eq!(line("rms_norm_f32", "PyTorch")[3..], ["PyTorch", "103.94", "71.00", "1.46"]);
    assert!(!table.contains("softcap") && !table.contains("top_k"), "{table}");
}

#[test]
fn bench_compares_with_an_earlier_run() {
    let folder = tempfile::tempdir().unwrap();
    let from = earlier(folder.path());
    let old = folder.path().join("old.json");
    std::fs::write(&old, std::fs::read_to_string(&from).unwrap().replace("71", "142")).unwrap();
    let run = kernelry(&["bench", "rms_norm_f32", "kernel_mul_mv_q4_0_f32", "--from", &from, "--compare", old.to_str().unwrap()]).ok();
    let table = run.stdout.split("Compared with NVIDIA H200, commit 0123abc").nth(1).unwrap();
    let norm: Vec<&str> = table.lines().find(|l| l.starts_with("rms_norm_f32")).unwrap().split_whitespace().collect();
    assert_eq!(norm[norm.len() - 3..], ["142.00", "71.00", "2.00"]);
    assert!(table.lines().any(|l| l.starts_with("kernel_mul_mv_q4_0_f32") && l.ends_with("1.00")), "{table}");
}

#[test]
fn bench_refuses_files_that_are_no_figures() {
    let folder = tempfile::tempdir().unwrap();
    let from = earlier(folder.path());
    let wrong = folder.path().join("wrong.json");
    let name = wrong.to_str().unwrap();
    kernelry(&["bench", "--from", &from, "--compare", name]).fails(1, "wrong.json: No such file");
    kernelry(&["bench", "--from", name]).fails(1, "wrong.json: No such file");
    kernelry(&["bench", "--compare", "rms_*"]).fails(1, "kernels go before it");
    for (text, reason) in [("{", "EOF"), ("[1]", "results"), ("{\"results\": [{}]}", "results[0]: missing field")] {
        std::fs::write(&wrong, text).unwrap();
        kernelry(&["bench", "--from", &from, "--compare", name]).fails(1, reason);
        // Before anything is measured.
        kernelry(&["bench", "rms_norm_f32", "--time", "600000", "--compare", name]).fails(1, reason);
    }
    kernelry(&["bench", "--from", name]).fails(1, "expected an output of `kernelry bench --json`");
    kernelry(&["bench", "--from", &from, "--compare", "--json"]).fails(2, "cannot be used with");
    kernelry(&["bench", "--from", &from, "--device", "cpu"]).fails(2, "cannot be used with");
    kernelry(&["bench", "-p", "16", "--from", &from]).fails(2, "are for kernels, got a whole model");
}

#[test]
fn bench_writes_html_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let from = earlier(folder.path());
    let path = folder.path().join("a b.html");
    let run = kernelry(&["bench", "--from", &from, "--html", path.to_str().unwrap()]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let html = std::fs::read_to_string(&path).unwrap();
    well_formed(&html);
    assert!(html.contains("&lt;b&gt;no &amp; memory&lt;&#x2f;b&gt;, &quot;none&quot;"), "{html}");
    assert!(!html.contains("<script") && !html.contains("http"), "loads nothing");
    assert_eq!(html.matches("<circle").count(), 3 + 4, "a point for each measured row, one for each family");
    assert_eq!(html.matches("<tr").count(), 1 + 4);
    for place in ["no/such/folder/x.html", "."] {
        let run = common::kernelry_in(folder.path(), &["bench", "rms_norm_f32", "--time", "600000", "--html", place]);
        run.fails(1, &format!("{}: ", std::path::Path::new(place).display()).replace("./", ""));
    }
    // Nothing else was left behind.
    assert_eq!(common::files(folder.path()), ["a b.html", "run.json"]);
}

/// Every element is closed in the order in which it was opened, and no text has a loose `<` or `&`.
fn well_formed(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    for (i, part) in html.split('<').enumerate().skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("`<{part}` has no end"));
        assert!(i == 1 || !text.contains('>') || open.last() == Some(&"style"), "{text}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> after {part}");
        } else if !tag.ends_with('/') && !["!doctype", "meta"].contains(&name) {
            open.push(name);
        }
        for rest in text.split('&').skip(1) {
            assert!(rest.split_once(';').is_some_and(|(entity, _)| entity.len() <= 5), "&{rest}");
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
    }
    assert!(open.is_empty(), "{open:?} are open");
}

/// A reader that has seen enough ends the command quietly.
#[cfg(unix)]
#[test]
fn bench_ends_with_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let from = earlier(folder.path());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kernelry"));
    let output = command.args(["bench", "--from", &from, "--csv"]).stdout(writer).stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
