//! Where figures come from: what a reader needs to judge them and to repeat them.

use kernelry::Device;
use kernelry::backend::DeviceInfo;
use serde::{Deserialize, Serialize};

/// Device, threads, source and command of a measurement.
#[derive(Deserialize, Serialize)]
pub(super) struct Origin {
    pub(super) version: String,
    /// The commit that was built: `KERNELRY_COMMIT` in the environment of the build, or of this run where a binary was brought from elsewhere.
    pub(super) commit: Option<String>,
    pub(super) build: String,
    pub(super) command: String,
    pub(super) device: DeviceInfo,
    /// Compiler of kernel texts, and the architecture it compiles for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) toolchain: Option<String>,
    #[serde(default)]
    threads: u32,
}

impl Origin {
    pub(super) fn new(device: &Device) -> Origin {
        Origin {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("KERNELRY_COMMIT").map(str::to_owned).or_else(|| std::env::var("KERNELRY_COMMIT").ok()),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
            command: command(std::env::args().skip(1)),
            device: device.info().clone(),
            toolchain: device.backend().compiler().map(|c| c.toolchain().to_owned()),
            threads: device.info().units,
        }
    }

    /// Worker threads of the CPU backend, where that was measured.
    pub(super) fn threads_of_host(&self) -> Option<u32> {
        (self.device.backend == "cpu").then_some(self.threads)
    }
}

/// The command as one types it.
pub(super) fn command(args: impl Iterator<Item = String>) -> String {
    let plain = |arg: &str| !arg.is_empty() && arg.chars().all(|c| c.is_alphanumeric() || "-_=./:,".contains(c));
    let quoted = args.map(|arg| if plain(&arg) { arg } else { format!("'{}'", arg.replace('\'', "'\\''")) });
    std::iter::once("kernelry".to_owned()).chain(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::command;

    #[test]
    fn words_that_a_shell_would_change_are_quoted() {
        let args = ["bench", "kernel_*_f32", "--time=20", "it's"].map(str::to_owned);
        assert_eq!(command(args.into_iter()), r"kernelry bench 'kernel_*_f32' --time=20 'it'\''s'");
    }
}
