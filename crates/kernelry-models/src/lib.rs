//! Language models on Kernelry's ops: loading from GGUF, sessions with a KV cache, tokenizers, chat templates, sampling, generation.
//!
//! Nothing here knows which backend runs.

pub mod chat;
mod config;
mod forward;
mod generate;
mod model;
pub mod sampler;
mod session;
pub mod stop;
pub mod tokenizer;
mod weights;

pub use config::{Architecture, ModelConfig};
pub use generate::{Generated, Generator, box_model};
pub use model::{KvType, Model, ModelOptions};
pub use session::Session;
