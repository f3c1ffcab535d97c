//! Settings from the environment: read in one place, once, each with a twin in the API.

use std::path::PathBuf;
use std::sync::LazyLock;

/// Settings of a process. Every field can also be set on the object that it governs.
///
/// | variable | meaning | twin |
/// |---|---|---|
/// | `KERNELRY_DEVICE` | device that the command line uses by default (`cpu`) | `--device` |
/// | `KERNELRY_THREADS` | worker threads of the CPU backend; default: all | `--threads`, rayon's global pool |
/// | `KERNELRY_CACHE` | folder of the cache of compiled texts, or `off`; default: `kernelry` in the user's folder for caches | [`Registry::with_config`](crate::Registry::with_config) |
/// | `KERNELRY_PACK` | packs of compiled kernels, separated like `PATH` | [`Registry::add_pack`](crate::Registry::add_pack) |
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
    /// Folder of the cache of compiled texts; `None`: nothing is kept on the disk.
    pub cache_dir: Option<PathBuf>,
    /// Packs of compiled kernels.
    pub packs: Vec<PathBuf>,
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
            cache_dir: cache_dir(&get),
            packs: get("KERNELRY_PACK").iter().flat_map(std::env::split_paths).filter(|p| !p.as_os_str().is_empty()).collect(),
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

/// Folder of the cache: what `KERNELRY_CACHE` says, else a folder of ours where the system wants caches; none if neither is known.
fn cache_dir(get: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    match get("KERNELRY_CACHE").as_deref() {
        Some("off" | "0" | "false") => return None,
        Some("") | None => {}
        Some(folder) => return Some(PathBuf::from(folder)),
    }
    // A relative path would mean another folder in every working directory.
    let folder = |name: &str| get(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("kernelry"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::path::PathBuf;

    use super::Config;

    fn parse(variables: &[(&str, &str)]) -> Config {
        Config::parse(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(parse(&[]), Config::default());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_cache_has_a_folder_of_its_own_or_none() {
        let dir = |variables: &[(&str, &str)]| parse(variables).cache_dir;
        assert_eq!(dir(&[("HOME", "/home/a")]), Some(PathBuf::from("/home/a/.cache/kernelry")));
        assert_eq!(dir(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/x")]), Some(PathBuf::from("/x/kernelry")));
        assert_eq!(dir(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "x")]), Some(PathBuf::from("/home/a/.cache/kernelry")));
        assert_eq!(dir(&[("HOME", "/home/a"), ("KERNELRY_CACHE", "/c")]), Some(PathBuf::from("/c")));
        assert_eq!(dir(&[("HOME", "/home/a"), ("KERNELRY_CACHE", "off")]), None);
        assert_eq!(parse(&[("KERNELRY_PACK", "/a.kpack:/b.kpack")]).packs, [PathBuf::from("/a.kpack"), PathBuf::from("/b.kpack")]);
    }
}
