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
use kernelry::ops::rope::{HeadNormRope, Rope, RopeStyle};
use kernelry::{Buffer, DType, Encoder, Lease, Result};

use crate::config::ModelConfig;
use crate::model::Inner;
use crate::weights::{Block, Projection};

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

    /// Records the pass. `logits` is `[rows, vocab]`, for the last `rows` tokens.
    pub(crate) fn run(&mut self, step: &Step<'_>, caches: &[(Buffer, Buffer)], logits: &Buffer, rows: usize) -> Result<()> {
        let (inner, c) = (self.inner, &self.inner.config);
        let w = &inner.weights;
        let h = self.temporary(c.hidden)?;
        let normed = self.temporary(c.hidden)?;
        let branch = self.temporary(c.hidden)?;
        let scratch = Scratch {
            q: self.temporary(c.n_heads * c.head_dim)?,
            k: self.temporary(c.n_kv_heads * c.head_dim)?,
            v: self.temporary(c.n_kv_heads * c.head_dim)?,
            attended: self.temporary(c.n_heads * c.head_dim)?,
            gate: self.temporary(c.ffn)?,
            up: self.temporary(c.ffn)?,
        };
        GetRows { table: &w.embedding, ids: step.ids, out: &h, scale: 1.0 }.encode(self.encoder)?;
        let Some(first) = w.blocks.first() else {
            return Err(kernelry::Error::invalid("forward", "blocks: got none, expected at least one"));
        };
        RmsNorm { x: &h, weight: &first.attn_norm, out: &normed, eps: c.rms_eps }.encode(self.encoder)?;
        for (i, (block, (keys, values))) in w.blocks.iter().zip(caches).enumerate() {
            self.attention(block, step, keys, values, &normed, &scratch, &branch)?;
            self.residual(&h, &branch, &block.ffn_norm, &normed)?;
            self.linear(&block.gate, &normed, &scratch.gate)?;
            self.linear(&block.up, &normed, &scratch.up)?;
            SiluMul { gate: &scratch.gate, up: &scratch.up, out: &scratch.gate }.encode(self.encoder)?;
            self.linear(&block.down, &scratch.gate, &branch)?;
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

    fn projection(&mut self, p: &Projection, x: &Buffer, out: &Buffer) -> Result<()> {
        self.linear(&p.weight, x, out)?;
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
        self.projection(&block.q, normed, &s.q)?;
        self.projection(&block.k, normed, &s.k)?;
        self.projection(&block.v, normed, &s.v)?;
        self.rotate(c, &s.q, c.n_heads, block.head_norms.as_ref().map(|n| &n.0), step)?;
        self.rotate(c, &s.k, c.n_kv_heads, block.head_norms.as_ref().map(|n| &n.1), step)?;
        let heads = |x: &Buffer, n: usize| x.reshape(&[step.seq_len, n, c.head_dim]);
        let (q, k, v) = (heads(&s.q, c.n_heads)?, heads(&s.k, c.n_kv_heads)?, heads(&s.v, c.n_kv_heads)?);
        KvCacheWrite { k: &k, v: &v, k_cache: keys, v_cache: values, position: step.position }.encode(self.encoder)?;
        let attended = heads(&s.attended, c.n_heads)?;
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        Attention { q: &q, k: keys, v: values, out: &attended, kv_seq_len: step.keys, scale, window: 0, softcap: 0.0 }
            .encode(self.encoder)?;
        self.linear(&block.o, &s.attended, out)
    }

    /// Rotates every head of `x` in place, after its norm where the model has one.
    fn rotate(&mut self, c: &ModelConfig, x: &Buffer, n_heads: usize, norm: Option<&Buffer>, step: &Step<'_>) -> Result<()> {
        let (inv_freq, factors) = (&self.inner.inv_freq, self.inner.weights.rope_factors.as_ref());
        let x = x.reshape(&[step.seq_len, n_heads, c.head_dim])?;
        if let Some(weight) = norm {
            return HeadNormRope { x: &x, weight: Some(weight), positions: step.positions, inv_freq, factors, out: &x, eps: c.rms_eps }
                .encode(self.encoder);
        }
        let style = if c.architecture.adjacent_rope() { RopeStyle::Adjacent } else { RopeStyle::SplitHalf };
        Rope { x: &x, positions: step.positions, inv_freq, factors, out: &x, style }.encode(self.encoder)
    }
}

/// Temporaries of a block, reused by every block.
struct Scratch {
    q: Buffer,
    k: Buffer,
    v: Buffer,
    attended: Buffer,
    gate: Buffer,
    up: Buffer,
}
