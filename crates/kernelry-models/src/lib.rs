//! Language models on Kernelry ops.
