//! Mixture of experts on the CPU: routers, gates and weighted sums. Tokens run in parallel; each has one order of sums, so that a prompt
//! and a decode step choose the same experts.

use super::CpuCall;
use super::activation::gelu_of;
use super::math::{exp, sigmoid};
use super::norm::{inverse_rms, scale, widen};
use super::parallel::{for_chunks, for_rows, for_rows_of};
use super::scratch::with_scratch;
use super::vector::{Isa, VectorKernel, Vectored, dispatch};
use crate::bf16;
use crate::ops::moe::{AccumulateParams, CombineParams, GateParams, GluParams, RouterParams};

/// Elements of a chunk.
const CHUNK: usize = 2048;

/// Calls `route(token, ids, weights)` for every token. Ids and weights are as many words of one size.
fn for_tokens(call: &CpuCall<'_>, at: [usize; 2], top_k: usize, nanos: usize, route: impl Fn(usize, &mut [u32], &mut [f32]) + Sync) {
    let weights: &mut [u32] = bytemuck::cast_slice_mut(call.output::<f32>(at[1]));
    for_rows_of([call.output::<u32>(at[0]), weights], top_k, nanos, |t, [ids, weights]| route(t, ids, bytemuck::cast_slice_mut(weights)));
}

/// A row that cannot be ranked: ids that gathers can follow, weights that show what happened.
fn poison(ids: &mut [u32], weights: &mut [f32]) {
    ids.iter_mut().enumerate().for_each(|(i, id)| *id = i as u32);
    weights.fill(f32::NAN);
}

/// The largest element, unless one is NaN or +inf, or all are -inf.
fn largest(row: &[f32]) -> Option<f32> {
    let top = row.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    (top.is_finite() && !row.iter().any(|v| v.is_nan())).then_some(top)
}

/// Fills `ids` with the indices of the largest scores, descending, the lower index first among equals, and `taken` with those scores.
fn select(scores: &[f32], ids: &mut [u32], taken: &mut [f32]) {
    let mut count = 0;
    let k = ids.len();
    for (i, &score) in scores.iter().enumerate() {
        // Behind what is at least as large: it came before.
        let at = taken[..count].partition_point(|&t| t >= score);
        if at == k {
            continue;
        }
        count = (count + 1).min(k);
        ids[at..count].rotate_right(1);
        taken[at..count].rotate_right(1);
        (ids[at], taken[at]) = (i as u32, score);
    }
}

/// Softmax over all experts, in place.
fn softmax(row: &mut [f32], top: f32) {
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = exp(*v - top);
        sum += *v;
    }
    let scale = 1.0 / sum;
    row.iter_mut().for_each(|v| *v *= scale);
}

/// The softmax routers; `scales` has a factor for each expert, or nothing.
fn route(call: &CpuCall<'_>, scales: &[f32], out: [usize; 2]) {
    let p: RouterParams = call.params();
    let experts = p.n_experts as usize;
    let logits = call.input::<f32>(0);
    for_tokens(call, out, p.top_k as usize, 8 * experts, |t, ids, weights| {
        let row = &logits[t * experts..(t + 1) * experts];
        let Some(top) = largest(row) else { return poison(ids, weights) };
        with_scratch(experts, |probabilities| {
            probabilities.copy_from_slice(row);
            softmax(probabilities, top);
            select(probabilities, ids, weights);
        });
        let chosen: f32 = weights.iter().sum();
        for (w, &id) in weights.iter_mut().zip(&*ids) {
            *w = *w / chosen * scales.get(id as usize).copied().unwrap_or(1.0);
        }
    });
}

/// Bindings logits, ids, weights.
pub(crate) fn softmax_topk(call: &CpuCall<'_>) {
    route(call, &[], [1, 2]);
}

/// Bindings logits, per_expert_scale, ids, weights.
pub(crate) fn fused_routing(call: &CpuCall<'_>) {
    route(call, call.input(1), [2, 3]);
}

/// Bindings probs, order, scale, ids, weights.
pub(crate) fn gather_topk_weights(call: &CpuCall<'_>) {
    let p: RouterParams = call.params();
    let experts = p.n_experts as usize;
    let (probs, order, scales) = (call.input::<f32>(0), call.input::<u32>(1), call.input::<f32>(2));
    for_tokens(call, [3, 4], p.top_k as usize, 100, |t, ids, weights| {
        let (probs, order) = (&probs[t * experts..(t + 1) * experts], &order[t * experts..]);
        ids.copy_from_slice(&order[..ids.len()]);
        let mut sum = 0.0;
        for (w, &id) in weights.iter_mut().zip(&*ids) {
            // An id that is no expert spoils the sum, and so all weights.
            *w = probs.get(id as usize).copied().unwrap_or(f32::NAN);
            sum += *w;
        }
        let inverse = if sum > 0.0 || sum.is_nan() { 1.0 / sum } else { 0.0 };
        for (w, &id) in weights.iter_mut().zip(&*ids) {
            *w = *w * inverse * scales.get(id as usize).copied().unwrap_or(f32::NAN);
        }
    });
}

/// `Σ a · b` in sixteen lanes.
struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
    sum: &'a mut f32,
}

impl VectorKernel for Dot<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        let mut lanes = [0.0f32; 16];
        for (a, b) in self.a.chunks(16).zip(self.b.chunks(16)) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        *self.sum = lanes.iter().sum();
    }
}

/// Bindings x, router, norm_weight, scale, ids, weights.
pub(crate) fn gate(call: &CpuCall<'_>) {
    let p: GateParams = call.params();
    let (dim, experts) = (p.dim as usize, p.n_experts as usize);
    let (x, router) = (call.input::<bf16>(0), call.input::<f32>(1));
    let (norm_weight, scales) = (call.input::<f32>(2), call.input::<f32>(3));
    for_tokens(call, [4, 5], p.top_k as usize, dim * experts / 8, |t, ids, weights| {
        with_scratch(2 * dim + experts, |buffer| {
            let (wide, rest) = buffer.split_at_mut(dim);
            let (normed, logits) = rest.split_at_mut(dim);
            widen(&x[t * dim..(t + 1) * dim], wide);
            scale(wide, inverse_rms(wide, p.eps), norm_weight, normed);
            for (logit, row) in logits.iter_mut().zip(router.chunks_exact(dim)) {
                dispatch(Dot { a: normed, b: row, sum: logit });
            }
            let Some(top) = largest(logits) else { return poison(ids, weights) };
            select(logits, ids, weights);
            softmax(weights, top);
            weights.iter_mut().zip(&*ids).for_each(|(w, &id)| *w *= scales[id as usize]);
            let sum: f32 = weights.iter().sum();
            if p.renorm_after_scale == 1 {
                let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                weights.iter_mut().for_each(|w| *w *= inverse);
            }
        });
    });
}

/// `out = gelu(gate) · up`.
struct Gated<'a, T> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [T],
}

impl<T: Vectored> VectorKernel for Gated<'_, T> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        for ((o, &g), &u) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *o = T::narrow(gelu_of(g) * u);
        }
    }
}

/// Bindings gate_up, out: rows whose halves are gate and up.
pub(crate) fn gelu_glu<T: Vectored>(call: &CpuCall<'_>) {
    let p: GluParams = call.params();
    let ffn = p.ffn as usize;
    let gate_up = call.input::<T>(0);
    for_rows(call.output::<T>(1), ffn, ffn, |r, out| {
        with_scratch(2 * ffn, |wide| {
            widen(&gate_up[r * 2 * ffn..(r + 1) * 2 * ffn], wide);
            let (gate, up) = wide.split_at(ffn);
            dispatch(Gated { gate, up, out });
        });
    });
}

/// `to += x · w`, each product rounded.
struct MultiplyAdd<'a, T> {
    x: &'a [T],
    w: f32,
    to: &'a mut [f32],
}

impl<T: Vectored> VectorKernel for MultiplyAdd<'_, T> {
    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) {
        self.to.iter_mut().zip(self.x).for_each(|(t, x)| *t += x.widen() * self.w);
    }
}

/// `to = Σ_k weights_k · rows_k` in ascending `k`. No expert is skipped for a weight of zero: its NaN must show.
pub(super) fn weighted_sum<T: Vectored>(rows: &[T], weights: &[f32], to: &mut [f32]) {
    to.fill(0.0);
    for (x, &w) in rows.chunks_exact(to.len()).zip(weights) {
        dispatch(MultiplyAdd { x, w, to });
    }
}

/// Bindings y, weights, out.
pub(crate) fn combine<T: Vectored>(call: &CpuCall<'_>) {
    let p: CombineParams = call.params();
    let (dim, top_k) = (p.dim as usize, p.top_k as usize);
    let (y, weights) = (call.input::<T>(0), call.input::<f32>(1));
    for_rows(call.output::<f32>(2), dim, top_k * dim / 4, |t, out| {
        weighted_sum(&y[t * top_k * dim..], &weights[t * top_k..(t + 1) * top_k], out);
    });
}

/// Bindings weights, y, shared_logit, y_shared, residual, out; `out` may be `residual` or `y_shared`.
pub(crate) fn combine_shared(call: &CpuCall<'_>) {
    let p: CombineParams = call.params();
    let (dim, top_k) = (p.dim as usize, p.top_k as usize);
    let (weights, y, logits) = (call.input::<f32>(0), call.input::<f32>(1), call.input::<f32>(2));
    let [(shared_is_out, shared), (residual_is_out, residual)] = [3, 4].map(|i| (call.identical(i, 5), call.input::<f32>(i)));
    let has_residual = call.has(4);
    for_rows(call.output::<f32>(5), dim, (top_k + 2) * dim / 4, |t, out| {
        with_scratch(dim, |sum| {
            weighted_sum(&y[t * top_k * dim..], &weights[t * top_k..(t + 1) * top_k], sum);
            let row = t * dim..(t + 1) * dim;
            let x = if shared_is_out { &*out } else { &shared[row.clone()] };
            dispatch(MultiplyAdd { x, w: sigmoid(logits[t]), to: sum });
            if has_residual {
                let residual = if residual_is_out { &*out } else { &residual[row] };
                sum.iter_mut().zip(residual).for_each(|(s, r)| *s += r);
            }
            out.copy_from_slice(sum);
        });
    });
}

/// Binding out.
pub(crate) fn zero(call: &CpuCall<'_>) {
    call.output::<f32>(0).fill(0.0);
}

/// Bindings y, acc.
pub(crate) fn accumulate(call: &CpuCall<'_>) {
    let p: AccumulateParams = call.params();
    let y = call.input::<f32>(0);
    for_chunks(call.output::<f32>(1), CHUNK, 1, |start, acc| {
        dispatch(MultiplyAdd { x: &y[start..start + acc.len()], w: p.weight, to: acc });
    });
}
