//! What a node does not mount, and what is not put on a mounted share.

use anyhow::{Context as _, Result, ensure};
use e2e::drivers::InProcess;
use e2e::nfs::Nfs;

use super::nfs::{on, on_share};

const DATA: &[u8] = b"what was written before";

/// Local volumes on a share could neither be locked nor outlive a crash: the driver does not start, also if the root is
/// behind a symbolic link.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_root_on_a_share_is_refused() -> Result<()> {
    if !Nfs::possible("a_local_root_on_a_share_is_refused") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    let s = on(&server, "root", "4.1").await?;
    let id = s.create("root").await?.volume_id;
    let used = s.mount(&id, "root").await?;
    let dir = s.path("local")?;
    std::fs::create_dir_all(&dir)?;
    std::os::unix::fs::symlink(&used.target, dir.join("link"))?;
    for root in [used.target.join("volumes"), dir.join("link/volumes")] {
        let config = format!(
            "nodeId: n\nbackends:\n  - type: local\n    roots: {{bad: {:?}}}\n",
            root.display().to_string()
        );
        let refused = InProcess::start(&config).await.err().context("it starts")?.to_string();
        ensure!(
            refused.contains("roots[\"bad\"]")
                && refused.contains("another machine")
                && refused.contains("nfs4"),
            "{refused}"
        );
        ensure!(!root.exists(), "it was made");
    }
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

/// A kernel that reads other bytes from a server than are stored there (READ_PLUS of some pairs) gets no volume to read.
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_reads_other_bytes_than_are_stored_is_refused() -> Result<()> {
    if !Nfs::possible("a_mount_that_reads_other_bytes_than_are_stored_is_refused") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    let (share, there) = server.share("reads")?;
    let s = on_share(&server, &share, "4.1").await?;
    let id = s.create("reads").await?.volume_id;
    let file = there.join(provisioners::nfs::READ_BACK).display().to_string();
    let run = |words: &[&str]| -> Result<()> {
        let done = e2e::control::run(words, &[])?;
        ensure!(done.code == 0, "{words:?}: {}", done.err);
        Ok(())
    };
    run(&["dd", "if=/dev/zero", &format!("of={file}"), "bs=32k", "count=1"])?;
    let refused = s.mount(&id, "reads").await.err().context("it was mounted")?;
    let status = refused.downcast_ref::<tonic::Status>().context("no status")?;
    ensure!(
        status.code() == tonic::Code::FailedPrecondition && status.message().contains("other bytes"),
        "{status}"
    );
    ensure!(s.scratch.mounts().is_empty(), "{:?}", s.scratch.mounts());
    // Where there is no such file nothing is known against the mount.
    run(&["rm", &file])?;
    let used = s.mount(&id, "reads").await?;
    s.write(&used, DATA)?;
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}
