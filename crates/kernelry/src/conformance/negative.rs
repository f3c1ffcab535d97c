//! What every launcher must reject, derived from the catalogue entry.

use super::case::Cases;
use super::runner::dims_of;
use crate::catalogue::Kernel;
use crate::{Buffer, Context, DType, Error};

/// Takes the first case of a kernel and breaks its arguments one at a time: too short, another dtype, missing, overlapping, a size
/// that is zero or beyond 31 bits. Each must be refused with nothing recorded.
///
/// # Errors
/// What was accepted though it must not be.
pub fn check_rejections(ctx: &Context, kernel: &'static Kernel) -> Result<(), String> {
    let Some(cases) = kernel.cases else { return Ok(()) };
    let mut list = Cases::new(kernel, 1);
    cases(&mut list);
    let Some(case) = list.list.first() else { return Err("the kernel has no cases".into()) };
    let text = |e: Error| e.to_string();
    let pipeline = ctx.registry().get_pipeline(kernel.name(), ctx.device()).map_err(text)?;
    let mut good: Vec<Option<Buffer>> = Vec::new();
    for (i, binding) in kernel.bindings().iter().enumerate() {
        let dims = dims_of(kernel, i, &case.params).map_err(text)?;
        let absent = case.absent.contains(&binding.name());
        good.push(if absent { None } else { Some(ctx.zeros(binding.dtype(), &dims).map_err(text)?) });
    }
    let refused = |what: &str, args: &[Option<&Buffer>], params: &[u8]| -> Result<(), String> {
        let mut encoder = ctx.encoder();
        match encoder.launch_pipeline(&pipeline, args, params) {
            Ok(()) => Err(format!("accepted {what}")),
            Err(error) if error.to_string().is_empty() => Err(format!("refused {what} without a word")),
            Err(_) => match encoder.finish().map(|graph| graph.launches()) {
                Ok(0) => Ok(()),
                _ => Err(format!("recorded a launch though it refused {what}")),
            },
        }
    };
    let args: Vec<Option<&Buffer>> = good.iter().map(Option::as_ref).collect();
    for (i, binding) in kernel.bindings().iter().enumerate() {
        let Some(buffer) = args[i] else { continue };
        let replaced = |with: Option<Buffer>, what: &str| {
            let mut args = args.clone();
            args[i] = with.as_ref();
            refused(&format!("{what} for {}", binding.name()), &args, &case.params)
        };
        if buffer.len() > 1 {
            replaced(Some(buffer.slice(0, buffer.len() - 1).map_err(text)?), "one element too few")?;
        }
        let other = if binding.dtype() == DType::U64 { DType::I64 } else { DType::U64 };
        replaced(Some(ctx.zeros(other, buffer.shape()).map_err(text)?), "another dtype")?;
        if !binding.optional() {
            replaced(None, "no buffer")?;
        }
        if binding.access().writes() {
            for (j, input) in kernel.bindings().iter().enumerate() {
                let listed = binding.aliases().contains(&input.name()) || input.aliases().contains(&binding.name());
                if j != i && input.dtype() == binding.dtype() && args[j].is_some() && !listed {
                    let len = buffer.len().max(args[j].map_or(0, Buffer::len));
                    let both = ctx.zeros(binding.dtype(), &[len]).map_err(text)?;
                    let mut args = args.clone();
                    args[i] = Some(&both);
                    args[j] = Some(&both);
                    refused(&format!("one buffer for {} and {}", binding.name(), input.name()), &args, &case.params)?;
                }
            }
        }
    }
    for field in kernel.params().fields {
        let names_a_size =
            |b: &crate::catalogue::Binding| b.shape().text().split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == field.name);
        if !kernel.bindings().iter().any(|b| !b.optional() && names_a_size(b)) || field.kind.size() == 0 {
            continue;
        }
        for value in ["0", "4294967295"] {
            // A field that is zero in some case has a meaning there.
            let used = |case: &&super::Case| kernel.params().symbol(&case.params, field) == Some(0);
            if value == "0" && (kernel.noop_if_zero == Some(field.name) || list.list.iter().find(used).is_some()) {
                continue;
            }
            let mut params = case.params.clone();
            if kernel.params().set(kernel.name(), &mut params, field.name, value).is_err() {
                continue;
            }
            refused(&format!("{} = {value}", field.name), &args, &params)?;
        }
    }
    Ok(())
}
