//! `kernelry run`: one launch of one kernel on tensors from files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use kernelry::catalogue::{Access, Kernel};
use kernelry::registry::{ConstantType, ConstantValue, Constants, Math, Options};
use kernelry::{Buffer, Context};
use serde::Serialize;

use super::info;
use super::params::{Params, key_value};
use crate::device::DeviceArg;
use crate::failure::{CliResult, Failure};
use crate::output::Output;
use crate::tensors::{self, HostTensor};

/// Launch one kernel on tensors from safetensors files
///
/// Tensors are matched to the kernel's bindings by name (`kernelry info NAME` shows them). Sizes that follow from the shapes of the
/// tensors need no --param.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernel name
    name: String,
    /// Safetensors file with inputs; may be given several times
    #[arg(long = "in", value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Use the tensor TENSOR for the binding BINDING, where their names differ
    #[arg(long, value_name = "BINDING=TENSOR", value_parser = key_value)]
    bind: Vec<(String, String)>,
    /// Parameter of the kernel; may be given several times
    #[arg(long = "param", short, value_name = "NAME=VALUE", value_parser = key_value)]
    params: Vec<(String, String)>,
    /// Compile-time constant, by slot or name; may be given several times
    #[arg(long = "constant", value_name = "SLOT=VALUE", value_parser = key_value)]
    constants: Vec<(String, String)>,
    /// Start this binding, which the kernel reads and writes, as zeros
    #[arg(long, value_name = "BINDING")]
    zero: Vec<String>,
    /// Also ask for this optional output
    #[arg(long, value_name = "BINDING")]
    with: Vec<String>,
    /// Safetensors file for the outputs
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
    /// Arithmetic: precise, or fast where the kernel has it
    #[arg(long, value_parser = math, default_value = "precise")]
    math: Math,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The value of `--math`.
pub(crate) fn math(text: &str) -> Result<Math, String> {
    match text {
        "precise" => Ok(Math::Precise),
        "fast" => Ok(Math::Fast),
        _ => Err("expected precise or fast".into()),
    }
}

#[derive(Serialize)]
struct Report {
    kernel: &'static str,
    device: String,
    params: BTreeMap<&'static str, String>,
    microseconds: f64,
    outputs: Vec<tensors::Summary>,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let kernel = info::find(&args.name)?;
    let constants = constants(kernel, &args.constants)?;
    let given = bindings(kernel, args)?;
    let params = Params::resolve(kernel, &args.params, &given)?;
    let (device, ctx) = args.device.open()?;
    let pipeline = ctx.registry().get_with(kernel.name(), ctx.device(), &constants, Options::with_math(args.math))?;
    let buffers = buffers(kernel, args, &ctx, &given, &params)?;
    let launch: Vec<Option<&Buffer>> = buffers.iter().map(Option::as_ref).collect();
    let mut encoder = ctx.encoder();
    encoder.launch_pipeline(&pipeline, &launch, params.block())?;
    let started = Instant::now();
    encoder.run()?;
    let microseconds = started.elapsed().as_secs_f64() * 1e6;
    let mut results = Vec::new();
    for (binding, buffer) in kernel.bindings().iter().zip(&buffers) {
        if let Some(buffer) = buffer.as_ref().filter(|_| binding.access().writes()) {
            results.push(HostTensor::download(binding.name(), buffer)?);
        }
    }
    if let Some(path) = &args.out {
        tensors::write(path, &results)?;
    }
    let outputs = results.iter().map(HostTensor::summary).collect();
    let report = Report { kernel: kernel.name(), device, params: params.texts(), microseconds, outputs };
    if args.json {
        return out.json(&report);
    }
    let fields = kernel.params().fields.iter();
    let sizes: Vec<String> = fields.filter_map(|f| Some(format!("{}={}", f.name, report.params.get(f.name)?))).collect();
    out.line(format!("{} on {}: {} ({:.1} µs)", out.bold(report.kernel), report.device, sizes.join(" "), report.microseconds))?;
    let number = |v: Option<f64>| v.map_or_else(|| "-".into(), |v| format!("{v:.6}"));
    let rows = report.outputs.iter().map(|s| {
        let shape = format!("{:?}", s.shape);
        vec![format!("  {}", s.name), s.dtype.to_string(), shape, number(s.min), number(s.max), number(s.mean), s.not_finite.to_string()]
    });
    out.table(&["  output", "dtype", "shape", "min", "max", "mean", "not finite"], rows)
}

/// Parses constants by the types that the kernel declares.
fn constants(kernel: &Kernel, pairs: &[(String, String)]) -> CliResult<Constants> {
    let mut parsed = Vec::new();
    for (slot, text) in pairs {
        let spec = kernel.constants().iter().find(|c| c.name == slot || c.slot.to_string() == *slot).ok_or_else(|| {
            let known: Vec<String> = kernel.constants().iter().map(|c| format!("{} ({})", c.slot, c.name)).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            Failure::usage(format!("[{}] constant: got slot `{slot}`, expected one of: {known}", kernel.name()))
        })?;
        // The letter of the textual key is accepted: `i:3`.
        let value = text.split_once(':').map_or(text.as_str(), |(_, v)| v);
        let value = match spec.ty {
            ConstantType::Bool => match value {
                "true" | "1" => Some(ConstantValue::Bool(true)),
                "false" | "0" => Some(ConstantValue::Bool(false)),
                _ => None,
            },
            ConstantType::I32 => value.parse().ok().map(ConstantValue::I32),
            ConstantType::U32 => value.parse().ok().map(ConstantValue::U32),
            ConstantType::F32 => value.parse().ok().map(ConstantValue::f32),
        };
        let expected = format!("{:?}", spec.ty).to_lowercase();
        let wrong =
            || Failure::usage(format!("[{}] constant {}: got `{text}`, expected a value of type {expected}", kernel.name(), spec.name));
        parsed.push((spec.slot, value.ok_or_else(wrong)?));
    }
    Ok(Constants::new(kernel.name(), parsed)?)
}

/// The tensors of the input files by binding. Tensors that no binding wants are an error, since they are most likely misspelt.
fn bindings(kernel: &Kernel, args: &Args) -> CliResult<BTreeMap<&'static str, HostTensor>> {
    let names = || kernel.bindings().iter().map(|b| b.name()).collect::<Vec<_>>().join(", ");
    let known = |name: &str| kernel.bindings().iter().find(|b| b.name() == name);
    for name in args.bind.iter().map(|(b, _)| b).chain(&args.zero).chain(&args.with) {
        if known(name).is_none() {
            return Err(Failure::usage(format!("[{}] binding: got `{name}`, expected one of: {}", kernel.name(), names())));
        }
    }
    let mut tensors: BTreeMap<String, HostTensor> = BTreeMap::new();
    for path in &args.inputs {
        for tensor in tensors::read(path)? {
            if let Some(twice) = tensors.insert(tensor.name.clone(), tensor) {
                return Err(Failure::usage(format!("tensor `{}` is in two input files", twice.name)));
            }
        }
    }
    let mut given = BTreeMap::new();
    for (binding, tensor) in &args.bind {
        let Some(found) = tensors.remove(tensor) else {
            return Err(Failure::usage(format!("no input file has a tensor `{tensor}` for {binding}")));
        };
        if let Some(b) = known(binding) {
            given.insert(b.name(), found);
        }
    }
    // A file that tensors were picked from by --bind may hold others.
    let picked = !args.bind.is_empty();
    for (name, tensor) in tensors {
        // The result of an earlier run may hold outputs too.
        if known(&name).is_some_and(|b| b.access() == Access::Write) {
            continue;
        }
        match known(&name).filter(|b| !given.contains_key(b.name())) {
            Some(binding) => {
                given.insert(binding.name(), tensor);
            }
            None if picked => {}
            None => {
                let failure = Failure::usage(format!("[{}] tensor `{name}`: expected a binding: {}", kernel.name(), names()));
                return Err(failure.hint(format!("to use it under another name: --bind BINDING={name}")));
            }
        }
    }
    for binding in kernel.bindings() {
        let missing = match binding.access() {
            Access::Read => !given.contains_key(binding.name()),
            Access::ReadWrite => !given.contains_key(binding.name()) && !args.zero.iter().any(|z| z == binding.name()),
            Access::Write => false,
        };
        if missing && !binding.optional() {
            let shape = binding.shape().words().collect::<Vec<_>>().join(", ");
            let what = format!("[{}] {}: no input has this tensor, {} [{shape}]", kernel.name(), binding.name(), binding.dtype());
            let failure = Failure::usage(what);
            return Err(match binding.access() {
                Access::ReadWrite => failure.hint(format!("to start from zeros: --zero {}", binding.name())),
                _ => failure,
            });
        }
    }
    Ok(given)
}

/// A buffer for each binding that takes part.
fn buffers(
    kernel: &Kernel,
    args: &Args,
    ctx: &Context,
    given: &BTreeMap<&'static str, HostTensor>,
    params: &Params,
) -> CliResult<Vec<Option<Buffer>>> {
    let mut list = Vec::new();
    for (i, binding) in kernel.bindings().iter().enumerate() {
        let wanted = |names: &[String]| names.iter().any(|n| n == binding.name());
        let fresh = match binding.access() {
            Access::Write => !binding.optional() || wanted(&args.with),
            _ => wanted(&args.zero),
        };
        let dims = || -> CliResult<Vec<usize>> {
            let dims = kernel.dims(i, params.block())?;
            dims.iter()
                .map(|&d| usize::try_from(d).map_err(|_| Failure::usage(format!("{}: size {d} is too large", binding.name()))))
                .collect()
        };
        list.push(match given.get(binding.name()).filter(|_| binding.access() != Access::Write) {
            Some(tensor) => Some(tensor.upload(ctx, kernel.name(), binding.dtype())?),
            None if fresh => Some(ctx.zeros(binding.dtype(), &dims()?)?),
            None => None,
        });
    }
    Ok(list)
}
