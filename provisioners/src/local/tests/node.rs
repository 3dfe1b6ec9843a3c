use super::*;

async fn access(bench: &Bench, id: &VolumeId) -> Result<crate::NodeVolume> {
    bench.access(id).await
}

#[tokio::test]
async fn a_node_is_told_all_it_needs() {
    let bench = Bench::new();
    let wish = VolumeSpec {
        capabilities: vec![mounted("xfs")],
        range: at_least(300 * MIB),
        ..spec_with("v", &[("mkfsOptions", "-K -m reflink=0"), ("mode", "0750")])
    };
    let id = bench.create(wish).await.unwrap().id;
    let node = access(&bench, &id).await.unwrap();
    let path = bench.root().join("v/disk.img");
    assert_eq!(node.access, crate::Access::LoopFile { path });
    assert_eq!((node.size, node.root_mode), (Some(300 * MIB), Some(0o750)));
    assert_eq!(node.fs_type.as_deref(), Some("xfs"));
    assert_eq!(node.mkfs_options, ["-K", "-m", "reflink=0"]);
    assert_eq!((node.formatting, node.formatted), (false, None));
    let directory = bench.create(spec_with("d", &[("type", "directory"), ("mode", "0700")])).await.unwrap();
    let node = access(&bench, &directory.id).await.unwrap();
    let path = bench.root().join("d/data");
    assert_eq!((node.access, node.root_mode), (crate::Access::Directory { path }, None));
    refused(access(&bench, &"default:no".into()).await, "not_found", "default:no");
    refused(access(&bench, &"other:no".into()).await, "not_found", "not configured");
}

#[tokio::test]
async fn a_format_is_noted_before_and_after_and_never_repeated() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    bench.local.formatted(&id, "ext4", false).await.unwrap();
    assert!(access(&bench, &id).await.unwrap().formatting);
    let condition = bench.local.get(&id).await.unwrap().condition;
    assert!(condition.abnormal && condition.message.contains("a format with ext4 was begun"));
    for _ in 0..2 {
        bench.local.formatted(&id, "ext4", true).await.unwrap();
    }
    let node = access(&bench, &id).await.unwrap();
    assert_eq!((node.formatting, node.formatted.as_deref()), (false, Some("ext4")));
    assert!(!bench.local.get(&id).await.unwrap().condition.abnormal);
    refused(bench.local.formatted(&id, "ext4", false).await, "refused", "not formatted again");
    refused(bench.local.formatted(&id, "xfs", true).await, "refused", "formatted with ext4 before");
    refused(bench.local.formatted(&"default:no".into(), "xfs", true).await, "not_found", "default:no");
}

#[tokio::test]
async fn data_removed_or_cut_behind_our_back_is_not_used() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    let data = bench.root().join("v/disk.img");
    std::fs::OpenOptions::new().write(true).open(&data).unwrap().set_len(MIB).unwrap();
    refused(access(&bench, &id).await, "refused", "it was cut short");
    refused(bench.snapshot("s", &id).await, "refused", "it was cut short");
    std::fs::remove_file(&data).unwrap();
    refused(access(&bench, &id).await, "refused", "is missing");
    refused(bench.create(spec_from("c", Source::Volume(id.clone()))).await, "refused", "is missing");
    std::os::unix::fs::symlink("/etc/passwd", &data).unwrap();
    refused(access(&bench, &id).await, "refused", "is not what it was made as");
    bench.delete(&id).await.unwrap();
    bench.assert_tidy();
}

#[tokio::test]
async fn a_root_that_is_nearly_full_shows() {
    let mut bench = Bench::new();
    let id = bench.make("v").await.id;
    bench.restart(|config| config.reserve = super::super::Reserve::Bytes(1 << 60));
    let condition = bench.local.get(&id).await.unwrap().condition;
    assert!(condition.abnormal && condition.message.contains("nearly full"), "{condition:?}");
    refused(bench.create(spec("w")).await, "exhausted", "kept in reserve");
}

#[tokio::test]
async fn a_check_makes_the_roots() {
    let bench = Bench::with(&["default", "fast"], |_| {});
    bench.local.check().await.unwrap();
    assert!(bench.base.join("fast/.volumectl/groups").is_dir());
    std::fs::remove_dir_all(bench.base.join("fast")).unwrap();
    std::fs::write(bench.base.join("fast"), "").unwrap();
    refused(bench.local.check().await, "io", "creating root");
}
