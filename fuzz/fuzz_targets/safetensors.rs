//! Any bytes are refused, or give a file that can be read completely and written again with the same contents.
#![no_main]

use kernelry::safetensors::{NewTensor, SafeTensors, to_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = SafeTensors::from_bytes(bytes) else { return };
    let mut tensors = Vec::new();
    for info in file.tensors() {
        let bytes = file.tensor_bytes(&info.name).expect("every listed tensor has bytes");
        assert_eq!(bytes.len() * 8, info.elements() * info.ty.bits());
        if let Ok(values) = file.read_f32(&info.name) {
            assert_eq!(values.len(), info.elements());
        }
        if let Ok(dtype) = info.dtype() {
            tensors.push(NewTensor { name: &info.name, dtype, shape: &info.shape, bytes });
        }
    }
    let metadata: Vec<(&str, &str)> = file.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let again = SafeTensors::from_bytes(to_bytes(&tensors, &metadata).expect("what is read can be written")).expect("and read again");
    assert_eq!(again.metadata(), file.metadata());
    assert_eq!(again.tensors().len(), tensors.len());
    for tensor in tensors {
        assert_eq!(again.tensor(tensor.name).expect("the tensor was written").shape, tensor.shape);
        assert_eq!(again.tensor_bytes(tensor.name).expect("it has bytes"), tensor.bytes);
    }
});
