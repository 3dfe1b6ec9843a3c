//! Runs that are refused, killed, repeated, and at the same time.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::bench::Bench;

const FILE: &str = "
kind: StorageClass
metadata: {name: fast}
provisioner: local.csi.volumectl.io
parameters: {csi.storage.k8s.io/fstype: ext4}
---
kind: PersistentVolumeClaim
metadata: {name: db}
spec: {storageClassName: fast, accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: nightly}
spec: {source: {persistentVolumeClaimName: db}}
---
kind: PersistentVolumeClaim
metadata: {name: copy}
spec:
  storageClassName: fast
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 32Mi}}
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: nightly}
";

struct Case {
    bench: Bench,
    file: String,
    mounts: String,
}

impl Case {
    async fn new(test: &str) -> Result<Option<Self>> {
        let Some(bench) = Bench::new(test).await? else { return Ok(None) };
        let (file, mounts) = (bench.path("a b.yaml"), bench.path("mnt"));
        std::fs::write(&file, FILE)?;
        Ok(Some(Self { bench, file, mounts }))
    }

    fn args<'a>(&'a self, verb: &'a str) -> [&'a str; 6] {
        ["csi", verb, "-f", &self.file, "--mount-dir", &self.mounts]
    }

    fn undone(&self) -> Result<()> {
        self.bench.ok(&self.args("undo"))?;
        // Empty it may be: who was killed at once has made it, and nothing else.
        let left: Vec<_> = std::fs::read_dir(&self.mounts).into_iter().flatten().flatten().collect();
        ensure!(left.is_empty(), "left: {left:?}");
        self.bench.nothing_left()
    }
}

/// At each point, from its start to its end; what is there is found by the next run, or taken back.
#[tokio::test]
async fn a_run_that_is_killed_is_continued_or_taken_back() -> Result<()> {
    let Some(case) = Case::new("a_run_that_is_killed_is_continued_or_taken_back").await? else {
        return Ok(());
    };
    let begun = Instant::now();
    case.bench.ok(&case.args("run"))?;
    let whole = begun.elapsed();
    case.undone()?;
    for round in 0..12_u32 {
        let mut run = case.bench.spawn(&case.args("run"))?;
        std::thread::sleep(whole * round / 12);
        run.kill()?;
        run.wait()?;
        if round % 2 == 0 {
            let claims = case.bench.json(&case.args("run"))?;
            ensure!(claims.as_array().is_some_and(|claims| claims.len() == 2), "{round}: {claims}");
            ensure!(case.bench.json(&["csi", "snapshot", "list"])?.as_array().map(Vec::len) == Some(1));
        }
        case.undone()?;
    }
    Ok(())
}

/// As a run leaves it that was killed while the driver made the volume, or the snapshot.
#[tokio::test]
async fn what_was_begun_and_not_answered_is_taken_back() -> Result<()> {
    let Some(case) = Case::new("what_was_begun_and_not_answered_is_taken_back").await? else { return Ok(()) };
    case.bench.ok(&case.args("run"))?;
    for (kind, key) in [("snapshot-", ""), ("claim-", "volumeId")] {
        for entry in std::fs::read_dir(Path::new(&case.mounts).join(".volumectl"))?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(kind) {
                continue;
            }
            let mut note: Value = serde_json::from_slice(&std::fs::read(entry.path())?)?;
            // Mounted is it only after it was answered.
            if key.is_empty() {
                note = "".into();
            } else if note["claim"] == "default/copy" {
                case.bench.ok(&[
                    "csi",
                    "unpublish",
                    "--target",
                    note["target"].as_str().unwrap_or(""),
                    note["volumeId"].as_str().unwrap_or(""),
                ])?;
                case.bench.ok(&[
                    "csi",
                    "unstage",
                    "--staging",
                    note["staging"].as_str().unwrap_or(""),
                    note["volumeId"].as_str().unwrap_or(""),
                ])?;
                case.bench.ok(&["csi", "detach", note["volumeId"].as_str().unwrap_or("")])?;
                note =
                    serde_json::json!({"claim": "default/copy", "driver": note["driver"], "class": "fast"});
            }
            std::fs::write(entry.path(), serde_json::to_vec(&note)?)?;
        }
    }
    case.undone()
}

#[tokio::test]
async fn a_refused_create_leaves_nothing_and_undo_can_be_repeated() -> Result<()> {
    let Some(case) = Case::new("a_refused_create_leaves_nothing").await? else { return Ok(()) };
    // The first claim is made, then the driver refuses the second.
    let wrong = "---\nkind: StorageClass\nmetadata: {name: odd}\nprovisioner: local.csi.volumectl.io\nparameters: {nope: a}\n";
    let odd = FILE.replacen(
        "metadata: {name: copy}\nspec:\n  storageClassName: fast",
        "metadata: {name: copy}\nspec:\n  storageClassName: odd",
        1,
    );
    std::fs::write(&case.file, format!("{odd}{wrong}"))?;
    let words = case.bench.fails(&case.args("run"), 1)?;
    ensure!(words.contains("claim default/copy") && words.contains("nope"), "{words}");
    ensure!(words.matches("INVALID_ARGUMENT").count() == 1, "said once: {words}");
    ensure!(words.contains("undo -f '") && words.contains("a b.yaml' --mount-dir"), "can be pasted: {words}");
    case.undone()?;
    let output = case.bench.run(&case.args("undo"))?;
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.success() && words.contains("nothing to take back"), "{words}");
    Ok(())
}

/// The lock is a process's that is at work: who comes second waits, and says for whom.
#[tokio::test]
async fn one_at_a_time_works_in_a_directory() -> Result<()> {
    let Some(case) = Case::new("one_at_a_time_works_in_a_directory").await? else { return Ok(()) };
    let dir = Path::new(&case.mounts).join(".volumectl");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("lock"), "4711\n")?;
    let held = std::fs::File::open(dir.join("lock"))?;
    flock(&held, FlockOperation::LockExclusive)?;
    for verb in ["run", "undo"] {
        let words = case.bench.fails(&[&case.args(verb)[..], &["--timeout", "1"]].concat(), 4)?;
        ensure!(words.contains("process 4711") && words.contains("nothing was changed"), "{words}");
        case.bench.nothing_left()?;
    }
    drop(held);
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(case.bench.spawn(&case.args("run"))?);
    }
    for mut run in runs {
        ensure!(run.wait()?.success(), "each waits for its turn");
    }
    ensure!(case.bench.json(&["csi", "list"])?.as_array().map(Vec::len) == Some(2));
    case.undone()
}

#[tokio::test]
async fn an_undo_waits_for_the_run() -> Result<()> {
    let Some(case) = Case::new("an_undo_waits_for_the_run").await? else { return Ok(()) };
    let mut run = case.bench.spawn(&case.args("run"))?;
    let noted = || {
        let notes =
            std::fs::read_dir(Path::new(&case.mounts).join(".volumectl")).into_iter().flatten().flatten();
        notes.into_iter().any(|it| it.file_name().to_string_lossy().starts_with("claim-"))
    };
    while !noted() {
        ensure!(run.try_wait()?.is_none(), "it has ended already");
        std::thread::sleep(Duration::from_millis(1));
    }
    case.undone()?;
    ensure!(run.wait()?.success(), "it was let end");
    case.bench.nothing_left()
}
