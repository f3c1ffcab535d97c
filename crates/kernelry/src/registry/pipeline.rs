//! Pipelines: handles to compiled kernels.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Constants, KernelId, Options};
use crate::backend::Executable;
use crate::catalogue::Kernel;
use crate::device::Device;

/// Where a pipeline came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// A native function of the backend.
    BuiltIn,
    /// A pack made ahead of time.
    Precompiled,
    /// The cache on disk.
    DiskCache,
    /// Compiled from text in this process.
    RuntimeSource,
}

/// What a pipeline is and where it came from.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Identity {
    /// Textual key: name and constants.
    pub label: String,
    /// Where it came from.
    pub origin: Origin,
    /// Hash of text, constants, options, toolchain and architecture; zeros for native functions.
    pub content_hash: [u8; 32],
    /// Options it was made with.
    pub options: Options,
    /// Device name.
    pub device: String,
    /// Time it took to build.
    pub build_time: Duration,
    /// Why a faster origin was skipped, if one was.
    pub fallback: Option<String>,
}

pub(crate) struct PipelineInner {
    pub(crate) device: Device,
    pub(crate) kernel: KernelId,
    pub(crate) entry: Option<&'static Kernel>,
    pub(crate) name: Arc<str>,
    pub(crate) constants: Constants,
    pub(crate) identity: Identity,
    pub(crate) executable: Arc<dyn Executable>,
}

/// A compiled kernel. Cheap to clone; works on after the registry has dropped or replaced it. Two handles are equal if they are the
/// same object.
#[derive(Clone)]
pub struct Pipeline(Arc<PipelineInner>);

impl Pipeline {
    pub(super) fn new(inner: PipelineInner) -> Pipeline {
        Pipeline(Arc::new(inner))
    }

    /// Kernel name.
    pub fn name(&self) -> &str {
        &self.0.name
    }
    /// Interned kernel name.
    pub fn kernel_id(&self) -> KernelId {
        self.0.kernel
    }
    /// Textual key, as profilers show it.
    pub fn label(&self) -> &str {
        &self.0.identity.label
    }
    /// Device it was made for.
    pub fn device(&self) -> &Device {
        &self.0.device
    }
    /// Catalogue entry, unless the kernel exists through `register_source` only.
    pub fn entry(&self) -> Option<&'static Kernel> {
        self.0.entry
    }
    /// Constants it was specialised with.
    pub fn constants(&self) -> &Constants {
        &self.0.constants
    }
    /// What it is and where it came from.
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }
    /// The backend's function.
    pub fn executable(&self) -> &dyn Executable {
        self.0.executable.as_ref()
    }
}

impl PartialEq for Pipeline {
    fn eq(&self, other: &Pipeline) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Pipeline {}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipeline({} on {:?})", self.label(), self.device())
    }
}
