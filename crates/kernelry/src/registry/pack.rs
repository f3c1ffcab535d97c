//! Packs: kernels compiled ahead of time, in one file.
//!
//! A file is magic, version, length and checksum of the manifest, the manifest as JSON, and the artefacts one after the other. The manifest
//! names for every kernel the hash of the text that it was made from: a pack of another text is never used.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::Options;
use crate::backend::{BuildTarget, Compiler};
use crate::{Error, Result};

pub(super) const MAGIC: &[u8; 8] = b"KNLPACK\0";
pub(super) const VERSION: u32 = 1;
/// Magic, version, zeros, length of the manifest, checksum of the manifest.
pub(super) const HEADER: usize = 8 + 4 + 4 + 8 + 32;

#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Manifest {
    pub(super) creator: String,
    pub(super) targets: Vec<BuildTarget>,
    pub(super) modules: Vec<ModuleRecord>,
    pub(super) kernels: Vec<KernelRecord>,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct ModuleRecord {
    /// Bytes from the end of the manifest.
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Checksum of the artefact.
    pub(super) hash: String,
}

#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct KernelRecord {
    /// Textual key: name and constants.
    pub(super) key: String,
    pub(super) options: Options,
    /// Hash of the text.
    pub(super) source: String,
    pub(super) target: usize,
    pub(super) module: usize,
}

enum Data {
    File(Mutex<File>),
    Bytes(Cow<'static, [u8]>),
}

/// An opened pack.
pub struct Pack {
    label: String,
    creator: String,
    data: Data,
    /// Where the artefacts start.
    base: u64,
    targets: Vec<BuildTarget>,
    modules: Vec<ModuleRecord>,
    kernels: HashMap<String, Vec<KernelRecord>>,
}

/// Where a kernel is in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) module: usize,
    pub(super) hash: [u8; 32],
}

impl Pack {
    /// Opens a file and checks its manifest. Artefacts are checked when they are read.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] for a file that is not a whole pack.
    pub fn open(path: &Path) -> Result<Pack> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        Pack::from_data(path.display().to_string(), Data::File(Mutex::new(file)), len)
    }

    /// A pack in memory, such as one embedded by `include_bytes!`. `label` stands for the path in messages.
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are not a whole pack.
    pub fn from_bytes(label: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Pack> {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        Pack::from_data(label.into(), Data::Bytes(bytes), len)
    }

    fn from_data(label: String, data: Data, len: u64) -> Result<Pack> {
        let broken = |problem: String| Error::format("kpack", label.clone(), problem);
        let head = data.read(0, HEADER as u64, len).map_err(broken)?;
        if head.get(..8) != Some(MAGIC) {
            return Err(broken("not a pack of kernels".into()));
        }
        let word = |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        if word(8) != VERSION {
            return Err(broken(format!("version: got {}, expected {VERSION}", word(8))));
        }
        let size = head.get(16..24).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let manifest = data.read(HEADER as u64, size, len).map_err(broken)?;
        if head.get(24..) != Some(&blake3::hash(&manifest).as_bytes()[..]) {
            return Err(broken("the manifest does not match its checksum".into()));
        }
        let manifest: Manifest = serde_json::from_slice(&manifest).map_err(|e| broken(format!("manifest: {e}")))?;
        let base = HEADER as u64 + size;
        for (i, module) in manifest.modules.iter().enumerate() {
            let end = base.checked_add(module.offset).and_then(|at| at.checked_add(module.bytes));
            if end.is_none_or(|end| end > len) {
                return Err(broken(format!("artefact {i} ends beyond the file: the file is cut short")));
            }
        }
        let mut kernels: HashMap<String, Vec<KernelRecord>> = HashMap::new();
        for record in manifest.kernels {
            if record.module >= manifest.modules.len() || record.target >= manifest.targets.len() {
                return Err(broken(format!("`{}` names an artefact that is not there", record.key)));
            }
            kernels.entry(record.key.clone()).or_default().push(record);
        }
        let Manifest { creator, targets, modules, .. } = manifest;
        Ok(Pack { label, creator, data, base, targets, modules, kernels })
    }

    /// Path or label.
    pub fn label(&self) -> &str {
        &self.label
    }
    /// What made it.
    pub fn creator(&self) -> &str {
        &self.creator
    }
    /// What it was made for.
    pub fn targets(&self) -> &[BuildTarget] {
        &self.targets
    }
    /// Number of kernels, counting specialisations and architectures.
    pub fn len(&self) -> usize {
        self.kernels.values().map(Vec::len).sum()
    }
    /// True without kernels.
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }
    /// Number of artefacts.
    pub fn modules(&self) -> usize {
        self.modules.len()
    }

    /// How many of the kernels were made from the texts of this build.
    pub fn current(&self) -> usize {
        let mut hashes: HashMap<&str, Option<String>> = HashMap::new();
        let hash = |key: &str| {
            let text = super::parse_key(key).ok().and_then(|(name, _)| crate::catalogue::find(name)?.gpu_text())?;
            Some(blake3::hash(text.as_bytes()).to_hex().to_string())
        };
        self.records().filter(|r| hashes.entry(&r.key).or_insert_with(|| hash(&r.key)).as_ref() == Some(&r.source)).count()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &KernelRecord> {
        self.kernels.values().flatten()
    }

    /// The place of a kernel that the device can load and that was made from this text with these options. Nothing if the pack is for
    /// other backends altogether.
    ///
    /// # Errors
    /// Why the pack is not used for it, in words.
    pub(super) fn find(
        &self,
        key: &str,
        options: Options,
        source: &[u8; 32],
        backend: &str,
        compiler: &dyn Compiler,
    ) -> Result<Option<Place>, String> {
        let ours: Vec<usize> = (0..self.targets.len()).filter(|&i| self.targets.get(i).is_some_and(|t| t.backend == backend)).collect();
        if ours.is_empty() {
            return Ok(None);
        }
        let skipped = |why: String| Err(format!("pack {}: {why}", self.label));
        let (mut accepted, mut refusal) = (Vec::new(), String::new());
        for index in ours {
            let Some(target) = self.targets.get(index) else { continue };
            match compiler.accepts(target) {
                Ok(()) => accepted.push(index),
                Err(why) => refusal = why,
            }
        }
        if accepted.is_empty() {
            return skipped(refusal);
        }
        // The same compiler for the same architecture first, then the highest architecture.
        accepted.sort_by_key(|&i| self.targets.get(i).map(|t| (t.toolchain != compiler.toolchain(), std::cmp::Reverse(t.arch.as_str()))));
        let records = self.kernels.get(key).map_or(&[][..], Vec::as_slice);
        let source = blake3::Hash::from_bytes(*source).to_hex();
        let mut why = format!("has no `{key}`");
        for record in accepted.iter().flat_map(|&target| records.iter().filter(move |r| r.target == target)) {
            if record.source != source.as_str() {
                why = "made from another text".into();
            } else if record.options != options {
                why = "made with other options".into();
            } else if let Some(hash) = self.modules.get(record.module).and_then(|m| blake3::Hash::from_hex(&m.hash).ok()) {
                return Ok(Some(Place { module: record.module, hash: *hash.as_bytes() }));
            } else {
                why = "the checksum of its artefact cannot be read".into();
            }
        }
        skipped(why)
    }

    /// Reads an artefact and checks it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn artefact(&self, module: usize) -> Result<Vec<u8>, String> {
        let broken = |what: String| format!("pack {}: artefact {module}: {what}", self.label);
        let record = self.modules.get(module).ok_or_else(|| broken("not there".into()))?;
        let bytes = self.data.read(self.base.saturating_add(record.offset), record.bytes, u64::MAX).map_err(broken)?;
        if blake3::hash(&bytes).to_hex().as_str() != record.hash {
            return Err(broken("does not match its checksum".into()));
        }
        Ok(bytes)
    }
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pack({}, {} kernels)", self.label, self.len())
    }
}

impl Data {
    /// Reads a range of something that has `len` bytes.
    fn read(&self, offset: u64, bytes: u64, len: u64) -> Result<Vec<u8>, String> {
        // Before memory is taken for it: lengths come from the file.
        if offset.checked_add(bytes).is_none_or(|end| end > len) {
            return Err("the file is cut short".into());
        }
        let size = usize::try_from(bytes).map_err(|e| e.to_string())?;
        match self {
            Data::File(file) => {
                let mut file = file.lock();
                file.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
                let mut data = Vec::new();
                (&mut *file).take(bytes).read_to_end(&mut data).map_err(|e| e.to_string())?;
                if data.len() == size { Ok(data) } else { Err("the file is cut short".into()) }
            }
            Data::Bytes(all) => {
                let start = usize::try_from(offset).map_err(|e| e.to_string())?;
                let range = start.checked_add(size).and_then(|end| all.get(start..end));
                range.map(<[u8]>::to_vec).ok_or_else(|| "the file is cut short".into())
            }
        }
    }
}
