//! External programs: found once at start, run with a fixed environment, killed with all their children at a deadline.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use provisioners::{Ctx, Error, Result, reaper};

/// Where programs are looked for, in this order; the caller's PATH is not used.
const DIRS: [&str; 6] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// The programs that may be run, and the Debian package that has each.
const PROGRAMS: [(&str, &str); 11] = [
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_growfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("btrfs", "btrfs-progs"),
    ("blockdev", "util-linux"),
    ("sh", "dash"),
    ("modprobe", "kmod"),
    ("qemu-storage-daemon", "qemu-utils and qemu-block-extra"),
];

/// How much of a program's output is kept, from its end, in bytes.
const KEEP: usize = 64 << 10;
/// How long to wait for a pipe that a grandchild still holds after the kill.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a program answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The end of its standard output.
    pub stdout: String,
    /// The end of its standard error.
    pub stderr: String,
}

/// The programs of this node. Clones share them.
#[derive(Debug, Clone)]
pub struct Tools {
    paths: Arc<BTreeMap<&'static str, PathBuf>>,
    timeout: Duration,
}

impl Tools {
    /// Looks the programs up; no process is started. `timeout` is the longest that one may run.
    pub fn find(timeout: Duration) -> Self {
        let find = |program| DIRS.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.is_file());
        let paths = PROGRAMS.iter().filter_map(|(program, _)| Some((*program, find(program)?))).collect();
        Self { paths: Arc::new(paths), timeout }
    }

    /// Another program in a program's place.
    #[cfg(test)]
    pub fn only(program: &'static str, path: &Path) -> Self {
        let paths = BTreeMap::from([(program, path.to_owned())]);
        Self { paths: Arc::new(paths), timeout: Duration::from_secs(60) }
    }

    /// The absolute path of a program. Missing: an error that names the Debian package to install.
    pub fn path(&self, program: &'static str) -> Result<&Path> {
        self.paths.get(program).map(PathBuf::as_path).ok_or_else(|| {
            let package =
                PROGRAMS.iter().find(|(name, _)| *name == program).map_or("its package", |(_, p)| *p);
            Error::Refused(format!("{program} is not installed on this node; install {package}"))
        })
    }

    /// Runs a program to its end. A non-zero exit is no error here: the caller knows what it means. One that was killed:
    /// [`Error::Unavailable`].
    pub fn run(&self, ctx: &Ctx, program: &'static str, args: &[&OsStr]) -> Result<Output> {
        self.run_with(ctx, program, args, Stdio::null())
    }

    /// The same for a program that is given a standard input, which it has while it runs.
    pub fn run_with(
        &self,
        ctx: &Ctx,
        program: &'static str,
        args: &[&OsStr],
        stdin: Stdio,
    ) -> Result<Output> {
        self.run_at(ctx, program, self.path(program)?, args, stdin)
    }

    /// The same for a program whose path was configured; `program` is its name in messages.
    pub fn run_at(
        &self,
        ctx: &Ctx,
        program: &'static str,
        path: &Path,
        args: &[&OsStr],
        stdin: Stdio,
    ) -> Result<Output> {
        ctx.check()?;
        reaper::admit(program)?;
        let begun = Instant::now();
        let mut child = command(path)
            .args(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io(format!("starting {program}"), e))?;
        let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
        let ended = self.wait(ctx, program, &mut child).map_err(|over| match over {
            Over::Failed(error) => error,
            Over::Late(error) => left_behind(error, program, reaper::bury(child, program)),
        });
        let (stdout, stderr) = (stdout.text(), stderr.text());
        let status = ended?;
        tracing::debug!(program, ?args, code = ?status.code(), ms = begun.elapsed().as_millis(), "ran");
        let output = Output { code: status.code(), stdout, stderr };
        if output.code.is_some() { Ok(output) } else { Err(output.error(program)) }
    }

    /// Like [`Tools::run`]; an exit other than 0 is an error with the code and the last lines of standard error.
    pub fn must(&self, ctx: &Ctx, program: &'static str, args: &[&OsStr]) -> Result<Output> {
        let output = self.run(ctx, program, args)?;
        if output.code == Some(0) { Ok(output) } else { Err(output.error(program)) }
    }

    fn wait(&self, ctx: &Ctx, program: &str, child: &mut Child) -> Result<ExitStatus, Over> {
        let begun = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => return Err(Over::Failed(Error::io(format!("waiting for {program}"), error))),
            }
            let over = if begun.elapsed() > self.timeout {
                let seconds = self.timeout.as_secs_f64();
                Err(Error::Deadline(format!("{program} did not end in {seconds} s and was killed")))
            } else {
                ctx.check()
            };
            over.map_err(Over::Late)?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

/// Why a program was not waited for any longer.
enum Over {
    /// Its time or the operation's was over: it is to be killed.
    Late(Error),
    /// The system does not tell.
    Failed(Error),
}

/// An error that says which process a call has left behind.
fn left_behind(error: Error, program: &str, pid: Option<u32>) -> Error {
    let Some(pid) = pid else { return error };
    Error::Deadline(format!(
        "{error}; {program} (process {pid}) was killed and is still in the kernel, see /proc/{pid}/stack and the kernel's log"
    ))
}

impl Output {
    /// The error of a program that has failed. One that was killed says nothing of what it worked on:
    /// [`Error::Unavailable`], for the repeat of the call to find out.
    pub fn error(&self, program: &str) -> Error {
        let text = self.failure(program);
        if self.code.is_some() {
            Error::Internal(text)
        } else {
            Error::Unavailable(text + "; repeat the call")
        }
    }

    /// A text for an error: program, exit code or signal, and the last lines it wrote.
    pub fn failure(&self, program: &str) -> String {
        let how = self
            .code
            .map_or("was ended by a signal".to_owned(), |code| format!("failed with exit code {code}"));
        let words = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<_> = words.trim().lines().rev().take(4).collect();
        let lines = lines.into_iter().rev().collect::<Vec<_>>().join("; ");
        format!("{program} {how}: {lines}")
    }
}

/// A command with nothing of our environment, in a process group of its own. It works in a directory that has no file,
/// so that no argument can name one by a bare word.
pub fn command(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.current_dir("/sys");
    command.env_clear().env("LC_ALL", "C").env("PATH", DIRS.join(":")).process_group(0);
    command
}

/// The end of what a pipe gave, read on a thread of its own so that no pipe fills up.
struct Drain {
    kept: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

fn drain<R: Read + Send + 'static>(pipe: Option<R>) -> Drain {
    let (kept, (tell, ended)) = (Arc::<Mutex<Vec<u8>>>::default(), mpsc::channel());
    let keep = kept.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let Some(mut pipe) = pipe else { return };
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            let mut kept = keep.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..n]);
            let over = kept.len().saturating_sub(KEEP);
            kept.drain(..over);
        }
        drop(tell);
    });
    Drain { kept, ended }
}

impl Drain {
    /// What was read. A grandchild that survived may hold the pipe open, so the wait for its end is short.
    fn text(self) -> String {
        let _ = self.ended.recv_timeout(LAST_WORDS);
        String::from_utf8_lossy(&self.kept.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn sh(timeout: Duration, script: &str) -> Result<Output> {
        let tools = Tools::find(timeout);
        tools.run(&Ctx::new(), "sh", &["-c".as_ref(), script.as_ref()])
    }

    #[test]
    fn code_and_stderr_are_kept_and_the_environment_is_ours() {
        let output =
            sh(Duration::from_secs(10), "echo out; echo err >&2; echo $LC_ALL $HOME; exit 3").unwrap();
        assert_eq!(
            (output.code, output.stdout.as_str(), output.stderr.as_str()),
            (Some(3), "out\nC\n", "err\n")
        );
        assert_eq!(output.failure("sh"), "sh failed with exit code 3: err");
    }

    #[test]
    fn a_program_over_its_time_is_killed_with_its_children() {
        let marker = format!("86399.{}", std::process::id());
        let error = sh(Duration::from_millis(200), &format!("sleep {marker} & sleep {marker}")).unwrap_err();
        assert_eq!(error.label(), "deadline");
        let alive = |entry: &std::fs::DirEntry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&marker) && line.starts_with(b"sleep")
        };
        let begun = Instant::now();
        while std::fs::read_dir("/proc").unwrap().flatten().any(|entry| alive(&entry)) {
            assert!(begun.elapsed() < Duration::from_secs(10), "a child of the killed program is alive");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A file system that is frozen, and thawed when this is dropped.
    pub struct Ice(tempfile::TempDir);

    impl Ice {
        pub fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (image, on) = (dir.path().join("image"), dir.path().join("on"));
            std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
            std::fs::create_dir(&on).unwrap();
            let (image, on) = (image.to_str().unwrap(), on.to_str().unwrap());
            for command in [
                vec!["mkfs.ext4", "-q", image],
                vec!["mount", "-o", "loop", image, on],
                vec!["fsfreeze", "-f", on],
            ] {
                assert!(
                    Command::new(command[0]).args(&command[1..]).status().unwrap().success(),
                    "{command:?}"
                );
            }
            Self(dir)
        }

        pub fn on(&self) -> PathBuf {
            self.0.path().join("on")
        }
    }

    impl Drop for Ice {
        fn drop(&mut self) {
            for command in ["fsfreeze -u", "umount -l"] {
                let words: Vec<_> = command.split(' ').collect();
                let _ = Command::new(words[0]).args(&words[1..]).arg(self.on()).status();
            }
        }
    }

    #[test]
    fn f22_a_child_that_cannot_be_killed_is_left_behind_and_named() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: f22_a_child_that_cannot_be_killed: needs root for a mount");
            return;
        }
        let ice = Ice::new();
        let begun = Instant::now();
        let script = format!("echo x > {}/file", ice.on().display());
        // Time enough for the shell to get to its write on a busy machine.
        let error = sh(Duration::from_secs(5), &script).unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        assert_eq!(error.label(), "deadline");
        assert!(error.to_string().contains("is still in the kernel"), "{error}");
        assert_eq!(reaper::left("sh"), 1);
        drop(ice);
        while reaper::left("sh") > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it was not buried");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn much_output_neither_blocks_nor_fills_the_memory() {
        let output = sh(Duration::from_secs(30), "head -c 3000000 /dev/zero | tr '\\0' x; echo end").unwrap();
        assert!(output.stdout.len() <= KEEP && output.stdout.ends_with("end\n"));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let tools = Tools { paths: Arc::default(), timeout: Duration::from_secs(1) };
        let error = tools.run(&Ctx::new(), "mkfs.xfs", &[]).unwrap_err().to_string();
        assert!(error.contains("mkfs.xfs is not installed") && error.contains("xfsprogs"), "{error}");
    }
}
