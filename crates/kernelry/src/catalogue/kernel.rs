//! A catalogue entry and its builder.

use super::{Dims, Family, Instance, ParamLayout, Params, Shape, Text};
use crate::backend::cpu::CpuFn;
use crate::conformance::{CasesFn, ReferenceFn};
use crate::registry::{ConstantType, ConstantValue};
use crate::{DType, Error, Result};

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read only.
    Read,
    /// Every logical element is written, none is read.
    Write,
    /// Read and written, or written in part.
    ReadWrite,
}

impl Access {
    /// Whether the kernel may change the buffer.
    pub const fn writes(self) -> bool {
        !matches!(self, Access::Read)
    }
}

/// One buffer argument of a kernel.
#[derive(Clone, Debug)]
pub struct Binding {
    pub(crate) name: &'static str,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
    pub(crate) access: Access,
    pub(crate) optional: bool,
    pub(crate) aliases: Vec<&'static str>,
}

impl Binding {
    /// Name, unique in the kernel.
    pub fn name(&self) -> &'static str {
        self.name
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Shape in symbols: the fields of the parameters.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    /// How the kernel uses it.
    pub fn access(&self) -> Access {
        self.access
    }
    /// Whether it may be left out.
    pub fn optional(&self) -> bool {
        self.optional
    }
    /// Bindings that may be the identical buffer.
    pub fn aliases(&self) -> &[&'static str] {
        &self.aliases
    }
}

/// A compile-time constant that a kernel accepts.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConstantSpec {
    /// Slot, the number used in keys.
    pub slot: u32,
    /// Name.
    pub name: &'static str,
    /// Type of the value.
    pub ty: ConstantType,
    /// Value when it is not given; `None` means "use the run-time parameter".
    pub default: Option<ConstantValue>,
}

/// Work of one launch, the numerator of every roofline figure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes that must move through memory: each input read once, each output written once.
    pub bytes: f64,
    /// Arithmetic operations; a multiply-add counts as two.
    pub flops: f64,
}

/// Launch geometry on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Geometry {
    /// Thread groups in x, y, z.
    pub groups: [u32; 3],
    /// Threads of a group in x, y, z.
    pub threads: [u32; 3],
}

impl Geometry {
    /// `groups` one-dimensional groups of `threads`.
    pub const fn linear(groups: u32, threads: u32) -> Geometry {
        Geometry { groups: [groups, 1, 1], threads: [threads, 1, 1] }
    }

    /// One thread an element, four elements a thread where `n` allows it.
    pub const fn elements(n: u32) -> Geometry {
        Geometry::linear(n.div_ceil(1024), 256)
    }
}

type ParamCheck = Box<dyn Fn(&[u8]) -> Result<(), String> + Send + Sync>;
type ParamCost = Box<dyn Fn(&[u8]) -> f64 + Send + Sync>;
type ParamGeometry = Box<dyn Fn(&[u8]) -> Geometry + Send + Sync>;

/// A catalogue entry: everything that is known of one kernel.
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) summary: &'static str,
    pub(crate) layout: ParamLayout,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) constants: Vec<ConstantSpec>,
    pub(crate) class: &'static str,
    pub(crate) tolerance: &'static str,
    pub(crate) entry_point: bool,
    pub(crate) fast_math: bool,
    pub(crate) noop_if_zero: Option<&'static str>,
    pub(crate) zero_ok: Vec<&'static str>,
    pub(crate) checks: Vec<ParamCheck>,
    pub(crate) flops: Option<ParamCost>,
    pub(crate) bytes: Option<ParamCost>,
    pub(crate) geometry: Option<ParamGeometry>,
    pub(crate) scratch: Option<ParamCost>,
    pub(crate) cpu: Option<CpuFn>,
    pub(crate) text: Option<Instance>,
    pub(crate) reference: Option<ReferenceFn>,
    pub(crate) cases: Option<CasesFn>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("name", &self.name).field("family", &self.family).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Starts an entry.
    pub fn builder(name: impl Into<String>, family: Family, summary: &'static str) -> KernelBuilder {
        KernelBuilder {
            bindings: Vec::new(),
            kernel: Kernel {
                name: name.into(),
                family,
                summary,
                layout: super::NoParams::LAYOUT,
                bindings: Vec::new(),
                constants: Vec::new(),
                class: "",
                tolerance: "",
                entry_point: true,
                fast_math: false,
                noop_if_zero: None,
                zero_ok: Vec::new(),
                checks: Vec::new(),
                flops: None,
                bytes: None,
                geometry: None,
                scratch: None,
                cpu: None,
                text: None,
                reference: None,
                cases: None,
            },
        }
    }

    /// Name in the registry.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Family.
    pub fn family(&self) -> Family {
        self.family
    }
    /// Whether it goes beyond the names that every build of the library has promised from the start.
    pub fn is_extra(&self) -> bool {
        !super::is_core_name(&self.name)
    }
    /// One line of mathematics.
    pub fn summary(&self) -> &'static str {
        self.summary
    }
    /// Parameter struct.
    pub fn params(&self) -> &ParamLayout {
        &self.layout
    }
    /// Buffer arguments in order.
    pub fn bindings(&self) -> &[Binding] {
        &self.bindings
    }
    /// Compile-time constants.
    pub fn constants(&self) -> &[ConstantSpec] {
        &self.constants
    }
    /// Numerical class: which operands are rounded before they are used.
    pub fn class(&self) -> &'static str {
        self.class
    }
    /// Error bound against the exact result.
    pub fn tolerance(&self) -> &'static str {
        self.tolerance
    }
    /// False only for `placeholder`, whose text holds no function.
    pub fn has_entry_point(&self) -> bool {
        self.entry_point
    }
    /// Whether the math mode `fast` changes what this kernel computes (see [`Math`](crate::registry::Math)).
    pub fn has_fast_math(&self) -> bool {
        self.fast_math
    }
    /// Whether the conformance suite has a reference and cases for it.
    pub fn is_tested(&self) -> bool {
        self.reference.is_some() && self.cases.is_some()
    }
    /// The kernel text for GPUs as compilers get it after their prelude, if there is one.
    pub fn gpu_text(&self) -> Option<String> {
        self.text.as_ref().map(super::assemble)
    }
    /// Index of a binding by name.
    pub fn binding_index(&self, name: &str) -> Option<usize> {
        self.bindings.iter().position(|b| b.name == name)
    }

    /// GPU launch geometry for these parameters, if the entry declares one.
    pub fn geometry(&self, params: &[u8]) -> Option<Geometry> {
        if params.len() != self.layout.size {
            return None;
        }
        self.geometry.as_ref().map(|g| g(params))
    }

    /// Bytes of device memory of its own that a launch with these parameters works with where its text asks for them, as that for one kind of
    /// GPU may; they mean nothing before and after.
    pub(crate) fn scratch(&self, params: &[u8]) -> usize {
        // Sizes of operands that were checked: what has more bytes than a usize holds cannot be allocated either.
        self.scratch.as_ref().map_or(0, |scratch| scratch(params) as usize)
    }

    /// Work of a launch: bytes from the shapes of all mandatory bindings unless the entry says that less moves, operations from the
    /// entry.
    ///
    /// # Errors
    /// As [`Kernel::check_params`].
    pub fn cost(&self, params: &[u8]) -> Result<Cost> {
        self.check_params(params)?;
        let mut cost = Cost { bytes: 0.0, flops: self.flops.as_ref().map_or(0.0, |f| f(params)) };
        if let Some(bytes) = &self.bytes {
            cost.bytes = bytes(params);
            return Ok(cost);
        }
        for (i, b) in self.bindings.iter().enumerate().filter(|(_, b)| !b.optional) {
            let elements: f64 = self.dims(i, params)?.iter().map(|&d| d as f64).product();
            cost.bytes += elements * b.dtype.size() as f64;
        }
        Ok(cost)
    }

    /// Evaluates the shape of binding `index`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it overflows or is not defined for these parameters.
    pub fn dims(&self, index: usize, params: &[u8]) -> Result<Dims> {
        let Some(binding) = self.bindings.get(index) else {
            return Err(Error::invalid(&self.name, format!("binding {index}: expected one of {}", self.bindings.len())));
        };
        binding.shape.eval(&self.layout, params).ok_or_else(|| {
            Error::invalid(
                &self.name,
                format!("{}: shape [{}] overflows or is not defined for these parameters", binding.name, binding.shape.text()),
            )
        })
    }

    /// Checks the parameters alone: sizes not zero and at most `i32::MAX`, and the limits that the kernel declares.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the parameter.
    pub fn check_params(&self, params: &[u8]) -> Result<()> {
        if params.len() != self.layout.size {
            return Err(Error::invalid(&self.name, format!("parameters: got {} bytes, expected {}", params.len(), self.layout.size)));
        }
        for check in &self.checks {
            check(params).map_err(|what| Error::invalid(&self.name, what))?;
        }
        Ok(())
    }

    /// Whether these parameters ask for nothing (a count of items to move is zero), which succeeds without a launch.
    pub(crate) fn is_noop(&self, params: &[u8]) -> bool {
        self.noop_if_zero.and_then(|name| self.layout.symbol(params, self.layout.field(name)?)) == Some(0)
    }
}

/// A binding before its shape is compiled against the parameters.
struct Declared {
    name: &'static str,
    dtype: DType,
    shape: &'static str,
    access: Access,
    optional: bool,
    aliases: Vec<&'static str>,
}

/// Builds a [`Kernel`]; see the entries in `ops/` for how it reads.
pub struct KernelBuilder {
    kernel: Kernel,
    bindings: Vec<Declared>,
}

impl KernelBuilder {
    /// Declares the parameter struct.
    pub fn params<P: Params>(mut self) -> Self {
        self.kernel.layout = P::LAYOUT;
        self
    }

    /// A buffer that is read. `shape` has one expression a dimension, over the integer parameters.
    pub fn input(self, name: &'static str, dtype: DType, shape: &'static str) -> Self {
        self.binding(name, dtype, shape, Access::Read)
    }

    /// A buffer of which every logical element is written.
    pub fn output(self, name: &'static str, dtype: DType, shape: &'static str) -> Self {
        self.binding(name, dtype, shape, Access::Write)
    }

    /// A buffer that is read and written, or written in part, such as a KV cache.
    pub fn in_out(self, name: &'static str, dtype: DType, shape: &'static str) -> Self {
        self.binding(name, dtype, shape, Access::ReadWrite)
    }

    fn binding(mut self, name: &'static str, dtype: DType, shape: &'static str, access: Access) -> Self {
        self.bindings.push(Declared { name, dtype, shape, access, optional: false, aliases: Vec::new() });
        self
    }

    /// The binding declared last may be left out.
    pub fn optional(mut self) -> Self {
        if let Some(b) = self.bindings.last_mut() {
            b.optional = true;
        }
        self
    }

    /// The output declared last may be the identical buffer as one of `inputs` (same address and layout; partial overlap never).
    pub fn may_alias(mut self, inputs: &[&'static str]) -> Self {
        if let Some(b) = self.bindings.last_mut() {
            b.aliases = inputs.to_vec();
        }
        self
    }

    /// A compile-time constant.
    pub fn constant(mut self, slot: u32, name: &'static str, ty: ConstantType, default: Option<ConstantValue>) -> Self {
        self.kernel.constants.push(ConstantSpec { slot, name, ty, default });
        self
    }

    /// Numerical class and error bound, in words.
    pub fn class(mut self, class: &'static str, tolerance: &'static str) -> Self {
        self.kernel.class = class;
        self.kernel.tolerance = tolerance;
        self
    }

    /// A limit on the parameters; the message is `name: got X, expected Y`.
    pub fn check<P: Params>(mut self, check: impl Fn(&P) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.kernel.checks.push(Box::new(move |bytes| check(&bytemuck::pod_read_unaligned::<P>(bytes))));
        self
    }

    /// The parameter that counts items to move: zero of them is a successful no-op.
    pub fn noop_if_zero(mut self, param: &'static str) -> Self {
        self.kernel.noop_if_zero = Some(param);
        self
    }

    /// Bindings whose shape may evaluate to zero elements.
    pub fn zero_ok(mut self, bindings: &[&'static str]) -> Self {
        self.kernel.zero_ok = bindings.to_vec();
        self
    }

    /// Arithmetic operations of a launch.
    pub fn flops<P: Params>(mut self, flops: impl Fn(&P) -> f64 + Send + Sync + 'static) -> Self {
        self.kernel.flops = Some(Box::new(move |bytes| flops(&bytemuck::pod_read_unaligned::<P>(bytes))));
        self
    }

    /// Bytes that a launch moves, where that is not the size of its bindings: rows of a table, slots of a cache.
    pub fn bytes<P: Params>(mut self, bytes: impl Fn(&P) -> f64 + Send + Sync + 'static) -> Self {
        self.kernel.bytes = Some(Box::new(move |params| bytes(&bytemuck::pod_read_unaligned::<P>(params))));
        self
    }

    /// GPU launch geometry.
    pub fn geometry<P: Params>(mut self, geometry: impl Fn(&P) -> Geometry + Send + Sync + 'static) -> Self {
        self.kernel.geometry = Some(Box::new(move |bytes| geometry(&bytemuck::pod_read_unaligned::<P>(bytes))));
        self
    }

    /// Bytes of scratch memory for a text that asks for them (`KN_PREPARED`), zero where it does without.
    pub(crate) fn scratch_bytes<P: Params>(mut self, bytes: impl Fn(&P) -> f64 + Send + Sync + 'static) -> Self {
        self.kernel.scratch = Some(Box::new(move |params| bytes(&bytemuck::pod_read_unaligned::<P>(params))));
        self
    }

    /// The math mode `fast` has a meaning for this kernel.
    pub fn fast_math(mut self) -> Self {
        self.kernel.fast_math = true;
        self
    }

    /// The text of this name holds no function (`placeholder`).
    pub(crate) fn without_entry_point(mut self) -> Self {
        self.kernel.entry_point = false;
        self
    }

    /// The native CPU implementation.
    pub(crate) fn cpu(mut self, run: CpuFn) -> Self {
        self.kernel.cpu = Some(run);
        self
    }

    /// The kernel text for GPUs: a file, and the lines after it that instantiate this name (none where the file does it itself).
    pub(crate) fn text(mut self, text: Text, lines: &'static str) -> Self {
        self.kernel.text = Some(Instance { text, lines });
        self
    }

    /// The slow f64 reference and the cases of the conformance suite.
    pub(crate) fn tested(mut self, reference: ReferenceFn, cases: CasesFn) -> Self {
        self.kernel.reference = Some(reference);
        self.kernel.cases = Some(cases);
        self
    }

    /// Finishes the entry.
    ///
    /// # Panics
    /// If a shape expression does not parse: that is a mistake in the catalogue, found by building it once, which every test does.
    #[allow(clippy::panic)]
    pub fn build(self) -> Kernel {
        let mut kernel = self.kernel;
        for Declared { name, dtype, shape, access, optional, aliases } in self.bindings {
            let shape = match Shape::parse(shape, &kernel.layout) {
                Ok(shape) => shape,
                Err(problem) => panic!("catalogue entry {}: binding {name}: {problem}", kernel.name),
            };
            kernel.bindings.push(Binding { name, dtype, shape, access, optional, aliases });
        }
        kernel
    }
}
