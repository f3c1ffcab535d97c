//! The registry: hands out compiled kernels, compiling each at most once.
//!
//! A [`Registry`] needs no device to exist, is shared by cloning, and never compiles under a lock that another key needs. A cache hit
//! neither allocates nor formats a string. What it has not in memory it looks for in packs, then in the cache on disk, before it compiles.

mod build;
mod constants;
mod disk;
mod pack;
mod pack_build;
mod pipeline;
mod source;

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use parking_lot::{Mutex, RwLock};

pub use constants::{ConstantType, ConstantValue, Constants, MAX_CONSTANTS, Math, Options, format_key, parse_key};
pub use disk::{CacheEntry, CacheLabel, DiskCache};
pub use pack::Pack;
pub use pack_build::{PackBuilder, PackReport, PackedKernel};
pub use pipeline::{Identity, Origin, Pipeline};
pub use source::SourceSlots;

use crate::Config;
use crate::backend::Capability;
use crate::catalogue::{self, Kernel};
use crate::device::{Device, DeviceId};
use crate::{Error, Result};
use source::Source;

/// Interned kernel name. Valid for the registry that gave it and its clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId(u32);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: DeviceId,
    kernel: KernelId,
    constants: Constants,
    options: Options,
}

/// One key's pipeline or its failure; filled once, by whichever thread comes first.
struct Slot {
    key: Key,
    /// What was registered when the slot was made. A replaced source gets new slots, so a slow compile of the old one ends up nowhere.
    source: Option<Arc<Source>>,
    cell: OnceLock<Result<Pipeline>>,
}

struct KernelState {
    name: Arc<str>,
    /// Catalogue entry; none for names that exist through `register_source` only.
    entry: Option<&'static Kernel>,
    /// Texts registered at run time, newest last; at most one a backend.
    overrides: Vec<Arc<Source>>,
    /// Frozen plans that rely on it.
    protected: usize,
}

impl KernelState {
    fn source_for(&self, backend: &str) -> Option<&Arc<Source>> {
        self.overrides.iter().rev().find(|s| s.serves(backend))
    }

    fn is_registered(&self) -> bool {
        self.entry.is_some() || !self.overrides.is_empty()
    }
}

struct State {
    ids: HashMap<Arc<str>, KernelId>,
    kernels: Vec<KernelState>,
    slots: HashTable<Arc<Slot>>,
}

/// A compiled unit, shared by all names and devices that have one text.
type ModuleCell = Arc<OnceLock<Result<build::Loaded, String>>>;

/// A pack that was asked for, and what became of it.
#[derive(Clone, Debug)]
pub struct PackState {
    /// Path or label.
    pub label: String,
    /// The pack, or why it cannot be used.
    pub pack: Result<Arc<Pack>>,
}

struct Inner {
    hasher: DefaultHashBuilder,
    state: RwLock<State>,
    modules: Mutex<HashMap<([u8; 32], DeviceId), ModuleCell>>,
    packs: RwLock<Vec<PackState>>,
    disk: Option<DiskCache>,
    probes: Mutex<HashMap<(DeviceId, Capability), bool>>,
}

/// Hands out pipelines by kernel name, constants and options. Cloning shares everything.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

/// Outcome of [`Registry::prewarm`].
#[derive(Debug, Default)]
pub struct Prewarmed {
    /// Pipelines that were compiled.
    pub warmed: usize,
    /// Names that the device does not have, or that were cached already.
    pub skipped: usize,
    /// Names that failed, with the error.
    pub failed: Vec<(String, Error)>,
}

/// What [`Registry::describe`] tells of a name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description {
    /// Catalogue entry, unless the name exists through `register_source` only.
    pub entry: Option<&'static Kernel>,
    /// Backends with a text registered at run time; `*` stands for every backend that compiles texts.
    pub overridden_for: Vec<String>,
}

/// Keeps a kernel from being replaced while it lives; see [`Registry::protect`].
pub struct Protection {
    registry: Registry,
    kernel: KernelId,
}

impl Drop for Protection {
    fn drop(&mut self) {
        if let Some(k) = self.registry.inner.state.write().kernels.get_mut(self.kernel.0 as usize) {
            k.protected = k.protected.saturating_sub(1);
        }
    }
}

impl Registry {
    /// A registry of all built-in kernels, with the packs and the cache on disk of the process environment (see [`Config`]). Compiles
    /// nothing and needs no device.
    pub fn new() -> Registry {
        Registry::with_config(Config::from_env())
    }

    /// As [`Registry::new`], with the packs and the cache on disk of `config`; [`Config::default`] has neither.
    pub fn with_config(config: &Config) -> Registry {
        let mut state = State { ids: HashMap::new(), kernels: Vec::new(), slots: HashTable::new() };
        for entry in catalogue::builtin() {
            let name: Arc<str> = entry.name().into();
            state.ids.insert(name.clone(), KernelId(state.kernels.len() as u32));
            state.kernels.push(KernelState { name, entry: Some(entry), overrides: Vec::new(), protected: 0 });
        }
        let inner = Inner {
            hasher: DefaultHashBuilder::default(),
            state: RwLock::new(state),
            modules: Mutex::new(HashMap::new()),
            packs: RwLock::new(
                config
                    .packs
                    .iter()
                    .map(|path| PackState { label: path.display().to_string(), pack: Pack::open(path).map(Arc::new) })
                    .collect(),
            ),
            disk: config.cache_dir.as_ref().map(DiskCache::new),
            probes: Mutex::new(HashMap::new()),
        };
        Registry { inner: Arc::new(inner) }
    }

    /// The interned id of a registered name, for hot callers.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`] with the nearest names.
    pub fn id(&self, name: &str) -> Result<KernelId> {
        let state = self.inner.state.read();
        match state.ids.get(name) {
            Some(&id) if state.kernels.get(id.0 as usize).is_some_and(KernelState::is_registered) => Ok(id),
            _ => Err(not_found(&state, name)),
        }
    }

    /// The plain pipeline of `name`.
    ///
    /// # Errors
    /// As [`Registry::get_with`].
    pub fn get_pipeline(&self, name: &str, device: &Device) -> Result<Pipeline> {
        self.get_with(name, device, &Constants::NONE, Options::default())
    }

    /// The pipeline of `name` specialised by boolean constants.
    ///
    /// # Errors
    /// As [`Registry::get_with`].
    pub fn get_pipeline_with_bool_constants(&self, name: &str, device: &Device, bools: &[(u32, bool)]) -> Result<Pipeline> {
        self.get_pipeline_with_constants(name, device, bools, &[])
    }

    /// The pipeline of `name` specialised by boolean and signed integer constants, in any order.
    ///
    /// # Errors
    /// As [`Registry::get_with`].
    pub fn get_pipeline_with_constants(&self, name: &str, device: &Device, bools: &[(u32, bool)], ints: &[(u32, i32)]) -> Result<Pipeline> {
        let bools = bools.iter().map(|&(slot, v)| (slot, ConstantValue::Bool(v)));
        let ints = ints.iter().map(|&(slot, v)| (slot, ConstantValue::I32(v)));
        self.get_with(name, device, &Constants::new(name, bools.chain(ints))?, Options::default())
    }

    /// The pipeline of `name` with any constants and options. Concurrent requests for one key compile once; other keys go on.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::BackendUnsupported`], [`Error::InvalidConstant`] or [`Error::Compilation`]. A failure is
    /// remembered until the source changes.
    pub fn get_with(&self, name: &str, device: &Device, constants: &Constants, options: Options) -> Result<Pipeline> {
        let state = self.inner.state.read();
        let Some(&id) = state.ids.get(name) else { return Err(not_found(&state, name)) };
        self.lookup(state, id, device, constants, options)
    }

    /// As [`Registry::get_with`], by interned id.
    ///
    /// # Errors
    /// As [`Registry::get_with`].
    pub fn get_by_id(&self, id: KernelId, device: &Device, constants: &Constants, options: Options) -> Result<Pipeline> {
        self.lookup(self.inner.state.read(), id, device, constants, options)
    }

    fn lookup(
        &self,
        state: parking_lot::RwLockReadGuard<'_, State>,
        id: KernelId,
        device: &Device,
        constants: &Constants,
        options: Options,
    ) -> Result<Pipeline> {
        let key = Key { device: device.id(), kernel: id, constants: *constants, options };
        let hash = self.hash(&key);
        let found = state.slots.find(hash, |s| s.key == key);
        if let Some(outcome) = found.and_then(|slot| slot.cell.get()) {
            return outcome.clone();
        }
        let found = found.cloned();
        // Nobody may wait for a compiler while holding this lock.
        drop(state);
        let slot = match found {
            Some(slot) => slot,
            None => self.insert_slot(key, hash, device)?,
        };
        slot.cell.get_or_init(|| self.build(&slot, device)).clone()
    }

    fn hash(&self, key: &Key) -> u64 {
        // Constants beyond `len` are not part of the value: hash what is there.
        let mut hasher = self.inner.hasher.build_hasher();
        use std::hash::{Hash, Hasher};
        (key.device, key.kernel, key.options).hash(&mut hasher);
        for c in key.constants.iter() {
            c.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Makes the slot of a key that was not there, after the checks that need no compiler.
    fn insert_slot(&self, key: Key, hash: u64, device: &Device) -> Result<Arc<Slot>> {
        let mut state = self.inner.state.write();
        if let Some(slot) = state.slots.find(hash, |s| s.key == key) {
            return Ok(slot.clone());
        }
        let kernel = state.kernels.get(key.kernel.0 as usize).filter(|k| k.is_registered());
        let Some(kernel) = kernel else {
            let name = state.kernels.get(key.kernel.0 as usize).map_or_else(String::new, |k| k.name.to_string());
            return Err(not_found(&state, &name));
        };
        let source = kernel.source_for(&device.info().backend).cloned();
        match (&source, kernel.entry) {
            (Some(source), _) => source.check_constants(&kernel.name, &key.constants)?,
            (None, Some(entry)) => check_constants(entry, &key.constants)?,
            (None, None) => {}
        }
        let slot = Arc::new(Slot { key, source, cell: OnceLock::new() });
        let stored = slot.clone();
        state.slots.insert_unique(hash, stored, |s| self.hash(&s.key));
        Ok(slot)
    }

    /// Uses the pack in a file for pipelines that are built from now on. The first pack that has a kernel is the one used.
    ///
    /// # Errors
    /// As [`Pack::open`].
    pub fn add_pack(&self, path: &Path) -> Result<()> {
        self.push_pack(Pack::open(path)?);
        Ok(())
    }

    /// As [`Registry::add_pack`] for a pack in memory, which a program can carry: `include_bytes!("kernels.kpack").as_slice()`. `label`
    /// stands for the path in messages.
    ///
    /// # Errors
    /// As [`Pack::from_bytes`].
    pub fn add_pack_bytes(&self, label: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Result<()> {
        self.push_pack(Pack::from_bytes(label, bytes)?);
        Ok(())
    }

    fn push_pack(&self, pack: Pack) {
        self.inner.packs.write().push(PackState { label: pack.label().to_owned(), pack: Ok(Arc::new(pack)) });
    }

    /// The packs, in the order in which they are asked, with those that could not be opened.
    pub fn packs(&self) -> Vec<PackState> {
        self.inner.packs.read().clone()
    }

    /// The cache on disk, if there is one.
    pub fn disk_cache(&self) -> Option<&DiskCache> {
        self.inner.disk.as_ref()
    }

    /// Registers a kernel text for every backend that compiles texts. Identical text is a no-op that keeps the cache; another text
    /// takes effect at once: all pipelines of the name are dropped, handles already given out keep working.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty name or one with `|`, [`Error::ProtectedKernel`] if a frozen plan relies on it.
    pub fn register_source(&self, name: &str, text: impl Into<Arc<str>>) -> Result<()> {
        self.register(name, Source::new(None, text.into(), SourceSlots::Any))
    }

    /// Registers a kernel text for one backend, with the constant slots that it declares.
    ///
    /// # Errors
    /// As [`Registry::register_source`].
    pub fn register_source_for(&self, backend: &str, name: &str, text: impl Into<Arc<str>>, slots: SourceSlots) -> Result<()> {
        self.register(name, Source::new(Some(backend.to_owned()), text.into(), slots))
    }

    fn register(&self, name: &str, source: Source) -> Result<()> {
        if name.is_empty() || name.contains('|') {
            return Err(Error::invalid("register_source", format!("name: got `{name}`, expected a non-empty name without `|`")));
        }
        let mut state = self.inner.state.write();
        let id = match state.ids.get(name) {
            Some(&id) => id,
            None => {
                let id = KernelId(state.kernels.len() as u32);
                let name: Arc<str> = name.into();
                state.ids.insert(name.clone(), id);
                state.kernels.push(KernelState { name, entry: None, overrides: Vec::new(), protected: 0 });
                id
            }
        };
        let Some(kernel) = state.kernels.get_mut(id.0 as usize) else { return Ok(()) };
        if kernel.overrides.iter().any(|s| **s == source) {
            return Ok(());
        }
        if kernel.protected > 0 {
            return Err(Error::ProtectedKernel { name: name.to_owned() });
        }
        kernel.overrides.retain(|s| s.backend != source.backend);
        kernel.overrides.push(Arc::new(source));
        state.slots.retain(|s| s.key.kernel != id);
        Ok(())
    }

    /// Removes what [`Registry::register_source`] added. A built-in of that name reappears; any other name is unknown afterwards.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`] if nothing was registered under the name, [`Error::ProtectedKernel`].
    pub fn unregister(&self, name: &str) -> Result<()> {
        let mut state = self.inner.state.write();
        let Some(&id) = state.ids.get(name) else { return Err(not_found(&state, name)) };
        match state.kernels.get_mut(id.0 as usize) {
            Some(kernel) if kernel.protected > 0 => return Err(Error::ProtectedKernel { name: name.to_owned() }),
            Some(kernel) if !kernel.overrides.is_empty() => kernel.overrides.clear(),
            _ => return Err(not_found(&state, name)),
        }
        state.slots.retain(|s| s.key.kernel != id);
        Ok(())
    }

    /// Protects a kernel from being replaced until the returned guard is dropped.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`].
    pub fn protect(&self, name: &str) -> Result<Protection> {
        let kernel = self.id(name)?;
        if let Some(k) = self.inner.state.write().kernels.get_mut(kernel.0 as usize) {
            k.protected += 1;
        }
        Ok(Protection { registry: self.clone(), kernel })
    }

    /// True if some device and option set holds a pipeline under this textual key (see [`format_key`]).
    pub fn is_cached(&self, key: &str) -> bool {
        parse_key(key).is_ok_and(|(name, constants)| self.any_cached(name, |c| *c == constants))
    }

    /// True if any specialisation of the name is cached.
    pub fn is_cached_any(&self, name: &str) -> bool {
        self.any_cached(name, |_| true)
    }

    fn any_cached(&self, name: &str, wanted: impl Fn(&Constants) -> bool) -> bool {
        let state = self.inner.state.read();
        let Some(&id) = state.ids.get(name) else { return false };
        state.slots.iter().any(|s| s.key.kernel == id && wanted(&s.key.constants) && matches!(s.cell.get(), Some(Ok(_))))
    }

    fn cached(&self) -> Vec<Pipeline> {
        self.inner.state.read().slots.iter().filter_map(|s| s.cell.get()?.as_ref().ok().cloned()).collect()
    }

    /// Number of pipelines in the cache, counting specialisations, devices and options.
    pub fn cached_count(&self) -> usize {
        self.cached().len()
    }

    /// Textual keys of all cached pipelines, sorted.
    pub fn cached_keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.cached().iter().map(|p| p.label().to_owned()).collect();
        keys.sort();
        keys
    }

    /// Number of registered names.
    pub fn source_count(&self) -> usize {
        self.inner.state.read().kernels.iter().filter(|k| k.is_registered()).count()
    }

    /// All registered names, sorted.
    pub fn names(&self) -> Vec<String> {
        let state = self.inner.state.read();
        let mut names: Vec<_> = state.kernels.iter().filter(|k| k.is_registered()).map(|k| k.name.to_string()).collect();
        names.sort();
        names
    }

    /// What is known of a name.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`].
    pub fn describe(&self, name: &str) -> Result<Description> {
        let id = self.id(name)?;
        let state = self.inner.state.read();
        let kernel = state.kernels.get(id.0 as usize).ok_or_else(|| not_found(&state, name))?;
        let overridden_for = kernel.overrides.iter().map(|s| s.backend.clone().unwrap_or_else(|| "*".into())).collect();
        Ok(Description { entry: kernel.entry, overridden_for })
    }

    /// Where the cached pipelines under a textual key came from, one record a device and option set.
    pub fn identity(&self, key: &str) -> Vec<Identity> {
        self.cached().iter().filter(|p| p.label() == key).map(|p| p.identity().clone()).collect()
    }

    /// Builds the plain pipelines of `names` in parallel. One failure does not stop the others.
    pub fn prewarm(&self, device: &Device, names: &[&str]) -> Prewarmed {
        use rayon::prelude::*;
        let outcomes: Vec<_> =
            names.par_iter().map(|&name| if self.is_cached(name) { None } else { Some((name, self.get_pipeline(name, device))) }).collect();
        let mut report = Prewarmed::default();
        for outcome in outcomes {
            match outcome {
                Some((_, Ok(_))) => report.warmed += 1,
                None | Some((_, Err(Error::BackendUnsupported { .. }))) => report.skipped += 1,
                Some((name, Err(error))) => report.failed.push((name.to_owned(), error)),
            }
        }
        report
    }

    /// As [`Registry::prewarm`] for every catalogue entry that `filter` accepts.
    pub fn prewarm_all(&self, device: &Device, filter: impl Fn(&Kernel) -> bool) -> Prewarmed {
        let names: Vec<&str> = catalogue::builtin().iter().filter(|k| filter(k)).map(Kernel::name).collect();
        self.prewarm(device, &names)
    }

    /// Drops every cached pipeline and module. Handles given out keep working.
    pub fn clear(&self) {
        self.inner.state.write().slots.clear();
        self.inner.modules.lock().clear();
    }

    /// Drops every cached pipeline of one name.
    pub fn evict(&self, name: &str) {
        let mut state = self.inner.state.write();
        if let Some(&id) = state.ids.get(name) {
            state.slots.retain(|s| s.key.kernel != id);
        }
    }

    /// Whether a device has an optional ability, asked once a device.
    ///
    /// # Errors
    /// What made the probe fail; failures are not remembered.
    pub fn probe(&self, device: &Device, capability: Capability) -> Result<bool> {
        if let Some(&known) = self.inner.probes.lock().get(&(device.id(), capability)) {
            return Ok(known);
        }
        let found = device.probe(capability)?;
        self.inner.probes.lock().insert((device.id(), capability), found);
        Ok(found)
    }
}

/// Built-ins declare their slots: an unknown slot or a wrong type is a mistake of the caller.
fn check_constants(entry: &Kernel, constants: &Constants) -> Result<()> {
    for &(slot, value) in constants.iter() {
        let invalid = |reason: String| Error::InvalidConstant { name: entry.name().to_owned(), index: slot, reason };
        let Some(spec) = entry.constants().iter().find(|s| s.slot == slot) else {
            let known: Vec<_> = entry.constants().iter().map(|s| s.slot.to_string()).collect();
            let known = if known.is_empty() { "no constants".to_owned() } else { known.join(", ") };
            return Err(invalid(format!("unknown slot, expected {known}")));
        };
        if spec.ty != value.ty() {
            return Err(invalid(format!("got a value of type {:?}, expected {:?}", value.ty(), spec.ty)));
        }
    }
    Ok(())
}

/// `KernelNotFound` with up to three near names.
fn not_found(state: &State, name: &str) -> Error {
    let mut near: Vec<(f64, &str)> = state
        .kernels
        .iter()
        .filter(|k| k.is_registered())
        .map(|k| (strsim::jaro_winkler(name, &k.name), &*k.name))
        .filter(|(score, _)| *score > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    Error::KernelNotFound { name: name.to_owned(), nearest: near.into_iter().take(3).map(|(_, n)| n.to_owned()).collect() }
}
