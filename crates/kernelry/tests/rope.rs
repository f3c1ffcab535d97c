//! Rotations: what does not turn keeps its bits, ways to say the same rotation give the same bits, and fused kernels those of chains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/launch.rs"]
mod launch;

use kernelry::DType::{BF16, F16, F32};
use kernelry::ops::elementwise::ElementwiseParams;
use kernelry::ops::layout::PermuteParams;
use kernelry::ops::norm::NormParams;
use kernelry::ops::rope::{HeadNormRopeBatchParams, HeadNormRopeParams, HeadNormRopeTableParams, RopeMultiParams, RopeParams, inv_freq};
use kernelry::{Buffer, DType};
use launch::{Launcher, assert_same};

const SEQ: usize = 6;
const HEADS: usize = 3;
const POSITIONS: [u32; SEQ] = [0, 1, 7, 4095, 131_071, 1_048_575];
/// Head widths, with rotated elements.
const SHAPES: [(usize, usize); 7] = [(2, 2), (12, 12), (64, 64), (72, 36), (128, 128), (256, 64), (512, 128)];

fn params(head_dim: usize, rope_dim: usize) -> RopeParams {
    RopeParams { seq_len: SEQ as u32, n_heads: HEADS as u32, head_dim: head_dim as u32, rope_dim: rope_dim as u32 }
}

struct Rope {
    l: Launcher,
    positions: Buffer,
}

impl Rope {
    fn new(seed: u64) -> Rope {
        let l = Launcher::new(seed);
        Rope { positions: l.upload(&POSITIONS, &[SEQ]), l }
    }

    fn heads(&mut self, dtype: DType, head_dim: usize) -> Buffer {
        self.l.normal(dtype, &[SEQ * HEADS, head_dim])
    }

    fn table(&self, base: f64, denominator: usize, pairs: usize) -> Buffer {
        self.l.upload(&inv_freq(base, denominator, pairs).unwrap(), &[pairs])
    }

    fn turn(&self, name: &str, x: &Buffer, rope_dim: usize, table: &Buffer, factors: Option<&Buffer>) -> Buffer {
        let p = params(x.shape()[1], rope_dim);
        let inputs = [Some(x), Some(&self.positions), Some(table), factors];
        self.l.run_with(name, &inputs, p, &[(x.dtype(), x.shape())]).remove(0)
    }
}

#[test]
fn factors_of_one_change_no_bit() {
    let mut r = Rope::new(1);
    for name in ["rope_f32", "rope_f16", "rope_bf16", "rope_neox_f32", "rope_neox_bf16"] {
        let dtype = if name.ends_with("bf16") {
            BF16
        } else if name.ends_with("f16") {
            F16
        } else {
            F32
        };
        for (dim, rope_dim) in SHAPES {
            let rope_dim = if name.contains("neox") { rope_dim } else { dim };
            let (x, table) = (r.heads(dtype, dim), r.table(1e4, dim, rope_dim / 2));
            let ones = r.l.upload(&vec![1.0f32; rope_dim / 2], &[rope_dim / 2]);
            let with = r.turn(name, &x, rope_dim, &table, Some(&ones));
            assert_same(&format!("{name}, {rope_dim} of {dim}"), &with, &r.turn(name, &x, rope_dim, &table, None));
            // Factors must matter, or the comparison above proves nothing.
            let twos = r.l.upload(&vec![2.0f32; rope_dim / 2], &[rope_dim / 2]);
            assert_ne!(r.l.widen(&r.turn(name, &x, rope_dim, &table, Some(&twos))), r.l.widen(&with), "{name}: factors are not read");
        }
    }
}

#[test]
fn what_does_not_turn_keeps_its_bits() {
    let mut r = Rope::new(2);
    for (name, dtype) in [("rope_neox_f32", F32), ("rope_neox_bf16", BF16)] {
        for (dim, rope_dim) in SHAPES {
            let (x, table) = (r.heads(dtype, dim), r.table(1e4, dim, rope_dim / 2));
            let (before, after) = (r.l.widen(&x), r.l.widen(&r.turn(name, &x, rope_dim, &table, None)));
            for (i, (a, b)) in before.iter().zip(&after).enumerate() {
                if i % (dim / 2) >= rope_dim / 2 {
                    assert_eq!(a.to_bits(), b.to_bits(), "{name}, {rope_dim} of {dim}: element {i}");
                }
            }
            assert_eq!(before[..HEADS * dim], after[..HEADS * dim], "{name}: position 0 turns");
        }
    }
}

/// Files say that few pairs turn in either of two ways.
#[test]
fn huge_factors_are_partial_rotation() {
    let mut r = Rope::new(3);
    let (dim, turning) = (512, 128);
    let x = r.heads(F32, dim);
    let partial = r.turn("rope_neox_f32", &x, turning, &r.table(1e6, dim, turning / 2), None);
    let factors: Vec<f32> = (0..dim / 2).map(|p| if p < turning / 2 { 1.0 } else { 1e30 }).collect();
    let factors = r.l.upload(&factors, &[dim / 2]);
    assert_same("factors", &r.turn("rope_neox_f32", &x, dim, &r.table(1e6, dim, dim / 2), Some(&factors)), &partial);
}

/// Adjacent pairs and pairs half a head apart are one rotation of differently ordered elements.
#[test]
fn both_orders_of_pairs_are_one_rotation() {
    let mut r = Rope::new(4);
    for (dim, _) in SHAPES {
        let (x, table) = (r.heads(F32, dim), r.table(1e4, dim, dim / 2));
        // Element 2p + j of a head goes to p + j·dim/2.
        let split = |x: &Buffer| {
            let x = r.l.widen(x);
            let at = |i: usize| i / dim * dim + 2 * (i % (dim / 2)) + i % dim / (dim / 2);
            r.l.upload(&(0..x.len()).map(|i| x[at(i)]).collect::<Vec<f32>>(), &[SEQ * HEADS, dim])
        };
        let adjacent = r.turn("rope_f32", &x, dim, &table, None);
        assert_same(&format!("dim {dim}"), &r.turn("rope_neox_f32", &split(&x), dim, &table, None), &split(&adjacent));
    }
}

#[test]
fn sixteen_bit_heads_are_rounded_f32_heads() {
    let mut r = Rope::new(5);
    for (name, wide, dtype) in [("rope_f16", "rope_f32", F16), ("rope_bf16", "rope_f32", BF16), ("rope_neox_bf16", "rope_neox_f32", BF16)] {
        let (x, table) = (r.heads(dtype, 64), r.table(1e4, 64, 32));
        let expected = r.l.widen(&r.turn(wide, &r.l.as_f32(&x), 64, &table, None));
        assert_same(name, &r.turn(name, &x, 64, &table, None), &r.l.rounded(dtype, &expected, x.shape()));
    }
}

/// What a prompt computes for a position is what its decode step computes.
#[test]
fn a_position_depends_on_itself_alone() {
    let mut r = Rope::new(6);
    let (x, table) = (r.heads(F32, 64), r.table(1e4, 64, 32));
    let all = r.turn("rope_neox_f32", &x, 64, &table, None);
    for s in 0..SEQ {
        let p = RopeParams { seq_len: 1, n_heads: HEADS as u32, head_dim: 64, rope_dim: 64 };
        let (head, position) = (x.rows(s * HEADS, HEADS).unwrap(), r.l.upload(&POSITIONS[s..=s], &[1]));
        let inputs = [Some(&head), Some(&position), Some(&table), None];
        let alone = r.l.run_with("rope_neox_f32", &inputs, p, &[(F32, head.shape())]).remove(0);
        assert_same(&format!("position {}", POSITIONS[s]), &alone, &all.rows(s * HEADS, HEADS).unwrap());
    }
}

#[test]
fn head_norm_and_rotation_are_the_chain() {
    let mut r = Rope::new(7);
    for (dim, rope_dim) in SHAPES {
        let (x, weight) = (r.heads(F32, dim), r.l.normal(F32, &[dim]));
        let (table, rows) = (r.table(1e4, dim, rope_dim / 2), SEQ * HEADS);
        let factors = r.l.upload(&(0..rope_dim / 2).map(|p| 1.0 + p as f32).collect::<Vec<_>>(), &[rope_dim / 2]);
        let norm = NormParams { rows: rows as u32, dim: dim as u32, eps: 1e-6 };
        let shape = x.shape().to_vec();
        for (weight, factors, half_rope) in
            [(Some(&weight), None, rope_dim / 2), (None, Some(&factors), rope_dim / 2), (Some(&weight), None, 0)]
        {
            let normed = match weight {
                Some(weight) => r.l.run("rms_norm_f32", &[&x, weight], norm, F32, &shape),
                None => r.l.run("rms_norm_no_scale_f32", &[&x], norm, F32, &shape),
            };
            let chain = if half_rope == 0 { normed } else { r.turn("rope_neox_f32", &normed, rope_dim, &table, factors) };
            let n = ElementwiseParams { n: x.len() as u32 };
            let rounded = r.l.run("cast_f32_to_bf16", &[&chain], n, BF16, &shape);
            let p = PermuteParams { dim0: SEQ as u32, dim1: HEADS as u32, dim2: dim as u32 };
            let permuted = r.l.run("permute_021_f32", &[&chain], p, F32, &shape);
            let rounded_permuted = r.l.run("permute_021_bf16", &[&rounded], p, BF16, &shape);
            for name in ["fused_head_norm_rope_f32", "fused_head_norm_rope_f32_v2"] {
                if name.ends_with("_v2") && dim % 4 != 0 {
                    continue;
                }
                for bf16_permuted in [0, 1] {
                    let p = HeadNormRopeParams {
                        seq_len: SEQ as u32,
                        n_heads: HEADS as u32,
                        head_dim: dim as u32,
                        half_rope: half_rope as u32,
                        eps: 1e-6,
                        bf16_permuted,
                    };
                    let inputs = [Some(&x), weight, Some(&r.positions), Some(&table), factors];
                    let got = r.l.run_with(name, &inputs, p, &[(F32, &shape), (BF16, &shape), (F32, &shape)]);
                    let what = format!("{name}, {half_rope} pairs of {dim}, weight {}", weight.is_some());
                    assert_same(&what, &got[0], &chain);
                    assert_same(&format!("{what}, bf16"), &got[1], if bf16_permuted == 1 { &rounded_permuted } else { &rounded });
                    assert_same(&format!("{what}, permuted"), &got[2], &permuted);
                }
            }
        }
    }
}

/// The two bf16 kernels pair differently unless all of a head turns; the one over positions is the f32 kernel, rounded.
#[test]
fn bf16_head_norms_agree() {
    let mut r = Rope::new(8);
    for dim in [64, 128, 512] {
        let (x, weight, table) = (r.heads(BF16, dim), r.l.normal(BF16, &[dim]), r.table(1e6, dim, dim / 2));
        let (seq_len, n_heads, head_dim, half_rope) = (SEQ as u32, HEADS as u32, dim as u32, dim as u32 / 2);
        let p = HeadNormRopeBatchParams { seq_len, n_heads, head_dim, half_rope, eps: 1e-6 };
        let inputs = [Some(&x), Some(&weight), Some(&r.positions), Some(&table), None];
        let batch = r.l.run_with("fused_head_norm_rope_batch_bf16", &inputs, p, &[(BF16, x.shape())]).remove(0);
        let (wide_x, wide_w) = (r.l.as_f32(&x), r.l.as_f32(&weight));
        let p = HeadNormRopeParams { seq_len, n_heads, head_dim, half_rope, eps: 1e-6, bf16_permuted: 0 };
        let inputs = [Some(&wide_x), Some(&wide_w), Some(&r.positions), Some(&table), None];
        let wide = r.l.run_with("fused_head_norm_rope_f32", &inputs, p, &[(F32, x.shape()), (BF16, x.shape()), (F32, x.shape())]);
        assert_same(&format!("dim {dim}, f32"), &batch, &wide[1]);
        let frequencies = table.to_vec::<f32>().unwrap();
        for (s, position) in POSITIONS.into_iter().enumerate() {
            let angles: Vec<f64> = frequencies.iter().map(|f| f64::from(position as f32 * f)).collect();
            let of = |f: fn(f64) -> f64| r.l.upload(&angles.iter().map(|a| f(*a) as f32).collect::<Vec<_>>(), &[dim / 2]);
            let head = x.rows(s * HEADS, HEADS).unwrap();
            let p = HeadNormRopeTableParams { n_heads, head_dim, half_rope, eps: 1e-6 };
            let got = r.l.run("fused_head_norm_rope_bf16", &[&head, &weight, &of(f64::cos), &of(f64::sin)], p, BF16, head.shape());
            assert_same(&format!("dim {dim}, position {position}"), &got, &batch.rows(s * HEADS, HEADS).unwrap());
        }
    }
}

/// Text gives every axis the same position: all modes are then the plain rotation of the first elements.
#[test]
fn axes_that_agree_are_one_axis() {
    let mut r = Rope::new(9);
    for (name, plain, dtype) in [("rope_multi_f32", "rope_neox_f32", F32), ("rope_multi_bf16", "rope_neox_bf16", BF16)] {
        for (dim, rope_dim, [section_0, section_1, section_2, section_3]) in
            [(128usize, 128usize, [24, 20, 20, 0]), (256, 64, [11, 11, 10, 0]), (72, 72, [18, 18, 0, 0])]
        {
            let (x, table) = (r.heads(dtype, dim), r.table(1e4, rope_dim, rope_dim / 2));
            let positions: Vec<i32> = (0..4).flat_map(|_| POSITIONS.map(|p| p as i32)).collect();
            let positions = r.l.upload(&positions, &[4, SEQ]);
            // The elements that turn, as heads of their own.
            let head = |x: &Buffer| {
                let part: Vec<f32> = r.l.widen(x).chunks(dim).flat_map(|head| head[..rope_dim].to_vec()).collect();
                r.l.rounded(dtype, &part, &[SEQ * HEADS, rope_dim])
            };
            let expected = r.turn(plain, &head(&x), rope_dim, &table, None);
            for mode in [8, 40, 24] {
                // The axis of vision towers restarts its frequencies in the table, which is given here.
                if mode == 24 && (rope_dim != dim || section_0 + section_1 != dim as u32 / 2) {
                    continue;
                }
                let p = params(dim, rope_dim);
                let p = RopeMultiParams {
                    seq_len: p.seq_len,
                    n_heads: p.n_heads,
                    head_dim: p.head_dim,
                    rope_dim: p.rope_dim,
                    mode,
                    section_0,
                    section_1,
                    section_2,
                    section_3,
                };
                let got = r.l.run(name, &[&x, &positions, &table], p, dtype, x.shape());
                assert_same(&format!("{name}, mode {mode}, {rope_dim} of {dim}"), &head(&got), &expected);
                let rest = |x: &Buffer| r.l.widen(x).chunks(dim).flat_map(|h| h[rope_dim..].to_vec()).collect::<Vec<f32>>();
                assert_eq!(rest(&got), rest(&x), "{name}: what does not turn");
            }
        }
    }
}
