//! Which device a command runs on, and which kernels it is about.

use kernelry::catalogue::{self, Family, Kernel};
use kernelry::{BACKENDS, Config, Context, Device, Registry};

use crate::failure::{CliResult, Failure};
use crate::glob;

/// The device option, shared by all commands that run something.
#[derive(Debug, clap::Args)]
pub(crate) struct DeviceArg {
    /// Device: cpu, cuda, metal or emulator [default: KERNELRY_DEVICE, or cpu]
    #[arg(long, short, value_name = "D")]
    pub(crate) device: Option<String>,
}

impl DeviceArg {
    /// Name of the device. One that no build has is wrong usage.
    pub(crate) fn name(&self) -> CliResult<String> {
        let name = self.device.clone().or_else(|| Config::from_env().device.clone()).unwrap_or_else(|| "cpu".into());
        let backend = name.split(':').next().unwrap_or_default();
        if !BACKENDS.contains(&backend) {
            return Err(Failure::usage(format!("unknown device `{name}`, expected one of: {}", BACKENDS.join(", "))));
        }
        Ok(name)
    }

    /// Opens the device.
    pub(crate) fn open(&self) -> CliResult<(String, Context)> {
        let name = self.name()?;
        match Device::open(&name) {
            Ok(device) => Ok((name, Context::new(device, Registry::new()))),
            Err(e) => Err(Failure::runtime(e.to_string()).hint("`kernelry doctor` shows the state of every backend")),
        }
    }
}

/// Which kernels a command is about.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    /// Kernel names, with `*` for any text and `?` for one character [default: every kernel]
    #[arg(value_name = "GLOB")]
    pub(crate) globs: Vec<String>,
    /// Only this family
    #[arg(long, short, value_name = "F")]
    pub(crate) family: Option<String>,
}

impl Selection {
    /// The kernels, in catalogue order. A pattern that matches none is wrong usage.
    pub(crate) fn kernels(&self) -> CliResult<Vec<&'static Kernel>> {
        let family = self.family.as_deref().map(family).transpose()?;
        let inside: Vec<&'static Kernel> = catalogue::builtin().iter().filter(|k| family.is_none_or(|f| f == k.family())).collect();
        for pattern in &self.globs {
            if !inside.iter().any(|k| glob::matches(pattern, k.name())) {
                return Err(no_match(pattern, family));
            }
        }
        let chosen = |k: &&Kernel| self.globs.is_empty() || self.globs.iter().any(|g| glob::matches(g, k.name()));
        Ok(inside.into_iter().filter(chosen).collect())
    }
}

fn no_match(pattern: &str, family: Option<Family>) -> Failure {
    let place = family.map_or_else(String::new, |f| format!(" in family `{f}`"));
    let failure = Failure::usage(format!("no kernel{place} matches `{pattern}`"));
    if Family::from_name(pattern).is_some() {
        return failure.hint(format!("for a family use `--family {pattern}`"));
    }
    let plain: String = pattern.chars().filter(|c| !"*?".contains(*c)).collect();
    match Registry::new().id(&plain) {
        Err(kernelry::Error::KernelNotFound { nearest, .. }) if !nearest.is_empty() => {
            failure.hint(format!("did you mean `{}`?", nearest.join("`, `")))
        }
        Ok(_) => failure.hint(format!("`{plain}` is a kernel of another family")),
        Err(_) => failure.hint("`kernelry list` shows every kernel"),
    }
}

/// The family of that name.
pub(crate) fn family(name: &str) -> CliResult<Family> {
    let known = || Family::ALL.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
    Family::from_name(name).ok_or_else(|| Failure::usage(format!("unknown family `{name}`, expected one of: {}", known())))
}
