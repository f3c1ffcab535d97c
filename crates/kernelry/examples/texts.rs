//! Writes every kernel text as the compilers get it: `cargo run --example texts -- OUT_DIR [NAME_PART]` makes
//! `OUT_DIR/{cuda,metal,emulator}/<kernel>.{cu,metal,cpp}`, one file for all kernels that share a text.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;

use kernelry::backend::{Target, Unit};
use kernelry::{catalogue, registry};

fn main() {
    let out = std::env::args().nth(1).expect("a folder to write to");
    let part = std::env::args().nth(2).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for kernel in catalogue::builtin().iter().filter(|k| k.name().contains(&part)) {
        let Some(text) = kernel.gpu_text() else { continue };
        if !seen.insert(text.clone()) {
            continue;
        }
        for (target, folder, extension) in
            [(Target::Cuda, "cuda", "cu"), (Target::Metal, "metal", "metal"), (Target::Emulator, "emulator", "cpp")]
        {
            let unit = Unit::new(kernel.name(), &text, &registry::Constants::NONE, registry::Options::default());
            let path = Path::new(&out).join(folder).join(format!("{}.{extension}", kernel.name()));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, target.translation_unit(&unit)).unwrap();
        }
    }
    println!("{} texts", seen.len());
}
