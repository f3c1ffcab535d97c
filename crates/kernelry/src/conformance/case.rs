//! Cases: parameters, and where inputs come from.

use std::sync::Arc;

use half::{bf16, f16};

use crate::catalogue::{Kernel, Params};
use crate::registry::{ConstantValue, Math};
use crate::{Buffer, DType, Encoder, Result};

/// Records what a kernel computes, on operands in binding order and with a parameter block, by a typed launcher.
pub(crate) type Launcher = fn(&'static Kernel, &mut Encoder, &[Option<&Buffer>], &[u8]) -> Result<()>;

/// Adds the cases of a kernel to the list.
pub type CasesFn = fn(&mut Cases);

/// Collects the cases of one kernel.
pub struct Cases {
    kernel: &'static Kernel,
    /// 1 for every change, up to 4 for a long run: larger values may add sizes.
    pub intensity: u32,
    pub(crate) list: Vec<Case>,
    /// Shapes to measure, not to check.
    pub(crate) benches: Vec<Case>,
}

impl Cases {
    pub(crate) fn new(kernel: &'static Kernel, intensity: u32) -> Cases {
        Cases { kernel, intensity, list: Vec::new(), benches: Vec::new() }
    }

    /// Name of the kernel, where one function serves several.
    pub fn kernel(&self) -> &'static str {
        self.kernel.name()
    }

    /// The case added last.
    pub fn last(&mut self) -> Option<&mut Case> {
        self.list.last_mut()
    }

    /// Adds a case with these parameters. `label` says what is special about it.
    pub fn add<P: Params>(&mut self, label: impl Into<String>, params: P) -> &mut Case {
        push_case(&mut self.list, label.into(), params)
    }

    /// Adds a shape at which the kernel is measured and not checked, such as the projection of a large model for which the reference
    /// would take minutes. `label` is the shape as reports show it: `m=1 n=14336 k=4096`. Kernels with a fast mode are measured in both
    /// modes by the CPU. A kernel without such shapes, those for GPUs alone not counted, is measured at its largest cases.
    pub fn bench<P: Params>(&mut self, label: impl Into<String>, params: P) -> &mut Case {
        push_case(&mut self.benches, label.into(), params)
    }
}

fn push_case<P: Params>(list: &mut Vec<Case>, label: String, params: P) -> &mut Case {
    list.push(Case {
        label,
        params: bytemuck::bytes_of(&params).to_vec(),
        inputs: Vec::new(),
        absent: Vec::new(),
        alias: Vec::new(),
        constants: Vec::new(),
        math: Math::Precise,
        exact: false,
        gpus_only: false,
        launcher: None,
    });
    let last = list.len() - 1;
    &mut list[last]
}

/// One case: what is launched on which inputs.
#[derive(Clone)]
pub struct Case {
    pub(crate) label: String,
    pub(crate) params: Vec<u8>,
    pub(crate) inputs: Vec<(&'static str, Input)>,
    pub(crate) absent: Vec<&'static str>,
    pub(crate) alias: Vec<(&'static str, &'static str)>,
    pub(crate) constants: Vec<(u32, ConstantValue)>,
    pub(crate) math: Math,
    pub(crate) exact: bool,
    pub(crate) gpus_only: bool,
    pub(crate) launcher: Option<Launcher>,
}

impl Case {
    /// What is special about it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Where the elements of a binding come from; without this, floats are normal and bytes are random.
    pub fn input(&mut self, name: &'static str, input: Input) -> &mut Case {
        self.inputs.push((name, input));
        self
    }

    /// Leaves an optional binding out.
    pub fn without(&mut self, name: &'static str) -> &mut Case {
        self.absent.push(name);
        self
    }

    /// Uses the identical buffer for output `out` and input `input`.
    pub fn in_place(&mut self, out: &'static str, input: &'static str) -> &mut Case {
        self.alias.push((out, input));
        self
    }

    /// Specialises the kernel.
    pub fn constant(&mut self, slot: u32, value: ConstantValue) -> &mut Case {
        self.constants.push((slot, value));
        self
    }

    /// Uses the math mode `fast`.
    pub fn fast(&mut self) -> &mut Case {
        self.math = Math::Fast;
        self
    }

    /// Of a shape to measure: only on GPUs, because a CPU would take minutes.
    pub fn on_gpus(&mut self) -> &mut Case {
        self.gpus_only = true;
        self
    }

    /// Of a shape to measure: by what a typed launcher makes of it, which may be several kernels.
    pub(crate) fn launched_by(&mut self, launcher: Launcher) -> &mut Case {
        self.launcher = Some(launcher);
        self
    }

    /// The result is exactly representable whatever the order of sums: it must be equal.
    pub fn exact(&mut self) -> &mut Case {
        self.exact = true;
        self
    }
}

type Generator = Arc<dyn Fn(&mut fastrand::Rng, usize) -> Vec<u8> + Send + Sync>;

/// Where the elements of a binding come from.
#[derive(Clone)]
pub enum Input {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in `[low, high)`.
    Uniform(f64, f64),
    /// Integers in `low..=high`.
    Integers(i32, i32),
    /// These values, repeated.
    Values(Vec<f64>),
    /// These words, repeated.
    Words(Vec<u32>),
    /// Random bytes.
    Bytes,
    /// Makes that many bytes.
    Custom(Generator),
}

impl Input {
    /// The default for a dtype.
    pub(super) fn default_for(dtype: DType) -> Input {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Input::Normal(1.0),
            DType::U8 => Input::Bytes,
            _ => Input::Integers(0, 0),
        }
    }

    /// An input made by a function of the generator and the number of bytes.
    pub fn custom(make: impl Fn(&mut fastrand::Rng, usize) -> Vec<u8> + Send + Sync + 'static) -> Input {
        Input::Custom(Arc::new(make))
    }

    /// Bytes of `len` elements of `dtype`.
    pub(super) fn make(&self, rng: &mut fastrand::Rng, dtype: DType, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len * dtype.size());
        match self {
            Input::Custom(make) => return make(rng, len * dtype.size()),
            Input::Bytes => bytes.extend((0..len * dtype.size()).map(|_| rng.u8(..))),
            Input::Words(words) => (0..len).for_each(|i| push(&mut bytes, dtype, f64::from(words[i % words.len()]))),
            Input::Values(values) => (0..len).for_each(|i| push(&mut bytes, dtype, values[i % values.len()])),
            Input::Integers(low, high) => (0..len).for_each(|_| push(&mut bytes, dtype, f64::from(rng.i32(*low..=*high)))),
            Input::Uniform(low, high) => (0..len).for_each(|_| push(&mut bytes, dtype, low + (high - low) * rng.f64())),
            Input::Normal(sigma) => (0..len).for_each(|_| {
                // Box-Muller on (0, 1].
                let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
                push(&mut bytes, dtype, sigma * radius * (std::f64::consts::TAU * rng.f64()).cos());
            }),
        }
        bytes
    }
}

/// Appends a value rounded to `dtype`.
pub(super) fn push(bytes: &mut Vec<u8>, dtype: DType, value: f64) {
    match dtype {
        DType::F32 => bytes.extend_from_slice(&(value as f32).to_ne_bytes()),
        DType::F16 => bytes.extend_from_slice(&f16::from_f64(value).to_ne_bytes()),
        DType::BF16 => bytes.extend_from_slice(&bf16::from_f64(value).to_ne_bytes()),
        DType::U8 => bytes.push(value as u8),
        DType::I8 => bytes.push(value as i8 as u8),
        DType::U16 => bytes.extend_from_slice(&(value as u16).to_ne_bytes()),
        DType::U32 => bytes.extend_from_slice(&(value as u32).to_ne_bytes()),
        DType::I32 => bytes.extend_from_slice(&(value as i32).to_ne_bytes()),
        DType::I64 => bytes.extend_from_slice(&(value as i64).to_ne_bytes()),
        DType::U64 => bytes.extend_from_slice(&(value as u64).to_ne_bytes()),
    }
}

/// Element `i` of bytes that hold `dtype`, widened.
pub(super) fn get(bytes: &[u8], dtype: DType, i: usize) -> f64 {
    let size = dtype.size();
    let at = &bytes[i * size..(i + 1) * size];
    let word = |n: usize| at.iter().take(n).rev().fold(0u64, |w, &b| w << 8 | u64::from(b));
    match dtype {
        DType::F32 => f64::from(f32::from_bits(word(4) as u32)),
        DType::F16 => f16::from_bits(word(2) as u16).to_f64(),
        DType::BF16 => bf16::from_bits(word(2) as u16).to_f64(),
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => word(size) as f64,
        DType::I8 => f64::from(word(1) as i8),
        DType::I32 => f64::from(word(4) as i32),
        DType::I64 => word(8) as i64 as f64,
    }
}
