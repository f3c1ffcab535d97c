//! A backend whose compiler only counts, for the registry's tests: the one place where nothing real is compiled, because what is
//! tested is how often, when and with what the compiler is called.
#![allow(dead_code, clippy::unwrap_used)]

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kernelry::backend::{Backend, Capability, Compiler, DeviceInfo, Executable, Memory, Module, Pending, Replay, Support, Unit};
use kernelry::catalogue::Kernel;
use kernelry::registry::{Constants, Options, Pipeline};
use kernelry::{Commands, Device, Error, FileMap, Result};

/// What artefacts of the counting compiler start with.
const ARTEFACT: &str = "compiled: ";

pub(crate) struct CountingBackend {
    info: DeviceInfo,
    pub(crate) compiles: AtomicUsize,
    pub(crate) loads: AtomicUsize,
    pub(crate) probes: AtomicUsize,
    pub(crate) by_text: Mutex<HashMap<String, usize>>,
    pub(crate) delay: Duration,
    /// Loads that will be refused.
    pub(crate) refusals: AtomicUsize,
    /// Kernels that compiled texts lack though the text has them.
    pub(crate) lost: Mutex<Vec<String>>,
    toolchain: String,
}

/// A function that tells which text it came from.
pub(crate) struct Function {
    pub(crate) text: String,
}
impl Executable for Function {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct Text {
    text: String,
    lost: Vec<String>,
}
impl Module for Text {
    fn function(&self, entry: &str) -> Result<Arc<dyn Executable>, String> {
        if self.text.contains("no entry") || self.lost.iter().any(|l| l == entry) {
            return Err(format!("no function `{entry}`"));
        }
        Ok(Arc::new(Function { text: self.text.clone() }))
    }
}

/// The text that a pipeline of a counting device was made from.
pub(crate) fn text_of(pipeline: &Pipeline) -> &str {
    &pipeline.executable().as_any().downcast_ref::<Function>().unwrap().text
}

impl Compiler for CountingBackend {
    fn toolchain(&self) -> &str {
        &self.toolchain
    }
    fn compile(&self, unit: &Unit<'_>) -> Result<Vec<u8>, String> {
        self.compiles.fetch_add(1, Ordering::SeqCst);
        *self.by_text.lock().unwrap().entry(format!("{} {:?}", unit.text, unit.constants)).or_default() += 1;
        std::thread::sleep(self.delay);
        if unit.text.contains("#error") { Err("line 1: #error".into()) } else { Ok(format!("{ARTEFACT}{}", unit.text).into_bytes()) }
    }
    fn load(&self, artefact: &[u8]) -> Result<Arc<dyn Module>, String> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err("refused".into());
        }
        let text = std::str::from_utf8(artefact).ok().and_then(|a| a.strip_prefix(ARTEFACT)).ok_or("not an artefact")?;
        Ok(Arc::new(Text { text: text.to_owned(), lost: self.lost.lock().unwrap().clone() }))
    }
    fn effective(&self, _options: Options) -> Options {
        Options::default()
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
    counting_as("counting", "counting 1", delay)
}

/// The same with the names of the backend and of the compiler.
pub(crate) fn counting_as(backend: &str, toolchain: &str, delay: Duration) -> (Arc<CountingBackend>, Device) {
    let backend = Arc::new(CountingBackend {
        info: DeviceInfo::new(backend, "counting", "none", 0, 1),
        compiles: AtomicUsize::new(0),
        loads: AtomicUsize::new(0),
        probes: AtomicUsize::new(0),
        by_text: Mutex::default(),
        delay,
        refusals: AtomicUsize::new(0),
        lost: Mutex::default(),
        toolchain: toolchain.to_owned(),
    });
    (backend.clone(), Device::new(backend))
}
