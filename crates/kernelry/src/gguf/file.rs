//! Reading and validating a file.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::cursor::{Cursor, Item};
use super::value::{FromValue, Value};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, align_up, data_bytes, fault};
use crate::quant::{GgmlType, dequantize_to_vec};
use crate::{FileMap, Result};

/// What a file may ask of a reader. The counts of the default are far above those of any model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tensors.
    pub max_tensors: u64,
    /// Most metadata keys.
    pub max_keys: u64,
    /// Most dimensions of a tensor.
    pub max_rank: u32,
    /// Deepest nesting of arrays; above 256 has no effect.
    pub max_nesting: u32,
    /// Most bytes of one string.
    pub max_string_bytes: u64,
    /// Most array elements in the whole file.
    pub max_array_elements: u64,
    /// Most bytes of the whole file.
    pub max_file_bytes: u64,
}

impl Default for Limits {
    /// 100 000 tensors, 1 000 000 keys, rank 8, nesting 64; strings and arrays as long as the file.
    fn default() -> Limits {
        Limits {
            max_tensors: 100_000,
            max_keys: 1_000_000,
            max_rank: 8,
            max_nesting: 64,
            max_string_bytes: u64::MAX,
            max_array_elements: u64::MAX,
            max_file_bytes: u64::MAX,
        }
    }
}

impl Limits {
    /// For files from strangers: also strings of at most 16 MiB, 16 million array elements and 1 TiB.
    pub fn strict() -> Limits {
        Limits { max_string_bytes: 16 << 20, max_array_elements: 16 << 20, max_file_bytes: 1 << 40, ..Limits::default() }
    }
}

/// What is known of a tensor without reading its data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Dimensions with the fastest one last: a weight is `[N, K]`, rows of `K` consecutive values. Empty for a scalar.
    pub shape: Vec<usize>,
    /// Storage type.
    pub ty: GgmlType,
    /// Bytes of the file that hold the data.
    pub range: Range<usize>,
}

impl TensorInfo {
    /// Number of values.
    pub fn elements(&self) -> usize {
        // The product was checked when the file was opened.
        self.shape.iter().product()
    }

    /// Bytes of the data.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

struct Header {
    version: u32,
    alignment: u64,
    data_start: usize,
    metadata: Vec<(String, Value)>,
    /// Positions in `metadata`, sorted by key.
    keys: Vec<u32>,
    tensors: Vec<TensorInfo>,
    /// Positions in `tensors`, sorted by name.
    names: Vec<u32>,
}

/// An open GGUF file. Cloning shares it.
#[derive(Clone)]
pub struct GgufFile {
    map: FileMap,
    header: Arc<Header>,
}

impl GgufFile {
    /// Maps and validates a file.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), or [`Error::Format`](crate::Error::Format) naming the key or tensor at fault.
    pub fn open(path: impl AsRef<Path>) -> Result<GgufFile> {
        GgufFile::from_map(FileMap::open(path.as_ref())?, &Limits::default())
    }

    /// Validates a file that is in memory.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) naming the key or tensor at fault.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<GgufFile> {
        GgufFile::from_map(FileMap::from_bytes(bytes.into()), &Limits::default())
    }

    /// Validates a mapped file within the given limits.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) naming the key or tensor at fault.
    pub fn from_map(map: FileMap, limits: &Limits) -> Result<GgufFile> {
        let header = Arc::new(read_header(map.as_bytes(), limits)?);
        Ok(GgufFile { map, header })
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Alignment of tensors in the file, a power of two.
    pub fn alignment(&self) -> u64 {
        self.header.alignment
    }

    /// First byte of the data section, a multiple of the alignment.
    pub fn data_start(&self) -> usize {
        self.header.data_start
    }

    /// The bytes of the file. A tensor's [`range`](TensorInfo::range) counts from their start, so a buffer can refer to them without a
    /// copy.
    pub fn mapping(&self) -> &FileMap {
        &self.map
    }

    /// All metadata in file order.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.header.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        let header = &*self.header;
        let at = header.keys.binary_search_by(|&i| header.metadata[i as usize].0.as_str().cmp(key)).ok()?;
        Some(&header.metadata[header.keys[at] as usize].1)
    }

    /// The value of a key as a Rust type, `None` if the key is absent.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if the value has another type or does not fit.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let problem = || fault(Item::Key(key), format!("got {} {value}, expected {}", value.ty().name(), T::EXPECTED));
        T::from_value(value).map(Some).ok_or_else(problem)
    }

    /// The value of a key as a Rust type.
    ///
    /// # Errors
    /// As [`find`](GgufFile::find), and if the key is absent.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?.ok_or_else(|| fault(Item::Key(key), format!("not in the file, expected {}", T::EXPECTED)))
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of that name, `None` if there is none.
    pub fn find_tensor(&self, name: &str) -> Option<&TensorInfo> {
        let header = &*self.header;
        let at = header.names.binary_search_by(|&i| header.tensors[i as usize].name.as_str().cmp(name)).ok()?;
        Some(&header.tensors[header.names[at] as usize])
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if there is none.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.find_tensor(name).ok_or_else(|| fault(Item::Tensor(name), "not in the file"))
    }

    /// First byte and length in bytes of a tensor's data, in [`mapping`](GgufFile::mapping).
    ///
    /// # Errors
    /// As [`tensor`](GgufFile::tensor).
    pub fn tensor_range(&self, name: &str) -> Result<(usize, usize)> {
        let info = self.tensor(name)?;
        Ok((info.range.start, info.range.len()))
    }

    /// The stored bytes of a tensor: blocks, or little-endian values.
    ///
    /// # Errors
    /// As [`tensor`](GgufFile::tensor).
    pub fn tensor_bytes(&self, name: &str) -> Result<&[u8]> {
        let info = self.tensor(name)?;
        self.map.as_bytes().get(info.range.clone()).ok_or_else(|| fault(Item::Tensor(name), "outside the file"))
    }

    /// The values of a tensor, decoded.
    ///
    /// # Errors
    /// As [`tensor`](GgufFile::tensor), and [`Error::Format`](crate::Error::Format) if its type has no decoder.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>> {
        let ty = self.tensor(name)?.ty;
        if !ty.can_dequantize() {
            return Err(fault(Item::Tensor(name), format!("type {ty} (id {}) has no decoder", ty.id())));
        }
        dequantize_to_vec(ty, self.tensor_bytes(name)?)
    }
}

macro_rules! getters {
    ($($name:ident -> $ty:ty;)*) => {
        impl GgufFile {$(
            #[doc = concat!("[`get`](GgufFile::get) as `", stringify!($ty), "`.\n\n# Errors\nAs [`get`](GgufFile::get).")]
            pub fn $name(&self, key: &str) -> Result<$ty> {
                self.get(key)
            }
        )*}
    };
}
getters! {
    get_u32 -> u32;
    get_i32 -> i32;
    get_u64 -> u64;
    get_i64 -> i64;
    get_usize -> usize;
    get_f32 -> f32;
    get_f64 -> f64;
    get_bool -> bool;
    get_str -> &str;
    get_u32s -> Vec<u32>;
    get_i32s -> Vec<i32>;
    get_f32s -> Vec<f32>;
    get_bools -> &[bool];
    get_strs -> &[String];
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GgufFile")
            .field("version", &self.header.version)
            .field("keys", &self.header.metadata.len())
            .field("tensors", &self.header.tensors.len())
            .finish_non_exhaustive()
    }
}

/// Positions sorted by name; the first name that occurs twice is an error.
fn sorted_positions<'a>(n: usize, name: impl Fn(usize) -> &'a str) -> Result<Vec<u32>, &'a str> {
    // The limits keep counts below 2^32 unless a caller lifts them; a position that does not fit would alias another.
    let mut positions: Vec<u32> = (0..u32::try_from(n).unwrap_or(u32::MAX)).collect();
    positions.sort_unstable_by_key(|&i| name(i as usize));
    match positions.windows(2).find(|pair| name(pair[0] as usize) == name(pair[1] as usize)) {
        Some(pair) => Err(name(pair[0] as usize)),
        None => Ok(positions),
    }
}

fn read_header(bytes: &[u8], limits: &Limits) -> Result<Header> {
    if bytes.len() as u64 > limits.max_file_bytes {
        return Err(fault(Item::Header, format!("file of {} bytes, at most {} allowed", bytes.len(), limits.max_file_bytes)));
    }
    let mut cursor = Cursor::new(bytes, limits);
    let magic = cursor.u32(Item::Header)?;
    if magic != MAGIC {
        return Err(fault(
            Item::Header,
            format!("magic bytes: got {:?}, expected \"GGUF\"", String::from_utf8_lossy(&magic.to_le_bytes())),
        ));
    }
    let version = cursor.u32(Item::Header)?;
    if !(2..=3).contains(&version) {
        let hint = if (1..=3).contains(&version.swap_bytes()) { " (a big-endian file)" } else { "" };
        return Err(fault(Item::Header, format!("version: got {version}{hint}, expected 2 or 3")));
    }
    let tensor_count = cursor.u64(Item::Header)?;
    let key_count = cursor.u64(Item::Header)?;

    // A key takes a string, a type and at least one byte; a tensor takes a string, rank, type and offset.
    let n_keys = cursor.check_count(key_count, limits.max_keys.min(u64::from(u32::MAX)), 13, "keys", Item::Header)?;
    cursor.check_count(tensor_count, limits.max_tensors.min(u64::from(u32::MAX)), 24, "tensors", Item::Header)?;
    let mut metadata = Vec::with_capacity(n_keys);
    for i in 0..key_count {
        let key = cursor.string(Item::KeyNumber(i))?;
        metadata.push((key.to_owned(), cursor.value(Item::Key(key))?));
    }
    let keys = sorted_positions(n_keys, |i| &metadata[i].0).map_err(|key| fault(Item::Key(key), "occurs twice"))?;
    let alignment = match keys.binary_search_by(|&i| metadata[i as usize].0.as_str().cmp(ALIGNMENT_KEY)) {
        Ok(at) => read_alignment(&metadata[keys[at] as usize].1)?,
        Err(_) => DEFAULT_ALIGNMENT,
    };

    let n_tensors = cursor.check_count(tensor_count, u64::MAX, 24, "tensors", Item::Header)?;
    let mut pending = Vec::with_capacity(n_tensors);
    for i in 0..tensor_count {
        pending.push(read_tensor(&mut cursor, i, alignment, limits)?);
    }
    let data_start = align_up(cursor.position() as u64, alignment)
        .and_then(|start| usize::try_from(start).ok())
        .ok_or_else(|| fault(Item::Header, "start of data: overflows"))?;
    let tensors = pending.into_iter().map(|tensor| tensor.place(data_start, bytes.len())).collect::<Result<Vec<_>>>()?;
    let names = sorted_positions(n_tensors, |i| &tensors[i].name).map_err(|name| fault(Item::Tensor(name), "occurs twice"))?;
    check_overlap(&tensors)?;
    Ok(Header { version, alignment, data_start, metadata, keys, tensors, names })
}

fn read_alignment(value: &Value) -> Result<u64> {
    u64::from_value(value)
        .filter(|alignment| alignment.is_power_of_two())
        .ok_or_else(|| fault(Item::Key(ALIGNMENT_KEY), format!("got {value}, expected a power of two")))
}

/// A tensor whose offset still counts from the start of the data.
struct Pending {
    name: String,
    shape: Vec<usize>,
    ty: GgmlType,
    offset: u64,
    bytes: usize,
}

impl Pending {
    fn place(self, data_start: usize, file_bytes: usize) -> Result<TensorInfo> {
        let start = usize::try_from(self.offset).ok().and_then(|offset| data_start.checked_add(offset));
        let range = start.and_then(|start| Some(start..start.checked_add(self.bytes)?));
        // A tensor without bytes may stand at the very end of a file whose padding was left out.
        let fits = |range: &Range<usize>| range.end <= file_bytes || (range.is_empty() && self.offset == 0);
        let Some(range) = range.filter(fits) else {
            let problem = format!("data of {} bytes at offset {} end outside the file of {file_bytes} bytes", self.bytes, self.offset);
            return Err(fault(Item::Tensor(&self.name), problem));
        };
        let range = range.start.min(file_bytes)..range.end.min(file_bytes);
        Ok(TensorInfo { name: self.name, shape: self.shape, ty: self.ty, range })
    }
}

fn read_tensor(cursor: &mut Cursor<'_>, number: u64, alignment: u64, limits: &Limits) -> Result<Pending> {
    let name = cursor.string(Item::TensorNumber(number))?;
    let item = Item::Tensor(name);
    let rank = cursor.u32(item)?;
    cursor.check_count(rank.into(), limits.max_rank.into(), 8, "dimensions", item)?;
    let mut shape = Vec::new();
    for _ in 0..rank {
        let dim = cursor.u64(item)?;
        let dim = usize::try_from(dim).ok().filter(|&dim| isize::try_from(dim).is_ok());
        shape.push(dim.ok_or_else(|| fault(item, "dimension: does not fit in memory"))?);
    }
    let id = cursor.u32(item)?;
    let offset = cursor.u64(item)?;
    let ty = GgmlType::from_id(id).ok_or_else(|| match GgmlType::withdrawn(id) {
        Some(old) => fault(item, format!("type id {id} ({old}) was withdrawn from the format")),
        None => fault(item, format!("unknown type id {id}")),
    })?;
    shape.reverse();
    let bytes = data_bytes(ty, &shape).map_err(|problem| fault(item, problem))?;
    if !offset.is_multiple_of(alignment) {
        return Err(fault(item, format!("offset {offset} is not a multiple of the alignment {alignment}")));
    }
    Ok(Pending { name: name.to_owned(), shape, ty, offset, bytes })
}

fn check_overlap(tensors: &[TensorInfo]) -> Result<()> {
    let mut by_start: Vec<&TensorInfo> = tensors.iter().filter(|tensor| !tensor.range.is_empty()).collect();
    by_start.sort_unstable_by_key(|tensor| tensor.range.start);
    match by_start.windows(2).find(|pair| pair[1].range.start < pair[0].range.end) {
        Some(pair) => Err(fault(Item::Tensor(&pair[1].name), format!("overlaps tensor `{}`", pair[0].name.escape_debug()))),
        None => Ok(()),
    }
}
