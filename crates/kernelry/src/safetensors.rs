//! safetensors files: named tensors of plain numbers, in one file or in shards.
//!
//! ```
//! use kernelry::DType;
//! use kernelry::safetensors::{NewTensor, SafeTensors, to_bytes};
//!
//! let weight = NewTensor { name: "weight", dtype: DType::F32, shape: &[1, 2], bytes: &[0, 0, 128, 63, 0, 0, 0, 64] };
//! let file = SafeTensors::from_bytes(to_bytes(&[weight], &[])?)?;
//! assert_eq!(file.tensor("weight")?.shape, [1, 2]);
//! assert_eq!(file.read_f32("weight")?, [1.0, 2.0]);
//! # Ok::<(), kernelry::Error>(())
//! ```
//!
//! Layout: a little-endian u64 with the length of the header, a JSON header, and data that the tensors cover without gaps.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};

use crate::atomic_file::AtomicFile;
use crate::{DType, Error, FileMap, Result};

/// Longest header that is read, as in the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header entry that holds text instead of a tensor.
const METADATA_KEY: &str = "__metadata__";

/// Name of the file that lists the shards of a model.
const INDEX_NAME: &str = "model.safetensors.index.json";

/// Bytes before the header.
const PREFIX: usize = 8;

fn fault(item: impl fmt::Display, problem: impl Into<String>) -> Error {
    Error::format("safetensors", item.to_string(), problem)
}

fn tensor_item(name: &str) -> String {
    format!("tensor `{}`", name.escape_debug())
}

macro_rules! stored_types {
    ($($variant:ident = $name:literal, $bits:literal, $dtype:expr;)*) => {
        /// Element type as a file names it. [`StoredType::dtype`] says which of them a buffer can hold.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum StoredType { $(#[doc = concat!("`", $name, "`.")] $variant,)* }

        impl StoredType {
            /// The type of that name; names are case-sensitive.
            pub fn from_name(name: &str) -> Option<StoredType> {
                match name { $($name => Some(StoredType::$variant),)* _ => None }
            }

            /// Name in the header.
            pub const fn name(self) -> &'static str {
                match self { $(StoredType::$variant => $name,)* }
            }

            /// Bits per element.
            pub const fn bits(self) -> usize {
                match self { $(StoredType::$variant => $bits,)* }
            }

            /// The dtype of a buffer with these elements.
            pub const fn dtype(self) -> Option<DType> {
                match self { $(StoredType::$variant => $dtype,)* }
            }
        }
    };
}
stored_types! {
    Bool = "BOOL", 8, None;
    F4 = "F4", 4, None;
    F6_E2M3 = "F6_E2M3", 6, None;
    F6_E3M2 = "F6_E3M2", 6, None;
    U8 = "U8", 8, Some(DType::U8);
    I8 = "I8", 8, Some(DType::I8);
    F8_E5M2 = "F8_E5M2", 8, None;
    F8_E4M3 = "F8_E4M3", 8, None;
    F8_E8M0 = "F8_E8M0", 8, None;
    I16 = "I16", 16, None;
    U16 = "U16", 16, Some(DType::U16);
    F16 = "F16", 16, Some(DType::F16);
    BF16 = "BF16", 16, Some(DType::BF16);
    I32 = "I32", 32, Some(DType::I32);
    U32 = "U32", 32, Some(DType::U32);
    F32 = "F32", 32, Some(DType::F32);
    C64 = "C64", 64, None;
    F64 = "F64", 64, None;
    I64 = "I64", 64, Some(DType::I64);
    U64 = "U64", 64, Some(DType::U64);
}

/// Name of a dtype in a header.
fn stored_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::U8 => "U8",
        DType::I8 => "I8",
        DType::U16 => "U16",
        DType::U32 => "U32",
        DType::I32 => "I32",
        DType::I64 => "I64",
        DType::U64 => "U64",
    }
}

/// What is known of a tensor without reading its data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Element type as stored.
    pub ty: StoredType,
    /// Dimensions, the fastest one last.
    pub shape: Vec<usize>,
    /// Which of [`SafeTensors::mappings`] holds the data.
    pub shard: usize,
    /// Bytes of that mapping.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// The dtype of a buffer with these elements.
    ///
    /// # Errors
    /// [`Error::Format`] if buffers have no such dtype.
    pub fn dtype(&self) -> Result<DType> {
        self.ty.dtype().ok_or_else(|| {
            let accepted: Vec<_> = DType::ALL.map(stored_name).to_vec();
            fault(tensor_item(&self.name), format!("dtype: got {}, expected one of {}", self.ty.name(), accepted.join(", ")))
        })
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        // The product was checked when the file was opened.
        self.shape.iter().product()
    }
}

/// An open file, or a model in several. Cloning shares it.
#[derive(Clone)]
pub struct SafeTensors {
    maps: Arc<[FileMap]>,
    /// Sorted by name.
    tensors: Arc<[TensorInfo]>,
    metadata: Arc<BTreeMap<String, String>>,
}

impl SafeTensors {
    /// Opens a file, an index of shards (a path that ends in `.json`), or a folder with `model.safetensors.index.json` or else
    /// `model.safetensors` in it.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] naming the tensor or the part of the header at fault.
    pub fn open(path: impl AsRef<Path>) -> Result<SafeTensors> {
        let path = path.as_ref();
        if path.is_dir() {
            let index = path.join(INDEX_NAME);
            return if index.is_file() { open_index(&index) } else { SafeTensors::open_file(&path.join("model.safetensors")) };
        }
        if path.extension().is_some_and(|extension| extension == "json") { open_index(path) } else { SafeTensors::open_file(path) }
    }

    fn open_file(path: &Path) -> Result<SafeTensors> {
        SafeTensors::from_map(FileMap::open(path)?)
    }

    /// Validates a file that is in memory.
    ///
    /// # Errors
    /// [`Error::Format`] naming the tensor or the part of the header at fault.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<SafeTensors> {
        SafeTensors::from_map(FileMap::from_bytes(bytes.into()))
    }

    /// Validates a mapped file.
    ///
    /// # Errors
    /// [`Error::Format`] naming the tensor or the part of the header at fault.
    pub fn from_map(map: FileMap) -> Result<SafeTensors> {
        let header = read_header(map.as_bytes())?;
        Ok(SafeTensors { maps: [map].into(), tensors: header.tensors.into(), metadata: header.metadata.into() })
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The `__metadata__` of the header; that of the first shard that has a key, if there are several.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of the files, by [`TensorInfo::shard`].
    pub fn mappings(&self) -> &[FileMap] {
        &self.maps
    }

    /// The tensor of that name, `None` if there is none.
    pub fn find_tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Format`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.find_tensor(name).ok_or_else(|| fault(tensor_item(name), "not in the file"))
    }

    /// The stored bytes of a tensor: little-endian values without padding.
    ///
    /// # Errors
    /// As [`tensor`](SafeTensors::tensor).
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        let info = self.tensor(name)?;
        let bytes = self.maps.get(info.shard).and_then(|map| map.as_bytes().get(info.range.clone()));
        bytes.ok_or_else(|| fault(tensor_item(name), "outside the file"))
    }

    /// The values of a tensor as f32, rounded to nearest where they do not fit. Booleans become 0 and 1.
    ///
    /// # Errors
    /// As [`tensor`](SafeTensors::tensor), and [`Error::Format`] for complex numbers and floats of 8 bits or fewer.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (ty, bytes) = (self.tensor(name)?.ty, self.tensor_bytes(name)?);
        match ty {
            StoredType::F32 => convert(bytes, f32::from_le_bytes),
            StoredType::F16 => convert(bytes, |b| f16::from_le_bytes(b).to_f32()),
            StoredType::BF16 => convert(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            StoredType::F64 => convert(bytes, |b| f64::from_le_bytes(b) as f32),
            StoredType::Bool => convert(bytes, |[b]| f32::from(b != 0)),
            StoredType::U8 => convert(bytes, |[b]| f32::from(b)),
            StoredType::I8 => convert(bytes, |[b]| f32::from(b as i8)),
            StoredType::U16 => convert(bytes, |b| f32::from(u16::from_le_bytes(b))),
            StoredType::I16 => convert(bytes, |b| f32::from(i16::from_le_bytes(b))),
            StoredType::U32 => convert(bytes, |b| u32::from_le_bytes(b) as f32),
            StoredType::I32 => convert(bytes, |b| i32::from_le_bytes(b) as f32),
            StoredType::U64 => convert(bytes, |b| u64::from_le_bytes(b) as f32),
            StoredType::I64 => convert(bytes, |b| i64::from_le_bytes(b) as f32),
            _ => Err(fault(tensor_item(name), format!("dtype {} cannot be read as f32", ty.name()))),
        }
    }
}

impl fmt::Debug for SafeTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafeTensors").field("shards", &self.maps.len()).field("tensors", &self.tensors.len()).finish_non_exhaustive()
    }
}

fn convert<const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> f32) -> Result<Vec<f32>> {
    let values = bytes.as_chunks::<N>().0;
    let mut out = Vec::new();
    let wanted = (values.len() as u64).saturating_mul(4);
    out.try_reserve_exact(values.len()).map_err(|e| Error::Allocation { bytes: wanted, reason: e.to_string() })?;
    out.extend(values.iter().map(|value| from(*value)));
    Ok(out)
}

/// A header as it stands in the JSON text, before anything in it is believed.
#[derive(Default)]
struct Entries {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Entry)>,
    /// The entry that is being read, to name it in an error.
    current: Option<String>,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> DeserializeSeed<'de> for &mut Entries {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Entries {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut has_metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            self.current = Some(key.clone());
            if key == METADATA_KEY {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(serde::de::Error::custom("occurs twice"));
                }
                self.metadata = map.next_value()?;
            } else {
                let entry = map.next_value()?;
                self.tensors.push((key, entry));
            }
        }
        self.current = None;
        Ok(())
    }
}

struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorInfo>,
}

fn read_header(bytes: &[u8]) -> Result<Header> {
    let header = |problem: String| fault("header", problem);
    let Some((length, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(header(format!("file of {} bytes, expected at least {PREFIX}", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(header(format!("length: got {length} bytes, expected at most {MAX_HEADER_BYTES}")));
    }
    // Below 100 MB the length fits any usize.
    let Some((text, data)) = rest.split_at_checked(length as usize) else {
        return Err(header(format!("length: got {length} bytes, the file has {} left", rest.len())));
    };
    let text = std::str::from_utf8(text).map_err(|e| header(format!("not UTF-8: {e}")))?;
    let mut entries = Entries::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = (&mut entries).deserialize(&mut json).and_then(|()| json.end());
    if let Err(e) = parsed {
        return Err(match entries.current {
            Some(key) if key == METADATA_KEY => fault(METADATA_KEY, e.to_string()),
            Some(name) => fault(tensor_item(&name), e.to_string()),
            None => header(e.to_string()),
        });
    }
    let data_start = PREFIX + length as usize;
    let mut tensors = Vec::with_capacity(entries.tensors.len());
    for (name, entry) in entries.tensors {
        tensors.push(check_entry(name, entry, data_start, data.len())?);
    }
    check_coverage(&mut tensors, data_start..bytes.len())?;
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(fault(tensor_item(&pair[0].name), "occurs twice"));
    }
    Ok(Header { metadata: entries.metadata, tensors })
}

/// Bits of a tensor's data. Reader and writer share this rule: zeros count as ones while overflow is checked, so that neither a zero nor
/// the order of dimensions hides a shape whose strides could not be computed.
fn data_bits(element_bits: usize, shape: &[usize]) -> Option<usize> {
    let bits = shape.iter().try_fold(element_bits, |bits, &dim| bits.checked_mul(dim.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { bits })
}

fn check_entry(name: String, entry: Entry, data_start: usize, data_len: usize) -> Result<TensorInfo> {
    let wrong = |problem: String| fault(tensor_item(&name), problem);
    let Some(ty) = StoredType::from_name(&entry.dtype) else {
        return Err(wrong(format!("unknown dtype `{}`", entry.dtype.escape_debug())));
    };
    let too_large = || wrong(format!("shape {:?} has too many bytes", entry.shape));
    let shape: Option<Vec<usize>> = entry.shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let shape = shape.ok_or_else(too_large)?;
    let bits = data_bits(ty.bits(), &shape).ok_or_else(too_large)?;
    if !bits.is_multiple_of(8) {
        return Err(wrong(format!("shape {shape:?} of {} does not end at a byte", ty.name())));
    }
    let (start, end) = entry.data_offsets;
    if start > end || end > data_len as u64 {
        return Err(wrong(format!("data_offsets: got {start}..{end}, expected a range in the {data_len} bytes of data")));
    }
    // Both are at most `data_len`, a usize.
    let range = data_start + start as usize..data_start + end as usize;
    if range.len() != bits / 8 {
        return Err(wrong(format!("data_offsets: got {} bytes, expected {} for {} {shape:?}", range.len(), bits / 8, ty.name())));
    }
    Ok(TensorInfo { name, ty, shape, shard: 0, range })
}

/// The tensors must cover the data without overlap and without a gap in which something could hide.
fn check_coverage(tensors: &mut [TensorInfo], data: Range<usize>) -> Result<()> {
    tensors.sort_unstable_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut covered = data.start;
    for tensor in tensors.iter() {
        if tensor.range.start != covered {
            let what = if tensor.range.start < covered { "overlaps the tensor before it" } else { "leaves a gap before it" };
            let (got, expected) = (tensor.range.start - data.start, covered - data.start);
            return Err(fault(tensor_item(&tensor.name), format!("{what}: starts at byte {got} of the data, expected {expected}")));
        }
        covered = tensor.range.end;
    }
    if covered != data.end {
        return Err(fault("data", format!("tensors cover {} bytes of {}", covered - data.start, data.len())));
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_index(path: &Path) -> Result<SafeTensors> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| fault("index", e.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut shards: HashMap<&str, usize> = HashMap::new();
    let mut files = Vec::new();
    let mut metadata = BTreeMap::new();
    let mut tensors = Vec::with_capacity(index.weight_map.len());
    // The map is sorted by name, and so is the result.
    for (name, file_name) in &index.weight_map {
        let shard = match shards.get(file_name.as_str()) {
            Some(&shard) => shard,
            None => {
                // An index must not reach files outside its folder.
                if !Path::new(file_name).components().all(|part| matches!(part, Component::Normal(_))) || file_name.is_empty() {
                    return Err(fault(
                        tensor_item(name),
                        format!("shard `{}` is not in the folder of the index", file_name.escape_debug()),
                    ));
                }
                let file = SafeTensors::open_file(&folder.join(file_name))?;
                for (key, value) in file.metadata.iter() {
                    metadata.entry(key.clone()).or_insert_with(|| value.clone());
                }
                files.push(file);
                shards.insert(file_name, files.len() - 1);
                files.len() - 1
            }
        };
        let info = files.get(shard).and_then(|file| file.find_tensor(name));
        let info = info.ok_or_else(|| fault(tensor_item(name), format!("not in shard `{}`", file_name.escape_debug())))?;
        tensors.push(TensorInfo { shard, ..info.clone() });
    }
    let maps: Vec<FileMap> = files.iter().filter_map(|file| file.maps.first().cloned()).collect();
    Ok(SafeTensors { maps: maps.into(), tensors: tensors.into(), metadata: metadata.into() })
}

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewTensor<'a> {
    /// Name, unique in the file.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, the fastest one last.
    pub shape: &'a [usize],
    /// Little-endian values without padding.
    pub bytes: &'a [u8],
}

/// The prefix and header of a file, and the tensors in the order of their data.
fn layout<'a>(tensors: &[NewTensor<'a>], metadata: &[(&str, &str)]) -> Result<(Vec<u8>, Vec<NewTensor<'a>>)> {
    let mut sorted = tensors.to_vec();
    // Widest elements first, so that all of them are aligned; a header of a multiple of 8 bytes keeps it so.
    sorted.sort_by(|a, b| b.dtype.size().cmp(&a.dtype.size()).then(a.name.cmp(b.name)));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let entries: serde_json::Map<_, _> = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        header.insert(METADATA_KEY.to_owned(), entries.into());
    }
    let mut at = 0usize;
    for tensor in &sorted {
        let wrong = |problem: String| fault(tensor_item(tensor.name), problem);
        let expected = data_bits(8 * tensor.dtype.size(), tensor.shape).map(|bits| bits / 8);
        if expected != Some(tensor.bytes.len()) {
            let (got, shape) = (tensor.bytes.len(), tensor.shape);
            let expected = expected.map_or("fewer dimensions".to_owned(), |bytes| bytes.to_string());
            return Err(wrong(format!("got {got} bytes for {} {shape:?}, expected {expected}", tensor.dtype)));
        }
        let end = at.checked_add(tensor.bytes.len()).ok_or_else(|| wrong("ends beyond any file".to_owned()))?;
        let entry = serde_json::json!({ "dtype": stored_name(tensor.dtype), "shape": tensor.shape, "data_offsets": [at, end] });
        if tensor.name == METADATA_KEY || header.insert(tensor.name.to_owned(), entry).is_some() {
            return Err(wrong("the name is taken".to_owned()));
        }
        at = end;
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    Ok((out, sorted))
}

/// A whole file in memory.
///
/// # Errors
/// [`Error::Format`] if a name occurs twice or the bytes of a tensor do not match its shape.
pub fn to_bytes(tensors: &[NewTensor<'_>], metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (mut out, sorted) = layout(tensors, metadata)?;
    sorted.iter().for_each(|tensor| out.extend_from_slice(tensor.bytes));
    Ok(out)
}

/// Writes a file. It appears under its name, replacing one that is there, when all of it is on the disk; after an error nothing is left
/// behind.
///
/// # Errors
/// As [`to_bytes`], and [`Error::Io`].
pub fn save(path: impl AsRef<Path>, tensors: &[NewTensor<'_>], metadata: &[(&str, &str)]) -> Result<()> {
    let (header, sorted) = layout(tensors, metadata)?;
    let mut file = AtomicFile::create(path.as_ref())?;
    let pieces = std::iter::once(header.as_slice()).chain(sorted.iter().map(|tensor| tensor.bytes));
    for piece in pieces {
        file.write_all(piece).map_err(|e| Error::io(path.as_ref(), e))?;
    }
    file.commit()
}
