//! Devices: an opened backend with an identity.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::backend::{Backend, Capability, DeviceInfo, Support};
use crate::catalogue::Kernel;
use crate::{Error, Result};

/// Identity of an opened device, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An opened device. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Device {
    id: DeviceId,
    backend: Arc<dyn Backend>,
}

impl Device {
    /// Wraps a backend. Two calls give two devices, whose buffers and pipelines do not mix.
    pub fn new(backend: Arc<dyn Backend>) -> Device {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Device { id: DeviceId(NEXT.fetch_add(1, Ordering::Relaxed)), backend }
    }

    /// The CPU, with as many threads as rayon's global pool has.
    pub fn cpu() -> Device {
        Device::new(Arc::new(crate::backend::cpu::CpuBackend::new()))
    }

    /// Opens a device by name: `cpu`, `cuda`, `cuda:1`, `emulator`.
    ///
    /// # Errors
    /// [`Error::DeviceNotFound`] with the reason if there is none of that name here.
    pub fn open(name: &str) -> Result<Device> {
        match name {
            "cpu" => Ok(Device::cpu()),
            #[cfg(feature = "cuda")]
            "cuda" => Device::cuda(0),
            #[cfg(feature = "cuda")]
            name if name.starts_with("cuda:") => match name.get(5..).and_then(|i| i.parse().ok()) {
                Some(index) => Device::cuda(index),
                None => Err(Error::invalid("device", format!("got `{name}`, expected `cuda` or `cuda:` and a number"))),
            },
            #[cfg(feature = "emulator")]
            "emulator" => Device::emulator(crate::Config::from_env().emulator),
            _ => Err(Error::DeviceNotFound { device: name.to_owned(), reason: backend_state(name) }),
        }
    }

    /// NVIDIA GPU number `index` of this machine.
    ///
    /// # Errors
    /// As [`CudaBackend::new`](crate::backend::cuda::CudaBackend::new).
    #[cfg(feature = "cuda")]
    pub fn cuda(index: u32) -> Result<Device> {
        Ok(Device::new(Arc::new(crate::backend::cuda::CudaBackend::new(index)?)))
    }

    /// The emulator, which runs kernel texts for GPUs on the CPU and reports their mistakes.
    ///
    /// # Errors
    /// As [`EmulatorBackend::new`](crate::backend::emulator::EmulatorBackend::new).
    #[cfg(feature = "emulator")]
    pub fn emulator(options: crate::backend::emulator::EmulatorOptions) -> Result<Device> {
        Ok(Device::new(Arc::new(crate::backend::emulator::EmulatorBackend::new(options)?)))
    }

    /// Identity.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// What the device says of itself.
    pub fn info(&self) -> &DeviceInfo {
        self.backend.info()
    }

    /// Whether it has a kernel of the catalogue.
    pub fn support(&self, kernel: &Kernel) -> Support {
        self.backend.support(kernel)
    }

    /// Whether it has an optional ability.
    ///
    /// # Errors
    /// Whatever made the probe fail; "not available" is `Ok(false)`.
    pub fn probe(&self, capability: Capability) -> Result<bool> {
        self.backend.probe(capability)
    }

    /// The backend, for registries and encoders.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        self.id == other.id
    }
}

impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({} {})", self.id, self.info().name)
    }
}

/// Names of all backends that the design knows, whether or not this build has them.
pub const BACKENDS: &[&str] = &["cpu", "cuda", "metal", "emulator"];

/// Why a backend cannot be opened, in words; for `cpu` what it is.
pub fn backend_state(name: &str) -> String {
    match name {
        "cpu" => format!("available: {}", crate::backend::cpu::describe()),
        #[cfg(feature = "cuda")]
        name if name == "cuda" || name.starts_with("cuda:") => crate::backend::cuda::CudaBackend::describe(),
        #[cfg(feature = "emulator")]
        "emulator" => crate::backend::emulator::EmulatorBackend::describe(),
        name if BACKENDS.contains(&name) => "this build has no such backend".to_owned(),
        _ => format!("unknown backend, expected one of: {}", BACKENDS.join(", ")),
    }
}
