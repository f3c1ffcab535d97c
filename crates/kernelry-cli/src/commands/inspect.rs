//! `kernelry inspect`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kernelry::FileMap;
use kernelry::gguf::{Array, GgufFile, Limits, Value};
use kernelry::safetensors::SafeTensors;
use serde::Serialize;

use crate::failure::{CliResult, Failure};
use crate::output::{Output, human_bytes};

/// Show the metadata and tensors of a GGUF or safetensors file, or of a folder with a safetensors model
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file or folder
    file: PathBuf,
    /// Only tensors whose names match, with `*` for any text and `?` for one character
    #[arg(long, value_name = "GLOB")]
    tensor: Option<String>,
    /// Print JSON, with arrays in full
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    file: PathBuf,
    format: &'static str,
    version: Option<u32>,
    file_bytes: usize,
    parameters: u64,
    types: BTreeMap<String, TypeCount>,
    metadata: serde_json::Map<String, serde_json::Value>,
    tensors: Vec<Tensor>,
    /// Metadata for people: key, type, value cut short.
    #[serde(skip)]
    lines: Vec<[String; 3]>,
}

#[derive(Default, Serialize)]
struct TypeCount {
    tensors: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    r#type: String,
    shape: Vec<usize>,
    /// Which file of a model in several, from 0.
    shard: usize,
    /// First byte in that file.
    offset: usize,
    bytes: usize,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let mut report = read(&args.file)?;
    if let Some(pattern) = &args.tensor {
        report.tensors.retain(|t| crate::glob::matches(pattern, &t.name));
        if report.tensors.is_empty() {
            return Err(Failure::usage(format!("no tensor of {} matches `{pattern}`", args.file.display())));
        }
    }
    if args.json {
        return out.json(&report);
    }
    let version = report.version.map_or_else(String::new, |v| format!(" version {v}"));
    let size = human_bytes(report.file_bytes as u64);
    out.line(format!("{}: {}{version}, {size}", out.bold(&args.file.display().to_string()), report.format))?;
    if args.tensor.is_none() {
        out.line("")?;
        out.line(out.bold(&format!("Metadata ({})", report.lines.len())))?;
        let rows = report.lines.iter().map(|[key, ty, value]| vec![format!("  {key}"), ty.clone(), value.clone()]);
        out.table(&["  key", "type", "value"], rows)?;
    }
    out.line("")?;
    out.line(out.bold(&format!("Tensors ({})", report.tensors.len())))?;
    let rows = report.tensors.iter().map(|t| {
        let shape = format!("{:?}", t.shape);
        vec![format!("  {}", t.name), t.r#type.clone(), shape, human_bytes(t.bytes as u64)]
    });
    out.table(&["  name", "type", "shape", "size"], rows)?;
    out.line("")?;
    let types: Vec<String> = report.types.iter().map(|(ty, c)| format!("{ty} x {} ({})", c.tensors, human_bytes(c.bytes))).collect();
    out.line(format!("{} values: {}", report.parameters, types.join(", ")))
}

fn read(path: &Path) -> CliResult<Report> {
    let named = |extension: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
    let mut report = if path.is_dir() || named("json") {
        safetensors(path, &SafeTensors::open(path).map_err(|e| Failure::file(path, &e))?)
    } else {
        let map = FileMap::open(path)?;
        if map.as_bytes().starts_with(b"GGUF") || named("gguf") {
            gguf(path, map)?
        } else {
            let kind = if named("safetensors") { "a safetensors file" } else { "a GGUF or safetensors file" };
            let broken = |e| Failure::runtime(format!("{}: not {kind}: {e}", path.display()));
            safetensors(path, &SafeTensors::from_map(map).map_err(broken)?)
        }
    };
    for tensor in &report.tensors {
        let count = report.types.entry(tensor.r#type.clone()).or_default();
        count.tensors += 1;
        count.bytes += tensor.bytes as u64;
        report.parameters += tensor.shape.iter().map(|&d| d as u64).product::<u64>();
    }
    Ok(report)
}

fn gguf(path: &Path, map: FileMap) -> CliResult<Report> {
    let file_bytes = map.as_bytes().len();
    let file = GgufFile::from_map(map, &Limits::default()).map_err(|e| Failure::file(path, &e))?;
    let tensors = file.tensors().iter().map(|t| Tensor {
        name: t.name.clone(),
        r#type: t.ty.to_string(),
        shape: t.shape.clone(),
        shard: 0,
        offset: t.range.start,
        bytes: t.bytes(),
    });
    Ok(Report {
        file: path.to_owned(),
        format: "gguf",
        version: Some(file.version()),
        file_bytes,
        parameters: 0,
        types: BTreeMap::new(),
        metadata: file.metadata().map(|(key, value)| (key.to_owned(), value_json(value))).collect(),
        tensors: tensors.collect(),
        lines: file.metadata().map(|(key, value)| [key.to_owned(), type_name(value), value.to_string()]).collect(),
    })
}

fn safetensors(path: &Path, file: &SafeTensors) -> Report {
    let mut tensors: Vec<Tensor> = file
        .tensors()
        .iter()
        .map(|t| Tensor {
            name: t.name.clone(),
            r#type: t.ty.name().to_owned(),
            shape: t.shape.clone(),
            shard: t.shard,
            offset: t.range.start,
            bytes: t.range.len(),
        })
        .collect();
    tensors.sort_by_key(|t| (t.shard, t.offset));
    let pairs = file.metadata().iter();
    Report {
        file: path.to_owned(),
        format: "safetensors",
        version: None,
        file_bytes: file.mappings().iter().map(|m| m.as_bytes().len()).sum(),
        parameters: 0,
        types: BTreeMap::new(),
        metadata: pairs.clone().map(|(k, v)| (k.clone(), v.clone().into())).collect(),
        tensors,
        lines: pairs.map(|(k, v)| [k.clone(), "string".into(), Value::String(v.clone()).to_string()]).collect(),
    }
}

fn type_name(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("{}[{}]", array.element_type().name(), array.len()),
        other => other.ty().name().to_owned(),
    }
}

/// Floats that JSON cannot hold become null.
fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(v) => (*v).into(),
        Value::I8(v) => (*v).into(),
        Value::U16(v) => (*v).into(),
        Value::I16(v) => (*v).into(),
        Value::U32(v) => (*v).into(),
        Value::I32(v) => (*v).into(),
        Value::U64(v) => (*v).into(),
        Value::I64(v) => (*v).into(),
        // The shortest decimal that is this f32, as people wrote it: 0.1 and not 0.10000000149011612.
        Value::F32(v) => v.to_string().parse::<f64>().unwrap_or(f64::from(*v)).into(),
        Value::F64(v) => (*v).into(),
        Value::Bool(v) => (*v).into(),
        Value::String(v) => v.clone().into(),
        Value::Array(v) => array_json(v),
    }
}

fn array_json(array: &Array) -> serde_json::Value {
    (0..array.len()).filter_map(|i| array.get(i)).map(|v| value_json(&v)).collect()
}
