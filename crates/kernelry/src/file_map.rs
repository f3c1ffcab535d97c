//! Read-only bytes of a file, mapped or owned, shared by cloning.

use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result};

enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Box<[u8]>),
}

/// Read-only bytes of a file. Cloning shares them.
#[derive(Clone)]
pub struct FileMap(Arc<Bytes>);

impl FileMap {
    /// Maps a file. Another process that truncates it while it is mapped can end this one with a bus error, as with every mapped
    /// file; the formats above are replaced by renaming, which is safe.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<FileMap> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if metadata.is_dir() {
            return Err(Error::io(path, std::io::Error::new(std::io::ErrorKind::IsADirectory, "is a directory")));
        }
        if metadata.len() == 0 {
            return Ok(FileMap::from_bytes(Vec::new()));
        }
        // SAFETY: the map is private and read-only; see above for truncation by others.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(FileMap(Arc::new(Bytes::Mapped(map))))
    }

    /// Takes bytes that are already in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> FileMap {
        FileMap(Arc::new(Bytes::Owned(bytes.into_boxed_slice())))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &*self.0 {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
