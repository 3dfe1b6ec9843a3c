//! What `csi run` has done for each claim, kept beside the mounts: what the API server would know.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::manifests::{Map, Meta};

/// One claim's volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bound {
    /// `namespace/name` of the claim.
    pub claim: String,
    /// The volume's handle.
    pub volume_id: String,
    /// Its size in bytes.
    pub capacity_bytes: i64,
    /// `volume_context`.
    pub volume_context: Map,
    /// The node it is attached to, if it was attached.
    pub node_id: Option<String>,
    /// `publish_context`.
    pub publish_context: Map,
    /// Its file system, or `block`.
    pub used_as: String,
    /// Where it is staged.
    pub staging: Option<PathBuf>,
    /// Where it is published.
    pub target: Option<PathBuf>,
}

/// The directory of the notes and the mounts.
#[derive(Debug, Clone)]
pub struct Notes {
    dir: PathBuf,
}

impl Notes {
    /// Notes of mounts under `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join(".volumectl")).with_context(|| format!("making {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        Ok(Self { dir })
    }

    /// Where a claim's volume is published.
    pub fn target(&self, claim: &Meta) -> PathBuf {
        self.dir.join(&claim.namespace).join(&claim.name)
    }

    /// Where a claim's volume is staged.
    pub fn staging(&self, claim: &Meta) -> PathBuf {
        self.dir.join(".volumectl").join(claim.uid()).join("globalmount")
    }

    fn file(&self, kind: &str, object: &Meta) -> PathBuf {
        self.dir.join(".volumectl").join(format!("{kind}-{}.json", object.uid()))
    }

    /// What is known of a claim.
    pub fn bound(&self, claim: &Meta) -> Result<Option<Bound>> {
        read(&self.file("claim", claim))
    }

    /// Notes it.
    pub fn note(&self, claim: &Meta, bound: &Bound) -> Result<()> {
        write(&self.file("claim", claim), bound)
    }

    /// A snapshot's handle.
    pub fn snapshot(&self, snapshot: &Meta) -> Result<Option<String>> {
        read(&self.file("snapshot", snapshot))
    }

    /// Notes it.
    pub fn note_snapshot(&self, snapshot: &Meta, id: &str) -> Result<()> {
        write(&self.file("snapshot", snapshot), &id)
    }

    /// Forgets a claim and removes its empty directories.
    pub fn forget(&self, claim: &Meta) -> Result<()> {
        let staging = self.staging(claim);
        for dir in
            [Some(staging.as_path()), staging.parent(), self.target(claim).parent()].into_iter().flatten()
        {
            // Not empty, or gone: both fine.
            let _ = fs::remove_dir(dir);
        }
        remove(&self.file("claim", claim))
    }

    /// Forgets a snapshot.
    pub fn forget_snapshot(&self, snapshot: &Meta) -> Result<()> {
        remove(&self.file("snapshot", snapshot))
    }

    /// Removes what is empty.
    pub fn tidy(&self) {
        let _ = fs::remove_dir(self.dir.join(".volumectl"));
        let _ = fs::remove_dir(&self.dir);
    }
}

fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<Option<T>> {
    match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display())).map(Some)
        }
    }
}

fn write<T: Serialize>(file: &Path, value: &T) -> Result<()> {
    let new = file.with_extension("new");
    let text = serde_json::to_vec_pretty(value)?;
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, file))
        .with_context(|| format!("writing {}", file.display()))
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}
