use super::*;
use crate::FsNote;

/// What a kill between two steps leaves, made by hand.
#[tokio::test]
async fn a_half_made_volume_is_made_anew() {
    let bench = Bench::new();
    bench.make_roots();
    let left = bench.own("tmp/volume-v");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("disk.img"), vec![9; 4096]).unwrap();
    std::fs::write(left.join("volume.json"), "{\"sch").unwrap();
    let volume = bench.make("v").await;
    assert_eq!(std::fs::read(bench.root().join("v/disk.img")).unwrap(), vec![0; 16 << 20]);
    assert!(!volume.condition.abnormal);
    bench.assert_tidy();
}

#[tokio::test]
async fn a_link_without_its_volume_is_replaced() {
    let bench = Bench::new();
    bench.make_roots();
    std::os::unix::fs::symlink("old-name", bench.own("index/v")).unwrap();
    refused(bench.local.get(&"default:v".into()).await, "not_found", "default:v");
    assert!(bench.local.list(None, 0).await.unwrap().items.is_empty());
    let volume = bench.create(spec_with("v", &[("nameTemplate", "db")])).await.unwrap();
    assert_eq!(bench.local.get(&volume.id).await.unwrap(), volume);
    // And deleting what has only a link is fine.
    std::os::unix::fs::symlink("gone", bench.own("index/w")).unwrap();
    bench.delete(&"default:w".into()).await.unwrap();
    assert_eq!(names(&bench.own("index")), ["v"]);
}

#[tokio::test]
async fn a_link_left_by_a_template_does_not_hide_a_volume_without_one() {
    let bench = Bench::new();
    bench.make_roots();
    std::os::unix::fs::symlink("old-name", bench.own("index/v")).unwrap();
    let volume = bench.make("v").await;
    assert_eq!(bench.local.get(&volume.id).await.unwrap(), volume);
    assert_eq!(bench.make("v").await, volume);
}

#[tokio::test]
async fn a_volume_whose_link_was_lost_is_found_again_by_the_same_call() {
    let bench = Bench::new();
    let wish = spec_with("v", &[("nameTemplate", "db")]);
    let volume = bench.create(wish.clone()).await.unwrap();
    std::fs::remove_file(bench.own("index/v")).unwrap();
    assert_eq!(bench.create(wish).await.unwrap(), volume);
    assert_eq!(bench.local.get(&volume.id).await.unwrap(), volume);
}

#[tokio::test]
async fn an_interrupted_deletion_is_finished_by_the_next_call() {
    let bench = Bench::new();
    let volume = bench.create(spec_with("v", &[("nameTemplate", "db")])).await.unwrap();
    std::fs::rename(bench.root().join("db"), bench.own("trash/volume-v")).unwrap();
    refused(bench.local.get(&volume.id).await, "not_found", "default:v");
    bench.delete(&volume.id).await.unwrap();
    bench.assert_tidy();
    assert!(names(&bench.own("index")).is_empty());
}

#[tokio::test]
async fn a_name_can_be_used_again_while_its_old_volume_is_in_the_trash() {
    let bench = Bench::new();
    bench.make("v").await;
    std::fs::rename(bench.root().join("v"), bench.own("trash/volume-v")).unwrap();
    let volume = bench.make("v").await;
    bench.delete(&volume.id).await.unwrap();
    bench.assert_tidy();
}

#[tokio::test]
async fn recovery_finishes_and_cleans_and_says_so() {
    let mut bench = Bench::new();
    bench.make("v").await;
    let kept = bench.make("w").await;
    let snapshot = bench.snapshot("s", &kept.id).await.unwrap();
    std::fs::rename(bench.root().join("v"), bench.own("trash/volume-v")).unwrap();
    std::fs::create_dir(bench.own("tmp/snapshot-x")).unwrap();
    bench.restart(|_| {});
    let done = bench.local.recover().unwrap();
    assert_eq!(done.len(), 2, "{done:?}");
    assert!(done[0].contains("deletion of volume-v") && done[1].contains("snapshot-x"));
    bench.assert_tidy();
    assert_eq!(bench.local.get(&kept.id).await.unwrap(), kept);
    assert_eq!(bench.local.get_snapshot(&Ctx::new(), &snapshot.id).await.unwrap(), snapshot);
    assert!(bench.local.recover().unwrap().is_empty());
}

#[tokio::test]
async fn recovery_leaves_alone_what_another_process_may_be_making() {
    let bench = Bench::new();
    bench.make("v").await;
    std::fs::create_dir(bench.own("tmp/volume-x")).unwrap();
    // A second backend has descriptors of its own, as another process would.
    let other = Local::new(bench.config.clone(), bench.host.clone()).unwrap();
    let done = other.recover().unwrap();
    assert!(done.len() == 1 && done[0].contains("another process is using it"), "{done:?}");
    assert!(bench.own("tmp/volume-x").exists());
    drop(other);
    assert_eq!(bench.local.recover().unwrap().len(), 1);
    bench.assert_tidy();
}

#[tokio::test]
async fn recovery_waits_a_moment_for_what_a_killed_process_left_locked() {
    let bench = Bench::new();
    bench.make("v").await;
    std::fs::create_dir(bench.own("tmp/volume-x")).unwrap();
    let left = std::fs::File::open(bench.own("tmp")).unwrap();
    left.lock_shared().unwrap();
    let ends = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(left);
    });
    assert_eq!(bench.local.recover().unwrap().len(), 1);
    ends.join().unwrap();
    bench.assert_tidy();
}

#[tokio::test]
async fn recovery_of_nothing_makes_nothing() {
    let bench = Bench::new();
    assert!(bench.local.recover().unwrap().is_empty());
    assert!(!bench.root().exists());
}

#[tokio::test]
async fn a_half_written_new_record_does_not_matter() {
    let bench = Bench::new();
    let id = bench.make("v").await.id;
    std::fs::write(bench.root().join("v/.volume.json.tmp"), "{\"sch").unwrap();
    bench.local.note(&id, &FsNote::Made("ext4".into())).await.unwrap();
    assert_eq!(names(&bench.root().join("v")), ["disk.img", "volume.json"]);
}

#[tokio::test]
async fn what_cannot_be_recovered_does_not_keep_the_rest_from_it() {
    let bench = Bench::new();
    bench.make("v").await;
    std::fs::write(bench.own("groups/g.pending"), "garbage").unwrap();
    std::fs::create_dir(bench.own("tmp/volume-x")).unwrap();
    let done = bench.local.recover().unwrap();
    assert!(
        done.iter().any(|line| line.contains("could not be done") && line.contains("g.pending")),
        "{done:?}"
    );
    assert!(bench.own("groups/g.pending").exists());
    bench.assert_tidy();
}
