//! From a row of logits to a token.
//!
//! The order of the steps:
//!
//! 1. logit bias is added;
//! 2. frequency and presence penalties are subtracted, for tokens that were generated;
//! 3. repetition penalty, for tokens of the prompt and generated ones: a logit of at least 0 is divided by it, one below is multiplied;
//! 4. a temperature below 1e-5 takes the highest logit (the lowest id of equals) and stops here;
//! 5. top-k keeps the k highest logits;
//! 6. top-p keeps the most probable tokens until their sum reaches p, at least one; probabilities are those of temperature 1 among the
//!    tokens kept so far;
//! 7. min-p keeps the tokens whose probability is at least `min_p` times the highest one;
//! 8. logits are divided by the temperature, and one token is drawn.
//!
//! Temperature comes after truncation, so that a higher one never lets in tokens that a lower one would have cut.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use kernelry::{Error, Result};

const OP: &str = "sample";

/// Below this temperature the highest logit is taken.
pub const GREEDY_TEMPERATURE: f32 = 1e-5;

/// How tokens are chosen. The defaults are those of a library call; [`SamplingParams::greedy`] is deterministic.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Divides the logits before drawing; below [`GREEDY_TEMPERATURE`] the highest logit is taken.
    pub temperature: f32,
    /// Keep this many tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens up to this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this probable, relative to the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Weakens tokens of the prompt and the text so far; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted from a logit once for each time the token was generated.
    pub frequency_penalty: f32,
    /// Subtracted from a logit if the token was generated.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens, of one listed twice the sum; minus infinity forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, prompt and parameters give the same text; `None` takes a random one, see [`Sampler::seed`].
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.7,
            top_k: 50,
            top_p: 0.9,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Always the highest logit.
    pub fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, ..SamplingParams::default() }
    }

    /// Drawing from the whole distribution at a temperature.
    pub fn at_temperature(temperature: f32) -> SamplingParams {
        SamplingParams { temperature, top_k: 0, top_p: 1.0, ..SamplingParams::default() }
    }

    /// Is every choice the highest logit?
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_TEMPERATURE
    }

    /// Does a choice depend on the tokens before it?
    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// Do bias or penalties change logits?
    pub fn changes_logits(&self) -> bool {
        self.penalises() || !self.logit_bias.is_empty()
    }

    /// How many of the highest logits, once bias and penalties have changed them, decide the choice from a row of `vocab`: see
    /// [`Sampler::sample_from`]. `None` if all of them do.
    pub fn candidates(&self, vocab: usize) -> Option<usize> {
        let k = if self.is_greedy() { 1 } else { self.top_k };
        (k > 0 && (k < vocab || self.is_greedy())).then_some(k)
    }

    /// Sums the biases of each token, in the order of the list, so that one rounding of the logit is left.
    fn merge_bias(&mut self) {
        let mut places = HashMap::new();
        let mut merged: Vec<(u32, f32)> = Vec::with_capacity(self.logit_bias.len());
        for &(id, bias) in &self.logit_bias {
            match places.get(&id).and_then(|&at: &usize| merged.get_mut(at)) {
                Some((_, sum)) => *sum += bias,
                None => {
                    places.insert(id, merged.len());
                    merged.push((id, bias));
                }
            }
        }
        self.logit_bias = merged;
    }

    /// # Errors
    /// [`Error::InvalidArgument`] that names the parameter outside its range.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: f32, valid: bool, expected: &str| {
            if valid { Ok(()) } else { Err(Error::invalid(OP, format!("{name}: got {value}, expected {expected}"))) }
        };
        check("temperature", self.temperature, self.temperature >= 0.0 && self.temperature.is_finite(), "a finite number of at least 0")?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "more than 0 and at most 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1")?;
        let penalty = self.repetition_penalty;
        check("repetition_penalty", penalty, penalty > 0.0 && penalty.is_finite(), "a finite number above 0")?;
        check("frequency_penalty", self.frequency_penalty, self.frequency_penalty.is_finite(), "a finite number")?;
        check("presence_penalty", self.presence_penalty, self.presence_penalty.is_finite(), "a finite number")?;
        for &(id, bias) in &self.logit_bias {
            check(&format!("logit_bias of {id}"), bias, !bias.is_nan() && bias < f32::INFINITY, "a number below infinity")?;
        }
        Ok(())
    }
}

/// Counter-based generator: draw `n` of a seed is a hash of both (the SplitMix64 sequence), so that it does not depend on anything that
/// happened before.
#[derive(Clone, Debug)]
struct CounterRng {
    seed: u64,
    draws: u64,
}

impl CounterRng {
    /// Uniform in `[0, 1)`, 53 bits.
    fn next(&mut self) -> f64 {
        self.draws += 1;
        let mut x = mix(self.seed).wrapping_add(self.draws.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        x = mix(x);
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its logit.
    pub logit: f32,
    /// The token.
    pub id: u32,
}

impl Candidate {
    /// Higher logit first, then lower id. Zeros are equal, whatever their sign; there is no NaN.
    fn rank(&self, other: &Candidate) -> std::cmp::Ordering {
        (other.logit + 0.0).total_cmp(&(self.logit + 0.0)).then(self.id.cmp(&other.id))
    }
}

/// Chooses the tokens of one request. Holds the generator, the history that penalties need, and buffers that are used again.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: CounterRng,
    /// Every token of the prompt and the text, with how often it was generated.
    seen: HashMap<u32, u32>,
    candidates: Vec<Candidate>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler for one request.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the parameter outside its range.
    pub fn new(mut params: SamplingParams) -> Result<Sampler> {
        params.validate()?;
        params.merge_bias();
        let seed = params.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        let rng = CounterRng { seed, draws: 0 };
        Ok(Sampler { params, rng, seen: HashMap::new(), candidates: Vec::new(), weights: Vec::new() })
    }

    /// The seed in use, to repeat a request that did not give one.
    pub fn seed(&self) -> u64 {
        self.rng.seed
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Tells the sampler the tokens of the prompt.
    pub fn observe_prompt(&mut self, ids: &[u32]) {
        if self.params.penalises() {
            for &id in ids {
                self.seen.entry(id).or_default();
            }
        }
    }

    /// Tells the sampler a token that became part of the text. [`sample`](Self::sample) does this for the token it returns.
    pub fn observe(&mut self, id: u32) {
        if self.params.penalises() {
            let generated = self.seen.entry(id).or_default();
            *generated = generated.saturating_add(1);
        }
    }

    /// Chooses a token from `logits`, one row. Ids at or past the end of the row are never chosen: cut a row that is longer than the
    /// vocabulary. Bias and penalties are written into the row.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the row is empty or holds a NaN or +infinity, if every logit is −infinity, or if a bias names an id
    /// outside the row.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        self.adjust(logits)?;
        let max = row_max(logits)?;
        let id = if self.params.is_greedy() {
            argmax(logits, max)
        } else {
            self.gather(logits, max);
            self.draw(max)
        };
        self.chosen(id)
    }

    /// Chooses a token from the highest logits of a row, in order of rank and with bias and penalties in them: the same token, by the same draw, as
    /// [`sample`](Self::sample) of the whole row. [`SamplingParams::candidates`] says how many must be given, if there are so many above −infinity; more are not looked at.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are none, or if the parameters ask for the whole row.
    pub fn sample_from(&mut self, candidates: &[Candidate]) -> Result<u32> {
        let Some(k) = self.params.candidates(usize::MAX) else {
            return Err(Error::invalid(OP, "candidates: got parameters that need every logit, expected top-k or none but the highest"));
        };
        let Some(best) = candidates.first() else {
            return Err(Error::invalid(OP, "candidates: got none, expected at least one"));
        };
        let id = if self.params.is_greedy() {
            Some(best.id)
        } else {
            self.candidates.clear();
            self.candidates.extend(candidates.iter().take(k));
            self.keep_top_p(best.logit);
            self.keep_min_p(best.logit);
            self.draw(best.logit)
        };
        self.chosen(id)
    }

    fn chosen(&mut self, id: Option<u32>) -> Result<u32> {
        let id = id.ok_or_else(|| Error::invalid(OP, "logits: got no candidate, expected at least one"))?;
        self.observe(id);
        Ok(id)
    }

    /// Steps 1 to 3.
    fn adjust(&self, logits: &mut [f32]) -> Result<()> {
        let len = logits.len();
        for &(id, bias) in &self.params.logit_bias {
            let Some(x) = logits.get_mut(id as usize) else {
                return Err(Error::invalid(OP, format!("logit_bias: got id {id}, expected an id below {len}")));
            };
            *x += bias;
        }
        let p = &self.params;
        for (&id, &generated) in &self.seen {
            let Some(x) = logits.get_mut(id as usize) else { continue };
            if generated > 0 {
                *x -= p.frequency_penalty * generated as f32 + p.presence_penalty;
            }
            if p.repetition_penalty != 1.0 {
                *x = if *x >= 0.0 { *x / p.repetition_penalty } else { *x * p.repetition_penalty };
            }
        }
        Ok(())
    }

    /// Steps 5 to 7: fills `candidates`.
    fn gather(&mut self, logits: &[f32], max: f32) {
        let SamplingParams { top_k, top_p, min_p, .. } = self.params;
        self.candidates.clear();
        if top_k > 0 && top_k < logits.len() {
            select_top_k(logits, top_k, &mut self.candidates);
            self.keep_top_p(max);
        } else if top_p < 1.0 {
            let goal = f64::from(top_p) * exp_sum(logits, max);
            select_top_p(logits, max, goal, &mut self.candidates);
        } else {
            let cut = min_cut(max, min_p).max(f32::MIN);
            self.candidates.extend((0u32..).zip(logits).filter(|&(_, &x)| x >= cut).map(|(id, &logit)| Candidate { logit, id }));
            return;
        }
        self.keep_min_p(max);
    }

    /// Step 6 among the candidates, which are in order of rank.
    fn keep_top_p(&mut self, max: f32) {
        if self.params.top_p < 1.0 {
            let total: f64 = self.candidates.iter().map(|c| f64::from(c.logit - max).exp()).sum();
            rank_until(&mut self.candidates, max, f64::from(self.params.top_p) * total);
        }
    }

    /// Step 7 among the candidates, which are in order of rank.
    fn keep_min_p(&mut self, max: f32) {
        let cut = min_cut(max, self.params.min_p);
        let kept = self.candidates.iter().position(|c| c.logit < cut).unwrap_or(self.candidates.len());
        self.candidates.truncate(kept.max(1));
    }

    /// Step 8.
    fn draw(&mut self, max: f32) -> Option<u32> {
        let scale = 1.0 / f64::from(self.params.temperature);
        self.weights.clear();
        let mut total = 0.0;
        for c in &self.candidates {
            total += (f64::from(c.logit - max) * scale).exp();
            self.weights.push(total);
        }
        let target = self.rng.next() * total;
        let at = self.weights.partition_point(|&sum| sum <= target).min(self.candidates.len().saturating_sub(1));
        self.candidates.get(at).map(|c| c.id)
    }
}

/// The lowest logit that min-p keeps.
fn min_cut(max: f32, min_p: f32) -> f32 {
    if min_p > 0.0 { max + min_p.ln() } else { f32::NEG_INFINITY }
}

/// The highest logit.
///
/// # Errors
/// [`Error::InvalidArgument`] for an empty row, NaN, +infinity, or nothing but −infinity.
fn row_max(logits: &[f32]) -> Result<f32> {
    let mut max = f32::NEG_INFINITY;
    let mut valid = true;
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        let mut fine = true;
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            fine &= x < f32::INFINITY;
            *lane = if x > *lane { x } else { *lane };
        }
        valid &= fine;
    }
    for &x in lanes.iter().chain(rest) {
        valid &= x < f32::INFINITY;
        max = if x > max { x } else { max };
    }
    if !valid {
        let at = logits.iter().position(|&x| x.is_nan() || x == f32::INFINITY).unwrap_or(0);
        let got = logits.get(at).copied().unwrap_or(f32::NAN);
        return Err(Error::invalid(OP, format!("logits: got {got} at id {at}, expected numbers below infinity")));
    }
    if max == f32::NEG_INFINITY {
        return Err(Error::invalid(OP, format!("logits: got no number above -inf among {}, expected at least one", logits.len())));
    }
    Ok(max)
}

/// Logits looked at together: enough for the widest vector unit, few enough to stay in registers.
const LANES: usize = 32;

fn argmax(logits: &[f32], max: f32) -> Option<u32> {
    logits.iter().position(|&x| x == max).and_then(|at| u32::try_from(at).ok())
}

/// The `k` highest logits in order of rank. Blocks that hold nothing above the lowest of the best so far are passed over whole.
fn select_top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    // A buffer of twice the size is cut back to k whenever it is full: amortised constant time for each candidate that gets in.
    let capacity = k.saturating_mul(2).max(64);
    out.clear();
    let mut floor = f32::NEG_INFINITY;
    let mut base = 0u32;
    for block in logits.chunks(LANES) {
        let mut any = false;
        for &x in block {
            any |= x > floor;
        }
        if any {
            for (id, &logit) in (base..).zip(block) {
                if logit > floor {
                    out.push(Candidate { logit, id });
                    if out.len() == capacity {
                        out.select_nth_unstable_by(k - 1, Candidate::rank);
                        out.truncate(k);
                        // Later ids lose ties, so only higher logits can still get in.
                        floor = out.last().map_or(floor, |c| c.logit);
                    }
                }
            }
        }
        base += LANES as u32;
    }
    out.sort_unstable_by(Candidate::rank);
    out.truncate(k);
}

/// Top-p over the whole row without sorting it: candidates are taken from a growing band below the highest logit until they hold
/// the mass.
fn select_top_p(logits: &[f32], max: f32, goal: f64, out: &mut Vec<Candidate>) {
    for band in [4.0, 8.0, 16.0, f32::INFINITY] {
        let floor = (max - band).max(f32::MIN);
        out.clear();
        let mut base = 0u32;
        let mut mass = 0.0;
        for block in logits.chunks(LANES) {
            let mut any = false;
            for &x in block {
                any |= x >= floor;
            }
            if any {
                for (id, &logit) in (base..).zip(block).filter(|&(_, &x)| x >= floor) {
                    mass += f64::from(logit - max).exp();
                    out.push(Candidate { logit, id });
                }
            }
            base += LANES as u32;
        }
        if mass >= goal || band == f32::INFINITY {
            rank_until(out, max, goal);
            return;
        }
    }
}

/// Ranks as many candidates as are needed to reach `goal`, and drops the others.
fn rank_until(candidates: &mut Vec<Candidate>, max: f32, goal: f64) {
    let mut ranked = 0;
    let mut step = 64;
    let mut sum = 0.0;
    while ranked < candidates.len() {
        let Some(rest) = candidates.get_mut(ranked..) else { return };
        let take = step.min(rest.len());
        if take < rest.len() {
            rest.select_nth_unstable_by(take - 1, Candidate::rank);
        }
        let Some(head) = rest.get_mut(..take) else { return };
        head.sort_unstable_by(Candidate::rank);
        for (at, c) in head.iter().enumerate() {
            sum += f64::from(c.logit - max).exp();
            if sum >= goal {
                candidates.truncate(ranked + at + 1);
                return;
            }
        }
        ranked += take;
        step *= 4;
    }
}

/// Sum of `exp(x − max)` of a row, in f64 for each block of f32.
fn exp_sum(logits: &[f32], max: f32) -> f64 {
    let mut total = 0.0;
    for block in logits.chunks(1024) {
        let mut lanes = [0.0f32; 16];
        let (chunks, rest) = block.as_chunks::<16>();
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += exp_nonpositive(x - max);
            }
        }
        total += f64::from(lanes.iter().sum::<f32>());
        total += rest.iter().map(|&x| f64::from(exp_nonpositive(x - max))).sum::<f64>();
    }
    total
}

/// `exp(x)` for x ≤ 0 with a relative error of about 2e-7; below −87 it is 0. Without branches or calls, so that it compiles to vector code
/// (range reduction by ln 2, then the Taylor polynomial of degree 6).
fn exp_nonpositive(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer in the low bits
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut y = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        y = y * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { y * power }
}

/// Natural logarithms of the probabilities (temperature 1, nothing cut) of the `n` most probable tokens, most probable first.
///
/// # Errors
/// [`Error::InvalidArgument`] as for [`Sampler::sample`].
pub fn top_logprobs(logits: &[f32], n: usize) -> Result<Vec<(u32, f32)>> {
    let max = row_max(logits)?;
    let log_sum = exp_sum(logits, max).ln() as f32;
    let mut candidates = Vec::new();
    if n > 0 {
        select_top_k(logits, n, &mut candidates);
    }
    Ok(candidates.into_iter().map(|c| (c.id, c.logit - max - log_sum)).collect())
}

/// Natural logarithm of the probability (temperature 1, nothing cut) of one token.
///
/// # Errors
/// [`Error::InvalidArgument`] as for [`Sampler::sample`], or if the id is outside the row.
pub fn logprob(logits: &[f32], id: u32) -> Result<f32> {
    let max = row_max(logits)?;
    let Some(x) = logits.get(id as usize) else {
        return Err(Error::invalid(OP, format!("id: got {id}, expected an id below {}", logits.len())));
    };
    Ok(x - max - exp_sum(logits, max).ln() as f32)
}

#[cfg(test)]
mod tests;
