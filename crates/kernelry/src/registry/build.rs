//! Building a pipeline: native function, pack, cache on disk, compiler, in that order.

use std::sync::Arc;
use std::time::Instant;

use super::disk::CacheLabel;
use super::pipeline::PipelineInner;
use super::source::{Source, content_hash};
use super::{Identity, ModuleCell, Origin, Pipeline, Registry, Slot, format_key};
use crate::backend::{Compiler, Executable, Module, Unit};
use crate::device::{Device, DeviceId};
use crate::{Error, Result};

/// A compiled unit and how it came to be here.
pub(super) struct Loaded {
    module: Arc<dyn Module>,
    origin: Origin,
    /// Why the cache on disk was of no use, if it should have been.
    skipped: Option<String>,
}

impl Registry {
    /// Builds the pipeline of a slot. Runs outside every lock.
    pub(super) fn build(&self, slot: &Slot, device: &Device) -> Result<Pipeline> {
        let started = Instant::now();
        let (name, entry) = {
            let state = self.inner.state.read();
            let kernel = state.kernels.get(slot.key.kernel.0 as usize);
            (kernel.map_or_else(|| Arc::from(""), |k| k.name.clone()), kernel.and_then(|k| k.entry))
        };
        let backend = device.backend();
        let label = format_key(&name, &slot.key.constants);
        let compilation = |message: String| Error::Compilation { name: name.to_string(), key: label.clone(), message };
        let finish = |executable: Arc<dyn Executable>, origin, content_hash, skipped: Vec<String>| {
            Pipeline::new(PipelineInner {
                device: device.clone(),
                kernel: slot.key.kernel,
                entry,
                name: name.clone(),
                constants: slot.key.constants,
                identity: Identity {
                    label: label.clone(),
                    origin,
                    content_hash,
                    options: slot.key.options,
                    device: device.info().name.clone(),
                    build_time: started.elapsed(),
                    fallback: (!skipped.is_empty()).then(|| skipped.join("; ")),
                },
                executable,
            })
        };
        let unsupported = || Error::BackendUnsupported { name: name.to_string(), backend: device.info().backend.clone() };
        let (text, built_in) = match (&slot.source, entry) {
            (Some(source), _) => (source.clone(), false),
            (None, Some(entry)) => {
                if !entry.has_entry_point() {
                    return Err(compilation("kernel has no entry point".into()));
                }
                if let Some(executable) = backend.native(entry, &slot.key.constants, slot.key.options) {
                    return Ok(finish(executable, Origin::BuiltIn, [0; 32], Vec::new()));
                }
                (Arc::new(Source::builtin(entry).ok_or_else(unsupported)?), true)
            }
            (None, None) => return Err(unsupported()),
        };
        let compiler = backend.compiler().ok_or_else(unsupported)?;
        let options = compiler.effective(slot.key.options);
        let unit = Unit { name: &name, text: &text.text, constants: &slot.key.constants, options };
        let content = content_hash(&unit, compiler.toolchain());
        let mut skipped = Vec::new();
        // A text registered at run time is what runs, whatever a pack has under its name.
        if built_in && let Some(executable) = self.find_in_packs(&label, &unit, &text, device, compiler, &mut skipped) {
            return Ok(finish(executable, Origin::Precompiled, content, skipped));
        }
        let cell = self.module_cell(content, device.id());
        let loaded = cell.get_or_init(|| self.load_or_compile(&unit, &content, &label, device, compiler));
        let loaded = loaded.as_ref().map_err(|message| compilation(message.clone()))?;
        let executable = loaded.module.function(&name).map_err(compilation)?;
        skipped.extend(loaded.skipped.clone());
        Ok(finish(executable, loaded.origin, content, skipped))
    }

    fn module_cell(&self, content: [u8; 32], device: DeviceId) -> ModuleCell {
        self.inner.modules.lock().entry((content, device)).or_default().clone()
    }

    /// The function from the first pack that has it; reasons of those that have not go to `skipped`.
    fn find_in_packs(
        &self,
        label: &str,
        unit: &Unit<'_>,
        text: &Source,
        device: &Device,
        compiler: &dyn Compiler,
        skipped: &mut Vec<String>,
    ) -> Option<Arc<dyn Executable>> {
        let packs = self.inner.packs.read().clone();
        for state in &packs {
            let pack = match &state.pack {
                Ok(pack) => pack,
                Err(error) => {
                    skipped.push(format!("pack {}: {error}", state.label));
                    continue;
                }
            };
            let found = pack.find(label, unit.options, &text.hash, &device.info().backend, compiler).and_then(|place| {
                let Some(place) = place else { return Ok(None) };
                let cell = self.module_cell(place.hash, device.id());
                let loaded = cell.get_or_init(|| {
                    let module = compiler.load(&pack.artefact(place.module)?).map_err(|e| format!("pack {}: {e}", pack.label()))?;
                    Ok(Loaded { module, origin: Origin::Precompiled, skipped: None })
                });
                let loaded = loaded.as_ref().map_err(Clone::clone)?;
                loaded.module.function(unit.name).map(Some).map_err(|e| format!("pack {}: {e}", pack.label()))
            });
            match found {
                Ok(Some(executable)) => return Some(executable),
                Ok(None) => {}
                Err(why) => skipped.push(why),
            }
        }
        None
    }

    /// The module from the cache on disk, else from the compiler. Whatever is wrong with the cache is a reason, never an error.
    fn load_or_compile(
        &self,
        unit: &Unit<'_>,
        content: &[u8; 32],
        label: &str,
        device: &Device,
        compiler: &dyn Compiler,
    ) -> Result<Loaded, String> {
        let mut skipped = None;
        if let Some(disk) = &self.inner.disk {
            let stored = disk.load(content).and_then(|artefact| {
                let load = |artefact: Vec<u8>| compiler.load(&artefact).map_err(|e| format!("disk cache: entry cannot be loaded: {e}"));
                artefact.map(load).transpose()
            });
            match stored {
                Ok(Some(module)) => return Ok(Loaded { module, origin: Origin::DiskCache, skipped: None }),
                Ok(None) => {}
                Err(why) => skipped = Some(why),
            }
        }
        let artefact = compiler.compile(unit)?;
        let module = compiler.load(&artefact)?;
        // Only what can be loaded is worth keeping.
        if let Some(disk) = &self.inner.disk {
            let about =
                CacheLabel { kernel: label.to_owned(), backend: device.info().backend.clone(), toolchain: compiler.toolchain().to_owned() };
            if let Err(why) = disk.store(content, &about, &artefact) {
                skipped = Some(skipped.map_or_else(|| why.clone(), |first| format!("{first}; {why}")));
            }
        }
        Ok(Loaded { module, origin: Origin::RuntimeSource, skipped })
    }
}
