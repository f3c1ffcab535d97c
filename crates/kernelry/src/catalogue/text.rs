//! Kernel texts: one text of the dialect for every GPU, assembled with parameter structs and instances.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::{Kernel, builtin};

/// A file of the dialect, embedded in the library. Made by [`kernel_text!`](crate::kernel_text).
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// Path below `kernels/`, as compilers report it.
    pub path: &'static str,
    /// Contents.
    pub body: &'static str,
}

/// Embeds a file below `kernels/`.
#[doc(hidden)]
#[macro_export]
macro_rules! kernel_text {
    ($path:literal) => {
        $crate::catalogue::Text { path: $path, body: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $path)) }
    };
}

/// Files that texts may include, by path.
const SHARED: &[Text] = &[
    kernel_text!("attention/decode_core.h"),
    kernel_text!("attention/prefill_wgmma.h"),
    kernel_text!("attention/tile.h"),
    kernel_text!("common/wgmma.h"),
    kernel_text!("map.h"),
    kernel_text!("matmul/dense_wgmma.h"),
    kernel_text!("matmul/operands.h"),
    kernel_text!("matmul/tile.h"),
    kernel_text!("quantized/blocks.h"),
    kernel_text!("quantized/dequant.h"),
    kernel_text!("quantized/mul_mm_wgmma.h"),
    kernel_text!("quantized/rows.h"),
    kernel_text!("quantized/rows_half.h"),
    kernel_text!("quantized/rows_integer.h"),
    kernel_text!("quantized/rows_stream.h"),
    kernel_text!("row_copy.h"),
    kernel_text!("sampling/order.h"),
];

/// The text of one entry: a file, and the lines after it that make the instances. Entries with one text share one compiled module.
#[derive(Clone, Copy, Debug)]
pub struct Instance {
    pub(crate) text: Text,
    pub(crate) lines: &'static str,
}

/// Assembles what is handed to every compiler after its prelude: the parameter structs of all kernels in the file, the file with its
/// includes, and the instance lines. Each part says where it comes from, so that a compiler's message points into `kernels/`.
pub(crate) fn assemble(instance: &Instance) -> String {
    let mut out = String::new();
    let mut seen = BTreeSet::new();
    for kernel in builtin().iter().filter(|k| k.text.as_ref().is_some_and(|t| t.text.path == instance.text.path)) {
        declare(&mut out, kernel, &mut seen);
    }
    include(&mut out, &instance.text, &mut BTreeSet::new());
    if !instance.lines.is_empty() {
        let _ = write!(out, "#line 1 \"instances of {}\"\n{}\n", instance.text.path, instance.lines);
    }
    out
}

/// A file with its includes, for kernels that are in no entry.
pub(crate) fn standalone(text: &Text) -> String {
    let mut out = String::new();
    include(&mut out, text, &mut BTreeSet::new());
    out
}

fn declare(out: &mut String, kernel: &Kernel, seen: &mut BTreeSet<&'static str>) {
    if seen.insert(kernel.params().name) {
        out.push_str(&kernel.params().c_declaration());
    }
}

/// Appends a file, each included file once.
fn include(out: &mut String, text: &Text, seen: &mut BTreeSet<&'static str>) {
    if !seen.insert(text.path) {
        return;
    }
    let _ = writeln!(out, "#line 1 \"{}\"", text.path);
    for (i, line) in text.body.lines().enumerate() {
        let wanted = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match wanted.and_then(|path| SHARED.iter().find(|t| t.path == path)) {
            Some(file) => {
                include(out, file, seen);
                let _ = writeln!(out, "#line {} \"{}\"", i + 2, text.path);
            }
            // An unknown include stays as it is: the compiler's message names it.
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::builtin;

    /// A compiler may load what is `KN_IN` before a kernel waits for the one before it, and then finds what was there earlier.
    #[test]
    fn kernels_that_begin_early_have_no_operand_that_may_be_loaded_early() {
        let mut seen = 0;
        for kernel in builtin() {
            let Some(text) = kernel.gpu_text() else { continue };
            for (at, _) in text.match_indices("KN_CHAINED(") {
                let head = text[at..].split('{').next().unwrap_or_default();
                assert!(!head.contains("KN_IN("), "{}: {head}", kernel.name());
                seen += 1;
            }
        }
        assert!(seen > 0, "no text has such a kernel");
    }
}
