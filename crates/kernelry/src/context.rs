//! A context: a device, a registry and a pool, which is what most callers pass around.

use std::sync::Arc;

use crate::config::Config;
use crate::device::Device;
use crate::dtype::Element;
use crate::encoder::Encoder;
use crate::pool::Pool;
use crate::registry::{Prewarmed, Registry};
use crate::{Buffer, DType, Result};

struct Inner {
    device: Device,
    registry: Registry,
    pool: Pool,
    config: Config,
}

/// A device with a registry and a buffer pool. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

impl Context {
    /// A context of these parts, configured by the process environment (see [`Config`]).
    pub fn new(device: Device, registry: Registry) -> Context {
        let pool = Pool::new(&device);
        Context { inner: Arc::new(Inner { device, registry, pool, config: Config::from_env().clone() }) }
    }

    /// The CPU with a registry of its own.
    pub fn cpu() -> Context {
        Context::new(Device::cpu(), Registry::new())
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }
    /// The registry.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }
    /// The pool of temporaries.
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// An empty encoder.
    pub fn encoder(&self) -> Encoder {
        Encoder::new(self)
    }

    /// Builds, in parallel, the kernels that `record` launches by name; nothing is recorded. Kernels that are compiled from source take
    /// seconds each, one after the other, when the first launch is what asks for them.
    ///
    /// # Errors
    /// What `record` gives. A kernel that cannot be built is in the report, and an error where it is launched.
    pub fn prewarm(&self, record: impl FnOnce(&mut Encoder) -> Result<()>) -> Result<Prewarmed> {
        let mut encoder = Encoder::of_names(self);
        record(&mut encoder)?;
        let names = encoder.into_names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Ok(self.registry().prewarm(self.device(), &names))
    }

    /// A zeroed buffer; see [`Buffer::zeros`].
    ///
    /// # Errors
    /// As [`Buffer::zeros`].
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Buffer> {
        Buffer::zeros(self.device(), dtype, shape)
    }

    /// A buffer with these elements; see [`Buffer::from_slice`].
    ///
    /// # Errors
    /// As [`Buffer::from_slice`].
    pub fn upload<T: Element>(&self, data: &[T], shape: &[usize]) -> Result<Buffer> {
        Buffer::from_slice(self.device(), data, shape)
    }
}
