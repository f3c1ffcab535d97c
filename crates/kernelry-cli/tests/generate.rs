//! `generate` and `bench --model`, on tiny models with random weights.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Run, files, kernelry, kernelry_with};

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernelry-models/tests/fixtures/tiny/");

fn model(name: &str) -> String {
    format!("{MODELS}{name}.gguf")
}

fn generate(args: &[&str]) -> Run {
    kernelry(&[&["generate", "--model", &model("llama")], args].concat())
}

#[test]
fn every_architecture_writes_text() {
    for name in ["llama", "llama_tied", "qwen2", "qwen3"] {
        let run = kernelry(&["generate", "the and", "--model", &model(name), "-n", "6", "--temperature", "0", "--ignore-eos", "--json"]);
        let report = run.ok().json();
        assert_eq!(report["generated_tokens"], 6, "{name}: {report}");
        assert_eq!(report["tokens"].as_array().unwrap().len(), 6);
        assert_eq!(report["reason"], "length");
        assert!(report["prompt_tokens"].as_u64().unwrap() > 0);
    }
}

#[test]
fn text_streams_to_stdout_and_figures_go_to_stderr() {
    let args = ["the", "-n", "5", "--seed", "7", "--ignore-eos"];
    let run = generate(&args).ok();
    let text = generate(&[&args[..], &["--json"]].concat()).ok().json()["text"].as_str().unwrap().to_owned();
    // The prompt comes first, so that the text reads as a whole.
    assert_eq!(run.stdout, format!("the{text}\n"));
    assert_eq!(generate(&[&args[..], &["--no-echo"]].concat()).ok().stdout, format!("{text}\n"));
    assert!(
        run.stderr.contains("generation 5 tokens, ") && run.stderr.contains(" tokens/s; seed 7; ended by the limit of -n"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.starts_with("prompt "), "{}", run.stderr);
}

#[test]
fn same_seed_same_text() {
    let text = |seed: &str| {
        generate(&["the", "-n", "40", "--temperature", "2", "--top-k", "0", "--top-p", "1", "--seed", seed, "--ignore-eos"]).ok().stdout
    };
    assert_eq!(text("1"), text("1"));
    assert_ne!(text("1"), text("2"));
}

#[test]
fn threads_do_not_change_the_text() {
    let text = |threads: &str| generate(&["--threads", threads, "the", "-n", "20", "--temperature", "0", "--ignore-eos"]).ok().stdout;
    assert_eq!(text("1"), text("2"));
}

#[test]
fn the_prompt_can_come_from_standard_input() {
    let args = ["-n", "5", "--temperature", "0", "--model", &model("llama")];
    let direct = kernelry(&[&["generate", "the and"], &args[..]].concat()).ok();
    let piped = kernelry_with(&std::env::temp_dir(), &[&["generate", "-"], &args[..]].concat(), "the and", &[]).ok();
    assert_eq!(direct.stdout, piped.stdout);
}

#[test]
fn a_chat_template_makes_the_prompt_longer() {
    let count = |args: &[&str]| generate(&[&["the", "-n", "1", "--json"], args].concat()).ok().json()["prompt_tokens"].as_u64().unwrap();
    let (plain, chat) = (count(&[]), count(&["--chat"]));
    assert!(chat > plain, "{chat} {plain}");
    assert!(count(&["--chat", "--system", "and"]) > chat);
}

#[test]
fn the_text_ends_with_the_context() {
    let report = generate(&["the", "-n", "1000000", "--temperature", "0", "--ignore-eos", "--context", "20", "--json"]).ok().json();
    assert_eq!(report["reason"], "context");
    // The last token is shown and not put into the cache.
    assert_eq!(report["prompt_tokens"].as_u64().unwrap() + report["generated_tokens"].as_u64().unwrap(), 21);
}

#[test]
fn wrong_arguments_are_refused() {
    generate(&["the", "--temperature", "-1"]).fails(2, "temperature: got -1");
    generate(&["the", "--top-p", "2"]).fails(2, "top_p: got 2");
    generate(&["the", "--top-k", "x"]).fails(2, "--top-k");
    generate(&["the", "--math", "wild"]).fails(2, "[possible values: precise, fast]");
    generate(&["the", "--device", "tpu"]).fails(2, "unknown device `tpu`");
    generate(&["the", "--system", "and"]).fails(2, "--chat");
    generate(&["the", "--context", "100000"]).fails(2, "context: got 100000");
    generate(&["the", "--context", "0"]).fails(2, "--context");
    generate(&[]).fails(2, "the prompt is empty");
    generate(&[""]).fails(2, "the prompt is empty");
    generate(&[&"the and ".repeat(400)]).fails(2, "expected fewer than the context of 256");
    generate(&["the and the and the and", "--context", "3"]).fails(2, "expected fewer than the context of 3");
}

#[test]
fn broken_models_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let run = |args: &[&str]| kernelry_with(dir.path(), args, "", &[]);
    run(&["generate", "the", "--model", "m.gguf"]).fails(1, "m.gguf: ");
    run(&["generate", "the", "--model", "."]).fails(1, "directory");
    let whole = std::fs::read(model("llama")).unwrap();
    for len in [0, 4, 100, 1000, 3000, whole.len() / 2, whole.len() - 4096] {
        std::fs::write(&path, &whole[..len]).unwrap();
        run(&["generate", "the", "--model", "m.gguf"]).fails(1, "m.gguf: ");
        run(&["bench", "--model", "m.gguf"]).fails(1, "m.gguf: ");
    }
    std::fs::write(&path, "not a model at all, only text").unwrap();
    run(&["generate", "the", "--model", "m.gguf"]).fails(1, "m.gguf: gguf: ");
    assert_eq!(files(dir.path()), ["m.gguf"]);
}

#[test]
fn bench_prints_the_table_of_llama_bench() {
    let path = model("llama");
    let run = kernelry(&["bench", "--model", &path, "-p", "16,32", "-n", "8", "-r", "2"]).ok();
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{}", run.stdout);
    let cells = |line: &str| line.split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(cells(lines[0]), ["", "model", "size", "params", "backend", "threads", "test", "t/s", ""]);
    for (line, test) in lines[2..].iter().zip(["pp16", "pp32", "tg8"]) {
        let row = cells(line);
        assert!(row[1].starts_with("llama "), "{line}");
        assert_eq!((row[4].as_str(), row[6].as_str()), ("CPU", test));
        let (mean, spread) = row[7].split_once(" ± ").unwrap();
        assert!(mean.parse::<f64>().unwrap() > 0.0 && spread.parse::<f64>().unwrap() >= 0.0, "{line}");
    }
}

#[test]
fn bench_of_a_model_in_other_formats() {
    let path = model("llama");
    let args = ["bench", "--model", &path, "-p", "16", "-n", "4", "-r", "3"];
    let rows = kernelry(&[&args[..], &["-o", "json"]].concat()).ok().json();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!((&rows[0]["n_prompt"], &rows[0]["n_gen"]), (&16.into(), &0.into()));
    assert_eq!(rows[1]["samples_ts"].as_array().unwrap().len(), 3);
    let mean = rows[1]["samples_ts"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).sum::<f64>() / 3.0;
    assert!((rows[1]["avg_ts"].as_f64().unwrap() - mean).abs() < 1e-6 * mean);
    let lines = kernelry(&[&args[..], &["-o", "jsonl"]].concat()).ok().stdout;
    assert!(lines.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["model_n_params"].as_u64().unwrap() > 0));
    assert_eq!(lines.lines().count(), 2);
    let csv = kernelry(&[&args[..], &["-o", "csv"]].concat()).ok().stdout;
    assert_eq!(csv.lines().count(), 3);
}

#[test]
fn bench_of_a_model_refuses_wrong_arguments() {
    let path = model("llama");
    kernelry(&["bench", "--model", &path, "-p", "0", "-n", "0"]).fails(2, "nothing to measure");
    kernelry(&["bench", "--model", &path, "-p", "5000"]).fails(2, "got 5000 tokens, expected at most 256, the context");
    kernelry(&["bench", "--model", &path, "rms_norm_f32"]).fails(2, "expected one of them");
    kernelry(&["bench", "--model", &path, "-r", "0"]).fails(2, "--repeats");
    kernelry(&["bench", "-p", "16", "rms_norm_f32"]).fails(2, "expected one of them");
}

#[test]
fn bench_of_cold_starts() {
    let args = ["bench", "--cold-start", "--model", &model("llama"), "-r", "3"];
    let report = kernelry(&[&args[..], &["--json"]].concat()).ok().json();
    let process = report["process"].as_str().unwrap();
    assert!(process.starts_with("kernelry generate 'Ownership is' -n 1 ") && process.contains(&model("llama")), "{process}");
    assert!(report["device"]["name"].is_string() && report["command"].as_str().unwrap().contains("--cold-start"), "{report}");
    let [row] = &report["results"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!((&row["kernels"], &row["samples"]), (&"native".into(), &3.into()));
    let mut samples: Vec<f64> = row["samples_ms"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    samples.sort_by(f64::total_cmp);
    assert!(samples[0] > 0.0 && row["p50_ms"] == samples[1], "{row}");
    let table = kernelry(&args).ok().stdout;
    assert!(table.lines().any(|line| line.starts_with("native ")), "{table}");

    kernelry(&["bench", "--cold-start", "--model", "no-such.gguf"]).fails(1, "kernelry generate: no-such.gguf: ");
    kernelry(&["bench", "--cold-start", "rms_norm_f32"]).fails(2, "cannot be used with");
    kernelry(&["bench", "--cold-start", "-p", "16"]).fails(2, "cannot be used with");
}

/// Ctrl-C ends the text, shows the figures and leaves with 130.
#[cfg(unix)]
#[test]
fn an_interrupted_text_ends_cleanly() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    let mut command = Command::new(env!("CARGO_BIN_EXE_kernelry"));
    command.args(["--threads", "1", "generate", "Ownership is", "-n", "100000", "--ignore-eos", "--no-echo"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0];
    stdout.read_exact(&mut first).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let out = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(130), "{stderr}");
    assert!(stderr.trim_end().ends_with("ended by Ctrl-C") && !stderr.contains("error:"), "{stderr}");
    assert_eq!(rest.last(), Some(&b'\n'));
}

#[test]
fn the_model_in_the_box_writes() {
    let report = kernelry(&["generate", "Ownership is", "-n", "12", "--temperature", "0", "--json"]).ok().json();
    assert!(report["text"].as_str().unwrap().len() > 10, "{report}");
}
