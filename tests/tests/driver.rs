//! The program `csi-driver`: its exit codes, its start and its end, its pages, its logs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::drivers::{Process, binary, local_config};
use e2e::pages::{free_port, get, get_until};
use e2e::requests as ask;
use e2e::scratch::Scratch;

fn driver(args: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("csi-driver")?).args(args).output()?)
}

fn config(scratch: &Scratch, text: &str) -> Result<String> {
    let file = scratch.path().join("config.yaml");
    fs::write(&file, text)?;
    Ok(file.display().to_string())
}

#[test]
fn a_bad_configuration_is_exit_code_64_with_file_line_and_key() -> Result<()> {
    let scratch = Scratch::new()?;
    let good = local_config(scratch.path(), "");
    for (text, words) in [
        (good.replace("nodeId", "nodeID"), &[":1:1: ", "nodeID"][..]),
        (
            good.replace("shutdownGraceSeconds: 5", "shutdownGraceSeconds: soon"),
            &[":6:", "shutdownGraceSeconds: "],
        ),
        (good.replace("roots:", "# roots:"), &["backends[0].roots"]),
        (good.replace("{default:", "{Not_Good:"), &["backends[0]", "Not_Good"]),
        (format!("{good}    reserve: much\n"), &["backends[0]", "reserve", "much"]),
    ] {
        let file = config(&scratch, &text)?;
        let output = driver(&["--config", &file])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(64), "{:?}: {said}", output.status);
        for word in words {
            ensure!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
    let missing = driver(&["--config", "/nonexistent.yaml"])?;
    ensure!(
        missing.status.code() == Some(64)
            && String::from_utf8_lossy(&missing.stderr).contains("/nonexistent.yaml")
    );
    ensure!(driver(&["--config", "/x", "--log", "info,x=loud"])?.status.code() == Some(64));
    Ok(())
}

#[test]
fn what_print_config_prints_is_a_configuration() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = config(&scratch, &local_config(scratch.path(), ""))?;
    let first = driver(&["--config", &file, "--print-config"])?;
    ensure!(first.status.success());
    let text = String::from_utf8(first.stdout)?;
    ensure!(
        text.contains("maxConcurrentOperations: 64") && text.contains("local.csi.volumectl.io"),
        "{text}"
    );
    let file = config(&scratch, &text)?;
    ensure!(String::from_utf8(driver(&["--config", &file, "--print-config"])?.stdout)? == text);
    ensure!(!scratch.path().join("volumes").exists(), "nothing was made");
    Ok(())
}

#[test]
fn check_says_whether_each_backend_is_ready() -> Result<()> {
    let scratch = Scratch::new()?;
    let file = config(&scratch, &local_config(scratch.path(), ""))?;
    let good = driver(&["--config", &file, "--mode", "controller", "--check"])?;
    ensure!(good.status.success(), "{}", String::from_utf8_lossy(&good.stdout));
    ensure!(!scratch.path().join("volumes").exists(), "something was made");
    // What a driver that starts clears up: this one only looks.
    let left = scratch.path().join("volumes/.volumectl");
    for dir in ["index", "tmp", "trash/left", "snapshots", "groups"] {
        fs::create_dir_all(left.join(dir))?;
    }
    for mode in ["controller", "all"] {
        let looked = driver(&["--config", &file, "--mode", mode, "--check"])?;
        ensure!(looked.status.success(), "{}", String::from_utf8_lossy(&looked.stdout));
        ensure!(left.join("trash/left").exists(), "--check has cleared up");
    }
    let blocked = scratch.path().join("in-the-way");
    fs::write(&blocked, "a file")?;
    let text = local_config(scratch.path(), "").replace("/volumes}", "/in-the-way}");
    let bad = driver(&["--config", &config(&scratch, &text)?, "--mode", "controller", "--check"])?;
    let said = String::from_utf8_lossy(&bad.stdout).into_owned();
    ensure!(bad.status.code() == Some(1) && said.contains("in-the-way"), "{:?}: {said}", bad.status);
    Ok(())
}

#[tokio::test]
async fn it_serves_until_sigterm_and_shows_what_it_did() -> Result<()> {
    let (scratch, port) = (Scratch::new()?, free_port()?);
    let text = format!("httpAddress: 127.0.0.1:{port}\n{}", local_config(scratch.path(), ""));
    let mut process = Process::start(scratch.path(), &text)?;
    let mut clients = process.clients().await?;
    let mode = fs::metadata(&process.socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the socket has mode {mode:o}");

    let secret = [("userKey".to_owned(), "TOP-S3CRET".to_owned())];
    let mut request = ask::create("db", 1 << 20, ask::block());
    request.secrets = secret.clone().into();
    let id = clients
        .controller
        .create_volume(request.clone())
        .await?
        .into_inner()
        .volume
        .unwrap_or_default()
        .volume_id;
    request.capacity_range = ask::at_least(1 << 40);
    ensure!(clients.controller.create_volume(request).await.is_err());
    clients
        .controller
        .delete_volume(pb::DeleteVolumeRequest { volume_id: id, secrets: secret.into() })
        .await?;

    let metrics = get(port, "/metrics")?;
    let counted =
        r#"volumectl_csi_requests_total{backend="local.csi.volumectl.io",method="CreateVolume",code="OK"} 1"#;
    ensure!(metrics.contains(counted), "{metrics}");
    ensure!(
        metrics.contains("request_duration_seconds_bucket")
            && metrics.contains("oldest_in_flight_age_seconds")
    );
    ensure!(
        get(port, "/healthz")?.starts_with("HTTP/1.1 200")
            && get(port, "/readyz")?.starts_with("HTTP/1.1 200")
    );

    drop(clients);
    ensure!(process.terminate()? == Some(0), "{}", process.log_tail());
    ensure!(!process.socket.exists(), "the socket is removed");
    let log = process.log_tail();
    ensure!(
        log.contains("CreateVolume") && log.contains("request_id") && log.contains("duration_ms"),
        "{log}"
    );
    ensure!(!log.contains("TOP-S3CRET") && !metrics.contains("TOP-S3CRET"), "a secret was written down");
    Ok(())
}

/// What is wrong, with paths and addresses, is told on this machine; elsewhere only that something is.
#[test]
fn e21_details_are_for_this_machine_alone() -> Result<()> {
    for (address, told) in [("127.0.0.1", true), ("0.0.0.0", false)] {
        let (scratch, port) = (Scratch::new()?, free_port()?);
        fs::write(scratch.path().join("in-the-way"), "a file")?;
        let text = local_config(scratch.path(), "").replace("/volumes}", "/in-the-way}");
        let process = Process::start(scratch.path(), &format!("httpAddress: {address}:{port}\n{text}"))?;
        let begun = std::time::Instant::now();
        let mut page = String::new();
        while !page.contains("local.csi.volumectl.io: not ready") {
            ensure!(begun.elapsed().as_secs() < 60, "{page}: {}", process.log_tail());
            page = get(port, "/readyz").unwrap_or_default();
        }
        ensure!(page.starts_with("HTTP/1.1 503") && page.contains("in-the-way") == told, "{address}: {page}");
        let one = get(port, "/readyz/local.csi.volumectl.io")?;
        ensure!(one.starts_with("HTTP/1.1 503") && one.contains("in-the-way") == told, "{address}: {one}");
        ensure!(get(port, "/readyz/other")?.starts_with("HTTP/1.1 404"));
    }
    Ok(())
}

/// A root that cannot be used beside one that can: the driver is ready, and says which one it is; when none can be used, it
/// is not ready.
#[tokio::test]
async fn b11_a_dead_root_beside_a_good_one_is_named() -> Result<()> {
    let (scratch, port) = (Scratch::new()?, free_port()?);
    let (dir, at) = (scratch.path(), scratch.path().display());
    fs::write(dir.join("in-the-way"), "a file")?;
    let roots = format!("/volumes, dead: {at}/in-the-way}}");
    let text = local_config(dir, "").replace("/volumes}", &roots);
    let mut process = Process::start(dir, &format!("httpAddress: 127.0.0.1:{port}\n{text}"))?;
    let mut clients = process.clients().await?;
    let page = get_until(port, "/readyz", "local.csi.volumectl.io: ready in part")?;
    ensure!(page.starts_with("HTTP/1.1 200") && page.contains(": root dead: "), "{page}");
    ensure!(page.contains("in-the-way") && !page.contains("root default"), "{page}");
    ensure!(clients.identity.probe(pb::ProbeRequest::default()).await?.get_ref().ready == Some(true));
    let metrics = get(port, "/metrics")?;
    for (root, ready) in [("default", 1), ("dead", 0)] {
        let line = format!(r#"part_ready{{backend="local.csi.volumectl.io",part="root {root}"}} {ready}"#);
        ensure!(metrics.contains(&line), "{metrics}");
    }
    // The good one serves.
    let mut request = ask::create("v", 64 << 20, ask::mount("ext4"));
    request.parameters.insert("root".into(), "default".into());
    clients.controller.create_volume(request).await?;
    fs::remove_dir_all(dir.join("volumes"))?;
    fs::write(dir.join("volumes"), "a file")?;
    let page = get_until(port, "/readyz", "local.csi.volumectl.io: not ready")?;
    ensure!(page.starts_with("HTTP/1.1 503") && page.contains("root default: "), "{page}");
    ensure!(clients.identity.probe(pb::ProbeRequest::default()).await.is_err());
    Ok(())
}

/// What of another driver's class has no effect is said once, not with every call.
#[tokio::test]
async fn a_parameter_without_effect_is_said_once() -> Result<()> {
    let scratch = Scratch::new()?;
    let share = scratch.path().join("share");
    fs::create_dir(&share)?;
    let text = local_config(scratch.path(), "");
    let (head, _) = text.split_once("backends:\n").context("no backends")?;
    let (share, shares) = (share.display(), "shares: [{name: main, server: nas, share: /srv, client: local");
    let config = format!("{head}backends:\n  - type: nfs\n    {shares}, localPath: {share}}}]\n");
    let mut process = Process::start(scratch.path(), &config)?;
    let mut clients = process.clients().await?;
    for name in ["a", "b"] {
        let mut request = ask::create(name, 1 << 20, ask::mount(""));
        request.secrets = [("mountOptions".to_owned(), "hard".to_owned())].into();
        let volume = clients.controller.create_volume(request).await?.into_inner().volume.unwrap_or_default();
        let mut request = ask::snapshot(&volume.volume_id, &format!("of-{name}"));
        request.parameters = [("mountoptions".to_owned(), "nfsvers=4.1".to_owned())].into();
        clients.controller.create_snapshot(request).await?;
    }
    ensure!(process.terminate()? == Some(0), "{}", process.log_tail());
    let log = process.log_tail();
    for field in ["secrets[\"mountOptions\"] is ignored: ", "parameters[\"mountoptions\"] is ignored: "] {
        let said = log.lines().filter(|line| line.contains(field) && line.contains("WARN")).count();
        ensure!(said == 1, "{field} {said} times: {log}");
    }
    Ok(())
}

#[tokio::test]
async fn logs_are_json_when_asked_and_one_socket_is_served_once() -> Result<()> {
    let scratch = Scratch::new()?;
    let text = local_config(scratch.path(), "");
    let mut first = Process::start(scratch.path(), &text)?;
    first.clients().await?;
    let file = config(&scratch, &text)?;
    let second = driver(&["--config", &file, "--log-format", "json"])?;
    let log = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(second.status.code() == Some(1) && log.contains("another process answers"), "{log}");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
    first.clients().await?;
    first.kill()?;
    ensure!(first.socket.exists(), "SIGKILL leaves the socket");
    let mut third = Process::start(scratch.path(), &text)?;
    third.clients().await?;
    Ok(())
}

#[tokio::test]
async fn a_process_serves_what_its_mode_says() -> Result<()> {
    let mut announced = Vec::new();
    for (mode, controller, node) in [("controller", true, false), ("node", false, true)] {
        let scratch = Scratch::new()?;
        let file = config(&scratch, &local_config(scratch.path(), ""))?;
        let mut child = Command::new(binary("csi-driver")?)
            .args(["--config", &file, "--mode", mode, "--log", "error"])
            .spawn()?;
        let socket = scratch.path().join("sockets/local.csi.volumectl.io.sock");
        let served = async {
            let mut clients = e2e::clients::Clients::ready(&socket).await?;
            let list = clients.controller.list_volumes(pb::ListVolumesRequest::default()).await;
            let info = clients.node.node_get_info(pb::NodeGetInfoRequest {}).await;
            let plugin =
                clients.identity.get_plugin_capabilities(pb::GetPluginCapabilitiesRequest {}).await?;
            announced.push(plugin.into_inner().capabilities);
            Ok::<_, anyhow::Error>((list.is_ok(), info.is_ok()))
        };
        let served = served.await;
        child.kill()?;
        child.wait()?;
        // A node wants loop devices; without them it is not ready, and says so.
        ensure!(served? == (controller, node), "{mode}");
    }
    // CSI GetPluginCapabilities: the same from all instances, whichever services each of them has.
    ensure!(!announced[0].is_empty() && announced[0] == announced[1], "{announced:?}");
    Ok(())
}

/// A file of this repository.
fn repository(file: &str) -> Result<String> {
    Ok(fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file))?)
}

#[test]
fn the_documents_have_the_tables_of_the_code() -> Result<()> {
    let table = String::from_utf8(driver(&["--backends"])?.stdout)?;
    ensure!(
        repository("README.md")?.contains(&table),
        "README.md must have what `csi-driver --backends` prints:\n{table}"
    );
    let documented = repository("docs/parameters.md")?;
    for backend in csi_driver::registry::examples() {
        let table = csi_driver::table::parameters(&backend);
        ensure!(documented.contains(&table), "docs/parameters.md must have:\n{table}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_operation_is_named_joined_and_waited_for_at_the_end() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut process = Process::start(scratch.path(), &local_config(scratch.path(), ""))?;
    let mut clients = process.clients().await?;
    let id = "default:large";
    clients.controller.create_volume(ask::create("large", 512 << 20, ask::block())).await?;
    // Data that a copy has to read and write, so that it takes a while.
    fs::write(scratch.path().join("volumes/large/disk.img"), vec![0xa5; 512 << 20])?;
    // One that meets the other wish below is told so, and repeats, as a sidecar does.
    let snapshot = |mut controller: pb::controller_client::ControllerClient<_>| {
        tokio::spawn(async move {
            loop {
                match controller.create_snapshot(ask::snapshot(id, "s")).await {
                    Err(status) if status.code() == tonic::Code::Aborted => {}
                    other => break other,
                }
            }
        })
    };
    let (first, joined) = (snapshot(clients.controller.clone()), snapshot(clients.controller.clone()));
    let mut told = String::new();
    while told.is_empty() && !first.is_finished() {
        // A wish that changes nothing when it meets no running operation.
        if let Err(status) = clients.controller.controller_expand_volume(ask::expand(id, 1)).await {
            ensure!(status.code() == tonic::Code::Aborted, "{status}");
            told = status.message().to_owned();
        }
    }
    ensure!(told.contains("CreateSnapshot has been running for") && told.contains("stage: "), "{told:?}");
    let mut hasty = tonic::Request::new(ask::snapshot(id, "s"));
    hasty.set_timeout(std::time::Duration::from_millis(20));
    let late = clients.controller.create_snapshot(hasty).await.err().map(|status| status.code());
    ensure!(matches!(late, Some(tonic::Code::DeadlineExceeded | tonic::Code::Cancelled)), "{late:?}");
    ensure!(process.terminate()? == Some(0), "{}", process.log_tail());
    let (first, joined) = (first.await??.into_inner(), joined.await??.into_inner());
    ensure!(first == joined && first.snapshot.is_some_and(|s| s.ready_to_use));
    Ok(())
}
