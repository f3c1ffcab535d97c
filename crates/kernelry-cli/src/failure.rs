//! Why a command failed, and the exit code that follows.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use kernelry::Error;

pub(crate) type CliResult<T = ()> = Result<T, Failure>;

/// What ends a command before its work is done.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
}

const RUNTIME: u8 = 1;
const USAGE: u8 = 2;

impl Failure {
    /// Something went wrong though the command line was right.
    pub(crate) fn runtime(message: impl Into<String>) -> Failure {
        Failure { code: RUNTIME, message: message.into(), hint: None }
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { code: USAGE, message: message.into(), hint: None }
    }

    /// A file could not be used. Errors of the operating system name it already.
    pub(crate) fn file(path: &Path, error: &Error) -> Failure {
        match error {
            Error::Io { .. } => Failure::runtime(error.to_string()),
            _ => Failure::runtime(format!("{}: {error}", path.display())),
        }
    }

    /// Ctrl-C ended it.
    pub(crate) fn interrupted() -> Failure {
        Failure { code: crate::interrupt::EXIT_CODE, message: "interrupted".into(), hint: None }
    }

    /// Ctrl-C ended it, and what was done until then has been shown.
    pub(crate) fn stopped() -> Failure {
        Failure { message: String::new(), ..Failure::interrupted() }
    }

    /// The command has said on standard output what failed: only the exit code is left.
    pub(crate) fn reported() -> Failure {
        Failure::runtime("")
    }

    /// What the user can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Standard output cannot be written. A reader that has seen enough (`kernelry list | head`) is not an error.
    pub(crate) fn stdout(error: &std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure { code: 0, message: String::new(), hint: None };
        }
        Failure::runtime(format!("standard output: {error}"))
    }

    /// Prints it to standard error.
    pub(crate) fn report(self) -> ExitCode {
        // Where standard error is gone too, nobody is left to tell.
        let mut err = std::io::stderr().lock();
        if !self.message.is_empty() {
            let _ = writeln!(err, "{} {}", crate::output::paint_err("1;31", "error:"), self.message);
        }
        if let Some(hint) = self.hint {
            let _ = writeln!(err, "{} {hint}", crate::output::paint_err("36", "hint:"));
        }
        ExitCode::from(self.code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        match error {
            Error::KernelNotFound { .. } => Failure::usage(message).hint("`kernelry list` shows every kernel"),
            Error::InvalidArgument { .. } | Error::InvalidConstant { .. } | Error::UnsupportedDType { .. } => Failure::usage(message),
            Error::BackendUnsupported { name, .. } => {
                Failure::runtime(message).hint(format!("`kernelry info {name}` shows which backends have it"))
            }
            _ => Failure::runtime(message),
        }
    }
}
