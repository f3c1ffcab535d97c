#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use half::{bf16, f16};

use super::*;

const ROUTES: [Route; 2] = [Route::Vector, Route::Matrix];

/// `y` by the definition.
fn reference<W: Weight>(p: &Problem<'_, W>) -> Vec<f64> {
    let group = p.batch / p.weight_batch;
    let mut y = Vec::new();
    for b in 0..p.batch {
        for m in 0..p.m {
            for n in 0..p.n {
                let x = &p.x[(b * p.m + m) * p.k..][..p.k];
                let w = &p.weights[(b / group * p.n + n) * p.k..][..p.k];
                y.push(x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(w.widen())).sum());
            }
        }
    }
    y
}

fn check_integers<W: Weight>(from: fn(f32) -> W, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    for k in [1, 4, 31, 32, 33, 64, 72, 197, 1030] {
        for (m, n) in [(1, 1), (7, 35), (31, 13), (33, 63), (129, 130)] {
            for (weight_batch, batch) in [(1, 1), (2, 8), (3, 3)] {
                if batch * m * n * k > 3_000_000 {
                    continue;
                }
                let weights: Vec<W> = (0..weight_batch * n * k).map(|_| from(rng.i32(-8..=8) as f32)).collect();
                let x: Vec<f32> = (0..batch * m * k).map(|_| rng.i32(-8..=8) as f32).collect();
                for &level in Level::supported() {
                    for route in ROUTES {
                        let rounding = Rounding::None;
                        let problem = Problem { weights: &weights, x: &x, weight_batch, batch, m, n, k, rounding, route, level };
                        let mut y = vec![f32::NAN; batch * m * n + 3];
                        matmul(&problem, &mut y);
                        let what = format!("{level:?} {route:?} k={k} m={m} n={n} batch={weight_batch}/{batch} seed={seed}");
                        for (i, want) in reference(&problem).into_iter().enumerate() {
                            assert_eq!(f64::from(y[i]), want, "[{i}] {what}");
                        }
                        assert!(y[batch * m * n..].iter().all(|v| v.is_nan()), "{what} wrote past the end");
                    }
                }
            }
        }
    }
}

#[test]
fn f32_integers_are_exact() {
    check_integers::<f32>(|v| v, 1);
}

#[test]
fn f16_integers_are_exact() {
    check_integers::<f16>(f16::from_f32, 2);
}

#[test]
fn bf16_integers_are_exact() {
    check_integers::<bf16>(bf16::from_f32, 3);
}

/// Random values against f64; activations rounded first where asked, so that the bound is that of the sum alone.
#[test]
fn random_values_are_close() {
    let seed = 4;
    let mut rng = fastrand::Rng::with_seed(seed);
    let (m, n, k) = (21, 37, 1111);
    let weights: Vec<bf16> = (0..n * k).map(|_| bf16::from_f32(rng.f32() - 0.5)).collect();
    let x: Vec<f32> = (0..m * k).map(|_| rng.f32() - 0.5).collect();
    for rounding in [Rounding::None, Rounding::F16, Rounding::Bf16] {
        let exact: Vec<f32> = x
            .iter()
            .map(|v| match rounding {
                Rounding::None => *v,
                Rounding::F16 => f16::from_f32(*v).to_f32(),
                Rounding::Bf16 => bf16::from_f32(*v).to_f32(),
            })
            .collect();
        for &level in Level::supported() {
            for route in ROUTES {
                let problem = Problem { weights: &weights, x: &x, weight_batch: 1, batch: 1, m, n, k, rounding, route, level };
                let mut y = vec![f32::NAN; m * n];
                matmul(&problem, &mut y);
                let want = reference(&Problem { x: &exact, ..problem });
                for (i, (g, want)) in y.iter().zip(want).enumerate() {
                    let (x, w) = (&exact[i / n * k..][..k], &weights[i % n * k..][..k]);
                    let size: f64 = x.iter().zip(w).map(|(x, w)| f64::from((x * w.to_f32()).abs())).sum();
                    assert!((f64::from(*g) - want).abs() <= 5e-6 * size, "{level:?} {route:?} {rounding:?} [{i}] {g} {want} seed={seed}");
                }
            }
        }
    }
}

/// A NaN in a row of activations reaches that row alone.
#[test]
fn rows_are_independent() {
    let (m, n, k) = (19, 15, 70);
    let weights: Vec<f32> = (0..n * k).map(|i| (i % 7) as f32 + 1.0).collect();
    let x: Vec<f32> = (0..m * k).map(|i| (i % 5) as f32).collect();
    for bad in [0, 3, 16, 18] {
        let mut poisoned = x.clone();
        poisoned[bad * k + 69] = f32::NAN;
        for &level in Level::supported() {
            for route in ROUTES {
                let rounding = Rounding::None;
                let problem = Problem { weights: &weights, x: &poisoned, weight_batch: 1, batch: 1, m, n, k, rounding, route, level };
                let (mut got, mut clean) = (vec![0.0f32; m * n], vec![0.0f32; m * n]);
                matmul(&problem, &mut got);
                matmul(&Problem { x: &x, ..problem }, &mut clean);
                for (r, (got, clean)) in got.chunks(n).zip(clean.chunks(n)).enumerate() {
                    if r == bad {
                        assert!(got.iter().all(|v| v.is_nan()), "{level:?} {route:?} {bad}");
                    } else {
                        assert_eq!(got, clean, "{level:?} {route:?} {bad} {r}");
                    }
                }
            }
        }
    }
}

/// f16 in and out: exact sums are rounded once, and what is too large becomes infinite.
#[test]
fn halves_are_rounded_once() {
    let (n, k) = (5, 40);
    for m in [1usize, 3, 12] {
        let w: Vec<f16> = (0..n * k).map(|i| f16::from_f32(((i * 7) % 61) as f32 - 30.0)).collect();
        let x: Vec<f16> = (0..m * k).map(|i| f16::from_f32(((i * 11) % 257) as f32 - 100.0)).collect();
        for &level in Level::supported() {
            let mut y = vec![f16::NAN; m * n];
            matmul_f16(level, &w, &x, (m, n, k), &mut y);
            for (i, got) in y.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let want: f32 = x.iter().zip(w).map(|(x, w)| x.to_f32() * w.to_f32()).sum();
                assert_eq!(*got, f16::from_f32(want), "{level:?} m={m} [{i}]");
            }
        }
    }
}
