//! Figures beside others: those of peers, or of an earlier run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::row::{Entry, Row, shape_text};
use crate::failure::{CliResult, Failure};
use crate::output::Output;

/// What peers reach on the device that is named in each, measured once and kept as data.
const PEERS: [&str; 2] = [include_str!("../../../../../bench/peers/cpu.json"), include_str!("../../../../../bench/peers/h200.json")];

/// What stands before the rows of a file of peers.
#[derive(Debug, Deserialize)]
pub(super) struct PeerHead {
    device: String,
    date: String,
    versions: BTreeMap<String, String>,
}

/// A measurement of a peer, as in the files under `bench/peers`.
#[derive(Debug, Deserialize)]
pub(super) struct PeerRow {
    /// Library, and what of it.
    peer: String,
    op: String,
    /// Type of the weights, of the keys, or of the rows.
    #[serde(rename = "type")]
    ty: String,
    /// Words such as `m=1`, in any order.
    shape: String,
    us: f64,
}

/// What figures are compared with.
#[derive(Debug)]
pub(super) enum Other {
    Peers { head: String, rows: Vec<(Work, PeerRow)> },
    Run { head: String, rows: Vec<Row> },
}

/// What a launch computes, as far as it decides whether two of them may be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Work {
    op: String,
    ty: String,
    shape: BTreeMap<String, String>,
}

fn words(shape: &str) -> BTreeMap<String, String> {
    shape.split_whitespace().filter_map(|w| w.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The type that a kernel's name has after `prefix`.
fn type_after(name: &str, prefix: &str) -> Option<String> {
    let rest = name.strip_prefix(prefix)?;
    let types = ["q4_0", "q8_0", "q5_1", "iq4_nl", "q4_K", "q5_K", "q6_K", "bf16", "f16", "f32"];
    types.into_iter().find(|t| rest.strip_prefix(t).is_some_and(|end| !end.starts_with(|c: char| c.is_ascii_digit()))).map(str::to_owned)
}

/// How the names of products begin, before the type of their weights.
const PRODUCTS: [&str; 8] = [
    "kernel_mul_mv_ext_",
    "kernel_mul_mv_",
    "kernel_mul_mm_",
    "hf2q_mul_mm_tensor_v2_",
    "hf2q_dense_mm_",
    "hf2q_dense_gemv_",
    "dense_matvec_",
    "dense_gemm_",
];

/// What one of our kernels computes at a shape, if there are peers of it.
fn work_of(kernel: &str, shape: &str) -> Option<Work> {
    let mut shape = words(shape);
    if let Some(step) = shape.remove("step") {
        // What a launch costs does not depend on what little it does.
        return Some(Work { op: "launch".into(), ty: "f32".into(), shape: [("step".into(), step)].into() });
    }
    let keys = if kernel.contains("f32") || kernel.starts_with("sdpa") && !kernel.contains("bf16") { "f32" } else { "16-bit" };
    let (op, ty) = if let Some(ty) = PRODUCTS.iter().find_map(|prefix| type_after(kernel, prefix)) {
        ("matmul", ty)
    } else if kernel.starts_with("attention_") || kernel.starts_with("sdpa") {
        // One token unless said otherwise; a prompt attends itself.
        let queries = shape.remove("Sq").or(shape.remove("S")).unwrap_or_else(|| "1".into());
        shape.entry("n".into()).or_insert_with(|| queries.clone());
        shape.insert("S".into(), queries);
        ("attention", keys.to_owned())
    } else if let Some(ty) = type_after(kernel, "rms_norm_") {
        ("rms_norm", ty)
    } else {
        return None;
    };
    Some(Work { op: op.to_owned(), ty, shape })
}

/// Attention of a token over partitions of its keys: what it computes, and its time with that of the kernel that joins the partitions.
fn joined(ours: &Row, entries: &[Entry]) -> Option<(Work, f64)> {
    let (before, dim) = ours.kernel.strip_prefix("flash_attn_vec")?.rsplit_once("_dk")?;
    let mut shape = words(&ours.shape);
    let partitions = shape.remove("nwg")?;
    let heads = shape.get("H")?.split('/').next()?.to_owned();
    let (kernel, rows) = (format!("flash_attn_vec_reduce_dk{dim}"), format!("rows={heads} nwg={partitions}"));
    let join = entries.iter().filter_map(Entry::measured).find(|r| r.kernel == kernel && r.shape == rows)?;
    shape.extend([("S".into(), "1".into()), ("D".into(), dim.into())]);
    let ty = if before.is_empty() { "f32" } else { "16-bit" };
    Some((Work { op: "attention".into(), ty: ty.into(), shape }, ours.p50_us + join.p50_us))
}

impl Other {
    /// Reads a file of peers or of `--json`; without a path, finds the peers measured on this device.
    ///
    /// # Errors
    /// What is wrong with the file, or that there are no peers for the device.
    pub(super) fn open(path: Option<&Path>, device: &str, backend: &str) -> CliResult<Other> {
        let Some(path) = path else {
            let peers = PEERS.iter().filter_map(|text| Other::parse(text).ok().zip(peer_device(text)));
            let found = peers.into_iter().find(|(_, name)| name == device || (backend == "cpu" && name.starts_with("CPU")));
            return found.map(|(other, _)| other).ok_or_else(|| {
                Failure::usage(format!("--compare: no peers were measured on {device}"))
                    .hint("name a file: of peers, such as bench/peers/h200.json, or an earlier output of `kernelry bench --json`")
            });
        };
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::runtime(format!("{}: {e}", path.display())).hint("--compare takes the word after it as FILE: kernels go before it")
        })?;
        Other::parse(&text).map_err(|reason| {
            Failure::runtime(format!("{}: {reason}", path.display()))
                .hint("expected an output of `kernelry bench --json`, or figures of peers in the form of bench/peers")
        })
    }

    fn parse(text: &str) -> Result<Other, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let Some(rows) = value.get("results").and_then(Value::as_array) else {
            return Err("got no list `results`".into());
        };
        if rows.is_empty() {
            return Err("got no rows in `results`".into());
        }
        if rows.iter().all(|r| r.get("peer").is_some()) {
            let head = PeerHead::deserialize(&value).map_err(|e| e.to_string())?;
            let versions: Vec<String> = head.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
            let rows = rows.iter().enumerate().map(|(i, row)| {
                let row = PeerRow::deserialize(row).map_err(|e| format!("results[{i}]: {e}"))?;
                if !(row.us.is_finite() && row.us > 0.0) {
                    return Err(format!("results[{i}]: us: got {}, expected more than 0", row.us));
                }
                Ok((Work { op: row.op.clone(), ty: row.ty.clone(), shape: words(&row.shape) }, row))
            });
            let rows = rows.collect::<Result<_, _>>()?;
            return Ok(Other::Peers { head: format!("{}, {}, {}", head.device, head.date, versions.join(", ")), rows });
        }
        let rows = rows.iter().filter(|r| r.get("error").is_none()).enumerate();
        let rows = rows.map(|(i, row)| Row::deserialize(row).map_err(|e| format!("results[{i}]: {e}"))).collect::<Result<_, _>>()?;
        let word = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or("unknown").to_owned();
        let device = value.pointer("/device/name").and_then(Value::as_str).unwrap_or("unknown");
        Ok(Other::Run { head: format!("{device}, commit {}", word("commit")), rows })
    }

    /// Prints each of our figures that has a counterpart, with the quotient of the times: above 1 where ours is the shorter one.
    pub(super) fn print(&self, entries: &[Entry], out: &mut Output) -> CliResult {
        let pairs = self.pairs(entries);
        let (head, names) = match self {
            Other::Peers { head, .. } => (head, ["peer", "peer µs", "ours µs", "peer / ours"]),
            Other::Run { head, .. } => (head, ["", "old µs", "new µs", "old / new"]),
        };
        out.line("")?;
        out.line(format!("{} {head}", out.bold("Compared with")))?;
        if pairs.is_empty() {
            return out.line("No shape that was measured is in there.");
        }
        let [peer, old, new, ratio] = names;
        let table = pairs.iter().map(|p| {
            let shape = shape_text(&p.ours.shape, p.ours.math);
            let number = |us: f64| format!("{us:.2}");
            vec![
                format!("{}{}", p.ours.kernel, p.with),
                shape,
                p.peer.to_owned(),
                number(p.other_us),
                number(p.us),
                number(p.other_us / p.us),
            ]
        });
        out.table(&["kernel", "shape", peer, old, new, ratio], table)
    }

    fn pairs<'a>(&'a self, entries: &'a [Entry]) -> Vec<Pair<'a>> {
        let mut pairs = Vec::new();
        for ours in entries.iter().filter_map(Entry::measured) {
            match self {
                Other::Run { rows, .. } => {
                    let same = |r: &&Row| r.kernel == ours.kernel && r.shape == ours.shape && r.math == ours.math;
                    let pair = |r: &Row| Pair { ours, with: "", us: ours.p50_us, peer: "", other_us: r.p50_us };
                    pairs.extend(rows.iter().find(same).map(pair));
                }
                Other::Peers { rows, .. } => {
                    let alone = work_of(&ours.kernel, &ours.shape).map(|work| (work, ours.p50_us, ""));
                    let found = alone.or_else(|| joined(ours, entries).map(|(work, us)| (work, us, " + reduce")));
                    let Some((work, us, with)) = found else { continue };
                    let peers = rows.iter().filter(|(w, _)| *w == work);
                    pairs.extend(peers.map(|(_, r)| Pair { ours, with, us, peer: &r.peer, other_us: r.us }));
                }
            }
        }
        pairs
    }
}

/// One of our figures and its counterpart, in microseconds.
struct Pair<'a> {
    ours: &'a Row,
    /// What is in the time besides the row's kernel.
    with: &'static str,
    us: f64,
    peer: &'a str,
    other_us: f64,
}

fn peer_device(text: &str) -> Option<String> {
    serde_json::from_str::<PeerHead>(text).ok().map(|head| head.device)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::{Other, PEERS, words, work_of};

    fn same(kernel: &str, shape: &str, op: &str, ty: &str, peer: &str) {
        let work = work_of(kernel, shape).unwrap();
        assert_eq!((work.op.as_str(), work.ty.as_str(), &work.shape), (op, ty, &words(peer)), "{kernel} {shape}");
    }

    #[test]
    fn kernels_match_what_they_compute() {
        let shape = "m=4 n=14336 k=4096";
        same("kernel_mul_mv_ext_q4_0_f32_r1_3", shape, "matmul", "q4_0", shape);
        same("kernel_mul_mm_q4_K_tensor_v2_f32", shape, "matmul", "q4_K", "k=4096 n=14336 m=4");
        same("hf2q_dense_mm_bf16_f32_tensor", shape, "matmul", "bf16", shape);
        same("hf2q_dense_gemv_bf16_f32_4", shape, "matmul", "bf16", shape);
        same("dense_gemm_f16", shape, "matmul", "f16", shape);
        same("dense_matvec_bf16w_f32io", shape, "matmul", "bf16", shape);
        same("attention_decode_f16kv", "H=16/4 D=128 n=32768", "attention", "16-bit", "S=1 n=32768 H=16/4 D=128");
        same("attention_prefill_f32", "S=512 H=16/4 D=64", "attention", "f32", "S=512 n=512 H=16/4 D=64");
        same("sdpa_bf16", "H=32/8 D=128 Sq=512 n=4096", "attention", "16-bit", "S=512 n=4096 H=32/8 D=128");
        same("sdpa_decode", "H=32/8 D=128 n=4096", "attention", "f32", "S=1 n=4096 H=32/8 D=128");
        same("elementwise_add_f32", "n=256 step=run", "launch", "f32", "step=run");
        same("rms_norm_f32_v2", "rows=8192 dim=4096", "rms_norm", "f32", "rows=8192 dim=4096");
    }

    #[test]
    fn what_no_peer_computes_matches_nothing() {
        for kernel in ["rms_norm_mul_f32", "rms_norm_no_scale_f32", "kernel_mul_mm_id_q4_0_f32", "softmax_f32", "flash_attn_vec_f16_dk128"]
        {
            assert!(work_of(kernel, "m=1 n=2").is_none(), "{kernel}");
        }
    }

    #[test]
    fn the_files_of_peers_are_sound() {
        for text in PEERS {
            let Other::Peers { rows, .. } = Other::parse(text).unwrap() else { panic!("not peers") };
            assert!(rows.len() > 20);
            for (i, (work, row)) in rows.iter().enumerate() {
                assert!(
                    ["matmul", "attention", "rms_norm", "copy", "read", "experts", "delta_net", "launch"].contains(&work.op.as_str()),
                    "{work:?}"
                );
                assert_eq!(work.shape.len(), row.shape.split_whitespace().count(), "{row:?}");
                assert!(!rows[..i].iter().any(|(w, r)| w == work && r.peer == row.peer), "twice: {row:?}");
            }
        }
    }

    #[test]
    fn other_files_are_refused_with_a_reason() {
        let reason = |text: &str| Other::parse(text).unwrap_err();
        assert!(reason("{").contains("EOF"));
        assert_eq!(reason("[]"), "got no list `results`");
        assert_eq!(reason("{\"results\": []}"), "got no rows in `results`");
        assert!(reason("{\"results\": [{\"kernel\": \"x\"}]}").starts_with("results[0]: missing field"));
        let head = "\"device\": \"d\", \"date\": \"2026-11-23\", \"versions\": {}";
        let row = "{\"peer\": \"p\", \"op\": \"matmul\", \"type\": \"f16\", \"shape\": \"m=1\", \"us\": 0}";
        assert_eq!(reason(&format!("{{{head}, \"results\": [{row}]}}")), "results[0]: us: got 0, expected more than 0");
    }
}
