//! Language models on Kernelry ops.

pub mod chat;
pub mod sampler;
pub mod stop;
pub mod tokenizer;
