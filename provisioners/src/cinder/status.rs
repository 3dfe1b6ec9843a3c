//! What Cinder's statuses mean, and the command that ends one in which something is stuck.

use std::time::Duration;

use super::answer::{CinderBackup, CinderSnapshot, CinderVolume, Thing};
use super::cloud::Cloud;
use super::handle::{Handle, Kind};
use super::store::Store;
use crate::{Error, Result, SnapshotId, VolumeId};

/// How long an answer about a status is waited for when an error is explained.
const EXPLAINS: Duration = Duration::from_secs(3);

/// What a status that is no rest means.
struct Meaning {
    /// In words, with what to look at.
    what: &'static str,
    /// The status that an administrator gives it if it stays.
    state: &'static str,
    /// What is to be done after that.
    after: &'static str,
}

/// A volume's, snapshot's or backup's status (cinder/objects/fields.py). `None`: it rests, and can be used.
fn meaning(status: &str) -> Option<Meaning> {
    let (what, state, after) = match status {
        "available" | "in-use" => return None,
        "creating" | "managing" | "downloading" => (
            "Cinder is making it; see `openstack volume service list` if that does not end",
            "error",
            ", and delete it",
        ),
        "attaching" | "reserved" | "detaching" | "error_attaching" | "error_detaching" => (
            "an attachment was begun or ended and is not done; see `openstack --os-volume-api-version 3.27 volume attachment list`, and delete there what no server uses",
            "available --detached",
            "",
        ),
        "deleting" | "deleted" => ("Cinder is deleting it", "error", ", and delete it again"),
        "error_deleting" | "error_managing_deleting" => (
            "its deletion failed; see the log of cinder-volume and mend the cause",
            "available",
            ", and delete it again",
        ),
        "error_restoring" | "restoring-backup" | "restoring" => {
            ("a backup is restored to it, or that failed, and its content is not whole", "error", "")
        }
        "error_extending" | "extending" => {
            ("it grows, or that failed, and its content is as it was", "available", "")
        }
        "error_backing-up" | "backing-up" | "uploading" => {
            ("it is copied, or that failed, and it is as it was", "available", "")
        }
        "retyping" | "maintenance" => ("it is moved or kept for maintenance", "available", ""),
        "awaiting-transfer" => (
            "it is offered to another project; `openstack volume transfer request list` shows the offer, `openstack volume transfer request delete` takes it back",
            "available",
            "",
        ),
        "error" | "error_managing" | "error_unmanaging" => {
            ("something failed; see `openstack volume message list`", "available", " if its content is good")
        }
        _ => ("Cinder works on it", "available", ""),
    };
    Some(Meaning { what, state, after })
}

/// What to do about something that has a status in which it cannot be used; `None`: it rests.
pub(super) fn advice<T: Thing>(thing: &T) -> Option<String> {
    let (kind, id, status) = (T::ONE, thing.id(), thing.status());
    let Meaning { what, state, after } = meaning(status)?;
    let (command, state, attached) = match kind {
        "volume" => (String::new(), state, " (`--state in-use` while a server has it)"),
        // Only volumes are attached.
        kind => (format!(" {kind}"), state.split(' ').next().unwrap_or(state), ""),
    };
    Some(format!(
        "{kind} {id} has status {status:?}: {what}. If it stays so, an administrator ends that by `openstack volume{command} set --state {state} {id}`{attached}{after}"
    ))
}

impl Store {
    /// An error of an operation on a volume, with what to do if the volume is stuck in a status.
    pub(super) async fn explain<R>(&self, id: &VolumeId, done: Result<R>) -> Result<R> {
        match (done, self.place(&id.0)) {
            (Err(error), Some((cloud, handle))) => {
                Err(explained::<CinderVolume>(cloud, &handle.id, error).await)
            }
            (done, _) => done,
        }
    }

    /// The same of a snapshot or backup.
    pub(super) async fn explain_snapshot<R>(&self, id: &SnapshotId, done: Result<R>) -> Result<R> {
        match (done, self.place(&id.0)) {
            (Err(error), Some((cloud, handle))) => Err(match handle.kind {
                Kind::Plain => explained::<CinderSnapshot>(cloud, &handle.id, error).await,
                Kind::Backup => explained::<CinderBackup>(cloud, &handle.id, error).await,
            }),
            (done, _) => done,
        }
    }

    fn place(&self, text: &str) -> Option<(&Cloud, Handle)> {
        let handle = self.handle(text).ok()?;
        self.cloud(handle.cloud.as_deref()).map(|cloud| (&**cloud, handle))
    }
}

async fn explained<T: Thing>(cloud: &Cloud, id: &str, error: Error) -> Error {
    let is_of_state = match &error {
        Error::Refused(_) | Error::Unavailable(_) | Error::Deadline(_) | Error::Internal(_) => true,
        Error::Invalid { field, .. } => field == "request",
        _ => false,
    };
    if !is_of_state || error.to_string().contains("--state") {
        return error;
    }
    let asked = tokio::time::timeout(EXPLAINS, cloud.one::<T>(id)).await;
    match asked.ok().and_then(|answer| answer.ok().flatten()).and_then(|thing| advice(&thing)) {
        Some(advice) => error.with(&advice),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of volumes, snapshots, backups and attachments (cinder/objects/fields.py, cinder/volume/manager.py).
    const ALL: [&str; 32] = [
        "creating",
        "available",
        "deleting",
        "error",
        "error_deleting",
        "error_managing",
        "managing",
        "attaching",
        "in-use",
        "detaching",
        "maintenance",
        "restoring-backup",
        "error_restoring",
        "reserved",
        "awaiting-transfer",
        "backing-up",
        "error_backing-up",
        "error_extending",
        "downloading",
        "uploading",
        "retyping",
        "extending",
        "deleted",
        "updating",
        "unmanaging",
        "error_unmanaging",
        "error_managing_deleting",
        "restoring",
        "error_attaching",
        "error_detaching",
        "some-new-one",
        "",
    ];

    const ID: &str = "7a1d4b0e-3a6c-4b7e-9d6f-0123456789ab";

    fn told<T: Thing>(thing: &T, command: &str) {
        let rests = ["available", "in-use"].contains(&thing.status());
        let Some(text) = advice(thing) else { return assert!(rests, "{}", thing.status()) };
        assert!(!rests && text.contains(&format!("{:?}", thing.status())), "{text}");
        // A command that can be typed: a state, options, the id, and nothing after it.
        let at = text.find(command).unwrap_or_else(|| panic!("{text}"));
        let typed: Vec<_> =
            text[at + command.len()..].split('`').next().unwrap_or_default().split(' ').collect();
        assert!(["available", "error"].contains(&typed[0]) && typed.last() == Some(&ID), "{text}");
        assert!(typed[1..typed.len() - 1].iter().all(|option| *option == "--detached"), "{text}");
        assert!(!text.contains("  ") && !text.contains(",,"), "{text}");
    }

    #[test]
    fn every_status_is_named_with_the_command_that_ends_it() {
        for status in ALL {
            let (id, status) = (ID.to_owned(), status.to_owned());
            let volume = CinderVolume { id: id.clone(), status: status.clone(), ..CinderVolume::default() };
            told(&volume, "`openstack volume set --state ");
            let snapshot =
                CinderSnapshot { id: id.clone(), status: status.clone(), ..CinderSnapshot::default() };
            told(&snapshot, "`openstack volume snapshot set --state ");
            told(
                &CinderBackup { id, status, ..CinderBackup::default() },
                "`openstack volume backup set --state ",
            );
        }
    }

    #[test]
    fn an_attachment_that_is_stuck_is_ended_with_its_volume() {
        let volume = CinderVolume { id: ID.into(), status: "reserved".into(), ..CinderVolume::default() };
        let text = advice(&volume).unwrap();
        assert!(
            text.contains(&format!("`openstack volume set --state available --detached {ID}`")),
            "{text}"
        );
        assert!(text.contains("attachment list"), "{text}");
    }
}
