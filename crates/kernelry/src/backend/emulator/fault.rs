//! What the emulator reports, and how it reads.

use std::ffi::c_char;

use super::launch::LaunchState;
use super::module::name_of;
use super::watch::{Conflict, Kind};

/// Where in a run something happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) thread: u32,
    pub(super) block: u64,
    /// Return address in the module.
    pub(super) code: usize,
}

/// Memory that a fault is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Space {
    /// Index of a region of the launch.
    Buffer(usize),
    /// Name of a threadgroup array.
    Shared { name: *const c_char, element: usize },
}

/// What another thread of the block or warp does while one waits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Elsewhere {
    Returned,
    Waits { code: usize },
}

/// A mistake in a kernel, found while it ran. Plain data: made on a fiber's stack that may be dropped.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Race { space: Space, offset: usize, kind: Kind, at: Site, earlier: Conflict },
    OutOfRange { address: usize, bytes: usize, kind: Kind, at: Site },
    Misaligned { address: usize, bytes: usize, kind: Kind, at: Site },
    Unwritten { space: Space, offset: usize, at: Site },
    ReadOnly { space: Space, offset: usize, kind: Kind, at: Site },
    Divergence { what: &'static str, at: Site, other: u32, elsewhere: Elsewhere },
    ShuffleLane { lane: u32, lanes: u32, at: Site },
    SharedSize { bytes: usize, limit: usize },
    Undefined { what: *const c_char, file: *const c_char, line: u32, at: Site },
    NoStack { threads: u32 },
}

impl Fault {
    /// One line: what, where in the text, and which threads.
    pub(super) fn describe(&self, launch: &LaunchState<'_>) -> String {
        let place = |code: usize| launch.kernel.place(code);
        let who = |site: &Site| format!("thread {} of group {:?} at {}", site.thread, launch.group(site.block), place(site.code));
        let element = |space: &Space, offset: usize| match *space {
            Space::Buffer(i) => launch.regions.get(i).map_or_else(String::new, |r| format!("{}[{}]", r.name, offset / r.element.max(1))),
            // SAFETY: the name is a literal of the module, which is loaded while the launch runs.
            Space::Shared { name, element } => format!("{}[{}]", unsafe { name_of(name) }, offset / element.max(1)),
        };
        match self {
            Fault::Race { space, offset, kind, at, earlier } => format!(
                "race: {} of {} by {} and {} by thread {} of group {:?} at {}, with nothing between them that orders them",
                kind.word(),
                element(space, *offset),
                who(at),
                earlier.kind.word(),
                earlier.stamp.thread(),
                launch.group(earlier.stamp.block()),
                place(launch.kernel.absolute(earlier.code)),
            ),
            Fault::OutOfRange { address, bytes, kind, at } => {
                format!("out of range: {} of {bytes} bytes by {}: {}", kind.word(), who(at), launch.nearest(*address))
            }
            Fault::Misaligned { address, bytes, kind, at } => {
                format!("misaligned: {} of {bytes} bytes by {}: {}", kind.word(), who(at), launch.nearest(*address))
            }
            Fault::Unwritten { space, offset, at } => {
                format!("uninitialised: read of {} by {}, which nothing has written", element(space, *offset), who(at))
            }
            Fault::ReadOnly { space, offset, kind, at } => {
                format!("read-only: {} of the input {} by {}", kind.word(), element(space, *offset), who(at))
            }
            Fault::Divergence { what, at, other, elsewhere } => {
                let other_does = match elsewhere {
                    Elsewhere::Returned => "has returned".to_owned(),
                    Elsewhere::Waits { code } => format!("waits at {}", place(*code)),
                };
                format!("divergence: {what} by {} while thread {other} {other_does}", who(at))
            }
            Fault::ShuffleLane { lane, lanes, at } => {
                format!("shuffle: lane {lane} asked for by {}, where the warp has {lanes} lanes", who(at))
            }
            Fault::SharedSize { bytes, limit } => format!("threadgroup memory: got {bytes} bytes, expected at most {limit}"),
            Fault::NoStack { threads } => format!("no memory for the stacks of {threads} threads"),
            Fault::Undefined { what, file, line, at } => {
                // SAFETY: both are literals of the module.
                let (what, file) = unsafe { (name_of(*what), name_of(*file)) };
                format!("undefined behaviour: {what} by thread {} of group {:?} at {file}:{line}", at.thread, launch.group(at.block))
            }
        }
    }
}
