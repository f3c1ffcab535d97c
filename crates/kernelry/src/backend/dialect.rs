//! The dialect of kernel texts: a prelude for each target, and the translation unit made from prelude, constants and text.

use std::fmt::Write as _;

use super::Unit;
use crate::registry::ConstantValue;

const COMMON: &str = include_str!("../../kernels/prelude/common.h");

/// A compiler family that texts are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// CUDA C++ by NVRTC.
    Cuda,
    /// Metal Shading Language.
    Metal,
    /// Plain C++ for the emulator.
    Emulator,
}

impl Target {
    /// The prelude of the target, without the part that all share.
    pub const fn prelude(self) -> &'static str {
        match self {
            Target::Cuda => include_str!("../../kernels/prelude/cuda.h"),
            Target::Metal => include_str!("../../kernels/prelude/metal.h"),
            Target::Emulator => include_str!("../../kernels/prelude/emulator.h"),
        }
    }

    /// What a compiler gets: constants as `KN_CONST_<slot>`, the prelude, and the text. Lines are numbered so that messages point into
    /// the text under its own name.
    pub fn translation_unit(self, unit: &Unit<'_>) -> String {
        let prelude = self.prelude().replace("#pragma once\n", "\n");
        let mut out = String::with_capacity(prelude.len() + COMMON.len() + unit.text.len() + 256);
        for &(slot, value) in unit.constants.iter() {
            let _ = match value {
                ConstantValue::Bool(v) => writeln!(out, "#define KN_CONST_{slot} {v}"),
                ConstantValue::I32(v) => writeln!(out, "#define KN_CONST_{slot} ({v})"),
                ConstantValue::U32(v) => writeln!(out, "#define KN_CONST_{slot} {v}u"),
                // By bits, so that the value is the same whatever a compiler makes of decimal digits.
                ConstantValue::F32(bits) => writeln!(out, "#define KN_CONST_{slot} kn_from_bits({bits}u)"),
            };
        }
        let _ = write!(out, "#line 1 \"prelude.h\"\n{prelude}\n#line 1 \"common.h\"\n{COMMON}\n#line 1 \"{}\"\n{}\n", unit.name, unit.text);
        out
    }

    /// Hash of everything of the target that is compiled with a text: part of a toolchain's name, so that another prelude is another
    /// toolchain.
    pub fn prelude_hash(self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.prelude().as_bytes()).update(COMMON.as_bytes());
        hasher.finalize().to_hex().get(..16).unwrap_or_default().to_owned()
    }
}
