//! References and cases of the mixture-of-experts family.

use super::{Cases, Input, Reference, Tolerance};
use crate::DType;
use crate::ops::moe::{AccumulateParams, CombineParams, FlatParams, GateParams, GluParams, RouterParams};

const CLOSE: Tolerance = Tolerance::rel(1e-5, 1e-6);

/// Whether a row of scores cannot be ranked.
fn is_bad(row: &[f64]) -> bool {
    row.iter().any(|v| v.is_nan() || *v == f64::INFINITY) || row.iter().all(|v| *v == f64::NEG_INFINITY)
}

/// Indices by score, descending, the lower one first among equals.
fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b)));
    order
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
    let sum: f64 = x.iter().map(|v| (v - top).exp()).sum();
    x.iter().map(|v| (v - top).exp() / sum).collect()
}

/// Ids and weights of every token, from a function of its row number.
fn expect_routes(r: &mut Reference<'_>, routes: Vec<(Vec<usize>, Vec<f64>)>, tolerance: Tolerance) {
    let (ids, weights): (Vec<_>, Vec<_>) = routes.into_iter().unzip();
    r.expect("ids", ids.concat().into_iter().map(|id| id as f64), Tolerance::EXACT);
    r.expect("weights", weights.concat(), tolerance);
}

fn bad_route(k: usize) -> (Vec<usize>, Vec<f64>) {
    ((0..k).collect(), vec![f64::NAN; k])
}

pub(crate) fn route(r: &mut Reference<'_>) {
    let p: RouterParams = r.params();
    let (experts, k) = (p.n_experts as usize, p.top_k as usize);
    let scales = if r.kernel().starts_with("fused") { r.f64s("per_expert_scale") } else { vec![1.0; experts] };
    let of = |row: &[f64]| {
        if is_bad(row) {
            return bad_route(k);
        }
        // What is ranked are probabilities as f32 holds them: experts that underflow tie, and the lower index comes first.
        let p: Vec<f64> = softmax(row).into_iter().map(|p| f64::from(p as f32)).collect();
        let ids = ranked(&p)[..k].to_vec();
        let sum: f64 = ids.iter().map(|&id| p[id]).sum();
        let weights = ids.iter().map(|&id| p[id] / sum * scales[id]).collect();
        (ids, weights)
    };
    let routes = r.f64s("logits").chunks(experts).map(of).collect();
    expect_routes(r, routes, CLOSE);
}

pub(crate) fn gather(r: &mut Reference<'_>) {
    let p: RouterParams = r.params();
    let (experts, k) = (p.n_experts as usize, p.top_k as usize);
    let (probs, order, scales) = (r.f64s("probs"), r.u32s("order"), r.f64s("scale"));
    let of = |(probs, order): (&[f64], &[u32])| {
        let ids: Vec<usize> = order[..k].iter().map(|&id| id as usize).collect();
        if ids.iter().any(|&id| id >= experts) {
            return (ids, vec![f64::NAN; k]);
        }
        let sum: f64 = ids.iter().map(|&id| probs[id]).sum();
        let weight = |&id: &usize| if sum > 0.0 { probs[id] / sum * scales[id] } else { 0.0 };
        let weights = ids.iter().map(weight).collect();
        (ids, weights)
    };
    let routes = probs.chunks(experts).zip(order.chunks(experts)).map(of).collect();
    expect_routes(r, routes, CLOSE);
}

pub(crate) fn gate(r: &mut Reference<'_>) {
    let p: GateParams = r.params();
    let (dim, k) = (p.dim as usize, p.top_k as usize);
    let (x, router, norm_weight, scales) = (r.f64s("x"), r.f64s("router"), r.f64s("norm_weight"), r.f64s("scale"));
    let of = |x: &[f64]| {
        let root = (x.iter().map(|v| v * v).sum::<f64>() / dim as f64 + f64::from(p.eps)).sqrt();
        let y: Vec<f64> = x.iter().zip(&norm_weight).map(|(v, w)| v / root * w).collect();
        let logits: Vec<f64> = router.chunks(dim).map(|row| row.iter().zip(&y).map(|(a, b)| a * b).sum()).collect();
        if is_bad(&logits) {
            return bad_route(k);
        }
        let ids = ranked(&logits)[..k].to_vec();
        let chosen = softmax(&ids.iter().map(|&id| logits[id]).collect::<Vec<_>>());
        let scaled: Vec<f64> = chosen.iter().zip(&ids).map(|(p, &id)| p * scales[id]).collect();
        let sum: f64 = scaled.iter().sum();
        let weights = match p.renorm_after_scale {
            0 => scaled,
            _ => scaled.into_iter().map(|s| if sum == 0.0 { 0.0 } else { s / sum }).collect(),
        };
        (ids, weights)
    };
    let routes = x.chunks(dim).map(of).collect();
    expect_routes(r, routes, Tolerance::rel(1e-4, 1e-5));
}

/// The tanh form, whose tanh is exactly ±1 from 15 on.
fn gelu(x: f64) -> f64 {
    let t = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + if t.abs() >= 15.0 { t.signum() } else { t.tanh() })
}

pub(crate) fn gelu_mul(r: &mut Reference<'_>) {
    let values: Vec<f64> = if r.kernel().starts_with("fused") {
        r.f64s("gate").into_iter().zip(r.f64s("up")).map(|(g, u)| gelu(g) * u).collect()
    } else {
        let ffn = r.params::<GluParams>().ffn as usize;
        r.f64s("gate_up").chunks(2 * ffn).flat_map(|row| (0..ffn).map(|i| gelu(row[i]) * row[ffn + i]).collect::<Vec<_>>()).collect()
    };
    // What is left of a gate that is nearly closed has the absolute error of f32.
    let tolerance = if r.dtype("out") == DType::F32 { CLOSE } else { Tolerance::abs(1e-6).plus_ulps(1.0) };
    r.expect("out", values, tolerance);
}

pub(crate) fn combine(r: &mut Reference<'_>) {
    let p: CombineParams = r.params();
    let (dim, k) = (p.dim as usize, p.top_k as usize);
    let (y, weights) = (r.f64s("y"), r.f64s("weights"));
    let shared = (r.kernel() == "moe_weighted_reduce_f32").then(|| (r.f64s("shared_logit"), r.f64s("y_shared"), r.f64s("residual")));
    let mut out = Vec::new();
    for t in 0..p.n_tokens as usize {
        for d in 0..dim {
            let mut terms: Vec<f64> = (0..k).map(|j| weights[t * k + j] * y[(t * k + j) * dim + d]).collect();
            if let Some((logit, y, residual)) = &shared {
                terms.push(y[t * dim + d] / (1.0 + (-logit[t]).exp()));
                terms.extend(residual.get(t * dim + d));
            }
            // Relative to the terms: their sum may cancel.
            let size: f64 = terms.iter().map(|v| v.abs()).sum();
            out.push((terms.iter().sum(), Tolerance::abs(1e-6 + if size.is_finite() { 1e-6 * size } else { 0.0 })));
        }
    }
    r.expect_each("out", out);
}

pub(crate) fn zero(r: &mut Reference<'_>) {
    let n = r.params::<FlatParams>().n as usize;
    r.expect_bits("out", vec![0; 4 * n]);
}

pub(crate) fn accumulate(r: &mut Reference<'_>) {
    let p: AccumulateParams = r.params();
    let values: Vec<f64> = r.f64s("acc").into_iter().zip(r.f64s("y")).map(|(a, y)| a + f64::from(p.weight) * y).collect();
    r.expect("acc", values, Tolerance::rel(1e-5, 1e-6));
}

/// Rows of scores of which some cannot be ranked.
fn awkward() -> Input {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let rows = [[1.0, nan, 3.0, 2.0], [1.0, 2.0, 2.0, 0.5], [-inf, -inf, -inf, -inf], [0.0, -inf, 7.0, -inf], [inf, 1.0, 2.0, 3.0]];
    Input::Values([&rows.concat()[..], &[1e4, -1e4, 0.0, -200.0]].concat())
}

fn is_single(c: &Cases) -> bool {
    let name = c.kernel();
    (name.starts_with("fused_moe_routing") && !name.contains("batch")) || name == "moe_weighted_sum" || name == "moe_swiglu_batch"
}

pub(crate) fn router_cases(c: &mut Cases) {
    let single = is_single(c);
    let params = |n_tokens: u32, n_experts, top_k| RouterParams { n_tokens: if single { 1 } else { n_tokens }, n_experts, top_k };
    let shapes = [(5, 8, 2), (1, 1, 1), (3, 2, 2), (2, 6, 6), (3, 16, 4), (2, 48, 8), (2, 60, 4), (2, 64, 8), (2, 100, 9), (3, 128, 8)];
    for (n_tokens, n_experts, top_k) in shapes.into_iter().chain([(2, 256, 8), (1, 512, 32), (1, 1000, 64)]) {
        c.add(format!("tokens={n_tokens} experts={n_experts} top_k={top_k}"), params(n_tokens, n_experts, top_k))
            .input("logits", Input::Normal(2.0));
    }
    c.add("many ties", params(9, 60, 8)).input("logits", Input::Integers(-2, 2));
    c.add("all equal", params(2, 48, 8)).input("logits", Input::Values(vec![0.5]));
    c.add("masked experts fill up", params(1, 6, 4)).input("logits", Input::Values(vec![f64::NEG_INFINITY, 1.0]));
    c.add("one huge score", params(1, 6, 3)).input("logits", Input::Values(vec![0.0, 1.0, 1e4, 2.0, 3.0, -1e4]));
    c.add("rows that cannot be ranked", params(6, 4, 3)).input("logits", awkward());
    c.bench("tokens=1 experts=128 top_k=8", params(1, 128, 8));
    if !single {
        c.add("a prompt", params(513, 128, 8)).input("logits", Input::Normal(2.0));
        c.bench("tokens=4096 experts=128 top_k=8", params(4096, 128, 8));
    }
}

pub(crate) fn gather_cases(c: &mut Cases) {
    let params = |n_tokens, n_experts, top_k| RouterParams { n_tokens, n_experts, top_k };
    let order = |n: u32| Input::Words((0..n).rev().collect());
    for (n_tokens, n_experts, top_k) in [(5, 8, 2), (1, 1, 1), (3, 60, 8), (2, 128, 64)] {
        let case = c.add(format!("tokens={n_tokens} experts={n_experts} top_k={top_k}"), params(n_tokens, n_experts, top_k));
        case.input("probs", Input::Uniform(0.0, 1.0)).input("order", order(n_experts));
    }
    c.add("probabilities of zero", params(1, 8, 3)).input("probs", Input::Values(vec![0.0])).input("order", order(8));
    let order = Input::Words(vec![3, 8, 1, 0, 2, 5, 4, 7, 6, 7, 5, 4, 3, 2, 1, u32::MAX]);
    c.add("an id that is no expert", params(2, 8, 3)).input("probs", Input::Uniform(0.0, 1.0)).input("order", order);
    c.bench("tokens=1 experts=128 top_k=8", params(1, 128, 8));
}

pub(crate) fn gate_cases(c: &mut Cases) {
    let params =
        |n_tokens, dim, n_experts, top_k, renorm_after_scale| GateParams { n_tokens, dim, n_experts, top_k, eps: 1e-6, renorm_after_scale };
    for (n_tokens, dim, n_experts, top_k) in [(3, 64, 8, 2), (1, 1, 1, 1), (2, 33, 60, 4), (2, 256, 128, 8), (1, 2816, 128, 8)] {
        for renorm in [0, 1] {
            let label = format!("tokens={n_tokens} dim={dim} experts={n_experts} top_k={top_k} renorm={renorm}");
            c.add(label, params(n_tokens, dim, n_experts, top_k, renorm)).input("scale", Input::Uniform(0.5, 2.0));
        }
    }
    let negative = Input::Values(vec![1.0, -2.0]);
    c.add("factors of both signs", params(3, 64, 8, 3, 0)).input("scale", negative);
    c.add("factors of zero", params(3, 64, 8, 3, 1)).input("scale", Input::Values(vec![0.0]));
    c.add("a token of NaN", params(2, 4, 6, 2, 0)).input("x", Input::Values(vec![1.0, f64::NAN, 2.0, 1.0, 1.0, -1.0, 0.5, 2.0]));
    c.bench("tokens=1 dim=2816 experts=128 top_k=8", params(1, 2816, 128, 8, 0));
}

const GATES: [f64; 12] = [0.0, -0.0, 1e-3, -1e-3, 5.0, -5.0, 20.0, -20.0, 1e5, -1e5, 1e20, -1e20];

pub(crate) fn gelu_mul_cases(c: &mut Cases) {
    for n in [1, 3, 15, 16, 17, 255, 2047, 2049, 5632] {
        c.add(format!("n={n}"), FlatParams { n });
    }
    c.add("edges of the gate", FlatParams { n: 24 }).input("gate", Input::Values(GATES.to_vec()));
    c.add("in place of the gate", FlatParams { n: 5000 }).in_place("out", "gate");
    c.add("in place of up", FlatParams { n: 5000 }).in_place("out", "up");
    for rows in [1, 512] {
        c.bench(format!("n={rows}*2112"), FlatParams { n: rows * 2112 });
    }
}

pub(crate) fn glu_cases(c: &mut Cases) {
    let single = is_single(c);
    let params = |n_tokens: u32, top_k, ffn| GluParams { n_tokens: if single { 1 } else { n_tokens }, top_k, ffn };
    for (n_tokens, top_k, ffn) in [(3, 2, 5), (1, 1, 1), (2, 8, 3), (2, 3, 33), (2, 8, 704)] {
        c.add(format!("tokens={n_tokens} top_k={top_k} ffn={ffn}"), params(n_tokens, top_k, ffn));
    }
    c.add("edges", params(1, 2, 12)).input("gate_up", Input::Values([&GATES[..], &[1.0; 12]].concat()));
    c.bench("tokens=1 top_k=8 ffn=704", params(1, 8, 704));
    if !single {
        c.bench("tokens=512 top_k=8 ffn=704", params(512, 8, 704));
    }
}

fn combine_shapes(c: &mut Cases) {
    let single = is_single(c);
    let params = |n_tokens: u32, top_k, dim| CombineParams { n_tokens: if single { 1 } else { n_tokens }, top_k, dim };
    for (n_tokens, top_k, dim) in [(3, 2, 5), (1, 1, 1), (2, 8, 33), (2, 3, 64), (3, 8, 2048), (1, 8, 2816)] {
        c.add(format!("tokens={n_tokens} top_k={top_k} dim={dim}"), params(n_tokens, top_k, dim));
    }
    let weights = Input::Values(vec![0.0, 1.0, 0.5, 0.25]);
    let y = Input::Values([vec![f64::NAN; 8], vec![1.0; 8], vec![2.0; 16]].concat());
    c.add("an expert of weight zero gives NaN to its token", params(2, 2, 8)).input("weights", weights).input("y", y);
    c.bench("tokens=1 top_k=8 dim=2816", params(1, 8, 2816));
    if !single {
        c.bench("tokens=512 top_k=8 dim=2816", params(512, 8, 2816));
    }
}

pub(crate) fn combine_cases(c: &mut Cases) {
    combine_shapes(c);
}

pub(crate) fn combine_shared_cases(c: &mut Cases) {
    combine_shapes(c);
    let params = CombineParams { n_tokens: 4, top_k: 2, dim: 33 };
    c.add("without a residual", params).without("residual");
    let logits = Input::Values(vec![100.0, -100.0, f64::INFINITY, f64::NEG_INFINITY]);
    c.add("a shared expert that is open or closed", params).input("shared_logit", logits);
    c.add("in place of the residual", params).in_place("out", "residual");
    c.add("in place of the shared expert", params).in_place("out", "y_shared");
}

pub(crate) fn flat_cases(c: &mut Cases) {
    for n in [1, 3, 17, 5000] {
        c.add(format!("n={n}"), FlatParams { n });
    }
    c.bench("n=4194304", FlatParams { n: 1 << 22 });
}

pub(crate) fn accumulate_cases(c: &mut Cases) {
    for n in [1, 3, 17, 5000] {
        for weight in [0.37, 0.0, -2.0] {
            c.add(format!("n={n} weight={weight}"), AccumulateParams { n, weight });
        }
    }
    c.bench("n=4194304", AccumulateParams { n: 1 << 22, weight: 0.5 });
}
