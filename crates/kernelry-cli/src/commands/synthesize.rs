//! `kernelry synthesize`: a GGUF file with the shapes of a known model and random weights.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kernelry::gguf::{GgufWriter, Value};
use kernelry::quant::{GgmlType, quantize};
use kernelry_models::box_model;
use kernelry_models::tokenizer::TokenizerSpec;

use super::file_type::{self, Target, choose};
use crate::failure::CliResult;
use crate::interrupt;
use crate::output::{Output, human_bytes};
use crate::progress;

/// Write a GGUF file in the shapes of a known model, with random weights
///
/// For measuring: such a file takes the time and the memory of the model that it is shaped after, and says nothing. Its tokenizer is
/// that of the model in the box with unused tokens behind. The same options and seed give the same file.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GGUF file to write
    output: PathBuf,
    /// Model whose shapes it has
    #[arg(long, value_name = "S", default_value = "llama-8b", value_parser = shapes)]
    shapes: &'static Shapes,
    /// Types of the weights, as of `quantize`
    #[arg(long = "type", short, value_name = "T", default_value = "Q4_K_M", value_parser = file_type::parse)]
    target: Target,
    /// Seed of the weights
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// Sizes of a model.
#[derive(Debug, PartialEq, Eq)]
struct Shapes {
    name: &'static str,
    architecture: &'static str,
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    context: usize,
    rope_base: u32,
    /// Whether the output matrix is the embedding.
    tied: bool,
}

const SHAPES: &[Shapes] = &[
    Shapes {
        name: "llama-1b",
        architecture: "llama",
        layers: 16,
        hidden: 2048,
        ffn: 8192,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        vocab: 128_256,
        context: 131_072,
        rope_base: 500_000,
        tied: true,
    },
    Shapes {
        name: "llama-8b",
        architecture: "llama",
        layers: 32,
        hidden: 4096,
        ffn: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128_256,
        context: 131_072,
        rope_base: 500_000,
        tied: false,
    },
    Shapes {
        name: "qwen3-0.6b",
        architecture: "qwen3",
        layers: 28,
        hidden: 1024,
        ffn: 3072,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        vocab: 151_936,
        context: 40_960,
        rope_base: 1_000_000,
        tied: true,
    },
    Shapes {
        name: "qwen3-8b",
        architecture: "qwen3",
        layers: 36,
        hidden: 4096,
        ffn: 12_288,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 151_936,
        context: 40_960,
        rope_base: 1_000_000,
        tied: false,
    },
];

fn shapes(text: &str) -> Result<&'static Shapes, String> {
    SHAPES.iter().find(|s| s.name.eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names: Vec<&str> = SHAPES.iter().map(|s| s.name).collect();
        format!("expected one of: {}", names.join(", "))
    })
}

impl Shapes {
    /// Names and shapes of the tensors in the order of the file.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut list = vec![("token_embd.weight".to_owned(), vec![self.vocab, self.hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| list.push((format!("blk.{layer}.{name}.weight"), shape.to_vec()));
            add("attn_norm", &[self.hidden]);
            add("attn_q", &[q, self.hidden]);
            add("attn_k", &[kv, self.hidden]);
            add("attn_v", &[kv, self.hidden]);
            add("attn_output", &[self.hidden, q]);
            if self.architecture == "qwen3" {
                add("attn_q_norm", &[self.head_dim]);
                add("attn_k_norm", &[self.head_dim]);
            }
            add("ffn_norm", &[self.hidden]);
            add("ffn_gate", &[self.ffn, self.hidden]);
            add("ffn_up", &[self.ffn, self.hidden]);
            add("ffn_down", &[self.hidden, self.ffn]);
        }
        list.push(("output_norm.weight".to_owned(), vec![self.hidden]));
        if !self.tied {
            list.push(("output.weight".to_owned(), vec![self.vocab, self.hidden]));
        }
        list
    }

    /// Sets the hyper-parameters and the tokenizer.
    fn describe(&self, writer: &mut GgufWriter, target: Target) -> CliResult {
        let arch = self.architecture;
        writer.set("general.architecture", arch)?;
        writer.set("general.name", format!("{} with random weights", self.name))?;
        writer.set("general.file_type", target.file_type)?;
        writer.set("general.quantization_version", 2u32)?;
        let sizes = [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocab),
        ];
        for (key, size) in sizes {
            writer.set(&format!("{arch}.{key}"), Value::U32(size as u32))?;
        }
        writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32)?;
        writer.set(&format!("{arch}.rope.freq_base"), self.rope_base as f32)?;
        let file = box_model()?;
        let mut spec = TokenizerSpec::from_gguf(&file)?;
        let (known, unused) = (spec.tokens.len(), 5);
        spec.tokens.extend((known..self.vocab).map(|id| format!("<|unused_{id}|>")));
        spec.token_types.resize(known, 1);
        spec.token_types.resize(self.vocab, unused);
        for (key, value) in file.metadata().filter(|(key, _)| key.starts_with("tokenizer.")) {
            let value = match key {
                "tokenizer.ggml.tokens" => Value::from(std::mem::take(&mut spec.tokens)),
                "tokenizer.ggml.token_type" => Value::from(std::mem::take(&mut spec.token_types)),
                _ => value.clone(),
            };
            writer.set(key, value)?;
        }
        Ok(())
    }
}

/// Random values that are quantised once for each type and width; tensors take them from any block on, and again from the start.
const POOL: usize = 1 << 19;

/// Normal values with the deviation that keeps a row's product with a unit vector at 1.
fn pool(ty: GgmlType, cols: usize, random: &mut fastrand::Rng) -> CliResult<Vec<u8>> {
    let deviation = (1.0 / cols as f32).sqrt();
    // Twelve uniform values have variance 1.
    let mut normal = || ((0..12).map(|_| random.f32()).sum::<f32>() - 6.0) * deviation;
    let values: Vec<f32> = (0..POOL).map(|_| normal()).collect();
    Ok(quantize(ty, &values)?)
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let started = Instant::now();
    let (values, bytes) = write(args.shapes, args.target, args.seed, &args.output)?;
    out.line(format!(
        "{}: {} with random weights, {:.2} billion values, {}, {}, {:.1} s",
        args.output.display(),
        args.shapes.name,
        values as f64 / 1e9,
        args.target.name,
        human_bytes(bytes as u64),
        started.elapsed().as_secs_f64()
    ))
}

/// Writes the file; the number of weights and their bytes.
fn write(shapes: &Shapes, target: Target, seed: u64, path: &Path) -> CliResult<(usize, usize)> {
    let mut writer = GgufWriter::new();
    shapes.describe(&mut writer, target)?;
    let mut tensors = Vec::new();
    for (name, shape) in shapes.tensors() {
        let ty = choose(&name, &shape, GgmlType::F32, target, shapes.layers);
        writer.tensor(&name, ty, &shape)?;
        let cols = shape.last().copied().unwrap_or(1);
        let values: usize = shape.iter().product();
        tensors.push((name, ty, cols, values, values / cols * ty.row_bytes(cols)?));
    }
    let (values, total) = tensors.iter().fold((0, 0), |(values, bytes), t| (values + t.3, bytes + t.4));
    interrupt::listen();
    let bar = progress::bytes(total as u64);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pools: HashMap<(GgmlType, usize), Vec<u8>> = HashMap::new();
    let mut stream = writer.create(path)?;
    for (name, ty, cols, values, bytes) in tensors {
        bar.set_message(name.clone());
        if values == cols {
            // A norm that changes nothing.
            let ones: Vec<u8> = (0..cols).flat_map(|_| 1f32.to_le_bytes()).collect();
            stream.write(&name, &ones)?;
            continue;
        }
        let pool = match pools.entry((ty, cols)) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => place.insert(pool(ty, cols, &mut random)?),
        };
        let mut left = bytes;
        while left > 0 {
            interrupt::check()?;
            let from = random.usize(..POOL / ty.block_len()) * ty.block_bytes();
            let piece = pool.get(from..).unwrap_or_default();
            let piece = piece.get(..left).unwrap_or(piece);
            stream.write(&name, piece)?;
            left -= piece.len();
            bar.inc(piece.len() as u64);
        }
    }
    stream.finish()?;
    bar.finish_and_clear();
    Ok((values, total))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use kernelry::Context;
    use kernelry::gguf::GgufFile;
    use kernelry_models::{Generator, ModelOptions};

    /// What the authors of these models say of them.
    #[test]
    fn parameters_of_the_known_models() {
        let published =
            [("llama-1b", 1_235_814_400), ("llama-8b", 8_030_261_248), ("qwen3-0.6b", 596_049_920), ("qwen3-8b", 8_190_735_360)];
        for (name, expected) in published {
            let count: usize = shapes(name).unwrap().tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(count, expected, "{name}");
        }
        assert_eq!(SHAPES.len(), published.len());
        assert!(shapes("llama-9b").is_err_and(|e| e.contains("llama-8b")));
    }

    #[test]
    fn a_written_model_runs_and_depends_on_the_seed_alone() {
        let small = Shapes {
            name: "small",
            architecture: "qwen3",
            layers: 2,
            hidden: 256,
            ffn: 512,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            vocab: 6000,
            context: 64,
            rope_base: 10_000,
            tied: false,
        };
        let folder = tempfile::tempdir().unwrap();
        let target = file_type::parse("Q4_K_M").unwrap();
        let file = |name: &str, seed| {
            let path = folder.path().join(name);
            write(&small, target, seed, &path).unwrap();
            std::fs::read(path).unwrap()
        };
        let first = file("a.gguf", 1);
        assert!(first == file("b.gguf", 1) && first != file("c.gguf", 2));
        let opened = GgufFile::open(folder.path().join("a.gguf")).unwrap();
        let ctx = Context::cpu();
        let mut generator = Generator::load(&opened, &ctx, ModelOptions::default(), &mut |_, _| ()).unwrap();
        let logits = generator.session().append(&[5, 6, 5999]).unwrap();
        assert!(logits.len() == 6000 && logits.iter().all(|v| v.is_finite()) && logits.iter().any(|v| v.abs() > 0.1));
    }
}
