use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

#[tokio::test]
async fn a_volume_is_a_sparse_file_beside_its_record() {
    let bench = Bench::new();
    let volume = bench.make("pvc-1").await;
    assert_eq!(volume.id.0, "default:pvc-1");
    assert_eq!(volume.capacity, 16 * MIB);
    assert_eq!(volume.context, map(&[("type", "file")]));
    assert_eq!(volume.topology, vec![bench.local.topology()]);
    assert!(!volume.condition.abnormal, "{:?}", volume.condition);
    let meta = bench.root().join("pvc-1/disk.img").metadata().unwrap();
    assert_eq!((meta.len(), meta.blocks()), (16 * MIB, 0));
    assert_eq!(meta.mode() & 0o777, 0o600);
    assert_eq!(bench.root().join("pvc-1").metadata().unwrap().mode() & 0o777, 0o700);
    assert!(names(&bench.own("index")).is_empty());
    assert_eq!(bench.local.get(&volume.id).await.unwrap(), volume);
    bench.assert_tidy();
}

#[tokio::test]
async fn the_same_call_gives_the_same_volume() {
    let mut bench = Bench::new();
    let spec = VolumeSpec {
        pvc: PvcMeta { name: Some("db".into()), ..PvcMeta::default() },
        ..spec_with("pvc-1", &[("nameTemplate", "${pvc.name}"), ("mode", "0700")])
    };
    let first = bench.create(spec.clone()).await.unwrap();
    let record = std::fs::read(bench.root().join("db/volume.json")).unwrap();
    assert_eq!(bench.create(spec.clone()).await.unwrap(), first);
    bench.restart(|_| {});
    assert_eq!(bench.create(spec).await.unwrap(), first);
    assert_eq!(std::fs::read(bench.root().join("db/volume.json")).unwrap(), record);
    assert_eq!(names(&bench.root()), [".volumectl", "db"]);
}

#[tokio::test]
async fn the_same_name_with_anything_else_says_what_differs() {
    let bench = Bench::with(&["default", "fast"], |_| {});
    bench.make("pvc-1").await;
    let limit = CapacityRange { required: 1, limit: 16 * MIB - 1 };
    let size = "size (it has 16777216 bytes";
    let changed = |change: &dyn Fn(&mut VolumeSpec)| but("pvc-1", change);
    let with = |key: &str, value: &str| spec_with("pvc-1", &[(key, value)]);
    let cases = [
        (changed(&|it| it.range = at_least(17 * MIB)), size),
        (changed(&|it| it.range = limit), size),
        (changed(&|it| it.capabilities = vec![raw()]), "access type"),
        (changed(&|it| it.capabilities = vec![mounted("xfs")]), "fsType"),
        (changed(&|it| it.source = Some(Source::Snapshot("default:s".into()))), "source"),
        (changed(&|it| it.mutable_parameters = map(&[("mode", "0711")])), "mode (it has none; asked: 0711)"),
        (with("root", "fast"), "root (it has default; asked: fast)"),
        (with("type", "directory"), "type (it has file; asked: directory)"),
        (with("thick", "true"), "thick (it has false; asked: true)"),
        (with("fsType", "btrfs"), "fsType"),
        (with("mkfsOptions", "-m 0"), "mkfsOptions (it has ; asked: -m 0)"),
        (with("nameTemplate", "x-${pv.name}"), "nameTemplate"),
    ];
    for (spec, expected) in cases {
        refused(bench.create(spec).await, "already_exists", expected);
    }
    assert_eq!(names(&bench.root()), [".volumectl", "pvc-1"]);
    bench.assert_tidy();
}

#[tokio::test]
async fn equal_parameters_in_other_words_are_the_same() {
    let bench = Bench::new();
    let path = bench.root().display().to_string();
    let first = bench.create(spec_with("v", &[("root", "default"), ("type", "file")])).await.unwrap();
    assert_eq!(bench.create(spec_with("v", &[("root", &path)])).await.unwrap(), first);
}

#[tokio::test]
async fn a_taken_directory_is_a_collision_and_stays() {
    let bench = Bench::new();
    bench.make("other").await;
    std::fs::create_dir(bench.root().join("mine")).unwrap();
    std::fs::write(bench.root().join("mine/file"), "data").unwrap();
    std::fs::write(bench.root().join("plain"), "data").unwrap();
    refused(bench.create(spec("mine")).await, "already_exists", "collision");
    refused(bench.create(spec("plain")).await, "already_exists", "collision");
    let named = spec_with("pvc-9", &[("nameTemplate", "other")]);
    refused(bench.create(named).await, "already_exists", "collision");
    assert_eq!(std::fs::read(bench.root().join("mine/file")).unwrap(), b"data");
    assert!(names(&bench.own("index")).is_empty());
    bench.assert_tidy();
}

#[tokio::test]
async fn two_volumes_cannot_share_a_templates_name() {
    let bench = Bench::new();
    let template = [("nameTemplate", "same")];
    let first = bench.create(spec_with("a", &template)).await.unwrap();
    refused(bench.create(spec_with("b", &template)).await, "already_exists", "collision");
    refused(bench.create(spec("same")).await, "already_exists", "collision");
    assert_eq!(bench.local.get(&first.id).await.unwrap(), first);
    refused(bench.local.get(&"default:same".into()).await, "not_found", "no such volume");
    assert_eq!(names(&bench.own("index")), ["a"]);
}

#[tokio::test]
async fn a_template_names_the_directory_and_the_index_finds_it() {
    let bench = Bench::new();
    let pvc = PvcMeta {
        namespace: Some("shop".into()),
        name: Some("db".into()),
        labels: map(&[("tier", "gold")]),
        ..PvcMeta::default()
    };
    let template = [("nameTemplate", "${pvc.namespace}-${pvc.name}-${pvc.labels.tier}")];
    let wish = VolumeSpec { pvc, ..spec_with("pvc-1", &template) };
    let volume = bench.create(wish).await.unwrap();
    assert!(bench.root().join("shop-db-gold/disk.img").exists());
    assert_eq!(bench.local.get(&volume.id).await.unwrap(), volume);
    refused(bench.create(spec_with("pvc-2", &template)).await, "invalid", "--extra-create-metadata");
}

#[tokio::test]
async fn long_and_strange_names_work() {
    let bench = Bench::new();
    for name in ["n".repeat(128), "a/../b c".to_owned(), "ünï".to_owned(), ".volumectl".to_owned()] {
        let volume = bench.make(&name).await;
        assert!(volume.id.0.len() <= 128);
        assert_eq!(bench.make(&name).await, volume);
        bench.delete(&volume.id).await.unwrap();
    }
    assert_eq!(names(&bench.root()), [".volumectl"]);
}

#[tokio::test]
async fn a_thick_volume_has_its_blocks() {
    let bench = Bench::new();
    bench.create(spec_with("v", &[("thick", "true")])).await.unwrap();
    let meta = bench.root().join("v/disk.img").metadata().unwrap();
    assert!(meta.blocks() * 512 >= 16 * MIB);
}

#[tokio::test]
async fn a_directory_volume_has_its_owner_and_mode() {
    let bench = Bench::new();
    let parameters = [("type", "directory"), ("mode", "2750"), ("uid", "1000"), ("gid", "2000")];
    bench.create(spec_with("d", &parameters)).await.unwrap();
    let meta = bench.root().join("d/data").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o7777), (1000, 2000, 0o2750));
    bench.create(spec_with("e", &[("type", "directory")])).await.unwrap();
    assert_eq!(bench.root().join("e/data").metadata().unwrap().mode() & 0o7777, 0o770);
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_made() {
    let bench = Bench::new();
    let many = Capability { mode: AccessMode::MultiNodeMultiWriter, ..mounted("") };
    let term = [("topology.local.csi.volumectl.io/node", "worker-2")];
    let elsewhere = TopologyRequest { requisite: vec![map(&term)], preferred: Vec::new() };
    let block_directory =
        VolumeSpec { capabilities: vec![raw()], ..spec_with("v", &[("type", "directory")]) };
    let changed = |change: &dyn Fn(&mut VolumeSpec)| but("v", change);
    let uses = |uses: &[Capability]| but("v", &|it| it.capabilities = uses.to_vec());
    let source = |source: Source| but("v", &|it| it.source = Some(source.clone()));
    for (spec, label, part) in [
        (uses(&[many]), "invalid", "single-node mode"),
        (uses(&[mounted("zfs")]), "invalid", "known: ext4, xfs, btrfs"),
        (uses(&[mounted("xfs"), mounted("ext4")]), "invalid", "ask for one"),
        (block_directory, "invalid", "cannot be a block device"),
        (changed(&|it| it.topology = Some(elsewhere.clone())), "exhausted", "accessibility_requirements"),
        (changed(&|it| it.range = at_least(1 << 60)), "exhausted", "bytes asked"),
        (changed(&|it| it.range = at_least(i64::MAX as u64)), "out_of_range", "more than any volume"),
        (source(Source::Volume("default:no".into())), "not_found", "default:no"),
        (source(Source::Snapshot("junk".into())), "not_found", "snapshot junk"),
    ] {
        refused(bench.create(spec).await, label, part);
    }
    assert!(names(&bench.root()).iter().all(|name| name == ".volumectl"));
}

#[tokio::test]
async fn here_is_good_enough_when_it_is_one_of_several_places() {
    let bench = Bench::new();
    let there = Topology::from([("topology.local.csi.volumectl.io/node".into(), "worker-2".into())]);
    let topology =
        Some(TopologyRequest { requisite: vec![there, bench.local.topology()], preferred: Vec::new() });
    bench.create(VolumeSpec { topology, ..spec("v") }).await.unwrap();
}

/// A scheduler tries another node where there is no room, and gives up where there is no source.
#[tokio::test]
async fn a_source_of_another_node_has_the_scheduler_try_that() {
    let bench = Bench::new();
    let topology = Some(TopologyRequest {
        requisite: vec![bench.local.topology()],
        preferred: vec![bench.local.topology()],
    });
    for source in [Source::Volume("default:there".into()), Source::Snapshot("default:there".into())] {
        let spec = VolumeSpec { topology: topology.clone(), ..spec_from("v", source.clone()) };
        refused(bench.create(spec).await, "exhausted", "nodeAffinity of the source");
        refused(bench.create(spec_from("v", source)).await, "not_found", "default:there");
    }
    assert!(names(&bench.root()).iter().all(|name| name == ".volumectl"));
}

#[tokio::test]
async fn another_clusters_volume_is_not_taken_over() {
    let mut bench = Bench::new();
    let volume = bench.make("v").await;
    bench.restart(|config| config.cluster = "other".into());
    refused(bench.create(spec("v")).await, "already_exists", "of cluster \"default\"");
    refused(bench.delete(&volume.id).await, "refused", "belongs to cluster \"default\"");
}

#[tokio::test]
async fn many_at_once_do_not_disturb_each_other() {
    let bench = Arc::new(Bench::new());
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let bench = bench.clone();
            tokio::spawn(async move {
                bench.create(spec_with(&format!("v{n}"), &[("nameTemplate", "one")])).await
            })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => made += 1,
            Err(error) => assert_eq!(error.label(), "already_exists", "{error}"),
        }
    }
    assert_eq!(made, 1);
    assert_eq!(names(&bench.own("index")).len(), 1);
    bench.assert_tidy();
}

#[tokio::test]
async fn a_stopped_creation_leaves_nothing() {
    let bench = Bench::new();
    let ctx = Ctx::new();
    ctx.stop();
    let result = bench.local.prepare(spec("v")).unwrap().run(&ctx).await;
    refused(result, "unavailable", "ended safely");
    assert_eq!(names(&bench.root()), [".volumectl"]);
    bench.assert_tidy();
}

#[tokio::test]
async fn whether_a_volume_satisfies_parameters_is_answered() {
    let bench = Bench::new();
    let volume = bench.make("v").await;
    let differs = async |pairs: &[(&str, &str)]| {
        bench.local.differs(&Ctx::new(), &volume.id, &map(pairs)).await.unwrap()
    };
    assert_eq!(differs(&[]).await, None);
    assert_eq!(differs(&[("type", "file")]).await, None);
    assert!(differs(&[("thick", "true")]).await.unwrap().contains("thick"));
    refused(bench.local.differs(&Ctx::new(), &volume.id, &map(&[("x", "y")])).await, "invalid", "unknown");
    refused(
        bench.local.differs(&Ctx::new(), &"default:no".into(), &map(&[])).await,
        "not_found",
        "default:no",
    );
}
