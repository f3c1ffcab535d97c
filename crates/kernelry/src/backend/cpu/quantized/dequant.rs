//! Weights of whole rows as floats.

use half::f16;

use super::format::{Blocks, Format, STEP, with_format};
use crate::backend::cpu::dense::gemm::SharedMut;
use crate::backend::cpu::parallel::for_ranges;
use crate::backend::cpu::simd::{Kernel, Level, Simd, dispatch};

/// Bytes of the largest [`STEP`] of a format: eight blocks of Q8_0.
const LARGEST_STEP: usize = 8 * 34;

/// Calls `each(first_value, pointer)` for each step of `bytes`, which are whole blocks; the last one is completed with zeros. Returns
/// nothing of what lies past the values.
macro_rules! steps {
    ($F:ident, $bytes:expr, $values:expr, |$at:ident, $p:ident| $body:expr) => {{
        let (bytes, values): (&[u8], usize) = ($bytes, $values);
        let mut tail = [0u8; LARGEST_STEP];
        let full = values / STEP;
        if !values.is_multiple_of(STEP) {
            let rest = &bytes[full * $F::STEP_BYTES..][..$F::FORMAT.row_bytes(values % STEP)];
            tail[..rest.len()].copy_from_slice(rest);
        }
        for step in 0..values.div_ceil(STEP) {
            let $at = step * STEP;
            let $p = if step < full { bytes[step * $F::STEP_BYTES..][..$F::STEP_BYTES].as_ptr() } else { tail.as_ptr() };
            $body
        }
    }};
}
pub(super) use steps;

/// Decodes [`STEP`] values: each is one product of scale and code, exact in f32, and for formats with a minimum one sum.
///
/// # Safety
/// A step of the format can be read at `p`, and 256 values written at `out`.
#[inline(always)]
pub(super) unsafe fn decode_step<S: Simd, F: Blocks>(s: S, p: *const u8, out: *mut f32) {
    let (mut codes, mut a, mut b) = ([0u8; STEP], [0.0f32; 8], [0.0f32; 8]);
    // SAFETY: the caller's; vectors tile the array.
    unsafe {
        let mut c = 0;
        while c < STEP / (4 * S::LANES) {
            let q = F::codes(s, p, c);
            codes.as_mut_ptr().add(4 * S::LANES * c).cast::<S::B>().write_unaligned(q);
            c += 1;
        }
        let (x, y) = F::scales(s, p);
        s.h_store(a.as_mut_ptr(), x);
        s.h_store(b.as_mut_ptr(), y);
        // With a product that is exact, `scale · code - scale · zero` has the value of `scale · (code - zero)`, fused or not.
        let zero = -F::zero::<S>() as f32;
        let mut g = 0;
        while g < STEP / F::GROUP {
            let scale = if F::GROUP == 16 && g >= 8 { b[g - 8] } else { a[g % 8] };
            let offset = if F::HAS_MIN { b[g % 8] } else { zero * scale };
            let (scale, offset) = (s.splat(scale), s.splat(offset));
            let mut i = g * F::GROUP;
            while i < (g + 1) * F::GROUP {
                let q = codes.as_ptr().add(i);
                let q = if F::SIGNED { s.widen_codes::<true>(q) } else { s.widen_codes::<false>(q) };
                s.store(out.add(i), s.fma(q, scale, offset));
                i += S::LANES;
            }
            g += 1;
        }
    }
}

/// Rounds a whole matrix `[n, k]` to f16: to nearest, ties to even.
///
/// # Panics
/// If a slice is shorter than the sizes say, or `k` is not a whole number of blocks. Launchers check both.
pub(crate) fn dequantize_f16(level: Level, format: Format, weights: &[u8], n: usize, k: usize, out: &mut [f16]) {
    assert!(k.is_multiple_of(format.block_len()), "k is a whole number of blocks");
    assert!(weights.len() >= n * format.row_bytes(k) && out.len() >= n * k, "slices hold what the sizes say");
    // Rows are packed blocks without padding: the matrix is one long row, and is cut into steps wherever that is convenient.
    let (values, shared) = (n * k, SharedMut::new(&mut out[..n * k]));
    with_format!(format, F => for_ranges(values.div_ceil(STEP), STEP / 8, |steps| {
        let (from, to) = (steps.start * STEP, (steps.end * STEP).min(values));
        let bytes = &weights[F::FORMAT.row_bytes(from)..];
        // SAFETY: ranges of steps do not overlap, and end within the output.
        let out = unsafe { shared.slice(from..to) };
        dispatch(level, Narrowed::<F> { bytes, out, format: std::marker::PhantomData });
    }));
}

struct Narrowed<'a, F> {
    bytes: &'a [u8],
    out: &'a mut [f16],
    format: std::marker::PhantomData<F>,
}

impl<F: Blocks> Kernel for Narrowed<'_, F> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut wide, mut narrow) = ([0.0f32; STEP], [0u16; STEP]);
        steps!(F, self.bytes, self.out.len(), |at, p| {
            // SAFETY: `p` is a whole step, and the arrays hold one.
            unsafe {
                decode_step::<S, F>(s, p, wide.as_mut_ptr());
                let mut i = 0;
                while i < STEP {
                    s.store_f16(narrow.as_mut_ptr().add(i), s.load(wide.as_ptr().add(i)));
                    i += S::LANES;
                }
            }
            let part = (self.out.len() - at).min(STEP);
            self.out[at..at + part].copy_from_slice(&bytemuck::cast_slice(&narrow)[..part]);
        });
    }
}
