//! From how a volume is got at to a block device on this node, and back.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provisioners::{Access, Ctx, Error, Result};

use super::{FormatLog, Host, cinder, device, loopdev};

/// How long a device may take to show a size that its server has confirmed.
const GROWS: Duration = Duration::from_secs(10);

/// A device that was attached, or found.
pub struct Attached {
    /// Its node in /dev.
    pub device: PathBuf,
    /// It was not there before this call.
    pub fresh: bool,
    /// As which client the volume's server sees it, if that is known.
    pub client: Option<String>,
}

/// What is to be attached.
pub struct AttachRequest<'a> {
    /// The volume's handle, for messages.
    pub id: &'a str,
    /// How to get at it.
    pub access: &'a Access,
    /// For reading only.
    pub read_only: bool,
    /// Nobody else may have it open.
    pub alone: bool,
    /// Is told before it is attached.
    pub log: &'a dyn FormatLog,
}

impl Host {
    /// The device of a volume, if it is attached to this node. A directory has none.
    pub(super) fn device_of(&self, access: &Access) -> Result<Option<PathBuf>> {
        match access {
            Access::Directory { .. } | Access::Nfs(_) => Ok(None),
            Access::LoopFile { path } => loopdev::find(path),
            Access::Rbd(image) => Ok(self.rbd.find(image)?.map(|mapping| mapping.device)),
            Access::Cinder(disk) => cinder::find(disk),
        }
    }

    /// Attaches a volume, or finds the device that it is attached as.
    pub(super) fn attach(&self, ctx: &Ctx, r: &AttachRequest<'_>) -> Result<Attached> {
        ctx.stage("attaching");
        let mut attached = self.attach_device(ctx, r)?;
        if r.read_only && !attached.fresh && self.is_left_writable(&attached.device)? {
            self.detach(ctx, &attached.device)?;
            attached = self.attach_device(ctx, r)?;
        }
        // A raw volume that was published read-only leaves its flag on the device, and a loop device goes on to another
        // volume with it.
        let device = &attached.device;
        if !r.read_only && device::is_read_only(device) && device::binds(device)?.is_empty() {
            device::set_read_only(&self.tools, ctx, device, false)
                .inspect_err(|_| self.detach_again(ctx, &attached))?;
        }
        Ok(attached)
    }

    /// Whether a device that takes writes is here for nothing: the replay of a journal was interrupted. An image that is
    /// mapped so keeps its lock from others.
    fn is_left_writable(&self, device: &Path) -> Result<bool> {
        Ok(!device::is_read_only(device)
            && device::mounts(device)?.is_empty()
            && device::binds(device)?.is_empty()
            && !self.is_block_staged(device)?)
    }

    fn attach_device(&self, ctx: &Ctx, r: &AttachRequest<'_>) -> Result<Attached> {
        match r.access {
            Access::Directory { .. } | Access::Nfs(_) => {
                let problem = format!("volume {} is a directory and cannot be a block device", r.id);
                Err(Error::invalid("volume_capability", problem))
            }
            Access::LoopFile { path } => {
                let (device, fresh) = loopdev::attach(path, r.read_only, &self.label())?;
                Ok(Attached { device, fresh, client: None })
            }
            Access::Rbd(image) => self.rbd.map(&self.tools, ctx, image, r),
            // Nova has attached it; here it is only waited for.
            Access::Cinder(disk) => {
                Ok(Attached { device: cinder::wait(ctx, disk)?, fresh: false, client: None })
            }
        }
    }

    /// Detaches a device that this driver attached.
    pub(super) fn detach(&self, ctx: &Ctx, device: &Path) -> Result<()> {
        ctx.stage("detaching");
        match self.rbd.owner(device)? {
            Some(mapping) => self.rbd.unmap(ctx, &mapping),
            None if device::is_loop(device) => loopdev::detach(device, || may_detach(device)),
            None => Ok(()),
        }
    }

    /// A failed stage leaves no device that was not there before.
    pub(super) fn detach_again(&self, ctx: &Ctx, attached: &Attached) {
        if attached.fresh
            && let Err(error) = self.detach(ctx, &attached.device)
        {
            tracing::warn!(device = %attached.device.display(), %error, "detaching after a failed stage");
        }
    }

    /// Has a device show the size that its volume has now (`None`: as its server says). The size then.
    pub(super) fn resize_device(
        &self,
        ctx: &Ctx,
        access: &Access,
        device: &Path,
        size: Option<u64>,
    ) -> Result<u64> {
        if size.is_some_and(|size| loopdev::size(device).is_ok_and(|has| has == size)) {
            return loopdev::size(device);
        }
        ctx.stage("growing the device");
        match access {
            Access::Cinder(_) => {
                return size.map_or_else(|| loopdev::size(device), |size| cinder::grown(ctx, device, size));
            }
            Access::Rbd(image) => self.rbd.grow(image, size)?,
            _ => loopdev::grow(device)?,
        }
        let begun = Instant::now();
        loop {
            let has = loopdev::size(device)?;
            if size.is_none_or(|size| has >= size) || begun.elapsed() > GROWS {
                return Ok(has);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether a loop device is not another program's: losetup(8) and others label theirs with the file's path. What an older
/// volumectl has attached has no label.
fn may_detach(device: &Path) -> Result<bool> {
    let label = loopdev::label(device)?;
    Ok(label.is_none_or(|label| label.is_empty() || label.starts_with(loopdev::OURS)))
}
