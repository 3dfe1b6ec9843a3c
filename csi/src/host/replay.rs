//! A file system that is to be mounted from a read-only device, and was not unmounted in order: a copy of one that was in
//! use. Its journal has to be replayed first, for which the device must take writes.
//!
//! A mount that leaves the journal out (`noload`, `norecovery`) is no way: what it shows can be in disorder. So the volume is
//! attached for this node alone, as for a single writer, the journal is replayed, and the volume is attached read-only again.
//! Who has mounted it has no such journal, and who is about to sees it and comes here, too; one of several is let in.

use std::path::Path;

use provisioners::{Ctx, Error, Result};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::attach::AttachRequest;
use super::stage::Wish;
use super::{FormatLog, Host, device, fsck};

impl Host {
    /// Takes away a device from which the file system could not be mounted read-only, and replays its journal. The device is
    /// not attached afterwards. Killed in between, it is left attached: the next stage finds a file system in order.
    pub(super) fn replay(
        &self,
        ctx: &Ctx,
        wish: &Wish<'_>,
        read_only: &Path,
        log: &dyn FormatLog,
    ) -> Result<()> {
        self.detach(ctx, read_only)?;
        let (id, access) = (wish.id, &wish.volume.access);
        let alone = AttachRequest { id, access, read_only: false, alone: true, log };
        let attached = self.attach(ctx, &alone).map_err(|error| match error {
            // Another reader that is at the same point.
            Error::Refused(why) => {
                Error::Unavailable(format!("{why}. Its journal must be replayed by one node alone"))
            }
            other => other,
        })?;
        let device = &attached.device;
        let replayed = self.ready(ctx, id, wish.volume, &attached, log).and_then(|()| {
            ctx.stage("replaying the journal");
            if device::is_read_only(device) {
                return Err(Error::Refused(format!(
                    "volume {id}: its {} was in use when it was copied, and its journal must be replayed before it can be read; \
                     {} takes no writes. Use the volume once with ReadWriteOnce",
                    wish.fs,
                    device.display()
                )));
            }
            fsck::before_mount(&self.tools, ctx, device, wish.fs, id)?;
            mount_nowhere(device, wish.fs)
        });
        let detached = self.detach(ctx, device);
        replayed?;
        tracing::info!(volume = id, "replayed the journal of a file system that is used read-only");
        detached
    }
}

/// Mounts a file system and unmounts it, without a place in any name space: who is killed meanwhile leaves no mount.
fn mount_nowhere(device: &Path, fs: &str) -> Result<()> {
    let mount = || -> Result<(), Errno> {
        let context = rustix::mount::fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", device)?;
        if fs == "xfs" {
            // A clone has the UUID of its source, and that may be mounted here.
            rustix::mount::fsconfig_set_flag(&context, "nouuid")?;
        }
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(drop)
    };
    mount().map_err(|errno| match errno {
        Errno::UCLEAN | Errno::ILSEQ | Errno::INVAL => Error::Refused(format!(
            "replaying the journal of {} ({fs}): {errno}: the file system is damaged; check it with its own fsck",
            device.display()
        )),
        _ => Error::io(format!("replaying the journal of {} ({fs})", device.display()), errno),
    })
}
