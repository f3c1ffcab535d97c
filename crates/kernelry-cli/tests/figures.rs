//! The table of the README says what the figures under `bench/` say. With `KERNELRY_WRITE_README=1` it is written instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

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
    let path = root().join("bench").join(name);
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

fn cpu_table() -> String {
    let (Some(report), Some(tests)) = (data("cpu/kernels.json"), data("cpu/model.json")) else {
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
    let starts = data("cpu/cold-start.json").map_or_else(String::new, |starts| cold_start_table(&starts));
    text + &model_table(&tests) + &launch_table(&report, &[]) + &starts
}

fn model_table(tests: &Value) -> String {
    let mut text = "\n| model | prompt | generation |\n|---|---|---|\n".to_owned();
    model_row(&mut text, "the model in the box", tests);
    text
}

/// Medians of every prompt length and of generation.
fn model_row(text: &mut String, name: &str, tests: &Value) {
    let tests = tests.as_array().unwrap();
    let cell = |prompt: bool| {
        let rates = tests.iter().filter(|t| (t["n_prompt"] != 0) == prompt).map(|test| {
            let mut rates: Vec<f64> = test["samples_ts"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            rates.sort_by(f64::total_cmp);
            let tokens = if prompt { &test["n_prompt"] } else { &test["n_gen"] };
            format!("{:.0} tokens/s ({tokens})", rates[rates.len() / 2])
        });
        rates.collect::<Vec<_>>().join(", ")
    };
    writeln!(text, "| {name} ({}) | {} | {} |", tests[0]["model_type"].as_str().unwrap(), cell(true), cell(false)).unwrap();
}

/// What a launch costs: kernel, shape, step by the name that peers have for it, what is timed.
const LAUNCHES: [(&str, &str, &str, &str); 6] = [
    ("elementwise_add_f32", "n=256 step=record", "step=record", "recording a sum, time of the host"),
    ("kernel_mul_mv_q4_0_f32", "m=1 n=256 k=256 step=record", "", "recording a product with a quantised weight, time of the host"),
    ("elementwise_add_f32", "n=256 step=submit", "step=submit", "submitting what was recorded, time of the host"),
    ("elementwise_add_f32", "n=256 step=run", "step=run", "recording, submitting and running"),
    ("elementwise_add_f32", "n=256 step=node", "step=node", "a launch in a graph that is replayed"),
    ("elementwise_add_f32", "n=256 step=replay", "step=replay", "starting the replay of a graph of 512 launches, time of the host"),
];

/// Empty where the report was made before launches were measured.
fn launch_table(report: &Value, peers: &[Value]) -> String {
    let mut rows = String::new();
    for (kernel, shape, step, what) in LAUNCHES {
        let Some(row) = fastest(report, kernel, "", shape) else { continue };
        let peer = fastest_peer(peers, ["launch", "f32", step]).map_or_else(|| "-".into(), |(name, us)| format!("{us:.2} µs, {name}"));
        writeln!(rows, "| {what} | {:.2} µs | {peer} |", number(row, "p50_us")).unwrap();
    }
    if rows.is_empty() { rows } else { format!("\n| a launch over 256 elements | median | fastest peer |\n|---|---|---|\n{rows}") }
}

fn cold_start_table(starts: &Value) -> String {
    let rows = starts["results"].as_array().unwrap().iter();
    let cells: Vec<(&str, String)> = rows
        .map(|row| {
            let from = match row["kernels"].as_str().unwrap() {
                "native" => "functions of the binary",
                "pack" => "a pack, without NVRTC",
                "cache" => "the cache on disk",
                "source" => "source",
                other => panic!("kernels from {other}"),
            };
            (from, format!("{:.0} ms", number(row, "p50_ms")))
        })
        .collect();
    let join = |part: fn(&(&str, String)) -> String| cells.iter().map(part).collect::<Vec<_>>().join(" | ");
    let (names, times) = (join(|(name, _)| (*name).to_owned()), join(|(_, time)| time.clone()));
    let commit = starts["commit"].as_str().expect("figures name the commit that was measured");
    let model = starts["model"].as_str().unwrap();
    format!(
        "\n| from the start of a process to its first token, kernels from | {names} |\n|{}\n| {model}, at commit {commit} | {times} |\n",
        "---|".repeat(cells.len() + 1)
    )
}

#[test]
fn tables_of_launches_and_starts() {
    let launch = |shape: &str, us: f64| json!({"kernel": "elementwise_add_f32", "family": "launch", "shape": shape, "p50_us": us});
    let report = json!({"results": [launch("n=256 step=record", 0.404), launch("n=256 step=run", 3.5)]});
    let peer = |name: &str, us: f64| json!({"peer": name, "op": "launch", "type": "f32", "shape": "step=run", "us": us});
    let peers = [json!({"results": [peer("slow", 9.0), peer("fast", 4.75)]})];
    let table = launch_table(&report, &peers);
    assert!(table.contains("| recording a sum, time of the host | 0.40 µs | - |\n"), "{table}");
    assert!(table.contains("| recording, submitting and running | 3.50 µs | 4.75 µs, fast |\n"), "{table}");
    assert_eq!(table.lines().count(), 1 + 2 + 2);
    assert_eq!(launch_table(&json!({"results": []}), &peers), "");
    let starts = json!({"commit": "0123abc", "model": "a model", "results": [{"kernels": "pack", "p50_ms": 611.7}, {"kernels": "source", "p50_ms": 9000.0}]});
    let expected = "\n| from the start of a process to its first token, kernels from | a pack, without NVRTC | source |\n|---|---|---|\n\
                    | a model, at commit 0123abc | 612 ms | 9000 ms |\n";
    assert_eq!(cold_start_table(&starts), expected);
}

/// Rows of the H200's second table: begin and end of the names of our kernels, shape, type and shape of peers' rows, what it is.
const GPU_ROWS: [(&str, &str, &str, [&str; 3], &str); 18] = [
    (
        "attention_prefill_",
        "16kv",
        "S=8192 H=16/4 D=128",
        ["attention", "16-bit", "S=8192 n=8192 H=16/4 D=128"],
        "causal attention, 8192 tokens, heads of 128",
    ),
    ("attention_prefill_", "16kv", "S=8192 H=16/4 D=256", ["attention", "16-bit", "S=8192 n=8192 H=16/4 D=256"], "the same, heads of 256"),
    ("attention_prefill_", "16kv", "S=8192 H=16/2 D=512", ["attention", "16-bit", "S=8192 n=8192 H=16/2 D=512"], "the same, heads of 512"),
    (
        "flash_attn_vec_",
        "16kv_dk128",
        "H=16/4 n=32768 nwg=66",
        ["attention", "16-bit", "S=1 n=32768 H=16/4 D=128"],
        "attention of one token, 32768 keys, heads of 128",
    ),
    (
        "flash_attn_vec_",
        "16kv_dk256",
        "H=16/4 n=32768 nwg=32",
        ["attention", "16-bit", "S=1 n=32768 H=16/4 D=256"],
        "the same, heads of 256",
    ),
    (
        "flash_attn_vec_",
        "16kv_dk512",
        "H=16/2 n=32768 nwg=32",
        ["attention", "16-bit", "S=1 n=32768 H=16/2 D=512"],
        "the same, heads of 512",
    ),
    ("rms_norm_f32", "", "rows=8192 dim=4096", ["rms_norm", "f32", "rows=8192 dim=4096"], "RMS norm of 8192 rows"),
    ("fused_residual_norm_f32", "", "rows=8192 dim=4096", ["", "", ""], "residual addition and RMS norm of 8192 rows"),
    ("elementwise_add_f32", "", "n=8192*4096", ["", "", ""], "sum of two f32 matrices"),
    ("elementwise_mul_bf16", "", "n=8192*4096", ["", "", ""], "product of two bf16 matrices"),
    ("rope_neox_f32", "", "seq_len=512 n_heads=32 head_dim=128", ["", "", ""], "rotation of 512 tokens"),
    ("rms_norm_f32", "", "rows=512 dim=4096", ["rms_norm", "f32", "rows=512 dim=4096"], "RMS norm of 512 rows"),
    ("fused_residual_norm_f32", "", "rows=512 dim=4096", ["", "", ""], "residual addition and RMS norm of 512 rows"),
    ("elementwise_add_f32", "", "n=16777217", ["", "", ""], "sum of two f32 vectors"),
    ("cast_f16_to_f32", "", "n=10055680", ["", "", ""], "cast of f16 to f32"),
    ("gather_f32", "", "n_rows=4096 row_len=1024 n_ids=4096", ["", "", ""], "gather of 4096 rows"),
    ("softmax_f32", "", "rows=8192 cols=1024", ["", "", ""], "softmax of 8192 rows"),
    ("softmax_sample_f32", "", "n=151936", ["", "", ""], "draw from a vocabulary of 151936"),
];

/// Our shortest row among the kernels whose names begin and end so.
fn fastest<'a>(report: &'a Value, begin: &str, end: &str, shape: &str) -> Option<&'a Value> {
    let rows = report["results"].as_array().unwrap().iter().filter(|r| r["error"].is_null() && r["shape"] == shape);
    let named = rows.filter(|r| r["kernel"].as_str().is_some_and(|k| k.starts_with(begin) && k.ends_with(end)));
    named.min_by(|a, b| number(a, "p50_us").total_cmp(&number(b, "p50_us")))
}

/// Name and microseconds of the fastest peer, of those measured beside ours and before.
fn fastest_peer(files: &[Value], [op, ty, shape]: [&str; 3]) -> Option<(String, f64)> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    let rows = files.iter().flat_map(|f| f["results"].as_array().unwrap());
    let same = rows.filter(|r| r["op"] == op && r["type"] == ty && words(r["shape"].as_str().unwrap()) == words(shape));
    let fastest = same.min_by(|a, b| number(a, "us").total_cmp(&number(b, "us")))?;
    Some((fastest["peer"].as_str().unwrap().to_owned(), number(fastest, "us")))
}

fn h200_table() -> String {
    let Some(report) = data("h200/kernels.json") else {
        return "Not measured yet: `bench/run --device cuda` measures the GPU of a machine and writes the table that stands here.\n".into();
    };
    let peers: Vec<Value> = ["peers/h200.json", "h200/peers.json"].into_iter().filter_map(data).collect();
    let limit = |name: &str, what: &str, scale: f64, unit: &str| {
        report["roofline"][name].as_f64().map(|rate| format!("{what} {:.0} {unit}", rate / scale))
    };
    let limits = [
        limit("copy_bytes_per_second", "copy", 1e9, "GB/s"),
        limit("read_bytes_per_second", "read", 1e9, "GB/s"),
        limit("f32_flops_per_second", "f32", 1e12, "TFLOP/s"),
        limit("matrix16_flops_per_second", "16-bit matrix unit", 1e12, "TFLOP/s"),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    let driver = [&report["device"]["driver"], &report["driver"]].into_iter().find_map(|d| d.as_str()).unwrap_or("unknown");
    let mut text = format!(
        "Measured on {}, driver {driver}, at commit {} by `{}`. Limits measured in the same run: {}; percentages are of what \
         they allow. Medians; all rows are in [bench/h200](bench/h200). Products of 512 rows and more are those of math mode fast, which expands \
         weights to f16 first. After the stroke the fastest of the peers in [bench/peers](bench/peers) and \
         bench/h200/peers.json, at our counts of bytes and operations.\n",
        report["device"]["name"].as_str().unwrap(),
        report["commit"].as_str().expect("figures name the commit that was measured"),
        report["command"].as_str().expect("figures name their command"),
        limits.join(", "),
    );
    let cell = |found: Option<&Value>, peer: [&str; 3], work: &str, scale: f64| {
        let Some(row) = found else { return "-".to_owned() };
        let rate = |us: f64| number(row, work) / us * 1e6 / scale;
        let share = row["roofline_pct"].as_f64().map_or_else(String::new, |p| format!(" ({p:.0} %)"));
        let peer = fastest_peer(&peers, peer).map_or_else(String::new, |(name, us)| format!(" / {:.0} {name}", rate(us)));
        format!("{:.0}{share}{peer}", rate(number(row, "p50_us")))
    };
    let mut products = String::new();
    for ty in ["q4_0", "q8_0", "q5_1", "iq4_nl", "q4_K", "q5_K", "q6_K", "f16", "bf16"] {
        let names = |m: u32| match (ty, m) {
            ("f16" | "bf16", 1) => vec![format!("dense_matvec_{ty}"), format!("hf2q_dense_gemv_{ty}")],
            ("f16" | "bf16", _) => ["hf2q_dense_mm_", "hf2q_mul_mm_tensor_v2_", "dense_gemm_"].map(|name| format!("{name}{ty}")).to_vec(),
            (_, 1) => vec![format!("kernel_mul_mv_{ty}")],
            (_, 2..=8) => vec![format!("kernel_mul_mv_{ty}"), format!("kernel_mul_mv_ext_{ty}")],
            _ => vec![format!("kernel_mul_mm_{ty}")],
        };
        let cells = [1, 4, 8, 512, 4096].map(|m| {
            let shape = format!("m={m} n=14336 k=4096");
            let found = names(m)
                .iter()
                .filter_map(|begin| fastest(&report, begin, "", &shape))
                .min_by(|a, b| number(a, "p50_us").total_cmp(&number(b, "p50_us")));
            let (work, scale) = if m <= 8 { ("bytes", 1e9) } else { ("flops", 1e12) };
            cell(found, ["matmul", ty, &shape], work, scale)
        });
        if cells.iter().any(|c| c != "-") {
            writeln!(products, "| {ty} | {} |", cells.join(" | ")).unwrap();
        }
    }
    if !products.is_empty() {
        text += "\n| weights, 14336 x 4096 | one row, GB/s | 4 rows, GB/s | 8 rows, GB/s | 512 rows, TFLOP/s | 4096 rows, TFLOP/s |\n|---|---|---|---|---|---|\n";
        text += &products;
    }
    text += "\n| kernel | shape | what | median | GB/s | TFLOP/s | of the roofline | fastest peer |\n|---|---|---|---|---|---|---|---|\n";
    for (begin, end, shape, peer, what) in GPU_ROWS {
        let Some(row) = fastest(&report, begin, end, shape) else { continue };
        let (name, alone) = (row["kernel"].as_str().unwrap(), number(row, "p50_us"));
        // Partitions of keys are not done before they are joined.
        let (join, dim) = (name.starts_with("flash_attn_vec_"), end.rsplit('k').next().unwrap_or_default());
        let us = if join {
            let merged = format!("rows=16 {}", shape.rsplit(' ').next().unwrap_or_default());
            let Some(join) = fastest(&report, &format!("flash_attn_vec_reduce_dk{dim}"), "", &merged) else { continue };
            alone + number(join, "p50_us")
        } else {
            alone
        };
        let share = row["roofline_pct"].as_f64().map_or_else(|| "in cache".into(), |p| format!("{:.0} %", p * alone / us));
        let peer = fastest_peer(&peers, peer).map_or_else(|| "-".into(), |(name, us)| format!("{us:.1} µs, {name}"));
        let (bytes, flops) = (number(row, "bytes") / us / 1e3, number(row, "flops") / us / 1e6);
        let name = if join { format!("`{name}` and its reduction") } else { format!("`{name}`") };
        writeln!(text, "| {name} | {shape} | {what} | {us:.1} µs | {bytes:.0} | {flops:.1} | {share} | {peer} |").unwrap();
    }
    let mut models = data("h200/model.json").map_or_else(String::new, |tests| model_table(&tests));
    if let Some(tests) = data("h200/model-8b.json") {
        model_row(&mut models, "the shapes of Llama 8B, random weights", &tests);
    }
    let starts = data("h200/cold-start.json").map_or_else(String::new, |starts| cold_start_table(&starts));
    text + &models + &launch_table(&report, &peers) + &starts
}

#[test]
fn the_readme_has_the_figures() {
    let path = root().join("README.md");
    let before = std::fs::read_to_string(&path).unwrap();
    let mut readme = before.clone();
    for (folder, table) in [("cpu", cpu_table()), ("h200", h200_table())] {
        let [start, end] = ["start", "end"].map(|side| format!("<!-- figures of bench/{folder}: {side} -->\n"));
        let from = readme.find(&start).expect("README.md has the start of the table") + start.len();
        let to = readme.find(&end).expect("README.md has the end of the table");
        readme.replace_range(from..to, &table);
    }
    if std::env::var_os("KERNELRY_WRITE_README").is_some() {
        std::fs::write(&path, readme).unwrap();
        return;
    }
    assert_eq!(before, readme, "run `KERNELRY_WRITE_README=1 cargo test -p kernelry-cli --test figures`");
}

/// A measured file says where it comes from, and was not measured by a debug build.
#[test]
fn figures_say_where_they_come_from() {
    for name in ["cpu/kernels.json", "h200/kernels.json"] {
        let Some(report) = data(name) else { continue };
        assert_eq!(report["build"], "release", "{name}");
        for field in ["commit", "command", "version"] {
            assert!(report[field].as_str().is_some_and(|v| !v.is_empty()), "{name}: {field}: {}", report[field]);
        }
        for row in report["results"].as_array().unwrap() {
            assert!(kernelry::catalogue::find(row["kernel"].as_str().unwrap()).is_some(), "{} is no kernel", row["kernel"]);
            let measured = row["error"].is_string() || number(row, "p50_us") > 0.0 && number(row, "bytes") > 0.0;
            assert!(measured, "{name}: {row}");
        }
    }
    for peers in ["peers/cpu.json", "peers/h200.json", "h200/peers.json"] {
        let Some(peers) = data(peers) else { continue };
        for field in ["device", "date", "command"] {
            assert!(peers[field].as_str().is_some_and(|v| !v.is_empty()), "{field}: {}", peers[field]);
        }
        assert!(peers["results"].as_array().unwrap().iter().all(|row| number(row, "us") > 0.0 && row["peer"].is_string()));
    }
    for name in ["cpu/cold-start.json", "h200/cold-start.json"] {
        let Some(starts) = data(name) else { continue };
        assert_eq!(starts["build"], "release", "{name}");
        for field in ["commit", "command", "version", "process", "model"] {
            assert!(starts[field].as_str().is_some_and(|v| !v.is_empty()), "{name}: {field}: {}", starts[field]);
        }
        assert!(starts["results"].as_array().unwrap().iter().all(|row| number(row, "p50_ms") > 0.0), "{name}");
    }
    assert!(data("cpu/kernels.json").is_none_or(|report| report["threads"].as_u64().is_some_and(|n| n > 0)));
}
