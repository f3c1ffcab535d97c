//! `kernelry quantize`: the weights of a GGUF file in another block format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kernelry::gguf::{GgufFile, GgufWriter, TensorInfo, Value};
use kernelry::quant::{GgmlType, dequantize, quantize};

use super::file_type::{self, Target, choose, layer_of};
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
    #[arg(long = "type", short, value_name = "T", value_parser = file_type::parse)]
    target: Target,
    /// Show what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// Values that are decoded and encoded at once: bounds the memory whatever the tensor.
const CHUNK: usize = 1 << 24;

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    if same_file(&args.input, &args.output) {
        return Err(Failure::usage(format!("{}: input and output are the same file", args.output.display())));
    }
    let file = GgufFile::open(&args.input).map_err(|e| Failure::file(&args.input, &e))?;
    let layers = layer_count(&file);
    let plan: Vec<GgmlType> = file.tensors().iter().map(|t| choose(&t.name, &t.shape, t.ty, args.target, layers)).collect();
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
