//! Encoders and graphs: checks, barriers, replay.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::catalogue::{self, Kernel};
use kernelry::ops::norm::RmsNorm;
use kernelry::{Buffer, Context, DType, Error};
use proptest::prelude::*;

fn chain(ctx: &Context) -> (Buffer, Buffer, Buffer, Buffer) {
    let x = ctx.upload(&(0..64).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>(), &[4, 16]).unwrap();
    let weight = ctx.upload(&(0..16).map(|i| 1.0 + i as f32 * 0.1).collect::<Vec<_>>(), &[16]).unwrap();
    (x, weight, ctx.zeros(DType::F32, &[4, 16]).unwrap(), ctx.zeros(DType::F32, &[4, 16]).unwrap())
}

#[test]
fn errors_say_what_was_got_and_expected_and_record_nothing() {
    let ctx = Context::cpu();
    let (x, _, out, _) = chain(&ctx);
    let short = ctx.zeros(DType::F32, &[15]).unwrap();
    let mut encoder = ctx.encoder();
    let error = RmsNorm { x: &x, weight: &short, out: &out, eps: 1e-6 }.encode(&mut encoder).unwrap_err();
    assert_eq!(error.to_string(), "[rms_norm_f32_v2] weight: got shape [15], expected at least [16] = [dim]");
    let half = ctx.zeros(DType::F16, &[16]).unwrap();
    let error = RmsNorm { x: &x, weight: &half, out: &out, eps: 1e-6 }.encode(&mut encoder).unwrap_err();
    assert_eq!(error.to_string(), "[rms_norm_f32_v2] weight: got dtype f16, expected f32");
    for eps in [f32::NAN, -1.0, f32::INFINITY] {
        let error = RmsNorm { x: &x, weight: &out.slice(0, 16).unwrap(), out: &out, eps }.encode(&mut encoder).unwrap_err();
        assert!(error.to_string().starts_with("[rms_norm_f32_v2] eps: got "), "{error}");
    }
    assert_eq!(encoder.finish().unwrap().launches(), 0);
}

#[test]
fn a_buffer_of_another_device_is_refused() {
    let (here, there) = (Context::cpu(), Context::cpu());
    let (x, weight, out, _) = chain(&here);
    let mut encoder = there.encoder();
    let error = RmsNorm { x: &x, weight: &weight, out: &out, eps: 0.0 }.encode(&mut encoder).unwrap_err();
    assert!(matches!(error, Error::DeviceMismatch { .. }), "{error}");
    let pipeline = here.registry().get_pipeline("rms_norm_f32", here.device()).unwrap();
    assert!(matches!(encoder.launch_pipeline(&pipeline, &[], &[]), Err(Error::DeviceMismatch { .. })));
}

#[test]
fn barriers_come_from_accesses() {
    let ctx = Context::cpu();
    let (x, weight, a, b) = chain(&ctx);
    let mut encoder = ctx.encoder();
    RmsNorm { x: &x, weight: &weight, out: &a, eps: 0.0 }.encode(&mut encoder).unwrap();
    RmsNorm { x: &x, weight: &weight, out: &b, eps: 0.0 }.encode(&mut encoder).unwrap();
    RmsNorm { x: &a, weight: &weight, out: &a, eps: 0.0 }.encode(&mut encoder).unwrap();
    let graph = encoder.finish().unwrap();
    assert_eq!((graph.launches(), graph.barriers()), (3, 1));
}

#[test]
fn adjacent_slices_of_one_buffer_need_no_barrier() {
    let ctx = Context::cpu();
    let (x, weight, a, _) = chain(&ctx);
    let mut encoder = ctx.encoder();
    for row in 0..4 {
        let (x, out) = (x.rows(row, 1).unwrap(), a.rows(row, 1).unwrap());
        RmsNorm { x: &x, weight: &weight, out: &out, eps: 0.0 }.encode(&mut encoder).unwrap();
    }
    assert_eq!(encoder.finish().unwrap().barriers(), 0);
}

#[test]
fn replay_and_force_serial_give_the_bits_of_direct_encoding() {
    let ctx = Context::cpu();
    let run = |force_serial: bool, replays: usize| -> Vec<u32> {
        let (x, weight, a, b) = chain(&ctx);
        let mut encoder = ctx.encoder();
        encoder.set_force_serial(force_serial);
        RmsNorm { x: &x, weight: &weight, out: &a, eps: 1e-5 }.encode(&mut encoder).unwrap();
        RmsNorm { x: &a, weight: &weight, out: &b, eps: 1e-5 }.encode(&mut encoder).unwrap();
        encoder.copy(&b, &x).unwrap();
        if replays == 0 {
            encoder.run().unwrap();
        } else {
            let graph = encoder.finish().unwrap();
            (0..replays).for_each(|_| graph.run().unwrap());
        }
        x.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
    };
    let direct = run(false, 0);
    assert_eq!(direct, run(true, 0));
    assert_eq!(direct, run(false, 1));
    assert_ne!(direct, run(false, 3), "each replay works on what the last one left");
}

#[test]
fn copies_check_lengths_and_overlap() {
    let ctx = Context::cpu();
    let buffer = ctx.upload(&(0..8u32).collect::<Vec<_>>(), &[8]).unwrap();
    let mut encoder = ctx.encoder();
    encoder.copy(&buffer, &buffer).unwrap();
    let (left, right) = (buffer.slice(0, 5).unwrap(), buffer.slice(8, 5).unwrap());
    assert!(encoder.copy(&left, &right).is_err());
    assert!(encoder.copy(&left, &buffer).is_err());
    encoder.copy(&buffer.slice(0, 4).unwrap(), &buffer.slice(16, 4).unwrap()).unwrap();
    encoder.run().unwrap();
    assert_eq!(buffer.to_vec::<u32>().unwrap(), [0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn step_parameters_need_a_step_buffer() {
    let ctx = Context::cpu();
    let mut encoder = ctx.encoder();
    assert!(encoder.set_step(&ctx.zeros(DType::F32, &[4]).unwrap()).is_err());
    encoder.set_step(&ctx.zeros(DType::U32, &[4]).unwrap()).unwrap();
}

#[test]
fn two_threads_submit_on_shared_buffers() {
    let ctx = Context::cpu();
    let (x, weight, _, _) = chain(&ctx);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let out = ctx.zeros(DType::F32, &[4, 16]).unwrap();
                for _ in 0..50 {
                    let mut encoder = ctx.encoder();
                    RmsNorm { x: &x, weight: &weight, out: &out, eps: 0.0 }.encode(&mut encoder).unwrap();
                    RmsNorm { x: &x, weight: &weight, out: &x, eps: 0.0 }.encode(&mut encoder).unwrap();
                    encoder.run().unwrap();
                }
            });
        }
    });
}

/// Values that a hurried or hostile caller passes.
fn odd_u32() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(2), Just(u32::MAX), Just(i32::MAX as u32), 3u32..40, any::<u32>()]
}

fn launchable() -> Vec<&'static Kernel> {
    let device = kernelry::Device::cpu();
    catalogue::builtin().iter().filter(|k| device.support(k).supported).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random parameters and buffers of random lengths at every launcher: an error or a result, and never a panic or a write outside.
    #[test]
    fn random_parameters_never_panic(pick in any::<prop::sample::Index>(), words in prop::collection::vec(odd_u32(), 40), lens in prop::collection::vec(1usize..5000, 12), small in any::<bool>()) {
        let kernels = launchable();
        let kernel = kernels[pick.index(kernels.len())];
        let ctx = Context::cpu();
        let mut params: Vec<u8> = words.iter().map(|w| if small { w % 67 } else { *w }).flat_map(u32::to_ne_bytes).collect();
        params.resize(kernel.params().size, 0);
        for field in kernel.params().fields.iter().filter(|f| f.kind == catalogue::ParamKind::Step) {
            // A step parameter that is read from a buffer which is not there is a case of its own: here it is a value.
            params[field.offset + 4..field.offset + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
        }
        let buffers: Vec<Buffer> = kernel.bindings().iter().enumerate().map(|(i, b)| {
            // As long as the parameters ask for where that is possible, so that launches happen.
            let wanted = kernel.dims(i, &params).ok().and_then(|d| d.iter().try_fold(1u64, |n, &d| n.checked_mul(d))).filter(|n| (1..1 << 16).contains(n));
            ctx.zeros(b.dtype(), &[wanted.map_or(lens[i % lens.len()], |n| n as usize)]).unwrap()
        }).collect();
        let args: Vec<Option<&Buffer>> = buffers.iter().map(Some).collect();
        let pipeline = ctx.registry().get_pipeline(kernel.name(), ctx.device()).unwrap();
        let mut encoder = ctx.encoder();
        if encoder.launch_pipeline(&pipeline, &args, &params).is_ok() {
            encoder.run().unwrap();
        }
    }
}
