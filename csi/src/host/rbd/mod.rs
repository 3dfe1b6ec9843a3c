//! Images of Ceph clusters as block devices: by the kernel's client, or by qemu-storage-daemon, FUSE and a loop device.
//!
//! Each mapping has a directory below the state directory, which says what it is of; it is found again by that, also
//! by the next process.

mod fuse;
mod krbd;
mod noted;
mod qmp;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use provisioners::rbd::{AES256K, is_aes256k};
use provisioners::{Ctx, Error, RbdIdentity, RbdImage, RbdMounter, Result, Stored, seal, unseal};
use serde::{Deserialize, Serialize};

use super::attach::{AttachRequest, Attached};
use super::outside::Outside;
use super::runner::Tools;
use super::{digest, paths};
use fuse::Left;
use krbd::{Krbd, may_be_same};

/// What to say when an image was not mapped with a key that older clients cannot use.
fn newer_key(image: &RbdImage) -> Option<&'static str> {
    let newer = image.key.as_ref().is_some_and(|key| is_aes256k(key.reveal()));
    newer.then_some(AES256K)
}

/// What is written down of a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    cluster: String,
    pool: String,
    namespace: String,
    image: String,
    /// Drivers before this one have not noted it.
    #[serde(default)]
    identity: Option<RbdIdentity>,
    fsid: String,
    mounter: RbdMounter,
    unmap_options: Vec<String>,
}

impl Stored for Note {
    const KIND: &'static str = "Mapping";
}

/// An image that is mapped on this node.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Its device.
    pub device: PathBuf,
    note: Note,
    dir: PathBuf,
    /// The kernel's number of it.
    number: Option<u32>,
    client: Option<String>,
}

/// The mappings of this node.
#[derive(Debug, Clone)]
pub struct Rbd {
    krbd: Krbd,
    /// `<state directory>/rbd`.
    state: PathBuf,
    /// qemu-storage-daemon.
    daemon: Option<PathBuf>,
    /// Where it is started.
    outside: Outside,
}

impl Rbd {
    /// `daemon` is qemu-storage-daemon, where it is not among the node's programs.
    pub fn new(state: &Path, bus: &Path, daemon: Option<PathBuf>, outside: Outside) -> Self {
        Self { krbd: Krbd::new(bus), state: state.join("rbd"), daemon, outside }
    }

    fn dir(&self, image: &RbdImage) -> PathBuf {
        let name =
            [&image.cluster, &image.pool, &image.namespace, &image.image].map(String::as_str).join("\n");
        self.state.join(digest(name, 16))
    }

    /// The mapping of an image, if it is mapped here: by this driver, or by somebody else with the kernel's client.
    pub fn find(&self, image: &RbdImage) -> Result<Option<Mapping>> {
        let dir = self.dir(image);
        let note = read_note(&dir)?;
        if let Some(note) = note.clone().filter(|note| note.mounter == RbdMounter::Fuse) {
            let Some(device) = fuse::device(&dir)? else { return Ok(None) };
            refuse_namesake(image, &note, &device)?;
            return Ok(Some(Mapping { device, note, dir, number: None, client: None }));
        }
        let fsid = note.as_ref().map_or(image.fsid.as_str(), |note| note.fsid.as_str());
        let noted = note.as_ref().and_then(|note| note.identity.clone());
        let meant = RbdImage { identity: image.identity.clone().or(noted), ..image.clone() };
        let Some(found) = self.krbd.find(&meant, fsid)? else { return Ok(None) };
        let note = note.unwrap_or_else(|| note_of(image, RbdMounter::Krbd));
        Ok(Some(Self::krbd_mapping(dir, note, &found)))
    }

    fn krbd_mapping(dir: PathBuf, note: Note, found: &krbd::Mapped) -> Mapping {
        Mapping {
            device: found.device(),
            note,
            dir,
            number: Some(found.number),
            client: Some(found.client.clone()).filter(|client| !client.is_empty()),
        }
    }

    /// The addresses of the clients that the kernel has for what is mapped.
    pub fn clients(&self) -> Result<Vec<String>> {
        Ok(self.krbd.all()?.into_iter().map(|mapped| mapped.client).collect())
    }

    /// The mapping that a device belongs to.
    pub fn owner(&self, device: &Path) -> Result<Option<Mapping>> {
        if let Some(found) = self.krbd.by_device(device)? {
            let image = found.image();
            let dir = self.noted(|note| {
                (&note.pool, &note.namespace, &note.image) == (&image.pool, &image.namespace, &image.image)
                    && (note.fsid.is_empty() || found.fsid.is_empty() || note.fsid == found.fsid)
                    && may_be_same(note.identity.as_ref(), image.identity.as_ref())
            })?;
            let (dir, note) = dir.unwrap_or_else(|| (self.dir(&image), note_of(&image, RbdMounter::Krbd)));
            return Ok(Some(Self::krbd_mapping(dir, note, &found)));
        }
        let Some(dir) = fuse::dir_of(&self.state, device)? else { return Ok(None) };
        let Some(note) = read_note(&dir)? else { return Ok(None) };
        Ok(Some(Mapping { device: device.to_owned(), note, dir, number: None, client: None }))
    }

    /// The mapping whose note is wanted. None, and one that cannot be read: it may be that, so its error is the answer.
    fn noted(&self, wanted: impl Fn(&Note) -> bool) -> Result<Option<(PathBuf, Note)>> {
        let mut problem = None;
        for dir in self.dirs()? {
            match read_note(&dir) {
                Ok(Some(note)) if wanted(&note) => return Ok(Some((dir, note))),
                Ok(_) => {}
                Err(error) => problem = Some(error),
            }
        }
        problem.map_or(Ok(None), Err)
    }

    /// The directories of mappings.
    fn dirs(&self) -> Result<Vec<PathBuf>> {
        let doing = |e| Error::io(format!("reading {}", self.state.display()), e);
        match fs::read_dir(&self.state) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => {
                let paths = other.map_err(doing)?.map(|entry| entry.map(|entry| entry.path()));
                paths.collect::<io::Result<_>>().map_err(doing)
            }
        }
    }

    /// Maps an image, or finds the mapping that is there.
    pub fn map(&self, tools: &Tools, ctx: &Ctx, image: &RbdImage, r: &AttachRequest<'_>) -> Result<Attached> {
        let dir = self.dir(image);
        fs::create_dir_all(&dir).map_err(|e| Error::io(format!("making {}", dir.display()), e))?;
        // One at a time maps an image, of all processes.
        let _one = paths::lock_in_time(ctx, &dir)?;
        if let Some(found) = self.find(image)? {
            return Ok(Attached { device: found.device, fresh: false, client: found.client });
        }
        if let Some(problem) = fuse::problem(&dir)? {
            return Err(Error::Refused(format!("volume {}: {problem}", r.id)));
        }
        if image.mounter == RbdMounter::Fuse {
            match fuse::resume(ctx, &dir, r.read_only)? {
                Left::Nothing => {}
                Left::Device(device) => return Ok(Attached { device, fresh: true, client: None }),
                // The image's watchers were read while that still had it open.
                Left::Ended => {
                    return Err(Error::Unavailable(format!(
                        "volume {}: the helper of an interrupted mapping was ended; repeat the call",
                        r.id
                    )));
                }
            }
        }
        if r.alone {
            self.refuse_second(image, r.id)?;
        }
        if r.alone || image.locked || r.read_only {
            r.log.attaching(&self.clients()?, r.alone)?;
        }
        if image.key.is_none() {
            return Err(Error::invalid(
                "secrets",
                "userID and userKey are missing; set the class's node-stage secret",
            ));
        }
        write_note(&dir, &note_of(image, image.mounter))?;
        match image.mounter {
            RbdMounter::Krbd => {
                for device in self.krbd.namesakes(image)? {
                    tracing::warn!(device = %device.display(), pool = image.pool, image = image.image, "this device is of an image of the same name that was deleted; unmap it when nobody uses it");
                }
                let mapped = self.krbd.map(tools, ctx, image, r.read_only)?;
                let client = Some(mapped.client.clone()).filter(|client| !client.is_empty());
                Ok(Attached { device: mapped.device(), fresh: true, client })
            }
            RbdMounter::Fuse => {
                let program = match &self.daemon {
                    Some(program) => program.clone(),
                    None => tools.path("qemu-storage-daemon")?.to_owned(),
                };
                let start = fuse::Start { tools, outside: &self.outside, program: &program };
                let device = start.map(ctx, &dir, image, r.read_only)?;
                Ok(Attached { device, fresh: true, client: None })
            }
        }
    }

    /// A watch of this kernel's own client is one that an interrupted unmapping has left: the image is not mapped here.
    fn refuse_second(&self, image: &RbdImage, id: &str) -> Result<()> {
        if image.watchers.is_empty() {
            return Ok(());
        }
        let ours = self.clients()?;
        let others = image.watchers.iter().filter(|address| !ours.contains(address));
        let others: Vec<_> = others.map(String::as_str).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "volume {id} is open elsewhere, by {}: a second writer would destroy its file system; see `volumectl lock ls --image {}/{}`",
            others.join(", "),
            image.pool,
            image.image
        )))
    }

    /// Takes a mapping away.
    pub fn unmap(&self, ctx: &Ctx, mapping: &Mapping) -> Result<()> {
        match mapping.number {
            Some(number) => {
                let force = mapping.note.unmap_options.iter().any(|option| option == "force");
                self.krbd.unmap(ctx, number, force)?;
            }
            None => {
                let _one = paths::lock_in_time(ctx, &mapping.dir)?;
                fuse::unmap(ctx, &mapping.dir, Some(&mapping.device))?;
            }
        }
        remove_rest(&mapping.dir);
        Ok(())
    }

    /// Takes away what is left of a mapping that has no device any more.
    pub fn release(&self, ctx: &Ctx, image: &RbdImage) -> Result<()> {
        let dir = self.dir(image);
        match read_note(&dir)? {
            None => Ok(()),
            Some(note) => {
                let _one = paths::lock_in_time(ctx, &dir)?;
                if note.mounter == RbdMounter::Fuse {
                    fuse::unmap(ctx, &dir, None)?;
                }
                remove_rest(&dir);
                Ok(())
            }
        }
    }

    /// Has the device show the image's size.
    pub fn grow(&self, image: &RbdImage, size: Option<u64>) -> Result<()> {
        let Some(mapping) = self.find(image)? else { return Ok(()) };
        match mapping.number {
            Some(number) => self.krbd.refresh(number),
            None => fuse::grow(&mapping.dir, &mapping.device, size),
        }
    }

    /// Whether a device is what a helper made of an image, also one that has died.
    pub fn is_of(&self, image: &RbdImage, device: &Path) -> Result<bool> {
        Ok(fuse::dir_of(&self.state, device)?.is_some_and(|dir| dir == self.dir(image)))
    }

    /// What is wrong with a device: its helper has died.
    pub fn problem(&self, device: &Path) -> Result<Option<String>> {
        match fuse::dir_of(&self.state, device)? {
            Some(dir) => fuse::problem(&dir),
            None => Ok(None),
        }
    }

    /// Takes away what is left of mappings whose helper has died and that nobody uses. Returns what it did. One that is
    /// in use cannot be helped from here: that is an error in the log.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut done = Vec::new();
        for dir in self.dirs()? {
            match recover_one(&dir) {
                Ok(cleared) => done.extend(cleared),
                Err(error) => tracing::error!(mapping = %dir.display(), %error, "a mapped image"),
            }
        }
        Ok(done)
    }
}

fn recover_one(dir: &Path) -> Result<Option<String>> {
    let Some(note) = read_note(dir)?.filter(|note| note.mounter == RbdMounter::Fuse) else {
        return Ok(None);
    };
    // Locked: another driver maps it just now.
    let Some(_one) = paths::try_lock(dir)? else { return Ok(None) };
    fuse::remove_key(dir)?;
    if let Some(problem) = fuse::problem(dir)? {
        let (pool, image) = (note.pool, note.image);
        return Err(Error::Unavailable(format!("image {pool}/{image}: {problem}")));
    }
    if !fuse::clear_dead(dir)? {
        return Ok(None);
    }
    remove_dir(dir)?;
    Ok(Some(format!("removed the dead mapping of {}/{}, which nobody uses", note.pool, note.image)))
}

/// A helper has one image of a name.
fn refuse_namesake(image: &RbdImage, note: &Note, device: &Path) -> Result<()> {
    if may_be_same(image.identity.as_ref(), note.identity.as_ref()) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{} is of an image {}/{} that was deleted; another has its name now. Unstage the volume here before it is staged",
        device.display(),
        image.pool,
        image.image
    )))
}

fn note_of(image: &RbdImage, mounter: RbdMounter) -> Note {
    Note {
        cluster: image.cluster.clone(),
        pool: image.pool.clone(),
        namespace: image.namespace.clone(),
        image: image.image.clone(),
        identity: image.identity.clone(),
        fsid: image.fsid.clone(),
        mounter,
        unmap_options: image.unmap_options.clone(),
    }
}

fn read_note(dir: &Path) -> Result<Option<Note>> {
    let path = dir.join("mapping.json");
    match fs::read(&path) {
        Ok(bytes) => unseal(&path.display().to_string(), &bytes).map(Some),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}

fn write_note(dir: &Path, note: &Note) -> Result<()> {
    let doing = |e| Error::io(format!("writing {}", dir.join("mapping.json").display()), e);
    let bytes = seal(note)?;
    let temporary = dir.join("mapping.json.new");
    fs::write(&temporary, bytes).map_err(doing)?;
    fs::rename(&temporary, dir.join("mapping.json")).map_err(doing)
}

/// What was noted of a mapping that is gone says nothing, so where it cannot be removed it may stay.
fn remove_rest(dir: &Path) {
    if let Err(error) = remove_dir(dir) {
        tracing::warn!(%error, "the note of a mapping that is gone stays");
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}
