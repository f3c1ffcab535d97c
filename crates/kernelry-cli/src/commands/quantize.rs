//! `kernelry quantize`: the weights of a GGUF file in another block format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kernelry::gguf::{GgufFile, GgufWriter, TensorInfo, Value};
use kernelry::quant::{GgmlType, dequantize, quantize};

use crate::failure::{CliResult, Failure};
use crate::interrupt;
use crate::output::{Output, human_bytes};
use crate::progress;

/// Write a GGUF file with its weights quantised
///
/// Vectors, norms and expert routers stay as they are. Rows that are no multiple of 256 fall back from Q4_K to Q5_0, from Q5_K to Q5_1
/// and from Q6_K to Q8_0, and rows that are no multiple of 32 to F16. With the K types the embedding and the output matrix are Q6_K;
/// the M mixes also keep the value and down projections of every third layer, and of the first and last ones, at Q6_K.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GGUF file to read
    input: PathBuf,
    /// GGUF file to write
    output: PathBuf,
    /// F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K, Q5_K, Q6_K, or the mixes Q4_K_M and Q5_K_M
    #[arg(long = "type", short, value_name = "T", value_parser = target)]
    target: Target,
    /// Show what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// What `--type` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    name: &'static str,
    ty: GgmlType,
    /// More bits for the tensors that suffer most.
    mix: bool,
    /// The number that `general.file_type` has for it.
    file_type: u32,
}

const fn row(name: &'static str, ty: GgmlType, mix: bool, file_type: u32) -> Target {
    Target { name, ty, mix, file_type }
}

const TARGETS: &[Target] = &[
    row("F32", GgmlType::F32, false, 0),
    row("F16", GgmlType::F16, false, 1),
    row("BF16", GgmlType::BF16, false, 32),
    row("Q4_0", GgmlType::Q4_0, false, 2),
    row("Q4_1", GgmlType::Q4_1, false, 3),
    row("Q5_0", GgmlType::Q5_0, false, 8),
    row("Q5_1", GgmlType::Q5_1, false, 9),
    row("Q8_0", GgmlType::Q8_0, false, 7),
    row("IQ4_NL", GgmlType::IQ4_NL, false, 25),
    row("Q4_K", GgmlType::Q4_K, false, 14),
    row("Q4_K_S", GgmlType::Q4_K, false, 14),
    row("Q4_K_M", GgmlType::Q4_K, true, 15),
    row("Q5_K", GgmlType::Q5_K, false, 16),
    row("Q5_K_S", GgmlType::Q5_K, false, 16),
    row("Q5_K_M", GgmlType::Q5_K, true, 17),
    row("Q6_K", GgmlType::Q6_K, false, 18),
];

fn target(text: &str) -> Result<Target, String> {
    TARGETS.iter().copied().find(|t| t.name.eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        format!("expected one of: {}", names.join(", "))
    })
}

/// Values that are decoded and encoded at once: bounds the memory whatever the tensor.
const CHUNK: usize = 1 << 24;

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    if same_file(&args.input, &args.output) {
        return Err(Failure::usage(format!("{}: input and output are the same file", args.output.display())));
    }
    let file = GgufFile::open(&args.input).map_err(|e| Failure::file(&args.input, &e))?;
    let layers = layer_count(&file);
    let plan: Vec<GgmlType> = file.tensors().iter().map(|t| choose(t, args.target, layers)).collect();
    for (tensor, &ty) in file.tensors().iter().zip(&plan) {
        if ty != tensor.ty && !tensor.ty.can_dequantize() {
            let what = format!("tensor `{}` has type {}, which cannot be decoded", tensor.name, tensor.ty);
            return Err(Failure::runtime(format!("{}: {what}", args.input.display())));
        }
    }
    if args.dry_run {
        let rows = file.tensors().iter().zip(&plan).map(|(t, ty)| {
            let ty = if *ty == t.ty { "as it is".to_owned() } else { ty.to_string() };
            vec![t.name.clone(), format!("{:?}", t.shape), t.ty.to_string(), ty]
        });
        return out.table(&["tensor", "shape", "from", "to"], rows);
    }
    let lossy = file.tensors().iter().zip(&plan).filter(|(t, ty)| t.ty.is_quantized() && **ty != t.ty).count();
    if lossy > 0 {
        eprintln!("note: {lossy} tensors are quantised already; quantising them again loses more than quantising the original would");
    }
    interrupt::listen();
    let started = Instant::now();
    let written = write(args, &file, &plan)?;
    let (before, after): (usize, usize) = (file.tensors().iter().map(TensorInfo::bytes).sum(), written);
    let values: usize = file.tensors().iter().map(TensorInfo::elements).sum();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    plan.iter().for_each(|ty| *counts.entry(ty.name()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(ty, n)| format!("{ty} x {n}")).collect();
    out.line(format!(
        "{}: {} to {}, {:.2} bits a value ({}), {:.1} s",
        args.output.display(),
        human_bytes(before as u64),
        human_bytes(after as u64),
        after as f64 * 8.0 / values.max(1) as f64,
        counts.join(", "),
        started.elapsed().as_secs_f64()
    ))
}

/// Writes the file, and gives the bytes of its tensors.
fn write(args: &Args, file: &GgufFile, plan: &[GgmlType]) -> CliResult<usize> {
    let mut writer = if file.value("general.alignment").is_some() {
        GgufWriter::with_alignment(u32::try_from(file.alignment()).unwrap_or(32))?
    } else {
        GgufWriter::new()
    };
    let quantized = args.target.ty.is_quantized();
    for (key, value) in file.metadata() {
        match key {
            "general.alignment" | "general.file_type" | "general.quantization_version" => {}
            _ => {
                writer.set(key, value.clone())?;
            }
        }
    }
    writer.set("general.file_type", Value::U32(args.target.file_type))?;
    if quantized {
        writer.set("general.quantization_version", Value::U32(2))?;
    }
    for (tensor, &ty) in file.tensors().iter().zip(plan) {
        writer.tensor(&tensor.name, ty, &tensor.shape)?;
    }
    let bar = progress::bytes(file.tensors().iter().map(|t| t.bytes() as u64).sum());
    let mut stream = writer.create(&args.output)?;
    let mut written = 0;
    for (tensor, &ty) in file.tensors().iter().zip(plan) {
        interrupt::check()?;
        bar.set_message(tensor.name.clone());
        let failed = |e: kernelry::Error| Failure::runtime(format!("{}: tensor `{}`: {e}", args.input.display(), tensor.name));
        let bytes = file.tensor_bytes(&tensor.name)?;
        if ty == tensor.ty {
            stream.write(&tensor.name, bytes)?;
            written += bytes.len();
            bar.inc(bytes.len() as u64);
            continue;
        }
        // Whole rows, so that no block is cut.
        let cols = tensor.shape.last().copied().unwrap_or(1).max(1);
        let rows = (CHUNK / cols).max(1);
        let row_bytes = tensor.ty.row_bytes(cols).map_err(failed)?;
        let mut values = Vec::new();
        for chunk in bytes.chunks((rows * row_bytes).max(1)) {
            interrupt::check()?;
            values.resize(chunk.len() / row_bytes.max(1) * cols, 0.0);
            dequantize(tensor.ty, chunk, &mut values).map_err(failed)?;
            let blocks = quantize(ty, &values).map_err(failed)?;
            stream.write(&tensor.name, &blocks)?;
            written += blocks.len();
            bar.inc(chunk.len() as u64);
        }
    }
    stream.finish()?;
    bar.finish_and_clear();
    Ok(written)
}

/// The type that a tensor gets.
fn choose(tensor: &TensorInfo, target: Target, layers: usize) -> GgmlType {
    if !is_weight(tensor) {
        return tensor.ty;
    }
    let k = tensor.shape.last().copied().unwrap_or(1);
    let k_type = target.ty.block_len() == 256;
    let outer = matches!(tensor.name.as_str(), "output.weight" | "token_embd.weight");
    let ty = if k_type && (outer || (target.mix && deserves_more(&tensor.name, layers))) { GgmlType::Q6_K } else { target.ty };
    let ty = match ty {
        GgmlType::Q4_K if !k.is_multiple_of(256) => GgmlType::Q5_0,
        GgmlType::Q5_K if !k.is_multiple_of(256) => GgmlType::Q5_1,
        GgmlType::Q6_K if !k.is_multiple_of(256) => GgmlType::Q8_0,
        other => other,
    };
    if k.is_multiple_of(ty.block_len()) { ty } else { GgmlType::F16 }
}

/// Matrices that are multiplied with activations, and embeddings. Not norms, biases, routers, convolutions and position tables.
fn is_weight(tensor: &TensorInfo) -> bool {
    let name = &tensor.name;
    let kept = ["_norm", "ffn_gate_inp", "ssm_conv1d", "position_embd", "token_types", "attn_rel_b", "rope_"];
    tensor.shape.len() >= 2 && name.ends_with(".weight") && !kept.iter().any(|k| name.contains(k))
}

/// Whether the mixes spend more bits on it: value and down projections of the first and last eighth of the layers, and of every
/// third layer between.
fn deserves_more(name: &str, layers: usize) -> bool {
    let sensitive = ["attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight"].iter().any(|n| name.ends_with(n));
    let Some(layer) = layer_of(name).filter(|_| sensitive) else { return false };
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The number in `blk.7.attn_v.weight`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

fn layer_count(file: &GgufFile) -> usize {
    file.tensors().iter().filter_map(|t| layer_of(&t.name)).max().map_or(0, |last| last.saturating_add(1))
}

/// Whether two paths name one file, through links too.
fn same_file(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b || same_inode(&a, &b),
        _ => false,
    }
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    id(a).is_some() && id(a) == id(b)
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_types() {
        assert_eq!(target("q4_k_m").map(|t| (t.ty, t.mix, t.file_type)), Ok((GgmlType::Q4_K, true, 15)));
        assert!(target("Q3_K").is_err_and(|e| e.contains("Q4_K_M")));
    }

    #[test]
    fn sensitive_layers_of_a_mix() {
        let more: Vec<usize> = (0..32).filter(|l| deserves_more(&format!("blk.{l}.ffn_down.weight"), 32)).collect();
        assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert!(!deserves_more("blk.0.ffn_up.weight", 32) && !deserves_more("output.weight", 32));
    }
}
