//! Ctrl-C: the first one asks the command to stop where it can clean up, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{CliResult, Failure};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Exit code of an interrupted command: 128 and the number of the signal, as shells have it.
pub(crate) const EXIT_CODE: u8 = 130;

/// Starts to listen. Where that is not possible the signal ends the process as it always did.
pub(crate) fn listen() {
    let _ = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_CODE));
        }
    });
}

/// Whether Ctrl-C was pressed.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error once Ctrl-C was pressed.
pub(crate) fn check() -> CliResult {
    if requested() { Err(Failure::interrupted()) } else { Ok(()) }
}
