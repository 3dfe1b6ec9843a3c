//! Made-up trees of both versions of cgroups, and the machine's own version 2 where it can be mounted.

use super::*;

/// As runc mounts version 1 for a container: the container's own group looks like the top.
const TABLE: &str = "\
    30 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
    31 30 0:28 /kubepods/pod1/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
    32 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
    33 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
    34 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

#[test]
fn a_hierarchy_counts_only_where_its_top_is_mounted() {
    let found = |controllers| top(TABLE.as_bytes(), controllers).unwrap();
    assert_eq!(found("memory"), None, "a part of it");
    assert_eq!(found("cpu,cpuacct"), Some("/sys/fs/cgroup/cpu".into()));
    assert_eq!(found("name=systemd"), Some("/sys/fs/cgroup/systemd".into()));
    assert_eq!(found(""), Some("/sys/fs/cgroup/unified".into()));
    assert_eq!(found("pids"), None);
}

#[test]
fn a_group_of_version_1_gets_processors_and_memory() {
    let top = tempfile::tempdir().unwrap();
    let group = top.path().join(GROUP);
    fs::create_dir(&group).unwrap();
    for (name, value) in [("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")] {
        fs::write(top.path().join(name), value).unwrap();
        fs::write(group.join(name), "\n").unwrap();
    }
    assert_eq!(enterable(top.path()), Some(group.join("cgroup.procs")));
    assert_eq!(fs::read_to_string(group.join("cpuset.cpus")).unwrap(), "0-1\n");
    assert_eq!(enterable(&top.path().join("missing/and/a/file\0")), None);
}

#[test]
fn what_is_wrapped_runs_with_its_arguments_also_where_no_group_can_be_entered() {
    let tools = runner::Tools::find(std::time::Duration::from_secs(10));
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(top.path().join(GROUP).join("cgroup.procs")).unwrap();
    let outside = Outside {
        sh: tools.path("sh").ok().map(Path::to_owned),
        tops: vec![top.path().to_owned()],
        problem: None,
    };
    let output = outside.command(Path::new("/bin/echo")).args(["a b", "--", "$c"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a b -- $c\n");
    assert!(output.stderr.is_empty());
}

/// As a node with cgroup version 2 alone has it, for a container of a pod with `hostPID`, which deploy/rbd gives the node's
/// tree at its own place.
const UNIFIED: &str = "\
    30 24 0:27 /kubepods.slice/pod1/abc /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n\
    31 24 0:27 / /host/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";

#[test]
fn the_one_hierarchy_of_version_2_is_found_by_its_top() {
    let own = "0::/kubepods.slice/pod1/abc\n";
    let (tops, problem) = all_tops(own, UNIFIED.as_bytes()).unwrap();
    assert_eq!((tops, problem), (vec!["/host/cgroup".into()], None));
    let part = UNIFIED.lines().next().unwrap();
    let (tops, problem) = all_tops(own, format!("{part}\n").as_bytes()).unwrap();
    assert!(tops.is_empty() && problem.as_ref().is_some_and(|p| p.contains("version 2")), "{problem:?}");
    assert_eq!(all_tops("0::/\n", UNIFIED.as_bytes()).unwrap(), (Vec::new(), None), "in no group");
}

/// The top of version 2 has no cpuset files, and its groups have them only where that controller is delegated.
#[test]
fn a_group_of_version_2_needs_no_processors_and_memory() {
    let top = tempfile::tempdir().unwrap();
    for name in ["cgroup.controllers", "cgroup.procs", "cgroup.subtree_control", "cpuset.cpus.effective"] {
        fs::write(top.path().join(name), "").unwrap();
    }
    assert_eq!(enterable(top.path()), Some(top.path().join(GROUP).join("cgroup.procs")));
    assert_eq!(fs::read_dir(top.path().join(GROUP)).unwrap().count(), 0, "nothing is written there");
}

/// A mount of the machine's hierarchy of version 2, and a group in it; both go with this.
struct Real {
    dir: tempfile::TempDir,
    group: PathBuf,
}

impl Real {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if let Err(errno) = rustix::mount::mount("none", dir.path(), "cgroup2", flags, None) {
            eprintln!("skip: cgroup version 2 cannot be mounted here: {errno}");
            return None;
        }
        let group = dir.path().join(format!("volumectl-test-{}", std::process::id()));
        let it = Self { dir, group };
        match fs::create_dir(&it.group) {
            Ok(()) => Some(it),
            Err(error) => {
                eprintln!("skip: no group can be made in cgroup version 2: {error}");
                None
            }
        }
    }

    /// A program's output; it is started in the group.
    fn output(&self, command: &Command) -> String {
        let enter = r#"echo 0 >"$1"; shift; exec "$@""#;
        let procs = self.group.join("cgroup.procs");
        let mut shell = Command::new("sh");
        shell.args(["-c", enter, "sh"]).arg(procs).arg(command.get_program()).args(command.get_args());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // A group with somebody in it stays; that of others is not empty.
        for group in [&self.group, &self.dir.path().join(GROUP)] {
            let _ = fs::remove_dir(group);
        }
        let _ = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn what_a_process_in_a_group_of_version_2_starts_is_in_another() {
    let Some(real) = Real::new() else { return };
    let tools = runner::Tools::find(std::time::Duration::from_secs(10));
    let sh = tools.path("sh").ok().map(Path::to_owned);
    let own = |command: &Command| {
        let all = real.output(command);
        all.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
    };
    let mut cat = Command::new("/bin/cat");
    cat.arg("/proc/self/cgroup");
    let driver = own(&cat);
    assert!(driver.contains("volumectl-test-"), "{driver}");
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let (tops, problem) = all_tops(&format!("0::{driver}\n"), &table).unwrap();
    assert!(problem.is_none() && tops.len() == 1, "{tops:?} {problem:?}");
    let outside = Outside { sh, tops, problem };
    let mut command = outside.command(Path::new("/bin/cat"));
    command.arg("/proc/self/cgroup");
    assert_eq!(own(&command), format!("/{GROUP}"));
    assert_eq!(outside.check(), Ok(()));
}
