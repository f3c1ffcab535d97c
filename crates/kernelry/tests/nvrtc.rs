//! Every kernel text through NVRTC. Needs the library (see `.ci/fetch-nvrtc`), and no GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use kernelry::Config;
use kernelry::backend::Unit;
use kernelry::backend::cuda::nvrtc::{Nvrtc, cubin_kernels, cubin_words};
use kernelry::catalogue;
use kernelry::registry::{ConstantValue, Constants, Options};
use rayon::prelude::*;

/// Kernels that may spill registers on some architecture, and why.
const SPILLS_ALLOWED: &[(&str, &str)] =
    &[("fused_residual_norm_f32", "sm_90a keeps two values of a thread (8 bytes) in memory while it reads a row")];

/// The compiler, or nothing where there is none: the caller's test is skipped then, and says so. Where `KERNELRY_NVRTC` names a library,
/// it must work.
fn nvrtc(test: &str) -> Option<Nvrtc> {
    match Nvrtc::find() {
        Ok(nvrtc) => Some(nvrtc),
        Err(e) if Config::from_env().nvrtc.is_some() => panic!("{e}"),
        Err(e) => {
            eprintln!("SKIPPED {test}: {e}");
            None
        }
    }
}

fn compile(nvrtc: &Nvrtc, text: &str, constants: &Constants) -> Result<kernelry::backend::cuda::nvrtc::Compiled, String> {
    nvrtc.compile(&Unit::new("text", text, constants, Options::default()), "sm_90a")
}

#[test]
fn every_text_compiles_for_each_generation_without_spills() {
    let Some(nvrtc) = nvrtc("every_text_compiles_for_each_generation_without_spills") else { return };
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for kernel in catalogue::builtin() {
        if let Some(text) = kernel.gpu_text() {
            texts.entry(text).or_default().push(kernel.name());
        }
    }
    assert!(!texts.is_empty());
    let (limits, names) = kernelry::bench::limit_kernels();
    texts.insert(limits, names.to_vec());
    let jobs: Vec<_> = texts.iter().flat_map(|(text, names)| ["sm_80", "sm_90a", "sm_120"].map(|arch| (text, names, arch))).collect();
    let problems: Vec<String> = jobs
        .par_iter()
        .flat_map_iter(|&(text, names, arch)| {
            let unit = Unit::new(names[0], text, &Constants::NONE, Options::default());
            let compiled = match nvrtc.compile(&unit, arch) {
                Ok(compiled) => compiled,
                Err(message) => return vec![format!("{arch} {}: {message}", names[0])],
            };
            let symbols = cubin_kernels(&compiled.image).unwrap();
            let measured: BTreeSet<&str> = compiled.resources.iter().filter(|r| r.registers > 0).map(|r| r.kernel.as_str()).collect();
            let missing = names.iter().filter(|n| !symbols.contains(**n)).map(|n| format!("{arch} {n}: not in the cubin"));
            let unknown = names.iter().filter(|n| !measured.contains(**n)).map(|n| format!("{arch} {n}: no resources in the log"));
            let spills = compiled.resources.iter().filter(|r| r.spills() && !SPILLS_ALLOWED.iter().any(|(name, _)| *name == r.kernel));
            let spills = spills.map(|r| format!("{arch} {}: spills: {r:?}", r.kernel));
            missing.chain(unknown).chain(spills).collect()
        })
        .collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn messages_point_into_the_text() {
    let Some(nvrtc) = nvrtc("messages_point_into_the_text") else { return };
    let error = compile(&nvrtc, "// fine\nint broken(;\n", &Constants::NONE).unwrap_err();
    assert!(error.contains("text(2)"), "{error}");
    let unit = Unit::new("text", "", &Constants::NONE, Options::default());
    for arch in ["sm_10", "sm_90 -I/", "gfx90a"] {
        let error = nvrtc.compile(&unit, arch).unwrap_err();
        assert!(error.contains(&format!("architecture: got `{arch}`")), "{error}");
    }
}

#[test]
fn constants_reach_the_compiler() {
    let Some(nvrtc) = nvrtc("constants_reach_the_compiler") else { return };
    let text = "#if KN_CONST_3 != 7\n#error wrong constant\n#endif\nextern \"C\" __global__ void k(float* y) { y[0] = KN_CONST_1; }\n";
    let set = |three| Constants::new("k", [(3, ConstantValue::I32(three)), (1, ConstantValue::f32(0.5))]).unwrap();
    assert!(compile(&nvrtc, text, &set(7)).is_ok());
    assert!(compile(&nvrtc, text, &set(8)).unwrap_err().contains("wrong constant"));
}

#[test]
fn spills_and_resources_are_seen() {
    let Some(nvrtc) = nvrtc("spills_and_resources_are_seen") else { return };
    // 64 values that live across an opaque statement do not fit in 32 registers.
    let body: String = (0..64).map(|i| format!("float v{i} = x[{i} * 7];\n")).collect();
    let sum: String = (0..64).map(|i| format!("y[{i}] = v{i};\n")).collect();
    let text = format!(
        "extern \"C\" __global__ void __launch_bounds__(1024, 2) k(volatile float* x, volatile float* y) {{ __shared__ float s[256]; \
         s[threadIdx.x % 256] = x[0];\n{body}asm volatile(\"\" ::: \"memory\");\n__syncthreads();\n{sum} y[0] = s[(threadIdx.x + 1) % 256]; }}"
    );
    let compiled = compile(&nvrtc, &text, &Constants::NONE).unwrap();
    let [k] = compiled.resources.as_slice() else { panic!("{:?}", compiled.resources) };
    assert_eq!((k.kernel.as_str(), k.shared_bytes), ("k", 1024), "{}", compiled.log);
    assert!(k.spills() && k.registers == 32, "{}", compiled.log);
    assert_eq!(cubin_kernels(&compiled.image).unwrap().into_iter().collect::<Vec<_>>(), ["k"]);
}

#[test]
fn threadgroup_memory_at_launch_is_read_off_the_image() {
    let Some(nvrtc) = nvrtc("threadgroup_memory_at_launch_is_read_off_the_image") else { return };
    let text = "__device__ float other[2] = {1, 2};\nKN_DYNAMIC_SHARED(second, 50 * 1024 + 4);\nKN_DYNAMIC_SHARED(first, 196608);\n\
                extern \"C\" __global__ void first(uchar* y) { y[0] = kn_dynamic_shared[1]; }\n\
                extern \"C\" __global__ void second(float* y) { y[0] = other[1]; }\n\
                extern \"C\" __global__ void third(float* y) { y[0] = 0; }\n";
    let words = cubin_words(&compile(&nvrtc, text, &Constants::NONE).unwrap().image).unwrap();
    let get = |kernel: &str| words.get(&format!("{kernel}_dynamic_shared")).copied();
    assert_eq!((get("first"), get("second"), get("third")), (Some(196_608), Some(51_204), None), "{words:?}");
}

#[test]
fn a_virtual_architecture_gives_ptx() {
    let Some(nvrtc) = nvrtc("a_virtual_architecture_gives_ptx") else { return };
    let unit = Unit::new("text", "extern \"C\" __global__ void k() {}", &Constants::NONE, Options::default());
    let compiled = nvrtc.compile(&unit, "compute_90").unwrap();
    let text = String::from_utf8(compiled.image).unwrap();
    assert!(text.contains(".entry k") && text.ends_with('\0'), "{text}");
}

#[test]
fn the_toolchain_names_version_options_and_architecture() {
    let Some(nvrtc) = nvrtc("the_toolchain_names_version_options_and_architecture") else { return };
    let toolchain = nvrtc.toolchain("sm_90a");
    let (major, minor) = nvrtc.version();
    assert!(toolchain.contains(&format!("nvrtc {major}.{minor} (build of ")) && toolchain.contains("sm_90a"), "{toolchain}");
    assert_ne!(toolchain, nvrtc.toolchain("sm_80"));
    assert!(nvrtc.supported().unwrap().contains(&90));
}
