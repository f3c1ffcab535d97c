//! Shape expressions of bindings, such as `rows dim/2`: one expression a dimension, over the integer fields of the parameters.

use crate::catalogue::ParamLayout;

/// One dimension, compiled to a postfix program over parameter fields.
#[derive(Clone, Debug)]
struct Dim {
    program: Vec<Op>,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Const(i128),
    Field(usize),
    Add,
    Sub,
    Mul,
    /// Floor division; by zero it has no value.
    Div,
    /// `cdiv(a, b)`: division rounded up.
    CeilDiv,
    /// `max(a, b)`.
    Max,
}

/// The shape of a binding in symbols.
#[derive(Clone, Debug)]
pub struct Shape {
    text: &'static str,
    dims: Vec<Dim>,
}

impl Shape {
    /// Compiles `text` against the fields of `layout`.
    ///
    /// # Errors
    /// A sentence that names what cannot be parsed. Catalogue entries are checked by a test, users never see it.
    pub(crate) fn parse(text: &'static str, layout: &ParamLayout) -> Result<Shape, String> {
        let mut dims = Vec::new();
        for word in split_words(text) {
            let tokens = tokenize(word)?;
            let mut parser = Parser { tokens: &tokens, at: 0, layout, program: Vec::new() };
            parser.sum()?;
            if parser.at != tokens.len() {
                return Err(format!("`{word}` in shape `{text}` has trailing tokens"));
            }
            dims.push(Dim { program: parser.program });
        }
        Ok(Shape { text, dims })
    }

    /// The expressions as written.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// The expressions one by one, slowest dimension first.
    pub fn words(&self) -> impl Iterator<Item = &'static str> + use<> {
        split_words(self.text).into_iter()
    }

    /// Evaluates every dimension. `None` if one is negative, divides by zero or overflows 63 bits.
    pub fn eval(&self, layout: &ParamLayout, params: &[u8]) -> Option<Dims> {
        let mut out = Dims::new();
        for dim in &self.dims {
            let mut stack: smallvec::SmallVec<[i128; 8]> = smallvec::SmallVec::new();
            for op in &dim.program {
                let value = match *op {
                    Op::Const(v) => v,
                    Op::Field(i) => layout.symbol(params, layout.fields.get(i)?)?,
                    binary => {
                        let b = stack.pop()?;
                        let a = stack.pop()?;
                        match binary {
                            Op::Add => a.checked_add(b)?,
                            Op::Sub => a.checked_sub(b)?,
                            Op::Mul => a.checked_mul(b)?,
                            Op::Div => a.checked_div_euclid(b)?,
                            Op::CeilDiv => a.checked_add(b)?.checked_sub(1)?.checked_div_euclid(b)?,
                            Op::Max => a.max(b),
                            Op::Const(_) | Op::Field(_) => return None,
                        }
                    }
                };
                stack.push(value);
            }
            let value = stack.pop()?;
            if !(0..=i128::from(i64::MAX)).contains(&value) {
                return None;
            }
            out.push(value as u64);
        }
        Some(out)
    }
}

/// Evaluated dimensions.
pub type Dims = smallvec::SmallVec<[u64; 6]>;

/// Splits at whitespace outside parentheses, so that `cdiv(n, 8)` stays whole.
fn split_words(text: &'static str) -> Vec<&'static str> {
    let (mut words, mut depth, mut start) = (Vec::new(), 0i32, None);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if c.is_whitespace() && depth == 0 {
            if let Some(s) = start.take() {
                words.push(&text[s..i]);
            }
        } else if start.is_none() {
            start = Some(i);
        }
    }
    if let Some(s) = start {
        words.push(&text[s..]);
    }
    words
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Number(i128),
    Name(String),
    Sign(char),
}

fn tokenize(word: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = word;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let end = |f: fn(char) -> bool| rest.find(|c: char| !f(c)).unwrap_or(rest.len());
        if c.is_ascii_digit() {
            let n = end(|c| c.is_ascii_digit());
            tokens.push(Token::Number(rest[..n].parse().map_err(|_| format!("`{word}`: number too large"))?));
            rest = &rest[n..];
        } else if c.is_ascii_alphabetic() {
            let n = end(|c| c.is_ascii_alphanumeric() || c == '_');
            tokens.push(Token::Name(rest[..n].to_owned()));
            rest = &rest[n..];
        } else if "+-*/(),".contains(c) {
            tokens.push(Token::Sign(c));
            rest = &rest[1..];
        } else {
            return Err(format!("`{word}`: unexpected `{c}`"));
        }
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    layout: &'a ParamLayout,
    program: Vec<Op>,
}

impl Parser<'_> {
    fn take(&mut self, sign: char) -> bool {
        let hit = self.tokens.get(self.at) == Some(&Token::Sign(sign));
        self.at += usize::from(hit);
        hit
    }

    fn sum(&mut self) -> Result<(), String> {
        self.product()?;
        loop {
            let op = if self.take('+') {
                Op::Add
            } else if self.take('-') {
                Op::Sub
            } else {
                return Ok(());
            };
            self.product()?;
            self.program.push(op);
        }
    }

    fn product(&mut self) -> Result<(), String> {
        self.atom()?;
        loop {
            let op = if self.take('*') {
                Op::Mul
            } else if self.take('/') {
                Op::Div
            } else {
                return Ok(());
            };
            self.atom()?;
            self.program.push(op);
        }
    }

    fn atom(&mut self) -> Result<(), String> {
        let token = self.tokens.get(self.at).cloned().ok_or("expression ends early")?;
        self.at += 1;
        match token {
            Token::Number(v) => self.program.push(Op::Const(v)),
            Token::Sign('(') => {
                self.sum()?;
                if !self.take(')') {
                    return Err("missing `)`".into());
                }
            }
            Token::Name(name) if name == "cdiv" || name == "max" => {
                if !self.take('(') {
                    return Err(format!("`{name}` needs arguments"));
                }
                self.sum()?;
                if !self.take(',') {
                    return Err(format!("`{name}` needs two arguments"));
                }
                self.sum()?;
                if !self.take(')') {
                    return Err("missing `)`".into());
                }
                self.program.push(if name == "cdiv" { Op::CeilDiv } else { Op::Max });
            }
            Token::Name(name) => {
                let i = self.layout.fields.iter().position(|f| f.name == name);
                self.program.push(Op::Field(i.ok_or_else(|| format!("unknown parameter `{name}`"))?));
            }
            Token::Sign(c) => return Err(format!("unexpected `{c}`")),
        }
        Ok(())
    }
}
