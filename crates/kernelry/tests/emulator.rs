//! The emulator finds what a GPU hides: each broken kernel here must be caught and named, on every seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kernelry::backend::emulator::EmulatorOptions;
use kernelry::catalogue::{Access, Geometry};
use kernelry::{Buffer, Context, DType, Device, Registry};

const SEEDS: u64 = 100;

fn context(seed: u64, warp: u32, undefined: bool) -> Context {
    let mut options = EmulatorOptions::default();
    options.seed = seed;
    options.warp = warp;
    options.undefined = undefined;
    Context::new(Device::emulator(options).expect("a C++ compiler"), Registry::new())
}

struct Broken {
    name: &'static str,
    text: &'static str,
    /// Elements of `y`; `x` has 256.
    out: usize,
    threads: u32,
    /// The report starts like this, after the kernel's name.
    report: &'static str,
    /// Line of the text that it names.
    line: u32,
}

const PARAMS: &str = "struct P { uint n; };\n";

/// Every mistake that the emulator promises to find.
const BROKEN: &[Broken] = &[
    Broken {
        name: "missing_barrier",
        text: "KN_KERNEL(missing_barrier, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  KN_SHARED(float, tile, 64);
  tile[KN_THREAD_X] = x[KN_THREAD_X];
  y[KN_THREAD_X] = tile[63 - KN_THREAD_X];
}",
        out: 64,
        threads: 64,
        report: "race:",
        line: 5,
    },
    Broken {
        name: "missing_second_barrier",
        text: "KN_KERNEL(missing_second_barrier, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  KN_SHARED(float, tile, 64);
  for (uint i = 0; i < 2; ++i) {
    tile[KN_THREAD_X] = x[64 * i + KN_THREAD_X];
    kn_barrier();
    y[64 * i + KN_THREAD_X] = tile[63 - KN_THREAD_X];
  }
}",
        out: 128,
        threads: 64,
        report: "race:",
        line: 5,
    },
    Broken {
        name: "divergent_barrier",
        text: "KN_KERNEL(divergent_barrier, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  if (KN_THREAD_X < 40) {
    kn_barrier();
  }
  y[KN_THREAD_X] = x[KN_THREAD_X];
}",
        out: 64,
        threads: 64,
        report: "divergence:",
        line: 4,
    },
    Broken {
        name: "early_return",
        text: "KN_KERNEL(early_return, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  if (KN_THREAD_X == 63) return;
  y[KN_THREAD_X] = kn_warp_sum(x[KN_THREAD_X]);
}",
        out: 64,
        threads: 64,
        report: "divergence:",
        line: 4,
    },
    Broken {
        name: "missing_warp_sync",
        text: "KN_KERNEL(missing_warp_sync, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  KN_SHARED(float, tile, 64);
  tile[KN_THREAD_X] = x[KN_THREAD_X];
  const uint neighbour = KN_WARP_ID * KN_WARP + (KN_LANE + 1) % KN_WARP;
  y[KN_THREAD_X] = tile[neighbour];
}",
        out: 64,
        threads: 64,
        report: "race:",
        line: 6,
    },
    Broken {
        name: "shuffle_is_no_fence",
        text: "KN_KERNEL(shuffle_is_no_fence, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  KN_SHARED(float, tile, 64);
  tile[KN_THREAD_X] = x[KN_THREAD_X];
  const float v = kn_shfl_xor(x[KN_THREAD_X], 1);
  y[KN_THREAD_X] = v + tile[KN_THREAD_X ^ 1];
}",
        out: 64,
        threads: 64,
        report: "race:",
        line: 6,
    },
    Broken {
        name: "tail_off_by_one",
        text: "KN_KERNEL(tail_off_by_one, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  for (uint i = KN_THREAD_X; i <= p.n; i += KN_BLOCK_X) y[i] = x[i];
}",
        out: 100,
        threads: 64,
        report: "out of range: write of 4 bytes",
        line: 3,
    },
    Broken {
        name: "read_before_start",
        text: "KN_KERNEL(read_before_start, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  y[KN_THREAD_X] = x[(ulong)KN_THREAD_X - 1];
}",
        out: 64,
        threads: 64,
        report: "out of range: read of 4 bytes",
        line: 3,
    },
    Broken {
        name: "misaligned_vector",
        text: "KN_KERNEL(misaligned_vector, 32, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  const float4 v = kn_load4(x + 4 * KN_THREAD_X + 1);
  y[KN_THREAD_X] = v.x + v.y + v.z + v.w;
}",
        out: 32,
        threads: 32,
        report: "misaligned:",
        line: 3,
    },
    Broken {
        name: "uninitialised_scratch",
        text: "KN_KERNEL(uninitialised_scratch, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  KN_SHARED(float, tile, 64);
  if (KN_THREAD_X < 63) tile[KN_THREAD_X] = x[KN_THREAD_X];
  kn_barrier();
  y[KN_THREAD_X] = tile[63 - KN_THREAD_X];
}",
        out: 64,
        threads: 64,
        report: "uninitialised:",
        line: 6,
    },
    Broken {
        name: "scratch_overrun",
        text: "KN_KERNEL(scratch_overrun, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  KN_SHARED(float, a, 63);
  KN_SHARED(float, b, 64);
  a[KN_THREAD_X] = x[KN_THREAD_X];
  b[KN_THREAD_X] = x[KN_THREAD_X];
  y[KN_THREAD_X] = a[KN_THREAD_X] + b[KN_THREAD_X];
}",
        out: 64,
        threads: 64,
        report: "out of range: write of 4 bytes",
        line: 5,
    },
    Broken {
        name: "blocks_overlap",
        text: "KN_KERNEL(blocks_overlap, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  y[KN_GROUP_X * 63 + KN_THREAD_X] = x[KN_THREAD_X];
}",
        out: 256,
        threads: 64,
        report: "race:",
        line: 3,
    },
    Broken {
        name: "input_written",
        text: "KN_KERNEL(input_written, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  ((float*)x)[KN_THREAD_X] = 0;
  y[KN_THREAD_X] = 0;
}",
        out: 64,
        threads: 64,
        report: "read-only: write of the input",
        line: 3,
    },
    Broken {
        name: "lane_beyond_the_warp",
        text: "KN_KERNEL(lane_beyond_the_warp, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  y[KN_THREAD_X] = kn_shfl(x[KN_THREAD_X], KN_LANE + 1);
}",
        out: 64,
        threads: 64,
        report: "shuffle: lane 32",
        line: 3,
    },
];

/// Runs `name` on `x` = 0, 1, 2 ... and an output of `out` elements.
fn run(context: &Context, name: &str, out: usize, geometry: Geometry) -> kernelry::Result<Vec<f32>> {
    let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let x = context.upload(&x, &[256])?;
    let y = Buffer::zeros(context.device(), DType::F32, &[out])?;
    let pipeline = context.registry().get_pipeline(name, context.device())?;
    let mut encoder = context.encoder();
    encoder.launch_raw(&pipeline, &[&x, &y], Some(&[Access::Read, Access::Write]), &(out as u32).to_ne_bytes(), geometry)?;
    encoder.run()?;
    y.to_vec()
}

#[test]
fn every_broken_kernel_is_caught_and_named_on_every_seed() {
    for broken in BROKEN {
        let groups = if broken.name == "blocks_overlap" { 3 } else { 1 };
        for seed in 0..SEEDS {
            let context = context(seed, 32, false);
            context.registry().register_source(broken.name, format!("{PARAMS}{}", broken.text)).unwrap();
            let outcome = run(&context, broken.name, broken.out, Geometry::linear(groups, broken.threads));
            let report = outcome.expect_err(&format!("{} passed on seed {seed}", broken.name)).to_string();
            let expected = format!("[{}] {}", broken.name, broken.report);
            assert!(report.contains(&expected), "seed {seed}: got `{report}`, expected `{expected}`");
            let place = format!("{}:{}", broken.name, broken.line);
            assert!(report.contains(&place), "seed {seed}: got `{report}`, expected it to name {place}");
            assert!(report.contains(&format!("KERNELRY_EMULATOR_SEED={seed}")), "{report}");
        }
    }
}

#[test]
fn a_sound_kernel_passes_on_every_width_and_seed() {
    let text = "struct P { uint n; };
KN_KERNEL(sound, 128, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  KN_SHARED(float, scratch, KN_SCRATCH);
  const float total = kn_block_sum(x[KN_THREAD_X], scratch, KN_BLOCK_X / KN_WARP, KN_LANE, KN_WARP_ID);
  y[KN_GROUP_X * KN_BLOCK_X + KN_THREAD_X] = total + (float)KN_GROUP_X;
}";
    for warp in [8, 16, 32, 64] {
        for seed in 0..SEEDS / 4 {
            let context = context(seed, warp, true);
            context.registry().register_source("sound", text).unwrap();
            let y = run(&context, "sound", 512, Geometry::linear(4, 128)).unwrap();
            for (i, &v) in y.iter().enumerate() {
                assert_eq!(v, (127 * 128 / 2 + i / 128) as f32, "warp {warp}, seed {seed}, element {i}");
            }
        }
    }
}

#[test]
fn undefined_behaviour_is_reported_with_its_line() {
    let text = "struct P { uint n; };
KN_KERNEL(shifts, 32, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  y[KN_THREAD_X] = (float)(1u << (uint)x[KN_THREAD_X + 8]);
}";
    let context = context(1, 32, true);
    context.registry().register_source("shifts", text).unwrap();
    let report = run(&context, "shifts", 32, Geometry::linear(1, 32)).unwrap_err().to_string();
    assert!(report.contains("undefined behaviour: shift by too many bits") && report.contains("shifts:3"), "{report}");
}

#[test]
fn a_compile_error_points_at_the_users_line() {
    let context = context(0, 32, false);
    context
        .registry()
        .register_source("typo", "struct P { uint n; };\nKN_KERNEL(typo, 32, P, KN_OUT(0, float, y)) {\n  y[0] = mistake;\n}")
        .unwrap();
    let error = context.registry().get_pipeline("typo", context.device()).unwrap_err().to_string();
    assert!(error.contains("typo:3:") && error.contains("mistake"), "{error}");
}

#[test]
fn constants_specialise_and_texts_share_modules() {
    let context = context(0, 32, false);
    let text = "struct P { uint n; };\nKN_KERNEL(scaled, 64, P, KN_IN(0, float, x), KN_OUT(1, float, y)) {
  y[KN_THREAD_X] = x[KN_THREAD_X] * (float)KN_CONST_3;
}";
    context.registry().register_source("scaled", text).unwrap();
    let pipeline = |v| context.registry().get_pipeline_with_constants("scaled", context.device(), &[], &[(3, v)]).unwrap();
    let (two, three) = (pipeline(2), pipeline(3));
    assert_ne!(two, three);
    assert_eq!(two, pipeline(2));
    assert_ne!(two.identity().content_hash, three.identity().content_hash);
    for (pipeline, factor) in [(&two, 2.0), (&three, 3.0)] {
        let x = context.upload(&[1f32; 64], &[64]).unwrap();
        let y = Buffer::zeros(context.device(), DType::F32, &[64]).unwrap();
        let mut encoder = context.encoder();
        encoder.launch_raw(pipeline, &[&x, &y], None, &64u32.to_ne_bytes(), Geometry::linear(1, 64)).unwrap();
        encoder.run().unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [factor; 64]);
    }
    let registry = context.registry();
    let f32s = registry.get_pipeline("rms_norm_f32", context.device()).unwrap();
    let f16s = registry.get_pipeline("rms_norm_f16", context.device()).unwrap();
    assert_eq!(f32s.identity().content_hash, f16s.identity().content_hash, "one text, one module");
}

/// The kernel that `docs/dialect.md` teaches with.
fn taught() -> String {
    let page = include_str!("../../../docs/dialect.md");
    let (_, rest) = page.split_once("```cpp\n").expect("a kernel");
    rest.split_once("```").expect("its end").0.to_owned()
}

fn add_row(text: &str) -> kernelry::Result<Vec<f32>> {
    let context = context(0, 32, false);
    context.registry().register_source("add_row", text)?;
    let x = context.upload(&[1f32; 15], &[3, 5])?;
    let b = context.upload(&[1f32, 2.0, 3.0, 4.0, 5.0], &[5])?;
    let y = Buffer::zeros(context.device(), DType::F32, &[3, 5])?;
    let pipeline = context.registry().get_pipeline("add_row", context.device())?;
    let mut encoder = context.encoder();
    let params: Vec<u8> = [3u32, 5].iter().flat_map(|v| v.to_ne_bytes()).collect();
    encoder.launch_raw(&pipeline, &[&x, &b, &y], Some(&[Access::Read, Access::Read, Access::Write]), &params, Geometry::linear(3, 256))?;
    encoder.run()?;
    y.to_vec()
}

#[test]
fn the_page_on_the_dialect_is_true() {
    let text = taught();
    assert_eq!(add_row(&text).unwrap(), [2.0, 3.0, 4.0, 5.0, 6.0].repeat(3));
    let report = add_row(&text.replace("c < p.cols", "c <= p.cols")).unwrap_err().to_string();
    assert!(report.contains("add_row") && (report.contains("out of range") || report.contains("race")), "{report}");
    println!("{report}");
}
