//! Measuring kernels: how long a launch takes, and how far that is from what the device can do.
//!
//! A kernel needs nothing of its own to be measured: its shapes are those that its family lists, or the largest of its
//! conformance cases, and its work is the [`cost`](crate::catalogue::Kernel::cost) of its catalogue entry. [`Roofline::measure`] finds
//! the bandwidth and the arithmetic rates of the device first, so that every figure comes with the share of what was possible.

mod gpu;
mod launch;
mod measure;
mod roofline;
mod shapes;
mod stats;

pub use gpu::limit_kernels;
pub use launch::{LaunchCost, LaunchStep};
pub use measure::{Budget, Measurement, Residency, measure};
pub use roofline::{Limit, Roofline};
pub use shapes::{BenchShape, shapes};
pub use stats::Stats;
