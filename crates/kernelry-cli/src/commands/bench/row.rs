//! What is reported of a shape.

use kernelry::bench::{BenchShape, LaunchCost, LaunchStep, Limit, Measurement, Residency, Stats};
use kernelry::catalogue::{Cost, Kernel};
use kernelry::registry::Math;
use serde::{Deserialize, Serialize};

/// A shape and the math mode, where that is not what everyone expects.
pub(super) fn shape_text(shape: &str, math: Math) -> String {
    if math == Math::Fast { format!("{shape} fast") } else { shape.to_owned() }
}

/// One measured shape, the same fields in JSON and CSV.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Row {
    pub(super) kernel: String,
    pub(super) family: String,
    pub(super) backend: String,
    pub(super) shape: String,
    pub(super) math: Math,
    pub(super) samples: usize,
    pub(super) launches: usize,
    pub(super) p10_us: f64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) mean_us: f64,
    pub(super) stddev_us: f64,
    pub(super) bytes: f64,
    pub(super) flops: f64,
    pub(super) gb_s: f64,
    pub(super) gflop_s: f64,
    pub(super) roofline_pct: Option<f64>,
    pub(super) limit: Option<Limit>,
    pub(super) residency: Residency,
}

/// A shape that could not be measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Failed {
    pub(super) kernel: String,
    pub(super) family: String,
    pub(super) backend: String,
    pub(super) shape: String,
    pub(super) math: Math,
    pub(super) error: String,
}

/// One shape, measured or not.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Entry {
    Measured(Row),
    Failed(Failed),
}

/// The family of rows that say what a launch costs.
pub(super) const LAUNCH: &str = "launch";

impl Entry {
    pub(super) fn new(backend: &str, kernel: &Kernel, shape: &BenchShape, measured: kernelry::Result<Measurement>) -> Entry {
        let (name, family) = (kernel.name().to_owned(), kernel.family().name().to_owned());
        let (backend, text, math) = (backend.to_owned(), shape.text().to_owned(), shape.math());
        match measured {
            Err(error) => Entry::Failed(Failed { kernel: name, family, backend, shape: text, math, error: error.to_string() }),
            Ok(m) => Entry::Measured(Row {
                roofline_pct: m.roofline.map(|r| r * 100.0),
                limit: m.limit,
                residency: m.residency,
                math,
                ..Row::of_time([name, family, backend, text], m.time, m.launches, shape.cost())
            }),
        }
    }

    /// A step of a launch, whose kernel has next to nothing to do.
    pub(super) fn launch(backend: &str, step: LaunchStep, measured: kernelry::Result<LaunchCost>) -> Entry {
        let [kernel, family, backend, shape] = [step.kernel(), LAUNCH, backend, step.text()].map(str::to_owned);
        match measured {
            Err(error) => Entry::Failed(Failed { kernel, family, backend, shape, math: Math::Precise, error: error.to_string() }),
            Ok(m) => Entry::Measured(Row::of_time([kernel, family, backend, shape], m.time, m.launches, m.cost)),
        }
    }
}

impl Row {
    /// A row that no limit bounds.
    fn of_time([kernel, family, backend, shape]: [String; 4], time: Stats, launches: usize, cost: Cost) -> Row {
        let us = |seconds: f64| seconds * 1e6;
        let seconds = time.p50.max(1e-12);
        Row {
            kernel,
            family,
            backend,
            shape,
            math: Math::Precise,
            samples: time.samples,
            launches,
            p10_us: us(time.p10),
            p50_us: us(time.p50),
            p90_us: us(time.p90),
            mean_us: us(time.mean),
            stddev_us: us(time.stddev),
            bytes: cost.bytes,
            flops: cost.flops,
            gb_s: cost.bytes / seconds / 1e9,
            gflop_s: cost.flops / seconds / 1e9,
            roofline_pct: None,
            limit: None,
            residency: Residency::Cache,
        }
    }
}

pub(super) const CSV_HEADER: &str = "kernel,family,backend,shape,math,samples,launches,p10_us,p50_us,p90_us,mean_us,stddev_us,bytes,flops,\
                                     gb_s,gflop_s,roofline_pct,limit,residency,error";

impl Entry {
    pub(super) fn measured(&self) -> Option<&Row> {
        match self {
            Entry::Measured(row) => Some(row),
            Entry::Failed(_) => None,
        }
    }

    pub(super) fn kernel(&self) -> &str {
        match self {
            Entry::Measured(row) => &row.kernel,
            Entry::Failed(row) => &row.kernel,
        }
    }

    pub(super) fn family(&self) -> &str {
        match self {
            Entry::Measured(row) => &row.family,
            Entry::Failed(row) => &row.family,
        }
    }

    /// A line of [`CSV_HEADER`]'s columns; those that are not known are empty.
    pub(super) fn csv(&self) -> String {
        let of = |kernel: &str, family: &str, backend: &str, shape: &str, math: Math| {
            let math = if math == Math::Fast { "fast" } else { "precise" };
            format!("{},{family},{backend},{},{math}", csv_field(kernel), csv_field(shape))
        };
        match self {
            Entry::Failed(f) => {
                format!("{}{}{}", of(&f.kernel, &f.family, &f.backend, &f.shape, f.math), ",".repeat(15), csv_field(&f.error))
            }
            Entry::Measured(r) => {
                let times = [r.p10_us, r.p50_us, r.p90_us, r.mean_us, r.stddev_us].map(|t| format!("{t:.3}")).join(",");
                let roofline = r.roofline_pct.map_or_else(String::new, |p| format!("{p:.2}"));
                format!(
                    "{},{},{},{times},{},{},{:.4},{:.4},{roofline},{},{},",
                    of(&r.kernel, &r.family, &r.backend, &r.shape, r.math),
                    r.samples,
                    r.launches,
                    r.bytes,
                    r.flops,
                    r.gb_s,
                    r.gflop_s,
                    r.limit.map_or("", limit_name),
                    residency_name(r.residency),
                )
            }
        }
    }
}

pub(super) fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::Copy => "copy",
        Limit::Read => "read",
        Limit::F32 => "f32",
        Limit::Matrix16 => "matrix16",
        _ => "other",
    }
}

pub(super) fn residency_name(residency: Residency) -> &'static str {
    if residency == Residency::Memory { "memory" } else { "cache" }
}

/// Quotes a field that would not survive as it is.
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{CSV_HEADER, Entry, Failed, csv_field};
    use kernelry::registry::Math;

    #[test]
    fn fields_with_commas_are_quoted() {
        assert_eq!(csv_field("m=1 n=2"), "m=1 n=2");
        assert_eq!(csv_field("a, \"b\""), "\"a, \"\"b\"\"\"");
        assert_eq!(csv_field("a\nb"), "\"a\nb\"");
    }

    #[test]
    fn a_failure_has_every_column() {
        let word = |w: &str| w.to_owned();
        let failed = Failed {
            kernel: word("k"),
            family: word("norm"),
            backend: word("cuda"),
            shape: word("n=1"),
            math: Math::Fast,
            error: word("no memory"),
        };
        let line = Entry::Failed(failed).csv();
        assert_eq!(line.split(',').count(), CSV_HEADER.split(',').count());
        assert!(line.starts_with("k,norm,cuda,n=1,fast,,") && line.ends_with(",no memory"), "{line}");
    }
}
