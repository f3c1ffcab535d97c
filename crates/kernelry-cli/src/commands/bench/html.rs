//! The report as one HTML file: a table and a roofline plot, with nothing to load from elsewhere.

use kernelry::bench::{Residency, Roofline};
use minijinja::{Environment, Value, context};

use super::row::{Entry, Row, limit_name, shape_text};
use super::{Report, limits};
use crate::failure::{CliResult, Failure};

const TEMPLATE: &str = include_str!("report.html");
/// Told apart by most eyes, on white and on black.
const COLORS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6fd1", "#808080"];
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = HEIGHT - 50.0;

/// The whole file. All text is escaped by the template.
pub(super) fn render(report: &Report, entries: &[Entry]) -> CliResult<String> {
    let mut environment = Environment::new();
    let broken = |e: minijinja::Error| Failure::runtime(format!("HTML: {e}"));
    // The ending turns escaping on.
    environment.add_template("report.html", TEMPLATE).map_err(broken)?;
    let mut families: Vec<&str> = entries.iter().map(Entry::family).collect();
    families.sort_unstable();
    families.dedup();
    let class = |family: &str| format!("f{}", families.iter().position(|f| *f == family).unwrap_or(0));
    let named: Vec<Value> =
        families.iter().enumerate().map(|(i, name)| context! { name, class => class(name), color => COLORS[i % COLORS.len()] }).collect();
    let origin = &report.origin;
    let facts = [
        ("limits", Some(limits(&report.roofline).join(", "))),
        ("backend", Some(format!("{}, {}", origin.device.backend, origin.device.arch))),
        ("driver", origin.device.driver.clone()),
        ("kernel texts by", origin.toolchain.clone()),
        ("version", Some(format!("{}{}", origin.version, origin.commit.as_ref().map_or_else(String::new, |c| format!(", commit {c}"))))),
        ("build", Some(origin.build.clone())),
        ("command", Some(origin.command.clone())),
    ];
    let facts: Vec<Value> = facts.into_iter().filter_map(|(name, value)| Some(context! { name, value => value? })).collect();
    let rows: Vec<Value> = entries.iter().map(table_row).collect();
    let template = environment.get_template("report.html").map_err(broken)?;
    let plot = plot(&report.roofline, entries, class);
    template.render(context! { device => origin.device.name, facts, rows, families => named, plot }).map_err(broken)
}

fn table_row(entry: &Entry) -> Value {
    match entry {
        Entry::Failed(f) => context! { kernel => f.kernel, shape => shape_text(&f.shape, f.math), error => f.error },
        Entry::Measured(r) => context! {
            kernel => r.kernel,
            shape => shape_text(&r.shape, r.math),
            median => format!("{:.2}", r.p50_us),
            spread => format!("{:.2} to {:.2}", r.p10_us, r.p90_us),
            gb_s => format!("{:.1}", r.gb_s),
            gflop_s => format!("{:.1}", r.gflop_s),
            share => r.roofline_pct.map(|p| format!("{p:.1}")),
            width => r.roofline_pct.map(|p| format!("{:.1}", p.clamp(0.0, 100.0))),
            limit => r.limit.map_or("", limit_name),
        },
    }
}

/// A logarithmic axis in whole decades.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    begin: f64,
    end: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, begin: f64, end: f64) -> Axis {
        let (low, high) = values.filter(|v| *v > 0.0 && v.is_finite()).fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
        let (low, high) = if high > 0.0 { (low.log10().floor(), (1.2 * high).log10().ceil()) } else { (0.0, 1.0) };
        Axis { low, high: high.max(low + 1.0), begin, end }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - self.low) / (self.high - self.low);
        let place = self.begin + share * (self.end - self.begin);
        (place * 10.0).round() / 10.0
    }

    fn ticks(&self, label: impl Fn(f64) -> String) -> Vec<Value> {
        let decades = (self.high - self.low) as i32;
        let powers = (0..=decades).map(|d| 10f64.powf(self.low + f64::from(d)));
        powers.map(|v| context! { at => self.at(v), label => label(v) }).collect()
    }
}

/// `1.5 TFLOP/s`-like numbers of operations.
fn metric(value: f64) -> String {
    let units = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let (scale, unit) = units.into_iter().find(|(scale, _)| value >= 0.999 * scale).unwrap_or((1.0, ""));
    format!("{} {unit}", (value / scale * 1e3).round() / 1e3).trim_end().to_owned()
}

fn plot(roofline: &Roofline, entries: &[Entry], class: impl Fn(&str) -> String) -> Value {
    let rows: Vec<&Row> = entries.iter().filter_map(Entry::measured).filter(|r| r.flops > 0.0 && r.bytes > 0.0).collect();
    let rates = [("f32", roofline.f32_flops_per_second), ("16-bit matrix unit", roofline.matrix16_flops_per_second)];
    let rates: Vec<(&str, f64)> = rates.into_iter().filter_map(|(name, rate)| Some((name, rate?))).collect();
    let bandwidth = roofline.copy_bytes_per_second.max(roofline.read_bytes_per_second.unwrap_or(0.0));
    let top = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    // The ridge is on the plot.
    let ridge = if bandwidth > 0.0 { top / bandwidth } else { 0.0 };
    let x = Axis::over(rows.iter().map(|r| r.flops / r.bytes).chain([ridge]), LEFT, RIGHT);
    let y = Axis::over(rows.iter().map(|r| r.gflop_s * 1e9).chain([top]), BOTTOM, TOP);
    let left = 10f64.powf(x.low);
    let mut roofs: Vec<Value> = Vec::new();
    for (name, rate) in &rates {
        let from = if bandwidth > 0.0 { (rate / bandwidth).max(left) } else { left };
        let path = format!("M {} {} H {RIGHT}", x.at(from), y.at(*rate));
        roofs.push(context! { path, x => RIGHT - 4.0, y => y.at(*rate) - 5.0, name => format!("{name}: {}FLOP/s", metric(*rate)) });
    }
    if bandwidth > 0.0 {
        // From where it enters the plot to the highest roof.
        let enter = left.max(10f64.powf(y.low) / bandwidth);
        let end = if top > 0.0 { ridge } else { 10f64.powf(y.high) / bandwidth }.min(10f64.powf(x.high));
        let path = format!("M {} {} L {} {}", x.at(enter), y.at(enter * bandwidth), x.at(end), y.at(end * bandwidth));
        let middle = (enter * end).sqrt();
        let name = format!("memory: {}B/s", metric(bandwidth));
        roofs.push(context! { path, x => x.at(middle) - 8.0, y => y.at(middle * bandwidth) - 5.0, name });
    }
    let points: Vec<Value> = rows
        .iter()
        .map(|r| {
            let share = r.roofline_pct.map_or_else(String::new, |p| format!(", {p:.0} % of the roofline"));
            context! {
                x => x.at(r.flops / r.bytes),
                y => y.at(r.gflop_s * 1e9),
                class => class(&r.family),
                cached => r.residency == Residency::Cache,
                title => format!("{} {}: {:.2} µs, {:.1} GB/s, {:.1} GFLOP/s{share}", r.kernel, shape_text(&r.shape, r.math), r.p50_us, r.gb_s, r.gflop_s),
            }
        })
        .collect();
    context! {
        width => WIDTH, height => HEIGHT, left => LEFT, right => RIGHT, top => TOP, bottom => BOTTOM,
        x => x.ticks(metric), y => y.ticks(metric), roofs, points,
    }
}
