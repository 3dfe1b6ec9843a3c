//! Two drivers in the same directories: one that drains, and its successor. A second backend has descriptors, and so locks, of
//! its own, as another process has.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;

use super::super::{Lease, Sharing};
use super::*;

/// Another driver over the same directories, on a node that answers for itself.
fn successor(bench: &Bench) -> (Arc<Local>, Arc<FakeHost>) {
    let host = Arc::new(FakeHost::default());
    (Arc::new(Local::new(bench.config.clone(), host.clone()).unwrap()), host)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

fn clone_of(id: &VolumeId) -> VolumeSpec {
    spec_from("c", Source::Volume(id.clone()))
}

async fn create(local: &Local, spec: VolumeSpec) -> Result<Volume> {
    local.prepare(spec)?.run(&Ctx::new()).await
}

async fn source(bench: &Bench) -> VolumeId {
    let id = bench.make("v").await.id;
    let file = std::fs::File::options().write(true).open(bench.root().join("v/disk.img")).unwrap();
    file.write_all_at(&vec![7; 1 << 20], 8 << 20).unwrap();
    id
}

/// While one copies, the other begins with the same volume, and goes on only when the first has published it.
#[tokio::test]
async fn what_one_driver_publishes_is_what_it_has_filled() {
    let bench = Bench::new();
    let id = source(&bench).await;
    let (other, host) = successor(&bench);
    let (began, begun) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    *host.while_quiet.lock().unwrap() = Some(Box::new(move || {
        began.send(()).unwrap();
        goes.recv().unwrap();
    }));
    let (wish, second) = (clone_of(&id), Mutex::new(None));
    let second = Arc::new(second);
    let started = second.clone();
    let once = AtomicBool::new(false);
    let begun = Mutex::new(begun);
    *bench.host.while_quiet.lock().unwrap() = Some(Box::new(move || {
        if !once.swap(true, Relaxed) {
            let (other, wish) = (other.clone(), wish.clone());
            *started.lock().unwrap() = Some(std::thread::spawn(move || block_on(create(&other, wish))));
            begun.lock().unwrap().recv().unwrap();
        }
    }));
    let first = bench.create(clone_of(&id)).await.unwrap();
    let published = std::fs::read(bench.root().join("c/disk.img")).unwrap();
    assert!(
        published == std::fs::read(bench.root().join("v/disk.img")).unwrap(),
        "half a copy was published"
    );
    go.send(()).unwrap();
    let second = second.lock().unwrap().take().unwrap().join().unwrap().unwrap();
    assert_eq!((first.id, first.capacity), (second.id, second.capacity));
    bench.assert_tidy();
}

#[tokio::test]
async fn two_drivers_that_take_one_snapshot_both_have_it() {
    let bench = Bench::new();
    let id = source(&bench).await;
    let (other, _) = successor(&bench);
    let wish = snapshot_spec("s", &id);
    let taken = Arc::new(Mutex::new(None));
    let second = taken.clone();
    *bench.host.while_quiet.lock().unwrap() = Some(Box::new(move || {
        let (other, wish) = (other.clone(), wish.clone());
        let thread = std::thread::spawn(move || block_on(other.snapshot(&Ctx::new(), wish)));
        *second.lock().unwrap() = Some(thread.join().unwrap().unwrap());
    }));
    let first = bench.snapshot("s", &id).await.unwrap();
    assert_eq!(taken.lock().unwrap().as_ref(), Some(&first));
    bench.assert_tidy();
}

#[tokio::test]
async fn recovery_removes_only_drafts_that_nobody_works_on() {
    let bench = Bench::new();
    let id = source(&bench).await;
    let left = bench.own("tmp/volume-x.6f2f6b0a-3a43-4c0e-9df1-0d3b3c1f7c55");
    std::fs::create_dir(&left).unwrap();
    let (other, _) = successor(&bench);
    let said = Arc::new(Mutex::new(Vec::new()));
    let (heard, tmp) = (said.clone(), bench.own("tmp"));
    *bench.host.while_quiet.lock().unwrap() = Some(Box::new(move || {
        heard.lock().unwrap().extend(other.recover().unwrap());
        assert_eq!(names(&tmp).len(), 1, "the draft that is being filled");
    }));
    bench.create(clone_of(&id)).await.unwrap();
    let said = said.lock().unwrap().join("\n");
    assert!(said.contains("removed the half made volume-x."), "{said}");
    bench.assert_tidy();
}

#[tokio::test]
async fn what_is_copied_is_not_attached_grown_or_deleted_by_another_process() {
    let bench = Bench::new();
    let id = source(&bench).await;
    let (other, _) = successor(&bench);
    let (data, ran) = (bench.root().join("v/disk.img"), Arc::new(AtomicBool::new(false)));
    let (volume, hook) = (id.clone(), ran.clone());
    *bench.host.while_quiet.lock().unwrap() = Some(Box::new(move || {
        let words = "by another process";
        refused(Lease::take(&Ctx::new(), &data, Sharing::Alone).map(drop), "unavailable", words);
        let (other, volume) = (other.clone(), volume.clone());
        std::thread::spawn(move || {
            block_on(async {
                refused(other.delete(&Ctx::new(), &volume).await, "unavailable", words);
                let grown = other.expand(&Ctx::new(), &volume, at_least(32 * MIB)).await;
                refused(grown, "unavailable", words);
            });
        })
        .join()
        .unwrap();
        hook.store(true, Relaxed);
    }));
    bench.snapshot("s", &id).await.unwrap();
    assert!(ran.load(Relaxed));
    *bench.host.while_quiet.lock().unwrap() = None;
    bench.delete(&id).await.unwrap();
}

/// Whoever writes without having asked for a lease: an older driver, a program.
#[tokio::test]
async fn a_copy_of_what_was_written_to_meanwhile_is_thrown_away() {
    let bench = Bench::new();
    let id = source(&bench).await;
    bench.host.written_while_copied.store(true, Relaxed);
    refused(bench.snapshot("s", &id).await, "unavailable", "the copy is thrown away");
    refused(bench.create(clone_of(&id)).await, "unavailable", "the copy is thrown away");
    let group = bench.local.snapshot_group(&Ctx::new(), group_spec("g", &[&id])).await;
    refused(group, "unavailable", "the copy is thrown away");
    assert!(names(&bench.own("snapshots")).is_empty() && !bench.root().join("c").exists());
    bench.assert_tidy();
    bench.host.written_while_copied.store(false, Relaxed);
    bench.snapshot("s", &id).await.unwrap();
}

#[tokio::test]
async fn a_group_that_another_driver_is_making_is_left_alone() {
    let bench = Bench::new();
    let id = source(&bench).await;
    let group = bench.local.snapshot_group(&Ctx::new(), group_spec("g", &[&id])).await.unwrap();
    // As between its record and its completion.
    let (complete, pending) = (bench.own("groups/g.json"), bench.own("groups/g.pending"));
    std::fs::rename(&complete, &pending).unwrap();
    let maker = std::fs::File::open(&pending).unwrap();
    maker.try_lock().unwrap();
    let (other, _) = successor(&bench);
    let wish = group_spec("g", &[&id]);
    refused(other.snapshot_group(&Ctx::new(), wish).await, "unavailable", "another process");
    std::fs::rename(&pending, &complete).unwrap();
    drop(maker);
    assert_eq!(other.get_group(&Ctx::new(), "default:g", &[]).await.unwrap(), group);
}
