//! Products with weights that are not quantised, on the CPU.

pub(crate) mod kernels;
