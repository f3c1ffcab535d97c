//! Specialisation constants and the compile options that go into a pipeline's key.

use std::fmt;

use crate::{Error, Result};

/// Type of a specialisation constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConstantType {
    /// Boolean.
    Bool,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE binary32.
    F32,
}

/// Value of a specialisation constant. Floats are compared and hashed by their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConstantValue {
    /// Boolean.
    Bool(bool),
    /// Signed 32-bit integer.
    I32(i32),
    /// Unsigned 32-bit integer.
    U32(u32),
    /// IEEE binary32, by bits.
    F32(u32),
}

impl ConstantValue {
    /// A float constant.
    pub const fn f32(value: f32) -> ConstantValue {
        ConstantValue::F32(value.to_bits())
    }

    /// Its type.
    pub const fn ty(self) -> ConstantType {
        match self {
            ConstantValue::Bool(_) => ConstantType::Bool,
            ConstantValue::I32(_) => ConstantType::I32,
            ConstantValue::U32(_) => ConstantType::U32,
            ConstantValue::F32(_) => ConstantType::F32,
        }
    }

    /// Order of the groups in a key: booleans, signed, unsigned, floats.
    const fn rank(self) -> u8 {
        match self {
            ConstantValue::Bool(_) => 0,
            ConstantValue::I32(_) => 1,
            ConstantValue::U32(_) => 2,
            ConstantValue::F32(_) => 3,
        }
    }
}

impl fmt::Display for ConstantValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConstantValue::Bool(v) => write!(f, "b{}", u8::from(*v)),
            ConstantValue::I32(v) => write!(f, "i{v}"),
            ConstantValue::U32(v) => write!(f, "u{v}"),
            ConstantValue::F32(v) => write!(f, "f{v:08x}"),
        }
    }
}

/// Largest number of constants of one pipeline.
pub const MAX_CONSTANTS: usize = 8;

/// A canonical set of constants: sorted booleans first, then integers and floats, each by slot, no slot twice. Lives on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Constants {
    len: u8,
    items: [(u32, ConstantValue); MAX_CONSTANTS],
}

impl Constants {
    /// No constants: the plain kernel.
    pub const NONE: Constants = Constants { len: 0, items: [(0, ConstantValue::Bool(false)); MAX_CONSTANTS] };

    /// Canonicalises `pairs` given in any order. `name` is for the error text.
    ///
    /// # Errors
    /// [`Error::InvalidConstant`] for a slot given twice or more than [`MAX_CONSTANTS`] constants.
    pub fn new(name: &str, pairs: impl IntoIterator<Item = (u32, ConstantValue)>) -> Result<Constants> {
        let mut set = Constants::NONE;
        for (slot, value) in pairs {
            let len = usize::from(set.len);
            let invalid = |reason: String| Error::InvalidConstant { name: name.to_owned(), index: slot, reason };
            if set.iter().any(|&(s, _)| s == slot) {
                return Err(invalid("given twice".into()));
            }
            if len == MAX_CONSTANTS {
                return Err(invalid(format!("got more than {MAX_CONSTANTS} constants")));
            }
            let at = set.items[..len].iter().position(|&(s, v)| (v.rank(), s) > (value.rank(), slot)).unwrap_or(len);
            set.items.copy_within(at..len, at + 1);
            set.items[at] = (slot, value);
            set.len += 1;
        }
        Ok(set)
    }

    /// The constants in canonical order.
    pub fn iter(&self) -> std::slice::Iter<'_, (u32, ConstantValue)> {
        self.items[..usize::from(self.len)].iter()
    }

    /// The value in `slot`.
    pub fn get(&self, slot: u32) -> Option<ConstantValue> {
        self.iter().find(|&&(s, _)| s == slot).map(|&(_, v)| v)
    }

    /// True without constants.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for Constants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// How a kernel may compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Math {
    /// Operands are rounded only as the kernel's numerical class says.
    #[default]
    Precise,
    /// Also what the kernel names for this mode: on a CPU, products with GGML blocks round activations to 8 bits per block.
    Fast,
}

/// Options that are part of a pipeline's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Options {
    /// Math mode.
    pub math: Math,
}

impl Options {
    /// Options with that math mode.
    pub const fn with_math(math: Math) -> Options {
        Options { math }
    }
}

/// Formats the textual key of a pipeline: `name`, then `|slot:value` for each constant in canonical order. It is the pipeline's label
/// and the argument of [`Registry::is_cached`](super::Registry::is_cached).
pub fn format_key(name: &str, constants: &Constants) -> String {
    use fmt::Write;
    let mut key = name.to_owned();
    for (slot, value) in constants.iter() {
        // Writing to a string cannot fail.
        let _ = write!(key, "|{slot}:{value}");
    }
    key
}

/// Parses what [`format_key`] prints.
///
/// # Errors
/// [`Error::InvalidArgument`] if the text is not a key, [`Error::InvalidConstant`] for a slot given twice.
pub fn parse_key(key: &str) -> Result<(&str, Constants)> {
    let bad = |part: &str| Error::invalid("parse_key", format!("key `{key}`: got `{part}`, expected `slot:value`"));
    let mut parts = key.split('|');
    let name = parts.next().filter(|n| !n.is_empty()).ok_or_else(|| bad(""))?;
    let mut pairs = Vec::new();
    for part in parts {
        let (slot, value) = part.split_once(':').ok_or_else(|| bad(part))?;
        let slot = slot.parse().map_err(|_| bad(part))?;
        let digits = value.get(1..).ok_or_else(|| bad(part))?;
        let value = match value.as_bytes().first() {
            Some(b'b') if digits == "0" || digits == "1" => ConstantValue::Bool(digits == "1"),
            Some(b'i') => ConstantValue::I32(digits.parse().map_err(|_| bad(part))?),
            Some(b'u') => ConstantValue::U32(digits.parse().map_err(|_| bad(part))?),
            Some(b'f') => ConstantValue::F32(u32::from_str_radix(digits, 16).map_err(|_| bad(part))?),
            _ => return Err(bad(part)),
        };
        pairs.push((slot, value));
    }
    Ok((name, Constants::new(name, pairs)?))
}
