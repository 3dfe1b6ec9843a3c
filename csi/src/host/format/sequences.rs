//! No sequence of what can happen to a volume ends in the format of a device that holds somebody's data.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock};

use proptest::prelude::*;
use provisioners::Ctx;

use super::bench::{BLOCK, DEAD, End, Notes, Player, Writes, put, record, recorded, sparse};
use super::tests::volume;
use super::*;

const SIZE: u64 = 16 << 20;

/// What happens to a volume.
#[derive(Debug, Clone)]
enum Step {
    /// NodeStageVolume on a node that knows the record, with mkfs ending so.
    Stage(End),
    /// The same on another node of a backend whose record stays with a node: nothing is known of before.
    Elsewhere(End),
    /// A user of the mounted file system writes, if there is one.
    Write(u8),
    /// It is published as a raw block device, and a block is written; `noted`: the backend keeps the fact.
    Block { noted: bool, at: u8 },
    /// Somebody makes a file system by hand.
    ByHand,
    /// A snapshot is taken, record and all.
    Snapshot,
    /// The volume becomes a copy of the snapshot: under its own handle, or as what an operator restored.
    Restore { own: bool },
    /// An older driver stages it: it takes `formatting` for a permission, writes it, and is killed at a write.
    Older(End),
    /// Somebody clears the start of the device.
    ClearStart,
}

/// A snapshot of the device and of what is known of it.
#[derive(Clone)]
struct Snapshot {
    writes: Writes,
    data: Writes,
    formatted: Option<String>,
    raw: bool,
    formatting: bool,
}

struct World {
    file: tempfile::NamedTempFile,
    notes: Notes,
    /// What an older driver has noted.
    formatting: bool,
    handle: String,
    /// Blocks that are somebody's data.
    data: Writes,
    snapshot: Option<Snapshot>,
}

fn ext4() -> Option<&'static Writes> {
    static WRITES: OnceLock<Option<Writes>> = OnceLock::new();
    WRITES.get_or_init(|| record("mkfs.ext4", &["-qF"], SIZE)).as_ref()
}

impl World {
    fn new() -> Self {
        Self {
            file: sparse(SIZE),
            notes: Notes::default(),
            formatting: false,
            handle: "v".into(),
            data: Vec::new(),
            snapshot: None,
        }
    }

    fn device(&self) -> &File {
        self.file.as_file()
    }

    fn formatted(&self) -> Option<String> {
        self.notes.formatted.lock().unwrap().clone()
    }

    /// Stages it as this version does.
    fn stage(&self, end: End, notes: &Notes) {
        let mut volume = volume(notes.formatted.lock().unwrap().as_deref());
        volume.raw = *notes.raw.lock().unwrap();
        let asked = Asked { id: &self.handle, fs: "ext4", read_only: false };
        let job = Job { asked, volume: &volume, device: self.file.path(), backing: Some(self.device()) };
        let may = || self.data.is_empty();
        let maker = Player { writes: ext4().unwrap(), end, may: &may, called: Mutex::default() };
        let staged = catch_unwind(AssertUnwindSafe(|| prepare(&Ctx::new(), &job, &maker, notes)));
        if let Err(panic) = staged {
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            assert!(text == DEAD, "{text}");
        }
        assert!(*maker.called.lock().unwrap() <= (end != End::Missing));
        self.intact();
    }

    /// What is somebody's is still there.
    fn intact(&self) {
        for (at, bytes) in &self.data {
            let mut has = vec![0; bytes.len()];
            self.device().read_exact_at(&mut has, *at).unwrap();
            assert!(has == *bytes, "data at byte {at} is gone");
        }
    }

    /// Stages it as the version before did, whose rule is: a format that was begun is begun again.
    fn older(&mut self, end: End) {
        let content = super::super::probe::probe(
            &Ctx::new(),
            self.device(),
            SIZE,
            &super::super::probe::Known::Holes(self.device()),
        );
        let formatted = self.formatted();
        let raw = *self.notes.raw.lock().unwrap();
        let blank = matches!(content, Ok(Content::Blank)) && formatted.is_none() && !raw;
        let again = self.formatting && formatted.is_none() && !raw && !matches!(content, Ok(Content::Blank));
        // What the older version itself destroys is not this one's doing.
        if blank || (again && self.data.is_empty()) {
            self.formatting = true;
            let wrote = match end {
                End::Done => usize::MAX,
                End::Fails(n) | End::Killed(n) => n,
                End::Missing => 0,
            };
            let writes: Writes = ext4().unwrap().iter().rev().take(wrote).cloned().collect();
            put(self.device(), &writes);
            if end == End::Done {
                self.formatting = false;
                *self.notes.formatted.lock().unwrap() = Some("ext4".into());
            }
        }
    }

    fn write(&mut self, at: u64) {
        // Behind the tables of the file system.
        let at = (SIZE / 2 + at * BLOCK as u64) / BLOCK as u64 * BLOCK as u64;
        let bytes = vec![0xda; BLOCK];
        self.device().write_all_at(&bytes, at).unwrap();
        self.data.push((at, bytes));
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Stage(end) => self.stage(*end, &self.notes),
            Step::Elsewhere(end) => {
                let strange = Notes::default();
                *strange.raw.lock().unwrap() = *self.notes.raw.lock().unwrap();
                self.stage(*end, &strange);
            }
            Step::Write(at) => {
                let mounted = super::super::probe::signature(self.device(), SIZE).unwrap().is_some();
                if mounted {
                    self.write((*at).into());
                }
            }
            Step::Block { noted, at } => {
                if *noted && self.formatted().is_none() {
                    *self.notes.raw.lock().unwrap() = true;
                }
                self.formatting = false;
                self.write((*at).into());
            }
            Step::ByHand => {
                // Whoever does so gives up what was there.
                self.data.clear();
                put(self.device(), ext4().unwrap());
            }
            Step::Snapshot => {
                self.snapshot = Some(Snapshot {
                    writes: recorded(self.device(), SIZE),
                    data: self.data.clone(),
                    formatted: self.formatted(),
                    raw: *self.notes.raw.lock().unwrap(),
                    formatting: self.formatting,
                });
            }
            Step::Restore { own } => {
                let Some(was) = self.snapshot.clone() else { return };
                self.file = sparse(SIZE);
                put(self.device(), &was.writes);
                self.data = was.data;
                self.notes = Notes { formatted: Mutex::new(was.formatted), raw: Mutex::new(was.raw) };
                self.formatting = was.formatting;
                self.handle = if *own { "v".into() } else { "copy".into() };
            }
            Step::Older(end) => self.older(*end),
            Step::ClearStart => {
                // Data that is not at the start is still somebody's.
                self.device().write_all_at(&vec![0; 64 << 10], 0).unwrap();
            }
        }
    }
}

fn end() -> impl Strategy<Value = End> {
    let writes = 0..40_usize;
    prop_oneof![
        3 => Just(End::Done),
        2 => writes.clone().prop_map(End::Fails),
        3 => writes.prop_map(End::Killed),
        1 => Just(End::Missing),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => end().prop_map(Step::Stage),
        2 => end().prop_map(Step::Elsewhere),
        2 => any::<u8>().prop_map(Step::Write),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(noted, at)| Step::Block { noted, at }),
        1 => Just(Step::ByHand),
        1 => Just(Step::Snapshot),
        1 => any::<bool>().prop_map(|own| Step::Restore { own }),
        2 => end().prop_map(Step::Older),
        1 => Just(Step::ClearStart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if ext4().is_some() { 300 } else { 0 }))]
    #[test]
    fn no_sequence_ends_in_a_format_of_a_device_with_content(steps in prop::collection::vec(step(), 1..14)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }
}

/// What the version before did wrong: mkfs was missing here, another node made the file system, and a user wrote.
#[test]
fn a_format_that_never_began_here_is_no_permission_after_another_node_s() {
    if ext4().is_none() {
        return;
    }
    let mut world = World::new();
    let here = Notes::default();
    world.stage(End::Missing, &here);
    world.step(&Step::Elsewhere(End::Done));
    world.step(&Step::Write(3));
    world.stage(End::Done, &here);
    world.intact();
    assert_eq!(here.formatted.lock().unwrap().as_deref(), Some("ext4"));
}

/// A mkfs that failed or ran out of time while its driver lives leaves a device that the next try may format.
#[test]
fn a_failed_mkfs_is_healed_by_the_driver_that_lives() {
    let Some(writes) = ext4() else { return };
    for wrote in [0, 1, 7, writes.len() - 1] {
        let world = World::new();
        world.stage(End::Fails(wrote), &world.notes);
        assert!(recorded(world.device(), SIZE).is_empty(), "after {wrote} writes something is left");
        world.stage(End::Done, &world.notes);
        assert_eq!(world.formatted().as_deref(), Some("ext4"));
    }
}

/// A driver and its mkfs that were killed after some writes: refused, and said so; after none it begins again.
#[test]
fn what_a_killed_mkfs_left_is_refused_with_what_was_seen() {
    if ext4().is_none() {
        return;
    }
    let world = World::new();
    world.stage(End::Killed(0), &world.notes);
    let asked = Asked { id: "v", fs: "ext4", read_only: false };
    let volume = volume(None);
    let job = Job { asked, volume: &volume, device: world.file.path(), backing: Some(world.device()) };
    let maker =
        Player { writes: ext4().unwrap(), end: End::Killed(9), may: &|| true, called: Mutex::default() };
    let killed = catch_unwind(AssertUnwindSafe(|| prepare(&Ctx::new(), &job, &maker, &world.notes)));
    assert!(killed.is_err() && *maker.called.lock().unwrap());
    let error = prepare(&Ctx::new(), &job, &maker, &world.notes).unwrap_err().to_string();
    assert!(error.contains("not formatting") && error.contains("give up what is there"), "{error}");
}
