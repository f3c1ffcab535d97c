//! Bounds-checked reading of the header.

use std::fmt;

use super::value::{Array, Value, ValueType};
use super::{Limits, fault};
use crate::Result;

/// The part of the file that an error is about.
#[derive(Clone, Copy)]
pub(super) enum Item<'a> {
    Header,
    KeyNumber(u64),
    Key(&'a str),
    TensorNumber(u64),
    Tensor(&'a str),
}

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Header => f.write_str("header"),
            Item::KeyNumber(i) => write!(f, "key number {i}"),
            Item::Key(key) => write!(f, "key `{}`", key.escape_debug()),
            Item::TensorNumber(i) => write!(f, "tensor number {i}"),
            Item::Tensor(name) => write!(f, "tensor `{}`", name.escape_debug()),
        }
    }
}

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    limits: &'a Limits,
    /// Array elements that may still follow in the whole file.
    elements_left: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &'a Limits) -> Cursor<'a> {
        Cursor { bytes, position: 0, limits, elements_left: limits.max_array_elements }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn take(&mut self, len: u64, item: Item<'_>) -> Result<&'a [u8]> {
        let bytes = usize::try_from(len).ok().and_then(|len| self.bytes.get(self.position..self.position.checked_add(len)?));
        let Some(bytes) = bytes else {
            let (at, left) = (self.position, self.remaining());
            return Err(fault(item, format!("needs {len} bytes at byte {at}, the file ends after {left}")));
        };
        self.position += bytes.len();
        Ok(bytes)
    }

    fn array_of<const N: usize>(&mut self, item: Item<'_>) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, item)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, item: Item<'_>) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array_of(item)?))
    }

    pub(super) fn u64(&mut self, item: Item<'_>) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array_of(item)?))
    }

    pub(super) fn string(&mut self, item: Item<'_>) -> Result<&'a str> {
        let len = self.u64(item)?;
        if len > self.limits.max_string_bytes {
            return Err(fault(item, format!("string of {len} bytes, at most {} allowed", self.limits.max_string_bytes)));
        }
        let at = self.position;
        std::str::from_utf8(self.take(len, item)?).map_err(|e| fault(item, format!("string at byte {at} is not UTF-8: {e}")))
    }

    /// Checks a count against a limit and against the bytes that so many entries need at least, before anything is allocated for it.
    pub(super) fn check_count(&self, count: u64, limit: u64, entry_bytes: u64, what: &str, item: Item<'_>) -> Result<usize> {
        if count > limit {
            return Err(fault(item, format!("{count} {what}, at most {limit} allowed")));
        }
        match usize::try_from(count) {
            Ok(n) if count.checked_mul(entry_bytes).is_some_and(|bytes| bytes <= self.remaining() as u64) => Ok(n),
            _ => Err(fault(item, format!("{count} {what} do not fit in the {} bytes that remain", self.remaining()))),
        }
    }

    fn value_type(&mut self, item: Item<'_>) -> Result<ValueType> {
        let id = self.u32(item)?;
        ValueType::from_id(id).ok_or_else(|| fault(item, format!("unknown value type {id}")))
    }

    fn bool(&self, byte: u8, item: Item<'_>) -> Result<bool> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(fault(item, format!("boolean has value {other}, expected 0 or 1"))),
        }
    }

    pub(super) fn value(&mut self, item: Item<'_>) -> Result<Value> {
        Ok(match self.value_type(item)? {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array_of(item)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array_of(item)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array_of(item)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array_of(item)?)),
            ValueType::U32 => Value::U32(self.u32(item)?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array_of(item)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array_of(item)?)),
            ValueType::Bool => {
                let [byte] = self.array_of(item)?;
                Value::Bool(self.bool(byte, item)?)
            }
            ValueType::String => Value::String(self.string(item)?.to_owned()),
            ValueType::Array => Value::Array(self.array(item, 1)?),
            ValueType::U64 => Value::U64(self.u64(item)?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array_of(item)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array_of(item)?)),
        })
    }

    fn numbers<T, const N: usize>(&mut self, count: usize, from: fn([u8; N]) -> T, item: Item<'_>) -> Result<Vec<T>> {
        // `count * N` was checked against the bytes that remain.
        Ok(self.take((count * N) as u64, item)?.as_chunks::<N>().0.iter().map(|bytes| from(*bytes)).collect())
    }

    fn array(&mut self, item: Item<'_>, depth: u32) -> Result<Array> {
        // Reading and dropping recurse: no limit may be lifted beyond what any stack holds.
        let max_nesting = self.limits.max_nesting.min(256);
        if depth > max_nesting {
            return Err(fault(item, format!("arrays nested deeper than {max_nesting}")));
        }
        let ty = self.value_type(item)?;
        let count = self.u64(item)?;
        let n = self.check_count(count, self.elements_left, ty.min_bytes(), "array elements", item)?;
        self.elements_left -= count;
        Ok(match ty {
            ValueType::U8 => Array::U8(self.take(count, item)?.to_vec()),
            ValueType::I8 => Array::I8(self.numbers(n, i8::from_le_bytes, item)?),
            ValueType::U16 => Array::U16(self.numbers(n, u16::from_le_bytes, item)?),
            ValueType::I16 => Array::I16(self.numbers(n, i16::from_le_bytes, item)?),
            ValueType::U32 => Array::U32(self.numbers(n, u32::from_le_bytes, item)?),
            ValueType::I32 => Array::I32(self.numbers(n, i32::from_le_bytes, item)?),
            ValueType::F32 => Array::F32(self.numbers(n, f32::from_le_bytes, item)?),
            ValueType::U64 => Array::U64(self.numbers(n, u64::from_le_bytes, item)?),
            ValueType::I64 => Array::I64(self.numbers(n, i64::from_le_bytes, item)?),
            ValueType::F64 => Array::F64(self.numbers(n, f64::from_le_bytes, item)?),
            ValueType::Bool => {
                let bytes = self.take(count, item)?;
                Array::Bool(bytes.iter().map(|&byte| self.bool(byte, item)).collect::<Result<_>>()?)
            }
            ValueType::String => Array::String((0..n).map(|_| Ok(self.string(item)?.to_owned())).collect::<Result<_>>()?),
            ValueType::Array => Array::Array((0..n).map(|_| self.array(item, depth + 1)).collect::<Result<_>>()?),
        })
    }
}
