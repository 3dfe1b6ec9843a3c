//! Whether a server can take one more disk: the limit that its node announces (`limit.rs`) is kept here, too, for Nova
//! may have none of its own.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::Value;

use super::cloud::{Ask, Service};
use super::errors::Fault;
use super::limit::most;
use super::store::Found;
use super::watch::parsed;
use crate::{Error, Result};

/// Disks that are no volumes are looked for only where fewer places than this are left: the root disk, ephemeral disks and
/// swap.
const FEW: usize = 4;

/// The attachments that this process is asking for, in the order of their beginning.
#[derive(Debug, Default)]
pub(super) struct Attaching(Mutex<Vec<Wanted>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    server: String,
    volume: String,
}

/// A place at a server, taken until Nova has answered.
pub(super) struct Place<'a> {
    all: &'a Attaching,
    own: Wanted,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.all.lock().retain(|wanted| *wanted != self.own);
    }
}

impl Attaching {
    fn lock(&self) -> MutexGuard<'_, Vec<Wanted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place; a volume of a server has one at a time.
    fn take(&self, server: &str, volume: &str) -> Place<'_> {
        let own = Wanted { server: server.to_owned(), volume: volume.to_owned() };
        self.lock().push(own.clone());
        Place { all: self, own }
    }
}

impl Place<'_> {
    /// The volumes that this process began to attach to the same server before.
    fn earlier(&self) -> Vec<String> {
        let all = self.all.lock();
        let before = all.iter().take_while(|wanted| **wanted != self.own);
        before.filter(|wanted| wanted.server == self.own.server).map(|wanted| wanted.volume.clone()).collect()
    }
}

/// What Nova says of one attachment.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Disk {
    volume_id: String,
    device: Option<String>,
}

impl Found {
    /// Takes a place at a server for this volume. None left: [`Error::Exhausted`]. `configured`: the disks that a server
    /// can have, where that is configured.
    pub(super) async fn take_place<'a>(
        &self,
        all: &'a Attaching,
        server: &str,
        configured: Option<u32>,
    ) -> Result<Place<'a>> {
        // Taken first and counted then: of two calls the later one sees the earlier.
        let place = all.take(server, &self.handle.id);
        let Some(disks) = self.disks(server).await? else { return Ok(place) };
        let scsi = disks.iter().any(|disk| disk.device.as_deref().is_some_and(|d| d.starts_with("/dev/sd")));
        let most = usize::try_from(most(configured, scsi)).unwrap_or(usize::MAX);
        let mut volumes: BTreeSet<String> = disks.into_iter().map(|disk| disk.volume_id).collect();
        volumes.extend(place.earlier());
        volumes.remove(&self.handle.id);
        if volumes.len() + FEW < most {
            return Ok(place);
        }
        let local = self.local_disks(server).await?;
        if volumes.len() + local < most {
            return Ok(place);
        }
        Err(Error::Exhausted(format!(
            "volume {} cannot be attached to server {server}: it has {} volumes and {local} disks of its own, and can have {most} disks \
             (nodeVolumeAttachLimit); detach one, or use another node",
            self.handle,
            volumes.len()
        )))
    }

    /// The volumes of a server. `None`: Nova does not tell, and decides alone.
    async fn disks(&self, server: &str) -> Result<Option<Vec<Disk>>> {
        let ask = Ask::get(Service::Compute, format!("servers/{server}/os-volume_attachments"));
        let doing = |fault: Fault| fault.doing(&format!("asking for the volumes of server {server}"));
        match self.cloud.send(ask).await {
            Ok(mut value) => parsed(value["volumeAttachments"].take()).map(Some).map_err(doing),
            Err(fault) if fault.is(403) || fault.is(404) => Ok(None),
            Err(fault) => Err(doing(fault)),
        }
    }

    /// The disks of a server that are no volumes, as far as Nova tells: its root disk if it was booted from an image, and
    /// what its flavor has.
    async fn local_disks(&self, server: &str) -> Result<usize> {
        match self.cloud.send(Ask::get(Service::Compute, format!("servers/{server}"))).await {
            Ok(value) => Ok(local_disks(&value["server"])),
            Err(fault) if fault.is(403) || fault.is(404) => Ok(0),
            Err(fault) => Err(fault.doing(&format!("asking for server {server}"))),
        }
    }
}

fn local_disks(server: &Value) -> usize {
    let has = |key: &str| server["flavor"][key].as_u64().is_some_and(|size| size > 0);
    usize::from(server["image"].is_object()) + usize::from(has("ephemeral")) + usize::from(has("swap"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_calls_the_later_one_counts_the_earlier() {
        let all = Attaching::default();
        let (first, second) = (all.take("s", "a"), all.take("s", "b"));
        let other = all.take("t", "c");
        assert_eq!((first.earlier(), second.earlier()), (vec![], vec!["a".to_owned()]));
        assert!(other.earlier().is_empty(), "another server's");
        drop(first);
        assert!(second.earlier().is_empty());
    }

    #[test]
    fn disks_that_are_no_volumes_are_told_by_the_server() {
        let from_image = serde_json::json!({"image": {"id": "x"}, "flavor": {"ephemeral": 10, "swap": 0}});
        assert_eq!(local_disks(&from_image), 2);
        let from_volume = serde_json::json!({"image": "", "flavor": {"ephemeral": 0, "swap": 512}});
        assert_eq!(local_disks(&from_volume), 1);
    }
}
