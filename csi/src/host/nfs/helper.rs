//! The driver's side of the helper: one process a task, killed when it does not end in time.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use provisioners::nfs::{Mounted, NfsShare};
use provisioners::{Error, Result};

use super::super::runner::{command, kill_group};
use super::RUNG;
use super::child::{How, Numbers, Task, Trouble};

/// How long a task may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a killed process may take to go; one in the depths of the kernel may never.
const DYING: Duration = Duration::from_millis(500);

/// Starts helpers.
#[derive(Debug, Clone)]
pub struct Helper {
    program: PathBuf,
}

impl Helper {
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }

    pub fn run(&self, task: &Task) -> Result<Numbers, Trouble> {
        self.run_for(task, LIMIT)
    }

    pub fn run_for(&self, task: &Task, limit: Duration) -> Result<Numbers, Trouble> {
        let mut child = command(&self.program)
            .args(["node-helper", "task"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Trouble::Text(format!("starting {}: {e}", self.program.display())))?;
        if let Some(mut input) = child.stdin.take() {
            let text = serde_json::to_vec(task).unwrap_or_default();
            // A helper that is gone says so by its missing answer.
            let _ = input.write_all(&text);
        }
        match wait(&mut child, limit) {
            Some(()) => answer(&mut child),
            None => {
                bury(child);
                Err(Trouble::Slow(limit))
            }
        }
    }

    /// Takes one mount off a path: plainly, else by force, else lazily (umount2(2)).
    pub fn ladder(&self, path: &Path) -> Result<()> {
        let mut last = None;
        for how in [How::Plain, How::Force, How::Lazy] {
            match self.run_for(&Task::Unmount { path: path.to_owned(), how }, RUNG) {
                Ok(_) => return Ok(()),
                Err(trouble) => {
                    // Busy is no matter of force: somebody works there.
                    if let (Trouble::Errno(errno), How::Plain) = (&trouble, how)
                        && *errno == rustix::io::Errno::BUSY.raw_os_error()
                        && !self.is_dead(path)
                    {
                        return Err(super::super::mounts::busy(path));
                    }
                    tracing::warn!(path = %path.display(), ?how, %trouble, "unmounting");
                    last = Some(trouble);
                }
            }
        }
        let last = last.unwrap_or_else(|| Trouble::Text("nothing was tried".into()));
        Err(last.told(&format!("unmounting {}", path.display())))
    }

    /// Whether the server behind a path does not answer, or knows the path no more.
    fn is_dead(&self, path: &Path) -> bool {
        self.run_for(&Task::Look { path: path.to_owned() }, RUNG).is_err()
    }
}

impl Mounted for Helper {
    fn start(&self, share: &NfsShare) -> io::Result<Child> {
        let target = PathBuf::new();
        let task = match &share.local {
            Some(base) => Task::Bind { base: base.clone(), dir: String::new(), target, read_only: false },
            None => Task::Mount {
                server: share.server.clone(),
                share: share.path.clone(),
                target,
                options: share.mount_options.clone(),
            },
        };
        let text = serde_json::to_string(&task)?;
        // A mount namespace of its own: what is mounted there ends with the process.
        command(Path::new("/usr/bin/unshare"))
            .args(["--mount", "--propagation", "private", "--"])
            .arg(&self.program)
            .args(["node-helper", "session", &text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    }
}

/// Waits for a child's end; `None`: it did not end in time.
fn wait(child: &mut Child, limit: Duration) -> Option<()> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if !matches!(child.try_wait(), Ok(None)) {
            return Some(());
        }
        if begun.elapsed() > limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Kills a child; one that does not go is waited for elsewhere.
fn bury(mut child: Child) {
    let _ = child.kill();
    if wait(&mut child, DYING).is_none() {
        std::thread::spawn(move || kill_group(&mut child));
    }
}

fn answer(child: &mut Child) -> Result<Numbers, Trouble> {
    let mut text = Vec::new();
    if let Some(mut output) = child.stdout.take() {
        let _ = output.read_to_end(&mut text);
    }
    serde_json::from_slice::<Result<Numbers, Trouble>>(&text)
        .unwrap_or_else(|_| Err(Trouble::Text("the helper process ended without an answer".into())))
}

impl Trouble {
    /// As an error that says what was being done.
    pub fn told(self, doing: &str) -> Error {
        use rustix::io::Errno;
        match self {
            Self::Slow(limit) => Error::Unavailable(format!(
                "{doing}: the NFS server did not answer in {} s; see whether it runs and can be reached from this node",
                limit.as_secs()
            )),
            Self::Text(text) => Error::Unavailable(format!("{doing}: {text}")),
            Self::Errno(number) => {
                let errno = Errno::from_raw_os_error(number);
                match errno {
                    Errno::NOENT => Error::NotFound(format!("{doing}: it does not exist")),
                    Errno::LOOP | Errno::NOTDIR | Errno::XDEV => Error::Refused(format!(
                        "{doing}: it is no directory of the share, or a symbolic link leads there"
                    )),
                    Errno::STALE => {
                        Error::Unavailable(format!("{doing}: stale file handle; repeat the call"))
                    }
                    Errno::ACCESS | Errno::PERM => {
                        Error::Denied(format!("{doing}: {errno}; see the server's exports"))
                    }
                    Errno::INVAL => Error::Refused(format!("{doing}: {errno}: a mount option is not valid")),
                    Errno::NODEV => Error::Refused(format!(
                        "{doing}: this node's kernel has no NFS; load its module (modprobe nfs)"
                    )),
                    Errno::CONNREFUSED | Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => {
                        Error::Unavailable(format!(
                            "{doing}: {errno}; see whether the server runs and can be reached"
                        ))
                    }
                    _ => Error::io(doing.to_owned(), errno),
                }
            }
        }
    }
}
