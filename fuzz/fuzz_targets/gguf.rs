//! Any bytes are refused, or give a file that can be read completely and written again with the same contents.
#![no_main]

use kernelry::FileMap;
use kernelry::gguf::{GgufFile, GgufWriter, Limits, Value};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let map = FileMap::from_bytes(bytes.to_vec());
    let strict = GgufFile::from_map(map.clone(), &Limits::strict());
    let Ok(file) = GgufFile::from_map(map, &Limits::default()) else {
        assert!(strict.is_err(), "the strict limits accept what the default ones refuse");
        return Corpus::Keep;
    };
    let mut writer = GgufWriter::with_alignment(32).expect("32 is a power of two");
    let mut data = Vec::new();
    for info in file.tensors() {
        let bytes = file.tensor_bytes(&info.name).expect("every listed tensor has bytes");
        assert_eq!(bytes.len(), info.bytes());
        if info.ty.can_dequantize() {
            let values = file.tensor_f32(&info.name).expect("every decodable tensor decodes");
            assert_eq!(values.len(), info.elements());
        }
        writer.tensor(&info.name, info.ty, &info.shape).expect("what is read can be written");
        data.push(bytes);
    }
    for (key, value) in file.metadata() {
        let _ = (value.to_string(), file.find::<u32>(key), file.find::<Vec<f32>>(key));
        if key != "general.alignment" {
            writer.set(key, value.clone()).expect("what is read can be written");
        }
    }
    let again =
        GgufFile::from_bytes(writer.to_bytes(&data).expect("the data have the declared sizes")).expect("what is written can be read");
    assert_eq!(again.tensors().len(), file.tensors().len());
    for (info, data) in file.tensors().iter().zip(data) {
        let other = again.tensor(&info.name).expect("the tensor was written");
        assert_eq!((&other.shape, other.ty), (&info.shape, info.ty));
        assert_eq!(again.tensor_bytes(&info.name).expect("it has bytes"), data);
    }
    for (key, value) in file.metadata() {
        assert_eq!(again.value(key).map(Value::ty).is_some(), true, "{key} {value}");
    }
    Corpus::Keep
});
