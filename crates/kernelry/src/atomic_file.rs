//! Files that appear whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// A file written next to its target and renamed over it by [`commit`](AtomicFile::commit). Dropped without that, it is removed.
pub(crate) struct AtomicFile {
    /// `None` only after `commit` has taken it.
    file: Option<BufWriter<File>>,
    temporary: PathBuf,
    target: PathBuf,
}

impl AtomicFile {
    /// Opens a temporary file in the folder of `target`, which is what renaming needs.
    pub(crate) fn create(target: &Path) -> Result<AtomicFile> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let Some(name) = target.file_name() else {
            return Err(Error::io(target, std::io::Error::new(std::io::ErrorKind::InvalidInput, "not the name of a file")));
        };
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let temporary = target.with_file_name(temporary);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(|e| Error::io(target, e))?;
        Ok(AtomicFile { file: Some(BufWriter::with_capacity(1 << 20, file)), temporary, target: target.to_owned() })
    }

    /// Flushes to the disk and renames over the target.
    pub(crate) fn commit(mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let result = file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&self.temporary, &self.target));
        result.map_err(|e| {
            // Best effort: the error that led here is the one to report.
            let _ = std::fs::remove_file(&self.temporary);
            Error::io(&self.target, e)
        })
    }

    /// The name the file will have.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.as_mut().map_or(Ok(0), |file| file.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // Nothing of an abandoned file is worth writing out, and a removal that fails leaves only a hidden temporary file.
            let _ = file.into_parts();
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
