use super::*;
use crate::FsNote;

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
    assert_eq!((node.raw, node.formatted), (false, None));
    let directory = bench.create(spec_with("d", &[("type", "directory"), ("mode", "0700")])).await.unwrap();
    let node = access(&bench, &directory.id).await.unwrap();
    let path = bench.root().join("d/data");
    assert_eq!((node.access, node.root_mode), (crate::Access::Directory { path }, None));
    refused(access(&bench, &"default:no".into()).await, "not_found", "default:no");
    refused(access(&bench, &"other:no".into()).await, "not_found", "not configured");
}

/// What the record says of a format can only refuse one.
#[tokio::test]
async fn notes_of_a_file_system_refuse_and_never_permit() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    let making = |permit: Option<&str>| FsNote::Making {
        fs: "ext4".into(),
        permit: permit.map(str::to_owned),
        vouched: None,
    };
    bench.local.note(&id, &making(None)).await.unwrap();
    assert!(!record(&bench).contains("formatting"), "an older version would take it for a permission");
    for _ in 0..2 {
        bench.local.note(&id, &FsNote::Made("ext4".into())).await.unwrap();
    }
    assert_eq!(access(&bench, &id).await.unwrap().formatted.as_deref(), Some("ext4"));
    refused(bench.local.note(&id, &making(None)).await, "refused", "was used meanwhile (ext4)");
    refused(bench.local.note(&"default:no".into(), &FsNote::Raw).await, "not_found", "default:no");
    // A permission is good once, and only if it is still there.
    refused(bench.local.note(&id, &making(Some("abc"))).await, "refused", "was taken back");
    std::fs::write(bench.root().join("v/allow-format"), "abc\n").unwrap();
    assert_eq!(access(&bench, &id).await.unwrap().permit.code.as_deref(), Some("abc"));
    bench.local.note(&id, &making(Some("abc"))).await.unwrap();
    assert_eq!(access(&bench, &id).await.unwrap().permit.code, None);
}

#[tokio::test]
async fn what_was_a_raw_block_device_stays_one_for_copies_and_for_older_versions() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    bench.local.note(&id, &FsNote::Raw).await.unwrap();
    let node = access(&bench, &id).await.unwrap();
    assert_eq!((node.raw, node.formatted), (true, None));
    // To them it is a file system that was completed, which they do not make again.
    assert!(record(&bench).contains(r#""formatted": "raw""#), "{}", record(&bench));
    let snapshot = bench.snapshot("s", &id).await.unwrap().id;
    for (name, source) in [("a", crate::Source::Volume(id.clone())), ("b", crate::Source::Snapshot(snapshot))]
    {
        let copy = bench.create(spec_from(name, source)).await.unwrap();
        assert!(access(&bench, &copy.id).await.unwrap().raw, "{name}");
    }
}

/// A record of an older version in which a format was begun: that is said, and permits nothing.
#[tokio::test]
async fn a_format_that_an_older_version_began_is_told_and_forgotten() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    let old = record(&bench).replace(r#""fs": {}"#, r#""fs": {"formatting": "ext4"}"#);
    std::fs::write(bench.root().join("v/volume.json"), &old).unwrap();
    let condition = bench.local.get(&id).await.unwrap().condition;
    assert!(condition.abnormal && condition.message.contains("began a format with ext4"), "{condition:?}");
    let snapshot = bench.snapshot("s", &id).await.unwrap().id;
    let copy = bench.create(spec_from("a", crate::Source::Snapshot(snapshot))).await.unwrap();
    assert!(!bench.local.get(&copy.id).await.unwrap().condition.abnormal, "a copy inherits no begun format");
    bench.local.note(&id, &FsNote::Raw).await.unwrap();
    assert!(!bench.local.get(&id).await.unwrap().condition.abnormal);
}

fn record(bench: &Bench) -> String {
    std::fs::read_to_string(bench.root().join("v/volume.json")).unwrap()
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
async fn a_check_makes_nothing() {
    let bench = Bench::with(&["default", "fast"], |_| {});
    bench.local.check().await.unwrap();
    assert!(!bench.base.join("fast").exists());
    bench.make_roots();
    bench.local.check().await.unwrap();
    let break_it = |root: &str| {
        std::fs::remove_dir_all(bench.base.join(root)).unwrap();
        std::fs::write(bench.base.join(root), "").unwrap();
    };
    // One can be used: that is enough, and the other is named.
    break_it("fast");
    bench.local.check().await.unwrap();
    let parts = bench.local.parts().await;
    let names: Vec<_> = parts.iter().map(|part| (part.name.as_str(), part.state.is_ok())).collect();
    assert_eq!(names, [("root default", true), ("root fast", false)]);
    break_it("default");
    refused(bench.local.check().await, "io", "creating root");
}
