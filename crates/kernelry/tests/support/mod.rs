//! A backend whose compiler only counts, for the registry's tests: the one place where nothing real is compiled, because what is
//! tested is how often, when and with what the compiler is called.
#![allow(dead_code, clippy::unwrap_used)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kernelry::backend::{
    Backend, Capability, Compiler, DeviceInfo, Executable, Memory, Module, Pending, Precompiled, Replay, Support, Unit,
};
use kernelry::catalogue::Kernel;
use kernelry::registry::{Constants, Options};
use kernelry::{Commands, Device, Error, FileMap, Result};

pub(crate) struct CountingBackend {
    info: DeviceInfo,
    pub(crate) compiles: AtomicUsize,
    pub(crate) loads: AtomicUsize,
    pub(crate) probes: AtomicUsize,
    pub(crate) by_text: Mutex<HashMap<String, usize>>,
    pub(crate) delay: Duration,
    pub(crate) pack: Mutex<HashMap<String, [u8; 32]>>,
}

struct Function(#[allow(dead_code)] String);
impl Executable for Function {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Text(String);
impl Module for Text {
    fn function(&self, entry: &str) -> Result<Arc<dyn Executable>, String> {
        if self.0.contains("no entry") { Err(format!("no function `{entry}`")) } else { Ok(Arc::new(Function(entry.to_owned()))) }
    }
}

impl Compiler for CountingBackend {
    fn toolchain(&self) -> &str {
        "counting 1"
    }
    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>, String> {
        self.compiles.fetch_add(1, Ordering::SeqCst);
        *self.by_text.lock().unwrap().entry(format!("{} {:?}", unit.text, unit.constants)).or_default() += 1;
        std::thread::sleep(self.delay);
        if unit.text.contains("#error") { Err("line 1: #error".into()) } else { Ok(unit.text.as_bytes().to_vec()) }
    }
    fn load(&self, artefact: &[u8]) -> Result<Arc<dyn Module>, String> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Text(String::from_utf8_lossy(artefact).into_owned())))
    }
}

impl Backend for CountingBackend {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn support(&self, _kernel: &Kernel) -> Support {
        Support::no("compiles texts only")
    }
    fn probe(&self, _capability: Capability) -> Result<bool> {
        self.probes.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }
    fn allocate(&self, bytes: usize, _zeroed: bool) -> Result<Box<dyn Memory>> {
        Err(Error::Allocation { bytes: bytes as u64, reason: "this device has no memory".into() })
    }
    fn map(&self, _file: &FileMap, _offset: usize, _len: usize) -> Result<Option<Box<dyn Memory>>> {
        Ok(None)
    }
    fn native(&self, _kernel: &Kernel, _constants: &Constants, _options: Options) -> Option<Arc<dyn Executable>> {
        None
    }
    fn precompiled(&self, name: &str, _constants: &Constants, _options: Options) -> Option<Precompiled> {
        let source_hash = *self.pack.lock().unwrap().get(name)?;
        Some(Precompiled { executable: Arc::new(Function(name.to_owned())), source_hash })
    }
    fn compiler(&self) -> Option<&dyn Compiler> {
        Some(self)
    }
    fn submit(&self, _commands: &Arc<Commands>) -> Result<Box<dyn Pending>> {
        Err(Error::Execution { device: "counting".into(), message: "cannot run".into() })
    }
    fn prepare(&self, _commands: &Arc<Commands>) -> Result<Box<dyn Replay>> {
        Err(Error::Execution { device: "counting".into(), message: "cannot run".into() })
    }
}

/// A device with a counting compiler that takes `delay` for each text.
pub(crate) fn counting(delay: Duration) -> (Arc<CountingBackend>, Device) {
    let backend = Arc::new(CountingBackend {
        info: DeviceInfo::new("counting", "counting", "none", 0, 1),
        compiles: AtomicUsize::new(0),
        loads: AtomicUsize::new(0),
        probes: AtomicUsize::new(0),
        by_text: Mutex::default(),
        delay,
        pack: Mutex::default(),
    });
    (backend.clone(), Device::new(backend))
}
