//! What users of a volume may do while the driver works in it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A user of the volume exchanges a file for a link to a file outside of it, again and again, while owner, mode, size
/// and content are set: what is outside stays as it is.
#[test]
fn what_is_exchanged_for_a_link_leads_nowhere() {
    let scratch = tempfile::tempdir().unwrap();
    let (inside, outside) = (scratch.path().join("share"), scratch.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::write(&outside, "secret").unwrap();
    let before = fs::metadata(&outside).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (file, link) = (inside.join("file"), inside.join("link"));
            while !over.load(Ordering::Relaxed) {
                let _ = fs::write(inside.join("new"), "mine");
                let _ = fs::rename(inside.join("new"), &file);
                let _ = symlink(&outside, &link);
                let _ = fs::rename(&link, &file);
            }
        });
        let mut session = LocalSession::new(inside.clone());
        let fh = b"file".to_vec();
        for _ in 0..20_000 {
            let set = Set { mode: Some(0o6777), size: Some(0), ..Set::default() };
            let _ = session.set(&fh, &set);
            let _ = session.set(&fh, &Set { mtime: Some(Stamp::Now), mode: Some(0o4777), ..Set::default() });
            let _ = session.write(&fh, 0, b"overwritten");
            if let Ok((content, _)) = session.read(&fh, 0, 16) {
                assert_ne!(content, b"secret");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let after = fs::metadata(&outside).unwrap();
    assert_eq!((before.mode(), before.mtime(), before.len()), (after.mode(), after.mtime(), after.len()));
    assert_eq!(fs::read_to_string(&outside).unwrap(), "secret");
}

/// Files that a pod can put in the place of another do not keep the driver waiting.
#[test]
fn a_fifo_is_not_waited_for() {
    let scratch = tempfile::tempdir().unwrap();
    mknodat(CWD, scratch.path().join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut session = LocalSession::new(scratch.path().to_owned());
    assert!(session.read(&b"fifo".to_vec(), 0, 16).unwrap_err().is(Status::INVALID));
}
