//! Products with GGML blocks on the CPU.

pub(crate) mod kernels;
