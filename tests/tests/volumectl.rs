//! `volumectl` and `csi-driver` as a user has them: two programs and a socket.

#[path = "volumectl/bench.rs"]
mod bench;
#[path = "volumectl/binding.rs"]
mod binding;
#[path = "volumectl/interrupted.rs"]
mod interrupted;
#[path = "volumectl/run.rs"]
mod run;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use bench::Bench;
use e2e::drivers::binary;
use e2e::scratch::Scratch;
use serde_json::Value;

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
    ensure!(bench.ok(&["csi", "stats", "default:db", "--path", &target])?.contains("INODES"));
    ensure!(bench.ok(&["csi", "list"])?.contains("node-1"));
    let refused = bench.run(&["csi", "delete", "default:db"])?;
    ensure!(refused.status.code() == Some(3), "a volume in use: {:?}", refused.status);
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("FAILED_PRECONDITION"));
    bench.ok(&["csi", "snapshot", "create", "before", "db"])?;
    bench.ok(&["csi", "create", "copy", "--size", "64Mi", "--fs", "ext4", "--from-snapshot", "before"])?;
    bench.ok(&["csi", "group", "create", "both", "--volume", "db", "--volume", "default:copy"])?;
    ensure!(bench.json(&["csi", "snapshot", "list"])?.as_array().is_some_and(|s| s.len() == 3));
    bench.ok(&["csi", "group", "delete", "default:both"])?;
    bench.ok(&["csi", "unpublish", "default:db", "--target", &target])?;
    bench.ok(&["csi", "unstage", "default:db", "--staging", &staging])?;
    bench.ok(&["csi", "detach", "default:db"])?;
    ensure!(bench.json(&["csi", "expand", "default:db", "--size", "128Mi"])?["capacityBytes"] == 128 << 20);
    ensure!(bench.json(&["csi", "validate", "default:db", "--fs", "tapefs"])?["confirmed"] == false);
    ensure!(bench.json(&["csi", "capacity"])?["availableCapacity"].as_i64() > Some(0));
    ensure!(bench.json(&["csi", "get", "db"])?["volume"]["volumeId"] == "default:db", "by its name");
    bench.ok(&["csi", "delete", "db", "default:copy"])?;
    let nothing = bench.run(&["csi", "delete", "db"])?;
    ensure!(nothing.status.code() == Some(1), "a delete of nothing: {:?}", nothing.status);
    let said = String::from_utf8_lossy(&nothing.stderr).into_owned();
    ensure!(said.contains("there is no volume db") && said.contains("nothing was deleted"), "{said}");
    let left = bench.json(&["csi", "snap", "ls", "--volume", "default:db"])?;
    ensure!(left.as_array().is_some_and(|all| all.len() == 1), "{left}");
    ensure!(
        bench.json(&["csi", "snapshot", "get", "before"])?["snapshotId"] == "default:before",
        "by its name"
    );
    bench.ok(&["csi", "snapshot", "delete", "before"])?;
    for (noun, kind) in [("snapshot", "snapshot before"), ("group", "group before")] {
        let said = bench.fails(&["csi", noun, "delete", "before"], 1)?;
        ensure!(said.contains(&format!("there is no {kind}")), "{said}");
    }
    bench.nothing_left()
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
