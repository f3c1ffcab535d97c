//! Opening the model of a command, with a progress bar on a terminal.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kernelry::gguf::GgufFile;
use kernelry::registry::Math;
use kernelry::{Context, Error};
use kernelry_models::{Generator, ModelOptions, box_model};

use crate::failure::{CliResult, Failure};
use crate::progress;

/// Which model a command runs, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArg {
    /// GGUF file [default: the small model in the box]
    #[arg(long, short, value_name = "F")]
    pub(crate) model: Option<PathBuf>,
    /// Products with quantised weights: fast rounds activations to 8 bits a block, precise keeps them in f32
    #[arg(long, value_enum, default_value_t = MathArg::Fast)]
    math: MathArg,
    /// Positions of the context [default: what the model was trained for, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Prompt tokens processed at once [default: 512, on a GPU 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MathArg {
    Precise,
    Fast,
}

impl ModelArg {
    /// Loads model and tokenizer.
    pub(crate) fn load(&self, ctx: &Context) -> CliResult<Generator> {
        let math = match self.math {
            MathArg::Precise => Math::Precise,
            MathArg::Fast => Math::Fast,
        };
        // Fewer rows leave tiles of a GPU empty; more cost a CPU its cache.
        let batch = self.batch.unwrap_or(if ctx.device().info().backend == "cpu" { 512 } else { 2048 });
        let options = ModelOptions::default().with_math(math).with_context(self.context.map(|n| n as usize)).with_batch(batch as usize);
        let bar = progress::bytes(0);
        let file = self.file()?;
        let loaded = Generator::load(&file, ctx, options, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        loaded.map_err(|e| match e {
            // A context that is too long is the caller's; anything else is the file's.
            Error::InvalidArgument { .. } => Failure::from(e),
            _ => Failure::file(&self.path(), &e),
        })
    }

    fn file(&self) -> CliResult<GgufFile> {
        match &self.model {
            Some(path) => GgufFile::open(path),
            None => box_model(),
        }
        .map_err(|e| Failure::file(&self.path(), &e))
    }

    /// The file, or a name for the model in the box.
    pub(crate) fn path(&self) -> PathBuf {
        self.model.clone().unwrap_or_else(|| Path::new("the model in the box").to_owned())
    }

    /// What another process is to be told to run the same model in the same way.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let math = if matches!(self.math, MathArg::Precise) { "precise" } else { "fast" };
        let mut arguments: Vec<OsString> = vec!["--math".into(), math.into()];
        if let Some(path) = &self.model {
            arguments.extend(["--model".into(), path.into()]);
        }
        for (option, value) in [("--context", self.context), ("--batch", self.batch)] {
            arguments.extend(value.iter().flat_map(|n| [option.into(), n.to_string().into()]));
        }
        arguments
    }

    /// What most of the weights are stored as, in llama.cpp's words.
    pub(crate) fn file_type(&self) -> CliResult<&'static str> {
        Ok(match self.file()?.get_u32("general.file_type").unwrap_or(u32::MAX) {
            0 => "all F32",
            1 => "F16",
            2 => "Q4_0",
            3 => "Q4_1",
            7 => "Q8_0",
            8 => "Q5_0",
            9 => "Q5_1",
            10 => "Q2_K - Medium",
            11 => "Q3_K - Small",
            12 => "Q3_K - Medium",
            13 => "Q3_K - Large",
            14 => "Q4_K - Small",
            15 => "Q4_K - Medium",
            16 => "Q5_K - Small",
            17 => "Q5_K - Medium",
            18 => "Q6_K",
            25 => "IQ4_NL - 4.5 bpw",
            30 => "IQ4_XS - 4.25 bpw",
            32 => "BF16",
            _ => "mixed",
        })
    }
}
