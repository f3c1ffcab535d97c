//! Parameter structs: declared once in Rust, described to everything else.
//!
//! A kernel takes its buffers and one plain struct of scalars. [`params!`](crate::params) declares that struct and its layout, from
//! which the C declaration before a kernel text, the `--param` options of the command line and the tests are made.

use crate::{Error, Result};

/// A scalar that is either a value or read from the step buffer when the kernel runs.
///
/// What changes from one decode step to the next (cache length, write slot) must not be baked into a recorded graph. Such a
/// parameter names a slot of the encoder's step buffer instead; `value` is then the largest value that the slot may hold, which is
/// what shapes and geometry are checked against when the launch is recorded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepU32 {
    value: u32,
    slot: u32,
}

impl StepU32 {
    const IMMEDIATE: u32 = u32::MAX;

    /// A plain value.
    pub const fn new(value: u32) -> StepU32 {
        StepU32 { value, slot: StepU32::IMMEDIATE }
    }

    /// The value in slot `slot` of the step buffer, at most `max`.
    pub const fn from_step(slot: u32, max: u32) -> StepU32 {
        StepU32 { value: max, slot }
    }

    /// The value, or the largest one where it comes from the step buffer.
    pub const fn max(self) -> u32 {
        self.value
    }

    /// Slot of the step buffer, if the value comes from there.
    pub const fn slot(self) -> Option<u32> {
        if self.slot == StepU32::IMMEDIATE { None } else { Some(self.slot) }
    }

    /// The value for this run. A slot beyond `step`, or a value above the recorded maximum, yields the maximum, so that no
    /// kernel can be made to leave its buffers.
    pub fn get(self, step: &[u32]) -> u32 {
        match self.slot() {
            None => self.value,
            Some(slot) => step.get(slot as usize).copied().unwrap_or(self.value).min(self.value),
        }
    }
}

impl From<u32> for StepU32 {
    fn from(value: u32) -> StepU32 {
        StepU32::new(value)
    }
}

/// Type of one field of a parameter struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ParamKind {
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 32-bit integer.
    I32,
    /// IEEE binary32.
    F32,
    /// Unsigned 64-bit integer: element strides and offsets.
    U64,
    /// [`StepU32`]: an unsigned integer that may come from the step buffer.
    Step,
}

impl ParamKind {
    /// Bytes of the field.
    pub const fn size(self) -> usize {
        match self {
            ParamKind::U32 | ParamKind::I32 | ParamKind::F32 => 4,
            ParamKind::U64 | ParamKind::Step => 8,
        }
    }

    /// Its type in a kernel text.
    pub const fn c_type(self) -> &'static str {
        match self {
            ParamKind::U32 => "uint",
            ParamKind::I32 => "int",
            ParamKind::F32 => "float",
            ParamKind::U64 => "ulong",
            ParamKind::Step => "KnStep",
        }
    }
}

/// A Rust type that can be a field of a parameter struct.
pub trait ParamField: bytemuck::Pod {
    /// Its kind.
    const KIND: ParamKind;
}
impl ParamField for u32 {
    const KIND: ParamKind = ParamKind::U32;
}
impl ParamField for i32 {
    const KIND: ParamKind = ParamKind::I32;
}
impl ParamField for f32 {
    const KIND: ParamKind = ParamKind::F32;
}
impl ParamField for u64 {
    const KIND: ParamKind = ParamKind::U64;
}
impl ParamField for StepU32 {
    const KIND: ParamKind = ParamKind::Step;
}

/// One field of a parameter struct.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct ParamSpec {
    /// Field name.
    pub name: &'static str,
    /// Field type.
    pub kind: ParamKind,
    /// Byte offset in the struct.
    pub offset: usize,
    /// What it means.
    pub doc: &'static str,
}

/// Layout of a parameter struct.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct ParamLayout {
    /// Name of the struct, the same in Rust and in kernel texts.
    pub name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Fields in order.
    pub fields: &'static [ParamSpec],
}

/// A parameter struct made by [`params!`](crate::params).
pub trait Params: bytemuck::Pod {
    /// Its layout.
    const LAYOUT: ParamLayout;
}

/// A struct without fields, for kernels that need no scalars.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct NoParams {}
impl Params for NoParams {
    const LAYOUT: ParamLayout = ParamLayout { name: "NoParams", size: 0, fields: &[] };
}

#[doc(hidden)]
pub const fn field_spec(name: &'static str, kind: ParamKind, offset: usize, doc: &'static str) -> ParamSpec {
    ParamSpec { name, kind, offset, doc }
}

#[doc(hidden)]
pub const fn layout(name: &'static str, size: usize, fields: &'static [ParamSpec]) -> ParamLayout {
    ParamLayout { name, size, fields }
}

/// Declares a `#[repr(C)]` parameter struct together with its [`ParamLayout`]. A field's doc comment becomes its description.
///
/// ```
/// kernelry::params! {
///     /// Parameters of a row kernel.
///     pub struct RowParams {
///         /// number of rows
///         rows: u32,
///         /// added inside the root
///         eps: f32,
///     }
/// }
/// use kernelry::catalogue::Params;
/// assert_eq!(RowParams::LAYOUT.fields[1].name, "eps");
/// ```
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $( $(#[doc = $doc:literal])* $field:ident : $ty:ty ),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        $vis struct $name { $( $(#[doc = $doc])* pub $field: $ty ),* }
        // A block of bytes is read back as this struct, so it must not have padding, and every bit pattern must be a value:
        // fields are limited to `ParamField` types, whose sizes must add up.
        const _: () = {
            let mut bytes = 0;
            $( bytes += <$ty as $crate::catalogue::ParamField>::KIND.size(); )*
            assert!(bytes == ::std::mem::size_of::<$name>(), "a parameter struct must not have padding");
        };
        // SAFETY: all fields are plain old data without padding (asserted above) and the struct is `repr(C)`.
        unsafe impl $crate::catalogue::Zeroable for $name {}
        // SAFETY: as above.
        unsafe impl $crate::catalogue::Pod for $name {}
        impl $crate::catalogue::Params for $name {
            const LAYOUT: $crate::catalogue::ParamLayout = $crate::catalogue::params_layout(
                stringify!($name),
                ::std::mem::size_of::<$name>(),
                &[$( $crate::catalogue::params_field(
                    stringify!($field),
                    <$ty as $crate::catalogue::ParamField>::KIND,
                    ::std::mem::offset_of!($name, $field),
                    concat!("", $($doc),*),
                ) ),*],
            );
        }
    };
}

impl ParamLayout {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&ParamSpec> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// Reads an integer field as a symbol of shape expressions. Floats have no symbol.
    pub fn symbol(&self, bytes: &[u8], field: &ParamSpec) -> Option<i128> {
        let at = bytes.get(field.offset..field.offset + field.kind.size())?;
        Some(match field.kind {
            ParamKind::U32 | ParamKind::Step => i128::from(u32::from_ne_bytes(at.get(..4)?.try_into().ok()?)),
            ParamKind::I32 => i128::from(i32::from_ne_bytes(at.try_into().ok()?)),
            ParamKind::U64 => i128::from(u64::from_ne_bytes(at.try_into().ok()?)),
            ParamKind::F32 => return None,
        })
    }

    /// Writes the value given as text into a zeroed parameter block, as the command line does with `--param name=value`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the field is unknown or the text is not a value of its type.
    pub fn set(&self, op: &str, bytes: &mut [u8], name: &str, text: &str) -> Result<()> {
        let Some(field) = self.field(name) else {
            let known: Vec<_> = self.fields.iter().map(|f| f.name).collect();
            return Err(Error::invalid(op, format!("parameter: got `{name}`, expected one of: {}", known.join(", "))));
        };
        let wrong = || Error::invalid(op, format!("parameter {name}: got `{text}`, expected a value of type {}", field.kind.c_type()));
        let value: Vec<u8> = match field.kind {
            ParamKind::U32 => text.parse::<u32>().map_err(|_| wrong())?.to_ne_bytes().to_vec(),
            ParamKind::I32 => text.parse::<i32>().map_err(|_| wrong())?.to_ne_bytes().to_vec(),
            ParamKind::F32 => text.parse::<f32>().map_err(|_| wrong())?.to_ne_bytes().to_vec(),
            ParamKind::U64 => text.parse::<u64>().map_err(|_| wrong())?.to_ne_bytes().to_vec(),
            ParamKind::Step => bytemuck::bytes_of(&StepU32::new(text.parse::<u32>().map_err(|_| wrong())?)).to_vec(),
        };
        match bytes.get_mut(field.offset..field.offset + value.len()) {
            Some(slot) => slot.copy_from_slice(&value),
            None => return Err(Error::invalid(op, format!("parameter block: got {} bytes, expected {}", bytes.len(), self.size))),
        }
        Ok(())
    }

    /// The C declaration that precedes a kernel text, with a size check.
    pub fn c_declaration(&self) -> String {
        let mut text = format!("struct {} {{", self.name);
        for field in self.fields {
            text.push_str(&format!(" {} {};", field.kind.c_type(), field.name));
        }
        text.push_str(" };\n");
        text.push_str(&format!("static_assert(sizeof({}) == {}, \"layout of {}\");\n", self.name, self.size.max(1), self.name));
        text
    }
}
