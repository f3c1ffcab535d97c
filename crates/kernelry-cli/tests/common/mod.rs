//! Running the binary.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a run gave.
pub(crate) struct Run {
    pub(crate) args: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Expects success and an empty standard error.
    #[track_caller]
    pub(crate) fn ok(self) -> Run {
        assert_eq!(self.code, Some(0), "{}\n{}\n{}", self.args, self.stdout, self.stderr);
        assert!(!self.stderr.contains("error:"), "{}\n{}", self.args, self.stderr);
        self
    }

    /// Expects this exit code, nothing on standard output, and an error that says `text`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, text: &str) -> Run {
        assert_eq!(self.code, Some(code), "{}\n{}\n{}", self.args, self.stdout, self.stderr);
        assert!(self.stderr.starts_with("error: "), "{}\n{}", self.args, self.stderr);
        assert!(self.stderr.contains(text), "{}: no `{text}` in\n{}", self.args, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}\n{}", self.args, self.stdout))
    }
}

/// Runs the binary in `dir` with nothing on standard input.
pub(crate) fn kernelry_in(dir: &Path, args: &[&str]) -> Run {
    kernelry_with(dir, args, "", &[])
}

/// Runs the binary in the temporary folder.
pub(crate) fn kernelry(args: &[&str]) -> Run {
    kernelry_in(&std::env::temp_dir(), args)
}

/// Runs the binary with standard input and variables.
pub(crate) fn kernelry_with(dir: &Path, args: &[&str], stdin: &str, env: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kernelry"));
    command.args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["KERNELRY_DEVICE", "KERNELRY_THREADS", "KERNELRY_FORCE_SERIAL", "KERNELRY_PACK", "NO_COLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    // Compiled texts are shared by the tests, and not with the user.
    command.env("KERNELRY_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.envs(env.iter().copied());
    let mut child = command.spawn().unwrap();
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let out = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Run { args: args.join(" "), code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr) }
}

/// Names of the files in a folder, sorted.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
