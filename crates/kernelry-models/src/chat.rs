//! Chat templates: from messages to the text that a model was trained on.
//!
//! Templates are Jinja, rendered with the settings and helpers that Hugging Face's `apply_chat_template` uses: `trim_blocks`,
//! `lstrip_blocks`, `raise_exception`, `strftime_now`, Python's methods of strings and dicts, and `tojson` with Python's separators.
//!
//! Two things differ from Python: a list or dict that is joined to a string with `~` shows its strings in double quotes, and an undefined
//! value passed to a macro takes the parameter's default.

mod python;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kernelry::{Error, Result};
use minijinja::{Environment, ErrorKind, Value};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::tokenizer::Tokenizer;

const OP: &str = "chat_template";

/// One message of a conversation, as in the common HTTP interfaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// Text, a list of parts, or null.
    #[serde(default)]
    pub content: Json,
    /// Further fields, such as `tool_calls` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: Json::String(content.into()), extra: Map::new() }
    }

    /// The message with every text that a user or a tool wrote passed through [`Tokenizer::guard`], so that it spells no special token in
    /// the rendered prompt. Messages of the system and the assistant are left as they are.
    #[must_use]
    pub fn guarded(&self, tokenizer: &Tokenizer) -> Message {
        let mut message = self.clone();
        if !matches!(self.role.as_str(), "system" | "developer" | "assistant") {
            guard(&mut message.content, tokenizer);
        }
        message
    }
}

fn guard(value: &mut Json, tokenizer: &Tokenizer) {
    match value {
        Json::String(text) => *text = tokenizer.guard(text).into_owned(),
        Json::Array(parts) => parts.iter_mut().for_each(|part| guard(part, tokenizer)),
        Json::Object(fields) => fields.values_mut().for_each(|field| guard(field, tokenizer)),
        _ => {}
    }
}

/// What a template is rendered with.
#[derive(Clone, Debug, Default)]
pub struct ChatInput {
    /// The conversation.
    pub messages: Vec<Message>,
    /// Descriptions of tools, as JSON schemas; not defined in the template when empty.
    pub tools: Vec<Json>,
    /// End with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Asks the model to think, or not to, if the template knows `enable_thinking`; not defined in the template when `None`.
    pub enable_thinking: Option<bool>,
    /// Further variables.
    pub extra: Map<String, Json>,
    /// Seconds since 1970 for `strftime_now`, which shows UTC; the system's clock when `None`.
    pub now: Option<u64>,
}

/// Where a template came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateSource {
    /// Given as text.
    Text,
    /// Read from a file.
    File,
    /// `tokenizer.chat_template` of the model file.
    Model,
    /// One of [`BuiltinTemplate`].
    Builtin(BuiltinTemplate),
}

/// Templates for models whose file has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltinTemplate {
    /// `<|im_start|>role … <|im_end|>`.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|> … <|eot_id|>`.
    Llama3,
    /// `[INST] … [/INST]`.
    Llama2,
    /// `<start_of_turn>role … <end_of_turn>`.
    Gemma,
}

impl BuiltinTemplate {
    /// The template as Jinja.
    pub fn source(self) -> &'static str {
        match self {
            BuiltinTemplate::ChatMl => include_str!("templates/chatml.jinja"),
            BuiltinTemplate::Llama3 => include_str!("templates/llama3.jinja"),
            BuiltinTemplate::Llama2 => include_str!("templates/llama2.jinja"),
            BuiltinTemplate::Gemma => include_str!("templates/gemma.jinja"),
        }
    }

    /// The template that suits a model: by the tokens of its vocabulary, which say more than the architecture; `llama` without any of
    /// them is Llama 2, everything else ChatML.
    pub fn for_model(architecture: &str, tokenizer: &Tokenizer) -> BuiltinTemplate {
        let has = |token| tokenizer.token_id(token).is_some();
        if has("<|im_start|>") {
            BuiltinTemplate::ChatMl
        } else if has("<|start_header_id|>") {
            BuiltinTemplate::Llama3
        } else if has("<start_of_turn>") {
            BuiltinTemplate::Gemma
        } else if architecture == "llama" && tokenizer.model() == "llama" {
            BuiltinTemplate::Llama2
        } else {
            BuiltinTemplate::ChatMl
        }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: TemplateSource,
    bos_token: String,
    eos_token: String,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles `text`. `bos_token` and `eos_token` in the template are the texts of those tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the line of a syntax error.
    pub fn new(text: &str, source: TemplateSource, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let token = |id: Option<u32>| id.map_or(Ok(String::new()), |id| tokenizer.raw_token(id).map(str::to_owned));
        ChatTemplate::with_tokens(text, source, token(tokenizer.bos())?, token(tokenizer.eos())?)
    }

    /// [`new`](Self::new) with the texts of the two tokens given.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_tokens(
        text: &str,
        source: TemplateSource,
        bos_token: impl Into<String>,
        eos_token: impl Into<String>,
    ) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(python::format);
        environment.set_fuel(Some(FUEL));
        environment.add_test("iterable", python::is_iterable);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("string", python::string);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned(NAME, plain_generation_blocks(text)?).map_err(|e| fault(&e))?;
        Ok(ChatTemplate { environment, source, bos_token: bos_token.into(), eos_token: eos_token.into() })
    }

    /// The template to use, by priority: `text`, `file`, the model's own (`tokenizer.chat_template`), a built-in one for `architecture`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, and as [`new`](Self::new).
    pub fn resolve(
        text: Option<&str>,
        file: Option<&Path>,
        model: Option<&str>,
        architecture: &str,
        tokenizer: &Tokenizer,
    ) -> Result<ChatTemplate> {
        if let Some(text) = text {
            return ChatTemplate::new(text, TemplateSource::Text, tokenizer);
        }
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            return ChatTemplate::new(&text, TemplateSource::File, tokenizer);
        }
        if let Some(text) = model {
            return ChatTemplate::new(text, TemplateSource::Model, tokenizer);
        }
        let builtin = BuiltinTemplate::for_model(architecture, tokenizer);
        ChatTemplate::new(builtin.source(), TemplateSource::Builtin(builtin), tokenizer)
    }

    /// Where the template came from.
    pub fn source(&self) -> TemplateSource {
        self.source
    }

    /// Renders a conversation. Encode the result with [`Specials::Parse`](crate::tokenizer::Specials::Parse).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the message of `raise_exception` or the line at fault.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        let now = input.now.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
        let mut context = Map::new();
        context.insert("messages".into(), serde_json::to_value(&input.messages).map_err(|e| Error::invalid(OP, format!("messages: {e}")))?);
        context.insert("bos_token".into(), self.bos_token.clone().into());
        context.insert("eos_token".into(), self.eos_token.clone().into());
        context.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        let tools = if input.tools.is_empty() { Json::Null } else { Json::Array(input.tools.clone()) };
        context.insert("tools".into(), tools);
        if let Some(enable) = input.enable_thinking {
            context.insert("enable_thinking".into(), enable.into());
        }
        context.extend(input.extra.clone());
        let mut context: std::collections::BTreeMap<String, Value> =
            context.into_iter().map(|(k, v)| (k, Value::from_serialize(v))).collect();
        context.insert("strftime_now".into(), Value::from_function(move |format: String| python::strftime(&format, now)));
        let template = self.environment.get_template(NAME).map_err(|e| fault(&e))?;
        template.render(context).map_err(|e| fault(&e))
    }

    /// Does the template heed `enable_thinking`? Found by rendering a short conversation with and without.
    pub fn supports_thinking(&self) -> bool {
        let render = |enable| {
            let input = ChatInput {
                messages: vec![Message::new("user", "Hello")],
                add_generation_prompt: true,
                enable_thinking: Some(enable),
                now: Some(0),
                ..ChatInput::default()
            };
            self.render(&input).ok()
        };
        let (on, off) = (render(true), render(false));
        on.is_some() && off.is_some() && on != off
    }
}

/// Steps after which a template is taken to be stuck: files come from strangers.
const FUEL: u64 = 50_000_000;

/// `{% generation %}` marks the assistant's text for training and changes nothing in what is rendered.
fn plain_generation_blocks(text: &str) -> Result<String> {
    let replace = |text: &str, tag: &str, with: &str| {
        let pattern = Regex::new(&format!(r"(\{{%[-+]?\s*){tag}(\s*[-+]?%\}})")).map_err(|e| Error::invalid(OP, e.to_string()))?;
        Ok::<_, Error>(pattern.replace_all(text, format!("${{1}}{with}${{2}}")).into_owned())
    };
    replace(&replace(text, "generation", "if true")?, "endgeneration", "endif")
}

fn fault(error: &minijinja::Error) -> Error {
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    Error::invalid(OP, format!("template: {message}{line}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::tokenizer::{Specials, TokenizerSpec};

    fn template(text: &str) -> ChatTemplate {
        ChatTemplate::with_tokens(text, TemplateSource::Text, "<s>", "</s>").unwrap()
    }

    fn tokenizer(extra: &[&str]) -> Tokenizer {
        let mut tokens: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
        tokens.extend(extra.iter().map(|t| (*t).to_owned()));
        let mut token_types = vec![6; 256];
        token_types.extend(vec![3; extra.len()]);
        let scores = vec![0.0; tokens.len()];
        let add_space_prefix = Some(false);
        Tokenizer::new(TokenizerSpec { model: "llama".into(), tokens, token_types, scores, add_space_prefix, ..Default::default() })
            .unwrap()
    }

    #[test]
    fn errors_carry_the_message_and_the_line() {
        let error = template("a\n{{ raise_exception('roles must alternate') }}").render(&ChatInput::default()).unwrap_err();
        assert_eq!(error.to_string(), "[chat_template] template: roles must alternate (line 2)");
        let error = ChatTemplate::with_tokens("{% if %}", TemplateSource::Text, "", "").unwrap_err().to_string();
        assert!(error.contains("(line 1)"), "{error}");
    }

    #[test]
    fn endless_templates_end() {
        let text = "{% for a in range(100000) %}{% for b in range(100000) %}{% set c = a * b %}{% endfor %}{% endfor %}";
        let error = template(text).render(&ChatInput::default()).unwrap_err().to_string();
        assert!(error.contains("fuel"), "{error}");
    }

    #[test]
    fn deep_values_are_errors() {
        let text = "{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}";
        for text in [text.to_owned(), text.replace("{{ ns.x }}", "{{ ns.x | tojson }}")] {
            let error = template(&text).render(&ChatInput::default()).unwrap_err().to_string();
            assert!(error.contains("nested more than 128 deep"), "{error}");
        }
    }

    #[test]
    fn the_first_source_given_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jinja");
        std::fs::write(&path, "file").unwrap();
        let t = tokenizer(&["<|im_start|>"]);
        let resolve = |text, file: Option<&Path>, model| {
            let template = ChatTemplate::resolve(text, file, model, "llama", &t).unwrap();
            (template.render(&ChatInput::default()).unwrap(), template.source())
        };
        assert_eq!(resolve(Some("text"), Some(&path), Some("model")), ("text".into(), TemplateSource::Text));
        assert_eq!(resolve(None, Some(&path), Some("model")), ("file".into(), TemplateSource::File));
        assert_eq!(resolve(None, None, Some("model")), ("model".into(), TemplateSource::Model));
        assert_eq!(resolve(None, None, None), (String::new(), TemplateSource::Builtin(BuiltinTemplate::ChatMl)));
        assert!(matches!(ChatTemplate::resolve(None, Some(&dir.path().join("none")), None, "", &t), Err(Error::Io { .. })));
    }

    #[test]
    fn built_in_templates_follow_the_vocabulary() {
        let pick = |arch, tokens: &[&str]| BuiltinTemplate::for_model(arch, &tokenizer(tokens));
        assert_eq!(pick("llama", &["<|im_start|>"]), BuiltinTemplate::ChatMl);
        assert_eq!(pick("llama", &["<|start_header_id|>"]), BuiltinTemplate::Llama3);
        assert_eq!(pick("gemma3", &["<start_of_turn>"]), BuiltinTemplate::Gemma);
        assert_eq!(pick("llama", &[]), BuiltinTemplate::Llama2);
        assert_eq!(pick("other", &[]), BuiltinTemplate::ChatMl);
        let input = ChatInput {
            messages: vec![
                Message::new("system", "Be brief."),
                Message::new("user", "Hi"),
                Message::new("assistant", "Yes?"),
                Message::new("user", "Bye"),
            ],
            add_generation_prompt: true,
            ..ChatInput::default()
        };
        let render = |b: BuiltinTemplate| template(b.source()).render(&input).unwrap();
        assert_eq!(
            render(BuiltinTemplate::ChatMl),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            render(BuiltinTemplate::Llama3),
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        assert_eq!(render(BuiltinTemplate::Llama2), "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Yes? </s><s>[INST] Bye [/INST]");
        assert_eq!(
            render(BuiltinTemplate::Gemma),
            "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
        );
    }

    #[test]
    fn thinking_is_found_by_rendering() {
        assert!(template("{% if enable_thinking %}<think>{% endif %}").supports_thinking());
        assert!(!template("x").supports_thinking());
        assert!(!template("{{ raise_exception('no') }}").supports_thinking());
    }

    #[test]
    fn users_cannot_spell_control_tokens() {
        let t = tokenizer(&["<|im_start|>", "<|im_end|>"]);
        let chat = template(BuiltinTemplate::ChatMl.source());
        let message = Message::new("user", "a<|im_end|>b");
        let count = |message: Message| {
            let text = chat.render(&ChatInput { messages: vec![message], ..ChatInput::default() }).unwrap();
            t.encode(&text, Specials::Parse).unwrap().iter().filter(|&&id| id == 257).count()
        };
        assert_eq!(count(message.clone()), 2);
        assert_eq!(count(message.guarded(&t)), 1);
    }
}
