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
use kernelry::ops::linear::{Linear, Weight};
use kernelry::ops::norm::{FusedResidualNorm, RmsNorm};
use kernelry::ops::quantized::{LinearAdd, NormLinear};
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
    /// Whether norms, gates and residual additions are part of the products: then rows are never normalised by themselves.
    fused: bool,
    temporaries: Vec<Lease>,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(inner: &'a Inner, encoder: &'a mut Encoder, seq_len: usize) -> Forward<'a> {
        Forward { inner, encoder, seq_len, fused: seq_len == 1 && inner.weights.fused, temporaries: Vec::new() }
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
        let s = Scratch {
            h: self.temporary(c.hidden)?,
            normed: self.temporary(c.hidden)?,
            branch: self.temporary(c.hidden)?,
            qkv: self.temporaries([c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim])?,
            attended: self.temporary(c.n_heads * c.head_dim)?,
            gate_up: self.temporaries([c.ffn, c.ffn])?,
        };
        GetRows { table: &w.embedding, ids: step.ids, out: &s.h, scale: 1.0 }.encode(self.encoder)?;
        let Some(first) = w.blocks.first() else {
            return Err(kernelry::Error::invalid("forward", "blocks: got none, expected at least one"));
        };
        if !self.fused {
            RmsNorm { x: &s.h, weight: &first.attn_norm, out: &s.normed, eps: c.rms_eps }.encode(self.encoder)?;
        }
        for (i, (block, (keys, values))) in w.blocks.iter().zip(caches).enumerate() {
            self.attention(block, step, keys, values, &s)?;
            self.add(&block.o, &s.attended, &block.ffn_norm, &s)?;
            let [gate, _] = &s.gate_up.parts;
            self.gate(block, &s)?;
            let next_norm = w.blocks.get(i + 1).map_or(&w.output_norm, |next| &next.attn_norm);
            self.add(&block.down, gate, next_norm, &s)?;
        }
        let last = |x: &Buffer| x.rows(self.seq_len - rows, rows);
        let s = Scratch { h: last(&s.h)?, normed: last(&s.normed)?, ..s };
        self.project(&w.output, &w.output_norm, &s, logits)
    }

    fn linear(&mut self, weight: &Weight, x: &Buffer, out: &Buffer) -> Result<()> {
        // The math mode is for products alone: nothing else has a fast form.
        self.encoder.set_math(self.inner.options.math);
        let done = Linear { weight, x, out }.encode(self.encoder);
        self.encoder.set_math(kernelry::registry::Math::Precise);
        done
    }

    /// `out = weight · (rms(h) · norm)`.
    fn project(&mut self, weight: &Weight, norm: &Buffer, s: &Scratch, out: &Buffer) -> Result<()> {
        if !self.fused {
            return self.linear(weight, &s.normed, out);
        }
        NormLinear { weight, x: &s.h, norm, eps: self.inner.config.rms_eps, gated: false, out }.encode(self.encoder)
    }

    /// Products of one normalised input. For one token, the matrices that are stacked take one launch.
    fn projections<const N: usize>(
        &mut self,
        weights: [&Weight; N],
        stack: Option<&Stack>,
        norm: &Buffer,
        s: &Scratch,
        out: &Outputs<N>,
    ) -> Result<()> {
        let stack = stack.filter(|_| self.seq_len == 1);
        if let Some(stack) = stack {
            let rows = stack.weight.rows();
            self.project(&stack.weight, norm, s, &out.whole.slice(0, rows)?.reshape(&[1, rows])?)?;
        }
        let done = stack.map_or(0, |stack| stack.count);
        weights.iter().zip(&out.parts).skip(done).try_for_each(|(weight, out)| self.project(weight, norm, s, out))
    }

    /// `gate = silu(Wgate · m) ⊙ Wup · m`.
    fn gate(&mut self, block: &Block, s: &Scratch) -> Result<()> {
        let ([gate, up], norm) = (&s.gate_up.parts, &block.ffn_norm);
        if let (true, Some(stack)) = (self.fused, &block.gate_up) {
            return NormLinear { weight: &stack.weight, x: &s.h, norm, eps: self.inner.config.rms_eps, gated: true, out: gate }
                .encode(self.encoder);
        }
        self.projections([&block.gate, &block.up], block.gate_up.as_ref(), norm, s, &s.gate_up)?;
        SiluMul { gate, up, out: gate }.encode(self.encoder)
    }

    /// `h += weight · x`, and the row normalised for the products that follow.
    fn add(&mut self, weight: &Weight, x: &Buffer, norm: &Buffer, s: &Scratch) -> Result<()> {
        let (h, branch) = (&s.h, &s.branch);
        if self.fused {
            return LinearAdd { weight, x, residual: h, out: h }.encode(self.encoder);
        }
        self.linear(weight, x, branch)?;
        let eps = self.inner.config.rms_eps;
        FusedResidualNorm { residual: h, x: branch, weight: norm, out: &s.normed, sum_out: Some(h), scale: None, eps }.encode(self.encoder)
    }

    fn bias(&mut self, p: &Projection, out: &Buffer) -> Result<()> {
        match &p.bias {
            Some(bias) => kernelry::ops::elementwise::AddBias { x: out, bias, out }.encode(self.encoder),
            None => Ok(()),
        }
    }

    /// Everything of attention but the product with its results.
    fn attention(&mut self, block: &Block, step: &Step<'_>, keys: &Buffer, values: &Buffer, s: &Scratch) -> Result<()> {
        let c = &self.inner.config;
        let projections = [&block.q, &block.k, &block.v];
        self.projections(projections.map(|p| &p.weight), block.qkv.as_ref(), &block.attn_norm, s, &s.qkv)?;
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
        Attention { q: &q, k: keys, v: values, out: &attended, kv_seq_len: step.keys, scale, window: 0, softcap: 0.0 }.encode(self.encoder)
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
    /// The residual stream.
    h: Buffer,
    /// It normalised, unless the products do that.
    normed: Buffer,
    /// What is to be added to it, unless the products do that.
    branch: Buffer,
    qkv: Outputs<3>,
    attended: Buffer,
    gate_up: Outputs<2>,
}

/// Results of products of one input, one behind the other.
struct Outputs<const N: usize> {
    whole: Buffer,
    parts: [Buffer; N],
}
