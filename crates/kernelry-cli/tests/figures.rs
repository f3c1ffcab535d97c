//! The table of the README says what the figures under `bench/` say. With `KERNELRY_WRITE_README=1` it is written instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

const START: &str = "<!-- figures of bench/cpu: start -->\n";
const END: &str = "<!-- figures of bench/cpu: end -->\n";

/// Kernels besides the products with blocks: kernel, shape, what it is.
const OTHERS: [(&str, &str, &str); 9] = [
    ("hf2q_dense_mm_bf16_f32_tensor", "m=512 n=4096 k=4096", "product with bf16 weights, 512 rows"),
    ("dense_matvec_bf16w_f32io", "m=1 n=4096 k=4096", "product with bf16 weights, one row"),
    ("attention_decode_f16kv", "H=16/4 D=128 n=4096", "attention of one token, 4096 keys, f16 cache"),
    ("attention_prefill_f16kv", "S=512 H=16/4 D=128", "causal attention of 512 tokens, f16 cache"),
    ("rms_norm_f32_v2", "rows=512 dim=4096", "RMS norm of 512 rows"),
    ("fused_residual_norm_f32", "rows=512 dim=4096", "residual addition and RMS norm of 512 rows"),
    ("rope_neox_f32", "seq_len=512 n_heads=32 head_dim=128", "rotation of 512 tokens"),
    ("silu_mul_f32", "n=512*14336", "gated activation of 512 tokens"),
    ("softmax_f32", "rows=8192 cols=1024", "softmax of 8192 rows"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A measured file; none before the first measurement.
fn data(name: &str) -> Option<Value> {
    let path = root().join("bench/cpu").join(name);
    let text = std::fs::read_to_string(&path).ok()?;
    Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// The measured row of a kernel at a shape, in one math mode.
fn row<'a>(report: &'a Value, kernel: &str, shape: &str, math: &str) -> &'a Value {
    let rows = report["results"].as_array().unwrap();
    let found = rows.iter().find(|r| r["kernel"] == kernel && r["shape"] == shape && r["math"] == math);
    found.unwrap_or_else(|| panic!("bench/cpu/kernels.json has no {kernel} at {shape}, {math}"))
}

fn number(row: &Value, field: &str) -> f64 {
    row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"))
}

/// A rate with the share of the roofline.
fn rate(row: &Value, field: &str) -> String {
    let share = row["roofline_pct"].as_f64().map_or_else(String::new, |p| format!(" ({p:.0} %)"));
    format!("{:.*}{share}", usize::from(number(row, field) < 100.0), number(row, field))
}

fn table() -> String {
    let (Some(report), Some(tests)) = (data("kernels.json"), data("model.json")) else {
        return "Not measured yet: `bench/run` measures the CPU of a machine and writes the table that stands here.\n".into();
    };
    let limit = |name: &str| report["roofline"][name].as_f64().unwrap() / 1e9;
    let mut text = String::new();
    writeln!(
        text,
        "Measured on {}, {} threads, at commit {} by `bench/run`. Limits measured in the same run: copy {:.1} GB/s, read {:.1} GB/s, f32 {:.0} \
         GFLOP/s; percentages are of what they allow. Medians; all rows are in [bench/cpu](bench/cpu).\n",
        report["device"]["name"].as_str().unwrap(),
        report["threads"],
        report["commit"].as_str().expect("figures name the commit that was measured"),
        limit("copy_bytes_per_second"),
        limit("read_bytes_per_second"),
        limit("f32_flops_per_second"),
    )
    .unwrap();
    text +=
        "| weights, 14336 x 4096 | one row, precise, GB/s | one row, fast, GB/s | 512 rows, precise, GFLOP/s | 512 rows, fast, GFLOP/s |\n";
    text += "|---|---|---|---|---|\n";
    for ty in ["q4_0", "q8_0", "q5_1", "iq4_nl", "q4_K", "q5_K", "q6_K"] {
        let cell = |kernel: &str, shape: &str, math: &str, field: &str| {
            rate(row(&report, &format!("kernel_mul_{kernel}_{ty}_f32"), shape, math), field)
        };
        let one = |math| cell("mv", "m=1 n=14336 k=4096", math, "gb_s");
        let many = |math| cell("mm", "m=512 n=14336 k=4096", math, "gflop_s");
        writeln!(text, "| {ty} | {} | {} | {} | {} |", one("precise"), one("fast"), many("precise"), many("fast")).unwrap();
    }
    text += "\n| kernel | shape | what | median | GB/s | GFLOP/s | of the roofline |\n|---|---|---|---|---|---|---|\n";
    for (kernel, shape, what) in OTHERS {
        let row = row(&report, kernel, shape, "precise");
        let us = number(row, "p50_us");
        let time = if us < 1000.0 { format!("{us:.1} µs") } else { format!("{:.1} ms", us / 1e3) };
        let share = row["roofline_pct"].as_f64().map_or_else(|| "in cache".into(), |p| format!("{p:.0} %"));
        let (bytes, flops) = (number(row, "gb_s"), number(row, "gflop_s"));
        writeln!(text, "| `{kernel}` | {shape} | {what} | {time} | {bytes:.1} | {flops:.1} | {share} |").unwrap();
    }
    text += "\n| model | prompt | generation |\n|---|---|---|\n";
    let tests = tests.as_array().unwrap();
    let cell = |prompt: bool| {
        let test = tests.iter().find(|t| (t["n_prompt"] != 0) == prompt).expect("bench/cpu/model.json has both tests");
        let mut rates: Vec<f64> = test["samples_ts"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        rates.sort_by(f64::total_cmp);
        let tokens = if prompt { &test["n_prompt"] } else { &test["n_gen"] };
        format!("{:.0} tokens/s ({tokens})", rates[rates.len() / 2])
    };
    writeln!(text, "| the model in the box ({}) | {} | {} |", tests[0]["model_type"].as_str().unwrap(), cell(true), cell(false)).unwrap();
    text
}

#[test]
fn the_readme_has_the_figures() {
    let path = root().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let start = readme.find(START).expect("README.md has the start of the table") + START.len();
    let end = readme.find(END).expect("README.md has the end of the table");
    let table = table();
    if std::env::var_os("KERNELRY_WRITE_README").is_some() {
        std::fs::write(&path, format!("{}{table}{}", &readme[..start], &readme[end..])).unwrap();
        return;
    }
    assert_eq!(&readme[start..end], table, "run `KERNELRY_WRITE_README=1 cargo test -p kernelry-cli --test figures`");
}

/// A measured file says where it comes from, and was not measured by a debug build.
#[test]
fn figures_say_where_they_come_from() {
    let Some(report) = data("kernels.json") else { return };
    assert_eq!(report["build"], "release");
    for field in ["commit", "command", "version"] {
        assert!(report[field].as_str().is_some_and(|v| !v.is_empty()), "{field}: {}", report[field]);
    }
    assert!(report["threads"].as_u64().is_some_and(|n| n > 0));
    for row in report["results"].as_array().unwrap() {
        assert!(kernelry::catalogue::find(row["kernel"].as_str().unwrap()).is_some(), "{} is no kernel", row["kernel"]);
        assert!(number(row, "p50_us") > 0.0 && number(row, "bytes") > 0.0, "{row}");
    }
}
