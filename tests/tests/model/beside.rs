//! A controller's call and a node's use of one volume at once: what each is answered fits the other's answer, and no
//! copy has a state that never was.
//!
//! The node writes the same number to two places, the one after the other and each durable before the next. So of a
//! state that was, the first place has the number of the second or the next one.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

use csi_driver::driver::Service;
use csi_proto::v1 as pb;
use e2e::drivers::local_config;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;
use pb::controller_server::Controller as _;
use pb::node_server::Node as _;
use proptest::prelude::*;
use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};

use super::system::service;

const VOLUME: &str = "default:shared";
/// How often the node writes both places in one use.
const WRITES: u64 = 12;
/// In a file that is where a volume's would be.
const FOREIGN: &str = "not a volume of ours";

/// What a controller does to the volume that the node begins to use.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    Snapshot,
    Clone,
    Expand,
    Delete,
}

/// Both begin after so many microseconds.
#[derive(Debug, Clone)]
pub struct Round {
    pub op: Op,
    pub controller_waits: u64,
    pub node_waits: u64,
}

/// A raw block device or a file system; one driver or two; what happens.
pub fn rounds() -> impl Strategy<Value = (bool, bool, Vec<Round>)> {
    let op = prop_oneof![
        4 => Just(Op::Snapshot), 2 => Just(Op::Clone), 2 => Just(Op::Expand), 1 => Just(Op::Delete),
    ];
    let round = (op, 0..20_000_u64, 0..20_000_u64).prop_map(|(op, controller_waits, node_waits)| Round {
        op,
        controller_waits,
        node_waits,
    });
    (any::<bool>(), any::<bool>(), proptest::collection::vec(round, 1..5))
}

/// One driver with one volume.
pub struct Shared {
    runtime: Runtime,
    service: Service,
    /// Who serves the pod: the same, or another driver on the same files, as while one takes over from the other.
    node: Service,
    /// A raw block device; else an ext4 file system.
    block: bool,
    size: i64,
    /// What was written last.
    number: u64,
    /// So many copies were made: their names.
    copies: u32,
    scratch: Scratch,
}

type Done<T = ()> = Result<T, Status>;

impl Shared {
    pub fn new(block: bool, two: bool) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        let scratch = Scratch::new().unwrap();
        let config = local_config(scratch.path(), "");
        let never = Arc::new(AtomicI32::new(-1));
        let service = runtime.block_on(async { service(&config, &never) });
        let node =
            if two { runtime.block_on(async { self::service(&config, &never) }) } else { service.clone() };
        fs::create_dir_all(scratch.path().join("volumes/theirs")).unwrap();
        fs::write(scratch.path().join("volumes/theirs/disk.img"), FOREIGN).unwrap();
        let mut it = Self { runtime, service, node, block, size: 0, number: 0, copies: 0, scratch };
        it.make();
        it
    }

    fn capability(&self) -> pb::VolumeCapability {
        if self.block { ask::block() } else { ask::mount("ext4") }
    }

    /// The volume anew, full of data, so that copies of it take a while, and with zero at both places.
    fn make(&mut self) {
        self.size = 32 * MIB;
        let request = ask::create("shared", self.size, self.capability());
        self.runtime.block_on(self.service.create_volume(Request::new(request))).unwrap();
        self.number = 0;
        let place = self.place("first");
        self.runtime
            .block_on(place.using(&self.service, VOLUME, |at| {
                at.fill();
                at.write(0, 0);
            }))
            .unwrap();
    }

    fn place(&self, name: &str) -> Place {
        let dir = self.scratch.path().join("kubelet").join(name);
        fs::create_dir_all(dir.join("staging")).unwrap();
        Place { staging: dir.join("staging"), target: dir.join("target"), capability: self.capability() }
    }

    /// Both at once, each repeated as sidecars and kubelet do; then what they were answered is looked at.
    pub fn round(&mut self, round: &Round) {
        let place = self.place("pod");
        let (first, node) = (self.number + 1, self.node.clone());
        let wait = Duration::from_micros(round.node_waits);
        let handle = self.runtime.handle().clone();
        let used = std::thread::spawn(move || {
            std::thread::sleep(wait);
            let write = |at: &Target<'_>| (0..WRITES).for_each(|i| at.write(first + i, first + i));
            handle.block_on(place.using(&node, VOLUME, write))
        });
        std::thread::sleep(Duration::from_micros(round.controller_waits));
        self.copies += 1;
        let (done, copy) = self.act(round.op);
        let used = used.join().unwrap();
        match round.op {
            Op::Delete => self.deleted(&done, &used),
            _ => {
                used.unwrap_or_else(|status| panic!("{round:?}: the node: {status}"));
                self.number += WRITES;
                // What was refused while the volume was in use is done now.
                let (last, copy) = if done.is_ok() { (done, copy) } else { self.act(round.op) };
                last.unwrap_or_else(|status| panic!("{round:?}: {status}"));
                self.look_at(copy, round);
            }
        }
        self.in_place(round);
    }

    /// The call, repeated while it is told that something else is under way. With it the handle of the copy that it makes.
    fn act(&mut self, op: Op) -> (Done, Option<String>) {
        let name = format!("copy-{}", self.copies);
        let size = self.size + MIB;
        for _ in 0..2000 {
            let answer = self.runtime.block_on(call(&self.service, op, &name, self.capability(), size));
            match answer {
                Err(status) if status.code() == Code::Aborted => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(status) => {
                    let known = [Code::FailedPrecondition, Code::Unavailable];
                    assert!(known.contains(&status.code()), "{op:?}: {status}");
                    return (Err(status), None);
                }
                Ok(copy) => {
                    if let Op::Expand = op {
                        self.size = size;
                    }
                    return (Ok(()), copy);
                }
            }
        }
        panic!("{op:?} is told ABORTED for ever");
    }

    /// Either the volume went before it was used, or its use refused the deletion.
    fn deleted(&mut self, deleted: &Done, used: &Done) {
        match (deleted, used) {
            (Ok(()), Err(status)) => assert_eq!(status.code(), Code::NotFound, "{status}"),
            // Used to its end, and deleted then: the controller repeats for longer than the node is at it.
            (Ok(()) | Err(_), Ok(())) => {}
            (Err(deletion), Err(usage)) => panic!("neither was done: {deletion}; {usage}"),
        }
        if deleted.is_err() {
            let (last, _) = self.act(Op::Delete);
            last.unwrap();
        }
        self.make();
    }

    /// A copy has both numbers of a moment between the round's begin and end.
    fn look_at(&mut self, copy: Option<String>, round: &Round) {
        let Some(copy) = copy else { return };
        let restored = if let Op::Snapshot = round.op {
            let mut request = ask::create("restored", self.size, self.capability());
            request.volume_content_source = ask::from_snapshot(&copy);
            let made = self.runtime.block_on(self.service.create_volume(Request::new(request))).unwrap();
            let delete = ask::delete_snapshot(&copy);
            self.runtime.block_on(self.service.delete_snapshot(Request::new(delete))).unwrap();
            made.into_inner().volume.unwrap().volume_id
        } else {
            copy
        };
        let (first, second) = self.read(&restored);
        let range = self.number - WRITES..=self.number;
        assert!(
            first == second || first == second + 1,
            "{round:?}: a state that never was: {first}, {second}"
        );
        assert!(range.contains(&first) && range.contains(&second), "{round:?}: {first}, {second}, {range:?}");
        self.runtime.block_on(self.service.delete_volume(Request::new(ask::delete(&restored)))).unwrap();
    }

    fn read(&self, volume: &str) -> (u64, u64) {
        let mut numbers = (0, 0);
        let place = self.place("reader");
        let read = place.using(&self.service, volume, |at| numbers = at.read());
        self.runtime.block_on(read).unwrap();
        numbers
    }

    /// The volume itself has what was written last, and its size; nothing is left of the round.
    fn in_place(&self, round: &Round) {
        assert_eq!(self.read(VOLUME), (self.number, self.number), "{round:?}");
        let get = pb::ControllerGetVolumeRequest { volume_id: VOLUME.into() };
        let found = self.runtime.block_on(self.service.controller_get_volume(Request::new(get))).unwrap();
        assert_eq!(found.into_inner().volume.unwrap().capacity_bytes, self.size, "{round:?}");
        assert!(self.scratch.mounts().is_empty(), "{round:?}: {:?}", self.scratch.mounts());
        assert!(self.scratch.loops().is_empty(), "{round:?}: {:?}", self.scratch.loops());
        let drafts = Scratch::tree(&self.scratch.path().join("volumes/.volumectl/tmp"));
        assert!(drafts.is_empty(), "{round:?}: {drafts:?}");
        let foreign = fs::read_to_string(self.scratch.path().join("volumes/theirs/disk.img")).unwrap();
        assert_eq!(foreign, FOREIGN, "{round:?}: what is not ours is as it was");
    }
}

async fn call(
    service: &Service,
    op: Op,
    name: &str,
    capability: pb::VolumeCapability,
    size: i64,
) -> Done<Option<String>> {
    match op {
        Op::Snapshot => {
            let made = service.create_snapshot(Request::new(ask::snapshot(VOLUME, name))).await?.into_inner();
            Ok(made.snapshot.map(|it| it.snapshot_id))
        }
        Op::Clone => {
            let mut request = ask::create(name, size, capability);
            request.volume_content_source = ask::from_volume(VOLUME);
            let made = service.create_volume(Request::new(request)).await?.into_inner();
            Ok(made.volume.map(|it| it.volume_id))
        }
        Op::Expand => {
            service.controller_expand_volume(Request::new(ask::expand(VOLUME, size))).await.map(|_| None)
        }
        Op::Delete => service.delete_volume(Request::new(ask::delete(VOLUME))).await.map(|_| None),
    }
}

/// Where a volume is used.
struct Place {
    staging: PathBuf,
    target: PathBuf,
    capability: pb::VolumeCapability,
}

impl Place {
    /// A pod's life on it, each call repeated as kubelet does while something else is under way.
    async fn using(&self, service: &Service, id: &str, work: impl FnOnce(&Target<'_>)) -> Done {
        let Self { staging, target, capability } = self;
        again(async || {
            let request = ask::stage(id, staging, capability.clone());
            service.node_stage_volume(Request::new(request)).await.map(drop)
        })
        .await?;
        again(async || {
            let request = ask::publish(id, staging, target, capability.clone());
            service.node_publish_volume(Request::new(request)).await.map(drop)
        })
        .await?;
        let block = matches!(capability.access_type, Some(pb::volume_capability::AccessType::Block(_)));
        work(&Target { path: target, block });
        again(async || {
            service.node_unpublish_volume(Request::new(ask::unpublish(id, target))).await.map(drop)
        })
        .await?;
        again(async || service.node_unstage_volume(Request::new(ask::unstage(id, staging))).await.map(drop))
            .await
    }
}

async fn again(call: impl AsyncFn() -> Done) -> Done {
    for _ in 0..2000 {
        match call().await {
            Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            other => return other,
        }
    }
    Err(Status::internal("told to repeat for ever"))
}

/// What a pod sees.
struct Target<'a> {
    path: &'a Path,
    block: bool,
}

impl Target<'_> {
    /// The two places: of a device far from each other, of a file system two files.
    fn places(&self) -> [(PathBuf, u64); 2] {
        if self.block {
            let path = self.path.to_owned();
            return [(path.clone(), 0), (path, 31 << 20)];
        }
        [(self.path.join("first"), 0), (self.path.join("second"), 0)]
    }

    fn fill(&self) {
        let data = vec![0xa5; 20 << 20];
        let path = if self.block { self.path.to_owned() } else { self.path.join("bulk") };
        let file = OpenOptions::new().write(true).create(!self.block).truncate(false).open(path).unwrap();
        file.write_all_at(&data, 1 << 20).unwrap();
        file.sync_all().unwrap();
    }

    fn write(&self, first: u64, second: u64) {
        for ((path, at), number) in self.places().into_iter().zip([first, second]) {
            let file = OpenOptions::new().write(true).create(!self.block).truncate(false).open(path).unwrap();
            file.write_all_at(&number.to_le_bytes(), at).unwrap();
            file.sync_all().unwrap();
        }
    }

    fn read(&self) -> (u64, u64) {
        let [first, second] = self.places().map(|(path, at)| {
            let mut bytes = [0; 8];
            OpenOptions::new().read(true).open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        });
        (first, second)
    }
}
