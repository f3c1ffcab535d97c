//! Which shapes a kernel is measured at.

use crate::catalogue::{Access, Cost, Family, Kernel, ParamKind};
use crate::conformance::{Case, Cases};
use crate::registry::Math;

/// Intensity of the conformance cases that shapes are taken from: the lowest one that has the real model shapes.
const INTENSITY: u32 = 2;

/// Shapes of one kernel, at most.
const SHAPES: usize = 3;

/// Parameters by name.
type Sizes = &'static [(&'static str, &'static str)];

/// Shapes of models, where the cases of a family are chosen for edges and not for size: the kernel's largest case with these
/// parameters replaced, if it has all of them.
const MODEL_SHAPES: &[(Family, &[Sizes])] = &[(Family::Norm, &[&[("rows", "512"), ("dim", "4096")], &[("rows", "1"), ("dim", "4096")]])];

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
    fn new(kernel: &'static Kernel, case: Case) -> Option<BenchShape> {
        let cost = kernel.cost(&case.params).ok()?;
        let mut text = describe(kernel, &case.params);
        for (slot, value) in &case.constants {
            text.push_str(&format!(" {slot}:{value}"));
        }
        if case.math == Math::Fast {
            text.push_str(" fast");
        }
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

    /// The integer parameters, as in `rows=3 dim=4096`.
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

/// The shapes that `kernel` is measured at, most work first: those of models where its family lists some, and else its conformance
/// cases that do the most work, no two of one size. Empty for a kernel without cases.
pub fn shapes(kernel: &'static Kernel) -> Vec<BenchShape> {
    let Some(cases) = kernel.cases else { return Vec::new() };
    let mut list = Cases::new(kernel, INTENSITY);
    cases(&mut list);
    // A case that is about aliasing has the size of some plain case.
    let (aliased, plain): (Vec<Case>, Vec<Case>) = list.list.into_iter().partition(|c| !c.alias.is_empty());
    let mut found: Vec<BenchShape> = plain.into_iter().chain(aliased).filter_map(|case| BenchShape::new(kernel, case)).collect();
    found.sort_by(|a, b| b.work().total_cmp(&a.work()));
    let mut chosen = found.first().map_or_else(Vec::new, |largest| model_shapes(kernel, &largest.case));
    if chosen.is_empty() {
        for shape in found {
            let same = |c: &BenchShape| c.cost == shape.cost && c.case.math == shape.case.math && c.case.constants == shape.case.constants;
            // What is far smaller than the largest is there to hit tile edges.
            let tiny = chosen.first().is_some_and(|c: &BenchShape| shape.work() * 1024.0 < c.work());
            if !tiny && chosen.len() < SHAPES && !chosen.iter().any(same) {
                chosen.push(shape);
            }
        }
    }
    chosen.sort_by(|a, b| b.work().total_cmp(&a.work()));
    chosen
}

fn model_shapes(kernel: &'static Kernel, largest: &Case) -> Vec<BenchShape> {
    let rows = MODEL_SHAPES.iter().filter(|(family, _)| *family == kernel.family()).flat_map(|(_, rows)| rows.iter());
    rows.filter_map(|row| {
        let mut case = largest.clone();
        for (name, value) in *row {
            kernel.params().set(kernel.name(), &mut case.params, name, value).ok()?;
        }
        BenchShape::new(kernel, case)
    })
    .collect()
}

fn describe(kernel: &Kernel, params: &[u8]) -> String {
    let layout = kernel.params();
    let sizes = layout.fields.iter().filter(|f| f.kind != ParamKind::F32);
    let words: Vec<String> = sizes.filter_map(|f| Some(format!("{}={}", f.name, layout.symbol(params, f)?))).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::shapes;
    use crate::catalogue;

    #[test]
    fn every_tested_kernel_has_a_shape_with_work() {
        for kernel in catalogue::builtin().iter().filter(|k| k.is_tested()) {
            let list = shapes(kernel);
            assert!(!list.is_empty(), "{} has no bench shape", kernel.name());
            for shape in &list {
                assert!(shape.cost().bytes > 0.0, "{} {}: no bytes", kernel.name(), shape.text());
            }
        }
    }

    #[test]
    fn norms_are_measured_at_model_shapes() {
        let texts: Vec<String> = shapes(catalogue::find("rms_norm_f32").unwrap()).iter().map(|s| s.text().to_owned()).collect();
        assert_eq!(texts, ["rows=512 dim=4096", "rows=1 dim=4096"]);
    }
}
