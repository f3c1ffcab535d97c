//! Activations: an element depends on its value alone, 16-bit kernels round the f32 result once, gates are related, and results stay
//! in range where formulas leave it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/launch.rs"]
mod launch;

use kernelry::DType::{BF16, F16, F32};
use kernelry::ops::activation::{ActivationParams, SoftcapParams, SoftmaxParams};
use kernelry::ops::elementwise::ElementwiseParams;
use kernelry::{Buffer, DType};
use launch::{Launcher, assert_same};

fn flat(x: &Buffer) -> ActivationParams {
    ActivationParams { n: x.len() as u32 }
}

/// One of the maps of the family, on `x` and, where it has two operands, `other`.
fn map(l: &Launcher, name: &str, x: &Buffer, other: &Buffer) -> Buffer {
    let n = x.len() as u32;
    if name.starts_with("gelu") {
        l.run(name, &[x], flat(x), x.dtype(), x.shape())
    } else if name.starts_with("softcap") {
        l.run(name, &[x], SoftcapParams { n, cap: 5.0 }, x.dtype(), x.shape())
    } else if name.starts_with("softmax") {
        let rows = x.shape()[0] as u32;
        l.run(name, &[x], SoftmaxParams { rows, cols: n / rows }, x.dtype(), x.shape())
    } else {
        l.run(name, &[x, other], flat(x), x.dtype(), x.shape())
    }
}

/// Whether in a vector, in what is left after the last one, or in another thread's chunk.
#[test]
fn an_element_depends_on_its_value_alone() {
    let mut l = Launcher::new(1);
    let names = ["gelu_f32", "gelu_f16", "gelu_bf16", "softcap_f32", "softcap_f16", "softcap_bf16"];
    for name in names.into_iter().chain(["silu_mul_f32", "sigmoid_mul_f32", "sigmoid_mul_bf16"]) {
        let dtype = dtype_of(name);
        let period = 37;
        let (x, other) = (l.normal(F32, &[period]).to_vec::<f32>().unwrap(), l.normal(F32, &[period]).to_vec::<f32>().unwrap());
        let repeated = |v: &[f32], n: usize| l.rounded(dtype, &v.iter().copied().cycle().take(n).collect::<Vec<_>>(), &[n]);
        let n = period * 300 + 5;
        let all = l.widen(&map(&l, name, &repeated(&x, n), &repeated(&other, n)));
        for (i, v) in all.iter().enumerate() {
            assert_eq!(v.to_bits(), all[i % period].to_bits(), "{name}: element {i}, value {}", x[i % period]);
        }
        for n in [1, 3, 16, 31] {
            let few = l.widen(&map(&l, name, &repeated(&x, n), &repeated(&other, n)));
            assert_eq!(few, all[..n], "{name}: {n} elements");
        }
    }
}

fn dtype_of(name: &str) -> DType {
    match name {
        _ if name.ends_with("bf16") => BF16,
        _ if name.ends_with("f16") => F16,
        _ => F32,
    }
}

#[test]
fn sixteen_bit_results_are_rounded_f32_results() {
    let mut l = Launcher::new(2);
    for name in ["gelu_f16", "gelu_bf16", "softcap_f16", "softcap_bf16", "softmax_f16", "softmax_bf16", "sigmoid_mul_bf16"] {
        let dtype = dtype_of(name);
        let wide_name = format!("{}_f32", &name[..name.rfind('_').unwrap()]);
        for shape in [[1, 1], [3, 33], [2, 1000]] {
            let (x, other) = (l.normal(dtype, &shape), l.normal(dtype, &shape));
            let wide = map(&l, &wide_name, &l.as_f32(&x), &l.as_f32(&other));
            assert_same(&format!("{name} {shape:?}"), &map(&l, name, &x, &other), &l.rounded(dtype, &l.widen(&wide), &shape));
        }
    }
}

#[test]
fn gates_are_related() {
    let mut l = Launcher::new(3);
    for n in [1, 17, 5000] {
        let (gate, up) = (l.normal(F32, &[n]), l.normal(F32, &[n]));
        let silu = l.run("sigmoid_mul_f32", &[&gate, &gate], flat(&gate), F32, &[n]);
        let chain = l.run("elementwise_mul_f32", &[&silu, &up], ElementwiseParams { n: n as u32 }, F32, &[n]);
        assert_same(&format!("n {n}"), &l.run("silu_mul_f32", &[&gate, &up], flat(&gate), F32, &[n]), &chain);
    }
}

#[test]
fn a_row_of_softmax_depends_on_itself_and_sums_to_one() {
    let mut l = Launcher::new(4);
    for dtype in [F32, F16, BF16] {
        let name = format!("softmax_{}", dtype.name());
        for cols in [1, 2, 17, 196, 5000] {
            let x = l.normal(dtype, &[40, cols]);
            let all = map(&l, &name, &x, &x);
            for row in [0, 7, 39] {
                let alone = map(&l, &name, &x.rows(row, 1).unwrap(), &x);
                assert_same(&format!("{name}, {cols} columns, row {row}"), &alone, &all.rows(row, 1).unwrap());
            }
            if dtype == F32 {
                for row in all.to_vec::<f32>().unwrap().chunks(cols) {
                    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
                    assert!((sum - 1.0).abs() <= 1e-5, "{cols} columns sum to {sum}");
                }
            }
        }
    }
}

#[test]
fn extremes_saturate() {
    let l = Launcher::new(5);
    let inf = f32::INFINITY;
    let x = l.upload(&[inf, -inf, 3e38, -3e38, -1e20, 1e20], &[6]);
    let capped = map(&l, "softcap_f32", &x, &x).to_vec::<f32>().unwrap();
    assert_eq!(capped, [5.0, -5.0, 5.0, -5.0, -5.0, 5.0]);
    let gelu = map(&l, "gelu_f32", &x.slice(8, 4).unwrap(), &x).to_vec::<f32>().unwrap();
    assert_eq!(gelu, [3e38, 0.0, 0.0, 1e20]);
    // A closed gate gives a zero, however far beyond the range of exp it is.
    let (gate, up) = (l.upload(&[-89.0f32, -1e4, -3e38], &[3]), l.upload(&[2.0f32, -3.0, 4.0], &[3]));
    for v in map(&l, "silu_mul_f32", &gate, &up).to_vec::<f32>().unwrap() {
        assert!(v.abs() < 1e-30, "a closed gate gives {v}");
    }
    let nan = l.upload(&[f32::NAN], &[1]);
    for name in ["softcap_f32", "gelu_f32", "silu_mul_f32", "sigmoid_mul_f32", "softmax_f32"] {
        assert!(map(&l, name, &nan, &nan).to_vec::<f32>().unwrap()[0].is_nan(), "{name} hides NaN");
    }
}
