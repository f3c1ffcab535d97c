//! Kernel texts and their content hashes.

use std::sync::Arc;

use super::{ConstantType, Constants};
use crate::backend::Unit;
use crate::catalogue::Kernel;
use crate::{Error, Result};

/// Constant slots that a text registered at run time declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSlots {
    /// Nothing is declared: any slot is accepted.
    Any,
    /// These slots with their types, and no others.
    Declared(Vec<(u32, ConstantType)>),
}

/// A kernel text.
#[derive(Debug)]
pub(super) struct Source {
    /// Backend it is for; `None` for every backend that compiles texts.
    pub(super) backend: Option<String>,
    pub(super) text: Arc<str>,
    pub(super) hash: [u8; 32],
    slots: SourceSlots,
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        self.hash == other.hash && self.backend == other.backend && self.slots == other.slots
    }
}

impl Source {
    pub(super) fn new(backend: Option<String>, text: Arc<str>, slots: SourceSlots) -> Source {
        let hash = Source::hash_of(&text);
        Source { backend, text, hash, slots }
    }

    /// Hash of a text, which stands for it in packs.
    pub(super) fn hash_of(text: &str) -> [u8; 32] {
        *blake3::hash(text.as_bytes()).as_bytes()
    }

    /// The text of a catalogue entry, if it has one.
    pub(super) fn builtin(entry: &Kernel) -> Option<Source> {
        Some(Source::new(None, entry.gpu_text()?.into(), SourceSlots::Any))
    }

    /// Texts without a named backend are for those that compile texts, which the CPU does not.
    pub(super) fn serves(&self, backend: &str) -> bool {
        match &self.backend {
            Some(b) => b == backend,
            None => backend != "cpu",
        }
    }

    pub(super) fn check_constants(&self, name: &str, constants: &Constants) -> Result<()> {
        let SourceSlots::Declared(slots) = &self.slots else { return Ok(()) };
        for &(slot, value) in constants.iter() {
            if !slots.contains(&(slot, value.ty())) {
                let reason = format!("got a value of type {:?}, expected one of {slots:?}", value.ty());
                return Err(Error::InvalidConstant { name: name.to_owned(), index: slot, reason });
            }
        }
        Ok(())
    }
}

/// Content key of a compiled unit: everything that can change what the compiler makes, and no name.
pub(super) fn content_hash(unit: &Unit<'_>, toolchain: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [unit.text, toolchain, &format!("{:?}", unit.options)] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    for (slot, value) in unit.constants.iter() {
        hasher.update(format!("|{slot}:{value}").as_bytes());
    }
    *hasher.finalize().as_bytes()
}
