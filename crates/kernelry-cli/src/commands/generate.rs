//! `kernelry generate`.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use kernelry_models::chat::{ChatInput, ChatTemplate, Message};
use kernelry_models::sampler::{Sampler, SamplingParams};
use kernelry_models::stop::{StopConditions, StopReason};
use kernelry_models::tokenizer::Specials;
use kernelry_models::{Generated, Generator};
use serde::Serialize;

use crate::device::DeviceArg;
use crate::failure::{CliResult, Failure};
use crate::model::ModelArg;
use crate::output::{Output, paint_err};

/// Write text with a language model
///
/// Text goes to standard output as it is written, speeds to standard error at the end. Ctrl-C ends the text, shows the speeds and
/// leaves with code 130.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to continue, or to answer with --chat; `-` reads standard input
    prompt: Option<String>,
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    device: DeviceArg,
    /// Most tokens to write [default: 128 with the model in the box, else until the model ends or the context is full]
    #[arg(short = 'n', long = "tokens", value_name = "N")]
    tokens: Option<usize>,
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.7, allow_negative_numbers = true)]
    temperature: f32,
    /// Keep this many tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Keep the most probable tokens up to this sum
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Keep tokens at least this probable, relative to the most probable one
    #[arg(long, value_name = "P", default_value_t = 0.05, allow_negative_numbers = true)]
    min_p: f32,
    /// Weakens tokens that have been used; 1 does nothing
    #[arg(long, value_name = "X", default_value_t = 1.1, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Same seed, prompt and options give the same text [default: a random one]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// End where this text appears; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on where the model would end
    #[arg(long)]
    ignore_eos: bool,
    /// Put the prompt into the model's chat template
    #[arg(long)]
    chat: bool,
    /// Message of the system in a chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Do not repeat the prompt before the text
    #[arg(long)]
    no_echo: bool,
    /// Print one JSON object at the end instead of streaming
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Most tokens to write. The model in the box goes on for ever.
    fn limit(&self) -> Option<usize> {
        self.tokens.or(self.model.model.is_none().then_some(128))
    }
}

#[derive(Serialize)]
struct Report<'a> {
    prompt: &'a str,
    text: &'a str,
    tokens: &'a [u32],
    prompt_tokens: usize,
    generated_tokens: usize,
    prompt_tokens_per_second: f64,
    generation_tokens_per_second: f64,
    seed: u64,
    /// `end`, `stop`, `length`, `context` or `interrupted`.
    reason: &'static str,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let prompt = read_prompt(args)?;
    let (_, ctx) = args.device.open()?;
    let sampling = SamplingParams {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repeat_penalty,
        seed: args.seed,
        ..SamplingParams::default()
    };
    // Parameters out of range are found before anything is loaded; a random seed is drawn here, so that it can be shown.
    let seed = Sampler::new(sampling.clone())?.seed();
    let mut sampling = SamplingParams { seed: Some(seed), ..sampling };
    let mut generator = args.model.load(&ctx)?;
    let ids = encode(args, &generator, &prompt)?;
    // Before anything is shown.
    generator.check_prompt(&ids)?;
    if args.ignore_eos {
        sampling.logit_bias = generator.tokenizer().end_of_generation().iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
    }
    let conditions = StopConditions { strings: args.stop.clone(), max_tokens: args.limit(), ..StopConditions::default() };
    if !args.json && !args.chat && !args.no_echo {
        out.write(prompt.as_bytes())?;
        out.flush()?;
    }
    crate::interrupt::listen();
    let mut failed = None;
    let mut on_text = |text: &str| {
        if !args.json
            && !text.is_empty()
            && let Err(e) = out.write(text.as_bytes()).and_then(|()| out.flush())
        {
            failed = Some(e);
        }
        failed.is_none() && !crate::interrupt::requested()
    };
    let done = generator.generate(&ids, sampling, conditions, &mut on_text)?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let interrupted = done.reason.is_none();
    if args.json {
        out.json(&Report {
            prompt: &prompt,
            text: &done.text,
            tokens: &done.tokens,
            prompt_tokens: done.prompt_tokens,
            generated_tokens: done.tokens.len(),
            prompt_tokens_per_second: rate(done.prompt_tokens, done.prompt_time),
            generation_tokens_per_second: generation_rate(&done),
            seed,
            reason: reason(&done, args),
        })?;
    } else {
        out.line("")?;
        out.flush()?;
        statistics(&done, seed, reason(&done, args));
    }
    if interrupted { Err(Failure::stopped()) } else { Ok(()) }
}

fn read_prompt(args: &Args) -> CliResult<String> {
    let prompt = match args.prompt.as_deref() {
        Some("-") => None,
        None if std::io::stdin().is_terminal() => {
            return Err(
                Failure::usage("no prompt").hint("give one, as in `kernelry generate \"Ownership is\"`, or `-` to read standard input")
            );
        }
        other => other.map(str::to_owned),
    };
    let prompt = match prompt {
        Some(prompt) => prompt,
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(|e| Failure::runtime(format!("standard input: {e}")))?;
            String::from_utf8(bytes).map_err(|_| Failure::runtime("standard input: got bytes that are not UTF-8"))?
        }
    };
    if prompt.is_empty() { Err(Failure::usage("the prompt is empty")) } else { Ok(prompt) }
}

/// Token ids of the prompt. What a user writes cannot spell control tokens, with or without a template.
fn encode(args: &Args, generator: &Generator, prompt: &str) -> CliResult<Vec<u32>> {
    let tokenizer = generator.tokenizer();
    if !args.chat {
        return Ok(tokenizer.encode_prompt(prompt, Specials::UserDefined)?);
    }
    let architecture = generator.model().config().architecture.name();
    let template = ChatTemplate::resolve(None, None, generator.chat_template(), architecture, tokenizer)?;
    let system = args.system.as_deref().map(|text| Message::new("system", text));
    let messages: Vec<Message> = system.into_iter().chain([Message::new("user", prompt)]).map(|m| m.guarded(tokenizer)).collect();
    let text = template.render(&ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() })?;
    Ok(tokenizer.encode_prompt(&text, Specials::Parse)?)
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// The first token comes from the prompt's logits: it costs no step.
fn generation_rate(done: &Generated) -> f64 {
    rate(done.tokens.len().saturating_sub(1), done.generation_time)
}

/// Why the text ended, in a word.
fn reason(done: &Generated, args: &Args) -> &'static str {
    match &done.reason {
        Some(StopReason::Token(_)) => "end",
        Some(StopReason::Text(_)) => "stop",
        Some(StopReason::Length) if args.limit().is_some_and(|limit| done.tokens.len() >= limit) => "length",
        Some(StopReason::Length) => "context",
        None => "interrupted",
    }
}

fn statistics(done: &Generated, seed: u64, reason: &str) {
    let reason = match reason {
        "end" => "the model",
        "stop" => "a stop text",
        "length" => "the limit of -n",
        "context" => "the end of the context",
        _ => "Ctrl-C",
    };
    let line = format!(
        "prompt {} tokens, {:.0} tokens/s; generation {} tokens, {:.0} tokens/s; seed {seed}; ended by {reason}",
        done.prompt_tokens,
        rate(done.prompt_tokens, done.prompt_time),
        done.tokens.len(),
        generation_rate(done)
    );
    // Where standard error is gone, nobody is left to tell.
    let _ = writeln!(std::io::stderr(), "{}", paint_err("2", &line));
}
