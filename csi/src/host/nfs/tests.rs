//! Helpers that hang, and mounts that are counted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

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

#[test]
fn a_helper_that_dies_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let helper = scripted(dir.path(), "exit 1");
    let trouble = helper.run(&Task::Look { path: "/nowhere".into() }).unwrap_err();
    assert!(trouble.to_string().contains("without an answer"), "{trouble}");
}

#[test]
fn unmounting_climbs_from_plain_over_forced_to_lazy() {
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
    for (rung, how) in rungs.iter().zip([How::Plain, How::Force, How::Lazy]) {
        assert!(rung.contains(&format!("{how:?}")), "{rungs:?}");
    }
    assert_eq!(rungs.len(), 3);
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
        let nfs = Nfs { home: dir.path().into(), helper, stats: Arc::default() };
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
        local: None,
    };
    let flags = |flags: &[&str]| flags.iter().map(ToString::to_string).collect::<Vec<_>>();
    let one = nfs.base(&volume("a", &["hard", "vers=4.1"]), &flags(&["noatime"]));
    assert_eq!(one, nfs.base(&volume("b", &["vers=4.1"]), &flags(&["noatime,hard"])));
    assert_ne!(one, nfs.base(&volume("a", &["hard", "vers=4.1"]), &flags(&[])));
    assert_ne!(one, nfs.base(&volume("a", &["hard", "vers=4.1", "context=x"]), &flags(&["noatime"])));
}
