//! The generation loop: one for the command line, benches and libraries.

use std::time::{Duration, Instant};

use kernelry::gguf::GgufFile;
use kernelry::ops::sampling::MAX_CANDIDATES;
use kernelry::{Context, Error, Result};

use crate::model::{Model, ModelOptions};
use crate::sampler::{Sampler, SamplingParams};
use crate::session::Session;
use crate::stop::{StopConditions, StopReason, StopWatch};
use crate::tokenizer::{Tokenizer, TokenizerSpec};

/// What a generation did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Generated {
    /// Tokens sampled, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Text written.
    pub text: String,
    /// Why it ended; `None` if the caller stopped it.
    pub reason: Option<StopReason>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to process the prompt.
    pub prompt_time: Duration,
    /// Time from then on.
    pub generation_time: Duration,
}

/// A model with its tokenizer and a session.
pub struct Generator {
    session: Session,
    tokenizer: Tokenizer,
    chat_template: Option<String>,
}

/// The model in the box: a small `qwen3` that writes about Rust; see its card in `oracles/box_model`.
///
/// # Errors
/// [`Error::Format`] if the embedded file is damaged, which a test rules out.
pub fn box_model() -> Result<GgufFile> {
    GgufFile::from_bytes(BOX_MODEL.to_vec())
}

static BOX_MODEL: &[u8] = include_bytes!("../assets/kernelry-box-q8_0.gguf");

impl Generator {
    /// Loads model and tokenizer of a file. `progress` is called with bytes done and bytes in the file.
    ///
    /// # Errors
    /// As [`Model::load`], and [`Error::Format`] if the tokenizer's metadata is missing or contradicts itself.
    pub fn load(file: &GgufFile, ctx: &Context, options: ModelOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Generator> {
        let tokenizer = Tokenizer::new(TokenizerSpec::from_gguf(file)?)?;
        let model = Model::load(file, ctx, options, progress)?;
        let chat_template = file.find::<&str>("tokenizer.chat_template")?.map(str::to_owned);
        Ok(Generator { session: model.session()?, tokenizer, chat_template })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.session.model()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template of the file, if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The session, for what the loop does not do.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Whether a prompt fits the context with room for an answer.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it does not.
    pub fn check_prompt(&self, prompt: &[u32]) -> Result<()> {
        let capacity = self.session.capacity();
        if prompt.len() < capacity {
            return Ok(());
        }
        Err(Error::invalid("generate", format!("prompt: got {} tokens, expected fewer than the context of {capacity}", prompt.len())))
    }

    /// Writes after `prompt` in an empty context. `on_text` gets each piece of text as it is certain and says whether to go on; it is also
    /// asked with an empty piece, after each batch of a long prompt and after tokens whose text is not certain yet.
    ///
    /// Without a limit in `conditions` it ends when the context is full. The model's end-of-generation tokens always end it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty prompt, one longer than the context, or parameters out of range; what a step gives.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        sampling: SamplingParams,
        mut conditions: StopConditions,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        self.check_prompt(prompt)?;
        let capacity = self.session.capacity();
        // The last token sampled is not appended, so it needs no room.
        let room = capacity - prompt.len() + 1;
        conditions.max_tokens = Some(conditions.max_tokens.unwrap_or(room).min(room));
        conditions.tokens.extend(self.tokenizer.end_of_generation());
        // Rows of the output beyond the vocabulary are padding: they name no token.
        let known = self.tokenizer.vocab_size().min(self.session.model().config().vocab);
        let device_selects = sampling.candidates(known).filter(|&k| k <= MAX_CANDIDATES as usize);
        let mut sampler = Sampler::new(sampling)?;
        if device_selects.is_some() {
            self.session.penalise(sampler.params(), prompt)?;
        }
        sampler.observe_prompt(prompt);
        let mut watch = StopWatch::new(&self.tokenizer, conditions);
        self.session.truncate(0)?;

        let started = Instant::now();
        let (mut logits, mut go_on) = (Vec::new(), true);
        let mut chosen = None;
        let (first, rest) = prompt.split_at(prompt.len().min(self.session.model().options().batch.max(1)));
        for part in std::iter::once(first).chain(rest.chunks(first.len().max(1))) {
            logits.clear();
            logits.extend_from_slice(self.session.append(part)?);
            go_on = on_text("");
            if !go_on {
                break;
            }
        }
        let prompt_time = started.elapsed();
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let started = Instant::now();
        let reason = loop {
            if !go_on {
                break None;
            }
            if let Some(reason) = watch.ended() {
                break Some(reason.clone());
            }
            let token = match chosen.take() {
                Some(token) => token,
                None => sampler.sample(logits.get_mut(..known).unwrap_or_default())?,
            };
            tokens.push(token);
            let step = watch.push(token)?;
            text.push_str(&step.text);
            go_on = on_text(&step.text);
            if step.reason.is_some() {
                break step.reason;
            }
            if !go_on {
                continue;
            }
            let row = match device_selects {
                None => self.session.append(&[token])?,
                Some(k) => match self.session.append_choice(token, known, k)? {
                    // The whole row tells what is wrong with it.
                    [] => self.session.last_logits()?,
                    candidates => {
                        chosen = Some(sampler.sample_from(candidates)?);
                        continue;
                    }
                },
            };
            logits.clear();
            logits.extend_from_slice(row);
        };
        let generation_time = started.elapsed();
        let rest = watch.finish();
        if !rest.is_empty() {
            text.push_str(&rest);
            on_text(&rest);
        }
        Ok(Generated { tokens, text, reason, prompt_tokens: prompt.len(), prompt_time, generation_time })
    }
}
