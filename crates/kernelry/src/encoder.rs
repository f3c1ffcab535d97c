//! Recording launches, and running what was recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;

use crate::access::{AccessTracker, RangeAccess};
use crate::backend::{Pending, Replay};
use crate::buffer::Buffer;
use crate::catalogue::{Access, Geometry, Kernel, ParamKind, Params, StepU32};
use crate::commands::{Command, Commands, Launch, LaunchArg};
use crate::context::Context;
use crate::registry::{Constants, Math, Options, Pipeline};
use crate::{DType, Error, Lease, Result};

/// `len` elements of the last lease, or of a larger one that becomes the last.
fn grown(context: &Context, leases: &mut Vec<Lease>, len: usize) -> Result<Buffer> {
    if let Some(lease) = leases.last()
        && lease.len() >= len
    {
        return lease.slice(0, len);
    }
    let lease = context.pool().uninit(DType::F32, &[len])?;
    let view = Buffer::clone(&lease);
    leases.push(lease);
    Ok(view)
}

/// What encoders did, summed over the process or since the last reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// Kernels recorded.
    pub launches: u64,
    /// Command lists submitted, replays included.
    pub submissions: u64,
    /// Barriers recorded because of a conflict or on request.
    pub barriers: u64,
    /// Launches that needed no barrier.
    pub barriers_elided: u64,
}

static LAUNCHES: AtomicU64 = AtomicU64::new(0);
static SUBMISSIONS: AtomicU64 = AtomicU64::new(0);
static BARRIERS: AtomicU64 = AtomicU64::new(0);
static ELIDED: AtomicU64 = AtomicU64::new(0);

/// The process-wide counters.
pub fn counters() -> Counters {
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    Counters { launches: get(&LAUNCHES), submissions: get(&SUBMISSIONS), barriers: get(&BARRIERS), barriers_elided: get(&ELIDED) }
}

/// Sets the process-wide counters to zero.
pub fn reset_counters() {
    for c in [&LAUNCHES, &SUBMISSIONS, &BARRIERS, &ELIDED] {
        c.store(0, Ordering::Relaxed);
    }
}

/// Records launches into a command list. Arguments are checked here, once; an error records nothing.
pub struct Encoder {
    context: Context,
    commands: Commands,
    tracker: AccessTracker,
    options: Options,
    step: Option<Buffer>,
    force_serial: bool,
    /// Names of what is launched, where that is all that is wanted.
    names: Option<Vec<String>>,
}

impl Encoder {
    pub(crate) fn new(context: &Context) -> Encoder {
        Encoder {
            context: context.clone(),
            commands: Commands::default(),
            tracker: AccessTracker::default(),
            options: Options::default(),
            step: None,
            force_serial: context.config().force_serial,
            names: None,
        }
    }

    /// An encoder that builds and records no kernel that is launched by name, and remembers the names.
    pub(crate) fn of_names(context: &Context) -> Encoder {
        Encoder { names: Some(Vec::new()), ..Encoder::new(context) }
    }

    /// The names, each once.
    pub(crate) fn into_names(self) -> Vec<String> {
        let mut names = self.names.unwrap_or_default();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The context it records for.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Sets the math mode of the launches that follow.
    pub fn set_math(&mut self, math: Math) {
        self.options = Options::with_math(math);
    }

    /// Math mode of the launches that follow.
    pub fn math(&self) -> Math {
        self.options.math
    }

    /// Puts a barrier after each launch, to bisect a suspected race: results must not change by a bit.
    pub fn set_force_serial(&mut self, on: bool) {
        self.force_serial = on;
    }

    /// The `u32` buffer from which [`StepU32::from_step`] parameters of the launches that follow are read.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] or [`Error::DeviceMismatch`].
    pub fn set_step(&mut self, step: &Buffer) -> Result<()> {
        if step.dtype() != DType::U32 {
            return Err(Error::UnsupportedDType { op: "set_step".into(), what: "step".into(), got: step.dtype(), expected: "u32".into() });
        }
        self.check_device("set_step", step)?;
        self.step = Some(step.clone());
        Ok(())
    }

    fn check_device(&self, op: &str, buffer: &Buffer) -> Result<()> {
        check_same_device(op, buffer.device(), self.context.device())
    }

    /// `len` elements of f32 between the launches of one operation. They live as long as what is recorded; before and after the operation
    /// they mean nothing, so that all operations of an encoder share them, in the order that any buffer puts its users in.
    pub(crate) fn scratch(&mut self, len: usize) -> Result<Buffer> {
        grown(&self.context, &mut self.commands.scratch, len)
    }

    /// The scratch memory of a launch, which is none of its operation's: that may be an operand.
    fn launch_scratch(&mut self, entry: &Kernel, params: &[u8]) -> Result<Option<LaunchArg>> {
        let bytes = entry.scratch(params);
        if bytes == 0 {
            return Ok(None);
        }
        let memory = grown(&self.context, &mut self.commands.launch_scratch, bytes.div_ceil(DType::F32.size()))?;
        Ok(Some(LaunchArg { storage: memory.storage().clone(), range: memory.range(), write: true }))
    }

    /// Records a built-in kernel by name. Typed launchers in [`crate::ops`] end here.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`], [`Error::BackendUnsupported`], and what the checks of the catalogue entry say:
    /// [`Error::InvalidArgument`], [`Error::UnsupportedDType`], [`Error::DeviceMismatch`].
    pub fn launch<P: Params>(&mut self, name: &str, args: &[Option<&Buffer>], params: &P) -> Result<()> {
        if let Some(names) = &mut self.names {
            names.push(name.to_owned());
            return Ok(());
        }
        let pipeline = self.context.registry().get_with(name, self.context.device(), &Constants::NONE, self.options)?;
        self.launch_pipeline(&pipeline, args, bytemuck::bytes_of(params))
    }

    /// As [`Encoder::launch`] with specialisation constants.
    ///
    /// # Errors
    /// As [`Encoder::launch`], and [`Error::InvalidConstant`].
    pub fn launch_with<P: Params>(&mut self, name: &str, constants: &Constants, args: &[Option<&Buffer>], params: &P) -> Result<()> {
        let pipeline = self.context.registry().get_with(name, self.context.device(), constants, self.options)?;
        self.launch_pipeline(&pipeline, args, bytemuck::bytes_of(params))
    }

    /// Records a pipeline of a catalogue kernel with a raw parameter block.
    ///
    /// # Errors
    /// As [`Encoder::launch`].
    pub fn launch_pipeline(&mut self, pipeline: &Pipeline, args: &[Option<&Buffer>], params: &[u8]) -> Result<()> {
        check_same_device(pipeline.name(), pipeline.device(), self.context.device())?;
        let Some(entry) = pipeline.entry() else {
            return Err(Error::invalid(pipeline.name(), "launch: got a kernel without a catalogue entry, expected `launch_raw`"));
        };
        entry.check_params(params)?;
        if entry.is_noop(params) {
            return Ok(());
        }
        check_sizes(entry, params)?;
        let args = self.check_args(entry, args, params)?;
        let step = self.check_step(entry, params)?;
        let geometry = entry.geometry(params).unwrap_or(Geometry::linear(1, 1));
        let mut accesses: SmallVec<[RangeAccess; 8]> = args.iter().flatten().map(LaunchArg::access).collect();
        accesses.extend(step.iter().map(LaunchArg::access));
        let scratch = if pipeline.executable().takes_scratch() { self.launch_scratch(entry, params)? } else { None };
        accesses.extend(scratch.iter().map(LaunchArg::access));
        let launch = Launch { pipeline: pipeline.clone(), args, params: SmallVec::from_slice(params), step, scratch, geometry };
        self.push_launch(launch, Some(&accesses));
        Ok(())
    }

    /// Records a kernel that was registered at run time. Without `accesses` it is a full barrier on both sides.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`], or [`Error::InvalidArgument`] if `accesses` has another length than `buffers` or writes a read-only
    /// buffer.
    pub fn launch_raw(
        &mut self,
        pipeline: &Pipeline,
        buffers: &[&Buffer],
        accesses: Option<&[Access]>,
        params: &[u8],
        geometry: Geometry,
    ) -> Result<()> {
        let name = pipeline.name();
        check_same_device(name, pipeline.device(), self.context.device())?;
        if let Some(a) = accesses
            && a.len() != buffers.len()
        {
            return Err(Error::invalid(name, format!("accesses: got {}, expected {}", a.len(), buffers.len())));
        }
        let mut args = SmallVec::new();
        for (i, buffer) in buffers.iter().enumerate() {
            self.check_device(name, buffer)?;
            // An undeclared access may be a write, except to memory that cannot be written.
            let write = accesses.map_or(buffer.is_writable(), |a| a.get(i).is_some_and(|a| a.writes()));
            if write && !buffer.is_writable() {
                return Err(Error::invalid(name, format!("buffer {i}: got a read-only mapping, expected a writable buffer")));
            }
            args.push(Some(LaunchArg { storage: buffer.storage().clone(), range: buffer.range(), write }));
        }
        let declared: SmallVec<[RangeAccess; 8]> = args.iter().flatten().map(LaunchArg::access).collect();
        let launch = Launch { pipeline: pipeline.clone(), args, params: SmallVec::from_slice(params), step: None, scratch: None, geometry };
        self.push_launch(launch, accesses.map(|_| &declared[..]));
        Ok(())
    }

    /// Copies the bytes of `src` to `dst`. A view copied onto itself is a no-op.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if lengths or dtypes differ, the ranges overlap or `dst` is read-only; [`Error::DeviceMismatch`].
    pub fn copy(&mut self, src: &Buffer, dst: &Buffer) -> Result<()> {
        self.check_device("copy", src)?;
        self.check_device("copy", dst)?;
        if src.byte_len() != dst.byte_len() || src.dtype() != dst.dtype() {
            return Err(Error::invalid(
                "copy",
                format!("dst: got {} {:?}, expected {} {:?}", dst.dtype(), dst.shape(), src.dtype(), src.shape()),
            ));
        }
        let src = LaunchArg { storage: src.storage().clone(), range: src.range(), write: false };
        let dst = self.writable("copy", dst)?;
        if src.storage.id() == dst.storage.id() {
            if src.range == dst.range {
                return Ok(());
            }
            if src.range.start < dst.range.end && dst.range.start < src.range.end {
                return Err(Error::invalid("copy", "ranges: got overlapping views, expected disjoint ones"));
            }
        }
        self.before(Some(&[src.access(), dst.access()]));
        self.commands.touch(&src);
        self.commands.touch(&dst);
        self.commands.list.push(Command::Copy { src, dst });
        Ok(())
    }

    /// Sets the bytes of `dst` to zero.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `dst` is read-only, [`Error::DeviceMismatch`].
    pub fn zero(&mut self, dst: &Buffer) -> Result<()> {
        self.check_device("zero", dst)?;
        let dst = self.writable("zero", dst)?;
        self.before(Some(&[dst.access()]));
        self.commands.touch(&dst);
        self.commands.list.push(Command::Zero { dst });
        Ok(())
    }

    fn writable(&self, op: &str, dst: &Buffer) -> Result<LaunchArg> {
        if !dst.is_writable() {
            return Err(Error::invalid(op, "dst: got a read-only mapping, expected a writable buffer"));
        }
        Ok(LaunchArg { storage: dst.storage().clone(), range: dst.range(), write: true })
    }

    /// Makes everything recorded before visible to everything after. Barriers between catalogue kernels are derived; this is for
    /// callers that know more.
    pub fn barrier(&mut self) {
        self.tracker.barrier();
        BARRIERS.fetch_add(1, Ordering::Relaxed);
        self.commands.list.push(Command::Barrier);
    }

    fn before(&mut self, accesses: Option<&[RangeAccess]>) {
        let conflict = self.tracker.next(accesses);
        if conflict || (self.force_serial && !self.commands.list.is_empty()) {
            BARRIERS.fetch_add(1, Ordering::Relaxed);
            self.commands.list.push(Command::Barrier);
        } else {
            ELIDED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn push_launch(&mut self, launch: Launch, accesses: Option<&[RangeAccess]>) {
        self.before(accesses);
        for arg in launch.args.iter().flatten().chain(&launch.step).chain(&launch.scratch) {
            self.commands.touch(arg);
        }
        LAUNCHES.fetch_add(1, Ordering::Relaxed);
        self.commands.list.push(Command::Launch(Box::new(launch)));
    }

    /// Checks buffers against the entry: presence, device, dtype, length, overlap.
    fn check_args(&self, entry: &Kernel, args: &[Option<&Buffer>], params: &[u8]) -> Result<SmallVec<[Option<LaunchArg>; 6]>> {
        let op = entry.name();
        let bindings = entry.bindings();
        if args.len() != bindings.len() {
            return Err(Error::invalid(op, format!("buffers: got {}, expected {}", args.len(), bindings.len())));
        }
        let mut checked: SmallVec<[Option<LaunchArg>; 6]> = SmallVec::new();
        for (i, (binding, arg)) in bindings.iter().zip(args).enumerate() {
            let Some(buffer) = arg else {
                if !binding.optional() {
                    return Err(Error::invalid(op, format!("{}: got nothing, expected a buffer", binding.name())));
                }
                checked.push(None);
                continue;
            };
            self.check_device(op, buffer)?;
            if buffer.dtype() != binding.dtype() {
                let expected = binding.dtype().to_string();
                return Err(Error::UnsupportedDType { op: op.to_owned(), what: binding.name().into(), got: buffer.dtype(), expected });
            }
            let dims = entry.dims(i, params)?;
            let bytes = dims.iter().try_fold(binding.dtype().size() as u64, |n, &d| n.checked_mul(d));
            let bytes = bytes
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| Error::invalid(op, format!("{}: the size of shape {dims:?} overflows", binding.name())))?;
            if bytes == 0 && !entry.zero_ok.contains(&binding.name()) {
                return Err(Error::invalid(
                    op,
                    format!("{}: got zero elements in [{}], expected at least one", binding.name(), binding.shape().text()),
                ));
            }
            if buffer.byte_len() < bytes {
                let text = binding.shape().text().replace(' ', ", ");
                return Err(Error::invalid(
                    op,
                    format!("{}: got shape {:?}, expected at least {dims:?} = [{text}]", binding.name(), buffer.shape()),
                ));
            }
            let write = binding.access().writes();
            if write && !buffer.is_writable() {
                return Err(Error::invalid(op, format!("{}: got a read-only mapping, expected a writable buffer", binding.name())));
            }
            let start = buffer.range().start;
            checked.push(Some(LaunchArg { storage: buffer.storage().clone(), range: start..start + bytes, write }));
        }
        self.check_overlap(entry, &checked)?;
        Ok(checked)
    }

    /// Two operands may share bytes only if neither is written, or where the entry allows the identical buffer.
    fn check_overlap(&self, entry: &Kernel, args: &[Option<LaunchArg>]) -> Result<()> {
        for (i, a) in args.iter().enumerate() {
            for (j, b) in args.iter().enumerate().skip(i + 1) {
                let (Some(a), Some(b)) = (a, b) else { continue };
                if !a.access().conflicts(&b.access()) {
                    continue;
                }
                let (Some(x), Some(y)) = (entry.bindings().get(i), entry.bindings().get(j)) else { continue };
                let listed = x.aliases().contains(&y.name()) || y.aliases().contains(&x.name());
                if !(listed && a.range == b.range) {
                    let expected = if listed { "the identical or disjoint buffers" } else { "disjoint buffers" };
                    return Err(Error::invalid(
                        entry.name(),
                        format!("{} and {}: got overlapping buffers, expected {expected}", x.name(), y.name()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The step buffer, if a parameter reads it, with its slots checked.
    fn check_step(&self, entry: &Kernel, params: &[u8]) -> Result<Option<LaunchArg>> {
        let mut highest = None;
        for field in entry.params().fields.iter().filter(|f| f.kind == ParamKind::Step) {
            let Some(bytes) = params.get(field.offset..field.offset + 8) else { continue };
            highest = highest.max(bytemuck::pod_read_unaligned::<StepU32>(bytes).slot());
        }
        let Some(highest) = highest else { return Ok(None) };
        let step = self.step.as_ref().ok_or_else(|| Error::invalid(entry.name(), "step buffer: got none, expected one from `set_step`"))?;
        if highest as usize >= step.len() {
            return Err(Error::invalid(entry.name(), format!("step slot: got {highest}, expected less than {}", step.len())));
        }
        Ok(Some(LaunchArg { storage: step.storage().clone(), range: step.range(), write: false }))
    }

    /// Submits what was recorded, without waiting.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a host slice of a buffer is alive, [`Error::Execution`] if the device refuses.
    pub fn submit(self) -> Result<Submission> {
        let commands = Arc::new(self.commands);
        SUBMISSIONS.fetch_add(1, Ordering::Relaxed);
        let locks = commands.lock()?;
        let pending = self.context.device().backend().submit(&commands)?;
        drop(locks);
        Ok(Submission { pending: Some(pending) })
    }

    /// Submits and waits.
    ///
    /// # Errors
    /// As [`Encoder::submit`], and [`Error::Execution`] if the work fails.
    pub fn run(self) -> Result<()> {
        self.submit()?.wait()
    }

    /// Keeps what was recorded as a graph that can run many times.
    ///
    /// # Errors
    /// [`Error::Execution`] if the device cannot prepare it.
    pub fn finish(self) -> Result<Graph> {
        let commands = Arc::new(self.commands);
        let replay = self.context.device().backend().prepare(&commands)?;
        Ok(Graph { commands, replay })
    }
}

/// Submitted work.
pub struct Submission {
    pending: Option<Box<dyn Pending>>,
}

impl Submission {
    /// Returns when the work is done.
    ///
    /// # Errors
    /// [`Error::Execution`] if it failed on the device.
    pub fn wait(mut self) -> Result<()> {
        self.pending.take().map_or(Ok(()), Pending::wait)
    }
}

/// A recorded command list that can run many times. What changes between runs lives in buffers, the step buffer among them.
pub struct Graph {
    commands: Arc<Commands>,
    replay: Box<dyn Replay>,
}

impl Graph {
    /// Runs it once and waits.
    ///
    /// # Errors
    /// As [`Encoder::run`].
    pub fn run(&self) -> Result<()> {
        self.submit()?.wait()
    }

    /// Runs it once without waiting.
    ///
    /// # Errors
    /// As [`Encoder::submit`].
    pub fn submit(&self) -> Result<Submission> {
        SUBMISSIONS.fetch_add(1, Ordering::Relaxed);
        let locks = self.commands.lock()?;
        let pending = self.replay.run()?;
        drop(locks);
        Ok(Submission { pending: Some(pending) })
    }

    /// Runs it `runs` times after one run to start with, and gives the time of each by the clock of the device, in which submission does not
    /// count; `None`, and nothing is run, where the device has no clock of its own.
    ///
    /// # Errors
    /// As [`Encoder::run`].
    pub fn run_timed(&self, runs: usize) -> Result<Option<Vec<Duration>>> {
        let locks = self.commands.lock()?;
        let times = self.replay.run_timed(runs)?;
        drop(locks);
        Ok(times)
    }

    /// Launches in the graph.
    pub fn launches(&self) -> usize {
        self.commands.list.iter().filter(|c| matches!(c, Command::Launch(_))).count()
    }

    /// Barriers in the graph.
    pub fn barriers(&self) -> usize {
        self.commands.list.iter().filter(|c| matches!(c, Command::Barrier)).count()
    }
}

fn check_same_device(op: &str, got: &crate::Device, expected: &crate::Device) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::DeviceMismatch { op: op.to_owned(), got: format!("{got:?}"), expected: format!("{expected:?}") })
}

/// Every size fits the 31 bits that kernels index with.
fn check_sizes(entry: &Kernel, params: &[u8]) -> Result<()> {
    for field in entry.params().fields.iter().filter(|f| matches!(f.kind, ParamKind::U32 | ParamKind::Step)) {
        let value = entry.params().symbol(params, field).unwrap_or(0);
        if value > i128::from(i32::MAX) && entry.bindings().iter().any(|b| b.shape().text().contains(field.name)) {
            return Err(Error::invalid(entry.name(), format!("{}: got {value}, expected at most {}", field.name, i32::MAX)));
        }
    }
    Ok(())
}
