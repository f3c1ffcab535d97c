//! The forward pass of llama-like and Qwen dense models, on ops alone.
//!
//! ```text
//! h = embedding[token]
//! h += Wo · attention(rope(q), rope(k), v)      on rms(h) · attn_norm
//! h += Wdown · (silu(Wgate · m) ⊙ Wup · m)      m = rms(h) · ffn_norm
//! logits = Wout · rms(h) · output_norm
//! ```
//! Qwen 3 normalises each head of q and k before the rotation, Qwen 2 adds biases to q, k and v.

use kernelry::catalogue::StepU32;
use kernelry::ops::activation::SiluMul;
use kernelry::ops::attention::Attention;
use kernelry::ops::kv_cache::KvCacheWrite;
use kernelry::ops::layout::GetRows;
use kernelry::ops::linear::Linear;
use kernelry::ops::norm::{FusedResidualNorm, RmsNorm};
use kernelry::ops::rope::{HeadNormRope, Rope, RopeCacheWrite, RopeStyle};
use kernelry::{Buffer, DType, Encoder, Lease, Result};

use crate::config::ModelConfig;
use crate::model::Inner;
use crate::weights::{Block, Projection, Stack};

/// Where the tokens of a pass stand.
pub(crate) struct Step<'a> {
    /// Token ids `[seq_len]`.
    pub(crate) ids: &'a Buffer,
    /// Rotary positions `[seq_len]`.
    pub(crate) positions: &'a Buffer,
    /// Cache row of the first token.
    pub(crate) position: StepU32,
    /// Valid keys after this pass.
    pub(crate) keys: StepU32,
    pub(crate) seq_len: usize,
}

/// Records one pass.
pub(crate) struct Forward<'a> {
    inner: &'a Inner,
    encoder: &'a mut Encoder,
    seq_len: usize,
    temporaries: Vec<Lease>,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(inner: &'a Inner, encoder: &'a mut Encoder, seq_len: usize) -> Forward<'a> {
        Forward { inner, encoder, seq_len, temporaries: Vec::new() }
    }

    /// The temporaries, which must outlive every run of what was recorded.
    pub(crate) fn into_temporaries(self) -> Vec<Lease> {
        self.temporaries
    }

    /// A temporary `[seq_len, cols]`.
    fn temporary(&mut self, cols: usize) -> Result<Buffer> {
        let lease = self.inner.ctx.pool().uninit(DType::F32, &[self.seq_len, cols])?;
        let view = Buffer::clone(&lease);
        self.temporaries.push(lease);
        Ok(view)
    }

    /// Temporaries `[seq_len, cols]` for each width, one behind the other.
    fn temporaries<const N: usize>(&mut self, cols: [usize; N]) -> Result<Outputs<N>> {
        let lease = self.inner.ctx.pool().uninit(DType::F32, &[self.seq_len * cols.iter().sum::<usize>()])?;
        let whole = Buffer::clone(&lease);
        self.temporaries.push(lease);
        let mut parts = [const { None }; N];
        let mut at = 0;
        for (part, cols) in parts.iter_mut().zip(cols) {
            *part = Some(whole.slice(at * 4, self.seq_len * cols)?.reshape(&[self.seq_len, cols])?);
            at += self.seq_len * cols;
        }
        let parts = parts.map(|part| part.unwrap_or_else(|| whole.clone()));
        Ok(Outputs { whole, parts })
    }

    /// Records the pass. `logits` is `[rows, vocab]`, for the last `rows` tokens.
    pub(crate) fn run(&mut self, step: &Step<'_>, caches: &[(Buffer, Buffer)], logits: &Buffer, rows: usize) -> Result<()> {
        let (inner, c) = (self.inner, &self.inner.config);
        let w = &inner.weights;
        let h = self.temporary(c.hidden)?;
        let normed = self.temporary(c.hidden)?;
        let branch = self.temporary(c.hidden)?;
        let scratch = Scratch {
            qkv: self.temporaries([c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim])?,
            attended: self.temporary(c.n_heads * c.head_dim)?,
            gate_up: self.temporaries([c.ffn, c.ffn])?,
        };
        GetRows { table: &w.embedding, ids: step.ids, out: &h, scale: 1.0 }.encode(self.encoder)?;
        let Some(first) = w.blocks.first() else {
            return Err(kernelry::Error::invalid("forward", "blocks: got none, expected at least one"));
        };
        RmsNorm { x: &h, weight: &first.attn_norm, out: &normed, eps: c.rms_eps }.encode(self.encoder)?;
        for (i, (block, (keys, values))) in w.blocks.iter().zip(caches).enumerate() {
            self.attention(block, step, keys, values, &normed, &scratch, &branch)?;
            self.residual(&h, &branch, &block.ffn_norm, &normed)?;
            self.linears([&block.gate, &block.up], block.gate_up.as_ref(), &normed, &scratch.gate_up)?;
            let [gate, up] = &scratch.gate_up.parts;
            SiluMul { gate, up, out: gate }.encode(self.encoder)?;
            self.linear(&block.down, gate, &branch)?;
            let next_norm = w.blocks.get(i + 1).map_or(&w.output_norm, |next| &next.attn_norm);
            self.residual(&h, &branch, next_norm, &normed)?;
        }
        let last = normed.rows(self.seq_len - rows, rows)?;
        self.linear(&w.output, &last, logits)
    }

    fn linear(&mut self, weight: &kernelry::ops::linear::Weight, x: &Buffer, out: &Buffer) -> Result<()> {
        // The math mode is for products alone: nothing else has a fast form.
        self.encoder.set_math(self.inner.options.math);
        let done = Linear { weight, x, out }.encode(self.encoder);
        self.encoder.set_math(kernelry::registry::Math::Precise);
        done
    }

    /// Products of one input. For one token, the matrices that are stacked take one launch.
    fn linears<const N: usize>(
        &mut self,
        weights: [&kernelry::ops::linear::Weight; N],
        stack: Option<&Stack>,
        x: &Buffer,
        out: &Outputs<N>,
    ) -> Result<()> {
        let stack = stack.filter(|_| self.seq_len == 1);
        if let Some(stack) = stack {
            let rows = stack.weight.rows();
            self.linear(&stack.weight, x, &out.whole.slice(0, rows)?.reshape(&[1, rows])?)?;
        }
        let done = stack.map_or(0, |stack| stack.count);
        weights.iter().zip(&out.parts).skip(done).try_for_each(|(weight, out)| self.linear(weight, x, out))
    }

    fn bias(&mut self, p: &Projection, out: &Buffer) -> Result<()> {
        match &p.bias {
            Some(bias) => kernelry::ops::elementwise::AddBias { x: out, bias, out }.encode(self.encoder),
            None => Ok(()),
        }
    }

    /// `h += branch`, and `normed = rms(h) · weight`.
    fn residual(&mut self, h: &Buffer, branch: &Buffer, weight: &Buffer, normed: &Buffer) -> Result<()> {
        let eps = self.inner.config.rms_eps;
        FusedResidualNorm { residual: h, x: branch, weight, out: normed, sum_out: Some(h), scale: None, eps }.encode(self.encoder)
    }

    #[allow(clippy::too_many_arguments)]
    fn attention(
        &mut self,
        block: &Block,
        step: &Step<'_>,
        keys: &Buffer,
        values: &Buffer,
        normed: &Buffer,
        s: &Scratch,
        out: &Buffer,
    ) -> Result<()> {
        let c = &self.inner.config;
        let projections = [&block.q, &block.k, &block.v];
        self.linears(projections.map(|p| &p.weight), block.qkv.as_ref(), normed, &s.qkv)?;
        for (projection, out) in projections.iter().zip(&s.qkv.parts) {
            self.bias(projection, out)?;
        }
        let [q, k, v] = &s.qkv.parts;
        let heads = |x: &Buffer, n: usize| x.reshape(&[step.seq_len, n, c.head_dim]);
        let (q, k, v) = (heads(q, c.n_heads)?, heads(k, c.n_kv_heads)?, heads(v, c.n_kv_heads)?);
        let (k_cache, v_cache, position) = (keys, values, step.position);
        match &block.head_norms {
            None if self.seq_len == 1 => {
                let (positions, inv_freq, factors) = (step.positions, &self.inner.inv_freq, self.inner.weights.rope_factors.as_ref());
                let (q, k, v, style) = (&q, &k, &v, rope_style(c));
                RopeCacheWrite { q, k, v, positions, inv_freq, factors, out: q, k_cache, v_cache, position, style }.encode(self.encoder)?;
            }
            norms => {
                self.rotate(c, &q, norms.as_ref().map(|n| &n.0), step)?;
                self.rotate(c, &k, norms.as_ref().map(|n| &n.1), step)?;
                KvCacheWrite { k: &k, v: &v, k_cache, v_cache, position }.encode(self.encoder)?;
            }
        }
        let attended = heads(&s.attended, c.n_heads)?;
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        Attention { q: &q, k: keys, v: values, out: &attended, kv_seq_len: step.keys, scale, window: 0, softcap: 0.0 }
            .encode(self.encoder)?;
        self.linear(&block.o, &s.attended, out)
    }

    /// Rotates every head of `x` in place, after its norm where the model has one.
    fn rotate(&mut self, c: &ModelConfig, x: &Buffer, norm: Option<&Buffer>, step: &Step<'_>) -> Result<()> {
        let (positions, inv_freq, factors) = (step.positions, &self.inner.inv_freq, self.inner.weights.rope_factors.as_ref());
        if norm.is_some() {
            return HeadNormRope { x, weight: norm, positions, inv_freq, factors, out: x, eps: c.rms_eps }.encode(self.encoder);
        }
        Rope { x, positions, inv_freq, factors, out: x, style: rope_style(c) }.encode(self.encoder)
    }
}

fn rope_style(c: &ModelConfig) -> RopeStyle {
    if c.architecture.adjacent_rope() { RopeStyle::Adjacent } else { RopeStyle::SplitHalf }
}

/// Temporaries of a block, reused by every block.
struct Scratch {
    qkv: Outputs<3>,
    attended: Buffer,
    gate_up: Outputs<2>,
}

/// Results of products of one input, one behind the other.
struct Outputs<const N: usize> {
    whole: Buffer,
    parts: [Buffer; N],
}
