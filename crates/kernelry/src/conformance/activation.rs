//! References and cases of the activation family.

use super::{Cases, Input, Reference, Tolerance};
use crate::DType;
use crate::ops::activation::{ActivationParams, SoftcapParams, SoftmaxParams};

fn tolerance(dtype: DType) -> Tolerance {
    match dtype {
        DType::F32 => Tolerance::rel(2e-6, 1e-6),
        _ => Tolerance::ulps(1.0),
    }
}

/// `σ`, from the side that does not cancel.
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

pub(crate) fn gated(r: &mut Reference<'_>) {
    let gate = r.f64s("gate");
    let silu = r.kernel().starts_with("silu");
    let other = r.f64s(if silu { "up" } else { "x" });
    let values: Vec<f64> = gate.iter().zip(&other).map(|(&g, &x)| if silu { g * sigmoid(g) * x } else { x * sigmoid(g) }).collect();
    let tolerance = tolerance(r.dtype("out"));
    r.expect("out", values, tolerance);
}

pub(crate) fn gelu(r: &mut Reference<'_>) {
    let value = |x: f64| {
        let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        // Exactly ±1 from 15 on, so that a huge x does not meet a tanh that is almost 1.
        let tanh = if t.abs() >= 15.0 { t.signum() } else { t.tanh() };
        0.5 * x * (1.0 + tanh)
    };
    let values: Vec<f64> = r.f64s("x").into_iter().map(value).collect();
    let tolerance = match r.dtype("out") {
        DType::F32 => Tolerance::rel(2e-6, 1e-6),
        // Results that cancel below the smallest normal are judged absolutely.
        _ => Tolerance { abs: 1e-6, rel: 0.0, ulps: 1.0 },
    };
    r.expect("out", values, tolerance);
}

pub(crate) fn softcap(r: &mut Reference<'_>) {
    let cap = f64::from(r.params::<SoftcapParams>().cap);
    let values: Vec<f64> = r.f64s("x").into_iter().map(|x| (x / cap).tanh() * cap).collect();
    let tolerance = tolerance(r.dtype("out"));
    r.expect("out", values, tolerance);
}

pub(crate) fn softmax(r: &mut Reference<'_>) {
    let cols = r.params::<SoftmaxParams>().cols as usize;
    let mut expected = Vec::new();
    for row in r.f64s("x").chunks(cols) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let poisoned = row.iter().any(|v| v.is_nan()) || max.is_infinite();
        let exponentials: Vec<f64> = row.iter().map(|v| (v - max).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        expected.extend(exponentials.into_iter().map(|e| if poisoned { f64::NAN } else { e / sum }));
    }
    let tolerance = match r.dtype("out") {
        DType::F32 => Tolerance::rel(1e-5, 1e-7),
        DType::F16 => Tolerance::rel(1.0 / 1024.0, 6e-8),
        _ => Tolerance { abs: 1e-38, rel: 0.0, ulps: 1.0 },
    };
    r.expect("out", expected, tolerance);
}

const SIZES: [u32; 9] = [1, 3, 15, 16, 17, 255, 2047, 2049, 9728];
/// Values where a formula leaves its range, within that of f16.
const EDGES: [f64; 14] = [0.0, -0.0, 1e-3, -1e-3, 5.0, -5.0, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4, 0.625, -9.02];

fn flat(c: &mut Cases, edges_of: &[&'static str], aliases: &[&'static str]) {
    for n in SIZES {
        c.add(format!("n={n}"), ActivationParams { n });
    }
    for &name in edges_of {
        c.add(format!("edges of {name}"), ActivationParams { n: 28 }).input(name, Input::Values(EDGES.to_vec()));
    }
    for &name in aliases {
        c.add(format!("in place of {name}"), ActivationParams { n: 5000 }).in_place("out", name);
    }
    for rows in [1, 512] {
        c.bench(format!("n={rows}*14336"), ActivationParams { n: rows * 14336 });
    }
    c.bench("n=8192*4096", ActivationParams { n: 8192 * 4096 }).on_gpus();
}

pub(crate) fn sigmoid_mul_cases(c: &mut Cases) {
    flat(c, &["gate"], &["x", "gate"]);
    c.add("gates at infinity", ActivationParams { n: 8 }).input("gate", Input::Values(vec![f64::INFINITY, f64::NEG_INFINITY]));
}

pub(crate) fn silu_mul_cases(c: &mut Cases) {
    flat(c, &["gate"], &["gate", "up"]);
}

pub(crate) fn gelu_cases(c: &mut Cases) {
    flat(c, &["x"], &["x"]);
    if c.kernel().ends_with("f32") {
        c.add("huge", ActivationParams { n: 4 }).input("x", Input::Values(vec![1e20, -1e20, 1e13, -1e13]));
    }
}

pub(crate) fn softcap_cases(c: &mut Cases) {
    for n in SIZES {
        c.add(format!("n={n}"), SoftcapParams { n, cap: 30.0 }).input("x", Input::Normal(20.0));
    }
    let edges = [0.0, -0.0, 1e4, -1e4, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-4];
    c.add("edges", SoftcapParams { n: 16, cap: 5.0 }).input("x", Input::Values(edges.to_vec()));
    c.add("in place", SoftcapParams { n: 5000, cap: 30.0 }).in_place("out", "x");
    c.bench("n=262144", SoftcapParams { n: 262_144, cap: 30.0 });
}

pub(crate) fn softmax_cases(c: &mut Cases) {
    for cols in [1, 2, 15, 16, 17, 33, 128, 197, 1000] {
        for rows in [1, 3] {
            c.add(format!("rows={rows} cols={cols}"), SoftmaxParams { rows, cols });
        }
    }
    c.add("vocabulary", SoftmaxParams { rows: 1, cols: 32_003 }).input("x", Input::Normal(4.0));
    c.add("large scores", SoftmaxParams { rows: 2, cols: 65 }).input("x", Input::Normal(1000.0));
    let masked = [1.0, f64::NEG_INFINITY, 0.5, f64::NEG_INFINITY, -2.0];
    c.add("masked entries", SoftmaxParams { rows: 3, cols: 10 }).input("x", Input::Values(masked.to_vec()));
    let all = f64::NEG_INFINITY;
    c.add("bad rows among good ones", SoftmaxParams { rows: 5, cols: 4 }).input(
        "x",
        Input::Values(vec![
            1.0,
            2.0,
            3.0,
            4.0,
            all,
            all,
            all,
            all,
            1.0,
            f64::NAN,
            0.0,
            2.0,
            1.0,
            f64::INFINITY,
            0.0,
            1.0,
            0.0,
            1.0,
            0.0,
            1.0,
        ]),
    );
    c.add("in place", SoftmaxParams { rows: 3, cols: 100 }).in_place("out", "x");
    for (rows, cols) in [(1, 262_144), (8192, 1024)] {
        c.bench(format!("rows={rows} cols={cols}"), SoftmaxParams { rows, cols });
    }
}
