//! References and cases of products with GGML blocks.

use half::f16;

use super::blocks::{Block, Value};
use super::{Cases, Input, Reference, Tolerance};
use crate::ops::quantized::{self as ops, DequantParams, MulMmParams, MulMvAddParams, MulMvExtParams, MulMvNormParams, MulMvParams};
use crate::registry::{ConstantValue, Math};

/// How a kernel may round its operands before it multiplies.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    /// Not at all.
    F32,
    /// Weights to f16.
    W16,
    /// Both to f16.
    W16A16,
    /// Weights to f16, activations to 10 bits of mantissa.
    W16A32,
}

impl Class {
    fn of_kernel(name: &str) -> Class {
        match () {
            () if name.contains("_tensor_v2_") => Class::W16A32,
            () if name.contains("_tensor_") => Class::W16A16,
            () if name.contains("_mm_") => Class::W16,
            () => Class::F32,
        }
    }
}

/// A decoded weight matrix and how a kernel may round it.
struct Weights {
    block: Block,
    k: usize,
    values: Vec<Value>,
    class: Class,
}

/// An element of the product with the bound on its error: any value between the product of the operands as they are and that of the
/// rounded ones, and beyond by the error of the sum.
fn element(weights: &Weights, row: usize, x: &[f64], moved: &[f64]) -> (f64, Tolerance) {
    let (mut exact, mut rounded, mut unit, mut quantised) = (0.0, 0.0, 0.0, 0.0);
    let values = &weights.values[row * weights.k..(row + 1) * weights.k];
    for ((value, x), dx) in values.iter().zip(x).zip(moved) {
        exact += x * value.w;
        unit += x.abs() * value.reach;
        quantised += dx * value.w.abs();
        if weights.class != Class::F32 {
            let x = if weights.class == Class::W16A16 { f16::from_f64(*x).to_f64() } else { *x };
            rounded += x * f16::from_f64(value.w).to_f64();
        }
    }
    let sum_error = match weights.class {
        Class::F32 => return (exact, Tolerance::abs(5e-6 * unit + quantised)),
        Class::W16 | Class::W16A16 => 2e-5,
        Class::W16A32 => 2e-5 + (-10f64).exp2(),
    };
    ((exact + rounded) / 2.0, Tolerance::abs((exact - rounded).abs() / 2.0 + sum_error * unit + quantised))
}

/// How far rounding to 8 bits may move each element of a row: half a step of its block.
fn quantisation_steps(block: Block, x: &[f64]) -> Vec<f64> {
    let mut steps = Vec::with_capacity(x.len());
    for chunk in x.chunks(block.len()) {
        let largest = chunk.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        // The code is found with an f32 division: a tie may fall to the wrong side by a few units in its last place.
        steps.extend(std::iter::repeat_n(largest / 254.0 * (1.0 + 1e-4), chunk.len()));
    }
    steps
}

/// Adds the rows of one product to `expected`.
fn product(weights: &Weights, n: usize, x_rows: &[&[f64]], fast: bool, expected: &mut Vec<(f64, Tolerance)>) {
    for x in x_rows {
        let moved = if fast { quantisation_steps(weights.block, x) } else { vec![0.0; x.len()] };
        expected.extend((0..n).map(|row| element(weights, row, x, &moved)));
    }
}

fn decode_f32(r: &Reference<'_>, block: Block) -> Vec<Value> {
    block.decode(r.bytes("weight")).into_iter().map(|v| Value { w: f64::from(v.w as f32), ..v }).collect()
}

pub(crate) fn mul_mv(r: &mut Reference<'_>) {
    let p: MulMvParams = r.params();
    let packed = u64::from(p.m) * u64::from(p.k);
    batched(
        r,
        &MulMmParams {
            x_row_stride: u64::from(p.k),
            x_batch_stride: packed,
            m: p.m,
            n: p.n,
            k: p.k,
            ne12: p.ne12,
            ne13: p.ne13,
            ne02: p.ne02,
            r2: p.r2,
            r3: p.r3,
        },
    );
}

pub(crate) fn mul_mm(r: &mut Reference<'_>) {
    let p: MulMmParams = r.params();
    batched(r, &p);
}

fn batched(r: &mut Reference<'_>, p: &MulMmParams) {
    let block = Block::of_kernel(r.kernel());
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (x, all) = (r.f64s("x"), decode_f32(r, block));
    let mut expected = Vec::new();
    for z in 0..p.ne12 * p.ne13 {
        let (i2, i3) = (z % p.ne12, z / p.ne12);
        let matrix = (i2 / p.r2 + i3 / p.r3 * p.ne02) as usize;
        let values = all[matrix * n * k..(matrix + 1) * n * k].to_vec();
        let weights = Weights { block, k, values, class: Class::of_kernel(r.kernel()) };
        let start = |row: usize| z as usize * p.x_batch_stride as usize + row * p.x_row_stride as usize;
        let rows: Vec<&[f64]> = (0..m).map(|row| &x[start(row)..start(row) + k]).collect();
        product(&weights, n, &rows, r.math() == Math::Fast, &mut expected);
    }
    r.expect_each("out", expected);
}

/// Weights are f16 as stored; activations may lose all but 10 bits of mantissa.
pub(crate) fn mul_mm_f16(r: &mut Reference<'_>) {
    let p: MulMmParams = r.params();
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let (x, w) = (r.f64s("x"), r.f64s("weight"));
    let mut expected = Vec::new();
    for z in 0..p.ne12 * p.ne13 {
        let (i2, i3) = (z % p.ne12, z / p.ne12);
        let matrix = (i2 / p.r2 + i3 / p.r3 * p.ne02) as usize;
        for row in 0..m {
            let start = z as usize * p.x_batch_stride as usize + row * p.x_row_stride as usize;
            let x = &x[start..start + k];
            for w in w[matrix * n * k..(matrix + 1) * n * k].chunks(k) {
                let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                let unit: f64 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
                expected.push((sum, Tolerance::abs(unit * ((-10f64).exp2() + 2e-5))));
            }
        }
    }
    r.expect_each("out", expected);
}

pub(crate) fn mul_mm_f16_cases(c: &mut Cases) {
    for (m, n, k) in [(1, 1, 1), (1, 65, 33), (2, 3, 31), (9, 7, 72), (33, 63, 197), (65, 130, 384), (31, 64, 704)] {
        c.add(format!("m={m} n={n} k={k}"), MulMmParams::single(m, n, k));
    }
    let p = MulMmParams { ne12: 4, ne13: 4, ne02: 2, r2: 2, r3: 2, ..MulMmParams::single(9, 9, 40) };
    c.add("batches", p);
    let p = MulMmParams { x_row_stride: 120, x_batch_stride: 40, ne12: 3, r2: 3, ..MulMmParams::single(10, 5, 33) };
    c.add("token-major batches", p);
    c.add("exact", MulMmParams::single(35, 67, 100)).input("weight", Input::Integers(-4, 4)).input("x", Input::Integers(-4, 4)).exact();
    c.add("large activations", MulMmParams::single(2, 9, 64)).input("x", Input::Uniform(-1e5, 1e5));
    c.add("a row of NaN", MulMmParams::single(5, 9, 64)).input("x", with_nan_row(64));
    for m in [512, 4096] {
        c.bench(format!("m={m} n=14336 k=4096"), MulMmParams::single(m, 14336, 4096)).on_gpus();
    }
}

pub(crate) fn mul_mv_ext(r: &mut Reference<'_>) {
    let p: MulMvExtParams = r.params();
    let block = Block::of_kernel(r.kernel());
    let weights = Weights { block, k: p.k as usize, values: decode_f32(r, block), class: Class::F32 };
    let x = r.f64s("x");
    let rows: Vec<&[f64]> = x.chunks(p.k as usize).collect();
    let mut expected = Vec::new();
    product(&weights, p.n as usize, &rows, r.math() == Math::Fast, &mut expected);
    r.expect_each("out", expected);
}

pub(crate) fn fused_norm(r: &mut Reference<'_>) {
    let p: MulMvNormParams = r.params();
    let (x, norm) = (r.f64s("x"), r.f64s("norm"));
    let weights = Weights {
        block: Block::of_kernel(r.kernel()),
        k: p.k as usize,
        values: decode_f32(r, Block::of_kernel(r.kernel())),
        class: Class::F32,
    };
    let size = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + f64::from(p.eps)).sqrt();
    let input: Vec<f64> = x.iter().zip(&norm).map(|(x, norm)| x / size * norm).collect();
    let mut all = Vec::new();
    product(&weights, (p.gates * p.n) as usize, &[&input], false, &mut all);
    if p.gates == 2 {
        let (gates, ups) = all.split_at(p.n as usize);
        all = gates.iter().zip(ups).map(|((gate, dg), (up, du))| gated(*gate, dg.abs, *up, du.abs)).collect();
    }
    r.expect_each("out", all);
}

/// silu(gate) · up of operands with these errors; the slope of silu is below 1.1 everywhere.
fn gated(gate: f64, gate_error: f64, up: f64, up_error: f64) -> (f64, Tolerance) {
    let silu = gate / (1.0 + (-gate).exp());
    let error = 1.1 * gate_error * (up.abs() + up_error) + silu.abs() * up_error;
    (silu * up, Tolerance::abs(error + 2e-6 * (silu * up).abs()))
}

pub(crate) fn fused_add(r: &mut Reference<'_>) {
    let p: MulMvAddParams = r.params();
    let weights = Weights {
        block: Block::of_kernel(r.kernel()),
        k: p.k as usize,
        values: decode_f32(r, Block::of_kernel(r.kernel())),
        class: Class::F32,
    };
    let mut all = Vec::new();
    product(&weights, p.n as usize, &[&r.f64s("x")], false, &mut all);
    let sums = all.into_iter().zip(r.f64s("residual")).map(|((y, error), r)| (y + r, Tolerance::abs(error.abs + 1e-6 * r.abs())));
    r.expect_each("out", sums.collect());
}

pub(crate) fn dequant(r: &mut Reference<'_>) {
    let values = decode_f32(r, Block::of_kernel(r.kernel()));
    r.expect("out", values.into_iter().map(|v| v.w), Tolerance::EXACT);
}

/// Row lengths, in order of length, that cover a lone block, odd numbers of blocks and the widths of models.
fn row_lengths(block: Block) -> Vec<u32> {
    let lengths = [32, 64, 96, 256, 512, 704, 768, 2112, 2816];
    lengths.into_iter().filter(|k| *k % block.len() as u32 == 0).collect()
}

/// Output counts at every edge of a tile.
const OUTPUTS: [u32; 10] = [1, 2, 3, 7, 8, 9, 63, 64, 65, 130];

/// Pairs each output count with a row count and a row length so that all of each appear: all combinations at intensity 3.
fn sizes(c: &Cases, block: Block, rows: &[u32]) -> Vec<(u32, u32, u32)> {
    let lengths = row_lengths(block);
    let mut list = Vec::new();
    if c.intensity >= 3 {
        for &m in rows {
            for n in OUTPUTS {
                list.extend(lengths.iter().map(|&k| (m, n, k)));
            }
        }
        return list;
    }
    for i in 0..OUTPUTS.len().max(rows.len()) {
        // The longest rows meet few outputs: a reference in f64 takes its time.
        list.push((rows[i % rows.len()], OUTPUTS[(i * 7 + 3) % OUTPUTS.len()], lengths[i % lengths.len()]));
    }
    list
}

/// Integers of which every block holds one of magnitude 127, so that rounding to 8 bits changes nothing.
fn integers_with_127() -> Input {
    Input::custom(|rng, len| {
        let value = |i: usize, rng: &mut fastrand::Rng| if i.is_multiple_of(32) { -127 } else { rng.i32(-5..=5) };
        (0..len / 4).flat_map(|i| (value(i, rng) as f32).to_ne_bytes()).collect()
    })
}

/// A row of NaN and a row with an infinity among others.
fn with_nan_row(k: u32) -> Input {
    Input::custom(move |rng, len| {
        let value = |i: usize, rng: &mut fastrand::Rng| if i / k as usize == 1 { f32::NAN } else { rng.f32() - 0.5 };
        (0..len / 4).flat_map(|i| value(i, rng).to_ne_bytes()).collect()
    })
}

pub(crate) fn mul_mv_cases(c: &mut Cases) {
    let block = Block::of_kernel(c.kernel());
    let unit = block.len() as u32;
    for (m, n, k) in sizes(c, block, &[1, 2, 3, 1, 5]) {
        c.add(format!("m={m} n={n} k={k}"), MulMvParams::single(m, n, k)).input("weight", block.random());
    }
    for (ne12, ne13, ne02, r2, r3) in [(4, 1, 4, 1, 1), (4, 1, 1, 4, 1), (6, 2, 3, 2, 1), (4, 4, 2, 2, 2)] {
        let p = MulMvParams { ne12, ne13, ne02, r2, r3, ..MulMvParams::single(2, 9, 2 * unit) };
        c.add(format!("batch {ne12}·{ne13} over {ne02} weights, r2={r2} r3={r3}"), p).input("weight", block.random());
    }
    let p = MulMvParams { ne12: 2, ne02: 2, ..MulMvParams::single(1, 5, unit) };
    c.add("constants", p)
        .input("weight", block.random())
        .constant(700, ConstantValue::I32(2))
        .constant(701, ConstantValue::I32(1))
        .constant(702, ConstantValue::I32(1));
    c.add("edge scales", MulMvParams::single(2, 33, 3 * unit)).input("weight", block.edges());
    c.add("exact", MulMvParams::single(2, 17, 3 * unit)).input("weight", block.integers()).input("x", Input::Integers(-4, 4)).exact();
    c.add("a row of NaN", MulMvParams::single(3, 9, 2 * unit)).input("weight", block.random()).input("x", with_nan_row(2 * unit));
    c.add("fast exact", MulMvParams::single(2, 17, 3 * unit))
        .input("weight", block.integers())
        .input("x", integers_with_127())
        .fast()
        .exact();
    for (m, n, k) in [(1, 1, unit), (1, 65, 2816 / unit * unit), (2, 9, 3 * unit)] {
        c.add(format!("fast m={m} n={n} k={k}"), MulMvParams::single(m, n, k)).input("weight", block.random()).fast();
    }
    c.add("fast edge scales", MulMvParams::single(2, 33, 3 * unit)).input("weight", block.edges()).fast();
    c.add("fast zeros", MulMvParams::single(1, 3, unit)).input("weight", block.random()).input("x", Input::Values(vec![0.0])).fast();
    if c.intensity >= 2 {
        c.add("a model's projection", MulMvParams::single(1, 2112, 2816)).input("weight", block.random());
        c.add("a model's projection, fast", MulMvParams::single(1, 2112, 2816)).input("weight", block.random()).fast();
    }
    c.bench("m=1 n=14336 k=4096", MulMvParams::single(1, 14336, 4096)).input("weight", block.random());
    for m in [4, 8] {
        c.bench(format!("m={m} n=14336 k=4096"), MulMvParams::single(m, 14336, 4096)).input("weight", block.random()).on_gpus();
    }
}

pub(crate) fn fused_norm_cases(c: &mut Cases) {
    let block = Block::of_kernel(c.kernel());
    let unit = block.len() as u32;
    for (i, (_, n, k)) in sizes(c, block, &[1]).into_iter().enumerate() {
        let p = MulMvNormParams { n, k, gates: 1 + i as u32 % 2, eps: 1e-5 };
        c.add(format!("n={n} k={k} gates={}", p.gates), p).input("weight", block.random());
    }
    let gated = |n, k| MulMvNormParams { n, k, gates: 2, eps: 1e-6 };
    c.add("the longest row", gated(3, 8192)).input("weight", block.random());
    c.add("gates of many tiles", gated(1100, unit)).input("weight", block.random());
    c.add("edge scales", gated(33, 3 * unit)).input("weight", block.edges());
    c.add("zeros", gated(3, unit)).input("weight", block.random()).input("x", Input::Values(vec![0.0]));
    c.add("large activations", gated(9, 2 * unit)).input("weight", block.random()).input("x", Input::Uniform(-1e15, 1e15));
    c.add("NaN", MulMvNormParams { gates: 1, ..gated(9, 2 * unit) })
        .input("weight", block.random())
        .input("x", Input::Values(vec![1.0, f64::NAN, 2.0]));
    c.bench("n=14336 k=4096 gates=1", MulMvNormParams { gates: 1, ..gated(14336, 4096) }).input("weight", block.random()).on_gpus();
    c.bench("n=14336 k=4096 gates=2", gated(14336, 4096)).input("weight", block.random()).on_gpus();
}

pub(crate) fn fused_add_cases(c: &mut Cases) {
    let block = Block::of_kernel(c.kernel());
    let unit = block.len() as u32;
    for (_, n, k) in sizes(c, block, &[1]) {
        c.add(format!("n={n} k={k}"), MulMvAddParams { n, k }).input("weight", block.random());
    }
    c.add("a row of several chunks", MulMvAddParams { n: 17, k: 25 * 1024 }).input("weight", block.random());
    c.add("in place", MulMvAddParams { n: 65, k: 3 * unit }).input("weight", block.random()).in_place("out", "residual");
    c.add("exact", MulMvAddParams { n: 17, k: 3 * unit })
        .input("weight", block.integers())
        .input("x", Input::Integers(-4, 4))
        .input("residual", Input::Integers(-4, 4))
        .exact();
    c.bench("n=4096 k=14336", MulMvAddParams { n: 4096, k: 14336 }).input("weight", block.random()).on_gpus();
}

pub(crate) fn mul_mv_ext_cases(c: &mut Cases) {
    let block = Block::of_kernel(c.kernel());
    let unit = block.len() as u32;
    for (i, (m, n, k)) in sizes(c, block, &[2, 3, 4, 5, 6, 7, 8]).into_iter().enumerate() {
        let batch = if i % 4 == 1 { 2 } else { 1 };
        c.add(format!("m={m} n={n} k={k} batch={batch}"), MulMvExtParams { m, n, k, batch }).input("weight", block.random());
    }
    let small = |m| MulMvExtParams { m, n: 9, k: 3 * unit, batch: 1 };
    c.add("constants", small(3)).input("weight", block.random()).constant(600, ConstantValue::I32(2)).constant(601, ConstantValue::I32(8));
    c.add("edge scales", small(4)).input("weight", block.edges());
    c.add("exact", small(7)).input("weight", block.integers()).input("x", Input::Integers(-4, 4)).exact();
    c.add("a row of NaN", small(5)).input("weight", block.random()).input("x", with_nan_row(3 * unit));
    c.add("fast exact", small(5)).input("weight", block.integers()).input("x", integers_with_127()).fast().exact();
    c.add("fast", small(8)).input("weight", block.random()).fast();
    // Rows that find no room at once, and where there is time also so many that rings of copies go round.
    let long = |m, n, k, batch| MulMvExtParams { m, n, k, batch };
    c.add("long rows", long(8, 40, 8704, 1)).input("weight", block.random());
    if c.intensity >= 2 {
        for (m, n, k, batch) in [(8, 4100, 14336, 1), (3, 4096, 6144, 3), (6, 33000, 2048, 1)] {
            c.add(format!("m={m} n={n} k={k} batch={batch}"), long(m, n, k, batch)).input("weight", block.random());
        }
    }
    let projection = |m| MulMvExtParams { m, n: 14336, k: 4096, batch: 1 };
    c.bench("m=4 n=14336 k=4096", projection(4)).input("weight", block.random());
    c.bench("m=8 n=14336 k=4096", projection(8)).input("weight", block.random()).on_gpus();
}

pub(crate) fn mul_mm_cases(c: &mut Cases) {
    let block = Block::of_kernel(c.kernel());
    let unit = block.len() as u32;
    for (m, n, k) in sizes(c, block, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 32, 33, 65]) {
        c.add(format!("m={m} n={n} k={k}"), MulMmParams::single(m, n, k)).input("weight", block.random());
    }
    for (ne12, ne13, ne02, r2, r3) in [(4, 1, 4, 1, 1), (4, 1, 1, 4, 1), (4, 4, 2, 2, 2)] {
        let p = MulMmParams { ne12, ne13, ne02, r2, r3, ..MulMmParams::single(9, 9, 2 * unit) };
        c.add(format!("batch {ne12}·{ne13} over {ne02} weights, r2={r2} r3={r3}"), p).input("weight", block.random());
    }
    // Input `[m, batch, k]`, and rows with a gap between them.
    let k = 2 * unit;
    let p = MulMmParams { x_row_stride: u64::from(3 * k), x_batch_stride: u64::from(k), ne12: 3, r2: 3, ..MulMmParams::single(10, 5, k) };
    c.add("token-major batches", p).input("weight", block.random());
    let p = MulMmParams { x_row_stride: u64::from(k + 8), x_batch_stride: 40 * u64::from(k), ..MulMmParams::single(33, 65, k) };
    c.add("rows with a gap", p).input("weight", block.random());
    c.add("edge scales", MulMmParams::single(33, 33, 3 * unit)).input("weight", block.edges());
    c.add("exact", MulMmParams::single(35, 67, 3 * unit)).input("weight", block.integers()).input("x", Input::Integers(-4, 4)).exact();
    c.add("a row of NaN", MulMmParams::single(35, 9, 2 * unit)).input("weight", block.random()).input("x", with_nan_row(2 * unit));
    c.add("fast exact", MulMmParams::single(35, 67, 3 * unit))
        .input("weight", block.integers())
        .input("x", integers_with_127())
        .fast()
        .exact();
    for (m, n, k) in [(9, 1, unit), (33, 65, 3 * unit), (12, 130, 2816 / unit * unit)] {
        c.add(format!("fast m={m} n={n} k={k}"), MulMmParams::single(m, n, k)).input("weight", block.random()).fast();
    }
    c.add("fast edge scales", MulMmParams::single(33, 33, 3 * unit)).input("weight", block.edges()).fast();
    if c.intensity >= 2 {
        c.add("a model's projection", MulMmParams::single(64, 2112, 2816)).input("weight", block.random());
        c.add("a model's projection, fast", MulMmParams::single(64, 2112, 2816)).input("weight", block.random()).fast();
    }
    c.bench("m=512 n=14336 k=4096", MulMmParams::single(512, 14336, 4096)).input("weight", block.random());
    c.bench("m=4096 n=14336 k=4096", MulMmParams::single(4096, 14336, 4096)).input("weight", block.random()).on_gpus();
    if !c.kernel().contains("_tensor_") {
        // What a GPU does in math mode fast: weights are expanded first.
        for m in [512, 4096] {
            let case = c.bench(format!("m={m} n=14336 k=4096"), MulMmParams::single(m, 14336, 4096));
            case.input("weight", block.random()).fast().on_gpus().launched_by(ops::record_fast);
        }
    }
}

pub(crate) fn dequant_cases(c: &mut Cases) {
    let block = Block::of_kernel(c.kernel());
    for (n, k) in [(1, 1), (3, 1), (7, 3), (33, 11)] {
        let k = k * block.len() as u32;
        c.add(format!("n={n} k={k}"), DequantParams { n, k }).input("weight", block.random());
    }
    c.add("edge scales", DequantParams { n: 9, k: 4 * block.len() as u32 }).input("weight", block.edges());
    c.add("beyond f16", DequantParams { n: 2, k: 2 * block.len() as u32 }).input("weight", block.huge());
}
