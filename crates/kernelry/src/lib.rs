//! Registry and library of compute kernels for quantised language models.
//!
//! Kernels are known by name ([`catalogue`]), compiled lazily and cached ([`registry`]), launched on [`Buffer`]s through an
//! [`Encoder`] that checks every argument and derives barriers, and checked against slow references ([`conformance`]).
//!
//! ```
//! use kernelry::{Context, DType, ops::norm::RmsNorm};
//!
//! let ctx = Context::cpu();
//! let x = ctx.upload(&[3.0f32, 4.0], &[1, 2])?;
//! let weight = ctx.upload(&[1.0f32, 2.0], &[2])?;
//! let out = ctx.zeros(DType::F32, &[1, 2])?;
//! let mut encoder = ctx.encoder();
//! RmsNorm { x: &x, weight: &weight, out: &out, eps: 0.0 }.encode(&mut encoder)?;
//! encoder.run()?;
//! let y = out.to_vec::<f32>()?;
//! assert!((y[0] - 0.8485).abs() < 1e-4 && (y[1] - 2.2627).abs() < 1e-4);
//! # Ok::<(), kernelry::Error>(())
//! ```

mod access;
mod atomic_file;
pub mod backend;
pub mod bench;
mod buffer;
pub mod catalogue;
mod commands;
mod config;
pub mod conformance;
mod context;
mod device;
mod dtype;
mod encoder;
pub mod error;
mod file_map;
pub mod gguf;
pub mod ops;
mod pool;
pub mod quant;
pub mod registry;
pub mod safetensors;

pub use buffer::{Buffer, HostSlice, HostSliceMut};
pub use commands::{Command, Commands, Launch, LaunchArg};
pub use config::Config;
pub use context::Context;
pub use device::{BACKENDS, Device, DeviceId, backend_state};
pub use dtype::{DType, Element};
pub use encoder::{Counters, Encoder, Graph, Submission, counters, reset_counters};
pub use error::{Error, Result};
pub use file_map::FileMap;
pub use half::{bf16, f16};
pub use pool::{Lease, Pool, PoolStats};
pub use registry::Registry;
