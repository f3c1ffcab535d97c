//! Opening the model of a command, with a progress bar on a terminal.

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
        let options = ModelOptions::default().with_math(math).with_context(self.context.map(|n| n as usize));
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
}
