//! Which shapes a kernel is measured at.

use crate::catalogue::{Access, Cost, Kernel, ParamKind};
use crate::conformance::{Case, Cases};
use crate::registry::Math;

/// Intensity of the conformance cases that shapes are taken from: the lowest one that has the real model shapes.
const INTENSITY: u32 = 2;

/// Shapes of one kernel, at most.
const SHAPES: usize = 3;

/// Parameters that a kernel is measured at.
#[derive(Clone)]
pub struct BenchShape {
    pub(super) case: Case,
    pub(super) cost: Cost,
    /// Those bytes of the cost that are read.
    pub(super) read: f64,
    text: String,
}

impl BenchShape {
    fn new(kernel: &'static Kernel, case: Case, text: String) -> Option<BenchShape> {
        let cost = kernel.cost(&case.params).ok()?;
        let mut written = 0.0;
        for (i, b) in kernel.bindings().iter().enumerate().filter(|(_, b)| b.access() == Access::Write && !b.optional()) {
            let elements: f64 = kernel.dims(i, &case.params).ok()?.iter().map(|&d| d as f64).product();
            written += elements * b.dtype().size() as f64;
        }
        (cost.bytes > 0.0).then_some(BenchShape { read: cost.bytes - written, case, cost, text })
    }

    fn work(&self) -> f64 {
        self.cost.bytes + self.cost.flops
    }

    /// The sizes that matter, as in `rows=3 dim=4096`.
    pub fn text(&self) -> &str {
        &self.text
    }
    /// The parameter block.
    pub fn params(&self) -> &[u8] {
        &self.case.params
    }
    /// Work of a launch.
    pub fn cost(&self) -> Cost {
        self.cost
    }
    /// Math mode.
    pub fn math(&self) -> Math {
        self.case.math
    }
}

/// The shapes that `kernel` is measured at on a backend: those that its family lists (see [`Cases::bench`]), and else those of its cases
/// that do the most work; on GPUs those that only they are fast enough for as well. Empty for a kernel without cases.
pub fn shapes(kernel: &'static Kernel, backend: &str) -> Vec<BenchShape> {
    let Some(cases) = kernel.cases else { return Vec::new() };
    let mut list = Cases::new(kernel, INTENSITY);
    cases(&mut list);
    let gpu = is_gpu(backend);
    let (large, everywhere): (Vec<Case>, Vec<Case>) = list.benches.into_iter().partition(|c| c.gpus_only);
    let mut chosen = if everywhere.is_empty() { largest(kernel, list.list) } else { Vec::new() };
    for case in everywhere.into_iter().chain(large.into_iter().filter(|_| gpu)) {
        let text = case.label().to_owned();
        // Texts compute the same in both modes.
        if backend == "cpu" && kernel.has_fast_math() && case.math == Math::Precise {
            let mut fast = case.clone();
            fast.fast();
            chosen.extend(BenchShape::new(kernel, case, text.clone()));
            chosen.extend(BenchShape::new(kernel, fast, text));
        } else {
            chosen.extend(BenchShape::new(kernel, case, text));
        }
    }
    chosen
}

/// Whether a backend runs on a GPU, and not on the host as one.
pub(super) fn is_gpu(backend: &str) -> bool {
    matches!(backend, "cuda" | "metal")
}

/// The cases that do the most work, no two of one size.
fn largest(kernel: &'static Kernel, cases: Vec<Case>) -> Vec<BenchShape> {
    // A case that is about aliasing has the size of some plain case.
    let (aliased, plain): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|c| !c.alias.is_empty());
    let shape = |case: Case| {
        let text = describe(kernel, &case);
        BenchShape::new(kernel, case, text)
    };
    let mut found: Vec<BenchShape> = plain.into_iter().chain(aliased).filter_map(shape).collect();
    found.sort_by(|a, b| b.work().total_cmp(&a.work()));
    let mut chosen: Vec<BenchShape> = Vec::new();
    for shape in found {
        let same = |c: &BenchShape| c.cost == shape.cost && c.case.math == shape.case.math && c.case.constants == shape.case.constants;
        // What is far smaller than the largest is there to hit tile edges.
        let tiny = chosen.first().is_some_and(|c| shape.work() * 1024.0 < c.work());
        if !tiny && chosen.len() < SHAPES && !chosen.iter().any(same) {
            chosen.push(shape);
        }
    }
    chosen
}

fn describe(kernel: &Kernel, case: &Case) -> String {
    let layout = kernel.params();
    let sizes = layout.fields.iter().filter(|f| f.kind != ParamKind::F32);
    let mut words: Vec<String> = sizes.filter_map(|f| Some(format!("{}={}", f.name, layout.symbol(&case.params, f)?))).collect();
    words.extend(case.constants.iter().map(|(slot, value)| format!("{slot}:{value}")));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{largest, shapes};
    use crate::catalogue;
    use crate::conformance::Cases;
    use crate::ops::norm::NormParams;
    use crate::registry::Math;

    #[test]
    fn every_tested_kernel_has_a_shape_with_work() {
        for kernel in catalogue::builtin().iter().filter(|k| k.is_tested()) {
            let list = shapes(kernel, "cpu");
            assert!(!list.is_empty(), "{} has no bench shape", kernel.name());
            for shape in &list {
                assert!(shape.cost().bytes > 0.0, "{} {}: no bytes", kernel.name(), shape.text());
            }
        }
    }

    #[test]
    fn gpus_have_larger_shapes_and_modes_where_launchers_differ() {
        let texts = |name: &str, backend: &str| -> Vec<(String, Math)> {
            shapes(catalogue::find(name).unwrap(), backend).iter().map(|s| (s.text().to_owned(), s.math())).collect()
        };
        let at = |m: u32, math| (format!("m={m} n=14336 k=4096"), math);
        let name = "kernel_mul_mm_q4_0_f32";
        assert_eq!(texts(name, "cpu"), [at(512, Math::Precise), at(512, Math::Fast)]);
        let both = [Math::Precise, Math::Fast].map(|math| [at(512, math), at(4096, math)]);
        assert_eq!(texts(name, "cuda"), both.concat());
        // The largest cases stay where only shapes for GPUs are listed.
        let (cpu, gpu) = (texts("elementwise_add_f32", "cpu"), texts("elementwise_add_f32", "cuda"));
        assert!(!cpu.is_empty() && gpu.starts_with(&cpu) && gpu.len() == cpu.len() + 1, "{cpu:?} {gpu:?}");
    }

    #[test]
    fn without_a_list_the_largest_cases_are_taken() {
        let kernel = catalogue::find("rms_norm_f32").unwrap();
        let mut cases = Cases::new(kernel, 1);
        cases.add("small", NormParams { rows: 1, dim: 64, eps: 0.0 });
        cases.add("large", NormParams { rows: 3, dim: 4096, eps: 0.0 });
        cases.add("again", NormParams { rows: 3, dim: 4096, eps: 1.0 });
        cases.add("tiny", NormParams { rows: 1, dim: 1, eps: 0.0 });
        let texts: Vec<String> = largest(kernel, cases.list).iter().map(|s| s.text().to_owned()).collect();
        assert_eq!(texts, ["rows=3 dim=4096", "rows=1 dim=64"]);
    }

    #[test]
    fn what_is_written_is_not_counted_as_read() {
        let shape = &shapes(catalogue::find("rms_norm_f32").unwrap(), "cpu")[0];
        let [rows, dim] = [0, 4].map(|at| f64::from(u32::from_ne_bytes(shape.params()[at..at + 4].try_into().unwrap())));
        assert_eq!((shape.read, shape.cost.bytes), (4.0 * (rows * dim + dim), 4.0 * (2.0 * rows * dim + dim)));
    }
}
