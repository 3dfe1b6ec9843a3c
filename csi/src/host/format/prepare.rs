//! From a device of unknown content to one with the wanted file system, or a refusal.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use provisioners::{Ctx, Error, FsNote, NodeVolume, Result};

use super::super::probe::{Content, Known, each_chunk, probe, ranges, signature};
use super::super::{FormatLog, loopdev};
use super::hold::Hold;
use super::mkfs::written;
use super::{Asked, Maker, Plan, Stamp, Wish, plan};

/// How long the zeroing of what a failed mkfs has left may take.
const ZEROING: Duration = Duration::from_secs(60);

/// A device that is to have a file system.
pub struct Job<'a> {
    /// What is asked.
    pub asked: Asked<'a>,
    /// The volume.
    pub volume: &'a NodeVolume,
    /// Its device.
    pub device: &'a Path,
    /// The sparse file behind it, if there is one.
    pub backing: Option<&'a File>,
}

/// How a device came to have its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// It had it.
    Found,
    /// It was made now.
    Made,
}

/// Sees that the device has the file system. Nothing is written to a device that has one, or that holds anything else
/// which was not given up.
pub fn prepare(ctx: &Ctx, job: &Job<'_>, maker: &dyn Maker, log: &dyn FormatLog) -> Result<Ready> {
    let Job { asked, volume, device, .. } = *job;
    let size = loopdev::size(device)?;
    if let Some(plan) = glance(job, size)? {
        return found(job, plan, log);
    }
    let wish = Wish { device, fs: asked.fs, options: &volume.mkfs_options };
    maker.check(&wish)?;
    let hold = Hold::take(device, asked.id)?;
    let known = known(job, log)?;
    ctx.stage("looking whether it is empty");
    let content = probe(ctx, &hold.device, size, &known)?;
    match plan(&content, volume, asked)? {
        Plan::Format { over } => {
            make(ctx, job, &Making { maker, wish, log, known, over, size }, hold).map(|()| Ready::Made)
        }
        other => {
            hold.release(job.device);
            found(job, other, log)
        }
    }
}

/// What a few reads already decide: what begins with something known, and what may not be written to.
fn glance(job: &Job<'_>, size: u64) -> Result<Option<Plan>> {
    let open =
        File::open(job.device).map_err(|e| Error::io(format!("opening {}", job.device.display()), e))?;
    let content = match signature(&open, size)? {
        Some(content @ Content::Known { .. }) => content,
        Some(other) if job.asked.read_only => other,
        None if job.asked.read_only => Content::Blank,
        _ => return Ok(None),
    };
    plan(&content, job.volume, job.asked).map(Some)
}

/// The file system is there. A mkfs that goes on after its driver was killed has written nearly all when it shows, so it
/// is waited for; and e2fsck wants the device to itself.
fn found(job: &Job<'_>, plan: Plan, log: &dyn FormatLog) -> Result<Ready> {
    let Asked { id, fs, read_only } = job.asked;
    if !read_only && (plan == Plan::Accept || fs == "ext4") {
        let hold = Hold::take(job.device, id)?;
        // In ext4's boot sector, which is nobody's, a stamp outlives the format.
        if let Some(stamp) = Stamp::read(&hold.device, loopdev::size(job.device)?)?
            && stamp.is_of(id)
        {
            stamp.clear(&hold.device, loopdev::size(job.device)?)?;
        }
        hold.release(job.device);
    }
    if plan == Plan::Accept {
        log.note(&FsNote::Made(fs.to_owned()))?;
    }
    Ok(Ready::Found)
}

/// What can be known of where the device holds anything.
fn known<'a>(job: &Job<'a>, log: &dyn FormatLog) -> Result<Known<'a>> {
    if let Some(file) = job.backing {
        return Ok(Known::Holes(file));
    }
    Ok(match log.stored()? {
        Some(ranges) => Known::Stored(ranges),
        None if job.volume.vouched.is_some() => Known::Vouched,
        None => Known::Nothing,
    })
}

struct Making<'a> {
    maker: &'a dyn Maker,
    wish: Wish<'a>,
    log: &'a dyn FormatLog,
    known: Known<'a>,
    /// An operator has given up what is there.
    over: bool,
    size: u64,
}

/// Makes the file system on a device that is held.
fn make(ctx: &Ctx, job: &Job<'_>, making: &Making<'_>, hold: Hold) -> Result<()> {
    let (wish, size) = (&making.wish, making.size);
    ctx.stage(format!("making the {} file system", wish.fs));
    making.log.note(&FsNote::Making {
        fs: wish.fs.to_owned(),
        permit: job.volume.permit.code.clone().filter(|_| making.over),
        vouched: job.volume.vouched.clone().filter(|_| matches!(making.known, Known::Vouched)),
    })?;
    let stamp = Stamp::new(job.asked.id, wish.fs);
    stamp.write(&hold.device)?;
    let made = making.maker.make(ctx, wish, hold.lend(job.device), making.over);
    if let Err(error) = made {
        if let Err(left) = clear(job, making, &stamp, &error) {
            tracing::warn!(volume = job.asked.id, %left, "clearing up after a failed mkfs");
        }
        return Err(error);
    }
    let hold = Hold::take(job.device, job.asked.id)?;
    let made = written(&hold.device, size, wish);
    stamp.clear(&hold.device, size)?;
    hold.release(job.device);
    made?;
    making.log.note(&FsNote::Made(wish.fs.to_owned()))
}

/// After a mkfs that failed: where it wrote nothing, the stamp goes. What it wrote is zeroed, if that is certainly all that
/// there is: the device was proved blank, mkfs has ended (it had the lock) and did begin (the stamp is gone), and nobody
/// else made anything complete there.
fn clear(job: &Job<'_>, making: &Making<'_>, stamp: &Stamp, failure: &Error) -> Result<()> {
    let hold = Hold::take(job.device, job.asked.id)?;
    let ctx = Ctx::with_limit(ZEROING);
    let (device, size) = (&hold.device, making.size);
    if Stamp::read(device, size)?.as_ref() == Some(stamp) {
        if !making.over && !matches!(probe(&ctx, device, size, &making.known)?, Content::Stamped(_)) {
            return Err(Error::Refused("something else was written; leaving it as it is".into()));
        }
        return stamp.clear(device, size).map(drop);
    }
    let proved = !making.over && !matches!(making.known, Known::Vouched);
    let begun = !failure.to_string().contains("busy") && !failure.to_string().contains("in use");
    let complete = matches!(signature(device, size)?, Some(Content::Known { .. }));
    if !proved || !begun || complete {
        return Ok(());
    }
    // What the server has stored has changed since: mkfs wrote.
    let known = known(job, making.log)?;
    for range in ranges(device, size, &known)? {
        each_chunk(&ctx, device, range, |at, bytes| {
            if bytes.iter().any(|byte| *byte != 0) {
                let zeros = vec![0; bytes.len()];
                let doing = || format!("zeroing what a failed mkfs left on {}", job.device.display());
                device.write_all_at(&zeros, at).map_err(|e| Error::io(doing(), e))?;
            }
            Ok(true)
        })?;
    }
    device.sync_all().map_err(|e| Error::io(format!("flushing {}", job.device.display()), e))
}
