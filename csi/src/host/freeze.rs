//! Stopping writes to mounted file systems for the time of a copy (fsfreeze(8)).
//!
//! A child process freezes, waits for its standard input to end, and thaws. So the file systems thaw when the copy is
//! done, when the time is over, and when this process is killed. A marker file names them meanwhile, for the case that
//! the child dies as well: the next start thaws them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use provisioners::local::Quiesced;
use provisioners::{Ctx, Error, Result};

use super::runner::{self, Tools};

/// Freezes every argument after the first (the program), says so, waits for the end of its input, thaws what it froze.
/// One that is frozen already (EBUSY) is waited for: the child of a driver that was just killed is about to thaw it.
const SCRIPT: &str = r#"
trap '' HUP INT TERM PIPE
fsfreeze=$1; shift
frozen=0 code=0
freeze() {
    tries=0
    until words=$("$fsfreeze" -f "$1" 2>&1); do
        tries=$((tries + 1))
        case $words in *busy*) ;; *) tries=100 ;; esac
        if [ "$tries" -ge 100 ]; then echo "$words" >&2; return 1; fi
        sleep 0.05
    done
}
for target; do
    if freeze "$target"; then frozen=$((frozen + 1)); else code=1; break; fi
done
if [ "$code" = 0 ]; then echo frozen; read -r line; fi
for target; do
    [ "$frozen" -gt 0 ] || break
    frozen=$((frozen - 1))
    "$fsfreeze" -u "$target" || code=1
done
exit "$code"
"#;

/// File systems that stand still until this is dropped or [`Quiesced::resume`]d.
pub struct Frozen {
    child: Child,
    release: Option<Sender<()>>,
    /// Ends with `true` when the time was over before the release.
    watch: Option<JoinHandle<bool>>,
    marker: PathBuf,
}

/// Freezes the file systems mounted on `targets` for at most `limit`. All or none.
pub fn freeze(tools: &Tools, state: &Path, targets: &[PathBuf], limit: Duration) -> Result<Frozen> {
    let marker = write_marker(state, targets)?;
    let started = start(tools, targets).inspect_err(|_| drop(fs::remove_file(&marker)));
    let (child, stdin) = started?;
    let (release, released) = mpsc::channel();
    let watch = std::thread::spawn(move || {
        let over = matches!(released.recv_timeout(limit), Err(RecvTimeoutError::Timeout));
        drop::<ChildStdin>(stdin);
        over
    });
    let mut frozen = Frozen { child, release: Some(release), watch: Some(watch), marker };
    frozen.wait_until_frozen()?;
    Ok(frozen)
}

fn start(tools: &Tools, targets: &[PathBuf]) -> Result<(Child, ChildStdin)> {
    let (sh, fsfreeze) = (tools.path("sh")?, tools.path("fsfreeze")?);
    let mut child = runner::command(sh)
        .args(["-c", SCRIPT, "volumectl-freeze"])
        .arg(fsfreeze)
        .args(targets)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Error::io("starting the freeze of a file system", e))?;
    let stdin = child.stdin.take().ok_or_else(|| Error::Internal("the child has no input".into()))?;
    Ok((child, stdin))
}

impl Frozen {
    fn wait_until_frozen(&mut self) -> Result<()> {
        let stdout =
            self.child.stdout.take().ok_or_else(|| Error::Internal("the child has no output".into()))?;
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        if read.is_ok() && line.trim() == "frozen" {
            return Ok(());
        }
        let mut words = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut words);
        }
        // The child has thawed what it froze, so the marker has no more to say.
        let _ = self.thaw();
        let _ = fs::remove_file(&self.marker);
        Err(Error::Refused(format!(
            "the file system cannot be frozen for a consistent copy: {}",
            words.trim()
        )))
    }

    /// Thaws; `Ok(true)` when the time had been over before.
    fn thaw(&mut self) -> Result<bool> {
        drop(self.release.take());
        let over = self.watch.take().is_some_and(|watch| watch.join().unwrap_or(true));
        let status = self.child.wait().map_err(|e| Error::io("waiting for the thaw", e))?;
        if !status.success() {
            return Err(Error::Internal(format!(
                "a file system could not be thawed ({status}); see {}",
                self.marker.display()
            )));
        }
        fs::remove_file(&self.marker)
            .map_err(|e| Error::io(format!("removing {}", self.marker.display()), e))?;
        Ok(over)
    }
}

impl Quiesced for Frozen {
    fn resume(mut self: Box<Self>) -> Result<()> {
        if self.thaw()? {
            return Err(Error::Deadline("the copy took longer than a file system may stand still".into()));
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.watch.is_some()
            && let Err(error) = self.thaw()
        {
            tracing::error!(%error, "thawing after a copy that failed");
        }
    }
}

/// Nothing was mounted, so nothing had to stand still.
pub struct Still;

impl Quiesced for Still {
    fn resume(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

fn write_marker(state: &Path, targets: &[PathBuf]) -> Result<PathBuf> {
    let dir = state.join("frozen");
    let marker = dir.join(uuid::Uuid::new_v4().to_string());
    let lines: Vec<_> = targets.iter().map(|t| format!("{}\n", t.display())).collect();
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&marker, lines.concat()))
        .map_err(|e| Error::io(format!("writing {}", marker.display()), e))?;
    Ok(marker)
}

/// Thaws what a dead predecessor left frozen; returns what it thawed.
pub fn recover(tools: &Tools, state: &Path) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for entry in fs::read_dir(state.join("frozen")).into_iter().flatten().flatten() {
        let marker = entry.path();
        for target in fs::read_to_string(&marker).unwrap_or_default().lines() {
            // Thawing what is not frozen fails and changes nothing.
            let output = tools.run(&Ctx::new(), "fsfreeze", &["-u".as_ref(), target.as_ref()])?;
            if output.code == Some(0) {
                done.push(format!("thawed {target}"));
            }
        }
        fs::remove_file(&marker).map_err(|e| Error::io(format!("removing {}", marker.display()), e))?;
    }
    Ok(done)
}
