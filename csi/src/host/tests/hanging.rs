//! A loop device over a file whose file system does not answer keeps nobody from the others.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// A file of a FUSE file system whose daemon stands still, and the loop device over it.
struct Hanging {
    daemon: std::process::Child,
    dir: tempfile::TempDir,
    device: PathBuf,
}

impl Hanging {
    /// `None`, and why, where there is no FUSE.
    fn new(size: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skip: a FUSE file system needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (raw, file) = (dir.path().join("raw"), dir.path().join("disk.img"));
        File::create(&raw).unwrap().set_len(size).unwrap();
        File::create(&file).unwrap();
        let daemon = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={}", raw.display()))
            .arg("--export")
            .arg(format!("type=fuse,id=export,node-name=disk,mountpoint={},writable=on", file.display()))
            .spawn();
        let Ok(daemon) = daemon else {
            eprintln!("skip: qemu-storage-daemon is not installed");
            return None;
        };
        let begun = Instant::now();
        while fs::metadata(&file).unwrap().len() != size {
            assert!(begun.elapsed() < Duration::from_secs(10), "the file system does not appear");
            std::thread::sleep(Duration::from_millis(20));
        }
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        let device = PathBuf::from(String::from_utf8(attached.stdout).unwrap().trim());
        let it = Self { daemon, dir, device };
        it.signal(Signal::STOP);
        // The kernel keeps what it knows of a file for a second.
        std::thread::sleep(Duration::from_millis(1200));
        Some(it)
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.daemon), signal);
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        let _ = loopdev::detach(&self.device, || Ok(true));
        let _ = Command::new("umount").arg("-l").arg(self.dir.path().join("disk.img")).status();
        self.signal(Signal::KILL);
        let _ = self.daemon.wait();
    }
}

#[test]
fn a_file_that_hangs_elsewhere_keeps_nobody() {
    let Some(hanging) = Hanging::new(4 * MIB) else { return };
    let Some(bench) = Bench::new(64 * MIB) else { return };
    let begun = Instant::now();
    bench.stage("ext4").unwrap();
    bench.host.stats("v", &bench.volume.access, &bench.path("staging")).unwrap();
    bench.unstage().unwrap();
    bench.host.recover().unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "it took {took:?}");
    drop(hanging);
}
