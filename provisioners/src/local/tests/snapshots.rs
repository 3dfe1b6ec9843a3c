use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::FsNote;

/// A 16 MiB volume with 1 MiB of data at 8 MiB.
async fn with_data(bench: &Bench, name: &str) -> VolumeId {
    use std::os::unix::fs::FileExt;
    let volume = bench.make(name).await;
    let path = bench.root().join(name).join("disk.img");
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![5; 1 << 20], 8 << 20).unwrap();
    volume.id
}

#[tokio::test]
async fn a_snapshot_is_a_sparse_copy_of_a_quiet_volume() {
    let bench = Bench::new();
    let id = with_data(&bench, "v").await;
    let snapshot = bench.snapshot("s", &id).await.unwrap();
    assert_eq!(snapshot.id.0, "default:s");
    assert_eq!((&snapshot.source, snapshot.size, snapshot.ready), (&id, 16 * MIB, true));
    assert_eq!(bench.host.count("quiesce"), 1);
    let (original, copy) = (bench.root().join("v/disk.img"), bench.own("snapshots/s/disk.img"));
    assert_eq!(std::fs::read(&original).unwrap(), std::fs::read(&copy).unwrap());
    assert!(copy.metadata().unwrap().blocks() * 512 <= 2 * MIB);
    bench.assert_tidy();
}

#[tokio::test]
async fn the_same_snapshot_is_the_same_at_every_call() {
    let mut bench = Bench::with(&["default", "fast"], |_| {});
    let id = with_data(&bench, "v").await;
    let first = bench.snapshot("s", &id).await.unwrap();
    bench.restart(|_| {});
    std::fs::write(bench.root().join("v/disk.img"), vec![9; 16 << 20]).unwrap();
    assert_eq!(bench.snapshot("s", &id).await.unwrap(), first);
    assert_eq!(bench.local.get_snapshot(&Ctx::new(), &first.id).await.unwrap(), first);
    let other = bench.create(spec_with("w", &[("root", "fast")])).await.unwrap();
    refused(bench.snapshot("s", &other.id).await, "already_exists", "of volume default:v");
    let unknown = SnapshotSpec { parameters: map(&[("x", "y")]), ..snapshot_spec("t", &id) };
    refused(bench.local.snapshot(&Ctx::new(), unknown).await, "invalid", "no parameters are known");
    refused(bench.snapshot("t", &"default:no".into()).await, "not_found", "default:no");
    refused(bench.snapshot("t", &"junk".into()).await, "not_found", "junk");
    // A snapshot that exists is found also when its volume is gone.
    bench.delete(&id).await.unwrap();
    assert_eq!(bench.snapshot("s", &id).await.unwrap(), first);
}

#[tokio::test]
async fn deleting_a_snapshot_twice_is_deleting_it_once() {
    let bench = Bench::new();
    let id = with_data(&bench, "v").await;
    let snapshot = bench.snapshot("s", &id).await.unwrap();
    for _ in 0..2 {
        bench.local.delete_snapshot(&Ctx::new(), &snapshot.id).await.unwrap();
    }
    refused(bench.local.get_snapshot(&Ctx::new(), &snapshot.id).await, "not_found", "default:s");
    for junk in ["junk", "default:no"] {
        bench.local.delete_snapshot(&Ctx::new(), &SnapshotId::from(junk)).await.unwrap();
    }
    refused(bench.local.delete_snapshot(&Ctx::new(), &"gone:s".into()).await, "refused", "not configured");
    assert!(names(&bench.own("snapshots")).is_empty());
    bench.assert_tidy();
}

#[tokio::test]
async fn a_copy_that_was_not_quiet_to_the_end_is_thrown_away() {
    let bench = Bench::new();
    let id = with_data(&bench, "v").await;
    bench.host.fail_resume.store(true, Relaxed);
    refused(bench.snapshot("s", &id).await, "deadline", "writes went on");
    let clone = spec_from("c", Source::Volume(id.clone()));
    refused(bench.create(clone.clone()).await, "deadline", "writes went on");
    assert!(names(&bench.own("snapshots")).is_empty());
    bench.assert_tidy();
    bench.host.fail_resume.store(false, Relaxed);
    bench.snapshot("s", &id).await.unwrap();
    bench.create(clone).await.unwrap();
}

#[tokio::test]
async fn a_raw_device_in_use_is_refused_where_blocks_cannot_be_shared() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let bench = Bench::with(&["default"], |config| {
        config.roots.insert("default".into(), dir.path().join("r"));
    });
    let volume = bench.make("v").await;
    bench.host.refuse_quiesce.store(true, Relaxed);
    refused(bench.snapshot("s", &volume.id).await, "refused", "in use as a raw block device");
    assert!(names(&dir.path().join("r/.volumectl/snapshots")).is_empty());
    assert!(names(&dir.path().join("r/.volumectl/tmp")).is_empty());
}

#[tokio::test]
async fn a_stopped_snapshot_leaves_nothing() {
    let bench = Bench::new();
    let id = with_data(&bench, "v").await;
    let ctx = Ctx::new();
    ctx.stop();
    let result = bench.local.snapshot(&ctx, snapshot_spec("s", &id)).await;
    refused(result, "unavailable", "ended safely");
    assert!(names(&bench.own("snapshots")).is_empty());
    bench.assert_tidy();
}

#[tokio::test]
async fn restoring_gives_the_data_and_can_be_larger() {
    let bench = Bench::with(&["default", "fast"], |_| {});
    let id = with_data(&bench, "v").await;
    bench.local.note(&id, &FsNote::Made("ext4".into())).await.unwrap();
    let source = Source::Snapshot(bench.snapshot("s", &id).await.unwrap().id);
    let same = bench.create(spec_from("a", source.clone())).await.unwrap();
    assert_eq!((same.capacity, same.source.as_ref()), (16 * MIB, Some(&source)));
    let larger = VolumeSpec {
        range: at_least(20 * MIB),
        parameters: map(&[("root", "fast"), ("thick", "true")]),
        ..spec_from("b", source.clone())
    };
    let larger = bench.create(larger).await.unwrap();
    let image = bench.base.join("fast/b/disk.img");
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!(bytes.len(), 20 << 20);
    assert_eq!(bytes[..16 << 20], std::fs::read(bench.root().join("v/disk.img")).unwrap());
    assert!(image.metadata().unwrap().blocks() * 512 >= 20 * MIB);
    let node = bench.access(&larger.id).await.unwrap();
    assert_eq!((node.formatted.as_deref(), node.raw), (Some("ext4"), false));
    let small = VolumeSpec { range: at_least(15 * MIB), ..spec_from("c", source.clone()) };
    refused(bench.create(small).await, "out_of_range", "the source has 16777216");
    let limit =
        VolumeSpec { range: CapacityRange { required: 0, limit: MIB }, ..spec_from("c", source.clone()) };
    refused(bench.create(limit).await, "out_of_range", "limit_bytes");
    let directory =
        VolumeSpec { parameters: map(&[("type", "directory")]), ..spec_from("c", source.clone()) };
    refused(bench.create(directory).await, "invalid", "same type");
    let other_fs = VolumeSpec {
        capabilities: vec![mounted("xfs")],
        range: at_least(300 * MIB),
        ..spec_from("c", source)
    };
    refused(bench.create(other_fs).await, "invalid", "the source holds ext4");
}

#[tokio::test]
async fn a_clone_is_taken_of_a_quiet_source() {
    let bench = Bench::new();
    let id = with_data(&bench, "v").await;
    let clone = bench.create(spec_from("c", Source::Volume(id.clone()))).await.unwrap();
    assert_eq!(bench.host.count("quiesce"), 1);
    assert_eq!(clone.source, Some(Source::Volume(id)));
    let read = |name: &str| std::fs::read(bench.root().join(name).join("disk.img")).unwrap();
    assert_eq!(read("v"), read("c"));
    assert_eq!(bench.make("other").await.source, None);
    refused(
        bench.create(spec_from("other", Source::Volume("default:v".into()))).await,
        "already_exists",
        "source",
    );
}

#[tokio::test]
async fn a_snapshot_cut_short_is_not_restored() {
    let bench = Bench::new();
    let id = with_data(&bench, "v").await;
    let snapshot = bench.snapshot("s", &id).await.unwrap();
    let data = bench.own("snapshots/s/disk.img");
    std::fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(MIB).unwrap();
    refused(
        bench.create(spec_from("r", Source::Snapshot(snapshot.id.clone()))).await,
        "corrupt",
        "s/disk.img",
    );
    std::fs::remove_file(bench.own("snapshots/s/snapshot.json")).unwrap();
    refused(bench.local.get_snapshot(&Ctx::new(), &snapshot.id).await, "corrupt", "the record is missing");
    refused(bench.local.delete_snapshot(&Ctx::new(), &snapshot.id).await, "corrupt", "the record is missing");
    assert!(data.exists());
    assert_eq!(names(&bench.root()), [".volumectl", "v"]);
}

#[tokio::test]
async fn a_directory_volume_is_snapshotted_and_restored() {
    let bench = Bench::new();
    let kind = [("type", "directory")];
    let volume = bench.create(spec_with("d", &kind)).await.unwrap();
    let data = bench.root().join("d/data");
    std::fs::write(data.join("file"), "one").unwrap();
    let snapshot = bench.snapshot("s", &volume.id).await.unwrap();
    assert_eq!(bench.host.count("quiesce"), 0);
    std::fs::write(data.join("file"), "two").unwrap();
    let restored = VolumeSpec {
        parameters: map(&[("type", "directory"), ("mode", "0711")]),
        ..spec_from("r", Source::Snapshot(snapshot.id.clone()))
    };
    bench.create(restored).await.unwrap();
    let copy = bench.root().join("r/data");
    assert_eq!(std::fs::read(copy.join("file")).unwrap(), b"one");
    assert_eq!(copy.metadata().unwrap().mode() & 0o7777, 0o711);
    bench.local.delete_snapshot(&Ctx::new(), &snapshot.id).await.unwrap();
    bench.assert_tidy();
}
