//! Writing to standard output: tables, JSON, and colour where a person reads it.

use std::io::{BufWriter, IsTerminal, Stdout, Write};
use std::sync::OnceLock;

use comfy_table::{ContentArrangement, Table, presets};

use crate::cli::Color;
use crate::failure::{CliResult, Failure};

static COLOR: OnceLock<Color> = OnceLock::new();

/// Sets what `--color` says, once.
pub(crate) fn set_color(color: Color) {
    let _ = COLOR.set(color);
}

fn wants_color(terminal: bool) -> bool {
    match COLOR.get().copied().unwrap_or(Color::Auto) {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    }
}

fn paint(on: bool, code: &str, text: &str) -> String {
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// `text` in the colour of the escape code, if standard error shows colours.
pub(crate) fn paint_err(code: &str, text: &str) -> String {
    paint(wants_color(std::io::stderr().is_terminal()), code, text)
}

/// Standard output, buffered. A closed pipe ends the command quietly.
pub(crate) struct Output {
    out: BufWriter<Stdout>,
    color: bool,
    terminal: bool,
}

impl Output {
    pub(crate) fn new() -> Output {
        let terminal = std::io::stdout().is_terminal();
        Output { out: BufWriter::new(std::io::stdout()), color: wants_color(terminal), terminal }
    }

    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> CliResult {
        writeln!(self.out, "{}", text.as_ref()).map_err(|e| Failure::stdout(&e))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> CliResult {
        self.out.write_all(bytes).map_err(|e| Failure::stdout(&e))
    }

    pub(crate) fn flush(&mut self) -> CliResult {
        self.out.flush().map_err(|e| Failure::stdout(&e))
    }

    /// A value as indented JSON.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> CliResult {
        let text = serde_json::to_string_pretty(value).map_err(|e| Failure::runtime(format!("JSON: {e}")))?;
        self.line(text)
    }

    /// A JSON object with a list `name` at its end, each element of which has a line of its own.
    pub(crate) fn json_with_rows(&mut self, head: &impl serde::Serialize, name: &str, rows: &[impl serde::Serialize]) -> CliResult {
        let broken = |e: serde_json::Error| Failure::runtime(format!("JSON: {e}"));
        let head = serde_json::to_string_pretty(head).map_err(broken)?;
        let lines = rows.iter().map(|row| serde_json::to_string(row).map(|row| format!("    {row}")));
        let lines = lines.collect::<Result<Vec<_>, _>>().map_err(broken)?.join(",\n");
        // The last brace comes again after the list.
        let head = head.strip_suffix("\n}").unwrap_or(&head);
        self.line(format!("{head},\n  \"{name}\": [\n{lines}\n  ]\n}}"))
    }

    /// A table without lines, its columns aligned, wrapped to the width of a terminal.
    pub(crate) fn table(&mut self, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> CliResult {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if header.iter().any(|h| !h.is_empty()) {
            table.set_header(header.iter().map(|h| self.dim(h)).collect::<Vec<_>>());
        }
        if self.terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        } else {
            table.force_no_tty();
        }
        table.add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.to_string().lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        paint(self.color, code, text)
    }
    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }
    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }
    pub(crate) fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }
    pub(crate) fn red(&self, text: &str) -> String {
        self.paint("1;31", text)
    }
}

/// Bytes in a unit that a person reads: `4.58 GiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.2} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.2} TiB")
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes_for_people() {
        assert_eq!(human_bytes(17), "17 B");
        assert_eq!(human_bytes(1536), "1.50 KiB");
        assert_eq!(human_bytes(5 << 30), "5.00 GiB");
        assert_eq!(human_bytes(3 << 40), "3.00 TiB");
    }
}
