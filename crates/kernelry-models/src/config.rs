//! Hyper-parameters of a model, read from GGUF metadata.

use kernelry::gguf::GgufFile;
use kernelry::{Error, Result};

/// Architectures that [`Model`](crate::Model) runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama and everything that shares its graph: adjacent rotary pairs, no biases.
    Llama,
    /// Qwen 2: split-half rotary pairs, biases on q, k and v.
    Qwen2,
    /// Qwen 3 dense: split-half rotary pairs, RMS norm of each query and key head.
    Qwen3,
}

impl Architecture {
    /// Names as they stand in `general.architecture`.
    pub const NAMES: &'static [(&'static str, Architecture)] =
        &[("llama", Architecture::Llama), ("qwen2", Architecture::Qwen2), ("qwen3", Architecture::Qwen3)];

    /// Whether rotary pairs are adjacent elements; otherwise element `i` pairs with `i + head_dim / 2`.
    pub const fn adjacent_rope(self) -> bool {
        matches!(self, Architecture::Llama)
    }

    /// Name in `general.architecture`.
    pub fn name(self) -> &'static str {
        Architecture::NAMES.iter().find(|(_, a)| *a == self).map_or("unknown", |(n, _)| n)
    }
}

/// Hyper-parameters of a decoder-only transformer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Architecture.
    pub architecture: Architecture,
    /// `general.name`, if the file has one.
    pub name: Option<String>,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head. `n_heads · head_dim` need not equal `hidden`.
    pub head_dim: usize,
    /// Width of the feed-forward block.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// Added inside the root of every RMS norm.
    pub rms_eps: f32,
    /// Rotary base.
    pub rope_base: f64,
    /// Positions are divided by this (linear rotary scaling).
    pub rope_scale: f64,
}

/// Largest hyper-parameter that is believed: a lying file must not make us allocate.
const MAX_SIZE: u64 = 1 << 24;

impl ModelConfig {
    /// Reads the hyper-parameters.
    ///
    /// # Errors
    /// [`Error::Format`] naming the key that is missing or has a value that no model can have, or the architecture that is unknown.
    pub fn from_gguf(file: &GgufFile) -> Result<ModelConfig> {
        let bad = |key: &str, problem: String| Error::format("gguf", format!("key `{key}`"), problem);
        let arch: &str = file.find("general.architecture")?.ok_or_else(|| bad("general.architecture", "is missing".into()))?;
        let Some(&(_, architecture)) = Architecture::NAMES.iter().find(|(name, _)| *name == arch) else {
            let known: Vec<_> = Architecture::NAMES.iter().map(|(n, _)| *n).collect();
            return Err(bad("general.architecture", format!("got `{arch}`, expected one of: {}", known.join(", "))));
        };
        let key = |suffix: &str| format!("{arch}.{suffix}");
        let optional = |suffix: &str| -> Result<Option<usize>> {
            let key = key(suffix);
            match file.find::<u64>(&key)? {
                None => Ok(None),
                Some(v) if (1..=MAX_SIZE).contains(&v) => Ok(Some(v as usize)),
                Some(v) => Err(bad(&key, format!("got {v}, expected 1 to {MAX_SIZE}"))),
            }
        };
        let size = |suffix: &str| optional(suffix)?.ok_or_else(|| bad(&key(suffix), "is missing".into()));
        let real = |suffix: &str, default: Option<f64>| -> Result<f64> {
            let key = key(suffix);
            match file.find::<f64>(&key)?.or(default) {
                Some(v) if v.is_finite() && v > 0.0 => Ok(v),
                Some(v) => Err(bad(&key, format!("got {v}, expected a positive number"))),
                None => Err(bad(&key, "is missing".into())),
            }
        };
        let hidden = size("embedding_length")?;
        let n_heads = size("attention.head_count")?;
        let n_kv_heads = optional("attention.head_count_kv")?.unwrap_or(n_heads);
        if n_heads % n_kv_heads != 0 {
            return Err(bad(&key("attention.head_count_kv"), format!("got {n_kv_heads}, expected a divisor of {n_heads} query heads")));
        }
        let head_dim = optional("attention.key_length")?.unwrap_or(hidden / n_heads);
        let value_dim = optional("attention.value_length")?.unwrap_or(head_dim);
        if value_dim != head_dim || head_dim == 0 || head_dim % 2 != 0 {
            return Err(bad(
                &key("attention.key_length"),
                format!("got {head_dim} for keys and {value_dim} for values, expected one even width"),
            ));
        }
        let rope_dim = optional("rope.dimension_count")?.unwrap_or(head_dim);
        if rope_dim != head_dim {
            return Err(bad(
                &key("rope.dimension_count"),
                format!("got {rope_dim}, expected the head width {head_dim}: partial rotary is not supported"),
            ));
        }
        let scaling: &str = file.find(&key("rope.scaling.type"))?.unwrap_or("none");
        let rope_scale = match scaling {
            "none" => 1.0,
            "linear" => real("rope.scaling.factor", Some(1.0))?,
            other => return Err(bad(&key("rope.scaling.type"), format!("got `{other}`, expected `none` or `linear`"))),
        };
        let vocab = file.tensor("token_embd.weight")?.shape.first().copied().unwrap_or(0);
        Ok(ModelConfig {
            architecture,
            name: file.find::<&str>("general.name")?.map(str::to_owned),
            n_layers: size("block_count")?,
            hidden,
            n_heads,
            n_kv_heads,
            head_dim,
            ffn: size("feed_forward_length")?,
            vocab,
            context_length: size("context_length")?,
            rms_eps: real("attention.layer_norm_rms_epsilon", None)? as f32,
            rope_base: real("rope.freq_base", Some(10_000.0))?,
            rope_scale,
        })
    }
}
