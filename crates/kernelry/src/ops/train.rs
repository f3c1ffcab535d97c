//! Training: elementwise functions with their gradients, backward passes of row kernels, and the Adam step.
//!
//! Backward kernels overwrite their outputs; sums over several uses of a tensor are the caller's.

use crate::DType::{F32, U32};
use crate::catalogue::{Family, Kernel, KernelBuilder};

crate::params! {
    /// Parameters of elementwise kernels.
    pub struct ElementParams {
        /// number of elements
        n: u32,
    }
}

crate::params! {
    /// Parameters of kernels over rows.
    pub struct TrainRowParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        cols: u32,
    }
}

crate::params! {
    /// Parameters of the RMS norm's backward passes.
    pub struct NormBackwardParams {
        /// number of rows
        rows: u32,
        /// elements of a row
        dim: u32,
        /// added to the mean square inside the root
        eps: f32,
    }
}

crate::params! {
    /// Parameters of column slices.
    pub struct ColumnParams {
        /// number of rows
        rows: u32,
        /// columns of the narrow matrix
        cols: u32,
        /// columns of the wide matrix
        wide_cols: u32,
        /// first column in the wide matrix
        start: u32,
    }
}

crate::params! {
    /// Parameters of embedding lookups.
    pub struct LookupParams {
        /// number of ids
        n: u32,
        /// rows of the table
        vocab: u32,
        /// elements of a row
        dim: u32,
    }
}

crate::params! {
    /// Parameters of gathers along the last axis.
    pub struct TakeParams {
        /// number of rows
        rows: u32,
        /// elements of a source row
        cols: u32,
        /// indices of a row
        k: u32,
    }
}

crate::params! {
    /// Parameters of outer products.
    pub struct OuterParams {
        /// elements of the left vector
        n: u32,
        /// elements of the right vector
        m: u32,
    }
}

crate::params! {
    /// Parameters of the causal depthwise convolution without state.
    pub struct ConvParams {
        /// number of tokens
        seq_len: u32,
        /// number of channels
        channels: u32,
        /// taps of a channel
        taps: u32,
    }
}

crate::params! {
    /// Parameters of the Adam step. Bias corrections are computed by the host in f64 and rounded once.
    pub struct AdamParams {
        /// number of elements
        n: u32,
        /// learning rate
        lr: f32,
        /// decay of the first moment
        beta1: f32,
        /// decay of the second moment
        beta2: f32,
        /// added to the root of the second moment
        eps: f32,
        /// 1 - beta1^t
        c1: f32,
        /// 1 - beta2^t
        c2: f32,
    }
}

const CLASS: &str = "f32";
const BOUND: &str = "|err| ≤ 1e-6 + 1e-5·|y|";

fn entry(name: &str, summary: &'static str) -> KernelBuilder {
    Kernel::builder(name, Family::Train, summary).class(CLASS, BOUND)
}

/// `y = f(x)`.
fn forward(name: &str, summary: &'static str) -> Kernel {
    entry(name, summary).params::<ElementParams>().input("x", F32, "n").output("out", F32, "n").may_alias(&["x"]).build()
}

/// `dx` from `dy` and what the forward pass kept.
fn backward(name: &str, summary: &'static str, kept: &'static str) -> Kernel {
    let list = entry(name, summary).params::<ElementParams>().input(kept, F32, "n").input("dy", F32, "n");
    list.output("dx", F32, "n").may_alias(&["dy", kept]).build()
}

/// Catalogue entries of the family.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut list = vec![
        forward("exp_f32", "y = exp x"),
        backward("exp_backward_f32", "dx = dy · y", "y"),
        forward("log_f32", "y = ln x"),
        backward("log_backward_f32", "dx = dy / x", "x"),
        forward("sqrt_f32", "y = √x"),
        backward("sqrt_backward_f32", "dx = dy / 2y", "y"),
        forward("silu_f32", "y = x · σ(x)"),
        backward("silu_backward_f32", "dx = dy · σ(x)(1 + x(1 - σ(x)))", "x"),
    ];
    let element = |name: &str, summary: &'static str| entry(name, summary).params::<ElementParams>();
    list.push(
        element("divide_f32", "y = a / b").input("a", F32, "n").input("b", F32, "n").output("out", F32, "n").may_alias(&["a", "b"]).build(),
    );
    list.push(
        element("divide_backward_f32", "da = dy / b, db = -dy · y / b")
            .input("b", F32, "n")
            .input("y", F32, "n")
            .input("dy", F32, "n")
            .output("da", F32, "n")
            .output("db", F32, "n")
            .build(),
    );
    let row = |name: &str, summary: &'static str| entry(name, summary).params::<TrainRowParams>();
    list.push(
        row("softmax_backward_f32", "dx = y · (dy - Σ y·dy)")
            .input("y", F32, "rows cols")
            .input("dy", F32, "rows cols")
            .output("dx", F32, "rows cols")
            .may_alias(&["dy", "y"])
            .build(),
    );
    list.push(row("row_sum_f32", "y[r] = Σ_i x[r, i]").input("x", F32, "rows cols").output("out", F32, "rows").build());
    list.push(row("row_sum_backward_f32", "dx[r, i] = dy[r]").input("dy", F32, "rows").output("dx", F32, "rows cols").build());
    let norm = |name: &str, summary: &'static str| {
        entry(name, summary).params::<NormBackwardParams>().class(CLASS, "|err| ≤ 1e-5 + 1e-4·|y|").check(|p: &NormBackwardParams| {
            if p.eps.is_finite() && p.eps >= 0.0 {
                Ok(())
            } else {
                Err(format!("eps: got {}, expected a finite value of at least 0", p.eps))
            }
        })
    };
    list.push(
        norm("rms_norm_compute_rms_inv_f32", "r = 1 / sqrt(mean(x²) + eps) of each row")
            .input("x", F32, "rows dim")
            .output("rms_inv", F32, "rows")
            .build(),
    );
    list.push(
        norm("rms_norm_backward_dx_f32", "dx = r·(dy·w - x·(Σ dy·x·w)·r²/dim)")
            .input("x", F32, "rows dim")
            .input("weight", F32, "dim")
            .input("dy", F32, "rows dim")
            .input("rms_inv", F32, "rows")
            .output("dx", F32, "rows dim")
            .may_alias(&["dy"])
            .build(),
    );
    list.push(
        norm("rms_norm_backward_dw_f32", "dw[i] = Σ_b dy[b, i]·x[b, i]·r[b]")
            .input("x", F32, "rows dim")
            .input("dy", F32, "rows dim")
            .input("rms_inv", F32, "rows")
            .output("dw", F32, "dim")
            .build(),
    );
    let columns = |name: &str, summary: &'static str| {
        Kernel::builder(name, Family::Train, summary).params::<ColumnParams>().class("copy", "exact bits").check(|p: &ColumnParams| {
            if u64::from(p.start) + u64::from(p.cols) <= u64::from(p.wide_cols) {
                return Ok(());
            }
            Err(format!("start: got {} with {} columns, expected them inside {}", p.start, p.cols, p.wide_cols))
        })
    };
    list.push(
        columns("slice_2d_cols_f32", "out[r, c] = in[r, start + c]")
            .input("input", F32, "rows wide_cols")
            .output("out", F32, "rows cols")
            .build(),
    );
    list.push(
        columns("copy_2d_cols_into_f32", "dst[r, start + c] = src[r, c], other columns untouched")
            .input("src", F32, "rows cols")
            .in_out("dst", F32, "rows wide_cols")
            .build(),
    );
    let lookup =
        |name: &str, summary: &'static str| entry(name, summary).params::<LookupParams>().class("copy or sum in id order", "exact");
    list.push(
        lookup("embedding_lookup_f32", "out[i] = table[ids[i]], zeros beyond the table")
            .input("table", F32, "vocab dim")
            .input("ids", U32, "n")
            .output("out", F32, "n dim")
            .build(),
    );
    list.push(
        lookup("embedding_scatter_add_f32", "dtable[v] = Σ dy[i] over ids[i] = v, ascending")
            .input("dy", F32, "n dim")
            .input("ids", U32, "n")
            .output("dtable", F32, "vocab dim")
            .build(),
    );
    let take = |name: &str, summary: &'static str| entry(name, summary).params::<TakeParams>();
    list.push(
        take("take_along_axis_f32", "y[r, j] = x[r, idx[r, j]], 0 beyond the row")
            .input("x", F32, "rows cols")
            .input("idx", U32, "rows k")
            .output("out", F32, "rows k")
            .build(),
    );
    list.push(
        take("take_along_axis_backward_f32", "dx[r, idx[r, j]] += dy[r, j] from zero, ascending j")
            .input("dy", F32, "rows k")
            .input("idx", U32, "rows k")
            .output("dx", F32, "rows cols")
            .build(),
    );
    let outer = |name: &str, summary: &'static str| entry(name, summary).params::<OuterParams>().class(CLASS, "|err| ≤ 1e-5 + 1e-5·|y|");
    list.push(
        outer("outer_product_f32", "y[i, j] = a[i] · b[j]").input("a", F32, "n").input("b", F32, "m").output("out", F32, "n m").build(),
    );
    list.push(
        outer("outer_product_backward_lhs_f32", "da[i] = Σ_j dy[i, j] · b[j]")
            .input("dy", F32, "n m")
            .input("b", F32, "m")
            .output("da", F32, "n")
            .build(),
    );
    list.push(
        outer("outer_product_backward_rhs_f32", "db[j] = Σ_i dy[i, j] · a[i]")
            .input("dy", F32, "n m")
            .input("a", F32, "n")
            .output("db", F32, "m")
            .build(),
    );
    let conv = |name: &str, summary: &'static str| entry(name, summary).params::<ConvParams>();
    list.push(
        conv("conv1d_depthwise_causal_forward_f32", "y[t, c] = Σ_j w[c, j] · x[t + j - (K-1), c]")
            .input("x", F32, "seq_len channels")
            .input("weight", F32, "channels taps")
            .output("out", F32, "seq_len channels")
            .build(),
    );
    list.push(
        conv("conv1d_depthwise_causal_backward_dx_f32", "dx[i, c] = Σ_j w[c, j] · dy[i + (K-1) - j, c]")
            .input("weight", F32, "channels taps")
            .input("dy", F32, "seq_len channels")
            .output("dx", F32, "seq_len channels")
            .build(),
    );
    list.push(
        conv("conv1d_depthwise_causal_backward_dw_f32", "dw[c, j] = Σ_i x[i, c] · dy[i + (K-1) - j, c]")
            .input("x", F32, "seq_len channels")
            .input("dy", F32, "seq_len channels")
            .output("dw", F32, "channels taps")
            .class(CLASS, "|err| ≤ 1e-5 + 1e-4·|y|")
            .build(),
    );
    list.push(
        entry("adam_update_f32", "param -= lr · (m / c1) / (√(v / c2) + ε) after both moments are updated")
            .params::<AdamParams>()
            .check(check_adam)
            .in_out("param", F32, "n")
            .in_out("m", F32, "n")
            .in_out("v", F32, "n")
            .input("grad", F32, "n")
            .build(),
    );
    list
}

fn check_adam(p: &AdamParams) -> Result<(), String> {
    let finite = |name: &str, v: f32| if v.is_finite() { Ok(()) } else { Err(format!("{name}: got {v}, expected a finite value")) };
    for (name, value) in [("lr", p.lr), ("beta1", p.beta1), ("beta2", p.beta2), ("eps", p.eps), ("c1", p.c1), ("c2", p.c2)] {
        finite(name, value)?;
    }
    let checks = [
        ("lr", p.lr, p.lr >= 0.0, "at least 0"),
        ("beta1", p.beta1, (0.0..1.0).contains(&p.beta1), "at least 0 and below 1"),
        ("beta2", p.beta2, (0.0..1.0).contains(&p.beta2), "at least 0 and below 1"),
        ("eps", p.eps, p.eps > 0.0, "more than 0"),
        ("c1", p.c1, p.c1 > 0.0, "more than 0"),
        ("c2", p.c2, p.c2 > 0.0, "more than 0"),
    ];
    match checks.iter().find(|(_, _, holds, _)| !holds) {
        Some((name, value, _, expected)) => Err(format!("{name}: got {value}, expected {expected}")),
        None => Ok(()),
    }
}
