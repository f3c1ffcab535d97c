//! NVRTC, NVIDIA's run-time compiler, loaded when it is used: kernel texts become machine code of one architecture.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, OnceLock};

use libloading::Library;

use super::{cubin, nvrtc_find};
use crate::backend::{Artefact, BuildTarget, OfflineCompiler, Resources, Target, Unit};
use crate::{Config, Error, Result};

type Status = c_int;
type Program = *mut c_void;

/// Options of every compilation, besides the architecture. Functions without a qualifier are for the device, so that texts need none.
const OPTIONS: &[&str] = &["--std=c++17", "-default-device", "--ptxas-options=-v"];

/// The entry points that are used, as pointers that live as long as the library.
struct Api {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    arch_count: unsafe extern "C" fn(*mut c_int) -> Status,
    archs: unsafe extern "C" fn(*mut c_int) -> Status,
}

impl Api {
    fn of(library: &Library) -> Result<Api, libloading::Error> {
        macro_rules! symbol {
            ($name:literal) => {{
                // SAFETY: the field has the type that NVRTC's header gives the function of this name, and the library stays loaded.
                *unsafe { library.get($name) }?
            }};
        }
        Ok(Api {
            version: symbol!(b"nvrtcVersion\0"),
            error_string: symbol!(b"nvrtcGetErrorString\0"),
            create: symbol!(b"nvrtcCreateProgram\0"),
            destroy: symbol!(b"nvrtcDestroyProgram\0"),
            compile: symbol!(b"nvrtcCompileProgram\0"),
            log_size: symbol!(b"nvrtcGetProgramLogSize\0"),
            log: symbol!(b"nvrtcGetProgramLog\0"),
            cubin_size: symbol!(b"nvrtcGetCUBINSize\0"),
            cubin: symbol!(b"nvrtcGetCUBIN\0"),
            ptx_size: symbol!(b"nvrtcGetPTXSize\0"),
            ptx: symbol!(b"nvrtcGetPTX\0"),
            arch_count: symbol!(b"nvrtcGetNumSupportedArchs\0"),
            archs: symbol!(b"nvrtcGetSupportedArchs\0"),
        })
    }
}

struct Inner {
    api: Api,
    version: (i32, i32),
    path: PathBuf,
    build: String,
    /// Never unloaded: the library has threads and handlers of its own.
    _library: ManuallyDrop<Library>,
}

/// The compiler. Cheap to clone, usable from any number of threads at once.
#[derive(Clone)]
pub struct Nvrtc(Arc<Inner>);

/// A compiled text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Compiled {
    /// The cubin; for a virtual architecture (`compute_90`) PTX that ends in a zero byte.
    pub image: Vec<u8>,
    /// What the compiler said: warnings, and the resources in words.
    pub log: String,
    /// Resources of each kernel, in the order of the log; none for a virtual architecture.
    pub resources: Vec<Resources>,
}

impl Nvrtc {
    /// The NVRTC of this machine, looked for once: `KERNELRY_NVRTC` (a file, or the folder it is in) and nothing else if that is set; else
    /// the CUDA toolkit (`CUDA_PATH`, `CUDA_HOME`, `/usr/local/cuda*`), the system's library path, and PyPI's packages
    /// `nvidia-cuda-nvrtc*` in the active Python environment or one on the path.
    ///
    /// # Errors
    /// [`Error::DeviceNotFound`] saying where it was looked for.
    pub fn find() -> Result<Nvrtc> {
        static FOUND: OnceLock<Result<Nvrtc>> = OnceLock::new();
        FOUND.get_or_init(|| Nvrtc::search(Config::from_env().nvrtc.as_deref())).clone()
    }

    fn search(named: Option<&Path>) -> Result<Nvrtc> {
        if let Some(named) = named {
            return Nvrtc::open(named);
        }
        let mut problems = Vec::new();
        let candidates = nvrtc_find::toolkits().into_iter().chain(nvrtc_find::NAMES.iter().map(PathBuf::from));
        // Looking through Python environments takes longer than asking the loader: last, and only if the others failed.
        for path in candidates {
            match Nvrtc::open(&path) {
                Ok(found) => return Ok(found),
                // Names that the loader does not know are the normal case, a file that exists and cannot be used is not.
                Err(e) if path.is_absolute() => problems.push(e.to_string()),
                Err(_) => {}
            }
        }
        for path in nvrtc_find::python_packages() {
            match Nvrtc::open(&path) {
                Ok(found) => return Ok(found),
                Err(e) => problems.push(e.to_string()),
            }
        }
        let mut reason = "NVRTC was not found in a CUDA toolkit, the library path or a Python environment: install the toolkit or the \
                          Python package `nvidia-cuda-nvrtc`, or name the library in KERNELRY_NVRTC"
            .to_owned();
        if !problems.is_empty() {
            reason = format!("{reason} ({})", problems.join("; "));
        }
        Err(Error::DeviceNotFound { device: "cuda".into(), reason })
    }

    /// Loads the library at `path`, or the one in that folder.
    ///
    /// # Errors
    /// [`Error::DeviceNotFound`] with the loader's message.
    pub fn open(path: &Path) -> Result<Nvrtc> {
        let failed = |reason: String| Error::DeviceNotFound { device: "cuda".into(), reason: format!("{}: {reason}", path.display()) };
        let file = if path.is_dir() {
            nvrtc_find::in_folder(path).ok_or_else(|| failed("no libnvrtc in this folder".into()))?
        } else {
            path.to_owned()
        };
        // SAFETY: what runs at load time is NVIDIA's initialisation, which has no preconditions.
        let library = ManuallyDrop::new(unsafe { Library::new(&file) }.map_err(|e| failed(e.to_string()))?);
        let api = Api::of(&library).map_err(|e| failed(format!("{e} (NVRTC 11.2 or later is needed)")))?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to integers.
        let status = unsafe { (api.version)(&mut major, &mut minor) };
        if status != 0 {
            return Err(failed(format!("nvrtcVersion: status {status}")));
        }
        let file = loaded_path(&file);
        // The version has no patch level: builds of one version are told apart by their size.
        let build = std::fs::metadata(&file).map_or_else(|_| "unknown build".to_owned(), |m| format!("build of {} bytes", m.len()));
        Ok(Nvrtc(Arc::new(Inner { api, version: (major, minor), path: file, build, _library: library })))
    }

    /// Version, major and minor.
    pub fn version(&self) -> (i32, i32) {
        self.0.version
    }

    /// File of the library; its bare name where the system does not tell.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Name and build of the compiler with its options and `arch`: what a compiled text depends on besides the text.
    pub fn toolchain(&self, arch: &str) -> String {
        let (major, minor) = self.version();
        format!("nvrtc {major}.{minor} ({}); {arch}; {}; prelude {}", self.0.build, OPTIONS.join(" "), Target::Cuda.prelude_hash())
    }

    /// Compute capabilities that can be compiled for, as `major * 10 + minor`, ascending.
    ///
    /// # Errors
    /// The compiler's message.
    pub fn supported(&self) -> Result<Vec<i32>, String> {
        let mut count = 0;
        // SAFETY: `count` is an integer.
        self.check("nvrtcGetNumSupportedArchs", unsafe { (self.0.api.arch_count)(&mut count) })?;
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the array has as many elements as the library asked for.
        self.check("nvrtcGetSupportedArchs", unsafe { (self.0.api.archs)(archs.as_mut_ptr()) })?;
        Ok(archs)
    }

    /// Compiles the text of `unit` for `arch`: machine code for `sm_90a` and its like, PTX for `compute_90` and its like.
    ///
    /// # Errors
    /// The compiler's message, pointing at the lines of `unit.text`.
    pub fn compile(&self, unit: &Unit<'_>, arch: &str) -> Result<Compiled, String> {
        let is_virtual = self.known(arch)?;
        let text = CString::new(Target::Cuda.translation_unit(unit)).map_err(|e| format!("text: {e}"))?;
        let name = CString::new(unit.name).map_err(|e| format!("name: {e}"))?;
        let mut handle: Program = ptr::null_mut();
        // SAFETY: both strings end in zero and outlive the call, which copies them; there are no headers.
        let status = unsafe { (self.0.api.create)(&mut handle, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()) };
        self.check("nvrtcCreateProgram", status)?;
        let program = OwnedProgram { nvrtc: self, handle };
        let architecture = format!("--gpu-architecture={arch}");
        let options: Vec<CString> = OPTIONS.iter().copied().chain([architecture.as_str()]).filter_map(|o| CString::new(o).ok()).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: the program is alive, and the options with their count outlive the call.
        let status = unsafe { (self.0.api.compile)(handle, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.take("nvrtcGetProgramLog", self.0.api.log_size, self.0.api.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
        if let Err(error) = self.check("nvrtcCompileProgram", status) {
            return Err(if log.is_empty() { error } else { log });
        }
        let image = if is_virtual {
            program.take("nvrtcGetPTX", self.0.api.ptx_size, self.0.api.ptx)?
        } else {
            program.take("nvrtcGetCUBIN", self.0.api.cubin_size, self.0.api.cubin)?
        };
        if image.is_empty() {
            return Err(format!("NVRTC made nothing for {arch}: {log}"));
        }
        let resources = resources(&log);
        Ok(Compiled { image, log, resources })
    }

    /// Whether an architecture is virtual, if this NVRTC can compile for it.
    fn known(&self, arch: &str) -> Result<bool, String> {
        let (number, is_virtual) = capability(arch).ok_or_else(|| format!("architecture: got `{arch}`, expected `sm_90a` or its like"))?;
        let supported = self.supported()?;
        if !supported.contains(&number) {
            let known: Vec<String> = supported.iter().map(|c| format!("sm_{c}")).collect();
            let (major, minor) = self.version();
            return Err(format!(
                "architecture: got `{arch}`, NVRTC {major}.{minor} ({}) knows {}",
                self.path().display(),
                known.join(", ")
            ));
        }
        Ok(is_virtual)
    }

    fn check(&self, what: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the result is null or a string of the library that ends in zero and is never freed.
        let text = unsafe {
            let text = (self.0.api.error_string)(status);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(format!("{what}: {text} ({status})"))
    }
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nvrtc({}.{} at {})", self.0.version.0, self.0.version.1, self.0.path.display())
    }
}

/// Names of the kernels in a cubin.
///
/// # Errors
/// What is wrong with the file, in words.
pub fn cubin_kernels(image: &[u8]) -> Result<std::collections::BTreeSet<String>, String> {
    cubin::functions(image)
}

/// First values of the variables of four bytes in a cubin: what a text says of its kernels, such as `KN_DYNAMIC_SHARED`.
///
/// # Errors
/// As [`cubin_kernels`].
pub fn cubin_words(image: &[u8]) -> Result<std::collections::BTreeMap<String, u32>, String> {
    cubin::words(image)
}

/// Whether machine code for `built` runs on a device of architecture `device` (`sm_86`): the same major number and a minor one that is not
/// above. Code for a variant of one chip (`sm_90a`) runs on that chip alone.
pub fn runs_on(built: &str, device: &str) -> bool {
    let (Some((built_number, false)), Some((device_number, _))) = (capability(built), capability(device)) else { return false };
    let suffix = built.bytes().last();
    match suffix {
        Some(b'a') => built_number == device_number,
        _ => built_number / 10 == device_number / 10 && built_number % 10 <= device_number % 10,
    }
}

/// Whether what a pack holds for `target` can be loaded on a device of architecture `device`: made from texts behind this build's prelude,
/// for an architecture that runs there. Which NVRTC made it does not matter.
///
/// # Errors
/// Why not, in words.
pub fn accepts(target: &BuildTarget, device: &str) -> Result<(), String> {
    if target.prelude != Target::Cuda.prelude_hash() {
        return Err("made by another version of this library".into());
    }
    if runs_on(&target.arch, device) { Ok(()) } else { Err(format!("made for {}, expected {device}", target.arch)) }
}

/// NVRTC for one architecture, for packs.
pub struct CubinCompiler {
    nvrtc: Nvrtc,
    target: BuildTarget,
}

impl CubinCompiler {
    /// Compiles for `arch`, such as `sm_90a`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if this NVRTC cannot compile for it.
    pub fn new(nvrtc: Nvrtc, arch: &str) -> Result<CubinCompiler> {
        nvrtc.known(arch).map_err(|message| Error::invalid("compile", message))?;
        let (toolchain, prelude) = (nvrtc.toolchain(arch), Target::Cuda.prelude_hash());
        let target = BuildTarget { backend: "cuda".into(), arch: arch.to_owned(), toolchain, prelude };
        Ok(CubinCompiler { nvrtc, target })
    }
}

impl OfflineCompiler for CubinCompiler {
    fn target(&self) -> &BuildTarget {
        &self.target
    }

    fn compile(&self, unit: &Unit<'_>) -> Result<Artefact, String> {
        let compiled = self.nvrtc.compile(unit, &self.target.arch)?;
        Ok(Artefact { bytes: compiled.image, resources: compiled.resources.into_iter().map(|r| (r.kernel.clone(), r)).collect() })
    }

    fn missing(&self, artefact: &[u8], names: &[&str]) -> Result<Vec<String>, String> {
        let there = cubin::functions(artefact)?;
        Ok(names.iter().filter(|name| !there.contains(**name)).map(|&name| name.to_owned()).collect())
    }
}

/// Compute capability of an architecture's name (`major * 10 + minor`), and whether it is virtual.
fn capability(arch: &str) -> Option<(i32, bool)> {
    let (digits, is_virtual) = match arch.strip_prefix("sm_") {
        Some(digits) => (digits, false),
        None => (arch.strip_prefix("compute_")?, true),
    };
    let digits = digits.strip_suffix(['a', 'f']).unwrap_or(digits);
    let plain = (2..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().map(|number| (number, is_virtual))
}

/// A program that is destroyed when it is dropped.
struct OwnedProgram<'a> {
    nvrtc: &'a Nvrtc,
    handle: Program,
}

impl OwnedProgram<'_> {
    fn take(
        &self,
        what: &str,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is alive and `bytes` is a size.
        self.nvrtc.check(what, unsafe { size(self.handle, &mut bytes) })?;
        let mut data = vec![0u8; bytes];
        // SAFETY: the buffer has the size that the library asked for.
        self.nvrtc.check(what, unsafe { get(self.handle, data.as_mut_ptr().cast()) })?;
        Ok(data)
    }
}

impl Drop for OwnedProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from `nvrtcCreateProgram` and is destroyed once. A failure leaves nothing to do.
        let _ = unsafe { (self.nvrtc.0.api.destroy)(&mut self.handle) };
    }
}

/// The file behind a name that the system's loader resolved, where the system tells.
fn loaded_path(file: &Path) -> PathBuf {
    if file.is_absolute() || !cfg!(target_os = "linux") {
        return file.to_owned();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let is_it = |path: &&Path| path.file_name().and_then(OsStr::to_str).is_some_and(|n| n.starts_with("libnvrtc.so"));
    maps.lines().filter_map(|l| l.find('/').and_then(|at| l.get(at..))).map(Path::new).find(is_it).unwrap_or(file).to_owned()
}

/// Reads the resources of kernels from the assembler's log.
fn resources(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    // Functions that are called rather than inlined have properties too; they do not count as kernels.
    let mut subject = String::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            subject.clone_from(&kernel);
            found.push(Resources { kernel, ..Resources::default() });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            name.trim().clone_into(&mut subject);
        } else if let Some(kernel) = found.last_mut() {
            if line.contains("bytes stack frame") && subject == kernel.kernel {
                kernel.stack_bytes = number_before(line, "bytes stack frame");
                kernel.spill_store_bytes = number_before(line, "bytes spill stores");
                kernel.spill_load_bytes = number_before(line, "bytes spill loads");
            } else if line.contains("Used ") && line.contains(" registers") {
                kernel.registers = number_before(line, "registers");
                kernel.shared_bytes = number_before(line, "bytes smem");
            }
        }
    }
    found
}

/// The number in front of `unit` in a list such as `Used 24 registers, 512 bytes smem`; 0 if the unit is not there.
fn number_before(line: &str, unit: &str) -> u32 {
    let Some(before) = line.find(unit).and_then(|at| line.get(..at)) else { return 0 };
    before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::{BuildTarget, Nvrtc, Resources, Target, accepts, capability, cubin_kernels, resources, runs_on};

    const LOG: &str = "\
ptxas info    : 0 bytes gmem, 20 bytes cmem[4]
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 3.100 ms
ptxas info    : Function properties for helper
    32 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
";

    #[test]
    fn resources_come_from_the_log() {
        let [first, second] = resources(LOG).try_into().unwrap();
        let expected = Resources {
            kernel: "first".into(),
            registers: 168,
            shared_bytes: 4096,
            stack_bytes: 16,
            spill_store_bytes: 8,
            spill_load_bytes: 12,
        };
        assert_eq!(first, expected);
        assert!(first.spills() && !second.spills());
        assert_eq!((second.kernel.as_str(), second.registers, second.shared_bytes), ("second", 12, 0));
        assert!(resources("nothing of this kind").is_empty());
    }

    #[test]
    fn names_of_architectures() {
        assert_eq!(capability("sm_90a"), Some((90, false)));
        assert_eq!(capability("compute_80"), Some((80, true)));
        assert_eq!(capability("sm_120f"), Some((120, false)));
        for wrong in ["", "sm_", "sm_9", "sm_90b", "90", "sm_-9", "sm_90 -I/", "gfx90a"] {
            assert_eq!(capability(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn code_runs_on_its_major_number_and_variants_on_one_chip() {
        for (built, device) in [("sm_80", "sm_80"), ("sm_80", "sm_86"), ("sm_90a", "sm_90"), ("sm_90a", "sm_90a"), ("sm_120", "sm_121")] {
            assert!(runs_on(built, device), "{built} {device}");
        }
        for (built, device) in [("sm_86", "sm_80"), ("sm_80", "sm_90"), ("sm_120a", "sm_121"), ("compute_80", "sm_80"), ("", "sm_80")] {
            assert!(!runs_on(built, device), "{built} {device}");
        }
    }

    #[test]
    fn packs_of_this_prelude_for_a_fitting_architecture_are_accepted() {
        let target =
            |arch: &str, prelude: String| BuildTarget { backend: "cuda".into(), arch: arch.into(), toolchain: "any".into(), prelude };
        assert_eq!(accepts(&target("sm_80", Target::Cuda.prelude_hash()), "sm_86"), Ok(()));
        let elsewhere = accepts(&target("sm_80", Target::Cuda.prelude_hash()), "sm_90a").unwrap_err();
        assert_eq!(elsewhere, "made for sm_80, expected sm_90a");
        assert!(accepts(&target("sm_80", "old".into()), "sm_80").unwrap_err().contains("another version"));
    }

    #[test]
    fn a_library_that_is_not_there_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let empty = Nvrtc::search(Some(dir.path())).unwrap_err().to_string();
        assert!(empty.contains("no libnvrtc in this folder"), "{empty}");
        let junk = dir.path().join("libnvrtc.so.13");
        std::fs::write(&junk, "not a library").unwrap();
        let error = Nvrtc::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("device `cuda`") && error.contains("libnvrtc.so.13"), "{error}");
    }

    #[test]
    fn broken_cubins_are_errors() {
        assert!(cubin_kernels(b"").is_err());
        let mut header = vec![0u8; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert!(cubin_kernels(&header).unwrap().is_empty());
        // A section table beyond the end.
        header[0x28] = 0xff;
        header[0x3a] = 64;
        header[0x3c] = 1;
        assert!(cubin_kernels(&header).is_err());
        header[0x28..0x30].fill(0xff);
        header[0x3c] = 2;
        assert!(cubin_kernels(&header).is_err());
    }
}
