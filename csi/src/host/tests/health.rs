//! What is told of file systems that have come to harm.

use super::*;
use crate::host::stats::stats;

fn has(program: &str) -> bool {
    let found =
        ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if !found {
        eprintln!("skip: {program} is not installed");
    }
    found
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn errors_that_ext4_has_counted_are_told() {
    let Some(mut bench) = Bench::new(64 * MIB) else { return };
    if !has("debugfs") {
        return;
    }
    bench.stage("ext4").unwrap();
    assert!(!stats(&bench.path("staging")).unwrap().condition.abnormal);
    bench.unstage().unwrap();
    let image = bench.backing().to_owned();
    run("debugfs", &["-w", "-R", "set_super_value error_count 3", image.to_str().unwrap()]);
    bench.volume.formatted = Some("ext4".into());
    bench.stage("ext4").unwrap();
    let told = stats(&bench.path("staging")).unwrap().condition;
    assert!(told.abnormal && told.message.contains("3 errors"), "{told:?}");
    bench.unstage().unwrap();
}

#[test]
fn an_xfs_that_was_shut_down_has_statistics_that_say_so() {
    let Some(bench) = Bench::new(320 * MIB) else { return };
    if !has("xfs_io") || !has("mkfs.xfs") {
        return;
    }
    bench.stage("xfs").unwrap();
    let staging = bench.path("staging");
    run("xfs_io", &["-x", "-c", "shutdown", staging.to_str().unwrap()]);
    let told = stats(&staging).unwrap().condition;
    assert!(told.abnormal && told.message.contains("shut the file system down"), "{told:?}");
    bench.unstage().unwrap();
}
