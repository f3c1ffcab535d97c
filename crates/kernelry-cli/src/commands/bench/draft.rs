//! A file that is there whole or not at all.

use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use crate::failure::{CliResult, Failure};

/// A file to be written at the end of a run, of which one wants to know at the beginning whether that will work.
pub(super) struct Draft {
    path: PathBuf,
    /// Where the text is until it is whole; none for what cannot be replaced, such as a pipe.
    beside: Option<PathBuf>,
}

impl Draft {
    /// Tries whether `path` can be written, and leaves everything as it was.
    pub(super) fn new(path: &Path) -> CliResult<Draft> {
        Draft::probe(path).map_err(|e| Failure::runtime(format!("{}: {e}", path.display())))
    }

    fn probe(path: &Path) -> Result<Draft> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        match path.metadata() {
            Ok(there) if there.is_dir() => return Err(Error::new(ErrorKind::IsADirectory, "is a folder, expected a file")),
            Ok(there) if !there.is_file() => return Ok(Draft { path, beside: None }),
            Ok(there) if there.permissions().readonly() => return Err(Error::new(ErrorKind::PermissionDenied, "is read-only")),
            _ => {}
        }
        let name = path.file_name().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "is not the name of a file"))?;
        let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        std::fs::write(&beside, "")?;
        std::fs::remove_file(&beside)?;
        Ok(Draft { path, beside: Some(beside) })
    }

    /// Writes the file.
    pub(super) fn write(&self, text: &str) -> CliResult {
        let written = match &self.beside {
            None => std::fs::write(&self.path, text),
            Some(beside) => std::fs::write(beside, text).and_then(|()| std::fs::rename(beside, &self.path)).inspect_err(|_| {
                let _ = std::fs::remove_file(beside);
            }),
        };
        written.map_err(|e| Failure::runtime(format!("{}: {e}", self.path.display())))
    }
}
