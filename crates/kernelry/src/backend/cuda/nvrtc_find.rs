//! Where NVRTC may be: a toolkit, a library path, or the packages of a Python environment.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Names that the system's loader may know, in the order in which they are tried.
pub(super) const NAMES: &[&str] =
    if cfg!(windows) { &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"] } else { &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"] };

/// Library files in the usual places that exist, without the names for the system's loader.
pub(super) fn toolkits() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"].iter().filter_map(|v| path_var(v)).collect();
    roots.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    roots.extend(children(Path::new("/usr/local"), "cuda-"));
    roots.extend(path_var("CONDA_PREFIX"));
    let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin"];
    roots.iter().flat_map(|root| folders.map(|f| root.join(f))).filter_map(|folder| in_folder(&folder)).collect()
}

/// Library files of PyPI's packages, in the environment that is active and in those whose programs are on the path.
pub(super) fn python_packages() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|v| path_var(v)).collect();
    for folder in env::var_os("PATH").iter().flat_map(env::split_paths) {
        // A Python on the path may be a link to where its packages are.
        if let Ok(program) = folder.join("python3").canonicalize() {
            prefixes.extend(program.parent().and_then(Path::parent).map(Path::to_owned));
        }
        if folder.join("python3").exists() {
            prefixes.extend(folder.parent().map(Path::to_owned));
        }
    }
    prefixes.extend(path_var("HOME").map(|home| home.join(".local")));
    let mut found: Vec<PathBuf> = Vec::new();
    for site in prefixes.iter().flat_map(|prefix| site_packages(prefix)) {
        for folder in ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu13/bin/x86_64", "nvidia/cuda_nvrtc/bin"] {
            found.extend(in_folder(&site.join(folder)).filter(|f| !found.contains(f)));
        }
    }
    found
}

fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut sites = Vec::new();
    for python in children(&prefix.join("lib"), "python3") {
        sites.extend(["site-packages", "dist-packages"].map(|s| python.join(s)));
    }
    sites.push(prefix.join("Lib/site-packages"));
    sites
}

/// The library in a folder, the highest version first.
pub(super) fn in_folder(folder: &Path) -> Option<PathBuf> {
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let windows = name.starts_with("nvrtc64_") && name.ends_with(".dll") && !name.contains("alt");
        windows || name == "libnvrtc.so" || name.strip_prefix("libnvrtc.so.").is_some_and(|v| v.chars().all(|c| c.is_ascii_digit()))
    };
    children(folder, "").into_iter().find(is_library)
}

/// Entries of a folder whose names start with `prefix`, highest version first.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(prefix))).map(|e| e.path()).collect();
    found.sort_by_cached_key(|path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let numbers: Vec<u64> = name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        std::cmp::Reverse(numbers)
    });
    found
}

fn path_var(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::{in_folder, site_packages};

    #[test]
    fn the_highest_version_of_the_library_itself_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.alt.so.13", "libnvrtc.so.13.txt"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(in_folder(dir.path()).unwrap().file_name().unwrap(), "libnvrtc.so.13");
        assert_eq!(in_folder(&dir.path().join("absent")), None);
    }

    #[test]
    fn packages_of_every_python_of_a_prefix() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("lib/python3.9")).unwrap();
        std::fs::create_dir_all(dir.path().join("lib/python3.12")).unwrap();
        let sites = site_packages(dir.path());
        assert_eq!(sites[0], dir.path().join("lib/python3.12/site-packages"));
        assert!(sites.contains(&dir.path().join("lib/python3.9/dist-packages")));
    }
}
