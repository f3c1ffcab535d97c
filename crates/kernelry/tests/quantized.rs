//! Properties of products with GGML blocks that single cases cannot show: how results relate to each other, and how large errors are
//! on the data of models. Weights are decoded by `kernelry::quant`, which is checked against another implementation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::gguf::{GgufFile, GgufWriter};
use kernelry::ops::linear::{Linear, Weight};
use kernelry::ops::quantized::{LinearAdd, MulMmParams, MulMvExtParams, MulMvParams, NormLinear, QuantizedMatmul};
use kernelry::quant::{GgmlType, dequantize_to_vec, quantize};
use kernelry::registry::{ConstantValue, Constants, Math, Registry};
use kernelry::{Buffer, Context, DType, Device, Encoder, Error};

const FORMATS: [(GgmlType, &str); 7] = [
    (GgmlType::Q4_0, "q4_0"),
    (GgmlType::Q8_0, "q8_0"),
    (GgmlType::Q5_1, "q5_1"),
    (GgmlType::IQ4_NL, "iq4_nl"),
    (GgmlType::Q4_K, "q4_K"),
    (GgmlType::Q5_K, "q5_K"),
    (GgmlType::Q6_K, "q6_K"),
];

const SEED: u64 = 20_240_611;

fn normal(rng: &mut fastrand::Rng, sigma: f64, len: usize) -> Vec<f32> {
    let mut one = || ((-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos() * sigma) as f32;
    (0..len).map(|_| one()).collect()
}

/// Blocks of `rows` of `k` weights of about 0.02, as models have.
fn blocks(ty: GgmlType, rows: usize, k: usize) -> Vec<u8> {
    quantize(ty, &normal(&mut fastrand::Rng::with_seed(SEED), 0.02, rows * k)).unwrap()
}

/// As [`blocks`]; for a type without an encoder, any codes with a small scale.
fn any_blocks(ty: GgmlType, rows: usize, k: usize) -> Vec<u8> {
    if ty.can_quantize() {
        return blocks(ty, rows, k);
    }
    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut bytes: Vec<u8> = (0..rows * ty.row_bytes(k).unwrap()).map(|_| rng.u8(..)).collect();
    let halves: &[usize] = match ty {
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        _ => &[0],
    };
    for block in bytes.chunks_mut(ty.block_bytes()) {
        halves.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&half::f16::from_f32(1e-3).to_le_bytes()));
    }
    bytes
}

/// A kernel by name with packed inputs, on fresh buffers.
struct Run<'a> {
    ctx: &'a Context,
    math: Math,
    constants: Constants,
}

impl Run<'_> {
    fn launch(&self, name: &str, weight: &[u8], x: &[f32], k: usize) -> Vec<f32> {
        let m = x.len() / k;
        let entry = kernelry::catalogue::find(name).unwrap();
        let ty = FORMATS.iter().find(|(_, s)| name.contains(&format!("_{s}_"))).unwrap().0;
        let n = weight.len() / ty.row_bytes(k).unwrap();
        let (w, x) = (self.ctx.upload(weight, &[weight.len()]).unwrap(), self.ctx.upload(x, &[m, k]).unwrap());
        let out = self.ctx.zeros(DType::F32, &[m, n]).unwrap();
        let mut encoder = self.ctx.encoder();
        encoder.set_math(self.math);
        let args = [Some(&w), Some(&x), Some(&out)];
        let (m, n, k) = (m as u32, n as u32, k as u32);
        let c = &self.constants;
        match entry.params().name {
            "MulMvParams" => encoder.launch_with(name, c, &args, &MulMvParams::single(m, n, k)),
            "MulMvExtParams" => encoder.launch_with(name, c, &args, &MulMvExtParams { m, n, k, batch: 1 }),
            _ => encoder.launch_with(name, c, &args, &MulMmParams::single(m, n, k)),
        }
        .unwrap();
        encoder.run().unwrap();
        out.to_vec::<f32>().unwrap()
    }
}

fn run(ctx: &Context, math: Math) -> Run<'_> {
    Run { ctx, math, constants: Constants::NONE }
}

/// The exact product, and `Σ|x·w|` of each element.
fn exact(weights: &[f32], x: &[f32], k: usize) -> Vec<(f64, f64)> {
    let terms = |x: &[f32], w: &[f32]| {
        x.iter().zip(w).fold((0.0, 0.0), |(sum, unit), (x, w)| {
            let p = f64::from(*x) * f64::from(*w);
            (sum + p, unit + p.abs())
        })
    };
    x.chunks(k).flat_map(|x| weights.chunks(k).map(move |w| terms(x, w))).collect()
}

fn nmse(got: &[f32], expected: &[(f64, f64)]) -> f64 {
    let error: f64 = got.iter().zip(expected).map(|(g, (e, _))| (f64::from(*g) - e).powi(2)).sum();
    error / expected.iter().map(|(e, _)| e * e).sum::<f64>()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Names that multiply `rows` rows in this format.
fn names(suffix: &str, rows: usize) -> Vec<String> {
    let mut list = vec![format!("kernel_mul_mv_{suffix}_f32"), format!("kernel_mul_mm_{suffix}_f32")];
    if ["q8_0", "q6_K"].contains(&suffix) {
        list.push(format!("kernel_mul_mv_{suffix}_f32_nr2"));
    }
    if (2..=8).contains(&rows) {
        list.extend((2..=5).map(|r1| format!("kernel_mul_mv_ext_{suffix}_f32_r1_{r1}")));
    }
    list
}

#[test]
fn errors_on_the_data_of_models() {
    let ctx = Context::cpu();
    let (n, k) = (256, 2816);
    for (ty, suffix) in FORMATS {
        let weight = blocks(ty, n, k);
        let decoded = dequantize_to_vec(ty, &weight).unwrap();
        let x = normal(&mut fastrand::Rng::with_seed(SEED + 1), 1.0, 8 * k);
        let expected = exact(&decoded, &x, k);
        for name in names(suffix, 8) {
            let fast = nmse(&run(&ctx, Math::Fast).launch(&name, &weight, &x, k), &expected);
            assert!(fast <= 2e-4, "{name}, fast: {fast:e}, seed {SEED}");
            let got = run(&ctx, Math::Precise).launch(&name, &weight, &x, k);
            let precise = nmse(&got, &expected);
            let bound = if name.contains("_mm_") { 2e-7 } else { 1e-11 };
            assert!(precise <= bound, "{name}: {precise:e}, seed {SEED}");
            for (i, (got, (value, unit))) in got.iter().zip(&expected).enumerate() {
                let sum: f64 = x[i / n * k..(i / n + 1) * k].iter().map(|v| f64::from(v.abs())).sum();
                let error = (f64::from(*got) - value).abs();
                assert!(error <= 5e-4 * unit + 3e-8 * sum, "{name} element {i}: error {error:e}, seed {SEED}");
            }
        }
    }
}

#[test]
fn a_row_depends_on_itself_alone() {
    let ctx = Context::cpu();
    let (m, n, k) = (7, 37, 768);
    for math in [Math::Precise, Math::Fast] {
        for (ty, suffix) in FORMATS {
            let weight = blocks(ty, n, k);
            let x = normal(&mut fastrand::Rng::with_seed(SEED), 1.0, m * k);
            for name in names(suffix, m) {
                let all = run(&ctx, math).launch(&name, &weight, &x, k);
                for (row, value) in [(0, f32::NAN), (3, f32::INFINITY), (6, 1e30)] {
                    let mut changed = x.clone();
                    changed[row * k + 5] = value;
                    let got = run(&ctx, math).launch(&name, &weight, &changed, k);
                    for (r, (got, all)) in got.chunks(n).zip(all.chunks(n)).enumerate() {
                        if r != row {
                            assert_eq!(bits(got), bits(all), "{name} {math:?}: row {r} changed with row {row}");
                        } else if !value.is_finite() {
                            assert!(got.iter().all(|v| !v.is_finite()), "{name} {math:?}: row {r} hides {value}");
                        }
                    }
                }
                // Fewer outputs: the same values for those that are left.
                let fewer = run(&ctx, math).launch(&name, &weight[..11 * ty.row_bytes(k).unwrap()], &x, k);
                for (few, all) in fewer.chunks(11).zip(all.chunks(n)) {
                    assert_eq!(bits(few), bits(&all[..11]), "{name} {math:?}: outputs depend on their number");
                }
            }
        }
    }
}

#[test]
fn a_bad_scale_spoils_one_output() {
    let ctx = Context::cpu();
    let (n, k) = (21, 512);
    for (ty, suffix) in FORMATS {
        let mut weight = blocks(ty, n, k);
        let x = normal(&mut fastrand::Rng::with_seed(SEED), 1.0, 3 * k);
        let good: Vec<Vec<f32>> = names(suffix, 3).iter().map(|name| run(&ctx, Math::Precise).launch(name, &weight, &x, k)).collect();
        let scale_at = if ty == GgmlType::Q6_K { 208 } else { 0 };
        let at = 9 * ty.row_bytes(k).unwrap() + scale_at;
        weight[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
        for (name, good) in names(suffix, 3).iter().zip(good) {
            let got = run(&ctx, Math::Precise).launch(name, &weight, &x, k);
            for (i, (got, good)) in got.iter().zip(&good).enumerate() {
                if i % n == 9 {
                    assert!(got.is_nan(), "{name}: output 9 hides a scale of NaN");
                } else {
                    assert_eq!(got.to_bits(), good.to_bits(), "{name}: output {} changed with output 9", i % n);
                }
            }
        }
    }
}

#[test]
fn passes_of_any_width_give_the_same_bits() {
    let ctx = Context::cpu();
    for (ty, suffix) in FORMATS {
        for m in 2..=8 {
            let (n, k) = (19, 768);
            let weight = blocks(ty, n, k);
            let x = normal(&mut fastrand::Rng::with_seed(SEED + m as u64), 1.0, m * k);
            let width = |r1: u32| run(&ctx, Math::Precise).launch(&format!("kernel_mul_mv_ext_{suffix}_f32_r1_{r1}"), &weight, &x, k);
            let first = bits(&width(2));
            for r1 in 3..=5 {
                assert_eq!(bits(&width(r1)), first, "{suffix}, {m} rows, r1 = {r1}");
            }
        }
    }
}

#[test]
fn constants_change_no_bit() {
    let ctx = Context::cpu();
    let with = |pairs: &[(u32, i32)]| Run {
        ctx: &ctx,
        math: Math::Precise,
        constants: Constants::new("", pairs.iter().map(|&(slot, v)| (slot, ConstantValue::I32(v)))).unwrap(),
    };
    for (ty, suffix) in FORMATS {
        let (n, k) = (13, 512);
        let weight = blocks(ty, n, k);
        let x = normal(&mut fastrand::Rng::with_seed(SEED), 1.0, 2 * k);
        for name in names(suffix, 2).iter().filter(|name| !name.contains("_mm_")) {
            let sets: [&[(u32, i32)]; 3] = if name.contains("_ext_") {
                [&[(600, 2)], &[(600, 2), (601, 8)], &[(601, 16)]]
            } else {
                [&[(700, 1), (701, 1), (702, 1)], &[(701, 1)], &[(700, -1), (701, -1), (702, -1)]]
            };
            let plain = bits(&with(&[]).launch(name, &weight, &x, k));
            for set in sets {
                assert_eq!(bits(&with(set).launch(name, &weight, &x, k)), plain, "{name} with {set:?}");
            }
        }
    }
}

/// Super-block scales of trained models are near 1e-4: arithmetic on them in f16 would be off by up to two percent.
#[test]
fn tiny_scales_are_not_multiplied_in_f16() {
    let ctx = Context::cpu();
    let (m, n, k) = (16, 70, 512);
    for (ty, suffix) in FORMATS {
        let mut weight = blocks(ty, n, k);
        for block in weight.chunks_mut(ty.block_bytes()) {
            let at = if ty == GgmlType::Q6_K { 208 } else { 0 };
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(2e-5).to_le_bytes());
        }
        let x = normal(&mut fastrand::Rng::with_seed(SEED), 1.0, m * k);
        let expected = exact(&dequantize_to_vec(ty, &weight).unwrap(), &x, k);
        let vector = run(&ctx, Math::Precise).launch(&format!("kernel_mul_mv_{suffix}_f32"), &weight, &x, k);
        let matrix = run(&ctx, Math::Precise).launch(&format!("kernel_mul_mm_{suffix}_f32"), &weight, &x, k);
        let reached: Vec<(f64, f64)> = vector.iter().map(|v| (f64::from(*v), 0.0)).collect();
        assert!(nmse(&vector, &expected) < 1e-11, "{suffix}: {:e}", nmse(&vector, &expected));
        // The weights of the formats without sub-blocks are subnormal in f16 here, and a kernel may round them to it.
        let bound = if ty.block_len() == 256 { 2e-7 } else { 1e-5 };
        assert!(nmse(&matrix, &reached) < bound, "{suffix}: {:e}", nmse(&matrix, &reached));
    }
}

fn encode(ctx: &Context, record: impl FnOnce(&mut Encoder) -> Result<(), Error>) {
    let mut encoder = ctx.encoder();
    record(&mut encoder).unwrap();
    encoder.run().unwrap();
}

#[test]
fn the_launcher_serves_any_number_of_rows() {
    let ctx = Context::cpu();
    let (n, k) = (33, 512);
    for (format, _) in FORMATS {
        let bytes = blocks(format, n, k);
        let decoded = dequantize_to_vec(format, &bytes).unwrap();
        let weight = ctx.upload(&bytes, &[bytes.len()]).unwrap();
        let data = normal(&mut fastrand::Rng::with_seed(SEED), 1.0, 40 * k);
        let x = ctx.upload(&data, &[40, k]).unwrap();
        let expected = exact(&decoded, &data, k);
        let product = |rows: usize, row_invariant: bool| {
            let out = ctx.zeros(DType::F32, &[rows, n]).unwrap();
            let x = x.rows(0, rows).unwrap();
            encode(&ctx, |e| QuantizedMatmul { weight: &weight, format, x: &x, out: &out, row_invariant }.encode(e));
            out.to_vec::<f32>().unwrap()
        };
        let one = bits(&product(1, false));
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 40] {
            let got = product(rows, false);
            assert!(nmse(&got, &expected[..rows * n]) <= 2e-7, "{format}, {rows} rows");
            assert_eq!(bits(&product(rows, true)[..n]), one, "{format}: the first of {rows} rows differs from the same row alone");
        }
    }
}

/// On a GPU `fast` takes kernels that round the input to f16, and from hundreds of rows on a weight that was expanded to f16: each weight and
/// each input moves by at most one part in 2048.
#[test]
fn fast_products_of_a_gpu_round_to_f16() {
    let ctx = Context::new(Device::open("emulator").expect("a C++ compiler"), Registry::new());
    let (n, k) = (24, 256);
    for (format, _) in FORMATS {
        let bytes = blocks(format, n, k);
        let decoded = dequantize_to_vec(format, &bytes).unwrap();
        let weight = ctx.upload(&bytes, &[bytes.len()]).unwrap();
        // Rows far apart in size: a factor for all of them would lose the small ones.
        let mut data = normal(&mut fastrand::Rng::with_seed(SEED), 1.0, 300 * k);
        for (row, values) in data.chunks_mut(k).enumerate() {
            values.iter_mut().for_each(|v| *v *= [1.0, 1e-9, 1e12][row % 3]);
        }
        let expected = exact(&decoded, &data, k);
        for rows in [40, 300] {
            let x = ctx.upload(&data[..rows * k], &[rows, k]).unwrap();
            let out = ctx.zeros(DType::F32, &[rows, n]).unwrap();
            encode(&ctx, |e| {
                e.set_math(Math::Fast);
                QuantizedMatmul { weight: &weight, format, x: &x, out: &out, row_invariant: false }.encode(e)
            });
            let got = out.to_vec::<f32>().unwrap();
            for row in 0..rows {
                let at = row * n..(row + 1) * n;
                let error = nmse(&got[at.clone()], &expected[at]);
                assert!(error <= 5e-7, "{format}, row {row} of {rows}: {error:e}");
            }
        }
    }
}

/// The norm before a product, the gate and the addition behind it, each in one launch with it.
#[test]
fn a_gpu_does_in_one_launch_what_surrounds_a_product() {
    let ctx = Context::new(Device::open("emulator").expect("a C++ compiler"), Registry::new());
    let (n, k, eps) = (24, 512, 1e-5f32);
    for (format, _) in FORMATS {
        let bytes = blocks(format, 2 * n, k);
        let decoded = dequantize_to_vec(format, &bytes).unwrap();
        let weight = Weight::from_bytes(&ctx, &bytes, format, 2 * n, k).unwrap();
        assert!(NormLinear::supports(&ctx, &weight) && LinearAdd::supports(&ctx, &weight));
        let mut rng = fastrand::Rng::with_seed(SEED);
        let (x, norm, residual) = (normal(&mut rng, 30.0, k), normal(&mut rng, 1.0, k), normal(&mut rng, 1.0, 2 * n));
        let size = (x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / k as f64 + f64::from(eps)).sqrt();
        let normed: Vec<f32> = x.iter().zip(&norm).map(|(x, w)| (f64::from(*x) / size * f64::from(*w)) as f32).collect();
        let products = exact(&decoded, &normed, k);
        let silu = |v: f64| v / (1.0 + (-v).exp());
        let gated: Vec<_> = (0..n).map(|i| (silu(products[i].0) * products[n + i].0, 0.0)).collect();
        let added: Vec<_> = exact(&decoded, &x, k).iter().zip(&residual).map(|((y, _), r)| (y + f64::from(*r), 0.0)).collect();

        let upload = |values: &[f32]| ctx.upload(values, &[values.len()]).unwrap();
        let (x, norm, sum) = (upload(&x), upload(&norm), upload(&residual));
        let (plain, gate) = (ctx.zeros(DType::F32, &[2 * n]).unwrap(), ctx.zeros(DType::F32, &[n]).unwrap());
        encode(&ctx, |e| {
            NormLinear { weight: &weight, x: &x, norm: &norm, eps, gated: false, out: &plain }.encode(e)?;
            NormLinear { weight: &weight, x: &x, norm: &norm, eps, gated: true, out: &gate }.encode(e)?;
            LinearAdd { weight: &weight, x: &x, residual: &sum, out: &sum }.encode(e)
        });
        for (what, got, expected) in [("norm", &plain, &products), ("gate", &gate, &gated), ("sum", &sum, &added)] {
            let error = nmse(&got.to_vec::<f32>().unwrap(), expected);
            assert!(error <= 1e-11, "{format}, {what}: {error:e}");
        }
    }
}

#[test]
fn fused_products_say_what_they_lack() {
    let gpu = Context::new(Device::open("emulator").expect("a C++ compiler"), Registry::new());
    let cpu = Context::cpu();
    let vector = |ctx: &Context, len: usize| ctx.zeros(DType::F32, &[len]).unwrap();
    let refuse = |ctx: &Context, weight: &Weight, out: usize, gated: bool, part: &str| {
        let (x, out) = (vector(ctx, weight.cols()), vector(ctx, out));
        let mut encoder = ctx.encoder();
        let error = NormLinear { weight, x: &x, norm: &x, eps: 0.0, gated, out: &out }.encode(&mut encoder).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(encoder.finish().unwrap().launches(), 0);
    };
    let blocks_of = |ctx: &Context, rows: usize, cols: usize| {
        Weight::from_bytes(ctx, &blocks(GgmlType::Q4_0, rows, cols), GgmlType::Q4_0, rows, cols).unwrap()
    };
    let long = blocks_of(&gpu, 2, 8224);
    assert!(!NormLinear::supports(&gpu, &long) && LinearAdd::supports(&gpu, &long));
    refuse(&gpu, &long, 2, false, "k: got 8224");
    refuse(&gpu, &blocks_of(&gpu, 3, 64), 1, true, "weight: got 3 rows");
    refuse(&gpu, &blocks_of(&gpu, 4, 64), 3, false, "out");
    let dense = Weight::from_bytes(&gpu, &[0; 4 * 64 * 4], GgmlType::F32, 4, 64).unwrap();
    assert!(!NormLinear::supports(&gpu, &dense) && !LinearAdd::supports(&gpu, &dense));
    refuse(&gpu, &dense, 4, false, "weight: got F32");
    // A CPU gains nothing from it.
    let here = blocks_of(&cpu, 4, 64);
    assert!(!NormLinear::supports(&cpu, &here) && !LinearAdd::supports(&cpu, &here));
    refuse(&cpu, &here, 4, false, "fused_norm_mul_mv_q4_0_f32");
}

#[test]
fn the_launcher_refuses_what_does_not_fit() {
    let ctx = Context::cpu();
    let bytes = blocks(GgmlType::Q4_0, 8, 64);
    let weight = ctx.upload(&bytes, &[bytes.len()]).unwrap();
    let x = ctx.zeros(DType::F32, &[2, 64]).unwrap();
    let out = ctx.zeros(DType::F32, &[2, 8]).unwrap();
    let refuse = |format: GgmlType, x: &Buffer, out: &Buffer, part: &str| {
        let mut encoder = ctx.encoder();
        let error = QuantizedMatmul { weight: &weight, format, x, out, row_invariant: false }.encode(&mut encoder).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(encoder.finish().unwrap().launches(), 0);
    };
    refuse(GgmlType::Q2_K, &x, &out, "format: got Q2_K");
    refuse(GgmlType::Q8_0, &x, &out, "weight: got");
    refuse(GgmlType::Q4_0, &x, &ctx.zeros(DType::F32, &[2, 9]).unwrap(), "weight: got");
    refuse(GgmlType::Q4_0, &x, &ctx.zeros(DType::F32, &[1, 8]).unwrap(), "out: got 1 rows");
    refuse(GgmlType::Q4_0, &ctx.zeros(DType::F32, &[2, 50]).unwrap(), &out, "row length");
}

/// Every type that can be decoded multiplies as its decoded values, whatever it is stored as, from memory and from a file.
#[test]
fn linear_takes_every_type() {
    let ctx = Context::cpu();
    let (n, k) = (18, 256);
    let data = normal(&mut fastrand::Rng::with_seed(SEED + 1), 1.0, 12 * k);
    let kept = [GgmlType::F32, GgmlType::F16, GgmlType::BF16].into_iter().chain(FORMATS.map(|(ty, _)| ty));
    let cases = kept.map(|ty| (ty, ty)).chain([
        (GgmlType::Q5_0, GgmlType::Q5_1),
        (GgmlType::Q4_1, GgmlType::Q5_1),
        (GgmlType::Q3_K, GgmlType::Q6_K),
        (GgmlType::Q2_K, GgmlType::F16),
        (GgmlType::IQ4_XS, GgmlType::F16),
    ]);
    for (ty, stored) in cases {
        let bytes = any_blocks(ty, n, k);
        let decoded = dequantize_to_vec(ty, &bytes).unwrap();
        let mut writer = GgufWriter::new();
        writer.tensor("w", ty, &[n, k]).unwrap();
        let file = GgufFile::from_bytes(writer.to_bytes(&[&bytes]).unwrap()).unwrap();
        for weight in [Weight::from_bytes(&ctx, &bytes, ty, n, k).unwrap(), Weight::from_gguf(&ctx, &file, "w").unwrap()] {
            assert_eq!((weight.kind(), weight.rows(), weight.cols()), (stored, n, k), "{ty}");
            for m in [1, 2, 12] {
                let x = ctx.upload(&data[..m * k], &[m, k]).unwrap();
                let out = ctx.zeros(DType::F32, &[m, n]).unwrap();
                encode(&ctx, |e| Linear { weight: &weight, x: &x, out: &out }.encode(e));
                let error = nmse(&out.to_vec::<f32>().unwrap(), &exact(&decoded, &data[..m * k], k));
                assert!(error <= 2e-7, "{ty} as {stored}, {m} rows: {error:e}");
            }
        }
    }
}

#[test]
fn linear_refuses_what_does_not_fit() {
    let ctx = Context::cpu();
    let weight = Weight::from_bytes(&ctx, &[0; 4 * 6], GgmlType::F32, 2, 3).unwrap();
    let (x, out) = (ctx.zeros(DType::F32, &[1, 4]).unwrap(), ctx.zeros(DType::F32, &[1, 2]).unwrap());
    let mut encoder = ctx.encoder();
    let error = Linear { weight: &weight, x: &x, out: &out }.encode(&mut encoder).unwrap_err().to_string();
    assert!(error.contains("[linear] x: got shape [1, 4], expected rows of 3"), "{error}");
    let error = Linear { weight: &weight, x: &out, out: &out }.encode(&mut encoder).unwrap_err().to_string();
    assert!(error.contains("x: got shape"), "{error}");
    assert!(Weight::from_bytes(&ctx, &[0; 23], GgmlType::F32, 2, 3).is_err());
    assert!(Weight::new(out, GgmlType::F16, 1, 2).is_err());
    // Weights beyond f16 stay f32: 6e4 times the largest multiplier of a Q2_K block.
    let mut block = vec![0xFFu8; 84];
    block[80..82].copy_from_slice(&half::f16::from_f32(60_000.0).to_le_bytes());
    block[82..84].copy_from_slice(&[0, 0]);
    assert_eq!(Weight::from_bytes(&ctx, &block, GgmlType::Q2_K, 1, 256).unwrap().kind(), GgmlType::F32);
}
