//! Symbols of a cubin, which is a 64-bit little-endian ELF file.

use std::collections::{BTreeMap, BTreeSet};

const CONTENTS: u32 = 1;
const SYMBOL_TABLE: u32 = 2;
const OBJECT: u8 = 1;
const FUNCTION: u8 = 2;

struct Section {
    kind: u32,
    offset: u64,
    size: u64,
    link: u32,
    entry_size: u64,
}

/// A symbol that is defined in the file.
struct Symbol<'a> {
    name: String,
    kind: u8,
    /// What it names, where the file has that: code, or the first value of a variable.
    contents: Option<&'a [u8]>,
}

/// Names of all functions that are defined in the file.
///
/// # Errors
/// What is wrong with the file, in words.
pub(super) fn functions(image: &[u8]) -> Result<BTreeSet<String>, String> {
    Ok(symbols(image)?.into_iter().filter(|s| s.kind == FUNCTION).map(|s| s.name).collect())
}

/// First values of all variables of four bytes that are defined in the file.
///
/// # Errors
/// As [`functions`].
pub(super) fn words(image: &[u8]) -> Result<BTreeMap<String, u32>, String> {
    let word = |s: Symbol<'_>| Some((s.name, s.contents.filter(|c| c.len() == 4).and_then(|c| u32_at(c, 0))?));
    Ok(symbols(image)?.into_iter().filter(|s| s.kind == OBJECT).filter_map(word).collect())
}

fn symbols(image: &[u8]) -> Result<Vec<Symbol<'_>>, String> {
    if image.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit little-endian ELF file".into());
    }
    let cut = || "the file ends in the middle of a table".to_owned();
    let table = u64_at(image, 0x28).ok_or_else(cut)?;
    let (size, count) = (u16_at(image, 0x3a).ok_or_else(cut)?, u16_at(image, 0x3c).ok_or_else(cut)?);
    let sections = (0..u64::from(count))
        .map(|i| section(image, table.checked_add(i * u64::from(size))?))
        .collect::<Option<Vec<Section>>>()
        .ok_or_else(cut)?;
    let mut list = Vec::new();
    for symbols in sections.iter().filter(|s| s.kind == SYMBOL_TABLE) {
        let strings = sections.get(symbols.link as usize).ok_or("symbol table without names")?;
        let strings = slice(image, strings.offset, strings.size).ok_or_else(cut)?;
        let entries = slice(image, symbols.offset, symbols.size).ok_or_else(cut)?;
        for entry in entries.chunks_exact(usize::try_from(symbols.entry_size).unwrap_or(0).max(24)) {
            let (Some(name), Some(&info), Some(home)) = (u32_at(entry, 0), entry.get(4), u16_at(entry, 6)) else { continue };
            // Section 0 is for symbols that are defined elsewhere.
            if home != 0 {
                let bytes = strings.get(name as usize..).ok_or_else(cut)?;
                let bytes = bytes.split(|&b| b == 0).next().unwrap_or_default();
                let contents = sections.get(usize::from(home)).filter(|s| s.kind == CONTENTS).and_then(|s| {
                    let (at, size) = (u64_at(entry, 8)?, u64_at(entry, 16)?);
                    slice(slice(image, s.offset, s.size)?, at, size)
                });
                list.push(Symbol { name: String::from_utf8_lossy(bytes).into_owned(), kind: info & 15, contents });
            }
        }
    }
    Ok(list)
}

fn section(image: &[u8], at: u64) -> Option<Section> {
    let header = slice(image, at, 64)?;
    Some(Section {
        kind: u32_at(header, 4)?,
        offset: u64_at(header, 24)?,
        size: u64_at(header, 32)?,
        link: u32_at(header, 40)?,
        entry_size: u64_at(header, 56)?,
    })
}

fn slice(image: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    image.get(start..start.checked_add(usize::try_from(size).ok()?)?)
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    bytes(data, at).map(u16::from_le_bytes)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    bytes(data, at).map(u32::from_le_bytes)
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    bytes(data, at).map(u64::from_le_bytes)
}
