//! Writing files whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::{CliResult, Failure};

/// A file that gets its name only when it is complete, and is removed if that never happens.
pub(crate) struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    kept: bool,
}

impl Pending {
    /// Opens a temporary file beside `target`, so that the rename at the end stays on one file system.
    pub(crate) fn create(target: &Path) -> CliResult<Pending> {
        let failed = |e: std::io::Error| Failure::runtime(format!("{}: {e}", target.display()));
        if target.is_dir() {
            return Err(Failure::runtime(format!("{}: is a directory", target.display())));
        }
        let mut name = target.file_name().map_or_else(Default::default, std::ffi::OsStr::to_os_string);
        name.push(format!(".{}.part", std::process::id()));
        let temporary = target.with_file_name(name);
        let file = File::options().write(true).create_new(true).open(&temporary).map_err(failed)?;
        Ok(Pending { file, temporary, target: target.to_owned(), kept: false })
    }

    /// The file to write to.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name.
    pub(crate) fn keep(mut self) -> CliResult {
        let done = self.file.flush().and_then(|()| self.file.sync_all()).and_then(|()| std::fs::rename(&self.temporary, &self.target));
        done.map_err(|e| Failure::runtime(format!("{}: {e}", self.target.display())))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing more can be done about a file that cannot be removed.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Writes `target` by `fill`, whole or not at all.
pub(crate) fn write_whole(target: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> CliResult {
    let mut pending = Pending::create(target)?;
    fill(pending.file()).map_err(|e| Failure::runtime(format!("{}: {e}", target.display())))?;
    pending.keep()
}
