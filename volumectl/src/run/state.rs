//! What `csi run` has done for each claim, kept beside the mounts: what the API server would know.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::check::Known;
use super::objects::{Claim, Map, Meta};
use super::plan::Plan;

/// The directory of the notes, in the mount directory.
pub const DIR: &str = ".volumectl";

/// One claim's volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bound {
    /// `namespace/name` of the claim.
    pub claim: String,
    /// The volume's handle; empty while nobody has answered.
    pub volume_id: String,
    /// Its size in bytes.
    pub capacity_bytes: i64,
    /// What the claim asked for when it was last bound or grown.
    pub requested_bytes: i64,
    /// The driver's name.
    pub driver: String,
    /// The claim's class; empty: none.
    pub class: String,
    /// The PersistentVolume of the file that it is bound to; none: the volume was made for it.
    pub pv: Option<String>,
    /// What cannot change of the claim, by field.
    pub fixed: Map,
    /// The mutable parameters that the volume was given.
    pub mutable_parameters: Map,
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

impl Bound {
    /// Fields of the claim that are not what they were, and that Kubernetes does not let change.
    pub fn changed(&self, plan: &Plan<'_>) -> Vec<String> {
        let (now, asked) = (fixed(plan), plan.claim.spec.volume_name.as_ref());
        let other = |(field, _): &(&String, &String)| self.fixed.get(*field) != now.get(*field);
        let mut changed: Vec<_> =
            now.iter().filter(other).map(|(field, _)| format!("spec.{field}")).collect();
        if asked.is_some_and(|name| !name.is_empty() && Some(name) != self.pv.as_ref()) {
            changed.push("spec.volumeName".into());
        }
        changed
    }
}

/// The fields of a claim that cannot change once it is bound.
pub fn fixed(plan: &Plan<'_>) -> Map {
    let source = plan.claim.source().map(|source| format!("{} {}", source.kind, source.name));
    let fields = [
        ("storageClassName", plan.class.clone()),
        ("accessModes", plan.claim.spec.access_modes.join(", ")),
        ("volumeMode", plan.claim.volume_mode().to_owned()),
        ("dataSource", source.unwrap_or_default()),
    ];
    fields.map(|(field, value)| (field.to_owned(), value)).into()
}

/// The directory of the notes and the mounts.
#[derive(Debug, Clone)]
pub struct Notes {
    dir: PathBuf,
}

impl Notes {
    /// Notes of mounts under `dir`, which is there and locked: what a process that was killed was writing is removed.
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        let notes = dir.join(DIR);
        let doing = || format!("reading {}", notes.display());
        for entry in fs::read_dir(&notes).with_context(doing)? {
            let path = entry.with_context(doing)?.path();
            if path.extension().is_some_and(|it| it == "new") {
                remove(&path)?;
            }
        }
        Ok(Self { dir })
    }

    /// Where a claim's volume is published.
    pub fn target(&self, claim: &Meta) -> PathBuf {
        self.dir.join(&claim.namespace).join(&claim.name)
    }

    /// Where a claim's volume is staged.
    pub fn staging(&self, claim: &Meta) -> PathBuf {
        self.dir.join(DIR).join(claim.uid()).join("globalmount")
    }

    fn file(&self, kind: &str, object: &Meta) -> PathBuf {
        self.dir.join(DIR).join(format!("{kind}-{}.json", object.uid()))
    }

    /// What is known of a claim.
    pub fn bound(&self, claim: &Meta) -> Result<Option<Bound>> {
        read(&self.file("claim", claim))
    }

    /// What is known of all claims, those of other files too.
    pub fn all(&self) -> Result<Known> {
        let dir = self.dir.join(DIR);
        let doing = || format!("reading {}", dir.display());
        let mut known = Known::new();
        for entry in fs::read_dir(&dir).with_context(doing)? {
            let (name, path) = entry.map(|it| (it.file_name(), it.path())).with_context(doing)?;
            let ours =
                name.to_str().and_then(|it| it.strip_prefix("claim-")?.strip_suffix(".json")).is_some();
            if !ours {
                continue;
            }
            if let Some(bound) = read::<Bound>(&path)? {
                known.insert(bound.claim.clone(), bound);
            }
        }
        Ok(known)
    }

    /// Claims that are noted and not among these.
    pub fn others(&self, claims: &[&Claim]) -> Result<Vec<String>> {
        let here = |path: &String| claims.iter().any(|claim| claim.metadata.path() == *path);
        Ok(self.all()?.into_keys().filter(|path| !here(path)).collect())
    }

    /// Notes it.
    pub fn note(&self, claim: &Meta, bound: &Bound) -> Result<()> {
        write(&self.file("claim", claim), bound)
    }

    /// A snapshot's handle; empty while nobody has answered.
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
}

fn read<T: for<'de> Deserialize<'de>>(file: &Path) -> Result<Option<T>> {
    match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        Ok(bytes) => {
            let damaged =
                || format!("{} is damaged; the volume can be found by `volumectl csi list`", file.display());
            serde_json::from_slice(&bytes).with_context(damaged).map(Some)
        }
    }
}

/// The old text or the new one, also after a power failure.
fn write<T: Serialize>(file: &Path, value: &T) -> Result<()> {
    let new = file.with_extension("new");
    let text = serde_json::to_vec_pretty(value)?;
    let synced = || -> std::io::Result<()> {
        let mut out = fs::File::create(&new)?;
        out.write_all(&text)?;
        out.sync_all()?;
        fs::rename(&new, file)?;
        file.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    synced().with_context(|| format!("writing {}", file.display()))
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_whole_or_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (notes, meta) = (dir.path().join(DIR), Meta::made("shop", "db".into()));
        fs::create_dir(&notes).unwrap();
        let bound = Bound { claim: "shop/db".into(), volume_id: "default:db".into(), ..Bound::default() };
        Notes::new(dir.path()).unwrap().note(&meta, &bound).unwrap();
        // As a process leaves it that was killed while it wrote.
        let half = notes.join(format!("claim-{}.new", meta.uid()));
        fs::write(&half, "{\"claim\": \"sh").unwrap();
        let again = Notes::new(dir.path()).unwrap();
        assert!(!half.exists());
        assert_eq!(again.bound(&meta).unwrap().as_ref(), Some(&bound));
        again.forget(&meta).unwrap();
        assert_eq!(fs::read_dir(&notes).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_note_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(DIR)).unwrap();
        let notes = Notes::new(dir.path()).unwrap();
        let file = notes.dir.join(DIR).join("claim-x.json");
        fs::write(&file, "{").unwrap();
        let error = format!("{:#}", notes.all().unwrap_err());
        assert!(error.contains(&file.display().to_string()) && error.contains("damaged"), "{error}");
    }
}
