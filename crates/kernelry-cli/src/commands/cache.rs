//! `kernelry cache`.

use kernelry::Config;
use kernelry::registry::{CacheEntry, DiskCache};
use serde::Serialize;

use crate::failure::{CliResult, Failure};
use crate::output::{Output, human_bytes};

/// Show or empty the cache of compiled kernel texts
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the entries
    List(Format),
    /// Read every entry and check it: exit code 1 if one is damaged (it would be compiled again)
    Verify(Format),
    /// Remove every entry
    Clear(Format),
}

#[derive(Debug, clap::Args)]
struct Format {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing<'a> {
    folder: &'a std::path::Path,
    bytes: u64,
    damaged: usize,
    entries: Vec<CacheEntry>,
}

#[derive(Serialize)]
struct Cleared<'a> {
    folder: &'a std::path::Path,
    removed: usize,
    bytes: u64,
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let Some(folder) = Config::from_env().cache_dir.clone() else {
        return Err(Failure::runtime("there is no cache on disk: KERNELRY_CACHE is `off`, or no folder for caches is known"));
    };
    let cache = DiskCache::new(folder);
    match &args.action {
        Action::List(format) => list(&cache, false, format, out),
        Action::Verify(format) => list(&cache, true, format, out),
        Action::Clear(format) => {
            let (removed, bytes) = cache.clear()?;
            if format.json {
                return out.json(&Cleared { folder: cache.dir(), removed, bytes });
            }
            out.line(format!("{}: {removed} files removed, {}", cache.dir().display(), human_bytes(bytes)))
        }
    }
}

fn list(cache: &DiskCache, verify: bool, format: &Format, out: &mut Output) -> CliResult {
    let entries = cache.entries(verify)?;
    let damaged = entries.iter().filter(|e| e.problem.is_some()).count();
    let listing = Listing { folder: cache.dir(), bytes: entries.iter().map(|e| e.bytes).sum(), damaged, entries };
    if format.json {
        out.json(&listing)?;
    } else {
        let rows = listing.entries.iter().filter(|e| !verify || e.problem.is_some()).map(|e| {
            let key: String = e.path.file_stem().unwrap_or_default().to_string_lossy().chars().take(12).collect();
            let label = e.label.clone().unwrap_or_default();
            let state = e.problem.clone().unwrap_or_else(|| label.toolchain.chars().take(60).collect());
            vec![key, label.backend, label.kernel, human_bytes(e.bytes), if e.problem.is_some() { out.red(&state) } else { state }]
        });
        let rows: Vec<Vec<String>> = rows.collect();
        if !rows.is_empty() {
            out.table(&["entry", "backend", "first compiled for", "size", "compiler"], rows)?;
            out.line("")?;
        }
        let (count, bytes) = (listing.entries.len(), human_bytes(listing.bytes));
        out.line(format!("{}: {count} entries, {bytes}, {damaged} damaged", listing.folder.display()))?;
    }
    if damaged > 0 && verify {
        out.flush()?;
        return Err(Failure::reported());
    }
    Ok(())
}
