//! The SnapshotMetadata service, served where the backend can tell allocated and changed blocks.

use csi_proto::v1 as pb;
use pb::snapshot_metadata_server::SnapshotMetadata;
use provisioners::{Block, Blocks, Ctx, Error, Result, Secrets, SnapshotId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::convert::bytes;
use crate::driver::{Service, open};
use crate::status;
use crate::validate::{self, MAX_STRING};

/// Entries of one message where the caller does not say.
const ENTRIES: usize = 256;

/// What is asked, of either kind.
struct Wish {
    base: Option<SnapshotId>,
    target: SnapshotId,
    from: u64,
    most: usize,
    secrets: Secrets,
}

impl Wish {
    fn new(
        target: (&'static str, &str),
        offset: i64,
        max_results: i32,
        secrets: std::collections::BTreeMap<String, String>,
    ) -> Result<Self> {
        let wrong = |field, value: i64| Error::invalid(field, format!("{value}: must not be negative"));
        let most = usize::try_from(max_results).map_err(|_| wrong("max_results", max_results.into()))?;
        Ok(Self {
            base: None,
            target: validate::text(target.0, target.1, MAX_STRING)?.into(),
            from: u64::try_from(offset).map_err(|_| wrong("starting_offset", offset))?,
            most: if most == 0 { ENTRIES } else { most },
            secrets: Secrets::new(secrets),
        })
    }
}

impl Service {
    async fn blocks(&self, method: &str, wish: &Wish) -> Result<Blocks> {
        let source = self.feature(self.backend.blocks.as_ref(), method)?;
        let ctx = Ctx::new().with_secrets(wish.secrets.clone());
        source.blocks(&ctx, wish.base.as_ref(), &wish.target, wish.from).await
    }
}

/// Puts ranges into messages; the first has the capacity also when there is no range.
fn stream<T: Send + 'static>(
    mut blocks: Blocks,
    most: usize,
    message: fn(i64, Vec<pb::BlockMetadata>) -> T,
) -> ReceiverStream<Result<T, Status>> {
    let (send, receive) = mpsc::channel(4);
    let capacity = bytes(blocks.capacity);
    tokio::spawn(async move {
        let (mut ranges, mut first) = (Vec::new(), true);
        while blocks.ranges.recv_many(&mut ranges, most).await > 0 || first {
            first = false;
            let entries: Result<Vec<_>> = ranges.drain(..).map(|range| range.map(entry)).collect();
            let answer = entries.map(|entries| message(capacity, entries)).map_err(|e| status::status(&e));
            let failed = answer.is_err();
            // The caller has gone, or this was the last.
            if send.send(answer).await.is_err() || failed {
                return;
            }
        }
    });
    ReceiverStream::new(receive)
}

fn entry(block: Block) -> pb::BlockMetadata {
    pb::BlockMetadata { byte_offset: bytes(block.offset), size_bytes: bytes(block.size) }
}

#[tonic::async_trait]
impl SnapshotMetadata for Service {
    type GetMetadataAllocatedStream = ReceiverStream<Result<pb::GetMetadataAllocatedResponse, Status>>;
    type GetMetadataDeltaStream = ReceiverStream<Result<pb::GetMetadataDeltaResponse, Status>>;

    async fn get_metadata_allocated(
        &self,
        request: Request<pb::GetMetadataAllocatedRequest>,
    ) -> Result<Response<Self::GetMetadataAllocatedStream>, Status> {
        let (metadata, r) = open(request);
        let subject = r.snapshot_id.clone();
        let work = async {
            let wish =
                Wish::new(("snapshot_id", &r.snapshot_id), r.starting_offset, r.max_results, r.secrets)?;
            let blocks = self.blocks("GetMetadataAllocated", &wish).await?;
            Ok(stream(blocks, wish.most, |capacity, entries| pb::GetMetadataAllocatedResponse {
                block_metadata_type: pb::BlockMetadataType::VariableLength.into(),
                volume_capacity_bytes: capacity,
                block_metadata: entries,
            }))
        };
        self.answer("GetMetadataAllocated", &metadata, &subject, work).await
    }

    async fn get_metadata_delta(
        &self,
        request: Request<pb::GetMetadataDeltaRequest>,
    ) -> Result<Response<Self::GetMetadataDeltaStream>, Status> {
        let (metadata, r) = open(request);
        let subject = r.target_snapshot_id.clone();
        let work = async {
            let target = ("target_snapshot_id", r.target_snapshot_id.as_str());
            let mut wish = Wish::new(target, r.starting_offset, r.max_results, r.secrets)?;
            wish.base = Some(validate::text("base_snapshot_id", &r.base_snapshot_id, MAX_STRING)?.into());
            let blocks = self.blocks("GetMetadataDelta", &wish).await?;
            Ok(stream(blocks, wish.most, |capacity, entries| pb::GetMetadataDeltaResponse {
                block_metadata_type: pb::BlockMetadataType::VariableLength.into(),
                volume_capacity_bytes: capacity,
                block_metadata: entries,
            }))
        };
        self.answer("GetMetadataDelta", &metadata, &subject, work).await
    }
}
