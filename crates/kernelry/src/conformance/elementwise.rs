//! References and cases of sums, products and casts. One operation of two values is exact in f64 up to the rounding that follows.

use super::{Cases, Input, Reference, Tolerance};
use crate::ops::elementwise::{AddBiasParams, ElementwiseParams, ScalarMulParams};

pub(crate) fn binary(r: &mut Reference<'_>) {
    let (a, b) = (r.f64s("a"), r.f64s("b"));
    let add = r.kernel().contains("_add_");
    // The product and the sum of two f32 are exact in f64 or lose only bits far below the next rounding.
    let out: Vec<f64> = a.iter().zip(&b).map(|(a, b)| if add { a + b } else { a * b }).collect();
    r.expect("out", out, Tolerance::EXACT);
}

/// A prompt of 8192 tokens, 4096 wide.
const PROMPT: u32 = 8192 * 4096;
/// Lengths around vectors, blocks and tasks.
const LENGTHS: [u32; 12] = [5, 1, 3, 15, 16, 17, 127, 129, 255, 257, 4097, 10_001];

/// Signed zeros, infinities, NaN, the ends of the ranges of f16 and bf16, subnormals of f16, and ties between neighbours.
fn edges() -> Input {
    let f16_subnormal = (-24.0f64).exp2();
    Input::Values(vec![
        0.0,
        -0.0,
        1.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        65504.0,
        65519.99,
        65520.0,
        -65520.0,
        f16_subnormal,
        1.5 * f16_subnormal,
        2.5 * f16_subnormal,
        0.5 * f16_subnormal,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
        1.0 + 1.0 / 256.0 + 1.0 / 65536.0,
        3.3895e38,
        3.4e38,
        -3.4e38,
        1e-30,
    ])
}

pub(crate) fn binary_cases(c: &mut Cases) {
    for n in LENGTHS {
        c.add(format!("n={n}"), ElementwiseParams { n });
    }
    c.add("in place of a", ElementwiseParams { n: 300 }).in_place("out", "a");
    c.add("in place of b", ElementwiseParams { n: 300 }).in_place("out", "b");
    // Every pair of edges: 23 and 22 have no common factor.
    let mut shifted = edges();
    if let Input::Values(values) = &mut shifted {
        values.pop();
    }
    c.add("edges", ElementwiseParams { n: 23 * 22 }).input("a", edges()).input("b", shifted);
    if c.intensity >= 2 {
        c.add("residual of a prefill", ElementwiseParams { n: 2048 * 2816 });
        c.add("past 2^24", ElementwiseParams { n: (1 << 24) + 1 });
    }
    c.bench("n=8192*4096", ElementwiseParams { n: PROMPT }).on_gpus();
}

pub(crate) fn cast(r: &mut Reference<'_>) {
    let x = r.f64s("x");
    r.expect("out", x, Tolerance::EXACT);
}

pub(crate) fn cast_cases(c: &mut Cases) {
    for n in LENGTHS {
        c.add(format!("n={n}"), ElementwiseParams { n });
    }
    c.add("edges", ElementwiseParams { n: 46 }).input("x", edges());
    c.add("random bits", ElementwiseParams { n: 4096 }).input("x", Input::Bytes);
    if c.intensity >= 2 {
        c.add("model shape", ElementwiseParams { n: 2455 * 16 * 256 });
    }
    c.bench("n=8192*4096", ElementwiseParams { n: PROMPT }).on_gpus();
}

pub(crate) fn scalar_mul(r: &mut Reference<'_>) {
    let p: ScalarMulParams = r.params();
    let out: Vec<f64> = r.f64s("x").iter().map(|x| x * f64::from(p.scalar)).collect();
    r.expect("out", out, Tolerance::EXACT);
}

pub(crate) fn scalar_mul_cases(c: &mut Cases) {
    for n in LENGTHS {
        // A factor that bf16 does not hold.
        c.add(format!("n={n}"), ScalarMulParams { n, scalar: 0.088_388_35 });
    }
    c.add("in place", ScalarMulParams { n: 300, scalar: -3.0 }).in_place("out", "x");
    c.add("edges", ScalarMulParams { n: 46, scalar: 1.000_000_1 }).input("x", edges());
    if c.intensity >= 2 {
        c.add("model shape", ScalarMulParams { n: 4096 * 4096, scalar: 0.088_388_35 });
    }
    c.bench("n=8192*4096", ScalarMulParams { n: PROMPT, scalar: 0.088_388_35 }).on_gpus();
}

pub(crate) fn add_bias(r: &mut Reference<'_>) {
    let (x, bias) = (r.f64s("x"), r.f64s("bias"));
    let out: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + bias[i % bias.len()]).collect();
    r.expect("out", out, Tolerance::EXACT);
}

pub(crate) fn add_bias_cases(c: &mut Cases) {
    for (rows, cols) in [(3, 5), (1, 1), (1, 257), (33, 64), (130, 129)] {
        c.add(format!("rows={rows} cols={cols}"), AddBiasParams { rows, cols });
    }
    c.add("in place", AddBiasParams { rows: 5, cols: 33 }).in_place("out", "x");
    if c.intensity >= 2 {
        c.add("model shape", AddBiasParams { rows: 512, cols: 5120 });
    }
    c.bench("rows=8192 cols=4096", AddBiasParams { rows: 8192, cols: 4096 }).on_gpus();
}
