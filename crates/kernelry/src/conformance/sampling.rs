//! References and cases of arg-max, top-k, sorting and sampling: whole sorts and sums in f64.

use std::cmp::Ordering;

use super::{Cases, Input, Reference, Tolerance};
use crate::ops::sampling::{CandidatesParams, LogitPenaltiesParams, RowsParams, SoftmaxSampleParams, TopKParams};

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

/// Columns that a block selects from.
const SHARE: usize = 2048;

/// The word of IEEE binary32 that orders as its value does, turned round: 0 for NaN and +inf, which make the row bad.
fn candidate_key(v: f64) -> f64 {
    if v.is_nan() || v == f64::INFINITY {
        return 0.0;
    }
    // Distance in representable values from zero, either way; +0 is 0x80000000 of 2^32, and keys count down.
    let bits = f64::from((v.abs() as f32).to_bits());
    let above = f64::from(0x8000_0000_u32);
    NOTHING
        - if v > 0.0 {
            above + bits
        } else if v < 0.0 {
            above - 1.0 - bits
        } else {
            above
        }
}

pub(crate) fn candidates(r: &mut Reference<'_>) {
    let p: CandidatesParams = r.params();
    let (cols, k) = (p.cols as usize, p.k as usize);
    let x = r.f64s("x");
    let (mut keys, mut ids) = (Vec::new(), Vec::new());
    for row in x.chunks(cols) {
        let best: Vec<Vec<(f64, usize)>> = (0..cols.div_ceil(SHARE))
            .map(|block| {
                let share = block * SHARE..((block + 1) * SHARE).min(cols);
                let mut words: Vec<(f64, usize)> =
                    share.filter(|i| row[*i] != f64::NEG_INFINITY).map(|i| (candidate_key(row[i]), i)).collect();
                words.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
                words
            })
            .collect();
        for rank in 0..k {
            keys.extend(best.iter().map(|words| words.get(rank).map_or(NOTHING, |w| w.0)));
            ids.extend(best.iter().map(|words| words.get(rank).map_or(NOTHING, |w| w.1 as f64)));
        }
    }
    r.expect("keys", keys, Tolerance::EXACT);
    r.expect("ids", ids, Tolerance::EXACT);
}

pub(crate) fn candidates_cases(c: &mut Cases) {
    for (rows, cols, k) in [
        (2, 5, 3),
        (1, 1, 1),
        (1, 64, 64),
        (1, 256, 256),
        (2, 300, 256),
        (3, 2047, 50),
        (2, 2048, 64),
        (2, 2049, 65),
        (1, 4095, 1),
        (1, 4100, 31),
        (1, 6144, 128),
        (1, 10_000, 40),
    ] {
        let p = CandidatesParams { rows, cols, k };
        let label = |what: &str| format!("rows={rows} cols={cols} k={k}{what}");
        c.add(label(""), p);
        c.add(label(", many ties"), p).input("x", Input::Integers(-3, 3));
        c.add(label(", awkward values"), p).input("x", awkward());
    }
    let one = CandidatesParams { rows: 1, cols: 5000, k: 40 };
    c.add("all equal", one).input("x", Input::Values(vec![-7.5]));
    c.add("all -inf", one).input("x", Input::Values(vec![f64::NEG_INFINITY]));
    c.add("few above -inf", one).input("x", Input::custom(few_above));
    c.add("NaN at the end", one).input("x", with(4999, f32::NAN));
    c.add("+inf at the end of a share", one).input("x", with(2047, f32::INFINITY));
    c.add("zeros and denormals", one).input("x", Input::Values(vec![-0.0, 0.0, -1e-45, 1e-45, -1e-40, 1e-40, -1.0]));
    c.add("ascending", one).input("x", Input::Values((0..5000).map(f64::from).collect()));
    if c.intensity >= 2 {
        c.add("vocabulary", CandidatesParams { rows: 1, cols: 262_144, k: 64 });
    }
    for k in [1, 20, 64, 128, 256] {
        c.bench(format!("rows=1 cols=152064 k={k}"), CandidatesParams { rows: 1, cols: 152_064, k }).on_gpus();
    }
}

/// -inf but for one element in a thousand.
fn few_above(rng: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    (0..bytes / 4).flat_map(|i| if i % 1000 == 77 { rng.f32() } else { f32::NEG_INFINITY }.to_ne_bytes()).collect()
}

pub(crate) fn candidates_merge(r: &mut Reference<'_>) {
    let p: CandidatesParams = r.params();
    let k = p.k as usize;
    let (keys, ids) = (r.f64s("keys"), r.f64s("ids"));
    let total = keys.len() / p.rows as usize;
    let mut best = Vec::new();
    for (keys, ids) in keys.chunks(total).zip(ids.chunks(total)) {
        let mut words: Vec<(f64, f64)> = keys.iter().zip(ids).filter(|w| *w.0 != NOTHING).map(|w| (*w.0, *w.1)).collect();
        words.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
        let bad = words.first().is_none_or(|w| w.0 == 0.0);
        let slot = |rank: usize| if bad { None } else { words.get(rank) };
        best.extend((0..k).map(|rank| slot(rank).map_or(NOTHING, |w| w.1)));
        best.extend((0..k).map(|rank| match slot(rank) {
            // What was counted up from the lowest value is turned back: below zero the bits count the other way, and have the sign.
            Some((key, _)) if NOTHING - key >= f64::from(0x8000_0000_u32) => NOTHING - key - f64::from(0x8000_0000_u32),
            Some((key, _)) => *key,
            None if bad => f64::from(0x7fc0_0000),
            None => f64::from(0xff80_0000_u32),
        }));
    }
    r.expect("best", best, Tolerance::EXACT);
}

/// Keys of finite values from these on, in this many steps, sorted by rank for each of `blocks` lists.
fn sorted_keys(blocks: usize, from: u32, steps: u32) -> Input {
    Input::custom(move |rng, bytes| {
        let mut lists: Vec<Vec<u32>> = (0..blocks).map(|_| (0..bytes / 4 / blocks).map(|_| from + rng.u32(0..steps)).collect()).collect();
        lists.iter_mut().for_each(|list| list.sort_unstable());
        (0..bytes / 4).flat_map(|i| lists[i % blocks][i / blocks].to_ne_bytes()).collect()
    })
}

/// Distinct columns that descend, so that ties are not in the order of memory.
fn descending_ids() -> Input {
    Input::custom(|_, bytes| (0..(bytes / 4) as u32).rev().flat_map(u32::to_ne_bytes).collect())
}

pub(crate) fn candidates_merge_cases(c: &mut Cases) {
    for (rows, cols, k) in
        [(2, 5, 3), (1, 1, 1), (2, 2048, 64), (2, 2049, 65), (1, 40_000, 1), (1, 70_000, 40), (1, 40_000, 256), (1, 131_073, 31)]
    {
        let p = CandidatesParams { rows, cols, k };
        let blocks = (cols as usize).div_ceil(SHARE);
        for (what, from, steps) in
            [("positive", 0x0080_0000, 0x7f00_0000), ("negative", 0x8000_0000, 0x7f80_0000), ("ties", 0x7fff_fff0, 9)]
        {
            let case = c.add(format!("rows={rows} cols={cols} k={k}, {what}"), p);
            case.input("keys", sorted_keys(blocks, from, steps)).input("ids", descending_ids());
        }
    }
    // Each list is better than the one before, or all are alike: more pass the first limit than fit.
    let p = CandidatesParams { rows: 1, cols: 150_000, k: 64 };
    let rising = |_: &mut fastrand::Rng, bytes: usize| {
        (0..(bytes / 4) as u32).flat_map(|i| (0x4000_0000 - i % 74 * 1000 + i / 74).to_ne_bytes()).collect()
    };
    c.add("lists that rise", p).input("keys", Input::custom(rising)).input("ids", descending_ids());
    c.add("all equal", p).input("keys", Input::Words(vec![0x4000_0000])).input("ids", descending_ids());
    c.add("one list of many has all", p)
        .input(
            "keys",
            Input::custom(|_, bytes| {
                (0..(bytes / 4) as u32).flat_map(|i| if i % 74 == 9 { 0x4000_0000 + i } else { u32::MAX }.to_ne_bytes()).collect()
            }),
        )
        .input("ids", descending_ids());
    c.add("nothing", p).input("keys", Input::Words(vec![u32::MAX])).input("ids", Input::Words(vec![u32::MAX]));
    c.add("fewer than k", p)
        .input(
            "keys",
            Input::custom(|_, bytes| {
                (0..(bytes / 4) as u32).flat_map(|i| if i < 50 { 0x4000_0000 + i } else { u32::MAX }.to_ne_bytes()).collect()
            }),
        )
        .input("ids", descending_ids());
    c.add("a bad one among them", p)
        .input(
            "keys",
            Input::custom(|_, bytes| {
                (0..(bytes / 4) as u32).flat_map(|i| if i == 73 { 0 } else { 0x4000_0000 + i }.to_ne_bytes()).collect()
            }),
        )
        .input("ids", descending_ids());
    for k in [1, 20, 64, 128, 256] {
        let case = c.bench(format!("rows=1 cols=152064 k={k}"), CandidatesParams { rows: 1, cols: 152_064, k });
        case.on_gpus().input("keys", sorted_keys(75, 0x3f00_0000, 0x0080_0000)).input("ids", descending_ids());
    }
}

/// Sums, products and quotients of f32 in f64 are rounded to f32 as if they were exact.
fn rounded(v: f64) -> f64 {
    f64::from(v as f32)
}

pub(crate) fn logit_penalties(r: &mut Reference<'_>) {
    let p: LogitPenaltiesParams = r.params();
    let (x, bias, token, mut seen) = (r.f64s("x"), r.f64s("bias"), r.f64s("token")[0], r.f64s("seen"));
    if let Some(times) = seen.get_mut(token as usize) {
        *times = times.max(1.0) + 1.0;
    }
    let mut y = Vec::new();
    for i in 0..p.n as usize {
        let mut v = rounded(x[i] + bias[i]);
        if seen[i] > 1.0 {
            v = rounded(v - rounded(rounded(f64::from(p.frequency) * (seen[i] - 1.0)) + f64::from(p.presence)));
        }
        if seen[i] > 0.0 {
            v = rounded(if v >= 0.0 { v / f64::from(p.repetition) } else { v * f64::from(p.repetition) });
        }
        y.push(v);
    }
    r.expect("seen", seen, Tolerance::EXACT);
    r.expect("y", y, Tolerance::EXACT);
}

pub(crate) fn logit_penalties_cases(c: &mut Cases) {
    for (n, token) in [(5u32, 2), (1, 0), (1, 1), (1023, 1022), (1024, 7), (1025, 1024), (20_000, 19_999), (20_000, u32::MAX)] {
        for (repetition, frequency, presence) in [(1.0, 0.0, 0.0), (1.3, 0.1, 0.7), (0.9, -0.3, 0.0)] {
            let p = LogitPenaltiesParams { n, repetition, frequency, presence };
            let case = c.add(format!("n={n} token={token} repetition={repetition} frequency={frequency}"), p);
            case.input("token", Input::Words(vec![token])).input("seen", Input::Integers(0, 5));
        }
    }
    let p = LogitPenaltiesParams { n: 3000, repetition: 1.5, frequency: 0.25, presence: 0.5 };
    let bias = Input::Values(vec![0.0, f64::NEG_INFINITY, -100.0, 5.0]);
    c.add("tokens that are forbidden", p).input("bias", bias).input("seen", Input::Integers(0, 2));
    c.add("awkward values", p).input("x", awkward()).input("bias", Input::Values(vec![0.0])).input("seen", Input::Integers(0, 2));
    c.bench("n=152064", LogitPenaltiesParams { n: 152_064, ..p }).on_gpus();
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
