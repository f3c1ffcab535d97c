//! Registry and library of compute kernels for quantised language models.

mod dtype;
pub mod error;

pub use dtype::{DType, Element};
pub use error::{Error, Result};
