//! Settings from the environment: read in one place, once, each with a twin in the API.

use std::path::PathBuf;
use std::sync::LazyLock;

/// Settings of a process. Every field can also be set on the object that it governs.
///
/// | variable | meaning | twin |
/// |---|---|---|
/// | `KERNELRY_DEVICE` | device that the command line uses by default (`cpu`) | `--device` |
/// | `KERNELRY_THREADS` | worker threads of the CPU backend; default: all | `--threads`, rayon's global pool |
/// | `KERNELRY_NVRTC` | NVRTC's library or the folder it is in; default: the usual places | `Nvrtc::open` |
/// | `KERNELRY_EMULATOR_SEED` | seed of the emulator's schedules (0) | `EmulatorOptions::seed` |
/// | `KERNELRY_EMULATOR_WARP` | lanes of the emulator's warps: 8, 16, 32 or 64 (32) | `EmulatorOptions::warp` |
/// | `KERNELRY_EMULATOR_UNDEFINED` | `1`: the emulator reports undefined behaviour too | `EmulatorOptions::undefined` |
/// | `KERNELRY_FORCE_SERIAL` | `1`: a barrier after each launch | [`Encoder::set_force_serial`](crate::Encoder::set_force_serial) |
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Default device name.
    pub device: Option<String>,
    /// Worker threads of the CPU backend.
    pub threads: Option<usize>,
    /// A barrier after each launch.
    pub force_serial: bool,
    /// NVRTC's library or the folder it is in.
    pub nvrtc: Option<PathBuf>,
    /// How the emulator runs.
    #[cfg(feature = "emulator")]
    pub emulator: crate::backend::emulator::EmulatorOptions,
}

impl Config {
    /// The settings of this process, read at the first call.
    pub fn from_env() -> &'static Config {
        static CONFIG: LazyLock<Config> = LazyLock::new(|| Config::parse(|name| std::env::var(name).ok()));
        &CONFIG
    }

    /// Parses settings from any source of variables. Values that cannot be understood count as not set.
    pub fn parse(get: impl Fn(&str) -> Option<String>) -> Config {
        let flag = |name: &str| get(name).is_some_and(|v| !matches!(v.as_str(), "" | "0" | "false" | "off"));
        Config {
            device: get("KERNELRY_DEVICE").filter(|d| !d.is_empty()),
            threads: get("KERNELRY_THREADS").and_then(|t| t.parse().ok()).filter(|&t| t > 0),
            force_serial: flag("KERNELRY_FORCE_SERIAL"),
            nvrtc: get("KERNELRY_NVRTC").filter(|p| !p.is_empty()).map(PathBuf::from),
            #[cfg(feature = "emulator")]
            emulator: crate::backend::emulator::EmulatorOptions {
                seed: get("KERNELRY_EMULATOR_SEED").and_then(|v| v.parse().ok()).unwrap_or(0),
                warp: get("KERNELRY_EMULATOR_WARP").and_then(|v| v.parse().ok()).unwrap_or(32),
                undefined: flag("KERNELRY_EMULATOR_UNDEFINED"),
            },
        }
    }
}
