//! Writing files.

use std::io::Write;
use std::path::Path;

use super::cursor::Item;
use super::value::{Array, Value};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Limits, MAGIC, align_up, data_bytes, fault};
use crate::atomic_file::AtomicFile;
use crate::quant::GgmlType;
use crate::{Error, Result};

struct Declared {
    name: String,
    shape: Vec<usize>,
    ty: GgmlType,
    offset: u64,
    bytes: u64,
}

/// Collects metadata and tensor declarations, then writes a version 3 file.
///
/// Tensors are declared first and their data streamed afterwards, because the header comes first in the file.
pub struct GgufWriter {
    alignment: u64,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Declared>,
    names: hashbrown::HashSet<String>,
    keys: hashbrown::HashSet<String>,
    data_end: u64,
}

impl Default for GgufWriter {
    fn default() -> GgufWriter {
        GgufWriter::new()
    }
}

impl GgufWriter {
    /// An empty file with alignment 32.
    pub fn new() -> GgufWriter {
        GgufWriter {
            alignment: DEFAULT_ALIGNMENT,
            metadata: Vec::new(),
            tensors: Vec::new(),
            names: hashbrown::HashSet::new(),
            keys: hashbrown::HashSet::new(),
            data_end: 0,
        }
    }

    /// An empty file with another alignment, which becomes the key `general.alignment`.
    ///
    /// # Errors
    /// [`Error::Format`] unless it is a power of two.
    pub fn with_alignment(alignment: u32) -> Result<GgufWriter> {
        if !alignment.is_power_of_two() {
            return Err(fault(Item::Key(ALIGNMENT_KEY), format!("got {alignment}, expected a power of two")));
        }
        let mut writer = GgufWriter::new();
        writer.alignment = alignment.into();
        writer.add(ALIGNMENT_KEY, Value::U32(alignment))?;
        Ok(writer)
    }

    /// Adds a metadata value.
    ///
    /// # Errors
    /// [`Error::Format`] if the key exists, is `general.alignment`, or the value is nested too deeply to be read back.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<&mut GgufWriter> {
        if key == ALIGNMENT_KEY {
            return Err(fault(Item::Key(key), "is set by the constructor"));
        }
        self.add(key, value.into())
    }

    fn add(&mut self, key: &str, value: Value) -> Result<&mut GgufWriter> {
        let limits = Limits::default();
        if self.metadata.len() as u64 >= limits.max_keys {
            return Err(fault(Item::Key(key), format!("more than {} keys", limits.max_keys)));
        }
        if let Value::Array(array) = &value
            && depth(array) > limits.max_nesting
        {
            return Err(fault(Item::Key(key), format!("arrays nested deeper than {}", limits.max_nesting)));
        }
        if !self.keys.insert(key.to_owned()) {
            return Err(fault(Item::Key(key), "occurs twice"));
        }
        self.metadata.push((key.to_owned(), value));
        Ok(self)
    }

    /// Declares a tensor; `shape` has the fastest dimension last, so a weight is `[N, K]`.
    ///
    /// # Errors
    /// [`Error::Format`] if the name exists, the rank is above 8, rows are not whole blocks, or the size overflows.
    pub fn tensor(&mut self, name: &str, ty: GgmlType, shape: &[usize]) -> Result<&mut GgufWriter> {
        let (item, limits) = (Item::Tensor(name), Limits::default());
        if self.tensors.len() as u64 >= limits.max_tensors {
            return Err(fault(item, format!("more than {} tensors", limits.max_tensors)));
        }
        if shape.len() > limits.max_rank as usize {
            return Err(fault(item, format!("{} dimensions, at most {} allowed", shape.len(), limits.max_rank)));
        }
        let bytes = data_bytes(ty, shape).map_err(|problem| fault(item, problem))? as u64;
        let end = self.data_end.checked_add(bytes).and_then(|end| align_up(end, self.alignment));
        let Some(end) = end else {
            return Err(fault(item, "ends beyond any file"));
        };
        if !self.names.insert(name.to_owned()) {
            return Err(fault(item, "occurs twice"));
        }
        self.tensors.push(Declared { name: name.to_owned(), shape: shape.to_vec(), ty, offset: self.data_end, bytes });
        self.data_end = end;
        Ok(self)
    }

    fn header(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        put_u32(&mut out, MAGIC);
        put_u32(&mut out, 3);
        put_u64(&mut out, self.tensors.len() as u64);
        put_u64(&mut out, self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            put_u32(&mut out, value.ty() as u32);
            put_value(&mut out, value);
        }
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            put_u32(&mut out, tensor.shape.len() as u32);
            tensor.shape.iter().rev().for_each(|&dim| put_u64(&mut out, dim as u64));
            put_u32(&mut out, tensor.ty.id());
            put_u64(&mut out, tensor.offset);
        }
        let end = align_up(out.len() as u64, self.alignment).and_then(|end| usize::try_from(end).ok());
        out.resize(end.ok_or_else(|| fault(Item::Header, "does not fit in memory"))?, 0);
        Ok(out)
    }

    /// Starts a file on disk. It gets its name when [`GgufStream::finish`] succeeds; before that nothing is there under that name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(self, path: impl AsRef<Path>) -> Result<GgufStream> {
        let mut file = AtomicFile::create(path.as_ref())?;
        let header = self.header()?;
        file.write_all(&header).map_err(|e| Error::io(path.as_ref(), e))?;
        Ok(GgufStream { file, alignment: self.alignment, tensors: self.tensors.into_iter(), current: None })
    }

    /// The whole file in memory, with the data of each tensor in the order of declaration.
    ///
    /// # Errors
    /// [`Error::Format`] if there are more or fewer data than tensors, or some have the wrong length.
    pub fn to_bytes(&self, data: &[&[u8]]) -> Result<Vec<u8>> {
        if data.len() != self.tensors.len() {
            return Err(fault(Item::Header, format!("got data of {} tensors, expected {}", data.len(), self.tensors.len())));
        }
        let mut out = self.header()?;
        for (tensor, data) in self.tensors.iter().zip(data) {
            if data.len() as u64 != tensor.bytes {
                let problem = format!("got {} bytes, expected {}", data.len(), tensor.bytes);
                return Err(fault(Item::Tensor(&tensor.name), problem));
            }
            out.extend_from_slice(data);
            out.resize(out.len() + padding(tensor.bytes, self.alignment), 0);
        }
        Ok(out)
    }
}

/// A file being written: expects the data of the declared tensors in order.
pub struct GgufStream {
    file: AtomicFile,
    alignment: u64,
    tensors: std::vec::IntoIter<Declared>,
    /// The tensor that was begun, and the bytes it still lacks.
    current: Option<(Declared, u64)>,
}

impl GgufStream {
    /// Writes the next bytes of a tensor; its data may come in any number of pieces.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not this tensor's turn or it gets more bytes than declared, [`Error::Io`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let item = Item::Tensor(name);
        if self.current.as_ref().is_none_or(|(tensor, left)| *left == 0 && tensor.name != name) {
            self.current = self.tensors.next().map(|tensor| {
                let left = tensor.bytes;
                (tensor, left)
            });
        }
        let Some((tensor, left)) = &mut self.current else {
            return Err(fault(item, "all declared tensors are written"));
        };
        if tensor.name != name {
            return Err(fault(item, format!("written out of order: expected `{}`, which lacks {left} bytes", tensor.name)));
        }
        let Some(after) = left.checked_sub(bytes.len() as u64) else {
            return Err(fault(item, format!("got {} bytes, {left} of {} are left to write", bytes.len(), tensor.bytes)));
        };
        *left = after;
        let pad = if after == 0 && !bytes.is_empty() { padding(tensor.bytes, self.alignment) } else { 0 };
        let result = self.file.write_all(bytes).and_then(|()| write_zeros(&mut self.file, pad));
        result.map_err(|e| Error::io(self.file.target(), e))
    }

    /// Flushes the file and gives it its name, replacing one that is there.
    ///
    /// # Errors
    /// [`Error::Format`] if data are missing, [`Error::Io`]. In both cases nothing is left behind.
    pub fn finish(mut self) -> Result<()> {
        let begun = self.current.take().filter(|(_, left)| *left > 0);
        let unwritten = begun.or_else(|| self.tensors.find(|tensor| tensor.bytes > 0).map(|tensor| (tensor, 0)));
        if let Some((tensor, left)) = unwritten {
            let left = if left == 0 { tensor.bytes } else { left };
            return Err(fault(Item::Tensor(&tensor.name), format!("lacks {left} of {} bytes", tensor.bytes)));
        }
        self.file.commit()
    }
}

fn padding(bytes: u64, alignment: u64) -> usize {
    (bytes.wrapping_neg() & (alignment - 1)) as usize
}

fn write_zeros(file: &mut impl Write, mut n: usize) -> std::io::Result<()> {
    const ZEROS: [u8; 256] = [0; 256];
    while n > 0 {
        let piece = n.min(ZEROS.len());
        file.write_all(&ZEROS[..piece])?;
        n -= piece;
    }
    Ok(())
}

fn depth(array: &Array) -> u32 {
    match array {
        Array::Array(inner) => 1 + inner.iter().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend_from_slice(&v.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend_from_slice(&v.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, v: &str) {
    put_u64(out, v.len() as u64);
    out.extend_from_slice(v.as_bytes());
}

macro_rules! put_number {
    ($out:expr, $v:expr) => {
        $out.extend_from_slice(&$v.to_le_bytes())
    };
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => put_number!(out, v),
        Value::I8(v) => put_number!(out, v),
        Value::U16(v) => put_number!(out, v),
        Value::I16(v) => put_number!(out, v),
        Value::U32(v) => put_number!(out, v),
        Value::I32(v) => put_number!(out, v),
        Value::F32(v) => put_number!(out, v),
        Value::U64(v) => put_number!(out, v),
        Value::I64(v) => put_number!(out, v),
        Value::F64(v) => put_number!(out, v),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    put_u32(out, array.element_type() as u32);
    put_u64(out, array.len() as u64);
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::U16(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::I16(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::U32(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::I32(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::F32(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::U64(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::I64(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::F64(v) => v.iter().for_each(|v| put_number!(out, v)),
        Array::Bool(v) => v.iter().for_each(|v| out.push(u8::from(*v))),
        Array::String(v) => v.iter().for_each(|v| put_string(out, v)),
        Array::Array(v) => v.iter().for_each(|v| put_array(out, v)),
    }
}
