//! Helpers that hang, and mounts that are counted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use provisioners::reaper;

use super::super::runner::tests::Ice;
use super::child::{How, Task, Trouble};
use super::helper::Helper;
use super::*;

/// A helper whose every task runs a script.
fn scripted(dir: &Path, script: &str) -> Helper {
    let program = dir.join("helper");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Helper::new(program)
}

#[test]
fn a_helper_that_hangs_is_killed_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let helper = scripted(dir.path(), "exec sleep 600");
    let begun = Instant::now();
    let task = Task::Look { path: "/nowhere".into() };
    let trouble = helper.run_for(&task, Duration::from_millis(200)).unwrap_err();
    assert!(matches!(trouble, Trouble::Slow(_)), "{trouble}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let error = trouble.told("looking");
    assert_eq!(error.label(), "unavailable");
    assert!(error.to_string().contains("did not answer"), "{error}");
}

/// Of helpers that hang in the kernel where no signal reaches them only so many are left for one task at one place; other
/// places are not kept waiting by that.
#[test]
fn f22_helpers_that_cannot_be_killed_are_bounded_by_what_they_hang_at() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skip: f22_helpers_that_cannot_be_killed: needs root for a mount");
        return;
    }
    let (dir, ice, begun) = (tempfile::tempdir().unwrap(), Ice::new(), Instant::now());
    let script = format!("case $(cat) in *dead*) echo x > {}/file;; *) exit 1;; esac", ice.on().display());
    let helper = scripted(dir.path(), &script);
    let (dead, good) = (Task::Look { path: "/dead".into() }, Task::Look { path: "/good".into() });
    let name = "the helper that looks at /dead";
    while reaper::left(name) < reaper::MOST {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} are left", reaper::left(name));
        let running = helper.start_task(&dead).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        drop(running);
    }
    let refused = helper.run(&dead).unwrap_err().to_string();
    assert!(refused.contains(name) && refused.contains("16 of it"), "{refused}");
    let other = helper.run(&good).unwrap_err().to_string();
    assert!(other.contains("without an answer"), "{other}");
    drop(ice);
    while reaper::left(name) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "they were not reaped");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_helper_that_dies_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let helper = scripted(dir.path(), "exit 1");
    let trouble = helper.run(&Task::Look { path: "/nowhere".into() }).unwrap_err();
    assert!(trouble.to_string().contains("without an answer"), "{trouble}");
}

#[test]
fn a_bind_is_unmounted_plainly_or_lazily_and_never_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    // Only the last rung helps.
    let script = format!(
        "task=$(cat); echo \"$task\" >> {}; case $task in *Lazy*) echo '{{\"Ok\":{{\"total\":0,\"free\":0,\"available\":0,\"files\":0,\"files_free\":0}}}}';; *) echo '{{\"Err\":{{\"Errno\":5}}}}';; esac",
        log.display()
    );
    scripted(dir.path(), &script).ladder(Path::new("/mnt/dead")).unwrap();
    let tasks = fs::read_to_string(log).unwrap();
    let rungs: Vec<_> = tasks.lines().collect();
    for (rung, how) in rungs.iter().zip([How::Plain, How::Lazy]) {
        assert!(rung.contains(&format!("{how:?}")), "{rungs:?}");
    }
    assert_eq!(rungs.len(), 2);
}

#[test]
fn a_busy_mount_of_a_server_that_answers_is_not_forced() {
    let dir = tempfile::tempdir().unwrap();
    let script = "case $(cat) in *Unmount*) echo '{\"Err\":{\"Errno\":16}}';; *) echo '{\"Ok\":{\"total\":0,\"free\":0,\"available\":0,\"files\":0,\"files_free\":0}}';; esac";
    let error = scripted(dir.path(), script).ladder(Path::new("/mnt/busy")).unwrap_err();
    assert_eq!(error.label(), "refused");
}

#[test]
fn what_a_dead_server_hides_is_told_in_the_condition() {
    let dir = tempfile::tempdir().unwrap();
    for (script, words) in [
        ("echo '{\"Err\":{\"Errno\":116}}'", "stale file handle"),
        ("echo '{\"Err\":{\"Slow\":{\"secs\":20,\"nanos\":0}}}'", "not answered"),
    ] {
        let helper = scripted(dir.path(), script);
        let nfs = Nfs { helper, ..Nfs::new(dir.path(), "/nowhere".into()) };
        let stats = nfs.stats(Path::new("/mnt/gone")).unwrap();
        assert!(stats.condition.abnormal && stats.condition.message.contains(words), "{:?}", stats.condition);
    }
}

#[test]
fn a_share_has_one_mount_for_each_set_of_options() {
    let nfs = Nfs::new(Path::new("/var/lib/kubelet"), "/nowhere".into());
    let volume = |dir: &str, options: &[&str]| NfsMount {
        server: "nas".into(),
        share: "/srv".into(),
        dir: dir.into(),
        options: options.iter().map(ToString::to_string).collect(),
        force: false,
        local: None,
    };
    let flags = |flags: &[&str]| flags.iter().map(ToString::to_string).collect::<Vec<_>>();
    let one = nfs.base(&volume("a", &["hard", "vers=4.1"]), &flags(&["noatime"]));
    assert_eq!(one, nfs.base(&volume("b", &["vers=4.1"]), &flags(&["noatime,hard"])));
    assert_ne!(one, nfs.base(&volume("a", &["hard", "vers=4.1"]), &flags(&[])));
    assert_ne!(one, nfs.base(&volume("a", &["hard", "vers=4.1", "context=x"]), &flags(&["noatime"])));
}

/// Staging waits for what another call does with the same share's mount, and for nothing that is done with another.
#[test]
fn a_share_that_hangs_keeps_no_other_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let nfs = Nfs::new(dir.path(), "/nowhere".into());
    let (one, other) = (nfs.home.join("one"), nfs.home.join("other"));
    let held = nfs.lock(&Ctx::new(), &one).unwrap();
    nfs.lock(&Ctx::new(), &other).unwrap();
    let over = Ctx::with_limit(Duration::from_millis(100));
    assert_eq!(nfs.lock(&over, &one).unwrap_err().label(), "deadline");
    drop(held);
    nfs.lock(&Ctx::new(), &one).unwrap();
}

/// Without room for a lock of its own a share is unstaged all the same.
#[test]
fn without_room_for_a_lock_all_shares_share_one() {
    let dir = tempfile::tempdir().unwrap();
    let nfs = Nfs::new(dir.path(), "/nowhere".into());
    fs::create_dir_all(&nfs.home).unwrap();
    fs::write(&nfs.locks, "no directory can be made here").unwrap();
    let held = nfs.lock(&Ctx::new(), &nfs.home.join("one")).unwrap();
    let over = Ctx::with_limit(Duration::from_millis(100));
    assert_eq!(nfs.lock(&over, &nfs.home.join("other")).unwrap_err().label(), "deadline");
    drop(held);
}

#[test]
fn the_version_of_the_call_counts_and_two_are_refused() {
    let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        joined(&texts(&["nfsvers=4.1,hard"]), &texts(&["vers=3", "nolock"])),
        ["hard", "vers=3", "nolock"]
    );
    assert_eq!(joined(&texts(&["nfsvers=4.1,hard"]), &texts(&["soft"])), ["nfsvers=4.1", "hard", "soft"]);
    assert!(one_version(&texts(&["vers=4.1", "nfsvers=4.1"])).is_ok());
    let problem = one_version(&texts(&["vers=4.1,hard", "nfsvers=3"])).unwrap_err().to_string();
    assert!(problem.contains("vers=4.1") && problem.contains("nfsvers=3"), "{problem}");
}
