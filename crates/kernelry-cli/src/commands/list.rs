//! `kernelry list`.

use std::collections::BTreeMap;

use kernelry::backend::Support;
use kernelry::catalogue::{self, Family, Kernel};
use kernelry::{BACKENDS, Device, backend_state};
use serde::Serialize;

use crate::device::{DeviceArg, family};
use crate::failure::CliResult;
use crate::output::Output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this family
    #[arg(long, short, value_name = "F")]
    family: Option<String>,
    #[command(flatten)]
    device: DeviceArg,
    /// Only kernels that the device has
    #[arg(long, conflicts_with = "missing")]
    available: bool,
    /// Only kernels that the device lacks
    #[arg(long)]
    missing: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    family: Family,
    summary: &'static str,
    /// Not one of the names that every version promises.
    extra: bool,
    backends: BTreeMap<&'static str, Support>,
}

/// Which backends have which kernels. Opens each backend once.
pub(crate) struct Backends(Vec<(&'static str, Result<Device, String>)>);

impl Backends {
    pub(crate) fn open() -> Backends {
        // The state says more than the error: why this build or machine has no such device.
        Backends(BACKENDS.iter().map(|&name| (name, Device::open(name).map_err(|_| backend_state(name)))).collect())
    }

    pub(crate) fn support(&self, kernel: &Kernel) -> BTreeMap<&'static str, Support> {
        let one = |device: &Result<Device, String>| match device {
            Ok(device) => device.support(kernel),
            Err(reason) => Support::no(reason.clone()),
        };
        self.0.iter().map(|(name, device)| (*name, one(device))).collect()
    }
}

pub(crate) fn run(args: &Args, out: &mut Output) -> CliResult {
    let family = args.family.as_deref().map(family).transpose()?;
    let device = args.device.name()?;
    let backend = device.split(':').next().unwrap_or_default();
    let backends = Backends::open();
    let has = |row: &Row| row.backends.get(backend).is_some_and(|s| s.supported);
    let rows: Vec<Row> = catalogue::builtin()
        .iter()
        .filter(|k| family.is_none_or(|f| f == k.family()))
        .map(|k| Row { name: k.name(), family: k.family(), summary: k.summary(), extra: k.is_extra(), backends: backends.support(k) })
        .filter(|row| if args.available { has(row) } else { !args.missing || !has(row) })
        .collect();
    if args.json {
        return out.json(&rows);
    }
    // A device that was asked for gets a column of its own with the reason.
    let only = args.device.device.is_some().then_some(backend);
    for family in Family::ALL {
        let inside: Vec<&Row> = rows.iter().filter(|r| r.family == *family).collect();
        if inside.is_empty() {
            continue;
        }
        let count = inside.iter().filter(|r| has(r)).count();
        let title = format!("{family} ({count} of {} on {backend})", inside.len());
        out.line(format!("{}  {}", out.bold(&title), out.dim(family.summary())))?;
        let mut header = vec!["  name"];
        header.extend(BACKENDS.iter().filter(|b| only.is_none_or(|o| o == **b)));
        header.push(if only.is_some() { "reason" } else { "summary" });
        let cell = |s: &Support| if s.supported { out.green("yes") } else { out.dim("-") };
        let cells: Vec<Vec<String>> = inside
            .iter()
            .map(|row| {
                let name = if row.extra { format!("{}+", row.name) } else { row.name.to_owned() };
                let mut cells = vec![format!("  {name}")];
                for backend in BACKENDS.iter().filter(|b| only.is_none_or(|o| o == **b)) {
                    cells.push(row.backends.get(backend).map_or_else(String::new, cell));
                }
                let last = only.and_then(|o| row.backends.get(o)).map_or(row.summary, |s| s.reason.as_str());
                cells.push(last.to_owned());
                cells
            })
            .collect();
        out.table(&header, cells)?;
        out.line("")?;
    }
    let count = rows.iter().filter(|r| has(r)).count();
    let extra = rows.iter().filter(|r| r.extra).count();
    let extras = if extra > 0 { format!(", {extra} of them (+) beyond the core names") } else { String::new() };
    out.line(format!("{} kernels{extras}; {count} available on {backend}", rows.len()))
}
