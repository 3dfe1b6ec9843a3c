//! Volumes on file systems that share blocks.

use anyhow::{Result, ensure};
use e2e::drivers::local_config;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;

/// Bytes that are free below a directory.
fn free(scratch: &Scratch) -> Result<u64> {
    rustix::fs::sync();
    let fs = rustix::fs::statvfs(scratch.path().join("volumes"))?;
    Ok(fs.f_bavail * fs.f_frsize)
}

/// A clone and a restored snapshot take next to no room, and what is written to one is not in the other.
async fn copies_share_blocks(fs: &str) -> Result<()> {
    let scratch = Scratch::new()?;
    scratch.own_root(fs, 1 << 30)?;
    let config = local_config(scratch.path(), "");
    let mut s = super::subject(scratch, &config, ask::mount("ext4")).await?;
    s.parameters.insert("type".into(), "file".into());
    s.size = 128 * MIB;
    let data = vec![0x5a; 48 << 20];
    let id = s.create("source").await?.volume_id;
    let used = s.mount(&id, "source").await?;
    s.write(&used, &data)?;
    let before = free(&s.scratch)?;
    let snapshot = s.snapshot(&id, "kept").await?.snapshot_id;
    let mut copies = Vec::new();
    for (name, source) in [("clone", ask::from_volume(&id)), ("restore", ask::from_snapshot(&snapshot))] {
        let request =
            csi_proto::v1::CreateVolumeRequest { volume_content_source: source, ..s.create_request(name) };
        copies.push(s.make(request).await?.volume_id);
    }
    let taken = before.saturating_sub(free(&s.scratch)?);
    ensure!(taken < 16 << 20, "{taken} bytes for three copies of {}", data.len());
    for id in &copies {
        let copy = s.mount(id, "copy").await?;
        ensure!(s.read(&copy, data.len())? == data);
        s.write(&copy, b"another")?;
        s.unmount(&copy).await?;
    }
    ensure!(s.read(&used, data.len())? == data, "the source is not changed");
    s.unmount(&used).await?;
    s.delete_snapshot(&snapshot).await?;
    s.delete(&[&id, &copies[0], &copies[1]]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_share_blocks_on_xfs() -> Result<()> {
    copies_share_blocks("xfs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_share_blocks_on_btrfs() -> Result<()> {
    copies_share_blocks("btrfs").await
}
