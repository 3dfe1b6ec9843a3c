//! Clients of other nodes, and what is shown of their locks.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::ceph::{Ceph, storage_daemon};
use serde_json::Value;

use super::world::World;

/// Another node's client: a qemu-storage-daemon of our own, with the image as a file.
pub struct Client {
    child: Child,
    pub file: PathBuf,
}

impl Client {
    /// Opens an image and writes to it, which takes its lock.
    pub fn writer(w: &World, image: &str) -> Result<Self> {
        let client = Self::open(w, image)?;
        client.write(b"written by the first owner")?;
        Ok(client)
    }

    pub fn open(w: &World, image: &str) -> Result<Self> {
        let program = storage_daemon().unwrap_or_else(|| "qemu-storage-daemon".into());
        let at = format!("namespace={},image={image}", w.namespace);
        Self::start(Command::new(program), w.ceph, w.scratch.path(), &at)
    }

    /// `program` is qemu-storage-daemon, or what runs it.
    pub fn start(mut program: Command, ceph: &Ceph, dir: &Path, image: &str) -> Result<Self> {
        let file = dir.join(format!("client-{}", image.replace(['=', ','], "-")));
        std::fs::write(&file, "")?;
        let child = program
            .arg("--blockdev")
            .arg(format!(
                "driver=rbd,node-name=d,pool=rbd,{image},conf={},user=admin,cache.direct=on",
                ceph.conf().display()
            ))
            .arg("--export")
            .arg(format!("type=fuse,id=e,node-name=d,mountpoint={},writable=on", file.display()))
            .stdin(Stdio::null())
            .spawn()?;
        let client = Self { child, file };
        for _ in 0..100 {
            if std::fs::metadata(&client.file)?.len() > 0 {
                return Ok(client);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("the export of {image} does not appear")
    }

    pub fn write(&self, text: &[u8]) -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).open(&self.file)?;
        file.write_all(text)?;
        file.sync_all()
    }

    pub fn signal(&self, name: &str) -> Result<()> {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status()?;
        ensure!(status.success());
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A client that ends in order takes its watch away; one that is killed leaves it for half a minute.
        let _ = self.signal("CONT").and_then(|()| self.signal("TERM"));
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(&self.file, rustix::mount::UnmountFlags::DETACH);
    }
}

pub fn locks(w: &World, image: &str) -> Result<Value> {
    let (code, out, error) = w.volumectl(&["lock", "ls", "--image", &w.spec(image), "-o", "json"])?;
    ensure!(code == 0, "{code}: {error}");
    let all: Value = serde_json::from_str(&out)?;
    Ok(all[0].clone())
}

/// A client that has an image's lock, and its address.
pub fn writer_of(w: &World, image: &str) -> Result<(Client, String)> {
    let owner = Client::writer(w, image)?;
    let address = locks(w, image)?["locks"][0]["address"].as_str().context("no address")?.to_owned();
    Ok((owner, address))
}

pub fn is_fenced(w: &World, address: &str) -> Result<bool> {
    let all = w.ceph.ask(&["osd", "blocklist", "ls"])?;
    Ok(all.as_array().is_some_and(|all| all.iter().any(|entry| entry["addr"] == address)))
}
