//! References and cases of arg-max, top-k, sorting and sampling: whole sorts and sums in f64.

use std::cmp::Ordering;

use super::{Cases, Input, Reference, Tolerance};
use crate::ops::sampling::{RowsParams, SoftmaxSampleParams, TopKParams};

/// Indices by value descending, then by index; NaN last.
fn order(row: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&i, &j| match (row[i].is_nan(), row[j].is_nan()) {
        (false, false) => row[j].partial_cmp(&row[i]).unwrap_or(Ordering::Equal).then(i.cmp(&j)),
        (a, b) => a.cmp(&b).then(i.cmp(&j)),
    });
    ids
}

fn is_poisoned(row: &[f64]) -> bool {
    row.iter().any(|v| v.is_nan() || *v == f64::INFINITY) || row.iter().all(|v| *v == f64::NEG_INFINITY)
}

const NOTHING: f64 = u32::MAX as f64;

pub(crate) fn argsort_desc(r: &mut Reference<'_>) {
    let p: RowsParams = r.params();
    let x = r.f64s("x");
    let ids: Vec<f64> = x.chunks(p.cols as usize).flat_map(order).map(|i| i as f64).collect();
    r.expect("ids", ids, Tolerance::EXACT);
}

/// Ties, signed zeros, infinities and NaN.
fn awkward() -> Input {
    Input::Values(vec![0.0, -0.0, 1.0, f64::NEG_INFINITY, f64::NAN, 1.0, -1.0, f64::INFINITY, f64::NAN, f64::NEG_INFINITY, 1e-40])
}

pub(crate) fn argsort_desc_cases(c: &mut Cases) {
    for cols in [5, 1, 2, 31, 32, 33, 128, 255, 256, 257, 1024, 2048, 2049, 5000] {
        c.add(format!("cols={cols}"), RowsParams { rows: 3, cols });
        c.add(format!("cols={cols}, many ties"), RowsParams { rows: 3, cols }).input("x", Input::Integers(-2, 2));
        c.add(format!("cols={cols}, awkward values"), RowsParams { rows: 3, cols }).input("x", awkward());
    }
    if c.intensity >= 2 {
        c.add("expert ranking", RowsParams { rows: 2048, cols: 128 });
        c.add("vocabulary", RowsParams { rows: 1, cols: 262_144 });
    }
}

pub(crate) fn argmax(r: &mut Reference<'_>) {
    let p: RowsParams = r.params();
    let x = r.f64s("x");
    let (mut index, mut value) = (Vec::new(), Vec::new());
    for row in x.chunks(p.cols as usize) {
        let poisoned = is_poisoned(row);
        let best = order(row)[0];
        index.push(if poisoned { NOTHING } else { best as f64 });
        value.push(if poisoned { f64::NAN } else { row[best] });
    }
    r.expect("index", index, Tolerance::EXACT);
    r.expect("value", value, Tolerance::EXACT);
}

/// Normal values, with `value` at `at`.
fn with(at: usize, value: f32) -> Input {
    Input::custom(move |rng, bytes| {
        let mut data = Input::Normal(1.0).make(rng, crate::DType::F32, bytes / 4);
        data[at * 4..at * 4 + 4].copy_from_slice(&value.to_ne_bytes());
        data
    })
}

pub(crate) fn argmax_cases(c: &mut Cases) {
    for (rows, cols) in [(2, 5), (1, 1), (3, 31), (2, 257), (1, 30_522), (2, 16_385)] {
        c.add(format!("rows={rows} cols={cols}"), RowsParams { rows, cols });
    }
    let n = 40_000;
    let one = RowsParams { rows: 1, cols: n };
    c.add("many ties", one).input("x", Input::Integers(-3, 3));
    c.add("zeros tie", RowsParams { rows: 1, cols: 7 }).input("x", Input::Values(vec![-1.0, -0.0, 0.0]));
    c.add("all equal", one).input("x", Input::Values(vec![-7.5]));
    c.add("all -inf", one).input("x", Input::Values(vec![f64::NEG_INFINITY]));
    c.add("one NaN", one).input("x", with(33_333, f32::NAN));
    c.add("one +inf", one).input("x", with(39_999, f32::INFINITY));
    c.add("one -inf", one).input("x", with(0, f32::NEG_INFINITY));
    c.add("the last element", one).input("x", with(39_999, 99.0));
    if c.intensity >= 2 {
        c.add("vocabulary", RowsParams { rows: 1, cols: 262_144 });
    }
    c.bench("rows=1 cols=151936", RowsParams { rows: 1, cols: 151_936 }).on_gpus();
}

pub(crate) fn top_k(r: &mut Reference<'_>) {
    let p: TopKParams = r.params();
    let x = r.f64s("x");
    let best: Vec<usize> = order(&x).into_iter().filter(|&i| !x[i].is_nan()).take(p.k as usize).collect();
    let slots = || (0..p.k as usize).map(|i| best.get(i));
    let indices: Vec<f64> = slots().map(|i| i.map_or(NOTHING, |&i| i as f64)).collect();
    let values: Vec<f64> = slots().map(|i| i.map_or(f64::NEG_INFINITY, |&i| x[i])).collect();
    r.expect("indices", indices, Tolerance::EXACT);
    r.expect("values", values, Tolerance::EXACT);
}

pub(crate) fn top_k_cases(c: &mut Cases) {
    for (n, k) in [(5, 3), (1, 1), (128, 128), (129, 128), (1000, 40), (16_384, 1), (16_385, 64), (50_000, 128)] {
        c.add(format!("n={n} k={k}"), TopKParams { n, k });
        c.add(format!("n={n} k={k}, many ties"), TopKParams { n, k }).input("x", Input::Integers(-3, 3));
        c.add(format!("n={n} k={k}, awkward values"), TopKParams { n, k }).input("x", awkward());
    }
    c.add("all NaN", TopKParams { n: 70, k: 3 }).input("x", Input::Values(vec![f64::NAN]));
    c.add("fewer than k numbers", TopKParams { n: 70, k: 50 }).input("x", Input::Values(vec![f64::NAN, 1.0, f64::NAN]));
    c.add("all -inf", TopKParams { n: 70, k: 3 }).input("x", Input::Values(vec![f64::NEG_INFINITY]));
    if c.intensity >= 2 {
        c.add("vocabulary", TopKParams { n: 262_144, k: 64 });
    }
    c.bench("n=151936 k=64", TopKParams { n: 151_936, k: 64 }).on_gpus();
}

pub(crate) fn softmax_sample(r: &mut Reference<'_>) {
    let p: SoftmaxSampleParams = r.params();
    let x = r.f64s("x");
    if is_poisoned(&x) {
        r.expect("token", [NOTHING], Tolerance::EXACT);
        r.expect("logprob", [f64::NAN], Tolerance::EXACT);
        return;
    }
    let y: Vec<f64> = x.iter().map(|v| v / f64::from(p.temperature)).collect();
    let top = y.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
    let e: Vec<f64> = y.iter().map(|v| (v - top).exp()).collect();
    let total: f64 = e.iter().sum();
    let mut running = 0.0;
    let token = e.iter().position(|e| {
        running += e;
        running > f64::from(p.u) * total
    });
    let token = token.unwrap_or_else(|| e.iter().rposition(|e| *e > 0.0).unwrap_or(0));
    r.expect("token", [token as f64], Tolerance::EXACT);
    r.expect("logprob", [y[token] - top - total.ln()], Tolerance::rel(1e-5, 1e-5));
}

/// Values of `u` are far from the steps of the distribution: which side of a step a sum falls on is a matter of rounding, which a test
/// of its own covers.
pub(crate) fn softmax_sample_cases(c: &mut Cases) {
    let params = |n, temperature, u| SoftmaxSampleParams { n, temperature, u };
    c.add("one logit", params(1, 0.7, 0.999));
    for temperature in [0.01, 0.7, 1.0, 10.0] {
        for u in [0.0, 0.1, 0.45, 0.9] {
            // The first token's weight is below the range of f32 there, which counts as zero and takes no draw.
            if temperature < 0.1 && u == 0.0 {
                continue;
            }
            let logits = Input::Values(vec![0.25, -1.0, 2.0, f64::NEG_INFINITY, 1.5]);
            c.add(format!("temperature={temperature} u={u}"), params(5, temperature, u)).input("x", logits);
        }
    }
    for (n, at) in [(1000u32, 0u32), (1000, 999), (16_385, 16_384), (40_000, 20_000)] {
        let u = (f64::from(at) + 0.5) / f64::from(n);
        c.add(format!("uniform over {n}, token {at}"), params(n, 1.0, u as f32)).input("x", Input::Values(vec![3.5]));
    }
    let masked = || Input::Values(vec![f64::NEG_INFINITY, 1.0, f64::NEG_INFINITY, 1.0]);
    c.add("u = 0 takes no token of probability zero", params(4, 1.0, 0.0)).input("x", masked());
    c.add("u near 1 takes no token of probability zero", params(4, 1.0, 0.999_999_9)).input("x", masked());
    c.add("large logits", params(3, 0.01, 0.5)).input("x", Input::Values(vec![3e38, 1e38, -3e38]));
    c.add("all -inf", params(40, 1.0, 0.5)).input("x", Input::Values(vec![f64::NEG_INFINITY]));
    c.add("one NaN", params(40_000, 1.0, 0.5)).input("x", with(20_000, f32::NAN));
    c.add("one +inf", params(40_000, 1.0, 0.5)).input("x", with(39_999, f32::INFINITY));
    if c.intensity >= 2 {
        c.add("vocabulary", params(262_144, 1.0, 0.500_001)).input("x", Input::Values(vec![0.0]));
    }
    c.bench("n=151936", params(151_936, 1.0, 0.5)).on_gpus();
}
