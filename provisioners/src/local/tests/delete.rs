use super::*;

#[tokio::test]
async fn deleting_twice_is_deleting_once() {
    let bench = Bench::new();
    let volume = bench.create(spec_with("v", &[("nameTemplate", "db")])).await.unwrap();
    bench.delete(&volume.id).await.unwrap();
    bench.delete(&volume.id).await.unwrap();
    assert_eq!(names(&bench.root()), [".volumectl"]);
    assert!(names(&bench.own("index")).is_empty());
    refused(bench.local.get(&volume.id).await, "not_found", "default:v");
    bench.assert_tidy();
    assert_eq!(bench.host.count("release"), 1);
}

#[tokio::test]
async fn what_was_never_there_is_gone() {
    let bench = Bench::new();
    for id in ["default:no", "junk", "", "default:../etc"] {
        bench.delete(&id.into()).await.unwrap();
    }
    refused(bench.delete(&"gone:v".into()).await, "refused", "root \"gone\" is not configured");
}

#[tokio::test]
async fn a_volume_in_use_is_refused_with_its_users() {
    let bench = Bench::new();
    let volume = bench.make("v").await;
    *bench.host.users.lock().unwrap() = vec!["/dev/loop7 mounted at /mnt".into()];
    refused(bench.delete(&volume.id).await, "refused", "/dev/loop7 mounted at /mnt");
    assert!(bench.root().join("v/disk.img").exists());
    bench.host.users.lock().unwrap().clear();
    bench.delete(&volume.id).await.unwrap();
}

#[tokio::test]
async fn nothing_without_a_record_is_deleted() {
    let bench = Bench::new();
    bench.make("v").await;
    std::fs::create_dir_all(bench.root().join("foreign/data")).unwrap();
    refused(bench.delete(&"default:foreign".into()).await, "refused", "has no volume.json");
    std::fs::remove_file(bench.root().join("v/volume.json")).unwrap();
    refused(bench.delete(&"default:v".into()).await, "refused", "has no volume.json");
    assert!(bench.root().join("v/disk.img").exists() && bench.root().join("foreign/data").exists());
}

#[tokio::test]
async fn a_damaged_record_protects_its_volume() {
    let bench = Bench::new();
    let volume = bench.make("v").await;
    let record = bench.root().join("v/volume.json");
    std::fs::write(&record, b"{\"schema\": 1,").unwrap();
    refused(bench.delete(&volume.id).await, "corrupt", "v/volume.json is damaged");
    refused(bench.local.get(&volume.id).await, "corrupt", "v/volume.json");
    refused(bench.create(spec("v")).await, "corrupt", "v/volume.json");
    std::fs::remove_file(&record).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &record).unwrap();
    refused(bench.delete(&volume.id).await, "corrupt", "not a regular file");
    assert!(bench.root().join("v/disk.img").exists());
}

#[tokio::test]
async fn the_directory_of_another_volume_is_not_deleted_by_its_name() {
    let bench = Bench::new();
    let volume = bench.create(spec_with("a", &[("nameTemplate", "b")])).await.unwrap();
    bench.delete(&"default:b".into()).await.unwrap();
    assert_eq!(bench.local.get(&volume.id).await.unwrap(), volume);
}

#[tokio::test]
async fn links_in_a_directory_volume_are_removed_and_not_followed() {
    let bench = Bench::new();
    let volume = bench.create(spec_with("d", &[("type", "directory")])).await.unwrap();
    let data = bench.root().join("d/data");
    let outside = bench.base.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("keep"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, data.join("link")).unwrap();
    std::fs::create_dir_all(data.join("~1/~2")).unwrap();
    std::fs::write(data.join("~1/~2/file"), "x").unwrap();
    bench.delete(&volume.id).await.unwrap();
    assert!(outside.join("keep").exists());
    bench.assert_tidy();
}

#[tokio::test]
async fn a_tree_of_any_depth_is_removed() {
    let bench = Bench::new();
    let volume = bench.create(spec_with("d", &[("type", "directory")])).await.unwrap();
    let mut at = rustix::fs::open(
        bench.root().join("d/data"),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "deep", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "deep", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    }
    bench.delete(&volume.id).await.unwrap();
    bench.assert_tidy();
}

#[tokio::test]
async fn snapshots_outlive_their_volume() {
    let bench = Bench::new();
    let volume = bench.make("v").await;
    std::fs::write(bench.root().join("v/disk.img"), vec![7; 16 << 20]).unwrap();
    let snapshot = bench.snapshot("s", &volume.id).await.unwrap();
    bench.delete(&volume.id).await.unwrap();
    let restored = bench.create(spec_from("r", Source::Snapshot(snapshot.id))).await.unwrap();
    assert_eq!(restored.capacity, 16 * MIB);
    assert_eq!(std::fs::read(bench.root().join("r/disk.img")).unwrap(), vec![7; 16 << 20]);
}
