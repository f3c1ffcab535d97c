//! Metadata values.

use std::fmt;

macro_rules! value_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $min_bytes:literal, $name:literal, $ty:ty;)*) => {
        /// Type of a metadata value, as GGUF numbers them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ValueType { $($(#[$doc])* $variant = $id,)* }

        impl ValueType {
            /// The type of that id.
            pub const fn from_id(id: u32) -> Option<ValueType> {
                match id { $($id => Some(ValueType::$variant),)* _ => None }
            }

            /// Name, as in `u32` or `string`.
            pub const fn name(self) -> &'static str {
                match self { $(ValueType::$variant => $name,)* }
            }

            /// Least bytes that a value of this type takes in a file.
            pub(super) const fn min_bytes(self) -> u64 {
                match self { $(ValueType::$variant => $min_bytes,)* }
            }
        }

        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value { $($(#[$doc])* $variant($ty),)* }

        /// Elements of one type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array { $($(#[$doc])* $variant(Vec<$ty>),)* }

        impl Value {
            /// Its type.
            pub const fn ty(&self) -> ValueType {
                match self { $(Value::$variant(_) => ValueType::$variant,)* }
            }
        }

        impl Array {
            /// Type of its elements; known even when there are none.
            pub const fn element_type(&self) -> ValueType {
                match self { $(Array::$variant(_) => ValueType::$variant,)* }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(Array::$variant(v) => v.len(),)* }
            }

            /// The element at `index`, cloned into a value.
            pub fn get(&self, index: usize) -> Option<Value> {
                match self { $(Array::$variant(v) => v.get(index).cloned().map(Value::$variant),)* }
            }
        }

        $(impl From<$ty> for Value {
            fn from(v: $ty) -> Value {
                Value::$variant(v)
            }
        }
        impl From<Vec<$ty>> for Value {
            fn from(v: Vec<$ty>) -> Value {
                Value::Array(Array::$variant(v))
            }
        })*
    };
}

value_types! {
    /// Unsigned byte.
    U8 = 0, 1, "u8", u8;
    /// Signed byte.
    I8 = 1, 1, "i8", i8;
    /// Unsigned 16-bit integer.
    U16 = 2, 2, "u16", u16;
    /// Signed 16-bit integer.
    I16 = 3, 2, "i16", i16;
    /// Unsigned 32-bit integer.
    U32 = 4, 4, "u32", u32;
    /// Signed 32-bit integer.
    I32 = 5, 4, "i32", i32;
    /// IEEE binary32.
    F32 = 6, 4, "f32", f32;
    /// Boolean, one byte.
    Bool = 7, 1, "bool", bool;
    /// UTF-8 text.
    String = 8, 8, "string", String;
    /// Array, nested if its elements are arrays.
    Array = 9, 12, "array", Array;
    /// Unsigned 64-bit integer.
    U64 = 10, 8, "u64", u64;
    /// Signed 64-bit integer.
    I64 = 11, 8, "i64", i64;
    /// IEEE binary64.
    F64 = 12, 8, "f64", f64;
}

impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::String(v.to_owned())
    }
}

impl From<Vec<&str>> for Value {
    fn from(v: Vec<&str>) -> Value {
        Value::Array(Array::String(v.into_iter().map(str::to_owned).collect()))
    }
}

impl Array {
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Text for people: strings quoted, long arrays and long strings cut short.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::String(v) => match v.char_indices().nth(80) {
                Some((end, _)) => write!(f, "\"{}\"... ({} bytes)", v.get(..end).unwrap_or_default().escape_debug(), v.len()),
                None => write!(f, "\"{}\"", v.escape_debug()),
            },
            Value::Array(v) => v.fmt(f),
        }
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        f.write_str("[")?;
        for (i, value) in (0..self.len().min(SHOWN)).filter_map(|i| self.get(i)).enumerate() {
            write!(f, "{}{value}", if i == 0 { "" } else { ", " })?;
        }
        if self.len() > SHOWN { write!(f, ", ... ({} {})]", self.len(), self.element_type().name()) } else { f.write_str("]") }
    }
}

/// A Rust type that a metadata value can be read as.
///
/// Integers of any stored type are accepted if the number fits, and so are floats of either width; nothing else is converted.
pub trait FromValue<'a>: Sized {
    /// What is accepted, for error texts.
    const EXPECTED: &'static str;

    /// The value as this type, or `None` if it is another one or does not fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! integers {
    ($($ty:ident, $one:literal, $many:literal;)*) => {$(
        impl FromValue<'_> for $ty {
            const EXPECTED: &'static str = $one;
            fn from_value(value: &Value) -> Option<$ty> {
                match value {
                    Value::U8(v) => $ty::try_from(*v).ok(),
                    Value::I8(v) => $ty::try_from(*v).ok(),
                    Value::U16(v) => $ty::try_from(*v).ok(),
                    Value::I16(v) => $ty::try_from(*v).ok(),
                    Value::U32(v) => $ty::try_from(*v).ok(),
                    Value::I32(v) => $ty::try_from(*v).ok(),
                    Value::U64(v) => $ty::try_from(*v).ok(),
                    Value::I64(v) => $ty::try_from(*v).ok(),
                    _ => None,
                }
            }
        }
        impl FromValue<'_> for Vec<$ty> {
            const EXPECTED: &'static str = $many;
            fn from_value(value: &Value) -> Option<Vec<$ty>> {
                let Value::Array(array) = value else { return None };
                match array {
                    Array::U8(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    Array::I8(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    Array::U16(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    Array::I16(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    Array::U32(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    Array::I32(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    Array::U64(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    Array::I64(v) => v.iter().map(|v| $ty::try_from(*v).ok()).collect(),
                    _ => None,
                }
            }
        }
    )*};
}
integers! {
    u8, "an integer in the range of u8", "an array of integers in the range of u8";
    u32, "an integer in the range of u32", "an array of integers in the range of u32";
    i32, "an integer in the range of i32", "an array of integers in the range of i32";
    u64, "an integer in the range of u64", "an array of integers in the range of u64";
    i64, "an integer in the range of i64", "an array of integers in the range of i64";
    usize, "an integer in the range of usize", "an array of integers in the range of usize";
}

macro_rules! floats {
    ($($ty:ident;)*) => {$(
        impl FromValue<'_> for $ty {
            const EXPECTED: &'static str = "a float";
            fn from_value(value: &Value) -> Option<$ty> {
                match value {
                    Value::F32(v) => Some(*v as $ty),
                    Value::F64(v) => Some(*v as $ty),
                    _ => None,
                }
            }
        }
        impl FromValue<'_> for Vec<$ty> {
            const EXPECTED: &'static str = "an array of floats";
            fn from_value(value: &Value) -> Option<Vec<$ty>> {
                match value {
                    Value::Array(Array::F32(v)) => Some(v.iter().map(|v| *v as $ty).collect()),
                    Value::Array(Array::F64(v)) => Some(v.iter().map(|v| *v as $ty).collect()),
                    _ => None,
                }
            }
        }
    )*};
}
floats! { f32; f64; }

macro_rules! borrowed {
    ($($ty:ty, $expected:literal, $pattern:pat => $value:expr;)*) => {$(
        impl<'a> FromValue<'a> for $ty {
            const EXPECTED: &'static str = $expected;
            fn from_value(value: &'a Value) -> Option<$ty> {
                match value { $pattern => Some($value), _ => None }
            }
        }
    )*};
}
borrowed! {
    bool, "a boolean", Value::Bool(v) => *v;
    &'a str, "a string", Value::String(v) => v;
    &'a [String], "an array of strings", Value::Array(Array::String(v)) => v;
    &'a [bool], "an array of booleans", Value::Array(Array::Bool(v)) => v;
    &'a Array, "an array", Value::Array(v) => v;
}
