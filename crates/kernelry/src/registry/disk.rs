//! The cache on disk: what a compiler made, by the hash of everything that it was made from.
//!
//! An entry is a file of its own: magic, version, lengths, key, checksum, then what is told of it and the artefact. Files are written under
//! a temporary name and renamed, so that any number of processes can share a folder without a lock. Nothing here is ever an error of a
//! lookup: an entry with any defect is compiled again and overwritten, and a folder that cannot be written costs time only.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::atomic_file::AtomicFile;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"KNLCACHE";
const VERSION: u32 = 1;
/// Magic, version, length of the description, length of the artefact, key, checksum.
const HEADER: usize = 8 + 4 + 4 + 8 + 32 + 32;
const EXTENSION: &str = "kcache";

/// What is told of an entry besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheLabel {
    /// Textual key of the pipeline that it was first compiled for.
    pub kernel: String,
    /// Backend.
    pub backend: String,
    /// Compiler name and build, options and architecture.
    pub toolchain: String,
}

/// An entry of the cache, as the command line lists it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CacheEntry {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// When it was written.
    pub modified: Option<SystemTime>,
    /// What is told of it; nothing if that cannot be read.
    pub label: Option<CacheLabel>,
    /// What is wrong with it; it would be compiled again.
    pub problem: Option<String>,
}

/// A folder of compiled texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCache {
    dir: PathBuf,
}

impl DiskCache {
    /// The cache in a folder, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> DiskCache {
        DiskCache { dir: dir.into() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, key: &[u8; 32]) -> PathBuf {
        self.dir.join(format!("{}.{EXTENSION}", blake3::Hash::from_bytes(*key).to_hex()))
    }

    /// The artefact of a key; nothing if there is no entry.
    ///
    /// # Errors
    /// What is wrong with the entry, in words.
    pub(super) fn load(&self, key: &[u8; 32]) -> Result<Option<Vec<u8>>, String> {
        let mut data = match std::fs::read(self.path(key)) {
            Ok(data) => data,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(format!("disk cache: entry cannot be read: {e}")),
        };
        let (_, artefact) = parse(&data, Some(key)).map_err(|problem| format!("disk cache: entry {problem}"))?;
        let start = data.len() - artefact.len();
        data.drain(..start);
        Ok(Some(data))
    }

    /// Keeps an artefact, over whatever is there.
    ///
    /// # Errors
    /// Why it could not be kept, in words.
    pub(super) fn store(&self, key: &[u8; 32], label: &CacheLabel, artefact: &[u8]) -> Result<(), String> {
        self.write(key, label, artefact).map_err(|e| format!("disk cache: not written: {e}"))
    }

    fn write(&self, key: &[u8; 32], label: &CacheLabel, artefact: &[u8]) -> Result<()> {
        let path = self.path(key);
        let mut folder = std::fs::DirBuilder::new();
        folder.recursive(true);
        // What lies here is run: nobody else may put anything in.
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        folder.create(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let label = serde_json::to_vec(label).map_err(|e| Error::io(&path, e.into()))?;
        let mut head = Vec::with_capacity(HEADER + label.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&(label.len() as u32).to_le_bytes());
        head.extend_from_slice(&(artefact.len() as u64).to_le_bytes());
        head.extend_from_slice(key);
        let checksum = checksum(&head, &label, artefact);
        head.extend_from_slice(&checksum);
        head.extend_from_slice(&label);
        let mut file = AtomicFile::create(&path)?;
        file.write_all(&head).and_then(|()| file.write_all(artefact)).map_err(|e| Error::io(&path, e))?;
        file.commit()
    }

    /// All entries, by path. With `verify` each is read whole and checked; without, its header alone.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read; a folder that is not there has no entries.
    pub fn entries(&self, verify: bool) -> Result<Vec<CacheEntry>> {
        let mut entries = Vec::new();
        for path in self.files()? {
            let Some(key) = key_of(&path) else { continue };
            let metadata = std::fs::metadata(&path).ok();
            let bytes = metadata.as_ref().map_or(0, std::fs::Metadata::len);
            let found = if verify {
                std::fs::read(&path).map_err(|e| e.to_string()).and_then(|data| Ok(parse(&data, Some(&key))?.0))
            } else {
                header(&path)
            };
            let (label, problem) = match found {
                Ok(label) => (Some(label), None),
                Err(problem) => (None, Some(problem)),
            };
            entries.push(CacheEntry { path, bytes, modified: metadata.and_then(|m| m.modified().ok()), label, problem });
        }
        Ok(entries)
    }

    /// Removes every entry, and the temporary files of processes that were killed. Other files stay. Returns how many files of how many
    /// bytes are gone.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be removed.
    pub fn clear(&self) -> Result<(usize, u64)> {
        let (mut count, mut bytes) = (0, 0);
        for path in self.files()? {
            let size = std::fs::metadata(&path).map_or(0, |m| m.len());
            match std::fs::remove_file(&path) {
                Ok(()) => (count, bytes) = (count + 1, bytes + size),
                // Another process was faster.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io(&path, e)),
            }
        }
        Ok((count, bytes))
    }

    /// Why nothing can be written to the folder, if that is so. Makes the folder.
    pub fn write_problem(&self) -> Option<String> {
        let probe = [0u8; 32];
        let wrote = self.write(&probe, &CacheLabel::default(), &[]);
        let _ = std::fs::remove_file(self.path(&probe));
        wrote.err().map(|e| e.to_string())
    }

    /// Files that this module writes, by path.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io(&self.dir, e)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io(&self.dir, e))?.path();
            if key_of(&path).is_some() || is_temporary(&path) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths)
    }
}

/// The key in the name of an entry's file.
fn key_of(path: &Path) -> Option<[u8; 32]> {
    let stem = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    blake3::Hash::from_hex(stem).ok().map(|hash| *hash.as_bytes())
}

/// Whether a file is one of those that become entries by renaming.
fn is_temporary(path: &Path) -> bool {
    let inner = || path.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(".tmp");
    inner().and_then(|name| key_of(Path::new(name.rsplit_once('.')?.0))).is_some()
}

fn checksum(head: &[u8], label: &[u8], artefact: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(label).update(artefact).finalize().as_bytes()
}

fn header(path: &Path) -> Result<CacheLabel, String> {
    let read = || -> std::io::Result<(Vec<u8>, u64)> {
        let mut file = File::open(path)?;
        let mut head = vec![0; HEADER];
        file.read_exact(&mut head)?;
        let label = head.get(12..16).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        Read::by_ref(&mut file).take(u64::from(label)).read_to_end(&mut head)?;
        Ok((head, file.metadata()?.len()))
    };
    let (head, len) = read().map_err(|e| e.to_string())?;
    let (label, artefact) = fields(&head, None)?;
    if (head.len() as u64).checked_add(artefact) != Some(len) {
        return Err("has the wrong length".into());
    }
    serde_json::from_slice(label).map_err(|e| format!("has a broken description: {e}"))
}

/// Checks magic, version and key; gives the description's bytes and the artefact's length.
fn fields<'a>(data: &'a [u8], key: Option<&[u8; 32]>) -> Result<(&'a [u8], u64), String> {
    let take = |from: usize, len: usize| data.get(from..from.checked_add(len)?);
    let short = || "is cut short".to_owned();
    if take(0, 8).ok_or_else(short)? != MAGIC {
        return Err("is not of this cache".into());
    }
    let word = |at: usize| take(at, 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).ok_or_else(short);
    let version = word(8)?;
    if version != VERSION {
        return Err(format!("has version {version}, expected {VERSION}"));
    }
    let artefact = take(16, 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or_else(short)?;
    if key.is_some_and(|key| take(24, 32) != Some(key)) {
        return Err("belongs to another key".into());
    }
    Ok((take(HEADER, word(12)? as usize).ok_or_else(short)?, artefact))
}

/// Checks a whole entry; gives what is told of it, and the artefact, which is the end of `data`.
fn parse<'a>(data: &'a [u8], key: Option<&[u8; 32]>) -> Result<(CacheLabel, &'a [u8]), String> {
    let (label, length) = fields(data, key)?;
    let artefact = data.get(HEADER + label.len()..).unwrap_or_default();
    if artefact.len() as u64 != length {
        return Err("has the wrong length".into());
    }
    let (head, stored) = (data.get(..HEADER - 32).unwrap_or_default(), data.get(HEADER - 32..HEADER).unwrap_or_default());
    if checksum(head, label, artefact) != *stored {
        return Err("does not match its checksum".into());
    }
    let label = serde_json::from_slice(label).map_err(|e| format!("has a broken description: {e}"))?;
    Ok((label, artefact))
}
