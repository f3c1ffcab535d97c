//! The error type of the whole library.

use std::path::PathBuf;
use std::sync::Arc;

use crate::DType;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, as a value. Texts read `[op] what: got X, expected Y`.
///
/// Errors are cheap to clone because the registry remembers a failed compilation until the source changes.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No kernel of that name is registered.
    #[error("kernel `{name}` not found{}", suggestions(.nearest))]
    KernelNotFound {
        /// The name asked for.
        name: String,
        /// Registered names close to it, nearest first.
        nearest: Vec<String>,
    },
    /// The kernel is in the catalogue, but this backend does not implement it.
    #[error("kernel `{name}` is not available on backend `{backend}`")]
    BackendUnsupported {
        /// Kernel name.
        name: String,
        /// Backend name.
        backend: String,
    },
    /// A kernel text did not compile, or has no entry point of that name.
    #[error("kernel `{name}` ({key}) did not compile: {message}")]
    Compilation {
        /// Kernel name.
        name: String,
        /// Textual key: name and constants.
        key: String,
        /// The compiler's message.
        message: String,
    },
    /// A specialisation constant that the kernel does not accept.
    #[error("kernel `{name}` constant {index}: {reason}")]
    InvalidConstant {
        /// Kernel name.
        name: String,
        /// Constant slot.
        index: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// A pipeline or buffer of one device was used on another.
    #[error("[{op}] device: got an object of device {got}, expected device {expected}")]
    DeviceMismatch {
        /// Operation that noticed.
        op: String,
        /// Device of the object.
        got: String,
        /// Device that was expected.
        expected: String,
    },
    /// The kernel is part of a frozen plan and may not be replaced.
    #[error("kernel `{name}` is protected by a frozen plan and cannot be replaced")]
    ProtectedKernel {
        /// Kernel name.
        name: String,
    },
    /// A launch argument (shape, length, parameter, overlap) is wrong. Nothing was enqueued.
    #[error("[{op}] {what}")]
    InvalidArgument {
        /// Operation, usually the kernel name.
        op: String,
        /// `name: got X, expected Y`.
        what: String,
    },
    /// A buffer has the wrong dtype.
    #[error("[{op}] {what}: got dtype {got}, expected {expected}")]
    UnsupportedDType {
        /// Operation.
        op: String,
        /// Which argument.
        what: String,
        /// Its dtype.
        got: DType,
        /// Accepted dtypes in words.
        expected: String,
    },
    /// Memory could not be allocated.
    #[error("allocation of {bytes} bytes failed: {reason}")]
    Allocation {
        /// Bytes asked for.
        bytes: u64,
        /// Why.
        reason: String,
    },
    /// The device is absent or cannot be used.
    #[error("device `{device}`: {reason}")]
    DeviceNotFound {
        /// Device as asked for.
        device: String,
        /// What is missing.
        reason: String,
    },
    /// Submitted work failed on the device. The only error that a caller may treat as transient.
    #[error("device `{device}` failed while running: {message}")]
    Execution {
        /// Device name.
        device: String,
        /// The driver's message.
        message: String,
    },
    /// An operating-system error on a file.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A file is not what it claims to be. Names the tensor or key at fault.
    #[error("{format}: {item}: {problem}")]
    Format {
        /// `gguf` or `safetensors`.
        format: &'static str,
        /// The tensor, key or part of the header.
        item: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub fn invalid(op: impl Into<String>, what: impl Into<String>) -> Error {
        Error::InvalidArgument { op: op.into(), what: what.into() }
    }

    /// An [`Error::Io`].
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Error {
        Error::Io { path: path.into(), source: Arc::new(source) }
    }

    /// An [`Error::Format`].
    pub fn format(format: &'static str, item: impl Into<String>, problem: impl Into<String>) -> Error {
        Error::Format { format, item: item.into(), problem: problem.into() }
    }
}

fn suggestions(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; did you mean `{}`?", nearest.join("`, `")) }
}
