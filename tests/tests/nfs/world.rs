//! A driver on a share of a real server, and what the tests ask of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::drivers::InProcess;
use e2e::nfs::Nfs;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;

pub const SIZE: i64 = 16 * MIB;

/// The versions of the protocol that the shared server speaks, as the configuration has them.
pub const VERSIONS: [&str; 3] = ["3", "4.1", "4.2"];

/// One test's driver with a share of its own.
pub struct World {
    pub clients: Clients,
    pub scratch: Scratch,
    /// The share's path for clients.
    pub share: String,
    /// The share's content on this machine.
    pub dir: PathBuf,
    pub config: String,
    driver: Option<InProcess>,
}

impl World {
    /// On the shared server. `None`: there can be none here, and why is logged as a skip.
    pub async fn new(test: &str, version: &str) -> Result<Option<Self>> {
        match Nfs::shared(test)? {
            Some(server) => Self::on(server, test, &format!(", nfsVersion: \"{version}\"")).await.map(Some),
            None => Ok(None),
        }
    }

    /// On a server; `more` keys of the share, each with a comma before it.
    pub async fn on(server: &Nfs, test: &str, more: &str) -> Result<Self> {
        let (share, dir) = server.share(test)?;
        Self::at(server, share, dir, more).await
    }

    /// On a share that exists.
    pub async fn at(server: &Nfs, share: String, dir: PathBuf, more: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let more = format!("{more}, localPath: {}", dir.display());
        let config = server.config(scratch.path(), &share, &more)?;
        Self::with(scratch, share, dir, config).await
    }

    /// With a whole configuration.
    pub async fn with(scratch: Scratch, share: String, dir: PathBuf, config: String) -> Result<Self> {
        let driver = InProcess::start(&config).await?;
        let clients = driver.clients().await?;
        Ok(Self { clients, scratch, share, dir, config, driver: Some(driver) })
    }

    /// Stops the driver.
    pub async fn stop(&mut self) -> Result<()> {
        match self.driver.take() {
            Some(driver) => driver.stop().await,
            None => Ok(()),
        }
    }

    /// Stops the driver and starts another with the same configuration.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        let driver = self.driver.insert(InProcess::start(&self.config).await?);
        self.clients = driver.clients().await?;
        Ok(())
    }

    /// The server notices what was done behind its back when the second is over.
    pub async fn settle() {
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }

    /// A request with parameters.
    pub fn request(name: &str, parameters: &[(&str, &str)]) -> pb::CreateVolumeRequest {
        let mut request = ask::create(name, SIZE, ask::mount(""));
        let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        request.parameters = parameters.collect::<BTreeMap<_, _>>();
        request
    }

    pub async fn create(&self, request: pb::CreateVolumeRequest) -> Result<pb::Volume, tonic::Status> {
        let answer = self.clients.controller.clone().create_volume(request).await?;
        answer.into_inner().volume.ok_or_else(|| tonic::Status::internal("no volume"))
    }

    pub async fn make(&self, name: &str) -> Result<String> {
        Ok(self.create(Self::request(name, &[])).await?.volume_id)
    }

    /// A volume from a source.
    pub async fn copy(&self, name: &str, source: pb::VolumeContentSource) -> Result<String, tonic::Status> {
        let request =
            pb::CreateVolumeRequest { volume_content_source: Some(source), ..Self::request(name, &[]) };
        Ok(self.create(request).await?.volume_id)
    }

    pub async fn delete(&self, id: &str) -> Result<(), tonic::Status> {
        self.clients.controller.clone().delete_volume(ask::delete(id)).await.map(drop)
    }

    pub async fn snapshot(&self, source: &str, name: &str) -> Result<pb::Snapshot, tonic::Status> {
        let answer = self.clients.controller.clone().create_snapshot(ask::snapshot(source, name)).await?;
        answer.into_inner().snapshot.ok_or_else(|| tonic::Status::internal("no snapshot"))
    }

    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        self.clients.controller.clone().delete_snapshot(ask::delete_snapshot(id)).await?;
        Ok(())
    }

    pub async fn get(&self, id: &str) -> Result<pb::ControllerGetVolumeResponse> {
        let request = pb::ControllerGetVolumeRequest { volume_id: id.into() };
        Ok(self.clients.controller.clone().controller_get_volume(request).await?.into_inner())
    }

    pub async fn ids(&self) -> Result<Vec<String>> {
        let answer = self.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?;
        Ok(answer.into_inner().entries.into_iter().filter_map(|e| Some(e.volume?.volume_id)).collect())
    }

    /// The values that the driver shows of one metric.
    pub fn metric(&self, name: &str) -> Result<Vec<String>> {
        self.driver.as_ref().context("the driver was stopped")?.metric(name)
    }

    /// One of the driver's own directories.
    pub fn own(&self, dir: &str) -> PathBuf {
        self.dir.join(".volumectl").join(dir)
    }

    /// What users see at the share's root.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != ".volumectl");
        names.sort();
        Ok(names)
    }

    /// Waits until nothing is left of what was deleted or half made.
    pub async fn until_clean(&self) -> Result<()> {
        let left =
            || ["tmp", "trash", "intents", "changes"].map(|dir| Scratch::tree(&self.own(dir))).concat();
        self.until("nothing is left", || Ok(left().is_empty())).await.with_context(|| format!("{:?}", left()))
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !holds()? {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

pub fn from_volume(id: &str) -> pb::VolumeContentSource {
    use pb::volume_content_source::{Type, VolumeSource};
    pb::VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.into() })) }
}

pub fn from_snapshot(id: &str) -> pb::VolumeContentSource {
    use pb::volume_content_source::{SnapshotSource, Type};
    pb::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })) }
}

/// Everything that makes the files below a directory what they are, a line each.
pub fn portrait(dir: &Path) -> Result<Vec<String>> {
    use std::os::unix::fs::MetadataExt as _;
    let mut first = BTreeMap::new();
    let mut lines = Vec::new();
    let mut left = vec![dir.to_path_buf()];
    let mut seen = Vec::new();
    while let Some(next) = left.pop() {
        let mut entries = std::fs::read_dir(&next)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata()?);
            if meta.is_dir() {
                left.push(path.clone());
            }
            seen.push((path, meta));
        }
    }
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, meta) in seen {
        let shown = path.strip_prefix(dir)?.to_path_buf();
        let twin = first.entry(meta.ino()).or_insert_with(|| shown.clone()).clone();
        let size = if meta.is_dir() { 0 } else { meta.size() };
        let content =
            if meta.is_file() { format!("{:x}", hash(&std::fs::read(&path)?)) } else { String::new() };
        let target = std::fs::read_link(&path).map(|t| t.as_os_str().to_os_string()).unwrap_or_default();
        // Nobody reads a link's time, and servers do not set it.
        let mtime = if meta.is_symlink() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
        lines.push(format!(
            "{} {:o} {}:{} {size} {mtime:?} {} {:x} {} {content}",
            shown.as_os_str().as_encoded_bytes().escape_ascii(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            twin.as_os_str().as_encoded_bytes().escape_ascii(),
            meta.rdev(),
            target.as_encoded_bytes().escape_ascii(),
        ));
    }
    Ok(lines)
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
