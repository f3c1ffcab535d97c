//! Models: loading, and sessions that run prompts and decode steps.

use std::path::Path;
use std::sync::Arc;

use kernelry::gguf::GgufFile;
use kernelry::ops::rope;
use kernelry::registry::Math;
use kernelry::{Buffer, Context, DType, Error, Result};

use crate::config::ModelConfig;
use crate::session::Session;
use crate::weights::Weights;

/// Element type of the key and value caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvType {
    /// Half precision: half the memory, the default as in llama.cpp.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl KvType {
    /// Dtype of the cache buffers.
    pub const fn dtype(self) -> DType {
        match self {
            KvType::F16 => DType::F16,
            KvType::F32 => DType::F32,
        }
    }
}

/// How a model is loaded and run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelOptions {
    /// Math mode of the matrix products; [`Math::Fast`] by default.
    pub math: Math,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Positions a session has room for; the trained context by default, at most that.
    pub context: Option<usize>,
    /// Prompt tokens processed at once.
    pub batch: usize,
}

impl Default for ModelOptions {
    fn default() -> ModelOptions {
        ModelOptions { math: Math::Fast, kv_type: KvType::F16, context: None, batch: 512 }
    }
}

impl ModelOptions {
    /// Full precision: activations and caches stay f32.
    pub fn precise() -> ModelOptions {
        ModelOptions { math: Math::Precise, kv_type: KvType::F32, ..ModelOptions::default() }
    }

    /// With room for `context` positions.
    pub fn with_context(mut self, context: Option<usize>) -> ModelOptions {
        self.context = context;
        self
    }

    /// With this math mode.
    pub fn with_math(mut self, math: Math) -> ModelOptions {
        self.math = math;
        self
    }

    /// With this many prompt tokens at once.
    pub fn with_batch(mut self, batch: usize) -> ModelOptions {
        self.batch = batch.max(1);
        self
    }
}

pub(crate) struct Inner {
    pub(crate) ctx: Context,
    pub(crate) config: ModelConfig,
    pub(crate) weights: Weights,
    pub(crate) options: ModelOptions,
    /// Rotary frequencies `[head_dim / 2]`.
    pub(crate) inv_freq: Buffer,
}

/// A model on a device, ready to run. Cheap to clone; sessions share its weights.
#[derive(Clone)]
pub struct Model {
    pub(crate) inner: Arc<Inner>,
}

/// Context that a session gets when neither the caller nor memory says otherwise: the caches of a long trained context would take
/// more than the weights.
const DEFAULT_CONTEXT: usize = 4096;

impl Model {
    /// Opens and loads a GGUF file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] naming the tensor or key at fault, or [`Error::Allocation`].
    pub fn open(path: &Path, ctx: &Context, options: ModelOptions) -> Result<Model> {
        Model::load(&GgufFile::open(path)?, ctx, options, &mut |_, _| ())
    }

    /// Loads a parsed file. `progress` is called with bytes done and bytes in the file.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn load(file: &GgufFile, ctx: &Context, options: ModelOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Model> {
        let config = ModelConfig::from_gguf(file)?;
        if let Some(context) = options.context
            && !(1..=config.context_length).contains(&context)
        {
            return Err(Error::invalid("model", format!("context: got {context}, expected 1 to {} positions", config.context_length)));
        }
        let weights = Weights::load(file, ctx, &config, progress)?;
        let mut inv_freq = rope::inv_freq(config.rope_base, config.head_dim, config.head_dim / 2)?;
        inv_freq.iter_mut().for_each(|f| *f = (f64::from(*f) / config.rope_scale) as f32);
        let inv_freq = ctx.upload(&inv_freq, &[config.head_dim / 2])?;
        Ok(Model { inner: Arc::new(Inner { ctx: ctx.clone(), config, weights, options, inv_freq }) })
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// Context it runs in.
    pub fn context(&self) -> &Context {
        &self.inner.ctx
    }

    /// Options it was loaded with.
    pub fn options(&self) -> &ModelOptions {
        &self.inner.options
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        self.inner.weights.parameters
    }

    /// Bytes of the weights as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.inner.weights.bytes
    }

    /// Positions that a session has room for.
    pub fn capacity(&self) -> usize {
        let trained = self.inner.config.context_length;
        self.inner.options.context.unwrap_or(trained.min(DEFAULT_CONTEXT))
    }

    /// A session with an empty cache.
    ///
    /// # Errors
    /// [`Error::Allocation`] if its caches do not fit.
    pub fn session(&self) -> Result<Session> {
        Session::new(self)
    }
}
