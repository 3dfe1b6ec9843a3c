//! Two drivers that change one volume: at any call of the one the other does something, or is killed while it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};

use super::super::pool::lock;
use super::super::store::Store;
use super::super::tests::{Death, create, delete, spec, store};
use super::*;
use crate::{CapacityRange, Ctx, StringMap, VolumeId};

const MIB: u64 = 1 << 20;
/// So many calls a process makes first, to find the driver's own directories.
const OWN: i64 = 10;

fn grow(store: &Store, mib: u64) -> Result<u64> {
    let range = CapacityRange { required: mib * MIB, limit: 0 };
    store.expand(&Ctx::new(), &VolumeId("main:v".into()), range).map(|grown| grown.capacity / MIB)
}

fn modify(store: &Store, key: &str, value: &str) -> Result<()> {
    store.modify(&VolumeId("main:v".into()), &StringMap::from([(key.to_owned(), value.to_owned())]))
}

fn record(dir: &Path) -> VolumeRecord {
    store(dir, None).volume(&VolumeId("main:v".into())).unwrap().record
}

/// What the own directory of this name has.
fn left(dir: &Path, own: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(".volumectl").join(own)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// A share with one volume.
fn share() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().to_owned();
    create(&store(&dir, None), spec("v", &[], None)).unwrap();
    (scratch, dir)
}

/// A driver that grows the volume to 4 MiB, and another that does something before its call of this number; whether there
/// was such a call.
fn growing(dir: &Path, call: i64, other: impl Fn(&Path) + Send + Sync + 'static) -> (Result<u64>, bool) {
    let at = dir.to_owned();
    let meanwhile = Death::meanwhile(call, move || other(&at));
    let grown = grow(&store(dir, Some(meanwhile.clone())), 4);
    (grown, meanwhile.is_dead())
}

#[test]
fn of_two_changes_of_one_record_none_is_lost() {
    for call in 0.. {
        let (_scratch, dir) = share();
        let (grown, met) =
            growing(&dir, call, |dir| modify(&store(dir, None), "onDelete", "retain").unwrap());
        assert_eq!(grown.unwrap(), 4, "call {call}");
        if !met {
            assert!(call > 5, "{call} calls only");
            return;
        }
        let now = record(&dir);
        assert_eq!(now.capacity, 4 * MIB, "call {call}");
        assert_eq!(now.modified.get("onDelete").map(String::as_str), Some("retain"), "call {call}");
        assert!(left(&dir, "tmp").is_empty() && left(&dir, "changes").is_empty(), "call {call}");
    }
}

#[test]
fn of_two_growths_the_larger_stays() {
    for call in 0.. {
        let (_scratch, dir) = share();
        let (grown, met) = growing(&dir, call, |dir| assert_eq!(grow(&store(dir, None), 8).unwrap(), 8));
        assert!([4, 8].contains(&grown.unwrap()), "call {call}");
        if !met {
            return;
        }
        assert_eq!(record(&dir).capacity, 8 * MIB, "call {call}");
    }
}

/// Who is killed in the middle of a change stops nobody, and its change is made or not; repeated, it is.
#[test]
fn a_killed_change_stops_nobody() {
    for (call, answered) in (OWN..).flat_map(|call| [(call, false), (call, true)]) {
        let (mut met, mut died) = (false, false);
        for at in OWN..40 {
            let (_scratch, dir) = share();
            let death = Death::new(at, answered);
            let other = death.clone();
            let grown = growing(&dir, call, move |dir| {
                let _ = modify(&store(dir, Some(other.clone())), "onDelete", "retain");
            });
            met = grown.1;
            assert_eq!(grown.0.unwrap(), 4, "call {call}, killed at {at}");
            modify(&store(&dir, None), "onDelete", "retain").unwrap();
            let now = record(&dir);
            assert!(
                now.capacity == 4 * MIB && now.modified.contains_key("onDelete"),
                "{call}, {at}: {now:?}"
            );
            let store = store(&dir, None);
            let share = store.shares().remove(0);
            settle(&share, &share.own().unwrap()).unwrap();
            assert!(left(&dir, "changes").is_empty(), "call {call}, killed at {at}");
            died |= death.is_dead();
            if !met || !death.is_dead() {
                break;
            }
        }
        if !met {
            assert!(call > OWN + 5, "{call} calls only");
            return;
        }
        assert!(died, "call {call}");
    }
}

/// A record that was removed does not come back, whoever was about to change it, also if the deletion was killed and
/// repeated; nor does a change of it reach the volume that has its name next.
#[test]
fn a_deleted_volumes_record_does_not_come_back() {
    for killed in [None, Some(false), Some(true)] {
        for call in OWN.. {
            let mut met = false;
            for at in OWN..60 {
                let (_scratch, dir) = share();
                let death = killed.map(|answered| Death::new(at, answered));
                let other = death.clone();
                let grown = growing(&dir, call, move |dir| {
                    if let Some(death) = &other {
                        let _ = delete(&store(dir, Some(death.clone())), "main:v");
                    }
                    delete(&store(dir, None), "main:v").unwrap();
                });
                met = grown.1;
                let what = format!("call {call}, killed: {killed:?} at {at}");
                if met {
                    let listed = store(&dir, None).list(None, 0).unwrap().items;
                    assert!(listed.is_empty(), "{what}: {:?}", grown.0);
                    assert!(left(&dir, "changes").is_empty() && left(&dir, "tmp").is_empty(), "{what}");
                }
                if !met || death.is_none_or(|death| !death.is_dead()) {
                    break;
                }
            }
            if !met {
                assert!(call > OWN + 5, "{call} calls only");
                break;
            }
        }
    }
}

/// The same with a deletion that stands still at any of its calls while the change, which began before it, comes to its end.
#[test]
fn a_record_that_followed_a_deleted_one_goes_too() {
    for call in OWN + 3.. {
        let mut met = false;
        for at in OWN + 6.. {
            let (_scratch, dir) = share();
            let deletion = Arc::new(Mutex::new(None));
            let (begun, path) = (deletion.clone(), dir.clone());
            let (grown, was) = growing(&dir, call, move |_| *lock(&begun) = Some(Standing::begin(&path, at)));
            met = was;
            let stood = lock(&deletion).take().is_some_and(Standing::end);
            let listed = store(&dir, None).list(None, 0).unwrap().items;
            assert_eq!(listed.is_empty(), met, "call {call} and {at}: {grown:?}");
            assert!(left(&dir, "changes").is_empty() && left(&dir, "tmp").is_empty(), "call {call} and {at}");
            if !stood {
                break;
            }
        }
        if !met {
            assert!(call > OWN + 5, "{call} calls only");
            return;
        }
    }
}

/// A deletion that stands still before one of its calls.
struct Standing {
    death: Death,
    go_on: mpsc::Sender<()>,
    work: std::thread::JoinHandle<()>,
}

impl Standing {
    /// Begins it; it stands, or is done.
    fn begin(dir: &Path, at: i64) -> Self {
        let ((stands, standing), (go_on, going_on)) = (mpsc::channel(), mpsc::channel());
        let (ended, going_on) = (stands.clone(), Mutex::new(going_on));
        let death = Death::meanwhile(at, move || {
            let _ = stands.send(());
            let _ = lock(&going_on).recv();
        });
        let store = store(dir, Some(death.clone()));
        let work = std::thread::spawn(move || {
            delete(&store, "main:v").unwrap();
            let _ = ended.send(());
        });
        standing.recv().unwrap();
        Self { death, go_on, work }
    }

    /// Lets it come to its end; whether it stood.
    fn end(self) -> bool {
        let _ = self.go_on.send(());
        self.work.join().unwrap();
        self.death.is_dead()
    }
}

/// A draft that was swept away while its owner slept gives its right up.
#[test]
fn a_right_whose_draft_is_gone_is_to_be_had_again() {
    let (_scratch, dir) = share();
    for call in 0.. {
        let (grown, met) = growing(&dir, call, |dir| {
            for draft in left(dir, "tmp") {
                fs::remove_file(draft).unwrap();
            }
        });
        assert_eq!(grown.unwrap(), 4);
        if !met {
            break;
        }
    }
    // Nobody is left to publish what has the right.
    let digest = digest(&fs::read(dir.join(".volumectl/volumes/v.json")).unwrap());
    std::os::unix::fs::symlink("gone.json", dir.join(format!(".volumectl/changes/v.{digest}.0"))).unwrap();
    assert_eq!(grow(&store(&dir, None), 16).unwrap(), 16);
    assert!(left(&dir, "changes").is_empty() && left(&dir, "tmp").is_empty());
}

/// A version that knows nothing of rights renames its record over ours: what it has written is changed, as long as it came
/// before the look.
#[test]
fn a_change_of_an_older_version_is_seen() {
    let (mut kept, mut calls) = (0, 0);
    for call in 0.. {
        let (_scratch, dir) = share();
        let (grown, met) = growing(&dir, call, |dir| {
            let path = dir.join(".volumectl/volumes/v.json");
            let record = fs::read_to_string(&path).unwrap();
            let draft = dir.join(".volumectl/tmp/0123456789abcdef01234567");
            fs::write(&draft, record.replace("\"onDelete\": \"delete\"", "\"onDelete\": \"retain\""))
                .unwrap();
            fs::rename(draft, path).unwrap();
        });
        assert_eq!(grown.unwrap(), 4);
        if !met {
            break;
        }
        let now = record(&dir);
        assert_eq!(now.capacity, 4 * MIB, "call {call}");
        kept += i32::from(now.on_delete == super::super::OnDelete::Retain);
        calls += 1;
    }
    assert!(kept >= calls - 1, "{kept} of {calls}");
}

/// Many at once: each adds to a number of its own, and nobody's is ever seen smaller.
#[test]
fn many_writers_lose_nothing() {
    let (_scratch, dir) = share();
    let dir = Arc::new(dir);
    let writers = (0..4).map(|writer| {
        let dir = dir.clone();
        std::thread::spawn(move || {
            let (store, key) = (store(&dir, None), format!("writer{writer}"));
            for count in 0..25 {
                let mut found = store.volume(&VolumeId("main:v".into())).unwrap();
                let changed = found.change(|record| {
                    let has = record.modified.get(&key).map_or(0, |has| has.parse::<u32>().unwrap());
                    // The change may have been made already by somebody who took it for a dead one's.
                    assert!(has == count || has == count + 1, "{key}: {has}, not {count}");
                    record.modified.insert(key.clone(), (count + 1).to_string());
                    Ok(has == count)
                });
                changed.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.join().unwrap();
    }
    let now = record(&dir);
    assert_eq!(now.modified.values().filter(|count| *count == "25").count(), 4, "{:?}", now.modified);
    assert!(left(&dir, "changes").is_empty() && left(&dir, "tmp").is_empty());
}

/// The record of a volume that was made before handles were kept gets one when it is written, if its directory is there.
#[test]
fn a_record_of_before_handles_gets_its_proof() {
    for exchanged in [false, true] {
        let (_scratch, dir) = share();
        let path = dir.join(".volumectl/volumes/v.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let proof = record.as_object_mut().unwrap().remove("proof").unwrap();
        fs::write(&path, serde_json::to_vec_pretty(&record).unwrap()).unwrap();
        if exchanged {
            // Not removed, so that its number is not given again.
            fs::rename(dir.join("v"), dir.join("aside")).unwrap();
            fs::create_dir(dir.join("v")).unwrap();
        }
        grow(&store(&dir, None), 4).unwrap();
        let now: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(now.get("proof"), if exchanged { None } else { Some(&proof) });
    }
}
