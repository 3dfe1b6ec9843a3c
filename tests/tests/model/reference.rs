//! What should be: volumes and snapshots by name.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

/// Names are few, so that calls meet each other.
pub const NAMES: u8 = 4;
/// Sizes in MiB.
const SIZES: std::ops::RangeInclusive<i64> = 1..=6;

/// A volume in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub mib: i64,
    pub directory: bool,
    pub source: Option<Source>,
    /// Which content: a volume made from nothing has its own, one with a source that of the source.
    pub content: u64,
    pub attached: bool,
}

/// Where a volume came from, by the names of the model. A name may be used again, so it carries the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Snapshot(u8),
    Volume(u8),
}

/// A snapshot in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub of: u8,
    pub mib: i64,
    pub directory: bool,
    pub content: u64,
}

/// Everything that should exist.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub volumes: BTreeMap<u8, Volume>,
    pub snapshots: BTreeMap<u8, Snapshot>,
    pub contents: u64,
}

/// One call, or something that happens to the driver.
#[derive(Debug, Clone)]
pub enum Call {
    Create {
        name: u8,
        mib: i64,
        directory: bool,
    },
    CreateFrom {
        name: u8,
        source: Source,
        more: i64,
    },
    Delete {
        name: u8,
    },
    Snapshot {
        name: u8,
        of: u8,
    },
    DeleteSnapshot {
        name: u8,
    },
    Expand {
        name: u8,
        mib: i64,
    },
    Attach {
        name: u8,
    },
    Detach {
        name: u8,
    },
    /// The driver's process ends and another starts on the same files.
    Restart,
}

/// A call and the fault it meets: at its n-th safe point it fails, or its caller goes away.
#[derive(Debug, Clone)]
pub struct Step {
    pub call: Call,
    pub fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The work fails at its n-th safe point.
    FailsAt(u8),
    /// The caller goes away after so many microseconds.
    CallerLeaves(u16),
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let name = || 0..NAMES;
        let source = prop_oneof![name().prop_map(Source::Snapshot), name().prop_map(Source::Volume)];
        let call = prop_oneof![
            4 => (name(), SIZES, any::<bool>())
                .prop_map(|(name, mib, directory)| Call::Create { name, mib, directory }),
            3 => (name(), source, 0..=2_i64).prop_map(|(name, source, more)| Call::CreateFrom { name, source, more }),
            3 => name().prop_map(|name| Call::Delete { name }),
            2 => (name(), name()).prop_map(|(name, of)| Call::Snapshot { name, of }),
            1 => name().prop_map(|name| Call::DeleteSnapshot { name }),
            2 => (name(), SIZES).prop_map(|(name, mib)| Call::Expand { name, mib }),
            1 => name().prop_map(|name| Call::Attach { name }),
            1 => name().prop_map(|name| Call::Detach { name }),
            1 => Just(Call::Restart),
        ];
        let fault = prop_oneof![
            4 => Just(None),
            2 => (0..6_u8).prop_map(|n| Some(Fault::FailsAt(n))),
            1 => (0..3000_u16).prop_map(|us| Some(Fault::CallerLeaves(us))),
        ];
        (call, fault).prop_map(|(call, fault)| Step { call, fault }).boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        let _ = state.call(&step.call);
        state
    }
}

/// What a call answers, as far as the model knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    AlreadyExists,
    NotFound,
    Refused,
}

impl Model {
    /// Makes the call in the model; a refused call changes nothing.
    pub fn call(&mut self, call: &Call) -> Answer {
        match *call {
            Call::Create { name, mib, directory } => {
                self.contents += 1;
                self.create(
                    name,
                    Volume { mib, directory, source: None, content: self.contents, attached: false },
                )
            }
            Call::CreateFrom { name, source, more } => self.create_from(name, source, more),
            Call::Delete { name } => match self.volumes.get(&name) {
                Some(volume) if volume.attached => Answer::Refused,
                _ => done(self.volumes.remove(&name)),
            },
            Call::Snapshot { name, of } => self.snapshot(name, of),
            Call::DeleteSnapshot { name } => done(self.snapshots.remove(&name)),
            Call::Expand { name, mib } => match self.volumes.get_mut(&name) {
                None => Answer::NotFound,
                Some(volume) => done({
                    volume.mib = volume.mib.max(mib);
                    None::<()>
                }),
            },
            Call::Attach { name } => match self.volumes.get_mut(&name) {
                None => Answer::NotFound,
                Some(volume) => done({
                    let _: () = volume.attached = true;
                    Some(())
                }),
            },
            Call::Detach { name } => done(self.volumes.get_mut(&name).map(|volume| volume.attached = false)),
            Call::Restart => Answer::Done,
        }
    }

    fn create(&mut self, name: u8, wanted: Volume) -> Answer {
        match self.volumes.get(&name) {
            None => done(self.volumes.insert(name, wanted)),
            Some(v)
                if v.directory == wanted.directory && v.source == wanted.source && v.mib >= wanted.mib =>
            {
                Answer::Done
            }
            Some(_) => Answer::AlreadyExists,
        }
    }

    fn create_from(&mut self, name: u8, source: Source, more: i64) -> Answer {
        let found = match source {
            Source::Snapshot(s) => self.snapshots.get(&s).map(|s| (s.mib, s.directory, s.content)),
            Source::Volume(v) => self.volumes.get(&v).map(|v| (v.mib, v.directory, v.content)),
        };
        let Some((mib, directory, content)) = found else {
            return Answer::NotFound;
        };
        self.create(
            name,
            Volume { mib: mib + more, directory, source: Some(source), content, attached: false },
        )
    }

    fn snapshot(&mut self, name: u8, of: u8) -> Answer {
        let Some(volume) = self.volumes.get(&of) else {
            return Answer::NotFound;
        };
        match self.snapshots.get(&name) {
            Some(snapshot) if snapshot.of == of => Answer::Done,
            Some(_) => Answer::AlreadyExists,
            None => {
                let Volume { mib, directory, content, .. } = *volume;
                done(self.snapshots.insert(name, Snapshot { of, mib, directory, content }))
            }
        }
    }
}

/// Whatever was there before, it is done now.
fn done<T>(_: T) -> Answer {
    Answer::Done
}
