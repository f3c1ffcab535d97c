//! Progress bars, on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `len` items on standard error. indicatif hides it where that is no terminal.
pub(crate) fn items(len: usize) -> ProgressBar {
    bar(len as u64, "{bar:30} {pos}/{len} {wide_msg}")
}

/// A bar over `len` bytes.
pub(crate) fn bytes(len: u64) -> ProgressBar {
    bar(len, "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}")
}

fn bar(len: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
