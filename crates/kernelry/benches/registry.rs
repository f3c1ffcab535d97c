//! Cost of a cache hit by interned id and by name.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use kernelry::registry::{Constants, Options};
use kernelry::{Device, Registry};
use std::hint::black_box;

fn hits(c: &mut Criterion) {
    let (registry, device) = (Registry::new(), Device::cpu());
    registry.prewarm_all(&device, |_| true);
    let id = registry.id("rms_norm_f32").unwrap();
    let constants = Constants::new("kernel_mul_mv_q4_0_f32", [(700, kernelry::registry::ConstantValue::I32(1))]).unwrap();
    c.bench_function("hit by id", |b| {
        b.iter(|| registry.get_by_id(black_box(id), &device, &Constants::NONE, Options::default()).unwrap());
    });
    c.bench_function("hit by name", |b| b.iter(|| registry.get_pipeline(black_box("rms_norm_f32"), &device).unwrap()));
    c.bench_function("hit by name with a constant", |b| {
        b.iter(|| registry.get_with(black_box("kernel_mul_mv_q4_0_f32"), &device, &constants, Options::default()).is_ok());
    });
}

criterion_group!(benches, hits);
criterion_main!(benches);
