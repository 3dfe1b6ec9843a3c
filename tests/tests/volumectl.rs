//! `volumectl` and `csi-driver` as a user has them: two programs and a socket.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use e2e::drivers::{Process, binary, local_config};
use e2e::scratch::Scratch;
use serde_json::Value;

struct Bench {
    driver: Process,
    scratch: Scratch,
}

impl Bench {
    async fn new(test: &str) -> Result<Option<Self>> {
        if !e2e::is_root(test) {
            return Ok(None);
        }
        let scratch = Scratch::new()?;
        let mut driver = Process::start(scratch.path(), &local_config(scratch.path(), ""))?;
        driver.clients().await?;
        Ok(Some(Self { driver, scratch }))
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary("volumectl")?);
        command.current_dir(self.scratch.path()).env("CSI_ENDPOINT", &self.driver.socket);
        Ok(command.args(args).output()?)
    }

    /// Runs it; it must succeed. Its standard output.
    fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {words}; driver: {}", self.driver.log_tail());
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())?)?)
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// Nothing of a test is left: no volume, snapshot, mount or device.
    fn nothing_left(&self) -> Result<()> {
        ensure!(self.json(&["csi", "list"])? == Value::Array(Vec::new()));
        ensure!(self.json(&["csi", "snapshot", "list"])? == Value::Array(Vec::new()));
        ensure!(self.scratch.mounts().is_empty(), "{:?}", self.scratch.mounts());
        ensure!(self.scratch.loops().is_empty(), "{:?}", self.scratch.loops());
        Ok(())
    }
}

#[tokio::test]
async fn a_volume_by_hand() -> Result<()> {
    let Some(bench) = Bench::new("a_volume_by_hand").await? else { return Ok(()) };
    let info = bench.json(&["csi", "info"])?;
    ensure!(info["name"] == "local.csi.volumectl.io" && info["nodeInfo"]["nodeId"] == "node-1", "{info}");
    ensure!(bench.json(&["csi", "probe"])?["ready"] == true);
    let made =
        bench.json(&["csi", "create", "db", "--size", "64Mi", "--fs", "ext4", "--param", "mode=0700"])?;
    ensure!(made["volumeId"] == "default:db" && made["capacityBytes"] == 64 << 20, "{made}");
    let (staging, target) = (bench.path("kubelet/staging"), bench.path("kubelet/target"));
    std::fs::create_dir_all(&staging)?;
    bench.ok(&["csi", "attach", "default:db"])?;
    bench.ok(&["csi", "stage", "default:db", "--staging", &staging, "--fs", "ext4"])?;
    bench.ok(&[
        "csi",
        "publish",
        "default:db",
        "--staging",
        &staging,
        "--target",
        &target,
        "--fs",
        "ext4",
    ])?;
    std::fs::write(Path::new(&target).join("row"), "1")?;
    ensure!(bench.ok(&["csi", "stats", "default:db", &target])?.contains("INODES"));
    ensure!(bench.ok(&["csi", "list"])?.contains("node-1"));
    let refused = bench.run(&["csi", "delete", "default:db"])?;
    ensure!(refused.status.code() == Some(3), "a volume in use: {:?}", refused.status);
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("FAILED_PRECONDITION"));
    bench.ok(&["csi", "snapshot", "create", "before", "db"])?;
    bench.ok(&[
        "csi",
        "create",
        "copy",
        "--size",
        "64Mi",
        "--fs",
        "ext4",
        "--from-snapshot",
        "default:before",
    ])?;
    bench.ok(&["csi", "group", "create", "both", "--volume", "db", "--volume", "default:copy"])?;
    ensure!(bench.json(&["csi", "snapshot", "list"])?.as_array().is_some_and(|s| s.len() == 3));
    bench.ok(&["csi", "group", "delete", "default:both"])?;
    bench.ok(&["csi", "unpublish", "default:db", "--target", &target])?;
    bench.ok(&["csi", "unstage", "default:db", "--staging", &staging])?;
    bench.ok(&["csi", "detach", "default:db"])?;
    ensure!(bench.json(&["csi", "expand", "default:db", "128Mi"])?["capacityBytes"] == 128 << 20);
    ensure!(bench.json(&["csi", "validate", "default:db", "--fs", "tapefs"])?["confirmed"] == false);
    ensure!(bench.json(&["csi", "capacity"])?["availableCapacity"].as_i64() > Some(0));
    ensure!(bench.json(&["csi", "get", "db"])?["volume"]["volumeId"] == "default:db", "by its name");
    bench.ok(&["csi", "delete", "db", "default:copy"])?;
    let nothing = bench.run(&["csi", "delete", "db"])?;
    ensure!(nothing.status.code() == Some(1), "a delete of nothing: {:?}", nothing.status);
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    ensure!(said.contains("there is no volume db") && said.contains("nothing was deleted"), "{said}");
    bench.ok(&["csi", "snapshot", "delete", "default:before"])?;
    bench.nothing_left()
}

/// As in a chart: classes, a database's claim, a snapshot of it, a claim restored from that, one cloned, one raw.
const MANIFESTS: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: fast
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: local.csi.volumectl.io
parameters:
  csi.storage.k8s.io/fstype: ext4
  nameTemplate: ${pvc.namespace}-${pvc.name}-${pvc.labels.tier}
mountOptions: [noatime]
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: restored, namespace: shop, labels: {tier: data}}
spec:
  accessModes: [ReadWriteOncePod]
  resources: {requests: {storage: 64Mi}}
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: nightly}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: db, namespace: shop, labels: {tier: data}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: fast
  resources: {requests: {storage: SIZE}}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: nightly, namespace: shop}
spec: {source: {persistentVolumeClaimName: db}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw, namespace: shop, labels: {tier: raw}}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  resources: {requests: {storage: 8Mi}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
"#;

#[tokio::test]
async fn manifests_are_run_and_taken_back() -> Result<()> {
    let Some(bench) = Bench::new("manifests_are_run_and_taken_back").await? else { return Ok(()) };
    let (file, mounts) = (bench.path("shop.yaml"), bench.path("mnt"));
    std::fs::write(&file, MANIFESTS.replace("SIZE", "64Mi"))?;
    let run = ["csi", "run", "-f", &file, "--mount-dir", &mounts];
    for _ in 0..2 {
        let claims = bench.json(&run)?;
        ensure!(claims.as_array().is_some_and(|c| c.len() == 3), "{claims}");
        ensure!(claims[1]["claim"] == "shop/db" && claims[1]["usedAs"] == "ext4", "{claims}");
    }
    ensure!(
        bench.scratch.path().join("volumes/shop-db-data/disk.img").exists(),
        "the volume has the chosen name"
    );
    std::fs::write(bench.path("mnt/shop/db/row"), "1")?;
    ensure!(bench.scratch.path().join("mnt/shop/restored").is_dir());

    // The claim grows, as `kubectl edit pvc` does it: offline here, because a mounted ext4 may not grow.
    std::fs::write(&file, MANIFESTS.replace("SIZE", "128Mi"))?;
    if e2e::can_grow_ext4_online().is_ok() {
        ensure!(bench.json(&run)?[1]["capacityBytes"] == 128 << 20);
    } else {
        let output = bench.run(&run)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && words.contains("CAP_SYS_RESOURCE"), "{words}");
        ensure!(words.contains("csi undo"), "it says how to go on: {words}");
    }
    bench.ok(&["csi", "undo", "-f", &file, "--mount-dir", &mounts])?;
    ensure!(!Path::new(&mounts).exists(), "nothing of the mounts is left");
    bench.nothing_left()?;

    std::fs::write(&file, MANIFESTS.replace("SIZE", "64Mi"))?;
    bench.ok(&[&run[..], &["--then", "delete"]].concat())?;
    bench.nothing_left()
}

#[tokio::test]
async fn a_retained_volume_is_kept_and_a_wrong_file_changes_nothing() -> Result<()> {
    let Some(bench) = Bench::new("a_retained_volume_is_kept").await? else { return Ok(()) };
    let (file, mounts) = (bench.path("keep.yaml"), bench.path("mnt"));
    let class = "kind: StorageClass\nmetadata: {name: keep}\nprovisioner: local.csi.volumectl.io\nreclaimPolicy: Retain\nparameters: {type: directory}\n";
    let claim = "---\nkind: PersistentVolumeClaim\nmetadata: {name: a}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";
    std::fs::write(&file, format!("{class}{claim}"))?;
    let run = ["csi", "run", "-f", &file, "--mount-dir", &mounts, "--then", "delete"];
    bench.ok(&run)?;
    let kept = bench.json(&["csi", "list"])?;
    ensure!(kept.as_array().is_some_and(|v| v.len() == 1), "{kept}");
    bench.ok(&[&run[..], &["--force-delete"]].concat())?;
    bench.nothing_left()?;

    for (wrong, word) in [
        (format!("{class}{}", claim.replace("1Gi", "lots")), "resources.requests.storage"),
        (
            format!("{}{claim}", class.replace("local.csi.volumectl.io", "other.example.org")),
            "other.example.org",
        ),
        (format!("{}{claim}", class.replace("type: directory", "typ: directory")), "type"),
        ("kind: [".to_owned(), "keep.yaml"),
    ] {
        std::fs::write(&file, wrong)?;
        let output = bench.run(&run)?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && words.contains(word), "{word:?} is not in: {words}");
        bench.nothing_left()?;
    }
    Ok(())
}

#[tokio::test]
async fn load_is_measured_and_cleaned_up() -> Result<()> {
    let Some(bench) = Bench::new("load_is_measured_and_cleaned_up").await? else { return Ok(()) };
    let json = bench.path("load.json");
    for ops in ["create-delete", "create-snapshot-delete", "stage-publish"] {
        let dir = bench.path("load");
        let args = ["csi", "load", "--ops", ops, "--volumes", "6", "--concurrency", "3", "--duration", "20"];
        let more = ["--warmup", "0", "--size", "24Mi", "--fs", "ext4", "--dir", &dir, "--json", &json];
        let report: Value = bench.json(&[&args[..], &more].concat())?;
        ensure!(report["rounds"] == 6 && report["left"] == Value::Array(Vec::new()), "{report}");
        let rpcs = report["rpcs"].as_array().map_or(0, Vec::len);
        ensure!(
            rpcs == [2, 4, 6][usize::from(ops != "create-delete") + usize::from(ops == "stage-publish")],
            "{report}"
        );
        ensure!(serde_json::from_slice::<Value>(&std::fs::read(&json)?)? == report);
        bench.nothing_left()?;
    }
    let failing =
        bench.run(&["csi", "load", "--volumes", "2", "--warmup", "0", "--param", "nope=1", "-o", "json"])?;
    ensure!(failing.status.code() == Some(1));
    let report: Value = serde_json::from_slice(&failing.stdout)?;
    ensure!(report["rpcs"][0]["errors"]["INVALID_ARGUMENT"] == 2, "{report}");
    bench.nothing_left()
}

#[tokio::test]
async fn an_interrupted_load_cleans_up() -> Result<()> {
    let Some(bench) = Bench::new("an_interrupted_load_cleans_up").await? else { return Ok(()) };
    let mut load = Command::new(binary("volumectl")?)
        .args(["csi", "load", "--duration", "60", "--size", "1Mi", "--block", "-o", "json"])
        .env("CSI_ENDPOINT", &bench.driver.socket)
        .current_dir(bench.scratch.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    while bench.json(&["csi", "list"])? == Value::Array(Vec::new()) {
        ensure!(load.try_wait()?.is_none(), "the load ended by itself");
    }
    let pid = rustix::process::Pid::from_child(&load);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    ensure!(load.wait()?.success(), "a load that was told to stop is no failure");
    bench.nothing_left()
}

#[tokio::test]
async fn the_demo_runs() -> Result<()> {
    let test = "the_demo_runs";
    if !e2e::is_root(test) || !e2e::has_program(test, "mkfs.xfs") {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let dir = scratch.path().join("demo");
    let output = Command::new(binary("volumectl")?)
        .args(["demo", "--write", "24", "-o", "json", "--dir"])
        .arg(&dir)
        .output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words}");
    let rows: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(rows.as_array().is_some_and(|rows| rows.len() == 14), "{rows}");
    ensure!(Scratch::tree(&dir).is_empty(), "left: {:?}", Scratch::tree(&dir));
    Ok(())
}
