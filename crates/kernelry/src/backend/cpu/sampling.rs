//! Arg-max, top-k, sorting and sampling on the CPU. Long rows are cut into blocks of a fixed length, so that the result does not depend
//! on the number of threads.

use std::cell::RefCell;

use super::CpuCall;
use super::parallel::for_rows;
use super::vector::{Isa, VectorKernel, dispatch};
use crate::ops::sampling::{CandidatesParams, LogitPenaltiesParams, NO_TOKEN, RowsParams, SORT_ROOM, SoftmaxSampleParams, TopKParams};

/// Elements of a block.
const BLOCK: usize = 16_384;

/// Largest element of a block, and whether all elements are below +inf (NaN is not).
#[derive(Clone, Copy)]
struct Top {
    max: f32,
    sane: bool,
}

fn block_top(x: &[f32]) -> Top {
    // Sixteen lanes without branches, which become vector code.
    let (mut max, mut sane) = ([f32::NEG_INFINITY; 16], [true; 16]);
    let chunks = x.chunks_exact(16);
    let tail = chunks.remainder();
    let mut take = |lane: usize, v: f32| {
        max[lane] = if v > max[lane] { v } else { max[lane] };
        sane[lane] &= v < f32::INFINITY;
    };
    for chunk in chunks {
        for (lane, v) in chunk.iter().enumerate() {
            take(lane, *v);
        }
    }
    for (lane, v) in tail.iter().enumerate() {
        take(lane, *v);
    }
    Top { max: max.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v)), sane: sane.iter().all(|s| *s) }
}

/// Largest element of a row, unless the row holds NaN or +inf, or nothing but -inf.
fn row_max(x: &[f32]) -> Option<f32> {
    let mut tops = vec![Top { max: f32::NEG_INFINITY, sane: false }; x.len().div_ceil(BLOCK)];
    for_rows(&mut tops, 1, BLOCK / 8, |i, top| top.fill(block_top(&x[i * BLOCK..((i + 1) * BLOCK).min(x.len())])));
    let max = tops.iter().fold(f32::NEG_INFINITY, |m, t| m.max(t.max));
    (tops.iter().all(|t| t.sane) && max > f32::NEG_INFINITY).then_some(max)
}

pub(crate) fn argmax(call: &CpuCall<'_>) {
    let p: RowsParams = call.params();
    let x = call.input::<f32>(0);
    let (index, value) = (call.output::<u32>(1), call.output::<f32>(2));
    for ((row, index), value) in x.chunks(p.cols as usize).zip(index).zip(value) {
        let max = row_max(row);
        let at = max.and_then(|max| row.iter().position(|v| *v == max));
        *index = at.map_or(NO_TOKEN, |at| at as u32);
        *value = at.map_or(f32::NAN, |at| row[at]);
    }
}

thread_local! {
    static KEYS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Orders like the value, descending; zeros are equal and NaN comes last.
fn descending(v: f32) -> u32 {
    if v.is_nan() {
        return u32::MAX;
    }
    let bits = if v == 0.0 { 0 } else { v.to_bits() };
    !(if bits >> 31 == 1 { !bits } else { bits | 1 << 31 })
}

pub(crate) fn argsort_desc(call: &CpuCall<'_>) {
    let p: RowsParams = call.params();
    let x = call.input::<f32>(0);
    let cols = p.cols as usize;
    for_rows(call.output::<u32>(1), cols, cols * 20, |r, ids| {
        KEYS.with_borrow_mut(|keys| {
            keys.clear();
            let row = &x[r * cols..(r + 1) * cols];
            // The index below the value breaks ties, so that an unstable sort is enough.
            keys.extend(row.iter().enumerate().map(|(i, v)| u64::from(descending(*v)) << 32 | i as u64));
            keys.sort_unstable();
            ids.iter_mut().zip(keys.iter()).for_each(|(id, key)| *id = *key as u32);
        });
    });
}

/// Elements in order of selection: value descending, then index.
struct Selected {
    k: usize,
    items: Vec<(f32, u32)>,
}

impl Selected {
    /// Takes an element with a higher index than all before.
    fn offer(&mut self, value: f32, index: u32) {
        let at = self.items.partition_point(|(v, _)| *v >= value);
        self.items.truncate(self.k - 1);
        self.items.insert(at.min(self.items.len()), (value, index));
    }

    /// Selects from elements `first ..`.
    fn scan(&mut self, x: &[f32], first: usize) {
        for (i, chunk) in x.chunks(64).enumerate() {
            let base = first + i * 64;
            match self.items.last() {
                Some(&(worst, _)) if self.items.len() == self.k => {
                    // Most chunks hold nothing larger than what is selected.
                    if chunk.iter().fold(false, |any, v| any | (*v > worst)) {
                        self.scan_chunk(chunk, base);
                    }
                }
                _ => self.scan_chunk(chunk, base),
            }
        }
    }

    fn scan_chunk(&mut self, chunk: &[f32], base: usize) {
        for (j, v) in chunk.iter().enumerate() {
            let full = self.items.len() == self.k;
            // A later element must be larger; NaN is larger than nothing.
            if if full { self.items.last().is_some_and(|(worst, _)| v > worst) } else { !v.is_nan() } {
                self.offer(*v, (base + j) as u32);
            }
        }
    }
}

pub(crate) fn top_k(call: &CpuCall<'_>) {
    let p: TopKParams = call.params();
    let x = call.input::<f32>(0);
    let k = p.k as usize;
    let select = |x: &[f32], first: usize| {
        let mut selected = Selected { k, items: Vec::with_capacity(k + 1) };
        selected.scan(x, first);
        selected.items
    };
    let mut blocks: Vec<Vec<(f32, u32)>> = vec![Vec::new(); x.len().div_ceil(BLOCK)];
    for_rows(&mut blocks, 1, BLOCK / 8, |i, block| {
        let first = i * BLOCK;
        block.fill(select(&x[first..(first + BLOCK).min(x.len())], first));
    });
    let mut best: Vec<(f32, u32)> = blocks.into_iter().flatten().collect();
    best.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal).then(a.1.cmp(&b.1)));
    let (indices, values) = (call.output::<u32>(1), call.output::<f32>(2));
    for (i, (index, value)) in indices.iter_mut().zip(values).enumerate() {
        (*value, *index) = best.get(i).copied().unwrap_or((f32::NEG_INFINITY, NO_TOKEN));
    }
}

/// Key of NaN and +inf among candidates: before all others, so that a bad row shows in its first candidate.
const BAD: u32 = 0;
/// A word that stands for no candidate.
const NOTHING: u64 = u64::MAX;
/// The word of -inf at column 0: candidates are below it.
const LOW: u64 = 0xff80_0000 << 32;

/// Element whose key is `key`; zeros are positive.
fn undescending(key: u32) -> f32 {
    let ordered = !key;
    f32::from_bits(if ordered >> 31 == 1 { ordered ^ 1 << 31 } else { !ordered })
}

/// The lowest words, at most `k`, sorted; `word` is taken if it is below `limit`.
struct Lowest {
    k: usize,
    words: Vec<u64>,
    limit: u64,
}

impl Lowest {
    fn offer(&mut self, word: u64) {
        if word < self.limit {
            self.words.push(word);
            // Cut back whenever there are twice as many: constant time for each, all in all.
            if self.words.len() == self.words.capacity() {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        if self.words.len() >= self.k {
            self.limit = *self.words.select_nth_unstable(self.k - 1).1 + 1;
            self.words.truncate(self.k);
        }
    }
}

/// The `out.len()` best of a row from element `first` on.
fn candidates_of(x: &[f32], first: usize, out: &mut [u64]) {
    let mut best = Lowest { k: out.len(), words: Vec::with_capacity((2 * out.len()).max(64)), limit: LOW };
    let mut floor = f32::NEG_INFINITY;
    for (i, chunk) in x.chunks(64).enumerate() {
        // Most chunks hold nothing above what is selected.
        if chunk.iter().fold(false, |any, v| any | (*v > floor) | v.is_nan()) {
            for (j, v) in chunk.iter().enumerate() {
                let key = if *v < f32::INFINITY { descending(*v) } else { BAD };
                best.offer(u64::from(key) << 32 | (first + i * 64 + j) as u64);
            }
            if best.limit != LOW {
                floor = undescending(((best.limit - 1) >> 32) as u32);
            }
        }
    }
    best.cut();
    best.words.sort_unstable();
    for (i, out) in out.iter_mut().enumerate() {
        *out = best.words.get(i).copied().unwrap_or(NOTHING);
    }
}

pub(crate) fn candidates(call: &CpuCall<'_>) {
    let p: CandidatesParams = call.params();
    let x = call.input::<f32>(0);
    let (cols, k, room) = (p.cols as usize, p.k as usize, SORT_ROOM as usize);
    let blocks = cols.div_ceil(room);
    let mut words = vec![NOTHING; p.rows as usize * blocks * k];
    for_rows(&mut words, k, room, |i, words| {
        let (row, first) = (i / blocks * cols, i % blocks * room);
        candidates_of(&x[row + first..row + (first + room).min(cols)], first, words);
    });
    let (keys, ids) = (call.output::<u32>(1), call.output::<u32>(2));
    for ((words, keys), ids) in words.chunks(blocks * k).zip(keys.chunks_mut(blocks * k)).zip(ids.chunks_mut(blocks * k)) {
        for (i, (key, id)) in keys.iter_mut().zip(ids).enumerate() {
            let word = words[i % blocks * k + i / blocks];
            (*key, *id) = ((word >> 32) as u32, word as u32);
        }
    }
}

pub(crate) fn candidates_merge(call: &CpuCall<'_>) {
    let p: CandidatesParams = call.params();
    let (keys, ids) = (call.input::<u32>(0), call.input::<u32>(1));
    let k = p.k as usize;
    let total = keys.len() / p.rows as usize;
    for ((out, keys), ids) in call.output::<u32>(2).chunks_mut(2 * k).zip(keys.chunks(total)).zip(ids.chunks(total)) {
        let mut best = Lowest { k, words: Vec::with_capacity((2 * k).max(64)), limit: LOW };
        keys.iter().zip(ids).for_each(|(key, id)| best.offer(u64::from(*key) << 32 | u64::from(*id)));
        best.cut();
        best.words.sort_unstable();
        let bad = best.words.first().is_none_or(|word| word >> 32 == u64::from(BAD));
        let (indices, values) = out.split_at_mut(k);
        for (i, (index, value)) in indices.iter_mut().zip(values).enumerate() {
            let (at, v) = match best.words.get(i) {
                _ if bad => (NO_TOKEN, f32::NAN),
                Some(word) => (*word as u32, undescending((word >> 32) as u32)),
                None => (NO_TOKEN, f32::NEG_INFINITY),
            };
            (*index, *value) = (at, v.to_bits());
        }
    }
}

pub(crate) fn logit_penalties(call: &CpuCall<'_>) {
    let p: LogitPenaltiesParams = call.params();
    let (x, bias, token) = (call.input::<f32>(0), call.input::<f32>(1), call.input::<u32>(2));
    let seen = call.output::<u32>(3);
    if let Some(times) = token.first().and_then(|token| seen.get_mut(*token as usize)) {
        *times = (*times).max(1).wrapping_add(1);
    }
    let seen: &[u32] = seen;
    for_rows(call.output::<f32>(4), BLOCK, BLOCK / 4, |block, y| {
        let first = block * BLOCK;
        for (((y, x), bias), times) in y.iter_mut().zip(&x[first..]).zip(&bias[first..]).zip(&seen[first..]) {
            *y = x + bias;
            if *times > 1 {
                *y -= p.frequency * (times - 1) as f32 + p.presence;
            }
            if *times > 0 && p.repetition != 1.0 {
                *y = if *y >= 0.0 { *y / p.repetition } else { *y * p.repetition };
            }
        }
    });
}

/// `exp((x - max) · inverse)` of a block.
struct Weights<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
    max: f32,
    inverse: f32,
}

impl VectorKernel for Weights<'_> {
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let n = self.x.len().min(self.out.len());
        let full = n / I::LANES * I::LANES;
        let (max, inverse) = (isa.splat(self.max), isa.splat(self.inverse));
        let mut i = 0;
        while i < full {
            // SAFETY: `i + LANES ≤ full`, which both slices have.
            unsafe {
                let x = isa.load(self.x.as_ptr().add(i));
                isa.store(self.out.as_mut_ptr().add(i), isa.exp(isa.mul(isa.sub(x, max), inverse)));
            }
            i += I::LANES;
        }
        for (o, x) in self.out[full..n].iter_mut().zip(&self.x[full..n]) {
            *o = ((x - self.max) * self.inverse).exp();
        }
    }
}

pub(crate) fn softmax_sample(call: &CpuCall<'_>) {
    let p: SoftmaxSampleParams = call.params();
    let x = call.input::<f32>(0);
    let (token, logprob) = (call.output::<u32>(1), call.output::<f32>(2));
    token.fill(NO_TOKEN);
    logprob.fill(f32::NAN);
    let Some(max) = row_max(x) else { return };
    let inverse = 1.0 / p.temperature;
    let mut weights = vec![0.0f32; x.len()];
    for_rows(&mut weights, BLOCK, BLOCK, |i, out| {
        let x = &x[i * BLOCK..][..out.len()];
        dispatch(Weights { x, out, max, inverse });
    });
    // Sums in f64: a running f32 sum over a vocabulary is off by more than the smallest probabilities.
    let mut sums = vec![0.0f64; weights.len().div_ceil(BLOCK)];
    let of_block = |i: usize| &weights[i * BLOCK..((i + 1) * BLOCK).min(weights.len())];
    for_rows(&mut sums, 1, BLOCK, |i, sum| sum.fill(of_block(i).iter().map(|w| f64::from(*w)).sum()));
    let total: f64 = sums.iter().sum();
    let target = f64::from(p.u) * total;
    let mut before = 0.0;
    let mut chosen = None;
    for (i, sum) in sums.iter().enumerate() {
        if before + sum > target {
            let mut running = before;
            let found = of_block(i).iter().position(|w| {
                running += f64::from(*w);
                running > target
            });
            chosen = found.map(|j| i * BLOCK + j);
            if chosen.is_some() {
                break;
            }
        }
        before += sum;
    }
    // Rounding may leave no such element: then the last one that has a probability.
    if let Some(at) = chosen.or_else(|| weights.iter().rposition(|w| *w > 0.0)) {
        token.fill(at as u32);
        logprob.fill(((f64::from(x[at]) - f64::from(max)) * f64::from(inverse) - total.ln()) as f32);
    }
}
