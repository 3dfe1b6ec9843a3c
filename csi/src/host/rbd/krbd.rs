//! The kernel's client through /sys/bus/rbd (Documentation/ABI/testing/sysfs-bus-rbd). `config_info` is never read: it
//! holds the key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provisioners::{Ctx, Error, RbdIdentity, RbdImage, Result};
use rustix::io::Errno;

use super::super::runner::Tools;

/// How long udev or devtmpfs may take to make the node.
const NODE: Duration = Duration::from_secs(10);
/// How long an unmap is tried while something has the device open.
const BUSY: Duration = Duration::from_secs(10);

/// The kernel's client.
#[derive(Debug, Clone)]
pub struct Krbd {
    bus: PathBuf,
}

/// A device of the kernel's client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// `/dev/rbd<number>`.
    pub number: u32,
    pool: String,
    namespace: String,
    name: String,
    /// `None` on kernels that do not tell.
    identity: Option<RbdIdentity>,
    /// The cluster's fsid; empty on kernels that do not tell.
    pub fsid: String,
    /// The client's address with its nonce.
    pub client: String,
}

impl Mapped {
    pub fn device(&self) -> PathBuf {
        PathBuf::from(format!("/dev/rbd{}", self.number))
    }

    pub fn image(&self) -> RbdImage {
        RbdImage {
            pool: self.pool.clone(),
            namespace: self.namespace.clone(),
            image: self.name.clone(),
            identity: self.identity.clone(),
            fsid: self.fsid.clone(),
            ..RbdImage::default()
        }
    }
}

impl Krbd {
    /// `bus` is /sys/bus/rbd.
    pub fn new(bus: &Path) -> Self {
        Self { bus: bus.to_owned() }
    }

    /// What is mapped, snapshots left out.
    pub fn all(&self) -> Result<Vec<Mapped>> {
        let entries = match fs::read_dir(self.bus.join("devices")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| Error::io(format!("reading {}", self.bus.display()), e))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(format!("reading {}", self.bus.display()), e))?;
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(number) = number {
                found.extend(mapped(&entry.path(), number)?);
            }
        }
        Ok(found)
    }

    /// The device of an image; `fsid` and the image's identity tell it from others of its name, as far as they are known.
    pub fn find(&self, image: &RbdImage, fsid: &str) -> Result<Option<Mapped>> {
        let same = |m: &Mapped| {
            is_named(m, image, fsid) && may_be_same(m.identity.as_ref(), image.identity.as_ref())
        };
        Ok(self.all()?.into_iter().find(same))
    }

    /// The devices of other images that had this one's name before it.
    pub fn namesakes(&self, image: &RbdImage) -> Result<Vec<PathBuf>> {
        let other = |m: &Mapped| {
            is_named(m, image, &image.fsid) && !may_be_same(m.identity.as_ref(), image.identity.as_ref())
        };
        Ok(self.all()?.iter().filter(|m| other(m)).map(Mapped::device).collect())
    }

    /// The mapping behind a device.
    pub fn by_device(&self, device: &Path) -> Result<Option<Mapped>> {
        let name = device.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(number) = name.strip_prefix("rbd").and_then(|rest| rest.parse::<u32>().ok()) else {
            return Ok(None);
        };
        Ok(self.all()?.into_iter().find(|m| m.number == number))
    }

    /// Maps an image.
    pub fn map(&self, tools: &Tools, ctx: &Ctx, image: &RbdImage, read_only: bool) -> Result<Mapped> {
        self.ensure(tools, ctx)?;
        self.write("add", &add_line(image, read_only)?).map_err(|e| not_mapped(image, &e))?;
        let begun = Instant::now();
        loop {
            let found = self.find(image, &image.fsid)?;
            if let Some(found) = found.filter(|found| found.device().exists() || !self.is_real()) {
                return Ok(found);
            }
            if begun.elapsed() > NODE {
                return Err(Error::Unavailable(format!(
                    "image {}/{} was mapped, but its device does not appear in /dev; is /dev the host's?",
                    image.pool, image.image
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Unmaps, again and again while it is busy; `force` only as the last step, and only if the class says so.
    pub fn unmap(&self, ctx: &Ctx, number: u32, force: bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.write("remove", &number.to_string()) {
                Ok(()) => return Ok(()),
                Err(e) if is(&e, Errno::NOENT) || is(&e, Errno::INVAL) => return Ok(()),
                Err(e) if is(&e, Errno::BUSY) && begun.elapsed() < BUSY => {}
                Err(e) if is(&e, Errno::BUSY) && force => {
                    let forced = self.write("remove", &format!("{number} force"));
                    return forced.map_err(|e| failed(&format!("unmapping /dev/rbd{number} by force"), &e));
                }
                Err(e) if is(&e, Errno::BUSY) => {
                    let holders =
                        super::super::mounts::open_below(Path::new(&format!("/dev/rbd{number}")), 3);
                    return Err(Error::Refused(format!(
                        "/dev/rbd{number} is still in use{}; repeat the call, or set unmapOptions: force in the class",
                        if holders.is_empty() {
                            String::new()
                        } else {
                            format!(" by {}", holders.join(", "))
                        }
                    )));
                }
                Err(e) => return Err(failed(&format!("unmapping /dev/rbd{number}"), &e)),
            }
            ctx.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Has the kernel read the image's header again. It does so by itself when its watch tells it.
    pub fn refresh(&self, number: u32) -> Result<()> {
        let path = self.bus.join(format!("devices/{number}/refresh"));
        fs::write(&path, "1").map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }

    fn is_real(&self) -> bool {
        self.bus.starts_with("/sys")
    }

    fn ensure(&self, tools: &Tools, ctx: &Ctx) -> Result<()> {
        if self.bus.exists() {
            return Ok(());
        }
        let loaded = tools.run(ctx, "modprobe", &["rbd".as_ref()]);
        if self.bus.exists() {
            return Ok(());
        }
        let why = match loaded {
            Ok(output) => output.failure("modprobe"),
            Err(error) => error.to_string(),
        };
        Err(Error::Refused(format!(
            "this kernel has no module rbd ({} is not there; {why}); load it, or set mounter: fuse in the class",
            self.bus.display()
        )))
    }

    /// Writes a line to `add` or `remove`, or to their twins for the single major number, which newer kernels want.
    fn write(&self, file: &str, line: &str) -> io::Result<()> {
        let single = self.bus.join(format!("{file}_single_major"));
        let path = if single.exists() { single } else { self.bus.join(file) };
        fs::write(path, line)
    }
}

/// What the kernel says of a device; `None`: it is a snapshot's, or was unmapped meanwhile. What cannot be read is an error,
/// never another image.
fn mapped(dir: &Path, number: u32) -> Result<Option<Mapped>> {
    let text = |name: &str| match fs::read_to_string(dir.join(name)) {
        Ok(text) => Ok(text.trim().to_owned()),
        // Not told by this kernel, or gone.
        Err(e) if e.kind() == io::ErrorKind::NotFound || is(&e, Errno::NODEV) => Ok(String::new()),
        Err(e) => Err(Error::io(format!("reading {}", dir.join(name).display()), e)),
    };
    if !matches!(text("current_snap")?.as_str(), "-" | "") {
        return Ok(None);
    }
    let (pool, name) = (text("pool")?, text("name")?);
    let (pool_id, image) = (text("pool_id")?.parse().ok(), text("image_id")?);
    let identity = pool_id.filter(|_| !image.is_empty()).map(|pool| RbdIdentity { pool, image });
    let (namespace, fsid, client) = (text("pool_ns")?, text("cluster_fsid")?, text("client_addr")?);
    Ok((!name.is_empty()).then_some(Mapped { number, pool, namespace, name, identity, fsid, client }))
}

fn is_named(m: &Mapped, image: &RbdImage, fsid: &str) -> bool {
    (&m.pool, &m.namespace, &m.name) == (&image.pool, &image.namespace, &image.image)
        && (fsid.is_empty() || m.fsid.is_empty() || m.fsid == fsid)
}

/// Whether nothing known speaks against two identities being one image's.
pub fn may_be_same(a: Option<&RbdIdentity>, b: Option<&RbdIdentity>) -> bool {
    a.zip(b).is_none_or(|(a, b)| a == b)
}

/// `<monitors> <options> <pool> <image> -`.
fn add_line(image: &RbdImage, read_only: bool) -> Result<String> {
    if image.monitors.is_empty() {
        return Err(Error::Refused(
            "the cluster names no monitor address that the kernel's client can use: its monitors have no v1 address; set mapOptions: ms_mode=prefer-crc".into(),
        ));
    }
    let key = image.key.as_ref().map(provisioners::SecretText::reveal).unwrap_or_default();
    let mut options = vec![format!("name={}", image.user), format!("secret={key}")];
    if !image.namespace.is_empty() {
        options.push(format!("_pool_ns={}", image.namespace));
    }
    if read_only {
        options.push("ro".into());
    }
    options.extend(image.map_options.iter().cloned());
    Ok(format!("{} {} {} {} -", image.monitors.join(","), options.join(","), image.pool, image.image))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn not_mapped(image: &RbdImage, error: &io::Error) -> Error {
    let doing = format!("mapping {}/{}", image.pool, image.image);
    let away = is(error, Errno::TIMEDOUT) || is(error, Errno::NOENT);
    match super::newer_key(image).filter(|_| !away) {
        Some(hint) => Error::Unavailable(format!("{doing}: {error}: {hint}")),
        None => failed(&doing, error),
    }
}

fn failed(doing: &str, error: &io::Error) -> Error {
    let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NXIO) => {
            "the kernel does not know a feature of the image; make images with fewer imageFeatures (`dmesg` names it)"
        }
        Some(Errno::INVAL) => {
            "an option or feature that this kernel does not know, or a wrong key; `dmesg` says which"
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "the user may not; it needs osd 'profile rbd pool=...', or the key is another"
        }
        Some(Errno::NOENT) => "no such pool or image",
        Some(Errno::NOPKG) => {
            "this kernel lacks what Ceph encrypts with; load its modules (`modprobe aes`, `modprobe cbc`, `modprobe gcm`)"
        }
        Some(Errno::TIMEDOUT | Errno::IO) => {
            "the monitors do not answer this node; check network and ms_mode"
        }
        _ => "`dmesg` may say more",
    };
    Error::Unavailable(format!("{doing}: {error}: {hint}"))
}

#[cfg(test)]
#[path = "krbd_tests.rs"]
mod tests;
