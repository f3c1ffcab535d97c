//! Norms with several results or several steps. Each step gives the bits of the kernel that does it alone.

use super::{Scale, inverse_rms, row_cost, row_of, rows, scale, scale_add, sum_of_squares, unless_same, widen};
use crate::backend::cpu::CpuCall;
use crate::backend::cpu::moe::weighted_sum;
use crate::backend::cpu::parallel::{for_rows, for_rows_of};
use crate::backend::cpu::scratch::with_scratch;
use crate::backend::cpu::vector::{Vectored, dispatch};
use crate::bf16;
use crate::ops::norm::{
    ExpertNormParams, ExpertScaledNormParams, L2NormParams, L2NormScaleParams, NormParams, PermutedNormParams, ScaledNormParams,
};

/// Row of `[seq_len, n_heads]` that stands at `row` of `[n_heads, seq_len]`.
pub(in crate::backend::cpu) const fn row_before_permute(row: usize, seq_len: usize, n_heads: usize) -> usize {
    (row % seq_len) * n_heads + row / seq_len
}

/// Rounds rows to bf16; `permuted` has the sizes of `[seq_len, n_heads]` rows that go to `[n_heads, seq_len]`.
pub(in crate::backend::cpu) fn round_rows(from: &[f32], to: &mut [bf16], dim: usize, permuted: Option<(usize, usize)>) {
    for_rows(to, dim, row_cost(dim), |row, to| {
        let from_row = permuted.map_or(row, |(seq_len, n_heads)| row_before_permute(row, seq_len, n_heads));
        to.iter_mut().zip(&from[from_row * dim..]).for_each(|(t, v)| *t = bf16::from_f32(*v));
    });
}

/// Bindings x, out, out_bf16.
pub(crate) fn rms_norm_no_scale_dual(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    no_scale_and_copy(call, p.dim as usize, p.eps, None);
}

/// Bindings x, out, out_bf16.
pub(crate) fn rms_norm_no_scale_dual_perm(call: &CpuCall<'_>) {
    let p: PermutedNormParams = call.params();
    no_scale_and_copy(call, p.dim as usize, p.eps, Some((p.seq_len as usize, p.n_heads as usize)));
}

fn no_scale_and_copy(call: &CpuCall<'_>, dim: usize, eps: f32, permuted: Option<(usize, usize)>) {
    let (x, out) = call.in_place::<f32>(0, 1);
    for_rows(out, dim, row_cost(dim), |r, row| {
        with_scratch(dim, |buffer| {
            buffer.copy_from_slice(row_of(x, r, dim, row));
            scale::<f32, f32>(buffer, inverse_rms(buffer, eps), &[], row);
        });
    });
    round_rows(out, call.output::<bf16>(2), dim, permuted);
}

/// `out_j = x · r · weight_j` with one root.
fn scale_by_each<const N: usize>(x: &[f32], eps: f32, weights: [&[f32]; N], outs: [&mut [f32]; N]) {
    let r = inverse_rms(x, eps);
    outs.into_iter().zip(weights).for_each(|(out, weight)| scale(x, r, weight, out));
}

/// Bindings x, weight_a, weight_b, weight_c, out_a, out_b, out_c.
pub(crate) fn rms_norm_triple(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let x = call.input::<f32>(0);
    let weights = [1, 2, 3].map(|i| call.input::<f32>(i));
    for_rows_of([4, 5, 6].map(|i| call.output::<f32>(i)), dim, 3 * row_cost(dim), |r, outs| {
        scale_by_each(&x[r * dim..(r + 1) * dim], p.eps, weights, outs);
    });
}

/// Bindings x, out.
pub(crate) fn l2_norm<T: Vectored>(call: &CpuCall<'_>) {
    let p: L2NormParams = call.params();
    rows::<T>(call, 1, p.dim as usize, |x, out| scale::<T, f32>(x, 1.0 / (sum_of_squares(x) + p.eps).sqrt(), &[], out));
}

/// Bindings x, out. The scale is a product of its own, after the norm was rounded.
pub(crate) fn l2_norm_scale(call: &CpuCall<'_>) {
    let p: L2NormScaleParams = call.params();
    rows::<f32>(call, 1, p.dim as usize, |x, out| {
        let r = 1.0 / (sum_of_squares(x) + p.eps).sqrt();
        dispatch(Scale { x, r, weight: &[] as &[f32], other: x, out, last: |v, _| v * p.scale });
    });
}

/// `out *= s`, with one element of `s` for all or one for each.
fn multiply(out: &mut [f32], s: &[f32]) {
    match s {
        [s] => out.iter_mut().for_each(|v| *v *= s),
        _ => out.iter_mut().zip(s).for_each(|(v, s)| *v *= s),
    }
}

/// Bindings residual, x, weight, out; `out` may be `residual` or `x`.
pub(crate) fn norm_add<T: Vectored>(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    norm_add_to::<T>(call, p.dim as usize, p.eps, call.input(2), 3, |_| ());
}

/// Bindings residual, x, out.
pub(crate) fn norm_add_no_weight<T: Vectored>(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    norm_add_to::<T>(call, p.dim as usize, p.eps, &[], 2, |_| ());
}

/// Bindings residual, x, weight, s, out.
pub(crate) fn norm_add_scalar(call: &CpuCall<'_>) {
    let p: ScaledNormParams = call.params();
    let s = call.input::<f32>(3);
    norm_add_to::<f32>(call, p.dim as usize, p.eps, call.input(2), 4, |row| multiply(row, s));
}

/// `out = residual + rms(x) · weight`, then `last`.
fn norm_add_to<T: Vectored>(call: &CpuCall<'_>, dim: usize, eps: f32, weight: &[T], out: usize, last: impl Fn(&mut [T]) + Sync) {
    let (residual, x) = (unless_same::<T>(call, 0, out), unless_same::<T>(call, 1, out));
    for_rows(call.output::<T>(out), dim, row_cost(dim), |r, row| {
        with_scratch(2 * dim, |buffer| {
            let (normed, added) = buffer.split_at_mut(dim);
            widen(row_of(x, r, dim, row), normed);
            widen(row_of(residual, r, dim, row), added);
            scale_add(normed, inverse_rms(normed, eps), weight, added, row);
            last(row);
        });
    });
}

/// Bindings residual, x, weight, s, out; `out` may be `residual` or `x`.
pub(crate) fn residual_norm_scalar(call: &CpuCall<'_>) {
    let p: ScaledNormParams = call.params();
    let dim = p.dim as usize;
    let (weight, s) = (call.input::<f32>(2), call.input::<f32>(3));
    let (residual, x) = (unless_same::<f32>(call, 0, 4), unless_same::<f32>(call, 1, 4));
    for_rows(call.output::<f32>(4), dim, row_cost(dim), |r, out| {
        with_scratch(dim, |u| {
            for ((u, a), b) in u.iter_mut().zip(row_of(residual, r, dim, out)).zip(row_of(x, r, dim, out)) {
                *u = a + b;
            }
            scale(u, inverse_rms(u, p.eps), weight, out);
            multiply(out, s);
        });
    });
}

/// Bindings hidden, attn_out, weight_post, weight_a, weight_b, weight_c, residual_out, out_a, out_b, out_c; `residual_out` may be
/// `hidden`.
pub(crate) fn post_attn_triple(call: &CpuCall<'_>) {
    let p: NormParams = call.params();
    let dim = p.dim as usize;
    let (hidden, attn_out, post) = (unless_same::<f32>(call, 0, 6), call.input::<f32>(1), call.input::<f32>(2));
    let weights = [3, 4, 5].map(|i| call.input::<f32>(i));
    for_rows_of([6, 7, 8, 9].map(|i| call.output::<f32>(i)), dim, 4 * row_cost(dim), |r, [sum, a, b, c]| {
        let branch = &attn_out[r * dim..(r + 1) * dim];
        with_scratch(dim, |added| {
            added.copy_from_slice(row_of(hidden, r, dim, sum));
            scale_add(branch, inverse_rms(branch, p.eps), post, added, sum);
        });
        scale_by_each(sum, p.eps, weights, [a, b, c]);
    });
}

/// Bindings base, e, residual, weight_e, weight, s, mlp_down, out.
pub(crate) fn post_ff_end_layer(call: &CpuCall<'_>) {
    let p: ScaledNormParams = call.params();
    let dim = p.dim as usize;
    let e = unless_same::<f32>(call, 1, 6);
    end_layer(call, dim, p.eps, [0, 2, 3, 4, 5, 6, 7], 0, |r, down, row| row.copy_from_slice(row_of(e, r, dim, down)));
}

/// Bindings experts, weights, base, residual, weight_e, weight, s, mlp_down, out.
pub(crate) fn expert_sum_end_layer(call: &CpuCall<'_>) {
    let p: ExpertScaledNormParams = call.params();
    let (dim, top_k) = (p.dim as usize, p.top_k as usize);
    let experts = Experts::of(call, dim, top_k);
    end_layer(call, dim, p.eps, [2, 3, 4, 5, 6, 7, 8], top_k, |r, _, row| experts.sum(r, row));
}

/// `c = base + rms(e) · weight_e` to `mlp_down`, then `out = (residual + rms(c) · weight) · s`. `e(row, what mlp_down holds, to)`
/// gives `e`; `at` has the bindings base, residual, weight_e, weight, s, mlp_down and out.
fn end_layer(call: &CpuCall<'_>, dim: usize, eps: f32, at: [usize; 7], work: usize, e: impl Fn(usize, &[f32], &mut [f32]) + Sync) {
    let [base, residual, weight_e, weight, s, down, out] = at;
    let (base, residual) = (unless_same::<f32>(call, base, down), unless_same::<f32>(call, residual, out));
    let [weight_e, weight, s] = [weight_e, weight, s].map(|i| call.input::<f32>(i));
    let outs = [down, out].map(|i| call.output::<f32>(i));
    for_rows_of(outs, dim, (2 + work) * row_cost(dim), |r, [down, out]| {
        with_scratch(2 * dim, |buffer| {
            let (branch, added) = buffer.split_at_mut(dim);
            e(r, down, branch);
            added.copy_from_slice(row_of(base, r, dim, down));
            scale_add(branch, inverse_rms(branch, eps), weight_e, added, down);
            added.copy_from_slice(row_of(residual, r, dim, out));
            scale_add(down, inverse_rms(down, eps), weight, added, out);
            multiply(out, s);
        });
    });
}

/// Outputs of the experts of each token, and their weights.
struct Experts<'a> {
    outputs: &'a [f32],
    weights: &'a [f32],
    dim: usize,
    top_k: usize,
}

impl<'a> Experts<'a> {
    /// Bindings 0 and 1.
    fn of(call: &CpuCall<'a>, dim: usize, top_k: usize) -> Experts<'a> {
        Experts { outputs: call.input(0), weights: call.input(1), dim, top_k }
    }

    /// `Σ_k w_k · y_k` of a token.
    fn sum(&self, token: usize, to: &mut [f32]) {
        let weights = &self.weights[token * self.top_k..(token + 1) * self.top_k];
        weighted_sum(&self.outputs[token * self.top_k * self.dim..], weights, to);
    }
}

/// Bindings experts, weights, residual, weight, out; `out` may be `residual`.
pub(crate) fn expert_sum_norm_add(call: &CpuCall<'_>) {
    expert_sum_add(call, None, 3, 4);
}

/// Bindings experts, weights, residual, weight_residual, weight, out; `out` may be `residual`.
pub(crate) fn expert_sum_norms(call: &CpuCall<'_>) {
    expert_sum_add(call, Some(3), 4, 5);
}

/// `out = residual + rms(Σ_k w_k · y_k) · weight`, where the residual is normalised too if it has a weight.
fn expert_sum_add(call: &CpuCall<'_>, residual_weight: Option<usize>, weight: usize, out: usize) {
    let p: ExpertNormParams = call.params();
    let (dim, top_k) = (p.dim as usize, p.top_k as usize);
    let experts = Experts::of(call, dim, top_k);
    let residual = unless_same::<f32>(call, 2, out);
    let (residual_weight, weight) = (residual_weight.map(|i| call.input::<f32>(i)), call.input::<f32>(weight));
    for_rows(call.output::<f32>(out), dim, (2 + top_k) * row_cost(dim), |r, row| {
        with_scratch(2 * dim, |buffer| {
            let (branch, added) = buffer.split_at_mut(dim);
            let residual = row_of(residual, r, dim, row);
            match residual_weight {
                Some(w) => scale(residual, inverse_rms(residual, p.eps), w, added),
                None => added.copy_from_slice(residual),
            }
            experts.sum(r, branch);
            scale_add(branch, inverse_rms(branch, p.eps), weight, added, row);
        });
    });
}
