//! The mask builder: each row is at most three runs.

use super::super::CpuCall;
use super::super::parallel::for_rows;
use super::super::vector::Vectored;
use crate::ops::attention::AttentionMaskParams;

pub(crate) fn mask<T: Vectored>(call: &CpuCall<'_>) {
    let p: AttentionMaskParams = call.params();
    let len = p.k_len as usize;
    let offset = u64::from(p.q_offset.get(call.step()));
    let (attended, blocked) = (T::narrow(0.0), T::narrow(f32::NEG_INFINITY));
    for_rows(call.output::<T>(0), len, len / 8, |i, row| {
        let q = offset + i as u64;
        let limit = |position: u64| usize::try_from(position).map_or(len, |p| p.min(len));
        let begin = if p.window == 0 { 0 } else { limit((q + 1).saturating_sub(u64::from(p.window))) };
        let end = if p.causal == 1 { limit(q + 1) } else { len };
        row.fill(blocked);
        row[begin.min(end)..end].fill(attended);
    });
}
