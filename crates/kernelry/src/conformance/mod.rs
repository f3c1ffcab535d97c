//! The conformance suite: every catalogue entry against a slow reference, on any device.
//!
//! Each family has a file here with its references, plain f64 loops written from the definitions that share no code with a backend,
//! and its cases: sizes at every tile edge, and the shapes of real models. Inputs are seeded; small-integer inputs make sums exact in
//! any order, so that the result must be equal, and random inputs are judged by the error bound of the kernel's class. Outputs start
//! as NaN, and guard regions around every buffer must stay untouched.

pub mod activation;
pub mod attention;
pub(crate) mod blocks;
mod case;
mod compare;
pub mod elementwise;
pub mod kv_cache;
pub mod layout;
pub mod matmul;
pub mod moe;
mod negative;
pub mod norm;
pub mod quantized;
pub mod rope;
mod runner;
pub mod sampling;

pub use case::{Case, Cases, CasesFn, Input};
pub use compare::Tolerance;
pub use negative::check_rejections;
pub use runner::{Outcome, Reference, ReferenceFn, case_labels, run_case, run_kernel};
pub(crate) use runner::{dims_of, make_periodic_inputs};
