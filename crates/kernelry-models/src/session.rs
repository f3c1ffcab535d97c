//! A session: the KV cache of one sequence, prompt processing, and the recorded decode step.

use kernelry::catalogue::StepU32;
use kernelry::ops::sampling::{Candidates, LogitPenalties, MAX_CANDIDATES, NO_TOKEN};
use kernelry::{Buffer, DType, Encoder, Error, Graph, Lease, Result, Submission};

use crate::forward::{Forward, Step};
use crate::model::{Inner, Model};
use crate::sampler::{Candidate, SamplingParams};

/// Slots of the step buffer: what changes from one decode step to the next.
mod slot {
    pub(super) const TOKEN: usize = 0;
    /// Position of the token: its row in the cache.
    pub(super) const POSITION: u32 = 1;
    /// Valid keys, this token's included.
    pub(super) const KEYS: u32 = 2;
    pub(super) const COUNT: usize = 3;
}

/// One sequence on a model: its caches and how many positions they hold.
pub struct Session {
    model: Model,
    caches: Vec<(Buffer, Buffer)>,
    len: usize,
    step: Buffer,
    /// Whether the kernels of a prompt and of the decode step have been built.
    warm: bool,
    decode: Option<DecodeGraph>,
    /// The same with a choice of the highest logits behind it: the one asked for last.
    choice: Option<(DecodeGraph, Choice)>,
    logits: Buffer,
    logits_host: Vec<f32>,
    candidates: Vec<Candidate>,
    /// What changes the logits before a choice.
    penalties: Option<Penalties>,
}

/// The decode step, recorded once and replayed for each token. The leases are the temporaries that the graph writes.
struct DecodeGraph {
    graph: Graph,
    _temporaries: Vec<Lease>,
}

/// The choice of the `k` highest of the first `vocab` logits.
struct Choice {
    vocab: usize,
    k: usize,
    /// `k` tokens, then the bits of their logits.
    best: Buffer,
    host: Vec<u32>,
}

/// Bias and penalties, and the tokens that they depend on, on the device.
struct Penalties {
    repetition: f32,
    frequency: f32,
    presence: f32,
    bias: Buffer,
    seen: Buffer,
    /// The logits that they make.
    changed: Buffer,
}

impl Session {
    pub(crate) fn new(model: &Model) -> Result<Session> {
        let inner = &model.inner;
        let c = &inner.config;
        let shape = [c.n_kv_heads, model.capacity(), c.head_dim];
        let cache = || inner.ctx.zeros(inner.options.kv_type.dtype(), &shape);
        let caches = (0..c.n_layers).map(|_| Ok((cache()?, cache()?))).collect::<Result<Vec<_>>>()?;
        let step_len = slot::COUNT;
        Ok(Session {
            model: model.clone(),
            caches,
            len: 0,
            step: inner.ctx.zeros(DType::U32, &[step_len])?,
            warm: false,
            decode: None,
            logits: inner.ctx.zeros(DType::F32, &[1, c.vocab])?,
            logits_host: vec![0.0; c.vocab],
            choice: None,
            candidates: Vec::new(),
            penalties: None,
        })
    }

    /// Positions in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that the cache has room for.
    pub fn capacity(&self) -> usize {
        self.model.capacity()
    }

    /// The model it runs on.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Forgets all positions from `len` on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are fewer.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::invalid("session", format!("length: got {len}, expected at most {}", self.len)));
        }
        self.len = len;
        Ok(())
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab;
        if tokens.is_empty() {
            return Err(Error::invalid("session", "tokens: got none, expected at least one"));
        }
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::invalid("session", format!("token: got {bad}, expected less than {vocab}")));
        }
        if tokens.len() > self.capacity() - self.len {
            return Err(Error::invalid(
                "session",
                format!(
                    "prompt: got {} tokens after {}, expected at most {} in a context of {}",
                    tokens.len(),
                    self.len,
                    self.capacity() - self.len,
                    self.capacity()
                ),
            ));
        }
        Ok(())
    }

    /// Appends tokens and gives the logits `[vocab]` that follow the last of them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no tokens, ids beyond the vocabulary or more than the context has room for (nothing is appended
    /// then); [`Error::Execution`] if the device fails.
    pub fn append(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check_tokens(tokens)?;
        self.prewarm(tokens.len())?;
        if let [token] = tokens {
            return self.decode_step(*token);
        }
        for batch in tokens.chunks(self.model.options().batch.max(1)) {
            let logits = self.logits.clone();
            self.prefill(batch, &logits, 1)?;
        }
        self.last_logits()
    }

    /// Appends tokens and gives the logits `[tokens.len(), vocab]` that follow each of them, for perplexity and tests.
    ///
    /// # Errors
    /// As [`Session::append`].
    pub fn append_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check_tokens(tokens)?;
        let mut all = Vec::with_capacity(tokens.len() * self.model.config().vocab);
        for batch in tokens.chunks(self.model.options().batch.max(1)) {
            let logits = self.model.context().zeros(DType::F32, &[batch.len(), self.model.config().vocab])?;
            self.prefill(batch, &logits, batch.len())?;
            all.extend(logits.to_vec::<f32>()?);
        }
        Ok(all)
    }

    /// Builds the kernels of a prompt of `seq_len` tokens and of the decode step, all at once, before the first of them is needed.
    fn prewarm(&mut self, seq_len: usize) -> Result<()> {
        if self.warm {
            return Ok(());
        }
        let inner: &Inner = &self.model.inner;
        let batch = inner.options.batch.max(1);
        inner.ctx.prewarm(|encoder| {
            // Batches of a long prompt, and what is left of it.
            for len in [seq_len.min(batch), seq_len % batch] {
                if len > 1 {
                    self.record_prefill(encoder, &vec![0; len], &self.logits, 1)?;
                }
            }
            self.record_step(encoder)?;
            self.record_choice(encoder, self.model.config().vocab, 1).map(drop)
        })?;
        self.warm = true;
        Ok(())
    }

    /// Runs a batch and writes the logits of its last `rows` tokens.
    fn prefill(&mut self, tokens: &[u32], logits: &Buffer, rows: usize) -> Result<()> {
        let mut encoder = self.model.inner.ctx.encoder();
        let temporaries = self.record_prefill(&mut encoder, tokens, logits, rows)?;
        encoder.run()?;
        drop(temporaries);
        self.len += tokens.len();
        Ok(())
    }

    /// Records a batch; the temporaries must outlive its run.
    fn record_prefill(&self, encoder: &mut Encoder, tokens: &[u32], logits: &Buffer, rows: usize) -> Result<Vec<Lease>> {
        let inner: &Inner = &self.model.inner;
        let seq_len = tokens.len();
        let ids = inner.ctx.upload(tokens, &[seq_len])?;
        let start = self.len as u32;
        let positions: Vec<u32> = (0..seq_len as u32).map(|t| start + t).collect();
        let positions = inner.ctx.upload(&positions, &[seq_len])?;
        let step =
            Step { ids: &ids, positions: &positions, position: StepU32::new(start), keys: StepU32::new(start + seq_len as u32), seq_len };
        let mut forward = Forward::new(inner, encoder, seq_len);
        forward.run(&step, &self.caches, logits, rows)?;
        Ok(forward.into_temporaries())
    }

    /// One token through the recorded graph.
    fn decode_step(&mut self, token: u32) -> Result<&[f32]> {
        let decode = match self.decode.take() {
            Some(decode) => decode,
            None => self.record_decode()?,
        };
        let running = self.replay(&decode, token);
        self.decode = Some(decode);
        let running = running?;
        self.last_logits()?;
        running.wait()?;
        Ok(&self.logits_host)
    }

    /// From now on choices of the device ([`append_greedy`](Self::append_greedy), [`append_choice`](Self::append_choice)) are made among the logits that
    /// bias and penalties of `sampling` leave, to the bit those of [`Sampler::sample`](crate::sampler::Sampler::sample). The tokens of `prompt` have been
    /// seen; what a choice appends counts as generated, [`truncate`](Self::truncate) takes nothing back. Parameters without bias and penalties end it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for parameters out of range or a bias for a token that the model does not have.
    pub fn penalise(&mut self, sampling: &SamplingParams, prompt: &[u32]) -> Result<()> {
        sampling.validate()?;
        let vocab = self.model.config().vocab;
        let (repetition, frequency, presence) = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty);
        let same = |p: &Penalties| p.repetition == repetition && p.frequency == frequency && p.presence == presence;
        if !sampling.changes_logits() {
            if self.penalties.take().is_some() {
                self.choice = None;
            }
            return Ok(());
        }
        let mut bias = vec![0.0f32; vocab];
        for &(id, value) in &sampling.logit_bias {
            let Some(sum) = bias.get_mut(id as usize) else {
                return Err(Error::invalid("session", format!("logit_bias: got id {id}, expected an id below {vocab}")));
            };
            *sum += value;
        }
        let mut seen = vec![0u32; vocab];
        for &id in prompt {
            if let Some(times) = seen.get_mut(id as usize) {
                *times = 1;
            }
        }
        if let Some(p) = self.penalties.as_ref().filter(|p| same(p)) {
            p.bias.write(&bias)?;
            return p.seen.write(&seen);
        }
        let ctx = &self.model.inner.ctx;
        let (bias, seen) = (ctx.upload(&bias, &[vocab])?, ctx.upload(&seen, &[vocab])?);
        self.choice = None;
        self.penalties = Some(Penalties { repetition, frequency, presence, bias, seen, changed: ctx.zeros(DType::F32, &[vocab])? });
        Ok(())
    }

    /// Appends a token and gives the one that has the highest of the first `vocab` logits after it, the lowest of equals. The device finds it, and
    /// only its number is read back. `None` if there is none, because a logit is NaN or infinite: see [`last_logits`](Self::last_logits).
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`Error::InvalidArgument`] if the model has fewer than `vocab` logits, or for none.
    pub fn append_greedy(&mut self, token: u32, vocab: usize) -> Result<Option<u32>> {
        Ok(self.append_choice(token, vocab, 1)?.first().map(|best| best.id))
    }

    /// Appends a token and gives the `k` highest of the first `vocab` logits after it, in order of rank: higher logits first, equal ones by number.
    /// The device finds them, and nothing else is read back. Those of −infinity are left out; there are none at all if a logit is NaN or +infinity:
    /// see [`last_logits`](Self::last_logits).
    ///
    /// # Errors
    /// As [`append`](Self::append), and [`Error::InvalidArgument`] if the model has fewer than `vocab` logits, for none, or for a `k` that is not
    /// 1 to `vocab` and at most [`MAX_CANDIDATES`].
    pub fn append_choice(&mut self, token: u32, vocab: usize, k: usize) -> Result<&[Candidate]> {
        self.check_tokens(&[token])?;
        let within = |what: &str, got: usize, most: usize| {
            if (1..=most).contains(&got) {
                Ok(())
            } else {
                Err(Error::invalid("session", format!("{what}: got {got}, expected 1 to {most}")))
            }
        };
        within("vocab", vocab, self.model.config().vocab)?;
        within("k", k, vocab.min(MAX_CANDIDATES as usize))?;
        self.prewarm(1)?;
        let (graph, mut choice) = match self.choice.take() {
            Some((graph, choice)) if choice.vocab == vocab && choice.k == k => (graph, choice),
            _ => self.record_decode_and_choice(vocab, k)?,
        };
        let chosen = self.replay(&graph, token).and_then(|running| {
            choice.best.read_bytes(bytemuck::cast_slice_mut(&mut choice.host))?;
            running.wait()
        });
        self.candidates.clear();
        let (ids, bits) = choice.host.split_at(k);
        let found = ids.iter().zip(bits).take_while(|(id, _)| **id != NO_TOKEN);
        self.candidates.extend(found.map(|(&id, &bits)| Candidate { logit: f32::from_bits(bits), id }));
        self.choice = Some((graph, choice));
        chosen.map(|()| self.candidates.as_slice())
    }

    /// The logits `[vocab]` that follow the last token appended; zeros before the first.
    ///
    /// # Errors
    /// [`Error::Execution`] if the device fails.
    pub fn last_logits(&mut self) -> Result<&[f32]> {
        self.logits.read_bytes(bytemuck::cast_slice_mut(&mut self.logits_host))?;
        Ok(&self.logits_host)
    }

    /// Starts a step. Reading its result waits for it, once for both; to wait before would leave the device idle in between.
    fn replay(&mut self, decode: &DecodeGraph, token: u32) -> Result<Submission> {
        let position = self.len as u32;
        self.step.write(&[token, position, position + 1])?;
        let running = decode.graph.submit()?;
        self.len += 1;
        Ok(running)
    }

    fn record_decode(&self) -> Result<DecodeGraph> {
        let mut encoder = self.model.inner.ctx.encoder();
        let temporaries = self.record_step(&mut encoder)?;
        Ok(DecodeGraph { graph: encoder.finish()?, _temporaries: temporaries })
    }

    fn record_decode_and_choice(&self, vocab: usize, k: usize) -> Result<(DecodeGraph, Choice)> {
        let mut encoder = self.model.inner.ctx.encoder();
        let mut temporaries = self.record_step(&mut encoder)?;
        let (best, scratch) = self.record_choice(&mut encoder, vocab, k)?;
        temporaries.push(scratch);
        Ok((DecodeGraph { graph: encoder.finish()?, _temporaries: temporaries }, Choice { vocab, k, best, host: vec![NO_TOKEN; 2 * k] }))
    }

    /// Records the choice: what it writes, and scratch memory that must outlive its runs.
    fn record_choice(&self, encoder: &mut Encoder, vocab: usize, k: usize) -> Result<(Buffer, Lease)> {
        let ctx = &self.model.inner.ctx;
        let best = ctx.zeros(DType::U32, &[2, k])?;
        let scratch = ctx.pool().uninit(DType::U32, &[Candidates::scratch_len(1, vocab, k)])?;
        let mut x = self.logits.slice(0, vocab)?;
        if let Some(Penalties { repetition, frequency, presence, ref bias, ref seen, ref changed }) = self.penalties {
            let (bias, seen, y) = (&bias.slice(0, vocab)?, &seen.slice(0, vocab)?, changed.slice(0, vocab)?);
            let token = &self.step.slice(slot::TOKEN * 4, 1)?;
            LogitPenalties { x: &x, bias, token, seen, y: &y, repetition, frequency, presence }.encode(encoder)?;
            x = y;
        }
        Candidates { x: &x, best: &best, scratch: &scratch }.encode(encoder)?;
        Ok((best, scratch))
    }

    /// Records the decode step; the temporaries must outlive its runs.
    fn record_step(&self, encoder: &mut Encoder) -> Result<Vec<Lease>> {
        let inner: &Inner = &self.model.inner;
        let capacity = self.capacity() as u32;
        let word = |at: usize, len: usize| self.step.slice(at * 4, len);
        let step = Step {
            ids: &word(slot::TOKEN, 1)?,
            positions: &word(slot::POSITION as usize, 1)?,
            position: StepU32::from_step(slot::POSITION, capacity - 1),
            keys: StepU32::from_step(slot::KEYS, capacity),
            seq_len: 1,
        };
        encoder.set_step(&self.step)?;
        let mut forward = Forward::new(inner, encoder, 1);
        forward.run(&step, &self.caches, &self.logits, 1)?;
        Ok(forward.into_temporaries())
    }
}
