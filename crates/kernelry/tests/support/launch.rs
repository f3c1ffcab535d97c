//! Launches by name, for tests that compare the bits of one kernel with those of others.
#![allow(dead_code)]

use kernelry::catalogue::Params;
use kernelry::{Buffer, Context, DType, bf16, f16};

pub(crate) struct Launcher {
    ctx: Context,
    rng: fastrand::Rng,
}

impl Launcher {
    /// On the CPU, with inputs from this seed, which a failed test shows.
    pub(crate) fn new(seed: u64) -> Launcher {
        println!("seed {seed}");
        Launcher { ctx: Context::cpu(), rng: fastrand::Rng::with_seed(seed) }
    }

    /// Normal numbers, rounded to the dtype.
    pub(crate) fn normal(&mut self, dtype: DType, shape: &[usize]) -> Buffer {
        let rng = &mut self.rng;
        let mut one = || ((-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()) as f32;
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| one()).collect();
        self.rounded(dtype, &values, shape)
    }

    /// These numbers, rounded to the dtype.
    pub(crate) fn rounded(&self, dtype: DType, values: &[f32], shape: &[usize]) -> Buffer {
        match dtype {
            DType::F16 => self.ctx.upload(&values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>(), shape).unwrap(),
            DType::BF16 => self.ctx.upload(&values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(), shape).unwrap(),
            _ => self.ctx.upload(values, shape).unwrap(),
        }
    }

    pub(crate) fn upload<T: kernelry::Element>(&self, values: &[T], shape: &[usize]) -> Buffer {
        self.ctx.upload(values, shape).unwrap()
    }

    /// The numbers of a buffer.
    pub(crate) fn widen(&self, x: &Buffer) -> Vec<f32> {
        match x.dtype() {
            DType::F16 => x.to_vec::<f16>().unwrap().into_iter().map(f16::to_f32).collect(),
            DType::BF16 => x.to_vec::<bf16>().unwrap().into_iter().map(bf16::to_f32).collect(),
            _ => x.to_vec::<f32>().unwrap(),
        }
    }

    /// The same numbers as f32.
    pub(crate) fn as_f32(&self, x: &Buffer) -> Buffer {
        self.upload(&self.widen(x), x.shape())
    }

    /// Runs `name` with `inputs` and one output more.
    pub(crate) fn run<P: Params>(&self, name: &str, inputs: &[&Buffer], params: P, out: DType, shape: &[usize]) -> Buffer {
        self.run_for(name, inputs, params, &[(out, shape)]).remove(0)
    }

    /// Runs `name` with `inputs` and outputs of these dtypes and shapes, which come last.
    pub(crate) fn run_for<P: Params>(&self, name: &str, inputs: &[&Buffer], params: P, outs: &[(DType, &[usize])]) -> Vec<Buffer> {
        self.run_with(name, &inputs.iter().copied().map(Some).collect::<Vec<_>>(), params, outs)
    }

    /// As [`Launcher::run_for`], with inputs that may be left out.
    pub(crate) fn run_with<P: Params>(&self, name: &str, inputs: &[Option<&Buffer>], params: P, outs: &[(DType, &[usize])]) -> Vec<Buffer> {
        let outs: Vec<Buffer> = outs.iter().map(|(dtype, shape)| self.ctx.zeros(*dtype, shape).unwrap()).collect();
        let args: Vec<Option<&Buffer>> = inputs.iter().copied().chain(outs.iter().map(Some)).collect();
        let mut encoder = self.ctx.encoder();
        encoder.launch(name, &args, &params).unwrap();
        encoder.run().unwrap();
        outs
    }
}

/// The bytes of a buffer.
pub(crate) fn bits(x: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; x.byte_len()];
    x.read_bytes(&mut bytes).unwrap();
    bytes
}

/// Fails with the first element that differs.
#[track_caller]
pub(crate) fn assert_same(what: &str, got: &Buffer, expected: &Buffer) {
    assert_eq!((got.dtype(), got.len()), (expected.dtype(), expected.len()), "{what}");
    let size = got.dtype().size();
    let (got, expected) = (bits(got), bits(expected));
    let at = got.chunks(size).zip(expected.chunks(size)).position(|(a, b)| a != b);
    assert_eq!(at, None, "{what}: element {at:?} of {} differs", got.len() / size);
}
