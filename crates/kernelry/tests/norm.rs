//! Norms: kernels that do several steps give the bits of the chain of kernels that do one, and a row depends on itself alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/launch.rs"]
mod launch;

use kernelry::DType::{BF16, F16, F32};
use kernelry::ops::elementwise::{ElementwiseParams, ScalarMulParams};
use kernelry::ops::layout::PermuteParams;
use kernelry::ops::norm::{
    ExpertNormParams, ExpertScaledNormParams, L2NormParams, L2NormScaleParams, NormParams, PermutedNormParams, ScaledNormParams,
};
use kernelry::{Buffer, DType};
use launch::{Launcher, assert_same, bits};

const EPS: f32 = 1e-6;
/// Row lengths below, at and beyond the width of vectors, and of models. All suit names that load four elements at once.
const DIMS: [usize; 8] = [4, 8, 12, 16, 36, 256, 2816, 5376];

fn norm(rows: usize, dim: usize) -> NormParams {
    NormParams { rows: rows as u32, dim: dim as u32, eps: EPS }
}

fn scaled(rows: usize, dim: usize, s: &Buffer) -> ScaledNormParams {
    ScaledNormParams { rows: rows as u32, dim: dim as u32, eps: EPS, scalar_is_vector: u32::from(s.len() > 1) }
}

impl Launcher {
    fn rms(&self, x: &Buffer, weight: &Buffer) -> Buffer {
        let dim = weight.len();
        self.run("rms_norm_f32", &[x, weight], norm(x.len() / dim, dim), F32, x.shape())
    }

    fn binary(&self, name: &str, a: &Buffer, b: &Buffer) -> Buffer {
        self.run(name, &[a, b], ElementwiseParams { n: a.len() as u32 }, F32, a.shape())
    }

    fn add(&self, a: &Buffer, b: &Buffer) -> Buffer {
        self.binary("elementwise_add_f32", a, b)
    }

    /// Times `s`, one factor for all or one for each element of a row.
    fn times(&self, x: &Buffer, s: &Buffer) -> Buffer {
        let s = s.to_vec::<f32>().unwrap();
        let all: Vec<f32> = (0..x.len()).map(|i| s[i % s.len()]).collect();
        self.binary("elementwise_mul_f32", x, &self.upload(&all, x.shape()))
    }
}

/// `Σ_k w_k · y_k` in ascending order, each product and sum rounded.
fn expert_sum(l: &Launcher, y: &Buffer, w: &Buffer, rows: usize, dim: usize) -> Buffer {
    let (y, w) = (y.to_vec::<f32>().unwrap(), w.to_vec::<f32>().unwrap());
    let top_k = w.len() / rows;
    let at = |i: usize| (0..top_k).fold(0.0f32, |sum, k| sum + y[(i / dim * top_k + k) * dim + i % dim] * w[i / dim * top_k + k]);
    l.upload(&(0..rows * dim).map(at).collect::<Vec<_>>(), &[rows, dim])
}

#[test]
fn several_results_are_those_of_single_norms() {
    let mut l = Launcher::new(1);
    for dim in DIMS.into_iter().chain([1, 31, 33]) {
        let (seq_len, heads) = (5, 3);
        let (rows, shape) = (seq_len * heads, [seq_len * heads, dim]);
        let x = l.normal(F32, &shape);
        let weights: Vec<Buffer> = (0..3).map(|_| l.normal(F32, &[dim])).collect();
        let inputs = [&x, &weights[0], &weights[1], &weights[2]];
        for (out, weight) in l.run_for("rms_norm_f32_triple", &inputs, norm(rows, dim), &[(F32, &shape[..]); 3]).iter().zip(&weights) {
            assert_same(&format!("triple, dim {dim}"), out, &l.rms(&x, weight));
        }
        let plain = l.run("rms_norm_no_scale_f32", &[&x], norm(rows, dim), F32, &shape);
        let rounded = l.run("cast_f32_to_bf16", &[&plain], ElementwiseParams { n: x.len() as u32 }, BF16, &shape);
        let dual = l.run_for("rms_norm_no_scale_f32_dual", &[&x], norm(rows, dim), &[(F32, &shape), (BF16, &shape)]);
        assert_same(&format!("dual, dim {dim}"), &dual[0], &plain);
        assert_same(&format!("dual, dim {dim}, bf16"), &dual[1], &rounded);
        let p = PermutedNormParams { seq_len: seq_len as u32, n_heads: heads as u32, dim: dim as u32, eps: EPS };
        let dual = l.run_for("rms_norm_no_scale_f32_dual_perm", &[&x], p, &[(F32, &shape), (BF16, &shape)]);
        let p = PermuteParams { dim0: seq_len as u32, dim1: heads as u32, dim2: dim as u32 };
        assert_same(&format!("permuted, dim {dim}"), &dual[0], &plain);
        assert_same(&format!("permuted, dim {dim}, bf16"), &dual[1], &l.run("permute_021_bf16", &[&rounded], p, BF16, &shape));
    }
}

/// Recurrences after this norm magnify one unit in the last place.
#[test]
fn the_scaled_l2_norm_is_the_norm_and_then_the_product() {
    let mut l = Launcher::new(2);
    for dim in DIMS.into_iter().chain([1, 31, 128]) {
        let (rows, shape) = (7, [7, dim]);
        let x = l.normal(F32, &shape);
        let plain = l.run("l2_norm_f32", &[&x], L2NormParams { rows, dim: dim as u32, eps: EPS }, F32, &shape);
        for scale in [0.088_388_35, -3.7, 1e-3] {
            let fused = l.run("l2_norm_scale_f32", &[&x], L2NormScaleParams { rows, dim: dim as u32, eps: EPS, scale }, F32, &shape);
            let chain = l.run("scalar_mul_f32", &[&plain], ScalarMulParams { n: x.len() as u32, scalar: scale }, F32, &shape);
            assert_same(&format!("dim {dim}, scale {scale}"), &fused, &chain);
        }
    }
}

#[test]
fn a_norm_with_a_residual_or_a_factor_is_the_chain() {
    let mut l = Launcher::new(3);
    for dim in DIMS.into_iter().chain([1, 31, 33]) {
        let (rows, shape) = (3, [3, dim]);
        let (residual, x, weight) = (l.normal(F32, &shape), l.normal(F32, &shape), l.normal(F32, &[dim]));
        let after = l.add(&residual, &l.rms(&x, &weight));
        let inputs = [&residual, &x, &weight];
        assert_same(&format!("norm_add, dim {dim}"), &l.run("fused_norm_add_f32", &inputs, norm(rows, dim), F32, &shape), &after);
        let sum = l.add(&residual, &x);
        let before = l.rms(&sum, &weight);
        let both = l.run_for("fused_residual_norm_f32", &inputs, norm(rows, dim), &[(F32, &shape[..]); 2]);
        assert_same(&format!("residual_norm, dim {dim}"), &both[0], &before);
        assert_same(&format!("residual_norm, dim {dim}, sum"), &both[1], &sum);
        let multiplied = l.run("rms_norm_mul_f32", &[&x, &weight, &residual], norm(rows, dim), F32, &shape);
        let chain = l.binary("elementwise_mul_f32", &l.rms(&x, &weight), &residual);
        assert_same(&format!("norm_mul, dim {dim}"), &multiplied, &chain);
        for s in [l.normal(F32, &[1]), l.normal(F32, &[dim])] {
            let inputs = [&residual, &x, &weight, &s];
            let got = l.run("fused_norm_add_scalar_f32", &inputs, scaled(rows, dim, &s), F32, &shape);
            assert_same(&format!("norm_add_scalar, dim {dim}, {} factors", s.len()), &got, &l.times(&after, &s));
            let got = l.run("fused_residual_norm_scalar_f32", &inputs, scaled(rows, dim, &s), F32, &shape);
            assert_same(&format!("residual_norm_scalar, dim {dim}, {} factors", s.len()), &got, &l.times(&before, &s));
        }
    }
}

#[test]
fn blocks_of_a_layer_are_their_chains() {
    let mut l = Launcher::new(4);
    for dim in DIMS {
        let (rows, top_k, shape) = (3usize, 5usize, [3, dim]);
        let (hidden, attn, post) = (l.normal(F32, &shape), l.normal(F32, &shape), l.normal(F32, &[dim]));
        let weights: Vec<Buffer> = (0..3).map(|_| l.normal(F32, &[dim])).collect();
        let inputs = [&hidden, &attn, &post, &weights[0], &weights[1], &weights[2]];
        let outs = l.run_for("fused_post_attn_triple_norm_f32", &inputs, norm(rows, dim), &[(F32, &shape[..]); 4]);
        let sum = l.run("fused_norm_add_f32", &inputs[..3], norm(rows, dim), F32, &shape);
        assert_same(&format!("after attention, dim {dim}"), &outs[0], &sum);
        for (out, weight) in outs[1..].iter().zip(&weights) {
            assert_same(&format!("after attention, dim {dim}, norms"), out, &l.rms(&sum, weight));
        }

        let (y, w) = (l.normal(F32, &[rows, top_k, dim]), l.normal(F32, &[rows, top_k]));
        let (base, residual) = (l.normal(F32, &shape), l.normal(F32, &shape));
        let (weight_e, weight) = (&weights[0], &weights[1]);
        let e = expert_sum(&l, &y, &w, rows, dim);
        for s in [l.normal(F32, &[1]), l.normal(F32, &[dim])] {
            let c = l.run("fused_norm_add_f32", &[&base, &e, weight_e], norm(rows, dim), F32, &shape);
            let out = l.run("fused_norm_add_scalar_f32", &[&residual, &c, weight, &s], scaled(rows, dim, &s), F32, &shape);
            let p = scaled(rows, dim, &s);
            let inputs = [&base, &e, &residual, weight_e, weight, &s];
            let got = l.run_for("fused_post_ff_norm2_endlayer_f32", &inputs, p, &[(F32, &shape[..]); 2]);
            assert_same(&format!("end of layer, dim {dim}"), &got[0], &c);
            assert_same(&format!("end of layer, dim {dim}"), &got[1], &out);
            let p = ExpertScaledNormParams { rows: 3, dim: p.dim, top_k: top_k as u32, eps: EPS, scalar_is_vector: p.scalar_is_vector };
            let inputs = [&y, &w, &base, &residual, weight_e, weight, &s];
            let got = l.run_for("fused_moe_wsum_post_ff_norm2_endlayer_f32_v2", &inputs, p, &[(F32, &shape[..]); 2]);
            assert_same(&format!("experts to the end of the layer, dim {dim}"), &got[0], &c);
            assert_same(&format!("experts to the end of the layer, dim {dim}"), &got[1], &out);
        }
        let p = ExpertNormParams { rows: 3, dim: dim as u32, top_k: top_k as u32, eps: EPS };
        let got = l.run("fused_moe_wsum_norm_add_f32", &[&y, &w, &residual, weight], p, F32, &shape);
        assert_same(&format!("sum and norm, dim {dim}"), &got, &l.add(&residual, &l.rms(&e, weight)));
        let got = l.run("fused_moe_wsum_dnorm_add_f32", &[&y, &w, &residual, weight_e, weight], p, F32, &shape);
        assert_same(&format!("sum and two norms, dim {dim}"), &got, &l.add(&l.rms(&residual, weight_e), &l.rms(&e, weight)));
    }
}

/// Names that differ in how they load compute the same.
#[test]
fn names_for_vector_loads_equal_their_base() {
    let mut l = Launcher::new(5);
    for dim in DIMS {
        let (rows, shape) = (3, [3, dim]);
        let full: Vec<Buffer> = (0..3).map(|_| l.normal(F32, &shape)).collect();
        let w: Vec<Buffer> = (0..4).map(|_| l.normal(F32, &[dim])).collect();
        let triple = [&full[0], &full[1], &w[0], &w[1], &w[2], &w[3]];
        let pairs: [(&str, &[&Buffer], usize); 4] = [
            ("rms_norm_f32", &[&full[0], &w[0]], 1),
            ("rms_norm_no_scale_f32", &[&full[0]], 1),
            ("fused_norm_add_f32", &[&full[0], &full[1], &w[0]], 1),
            ("fused_post_attn_triple_norm_f32", &triple, 4),
        ];
        let all = [(F32, &shape[..]); 4];
        for (name, inputs, outs) in pairs {
            let base = l.run_for(name, inputs, norm(rows, dim), &all[..outs]);
            for (a, b) in base.iter().zip(l.run_for(&format!("{name}_v2"), inputs, norm(rows, dim), &all[..outs])) {
                assert_same(&format!("{name}, dim {dim}"), &b, a);
            }
        }
        let inputs = [&full[0], &full[1], &full[2], &w[0], &w[1], &w[2]];
        let base = l.run_for("fused_post_ff_norm2_endlayer_f32", &inputs, scaled(rows, dim, &w[2]), &all[..2]);
        let four = l.run_for("fused_post_ff_norm2_endlayer_f32_v2", &inputs, scaled(rows, dim, &w[2]), &all[..2]);
        base.iter().zip(&four).for_each(|(a, b)| assert_same(&format!("end of layer, dim {dim}"), b, a));
    }
}

/// A 16-bit kernel computes in f32 and rounds once.
#[test]
fn sixteen_bit_rows_are_rounded_f32_rows() {
    let mut l = Launcher::new(6);
    for dim in [1, 31, 64, 2816] {
        let shape = [3, dim];
        for dtype in [F16, BF16] {
            let (x, s) = (l.normal(dtype, &shape), l.normal(dtype, &shape));
            let weight = l.normal(if dtype == F16 { F32 } else { BF16 }, &[dim]);
            let (wide_x, wide_s, wide_w) = (l.as_f32(&x), l.as_f32(&s), l.as_f32(&weight));
            let l2 = |_: &str| L2NormParams { rows: 3, dim: dim as u32, eps: EPS };
            let suffix = if dtype == F16 { "f16" } else { "bf16" };
            let check = |name: &str, got: Buffer, wide: Buffer| {
                assert_same(&format!("{name}_{suffix}, dim {dim}"), &got, &l.rounded(dtype, &l.widen(&wide), &shape));
            };
            let one = |name: &str, dtype: DType, inputs: &[&Buffer]| l.run(name, inputs, norm(3, dim), dtype, &shape);
            check("rms_norm", one(&format!("rms_norm_{suffix}"), dtype, &[&x, &weight]), one("rms_norm_f32", F32, &[&wide_x, &wide_w]));
            check(
                "rms_norm_mul",
                one(&format!("rms_norm_mul_{suffix}"), dtype, &[&x, &weight, &s]),
                one("rms_norm_mul_f32", F32, &[&wide_x, &wide_w, &wide_s]),
            );
            let l2_of = |name: &str, dtype: DType, x: &Buffer| l.run(name, &[x], l2(name), dtype, &shape);
            check("l2_norm", l2_of(&format!("l2_norm_{suffix}"), dtype, &x), l2_of("l2_norm_f32", F32, &wide_x));
            if dtype == BF16 {
                check(
                    "norm_add",
                    one("fused_norm_add_bf16", dtype, &[&s, &x, &weight]),
                    one("fused_norm_add_f32", F32, &[&wide_s, &wide_x, &wide_w]),
                );
                check("no_scale", one("rms_norm_no_scale_bf16", dtype, &[&x]), one("rms_norm_no_scale_f32", F32, &[&wide_x]));
            }
        }
    }
}

/// What a prompt computes for a token is what its decode step computes, whatever the number of threads and however often.
#[test]
fn a_row_depends_on_itself_alone() {
    let mut l = Launcher::new(7);
    let (rows, dim) = (2000, 80);
    let (x, residual, weight) = (l.normal(F32, &[rows, dim]), l.normal(F32, &[rows, dim]), l.normal(F32, &[dim]));
    let run = |x: &Buffer, residual: &Buffer| {
        let p = norm(x.shape()[0], dim);
        let mut outs = l.run_for("fused_residual_norm_f32", &[residual, x, &weight], p, &[(F32, x.shape()); 2]);
        outs.push(l.rms(x, &weight));
        outs
    };
    let all = run(&x, &residual);
    for row in [0, 1, 999, 1999] {
        let alone = run(&x.rows(row, 1).unwrap(), &residual.rows(row, 1).unwrap());
        alone.iter().zip(&all).for_each(|(alone, all)| assert_same(&format!("row {row}"), alone, &all.rows(row, 1).unwrap()));
    }
    let expected: Vec<Vec<u8>> = all.iter().map(bits).collect();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for _ in 0..20 {
            let again: Vec<Vec<u8>> = pool.install(|| run(&x, &residual)).iter().map(bits).collect();
            assert!(again == expected, "{threads} threads change bits");
        }
    }
}
