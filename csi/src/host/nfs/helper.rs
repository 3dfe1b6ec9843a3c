//! The driver's side of the helper: one process a task, killed when it does not end in time.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use provisioners::nfs::{Mounted, NfsShare};
use provisioners::{Error, Result, reaper};
use rustix::io::Errno;

use super::super::runner::command;
use super::RUNG;
use super::child::{How, Numbers, Task, Trouble};

/// How long a task may take.
const LIMIT: Duration = Duration::from_secs(20);

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
        let mut running = self.start_task(task)?;
        match running.wait(limit) {
            Some(answer) => answer,
            None => {
                running.bury();
                Err(Trouble::Slow(limit))
            }
        }
    }

    /// Begins a task; it is ended when it is dropped. Too many of the same task at the same place were killed and have not
    /// gone: it is not begun.
    pub fn start_task(&self, task: &Task) -> Result<Running, Trouble> {
        let name = format!("the helper that {task}");
        reaper::admit(&name).map_err(|error| Trouble::Text(error.to_string()))?;
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
        Ok(Running { child: Some(child), name })
    }

    /// Takes one bind off a path: plainly, else lazily (umount2(2)). Never by force: that would end what is under way for
    /// all who have the share, on whatever path.
    pub fn ladder(&self, path: &Path) -> Result<()> {
        let mut last = None;
        for how in [How::Plain, How::Lazy] {
            match self.run_for(&Task::Unmount { path: path.to_owned(), how }, RUNG) {
                Ok(_) => return Ok(()),
                // A rung before has done it after its time.
                Err(Trouble::Errno(errno)) if errno == Errno::INVAL.raw_os_error() => return Ok(()),
                Err(trouble) => {
                    // Somebody works there, and can go on with it.
                    if let (Trouble::Errno(errno), How::Plain) = (&trouble, how)
                        && *errno == Errno::BUSY.raw_os_error()
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

/// A task under way.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    /// What it is counted as when it does not go.
    name: String,
}

impl Running {
    /// Its answer; `None`: there is none yet.
    pub fn wait(&mut self, limit: Duration) -> Option<Result<Numbers, Trouble>> {
        let child = self.child.as_mut()?;
        wait(child, limit).map(|()| answer(child))
    }

    /// Kills it, and waits a moment for its end.
    fn bury(mut self) {
        self.child.take().map(|child| reaper::bury(child, &self.name));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            reaper::leave(child, &self.name);
        }
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
        match self {
            Self::Slow(limit) => Error::Unavailable(format!(
                "{doing}: the NFS server did not answer in {} s; see whether it runs and can be reached from this node",
                limit.as_secs()
            )),
            Self::Refused(text) => Error::Refused(format!("{doing}: {text}")),
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
