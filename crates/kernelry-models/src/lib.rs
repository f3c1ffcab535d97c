//! Language models on Kernelry ops.

pub mod tokenizer;
