//! Parameters of a launch: what was given, and what follows from the shapes of the tensors.

use std::collections::BTreeMap;

use kernelry::catalogue::{Kernel, ParamKind};

use crate::failure::{CliResult, Failure};
use crate::tensors::HostTensor;

/// Splits `name=value`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

/// The parameters of one launch.
pub(crate) struct Params {
    block: Vec<u8>,
    texts: BTreeMap<&'static str, String>,
}

impl Params {
    pub(crate) fn block(&self) -> &[u8] {
        &self.block
    }

    /// Every parameter by name, as text.
    pub(crate) fn texts(&self) -> BTreeMap<&'static str, String> {
        self.texts.clone()
    }

    /// Takes what was given, infers what the shapes of `tensors` settle, and refuses what is missing or contradicts itself.
    pub(crate) fn resolve(kernel: &Kernel, given: &[(String, String)], tensors: &BTreeMap<&'static str, HostTensor>) -> CliResult<Params> {
        let layout = kernel.params();
        let mut params = Params { block: vec![0; layout.size], texts: BTreeMap::new() };
        for (name, text) in given {
            layout.set(kernel.name(), &mut params.block, name, text)?;
            let Some(field) = layout.field(name) else { continue };
            if params.texts.insert(field.name, text.clone()).is_some() {
                return Err(Failure::usage(format!("[{}] parameter {name}: given twice", kernel.name())));
            }
        }
        params.infer(kernel, tensors)?;
        params.complete(kernel)?;
        params.agree(kernel, tensors)?;
        Ok(params)
    }

    /// Solves dimensions that are products of numbers and parameters of which one is not known, until nothing new follows.
    fn infer(&mut self, kernel: &Kernel, tensors: &BTreeMap<&'static str, HostTensor>) -> CliResult {
        loop {
            let mut learnt = false;
            for binding in kernel.bindings() {
                let Some(tensor) = tensors.get(binding.name()) else { continue };
                let words: Vec<&str> = binding.shape().words().collect();
                if words.len() != tensor.shape.len() {
                    continue;
                }
                for (word, &size) in words.iter().zip(&tensor.shape) {
                    if let Some((name, value)) = self.solve(kernel, word, size as u64) {
                        let layout = kernel.params();
                        layout.set(kernel.name(), &mut self.block, name, &value.to_string())?;
                        self.texts.insert(name, value.to_string());
                        learnt = true;
                    }
                }
            }
            if !learnt {
                return Ok(());
            }
        }
    }

    /// The one unknown parameter of a product, and its value if the product is to be `size`.
    fn solve(&self, kernel: &Kernel, word: &str, size: u64) -> Option<(&'static str, u64)> {
        let mut unknown = None;
        let mut rest = size;
        for factor in word.split('*') {
            let known = match kernel.params().field(factor) {
                Some(field) if !self.texts.contains_key(field.name) => {
                    if field.kind == ParamKind::F32 || unknown.replace(field.name).is_some() {
                        return None;
                    }
                    continue;
                }
                Some(field) => u64::try_from(kernel.params().symbol(&self.block, field)?).ok()?,
                // Sums, quotients and functions are not products: they stay unsolved.
                None => factor.parse().ok()?,
            };
            if known == 0 || !rest.is_multiple_of(known) {
                return None;
            }
            rest /= known;
        }
        Some((unknown?, rest))
    }

    fn complete(&self, kernel: &Kernel) -> CliResult {
        let missing: Vec<_> = kernel.params().fields.iter().filter(|f| !self.texts.contains_key(f.name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|f| f.name).collect();
        let options: Vec<String> = missing.iter().map(|f| format!("--param {}=<{}: {}>", f.name, f.kind.c_type(), f.doc.trim())).collect();
        let failure = Failure::usage(format!("[{}] parameters: got no value for {}", kernel.name(), names.join(", ")));
        Err(failure.hint(options.join(" ")))
    }

    /// Every tensor has as many elements as its binding has with these parameters.
    fn agree(&self, kernel: &Kernel, tensors: &BTreeMap<&'static str, HostTensor>) -> CliResult {
        for (i, binding) in kernel.bindings().iter().enumerate() {
            let Some(tensor) = tensors.get(binding.name()) else { continue };
            let dims = kernel.dims(i, &self.block)?;
            let expected = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
            if expected != Some(tensor.shape.iter().map(|&d| d as u64).product()) {
                let words = binding.shape().words().collect::<Vec<_>>().join(", ");
                return Err(Failure::usage(format!(
                    "[{}] {}: got shape {:?}, expected [{words}] = {dims:?}",
                    kernel.name(),
                    binding.name(),
                    tensor.shape
                )));
            }
        }
        Ok(())
    }
}
