//! The operations that are interrupted.

use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::requests::{self as ask, MIB};
use tonic::Status;

use crate::world::Subject;

/// The node of the configuration.
pub const NODE: &str = "node-1";

/// What a round does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    CreateFile,
    CreateThick,
    CreateDirectory,
    Duplicate,
    Restore,
    Delete,
    DeleteDirectory,
    Snapshot,
    DeleteSnapshot,
    Expand,
    Attach,
    Detach,
    Stage,
    Publish,
    PublishReadOnly,
    Unpublish,
    Unstage,
}

use Operation::{
    Attach, CreateDirectory, CreateFile, CreateThick, Delete, DeleteDirectory, DeleteSnapshot, Detach,
    Duplicate, Expand, Publish, PublishReadOnly, Restore, Snapshot, Stage, Unpublish, Unstage,
};

/// All of them; those of directories and of allocated files are the local backend's.
pub const OPERATIONS: [Operation; 17] = [
    CreateFile,
    CreateThick,
    CreateDirectory,
    Duplicate,
    Restore,
    Delete,
    DeleteDirectory,
    Snapshot,
    DeleteSnapshot,
    Expand,
    Attach,
    Detach,
    Stage,
    Publish,
    PublishReadOnly,
    Unpublish,
    Unstage,
];

impl Operation {
    /// Whether the round begins with a volume.
    pub fn needs_volume(self) -> bool {
        self.needs_staged() || matches!(self, Delete | DeleteDirectory | Expand | Attach | Detach | Stage)
    }

    /// Whether only the local backend has it.
    pub fn is_local(self) -> bool {
        matches!(self, CreateThick | CreateDirectory | DeleteDirectory)
    }

    /// Whether it asks for attachment by the controller.
    pub fn attaches(self) -> bool {
        matches!(self, Attach | Detach)
    }

    /// Whether that volume is a directory.
    pub fn is_directory(self) -> bool {
        matches!(self, CreateDirectory | DeleteDirectory)
    }

    /// Whether it begins staged.
    pub fn needs_staged(self) -> bool {
        matches!(self, Publish | PublishReadOnly | Unpublish | Unstage)
    }

    /// Whether it makes a volume.
    pub fn creates(self) -> bool {
        matches!(self, CreateFile | CreateThick | CreateDirectory | Duplicate | Restore)
    }
}

/// What a call answered, as far as a round needs it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The handle of the volume or snapshot that was made.
    pub id: String,
}

/// The size of the volumes that rounds make, in bytes.
pub const SIZE: i64 = 24 * MIB;

/// The right CreateVolume.
pub fn create_request(operation: Operation, s: &Subject) -> pb::CreateVolumeRequest {
    let capability = if operation.is_directory() { ask::mount("") } else { ask::mount(s.fs) };
    let mut request = ask::create(&s.name, SIZE, capability);
    let parameter = |k: &str, v: &str| [(k.to_owned(), v.to_owned())].into();
    match operation {
        CreateThick => request.parameters = parameter("thick", "true"),
        CreateDirectory | DeleteDirectory => request.parameters = parameter("type", "directory"),
        Duplicate => request.volume_content_source = ask::from_volume(&s.base()),
        Restore => request.volume_content_source = ask::from_snapshot(&s.kept()),
        _ => {}
    }
    if matches!(operation, Duplicate | Restore) {
        request.capacity_range = ask::at_least(crate::world::BASE_SIZE);
    }
    request
}

/// Makes the call.
pub async fn call(clients: Clients, operation: Operation, s: Subject) -> Result<Answer, Status> {
    let (mut controller, mut node) = (clients.controller, clients.node);
    let capability = || ask::mount(s.fs);
    let mut answer = Answer { id: s.id.clone() };
    match operation {
        CreateFile | CreateThick | CreateDirectory | Duplicate | Restore => {
            let made = controller.create_volume(create_request(operation, &s)).await?.into_inner();
            answer.id = made.volume.unwrap_or_default().volume_id;
        }
        Delete | DeleteDirectory => drop(controller.delete_volume(ask::delete(&s.id)).await?),
        Snapshot => {
            let made = controller.create_snapshot(ask::snapshot(&s.base(), &s.name)).await?.into_inner();
            answer.id = made.snapshot.unwrap_or_default().snapshot_id;
        }
        DeleteSnapshot => drop(controller.delete_snapshot(ask::delete_snapshot(&s.id)).await?),
        Expand => drop(controller.controller_expand_volume(ask::expand(&s.id, 2 * SIZE)).await?),
        Attach => drop(controller.controller_publish_volume(ask::attach(&s.id, NODE, capability())).await?),
        Detach => drop(controller.controller_unpublish_volume(ask::detach(&s.id, NODE)).await?),
        Stage => drop(node.node_stage_volume(ask::stage(&s.id, &s.staging, capability())).await?),
        Publish => {
            drop(node.node_publish_volume(ask::publish(&s.id, &s.staging, &s.target, capability())).await?);
        }
        PublishReadOnly => {
            let mut request = ask::publish(&s.id, &s.staging, &s.target, capability());
            request.readonly = true;
            node.node_publish_volume(request).await?;
        }
        Unpublish => drop(node.node_unpublish_volume(ask::unpublish(&s.id, &s.target)).await?),
        Unstage => drop(node.node_unstage_volume(ask::unstage(&s.id, &s.staging)).await?),
    }
    Ok(answer)
}
