//! safetensors files against the reference crate, damaged files, shards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use kernelry::safetensors::{NewTensor, SafeTensors, StoredType, save, to_bytes};
use kernelry::{DType, Error, FileMap};
use proptest::prelude::*;
use safetensors::tensor::{Dtype as ReferenceDtype, SafeTensors as Reference, TensorView};

/// A file with this header, header length included, and this many bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.resize(out.len() + data, 7);
    out
}

fn expect_problem(bytes: Vec<u8>, parts: &[&str]) {
    match SafeTensors::from_bytes(bytes) {
        Err(error @ Error::Format { format: "safetensors", .. }) => {
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text:?} does not contain {parts:?}");
        }
        other => panic!("expected a format error with {parts:?}, got {other:?}"),
    }
}

#[test]
fn reads_the_files_of_the_python_package() {
    for name in ["quant/decode", "quant/encode", "gguf/library"] {
        let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(&path).unwrap();
        let reference = Reference::deserialize(&bytes).unwrap();
        let file = SafeTensors::open(&path).unwrap();
        assert_eq!(file.tensors().len(), reference.len());
        for info in file.tensors() {
            let expected = reference.tensor(&info.name).unwrap();
            assert_eq!(info.shape, expected.shape());
            assert_eq!(file.tensor_bytes(&info.name).unwrap(), expected.data());
            assert_eq!(info.dtype().unwrap(), if expected.dtype() == ReferenceDtype::F32 { DType::F32 } else { DType::U8 });
        }
    }
}

/// Every type that the reference can write has the same size here, and reads as a dtype, as f32, or as an error that names the tensor.
#[test]
fn knows_the_types_of_the_reference() {
    use ReferenceDtype as R;
    type Case<'a> = (R, Option<DType>, &'a [u8], Option<f32>);
    let cases: [Case<'_>; 17] = [
        (R::BOOL, None, &[1], Some(1.0)),
        (R::U8, Some(DType::U8), &[200], Some(200.0)),
        (R::I8, Some(DType::I8), &[200], Some(-56.0)),
        (R::F8_E5M2, None, &[0], None),
        (R::F8_E4M3, None, &[0], None),
        (R::F8_E8M0, None, &[0], None),
        (R::I16, None, &[0, 0x80], Some(-32768.0)),
        (R::U16, Some(DType::U16), &[0, 0x80], Some(32768.0)),
        (R::F16, Some(DType::F16), &[0, 0x3E], Some(1.5)),
        (R::BF16, Some(DType::BF16), &[0xC0, 0x3F], Some(1.5)),
        (R::I32, Some(DType::I32), &[0, 0, 0, 0x80], Some(-2147483648.0)),
        (R::U32, Some(DType::U32), &[0, 0, 0, 0x80], Some(2147483648.0)),
        (R::F32, Some(DType::F32), &[0, 0, 0xC0, 0x3F], Some(1.5)),
        (R::F64, None, &[0, 0, 0, 0, 0, 0, 0xF8, 0x3F], Some(1.5)),
        (R::I64, Some(DType::I64), &[0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], Some(-2.0)),
        (R::U64, Some(DType::U64), &[0, 0, 0, 0, 0, 0, 0, 0x80], Some(9.223372e18)),
        (R::F4, None, &[0], None),
    ];
    for (reference, dtype, bytes, value) in cases {
        let elements = bytes.len() * 8 / reference.bitsize();
        let view = TensorView::new(reference, vec![elements], bytes).unwrap();
        let file = SafeTensors::from_bytes(safetensors::serialize([("t", view)], None).unwrap()).unwrap();
        let info = file.tensor("t").unwrap();
        assert_eq!(StoredType::from_name(&reference.to_string()), Some(info.ty));
        assert_eq!(info.ty.bits(), reference.bitsize());
        assert_eq!(info.elements(), elements);
        assert_eq!(info.ty.dtype(), dtype);
        match dtype {
            Some(dtype) => assert_eq!(info.dtype().unwrap(), dtype),
            None => {
                let text = info.dtype().unwrap_err().to_string();
                assert!(text.contains("tensor `t`") && text.contains(info.ty.name()), "{text}");
            }
        }
        match value {
            Some(value) => assert_eq!(file.read_f32("t").unwrap(), [value], "{reference}"),
            None => assert!(file.read_f32("t").unwrap_err().to_string().contains("tensor `t`")),
        }
    }
}

#[test]
fn headers_that_lie_are_refused_with_the_item_at_fault() {
    let one = |entry: &str, data| raw(&format!("{{\"w\":{entry}}}"), data);
    assert!(SafeTensors::from_bytes(one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 8)).is_ok());
    expect_problem(vec![], &["header", "file of 0 bytes"]);
    expect_problem(u64::MAX.to_le_bytes().to_vec(), &["header", "length"]);
    expect_problem(90_000_000u64.to_le_bytes().to_vec(), &["header", "length", "0 left"]);
    expect_problem(raw("", 0), &["header"]);
    expect_problem(raw("[]", 0), &["header", "object of tensors"]);
    expect_problem(raw("{} x", 0), &["header", "trailing"]);
    expect_problem(raw("{}", 1), &["data", "cover 0 bytes of 1"]);
    expect_problem(one("3", 0), &["tensor `w`"]);
    expect_problem(one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}"#, 8), &["tensor `w`", "-1"]);
    expect_problem(one(r#"{"dtype":"F32","shape":[2]}"#, 8), &["tensor `w`", "data_offsets"]);
    expect_problem(one(r#"{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}"#, 8), &["tensor `w`", "unknown dtype `Q4`"]);
    expect_problem(one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#, 8), &["tensor `w`", "got 8 bytes, expected 12"]);
    expect_problem(one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8), &["tensor `w`", "data_offsets"]);
    expect_problem(one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,16]}"#, 8), &["tensor `w`", "in the 8 bytes"]);
    expect_problem(one(r#"{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#, 12), &["tensor `w`", "gap"]);
    expect_problem(one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#, 2), &["tensor `w`", "end at a byte"]);
    let max = u64::MAX;
    // The sum of header and data would overflow, as would the product of dimensions, even where a zero hides it.
    expect_problem(one(&format!(r#"{{"dtype":"U8","shape":[{max}],"data_offsets":[0,{max}]}}"#), 8), &["tensor `w`"]);
    expect_problem(one(&format!(r#"{{"dtype":"U8","shape":[0,{max},{max}],"data_offsets":[0,0]}}"#), 0), &["tensor `w`", "too many"]);
    let two = |a: &str, at: usize| {
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"{a}":{{"dtype":"U8","shape":[4],"data_offsets":[{at},{}]}}}}"#,
            at + 4
        );
        raw(&header, 8)
    };
    assert!(SafeTensors::from_bytes(two("b", 4)).is_ok());
    expect_problem(two("a", 4), &["tensor `a`", "twice"]);
    expect_problem(two("b", 3), &["tensor `b`", "overlaps"]);
    expect_problem(raw(r#"{"__metadata__":{"a":1}}"#, 0), &["__metadata__"]);
    expect_problem(raw(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), &["__metadata__", "twice"]);
    expect_problem(raw(&format!("{{\"w\":{}", "[".repeat(100_000)), 0), &["tensor `w`"]);
}

fn sample() -> Vec<u8> {
    let tensors = [
        NewTensor { name: "a.weight", dtype: DType::F16, shape: &[3, 2], bytes: &[1; 12] },
        NewTensor { name: "b", dtype: DType::I64, shape: &[], bytes: &[2; 8] },
        NewTensor { name: "empty \"ü\"", dtype: DType::F32, shape: &[0, 4], bytes: &[] },
    ];
    to_bytes(&tensors, &[("format", "pt")]).unwrap()
}

/// Whatever a damaged file says, it is either refused or read without leaving its bytes.
fn read_everything(bytes: &[u8]) {
    if let Ok(file) = SafeTensors::from_bytes(bytes) {
        for info in file.tensors() {
            assert_eq!(file.tensor_bytes(&info.name).unwrap().len() * 8, info.elements() * info.ty.bits());
            if let Ok(values) = file.read_f32(&info.name) {
                assert_eq!(values.len(), info.elements());
            }
        }
    }
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let bytes = sample();
    for len in 0..bytes.len() {
        let result = SafeTensors::from_bytes(&bytes[..len]);
        assert!(matches!(result, Err(Error::Format { format: "safetensors", .. })), "cut to {len} bytes");
    }
}

#[test]
fn every_bit_flip_is_survived() {
    let bytes = sample();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        read_everything(&damaged);
    }
}

#[test]
fn the_reference_reads_what_we_write() {
    let bytes = sample();
    let (_, header) = Reference::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let reference = Reference::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), 3);
    let weight = reference.tensor("a.weight").unwrap();
    assert_eq!((weight.dtype(), weight.shape(), weight.data()), (ReferenceDtype::F16, &[3, 2][..], &[1u8; 12][..]));
    let file = SafeTensors::from_bytes(bytes).unwrap();
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a.weight", "b", "empty \"ü\""]);
    // Widest first, so that every tensor starts at a multiple of its element.
    assert!(file.tensors().iter().all(|t| t.range.start.is_multiple_of(t.ty.bits() / 8)));
}

#[test]
fn writer_refuses_wrong_sizes_and_names() {
    let tensor = |name, bytes| NewTensor { name, dtype: DType::F32, shape: &[1], bytes };
    assert!(to_bytes(&[tensor("a", &[0; 4]), tensor("a", &[0; 4])], &[]).unwrap_err().to_string().contains("tensor `a`"));
    assert!(to_bytes(&[tensor("a", &[0; 3])], &[]).unwrap_err().to_string().contains("tensor `a`"));
    assert!(to_bytes(&[tensor("__metadata__", &[0; 4])], &[]).is_err());
    let huge = NewTensor { name: "h", dtype: DType::F32, shape: &[usize::MAX, 2], bytes: &[] };
    assert!(to_bytes(&[huge], &[]).is_err());
    // Our reader would refuse it.
    let hidden = NewTensor { name: "h", dtype: DType::F32, shape: &[0, usize::MAX, 2], bytes: &[] };
    assert!(to_bytes(&[hidden], &[]).is_err());
}

fn entries(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn saving_replaces_whole_files_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let tensor = |bytes| NewTensor { name: "a", dtype: DType::U8, shape: &[2], bytes };
    save(&path, &[tensor(&[1, 2])], &[]).unwrap();
    assert!(save(&path, &[tensor(&[1])], &[]).is_err());
    assert_eq!(SafeTensors::open(&path).unwrap().tensor_bytes("a").unwrap(), [1, 2]);
    let open = SafeTensors::open(&path).unwrap();
    save(&path, &[tensor(&[3, 4])], &[]).unwrap();
    assert_eq!(SafeTensors::open(&path).unwrap().tensor_bytes("a").unwrap(), [3, 4]);
    // A file that is mapped keeps its contents when another takes its name.
    assert_eq!(open.tensor_bytes("a").unwrap(), [1, 2]);
    assert_eq!(entries(folder.path()), 1);
    // The target is a folder: renaming fails, and the temporary file goes.
    std::fs::create_dir(folder.path().join("taken")).unwrap();
    assert!(matches!(save(folder.path().join("taken"), &[], &[]), Err(Error::Io { .. })));
    assert_eq!(entries(folder.path()), 2);
    assert!(matches!(save("/", &[], &[]), Err(Error::Io { .. })));
}

#[test]
fn shards_are_found_through_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tensor = |name, bytes| NewTensor { name, dtype: DType::U8, shape: &[1], bytes };
    save(at("one.safetensors"), &[tensor("b", &[1]), tensor("unlisted", &[9])], &[("format", "pt")]).unwrap();
    save(at("two.safetensors"), &[tensor("a", &[2]), tensor("c", &[3])], &[]).unwrap();
    let index =
        |map: &str| std::fs::write(at("model.safetensors.index.json"), format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#)).unwrap();
    index(r#"{"c":"two.safetensors","b":"one.safetensors","a":"two.safetensors"}"#);
    for path in [folder.path().to_owned(), at("model.safetensors.index.json")] {
        let model = SafeTensors::open(path).unwrap();
        assert_eq!(model.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(model.mappings().len(), 2);
        assert_eq!(model.metadata()["format"], "pt");
        for (name, value) in [("a", 2), ("b", 1), ("c", 3)] {
            assert_eq!(model.tensor_bytes(name).unwrap(), [value]);
            let info = model.tensor(name).unwrap();
            assert_eq!(&model.mappings()[info.shard].as_bytes()[info.range.clone()], [value]);
        }
    }
    let fails = |map: &str, parts: &[&str]| {
        index(map);
        let text = SafeTensors::open(folder.path()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text:?} does not contain {parts:?}");
    };
    fails(r#"{"a":"one.safetensors"}"#, &["tensor `a`", "not in shard `one.safetensors`"]);
    fails(r#"{"a":"../two.safetensors"}"#, &["tensor `a`", "folder of the index"]);
    fails(r#"{"a":"/etc/passwd"}"#, &["tensor `a`", "folder of the index"]);
    fails(r#"{"a":""}"#, &["tensor `a`", "folder of the index"]);
    fails(r#"{"a":"three.safetensors"}"#, &["three.safetensors"]);
    fails("3", &["index"]);
    std::fs::remove_file(at("model.safetensors.index.json")).unwrap();
    std::fs::copy(at("two.safetensors"), at("model.safetensors")).unwrap();
    assert_eq!(SafeTensors::open(folder.path()).unwrap().tensors().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_written_is_read_back_by_both(
        tensors in prop::collection::btree_map(
            any::<String>(), (prop::sample::select(&DType::ALL[..]), prop::collection::vec(0usize..4, 0..5)), 0..6),
        metadata in prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
        seed: u64,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut data = Vec::new();
        for (dtype, shape) in tensors.values() {
            data.push((0..shape.iter().product::<usize>() * dtype.size()).map(|_| rng.u8(..)).collect::<Vec<u8>>());
        }
        let views: Vec<_> = tensors.iter().zip(&data)
            .map(|((name, (dtype, shape)), bytes)| NewTensor { name, dtype: *dtype, shape, bytes })
            .collect();
        let pairs: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let bytes = to_bytes(&views, &pairs).unwrap();
        let reference = Reference::deserialize(&bytes).unwrap();
        let file = SafeTensors::from_map(FileMap::from_bytes(bytes.clone())).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for view in &views {
            let info = file.tensor(view.name).unwrap();
            prop_assert_eq!((info.dtype().unwrap(), &info.shape[..]), (view.dtype, view.shape));
            prop_assert_eq!(file.tensor_bytes(view.name).unwrap(), view.bytes);
            prop_assert_eq!(reference.tensor(view.name).unwrap().data(), view.bytes);
        }
    }
}
