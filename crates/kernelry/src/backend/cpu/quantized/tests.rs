#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use half::f16;

use super::*;
use crate::backend::cpu::simd::Level;

/// Value `k` of a row, straight from the definition of the format.
fn value(format: Format, row: &[u8], k: usize) -> f64 {
    let (len, bytes) = (format.block_len(), format.block_bytes());
    let block = &row[k / len * bytes..][..bytes];
    let k = k % len;
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f64();
    let nibble = |at: usize| f64::from((block[at + k % 16] >> (4 * (k / 16))) & 15);
    let six = |k: usize| {
        let (s, g) = (&block[4..16], k / 32);
        if g < 4 {
            (s[g] & 63, s[4 + g] & 63)
        } else {
            let i = g - 4;
            ((s[8 + i] & 15) | ((s[i] >> 6) << 4), (s[8 + i] >> 4) | ((s[4 + i] >> 6) << 4))
        }
    };
    match format {
        Format::Q4_0 => half(0) * (nibble(2) - 8.0),
        Format::Q8_0 => half(0) * f64::from(block[2 + k] as i8),
        Format::Q5_1 => {
            let high = u32::from_le_bytes(block[4..8].try_into().unwrap());
            half(0) * (nibble(8) + 16.0 * f64::from((high >> k) & 1)) + half(2)
        }
        Format::Iq4Nl => {
            let table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
            half(0) * f64::from(table[nibble(2) as usize])
        }
        Format::Q4K | Format::Q5K => {
            let (g, (sc, mn)) = (k / 32, six(k));
            let (low, high) = if format == Format::Q4K { (16, 0) } else { (48, (block[16 + k % 32] >> g) & 1) };
            let q = ((block[low + 32 * (g / 2) + k % 32] >> (4 * (g % 2))) & 15) + 16 * high;
            half(0) * f64::from(sc) * f64::from(q) - half(2) * f64::from(mn)
        }
        Format::Q6K => {
            let (h, g, l) = (k / 128, k % 128 / 32, k % 32);
            let low = (block[64 * h + 32 * (g % 2) + l] >> (4 * (g / 2))) & 15;
            let high = (block[128 + 32 * h + l] >> (2 * g)) & 3;
            half(208) * f64::from(block[192 + k / 16] as i8) * (f64::from(low | (high << 4)) - 32.0)
        }
    }
}

/// Offsets of the halves of a block: scale, and minimum if there is one.
fn halves(format: Format) -> (usize, Option<usize>) {
    match format {
        Format::Q4_0 | Format::Q8_0 | Format::Iq4Nl => (0, None),
        Format::Q5_1 | Format::Q4K | Format::Q5K => (0, Some(2)),
        Format::Q6K => (208, None),
    }
}

/// Random payload with the given scale and minimum: every payload is legal.
fn weights(
    format: Format,
    rng: &mut fastrand::Rng,
    rows: usize,
    k: usize,
    mut halves_of: impl FnMut(&mut fastrand::Rng) -> (f32, f32),
) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..rows * format.row_bytes(k)).map(|_| rng.u8(..)).collect();
    let (d, m) = halves(format);
    for block in bytes.chunks_mut(format.block_bytes()) {
        let (scale, min) = halves_of(rng);
        block[d..d + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        if let Some(m) = m {
            block[m..m + 2].copy_from_slice(&f16::from_f32(min).to_le_bytes());
        }
    }
    bytes
}

/// Scales around what trained weights have, of both signs.
fn typical(format: Format) -> impl FnMut(&mut fastrand::Rng) -> (f32, f32) {
    let range = match format {
        Format::Q4_0 => 5e-3,
        Format::Q8_0 | Format::Iq4Nl => 3e-4,
        Format::Q5_1 => 2e-3,
        Format::Q4K | Format::Q5K => 1e-4,
        Format::Q6K => 1e-5,
    };
    move |rng| {
        let d = range * (0.5 + rng.f32());
        (d, if format == Format::Q5_1 { -16.0 * d } else { 8.0 * d })
    }
}

fn normal(rng: &mut fastrand::Rng) -> f32 {
    (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0
}

/// Largest magnitude that a code of this value's block could stand for.
fn largest(format: Format, row: &[u8], k: usize) -> f64 {
    let len = format.block_len();
    let group = if len == 32 { 32 } else { 16 };
    let start = k / group * group;
    // For formats with a minimum the factored form adds both parts; a bound by what the values themselves do is the stricter one, but
    // cancels. The full range of the codes is 15 or 31 steps from the smallest to the largest.
    let values: Vec<f64> = (start..start + group).map(|k| value(format, row, k).abs()).collect();
    2.0 * values.into_iter().fold(0.0, f64::max)
}

const ROUTES: [Route; 2] = [Route::Vector, Route::Matrix];
const MODES: [Mode; 2] = [Mode::Precise, Mode::Fast];

fn lengths(format: Format) -> &'static [usize] {
    if format.block_len() == 32 { &[32, 64, 96, 256, 288, 704] } else { &[256, 512, 768, 1280] }
}

fn run(problem: &Problem<'_>) -> Vec<f32> {
    let mut y = vec![f32::NAN; problem.m * problem.n + 7];
    y[problem.m * problem.n..].fill(1234.5);
    matmul(problem, &mut y);
    assert!(y[problem.m * problem.n..].iter().all(|v| *v == 1234.5), "wrote past the end");
    y.truncate(problem.m * problem.n);
    y
}

/// Small integers: every product and every sum is exact, so that the result is the same in any order and must be equal.
#[test]
fn integers_are_exact() {
    let seed = 1;
    let mut rng = fastrand::Rng::with_seed(seed);
    for format in Format::ALL {
        for &k in lengths(format) {
            for (m, n) in [(1, 1), (2, 3), (3, 7), (4, 8), (5, 13), (8, 2), (9, 25), (17, 12), (33, 5), (65, 98)] {
                let w = weights(format, &mut rng, n, k, |_| (0.5, 0.25));
                // With 127 in every block the scale of the rounded activations is one.
                let x: Vec<f32> = (0..m * k).map(|i| if i % 32 == 5 { 127.0 } else { rng.i32(-4..=4) as f32 }).collect();
                let want: Vec<f32> = (0..m * n)
                    .map(|i| {
                        let (x, w) = (&x[i / n * k..][..k], &w[i % n * format.row_bytes(k)..][..format.row_bytes(k)]);
                        (0..k).map(|k| f64::from(x[k]) * value(format, w, k)).sum::<f64>() as f32
                    })
                    .collect();
                for &level in Level::supported() {
                    for mode in MODES {
                        for route in ROUTES {
                            let got = run(&Problem { format, weights: &w, x: &x, m, n, k, mode, route, level });
                            assert_eq!(got, want, "{format:?} {level:?} {mode:?} {route:?} m={m} n={n} k={k} seed={seed}");
                        }
                    }
                }
            }
        }
    }
}

/// Random values: the precise mode stays within rounding of f32 sums, the fast one within that of 8-bit activations.
#[test]
fn random_values_are_close() {
    let seed = 2;
    let mut rng = fastrand::Rng::with_seed(seed);
    for format in Format::ALL {
        let k = if format.block_len() == 32 { 2112 } else { 2816 - 256 };
        let (m, n) = (10, 110);
        let w = weights(format, &mut rng, n, k, typical(format));
        let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
        let (mut want, mut bound) = (Vec::new(), Vec::new());
        let rows: Vec<Vec<(f64, f64)>> = (0..n)
            .map(|n| {
                let row = &w[n * format.row_bytes(k)..][..format.row_bytes(k)];
                (0..k).map(|k| (value(format, row, k), largest(format, row, k))).collect()
            })
            .collect();
        for m in 0..m {
            for row in &rows {
                let x = &x[m * k..][..k];
                want.push(x.iter().zip(row).map(|(x, w)| f64::from(*x) * w.0).sum::<f64>());
                bound.push(5e-6 * x.iter().zip(row).map(|(x, w)| f64::from(x.abs()) * w.1).sum::<f64>());
            }
        }
        for &level in Level::supported() {
            for route in ROUTES {
                let got = run(&Problem { format, weights: &w, x: &x, m, n, k, mode: Mode::Precise, route, level });
                for (i, ((g, w), b)) in got.iter().zip(&want).zip(&bound).enumerate() {
                    assert!((f64::from(*g) - w).abs() <= *b, "{format:?} {level:?} {route:?} [{i}]: {g} {w} bound {b} seed={seed}");
                }
                let got = run(&Problem { format, weights: &w, x: &x, m, n, k, mode: Mode::Fast, route, level });
                let error: f64 = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
                let power: f64 = want.iter().map(|w| w * w).sum();
                println!("{format:?} {level:?} {route:?}: NMSE {:.2e}", error / power);
                assert!(error / power <= 2e-4, "{format:?} {level:?} {route:?}: NMSE {} seed={seed}", error / power);
            }
        }
    }
}

/// A NaN or an infinity in one row of activations makes that row non-finite and leaves the bits of all others as they are.
#[test]
fn rows_are_independent() {
    let seed = 3;
    let mut rng = fastrand::Rng::with_seed(seed);
    for format in Format::ALL {
        let (n, k) = (14, 768);
        let w = weights(format, &mut rng, n, k, typical(format));
        for m in [2usize, 4, 7, 19, 40] {
            let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
            let bad = rng.usize(..m);
            for &level in Level::supported() {
                for mode in MODES {
                    for route in ROUTES {
                        let problem = Problem { format, weights: &w, x: &x, m, n, k, mode, route, level };
                        let clean = run(&problem);
                        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                            let mut x = x.clone();
                            x[bad * k + rng.usize(..k)] = poison;
                            let got = run(&Problem { x: &x, ..problem });
                            for (r, (got, clean)) in got.chunks(n).zip(clean.chunks(n)).enumerate() {
                                let what =
                                    format!("{format:?} {level:?} {mode:?} {route:?} m={m} row {r} poison {poison} in {bad} seed={seed}");
                                if r == bad {
                                    // A code of zero meets the poison in places; most outputs must show it.
                                    let shown = got.iter().filter(|v| !v.is_finite()).count();
                                    assert!(if mode == Mode::Fast { shown == n } else { shown * 2 > n }, "{what}: {got:?}");
                                } else {
                                    assert_eq!(got, clean, "{what}");
                                }
                            }
                        }
                        // Fewer weight rows: the same bits.
                        let fewer = run(&Problem { weights: &w[..5 * format.row_bytes(k)], n: 5, ..problem });
                        for (fewer, clean) in fewer.chunks(5).zip(clean.chunks(n)) {
                            assert_eq!(fewer, &clean[..5], "{format:?} {level:?} {mode:?} {route:?}");
                        }
                    }
                }
            }
        }
    }
}

/// The core for few rows gives a row the same bits whatever else it is computed with.
#[test]
fn vector_route_does_not_depend_on_row_count() {
    let seed = 4;
    let mut rng = fastrand::Rng::with_seed(seed);
    for format in Format::ALL {
        // A long row on its own is taken in parts, with many rows of weights for each.
        for (m, n, k) in [(7, 9, 512), (2, 37, 8192 + format.block_len())] {
            let w = weights(format, &mut rng, n, k, typical(format));
            let x: Vec<f32> = (0..m * k).map(|_| normal(&mut rng)).collect();
            for &level in Level::supported() {
                for mode in MODES {
                    let problem = Problem { format, weights: &w, x: &x, m, n, k, mode, route: Route::Vector, level };
                    let all = run(&problem);
                    for r in 0..m {
                        let one = run(&Problem { x: &x[r * k..(r + 1) * k], m: 1, ..problem });
                        assert_eq!(one, all[r * n..(r + 1) * n], "{format:?} {level:?} {mode:?} k={k} row {r} seed={seed}");
                    }
                }
            }
        }
    }
}

/// Zero, negative and subnormal scales; activations of all zeros and of tiny values; every result is what the definition says.
#[test]
fn odd_scales() {
    let seed = 5;
    let mut rng = fastrand::Rng::with_seed(seed);
    for format in Format::ALL {
        for scale in [0.0f32, -0.5, 6e-8, 2e-5] {
            let (m, n, k) = (3, 4, 512);
            let w = weights(format, &mut rng, n, k, |_| (scale, scale));
            let mut x: Vec<f32> = (0..m * k).map(|i| if i % 32 == 0 { 127.0 } else { rng.i32(-3..=3) as f32 }).collect();
            x[k..2 * k].fill(0.0);
            for &level in Level::supported() {
                for mode in MODES {
                    for route in ROUTES {
                        let got = run(&Problem { format, weights: &w, x: &x, m, n, k, mode, route, level });
                        for (i, g) in got.iter().enumerate() {
                            let (x, w) = (&x[i / n * k..][..k], &w[i % n * format.row_bytes(k)..][..format.row_bytes(k)]);
                            let want: f64 = (0..k).map(|k| f64::from(x[k]) * value(format, w, k)).sum();
                            let bound: f64 = (0..k).map(|k| f64::from(x[k].abs()) * largest(format, w, k)).sum::<f64>() * 5e-6;
                            let what = format!("{format:?} {level:?} {mode:?} {route:?} scale {scale} [{i}] seed={seed}");
                            assert!((f64::from(*g) - want).abs() <= bound, "{what}: {g} {want}");
                        }
                    }
                }
            }
        }
    }
}

/// Whole-matrix decoding is exact, then rounded once.
#[test]
fn dequantisation_is_exact() {
    let seed = 6;
    let mut rng = fastrand::Rng::with_seed(seed);
    for format in Format::ALL {
        for (n, k) in [(1, format.block_len()), (3, 3 * format.block_len()), (7, 5 * format.block_len()), (40, 2048)] {
            for scale in [1e-4f32, 6e-8, -0.3, 900.0] {
                let w = weights(format, &mut rng, n, k, |rng| {
                    let pick = |rng: &mut fastrand::Rng| f16::from_f32(scale * (0.2 + rng.f32())).to_f32();
                    (pick(rng), pick(rng))
                });
                for &level in Level::supported() {
                    let mut out = vec![f16::NAN; n * k + 3];
                    dequantize_f16(level, format, &w, n, k, &mut out);
                    for (i, got) in out[..n * k].iter().enumerate() {
                        // The products are exact in f64, and the sum is rounded to f32 once.
                        let want = f16::from_f32(value(format, &w[i / k * format.row_bytes(k)..], i % k) as f32);
                        assert!(*got == want, "{format:?} {level:?} n={n} k={k} [{i}]: {got} {want} seed={seed}");
                    }
                    assert!(out[n * k..].iter().all(|v| v.is_nan()), "wrote past the end");
                }
            }
        }
    }
}

/// Blocks of counting bytes, decoded by hand.
#[test]
fn golden_blocks() {
    let golden: [(Format, &[(usize, f32)]); 7] = [
        (Format::Q4_0, &[(0, -1.5), (1, 1.0), (15, -4.0), (16, -1.5), (31, 0.0)]),
        (Format::Q8_0, &[(0, 42.5), (1, 61.0), (15, -64.0), (16, -45.5), (31, -24.0)]),
        (Format::Q5_1, &[(0, 9.75), (1, 12.25), (15, 15.25), (16, 9.75), (31, 2.75)]),
        (Format::Iq4Nl, &[(0, -17.5), (1, 12.5), (15, -63.5), (16, -17.5), (31, 0.5)]),
        (Format::Q4K, &[(0, 157.75), (31, 80.25), (32, 4.0), (100, 47.5), (129, -3.0), (200, 69.25), (255, 24.25)]),
        (Format::Q5K, &[(0, 405.75), (31, 80.25), (32, 56.0), (100, 117.5), (129, -3.0), (200, 69.25), (255, 54.25)]),
        (Format::Q6K, &[(0, -715.5), (31, -48.0), (32, 115.5), (100, 1261.5), (129, 208.0), (200, 544.5), (255, -30.0)]),
    ];
    for (format, values) in golden {
        let mut block: Vec<u8> = (0..format.block_bytes()).map(|i| ((37 * i + 11) % 256) as u8).collect();
        let (d, m) = halves(format);
        block[d..d + 2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        if let Some(m) = m {
            block[m..m + 2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        }
        let k = format.block_len();
        for &level in Level::supported() {
            let mut out = vec![f16::NAN; k];
            dequantize_f16(level, format, &block, 1, k, &mut out);
            for &(at, want) in values {
                assert_eq!(out[at].to_f32(), f16::from_f32(want).to_f32(), "{format:?} {level:?} {at}");
                let mut x = vec![0.0; k];
                x[at] = 1.0;
                for route in ROUTES {
                    let problem = Problem { format, weights: &block, x: &x, m: 1, n: 1, k, mode: Mode::Precise, route, level };
                    assert_eq!(run(&problem), [want], "{format:?} {level:?} {route:?} {at}");
                }
            }
        }
    }
}
