//! Running cases on a device.

use super::case::{Case, Cases, Input, get};
use super::compare::{Tolerance, first_mismatch};
use crate::catalogue::{Access, Binding, Kernel, Params};
use crate::registry::{Constants, Math, Options};
use crate::{Buffer, Context, DType, Error, Result};

/// Computes what a kernel must give.
pub type ReferenceFn = fn(&mut Reference<'_>);

enum Expected {
    Values(Vec<(f64, Tolerance)>),
    Bits(Vec<u8>),
}

/// What a reference sees: parameters and inputs; and where it puts what it expects.
pub struct Reference<'a> {
    kernel: &'a Kernel,
    params: &'a [u8],
    constants: &'a Constants,
    math: Math,
    data: &'a [Option<Vec<u8>>],
    expected: Vec<Option<Expected>>,
}

impl Reference<'_> {
    /// Name of the kernel, where one reference serves several.
    pub fn kernel(&self) -> &str {
        self.kernel.name()
    }
    /// The parameters.
    pub fn params<P: Params>(&self) -> P {
        bytemuck::pod_read_unaligned(self.params)
    }
    /// The constants.
    pub fn constants(&self) -> &Constants {
        self.constants
    }
    /// The math mode.
    pub fn math(&self) -> Math {
        self.math
    }

    /// # Panics
    /// If the entry has no such binding: a mistake in the reference.
    #[allow(clippy::panic)]
    fn index(&self, name: &str) -> usize {
        self.kernel.binding_index(name).unwrap_or_else(|| panic!("{}: no binding {name}", self.kernel.name()))
    }

    /// Whether an optional binding was given.
    pub fn has(&self, name: &str) -> bool {
        self.data[self.index(name)].is_some()
    }

    /// The raw bytes of a binding before the launch; empty if it was left out.
    pub fn bytes(&self, name: &str) -> &[u8] {
        self.data[self.index(name)].as_deref().unwrap_or(&[])
    }

    /// The elements of a binding before the launch, widened.
    pub fn f64s(&self, name: &str) -> Vec<f64> {
        let dtype = self.kernel.bindings()[self.index(name)].dtype();
        let bytes = self.bytes(name);
        (0..bytes.len() / dtype.size()).map(|i| get(bytes, dtype, i)).collect()
    }

    /// Unsigned elements of a binding.
    pub fn u32s(&self, name: &str) -> Vec<u32> {
        self.f64s(name).into_iter().map(|v| v as u32).collect()
    }

    /// Dtype of a binding.
    pub fn dtype(&self, name: &str) -> DType {
        self.kernel.bindings()[self.index(name)].dtype()
    }

    /// Expects these values, all with one tolerance.
    pub fn expect(&mut self, name: &str, values: impl IntoIterator<Item = f64>, tolerance: Tolerance) {
        self.expect_each(name, values.into_iter().map(|v| (v, tolerance)).collect());
    }

    /// Expects these values, each with its own tolerance.
    pub fn expect_each(&mut self, name: &str, values: Vec<(f64, Tolerance)>) {
        let i = self.index(name);
        self.expected[i] = Some(Expected::Values(values));
    }

    /// Expects these bits.
    pub fn expect_bits(&mut self, name: &str, bits: Vec<u8>) {
        let i = self.index(name);
        self.expected[i] = Some(Expected::Bits(bits));
    }
}

/// What came of a case.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Outcome {
    /// Kernel name.
    pub kernel: String,
    /// Number of the case, for `--case`.
    pub case: usize,
    /// What is special about it.
    pub label: String,
    /// Seed of its inputs.
    pub seed: u64,
    /// What was wrong, if something was.
    pub failure: Option<String>,
}

impl Outcome {
    /// The command that runs this case alone.
    pub fn repro(&self, device: &str) -> String {
        format!("kernelry check {} --device {device} --case {} --seed {}", self.kernel, self.case, self.seed)
    }
}

/// Runs every case of a kernel, or one of them. A kernel without cases gives an empty list.
pub fn run_kernel(ctx: &Context, kernel: &'static Kernel, seed: u64, intensity: u32, only: Option<usize>) -> Vec<Outcome> {
    let Some(cases) = kernel.cases else { return Vec::new() };
    let mut list = Cases::new(kernel, intensity);
    cases(&mut list);
    let numbered = list.list.iter().enumerate().filter(|(i, _)| only.is_none_or(|o| o == *i));
    numbered
        .map(|(i, case)| Outcome {
            kernel: kernel.name().to_owned(),
            case: i,
            label: case.label().to_owned(),
            seed,
            failure: run_case(ctx, kernel, case, seed).err(),
        })
        .collect()
}

/// Labels of a kernel's cases, in order.
pub fn case_labels(kernel: &'static Kernel, intensity: u32) -> Vec<String> {
    let Some(cases) = kernel.cases else { return Vec::new() };
    let mut list = Cases::new(kernel, intensity);
    cases(&mut list);
    list.list.into_iter().map(|case| case.label).collect()
}

/// Where buffers lie inside larger allocations, whose remainder no launch may touch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// 64 elements after the start of an allocation.
    Aligned,
    /// One element further, or the two bytes that blocks are aligned to: a row inside a tensor.
    Odd,
}

impl Place {
    /// Elements on either side of a buffer.
    fn guard(self, dtype: DType) -> usize {
        match self {
            Place::Aligned => 64,
            Place::Odd => 64 + 2usize.div_ceil(dtype.size()),
        }
    }
}

/// A buffer inside a larger allocation.
pub(super) struct Guarded {
    whole: Buffer,
    pub(super) view: Buffer,
    /// Bytes on either side.
    edge: usize,
    fill: u8,
}

impl Guarded {
    /// Guards of inputs are NaN, so that reading them shows; guards of outputs are a pattern, so that writing them does.
    pub(super) fn new(ctx: &Context, binding: &Binding, dims: &[usize], data: Option<&[u8]>, place: Place) -> Result<Guarded> {
        let len: usize = dims.iter().product();
        let (size, guard) = (binding.dtype().size(), place.guard(binding.dtype()));
        let fill = if binding.access() == Access::Read { 0xFF } else { 0xA5 };
        let mut bytes = vec![fill; (len + 2 * guard) * size];
        // An output starts as NaN: an element that nothing writes is seen.
        match data {
            Some(data) => bytes[guard * size..(guard + len) * size].copy_from_slice(data),
            None => bytes[guard * size..(guard + len) * size].fill(0xFF),
        }
        let whole = Buffer::from_bytes(ctx.device(), &bytes, binding.dtype(), &[len + 2 * guard])?;
        let view = whole.slice(guard * size, len)?.reshape(dims)?;
        Ok(Guarded { whole, view, edge: guard * size, fill })
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.view.byte_len()];
        self.view.read_bytes(&mut out)?;
        Ok(out)
    }

    fn guards_intact(&self) -> Result<bool> {
        let mut all = vec![0; self.whole.byte_len()];
        self.whole.read_bytes(&mut all)?;
        Ok(all[..self.edge].iter().chain(&all[all.len() - self.edge..]).all(|&b| b == self.fill))
    }
}

/// Runs one case: launches the kernel twice on the same inputs, compares the first result with the reference and the second with the
/// first, and looks at guards and inputs. What runs in place must give the bits of a launch on buffers of its own. A last launch has its
/// buffers where vector loads are not allowed, and is compared with the reference.
///
/// # Errors
/// What was wrong, in words.
pub fn run_case(ctx: &Context, kernel: &'static Kernel, case: &Case, seed: u64) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let reference = kernel.reference.ok_or("the kernel has no reference")?;
    let constants = Constants::new(kernel.name(), case.constants.iter().copied()).map_err(text)?;
    let data = make_inputs(kernel, case, seed).map_err(text)?;
    let mut oracle = Reference {
        kernel,
        params: &case.params,
        constants: &constants,
        math: case.math,
        data: &data,
        expected: kernel.bindings().iter().map(|_| None).collect(),
    };
    reference(&mut oracle);
    let expected = oracle.expected;
    let first = launch(ctx, kernel, case, &constants, &data, Place::Aligned)?;
    compare(kernel, case, &first, &expected)?;
    if launch(ctx, kernel, case, &constants, &data, Place::Aligned)? != first {
        return Err("a second launch on the same inputs gave other bits".into());
    }
    if !case.alias.is_empty() {
        let apart = Case { alias: Vec::new(), ..case.clone() };
        if launch(ctx, kernel, &apart, &constants, &data, Place::Aligned)? != first {
            return Err("in place gave other bits than out of place".into());
        }
    }
    let odd = |problem| format!("at odd addresses: {problem}");
    let moved = launch(ctx, kernel, case, &constants, &data, Place::Odd).map_err(odd)?;
    compare(kernel, case, &moved, &expected).map_err(odd)
}

/// Compares what a launch wrote with what the reference expects.
fn compare(kernel: &Kernel, case: &Case, results: &[Option<Vec<u8>>], expected: &[Option<Expected>]) -> Result<(), String> {
    for (i, binding) in kernel.bindings().iter().enumerate() {
        let Some(got) = &results[i] else { continue };
        match &expected[i] {
            Some(Expected::Bits(bits)) if got != bits => {
                let at = got.iter().zip(bits).position(|(a, b)| a != b).unwrap_or(got.len().min(bits.len()));
                return Err(format!("{}: byte {at} of {}: got {:?}, expected {:?}", binding.name(), bits.len(), got.get(at), bits.get(at)));
            }
            Some(Expected::Values(values)) => {
                if values.len() * binding.dtype().size() != got.len() {
                    return Err(format!("{}: the reference gives {} elements for {} bytes", binding.name(), values.len(), got.len()));
                }
                let exact: Vec<_>;
                let values = if case.exact {
                    exact = values.iter().map(|&(v, _)| (v, Tolerance::EXACT)).collect();
                    &exact
                } else {
                    values
                };
                if let Some(problem) = first_mismatch(binding.dtype(), got, values) {
                    return Err(format!("{}: {problem}", binding.name()));
                }
            }
            Some(Expected::Bits(_)) => {}
            None if binding.access() == Access::Read => {}
            None => return Err(format!("{}: the reference expects nothing for this output", binding.name())),
        }
    }
    Ok(())
}

fn make_inputs(kernel: &Kernel, case: &Case, seed: u64) -> Result<Vec<Option<Vec<u8>>>> {
    make_periodic_inputs(kernel, case, seed, usize::MAX)
}

/// As [`make_inputs`], but random elements repeat after `period` of them: for measuring, where making them would take longer than the kernel.
pub(crate) fn make_periodic_inputs(kernel: &Kernel, case: &Case, seed: u64, period: usize) -> Result<Vec<Option<Vec<u8>>>> {
    let mut data = Vec::new();
    for (i, binding) in kernel.bindings().iter().enumerate() {
        if case.absent.contains(&binding.name()) {
            data.push(None);
            continue;
        }
        let len: usize = dims_of(kernel, i, &case.params)?.iter().product();
        // Each binding has its own stream, so that adding one to an entry leaves the others as they were.
        let mut rng = fastrand::Rng::with_seed(seed ^ (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let input = case.inputs.iter().rev().find(|(name, _)| *name == binding.name()).map(|(_, input)| input.clone());
        let input = input.unwrap_or_else(|| Input::default_for(binding.dtype()));
        // What a function makes may have a structure.
        let distinct = if matches!(input, Input::Custom(_)) { len } else { len.min(period) };
        let mut bytes = input.make(&mut rng, binding.dtype(), distinct);
        let all = len * binding.dtype().size();
        while bytes.len() < all {
            bytes.extend_from_within(..bytes.len().min(all - bytes.len()));
        }
        data.push(Some(bytes));
    }
    Ok(data)
}

pub(crate) fn dims_of(kernel: &Kernel, binding: usize, params: &[u8]) -> Result<Vec<usize>> {
    Ok(kernel.dims(binding, params)?.iter().map(|&d| d as usize).collect())
}

/// Launches on fresh buffers. Gives the contents of every binding that may be written.
fn launch(
    ctx: &Context,
    kernel: &'static Kernel,
    case: &Case,
    constants: &Constants,
    data: &[Option<Vec<u8>>],
    place: Place,
) -> Result<Vec<Option<Vec<u8>>>, String> {
    let text = |e: Error| e.to_string();
    let mut buffers: Vec<Option<Guarded>> = Vec::new();
    for (i, binding) in kernel.bindings().iter().enumerate() {
        let aliased = case.alias.iter().any(|(out, _)| *out == binding.name());
        let Some(bytes) = data[i].as_ref().filter(|_| !aliased) else {
            buffers.push(None);
            continue;
        };
        let shown = (binding.access() != Access::Write).then_some(&bytes[..]);
        // The input of an in-place case is written: its guards must show that.
        let dims = dims_of(kernel, i, &case.params).map_err(text)?;
        buffers.push(Some(Guarded::new(ctx, binding, &dims, shown, place).map_err(text)?));
    }
    let view = |i: usize| -> Option<&Buffer> {
        let name = kernel.bindings()[i].name();
        let source = case.alias.iter().find(|(out, _)| *out == name).and_then(|(_, input)| kernel.binding_index(input)).unwrap_or(i);
        buffers[source].as_ref().map(|g| &g.view)
    };
    let args: Vec<Option<&Buffer>> = (0..buffers.len()).map(view).collect();
    let pipeline = ctx.registry().get_with(kernel.name(), ctx.device(), constants, Options::with_math(case.math)).map_err(text)?;
    let mut encoder = ctx.encoder();
    encoder.launch_pipeline(&pipeline, &args, &case.params).map_err(text)?;
    encoder.run().map_err(text)?;
    let mut results = Vec::new();
    for (i, binding) in kernel.bindings().iter().enumerate() {
        if let Some(guarded) = &buffers[i] {
            if !guarded.guards_intact().map_err(text)? {
                return Err(format!("{}: the guard region was written", binding.name()));
            }
            let in_place = case.alias.iter().any(|(_, input)| *input == binding.name());
            if binding.access() == Access::Read && !in_place && Some(&guarded.bytes().map_err(text)?) != data[i].as_ref() {
                return Err(format!("{}: an input was written", binding.name()));
            }
        }
        results.push(match args[i] {
            Some(buffer) if binding.access() != Access::Read => {
                let mut out = vec![0; buffer.byte_len()];
                buffer.read_bytes(&mut out).map_err(text)?;
                Some(out)
            }
            _ => None,
        });
    }
    Ok(results)
}
