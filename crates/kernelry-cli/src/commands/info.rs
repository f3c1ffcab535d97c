//! `kernelry info`.

use std::collections::BTreeMap;

use kernelry::backend::Support;
use kernelry::bench::{BenchShape, shapes};
use kernelry::catalogue::{Access, Geometry, Kernel};
use kernelry::registry::ConstantValue;
use kernelry::{DType, Registry};
use serde::Serialize;

use super::list::Backends;
use crate::failure::{CliResult, Failure};
use crate::output::{Output, human_bytes};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel name
    name: String,
    /// Print the kernel text, as compilers get it after their prelude
    #[arg(long, conflicts_with = "json")]
    text: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    name: &'static str,
    family: &'static str,
    summary: &'static str,
    extra: bool,
    bindings: Vec<BindingInfo>,
    params: ParamsInfo,
    constants: Vec<ConstantInfo>,
    class: &'static str,
    tolerance: &'static str,
    fast_math: bool,
    tested: bool,
    examples: Vec<Example>,
    backends: BTreeMap<&'static str, Support>,
}

#[derive(Serialize)]
struct BindingInfo {
    name: &'static str,
    dtype: DType,
    shape: Vec<&'static str>,
    access: Access,
    optional: bool,
    aliases: Vec<&'static str>,
}

#[derive(Serialize)]
struct ParamsInfo {
    name: &'static str,
    bytes: usize,
    c_declaration: String,
    fields: Vec<FieldInfo>,
}

#[derive(Serialize)]
struct FieldInfo {
    name: &'static str,
    r#type: &'static str,
    offset: usize,
    doc: &'static str,
}

#[derive(Serialize)]
struct ConstantInfo {
    slot: u32,
    name: &'static str,
    r#type: String,
    default: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Example {
    shape: String,
    bytes: f64,
    flops: f64,
    geometry: Option<Geometry>,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let kernel = find(&args.name)?;
    if args.text {
        let Some(text) = kernel.gpu_text() else {
            return Err(Failure::runtime(format!("kernel `{}` has no text: no GPU backend has it", kernel.name())));
        };
        return out.write(text.as_bytes());
    }
    let info = describe(kernel);
    if args.json {
        return out.json(&info);
    }
    out.line(format!("{}  {}", out.bold(info.name), out.dim(info.family)))?;
    if !info.summary.is_empty() {
        out.line(format!("  {}", info.summary))?;
    }
    section(out, "Bindings")?;
    let bindings: Vec<Vec<String>> = info.bindings.iter().map(binding_row).collect();
    table_or_none(out, &["  name", "dtype", "shape", "access", "notes"], bindings)?;
    section(out, &format!("Parameters ({}, {} bytes)", info.params.name, info.params.bytes))?;
    let fields = info.params.fields.iter().map(|f| vec![format!("  {}", f.name), f.r#type.into(), f.doc.trim().into()]).collect();
    table_or_none(out, &["  name", "type", "meaning"], fields)?;
    section(out, "Constants")?;
    let constants = info.constants.iter().map(|c| {
        let default = c.default.as_ref().map_or_else(|| "the parameter".into(), ToString::to_string);
        vec![format!("  {}", c.slot), c.name.into(), c.r#type.clone(), default]
    });
    table_or_none(out, &["  slot", "name", "type", "default"], constants.collect())?;
    section(out, "Numerics")?;
    let or_unknown = |text: &'static str| if text.is_empty() { "not stated" } else { text };
    out.line(format!("  class      {}", or_unknown(info.class)))?;
    out.line(format!("  tolerance  {}", or_unknown(info.tolerance)))?;
    out.line(format!("  fast math  {}", if info.fast_math { "yes: --math fast" } else { "no difference" }))?;
    out.line(format!("  checked    {}", if info.tested { "yes: kernelry check" } else { "no" }))?;
    section(out, "Work")?;
    let work = info.examples.iter().map(|e| {
        let geometry = e.geometry.map_or_else(|| "-".into(), |g| format!("{:?} x {:?}", g.groups, g.threads));
        vec![format!("  {}", e.shape), human_bytes(e.bytes as u64), format!("{:.3e}", e.flops), geometry]
    });
    table_or_none(out, &["  shape", "moves", "operations", "groups x threads"], work.collect())?;
    section(out, "Backends")?;
    let backends = info
        .backends
        .iter()
        .map(|(name, s)| vec![format!("  {name}"), if s.supported { out.green("yes") } else { out.dim("no") }, s.reason.clone()]);
    let backends: Vec<Vec<String>> = backends.collect();
    out.table(&["  backend", "has it", "reason"], backends)
}

/// The catalogue entry, or the error with the nearest names.
pub(crate) fn find(name: &str) -> CliResult<&'static Kernel> {
    match kernelry::catalogue::find(name) {
        Some(kernel) => Ok(kernel),
        None => {
            Err(Registry::new().id(name).err().unwrap_or_else(|| kernelry::Error::invalid("info", format!("kernel: got `{name}`"))).into())
        }
    }
}

fn section(out: &mut Output, title: &str) -> CliResult {
    out.line("")?;
    out.line(out.bold(title))
}

fn table_or_none(out: &mut Output, header: &[&str], rows: Vec<Vec<String>>) -> CliResult {
    if rows.is_empty() { out.line("  none") } else { out.table(header, rows) }
}

fn binding_row(b: &BindingInfo) -> Vec<String> {
    let access = match b.access {
        Access::Read => "read",
        Access::Write => "write",
        Access::ReadWrite => "read, write",
    };
    let mut notes = Vec::new();
    if b.optional {
        notes.push("optional".to_owned());
    }
    if !b.aliases.is_empty() {
        notes.push(format!("may be {}", b.aliases.join(" or ")));
    }
    vec![format!("  {}", b.name), b.dtype.to_string(), format!("[{}]", b.shape.join(", ")), access.into(), notes.join(", ")]
}

fn describe(kernel: &'static Kernel) -> Info {
    let layout = kernel.params();
    Info {
        name: kernel.name(),
        family: kernel.family().name(),
        summary: kernel.summary(),
        extra: kernel.is_extra(),
        bindings: kernel
            .bindings()
            .iter()
            .map(|b| BindingInfo {
                name: b.name(),
                dtype: b.dtype(),
                shape: b.shape().words().collect(),
                access: b.access(),
                optional: b.optional(),
                aliases: b.aliases().to_vec(),
            })
            .collect(),
        params: ParamsInfo {
            name: layout.name,
            bytes: layout.size,
            c_declaration: layout.c_declaration(),
            fields: layout
                .fields
                .iter()
                .map(|f| FieldInfo { name: f.name, r#type: f.kind.c_type(), offset: f.offset, doc: f.doc.trim() })
                .collect(),
        },
        constants: kernel
            .constants()
            .iter()
            .map(|c| ConstantInfo {
                slot: c.slot,
                name: c.name,
                r#type: format!("{:?}", c.ty).to_lowercase(),
                default: c.default.map(constant_json),
            })
            .collect(),
        class: kernel.class(),
        tolerance: kernel.tolerance(),
        fast_math: kernel.has_fast_math(),
        tested: kernel.is_tested(),
        examples: examples(kernel),
        backends: Backends::open().support(kernel),
    }
}

fn constant_json(value: ConstantValue) -> serde_json::Value {
    match value {
        ConstantValue::Bool(v) => v.into(),
        ConstantValue::I32(v) => v.into(),
        ConstantValue::U32(v) => v.into(),
        ConstantValue::F32(bits) => f32::from_bits(bits).into(),
    }
}

/// Shapes with their work; the math mode changes neither.
fn examples(kernel: &'static Kernel) -> Vec<Example> {
    let mut list: Vec<Example> = shapes(kernel, "cpu").iter().map(|s| example(kernel, s)).collect();
    list.dedup_by(|a, b| a.shape == b.shape);
    list
}

fn example(kernel: &Kernel, shape: &BenchShape) -> Example {
    let cost = shape.cost();
    Example { shape: shape.text().to_owned(), bytes: cost.bytes, flops: cost.flops, geometry: kernel.geometry(shape.params()) }
}
