//! Block formats against the Python package `gguf`, published golden vectors, and error bounds of the quantisers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::quant::{GgmlType, dequantize, dequantize_row, dequantize_to_vec, quantize, quantize_into};
use safetensors::SafeTensors;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/quant/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Standard normal values by Box and Muller.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| (((-2.0 * (1.0 - rng.f64()).ln()).sqrt()) * (std::f64::consts::TAU * rng.f64()).cos()) as f32).collect()
}

#[test]
fn table_matches_ids_and_names() {
    for &ty in GgmlType::ALL {
        assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
        assert_eq!(GgmlType::from_name(ty.name()), Some(ty));
        assert_eq!(GgmlType::from_name(&ty.name().to_lowercase()), Some(ty));
        assert_eq!(ty.row_bytes(ty.block_len() * 3).unwrap(), ty.block_bytes() * 3);
        assert_eq!(ty.elements_in(ty.block_bytes() * 3).unwrap(), ty.block_len() * 3);
    }
    assert!(GgmlType::ALL.windows(2).all(|pair| pair[0].id() < pair[1].id()));
    assert_eq!((GgmlType::IQ2_XS.id(), GgmlType::I16.id(), GgmlType::BF16.id()), (17, 25, 30));
    for id in [4, 5, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
        assert_eq!(GgmlType::from_id(id), None);
    }
}

#[test]
fn wrong_sizes_are_errors() {
    assert_eq!(GgmlType::Q4_K.row_bytes(2112).unwrap_err().to_string(), "[Q4_K] row length: got 2112, expected a multiple of 256");
    assert!(GgmlType::F64.row_bytes(usize::MAX).is_err());
    assert!(GgmlType::Q4_0.elements_in(19).is_err());
    assert!(GgmlType::Q4_0.elements_in(usize::MAX / 18 * 18).is_err());
    assert!(dequantize(GgmlType::Q4_0, &[0; 18], &mut [0.0; 31]).is_err());
    assert!(dequantize(GgmlType::Q4_0, &[0; 17], &mut [0.0; 32]).is_err());
    assert!(dequantize_row(GgmlType::Q4_0, &[0; 36], 2, &mut [0.0; 32]).is_err());
    assert!(dequantize_row(GgmlType::Q4_0, &[0; 36], usize::MAX, &mut [0.0; 32]).is_err());
    assert!(quantize(GgmlType::Q4_0, &[0.0; 33]).is_err());
    assert!(quantize_into(GgmlType::Q4_0, &[0.0; 32], &mut [0; 17]).is_err());
}

#[test]
fn types_without_a_codec_are_named() {
    let error = dequantize_to_vec(GgmlType::IQ2_XS, &[0; 74]).unwrap_err().to_string();
    assert!(error.contains("IQ2_XS"), "{error}");
    assert!(dequantize_row(GgmlType::IQ2_XS, &[0; 74], 0, &mut [0.0; 256]).is_err());
    let error = quantize(GgmlType::IQ4_XS, &[0.0; 256]).unwrap_err().to_string();
    assert!(error.contains("IQ4_XS"), "{error}");
}

/// Every decoder, on random payloads with finite scales, equals the Python package with no tolerance.
#[test]
fn decoders_equal_the_python_package() {
    let bytes = fixture("decode.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut checked = 0;
    for &ty in GgmlType::ALL {
        let Ok(blocks) = file.tensor(&format!("{ty}.blocks")) else { continue };
        let expected = floats(file.tensor(&format!("{ty}.values")).unwrap().data());
        let got = dequantize_to_vec(ty, blocks.data()).unwrap();
        assert_eq!(got.len(), expected.len());
        for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
            assert!(g == e, "{ty} value {i}: got {g}, expected {e}");
        }
        let mut row = vec![0.0; ty.block_len() * 2];
        dequantize_row(ty, blocks.data(), 1, &mut row).unwrap();
        assert_eq!(row, expected[row.len()..2 * row.len()]);
        checked += 1;
    }
    assert_eq!(checked, 17);
}

/// Large tensors take the parallel path; it must place every block as the sequential one does.
#[test]
fn parallel_decoding_places_every_block() {
    for ty in [GgmlType::Q8_0, GgmlType::Q5_K, GgmlType::F16] {
        let k = 256 * 301;
        let x = normal(3, k);
        let blocks = quantize(ty, &x).unwrap();
        let all = dequantize_to_vec(ty, &blocks).unwrap();
        let mut row = vec![0.0; 256];
        for r in 0..301 {
            dequantize_row(ty, &blocks, r, &mut row).unwrap();
            assert_eq!(row, all[256 * r..256 * (r + 1)], "{ty} block {r}");
            assert_eq!(quantize(ty, &x[256 * r..256 * (r + 1)]).unwrap(), blocks[r * row_bytes(ty)..(r + 1) * row_bytes(ty)]);
        }
    }
    fn row_bytes(ty: GgmlType) -> usize {
        ty.row_bytes(256).unwrap()
    }
}

#[test]
fn activation_formats_decode_by_definition() {
    let mut q8_1 = [0u8; 36];
    q8_1[..2].copy_from_slice(&kernelry::f16::from_f32(0.5).to_le_bytes());
    q8_1[2..4].copy_from_slice(&kernelry::f16::from_f32(f32::NAN).to_le_bytes());
    for (i, q) in q8_1[4..].iter_mut().enumerate() {
        *q = (i as i32 * 7 - 100) as i8 as u8;
    }
    let expected: Vec<f32> = (0..32).map(|i| 0.5 * (i * 7 - 100) as f32).collect();
    assert_eq!(dequantize_to_vec(GgmlType::Q8_1, &q8_1).unwrap(), expected);

    let mut q8_k = [0u8; 292];
    q8_k[..4].copy_from_slice(&0.1f32.to_le_bytes());
    for (i, q) in q8_k[4..260].iter_mut().enumerate() {
        *q = i as u8;
    }
    q8_k[260..].fill(0xFF);
    let expected: Vec<f32> = (0..256).map(|i| 0.1 * f32::from(i as u8 as i8)).collect();
    assert_eq!(dequantize_to_vec(GgmlType::Q8_K, &q8_k).unwrap(), expected);
}

#[test]
fn integers_and_doubles_convert() {
    let bytes: Vec<u8> = [-3i64, 1 << 40].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(dequantize_to_vec(GgmlType::I64, &bytes).unwrap(), [-3.0, (1u64 << 40) as f32]);
    let bytes: Vec<u8> = [0.1f64, -1e300].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(dequantize_to_vec(GgmlType::F64, &bytes).unwrap(), [0.1f32, f32::NEG_INFINITY]);
    assert_eq!(dequantize_to_vec(GgmlType::I8, &[0x80, 0x7F]).unwrap(), [-128.0, 127.0]);
    assert_eq!(dequantize_to_vec(GgmlType::I16, &[0, 0x80]).unwrap(), [-32768.0]);
    assert_eq!(dequantize_to_vec(GgmlType::I32, &[0, 0, 0, 0x80]).unwrap(), [-2147483648.0]);
}

struct Golden {
    ty: GgmlType,
    halves: &'static [usize],
    samples: &'static [(usize, f64)],
    sum: f64,
    weighted: f64,
}

/// Payload `byte[i] = 37 i + 11`, first half 0.5, second 0.25: values that a reader can work out by hand from the layout.
const GOLDEN: &[Golden] = &[
    Golden {
        ty: GgmlType::Q4_0,
        halves: &[0],
        samples: &[(0, -1.5), (1, 1.0), (15, -4.0), (16, -1.5), (31, 0.0)],
        sum: -10.5,
        weighted: -259.0,
    },
    Golden {
        ty: GgmlType::Q4_1,
        halves: &[0, 2],
        samples: &[(0, 7.75), (1, 2.25), (15, 5.25), (16, 4.75), (31, 6.25)],
        sum: 130.5,
        weighted: 2123.5,
    },
    Golden {
        ty: GgmlType::Q5_0,
        halves: &[0],
        samples: &[(0, 4.5), (1, -1.0), (15, -6.0), (16, 7.0), (31, 0.5)],
        sum: 7.5,
        weighted: 56.0,
    },
    Golden {
        ty: GgmlType::Q5_1,
        halves: &[0, 2],
        samples: &[(0, 9.75), (1, 12.25), (15, 15.25), (16, 9.75), (31, 2.75)],
        sum: 260.5,
        weighted: 4082.5,
    },
    Golden {
        ty: GgmlType::Q8_0,
        halves: &[0],
        samples: &[(0, 42.5), (1, 61.0), (15, -64.0), (16, -45.5), (31, -24.0)],
        sum: -88.0,
        weighted: -4040.0,
    },
    Golden {
        ty: GgmlType::IQ4_NL,
        halves: &[0],
        samples: &[(0, -17.5), (1, 12.5), (15, -63.5), (16, -17.5), (31, 0.5)],
        sum: -128.5,
        weighted: -3459.5,
    },
    Golden {
        ty: GgmlType::IQ4_XS,
        halves: &[0],
        samples: &[(0, 32.5), (31, 17.5), (32, 227.5), (100, 20.0), (129, 4.5), (200, 570.0), (255, -8.0)],
        sum: -5502.5,
        weighted: -1_045_567.0,
    },
    Golden {
        ty: GgmlType::Q2_K,
        halves: &[80, 82],
        samples: &[(0, 16.5), (31, -0.75), (32, 3.75), (100, 10.0), (129, -0.75), (200, 4.0), (255, 2.25)],
        sum: 1029.5,
        weighted: 121_565.0,
    },
    Golden {
        ty: GgmlType::Q3_K,
        halves: &[108],
        samples: &[(0, 40.5), (31, 32.0), (32, -11.0), (100, 0.0), (129, 0.0), (200, 12.5), (255, 21.0)],
        sum: 479.0,
        weighted: 88_572.5,
    },
    Golden {
        ty: GgmlType::Q4_K,
        halves: &[0, 2],
        samples: &[(0, 157.75), (31, 80.25), (32, 4.0), (100, 47.5), (129, -3.0), (200, 69.25), (255, 24.25)],
        sum: 27220.0,
        weighted: 3_786_420.0,
    },
    Golden {
        ty: GgmlType::Q5_K,
        halves: &[0, 2],
        samples: &[(0, 405.75), (31, 80.25), (32, 56.0), (100, 117.5), (129, -3.0), (200, 69.25), (255, 54.25)],
        sum: 58108.0,
        weighted: 8_013_724.0,
    },
    Golden {
        ty: GgmlType::Q6_K,
        halves: &[208],
        samples: &[(0, -715.5), (31, -48.0), (32, 115.5), (100, 1261.5), (129, 208.0), (200, 544.5), (255, -30.0)],
        sum: 2306.0,
        weighted: 392_210.0,
    },
];

#[test]
fn golden_vectors() {
    for golden in GOLDEN {
        let ty = golden.ty;
        let mut block: Vec<u8> = (0..ty.block_bytes()).map(|i| (37 * i + 11) as u8).collect();
        for (&at, value) in golden.halves.iter().zip([0.5, 0.25]) {
            block[at..at + 2].copy_from_slice(&kernelry::f16::from_f32(value).to_le_bytes());
        }
        let values = dequantize_to_vec(ty, &block).unwrap();
        for &(index, expected) in golden.samples {
            assert_eq!(f64::from(values[index]), expected, "{ty} value {index}");
        }
        assert_eq!(values.iter().map(|&v| f64::from(v)).sum::<f64>(), golden.sum, "{ty}");
        assert_eq!(values.iter().enumerate().map(|(i, &v)| (i + 1) as f64 * f64::from(v)).sum::<f64>(), golden.weighted, "{ty}");
    }
}

#[test]
fn simple_quantisers_equal_the_python_package() {
    let bytes = fixture("encode.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let x = floats(file.tensor("x").unwrap().data());
    for ty in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] {
        let expected = file.tensor(&format!("{ty}.blocks")).unwrap();
        let ty = GgmlType::from_name(ty).unwrap();
        let got = quantize(ty, &x).unwrap();
        for (i, (got, expected)) in got.chunks(ty.block_bytes()).zip(expected.data().chunks(ty.block_bytes())).enumerate() {
            assert_eq!(got, expected, "{ty} block {i}");
        }
    }
}

fn relative_rms_error(ty: GgmlType, x: &[f32]) -> f64 {
    let decoded = dequantize_to_vec(ty, &quantize(ty, x).unwrap()).unwrap();
    let error: f64 = x.iter().zip(&decoded).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (error / x.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>()).sqrt()
}

/// Bounds a little above what the quantisers reach, so that a worse search shows.
#[test]
fn quantisers_reach_their_error_bounds() {
    const SEED: u64 = 11;
    let bounds = [
        (GgmlType::Q4_0, 0.090),
        (GgmlType::Q4_1, 0.083),
        (GgmlType::IQ4_NL, 0.080),
        (GgmlType::Q4_K, 0.075),
        (GgmlType::Q5_0, 0.046),
        (GgmlType::Q5_1, 0.041),
        (GgmlType::Q5_K, 0.038),
        (GgmlType::Q6_K, 0.019),
        (GgmlType::Q8_0, 0.0056),
        (GgmlType::BF16, 0.0020),
        (GgmlType::F16, 0.00025),
    ];
    let x = normal(SEED, 256 * 256);
    for (ty, bound) in bounds {
        let error = relative_rms_error(ty, &x);
        println!("{ty}: {error:.5} (bound {bound}, seed {SEED})");
        assert!(error < bound, "{ty}: got {error}, expected below {bound}, seed {SEED}");
        // The formats are scale-free until half precision runs out of exponent.
        for scale in [1e-2, 30.0] {
            let scaled: Vec<f32> = x.iter().map(|v| v * scale).collect();
            assert!(relative_rms_error(ty, &scaled) < bound * 1.05, "{ty} at scale {scale}");
        }
    }
}

/// Shapes on which a search for scales goes wrong first.
#[test]
fn quantisers_survive_degenerate_blocks() {
    const SEED: u64 = 12;
    let noise = normal(SEED, 256);
    let spike = |at: usize, v: f32| -> Vec<f32> { (0..256).map(|i| if i == at { v } else { 0.0 }).collect() };
    let inputs: [(&str, Vec<f32>); 10] = [
        ("zero", vec![0.0; 256]),
        ("negative zero", vec![-0.0; 256]),
        ("constant", vec![1.25; 256]),
        ("negative constant", vec![-1.25; 256]),
        ("spike", spike(77, 3.0)),
        ("negative spike", spike(200, -3.0)),
        ("subnormal", vec![1e-40; 256]),
        ("positive", noise.iter().map(|v| v.abs() + 5.0).collect()),
        ("negative", noise.iter().map(|v| -v.abs() - 5.0).collect()),
        ("mixed scales", noise.iter().enumerate().map(|(i, v)| v * 10f32.powi(i as i32 / 32 - 4)).collect()),
    ];
    for ty in GgmlType::ALL.iter().copied().filter(|ty| ty.can_quantize()) {
        // A little over half a step of four bits from -peak to peak. The codes of Q4_0 end at +7, a whole step below the mirror image of
        // a negative peak, and the outer steps of IQ4_NL are wide. The smallest half comes on top.
        let step = if matches!(ty, GgmlType::Q4_0 | GgmlType::IQ4_NL) { 0.126 } else { 0.075 };
        for (name, x) in &inputs {
            let decoded = dequantize_to_vec(ty, &quantize(ty, x).unwrap()).unwrap();
            let peak = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            for (group, (x, decoded)) in x.chunks(32).zip(decoded.chunks(32)).enumerate() {
                for (a, b) in x.iter().zip(decoded) {
                    assert!((a - b).abs() <= peak * step + 6e-8, "{ty} {name} group {group}: {a} became {b}, seed {SEED}");
                    assert!(peak != 0.0 || *b == 0.0, "{ty} {name}");
                }
            }
        }
    }
}

#[test]
fn values_without_a_representation_are_errors() {
    for ty in GgmlType::ALL.iter().copied().filter(|ty| ty.can_quantize()) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut x = vec![1.0; 256 * 40];
            x[9000] = bad;
            let result = quantize(ty, &x);
            if ty.is_quantized() {
                let error = result.unwrap_err().to_string();
                let place = if bad.is_finite() {
                    "x[8992..".to_string().replace("8992", &(9000 / ty.block_len() * ty.block_len()).to_string())
                } else {
                    "x[9000]".into()
                };
                assert!(error.contains(&place), "{ty} {bad}: {error}");
            } else {
                let decoded = dequantize_to_vec(ty, &result.unwrap()).unwrap();
                assert!(decoded[9000].is_nan() == bad.is_nan() && (bad.is_nan() || decoded[9000].signum() == bad.signum()));
            }
        }
    }
}

/// Encoding what a format can hold exactly gives it back, for codes that reach both ends of the range.
#[test]
fn representable_values_survive() {
    let x: Vec<f32> = (0..256).map(|i| 0.5 * ((i * 7 % 16) as f32 - 8.0)).collect();
    for ty in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Q4_K] {
        let decoded = dequantize_to_vec(ty, &quantize(ty, &x).unwrap()).unwrap();
        let worst = x.iter().zip(&decoded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.02, "{ty}: {worst}");
    }
    for code in 0..16u8 {
        let value = f32::from(kernelry::quant::decode::IQ4_VALUES[usize::from(code)]) * 0.25;
        let mut x = [value; 32];
        x[0] = -127.0 * 0.25;
        let decoded = dequantize_to_vec(GgmlType::IQ4_NL, &quantize(GgmlType::IQ4_NL, &x).unwrap()).unwrap();
        // The scale that least squares finds may be one rounding of a half away from the one the values were made with.
        assert!(x.iter().zip(&decoded).all(|(a, b)| (a - b).abs() <= a.abs() / 1024.0), "code {code}: {decoded:?}");
    }
}
