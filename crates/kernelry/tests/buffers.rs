//! Buffers, views, host access and file mappings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::{Buffer, Context, DType, Device, Error, FileMap};
use proptest::prelude::*;

#[test]
fn fresh_memory_is_zero_also_where_old_memory_was_dirty() {
    let device = Device::cpu();
    for round in 0..20 {
        let buffer = Buffer::zeros(&device, DType::U32, &[1000 + round]).unwrap();
        assert!(buffer.to_vec::<u32>().unwrap().iter().all(|&v| v == 0), "round {round}");
        buffer.write(&vec![u32::MAX; 1000 + round]).unwrap();
    }
}

#[test]
fn impossible_sizes_are_typed_errors() {
    let device = Device::cpu();
    assert!(matches!(Buffer::zeros(&device, DType::F32, &[4, 0]), Err(Error::InvalidArgument { .. })));
    assert!(matches!(Buffer::zeros(&device, DType::F32, &[usize::MAX, 2]), Err(Error::Allocation { .. })));
    let huge = Buffer::zeros(&device, DType::U8, &[1 << 46]).unwrap_err();
    assert!(matches!(huge, Error::Allocation { bytes, .. } if bytes == 1 << 46), "{huge}");
    let short = Buffer::from_slice(&device, &[1.0f32; 5], &[2, 3]).unwrap_err();
    assert_eq!(short.to_string(), "[upload] data: got 20 bytes, expected 24 for f32 [2, 3]");
}

#[test]
fn views_of_views_add_their_offsets() {
    let ctx = Context::cpu();
    let whole = ctx.upload(&(0..24u32).collect::<Vec<_>>(), &[4, 6]).unwrap();
    let middle = whole.rows(1, 2).unwrap();
    assert_eq!((middle.shape(), middle.byte_offset()), (&[2, 6][..], 24));
    let inner = middle.slice(8, 5).unwrap();
    assert_eq!(inner.to_vec::<u32>().unwrap(), [8, 9, 10, 11, 12]);
    assert_eq!((inner.byte_len(), inner.allocation_len()), (20, 96));
    assert!(inner.same_storage(&whole));
    inner.write(&[0u32; 5]).unwrap();
    assert_eq!(whole.to_vec::<u32>().unwrap()[7..14], [7, 0, 0, 0, 0, 0, 13]);
    assert_eq!(whole.reshape(&[2, 12]).unwrap().shape(), [2, 12]);
    assert!(whole.reshape(&[5, 5]).is_err() && whole.reshape(&[usize::MAX, 2]).is_err());
    for (offset, len) in [(0, 25), (96, 1), (2, 4), (0, 0), (usize::MAX, 2), (4, usize::MAX)] {
        assert!(matches!(whole.slice(offset, len), Err(Error::InvalidArgument { .. })), "{offset} {len}");
    }
    assert!(whole.rows(3, 2).is_err() && whole.rows(usize::MAX, 1).is_err() && whole.rows(0, 0).is_err());
}

#[test]
fn host_slices_exclude_writers_and_check_types() {
    let ctx = Context::cpu();
    let buffer = ctx.upload(&[1.0f32, 2.0, 3.0], &[3]).unwrap();
    assert!(matches!(buffer.to_vec::<u32>(), Err(Error::UnsupportedDType { .. })));
    assert!(buffer.write(&[1.0f32]).is_err());
    let reader = buffer.host_slice::<f32>().unwrap();
    assert_eq!(&reader[..], [1.0, 2.0, 3.0]);
    assert_eq!(buffer.host_slice::<f32>().unwrap().len(), 3, "readers share");
    assert!(buffer.host_slice_mut::<f32>().is_err());
    let blocked = buffer.write(&[0.0f32; 3]).unwrap_err();
    assert!(blocked.to_string().contains("host slice"), "{blocked}");
    let mut encoder = ctx.encoder();
    encoder.zero(&buffer).unwrap();
    assert!(encoder.run().is_err(), "a launch does not write under a reader");
    drop(reader);
    buffer.host_slice_mut::<f32>().unwrap()[1] = 9.0;
    assert_eq!(buffer.to_vec::<f32>().unwrap(), [1.0, 9.0, 3.0]);
}

#[test]
fn mapped_files_are_read_only_buffers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let bytes: Vec<u8> = (0..64).collect();
    std::fs::write(&path, &bytes).unwrap();
    let map = FileMap::open(&path).unwrap();
    let ctx = Context::cpu();
    let buffer = Buffer::from_file(ctx.device(), &map, 16, DType::U32, &[4]).unwrap();
    assert!(!buffer.is_writable());
    assert_eq!(buffer.to_vec::<u32>().unwrap()[0], u32::from_le_bytes([16, 17, 18, 19]));
    assert!(buffer.write(&[0u32; 4]).is_err() && buffer.host_slice_mut::<u32>().is_err());
    let mut encoder = ctx.encoder();
    assert!(encoder.zero(&buffer).is_err());
    // An offset that f32 cannot have is uploaded instead of mapped.
    let odd = Buffer::from_file(ctx.device(), &map, 3, DType::U32, &[2]).unwrap();
    assert_eq!(odd.to_vec::<u32>().unwrap()[0], u32::from_le_bytes([3, 4, 5, 6]));
    assert!(Buffer::from_file(ctx.device(), &map, 60, DType::U32, &[2]).is_err());
    assert!(Buffer::from_file(ctx.device(), &map, usize::MAX, DType::U32, &[2]).is_err());
    let missing = FileMap::open(&directory.path().join("absent")).err().unwrap();
    assert!(missing.to_string().contains("absent"), "{missing}");
    assert!(FileMap::open(directory.path()).is_err());
}

proptest! {
    #[test]
    fn slices_equal_slices_of_a_vector(len in 1usize..200, start in 0usize..220, count in 0usize..220) {
        let data: Vec<u32> = (0..len as u32).collect();
        let buffer = Context::cpu().upload(&data, &[len]).unwrap();
        match (buffer.slice(start * 4, count), data.get(start..start + count).filter(|s| !s.is_empty())) {
            (Ok(view), Some(expected)) => prop_assert_eq!(view.to_vec::<u32>().unwrap(), expected),
            (Err(_), None) => {}
            (view, expected) => prop_assert!(false, "{view:?} against {expected:?}"),
        }
    }
}
