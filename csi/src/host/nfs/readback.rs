//! Which version of the protocol a share is mounted with: the newest of those that server and kernel both speak, and with
//! which the node reads what is stored (see `provisioners::nfs::READ_BACK`).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use provisioners::nfs::{READ_BACK, read_back};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::child::Trouble;

/// Mounts with the first version that does; a word on those that did not, if they should have. `None` in `versions`: the
/// options say it.
pub fn first_that_reads<'a>(
    versions: &[Option<&'a str>],
    mount: impl Fn(Option<&'a str>) -> Result<(), Trouble>,
    reads: impl Fn() -> bool,
    unmount: impl Fn() -> Result<(), Trouble>,
) -> Result<Option<String>, Trouble> {
    let (mut wrong, mut last) = (Vec::new(), Trouble::Text("there is no version to mount it with".into()));
    for version in versions {
        match mount(*version) {
            Ok(()) if reads() => return Ok((!wrong.is_empty()).then(|| disagreement(&wrong))),
            Ok(()) => {
                unmount()?;
                wrong.push(version.map_or_else(|| "of the mount options".to_owned(), str::to_owned));
            }
            Err(trouble) => {
                let other = may_speak_another(&trouble);
                last = trouble;
                if !other {
                    break;
                }
            }
        }
    }
    if wrong.is_empty() {
        return Err(last);
    }
    Err(Trouble::Refused(format!(
        "{}; use another version (mount option nfsvers=4.1 or nfsvers=3), kernel or server",
        disagreement(&wrong)
    )))
}

/// Only what says that the version is not spoken is a reason to try another.
fn may_speak_another(trouble: &Trouble) -> bool {
    let other = [Errno::PROTONOSUPPORT, Errno::OPNOTSUPP, Errno::CONNREFUSED, Errno::NOENT];
    matches!(trouble, Trouble::Errno(number) if other.iter().any(|errno| errno.raw_os_error() == *number))
}

fn disagreement(versions: &[String]) -> String {
    format!(
        "with version {} this node's kernel ({}) reads other bytes from this server than are stored there",
        versions.join(" and "),
        rustix::system::uname().release().to_string_lossy()
    )
}

/// Whether the file that the controller has made for this is read as it was written. Where there is none, or it may not
/// be read, nothing is known against the mount.
pub fn reads(root: &Path) -> bool {
    let wanted = read_back();
    let Ok(mut file) = open(root) else { return true };
    if !file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == wanted.len() as u64) {
        return true;
    }
    let mut content = Vec::with_capacity(wanted.len());
    file.read_to_end(&mut content).is_err() || content == wanted
}

fn open(root: &Path) -> Result<File, Errno> {
    let top = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(&top, READ_BACK, flags, Mode::empty(), stay).map(File::from)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;

    use super::*;

    const ALL: [Option<&str>; 3] = [Some("4.2"), Some("4.1"), Some("3")];

    /// What is done when `bad` versions read wrong bytes and `unknown` ones are not spoken.
    fn tried(
        versions: &[Option<&str>],
        bad: &[&str],
        unknown: &[&str],
    ) -> (Result<Option<String>, String>, String) {
        let (log, now) = (RefCell::new(String::new()), RefCell::new(""));
        let mount = |version: Option<&'static str>| {
            *now.borrow_mut() = version.unwrap_or("given");
            if unknown.contains(&*now.borrow()) {
                return Err(Errno::PROTONOSUPPORT.into());
            }
            log.borrow_mut().push_str(&format!("+{} ", now.borrow()));
            Ok(())
        };
        let unmount = || {
            log.borrow_mut().push_str(&format!("-{} ", now.borrow()));
            Ok(())
        };
        let versions: Vec<_> = ALL.iter().filter(|it| versions.contains(it)).copied().collect();
        let versions = if versions.is_empty() { vec![None] } else { versions };
        let outcome = first_that_reads(&versions, mount, || !bad.contains(&*now.borrow()), unmount);
        (outcome.map_err(|trouble| trouble.to_string()), log.into_inner())
    }

    #[test]
    fn a_version_that_reads_other_bytes_than_are_stored_is_passed_over() {
        assert_eq!(tried(&ALL, &[], &[]), (Ok(None), "+4.2 ".into()));
        assert_eq!(tried(&ALL, &[], &["4.2"]), (Ok(None), "+4.1 ".into()));
        let (outcome, log) = tried(&ALL, &["4.2"], &[]);
        assert_eq!(log, "+4.2 -4.2 +4.1 ");
        let told = outcome.unwrap().unwrap();
        assert!(told.contains("version 4.2") && told.contains("other bytes"), "{told}");
    }

    #[test]
    fn where_none_reads_right_nothing_stays_mounted() {
        for (versions, bad, unknown, log) in [
            (&ALL[..], &["4.2", "4.1", "3"][..], &[][..], "+4.2 -4.2 +4.1 -4.1 +3 -3 "),
            (&ALL[..], &["4.2"][..], &["4.1", "3"][..], "+4.2 -4.2 "),
            (&[][..], &["given"][..], &[][..], "+given -given "),
        ] {
            let (outcome, did) = tried(versions, bad, unknown);
            let told = outcome.unwrap_err();
            assert!(told.contains("nfsvers=4.1") && did == log, "{told}: {did}");
        }
    }

    #[test]
    fn only_a_whole_file_of_other_content_speaks_against_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(READ_BACK);
        assert!(reads(dir.path()), "there is none");
        fs::create_dir(file.parent().unwrap()).unwrap();
        for (content, good) in [
            (read_back(), true),
            (vec![0; read_back().len()], false),
            (vec![0; 100], true),
            (Vec::new(), true),
        ] {
            fs::write(&file, content).unwrap();
            assert_eq!(reads(dir.path()), good);
        }
        // A link is not followed, wherever it leads.
        fs::rename(&file, dir.path().join("elsewhere")).unwrap();
        fs::write(dir.path().join("elsewhere"), vec![0; read_back().len()]).unwrap();
        std::os::unix::fs::symlink("../elsewhere", &file).unwrap();
        assert!(reads(dir.path()));
    }
}
