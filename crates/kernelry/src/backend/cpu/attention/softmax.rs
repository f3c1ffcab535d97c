//! Scale, mask and softmax of rows, for attention that multiplies matrices.

use half::bf16;

use super::super::CpuCall;
use super::super::parallel::for_rows;
use super::super::vector::{Isa, VectorKernel, Vectored, dispatch};
use super::FLOOR;
use crate::ops::attention::ScaleMaskSoftmaxParams;

pub(crate) fn scale_mask_softmax(call: &CpuCall<'_>) {
    let p: ScaleMaskSoftmaxParams = call.params();
    let (cols, seq_len) = (p.cols as usize, p.seq_len as usize);
    let mask = call.input::<bf16>(1);
    let (input, out) = call.in_place::<f32>(0, 2);
    for_rows(out, cols, cols, |r, row| {
        if let Some(input) = input {
            row.copy_from_slice(&input[r * cols..(r + 1) * cols]);
        }
        let q = r % seq_len;
        dispatch(MaskedRow { row, mask: &mask[q * cols..(q + 1) * cols], scale: p.scale });
    });
}

struct MaskedRow<'a> {
    row: &'a mut [f32],
    mask: &'a [bf16],
    scale: f32,
}

impl VectorKernel for MaskedRow<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (row, mask) = (self.row, self.mask);
        let n = row.len().min(mask.len());
        let full = n / I::LANES * I::LANES;
        let (ptr, mask_ptr) = (row.as_mut_ptr(), mask.as_ptr());
        let scale = isa.splat(self.scale);
        let mut top = isa.splat(FLOOR);
        let mut i = 0;
        while i < full {
            // SAFETY: `i + LANES ≤ full`, which both rows have.
            unsafe {
                let x = isa.fma(isa.load(ptr.add(i)), scale, isa.load_bf16(mask_ptr.add(i).cast()));
                isa.store(ptr.add(i), x);
                top = isa.max(top, x);
            }
            i += I::LANES;
        }
        let mut m = isa.max_lane(top);
        for (x, mask) in row[full..n].iter_mut().zip(&mask[full..n]) {
            *x = *x * self.scale + mask.widen();
            m = m.max(*x);
        }
        // The floor keeps a row without any attended key from `-inf - -inf`.
        let m = m.max(FLOOR);
        let shift = isa.splat(m);
        let mut sum = isa.splat(0.0);
        let ptr = row.as_mut_ptr();
        let mut i = 0;
        while i < full {
            // SAFETY: as above.
            unsafe {
                let e = isa.exp(isa.sub(isa.load(ptr.add(i)), shift));
                isa.store(ptr.add(i), e);
                sum = isa.add(sum, e);
            }
            i += I::LANES;
        }
        let mut sum = isa.sum(sum);
        for x in &mut row[full..n] {
            *x = (*x - m).exp();
            sum += *x;
        }
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        for x in &mut row[..n] {
            *x *= inverse;
        }
    }
}
