//! What is on an image decides whether it is formatted, not what is noted of it.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::contract::refused;
use e2e::requests::{self as ask, MIB};
use tonic::Code;

use super::world::{SIZE, World};

const LARGE: i64 = 1024 * MIB;

/// Raw data in the midst of an image, where nobody looks who reads its ends only.
#[tokio::test(flavor = "multi_thread")]
async fn raw_data_in_the_midst_of_an_image_is_not_formatted() -> Result<()> {
    let Some(w) = World::new("raw", "").await? else { return Ok(()) };
    let id = w.create(ask::create("raw", LARGE, ask::mount("ext4"))).await?;
    // By librbd, as a program without a file system writes: nothing before 8 MiB, then 200 MiB.
    let (spec, diff) = (w.spec("raw"), w.scratch.path().join("diff"));
    let (at, length) = ((8 * MIB).unsigned_abs(), (200 * MIB).unsigned_abs());
    let mut bytes = b"rbd diff v1\ns".to_vec();
    bytes.extend(LARGE.to_le_bytes());
    bytes.push(b'w');
    bytes.extend([at.to_le_bytes(), length.to_le_bytes()].concat());
    bytes.resize(bytes.len() + usize::try_from(length)?, 0xda);
    bytes.push(b'e');
    std::fs::write(&diff, bytes)?;
    w.rbd(&["import-diff", "--no-progress", &diff.display().to_string(), &spec])?;
    let before = export(&w, &spec)?;
    ensure!(before.1, "nothing was written");
    let error = w.stage(&id).await.map(tonic::Response::new);
    refused(
        error,
        Code::FailedPrecondition,
        &["unknown data at byte 8388608", "not formatting", "volumectl.allow-format"],
    )?;
    ensure!(export(&w, &spec)?.0 == before.0, "the refusal changed the data");
    // A permission of something else is none, the right one is good once.
    w.rbd(&["image-meta", "set", &spec, "volumectl.allow-format", "000000000000"])?;
    let error = w.stage(&id).await.err().context("formatted by a wrong permission")?;
    let code = error.message().split("volumectl.allow-format ").nth(1).context("no code")?;
    let code: String = code.chars().take_while(char::is_ascii_hexdigit).collect();
    w.rbd(&["image-meta", "set", &spec, "volumectl.allow-format", &code])?;
    w.stage(&id).await?;
    ensure!(!w.rbd(&["image-meta", "ls", &spec])?.contains("allow-format"), "the permission is still there");
    w.unstage(&id).await?;
    w.delete(&id).await
}

/// Once a raw block device, never formatted, nor what was copied from it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_a_raw_block_device_is_never_formatted() -> Result<()> {
    let Some(w) = World::new("block", "").await? else { return Ok(()) };
    let id = w.create(ask::create("block", LARGE, ask::block())).await?;
    let staging = w.scratch.path().join("kubelet/block/stage");
    std::fs::create_dir_all(&staging)?;
    let mut node = w.clients.node.clone();
    node.node_stage_volume(ask::stage(&id, &staging, ask::block())).await?;
    node.node_unstage_volume(ask::unstage(&id, &staging)).await?;
    let words = &["used as a raw block device before", "not formatting"];
    refused(w.stage(&id).await.map(tonic::Response::new), Code::FailedPrecondition, words)?;
    let mut request = ask::create("copy", LARGE, ask::mount("ext4"));
    request.volume_content_source = ask::from_volume(&id);
    let copy = w.create(request).await?;
    refused(w.stage(&copy).await.map(tonic::Response::new), Code::FailedPrecondition, words)?;
    w.delete(&copy).await?;
    w.delete(&id).await
}

/// An older version's "a format was begun" does not outrank what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_format_that_an_older_version_began_is_no_permission() -> Result<()> {
    let Some(w) = World::new("begun", "").await? else { return Ok(()) };
    let id = w.make("begun").await?;
    let staging = w.stage(&id).await?;
    std::fs::write(staging.join("file"), "kept")?;
    w.unstage(&id).await?;
    w.rbd(&["image-meta", "set", &w.spec("begun"), "volumectl.fs", r#"{"formatting":"ext4"}"#])?;
    let staging = w.stage(&id).await?;
    ensure!(std::fs::read_to_string(staging.join("file"))? == "kept");
    w.unstage(&id).await?;
    w.delete(&id).await
}

/// A digest of an image's content, and whether there is any.
fn export(w: &World, spec: &str) -> Result<(String, bool)> {
    let file = w.scratch.path().join("export");
    w.rbd(&["export", "--no-progress", spec, &file.display().to_string()])?;
    let sum = Command::new("sha256sum").arg(&file).stderr(Stdio::null()).output()?;
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file)?);
    std::fs::remove_file(&file)?;
    Ok((String::from_utf8_lossy(&sum.stdout).into_owned(), blocks > 0))
}

/// Commands about locks, with and without Kubernetes at hand.
#[tokio::test(flavor = "multi_thread")]
async fn volumectl_works_with_and_without_kubernetes() -> Result<()> {
    let Some(w) = World::new("kube", "").await? else { return Ok(()) };
    let mut request = ask::create("claimed", SIZE, ask::mount("ext4"));
    for (key, value) in [("pvc/name", "db"), ("pvc/namespace", "shop"), ("pv/name", "claimed")] {
        request.parameters.insert(format!("csi.storage.k8s.io/{key}"), value.into());
    }
    let id = w.create(request).await?;
    w.stage(&id).await?;
    let spec = w.spec("claimed");
    let place = format!("rbd/{}", w.namespace);
    let commands: [&[&str]; 6] = [
        &["lock", "ls", "--image", &spec],
        &["lock", "ls", "--image", &spec, "-o", "json"],
        &["lock", "ls", "--image", &spec, "-o", "wide"],
        &["lock", "journal"],
        &["volume", "ls", "--pool", &place],
        &["volume", "info", &spec],
    ];
    for kubeconfig in [std::path::Path::new("/nonexistent"), &w.nodes.kubeconfig] {
        for command in commands {
            let (code, out, error) = w.ceph.volumectl_with(kubeconfig, command)?;
            ensure!(code == 0 && !error.contains("panicked"), "{command:?}: {code}: {out}{error}");
            let asked =
                kubeconfig == w.nodes.kubeconfig && command.iter().any(|it| matches!(*it, "json" | "wide"));
            ensure!(out.contains("postgres-0") == asked, "{command:?}: {out}");
        }
        // A recovery asks how the owner's node is; this one lives.
        let (code, _, error) = w.ceph.volumectl_with(kubeconfig, &["lock", "recover", &spec, "--yes"])?;
        ensure!(code == 3 && !error.contains("panicked"), "{code}: {error}");
    }
    w.unstage(&id).await?;
    w.delete(&id).await
}
