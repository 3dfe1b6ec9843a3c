//! Where programs run that must outlive the driver: in a cgroup of their own.
//!
//! Who stops a container or a unit kills what is in its cgroup (runc, containerd, systemd), and its memory limit is the
//! limit of all that is in it. So each hierarchy in which the driver is in a group gets a group `volumectl` at its top,
//! and the program is started in that. It lives on only where process numbers are the machine's, too: the processes of
//! a name space are killed with its first.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use provisioners::{Error, Result};

use super::{mountinfo, runner};

/// The group's name.
const GROUP: &str = "volumectl";
/// The machine's own process and cgroup name spaces (Linux, include/linux/proc_ns.h).
const MACHINE: [(&str, &str); 2] = [("pid", "pid:[4026531836]"), ("cgroup", "cgroup:[4026531835]")];

/// Enters each group, and becomes the program.
const ENTER: &str =
    r#"while [ "$1" != -- ]; do { echo 0 >"$1"; } 2>/dev/null; shift; done; shift; exec "$@""#;

/// How a program is started outside the driver's cgroups.
#[derive(Debug, Clone)]
pub struct Outside {
    sh: Option<PathBuf>,
    /// The mount points of the hierarchies in which the driver is in a group.
    tops: Vec<PathBuf>,
    /// Why what is started may not outlive the driver.
    problem: Option<String>,
}

impl Outside {
    /// Looks where this process is; changes nothing.
    pub fn find(tools: &runner::Tools) -> Self {
        let sh = tools.path("sh").ok().map(Path::to_owned);
        let (tops, problem) = match look() {
            Ok((tops, None)) => (tops, strange_name_space()),
            Ok((tops, problem)) => (tops, problem),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        Self { sh, tops, problem }
    }

    /// A command that runs in the group, with nothing of our environment. Where the group cannot be made, or not be
    /// entered, it runs in the driver's.
    pub fn command(&self, program: &Path) -> Command {
        let (program, arguments) = self.wrap(program);
        let mut command = runner::command(&program);
        command.args(arguments);
        command
    }

    /// The same for who runs it otherwise: what to run, and what comes before the program's own arguments.
    pub fn wrap(&self, program: &Path) -> (PathBuf, Vec<OsString>) {
        let groups: Vec<_> = self.tops.iter().filter_map(|top| enterable(top)).collect();
        let Some(sh) = self.sh.as_ref().filter(|_| !groups.is_empty()) else {
            return (program.to_owned(), Vec::new());
        };
        let before = ["-c", ENTER, GROUP].map(OsString::from).into_iter();
        let groups = groups.into_iter().map(OsString::from);
        (sh.clone(), before.chain(groups).chain(["--".into(), program.into()]).collect())
    }

    /// Whether what is started outlives the driver; else why not.
    pub fn check(&self) -> std::result::Result<(), String> {
        let inside = self.tops.iter().find(|top| enterable(top).is_none());
        match (&self.problem, inside) {
            (Some(problem), _) => Err(problem.clone()),
            (None, Some(top)) => Err(format!("the group {GROUP} cannot be made in {}", top.display())),
            (None, None) => Ok(()),
        }
    }
}

/// Whether a process shares no cgroup with this one, other than the top of a hierarchy.
pub fn is_outside(pid: i32) -> bool {
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let (own, its) = (of("self"), of(&pid.to_string()));
    !its.is_empty() && its.lines().all(|line| line.ends_with(":/") || !own.lines().any(|own| own == line))
}

/// The top of each hierarchy in which this process is in a group, and the first that cannot be reached.
fn look() -> Result<(Vec<PathBuf>, Option<String>)> {
    let read = |path: &str| fs::read(path).map_err(|e| Error::io(format!("reading {path}"), e));
    let groups = read("/proc/self/cgroup")?;
    all_tops(&String::from_utf8_lossy(&groups), &read("/proc/self/mountinfo")?)
}

/// The same of the kernel's files, `/proc/<pid>/cgroup` and `mountinfo`.
fn all_tops(groups: &str, table: &[u8]) -> Result<(Vec<PathBuf>, Option<String>)> {
    let (mut tops, mut problem) = (Vec::new(), None);
    for line in groups.lines() {
        // cgroups(7): hierarchy, controllers, path.
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else { continue };
        if path == "/" {
            continue;
        }
        match top(table, controllers)? {
            Some(top) => tops.push(top),
            None => {
                problem.get_or_insert_with(|| {
                    let name = if controllers.is_empty() { "version 2" } else { controllers };
                    format!("the cgroup hierarchy {name} is not mounted as the machine has it: mount /sys/fs/cgroup")
                });
            }
        }
    }
    Ok((tops, problem))
}

/// Where a hierarchy is mounted from its top.
fn top(table: &[u8], controllers: &str) -> Result<Option<PathBuf>> {
    let is_it = |m: &mountinfo::Mount<'_>| {
        let same = if controllers.is_empty() {
            m.fs_type == "cgroup2"
        } else {
            let wanted = controllers.split(',').next().unwrap_or_default();
            m.fs_type == "cgroup" && m.super_options.split(',').any(|option| option == wanted)
        };
        same && m.root == Path::new("/")
    };
    Ok(mountinfo::select(table, is_it)?.pop().map(|mount| mount.target.into_owned()))
}

fn strange_name_space() -> Option<String> {
    MACHINE.iter().find_map(|(kind, wanted)| {
        let link = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
        (link != Path::new(wanted)).then(|| match *kind {
            "pid" => "this driver has process numbers of its own (set hostPID: true)".to_owned(),
            _ => "this driver has a cgroup name space of its own (run it privileged)".to_owned(),
        })
    })
}

/// The file that a process enters the group by, the group made where it is missing.
fn enterable(top: &Path) -> Option<PathBuf> {
    let group = top.join(GROUP);
    if let Err(error) = make(top, &group) {
        tracing::debug!(group = %group.display(), %error, "a group for what outlives this driver cannot be made");
        return None;
    }
    Some(group.join("cgroup.procs"))
}

fn make(top: &Path, group: &Path) -> std::io::Result<()> {
    if !group.is_dir() {
        fs::create_dir_all(group)?;
    }
    // Version 1: a group without processors and memory takes nobody (cpuset(7)).
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = group.join(name);
        if top.join(name).exists() && fs::read_to_string(&own)?.trim().is_empty() {
            fs::write(&own, fs::read(top.join(name))?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "outside_tests.rs"]
mod tests;
