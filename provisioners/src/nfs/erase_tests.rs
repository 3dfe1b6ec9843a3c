//! DeleteVolume that waits until all is removed (`onDeleteFailure: fail`): what it says while something stays, and of
//! several drivers. What a server does not let a client remove is in tests/tests/nfs/removal.rs.

use std::fs;
use std::path::Path;

use super::tests::{Death, create, delete, spec, store};
use crate::{Ctx, Result, VolumeId};

const FAIL: (&str, &str) = ("onDeleteFailure", "fail");

/// A volume with directories in directories.
fn volume(dir: &Path, files: u32) {
    create(&store(dir, None), spec("v", &[FAIL], None)).unwrap();
    for i in 0..files {
        let inner = dir.join(format!("v/d{}/e/f", i % 5));
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join(i.to_string()), "x").unwrap();
    }
}

fn trash(dir: &Path) -> usize {
    fs::read_dir(dir.join(".volumectl/trash")).unwrap().count()
}

/// Two that remove one tree at the same time: each takes what the other leaves, and answers when all is gone.
#[test]
fn two_drivers_that_delete_one_volume_both_answer_when_it_is_gone() {
    for _ in 0..5 {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        volume(dir, 80);
        let work = || loop {
            match delete(&store(dir, None), "main:v") {
                Err(error) if error.label() == "unavailable" => {}
                other => {
                    assert_eq!(trash(dir), 0, "{other:?}");
                    return other;
                }
            }
        };
        let answers: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads = [scope.spawn(work), scope.spawn(work)];
            threads.map(|thread| thread.join().unwrap()).into()
        });
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert!(!dir.join("v").exists() && !dir.join(".volumectl/volumes/v.json").exists());
    }
}

/// Another driver deletes it between any two calls of this one.
#[test]
fn a_deletion_that_another_driver_has_done_meanwhile_is_done() {
    let mut calls = 0;
    loop {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().to_path_buf();
        volume(&dir, 3);
        let other = dir.clone();
        let death = Death::meanwhile(calls, move || delete(&store(&other, None), "main:v").unwrap());
        let mut answer = delete(&store(&dir, Some(death.clone())), "main:v");
        if answer.as_ref().is_err_and(|error| error.label() == "unavailable") {
            answer = delete(&store(&dir, None), "main:v");
        }
        assert!(answer.is_ok(), "call {calls}: {answer:?}");
        assert_eq!((trash(&dir), dir.join("v").exists()), (0, false), "call {calls}");
        if !death.is_dead() {
            break;
        }
        calls += 1;
    }
    assert!(calls > 20, "{calls} calls only");
}

/// The call's deadline ends the wait and not the removal; the next call waits for the same, and the volume is a volume
/// until then.
#[test]
fn a_deadline_ends_the_wait_and_a_repeat_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    volume(dir, 200);
    let driver = store(dir, None);
    let limit = Ctx::with_limit(std::time::Duration::from_millis(1));
    std::thread::sleep(std::time::Duration::from_millis(5));
    let error = driver.delete(&limit, &VolumeId("main:v".into())).unwrap_err();
    assert_eq!(error.label(), "deadline", "{error}");
    assert!(dir.join(".volumectl/volumes/v.json").exists());
    delete(&driver, "main:v").unwrap();
    assert_eq!(trash(dir), 0);
    assert!(!dir.join(".volumectl/volumes/v.json").exists() && driver.removals.pending() == 0);
}
