//! csi-sanity, the conformance program of the CSI project, against each backend with its real server. `scripts/sanity` runs
//! this, with the program's path in CSI_SANITY. Each test is one run of the whole suite, and leaves nothing. In a guest the
//! node's side is the kernel's own clients.

#[path = "sanity/suite.rs"]
mod suite;

use std::path::Path;

use anyhow::{Context as _, Result};
use e2e::ceph::Ceph;
use e2e::drivers::local_config;
use e2e::nfs::Nfs;
use e2e::openstack::OpenStack;
use e2e::requests::MIB;
use e2e::scratch::Scratch;
use suite::Suite;

macro_rules! suites {
    ($($backend:ident { $($name:ident: $suite:expr;)* })*) => {
        $(mod $backend {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() -> Result<()> {
                let test = concat!(stringify!($backend), "::", stringify!($name));
                match ($suite)(test)? {
                    Some(suite) => suite.run(test).await,
                    None => Ok(()),
                }
            })*
        })*
    };
}

suites! {
    local {
        file: |_| local("type: file\n");
        xfs: |_| local("type: file\nfsType: xfs\n").map(|s| s.map(|s| s.sizes(400 * MIB)));
        btrfs: |_| local("type: file\nfsType: btrfs\n").map(|s| s.map(|s| s.sizes(200 * MIB)));
        block: |_| local("type: file\n").map(|s| s.map(Suite::block));
        directory: |_| local("type: directory\n");
        two_processes: |_| local("type: file\n").map(|s| s.map(Suite::two_processes));
    }
    nfs {
        v3: |test| nfs(test, "3");
        v41: |test| nfs(test, "4.1");
        v42: |test| nfs(test, "4.2");
        two_processes: |test| nfs(test, "4.2").map(|s| s.map(Suite::two_processes));
    }
    rbd {
        ext4: |test| rbd(test, "fsType: ext4\n");
        xfs: |test| rbd(test, "fsType: xfs\n").map(|s| s.map(|s| s.sizes(400 * MIB)));
        block: |test| rbd(test, "").map(|s| s.map(Suite::block));
        two_processes: |test| rbd(test, "").map(|s| s.map(Suite::two_processes));
    }
    cinder {
        ext4: |test| cinder(test, "fsType: ext4\n");
        xfs: |test| cinder(test, "fsType: xfs\n");
        block: |test| cinder(test, "").map(|s| s.map(Suite::block));
        two_processes: |test| cinder(test, "").map(|s| s.map(Suite::two_processes));
    }
}

fn local(parameters: &str) -> Result<Option<Suite>> {
    let scratch = Scratch::new()?;
    let config = local_config(scratch.path(), "");
    Ok(Some(Suite::new(scratch, config, parameters, "mode: \"0770\"\n")))
}

fn nfs(test: &str, version: &str) -> Result<Option<Suite>> {
    let Some(server) = Nfs::shared(test)? else { return Ok(None) };
    let scratch = Scratch::new()?;
    let (share, dir) = server.share(test)?;
    let config = server.config(scratch.path(), &share, &(Nfs::version(version) + &bound(&dir)))?;
    Ok(Some(Suite::new(scratch, config, "shareName: main\n", "mountPermissions: \"0770\"\n").sizes(16 * MIB)))
}

/// The node binds the share's directory, unless its kernel has NFS.
fn bound(dir: &Path) -> String {
    if e2e::control::is_guest() { String::new() } else { format!(", localPath: {}", dir.display()) }
}

fn rbd(test: &str, parameters: &str) -> Result<Option<Suite>> {
    let Some(ceph) = Ceph::shared(test)? else { return Ok(None) };
    let scratch = Scratch::new()?;
    let config = ceph.config(test, scratch.path(), "")?;
    Ok(Some(Suite::new(scratch, config.text, parameters, "lockRecovery: auto\n").asks_nodes()))
}

fn cinder(test: &str, parameters: &str) -> Result<Option<Suite>> {
    let Some(cloud) = OpenStack::shared(test)? else { return Ok(None) };
    let scratch = Scratch::new()?;
    // The suite attaches as many volumes as the node takes, and one more.
    let keys = "    nodeVolumeAttachLimit: 6\n";
    let config = cloud.config(test, &cloud.node()?, scratch.path(), "", keys);
    Ok(Some(Suite::new(scratch, config, parameters, "type: __DEFAULT__\n").sizes(1024 * MIB)))
}

/// docs/conformance.md has the specs that this csi-sanity has.
#[test]
fn the_list_of_specs_is_whole() -> Result<()> {
    let program =
        std::env::var_os("CSI_SANITY").context("CSI_SANITY names no csi-sanity; see scripts/sanity")?;
    let scratch = Scratch::new()?;
    let report = scratch.path().join("specs.json");
    let ended = std::process::Command::new(program)
        .args(["--csi.endpoint=unix:///nonexistent", "--csi.testnodevolumeattachlimit", "--ginkgo.dry-run"])
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .output()?;
    anyhow::ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report)?)?;
    let specs = report[0]["SpecReports"].as_array().context("no specs")?;
    let texts =
        specs.iter().filter(|it| it["LeafNodeType"] == "It").filter_map(|it| it["LeafNodeText"].as_str());
    let documented = include_str!("../../docs/conformance.md");
    let missing: Vec<_> = texts.filter(|text| !documented.contains(*text)).collect();
    anyhow::ensure!(missing.is_empty(), "docs/conformance.md lacks: {missing:#?}");
    Ok(())
}
