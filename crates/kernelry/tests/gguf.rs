//! GGUF files: those of the Python package, damaged ones, and round trips through our own writer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::gguf::{Array, GgufFile, GgufWriter, Limits, Value, ValueType};
use kernelry::quant::GgmlType;
use kernelry::{Error, FileMap};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn fixture_path(name: &str) -> String {
    format!("{}/tests/fixtures/gguf/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixture_path(name)).unwrap()
}

/// The text of the error, which must be one about the format.
fn problem(bytes: Vec<u8>) -> String {
    match GgufFile::from_bytes(bytes) {
        Err(error @ Error::Format { format: "gguf", .. }) => error.to_string(),
        other => panic!("expected a format error, got {other:?}"),
    }
}

fn expect_problem(bytes: Vec<u8>, parts: &[&str]) {
    let text = problem(bytes);
    assert!(parts.iter().all(|part| text.contains(part)), "{text:?} does not contain {parts:?}");
}

#[test]
fn reads_what_the_python_package_writes() {
    let file = GgufFile::open(fixture_path("library.gguf")).unwrap();
    assert_eq!(file.version(), 3);
    assert_eq!(file.alignment(), 32);
    assert_eq!(file.get_str("general.architecture").unwrap(), "fixture");
    assert_eq!(file.get_u32("value.u8").unwrap(), 200);
    assert_eq!(file.get_i32("value.i8").unwrap(), -100);
    assert_eq!(file.get_usize("value.u16").unwrap(), 60000);
    assert_eq!(file.get_i64("value.i16").unwrap(), -30000);
    assert_eq!(file.get_u32("value.u32").unwrap(), 4_000_000_000);
    assert_eq!(file.get_i32("value.i32").unwrap(), -2_000_000_000);
    assert_eq!(file.get_f32("value.f32").unwrap(), 1.5);
    assert_eq!(file.get_f64("value.f32").unwrap(), 1.5);
    assert!(file.get_bool("value.bool").unwrap());
    assert_eq!(file.get_str("value.string").unwrap(), "naïve 東京 🦀");
    assert_eq!(file.get_u64("value.u64").unwrap(), 1 << 63);
    assert_eq!(file.get_i64("value.i64").unwrap(), -(1 << 62));
    assert_eq!(file.get_f64("value.f64").unwrap(), 1e300);
    assert_eq!(file.get_strs("array.strings").unwrap(), ["<s>", "", "▁the"]);
    assert_eq!(file.get_i32s("array.i32").unwrap(), [1, -2, 3]);
    assert_eq!(file.get_f32s("array.f32").unwrap(), [0.5, -0.25]);
    assert_eq!(file.get_bools("array.bool").unwrap(), [true, false, true]);

    let bytes = fixture("library.safetensors");
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensors().len(), expected.len());
    for info in file.tensors() {
        let tensor = expected.tensor(&info.name).unwrap();
        assert_eq!(info.shape, tensor.shape(), "{}", info.name);
        let expected: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(file.tensor_f32(&info.name).unwrap(), expected, "{}", info.name);
        let (offset, len) = file.tensor_range(&info.name).unwrap();
        assert_eq!(offset % 32, 0);
        assert_eq!(file.tensor_bytes(&info.name).unwrap(), &file.mapping().as_bytes()[offset..offset + len]);
    }
}

/// The same metadata and tensors in the same order give the same file, byte for byte.
#[test]
fn writes_what_the_python_package_writes() {
    let original = fixture("library.gguf");
    let file = GgufFile::from_bytes(&original[..]).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata() {
        writer.set(key, value.clone()).unwrap();
    }
    for info in file.tensors() {
        writer.tensor(&info.name, info.ty, &info.shape).unwrap();
    }
    let data: Vec<&[u8]> = file.tensors().iter().map(|info| file.tensor_bytes(&info.name).unwrap()).collect();
    assert!(writer.to_bytes(&data).unwrap() == original);
}

#[test]
fn reads_nested_and_empty_arrays_scalars_and_other_alignments() {
    let file = GgufFile::open(fixture_path("handmade.gguf")).unwrap();
    assert_eq!((file.version(), file.alignment(), file.data_start() % 64), (2, 64, 0));
    assert_eq!(file.value("empty.strings"), Some(&Value::Array(Array::String(vec![]))));
    assert_eq!(file.get::<&Array>("empty.nested").unwrap().element_type(), ValueType::Array);
    let nested =
        vec![Array::I32(vec![-1, 7]), Array::Array(vec![Array::U8(vec![1, 2, 3]), Array::String(vec!["über".into(), String::new()])])];
    assert_eq!(file.value("nested"), Some(&Value::Array(Array::Array(nested))));
    assert_eq!(file.tensor("scalar").unwrap().shape, [0usize; 0]);
    assert_eq!(file.tensor_f32("scalar").unwrap(), [2.5]);
    assert_eq!(file.tensor("matrix").unwrap().shape, [2, 3]);
    assert_eq!(file.tensor_f32("matrix").unwrap(), [-3.0, -2.0, -1.0, 0.0, 1.0, 127.0]);
    assert_eq!(file.tensor("empty").unwrap().shape, [4, 0]);
    assert_eq!(file.tensor_f32("empty").unwrap(), [0f32; 0]);
}

#[test]
fn getters_name_the_key_and_what_it_holds() {
    let file = GgufFile::open(fixture_path("library.gguf")).unwrap();
    let text = |error: Error| error.to_string();
    assert_eq!(text(file.get_u32("value.i8").unwrap_err()), "gguf: key `value.i8`: got i8 -100, expected an integer in the range of u32");
    assert_eq!(text(file.get_str("no.such").unwrap_err()), "gguf: key `no.such`: not in the file, expected a string");
    assert_eq!(file.find::<u32>("no.such").unwrap(), None);
    assert!(file.find::<u32>("value.string").is_err());
    assert!(file.get_f32("value.u8").is_err());
    assert!(file.get_bool("value.u8").is_err());
    assert!(file.get_u32s("array.i32").is_err());
    assert!(file.get_i32s("array.strings").is_err());
    assert_eq!(text(file.tensor_bytes("no.such").unwrap_err()), "gguf: tensor `no.such`: not in the file");
    assert_eq!(file.find_tensor("no.such"), None);
}

#[test]
fn missing_files_and_folders_are_io_errors() {
    assert!(matches!(GgufFile::open("no/such/file.gguf"), Err(Error::Io { .. })));
    assert!(matches!(GgufFile::open(env!("CARGO_MANIFEST_DIR")), Err(Error::Io { .. })));
}

/// A file cut at any byte is refused, except where only the padding after the last tensor is gone.
#[test]
fn truncation_at_every_byte_is_an_error() {
    for name in ["handmade.gguf", "library.gguf"] {
        let bytes = fixture(name);
        let end = GgufFile::from_bytes(bytes.clone()).unwrap().tensors().iter().map(|t| t.range.end).max().unwrap();
        for len in 0..bytes.len() {
            let result = GgufFile::from_bytes(&bytes[..len]);
            if len < end {
                assert!(matches!(result, Err(Error::Format { format: "gguf", .. })), "{name} cut to {len} bytes");
            } else {
                assert!(result.is_ok(), "{name} cut to {len} bytes");
            }
        }
    }
}

/// Whatever a damaged file says, it is either refused or read without leaving its bytes.
fn read_everything(bytes: &[u8]) {
    if let Ok(file) = GgufFile::from_bytes(bytes) {
        for info in file.tensors() {
            assert_eq!(file.tensor_bytes(&info.name).unwrap().len(), info.bytes());
            if info.ty.can_dequantize() {
                assert_eq!(file.tensor_f32(&info.name).unwrap().len(), info.elements());
            }
        }
        for (key, value) in file.metadata() {
            assert_eq!(file.value(key).map(Value::ty), Some(value.ty()));
            assert!(value.to_string().len() < 1 << 20);
        }
    }
}

#[test]
fn every_bit_flip_is_survived() {
    let bytes = fixture("handmade.gguf");
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        read_everything(&damaged);
    }
    let bytes = fixture("library.gguf");
    let header = GgufFile::from_bytes(&bytes[..]).unwrap().data_start();
    for bit in 0..header * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        read_everything(&damaged);
    }
}

/// Every aligned or unaligned 32-bit and 64-bit field replaced by numbers that break arithmetic.
#[test]
fn every_extreme_count_is_survived() {
    let bytes = fixture("handmade.gguf");
    for extreme in [0, 1, u64::MAX, u64::MAX / 2, i64::MAX as u64 + 1, 1 << 32, u64::from(u32::MAX), 1 << 60] {
        for at in 0..bytes.len() - 8 {
            let mut damaged = bytes.clone();
            damaged[at..at + 8].copy_from_slice(&extreme.to_le_bytes());
            read_everything(&damaged);
            let mut damaged = bytes.clone();
            damaged[at..at + 4].copy_from_slice(&(extreme as u32).to_le_bytes());
            read_everything(&damaged);
        }
    }
}

/// A header written by hand, for files that our writer refuses to make.
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, keys: u64) -> Raw {
        let mut raw = Raw(b"GGUF".to_vec());
        raw.u32(3).u64(tensors).u64(keys);
        raw
    }
    fn u32(&mut self, v: u32) -> &mut Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(&mut self, v: u64) -> &mut Raw {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn string(&mut self, v: &str) -> &mut Raw {
        self.u64(v.len() as u64);
        self.0.extend(v.as_bytes());
        self
    }
    fn tensor(&mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> &mut Raw {
        self.string(name).u32(dims.len() as u32);
        dims.iter().for_each(|&dim| {
            self.u64(dim);
        });
        self.u32(ty).u64(offset)
    }
    fn data(&mut self, bytes: usize) -> Vec<u8> {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self.0.clone()
    }
}

#[test]
fn headers_that_lie_are_refused_with_the_item_at_fault() {
    expect_problem(b"GGML\x03\0\0\0".to_vec(), &["header", "magic bytes"]);
    expect_problem(b"GGUF\x01\0\0\0".to_vec(), &["version: got 1"]);
    expect_problem(b"GGUF\0\0\0\x03".to_vec(), &["big-endian"]);
    expect_problem(Raw::new(100_001, 0).data(10_000_000), &["100001 tensors", "100000"]);
    expect_problem(Raw::new(0, 1_000_001).data(20_000_000), &["1000001 keys", "1000000"]);
    expect_problem(Raw::new(0, 1000).data(0), &["1000 keys do not fit"]);
    expect_problem(Raw::new(1000, 0).data(0), &["1000 tensors do not fit"]);
    expect_problem(Raw::new(0, 2).string("a").u32(4).u32(0).string("a").u32(4).u32(0).data(0), &["key `a`", "twice"]);
    expect_problem(Raw::new(0, 1).string("a").u32(13).u64(0).data(0), &["key `a`", "value type 13"]);
    expect_problem(Raw::new(0, 1).string("a").u32(7).u32(2).data(64), &["key `a`", "boolean has value 2"]);
    expect_problem(Raw::new(0, 1).string("a").u32(8).u64(1 << 40).data(64), &["key `a`", "1099511627776 bytes"]);
    expect_problem(Raw::new(0, 1).string("a").u32(9).u32(8).u64(1 << 61).data(64), &["key `a`", "array elements do not fit"]);
    for bad in [0, 3, 33] {
        let bytes = Raw::new(0, 1).string("general.alignment").u32(4).u32(bad).data(64);
        expect_problem(bytes, &["general.alignment", "power of two"]);
    }
    let mut bytes = Raw::new(0, 1).string("a").u32(8).u64(2).data(32);
    let at = bytes.iter().rposition(|&b| b == 2).unwrap() + 8;
    bytes[at] = 0xFF;
    expect_problem(bytes, &["key `a`", "UTF-8"]);
}

#[test]
fn tensors_that_lie_are_refused_by_name() {
    let one = |dims: &[u64], ty, offset| Raw::new(1, 0).tensor("w", dims, ty, offset).data(64);
    assert!(GgufFile::from_bytes(one(&[16], 0, 0)).is_ok());
    expect_problem(one(&[17], 0, 0), &["tensor `w`", "68 bytes", "outside the file"]);
    expect_problem(one(&[8], 0, 64), &["tensor `w`", "outside the file"]);
    expect_problem(one(&[8], 0, u64::MAX - 31), &["tensor `w`", "outside the file"]);
    expect_problem(one(&[8], 0, 4), &["tensor `w`", "offset 4", "alignment 32"]);
    expect_problem(one(&[31], 2, 0), &["tensor `w`", "rows of 31 values", "Q4_0"]);
    expect_problem(one(&[1; 9], 0, 0), &["tensor `w`", "9 dimensions", "8"]);
    expect_problem(one(&[1 << 32, 1 << 32], 0, 0), &["tensor `w`", "too many"]);
    expect_problem(one(&[1 << 62], 28, 0), &["tensor `w`", "too many bytes"]);
    // A zero hides neither dimensions whose product overflows nor rows whose bytes do.
    expect_problem(one(&[1 << 62, 1 << 62, 0], 0, 0), &["tensor `w`", "too many"]);
    expect_problem(one(&[0, 1 << 62, 1 << 62], 0, 0), &["tensor `w`", "too many"]);
    expect_problem(one(&[1 << 62, 0], 0, 0), &["tensor `w`", "too many bytes"]);
    expect_problem(one(&[0, 1 << 62], 28, 0), &["tensor `w`", "too many bytes"]);
    expect_problem(one(&[u64::MAX], 0, 0), &["tensor `w`", "dimension"]);
    expect_problem(one(&[32], 42, 0), &["tensor `w`", "unknown type id 42"]);
    expect_problem(one(&[32], 31, 0), &["tensor `w`", "type id 31", "Q4_0_4_4", "withdrawn"]);
    let two = |b: &str, offset| Raw::new(2, 0).tensor("a", &[10], 0, 0).tensor(b, &[4], 0, offset).data(96);
    assert!(GgufFile::from_bytes(two("b", 64)).is_ok());
    expect_problem(two("b", 32), &["tensor `b`", "overlaps tensor `a`"]);
    expect_problem(two("a", 64), &["tensor `a`", "twice"]);
}

#[test]
fn types_without_a_decoder_can_be_read_raw() {
    let file = GgufFile::from_bytes(Raw::new(1, 0).tensor("w", &[256, 2], 17, 0).data(148)).unwrap();
    assert_eq!(file.tensor("w").unwrap().ty, GgmlType::IQ2_XS);
    assert_eq!(file.tensor_bytes("w").unwrap().len(), 148);
    assert_eq!(file.tensor_f32("w").unwrap_err().to_string(), "gguf: tensor `w`: type IQ2_XS (id 17) has no decoder");
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| {
        let mut raw = Raw::new(0, 1);
        raw.string("deep").u32(9);
        (1..depth).for_each(|_| {
            raw.u32(9).u64(1);
        });
        raw.u32(4).u64(0).data(0)
    };
    assert!(GgufFile::from_bytes(nested(64)).is_ok());
    expect_problem(nested(65), &["key `deep`", "nested deeper than 64"]);
    expect_problem(nested(100_000), &["nested deeper than 64"]);
    let lifted = Limits { max_nesting: u32::MAX, ..Limits::default() };
    assert!(GgufFile::from_map(FileMap::from_bytes(nested(1_000_000)), &lifted).is_err());
}

#[test]
fn limits_can_be_tightened() {
    let read = |limits: Limits| GgufFile::from_map(FileMap::from_bytes(fixture("library.gguf")), &limits);
    assert!(read(Limits::strict()).is_ok());
    assert!(read(Limits { max_tensors: 22, ..Limits::default() }).unwrap_err().to_string().contains("at most 22"));
    assert!(read(Limits { max_string_bytes: 8, ..Limits::default() }).unwrap_err().to_string().contains("at most 8"));
    assert!(read(Limits { max_array_elements: 10, ..Limits::default() }).unwrap_err().to_string().contains("`array.bool`"));
    assert!(read(Limits { max_file_bytes: 100, ..Limits::default() }).unwrap_err().to_string().contains("at most 100"));
}

#[test]
fn writer_refuses_what_could_not_be_read_back() {
    let mut writer = GgufWriter::new();
    writer.set("a", 1u32).unwrap().tensor("w", GgmlType::Q4_0, &[2, 32]).unwrap();
    assert!(writer.set("a", 2u32).is_err());
    assert!(writer.set("general.alignment", 64u32).is_err());
    assert!(writer.tensor("w", GgmlType::F32, &[1]).is_err());
    assert!(writer.tensor("v", GgmlType::Q4_0, &[2, 33]).is_err());
    assert!(writer.tensor("v", GgmlType::F32, &[1; 9]).is_err());
    assert!(writer.tensor("v", GgmlType::F32, &[usize::MAX, 2]).is_err());
    assert!(writer.tensor("v", GgmlType::F32, &[0, usize::MAX]).is_err());
    assert!(GgufWriter::with_alignment(48).is_err());
    let deep = (0..64).fold(Array::U8(vec![]), |inner, _| Array::Array(vec![inner]));
    assert!(writer.set("deep", Value::Array(deep)).is_err());
    assert!(writer.to_bytes(&[]).is_err());
    assert!(writer.to_bytes(&[&[0; 35]]).is_err());
    // Nothing refused has left a trace.
    let file = GgufFile::from_bytes(writer.to_bytes(&[&[0; 36]]).unwrap()).unwrap();
    assert_eq!((file.metadata().len(), file.tensors().len()), (1, 1));
}

#[test]
fn streams_appear_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let writer = || {
        let mut writer = GgufWriter::with_alignment(64).unwrap();
        writer.tensor("empty", GgmlType::F32, &[0]).unwrap();
        writer.tensor("a", GgmlType::I8, &[5]).unwrap();
        writer.tensor("b", GgmlType::F32, &[1, 2]).unwrap();
        writer
    };
    let entries = || std::fs::read_dir(folder.path()).unwrap().count();

    let mut stream = writer().create(&path).unwrap();
    assert!(!path.exists());
    assert!(stream.write("b", &[0; 8]).is_err());
    drop(stream);
    let mut stream = writer().create(&path).unwrap();
    stream.write("empty", &[]).unwrap();
    stream.write("a", &[1, 2, 3]).unwrap();
    assert!(stream.write("a", &[4, 5, 6]).unwrap_err().to_string().contains("tensor `a`"));
    assert!(stream.finish().unwrap_err().to_string().contains("tensor `a`: lacks 2 of 5 bytes"));
    assert_eq!(entries(), 0, "an unfinished file was left behind");

    let mut stream = writer().create(&path).unwrap();
    stream.write("empty", &[]).unwrap();
    stream.write("a", &[1, 2, 3]).unwrap();
    stream.write("a", &[4, 5]).unwrap();
    stream.write("b", &[0, 0, 128, 63]).unwrap();
    stream.write("b", &[0, 0, 0, 64]).unwrap();
    assert!(stream.write("c", &[0]).is_err());
    stream.finish().unwrap();
    assert_eq!(entries(), 1);
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.alignment(), 64);
    assert_eq!(file.tensor_f32("a").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(file.tensor_f32("b").unwrap(), [1.0, 2.0]);
    let in_memory = writer().to_bytes(&[&[], &[1, 2, 3, 4, 5], &[0, 0, 128, 63, 0, 0, 0, 64]]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), in_memory);
    assert!(matches!(GgufWriter::new().create(folder.path().join("no/such/folder.gguf")), Err(Error::Io { .. })));
}

fn array() -> impl Strategy<Value = Array> {
    let leaf = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..5).prop_map(Array::U8),
        prop::collection::vec(any::<i8>(), 0..5).prop_map(Array::I8),
        prop::collection::vec(any::<u16>(), 0..5).prop_map(Array::U16),
        prop::collection::vec(any::<i16>(), 0..5).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..5).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), 0..5).prop_map(Array::I32),
        prop::collection::vec(any::<f32>(), 0..5).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        prop::collection::vec(any::<String>(), 0..5).prop_map(Array::String),
        prop::collection::vec(any::<u64>(), 0..5).prop_map(Array::U64),
        prop::collection::vec(any::<i64>(), 0..5).prop_map(Array::I64),
        prop::collection::vec(any::<f64>(), 0..5).prop_map(Array::F64),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        array().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

/// A type, and a shape whose rows are whole blocks.
fn tensor() -> impl Strategy<Value = (GgmlType, Vec<usize>)> {
    (prop::sample::select(GgmlType::ALL), prop::collection::vec(0usize..4, 0..5)).prop_map(|(ty, mut shape)| {
        match shape.last_mut() {
            Some(k) => *k *= ty.block_len(),
            None => shape.push(ty.block_len()),
        }
        (ty, shape)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_written_is_read_back(
        metadata in prop::collection::btree_map("[a-z.]{1,12}", value(), 0..8),
        tensors in prop::collection::btree_map(".{1,16}", tensor(), 0..6),
        alignment in 0u32..8,
        seed: u64,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut writer = GgufWriter::with_alignment(1 << alignment).unwrap();
        for (key, value) in &metadata {
            writer.set(key, value.clone()).unwrap();
        }
        let mut data = Vec::new();
        for (name, (ty, shape)) in &tensors {
            writer.tensor(name, *ty, shape).unwrap();
            let bytes = shape.iter().product::<usize>() / ty.block_len() * ty.block_bytes();
            data.push((0..bytes).map(|_| rng.u8(..)).collect::<Vec<u8>>());
        }
        let bytes = writer.to_bytes(&data.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let file = GgufFile::from_bytes(bytes).unwrap();
        prop_assert_eq!(file.metadata().len(), metadata.len() + 1);
        for (key, value) in &metadata {
            // Floats are compared through their text, so that NaN equals itself.
            prop_assert_eq!(format!("{:?}", file.value(key)), format!("{:?}", Some(value)));
        }
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for ((name, (ty, shape)), data) in tensors.iter().zip(&data) {
            let info = file.tensor(name).unwrap();
            prop_assert_eq!((info.ty, &info.shape), (*ty, shape));
            prop_assert_eq!(file.tensor_bytes(name).unwrap(), data);
            prop_assert!(info.bytes() == 0 || info.range.start.is_multiple_of(1 << alignment));
        }
    }

    #[test]
    fn noise_after_the_magic_is_survived(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = Raw::new(2, 2).0;
        bytes.extend(noise);
        read_everything(&bytes);
    }
}
