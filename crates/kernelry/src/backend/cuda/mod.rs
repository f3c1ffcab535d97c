//! NVIDIA GPUs. Compiling for one needs NVRTC alone, and neither a GPU nor a driver.

mod cubin;
pub mod nvrtc;
mod nvrtc_find;
