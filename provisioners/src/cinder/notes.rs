//! What a node notes of volumes, in `<stateDir>/cinder`, and when it forgets it: nodes have no credentials to keep it with
//! the volume.
//!
//! A note can only refuse. It goes an hour after it was written last, if the volume's disk is not on this node any more;
//! emptiness is proved by the disk itself then, as it is on a node that never had it. What must outlive the note are the
//! words that allowed a format, since a publication may bring one again: a word says when it was given, `forgotten.json`
//! has the latest time of those that went, and what was given until then is used. A note that knows more than can be said
//! so stays: that the volume was a raw block device, an operator's code, a word without a time (of an older controller).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::handle::is_uuid;
use crate::record::{FsState, Stored, seal, unseal};
use crate::{Error, FsNote, Result};

/// How long a note stays after it was written last.
const KEPT: Duration = Duration::from_secs(3600);
/// How long another process may have the notes to itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// What this node knows of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeNote {
    #[serde(flatten)]
    pub(super) fs: FsState,
    /// The words for a format that were used here: each is good once, though a publication brings it along each time.
    #[serde(default)]
    pub(super) used: BTreeSet<String>,
}

impl Stored for NodeNote {
    const KIND: &'static str = "NodeVolume";
}

impl NodeNote {
    /// Whether all that would be lost with it is which words were used, and when these were given is known.
    fn may_go(&self) -> bool {
        !self.fs.is_raw() && self.used.iter().all(|word| given(word).is_some())
    }
}

/// Until when words are used whose notes went.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Forgotten {
    /// Seconds since 1970, by the cloud's clock.
    until: i64,
}

impl Stored for Forgotten {
    const KIND: &'static str = "ForgottenWords";
}

/// A new word, good for one format, that says when it was given.
pub(super) fn new_word(now: Timestamp) -> String {
    format!("{}-{}", now.as_second(), uuid::Uuid::new_v4().simple())
}

/// When a word was given, in seconds since 1970; `None`: it does not say.
fn given(word: &str) -> Option<i64> {
    let (time, nonce) = word.split_once('-')?;
    uuid::Uuid::try_parse(nonce).ok().and_then(|_| time.parse().ok())
}

/// The notes of a node.
#[derive(Debug, Clone)]
pub(super) struct Notes {
    dir: PathBuf,
}

impl Notes {
    /// In a state directory; nothing is made yet.
    pub(super) fn new(state: &Path) -> Self {
        Self { dir: state.join("cinder") }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn forgotten_path(&self) -> PathBuf {
        self.dir.join("forgotten.json")
    }

    /// What is noted of a volume. A note that is damaged or of a newer version is refused, by its path.
    pub(super) fn of(&self, id: &str) -> Result<NodeNote> {
        read(&self.path(id))
    }

    /// Whether a word was used here, or may have been.
    pub(super) fn is_used(&self, note: &NodeNote, word: &str) -> Result<bool> {
        if note.used.contains(word) {
            return Ok(true);
        }
        let Some(given) = given(word) else { return Ok(false) };
        Ok(given <= read::<Forgotten>(&self.forgotten_path())?.until)
    }

    /// Takes a note. What allowed a format is used up first; used before: [`Error::Refused`].
    pub(super) fn take(&self, id: &str, note: &FsNote) -> Result<()> {
        let _lock = self.lock()?;
        let mut has = self.of(id)?;
        let before = has.clone();
        has.fs.take(id, note)?;
        if let FsNote::Making { permit, vouched, .. } = note {
            for word in permit.iter().chain(vouched) {
                if self.is_used(&has, word)? {
                    return Err(super::blank::used(id));
                }
                has.used.insert(word.clone());
            }
        }
        if has == before { Ok(()) } else { self.write(&self.path(id), &has) }
    }

    /// Forgets what may be forgotten of volumes whose disks are not here. How many notes went.
    pub(super) fn forget(&self, is_here: impl Fn(&str) -> bool) -> Result<usize> {
        if !self.dir.exists() {
            return Ok(0);
        }
        let _lock = self.lock()?;
        let mut going = Vec::new();
        let mut until = read::<Forgotten>(&self.forgotten_path())?.until;
        let before = until;
        for path in self.old()? {
            let Some(id) = volume(&path) else { continue };
            match read::<NodeNote>(&path) {
                Ok(note) if note.may_go() && !is_here(&id) => {
                    until = note.used.iter().filter_map(|word| given(word)).fold(until, i64::max);
                    going.push(path);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a note of a volume stays"),
            }
        }
        // First what outlives them, then the notes: killed in between, both say the same.
        if until > before {
            self.write(&self.forgotten_path(), &Forgotten { until })?;
        }
        for path in &going {
            fs::remove_file(path).map_err(|e| Error::io(format!("removing {}", path.display()), e))?;
        }
        Ok(going.len())
    }

    /// Files that were not written to for a while. Drafts of a process that was killed are removed on the way.
    fn old(&self) -> Result<Vec<PathBuf>> {
        let reading = |e| Error::io(format!("reading {}", self.dir.display()), e);
        let mut old = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(reading)? {
            let path = entry.map_err(reading)?.path();
            let age = fs::metadata(&path).and_then(|meta| meta.modified());
            let age = age.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if age.is_some_and(|age| age >= KEPT) {
                old.push(path);
            }
        }
        for draft in old.iter().filter(|path| path.extension().is_some_and(|it| it == "new")) {
            let _ = fs::remove_file(draft);
        }
        Ok(old)
    }

    /// Keeps other processes from the notes until it is dropped.
    fn lock(&self) -> Result<File> {
        let locking = |e| Error::io(format!("locking {}", self.dir.display()), e);
        fs::create_dir_all(&self.dir).map_err(locking)?;
        let dir = File::open(&self.dir).map_err(locking)?;
        let begun = Instant::now();
        loop {
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(dir),
                Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    return Err(Error::Unavailable(format!(
                        "{} is locked by another process (`lslocks` names it); repeat the call",
                        self.dir.display()
                    )));
                }
                Err(error) => return Err(locking(error.into())),
            }
        }
    }

    fn write<T: Stored>(&self, path: &Path, note: &T) -> Result<()> {
        let doing = |e| Error::io(format!("writing {}", path.display()), e);
        let (bytes, draft) = (seal(note)?, path.with_extension("new"));
        let written = File::create(&draft).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(doing)?;
        fs::rename(&draft, path).map_err(doing)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(doing)
    }
}

/// The volume of a note's file.
fn volume(path: &Path) -> Option<String> {
    let id = path.file_name()?.to_str()?.strip_suffix(".json")?;
    is_uuid(id).then(|| id.to_owned())
}

/// What a file has; none: nothing is noted.
fn read<T: Stored + Default>(path: &Path) -> Result<T> {
    match fs::read(path) {
        Ok(bytes) => unseal(&path.display().to_string(), &bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "7a1d4b0e-3a6c-4b7e-9d6f-0123456789ab";

    fn making(vouched: &str) -> FsNote {
        FsNote::Making { fs: "ext4".into(), permit: None, vouched: Some(vouched.to_owned()) }
    }

    fn word(seconds: i64) -> String {
        new_word(Timestamp::from_second(seconds).unwrap())
    }

    /// As if it had been written two hours ago.
    fn age(notes: &Notes, id: &str) {
        if let Ok(file) = File::options().write(true).open(notes.path(id)) {
            file.set_modified(SystemTime::now() - 2 * KEPT).unwrap();
        }
    }

    #[test]
    fn a_note_says_what_it_is_and_older_ones_are_read() {
        let state = tempfile::tempdir().unwrap();
        let notes = Notes::new(state.path());
        notes.take(ID, &making("w")).unwrap();
        notes.take(ID, &FsNote::Made("ext4".into())).unwrap();
        let text = fs::read_to_string(notes.path(ID)).unwrap();
        assert!(text.contains(r#""schema":1"#) && text.contains(r#""kind":"NodeVolume""#), "{text}");
        let note = notes.of(ID).unwrap();
        assert!(note.fs.file_system() == Some("ext4") && note.used.contains("w"), "{note:?}");
        for old in [
            r#"{"formatted":"ext4","used":["w"]}"#,
            r#"{"formatting":"ext4"}"#,
            r#"{"formatted":"raw","used":[]}"#,
        ] {
            fs::write(notes.path(ID), old).unwrap();
            notes.of(ID).unwrap();
        }
        for (wrong, label) in [
            ("", "corrupt"),
            ("{", "corrupt"),
            (r#"{"formatted":"ext4","more":1}"#, "corrupt"),
            (r#"{"schema":1,"kind":"Volume","used":[]}"#, "corrupt"),
            (r#"{"schema":2,"kind":"NodeVolume","used":[]}"#, "refused"),
        ] {
            fs::write(notes.path(ID), wrong).unwrap();
            age(&notes, ID);
            for error in [notes.of(ID).unwrap_err(), notes.take(ID, &making("v")).unwrap_err()] {
                assert_eq!(error.label(), label, "{wrong}: {error}");
                assert!(error.to_string().contains(&notes.path(ID).display().to_string()), "{error}");
            }
            // Others are not harmed, and nothing is lost of it.
            assert_eq!(notes.forget(|_| false).unwrap(), 0);
            assert_eq!(fs::read_to_string(notes.path(ID)).unwrap(), wrong);
        }
        fs::write(notes.forgotten_path(), r#"{"schema":9,"kind":"ForgottenWords","until":0}"#).unwrap();
        let error = notes.is_used(&NodeNote::default(), &word(1)).unwrap_err();
        assert!(error.label() == "refused" && error.to_string().contains("forgotten.json"), "{error}");
    }

    #[test]
    fn a_note_goes_when_nothing_is_lost_with_it() {
        let state = tempfile::tempdir().unwrap();
        let notes = Notes::new(state.path());
        let gone = |how: &dyn Fn(&Notes)| {
            let _ = fs::remove_file(notes.path(ID));
            how(&notes);
            let young = notes.forget(|_| false).unwrap();
            age(&notes, ID);
            let here = notes.forget(|id| id == ID).unwrap();
            assert_eq!((young, here), (0, 0), "it is young, or its disk is here");
            notes.forget(|_| false).unwrap() == 1
        };
        assert!(gone(&|notes| notes.take(ID, &FsNote::Made("ext4".into())).unwrap()));
        assert!(!notes.forgotten_path().exists(), "no word was forgotten");
        assert!(gone(&|notes| notes.take(ID, &making(&word(100))).unwrap()));
        assert!(!gone(&|notes| notes.take(ID, &FsNote::Raw).unwrap()));
        assert!(!gone(&|notes| notes.take(ID, &making("0123456789abcdef0123456789abcdef")).unwrap()));
        let permit = FsNote::Making { fs: "ext4".into(), permit: Some("0123456789ab".into()), vouched: None };
        assert!(!gone(&|notes| notes.take(ID, &permit).unwrap()));
        let draft = notes.path(ID).with_extension("new");
        fs::write(&draft, "").unwrap();
        File::options().write(true).open(&draft).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        notes.forget(|_| true).unwrap();
        assert!(!draft.exists());
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A word of those below is used for a volume.
        Use(usize, usize),
        Made(usize),
        Age(usize),
        /// Whether each volume's disk is here.
        Forget([bool; 3]),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3usize, 0..10usize).prop_map(|(volume, word)| Step::Use(volume, word)),
            (0..3usize).prop_map(Step::Made),
            (0..3usize).prop_map(Step::Age),
            any::<[bool; 3]>().prop_map(Step::Forget),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is forgotten in between: no word is good twice.
        #[test]
        fn a1_a_word_that_was_used_is_never_good_again(
            times in proptest::collection::vec(0i64..50, 8),
            steps in proptest::collection::vec(step(), 1..30),
        ) {
            let state = tempfile::tempdir().unwrap();
            let notes = Notes::new(state.path());
            let ids: Vec<_> = (0..3).map(|i| format!("{i}{}", &ID[1..])).collect();
            let mut words: Vec<_> = times.into_iter().map(word).collect();
            words.extend(["0123456789ab".to_owned(), "0123456789abcdef0123456789abcdef".to_owned()]);
            let mut used = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Use(volume, word) => {
                        // As an operator allows it: a volume can be formatted more than once then.
                        let note = FsNote::Making {
                            fs: "xfs".into(),
                            permit: Some(words[word].clone()),
                            vouched: None,
                        };
                        if notes.take(&ids[volume], &note).is_ok() {
                            prop_assert!(used.insert((volume, word)), "{word} of {volume} was good twice");
                        }
                    }
                    Step::Made(volume) => notes.take(&ids[volume], &FsNote::Made("xfs".into())).unwrap(),
                    Step::Age(volume) => age(&notes, &ids[volume]),
                    Step::Forget(here) => {
                        notes.forget(|id| ids.iter().position(|it| it == id).is_some_and(|i| here[i])).unwrap();
                    }
                }
                for (volume, word) in &used {
                    let note = notes.of(&ids[*volume]).unwrap();
                    prop_assert!(notes.is_used(&note, &words[*word]).unwrap(), "{word} of {volume} is good again");
                }
            }
        }
    }
}
