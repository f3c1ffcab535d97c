//! What a native kernel sees of a launch.

use std::cell::Cell;

use smallvec::SmallVec;

use super::host_range;
use crate::Result;
use crate::catalogue::Params;
use crate::commands::Launch;
use crate::dtype::Element;
use crate::registry::{ConstantValue, Constants, Math, Options};

/// A native kernel. It cannot fail: everything that can be wrong was rejected when the launch was recorded.
pub type CpuFn = fn(&CpuCall<'_>);

struct Arg {
    ptr: *mut u8,
    len: usize,
    write: bool,
    /// Outputs are handed out once, so that two exclusive slices of one buffer cannot exist.
    taken: Cell<bool>,
}

/// The arguments of one launch, checked: lengths cover the shapes of the catalogue entry, and operands overlap only where the entry
/// allows the identical buffer.
pub struct CpuCall<'a> {
    args: SmallVec<[Option<Arg>; 8]>,
    params: &'a [u8],
    step: &'a [u32],
    constants: &'a Constants,
    options: Options,
}

impl<'a> CpuCall<'a> {
    pub(super) fn new(launch: &'a Launch, constants: &'a Constants, options: Options) -> Result<CpuCall<'a>> {
        let mut args = SmallVec::new();
        for arg in &launch.args {
            args.push(match arg {
                Some(a) => Some(Arg { ptr: host_range(a)?, len: a.range().len(), write: a.writes(), taken: Cell::new(false) }),
                None => None,
            });
        }
        let step: &[u32] = match &launch.step {
            // SAFETY: the step buffer is live, aligned (u32 views are) and only read while the list runs.
            Some(a) => unsafe { std::slice::from_raw_parts(host_range(a)?.cast(), a.range().len() / 4) },
            None => &[],
        };
        Ok(CpuCall { args, params: &launch.params, step, constants, options })
    }

    /// The parameter block. It was recorded for this entry, so its size is right; a foreign type reads as zeros.
    pub fn params<P: Params>(&self) -> P {
        bytemuck::try_pod_read_unaligned(self.params).unwrap_or_else(|_| P::zeroed())
    }

    /// The step buffer, for [`StepU32::get`](crate::catalogue::StepU32::get).
    pub fn step(&self) -> &'a [u32] {
        self.step
    }

    /// Math mode of the launch.
    pub fn math(&self) -> Math {
        self.options.math
    }

    /// Value of a specialisation constant.
    pub fn constant(&self, slot: u32) -> Option<ConstantValue> {
        self.constants.get(slot)
    }

    /// Whether binding `i` was given.
    pub fn has(&self, i: usize) -> bool {
        matches!(self.args.get(i), Some(Some(_)))
    }

    fn arg<T: Element>(&self, i: usize) -> Option<(&Arg, *mut T, usize)> {
        let arg = self.args.get(i)?.as_ref()?;
        let ptr = arg.ptr.cast::<T>();
        // Views are aligned to their own element size; bytes of a file may not be aligned to more.
        (ptr.align_offset(align_of::<T>()) == 0).then_some((arg, ptr, arg.len / size_of::<T>()))
    }

    /// The elements of input `i`; empty if it was left out or is the identical buffer of an output (see [`CpuCall::in_place`]).
    pub fn input<T: Element>(&self, i: usize) -> &'a [T] {
        let Some((arg, ptr, len)) = self.arg::<T>(i) else { return &[] };
        if arg.write || self.aliased(arg) {
            return &[];
        }
        // SAFETY: live for the launch, aligned, and no argument that overlaps it is written.
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }

    fn aliased(&self, arg: &Arg) -> bool {
        self.args
            .iter()
            .flatten()
            .any(|o| o.write && !std::ptr::eq(o, arg) && o.ptr < arg.ptr.wrapping_add(arg.len) && arg.ptr < o.ptr.wrapping_add(o.len))
    }

    /// The elements of output `i`, once; empty if it was left out or has been handed out.
    #[allow(clippy::mut_from_ref)]
    pub fn output<T: Element>(&self, i: usize) -> &'a mut [T] {
        let Some((arg, ptr, len)) = self.arg::<T>(i) else { return &mut [] };
        if !arg.write || arg.taken.replace(true) {
            return &mut [];
        }
        // SAFETY: live for the launch, aligned, handed out once, and `input` gives no slice that overlaps a written argument. Two
        // written arguments never overlap: the encoder rejects it unless an entry lists the alias, and no entry lists two outputs.
        unsafe { std::slice::from_raw_parts_mut(ptr, len) }
    }

    /// Whether two bindings are the identical buffer.
    pub fn identical(&self, a: usize, b: usize) -> bool {
        matches!((self.args.get(a), self.args.get(b)), (Some(Some(a)), Some(Some(b))) if a.ptr == b.ptr)
    }

    /// Input `src` and output `dst`, where the entry allows them to be the identical buffer: the input is `None` then, and its
    /// elements are in the output.
    #[allow(clippy::type_complexity)]
    pub fn in_place<T: Element>(&self, src: usize, dst: usize) -> (Option<&'a [T]>, &'a mut [T]) {
        let input = if self.identical(src, dst) { None } else { Some(self.input(src)) };
        (input, self.output(dst))
    }
}
