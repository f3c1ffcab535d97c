//! RMS normalisation on the CPU: one pass for the sum of squares, one to scale; rows in parallel.

use super::CpuCall;
use super::parallel::for_rows;
use crate::ops::norm::NormParams;

/// Sixteen partial sums: a fixed order, whatever the thread or vector width.
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += v * v;
        }
    }
    lanes.iter().sum::<f32>() + tail.iter().map(|v| v * v).sum::<f32>()
}

pub(crate) fn rms_norm_f32(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let weight = call.input::<f32>(1);
    let (x, out) = call.in_place::<f32>(0, 2);
    for_rows(out, dim, dim / 4, |r, row| {
        if let Some(x) = x {
            row.copy_from_slice(&x[r * dim..(r + 1) * dim]);
        }
        let scale = 1.0 / (sum_of_squares(row) / dim as f32 + p.eps).sqrt();
        for (v, w) in row.iter_mut().zip(weight) {
            *v = *v * scale * w;
        }
    });
}
