use std::os::unix::fs::MetadataExt;

use super::*;
use crate::FsNote;

async fn expand(bench: &Bench, id: &VolumeId, required: u64, limit: u64) -> Result<crate::ExpandOutcome> {
    bench.local.expand(&Ctx::new(), id, CapacityRange { required, limit }).await
}

fn length(bench: &Bench) -> u64 {
    bench.root().join("v/disk.img").metadata().unwrap().len()
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    let outcome = expand(&bench, &id, 20 * MIB + 1, 0).await.unwrap();
    assert_eq!((outcome.capacity, outcome.node_expansion_required), (21 * MIB, true));
    assert_eq!(length(&bench), 21 * MIB);
    assert_eq!(bench.host.count("grown"), 1);
    assert_eq!(expand(&bench, &id, 5 * MIB, 0).await.unwrap().capacity, 21 * MIB);
    assert_eq!(expand(&bench, &id, 21 * MIB, 21 * MIB).await.unwrap().capacity, 21 * MIB);
    refused(expand(&bench, &id, 0, 20 * MIB).await, "out_of_range", "never shrink");
    refused(expand(&bench, &id, 22 * MIB + 1, 22 * MIB + 2).await, "out_of_range", "multiples of 1 MiB");
    refused(expand(&bench, &id, 1 << 60, 0).await, "exhausted", "bytes asked");
    refused(expand(&bench, &id, i64::MAX as u64, 0).await, "out_of_range", "more than any volume");
    refused(expand(&bench, &"default:no".into(), 1, 0).await, "not_found", "default:no");
    assert_eq!(length(&bench), 21 * MIB);
    assert_eq!(bench.local.get(&id).await.unwrap().capacity, 21 * MIB);
}

#[tokio::test]
async fn an_expansion_that_was_killed_half_way_is_completed() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    let data = bench.root().join("v/disk.img");
    std::fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(32 * MIB).unwrap();
    let node = bench.access(&id).await.unwrap();
    assert_eq!(node.size, Some(32 * MIB));
    assert_eq!(expand(&bench, &id, 32 * MIB, 0).await.unwrap().capacity, 32 * MIB);
    assert_eq!(bench.local.get(&id).await.unwrap().capacity, 32 * MIB);
    assert_eq!((length(&bench), bench.host.count("grown")), (32 * MIB, 1));
}

#[tokio::test]
async fn thick_directory_and_block_volumes_grow_in_their_ways() {
    let bench = Bench::new();
    let thick = bench.create(spec_with("v", &[("thick", "true")])).await.unwrap();
    expand(&bench, &thick.id, 20 * MIB, 0).await.unwrap();
    assert!(bench.root().join("v/disk.img").metadata().unwrap().blocks() * 512 >= 20 * MIB);
    let directory = bench.create(spec_with("d", &[("type", "directory")])).await.unwrap();
    let outcome = expand(&bench, &directory.id, 20 * MIB, 0).await.unwrap();
    assert_eq!((outcome.capacity, outcome.node_expansion_required), (20 * MIB, false));
    let block = VolumeSpec { capabilities: vec![raw()], range: at_least(MIB), ..spec("b") };
    let block = bench.create(block).await.unwrap();
    assert_eq!(block.capacity, MIB);
    assert!(!expand(&bench, &block.id, 2 * MIB, 0).await.unwrap().node_expansion_required);
}

#[tokio::test]
async fn a_volume_without_its_data_does_not_grow() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    std::fs::remove_file(bench.root().join("v/disk.img")).unwrap();
    refused(expand(&bench, &id, 20 * MIB, 0).await, "refused", "is missing");
    assert!(!bench.root().join("v/disk.img").exists());
}

#[tokio::test]
async fn only_what_can_change_is_modified() {
    let bench = Bench::new();
    let directory = bench.create(spec_with("d", &[("type", "directory")])).await.unwrap();
    let modify =
        async |id: &VolumeId, pairs: &[(&str, &str)]| bench.local.modify(&Ctx::new(), id, &map(pairs)).await;
    for _ in 0..2 {
        modify(&directory.id, &[("mode", "0700"), ("uid", "7"), ("gid", "8")]).await.unwrap();
        let meta = bench.root().join("d/data").metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o700, 7, 8));
    }
    // The call that made it still finds it.
    bench.create(spec_with("d", &[("type", "directory")])).await.unwrap();
    refused(modify(&directory.id, &[("type", "file")]).await, "invalid", "cannot be changed");
    refused(modify(&directory.id, &[("mod", "1")]).await, "invalid", "did you mean \"mode\"");
    refused(modify(&"default:no".into(), &[("mode", "0700")]).await, "not_found", "default:no");

    let file = bench.make("v").await.id;
    modify(&file, &[("mode", "0711")]).await.unwrap();
    let node = bench.access(&file).await.unwrap();
    assert_eq!(node.root_mode, Some(0o711));
    refused(modify(&file, &[("uid", "1")]).await, "invalid", "only a volume of type \"directory\"");
    bench.local.note(&file, &FsNote::Made("ext4".into())).await.unwrap();
    refused(modify(&file, &[("mode", "0700")]).await, "invalid", "holds ext4 already");
}
