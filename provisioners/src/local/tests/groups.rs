use std::sync::atomic::Ordering::Relaxed;

use super::*;

async fn two(bench: &Bench) -> (VolumeId, VolumeId) {
    let directory = spec_with("b", &[("root", "fast"), ("type", "directory")]);
    (bench.make("a").await.id, bench.create(directory).await.unwrap().id)
}

fn bench() -> Bench {
    Bench::with(&["default", "fast"], |_| {})
}

#[tokio::test]
async fn a_group_is_all_its_snapshots_at_one_moment() {
    let mut bench = bench();
    let (a, b) = two(&bench).await;
    let spec = group_spec("g", &[&a, &b]);
    assert_eq!(bench.local.group_id(&spec).unwrap(), "default:g");
    let group = bench.local.snapshot_group(&Ctx::new(), spec.clone()).await.unwrap();
    assert_eq!(group.id, "default:g");
    let sources: Vec<_> = group.snapshots.iter().map(|it| it.source.clone()).collect();
    assert_eq!(sources, [a.clone(), b.clone()]);
    assert!(
        group
            .snapshots
            .iter()
            .all(|it| it.group.as_deref() == Some("default:g") && it.created == group.created)
    );
    bench.restart(|_| {});
    assert_eq!(bench.local.snapshot_group(&Ctx::new(), spec).await.unwrap(), group);
    assert_eq!(bench.local.get_group(&Ctx::new(), "default:g", &[]).await.unwrap(), group);
    refused(
        bench.local.snapshot_group(&Ctx::new(), group_spec("g", &[&b])).await,
        "already_exists",
        "of default:a, fast:b",
    );
    assert_eq!(bench.local.list_snapshots(&Ctx::new(), None, None, 0).await.unwrap().items.len(), 2);
    let restored =
        bench.create(spec_from("r", Source::Snapshot(group.snapshots[0].id.clone()))).await.unwrap();
    assert_eq!(restored.capacity, 16 * MIB);
    bench.assert_tidy();
}

#[tokio::test]
async fn a_group_is_deleted_as_a_whole() {
    let bench = bench();
    let (a, b) = two(&bench).await;
    let group = bench.local.snapshot_group(&Ctx::new(), group_spec("g", &[&a, &b])).await.unwrap();
    let members: Vec<_> = group.snapshots.iter().map(|it| it.id.clone()).collect();
    refused(
        bench.local.delete_snapshot(&Ctx::new(), &members[0]).await,
        "invalid",
        "a member of group default:g",
    );
    refused(bench.local.get_group(&Ctx::new(), "default:g", &members[..1]).await, "invalid", "snapshot_ids");
    refused(
        bench.local.delete_group(&Ctx::new(), "default:g", &members[..1]).await,
        "invalid",
        "snapshot_ids",
    );
    bench.local.get_group(&Ctx::new(), "default:g", &members).await.unwrap();
    for _ in 0..2 {
        bench.local.delete_group(&Ctx::new(), "default:g", &members).await.unwrap();
    }
    refused(bench.local.get_group(&Ctx::new(), "default:g", &[]).await, "not_found", "default:g");
    refused(bench.local.get_snapshot(&Ctx::new(), &members[1]).await, "not_found", "no such snapshot");
    bench.local.delete_group(&Ctx::new(), "junk", &[]).await.unwrap();
    assert!(names(&bench.own("groups")).is_empty());
    assert!(names(&bench.own("snapshots")).is_empty());
    bench.assert_tidy();
}

#[tokio::test]
async fn a_group_that_was_not_quiet_is_none() {
    let bench = bench();
    let (a, b) = two(&bench).await;
    let spec = group_spec("g", &[&a, &b]);
    bench.host.fail_resume.store(true, Relaxed);
    refused(bench.local.snapshot_group(&Ctx::new(), spec.clone()).await, "deadline", "writes went on");
    bench.host.fail_resume.store(false, Relaxed);
    bench.host.refuse_quiesce.store(true, Relaxed);
    refused(bench.local.snapshot_group(&Ctx::new(), spec).await, "refused", "raw block device");
    refused(
        bench.local.snapshot_group(&Ctx::new(), group_spec("g", &[&a, &"default:no".into()])).await,
        "not_found",
        "default:no",
    );
    assert!(names(&bench.own("groups")).is_empty());
    assert!(bench.local.list_snapshots(&Ctx::new(), None, None, 0).await.unwrap().items.is_empty());
    bench.assert_tidy();
}

#[tokio::test]
async fn a_group_interrupted_before_its_record_does_not_exist_and_heals() {
    let mut bench = bench();
    let (a, b) = two(&bench).await;
    let spec = group_spec("g", &[&a, &b]);
    let group = bench.local.snapshot_group(&Ctx::new(), spec.clone()).await.unwrap();
    let (complete, pending) = (bench.own("groups/g.json"), bench.own("groups/g.pending"));
    for recover in [true, false] {
        std::fs::rename(&complete, &pending).unwrap();
        refused(
            bench.local.get_snapshot(&Ctx::new(), &group.snapshots[0].id).await,
            "not_found",
            "no such snapshot",
        );
        assert!(bench.local.list_snapshots(&Ctx::new(), None, None, 0).await.unwrap().items.is_empty());
        if recover {
            bench.restart(|_| {});
            let done = bench.local.recover().unwrap();
            assert!(done.iter().any(|line| line.contains("incomplete group default:g")), "{done:?}");
            assert!(names(&bench.own("snapshots")).is_empty() && !pending.exists());
        }
        let again = bench.local.snapshot_group(&Ctx::new(), spec.clone()).await.unwrap();
        assert!(again.created > group.created);
        assert!(complete.exists() && !pending.exists());
    }
    std::fs::rename(&complete, &pending).unwrap();
    bench.local.delete_group(&Ctx::new(), "default:g", &[]).await.unwrap();
    assert!(names(&bench.own("snapshots")).is_empty() && !pending.exists());
}

#[tokio::test]
async fn a_group_that_lost_a_member_says_so() {
    let bench = bench();
    let (a, b) = two(&bench).await;
    let group = bench.local.snapshot_group(&Ctx::new(), group_spec("g", &[&a, &b])).await.unwrap();
    let key = group.snapshots[0].id.0.strip_prefix("default:").unwrap().to_owned();
    std::fs::remove_dir_all(bench.own("snapshots").join(key)).unwrap();
    refused(bench.local.get_group(&Ctx::new(), "default:g", &[]).await, "corrupt", "is missing");
    bench.local.delete_group(&Ctx::new(), "default:g", &[]).await.unwrap();
}
