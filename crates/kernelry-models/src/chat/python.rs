//! Where Jinja templates show that they were written for Python: how values print, methods of built-in types, `json.dumps`, `strftime`.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Methods of Python's strings, lists and dicts, those that pycompat lacks included.
pub(super) fn method(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [affix]) = (value.as_str(), args)
        && let Some(affix) = affix.as_str()
    {
        match method {
            "removeprefix" => return Ok(text.strip_prefix(affix).unwrap_or(text).into()),
            "removesuffix" => return Ok(text.strip_suffix(affix).unwrap_or(text).into()),
            _ => {}
        }
    }
    unknown_method_callback(state, value, method, args)
}

/// Prints a value as `str()` does.
pub(super) fn format(out: &mut Output<'_>, _state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    out.write_str(&to_str(value)?).map_err(Error::from)
}

/// The `iterable` test: what `iter()` accepts.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
}

/// The `string` filter.
pub(super) fn string(value: &Value) -> Result<String, Error> {
    to_str(value)
}

fn to_str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => {
            let mut out = String::new();
            repr(&mut out, value, 0)?;
            Ok(out)
        }
    }
}

/// A template can nest a value without end, and printing recurses.
fn check_depth(depth: usize) -> Result<(), Error> {
    const DEEPEST: usize = 128;
    if depth <= DEEPEST {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("value: got one nested more than {DEEPEST} deep")))
}

fn repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(out, value),
        ValueKind::String => quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                repr(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                repr(out, &key, depth + 1)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A string as `repr()` shows it.
fn quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number as both `repr()` and `json.dumps` show it.
fn number(out: &mut String, value: &Value) {
    if value.is_integer() {
        out.push_str(&value.to_string());
        return;
    }
    let x = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    let magnitude = x.abs();
    if x.is_nan() {
        out.push_str("nan");
    } else if x.is_infinite() {
        out.push_str(if x > 0.0 { "inf" } else { "-inf" });
    } else if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        // Rust writes 1e16 and 1e-5 where Python writes 1e+16 and 1e-05.
        let text = format!("{x:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        out.push_str(&format!("{mantissa}e{sign}{digits:0>2}"));
    } else {
        out.push_str(&format!("{x:?}"));
    }
}

/// The `tojson` filter: `json.dumps(value, ensure_ascii=False)`, with its arguments `indent`, `separators`, `sort_keys` and
/// `ensure_ascii`.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<(String, String)> = match kwargs.get::<Option<Value>>("separators")? {
        Some(pair) => {
            let text = |i| pair.get_item_by_index(i).map(|v| v.as_str().unwrap_or_default().to_owned());
            Some((text(0)?, text(1)?))
        }
        None => None,
    };
    let default = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    let (item, key) = separators.unwrap_or(default);
    let style = Style {
        indent,
        item,
        key,
        sort: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from_safe_string(out))
}

struct Style {
    indent: Option<usize>,
    item: String,
    key: String,
    sort: bool,
    ascii: bool,
}

impl Style {
    fn newline(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(1 << 16)));
        }
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => {
                let begin = out.len();
                number(out, value);
                match out.get(begin..) {
                    Some("nan") => out.replace_range(begin.., "NaN"),
                    Some("inf") => out.replace_range(begin.., "Infinity"),
                    Some("-inf") => out.replace_range(begin.., "-Infinity"),
                    _ => {}
                }
            }
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(out, ('[', ']'), depth, items.len(), |out, i| match items.get(i) {
                    Some(item) => self.write(out, item, depth + 1),
                    None => Ok(()),
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list(out, ('{', '}'), depth, keys.len(), |out, i| {
                    let Some(key) = keys.get(i) else { return Ok(()) };
                    match key.as_str() {
                        Some(text) => self.string(out, text),
                        None => self.string(out, &key.to_string()),
                    }
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: got a value of kind {kind}, expected one that JSON has"),
                ));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        out: &mut String,
        (open, close): (char, char),
        depth: usize,
        len: usize,
        mut item: impl FnMut(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for i in 0..len {
            out.push_str(if i == 0 { "" } else { &self.item });
            self.newline(out, depth + 1);
            item(out, i)?;
        }
        if len > 0 {
            self.newline(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && c as u32 >= 0x7F) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// `time.strftime` of a moment in UTC, in the C locale. Codes that it does not know stay as they are.
pub(super) fn strftime(format: &str, seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (year, month, day, day_of_year) = civil(days);
    let name = |names: &[&'static str], i: u64| usize::try_from(i).ok().and_then(|i| names.get(i).copied()).unwrap_or_default();
    let (month_name, day_name) = (name(&MONTHS, month - 1), name(&DAYS, days % 7));
    let short = |name: &str| name.chars().take(3).collect::<String>();
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let unpadded = code == Some('-');
        if unpadded {
            code = chars.next();
        }
        let mut digits = |value: u64, width: usize| {
            // Writing to a string cannot fail.
            let _ = if unpadded { write!(out, "{value}") } else { write!(out, "{value:0width$}") };
        };
        match code {
            Some('Y') => digits(year, 4),
            Some('y') => digits(year % 100, 2),
            Some('m') => digits(month, 2),
            Some('d') => digits(day, 2),
            Some('H') => digits(hour, 2),
            Some('I') => digits(hour12, 2),
            Some('M') => digits(minute, 2),
            Some('S') => digits(second, 2),
            Some('j') => digits(day_of_year, 3),
            Some('w') => digits((days + 4) % 7, 1),
            Some('u') => digits((days + 3) % 7 + 1, 1),
            Some('f') => digits(0, 6),
            Some('e') => out.push_str(&if unpadded { day.to_string() } else { format!("{day:2}") }),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&short(month_name)),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&short(day_name)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", seconds)),
            Some('T' | 'X') => out.push_str(&strftime("%H:%M:%S", seconds)),
            Some('R') => out.push_str(&strftime("%H:%M", seconds)),
            Some('D' | 'x') => out.push_str(&strftime("%m/%d/%y", seconds)),
            Some('c') => out.push_str(&strftime("%a %b %e %H:%M:%S %Y", seconds)),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('Z' | 'z') => {} // a time without a zone shows none
            Some('%') => out.push('%'),
            other => {
                out.push('%');
                if unpadded {
                    out.push('-');
                }
                out.extend(other);
            }
        }
    }
    out
}

/// Year, month, day of month and day of year (all from 1) of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64, u64) {
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    // Whole cycles of 400 years have 146 097 days, so that a far date does not walk through every year.
    let (mut year, mut rest) = (1970 + days / 146_097 * 400, days % 146_097);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = rest + 1;
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1, day_of_year)
}
