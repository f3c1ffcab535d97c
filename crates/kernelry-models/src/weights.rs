//! Tensors of a GGUF file as device buffers.

use kernelry::gguf::GgufFile;
use kernelry::ops::linear::Weight;
use kernelry::ops::quantized::{LinearAdd, NormLinear};
use kernelry::{Buffer, Context, Error, Result};

use crate::config::{Architecture, ModelConfig};

/// Weights of one block.
pub(crate) struct Block {
    pub(crate) attn_norm: Buffer,
    pub(crate) q: Projection,
    pub(crate) k: Projection,
    pub(crate) v: Projection,
    pub(crate) qkv: Option<Stack>,
    pub(crate) o: Weight,
    /// Norms of each query and key head, Qwen 3.
    pub(crate) head_norms: Option<(Buffer, Buffer)>,
    pub(crate) ffn_norm: Buffer,
    pub(crate) gate: Weight,
    pub(crate) up: Weight,
    pub(crate) gate_up: Option<Stack>,
    pub(crate) down: Weight,
}

impl Block {
    fn fuses(&self, ctx: &Context) -> bool {
        let normed = [&self.q.weight, &self.k.weight, &self.v.weight, &self.gate, &self.up];
        normed.iter().all(|w| NormLinear::supports(ctx, w)) && [&self.o, &self.down].iter().all(|w| LinearAdd::supports(ctx, w))
    }
}

/// The first `count` of the matrices that take one input, one below the other in the memory that they share with their own views: one launch for a
/// single token instead of `count`, which matters where a launch costs more than what it reads.
pub(crate) struct Stack {
    pub(crate) weight: Weight,
    pub(crate) count: usize,
}

/// A matrix with an optional bias.
pub(crate) struct Projection {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Buffer>,
}

/// All weights of a model.
pub(crate) struct Weights {
    pub(crate) embedding: Weight,
    pub(crate) blocks: Vec<Block>,
    pub(crate) output_norm: Buffer,
    /// The embedding again where the file ties them.
    pub(crate) output: Weight,
    /// Divisors of the rotary angles, one a pair.
    pub(crate) rope_factors: Option<Buffer>,
    /// Whether the device multiplies all of them by one row in one launch with the norm before or the addition behind.
    pub(crate) fused: bool,
    /// Bytes of all matrices, for reports.
    pub(crate) bytes: u64,
    /// Number of weights.
    pub(crate) parameters: u64,
}

/// Loads tensors one by one.
struct Loader<'a> {
    file: &'a GgufFile,
    ctx: &'a Context,
    bytes: u64,
    parameters: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Loader<'_> {
    fn count(&mut self, name: &str, shape: &[usize]) {
        self.parameters += shape.iter().map(|&d| d as u64).product::<u64>();
        self.bytes += self.file.tensor(name).map_or(0, |t| t.bytes() as u64);
        (self.progress)(self.bytes, self.file.mapping().as_bytes().len() as u64);
    }

    /// A matrix `[rows, cols]`, kept in its format where a kernel multiplies it.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        self.check_matrix(name, rows, cols)?;
        Weight::from_gguf(self.ctx, self.file, name)
    }

    /// Checks the shape, and counts the matrix.
    fn check_matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<()> {
        let shape = &self.file.tensor(name)?.shape;
        if shape[..] != [rows, cols] {
            return Err(Error::format("gguf", format!("tensor `{name}`"), format!("got shape {shape:?}, expected [{rows}, {cols}]")));
        }
        self.count(name, shape);
        Ok(())
    }

    /// Matrices `[rows, cols]` that take one input, and as many of them as can be stacked, if that is more than one.
    fn matrices(&mut self, names: &[&str], rows: &[usize], cols: usize) -> Result<(Vec<Weight>, Option<Stack>)> {
        let mut stack = None;
        for count in (2..=names.len()).rev() {
            let some = names.get(..count).unwrap_or_default();
            if let Some(weight) = Weight::stacked_from_gguf(self.ctx, self.file, some)? {
                stack = Some(Stack { weight, count });
                break;
            }
        }
        let mut list = Vec::new();
        let mut start = 0;
        for (i, (name, &rows)) in names.iter().zip(rows).enumerate() {
            list.push(match &stack {
                Some(stack) if i < stack.count => {
                    self.check_matrix(name, rows, cols)?;
                    stack.weight.slice(start, rows)?
                }
                _ => self.matrix(name, rows, cols)?,
            });
            start += rows;
        }
        Ok((list, stack))
    }

    /// A vector of `len` f32 values.
    fn vector(&mut self, name: &str, len: usize) -> Result<Buffer> {
        let shape = &self.file.tensor(name)?.shape;
        if shape.iter().product::<usize>() != len {
            return Err(Error::format("gguf", format!("tensor `{name}`"), format!("got shape {shape:?}, expected [{len}]")));
        }
        self.count(name, shape);
        self.ctx.upload(&self.file.tensor_f32(name)?, &[len])
    }

    fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Buffer>> {
        if self.file.find_tensor(name).is_none() { Ok(None) } else { self.vector(name, len).map(Some) }
    }

    fn block(&mut self, i: usize, c: &ModelConfig) -> Result<Block> {
        let name = |what: &str| format!("blk.{i}.{what}");
        let weight = |what: &str| format!("blk.{i}.{what}.weight");
        let (q_dim, kv_dim) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let head_norms = match c.architecture {
            Architecture::Qwen3 => {
                Some((self.vector(&weight("attn_q_norm"), c.head_dim)?, self.vector(&weight("attn_k_norm"), c.head_dim)?))
            }
            _ => None,
        };
        let unequal = || Error::invalid("model", "matrices: got another number than names");
        let names = ["attn_q", "attn_k", "attn_v"];
        let (list, qkv) = self.matrices(&names.map(weight).each_ref().map(String::as_str), &[q_dim, kv_dim, kv_dim], c.hidden)?;
        let [q, k, v] = <[Weight; 3]>::try_from(list).map_err(|_| unequal())?;
        let (list, gate_up) =
            self.matrices(&["ffn_gate", "ffn_up"].map(weight).each_ref().map(String::as_str), &[c.ffn, c.ffn], c.hidden)?;
        let [gate, up] = <[Weight; 2]>::try_from(list).map_err(|_| unequal())?;
        let mut bias = |what: &str, rows: usize| self.optional_vector(&name(&format!("{what}.bias")), rows);
        let (q_bias, k_bias, v_bias) = (bias("attn_q", q_dim)?, bias("attn_k", kv_dim)?, bias("attn_v", kv_dim)?);
        Ok(Block {
            attn_norm: self.vector(&weight("attn_norm"), c.hidden)?,
            q: Projection { weight: q, bias: q_bias },
            k: Projection { weight: k, bias: k_bias },
            v: Projection { weight: v, bias: v_bias },
            qkv,
            o: self.matrix(&weight("attn_output"), c.hidden, q_dim)?,
            head_norms,
            ffn_norm: self.vector(&weight("ffn_norm"), c.hidden)?,
            gate,
            up,
            gate_up,
            down: self.matrix(&weight("ffn_down"), c.hidden, c.ffn)?,
        })
    }
}

impl Weights {
    /// Loads every tensor of the architecture. `progress` is called with bytes done and bytes in the file.
    pub(crate) fn load(file: &GgufFile, ctx: &Context, config: &ModelConfig, progress: &mut dyn FnMut(u64, u64)) -> Result<Weights> {
        let mut loader = Loader { file, ctx, bytes: 0, parameters: 0, progress };
        let embedding = loader.matrix("token_embd.weight", config.vocab, config.hidden)?;
        let blocks = (0..config.n_layers).map(|i| loader.block(i, config)).collect::<Result<Vec<_>>>()?;
        let output_norm = loader.vector("output_norm.weight", config.hidden)?;
        let output = match file.find_tensor("output.weight") {
            Some(_) => loader.matrix("output.weight", config.vocab, config.hidden)?,
            None => embedding.clone(),
        };
        let rope_factors = loader.optional_vector("rope_freqs.weight", config.head_dim / 2)?;
        let (bytes, parameters) = (loader.bytes, loader.parameters);
        let fused = blocks.iter().all(|block| block.fuses(ctx)) && NormLinear::supports(ctx, &output);
        Ok(Weights { embedding, blocks, output_norm, output, rope_factors, fused, bytes, parameters })
    }
}
