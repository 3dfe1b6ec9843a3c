//! Images of Ceph clusters as block devices: by the kernel's client, or by qemu-storage-daemon, FUSE and a loop device.
//!
//! Each mapping has a directory below the state directory, which says what it is of; it is found again by that, also
//! by the next process.

mod fuse;
mod krbd;
mod qmp;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use provisioners::{Ctx, Error, RbdImage, RbdMounter, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::attach::{AttachRequest, Attached};
use super::paths;
use super::runner::Tools;
use fuse::Left;
use krbd::Krbd;

/// What is written down of a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    cluster: String,
    pool: String,
    namespace: String,
    image: String,
    fsid: String,
    mounter: RbdMounter,
    unmap_options: Vec<String>,
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
}

impl Rbd {
    /// `daemon` is qemu-storage-daemon, where it is not among the node's programs.
    pub fn new(state: &Path, bus: &Path, daemon: Option<PathBuf>) -> Self {
        Self { krbd: Krbd::new(bus), state: state.join("rbd"), daemon }
    }

    fn dir(&self, image: &RbdImage) -> PathBuf {
        let name =
            [&image.cluster, &image.pool, &image.namespace, &image.image].map(String::as_str).join("\n");
        let digest = Sha256::digest(name.as_bytes());
        self.state.join(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// The mapping of an image, if it is mapped here: by this driver, or by somebody else with the kernel's client.
    pub fn find(&self, image: &RbdImage) -> Result<Option<Mapping>> {
        let dir = self.dir(image);
        let note = read_note(&dir)?;
        if let Some(note) = note.clone().filter(|note| note.mounter == RbdMounter::Fuse) {
            let device = fuse::device(&dir)?;
            return Ok(device.map(|device| Mapping { device, note, dir, number: None, client: None }));
        }
        let fsid = note.as_ref().map_or(image.fsid.as_str(), |note| note.fsid.as_str());
        let Some(found) = self.krbd.find(image, fsid)? else { return Ok(None) };
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
            })?;
            let (dir, note) = dir.unwrap_or_else(|| (self.dir(&image), note_of(&image, RbdMounter::Krbd)));
            return Ok(Some(Self::krbd_mapping(dir, note, &found)));
        }
        let Some(dir) = fuse::dir_of(&self.state, device)? else { return Ok(None) };
        let Some(note) = read_note(&dir)? else { return Ok(None) };
        Ok(Some(Mapping { device: device.to_owned(), note, dir, number: None, client: None }))
    }

    fn noted(&self, mut wanted: impl FnMut(&Note) -> bool) -> Result<Option<(PathBuf, Note)>> {
        let entries = match fs::read_dir(&self.state) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io(format!("reading {}", self.state.display()), e))?,
        };
        for entry in entries.flatten() {
            if let Some(note) = read_note(&entry.path())?.filter(|note| wanted(note)) {
                return Ok(Some((entry.path(), note)));
            }
        }
        Ok(None)
    }

    /// Maps an image, or finds the mapping that is there.
    pub fn map(&self, tools: &Tools, ctx: &Ctx, image: &RbdImage, r: &AttachRequest<'_>) -> Result<Attached> {
        let dir = self.dir(image);
        fs::create_dir_all(&dir).map_err(|e| Error::io(format!("making {}", dir.display()), e))?;
        // One at a time maps an image, of all processes.
        let _one = paths::lock(&dir)?;
        if let Some(found) = self.find(image)? {
            return Ok(Attached { device: found.device, fresh: false, client: found.client });
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
        if image.locked {
            r.log.attaching(&self.clients()?)?;
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
                let mapped = self.krbd.map(tools, ctx, image, r.read_only)?;
                let client = Some(mapped.client.clone()).filter(|client| !client.is_empty());
                Ok(Attached { device: mapped.device(), fresh: true, client })
            }
            RbdMounter::Fuse => {
                let program = match &self.daemon {
                    Some(program) => program.clone(),
                    None => tools.path("qemu-storage-daemon")?.to_owned(),
                };
                let device = fuse::map(tools, ctx, &program, &dir, image, r.read_only)?;
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
            None => fuse::unmap(ctx, &mapping.dir, Some(&mapping.device))?,
        }
        remove_dir(&mapping.dir)
    }

    /// Takes away what is left of a mapping that has no device any more.
    pub fn release(&self, ctx: &Ctx, image: &RbdImage) -> Result<()> {
        let dir = self.dir(image);
        match read_note(&dir)? {
            None => Ok(()),
            Some(note) => {
                if note.mounter == RbdMounter::Fuse {
                    fuse::unmap(ctx, &dir, None)?;
                }
                remove_dir(&dir)
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

    /// Takes away what is left of mappings whose helper has died and that nobody uses. Returns what it did.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut done = Vec::new();
        let mut dead = Vec::new();
        self.noted(|note| {
            dead.push(note.clone());
            false
        })
        .map(drop)?;
        for note in dead.into_iter().filter(|note| note.mounter == RbdMounter::Fuse) {
            let dir = self.dir(&RbdImage {
                cluster: note.cluster.clone(),
                pool: note.pool.clone(),
                namespace: note.namespace.clone(),
                image: note.image.clone(),
                ..RbdImage::default()
            });
            if fuse::clear_dead(&dir)? {
                remove_dir(&dir)?;
                done.push(format!("removed the dead mapping of {}/{}", note.pool, note.image));
            }
        }
        Ok(done)
    }
}

fn note_of(image: &RbdImage, mounter: RbdMounter) -> Note {
    Note {
        cluster: image.cluster.clone(),
        pool: image.pool.clone(),
        namespace: image.namespace.clone(),
        image: image.image.clone(),
        fsid: image.fsid.clone(),
        mounter,
        unmap_options: image.unmap_options.clone(),
    }
}

fn read_note(dir: &Path) -> Result<Option<Note>> {
    let path = dir.join("mapping.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::Corrupt { what: path.display().to_string(), problem: e.to_string() }),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}

fn write_note(dir: &Path, note: &Note) -> Result<()> {
    let doing = |e| Error::io(format!("writing {}", dir.join("mapping.json").display()), e);
    let bytes = serde_json::to_vec(note).map_err(|e| Error::Internal(e.to_string()))?;
    let temporary = dir.join("mapping.json.new");
    fs::write(&temporary, bytes).map_err(doing)?;
    fs::rename(&temporary, dir.join("mapping.json")).map_err(doing)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", dir.display()), e))
        }
        _ => Ok(()),
    }
}
